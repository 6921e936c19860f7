# SPDX-License-Identifier: Apache-2.0
"""Which phase was when, exactly: the frames of an operation's documented functions against the documented order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from observe.correlate.frames import Frame
from observe.model import Departure, DepartureKind
from observe.phases import Phase


@dataclass(slots=True)
class Pieces:
    """Where each phase's functions ran: (start_ns, end_ns) by phase number, in order of time."""

    by_phase: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    departures: list[Departure] = field(default_factory=list)

    def add(self, phase: int, start_ns: int, end_ns: int) -> None:
        """One more piece of a phase."""
        self.by_phase.setdefault(phase, []).append((start_ns, end_ns))


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a function is in the catalogue: numbers of phases, in documented order."""

    #: Those that list it, and of them those inside the operation.
    phases: tuple[int, ...]
    inner: tuple[int, ...]
    #: Those that its entry ends, and those that its return begins.
    ends: tuple[int, ...]
    begins: tuple[int, ...]
    #: Whether it has no name of its own.
    nameless: bool


class FunctionRules:
    """Which phases a function belongs to, by the patterns of the catalogue."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        """Phases of one operation, numbered as listed; 0 is the operation itself."""
        self.phases = tuple(phases)
        numbers = {phase.id: number for number, phase in enumerate(phases)}
        #: Number of each phase's parent; 0 for the operation's own.
        self.parents = tuple(numbers.get(phase.parent or "", 0) for phase in phases)
        self._below = tuple(
            frozenset(n for n, inner in enumerate(phases) if inner.id.startswith(outer.id + ".")) for outer in phases
        )
        #: Phases of which dockerd does a part on other goroutines than the one that serves the request.
        self.elsewhere = frozenset(
            number
            for number, below in enumerate(self._below)
            if number and any(phases[one].runs_elsewhere for one in (number, *below))
        )
        #: Those that lie below or above each phase, and itself.
        self.kin = tuple(
            frozenset({number, *below, *(outer for outer, inner in enumerate(self._below) if number in inner)})
            for number, below in enumerate(self._below)
        )
        self._found: dict[str, Meaning] = {}
        self._allowed: dict[tuple[str, int, bool, bool], tuple[int, ...]] = {}

    def meaning(self, function: str) -> Meaning:
        """What the catalogue says of a function."""
        found = self._found.get(function)
        if found is None:
            numbered = tuple(enumerate(self.phases))
            phases = tuple(n for n, phase in numbered if matches(function, phase.functions))
            found = Meaning(
                phases=phases,
                inner=tuple(filter(None, phases)),
                ends=tuple(n for n, phase in numbered if matches(function, phase.to_entry)),
                begins=tuple(n for n, phase in numbered if matches(function, phase.from_return)),
                nameless=is_nameless(function),
            )
            self._found[function] = found
        return found

    def phases_of(self, function: str) -> tuple[int, ...]:
        """Numbers of the phases that list the function, in documented order."""
        return self.meaning(function).phases

    def allowed(self, function: str, outer: int, *, elsewhere: bool, failed: bool) -> tuple[int, ...]:
        """Those of a function's phases that a call of it may be a piece of, inside a function of phase `outer`.

        `elsewhere`: it ran on another goroutine of dockerd than the request's; `failed`: as of `pieces_of`.
        """
        key = (function, outer, elsewhere, failed)
        found = self._allowed.get(key)
        if found is None:
            found = self._allowed[key] = tuple(
                phase
                for phase in self.meaning(function).inner
                if self.may_run_inside(phase, outer)
                and (failed or self.phases[phase].occurs != "on_failure")
                and (not elsewhere or phase in self.elsewhere)
            )
        return found

    def contains(self, outer: int, inner: int) -> bool:
        """Whether a phase lies below another one in the catalogue."""
        return inner in self._below[outer]

    def may_run_inside(self, phase: int, outer: int) -> bool:
        """Whether a phase's function, called inside another phase's function, is a phase of its own."""
        return phase in self._below[outer] or self.phases[outer].id in self.phases[phase].within


def matches(function: str, patterns: Sequence[str]) -> bool:
    """Whether a symbol is meant by one of the catalogue's patterns."""
    return any(fnmatchcase(function, pattern) for pattern in patterns)


