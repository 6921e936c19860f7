# SPDX-License-Identifier: Apache-2.0
"""Events whose operation is not known when they come: given to one as soon as it is certain, else counted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt

from observe.correlate.identity import Identities
from observe.correlate.lineage import Lineage
from observe.correlate.names import layer_in
from observe.correlate.operation import Operation, covers_of
from observe.correlate.rows import columns_of, together
from observe.model import EVENT_DTYPE, EventBatch, Kind, table_of_kinds

#: How long a goroutine that worked for a container is taken to do so still (waits for a child are that long).
_BOUND_NS = 2_000_000_000
#: Work for another container so close makes an event's owner uncertain; moments closer than the grain are one.
_NEAR_NS = 100_000_000
_GRAIN_NS = 10_000_000
#: Why an event is given to no operation: several may be its owner; nothing tells whose it is; it is of a container that
#: no operation was about.
SEVERAL, NOBODY, OTHERS = "several_operations", "nothing_tells", "another_container"
_BIRTHS = frozenset({Kind.SCHED_PROCESS_FORK, Kind.CLONE, Kind.CLONE3, Kind.FORK, Kind.VFORK})
_DIRECTORIES = table_of_kinds({Kind.MKDIR, Kind.MKDIRAT})
_NOT_MODIFIED, _FIRST_FAILURE = 304, 400
#: What is found out of an event that stays undecided: nothing yet; several operations may be its owner, or something
#: else; it is of a container that no operation is about.
_OPEN, _CONTESTED, _FOREIGN = range(3)
_NEVER_NS = (1 << 63) - 1
#: Whoever has ended is not asked any more what it used before which event of the stream.
_NEVER_ASKED = 0
#: In place of the number of an operation about an event's container: there is none; the event has no container. And in
#: place of an operation's container: it is not known.
_NO_OPERATION, _NO_CONTAINER, _UNKNOWN = -1, -2, -3
#: Events that wait at most, as they do while a request hangs; the oldest are given up first.
MOST_WAITING = 20_000
#: Pieces of batches that hold all strings of their batch.
_MOST_NEW = 64


class Undecided:
    """Bounded by the operations that have not become runs, and by MOST_WAITING."""

    def __init__(self, lineage: Lineage, identities: Identities) -> None:
        """`lineage` and `identities` are asked in hindsight."""
        self._lineage = lineage
        self._identities = identities
        #: The events, copied out of their batches; of each its container by what it says itself, and what is found out.
        self._waiting = EventBatch(np.empty(0, dtype=EVENT_DTYPE))
        self._container_ids: list[str | None] = []
        self._found = np.empty(0, dtype=np.int8)
        #: Events that are not among `_waiting` yet.
        self._new: list[EventBatch] = []
        #: When something was done for which container, in order of time.
        self._work: list[tuple[int, str]] = []
        #: Operations that have become runs, as long as events of their time wait.
        self._ended: list[Operation] = []
        #: Why events were given to no operation (SEVERAL, NOBODY, OTHERS) → how many.
        self.left: Counter[str] = Counter()

    @property
    def unattributed(self) -> int:
        """How many events belong to an operation, and nobody can tell to which."""
        return self.left[SEVERAL] + self.left[NOBODY]

    def __len__(self) -> int:
        """Number of events that wait."""
        return len(self._container_ids)

    def add(
        self,
        batch: EventBatch,
        places: npt.NDArray[np.intp],
        container_ids: Sequence[str | None],
        foreign: npt.NDArray[np.bool_],
    ) -> None:
        """Take events that happened during an operation: those at `places` of a batch.

        `container_ids`: of each by what it says itself; `foreign`: whether no operation can be about that any more.
        """
        if not len(places):
            return
        rows = batch.rows.take(places)
        self._note_work(rows["time_ns"].tolist(), container_ids)
        if foreign.any():
            self.left[OTHERS] += int(np.count_nonzero(foreign))
            rows, container_ids = rows[~foreign], list(compress(container_ids, (~foreign).tolist()))
        if len(rows):
            self._new.append(EventBatch(rows, batch.strings))
            self._container_ids += container_ids
            if len(self._new) >= _MOST_NEW:
                self._waiting = self._gathered().compacted()
        if len(self) > MOST_WAITING:
            self._give_up(len(self) - MOST_WAITING * 9 // 10)

    def _note_work(self, times_ns: Sequence[int], container_ids: Sequence[str | None]) -> None:
        """Something was done for containers."""
        work = self._work
        last_ns, last = work[-1] if work else (0, "")
        for time_ns, container_id in zip(times_ns, container_ids, strict=True):
            if container_id and (container_id != last or not last_ns <= time_ns < last_ns + _GRAIN_NS):
                insort(work, (time_ns, container_id))
                last_ns, last = work[-1]
        del work[: max(len(work) - MOST_WAITING, 0)]

    def _gathered(self) -> EventBatch:
        """All events that wait."""
        if self._new:
            self._waiting = together([self._waiting, *self._new])
            self._new = []
            self._found = np.append(self._found, np.zeros(len(self) - len(self._found), dtype=np.int8))
        return self._waiting

    def _times_ns(self) -> npt.NDArray[np.int64]:
        return self._gathered().rows["time_ns"].astype(np.int64)

    def _give_up(self, count: int) -> None:
        """Count the oldest events and forget them, and what helped to decide about them."""
        gone = np.zeros(len(self), dtype=np.bool_)
        gone[np.argsort(self._times_ns(), kind="stable")[:count]] = True
        self._count(gone)
        self._keep(~gone)
        self._forget_work(self._forget_ended(_NEVER_NS))

    def _keep(self, which: npt.NDArray[np.bool_]) -> None:
        """Forget the other events."""
        rows = self._waiting.rows[which]
        self._waiting = EventBatch(rows, self._waiting.strings).compacted() if len(rows) else EventBatch(rows)
        self._container_ids = list(compress(self._container_ids, which.tolist()))
        self._found = self._found[which]

    def _forget_ended(self, time_ns: int) -> int:
        """Forget the ended operations that no event lies in; the time of the first event, or `time_ns` without any."""
        first_ns = int(self._waiting.rows["time_ns"].min()) if len(self) else time_ns
        self._ended = [one for one in self._ended if one.end_ns is None or one.end_ns > first_ns]
        return first_ns

    def _forget_work(self, time_ns: int) -> None:
        """Forget what was done so long before a moment that it says nothing about it."""
        del self._work[: bisect_left(self._work, (time_ns - _NEAR_NS, ""))]

    def made_during(self, operation: Operation) -> set[str]:
        """Containers whose folder was made meanwhile."""
        events = self._gathered()
        made = _DIRECTORIES[events.rows["kind"]] & covers_of([operation], self._times_ns())[0]
        return {
            container_id
            for place in np.flatnonzero(made).tolist()
            if (container_id := self._container_ids[place])
            and events.strings[events.rows["path"][place]].endswith(f"/containers/{container_id}")
        }

    def resolve(self, ready: Sequence[Operation], pending: Sequence[Operation]) -> None:
        """Give the operations that end now their events; what lies in no other pending one is counted and forgotten.

        `pending`: all operations that have not become runs, `ready` among them.
        """
        self._ended += ready
        later_ns = min((operation.start_ns for operation in pending if operation not in ready), default=_NEVER_NS)
        times_ns = self._times_ns()
        around = covers_of(pending, times_ns)
        ends = np.array([operation in ready for operation in pending], dtype=np.bool_)
        asked = np.flatnonzero(around[ends].any(axis=0) & (self._found == _OPEN))  # what is found out stays so
        given = np.zeros(len(self), dtype=np.bool_)
        if len(asked):
            asked = asked[np.argsort(times_ns[asked], kind="stable")]
            owners = self._owners(asked, pending, around[:, asked])
            for number in np.flatnonzero(ends).tolist():
                own = asked[owners == number]
                pending[number].take(self._waiting, own, _NEVER_ASKED)
                given[own] = True
        gone = times_ns < later_ns
        self._count(gone & ~given)
        self._keep(~(gone | given))
        self._forget_ended(later_ns)
        self._forget_work(later_ns)

    def _owners(
        self, places: npt.NDArray[np.intp], operations: Sequence[Operation], around: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.intp]:
        """Which of the operations owns each event at some places, where that is certain; notes what else is found out.

        `around`: of each operation, which of the events lie inside.
        """
        container_ids = [self._container_ids[place] for place in places.tolist()]
        unnamed = [number for number, container_id in enumerate(container_ids) if container_id is None]
        for number, container_id in zip(unnamed, self._in_hindsight(places[unnamed]), strict=True):
            container_ids[number] = container_id
        numbers = {operation.container_id: number for number, operation in enumerate(operations)}
        numbers[None] = _NO_CONTAINER
        containers = np.array([numbers.get(container_id, _NO_OPERATION) for container_id in container_ids])
        abouts = np.array([numbers[one.container_id] if one.container_id else _UNKNOWN for one in operations])
        unsure = np.array([_may_be_about_any(operation) for operation in operations], dtype=np.bool_)
        did_nothing = np.array([operation.status == _NOT_MODIFIED for operation in operations], dtype=np.bool_)
        named = containers != _NO_CONTAINER
        own = around & (containers == abouts[:, None])
        foreign = named & ~(own | (around & unsure[:, None])).any(axis=0)
        # Of several requests for one container those did nothing that were told so.
        acted = own & ~did_nothing[:, None]
        possible = np.where(named, np.where(acted.any(axis=0), acted, own), around)
        count = np.count_nonzero(possible, axis=0)
        owners: npt.NDArray[np.intp] = possible.argmax(axis=0)
        contested = count > 1
        for number in np.flatnonzero(~named & (count == 1)).tolist():
            time_ns = int(self._waiting.rows["time_ns"][places[number]])
            contested[number] = self._others_worked_near(time_ns, operations[owners[number]])
        # What was contested once stays so when a competitor has become a run.
        self._found[places[contested]] = _CONTESTED
        self._found[places[foreign]] = _FOREIGN
        owners[contested | (count == 0)] = _NO_OPERATION
        return owners

    def _count(self, gone: npt.NDArray[np.bool_]) -> None:
        """Count events that are given to nobody by the reason for it."""
        if not gone.any():
            return
        others = gone & (self._found == _FOREIGN)
        asked = np.flatnonzero(gone & ~others)
        asked = asked[[self._container_ids[place] is None for place in asked.tolist()]]
        times_ns = self._waiting.rows["time_ns"][asked].tolist()
        others[asked] = list(map(self._is_anothers, times_ns, self._in_hindsight(asked)))
        several = gone & ~others & (self._found == _CONTESTED)
        nobody = gone & ~others & ~several
        for reason, which in ((SEVERAL, several), (NOBODY, nobody), (OTHERS, others)):
            self.left[reason] += int(np.count_nonzero(which))

    def _is_anothers(self, time_ns: int, container_id: str | None) -> bool:
        """Whether a moment's event that names no container is, in the end, of one that no operation was about."""
        return container_id is not None and not any(
            operation.container_id == container_id or _may_be_about_any(operation)
            for operation in self._ended
            if operation.covers(time_ns)
        )

    def _in_hindsight(self, places: npt.NDArray[np.intp]) -> list[str | None]:
        """The containers of events that name none, as far as something else has told by now."""
        columns = columns_of(self._waiting, places, "path", "kind", "ret", "pid", "goroutine", "time_ns")
        found = []
        for path, kind, ret, pid, goroutine, time_ns in columns:
            layer = layer_in(path) if path else None
            container_id = self._identities.by_layer(layer) if layer else None
            if container_id is None and kind in _BIRTHS:
                container_id = self._lineage.of_process(ret)
            if container_id is None:
                binding = self._lineage.binding(pid, goroutine, time_ns, kind)
                if binding and abs(binding.time_ns - time_ns) <= _BOUND_NS:
                    container_id = binding.container_id
            found.append(container_id)
        return found

    def _others_worked_near(self, time_ns: int, operation: Operation) -> bool:
        """Whether something was done for a container that the operation is not about."""
        first = bisect_left(self._work, (time_ns - _NEAR_NS, ""))
        last = bisect_left(self._work, (time_ns + _NEAR_NS + 1, ""))
        return any(container_id != operation.container_id for _, container_id in self._work[first:last])


def _may_be_about_any(operation: Operation) -> bool:
    """Whether it did something for a container that nobody could tell."""
    return operation.container_id is None and (operation.status is None or operation.status < _FIRST_FAILURE)
