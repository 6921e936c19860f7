# SPDX-License-Identifier: Apache-2.0
"""Which program a process ran at a moment, in a word or two: `dockerd`, `runc create`, `libnetwork-setkey`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from posixpath import basename

from observe.correlate.rows import Row
from observe.model import Kind

#: Commands of runtimes and shims that are worth telling apart.
_COMMANDS = frozenset({"create", "init", "start", "state", "delete", "kill"})


class Programs:
    """Of the processes of one operation."""

    def __init__(self, rows: Iterable[Row], role: Callable[[int], str]) -> None:
        """`rows`: the operation's events in order of time; `role`: of a process."""
        self._role = role
        self._parents: dict[int, int] = {}
        self._execs: dict[int, list[tuple[int, str]]] = {}
        #: What the kernel calls each process, for those whose program began before the operation.
        self._comms: dict[int, str] = {}
        for row in rows:
            if row.comm:
                self._comms.setdefault(row.pid, row.comm)
            if row.kind == Kind.SCHED_PROCESS_FORK:
                self._parents[row.ret] = row.pid
            elif row.kind == Kind.SCHED_PROCESS_EXEC:
                self._execs.setdefault(row.pid, []).append((row.time_ns, _label(row)))

    def at(self, pid: int, time_ns: int) -> str:
        """The program of a process at a moment; before its own first one, its parent's; "" if nothing tells."""
        for _ in range(len(self._parents) + 1):
            role = self._role(pid)
            if role != "child":
                return role
            execs = self._execs.get(pid, [])
            index = bisect_right(execs, time_ns, key=lambda one: one[0]) - 1
            if index >= 0:
                return execs[index][1]
            if pid not in self._parents:
                break
            pid = self._parents[pid]
        return self._comms.get(pid, "")

    @property
    def processes(self) -> frozenset[int]:
        """All that were born, or began a program, meanwhile."""
        return frozenset(self._parents) | frozenset(self._execs)


def _label(row: Row) -> str:
    words = row.detail.split("\0")
    name = basename(words[0]) or basename(row.path)
    command = next((word for word in words[1:] if word in _COMMANDS), "")
    return f"{name} {command}".strip()
