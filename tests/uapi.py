# SPDX-License-Identifier: Apache-2.0
"""System call numbers from the kernel's own headers (package linux-libc-dev), for tests to compare with."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_INCLUDE = Path("/usr/include")
_NUMBER = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)


@cache
def numbers(machine: str) -> dict[str, int]:
    """Name -> number on "x86_64" or "aarch64"."""
    path = _INCLUDE / "asm-generic/unistd.h"
    if machine == "x86_64":
        # The first folder is Debian's, by architecture.
        path = next(path for path in (*_INCLUDE.glob("x86_64-linux-gnu/asm"), _INCLUDE / "asm") if path.is_dir())
        path /= "unistd_64.h"
    return {name: int(number) for name, number in _NUMBER.findall(path.read_text(encoding="utf-8"))}
