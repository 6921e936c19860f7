# SPDX-License-Identifier: Apache-2.0
"""One request to dockerd, from its reading to its answer, with the events that belong to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

import numpy as np
import numpy.typing as npt

from observe.correlate.rows import Row, together
from observe.model import EventBatch

#: What requests to a live engine are told apart: ids of operations of the catalogue.
OPERATIONS = ("create", "start")
#: So many batches are held for the few events of them that are an operation's; then these are copied.
_MOST_PARTS = 64
_NEVER_NS = (1 << 63) - 1
_TARGET = re.compile(r"^(?:/v[\d.]+)?/containers/(?:(?P<create>create)|(?P<reference>.+)/start)$")


@dataclass(slots=True, eq=False)
class Operation:
    """Open until `end_ns` is set. Without a `status` no answer was seen."""

    name: str
    start_ns: int
    connection: int
    goroutine: int
    tid: int
    #: Container as the user named it: name or id of a start, name of a create ("" if dockerd invents one).
    reference: str
    #: Goroutine that runs the request's handler, where only the handler's function tells (Go < 1.17); 0: not known.
    handler: int = 0
    container_id: str | None = None
    layer: str | None = None
    end_ns: int | None = None
    status: int | None = None
    #: Thread that wrote the answer; 0: not seen.
    answer_tid: int = 0
    #: Its events: places in batches, and the number of each batch's first event in the stream.
    _parts: list[tuple[EventBatch, npt.NDArray[np.intp], int]] = field(default_factory=list)
    #: Which event of the stream named a path first, as far as somebody has asked.
    _first_use: dict[str, int] = field(default_factory=dict)
    _asked: int = 0
    #: How many events it keeps at most, how many it has, and how many it had no room for.
    most_events: int = sys.maxsize
    _taken: int = 0
    dropped: int = 0

    def take(self, batch: EventBatch, places: npt.NDArray[np.intp], first: int) -> None:
        """Take events that belong to it: those at `places` of a batch.

        `first`: number of the batch's first event in the stream.
        """
        kept = places[: self.most_events - self._taken]
        self.dropped += len(places) - len(kept)
        self._taken += len(kept)
        if len(kept):
            self._parts.append((batch, kept, first))
        if len(self._parts) >= _MOST_PARTS:
            self._compact()

    def _compact(self) -> None:
        """Hold its own events only, and no batches."""
        self._remember_uses()
        own = self.events().compacted()
        self._parts = [(own, np.arange(len(own)), 0)]
        self._asked = 1

    def release(self) -> None:
        """Forget the events: it has become a run."""
        self._parts = []
        self._first_use = {}

    def events(self) -> EventBatch:
        """What it was given."""
        by_batch: dict[int, tuple[EventBatch, list[npt.NDArray[np.intp]]]] = {}
        for batch, places, _ in self._parts:
            by_batch.setdefault(id(batch), (batch, []))[1].append(places)
        return together(
            [EventBatch(batch.rows.take(np.concatenate(parts)), batch.strings) for batch, parts in by_batch.values()]
        )

    def has_used(self, path: str, before: int) -> bool:
        """Whether one of its events named a path before event number `before` of the stream."""
        self._remember_uses()
        return self._first_use.get(path, before) < before

    def _remember_uses(self) -> None:
        first_use = self._first_use
        for batch, places, first in self._parts[self._asked :]:
            used = batch.rows["path"].take(places).tolist()
            for place, index in zip(places.tolist(), used, strict=True):
                text = batch.strings[index]
                if first + place < first_use.get(text, sys.maxsize):
                    first_use[text] = first + place
        self._asked = len(self._parts)

    @property
    def knows_itself(self) -> bool:
        """Whether its events need not be asked any more for its container, and a new container's layer."""
        return self.container_id is not None and (self.layer is not None or self.name != "create")

    def covers(self, time_ns: int, late_ns: int = 0) -> bool:
        """Whether a moment lies inside, or not more than `late_ns` after the end."""
        return self.start_ns <= time_ns and (self.end_ns is None or time_ns < self.end_ns + late_ns)


def covers_of(
    operations: Sequence[Operation], times_ns: npt.NDArray[np.int64], late_ns: int = 0
) -> npt.NDArray[np.bool_]:
    """`covers` of several operations and many moments: a row an operation."""
    starts_ns = np.array([one.start_ns for one in operations], dtype=np.int64)
    ends_ns = np.array(
        [_NEVER_NS if one.end_ns is None else one.end_ns + late_ns for one in operations], dtype=np.int64
    )
    inside: npt.NDArray[np.bool_] = (times_ns >= starts_ns[:, None]) & (times_ns < ends_ns[:, None])
    return inside


def open_operation(row: Row) -> Operation | None:
    """The operation that an api_request event begins, or None if its target is another's."""
    path, _, query = row.path.partition("?")
    match = _TARGET.match(path)
    if not match:
        return None
    if match["create"]:
        name, reference = "create", parse_qs(query).get("name", [""])[0]
    else:
        name, reference = "start", unquote(match["reference"])
    return Operation(name, row.time_ns, row.fd, row.goroutine, row.tid, reference.lstrip("/"))
