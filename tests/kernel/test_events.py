# SPDX-License-Identifier: Apache-2.0
"""Every system call that is looked at is recorded exactly as often as it was made, as it was made."""

from __future__ import annotations

import errno
import os
import platform
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from puppets import Puppet, call, number, wait_until_inside
from watching import Watch

from observe.model import SYSCALLS, Event, Kind, Mark
from observe.probes.events import Role, numbered_calls
from observe.probes.layout import Counter

AT_FDCWD = -100
AT_REMOVEDIR = 0x200
CLONE_FS, CLONE_SIGHAND, CLONE_NEWUTS = 0x200, 0x800, 0x4000000
MS_NOSUID, MNT_DETACH = 2, 2
RTM_GETLINK, SECCOMP_GET_ACTION_AVAIL = 18, 2
RENAME_NOREPLACE = 1
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 4, 1, 6
CREATE = os.O_CREAT | os.O_WRONLY
#: How often each case makes its call: some succeed, some fail.
GOOD, BAD = 3, 2


class Script:
    """Makes calls through the puppet and keeps what must be recorded of them."""

    def __init__(self, puppet: Puppet, folder: Path) -> None:
        self.puppet = puppet
        self.folder = folder
        self.expected: list[Event] = []
        self.answers: list[dict[str, int]] = []

    def path(self, name: object) -> str:
        return str(self.folder / f"{name}")

    def made(self, name: str, *arguments: Any, command: list[Any] | None = None, **values: Any) -> int:
        """A call that must be recorded with these values; what it returned."""
        answer = self.puppet.do(command or call(name, *arguments))
        fields = {"ret": answer["ret"], "pid": self.puppet.pid, "tid": answer["tid"], "comm": "puppet", **values}
        self.expected.append(Event(time_ns=0, kind=Kind[name.upper()], **fields))
        self.answers.append(answer)
        return answer["ret"]

    def silent(self, name: str, *arguments: Any) -> int:
        """A call that must not be recorded, and must succeed."""
        ret = self.puppet.call(name, *arguments)["ret"]
        assert ret >= 0, errno.errorcode[-ret]
        return ret


def five(make: Callable[[int], int]) -> None:
    """Calls 0, 1, 2 succeed, 3 and 4 fail."""
    for index in range(GOOD + BAD):
        ret = make(index)
        assert (ret < 0) == (index >= GOOD), ret


def missing_after(script: Script, index: int) -> str:
    """A path that can be made, then one that cannot."""
    return script.path(index) if index < GOOD else script.path(f"missing/{index}")


def mkdir(script: Script) -> None:
    five(lambda i: script.made("mkdir", path := missing_after(script, i), 0o700, path=path))


def mkdirat(script: Script) -> None:
    here = script.silent("open", script.folder, os.O_RDONLY)
    five(
        lambda i: script.made("mkdirat", here, path := f"at-{i}" if i < GOOD else "no/dir", 0o700, path=path, fd=here),
    )


def rmdir(script: Script) -> None:
    for index in range(GOOD):
        (script.folder / str(index)).mkdir()
    five(lambda i: script.made("rmdir", script.path(i), path=script.path(i)))


def open_creating(script: Script) -> None:
    five(lambda i: script.made("open", path := missing_after(script, i), CREATE, 0o600, path=path, flags=CREATE))


def openat_creating(script: Script) -> None:
    def make(index: int) -> int:
        path = missing_after(script, index)
        return script.made("openat", AT_FDCWD, path, CREATE, 0o600, path=path, fd=AT_FDCWD, flags=CREATE)

    five(make)


def openat2_creating(script: Script) -> None:
    def make(index: int) -> int:
        path = missing_after(script, index)
        how = struct.pack("<QQQ", CREATE, 0o600, 0)
        return script.made("openat2", AT_FDCWD, path, how, len(how), path=path, fd=AT_FDCWD, flags=CREATE)

    five(make)


def creat(script: Script) -> None:
    five(lambda i: script.made("creat", path := missing_after(script, i), 0o600, path=path))


def rename(script: Script) -> None:
    for index in range(GOOD):
        (script.folder / f"old-{index}").touch()

    def make(index: int) -> int:
        old, new = script.path(f"old-{index}"), script.path(f"new-{index}")
        return script.made("rename", old, new, path=new, path2=old)

    five(make)


