# SPDX-License-Identifier: Apache-2.0
"""Mounts onto `/proc/self/fd/N`, as runc makes them since 1.0 (CVE-2021-30465), get the name that N was opened with."""

from __future__ import annotations

import re

import numpy as np

from observe.correlate.rows import made_by, table_of_kinds
from observe.model import EventBatch, Kind

_DESCRIPTOR = re.compile(r"/proc/(?:thread-)?self/fd/(\d+)")
_OPENS = table_of_kinds({Kind.OPEN, Kind.OPENAT, Kind.OPENAT2})
_MOUNTS = table_of_kinds({Kind.MOUNT, Kind.UMOUNT2, Kind.MOUNT_SETATTR})


def with_names(events: EventBatch) -> EventBatch:
    """The same events (in order of time), with the names of mounts that were given by descriptor."""
    rows = events.rows
    mounts = _MOUNTS[rows["kind"]]
    named = rows.compress(mounts)
    used = {*named["path"].tolist(), *named["path2"].tolist()}
    #: Number of a text → the descriptor that it means.
    meant = {text: int(match[1]) for text in used if (match := _DESCRIPTOR.fullmatch(events.strings[text]))}
    if not meant:
        return events
    by_them = made_by(events, {*named["pid"].tolist()})
    opens = _OPENS[rows["kind"]] & by_them & np.isin(rows["ret"], [*meant.values()])
    places = np.flatnonzero(mounts | opens)
    opened: dict[tuple[int, int], int] = {}
    renamed: dict[str, dict[int, int]] = {"path": {}, "path2": {}}
    columns = (rows[name][places].tolist() for name in ("pid", "ret", *renamed))
    for place, is_mount, pid, ret, *paths in zip(places.tolist(), mounts[places].tolist(), *columns, strict=True):
        if not is_mount:
            opened[pid, ret] = paths[0]
            continue
        for names, text in zip(renamed.values(), paths, strict=True):
            if text in meant and (pid, meant[text]) in opened:
                names[place] = opened[pid, meant[text]]
    rows = rows.copy()
    for column, names in renamed.items():
        rows[column][[*names]] = [*names.values()]
    return EventBatch(rows, events.strings)
