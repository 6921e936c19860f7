# SPDX-License-Identifier: Apache-2.0
"""Join file events of inotify with the system calls that caused them.

The system call has the kernel's time and the process; inotify's event has the reader's time only. What the
calls did and inotify never told is counted: it cannot watch a directory before it exists.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from observe.correlate.rows import Row, table_of_kinds
from observe.model import Kind, Mark

# include/uapi/linux/inotify.h
IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_ISDIR = 0x40000000
_NAMES = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO

_O_CREAT, _O_EXCL = 0x40, 0x80
_INVENTED = int(Mark.INVENTED)
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
_OPENS = table_of_kinds({Kind.OPEN, Kind.OPENAT, Kind.OPENAT2})


def changes_names(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Of each event (`EVENT_DTYPE`) whether it is a call that `FileJoin.call` looks at."""
    kinds = rows["kind"]
    makes_nothing = _OPENS[kinds] & (rows["flags"] & _O_CREAT == 0)
    changes: npt.NDArray[np.bool_] = _CHANGES_NAMES[kinds] & (rows["ret"] >= 0) & ~makes_nothing
    return changes


def tells_names(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Of each event (`EVENT_DTYPE`) whether it is a file event that `FileJoin.event` looks at: most are writes."""
    told: npt.NDArray[np.bool_] = (
        (rows["kind"] == Kind.INOTIFY) & (rows["marks"] & _INVENTED == 0) & (rows["flags"] & _NAMES != 0)
    )
    return told


@dataclass(slots=True)
class _Call:
    """A call whose event may still come; `certain`: it comes unless inotify misses it."""

    key: tuple[int, str]
    row: Row
    certain: bool
    told: bool = False


class FileJoin:
    """Pairs calls with events of the same path and effect; bounded by how late inotify may be."""

    def __init__(self, watched: tuple[str, ...]) -> None:
        """`watched`: folders whose content inotify was asked to tell (none: nothing counts as missed)."""
        self._watched = tuple(folder.rstrip("/") + "/" for folder in watched)
        #: Calls that wait, in stream order, and the same by key, without those that were told.
        self._waiting: deque[_Call] = deque()
        self._by_key: dict[tuple[int, str], list[_Call]] = {}
        self.missed = 0

    def call(self, row: Row) -> None:
        """Remember what a successful call did to names."""
        effect = _EFFECTS.get(row.kind)
        if effect is None or row.ret < 0 or not row.path.startswith("/"):
            return
        if effect == _CREATE and not (row.flags & _O_CREAT or row.kind == Kind.CREAT):
            return
        # Without O_EXCL the file may have existed: then nothing was created.
        self._wait(effect, row.path, row, effect != _CREATE or bool(row.flags & _O_EXCL))
        if effect == _MOVED_TO:
            self._wait(_MOVED_FROM, row.path2, row, certain=False)

    def event(self, row: Row) -> Row:
        """The inotify event with time, process and goroutine of its call; as it is if no call is known."""
        effect = None if row.marks & _INVENTED else _effect(row.flags)
        if effect is None or (effect, row.path) not in self._by_key:
            return row
        found = self._take((effect, row.path))
        found.told = True
        call = found.row
        # inotify keeps the order of what happened: it will not tell any more what was over before this call.
        while self._waiting[0] is not found and self._waiting[0].row.end_ns <= call.time_ns:
            self._give_up_oldest()
        return row._replace(time_ns=call.time_ns, pid=call.pid, tid=call.tid, goroutine=call.goroutine, comm=call.comm)

    def advance(self, now_ns: int) -> None:
        """Count as missed what inotify will not tell any more."""
        while self._waiting and self._waiting[0].row.time_ns + _LATEST_NS <= now_ns:
            self._give_up_oldest()

    def finish(self) -> None:
        """No event comes any more."""
        while self._waiting:
            self._give_up_oldest()

    def _wait(self, effect: int, path: str, row: Row, certain: bool) -> None:
        # Inside a mounted layer, inotify sees the upper directory.
        call = _Call((effect, path.replace("/merged/", "/diff/")), row, certain)
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
        if not call.told:
            self._take(call.key)
            self.missed += call.certain and self._is_watched(call.row.path)

    def _is_watched(self, path: str) -> bool:
        return path.startswith(self._watched) and "/merged" not in path if self._watched else False


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
