# SPDX-License-Identifier: Apache-2.0
"""Every nanosecond and every event of an operation belongs to exactly one phase, whatever the phases look like."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import (
    IN_ATTRIB,
    IN_MODIFY,
    MS,
    NO_MARK,
    batch_of,
    container_id,
    correlate,
    create,
    header,
    identity,
    recorded,
    spans_of,
    start,
    stream,
)

from observe.correlate.accounting import Counts, Partition, count_events, innermost
from observe.correlate.rows import Row, rows_of
from observe.correlate.rules import Rules
from observe.correlate.spans import PhaseSpan, Walk
from observe.model import Event, EventBatch, Kind, Mark
from observe.phases import load

START = Rules(load().of("start"), "/data")
NUMBERS = {phase.id: number for number, phase in enumerate(START.phases)}
MOUNT, NETWORK = NUMBERS["start.mount"], NUMBERS["start.network"]
SPEC, SPEC_MOUNTS = NUMBERS["start.spec"], NUMBERS["start.spec.mounts"]


def row(kind: Kind, at_ns: int, pid: int = 0, path: str = "", marks: Mark = NO_MARK) -> Row:
    return next(rows_of(EventBatch.of([Event(at_ns, kind, pid=pid, path=path, marks=marks)])))


@st.composite
def operations(draw):
    """Bounds, spans of phases (nested, overlapping, empty, in pieces, anything inside the bounds), and events."""
    start = draw(st.integers(0, 50))
    end = draw(st.integers(start, 100))
    moments = st.integers(start, end)
    pids = st.frozensets(st.integers(1, 4), max_size=2)
    spans = {}
    for number in draw(st.sets(st.integers(1, len(START.phases) - 1), max_size=12)):
        cuts = sorted(draw(st.lists(moments, min_size=2, max_size=6).filter(lambda cuts: len(cuts) % 2 == 0)))
        pieces = tuple(zip(cuts[::2], cuts[1::2], strict=True))
        bounded_by_functions = draw(st.booleans())
        spans[number] = PhaseSpan(cuts[0], cuts[-1], draw(pids), pieces if bounded_by_functions else ())
    kinds = st.sampled_from([Kind.MOUNT, Kind.FSYNC, Kind.INOTIFY, Kind.SCHED_PROCESS_EXIT])
    marks = st.sampled_from([Mark(0), Mark.INVENTED])
    events = st.builds(row, kinds, st.integers(start, end + 5), st.integers(0, 4), st.sampled_from(["", "/a"]), marks)
    return (start, end), spans, draw(st.lists(events, max_size=20))


@given(operations())
def test_the_time_of_all_phases_together_is_the_operations(operation):
    bounds, spans, rows = operation
    out = spans_of(START, Walk(spans=spans), batch_of(rows), bounds)
    assert sum(span.self_ns or 0 for span in out) == bounds[1] - bounds[0]
    assert all((span.self_ns or 0) >= 0 for span in out)


@given(operations())
def test_every_event_is_counted_in_exactly_one_phase(operation):
    bounds, spans, rows = operation
    out = spans_of(START, Walk(spans=spans, paths={"/a": [(0, MOUNT)]}), batch_of(rows), bounds)
    assert sum(span.syscalls for span in out) == sum(each.is_syscall for each in rows)
    told = [each for each in rows if each.kind == Kind.INOTIFY and not each.marks & Mark.INVENTED]
    assert sum(span.file_events for span in out) == len(told)


@given(operations())
def test_what_is_in_no_phase_is_the_operations_own(operation):
    """Moment by moment, against the definition."""
    bounds, spans, _ = operation
    partition = Partition(START.phases, spans, bounds)
    own = 0
    for moment in range(*bounds):
        inside = [n for n, span in spans.items() if any(start <= moment < end for start, end in span.intervals)]
        depth = max((START.phases[number].depth for number in inside), default=0)
        owner = partition.phase_at(moment)
        assert owner in inside or (owner == 0 and not inside)
        assert START.phases[owner].depth == depth
        own += not inside
    assert partition.self_ns().get(0, 0) == own


@given(operations())
def test_a_phase_that_was_not_seen_has_no_times_and_one_that_was_has_all(operation):
    bounds, spans, rows = operation
    for number, span in enumerate(spans_of(START, Walk(spans=spans), batch_of(rows), bounds)):
        times = (span.start_ns, span.duration_ns, span.self_ns)
        if number in spans or number == 0:
            assert None not in times
            assert span.self_ns <= span.duration_ns
        else:
            assert times == (None, None, None)
            assert span.syscalls == span.file_events == 0


def test_of_phases_that_overlap_the_deeper_counts_and_of_equals_the_later():
    spans = {
        MOUNT: PhaseSpan(0, 50),
        NETWORK: PhaseSpan(40, 70),
        SPEC: PhaseSpan(45, 90),
        SPEC_MOUNTS: PhaseSpan(42, 44),
    }
    partition = Partition(START.phases, spans, (0, 100))
    at = {0: MOUNT, 39: MOUNT, 40: NETWORK, 42: SPEC_MOUNTS, 44: NETWORK, 45: SPEC, 89: SPEC, 90: 0, 99: 0}
    assert {moment: partition.phase_at(moment) for moment in at} == at
    assert partition.self_ns() == {MOUNT: 40, NETWORK: 3, SPEC_MOUNTS: 2, SPEC: 45, 0: 10}


def test_an_event_of_a_program_is_the_programs_whatever_goes_on_beside_it():
    spans = {NETWORK: PhaseSpan(0, 50, frozenset({7})), SPEC_MOUNTS: PhaseSpan(10, 20)}
    partition = Partition(START.phases, spans, (0, 100))
    rows = [row(Kind.MOUNT, 15, pid=7), row(Kind.MOUNT, 15, pid=8), row(Kind.MOUNT, 60, pid=7)]
    assert partition.phases_of(batch_of(rows)).tolist() == [NETWORK, SPEC_MOUNTS, 0]  # the program is over


def test_a_moment_outside_counts_for_the_nearest_piece():
    partition = Partition(START.phases, {MOUNT: PhaseSpan(80, 100)}, (10, 100))
    assert [partition.phase_at(moment) for moment in (0, 10, 100, 500)] == [0, 0, MOUNT, MOUNT]


def test_an_operation_without_duration_has_its_row_all_the_same():
    out = spans_of(START, Walk(), batch_of([row(Kind.MOUNT, 5)]), (5, 5))
    assert (out[0].start_ns, out[0].duration_ns, out[0].self_ns, out[0].syscalls) == (5, 0, 0, 1)


@pytest.mark.parametrize(
    ("at_ns", "pid", "path", "phase"),
    [
        (95, 0, "/a", NETWORK),  # told late: the phase that named the path last before
        (15, 0, "/a", MOUNT),
        (9, 0, "/a", 0),  # nobody had named it yet
        (95, 0, "/b", SPEC),
        (95, 7, "/a", SPEC),  # it has its call's own time
    ],
)
def test_a_file_event_without_its_call_belongs_to_the_phase_that_named_the_path(at_ns, pid, path, phase):
    spans = {MOUNT: PhaseSpan(10, 20), NETWORK: PhaseSpan(30, 40), SPEC: PhaseSpan(90, 100)}
    found = Walk(spans=spans, paths={"/a": [(12, MOUNT), (32, NETWORK)]})
    event = row(Kind.INOTIFY, at_ns, pid, path)
    events = batch_of([event])
    counts = count_events(events, innermost(events, Partition(START.phases, spans, (0, 100)), found))
    assert (counts.syscalls, counts.file_events) == ({}, {phase: 1})


def test_invented_events_and_the_schedulers_are_not_counted():
    rows = [row(Kind.INOTIFY, 5, marks=Mark.INVENTED), row(Kind.SCHED_PROCESS_FORK, 5), row(Kind.API_REQUEST, 5)]
    events = batch_of(rows)
    assert count_events(events, innermost(events, Partition(START.phases, {}, (0, 10)), Walk())) == Counts()


# --- of whole runs ----------------------------------------------------------------------------------------------------


def all_runs():
    for name in ("create-start", "three-at-once"):
        of, items = recorded(name)
        yield from correlate(items, of)[0]
    made_up = stream(create(1, MS), start(1, 40 * MS), create(2, 45 * MS), identity(1, 0), identity(2, 0))
    yield from correlate(made_up, header())[0]


def test_the_parts_of_every_run_make_the_whole():
    runs = list(all_runs())
    assert len(runs) == 2 + 6 + 3
    for run in runs:
        assert sum(span.self_ns or 0 for span in run.phases) == run.duration_ns
        assert run.unattributed_ns == run.phases[0].self_ns
        assert (run.phases[0].start_ns, run.phases[0].duration_ns) == (run.start_ns, run.duration_ns)


def test_a_real_run_keeps_all_its_calls():
    """What the phases count is what the recording holds of the container's start, and no more than is in it."""
    of, items = recorded("create-start")
    runs, correlator = correlate(items, of)
    rows = [each for item in items if isinstance(item, EventBatch) for each in rows_of(item)]
    for run in runs:
        end_ns = run.start_ns + run.duration_ns
        during = sum(each.is_syscall and run.start_ns <= each.time_ns < end_ns for each in rows)
        assert sum(span.syscalls for span in run.phases) == during
    assert correlator.loss.unattributed_events == 0


