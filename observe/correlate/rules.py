# SPDX-License-Identifier: Apache-2.0
"""The catalogue's kernel evidence, compiled: which phases an event speaks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import basename

from observe.correlate.functions import FunctionRules
from observe.correlate.names import DRIVERS
from observe.correlate.rows import Row, table_of_kinds
from observe.model import Kind
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
_CACHED_PATHS = 8_000
_CACHED_CALLS = 1_000
#: Numbers of phases, in documented order.
Candidates = tuple[int, ...]


def glob_to_regex(pattern: str) -> str:
    """Regular expression (to be used with fullmatch) of a catalogue path pattern; `{data}` stays literal."""
    out, at = [], 0
    for token in _TOKEN.finditer(pattern):
        out += [re.escape(pattern[at : token.start()]), _PLACES[token[0]]]
        at = token.end()
    return "".join([*out, re.escape(pattern[at:])])


@dataclass(frozen=True, slots=True)
class CallRule:
    """A call rule of phase number `phase`."""

    phase: int
    kinds: frozenset[Kind]
    path: re.Pattern[str] | None
    evidence: Evidence


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


class PathRules:
    """The call rules that a path meets, and the phases that calls on it speak for."""

    def __init__(self, rules: tuple[CallRule, ...]) -> None:
        """`rules` in documented order."""
        self._rules = rules
        self._found: dict[tuple[int, int, str | None, bool | None], tuple[Candidates, Candidates]] = {}

    @property
    def speaks(self) -> bool:
        """Whether there is any."""
        return bool(self._rules)

    def candidates(
        self, kind: int, flags: int, role: str | None, on_request: bool | None
    ) -> tuple[Candidates, Candidates]:
        """The phases that a call speaks for on the goroutine that serves the request, and those on any other.

        `role` None: nobody knows who made it; `on_request` None: nobody knows on which goroutine.
        """
        key = (kind, flags, role, on_request)
        found = self._found.get(key)
        if found is None:
            there = self._holding(kind, flags, role, True) if on_request is not False else ()
            elsewhere = self._holding(kind, flags, role, False) if not on_request else ()
            if len(self._found) >= _CACHED_CALLS:
                self._found.clear()
            found = self._found[key] = (there, elsewhere)
        return found

    def _holding(self, kind: int, flags: int, role: str | None, on_request: bool) -> Candidates:
        return tuple(rule.phase for rule in self._rules if _holds(rule, kind, flags, role, on_request))


#: Of the many paths that meet no rule.
_SILENT = PathRules(())


class Rules:
    """The rules of one operation; phases are numbered as `phases` lists them, 0 is the operation itself."""

    def __init__(self, phases: Sequence[Phase], data_root: str) -> None:
        """Compile. `data_root`: what `{data}` stands for."""
        self.phases = tuple(phases)
        self.functions = FunctionRules(phases)
        self.contains = self.functions.contains
        self.programs: list[ProgramRule] = []
        self._data_root = data_root.rstrip("/")
        self._calls: list[CallRule] = []
        self._by_path: dict[str, PathRules] = {}
        self._by_words: dict[tuple[str, str], ProgramRule | None] = {}
        for number, phase in enumerate(phases):
            for evidence in phase.evidence if number else ():
                if evidence.program is not None:
                    self.programs.append(ProgramRule(number, evidence))
                else:
                    self._calls.append(_call_rule(number, evidence))
        #: Which phases are not bound to one place in the order.
        self.several = tuple(phase.several for phase in self.phases)
        of_programs = sorted({rule.phase for rule in self.programs})
        #: The program that each phase is, or is a part of: the innermost.
        self.program_of = tuple(
            max((one for one in of_programs if one == number or self.contains(one, number)), default=None)
            for number in range(len(self.phases))
        )
        self._pathless = tuple(rule for rule in self._calls if rule.path is None)
        #: Of every number of a kind whether it is a call that speaks for phases without a path.
        self.weak_kinds = table_of_kinds(frozenset().union(*(rule.kinds for rule in self._pathless)))
        self._on_failure = frozenset(n for n, phase in enumerate(phases) if phase.occurs == "on_failure")
        with_path = [rule.path.pattern for rule in self._calls if rule.path is not None]
        self._any_path = re.compile("|".join(f"(?:{pattern})" for pattern in with_path) or r"(?!)")

    def candidates(self, row: Row, role: str, on_request_goroutine: bool) -> list[int]:
        """Numbers of the phases that an event speaks for by its path, in documented order."""
        found = self.path(row.path).candidates(row.kind, row.flags, witness(row, role), on_request_goroutine)
        return list(found[not on_request_goroutine])

    def weak_candidates(self, row: Row, role: str, on_request_goroutine: bool) -> list[int]:
        """Numbers of the phases in which a call like this one is made, among other places."""
        key = (row.kind, row.flags, witness(row, role), on_request_goroutine)
        return [rule.phase for rule in self._pathless if _holds(rule, *key)]

    def unless_failed(self, candidates: Sequence[int]) -> Sequence[int]:
        """Without the phases that only a failed operation has."""
        if self._on_failure.isdisjoint(candidates):
            return candidates
        return [phase for phase in candidates if phase not in self._on_failure]

    def path(self, path: str, names: Sequence[str] = ()) -> PathRules:
        """The rules that a path meets. `names`: ids in it that differ from container to container, for the memory."""
        path = nameless(path, names)
        found = self._by_path.get(path)
        if found is None:
            text = path
            if self._data_root and path.startswith(self._data_root + "/"):
                text = "{data}" + path[len(self._data_root) :]
            met: tuple[CallRule, ...] = ()
            if self._any_path.fullmatch(text):
                met = tuple(rule for rule in self._calls if rule.path is not None and rule.path.fullmatch(text))
            if len(self._by_path) >= _CACHED_PATHS:
                self._by_path.clear()
            found = self._by_path[path] = PathRules(met) if met else _SILENT
        return found

    def program(self, path: str, arguments: str, names: Sequence[str] = ()) -> ProgramRule | None:
        """The rule of the program that an exec begins; `names` as of `path`."""
        key = (path, nameless(arguments, names))
        if key not in self._by_words:
            if len(self._by_words) >= _CACHED_PATHS:
                self._by_words.clear()
            self._by_words[key] = next((rule for rule in self.programs if rule.matches(*key)), None)
        return self._by_words[key]


def witness(row: Row, role: str) -> str | None:
    """The role of the process that made an event, as far as somebody knows: inotify does not tell."""
    return None if row.kind == Kind.INOTIFY and not row.pid else role


def nameless(text: str, names: Sequence[str]) -> str:
    """A path, or arguments, with zeros for each name: the same for every container."""
    for name in names:
        text = text.replace(name, "0" * len(name))
    return text


def _holds(rule: CallRule, kind: int, flags: int, role: str | None, on_request_goroutine: bool) -> bool:
    evidence = rule.evidence
    if kind not in rule.kinds or flags & evidence.flags != evidence.flags:
        return False
    if role is None:
        return True
    if evidence.role is not None and evidence.role != role:
        return False
    return role != "dockerd" or (evidence.goroutine == "request") == on_request_goroutine


def _call_rule(number: int, evidence: Evidence) -> CallRule:
    path = None
    if evidence.paths:
        path = re.compile("|".join(f"(?:{glob_to_regex(pattern)})" for pattern in evidence.paths))
    return CallRule(number, frozenset(evidence.calls) or _FILE_KINDS, path, evidence)
