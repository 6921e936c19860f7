# SPDX-License-Identifier: Apache-2.0
"""`make demo`, with no more than `make setup` installs: what everybody tries first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from engines import Engine
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
#: Read by every Python at its start: modules that are not there.
MISSING = """
import sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
"""


def distributions(extra: str) -> set[str]:
    """What pip installs for `observe[extra]`."""
    found: set[str] = set()
    waiting = [("observe", extra)]
    while waiting:
        name, extra = waiting.pop()
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another Python, or another system
            continue
        found.add(canonicalize_name(name))
        for requirement in map(Requirement, required):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if needed and not (canonicalize_name(requirement.name) in found and not requirement.extras):
                waiting += [(requirement.name, one) for one in requirement.extras or {""}]
    return found


def only_of_developers() -> set[str]:
    """Modules that `make setup` does not bring."""
    developers, users = distributions("dev"), distributions("export")
    return {
        module
        for module, names in metadata.packages_distributions().items()
        if (brought_by := set(map(canonicalize_name, names))) <= developers and not brought_by & users
    }


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    modules = only_of_developers()
    assert {"docker", "pytest", "yaml"} <= modules
    assert not {"numpy", "capstone", "observe", "pyarrow"} & modules
    (tmp_path / "sitecustomize.py").write_text(MISSING.format(modules=modules))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}


def demo(environment: dict[str, str], docker_host: str) -> str:
    """What it prints."""
    command = [sys.executable, ROOT / "scripts" / "demo"]
    done = subprocess.run(
        command, env={**environment, "DOCKER_HOST": docker_host}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_both_are_told(printed: str) -> None:
    told = re.findall(r"^(create|start) observe-demo-\S+ · ok · ", printed, re.MULTILINE)
    assert told == ["create", "start"]
    assert {"rw_layer", "containerd_start"} <= set(printed.split())


def test_with_a_live_engine_it_uses_that_one_and_leaves_nothing_in_it(
    engine: Engine, environment: dict[str, str]
) -> None:
    def content() -> tuple[set[str], set[str]]:
        return (
            {str(one["Id"]) for one in engine.client.api.containers(all=True)},
            {tag for one in engine.client.api.images() for tag in one["RepoTags"] or ["none"]},
        )

    before = content()
    printed = demo(environment, engine.url)
    assert f"using the live dockerd at {engine.url}" in printed
    assert_both_are_told(printed)
    assert content() == before


def test_without_one_it_starts_one_of_its_own(environment: dict[str, str]) -> None:
    printed = demo(environment, "unix:///nobody/listens/here.sock")
    assert "starting a private one" in printed
    assert_both_are_told(printed)
