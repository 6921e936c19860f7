# SPDX-License-Identifier: Apache-2.0
"""Arms of one recording that differ in one known delay: which phase moved, by how much, and what noise alone does.

A container's name says which arm it belongs to, `ARM-ROUND`; the arms are interleaved, so that what disturbs one
disturbs all. Times are the own times of phases (`self_ns`): a delay then shows in one phase and in none around it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: arm → phase → its own time in each round, in nanoseconds; what an operation has beside its phases has its name.
Samples = Mapping[str, Mapping[str, Sequence[int]]]

_SPLITS = 400
_RESAMPLES = 200


def samples(runs: Sequence[Mapping[str, Any]]) -> Samples:
    """The own times of all phases of all runs of a report. A phase that was not seen took no time."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        arm = run["container_name"].rpartition("-")[0]
        for phase in run["phases"]:
            found[arm][phase["id"]].append(phase["self_ns"] or 0)
    return found


def moved_ns(found: Samples, arm: str, plain: Sequence[str]) -> dict[str, float]:
    """How much longer each phase is in an arm than in the plain ones."""
    together = pooled(found, plain)
    return {phase: shift_ns(times, together[phase]) for phase, times in found[arm].items()}


def shift_ns(times: Sequence[int], plain: Sequence[int]) -> float:
    """The median of all differences between two samples: half as uncertain as the difference of their medians."""
    return float(np.median(np.subtract.outer(np.array(times), np.array(plain))))


def uncertainty_ns(times: Sequence[int], plain: Sequence[int]) -> float:
    """Half of the 95% interval of their shift, bootstrapped: how far chance alone may have moved it."""
    generator = np.random.default_rng(0)

    def again(sample: Sequence[int]) -> list[int]:
        return [int(one) for one in generator.choice(np.array(sample), len(sample))]

    low, high = np.percentile([shift_ns(again(times), again(plain)) for _ in range(_RESAMPLES)], (2.5, 97.5))
    return float(high - low) / 2


def noise_ns(found: Samples, plain: Sequence[str]) -> dict[str, float]:
    """How far two halves of the same plain runs lie apart at most, over many random halves."""
    shuffle = random.Random(0).shuffle  # noqa: S311 - repeatable on purpose
    noise = {}
    for phase, times in pooled(found, plain).items():
        every, half, apart = list(times), len(times) // 2, 0.0
        for _ in range(_SPLITS):
            shuffle(every)
            apart = max(apart, abs(shift_ns(every[:half], every[half:])))
        noise[phase] = apart
    return noise


def pooled(found: Samples, arms: Sequence[str]) -> dict[str, list[int]]:
    """The runs of several arms as one."""
    return {phase: [time for arm in arms for time in found[arm][phase]] for phase in found[arms[0]]}
