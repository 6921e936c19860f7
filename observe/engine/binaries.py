# SPDX-License-Identifier: Apache-2.0
"""The programs of an engine: the files that its running daemons execute, and those that they will."""

from __future__ import annotations

from pathlib import Path

from observe.engine.find import Engine

_PROC = Path("/proc")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What containerd and its shim look up on their PATH.
_PROGRAMS = ("containerd-shim-runc-v2", "runc")


def binaries(engine: Engine, proc: Path = _PROC) -> dict[str, Path]:
    """Name → file, reachable from here: dockerd, containerd, its shim and runc, as far as they are found.

    Of a running daemon it is the very file that it executes, also if another lies at its path by now.
    """
    found = {"dockerd": proc / str(engine.pid) / "exe"}
    daemon = engine.pid
    if engine.containerd_pid is not None:
        daemon = engine.containerd_pid
        found["containerd"] = proc / str(daemon) / "exe"
    root = proc / str(daemon) / "root"
    folders = [root / folder.lstrip("/") for folder in _search_path(daemon, proc)]
    for program in _PROGRAMS:
        file = next((folder / program for folder in folders if (folder / program).is_file()), None)
        if file is not None:
            found[program] = file
    return found


def _search_path(pid: int, proc: Path) -> list[str]:
    try:
        environment = (proc / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        environment = []
    text = next((entry[5:].decode(errors="replace") for entry in environment if entry.startswith(b"PATH=")), "")
    return [folder for folder in (text or _PATH).split(":") if folder.startswith("/")]
