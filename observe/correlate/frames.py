# SPDX-License-Identifier: Apache-2.0
"""Entries and returns of Go functions become frames.

A frame is known by its process, its goroutine and its depth on the goroutine's stack: none of them changes when Go
moves a goroutine to another thread or copies its stack. (What Go < 1.17 hides at a return, `stack_abi` has put back.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from observe.correlate.rows import Row
from observe.model import Kind


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
            (self.pid, self.goroutine) == (other.pid, other.goroutine)
            and self.start_ns <= other.start_ns
            and other.end_ns <= self.end_ns
            and self.depth_bytes < other.depth_bytes
        )


class FrameMatcher:
    """Feed rows of functions, execs and exits in order of time; take the frames that are closed."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """`names`: function number → symbol; may grow while rows are fed."""
        self._names = names
        self._stacks: dict[tuple[int, int], list[Row]] = {}
        self.unmatched_returns = 0

    def feed(self, row: Row) -> Iterator[Frame]:
        """The frames that this row closes, the innermost first."""
        if row.kind == Kind.FUNCTION_ENTRY:
            yield from self._entry(row)
        elif row.kind == Kind.FUNCTION_RETURN:
            yield from self._return(row)
        elif row.kind in (Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT):
            for key in [key for key in self._stacks if key[0] == row.pid]:
                yield from self._unwind(key, 0, row.time_ns)

    def finish(self, time_ns: int) -> Iterator[Frame]:
        """All that is still open ends now."""
        for key in list(self._stacks):
            yield from self._unwind(key, 0, time_ns)

    def _entry(self, row: Row) -> Iterator[Frame]:
        key = (row.pid, row.goroutine)
        stack = self._stacks.setdefault(key, [])
        if stack and (stack[-1].flags, stack[-1].ret) == (row.flags, row.ret):
            return  # the stack grew, and Go ran the function's beginning again
        # What lies as deep or deeper was left by a panic or by Goexit.
        kept = next((n for n, entry in enumerate(stack) if not _is_outside(entry, row)), len(stack))
        yield from self._unwind(key, kept, row.time_ns)
        self._stacks.setdefault(key, []).append(row)

    def _return(self, row: Row) -> Iterator[Frame]:
        key = (row.pid, row.goroutine)
        stack = self._stacks.get(key, ())
        for index in range(len(stack) - 1, -1, -1):
            if (stack[index].flags, stack[index].ret) == (row.flags, row.ret):
                yield from self._unwind(key, index + 1, row.time_ns)
                yield self._frame(self._stacks[key].pop(), row.time_ns, complete=True)
                if not self._stacks[key]:
                    del self._stacks[key]
                return
        self.unmatched_returns += 1

    def _unwind(self, key: tuple[int, int], keep: int, time_ns: int) -> Iterator[Frame]:
        stack = self._stacks.get(key, [])
        while len(stack) > keep:
            yield self._frame(stack.pop(), time_ns, complete=False)
        if not stack:
            self._stacks.pop(key, None)

    def _frame(self, entry: Row, end_ns: int, *, complete: bool) -> Frame:
        name = self._names.get(entry.flags, f"function {entry.flags}")
        return Frame(name, entry.pid, entry.goroutine, entry.ret, entry.time_ns, end_ns, complete)


def _is_outside(entry: Row, row: Row) -> bool:
    """Whether an open entry lies less deep than a new one: deeper frames have a smaller stack pointer."""
    return entry.ret < row.ret


def frames_of(rows: Sequence[Row], names: Mapping[int, str], end_ns: int) -> tuple[Frame, ...]:
    """All frames of an operation's rows (in order of time), by their start; what is open at `end_ns` ends there."""
    matcher = FrameMatcher(names)
    found = [frame for row in rows for frame in matcher.feed(row)]
    found += matcher.finish(end_ns)
    return tuple(sorted(found, key=lambda frame: (frame.start_ns, -frame.end_ns)))
