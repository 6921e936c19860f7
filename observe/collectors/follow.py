# SPDX-License-Identifier: Apache-2.0
"""Stay with the engine at an address: attach when there is one, notice when it has ended or its programs changed."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from observe import engine as engines
from observe.collectors.session import PROBES, Session, SessionOptions
from observe.engine.binaries import binaries
from observe.errors import HostCannotError, ObserveError
from observe.model import Header, Item, Usage

#: How often an engine is looked for: it must be found well within 2 s of its readiness.
_SEARCH_SECONDS = 0.25
#: Between attempts to attach to an engine that is there: doubled each time, up to the second one.
_RETRY_SECONDS = (1.0, 30.0)
#: How often the programs on disk are looked at.
_PROGRAMS_SECONDS = 5.0
#: Without events: how often file events are read (their queue holds 16,384) and counters looked at.
IDLE_SECONDS = 0.25


class EngineFollower:
    """One engine's address; a session with whatever engine is there now, if there is one.

    Call `attach` while `session` is None, else `wait`, `poll`, and `detach` once `has_ended` (or `is_outdated`).
    """

    def __init__(self, docker_host: str | None, options: SessionOptions) -> None:
        """Nothing is looked for or attached yet."""
        self.session: Session | None = None
        #: What stands in the way of attaching, in one line; "" while attached.
        self.obstacle = ""
        self._docker_host = docker_host
        self._options = options
        self._daemons: list[int] = []
        self._programs: Mapping[str, tuple[int, int, int]] = {}
        self._programs_due = 0.0
        self._retry_at = 0.0
        self._retry_seconds = _RETRY_SECONDS[0]
        self._needs_containerd = False

    def attach(self) -> tuple[Header, list[Item]] | None:
        """Look for the engine and attach: the header and the first items of a new session, or None (see `obstacle`)."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            engine = engines.find_engine(self._docker_host)
        except ObserveError as error:
            self.obstacle = str(error)
            return None
        if self._needs_containerd and engine.containerd_pid is None:
            self.obstacle = "containerd has ended: waiting for dockerd to start it again"
            return None
        session = Session(engine, self._options)
        try:
            self._daemons = _watched(engine)
            self._programs = _programs(engine)
            header = session.header()
            items = session.start()
        except (ObserveError, OSError) as error:
            session.close()
            self._close_daemons()
            if engine.is_alive():  # nothing will change by itself: do not try in a tight loop
                self._retry_at = time.monotonic() + self._retry_seconds
                self._retry_seconds = min(self._retry_seconds * 2, _RETRY_SECONDS[1])
            self.obstacle = str(error)
            return None
        self.session, self.obstacle = session, ""
        self._retry_seconds, self._needs_containerd = _RETRY_SECONDS[0], False
        return header, items

    def wait(self, *descriptors: int) -> None:
        """Sleep until there is something to do, or one of the descriptors can be read."""
        if self.session is not None:
            self.session.wait(IDLE_SECONDS, *descriptors, *self._daemons)
        else:
            _any_readable(descriptors, _SEARCH_SECONDS)

    def poll(self) -> list[Item]:
        """What has arrived."""
        return self.session.poll() if self.session is not None else []

    @property
    def has_ended(self) -> bool:
        """Whether dockerd or its containerd has ended since we attached."""
        return _any_readable(self._daemons, 0)

    @property
    def is_outdated(self) -> bool:
        """Whether programs that the engine will execute have been replaced on disk: their functions are not probed."""
        now = time.monotonic()
        if self.session is None or now < self._programs_due:
            return False
        self._programs_due = now + _PROGRAMS_SECONDS
        return _programs(self.session.engine) != self._programs

    def detach(self) -> list[Item]:
        """Detach; the session's last items."""
        if self.session is None:
            return []
        session, self.session = self.session, None
        self._needs_containerd = session.engine.is_alive() and session.engine.containerd_pid is not None
        self.obstacle = "the engine has ended: waiting for it to come back"
        try:
            return session.stop()
        finally:
            session.close()
            self._close_daemons()

    @property
    def attached(self) -> dict[str, bool]:
        """Which of PROBES are attached now."""
        return self.session.attached if self.session is not None else dict.fromkeys(PROBES, False)

    def usage(self) -> dict[str, Usage]:
        """What each program has cost in this session."""
        return self.session.usage() if self.session is not None else {}

    def _close_daemons(self) -> None:
        while self._daemons:
            os.close(self._daemons.pop())


def _any_readable(descriptors: Iterable[int], timeout_seconds: float) -> bool:
    """Wait until one of them can be read."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(timeout_seconds * 1000))


def _watched(engine: engines.Engine) -> list[int]:
    """Descriptors that can be read once dockerd, or containerd, has ended. Raises HostCannotError if it has already."""
    descriptors: list[int] = []
    pids = [engine.pid, *([engine.containerd_pid] if engine.containerd_pid is not None else [])]
    with suppress(ProcessLookupError):
        descriptors.extend(map(os.pidfd_open, pids))
    # A pid may be another's by now.
    if len(descriptors) < len(pids) or not engine.is_alive():
        for descriptor in descriptors:
            os.close(descriptor)
        raise HostCannotError("the engine has ended: waiting for it to come back")
    return descriptors


def _programs(engine: engines.Engine) -> dict[str, tuple[int, int, int]]:
    """What identifies the files that the engine executes."""
    found = {}
    for name, path in binaries(engine).items():
        with suppress(OSError):
            status = path.stat()
            found[name] = (status.st_dev, status.st_ino, status.st_mtime_ns)
    return found
