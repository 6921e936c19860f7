# SPDX-License-Identifier: Apache-2.0
"""What a test may leave behind on the machine, seen from outside: a snapshot before, a snapshot after, the difference.

"Ours" is the test process and its descendants. `adopt_orphans` makes the test process the parent of descendants
whose parent died, so that a daemon is never lost sight of. What other processes of the machine load, mount or start
meanwhile is not counted.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280, "s390x": 351, "ppc64le": 361, "riscv64": 280}
#: bpf(2): the command that gives the next id, the one that opens an id, and the name of such a descriptor in /proc.
_BPF_OBJECTS = {
    "program": (11, 13, "anon_inode:bpf-prog", "prog_id"),
    "map": (12, 14, "anon_inode:bpf-map", "map_id"),
    "link": (31, 30, "anon_inode:bpf_link", "link_id"),
}
_BPF_OBJ_GET_INFO_BY_FD = 15
#: BPF_PROG_TYPE_*: kprobe (and uprobe), tracepoint, perf_event, raw_tracepoint, writable raw_tracepoint, tracing.
#: Others are the host's: systemd and runc attach programs to cgroups.
_TRACING_PROGRAMS = {2, 5, 7, 17, 24, 26}
#: BPF_LINK_TYPE_*: raw_tracepoint, tracing, perf_event, kprobe_multi, uprobe_multi.
_TRACING_LINKS = {1, 2, 7, 8, 12}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What exists because of us; each entry is a line for people, the same as long as the thing is the same."""

    processes: frozenset[str]
    mounts: frozenset[str]
    net_namespaces: frozenset[str]
    interfaces: frozenset[str]
    bpf: frozenset[str]
    inotify_instances: frozenset[str]

    def __sub__(self, before: Snapshot) -> Snapshot:
        """What is here and was not in `before`."""
        return Snapshot(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))

    def __and__(self, other: Snapshot) -> Snapshot:
        """What is in both."""
        return Snapshot(*(getattr(self, each.name) & getattr(other, each.name) for each in fields(self)))

    def lines(self) -> list[str]:
        """All of it, sorted."""
        return sorted(line for each in fields(self) for line in getattr(self, each.name))


def adopt_orphans() -> None:
    """From now on descendants whose parent dies become children of this process (PR_SET_CHILD_SUBREAPER)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def snapshot() -> Snapshot:
    """What exists now."""
    pids = descendants(os.getpid())
    own = [os.getpid(), *pids]
    return Snapshot(
        processes=frozenset(_identity(pid) for pid in pids),
        mounts=frozenset(_mounts()),
        net_namespaces=frozenset(_net_namespaces(own)),
        interfaces=frozenset(f"network interface {name}" for _, name in socket.if_nameindex()),
        bpf=frozenset(_bpf(own)),
        inotify_instances=frozenset(_inotify_instances(own)),
    )


def left_since(before: Snapshot, seconds: float) -> list[str]:
    """What came after `before` and does not go away within `seconds`; empty as soon as nothing is left."""
    deadline = time.monotonic() + seconds
    left = snapshot() - before
    while left.lines() and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= snapshot()
    return [_explained(line) for line in left.lines()]


def descendants(root: int) -> list[int]:
    """Pids of all living descendants of `root`; a zombie is not living."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            children[int(parent)].append(int(path.parts[2]))
    found: list[int] = []
    todo = [root]
    while todo:
        todo.extend(born := children[todo.pop()])
        found.extend(born)
    return found


def _identity(pid: int) -> str:
    """Pid and start time name a process for ever; its arguments do not, it may execute something else."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return f"process {pid}"
    return f"process {pid} started at tick {started}"


def _explained(line: str) -> str:
    """The line of a process with its arguments; any other line as it is."""
    match = re.match(r"process (\d+) ", line)
    if match is None:
        return line
    try:
        arguments = Path(f"/proc/{match[1]}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        arguments = "ended just now"
    return f"{line}: {arguments}"


def _mounts() -> list[str]:
    """Mounts of our own mount namespace: id and place."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {fields[0]} on {fields[4]}" for fields in map(str.split, lines)]


