# SPDX-License-Identifier: Apache-2.0
"""Mounts onto `/proc/self/fd/N`, as runc makes them since 1.0 (CVE-2021-30465), get the name that N was opened with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from observe.correlate.rows import Row
from observe.model import Kind

_DESCRIPTOR = re.compile(r"/proc/(?:thread-)?self/fd/(\d+)")
_OPENS = frozenset({Kind.OPEN, Kind.OPENAT, Kind.OPENAT2})
_MOUNTS = frozenset({Kind.MOUNT, Kind.UMOUNT2, Kind.MOUNT_SETATTR})


def with_names(rows: Sequence[Row]) -> list[Row]:
    """The same rows (in order of time), with the names of mounts that were given by descriptor."""
    opened: dict[tuple[int, int], str] = {}
    named = []
    for row in rows:
        if row.kind in _OPENS and row.ret >= 0:
            opened[row.pid, row.ret] = row.path
        named.append(_renamed(row, opened) if row.kind in _MOUNTS else row)
    return named


def _renamed(row: Row, opened: dict[tuple[int, int], str]) -> Row:
    return row._replace(path=_name(row.path, row.pid, opened), path2=_name(row.path2, row.pid, opened))


def _name(path: str, pid: int, opened: dict[tuple[int, int], str]) -> str:
    match = _DESCRIPTOR.fullmatch(path)
    return opened.get((pid, int(match[1])), path) if match else path
