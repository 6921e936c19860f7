# SPDX-License-Identifier: Apache-2.0
"""Small files that spare work the next time. Whatever is damaged, foreign or cannot be written is simply not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

_DIGEST_BYTES = 32


def cache_folder() -> Path:
    """$OBSERVE_CACHE, else /var/cache/observe for root, else the user's cache folder."""
    given = os.environ.get("OBSERVE_CACHE")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/cache/observe")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "observe"


def read_cached(folder: Path, key: str) -> bytes | None:
    """What was kept under a key; None if there is nothing, or it is damaged, or another user could have written it."""
    try:
        with (folder / key).open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            content = file.read()
    except OSError:
        return None
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == digest else None


def write_cached(folder: Path, key: str, data: bytes) -> None:
    """Keep something under a key, whole or not at all."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            name = Path(file.name)
            try:
                file.write(hashlib.sha256(data).digest() + data)
                file.flush()
                name.replace(folder / key)
            except OSError:
                name.unlink(missing_ok=True)
