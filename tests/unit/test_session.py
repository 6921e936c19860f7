# SPDX-License-Identifier: Apache-2.0
"""A session between two polls: what cannot wait is done at once, and the rest comes in order and in one piece."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ringmemory import Memory
from streams import DATA, container_id

from observe.collectors import session as session_module
from observe.collectors.containers import ContainerIdentities
from observe.collectors.ring import RingReader
from observe.collectors.session import Session, SessionOptions, boot_clock_ns, merged
from observe.collectors.waiting import Bell
from observe.model import Container, Event, EventBatch, Kind, NoteKind

MS = 1_000_000


class Probes:
    """Attached to nothing."""

    def __init__(self, ring):
        self.ring = ring

    def counter(self, _counter):
        return 0

    def misses(self):
        return 0


class Identity:
    """Knows every container; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def names_of(self, references):
        self.asked.append(list(references))
        return [Container(text, network="none") for text in references]

    def close(self):
        pass


class Files:
    """One file event a look."""

    warnings = ()
    losses = SimpleNamespace(overflows=0, unwatched_directories=0)

    def __init__(self):
        self.events = []

    def collect(self):
        self.events.append(Event(boot_clock_ns(), Kind.INOTIFY, path=f"/file{len(self.events)}"))

    def drain(self):
        self.collect()
        events, self.events = self.events, []
        return EventBatch.of(events)


@pytest.fixture
def ring():
    memory = Memory(1 << 20, 0)
    yield memory
    os.close(memory.descriptor)


@pytest.fixture
def attached(ring):
    """A session whose ring is written by the test; nothing is attached."""
    # Always readable, as the ring is while something waits in it; what is written rings the bell.
    reading, writing = os.pipe()
    os.write(writing, b"x")
    session = Session(None, SessionOptions(pause_seconds=0.001, batch_seconds=0.005))
    session._ring = RingReader(ring.descriptor, ring.ring_bytes)
    session._probes = Probes(reading)
    session._bell = Bell(reading)
    ring.wakes = writing
    session._containers = ContainerIdentities(Identity(), DATA, configurations=False)
    yield session
    session._containers.close()
    session._bell.close()
    session._ring.close()
    for descriptor in (reading, writing):
        os.close(descriptor)


def asked(session):
    return session._containers._identity.asked


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_names_are_asked_for_while_events_still_wait_and_once(attached, ring):
    first, second = container_id(1), container_id(2)
    ring.produce(1, kind=Kind.MKDIRAT, path=f"{DATA}/containers/{first}")
    attached.wait(1)
    assert asked(attached) == []  # dockerd has not answered yet: it may not know the container
    ring.produce(2, kind=Kind.API_RESPONSE)
    attached.wait(1)
    assert asked(attached) == []  # nobody has rung
    os.write(ring.wakes, b"x")
    attached.wait(1)
    eventually(lambda: asked(attached) == [[first]])
    items = attached.poll()
    assert len(items[0]) == 2
    # A container that is new in the part that was not looked at.
    ring.produce(3, kind=Kind.MKDIRAT, path=f"{DATA}/containers/{second}")
    items += attached.poll()
    ring.produce(4, kind=Kind.API_RESPONSE)
    items += attached.poll()
    eventually(lambda: asked(attached) == [[first], [second]])
    eventually(lambda: all(future.done() for future in attached._containers._asked))
    items += attached.poll()
    notes = [item for item in items if not isinstance(item, EventBatch) and item.kind is NoteKind.CONTAINER]
    assert [note.data["id"] for note in notes] == [first, second]


def test_file_events_stand_where_they_were_read(attached, ring):
    attached._inotify = Files()
    ring.produce(1)
    attached._look_at_files(attached._ring)
    ring.produce(2)
    ring.produce(3)
    attached._look_at_files(attached._ring)
    ring.produce(4)
    batch = attached.poll()[0]
    attached._inotify = None
    assert [event.path for event in batch] == ["/1", "/file0", "/2", "/3", "/file1", "/4", "/file2"]


def test_what_threads_waited_for_comes_before_the_calls_that_may_finish_a_run(attached, ring):
    waits = EventBatch.of([Event(3, Kind.SCHED_SWITCH, pid=1)])
    attached._sched = SimpleNamespace(drain=lambda: waits, probes=SimpleNamespace(misses=lambda: 0))
    ring.produce(1)
    first, second = attached.poll()[:2]
    attached._sched = None
    assert first is waits
    assert [event.path for event in second] == ["/1"]


