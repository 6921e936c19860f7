# SPDX-License-Identifier: Apache-2.0
"""Everything that a scrape, a page or a probe of readiness shows, at one moment. Immutable: readers need no lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from observe.exporter.tally import Totals
from observe.model import Header, Loss, Run, Usage


@dataclass(frozen=True, slots=True)
class Condition:
    """How the attaching stands."""

    #: Probe → whether it is attached.
    attached: Mapping[str, bool]
    #: One line for people: what stands in the way of attaching; "" while attached.
    obstacle: str = ""
    #: Probe → what it has cost in this session; None if nobody counts.
    usage: Mapping[str, Usage | None] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether an engine is attached to."""
        return any(self.attached.values())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment."""

    wall_time_ns: int
    condition: Condition
    #: Of the last session: what it was attached to; None before the first.
    header: Header | None
    totals: Totals
    #: Over all sessions.
    loss: Loss
    usage: Mapping[str, Usage | None]
    in_flight: Mapping[str, int]
    #: Requests without an answer, as far as they have come; only while somebody looks.
    open_runs: tuple[Run, ...]
    #: The newest first.
    recent: tuple[Run, ...]
    #: Of the last hour, the slowest first.
    slowest: tuple[Run, ...]
    #: What became of slow runs' recordings and of traces: (sink, result) → count.
    deliveries: Mapping[tuple[str, str], int]
    warnings: tuple[str, ...] = ()
