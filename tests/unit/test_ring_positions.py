# SPDX-License-Identifier: Apache-2.0
"""The kernel reads the consumer's position at any moment: it must never see half of one."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from observe.collectors import ring
from observe.probes.layout import RECORD_DTYPE

SLOTS = 4
ROUNDS = 30
LOOKS = 1_000_000


def test_the_kernel_never_sees_a_position_that_is_half_written() -> None:
    """A position that is too small for a moment looks like a full ring, and a record is lost."""
    page, ring_bytes = mmap.PAGESIZE, 1 << 20
    descriptor = os.memfd_create("ring")
    os.ftruncate(descriptor, 2 * page + ring_bytes)
    memory = mmap.mmap(descriptor, 2 * page + ring_bytes)
    consumer = np.frombuffer(memory, dtype="<u8", count=1)
    producer = np.frombuffer(memory, dtype="<u8", count=1, offset=page)
    step = SLOTS * ring._slot(RECORD_DTYPE).itemsize
    consumer[0] = producer[0] = start = 0x0101_0101_0000
    # No record is anywhere, so what is drained is nonsense; where the reader stands is what counts.
    reader = ring.RingReader(descriptor, ring_bytes)

    def least_seen() -> int:
        return int(looked_at(consumer).min())

    with ThreadPoolExecutor(1) as pool:
        for _ in range(ROUNDS):
            least = pool.submit(least_seen)
            while not least.done():
                producer[0] += step
                reader._advance(int(producer[0]))
            assert least.result() >= start
    assert consumer[0] == producer[0] > start
    reader.close()
    os.close(descriptor)


def looked_at(position: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """What stands at a place, looked at very often; other threads run meanwhile."""
    return position.take(np.zeros(LOOKS, dtype=np.intp))
