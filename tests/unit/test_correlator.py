# SPDX-License-Identifier: Apache-2.0
"""Events become runs: whose event is it, when is a run finished, and what stays undecided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle, repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repeating import endless
from streams import (
    CONTAINERD,
    DATA,
    DOCKERD,
    IN_CREATE,
    IN_ISDIR,
    IN_MODIFY,
    MS,
    SECOND,
    container_id,
    correlate,
    create,
    daemons,
    header,
    identity,
    layer,
    rebatch,
    recorded,
    start,
    stream,
    told,
)

from observe.collectors import containers
from observe.correlate import Correlator
from observe.correlate.correlator import go_keeps_g_in_register
from observe.correlate.operation import open_operation
from observe.correlate.rows import Row, rows_of
from observe.exporter import live
from observe.model import SYSCALLS, Event, EventBatch, Item, Kind, Loss, Mark, Note, NoteKind, Run
from observe.phases import load

NEW_GO, OLD_GO = "go1.19.8", "go1.15.15"
#: What the register holds that later keeps g: the same for everybody.
GARBAGE = 0x1D
LINGER, IDENTITY = 300 * MS, 3 * SECOND


def calls(events: Iterable[Event]) -> int:
    return sum(event.kind in SYSCALLS for event in events)


def counted(run: Run) -> int:
    return sum(span.syscalls for span in run.phases)


def without_g(events: Iterable[Event]) -> list[Event]:
    return [replace(event, goroutine=GARBAGE) for event in events]


def summary(runs: Iterable[Run]) -> list[tuple[str, str | None, int]]:
    """Operation, container and number of calls of each run."""
    return [(run.operation, run.container_id, counted(run)) for run in runs]


def whole(operation: str, n: int, events: Iterable[Event]) -> tuple[str, str, int]:
    """What `summary` says of a run that has all its events and knows its container."""
    return operation, container_id(n), calls(events)


# --- a real engine ----------------------------------------------------------------------------------------------------


def test_one_create_and_one_start_of_a_real_engine():
    of, items = recorded("create-start")
    runs, correlator = correlate(items, of)
    assert [(run.operation, run.container_name, run.image, run.network, run.outcome) for run in runs] == [
        ("create", "alone", "observe-tiny", "bridge", "ok"),
        ("start", "alone", "observe-tiny", "bridge", "ok"),
    ]
    assert len({run.container_id for run in runs}) == 1
    assert correlator.loss.unattributed_events == 0
    assert not correlator.loss.data_was_lost


def test_three_clients_at_once_on_a_real_engine():
    of, items = recorded("three-at-once")
    runs, correlator = correlate(items, of)
    names = ["one", "three", "two"]
    for operation in ("create", "start"):
        assert sorted(run.container_name for run in runs if run.operation == operation) == names
    by_name = {name: {run.container_id for run in runs if run.container_name == name} for name in names}
    assert all(len(ids) == 1 for ids in by_name.values())
    assert len(set.union(*by_name.values())) == 3
    # They do the same, and get the same.
    assert len({counted(run) for run in runs if run.operation == "create"}) == 1
    starts = [run for run in runs if run.operation == "start"]
    for phase in ("start.mount", "start.spec.mounts"):
        assert len({span.syscalls for run in starts for span in run.phases if span.id == phase}) == 1
    # Two files by rename; the entrypoint may begin meanwhile.
    saved = {span.syscalls for run in starts for span in run.phases if span.id == "start.save_state"}
    assert saved <= {6, 7}
    # What nobody can tell apart: containerd's syncs, folders named relative to a descriptor, threads of the daemons.
    events = sum(len(item) for item in items if isinstance(item, EventBatch))
    assert 0 < correlator.loss.unattributed_events < events // 10
    left = correlator.left
    assert left["several_operations"] + left["nothing_tells"] == correlator.loss.unattributed_events


@pytest.mark.parametrize("name", ["create-start", "three-at-once", "functions"])
@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_it_does_not_matter_how_a_recording_is_cut(name, size):
    of, items = recorded(name)
    runs, correlator = correlate(items, of)
    again, other = correlate(rebatch(items, repeat(size)), of)
    assert again == runs
    assert other.loss == correlator.loss


def disturbed(items: Iterable[Item], column: str, seed: int) -> Iterable[Item]:
    """A recording in which every twentieth event has the value of another one in a column."""
    random = np.random.default_rng(seed)
    for item in items:
        if isinstance(item, EventBatch):
            rows = item.rows.copy()
            other = random.random(len(rows)) < 0.05
            rows[column][other] = random.permutation(rows[column])[other]
            yield EventBatch(rows, item.strings)
        else:
            yield item


@given(
    st.sampled_from(["create-start", "three-at-once", "functions"]),
    st.sampled_from(["pid", "goroutine", "path", "kind", "ret", "time_ns"]),
    st.integers(0, 10_000),
)
@settings(max_examples=20, deadline=None)
def test_events_together_are_what_they_are_one_by_one(name, column, seed):
    """Whatever they say: one event a batch leaves nothing to be done for many at a time."""
    of, items = recorded(name)
    items = list(disturbed(items, column, seed))
    again, other = correlate(rebatch(items, repeat(1)), of)
    for size in (100, 10_000):
        runs, correlator = correlate(rebatch(items, repeat(size)), of)
        assert again == runs
        assert other.loss == correlator.loss


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_it_does_not_matter_where_a_stream_is_cut(sizes):
    items = busy_stream()
    runs, correlator = correlate(items, header())
    again, other = correlate(rebatch(items, cycle(sizes)), header())
    assert again == runs
    assert other.loss == correlator.loss


def busy_stream() -> list[Item]:
    """Operations long and short, known soon, late and never, with late file events among them."""
    parts: list[list[Event] | Note] = []
    for n in range(6):
        at = SECOND + n * 900 * MS
        parts += [create(n, at), start(n, at + 200 * MS)]
        path = f"{DATA}/overlay2/{layer(n)}/merged"
        parts.append([told(path, IN_CREATE | IN_ISDIR, at + lag) for lag in (40 * MS, 210 * MS, 900 * MS)])
        parts.append([told(f"{DATA}/containers/{container_id(n)}/hosts", IN_MODIFY, at + 255 * MS)])
        if n % 3:
            parts.append(identity(n, at + n * 150 * MS))
    return stream(*parts)


def test_runs_come_in_the_order_of_their_answers_when_they_are_finished():
    correlator = Correlator(header(), load())
    first, second = create(1, SECOND), create(2, SECOND + 5 * MS)
    items = stream(first, second, identity(1, SECOND + 50 * MS), identity(2, SECOND + 51 * MS))
    assert [run for item in items for run in correlator.feed(item)] == []
    ends = [events[-1].time_ns for events in (first, second)]
    assert correlator.feed(tick(ends[0] + LINGER - 1)) == []
    assert summary(correlator.feed(tick(ends[0] + LINGER))) == [whole("create", 1, first)]
    assert summary(correlator.feed(tick(ends[1] + LINGER))) == [whole("create", 2, second)]
    assert correlator.finish() == []


def test_later_events_finish_a_run_also_in_the_same_batch():
    """And what comes after that is too late, however long it was under way."""
    events = create(1, SECOND)
    late = told(f"{DATA}/overlay2/{layer(1)}-init", IN_CREATE | IN_ISDIR, SECOND + 2 * LINGER)
    early = replace(late, time_ns=SECOND + LINGER // 2)
    for event, file_events in ((early, 1), (late, 0)):
        correlator = Correlator(header(), load())
        batches = [item for item in stream(events, [event], [nameless(3 * SECOND)]) if isinstance(item, EventBatch)]
        for item in [*daemons(), identity(1, 0)]:
            correlator.feed(item)
        (run,) = correlator.feed(EventBatch.concat(batches))
        assert sum(span.file_events for span in run.phases) == file_events


def test_a_configuration_completes_a_run_though_thousands_of_containers_came_since():
    """A report completes its runs at the end; a live engine's correlator keeps fewer containers."""
    others = [identity(n, 3 * SECOND, f"c{n}") for n in range(2, 3_000)]
    items = stream(create(1, SECOND), identity(1, SECOND, "web"))
    late = replace(identity(1, 2 * SECOND, "web"), data={**identity(1, 0, "web").data, "configuration": {"a": 1}})
    for most, configuration in (({}, {"a": 1}), ({"most_containers": live.MOST_CONTAINERS}, {})):
        correlator = Correlator(header(), load(), **most)
        runs = [run for item in [*items, tick(int(1.9 * SECOND)), late, *others] for run in correlator.feed(item)]
        (run,) = runs + correlator.finish()
        assert run.configuration == {}
        assert correlator.completed(run).configuration == configuration


