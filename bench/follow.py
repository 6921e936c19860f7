# SPDX-License-Identifier: Apache-2.0
"""What `observe serve` is like to live with: its memory, its scrapes, and how soon it is back after a restart.

`python bench/follow.py [--starts N] [--scrapes N] [--restarts N]`, as root; it starts a private engine, a serve for it,
and four clients. A restart ends dockerd by SIGTERM and SIGKILL in turn while clients are at work; its time goes from
dockerd's first answer until serve says that it is attached again. Prints a table. Exit code 1 if operations are
missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from engines import Engine, running_engine  # noqa: E402
from recorded import api_client  # noqa: E402
from served import Serving, eventually, restart, serving  # noqa: E402

_CLIENTS = 4


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=200, help="before the scrapes (default: %(default)s)")
    parser.add_argument("--scrapes", type=int, default=300, help="idle, and as many under load (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=10)
    args = parser.parse_args()
    machine = f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{machine}, {datetime.now(UTC):%Y-%m-%d}, after {args.starts} starts\n")
    print("| | n | min | median | p99 | max |\n|---|---:|---:|---:|---:|---:|")
    with (
        tempfile.TemporaryDirectory(prefix="observe-bench-") as name,
        running_engine() as engine,
        serving(engine.url, Path(name)) as server,
    ):
        folder = Path(name)
        row("memory when attached, MB", [memory_mb(server)])
        load = api_client(engine, folder / "times", "--clients", str(_CLIENTS))
        for quarter in range(1, 5):
            subprocess.run([*load, "--runs", str(args.starts // _CLIENTS // 4)], check=True)
            row(f"memory after {args.starts * quarter // 4} starts, MB", [memory_mb(server)])
        row("a scrape, idle, ms", scrapes_ms(server, args.scrapes))
        with subprocess.Popen([*load, "--runs", "100000"], stderr=subprocess.DEVNULL) as clients:
            row(f"a scrape, {_CLIENTS} clients at work, ms", scrapes_ms(server, args.scrapes))
            row("memory, MB", [memory_mb(server)])
            clients.kill()
        row("series", [float(len(server.series()))])
        set_aside(engine)
        row("attached after a restart, s", restarts_seconds(engine, server, folder, args.restarts))
        row("memory, MB", [memory_mb(server)])
        counted = server.total("observe_operation_duration_seconds_count", operation="start", outcome="ok")
    return 0 if counted >= args.starts else 1


def row(what: str, values: Sequence[float]) -> None:
    """One line of the table."""
    low, middle, late, high = np.percentile(values, (0, 50, 99, 100))
    print(f"| {what} | {len(values)} | {low:.2f} | {middle:.2f} | {late:.2f} | {high:.2f} |", flush=True)


def memory_mb(server: Serving) -> float:
    """What serve has of its own and of files, in MB (/proc/PID/status)."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{server.process.pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def scrapes_ms(server: Serving, count: int) -> list[float]:
    """How long scrapes took, ten a second."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        server.get("/metrics")
        taken.append((time.perf_counter() - started) * 1e3)
        time.sleep(0.1)
    return taken


def restarts_seconds(engine: Engine, server: Serving, folder: Path, count: int) -> list[float]:
    """How long after dockerd's first answer serve was attached again."""
    taken = []
    for number in range(count):
        before = attachments(server)
        load = api_client(engine, folder / "interrupted", "--clients", "2", "--runs", "100000")
        with subprocess.Popen(load, stderr=subprocess.DEVNULL) as clients:
            time.sleep(2)
            restart(engine, signal.SIGKILL if number % 2 else signal.SIGTERM)
            started = time.monotonic()
            eventually(lambda n=before: attachments(server) > n)  # type: ignore[misc]
            taken.append(time.monotonic() - started)
            clients.kill()
        set_aside(engine)
    return taken


def attachments(server: Serving) -> int:
    """How often it has attached so far."""
    return server.log.read_text(encoding="utf-8").count("attached to dockerd")


def set_aside(engine: Engine) -> None:
    """Containers as clients left them: their names are needed again, and after a SIGKILL not all can be removed."""
    for container in engine.client.containers.list(all=True):
        if not container.name.startswith("left-"):
            container.rename(f"left-{container.short_id}")


if __name__ == "__main__":
    sys.exit(main())
