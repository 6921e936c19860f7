# SPDX-License-Identifier: Apache-2.0
"""What of `observe serve`'s cost is what: serves with less to do, and pyinotify alone, at one engine at the same time.

`python bench/watchers.py [--rate N] [--seconds N] [--windows N]`, as root; it starts a private engine. Prints the CPU
of each in percent of one core while containers are created and started, one measurement a window, and its memory. All
see the same load at the same moment, so they can be compared with each other; each slows the others down a little.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from _engine import private_engine, scratch
from serve import Load, Server, serving

_SETTLE_SECONDS = 5

#: `observe serve` that reads, decodes and counts everything and concludes nothing: a correlator that takes no time.
_NO_CORRELATOR = """
from observe.__main__ import main
from observe.correlate import Correlator
from observe.model import Note
feed = Correlator.feed
Correlator.feed = lambda self, item: feed(self, item) if isinstance(item, Note) else []
raise SystemExit(main())
"""
#: pyinotify as its manual has it, with the mask and the folders that we watch, and a handler that counts.
_PYINOTIFY = """
import sys
import pyinotify
from observe.collectors.inotify import MASK

class Count(pyinotify.ProcessEvent):
    events = 0

    def process_default(self, event):
        self.events += 1

manager = pyinotify.WatchManager()
notifier = pyinotify.Notifier(manager, Count())
folders = [f"{sys.argv[1]}/{name}" for name in ("containers", "image", "network", "overlay2", "tmp", "volumes")]
manager.add_watch(folders, MASK, rec=True, auto_add=True, exclude_filter=lambda path: "/merged" in path)
print("attached to dockerd", file=sys.stderr, flush=True)
notifier.loop()
"""


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=3.0, help="creates and starts a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a window (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=4, help="default: %(default)s")
    args = parser.parse_args()
    with scratch() as folder, private_engine(folder) as socket, ExitStack() as stack:
        servers = {
            "observe serve": stack.enter_context(serving(socket, [], [])),
            "the same, concluding nothing": stack.enter_context(serving(socket, [], [], ["-c", _NO_CORRELATOR])),
            **{
                f"observe serve {' '.join(options)}": stack.enter_context(serving(socket, [], options))
                for options in (
                    ["--no-inotify"],
                    ["--no-functions"],
                    ["--no-syscalls"],
                    ["--no-syscalls", "--no-inotify"],
                )
            },
            "pyinotify, counting events": stack.enter_context(watching(folder / "e" / "data")),
        }
        time.sleep(_SETTLE_SECONDS)
        load = Load(socket, folder, args.rate, args.seconds)
        shares: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(args.windows):
            before, started = {name: cpu_seconds(server) for name, server in servers.items()}, time.monotonic()
            load.run()
            elapsed = time.monotonic() - started
            for name, server in servers.items():
                shares[name].append(100 * (cpu_seconds(server) - before[name]) / elapsed)
        memory = {name: resident_mb(server) for name, server in servers.items()}
    machine = f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{machine}, {datetime.now(UTC):%Y-%m-%d}, {args.windows} windows of {args.seconds:g} s\n")
    print(f"| {args.rate:g} creates and starts a second, percent of a core | n | min | median | max | memory, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, values in shares.items():
        numbers = [min(values), statistics.median(values), max(values)]
        print(f"| {name} | {len(values)} | {' | '.join(f'{n:.2f}' for n in numbers)} | {memory[name]:.0f} |")
    return 0


def cpu_seconds(server: Server) -> float:
    """What all its threads have run so far."""
    return float(sum(server.cpu_seconds().values()))


def resident_mb(server: Server) -> float:
    """Its memory."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@contextmanager
def watching(data_root: Path) -> Iterator[Server]:
    """A process with pyinotify at an engine's data root."""
    command: Sequence[str] = [sys.executable, "-W", "ignore", "-c", _PYINOTIFY, str(data_root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert "attached" in process.stderr.readline()
            # Its log of directories that were gone already must not fill the pipe.
            with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL) as drain:
                yield Server(process.pid, "")
                process.terminate()
                drain.wait()
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
