# SPDX-License-Identifier: Apache-2.0
"""Nothing is kept that is not needed, and what was freed is given back to the system."""

import argparse
import gc
import platform
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from repeating import endless

from observe.collectors.session import PROBES
from observe.commands import serve
from observe.correlate import names
from observe.exporter.live import Live
from observe.exporter.snapshot import Condition
from observe.model import EventBatch, Kind
from observe.phases import load
from observe.recording import Recording

FIXTURES = Path(__file__).parents[1] / "fixtures"
#: Until every bounded table is full; then so many more.
STARTS, MORE_STARTS = 120, 120
#: What a container's id takes in a table of Python's.
ID_BYTES = 150

BLOCKS = """
import re, sys, threading
from pathlib import Path
from observe.host import memory

def resident_bytes():
    return int(re.search(r"^VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024

def work():
    bytearray(b"x" * 30_000_000)
    blocks = [b"x" * 1_000_000 for _ in range(40)]

if sys.argv[1] == "give back":
    memory.give_back()
before = resident_bytes()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resident_bytes() - before)
"""


def left_bytes(*arguments: str) -> int:
    """How much of 40 MB, which a thread took in blocks and freed, its process still has."""
    done = subprocess.run([sys.executable, "-c", BLOCKS, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_blocks_are_given_back():
    assert left_bytes("give back") < 5_000_000 < left_bytes("nothing")


def test_serve_does_so_before_it_listens(monkeypatch):
    class AskedError(Exception):
        pass

    def asked():
        raise AskedError

    parser = argparse.ArgumentParser()
    serve.configure(parser)
    monkeypatch.setattr(serve.host, "require", lambda _: None)
    monkeypatch.setattr(serve.memory, "give_back", asked)
    with pytest.raises(AskedError):
        serve.run(parser.parse_args(["--listen", "127.0.0.1:0"]))


def test_nothing_grows_with_the_number_of_containers(monkeypatch):
    monkeypatch.setattr("observe.exporter.live.MOST_CONTAINERS", 20)
    monkeypatch.setattr("observe.correlate.lineage._PROCESSES", 100)
    monkeypatch.setattr("observe.correlate.lineage._GOROUTINES", 100)
    monkeypatch.setattr("observe.correlate.rules._CACHED_PATHS", 200)
    monkeypatch.setattr("observe.exporter.live.SLOWEST", 0)
    recording = Recording.open(FIXTURES / "functions.observe")
    stream = endless(list(recording.items()), STARTS + MORE_STARTS)
    live = Live(load(), PROBES, boot_clock_ns=lambda: 0)
    tracemalloc.start()
    try:
        live.attached(recording.header, ())
        traced = [traced_bytes(live, stream, starts) for starts in (STARTS, MORE_STARTS)]
    finally:
        tracemalloc.stop()
    live.publish(Condition(dict.fromkeys(PROBES, True)))
    counts = live.snapshot.totals.operations.items()
    assert sum(made.count for (operation, *_), made in counts if operation == "start") >= STARTS + MORE_STARTS - 1
    assert traced[1] - traced[0] < MORE_STARTS * ID_BYTES


def traced_bytes(live, stream, starts):
    """What is allocated after so many more starts, but for what is remembered of texts."""
    for item in stream:
        live.take([item])
        starts -= isinstance(item, EventBatch) and int(np.count_nonzero(item.rows["kind"] == Kind.PIVOT_ROOT))
        if not starts:
            break
    for remembered in (names.named_in, names.layer_in, names._stands_before_something_else):
        remembered.cache_clear()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
