# SPDX-License-Identifier: Apache-2.0
"""The rows of a report, apart from how they are written: one run's timeline, and many runs' percentiles.

Durations are nanoseconds, shares lie between 0 and 1. Counts of a row include those of the phases below it,
as its duration does; what the operation has beside its phases is the row "unattributed".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from observe.model import DepartureKind, Evidence, Run

UNATTRIBUTED = "unattributed"

#: How many runs a list of the slowest ones has.
SLOWEST = 5


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """One line of a timeline. A phase that was not seen, but has phases below it that were, has no times."""

    id: str
    depth: int
    duration_ns: int | None
    self_ns: int | None
    share: float | None
    #: (start, length) on the operation's time, as shares of it.
    pieces: tuple[tuple[float, float], ...]
    syscalls: int
    file_events: int
    evidence: Evidence | None  # None: the row is no phase
    at_floor: bool = False

    @property
    def name(self) -> str:
        """The last word of the id."""
        return self.id.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class NotSeen:
    """A documented phase without evidence, and how many phases below it (all of them not seen either)."""

    id: str
    parts: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run: the operation, its phases in the documented order, what is unattributed; and what was not seen."""

    run: Run
    rows: tuple[TimelineRow, ...]
    not_seen: tuple[NotSeen, ...]

    @property
    def timed(self) -> bool:
        """Whether it has times. A run of an imported log has an order only: its rows have pieces, no durations."""
        return self.run.duration_ns > 0

    @property
    def hottest(self) -> TimelineRow | None:
        """The phase with the most time of its own, if any phase has some."""
        phases = [row for row in self.rows if row.evidence is not None and row.depth and row.self_ns]
        return max(phases, key=lambda row: row.self_ns or 0, default=None)


@dataclass(frozen=True, slots=True)
class StatsRow:
    """One phase over many runs: in how many it was seen, and how long it took in those."""

    id: str
    depth: int
    n: int
    p50_ns: float | None
    p90_ns: float | None
    p99_ns: float | None
    max_ns: float | None
    #: Of the time of all runs together; a run without the phase adds nothing.
    share: float | None

    @property
    def name(self) -> str:
        """The last word of the id."""
        return self.id.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class SlowRun:
    """One of the slowest runs, and the row (a phase, or unattributed) whose own time is furthest above its median."""

    run: Run
    phase: str
    excess_ns: float


@dataclass(frozen=True, slots=True)
class DepartureCount:
    """A departure from the documented order, and in how many runs."""

    kind: DepartureKind
    phase: str
    text: str
    runs: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Many runs of one operation. Percentiles are of the runs that went well (of all, if none did) and have times."""

    operation: str
    runs: tuple[Run, ...]
    measured: tuple[Run, ...]
    rows: tuple[StatsRow, ...]
    not_seen: tuple[NotSeen, ...]
    #: How many runs ended how, the most frequent first; and how many of all have no times, if some have none.
    outcomes: Mapping[str, int]
    slowest: tuple[SlowRun, ...]
    failures: tuple[Run, ...]
    departures: tuple[DepartureCount, ...]


def _outcomes(runs: Sequence[Run]) -> Mapping[str, int]:
    found = dict(Counter(run.outcome for run in runs).most_common())
    untimed = sum(not run.duration_ns for run in runs)
    return {**found, "without times": untimed} if untimed else found


def timeline(run: Run) -> Timeline:
    """The rows of one run."""
    timed = run.duration_ns > 0
    whole_ns = run.duration_ns or (run.phases[0].duration_ns if run.phases else 0) or 0
    seen = {span.id for span in run.phases if span.start_ns is not None}
    shown, not_seen = _split([span.id for span in run.phases], seen)
    rows = []
    covered: list[tuple[float, float]] = []
    for index, span in enumerate(run.phases):
        if span.id not in shown:
            continue
        pieces: tuple[tuple[float, float], ...] = ()
        if span.start_ns is not None and span.duration_ns is not None:
            parts = span.pieces or ((span.start_ns, span.duration_ns),)
            pieces = tuple(
                (_share(start_ns - run.start_ns, whole_ns), _share(duration_ns, whole_ns))
                for start_ns, duration_ns in parts
            )
            if index:
                covered.extend(pieces)
        below = [other for other in run.phases if _belongs(other.id, span.id)]
        rows.append(
            TimelineRow(
                id=span.id,
                depth=span.id.count("."),
                duration_ns=span.duration_ns if timed else None,
                self_ns=span.self_ns if timed else None,
                share=_share(span.duration_ns, whole_ns) if timed and span.duration_ns is not None else None,
                pieces=pieces,
                syscalls=sum(other.syscalls for other in below),
                file_events=sum(other.file_events for other in below),
                evidence=span.evidence,
                at_floor=span.at_floor,
            )
        )
    rows.append(
        TimelineRow(
            id=UNATTRIBUTED,
            depth=1,
            duration_ns=run.unattributed_ns if timed else None,
            self_ns=run.unattributed_ns if timed else None,
            share=_share(run.unattributed_ns, whole_ns) if timed else None,
            pieces=_gaps(covered) if run.unattributed_ns else (),
            syscalls=run.phases[0].syscalls if run.phases else 0,
            file_events=run.phases[0].file_events if run.phases else 0,
            evidence=None,
        )
    )
    return Timeline(run, tuple(rows), not_seen)


def summarise(runs: Iterable[Run]) -> tuple[Summary, ...]:
    """One summary an operation, in the order in which the operations first appear."""
    by_operation: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_operation[run.operation].append(run)
    return tuple(_summary(operation, tuple(members)) for operation, members in by_operation.items())


def _summary(operation: str, runs: tuple[Run, ...]) -> Summary:
    done = tuple(run for run in runs if run.outcome == "ok") or runs
    measured = tuple(run for run in done if run.duration_ns) or done
    timed = any(run.duration_ns for run in measured)  # an imported log has an order, no times
    durations_ns: defaultdict[str, list[int]] = defaultdict(list)
    for run in measured:
        for phase, duration_ns in durations_of(run).items():
            durations_ns[phase].append(duration_ns)
        durations_ns[UNATTRIBUTED].append(run.unattributed_ns)
    total_ns = sum(run.duration_ns for run in measured)
    order = list(dict.fromkeys(span.id for run in measured for span in run.phases))
    shown, _ = _split(order, {phase for phase in order if phase in durations_ns})
    rows = [_stats(phase, durations_ns.get(phase, ()), total_ns, timed=timed) for phase in order if phase in shown]
    rows.append(_stats(UNATTRIBUTED, durations_ns[UNATTRIBUTED], total_ns, timed=timed))
    _, not_seen = _split(order, {phase for run in runs for phase in durations_of(run)})
    return Summary(
        operation=operation,
        runs=runs,
        measured=measured,
        rows=tuple(rows),
        not_seen=not_seen,
        outcomes=_outcomes(runs),
        slowest=_slowest(measured) if timed else (),
        failures=tuple(run for run in runs if run.outcome != "ok"),
        departures=_departures(runs),
    )


def durations_of(run: Run) -> dict[str, int]:
    """Duration of each phase that was seen; a phase that was repeated counts with all of its spans."""
    durations_ns: Counter[str] = Counter()
    for span in run.phases:
        if span.duration_ns is not None:
            durations_ns[span.id] += span.duration_ns
    return dict(durations_ns)


def _own_times(run: Run) -> dict[str, int]:
    """Time of its own of each phase that was seen; the operation's is the unattributed time."""
    own_ns: Counter[str] = Counter({UNATTRIBUTED: run.unattributed_ns})
    for span in run.phases[1:]:
        own_ns[span.id] += span.self_ns or 0
    return dict(own_ns)


