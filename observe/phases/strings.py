# SPDX-License-Identifier: Apache-2.0
"""String arguments that say whom a function works for (`strings.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from observe.errors import ObserveError
from observe.phases.catalogue import is_list_of_names

_KEYS = {"means", "word", "functions"}
_LAST_WORD = 6  # pointer and length must be among the eight words that the probe keeps


@dataclass(frozen=True, slots=True)
class StringArgument:
    """The string whose pointer is argument word `word` (from 0) of functions that match `functions` (globs)."""

    means: str
    word: int
    functions: tuple[str, ...]


@cache
def load_strings() -> tuple[StringArgument, ...]:
    """The arguments of this version. Raises ObserveError if the data file breaks a rule."""
    text = resources.files(__package__).joinpath("strings.toml").read_text(encoding="utf-8")
    return parse_strings(text, "strings.toml")


def parse_strings(text: str, source: str) -> tuple[StringArgument, ...]:
    """The arguments in a data file. Raises ObserveError that names `source` and the rule it breaks."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ObserveError(f"{source}: not TOML: {error}") from error
    found = []
    for entry in table.get("string", []):
        if set(entry) != _KEYS:
            raise ObserveError(f"{source}: a string needs exactly the keys {', '.join(sorted(_KEYS))}")
        if type(entry["word"]) is not int or not 0 <= entry["word"] <= _LAST_WORD:
            raise ObserveError(f"{source}: word must be between 0 and {_LAST_WORD}")
        if not is_list_of_names(entry["functions"]):
            raise ObserveError(f"{source}: functions must be a list of names")
        found.append(StringArgument(entry["means"], entry["word"], tuple(entry["functions"])))
    return tuple(found)