def is_nameless(function: str) -> bool:
    """Whether a closure carries only its outer function's name and a number: `createSpec.func3`."""
    outer, dot, last = function.rpartition(".func")
    return bool(dot) and last.isdigit() and outer.endswith("createSpec")


class _Taken:
    """The frames that were given to phases so far, in order of their start."""

    def __init__(self, end_ns: int) -> None:
        self._end_ns = end_ns
        self._by_stack: dict[tuple[int, int], list[tuple[Frame, int]]] = {}
        #: When the frames of each phase ran, and of which functions they are.
        self.intervals: dict[int, list[tuple[int, int]]] = {}
        self._functions: dict[int, set[str]] = {}

    def add(self, frame: Frame, phase: int) -> None:
        self._by_stack.setdefault((frame.pid, frame.goroutine), []).append((frame, phase))
        self.intervals.setdefault(phase, []).append((frame.start_ns, frame.end_ns))
        self._functions.setdefault(phase, set()).add(frame.function)

    def phase_around(self, frame: Frame) -> int:
        """Phase of the innermost frame of the same goroutine around this one, the latest so far; 0 if there is none."""
        stack = self._by_stack.get((frame.pid, frame.goroutine))
        if not stack:
            return 0
        # Those that are over enclose nothing any more, but what began after the operation's end may end at it.
        over_ns = min(frame.start_ns, self._end_ns)
        stack[:] = [one for one in stack if one[0].end_ns >= over_ns]
        around = [one for one in stack if one[0].encloses(frame)]
        return max(around, key=lambda one: one[0].depth_bytes)[1] if around else 0

    def by_other_functions(self, function: str) -> set[int]:
        """Phases that have a frame of another function."""
        return {phase for phase, functions in self._functions.items() if functions != {function}}


def pieces_of(
    frames: Sequence[Frame],
    rules: FunctionRules,
    bounds: tuple[int, int],
    elsewhere: Callable[[Frame], bool],
    programs: Mapping[int, tuple[int, int]],
    *,
    failed: bool,
) -> Pieces:
    """Give each frame to the phase that it is a piece of.

    `frames`: of one operation, by start; `bounds`: its start and end; `elsewhere`: whether dockerd ran a frame on
    another goroutine than the request's; `programs`: when the phases that are programs ran, by number, for children
    whose parent's function was not probed; `failed`: whether phases that occur on failure only count.

    A function that is called inside another phase's function is part of that phase, unless the catalogue puts its own
    phase below. Of several phases that list a function, the documented order decides, as it does for kernel evidence;
    a function without a name of its own (an inlined closure) goes to the next phase that has none yet.
    """
    found = Pieces()
    taken = _Taken(bounds[1])
    current = 0
    on_request: list[Frame] = []
    for frame in frames:
        is_elsewhere = elsewhere(frame)
        if not is_elsewhere:
            on_request.append(frame)
        meaning = rules.meaning(frame.function)
        if not meaning.inner:
            continue
        outer = taken.phase_around(frame)
        candidates = rules.allowed(frame.function, outer, elsewhere=is_elsewhere, failed=failed)
        allowed = [phase for phase in candidates if _is_in_parent(phase, frame, taken, rules, programs)]
        others = taken.by_other_functions(frame.function) if meaning.nameless else None
        phase = _choose(allowed, current, others)
        if phase is None:
            continue
        if not rules.phases[phase].several:
            if phase < current and not rules.contains(phase, current):
                _depart(found, rules, phase)
            current = max(current, phase)
        taken.add(frame, phase)
        found.add(phase, *_clip(frame.start_ns, frame.end_ns, bounds))
    for phase, start_ns, end_ns in _bounded(on_request, rules, bounds):
        found.add(phase, *_clip(start_ns, end_ns, bounds))
    _join(found, rules)
    return found