def renameat(script: Script) -> None:
    here = script.silent("open", script.folder, os.O_RDONLY)
    for index in range(GOOD):
        (script.folder / f"old-{index}").touch()

    def make(index: int) -> int:
        old, new = f"old-{index}", script.path(f"new-{index}")
        return script.made("renameat", here, old, AT_FDCWD, new, path=new, path2=old, fd=AT_FDCWD)

    five(make)


def renameat2(script: Script) -> None:
    here = script.silent("open", script.folder, os.O_RDONLY)
    for index in range(GOOD):
        (script.folder / f"old-{index}").touch()

    def make(index: int) -> int:
        old, new, flags = script.path(f"old-{index}"), f"new-{index}", RENAME_NOREPLACE
        return script.made("renameat2", AT_FDCWD, old, here, new, flags, path=new, path2=old, fd=here, flags=flags)

    five(make)


def unlink(script: Script) -> None:
    for index in range(GOOD):
        (script.folder / str(index)).touch()
    five(lambda i: script.made("unlink", script.path(i), path=script.path(i)))


def unlinkat(script: Script) -> None:
    here = script.silent("open", script.folder, os.O_RDONLY)
    for index in range(GOOD):
        (script.folder / str(index)).mkdir()
    flags = AT_REMOVEDIR
    five(lambda i: script.made("unlinkat", here, f"{i}", flags, path=f"{i}", fd=here, flags=flags))


def sync(name: str) -> Callable[[Script], None]:
    def case(script: Script) -> None:
        (script.folder / "file").touch()
        file = script.silent("open", script.path("file"), os.O_RDONLY)
        five(lambda i: script.made(name, fd := file if i < GOOD else 9999, fd=fd))

    return case


def pwrite64(script: Script) -> None:
    (script.folder / "file").touch()
    path = script.path("file")
    file = script.made("open", path, os.O_WRONLY, path=path, flags=os.O_WRONLY)
    five(lambda i: script.made("pwrite64", fd := file if i < GOOD else 9999, "text", 4, 0, fd=fd))


