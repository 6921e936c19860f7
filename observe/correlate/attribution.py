# SPDX-License-Identifier: Apache-2.0
"""Whose events are these: many at a time, and one by one only where an event decides about others.

What most events are is known without looking at them singly: the engine's by the goroutine that serves a request, or
by the id in a path; every other process's by the container that it works for. Looked at singly, in the order of the
stream, are births and ends of processes, what a process does before its container is known, names that only the moment
explains (a layer, a process), and what tells a request its container.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

import numpy as np
import numpy.typing as npt

from observe.correlate.identity import Identities
from observe.correlate.lineage import ENGINE_ROLES, Lineage
from observe.correlate.names import is_container_id, named_in
from observe.correlate.operation import Operation, covers_of
from observe.correlate.processes import NOBODY, Processes, Works
from observe.correlate.rows import Row, row_at
from observe.correlate.undecided import Undecided
from observe.model import EventBatch, Kind, Mark, table_of_kinds

_FUNCTIONS = table_of_kinds({Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN})
_BIRTHS_AND_ENDS = table_of_kinds({Kind.SCHED_PROCESS_FORK, Kind.SCHED_PROCESS_EXIT})
_EXECS = table_of_kinds({Kind.EXECVE, Kind.EXECVEAT})
_BOUNDARIES = table_of_kinds({Kind.API_REQUEST, Kind.API_RESPONSE})
_ENTRYPOINT, _INVENTED = int(Mark.ENTRYPOINT), int(Mark.INVENTED)
#: How late a file event may be read that a call before the answer caused.
_READ_LATE_NS = 60_000_000
_NAMING = ("path", "path2", "detail")
#: In place of a container's number: only the moment tells whether it is one.
_ASK = -2


class Requests(Protocol):
    """Who is told, event by event in the order of the stream, what requests do."""

    def learn(self, operation: Operation, row: Row, container_id: str | None) -> None:
        """Take what an event on the request's own goroutine says of its container and layer."""

    def served_by(self, row: Row) -> Operation | None:
        """The request whose handler a function of dockerd ran in, where no register tells the goroutine."""