def test_the_collectors_know_no_more_containers_than_the_correlator_of_a_live_engine():
    """Who is known is not asked for again."""
    assert containers._REMEMBERED <= live.MOST_CONTAINERS


def test_a_live_stream_is_told_the_time_and_asked_for_what_is_still_open():
    correlator = Correlator(header(), load())
    events = start(1, SECOND)
    items = stream(identity(1, 0), events)
    for item in items[:-1]:
        assert correlator.feed(item) == []
    assert correlator.open_operations == (("start", SECOND),)
    (half,) = correlator.in_flight(events[-1].time_ns)
    assert (half.operation, half.container_id, half.outcome) == ("start", container_id(1), "unfinished")
    assert half.duration_ns == events[-1].time_ns - SECOND
    assert counted(half) == calls(events) - 1  # one of another goroutine, which is decided at the end
    correlator.feed(items[-1])
    assert (correlator.open_operations, correlator.in_flight(events[-1].time_ns)) == ((), [])
    end_ns = events[-1].time_ns
    assert correlator.advance(end_ns + LINGER - 1) == []
    assert summary(correlator.advance(end_ns + LINGER)) == [whole("start", 1, events)]
    assert correlator.finish() == []


def tick(at_ns: int) -> Note:
    return Note(NoteKind.LOSS, at_ns, {})


