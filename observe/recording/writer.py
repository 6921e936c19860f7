# SPDX-License-Identifier: Apache-2.0
"""Write a recording so that whatever happens to the recorder costs at most the last second."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from observe.errors import RecordingError
from observe.model import Conclusions, EventBatch, Header, Item, Note, NoteKind
from observe.recording import format as layout
from observe.recording.conclusions import encode_conclusions
from observe.recording.reader import holds_only

#: Events wait at most this long, and no more than these many, before they are handed to the system.
FLUSH_INTERVAL_NS = 1_000_000_000
FLUSH_ROWS = layout.MAX_ROWS
#: What was handed over is on the disk at most about this much later.
SYNC_INTERVAL_NS = 1_000_000_000

_CLOSED = -1


def _boot_clock_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class RecordingWriter:
    """A recording that is being made; a context manager that closes it.

    Items come back in the order in which they were written; batches may be merged or split. There are no
    threads: whoever has nothing to write calls `flush_if_due` now and then.
    """

    def __init__(self, path: Path, header: Header, clock: Callable[[], int] = _boot_clock_ns) -> None:
        """Create `path` with mode 0600 and write `header`; an older recording there is replaced.

        `clock` tells the nanoseconds of the boot clock. Raises RecordingError if the place cannot be written,
        holds something that is not a recording, or is being written by another recorder.
        """
        start = layout.pack_prelude() + layout.pack_frame(layout.FrameKind.HEADER, layout.encode_header(header))
        self._path = path
        self._clock = clock
        self._waiting: list[EventBatch] = []
        self._waiting_rows = 0
        self._waiting_since_ns = 0
        self._synced_ns = clock()
        self._synced_bytes = 0
        self._written_bytes = 0
        self._ended = False
        self._fd = _create(path)
        self._append(start)

    def write(self, item: Item) -> None:
        """Keep `item`: events within a second, a note (and the events before it) at once.

        Raises RecordingError if the system cannot take it; then the recording is closed, readable up to there.
        """
        self._check_open()
        if isinstance(item, Note):
            frame = layout.pack_frame(layout.FrameKind.NOTE, layout.encode_note(item))
            self.flush()
            self._append(frame)
            self._ended |= item.kind is NoteKind.END
        elif len(item):
            if not self._waiting:
                self._waiting_since_ns = self._clock()
            self._waiting.append(item)
            self._waiting_rows += len(item)
            if self._waiting_rows >= FLUSH_ROWS:
                self.flush()
        self.flush_if_due(self._clock())

    def flush_if_due(self, now_ns: int) -> None:
        """Hand over what has waited for a second at `now_ns` (boot clock). Raises RecordingError like `write`."""
        if self._waiting and now_ns - self._waiting_since_ns >= FLUSH_INTERVAL_NS:
            self.flush()
        if self._synced_bytes < self._written_bytes and now_ns - self._synced_ns >= SYNC_INTERVAL_NS:
            self._sync(now_ns)

    def flush(self) -> None:
        """Hand all waiting events to the system: from here on they survive the recorder. Raises like `write`."""
        if not self._waiting:
            return
        batch = self._waiting[0] if len(self._waiting) == 1 else EventBatch.concat(self._waiting)
        frames = [layout.pack_frame(layout.FrameKind.EVENTS, payload) for payload in layout.encode_events(batch)]
        # All at once: if this is interrupted, the next flush writes the same bytes to the same place.
        self._append(b"".join(frames))
        self._waiting.clear()
        self._waiting_rows = 0

    def close(self) -> None:
        """Flush, mark the clean end if no end note was written, sync and close; the second time does nothing.

        Raises RecordingError like `write`.
        """
        if self._fd == _CLOSED:
            return
        try:
            if self._ended:
                self.flush()
            else:
                self.write(Note(NoteKind.END, self._clock(), {"why": "closed"}))
            self._sync(self._clock())
        finally:
            if self._fd != _CLOSED:
                self._release()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it, whatever happened."""
        self.close()

    def _append(self, data: bytes) -> None:
        """Hand `data` over whole. An interrupted call leaves nothing that counts: the next one starts at its place."""
        self._check_open()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.pwrite(self._fd, rest, self._written_bytes + len(data) - len(rest)) :]
        except OSError as error:
            raise self._failure(error) from error
        self._written_bytes += len(data)

    def _sync(self, now_ns: int) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failure(error) from error
        self._synced_ns = now_ns
        self._synced_bytes = self._written_bytes

    def _failure(self, error: OSError) -> RecordingError:
        """Close the file behind its last whole frame."""
        with suppress(OSError):
            os.ftruncate(self._fd, self._written_bytes)
        self._release()
        return RecordingError(
            f"cannot write {self._path}: {error.strerror}; the {self._written_bytes} bytes before are readable;"
            " make room, or choose another place with -o"
        )

    def _check_open(self) -> None:
        if self._fd == _CLOSED:
            raise RecordingError(f"cannot write {self._path}: it is closed; begin another recording")

    def _release(self) -> None:
        fd, self._fd = self._fd, _CLOSED
        os.close(fd)


def keep_conclusions(path: Path, conclusions: Conclusions, stamp: str, of: int) -> bool:
    """Append what code of this `stamp` concluded from the whole recording at `path`, whose fingerprint was `of`.

    False, and the file is as it was, if they cannot be kept: no room, not allowed, being written, too large, or
    something else is there by now: another recording, one with conclusions, a symbolic link. Then nothing is lost but
    the time to conclude it again. Raises ValueError if they are such as are not kept.
    """
    try:
        # O_NOFOLLOW: root does not open for writing what somebody has put in its place.
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not (_is_regular(fd) and _first_bytes(fd) == layout.FILE_MAGIC):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not holds_only(fd, of):
            return False
        frames = [
            layout.pack_frame(layout.FrameKind.CONCLUSIONS, payload)
            for payload in encode_conclusions(conclusions, stamp, of)
        ]
        _append_or_leave(fd, b"".join(frames))
    except (OSError, RecordingError):
        return False
    finally:
        os.close(fd)
    return True


def _append_or_leave(fd: int, data: bytes) -> None:
    """All of it, or nothing. Raises OSError."""
    start = os.fstat(fd).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.pwrite(fd, rest, start + len(data) - len(rest)) :]
        os.fdatasync(fd)
    except BaseException:
        os.ftruncate(fd, start)
        raise


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _first_bytes(fd: int) -> bytes:
    """What stands where a recording has its magic; less if the file is shorter."""
    return os.pread(fd, len(layout.FILE_MAGIC), 0)


def _create(path: Path) -> int:
    """Descriptor of an empty file of ours. Raises RecordingError."""
    try:
        fd = _open(path)
    except OSError as error:
        raise _refusal(path, error.strerror) from error
    try:
        _claim(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        # O_NONBLOCK: opening somebody's pipe must not wait for its other end.
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _claim(fd: int, path: Path) -> None:
    """Empty what is open if it may be replaced. Raises RecordingError if not."""
    try:
        if not _is_regular(fd):
            raise _refusal(path, "it is not a regular file")
        if not layout.FILE_MAGIC.startswith(_first_bytes(fd)):
            raise _refusal(path, "it holds something that is not a recording")
        # Held until the descriptor is closed, also by a kill.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
    except BlockingIOError as error:
        raise _refusal(path, "another recorder is writing it") from error
    except OSError as error:
        raise _refusal(path, error.strerror) from error


def _refusal(path: Path, reason: str | None) -> RecordingError:
    return RecordingError(f"cannot write {path}: {reason}; choose another place with -o")
