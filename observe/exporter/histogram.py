# SPDX-License-Identifier: Apache-2.0
"""Histograms with the last exemplar of each bucket, and the bounds that ours have."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

_SECOND_NS = 1_000_000_000


def decades(start_seconds: float, steps_a_decade: int, count: int) -> tuple[float, ...]:
    """`count` bounds in equal ratios, four digits each, from `start_seconds` on."""
    return tuple(float(f"{start_seconds * 10 ** (step / steps_a_decade):.4g}") for step in range(count))


#: Operations: 26% apart from 0.1 ms to 63 s.
OPERATION_BOUNDS = decades(1e-4, 10, 59)
#: Operations that did not go well: every tenth of these, since their counts matter and not their percentiles.
FAILURE_BOUNDS = OPERATION_BOUNDS[::10]
#: Phases that the kernel sees (files, processes, network): 78% apart from 0.1 ms to 10 s.
WORK_BOUNDS = decades(1e-4, 4, 21)
#: Phases that not every operation has, parts of others: a factor of 3.2 apart from 0.3 ms to 1 s.
PART_BOUNDS = decades(1e-3 / 10**0.5, 2, 8)
#: Phases that only a function can show are computation: some microseconds; what is longer went wrong.
COMPUTATION_BOUNDS = (*decades(1e-5, 2, 5), *decades(1e-2, 1, 3))


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One run that fell into a bucket."""

    container_id: str
    seconds: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class FrozenHistogram:
    """A histogram at one moment. `cumulative` and `exemplars` have one place more than `bounds`: +Inf."""

    bounds: tuple[float, ...]
    cumulative: tuple[int, ...]
    sum_seconds: float
    exemplars: tuple[Exemplar | None, ...]

    @property
    def count(self) -> int:
        """Number of observations."""
        return self.cumulative[-1]


class Histogram:
    """Counts durations by upper bounds (seconds, included)."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Empty."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self._sum_ns = 0
        self._frozen: FrozenHistogram | None = None

    def observe(self, duration_ns: int, container_id: str | None, wall_time_ns: int) -> None:
        """Count a duration; the container, if it is known, becomes the bucket's exemplar."""
        seconds = duration_ns / _SECOND_NS
        bucket = bisect_left(self._bounds, seconds)
        self._counts[bucket] += 1
        self._sum_ns += duration_ns
        if container_id is not None:
            self._exemplars[bucket] = Exemplar(container_id, seconds, wall_time_ns / _SECOND_NS)
        self._frozen = None

    def freeze(self) -> FrozenHistogram:
        """What it is now; the same object as long as nothing is counted."""
        if self._frozen is None:
            self._frozen = FrozenHistogram(
                self._bounds, tuple(accumulate(self._counts)), self._sum_ns / _SECOND_NS, tuple(self._exemplars)
            )
        return self._frozen
