# SPDX-License-Identifier: Apache-2.0
"""The rows of `report --why`, apart from how they are written: the largest causes, and the critical path in short.

Durations are nanoseconds, shares lie between 0 and 1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from observe.model import Cause, PathStep, Remedy, Run, Time

#: How many causes of an operation are told, and how many pieces of each.
LARGEST = 5
EVIDENCE = 3
#: A stay in one program that is shorter than this share of the operation is told with the one before.
_SHORT = 0.01


@dataclass(frozen=True, slots=True)
class CauseRow:
    """One cause, its share of the operation, and its largest pieces."""

    cause: Cause
    share: float
    evidence: tuple[PathStep, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A stretch of the critical path that lies in one program; `phase`: in which most of it lies."""

    start_ns: int  # from the beginning of the operation
    duration_ns: int
    program: str
    phase: str
    time: Time


@dataclass(frozen=True, slots=True)
class WhyRun:
    """One operation. `others`: how many causes are not listed, and `others_ns`: what they sum to."""

    run: Run
    time: Time
    causes: tuple[CauseRow, ...]
    others: int
    others_ns: int
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class CauseStats:
    """One cause in many operations: in how many, and how long; 0 where it did not occur."""

    id: str
    text: str
    remedy: Remedy | None
    n: int
    p50_ns: float
    p90_ns: float
    share: float


@dataclass(frozen=True, slots=True)
class WhyMany:
    """Many operations of one kind."""

    operation: str
    runs: int
    #: Of all of them together.
    time: Time
    causes: tuple[CauseStats, ...]

    @property
    def mean(self) -> Time:
        """Of one run."""
        blocked = {reason: duration_ns // self.runs for reason, duration_ns in self.time.blocked_ns.items()}
        return Time(self.time.cpu_ns // self.runs, self.time.runqueue_ns // self.runs, blocked)

    @property
    def mean_ns(self) -> int:
        """How long one run took."""
        mean = self.mean
        return mean.cpu_ns + mean.runqueue_ns + sum(mean.blocked_ns.values())


def why_run(run: Run) -> WhyRun | None:
    """What one operation's time was spent on; None if it was not recorded."""
    time = run.phases[0].time if run.phases else None
    if time is None or not run.path:
        return None
    rows = tuple(
        CauseRow(cause, cause.duration_ns / run.duration_ns, _largest(cause, run.path))
        for cause in run.causes[:LARGEST]
    )
    others = run.causes[LARGEST:]
    return WhyRun(run, time, rows, len(others), sum(cause.duration_ns for cause in others), _links(run))


def why_many(runs: Iterable[Run]) -> tuple[WhyMany, ...]:
    """One summary an operation of the runs that went well and tell what their time was spent on."""
    by_operation: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.causes and run.outcome == "ok":
            by_operation[run.operation].append(run)
    return tuple(_many(operation, members) for operation, members in by_operation.items())


def _many(operation: str, runs: Sequence[Run]) -> WhyMany:
    causes: defaultdict[str, list[Cause]] = defaultdict(list)
    for run in runs:
        for cause in run.causes:
            causes[cause.id].append(cause)
    total_ns = sum(run.duration_ns for run in runs) or 1
    stats = []
    for name, found in causes.items():
        durations = [cause.duration_ns for cause in found] + [0] * (len(runs) - len(found))
        p50, p90 = (float(value) for value in np.percentile(durations, (50, 90)))
        longest = max(found, key=lambda cause: cause.duration_ns)
        stats.append(CauseStats(name, longest.text, longest.remedy, len(found), p50, p90, sum(durations) / total_ns))
    stats.sort(key=lambda row: -row.share)
    times = [run.phases[0].time for run in runs]
    return WhyMany(operation, len(runs), _sum(time for time in times if time), tuple(stats[:LARGEST]))


def _largest(cause: Cause, path: Sequence[PathStep]) -> tuple[PathStep, ...]:
    steps = sorted((path[number] for number in cause.steps), key=lambda step: -step.duration_ns)
    return tuple(steps[:EVIDENCE])


def _links(run: Run) -> tuple[Link, ...]:
    groups: list[list[PathStep]] = []
    shortest_ns = run.duration_ns * _SHORT
    for step in run.path:
        if groups and groups[-1][0].program == step.program:
            groups[-1].append(step)
        else:
            groups.append([step])
    kept: list[list[PathStep]] = []
    for group in groups:
        if kept and (_length(group) < shortest_ns or kept[-1][0].program == group[0].program):
            kept[-1] += group
        else:
            kept.append(group)
    return tuple(_link(group, run) for group in kept)


def _length(steps: Iterable[PathStep]) -> int:
    return sum(step.duration_ns for step in steps)


def _link(steps: Sequence[PathStep], run: Run) -> Link:
    phases: Counter[str] = Counter()
    programs: Counter[str] = Counter()
    for step in steps:
        phases[step.phase] += step.duration_ns
        programs[step.program] += step.duration_ns
    return Link(
        steps[0].start_ns - run.start_ns,
        _length(steps),
        programs.most_common(1)[0][0],
        phases.most_common(1)[0][0],
        _time(steps),
    )


def _time(steps: Iterable[PathStep]) -> Time:
    spent: Counter[str] = Counter()
    blocked: Counter[str] = Counter()
    for step in steps:
        if step.state == "blocked":
            blocked[step.reason] += step.duration_ns
        else:
            spent[step.state] += step.duration_ns
    return Time(spent["cpu"], spent["runqueue"], dict(blocked.most_common()))


def _sum(times: Iterable[Time]) -> Time:
    cpu_ns = runqueue_ns = 0
    blocked: Counter[str] = Counter()
    for time in times:
        cpu_ns += time.cpu_ns
        runqueue_ns += time.runqueue_ns
        blocked.update(time.blocked_ns)
    return Time(cpu_ns, runqueue_ns, dict(blocked.most_common()))
