# SPDX-License-Identifier: Apache-2.0
"""How long do attaching and detaching take, and does anybody notice? Everything attached, an engine that is at work.

`python bench/attach.py [times]`, as root, on a private engine: attaches so many times with nothing in the cache, to an
engine that it has not seen (*cold*: the programs are there, `make setup` or `observe doctor` has compiled them), and to
one that it knows; first alone, then while four clients create and start. Prints a markdown table of seconds.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from _engine import IMAGE, ROOT, private_engine, scratch

from observe.collectors.session import Session, SessionOptions
from observe.engine import find_engine

CLIENTS = 4


def main() -> None:
    """Measure and print."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    print(f"{machine}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| seconds | clients | n | min | median | max |\n|---|---:|---:|---:|---:|---:|")
    with scratch() as folder, private_engine(folder) as socket:
        rows(socket, folder / "cache", times, 0)
        with load(socket, CLIENTS):
            rows(socket, folder / "cache", times, CLIENTS)


@contextmanager
def load(socket: str, clients: int) -> Iterator[None]:
    """Clients that create and start meanwhile. Raises RuntimeError if a request of theirs failed."""
    command = [sys.executable, str(ROOT / "tests" / "workloads" / "load.py"), socket, IMAGE, str(clients)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield
        told = json.loads(process.communicate()[0])
    if told["failures"]:
        raise RuntimeError(f"requests failed while attaching and detaching: {told['failures']}")


def fill(socket: str, cache: Path) -> None:
    """Attach once, so that everything is in the cache."""
    with Session(find_engine(f"unix://{socket}"), SessionOptions(cache=cache)) as session:
        session.start()


def of_programs(cache: Path) -> Path:
    """A cache with the compiled programs of another, and nothing of any engine."""
    folder = Path(tempfile.mkdtemp(dir=cache.parent))
    for kept in cache.glob("programs-*"):
        shutil.copy(kept, folder)
    return folder


def rows(socket: str, cache: Path, times: int, clients: int) -> None:
    """Print one row for each kind of attaching and one for detaching."""
    fill(socket, cache)
    kinds: dict[str, Callable[[], Path | None]] = {
        "attach, nothing compiled": lambda: None,
        "attach, cold": lambda: of_programs(cache),
        "attach, cached": lambda: cache,
    }
    measured: dict[str, list[float]] = {name: [] for name in (*kinds, "detach")}
    for _ in range(times):
        for name, folder in kinds.items():
            with Session(find_engine(f"unix://{socket}"), SessionOptions(cache=folder())) as session:
                start = time.monotonic()
                session.start()
                measured[name].append(time.monotonic() - start)
                start = time.monotonic()
                session.stop()
                measured["detach"].append(time.monotonic() - start)
    for name, values in measured.items():
        numbers = (min(values), statistics.median(values), max(values))
        cells = " | ".join(f"{number:.2f}" for number in numbers)
        print(f"| {name} | {clients} | {len(values)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
