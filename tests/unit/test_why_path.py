# SPDX-License-Identifier: Apache-2.0
"""Threads over time, and the walk back through them to what a request was really waiting for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling import ASLEEP, DEAD, DEEP_ASLEEP, NOBODY, RUNNABLE, row, sending, switch, waking

from observe.correlate.rows import Row
from observe.correlate.why.path import Anchor, Parties, Step, critical_path, edges_of
from observe.correlate.why.threads import State, Thread, Threads
from observe.model import Kind

DOCKERD, POLLER = Thread(1, 11), Thread(1, 12)
CONTAINERD = Thread(2, 21)
OWN, CHILD = Thread(5, 51), Thread(6, 61)
OTHERS = Thread(9, 91)
PARTIES = Parties(own=frozenset({5, 6}), daemons=frozenset({1, 2}))
END = 100


def walk(scheduler: list[Row], anchors: list[Anchor], rows: list[Row] = []) -> list[Step]:  # noqa: B006 - never changed
    scheduler = sorted(scheduler, key=lambda one: one.time_ns)
    return critical_path(Threads(scheduler, 0, END), anchors, edges_of(scheduler, rows, PARTIES), PARTIES)


def told(steps: list[Step]) -> list[tuple[int, int, int, str]]:
    return [(step.start_ns, step.end_ns, step.thread.tid, step.state.name.lower()) for step in steps]


def test_a_thread_is_in_one_state_at_a_time_and_whoever_woke_it_is_known():
    threads = Threads(
        [
            switch(10, DOCKERD, state=ASLEEP, call=202),
            waking(40, DOCKERD, OWN),
            switch(45, takes=DOCKERD),
            switch(60, DOCKERD, OWN),  # preempted
            switch(70, OWN, DOCKERD, DEAD),
        ],
        0,
        END,
    )
    found = [threads.at(11, at) for at in (10, 40, 45, 60, 70, 100)]
    assert [(one.start_ns, one.end_ns, one.state) for one in found if one] == [
        (0, 10, State.RUNNING),
        (10, 40, State.ASLEEP),
        (40, 45, State.RUNNABLE),
        (45, 60, State.RUNNING),
        (60, 70, State.RUNNABLE),
        (70, 100, State.RUNNING),
    ]
    assert found[1] is not None
    assert (found[1].waker, found[1].sleep and found[1].sleep.flags >> 16 & 0xFFFF) == (OWN, 203)
    assert threads.pid(51) == 5
    assert threads.at(99, 50) is None
    assert (threads.slept_between(11, 45, 100), threads.slept_between(11, 30, 100)) == (False, True)


def test_a_thread_that_is_woken_on_its_way_to_sleep_does_not_sleep_on():
    scheduler = [switch(5, takes=OWN), waking(20, OWN, CHILD), switch(21, OWN, state=0x200), switch(30, takes=OWN)]
    threads = Threads(scheduler, 0, END)
    found = [threads.at(51, at) for at in (21, 30, 31)]
    assert [one.state for one in found if one] == [State.RUNNING, State.RUNNABLE, State.RUNNING]


@pytest.mark.parametrize(
    "before",
    [
        [switch(5, takes=OWN), switch(10, OWN)],
        [switch(5, OWN, state=ASLEEP), waking(10, OWN, CHILD)],
        [switch(5, takes=OWN), waking(9, OWN, CHILD), switch(10, OWN, state=0x200)],
    ],
    ids=["preempted", "asleep", "woken on its way to sleep"],
)
def test_a_thread_that_leaves_a_cpu_had_it_though_nobody_told_that_it_took_it(before: list[Row]) -> None:
    threads = Threads([*before, switch(60, OWN, state=ASLEEP), waking(80, OWN, CHILD), switch(85, takes=OWN)], 0, END)
    found = [threads.at(51, at) for at in (11, 60, 80, 85, 90)]
    running, asleep, waiting = State.RUNNING, State.ASLEEP, State.RUNNABLE
    assert [one.state for one in found if one] == [running, running, asleep, waiting, running]


def test_a_number_that_is_born_again_is_another_thread():
    threads = Threads([switch(10, OWN, state=DEAD), waking(50, OWN, CHILD, born=True), switch(60, takes=OWN)], 0, END)
    born = threads.at(51, 50)
    assert born is not None
    assert (born.state, born.start_ns, born.waker) == (State.UNBORN, 0, CHILD)


def test_a_request_that_computes_is_one_step():
    assert told(walk([], [Anchor(0, 11), Anchor(END, 11)])) == [(0, END, 11, "running")]


def test_a_wait_for_an_own_process_is_replaced_by_what_that_did():
    steps = walk(
        [
            waking(10, OWN, DOCKERD, born=True),
            switch(12, takes=OWN),
            switch(15, DOCKERD, state=ASLEEP, call=61),
            switch(30, OWN, state=ASLEEP, call=35, stack="do_nanosleep"),
            waking(50, OWN),
            switch(55, takes=OWN),
            waking(80, DOCKERD, OWN),
            switch(80, OWN, DOCKERD, DEAD),
        ],
        [Anchor(0, 11), Anchor(END, 11)],
    )
    assert told(steps) == [
        (0, 10, 11, "running"),
        (10, 12, 51, "runnable"),
        (12, 30, 51, "running"),
        (30, 50, 51, "asleep"),
        (50, 55, 51, "runnable"),
        (55, 80, 51, "running"),
        (80, 100, 11, "running"),
    ]


def test_another_containers_wake_up_leads_nowhere_but_the_own_process_that_was_heard_last_does():
    """The answer of the own process found the poller awake: it had been woken by another container's business."""
    scheduler = [
        waking(10, OWN, CONTAINERD, born=True),
        switch(10, takes=OWN),
        switch(5, DOCKERD, state=ASLEEP, call=202),
        switch(20, POLLER, state=ASLEEP, call=281),
        waking(60, POLLER, OTHERS),
        switch(60, takes=POLLER),
        sending(70, OWN),
        switch(75, OWN, state=ASLEEP, call=0),
        waking(90, DOCKERD, POLLER),
        switch(90, POLLER, DOCKERD, ASLEEP, call=281),
    ]
    steps = walk(scheduler, [Anchor(0, 11), Anchor(END, 11)])
    assert told(steps) == [
        (0, 10, 21, "running"),  # containerd, which began it
        (10, 70, 51, "running"),
        (70, 90, 12, "running"),  # the poller, from the answer on
        (90, 100, 11, "running"),
    ]


