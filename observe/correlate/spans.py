# SPDX-License-Identifier: Apache-2.0
"""Which phase was when: an operation's events against the documented order, on kernel evidence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from observe.correlate.rows import columns_of, made_by, rows_of
from observe.correlate.rules import Candidates, ProgramRule, Rules
from observe.model import Departure, DepartureKind, EventBatch, Kind, Mark

_ENTRYPOINT = int(Mark.ENTRYPOINT)


@dataclass(slots=True)
class PhaseSpan:
    """Bounds of a phase; `processes` are those of its program's tree, if it is a program.

    `pieces`: when its functions ran, if they bound it; else it is one piece, on the kernel's evidence.
    """

    start_ns: int
    end_ns: int
    processes: frozenset[int] = frozenset()
    pieces: tuple[tuple[int, int], ...] = ()

    @property
    def intervals(self) -> tuple[tuple[int, int], ...]:
        """When the phase was: (start_ns, end_ns) in order, not overlapping."""
        return self.pieces or ((self.start_ns, self.end_ns),)

    @property
    def duration_ns(self) -> int:
        """How long its intervals are together."""
        if not self.pieces:
            return self.end_ns - self.start_ns
        return sum(end - start for start, end in self.pieces)

    def cover(self, start_ns: int, end_ns: int) -> None:
        """Grow."""
        self.start_ns = min(self.start_ns, start_ns)
        self.end_ns = max(self.end_ns, end_ns)


@dataclass(slots=True)
class Walk:
    """What walking an operation's events found: spans by phase number, departures in order of discovery."""

    spans: dict[int, PhaseSpan] = field(default_factory=dict)
    departures: list[Departure] = field(default_factory=list)
    #: Phases of each path that evidence named, in order: (time_ns, phase number).
    paths: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Program:
    phase: int
    start_ns: int
    end_ns: int
    processes: frozenset[int]
    many: bool


def walk(
    events: EventBatch,
    rules: Rules,
    bounds: tuple[int, int],
    role: Callable[[int], str],
    on_request: npt.NDArray[np.bool_] | None,
    *,
    failed: bool,
    names: Iterable[str] = (),
) -> Walk:
    """Find the phases of an operation.

    `events`: its own in order of time; `bounds`: its start and end; `role`: of a process; `on_request`: whether
    each event was made by the goroutine that serves the request (what that means of dockerd's), None if nobody knows;
    `failed`: whether phases that occur on failure only count; `names`: of its container, that differ from others'.

    A phase begins when its evidence does, and the documented order decides between phases that share evidence:
    an event belongs to the first phase from the current one on that it speaks for.
    """
    names = tuple(names)
    programs = deque(sorted(_programs(events, rules, bounds, names), key=lambda program: program.start_ns))
    found = _walk_in_order(_witnesses(events, rules, role, on_request, names), programs, rules, bounds, failed=failed)
    _cut_to_last_event(events, rules, found)
    _cover_weakly(events, rules, bounds, role, on_request, found=found, failed=failed)
    _cover_children(rules, found)
    return found


#: An event that speaks for phases: when it began and ended, its path, and for which on the request's goroutine, for
#: which on any other.
_Witness = tuple[int, int, str, Candidates, Candidates]


def _witnesses(
    events: EventBatch,
    rules: Rules,
    role: Callable[[int], str],
    on_request: npt.NDArray[np.bool_] | None,
    names: tuple[str, ...],
) -> Iterator[_Witness]:
    """The events that speak for phases by their paths, as they come."""
    used, paths = np.unique(events.rows["path"], return_inverse=True)
    texts = [events.strings[index] for index in used.tolist()]
    known = [rules.path(text, names) for text in texts]
    speaking = np.flatnonzero(np.array([path.speaks for path in known], dtype=np.bool_)[paths])
    rows = events.rows.take(speaking)
    theirs = [None] * len(rows) if on_request is None else on_request[speaking].tolist()
    columns = (rows[name].tolist() for name in ("time_ns", "duration_ns", "kind", "flags", "pid"))
    numbers = paths[speaking].tolist()
    for number, is_on_request, time_ns, duration_ns, kind, flags, pid in zip(numbers, theirs, *columns, strict=True):
        path = known[number]
        own = role(pid) if pid or kind != Kind.INOTIFY else None
        there, elsewhere = path.candidates(kind, flags, own, is_on_request)
        if there or elsewhere:
            yield time_ns, time_ns + duration_ns, texts[number], there, elsewhere


