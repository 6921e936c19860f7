# SPDX-License-Identifier: Apache-2.0
"""The real programs with the reader of their ring, for tests."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from puppets import Puppet

from observe.collectors.ring import RingReader
from observe.model import SYSCALLS, Event, EventBatch, Kind
from observe.probes import bpf
from observe.probes.attach import EventProbes
from observe.probes.compiler import Image
from observe.probes.events import Role
from observe.probes.layout import Counter

RING_BYTES = 1 << 20
_MAP_GET_NEXT_KEY = 4


class Watch:
    """Programs loaded; `probes.attach()` attaches them."""

    def __init__(self, image: Image, ring_bytes: int = RING_BYTES) -> None:
        self.probes = EventProbes(image, ring_bytes)
        self._reader = RingReader(self.probes.ring, ring_bytes)

    def follow(self, puppet: Puppet, role: Role = Role.CHILD) -> None:
        """From here on the puppet's calls are recorded."""
        self.probes.seed({puppet.pid: role}, ())

    def batch(self) -> EventBatch:
        """What has happened since the last look, as columns."""
        return self._reader.drain()

    def events(self, *kinds: Kind) -> list[Event]:
        """What has happened since the last look; of these kinds, if any are named."""
        return [event for event in self.batch() if not kinds or event.kind in kinds]

    def syscalls(self) -> list[Event]:
        """The system calls since the last look."""
        return self.events(*SYSCALLS)

    def counters(self) -> dict[Counter, int]:
        """All counters."""
        return {counter: self.probes.counter(counter) for counter in Counter}

    def followed(self) -> set[int]:
        """Processes (and threads) that stand in the lineage."""
        return {struct.unpack("<I", key)[0] for key in _keys(self.probes._maps["lineage"], 4)}

    def memory(self) -> bytes:
        """All of the ring's data, read or not."""
        page = mmap.PAGESIZE
        with mmap.mmap(
            self.probes.ring, page + self.probes.ring_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        ) as ring:
            return ring[page:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
        self.probes.close()


def _keys(descriptor: int, key_bytes: int) -> Iterator[bytes]:
    """Keys of a map."""
    key = ctypes.create_string_buffer(key_bytes)
    first = 0
    while True:
        attributes = struct.pack("<IxxxxQQ", descriptor, first, ctypes.addressof(key))
        try:
            bpf._bpf(_MAP_GET_NEXT_KEY, attributes)
        except FileNotFoundError:
            return
        yield key.raw
        first = ctypes.addressof(key)
