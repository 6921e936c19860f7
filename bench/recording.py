# SPDX-License-Identifier: Apache-2.0
"""How fast and how large recordings are, on synthetic events from a seed.

The events look like those of `docker create` and `docker start`: a container each 500 events, paths of about
100 characters with its id in them, 5 % of them distinct. Run it with `python bench/recording.py [events] [runs]`.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from observe.model import EVENT_DTYPE, EventBatch, Header, Kind
from observe.recording import Recording, RecordingWriter

EVENTS_A_CONTAINER = 500
PATHS_A_CONTAINER = 25
#: What one drain of the ring buffer delivers.
BATCH_ROWS = 2_000
COMMS = ("dockerd", "containerd", "containerd-shim", "runc", "runc:[2:INIT]", "exe")
FILES = ("config.v2.json", "hostconfig.json", "merged/etc/hosts", "diff", "work/work", "mounts/shm")
HEADER = Header({"hostname": "bench"}, {}, boot_time_ns=0, wall_time_ns=0, tool_version="bench")


def synthetic(events: int, seed: int) -> list[EventBatch]:
    """`events` events as a recorder gets them: batches of BATCH_ROWS, each with the strings that it uses."""
    numbers, ids = np.random.default_rng(seed), random.Random(seed)  # noqa: S311 - repeatable on purpose
    clock_ns = 10**12
    batches = []
    for start in range(0, events, BATCH_ROWS):
        rows = np.zeros(min(BATCH_ROWS, events - start), dtype=EVENT_DTYPE)
        count = len(rows)
        gaps_ns = numbers.exponential(400_000, count).astype("u8")
        rows["time_ns"] = clock_ns + np.cumsum(gaps_ns)
        clock_ns = int(rows["time_ns"][-1])
        rows["duration_ns"] = numbers.lognormal(9.5, 1.2, count).astype("u8")
        rows["kind"] = numbers.choice(
            [Kind.MOUNT, Kind.CLONE, Kind.EXECVE, Kind.MKDIRAT, Kind.OPENAT, Kind.UNLINKAT], count
        )
        worker = numbers.integers(0, 8, count)
        rows["goroutine"] = (0xC000000000 + numbers.integers(0, 4096, 8) * 0x1A0)[worker]
        rows["pid"] = numbers.integers(1_000, 60_000, 8)[worker]
        rows["tid"] = rows["pid"] + numbers.integers(0, 12, count)
        rows["ret"] = np.where(numbers.random(count) < 0.7, 0, numbers.integers(-40, 200, count))
        rows["flags"] = numbers.choice([0, 0, 0, 0, 0x80241, 0x1000, 0x6C020000, 2], count)
        rows["fd"] = np.where(numbers.random(count) < 0.5, -100, numbers.integers(-1, 40, count))
        rows["comm"] = numbers.integers(1, len(COMMS) + 1, count)
        containers = -(-count // EVENTS_A_CONTAINER)
        paths = [path for _ in range(containers) for path in _paths(f"{ids.getrandbits(256):064x}")]
        own = 1 + len(COMMS) + np.arange(count) // EVENTS_A_CONTAINER * PATHS_A_CONTAINER
        rows["path"] = own + numbers.integers(0, PATHS_A_CONTAINER, count)
        rows["path2"] = np.where(numbers.random(count) < 0.1, own + numbers.integers(0, PATHS_A_CONTAINER, count), 0)
        batches.append(EventBatch(rows, ("", *COMMS, *paths)))
    return batches


def scattered(events: int, seed: int) -> list[EventBatch]:
    """The worst case for a table each frame: the same paths, but any of them at any time."""
    whole = EventBatch.concat(synthetic(events, seed))
    rows = whole.rows.copy()
    rows["path"] = np.random.default_rng(seed).permutation(rows["path"])
    return [EventBatch(rows, whole.strings)]


def measure(batches: list[EventBatch], runs: int) -> dict[str, list[float]]:
    """Figures of `runs` runs each, by name."""
    events = sum(map(len, batches))
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.observe"
        for _ in range(runs):
            write_seconds = _seconds(lambda: _write(path, batches))
            recording = Recording.open(path)
            for name, value in (
                ("write, M rows/s", events / write_seconds / 1e6),
                ("size, bytes a row", path.stat().st_size / events),
                ("check(), M rows/s", events / _seconds(recording.check) / 1e6),
                ("events(), s", _seconds(recording.events)),
                ("to_pandas(), s", _seconds(recording.to_pandas)),
            ):
                figures.setdefault(name, []).append(value)
    return figures


def _paths(container: str) -> list[str]:
    return [
        f"/var/lib/docker/containers/{container}/{FILES[number % len(FILES)]}.{number}"
        for number in range(PATHS_A_CONTAINER)
    ]


def _write(path: Path, batches: list[EventBatch]) -> None:
    with RecordingWriter(path, HEADER) as writer:
        for batch in batches:
            writer.write(batch)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print a table."""
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    import pandas as pd  # noqa: PLC0415 - loaded before anything is timed

    print(f"{events:,} events, n = {runs}, {os.cpu_count()} x {platform.machine()}, Linux {platform.release()},")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}\n")
    print("| events | figure | min | median | max |\n|---|---|---:|---:|---:|")
    for name, make in (("like docker's", synthetic), ("scattered paths", scattered)):
        for figure, values in measure(make(events, seed=1), runs).items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"| {name} | {figure} | {low:.2f} | {middle:.2f} | {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