def _walk_in_order(
    witnesses: Iterable[_Witness], waiting: deque[_Program], rules: Rules, bounds: tuple[int, int], *, failed: bool
) -> Walk:
    """Programs and calls on paths, as they come."""
    found, several = Walk(), rules.several
    current = 0
    for time_ns, end_ns, path, there, elsewhere in witnesses:
        while waiting and waiting[0].start_ns <= time_ns:
            current = _enter_program(waiting.popleft(), current, rules, found)
        candidates: Sequence[int] = there
        if elsewhere:  # what others do for a program proves it only while it runs
            begun = [phase for phase in elsewhere if _has_begun(phase, rules, found)]
            candidates = sorted({*candidates, *begun}) if candidates else begun
        chosen = _choose(candidates if failed else rules.unless_failed(candidates), current)
        if chosen is None:
            continue
        if not several[chosen]:
            if chosen < current and not rules.contains(chosen, current):
                # Another goroutine tells of the container's end too, maybe before the answer to its start.
                if chosen in there:
                    _depart(chosen, rules, found)
                continue
            current = max(current, chosen)
        _cover(found, chosen, max(time_ns, bounds[0]), min(end_ns, bounds[1]))
        found.paths.setdefault(path, []).append((time_ns, chosen))
    for program in waiting:
        current = _enter_program(program, current, rules, found)
    return found


def _has_begun(phase: int, rules: Rules, found: Walk) -> bool:
    """Whether the program that a phase is, or is a part of, has begun; yes if it is no part of any."""
    program = rules.program_of[phase]
    return program is None or program in found.spans


def missing(rules: Rules, found: Walk, functions: Iterable[str] = (), network: str = "") -> list[Departure]:
    """Phases that always occur (in this network mode) and were not seen, though evidence or a function would show them.

    A function without a name of its own proves nothing: it may be another phase's.
    """
    meanings = map(rules.functions.meaning, functions)
    probed = {number for meaning in meanings if not meaning.nameless for number in meaning.phases}
    return [
        Departure(DepartureKind.MISSING, phase.id, f"{phase.id} was not seen")
        for number, phase in enumerate(rules.phases)
        if number and phase.is_due(network) and (phase.evidence or number in probed) and number not in found.spans
    ]


def _choose(candidates: Sequence[int], current: int) -> int | None:
    """The first phase from the current one on; if there is none, the last one before."""
    for phase in candidates:
        if phase >= current:
            return phase
    return candidates[-1] if candidates else None


def _cover(found: Walk, phase: int, start_ns: int, end_ns: int) -> None:
    end_ns = max(start_ns, end_ns)
    span = found.spans.get(phase)
    if span is None:
        found.spans[phase] = PhaseSpan(start_ns, end_ns)
    else:
        span.cover(start_ns, end_ns)


def _cover_weakly(
    events: EventBatch,
    rules: Rules,
    bounds: tuple[int, int],
    role: Callable[[int], str],
    on_request: npt.NDArray[np.bool_] | None,
    *,
    found: Walk,
    failed: bool,
) -> None:
    """Count a call without a path for a phase if it lies between the phases before and after, as far as those are seen.

    A failed operation's own phases, if it did not fail, are not among them.
    """
    weak = np.flatnonzero(rules.weak_kinds[events.rows["kind"]])
    rooms: dict[int, tuple[int, int]] = {}
    for place, row in zip(weak.tolist(), rows_of(events, weak), strict=True):
        is_on_request = on_request is None or bool(on_request[place])
        candidates = rules.weak_candidates(row, role(row.pid), is_on_request)
        for phase in candidates if failed else rules.unless_failed(candidates):
            if phase not in rooms:
                rooms[phase] = _room(phase, rules, bounds, found)
            earliest, latest = rooms[phase]
            if earliest <= row.time_ns and row.end_ns <= latest:
                _cover(found, phase, row.time_ns, row.end_ns)
                rooms = {phase: (earliest, latest)}  # the others' may have become smaller


