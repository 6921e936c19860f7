# SPDX-License-Identifier: Apache-2.0
"""Join file events of inotify with the system calls that caused them.

The system call has the kernel's time and the process; inotify's event has the reader's time only. What the
calls did and inotify never told is counted: it cannot watch a directory before it exists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from observe.correlate.rows import columns_of
from observe.model import EventBatch, Kind, Mark, table_of_kinds

# include/uapi/linux/inotify.h
IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_ISDIR = 0x40000000

_O_CREAT, _O_EXCL = 0x40, 0x80
_INOTIFY, _INVENTED = int(Kind.INOTIFY), int(Mark.INVENTED)
_CREATE, _CREATE_DIRECTORY, _DELETE, _MOVED_FROM, _MOVED_TO = range(5)
#: How long inotify's event may come after the call (the reader drains in milliseconds; a loaded host takes longer).
_LATEST_NS = 3_000_000_000
#: What calls do to the path that they are given.
_EFFECTS: dict[Kind | int, int] = {
    **dict.fromkeys((Kind.MKDIR, Kind.MKDIRAT), _CREATE_DIRECTORY),
    **dict.fromkeys((Kind.OPEN, Kind.OPENAT, Kind.OPENAT2, Kind.CREAT), _CREATE),
    **dict.fromkeys((Kind.RENAME, Kind.RENAMEAT, Kind.RENAMEAT2), _MOVED_TO),
    **dict.fromkeys((Kind.UNLINK, Kind.UNLINKAT, Kind.RMDIR), _DELETE),
}
_CHANGES_NAMES = table_of_kinds([kind for kind in Kind if kind in _EFFECTS])
#: Who made a call.
_CALLER = ("pid", "tid", "goroutine", "comm")
_OPENS = table_of_kinds({Kind.OPEN, Kind.OPENAT, Kind.OPENAT2})


def _changes_names(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Of each event (`EVENT_DTYPE`) whether it is a successful call that does something to names."""
    kinds = rows["kind"]
    makes_nothing = _OPENS[kinds] & (rows["flags"] & _O_CREAT == 0)
    changes: npt.NDArray[np.bool_] = _CHANGES_NAMES[kinds] & (rows["ret"] >= 0) & ~makes_nothing
    return changes


class _Call(NamedTuple):
    """A call whose event may still come; `certain`: it comes unless inotify misses it."""

    key: tuple[int, str]
    path: str
    certain: bool
    time_ns: int
    end_ns: int
    pid: int
    tid: int
    goroutine: int
    comm: str


class FileJoin:
    """Pairs calls with events of the same path and effect; bounded by how late inotify may be."""

    def __init__(self, watched: tuple[str, ...]) -> None:
        """`watched`: folders whose content inotify was asked to tell (none: nothing counts as missed)."""
        self._watched = tuple(folder.rstrip("/") + "/" for folder in watched)
        #: Calls that wait, in stream order, and the same by key, without those that were told.
        self._waiting: deque[_Call] = deque()
        self._by_key: dict[tuple[int, str], list[_Call]] = {}
        self.missed = 0

    def join(self, batch: EventBatch, now_ns: npt.NDArray[np.int64]) -> EventBatch:
        """The batch with time, process and goroutine of their calls for the inotify events whose calls are known.

        `now_ns`: how late it is when each event comes.
        """
        kinds = batch.rows["kind"]
        told = (kinds == _INOTIFY) & (batch.rows["marks"] & _INVENTED == 0)
        places = np.flatnonzero(told | _changes_names(batch.rows))
        columns = columns_of(batch, places, "kind", "flags", "path", "path2", "time_ns", "duration_ns", *_CALLER)
        calls: dict[int, _Call] = {}
        for place, at_ns, values in zip(places.tolist(), now_ns.take(places).tolist(), columns, strict=True):
            kind, flags, path, path2, time_ns, duration_ns, *caller = values
            if kind == _INOTIFY:
                if self._waiting and self._waiting[0].time_ns + _LATEST_NS <= at_ns:
                    self.advance(at_ns)
                effect = _effect(flags)
                if effect is not None and (effect, path) in self._by_key:
                    calls[place] = self._cause((effect, path))
            elif path.startswith("/"):
                effect = _EFFECTS[kind]
                # Without O_EXCL the file may have existed: then nothing was created.
                certain = effect != _CREATE or bool(flags & _O_EXCL)
                self._wait(_Call((effect, _told(path)), path, certain, time_ns, time_ns + duration_ns, *caller))
                if effect == _MOVED_TO:
                    key = (_MOVED_FROM, _told(path2))
                    self._wait(_Call(key, path2, False, time_ns, time_ns + duration_ns, *caller))
        clock = np.flatnonzero((kinds < Kind.SCHED_PROCESS_FORK) | told)
        if len(clock):
            self.advance(int(now_ns[clock[-1]]))
        return _as_calls(batch, calls) if calls else batch

    def _cause(self, key: tuple[int, str]) -> _Call:
        """The call that caused an inotify event: the oldest of its key."""
        found = self._take(key)
        # inotify keeps the order of what happened: it will not tell any more what was over before this call.
        while self._waiting[0] is not found and self._waiting[0].end_ns <= found.time_ns:
            self._give_up_oldest()
        return found

    def advance(self, now_ns: int) -> None:
        """Count as missed what inotify will not tell any more."""
        while self._waiting and self._waiting[0].time_ns + _LATEST_NS <= now_ns:
            self._give_up_oldest()

    def finish(self) -> None:
        """No event comes any more."""
        while self._waiting:
            self._give_up_oldest()

    def _wait(self, call: _Call) -> None:
        self._waiting.append(call)
        calls = self._by_key.get(call.key)
        if calls is None:
            self._by_key[call.key] = [call]
        else:
            calls.append(call)

    def _take(self, key: tuple[int, str]) -> _Call:
        """The oldest call of a key, which does not wait any more."""
        calls = self._by_key[key]
        call = calls.pop(0)
        if not calls:
            del self._by_key[key]
        return call

    def _give_up_oldest(self) -> None:
        call = self._waiting.popleft()
        calls = self._by_key.get(call.key)
        if calls and calls[0] is call:  # it was not told
            self._take(call.key)
            self.missed += call.certain and self._is_watched(call.path)

    def _is_watched(self, path: str) -> bool:
        return path.startswith(self._watched) and "/merged" not in path if self._watched else False


def _as_calls(batch: EventBatch, calls: Mapping[int, _Call]) -> EventBatch:
    """The batch with the events at some places as if they were the calls that caused them."""
    rows, places = batch.rows.copy(), list(calls)
    _, _, _, times_ns, _, *columns, comms = zip(*calls.values(), strict=True)
    index = {comm: len(batch.strings) + number for number, comm in enumerate(dict.fromkeys(comms))}
    values = (times_ns, *columns, [index[comm] for comm in comms])
    for name, value in zip(("time_ns", *_CALLER), values, strict=True):
        rows[name][places] = value
    return EventBatch(rows, (*batch.strings, *index))


def _told(path: str) -> str:
    """What inotify tells of a path: inside a mounted layer it sees the upper directory."""
    return path.replace("/merged/", "/diff/")


def _effect(mask: int) -> int | None:
    if mask & IN_CREATE:
        return _CREATE_DIRECTORY if mask & IN_ISDIR else _CREATE
    if mask & IN_DELETE:
        return _DELETE
    if mask & IN_MOVED_FROM:
        return _MOVED_FROM
    if mask & IN_MOVED_TO:
        return _MOVED_TO
    return None
