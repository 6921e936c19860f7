# SPDX-License-Identifier: Apache-2.0
"""Events as the correlator handles them: as columns, and one that is looked at as a plain tuple with its strings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from observe.model import EVENT_DTYPE, STRING_COLUMNS, Event, EventBatch, Kind, Mark


class Row(NamedTuple):
    """The columns of `observe.model.EVENT_DTYPE`; `kind` and `marks` are plain numbers."""

    time_ns: int
    duration_ns: int
    goroutine: int
    ret: int
    flags: int
    pid: int
    tid: int
    fd: int
    comm: str
    path: str
    path2: str
    detail: str
    kind: int
    marks: int

    @property
    def end_ns(self) -> int:
        """When the call returned."""
        return self.time_ns + self.duration_ns

    def event(self) -> Event:
        """The same for people."""
        return Event(**{**self._asdict(), "kind": Kind(self.kind), "marks": Mark(self.marks)})

    @property
    def is_syscall(self) -> bool:
        """Whether it is a system call (and neither a scheduler, an API nor an inotify event)."""
        return self.kind < Kind.SCHED_PROCESS_FORK


def rows_of(batch: EventBatch, which: npt.NDArray[np.intp] | None = None) -> Iterator[Row]:
    """The events of a batch as rows; `which`: only those at these places."""
    places = np.arange(len(batch)) if which is None else which
    return map(Row._make, columns_of(batch, places, *Row._fields))


def together(batches: Collection[EventBatch]) -> EventBatch:
    """The events of several batches, one batch after the other; strings that several have are there several times."""
    rows = np.empty(sum(map(len, batches)), dtype=EVENT_DTYPE)
    strings, at = [""], 0
    for batch in batches:
        own = rows[at : at + len(batch)]
        own[:] = batch.rows
        for name in STRING_COLUMNS:
            own[name] += len(strings)
        strings += batch.strings
        at += len(batch)
    return EventBatch(rows, tuple(strings))


def in_time_order(batch: EventBatch) -> EventBatch:
    """The same events by time; of the same moment, in the order of their other columns."""
    times_ns = batch.rows["time_ns"]
    order = np.argsort(times_ns, kind="stable")
    in_order = times_ns[order]
    same = in_order[1:] == in_order[:-1]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        places = order[tied]
        rows = list(columns_of(batch, places, *Row._fields))
        order[tied] = places[sorted(range(len(rows)), key=rows.__getitem__)]
    return EventBatch(batch.rows.take(order), batch.strings)


def columns_of(batch: EventBatch, which: npt.NDArray[np.intp], *names: str) -> Iterator[tuple[Any, ...]]:
    """Some columns of the events at some places, an event at a time; strings in place."""
    rows, strings = batch.rows.take(which), batch.strings  # many times faster than an index, as is compress
    columns = []
    for name in names:
        values = rows[name].tolist()
        columns.append([strings[index] for index in values] if name in STRING_COLUMNS else values)
    return zip(*columns, strict=True)


def made_by(events: EventBatch, processes: Iterable[int]) -> npt.NDArray[np.bool_]:
    """Whether each event was made by one of some processes (few)."""
    pids = events.rows["pid"]
    made = np.zeros(len(events), dtype=np.bool_)
    for pid in processes:
        made |= pids == pid
    return made


def row_at(batch: EventBatch, place: int) -> Row:
    """One event of a batch."""
    values, strings = batch.rows[place].item(), batch.strings
    comm, path, path2, detail = values[8:12]
    return Row._make((*values[:8], strings[comm], strings[path], strings[path2], strings[detail], *values[12:]))


def with_rows(batch: EventBatch, changed: Mapping[int, Row]) -> EventBatch:
    """The batch with other rows at some places."""
    if not changed:
        return batch
    rows, strings = batch.rows.copy(), list(batch.strings)
    index = {"": 0}
    for place, row in changed.items():
        values: list[Any] = list(row)
        for column in range(8, 12):
            text = values[column]
            if text not in index:
                index[text] = len(strings)
                strings.append(text)
            values[column] = index[text]
        rows[place] = tuple(values)
    return EventBatch(rows, tuple(strings))
