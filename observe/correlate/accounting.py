# SPDX-License-Identifier: Apache-2.0
"""Every nanosecond and every event of an operation belongs to exactly one phase: the innermost."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from observe.correlate.rows import Row
from observe.correlate.spans import PhaseSpan, Walk
from observe.model import Kind, Mark
from observe.phases import Phase


class Partition:
    """An operation's time cut at the bounds of its phases, each piece with its innermost phase's number."""

    def __init__(self, phases: Sequence[Phase], spans: Mapping[int, PhaseSpan], bounds: tuple[int, int]) -> None:
        """`spans` by phase number; 0, the operation itself, fills `bounds`.

        Where phases overlap that do not contain each other, the deeper one counts, and of two equally deep
        ones the one that began later.
        """
        self._phases, self._spans = phases, spans
        self._programs = [(number, span) for number, span in spans.items() if span.processes]
        cuts = {*bounds}
        self._intervals = [(number, *piece) for number, span in spans.items() for piece in span.intervals]
        for _, start, end in self._intervals:
            cuts |= {start, end}
        self._cuts = sorted(cut for cut in cuts if bounds[0] <= cut <= bounds[1])
        self._owners = [self._innermost(start) for start in self._cuts[:-1]]

    def _innermost(self, at_ns: int) -> int:
        ranks = [
            (self._phases[number].depth, start, number)
            for number, start, end in self._intervals
            if start <= at_ns < end
        ]
        return max(ranks, default=(0, 0, 0))[2]

    def _rank(self, number: int) -> tuple[int, int, int]:
        return self._phases[number].depth, self._spans[number].start_ns, number

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where phases begin and end, in order of time."""
        return tuple(self._cuts)

    def self_ns(self) -> dict[int, int]:
        """Phase number → time in which it was the innermost; the values sum to the operation's duration."""
        total: dict[int, int] = {}
        for owner, start, end in zip(self._owners, self._cuts, self._cuts[1:], strict=False):
            total[owner] = total.get(owner, 0) + end - start
        return total

    def phase_of(self, row: Row) -> int:
        """The innermost phase of an event: of the program whose process made it, else of its moment."""
        programs = [
            number
            for number, span in self._programs
            if row.pid in span.processes and span.start_ns <= row.time_ns <= span.end_ns
        ]
        at = self.phase_at(row.time_ns)
        if not programs:
            return at
        program = max(programs, key=self._rank)
        return at if self._is_part(at, program) else program

    def _is_part(self, phase: int, program: int) -> bool:
        """Whether a phase is what a program does at times, rather than another program that it waits for."""
        above = [number for number, _ in self._programs if self._lies_in(phase, number)]
        return self._lies_in(phase, program) and max(above, key=self._rank) == program

    def _lies_in(self, phase: int, outer: int) -> bool:
        return phase == outer or self._phases[phase].id.startswith(self._phases[outer].id + ".")

    def phase_at(self, time_ns: int) -> int:
        """The innermost phase at a moment."""
        if not self._owners:
            return 0
        index = bisect_right(self._cuts, time_ns) - 1
        return self._owners[min(max(index, 0), len(self._owners) - 1)]


@dataclass(slots=True)
class Counts:
    """What lies in each phase as its innermost one, by phase number."""

    syscalls: Counter[int] = field(default_factory=Counter)
    file_events: Counter[int] = field(default_factory=Counter)
    entries: Counter[int] = field(default_factory=Counter)
    returns: Counter[int] = field(default_factory=Counter)


def count_events(rows: Sequence[Row], partition: Partition, found: Walk) -> Counts:
    """System calls, file events and probe hits by phase."""
    counts = Counts()
    for phase, row in by_phase(rows, partition, found):
        if row.is_syscall:
            counts.syscalls[phase] += 1
        elif row.kind == Kind.INOTIFY:
            counts.file_events[phase] += 1
        elif row.kind == Kind.FUNCTION_ENTRY:
            counts.entries[phase] += 1
        elif row.kind == Kind.FUNCTION_RETURN:
            counts.returns[phase] += 1
    return counts


def by_phase(rows: Sequence[Row], partition: Partition, found: Walk) -> Iterator[tuple[int, Row]]:
    """Each event with the number of its innermost phase; what a watcher made up is left out."""
    for row in rows:
        if row.kind != Kind.INOTIFY:
            yield partition.phase_of(row), row
        elif not row.marks & Mark.INVENTED:
            yield _phase_of_file_event(row, partition, found), row


def _phase_of_file_event(row: Row, partition: Partition, found: Walk) -> int:
    if row.pid:  # it has its call's time and process
        return partition.phase_of(row)
    # inotify's own time is late: the phase that named the path last before it is the better witness
    named = [phase for time_ns, phase in found.paths.get(row.path, ()) if time_ns <= row.time_ns]
    return named[-1] if named else partition.phase_at(row.time_ns)
