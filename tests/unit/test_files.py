# SPDX-License-Identifier: Apache-2.0
"""inotify's events get the time and the process of the calls that caused them; what it missed is counted exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import (
    CREATE_EXCLUSIVELY,
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_TO,
    MS,
    NO_MARK,
    SECOND,
    batch_of,
)

from observe.correlate.files import IN_MOVED_FROM, FileJoin
from observe.correlate.rows import Row, rows_of
from observe.model import Event, EventBatch, Kind, Mark

WATCHED = ("/data/containers", "/data/overlay2")
FILE, FOLDER = "/data/containers/c/f", "/data/overlay2/l"
PLAIN_CREATE = 0x80241


def row(event: Event) -> Row:
    return next(rows_of(EventBatch.of([event])))


def call(kind: Kind, path: str, at_ns: int = 100, **columns: object) -> Row:
    values = {"duration_ns": 10, "pid": 5, "tid": 6, "goroutine": 7, "comm": "dockerd", **columns}
    return row(Event(at_ns, kind, path=path, **values))  # type: ignore[arg-type]


def told(mask: int, path: str, at_ns: int = 1000, marks: Mark = NO_MARK) -> Row:
    return row(Event(at_ns, Kind.INOTIFY, flags=mask, path=path, marks=marks))


class Join(FileJoin):
    """One event at a time, while no time passes."""

    def event(self, row: Row) -> Row:
        batch = batch_of([row])
        joined = self.join(batch, np.zeros(1, dtype=np.int64))
        return row if joined is batch else next(rows_of(joined))

    call = event


@pytest.fixture
def join() -> Join:
    return Join(WATCHED)


@pytest.mark.parametrize(
    ("cause", "mask", "path"),
    [
        (call(Kind.MKDIR, FOLDER), IN_CREATE | IN_ISDIR, FOLDER),
        (call(Kind.MKDIRAT, FOLDER), IN_CREATE | IN_ISDIR, FOLDER),
        (call(Kind.OPENAT, FILE, flags=CREATE_EXCLUSIVELY), IN_CREATE, FILE),
        (call(Kind.OPENAT, FILE, flags=PLAIN_CREATE), IN_CREATE, FILE),
        (call(Kind.CREAT, FILE), IN_CREATE, FILE),
        (call(Kind.RENAMEAT, FILE, path2="/data/containers/c/old"), IN_MOVED_TO, FILE),
        (call(Kind.RENAME, FILE, path2="/data/containers/c/old"), IN_MOVED_FROM, "/data/containers/c/old"),
        (call(Kind.UNLINKAT, FILE), IN_DELETE, FILE),
        (call(Kind.RMDIR, FOLDER), IN_DELETE | IN_ISDIR, FOLDER),
        (
            call(Kind.MKDIRAT, "/data/overlay2/l-init/merged/dev"),
            IN_CREATE | IN_ISDIR,
            "/data/overlay2/l-init/diff/dev",
        ),
    ],
)
def test_an_event_takes_over_time_and_process_of_its_call(join, cause, mask, path):
    join.call(cause)
    event = told(mask, path)
    joined = join.event(event)
    assert joined == event._replace(time_ns=100, pid=5, tid=6, goroutine=7, comm="dockerd")
    assert join.event(event) == event  # once


@pytest.mark.parametrize(
    ("cause", "event"),
    [
        (call(Kind.MKDIR, FOLDER), told(IN_CREATE, FOLDER)),  # a file of that name
        (call(Kind.MKDIR, FOLDER), told(IN_CREATE | IN_ISDIR, FOLDER + "x")),
        (call(Kind.MKDIR, FOLDER, ret=-17), told(IN_CREATE | IN_ISDIR, FOLDER)),  # it existed
        (call(Kind.MKDIR, FOLDER), told(IN_DELETE | IN_ISDIR, FOLDER)),
        (call(Kind.MKDIR, "l"), told(IN_CREATE | IN_ISDIR, "l")),  # relative to nobody knows what
        (call(Kind.OPENAT, FILE), told(IN_MODIFY, FILE)),
        (call(Kind.OPENAT, FILE), told(IN_ATTRIB, FILE)),
        (call(Kind.FSYNC, FILE), told(IN_CREATE, FILE)),
        (call(Kind.MKDIR, FOLDER), told(IN_CREATE | IN_ISDIR, FOLDER, marks=Mark.INVENTED)),
        (call(Kind.MKDIR, FOLDER), told(IN_CREATE | IN_ISDIR, FOLDER, marks=Mark.INVENTED | Mark.RESCANNED)),
    ],
)
def test_an_event_without_its_call_stays_as_it_is(join, cause, event):
    join.call(cause)
    assert join.event(event) is event


@pytest.mark.parametrize(
    ("cause", "missed"),
    [
        (call(Kind.MKDIR, FOLDER), 1),
        (call(Kind.OPENAT, FILE, flags=CREATE_EXCLUSIVELY), 1),
        (call(Kind.OPENAT, FILE, flags=PLAIN_CREATE), 0),  # nothing is created if it was there
        (call(Kind.RENAMEAT, FILE, path2="/data/containers/c/old"), 1),  # one operation
        (call(Kind.UNLINKAT, FILE), 1),
        (call(Kind.UNLINKAT, FILE, ret=-2), 0),
        (call(Kind.MKDIR, "/elsewhere/x"), 0),
        (call(Kind.MKDIR, "/data/containers"), 0),
        (call(Kind.MKDIR, "/data/overlay2/l/merged"), 0),  # nobody watches in there
        (call(Kind.MKDIR, "/data/overlay2/l/merged/dev"), 0),
        (call(Kind.FSYNC, FILE), 0),
    ],
)
def test_what_inotify_never_tells_is_missed(join, cause, missed):
    join.call(cause)
    join.finish()
    assert join.missed == missed


def test_what_was_told_or_invented_is_counted_for_what_it_is(join):
    for n in range(7):
        join.call(call(Kind.MKDIR, f"{FOLDER}/{n}", 100 + 20 * n))
    for n in (1, 2, 5):
        join.event(told(IN_CREATE | IN_ISDIR, f"{FOLDER}/{n}"))
    join.event(told(IN_CREATE | IN_ISDIR, f"{FOLDER}/6", marks=Mark.INVENTED))
    join.finish()
    assert join.missed == 4


def test_without_watches_nothing_is_missed():
    join = Join(())
    join.call(call(Kind.MKDIR, FOLDER))
    join.finish()
    assert join.missed == 0


def test_late_is_late_only_after_its_time(join):
    join.call(call(Kind.MKDIR, FOLDER, 100))
    join.advance(3 * SECOND + 99)
    assert join.missed == 0
    join.advance(3 * SECOND + 100)
    assert join.missed == 1
    event = told(IN_CREATE | IN_ISDIR, FOLDER, 4 * SECOND)
    assert join.event(event) is event


def test_a_later_event_shows_that_earlier_ones_will_not_come(join):
    """The folder is made, removed and made again; of the first time inotify told nothing."""
    join.call(call(Kind.MKDIR, FOLDER, 100))
    join.call(call(Kind.RMDIR, FOLDER, 200))
    join.call(call(Kind.OPENAT, FILE, 300, flags=CREATE_EXCLUSIVELY))
    join.call(call(Kind.MKDIR, FOLDER, 400))
    assert join.event(told(IN_CREATE, FILE)).time_ns == 300
    assert join.missed == 2
    assert join.event(told(IN_CREATE | IN_ISDIR, FOLDER)).time_ns == 400
    join.finish()
    assert join.missed == 2


def test_calls_at_the_same_time_may_be_told_in_either_order(join):
    join.call(call(Kind.MKDIR, FOLDER, 100, duration_ns=50))
    join.call(call(Kind.OPENAT, FILE, 120, flags=CREATE_EXCLUSIVELY))
    assert join.event(told(IN_CREATE, FILE)).pid
    assert join.event(told(IN_CREATE | IN_ISDIR, FOLDER)).pid
    join.finish()
    assert join.missed == 0


def test_a_busy_file_keeps_nothing_waiting(join):
    """Another file is opened again and again, so its calls always wait: they must not hold up the others."""
    for n in range(100):
        join.call(call(Kind.OPENAT, "/data/network/local-kv.db", n * SECOND, flags=PLAIN_CREATE))
        join.call(call(Kind.MKDIR, f"{FOLDER}/{n}", n * SECOND + 1))
        join.advance(n * SECOND + 1)
        assert len(join._waiting) <= 8
        assert len(join._by_key) <= 5
    assert join.missed == 97
    join.finish()
    assert join.missed == 100
    assert not join._waiting
    assert not join._by_key


PATHS = st.sampled_from([f"{FOLDER}/{n}" for n in range(3)])


@given(st.lists(st.tuples(PATHS, st.sampled_from([Kind.MKDIR, Kind.RMDIR]), st.booleans()), max_size=40))
def test_every_operation_is_told_or_missed_and_no_event_invents_one(operations):
    """In order, at different times: each event finds its own call, whatever was missed in between."""
    join = Join(WATCHED)
    for n, (path, kind, _) in enumerate(operations):
        join.call(call(kind, path, n * MS))
    seen = 0
    for path, kind, is_told in operations:
        if is_told:
            joined = join.event(told(IN_ISDIR | (IN_CREATE if kind == Kind.MKDIR else IN_DELETE), path, 2 * SECOND))
            seen += bool(joined.pid)
    join.finish()
    assert seen == sum(is_told for _, _, is_told in operations)
    assert join.missed == len(operations) - seen
    assert not join._by_key
