# SPDX-License-Identifier: Apache-2.0
"""What being observed costs a create and a start, with and without what the time was spent on.

Arms, interleaved block by block, each block's order shuffled: nothing attached (twice: what chance does), functions and
programs only, everything but the scheduler's events (`--no-why`), everything. Times are the client's, from sending a
request to the first byte of the answer; a difference is that of the means of the medians of the blocks, with a
bootstrapped 95% interval over blocks. Run it as root, on an idle machine, with `python bench/why.py [blocks [runs]]`.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median

import numpy as np
from _engine import CLIENT, IMAGE, private_engine, scratch

#: Title → options of `observe record`, or None: nothing is attached.
ARMS: Mapping[str, Sequence[str] | None] = {
    "nothing": None,
    "nothing, again": None,
    "observe --no-syscalls --no-inotify": ("--no-syscalls", "--no-inotify"),
    "observe --no-why": ("--no-why",),
    "observe --why": ("--why",),
}
BASE = "nothing"
#: What of a block is measured, by operation and network → median in each block, in ms.
Figures = dict[str, dict[str, list[float]]]


def block(socket: str, folder: Path, arm: str, runs: int, network: str) -> dict[str, float]:
    """Operation → median of one block, in ms."""
    out = folder / "times"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(CLIENT), socket, IMAGE, str(out), "--runs", str(runs), "--network", network]
    options = ARMS[arm]
    if options is not None:
        recorder = [sys.executable, "-m", "observe", "record", "--docker-host", f"unix://{socket}"]
        command = [*recorder, *options, "-o", str(folder / "recording"), "--", *command]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "recording").unlink(missing_ok=True)
    taken: dict[str, list[float]] = defaultdict(list)
    pairs = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for request in pairs:
        taken[request["operation"]].append((request["answered_ns"] - request["sent_ns"]) / 1e6)
    both = [create + start for create, start in zip(taken["create"], taken["start"], strict=True)]
    return {**{operation: median(times) for operation, times in taken.items()}, "create + start": median(both)}


def measure(blocks: int, runs: int, network: str) -> Figures:
    """Operation → arm → its blocks."""
    found: Figures = defaultdict(lambda: defaultdict(list))
    order = random.Random(1)  # noqa: S311 - repeatable on purpose
    with scratch() as folder, private_engine(folder) as socket:
        for arm in ARMS:  # compiles, reads binaries, fills caches
            block(socket, folder, arm, 2, network)
        for _ in range(blocks):
            for arm in order.sample(tuple(ARMS), len(ARMS)):
                for operation, value in block(socket, folder, arm, runs, network).items():
                    found[operation][arm].append(value)
    return found


def interval(values: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference of paired blocks in percent of the base, and its bootstrapped 95% interval."""
    differences, whole = np.subtract(values, base), mean(base)
    drawn = np.random.default_rng(1).choice(differences, (10_000, len(differences))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(differences.mean() / whole * 100), float(low / whole * 100), float(high / whole * 100)


def table(figures: Figures) -> str:
    """Markdown."""
    lines = ["| operation | attached | median, ms | difference | 95% interval |", "|---|---|---:|---:|---:|"]
    for operation, arms in figures.items():
        for arm, values in arms.items():
            difference, low, high = interval(values, arms[BASE])
            told = "| |" if arm == BASE else f"{difference:+.1f}% | {low:+.1f}% … {high:+.1f}% |"
            lines.append(f"| {operation} | {arm} | {median(values):.1f} | {told}")
    return "\n".join(lines)


def main() -> None:
    """Print a table a network."""
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    print(f"{machine}, {datetime.now(UTC):%Y-%m-%d}, n = {blocks} blocks of {runs} creates and starts in each arm")
    for network in ("bridge",):
        print(f"\nNetwork {network}:\n\n{table(measure(blocks, runs, network))}", flush=True)


if __name__ == "__main__":
    main()
