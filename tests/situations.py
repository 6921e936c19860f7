# SPDX-License-Identifier: Apache-2.0
"""Recordings that every export must survive: nothing in it, one run, a failed one, losses, hostile names, a log."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from made import HOSTILE
from streams import DATA, FIXTURES, IN_CREATE, MS, SECOND, container_id, create, header, identity, start, stream, told

from observe.commands.import_ import run as import_log
from observe.model import Event, Item, Kind, Note, NoteKind
from observe.recording import RecordingWriter

#: What a file may be called: control characters, markup, a formula, bytes that are no UTF-8, a letter that turns text.
BAD_NAME = "=<img src=x onerror=alert(1)>\x1b[31m\r\n\udcff\udc80\u202egnp 你"


def write(path: Path, items: Iterable[Item]) -> Path:
    """A recording of these items, ended properly."""
    with RecordingWriter(path, header()) as writer:
        for item in items:
            writer.write(item)
        writer.write(Note(NoteKind.END, 0, {"why": "test"}))
    return path


def imported(path: Path, log: Path) -> Path:
    """The recording that `observe import inotifywait` makes."""
    import_log(Namespace(source="inotifywait", log=log, output=path))
    return path


def _hostile() -> list[Item]:
    bad = f"{DATA}/containers/{container_id(1)}/{BAD_NAME}"
    events = create(1, SECOND, name="x")
    last = replace(events[-2], time_ns=events[-1].time_ns - MS // 4, duration_ns=1, path=bad, path2=bad)
    program = Event(last.time_ns, Kind.SCHED_PROCESS_EXEC, pid=77, tid=77, path=bad, detail=f"{BAD_NAME}\0{BAD_NAME}")
    fork = Event(last.time_ns - 1, Kind.SCHED_PROCESS_FORK, pid=10, tid=10, ret=77, goroutine=last.goroutine)
    file_event = told(bad, IN_CREATE, events[-1].time_ns - MS // 8)
    return stream([*events, last, program, fork, file_event], identity(1, 2 * SECOND, HOSTILE, image=BAD_NAME))


def situation(name: str, folder: Path) -> Path:
    """The recording of that name, made in the folder; the recordings of real engines are taken where they are."""
    path = folder / f"{name}.observe"
    if name in ("create-start", "three-at-once", "functions"):
        return FIXTURES / path.name
    if name == "log":
        return imported(path, FIXTURES / "inotify-create-19.03.log")
    if name == "log without times":
        log = folder / "plain.log"
        log.write_text(f"{DATA}/tmp/ CREATE GetImageBlob1\n{DATA}/tmp/ CREATE GetImageBlob2\n")
        return imported(path, log)
    return write(path, _MADE[name]())


_MADE = {
    "empty": stream,
    "one run": lambda: stream(create(1, SECOND), identity(1, 2 * SECOND, "web", image="reg:5000/nginx:1.25")),
    "failed": lambda: stream(start(1, SECOND, status=500), identity(1, 2 * SECOND, "web")),
    "unfinished": lambda: stream(start(1, SECOND, status=None)),
    "losses": lambda: [*stream(create(1, SECOND)), Note(NoteKind.LOSS, 2 * SECOND, {"ring_buffer": 7})],
    "hostile": _hostile,
}

SITUATIONS = ("create-start", "three-at-once", "functions", *_MADE, "log", "log without times")
