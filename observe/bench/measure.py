# SPDX-License-Identifier: Apache-2.0
"""All turns of a bench, one after the other: attach, order, collect, detach."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from types import FrameType

from observe.bench.generator import LoadGenerator
from observe.bench.plan import Turn, orders
from observe.bench.recordings import ArmRecordings
from observe.collectors.session import POLL_SECONDS, Session
from observe.collectors.waiting import readable
from observe.errors import ObserveError
from observe.reports.bench_rows import ClientRun

#: After a turn, before the next one: what an engine still does once a container is removed (up to 35 ms were seen)
#: is not to be seen in another arm.
_PAUSE_SECONDS = 0.1
#: How long a signal may go unnoticed.
_SIGNAL_SECONDS = 0.25


@dataclass(slots=True)
class Measurement:
    """What is measured, and how far it has come. `runs` and `stopped_by` are the result."""

    turns: Sequence[Turn]
    token: str
    command: Sequence[str]
    generator: LoadGenerator
    #: None if no arm is observed.
    recordings: ArmRecordings | None
    attach: Callable[[], Session]
    #: Called often, with the share of all turns that is done.
    progress: Callable[[Sequence[ClientRun], float], None]
    runs: list[ClientRun] = field(default_factory=list)
    #: What ended it early: a signal, or what went wrong, in words.
    stopped_by: signal.Signals | None = None
    broken: str | None = None
    _session: Session | None = None
    _arm: str | None = None

    @property
    def ended_early(self) -> str | None:
        """Why not all turns were done; None if they were."""
        return f"stopped by {self.stopped_by.name}" if self.stopped_by else self.broken

    def measure(self) -> None:
        """Until all turns are done; then nothing is attached, and all containers are gone.

        Raises ObserveError if a warm-up fails, or anything else before a run was measured, HostCannotError if the
        engine cannot be attached to. An engine that goes later only ends it early.
        """
        try:
            self._all_turns()
        except ObserveError as error:
            if not self.runs:
                raise
            self.broken = str(error)

    def _all_turns(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            stack.callback(self._detach)
            # First of all at the end: what it removes is still seen by the session.
            stack.enter_context(self.generator)
            for turn in takewhile(lambda _: not self.stopped_by, self.turns):
                self._attach_or_detach(turn)
                self._turn(turn)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, _frame: FrameType | None) -> None:
            self.stopped_by = signal.Signals(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _attach_or_detach(self, turn: Turn) -> None:
        if turn.arm.attached and self._session is None:
            self._session = self.attach()
            items = self._session.start()
            if self.recordings:
                self.recordings.attached(items)
        elif not turn.arm.attached:
            self._detach()
        self._arm = None if turn.warmup else turn.arm.name

    def _turn(self, turn: Turn) -> None:
        self.generator.begin(orders(self.token, turn, self.command))
        waiting = turn.runs
        while waiting and not self.stopped_by:
            self._wait()
            self._collect()
            for result in self.generator.take():
                waiting -= 1
                run = ClientRun(turn.arm.name, turn.number, result["failed"], result["durations_ns"])
                if not turn.warmup:
                    self.runs.append(run)
                elif run.failed:
                    raise ObserveError(f"warm-up of {turn.arm.name}: {run.failed}")
            self.progress(self.runs, (turn.number + 1 - waiting / turn.runs) / len(self.turns))
        quiet = time.monotonic() + _PAUSE_SECONDS
        while time.monotonic() < quiet:
            time.sleep(POLL_SECONDS)
            self._collect()
        if self._session and self.recordings:
            self.recordings.count(self._session.losses(), self._arm)

    def _wait(self) -> None:
        """Until a run is done, or there is much to collect."""
        if self._session:
            self._session.wait(_SIGNAL_SECONDS, self.generator.fileno())
        else:
            readable((self.generator.fileno(),), _SIGNAL_SECONDS)

    def _collect(self) -> None:
        if self._session and self.recordings:
            self.recordings.take(self._session.poll(), self._arm)

    def _detach(self) -> None:
        if self._session is None:
            return
        session, self._session = self._session, None
        with session:
            items = session.stop()
            if self.recordings:
                self.recordings.take(items, self._arm)
