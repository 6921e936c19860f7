# SPDX-License-Identifier: Apache-2.0
"""The critical path of an operation: the threads that its request was really waiting for, one after the other.

It is walked backwards, from the answer to the request. The textbook's walk (whenever a thread slept, go on at whoever
woke it) fails as soon as a daemon serves several requests at once: one wake-up by somebody else's business, and it goes
on in another container. So the walk knows two kinds of processes. The container's *own* (runtime, shim, hooks, whatever
they start) work for nobody else: there, the textbook's walk holds. A *daemon* (dockerd, containerd) is shared: there it
follows daemons only, and leaves them where an own process was heard last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from observe.correlate.rows import Row
from observe.correlate.why.threads import State, Stretch, Thread, Threads
from observe.model import Kind


class Anchor(NamedTuple):
    """The request was served by a thread at a moment. `in_call`: until the next one it is in one system call."""

    time_ns: int
    tid: int
    in_call: bool = False


class Edge(NamedTuple):
    """A daemon could hear of an own thread: it sent something, ended, or woke a daemon's thread."""

    time_ns: int
    thread: Thread


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the critical path: one thread in one state. `sleep`: the switch that began it, if it was asleep."""

    start_ns: int
    end_ns: int
    thread: Thread
    state: State
    sleep: Row | None = None


@dataclass(frozen=True, slots=True)
class Parties:
    """Who is who: processes that work for the container alone, and the daemons that all share."""

    own: frozenset[int]
    daemons: frozenset[int]


def edges_of(scheduler: Iterable[Row], rows: Iterable[Row], parties: Parties) -> list[Edge]:
    """When a daemon could hear of an own thread, in order of time."""
    found = []
    for row in scheduler:
        if row.kind == Kind.SOCK_SEND_LENGTH and row.pid in parties.own:
            found.append(Edge(row.time_ns, Thread(row.pid, row.tid)))
        elif row.kind == Kind.SCHED_WAKING and row.flags >> 32 in parties.own and row.pid in parties.daemons:
            found.append(Edge(row.time_ns, Thread(row.flags >> 32, row.ret)))
    found += [
        Edge(row.time_ns, Thread(row.pid, row.tid))
        for row in rows
        if row.kind == Kind.SCHED_PROCESS_EXIT and row.pid in parties.own
    ]
    return sorted(found, key=lambda edge: edge.time_ns)


def critical_path(threads: Threads, anchors: Sequence[Anchor], edges: Sequence[Edge], parties: Parties) -> list[Step]:
    """Steps that fill the time from the first anchor to the last one, without gaps and in order of time."""
    walk = _Walk(threads, edges, parties)
    for before, after in zip(reversed(anchors[:-1]), reversed(anchors[1:]), strict=True):
        if after.time_ns <= before.time_ns:
            continue
        if before.in_call or (
            before.tid == after.tid and not threads.slept_between(after.tid, before.time_ns, after.time_ns)
        ):
            walk.stay(after.time_ns, before.tid, before.time_ns)
        else:  # parked meanwhile: whoever let it go on
            walk.through_daemons(after.time_ns, after.tid, before.time_ns)
    return _joined(walk.steps)


class _Walk:
    """Collects steps, latest first. Each method fills the time from `low_ns` to `time_ns` completely."""

    def __init__(self, threads: Threads, edges: Sequence[Edge], parties: Parties) -> None:
        self._threads, self._edges, self._parties = threads, edges, parties
        self._edge_times = [edge.time_ns for edge in edges]
        self.steps: list[Step] = []

    def stay(self, time_ns: int, tid: int, low_ns: int) -> None:
        """The thread itself is what is waited for; an own process that it waits for takes its place."""
        while time_ns > low_ns:
            stretch = self._threads.at(tid, time_ns)
            waker = _waker(stretch, time_ns)
            if stretch and waker and waker.pid in self._parties.own and stretch.state is State.ASLEEP:
                self._follow(time_ns, waker.tid, max(low_ns, stretch.start_ns), among=self._parties.own)
                time_ns = max(low_ns, stretch.start_ns)
            else:
                time_ns = self._charge(stretch, time_ns, tid, low_ns)

    def through_daemons(self, time_ns: int, tid: int, low_ns: int) -> None:
        """From a daemon's thread back to the own process that was heard last, and on there."""
        self._follow(time_ns, tid, low_ns, among=self._parties.daemons)

    def _follow(self, time_ns: int, tid: int, low_ns: int, *, among: frozenset[int]) -> None:
        """Wherever a thread slept, go on at whoever of the same party woke it; every other sleep is charged."""
        own, daemons = self._parties.own, self._parties.daemons
        edge = self._last_edge(time_ns, low_ns) if among is daemons else None
        followed_ns = time_ns + 1
        while time_ns > low_ns:
            if edge and time_ns <= edge.time_ns:
                among, tid, edge = own, edge.thread.tid, None
            stretch = self._threads.at(tid, time_ns)
            waker = _waker(stretch, time_ns) if time_ns < followed_ns else None
            if waker and waker.pid in among:
                followed_ns, tid = time_ns, waker.tid
            elif waker and among is own and waker.pid in daemons:
                followed_ns, tid, among = time_ns, waker.tid, daemons
                edge = self._last_edge(time_ns, low_ns)
            else:
                time_ns = self._charge(stretch, time_ns, tid, edge.time_ns if edge else low_ns)

    def _last_edge(self, time_ns: int, low_ns: int) -> Edge | None:
        index = bisect_left(self._edge_times, time_ns) - 1
        return self._edges[index] if index >= 0 and self._edge_times[index] > low_ns else None

    def _charge(self, stretch: Stretch | None, time_ns: int, tid: int, low_ns: int) -> int:
        """Charge what the thread did before `time_ns`, as far back as it did it; where that began."""
        state, start_ns, sleep = State.RUNNING, low_ns, None  # nothing known: it never left its CPU
        if stretch is not None:
            state, start_ns, sleep = stretch.state, max(stretch.start_ns, low_ns), stretch.sleep
        self.steps.append(Step(start_ns, time_ns, Thread(self._threads.pid(tid), tid), state, sleep))
        return start_ns


def _waker(stretch: Stretch | None, time_ns: int) -> Thread | None:
    """Who ended the sleep, or began the thread, that ends at a moment."""
    ended = stretch is not None and stretch.end_ns == time_ns and stretch.state in (State.ASLEEP, State.UNBORN)
    return stretch.waker if stretch is not None and ended else None


def _joined(steps: Sequence[Step]) -> list[Step]:
    """In order of time; neighbours of the same thread, state and sleep as one."""
    joined: list[Step] = []
    for step in reversed(steps):
        last = joined[-1] if joined else None
        if last and (last.thread, last.state, last.sleep) == (step.thread, step.state, step.sleep):
            joined[-1] = Step(last.start_ns, step.end_ns, last.thread, last.state, last.sleep)
        else:
            joined.append(step)
    return joined