def sendto(script: Script) -> None:
    """What is sent to netlink, by the type of its message; nothing of what is sent elsewhere."""
    netlink = script.silent("socket", socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    udp = script.silent("socket", socket.AF_INET, socket.SOCK_DGRAM, 0)
    kernel = struct.pack("<HHII", socket.AF_NETLINK, 0, 0, 0)
    here = struct.pack("<H", socket.AF_INET) + struct.pack(">H4s8x", 9, b"\x7f\0\0\1")
    message = struct.pack("<IHHIIB3x", 20, RTM_GETLINK, 1, 1, 0, 0)

    def make(index: int) -> int:
        script.silent("sendto", udp, message, len(message), 0, here, len(here))
        file = netlink if index < GOOD else 9999
        return script.made("sendto", file, message, len(message), 0, kernel, len(kernel), fd=file, flags=RTM_GETLINK)

    five(make)


def seccomp(script: Script) -> None:
    allow = struct.pack("<I", 0x7FFF0000)
    five(lambda i: script.made("seccomp", what := SECCOMP_GET_ACTION_AVAIL if i < GOOD else 99, 0, allow, flags=what))


def unshare(script: Script) -> None:
    five(lambda i: script.made("unshare", flags := CLONE_FS if i < GOOD else 0xFF, flags=flags))


def setns(script: Script) -> None:
    own = script.silent("open", "/proc/self/ns/uts", os.O_RDONLY)
    flags = CLONE_NEWUTS
    five(lambda i: script.made("setns", fd := own if i < GOOD else 9999, flags, fd=fd, flags=flags))


def sethostname(script: Script) -> None:
    text = "name, and what must not be recorded"

    def make(index: int) -> int:
        size = 4 if index < GOOD else 65  # the kernel takes 64
        return script.made("sethostname", text, size, detail=text[:size])

    five(make)


def mount(script: Script) -> None:
    def make(index: int) -> int:
        target, kind = script.path("."), "tmpfs" if index < GOOD else "nosuchfs"
        return script.made(
            "mount",
            "source",
            target,
            kind,
            MS_NOSUID,
            "size=1m",
            path=target,
            path2="source",
            detail=kind,
            flags=MS_NOSUID,
        )

    five(make)


def umount2(script: Script) -> None:
    target = script.path(".")
    for _ in range(GOOD):
        script.made("mount", "source", target, "tmpfs", 0, 0, path=target, path2="source", detail="tmpfs")
    five(lambda _: script.made("umount2", target, MNT_DETACH, path=target, flags=MNT_DETACH))


def chroot(script: Script) -> None:
    five(lambda i: script.made("chroot", path := "/" if i < GOOD else "/missing/root", path=path))


def pivot_root(script: Script) -> None:
    folder = script.path(".")
    script.made("mount", "new", folder, "tmpfs", 0, 0, path=folder, path2="new", detail="tmpfs")
    old = script.path("old")
    script.made("mkdir", old, 0o700, path=old)
    places = [(folder, old), ("/old", f"/old{folder}"), (folder, old), ("/missing", "/old"), ("/old", "/missing")]
    five(lambda i: script.made("pivot_root", *places[i], path=places[i][0], path2=places[i][1]))


def open_tree(script: Script) -> None:
    def make(index: int) -> int:
        path = "/" if index < GOOD else "/missing"
        return script.made("open_tree", AT_FDCWD, path, OPEN_TREE_CLONE, path=path, fd=AT_FDCWD, flags=OPEN_TREE_CLONE)

    five(make)


def move_mount(script: Script) -> None:
    flags = MOVE_MOUNT_F_EMPTY_PATH

    def make(index: int) -> int:
        target = missing_after(script, index)
        tree = script.made(
            "open_tree", AT_FDCWD, "/proc", OPEN_TREE_CLONE, path="/proc", fd=AT_FDCWD, flags=OPEN_TREE_CLONE
        )
        return script.made("move_mount", tree, "", AT_FDCWD, target, flags, path=target, fd=AT_FDCWD, flags=flags)

    for index in range(GOOD):
        (script.folder / str(index)).mkdir()
    five(make)


def fsopen(script: Script) -> None:
    five(lambda i: script.made("fsopen", name := "tmpfs" if i < GOOD else "nosuchfs", 1, detail=name, flags=1))


def fsconfig(script: Script) -> None:
    file_system = script.made("fsopen", "tmpfs", 0, detail="tmpfs")

    def make(index: int) -> int:
        key, command = "size" if index < GOOD else "nosuchkey", FSCONFIG_SET_STRING
        return script.made("fsconfig", file_system, command, key, "1m", 0, fd=file_system, flags=command, detail=key)

    five(make)


def fsmount(script: Script) -> None:
    file_systems = []
    for _ in range(GOOD):
        file_systems.append(script.made("fsopen", "tmpfs", 0, detail="tmpfs"))
        script.made(
            "fsconfig", file_systems[-1], FSCONFIG_CMD_CREATE, 0, 0, 0, fd=file_systems[-1], flags=FSCONFIG_CMD_CREATE
        )
    file_systems += [9998, 9999]
    five(lambda i: script.made("fsmount", file_systems[i], 1, 0, fd=file_systems[i], flags=1))


def mount_setattr(script: Script) -> None:
    target = script.path(".")
    script.made("mount", "source", target, "tmpfs", 0, 0, path=target, path2="source", detail="tmpfs")
    attributes, recursive = struct.pack("<QQQQ", 1, 0, 0, 0), 0x8000

    def make(index: int) -> int:
        path = target if index < GOOD else "/missing"
        return script.made(
            "mount_setattr", AT_FDCWD, path, recursive, attributes, 32, path=path, fd=AT_FDCWD, flags=recursive
        )

    five(make)


def clone(script: Script) -> None:
    def make(index: int) -> int:
        flags = CLONE_FS | signal.SIGCHLD if index < GOOD else CLONE_SIGHAND
        return script.made("clone", command=["clone", number("clone"), flags, 0, 0, 0, 0], flags=flags)

    five(make)


def clone3(script: Script) -> None:
    def make(index: int) -> int:
        flags = CLONE_FS if index < GOOD else CLONE_SIGHAND
        arguments = struct.pack("<8Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        return script.made("clone3", command=["clone", number("clone3"), {"bytes": arguments.hex()}, 64], flags=flags)

    five(make)


def childless(name: str, command: str) -> Callable[[Script], None]:
    """fork and vfork have no arguments, and nothing of root's makes them fail."""

    def case(script: Script) -> None:
        arguments = [0x5EED, 0] if command == "stub" else []
        for _ in range(GOOD + BAD):
            goroutine = arguments[0] if arguments else 0
            assert script.made(name, command=[command, number(name), *arguments], goroutine=goroutine) > 0

    return case


CASES = {
    Kind.MOUNT: mount,
    Kind.UMOUNT2: umount2,
    Kind.CLONE: clone,
    Kind.CLONE3: clone3,
    Kind.UNSHARE: unshare,
    Kind.SETNS: setns,
    Kind.PIVOT_ROOT: pivot_root,
    Kind.MKDIR: mkdir,
    Kind.MKDIRAT: mkdirat,
    Kind.OPENAT: openat_creating,
    Kind.OPEN: open_creating,
    Kind.CREAT: creat,
    Kind.OPENAT2: openat2_creating,
    Kind.RENAME: rename,
    Kind.RENAMEAT: renameat,
    Kind.RENAMEAT2: renameat2,
    Kind.UNLINK: unlink,
    Kind.UNLINKAT: unlinkat,
    Kind.RMDIR: rmdir,
    Kind.FSYNC: sync("fsync"),
    Kind.FDATASYNC: sync("fdatasync"),
    Kind.PWRITE64: pwrite64,
    Kind.SENDTO: sendto,
    Kind.SECCOMP: seccomp,
    Kind.SETHOSTNAME: sethostname,
    Kind.CHROOT: chroot,
    Kind.OPEN_TREE: open_tree,
    Kind.MOVE_MOUNT: move_mount,
    Kind.FSOPEN: fsopen,
    Kind.FSCONFIG: fsconfig,
    Kind.FSMOUNT: fsmount,
    Kind.MOUNT_SETATTR: mount_setattr,
    Kind.FORK: childless("fork", "clone"),
    Kind.VFORK: childless("vfork", "stub"),
}
HERE = {call.kind for call in numbered_calls().values()}


def test_no_call_is_without_a_test() -> None:
    assert set(CASES) | {Kind.EXECVE, Kind.EXECVEAT} == SYSCALLS  # those two: test_lineage.py
    assert HERE >= SYSCALLS or platform.machine() != "x86_64"


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind in HERE], ids=lambda kind: kind.label)
def test_call_is_recorded_as_it_was_made(kind: Kind, watch: Watch, puppet: Puppet, folder: Path) -> None:
    puppet.own_namespaces()
    watch.follow(puppet)
    script = Script(puppet, folder)
    CASES[kind](script)
    seen = watch.syscalls()
    assert sum(event.kind == kind for event in seen) == GOOD + BAD
    # g is whatever the register holds where the caller is not Go: here only the stub sets it.
    in_stub = kind == Kind.VFORK
    assert [
        replace(e, time_ns=0, duration_ns=0, goroutine=e.goroutine if in_stub else 0) for e in seen
    ] == script.expected
    for event, answer in zip(seen, script.answers, strict=True):
        assert answer["before_ns"] <= event.time_ns <= event.end_ns <= answer["after_ns"]
    assert watch.counters()[Counter.UNMATCHED_RETURNS] == 0


