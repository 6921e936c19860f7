# SPDX-License-Identifier: Apache-2.0
"""Do a real Prometheus, `observe serve` and dockerd's own metrics agree over a long mixed load?

`python bench/prometheus.py [--minutes N] [--every SECONDS] [--picture OUT.png]`, as root; it starts a private engine, a
serve and a Prometheus. Prints a table; exit code 1 if a count differs from what the load made, a sum is more than 1%
from dockerd's, or an event was lost. `--picture`: the overview dashboard of that time.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from engines import running_engine  # noqa: E402
from proof import ENGINE_OPTIONS, OPERATIONS, Proof, prove, watched  # noqa: E402

DASHBOARD = ROOT / "dashboards" / "grafana" / "observe-overview.json"
SCRAPE_SECONDS = 5
TOLERANCE = 0.01


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds between a client's runs (default: %(default)s)"
    )
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--picture", type=Path, metavar="OUT.png")
    args = parser.parse_args()
    load = ("--clients", str(args.clients), "--every", str(args.every))
    with (
        tempfile.TemporaryDirectory(prefix="observe-bench-") as folder,
        running_engine(*ENGINE_OPTIONS) as engine,
        watched(engine, Path(folder), interval=f"{SCRAPE_SECONDS}s") as (server, prometheus),
    ):
        found = prove(engine, server, prometheus, 60 * args.minutes, *load)
        if args.picture:
            program = [sys.executable, str(ROOT / "scripts" / "dashboard-picture"), str(DASHBOARD)]
            times = ["--minutes", str(args.minutes), "--scrape-seconds", str(SCRAPE_SECONDS)]
            subprocess.run([*program, str(args.picture), "--prometheus", prometheus.url, *times], check=True)
    write(found, args.minutes)
    return 0 if is_good(found) else 1


def write(found: Proof, minutes: float) -> None:
    """The table."""
    machine = f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}"
    print(f"{machine}, {datetime.now(UTC):%Y-%m-%d}, {minutes:g} minutes\n")
    print("| requests | made by the load | counted by Prometheus |\n|---|---:|---:|")
    for (operation, outcome), counted in found.counted.items():
        print(f"| {operation} {outcome} | {found.made.get((operation, outcome), 0)} | {counted:.0f} |")
    print("\n| seconds in dockerd's function | n, dockerd | n, observe | dockerd | observe | difference |")
    print("|---|---:|---:|---:|---:|---:|")
    for action in OPERATIONS:
        (n, seconds), (their_n, theirs) = found.ours[action], found.theirs[action]
        print(
            f"| {action} | {their_n:.0f} | {n:.0f} | {theirs:.6f} | {seconds:.6f} | {found.difference(action):+.3%} |"
        )
    print(f"\n{found.lost:.0f} events lost, {found.failed_scrapes:.0f} scrapes failed; ", end="")
    print(f"serve took {found.cpu:.1%} of a core, {SCRAPE_SECONDS} s between scrapes")


def is_good(found: Proof) -> bool:
    """Whether all of it agrees."""
    counts = all(counted == found.made.get(key, 0) for key, counted in found.counted.items())
    actions = all(
        found.ours[action][0] == found.theirs[action][0] and abs(found.difference(action)) <= TOLERANCE
        for action in OPERATIONS
    )
    return counts and actions and not found.lost and not found.failed_scrapes


if __name__ == "__main__":
    sys.exit(main())
