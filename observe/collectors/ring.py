# SPDX-License-Identifier: Apache-2.0
"""Read a BPF ring buffer of fixed-size records in one piece, without a callback an event.

Layout (kernel/bpf/ringbuf.c): page 0 holds the consumer's position and is writable, page 1 the producer's,
then the data (mapped twice by the kernel; we map it once, as each mapping counts as memory of ours, and copy what
wraps around). A record has an 8-byte header: length with a busy bit (31) and a discard bit (30), and starts on a
multiple of 8.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from observe.model import EventBatch
from observe.probes.layout import RECORD_DTYPE, decode

_T = TypeVar("_T")
_HEADER_BYTES = 8
_BUSY = 1 << 31
#: What part of the ring may be in use before a reader should not wait any longer.
_FILLING = 4


def _slot(record: np.dtype[Any]) -> np.dtype[Any]:
    """A record with its header, as it lies in the ring."""
    size = (record.itemsize + _HEADER_BYTES + 7) // 8 * 8
    return np.dtype({"names": ["header", "record"], "formats": ["<u4", record], "offsets": [0, 8], "itemsize": size})


class RingReader:
    """Consumer of the ring buffer map behind `descriptor`, `ring_bytes` large."""

    def __init__(self, descriptor: int, ring_bytes: int, record: np.dtype[Any] = RECORD_DTYPE) -> None:
        """Map the ring; `record`: what every record of it looks like. Raises OSError if the kernel refuses."""
        page = mmap.PAGESIZE
        self._slot = _slot(record)
        self._ring_bytes = ring_bytes
        self._consumer = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(descriptor, page + ring_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data = np.frombuffer(self._producer, dtype=np.uint8, offset=page)
        self._words = self._data.view("<u4")
        # Not by struct: it goes byte by byte, and the kernel takes half a position for a full ring.
        self._consumed = np.frombuffer(self._consumer, dtype=np.uint64, count=1)
        self._produced = np.frombuffer(self._producer, dtype=np.uint64, count=1)

    @property
    def produced(self) -> int:
        """Position behind the last record that was begun; positions count bytes and only grow."""
        return int(self._produced[0])

    @property
    def is_filling(self) -> bool:
        """Whether so much waits that it should be read now."""
        return self.produced - int(self._consumed[0]) >= self._ring_bytes // _FILLING

    def drain(self) -> EventBatch:
        """Everything that is complete, as events in the order in which the kernel reserved them."""
        return self.read(decode)

    def read(self, made_of: Callable[[npt.NDArray[Any]], _T]) -> _T:
        """What a function makes of the records that are complete, shape (n,), in the order in which they were reserved.

        They may lie in the ring, which the kernel overwrites afterwards: nothing of what it returns may refer to them.
        """
        consumed = int(self._consumed[0])
        slots = self._complete(consumed)
        made = made_of(slots["record"])
        self._advance(consumed + slots.nbytes)
        return made

    def places(self, positions: Iterable[int]) -> list[int]:
        """How many of the records that wait now lie before each position."""
        consumed = int(self._consumed[0])
        return [(position - consumed) // self._slot.itemsize for position in positions]

    def peek(self, start: int, kinds: npt.NDArray[np.bool_]) -> tuple[EventBatch, int]:
        """The complete records of some kinds (`table_of_kinds`) from a position on, which stay; where to go on."""
        start = max(start, int(self._consumed[0]))
        slots = self._complete(start)
        records = slots["record"]
        return decode(records[kinds[records["kind"]]]), start + slots.nbytes

    def _complete(self, start: int) -> npt.NDArray[Any]:
        """The slots that are complete, from a position on: where they lie, if that is in one piece."""
        offset, size = start % self._ring_bytes, self._slot.itemsize
        headers = self._headers(offset, (self.produced - start) // size)
        # Before a copy, which may read a record's end before its header.
        busy = np.flatnonzero(headers & _BUSY)
        length = size * int(busy[0] if len(busy) else len(headers))  # a program on another CPU still writes
        slots = self._data[offset : offset + length]
        if len(slots) < length:
            slots = np.concatenate([slots, self._data[: length - len(slots)]])
        return slots.view(self._slot)

    def _headers(self, offset: int, count: int) -> npt.NDArray[np.uint32]:
        """The first words of so many slots, from the one at an offset on."""
        size = self._slot.itemsize
        headers = self._words[offset // 4 :: size // 4][:count]
        if len(headers) < count:
            again = offset + len(headers) * size - self._ring_bytes
            headers = np.concatenate([headers, self._words[again // 4 :: size // 4][: count - len(headers)]])
        return headers

    def _advance(self, consumed: int) -> None:
        self._consumed[0] = consumed

    def close(self) -> None:
        """Unmap."""
        self._data = np.empty(0, dtype=np.uint8)
        self._words = np.empty(0, dtype="<u4")
        self._consumed = self._produced = np.empty(0, dtype=np.uint64)
        for mapping in (self._producer, self._consumer):
            # An error while records were looked at keeps hold of them: it is to be told, and not that we cannot close.
            with contextlib.suppress(BufferError):
                mapping.close()
