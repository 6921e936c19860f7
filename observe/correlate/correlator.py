# SPDX-License-Identifier: Apache-2.0
"""Items in, finished runs out: the same for a recording and for a live engine.

Memory is bounded by what is open: the events of operations in flight, and the processes alive.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from observe.correlate.build import build_run
from observe.correlate.files import FileJoin
from observe.correlate.identity import Identities
from observe.correlate.imported import imported_runs
from observe.correlate.lineage import Lineage
from observe.correlate.names import container_in, layer_in
from observe.correlate.operation import Operation, open_operation
from observe.correlate.rows import Row, rows_of
from observe.correlate.rules import Rules
from observe.model import EventBatch, Header, Item, Kind, Loss, Note, NoteKind, Run
from observe.phases import Catalogue

#: After the answer: for file events that inotify tells late.
_LINGER_NS = 300_000_000
#: How late a file event may be read that a call before the answer caused.
_READ_LATE_NS = 60_000_000
#: How long a goroutine that worked for a container is taken to do so still (waits for a child are that long).
_BOUND_NS = 2_000_000_000
#: Work for another container so close makes an event's owner uncertain; how many of such moments are kept.
_NEAR_NS = 100_000_000
_FOREIGN = 4096
#: After the answer, if nobody has told yet who the container is.
_IDENTITY_NS = 3_000_000_000
#: Go keeps g in a register from this version on (Go 1.17, "register-based calling convention").
_G_IN_REGISTER = (1, 17)
_BIRTHS = frozenset({Kind.SCHED_PROCESS_FORK, Kind.CLONE, Kind.CLONE3, Kind.FORK, Kind.VFORK})
_LOSS_FIELDS = frozenset(field.name for field in fields(Loss))


@dataclass(slots=True)
class _Unresolved:
    """An event whose operation is not known yet; `contested`: more than one was in flight."""

    row: Row
    container_id: str | None
    contested: bool = False


class Correlator:
    """Turns a stream of items into runs. Feed in stream order; `finish` at the end."""

    def __init__(self, header: Header, catalogue: Catalogue) -> None:
        """`header` of the recording, or of the live session."""
        data_root = str(header.engine.get("data_root", ""))
        self._rules = {name: Rules(catalogue.of(name), data_root) for name in catalogue.operations}
        self._wall_offset_ns = header.wall_time_ns - header.boot_time_ns
        self._identities = Identities()
        self._lineage = Lineage(self._identities)
        self._files = FileJoin(tuple(header.options.get("watched", ())))
        self._goroutines = go_keeps_g_in_register(str(header.engine.get("go_version", "")))
        self._imported: list[EventBatch] | None = [] if header.options.get("origin") == "import" else None
        self._open: list[Operation] = []
        self._closing: list[Operation] = []
        self._unresolved: list[_Unresolved] = []
        #: When, of late, something was done for a container that no operation in flight is about.
        self._foreign_ns: deque[int] = deque(maxlen=_FOREIGN)
        self._now_ns = 0
        self._recorded_loss: dict[str, int] = {}
        self._unattributed = 0
        self.warnings: list[str] = []

    @property
    def loss(self) -> Loss:
        """What was lost so far, as recorded and as found here."""
        recorded = Loss(**{name: count for name, count in self._recorded_loss.items() if name in _LOSS_FIELDS})
        return replace(recorded, inotify_missed=self._files.missed, unattributed_events=self._unattributed)

    def feed(self, item: Item) -> list[Run]:
        """Take the next item; the runs that are finished now, in order of their answers."""
        if isinstance(item, Note):
            self._note(item)
            self._now_ns = max(self._now_ns, item.time_ns)
        elif self._imported is not None:
            self._imported.append(item)
        else:
            for row in rows_of(item):
                self._row(row)
        return self._finished(self._now_ns)

    def finish(self) -> list[Run]:
        """The end of the stream: all that is left, operations without an answer included."""
        self._files.finish()
        if self._imported is not None:
            runs, unmatched = imported_runs(EventBatch.concat(self._imported), self._rules)
            self._unattributed += unmatched
            self._imported = []
            return runs
        self._closing += self._open
        self._open = []
        return self._finished(1 << 63)

    def _note(self, note: Note) -> None:
        if note.kind is NoteKind.CONTAINER:
            self._identities.learn(note.data)
        elif note.kind is NoteKind.PROCESS:
            self._lineage.learn(note.data)
        elif note.kind is NoteKind.LOSS:
            self._recorded_loss.update({name: int(count) for name, count in note.data.items()})
        elif note.kind is NoteKind.WARNING:
            self.warnings.append(str(note.data.get("text", "")))

    def _row(self, row: Row) -> None:
        self._now_ns = max(self._now_ns, row.end_ns)
        if row.kind == Kind.API_REQUEST:
            self._request(row)
        elif row.kind == Kind.API_RESPONSE:
            self._response(row)
        elif row.kind == Kind.INOTIFY:
            self._attribute(self._files.event(row))
        else:
            if row.is_syscall:
                self._files.call(row)
            self._attribute(row)

    def _request(self, row: Row) -> None:
        for lost in [operation for operation in self._open if operation.connection == row.fd]:
            self._close(lost)  # its connection was closed without an answer
        operation = open_operation(row)
        if operation is None:
            return
        if operation.name == "start":
            operation.container_id = self._identities.by_reference(operation.reference)
        self._open.append(operation)

    def _response(self, row: Row) -> None:
        for operation in [operation for operation in self._open if operation.connection == row.fd]:
            operation.end_ns, operation.status = row.end_ns, row.ret
            self._close(operation)

    def _close(self, operation: Operation) -> None:
        self._open.remove(operation)
        self._closing.append(operation)

    def _attribute(self, row: Row) -> None:
        container_id = self._lineage.container_of(row)
        operation = self._of_goroutine(row)
        if operation is not None:
            self._learn(operation, row, container_id)
        elif container_id is not None:
            operation = self._of_container(container_id, row)
        if operation is not None:
            operation.rows.append(row)
            container_id = container_id or operation.container_id
        elif any(operation.covers(row.time_ns) for operation in (*self._open, *self._closing)):
            self._unresolved.append(_Unresolved(row, container_id))
            if container_id:
                self._foreign_ns.append(row.time_ns)
        if container_id is None and row.kind == Kind.SCHED_PROCESS_FORK:
            binding = self._lineage.binding(row)
            container_id = binding.container_id if binding else None
        self._lineage.follow(row, container_id)

    def _of_goroutine(self, row: Row) -> Operation | None:
        if not self._goroutines or not row.goroutine or self._lineage.role(row.pid) != "dockerd":
            return None
        for operation in self._open:
            if operation.goroutine == row.goroutine and operation.covers(row.time_ns):
                return operation
        return None

    def _of_container(self, container_id: str, row: Row) -> Operation | None:
        time_ns = row.time_ns
        for operation in (*self._open, *self._closing):
            if operation.container_id == container_id and operation.covers(time_ns):
                return operation
        if row.kind == Kind.INOTIFY and not row.pid:
            for operation in self._closing:  # told late: just after the answer, of a path that it used
                if operation.container_id == container_id and operation.covers(time_ns - _READ_LATE_NS):
                    return operation if any(known.path == row.path for known in operation.rows) else None
        return None

    def _learn(self, operation: Operation, row: Row, container_id: str | None) -> None:
        """What an event on the request's own goroutine says of the operation's container and layer."""
        if operation.container_id is None:
            operation.container_id = container_id
        if operation.layer is None and operation.name == "create" and row.path.endswith("-init"):
            operation.layer = layer_in(row.path)
        if operation.layer and operation.container_id:
            self._identities.learn_layer(operation.layer, operation.container_id)

    def _finished(self, now_ns: int) -> list[Run]:
        self._files.advance(now_ns)
        ready = [operation for operation in self._closing if self._is_ready(operation, now_ns)]
        if not ready:
            if not self._open and not self._closing:
                self._unresolved.clear()
            return []
        for operation in ready:
            self._identify(operation)
        self._resolve(ready)
        runs = [self._run(operation) for operation in ready]
        for operation in ready:
            self._closing.remove(operation)
        self._forget_unresolved()
        return runs

    def _is_ready(self, operation: Operation, now_ns: int) -> bool:
        end_ns = operation.end_ns if operation.end_ns is not None else operation.start_ns
        known = self._identities.get(operation.container_id) is not None
        return now_ns >= end_ns + (_LINGER_NS if known else _IDENTITY_NS)

    def _identify(self, operation: Operation) -> None:
        """Without goroutines: by name, or by the only container folder that was made meanwhile."""
        if operation.container_id is not None:
            return
        operation.container_id = self._identities.by_reference(operation.reference)
        if operation.container_id is None and operation.name == "create":
            made = {
                one.container_id
                for one in self._unresolved
                if one.container_id and operation.covers(one.row.time_ns) and one.row.kind in (Kind.MKDIR, Kind.MKDIRAT)
            }
            if len(made) == 1:
                operation.container_id = made.pop()

    def _resolve(self, ready: Iterable[Operation]) -> None:
        """Give events that came before their container was known to the operations that end now."""
        left = []
        for one in self._unresolved:
            operation = self._owner(one)
            if operation in ready:
                operation.rows.append(one.row)
            else:
                left.append(one)
        self._unresolved = left

    def _owner(self, one: _Unresolved) -> Operation | None:
        row = one.row
        around = [operation for operation in (*self._open, *self._closing) if operation.covers(row.time_ns)]
        container_id = one.container_id or self._container_in_hindsight(row)
        if container_id is not None:
            return next((operation for operation in around if operation.container_id == container_id), None)
        # Nobody says whose it is: certain only if one operation is in flight, and nothing else goes on.
        one.contested = one.contested or len(around) != 1 or self._foreign_near(row.time_ns)
        return None if one.contested else around[0]

    def _container_in_hindsight(self, row: Row) -> str | None:
        layer = layer_in(row.path)
        container_id = self._identities.by_layer(layer) if layer else None
        if container_id is None and row.kind in _BIRTHS:
            container_id = self._lineage.child_container(row)
        if container_id is None:
            binding = self._lineage.binding(row)
            if binding and abs(binding.time_ns - row.time_ns) <= _BOUND_NS:
                container_id = binding.container_id
        return container_id

    def _foreign_near(self, time_ns: int) -> bool:
        times = sorted(self._foreign_ns)
        index = bisect_left(times, time_ns - _NEAR_NS)
        return index < len(times) and times[index] <= time_ns + _NEAR_NS

    def _forget_unresolved(self) -> None:
        """Events that lie in no operation any more: counted if nobody says whose they were."""
        pending = (*self._open, *self._closing)
        kept = []
        for one in self._unresolved:
            if any(operation.covers(one.row.time_ns) for operation in pending):
                kept.append(one)
            elif one.container_id is None and self._container_in_hindsight(one.row) is None:
                self._unattributed += 1
        self._unresolved = kept

    def _run(self, operation: Operation) -> Run:
        container = self._identities.get(operation.container_id)
        return build_run(
            operation,
            self._rules[operation.name],
            self._lineage.role,
            container,
            self._wall_offset_ns,
            goroutines=self._goroutines,
        )


def go_keeps_g_in_register(go_version: str) -> bool:
    """Whether a Go version (`go1.19.8`, `devel …`) keeps g in a register; unknown versions are taken for new ones."""
    match = re.match(r"go(\d+)\.(\d+)", go_version)
    return match is None or (int(match[1]), int(match[2])) >= _G_IN_REGISTER
