# SPDX-License-Identifier: Apache-2.0
"""Who is followed, until when; and what is told of a program that is executed."""

from __future__ import annotations

import errno
import os
import platform
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from puppets import Puppet, call, wait_until_inside
from watching import Watch

from observe.collectors.arguments import complete_arguments
from observe.model import Event, EventBatch, Kind, Mark
from observe.probes.events import Role
from observe.probes.layout import Counter

AT_FDCWD = -100
CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
MS_BIND_RECURSIVE = 0x5000
WAIT_SECONDS = 10
ENVIRONMENT = ["PATH=/usr/bin:/bin"]


def mkdirs(events: list[Event]) -> list[tuple[str, int]]:
    """Name and process of each directory that was made."""
    return [(Path(event.path).name, event.pid) for event in events if event.kind == Kind.MKDIR]


def execve(*arguments: object) -> list[Any]:
    """The command that executes a program by its path."""
    return call("execve", str(arguments[0]), [str(argument) for argument in arguments], ENVIRONMENT)


@dataclass
class Parked:
    """Children that live until the test is over."""

    puppet: Puppet
    stack: ExitStack

    def fork(self, *commands: list[Any]) -> int:
        """Commands in a child of the puppet that is not waited for; its pid."""
        pid = self.puppet.fork(*commands, wait=False)["pid"]
        self.stack.callback(self._end, pid)
        return pid

    def _end(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        # Its parent has more to do than reap it: make it do so.
        self.puppet.call("wait4", pid, 0, 0, 0)


@pytest.fixture
def parked(puppet: Puppet) -> Iterator[Parked]:
    with ExitStack() as stack:
        yield Parked(puppet, stack)


def batch_until(watch: Watch, kind: Kind, pid: int) -> EventBatch:
    """Everything up to an event of this kind of this process."""
    batches, deadline = [watch.batch()], time.monotonic() + WAIT_SECONDS
    while not any(event.kind == kind and event.pid == pid for event in batches[-1]):
        assert time.monotonic() < deadline, f"no {kind.label} of {pid}"
        time.sleep(0.005)
        batches.append(watch.batch())
    return EventBatch.concat(batches)


def test_children_and_grandchildren_and_threads_are_followed(watch: Watch, puppet: Puppet, folder: Path) -> None:
    watch.follow(puppet)
    child = puppet.fork(
        call("mkdir", folder / "child", 0o700),
        ["fork", [call("mkdir", str(folder / "grandchild"), 0o700)], True],
        ["thread", [call("mkdir", str(folder / "thread-of-child"), 0o700)], True],
    )
    (in_thread,) = puppet.thread(call("mkdir", folder / "thread", 0o700))
    seen = watch.events()
    _, grandchild, (in_childs_thread,) = child["answers"]
    assert mkdirs(seen) == [
        ("child", child["pid"]),
        ("grandchild", grandchild["pid"]),
        ("thread-of-child", child["pid"]),
        ("thread", puppet.pid),
    ]
    tids = [event.tid for event in seen if event.kind == Kind.MKDIR]
    assert tids == [child["pid"], grandchild["pid"], in_childs_thread["tid"], in_thread["tid"]]
    assert in_childs_thread["tid"] != child["pid"]
    assert in_thread["tid"] != puppet.pid
    # Threads are no processes: forks and exits are those of the two children only.
    forks = [(event.pid, event.ret) for event in seen if event.kind == Kind.SCHED_PROCESS_FORK]
    assert forks == [(puppet.pid, child["pid"]), (child["pid"], grandchild["pid"])]
    exits = [event.pid for event in seen if event.kind == Kind.SCHED_PROCESS_EXIT]
    assert exits == [grandchild["pid"], child["pid"]]


def test_a_thread_from_before_is_followed(watch: Watch, puppet: Puppet, folder: Path) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    puppet.thread(call("open", fifo, os.O_RDONLY), call("mkdir", folder / "thread", 0o700), wait=False)
    wait_until_inside(puppet.pid, "open")
    watch.follow(puppet)
    os.close(os.open(fifo, os.O_WRONLY))
    _, made = puppet.do(["join"])
    assert [(event.kind, event.pid, event.tid) for event in watch.events()] == [(Kind.MKDIR, puppet.pid, made["tid"])]


def test_a_forgotten_number_is_not_followed_again(watch: Watch, puppet: Puppet) -> None:
    watch.follow(puppet)
    for _ in range(5):
        puppet.fork(["thread", [], True])
    child = puppet.fork(wait=False)["pid"]
    puppet.call("wait4", child, 0, 0, 0)
    puppet.thread()
    deadline = time.monotonic() + WAIT_SECONDS
    while watch.followed() != {puppet.pid}:  # a thread that has answered may not have exited yet
        assert time.monotonic() < deadline, watch.followed()
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["execve", "execveat"])
def test_exec_is_recorded_with_its_arguments(name: str, watch: Watch, puppet: Puppet) -> None:
    watch.follow(puppet)
    arguments = ["first", "", "--id", "0123456789abcdef" * 4, "a b"]
    if name == "execve":
        good, bad = (call(name, path, arguments, ENVIRONMENT) for path in ("/bin/true", "/missing/program"))
    else:
        good, bad = (
            call(name, AT_FDCWD, path, arguments, ENVIRONMENT, 0) for path in ("/bin/true", "/missing/program")
        )
    children = [puppet.fork(bad, good) for _ in range(5)]
    seen = watch.events()
    execs = [event for event in seen if event.kind == Kind[name.upper()]]
    assert [(event.pid, event.path, event.ret) for event in execs] == [
        (child["pid"], path, ret)
        for child in children
        for path, ret in (("/missing/program", -errno.ENOENT), ("/bin/true", 0))
    ]
    done = [event for event in seen if event.kind == Kind.SCHED_PROCESS_EXEC]
    assert [(event.pid, event.path, event.ret, event.comm) for event in done] == [
        (child["pid"], "/bin/true", child["pid"], "true") for child in children
    ]
    assert {(event.detail, event.marks) for event in execs + done} == {("\0".join(arguments), Mark(0))}
    if name == "execveat":
        assert {(event.fd, event.flags) for event in execs} == {(AT_FDCWD, 0)}
    for call_, exec_ in zip(execs[1::2], done, strict=True):
        assert call_.time_ns <= exec_.time_ns <= call_.end_ns
    assert all(os.waitstatus_to_exitcode(child["status"]) == 0 for child in children)


