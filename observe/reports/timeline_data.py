# SPDX-License-Identifier: Apache-2.0
"""The data that page/timeline.js draws: one run as columns of plain numbers and strings, ready for JSON.

Times are nanoseconds after the run's beginning (of an imported log: numbers of events). Strings come from
outside and are already harmless to print; `-1` stands for none in a column of indices.

| part | columns |
|---|---|
| phases | id, title, step, parent, row (how deep it is drawn), hue (0 to 5; -1: the operation), start_ns, duration_ns, self_ns, evidence, at_floor, syscalls, file_events, pieces ([start_ns, duration_ns] of each), functions |
| processes | pid, depth, name, command, start_ns, end_ns, ended |
| events | time_ns, duration_ns, kind (index into kinds), process and phase (indices), path, other, detail (into strings), result, flags |
| kinds | label, shape (`call`, `file`, `process`) |
"""  # noqa: E501 - rows of a table

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from errno import errorcode
from functools import cache
from typing import Any

from observe.model import SYSCALLS, Event, Evidence, Kind, Run, Span
from observe.phases import load
from observe.reports.process_tree import processes_of
from observe.reports.terminal import Page

#: Changes when timeline.js must know.
VERSION = 1
#: How many colours phases have; those below the operation take turns.
HUES = 6
#: More processes than this share one lane.
LANES = 120

_PAGE = Page()
_NOT_SHOWN = frozenset({Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN})
#: Bits of linux/inotify.h.
_FILE_EVENTS = {
    0x1: "access",
    0x2: "modify",
    0x4: "attrib",
    0x8: "close_write",
    0x10: "close_nowrite",
    0x20: "open",
    0x40: "moved_from",
    0x80: "moved_to",
    0x100: "create",
    0x200: "delete",
    0x400: "delete_self",
    0x800: "move_self",
    0x4000_0000: "isdir",
}

Columns = dict[str, list[Any]]


