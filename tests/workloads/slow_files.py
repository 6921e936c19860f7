#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A file system that shows a directory as it is, but is slow to flush what dockerd saves of some running containers.

    slow_files.py DIRECTORY MILLISECONDS

It is mounted over DIRECTORY (the data root's containers/). An fsync takes so much longer if what is flushed is the
state of a running container whose name begins with `slow-`. It ends when it is unmounted or killed.
"""

# ruff: noqa: ARG002, PTH105, PTH106, PTH101, PTH102, PTH108, PTH208 - each is a system call, with libfuse's arguments

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import mfusepy

_ATTRIBUTES = ("st_atime_ns", "st_ctime_ns", "st_mtime_ns", "st_gid", "st_mode", "st_nlink", "st_size", "st_uid")
_SLOW = (b'"Name":"/slow-', b'"Running":true')


class SlowFiles(mfusepy.Operations):  # type: ignore[misc]
    """The directory behind a descriptor."""

    use_ns = True

    def __init__(self, directory: int, delay_seconds: float) -> None:
        """`directory`: opened before anything was mounted over it."""
        self._root = f"/proc/self/fd/{directory}"
        self._delay_seconds = delay_seconds

    def _real(self, path: str) -> str:
        return self._root + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """The file's."""
        found = os.lstat(self._real(path)) if fh is None else os.fstat(fh)
        return {name.removesuffix("_ns"): getattr(found, name) for name in _ATTRIBUTES}

    def readdir(self, path: str, fh: int) -> list[str]:
        """Names."""
        return [".", "..", *os.listdir(self._real(path))]

    def create(self, path: str, mode: int, fi: int | None = None) -> int:
        """A new file's descriptor."""
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def open(self, path: str, flags: int) -> int:
        """A descriptor; where to write is the kernel's to say."""
        return os.open(self._real(path), flags & ~os.O_APPEND)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """What is there."""
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """How much was written."""
        return os.pwrite(fh, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Flush, slowly if it is what this file system is for."""
        text = Path(self._real(path)).read_bytes()
        if all(part in text for part in _SLOW):
            time.sleep(self._delay_seconds)
        os.fsync(fh)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Cut."""
        os.truncate(self._real(path) if fh is None else fh, length)
        return 0

    def release(self, path: str, fh: int) -> int:
        """Close."""
        os.close(fh)
        return 0

    def rename(self, old: str, new: str) -> int:
        """Give another name."""
        os.replace(self._real(old), self._real(new))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        """Make a directory."""
        os.mkdir(self._real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove a directory."""
        os.rmdir(self._real(path))
        return 0

    def unlink(self, path: str) -> int:
        """Remove a file."""
        os.unlink(self._real(path))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        """Set the mode."""
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        """Set the owner."""
        os.lchown(self._real(path), uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        """Set the times."""
        os.utime(self._real(path), ns=times) if times else os.utime(self._real(path))
        return 0


def main(directory: str, milliseconds: str) -> None:
    """Mount it and serve it."""
    shown = SlowFiles(os.open(directory, os.O_RDONLY | os.O_DIRECTORY), int(milliseconds) / 1_000)
    mfusepy.FUSE(shown, directory, foreground=True, allow_other=True, default_permissions=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
