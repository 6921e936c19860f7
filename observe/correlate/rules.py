# SPDX-License-Identifier: Apache-2.0
"""The catalogue's kernel evidence, compiled: which phases an event speaks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import basename

from observe.correlate.functions import FunctionRules
from observe.correlate.names import DRIVERS
from observe.correlate.rows import Row
from observe.model import Evidence as EvidenceKind
from observe.model import Kind, Span, table_of_kinds
from observe.phases import Evidence, Phase

_PLACES = {
    "{data}": re.escape("{data}"),
    "{driver}": f"(?:{'|'.join(DRIVERS)})",
    "{layer}": "[0-9a-z]{25,64}",
    "{id}": "[0-9a-f]{64}",
    "**": ".*",
    "*": "[^/]*",
}
_TOKEN = re.compile("|".join(re.escape(place) for place in _PLACES))
#: Kinds that a rule with a path but without calls means.
_FILE_KINDS = frozenset(
    kind
    for kind in Kind
    if kind.name.startswith(
        ("MKDIR", "OPEN", "CREAT", "RENAME", "UNLINK", "RMDIR", "MOUNT", "UMOUNT", "MOVE_MOUNT", "INOTIFY")
    )
)
_CACHED_PATHS = 2_000
_CACHED_CALLS = 1_000
_CACHED_MODES = 100
#: Numbers of phases, in documented order.
Candidates = tuple[int, ...]
#: Those that a call speaks for on the goroutine that serves the request, and those on any other.
Voices = tuple[Candidates, Candidates]
SILENCE: Voices = ((), ())
#: What a rule looks at but the path: kind, flags, role of the process that made it (None: nobody knows), whether on the
#: goroutine that serves the request (None: nobody knows); and whether phases that occur on failure only count.
Call = tuple[int, int, str | None, bool | None, bool]


def glob_to_regex(pattern: str) -> str:
    """Regular expression (to be used with fullmatch) of a catalogue path pattern; `{data}` stays literal."""
    out, at = [], 0
    for token in _TOKEN.finditer(pattern):
        out += [re.escape(pattern[at : token.start()]), _PLACES[token[0]]]
        at = token.end()
    return "".join([*out, re.escape(pattern[at:])])


def longest_literal(pattern: str) -> str:
    """The longest part of a catalogue path pattern that every path has that it matches."""
    return max(_TOKEN.split(pattern), key=len)


@dataclass(frozen=True, slots=True, eq=False)
class CallRule:
    """A call rule of phase number `phase`."""

    phase: int
    kinds: frozenset[Kind]
    evidence: Evidence
    #: Whether only a failed operation has the phase.
    on_failure: bool


@dataclass(frozen=True, slots=True)
class ProgramRule:
    """A program rule of phase number `phase`."""

    phase: int
    evidence: Evidence

    def matches(self, path: str, arguments: str) -> bool:
        """Whether an exec of a file, with arguments joined by NUL, begins the program."""
        words = arguments.split("\0")
        names = {basename(path), basename(words[0])}
        rule = self.evidence
        return (
            any(fnmatchcase(name, rule.program or "") for name in names)
            and (rule.argument is None or rule.argument in words[1:])
            and (rule.companion is None or rule.companion in words[1:])
        )


class CallRules(dict[Call, Voices]):
    """Some of the call rules: the phases that calls speak for by them; found when they are asked for first."""

    def __init__(self, rules: Iterable[CallRule]) -> None:
        """`rules` in documented order."""
        super().__init__()
        self.rules = tuple(rules)

    def __missing__(self, call: Call) -> Voices:
        """Find out."""
        kind, flags, role, on_request, failed = call
        rules = [rule for rule in self.rules if failed or not rule.on_failure]
        there = _holding(rules, kind, flags, role, True) if on_request is not False else ()
        elsewhere = _holding(rules, kind, flags, role, False) if not on_request else ()
        if len(self) >= _CACHED_CALLS:
            self.clear()
        self[call] = found = (there, elsewhere)
        return found


def _holding(rules: Sequence[CallRule], kind: int, flags: int, role: str | None, on_request: bool) -> Candidates:
    return tuple(rule.phase for rule in rules if _holds(rule, kind, flags, role, on_request))


#: Of the many paths that meet no rule.
_SILENT = CallRules(())


class Rules:
    """The rules of one operation; phases are numbered as `phases` lists them, 0 is the operation itself."""

    def __init__(self, phases: Sequence[Phase], data_root: str, *, calls: bool = True) -> None:
        """Compile. `data_root`: what `{data}` stands for; `calls`: whether calls were recorded, so can be missed."""
        self.phases = tuple(phases)
        self.functions = FunctionRules(phases)
        self.contains = self.functions.contains
        self.programs: list[ProgramRule] = []
        self._data_root = data_root.rstrip("/")
        of_calls: list[CallRule] = []
        self._by_path: dict[str, CallRules] = {}
        self._due: dict[tuple[tuple[str, ...], str], Candidates] = {}
        self._by_words: dict[tuple[str, str], ProgramRule | None] = {}
        for number, phase in enumerate(phases):
            for evidence in phase.evidence if number else ():
                if evidence.program is not None:
                    self.programs.append(ProgramRule(number, evidence))
                else:
                    kinds = frozenset(evidence.calls) or _FILE_KINDS
                    of_calls.append(CallRule(number, kinds, evidence, phase.occurs == "on_failure"))
        #: The rows of phases that were not seen.
        self.unseen = tuple(
            Span(phase.id, phase.parent, phase.step, None, None, None, EvidenceKind.NONE) for phase in self.phases
        )
        #: Which phases are not bound to one place in the order.
        self.several = tuple(phase.several for phase in self.phases)
        of_programs = sorted({rule.phase for rule in self.programs})
        numbers = range(len(self.phases))
        bound = [number for number in numbers if not self.several[number]]
        #: The phases before each one, and after it: not those that contain it, nor those bound to no place.
        self.before = tuple(tuple(n for n in bound if n < one and not self.contains(n, one)) for one in numbers)
        self.after = tuple(tuple(n for n in bound if n > one and not self.contains(n, one)) for one in numbers)
        #: The program that each phase is, or is a part of: the innermost.
        self.program_of = tuple(
            max((one for one in of_programs if one == number or self.contains(one, number)), default=None)
            for number in numbers
        )
        #: The phases that kernel evidence, if there is none, shows not to have been.
        self._shown = frozenset(rule.phase for rule in (*self.programs, *(of_calls if calls else ())))
        pathless = tuple(rule for rule in of_calls if not rule.evidence.paths)
        #: The rules without a path: in their phases a call is made, among other places.
        self.weak = CallRules(pathless)
        #: Of every number of a kind whether it is a call that speaks for phases without a path.
        self.weak_kinds = table_of_kinds(frozenset().union(*(rule.kinds for rule in pathless)))
        self._patterns = [
            (longest_literal(pattern), re.compile(glob_to_regex(pattern)).fullmatch, rule)
            for rule in of_calls
            for pattern in rule.evidence.paths
        ]

    def due(self, functions: tuple[str, ...], network: str) -> Candidates:
        """Numbers of the phases that always occur in a network mode, and that evidence, or one of `functions`, shows.

        A function without a name of its own proves nothing: it may be another phase's.
        """
        found = self._due.get((functions, network))
        if found is None:
            meanings = map(self.functions.meaning, functions)
            probed = {number for meaning in meanings if not meaning.nameless for number in meaning.phases}
            if len(self._due) >= _CACHED_MODES:
                self._due.clear()
            found = self._due[functions, network] = tuple(
                number
                for number, phase in enumerate(self.phases)
                if number and phase.is_due(network) and (number in self._shown or number in probed)
            )
        return found

    def candidates(self, row: Row, role: str, on_request_goroutine: bool) -> list[int]:
        """Numbers of the phases that an event speaks for by its path, in documented order."""
        (rules,) = self.paths([row.path])
        return _told_by(rules, row, role, on_request_goroutine)

    def weak_candidates(self, row: Row, role: str, on_request_goroutine: bool) -> list[int]:
        """Numbers of the phases in which a call like this one is made, among other places."""
        return _told_by(self.weak, row, role, on_request_goroutine)

    def paths(self, paths: Sequence[str], names: Sequence[str] = ()) -> list[CallRules]:
        """The rules that each path meets. `names`: ids that differ from container to container, for the memory."""
        for name in names:
            zeros = "0" * len(name)
            paths = [path.replace(name, zeros) for path in paths]
        met = self._by_path
        return [self._meet(path) if (rules := met.get(path)) is None else rules for path in paths]

    def _meet(self, path: str) -> CallRules:
        text = path
        if self._data_root and path.startswith(self._data_root + "/"):
            text = "{data}" + path[len(self._data_root) :]
        # Most patterns are out of the question at first sight.
        met = dict.fromkeys(rule for literal, matches, rule in self._patterns if literal in text and matches(text))
        if len(self._by_path) >= _CACHED_PATHS:
            self._by_path.clear()
        found = self._by_path[path] = CallRules(met) if met else _SILENT
        return found

    def program(self, path: str, arguments: str, names: Sequence[str] = ()) -> ProgramRule | None:
        """The rule of the program that an exec begins; `names` as of `paths`."""
        for name in names:
            arguments = arguments.replace(name, "0" * len(name))
        key = (path, arguments)
        if key not in self._by_words:
            if len(self._by_words) >= _CACHED_PATHS:
                self._by_words.clear()
            self._by_words[key] = next((rule for rule in self.programs if rule.matches(*key)), None)
        return self._by_words[key]


def witnesses(kinds: Sequence[int], pids: Sequence[int], role: Callable[[int], str]) -> list[str | None]:
    """The role of the process that made each event, as far as somebody knows: inotify does not tell."""
    roles = {pid: role(pid) for pid in {*pids}}
    if 0 not in roles:
        return [roles[pid] for pid in pids]
    return [None if kind == Kind.INOTIFY and not pid else roles[pid] for kind, pid in zip(kinds, pids, strict=True)]


def _told_by(rules: CallRules, row: Row, role: str, on_request: bool) -> list[int]:
    (made_by,) = witnesses([row.kind], [row.pid], lambda _pid: role)
    return list(rules[row.kind, row.flags, made_by, on_request, True][not on_request])


def _holds(rule: CallRule, kind: int, flags: int, role: str | None, on_request_goroutine: bool) -> bool:
    evidence = rule.evidence
    if kind not in rule.kinds or flags & evidence.flags != evidence.flags:
        return False
    if role is None:
        return True
    if evidence.role is not None and evidence.role != role:
        return False
    return role != "dockerd" or (evidence.goroutine == "request") == on_request_goroutine
