# SPDX-License-Identifier: Apache-2.0
"""Ask the kernel whether it offers a BPF feature, by trying the smallest thing that needs it. Nothing stays loaded."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable

#: The bpf(2) of this process: command and attributes → descriptor. Raises OSError.
Bpf = Callable[[int, bytes], int]

_SYSCALL_NUMBER = {"x86_64": 321, "aarch64": 280}

_MAP_CREATE, _PROG_LOAD, _LINK_CREATE = 0, 5, 28
_MAP_TYPE_RINGBUF = 27
_PROG_TYPE_KPROBE, _PROG_TYPE_TRACEPOINT = 2, 5
_TRACE_UPROBE_MULTI = 48
_PROBE_READ_USER, _PROBE_READ_KERNEL, _KTIME_GET_BOOT_NS = 112, 113, 125


def bpf(command: int, attributes: bytes) -> int:
    """Make the system call. Returns the new descriptor; raises OSError (ENOSYS if its number is not known here)."""
    number = _SYSCALL_NUMBER.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def ring_buffer(call: Bpf = bpf) -> OSError | None:
    """None if a ring buffer of one page can be made, else why not."""
    # map_type, key_size, value_size, max_entries, map_flags
    return _tried(lambda: call(_MAP_CREATE, struct.pack("=5I", _MAP_TYPE_RINGBUF, 0, 0, os.sysconf("SC_PAGESIZE"), 0)))


def tracepoint_program(call: Bpf = bpf) -> OSError | None:
    """None if a tracepoint's program may read the memory of the kernel and of processes, else why not."""
    read = [
        _instruction(0xBF, dst=1, src=10),  # r1 = r10
        _instruction(0x07, dst=1, imm=-8),  # r1 -= 8: eight bytes on the stack
        _instruction(0xB7, dst=2, imm=8),  # r2 = 8 bytes
        _instruction(0xB7, dst=3, imm=0),  # r3 = any address: the program never runs
    ]
    body = [*read, _call(_PROBE_READ_USER), *read, _call(_PROBE_READ_KERNEL)]
    return _tried(lambda: _load(call, _PROG_TYPE_TRACEPOINT, body))


def boot_clock(call: Bpf = bpf) -> OSError | None:
    """None if programs can read the boot clock, else why not."""
    return _tried(lambda: _load(call, _PROG_TYPE_TRACEPOINT, [_call(_KTIME_GET_BOOT_NS)]))


def uprobe_multi(call: Bpf = bpf) -> OSError | None:
    """None if one link can hold many uprobes, else why not."""
    try:
        program = _load(call, _PROG_TYPE_KPROBE, [], expected_attach_type=_TRACE_UPROBE_MULTI)
    except OSError as error:
        return error
    path, offset = ctypes.create_string_buffer(b"/"), ctypes.c_uint64(0)
    # prog_fd, target_fd, attach_type, flags; path, offsets, ref_ctr_offsets, cookies; cnt, flags, pid
    attributes = struct.pack("=4I", program, 0, _TRACE_UPROBE_MULTI, 0)
    attributes += struct.pack("=4Q3I4x", ctypes.addressof(path), ctypes.addressof(offset), 0, 0, 1, 0, 0)
    try:
        refused = _tried(lambda: call(_LINK_CREATE, attributes))
    finally:
        os.close(program)
    # A kernel that knows these links gets as far as finding that a directory cannot be probed.
    return None if refused is None or refused.errno == errno.EBADF else refused


def _tried(make: Callable[[], int]) -> OSError | None:
    try:
        os.close(make())
    except OSError as error:
        return error
    return None


def _load(call: Bpf, program_type: int, body: list[bytes], expected_attach_type: int = 0) -> int:
    code = ctypes.create_string_buffer(b"".join([*body, _instruction(0xB7, imm=0), _instruction(0x95)]))
    licence = ctypes.create_string_buffer(b"GPL")
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name,
    # prog_ifindex, expected_attach_type
    attributes = struct.pack(
        "=2I2Q2IQ2I16s2I",
        *(program_type, len(body) + 2, ctypes.addressof(code), ctypes.addressof(licence)),
        *(0, 0, 0, 0, 0, b"observe_doctor", 0, expected_attach_type),
    )
    return call(_PROG_LOAD, attributes)


def _call(helper: int) -> bytes:
    return _instruction(0x85, imm=helper)


def _instruction(code: int, dst: int = 0, src: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, 0, imm)
