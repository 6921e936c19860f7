# SPDX-License-Identifier: Apache-2.0
"""From an operation's events to what its time was spent on: a list of pure steps."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from observe.correlate.rows import Row
from observe.correlate.why.calls import call_name
from observe.correlate.why.causes import causes_of
from observe.correlate.why.events import SchedulerEvents
from observe.correlate.why.path import Anchor, Parties, Step, critical_path, edges_of
from observe.correlate.why.programs import Programs
from observe.correlate.why.threads import State, Threads
from observe.model import Cause, Kind, PathStep, Time
from observe.phases.causes import Causes, Sleep

_DAEMONS = ("dockerd", "containerd")
_STATES = {State.RUNNING: "cpu", State.RUNNABLE: "runqueue", State.ASLEEP: "blocked", State.UNBORN: "blocked"}
Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What is needed of an operation."""

    #: Its own events in order of time, and whether the goroutine that serves the request made each.
    rows: Sequence[Row]
    served: Sequence[bool]
    #: Its start and end, and the threads that read the request and wrote the answer (0: unknown).
    bounds: Interval
    request_tid: int
    answer_tid: int
    #: Role of a process.
    role: Callable[[int], str]
    #: When each phase was, by its id, and which one is the innermost at a moment.
    phases: Mapping[str, Sequence[Interval]]
    phase_at: Callable[[int], str]
    #: Where phases begin and end, in order of time.
    cuts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Why:
    """What the time was spent on: by phase id, in all, and why."""

    times: Mapping[str, Time]
    path: tuple[PathStep, ...]
    causes: tuple[Cause, ...]


@dataclass(frozen=True, slots=True)
class Explainer:
    """What all operations of a stream have in common; `machine`: as `uname -m` tells it."""

    scheduler: SchedulerEvents
    catalogue: Causes
    machine: str
    engine_version: str

    def explain(self, witnesses: Witnesses) -> Why | None:
        """None if the scheduler's events were not recorded."""
        switches = self.scheduler.between(*witnesses.bounds)
        if not switches:
            return None
        programs = Programs(witnesses.rows, witnesses.role)
        parties = _parties(witnesses, switches, programs)
        steps = critical_path(
            Threads(switches, *witnesses.bounds),
            _anchors(witnesses),
            edges_of(switches, witnesses.rows, parties),
            parties,
        )
        path = tuple(_told(_cut(steps, witnesses.cuts), witnesses, programs, self.machine, self.catalogue))
        return Why(_times(path, witnesses.phases), path, causes_of(path, self.catalogue, self.engine_version))


def _parties(witnesses: Witnesses, switches: Iterable[Row], programs: Programs) -> Parties:
    pids = {row.pid for row in witnesses.rows} | programs.processes
    daemons = {row.pid for row in switches if witnesses.role(row.pid) in _DAEMONS}
    daemons |= {pid for pid in pids if witnesses.role(pid) in _DAEMONS}
    return Parties(frozenset(pids - daemons - {0}), frozenset(daemons - {0}))


def _anchors(witnesses: Witnesses) -> list[Anchor]:
    """When the request's goroutine was on which thread, as its own events tell."""
    start_ns, end_ns = witnesses.bounds
    found = [Anchor(start_ns, witnesses.request_tid)]
    last = witnesses.answer_tid
    for row, is_served in zip(witnesses.rows, witnesses.served, strict=True):
        if not is_served or not start_ns < row.time_ns < end_ns or row.kind == Kind.INOTIFY:
            continue
        if row.is_syscall and row.duration_ns:
            found += [Anchor(row.time_ns, row.tid, in_call=True), Anchor(min(row.end_ns, end_ns), row.tid)]
        else:
            found.append(Anchor(row.time_ns, row.tid))
    found.sort(key=lambda anchor: anchor.time_ns)
    found.append(Anchor(end_ns, last or found[-1].tid))
    return found


def _cut(steps: Iterable[Step], cuts: Sequence[int]) -> Iterable[Step]:
    """The same steps, none of which lies in two phases."""
    for step in steps:
        start_ns = step.start_ns
        for cut in cuts[bisect_right(cuts, start_ns) :]:
            if cut >= step.end_ns:
                break
            yield Step(start_ns, cut, step.thread, step.state, step.sleep)
            start_ns = cut
        yield Step(start_ns, step.end_ns, step.thread, step.state, step.sleep)


def _told(
    steps: Iterable[Step], witnesses: Witnesses, programs: Programs, machine: str, catalogue: Causes
) -> Iterable[PathStep]:
    """Steps with what is known of them in words."""
    calls: dict[int, list[Row]] = {}
    for row in witnesses.rows:
        if row.is_syscall:
            calls.setdefault(row.tid, []).append(row)
    for step in steps:
        told = PathStep(
            start_ns=step.start_ns,
            duration_ns=step.end_ns - step.start_ns,
            state=_STATES[step.state],
            reason="",
            phase=witnesses.phase_at(step.start_ns),
            program=programs.at(step.thread.pid, step.start_ns),
            pid=step.thread.pid,
            tid=step.thread.tid,
        )
        if told.state == "blocked":
            recorded = _call_around(calls.get(step.thread.tid, ()), step)
            told = _asleep(told, step.sleep, recorded, machine, catalogue)
        yield told


def _call_around(calls: Sequence[Row], step: Step) -> Row | None:
    """The recorded call that a thread was in."""
    return next((row for row in calls if row.time_ns <= step.start_ns and step.end_ns <= row.end_ns), None)


def _asleep(step: PathStep, sleep: Row | None, recorded: Row | None, machine: str, catalogue: Causes) -> PathStep:
    call = call_name((sleep.flags >> 16 & 0xFFFF) - 1, machine) if sleep else ""
    stack = tuple(sleep.detail.split(";")) if sleep and sleep.detail else ()
    same = recorded is not None and (not call or Kind(recorded.kind).label == call)
    return replace(
        step,
        reason=catalogue.reason(Sleep(call, sleep.path2 if sleep else "", stack)),
        call=call,
        file=(sleep.path if sleep else "") or (recorded.path if recorded and same else ""),
        stack=stack,
        call_ns=recorded.time_ns if recorded and same else 0,
    )


def _times(path: Sequence[PathStep], phases: Mapping[str, Sequence[Interval]]) -> dict[str, Time]:
    starts = [step.start_ns for step in path]
    return {phase: _time(path, starts, intervals) for phase, intervals in phases.items()}


def _time(path: Sequence[PathStep], starts: Sequence[int], intervals: Iterable[Interval]) -> Time:
    cpu_ns = runqueue_ns = 0
    blocked_ns: Counter[str] = Counter()
    for start_ns, end_ns in intervals:
        for step in path[max(bisect_right(starts, start_ns) - 1, 0) :]:
            if step.start_ns >= end_ns:
                break
            inside_ns = min(step.start_ns + step.duration_ns, end_ns) - max(step.start_ns, start_ns)
            if inside_ns <= 0:
                continue
            if step.state == "cpu":
                cpu_ns += inside_ns
            elif step.state == "runqueue":
                runqueue_ns += inside_ns
            else:
                blocked_ns[step.reason] += inside_ns
    return Time(cpu_ns, runqueue_ns, dict(blocked_ns.most_common()))
