# SPDX-License-Identifier: Apache-2.0
"""Which process answers on an open connection: the one that holds the connection's other end.

Neither a name nor the socket's creator decides, so socket activation (where systemd made the socket), other
namespaces and a second daemon cannot mislead.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from observe.engine import procfs
from observe.engine.api import FOREIGN_HOST, Connection
from observe.errors import HostCannotError

_HOST_PIDS = "run in the host's pid namespace (hostPID, docker run --pid=host)"


def serving_process(connection: Connection) -> procfs.Process:
    """The process that answers on `connection`, which must have answered once (so it was accepted).

    Raises HostCannotError if that process is on another host, in a pid namespace out of view, or hidden from us.
    """
    url, path = connection.address.url, connection.address.path
    everyone = procfs.processes()
    if path:
        maker = listener_maker(connection.socket)
        if maker == 0:
            raise HostCannotError(f"the engine at {url} is out of view: {_HOST_PIDS}")
        everyone.sort(key=lambda process: process.pid != maker)  # usually the one; systemd with socket activation
        accepted = _accepted_unix(Path(path), maker)
    else:
        accepted = _accepted_tcp(connection.socket, everyone)
        if not accepted:
            raise HostCannotError(f"{url}: {FOREIGN_HOST}")
    hidden = False
    for process in everyone:
        try:
            if not accepted.isdisjoint(procfs.socket_fds(process.pid).values()):
                return process
        except PermissionError:
            hidden = True
    if hidden:
        raise HostCannotError(f"may not see which process answers at {url}: run as root, with CAP_SYS_PTRACE")
    raise HostCannotError(f"the engine at {url} is out of view: {_HOST_PIDS}")


def listener_maker(channel: socket.socket) -> int:
    """The process that called listen() on the other end of a unix socket; 0 if it is out of view."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def same_file(one: Path, other: Path) -> bool:
    """Whether both paths lead to one file, also through the roots of different processes."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def root_of(pid: int, path: str) -> Path:
    """A path as the process sees it, made reachable from here."""
    return procfs.PROC / str(pid) / "root" / path.lstrip("/")


def _accepted_unix(path: Path, maker: int) -> set[int]:
    """Inodes of the server's ends of connections like ours to the socket file at `path`.

    The kernel counts both ends to the client's network namespace, so ours lists them wherever the server is. Their
    path is the one given to bind(), good in the root of who made the listener (if it still lives), often in ours.
    """
    rows = [row for row in procfs.unix_sockets(os.getpid()) if row.connected and row.path]
    owners = (maker, os.getpid())
    served = {text for text in {row.path for row in rows} if any(same_file(root_of(pid, text), path) for pid in owners)}
    return {row.inode for row in rows if row.path in served}


def _accepted_tcp(channel: socket.socket, everyone: Iterable[procfs.Process]) -> set[int]:
    """Inodes of the other end of a TCP connection, in whatever network namespace of this host it is."""
    ours, theirs = _endpoint(channel.getsockname()), _endpoint(channel.getpeername())
    return {
        row.inode
        for pid in procfs.namespace_members(everyone)
        for row in procfs.tcp_sockets(pid)
        if row.connected and (row.local, row.remote) == (theirs, ours)
    }


def _endpoint(name: tuple[str, int]) -> tuple[str, int]:
    return procfs.plain_address(name[0]), name[1]
