# SPDX-License-Identifier: Apache-2.0
"""A request that hangs for minutes on a busy engine: memory stays bounded, and nothing is given up unseen."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from streams import (
    CONTAINERD,
    DATA,
    DOCKERD,
    MS,
    SECOND,
    Script,
    container_id,
    create,
    daemons,
    header,
    identity,
    start,
)

from observe.correlate import Correlator
from observe.correlate import operation as operation_module
from observe.correlate import undecided as undecided_module
from observe.correlate.operation import Operation
from observe.model import Event, EventBatch, Kind
from observe.phases import load

ROUNDS = 200
HANGING = 7
MOST_EVENTS = 90


@pytest.fixture
def small(monkeypatch):
    """Limits that a test reaches."""
    monkeypatch.setattr(undecided_module, "MOST_WAITING", 100)
    monkeypatch.setattr(operation_module, "_MOST_PARTS", 8)


def nobodys(at_ns, count):
    """What containerd does for somebody who cannot be told."""
    script = Script(at_ns, 0, CONTAINERD)
    for _ in range(count):
        script.happens(Kind.FDATASYNC, fd=9)
    return script.events


def rounds(hanging):
    """One batch a second: a container is made, somebody does something, and `hanging` still does a little."""
    for number in range(1, ROUNDS):
        at_ns = number * SECOND
        own = Event(at_ns, Kind.MKDIRAT, 1, hanging.goroutine, pid=DOCKERD, tid=DOCKERD, path=f"{DATA}/x{number}")
        made = create(100 + number, at_ns + MS)
        yield EventBatch.of([own, *made, *nobodys(at_ns + 500 * MS, 5)])
        yield identity(100 + number, at_ns + 600 * MS)


@pytest.mark.usefixtures("small")
def test_a_request_that_hangs_holds_neither_the_batches_nor_the_runs_of_others():
    correlator = Correlator(header(), load(), most_events=MOST_EVENTS)
    for item in daemons():
        correlator.feed(item)
    first, *rest = create(HANGING, 0, status=None)
    correlator.feed(EventBatch.of([first, *rest]))
    alive, runs, fed = [], [], 0
    for item in rounds(first):
        if isinstance(item, EventBatch):
            fed += len(item)
            alive.append(weakref.ref(item.rows))
        runs += correlator.feed(item)
        del item
    assert len(runs) >= ROUNDS - 3
    assert len(correlator._undecided) <= undecided_module.MOST_WAITING
    assert len(correlator._undecided._ended) <= undecided_module.MOST_WAITING
    assert all(operation.events().rows.size == 0 for operation in correlator._undecided._ended)
    assert sum(ref() is not None for ref in alive) <= operation_module._MOST_PARTS
    # What waits for a decision has no path, and holds none.
    assert len(correlator._undecided._waiting)
    assert len({*correlator._undecided._waiting.strings}) <= 2
    assert len(correlator._undecided._new) <= undecided_module._MOST_NEW
    runs += correlator.finish()
    (hung,) = [run for run in runs if run.outcome == "unfinished"]
    kept = sum(span.syscalls for span in hung.phases)
    given = sum(span.syscalls for run in runs for span in run.phases)
    assert kept == MOST_EVENTS
    # All that happened is somebody's or counted.
    boundaries = 2 * (ROUNDS - 1)
    assert given + correlator.loss.unattributed_events == fed + len(rest) - boundaries
    reasons = correlator.left
    assert reasons["too_many_in_one_operation"] > 0
    assert sum(reasons.values()) - reasons["another_container"] == correlator.loss.unattributed_events


@pytest.mark.usefixtures("small")
def test_of_what_other_containers_do_while_a_request_hangs_nothing_is_kept_but_when_it_was():
    """The request's container is known, so each event of another one is decided when it comes."""
    correlator = Correlator(header(), load())
    for item in [*daemons(), identity(HANGING, 0)]:
        correlator.feed(item)
    correlator.feed(EventBatch.of(start(HANGING, 0, status=None)))
    before = len(correlator._undecided)
    for number in range(1, ROUNDS):
        path = f"{DATA}/containers/{container_id(number % 5 + 100)}/{number}"
        correlator.feed(EventBatch.of([Event(number * SECOND, Kind.MKDIRAT, 1, pid=DOCKERD, path=path)]))
        assert correlator.left["another_container"] == number
        assert len(correlator._undecided) == before
    assert len(correlator._undecided._work) <= undecided_module.MOST_WAITING < ROUNDS


def test_what_an_operation_keeps_in_few_pieces_is_what_it_was_given(monkeypatch):
    monkeypatch.setattr(operation_module, "_MOST_PARTS", 5)
    batches = [
        EventBatch.of(Event(100 * number + place, Kind.MKDIR, path=f"/{number}/{place}") for place in range(4))
        for number in range(23)
    ]
    operation = Operation("create", 0, 1, 1, 1, "")
    for number, batch in enumerate(batches):
        # Of one batch in two turns.
        for place in (2, 0):
            operation.take(batch, np.array([place]), 4 * number)
        assert operation.has_used(f"/{number}/2", 4 * number + 3)
        assert not operation.has_used(f"/{number}/2", 4 * number + 2)
        assert not operation.has_used(f"/{number}/1", 10_000)
    assert operation.has_used("/0/0", 1)
    assert sorted(event.path for event in operation.events()) == sorted(
        f"/{number}/{place}" for number in range(23) for place in (0, 2)
    )
    assert len(operation._parts) < 5
    assert operation.dropped == 0


@pytest.mark.usefixtures("small")
def test_an_operation_that_ends_in_time_loses_nothing():
    correlator = Correlator(header(), load())
    begun = [*create(1, 0), identity(1, SECOND), *start(1, 2 * SECOND)]
    runs = [
        run
        for item in [*daemons(), *begun]
        for run in correlator.feed(EventBatch.of([item]) if isinstance(item, Event) else item)
    ]
    runs += correlator.finish()
    assert {run.container_id for run in runs} == {container_id(1)}
    assert correlator.loss.unattributed_events == 0
