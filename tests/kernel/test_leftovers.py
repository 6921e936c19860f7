# SPDX-License-Identifier: Apache-2.0
"""The check after each kernel and docker test sees what it must see, and nothing else."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from leftovers import _BPF_SYSCALL, left_since, snapshot

ORPHAN = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.execlp('sleep', 'sleep', '60')"


class Descriptor:
    """A file descriptor that can be closed."""

    def __init__(self, number: int) -> None:
        assert number >= 0
        self.number = number

    def close(self) -> None:
        os.close(self.number)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as cleanup:
        yield cleanup


def bpf_map() -> Descriptor:
    """An array of one u64."""
    attribute = (ctypes.c_uint32 * 18)(2, 4, 8, 1)
    call = ctypes.CDLL(None).syscall
    return Descriptor(call(_BPF_SYSCALL[platform.machine()], 0, attribute, ctypes.sizeof(attribute)))


def test_nothing_happened() -> None:
    before = snapshot()
    subprocess.run(["true"], check=True)
    assert left_since(before, 5) == []


def test_a_child(stack: ExitStack) -> None:
    before = snapshot()
    child = stack.enter_context(subprocess.Popen(["sleep", "60"]))
    stack.callback(child.kill)
    (line,) = left_since(before, 0.5)
    assert line.startswith(f"process {child.pid} ")
    assert line.endswith("sleep 60")


def test_an_orphan_that_left_its_session(stack: ExitStack) -> None:
    before = snapshot()
    subprocess.run([sys.executable, "-c", ORPHAN], check=True)
    (line,) = left_since(before, 0.5)
    stack.callback(os.kill, int(line.split()[1]), 9)
    assert line.endswith("sleep 60")


def test_a_mount(stack: ExitStack, tmp_path: Path) -> None:
    before = snapshot()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    stack.callback(subprocess.run, ["umount", tmp_path], check=True)
    (line,) = left_since(before, 0.5)
    assert line.endswith(f" on {tmp_path}")


def test_a_network_namespace(stack: ExitStack) -> None:
    before = snapshot()
    child = stack.enter_context(subprocess.Popen(["unshare", "--net", "sleep", "60"]))
    stack.callback(child.kill)
    assert [line.split()[0] for line in left_since(before, 0.5)] == ["network", "process"]


def test_an_inotify_instance(stack: ExitStack) -> None:
    before = snapshot()
    stack.enter_context(closing(Descriptor(ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC))))
    (line,) = left_since(before, 0.5)
    assert line.startswith("inotify instance")


def test_a_bpf_map(stack: ExitStack) -> None:
    before = snapshot()
    descriptor = bpf_map()
    stack.callback(descriptor.close)
    (line,) = left_since(before, 0.5)
    assert line.startswith("BPF map ")


def test_a_bpf_program(stack: ExitStack) -> None:
    before = snapshot()
    # mov r0, 0; exit
    code = ctypes.create_string_buffer(bytes.fromhex("b7000000000000009500000000000000"))
    licence = ctypes.create_string_buffer(b"GPL")
    attribute = (ctypes.c_uint32 * 32)(5, 2)  # BPF_PROG_TYPE_TRACEPOINT, two instructions
    ctypes.c_uint64.from_buffer(attribute, 8).value = ctypes.addressof(code)
    ctypes.c_uint64.from_buffer(attribute, 16).value = ctypes.addressof(licence)
    call = ctypes.CDLL(None).syscall
    descriptor = Descriptor(call(_BPF_SYSCALL[platform.machine()], 5, attribute, ctypes.sizeof(attribute)))
    stack.callback(descriptor.close)
    (line,) = left_since(before, 0.5)
    assert line.startswith("BPF program ")
