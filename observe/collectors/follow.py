# SPDX-License-Identifier: Apache-2.0
"""Stay with the engine at an address: attach when there is one, notice when it has ended or its programs changed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress

from observe import engine as engines
from observe.collectors.session import PROBES, Session, SessionOptions
from observe.collectors.waiting import readable
from observe.engine import procfs
from observe.engine.binaries import binaries
from observe.errors import HostCannotError, ObserveError
from observe.model import Header, Item, Usage

#: How often an engine is looked for: it must be found well within 2 s of its readiness.
_SEARCH_SECONDS = 0.25
#: Between attempts to attach to an engine that is there: doubled each time, up to the second one.
_RETRY_SECONDS = (0.25, 30.0)
#: How often the programs on disk are looked at, and a containerd that is missing is looked for.
_CHECK_SECONDS = 2.0
#: Without events: how often file events are read (their queue holds 16,384) and counters looked at.
IDLE_SECONDS = 0.5
_ENDED = "the engine has ended: waiting for it to come back"


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
        #: Can be read once dockerd has ended.
        self._dockerd: int | None = None
        self._programs: Mapping[str, tuple[int, int, int]] = {}
        self._check_due = 0.0
        self._retry_at = 0.0
        self._retry_seconds = _RETRY_SECONDS[0]

    def attach(self) -> tuple[Header, list[Item]] | None:
        """Look for the engine and attach: the header and the first items of a new session, or None (see `obstacle`)."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            engine = engines.find_engine(self._docker_host)
        except ObserveError as error:
            self.obstacle = str(error)
            return None
        session = Session(engine, self._options)
        try:
            self._dockerd = _process_descriptor(engine)
            self._programs = _programs(engine)
            header = session.header()
            items = session.start()
        except (ObserveError, OSError) as error:
            session.close()
            self._close_descriptor()
            if engine.is_alive():  # nothing will change by itself: do not try in a tight loop
                self._retry_at = time.monotonic() + self._retry_seconds
                self._retry_seconds = min(self._retry_seconds * 2, _RETRY_SECONDS[1])
            self.obstacle = str(error)
            return None
        self.session, self.obstacle = session, ""
        self._retry_seconds = _RETRY_SECONDS[0]
        return header, items

    def wait(self, *descriptors: int, batch_seconds: float | None = None) -> None:
        """Sleep until there is something to do, or one of the descriptors can be read; as in `Session.wait`."""
        if self.session is not None:
            self.session.wait(IDLE_SECONDS, *descriptors, *self._own_descriptors(), batch_seconds=batch_seconds)
        else:
            readable(descriptors, _SEARCH_SECONDS)

    def poll(self) -> list[Item]:
        """What has arrived."""
        return self.session.poll() if self.session is not None else []

    @property
    def has_ended(self) -> bool:
        """Whether dockerd has ended since we attached. One that is shutting down still answers without containerd."""
        return bool(readable(self._own_descriptors(), 0))

    @property
    def is_outdated(self) -> bool:
        """Whether what the engine uses is not what we attached to: another containerd, or new programs on disk."""
        now = time.monotonic()
        if self.session is None or now < self._check_due:
            return False
        self._check_due = now + _CHECK_SECONDS
        engine = self.session.engine
        containerd = engine.containerd_pid
        programs = _programs(engine)
        # Looked at last: an engine that shuts down loses it, and so the way to its programs, but still answers.
        ended = containerd is not None and not _runs(containerd)
        if not ended and programs != self._programs:
            return True
        return (ended or containerd is None) and self._has_another_containerd(engine)

    def _has_another_containerd(self, engine: engines.Engine) -> bool:
        try:
            return engines.find_engine(self._docker_host).containerd_pid not in (None, engine.containerd_pid)
        except ObserveError:
            return False

    def detach(self) -> list[Item]:
        """Detach; the session's last items."""
        if self.session is None:
            return []
        session, self.session = self.session, None
        self.obstacle = _ENDED
        try:
            return session.stop()
        finally:
            session.close()
            self._close_descriptor()

    @property
    def attached(self) -> dict[str, bool]:
        """Which of PROBES are attached now."""
        return self.session.attached if self.session is not None else dict.fromkeys(PROBES, False)

    def usage(self) -> dict[str, Usage | None]:
        """What each program has cost in this session; None if nobody counts."""
        return self.session.usage() if self.session is not None else {}

    def _own_descriptors(self) -> tuple[int, ...]:
        return () if self._dockerd is None else (self._dockerd,)

    def _close_descriptor(self) -> None:
        if self._dockerd is not None:
            os.close(self._dockerd)
        self._dockerd = None


def _runs(pid: int) -> bool:
    # Its arguments go with its memory, before it is a zombie.
    return bool(procfs.arguments(pid))


def _process_descriptor(engine: engines.Engine) -> int:
    """Can be read once dockerd has ended. Raises HostCannotError if it has already."""
    try:
        descriptor = os.pidfd_open(engine.pid)
    except ProcessLookupError:
        raise HostCannotError(_ENDED) from None
    if not engine.is_alive():  # the pid is another's by now
        os.close(descriptor)
        raise HostCannotError(_ENDED)
    return descriptor


def _programs(engine: engines.Engine) -> dict[str, tuple[int, int, int]]:
    """What identifies the files that the engine executes."""
    found = {}
    for name, path in binaries(engine).items():
        with suppress(OSError):
            status = path.stat()
            found[name] = (status.st_dev, status.st_ino, status.st_mtime_ns)
    return found
