# SPDX-License-Identifier: Apache-2.0
"""File events of the engine's data root, through pyinotify.

pyinotify's watch manager makes the instance and sets the watches. Its notifier is not used: it loses the
rest of a read when a name is not UTF-8, formats every event as text, and invents events without saying so.
Here an invented event is marked, and a directory is searched for what no event told only if it is new.

What inotify shows is never complete: a new directory may be filled and emptied before its watch is set.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyinotify

from observe.errors import HostCannotError
from observe.model import EVENT_DTYPE, EventBatch, Kind, Mark

#: What is recorded: the walk-through's mask, and moves (config.v2.json and others arrive by rename).
MASK: int = (
    pyinotify.IN_MODIFY
    | pyinotify.IN_ATTRIB
    | pyinotify.IN_CREATE
    | pyinotify.IN_DELETE
    | pyinotify.IN_MOVED_FROM
    | pyinotify.IN_MOVED_TO
)
_CAME: int = pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO
_WENT: int = pyinotify.IN_DELETE | pyinotify.IN_MOVED_FROM

#: Folders of the data root, and how many levels of them are watched (1: the folder itself).
#: What lies deeper belongs to containers or builds: volumes/NAME/_data, containers/ID/mounts/shm, tmp/BUILD/*.
_LEVELS = {"containers": 3, "image": 8, "network": 8, "tmp": 2, "volumes": 2}

#: struct inotify_event: wd, mask, cookie, length of the name that follows.
_HEADER = struct.Struct("iIII")
_READ_BYTES = 256 * 1024
#: Reads in one drain: several times what a full queue of 16,384 events holds, so a flood cannot hold us.
_READS = 32

#: The directory went away before its watch was set: nothing is lost that could be watched.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH})


@dataclass(frozen=True, slots=True)
class InotifyLosses:
    """What inotify did not show, as far as it can be counted."""

    #: Overflows of the kernel's queue; each lost an unknown number of events.
    overflows: int = 0
    #: Directories that should have a watch and have none, because a limit was reached.
    unwatched_directories: int = 0


def is_watched(path: str, driver: str) -> bool:
    """Whether the directory at `path`, relative to the data root ("": the root itself), gets a watch.

    In the storage driver's folder: each layer, what stands in it (`diff`, `work`), and `work/work`. The contents of
    `diff` only in `-init` layers, which the engine fills itself; everywhere else they are an image's files, which
    never change (20,256 watches for one image seen), or a container's own work. Never anything below `merged`.
    """
    parts = path.split("/") if path else []
    if not parts:
        return True
    if parts[0] != driver:
        return len(parts) <= _LEVELS.get(parts[0], 0)
    if "merged" in parts:
        return False
    return len(parts) <= 3 or parts[2:] == ["work", "work"] or (parts[1].endswith("-init") and parts[2] == "diff")


class InotifyCollector:
    """Watches the data root as the engine's mount namespace shows it; the session polls `fileno` and drains.

    `root_prefix` is how we reach the engine's root directory (`/proc/PID/root`, or `/`); `data_root` is the path the
    engine knows, absolute; `driver` is the storage driver's name. Events carry the engine's paths.
    """

    def __init__(self, root_prefix: Path, data_root: str, driver: str) -> None:
        """Nothing is opened before `start`."""
        self.warnings: list[str] = []
        self._prefix = str(root_prefix).rstrip("/")
        self._data_root = "/" + data_root.strip("/")
        self._driver = driver
        self._manager: pyinotify.WatchManager | None = None
        self._directories: dict[int, _Directory] = {}
        self._departed: set[int] = set()
        self._must_rescan = False
        self._overflows = 0
        self._unwatched = 0
        self._reasons: set[int] = set()
        #: What was collected and not drained.
        self._rows = _Rows()
        #: One for all reads: to allocate it each time was dearer than the read.
        self._buffer = bytearray(_READ_BYTES)

    @property
    def losses(self) -> InotifyLosses:
        """Counts since `start`."""
        return InotifyLosses(overflows=self._overflows, unwatched_directories=self._unwatched)

    def start(self) -> None:
        """Set the watches; a limit that is reached becomes a warning and a count. Raises HostCannotError.

        Without an instance (EMFILE) all directories count as unwatched, `fileno` is -1 and `drain` stays empty.
        """
        if not os.path.isdir(self._prefix + self._data_root):  # noqa: PTH112 - the path may hold any bytes
            raise HostCannotError(
                f"inotify: there is no directory {self._data_root} under {self._prefix or '/'}: "
                "check the data root with `docker info`"
            )
        try:
            self._manager = pyinotify.WatchManager()
        except OSError:
            # pyinotify keeps the number out of its exception.
            self.warnings.append(_instance_warning(ctypes.get_errno()))
        else:
            os.set_blocking(self.fileno(), False)
            os.set_inheritable(self.fileno(), False)
        self._walk(self._data_root, _Rows(), None)

    def fileno(self) -> int:
        """Descriptor that is readable when events wait; -1 without an instance."""
        return -1 if self._manager is None else int(self._manager.get_fd())

    def collect(self) -> None:
        """Read what waits, in the kernel's order, stamped with the time it was read; does not block."""
        if self._manager is None:
            return
        rows = self._rows
        self._read(rows)
        if self._must_rescan:
            self._must_rescan = False
            self._rescan(rows)
            # What happened meanwhile is in the queue: there a true event takes the place of an invented one.
            self._read(rows)
        self._drop_departed()

    def drain(self) -> EventBatch:
        """All events since the last drain; collects first."""
        self.collect()
        rows, self._rows = self._rows, _Rows()
        return rows.batch()

    def stop(self) -> None:
        """Close the instance, and with it all watches. Counts and warnings stay. Can be called twice."""
        if self._manager is not None:
            self._manager.close()
        self._manager = None
        self._directories.clear()

    def _read(self, rows: _Rows) -> None:
        for _ in range(_READS):
            try:
                length = os.readv(self.fileno(), [self._buffer])
            except BlockingIOError:
                return
            rows.time_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for wd, mask, cookie, name in _raw_events(bytes(memoryview(self._buffer)[:length])):
                self._take(wd, mask, cookie, name, rows)

    def _take(self, wd: int, mask: int, cookie: int, name: str, rows: _Rows) -> None:
        if mask & pyinotify.IN_Q_OVERFLOW:
            self._overflows += 1
            self._must_rescan = True
            return
        if mask & pyinotify.IN_IGNORED:
            self._forget(wd)
            return
        directory = self._directories.get(wd)
        if directory is None or not mask & MASK:
            return
        path = f"{directory.path}/{name}" if name else directory.path
        if mask & _CAME:
            directory.names.add(name)
            rows.drop_invented(path)
        elif mask & _WENT:
            directory.names.discard(name)
            rows.keep_invented(path)
        rows.add(path, mask, cookie, Mark(0))
        if mask & pyinotify.IN_ISDIR:
            self._follow(path, mask, rows)

    def _follow(self, path: str, mask: int, rows: _Rows) -> None:
        """Keep the watches in step with a directory that came or went."""
        if not self._is_watched(path):
            return
        if mask & _CAME:
            # A renamed directory has its watch already: walking it again gives it its new path.
            self._walk(path, rows, Mark.INVENTED)
        elif mask & pyinotify.IN_MOVED_FROM:
            below = path + "/"
            self._departed.update(
                wd
                for wd, directory in self._directories.items()
                if directory.path == path or directory.path.startswith(below)
            )

    def _walk(self, top: str, rows: _Rows, marks: Mark | None) -> set[int]:
        """Watch `top` and what is below it, as far as it is wanted; return the watches.

        What is found in directories that had no watch becomes CREATE events with these marks (None: no events);
        with RESCANNED among them also what is found in the others and was not known.
        """
        visited = set()
        waiting = [top]
        while waiting:
            path = waiting.pop()
            wd = self._watch(path)
            names = self._list(path)
            if wd is not None:
                visited.add(wd)
                self._departed.discard(wd)
                is_new = wd not in self._directories
                directory = self._directories.setdefault(wd, _Directory(path))
                directory.path = path
                if is_new or (marks is not None and Mark.RESCANNED in marks):
                    if marks is not None:
                        for name in sorted(names.keys() - directory.names):
                            mask = pyinotify.IN_CREATE | (pyinotify.IN_ISDIR if names[name] else 0)
                            rows.add(f"{path}/{name}", mask, 0, marks)
                    directory.names = set(names)
            below = (f"{path}/{name}" for name, is_directory in names.items() if is_directory)
            waiting.extend(child for child in below if self._is_watched(child))
        return visited

    def _rescan(self, rows: _Rows) -> None:
        """After an overflow: watch what is new, tell what no event told, drop watches of what is gone."""
        rows.time_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        unwatched, self._unwatched = self._unwatched, 0
        visited = self._walk(self._data_root, rows, Mark.INVENTED | Mark.RESCANNED)
        # The walk met those that were counted before once more.
        self._unwatched = max(self._unwatched, unwatched)
        for wd in self._directories.keys() - visited:
            self._unwatch(wd)

    def _drop_departed(self) -> None:
        """Drop the watches of directories that were moved out of what is watched: their paths are wrong now."""
        for wd in self._departed:
            self._unwatch(wd)
        self._departed.clear()

    def _is_watched(self, path: str) -> bool:
        return is_watched(path[len(self._data_root) + 1 :], self._driver)

    def _watch(self, path: str) -> int | None:
        """Watch descriptor of a directory; None if it is gone, or cannot be watched (counted)."""
        if self._manager is None:
            self._unwatched += 1
            return None
        try:
            disk_path = self._prefix + path
            # quiet would log one error a directory.
            watches = self._manager.add_watch(disk_path, MASK | pyinotify.IN_ONLYDIR, quiet=False)
        except pyinotify.WatchManagerError:
            # pyinotify keeps the number out of its exception.
            self._count_failure(ctypes.get_errno())
            return None
        except UnicodeEncodeError:
            # pyinotify takes no path that is not UTF-8.
            self._count_failure(errno.EILSEQ)
            return None
        return int(watches[disk_path])

    def _list(self, path: str) -> dict[str, bool]:
        """Names in a directory, and whether each is a directory (no symbolic link is followed)."""
        try:
            with os.scandir(self._prefix + path) as entries:
                return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError as error:
            if error.errno not in _GONE:
                self._count_failure(error.errno or errno.EIO)
            return {}

    def _count_failure(self, number: int) -> None:
        """Count a directory that stays unwatched; the first one for each reason makes a warning."""
        if number in _GONE:
            return
        self._unwatched += 1
        if number not in self._reasons:
            self._reasons.add(number)
            self.warnings.append(_watch_warning(number))

    def _unwatch(self, wd: int) -> None:
        if self._manager is not None:
            # It fails if the kernel dropped the watch already and that event was lost in an overflow.
            with contextlib.suppress(pyinotify.WatchManagerError):
                self._manager.rm_watch(wd, quiet=False)
        self._forget(wd)

    def _forget(self, wd: int) -> None:
        self._directories.pop(wd, None)
        if self._manager is not None and wd in self._manager.watches:
            self._manager.del_watch(wd)


