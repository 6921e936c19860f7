# SPDX-License-Identifier: Apache-2.0
"""The reader of the ring on memory that a test writes as the kernel does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
from ringmemory import SLOT_BYTES, Memory

from observe.collectors.ring import RingReader
from observe.model import Kind, table_of_kinds


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


def test_a_look_takes_nothing_away(ring: tuple[Memory, RingReader]) -> None:
    memory, reader = ring
    for name in range(1, 80):
        first = memory.produce(name, kind=Kind.API_REQUEST if name % 3 else Kind.MKDIR)
        second = memory.produce(name + 1, kind=Kind.EXECVE)
        busy = memory.produce(name + 2, kind=Kind.MKDIR, busy=True)
        batch, after = reader.peek(first, table_of_kinds({Kind.API_REQUEST, Kind.MKDIR}))
        (event,) = batch
        assert (event.pid, event.path, after) == (name, f"/{name}", busy)
        assert reader.places([first, second, busy, memory.produced]) == [0, 1, 2, 3]
        assert reader.produced == memory.produced
        memory.submit(busy)
        assert [event.pid for event in reader.peek(after, table_of_kinds({Kind.MKDIR}))[0]] == [name + 2]
        assert names(reader) == [name, name + 1, name + 2]
        assert len(reader.peek(after, table_of_kinds({Kind.MKDIR}))[0]) == 0


def test_a_quarter_in_use_is_much() -> None:
    memory = Memory(1 << 16, 0)
    reader = RingReader(memory.descriptor, memory.ring_bytes)
    for name in range(memory.ring_bytes // 4 // SLOT_BYTES):
        memory.produce(name)
        assert not reader.is_filling
    memory.produce(0)
    assert reader.is_filling
    reader.drain()
    assert not reader.is_filling
    reader.close()
    os.close(memory.descriptor)


def test_closing_unmaps() -> None:
    memory = Memory(4096, 0)
    reader = RingReader(memory.descriptor, 4096)
    reader.drain()
    mapped = Path("/proc/self/maps").read_text().count("memfd:ring")
    reader.close()
    os.close(memory.descriptor)
    assert mapped == 2
    assert "memfd:ring" not in Path("/proc/self/maps").read_text()


def test_an_error_while_records_are_looked_at_is_what_is_told() -> None:
    memory = Memory(4096, 0)
    reader = RingReader(memory.descriptor, memory.ring_bytes)
    memory.produce(1)

    def fails(records: npt.NDArray[Any]) -> None:
        raise LookupError(len(records))

    # Closed as a session does it: while the records are still in the frames of the traceback.
    with pytest.raises(LookupError), closing(reader):
        reader.read(fails)
    os.close(memory.descriptor)
