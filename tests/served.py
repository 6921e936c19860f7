# SPDX-License-Identifier: Apache-2.0
"""Run the real `observe serve` on a private engine, ask it, and restart the engine under it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import Engine
from prometheus_client.parser import text_string_to_metric_families

from observe.engine import procfs

OBSERVE = [sys.executable, "-m", "observe"]
DEADLINE_SECONDS = 120

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(slots=True)
class Serving:
    """A running `observe serve`."""

    process: subprocess.Popen[str]
    port: int
    #: What it says on standard error goes there.
    log: Path

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """The decoded body."""
        return json.loads(self.get(path)[1])

    def series(self) -> Series:
        """Every series of a scrape."""
        return parsed(self.get("/metrics")[1].decode())

    def total(self, name: str, **labels: str) -> float:
        """Sum over the series that have these labels."""
        return total(self.series(), name, **labels)

    def is_attached(self) -> bool:
        """Whether it says so."""
        return self.get("/readyz")[0] == 200


def parsed(text: str) -> Series:
    """The series of an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    """Sum over the series of that name that have these labels."""
    return sum(value for (found, has), value in series.items() if found == name and labels.items() <= dict(has).items())


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until the condition holds; its value."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return value


@contextmanager
def serving(
    url: str, folder: Path, *options: str, attached: bool = True, under: Sequence[str] = ()
) -> Iterator[Serving]:
    """`observe serve` on a free port, run by the command `under`; ended by SIGTERM, which must be clean."""
    log = folder / "serve.log"
    command = [*under, *OBSERVE, "serve", "--docker-host", url, "--listen", "127.0.0.1:0", *options]
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, text=True) as process:
        try:

            def port() -> int:
                assert process.poll() is None, log.read_text()
                said = [line for line in log.read_text().splitlines() if "listening on http://" in line]
                return int(said[0].rstrip("/").rpartition(":")[2]) if said else 0

            server = Serving(process, eventually(port), log)
            if attached:
                eventually(server.is_attached, log.read_text())
            yield server
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()
        finally:
            process.kill()


def restart(engine: Engine, number: signal.Signals) -> None:
    """End the engine's dockerd by a signal, and start it again in its namespaces with the same arguments."""
    pid = engine.pid
    arguments = Path(f"/proc/{pid}/cmdline").read_text().removesuffix("\0").split("\0")
    pairs = Path(f"/proc/{pid}/environ").read_text().removesuffix("\0").split("\0")
    environment = dict(pair.split("=", 1) for pair in pairs)
    # Namespaces live as long as a process is in them.
    inside = ["nsenter", "--target", str(pid), "--mount", "--net"]
    with subprocess.Popen(
        [*inside, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    ) as keeper:
        eventually(lambda: _same_namespaces(keeper.pid, pid))
        os.kill(pid, number)
        eventually(lambda: _has_ended(pid))
        # Where nobody reaps them, the next ones would take them for running.
        inside_root = Path(f"/proc/{keeper.pid}/root")
        for left in (engine.directory / "docker.pid", engine.exec_root / "containerd" / "containerd.pid"):
            (inside_root / str(left).lstrip("/")).unlink(missing_ok=True)
        with (engine.directory / "dockerd.log").open("ab") as log:
            subprocess.Popen(
                ["nsenter", "--target", str(keeper.pid), "--mount", "--net", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        eventually(lambda: _answers(engine), "dockerd did not come back")


def _same_namespaces(one: int, other: int) -> bool:
    return all(
        Path(f"/proc/{one}/ns/{name}").readlink() == Path(f"/proc/{other}/ns/{name}").readlink()
        for name in ("mnt", "net")
    )


def _has_ended(pid: int) -> bool:
    try:  # an orphan of private-dockerd may have become our child: a zombie would keep the next one from starting
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        process = procfs.process(pid)
        return process is None or process.state in "ZX"


def _answers(engine: Engine) -> bool:
    try:
        return bool(engine.client.ping())
    except Exception:  # noqa: BLE001 - whatever docker-py makes of a daemon that is not there
        return False