def test_a_lock_that_another_thread_of_the_daemon_holds_is_a_block_of_the_call():
    steps = walk(
        [
            switch(10, DOCKERD, state=DEEP_ASLEEP, call=44, stack="__mutex_lock"),
            waking(60, DOCKERD, POLLER),
            switch(61, takes=DOCKERD),
        ],
        [Anchor(0, 11, in_call=True), Anchor(END, 11)],
    )
    assert told(steps) == [
        (0, 10, 11, "running"),
        (10, 60, 11, "asleep"),
        (60, 61, 11, "runnable"),
        (61, 100, 11, "running"),
    ]
    assert steps[1].sleep is not None
    assert steps[1].sleep.detail == "__mutex_lock"


def test_a_child_of_a_child_and_a_daemon_in_between_are_followed():
    steps = walk(
        [
            switch(5, DOCKERD, state=ASLEEP, call=202),
            waking(10, OWN, CONTAINERD, born=True),
            switch(10, takes=OWN),
            waking(20, CHILD, OWN, born=True),
            switch(20, takes=CHILD),
            switch(25, OWN, state=ASLEEP, call=61),
            waking(60, OWN, CHILD),
            switch(60, CHILD, OWN, DEAD),
            sending(69, OWN),  # it asks a daemon for something
            switch(70, OWN, state=ASLEEP, call=0),
            waking(80, OWN, CONTAINERD),
            switch(80, takes=OWN),
            waking(90, DOCKERD, OWN),
            switch(90, takes=DOCKERD),
        ],
        [Anchor(0, 11), Anchor(END, 11)],
    )
    assert told(steps) == [
        (0, 10, 21, "running"),
        (10, 20, 51, "running"),
        (20, 60, 61, "running"),
        (60, 69, 51, "running"),
        (69, 80, 21, "running"),
        (80, 90, 51, "running"),
        (90, 100, 11, "running"),
    ]


def test_where_an_own_process_ends_a_daemon_can_hear_of_it():
    rows = [row(Kind.SCHED_PROCESS_EXIT, 30, OWN), row(Kind.SCHED_PROCESS_EXIT, 31, OTHERS)]
    scheduler = [waking(40, POLLER, CHILD), waking(41, CHILD, OWN), waking(42, POLLER, OTHERS), sending(43, OTHERS)]
    assert [(edge.time_ns, edge.thread) for edge in edges_of(scheduler, rows, PARTIES)] == [(30, OWN), (40, CHILD)]


EVERYBODY = (DOCKERD, POLLER, CONTAINERD, OWN, CHILD, OTHERS, NOBODY)
MOMENTS = st.integers(0, END)
ANYBODY = st.sampled_from(EVERYBODY)


@given(
    st.lists(
        st.one_of(
            st.builds(switch, MOMENTS, ANYBODY, ANYBODY, st.sampled_from([RUNNABLE, ASLEEP, DEEP_ASLEEP, DEAD, 0x200])),
            st.builds(waking, MOMENTS, st.sampled_from(EVERYBODY[:-1]), ANYBODY, born=st.booleans()),
            st.builds(sending, MOMENTS, st.sampled_from((OWN, CHILD, OTHERS))),
        ),
        max_size=60,
    ),
    st.lists(st.builds(Anchor, MOMENTS, st.sampled_from((11, 12)), st.booleans()), max_size=6),
)
def test_whatever_happens_the_path_ends_and_fills_the_time(scheduler: list[Row], between: list[Anchor]) -> None:
    anchors = [Anchor(0, 11), *sorted(between, key=lambda one: one.time_ns), Anchor(END, 12)]
    steps = walk(scheduler, anchors)
    assert steps[0].start_ns == 0
    assert steps[-1].end_ns == END
    assert all(one.end_ns == other.start_ns for one, other in pairwise(steps))
    assert all(step.start_ns < step.end_ns for step in steps)
