# SPDX-License-Identifier: Apache-2.0
"""Files that travel with the package: BPF programs with their header tree, dashboards."""

from __future__ import annotations

from pathlib import Path

from observe.errors import ObserveError

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `bpf` or `dashboards`: inside an installed package, or beside it in a checkout.

    Raises ObserveError if neither has it.
    """
    for candidate in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise ObserveError(f"the package lacks its folder {name}: install observe again")
