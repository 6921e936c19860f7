# SPDX-License-Identifier: Apache-2.0
"""All events of a recording as columns, each with the run and the phase that it belongs to."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from observe.model import Event, EventBatch, Item, Kind, Mark, NoteKind, Run

#: What tells events apart: a thread does one thing at a time.
_KEY = np.dtype([("time_ns", "<u8"), ("tid", "<u4"), ("kind", "<u2")])
_OWNER = np.dtype([("run", "<i4"), ("phase", "<i4")])
_LABELS = {0: ""} | {kind.value: kind.label for kind in Kind}
_FUNCTIONS = (Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN)
#: A number that an event has room for.
_MAX_FUNCTION = 0xFFFF


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of text: for each event, shape (n,), the place of its text in `values`; "" is none."""

    codes: npt.NDArray[Any]
    values: Sequence[str]


@dataclass(frozen=True, slots=True)
class EventTable:
    """Events in the order of the file, each with the run and the phase that it belongs to."""

    events: EventBatch
    #: Number of the run, shape (n,), from 0, in the order in which the runs were given; -1: of no operation.
    run: npt.NDArray[np.int32]
    #: Place in `phases` of the innermost phase, shape (n,); the first of them, 0, is none.
    phase: npt.NDArray[np.int32]
    phases: tuple[str, ...]
    #: Symbols of the functions by their numbers; "" for a number that is no function.
    functions: tuple[str, ...]

    def texts(self, name: str) -> Texts:
        """One of the columns of text: phase, kind, function, comm, path, path2, detail (see `Event`)."""
        rows = self.events.rows
        if name == "phase":
            return Texts(self.phase, self.phases)
        if name == "kind":
            highest = int(rows["kind"].max(initial=0))
            return Texts(rows["kind"], [_LABELS.get(kind, f"kind_{kind}") for kind in range(highest + 1)])
        if name == "function":
            # Above 16 bits stands the stack pointer, if Go passes arguments on the stack.
            numbers = np.where(np.isin(rows["kind"], _FUNCTIONS), rows["flags"] & _MAX_FUNCTION, 0).astype(np.int64)
            return Texts(np.where(numbers < len(self.functions), numbers, 0), self.functions)
        return Texts(rows[name], self.events.strings)


def table(items: Iterable[Item], runs: Sequence[Run]) -> EventTable:
    """The events of a recording, given as its items, and which belong to its runs, which brought their own along."""
    functions = {0: ""}
    events = EventBatch.concat(_batches(items, functions))
    symbols = tuple(functions.get(number, "") for number in range(max(functions) + 1))
    return EventTable(events, *_owners(events, runs), symbols)


def _batches(items: Iterable[Item], functions: dict[int, str]) -> Iterator[EventBatch]:
    """The batches, one at a time: a long recording's are not held twice. Puts aside the functions by their numbers."""
    for item in items:
        if isinstance(item, EventBatch):
            yield item
        elif item.kind is NoteKind.FUNCTION and 0 < int(item.data.get("number", 0)) <= _MAX_FUNCTION:
            functions[int(item.data["number"])] = str(item.data["name"])


def _owners(
    events: EventBatch, runs: Sequence[Run]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], tuple[str, ...]]:
    """Run and phase of each event, and what the numbers of the phases mean."""
    phases = {"": 0}
    owned = [event for run in runs for _, event in run.events]
    owners = np.fromiter(
        ((number, phases.setdefault(phase, len(phases))) for number, run in enumerate(runs) for phase, _ in run.events),
        dtype=_OWNER,
        count=len(owned),
    )
    keys = ((event.time_ns, event.tid, event.kind) for event in owned)
    place = _find(events.rows, np.fromiter(keys, dtype=_KEY, count=len(owned)))
    for index, row in _find_file_events(events, owned):
        place[index] = row
    run, phase = np.full(len(events), -1, dtype=np.int32), np.zeros(len(events), dtype=np.int32)
    found = place >= 0
    run[place[found]], phase[place[found]] = owners["run"][found], owners["phase"][found]
    return run, phase, tuple(phases)


def _find(rows: npt.NDArray[np.void], wanted: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Row number of each wanted key; -1 if there is none, and for file events."""
    by_time = np.argsort(rows["time_ns"], kind="stable")
    times_ns = rows["time_ns"][by_time]
    place = np.searchsorted(times_ns, wanted["time_ns"])
    found = np.full(len(wanted), -1, dtype=np.int64)
    waiting = np.flatnonzero(wanted["kind"] != Kind.INOTIFY)
    while len(waiting):
        waiting = waiting[place[waiting] < len(rows)]
        row, key = by_time[place[waiting]], wanted[waiting]
        now = rows["time_ns"][row] == key["time_ns"]
        same = now & (rows["tid"][row] == key["tid"]) & (rows["kind"][row] == key["kind"])
        found[waiting[same]] = row[same]
        # Events of other threads at the same nanosecond: look at the next one.
        waiting = waiting[now & ~same]
        place[waiting] += 1
    return found


def _find_file_events(events: EventBatch, owned: Sequence[Event]) -> list[tuple[int, int]]:
    """(index into `owned`, row number) of inotify's events.

    The correlator gave them the time and the process of their calls. The event of a call is the first with its path
    and mask that is told after it.
    """
    told: defaultdict[tuple[str, int, int], deque[tuple[int, int]]] = defaultdict(deque)
    candidates = np.flatnonzero((events.rows["kind"] == Kind.INOTIFY) & (events.rows["marks"] & Mark.INVENTED == 0))
    columns = (events.rows[name][candidates].tolist() for name in ("path", "flags", "ret", "time_ns"))
    for number, path, flags, cookie, time_ns in zip(candidates.tolist(), *columns, strict=True):
        told[events.strings[path], flags, cookie].append((time_ns, number))
    files = (index for index, event in enumerate(owned) if event.kind == Kind.INOTIFY)
    found = []
    for index in sorted(files, key=lambda index: owned[index].time_ns):
        event = owned[index]
        waiting = told[event.path, event.flags, event.ret]
        while waiting and waiting[0][0] < event.time_ns:
            waiting.popleft()
        if waiting:
            found.append((index, waiting.popleft()[1]))
    return found
