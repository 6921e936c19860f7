# SPDX-License-Identifier: Apache-2.0
"""The processes of one run, from its events: who started whom, what it executed, how long it lived."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from observe.model import Event, Kind, Mark, Run

#: What runc and its shim are told to do, in one word among their options.
_VERBS = frozenset({"create", "start", "delete", "init", "kill", "run", "exec", "state"})


@dataclass(frozen=True, slots=True)
class Process:
    """One process. Times are offsets from the run's beginning; what lived before has depth 0 and starts at 0."""

    pid: int
    depth: int
    #: What it executed, one after the other: `runc init → true`.
    name: str
    #: Arguments of the last program, as far as they were recorded.
    command: str
    start_ns: int
    end_ns: int
    #: Whether its exit was seen; else it outlived the run, or became the container's own.
    ended: bool


@dataclass(slots=True)
class _Life:
    """What the events say of one process so far."""

    comms: Counter[str] = field(default_factory=Counter)
    programs: list[str] = field(default_factory=list)
    command: str = ""
    parent: int | None = None
    birth_ns: int | None = None
    death_ns: int | None = None
    ended: bool = False


def processes_of(run: Run) -> tuple[Process, ...]:
    """Parents before their children, who stand in the order of their birth; the engine's own processes first."""
    lives: defaultdict[int, _Life] = defaultdict(_Life)
    for _, event in run.events:
        if event.pid:
            _note(lives, event)
    children: defaultdict[int | None, list[int]] = defaultdict(list)
    for pid, life in lives.items():
        children[life.parent if life.parent in lives else None].append(pid)
    return tuple(_tree(run, lives, children, children[None], 0))


def _note(lives: Mapping[int, _Life], event: Event) -> None:
    life = lives[event.pid]
    life.comms[event.comm] += 1
    if event.kind == Kind.SCHED_PROCESS_FORK and event.ret != event.pid:
        child = lives[event.ret]
        child.parent, child.birth_ns = event.pid, event.time_ns
    elif event.kind == Kind.SCHED_PROCESS_EXEC:
        arguments = event.detail.split("\0")
        program = _program(arguments, event)
        if event.marks & Mark.ENTRYPOINT and not life.programs:
            life.programs.append(life.comms.most_common(1)[0][0])  # what forked it, until then
        if life.programs[-1:] != [program]:
            life.programs.append(program)
        life.command = " ".join(arguments)
        if event.marks & Mark.ENTRYPOINT:
            life.death_ns = event.time_ns
    elif event.kind == Kind.SCHED_PROCESS_EXIT and event.pid == event.tid:
        life.death_ns, life.ended = event.time_ns, True


def _program(arguments: Sequence[str], event: Event) -> str:
    """Name of a program, and the one word that says what it is to do."""
    name = (arguments[0] or event.path).rpartition("/")[2] or event.comm
    verb = next((word for word in arguments[1:] if word in _VERBS), "")
    return f"{name} {verb}".rstrip()


def _tree(
    run: Run, lives: Mapping[int, _Life], children: Mapping[int | None, list[int]], pids: Iterable[int], depth: int
) -> Iterator[Process]:
    waiting = [(pid, depth) for pid in reversed(list(pids))]
    while waiting:
        pid, depth = waiting.pop()
        life = lives[pid]
        start_ns = 0 if life.birth_ns is None else life.birth_ns - run.start_ns
        end_ns = run.duration_ns if life.death_ns is None else life.death_ns - run.start_ns
        yield Process(
            pid=pid,
            depth=depth,
            name=" → ".join(life.programs) or life.comms.most_common(1)[0][0] if life.comms else "(no event)",
            command=life.command,
            start_ns=start_ns,
            end_ns=max(start_ns, end_ns),
            ended=life.ended,
        )
        waiting.extend((child, depth + 1) for child in reversed(children.get(pid, ())))
