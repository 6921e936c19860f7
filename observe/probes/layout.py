# SPDX-License-Identifier: Apache-2.0
"""The ring buffer's record and counters as `bpf/record.h` lays them out, and records as events."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from observe.model import EVENT_DTYPE, EventBatch

#: struct record of bpf/record.h.
RECORD_DTYPE = np.dtype(
    [
        ("time_ns", "<u8"),
        ("duration_ns", "<u8"),
        ("goroutine", "<u8"),
        ("ret", "<i8"),
        ("flags", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("fd", "<i4"),
        ("kind", "<u2"),
        ("marks", "<u2"),
        ("path_bytes", "<u2"),
        ("path2_bytes", "<u2"),
        ("detail_bytes", "<u2"),
        ("unused", "<u2"),
        ("comm", "S16"),
        ("path", "S256"),
        ("path2", "S256"),
        ("detail", "S512"),
    ]
)

_NUMBERS = ("time_ns", "duration_ns", "goroutine", "ret", "flags", "pid", "tid", "fd", "kind", "marks")
_SIZED_STRINGS = ("path", "path2", "detail")


class Counter(IntEnum):
    """Index into the map `counters`."""

    RING_BUFFER = 0
    LINEAGE = 1
    UNMATCHED_RETURNS = 2
    RECORDS = 3


def decode(records: npt.NDArray[Any]) -> EventBatch:
    """Records (RECORD_DTYPE, shape (n,)) as events, whole columns at a time.

    What stands behind a string's length is old memory of the ring and is cut off. Bytes that are not
    UTF-8 come out as backslash escapes, so that every name can be printed and stored.
    """
    rows = np.zeros(len(records), dtype=EVENT_DTYPE)
    for name in _NUMBERS:
        rows[name] = records[name]
    strings: dict[str, int] = {"": 0}
    rows["comm"] = _intern(records["comm"], strings)
    for name in _SIZED_STRINGS:
        lengths = records[f"{name}_bytes"]
        places = np.flatnonzero(lengths)  # most records have no string there
        if len(places):
            rows[name][places] = _intern(_cut(records[name][places], lengths[places]), strings)
    return EventBatch(rows, tuple(strings))


def _cut(column: npt.NDArray[np.bytes_], lengths: npt.NDArray[np.uint16]) -> npt.NDArray[np.bytes_]:
    longest = max(int(lengths.max(initial=0)), 1)
    width = column.dtype.itemsize
    text = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), width)[:, :longest].copy()
    text[np.arange(text.shape[1]) >= lengths[:, None]] = 0
    cut: npt.NDArray[np.bytes_] = text.view(f"S{text.shape[1]}").reshape(len(column))
    return cut


def _intern(column: npt.NDArray[np.bytes_], strings: dict[str, int]) -> list[int]:
    """The number of each text, new ones added. Texts repeat a lot: a dictionary is quicker than sorting them."""
    known: dict[bytes, int] = {}
    found = []
    for text in column.tolist():
        number = known.get(text)
        if number is None:
            number = known[text] = strings.setdefault(text.decode(errors="backslashreplace"), len(strings))
        found.append(number)
    return found
