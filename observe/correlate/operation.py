# SPDX-License-Identifier: Apache-2.0
"""One request to dockerd, from its reading to its answer, with the events that belong to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from observe.correlate.rows import Row

_TARGET = re.compile(r"^(?:/v[\d.]+)?/containers/(?:(?P<create>create)|(?P<reference>.+)/start)$")


@dataclass(slots=True, eq=False)
class Operation:
    """Open until `end_ns` is set; rows are in stream order. Without a `status` no answer was seen."""

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
    rows: list[Row] = field(default_factory=list)
    #: What its events named so far.
    paths: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Take an event that belongs to it."""
        self.rows.append(row)
        self.paths.add(row.path)

    def covers(self, time_ns: int, late_ns: int = 0) -> bool:
        """Whether a moment lies inside, or not more than `late_ns` after the end."""
        return self.start_ns <= time_ns and (self.end_ns is None or time_ns < self.end_ns + late_ns)


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
