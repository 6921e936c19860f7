# SPDX-License-Identifier: Apache-2.0
"""One event as the correlator handles it: a plain tuple with the strings in place, in stream order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from observe.model import STRING_COLUMNS, Event, EventBatch, Kind, Mark


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


def rows_of(batch: EventBatch) -> Iterator[Row]:
    """The events of a batch as rows."""
    strings = batch.strings
    columns = []
    for name in Row._fields:
        values = batch.rows[name].tolist()
        columns.append([strings[index] for index in values] if name in STRING_COLUMNS else values)
    return map(Row._make, zip(*columns, strict=True))
