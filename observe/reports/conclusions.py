# SPDX-License-Identifier: Apache-2.0
"""What to say first about one run: in which phases the time went, and in which system calls."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nlargest

from observe.model import SYSCALLS, Event, Run
from observe.reports.rows import Timeline, TimelineRow

#: How many of each are named.
PHASES = 6
CALLS = 8


@dataclass(frozen=True, slots=True)
class OwnTime:
    """A row, and how much of the operation's time was its own (0 to 1): no phase below it was active then."""

    row: TimelineRow
    self_ns: int
    share: float


@dataclass(frozen=True, slots=True)
class WhereTheTimeWent:
    """The rows with the largest own times; all own times sum to the operation, and these and the rest are all."""

    largest: tuple[OwnTime, ...]
    rest: int
    rest_ns: int
    rest_share: float


def where_the_time_went(line: Timeline) -> WhereTheTimeWent | None:
    """None for a log without times."""
    whole_ns = line.run.duration_ns
    if not line.timed:
        return None
    # The operation's own time is the row "unattributed".
    rows = [OwnTime(row, row.self_ns, row.self_ns / whole_ns) for row in line.rows if row.depth and row.self_ns]
    rows.sort(key=lambda own: -own.self_ns)
    largest, others = rows[:PHASES], rows[PHASES:]
    rest_ns = sum(own.self_ns for own in others)
    return WhereTheTimeWent(tuple(largest), len(others), rest_ns, rest_ns / whole_ns)


def longest_calls(run: Run) -> tuple[tuple[str, Event], ...]:
    """(phase, event) of the system calls that took longest; empty if the run came without its events."""
    calls = ((phase, event) for phase, event in run.events if event.kind in SYSCALLS and event.duration_ns)
    return tuple(nlargest(CALLS, calls, key=lambda call: call[1].duration_ns))
