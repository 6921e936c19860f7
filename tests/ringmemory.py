# SPDX-License-Identifier: Apache-2.0
"""A ring buffer's memory that a test writes as the kernel does."""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np

from observe.probes.layout import RECORD_DTYPE

PAGE = mmap.PAGESIZE
BUSY = 1 << 31
SLOT_BYTES = (8 + RECORD_DTYPE.itemsize + 7) // 8 * 8


class Memory:
    """What the kernel maps: consumer's page, producer's page, data; and a producer."""

    def __init__(self, ring_bytes: int, start: int) -> None:
        self.ring_bytes = ring_bytes
        self.descriptor = os.memfd_create("ring")
        os.ftruncate(self.descriptor, 2 * PAGE + ring_bytes)
        self.produced = start
        self._put(0, struct.pack("<Q", start))
        self._put(PAGE, struct.pack("<Q", start))

    def produce(self, name: int, *, kind: int = 10, path: str | None = None, busy: bool = False) -> int:
        """A record whose pid, path and time tell its name; its position."""
        record = np.zeros(1, RECORD_DTYPE)
        record["pid"] = record["time_ns"] = name
        record["kind"] = kind
        record["path"] = text = (f"/{name}" if path is None else path).encode()
        record["path_bytes"] = len(text)
        position = self.produced
        self._put_around(
            position, struct.pack("<II", RECORD_DTYPE.itemsize | (BUSY if busy else 0), 1) + record.tobytes()
        )
        self.produced += SLOT_BYTES
        self._put(PAGE, struct.pack("<Q", self.produced))
        return position

    def submit(self, position: int) -> None:
        self._put_around(position, struct.pack("<I", RECORD_DTYPE.itemsize))

    @property
    def consumed(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.descriptor, 8, 0))[0])

    @property
    def room(self) -> int:
        return (self.ring_bytes - (self.produced - self.consumed)) // SLOT_BYTES

    def _put_around(self, position: int, data: bytes) -> None:
        offset = position % self.ring_bytes
        first = data[: self.ring_bytes - offset]
        self._put(2 * PAGE + offset, first)
        self._put(2 * PAGE, data[len(first) :])

    def _put(self, offset: int, data: bytes) -> None:
        os.pwrite(self.descriptor, data, offset)
