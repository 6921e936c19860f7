# SPDX-License-Identifier: Apache-2.0
"""Run the real `observe record` and `observe report` on a private engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines import Engine

from observe.errors import RecordingError
from observe.model import Note, NoteKind
from observe.recording import Recording

WORKLOADS = Path(__file__).parent / "workloads"
OBSERVE = [sys.executable, "-m", "observe"]
TIMEOUT_SECONDS = 300


def api_client(engine: Engine, out: Path, *options: str) -> list[str]:
    """Command line of the workload that creates and starts containers and times each request."""
    script = str(WORKLOADS / "api_client.py")
    return [sys.executable, script, str(engine.socket), engine.image, str(out), *options]


def client_times(out: Path) -> list[dict[str, Any]]:
    """What the workload has timed."""
    return [json.loads(line) for line in out.read_text().splitlines()]


def record(
    engine: Engine, path: Path, command: list[str], *options: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`observe record` of a command."""
    return subprocess.run(
        [*OBSERVE, "record", "--docker-host", engine.url, "-o", str(path), *options, "--", *command],
        capture_output=True,
        text=True,
        check=check,
        timeout=TIMEOUT_SECONDS,
    )


@contextmanager
def recorder(engine: Engine, path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`observe record` without a command, attached; killed at the end if it still runs."""
    command = [*OBSERVE, "record", "--docker-host", engine.url, "-o", str(path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until_attached(process, path)
            yield process
        finally:
            process.kill()


def wait_until_attached(process: subprocess.Popen[str], path: Path) -> None:
    """Until the recording says which processes are followed: it does so once everything is attached."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if any(isinstance(item, Note) and item.kind is NoteKind.PROCESS for item in Recording.open(path).items()):
                return
        except RecordingError:
            pass  # not begun yet
        time.sleep(0.02)
    raise AssertionError(f"not attached: {process.poll()}")


def report(*paths: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """`observe report -f json`."""
    command = [*OBSERVE, "report", "-f", "json", *options, *map(str, paths)]
    document: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return document


def runs_of(document: dict[str, Any], operation: str) -> list[dict[str, Any]]:
    """The runs of one operation."""
    return [run for run in document["runs"] if run["operation"] == operation]