# --- whose event is it? -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("go", [NEW_GO, OLD_GO])
@pytest.mark.parametrize("reference", [container_id(1), "web", container_id(1)[:12]])
def test_a_container_is_created_and_then_started_by_whatever_names_it(reference, go):
    created, started = create(1, SECOND, name="web"), start(1, 2 * SECOND, reference)
    if go == OLD_GO:
        created, started = without_g(created), without_g(started)
    runs, correlator = correlate(stream(created, identity(1, SECOND + 50 * MS, "web"), started), header(go))
    assert summary(runs) == [whole("create", 1, created), whole("start", 1, started)]
    assert [run.container_name for run in runs] == ["web", "web"]
    assert correlator.loss.unattributed_events == 0


@pytest.mark.parametrize("go", [NEW_GO, OLD_GO])
def test_a_create_without_a_name_learns_the_one_that_dockerd_invents(go):
    events = create(1, SECOND) if go == NEW_GO else without_g(create(1, SECOND))
    runs, correlator = correlate(stream(events, identity(1, SECOND + 50 * MS, "brave_turing")), header(go))
    assert summary(runs) == [whole("create", 1, events)]
    assert runs[0].container_name == "brave_turing"
    assert correlator.loss.unattributed_events == 0


def overlapping(*numbers: int, named: bool, apart_ns: int = 2 * MS + MS // 4) -> list[list[Event]]:
    creates = [create(n, SECOND + n * apart_ns, name=f"c{n}" if named else "") for n in numbers]
    starts = [start(n, 2 * SECOND + n * apart_ns, f"c{n}" if named else None) for n in numbers]
    return creates + starts


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("apart_ns", [0, MS // 4, 2 * MS + MS // 4, 9 * MS])
def test_operations_at_once_never_mix_when_goroutines_are_known(named, apart_ns):
    operations = overlapping(1, 2, 3, named=named, apart_ns=apart_ns)
    notes = [identity(n, SECOND + 100 * MS, f"c{n}") for n in (1, 2, 3)]
    runs, correlator = correlate(stream(*operations, *notes), header())
    kinds = ["create"] * 3 + ["start"] * 3
    expected = [whole(kind, n, o) for kind, n, o in zip(kinds, [1, 2, 3] * 2, operations, strict=True)]
    assert sorted(summary(runs)) == sorted(expected)
    assert all(not run.departures for run in runs)
    assert correlator.loss.unattributed_events == 0


@pytest.mark.parametrize("apart_ns", [MS // 4, 2 * MS + MS // 4, 9 * MS])
def test_operations_at_once_are_told_apart_by_names_and_paths_without_goroutines(apart_ns):
    operations = [without_g(events) for events in overlapping(1, 2, 3, named=True, apart_ns=apart_ns)]
    notes = [identity(n, SECOND + 100 * MS, f"c{n}") for n in (1, 2, 3)]
    runs, correlator = correlate(stream(*operations, *notes), header(OLD_GO))
    assert sorted((run.operation, run.container_id) for run in runs) == sorted(
        (kind, container_id(n)) for kind in ("create", "start") for n in (1, 2, 3)
    )
    own = {
        (kind, container_id(n)): o
        for (kind, n), o in zip([(kind, n) for kind in ("create", "start") for n in (1, 2, 3)], operations, strict=True)
    }
    nameless = 0
    for run in runs:
        events = own[run.operation, run.container_id]
        nameless += calls(events) - counted(run)
        # Whatever says whose it is was given to its owner.
        assert counted(run) >= sum(event.kind in SYSCALLS and says_whose(event) for event in events)
    assert nameless <= correlator.loss.unattributed_events


def says_whose(event: Event) -> bool:
    text = event.path + event.path2 + event.detail
    return event.pid > CONTAINERD or any(container_id(n) in text or layer(n) in text for n in (1, 2, 3))


def test_two_nameless_creates_at_once_without_goroutines_stay_undecided():
    operations = [without_g(create(n, SECOND + n * MS // 4)) for n in (1, 2)]
    runs, correlator = correlate(stream(*operations, identity(1, 2 * SECOND), identity(2, 2 * SECOND)), header(OLD_GO))
    assert [(run.operation, run.container_id) for run in runs] == [("create", None)] * 2
    assert correlator.loss.unattributed_events + sum(map(counted, runs)) >= sum(map(calls, operations)) - 4
    # Only what happened while one of them was alone is anybody's.
    assert sum(map(counted, runs)) <= 2


def test_a_nameless_create_during_which_two_containers_are_made_stays_undecided():
    """The other one's request was not seen."""
    unseen = [e for e in create(2, SECOND + MS // 4) if e.kind not in (Kind.API_REQUEST, Kind.API_RESPONSE)]
    notes = [identity(1, 2 * SECOND), identity(2, 2 * SECOND)]
    runs, _ = correlate(stream(without_g(create(1, SECOND)), without_g(unseen), *notes), header(OLD_GO))
    assert summary(runs) == [("create", None, 0)]


def test_only_a_containers_own_folder_shows_that_it_is_made():
    mounts = Event(SECOND + 3 * MS, Kind.MKDIRAT, 1, pid=DOCKERD, path=f"{DATA}/containers/{container_id(2)}/mounts")
    runs, _ = correlate(stream(without_g(create(1, SECOND)), [mounts], identity(1, 2 * SECOND)), header(OLD_GO))
    assert [run.container_id for run in runs] == [container_id(1)]


def test_a_folder_made_while_only_one_of_two_creates_was_in_flight_is_its_own():
    """The first makes its folder alone; so the other one, made while both were in flight, is the second's."""
    first, second = without_g(create(1, SECOND)), without_g(create(2, SECOND + 10 * MS))
    runs, _ = correlate(stream(first, second, identity(1, 2 * SECOND), identity(2, 2 * SECOND)), header(OLD_GO))
    assert [run.container_id for run in runs] == [container_id(1), container_id(2)]


def test_a_create_that_failed_at_once_does_not_take_the_other_ones_container():
    failed = without_g(
        [event for event in create(9, SECOND, status=404) if event.kind in (Kind.API_REQUEST, Kind.API_RESPONSE)]
    )
    made = without_g(create(1, SECOND + MS, name="web"))
    runs, _ = correlate(stream(failed, made, identity(1, 2 * SECOND, "web")), header(OLD_GO))
    assert sorted((run.outcome, run.container_id) for run in runs if run.container_id) == [("ok", container_id(1))]
    assert len(runs) == 2


def test_a_name_conflict_is_not_a_run_of_the_container_that_has_the_name():
    refused = [create(2, 2 * SECOND, name="web", status=409)[i] for i in (0, -1)]
    for go in (NEW_GO, OLD_GO):
        runs, _ = correlate(
            stream(create(1, SECOND, name="web"), identity(1, SECOND + 50 * MS, "web"), refused), header(go)
        )
        assert [(run.outcome, run.container_id) for run in runs] == [("ok", container_id(1)), ("failed", None)]
        assert runs[1].container_name == "web"


@pytest.mark.parametrize("go", [NEW_GO, OLD_GO])
def test_a_name_that_is_used_again_starts_the_new_container(go):
    """`docker create --name web; docker start web`, while the last thing that was told of web is the old container."""
    parts = [create(2, 2 * SECOND, name="web"), start(2, 2 * SECOND + 30 * MS, "web")]
    if go == OLD_GO:
        parts = [without_g(events) for events in parts]
    runs, _ = correlate(stream(identity(1, SECOND, "web"), *parts, identity(2, 3 * SECOND, "web")), header(go))
    assert summary(runs) == [whole("create", 2, parts[0]), whole("start", 2, parts[1])]


def test_two_requests_for_one_container_share_nothing_that_may_be_the_others():
    """Both start it; one does it, the other waits and is told that there was nothing to do."""
    did, waited = start(1, SECOND), start(1, SECOND + MS, fd=99, g=0xC0FFEE, status=304)
    waited = [waited[0], replace(waited[-1], time_ns=did[-1].time_ns + MS)]
    runs, correlator = correlate(stream(identity(1, 0), did, waited), header())
    assert summary(runs) == [whole("start", 1, did), ("start", container_id(1), 0)]
    assert correlator.loss.unattributed_events == 0
    assert [run.departures for run in runs] == [(), ()]


def test_of_two_requests_that_both_may_have_done_it_neither_gets_it():
    did, also = start(1, SECOND), start(1, SECOND + MS, fd=99, g=0xC0FFEE, status=500)
    also = [also[0], replace(also[-1], time_ns=did[-1].time_ns + MS)]
    runs, correlator = correlate(stream(identity(1, 0), did, also), header())
    of_dockerd = [event for event in did if event.pid == DOCKERD and event.goroutine == did[0].goroutine]
    assert {run.outcome: counted(run) for run in runs} == {"ok": calls(of_dockerd), "failed": 0}
    assert correlator.loss.unattributed_events == len(did) - len(of_dockerd)


def nameless(at_ns: int, pid: int = CONTAINERD) -> Event:
    return Event(at_ns, Kind.FDATASYNC, 1000, pid=pid, tid=pid)


def test_what_names_nobody_belongs_to_the_only_operation_in_flight():
    events = start(1, SECOND)
    runs, correlator = correlate(stream(identity(1, 0), events, [nameless(SECOND + 9 * MS + 1)]), header())
    assert counted(runs[0]) == calls(events) + 1
    assert correlator.loss.unattributed_events == 0


@pytest.mark.parametrize(("distance_ms", "taken"), [(50, 0), (99, 0), (101, 1), (250, 1)])
def test_what_names_nobody_belongs_to_nobody_while_something_is_done_for_another_container(distance_ms, taken):
    events = start(1, SECOND)
    events[-1] = replace(events[-1], time_ns=2 * SECOND)
    moment = SECOND + 400 * MS
    other = Event(moment, Kind.MKDIRAT, 1000, pid=CONTAINERD, path=f"{DATA}/containers/{container_id(2)}/x")
    for side in (1, -1):
        near = nameless(moment + side * distance_ms * MS)
        runs, correlator = correlate(stream(identity(1, 0), identity(2, 0), events, [other], [near]), header())
        assert counted(runs[0]) == calls(events) + taken
        assert correlator.loss.unattributed_events == 1 - taken


def test_what_another_container_does_is_neither_ours_nor_undecided():
    events = start(1, SECOND)
    other = [
        Event(SECOND + n * MS + 1, Kind.MKDIRAT, 10, path=f"{DATA}/containers/{container_id(2)}/{n}") for n in range(9)
    ]
    runs, correlator = correlate(stream(identity(1, 0), events, other), header())
    assert counted(runs[0]) == calls(events)
    assert correlator.loss.unattributed_events == 0


def test_what_names_nobody_in_two_operations_is_counted_and_given_to_neither():
    first, second = start(1, SECOND), start(2, SECOND)
    lost = [nameless(SECOND + n * MS + 1) for n in (3, 4, 5)]
    runs, correlator = correlate(stream(identity(1, 0), identity(2, 0), first, second, lost), header())
    assert summary(runs) == [whole("start", 1, first), whole("start", 2, second)]
    assert correlator.loss.unattributed_events == 3


def test_what_was_contested_stays_so_after_a_competitor_has_become_a_run():
    long = start(1, SECOND)
    long[-1] = replace(long[-1], time_ns=5 * SECOND)
    runs, correlator = correlate(
        stream(identity(1, 0), identity(2, 0), long, create(2, SECOND), [nameless(SECOND + 5 * MS + 1)]), header()
    )
    assert [run.operation for run in runs] == ["create", "start"]
    assert counted(runs[1]) == calls(long)
    assert correlator.loss.unattributed_events == 1


def test_what_happens_outside_of_operations_is_not_looked_at():
    before, after = nameless(SECOND - MS), nameless(3 * SECOND)
    events = create(1, SECOND)
    runs, correlator = correlate(stream(identity(1, 0), events, [before, after]), header())
    assert summary(runs) == [whole("create", 1, events)]
    assert correlator.loss.unattributed_events == 0


def test_another_goroutine_of_dockerd_is_followed_by_what_it_did_before():
    """It mounts the layer of 1, then syncs a file, while 2 is started too."""
    first, second = start(1, SECOND), start(2, SECOND)
    g = 0xC000ABCDEF
    mounts = Event(SECOND + MS + 1, Kind.MOUNT, 10, g, pid=DOCKERD, path=f"{DATA}/overlay2/{layer(1)}/merged")
    syncs = Event(SECOND + 4 * MS + 1, Kind.FSYNC, 10, g, pid=DOCKERD)
    parts = [identity(1, 0), identity(2, 0), first, second, [mounts, syncs]]
    runs, correlator = correlate(stream(*parts), header())
    assert summary(runs) == [("start", container_id(1), calls(first) + 2), whole("start", 2, second)]
    assert correlator.loss.unattributed_events == 0
    # The same number in the register of an older Go means nothing.
    without = [part if isinstance(part, Note) else without_g(part) for part in parts]
    runs, correlator = correlate(stream(*without), header(OLD_GO))
    assert correlator.loss.unattributed_events >= 1


def test_a_process_number_that_is_used_again_is_another_containers():
    """All in one batch."""
    first, second = start(1, SECOND), start(2, 10 * SECOND)
    numbers = {3_000 + n: 2_000 + n for n in range(6)}
    again = [
        replace(
            event, **{name: numbers.get(getattr(event, name), getattr(event, name)) for name in ("pid", "tid", "ret")}
        )
        for event in second
    ]
    items = rebatch(stream(identity(1, 0), identity(2, 0), first, again), repeat(10_000))
    assert len([item for item in items if isinstance(item, EventBatch)]) == 1
    runs, correlator = correlate(items, header())
    assert summary(runs) == [whole("start", 1, first), whole("start", 2, again)]
    assert correlator.loss.unattributed_events == 0


# --- connections and answers ------------------------------------------------------------------------------------------


def test_one_connection_serves_one_request_after_the_other():
    events = [create(1, SECOND, fd=7, g=0xC1), start(1, 2 * SECOND, fd=7, g=0xC1), create(2, 3 * SECOND, fd=7, g=0xC1)]
    runs, _ = correlate(stream(*events, identity(1, 0), identity(2, 0)), header())
    expected = [whole("create", 1, events[0]), whole("start", 1, events[1]), whole("create", 2, events[2])]
    assert summary(runs) == expected


@pytest.mark.parametrize(("fd", "g"), [(7, 0xC2), (8, 0xC1)])
def test_a_request_whose_answer_never_came_ends_when_its_connection_or_goroutine_serves_another(fd, g):
    lost, following = create(1, SECOND, fd=7, g=0xC1, status=None), create(2, 20 * SECOND, fd=fd, g=g)
    runs, _ = correlate(stream(lost, following, identity(1, 0), identity(2, 0)), header())
    assert summary(runs) == [whole("create", 1, lost), whole("create", 2, following)]
    assert (runs[0].outcome, runs[0].error) == ("unfinished", "no answer was seen")
    assert runs[0].duration_ns == lost[-1].end_ns - lost[0].time_ns
    assert runs[1].outcome == "ok"


def test_the_end_of_the_recording_leaves_a_run_unfinished_without_departures():
    events = start(1, SECOND, status=None)[:12]
    runs, _ = correlate(stream(identity(1, 0), events), header())
    assert summary(runs) == [whole("start", 1, events)]
    assert (runs[0].outcome, runs[0].departures) == ("unfinished", ())
    assert runs[0].duration_ns == events[-1].end_ns - events[0].time_ns


def test_an_answer_that_never_comes_is_not_waited_for_for_ever():
    correlator = Correlator(header(), load())
    for item in stream(identity(1, 0), create(1, SECOND, status=None)):
        correlator.feed(item)
    correlator.feed(tick(601 * SECOND - 1))
    assert len(correlator._open) == 1
    correlator.feed(tick(601 * SECOND))
    assert correlator._open == []
    (run,) = correlator.feed(tick(601 * SECOND + LINGER))
    assert (run.outcome, counted(run)) == ("unfinished", calls(create(1, SECOND)))


def test_answers_without_a_request_are_nobodys():
    answer = Event(SECOND, Kind.API_RESPONSE, fd=7, ret=204, pid=DOCKERD)
    assert correlate(stream([answer]), header())[0] == []


@pytest.mark.parametrize(
    ("status", "outcome", "error"),
    [
        (201, "ok", None),
        (304, "ok", "nothing to do: dockerd answered 304"),
        (404, "failed", "dockerd answered 404"),
        (500, "failed", "dockerd answered 500"),
    ],
)
def test_the_answer_decides_the_outcome(status, outcome, error):
    (run,), _ = correlate(stream(identity(1, 0), start(1, SECOND, status=status)), header())
    assert (run.outcome, run.error) == (outcome, error)


def request(target: str) -> Row:
    return next(rows_of(EventBatch.of([Event(1, Kind.API_REQUEST, fd=3, goroutine=4, path=target)])))


@pytest.mark.parametrize(
    ("target", "name", "reference"),
    [
        ("/v1.41/containers/create?name=web", "create", "web"),
        ("/containers/create", "create", ""),
        ("/v1.41/containers/create?platform=&name=%2Fa%20b", "create", "a b"),
        ("/v1.41/containers/create?name=", "create", ""),
        ("/v1.52/containers/web/start?checkpoint=x", "start", "web"),
        ("/v1.41/containers/%2Fweb/start", "start", "web"),
        ("/v1.41/containers//web/start", "start", "web"),
    ],
)
def test_the_target_says_what_is_asked(target, name, reference):
    operation = open_operation(request(target))
    assert (operation.name, operation.reference, operation.connection, operation.goroutine) == (name, reference, 3, 4)


@pytest.mark.parametrize(
    "target",
    ["", "/", "/v1.41/containers/json", "/v1.41/exec/x/start", "/v1.41/containers/x/restart", "//[/containers/create"],
)
def test_other_targets_are_not_followed(target):
    assert open_operation(request(target)) is None


# --- identity that comes late or never --------------------------------------------------------------------------------


@pytest.mark.parametrize("go", [NEW_GO, OLD_GO])
def test_a_name_that_comes_after_the_answer_still_names_the_run(go):
    events = create(1, SECOND) if go == NEW_GO else without_g(create(1, SECOND))
    correlator = Correlator(header(go), load())
    runs = [run for item in stream(events) for run in correlator.feed(item)]
    runs += correlator.feed(tick(SECOND + 2 * LINGER))
    assert runs == []
    runs += correlator.feed(identity(1, 3 * SECOND, "late"))
    runs += correlator.feed(tick(SECOND + IDENTITY + 30 * MS))
    assert [(run.container_name, run.image, run.network) for run in runs] == [("late", "img", "bridge")]


def test_a_name_that_never_comes_is_waited_for_only_so_long():
    events = create(1, SECOND)
    correlator = Correlator(header(), load())
    for item in stream(events):
        correlator.feed(item)
    assert correlator.feed(tick(events[-1].time_ns + IDENTITY - 1)) == []
    (run,) = correlator.feed(tick(events[-1].time_ns + IDENTITY))
    assert (run.container_id, run.container_name, run.image, run.network) == (container_id(1), None, None, None)


def test_a_start_by_a_name_that_is_told_later_gets_its_events_without_goroutines():
    events = without_g(start(1, SECOND, "web"))
    runs, correlator = correlate(stream(events, identity(1, 2 * SECOND, "web")), header(OLD_GO))
    assert summary(runs) == [whole("start", 1, events)]
    assert correlator.loss.unattributed_events == 0


def test_a_start_of_nobody_knows_what_has_no_container_and_no_events_of_others():
    events = [start(1, SECOND, "ghost", status=404)[i] for i in (0, -1)]
    runs, _ = correlate(stream(events), header())
    assert [(run.container_id, run.container_name, run.outcome) for run in runs] == [(None, "ghost", "failed")]


# --- file events ------------------------------------------------------------------------------------------------------

FOLDER = f"{DATA}/containers/{container_id(1)}"
TEMPORARY = f"{FOLDER}/.tmp-hostconfig.json1"


def file_events(run: Run) -> dict[str, int]:
    return {span.id: span.file_events for span in run.phases if span.file_events}


def test_a_file_event_is_counted_where_its_call_was():
    """Read 20 ms later, when the create is in other phases, or over."""
    events = create(1, SECOND)
    made = [event for event in events if event.kind in (Kind.MKDIRAT, Kind.OPENAT)]
    late = [told(e.path, IN_CREATE | (IN_ISDIR if e.kind == Kind.MKDIRAT else 0), e.time_ns + 20 * MS) for e in made]
    runs, correlator = correlate(stream(events, late, identity(1, 0)), header(watched=[DATA]))
    expected = {"create.rw_layer": 3, "create.root": 3, "create.register": 1, "create.os_specific": 1}
    assert file_events(runs[0]) == expected
    renames = 2
    assert correlator.loss.inotify_missed == renames


def test_what_inotify_never_tells_is_counted_exactly():
    events = create(1, SECOND)
    _, correlator = correlate(stream(events, identity(1, 0)), header())
    # -init, layer | folder, checkpoints, open, rename | rmdir of merged (its making is not watched) | open, rename
    changes = (Kind.MKDIRAT, Kind.OPENAT, Kind.RENAMEAT, Kind.UNLINKAT)
    watched = [e for e in events if e.kind in changes and "/merged" not in e.path and "/image/" not in e.path]
    assert correlator.loss.inotify_missed == len(watched) == 8


def test_invented_events_count_for_nothing():
    events = create(1, SECOND)
    path = f"{FOLDER}/checkpoints"
    invented = [told(path, IN_CREATE | IN_ISDIR, SECOND + 9 * MS + n, Mark.INVENTED) for n in range(3)]
    invented += [told(f"{DATA}/overlay2/l/X", IN_CREATE, SECOND + 3 * MS, Mark.INVENTED)]
    parts = [events, create(2, SECOND), identity(1, 0), identity(2, 0)]
    plain, with_them = (correlate(stream(*parts, more), header()) for more in ([], invented))
    assert with_them[0] == plain[0]
    assert with_them[1].loss == plain[1].loss


@pytest.mark.parametrize(("late_ms", "count"), [(1, 1), (59, 1), (61, 0), (500, 0)])
def test_what_is_told_after_the_answer_counts_only_for_so_long(late_ms, count):
    events = create(1, SECOND)
    answer_ns = events[-1].time_ns
    runs, _ = correlate(
        stream(events, [told(TEMPORARY, IN_MODIFY, answer_ns + late_ms * MS)], identity(1, 0)), header()
    )
    assert file_events(runs[0]) == ({"create.root": 1} if count else {})


def test_what_is_told_after_the_answer_counts_only_for_a_path_that_was_used():
    events = create(1, SECOND)
    stranger = told(f"{FOLDER}/hosts", IN_MODIFY, events[-1].time_ns + MS)
    runs, _ = correlate(stream(events, [stranger], identity(1, 0)), header())
    assert file_events(runs[0]) == {}


def test_what_is_told_of_a_create_while_the_start_goes_on_is_the_creates():
    created = create(1, SECOND)
    started = start(1, created[-1].time_ns + MS)
    late = [told(TEMPORARY, IN_MODIFY, created[-1].time_ns + n * MS) for n in (3, 20)]
    runs, _ = correlate(stream(created, started, late, identity(1, 0)), header())
    assert [file_events(run) for run in runs] == [{"create.root": 2}, {}]


def test_what_is_told_of_a_path_that_both_used_is_the_starts():
    created = create(1, SECOND)
    started = start(1, created[-1].time_ns + MS)
    event = told(f"{DATA}/overlay2/{layer(1)}/merged", IN_MODIFY, started[3].time_ns)
    runs, _ = correlate(stream(created, started, [event], identity(1, 0)), header())
    assert [file_events(run) for run in runs] == [{}, {"start.mount": 1}]


def test_a_file_event_that_comes_with_its_calls_goroutine_goes_to_that_request():
    """The path names nobody, the goroutine did something for another container just before, and all are answered."""
    first = create(1, SECOND, fd=7, g=0xC1)
    second = create(2, first[-1].time_ns + MS, fd=7, g=0xC1)
    asked, rest = second[0], [replace(event, time_ns=event.time_ns + 40 * MS) for event in second[1:]]
    shared = f"{DATA}/image/overlay2/layerdb/mounts"
    mkdir = replace(second[1], path=shared, time_ns=asked.time_ns + MS)
    event = told(shared, IN_CREATE | IN_ISDIR, rest[-1].time_ns + MS)
    runs, correlator = correlate(stream(first, [asked, mkdir], rest, [event], identity(1, 0), identity(2, 0)), header())
    assert [sum(file_events(run).values()) for run in runs] == [0, 1]
    assert correlator.loss.unattributed_events == 0


# --- the whole stream -------------------------------------------------------------------------------------------------


def test_losses_and_warnings_of_the_recording_are_passed_on():
    told_twice = [Note(NoteKind.LOSS, n, {"ring_buffer": 3 * n, "unknown_counter": 1}) for n in (1, 2)]
    warning = Note(NoteKind.WARNING, 3, {"text": "the limit is reached"})
    _, correlator = correlate([*daemons(), *told_twice, warning, Note(NoteKind.END, 4, {})], header())
    assert correlator.loss == Loss(ring_buffer=6)
    assert correlator.warnings == ["the limit is reached"]


def test_wall_time_is_that_of_the_hosts_clocks():
    of = replace(header(), boot_time_ns=5 * SECOND)
    (run,), _ = correlate(stream(identity(1, 0), create(1, 7 * SECOND)), of)
    assert run.wall_time_ns == of.wall_time_ns + 2 * SECOND


@pytest.mark.parametrize(
    ("version", "is_kept"),
    [("go1.15.15", False), ("go1.16", False), ("go1.17", True), ("go1.27.1", True), ("devel go1.23", True), ("", True)],
)
def test_go_keeps_g_in_a_register_from_1_17_on(version, is_kept):
    assert go_keeps_g_in_register(version) is is_kept


def tables(correlator: Correlator) -> dict[str, int]:
    """Sizes of everything that could grow."""
    lineage, undecided, files = correlator._lineage, correlator._undecided, correlator._files
    return {
        "open": len(correlator._open),
        "closing": len(correlator._closing),
        "undecided": len(undecided),
        "work": len(undecided._work),
        "processes": len(lineage._containers),
        "roles": len(lineage._roles),
        "waiting": len(files._waiting),
        "keys": len(files._by_key),
    }


def test_a_live_stream_of_many_operations_fills_no_table():
    of, items = recorded("three-at-once")
    correlator = Correlator(of, load())
    turns = 25
    sizes, runs = [], []
    for item in endless(items, turns):
        runs += correlator.feed(item)
        sizes.append(tables(correlator))
    runs += correlator.finish()
    assert len(runs) == 6 * turns
    assert len({run.container_id for run in runs}) == 3 * turns
    assert all(not run.departures for run in runs)
    third = len(sizes) // 3
    for name in sizes[0]:
        early, late = (max(size[name] for size in part) for part in (sizes[:third], sizes[-third:]))
        assert late <= early * 1.2 + 2, name
    assert all(size == 0 for name, size in tables(correlator).items() if name not in ("roles", "processes"))


def test_runs_of_a_stream_that_repeats_are_the_same_but_for_names_and_times():
    of, items = recorded("create-start")
    runs, _ = correlate(endless(items, 4), of)
    shapes = [[(s.id, s.duration_ns, s.self_ns, s.syscalls, s.file_events) for s in run.phases] for run in runs]
    assert len(runs) == 8
    creates, starts = ({tuple(shape) for shape in shapes[which::2]} for which in (0, 1))
    assert len(creates) == len(starts) == 1
