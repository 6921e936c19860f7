# SPDX-License-Identifier: Apache-2.0
"""What two samples of durations allow to say: an interval, a test, and a correction for many tests.

Durations of phases have heavy tails, so everything rests on medians and ranks; nothing assumes a shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import count

import numpy as np
import numpy.typing as npt

Sample = npt.NDArray[np.float64]

#: How sure the intervals are, each by itself.
CONFIDENCE = 0.95
#: How often a comparison of two equal arms may find any difference at all. Not 0.05: a gate that runs with every
#: change would cry wolf each twentieth time.
ALPHA = 0.01
RESAMPLES = 10_000
#: Of whole clusters, where nothing is known about the shape of the result; made in pieces that fit into the cache.
CLUSTER_RESAMPLES = 2_000
_CHUNKS = 20

_SEED = 20_220_303
#: Up to so many pairs of values the test counts every way to deal them to the arms; beyond, the normal curve is near
#: enough (far out it is above the truth: it finds less).
_EXACT_PAIRS = 400


def difference_interval(base: Sample, new: Sample) -> tuple[float, float]:
    """Bootstrap interval of median(new) - median(base), at CONFIDENCE, in their unit. Neither may be empty.

    The same samples give the same interval.
    """
    tail = (1 - CONFIDENCE) / 2
    differences = _resampled_medians(new, arm=1) - _resampled_medians(base, arm=0)
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(low), float(high)


def _resampled_medians(values: Sample, arm: int) -> Sample:
    """The median of each resample, shape (RESAMPLES,)."""
    below, above = _middle_places(len(values), arm)
    ordered = np.sort(values)
    return (ordered[below] + ordered[above]) / 2


@lru_cache(maxsize=256)
def _middle_places(n: int, arm: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Which two of n sorted values (the same one, if n is odd) the median of each resample lies between.

    A resample draws n places out of n; in order, the k-th of them is floor(n u), where u is the k-th smallest of
    n uniform numbers, whose distribution is known (beta). Drawing that is drawing the resample, without the n-2
    values that do not matter and without sorting.
    """
    rng = np.random.default_rng((_SEED, n, arm))
    rank = (n + 1) // 2
    below = rng.beta(rank, n + 1 - rank, RESAMPLES)
    # The next one is the smallest of the others, which are uniform above it.
    above = below if n % 2 else below + (1 - below) * rng.beta(1, n - rank, RESAMPLES)
    first, second = (np.minimum((n * u).astype(np.intp), n - 1) for u in (below, above))
    return first, second


def resampled_percentiles(
    values: Sample, clusters: npt.NDArray[np.intp], shares: Sequence[float], seed: int = 0
) -> Sample:
    """The percentiles of each bootstrap resample, shape (CLUSTER_RESAMPLES, shares), in the unit of `values`.

    `clusters` says which values (shape (n,), not empty) belong together, since they were measured at the same time:
    whole clusters are drawn, as many as there are. Percentiles lie between two values, as numpy's do.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    names, member = np.unique(clusters[order], return_inverse=True)
    rng = np.random.default_rng((_SEED, seed))
    chance = np.full(len(names), 1 / len(names))
    found = []
    for _ in range(_CHUNKS):
        drawn = rng.multinomial(len(names), chance, CLUSTER_RESAMPLES // _CHUNKS)
        # How many of a resample's values are not above each one.
        ranks = np.cumsum(drawn[:, member], axis=1)
        last = ranks[:, -1:] - 1
        columns = []
        for share in shares:
            place = share * last
            below = np.floor(place)
            first, second = (ordered[np.argmax(ranks > rank, axis=1)] for rank in (below, np.minimum(below + 1, last)))
            columns.append(first + (place - below)[:, 0] * (second - first))
        found.append(np.stack(columns, axis=1))
    return np.concatenate(found)


def knows(n: int, share: float) -> tuple[bool, bool]:
    """Whether n independent values bound a percentile from below, and from above, at CONFIDENCE.

    The largest of them is below the percentile with the chance share^n: then no resample says how far it may be.
    """
    tail = (1 - CONFIDENCE) / 2
    return (1 - share) ** n <= tail, share**n <= tail


def rank_test(base: Sample, new: Sample) -> float:
    """Two-sided p-value of the Mann-Whitney test. Neither may be empty.

    Why this one: it looks at ranks only, so one run of ten seconds weighs as much as one that is just the slowest;
    for few runs it is exact; and it needs no resampling, so its p-values are fine enough for any correction.
    """
    n, m = len(base), len(new)
    _, group, ties = np.unique(np.concatenate((base, new)), return_inverse=True, return_counts=True)
    # Twice the ranks, so that the ranks that equal values share are whole numbers, too.
    ranks = (2 * np.cumsum(ties) - ties + 1)[group]
    few = min(n, m)
    rank_sum = int(ranks[:n].sum() if few == n else ranks[n:].sum())
    usual = few * (n + m + 1)
    distance = abs(rank_sum - usual)
    if n * m <= _EXACT_PAIRS:
        ways = ways_to_rank_sums(ranks, few)
        return float(ways[np.abs(np.arange(len(ways)) - usual) >= distance].sum() / ways.sum())
    variance = n * m / 3 * (n + m + 1 - float((ties.astype(float) ** 3 - ties).sum()) / ((n + m) * (n + m - 1)))
    # A step of the sum is 2; a continuous curve must begin at half of it.
    return math.erfc(max(distance - 1, 0) / math.sqrt(2 * variance)) if variance > 0 else 1.0


def ways_to_rank_sums(ranks: npt.NDArray[np.int64], few: int) -> Sample:
    """In how many ways `few` of the ranks have each sum; index: the sum."""
    ways = np.zeros((few + 1, few * int(ranks.max()) + 1))
    ways[0, 0] = 1
    for rank in ranks:
        # With this rank, or without it: of what was chosen so far, one fewer and a smaller sum.
        ways[1:, rank:] += ways[:-1, :-rank]
    last: Sample = ways[few]
    return last


def holm(p_values: Sequence[float], tests: int) -> tuple[float, ...]:
    """P-values corrected for the number of tests (Holm), in the given order; tests that are not given count as 1.

    Why this one: below ALPHA, the chance of even one wrong name is at most ALPHA, also beside right ones and
    whatever phases depend on each other. Benjamini-Hochberg lets wrong names in among the right ones; and Holm
    finds all that Bonferroni does, and more.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (tests - rank)))
        corrected[index] = highest
    return tuple(corrected)


def smallest_runs(tests: int) -> int:
    """How many runs each arm needs for an answer among so many tests.

    With fewer, arms that do not overlap at all would still be chance: of the C(2n, n) ways to deal 2n values to
    two arms, two separate them, and 2 / C(2n, n) must not exceed ALPHA / tests.
    """
    return next(n for n in count(1) if 2 * max(tests, 1) <= ALPHA * math.comb(2 * n, n))
