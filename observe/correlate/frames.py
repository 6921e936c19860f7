# SPDX-License-Identifier: Apache-2.0
"""Entries and returns of Go functions become frames.

A frame is known by its process, its goroutine and its depth on the goroutine's stack: none of them changes when Go
moves a goroutine to another thread or copies its stack. (What Go < 1.17 hides at a return, `stack_abi` has put back.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from observe.correlate.rows import Row, rows_of, table_of_kinds
from observe.model import EventBatch, Kind

#: Which kinds, by number, make and unmake frames.
MATCHED_KINDS = table_of_kinds(
    {Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN, Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT}
)


@dataclass(frozen=True, slots=True)
class Frame:
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


class FrameMatcher:
    """Feed rows of functions, execs and exits in order of time; take the frames that are closed."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """`names`: function number → symbol; may grow while rows are fed."""
        self._names = names
        self._stacks: dict[tuple[int, int], list[Row]] = {}
        self.unmatched_returns = 0

    def feed(self, row: Row) -> list[Frame]:
        """The frames that this row closes, the innermost first."""
        if row.kind == Kind.FUNCTION_ENTRY:
            return self._entry(row)
        if row.kind == Kind.FUNCTION_RETURN:
            return self._return(row)
        if row.kind in (Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT):
            keys = [key for key in self._stacks if key[0] == row.pid]
            return [frame for key in keys for frame in self._unwind(key, 0, row.time_ns)]
        return []

    def finish(self, time_ns: int) -> list[Frame]:
        """All that is still open ends now."""
        return [frame for key in list(self._stacks) for frame in self._unwind(key, 0, time_ns)]

    def _entry(self, row: Row) -> list[Frame]:
        key = (row.pid, row.goroutine)
        stack = self._stacks.setdefault(key, [])
        if stack and (stack[-1].flags, stack[-1].ret) == (row.flags, row.ret):
            return []  # the stack grew, and Go ran the function's beginning again
        # What lies as deep or deeper was left by a panic or by Goexit.
        kept = next((n for n, entry in enumerate(stack) if not _is_outside(entry, row)), len(stack))
        closed = self._unwind(key, kept, row.time_ns)
        self._stacks.setdefault(key, []).append(row)
        return closed

    def _return(self, row: Row) -> list[Frame]:
        key = (row.pid, row.goroutine)
        stack = self._stacks.get(key, ())
        for index in range(len(stack) - 1, -1, -1):
            if (stack[index].flags, stack[index].ret) == (row.flags, row.ret):
                closed = self._unwind(key, index + 1, row.time_ns)
                closed.append(self._frame(self._stacks[key].pop(), row.time_ns, complete=True))
                if not self._stacks[key]:
                    del self._stacks[key]
                return closed
        self.unmatched_returns += 1
        return []

    def _unwind(self, key: tuple[int, int], keep: int, time_ns: int) -> list[Frame]:
        stack = self._stacks.get(key, [])
        closed = [self._frame(entry, time_ns, complete=False) for entry in reversed(stack[keep:])]
        del stack[keep:]
        if not stack:
            self._stacks.pop(key, None)
        return closed

    def _frame(self, entry: Row, end_ns: int, *, complete: bool) -> Frame:
        name = self._names.get(entry.flags, f"function {entry.flags}")
        return Frame(name, entry.pid, entry.goroutine, entry.ret, entry.time_ns, end_ns, complete)


def _is_outside(entry: Row, row: Row) -> bool:
    """Whether an open entry lies less deep than a new one: deeper frames have a smaller stack pointer."""
    return entry.ret < row.ret


def frames_of(events: EventBatch, names: Mapping[int, str], end_ns: int) -> tuple[Frame, ...]:
    """All frames of an operation's events (in order of time), by their start; what is open at `end_ns` ends there."""
    matcher = FrameMatcher(names)
    found: list[Frame] = []
    for row in rows_of(events, np.flatnonzero(MATCHED_KINDS[events.rows["kind"]])):
        found += matcher.feed(row)
    found += matcher.finish(end_ns)
    return tuple(sorted(found, key=lambda frame: (frame.start_ns, -frame.end_ns)))
