# SPDX-License-Identifier: Apache-2.0
"""bpf(2) and perf_event_open(2): the few commands that loading and attaching need, by ctypes.

Layouts: union bpf_attr of include/uapi/linux/bpf.h, struct perf_event_attr of include/uapi/linux/perf_event.h.
Every function raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_ATTRIBUTE_BYTES = 128

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_NR_BPF, _NR_PERF_EVENT_OPEN = (321, 298) if platform.machine() == "x86_64" else (280, 241)

# enum bpf_cmd
_MAP_CREATE = 0
_MAP_LOOKUP_ELEM = 1
_MAP_UPDATE_ELEM = 2
_MAP_DELETE_ELEM = 3
_PROG_LOAD = 5
_RAW_TRACEPOINT_OPEN = 17
_LINK_CREATE = 28
_OBJ_GET_INFO_BY_FD = 15
_ENABLE_STATS = 32

# enum bpf_stats_type
_STATS_RUN_TIME = 0

# struct bpf_prog_info: its beginning, up to recursion_misses
_PROG_INFO_BYTES = 216
_RUN_TIME_OFFSET = 192
_RECURSION_MISSES_OFFSET = 208

# enum bpf_prog_type
PROG_TYPE_KPROBE = 2
PROG_TYPE_TRACEPOINT = 5
PROG_TYPE_RAW_TRACEPOINT = 17

# enum bpf_map_type
MAP_TYPE_RINGBUF = 27

#: enum bpf_attach_type: a program for many user space sites at once.
ATTACH_UPROBE_MULTI = 48
_ATTACH_PERF_EVENT = 41

#: Flag of map_update (BPF_NOEXIST).
NO_EXIST = 1

_PERF_TYPE_TRACEPOINT = 2
_UPROBE_TYPE = Path("/sys/bus/event_source/devices/uprobe/type")
_PERF_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408

#: Programs declare it: helpers that read user memory need a GPL-compatible licence.
_LICENCE = b"GPL"


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTRIBUTE_BYTES, b"\0"), _ATTRIBUTE_BYTES)
    result = int(_LIBC.syscall(_NR_BPF, command, buffer, _ATTRIBUTE_BYTES))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def map_create(map_type: int, key_bytes: int, value_bytes: int, max_entries: int, *, flags: int, name: str) -> int:
    """Create a map; its descriptor."""
    return _bpf(
        _MAP_CREATE,
        struct.pack("<IIIIIII16s", map_type, key_bytes, value_bytes, max_entries, flags, 0, 0, name.encode()[:15]),
    )


def map_update(descriptor: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Set a value, whether or not the key is there; with NO_EXIST only if it is not (else OSError EEXIST)."""
    key_buffer, value_buffer = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value)
    addresses = (ctypes.addressof(key_buffer), ctypes.addressof(value_buffer))
    _bpf(_MAP_UPDATE_ELEM, struct.pack("<IxxxxQQQ", descriptor, *addresses, flags))


def map_lookup(descriptor: int, key: bytes, value_bytes: int) -> bytes:
    """The value of a key (of a per-CPU map: `value_bytes` for all CPUs together). OSError ENOENT: not there."""
    key_buffer, value_buffer = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value_bytes)
    addresses = (ctypes.addressof(key_buffer), ctypes.addressof(value_buffer))
    _bpf(_MAP_LOOKUP_ELEM, struct.pack("<IxxxxQQQ", descriptor, *addresses, 0))
    return value_buffer.raw


def map_delete(descriptor: int, key: bytes) -> None:
    """Delete a key. OSError ENOENT: not there."""
    key_buffer = ctypes.create_string_buffer(key)
    _bpf(_MAP_DELETE_ELEM, struct.pack("<IxxxxQ", descriptor, ctypes.addressof(key_buffer)))


def program_load(program_type: int, name: str, code: bytes, attach_type: int = 0) -> int:
    """Load a program; its descriptor. OSError carries the last line of the verifier's log."""
    try:
        return _program_load(program_type, name, code, attach_type, None)
    except OSError as error:
        log = ctypes.create_string_buffer(1 << 20)
        try:
            return _program_load(program_type, name, code, attach_type, log)
        except OSError:
            lines = log.value.decode(errors="replace").strip().splitlines()
            said = next((line for line in reversed(lines) if not line.startswith("processed ")), "")
            raise OSError(error.errno, f"{error.strerror} {said}".strip()) from None


def _program_load(
    program_type: int, name: str, code: bytes, attach_type: int, log: ctypes.Array[ctypes.c_char] | None
) -> int:
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LICENCE)
    return _bpf(
        _PROG_LOAD,
        struct.pack(
            "<IIQQIIQII16sII",
            program_type,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            1 if log is not None else 0,
            len(log) if log is not None else 0,
            ctypes.addressof(log) if log is not None else 0,
            0,
            0,
            name.encode()[:15],
            0,
            attach_type,
        ),
    )