def test_a_ring_that_fills_is_read_at_once(attached, ring):
    attached._options = replace(attached._options, batch_seconds=3600)
    made = ring.room // 2
    for name in range(made):
        ring.produce(name)
    attached.wait(1)
    assert len(attached.poll()[0]) == made


@pytest.mark.parametrize(("batches", "gathers"), [((3600, 0), False), ((0, 3600), True), ((3600, None), True)])
def test_a_wait_may_be_for_another_batch_than_usual(attached, ring, monkeypatch, batches, gathers):
    usual, other = batches
    attached._options = replace(attached._options, batch_seconds=usual)
    ring.produce(1)
    answers = iter([{attached._probes.ring}, {-7}])  # events have come; then somebody else can be read
    monkeypatch.setattr(session_module, "readable", lambda *_: next(answers))
    attached.wait(1, batch_seconds=other)
    assert (next(answers, None) is None) is gathers


def test_whoever_else_can_be_read_ends_the_wait(attached, ring):
    attached._options = replace(attached._options, batch_seconds=3600)
    ring.produce(1)
    attached.wait(3600, attached._probes.ring)


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ((), "cccc"),
        ((5,), "cfccc"),  # read by the first look, which saw one call
        ((10, 11, 20), "cfcffcc"),
        ((21, 99), "ccccff"),  # after the last look
    ],
)
def test_calls_come_before_the_file_events_that_were_read_later(stamps, expected):
    calls = EventBatch.of(Event(number, Kind.MKDIR, path=f"c{number}") for number in range(4))
    files = EventBatch.of(Event(stamp, Kind.INOTIFY, path=f"f{stamp}") for stamp in stamps)
    both = list(merged(calls, files, [10, 20], [1, 2]))
    assert "".join(event.path[0] for event in both) == expected
    assert [event.path for event in both if event.path[0] == "c"] == ["c0", "c1", "c2", "c3"]
    assert [event.path for event in both if event.path[0] == "f"] == [f"f{stamp}" for stamp in stamps]


def test_a_look_may_have_seen_calls_that_are_not_over():
    calls = EventBatch.of([Event(1, Kind.MKDIR, path="c")])
    files = EventBatch.of([Event(2, Kind.INOTIFY, path="f")])
    assert [event.path for event in merged(calls, files, [3], [5])] == ["c", "f"]


def test_configurations_are_asked_for_while_events_still_wait(attached, ring):
    busy = Busy(0)
    attached._containers.close()
    attached._containers = ContainerIdentities(busy, DATA)
    ring.produce(1, kind=Kind.MKDIRAT, path=f"{DATA}/containers/{container_id(1)}")
    ring.produce(2, kind=Kind.API_RESPONSE)
    attached.wait(1)
    eventually(lambda: all(future.done() for future in attached._containers._asked))
    attached.wait(1)
    eventually(lambda: busy.inspected == [container_id(1)])
    assert [container.id for container in attached._containers.take()][:1] == [container_id(1)]


class Busy(Identity):
    """An engine that does not inspect while a container is being started."""

    def __init__(self, questions):
        super().__init__()
        self.questions = questions
        self.inspected = []

    def inspect(self, asked):
        self.inspected.append(asked)
        started = self.inspected.count(asked) > self.questions
        return Container(asked, image="img", configuration={"Id": asked}) if started else None


@pytest.mark.parametrize(("questions", "is_told"), [(0, True), (3, True), (10_000, False)])
def test_who_is_not_answered_asks_again_but_not_forever(questions, is_told):
    busy = Busy(questions)
    containers = ContainerIdentities(busy, DATA)
    first, second = container_id(1), container_id(2)
    made = [Event(1, Kind.MKDIRAT, path=f"{DATA}/containers/{text}") for text in (first, second)]
    containers.watch(EventBatch.of(made))
    found = containers.last(60)
    containers.close()
    configured = [container.id for container in found if container.configuration]
    assert configured == ([first, second] if is_told else [])
    # Each waits in line again behind the others.
    assert busy.inspected[:2] == [first, second]
    assert len(busy.inspected) <= 2 * 60
