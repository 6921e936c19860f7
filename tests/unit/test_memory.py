# SPDX-License-Identifier: Apache-2.0
"""What was freed is given back to the system."""

import argparse
import platform
import subprocess
import sys

import pytest

from observe.commands import serve

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
