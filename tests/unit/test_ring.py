# SPDX-License-Identifier: Apache-2.0
"""The reader of the ring on memory that a test writes as the kernel does."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from observe.collectors.ring import RingReader
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

    def produce(self, name: int, *, busy: bool = False) -> int:
        """A record whose pid, path and time tell its name; its position."""
        record = np.zeros(1, RECORD_DTYPE)
        record["pid"] = record["time_ns"] = name
        record["kind"] = 10
        record["path"] = path = f"/{name}".encode()
        record["path_bytes"] = len(path)
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


@pytest.fixture(params=[(4096, 0), (16384, 0), (16384, SLOT_BYTES * 1000), (4096, (1 << 63) - 1000 & ~7)])
def ring(request: pytest.FixtureRequest) -> Iterator[tuple[Memory, RingReader]]:
    memory = Memory(*request.param)
    with ExitStack() as stack:
        stack.callback(os.close, memory.descriptor)
        reader = RingReader(memory.descriptor, memory.ring_bytes)
        stack.callback(reader.close)
        yield memory, reader


def names(reader: RingReader) -> list[int]:
    """Names of the records that are read; each record must be whole."""
    events = list(reader.drain())
    assert [event.path for event in events] == [f"/{event.pid}" for event in events]
    assert [event.time_ns for event in events] == [event.pid for event in events]
    return [event.pid for event in events]


def test_nothing(ring: tuple[Memory, RingReader]) -> None:
    memory, reader = ring
    before = memory.consumed
    assert names(reader) == []
    assert memory.consumed == before


def test_many_rounds(ring: tuple[Memory, RingReader]) -> None:
    memory, reader = ring
    name, capacity = 0, memory.room
    for round_ in range(300):
        made = [name := name + 1 for _ in range(round_ % (capacity + 1))]
        for each in made:
            memory.produce(each)
        assert names(reader) == made
        assert memory.consumed == memory.produced
        assert memory.room == capacity


def test_a_full_ring(ring: tuple[Memory, RingReader]) -> None:
    memory, reader = ring
    made = [index + 1 for index in range(memory.room)]
    for each in made:
        memory.produce(each)
    assert memory.room == 0
    assert names(reader) == made


def test_whoever_is_busy_holds_up_those_behind(ring: tuple[Memory, RingReader]) -> None:
    memory, reader = ring
    memory.produce(1)
    position = memory.produce(2, busy=True)
    memory.produce(3)
    assert names(reader) == [1]
    assert names(reader) == []
    assert memory.consumed == position
    memory.submit(position)
    assert names(reader) == [2, 3]
    assert memory.consumed == memory.produced


def test_busy_at_every_place_of_the_ring(ring: tuple[Memory, RingReader]) -> None:
    memory, reader = ring
    for name in range(1, 60):
        position = memory.produce(name, busy=True)
        assert names(reader) == []
        memory.submit(position)
        assert names(reader) == [name]


def test_the_copy_does_not_change_when_the_ring_does(ring: tuple[Memory, RingReader]) -> None:
    memory, reader = ring
    memory.produce(1)
    batch = reader.drain()
    for name in range(2, 2 + memory.room):
        memory.produce(name)
    (event,) = batch
    assert (event.pid, event.path) == (1, "/1")


def test_closing_unmaps() -> None:
    memory = Memory(4096, 0)
    reader = RingReader(memory.descriptor, 4096)
    reader.drain()
    mapped = Path("/proc/self/maps").read_text().count("memfd:ring")
    reader.close()
    os.close(memory.descriptor)
    assert mapped == 2
    assert "memfd:ring" not in Path("/proc/self/maps").read_text()
