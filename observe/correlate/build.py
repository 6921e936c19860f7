# SPDX-License-Identifier: Apache-2.0
"""An operation and its events become a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from observe.correlate.accounting import Partition, by_phase, count_events
from observe.correlate.descriptors import with_names
from observe.correlate.frames import Frame, frames_of
from observe.correlate.functions import Pieces, pieces_of
from observe.correlate.operation import Operation
from observe.correlate.rows import Row
from observe.correlate.rules import Rules
from observe.correlate.spans import PhaseSpan, Walk, missing, walk
from observe.correlate.why import SchedulerEvents, Witnesses, explain
from observe.model import Container, Departure, Evidence, FunctionCall, Kind, Run, Span
from observe.phases.causes import load_causes

_FIRST_FAILURE = 400


@dataclass(slots=True)
class Functions:
    """What was probed: number → symbol; and what a hit costs the one that is hit."""

    names: dict[int, str] = field(default_factory=dict)
    entry_cost_ns: int = 0
    return_cost_ns: int = 0


_NOT_MODIFIED = 304


def build_run(
    operation: Operation,
    rules: Rules,
    role: Callable[[int], str],
    container: Container | None,
    wall_offset_ns: int,
    *,
    goroutines: bool,
    functions: Functions,
    keep_events: bool = False,
    scheduler: SchedulerEvents | None = None,
    machine: str = "",
    engine_version: str = "",
) -> Run:
    """The run of an operation that has ended, or was cut off by the end of the recording.

    `wall_offset_ns`: epoch minus boot clock; `goroutines`: whether the g register can be trusted to say which
    of dockerd's events are on the request's own goroutine; `functions`: which were probed, and what that cost;
    `keep_events`: whether the run brings its events along; `scheduler`: asked for what the time was spent on, on a
    machine (`uname -m`) and an engine of this version.
    """
    rows = with_names(sorted(operation.rows))
    end_ns = operation.end_ns
    if end_ns is None or operation.status is None:
        end_ns = max((row.end_ns for row in rows), default=operation.start_ns)
    bounds = (operation.start_ns, max(end_ns, operation.start_ns))
    failed = operation.status is None or operation.status >= _FIRST_FAILURE

    def on_request(row: Row) -> bool | None:
        return row.goroutine == operation.goroutine if goroutines else None

    # Evidence is what the kernel timed; file events carry the reader's time, and their calls are here anyway.
    found = walk([row for row in rows if row.kind != Kind.INOTIFY], rules, bounds, role, on_request, failed=failed)
    frames = frames_of(rows, functions.names, bounds[1])

    def elsewhere(frame: Frame) -> bool:
        own = operation.goroutine if goroutines else operation.handler
        return role(frame.pid) == "dockerd" and own not in {0, frame.goroutine}

    programs = {number: (span.start_ns, span.end_ns) for number, span in found.spans.items() if span.processes}
    pieces = pieces_of(frames, rules.functions, bounds, elsewhere, programs, failed=failed)
    departures = use_functions(found, pieces, rules)
    if not failed and operation.status != _NOT_MODIFIED:
        departures += missing(rules, found, functions.names.values(), container.network if container else "")
    partition = Partition(rules.phases, found.spans, bounds)
    spans = phase_rows(rules, found, rows, bounds, functions)
    waits = scheduler.between(*bounds) if scheduler else []
    why = explain(
        Witnesses(
            rows=rows,
            scheduler=waits,
            bounds=bounds,
            request_tid=operation.tid,
            answer_tid=operation.answer_tid,
            role=role,
            on_request=lambda row: role(row.pid) == "dockerd" and bool(on_request(row) or _is_handled(operation, row)),
            phases={
                span.id: found.spans[number].intervals if number else (bounds,)
                for number, span in enumerate(spans)
                if not number or number in found.spans
            },
            phase_at=lambda time_ns: rules.phases[partition.phase_at(time_ns)].id,
            cuts=partition.cuts,
            machine=machine,
        ),
        load_causes(),
        engine_version,
    )
    if why is not None:
        spans = tuple(replace(span, time=why.times.get(span.id)) for span in spans)
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
        causes=why.causes if why else (),
        path=why.path if why else (),
        functions=tuple(FunctionCall(f.function, f.pid, f.start_ns, f.end_ns - f.start_ns, f.complete) for f in frames),
        events=tuple(
            (rules.phases[phase].id, row.event())
            for phase, row in (by_phase(rows, partition, found) if keep_events else ())
        ),
    )


def _is_handled(operation: Operation, row: Row) -> bool:
    """Whether a function ran on the goroutine of the request's handler (Go < 1.17)."""
    return row.kind in (Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN) and row.goroutine == operation.handler