def _clip(start_ns: int, end_ns: int, bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] <= start_ns <= end_ns <= bounds[1]:
        return start_ns, end_ns
    start_ns = min(max(start_ns, bounds[0]), bounds[1])
    return start_ns, max(start_ns, min(end_ns, bounds[1]))


def _is_in_parent(
    phase: int, frame: Frame, taken: _Taken, rules: FunctionRules, programs: Mapping[int, tuple[int, int]]
) -> bool:
    """Whether a frame lies in its phase's parent, as far as that was seen: the function may be used elsewhere too."""
    parent = rules.parents[phase]
    if not parent:
        return True
    around = taken.intervals.get(parent) or ([programs[parent]] if parent in programs else [])
    return not around or any(start <= frame.start_ns < end for start, end in around)


def _choose(allowed: Sequence[int], current: int, others: set[int] | None) -> int | None:
    """The first phase from the current one on; if there is none, the last one before.

    `others`: the phases that other functions have, for a function without a name of its own.
    """
    for phase in allowed:
        if phase >= current and (others is None or phase not in others):
            return phase
    return allowed[-1] if allowed and others is None else None


def _depart(found: Pieces, rules: FunctionRules, phase: int) -> None:
    name = rules.phases[phase].id
    repeated = phase in found.by_phase
    kind = DepartureKind.REPEATED if repeated else DepartureKind.OUT_OF_ORDER
    text = f"{name} again, after later phases had begun" if repeated else f"{name} after phases that come later"
    departure = Departure(kind, name, text)
    if departure not in found.departures:
        found.departures.append(departure)


def _bounded(frames: Sequence[Frame], rules: FunctionRules, bounds: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Pieces of phases that begin where a function returns, or end where one is entered, on the request's goroutine.

    Without a function of its own such a phase is the first part of the operation, or the last.
    """
    entered: dict[int, int] = {}
    returned: dict[int, list[int]] = {}
    for frame in frames:
        meaning = rules.meaning(frame.function)
        for number in meaning.ends:
            entered.setdefault(number, frame.start_ns)
        for number in meaning.begins if frame.complete else ():
            returned.setdefault(number, []).append(frame.end_ns)
    for number in sorted({*entered, *returned}):
        if number in entered:
            yield number, bounds[0], entered[number]
        if number in returned:
            starts = [bounds[1]]
            if rules.phases[number].functions:
                starts = [frame.start_ns for frame in frames if number in rules.phases_of(frame.function)]
            begun = [end for end in returned[number] if any(end <= start for start in starts)]
            if begun:
                yield number, max(begun), min(start for start in starts if start >= max(begun))


def _join(found: Pieces, rules: FunctionRules) -> None:
    """Join neighbouring pieces of a phase unless another phase has some of the time between them."""
    every = [(start, end, phase) for phase, pieces in found.by_phase.items() for start, end in pieces]
    for phase, pieces in found.by_phase.items():
        if len(pieces) == 1:
            continue
        kin = rules.kin[phase]  # takes nothing away
        joined: list[tuple[int, int]] = []
        for start, end in sorted(pieces):
            if joined and (start <= joined[-1][1] or not _any_between(every, kin, joined[-1][1], start)):
                joined[-1] = (joined[-1][0], max(joined[-1][1], end))
            else:
                joined.append((start, end))
        found.by_phase[phase] = joined


def _any_between(pieces: Sequence[tuple[int, int, int]], kin: frozenset[int], start_ns: int, end_ns: int) -> bool:
    """Whether a phase that is none of `kin` has a piece in a time."""
    return any(start < end_ns and start_ns < end and phase not in kin for start, end, phase in pieces)
