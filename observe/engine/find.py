# SPDX-License-Identifier: Apache-2.0
"""The engine behind a socket: what it says of itself, and which processes of this host it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observe.engine import api, procfs
from observe.engine.containerd import find_containerd, read_settings, shims
from observe.engine.peer import root_of, serving_process
from observe.errors import HostCannotError

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A live dockerd on this host. Paths are as dockerd sees them: `path()` makes them reachable from here."""

    docker_host: str
    pid: int
    #: Clock ticks since boot at which dockerd started: with the pid, its identity.
    start_ticks: int
    #: None if nobody in view listens on `containerd_address`.
    containerd_pid: int | None
    containerd_address: str
    containerd_namespace: str
    #: Shims of this engine's containers that ran when the engine was found.
    shim_pids: tuple[int, ...]
    #: What dockerd listens on, as URLs: its API, and its metrics, plugin and swarm addresses if there are any.
    listeners: tuple[str, ...]
    version: str
    api_version: str
    go_version: str
    kernel: str
    arch: str
    storage_driver: str
    data_root: str
    exec_root: str
    runtimes: tuple[str, ...]
    #: Versions of what comes with it: {"containerd": …, "runc": …}.
    components: Mapping[str, str]

    def path(self, path: str) -> Path:
        """A path of dockerd's mount namespace, seen from here."""
        return root_of(self.pid, path)

    def is_alive(self) -> bool:
        """Whether this very dockerd still runs (a later process of the same pid is not it)."""
        now = procfs.process(self.pid)
        return now is not None and now.start_ticks == self.start_ticks and now.state not in "ZX"

    def facts(self) -> dict[str, Any]:
        """What a recording's header says about the engine: versions, driver, roots; no process ids."""
        return {
            "version": self.version,
            "api_version": self.api_version,
            "go_version": self.go_version,
            "storage_driver": self.storage_driver,
            "data_root": self.data_root,
            "exec_root": self.exec_root,
            "runtimes": list(self.runtimes),
            "components": dict(self.components),
        }


def find_engine(docker_host: str | None = None, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> Engine:
    """The engine at `docker_host` (default: $DOCKER_HOST, then unix:///var/run/docker.sock).

    Each wait is at most `timeout_seconds`. Raises HostCannotError, in one line, if nothing answers there, if what
    answers is no Docker engine, or if its process is not on this host, not in view or not dockerd.
    """
    target = api.address(docker_host)
    with api.connect(target, timeout_seconds) as connection:
        version = connection.get("/version")
        components = _components(version)
        if "ApiVersion" not in version or "Engine" not in components:
            name = next(iter(components), "something else")
            raise HostCannotError(f"{target.url} is no Docker engine but {name}: choose another with --docker-host")
        info = connection.get("/info")
        dockerd = serving_process(connection)
    _check_is_dockerd(dockerd, target.url)
    everyone = procfs.processes()
    settings = read_settings(dockerd.pid)
    containerd = find_containerd(dockerd.pid, settings, everyone, timeout_seconds)
    return Engine(
        docker_host=target.url,
        pid=dockerd.pid,
        start_ticks=dockerd.start_ticks,
        containerd_pid=containerd.pid,
        containerd_address=containerd.address,
        containerd_namespace=containerd.namespace,
        shim_pids=tuple(shims(dockerd.pid, containerd.address, containerd.namespace, everyone)),
        listeners=_listeners(dockerd.pid),
        version=version.get("Version", ""),
        api_version=version["ApiVersion"],
        go_version=version.get("GoVersion", ""),
        kernel=version.get("KernelVersion", ""),
        arch=version.get("Arch", ""),
        storage_driver=info.get("Driver", ""),
        data_root=info.get("DockerRootDir", ""),
        exec_root=settings.exec_root,
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        components={name: text for name, text in components.items() if name != "Engine"},
    )


def api_connection_fds(engine: Engine) -> list[int]:
    """Descriptors of the connections that dockerd has accepted and that are still open, sorted.

    All its listeners count, whether or not they serve the API. Empty once dockerd is gone.
    """
    fds = procfs.socket_fds(engine.pid)
    own = set(fds.values())
    tcp = [row for row in procfs.tcp_sockets(engine.pid) if row.inode in own]
    ports = {row.local[1] for row in tcp if row.listening}
    accepted = {row.inode for row in tcp if row.connected and row.local[1] in ports}
    # An accepted unix socket is in the table of the client's network namespace, whichever that is.
    members = procfs.namespace_members(procfs.processes())
    unix = [row for member in members for row in procfs.unix_sockets(member) if row.inode in own]
    paths = {row.path for row in unix if row.listening}
    accepted |= {row.inode for row in unix if row.connected and row.path in paths}
    return [fd for fd, inode in fds.items() if inode in accepted]


def lineage_seeds(engine: Engine) -> list[tuple[int, str]]:
    """Processes to follow from the start: (pid, role), role one of dockerd, containerd, child; each pid once.

    Children are the shims and what dockerd and containerd run at this moment. What runs below a shim belongs to a
    container and is left out. containerd may serve others too (Kubernetes): their shims are children of nobody here.
    """
    everyone = procfs.processes()
    all_shims = [process.pid for process in everyone if process.comm.startswith("containerd-shim")]
    below_shims = {process.pid for shim in all_shims for process in procfs.descendants(shim, everyone)}
    left_out = {*all_shims, *below_shims}
    seeds = {engine.pid: "dockerd"}
    if engine.containerd_pid is not None:
        seeds[engine.containerd_pid] = "containerd"
    for daemon in tuple(seeds):
        for process in procfs.descendants(daemon, everyone):
            if process.pid not in left_out:
                seeds.setdefault(process.pid, "child")
    for shim in shims(engine.pid, engine.containerd_address, engine.containerd_namespace, everyone):
        seeds.setdefault(shim, "child")
    return list(seeds.items())


def _components(version: Mapping[str, Any]) -> dict[str, str]:
    parts = version.get("Components")
    parts = parts if isinstance(parts, list) else []
    return {
        str(part["Name"]): str(part.get("Version", "")) for part in parts if isinstance(part, dict) and "Name" in part
    }


def _check_is_dockerd(process: procfs.Process, url: str) -> None:
    # A proxy (socat, docker-proxy, a filter of the API) answers for an engine that is somewhere else.
    program = Path(procfs.executable(process.pid)).name
    if "dockerd" not in f"{program} {process.comm}":
        found = f"{program or process.comm} (pid {process.pid})"
        raise HostCannotError(
            f"{url} is answered by {found}, not dockerd: give dockerd's own socket with --docker-host"
        )


def _listeners(pid: int) -> tuple[str, ...]:
    own = set(procfs.socket_fds(pid).values())
    unix = [f"unix://{row.path}" for row in procfs.unix_sockets(pid) if row.listening and row.inode in own]
    tcp = [
        f"tcp://[{row.local[0]}]:{row.local[1]}" if ":" in row.local[0] else f"tcp://{row.local[0]}:{row.local[1]}"
        for row in procfs.tcp_sockets(pid)
        if row.listening and row.inode in own
    ]
    return tuple(sorted({*unix, *tcp}))
