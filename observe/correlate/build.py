# SPDX-License-Identifier: Apache-2.0
"""An operation and its events become a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from observe.correlate.accounting import Partition, count_events
from observe.correlate.operation import Operation
from observe.correlate.rows import Row
from observe.correlate.rules import Rules
from observe.correlate.spans import Walk, missing, walk
from observe.model import Container, Departure, Evidence, Kind, Run, Span

_FIRST_FAILURE = 400
_NOT_MODIFIED = 304


def build_run(
    operation: Operation,
    rules: Rules,
    role: Callable[[int], str],
    container: Container | None,
    wall_offset_ns: int,
    *,
    goroutines: bool,
) -> Run:
    """The run of an operation that has ended, or was cut off by the end of the recording.

    `wall_offset_ns`: epoch minus boot clock; `goroutines`: whether the g register can be trusted to say which
    of dockerd's events are on the request's own goroutine.
    """
    rows = sorted(operation.rows)
    end_ns = operation.end_ns
    if end_ns is None or operation.status is None:
        end_ns = max((row.end_ns for row in rows), default=operation.start_ns)
    bounds = (operation.start_ns, max(end_ns, operation.start_ns))
    failed = operation.status is None or operation.status >= _FIRST_FAILURE

    def on_request(row: Row) -> bool | None:
        return row.goroutine == operation.goroutine if goroutines else None

    # Evidence is what the kernel timed; file events carry the reader's time, and their calls are here anyway.
    found = walk([row for row in rows if row.kind != Kind.INOTIFY], rules, bounds, role, on_request, failed=failed)
    departures = list(found.departures)
    if not failed and operation.status != _NOT_MODIFIED:
        departures += missing(rules, found)
    spans = phase_rows(rules, found, rows, bounds)
    return Run(
        operation=operation.name,
        container_id=operation.container_id,
        container_name=(container.name if container else "") or _invented_name(operation) or None,
        image=container.image if container and container.image else None,
        network=container.network if container and container.network else None,
        outcome=_outcome(operation),
        error=_error(operation),
        start_ns=operation.start_ns,
        wall_time_ns=operation.start_ns + wall_offset_ns,
        duration_ns=bounds[1] - bounds[0],
        unattributed_ns=spans[0].self_ns or 0,
        departures=_in_order(departures, rules),
        phases=spans,
        configuration=container.configuration if container else {},
    )


def phase_rows(rules: Rules, found: Walk, rows: Sequence[Row], bounds: tuple[int, int]) -> tuple[Span, ...]:
    """One span a documented phase, seen or not; the first is the operation itself."""
    partition = Partition(rules.phases, found.spans, bounds)
    self_ns = partition.self_ns()
    syscalls, file_events = count_events(rows, partition, found)
    spans = []
    for number, phase in enumerate(rules.phases):
        seen = found.spans.get(number)
        start, end = (seen.start_ns, seen.end_ns) if seen else bounds if number == 0 else (None, None)
        spans.append(
            Span(
                id=phase.id,
                parent=phase.parent,
                step=phase.step,
                start_ns=start,
                duration_ns=None if start is None or end is None else end - start,
                self_ns=None if start is None else self_ns.get(number, 0),
                evidence=Evidence.NONE if start is None else Evidence.KERNEL,
                syscalls=syscalls.get(number, 0),
                file_events=file_events.get(number, 0),
            )
        )
    return tuple(spans)


def _invented_name(operation: Operation) -> str:
    """The name the user gave, unless it is an id."""
    reference = operation.reference
    return "" if operation.container_id and operation.container_id.startswith(reference) else reference


def _outcome(operation: Operation) -> str:
    if operation.status is None:
        return "unfinished"
    return "failed" if operation.status >= _FIRST_FAILURE else "ok"


def _error(operation: Operation) -> str | None:
    if operation.status is None:
        return "no answer was seen"
    if operation.status >= _FIRST_FAILURE:
        return f"dockerd answered {operation.status}"
    if operation.status == _NOT_MODIFIED:
        return "nothing to do: dockerd answered 304"
    return None


def _in_order(departures: Sequence[Departure], rules: Rules) -> tuple[Departure, ...]:
    numbers = {phase.id: number for number, phase in enumerate(rules.phases)}
    return tuple(sorted(departures, key=lambda departure: numbers[departure.phase]))
