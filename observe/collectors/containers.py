# SPDX-License-Identifier: Apache-2.0
"""Ask the engine who its containers are: off the collecting thread, after dockerd has answered.

An inspect takes the container's lock, so asking while dockerd still creates or starts it would only wait.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from observe.collectors.docker_api import Identity
from observe.model import Container, EventBatch, Kind

_REQUEST = re.compile(r"(?:/v[\d.]+)?/containers/(.+)/start(?:\?|$)")
#: An id that the engine does not know was never registered: a create that failed, or one that is still going on.
_TRIES = 5
_REMEMBERED = 10_000


class ContainerIdentities:
    """Watches the events for new containers and tells who they are."""

    def __init__(self, identity: Identity, data_root: str) -> None:
        """`identity` is asked on a thread of its own."""
        self._identity = identity
        self._folder = re.compile(re.escape(data_root.rstrip("/")) + r"/containers/([0-9a-f]{64})")
        self._unknown: dict[str, int] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="containers")
        self._asked: list[Future[list[Container]]] = []

    def watch(self, batch: EventBatch) -> None:
        """Note new containers; ask for them once dockerd has answered somebody."""
        for text in self._mentioned(batch):
            if text not in self._known:
                self._unknown.setdefault(text, 0)
        if np.any(batch.rows["kind"] == Kind.API_RESPONSE):
            self._ask()

    def _mentioned(self, batch: EventBatch) -> Iterator[str]:
        kinds = batch.rows["kind"]
        for index in np.unique(batch.rows["path"][np.isin(kinds, (Kind.MKDIR, Kind.MKDIRAT))]).tolist():
            match = self._folder.fullmatch(batch.strings[index])
            if match:
                yield match[1]
        for index in np.unique(batch.rows["path"][kinds == Kind.API_REQUEST]).tolist():
            match = _REQUEST.match(batch.strings[index])
            if match:
                yield match[1]

    def _ask(self) -> None:
        if self._unknown:
            self._asked.append(self._thread.submit(self._identity.look_up, list(self._unknown)))
            self._unknown = {text: tries + 1 for text, tries in self._unknown.items() if tries + 1 < _TRIES}

    def take(self) -> list[Container]:
        """The containers that have become known since the last call."""
        done = [future for future in self._asked if future.done()]
        self._asked = [future for future in self._asked if not future.done()]
        found = []
        for future in done:
            for container in future.result():
                if container.image and container.id not in self._known:
                    self._remember(container)
                    found.append(container)
        return found

    def _remember(self, container: Container) -> None:
        for text in (container.id, container.name):
            self._unknown.pop(text, None)
            self._known[text] = None
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def last(self, timeout_seconds: float) -> list[Container]:
        """Ask for what is still unknown, wait for the answers, at most so long."""
        self._ask()
        wait(self._asked, timeout_seconds)
        return self.take()

    def close(self) -> None:
        """End the thread; an answer that is on its way is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._identity.close()
