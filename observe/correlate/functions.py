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


class FunctionRules:
    """Which phases a function belongs to, by the patterns of the catalogue."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        """Phases of one operation, numbered as listed; 0 is the operation itself."""
        self.phases = tuple(phases)
        numbers = {phase.id: number for number, phase in enumerate(phases)}
        #: Number of each phase's parent; 0 for the operation's own.
        self.parents = tuple(numbers.get(phase.parent or "", 0) for phase in phases)
        #: Phases of which dockerd does a part on other goroutines than the one that serves the request.
        self.elsewhere = frozenset(
            number
            for number, phase in enumerate(phases)
            if any(one.runs_elsewhere and f"{one.id}.".startswith(f"{phase.id}.") for one in phases) and number
        )
        self._found: dict[str, tuple[int, ...]] = {}

    def phases_of(self, function: str) -> tuple[int, ...]:
        """Numbers of the phases that list the function, in documented order."""
        found = self._found.get(function)
        if found is None:
            found = tuple(n for n, phase in enumerate(self.phases) if matches(function, phase.functions))
            self._found[function] = found
        return found

    def contains(self, outer: int, inner: int) -> bool:
        """Whether a phase lies below another one in the catalogue."""
        return self.phases[inner].id.startswith(self.phases[outer].id + ".")

    def may_run_inside(self, phase: int, outer: int) -> bool:
        """Whether a phase's function, called inside another phase's function, is a phase of its own."""
        return self.contains(outer, phase) or self.phases[outer].id in self.phases[phase].within


def matches(function: str, patterns: Sequence[str]) -> bool:
    """Whether a symbol is meant by one of the catalogue's patterns."""
    return any(fnmatchcase(function, pattern) for pattern in patterns)


def is_nameless(function: str) -> bool:
    """Whether a closure carries only its outer function's name and a number: `createSpec.func3`."""
    outer, dot, last = function.rpartition(".func")
    return bool(dot) and last.isdigit() and outer.endswith("createSpec")


@dataclass(frozen=True, slots=True)
class _Taken:
    frame: Frame
    phase: int


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
    taken: list[_Taken] = []
    current = 0
    for frame in frames:
        candidates = [phase for phase in rules.phases_of(frame.function) if phase]
        if not candidates:
            continue
        outer = _phase_around(frame, taken)
        allowed = [
            phase
            for phase in candidates
            if rules.may_run_inside(phase, outer)
            and _is_in_parent(phase, frame, taken, rules, programs)
            and (failed or rules.phases[phase].occurs != "on_failure")
            and (phase in rules.elsewhere or not elsewhere(frame))
        ]
        phase = _choose(frame, allowed, current, taken)
        if phase is None:
            continue
        if not rules.phases[phase].several:
            if phase < current and not rules.contains(phase, current):
                _depart(found, rules, phase)
            current = max(current, phase)
        taken.append(_Taken(frame, phase))
        found.add(phase, *_clip(frame.start_ns, frame.end_ns, bounds))
    for phase, start_ns, end_ns in _bounded(frames, rules, bounds):
        found.add(phase, *_clip(start_ns, end_ns, bounds))
    _join(found, rules)
    return found


def _clip(start_ns: int, end_ns: int, bounds: tuple[int, int]) -> tuple[int, int]:
    start_ns = min(max(start_ns, bounds[0]), bounds[1])
    return start_ns, max(start_ns, min(end_ns, bounds[1]))


def _phase_around(frame: Frame, taken: Sequence[_Taken]) -> int:
    """Phase of the innermost frame of the same goroutine around this one; 0 if there is none."""
    around = [one for one in taken if one.frame.encloses(frame)]
    return max(around, key=lambda one: one.frame.depth_bytes).phase if around else 0


def _is_in_parent(
    phase: int, frame: Frame, taken: Sequence[_Taken], rules: FunctionRules, programs: Mapping[int, tuple[int, int]]
) -> bool:
    """Whether a frame lies in its phase's parent, as far as that was seen: the function may be used elsewhere too."""
    parent = rules.parents[phase]
    if not parent:
        return True
    around = [(one.frame.start_ns, one.frame.end_ns) for one in taken if one.phase == parent]
    if not around and parent in programs:
        around = [programs[parent]]
    return not around or any(start <= frame.start_ns < end for start, end in around)


def _choose(frame: Frame, allowed: Sequence[int], current: int, taken: Sequence[_Taken]) -> int | None:
    """The first phase from the current one on; if there is none, the last one before."""
    ahead = [phase for phase in allowed if phase >= current]
    if is_nameless(frame.function):
        others = {one.phase for one in taken if one.frame.function != frame.function}
        return next((phase for phase in ahead if phase not in others), None)
    return next(iter([*ahead, *allowed[-1:]]), None)


def _depart(found: Pieces, rules: FunctionRules, phase: int) -> None:
    name = rules.phases[phase].id
    repeated = phase in found.by_phase
    kind = DepartureKind.REPEATED if repeated else DepartureKind.OUT_OF_ORDER
    text = f"{name} again, after later phases had begun" if repeated else f"{name} after phases that come later"
    departure = Departure(kind, name, text)
    if departure not in found.departures:
        found.departures.append(departure)


def _bounded(frames: Sequence[Frame], rules: FunctionRules, bounds: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Pieces of phases that begin where a function returns, or end where one is entered."""
    for number, phase in enumerate(rules.phases):
        if phase.to_entry:
            entry = next((frame for frame in frames if matches(frame.function, phase.to_entry)), None)
            if entry is not None:
                yield number, bounds[0], entry.start_ns
        if phase.from_return:
            ends = [frame.end_ns for frame in frames if frame.complete and matches(frame.function, phase.from_return)]
            starts = [frame.start_ns for frame in frames if number in rules.phases_of(frame.function)]
            begun = [end for end in ends if any(end <= start for start in starts)]
            if begun:
                yield number, max(begun), min(start for start in starts if start >= max(begun))


def _join(found: Pieces, rules: FunctionRules) -> None:
    """Join neighbouring pieces of a phase unless another phase has some of the time between them."""
    every = [(start, end, phase) for phase, pieces in found.by_phase.items() for start, end in pieces]
    for phase, pieces in found.by_phase.items():
        # A phase above or below it takes nothing away.
        others = [
            (start, end)
            for start, end, other in every
            if other != phase and not rules.contains(other, phase) and not rules.contains(phase, other)
        ]
        joined: list[tuple[int, int]] = []
        for start, end in sorted(pieces):
            if joined and (start <= joined[-1][1] or not _any_between(others, joined[-1][1], start)):
                joined[-1] = (joined[-1][0], max(joined[-1][1], end))
            else:
                joined.append((start, end))
        found.by_phase[phase] = joined


def _any_between(intervals: Sequence[tuple[int, int]], start_ns: int, end_ns: int) -> bool:
    return any(start < end_ns and start_ns < end for start, end in intervals)