@dataclass(slots=True)
class _Directory:
    """A watched directory: its path as the engine knows it, and the names in it that are known so far."""

    path: str
    names: set[str] = field(default_factory=set)


class _Rows:
    """Events of one drain: lists while they arrive, columns at the end."""

    def __init__(self) -> None:
        """`time_ns` is stamped on what is added."""
        self.time_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._columns: list[tuple[int, int, int, int, int]] = []
        self._strings = {"": 0}
        self._invented: dict[str, int] = {}
        self._dropped: list[int] = []

    def add(self, path: str, mask: int, cookie: int, marks: Mark) -> None:
        if marks:
            self._invented[path] = len(self._columns)
        index = self._strings.setdefault(path, len(self._strings))
        self._columns.append((self.time_ns, cookie, mask, index, marks))

    def drop_invented(self, path: str) -> None:
        """The true event of `path` came after all: leave out the one that was made up."""
        row = self._invented.pop(path, None)
        if row is not None:
            self._dropped.append(row)

    def keep_invented(self, path: str) -> None:
        """What was at `path` went away: a true event that comes now belongs to something else."""
        self._invented.pop(path, None)

    def batch(self) -> EventBatch:
        """The events as columns. Bytes of a path that are not UTF-8 are written as in Python's backslashreplace."""
        if not self._columns:
            return EventBatch.of(())
        columns = np.delete(np.array(self._columns, dtype=np.uint64).reshape(-1, 5), self._dropped, axis=0)
        rows = np.zeros(len(columns), dtype=EVENT_DTYPE)
        for column, name in enumerate(("time_ns", "ret", "flags", "path", "marks")):
            rows[name] = columns[:, column]
        rows["kind"] = Kind.INOTIFY
        rows["fd"] = -1
        return EventBatch(rows, tuple(map(_printable, self._strings)))


