# SPDX-License-Identifier: Apache-2.0
"""Where a function can be probed, on code made by hand: what is found, and everything that is refused."""

from __future__ import annotations

import gofiles
import pytest
from gofiles import CALL, JB, JBE, JE, JMP, MORESTACK, SMALL, START, assemble
from hypothesis import given
from hypothesis import strategies as st

from observe.probes.instructions import disassemble
from observe.probes.sites import Refusal, Sites, find_sites

ADDRESS = 0x401000
BODY = ("4883ec18", "4883c418", "c3")  # sub rsp,0x18; add rsp,0x18; ret
CMP_RSP, CMP_R12 = "493b6610", "4d3b6610"  # …,[r14+0x10]
G_OF_116, CMP_RSP_RCX = "64488b0c25f8ffffff", "483b6110"  # mov rcx,fs:[-8]; cmp rsp,[rcx+0x10]
G_OF_116_PIE = "488b0d00100000", "64488b09"  # mov rcx,[rip+0x1000]; mov rcx,fs:[rcx]


def find(code: bytes, machine: str = "x86_64", *, register_abi: bool = True):
    return find_sites(code, ADDRESS, machine, register_abi=register_abi)


def text_at(code: bytes, offset: int, machine: str = "x86_64") -> str:
    (found,) = [step.text for step in disassemble(code, ADDRESS, machine) if step.at == offset]
    return found


def refused(code: bytes, reason: str, machine: str = "x86_64", *, register_abi: bool = True) -> None:
    found = find(code, machine, register_abi=register_abi)
    assert isinstance(found, Refusal), found
    assert reason in found.reason


CHECKED = {
    "small frame": (True, (CMP_RSP, (JBE, "grow"))),
    "small frame, stackguard1": (True, ("493b6618", (JBE, "grow"))),
    "medium frame": (True, ("4c8d642480", CMP_R12, (JBE, "grow"))),  # lea r12,[rsp-0x80]
    "medium frame, padded": (True, ("4c8d642480", "90", CMP_R12, (JBE, "grow"))),
    "huge frame": (True, ("4989e4", "4981ec00200000", (JB, "grow"), CMP_R12, (JBE, "grow"))),  # mov r12,rsp; sub
    "1.15, small frame": (False, (G_OF_116, CMP_RSP_RCX, (JBE, "grow"))),
    "1.15, medium frame": (False, (G_OF_116, "488d442480", "483b4110", (JBE, "grow"))),  # lea rax,[rsp-0x80]
    "1.15, position-independent": (False, (*G_OF_116_PIE, CMP_RSP_RCX, (JBE, "grow"))),
    "1.15, huge frame": (
        False,
        # mov rsi,[rcx+0x10]; cmp rsi,-0x522; je; lea rax,[rsp+0x370]; sub rax,rsi; cmp rax,0x2000; jbe
        (
            *(G_OF_116, "488b7110", "4881fedefaffff", (JE, "grow")),
            *("488d842470030000", "4829f0", "483d00200000", (JBE, "grow")),
        ),
    ),
}


@pytest.mark.parametrize("name", CHECKED)
def test_the_entry_is_the_last_jump_of_the_stack_check(name):
    register_abi, check = CHECKED[name]
    code = assemble(START, *check, *BODY, *MORESTACK, "cc" * 5)
    found = find(code, register_abi=register_abi)
    assert isinstance(found, Sites), found
    assert text_at(code, found.entry_offset).startswith("jbe ")
    assert (found.entry_is_emulated, found.entry_sp_adjust_bytes) == (True, 0)
    assert found.entry_offset == len(assemble(*check)) - 6
    assert [text_at(code, offset) for offset in found.return_offsets] == ["ret"]
    # The check of one ABI is none of the other, and the fallback is not for a function that starts again.
    assert isinstance(find(code, register_abi=not register_abi), Refusal)


def test_every_return_is_found_and_nothing_else():
    code = assemble(START, CMP_RSP, (JBE, "grow"), "c3", (JE, "out"), "b0c3", "f3c3", ("", "out"), "c3", *MORESTACK)
    found = find(code)
    assert isinstance(found, Sites)
    assert [text_at(code, offset) for offset in found.return_offsets] == ["ret", "repz ret", "ret"]
    assert code.count(b"\xc3") == 4  # one is the operand of a mov


def test_a_switch_is_let_pass_and_other_indirect_jumps_are_not():
    switch = "488d0d00100000", "ff24d1"  # lea rcx,[rip+0x1000]; jmp [rcx+rdx*8]
    checked = (START, CMP_RSP, (JBE, "grow"))
    assert isinstance(find(assemble(*checked, *switch, *BODY, *MORESTACK)), Sites)
    assert isinstance(find(assemble(*checked, switch[0], "90", switch[1], *BODY, *MORESTACK)), Sites)
    # The register was written in between; the table comes from elsewhere; a register; memory.
    for jump in (
        (switch[0], "4889c1", switch[1]),
        ("488b0d00100000", switch[1]),
        ("ffe1",),
        ("ff2500100000",),
    ):
        refused(assemble(*checked, *jump, *BODY, *MORESTACK), "through a register")


