# SPDX-License-Identifier: Apache-2.0
"""The built wheel works outside the checkout: programs, header tree and catalogue travel with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from engines import Engine
from recorded import api_client

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the wheel's content, as pip would install it."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("observe-*.whl")
    folder = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_it_records_and_reports(installed: Path, engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "wheel.observe"
    observe = [sys.executable, "-m", "observe"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*observe, *arguments], env=environment, cwd="/", capture_output=True, text=True, check=True
        )
        return done.stdout

    where = "import observe, observe.resources as r; print(observe.__file__, r.folder('bpf'), r.folder('dashboards'))"
    places = subprocess.run(
        [sys.executable, "-c", where], env=environment, cwd="/", capture_output=True, text=True, check=True
    )
    assert all(place.startswith(str(installed)) for place in places.stdout.split())
    run("record", "--docker-host", engine.url, "-o", str(path), "--", *api_client(engine, tmp_path / "times"))
    runs = json.loads(run("report", "-f", "json", str(path)))["runs"]
    assert [run["operation"] for run in runs] == ["create", "start"]
    assert "create.rw_layer" in run("phases", "-f", "json")


def test_the_licences_travel_too(installed: Path) -> None:
    files = {path.name for path in installed.rglob("*") if path.is_file()}
    assert {"LICENSE", "events.bpf.c", "kconfig.h", "create.toml"} <= files
