# SPDX-License-Identifier: Apache-2.0
"""Load and validate the catalogue: what is documented, and how the kernel shows it.

One TOML file an operation (`create.toml`, `start.toml`); the order of the phases in the file is the
documented order. Sections and steps are those of the walk-through of moby 19.03.9.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from observe.errors import ObserveError
from observe.model import Kind

_OPERATIONS = ("create", "start", "pull")
_PHASE_KEYS = {
    "id",
    "parent",
    "step",
    "title",
    "functions",
    "evidence",
    "occurs",
    "several",
    "to_entry",
    "from_return",
    "within",
    "not_with_networks",
}
_EVIDENCE_KEYS = {"calls", "path", "name", "flags", "role", "goroutine", "program", "argument", "with", "many", "until"}
_OCCURS = ("always", "on_failure", "if_configured")
_ROLES = ("dockerd", "containerd", "child")
_UNTIL = ("exit", "last_event")
_GOROUTINES = ("request", "other")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing in the kernel's event stream that proves a phase: a call on a path, or a program that runs.

    A *call* rule has `calls` (none: any file operation), `paths` (globs, one of which must match; `{data}` is
    the data root, `{driver}`, `{layer}` and `{id}` are what they say, `*` stays inside a name, `**` does not),
    `flags` (bits that must be set), `role` (which process) and `goroutine`: a call of dockerd counts on the
    goroutine that serves the `request`, or, if the rule says so, on any `other` while the phase's program runs.
    Without a path the rule is weak: other work makes such calls too, so it counts only between the neighbouring
    phases. A *program* rule has `program` (glob of
    the executed file's name or of its argument 0), `argument` and `companion` (words of its arguments); it spans
    from the program's fork to its `exit`, or to the `last_event` of its process tree inside the parent phase.
    `many`: it normally runs more than once.
    """

    calls: tuple[Kind, ...] = ()
    paths: tuple[str, ...] = ()
    flags: int = 0
    role: str | None = None
    goroutine: str = "request"
    program: str | None = None
    argument: str | None = None
    companion: str | None = None
    many: bool = False
    until: str = "exit"


@dataclass(frozen=True, slots=True)
class Phase:
    """One documented phase. `parent` is None for the operation itself."""

    id: str
    parent: str | None
    step: str
    title: str
    #: Go functions whose entry and return bound it, alternatives over engine versions, as patterns.
    functions: tuple[str, ...] = ()
    #: What shows it in the kernel's stream; empty: only its function can show it.
    evidence: tuple[Evidence, ...] = ()
    #: "always", "on_failure" or "if_configured": whether its absence is a departure.
    occurs: str = "always"
    #: Documented at more than one step: seen more than once, and not bound to one place in the order.
    several: bool = False
    #: Functions whose entry ends it (it begins with the operation), for a phase without a function of its own.
    to_entry: tuple[str, ...] = ()
    #: Functions whose return begins it: before its own functions do, or, if it has none, until the operation's end.
    from_return: tuple[str, ...] = ()
    #: Network modes, as globs, in which its absence is no departure.
    not_with_networks: tuple[str, ...] = ()
    #: Phases inside whose functions its own may run, though none of them is its parent.
    within: tuple[str, ...] = ()
    #: 0 for the operation, 1 for its phases, and so on.
    depth: int = field(init=False)
    #: Whether dockerd does part of it on other goroutines than the one that serves the request.
    runs_elsewhere: bool = field(init=False)

    def __post_init__(self) -> None:
        """Work out what is asked for every event."""
        object.__setattr__(self, "depth", self.id.count("."))
        object.__setattr__(self, "runs_elsewhere", any(rule.goroutine == "other" for rule in self.evidence))

    @property
    def operation(self) -> str:
        """The operation it belongs to: the first word of its id."""
        return self.id.partition(".")[0]

    @property
    def is_part(self) -> bool:
        """Whether it is a part of another phase that not every operation has."""
        return self.occurs == "if_configured"

    def is_due(self, network: str) -> bool:
        """Whether it always occurs in this network mode (empty: unknown), unless the operation fails."""
        return self.occurs == "always" and not any(fnmatchcase(network, mode) for mode in self.not_with_networks)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All documented phases, in the documented order; a parent stands before its children."""

    phases: tuple[Phase, ...]

    @property
    def operations(self) -> tuple[str, ...]:
        """Ids of the operations, in order."""
        return tuple(phase.id for phase in self.phases if phase.parent is None)

    def of(self, operation: str) -> tuple[Phase, ...]:
        """The phases of one operation, its own row first."""
        return tuple(phase for phase in self.phases if phase.operation == operation)


@cache
def load() -> Catalogue:
    """The catalogue of this version. Raises ObserveError if a data file breaks a rule (names file and phase)."""
    phases: list[Phase] = []
    for operation in _OPERATIONS:
        text = resources.files(__package__).joinpath(f"{operation}.toml").read_text(encoding="utf-8")
        phases.extend(parse(text, f"{operation}.toml"))
    return Catalogue(tuple(phases))


def parse(text: str, source: str) -> tuple[Phase, ...]:
    """Phases of one data file. Raises ObserveError that names `source`, the phase and the rule it breaks."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ObserveError(f"{source}: not TOML: {error}") from error
    seen: dict[str, Phase] = {}
    for entry in table.get("phase", []):
        phase = _phase(entry, source)
        _check_place(phase, seen, source)
        seen[phase.id] = phase
    if not seen:
        raise ObserveError(f"{source}: no [[phase]] in it")
    for phase in seen.values():
        unknown = set(phase.within) - set(seen)
        if unknown:
            raise ObserveError(f"{source}: {phase.id}: within names no phase of this file: {min(unknown)}")
    return tuple(seen.values())