def change_root(how: str, puppet: Puppet, folder: Path) -> list[list[Any]]:
    """Commands after which a process has another root, in which the host's programs still are."""
    if how == "chroot":
        return [call("chroot", "/")]
    if how == "setns":
        return [call("setns", puppet.call("open", "/proc/self/ns/mnt", os.O_RDONLY)["ret"], CLONE_NEWNS)]
    root, old = folder / "root", folder / "old"
    root.mkdir()
    old.mkdir()
    return [call("mount", "/", root, 0, MS_BIND_RECURSIVE, 0), call("pivot_root", root, f"{root}{old}")]


@pytest.mark.parametrize("how", ["chroot", "pivot_root", "setns"])
def test_the_entrypoint_is_the_last_thing_recorded(how: str, watch: Watch, puppet: Puppet, folder: Path) -> None:
    puppet.own_namespaces()
    commands = change_root(how, puppet, folder)
    made = folder / "inside", folder / "inside too"
    watch.follow(puppet)
    child = puppet.fork(
        *commands,
        call("mkdir", "/missing/before", 0o700),
        execve("/missing/entrypoint"),
        execve("/bin/sh", "-c", f"/bin/mkdir '{made[0]}'; /bin/mkdir '{made[1]}'"),
    )
    assert os.waitstatus_to_exitcode(child["status"]) == 0
    assert all(path.is_dir() for path in made)
    seen = [event for event in watch.events() if event.pid == child["pid"]]
    ends = [(event.kind, event.path, event.ret, event.marks) for event in seen][-4:]
    assert ends == [
        (Kind.MKDIR, "/missing/before", -errno.ENOENT, Mark(0)),
        (Kind.EXECVE, "/missing/entrypoint", -errno.ENOENT, Mark.ENTRYPOINT),
        (Kind.SCHED_PROCESS_EXEC, "/bin/sh", child["pid"], Mark.ENTRYPOINT),
        (Kind.EXECVE, "/bin/sh", 0, Mark.ENTRYPOINT),
    ]
    assert watch.followed() == {puppet.pid}