def use_functions(found: Walk, pieces: Pieces, rules: Rules) -> list[Departure]:
    """Let functions bound the phases whose functions ran; the departures on the evidence that then stands."""
    for phase, intervals in pieces.by_phase.items():
        seen = found.spans.get(phase)
        processes = seen.processes if seen else frozenset()
        found.spans[phase] = PhaseSpan(intervals[0][0], intervals[-1][1], processes, tuple(intervals))
    _cover_children(found, pieces, rules)
    names = {rules.phases[phase].id for phase in pieces.by_phase}
    kernel = [departure for departure in found.departures if departure.phase not in names]
    return [*pieces.departures, *kernel]


def _cover_children(found: Walk, pieces: Pieces, rules: Rules) -> None:
    """A phase without a function of its own that ran lasts as long as its children at least."""
    parents = rules.functions.parents
    for parent in sorted({*parents} - {0, *pieces.by_phase}, key=lambda number: -rules.phases[number].depth):
        children = [span for number, span in found.spans.items() if number and parents[number] == parent]
        if not children:
            continue
        start_ns = min(span.start_ns for span in children)
        end_ns = max(span.end_ns for span in children)
        if parent in found.spans:
            found.spans[parent].cover(start_ns, end_ns)
        else:
            by_functions = ((start_ns, end_ns),)  # kernel evidence of a child would have shown the parent before
            found.spans[parent] = PhaseSpan(start_ns, end_ns, pieces=by_functions)


def phase_rows(
    rules: Rules, found: Walk, rows: Sequence[Row], bounds: tuple[int, int], functions: Functions
) -> tuple[Span, ...]:
    """One span a documented phase, seen or not; the first is the operation itself."""
    partition = Partition(rules.phases, found.spans, bounds)
    self_ns = partition.self_ns()
    counts = count_events(rows, partition, found)
    handled = any(
        0 in rules.functions.phases_of(functions.names.get(row.flags, ""))
        for row in rows
        if row.kind == Kind.FUNCTION_ENTRY
    )
    spans = []
    for number, phase in enumerate(rules.phases):
        seen = found.spans.get(number)
        if number == 0:
            seen = PhaseSpan(*bounds, pieces=(bounds,) if handled else ())
        own_ns = self_ns.get(number, 0)
        cost_ns = counts.entries[number] * functions.entry_cost_ns + counts.returns[number] * functions.return_cost_ns
        spans.append(
            Span(
                id=phase.id,
                parent=phase.parent,
                step=phase.step,
                start_ns=seen.start_ns if seen else None,
                duration_ns=seen.duration_ns if seen else None,
                self_ns=own_ns if seen else None,
                evidence=(Evidence.FUNCTION if seen.pieces else Evidence.KERNEL) if seen else Evidence.NONE,
                syscalls=counts.syscalls[number],
                file_events=counts.file_events[number],
                probe_hits=counts.entries[number] + counts.returns[number],
                pieces=tuple((start, end - start) for start, end in seen.pieces)
                if seen and len(seen.pieces) > 1
                else (),
                corrected_self_ns=max(own_ns - cost_ns, 0) if seen and functions.names else None,
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
