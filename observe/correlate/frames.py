# SPDX-License-Identifier: Apache-2.0
"""Entries and returns of Go functions become frames.

A frame is known by its process, its goroutine and its depth on the goroutine's stack: none of them changes when Go
moves a goroutine to another thread or copies its stack. (What Go < 1.17 hides at a return, `stack_abi` has put back.)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap
from typing import NamedTuple

from observe.model import EventBatch, Kind, table_of_kinds

#: Which kinds, by number, make and unmake frames.
_MATCHED = table_of_kinds({Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN, Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT})


class Frame(NamedTuple):
    """One call of a function. `complete`: its return was seen; else something unwound or ended it."""

    function: str
    pid: int
    goroutine: int
    depth_bytes: int
    start_ns: int
    end_ns: int
    complete: bool = True

    def encloses(self, other: Frame) -> bool:
        """Whether the other was called inside, on the same goroutine."""
        return (
            other.end_ns <= self.end_ns
            and self.start_ns <= other.start_ns
            and self.depth_bytes < other.depth_bytes
            and self.goroutine == other.goroutine
            and self.pid == other.pid
        )


class _Entry(NamedTuple):
    number: int
    depth_bytes: int
    start_ns: int


#: Process and goroutine of a call, the call, when it ended, and whether it returned.
_Closed = tuple[tuple[int, int], _Entry, int, bool]


class FrameMatcher:
    """Feed events in order of time; take the frames that are closed. Looks at functions, execs and exits only."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """`names`: function number → symbol; may grow while events are fed."""
        self._names = names
        #: Open calls by process and goroutine; each lies deeper than the one before.
        self._stacks: dict[tuple[int, int], list[_Entry]] = {}
        self.unmatched_returns = 0

    def feed(self, events: EventBatch) -> list[Frame]:
        """The frames that these events close, in the order in which they end, the innermost first."""
        return list(starmap(self._frame, self.close(events)))

    def close(self, events: EventBatch) -> list[_Closed]:
        """What `feed` makes frames of, for who only counts `unmatched_returns`."""
        rows = events.rows.compress(_MATCHED[events.rows["kind"]])
        closed: list[_Closed] = []
        columns = (rows[name].tolist() for name in ("kind", "time_ns", "pid", "goroutine", "flags", "ret"))
        for kind, time_ns, pid, goroutine, number, depth_bytes in zip(*columns, strict=True):
            if kind == Kind.FUNCTION_ENTRY:
                self._enter((pid, goroutine), _Entry(number, depth_bytes, time_ns), closed)
            elif kind == Kind.FUNCTION_RETURN:
                self._return((pid, goroutine), number, depth_bytes, time_ns, closed)
            else:
                for key in [key for key in self._stacks if key[0] == pid]:
                    self._unwind(key, 0, time_ns, closed)
        return closed

    def finish(self, time_ns: int) -> list[Frame]:
        """All that is still open ends now."""
        closed: list[_Closed] = []
        for key in list(self._stacks):
            self._unwind(key, 0, time_ns, closed)
        return list(starmap(self._frame, closed))

    def _enter(self, key: tuple[int, int], entry: _Entry, closed: list[_Closed]) -> None:
        stack = self._stacks.get(key)
        if stack:
            last = stack[-1]
            if last.depth_bytes >= entry.depth_bytes:
                if (last.number, last.depth_bytes) == (entry.number, entry.depth_bytes):
                    return  # the stack grew, and Go ran the function's beginning again
                # What lies as deep or deeper (a smaller stack pointer) was left by a panic or by Goexit.
                kept = next(n for n, other in enumerate(stack) if other.depth_bytes >= entry.depth_bytes)
                self._unwind(key, kept, entry.start_ns, closed)
        self._stacks.setdefault(key, []).append(entry)

    def _return(self, key: tuple[int, int], number: int, depth_bytes: int, time_ns: int, closed: list[_Closed]) -> None:
        stack = self._stacks.get(key, [])
        for index in range(len(stack) - 1, -1, -1):
            entry = stack[index]
            if entry.number == number and entry.depth_bytes == depth_bytes:
                if index + 1 < len(stack):
                    self._unwind(key, index + 1, time_ns, closed)
                closed.append((key, stack.pop(), time_ns, True))
                if not stack:
                    del self._stacks[key]
                return
        self.unmatched_returns += 1

    def _unwind(self, key: tuple[int, int], keep: int, time_ns: int, closed: list[_Closed]) -> None:
        stack = self._stacks[key]
        while len(stack) > keep:
            closed.append((key, stack.pop(), time_ns, False))
        if not stack:
            del self._stacks[key]

    def _frame(self, key: tuple[int, int], entry: _Entry, end_ns: int, complete: bool) -> Frame:
        name = self._names.get(entry.number) or f"function {entry.number}"
        return Frame(name, *key, entry.depth_bytes, entry.start_ns, end_ns, complete)


def frames_of(events: EventBatch, names: Mapping[int, str], end_ns: int) -> tuple[Frame, ...]:
    """All frames of an operation's events (in order of time), by their start; what is open at `end_ns` ends there."""
    matcher = FrameMatcher(names)
    found = matcher.feed(events) + matcher.finish(end_ns)
    return tuple(sorted(found, key=lambda frame: (frame.start_ns, -frame.end_ns)))
