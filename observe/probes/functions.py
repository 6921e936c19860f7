# SPDX-License-Identifier: Apache-2.0
"""Definition of `bpf/functions.bpf.c`: which functions it is attached to, and what its cookies say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observe.phases import Catalogue
from observe.phases.strings import StringArgument

if TYPE_CHECKING:
    from observe.probes.resolve import Resolution, ResolvedFunction

SOURCE = "functions.bpf.c"
PROGRAM = "function_site"

#: What a hit costs the thread that is hit: an emulated instruction, and one that is single-stepped. Medians of
#: `bench/functions.py`; see docs/cost.md for machine and spread.
ENTRY_COST_NS = 2_400
RETURN_COST_NS = 6_100

_RETURN = 1 << 16
_STACK_ABI = 1 << 17
_STRING_SHIFT = 20
_NUMBERS = 1 << 16


@dataclass(frozen=True, slots=True)
class Function:
    """A function that is probed, with its number in the records."""

    number: int
    name: str
    binary: str
    entry_offset: int
    entry_is_emulated: bool
    return_offsets: tuple[int, ...]
    #: How deep its shallowest phase lies: what is attached first where only few sites can be.
    depth: int
    cookie: int

    def sites(self) -> list[tuple[int, int]]:
        """(file offset, cookie) of its entry and its returns."""
        return [(self.entry_offset, self.cookie), *((offset, self.cookie | _RETURN) for offset in self.return_offsets)]

    def note(self) -> dict[str, Any]:
        """What a recording says of it."""
        return {
            "number": self.number,
            "name": self.name,
            "binary": self.binary,
            "entry_is_emulated": self.entry_is_emulated,
            "sites": 1 + len(self.return_offsets),
        }


@dataclass(frozen=True, slots=True)
class Target:
    """A file with its functions; `pid`: the process that is looked at, or 0 for whoever executes it."""

    path: Path
    pid: int
    functions: tuple[Function, ...]


def wanted(catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    """Key → patterns of every function that the catalogue names; the keys are phase ids."""
    found = {}
    for phase in catalogue.phases:
        patterns = phase.functions + phase.to_entry + phase.from_return
        if patterns:
            found[phase.id] = patterns
    return found


def plan(
    resolutions: Mapping[str, tuple[Path, int, Resolution]], catalogue: Catalogue, strings: Sequence[StringArgument]
) -> tuple[Target, ...]:
    """Number the functions and make their cookies. `resolutions`: binary → (path, pid, what was found in it)."""
    depths = {phase.id: phase.depth for phase in catalogue.phases}
    number = 0
    targets = []
    for binary, (path, pid, resolution) in resolutions.items():
        functions = []
        for name, (resolved, depth) in _distinct(resolution.functions, depths).items():
            number += 1
            cookie = number % _NUMBERS | (0 if resolution.register_abi else _STACK_ABI)
            cookie |= _string_bits(name, strings)
            functions.append(
                Function(
                    number,
                    name,
                    binary,
                    resolved.entry_offset,
                    resolved.entry_is_emulated,
                    tuple(resolved.return_offsets),
                    depth,
                    cookie,
                )
            )
        if functions:
            targets.append(Target(path, pid, tuple(functions)))
    return tuple(targets)


def _distinct(
    resolved: Iterable[ResolvedFunction], depths: Mapping[str, int]
) -> dict[str, tuple[ResolvedFunction, int]]:
    """Each function once, though several phases may list it, with the least depth of them."""
    found: dict[str, tuple[ResolvedFunction, int]] = {}
    for function in resolved:
        if function.entry_sp_adjust_bytes:
            continue  # a frame is known by its depth, which would differ between its entry and its return
        depth = depths.get(function.key, 0)
        if function.name not in found or depth < found[function.name][1]:
            found[function.name] = (function, depth)
    return found


def _string_bits(name: str, strings: Sequence[StringArgument]) -> int:
    for argument in strings:
        if any(fnmatchcase(name, pattern) for pattern in argument.functions):
            return (argument.word + 1) << _STRING_SHIFT
    return 0
