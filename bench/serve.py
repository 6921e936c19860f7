# SPDX-License-Identifier: Apache-2.0
"""What `observe serve` costs a host: CPU of its threads, idle and while containers are created and started.

`python bench/serve.py [--rate N] [--seconds N] [--windows N]`, as root; it starts a private engine and a serve for it.
Prints a table of shares of one core, one measurement a window, with least, median and largest. Exit code 1 if an
operation is missing from the counters, or an event was lost.

What the probes cost in the kernel is charged to whoever is probed: `observe_probe_run_seconds_total` has it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from _engine import CLIENT, IMAGE, private_engine, scratch
from prometheus_client.parser import text_string_to_metric_families

_SETTLE_SECONDS = 5
_CLIENTS = 3
_RECORDER, _OTHERS = "recorder", "other threads"


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=3.0, help="creates and starts a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a window (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=5, help="idle, and under load (default: %(default)s)")
    parser.add_argument("--real-time", action="store_true", help="nothing else gets in between: chrt -f 50")
    parser.add_argument("options", nargs="*", help="of observe serve, behind --")
    args = parser.parse_args()
    priority = ["chrt", "-f", "50"] if args.real_time else []
    with scratch() as folder, private_engine(folder) as socket, serving(socket, [*priority], args.options) as server:
        time.sleep(_SETTLE_SECONDS)
        idle = [share(server, lambda: time.sleep(args.seconds))[0] for _ in range(args.windows)]
        before = server.series()
        load = Load(socket, folder, args.rate, args.seconds)
        busy, made = [], 0
        for _ in range(args.windows):
            cost, done = share(server, load.run)
            busy.append(cost)
            made += done
        time.sleep(_SETTLE_SECONDS)
        after = server.series()
    machine = f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{machine}, {datetime.now(UTC):%Y-%m-%d}, {args.windows} windows of {args.seconds:g} s\n")
    print("| percent of a core | | n | min | median | max |\n|---|---|---:|---:|---:|---:|")
    for name, windows in (("idle", idle), (f"{args.rate:g} creates and starts a second", busy)):
        row(name, "all threads", [sum(window.values()) for window in windows])
        for part in (_RECORDER, _OTHERS):
            row(name, part, [window[part] for window in windows])
    counted = {key: value - before.get(key, 0) for key, value in after.items()}
    ok = sum(value for (name, labels), value in counted.items() if name.endswith("operation_duration_seconds_count"))
    lost = sum(
        value
        for (name, labels), value in counted.items()
        if name == "observe_lost_events_total" and labels & {("source", "ring_buffer"), ("source", "program_misses")}
    )
    probes = sum(value for (name, _), value in counted.items() if name == "observe_probe_run_seconds_total")
    elapsed = sum(busy_seconds for busy_seconds in load.elapsed)
    print(
        f"\n{made} creates and starts in {elapsed:.0f} s; {ok:.0f} operations counted, {lost:.0f} events lost; ", end=""
    )
    print(f"the probes ran {100 * probes / elapsed:.2f} percent of a core")
    return 0 if ok == 2 * made and not lost else 1


def row(name: str, part: str, shares: list[float]) -> None:
    """One line of the table."""
    numbers = (min(shares), statistics.median(shares), max(shares))
    print(f"| {name} | {part} | {len(shares)} | {' | '.join(f'{100 * number:.2f}' for number in numbers)} |")


@dataclass(frozen=True, slots=True)
class Server:
    """A running `observe serve`."""

    pid: int
    url: str

    def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """A scrape."""
        with urllib.request.urlopen(f"{self.url}metrics") as answer:  # noqa: S310 - our own
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def cpu_seconds(self) -> Counter[str]:
        """What its threads have run so far (Documentation/scheduler/sched-stats.rst: the first field)."""
        found: Counter[str] = Counter({_RECORDER: 0.0, _OTHERS: 0.0})  # type: ignore[dict-item]
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            part = _RECORDER if int(thread.name) == self.pid else _OTHERS
            found[part] += int((thread / "schedstat").read_text().split()[0]) / 1e9  # type: ignore[assignment]
        return found


def share(server: Server, work: Callable[[], object]) -> tuple[dict[str, float], int]:
    """The share of a core that serve took while something was done, and what that returned."""
    before, started = server.cpu_seconds(), time.monotonic()
    made = work()
    elapsed = time.monotonic() - started
    after = server.cpu_seconds()
    return {part: (after[part] - before[part]) / elapsed for part in after}, made if isinstance(made, int) else 0


class Load:
    """Clients whose runs begin at a steady rate."""

    def __init__(self, socket: str, folder: Path, rate: float, seconds: float) -> None:
        """Runs of `seconds`."""
        self._out = folder / "times"
        self._runs = max(1, round(rate * seconds / _CLIENTS))
        every = _CLIENTS / rate
        counts = ["--clients", str(_CLIENTS), "--runs", str(self._runs), "--every", str(every)]
        self._command = [sys.executable, str(CLIENT), socket, IMAGE, str(self._out), *counts]
        self.elapsed: list[float] = []

    def run(self) -> int:
        """How many containers were created and started. Raises CalledProcessError."""
        started = time.monotonic()
        subprocess.run(self._command, check=True)
        self.elapsed.append(time.monotonic() - started)
        return self._runs * _CLIENTS


@contextmanager
def serving(
    socket: str, priority: list[str], options: list[str], program: Sequence[str] = ("-m", "observe")
) -> Iterator[Server]:
    """`observe serve`, attached; `program`: Python's arguments for observe, or for something like it."""
    command = [sys.executable, *program, "serve", "--docker-host", f"unix://{socket}", "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*priority, *command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            url = ""
            for line in process.stderr:
                url = url or (line.split()[-1] if "listening on" in line else "")
                if "attached to dockerd" in line:
                    break
            assert url, "observe serve did not start"
            yield Server(process.pid, url)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
