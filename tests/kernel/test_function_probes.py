# SPDX-License-Identifier: Apache-2.0
"""Attaching to functions that fails halfway leaves nothing attached and nothing open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from observe.errors import HostCannotError
from observe.probes import bpf
from observe.probes.attach import EventProbes, FunctionProbes
from observe.probes.compiler import Image
from observe.probes.functions import Function, Target

#: cmp rsp, 0; jbe +0; ret
CODE = bytes.fromhex("4883fc007600c3")


def targets(folder: Path) -> list[Target]:
    found = []
    for number in (1, 2):
        path = folder / f"code{number}"
        path.write_bytes(CODE.ljust(4096, b"\xcc"))
        function = Function(
            number, f"f{number}", path.name, 4, entry_is_emulated=True, return_offsets=(6,), depth=0, cookie=number
        )
        found.append(Target(path, 0, (function,)))
    return found


@pytest.mark.parametrize(("multi", "good"), [(True, 0), (True, 1), (False, 0), (False, 1), (False, 2), (False, 3)])
def test_a_site_that_is_refused_leaves_nothing(
    image: Image, folder: Path, monkeypatch: pytest.MonkeyPatch, multi: bool, good: int
) -> None:
    name = "uprobe_multi_open" if multi else "perf_uprobe_open"
    real, calls = getattr(bpf, name), []

    def refuse(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) > good:
            raise OSError(22, "Invalid argument")
        return real(*arguments, **options)

    monkeypatch.setattr(bpf, name, refuse)
    with EventProbes(image, 4096) as events:
        before = set(Path("/proc/self/fd").iterdir())
        probes = FunctionProbes(image, events, multi=multi)
        with pytest.raises(HostCannotError, match="functions cannot be probed"):
            probes.attach(targets(folder))
        assert len(calls) == good + 1
        # Whoever goes on without functions keeps the object: it must not hold anything either.
        assert set(Path("/proc/self/fd").iterdir()) == before
