# SPDX-License-Identifier: Apache-2.0
"""The rows of a comparison of two sets of runs, apart from how they are written.

Only runs that went well are compared, phase by phase, by the medians of those in which the phase was seen.
A phase's *contribution* is the difference of the medians of its own time (in which no deeper phase was active; 0 in
a run without it): own times sum to the operation, so a phase is not ranked for what happened below it. A phase that has
others in it is tested twice, whole and by its own time: what is in it makes the whole noisier, and is not its fault.
Durations are nanoseconds, differences are NEW minus BASE, growth is a share of BASE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from observe.model import DepartureKind, Run
from observe.reports.inference import ALPHA, difference_interval, holm, rank_test, smallest_runs
from observe.reports.paired import Pair, median, pairs_of
from observe.reports.report import Report
from observe.reports.rows import summarise

#: A phase fails a comparison only if its NEW median is a larger part of the operation's.
MATTERS = 0.01


class Verdict(StrEnum):
    """What can be said about a row."""

    SLOWER = "slower"
    FASTER = "faster"
    NO_DIFFERENCE = "no_difference"  # none that chance could not make
    NOT_ENOUGH_RUNS = "not_enough_runs"
    APPEARED = "appeared"  # seen in no run of BASE
    DISAPPEARED = "disappeared"  # seen in no run of NEW
    OTHER_EVIDENCE = "other_evidence"  # functions bound it in one arm, kernel evidence in the other
    AT_FLOOR = "at_floor"  # as long as the probes that bound it take

    @property
    def significant(self) -> bool:
        """Whether a difference was found."""
        return self in (Verdict.SLOWER, Verdict.FASTER)


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison: where it was read from, and what."""

    name: str
    report: Report


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one operation in one arm: how many are compared, and how many ended in which way."""

    compared: int
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """The operation, one of its phases, or what is unattributed. What is not known is None."""

    id: str
    base_n: int
    new_n: int
    base_median_ns: float | None
    new_median_ns: float | None
    difference_ns: float | None
    #: Bootstrap interval of the difference.
    interval_ns: tuple[float, float] | None
    growth: float | None
    #: Of the operation: its difference. None only if an arm has no run to compare.
    contribution_ns: float | None
    #: P-value, corrected for the number of tests in the whole comparison.
    p: float | None
    verdict: Verdict
    #: The same of its own time; equal to the above if nothing is in it.
    own_interval_ns: tuple[float, float] | None
    own_p: float | None
    own_verdict: Verdict

    @property
    def is_marked(self) -> bool:
        """Whether a difference was found, of the whole or of its own time."""
        return self.verdict.significant or self.own_verdict.significant

    @property
    def name(self) -> str:
        """The last word of the id."""
        return self.id.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class DepartureChange:
    """A departure from the documented order that only one arm has, and in how many compared runs."""

    kind: DepartureKind
    phase: str
    text: str
    base_runs: int
    new_runs: int


@dataclass(frozen=True, slots=True)
class OperationComparison:
    """One operation: its own row first, then the others, the largest contribution first."""

    operation: str
    base: Group
    new: Group
    rows: tuple[Row, ...]
    departures: tuple[DepartureChange, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Something beside the times that differs: of host, engine, or the mix of runs."""

    what: str
    base: str
    new: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything about two arms."""

    base: Arm
    new: Arm
    differences: tuple[Difference, ...]
    operations: tuple[OperationComparison, ...]
    #: How many tests there are if only the runs are enough: all p-values are corrected for so many.
    tests: int
    #: How many runs in each arm that takes.
    needed_runs: int

    @property
    def is_tested(self) -> bool:
        """Whether any row had runs enough."""
        return any(row.p is not None for one in self.operations for row in one.rows)


def compare(base: Arm, new: Arm) -> Comparison:
    """What changed from one arm to the other. Pure; the same arms give the same numbers."""
    operations = dict.fromkeys(run.operation for arm in (base, new) for run in arm.report.runs)
    runs = {name: (_compared(base, name), _compared(new, name)) for name in operations}
    pairs = {name: tuple(pairs_of(name, *arms)) for name, arms in runs.items()}
    # All operations are one family: who asks whether anything changed asks once. How many tests it has is settled
    # before any is made, and a row with too few runs counts among them: how many it needs follows from their number.
    family = [pair for members in pairs.values() for pair in members if pair.comparable]
    tests = len(family) + sum(map(_is_tested_by_own, family))
    needed = smallest_runs(tests)
    tested = [pair for pair in family if pair.n >= needed]
    by_own = [*filter(_is_tested_by_own, tested)]
    p_values = holm(
        [rank_test(pair.base.durations_ns, pair.new.durations_ns) for pair in tested]
        + [rank_test(pair.base.own_ns, pair.new.own_ns) for pair in by_own],
        tests,
    )
    whole_p = {(pair.operation, pair.id): p for pair, p in zip(tested, p_values, strict=False)}
    own_p = {(pair.operation, pair.id): p for pair, p in zip(by_own, p_values[len(tested) :], strict=True)}
    return Comparison(
        base=base,
        new=new,
        differences=tuple(_differences(base, new)),
        operations=tuple(
            OperationComparison(
                operation=name,
                base=_group(base, name),
                new=_group(new, name),
                rows=_ranked(
                    [
                        _row(pair, whole_p.get(key), own_p.get(key), _runs_suffice(runs[name], needed))
                        for pair in members
                        for key in [(name, pair.id)]
                    ]
                ),
                departures=tuple(_departures(*runs[name])),
            )
            for name, members in pairs.items()
        ),
        tests=tests,
        needed_runs=needed,
    )


def regressions(comparison: Comparison, above_percent: float) -> tuple[tuple[str, Row], ...]:
    """(operation, row) of what is significantly slower, and by more than so many percent of its BASE median.

    An operation always counts; a phase (or what is unattributed) if its NEW median is more than MATTERS of the
    operation's.
    """
    return tuple(
        (one.operation, row)
        for one in comparison.operations
        for row in one.rows
        if row.verdict is Verdict.SLOWER
        and (row.growth or 0) * 100 > above_percent
        and (row.new_median_ns or 0) > MATTERS * (one.rows[0].new_median_ns or 0)
    )


def undecided(comparison: Comparison) -> tuple[OperationComparison, ...]:
    """Operations about which nothing can be said though BASE has the runs for it; all, if none can be judged."""
    enough = comparison.needed_runs
    judged = [one for one in comparison.operations if min(one.base.compared, one.new.compared) >= enough]
    if not judged:
        return comparison.operations
    return tuple(one for one in comparison.operations if one.base.compared >= enough and one not in judged)


# The runs --------------------------------------------------------------------------------------------------


def _compared(arm: Arm, operation: str) -> tuple[Run, ...]:
    """Its runs that went well. A run of an imported log has no times to compare."""
    return tuple(
        run for run in arm.report.runs if run.operation == operation and run.outcome == "ok" and run.duration_ns > 0
    )


def _group(arm: Arm, operation: str) -> Group:
    outcomes = Counter(run.outcome for run in arm.report.runs if run.operation == operation)
    return Group(len(_compared(arm, operation)), dict(outcomes))


def _is_tested_by_own(pair: Pair) -> bool:
    """Whether a comparable pair is tested a second time."""
    return pair.has_own and pair.same_within


def _runs_suffice(runs: tuple[Sequence[Run], Sequence[Run]], needed: int) -> bool:
    return min(map(len, runs)) >= needed


# The rows --------------------------------------------------------------------------------------------------


def _row(pair: Pair, p: float | None, own_p: float | None, suffice: bool) -> Row:
    """`p` is None if it was not tested; `suffice`: whether both arms have enough runs of the operation."""
    base_ns, new_ns = median(pair.base.durations_ns), median(pair.new.durations_ns)
    difference_ns = _difference(base_ns, new_ns)
    interval_ns = difference_interval(pair.base.durations_ns, pair.new.durations_ns) if p is not None else None
    verdict = _untested(pair, suffice) if p is None or interval_ns is None else _tested(p, *interval_ns)
    own = (interval_ns, p, verdict)
    if pair.has_own:
        own = (None, None, _own_untested(verdict))
        if own_p is not None:
            own_interval_ns = difference_interval(pair.base.own_ns, pair.new.own_ns)
            own = (own_interval_ns, own_p, _tested(own_p, *own_interval_ns))
    return Row(
        id=pair.id,
        base_n=len(pair.base.durations_ns),
        new_n=len(pair.new.durations_ns),
        base_median_ns=base_ns,
        new_median_ns=new_ns,
        difference_ns=difference_ns,
        interval_ns=interval_ns,
        growth=difference_ns / base_ns if difference_ns is not None and base_ns else None,
        contribution_ns=_difference(median(pair.base.own_ns), median(pair.new.own_ns)),
        p=p,
        verdict=verdict,
        own_interval_ns=own[0],
        own_p=own[1],
        own_verdict=own[2],
    )


def _own_untested(whole: Verdict) -> Verdict:
    """Why its own time was not tested: if the whole was, because of what is in it."""
    return Verdict.OTHER_EVIDENCE if whole.significant or whole is Verdict.NO_DIFFERENCE else whole


def _difference(base_ns: float | None, new_ns: float | None) -> float | None:
    return None if base_ns is None or new_ns is None else new_ns - base_ns


def _untested(pair: Pair, suffice: bool) -> Verdict:
    """Why a row was not tested."""
    if not suffice:
        return Verdict.NOT_ENOUGH_RUNS
    if not len(pair.base.durations_ns):
        return Verdict.APPEARED
    if not len(pair.new.durations_ns):
        return Verdict.DISAPPEARED
    if not pair.same_evidence:
        return Verdict.OTHER_EVIDENCE
    return Verdict.AT_FLOOR if pair.at_floor else Verdict.NOT_ENOUGH_RUNS


def _tested(p: float, low_ns: float, high_ns: float) -> Verdict:
    """The test and the interval of the medians must agree: ranks may differ where the medians do not."""
    if p > ALPHA or low_ns <= 0 <= high_ns:
        return Verdict.NO_DIFFERENCE
    return Verdict.SLOWER if low_ns > 0 else Verdict.FASTER


def _ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The operation stays first; equals stay in the documented order."""
    operation, *others = rows
    return (operation, *sorted(others, key=lambda row: -abs(row.contribution_ns or 0)))


