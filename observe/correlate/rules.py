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
from observe.correlate.rows import Row
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

    def matches(self, row: Row) -> bool:
        """Whether an exec event begins the program."""
        words = row.detail.split("\0")
        names = {basename(row.path), basename(words[0])}
        rule = self.evidence
        return (
            any(fnmatchcase(name, rule.program or "") for name in names)
            and (rule.argument is None or rule.argument in words[1:])
            and (rule.companion is None or rule.companion in words[1:])
        )


class Rules:
    """The rules of one operation; phases are numbered as `phases` lists them, 0 is the operation itself."""

    def __init__(self, phases: Sequence[Phase], data_root: str) -> None:
        """Compile. `data_root`: what `{data}` stands for."""
        self.phases = tuple(phases)
        self.functions = FunctionRules(phases)
        self.programs: list[ProgramRule] = []
        self._data_root = data_root.rstrip("/")
        self._calls: list[CallRule] = []
        self._by_path: dict[str, tuple[CallRule, ...]] = {}
        for number, phase in enumerate(phases):
            for evidence in phase.evidence if number else ():
                if evidence.program is not None:
                    self.programs.append(ProgramRule(number, evidence))
                else:
                    self._calls.append(_call_rule(number, evidence))
        self._pathless = tuple(rule for rule in self._calls if rule.path is None)
        with_path = [rule.path.pattern for rule in self._calls if rule.path is not None]
        self._any_path = re.compile("|".join(f"(?:{pattern})" for pattern in with_path) or r"(?!)")

    def candidates(self, row: Row, role: str, on_request_goroutine: bool) -> list[int]:
        """Numbers of the phases that an event speaks for by its path, in documented order."""
        return [rule.phase for rule in self._for_path(row.path) if _holds(rule, row, role, on_request_goroutine)]

    def weak_candidates(self, row: Row, role: str, on_request_goroutine: bool) -> list[int]:
        """Numbers of the phases in which a call like this one is made, among other places."""
        return [rule.phase for rule in self._pathless if _holds(rule, row, role, on_request_goroutine)]

    def _for_path(self, path: str) -> tuple[CallRule, ...]:
        found = self._by_path.get(path)
        if found is None:
            text = path
            if self._data_root and path.startswith(self._data_root + "/"):
                text = "{data}" + path[len(self._data_root) :]
            found = ()
            if self._any_path.fullmatch(text):
                found = tuple(rule for rule in self._calls if rule.path is not None and rule.path.fullmatch(text))
            if len(self._by_path) >= _CACHED_PATHS:
                self._by_path.clear()
            self._by_path[path] = found
        return found


def _holds(rule: CallRule, row: Row, role: str, on_request_goroutine: bool) -> bool:
    evidence = rule.evidence
    if row.kind not in rule.kinds or row.flags & evidence.flags != evidence.flags:
        return False
    if row.kind == Kind.INOTIFY and not row.pid:  # nobody knows who did it
        return True
    if evidence.role is not None and evidence.role != role:
        return False
    return role != "dockerd" or (evidence.goroutine == "request") == on_request_goroutine


def _call_rule(number: int, evidence: Evidence) -> CallRule:
    path = None
    if evidence.paths:
        path = re.compile("|".join(f"(?:{glob_to_regex(pattern)})" for pattern in evidence.paths))
    return CallRule(number, frozenset(evidence.calls) or _FILE_KINDS, path, evidence)