def _room(phase: int, rules: Rules, bounds: tuple[int, int], found: Walk) -> tuple[int, int]:
    """From the end of the phases before to the start of those after.

    Those that contain it are neither, nor are those that are not bound to one place.
    """
    earliest, latest = bounds
    others = [
        (number, span)
        for number, span in found.spans.items()
        if not rules.several[number] and not rules.contains(number, phase)
    ]
    before = [span.end_ns for number, span in others if number < phase]
    after = [span.start_ns for number, span in others if number > phase]
    return max(before, default=earliest), min(after, default=latest)


def _depart(phase: int, rules: Rules, found: Walk) -> None:
    name = rules.phases[phase].id
    known = phase in found.spans
    kind = DepartureKind.REPEATED if known else DepartureKind.OUT_OF_ORDER
    text = f"{name} again, after later phases had begun" if known else f"{name} after phases that come later"
    departure = Departure(kind, name, text)
    if departure not in found.departures:
        found.departures.append(departure)


def _programs(events: EventBatch, rules: Rules, bounds: tuple[int, int], names: tuple[str, ...]) -> list[_Program]:
    kinds = events.rows["kind"]

    def all_of(kind: Kind, *names: str) -> Iterator[tuple[Any, ...]]:
        return columns_of(events, np.flatnonzero(kinds == kind), *names)

    forks = list(all_of(Kind.SCHED_PROCESS_FORK, "ret", "pid", "time_ns"))
    parents = {child: parent for child, parent, _ in forks}
    births = {child: time_ns for child, _, time_ns in forks}
    deaths = dict(all_of(Kind.SCHED_PROCESS_EXIT, "pid", "time_ns"))
    programs: list[_Program] = []
    for time_ns, pid, path, detail, marks in all_of(
        Kind.SCHED_PROCESS_EXEC, "time_ns", "pid", "path", "detail", "marks"
    ):
        rule = None if marks & _ENTRYPOINT else rules.program(path, detail, names)
        if rule is None or any((p.phase == rule.phase or rule.evidence.many) and pid in p.processes for p in programs):
            continue  # no phase, a wrapper's child (the wrapper's span covers it), or a helper of another program
        programs.append(
            _Program(
                rule.phase,
                max(births.get(pid, time_ns), bounds[0]),
                min(deaths.get(pid, bounds[1]), bounds[1]),
                _tree(pid, parents),
                rule.evidence.many,
            )
        )
    return programs


def _tree(root: int, parents: dict[int, int]) -> frozenset[int]:
    tree = {root}
    for child, parent in parents.items():  # in order of birth: parents come first
        if parent in tree:
            tree.add(child)
    return frozenset(tree)


def _enter_program(program: _Program, current: int, rules: Rules, found: Walk) -> int:
    """Take a program's span; the phase that is current now."""
    phase = program.phase
    span = found.spans.get(phase)
    again = span is not None and bool(span.processes)
    several = rules.several[phase]
    late = phase < current and span is None and not several and not rules.contains(phase, current)
    if (again or late) and not program.many:
        _depart(phase, rules, found)
    if span is None:
        found.spans[phase] = PhaseSpan(program.start_ns, program.end_ns, program.processes)
    else:
        span.cover(program.start_ns, program.end_ns)
        span.processes |= program.processes
    return current if several else max(current, phase)


def _cut_to_last_event(events: EventBatch, rules: Rules, found: Walk) -> None:
    for rule in rules.programs:
        span = found.spans.get(rule.phase)
        if span is None or rule.evidence.until != "last_event":
            continue
        limit = _parent_end(rule, rules, found)
        times_ns, durations_ns = events.rows["time_ns"], events.rows["duration_ns"]
        own = made_by(events, span.processes) & (times_ns >= span.start_ns) & (times_ns < limit)
        last = int((times_ns + durations_ns)[own].max()) if own.any() else span.start_ns
        span.end_ns = min(last, limit)


def _parent_end(rule: ProgramRule, rules: Rules, found: Walk) -> int:
    number = rules.functions.parents[rule.phase]
    return found.spans[number].end_ns if number in found.spans else found.spans[rule.phase].end_ns


def _cover_children(rules: Rules, found: Walk) -> None:
    for number in sorted(found.spans, key=lambda n: -rules.phases[n].depth):
        parent = rules.functions.parents[number]
        if parent:
            span = found.spans[number]
            _cover(found, parent, span.start_ns, span.end_ns)
