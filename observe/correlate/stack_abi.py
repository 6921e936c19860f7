# SPDX-License-Identifier: Apache-2.0
"""Returns of functions of Go < 1.17, where no register holds the goroutine.

An entry knows its goroutine and its depth, a return only its stack pointer; both carry it above the function's number.
The pointer matches unless Go has copied the stack in between; then the thread decides, and after that whether there is
only one open call. What nobody can tell apart stays a return without an entry.
"""

from __future__ import annotations

from observe.correlate.rows import Row
from observe.model import Kind

#: What stands above them in the flags of a function's event is its stack pointer.
NUMBER_BITS = 16
_NUMBER = (1 << NUMBER_BITS) - 1
#: Calls of one function that are open at once: more are leftovers of goroutines that ended inside.
_OPEN = 256
#: Functions of processes that are remembered; a process may end inside of some.
_REMEMBERED = 4_096


class StackAbiReturns:
    """Gives returns the goroutine and the depth of their entries."""

    def __init__(self) -> None:
        """No call is open."""
        self._open: dict[tuple[int, int], list[Row]] = {}

    def complete(self, row: Row) -> Row:
        """The row with the function's number alone in its flags, and a return with its entry's goroutine and depth."""
        if not row.flags >> NUMBER_BITS:
            return row
        number = row.flags & _NUMBER
        key = (row.pid, number)
        if row.kind == Kind.FUNCTION_ENTRY:
            calls = self._open.setdefault(key, [])
            calls.append(row)
            del calls[:-_OPEN]
            if len(self._open) > _REMEMBERED:
                del self._open[next(iter(self._open))]
            return row._replace(flags=number)
        calls = self._open.get(key, [])
        entry = _entry_of(row, calls)
        if entry is None:
            return row._replace(flags=number)
        calls.remove(entry)
        if not calls:
            del self._open[key]
        return row._replace(flags=number, goroutine=entry.goroutine, ret=entry.ret)


def _entry_of(row: Row, calls: list[Row]) -> Row | None:
    same_stack = (entry for entry in reversed(calls) if entry.flags == row.flags)
    same_thread = (entry for entry in reversed(calls) if entry.tid == row.tid)
    only_one = calls[0] if len(calls) == 1 else None
    return next(same_stack, None) or next(same_thread, only_one)
