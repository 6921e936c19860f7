# SPDX-License-Identifier: Apache-2.0
"""Comparisons: what the statistics allow to say, the rows, how they are written, and the exit codes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe.__main__ import main
from observe.commands.compare import FORMATS
from observe.model import Departure, DepartureKind, EventBatch, Evidence, Loss, Run, Span
from observe.recording import Recording, RecordingWriter
from observe.reports import Page, Report, inference
from observe.reports.comparison import Arm, Difference, Verdict, compare, regressions, undecided
from observe.reports.inference import (
    ALPHA,
    RESAMPLES,
    difference_interval,
    holm,
    rank_test,
    smallest_runs,
)
from observe.reports.rows import UNATTRIBUTED

FIXTURE = Path(__file__).parents[1] / "fixtures" / "three-at-once.observe"
MS = 1_000_000
HOSTILE = "web\x1b[31m\r\n\u202egnp`|<img>\x00\x9b2J"


# Made-up runs: `own` is the own time of each phase in ms, parents before their children ---------------------


def a_run(own_ms, *, operation="start", evidence=Evidence.KERNEL, unattributed_ms=1.0, **changes):
    """A run whose durations follow from own times; phases that are not named were not seen."""

    whole_ns = {operation: round(unattributed_ms * MS), **{phase: round(ms * MS) for phase, ms in own_ms.items()}}
    for phase in reversed(own_ms):
        whole_ns[phase.rpartition(".")[0]] += whole_ns[phase]
    spans = [
        Span(phase, phase.rpartition(".")[0], "3", 0, whole_ns[phase], round(ms * MS), evidence)
        for phase, ms in own_ms.items()
    ]
    duration_ns = whole_ns[operation]
    first = Span(operation, None, "3", 0, duration_ns, round(unattributed_ms * MS), Evidence.KERNEL)
    run = Run(
        operation=operation,
        container_id=None,
        container_name=None,
        image="app",
        network="bridge",
        outcome="ok",
        error=None,
        start_ns=0,
        wall_time_ns=0,
        duration_ns=duration_ns,
        unattributed_ns=round(unattributed_ms * MS),
        departures=(),
        phases=(first, *spans),
    )
    return replace(run, **changes)


def arm(runs, name="arm", **changes):
    return Arm(name, replace(Report({}, {}, Loss(), tuple(runs)), **changes))


def spread(phase="start.mount", around_ms=10.0, n=20, **changes):
    """Runs whose one phase takes about so long, each a little more than the one before."""
    return [a_run({phase: around_ms * (1 + i / 1000)}, **changes) for i in range(n)]


def rows_of(base, new):
    (operation,) = compare(arm(base), arm(new)).operations
    return {row.id: row for row in operation.rows}


def verdicts(base, new):
    return {phase: row.verdict for phase, row in rows_of(base, new).items()}


# The interval ----------------------------------------------------------------------------------------------


def heavy(rng, n):
    """Durations with a tail: one of twenty takes ten times as long."""
    return rng.lognormal(2, 0.6, n) * np.where(rng.random(n) < 0.05, 10, 1)


@pytest.mark.parametrize("sizes", [(30, 30), (31, 8), (9, 200)])
def test_the_interval_is_that_of_a_plain_bootstrap(sizes):
    rng = np.random.default_rng(3)
    base, new = (heavy(rng, n) for n in sizes)
    plain = [
        np.median(sample[rng.integers(0, len(sample), (RESAMPLES, len(sample)))], axis=1) for sample in (base, new)
    ]
    differences = plain[1] - plain[0]
    low, high = difference_interval(base, new)
    # Each end cuts off as many of the plain ones as it should.
    assert np.mean(differences < low) == pytest.approx(0.025, abs=0.01)
    assert np.mean(differences > high) == pytest.approx(0.025, abs=0.01)


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = difference_interval(heavy(rng, 30), heavy(rng, 30) + 5)
        hits += low <= 5 <= high
    assert 184 <= hits <= 199


def test_the_same_samples_give_the_same_interval_and_single_ones_none_of_any_width():
    rng = np.random.default_rng(2)
    base, new = heavy(rng, 12), heavy(rng, 15)
    assert difference_interval(base, new) == difference_interval(base.copy(), new.copy())
    assert difference_interval(np.array([2.0]), np.array([5.0])) == (3, 3)


# The test --------------------------------------------------------------------------------------------------


def brute_force(base, new):
    """The p-value by dealing the values to the arms in every possible way."""
    values = [*base, *new]

    def distance(chosen):
        """Of the number of pairs in which the new one is larger from its middle."""
        larger = sum(
            (values[i] > values[j]) + (values[i] == values[j]) / 2
            for i in chosen
            for j in range(len(values))
            if j not in chosen
        )
        return abs(larger - len(base) * len(new) / 2)

    seen = distance(set(range(len(base), len(values))))
    deals = [set(deal) for deal in itertools.combinations(range(len(values)), len(new))]
    return sum(distance(deal) >= seen for deal in deals) / len(deals)


@given(st.permutations(range(8)), st.integers(1, 7))
def test_few_runs_are_tested_exactly(values, cut):
    base, new = np.array(values[:cut], dtype=float), np.array(values[cut:], dtype=float)
    assert rank_test(base, new) == pytest.approx(brute_force(base, new))


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.integers(1, 7))
def test_ties_are_tested_exactly_too(values, cut):
    base, new = np.array(values[:cut], dtype=float), np.array(values[cut:], dtype=float)
    assert rank_test(base, new) == pytest.approx(brute_force(base, new))


@pytest.mark.parametrize("tied", [1, 3])
def test_many_runs_are_tested_on_the_safe_side_and_nearly_exactly_where_it_matters(tied, monkeypatch):
    base = np.arange(30) // tied + 0.0
    seen = set()
    for shift in np.arange(1, 20, 2) / tied:
        approximate = rank_test(base, base + shift)
        with monkeypatch.context() as patch:
            patch.setattr(inference, "_EXACT_PAIRS", 900)
            exact = rank_test(base, base + shift)
        if exact > ALPHA / 60:
            assert 0.97 * exact <= approximate <= 1.5 * exact
            seen.add(exact < ALPHA)
        else:
            assert approximate >= exact
    assert seen == {True, False}


def test_many_ties_make_the_test_no_duller(monkeypatch):
    base, new = np.repeat([0.0, 1.0], [40, 10]), np.repeat([0.0, 1.0], [25, 25])
    approximate = rank_test(base, new)
    monkeypatch.setattr(inference, "_EXACT_PAIRS", 2500)
    assert approximate == pytest.approx(rank_test(base, new), rel=0.5)


@pytest.mark.parametrize("n", [5, 50])
def test_equal_values_are_no_difference(n):
    assert rank_test(np.full(n, 7.0), np.full(n, 7.0)) == 1


@pytest.mark.parametrize("n", [10, 40])
def test_the_test_has_two_sides(n):
    low, high = np.arange(n) + 0.0, np.arange(n) + 0.3 * n + 0.5
    assert rank_test(low, high) == pytest.approx(rank_test(high, low))
    assert rank_test(low, high) < 0.1


def test_holm():
    assert holm([], 0) == holm([], 9) == ()
    assert holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8], 2) == (1, 1)
    assert holm([0.01, 0.005], 4) == holm([0.01, 0.005, 1, 1], 4)[:2]


@pytest.mark.parametrize("tests", [1, 6, 27, 60])
def test_the_smallest_number_of_runs_is_the_one_that_can_answer(tests):
    n = smallest_runs(tests)
    corrected = [rank_test(np.arange(size) + 0.0, np.arange(size) + 100.0) * tests for size in (n - 1, n)]
    assert corrected[1] <= ALPHA < corrected[0]


# Both together: what may be named, and what must be ---------------------------------------------------------

NESTED = ["start.a", "start.a.b", "start.a.b.c", "start.a.d"]
FLAT = [f"start.p{i}" for i in range(21)]


def noisy(rng, n=30, added_ms=0.0):
    """Runs of 25 heavy-tailed phases; that of start.a.b.c is 20 ms give or take 2, and what is added."""
    own = {phase: heavy(rng, n) * 0.1 for phase in (*NESTED, *FLAT)}
    own["start.a.b.c"] = rng.normal(20, 2, n) + added_ms
    return [a_run({phase: times[i] for phase, times in own.items()}) for i in range(n)]


def marked(comparison):
    return [row.id for one in comparison.operations for row in one.rows if row.is_marked]


def test_equal_arms_hardly_ever_show_a_difference():
    rng = np.random.default_rng(20)
    runs = np.array(noisy(rng, 400), dtype=object)
    comparisons = []
    for _ in range(100):
        drawn = rng.permutation(runs)
        comparisons.append(compare(arm(drawn[:30]), arm(drawn[30:60])))
    # 27 rows; in start.a and start.a.b are others.
    assert {one.tests for one in comparisons} == {29}
    assert sum(bool(marked(one)) for one in comparisons) <= 5
    assert sum(bool(regressions(one, 0)) for one in comparisons) <= 5


def test_five_milliseconds_are_found_where_they_are_and_nowhere_else():
    rng = np.random.default_rng(21)
    for _ in range(20):
        comparison = compare(arm(noisy(rng)), arm(noisy(rng, added_ms=5)))
        found = marked(comparison)
        assert "start.a.b.c" in found
        assert set(found) <= {"start", "start.a", "start.a.b", "start.a.b.c"}
        first = comparison.operations[0].rows[1]
        assert (first.id, first.verdict) == ("start.a.b.c", Verdict.SLOWER)
        assert first.contribution_ns == pytest.approx(5 * MS, rel=0.4)


def nested(rng, own_ms, n=30, *, inner=Evidence.KERNEL):
    """Runs of start.a, whose own time is steady, and start.a.b in it, which is not."""
    runs = []
    for _ in range(n):
        run = a_run({"start.a": rng.normal(own_ms, 0.5), "start.a.b": rng.uniform(50, 150)})
        operation, outer, within = run.phases
        runs.append(replace(run, phases=(operation, outer, replace(within, evidence=inner))))
    return runs


def test_what_is_in_a_phase_does_not_hide_what_became_of_its_own_time():
    rng = np.random.default_rng(22)
    row = rows_of(nested(rng, 10), nested(rng, 15))["start.a"]
    assert (row.verdict, row.own_verdict, row.is_marked) == (Verdict.NO_DIFFERENCE, Verdict.SLOWER, True)
    assert row.interval_ns[0] < 0 < row.own_interval_ns[0] < 5 * MS < row.own_interval_ns[1]
    assert row.own_p < ALPHA < row.p
    assert verdicts(nested(rng, 10), nested(rng, 10))["start.a"] is Verdict.NO_DIFFERENCE


def test_a_phase_with_nothing_in_it_is_tested_once():
    row = rows_of(spread(around_ms=10), spread(around_ms=15))["start.mount"]
    assert (row.own_verdict, row.own_p, row.own_interval_ns) == (row.verdict, row.p, row.interval_ns)


def test_own_times_are_not_compared_if_what_is_in_the_phase_is_measured_in_two_ways():
    rng = np.random.default_rng(23)
    row = rows_of(nested(rng, 10), nested(rng, 15, inner=Evidence.FUNCTION))["start.a"]
    assert (row.own_verdict, row.own_p, row.own_interval_ns) == (Verdict.OTHER_EVIDENCE, None, None)
    assert row.verdict is Verdict.NO_DIFFERENCE


def test_the_sign_of_an_own_time_stands_with_it():
    rng = np.random.default_rng(22)
    comparison = compare(arm(nested(rng, 10)), arm(nested(rng, 15)))
    line = next(line for line in FORMATS["text"](comparison, Page()).splitlines() if line.startswith("  a "))
    assert re.search(r"▲ \+\d\.\d ms  █", line)
    assert line.count("▲") == 1


# How many tests, and how many runs they need ----------------------------------------------------------------


def rate(tests):
    """The rule of docs/contract.md, word for word."""
    return next(n for n in itertools.count(1) if 2 / math.comb(2 * n, n) <= ALPHA / tests)


def seen_in(phases, runs):
    """So many runs of 20 phases of a millisecond each, in which these phases (ms) were seen too."""
    return [a_run({**{f"start.p{i}": 1.0 + place / 1000 for i in range(20)}, **phases}) for place in range(runs)]


#: Rows that are never tested: they appeared, were measured in two ways, or are as short as their probes.
UNTESTED = 50


def untested(kind, runs):
    """Two arms of 20 phases that can be tested, and UNTESTED that cannot."""
    more = {f"start.{kind}_{i}": 0.002 for i in range(UNTESTED)}
    base, new = seen_in({} if kind is Verdict.APPEARED else more, runs), seen_in(more, runs)
    if kind is Verdict.APPEARED:
        return base, new
    evidence = (Evidence.FUNCTION if kind is Verdict.AT_FLOOR else Evidence.KERNEL, Evidence.FUNCTION)
    return tuple(
        [
            replace(run, phases=(*run.phases[:21], *(replace(one, evidence=how) for one in run.phases[21:])))
            for run in arm
        ]
        for arm, how in zip((base, new), evidence, strict=True)
    )


@pytest.mark.parametrize("kind", [Verdict.APPEARED, Verdict.OTHER_EVIDENCE, Verdict.AT_FLOOR])
def test_what_is_never_tested_makes_nobody_record_more_runs(kind):
    base, new = untested(kind, 8)
    # The operation and its 20 phases; what is left over too, unless the phases are measured in two ways.
    tests = 21 if kind is Verdict.OTHER_EVIDENCE else 22
    comparison = compare(arm(base), arm(new))
    assert (comparison.tests, comparison.needed_runs) == (tests, rate(tests)) == (tests, 8)
    assert sum(row.p is not None for row in comparison.operations[0].rows) == tests
    assert sum(row.verdict is kind for row in comparison.operations[0].rows) >= UNTESTED


@pytest.mark.parametrize("runs", [1, 3, 7, 8, 40])
@pytest.mark.parametrize("more", [0, 12, 44, 45, 80])
def test_what_is_corrected_for_what_is_told_and_what_is_needed_are_one(runs, more):
    phases = {f"start.q{i}": 1.0 for i in range(more)}
    slower = {**phases, "start.slow": 1.0}
    base = [a_run({f"start.p{i}": 1.0 for i in range(20)} | slower) for _ in range(runs)]
    new = [a_run({f"start.p{i}": 1.0 for i in range(20)} | slower | {"start.slow": 9.0}) for _ in range(runs)]
    comparison = compare(arm(base), arm(new))
    document = json.loads(FORMATS["json"](comparison, Page()))["method"]
    tests = 23 + more
    assert (document["tests"], document["needed_runs"]) == (tests, rate(tests))
    slow = {row.id: row for row in comparison.operations[0].rows}["start.slow"]
    if runs >= rate(tests):
        # Separate as they can be, twice (itself and the operation): the first of all tests has the full correction.
        alone = rank_test(np.zeros(runs), np.ones(runs))
        assert slow.p == pytest.approx(min(1, alone * tests))
        assert slow.verdict is Verdict.SLOWER
        assert f"Holm over {tests} tests), which needs {rate(tests)} runs" in flat(comparison)
    else:
        assert (slow.p, slow.verdict) == (None, Verdict.NOT_ENOUGH_RUNS)
        assert f"(Holm over {tests} tests) needs {rate(tests)} runs" in flat(comparison)


def flat(comparison):
    """The text without its line ends."""
    return " ".join(FORMATS["text"](comparison, Page()).split())


def test_a_phase_of_few_runs_counts_whether_it_is_seen_often_enough_or_not():
    seldom = [{"start.seldom": 5.0}] * 7 + [{}] * 13
    runs = [a_run({"start.mount": 10.0 + place / 1000, **more}) for place, more in enumerate(seldom)]
    comparison = compare(arm(runs), arm(runs))
    # start.seldom has an own time of its own: none in the runs without it.
    assert (comparison.tests, comparison.needed_runs) == (5, rate(5))
    few = compare(arm(runs[3:]), arm(runs[3:]))
    assert (few.tests, few.needed_runs) == (5, rate(5))
    assert {row.id: row.verdict for row in few.operations[0].rows}["start.seldom"] is Verdict.NOT_ENOUGH_RUNS


def test_which_rows_are_tested_does_not_depend_on_who_was_slower():
    rng = np.random.default_rng(24)
    # Around the floor of 5 us: dealt one way both medians are below it, dealt another way one is above.
    runs = [
        a_run(
            {f"start.p{i}": us / 1000 for i, us in enumerate(rng.lognormal(1.6, 0.5, 20))}, evidence=Evidence.FUNCTION
        )
        for _ in range(60)
    ]
    tested = set()
    for _ in range(50):
        drawn = rng.permutation(np.array(runs, dtype=object))
        comparison = compare(arm(drawn[:30]), arm(drawn[30:]))
        rows = comparison.operations[0].rows
        tested.add((comparison.tests, frozenset(row.id for row in rows if row.p is not None)))
        assert comparison.tests == sum(row.p is not None for row in rows)
    assert len(tested) == 1


# Rows ------------------------------------------------------------------------------------------------------


def test_a_row_tells_medians_difference_growth_and_interval():
    row = rows_of(spread(around_ms=10, n=21), spread(around_ms=15, n=21))["start.mount"]
    assert (row.base_n, row.new_n) == (21, 21)
    assert row.base_median_ns == pytest.approx(10.1 * MS)
    assert row.new_median_ns == pytest.approx(15.15 * MS)
    assert row.difference_ns == pytest.approx(5.05 * MS)
    assert row.growth == pytest.approx(0.5)
    low, high = row.interval_ns
    assert low < row.difference_ns < high
    assert row.verdict is Verdict.SLOWER


def test_faster_is_the_other_way_round():
    assert verdicts(spread(around_ms=15), spread(around_ms=10))["start.mount"] is Verdict.FASTER


def test_rows_are_ranked_by_own_time_behind_the_operation():
    names = ("start.small", "start.outer", "start.outer.large", "start.faster")
    base = [a_run(dict(zip(names, (1, 5, 10, 9), strict=True))) for _ in range(10)]
    new = [a_run(dict(zip(names, (2, 5, 30, 4), strict=True))) for _ in range(10)]
    (operation,) = compare(arm(base), arm(new)).operations
    assert [(row.id, row.contribution_ns / MS) for row in operation.rows] == [
        ("start", 16),
        ("start.outer.large", 20),
        ("start.faster", -5),
        ("start.small", 1),
        ("start.outer", 0),
        (UNATTRIBUTED, 0),
    ]
    assert operation.rows[4].difference_ns == 20 * MS


def test_only_runs_that_went_well_are_compared_and_the_others_are_counted():
    failed = spread(around_ms=900, n=30, outcome="failed")
    comparison = compare(arm(spread()), arm([*spread(), *failed, *spread(n=2, outcome="unfinished")]))
    (operation,) = comparison.operations
    assert (operation.new.compared, operation.new.outcomes) == (20, {"ok": 20, "failed": 30, "unfinished": 2})
    assert {row.verdict for row in operation.rows} == {Verdict.NO_DIFFERENCE}


def test_runs_without_times_are_not_compared():
    comparison = compare(arm(spread()), arm([replace(run, duration_ns=0) for run in spread()]))
    assert comparison.operations[0].new.compared == 0
    assert {row.verdict for row in comparison.operations[0].rows} == {Verdict.NOT_ENOUGH_RUNS}
    assert {row.contribution_ns for row in comparison.operations[0].rows} == {None}


def test_phases_that_appear_and_disappear_are_said_and_do_not_make_anything_significant():
    before = {"start.old": 3.0, "start.same": 5.0}
    after = {"start.new": 4.0, "start.same": 5.0}
    rows = rows_of([a_run(before)] * 12, [a_run(after)] * 9 + [a_run({"start.same": 5.0})] * 3)
    old, new = rows["start.old"], rows["start.new"]
    assert (old.verdict, old.base_n, old.new_n, old.contribution_ns) == (Verdict.DISAPPEARED, 12, 0, -3 * MS)
    assert (new.verdict, new.base_n, new.new_n, new.contribution_ns) == (Verdict.APPEARED, 0, 9, 4 * MS)
    assert (new.difference_ns, new.growth, new.p, new.interval_ns) == (None, None, None, None)


def test_too_few_runs_are_not_guessed_about():
    needed = compare(arm(spread()), arm(spread())).needed_runs
    few = rows_of(spread(around_ms=1, n=needed - 1), spread(around_ms=100, n=needed - 1))
    assert {row.verdict for row in few.values()} == {Verdict.NOT_ENOUGH_RUNS}
    assert {(row.p, row.interval_ns) for row in few.values()} == {(None, None)}
    enough = verdicts(spread(around_ms=1, n=needed), spread(around_ms=100, n=needed))
    assert enough["start.mount"] is Verdict.SLOWER
    # It takes as many with an arm that is empty.
    assert compare(arm(spread()), arm([])).needed_runs == needed


def test_a_phase_of_few_runs_is_not_guessed_about_either():
    seldom = [a_run({"start.mount": 10.0 + i, "start.seldom": 1.0}) for i in range(3)]
    rows = rows_of([*spread(), *seldom], [*spread(), *seldom])
    assert rows["start.seldom"].verdict is Verdict.NOT_ENOUGH_RUNS
    assert rows["start.mount"].verdict is Verdict.NO_DIFFERENCE


def test_what_is_measured_in_two_ways_is_not_compared():
    kernel, function = spread(around_ms=10), spread(around_ms=20, evidence=Evidence.FUNCTION)
    assert verdicts(kernel, function) == {
        "start": Verdict.SLOWER,
        "start.mount": Verdict.OTHER_EVIDENCE,
        UNATTRIBUTED: Verdict.OTHER_EVIDENCE,
    }
    # One run of twenty does not make an arm another one.
    assert verdicts(kernel, [*spread(around_ms=20, n=19), function[0]])["start.mount"] is Verdict.SLOWER


def test_what_is_left_over_is_not_compared_if_only_one_arm_has_functions():
    new = spread("start.verify", evidence=Evidence.FUNCTION)
    assert verdicts(spread(), new)[UNATTRIBUTED] is Verdict.OTHER_EVIDENCE
    assert verdicts(spread(), spread("start.network"))[UNATTRIBUTED] is Verdict.NO_DIFFERENCE


def test_probes_are_not_compared_with_probes():
    short, shorter = (spread(around_ms=us / 1000, evidence=Evidence.FUNCTION) for us in (4, 2))
    assert verdicts(shorter, short)["start.mount"] is Verdict.AT_FLOOR
    assert verdicts(shorter, spread(around_ms=1, evidence=Evidence.FUNCTION))["start.mount"] is Verdict.SLOWER


def test_a_difference_of_ranks_alone_is_none():
    # Half of each arm at 10 ms; the other half below that in one, above it in the other: the medians are the same.
    base = [a_run({"start.x": ms}) for ms in [10.0] * 21 + [1 + i / 10 for i in range(19)]]
    new = [a_run({"start.x": ms}) for ms in [10.0] * 21 + [90 + i / 10 for i in range(19)]]
    row = rows_of(base, new)["start.x"]
    assert row.p < ALPHA
    assert row.difference_ns == 0
    assert row.verdict is Verdict.NO_DIFFERENCE


def test_a_repeated_phase_counts_with_all_its_time():
    run = a_run({"start.x": 10.0})
    twice = replace(run, phases=(*run.phases, run.phases[1]))
    assert rows_of([twice] * 9, [run] * 9)["start.x"].difference_ns == -10 * MS


def test_operations_are_compared_apart_and_corrected_together():
    runs = [*spread(), *spread("create.root", operation="create")]
    comparison = compare(arm(runs), arm(runs))
    assert [one.operation for one in comparison.operations] == ["start", "create"]
    assert comparison.tests == 6


def test_departures_of_one_arm_only_are_told():
    missing, repeated, common = (
        Departure(kind, "start.mount", kind.value)
        for kind in (DepartureKind.MISSING, DepartureKind.REPEATED, DepartureKind.OUT_OF_ORDER)
    )
    base = [*spread(n=9, departures=(common,)), *spread(n=2, departures=(missing,))]
    new = [*spread(n=9, departures=(common,)), *spread(n=3, departures=(repeated,))]
    # Not those of a failure: it misses phases by nature.
    broken = spread(n=4, outcome="failed", departures=(Departure(DepartureKind.MISSING, "start.spec", "no"),))
    (operation,) = compare(arm(base), arm([*new, *broken])).operations
    told = [(change.kind, change.base_runs, change.new_runs) for change in operation.departures]
    assert told == [(DepartureKind.REPEATED, 0, 3), (DepartureKind.MISSING, 2, 0)]


def test_what_else_differs_is_named():
    base = arm(
        spread(image="app:1"),
        host={"kernel": "6.1", "arch": "x86_64"},
        engine={"version": "20", "components": {"runc": "1.1", "containerd": "1.6"}, "runtimes": ["runc"]},
    )
    new = arm(
        [*spread(image="app:1"), *spread(image="app:2")],
        host={"kernel": "6.2", "arch": "x86_64"},
        engine={"version": "20", "components": {"runc": "1.2", "containerd": "1.6"}, "runtimes": ["runc", "kata"]},
    )
    assert compare(base, new).differences == (
        Difference("host.kernel", "6.1", "6.2"),
        Difference("engine.components.runc", "1.1", "1.2"),
        Difference("engine.runtimes", "runc", "runc, kata"),
        Difference("image", "app:1", "app:1, app:2"),
    )
    assert compare(base, base).differences == ()


# What fails a comparison -----------------------------------------------------------------------------------


def failures(base, new, above_percent):
    return [row.id for _, row in regressions(compare(arm(base), arm(new)), above_percent)]


def test_what_grew_more_than_allowed_fails():
    base, new = spread(around_ms=10), spread(around_ms=15)
    assert failures(base, new, 40) == ["start", "start.mount"]
    assert failures(base, new, 48) == ["start.mount"]
    assert failures(base, new, 51) == []
    assert failures(new, base, 0) == []


def test_a_phase_that_does_not_matter_does_not_fail():
    base, new = ([a_run({"start.most": 100.0, "start.tiny": ms}) for _ in range(12)] for ms in (0.1, 0.9))
    assert rows_of(base, new)["start.tiny"].verdict is Verdict.SLOWER
    assert failures(base, new, 5) == []
    assert failures(base, [a_run({"start.most": 100.0, "start.tiny": 1.2})] * 12, 5) == ["start.tiny"]


def test_it_is_known_what_cannot_be_known():
    def open_questions(base, new):
        return [one.operation for one in undecided(compare(arm(base), arm(new)))]

    create = spread("create.root", operation="create")
    assert open_questions([*spread(), *create], [*spread(), *create]) == []
    assert open_questions([*spread(), *create], [*spread(), *create[:2]]) == ["create"]
    assert open_questions([*spread(), *create], spread()) == ["create"]
    # A few runs that BASE has by the way are no question.
    assert open_questions([*spread(), *create[:2]], spread()) == []
    assert open_questions(spread(n=3), spread(n=3)) == ["start"]


# Every format over the same comparisons ---------------------------------------------------------------------

GROWN = a_run({"start.mount": 10.0, "start.network": 5.0, "start.network.hook": 30.0})
COMPARISONS = {
    "empty": compare(arm([]), arm([])),
    "slower": compare(arm(spread(), "a.observe"), arm(spread(around_ms=15), "b.observe")),
    "faster": compare(arm(spread(around_ms=15)), arm(spread())),
    "equal": compare(arm(spread()), arm(spread())),
    "few": compare(arm(spread(n=1)), arm(spread(n=2))),
    "one-sided": compare(arm(spread()), arm([])),
    "appeared": compare(arm(spread()), arm([GROWN] * 12)),
    "departed": compare(
        arm(spread()), arm(spread(departures=(Departure(DepartureKind.REPEATED, "start.mount", "twice"),)))
    ),
    "hostile": compare(
        arm(spread(), HOSTILE, host={"hostname": HOSTILE}, warnings=(HOSTILE,)),
        arm(
            [*spread(image=HOSTILE, network=HOSTILE), *spread(n=1, outcome=HOSTILE)],
            HOSTILE * 3,
            engine={"version": HOSTILE},
            loss=Loss(ring_buffer=3),
        ),
    ),
}


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("unicode", [True, False])
def test_every_format_writes_every_comparison_harmlessly(form, name, unicode):
    out = FORMATS[form](COMPARISONS[name], Page(unicode=unicode))
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    assert all(letter.isprintable() for letter in out.replace("\n", ""))
    assert unicode or out.isascii()


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_page(name, width):
    lines = FORMATS["text"](COMPARISONS[name], Page(width=width)).splitlines()
    assert [line for line in lines if len(line) > width and "x1b" not in line] == []


@pytest.mark.parametrize("name", COMPARISONS)
def test_colours_change_nothing_but_the_colour(name):
    coloured = FORMATS["text"](COMPARISONS[name], Page(colour=True))
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == FORMATS["text"](COMPARISONS[name], Page())
    assert "\x1b[" in coloured


def test_the_text_says_it_first_and_then_shows_where():
    lines = FORMATS["text"](COMPARISONS["slower"], Page()).splitlines()
    assert lines[:2] == ["BASE  a.observe", "NEW   b.observe"]
    assert lines[3] == "start · ▲ slower by 5.0 ms (+45.5%)"
    assert lines[4] == "BASE: 20 of 20 runs compared · NEW: 20 of 20 runs compared"
    (mount,) = [line for line in lines if line.startswith("  mount ")]
    assert mount.split()[:10] == ["mount", "10.1", "ms", "15.1", "ms", "▲", "+5.0", "ms", "+50.0%", "+5.0"]
    assert "█" in mount


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "nothing to compare"),
        ("faster", "start · ▼ faster by 5.0 ms"),
        ("equal", "start · no difference found"),
        ("few", "start · not enough runs: 1 and 2, each needs 6"),
        ("one-sided", "NEW: 0 of 0 runs compared"),
        ("appeared", "appeared"),
        ("departed", "departure appeared in 20 of 20 runs: repeated: twice"),
        ("hostile", "NEW: data was lost while recording"),
        ("hostile", "not the same engine.version: unknown →"),
    ],
)
def test_the_text_says_what_is_the_case(name, words):
    assert words in FORMATS["text"](COMPARISONS[name], Page(width=120))


def test_bars_are_as_long_as_the_contribution_and_say_nothing_that_may_be_chance():
    base = [a_run({"start.a": 1.0, "start.b": 1.0})] * 12
    new = [a_run({"start.a": 31.0, "start.b": 11.0})] * 12
    text = FORMATS["text"](compare(arm(base), arm(new)), Page(unicode=False))
    long, short = (next(line for line in text.splitlines() if line.startswith(f"  {name} ")) for name in "ab")
    assert long.count("#") == pytest.approx(3 * short.count("#"), abs=3)
    for name in ("few", "equal"):
        assert "#" not in FORMATS["text"](COMPARISONS[name], Page(unicode=False))


def test_json_has_everything():
    document = json.loads(FORMATS["json"](COMPARISONS["slower"], Page()))
    assert set(document) == {"schema_version", "base", "new", "differences", "method", "operations"}
    assert document["schema_version"] == 1
    assert document["base"]["name"] == "a.observe"
    assert document["method"] == {
        "test": "mann-whitney",
        "correction": "holm",
        "alpha": 0.01,
        "confidence": 0.95,
        "resamples": 10000,
        "tests": 3,
        "needed_runs": 6,
    }
    (operation,) = document["operations"]
    assert operation["new"] == {"compared": 20, "outcomes": {"ok": 20}}
    assert [(row["id"], row["verdict"]) for row in operation["rows"]] == [
        ("start", "slower"),
        ("start.mount", "slower"),
        (UNATTRIBUTED, "no_difference"),
    ]
    assert len(operation["rows"][0]["interval_ns"]) == 2


def test_csv_has_a_line_a_row_and_empty_cells_for_what_is_not_known():
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](COMPARISONS["appeared"], Page()))))
    assert [line["phase"] for line in lines] == [row.id for row in COMPARISONS["appeared"].operations[0].rows]
    hook = next(line for line in lines if line["phase"] == "start.network.hook")
    assert (hook["operation"], hook["base_n"], hook["new_n"], hook["verdict"]) == ("start", "0", "12", "appeared")
    assert (hook["base_median_ns"], hook["difference_ns"], hook["interval_low_ns"], hook["p"]) == ("", "", "", "")
    assert float(hook["contribution_ns"]) == 30 * MS


def test_markdown_keeps_text_from_outside_in_code_spans():
    out = FORMATS["markdown"](COMPARISONS["hostile"], Page())
    outside_of_spans = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", out)
    assert "img" in out
    assert "img" not in outside_of_spans
    tables = [line for line in FORMATS["markdown"](COMPARISONS["slower"], Page()).splitlines() if line[:1] == "|"]
    assert len(tables) == 2 + 3
    assert {line.count("|") for line in tables} == {9}
    assert "**`start.mount`**" in tables[3]


# Recordings ------------------------------------------------------------------------------------------------


def stretched(path, factor, gaps=()):
    """The fixture with all its times stretched, and (boot clock, length) of time during which nothing happened."""
    recording = Recording.open(FIXTURE)
    origin_ns = recording.header.boot_time_ns

    def moved(times_ns):
        times_ns = np.asarray(times_ns, dtype=np.int64)
        late_ns = sum(length_ns * (times_ns >= at_ns) for at_ns, length_ns in gaps)
        return (origin_ns + (times_ns - origin_ns) * factor + late_ns).astype(np.int64)

    with RecordingWriter(path, recording.header) as writer:
        for item in recording.items():
            if isinstance(item, EventBatch):
                rows = item.rows.copy()
                rows["time_ns"] = moved(item.rows["time_ns"])
                ends = moved(item.rows["time_ns"] + item.rows["duration_ns"])
                rows["duration_ns"] = ends - rows["time_ns"].astype(np.int64)
                writer.write(EventBatch(rows, item.strings))
            else:
                writer.write(replace(item, time_ns=int(moved(item.time_ns))))
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Directories with four recordings of three creates and three starts each: `base`, `again`, `slow`."""
    root = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(4)
    for name, factor in (("base", 1), ("again", 1), ("slow", 2)):
        (root / name).mkdir()
        (root / name / "notes.txt").write_text("not a recording")
        for i in range(4):
            stretched(root / name / f"{i}.observe", factor * rng.lognormal(0, 0.02))
    return root


