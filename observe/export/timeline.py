# SPDX-License-Identifier: Apache-2.0
"""Runs as tracks of slices, for viewers of timelines; knows no file format.

Each run has a group of tracks: its phases, the innermost phase of each moment, the goroutine that served the request,
other goroutines whose functions were timed, and its file events by area of the data root. Beside them stands each
process, with its programs and, on the tracks of its threads, what no goroutine's track has. Every event of a run is
on exactly one track; entries and returns of functions are the slices of their calls.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from observe.correlate.correlator import go_keeps_g_in_register
from observe.escape import printable
from observe.export import Recorded
from observe.export.nesting import own_time, pieces
from observe.export.programs import EXECS, Program, arguments, programs
from observe.inotify_words import words
from observe.model import SYSCALLS, Event, FunctionCall, Kind, Mark, Run, Span
from observe.phases import load

Value = str | int | bool | Sequence[str] | Mapping[str, str | int]

_FUNCTIONS = frozenset({Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN})
#: Errors of system calls are negative and not below this (include/linux/err.h).
_MAX_ERRNO = 4095


@dataclass(frozen=True, slots=True)
class Slice:
    """Something on a track: with a duration, or (None) an instant. All text is printable."""

    name: str
    category: str
    start_ns: int
    duration_ns: int | None
    details: Mapping[str, Value] = field(default_factory=dict)

    @property
    def interval(self) -> tuple[int, int]:
        """(start_ns, end_ns)."""
        return self.start_ns, self.start_ns + (self.duration_ns or 0)


@dataclass(slots=True)
class Track:
    """A track, or (without slices) a group of them. `key` is unique and the same for the same recording."""

    key: str
    name: str
    parent: str | None = None
    #: Set for a process and for a thread of it; names that the viewer groups and searches by.
    pid: int | None = None
    tid: int | None = None
    arguments: tuple[str, ...] = ()
    slices: list[Slice] = field(default_factory=list)


def timeline(recorded: Recorded) -> list[Track]:
    """The tracks of all runs, each after its parent; the runs' groups first, in the order of the runs."""
    groups: dict[str, Track] = {}
    processes: dict[str, Track] = {}
    origin = {
        "host": _facts(recorded.host),
        "engine": _facts(recorded.engine),
        "loss": _facts(asdict(recorded.loss)),
    }
    data_root = str(recorded.engine.get("data_root", "")).rstrip("/")
    for number, run in enumerate(recorded.runs):
        _RunTracks(f"run {number}", run, data_root, groups, processes).fill(
            origin, str(recorded.engine.get("go_version", ""))
        )
    return [*groups.values(), *processes.values()]


