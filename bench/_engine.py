# SPDX-License-Identifier: Apache-2.0
"""The engine that benchmarks measure on: a private one, with a tiny image, gone afterwards."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def recorded(path: Path, client: Callable[[str], Sequence[str]], *options: str) -> None:
    """Record a private engine into `path`, with its files beside it, while the client of its socket works."""
    with private_engine(path.parent) as socket:
        observe = [sys.executable, "-m", "observe", "record", "--docker-host", f"unix://{socket}", "-o", str(path)]
        subprocess.run([*observe, *options, "--", *client(socket)], check=True, capture_output=True)


def write_page(runs: int, page: Callable[[Path, int], str]) -> None:
    """The command line `[runs] [-o FILE]` of a benchmark whose page is made of so many runs, in a scratch folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=int, nargs="?", default=runs)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with scratch() as folder:
        text = page(folder, args.runs)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
