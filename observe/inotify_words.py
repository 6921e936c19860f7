# SPDX-License-Identifier: Apache-2.0
"""The bits of linux/inotify.h in inotifywait's words, for what reads its logs and what writes them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Word → bits. CLOSE and MOVE only sum up a word that stands beside them.
MASK_WORDS: Mapping[str, int] = MappingProxyType(
    {
        "ACCESS": 0x1,
        "MODIFY": 0x2,
        "ATTRIB": 0x4,
        "CLOSE_WRITE": 0x8,
        "CLOSE_NOWRITE": 0x10,
        "OPEN": 0x20,
        "MOVED_FROM": 0x40,
        "MOVED_TO": 0x80,
        "CREATE": 0x100,
        "DELETE": 0x200,
        "DELETE_SELF": 0x400,
        "MOVE_SELF": 0x800,
        "UNMOUNT": 0x2000,
        "Q_OVERFLOW": 0x4000,
        "IGNORED": 0x8000,
        "ISDIR": 0x4000_0000,
        "ONESHOT": 0x8000_0000,
        "CLOSE": 0,
        "MOVE": 0,
    }
)


def words(mask: int) -> str:
    """`CREATE,ISDIR`; empty for a mask without a known bit."""
    return ",".join(word for word, bit in MASK_WORDS.items() if mask & bit)