class _RunTracks:
    """Puts one run's slices on its tracks."""

    def __init__(
        self, key: str, run: Run, data_root: str, groups: dict[str, Track], processes: dict[str, Track]
    ) -> None:
        self._key, self._run, self._data_root = key, run, data_root
        self._groups, self._processes = groups, processes
        #: (pid, goroutine) → where its slices go.
        self._goroutines: dict[tuple[int, int], Track] = {}

    def fill(self, origin: Mapping[str, Value], go_version: str) -> None:
        """Everything of the run; `origin`: what all runs come with."""
        run = self._run
        self._groups[self._key] = Track(self._key, title(run))
        self._phases(origin)
        self._open_goroutines(known=go_keeps_g_in_register(go_version))
        for program in programs(run):
            self._program(program)
        for phase, event in run.events:
            if event.kind not in _FUNCTIONS:
                self._track_of(event).slices.append(_of_event(phase, event))

    def _own(self, name: str, key: str = "") -> Track:
        """A track of the run's group."""
        key = f"{self._key}/{key or name}"
        return self._groups.setdefault(key, Track(key, name, parent=self._key))

    def _phases(self, origin: Mapping[str, Value]) -> None:
        titles = {phase.id: phase.title for phase in load().phases}
        track = self._own("phases")
        for number, span in enumerate(self._run.phases):
            name, details = _name(span), _of_phase(span, titles.get(span.id, ""))
            if number == 0:
                name, details = title(self._run), {**_of_run(self._run), **details, **origin}
            for start_ns, end_ns in pieces(span):
                track.slices.append(Slice(name, "phase", start_ns, end_ns - start_ns, details))
        track = self._own("innermost phase")
        for start_ns, end_ns, span in own_time(self._run):
            name = _name(span) if span.parent else "unattributed"
            track.slices.append(Slice(name, "own_time", start_ns, end_ns - start_ns, {"phase": span.id}))

    def _open_goroutines(self, *, known: bool) -> None:
        """The request's goroutine, and those whose functions were timed, with their calls.

        An operation begins on the goroutine that serves its request: what comes first tells which one that is.
        `known`: whether system calls know their goroutines.
        """
        events = [event for _, event in self._run.events]
        entries = {(event.pid, event.time_ns): event for event in events if event.kind == Kind.FUNCTION_ENTRY}
        syscalls = (event for event in events if known and event.goroutine and event.kind in SYSCALLS)
        if not self._run.functions and (first := next(syscalls, None)):
            self._goroutines[first.pid, first.goroutine] = self._own("request goroutine")
        for call in self._run.functions:
            entry = entries.get((call.pid, call.start_ns), Event(call.start_ns, Kind.FUNCTION_ENTRY, pid=call.pid))
            key = (entry.pid, entry.goroutine)
            if not self._goroutines:
                self._goroutines[key] = self._own("request goroutine")
            elif key not in self._goroutines:
                name = f"{printable(entry.comm) or 'process'} {entry.pid}, goroutine {entry.goroutine:#x}"
                self._goroutines[key] = self._own(name)
            self._goroutines[key].slices.append(_of_call(call, entry))
        if not known:
            self._goroutines.clear()

    def _track_of(self, event: Event) -> Track:
        if event.kind == Kind.INOTIFY:
            return self._own(f"files: {self._area(event.path)}")
        return self._goroutines.get((event.pid, event.goroutine)) or self._thread(event)

    def _area(self, path: str) -> str:
        """The folder of the data root that a file lies in."""
        inside = path.removeprefix(f"{self._data_root}/") if self._data_root else path
        folder, slash, _ = inside.partition("/")
        return printable(folder) if inside != path and slash else "other"

    def _process(self, pid: int, name: str) -> Track:
        key = f"process {pid}"
        return self._processes.setdefault(key, Track(key, name or key, pid=pid))

    def _program(self, program: Program) -> None:
        process = self._process(program.pid, "")
        process.name = printable(program.name) or process.name
        process.arguments = tuple(map(printable, program.arguments))
        key = f"{process.key}/programs"
        track = self._processes.setdefault(key, Track(key, "programs", parent=process.key))
        track.slices.append(_of_program(program))

    def _thread(self, event: Event) -> Track:
        process = self._process(event.pid, printable(event.comm))
        tid = event.tid or event.pid
        key = f"{process.key}/thread {tid}"
        track = Track(key, printable(event.comm), parent=process.key, pid=event.pid, tid=tid)
        return self._processes.setdefault(key, track)


def title(run: Run) -> str:
    """`start web`, `create 3f2a91c04d7e (failed)`; printable."""
    name = run.container_name or (run.container_id or "")[:12]
    outcome = "" if run.outcome == "ok" else f"({run.outcome})"
    return printable(" ".join(word for word in (run.operation, name, outcome) if word))


def _name(span: Span) -> str:
    return span.id.rpartition(".")[2]


