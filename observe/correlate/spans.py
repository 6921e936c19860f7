# SPDX-License-Identifier: Apache-2.0
"""Which phase was when: an operation's events against the documented order, on kernel evidence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from observe.correlate.functions import is_nameless
from observe.correlate.rows import Row
from observe.correlate.rules import ProgramRule, Rules
from observe.model import Departure, DepartureKind, Kind, Mark


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
        return sum(end - start for start, end in self.intervals)

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


class _Witness(NamedTuple):
    """An event, the role of its process, and whether the goroutine that serves the request made it (None: unknown)."""

    row: Row
    role: str
    on_request: bool | None


@dataclass(frozen=True, slots=True)
class _Program:
    phase: int
    start_ns: int
    end_ns: int
    processes: frozenset[int]
    many: bool


def walk(
    rows: Sequence[Row],
    rules: Rules,
    bounds: tuple[int, int],
    role: Callable[[int], str],
    on_request: Callable[[Row], bool | None],
    *,
    failed: bool,
) -> Walk:
    """Find the phases of an operation.

    `rows`: its events in order of time; `bounds`: its start and end; `role`: of a process; `on_request`: whether
    an event of dockerd was made by the goroutine that serves the request, None if nobody knows; `failed`: whether
    phases that occur on failure only count.

    A phase begins when its evidence does, and the documented order decides between phases that share evidence:
    an event belongs to the first phase from the current one on that it speaks for.
    """
    witnesses = [_Witness(row, role(row.pid), on_request(row)) for row in rows]
    programs = deque(sorted(_programs(rows, rules, bounds), key=lambda program: program.start_ns))
    found = _walk_in_order(witnesses, programs, rules, bounds, failed=failed)
    _cut_to_last_event(rows, rules, found)
    for one in witnesses:
        candidates = rules.weak_candidates(one.row, one.role, one.on_request is not False)
        for phase in _possible(candidates, rules, failed=failed):
            _cover_weakly(found, phase, one.row, rules, bounds)
    _cover_children(rules, found)
    return found


def _walk_in_order(
    witnesses: Sequence[_Witness], waiting: deque[_Program], rules: Rules, bounds: tuple[int, int], *, failed: bool
) -> Walk:
    """Programs and calls on paths, as they come."""
    found = Walk()
    of_programs = {rule.phase for rule in rules.programs}
    current = 0
    for one in witnesses:
        row = one.row
        while waiting and waiting[0].start_ns <= row.time_ns:
            current = _enter_program(waiting.popleft(), current, rules, found)
        candidates = rules.candidates(row, one.role, True) if one.on_request is not False else []
        if not one.on_request:  # what others do for a program proves it only while it runs
            others = rules.candidates(row, one.role, False)
            begun = [phase for phase in others if _has_begun(phase, of_programs, rules, found)]
            candidates = sorted({*candidates, *begun})
        chosen = _choose(_possible(candidates, rules, failed=failed), current)
        if chosen is None:
            continue
        if not rules.phases[chosen].several:
            if chosen < current and not _contains(rules, chosen, current):
                _depart(chosen, rules, found)
                continue
            current = max(current, chosen)
        _cover(found, chosen, max(row.time_ns, bounds[0]), min(row.end_ns, bounds[1]))
        found.paths.setdefault(row.path, []).append((row.time_ns, chosen))
    for program in waiting:
        current = _enter_program(program, current, rules, found)
    return found


def _has_begun(phase: int, of_programs: Collection[int], rules: Rules, found: Walk) -> bool:
    """Whether the program that a phase is, or is a part of, has begun; yes if it is no part of any."""
    programs = [number for number in of_programs if number == phase or _contains(rules, number, phase)]
    return not programs or max(programs) in found.spans


def missing(rules: Rules, found: Walk, functions: Iterable[str] = (), network: str = "") -> list[Departure]:
    """Phases that always occur (in this network mode) and were not seen, though evidence or a function would show them.

    A function without a name of its own proves nothing: it may be another phase's.
    """
    named = [function for function in functions if not is_nameless(function)]
    probed = {number for function in named for number in rules.functions.phases_of(function)}
    return [
        Departure(DepartureKind.MISSING, phase.id, f"{phase.id} was not seen")
        for number, phase in enumerate(rules.phases)
        if number and phase.is_due(network) and (phase.evidence or number in probed) and number not in found.spans
    ]


def _possible(candidates: list[int], rules: Rules, *, failed: bool) -> list[int]:
    """Without the phases that only a failed operation has, if it did not fail."""
    return [phase for phase in candidates if failed or rules.phases[phase].occurs != "on_failure"]


def _choose(candidates: list[int], current: int) -> int | None:
    """The first phase from the current one on; if there is none, the last one before."""
    if not candidates:
        return None
    return next((phase for phase in candidates if phase >= current), candidates[-1])


def _contains(rules: Rules, outer: int, inner: int) -> bool:
    return rules.phases[inner].id.startswith(rules.phases[outer].id + ".")


def _cover(found: Walk, phase: int, start_ns: int, end_ns: int) -> None:
    end_ns = max(start_ns, end_ns)
    span = found.spans.get(phase)
    if span is None:
        found.spans[phase] = PhaseSpan(start_ns, end_ns)
    else:
        span.cover(start_ns, end_ns)


def _cover_weakly(found: Walk, phase: int, row: Row, rules: Rules, bounds: tuple[int, int]) -> None:
    """Count an event for a phase if it lies between the phases before and after, as far as those were seen."""
    others = {
        number: span
        for number, span in found.spans.items()
        if not _contains(rules, number, phase) and not rules.phases[number].several
    }
    earliest = max((span.end_ns for number, span in others.items() if number < phase), default=bounds[0])
    latest = min((span.start_ns for number, span in others.items() if number > phase), default=bounds[1])
    if earliest <= row.time_ns and row.end_ns <= latest:
        _cover(found, phase, row.time_ns, row.end_ns)


def _depart(phase: int, rules: Rules, found: Walk) -> None:
    name = rules.phases[phase].id
    known = phase in found.spans
    kind = DepartureKind.REPEATED if known else DepartureKind.OUT_OF_ORDER
    text = f"{name} again, after later phases had begun" if known else f"{name} after phases that come later"
    departure = Departure(kind, name, text)
    if departure not in found.departures:
        found.departures.append(departure)


def _programs(rows: Sequence[Row], rules: Rules, bounds: tuple[int, int]) -> list[_Program]:
    parents = {row.ret: row.pid for row in rows if row.kind == Kind.SCHED_PROCESS_FORK}
    births = {row.ret: row.time_ns for row in rows if row.kind == Kind.SCHED_PROCESS_FORK}
    deaths = {row.pid: row.time_ns for row in rows if row.kind == Kind.SCHED_PROCESS_EXIT}
    programs: list[_Program] = []
    for row in rows:
        if row.kind != Kind.SCHED_PROCESS_EXEC or row.marks & Mark.ENTRYPOINT:
            continue
        rule = next((rule for rule in rules.programs if rule.matches(row)), None)
        if rule is None or any(p.phase == rule.phase and row.pid in p.processes for p in programs):
            continue  # no phase, or a wrapper's child: the wrapper's span covers it
        programs.append(
            _Program(
                rule.phase,
                max(births.get(row.pid, row.time_ns), bounds[0]),
                min(deaths.get(row.pid, bounds[1]), bounds[1]),
                _tree(row.pid, parents),
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
    several = rules.phases[phase].several
    late = phase < current and span is None and not several and not _contains(rules, phase, current)
    if (again or late) and not program.many:
        _depart(phase, rules, found)
    if span is None:
        found.spans[phase] = PhaseSpan(program.start_ns, program.end_ns, program.processes)
    else:
        span.cover(program.start_ns, program.end_ns)
        span.processes |= program.processes
    return current if several else max(current, phase)


def _cut_to_last_event(rows: Sequence[Row], rules: Rules, found: Walk) -> None:
    for rule in rules.programs:
        span = found.spans.get(rule.phase)
        if span is None or rule.evidence.until != "last_event":
            continue
        limit = _parent_end(rule, rules, found)
        ends = [row.end_ns for row in rows if row.pid in span.processes and span.start_ns <= row.time_ns < limit]
        span.end_ns = min(max(ends, default=span.start_ns), limit)


def _parent_end(rule: ProgramRule, rules: Rules, found: Walk) -> int:
    parent = rules.phases[rule.phase].parent
    number = next(number for number, phase in enumerate(rules.phases) if phase.id == parent)
    return found.spans[number].end_ns if number in found.spans else found.spans[rule.phase].end_ns


def _cover_children(rules: Rules, found: Walk) -> None:
    numbers = {phase.id: number for number, phase in enumerate(rules.phases)}
    for number in sorted(found.spans, key=lambda n: -rules.phases[n].depth):
        parent = rules.phases[number].parent
        if parent is not None and numbers[parent]:
            span = found.spans[number]
            _cover(found, numbers[parent], span.start_ns, span.end_ns)
