# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: a recording of each slow operation in a folder, the oldest ones removed when it is full.

A recording appears whole or not at all: it is written beside its name and then renamed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from observe.errors import ObserveError, RecordingError
from observe.exporter.sinks import Delivery, Sink
from observe.model import EventBatch, Note, NoteKind, Run
from observe.recording import RecordingWriter

DEFAULT_BYTES = 256 << 20
#: Runs that wait for the disk.
_WAITING = 16
#: Of our names alone anything is removed.
_NAME = re.compile(r"\d{8}T\d{9}Z-[a-z]+-[0-9a-z]{1,12}(-\d+)?\.observe")
_PART = ".part"
_PART_NAME = re.compile(rf"\.{_NAME.pattern}{re.escape(_PART)}")
KEPT, REMOVED, TOO_LARGE = "kept", "removed", "too_large"


class FlightRecorder(Sink):
    """Keeps the runs that took at least so long."""

    def __init__(self, folder: Path, slower_than_ns: int, most_bytes: int = DEFAULT_BYTES) -> None:
        """Recordings in `folder`, which is made (0700) if it is not there, take `most_bytes` together at most.

        Raises ObserveError if nothing can be written there.
        """
        super().__init__("flight_recorder", (KEPT, REMOVED, TOO_LARGE), waiting=_WAITING)
        self.folder = folder
        self.slower_than_ns = slower_than_ns
        self._most_bytes = most_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass  # only whether it can be made
            for path in folder.iterdir():
                if _PART_NAME.fullmatch(path.name):  # what a crash has cut off
                    _remove_part(path)
        except OSError as error:
            raise _cannot_keep(folder, error) from error

    def wants(self, run: Run) -> bool:
        """Whether it was slow."""
        return run.duration_ns >= self.slower_than_ns

    def deliver(self, deliveries: Sequence[Delivery]) -> Mapping[str, int]:
        """Write their recordings, then make room. Raises ObserveError that says what is wrong with the folder."""
        counts: Counter[str] = Counter()
        try:
            for delivery in deliveries:
                size_bytes = self._write(delivery)
                counts[KEPT if size_bytes <= self._most_bytes else TOO_LARGE] += 1
                counts[REMOVED] += self._make_room()
        except (RecordingError, OSError) as error:
            raise _cannot_keep(self.folder, error) from error
        return counts

    def _write(self, delivery: Delivery) -> int:
        """Size in bytes of the recording. One that is too large by itself is not kept."""
        name = self._free_name(delivery.run)
        part = self.folder / f".{name}{_PART}"
        try:
            with RecordingWriter(part, delivery.stream.header) as writer:
                for note in delivery.stream.notes:
                    writer.write(note)
                writer.write(events_of(delivery.run))
                writer.write(Note(NoteKind.END, _last_ns(delivery.run), {"why": "one operation", "exit_code": 0}))
            size_bytes = part.stat().st_size
            if size_bytes <= self._most_bytes:
                part.rename(self.folder / name)
        finally:
            _remove_part(part)
        return size_bytes

    def _free_name(self, run: Run) -> str:
        moment = datetime.fromtimestamp(run.wall_time_ns / 1e9, tz=UTC)
        who = re.sub(r"[^0-9a-z]", "", (run.container_id or "")[:12]) or "unknown"
        stem = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z-{run.operation}-{who}"
        names = (stem, *(f"{stem}-{number}" for number in range(2, 100)))
        return next(
            (f"{one}.observe" for one in names if not (self.folder / f"{one}.observe").exists()), f"{stem}.observe"
        )

    def _make_room(self) -> int:
        """Remove the oldest recordings until the rest fits; how many."""
        sizes: dict[Path, int] = {}
        for path in sorted(self.folder.iterdir()):
            if _NAME.fullmatch(path.name):
                with suppress(OSError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        sizes[path] = status.st_size
        total, removed = sum(sizes.values()), 0
        for path, size_bytes in sizes.items():
            if total <= self._most_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size_bytes
            removed += 1
        return removed


def events_of(run: Run) -> EventBatch:
    """The events of a run in the order in which they arrived: by their end."""
    return EventBatch.of(sorted((event for _, event in run.events), key=lambda event: event.end_ns))


def _remove_part(path: Path) -> None:
    """Remove a recording that was not finished, unless it is no file, or some recorder is still writing it."""
    with suppress(OSError):
        # O_NONBLOCK: opening somebody's pipe must not wait for its other end.
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                path.unlink()
        finally:
            os.close(fd)


def _cannot_keep(folder: Path, error: RecordingError | OSError) -> ObserveError:
    """What is wrong with the folder, and what to do: the recorder's own advice is for `record -o`."""
    cause = error.__cause__ if isinstance(error, RecordingError) else error
    if not isinstance(cause, OSError) or isinstance(cause, BlockingIOError):
        # It is about one file: its name is taken, or another recorder writes it.
        return ObserveError(str(error).replace("another place with -o", "another --keep"))
    full = cause.errno in {errno.ENOSPC, errno.EDQUOT}
    advice = "make room there, or lower --keep-bytes" if full else "choose another --keep"
    return ObserveError(f"{folder}: {cause.strerror}; {advice}")


def _last_ns(run: Run) -> int:
    return max((event.end_ns for _, event in run.events), default=run.start_ns + run.duration_ns)