def test_phases_of_one_depth_do_not_overlap_in_a_real_run():
    of, items = recorded("create-start")
    for run in correlate(items, of)[0]:
        top = sorted(
            (s.start_ns, s.start_ns + s.duration_ns) for s in run.phases if s.parent == run.operation and s.start_ns
        )
        assert all(first[1] <= second[0] for first, second in pairwise(top))


def test_what_inotify_tells_of_a_write_is_counted_where_the_file_was_made():
    """MODIFY and ATTRIB have no call of their own and come late, here in the middle of the next phases."""
    folder = f"/var/lib/docker/containers/{container_id(1)}"
    events = create(1, MS)
    mask_and_moment = ((IN_MODIFY, 14 * MS), (IN_ATTRIB, 16 * MS))
    late = [Event(at, Kind.INOTIFY, flags=m, path=f"{folder}/.tmp-hostconfig.json1") for m, at in mask_and_moment]
    (run,), _ = correlate(stream(events, late, identity(1, 0)), header())
    assert {span.id: span.file_events for span in run.phases if span.file_events} == {"create.root": 2}


def test_a_program_of_many_processes_takes_memory_for_its_events_and_not_for_each_pair():
    """As a hook that forks in a loop would be."""

    def peak_bytes(count: int) -> int:
        events = batch_of([row(Kind.MOUNT, n, pid=n + 1) for n in range(count)])
        span = PhaseSpan(0, count, frozenset(range(1, count + 1)))
        partition = Partition(START.phases, {NETWORK: span}, (0, count))
        tracemalloc.start()
        try:
            assert (partition.phases_of(events) == NETWORK).all()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(2_000) < 3 * peak_bytes(1_000)
