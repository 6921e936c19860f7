# SPDX-License-Identifier: Apache-2.0
"""What a report of a long recording costs, at n events and at ten times as many, beside awk over a log of strace.

The recordings are two real ones (tests/fixtures) again and again, each time of other containers, processes and times,
once as `observe record` leaves them, with what it concluded, and once as a killed one does, without.
The log has the same system calls in the format of `strace -f -ttt -T`; awk sums time and count by process and call,
which is what can be had of it without knowing what belongs together. `python bench/reports.py [events] [runs]`.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from observe.model import SYSCALLS, EventBatch, Item, Kind, Note, NoteKind
from observe.phases import load
from observe.recording import Recording, RecordingWriter
from observe.reports import RENDERERS, Page
from observe.reports.assemble import assemble

TESTS = Path(__file__).parent.parent / "tests"
RECORDINGS = ("functions", "three-at-once")
FORMATS = ("json", "csv", "html")
CONCLUDE = "import pathlib, sys; from observe.reports.assemble import conclude; conclude(pathlib.Path(sys.argv[1]))"
AWK = r"""
match($3, /^[a-z0-9_]+\(/) {
    call = $1 " " substr($3, 1, RLENGTH - 1)
    count[call]++
    seconds[call] += substr($NF, 2, length($NF) - 2)
}
END { for (call in count) print call, count[call], seconds[call] }
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one command."""

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


def long_recording(name: str, events: int, path: Path) -> int:
    """Write at least `events` events like those of a fixture; how many they are."""
    sys.path.insert(0, str(TESTS))
    from repeating import endless  # noqa: PLC0415 - of the tests

    recording = Recording.open(TESTS / "fixtures" / f"{name}.observe")
    items = list(recording.items())
    times = -(-events // _count(items))
    last_ns = 0
    with RecordingWriter(path, recording.header) as writer:
        for item in endless(items, times):
            writer.write(item)
            last_ns = item.time_ns if isinstance(item, Note) else last_ns
        writer.write(Note(NoteKind.END, last_ns, {"exit_code": 0}))
    return _count(items) * times


def strace_log(recording: Path, path: Path) -> None:
    """The system calls of a recording as `strace -f -ttt -T` writes them."""
    with path.open("w", encoding="utf-8", errors="surrogateescape") as log:
        for item in Recording.open(recording).items():
            log.writelines(_lines(item) if isinstance(item, EventBatch) else ())


def cost(command: Sequence[str], out: Path) -> Cost:
    """Run a command with its output in a file. Raises CalledProcessError if it fails."""
    with out.open("wb") as stdout:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=stdout)  # wait4 below takes its place
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(wall_seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(name: str, events: int, runs: int, folder: Path) -> dict[str, list[Cost]]:
    """What each command costs for a recording of so many events."""
    kept, bare, log, out = folder / "kept.observe", folder / "bare.observe", folder / "strace.log", folder / "out"
    long_recording(name, events, bare)
    shutil.copy(bare, kept)
    # Not in this process: whoever it starts would begin with its memory.
    subprocess.run([sys.executable, "-c", CONCLUDE, str(kept)], check=True)
    strace_log(bare, log)
    report = [sys.executable, "-m", "observe", "report"]
    commands = {f"report -f {form}": [*report, str(kept), "-f", form] for form in FORMATS}
    commands |= {f"report -f {form}, nothing kept": [*report, str(bare), "-f", form] for form in FORMATS}
    commands["awk, strace's log"] = ["awk", AWK, str(log)]
    costs = {what: [cost(command, out) for _ in range(runs)] for what, command in commands.items()}
    for path in (kept, bare, log):
        path.unlink()
    return costs


def without_correlating(recording: Path) -> tuple[float, float]:
    """Seconds to read a recording, and to write its report as JSON: what no correlator can save."""
    start = time.perf_counter()
    for _ in Recording.open(recording).items():
        pass
    read = time.perf_counter()
    report, _ = assemble(recording, load())
    assembled = time.perf_counter()
    RENDERERS["json"](report, Page())
    return read - start, time.perf_counter() - assembled


def _count(items: Sequence[Item]) -> int:
    return sum(len(item) for item in items if isinstance(item, EventBatch))


def _lines(batch: EventBatch) -> Iterator[str]:
    for event in batch:
        if event.kind in SYSCALLS:
            call = Kind(event.kind).label
            arguments = f'{event.fd}, "{event.path}", "{event.path2}", {event.flags:#x}'
            moment, lasts = event.time_ns / 1e9, event.duration_ns / 1e9
            yield f"{event.tid} {moment:.6f} {call}({arguments}) = {event.ret} <{lasts:.6f}>\n"


def main() -> None:
    """Print a table."""
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    print(f"{events // 10:,} and {events:,} events, n = {runs} (medians), {os.cpu_count()} x {platform.machine()},")
    print(f"Linux {platform.release()}, Python {platform.python_version()}\n")
    print("| recording | command | wall, s | min … max | CPU, s | peak, MB | CPU of ten times the events |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in RECORDINGS:
            few = measure(name, events // 10, runs, Path(folder))
            for what, costs in measure(name, events, runs, Path(folder)).items():
                wall, peak = (
                    statistics.median(values)
                    for values in ([c.wall_seconds for c in costs], [c.peak_mb for c in costs])
                )
                cpu = statistics.median(c.cpu_seconds for c in costs)
                times = cpu / statistics.median(c.cpu_seconds for c in few[what])
                walls = sorted(c.wall_seconds for c in costs)
                spread = f"{walls[0]:.2f} … {walls[-1]:.2f}"
                print(
                    f"| {name} | {what} | {wall:.2f} | {spread} | {cpu:.2f} | {peak:.0f} | x {times:.1f} |", flush=True
                )
        print("\nReading the recording and writing the JSON, without correlating:\n")
        for name in RECORDINGS:
            path = Path(folder) / "long.observe"
            long_recording(name, events, path)
            read_seconds, written_seconds = without_correlating(path)
            print(f"- {name}: {read_seconds:.2f} s and {written_seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
