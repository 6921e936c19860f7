# SPDX-License-Identifier: Apache-2.0
"""The processes that made the events of one batch, and from which event on each one's container is known."""

from __future__ import annotations

from bisect import bisect_right
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
        self._known = [NOBODY] * len(processes.pids)
        self._since = [0] * len(processes.pids)

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
        return self._known[self._index_of[pid]] != NOBODY

    def begin(self, pid: int, place: int, container: int) -> None:
        """From this place on a process is known to work for a container (by number)."""
        index = self._index_of[pid]
        self._known[index], self._since[index] = container, place

    def end(self, pid: int, place: int) -> None:
        """After this place it is not known any more."""
        index = self._index_of.get(pid)
        if index is not None and self._known[index] != NOBODY:
            places = self._places[index]
            own = places[bisect_right(places, self._since[index] - 1) : bisect_right(places, place)]
            self._containers[own] = self._known[index]
            self._known[index] = NOBODY

    def settle(self, start: int, end: int) -> None:
        """Fill in the containers of the events from place `start` to `end`, as far as they are known."""
        index = self._processes.index[start:end]
        known, since = np.array(self._known)[index], np.array(self._since)[index]
        own = self._which[start:end] & (known != NOBODY) & (np.arange(start, end) >= since)
        self._containers[start:end][own] = known[own]
