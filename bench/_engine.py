# SPDX-License-Identifier: Apache-2.0
"""The engine that benchmarks measure on: a private one, with a tiny image, gone afterwards."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "observe-tiny"
CLIENT = ROOT / "tests" / "workloads" / "api_client.py"
PLAN_CLIENT = ROOT / "tests" / "workloads" / "plan_client.py"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on a disk, as overlay2 does not work on a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="observe-bench-") as folder:
        yield Path(folder)


@contextmanager
def private_engine(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start an engine with these options whose files are in `folder`; its socket. Raises CalledProcessError.

    `environment`: of dockerd, added to ours.
    """
    program, directory = str(ROOT / "scripts" / "private-dockerd"), folder / "e"
    subprocess.run([program, "start", directory, *options], check=True, env={**os.environ, **(environment or {})})
    try:
        yield f"{directory}/docker.sock"
    finally:
        subprocess.run([program, "stop", directory], check=True)
