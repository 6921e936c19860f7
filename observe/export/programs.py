# SPDX-License-Identifier: Apache-2.0
"""The programs that ran during a run, from its events: which process executed what, from when to when."""

from __future__ import annotations

from dataclasses import dataclass, replace

from observe.model import Kind, Mark, Run

#: Kinds whose `detail` are arguments.
EXECS = frozenset({Kind.EXECVE, Kind.EXECVEAT, Kind.SCHED_PROCESS_EXEC})


@dataclass(frozen=True, slots=True)
class Program:
    """One program of one process. `complete`: its end was seen; else it was still running when the run ended."""

    pid: int
    #: 0 if its fork was not seen.
    parent_pid: int
    path: str
    arguments: tuple[str, ...]
    start_ns: int
    end_ns: int
    #: The innermost phase when it began.
    phase: str
    complete: bool
    entrypoint: bool

    @property
    def name(self) -> str:
        """The file's name; argument 0 where the file is a link into /proc or /dev (`/proc/self/exe`)."""
        path = self.arguments[0] if self.path.startswith(("/proc/", "/dev/")) and self.arguments else self.path
        return path.rpartition("/")[2]


def arguments(detail: str) -> tuple[str, ...]:
    """The arguments of an exec's `detail`, which NUL joins."""
    return tuple(detail.split("\0")) if detail else ()


def programs(run: Run) -> tuple[Program, ...]:
    """In the order in which they were executed; none for a run without events.

    A program begins with the exec that loads it, and ends with its process or the next exec of the process.
    """
    run_end_ns = run.start_ns + run.duration_ns
    parents: dict[int, int] = {}
    running: dict[int, Program] = {}
    found: list[Program] = []
    for phase, event in run.events:
        if event.kind == Kind.SCHED_PROCESS_FORK:
            parents[event.ret] = event.pid
        elif event.kind in {Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT}:
            before = running.pop(event.pid, None)
            if before is not None:
                found.append(replace(before, end_ns=event.time_ns, complete=True))
            if event.kind == Kind.SCHED_PROCESS_EXEC:
                running[event.pid] = Program(
                    pid=event.pid,
                    parent_pid=parents.get(event.pid, 0),
                    path=event.path,
                    arguments=arguments(event.detail),
                    start_ns=event.time_ns,
                    end_ns=max(run_end_ns, event.time_ns),
                    phase=phase,
                    complete=False,
                    entrypoint=Mark.ENTRYPOINT in event.marks,
                )
    return tuple(sorted((*found, *running.values()), key=lambda program: program.start_ns))
