# SPDX-License-Identifier: Apache-2.0
"""Ask the engine who its containers are: off the collecting thread, once dockerd has answered somebody.

First the names, which the engine tells at once; then each container's configuration, for which an inspect waits as
long as somebody starts the container: one that was not answered in time is asked again.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from observe.collectors.docker_api import Identity
from observe.model import Container, EventBatch, Kind, table_of_kinds

_T = TypeVar("_T")
_REQUEST = re.compile(r"(?:/v[\d.]+)?/containers/(.+)/start(?:\?|$)")
#: What the engine does not know was never registered: a create that failed, or one that is still going on.
_TRIES = 20
#: Inspects of one container: each is waited for for a second, and a start may take many.
_INSPECTS = 60
#: Configurations that may wait to be asked for; more come faster than the engine answers.
_WAITING = 100
#: Ids and names that need not be asked for again: no more than the correlator remembers.
_REMEMBERED = 1_000
_DIRECTORIES = (Kind.MKDIR, Kind.MKDIRAT)
#: Kinds of events that `ContainerIdentities.watch` looks at.
WATCHED = table_of_kinds({*_DIRECTORIES, Kind.API_REQUEST, Kind.API_RESPONSE})
_NAMES_CONTAINERS = table_of_kinds({*_DIRECTORIES, Kind.API_REQUEST})


class ContainerIdentities:
    """Watches the events for new containers and tells who they are."""

    def __init__(self, identity: Identity, data_root: str, *, configurations: bool = True) -> None:
        """`identity` is asked on threads of its own; `configurations`: for more than names."""
        self._wants_configurations = configurations
        self._identity = identity
        self._folder = re.compile(re.escape(data_root.rstrip("/")) + r"/containers/([0-9a-f]{64})")
        self._unknown: dict[str, int] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._names = ThreadPoolExecutor(1, thread_name_prefix="names")
        self._configurations = ThreadPoolExecutor(1, thread_name_prefix="configurations")
        self._asked: list[Future[list[Container]]] = []
        self._inspected: dict[Future[Container | None], _Inspect] = {}
        self._found: list[Container] = []

    def watch(self, batch: EventBatch) -> None:
        """Note new containers; ask for them once dockerd has answered somebody."""
        for text in self._mentioned(batch):
            if text not in self._known:
                self._unknown.setdefault(text, 0)
        if np.any(batch.rows["kind"] == Kind.API_RESPONSE):
            self._ask()

    def _mentioned(self, batch: EventBatch) -> Iterator[str]:
        rows = batch.rows[_NAMES_CONTAINERS[batch.rows["kind"]]]
        for kind, index in dict.fromkeys(zip(rows["kind"].tolist(), rows["path"].tolist(), strict=True)):
            text = batch.strings[index]
            match = self._folder.fullmatch(text) if kind in _DIRECTORIES else _REQUEST.match(text)
            if match:
                yield match[1]

    def _ask(self) -> None:
        if self._unknown:
            self._asked.append(self._names.submit(self._identity.names_of, list(self._unknown)))
            self._unknown = {text: tries + 1 for text, tries in self._unknown.items() if tries + 1 < _TRIES}

    def advance(self) -> None:
        """Ask for the configurations of those whose names have become known, before they may be gone."""
        named, self._asked = _done(self._asked)
        for container in (container for future in named for container in future.result()):
            if container.id in self._known:
                continue
            self._remember(container)
            self._found.append(container)
            if self._wants_configurations and len(self._inspected) < _WAITING:
                self._inspect(_Inspect(container.id))

    def take(self) -> list[Container]:
        """What has become known since the last call: a container's names first, all of it later."""
        self.advance()
        found, self._found = self._found, []
        return found + self._configured()

    def _inspect(self, inspect: _Inspect) -> None:
        self._inspected[self._configurations.submit(self._identity.inspect, inspect.container_id)] = inspect

    def _configured(self) -> list[Container]:
        """Containers whose configuration has become known; who was not answered waits in line again."""
        found = []
        for future in _done(self._inspected)[0]:
            inspect, container = self._inspected.pop(future), future.result()
            if container is not None and container.image:
                found.append(container)
            elif container is None and inspect.number < _INSPECTS:
                self._inspect(replace(inspect, number=inspect.number + 1))
        return found

    def _remember(self, container: Container) -> None:
        for text in (container.id, container.name):
            self._unknown.pop(text, None)
            self._known[text] = None
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def last(self, timeout_seconds: float) -> list[Container]:
        """Ask for what is still unknown, wait for the answers, at most so long for names and for configurations."""
        self._ask()
        wait(self._asked, timeout_seconds)
        found = self.take()
        deadline = time.monotonic() + timeout_seconds
        while self._inspected and (left := deadline - time.monotonic()) > 0:
            wait(self._inspected, left, FIRST_COMPLETED)
            found += self.take()
        return found

    def close(self) -> None:
        """End the threads; an answer that is on its way is not waited for."""
        self._names.shutdown(wait=False, cancel_futures=True)
        self._configurations.shutdown(wait=False, cancel_futures=True)
        self._identity.close()


@dataclass(frozen=True, slots=True)
class _Inspect:
    """A question for a container's configuration, and how often it has been asked."""

    container_id: str
    number: int = 1


def _done(futures: Iterable[Future[_T]]) -> tuple[list[Future[_T]], list[Future[_T]]]:
    """The futures that are done, and the others."""
    done: list[Future[_T]] = []
    waiting: list[Future[_T]] = []
    for future in futures:
        (done if future.done() else waiting).append(future)
    return done, waiting
