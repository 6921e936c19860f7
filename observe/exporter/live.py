# SPDX-License-Identifier: Apache-2.0
"""The items of a live engine, session after session, become runs, numbers and snapshots. Bounded, whatever comes.

One thread feeds it; other threads read `snapshot`, which is replaced and never changed.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from observe.correlate import Correlator
from observe.correlate.operation import OPERATIONS
from observe.exporter.sinks import Sink, Stream
from observe.exporter.snapshot import Condition, Snapshot
from observe.exporter.tally import Tally
from observe.model import Event, EventBatch, Header, Item, Kind, Loss, Note, NoteKind, Run, Usage
from observe.phases import Catalogue
from observe.reports.report import total_loss

#: Runs that are kept for the page.
RECENT = 50
SLOWEST = 10
_HOUR_NS = 3_600_000_000_000
#: The slowest of the hour are kept by so many parts of it, so that the oldest ones can be forgotten.
_PARTS = 6
#: Containers whose notes are kept for recordings of slow runs: those whose operations may still be open.
_CONTAINERS = 100
_WARNINGS = 20
#: Of one operation: thirty times what a start has.
_MOST_EVENTS = 20_000
#: Containers that are known at a time: those whose names the collectors have told, and need not tell again.
MOST_CONTAINERS = 1_000
#: Requests and answers of any kind that are remembered for those recordings.
_BOUNDARIES = 2_000
#: Runs in progress are built for so long after somebody has looked.
_WATCHED_SECONDS = 10.0


class Live:
    """Feed it `attached`, `take`, `detached` in the order in which a follower brings them, then `publish`."""

    def __init__(
        self,
        catalogue: Catalogue,
        probes: Sequence[str],
        sinks: Sequence[Sink] = (),
        *,
        events_slower_than_ns: int | None = None,
        boot_clock_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`probes`: whose cost is shown from the beginning; `sinks`: where finished runs go.

        `events_slower_than_ns`: runs that took at least so long bring their events along; None: no run does.
        """
        self._catalogue = catalogue
        self._sinks = sinks
        self._events_slower_than_ns = events_slower_than_ns
        self._boot_clock_ns, self._wall_clock_ns = boot_clock_ns, wall_clock_ns
        self._tally = Tally(catalogue)
        self._header: Header | None = None
        self._correlator: Correlator | None = None
        #: What a recording of one run needs besides its events.
        self._notes: list[Note] = []
        self._containers: OrderedDict[str, Note] = OrderedDict()
        #: Requests by their time, answers by their end.
        self._boundaries: OrderedDict[tuple[Kind, int], Event] = OrderedDict()
        #: Of the sessions before this one.
        self._past_loss = Loss()
        self._past_usage: dict[str, Usage | None] = dict.fromkeys(probes, Usage())
        self._usage: Mapping[str, Usage | None] = {}
        self._recent: deque[Run] = deque(maxlen=RECENT)
        self._slowest: deque[tuple[int, list[Run]]] = deque(maxlen=_PARTS)
        self._watched_until = 0.0
        self.snapshot = self._snapshot(Condition(dict.fromkeys(probes, False)))

    def attached(self, header: Header, items: Iterable[Item]) -> None:
        """A session began."""
        self._header = header
        self._notes = []
        self._containers.clear()
        self._boundaries.clear()
        slower_than_ns = self._events_slower_than_ns
        self._correlator = Correlator(
            header,
            self._catalogue,
            keep_events=slower_than_ns is not None,
            slower_than_ns=slower_than_ns or 0,
            most_events=_MOST_EVENTS,
            most_containers=MOST_CONTAINERS,
        )
        self.take(items)

    def take(self, items: Iterable[Item]) -> None:
        """What a session brought."""
        if self._correlator is None or self._header is None:
            return
        runs: list[Run] = []
        for item in items:
            if isinstance(item, EventBatch):
                engine = self._header.engine
                self._tally.file_events(item, str(engine.get("data_root", "")), str(engine.get("storage_driver", "")))
                if self._events_slower_than_ns is not None:
                    self._remember_boundaries(item)
            else:
                item = self._note(item)  # noqa: PLW2901 - the same fact, smaller
            runs += self._correlator.feed(item)
        # Also when nothing comes, runs become ready.
        self._finished(runs + self._correlator.advance(self._boot_clock_ns()))

    def detached(self) -> None:
        """The session is over: requests without an answer will not get one that we see."""
        if self._correlator is None:
            return
        self._finished(self._correlator.finish())
        self._past_loss = total_loss([self._past_loss, self._correlator.loss])
        self._past_usage = self._all_usage()
        self._usage = {}
        self._correlator = None

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its answer."""
        return self._correlator is not None and bool(self._correlator.open_operations)

    def watch(self) -> None:
        """Somebody looks at what is in progress. For any thread."""
        self._watched_until = time.monotonic() + _WATCHED_SECONDS

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at it now, and so wants to see at once what happens."""
        return time.monotonic() < self._watched_until

    def publish(self, condition: Condition) -> None:
        """Make a snapshot of now."""
        self._usage = condition.usage
        self.snapshot = self._snapshot(condition)

    def _note(self, note: Note) -> Note:
        """Keep what a recording would need; what the correlator, who remembers thousands of containers, needs of it."""
        if note.kind in (NoteKind.PROCESS, NoteKind.FUNCTION):
            self._notes.append(note)
        if note.kind is not NoteKind.CONTAINER:
            return note
        if self._events_slower_than_ns is not None:
            container_id = str(note.data.get("id", ""))
            self._containers[container_id] = note
            self._containers.move_to_end(container_id)
            if len(self._containers) > _CONTAINERS:
                self._containers.popitem(last=False)
        return replace(note, data={**note.data, "configuration": {}})

    def _remember_boundaries(self, batch: EventBatch) -> None:
        """Requests and answers: a run tells when they were, and has only the events between them."""
        rows = batch.rows[np.isin(batch.rows["kind"], (Kind.API_REQUEST, Kind.API_RESPONSE))]
        for event in EventBatch(rows, batch.strings):
            moment_ns = event.time_ns if event.kind is Kind.API_REQUEST else event.end_ns
            self._boundaries[event.kind, moment_ns] = event
            if len(self._boundaries) > _BOUNDARIES:
                self._boundaries.popitem(last=False)

    def _with_boundaries(self, run: Run) -> Run:
        request = self._boundaries.get((Kind.API_REQUEST, run.start_ns))
        answer = self._boundaries.get((Kind.API_RESPONSE, run.start_ns + run.duration_ns))
        around = [(run.operation, event) for event in (request, answer) if event is not None]
        return replace(run, events=(*around[:1], *run.events, *around[1:])) if run.events else run

    def _finished(self, runs: Sequence[Run]) -> None:
        if not runs or self._header is None:
            return
        self._tally.runs(runs)
        for run in runs:
            container = self._containers.get(run.container_id or "")
            notes = (*self._notes, container) if container else tuple(self._notes)
            for sink in self._sinks:
                sink.offer(self._with_boundaries(run), Stream(self._header, notes))
            # An hour of runs with all their events would be too much to keep.
            self._keep(replace(run, events=()))

    def _keep(self, run: Run) -> None:
        self._recent.appendleft(run)
        part = (run.wall_time_ns + run.duration_ns) // (_HOUR_NS // _PARTS)
        if not self._slowest or self._slowest[-1][0] != part:
            self._slowest.append((part, []))
        slowest = self._slowest[-1][1]
        slowest.append(run)
        slowest.sort(key=lambda one: -one.duration_ns)
        del slowest[SLOWEST:]

    def _slowest_of_the_hour(self, now_ns: int) -> tuple[Run, ...]:
        runs = [
            run for _, part in self._slowest for run in part if run.wall_time_ns + run.duration_ns > now_ns - _HOUR_NS
        ]
        return tuple(islice(sorted(runs, key=lambda run: -run.duration_ns), SLOWEST))

    def _all_usage(self) -> dict[str, Usage | None]:
        """Over all sessions. What was not counted once is not known any more."""
        total = dict(self._past_usage)
        for probe, usage in self._usage.items():
            past = total.get(probe, Usage())
            if past is None or usage is None:
                total[probe] = None
            else:
                total[probe] = Usage(past.hits + usage.hits, past.run_ns + usage.run_ns)
        return total

    def _snapshot(self, condition: Condition) -> Snapshot:
        correlator = self._correlator
        now_ns = self._wall_clock_ns()
        in_flight = Counter(dict.fromkeys(OPERATIONS, 0))
        in_flight.update(operation for operation, _ in (correlator.open_operations if correlator else ()))
        return Snapshot(
            wall_time_ns=now_ns,
            condition=condition,
            header=self._header,
            totals=self._tally.freeze(),
            loss=total_loss([self._past_loss, correlator.loss]) if correlator else self._past_loss,
            usage=self._all_usage(),
            in_flight=dict(in_flight),
            open_runs=tuple(correlator.in_flight(self._boot_clock_ns())) if correlator and self.is_watched else (),
            recent=tuple(self._recent),
            slowest=self._slowest_of_the_hour(now_ns),
            deliveries={(sink.name, result): count for sink in self._sinks for result, count in sink.results().items()},
            warnings=tuple(dict.fromkeys(correlator.warnings))[-_WARNINGS:] if correlator else (),
        )