def is_list_of_names(value: object) -> bool:
    """Whether a value of a data file is a list of strings, none of them empty."""
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _check_place(phase: Phase, seen: Mapping[str, Phase], source: str) -> None:
    if phase.id in seen:
        raise ObserveError(f"{source}: {phase.id}: the id is there twice")
    expected = phase.id.rpartition(".")[0] or None
    if phase.parent != expected:
        raise ObserveError(f"{source}: {phase.id}: parent is {phase.parent!r}, its id says {expected!r}")
    if phase.parent is not None and phase.parent not in seen:
        raise ObserveError(f"{source}: {phase.id}: its parent must stand before it")
    if phase.parent is None and seen:
        raise ObserveError(f"{source}: {phase.id}: a second phase without a parent")


def _phase(entry: Mapping[str, Any], source: str) -> Phase:
    name = entry.get("id")
    if not isinstance(name, str) or not name:
        raise ObserveError(f"{source}: a phase without an id")
    unknown = set(entry) - _PHASE_KEYS
    if unknown:
        raise ObserveError(f"{source}: {name}: unknown key {min(unknown)!r}")
    for key in ("step", "title"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ObserveError(f"{source}: {name}: {key} is missing")
    if entry.get("occurs", "always") not in _OCCURS:
        raise ObserveError(f"{source}: {name}: occurs must be one of {', '.join(_OCCURS)}")
    for key in ("functions", "to_entry", "from_return", "within", "not_with_networks"):
        if not is_list_of_names(entry.get(key, [])):
            raise ObserveError(f"{source}: {name}: {key} must be a list of names")
    if not isinstance(entry.get("several", False), bool):
        raise ObserveError(f"{source}: {name}: several must be true or false")
    return Phase(
        id=name,
        parent=entry.get("parent"),
        step=entry["step"],
        title=entry["title"],
        functions=tuple(entry.get("functions", [])),
        evidence=tuple(_evidence(rule, f"{source}: {name}") for rule in entry.get("evidence", [])),
        occurs=entry.get("occurs", "always"),
        several=entry.get("several", False),
        to_entry=tuple(entry.get("to_entry", [])),
        from_return=tuple(entry.get("from_return", [])),
        within=tuple(entry.get("within", [])),
        not_with_networks=tuple(entry.get("not_with_networks", [])),
    )


def _evidence(rule: Mapping[str, Any], where: str) -> Evidence:
    unknown = set(rule) - _EVIDENCE_KEYS
    if unknown:
        raise ObserveError(f"{where}: unknown key {min(unknown)!r} in evidence")
    if ("calls" in rule or "path" in rule) == ("program" in rule):
        raise ObserveError(f"{where}: evidence needs either calls or a path, or a program")
    try:
        calls = tuple(Kind[label.upper()] for label in rule.get("calls", []))
    except KeyError as error:
        raise ObserveError(f"{where}: no such call: {error.args[0].lower()}") from None
    for key, allowed in (("role", _ROLES), ("until", _UNTIL), ("goroutine", _GOROUTINES)):
        if key in rule and rule[key] not in allowed:
            raise ObserveError(f"{where}: {key} must be one of {', '.join(allowed)}")
    path = rule.get("path")
    if (path is not None and "{name}" in path) != ("name" in rule):
        raise ObserveError(f"{where}: {{name}} in path and the list name go together")
    return Evidence(
        calls=calls,
        paths=() if path is None else tuple(path.replace("{name}", name) for name in rule.get("name", [""])),
        flags=rule.get("flags", 0),
        role=rule.get("role"),
        goroutine=rule.get("goroutine", "request"),
        program=rule.get("program"),
        argument=rule.get("argument"),
        companion=rule.get("with"),
        many=rule.get("many", False),
        until=rule.get("until", "exit"),
    )
