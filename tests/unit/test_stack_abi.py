# SPDX-License-Identifier: Apache-2.0
"""Functions of Go before 1.17: a return knows its stack pointer only, and finds its entry all the same."""

from __future__ import annotations

import pytest
from streams import DOCKERD, MS, batch_of, correlate, create, header, identity, probed, stream

from observe.correlate.frames import FrameMatcher
from observe.correlate.rows import Row, rows_of
from observe.correlate.stack_abi import StackAbiReturns
from observe.model import Event, EventBatch, Evidence, Kind

F, OTHER = 1, 2
G, G2 = 0xC000000001, 0xC000000002
STACK, STACK2 = 0xC000100000, 0xC000200000


def event(kind: Kind, at_ns: int, number: int, stack: int, g: int = 0, *, tid: int = 20, pid: int = DOCKERD) -> Event:
    """As the program records it: the stack pointer above the number, the depth only where g is known."""
    depth = 64 if g else 0
    return Event(at_ns, kind, goroutine=g, ret=depth, flags=stack << 16 | number, pid=pid, tid=tid)


def entry(at_ns: int, number: int = F, stack: int = STACK, g: int = G, **where: int) -> Row:
    return next(rows_of(EventBatch.of([event(Kind.FUNCTION_ENTRY, at_ns, number, stack, g, **where)])))


def ends(at_ns: int, number: int = F, stack: int = STACK, **where: int) -> Row:
    return next(rows_of(EventBatch.of([event(Kind.FUNCTION_RETURN, at_ns, number, stack, **where)])))


def returns(*rows: Row) -> list[int]:
    """The goroutine that each return is found to be on."""
    matching = StackAbiReturns()
    completed = [matching.complete(row) for row in rows]
    assert all(row.flags in (F, OTHER) for row in completed)
    return [row.goroutine for row in completed if row.kind == Kind.FUNCTION_RETURN]


def test_a_return_is_where_its_stack_pointer_was_at_an_entry():
    rows = [entry(1), entry(2, stack=STACK2, g=G2), ends(3, tid=30), ends(4, stack=STACK2, tid=31)]
    assert returns(*rows) == [G, G2]


def test_a_return_has_its_entrys_depth_so_that_they_are_one_frame():
    matching, matcher = StackAbiReturns(), FrameMatcher({F: "f"})
    (frame,) = (frame for row in (entry(1), ends(5)) for frame in matcher.feed(batch_of([matching.complete(row)])))
    assert (frame.goroutine, frame.depth_bytes, frame.start_ns, frame.end_ns, frame.complete) == (G, 64, 1, 5, True)


def test_where_the_stack_was_copied_the_thread_decides():
    elsewhere = 0xC000900000
    rows = [entry(1, tid=20), entry(2, stack=STACK2, g=G2, tid=21), ends(3, stack=elsewhere, tid=21)]
    assert returns(*rows) == [G2]


def test_and_where_the_thread_changed_too_the_only_call_does():
    elsewhere = {"stack": 0xC000900000, "tid": 99}
    assert returns(entry(1), ends(3, **elsewhere)) == [G]
    assert returns(entry(1), entry(2, stack=STACK2, g=G2), ends(3, **elsewhere)) == [0]


@pytest.mark.parametrize("where", [{"number": OTHER}, {"pid": 11}])
def test_a_return_of_another_function_or_process_is_none_of_it(where):
    assert returns(entry(1), ends(3, **where)) == [0]


def test_each_entry_has_one_return():
    assert returns(entry(1), ends(2), ends(3)) == [G, 0]
    assert returns(ends(1), entry(2)) == [0]


def test_rows_of_newer_programs_pass_unchanged():
    row = entry(1)._replace(flags=F)
    assert StackAbiReturns().complete(row) is row


def test_nothing_is_kept_of_calls_that_returned_and_little_of_those_that_never_do():
    matching = StackAbiReturns()
    for pid in range(1_000, 3_000):
        matching.complete(entry(1, pid=pid))
        matching.complete(ends(2, pid=pid))
        matching.complete(ends(2, pid=pid))
    assert not matching._open
    for at in range(10_000):
        matching.complete(entry(at))
        matching.complete(entry(at, pid=1_000 + at))
    assert len(matching._open) < 5_000
    assert [matching.complete(ends(10_001, pid=10_999)).goroutine for _ in range(2)] == [G, 0]
    assert sum(map(len, matching._open.values())) < 5_000


def test_two_requests_at_once_keep_their_functions_apart():
    """No system call tells its goroutine: the handler that the request's thread enters does."""
    handler = "github.com/docker/docker/api/server/router/container.(*containerRouter).postContainersCreate"
    image = "github.com/docker/docker/daemon/images.(*ImageService).GetImage"
    events = create(1, MS, name="first", g=7) + create(2, MS + MS // 2, name="second", g=7)
    for g, stack, at in ((G, STACK, 2 * MS), (G2, STACK2, 2 * MS + MS // 2)):
        events.append(event(Kind.FUNCTION_ENTRY, at - MS // 4, 1, stack, g))
        events.append(event(Kind.FUNCTION_ENTRY, at, 2, stack - 64, g))
    for stack, at in ((STACK, 6 * MS), (STACK2, 4 * MS)):
        events.append(event(Kind.FUNCTION_RETURN, at, 2, stack - 64, tid=99))
    # One handler is entered before the other request comes.
    first = next(each for each in events if each.kind == Kind.FUNCTION_ENTRY)
    events[events.index(first)] = event(Kind.FUNCTION_ENTRY, MS + MS // 4, 1, STACK, G)
    items = stream(events, identity(1, 0, "first"), identity(2, 0, "second"), *probed(handler, image))
    runs, correlator = correlate(items, header("go1.15.15"))
    spans = {run.container_name: next(s for s in run.phases if s.id == "create.image") for run in runs}
    assert {name: span.duration_ns for name, span in spans.items()} == {
        "first": 4 * MS,
        "second": MS + MS // 2,
    }
    assert {span.evidence for span in spans.values()} == {Evidence.FUNCTION}
    assert correlator.loss.unmatched_returns == 0