def test_recordings_of_the_same_are_no_different(recordings, capsys):
    assert main(["compare", str(recordings / "base"), str(recordings / "again"), "--fail-above", "0"]) == 0
    seen = capsys.readouterr()
    assert seen.out.count("no difference found") == 2
    assert seen.err == ""


def test_a_slower_engine_is_found_and_fails_with_five(recordings, capsys):
    arguments = ["compare", str(recordings / "base"), str(recordings / "slow")]
    assert main([*arguments, "--fail-above", "50", "-f", "json"]) == 5
    seen = capsys.readouterr()
    document = json.loads(seen.out)
    for operation in document["operations"]:
        head = operation["rows"][0]
        assert operation["base"]["compared"] == operation["new"]["compared"] == 12
        assert (head["verdict"], head["growth"]) == ("slower", pytest.approx(1, abs=0.15))
    told = [line for line in seen.err.splitlines() if "--fail-above allows 50%" in line]
    assert any(line.startswith("observe: create: the median grew by ") for line in told)
    assert any(line.startswith("observe: create.rw_layer: the median grew by ") for line in told)
    assert len(told) == len(seen.err.splitlines())


def test_it_fails_only_above_the_limit_only_if_slower_and_only_if_asked(recordings, capsys):
    base, slow = str(recordings / "base"), str(recordings / "slow")
    assert main(["compare", base, slow, "--fail-above", "200"]) == 0
    assert main(["compare", slow, base, "--fail-above", "0"]) == 0
    assert main(["compare", base, slow]) == 0
    assert capsys.readouterr().err == ""


