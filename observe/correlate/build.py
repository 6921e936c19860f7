# SPDX-License-Identifier: Apache-2.0
"""An operation and its events become a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from observe.correlate.accounting import NO_PHASE, Counts, Partition, count_events, innermost
from observe.correlate.descriptors import with_names
from observe.correlate.frames import Frame, frames_of
from observe.correlate.functions import Pieces, pieces_of
from observe.correlate.operation import Operation
from observe.correlate.rows import in_time_order, rows_of
from observe.correlate.rules import Rules
from observe.correlate.spans import PhaseSpan, Walk, missing, walk
from observe.correlate.why import Explainer, Witnesses
from observe.model import Calls, Container, Departure, EventBatch, Evidence, FunctionCall, Kind, Run, Span

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
    explainer: Explainer | None = None,
    now_ns: int | None = None,
) -> Run:
    """The run of an operation that has ended, or was cut off by the end of the recording, or (`now_ns`) still goes on.

    `wall_offset_ns`: epoch minus boot clock; `goroutines`: whether the g register can be trusted to say which
    of dockerd's events are on the request's own goroutine; `functions`: which were probed, and what that cost;
    `keep_events`: whether the run brings its events along; `explainer`: asked for what the time was spent on.
    """
    events = with_names(in_time_order(operation.events()))
    rows = events.rows
    end_ns = operation.end_ns
    if end_ns is None or operation.status is None:
        last_ns = int((rows["time_ns"] + rows["duration_ns"]).max()) if len(events) else operation.start_ns
        end_ns = last_ns if now_ns is None else max(now_ns, last_ns)
    bounds = (operation.start_ns, max(end_ns, operation.start_ns))
    failed = operation.status is None or operation.status >= _FIRST_FAILURE
    # Evidence is what the kernel timed; file events carry the reader's time, and their calls are here anyway.
    timed = EventBatch(rows.compress(rows["kind"] != Kind.INOTIFY), events.strings)
    on_request = timed.rows["goroutine"] == operation.goroutine if goroutines else None
    found = walk(timed, rules, bounds, role, on_request, failed=failed, names=_names(operation, container))
    frames = frames_of(timed, functions.names, bounds[1])

    def elsewhere(frame: Frame) -> bool:
        own = operation.goroutine if goroutines else operation.handler
        return role(frame.pid) == "dockerd" and own not in {0, frame.goroutine}

    programs = {number: (span.start_ns, span.end_ns) for number, span in found.spans.items() if span.processes}
    pieces = pieces_of(frames, rules.functions, bounds, elsewhere, programs, failed=failed)
    departures = use_functions(found, pieces, rules, functions.names.values())
    if not failed and operation.status != _NOT_MODIFIED:
        departures += missing(rules, found, functions.names.values(), container.network if container else "")
    partition = Partition(rules.phases, found.spans, bounds)
    phases = innermost(events, partition, found)
    counts = count_events(events, phases)
    spans = phase_rows(rules, found, events, partition, counts=counts, functions=functions)
    why = None
    if explainer is not None:
        mine = events.rows["goroutine"] == operation.goroutine if goroutines else None
        why = explainer.explain(
            _witnesses(operation, events, mine=mine, rules=rules, found=found, partition=partition, role=role)
        )
        spans = tuple(replace(span, time=why.times.get(span.id)) for span in spans) if why else spans
    return Run(
        operation=operation.name,
        container_id=operation.container_id,
        container_name=(container.name if container else "") or _invented_name(operation) or None,
        image=container.image if container and container.image else None,
        network=container.network if container and container.network else None,
        outcome=_outcome(operation),
        error=_error(operation) if now_ns is None else "no answer yet",
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
        calls=tuple(Calls(rules.phases[phase].id, kind, count, ns) for phase, kind, count, ns in counts.calls),
        events=tuple(
            (rules.phases[phase].id, row.event())
            for phase, row in (zip(phases.tolist(), rows_of(events), strict=True) if keep_events else ())
            if phase != NO_PHASE
        ),
    )


def _names(operation: Operation, container: Container | None) -> tuple[str, ...]:
    """What paths of this container's have in them where those of another have something else."""
    return tuple(filter(None, (operation.container_id, operation.layer or (container.layer if container else None))))