# What else changed -----------------------------------------------------------------------------------------


def _departures(base: Sequence[Run], new: Sequence[Run]) -> Iterator[DepartureChange]:
    """What only one arm has; what appeared first."""
    before, after = (
        {(found.kind, found.phase): found for summary in summarise(runs) for found in summary.departures}
        for runs in (base, new)
    )
    for kind, phase in (*after, *before):
        if ((kind, phase) in before) != ((kind, phase) in after):
            found = after.get((kind, phase)) or before[kind, phase]
            counts = (0, found.runs) if (kind, phase) in after else (found.runs, 0)
            yield DepartureChange(kind, phase, found.text, *counts)


def _differences(base: Arm, new: Arm) -> Iterator[Difference]:
    """Facts of host and engine that are not the same, then the mix of the runs, if any are there to have one."""
    for what in ("host", "engine"):
        before, after = (dict(_flat(what, getattr(arm.report, what))) for arm in (base, new))
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                yield Difference(name, before.get(name, "unknown"), after.get(name, "unknown"))
    if base.report.runs and new.report.runs:
        for what in ("image", "network"):
            before_mix, after_mix = (
                ", ".join(sorted({getattr(run, what) or "unknown" for run in arm.report.runs})) for arm in (base, new)
            )
            if before_mix != after_mix:
                yield Difference(what, before_mix, after_mix)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """`engine.components.runc` → "1.1.5" for every fact, however deep."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    else:
        yield name, str(value)
