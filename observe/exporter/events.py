# SPDX-License-Identifier: Apache-2.0
"""All events of a recording as columns, each with the run and the phase that it belongs to."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from observe.model import Event, EventBatch, Item, Kind, Mark, NoteKind, Run

#: What tells events apart: a thread does one thing at a time.
_KEY = np.dtype([("time_ns", "<u8"), ("tid", "<u4"), ("kind", "<u2")])
_LABELS = {kind.value: kind.label for kind in Kind}


@dataclass(frozen=True, slots=True)
class EventTable:
    """Events in the order of the file. `run` and `phase` have shape (n,); -1 is an event of no operation."""

    events: EventBatch
    #: Number of the run, from 0, in the order in which the runs were given.
    run: npt.NDArray[np.int32]
    #: Index into `phases`.
    phase: npt.NDArray[np.int32]
    phases: tuple[str, ...]
    #: Number of the function of an entry or a return, shape (n,); 0 for everything else.
    function: npt.NDArray[np.int64]
    #: Number of a function → its symbol.
    functions: Mapping[int, str]


def table(items: Iterable[Item], runs: Sequence[Run]) -> EventTable:
    """All events of a recording, given as its items, and which of them belong to its runs, which brought theirs along."""
    batches: list[EventBatch] = []
    functions: dict[int, str] = {}
    for item in items:
        if isinstance(item, EventBatch):
            batches.append(item)
        elif item.kind is NoteKind.FUNCTION and "number" in item.data:
            functions[int(item.data["number"])] = str(item.data["name"])
    events = EventBatch.concat(batches)
    run, phase, phases = _owners(events, runs)
    is_function = np.isin(events.rows["kind"], (Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN))
    # Above 16 bits stands the stack pointer, if Go passes arguments on the stack.
    number = np.where(is_function, events.rows["flags"] & 0xFFFF, 0).astype(np.int64)
    number[~np.isin(number, [*functions])] = 0
    return EventTable(events, run, phase, phases, number, functions)


def kind_label(kind: int) -> str:
    """The name of a kind, also of one that this version does not know."""
    return _LABELS.get(kind, f"kind_{kind}")


def _owners(
    events: EventBatch, runs: Sequence[Run]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], tuple[str, ...]]:
    """Run and phase of each event, and the ids of the phases."""
    phases: dict[str, int] = {}
    owners = np.array(
        [(number, phases.setdefault(phase, len(phases))) for number, run in enumerate(runs) for phase, _ in run.events],
        dtype=np.int32,
    ).reshape(-1, 2)
    owned = [event for run in runs for _, event in run.events]
    place = _find(events.rows, np.array([(event.time_ns, event.tid, event.kind) for event in owned], dtype=_KEY))
    for index, row in _find_file_events(events, owned):
        place[index] = row
    places = np.full((len(events), 2), -1, dtype=np.int32)
    found = place >= 0
    places[place[found]] = owners[found]
    return places[:, 0], places[:, 1], tuple(phases)


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
