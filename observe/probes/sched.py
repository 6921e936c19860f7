# SPDX-License-Identifier: Apache-2.0
"""Definition of `bpf/sched.bpf.c`: where it is attached, what it must know of the kernel, its records as events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from observe.errors import HostCannotError
from observe.model import EVENT_DTYPE, EventBatch
from observe.probes import kernel_types

SOURCE = "sched.bpf.c"

#: Program of the source, which has the name of the raw tracepoint that it is attached to. The last ones first miss
#: nothing: who is interrupted is known before anybody is woken.
RAW_TRACEPOINTS = (
    "irq_handler_entry",
    "irq_handler_exit",
    "softirq_entry",
    "softirq_exit",
    "hrtimer_expire_entry",
    "hrtimer_expire_exit",
    "sched_waking",
    "sched_wakeup_new",
    "sched_switch",
)
#: Those that a kernel may lack (Linux 6.3), and what is then less certain: which process a busy daemon heard last.
OPTIONAL_RAW_TRACEPOINTS = ("sock_send_length",)

#: Maps that only this source's programs use.
MAPS = ("sched_records", "stacks", "interrupts")
#: Return addresses that the kernel keeps of a stack (PERF_MAX_STACK_DEPTH).
STACK_DEPTH = 127

#: Holds 131,000 records: about 15 container starts between two drains.
RING_BYTES = 8 * 1024 * 1024

#: Structure → its members that the program reads, each with older names it may have.
_MEMBERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "task_struct": {"pid": ("pid",), "tgid": ("tgid",), "state": ("__state", "state"), "files": ("files",)},
    "files_struct": {"fdt": ("fdt",)},
    "fdtable": {"fd": ("fd",), "max_fds": ("max_fds",)},
    "file": {"f_path": ("f_path",)},
    "path": {"dentry": ("dentry",)},
    "dentry": {"d_name": ("d_name",), "d_sb": ("d_sb",)},
    "qstr": {"name": ("name",)},
    "super_block": {"s_type": ("s_type",)},
    "file_system_type": {"name": ("name",)},
    "sock_common": {"skc_family": ("skc_family",)},
}

#: struct sched_record of bpf/sched.bpf.c.
SCHED_RECORD_DTYPE = np.dtype(
    [
        ("time_ns", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("kind", "<u2"),
        ("state", "<u2"),
        ("call", "<i2"),
        ("has_file", "<u2"),
        ("other_pid", "<u4"),
        ("other_tid", "<u4"),
        ("stack", "<i4"),
        ("fd", "<i4"),
        ("unused", "<u8", 2),
    ]
)

#: struct sched_file, which has the same size.
SCHED_FILE_DTYPE = np.dtype(
    [
        ("time_ns", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("kind", "<u2"),
        ("unused", "<u2", 3),
        ("file", "S24"),
        ("filesystem", "S8"),
    ]
)

#: RECORD_FILE of bpf/sched.bpf.c.
_FILE = 71


def kernel_offsets(btf: bytes) -> dict[str, int]:
    """Macro → value: what the source has to be compiled with. Raises HostCannotError if the kernel lacks a member."""
    wanted = {name: [old for names in members.values() for old in names] for name, members in _MEMBERS.items()}
    try:
        found = kernel_types.offsets(btf, wanted)
    except ValueError:
        raise HostCannotError("the kernel's type information cannot be read") from None
    macros = {}
    for structure, members in _MEMBERS.items():
        for member, names in members.items():
            at = next((found[structure, name] for name in names if (structure, name) in found), None)
            if at is None:
                raise HostCannotError(f"the kernel's type information has no {structure}.{member}")
            macros[f"OFFSET_{structure}_{member}"] = at
    return macros


class Decoder:
    """Records become events; the files that they name may have come with those before."""

    def __init__(self) -> None:
        """No file is named yet."""
        self._files: dict[int, tuple[str, str]] = {}

    def decode(self, records: npt.NDArray[Any], stacks: Mapping[int, str]) -> EventBatch:
        """Records (SCHED_RECORD_DTYPE, shape (n,)) as events (see `EVENT_DTYPE`); `stacks`: number → functions."""
        is_file = records["kind"] == _FILE
        switches = records[~is_file]
        rows = np.zeros(len(switches), dtype=EVENT_DTYPE)
        for name in ("time_ns", "pid", "tid", "kind"):
            rows[name] = switches[name]
        rows["ret"] = switches["other_tid"]
        rows["flags"] = (
            switches["state"].astype("<u8")
            | (switches["call"].astype("<i8") + 1).astype("<u8") << np.uint64(16)
            | switches["other_pid"].astype("<u8") << np.uint64(32)
        )
        rows["fd"] = np.where(switches["has_file"], switches["fd"], -1)
        strings: dict[str, int] = {"": 0}
        for number in np.unique(switches["stack"][switches["stack"] >= 0]).tolist():
            index = strings.setdefault(stacks.get(number, ""), len(strings))
            rows["detail"][switches["stack"] == number] = index
        for at, name, filesystem in self._named(records, is_file):
            rows["path"][at] = strings.setdefault(name, len(strings))
            rows["path2"][at] = strings.setdefault(filesystem, len(strings))
        return EventBatch(rows, tuple(strings))

    def _named(self, records: npt.NDArray[Any], is_file: npt.NDArray[np.bool_]) -> Iterator[tuple[int, str, str]]:
        """(index of the event, name, file system) of those that have a file."""
        files = records.view(SCHED_FILE_DTYPE)
        before = np.cumsum(is_file)
        for at in np.flatnonzero(is_file | (records["has_file"] != 0)).tolist():
            tid = int(records["tid"][at])
            if is_file[at]:
                self._files[tid] = (_text(files["file"][at]), _text(files["filesystem"][at]))
            elif tid in self._files:
                yield at - int(before[at]), *self._files.pop(tid)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