def _witnesses(
    operation: Operation,
    events: EventBatch,
    *,
    mine: npt.NDArray[np.bool_] | None,
    rules: Rules,
    found: Walk,
    partition: Partition,
    role: Callable[[int], str],
) -> Witnesses:
    """What the explanation of an operation is asked of; `mine`: which events are on the request's own goroutine."""
    rows = list(rows_of(events))
    served = [False] * len(rows) if mine is None else mine.tolist()
    if mine is None and operation.handler:  # only functions tell their goroutine
        functions = (Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN)
        served = [row.kind in functions and row.goroutine == operation.handler for row in rows]
    spans = [(number, found.spans[number]) for number in sorted(found.spans) if number]
    return Witnesses(
        rows=rows,
        served=[one and role(row.pid) == "dockerd" for one, row in zip(served, rows, strict=True)],
        bounds=partition.bounds,
        request_tid=operation.tid,
        answer_tid=operation.answer_tid,
        role=role,
        phases={
            rules.phases[0].id: (partition.bounds,),
            **{rules.phases[number].id: span.intervals for number, span in spans},
        },
        phase_at=lambda time_ns: rules.phases[partition.phase_at(time_ns)].id,
        cuts=partition.cuts,
    )


def use_functions(found: Walk, pieces: Pieces, rules: Rules, probed: Iterable[str] = ()) -> list[Departure]:
    """Let functions bound the phases whose functions ran; the departures on the evidence that then stands.

    `probed`: all functions; a phase whose functions did not run, and that has no other span, did not happen.
    """
    for phase, intervals in pieces.by_phase.items():
        seen = found.spans.get(phase)
        processes = seen.processes if seen else frozenset()
        found.spans[phase] = PhaseSpan(intervals[0][0], intervals[-1][1], processes, tuple(intervals))
    _cover_children(found, pieces, rules)
    if not found.departures:
        return pieces.departures
    refuted = {number for name in probed for number in rules.functions.phases_of(name)} - found.spans.keys()
    names = {rules.phases[phase].id for phase in (*pieces.by_phase, *refuted)}
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
    rules: Rules,
    found: Walk,
    events: EventBatch,
    partition: Partition,
    *,
    counts: Counts,
    functions: Functions,
) -> tuple[Span, ...]:
    """One span a documented phase, seen or not; the first is the operation itself.

    `counts`: of the events, by innermost phase.
    """
    self_ns = partition.self_ns()
    entered = events.rows["flags"][events.rows["kind"] == Kind.FUNCTION_ENTRY].tolist() if counts.entries else ()
    handled = any(0 in rules.functions.phases_of(functions.names.get(number, "")) for number in {*entered})
    seen = {**found.spans, 0: PhaseSpan(*partition.bounds, pieces=(partition.bounds,) if handled else ())}
    spans = list(rules.unseen)
    for number, span in seen.items():
        phase = rules.phases[number]
        entries, returns = counts.entries.get(number, 0), counts.returns.get(number, 0)
        own_ns = self_ns.get(number, 0)
        cost_ns = entries * functions.entry_cost_ns + returns * functions.return_cost_ns
        spans[number] = Span(
            phase.id,
            phase.parent,
            phase.step,
            span.start_ns,
            span.duration_ns,
            own_ns,
            Evidence.FUNCTION if span.pieces else Evidence.KERNEL,
            counts.syscalls.get(number, 0),
            counts.file_events.get(number, 0),
            entries + returns,
            max(own_ns - cost_ns, 0) if functions.names else None,
            tuple((start, end - start) for start, end in span.pieces) if len(span.pieces) > 1 else (),
        )
    for number in counts.file_events.keys() - seen.keys():  # on the word of its path
        spans[number] = replace(spans[number], file_events=counts.file_events[number])
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
