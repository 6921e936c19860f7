# SPDX-License-Identifier: Apache-2.0
"""Whatever overlaps: on each lane slices nest, none is lost, and the innermost phases share out a run's time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import made_run
from situations import SITUATIONS, situation

from observe.export.nesting import lanes, own_time, pieces
from observe.model import Evidence, Span
from observe.phases import load
from observe.reports.assemble import assemble

INTERVALS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)).map(lambda each: (each[0], each[0] + each[1])))


def played(edges):
    """The intervals that edges describe, by a stack, as a viewer plays them."""
    found, stack, now_ns = [], [], 0
    for edge in edges:
        assert edge.time_ns >= now_ns
        now_ns = edge.time_ns
        if edge.begins:
            stack.append(edge)
        else:
            begin = stack.pop()
            assert begin.item is edge.item
            found.append((begin.time_ns, edge.time_ns))
    assert stack == []
    return found


@given(INTERVALS)
def test_lanes_nest_and_lose_nothing(intervals):
    found = lanes(intervals, lambda interval: interval)
    assert Counter(each for lane in found for each in played(lane)) == Counter(intervals)


@given(INTERVALS)
def test_what_nests_needs_one_lane(intervals):
    nested = [(start // 4 * 4, start // 4 * 4 + 4 - (start % 4) // 2) for start, _ in intervals]
    assert len(lanes(nested, lambda interval: interval)) <= 1


def test_what_crosses_goes_to_the_next_lane():
    found = lanes([(0, 10), (5, 15), (6, 8), (12, 14)], lambda interval: interval)
    assert [sorted(played(lane)) for lane in found] == [[(0, 10), (6, 8), (12, 14)], [(5, 15)]]


def test_of_equals_the_first_is_the_outer_one():
    first, second = ("first", 0, 5), ("second", 0, 5)
    (lane,) = lanes([first, second], lambda item: item[1:])
    assert [(edge.item, edge.begins) for edge in lane] == [
        (first, True), (second, True), (second, False), (first, False)
    ]  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_innermost_phases_share_out_the_time_as_the_report_does(name, tmp_path):
    report, _ = assemble(situation(name, tmp_path), load())
    for run in report.runs:
        own: Counter[str] = Counter()
        cuts = own_time(run)
        for start_ns, end_ns, span in cuts:
            own[span.id] += end_ns - start_ns
        assert own == Counter({span.id: span.self_ns for span in run.phases if span.self_ns})
        assert all(first[1] == second[0] for first, second in pairwise(cuts))
        assert all(first[2] is not second[2] for first, second in pairwise(cuts))


def test_equally_deep_phases_that_overlap():
    def span(name, start_ns, duration_ns):
        return Span(name, "start", "", start_ns, duration_ns, 0, Evidence.KERNEL)

    whole = Span("start", None, "", 0, 100, 0, Evidence.KERNEL)
    phases = (whole, span("start.a", 10, 40), span("start.b", 30, 40), span("start.c", 90, 50))
    run = made_run(1, phases=phases, start_ns=0, duration_ns=100)
    assert [(start, end, span.id) for start, end, span in own_time(run)] == [
        (0, 10, "start"),
        (10, 30, "start.a"),
        (30, 70, "start.b"),
        (70, 90, "start"),
        (90, 100, "start.c"),
    ]


def test_of_phases_that_overlap_the_deeper_one_counts():
    whole = Span("start", None, "", 0, 100, 0, Evidence.KERNEL)
    deep = Span("start.a.x", "start.a", "", 10, 40, 0, Evidence.KERNEL)
    late = Span("start.b", "start", "", 30, 40, 0, Evidence.KERNEL)
    run = made_run(1, phases=(whole, deep, late), start_ns=0, duration_ns=100)
    assert [(start, end, span.id) for start, end, span in own_time(run)][1:3] == [
        (10, 50, "start.a.x"),
        (50, 70, "start.b"),
    ]


def test_a_phase_that_was_not_seen_has_no_piece():
    assert pieces(Span("start.a", "start", "", None, None, None, Evidence.NONE)) == ()
    assert own_time(made_run(1, phases=())) == []
