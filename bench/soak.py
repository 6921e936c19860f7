# SPDX-License-Identifier: Apache-2.0
"""Is an engine any worse off for being observed? Many creates and starts at once with everything attached.

`python bench/soak.py [--runs N] [--concurrency N] [--docker-host URL]`, as root; without an engine to use it starts a
private one. Prints a table: what failed, what was lost, whether dockerd is the same process. Exit code 1 if a run
failed, an operation was not attributed, anything was lost or dockerd is another process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from _engine import CLIENT, IMAGE, private_engine, scratch

from observe.engine import find_engine, procfs
from observe.phases import load
from observe.reports.assemble import assemble


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--docker-host", help=f"an engine that has the image {IMAGE}")
    args = parser.parse_args()
    with scratch() as folder:
        if args.docker_host:
            return soak(args.docker_host, args.runs, args.concurrency, folder)
        with private_engine(folder) as socket:
            return soak(f"unix://{socket}", args.runs, args.concurrency, folder)


def soak(url: str, runs: int, concurrency: int, folder: Path) -> int:
    """Record `runs` creates and starts (rounded up to a multiple of `concurrency`); 0 if all went well."""
    a_client = -(-runs // concurrency)
    runs = a_client * concurrency
    path, times = folder / "soak.observe", folder / "times"
    before = procfs.process(find_engine(url).pid)
    client = [sys.executable, str(CLIENT), url.removeprefix("unix://"), IMAGE]
    workload = [*client, str(times), "--clients", str(concurrency), "--runs", str(a_client)]
    record = [sys.executable, "-m", "observe", "record", "--docker-host", url, "-o", str(path), "--", *workload]
    done = subprocess.run(record, capture_output=True, text=True, check=False)
    if not path.exists():
        print(done.stderr, file=sys.stderr)
        return 1
    same = procfs.process(find_engine(url).pid) == before
    report, _ = assemble(path, load())
    requests = len(times.read_text(encoding="utf-8").splitlines())
    attributed = {(run.operation, run.container_id) for run in report.runs if run.container_id}
    failed = sum(run.outcome != "ok" for run in report.runs)
    loss = report.loss
    rows = {
        "runs": runs,
        "concurrency": concurrency,
        "requests that failed": 2 * runs - requests,
        "operations attributed": len(attributed),
        "operations that failed": failed,
        "events lost (ring buffer)": loss.ring_buffer,
        "events lost (program skipped)": loss.program_misses,
        "processes lost": loss.lineage,
        "returns without an entry": loss.unmatched_returns,
        "dockerd is the same process": "yes" if same else "no",
    }
    print("| soak | |\n|---|---:|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    whole = len(attributed) == len(report.runs) == 2 * runs == requests
    lost = loss.ring_buffer or loss.program_misses or loss.lineage or loss.unmatched_returns
    return 0 if done.returncode == 0 and whole and same and not failed and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
