# SPDX-License-Identifier: Apache-2.0
"""Every nanosecond and every event of an operation belongs to exactly one phase: the innermost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from observe.correlate.rows import columns_of, made_by
from observe.correlate.spans import PhaseSpan, Walk
from observe.model import SYSCALLS, EventBatch, Kind, Mark
from observe.phases import Phase

#: In place of a phase: what a watcher made up belongs to none.
NO_PHASE = -1
_INVENTED = int(Mark.INVENTED)
_SYSCALLS = {int(kind): kind for kind in SYSCALLS}


class Partition:
    """An operation's time cut at the bounds of its phases, each piece with its innermost phase's number."""

    def __init__(self, phases: Sequence[Phase], spans: Mapping[int, PhaseSpan], bounds: tuple[int, int]) -> None:
        """`spans` by phase number; 0, the operation itself, fills `bounds`.

        Where phases overlap that do not contain each other, the deeper one counts, and of two equally deep
        ones the one that began later.
        """
        self.bounds = bounds
        depths = {number: phases[number].depth for number in spans}
        # One after the other: what is laid later covers what lies there.
        pieces = sorted(
            (depths[number], start, number, end) for number, span in spans.items() for start, end in span.intervals
        )
        begin, finish = bounds
        cuts = {*bounds, *(start for _, start, _, _ in pieces), *(end for _, _, _, end in pieces)}
        self._cuts = sorted(cut for cut in cuts if begin <= cut <= finish)
        self._owners = [0] * (len(self._cuts) - 1)
        place = {cut: index for index, cut in enumerate(self._cuts)}
        for _, start, number, end in pieces:
            first, last = place[min(max(start, begin), finish)], place[max(min(end, finish), begin)]
            self._owners[first:last] = [number] * (last - first)
        programs = [(number, span) for number, span in spans.items() if span.processes]
        #: The innermost one last.
        self._programs = sorted(programs, key=lambda program: (depths[program[0]], program[1].start_ns, program[0]))
        #: Of each phase: the program that it is, or is a part of.
        self._program_of = np.full(len(phases), NO_PHASE)
        parts = _parts(tuple(phase.id for phase in phases)) if self._programs else ()
        for number, _ in self._programs:
            self._program_of[parts[number]] = number

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where phases begin and end, in order of time."""
        return tuple(self._cuts)

    def self_ns(self) -> dict[int, int]:
        """Phase number → time in which it was the innermost; the values sum to the operation's duration."""
        total: dict[int, int] = {}
        for owner, (start, end) in zip(self._owners, pairwise(self._cuts), strict=True):
            total[owner] = total.get(owner, 0) + end - start
        return total

    def phases_of(self, events: EventBatch) -> npt.NDArray[np.int64]:
        """The innermost phase of each event: of the program whose process made it, else of its moment."""
        times_ns = events.rows["time_ns"].astype(np.int64)
        if self._owners:
            at_time = np.array(self._owners)[np.searchsorted(self._cuts[1:-1], times_ns, side="right")]
        else:
            at_time = np.zeros(len(events), dtype=np.int64)
        if not self._programs:
            return at_time
        program = np.full(len(events), NO_PHASE)
        for number, span in self._programs:  # the innermost one counts
            met = made_by(events, span.processes) & (span.start_ns <= times_ns) & (times_ns <= span.end_ns)
            program[met] = number
        # What a program does at times is a phase of its own; another program that it waits for is not.
        return np.where((program != NO_PHASE) & (self._program_of[at_time] != program), program, at_time)

    def phase_at(self, time_ns: int) -> int:
        """The innermost phase at a moment."""
        return self._owners[bisect_right(self._cuts[1:-1], time_ns)] if self._owners else 0


@lru_cache(maxsize=16)
def _parts(phases: tuple[str, ...]) -> tuple[npt.NDArray[np.intp], ...]:
    """Of each phase, by id: the numbers of those that lie in it, its own among them."""
    return tuple(
        np.array([number for number, phase in enumerate(phases) if f"{phase}.".startswith(f"{outer}.")], dtype=np.intp)
        for outer in phases
    )


@dataclass(slots=True)
class Counts:
    """What lies in each phase as its innermost one, by phase number (and kind of call)."""

    syscalls: dict[int, int] = field(default_factory=dict)
    file_events: dict[int, int] = field(default_factory=dict)
    entries: dict[int, int] = field(default_factory=dict)
    returns: dict[int, int] = field(default_factory=dict)
    #: (phase, system call, count, ns from entry to return in all) of each pair that occurs, in order.
    calls: list[tuple[int, Kind, int, int]] = field(default_factory=list)


def count_events(events: EventBatch, phases: npt.NDArray[np.int64]) -> Counts:
    """System calls, file events and probe hits by phase; `phases` as `innermost` gives them."""
    counts = Counts()
    if not len(events):
        return counts
    keys = phases << 16 | events.rows["kind"]
    order = np.argsort(keys)
    keys = keys[order]
    firsts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    lasted_ns = np.add.reduceat(events.rows["duration_ns"][order], firsts).tolist()
    sizes = (np.append(firsts[1:], len(keys)) - firsts).tolist()
    by_kind: dict[int, dict[int, int]] = {
        Kind.INOTIFY: counts.file_events,
        Kind.FUNCTION_ENTRY: counts.entries,
        Kind.FUNCTION_RETURN: counts.returns,
    }
    for key, size, ns in zip(keys[firsts].tolist(), sizes, lasted_ns, strict=True):
        phase, number = key >> 16, key & 0xFFFF
        kind = _SYSCALLS.get(number)
        if kind is not None:
            counts.syscalls[phase] = counts.syscalls.get(phase, 0) + size
            counts.calls.append((phase, kind, size, ns))
        elif number in by_kind and phase != NO_PHASE:
            by_kind[number][phase] = size
    return counts


def innermost(events: EventBatch, partition: Partition, found: Walk) -> npt.NDArray[np.int64]:
    """The number of each event's innermost phase; NO_PHASE for what a watcher made up."""
    phases = partition.phases_of(events)
    told = np.flatnonzero(events.rows["kind"] == Kind.INOTIFY)
    own = phases[told].tolist()
    for at, (pid, path, told_ns, marks) in enumerate(columns_of(events, told, "pid", "path", "time_ns", "marks")):
        if marks & _INVENTED:
            own[at] = NO_PHASE
        elif not pid:  # one that has its call's process has its time too
            # inotify's own time is late: the phase that named the path last before it is the better witness
            before = [phase for time_ns, phase in found.paths.get(path, ()) if time_ns <= told_ns]
            own[at] = before[-1] if before else own[at]
    phases[told] = own
    return phases
