# SPDX-License-Identifier: Apache-2.0
"""The processes that made the events of one batch, and from which event on each one's container is known."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: In place of a container's number: none.
NOBODY = -1


class Processes:
    """Which process made which event."""

    def __init__(self, pids: npt.NDArray[np.uint32]) -> None:
        """`pids`: process of each event, shape (n,)."""
        unique, self.index = np.unique(pids, return_inverse=True)
        #: Each process once; `index` is the place in it of each event's process.
        self.pids: list[int] = unique.tolist()

    def each(self, values: Sequence[bool]) -> npt.NDArray[np.bool_]:
        """For each event the value of its process; `values` in the order of `pids`."""
        return np.array(values, dtype=np.bool_)[self.index]


class Works:
    """For whom each process works: known from one of its events on, until it ends."""

    def __init__(self, processes: Processes, which: npt.NDArray[np.bool_], containers: npt.NDArray[np.int64]) -> None:
        """`which`: the events that this is about; `containers`: number of each event's container, to be filled in."""
        self._processes, self._which, self._containers = processes, which, containers
        self._index_of = {pid: index for index, pid in enumerate(processes.pids)}
        self._places: list[list[int]] = [[] for _ in processes.pids]
        places = np.flatnonzero(which)
        for place, index in zip(places.tolist(), processes.index[places].tolist(), strict=True):
            self._places[index].append(place)
        #: Place of a process in `pids` → the container (by number) that it is known to work for, and since which event.
        self._known: dict[int, tuple[int, int]] = {}

    def first_places(self) -> list[int]:
        """The first event of each process."""
        return [places[0] for places in self._places if places]

    def place_after(self, place: int, pid: int) -> int | None:
        """The next event of a process after a place, if it has any."""
        index = self._index_of.get(pid)
        if index is None:
            return None
        places = self._places[index]
        at = bisect_right(places, place)
        return places[at] if at < len(places) else None

    def is_known(self, pid: int) -> bool:
        """Whether it is known now for whom a process works."""
        return self._index_of[pid] in self._known

    def begin(self, pid: int, place: int, container: int) -> None:
        """From this place on a process is known to work for a container (by number)."""
        self._known[self._index_of[pid]] = container, place

    def end(self, pid: int, place: int) -> None:
        """After this place it is not known any more."""
        index = self._index_of.get(pid)
        if index in self._known:
            container, since = self._known.pop(index)
            self._containers[self._between(index, since, place + 1)] = container

    def settle(self, start: int, end: int) -> None:
        """Fill in the containers of the events from place `start` to `end`, as far as they are known."""
        for index, (container, since) in self._known.items():
            own = self._between(index, max(start, since), end)
            if own:
                self._containers[own] = container

    def _between(self, index: int, start: int, end: int) -> list[int]:
        """The events of a process from place `start` to `end`."""
        places = self._places[index]
        return places[bisect_left(places, start) : bisect_left(places, end)]
