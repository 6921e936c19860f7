# SPDX-License-Identifier: Apache-2.0
"""Find the documented functions in an engine's binaries: what can be probed, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observe.engine import Engine
from observe.engine.binaries import binaries
from observe.errors import ObserveError
from observe.phases import Catalogue
from observe.phases.strings import load_strings
from observe.probes.functions import Target, plan, wanted
from observe.probes.resolve import Refused, Resolution, resolve_in_child


@dataclass(frozen=True, slots=True)
class Targets:
    """What can be probed, and what is to be told about the rest."""

    targets: tuple[Target, ...]
    #: One line a binary that could not be read.
    warnings: tuple[str, ...]
    #: {"name", "binary", "reason"} of each documented function that is there and cannot be probed.
    refused: tuple[Mapping[str, Any], ...]


def find_targets(engine: Engine, catalogue: Catalogue, cache: Path | None) -> Targets:
    """Read the engine's binaries in two child processes, or take what the cache has.

    A binary that cannot be read is a warning.
    """
    patterns = wanted(catalogue)
    files = binaries(engine)
    daemons = {"dockerd": engine.pid, "containerd": engine.containerd_pid or 0}
    found: dict[str, tuple[Path, int, Resolution]] = {}
    warnings = []
    # dockerd is as large as all the others together, and two processors are everywhere.
    groups = [{"dockerd": files["dockerd"]}, {name: path for name, path in files.items() if name != "dockerd"}]
    with ThreadPoolExecutor(len(groups)) as pool:
        answers = list(pool.map(lambda group: resolve_in_child(group, patterns, cache), groups))
    for name, resolution in [pair for answer in answers for pair in answer.items()]:
        if isinstance(resolution, ObserveError):
            warnings.append(f"functions of {name} are not timed: {resolution}")
        else:
            found[name] = (files[name], daemons.get(name, 0), resolution)
    refused = [
        {"name": refusal.name, "binary": name, "reason": refusal.reason}
        for name, (_, _, resolution) in found.items()
        for refusal in (*resolution.refused, *_at_another_depth(resolution))
    ]
    return Targets(plan(found, catalogue, load_strings()), tuple(warnings), tuple(refused))


def _at_another_depth(resolution: Resolution) -> list[Refused]:
    """What `plan` leaves out: a frame is known by its depth, so entry and return must see the same."""
    reason = "where it can be probed its stack pointer is not the one that it returns with"
    return [
        Refused(function.key, function.name, reason)
        for function in resolution.functions
        if function.entry_sp_adjust_bytes
    ]
