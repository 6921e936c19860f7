# SPDX-License-Identifier: Apache-2.0
"""What has to be told of a machine's instructions to find probe sites: data, in capstone's text form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import capstone


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `at` is its offset in the function. Text is "mnemonic operands"."""

    at: int
    size_bytes: int
    text: str


@dataclass(frozen=True, slots=True)
class Machine:
    """How to read a machine's code. Expressions match the whole text of an instruction; addresses are absolute."""

    arch: int
    mode: int
    #: Any jump; group `target` if it is direct.
    jump: re.Pattern[str]
    #: A call of a known place: group `target`.
    call: re.Pattern[str]
    ret: re.Pattern[str]
    nop: re.Pattern[str]
    #: An indirect jump that may be a switch, group `table`; how that register got the table just before.
    switch: re.Pattern[str]
    switch_table: str
    #: What may stand around the call of runtime.morestack: spills and reloads.
    spill: re.Pattern[str]
    #: The check of the stack, from the first instruction to its last jump, joined by "; ", nops left out;
    #: by register ABI. The last jump goes to where morestack is called; group `target`: where that is.
    checks: Mapping[bool, re.Pattern[str]]
    #: First instructions that leave SP, g and all arguments as they are, by register ABI; none: refuse.
    harmless: Mapping[bool, re.Pattern[str]]
    #: First instructions that only move SP down: by group `bytes`, or by a push.
    lowers_sp: re.Pattern[str]
    #: What the kernel emulates instead of single-stepping.
    emulated: re.Pattern[str]


_NEVER = re.compile(r"(?!)")

_X86_64 = Machine(
    arch=capstone.CS_ARCH_X86,
    mode=capstone.CS_MODE_64,
    jump=re.compile(r"(?:bnd |notrack )?(?:j\w+|loop\w*|xbegin) (?:(?P<target>0x[0-9a-f]+)|.*)"),
    call=re.compile(r"(?:bnd )?call (?P<target>0x[0-9a-f]+)"),
    ret=re.compile(r"(?:repz |bnd )?ret"),
    nop=re.compile(r"nop(?: .*)?"),
    switch=re.compile(r"jmp qword ptr \[(?P<table>r\w+) \+ r\w+\*8\]"),
    switch_table=r"lea {}, \[rip [+-] 0x[0-9a-f]+\]",
    spill=re.compile(r"v?mov\w* .*|nop(?: .*)?"),
    checks={
        # g is R14.
        True: re.compile(
            r"""(?: cmp\ rsp
                  | lea\ (?P<low>r1[235]),\ \[rsp\ -\ \w+\];\ cmp\ (?P=low)
                  | mov\ (?P<huge>r1[235]),\ rsp;\ sub\ (?P=huge),\ \w+;\ jb\ (?P<wrapped>\w+);\ cmp\ (?P=huge)
                ),\ qword\ ptr\ \[r14\ \+\ 0x1[08]\]
                ;\ jbe\ (?P<target>(?(wrapped)(?P=wrapped)|0x[0-9a-f]+))""",
            re.VERBOSE,
        ),
        # g comes from thread-local storage and is RCX afterwards.
        False: re.compile(
            r"""mov\ rcx,\ qword\ ptr
                (?: \ fs:\[0xf{15}8\] | \ \[rip\ [+-]\ \w+\];\ mov\ rcx,\ qword\ ptr\ fs:\[rcx\] );\ #
                (?: cmp\ rsp,\ qword\ ptr\ \[rcx\ \+\ 0x1[08]\]
                  | lea\ rax,\ \[rsp\ -\ \w+\];\ cmp\ rax,\ qword\ ptr\ \[rcx\ \+\ 0x1[08]\]
                  | mov\ rsi,\ qword\ ptr\ \[rcx\ \+\ 0x1[08]\];\ cmp\ rsi,\ -?\w+;\ je\ (?P<wrapped>\w+);\ #
                    lea\ rax,\ \[rsp\ \+\ \w+\];\ sub\ rax,\ rsi;\ cmp\ rax,\ \w+
                );\ jbe\ (?P<target>(?(wrapped)(?P=wrapped)|0x[0-9a-f]+))""",
            re.VERBOSE,
        ),
    },
    # Without registers for arguments no register holds g at the beginning either: only the check loads it.
    harmless={True: re.compile(r"(?:cmp|test|nop) .*|nop|mov \w+ ptr \[.*\], \w+")},
    lowers_sp=re.compile(r"sub rsp, (?P<bytes>0x[0-9a-f]+|\d+)|push r\w+"),
    emulated=re.compile(r"nop|push r\w+|call 0x[0-9a-f]+|jn?\w{1,2} 0x[0-9a-f]+|jmp 0x[0-9a-f]+"),
)

_AARCH64 = Machine(
    arch=capstone.CS_ARCH_ARM64,
    mode=capstone.CS_MODE_ARM,
    jump=re.compile(r"(?:b|b\.\w+|cbn?z \w+,|tbn?z \w+, #\w+,) #(?P<target>0x[0-9a-f]+)|br(?:aa|ab)?z? .*"),
    call=re.compile(r"bl #(?P<target>0x[0-9a-f]+)"),
    ret=re.compile(r"ret"),
    nop=re.compile(r"nop"),
    switch=re.compile(r"br (?P<table>x\d+)"),
    switch_table=r"ldr {}, \[x\d+, x\d+, lsl #3\]",
    spill=re.compile(r"(?:mov|f?ldr\w*|f?str\w*|ldp|stp) .*|nop"),
    checks={
        # g is X28.
        True: re.compile(
            r"""ldr\ x16,\ \[x28,\ \#0x1[08]\];\ #
                (?: cmp\ sp,\ x16
                  | (?:mov\ x27,\ \#\w+;\ (?:movk\ x27,\ [^;]+;\ )*)?sub\ x17,\ sp,\ [^;]+;\ cmp\ x17,\ x16
                  | (?:mov\ x27,\ \#\w+;\ (?:movk\ x27,\ [^;]+;\ )*)?subs\ x17,\ sp,\ [^;]+;\ #
                    b\.lo\ (?P<wrapped>\#\w+);\ cmp\ x17,\ x16
                );\ b\.ls\ (?P<target>(?(wrapped)(?P=wrapped)|\#0x[0-9a-f]+))""",
            re.VERBOSE,
        ),
    },
    # A function without the check is refused: what its first instruction does is not looked into.
    harmless={},
    lowers_sp=_NEVER,
    emulated=re.compile(r"nop|(?:b|b\.\w+|bl|cbn?z \w+,|tbn?z \w+, #\w+,) #0x[0-9a-f]+"),
)

MACHINES: Mapping[str, Machine] = {"x86_64": _X86_64, "aarch64": _AARCH64}


@cache
def _disassembler(machine: str) -> capstone.Cs:
    described = MACHINES[machine]
    return capstone.Cs(described.arch, described.mode)


def disassemble(code: bytes, address: int, machine: str) -> Iterator[Instruction]:
    """Linear sweep from the first byte; ends early at what is no instruction."""
    for at, size_bytes, mnemonic, operands in _disassembler(machine).disasm_lite(code, address):
        yield Instruction(at - address, size_bytes, f"{mnemonic} {operands}".strip())
