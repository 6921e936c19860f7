# SPDX-License-Identifier: Apache-2.0
"""Every nanosecond and every event of an operation belongs to exactly one phase: the innermost."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from observe.correlate.rows import columns_of, made_by
from observe.correlate.spans import PhaseSpan, Walk
from observe.model import EventBatch, Kind, Mark
from observe.phases import Phase

#: In place of a phase: what a watcher made up belongs to none.
NO_PHASE = -1
_INVENTED = int(Mark.INVENTED)


class Partition:
    """An operation's time cut at the bounds of its phases, each piece with its innermost phase's number."""

    def __init__(self, phases: Sequence[Phase], spans: Mapping[int, PhaseSpan], bounds: tuple[int, int]) -> None:
        """`spans` by phase number; 0, the operation itself, fills `bounds`.

        Where phases overlap that do not contain each other, the deeper one counts, and of two equally deep
        ones the one that began later.
        """
        self.bounds = bounds
        depths = [phase.depth for phase in phases]
        # One after the other: what is laid later covers what lies there.
        pieces = sorted(
            (depths[number], start, number, end) for number, span in spans.items() for start, end in span.intervals
        )
        cuts = {*bounds}
        for _, start, _, end in pieces:
            cuts |= {start, end}
        self._cuts = sorted(cut for cut in cuts if bounds[0] <= cut <= bounds[1])
        self._owners = [0] * (len(self._cuts) - 1)
        for _, start, number, end in pieces:
            first, last = bisect_left(self._cuts, start), min(bisect_left(self._cuts, end), len(self._owners))
            self._owners[first:last] = [number] * (last - first)
        programs = [(number, span) for number, span in spans.items() if span.processes]
        #: The innermost one last.
        self._programs = sorted(programs, key=lambda program: (depths[program[0]], program[1].start_ns, program[0]))
        #: Of each phase: the program that it is, or is a part of.
        self._program_of = np.full(len(phases), NO_PHASE, dtype=np.int64)
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
        if not self._owners:
            at_time = np.zeros(len(events), dtype=np.int64)
        else:
            places = np.searchsorted(np.array(self._cuts[1:-1], dtype=np.int64), times_ns, side="right")
            at_time = np.array(self._owners, dtype=np.int64)[places]
        phases = at_time.copy()
        for number, span in self._programs:
            own = np.flatnonzero(
                made_by(events, span.processes) & (times_ns >= span.start_ns) & (times_ns <= span.end_ns)
            )
            # What a program does at times is a phase of its own; another program that it waits for is not.
            phases[own] = np.where(self._program_of[at_time[own]] == number, at_time[own], number)
        return phases

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

    syscalls: Counter[int] = field(default_factory=Counter)
    file_events: Counter[int] = field(default_factory=Counter)
    entries: Counter[int] = field(default_factory=Counter)
    returns: Counter[int] = field(default_factory=Counter)


def count_events(events: EventBatch, phases: npt.NDArray[np.int64]) -> Counts:
    """System calls, file events and probe hits by phase; `phases` as `innermost` gives them."""
    kinds = events.rows["kind"]

    def counted(which: npt.NDArray[np.bool_]) -> Counter[int]:
        numbers = np.bincount(phases[which])
        return Counter({phase: count for phase, count in enumerate(numbers.tolist()) if count})

    return Counts(
        counted(kinds < Kind.SCHED_PROCESS_FORK),
        counted((kinds == Kind.INOTIFY) & (phases != NO_PHASE)),
        counted(kinds == Kind.FUNCTION_ENTRY),
        counted(kinds == Kind.FUNCTION_RETURN),
    )


def sum_calls(events: EventBatch, phases: npt.NDArray[np.int64]) -> tuple[tuple[int, Kind, int, int], ...]:
    """(phase, system call, count, ns from entry to return in all) of each pair that occurs; `phases` as `innermost`."""
    which = np.flatnonzero(events.rows["kind"] < Kind.SCHED_PROCESS_FORK)
    rows = events.rows[which]
    keys, place = np.unique(phases[which] << 16 | rows["kind"], return_inverse=True)
    counts = np.bincount(place, minlength=len(keys)).tolist()
    # Sums stay exact: below 2**53 ns, which is a hundred days.
    lasted_ns = np.bincount(place, weights=rows["duration_ns"], minlength=len(keys)).tolist()
    return tuple(
        (key >> 16, Kind(key & 0xFFFF), count, int(ns))
        for key, count, ns in zip(keys.tolist(), counts, lasted_ns, strict=True)
    )


def innermost(events: EventBatch, partition: Partition, found: Walk) -> npt.NDArray[np.int64]:
    """The number of each event's innermost phase; NO_PHASE for what a watcher made up."""
    rows = events.rows
    phases = partition.phases_of(events)
    told = rows["kind"] == Kind.INOTIFY
    if told.any():
        # One that has its call's process has its time too.
        late = np.flatnonzero(told & (rows["pid"] == 0))
        for place, (path, told_ns) in zip(late.tolist(), columns_of(events, late, "path", "time_ns"), strict=True):
            # inotify's own time is late: the phase that named the path last before it is the better witness
            before = [phase for time_ns, phase in found.paths.get(path, ()) if time_ns <= told_ns]
            phases[place] = before[-1] if before else partition.phase_at(told_ns)
        phases[told & (rows["marks"] & _INVENTED != 0)] = NO_PHASE
    return phases