def x86_program(link: Path) -> bytes:
    """A 32-bit program that makes a symbolic link three times; its call number 83 is mkdir's of 64 bits."""
    base, header_bytes = 0x10000, 52 + 32
    make_link = b"\xb8\x53\0\0\0" + b"\xbb%s\xb9%s" + b"\xcd\x80"  # eax = 83, ebx = ecx = link, int 0x80
    leave = b"\xb8\x01\0\0\0\x31\xdb\xcd\x80"  # eax = 1 (exit), ebx = 0, int 0x80
    address = struct.pack("<I", base + header_bytes + 3 * 17 + len(leave))
    code = (make_link % (address, address)) * 3 + leave + os.fsencode(link) + b"\0"
    size = header_bytes + len(code)
    elf = struct.pack(
        "<4s12sHHIIIIIHHHHHH", b"\x7fELF", b"\1\1\1", 2, 3, 1, base + header_bytes, 52, 0, 0, 52, 32, 1, 40, 0, 0
    )
    return elf + struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x1000) + code


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a 32-bit entrypoint is tried on x86-64 only")
def test_an_entrypoint_whose_return_looks_like_another_call_is_forgotten(
    watch: Watch, puppet: Puppet, folder: Path
) -> None:
    program, link = folder / "program", folder / "link"
    program.write_bytes(x86_program(link))
    program.chmod(0o700)
    watch.follow(puppet)
    child = puppet.fork(call("chroot", "/"), execve(program))
    seen = [(event.kind, event.ret) for event in watch.events() if event.pid == child["pid"]]
    if link.is_symlink():
        assert seen == [(Kind.CHROOT, 0), (Kind.SCHED_PROCESS_EXEC, child["pid"])]
    else:  # this kernel runs no 32-bit programs
        assert seen == [(Kind.CHROOT, 0), (Kind.EXECVE, -errno.ENOEXEC), (Kind.SCHED_PROCESS_EXIT, 0)]
    assert watch.followed() == {puppet.pid}


def test_a_child_of_a_process_that_changed_its_root_is_followed(watch: Watch, puppet: Puppet, folder: Path) -> None:
    watch.follow(puppet)
    child = puppet.fork(
        call("chroot", "/"),
        ["fork", [call("mkdir", str(folder / "child"), 0o700), execve("/bin/mkdir", folder / "program")], True],
        execve("/bin/mkdir", folder / "entrypoint"),
    )
    seen = watch.events()
    assert [name for name, _ in mkdirs(seen)] == ["child", "program"]
    done = [event for event in seen if event.kind == Kind.SCHED_PROCESS_EXEC]
    assert [(event.pid == child["pid"], event.marks) for event in done] == [(False, Mark(0)), (True, Mark.ENTRYPOINT)]
    assert {path.name for path in folder.iterdir()} == {"child", "entrypoint", "program"}


@pytest.mark.parametrize("role", [Role.DOCKERD, Role.CONTAINERD], ids=lambda role: role.name.lower())
def test_a_daemon_that_changes_a_threads_root_is_no_entrypoint(
    role: Role, watch: Watch, puppet: Puppet, folder: Path
) -> None:
    watch.follow(puppet, role)
    puppet.thread(
        call("unshare", CLONE_FS), call("chroot", "/"), ["fork", [execve("/bin/mkdir", folder / "program")], True]
    )
    puppet.call("mkdir", folder / "daemon", 0o700)
    seen = watch.events()
    assert [name for name, _ in mkdirs(seen)] == ["program", "daemon"]
    assert [event.marks for event in seen if event.kind == Kind.SCHED_PROCESS_EXEC] == [Mark(0)]
    puppet.execute_again()
    puppet.call("mkdir", folder / "again", 0o700)
    kinds = (Kind.SCHED_PROCESS_EXEC, Kind.EXECVE, Kind.MKDIR)
    assert [(event.kind, event.pid, event.marks) for event in watch.events(*kinds)] == [
        (kind, puppet.pid, Mark(0)) for kind in kinds
    ]


def test_exec_of_a_thread_that_is_not_the_first(watch: Watch, puppet: Puppet, folder: Path) -> None:
    watch.follow(puppet)
    child = puppet.fork(["thread", [execve("/bin/mkdir", folder / "program")], True])
    assert os.waitstatus_to_exitcode(child["status"]) == 0
    seen = [event for event in watch.events() if event.pid == child["pid"]]
    assert [event.kind for event in seen if event.kind not in (Kind.CLONE, Kind.CLONE3)] == [
        Kind.SCHED_PROCESS_EXEC,
        Kind.EXECVE,
        Kind.MKDIR,
        Kind.SCHED_PROCESS_EXIT,
    ]
    exec_, execve_, _, _ = (event for event in seen if event.kind not in (Kind.CLONE, Kind.CLONE3))
    assert exec_.ret != child["pid"]
    for event in (exec_, execve_):
        assert (event.path, event.detail) == ("/bin/mkdir", f"/bin/mkdir\0{folder}/program")
        assert event.tid == child["pid"]
    assert watch.followed() == {puppet.pid}
    assert watch.counters()[Counter.UNMATCHED_RETURNS] == 0


