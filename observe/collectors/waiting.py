# SPDX-License-Identifier: Apache-2.0
"""Sleep until somebody has something to say."""

from __future__ import annotations

import select
from collections.abc import Iterable


def readable(descriptors: Iterable[int], timeout_seconds: float) -> set[int]:
    """Wait until one of them can be read; which ones can."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in waiting.poll(timeout_seconds * 1000)}


class Bell:
    """Can be read once the kernel has woken a ring's readers, also while records still lie in the ring."""

    def __init__(self, ring: int) -> None:
        """Listen to the ring buffer map behind this descriptor. Raises OSError."""
        self._epoll = select.epoll()
        try:
            self._epoll.register(ring, select.EPOLLIN | select.EPOLLET)
        except BaseException:
            self._epoll.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._epoll.fileno()

    def answer(self) -> None:
        """Cannot be read any more, until it is rung again."""
        self._epoll.poll(0)

    def close(self) -> None:
        """Close the descriptor."""
        self._epoll.close()
