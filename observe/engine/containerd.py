# SPDX-License-Identifier: Apache-2.0
"""The containerd that a dockerd uses, whether its own child or the system's, and the shims of its containers."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from observe.engine import procfs
from observe.engine.api import connect_by_path
from observe.engine.peer import listener_maker, root_of, same_file

_SYSTEM_ADDRESS = "/run/containerd/containerd.sock"
_EXEC_ROOT = "/var/run/docker"
_CONFIG_FILE = "/etc/docker/daemon.json"
_NAMESPACE = "moby"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a dockerd was started with, as far as its API does not tell."""

    exec_root: str
    containerd_address: str
    containerd_namespace: str


@dataclass(frozen=True, slots=True)
class Containerd:
    """The containerd of a dockerd: `pid` is None if nobody in view listens on `address`."""

    pid: int | None
    address: str
    namespace: str


def settings(arguments: list[str], configuration: Mapping[str, Any]) -> Settings:
    """Settings from dockerd's arguments, then its daemon.json, then the defaults of its makers."""

    def value(name: str, default: str) -> str:
        return flag(arguments, name) or str(configuration.get(name) or default)

    return Settings(
        exec_root=value("exec-root", _EXEC_ROOT),
        containerd_address=value("containerd", _SYSTEM_ADDRESS).removeprefix("unix://"),
        containerd_namespace=value("containerd-namespace", _NAMESPACE),
    )


def read_settings(dockerd: int) -> Settings:
    """The settings of a running dockerd. A daemon.json that is not there or cannot be read counts as empty."""
    arguments = procfs.arguments(dockerd)
    try:
        text = root_of(dockerd, flag(arguments, "config-file") or _CONFIG_FILE).read_text(encoding="utf-8")
        configuration = json.loads(text)
    except (OSError, ValueError):
        configuration = {}
    return settings(arguments, configuration if isinstance(configuration, dict) else {})


def flag(arguments: list[str], name: str) -> str:
    """Value of `--name value` or `--name=value` (the last one counts); "" if it is not given."""
    value = ""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            value = argument.partition("=")[2]
        elif argument == f"--{name}":
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
    return value


def find_containerd(
    dockerd: int, given: Settings, everyone: Iterable[procfs.Process], timeout_seconds: float
) -> Containerd:
    """A child of dockerd named containerd, else who listens on the address that dockerd uses, in dockerd's root."""
    child = next((process for process in everyone if process.ppid == dockerd and process.comm == "containerd"), None)
    if child is not None:
        address = str(PurePosixPath(given.exec_root) / "containerd" / "containerd.sock")
        return Containerd(child.pid, address, given.containerd_namespace)
    pid = _listener(dockerd, given.containerd_address, timeout_seconds)
    return Containerd(pid, given.containerd_address, given.containerd_namespace)


def shims(dockerd: int, address: str, namespace: str, everyone: Iterable[procfs.Process]) -> list[int]:
    """Pids of the shims that were started by the containerd at `address` (in dockerd's root) for `namespace`."""
    # With user namespaces remapped, newer daemons append the ids: moby-165536.165536.
    ours = re.compile(re.escape(namespace) + r"(-\d+\.\d+)?")
    found = []
    for process in everyone:
        if not process.comm.startswith("containerd-shim"):
            continue
        arguments = procfs.arguments(process.pid)
        shim_address = _single_dash(arguments, "address").removeprefix("unix://")
        if not ours.fullmatch(_single_dash(arguments, "namespace")) or not shim_address:
            continue
        if same_file(root_of(process.pid, shim_address), root_of(dockerd, address)):
            found.append(process.pid)
    return found


def _single_dash(arguments: list[str], name: str) -> str:
    # Shims use Go's flag package, which takes one dash or two.
    return flag([f"-{argument}" if argument.startswith(f"-{name}") else argument for argument in arguments], name)


def _listener(dockerd: int, address: str, timeout_seconds: float) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout_seconds)
        try:
            connect_by_path(channel, root_of(dockerd, address))
        except OSError:
            return None
        return listener_maker(channel) or None
