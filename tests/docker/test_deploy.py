# SPDX-License-Identifier: Apache-2.0
"""The capabilities that deploy/ gives are enough for an account of its own, and none of them is too much."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from engines import Engine
from recorded import OBSERVE, api_client, report

UNIT = Path(__file__).parents[2] / "deploy" / "observe.service"
NOBODY = "65534"


def capabilities() -> list[str]:
    """Of the unit, as setpriv names them."""
    (line,) = re.findall(r"^AmbientCapabilities=(.*)$", UNIT.read_text(), re.MULTILINE)
    return [name.removeprefix("CAP_").lower() for name in line.split()]


def record(engine: Engine, folder: Path, held: list[str]) -> subprocess.CompletedProcess[str]:
    """Record a create and a start as systemd would run us: nobody, in the socket's group, with these capabilities."""
    os.chown(folder, int(NOBODY), int(NOBODY))
    some = ",".join(["-all", *(f"+{name}" for name in held)])
    identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={engine.socket.stat().st_gid}", "--no-new-privs"]
    powers = [f"--bounding-set={some}", f"--inh-caps={some}", f"--ambient-caps={some}"]
    options = ["record", "--docker-host", engine.url, "-o", str(folder / "run.observe")]
    command = ["setpriv", *identity, *powers, "--", *OBSERVE, *options, "--", *api_client(engine, folder / "times")]
    environ = os.environ | {"OBSERVE_CACHE": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def test_they_are_enough(engine: Engine, tmp_path: Path) -> None:
    done = record(engine, tmp_path, capabilities())
    assert done.returncode == 0, done.stderr
    runs = report(tmp_path / "run.observe")["runs"]
    assert [run["operation"] for run in runs] == ["create", "start"]
    for run in runs:
        assert run["phases"][0]["evidence"] == "function"
        assert sum(phase["file_events"] for phase in run["phases"]) > 0


@pytest.mark.parametrize("dropped", capabilities())
def test_none_is_too_much(engine: Engine, tmp_path: Path, dropped: str) -> None:
    done = record(engine, tmp_path, [name for name in capabilities() if name != dropped])
    assert done.returncode == 3
    assert f"CAP_{dropped.upper()}" in done.stderr