def test_time_added_to_one_phase_is_found_in_it(recordings, tmp_path, capsys):
    assert main(["report", "-f", "json", str(FIXTURE)]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    hooks = [
        span for run in runs for span in run["phases"] if span["id"].endswith(".network_hook") and span["duration_ns"]
    ]
    gaps = [(hook["start_ns"] + hook["duration_ns"] // 2, 400 * MS) for hook in hooks]
    rng = np.random.default_rng(5)
    for i in range(4):
        stretched(tmp_path / f"{i}.observe", rng.lognormal(0, 0.02), gaps)
    assert main(["compare", str(recordings / "base"), str(tmp_path), "-f", "json"]) == 0
    operations = {one["operation"]: one["rows"] for one in json.loads(capsys.readouterr().out)["operations"]}
    assert {row["verdict"] for row in operations["create"]} == {"no_difference"}
    assert operations["start"][0]["verdict"] == "slower"
    slower = {row["id"] for row in operations["start"] if row["verdict"] == "slower"}
    hook = "start.containerd_start.runc_create.network_hook"
    assert hook in slower
    # It interrupts init; and in its middle, dockerd executes itself once more.
    assert all(hook.startswith(phase) or phase.startswith(hook) or phase.endswith(".init") for phase in slower)


def test_too_few_runs_are_an_answer_unless_a_verdict_was_asked_for(recordings, capsys):
    one = str(recordings / "base" / "0.observe")
    assert main(["compare", one, str(FIXTURE)]) == 0
    assert "not enough runs: 3 and 3" in capsys.readouterr().out
    assert main(["compare", one, str(FIXTURE), "--fail-above", "5"]) == 1
    seen = capsys.readouterr()
    assert "not enough runs: 3 and 3" in seen.out
    assert re.fullmatch(r"observe: not enough runs for --fail-above \(create 3 and 3; start 3 and 3\): .*\n", seen.err)


def test_imported_logs_are_not_asked_for_more_runs(tmp_path, capsys):
    imported = tmp_path / "imported.observe"
    log = FIXTURE.with_name("inotify-create-19.03.log")
    assert main(["import", "inotifywait", str(log), "-o", str(imported)]) == 0
    capsys.readouterr()
    for base, new, arms in (
        (imported, imported, "BASE and NEW"),
        (imported, FIXTURE, "BASE"),
        (FIXTURE, imported, "NEW"),
    ):
        said = f"{arms}: imported logs have no times, only an order, and cannot be compared by time; compare what"
        assert main(["compare", str(base), str(new), "--fail-above", "5"]) == 1
        assert capsys.readouterr().err.startswith(f"observe: {said}")
        assert main(["compare", str(base), str(new)]) == 0
        assert capsys.readouterr().err.startswith(f"observe: warning: {said}")


def test_the_comparison_goes_where_it_was_sent(tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert main(["compare", str(FIXTURE), str(FIXTURE), "-f", "csv", "-o", str(out)]) == 0
    assert out.read_text().startswith("operation,phase,")
    assert capsys.readouterr().out == ""
    assert main(["compare", str(FIXTURE), str(FIXTURE), "-o", str(tmp_path / "no" / "where")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_what_cannot_be_read_is_said(tmp_path, capsys):
    assert main(["compare", str(FIXTURE), str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("no recording (*.observe) in it; name a recording, or another directory\n")
    assert main(["compare", str(tmp_path / "none"), str(FIXTURE)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_damaged_recording_is_warned_about(tmp_path, capsys):
    path = tmp_path / "cut.observe"
    data = FIXTURE.read_bytes()
    path.write_bytes(data[: len(data) - 100])
    assert main(["compare", str(FIXTURE), str(path), "-f", "json"]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out)["new"]["loss"]["damaged_bytes"] > 0
    assert all(line.startswith(f"observe: warning: {path}") for line in seen.err.splitlines())
    assert seen.err


@pytest.mark.parametrize("percent", ["-1", "nan", "inf", "much", ""])
def test_a_limit_is_a_percentage(percent, capsys):
    assert main(["compare", "a", "b", f"--fail-above={percent}"]) == 2
    assert "is no percentage" in capsys.readouterr().err
