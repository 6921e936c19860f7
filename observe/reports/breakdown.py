# SPDX-License-Identifier: Apache-2.0
"""Many runs of one operation, by what they differ in: network, image, storage driver, outcome."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from observe.model import Run
from observe.reports.report import Report
from observe.reports.rows import Summary

#: More values than this are summed up as one.
VALUES = 12
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Group:
    """The runs that share a value. Times are of the operation, in nanoseconds."""

    value: str
    n: int
    p50_ns: float
    p90_ns: float
    p99_ns: float
    max_ns: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """All runs by one thing, the most frequent value first; `others` values have no group of their own."""

    what: str
    groups: tuple[Group, ...]
    others: int


def breakdowns(summary: Summary, report: Report) -> tuple[Breakdown, ...]:
    """By network, image and storage driver those runs whose times are shown, by outcome all."""
    driver = str(report.engine.get("storage_driver") or "")
    by: Mapping[str, tuple[Sequence[Run], Callable[[Run], str | None]]] = {
        "network": (summary.measured, lambda run: run.network),
        "image": (summary.measured, lambda run: run.image),
        "storage driver": (summary.measured, lambda run: run.configuration.get("Driver") or driver),
        "outcome": (summary.runs, lambda run: run.outcome),
    }
    return tuple(_breakdown(what, runs, value_of) for what, (runs, value_of) in by.items())


def _breakdown(what: str, runs: Sequence[Run], value_of: Callable[[Run], str | None]) -> Breakdown:
    durations_ns: defaultdict[str, list[int]] = defaultdict(list)
    for run in runs:
        durations_ns[str(value_of(run) or UNKNOWN)].append(run.duration_ns)
    ordered = sorted(durations_ns.items(), key=lambda item: -len(item[1]))
    return Breakdown(
        what, tuple(_group(value, values) for value, values in ordered[:VALUES]), max(len(ordered) - VALUES, 0)
    )


def _group(value: str, durations_ns: Sequence[int]) -> Group:
    return Group(value, len(durations_ns), *map(float, np.percentile(durations_ns, (50, 90, 99, 100))))
