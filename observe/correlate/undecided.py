# SPDX-License-Identifier: Apache-2.0
"""Events whose operation is not known when they come: given to one as soon as it is certain, else counted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from observe.correlate.identity import Identities
from observe.correlate.lineage import Lineage
from observe.correlate.names import layer_in
from observe.correlate.operation import Operation
from observe.correlate.rows import Row, rows_of
from observe.model import EventBatch, Kind

#: How long a goroutine that worked for a container is taken to do so still (waits for a child are that long).
_BOUND_NS = 2_000_000_000
#: Work for another container so close makes an event's owner uncertain; moments closer than the grain are one.
_NEAR_NS = 100_000_000
_GRAIN_NS = 10_000_000
#: Why an event is given to no operation: several may be its owner; nothing tells whose it is; it is of a container that
#: no operation was about.
SEVERAL, NOBODY, OTHERS = "several_operations", "nothing_tells", "another_container"
_BIRTHS = frozenset({Kind.SCHED_PROCESS_FORK, Kind.CLONE, Kind.CLONE3, Kind.FORK, Kind.VFORK})
_DIRECTORIES = frozenset({Kind.MKDIR, Kind.MKDIRAT})
_NOT_MODIFIED, _FIRST_FAILURE = 304, 400
_NEVER_NS = 1 << 63
#: Events that wait at most, as they do while a request hangs; the oldest are given up first.
MOST_WAITING = 20_000


@dataclass(slots=True)
class _Event:
    """`container_id`: by what it says itself. `contested`: several operations may be its owner, or something else.

    `foreign`: it is of a container that no operation is about.
    """

    row: Row
    container_id: str | None
    #: Where it is: a batch that holds what waits of one, place in it, number of the one's first event in the stream.
    batch: EventBatch
    place: int
    first: int
    contested: bool = False
    foreign: bool = False


def _time_ns(event: _Event) -> int:
    return event.row.time_ns


class Undecided:
    """Bounded by the operations that have not become runs, and by MOST_WAITING."""

    def __init__(self, lineage: Lineage, identities: Identities) -> None:
        """`lineage` and `identities` are asked in hindsight."""
        self._lineage = lineage
        self._identities = identities
        #: In order of time.
        self._events: list[_Event] = []
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
        return len(self._events)

    def add(
        self,
        batch: EventBatch,
        places: npt.NDArray[np.intp],
        container_ids: Sequence[str | None],
        others: npt.NDArray[np.bool_],
        first: int,
    ) -> None:
        """Take events that happened during an operation: those at `places` of a batch.

        `container_ids`: of each by what it says itself; `others`: which are of a container that no operation of their
        time is about, nor may turn out to be; `first`: number of the batch's first event in the stream.
        """
        self._remember_work(batch.rows["time_ns"][places].tolist(), container_ids)
        self.left[OTHERS] += int(np.count_nonzero(others))
        open_places = places[~others]
        if not len(open_places):
            return
        own = EventBatch(batch.rows.take(open_places), batch.strings).compacted()
        ids = compress(container_ids, (~others).tolist())
        for place, (row, container_id) in enumerate(zip(rows_of(own), ids, strict=True)):
            one = _Event(row, container_id, own, place, first)
            if self._events and self._events[-1].row.time_ns > row.time_ns:
                insort(self._events, one, key=_time_ns)
            else:
                self._events.append(one)
        if len(self._events) > MOST_WAITING:
            self._give_up(len(self._events) - MOST_WAITING * 9 // 10)

    def _remember_work(self, times_ns: Sequence[int], container_ids: Sequence[str | None]) -> None:
        """Something was done for containers."""
        work = self._work
        last_ns, last = work[-1] if work else (0, "")
        for time_ns, container_id in zip(times_ns, container_ids, strict=True):
            if container_id and (last != container_id or not last_ns <= time_ns < last_ns + _GRAIN_NS):
                insort(work, (time_ns, container_id))
                last_ns, last = work[-1]
        del work[: max(len(work) - MOST_WAITING, 0)]

    def _give_up(self, count: int) -> None:
        """Count the oldest events and forget them, and what helped to decide about them."""
        self.left.update(map(self._reason, self._events[:count]))
        del self._events[:count]
        kept_ns = self._events[0].row.time_ns if self._events else _NEVER_NS
        self._ended = [operation for operation in self._ended if operation.end_ns is None or operation.end_ns > kept_ns]
        del self._work[: bisect_left(self._work, (kept_ns - _NEAR_NS, ""))]

    def made_during(self, operation: Operation) -> set[str]:
        """Containers whose folder was made meanwhile."""
        return {
            one.container_id
            for one in self._events
            if one.container_id
            and one.row.kind in _DIRECTORIES
            and one.row.path.endswith(f"/containers/{one.container_id}")
            and operation.covers(one.row.time_ns)
        }

    def resolve(self, ready: Sequence[Operation], pending: Sequence[Operation]) -> None:
        """Give the operations that end now their events; what lies in no other pending one is counted and forgotten.

        `pending`: all operations that have not become runs, `ready` among them.
        """
        later = [operation for operation in pending if operation not in ready]
        first = self._index(min((operation.start_ns for operation in ready), default=0))
        last = self._index(max((_NEVER_NS if op.end_ns is None else op.end_ns for op in ready), default=0))
        bounds = [(op.start_ns, _NEVER_NS if op.end_ns is None else op.end_ns, op) for op in pending]
        given: dict[int, tuple[Operation, _Event]] = {}
        for index in range(first, last):
            one = self._events[index]
            if one.contested or one.foreign:  # it stays so
                continue
            time_ns = one.row.time_ns
            around = [operation for start_ns, end_ns, operation in bounds if start_ns <= time_ns < end_ns]
            if not any(operation in ready for operation in around):
                continue
            owner = self._owner(one, around)
            if owner is not None and owner in ready:
                given[index] = (owner, one)
        if given:
            _hand_over(given.values())
            self._events = [one for index, one in enumerate(self._events) if index not in given]
        earliest_ns = min((operation.start_ns for operation in later), default=_NEVER_NS)
        gone = self._index(earliest_ns)
        self._ended += ready
        self.left.update(map(self._reason, self._events[:gone]))
        del self._events[:gone]
        kept_ns = self._events[0].row.time_ns if self._events else earliest_ns
        self._ended = [operation for operation in self._ended if operation.end_ns is None or operation.end_ns > kept_ns]
        del self._work[: bisect_left(self._work, (earliest_ns - _NEAR_NS, ""))]

    def _reason(self, one: _Event) -> str:
        """Why an event was given to nobody in the end."""
        if self._is_anothers(one):
            return OTHERS
        return SEVERAL if one.contested else NOBODY

    def _is_anothers(self, one: _Event) -> bool:
        """Whether an event that was given to nobody is, in the end, of a container that no operation was about."""
        if one.foreign or one.container_id is not None:
            return one.foreign
        container_id = self._in_hindsight(one.row)
        if container_id is None:
            return False
        around = [operation for operation in self._ended if operation.covers(one.row.time_ns)]
        return not any(operation.container_id == container_id or may_be_about_any(operation) for operation in around)

    def _index(self, time_ns: int) -> int:
        """Where the events from a moment on begin."""
        return bisect_left(self._events, time_ns, key=_time_ns)

    def _owner(self, one: _Event, around: Sequence[Operation]) -> Operation | None:
        """The operation of an event, if it is certain: of those `around` it."""
        container_id = one.container_id or self._in_hindsight(one.row)
        if container_id is not None:
            own = [operation for operation in around if operation.container_id == container_id]
            one.foreign = not own and not any(map(may_be_about_any, around))
            # Of several requests for one container those did nothing that were told so.
            around = [operation for operation in own if operation.status != _NOT_MODIFIED] or own
        elif len(around) == 1 and self._others_worked_near(one.row.time_ns, around[0]):
            one.contested = True
        # What was contested once stays so when a competitor has become a run.
        one.contested = one.contested or len(around) > 1
        return around[0] if around and not one.contested else None

    def _in_hindsight(self, row: Row) -> str | None:
        layer = layer_in(row.path)
        container_id = self._identities.by_layer(layer) if layer else None
        if container_id is None and row.kind in _BIRTHS:
            container_id = self._lineage.child_container(row)
        if container_id is None:
            binding = self._lineage.binding(row)
            if binding and abs(binding.time_ns - row.time_ns) <= _BOUND_NS:
                container_id = binding.container_id
        return container_id

    def _others_worked_near(self, time_ns: int, operation: Operation) -> bool:
        """Whether something was done for a container that the operation is not about."""
        first = bisect_left(self._work, (time_ns - _NEAR_NS, ""))
        last = bisect_left(self._work, (time_ns + _NEAR_NS + 1, ""))
        return any(container_id != operation.container_id for _, container_id in self._work[first:last])


def _hand_over(given: Iterable[tuple[Operation, _Event]]) -> None:
    """Give operations their events, those of a batch together."""
    together: dict[tuple[Operation, int], list[_Event]] = {}
    for owner, one in given:
        together.setdefault((owner, id(one.batch)), []).append(one)
    for (owner, first), events in together.items():
        owner.take(events[0].batch, np.array([one.place for one in events], dtype=np.intp), first)


def may_be_about_any(operation: Operation) -> bool:
    """Whether it did something for a container that nobody could tell."""
    return operation.container_id is None and (operation.status is None or operation.status < _FIRST_FAILURE)