REFUSED = {
    "empty": (b"", "do not end where it ends"),
    "cut": (SMALL[:6], "do not end where it ends"),
    "last instruction cut": (assemble(START, CMP_RSP, (JBE, "grow"), *BODY, *MORESTACK)[:-2], "do not end"),
    "no instruction": (assemble(START, CMP_RSP, (JBE, "grow"), *BODY, "06", *MORESTACK), "do not end"),
    "no return": (assemble(START, CMP_RSP, (JBE, "grow"), "0f0b", *MORESTACK), "no return"),
    "tail jump": (assemble(START, CMP_RSP, (JBE, "grow"), *BODY, (JMP, "far"), *MORESTACK), "jumps out"),
    "conditional tail jump": (assemble(START, CMP_RSP, (JBE, "grow"), (JE, "far"), *BODY, *MORESTACK), "jumps out"),
    "jump into an instruction": (
        assemble(START, CMP_RSP, (JBE, "grow"), "eb01", "b890909090", *BODY, *MORESTACK),
        "middle of an instruction",
    ),
    "call of its own middle": (
        assemble(START, CMP_RSP, (JBE, "grow"), (CALL, "in"), ("", "in"), *BODY, *MORESTACK),
        "its own middle",
    ),
    "loop to its start": (
        assemble(START, CMP_RSP, (JBE, "grow"), *BODY, (JE, "start"), *MORESTACK),
        "beginning is jumped to",
    ),
    "loop to its entry": (
        assemble(START, CMP_RSP, ("", "entry"), (JBE, "grow"), *BODY, (JE, "entry"), *MORESTACK),
        "beginning is jumped to",
    ),
    "grows without morestack": (
        assemble(START, CMP_RSP, (JBE, "grow"), *BODY, ("", "grow"), "90", (JMP, "start")),
        "does not lead to morestack",
    ),
    "grows and goes on": (
        assemble(START, CMP_RSP, (JBE, "grow"), ("", "on"), *BODY, ("", "grow"), (CALL, "morestack"), (JMP, "on")),
        "does not lead to morestack",
    ),
    "two calls to grow": (
        assemble(
            *(START, CMP_RSP, (JBE, "grow"), *BODY),
            *(("", "grow"), (CALL, "morestack"), (CALL, "other"), (JMP, "start")),
        ),
        "does not lead to morestack",
    ),
    "SP moved to grow": (
        assemble(START, CMP_RSP, (JBE, "grow"), *BODY, ("", "grow"), "4883c408", (CALL, "far"), (JMP, "start")),
        "does not lead to morestack",
    ),
    "SP lowered before a check": (
        assemble(START, "4883ec18", CMP_RSP, (JBE, "grow"), "4883c418", "c3", *MORESTACK),
        "beginning is jumped to",
    ),
    "guard of another register": (
        assemble(START, "493b6510", (JBE, "grow"), *BODY, *MORESTACK),
        "beginning is jumped to",
    ),
    "another comparison": (assemble(START, CMP_RSP, ("0f87", "grow"), *BODY, *MORESTACK), "beginning is jumped to"),
    "huge frame that wraps elsewhere": (
        assemble(START, "4989e4", "4981ec00200000", (JB, "x"), CMP_R12, (JBE, "grow"), ("", "x"), *BODY, *MORESTACK),
        "no stack check",
    ),
    "one instruction": (assemble("c3"), "no stack check"),
    "returns at once": (assemble("4885c0", "c3"), "returns at once"),
    "writes an argument": (assemble("488b4008", "90", "c3"), "begins with 'mov rax"),
    "writes half an argument": (assemble("31db", "90", "c3"), "begins with 'xor ebx"),
    "writes g": (assemble("4d8b36", "90", "c3"), "begins with 'mov r14"),
    "begins with a jump": (assemble((JE, "on"), ("", "on"), "90", "c3"), "begins with 'je"),
    "begins with a call": (assemble((CALL, "far"), "90", "c3"), "begins with 'call"),
    "writes SP": (assemble("4883c408", "90", "c3"), "begins with 'add rsp"),
    "writes SP with a mov": (assemble("4889c4", "90", "c3"), "begins with 'mov rsp"),
    "second instruction is jumped to": (
        assemble("4885c0", ("", "second"), "48ffc8", ("0f85", "second"), "c3"),
        "beginning is jumped to",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_the_reason(name):
    refused(*REFUSED[name])


@pytest.mark.parametrize(
    ("code", "offset", "emulated", "adjust"),
    [
        ("4885c0 90 c3", 3, True, 0),  # test rax,rax; nop
        ("4889442408 4885c0 c3", 5, False, 0),  # a spill, then test
        ("55 4889e5 5d c3", 1, False, 8),  # push rbp; mov rbp,rsp
        ("4883ec18 55 5d 4883c418 c3", 4, True, 0x18),  # sub rsp,0x18; push rbp
        ("4881ec00010000 90 4881c400010000 c3", 7, True, 0x100),
        ("4885c0 7401 90 c3", 3, True, 0),  # test; je over the nop
    ],
)
def test_without_a_check_the_second_instruction_is_the_entry(code, offset, emulated, adjust):
    found = find(bytes.fromhex(code))
    assert isinstance(found, Sites), found
    assert (found.entry_offset, found.entry_is_emulated, found.entry_sp_adjust_bytes) == (offset, emulated, adjust)
    assert len(found.return_offsets) == 1


def test_below_go_117_only_a_check_tells_the_goroutine():
    code = bytes.fromhex("4885c0 90 c3")
    assert isinstance(find(code), Sites)
    refused(code, "it has no stack check", register_abi=False)


def arm(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


LDR_G, CMP_SP, RET, NOP = 0xF9400B90, 0xEB3063FF, 0xD65F03C0, 0xD503201F
ARM_GROW = (0xAA1E03E3, 0x94100000)  # mov x3,x30; bl far


def arm_function(*check: int, body: tuple[int, ...] = (NOP, RET)) -> bytes:
    """Code with a check whose jumps (0x540000xx with distance 0) go to morestack."""
    grow = len(check) + len(body)
    words = [
        word | (grow - index) << 5 if word >> 24 == 0x54 and not word >> 5 & 0x7FFFF else word
        for index, word in enumerate(check)
    ]
    back = 0x14000000 | -(grow + len(ARM_GROW)) & 0x3FFFFFF
    return arm(*words, *body, *ARM_GROW, back, 0, 0)


B_LS, B_LO = 0x54000009, 0x54000003
SUB_X17, CMP_X17 = 0xD10203F1, 0xEB10023F  # sub x17,sp,#0x80; cmp x17,x16
MOV_X27, SUBS_X17 = 0xD28420_1B, 0xEB3B63F1  # mov x27,#0x2100; subs x17,sp,x27


@pytest.mark.parametrize(
    "check",
    [
        (LDR_G, CMP_SP, B_LS),
        (LDR_G, SUB_X17, CMP_X17, B_LS),
        (LDR_G, MOV_X27, SUBS_X17, B_LO, CMP_X17, B_LS),
    ],
)
def test_arm64_has_its_own_checks(check):
    code = arm_function(*check)
    found = find(code, "aarch64")
    assert isinstance(found, Sites), found
    assert text_at(code, found.entry_offset, "aarch64").startswith("b.ls ")
    assert (found.entry_is_emulated, found.entry_sp_adjust_bytes) == (True, 0)
    assert [text_at(code, offset, "aarch64") for offset in found.return_offsets] == ["ret"]


def test_arm64_refuses_what_it_must():
    check = (LDR_G, CMP_SP, B_LS)
    refused(arm(NOP, NOP, RET), "no stack check", "aarch64")
    refused(arm_function(*check), "not known on this machine", "aarch64", register_abi=False)
    refused(arm_function(*check, body=(0x14100000, RET)), "jumps out", "aarch64")
    refused(arm_function(*check, body=(0xD61F0360, RET)), "through a register", "aarch64")  # br x27
    switch = (0xF865783B, 0xD61F0360)  # ldr x27,[x1,x5,lsl #3]; br x27
    assert isinstance(find(arm_function(*check, body=(*switch, RET)), "aarch64"), Sites)


@given(st.binary(max_size=80), st.sampled_from(list(gofiles.MACHINES)), st.booleans())
def test_any_bytes_give_sites_that_are_instructions_or_a_reason(code, machine, register_abi):
    check_result(code, machine, register_abi)


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_one_changed_byte_never_gives_a_site_inside_an_instruction(at, value):
    check_result(SMALL[:at] + bytes([value]) + SMALL[at + 1 :], "x86_64", True)


def check_result(code: bytes, machine: str, register_abi: bool) -> None:
    found = find(code, machine, register_abi=register_abi)
    if isinstance(found, Refusal):
        assert found.reason
        return
    texts = {step.at: step.text for step in disassemble(code, ADDRESS, machine)}
    assert found.entry_offset > 0
    assert found.entry_offset in texts
    assert found.entry_offset not in found.return_offsets
    assert all("ret" in texts[offset] for offset in found.return_offsets)
