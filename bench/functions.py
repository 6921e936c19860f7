# SPDX-License-Identifier: Apache-2.0
"""What a hit of a function probe costs the thread that is hit: an emulated instruction (entry), a stepped one (return).

A made-up function lies in a file of its own and is called in a tight loop, without and with our program on it; the
process that calls is followed, so each hit writes a record. Run it with `python bench/functions.py [runs]`, as root.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from observe.collectors.ring import RingReader
from observe.probes.attach import EventProbes, FunctionProbes, build_image
from observe.probes.events import Role
from observe.probes.functions import Function, Target

# cmp rsp, 0; jbe +0; ret: what the beginning and the end of a Go function look like to the kernel.
CODE = bytes.fromhex("4883fc007600c3")
ENTRY, RETURN = 4, 6
CALLS = 1_000
RING_BYTES = 4 << 20


def main() -> None:
    """Print a markdown table of nanoseconds a hit."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    page = CODE.ljust(mmap.PAGESIZE, b"\xcc")
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(page)
        file.flush()
        call = ctypes.CFUNCTYPE(None)(executable(file.fileno()))
        sites = (("entry", ENTRY), ("return", RETURN))
        measured = {name: measure(call, Path(file.name), offset, runs) for name, offset in sites}
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"
        print(f"{machine}, {datetime.now(UTC):%Y-%m-%d}, n = {runs}\n")
        print("| a hit costs, ns | min | median | max |\n|---|---:|---:|---:|")
        for name, values in measured.items():
            print(f"| {name} | {min(values):.0f} | {statistics.median(values):.0f} | {max(values):.0f} |")


def executable(descriptor: int) -> int:
    """Address of the file's first page, mapped to be executed: uprobes are for mappings that cannot be written."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def measure(call: Callable[[], None], path: Path, offset: int, runs: int) -> list[float]:
    """Nanoseconds that a hit adds to a call, once a run."""
    added = []
    image = build_image()
    with EventProbes(image, RING_BYTES) as events:
        ring = RingReader(events.ring, events.ring_bytes)
        events.seed({os.getpid(): Role.CHILD}, ())
        for _ in range(runs):
            without = loop(call)
            probes = FunctionProbes(image, events)
            function = Function(1, "f", "f", offset, entry_is_emulated=True, return_offsets=(), depth=0, cookie=1)
            probes.attach([Target(path, 0, (function,))])
            added.append(loop(call) - without)
            probes.close()
            hits = len(ring.drain())
            assert hits == CALLS, hits
        ring.close()
    return added


def loop(call: Callable[[], None]) -> float:
    """Nanoseconds a call."""
    start = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - start) / CALLS


if __name__ == "__main__":
    main()
