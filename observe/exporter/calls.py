# SPDX-License-Identifier: Apache-2.0
"""Which system calls have a counter from the beginning: what engines were seen to do in each phase.

What is done in a part that not every operation has is counted with the phase that it is a part of. Others get theirs
when they first occur, while there is room; then they are counted together as `other`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

OTHER_CALL = "other"
#: Pairs of phase and call that have a counter, at most: two series each.
MOST_CALLS = 96

#: Phase → calls; the operation itself stands for what is unattributed.
EXPECTED_CALLS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        phase: tuple(calls.split())
        for phase, calls in {
            "create.rw_layer": "mkdirat mount openat umount2 unlinkat",
            "create.root": "fsync mkdirat openat renameat",
            "create.os_specific": "mkdirat mount umount2 unlinkat",
            "create.register": "fsync openat renameat",
            "start": "execve fsync openat",
            "start.mount": "mkdirat mount",
            "start.network": "fdatasync fsync openat pwrite64 renameat sendto setns",
            "start.spec.mounts": "mkdirat",
            "start.containerd_create": "fdatasync fsync mkdirat pwrite64",
            "start.containerd_start": "clone clone3 fdatasync mkdirat openat",
            "start.containerd_start.shim": "clone clone3 execve mkdirat openat renameat",
            "start.containerd_start.runc_create": "clone clone3 execve mkdirat openat openat2 renameat seccomp",
            "start.containerd_start.runc_create.init": "clone clone3 execve execveat mkdirat mount openat pivot_root"
            " seccomp sendto sethostname umount2 unlink unlinkat unshare",
            "start.containerd_start.runc_create.network_hook": "clone clone3 execve fdatasync mkdirat mount openat"
            " pwrite64 sendto setns",
            "start.containerd_start.runc_start": "clone clone3 execve openat seccomp unlinkat",
            "start.save_state": "fsync openat renameat",
        }.items()
    }
)
