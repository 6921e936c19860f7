# SPDX-License-Identifier: Apache-2.0
"""Names of the system calls in which threads of an engine sleep.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

#: Name → (x86-64, arm64); None: that machine has no such call.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "sendfile": (40, 71),
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "bind": (49, 200),
    "setsockopt": (54, 208),
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "exit": (60, 93),
    "wait4": (61, 260),
    "flock": (73, 32),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "ftruncate": (77, 46),
    "rename": (82, None),
    "mkdir": (83, None),
    "rmdir": (84, None),
    "unlink": (87, None),
    "readlink": (89, None),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "sync": (162, 81),
    "mount": (165, 40),
    "umount2": (166, 39),
    "sethostname": (170, 161),
    "futex": (202, 98),
    "getdents64": (217, 61),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "waitid": (247, 95),
    "openat": (257, 56),
    "mkdirat": (258, 34),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "unshare": (272, 97),
    "epoll_pwait": (281, 22),
    "accept4": (288, 242),
    "syncfs": (306, 267),
    "setns": (308, 268),
    "renameat2": (316, 276),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "copy_file_range": (326, 285),
    "move_mount": (429, 429),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "clone3": (435, 435),
    "openat2": (437, 437),
}

_NAMES = {
    "x86_64": {numbers[0]: name for name, numbers in CALLS.items() if numbers[0] is not None},
    "aarch64": {numbers[1]: name for name, numbers in CALLS.items() if numbers[1] is not None},
}


def call_name(number: int, machine: str) -> str:
    """Name of a system call of a machine (`uname -m`), or its number as text; empty if it is none (negative)."""
    if number < 0:
        return ""
    return _NAMES.get(machine, {}).get(number, f"system call {number}")