def complete(batch: EventBatch) -> dict[Kind, Event]:
    """What is told of the execs of a batch with one of them, by kind."""
    told = complete_arguments(batch, with_values=True)
    return {event.kind: event for event in told if event.kind in (Kind.EXECVE, Kind.SCHED_PROCESS_EXEC)}


LONG_ARGUMENTS = {
    "many": ["sleep", "1000", *("0" for _ in range(60))],
    "long in all": ["sleep", "1000", *("0" * 200 for _ in range(9))],
    "one too long": ["sleep", "1000", "0" * 300, "0", "0"],
    "last too long": ["sleep", "1000", "0" * 300],
}


@pytest.mark.parametrize("arguments", LONG_ARGUMENTS.values(), ids=LONG_ARGUMENTS)
def test_long_arguments_are_completed_from_proc(
    arguments: list[str], watch: Watch, puppet: Puppet, parked: Parked
) -> None:
    watch.follow(puppet)
    child = parked.fork(call("execve", "/bin/sleep", arguments, ENVIRONMENT))
    batch = batch_until(watch, Kind.EXECVE, child)
    recorded = {event.kind: event for event in batch if event.kind in (Kind.EXECVE, Kind.SCHED_PROCESS_EXEC)}
    assert {event.marks for event in recorded.values()} == {Mark.TRUNCATED}
    assert all(len(event.detail) <= 512 for event in recorded.values())
    whole = "\0".join(arguments)
    assert whole.startswith(recorded[Kind.EXECVE].detail[:200])
    told = complete(batch)[Kind.SCHED_PROCESS_EXEC]
    assert (told.detail, told.marks) == (whole, Mark.FROM_PROC)


def test_arguments_of_a_process_that_is_gone_stay_as_recorded(watch: Watch, puppet: Puppet) -> None:
    watch.follow(puppet)
    arguments = ["true", "x" * 300]
    puppet.fork(call("execve", "/bin/true", arguments, ENVIRONMENT))
    told = complete(watch.batch())[Kind.SCHED_PROCESS_EXEC]
    assert (told.detail, told.marks) == (f"true\0{'x' * 255}", Mark.TRUNCATED)


def test_a_path_on_a_page_that_was_not_there_is_read_at_the_return(watch: Watch, puppet: Puppet, folder: Path) -> None:
    watch.follow(puppet)
    paths = [str(folder / str(index)) for index in range(5)]
    for path in paths:
        puppet.call("mkdir", {"page": [path]}, 0o700)
    assert [(event.path, event.marks) for event in watch.events()] == [(path, Mark(0)) for path in paths]


def test_an_exec_whose_path_was_not_there_has_the_kernels(watch: Watch, puppet: Puppet) -> None:
    watch.follow(puppet)
    puppet.fork(call("execve", {"page": ["/bin/true"]}, ["true", "1"], ENVIRONMENT))
    done, call_ = (event for event in watch.events() if event.kind in (Kind.EXECVE, Kind.SCHED_PROCESS_EXEC))
    assert (done.path, done.detail) == ("/bin/true", "true\x001")
    assert (call_.path, call_.marks) == ("", Mark.PATH_UNREADABLE)


def test_arguments_that_were_not_there_are_completed_from_proc(watch: Watch, puppet: Puppet, parked: Parked) -> None:
    watch.follow(puppet)
    arguments = ["sleep", "1000"]
    child = parked.fork(call("execve", "/bin/sleep", {"pages": arguments}, ENVIRONMENT))
    batch = batch_until(watch, Kind.EXECVE, child)
    assert {(e.detail, e.marks) for e in batch if e.kind in (Kind.EXECVE, Kind.SCHED_PROCESS_EXEC)} == {
        ("", Mark.PATH_UNREADABLE)
    }
    told = complete(batch)[Kind.SCHED_PROCESS_EXEC]
    assert (told.path, told.detail, told.marks) == ("/bin/sleep", "\0".join(arguments), Mark.FROM_PROC)
