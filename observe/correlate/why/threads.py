# SPDX-License-Identifier: Apache-2.0
"""The scheduler's events become what each thread did when: on a CPU, waiting for one, asleep; and who woke it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from observe.correlate.rows import Row
from observe.model import Kind

#: TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE | TASK_WAKING (woken on its way to sleep), include/linux/sched.h
_SLEEPS = 0x203
_STATE = 0xFFFF


class State(IntEnum):
    """What a thread does."""

    RUNNING = 0
    RUNNABLE = 1
    ASLEEP = 2
    UNBORN = 3


class Thread(NamedTuple):
    """A thread at a moment: its number may be another's later."""

    pid: int
    tid: int


class Stretch(NamedTuple):
    """A thread in one state. `sleep`: the switch that began it; `waker`: who ended it (None: nobody that is known)."""

    start_ns: int
    end_ns: int
    state: State
    sleep: Row | None = None
    waker: Thread | None = None


@dataclass(slots=True)
class _Now:
    """What is known of a thread while its events are read."""

    state: State
    since_ns: int
    sleep: Row | None = None
    woken: Row | None = None
    stretches: list[Stretch] = field(default_factory=list)

    def enter(self, state: State, at_ns: int, waker: Thread | None = None) -> None:
        if at_ns > self.since_ns:
            self.stretches.append(Stretch(self.since_ns, at_ns, self.state, self.sleep, waker))
        self.state, self.since_ns, self.sleep, self.woken = state, max(at_ns, self.since_ns), None, None


class Threads:
    """Every thread that the scheduler's events tell of, between two moments."""

    def __init__(self, rows: Iterable[Row], start_ns: int, end_ns: int) -> None:
        """`rows`: the scheduler's events between the two, in order of time."""
        self._start_ns, self._end_ns = start_ns, end_ns
        self._now: dict[int, _Now] = {}
        self._pids: dict[int, int] = {}
        for row in rows:
            if row.kind == Kind.SCHED_SWITCH:
                self._switch(row)
            elif row.kind in (Kind.SCHED_WAKING, Kind.SCHED_WAKEUP_NEW):
                self._woken(row)
        self._stretches = {}
        for tid, now in self._now.items():
            now.enter(now.state, end_ns)
            self._stretches[tid] = now.stretches
        self._starts = {tid: [one.start_ns for one in stretches] for tid, stretches in self._stretches.items()}

    def _of(self, tid: int, pid: int, before: State) -> _Now:
        if pid:
            self._pids[tid] = pid
        return self._now.setdefault(tid, _Now(before, self._start_ns))

    def _switch(self, row: Row) -> None:
        if row.pid:
            leaves = self._of(row.tid, row.pid, State.RUNNING)
            self._has_run(leaves)
            asleep = bool(row.flags & _SLEEPS)
            # Neither runnable nor asleep: stopped, traced or dead; nobody has to wait for it.
            woken = leaves.woken
            leaves.enter(State.ASLEEP if row.flags & _STATE else State.RUNNABLE, row.time_ns)
            leaves.sleep, leaves.woken = (row, woken) if asleep else (None, None)
        if row.ret:
            takes = self._of(row.ret, row.flags >> 32, State.RUNNABLE)
            self._wake_early(takes)
            takes.enter(State.RUNNING, row.time_ns)

    def _has_run(self, now: _Now) -> None:
        """Of a thread that leaves a CPU, though nobody may have told that it took one.

        Some kernels keep a few switches away from idleness to themselves (of a Linux 6.18, 1 in 2,500 was missed). An
        idle CPU is taken at once, so the thread has run since it could.
        """
        self._wake_early(now)
        if now.state is State.RUNNABLE:
            now.state = State.RUNNING

    def _wake_early(self, now: _Now) -> None:
        """Whoever was woken on its way to sleep is not asleep."""
        if now.state is State.ASLEEP and now.woken is not None:
            self._wake(now, now.woken)

    def _woken(self, row: Row) -> None:
        born = row.kind == Kind.SCHED_WAKEUP_NEW
        if born:
            self._now.pop(row.tid, None)  # the number was another's before
        now = self._of(row.tid, row.pid, State.UNBORN if born else State.ASLEEP)
        if now.state in (State.ASLEEP, State.UNBORN):
            self._wake(now, row)
        elif now.state is State.RUNNING:  # it was about to go to sleep: the switch has not been told yet
            now.woken = row

    def _wake(self, now: _Now, row: Row) -> None:
        waker = Thread(row.flags >> 32, row.ret) if row.ret else None
        if waker:
            self._pids.setdefault(waker.tid, waker.pid)
        now.enter(State.RUNNABLE, max(row.time_ns, now.since_ns), waker)

    def at(self, tid: int, time_ns: int) -> Stretch | None:
        """What a thread did just before a moment; None if nothing is known of it."""
        stretches = self._stretches.get(tid)
        if not stretches:
            return None
        index = bisect_left(self._starts[tid], time_ns) - 1
        return stretches[index] if index >= 0 else None

    def pid(self, tid: int) -> int:
        """The process of a thread; 0 if unknown."""
        return self._pids.get(tid, 0)

    def slept_between(self, tid: int, start_ns: int, end_ns: int) -> bool:
        """Whether a thread was asleep at any moment of a time."""
        at_ns = end_ns
        while at_ns > start_ns:
            stretch = self.at(tid, at_ns)
            if stretch is None:
                return False
            if stretch.state is State.ASLEEP:
                return True
            at_ns = stretch.start_ns
        return False
