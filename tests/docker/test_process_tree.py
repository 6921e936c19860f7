# SPDX-License-Identifier: Apache-2.0
"""The tree of processes of a start, as recorded, is the one that strace sees of another start."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from posixpath import basename
from typing import NamedTuple

from engines import Engine
from recorded import api_client, record, report, runs_of

from observe.engine import find_engine
from observe.model import Event, Kind, Mark
from observe.recording import Recording

COMMANDS = {"start", "create", "init"}
DEADLINE_SECONDS = 60

_EXEC = re.compile(r"^(?P<pid>\d+)\s+execve(?:at)?\(.*?\[(?P<words>.*?)\]")
_EXEC_DONE = re.compile(r"^(?P<pid>\d+)\s+(?:execve(?:at)?\(|<\.\.\. execve(?:at)? resumed>).* = 0$")
_CLONE = re.compile(
    r"^(?P<pid>\d+)\s+(?:clone3?|v?fork)\((?P<arguments>.*?)(?:= (?P<child>\d+))?(?: <unfinished \.\.\.>)?$"
)
_CLONE_DONE = re.compile(r"^(?P<pid>\d+)\s+<\.\.\. (?:clone3?|v?fork) resumed>(?P<arguments>.*) = (?P<child>\d+)$")


class Program(NamedTuple):
    """A program that was executed, and the one that its process, or its process's parent, ran before."""

    name: str
    parent: str


def label(words: Iterable[str]) -> str:
    """The name of a program, and its command if it is one of a runtime or a shim."""
    first, *rest = words
    return " ".join([basename(first), *[word for word in rest if word in COMMANDS][:1]])


def recorded_tree(events: Iterable[Event]) -> Iterator[Program]:
    """Every program until the container's own, in order."""
    parents: dict[int, int] = {}
    running: dict[int, str] = {}
    for event in events:
        if event.kind is Kind.SCHED_PROCESS_FORK:
            parents[event.ret] = event.pid
        elif event.kind is Kind.SCHED_PROCESS_EXEC:
            name = label(event.detail.split("\0"))
            yield Program(name, _running(event.pid, parents, running))
            running[event.pid] = name
            if event.marks & Mark.ENTRYPOINT:
                return


def straced_tree(lines: Sequence[str], entrypoint: str) -> Iterator[Program]:
    """The same from the output of `strace -f`."""
    parents = straced_births(lines)
    running: dict[int, str] = {}
    starting: dict[int, str] = {}
    for line in lines:
        if match := _EXEC.match(line):
            starting[int(match["pid"])] = label(re.findall(r'"((?:[^"\\]|\\.)*)"', match["words"]))
        if match := _EXEC_DONE.match(line):
            pid = int(match["pid"])
            name = starting.pop(pid)
            yield Program(name, _running(pid, parents, running))
            running[pid] = name
            if name == entrypoint:
                return


def straced_births(lines: Iterable[str]) -> dict[int, int]:
    """Child → its parent: what a thread makes is its process's. A child may be told of before its parent's call is."""
    births: dict[int, int] = {}
    groups: dict[int, int] = {}
    cloning: dict[int, str] = {}
    for line in lines:
        if not (match := _CLONE.match(line) or _CLONE_DONE.match(line)):
            continue
        maker, arguments = int(match["pid"]), cloning.pop(int(match["pid"]), "") + match["arguments"]
        if not match["child"]:
            cloning[maker] = arguments
        elif "CLONE_THREAD" in arguments:
            groups[int(match["child"])] = maker
        else:
            births[int(match["child"])] = maker
    return {child: _process(maker, groups) for child, maker in births.items()}


def _process(thread: int, groups: Mapping[int, int]) -> int:
    while thread in groups:
        thread = groups[thread]
    return thread


def _running(pid: int, parents: Mapping[int, int], running: Mapping[int, str]) -> str:
    while pid in parents and pid not in running:
        pid = parents[pid]
    return running.get(pid, "a daemon")


@contextmanager
def strace(pids: Iterable[int], out: Path) -> Iterator[None]:
    """Processes, and what they start, are traced meanwhile."""
    attached = [word for pid in pids for word in ("-p", str(pid))]
    command = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "300",
        "-e",
        "trace=process",
        "-e",
        "signal=none",
        "-o",
        str(out),
        *attached,
    ]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not all(is_traced(pid) for pid in pids):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


def is_traced(pid: int) -> bool:
    """Whether somebody traces every thread of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)


def test_the_tree_of_processes_is_the_one_that_strace_sees(engine: Engine, tmp_path: Path) -> None:
    path, out = tmp_path / "tree.observe", tmp_path / "strace"
    client = api_client(engine, tmp_path / "times", "--network", "bridge", "--command", "true")
    record(engine, path, client)
    ours = list(recorded_tree(Recording.open(path).events()))
    found = find_engine(engine.url)
    assert found.containerd_pid is not None
    with strace([found.pid, found.containerd_pid], out):
        subprocess.run(client, check=True, timeout=DEADLINE_SECONDS * 2)
    theirs = list(straced_tree(out.read_text().splitlines(), "true"))
    assert ours == theirs
    assert [program.name for program in ours] == [
        "containerd-shim-runc-v2 start",
        "containerd-shim-runc-v2",
        "runc create",
        "runc init",
        "runc init",
        "libnetwork-setkey",
        "set-ipv6",
        "runc start",
        "true",
    ]
    (start,) = runs_of(report(path, options=["--events"]), "start")
    executed = [
        label(event["detail"].split("\0"))
        for phase in start["phases"]
        for event in phase.get("events", [])
        if event["kind"] == "sched_process_exec" and "entrypoint" not in event.get("marks", [])
    ]
    assert sorted(executed) == sorted(program.name for program in ours[:-1])
