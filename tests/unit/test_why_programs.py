# SPDX-License-Identifier: Apache-2.0
"""Which program a process ran: its last one, its parent's before, and what the kernel calls it for want of both."""

from __future__ import annotations

from observe.correlate.rows import Row
from observe.correlate.why.programs import Programs
from observe.model import Kind


def row(time_ns: int, kind: Kind, pid: int, *, child: int = 0, comm: str = "", detail: str = "") -> Row:
    return Row(time_ns, 0, 0, child, 0, pid, pid, -1, comm, "", "", detail, kind, 0)


def test_the_program_of_a_process_at_a_moment():
    rows = [
        row(1, Kind.OPENAT, 7, comm="containerd-shim"),  # began before the operation
        row(2, Kind.SCHED_PROCESS_FORK, 7, child=8, comm="containerd-shim"),
        row(4, Kind.SCHED_PROCESS_EXEC, 8, comm="runc", detail="/usr/bin/runc\0--log\0x\0create\0id"),
        row(5, Kind.SCHED_PROCESS_FORK, 8, child=9, comm="runc"),
        row(7, Kind.SCHED_PROCESS_EXEC, 9, comm="runc", detail="runc\0init"),
    ]
    programs = Programs(rows, lambda pid: "dockerd" if pid == 1 else "child")
    assert programs.at(1, 3) == "dockerd"
    assert programs.at(7, 3) == "containerd-shim"
    assert [programs.at(8, time_ns) for time_ns in (3, 4, 9)] == ["containerd-shim", "runc create", "runc create"]
    assert [programs.at(9, time_ns) for time_ns in (6, 7)] == ["runc create", "runc init"]
    assert programs.at(10, 3) == ""
    assert programs.processes == {8, 9}
