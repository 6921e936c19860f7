#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""A runtime for dockerd (--add-runtime) that does a bit of everything before `runc create`, and says when.

It is told by a link to this file. To LINK.parts beside it goes one JSON line a part: {"part", "pid", "start_ns",
"end_ns", "queued_ns"}, boot clock, with the time that the kernel itself says it waited for a CPU meanwhile: `spin`,
`sleep`, `fsync` (20 of a small file) and `child` (a process that spins, then sleeps, while this one waits for it; its
own parts are `child_spin`, `child_sleep`).
"""

import json
import os
import sys
import time

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SPIN_NS = 30_000_000
SLEEP_SECONDS = 0.03
CHILD_SPIN_NS = 20_000_000
CHILD_SLEEP_SECONDS = 0.02
FSYNCS = 20


def main() -> None:
    """Work if it is a create, then become runc."""
    name, arguments = sys.argv[0], sys.argv[1:]
    if "create" in arguments:
        parts = f"{name}.parts"
        timed(parts, "spin", lambda: spin(SPIN_NS))
        timed(parts, "sleep", lambda: time.sleep(SLEEP_SECONDS))
        timed(parts, "fsync", lambda: fsyncs(f"{name}.file"))
        timed(parts, "child", lambda: child(parts))
    os.execvpe("runc", ["runc", *arguments], {**os.environ, "PATH": PATH})  # noqa: S606 - it becomes runc


def timed(parts, part, work):
    """Do it, and say when it was."""
    start_ns, queued_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME), queued()
    work()
    end_ns, queued_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME), queued() - queued_ns
    told = {"part": part, "pid": os.getpid(), "start_ns": start_ns, "end_ns": end_ns, "queued_ns": queued_ns}
    with open(parts, "a", encoding="ascii") as file:  # noqa: PTH123 - pathlib takes 10 ms to import
        file.write(json.dumps(told) + "\n")


def queued():
    """How long this thread has waited on a run queue so far (Documentation/scheduler/sched-stats.rst)."""
    with open("/proc/thread-self/schedstat", encoding="ascii") as file:  # noqa: PTH123 - the same
        return int(file.read().split()[1])


def spin(cpu_ns):
    """Use so much processor time."""
    until_ns = time.thread_time_ns() + cpu_ns
    while time.thread_time_ns() < until_ns:
        pass


def fsyncs(path):
    """Flush a few bytes to the disk, again and again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for _ in range(FSYNCS):
        os.write(descriptor, b"x")
        os.fsync(descriptor)
    os.close(descriptor)


def child(parts):
    """Wait for a process that spins and sleeps."""
    pid = os.fork()
    if not pid:
        timed(parts, "child_spin", lambda: spin(CHILD_SPIN_NS))
        timed(parts, "child_sleep", lambda: time.sleep(CHILD_SLEEP_SECONDS))
        os._exit(0)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
