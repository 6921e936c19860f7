# SPDX-License-Identifier: Apache-2.0
"""The scheduler's events of a stream, put aside until an operation asks for those of its time.

They are many, and mean something only together: no other part of the correlator looks at them.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from observe.correlate.rows import Row, rows_of
from observe.model import SCHEDULER, EventBatch, table_of_kinds

#: They are read a moment later than an operation's request may be: so much is kept though no operation is open.
_KEPT_NS = 2_000_000_000
_OURS = table_of_kinds(SCHEDULER)


class SchedulerEvents:
    """Bounded by the time that open operations cover."""

    def __init__(self, *, keep: bool) -> None:
        """`keep`: somebody will ask for them."""
        self._keep = keep
        #: Whether there were any.
        self.seen = False
        self._batches: deque[EventBatch] = deque()

    def take(self, batch: EventBatch) -> EventBatch:
        """Put the scheduler's events of a batch aside; the rest of it."""
        ours = _OURS[batch.rows["kind"]]
        if not ours.any():
            return batch
        self.seen = True
        if self._keep:
            self._batches.append(EventBatch(batch.rows.compress(ours), batch.strings))
        return EventBatch(batch.rows.compress(~ours), batch.strings)

    def between(self, start_ns: int, end_ns: int) -> list[Row]:
        """Those of a time, in order of time."""
        found: list[Row] = []
        for batch in self._batches:
            times = batch.rows["time_ns"]
            inside = (times >= start_ns) & (times <= end_ns)
            if inside.any():
                found += rows_of(batch, np.flatnonzero(inside))
        return sorted(found, key=lambda row: row.time_ns)

    def forget(self, before_ns: int) -> None:
        """No operation that is open, or may still turn up, began before."""
        while self._batches and int(self._batches[0].rows["time_ns"].max()) < before_ns - _KEPT_NS:
            self._batches.popleft()
