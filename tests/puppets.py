# SPDX-License-Identifier: Apache-2.0
"""A process that makes exactly the system calls it is told to make; see workloads/puppet.py for what it understands."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from uapi import numbers

_PROGRAM = Path(__file__).parent / "workloads" / "puppet.py"
_END_SECONDS = 10
_CLONE_NEWNS, _CLONE_NEWUTS = 0x20000, 0x4000000
_MS_PRIVATE_RECURSIVE = 0x44000


class Puppet:
    """The process, from its first answer to `close`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.name("puppet")

    def own_namespaces(self) -> None:
        """From here on it mounts and names its host without anybody noticing."""
        assert self.call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS)["ret"] == 0
        assert self.call("mount", "none", "/", 0, _MS_PRIVATE_RECURSIVE, 0)["ret"] == 0

    def do(self, command: list[Any]) -> Any:
        """One command; its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the puppet is gone: {self._process.wait(_END_SECONDS)}"
        return json.loads(answer)

    def name(self, text: str) -> None:
        """Name its first thread."""
        self.do(["name", text])

    def call(self, name: str, *arguments: Any) -> dict[str, int]:
        """A system call."""
        return self.do(call(name, *arguments))

    def fork(self, *commands: list[Any], wait: bool = True) -> dict[str, Any]:
        """Commands in a child."""
        return self.do(["fork", commands, wait])

    def thread(self, *commands: list[Any], wait: bool = True) -> Any:
        """Commands in a thread."""
        return self.do(["thread", commands, wait])

    def execute_again(self) -> None:
        """Its process executes its program once more."""
        assert self._process.stdin is not None
        arguments = [sys.executable, str(_PROGRAM), "again"]
        self._process.stdin.write(json.dumps(call("execve", sys.executable, arguments, ["PATH=/usr/bin:/bin"])) + "\n")
        self._process.stdin.flush()
        # Nothing more may be written before: the old program would read it.
        wait_until(lambda: b"again" in Path(f"/proc/{self.pid}/cmdline").read_bytes())
        self.name("puppet")

    def close(self) -> None:
        """End it, whatever it does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def call(name: str, *arguments: Any) -> list[Any]:
    """The command for a system call."""
    return ["call", number(name), *map(_plain, arguments)]


def number(name: str) -> int:
    """Number of a system call on this machine."""
    return numbers(platform.machine())[name]


def _plain(argument: Any) -> Any:
    if isinstance(argument, bytes):
        return {"bytes": argument.hex()}
    return str(argument) if isinstance(argument, Path) else argument


def wait_until_inside(pid: int, name: str) -> None:
    """Until a thread of the process sleeps in this system call."""
    wait_until(lambda: any(text.split()[0] == str(number(name)) for text in _calls(pid)))


def wait_until(condition: Callable[[], bool]) -> None:
    """Until it holds; fails if it does not within a generous time."""
    deadline = time.monotonic() + _END_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def _calls(pid: int) -> list[str]:
    return [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/syscall")]
