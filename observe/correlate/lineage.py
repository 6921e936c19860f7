# SPDX-License-Identifier: Apache-2.0
"""Which container a process, or a goroutine of the engine, works for."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from observe.correlate.identity import Identities
from observe.correlate.names import container_in, is_container_id, named_in
from observe.correlate.rows import Row
from observe.model import Kind, Mark

_FUNCTIONS = frozenset({Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN})
#: Roles of processes that serve many containers, so that only their goroutines belong to one.
ENGINE_ROLES = ("dockerd", "containerd")
#: Goroutines of the daemons whose containers are remembered, and how many moments of each. Of neighbouring moments for
#: one container, no further apart than the grain, the first and the last say all.
_GOROUTINES = 2_000
_BINDINGS = 64
_GRAIN_NS = 10_000_000
#: Processes that ended whose container is remembered, of some 500 starts: their parent's clone may be looked at later.
_PROCESSES = 4_000
_EXECS = frozenset({Kind.EXECVE, Kind.EXECVEAT})
_ENTRYPOINT = int(Mark.ENTRYPOINT)


class Binding(NamedTuple):
    """A goroutine did something for a container at `time_ns`."""

    time_ns: int
    container_id: str


class Lineage:
    """Processes alive and their containers; fed with every event in stream order."""

    def __init__(self, identities: Identities, *, goroutines: bool) -> None:
        """No process is known. `goroutines`: whether the g register of dockerd tells its goroutine."""
        self._identities = identities
        self.goroutines = goroutines
        self._roles: dict[int, str] = {}
        self._containers: dict[int, str] = {}
        self._ended: OrderedDict[int, str] = OrderedDict()
        self._bindings: OrderedDict[tuple[int, int], list[Binding]] = OrderedDict()

    def learn(self, data: Mapping[str, Any]) -> None:
        """Take a process note: pid, role, argv of a process that lived before the recording."""
        self._roles[data["pid"]] = data["role"]
        container_id = container_in("\0".join(data.get("argv", ())))
        if container_id and data["role"] not in ENGINE_ROLES:
            self._containers[data["pid"]] = container_id

    def role(self, pid: int) -> str:
        """dockerd, containerd or child."""
        return self._roles.get(pid, "child")

    def is_engine(self, pid: int) -> bool:
        """Whether the process serves many containers, so that only its goroutines belong to one."""
        return self._roles.get(pid) in ENGINE_ROLES

    def role_is_known(self, pid: int) -> bool:
        """Whether somebody has told what a process is."""
        return pid in self._roles

    def container(self, pid: int) -> str | None:
        """Container that a process works for, as far as it is known."""
        return self._containers.get(pid)

    def container_of(self, row: Row) -> str | None:
        """Id of the container that an event belongs to by what it says itself, or by its process."""
        if row.kind == Kind.INOTIFY:
            return self._named(row)
        if self.is_engine(row.pid):
            container_id = self._named(row)
            if container_id:
                self.bind(row.pid, row.goroutine, row.time_ns, container_id)
            return container_id
        container_id = self._containers.get(row.pid)
        if container_id is None:
            container_id = self._named(row)
            if container_id:
                self._containers[row.pid] = container_id
        return container_id

    def _named(self, row: Row) -> str | None:
        if row.kind == Kind.FUNCTION_ENTRY and is_container_id(row.path):
            return row.path
        for text in (row.path, row.path2, row.detail):
            container_id, layer, process = named_in(text)
            if not container_id and layer:
                container_id = self._identities.by_layer(layer)
            if not container_id and process:
                container_id = self.of_process(process)
            if container_id:
                return container_id
        return None

    def bind(self, pid: int, goroutine: int, time_ns: int, container_id: str) -> None:
        """A goroutine of a daemon did something for a container."""
        if not goroutine or not self.goroutines:
            return
        key = (pid, goroutine)
        history = self._bindings.get(key)
        if history is None:
            history = self._bindings[key] = []
        else:
            self._bindings.move_to_end(key)
        binding = Binding(time_ns, container_id)
        if len(history) > 1 and _says_nothing(history[-2], history[-1], binding):
            history.pop()
        history.append(binding)
        if len(history) > _BINDINGS:
            del history[: _BINDINGS // 2]
        if len(self._bindings) > _GOROUTINES:
            self._bindings.popitem(last=False)

    def binding(self, pid: int, goroutine: int, time_ns: int, kind: int) -> Binding | None:
        """What the goroutine of a daemon that made an event did for a container next in time, before or after.

        A goroutine that ends leaves its g pointer to another, which may work for another container: the
        nearest is the best witness. containerd's goroutines change too fast to be asked, but for functions:
        those that are probed are about one container, and name it while they run.
        """
        history = self._bindings.get((pid, goroutine))
        if not history or (self._roles.get(pid) != "dockerd" and kind not in _FUNCTIONS):
            return None
        index = bisect_left(history, (time_ns, ""))
        if index == 0 or (index < len(history) and history[index][0] - time_ns < time_ns - history[index - 1][0]):
            return history[index]
        return history[index - 1]

    def of_process(self, pid: int) -> str | None:
        """Container that a process works for or has worked for, as it turned out."""
        return self._containers.get(pid) or self._ended.get(pid)

    def follow(self, row: Row, container_id: str | None) -> int | None:
        """Keep track of births and deaths: the process that is another one, or none, from here on.

        `container_id`: what the event was attributed to.
        """
        if row.kind == Kind.SCHED_PROCESS_FORK:
            self._forget(row.ret)  # the number may have been another's before
            if container_id:
                self._containers[row.ret] = container_id
            return row.ret
        ends = row.kind == Kind.SCHED_PROCESS_EXIT and row.pid == row.tid
        # From its entrypoint on it is the container's own affair: its exit will not be told.
        if ends or (row.kind in _EXECS and row.marks & _ENTRYPOINT and not row.ret):
            self._end(row.pid)
            return row.pid
        return None

    def _end(self, pid: int) -> None:
        # A daemon that ends keeps its role: what it did is still looked at.
        container_id = self._containers.pop(pid, None)
        if container_id:
            self._ended[pid] = container_id
            if len(self._ended) > _PROCESSES:
                self._ended.popitem(last=False)

    def _forget(self, pid: int) -> None:
        self._roles.pop(pid, None)
        self._containers.pop(pid, None)
        self._ended.pop(pid, None)


def _says_nothing(first: Binding, middle: Binding, last: Binding) -> bool:
    """Whether a moment can be left out, as those around it, close to each other, tell the same."""
    same = first.container_id == middle.container_id == last.container_id
    return same and first.time_ns <= middle.time_ns <= last.time_ns <= first.time_ns + _GRAIN_NS
