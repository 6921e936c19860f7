# SPDX-License-Identifier: Apache-2.0
"""Made-up events of the scheduler, for tests of what the time was spent on."""

from __future__ import annotations

from observe.correlate.rows import Row
from observe.correlate.why.threads import Thread
from observe.model import Kind

RUNNABLE, ASLEEP, DEEP_ASLEEP, DEAD = 0, 1, 2, 0x80
NOBODY = Thread(0, 0)


def row(kind: Kind, time_ns: int, of: Thread, **changes: object) -> Row:
    """A row of a kind, of a thread."""
    values = dict.fromkeys(Row._fields, 0) | dict.fromkeys(("comm", "path", "path2", "detail"), "")
    values |= {"kind": int(kind), "time_ns": time_ns, "pid": of.pid, "tid": of.tid, "fd": -1} | changes
    return Row(**values)  # type: ignore[arg-type]


def switch(
    time_ns: int,
    leaves: Thread = NOBODY,
    takes: Thread = NOBODY,
    state: int = RUNNABLE,
    *,
    call: int = -1,
    stack: str = "",
    file: tuple[str, str] = ("", ""),
) -> Row:
    """A thread leaves the CPU in a state, another one takes it."""
    flags = state | (call + 1) << 16 | takes.pid << 32
    return row(
        Kind.SCHED_SWITCH, time_ns, leaves, ret=takes.tid, flags=flags, path=file[0], path2=file[1], detail=stack
    )


def waking(time_ns: int, woken: Thread, waker: Thread = NOBODY, *, born: bool = False) -> Row:
    """A thread is woken, by another one or by an interrupt."""
    kind = Kind.SCHED_WAKEUP_NEW if born else Kind.SCHED_WAKING
    return row(kind, time_ns, woken, ret=waker.tid, flags=waker.pid << 32)


def sending(time_ns: int, sender: Thread) -> Row:
    """A thread sends to a unix socket."""
    return row(Kind.SOCK_SEND_LENGTH, time_ns, sender)
