# SPDX-License-Identifier: Apache-2.0
"""Items in, finished runs out: the same for a recording and for a live engine.

Memory is bounded by what is open: the events of operations in flight, and the processes alive.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import numpy as np

from observe.correlate.attribution import Attribution
from observe.correlate.build import Functions, build_run
from observe.correlate.files import FileJoin
from observe.correlate.frames import FrameMatcher
from observe.correlate.identity import MOST_CONTAINERS, Identities
from observe.correlate.imported import imported_runs
from observe.correlate.lineage import Lineage
from observe.correlate.names import layer_in
from observe.correlate.operation import Operation, open_operation
from observe.correlate.rows import Row, row_at, rows_of, with_rows
from observe.correlate.rules import Rules
from observe.correlate.stack_abi import NUMBER_BITS, StackAbiReturns
from observe.correlate.undecided import NOBODY, OTHERS, SEVERAL, Undecided
from observe.correlate.why import Explainer, SchedulerEvents
from observe.model import EventBatch, Header, Item, Kind, Loss, Note, NoteKind, Run, table_of_kinds
from observe.phases import Catalogue
from observe.phases.causes import load_causes

#: After the answer: for file events that inotify tells late.
_LINGER_NS = 300_000_000
#: After the answer, if nobody has told yet who the container is.
_IDENTITY_NS = 3_000_000_000
#: An operation without an answer for so long is given up: its connection is lost, or the answer's event.
_ANSWER_NS = 600_000_000_000
#: Go keeps g in a register from this version on (Go 1.17, "register-based calling convention").
_G_IN_REGISTER = (1, 17)
_NEVER_NS = (1 << 63) - 1
_NO_SYSCALLS = "--no-syscalls: only calls by which processes are followed were recorded, and only those are counted"
#: Of an imported log: why an event is given to no operation.
NO_OPERATION = "in_no_operation"
#: An operation that hangs keeps a bounded number of events.
NO_ROOM = "too_many_in_one_operation"
_FUNCTIONS = table_of_kinds({Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN})
_BOUNDARIES = table_of_kinds({Kind.API_REQUEST, Kind.API_RESPONSE})
_LOSS_FIELDS = frozenset(field.name for field in fields(Loss))


class Correlator:
    """Turns a stream of items into runs. Feed in stream order; `finish` at the end.

    What becomes of an event depends on the stream alone, not on how it is cut into batches.
    """

    def __init__(
        self,
        header: Header,
        catalogue: Catalogue,
        *,
        keep_events: bool = False,
        slower_than_ns: int = 0,
        why: bool = False,
        most_events: int = sys.maxsize,
        most_containers: int = MOST_CONTAINERS,
    ) -> None:
        """`header` of the recording, or of the live session.

        `keep_events`: runs bring their events along, if they took at least `slower_than_ns`; `why`: runs say what their
        time was spent on, if that was recorded; `most_events`: of one operation, what comes then is counted only;
        `most_containers`: that are remembered, also for `completed`.
        """
        self._most_events = most_events
        self._keep_events = keep_events
        self._slower_than_ns = slower_than_ns
        self._scheduler = SchedulerEvents(keep=why)
        machine, version = str(header.host.get("arch", "")), str(header.engine.get("version", ""))
        self._explainer = Explainer(self._scheduler, load_causes(), machine, version) if why else None
        data_root = str(header.engine.get("data_root", ""))
        self._header = header
        calls = bool(header.options.get("syscalls", True))
        self._rules = {name: Rules(catalogue.of(name), data_root, calls=calls) for name in catalogue.operations}
        self._goroutines = go_keeps_g_in_register(str(header.engine.get("go_version", "")))
        self._identities = Identities(most_containers)
        self._lineage = Lineage(self._identities, goroutines=self._goroutines)
        self._files = FileJoin(tuple(header.options.get("watched", ())))
        self._undecided = Undecided(self._lineage, self._identities)
        cost = header.options.get("probe_cost_ns", {})
        self._functions = Functions({}, int(cost.get("entry", 0)), int(cost.get("return", 0)))
        self._frames = FrameMatcher(self._functions.names)
        self._returns = StackAbiReturns()
        self._imported: list[EventBatch] | None = [] if header.options.get("origin") == "import" else None
        #: Not answered yet; answered, but events and names may still come.
        self._open: list[Operation] = []
        self._closing: list[Operation] = []
        #: Events so far.
        self._fed = 0
        self._now_ns = 0
        self._due_ns = _NEVER_NS
        self._recorded_loss: dict[str, int] = {}
        self._unmatched = 0
        #: Events that operations had no room for.
        self._dropped = 0
        self.warnings: list[str] = [] if calls else [_NO_SYSCALLS]
        #: Documented functions that are there and were not probed: {"name", "binary", "reason"}.
        self.refused: list[Mapping[str, Any]] = []

    @property
    def loss(self) -> Loss:
        """What was lost so far, as recorded and as found here."""
        recorded = Loss(**{name: count for name, count in self._recorded_loss.items() if name in _LOSS_FIELDS})
        unattributed = self._undecided.unattributed + self._unmatched + self._dropped
        return replace(
            recorded,
            inotify_missed=self._files.missed,
            unattributed_events=unattributed,
            unmatched_returns=recorded.unmatched_returns + self._frames.unmatched_returns,
        )

    @property
    def left(self) -> Mapping[str, int]:
        """Why events during operations were given to none → how many; those of other containers are among them."""
        rare = {NO_OPERATION: self._unmatched, NO_ROOM: self._dropped}
        seen = {reason: count for reason, count in rare.items() if count}
        return {**dict.fromkeys((SEVERAL, NOBODY, OTHERS), 0), **self._undecided.left, **seen}

    @property
    def could_say_why(self) -> bool:
        """Whether the stream so far had events of the scheduler, so that `why` makes a difference."""
        return self._scheduler.seen

    def probed(self) -> dict[str, tuple[str, ...]]:
        """Phase → the functions that were probed for it."""
        found: dict[str, list[str]] = {}
        for rules in self._rules.values():
            for name in self._functions.names.values():
                for phase in rules.functions.phases_of(name):
                    found.setdefault(rules.phases[phase].id, []).append(name)
        return {phase: tuple(dict.fromkeys(names)) for phase, names in found.items()}

    def feed(self, item: Item) -> list[Run]:
        """Take the next item; the runs that are finished now, in order of their answers."""
        if isinstance(item, Note):
            self._note(item)
            return self.advance(item.time_ns)
        if self._imported is not None:
            self._imported.append(item)
            return []
        return [run for batch in self._cut(self._scheduler.take(item)) for run in self._feed(batch)]

    def _cut(self, batch: EventBatch) -> Iterator[EventBatch]:
        """The batch, cut after each birth of a process that has the number of a daemon."""
        births = np.flatnonzero(batch.rows["kind"] == Kind.SCHED_PROCESS_FORK)
        start = 0
        for place, pid in zip(births.tolist(), batch.rows["ret"][births].tolist(), strict=True):
            if self._lineage.role_is_known(pid):
                yield EventBatch(batch.rows[start : place + 1], batch.strings)
                start = place + 1
        if start < len(batch):
            yield EventBatch(batch.rows[start:], batch.strings)

    def _feed(self, batch: EventBatch) -> Iterator[Run]:
        ends_ns = (batch.rows["time_ns"] + batch.rows["duration_ns"]).astype(np.int64)
        now_ns = np.maximum(np.maximum.accumulate(ends_ns), self._now_ns)
        batch = self._files.join(self._completed(batch), now_ns)
        attribution = Attribution(
            batch,
            self._fed,
            lineage=self._lineage,
            identities=self._identities,
            undecided=self._undecided,
            requests=self,
        )
        self._fed += len(batch)
        start = 0
        boundaries = np.flatnonzero(_BOUNDARIES[batch.rows["kind"]]).tolist()
        for end in [*boundaries, len(batch)]:
            while start < end:
                # Up to the first event that comes when operations are due.
                due = np.flatnonzero(ends_ns[start:end] >= self._due_ns)
                cut = start + int(due[0]) if len(due) else end
                if cut > start:
                    attribution.give(start, cut, [*self._open, *self._closing])
                    self._now_ns = int(now_ns[cut - 1])
                if cut < end:
                    yield from self.advance(int(ends_ns[cut]))
                start = cut
            if end < len(batch):
                if ends_ns[end] >= self._due_ns:
                    yield from self.advance(int(ends_ns[end]))
                self._now_ns = int(now_ns[end])
                self._boundary(row_at(batch, end))
                start = end + 1

    def _completed(self, batch: EventBatch) -> EventBatch:
        """The batch with what functions of Go < 1.17 do not tell themselves; counts returns without an entry."""
        places = np.flatnonzero(_FUNCTIONS[batch.rows["kind"]])
        if (batch.rows["flags"][places] >> NUMBER_BITS).any():
            rows = dict(zip(places.tolist(), rows_of(batch, places), strict=True))
            batch = with_rows(batch, {place: self._returns.complete(row) for place, row in rows.items()})
        self._frames.close(batch)
        return batch

    @property
    def open_operations(self) -> tuple[tuple[str, int], ...]:
        """Operation and boot clock of the beginning of each request that has no answer yet."""
        return tuple((operation.name, operation.start_ns) for operation in self._open)

    def in_flight(self, now_ns: int) -> list[Run]:
        """The requests that have no answer yet, up to `now_ns` (boot clock); built when asked, changes nothing."""
        return [self._run(operation, now_ns) for operation in self._open]

    def finish(self) -> list[Run]:
        """The end of the stream: all that is left, operations without an answer included."""
        self._files.finish()
        if self._imported is not None:
            events = EventBatch.concat(self._imported)
            runs, unmatched = imported_runs(
                events, self._rules, self._header.wall_time_ns, keep_events=self._keep_events
            )
            self._unmatched += unmatched
            self._imported = []
            return runs
        self._closing += self._open
        self._open = []
        return self._emit(self._closing)

    def completed(self, run: Run) -> Run:
        """The run with what has become known of its container since it was given."""
        container = self._identities.get(run.container_id)
        if container is None or not container.configuration or run.configuration:
            return run
        return replace(run, configuration=container.configuration)

    def _note(self, note: Note) -> None:
        if note.kind is NoteKind.CONTAINER:
            self._identities.learn(note.data)
            self._schedule()
        elif note.kind is NoteKind.PROCESS:
            self._lineage.learn(note.data)
        elif note.kind is NoteKind.FUNCTION:
            if "number" in note.data:
                self._functions.names[int(note.data["number"])] = str(note.data["name"])
            else:
                self.refused.append(note.data)
        elif note.kind is NoteKind.LOSS:
            self._recorded_loss.update({name: int(count) for name, count in note.data.items()})
        elif note.kind is NoteKind.WARNING:
            self.warnings.append(str(note.data.get("text", "")))

    def _boundary(self, row: Row) -> None:
        if row.kind == Kind.API_REQUEST:
            self._request(row)
        else:
            self._response(row)

    def served_by(self, row: Row) -> Operation | None:
        """The request whose handler a function of dockerd ran in, where no register tells the goroutine."""
        if row.kind == Kind.FUNCTION_ENTRY:
            self._handle(row)
        if not row.goroutine or self._lineage.role(row.pid) != "dockerd":
            return None
        around = (one for one in chain(self._open, self._closing) if one.covers(row.time_ns))
        return next((operation for operation in around if operation.handler == row.goroutine), None)

    def _handle(self, row: Row) -> None:
        """Which goroutine serves a request shows when the request's handler is entered."""
        name = self._functions.names.get(row.flags, "")
        waiting = [
            operation
            for operation in self._open
            if operation.handler == 0 and 0 in self._rules[operation.name].functions.phases_of(name)
        ]
        same_thread = [operation for operation in waiting if operation.tid == row.tid]
        if same_thread or len(waiting) == 1:
            (same_thread or waiting)[-1].handler = row.goroutine

    def _request(self, row: Row) -> None:
        for lost in self._open.copy():  # a connection, and a goroutine, serves one request at a time
            if lost.connection == row.fd or (self._goroutines and lost.goroutine == row.goroutine):
                self._close(lost, row.time_ns)
        operation = open_operation(row)
        if operation is None:
            return
        operation.most_events = self._most_events
        if operation.name == "start" and not self._is_being_made(operation.reference):
            operation.container_id = self._identities.by_reference(operation.reference)
        self._open.append(operation)
        self._schedule()

    def _is_being_made(self, name: str) -> bool:
        """Whether the container of that name is a new one that is not known yet, whoever had the name before."""
        creates = (operation for operation in chain(self._open, self._closing) if operation.name == "create")
        return any(create.reference == name and create.container_id is None for create in creates)

    def _response(self, row: Row) -> None:
        for operation in self._open.copy():
            if operation.connection == row.fd:
                operation.status = row.ret
                operation.answer_tid = row.tid
                self._close(operation, row.end_ns)

    def _close(self, operation: Operation, end_ns: int) -> None:
        operation.end_ns = end_ns
        self._open.remove(operation)
        self._closing.append(operation)
        self._schedule()

    def learn(self, operation: Operation, row: Row, container_id: str | None) -> None:
        """Take what an event on the request's own goroutine says of its container and layer."""
        known = operation.container_id and operation.layer
        if operation.container_id is None and container_id is not None:
            self._is_about(operation, container_id)
        if operation.layer is None and operation.name == "create" and row.path.endswith("-init"):
            operation.layer = layer_in(row.path)
        if not known and operation.layer and operation.container_id:
            self._identities.learn_layer(operation.layer, operation.container_id)

    def _is_about(self, operation: Operation, container_id: str) -> None:
        operation.container_id = container_id
        if operation.name == "create" and operation.reference:
            # The next request may name it before anybody has told us its name.
            self._identities.learn_name(operation.reference, container_id)

    def advance(self, now_ns: int) -> list[Run]:
        """It is `now_ns` (boot clock), or later, though nothing may have happened: the runs that are finished."""
        self._now_ns = max(self._now_ns, now_ns)
        self._files.advance(self._now_ns)
        if self._now_ns < self._due_ns:
            return []
        for lost in self._open.copy():
            if lost.start_ns + _ANSWER_NS <= self._now_ns:
                self._close(lost, self._now_ns)
        return self._emit([operation for operation in self._closing if self._ready_ns(operation) <= self._now_ns])

    def _schedule(self) -> None:
        """Find out when the next operation is ready, or given up."""
        ready = map(self._ready_ns, self._closing)
        self._due_ns = min(
            chain(ready, (operation.start_ns + _ANSWER_NS for operation in self._open)), default=_NEVER_NS
        )

    def _ready_ns(self, operation: Operation) -> int:
        end_ns = operation.end_ns if operation.end_ns is not None else operation.start_ns
        known = self._identities.get(operation.container_id) is not None
        return end_ns + (_LINGER_NS if known else _IDENTITY_NS)

    def _emit(self, ready: list[Operation]) -> list[Run]:
        """The runs of operations that end now."""
        pending = [*self._open, *self._closing]
        for operation in ready:
            self._identify(operation, pending)
        self._undecided.resolve(ready, pending)
        self._closing = [operation for operation in self._closing if operation not in ready]
        self._schedule()
        runs = [self._run(operation) for operation in ready]
        for operation in ready:
            self._dropped += operation.dropped
            operation.release()
        begun = (operation.start_ns for operation in chain(self._open, self._closing))
        self._scheduler.forget(min(begun, default=self._now_ns))
        return runs

    def _identify(self, operation: Operation, pending: list[Operation]) -> None:
        """Without goroutines: a start by its name, a create by the folder that was made meanwhile."""
        if operation.container_id is not None:
            return
        named = self._identities.by_reference(operation.reference)
        if operation.name == "start":
            operation.container_id = named
            return
        made = self._undecided.made_during(operation)
        if named not in made:  # not told yet, or its older namesake
            creates = (other for other in pending if other.name == "create" and other is not operation)
            others = [other for other in creates if other.container_id is None]
            made -= set().union(*map(self._undecided.made_during, others))
            named = made.pop() if len(made) == 1 else None
        if named is not None:
            self._is_about(operation, named)

    def _lasted_ns(self, operation: Operation) -> int:
        return (self._now_ns if operation.end_ns is None else operation.end_ns) - operation.start_ns

    def _run(self, operation: Operation, now_ns: int | None = None) -> Run:
        return build_run(
            operation,
            self._rules[operation.name],
            self._lineage.role,
            self._identities.get(operation.container_id),
            self._header.wall_time_ns - self._header.boot_time_ns,
            goroutines=self._goroutines,
            functions=self._functions,
            keep_events=self._keep_events and self._lasted_ns(operation) >= self._slower_than_ns,
            explainer=self._explainer,
            now_ns=now_ns,
        )


def go_keeps_g_in_register(go_version: str) -> bool:
    """Whether a Go version (`go1.19.8`, `devel …`) keeps g in a register; unknown versions are taken for new ones."""
    match = re.match(r"go(\d+)\.(\d+)", go_version)
    return match is None or (int(match[1]), int(match[2])) >= _G_IN_REGISTER
