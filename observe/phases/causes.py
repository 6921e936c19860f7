# SPDX-License-Identifier: Apache-2.0
"""Why operations take their time, as data: `causes.toml` says how a cause is recognised, and the words for it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from observe.errors import ObserveError
from observe.model import PathStep, Remedy
from observe.phases.catalogue import is_list_of_names

_STATES = ("cpu", "runqueue", "blocked")
#: What a sleep waits for that fits no reason.
OTHER = "other"
_OTHER_TITLE = "something in the kernel"
#: Words that a text may have in braces.
PLACES = ("count", "sleeps", "processes", "programs", "files", "phases")


@dataclass(frozen=True, slots=True)
class Sleep:
    """Where a thread sleeps: system call, kind of file system of its descriptor, functions, innermost first."""

    call: str
    filesystem: str
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """What a sleep waits for: it fits if one of the patterns does."""

    name: str
    title: str
    stack: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()

    def fits(self, sleep: Sleep) -> bool:
        """Whether a sleep is one of these."""
        return (
            sleep.call in self.calls
            or sleep.filesystem in self.filesystems
            or any(_matches(function, self.stack) for function in sleep.stack)
        )


@dataclass(frozen=True, slots=True)
class CauseRule:
    """A cause that somebody has written down; it fits a step of a critical path if all that it names do."""

    id: str
    text: str
    phases: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    remedy: Remedy | None = None

    def fits(self, step: PathStep) -> bool:
        """Whether a step is one of these."""
        return (
            _allows(self.states, step.state)
            and _allows(self.reasons, step.reason)
            and _allows(self.calls, step.call)
            and _allows(self.programs, step.program)
            and _allows(self.files, step.file.rpartition("/")[2])
            and (not self.phases or any(_is_in(step.phase, phase) for phase in self.phases))
            and (not self.stack or any(_matches(function, self.stack) for function in step.stack))
        )

    def applies_to(self, engine_version: str) -> bool:
        """Whether an engine of this version has it; one of unknown version may."""
        version = _numbers(engine_version)
        return not version or (
            (not self.since or version >= _numbers(self.since)) and (not self.until or version < _numbers(self.until))
        )


@dataclass(frozen=True, slots=True)
class Causes:
    """All reasons and causes, in the order in which they are tried."""

    reasons: tuple[Reason, ...]
    causes: tuple[CauseRule, ...]

    def reason(self, sleep: Sleep) -> str:
        """Name of what a sleep waits for: the first reason whose patterns fit its stack, else its call or file."""
        # Where it sleeps says more than the call that led there.
        where = Sleep("", "", sleep.stack)
        for witness in (where, sleep):
            found = next((reason.name for reason in self.reasons if reason.fits(witness)), None)
            if found:
                return found
        return OTHER

    def title(self, reason: str) -> str:
        """What completes "waited for"."""
        return next((one.title for one in self.reasons if one.name == reason), _OTHER_TITLE)


@cache
def load_causes() -> Causes:
    """The catalogue of this version. Raises ObserveError if the data file breaks a rule."""
    text = resources.files(__package__).joinpath("causes.toml").read_text(encoding="utf-8")
    return parse_causes(text, "causes.toml")


def parse_causes(text: str, source: str) -> Causes:
    """Reasons and causes of a data file. Raises ObserveError that names `source`, the entry and the rule it breaks."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ObserveError(f"{source}: not TOML: {error}") from error
    reasons = tuple(_reason(entry, source) for entry in table.get("reason", []))
    known = {reason.name for reason in reasons} | {OTHER}
    causes = tuple(_cause(entry, source, known) for entry in table.get("cause", []))
    for names in ([reason.name for reason in reasons], [cause.id for cause in causes]):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ObserveError(f"{source}: {twice}: is there twice")
    return Causes(reasons, causes)


def _reason(entry: Mapping[str, Any], source: str) -> Reason:
    where = _named(entry, "name", "title", source)
    patterns = _lists(entry, Reason, where, texts=("name", "title"))
    if not any(patterns.values()):
        raise ObserveError(f"{where}: needs stack, calls or filesystems")
    return Reason(entry["name"], entry["title"], **patterns)


def _cause(entry: Mapping[str, Any], source: str, reasons: Iterable[str]) -> CauseRule:
    where = _named(entry, "id", "text", source)
    texts = ("id", "text", "since", "until", "remedy")
    patterns = _lists(entry, CauseRule, where, texts=texts)
    for key, allowed in (("states", _STATES), ("reasons", reasons)):
        unknown = set(patterns.get(key, ())) - set(allowed)
        if unknown:
            raise ObserveError(f"{where}: no such one of {key}: {min(unknown)}")
    if not any(patterns.values()):
        raise ObserveError(f"{where}: would fit everything")
    unknown = set(re.findall(r"{(\w*)}", entry["text"])) - set(PLACES)
    if unknown:
        raise ObserveError(f"{where}: no such place in a text: {{{min(unknown)}}}")
    remedy = entry.get("remedy")
    if remedy is not None and set(remedy) != {field.name for field in fields(Remedy)}:
        raise ObserveError(f"{where}: a remedy needs text, source and risk")
    return CauseRule(
        entry["id"],
        entry["text"],
        **patterns,
        since=entry.get("since", ""),
        until=entry.get("until", ""),
        remedy=Remedy(**remedy) if remedy else None,
    )


def _named(entry: Mapping[str, Any], key: str, text: str, source: str) -> str:
    name = entry.get(key)
    if not isinstance(name, str) or not name:
        raise ObserveError(f"{source}: an entry without {key}")
    if not isinstance(entry.get(text), str) or not entry[text]:
        raise ObserveError(f"{source}: {name}: {text} is missing")
    return f"{source}: {name}"


def _lists(entry: Mapping[str, Any], kind: type, where: str, texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The keys of an entry that are lists of patterns."""
    names = {field.name for field in fields(kind)}
    unknown = set(entry) - names
    if unknown:
        raise ObserveError(f"{where}: unknown key {min(unknown)!r}")
    found = {}
    for name in set(entry) - set(texts):
        if not is_list_of_names(entry[name]):
            raise ObserveError(f"{where}: {name} must be a list of names")
        found[name] = tuple(entry[name])
    return found


def _allows(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or _matches(text, patterns)


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _is_in(phase: str, outer: str) -> bool:
    return phase == outer or phase.startswith(outer + ".")


def _numbers(version: str) -> tuple[int, ...]:
    """`20.10.24+dfsg1` → (20, 10, 24); nothing for what does not begin with a number."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
