# SPDX-License-Identifier: Apache-2.0
"""What the C library does with memory that is not needed any more (glibc's man 3 mallopt); nothing with another."""

from __future__ import annotations

import ctypes

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8

_KEPT_BYTES = 256 * 1024


def give_back() -> None:
    """Keep little of what is freed, and one heap for all threads.

    glibc keeps more the larger the blocks are that a program has freed, in each thread's heap: 3 to 5 MB of
    `observe serve` under load (`bench/follow.py`). Call it before threads start.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
