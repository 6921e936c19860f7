# SPDX-License-Identifier: Apache-2.0
"""Runs of a log recorded elsewhere: file events in order, without times, processes or requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from observe.correlate.accounting import NO_PHASE, Partition, count_events, innermost
from observe.correlate.build import Functions, phase_rows
from observe.correlate.names import container_in
from observe.correlate.rows import Row, rows_of
from observe.correlate.rules import Rules
from observe.correlate.spans import walk
from observe.model import EventBatch, Kind, Run


def imported_runs(
    batch: EventBatch, rules: Mapping[str, Rules], wall_time_ns: int, *, keep_events: bool = False
) -> tuple[list[Run], int]:
    """Runs in order, and how many events fall into no documented phase.

    `wall_time_ns`: epoch of the log, 0 if unknown; `keep_events`: whether runs bring their events along.

    An operation lasts as long as its phases explain the events; of the operations that explain the next event,
    the one that goes on longest without leaving the documented order is meant.
    """
    batch = EventBatch(batch.rows[batch.rows["kind"] == Kind.INOTIFY], batch.strings)
    rows = list(rows_of(batch))
    runs: list[Run] = []
    unmatched = at = 0
    while at < len(rows):
        lengths = {name: _explained(rows, at, rule) for name, rule in rules.items()}
        name = max(lengths, key=lambda name: lengths[name])
        if not lengths[name]:
            unmatched += 1
            at += 1
            continue
        end = at + lengths[name]
        run = _run(name, EventBatch(batch.rows[at:end], batch.strings), rules[name], wall_time_ns, keep_events)
        runs.append(run)
        at = end
    return runs, unmatched


def _explained(rows: Sequence[Row], at: int, rules: Rules) -> int:
    """Number of events from number `at` on that the operation's phases explain in documented order."""
    current = length = 0
    for row in islice(rows, at, None):
        ahead = [phase for phase in rules.candidates(row, "", on_request_goroutine=True) if phase >= current]
        if not ahead:
            break
        current = ahead[0]
        length += 1
    return length


def _run(name: str, events: EventBatch, rules: Rules, wall_time_ns: int, keep_events: bool) -> Run:
    rows = list(rows_of(events))
    bounds = (rows[0].time_ns, rows[-1].time_ns + 1)
    seen = walk(events, rules, bounds, lambda _pid: "", np.ones(len(events), dtype=np.bool_), failed=False)
    partition = Partition(rules.phases, seen.spans, bounds)
    phases = innermost(events, partition, seen)
    counts = count_events(events, phases)
    container_id = next((found for row in rows if (found := container_in(row.path))), None)
    return Run(
        operation=name,
        container_id=container_id,
        container_name=None,
        image=None,
        network=None,
        outcome="ok",
        error=None,
        start_ns=bounds[0],
        wall_time_ns=wall_time_ns,
        duration_ns=0,
        unattributed_ns=0,
        departures=tuple(seen.departures),
        phases=phase_rows(rules, seen, events, partition, counts=counts, functions=Functions()),
        events=tuple(
            (rules.phases[phase].id, row.event())
            for phase, row in (zip(phases.tolist(), rows, strict=True) if keep_events else ())
            if phase != NO_PHASE
        ),
    )
