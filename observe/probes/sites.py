# SPDX-License-Identifier: Apache-2.0
"""Where to probe a Go function: one place that is passed once on entry, and every return.

A uretprobe would crash a Go program (the runtime moves stacks), so each RET gets a probe of its own. The first
byte is no entry: when the stack has to grow, Go runs the beginning of the function again. The entry is the last
jump of the check of the stack, which the kernel emulates instead of single-stepping (several times cheaper); when
the stack does grow, it is passed twice by the same frame, so a second entry of one frame is to be dropped.

What is not understood is refused.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from observe.errors import ObserveError
from observe.probes.instructions import MACHINES, Instruction, Machine, disassemble

#: The longest known check has ten instructions.
_LONGEST_CHECK = 12
#: A switch loads its table this close to its jump.
_SWITCH_REACH = 8


@dataclass(frozen=True, slots=True)
class Sites:
    """Offsets from the function's start, in bytes.

    At the entry site SP plus `entry_sp_adjust_bytes` is what SP was on entry, which is what it is at every return;
    arguments are where the caller left them, and a register holds g (R14, X28; RCX below Go 1.17).
    `entry_is_emulated`: the kernel does not single-step it.
    """

    entry_offset: int
    entry_is_emulated: bool
    return_offsets: tuple[int, ...]
    entry_sp_adjust_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The function cannot be probed safely; why, as one phrase."""

    reason: str


class _RefusedError(ObserveError):
    """A reason on its way to `find_sites`."""


def find_sites(code: bytes, address: int, machine: str, *, register_abi: bool) -> Sites | Refusal:
    """Probe sites of a function: `code` is all of it, padding included, linked to run at `address`.

    `machine` is "x86_64" or "aarch64". Pure; time is linear in the size of the code.
    """
    try:
        return _find_sites(
            list(disassemble(code, address, machine)), address, len(code), MACHINES[machine], register_abi
        )
    except _RefusedError as refused:
        return Refusal(str(refused))


def _find_sites(
    instructions: Sequence[Instruction], address: int, size_bytes: int, known: Machine, register_abi: bool
) -> Sites:
    if not instructions or instructions[-1].at + instructions[-1].size_bytes != size_bytes:
        raise _RefusedError("its instructions do not end where it ends")
    targets = _jump_targets(instructions, address, size_bytes, known)
    returns = tuple(step.at for step in instructions if known.ret.fullmatch(step.text))
    if not returns:
        raise _RefusedError("it has no return")
    entry = _after_check(instructions, targets, known, register_abi)
    sp_adjust_bytes = 0
    if entry is None:
        entry, sp_adjust_bytes = _second(instructions, targets, known, register_abi)
    return Sites(entry.at, bool(known.emulated.fullmatch(entry.text)), returns, sp_adjust_bytes)


def _jump_targets(instructions: Sequence[Instruction], address: int, size_bytes: int, known: Machine) -> dict[int, int]:
    """Offset of each direct jump → offset of its target. Refuses a jump that leaves the function or an instruction."""
    starts = {step.at for step in instructions}
    targets = {}
    for index, step in enumerate(instructions):
        jump = known.jump.fullmatch(step.text)
        if jump is None:
            call = known.call.fullmatch(step.text)
            if call and 0 < int(call["target"], 16) - address < size_bytes:
                raise _RefusedError(f"it calls its own middle at +{step.at:#x}")
        elif jump["target"] is None:
            _check_switch(instructions, index, known)
        else:
            target = int(jump["target"], 16) - address
            if not 0 <= target < size_bytes:
                raise _RefusedError(f"it jumps out at +{step.at:#x}")
            if target not in starts:
                raise _RefusedError(f"it jumps into the middle of an instruction at +{step.at:#x}")
            targets[step.at] = target
    return targets


def _check_switch(instructions: Sequence[Instruction], index: int, known: Machine) -> None:
    """An indirect jump is let pass if a table of the compiler's was put into its register just before."""
    step = instructions[index]
    switch = known.switch.fullmatch(step.text)
    if switch:
        register = switch["table"]
        written = re.compile(rf"\w+ {register}, .*")
        for before in reversed(instructions[max(index - _SWITCH_REACH, 0) : index]):
            if written.fullmatch(before.text):
                if re.fullmatch(known.switch_table.format(register), before.text):
                    return
                break
    raise _RefusedError(f"it jumps through a register at +{step.at:#x}")


def _after_check(
    instructions: Sequence[Instruction], targets: dict[int, int], known: Machine, register_abi: bool
) -> Instruction | None:
    """The last jump of the check of the stack, with SP as on entry. None if there is no check that is known."""
    check = known.checks.get(register_abi)
    if check is None:
        raise _RefusedError("this version of Go is not known on this machine")
    texts: list[str] = []
    for step in instructions[:_LONGEST_CHECK]:
        if known.nop.fullmatch(step.text):
            continue
        texts.append(step.text)
        if step.at in targets and check.fullmatch("; ".join(texts)):
            break
    else:
        return None
    again = _morestack_jump(instructions, targets, targets[step.at], known)
    for source, target in targets.items():
        if target <= step.at and source != again:
            raise _RefusedError(f"its beginning is jumped to at +{source:#x}")
    return step


def _morestack_jump(instructions: Sequence[Instruction], targets: dict[int, int], start: int, known: Machine) -> int:
    """Offset of the jump back to the first instruction, after the call of morestack. Refuses anything else there."""
    calls = 0
    for step in instructions[bisect_left(instructions, start, key=lambda step: step.at) :]:
        if step.at in targets:
            if targets[step.at] == 0 and calls == 1:
                return step.at
            break
        if known.call.fullmatch(step.text):
            calls += 1
        elif not known.spill.fullmatch(step.text):
            break
    raise _RefusedError(f"its stack check does not lead to morestack and back at +{start:#x}")


def _second(
    instructions: Sequence[Instruction], targets: dict[int, int], known: Machine, register_abi: bool
) -> tuple[Instruction, int]:
    """The second instruction of a function without a check, and by how much the first lowers SP."""
    harmless = known.harmless.get(register_abi)
    if harmless is None or len(instructions) < 2:
        raise _RefusedError("it has no stack check")
    first, second = instructions[:2]
    lowers = known.lowers_sp.fullmatch(first.text)
    if not lowers and not harmless.fullmatch(first.text):
        raise _RefusedError(f"it has no stack check and begins with {first.text!r}")
    if known.ret.fullmatch(second.text):
        raise _RefusedError("it returns at once")
    if any(target <= second.at for target in targets.values()):
        raise _RefusedError("it has no stack check and its beginning is jumped to")
    if not lowers:
        return second, 0
    return second, int(lowers["bytes"], 0) if lowers["bytes"] else 8