def uprobe_multi_open(program: int, path: str, offsets: Sequence[int], cookies: Sequence[int], pid: int = 0) -> int:
    """Attach a program to many offsets of a file at once, each with its cookie; closing the descriptor detaches all.

    `pid`: only this process; 0: whoever executes the file. From Linux 6.6 (OSError EINVAL before).
    """
    count = len(offsets)
    text = ctypes.create_string_buffer(path.encode())
    offset_array, cookie_array = (ctypes.c_uint64 * count)(*offsets), (ctypes.c_uint64 * count)(*cookies)
    addresses = (ctypes.addressof(text), ctypes.addressof(offset_array), 0, ctypes.addressof(cookie_array))
    return _bpf(
        _LINK_CREATE,
        struct.pack("<IIIIQQQQIII", program, 0, ATTACH_UPROBE_MULTI, 0, *addresses, count, 0, pid),
    )


def perf_uprobe_open(program: int, path: str, offset: int, cookie: int, pid: int = -1) -> tuple[int, int]:
    """Attach a program to one offset of a file, with its cookie (Linux 5.15); closing both descriptors detaches it.

    `pid`: only this process; -1: whoever executes the file.
    """
    kind = int(_UPROBE_TYPE.read_text(encoding="ascii"))
    text = ctypes.create_string_buffer(path.encode())
    # type, size, config, sample_period, sample_type, read_format, flags, wakeup, bp_type, config1, config2
    attributes = struct.pack(
        "<IIQQQQQIIQQ", kind, _PERF_ATTR_BYTES, 0, 1, 0, 0, 0, 1, 0, ctypes.addressof(text), offset
    )
    event = _perf_event_open(attributes, pid, 0 if pid == -1 else -1)
    try:
        link = _bpf(_LINK_CREATE, struct.pack("<IIIIQ", program, event, _ATTACH_PERF_EVENT, 0, cookie))
    except OSError:
        os.close(event)
        raise
    return link, event


def program_misses(program: int) -> int:
    """How often the kernel skipped a program because one ran already (bpf_prog_info.recursion_misses, Linux 5.12)."""
    return int(struct.unpack_from("<Q", _program_info(program), _RECURSION_MISSES_OFFSET)[0])


def program_usage(program: int) -> tuple[int, int]:
    """How often a program ran, and for how many nanoseconds, while somebody held `enable_run_time_statistics`."""
    run_time_ns, runs = struct.unpack_from("<QQ", _program_info(program), _RUN_TIME_OFFSET)
    return int(runs), int(run_time_ns)


def _program_info(program: int) -> ctypes.Array[ctypes.c_char]:
    info = ctypes.create_string_buffer(_PROG_INFO_BYTES)
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, _PROG_INFO_BYTES, ctypes.addressof(info)))
    return info


def enable_run_time_statistics() -> int:
    """Let the kernel count and time all BPF programs until the returned descriptor is closed (Linux 5.8)."""
    return _bpf(_ENABLE_STATS, struct.pack("<I", _STATS_RUN_TIME))


def run_time_is_counted(setting: Path = Path("/proc/sys/kernel/bpf_stats_enabled")) -> bool:
    """Whether the host lets the kernel count and time all BPF programs anyway."""
    try:
        return setting.read_text(encoding="ascii").strip() != "0"
    except OSError:
        return False


def raw_tracepoint_open(name: str, program: int) -> int:
    """Attach a program to a raw tracepoint; closing the returned descriptor detaches it."""
    buffer = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(buffer), program))


def perf_tracepoint_open(tracepoint_id: int, program: int) -> int:
    """Attach a program to a tracepoint by its tracefs id; closing the returned descriptor detaches it."""
    attributes = struct.pack("<IIQQQQQII", _PERF_TYPE_TRACEPOINT, _PERF_ATTR_BYTES, tracepoint_id, 1, 0, 0, 0, 1, 0)
    # pid -1 on CPU 0: the program runs for every process on every CPU whichever CPU is named here.
    descriptor = _perf_event_open(attributes, -1, 0)
    for request, value in ((_PERF_EVENT_IOC_SET_BPF, program), (_PERF_EVENT_IOC_ENABLE, 0)):
        if _LIBC.ioctl(descriptor, ctypes.c_ulong(request), value) < 0:
            number = ctypes.get_errno()
            os.close(descriptor)
            raise OSError(number, os.strerror(number))
    return descriptor


def _perf_event_open(attributes: bytes, pid: int, cpu: int) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(_PERF_ATTR_BYTES, b"\0"), _PERF_ATTR_BYTES)
    descriptor = int(_LIBC.syscall(_NR_PERF_EVENT_OPEN, buffer, pid, cpu, -1, _PERF_FLAG_FD_CLOEXEC))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor
