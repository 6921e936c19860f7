# SPDX-License-Identifier: Apache-2.0
"""The load generator's process, seen from the bench: orders go in, results come out, nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from observe.bench import load
from observe.collectors.waiting import readable
from observe.engine import api
from observe.errors import EngineGoneError, HostCannotError, ObserveError

#: How long it may take to stop what runs and to remove what it has made.
_END_SECONDS = load.ANSWER_SECONDS


class LoadGenerator:
    """A context manager; however it ends, the containers that were made are removed."""

    def __init__(self, docker_host: str, clients: int, token: str) -> None:
        """Start the process: it connects with the first order."""
        self._target = api.address(docker_host)
        self._token = token
        self._said: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._news = os.eventfd(0, os.EFD_CLOEXEC)
        package = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", load.__name__, docker_host, str(clients), token],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for us, who end it in order.
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
            },
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            self._said.put(json.loads(line))
            os.eventfd_write(self._news, 1)
        self._said.put(None)
        os.eventfd_write(self._news, 1)

    def fileno(self) -> int:
        """Descriptor that can be read when there is something to take; -1 once it is closed."""
        return self._news

    def begin(self, orders: Iterable[Mapping[str, Any]]) -> None:
        """Run these, each by a client of its own."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        # That it has died is told by `take`.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.writelines(json.dumps(order) + "\n" for order in orders)
            self._process.stdin.flush()

    def take(self) -> list[dict[str, Any]]:
        """The results since the last call. Raises EngineGoneError if it cannot be reached any more."""
        found: list[dict[str, Any]] = []
        if readable((self._news,), 0):
            os.eventfd_read(self._news)
        with contextlib.suppress(Empty):
            while True:
                message = self._said.get_nowait()
                if message is None:
                    raise ObserveError("the load generator was ended by somebody; run the bench again")
                if "broken" in message:
                    raise EngineGoneError(message["broken"])
                found.append(message)
        return found

    def close(self) -> None:
        """End it and remove what it has made. Can be called twice."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        if self._process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            done = self._process.wait(_END_SECONDS) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            done = False
        self._reader.join()
        self._process.stdout.close()
        os.close(self._news)
        self._news = -1
        if not done:
            # It has died before it could; an engine that is gone has no containers either.
            with contextlib.suppress(HostCannotError):
                load.sweep(self._target, self._token)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
