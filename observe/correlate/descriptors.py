# SPDX-License-Identifier: Apache-2.0
"""Mounts onto `/proc/self/fd/N`, as runc makes them since 1.0 (CVE-2021-30465), get the name that N was opened with."""

from __future__ import annotations

import re

import numpy as np

from observe.model import EventBatch, Kind, table_of_kinds

_DESCRIPTOR = re.compile(r"/proc/(?:thread-)?self/fd/(\d+)")
_OPENS = table_of_kinds({Kind.OPEN, Kind.OPENAT, Kind.OPENAT2})
_MOUNTS = table_of_kinds({Kind.MOUNT, Kind.UMOUNT2, Kind.MOUNT_SETATTR})


def with_names(events: EventBatch) -> EventBatch:
    """The same events (in order of time), with the names of mounts that were given by descriptor."""
    kinds = events.rows["kind"]
    is_mount = _MOUNTS[kinds]
    named = events.rows.compress(is_mount)
    descriptors = _descriptors(events.strings, {*named["path"].tolist(), *named["path2"].tolist()})
    if not descriptors:
        return events
    looked_at = np.flatnonzero(is_mount | _OPENS[kinds])
    rows = events.rows.take(looked_at)
    pids, returned, paths, paths2 = (rows[name].tolist() for name in ("pid", "ret", "path", "path2"))
    opened: dict[tuple[int, int], int] = {}
    for at, (mounts, pid) in enumerate(zip(is_mount[looked_at].tolist(), pids, strict=True)):
        if not mounts:
            opened[pid, returned[at]] = paths[at]
            continue
        for names in (paths, paths2):
            descriptor = descriptors.get(names[at])
            if descriptor is not None:
                names[at] = opened.get((pid, descriptor), names[at])
    renamed = events.rows.copy()
    renamed["path"][looked_at], renamed["path2"][looked_at] = paths, paths2
    return EventBatch(renamed, events.strings)


def _descriptors(strings: tuple[str, ...], indices: set[int]) -> dict[int, int]:
    """Those of some strings, by index, that name a descriptor of the process itself."""
    matches = {index: _DESCRIPTOR.fullmatch(strings[index]) for index in indices}
    return {index: int(match[1]) for index, match in matches.items() if match}
