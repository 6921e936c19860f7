# SPDX-License-Identifier: Apache-2.0
"""Mounts onto `/proc/self/fd/N`, as runc makes them since 1.0 (CVE-2021-30465), get the name that N was opened with."""

from __future__ import annotations

import re

import numpy as np

from observe.correlate.rows import Row, made_by, rows_of, table_of_kinds, with_rows
from observe.model import EventBatch, Kind

_DESCRIPTOR = re.compile(r"/proc/(?:thread-)?self/fd/(\d+)")
_OPENS = table_of_kinds({Kind.OPEN, Kind.OPENAT, Kind.OPENAT2})
_MOUNTS = table_of_kinds({Kind.MOUNT, Kind.UMOUNT2, Kind.MOUNT_SETATTR})


def with_names(events: EventBatch) -> EventBatch:
    """The same events (in order of time), with the names of mounts that were given by descriptor."""
    kinds = events.rows["kind"]
    mounts = _MOUNTS[kinds]
    named = events.rows.compress(mounts)
    used = {*named["path"].tolist(), *named["path2"].tolist()}
    descriptors = [
        int(match[1]) for match in map(_DESCRIPTOR.fullmatch, map(events.strings.__getitem__, used)) if match
    ]
    if not descriptors:
        return events
    opens = _OPENS[kinds] & np.isin(events.rows["ret"], descriptors) & made_by(events, {*named["pid"].tolist()})
    if not opens.any():
        return events
    opened: dict[tuple[int, int], str] = {}
    renamed: dict[int, Row] = {}
    places = np.flatnonzero(mounts | opens)
    for place, is_mount, row in zip(places.tolist(), mounts[places].tolist(), rows_of(events, places), strict=True):
        if is_mount:
            path, path2 = _name(row.path, row.pid, opened), _name(row.path2, row.pid, opened)
            if (path, path2) != (row.path, row.path2):
                renamed[place] = row._replace(path=path, path2=path2)
        else:
            opened[row.pid, row.ret] = row.path
    return with_rows(events, renamed)


def _name(path: str, pid: int, opened: dict[tuple[int, int], str]) -> str:
    match = _DESCRIPTOR.fullmatch(path)
    return opened.get((pid, int(match[1])), path) if match else path
