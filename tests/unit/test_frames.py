# SPDX-License-Identifier: Apache-2.0
"""Entries and returns become frames, whatever panics, growing stacks and losses leave of them."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import batch_of

from observe.correlate.frames import Frame, FrameMatcher, frames_of
from observe.correlate.rows import Row, rows_of
from observe.model import Event, EventBatch, Kind

NAMES = {1: "outer", 2: "inner", 3: "innermost"}
OUTER, INNER, INNERMOST = NAMES
P, G = 10, 0xC000000001
END_NS = 1_000


def row(kind: Kind, at_ns: int, number: int = 0, depth: int = 0, *, g: int = G, pid: int = P, tid: int = P) -> Row:
    event = Event(at_ns, kind, goroutine=g, ret=depth, flags=number, pid=pid, tid=tid)
    return next(rows_of(EventBatch.of([event])))


def enter(*values: int, **others: int) -> Row:
    """At a time, a function, at a depth."""
    return row(Kind.FUNCTION_ENTRY, *values, **others)


def leave(*values: int, **others: int) -> Row:
    return row(Kind.FUNCTION_RETURN, *values, **others)


def found(*rows: Row) -> list[tuple[str, int, int, bool]]:
    return [(f.function, f.start_ns, f.end_ns, f.complete) for f in frames_of(batch_of(rows), NAMES, END_NS)]


def test_an_entry_and_its_return_are_a_frame():
    assert frames_of(batch_of([enter(5, OUTER, 64), leave(9, OUTER, 64)]), NAMES, END_NS) == (
        Frame("outer", P, G, depth_bytes=64, start_ns=5, end_ns=9, complete=True),
    )


def test_calls_inside_calls_are_a_tree_and_come_by_their_start():
    rows = [enter(1, OUTER, 64), enter(2, INNER, 128), leave(3, INNER, 128), enter(4, INNER, 128)]
    rows += [enter(5, INNERMOST, 200), leave(6, INNERMOST, 200), leave(7, INNER, 128), leave(8, OUTER, 64)]
    outer, first, second, innermost = frames = frames_of(batch_of(rows), NAMES, END_NS)
    assert [f.function for f in frames] == ["outer", "inner", "inner", "innermost"]
    assert all(outer.encloses(f) for f in (first, second, innermost))
    assert second.encloses(innermost)
    assert not first.encloses(innermost)
    assert not any(f.encloses(outer) or f.encloses(f) for f in frames)


@pytest.mark.parametrize(
    "changes", [{"pid": 11}, {"goroutine": 8}, {"start_ns": 0}, {"end_ns": 10}, {"depth_bytes": 64}]
)
def test_a_frame_encloses_what_is_deeper_on_its_own_stack_while_it_runs(changes):
    outer, inner = Frame("outer", P, G, 64, 1, 9), Frame("inner", P, G, 128, 1, 9)
    assert outer.encloses(inner)
    assert not outer.encloses(inner._replace(**changes))


def test_another_function_as_deep_is_another_frame():
    assert found(enter(1, OUTER, 64), enter(3, INNER, 64), leave(9, INNER, 64)) == [
        ("outer", 1, 3, False),
        ("inner", 3, 9, True),
    ]


def test_a_function_whose_beginning_ran_twice_was_entered_once():
    """Go runs it again when the stack has grown: same frame, and it began the first time."""
    assert found(enter(1, OUTER, 64), enter(3, OUTER, 64), leave(9, OUTER, 64)) == [("outer", 1, 9, True)]


def test_a_function_called_again_is_another_frame():
    rows = [enter(1, OUTER, 64), leave(2, OUTER, 64), enter(3, OUTER, 64), leave(4, OUTER, 64)]
    assert found(*rows) == [("outer", 1, 2, True), ("outer", 3, 4, True)]


def test_a_function_that_calls_itself_has_a_frame_each_time():
    rows = [enter(1, OUTER, 64), enter(2, OUTER, 128), leave(3, OUTER, 128), leave(4, OUTER, 64)]
    assert found(*rows) == [("outer", 1, 4, True), ("outer", 2, 3, True)]


def test_what_a_panic_left_ends_when_its_caller_returns():
    rows = [enter(1, OUTER, 64), enter(2, INNER, 128), enter(3, INNERMOST, 200), leave(9, OUTER, 64)]
    assert found(*rows) == [("outer", 1, 9, True), ("inner", 2, 9, False), ("innermost", 3, 9, False)]


@pytest.mark.parametrize("depth", [128, 100])
def test_what_a_panic_left_ends_when_something_is_called_as_deep_or_less(depth):
    rows = [enter(1, OUTER, 64), enter(2, INNER, 128), enter(3, INNERMOST, 200)]
    rows += [enter(5, INNERMOST, depth), leave(6, INNERMOST, depth), leave(9, OUTER, 64)]
    assert found(*rows) == [
        ("outer", 1, 9, True),
        ("inner", 2, 5, False),
        ("innermost", 3, 5, False),
        ("innermost", 5, 6, True),
    ]


def test_a_goroutine_that_ended_inside_leaves_nothing_to_the_next_one_of_that_address():
    """Goexit: the g is used again, from the bottom of a stack."""
    rows = [enter(1, OUTER, 300), enter(2, INNER, 400), enter(5, OUTER, 64), leave(6, OUTER, 64)]
    assert found(*rows) == [("outer", 1, 5, False), ("inner", 2, 5, False), ("outer", 5, 6, True)]


@pytest.mark.parametrize("kind", [Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT])
def test_a_process_that_executes_or_exits_ends_its_frames_and_nobody_elses(kind):
    rows = [enter(1, OUTER, 64, g=7), enter(2, INNER, 64, g=8), enter(3, OUTER, 64, g=7, pid=11), row(kind, 5)]
    rows += [leave(6, OUTER, 64, g=7, pid=11)]
    assert found(*rows) == [("outer", 1, 5, False), ("inner", 2, 5, False), ("outer", 3, 6, True)]


@pytest.mark.parametrize("kind", [Kind.SCHED_PROCESS_FORK, Kind.MOUNT, Kind.API_RESPONSE, Kind.INOTIFY])
def test_no_other_event_ends_a_frame(kind):
    assert found(enter(1, OUTER, 64), row(kind, 5), leave(6, OUTER, 64)) == [("outer", 1, 6, True)]


@pytest.mark.parametrize(
    "alone",
    [
        leave(5, INNER, 64),  # never entered
        leave(5, OUTER, 128),  # only at another depth
        leave(5, OUTER, 64, g=8),  # only on another goroutine
        leave(5, OUTER, 64, pid=11),  # only in another process
        leave(5, OUTER, 64, g=0),  # nobody knows on which
    ],
)
def test_a_return_without_its_entry_is_counted_and_disturbs_nothing(alone):
    matcher = FrameMatcher(NAMES)
    closed = [f for each in (enter(1, OUTER, 64), alone, leave(9, OUTER, 64)) for f in matcher.feed(batch_of([each]))]
    assert [(f.start_ns, f.end_ns, f.complete) for f in closed] == [(1, 9, True)]
    assert matcher.unmatched_returns == 1


def test_goroutines_and_processes_are_kept_apart_at_equal_depth():
    rows = [enter(1, OUTER, 64, g=7), enter(2, OUTER, 64, g=8), enter(3, OUTER, 64, g=7, pid=11)]
    rows += [leave(4, OUTER, 64, g=7), leave(5, OUTER, 64, g=7, pid=11), leave(6, OUTER, 64, g=8)]
    assert found(*rows) == [("outer", 1, 4, True), ("outer", 2, 6, True), ("outer", 3, 5, True)]
    first, second, third = frames_of(batch_of(rows), NAMES, END_NS)
    assert not any(a.encloses(b) for a in (first, second, third) for b in (first, second, third))


def test_a_goroutine_may_go_on_on_another_thread():
    rows = [enter(1, OUTER, 64, tid=20), enter(2, INNER, 128, tid=21), leave(3, INNER, 128, tid=22)]
    assert found(*rows, leave(4, OUTER, 64, tid=20)) == [("outer", 1, 4, True), ("inner", 2, 3, True)]


def test_what_is_open_at_the_end_ends_there():
    rows = [enter(1, OUTER, 64), enter(2, INNER, 128), enter(3, OUTER, 64, g=8)]
    assert found(*rows) == [
        ("outer", 1, END_NS, False),
        ("inner", 2, END_NS, False),
        ("outer", 3, END_NS, False),
    ]


def test_names_may_come_later_and_a_function_without_one_has_its_number():
    names: dict[int, str] = {}
    matcher = FrameMatcher(names)
    matcher.feed(batch_of([enter(1, 9, 64)]))
    names[8] = "late"
    matcher.feed(batch_of([enter(2, 8, 128)]))
    assert [f.function for f in matcher.feed(batch_of([leave(3, 9, 64)]))] == ["late", "function 9"]


# --- any program ------------------------------------------------------------------------------------------------------


@st.composite
def programs(draw):
    """Rows of goroutines that call and return as they like, in turn; and the frames that this is."""
    stacks: dict[int, list[tuple[int, int, int]]] = {7: [], 8: []}
    rows, frames = [], []
    steps = st.tuples(st.sampled_from([7, 8]), st.sampled_from([0, *NAMES]), st.integers(8, 64))
    for at_ns, (g, number, frame_bytes) in enumerate(draw(st.lists(steps, max_size=40))):
        stack = stacks[g]
        if number:
            depth = frame_bytes + (stack[-1][1] if stack else 0)
            stack.append((number, depth, at_ns))
            rows.append(enter(at_ns, number, depth, g=g))
        elif stack:
            returns, depth, start_ns = stack.pop()
            rows.append(leave(at_ns, returns, depth, g=g))
            frames.append((NAMES[returns], g, depth, start_ns, at_ns, True))
    frames += [(NAMES[n], g, depth, start, END_NS, False) for g, s in stacks.items() for n, depth, start in s]
    return rows, frames


@settings(deadline=None)
@given(programs())
def test_the_frames_of_any_program_are_its_calls(program):
    rows, expected = program
    frames = frames_of(batch_of(rows), NAMES, END_NS)
    assert sorted((f.function, f.goroutine, f.depth_bytes, f.start_ns, f.end_ns, f.complete) for f in frames) == sorted(
        expected
    )


@settings(deadline=None)
@given(programs(), st.data())
def test_whatever_is_lost_the_frames_of_a_goroutine_stay_a_tree(program, data):
    rows, _ = program
    left = [each for each in rows if data.draw(st.booleans())]
    matcher = FrameMatcher(NAMES)
    frames = [f for each in left for f in matcher.feed(batch_of([each]))]
    frames += matcher.finish(END_NS)
    entries = sum(each.kind == Kind.FUNCTION_ENTRY for each in left)
    returns = len(left) - entries
    assert sum(f.complete for f in frames) == returns - matcher.unmatched_returns
    # Entries that repeat a frame whose return was lost are taken for the same.
    assert len(frames) <= entries
    for a, b in combinations(frames, 2):
        assert a.start_ns <= a.end_ns
        if a.goroutine == b.goroutine:
            apart = a.end_ns <= b.start_ns or b.end_ns <= a.start_ns
            assert apart or a.encloses(b) or b.encloses(a)


@settings(deadline=None)
@given(programs())
def test_nothing_is_kept_of_what_has_returned(program):
    rows, _ = program
    matcher = FrameMatcher(NAMES)
    for each in rows:
        matcher.feed(batch_of([each]))
    matcher.finish(END_NS)
    assert not matcher._stacks
