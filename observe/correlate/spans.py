# SPDX-License-Identifier: Apache-2.0
"""Which phase was when: an operation's events against the documented order, on kernel evidence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from observe.correlate.rows import columns_of, made_by
from observe.correlate.rules import SILENCE, Call, Candidates, ProgramRule, Rules, Voices, witnesses
from observe.model import Departure, DepartureKind, EventBatch, Kind, Mark, table_of_kinds

_ENTRYPOINT = int(Mark.ENTRYPOINT)
_OF_PROCESSES = table_of_kinds({Kind.SCHED_PROCESS_FORK, Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT})


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
    witnesses = _witnesses(events, rules, bounds, role, on_request, names=names, failed=failed)
    found = _walk_in_order(witnesses, programs, rules, bounds[0])
    _cut_to_last_event(events, rules, found)
    _cover_weakly(events, rules, bounds, role, on_request, found=found, failed=failed)
    _cover_children(rules, found)
    return found


#: An event that speaks for phases: when it began, when it ended inside the operation, its path, for which it does.
_Witness = tuple[int, int, str, Voices]


def _witnesses(
    events: EventBatch,
    rules: Rules,
    bounds: tuple[int, int],
    role: Callable[[int], str],
    on_request: npt.NDArray[np.bool_] | None,
    *,
    names: tuple[str, ...],
    failed: bool,
) -> Iterator[_Witness]:
    """The events that speak for phases by their paths, as they come."""
    paths, strings = events.rows["path"], events.strings
    used = list({*paths.tolist()})
    met = zip(used, rules.paths([strings[index] for index in used], names), strict=True)
    known = {index: path for index, path in met if path.rules}
    speaks = np.zeros(len(strings), dtype=np.bool_)
    speaks[[*known]] = True
    speaking = np.flatnonzero(speaks[paths])
    rows = events.rows.take(speaking)
    times_ns = rows["time_ns"]
    ends_ns = np.minimum(times_ns + rows["duration_ns"], bounds[1])
    moments = zip(times_ns.tolist(), ends_ns.tolist(), rows["path"].tolist(), strict=True)
    calls = _calls(rows, role, None if on_request is None else on_request[speaking], failed=failed)
    for (time_ns, end_ns, index), call in zip(moments, calls, strict=True):
        voices = known[index][call]
        if voices != SILENCE:
            yield time_ns, end_ns, strings[index], voices


def _calls(
    rows: npt.NDArray[np.void], role: Callable[[int], str], on_request: npt.NDArray[np.bool_] | None, *, failed: bool
) -> Iterator[Call]:
    """What rules look at of each event but its path."""
    kinds, flags, pids = (rows[name].tolist() for name in ("kind", "flags", "pid"))
    theirs = [None] * len(rows) if on_request is None else on_request.tolist()
    return zip(kinds, flags, witnesses(kinds, pids, role), theirs, repeat(failed))


def _walk_in_order(witnesses: Iterable[_Witness], waiting: deque[_Program], rules: Rules, begin_ns: int) -> Walk:
    """Programs and calls on paths, as they come."""
    found, several = Walk(), rules.several
    spans, paths = found.spans, found.paths
    current = 0
    decided: dict[Voices, int] = {}  # holds as long as nothing begins
    for time_ns, end_ns, path, voices in witnesses:
        while waiting and waiting[0].start_ns <= time_ns:
            current = _enter_program(waiting.popleft(), current, rules, found)
            decided.clear()
        chosen = decided.get(voices)
        if chosen is None:
            chosen = decided[voices] = _choose(*voices, current, rules, found)
        if not chosen:
            continue
        if chosen > current and not several[chosen]:
            current = chosen
            decided.clear()
        span = spans.get(chosen)
        if span is None:
            spans[chosen] = PhaseSpan(max(time_ns, begin_ns), max(time_ns, begin_ns, end_ns))
            decided.clear()
        else:  # which began before
            span.end_ns = max(span.end_ns, time_ns, end_ns)
        paths.setdefault(path, []).append((time_ns, chosen))
    for program in waiting:
        current = _enter_program(program, current, rules, found)
    return found


def _choose(there: Candidates, elsewhere: Candidates, current: int, rules: Rules, found: Walk) -> int:
    """The phase that an event belongs to, 0 if to none: the first from the current one on, or the last one before."""
    candidates: Sequence[int] = there
    if elsewhere:  # what others do for a program proves it only while it runs
        begun = [phase for phase in elsewhere if _has_begun(phase, rules, found)]
        candidates = sorted({*there, *begun}) if there else begun
    chosen = next((phase for phase in candidates if phase >= current), candidates[-1] if candidates else 0)
    if chosen >= current or rules.several[chosen] or rules.contains(chosen, current):
        return chosen
    # Another goroutine tells of the container's end too, maybe before the answer to its start.
    if chosen in there:
        _depart(chosen, rules, found)
    return 0


def _has_begun(phase: int, rules: Rules, found: Walk) -> bool:
    """Whether the program that a phase is, or is a part of, has begun; yes if it is no part of any."""
    program = rules.program_of[phase]
    return program is None or program in found.spans


def missing(rules: Rules, found: Walk, functions: Iterable[str] = (), network: str = "") -> list[Departure]:
    """Phases that always occur (in this network mode) and were not seen, though evidence or a function shows them."""
    names = (rules.phases[number].id for number in rules.due(tuple(functions), network) if number not in found.spans)
    return [Departure(DepartureKind.MISSING, name, f"{name} was not seen") for name in names]


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
    rows = events.rows.take(weak)
    times_ns, ends_ns = rows["time_ns"].tolist(), (rows["time_ns"] + rows["duration_ns"]).tolist()
    calls = _calls(rows, role, None if on_request is None else on_request[weak], failed=failed)
    for time_ns, end_ns, call in zip(times_ns, ends_ns, calls, strict=True):
        there, elsewhere = rules.weak[call]
        is_on_request = call[3]
        for phase in elsewhere if is_on_request is False else there:
            if phase not in rooms:
                rooms[phase] = _room(phase, rules, bounds, found)
            earliest, latest = rooms[phase]
            if earliest <= time_ns and end_ns <= latest:
                _cover(found, phase, time_ns, end_ns)
                rooms = {phase: (earliest, latest)}  # the others' may have become smaller


def _room(phase: int, rules: Rules, bounds: tuple[int, int], found: Walk) -> tuple[int, int]:
    """From the end of the phases before to the start of those after.

    Those that contain it are neither, nor are those that are not bound to one place.
    """
    earliest, latest = bounds
    spans = found.spans
    before = (spans[number].end_ns for number in rules.before[phase] if number in spans)
    after = (spans[number].start_ns for number in rules.after[phase] if number in spans)
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
    parents: dict[int, int] = {}
    births: dict[int, int] = {}
    deaths: dict[int, int] = {}
    execs: list[tuple[int, int, str, str]] = []
    which = np.flatnonzero(_OF_PROCESSES[events.rows["kind"]])
    columns = columns_of(events, which, "kind", "time_ns", "pid", "ret", "path", "detail", "marks")
    for kind, time_ns, pid, child, path, detail, marks in columns:
        if kind == Kind.SCHED_PROCESS_FORK:
            parents[child], births[child] = pid, time_ns
        elif kind == Kind.SCHED_PROCESS_EXIT:
            deaths[pid] = time_ns
        elif not marks & _ENTRYPOINT:
            execs.append((time_ns, pid, path, detail))
    programs: list[_Program] = []
    for time_ns, pid, path, detail in execs:
        rule = rules.program(path, detail, names)
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