def _of_run(run: Run) -> dict[str, Value]:
    texts = {
        "operation": run.operation,
        "container_id": run.container_id,
        "container_name": run.container_name,
        "image": run.image,
        "network": run.network,
        "outcome": run.outcome,
        "error": run.error,
    }
    details: dict[str, Value] = {name: printable(text) for name, text in texts.items() if text}
    details["wall_time_ns"] = run.wall_time_ns
    details["unattributed_ns"] = run.unattributed_ns
    if run.departures:
        details["departures"] = [printable(departure.text) for departure in run.departures]
    return details


def _of_phase(span: Span, documented_as: str) -> dict[str, Value]:
    details: dict[str, Value] = {
        "phase": span.id,
        "title": documented_as,
        "step": span.step,
        "evidence": span.evidence.value,
        "at_floor": span.at_floor,
        "syscalls": span.syscalls,
        "file_events": span.file_events,
        "probe_hits": span.probe_hits,
    }
    times = {
        "duration_ns": span.duration_ns,
        "self_ns": span.self_ns,
        "corrected_self_ns": span.corrected_self_ns,
    }
    return {**details, **{name: value for name, value in times.items() if value is not None}}


def _of_call(call: FunctionCall, entry: Event) -> Slice:
    # The last word is what tells functions apart: `daemon.(*Daemon).ContainerStart`.
    details: dict[str, Value] = {"function": printable(call.name), "pid": call.pid, "complete": call.complete}
    if entry.path:
        details["argument"] = printable(entry.path)
    name = printable(call.name.rpartition("/")[2])
    return Slice(name, "function", call.start_ns, call.duration_ns, details)


def _of_program(program: Program) -> Slice:
    details: dict[str, Value] = {
        "path": printable(program.path),
        "arguments": [printable(argument) for argument in program.arguments],
        "pid": program.pid,
        "phase": program.phase,
        "entrypoint": program.entrypoint,
        "complete": program.complete,
    }
    if program.parent_pid:
        details["parent_pid"] = program.parent_pid
    duration_ns = program.end_ns - program.start_ns
    return Slice(printable(program.name) or "program", "program", program.start_ns, duration_ns, details)


def _of_event(phase: str, event: Event) -> Slice:
    where: dict[str, Value] = {"phase": phase, "pid": event.pid, "tid": event.tid}
    details = {**where, **_numbers(event), **_texts(event)}
    if event.kind == Kind.INOTIFY:
        name = f"{words(event.flags)} {printable(event.path.rpartition('/')[2])}"
        return Slice(name, "file", event.time_ns, None, details)
    if event.kind in SYSCALLS:
        return Slice(event.kind.label, "syscall", event.time_ns, event.duration_ns, details)
    return Slice(event.kind.label, "sched", event.time_ns, None, details)


def _numbers(event: Event) -> dict[str, Value]:
    """What the columns of numbers say, as far as they say something for this kind."""
    details: dict[str, Value] = {}
    if event.kind == Kind.INOTIFY:
        details["events"] = words(event.flags)
    elif event.flags:
        details["flags"] = f"{event.flags:#x}"
    if event.ret or event.kind in SYSCALLS:
        details["ret"] = event.ret
    if event.kind in SYSCALLS and -_MAX_ERRNO <= event.ret < 0:
        details["errno"] = errno.errorcode.get(-event.ret, str(-event.ret))
    if event.fd != -1:
        details["fd"] = event.fd
    if event.marks:
        details["marks"] = [mark.name.lower() for mark in Mark if mark in event.marks and mark.name]
    return details


def _texts(event: Event) -> dict[str, Value]:
    details: dict[str, Value] = {
        name: printable(text) for name in ("comm", "path", "path2") if (text := getattr(event, name))
    }
    if event.kind in EXECS:
        details["arguments"] = [printable(argument) for argument in arguments(event.detail)]
    elif event.detail:
        details["detail"] = printable(event.detail)
    return details


def _facts(values: Mapping[str, Any]) -> dict[str, str | int]:
    """The plain ones of some values, printable."""
    return {
        name: printable(value) if isinstance(value, str) else value
        for name, value in values.items()
        if isinstance(value, str | int)
    }
