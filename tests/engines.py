# SPDX-License-Identifier: Apache-2.0
"""A real engine for tests: a private dockerd (scripts/private-dockerd) and what a test asks of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker

PRIVATE_DOCKERD = Path(__file__).parents[1] / "scripts" / "private-dockerd"


@dataclass(frozen=True, slots=True)
class Engine:
    """A running private dockerd (scripts/private-dockerd)."""

    directory: Path
    client: docker.DockerClient
    #: Name of the tiny image (busybox) that it has.
    image: str = "observe-tiny"

    @property
    def socket(self) -> Path:
        """Its API's unix socket."""
        return self.directory / "docker.sock"

    @property
    def url(self) -> str:
        """Its API as in DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def data_root(self) -> Path:
        """Its --data-root; mounts in it are visible in the daemon's mount namespace only."""
        return self.directory / "data"

    @property
    def exec_root(self) -> Path:
        """Its --exec-root; what is in it is visible in the daemon's mount namespace only (/proc/PID/root/…)."""
        return self.directory / "exec"

    @property
    def pid(self) -> int:
        """Process id of dockerd."""
        return int((self.directory / "docker.pid").read_text())


EngineFactory = Callable[..., Engine]


@contextmanager
def engine_directory() -> Iterator[Path]:
    """A name for an engine's directory on a disk; whatever was started there is stopped afterwards."""
    # /tmp is often a tmpfs, where overlay2 does not work.
    parent = Path(tempfile.mkdtemp(prefix="observe-test-", dir="/var/tmp"))
    try:
        yield parent / "e"
    finally:
        subprocess.run([PRIVATE_DOCKERD, "stop", parent / "e"], check=True)
        shutil.rmtree(parent)


@contextmanager
def running_engine(*options: str) -> Iterator[Engine]:
    """A private dockerd with these options."""
    with engine_directory() as directory:
        subprocess.run([PRIVATE_DOCKERD, "start", directory, *options], check=True)
        client = docker.DockerClient(f"unix://{directory}/docker.sock", timeout=60)
        try:
            yield Engine(directory, client)
        finally:
            client.close()
