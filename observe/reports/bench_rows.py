# SPDX-License-Identifier: Apache-2.0
"""The rows of a bench: what its clients measured, apart from how it is written.

Durations are nanoseconds as the client saw them: from before a request was sent to the first byte of its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from observe.model import Loss
from observe.reports.inference import CONFIDENCE, Sample, knows, resampled_percentiles

#: Requests in the order of a run; `wait` lasts until the container has ended; `total` from the first to the last.
MEASURES = ("create", "start", "wait", "remove", "total")
#: Of these, the differences between arms are told.
COMPARED = ("create", "start", "total")
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class ClientRun:
    """One container's life. `turn`: those of one turn ran at the same time."""

    arm: str
    turn: int
    failed: str | None
    durations_ns: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BenchArm:
    """What an arm is, and what is known of it beside its runs."""

    name: str
    #: image, network, runtime, security_opt, attached.
    settings: Mapping[str, Any]
    #: Of the recording; None if the arm was not observed.
    path: str | None = None
    loss: Loss | None = None
    #: Operation → how many of them went well in the recording.
    recorded: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything about one bench."""

    host: Mapping[str, Any]
    engine: Mapping[str, Any]
    wall_time_ns: int
    #: Runs of each arm that were asked for, and what else was chosen.
    planned: int
    concurrency: int
    warmup: int
    seed: int
    command: Sequence[str]
    arms: Sequence[BenchArm]
    runs: Sequence[ClientRun]
    #: What is held against what: (base, new), by name.
    pairs: Sequence[tuple[str, str]]
    #: Why it ended before all runs were done.
    ended_early: str | None = None


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile and its interval; an end is None where there are too few runs to know it."""

    value_ns: float
    low_ns: float | None
    high_ns: float | None


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure of one arm, of the runs that went well."""

    measure: str
    n: int
    p50: Percentile
    p90: Percentile
    p99: Percentile
    max_ns: float


@dataclass(frozen=True, slots=True)
class ArmRows:
    """One arm: how many runs it had, what failed and how often, and its measures (none if no run went well)."""

    arm: BenchArm
    runs: int
    failures: Mapping[str, int]
    rows: tuple[MeasureRow, ...]


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """The difference of two arms' medians, NEW minus BASE; no interval if there are too few runs to know one."""

    base: str
    new: str
    measure: str
    base_ns: float
    new_ns: float
    difference_ns: float
    interval_ns: tuple[float, float] | None

    @property
    def growth(self) -> float | None:
        """As a share of BASE."""
        return self.difference_ns / self.base_ns if self.base_ns else None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval_ns is not None and not self.interval_ns[0] <= 0 <= self.interval_ns[1]


def arm_rows(bench: Bench) -> Iterator[ArmRows]:
    """Each arm, in the order of the bench."""
    for arm in bench.arms:
        runs = [run for run in bench.runs if run.arm == arm.name]
        rows = tuple(_row(bench, arm.name, measure) for measure in MEASURES) if _ok(bench, arm.name) else ()
        yield ArmRows(arm, len(runs), Counter(run.failed for run in runs if run.failed), rows)


def difference_rows(bench: Bench) -> Iterator[DifferenceRow]:
    """Each pair that has runs, measure by measure."""
    for base, new in bench.pairs:
        if not (_ok(bench, base) and _ok(bench, new)):
            continue
        for measure in COMPARED:
            known, medians, drawn = [], [], []
            for seed, arm in enumerate((base, new)):
                values, clusters = _values(bench, arm, measure)
                known.append(all(knows(len(set(clusters.tolist())), 0.5)))
                medians.append(float(np.median(values)))
                drawn.append(resampled_percentiles(values, clusters, (0.5,), seed)[:, 0])
            interval = _interval(drawn[1] - drawn[0])
            yield DifferenceRow(
                base, new, measure, medians[0], medians[1], medians[1] - medians[0], interval if all(known) else None
            )


def failed(bench: Bench) -> Counter[str]:
    """What went wrong, and how often."""
    return Counter(run.failed for run in bench.runs if run.failed)


def _ok(bench: Bench, arm: str) -> list[ClientRun]:
    return [run for run in bench.runs if run.arm == arm and not run.failed]


def _values(bench: Bench, arm: str, measure: str) -> tuple[Sample, np.typing.NDArray[np.intp]]:
    runs = _ok(bench, arm)
    values = np.array([run.durations_ns[measure] for run in runs], dtype=np.float64)
    return values, np.array([run.turn for run in runs], dtype=np.intp)


def _row(bench: Bench, arm: str, measure: str) -> MeasureRow:
    values, clusters = _values(bench, arm, measure)
    independent = len(set(clusters.tolist()))
    drawn = resampled_percentiles(values, clusters, SHARES)
    percentiles = []
    for column, share in zip(drawn.T, SHARES, strict=True):
        low, high = _interval(column)
        from_below, from_above = knows(independent, share)
        percentiles.append(
            Percentile(float(np.quantile(values, share)), low if from_below else None, high if from_above else None)
        )
    p50, p90, p99 = percentiles
    return MeasureRow(measure, len(values), p50, p90, p99, float(values.max()))


def _interval(values: Sample) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
