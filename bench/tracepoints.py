# SPDX-License-Identifier: Apache-2.0
"""What attaching costs: every system call of the host, and whoever attaches and detaches.

Arms, interleaved: nothing attached; observe's programs; and empty programs, attached in the three ways that there are:
raw tracepoints of every entry and return, perf tracepoints of the same two, and perf tracepoints of the entry and the
return of each call that observe looks at. The timed process is not followed, so this is what everybody else on the
machine pays, in processor time. Run it as root with `python bench/tracepoints.py [runs]`.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from observe.model import SYSCALLS
from observe.probes import bpf
from observe.probes.attach import build_event_probes, tracefs
from observe.probes.events import numbered_calls

CALLS = 200_000
#: r0 = 0; exit
EMPTY_PROGRAM = bytes.fromhex("b7000000000000009500000000000000")
#: Calls whose tracepoint has the name of the kernel's function instead.
OTHER_NAMES = {"umount2": "umount"}
#: Name of a figure -> its value in each run.
Figures = dict[str, list[float]]


def loops() -> dict[str, Callable[[], None]]:
    """Tight loops of CALLS calls: one that does nothing, and one that observe looks at in dockerd only."""
    zero = os.open("/dev/zero", os.O_RDONLY)

    def getppid() -> None:
        for call in repeat(os.getppid, CALLS):
            call()

    def read() -> None:
        for call in repeat(os.read, CALLS):
            call(zero, 1)

    return {"getppid": getppid, "read": read}


@dataclass(frozen=True)
class Arm:
    """Something to attach and detach."""

    title: str
    attach: Callable[[], None]
    detach: Callable[[], None]


def arms() -> list[Arm]:
    """What is compared; the first is the base."""
    probes = build_event_probes()
    return [
        Arm("nothing", lambda: None, lambda: None),
        Arm("observe", probes.attach, probes.detach),
        _empty("raw tracepoints", bpf.PROG_TYPE_RAW_TRACEPOINT, bpf.raw_tracepoint_open, ["sys_enter", "sys_exit"]),
        _empty_perf("raw_syscalls", ["sys_enter", "sys_exit"]),
        _empty_perf("syscalls", [f"sys_{way}_{name}" for name in _names() for way in ("enter", "exit")]),
    ]


def _names() -> list[str]:
    labels = {call.kind.label for call in numbered_calls().values() if call.kind in SYSCALLS}
    return sorted(OTHER_NAMES.get(label, label) for label in labels)


def _empty_perf(folder: str, names: list[str]) -> Arm:
    paths = [tracefs() / "events" / folder / name / "id" for name in names]
    ids = [int(path.read_text(encoding="ascii")) for path in paths if path.is_file()]
    return _empty(f"perf tracepoints of {folder}", bpf.PROG_TYPE_TRACEPOINT, bpf.perf_tracepoint_open, ids)


def _empty(title: str, kind: int, opening: Callable[[Any, int], int], tracepoints: Sequence[object]) -> Arm:
    """An empty program at each of these tracepoints."""
    program = bpf.program_load(kind, "empty", EMPTY_PROGRAM)
    attached = ExitStack()

    def attach() -> None:
        for tracepoint in tracepoints:
            attached.callback(os.close, opening(tracepoint, program))

    return Arm(f"empty, {len(tracepoints)} {title}", attach, attached.close)


def measure(runs: int) -> dict[str, Figures]:
    """Figures of each arm by its title."""
    compared, timed = arms(), loops()
    figures: dict[str, Figures] = {arm.title: {} for arm in compared}
    for _ in range(runs):
        for arm in compared:
            own = figures[arm.title]
            own.setdefault("attach, ms", []).append(_seconds(arm.attach, time.perf_counter) * 1e3)
            for name, loop in timed.items():
                own.setdefault(f"{name}, ns a call", []).append(_seconds(loop, time.thread_time) / CALLS * 1e9)
            own.setdefault("detach, ms", []).append(_seconds(arm.detach, time.perf_counter) * 1e3)
    return figures


def table(figures: dict[str, Figures]) -> str:
    """Markdown; `added` is the median of the differences from the base, run by run."""
    lines = ["| attached | figure | min | median | added |", "|---|---|---:|---:|---:|"]
    base = next(iter(figures.values()))
    for title, own in figures.items():
        for name, values in own.items():
            a_call = name.endswith("a call")
            if own is base and not a_call:
                continue
            added = statistics.median(value - without for value, without in zip(values, base[name], strict=True))
            told = f"{added:+.0f}" if a_call and own is not base else ""
            lines.append(f"| {title} | {name} | {min(values):.1f} | {statistics.median(values):.1f} | {told} |")
    return "\n".join(lines)


def _seconds(work: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def main() -> None:
    """Print a table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    figures = measure(runs)
    machine = f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}"
    print(f"n = {runs}, {CALLS:,} calls each, {machine}, Python {platform.python_version()}\n")
    print(table(figures))


if __name__ == "__main__":
    main()