def timeline_data(run: Run, functions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Everything about one run. `functions`: phase → the functions that were probed for it."""
    seen = [span for span in run.phases if span.start_ns is not None]
    lanes = _lanes(run)
    strings = _Strings()
    events = _events(run, {span.id: index for index, span in reversed(list(enumerate(seen)))}, lanes, strings)
    whole_ns = run.duration_ns or max(((span.duration_ns or 0) for span in seen), default=0)
    ends_ns = map(sum, zip(events["time_ns"], events["duration_ns"], strict=True))
    return {
        "version": VERSION,
        "name": _PAGE.safe(f"{run.operation} {run.container_name or '(no name)'}"),
        "timed": run.duration_ns > 0,
        "duration_ns": whole_ns,
        "extent_ns": max(whole_ns, *ends_ns, 1) if events["time_ns"] else max(whole_ns, 1),
        "phases": _phases(run, seen, functions),
        "processes": lanes.columns,
        "kinds": events.pop("kinds"),
        "events": events,
        "strings": list(strings.index),
        "errors": {-code: name for code, name in errorcode.items() if -code in set(events["result"])},
    }


def top_of(phase: str) -> str:
    """The phase below the operation that one belongs to; empty for the operation itself."""
    return ".".join(phase.split(".")[:2]) if "." in phase else ""


def hues_of(phases: Iterable[str]) -> dict[str, int]:
    """A colour for each phase below the operation; seen or not, so that a phase has the same one in every run."""
    tops = dict.fromkeys(top for top in map(top_of, phases) if top)
    return {top: number % HUES for number, top in enumerate(tops)}


class _Strings:
    """Strings by number; each is made harmless once."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {"": 0}
        self._known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        number = self._known.get(text)
        if number is None:
            number = self._known[text] = self.index.setdefault(_PAGE.safe(text.replace("\0", " ")), len(self.index))
        return number


class _Lanes:
    """The columns of processes, and which lane an event of a process belongs into."""

    def __init__(self) -> None:
        names = ("pid", "depth", "name", "command", "start_ns", "end_ns", "ended")
        self.columns: Columns = {name: [] for name in names}
        self.of_pid: dict[int, int] = {}

    def add(self, *cells: Any) -> int:
        for column, cell in zip(self.columns.values(), cells, strict=True):
            column.append(cell)
        return len(self.columns["pid"]) - 1


def _lanes(run: Run) -> _Lanes:
    lanes = _Lanes()
    processes = processes_of(run)
    for one in processes[:LANES]:
        name, command = _PAGE.safe(one.name), _PAGE.safe(one.command)
        cells = (one.pid, one.depth, name, command, one.start_ns, one.end_ns, int(one.ended))
        lanes.of_pid[one.pid] = lanes.add(*cells)
    if processes[LANES:]:
        shared = lanes.add(0, 0, f"{len(processes) - LANES} more processes", "", 0, run.duration_ns, 0)
        lanes.of_pid.update((one.pid, shared) for one in processes[LANES:])
    if any(not event.pid for _, event in run.events):
        lanes.of_pid[0] = lanes.add(0, 0, "file events whose process is not known", "", 0, run.duration_ns, 0)
    return lanes


def _phases(run: Run, seen: Sequence[Span], functions: Mapping[str, Sequence[str]]) -> Columns:
    titles = {phase.id: phase.title for phase in load().phases}
    index = {span.id: number for number, span in reversed(list(enumerate(seen)))}
    hues = hues_of(span.id for span in run.phases)
    pieces = [[(start_ns - run.start_ns, length_ns) for start_ns, length_ns in _pieces(span)] for span in seen]
    parents = [_parent(span, index) for span in seen]
    return {
        "id": [_PAGE.safe(span.id) for span in seen],
        "title": [titles.get(span.id, "") for span in seen],
        "step": [_PAGE.safe(span.step) for span in seen],
        "parent": parents,
        "row": _rows(parents, pieces),
        "hue": [hues.get(top_of(span.id), -1) for span in seen],
        "start_ns": [(span.start_ns or 0) - run.start_ns for span in seen],
        "duration_ns": [span.duration_ns or 0 for span in seen],
        "self_ns": [span.self_ns or 0 for span in seen],
        "evidence": [str(span.evidence) for span in seen],
        "at_floor": [int(span.at_floor) for span in seen],
        "syscalls": [span.syscalls for span in seen],
        "file_events": [span.file_events for span in seen],
        "pieces": pieces,
        "functions": [
            [_PAGE.safe(name) for name in functions.get(span.id, ())] if span.evidence is Evidence.FUNCTION else []
            for span in seen
        ],
    }


def _pieces(span: Span) -> Sequence[tuple[int, int]]:
    return span.pieces or ((span.start_ns or 0, span.duration_ns or 0),)


def _parent(span: Span, index: Mapping[str, int]) -> int:
    """Number of the nearest phase above it that was seen."""
    above = span.id.rpartition(".")[0]
    while above and above not in index:
        above = above.rpartition(".")[0]
    return index.get(above, -1)


def _rows(parents: Sequence[int], pieces: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """For each phase a row below its parent's, in which it hides no other."""
    rows: list[int] = []
    taken: list[list[tuple[int, int]]] = []
    for parent, own in zip(parents, pieces, strict=True):
        row = rows[parent] + 1 if 0 <= parent < len(rows) else 0
        while row < len(taken) and any(_overlap(one, other) for one in own for other in taken[row]):
            row += 1
        while len(taken) <= row:
            taken.append([])
        taken[row].extend(own)
        rows.append(row)
    return rows


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]


def _events(run: Run, phases: Mapping[str, int], lanes: _Lanes, strings: _Strings) -> dict[str, Any]:
    names = ("time_ns", "duration_ns", "kind", "process", "phase", "path", "other", "detail", "result", "flags")
    kinds: dict[tuple[str, str], int] = {}
    rows = [
        (
            event.time_ns - run.start_ns,
            event.duration_ns,
            kinds.setdefault(_kind(event.kind, event.flags), len(kinds)),
            lanes.of_pid[event.pid],
            phases.get(phase, 0),
            strings.add(event.path),
            strings.add(event.path2),
            strings.add(event.detail),
            event.ret,
            0 if event.kind == Kind.INOTIFY else event.flags,
        )
        for phase, event in _shown(run.events)
    ]
    columns: dict[str, Any] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    columns = columns or {name: [] for name in names}
    columns["kinds"] = {"label": [label for label, _ in kinds], "shape": [shape for _, shape in kinds]}
    return columns


def _shown(events: Iterable[tuple[str, Event]]) -> Iterable[tuple[str, Event]]:
    """Functions are what phases are made of already."""
    return ((phase, event) for phase, event in events if event.kind not in _NOT_SHOWN)


def _kind(kind: Kind, flags: int) -> tuple[str, str]:
    """Label and shape."""
    if kind == Kind.INOTIFY:
        return _file_event(flags), "file"
    return kind.label, "call" if kind in SYSCALLS else "process"


@cache
def _file_event(mask: int) -> str:
    return ", ".join(name for bit, name in _FILE_EVENTS.items() if mask & bit) or f"inotify {mask:#x}"
