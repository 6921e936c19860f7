# SPDX-License-Identifier: Apache-2.0
"""Processes and sockets as /proc shows them. Every function takes the /proc root, so tests can bring their own.

What disappears while it is read is left out; PermissionError is passed on (only the caller knows what it means).
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

PROC = Path("/proc")

_LISTENING_FLAG = 0x10000  # __SO_ACCEPTCON
_UNIX_CONNECTED = 3  # SS_CONNECTED
_TCP_ESTABLISHED = 0x01
_TCP_LISTEN = 0x0A


@dataclass(frozen=True, slots=True)
class Process:
    """One process (thread group). `start_ticks`, clock ticks since boot, tells it from a later one of the same pid."""

    pid: int
    ppid: int
    comm: str
    state: str
    start_ticks: int


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A row of net/unix. An accepted socket shows the path its listener was bound to, a client's none.

    Both ends of a connection are in the table of the client's network namespace.
    """

    inode: int
    path: str
    listening: bool
    connected: bool


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A row of net/tcp or net/tcp6; IPv4 in IPv6 is shown as IPv4."""

    inode: int
    local: tuple[str, int]
    remote: tuple[str, int]
    listening: bool
    connected: bool


def process(pid: int, proc: Path = PROC) -> Process | None:
    """The process of that pid, or None if there is none."""
    try:
        stat = (proc / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold spaces and parentheses: fields start after the last one.
    head, _, tail = stat.rpartition(")")
    fields = tail.split()
    return Process(pid, int(fields[1]), head.partition("(")[2], fields[0], int(fields[19]))


def processes(proc: Path = PROC) -> list[Process]:
    """All processes, by pid."""
    pids = sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal())
    return [found for pid in pids if (found := process(pid, proc)) is not None]


def descendants(pid: int, among: Iterable[Process]) -> Iterator[Process]:
    """Children of `pid`, their children and so on; a parent comes before its children."""
    children: dict[int, list[Process]] = {}
    for candidate in among:
        children.setdefault(candidate.ppid, []).append(candidate)
    pending = list(children.get(pid, ()))
    while pending:
        found = pending.pop(0)
        yield found
        pending.extend(children.get(found.pid, ()))


def arguments(pid: int, proc: Path = PROC) -> list[str]:
    """The argument vector; empty for a kernel thread, a zombie or a process that is gone."""
    try:
        text = (proc / str(pid) / "cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.removesuffix("\0").split("\0") if text else []


def executable(pid: int, proc: Path = PROC) -> str:
    """Path of the executed file in the process's own root; "" if it cannot be told."""
    try:
        return str((proc / str(pid) / "exe").readlink())
    except (FileNotFoundError, ProcessLookupError):
        return ""


def namespace_members(among: Iterable[Process], proc: Path = PROC) -> list[int]:
    """One process of each network namespace that may be looked at."""
    members: dict[str, int] = {}
    for candidate in among:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            members.setdefault(str((proc / str(candidate.pid) / "ns" / "net").readlink()), candidate.pid)
    return list(members.values())


def socket_fds(pid: int, proc: Path = PROC) -> dict[int, int]:
    """Open sockets of a process: descriptor → inode."""
    found = {}
    try:
        for entry in (proc / str(pid) / "fd").iterdir():
            try:
                target = str(entry.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                found[int(entry.name)] = int(target[8:-1])
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(sorted(found.items()))


def unix_sockets(pid: int, proc: Path = PROC) -> list[UnixSocket]:
    """The unix sockets of the process's network namespace; a path is as given to bind()."""
    found = []
    for line in _table(pid, "unix", proc):
        # Num RefCount Protocol Flags Type St Inode [Path, which may hold spaces]
        fields = line.split(maxsplit=7)
        flags, state, inode = int(fields[3], 16), int(fields[5], 16), int(fields[6])
        path = fields[7] if len(fields) > 7 else ""
        found.append(UnixSocket(inode, path, bool(flags & _LISTENING_FLAG), state == _UNIX_CONNECTED))
    return found


def tcp_sockets(pid: int, proc: Path = PROC) -> list[TcpSocket]:
    """The TCP sockets of the process's network namespace, both families."""
    found = []
    for line in [*_table(pid, "tcp", proc), *_table(pid, "tcp6", proc)]:
        # sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …
        fields = line.split()
        state = int(fields[3], 16)
        listening, connected = state == _TCP_LISTEN, state == _TCP_ESTABLISHED
        found.append(TcpSocket(int(fields[9]), _endpoint(fields[1]), _endpoint(fields[2]), listening, connected))
    return found


def plain_address(text: str) -> str:
    """An IP address in its shortest form: no zone, IPv4 in IPv6 as IPv4."""
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _table(pid: int, name: str, proc: Path) -> list[str]:
    try:
        text = (proc / str(pid) / "net" / name).read_text(errors="surrogateescape")
    except OSError as error:
        # tcp6 does not exist without IPv6; the rest is a process that is gone (EINVAL: its namespace is).
        if isinstance(error, PermissionError):
            raise
        return []
    # Not splitlines(): a path may hold any character but the line feed that ends the row.
    return [line for line in text.split("\n")[1:] if line]


def _endpoint(text: str) -> tuple[str, int]:
    # Addresses are 32-bit words in the byte order of the host, the port is a plain number.
    address, _, port = text.partition(":")
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    packed = struct.pack(f"{order}{len(words)}I", *words)
    parsed = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    return plain_address(str(parsed)), int(port, 16)
