# SPDX-License-Identifier: Apache-2.0
"""Where finished runs go besides the numbers: each sink has a thread and a short queue, and drops when it is slow."""

from __future__ import annotations

import queue
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from observe.errors import ObserveError
from observe.model import Header, Note, Run
from observe.reports import Page

#: Events of the runs that one sink holds: some 20 MB, and more than twice what the largest run brings.
_EVENTS = 50_000
#: How long the end waits for what is being delivered.
_CLOSE_SECONDS = 3.0
#: Between two lines about failures of one sink.
_COMPLAIN_SECONDS = 60.0

DROPPED, FAILED = "dropped", "failed"


def say(text: str) -> None:
    """One line on standard error; where nobody takes it, it is left unsaid, and the work goes on."""
    with suppress(OSError):
        print(f"observe: {Page().safe(text)}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Stream:
    """What a run was found in: what a recording of it needs besides its events."""

    header: Header
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A run on its way."""

    run: Run
    stream: Stream


class Sink(ABC):
    """Takes runs and never makes the recorder wait."""

    def __init__(
        self, name: str, results: Sequence[str], *, waiting: int, batch: int = 1, events: int = _EVENTS
    ) -> None:
        """`name`: label of its counters; `results`: what may become of a run, besides dropped and failed.

        `waiting`: how many runs may wait, and `events`: how many events those and the ones that are being delivered
        may have together; the next run is dropped. `batch`: how many are delivered together.
        """
        self.name = name
        self._batch = batch
        self._queue: queue.Queue[Delivery | None] = queue.Queue(waiting)
        self._counts = Counter(dict.fromkeys((*results, FAILED, DROPPED), 0))
        self._most_events = events
        #: Each is written by one thread alone: whoever offers, whoever delivers.
        self._taken_events = self._done_events = 0
        self._complain_at = 0.0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def offer(self, run: Run, stream: Stream) -> None:
        """Take a run, if it is wanted and there is room."""
        if not self.wants(run):
            return
        if self._taken_events - self._done_events + len(run.events) > self._most_events or self._queue.full():
            self._counts[DROPPED] += 1
            return
        self._taken_events += len(run.events)
        self._queue.put_nowait(Delivery(run, stream))

    def results(self) -> Mapping[str, int]:
        """What became of the runs so far."""
        return dict(self._counts)

    def close(self) -> None:
        """Deliver what waits, as far as that is quick, and end. Only once started."""
        try:
            self._queue.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)

    @abstractmethod
    def wants(self, run: Run) -> bool:
        """Whether a run is for this sink."""

    @abstractmethod
    def deliver(self, deliveries: Sequence[Delivery]) -> Mapping[str, int]:
        """Deliver them, on the sink's thread; what became of how many. Whatever it raises: all failed."""

    def _work(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Deliver what waits; whether there may be more. A function, so that nothing is held while nothing waits."""
        taken = [self._queue.get()]
        while len(taken) < self._batch and not self._queue.empty():
            taken.append(self._queue.get())
        deliveries = [one for one in taken if one is not None]
        if deliveries:
            self._deliver(deliveries)
            self._done_events += sum(len(one.run.events) for one in deliveries)
        return len(deliveries) == len(taken)

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        try:
            self._counts.update(self.deliver(deliveries))
        except Exception as error:  # noqa: BLE001 - without its thread nothing would be delivered any more
            self._counts[FAILED] += len(deliveries)
            now = time.monotonic()
            if now >= self._complain_at:
                self._complain_at = now + _COMPLAIN_SECONDS
                unexpected = (
                    "" if isinstance(error, (ObserveError, OSError)) else f"unexpected {type(error).__name__}: "
                )
                say(f"{self.name}: {unexpected}{error}")
