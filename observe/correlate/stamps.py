# SPDX-License-Identifier: Apache-2.0
"""Which code concludes: what other code concluded is concluded again, so a better correlator improves it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from observe.phases import load

#: Whatever decides what is concluded from a recording: how it is read, the documented phases, the correlator, and who
#: feeds it.
_DECIDES = ("model.py", "recording", "phases", "correlate", "reports/assemble.py")
_SUFFIXES = (".py", ".toml")


def stamp() -> str:
    """A digest of the code and the data that conclude in this process, whatever has been installed since it began."""
    return _STAMP


def digest_of(package: Traversable) -> str:
    """A digest of the code and the data that conclude, as they lie in a package now."""
    digest = hashlib.sha256()
    for name in _DECIDES:
        for file in _files(package.joinpath(name)):
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


# Both at once, when the modules are loaded (10 ms): a recording may take hours, and end with other files on the disk.
load()
_STAMP = digest_of(resources.files("observe"))