def _raw_events(data: bytes) -> Iterator[tuple[int, int, int, str]]:
    """Watch descriptor, mask, cookie and name of each event in a read; the name is "" for the directory itself."""
    offset = 0
    while offset < len(data):
        wd, mask, cookie, length = _HEADER.unpack_from(data, offset)
        offset += _HEADER.size + length
        yield wd, mask, cookie, os.fsdecode(data[offset - length : offset].rstrip(b"\0"))


def _printable(text: str) -> str:
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "backslashreplace")


def _instance_warning(number: int) -> str:
    if number != errno.EMFILE:
        return f"inotify: no instance ({os.strerror(number)}); the run goes on without file events of inotify"
    return (
        f"inotify: the limit of instances is reached{_limit('max_user_instances')}; the run goes on without file "
        "events of inotify: stop other watchers or raise it with `sysctl fs.inotify.max_user_instances=1024`"
    )


def _watch_warning(number: int) -> str:
    if number != errno.ENOSPC:
        return f"inotify: some directories of the data root are not watched ({os.strerror(number)})"
    return (
        f"inotify: the limit of watches is reached{_limit('max_user_watches')}; some directories are not watched: "
        "raise it with `sysctl fs.inotify.max_user_watches=1048576`"
    )


def _limit(name: str) -> str:
    try:
        return f" ({name} is {int(Path('/proc/sys/fs/inotify', name).read_text(encoding='ascii'))})"
    except OSError:
        return ""
