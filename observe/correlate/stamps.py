# SPDX-License-Identifier: Apache-2.0
"""Which code concludes: what other code concluded is concluded again, so a better correlator improves it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

#: Whatever decides what is concluded from a recording: how it is read, the documented phases, the correlator, and who
#: feeds it.
_DECIDES = ("model.py", "recording", "phases", "correlate", "reports/assemble.py")
_SUFFIXES = (".py", ".toml")


@cache
def stamp() -> str:
    """A digest of the code and the data that conclude, as they are installed."""
    digest = hashlib.sha256()
    for name in _DECIDES:
        for file in _files(resources.files("observe").joinpath(name)):
            digest.update(file.read_bytes())
            digest.update(b"\0")
    return digest.hexdigest()


def _files(place: Traversable) -> Iterator[Traversable]:
    """The place itself or all files below, in the order of their names."""
    if place.is_file():
        if place.name.endswith(_SUFFIXES):
            yield place
        return
    for inside in sorted(place.iterdir(), key=lambda one: one.name):
        yield from _files(inside)