class Attribution:
    """The events of one batch, given to operations piece by piece in stream order."""

    def __init__(
        self,
        batch: EventBatch,
        first: int,
        *,
        lineage: Lineage,
        identities: Identities,
        undecided: Undecided,
        requests: Requests,
    ) -> None:
        """`first`: number of the batch's first event in the stream. No birth in it may be of a daemon's number."""
        self._batch, self._first = batch, first
        self._lineage, self._identities = lineage, identities
        self._undecided, self._requests = undecided, requests
        rows = batch.rows
        kinds, marks = rows["kind"], rows["marks"]
        self._times_ns = rows["time_ns"].astype(np.int64)
        self._goroutines = rows["goroutine"].copy()
        told = kinds == Kind.INOTIFY
        self._counts = ~(_BOUNDARIES[kinds] | (told & (marks & _INVENTED != 0)))
        self._ids: list[str] = []
        self._numbers: dict[str, int] = {}
        #: Number (in `_ids`) of each event's container, by what it says itself or by its process.
        self._containers = np.full(len(rows), NOBODY, dtype=np.int64)
        self._processes = Processes(rows["pid"])
        self._pids: list[int] = rows["pid"].tolist()
        roles = [lineage.role(pid) for pid in self._processes.pids]
        is_dockerd = self._processes.each([role == "dockerd" for role in roles])
        #: What the goroutine of a request may have done.
        self._may_serve = is_dockerd & self._counts & (self._goroutines != 0)
        is_engine = self._processes.each([role in ENGINE_ROLES for role in roles])
        by_name = is_engine | told
        self._late = told & self._counts & (rows["pid"] == 0)
        self._by_process = ~by_name & self._counts
        self._works = Works(self._processes, self._by_process, self._containers)
        self._by_name = by_name & self._counts
        #: That of the identities that the names were told by.
        self._layer_changes = identities.layer_changes
        #: Number of the container that each string names; layers in the strings → the strings of each.
        self._named = np.full(len(batch.strings), NOBODY, dtype=np.int64)
        self._layers: dict[str, list[int]] = {}
        places = np.flatnonzero(self._by_name)
        self._understand(places)
        self._name(places)
        decides = self._counts & (
            _BIRTHS_AND_ENDS[kinds]
            | (_EXECS[kinds] & (marks & _ENTRYPOINT != 0))
            | (self._containers == _ASK)
            | (_FUNCTIONS[kinds] & (not lineage.goroutines))
        )
        #: For each event, looked at singly.
        self._decides: list[bool] = decides.tolist()
        self._is_by_process: list[bool] = self._by_process.tolist()
        #: Which events bind their goroutine to their container; and what has not been bound yet.
        self._binding = is_engine & ~told & ~decides
        self._to_bind = self._bindings(0)
        #: Places of events that must be looked at singly, as far as it is known; a heap.
        self._waiting: list[int] = [
            *np.flatnonzero(decides).tolist(),
            *self._works.first_places(),
        ]
        heapify(self._waiting)

    def give(self, start: int, end: int, operations: Sequence[Operation]) -> None:
        """Give the events at the places from `start` to `end` to those operations, or leave them undecided."""
        piece = _Piece(start, end, operations, covers_of(operations, self._times_ns[start:end]))
        if self._lineage.goroutines and operations:
            self._give_to_goroutines(piece)
        self._look(piece)
        self._bind(end)
        self._works.settle(start, end)
        if operations:
            self._give_to_containers(piece)

    def _understand(self, places: npt.NDArray[np.intp]) -> None:
        """Find out what containers the strings of events name."""
        strings, used = self._batch.strings, np.zeros(len(self._batch.strings), dtype=np.bool_)
        for name in _NAMING:
            used[self._batch.rows[name][places]] = True
        for index in np.flatnonzero(used).tolist():
            container_id, layer, process = named_in(strings[index])
            if layer is not None:
                self._layers.setdefault(layer, []).append(index)
                container_id = self._identities.by_layer(layer)
            if container_id is not None:
                self._named[index] = self._number(container_id)
            elif process:
                self._named[index] = _ASK

    def _name(self, places: npt.NDArray[np.intp]) -> None:
        """Fill in the containers that events name."""
        rows = self._batch.rows.take(places)
        containers = self._named[rows["path"]]
        for name in _NAMING[1:]:
            containers = np.where(containers == NOBODY, self._named[rows[name]], containers)
        for place in np.flatnonzero((rows["kind"] == Kind.FUNCTION_ENTRY) & (rows["path"] != 0)).tolist():
            text = self._batch.strings[rows["path"][place]]
            if is_container_id(text):
                containers[place] = self._number(text)
        self._containers[places] = containers

    def _name_again(self, place: int, piece: _Piece) -> None:
        """Something was learned about layers: what is named after this place may be another container's."""
        self._layer_changes = self._identities.layer_changes
        changed = np.zeros(len(self._batch.strings), dtype=np.bool_)
        for layer, indices in self._layers.items():
            number = self._number(self._identities.by_layer(layer))
            if self._named[indices[0]] != number:
                self._named[indices] = number
                changed[indices] = True
        if not changed.any():
            return
        self._bind(place + 1)
        rows, names = self._batch.rows[place + 1 :], self._by_name[place + 1 :]
        later = np.flatnonzero(names & np.any([changed[rows[name]] for name in _NAMING], axis=0)) + place + 1
        self._name(later)
        self._to_bind = self._bindings(place + 1)
        for other in later.tolist():
            # It may tell a request its container now.
            if other < piece.end and piece.owners[other - piece.start] != NOBODY and self._containers[other] != NOBODY:
                heappush(self._waiting, other)

    def _number(self, container_id: str | None) -> int:
        if container_id is None:
            return NOBODY
        number = self._numbers.setdefault(container_id, len(self._ids))
        if number == len(self._ids):
            self._ids.append(container_id)
        return number

    def _id(self, number: int) -> str | None:
        return None if number == NOBODY else self._ids[number]

    def _give_to_goroutines(self, piece: _Piece) -> None:
        """What the goroutine of a request does is the request's."""
        part = slice(piece.start, piece.end)
        goroutines = self._goroutines[part]
        own_goroutines = np.array([operation.goroutine for operation in piece.operations], dtype=np.uint64)
        own = self._may_serve[part] & (goroutines == own_goroutines[:, None]) & piece.covers
        piece.owners = np.where(own.any(axis=0), own.argmax(axis=0), NOBODY)  # the first one counts
        for number, operation in enumerate(piece.operations):
            if not operation.knows_itself:
                places = (np.flatnonzero(own[number]) + piece.start).tolist()
                self._waiting += filter(self._tells, places)
                heapify(self._waiting)

    def _tells(self, place: int) -> bool:
        """Whether an event names a container, or the layer of a new one."""
        return bool(self._containers[place] != NOBODY) or self._path(place).endswith("-init")

    def _path(self, place: int) -> str:
        return self._batch.strings[int(self._batch.rows["path"][place])]

    def _look(self, piece: _Piece) -> None:
        """Look at the events that decide about others."""
        waiting, last = self._waiting, -1
        while waiting and waiting[0] < piece.end:
            place = heappop(waiting)
            if place == last:
                continue
            last = place
            if self._decides[place]:
                self._decide(place, piece)
            elif self._is_by_process[place]:
                self._ask_process(place)
            else:
                operation = piece.operations[piece.owners[place - piece.start]]
                if not operation.knows_itself:
                    row = row_at(self._batch, place)
                    self._learn(operation, row, self._id(int(self._containers[place])), place, piece)

    def _ask_process(self, place: int) -> None:
        """The container of a process is looked for until it is known."""
        pid = self._pids[place]
        if self._works.is_known(pid):
            return
        known = self._lineage.container(pid)
        if known is not None:
            self._works.begin(pid, place, self._number(known))
            return
        self._containers[place] = self._number(self._lineage.container_of(row_at(self._batch, place)))
        self._wait(self._works.place_after(place, pid))

    def _decide(self, place: int, piece: _Piece) -> None:
        row = row_at(self._batch, place)
        if self._lineage.is_engine(row.pid):  # its goroutine is bound, or asked what it was bound to
            self._bind(place)
        container_id = self._lineage.container_of(row)
        self._containers[place] = self._number(container_id)
        operation = self._owner(row, place, piece)
        if operation is not None:
            if not operation.knows_itself:
                self._learn(operation, row, container_id, place, piece)
            container_id = container_id or operation.container_id
        if container_id is None and row.kind == Kind.SCHED_PROCESS_FORK:
            binding = self._lineage.binding(row.pid, row.goroutine, row.time_ns, row.kind)
            container_id = binding.container_id if binding else None
        changed = self._lineage.follow(row, container_id)
        if changed is not None:
            self._works.end(changed, place)
            self._wait(self._works.place_after(place, changed))
        if self._is_by_process[place] and not self._works.is_known(row.pid):
            self._wait(self._works.place_after(place, row.pid))

    def _owner(self, row: Row, place: int, piece: _Piece) -> Operation | None:
        if not self._lineage.goroutines:
            operation = self._requests.served_by(row) if _FUNCTIONS[row.kind] else None
            if operation is not None:
                piece.owners[place - piece.start] = piece.operations.index(operation)
            return operation
        number = piece.owners[place - piece.start]
        return None if number == NOBODY else piece.operations[number]

    def _learn(self, operation: Operation, row: Row, container_id: str | None, place: int, piece: _Piece) -> None:
        known = operation.container_id
        self._requests.learn(operation, row, container_id)
        if self._layer_changes != self._identities.layer_changes:
            self._name_again(place, piece)
        if known is None and operation.container_id is not None:
            piece.known_from[piece.operations.index(operation)] = place + 1

    def _wait(self, place: int | None) -> None:
        if place is not None:
            heappush(self._waiting, place)

    def _bindings(self, start: int) -> list[tuple[int, int, int, int]]:
        """What binds goroutines to containers from place `start` on, the last first: place, goroutine, time, number."""
        places = np.flatnonzero(self._binding[start:] & (self._containers[start:] >= 0))[::-1] + start
        columns = (values.take(places).tolist() for values in (self._goroutines, self._times_ns, self._containers))
        return list(zip(places.tolist(), *columns, strict=True))

    def _bind(self, end: int) -> None:
        """Bind goroutines to the containers of what they did before place `end`."""
        to_bind = self._to_bind
        while to_bind and to_bind[-1][0] < end:
            place, goroutine, time_ns, number = to_bind.pop()
            self._lineage.bind(self._pids[place], goroutine, time_ns, self._ids[number])

    def _give_to_containers(self, piece: _Piece) -> None:
        """What was done for a container is the operation's that is about it, if there is only one at that time."""
        part, operations = slice(piece.start, piece.end), piece.operations
        containers, counts = self._containers[part], self._counts[part]
        free = counts & (piece.owners == NOBODY)
        numbers = np.array([self._numbers.get(operation.container_id or "", _ASK) for operation in operations])
        abouts = free & (containers == numbers[:, None])
        # Whether some operation around did not know its container then.
        unclear = np.zeros(len(free), dtype=np.bool_)
        for number, operation in enumerate(operations):
            if operation.container_id is None:
                unclear |= piece.covers[number]
        for number, place in piece.known_from.items():
            before = slice(place - piece.start)
            abouts[number, before] = False
            unclear[before] |= piece.covers[number, before]
        own = abouts & piece.covers
        possible = own.sum(axis=0)
        owners = np.where(possible == 1, own.argmax(axis=0), piece.owners)
        late = self._late_users(piece, owners, abouts)
        sure = owners.copy()
        sure[list(late)] = NOBODY
        for number in {*sure.tolist()} - {NOBODY}:
            operations[number].take(self._batch, np.flatnonzero(sure == number) + piece.start, self._first)
        for place, users in late.items():
            user = self._last_user(piece.start + place, users, operations)
            if user is not None:
                owners[place] = user
            if owners[place] != NOBODY:
                operations[owners[place]].take(self._batch, np.array([piece.start + place]), self._first)
        left = np.flatnonzero(free & (owners == NOBODY) & piece.covers.any(axis=0))
        foreign = (containers != NOBODY) & (possible == 0) & ~unclear
        ids = [self._id(number) for number in containers[left].tolist()]
        self._undecided.add(self._batch, left + piece.start, ids, foreign[left])

    def _late_users(
        self, piece: _Piece, owners: npt.NDArray[np.int64], abouts: npt.NDArray[np.bool_]
    ) -> dict[int, list[int]]:
        """File events without their call that are told late, maybe just after the answer: of more than one request.

        For the place of each in the piece, the numbers of those requests, the latest first.
        """
        found = {}
        for place in np.flatnonzero(self._late[piece.start : piece.end]).tolist():
            time_ns = int(self._times_ns[piece.start + place])
            near = [
                number
                for number, operation in enumerate(piece.operations)
                if abouts[number, place] and operation.covers(time_ns, _READ_LATE_NS)
            ]
            if len(near) > 1 or (near and owners[place] == NOBODY):
                found[place] = sorted(near, key=lambda number: -piece.operations[number].start_ns)
        return found

    def _last_user(self, place: int, numbers: Sequence[int], operations: Sequence[Operation]) -> int | None:
        """The first of the operations with those numbers that has used the path of the event at a place."""
        path = self._path(place)
        return next((n for n in numbers if operations[n].has_used(path, self._first + place)), None)


class _Piece:
    """Neighbouring events of a batch, during which no operation begins or ends."""

    def __init__(self, start: int, end: int, operations: Sequence[Operation], covers: npt.NDArray[np.bool_]) -> None:
        """`covers`: of each operation, which of the events lie inside."""
        self.start, self.end = start, end
        self.operations, self.covers = operations, covers
        #: Number (in `operations`) of each event's operation, by the goroutine that made it.
        self.owners = np.full(end - start, NOBODY, dtype=np.int64)
        #: Number of an operation → the place from which on it knows its container, if it did not before.
        self.known_from: dict[int, int] = {}