def _stats(phase: str, durations_ns: Sequence[int], total_ns: int, *, timed: bool) -> StatsRow:
    depth = phase.count(".") or int(phase == UNATTRIBUTED)
    if not (durations_ns and timed):
        return StatsRow(phase, depth, len(durations_ns), None, None, None, None, None)
    p50, p90, p99, highest = (float(value) for value in np.percentile(durations_ns, (50, 90, 99, 100)))
    return StatsRow(phase, depth, len(durations_ns), p50, p90, p99, highest, _share(sum(durations_ns), total_ns))


def _slowest(runs: Sequence[Run]) -> tuple[SlowRun, ...]:
    own_ns = [_own_times(run) for run in runs]
    names = list(dict.fromkeys(name for times in own_ns for name in times))
    median_ns = {name: float(np.median([times.get(name, 0) for times in own_ns])) for name in names}
    by_duration = sorted(range(len(runs)), key=lambda index: -runs[index].duration_ns)
    slowest = []
    for index in by_duration[:SLOWEST]:
        phase = max(names, key=lambda name: own_ns[index].get(name, 0) - median_ns[name])
        slowest.append(SlowRun(runs[index], phase, own_ns[index].get(phase, 0) - median_ns[phase]))
    return tuple(slowest)


def _departures(runs: Sequence[Run]) -> tuple[DepartureCount, ...]:
    """Most frequent first. A run counts once for a kind and phase; the first run's words stand for all."""
    words: dict[tuple[DepartureKind, str], str] = {}
    counts: Counter[tuple[DepartureKind, str]] = Counter()
    for run in runs:
        found = {(departure.kind, departure.phase): departure.text for departure in run.departures}
        words = found | words
        counts.update(found.keys())
    return tuple(DepartureCount(kind, phase, words[kind, phase], n) for (kind, phase), n in counts.most_common())


def _split(order: Sequence[str], seen: set[str]) -> tuple[set[str], tuple[NotSeen, ...]]:
    """Which phases get a row (seen, or above one that was), and the others, each only by its topmost."""
    shown = {phase for phase in order if any(_belongs(other, phase) for other in seen)}
    hidden = [phase for phase in order if phase not in shown]
    return shown, tuple(
        NotSeen(phase, sum(_belongs(other, phase) for other in hidden) - 1)
        for phase in hidden
        if phase.rpartition(".")[0] not in hidden
    )


def _belongs(phase: str, to: str) -> bool:
    """Whether it is that phase or lies below it."""
    return phase == to or phase.startswith(to + ".")


def _share(part_ns: int, whole_ns: int) -> float:
    return part_ns / whole_ns if whole_ns else 0.0


def _gaps(covered: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """What the pieces leave free between 0 and 1."""
    gaps = []
    free_from = 0.0
    for start, length in sorted(covered):
        if start > free_from:
            gaps.append((free_from, start - free_from))
        free_from = max(free_from, start + length)
    if free_from < 1:
        gaps.append((free_from, 1 - free_from))
    return tuple(gaps)