def _net_namespaces(pids: list[int]) -> list[str]:
    """Network namespaces that our processes live in, and those with a name (`ip netns`)."""
    found = [f"network namespace named {path.name}" for path in Path("/run/netns").glob("*")]
    for pid in pids:
        try:
            found.append(f"network namespace {Path(f'/proc/{pid}/ns/net').readlink()}")
        except OSError:
            continue
    return found


def _descriptors(pid: int) -> list[tuple[str, str]]:
    """Number and target of each descriptor of a process."""
    found = []
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.append((path.name, str(path.readlink())))
        except OSError:
            continue
    return found


def _inotify_instances(pids: list[int]) -> list[str]:
    return [
        f"inotify instance: descriptor {number} of process {pid}"
        for pid in pids
        for number, target in _descriptors(pid)
        if target == "anon_inode:inotify"
    ]


def _bpf(own: list[int]) -> list[str]:
    """BPF programs, maps and links that we hold or nobody holds (pinned, or attached for good), and pins."""
    if os.geteuid() != 0:
        return []
    found = [f"BPF pin {path}" for path in Path("/sys/fs/bpf").rglob("*") if not path.is_dir()]
    foreign = _held({int(path.name) for path in Path("/proc").glob("[0-9]*")} - set(own))
    for what in _BPF_OBJECTS:
        ids = (number for number in _bpf_ids(what) if (what, number) not in foreign)
        found.extend(f"BPF {what} {number}" for number in ids if _is_tracing(what, number))
    return found


def _held(pids: set[int]) -> set[tuple[str, int]]:
    """BPF objects that these processes have open."""
    found = set()
    for pid in pids:
        for number, target in _descriptors(pid):
            for what, (_, _, name, key) in _BPF_OBJECTS.items():
                if target.replace("bpf-link", "bpf_link") == name:
                    try:
                        text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
                    except OSError:
                        continue
                    if match := re.search(rf"^{key}:\s*(\d+)", text, re.MULTILINE):
                        found.add((what, int(match[1])))
    return found


def _bpf_ids(what: str) -> list[int]:
    """Ids of all BPF objects of one kind on this machine, in order."""
    found: list[int] = []
    while True:
        attribute = (ctypes.c_uint32 * 3)(found[-1] if found else 0)
        if _bpf_call(_BPF_OBJECTS[what][0], attribute) < 0:
            return found
        found.append(attribute[1])


def _is_tracing(what: str, number: int) -> bool:
    """Whether the object may be a tracer's: a program or link by its type; a map may be anyone's."""
    if what == "map":
        return True
    descriptor = _bpf_call(_BPF_OBJECTS[what][1], (ctypes.c_uint32 * 3)(number))
    if descriptor < 0:
        return False  # it is gone
    try:
        information = (ctypes.c_uint32 * 64)()
        attribute = (ctypes.c_uint32 * 4)(descriptor, ctypes.sizeof(information))
        ctypes.c_uint64.from_buffer(attribute, 8).value = ctypes.addressof(information)
        if _bpf_call(_BPF_OBJ_GET_INFO_BY_FD, attribute) < 0:
            return False
    finally:
        os.close(descriptor)
    # Both struct bpf_prog_info and struct bpf_link_info begin with the type.
    return information[0] in (_TRACING_PROGRAMS if what == "program" else _TRACING_LINKS)


def _bpf_call(command: int, attribute: ctypes.Array[ctypes.c_uint32]) -> int:
    """bpf(2): what it returns, -1 on any error (of which "no such id" is the usual one)."""
    number = _BPF_SYSCALL[platform.machine()]
    return int(ctypes.CDLL(None).syscall(number, command, attribute, ctypes.sizeof(attribute)))
