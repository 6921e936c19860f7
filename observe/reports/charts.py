# SPDX-License-Identifier: Apache-2.0
"""Where the marks of a page's charts stand; what they look like is up to the template.

Horizontal places are percent of the chart, so that it fits any width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from observe.model import Run
from observe.reports.rows import UNATTRIBUTED, Summary, durations_of
from observe.reports.terminal import Page, wall_time

#: From this ratio of the longest to the shortest on, an axis is logarithmic; it spans no more than so many decades.
_WIDE = 20
_DECADES = 7
#: No more columns than this, however many runs there are.
_COLUMNS = 120
_BINS = 48
#: Round numbers of a decade: the most that do not stand closer than about an even part of the axis, in percent.
_STEPS = ((1, 2, 5), (1, 3), (1,))
_APART = 90
_PAGE = Page()


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Durations in nanoseconds along a chart."""

    low_ns: float
    high_ns: float
    logarithmic: bool

    @classmethod
    def over(cls, values_ns: Iterable[float]) -> Axis:
        """One on which all values have their place; what is too short for it stands at its left end."""
        positive = [value for value in values_ns if value > 0] or [1.0]
        high_ns = max(positive)
        low_ns = max(min(positive), high_ns / 10**_DECADES)
        if high_ns < _WIDE * low_ns:
            return cls(0, high_ns * 1.02, logarithmic=False)
        return cls(low_ns / 1.1, high_ns * 1.1, logarithmic=True)

    def at(self, value_ns: float) -> float:
        """Percent from the left."""
        if not self.logarithmic:
            return 100 * value_ns / self.high_ns
        value_ns = max(value_ns, self.low_ns)
        return 100 * math.log(value_ns / self.low_ns) / math.log(self.high_ns / self.low_ns)

    def ticks(self, most: int = 6) -> tuple[Tick, ...]:
        """Round numbers, `most` at most; none so near an end that its label would leave the chart."""
        if self.logarithmic:
            choices = [self._shown(_decades(self.low_ns, self.high_ns, steps)) for steps in _STEPS]
            values = next((values for values in choices if self._apart(values) >= _APART / most), choices[-1])
            values = values[:: math.ceil(len(values) / most) or 1]
        else:
            step = _round_step(self.high_ns / most)
            values = self._shown(step * number for number in range(int(self.high_ns / step) + 1))
        return tuple(Tick(self.at(value), _label(value)) for value in values)

    def _shown(self, values_ns: Iterable[float]) -> list[float]:
        return [value for value in values_ns if 3 < self.at(value) < 97]

    def _apart(self, values_ns: Iterable[float]) -> float:
        """Percent between the two that are the nearest to each other."""
        return min((second - first for first, second in pairwise(map(self.at, values_ns))), default=100)


@dataclass(frozen=True, slots=True)
class Distribution:
    """One phase in all runs: its quartiles and ends, as percent of the axis."""

    low: float
    quarter: float
    median: float
    three_quarters: float
    high: float


@dataclass(frozen=True, slots=True)
class Bar:
    """Of a histogram: left end and width in percent, height as a share of the tallest, how many runs."""

    left: float
    width: float
    share: float
    n: int
    label: str


@dataclass(frozen=True, slots=True)
class Column:
    """Runs that began at about the same time: place in percent; shares of the chart's height."""

    at: float
    low: float
    median: float
    high: float
    n: int
    failed: bool
    label: str


@dataclass(frozen=True, slots=True)
class OverTime:
    """All runs by when they began."""

    columns: tuple[Column, ...]
    ticks: tuple[Tick, ...]  # of the durations, from below
    first: str
    last: str


def durations(summary: Summary) -> Mapping[str, Sequence[int]]:
    """Row → its durations in nanoseconds in the runs in which it was seen."""
    found: dict[str, list[int]] = {row.id: [] for row in summary.rows}
    for run in summary.measured:
        for phase, duration_ns in durations_of(run).items():
            found[phase].append(duration_ns)
        found[UNATTRIBUTED].append(run.unattributed_ns)
    return found


def distributions(durations_ns: Mapping[str, Sequence[int]], axis: Axis) -> Mapping[str, Distribution]:
    """For each row with a duration."""
    return {
        row: Distribution(*(axis.at(float(value)) for value in np.percentile(values, (0, 25, 50, 75, 100))))
        for row, values in durations_ns.items()
        if values
    }


def histogram(values_ns: Sequence[int], axis: Axis) -> tuple[Bar, ...]:
    """How many runs took how long."""
    places = np.array([axis.at(value) for value in values_ns])
    counts, edges = np.histogram(places, bins=_BINS, range=(0.0, 100.0))
    tallest = max(int(counts.max()), 1)
    return tuple(
        Bar(float(left), float(right - left), int(n) / tallest, int(n), _runs(int(n)))
        for n, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if n
    )


def over_time(runs: Sequence[Run]) -> OverTime:
    """By the time of day if it is known, else in their order; failed runs stand apart."""
    known = all(run.wall_time_ns > 0 for run in runs) and runs[0].wall_time_ns < runs[-1].wall_time_ns
    first_ns, last_ns = runs[0].wall_time_ns, runs[-1].wall_time_ns
    axis = Axis(0, max(1, *(run.duration_ns for run in runs)) * 1.05, logarithmic=False)
    slots: dict[tuple[int, bool], list[int]] = {}
    for number, run in enumerate(runs):
        share = (run.wall_time_ns - first_ns) / (last_ns - first_ns) if known else number / max(len(runs) - 1, 1)
        slots.setdefault((min(int(share * _COLUMNS), _COLUMNS - 1), run.outcome != "ok"), []).append(run.duration_ns)
    return OverTime(
        columns=tuple(_column(slot, failed, values, axis) for (slot, failed), values in sorted(slots.items())),
        ticks=axis.ticks(4),
        first=wall_time(first_ns) if known else "first run",
        last=wall_time(last_ns) if known else "last run",
    )


def _column(slot: int, failed: bool, values_ns: Sequence[int], axis: Axis) -> Column:
    low, median, high = (float(value) for value in np.percentile(values_ns, (0, 50, 100)))
    label = f"{_runs(len(values_ns))}{' that did not go well' if failed else ''}: median {_PAGE.duration(median)}"
    return Column(
        at=100 * (slot + 0.5) / _COLUMNS,
        low=axis.at(low) / 100,
        median=axis.at(median) / 100,
        high=axis.at(high) / 100,
        n=len(values_ns),
        failed=failed,
        label=label,
    )


def _decades(low_ns: float, high_ns: float, steps: Sequence[int]) -> Iterable[float]:
    """The round numbers of all decades between two durations."""
    powers = range(math.floor(math.log10(low_ns)), math.floor(math.log10(high_ns)) + 1)
    return (step * 10.0**power for power in powers for step in steps)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(least, 1)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def _label(value_ns: float) -> str:
    """Without a decimal that is 0: `10 ms`."""
    return _PAGE.duration(value_ns).replace(".0 ", " ")


def _runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} runs"
