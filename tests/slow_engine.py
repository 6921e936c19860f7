# SPDX-License-Identifier: Apache-2.0
"""Private engines that start through a `dockerd` of ours on PATH: with a priority, or with a plugin that is known."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engines import Engine

WORKLOADS = Path(__file__).parent / "workloads"
PLUGIN = "observe-slow"
#: Not a real-time policy, which containers would inherit: see `never_waiting`.
FIRST = 'exec nice -n -20 "$DOCKERD" "$@"'


def installed(program: str) -> str:
    """Path of a program of the engine."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin")
    assert found is not None
    return found


def put_on_path(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A folder that private-dockerd looks for dockerd in before anywhere else."""
    programs = folder / "bin"
    programs.mkdir()
    patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def start_dockerd_by(script: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The next private engine's dockerd is started by a shell script; "$DOCKERD" in it is the real one."""
    dockerd = installed("dockerd")
    program = put_on_path(folder, patch) / "dockerd"
    program.write_text(f"#!/bin/sh\nDOCKERD={dockerd}\n{script}\n")
    program.chmod(0o755)


def never_waiting(engine: Engine) -> None:
    """dockerd of this engine never waits for a processor: its times are its own.

    Not containerd, which it has started by now: with cgroup v1 a container with a real-time policy does not start.
    """
    subprocess.run(["chrt", "--all-tasks", "--fifo", "--pid", "1", str(engine.pid)], check=True)


def slow_runtime(folder: Path, name: str) -> Path:
    """A runtime of this name (see workloads/slow_runtime.py)."""
    path = folder / name
    path.symlink_to(WORKLOADS / "slow_runtime.py")
    return path


@contextmanager
def slow_plugin(folder: Path, short_ms: int, long_ms: int, patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin that the next private engine knows as PLUGIN; gives the file of what it says of its waits."""
    delays, volumes, channel = folder / "plugin.delays", folder / "volumes", folder / "plugin.sock"
    volumes.mkdir()
    spec = f"/etc/docker/plugins/{PLUGIN}.spec"
    # dockerd's /etc is its own. With two Go processors, both of which may sit in open(), a start waits 15 ms or not,
    # and any delay before that decides which.
    start_dockerd_by(
        f"mkdir -p {Path(spec).parent} && echo unix://{channel} > {spec}; export GOMAXPROCS=4; {FIRST}", folder, patch
    )
    arguments = map(str, (channel, volumes, delays, short_ms, long_ms))
    command = [sys.executable, str(WORKLOADS / "slow_plugin.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield delays
        finally:
            process.kill()
