# SPDX-License-Identifier: Apache-2.0
"""Arms of one recording that differ in one known delay: which phase moved, by how much, and what noise alone does.

A container's name says which arm it belongs to, `ARM-ROUND`; the arms are interleaved, so that what disturbs one
disturbs all. Times are the own times of phases (`self_ns`): a delay then shows in one phase and in none around it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

#: arm → phase → its own time in each round, in nanoseconds; what an operation has beside its phases has its name.
Samples = Mapping[str, Mapping[str, Sequence[int]]]

_SPLITS = 400


def samples(runs: Sequence[Mapping[str, Any]]) -> Samples:
    """The own times of all phases of all runs of a report. A phase that was not seen took no time."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        arm = run["container_name"].rpartition("-")[0]
        for phase in run["phases"]:
            found[arm][phase["id"]].append(phase["self_ns"] or 0)
    return found


def moved_ns(found: Samples, arm: str, plain: Sequence[str]) -> dict[str, float]:
    """How much longer each phase is in an arm than in the plain ones: the difference of the medians."""
    together = pooled(found, plain)
    return {phase: median(times) - median(together[phase]) for phase, times in found[arm].items()}


def noise_ns(found: Samples, plain: Sequence[str]) -> dict[str, float]:
    """How far the medians of two halves of the same plain runs lie apart at most, over many random halves."""
    shuffle = random.Random(0).shuffle  # noqa: S311 - repeatable on purpose
    noise = {}
    for phase, times in pooled(found, plain).items():
        every, half, apart = list(times), len(times) // 2, 0.0
        for _ in range(_SPLITS):
            shuffle(every)
            apart = max(apart, abs(median(every[:half]) - median(every[half:])))
        noise[phase] = apart
    return noise


def pooled(found: Samples, arms: Sequence[str]) -> dict[str, list[int]]:
    """The runs of several arms as one."""
    return {phase: [time for arm in arms for time in found[arm][phase]] for phase in found[arms[0]]}