@pytest.mark.parametrize("kind", [Kind.MOVE_MOUNT, Kind.CLONE3, Kind.OPENAT2, Kind.VFORK], ids=lambda kind: kind.label)
def test_older_kernels_record_the_same(kind: Kind, older_watch: Watch, puppet: Puppet, folder: Path) -> None:
    test_call_is_recorded_as_it_was_made(kind, older_watch, puppet, folder)


def test_opens_that_only_read_or_look_a_name_up_are_not_recorded(watch: Watch, puppet: Puppet, folder: Path) -> None:
    file = folder / "file"
    file.touch()
    watch.follow(puppet)
    script = Script(puppet, folder)
    for _ in range(5):
        script.silent("open", file, os.O_RDONLY)
        script.silent("openat", AT_FDCWD, file, os.O_RDONLY)
        script.silent("openat2", AT_FDCWD, file, struct.pack("<QQQ", os.O_RDONLY, 0, 0), 24)
        script.silent("open", folder, os.O_RDONLY | os.O_DIRECTORY)
        script.silent("openat", AT_FDCWD, folder, os.O_PATH | os.O_DIRECTORY)
        script.silent("openat", AT_FDCWD, file, os.O_PATH | os.O_NOFOLLOW)
    assert watch.events() == []
    assert watch.counters()[Counter.UNMATCHED_RETURNS] == 0


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_PATH], ids=["write", "both", "path"])
def test_opens_that_write_or_give_a_name_are_recorded(flags: int, watch: Watch, puppet: Puppet, folder: Path) -> None:
    (folder / "file").touch()
    watch.follow(puppet)
    script = Script(puppet, folder)
    path = script.path("file")
    script.made("open", path, flags, path=path, flags=flags)
    script.made("openat", AT_FDCWD, path, flags, path=path, fd=AT_FDCWD, flags=flags)
    how = struct.pack("<QQQ", flags, 0, 0)
    script.made("openat2", AT_FDCWD, path, how, len(how), path=path, fd=AT_FDCWD, flags=flags)
    seen = [replace(event, time_ns=0, duration_ns=0, goroutine=0) for event in watch.events()]
    assert seen == script.expected


