# SPDX-License-Identifier: Apache-2.0
"""Definition of `bpf/events.bpf.c`: its programs, and which system calls it looks at."""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass
from enum import IntEnum

from observe.errors import HostCannotError
from observe.model import Kind

SOURCE = "events.bpf.c"
#: Stands behind `SOURCE` where the kernel does not take `SYSCALL_TRACEPOINTS`.
RAW_SOURCE = "raw_syscalls.bpf.c"

#: Program of `RAW_SOURCE` → raw tracepoint it is attached to.
RAW_TRACEPOINTS = {"raw_sys_enter": "sys_enter", "raw_sys_exit": "sys_exit"}

#: Program of the source → tracepoint (folder below tracefs' events/) it is attached to.
SYSCALL_TRACEPOINTS = {"sys_enter": "raw_syscalls/sys_enter", "sys_exit": "raw_syscalls/sys_exit"}
TRACEPOINTS = {
    "sched_process_fork": "sched/sched_process_fork",
    "sched_process_exec": "sched/sched_process_exec",
    "sched_process_exit": "sched/sched_process_exit",
}


class Role(IntEnum):
    """ROLE_* of bpf/lineage.h that user space seeds."""

    DOCKERD = 1
    CONTAINERD = 2
    CHILD = 4


class What(IntEnum):
    """CALL_* of bpf/events.bpf.c: how a system call is treated."""

    RECORD = 0
    OPEN = 1
    EXEC = 2
    CLONE = 3
    CLONE3 = 4
    CHANGES_ROOT = 5
    SETNS = 6
    OPENAT2 = 7
    SIZED_STRING = 8
    NETLINK = 9
    API_READ = 10
    API_WRITE = 11
    API_ACCEPT = 12
    API_CLOSE = 13


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that is looked at: its numbers, and the positions (from 1; 0 none) of its arguments."""

    kind: Kind
    x86_64: int | None
    arm64: int | None
    what: What = What.RECORD
    path: int = 0
    path2: int = 0
    detail: int = 0
    flags: int = 0
    fd: int = 0

    def pack(self) -> bytes:
        """The bytes of struct call of bpf/events.bpf.c."""
        return struct.pack("<H6B", self.kind, self.what, self.path, self.path2, self.detail, self.flags, self.fd)


#: Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; arguments: man 2.
CALLS = (
    Call(Kind.MOUNT, 165, 40, path=2, path2=1, detail=3, flags=4),
    Call(Kind.UMOUNT2, 166, 39, path=1, flags=2),
    Call(Kind.CLONE, 56, 220, What.CLONE, flags=1),
    Call(Kind.CLONE3, 435, 435, What.CLONE3, flags=1),
    Call(Kind.FORK, 57, None, What.CLONE),
    Call(Kind.VFORK, 58, None, What.CLONE),
    Call(Kind.UNSHARE, 272, 97, flags=1),
    Call(Kind.SETNS, 308, 268, What.SETNS, fd=1, flags=2),
    Call(Kind.EXECVE, 59, 221, What.EXEC, path=1, detail=2),
    Call(Kind.EXECVEAT, 322, 281, What.EXEC, fd=1, path=2, detail=3, flags=5),
    Call(Kind.PIVOT_ROOT, 155, 41, What.CHANGES_ROOT, path=1, path2=2),
    Call(Kind.CHROOT, 161, 51, What.CHANGES_ROOT, path=1),
    Call(Kind.MKDIR, 83, None, path=1),
    Call(Kind.MKDIRAT, 258, 34, fd=1, path=2),
    Call(Kind.OPEN, 2, None, What.OPEN, path=1, flags=2),
    Call(Kind.CREAT, 85, None, path=1),
    Call(Kind.OPENAT, 257, 56, What.OPEN, fd=1, path=2, flags=3),
    Call(Kind.OPENAT2, 437, 437, What.OPENAT2, fd=1, path=2, flags=3),
    Call(Kind.RENAME, 82, None, path=2, path2=1),
    Call(Kind.RENAMEAT, 264, 38, fd=3, path=4, path2=2),
    Call(Kind.RENAMEAT2, 316, 276, fd=3, path=4, path2=2, flags=5),
    Call(Kind.UNLINK, 87, None, path=1),
    Call(Kind.UNLINKAT, 263, 35, fd=1, path=2, flags=3),
    Call(Kind.RMDIR, 84, None, path=1),
    Call(Kind.FSYNC, 74, 82, fd=1),
    Call(Kind.FDATASYNC, 75, 83, fd=1),
    Call(Kind.SETHOSTNAME, 170, 161, What.SIZED_STRING, detail=1),
    Call(Kind.OPEN_TREE, 428, 428, fd=1, path=2, flags=3),
    Call(Kind.MOVE_MOUNT, 429, 429, fd=3, path=4, path2=2, flags=5),
    Call(Kind.FSOPEN, 430, 430, detail=1, flags=2),
    Call(Kind.FSCONFIG, 431, 431, fd=1, flags=2, detail=3),
    Call(Kind.FSMOUNT, 432, 432, fd=1, flags=2),
    Call(Kind.MOUNT_SETATTR, 442, 442, fd=1, path=2, flags=3),
    Call(Kind.SENDTO, 44, 206, What.NETLINK, fd=1),
    Call(Kind.PWRITE64, 18, 68, fd=1),
    Call(Kind.SECCOMP, 317, 277, flags=1),
    # dockerd's API connections; the kinds are what the kernel makes of them.
    Call(Kind.API_REQUEST, 0, 63, What.API_READ),
    Call(Kind.API_RESPONSE, 1, 64, What.API_WRITE),
    Call(Kind.API_REQUEST, 43, 202, What.API_ACCEPT),
    Call(Kind.API_REQUEST, 288, 242, What.API_ACCEPT),
    Call(Kind.API_REQUEST, 3, 57, What.API_CLOSE),
)


#: Treatments of calls without which nobody knows which processes to follow, or where an operation begins and ends.
_NEEDED = frozenset(What) - {What.RECORD, What.OPEN, What.OPENAT2, What.SIZED_STRING, What.NETLINK}


def numbered_calls(machine: str | None = None, *, only_needed: bool = False) -> dict[int, Call]:
    """System call number → call on this machine (`uname -m`). Raises HostCannotError elsewhere than x86-64, arm64.

    `only_needed`: those that tell which processes there are and where operations begin and end, and no others.
    """
    machine = machine or platform.machine()
    calls = [call for call in CALLS if call.what in _NEEDED or not only_needed]
    if machine == "x86_64":
        return {call.x86_64: call for call in calls if call.x86_64 is not None}
    if machine in ("aarch64", "arm64"):
        return {call.arm64: call for call in calls if call.arm64 is not None}
    raise HostCannotError(f"system call numbers of {machine} are not known: observe runs on x86_64 and aarch64")
