# SPDX-License-Identifier: Apache-2.0
"""Which container a process, or a goroutine of the engine, works for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from observe.correlate.identity import Identities
from observe.correlate.names import container_in, layer_in, process_in
from observe.correlate.rows import Row
from observe.model import Kind

_ENGINE_ROLES = ("dockerd", "containerd")
#: Goroutines whose container is remembered; g pointers are reused, so old bindings are worth nothing.
_BINDINGS = 20_000


@dataclass(slots=True)
class Binding:
    """A goroutine did something for a container at `time_ns`."""

    container_id: str
    time_ns: int


class Lineage:
    """Processes alive and their containers; fed with every event in stream order."""

    def __init__(self, identities: Identities) -> None:
        """No process is known."""
        self._identities = identities
        self._roles: dict[int, str] = {}
        self._containers: dict[int, str] = {}
        self._bindings: dict[tuple[int, int], Binding] = {}

    def learn(self, data: Mapping[str, Any]) -> None:
        """Take a process note: pid, role, argv of a process that lived before the recording."""
        self._roles[data["pid"]] = data["role"]
        container_id = container_in("\0".join(data.get("argv", ())))
        if container_id and data["role"] not in _ENGINE_ROLES:
            self._containers[data["pid"]] = container_id

    def role(self, pid: int) -> str:
        """dockerd, containerd or child."""
        return self._roles.get(pid, "child")

    def is_engine(self, pid: int) -> bool:
        """Whether the process serves many containers, so that only its goroutines belong to one."""
        return self._roles.get(pid) in _ENGINE_ROLES

    def container_of(self, row: Row) -> str | None:
        """Id of the container that an event belongs to by what it says itself, or by its process."""
        if row.kind == Kind.INOTIFY:
            return self._named(row)
        if self.is_engine(row.pid):
            container_id = self._named(row)
            if container_id and row.goroutine:
                self._bind((row.pid, row.goroutine), Binding(container_id, row.time_ns))
            return container_id
        container_id = self._containers.get(row.pid)
        if container_id is None:
            container_id = self._named(row)
            if container_id:
                self._containers[row.pid] = container_id
        return container_id

    def _named(self, row: Row) -> str | None:
        for text in (row.path, row.path2, row.detail):
            if len(text) < 10:  # shorter than any path that names one
                continue
            container_id = container_in(text)
            if container_id:
                return container_id
            layer = layer_in(text)
            if layer:
                container_id = self._identities.by_layer(layer)
                if container_id:
                    return container_id
            process = process_in(text)
            if process:
                container_id = self._containers.get(process)
                if container_id:
                    return container_id
        return None

    def _bind(self, key: tuple[int, int], binding: Binding) -> None:
        self._bindings[key] = binding
        if len(self._bindings) > _BINDINGS:
            self._bindings.pop(next(iter(self._bindings)))

    def binding(self, row: Row) -> Binding | None:
        """What the event's goroutine did last for a container."""
        return self._bindings.get((row.pid, row.goroutine)) if row.goroutine else None

    def follow(self, row: Row, container_id: str | None) -> None:
        """Keep track of births and deaths; `container_id`: what the event was attributed to."""
        if row.kind == Kind.SCHED_PROCESS_FORK:
            if container_id:
                self._containers[row.ret] = container_id
        elif row.kind == Kind.SCHED_PROCESS_EXIT and row.pid == row.tid:
            self._containers.pop(row.pid, None)
            self._roles.pop(row.pid, None)