def test_only_the_lineage_is_recorded(watch: Watch, new_puppet: Callable[[], Puppet], tmp_path: Path) -> None:
    followed, stranger = new_puppet(), new_puppet()
    watch.follow(followed)
    for index in range(7):
        followed.call("mkdir", tmp_path / f"followed-{index}", 0o700)
        stranger.call("mkdir", tmp_path / f"stranger-{index}", 0o700)
        (tmp_path / f"observer-{index}").mkdir()
    assert [Path(event.path).name for event in watch.events()] == [f"followed-{index}" for index in range(7)]


def test_the_goroutine_is_what_the_register_held_at_entry(watch: Watch, puppet: Puppet) -> None:
    watch.follow(puppet)
    goroutines = [0xC000000000 + index * 0x1A0 for index in range(5)]
    for goroutine in goroutines:
        assert puppet.do(["stub", number("fsync"), goroutine, -1])["ret"] == -errno.EBADF
    assert [(event.kind, event.fd, event.goroutine) for event in watch.events()] == [
        (Kind.FSYNC, -1, goroutine) for goroutine in goroutines
    ]


def test_a_call_that_began_before_attaching_is_counted_not_recorded(image: Any, puppet: Puppet, folder: Path) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    with Watch(image) as watch:
        watch.follow(puppet)
        puppet.thread(call("creat", fifo, 0o600), wait=False)
        wait_until_inside(puppet.pid, "creat")
        watch.probes.attach()
        reader = os.open(fifo, os.O_RDONLY)
        (answer,) = puppet.do(["join"])
        os.close(reader)
        assert answer["ret"] >= 0
        assert watch.syscalls() == []
        assert watch.counters()[Counter.UNMATCHED_RETURNS] == 1


@pytest.mark.parametrize("role", [Role.DOCKERD, Role.CONTAINERD, Role.CHILD], ids=lambda role: role.name.lower())
def test_every_role_is_followed(role: Role, watch: Watch, puppet: Puppet, folder: Path) -> None:
    watch.follow(puppet, role)
    for index in range(3):
        puppet.call("mkdir", folder / str(index), 0o700)
    assert [event.kind for event in watch.events()] == [Kind.MKDIR] * 3


def test_bytes_that_are_not_text_and_long_paths(watch: Watch, puppet: Puppet, folder: Path) -> None:
    watch.follow(puppet)
    puppet.call("mkdir", f"{folder}/caf\udce9".encode("utf-8", "surrogateescape") + b"\0", 0o700)
    long = f"{folder}/{'x' * (250 - len(str(folder)))}"
    puppet.call("mkdir", long, 0o700)
    deeper = f"{long}/{'y' * 200}"
    puppet.call("mkdir", deeper, 0o700)
    puppet.call("mkdir", 8, 0o700)
    broken, whole, cut, wild = watch.events()
    assert broken.path == f"{folder}/caf\\xe9"
    assert (whole.path, whole.marks) == (long, 0)
    assert (cut.path, cut.marks) == (deeper[:255], Mark.TRUNCATED)
    assert (wild.path, wild.marks, wild.ret) == ("", Mark.PATH_UNREADABLE, -errno.EFAULT)
