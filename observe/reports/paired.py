# SPDX-License-Identifier: Apache-2.0
"""The times of two sets of runs of one operation, side by side: a pair for each row, before anything is said of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from observe.model import FLOOR_NS, Evidence, Run
from observe.reports.inference import Sample
from observe.reports.rows import UNATTRIBUTED


@dataclass(frozen=True, slots=True)
class Times:
    """One phase in the compared runs of one arm."""

    durations_ns: Sample  # of the runs in which it was seen
    own_ns: Sample  # of all runs
    evidence: Evidence | None


@dataclass(frozen=True, slots=True)
class Pair:
    """One row before anything is known about it."""

    operation: str
    id: str
    base: Times
    new: Times
    #: Whether both arms measured it in the same way; and all that is in it, so that its own time is the same thing.
    same_evidence: bool
    same_within: bool

    @property
    def n(self) -> int:
        """Runs of the smaller arm."""
        return min(len(self.base.durations_ns), len(self.new.durations_ns))

    @property
    def at_floor(self) -> bool:
        """Whether functions bound it, and in so few runs for longer than their probes take that no median shows it.

        However the runs were dealt to the arms, neither median would: what is tested must not depend on the outcome.
        """
        arms = [times.durations_ns for times in (self.base, self.new) if len(times.durations_ns)]
        longer = sum(int(np.count_nonzero(durations_ns >= FLOOR_NS)) for durations_ns in arms)
        evidence = (self.base.evidence, self.new.evidence)
        return Evidence.FUNCTION in evidence and 2 * longer < min(map(len, arms))

    @property
    def has_own(self) -> bool:
        """Whether its own time is another than its duration: something is in it."""
        return not all(np.array_equal(times.own_ns, times.durations_ns) for times in (self.base, self.new))

    @property
    def comparable(self) -> bool:
        """Whether there is something to test, if only the runs are enough."""
        return self.same_evidence and not self.at_floor


def pairs_of(operation: str, base: Sequence[Run], new: Sequence[Run]) -> Iterator[Pair]:
    """Every row that was seen in either arm, in the documented order; the operation first, unattributed last.

    An arm without any run is taken to have measured what the other did, so that it is known how many runs it takes.
    """
    before, after = _times(operation, base), _times(operation, new)
    known, known_after = before or after, after or before
    same = {phase: known[phase].evidence is known_after[phase].evidence for phase in known.keys() & known_after.keys()}
    same_functions = _uses_functions(known) == _uses_functions(known_after)
    # What the phases leave over depends on how each of them is measured.
    same[UNATTRIBUTED] = all(same.values()) and same_functions
    order = dict.fromkeys(span.id for run in (*base, *new) for span in run.phases)
    for phase in dict.fromkeys((operation, *order, UNATTRIBUTED)):
        if phase == operation or phase in before or phase in after:
            within = same_functions and all(alike for inner, alike in same.items() if inner.startswith(f"{phase}."))
            yield Pair(
                operation,
                phase,
                before.get(phase, _never(base)),
                after.get(phase, _never(new)),
                same_evidence=same.get(phase, False),
                same_within=within,
            )


def _uses_functions(times: Mapping[str, Times]) -> bool:
    return any(one.evidence is Evidence.FUNCTION for one in times.values())


def _times(operation: str, runs: Sequence[Run]) -> dict[str, Times]:
    """Each row of the runs that was seen at least once; a phase that was repeated counts with all of its spans."""
    durations_ns: defaultdict[str, dict[int, int]] = defaultdict(dict)
    own_ns: defaultdict[str, Sample] = defaultdict(lambda: np.zeros(len(runs)))
    evidence: defaultdict[str, Counter[Evidence]] = defaultdict(Counter)
    for index, run in enumerate(runs):
        for phase, whole_ns in ((operation, run.duration_ns), (UNATTRIBUTED, run.unattributed_ns)):
            durations_ns[phase][index] = whole_ns
            own_ns[phase][index] = whole_ns
        for span in run.phases:
            if span.parent is None or span.duration_ns is None:
                continue
            durations_ns[span.id][index] = durations_ns[span.id].get(index, 0) + span.duration_ns
            own_ns[span.id][index] += span.self_ns or 0
            evidence[span.id][span.evidence] += 1
    return {
        phase: Times(
            durations_ns=np.array(list(times.values()), dtype=np.float64),
            own_ns=own_ns[phase],
            # A run or two with other evidence do not make the arm another one.
            evidence=evidence[phase].most_common(1)[0][0] if phase in evidence else None,
        )
        for phase, times in durations_ns.items()
    }


def _never(runs: Sequence[Run]) -> Times:
    return Times(np.empty(0), np.zeros(len(runs)), None)


def median(values: Sample) -> float | None:
    """None if there is no value."""
    return float(np.median(values)) if len(values) else None
