# SPDX-License-Identifier: Apache-2.0
"""Every nanosecond and every event of an operation belongs to exactly one phase: the innermost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

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
        cuts = {*bounds}
        for span in spans.values():
            cuts |= {span.start_ns, span.end_ns}
        self._cuts = sorted(cut for cut in cuts if bounds[0] <= cut <= bounds[1])
        self._owners = [self._innermost(start) for start in self._cuts[:-1]]

    def _innermost(self, at_ns: int) -> int:
        open_phases = [number for number, span in self._spans.items() if span.start_ns <= at_ns < span.end_ns]
        return max(open_phases, key=self._rank, default=0)

    def _rank(self, number: int) -> tuple[int, int, int]:
        return self._phases[number].depth, self._spans[number].start_ns, number

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
            for number, span in self._spans.items()
            if row.pid in span.processes and span.start_ns <= row.time_ns <= span.end_ns
        ]
        if programs:
            return max(programs, key=self._rank)
        return self.phase_at(row.time_ns)

    def phase_at(self, time_ns: int) -> int:
        """The innermost phase at a moment."""
        if not self._owners:
            return 0
        index = bisect_right(self._cuts, time_ns) - 1
        return self._owners[min(max(index, 0), len(self._owners) - 1)]


def count_events(rows: Sequence[Row], partition: Partition, found: Walk) -> tuple[dict[int, int], dict[int, int]]:
    """System calls and file events by phase number."""
    syscalls: dict[int, int] = {}
    file_events: dict[int, int] = {}
    for row in rows:
        if row.is_syscall:
            phase = partition.phase_of(row)
            syscalls[phase] = syscalls.get(phase, 0) + 1
        elif row.kind == Kind.INOTIFY and not row.marks & Mark.INVENTED:
            phase = _phase_of_file_event(row, partition, found)
            file_events[phase] = file_events.get(phase, 0) + 1
    return syscalls, file_events


def _phase_of_file_event(row: Row, partition: Partition, found: Walk) -> int:
    if row.pid:  # it has its call's time and process
        return partition.phase_of(row)
    # inotify's own time is late: the phase that named the path last before it is the better witness
    named = [phase for time_ns, phase in found.paths.get(row.path, ()) if time_ns <= row.time_ns]
    return named[-1] if named else partition.phase_at(row.time_ns)
