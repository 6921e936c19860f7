# SPDX-License-Identifier: Apache-2.0
"""Made-up streams for tests of the correlator: creates and starts as a real engine does them, only shorter.

Every event lasts half a `STEP` and begins one `STEP` after the one before it. A container is a number: its id, layer
and processes follow from it, so what a run holds tells whose events it got.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from observe.correlate import Correlator
from observe.correlate.accounting import Partition, count_events, innermost
from observe.correlate.build import Functions, phase_rows
from observe.correlate.rows import Row
from observe.correlate.rules import Rules
from observe.correlate.spans import Walk
from observe.model import Event, EventBatch, Header, Item, Kind, Mark, Note, NoteKind, Run, Span
from observe.phases import Catalogue, load
from observe.recording import Recording

FIXTURES = Path(__file__).parent / "fixtures"
DATA = "/var/lib/docker"
EXEC = "/var/run/docker"
DOCKERD, CONTAINERD = 10, 11
MS = 1_000_000
STEP = MS
SECOND = 1_000 * MS
NEWNET = 0x40000000
CREATE_EXCLUSIVELY = 0x800C2
NO_MARK = Mark(0)
IN_MODIFY, IN_ATTRIB, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_ISDIR = 0x2, 0x4, 0x80, 0x100, 0x200, 0x40000000


def container_id(n: int) -> str:
    return sha256(b"container %d" % n).hexdigest()


def layer(n: int) -> str:
    return sha256(b"layer %d" % n).hexdigest()


def header(go_version: str = "go1.19.8", watched: Sequence[str] = (f"{DATA}/containers", f"{DATA}/overlay2")) -> Header:
    return Header(
        host={"hostname": "vm"},
        engine={"version": "20.10.24", "go_version": go_version, "storage_driver": "overlay2", "data_root": DATA},
        boot_time_ns=0,
        wall_time_ns=1_700_000_000 * SECOND,
        tool_version="0",
        options={"origin": "record", "watched": list(watched)},
    )


@dataclass
class Script:
    """Writes down what happens, one step after the other. `g` is the goroutine that serves the request."""

    now_ns: int
    g: int
    pid: int = DOCKERD

    def __post_init__(self) -> None:
        self.events: list[Event] = []

    def happens(self, kind: Kind, path: str = "", *, pid: int = 0, g: int | None = None, **columns: object) -> Event:
        pid = pid or self.pid
        g = (self.g if pid == DOCKERD else 0) if g is None else g
        lasts = STEP // 2 if kind < Kind.SCHED_PROCESS_FORK else 0
        event = Event(self.now_ns, kind, lasts, g, pid=pid, tid=pid, path=path, **columns)  # type: ignore[arg-type]
        self.now_ns += STEP
        self.events.append(event)
        return event

    def writes(self, path: str, temporary: str) -> None:
        """A file that arrives whole, by rename."""
        self.happens(Kind.OPENAT, temporary, flags=CREATE_EXCLUSIVELY, ret=7)
        self.happens(Kind.FSYNC, fd=7)
        self.happens(Kind.RENAMEAT, path, path2=temporary)

    def runs(self, parent: int, child: int, *words: str, marks: Mark = NO_MARK, g: int | None = None) -> None:
        """Fork and exec."""
        self.happens(Kind.SCHED_PROCESS_FORK, pid=parent, ret=child, g=g)
        self.happens(Kind.SCHED_PROCESS_EXEC, f"/usr/bin/{words[0]}", pid=child, detail="\0".join(words), marks=marks)

    def exits(self, pid: int) -> None:
        self.happens(Kind.SCHED_PROCESS_EXIT, pid=pid)


def create(
    n: int, at_ns: int, *, name: str = "", fd: int | None = None, g: int | None = None, status: int | None = 201
) -> list[Event]:
    """`docker create` of container `n`; without a status there is no answer."""
    script = Script(at_ns, 0xC000000000 + n if g is None else g)
    fd = 20 + n if fd is None else fd
    own, folder = f"{DATA}/overlay2/{layer(n)}", f"{DATA}/containers/{container_id(n)}"
    query = f"?name={name}" if name else ""
    script.happens(Kind.API_REQUEST, f"/v1.41/containers/create{query}", fd=fd)
    script.happens(Kind.MKDIRAT, f"{own}-init")
    script.happens(Kind.MOUNT, f"{own}-init/merged", detail="overlay")
    script.happens(Kind.UMOUNT2, f"{own}-init/merged")
    script.happens(Kind.MKDIRAT, own)
    script.happens(Kind.MKDIRAT, f"{DATA}/image/overlay2/layerdb/mounts/{container_id(n)}")
    script.happens(Kind.MKDIRAT, folder)
    script.happens(Kind.MKDIRAT, f"{folder}/checkpoints")
    script.writes(f"{folder}/hostconfig.json", f"{folder}/.tmp-hostconfig.json1")
    script.happens(Kind.MKDIRAT, f"{own}/merged")
    script.happens(Kind.MOUNT, f"{own}/merged", detail="overlay")
    script.happens(Kind.UMOUNT2, f"{own}/merged")
    script.happens(Kind.UNLINKAT, f"{own}/merged", flags=0x200)
    script.writes(f"{folder}/config.v2.json", f"{folder}/.tmp-config.v2.json2")
    if status is not None:
        script.happens(Kind.API_RESPONSE, fd=fd, ret=status)
    return script.events


def start(
    n: int,
    at_ns: int,
    reference: str | None = None,
    *,
    fd: int | None = None,
    g: int | None = None,
    status: int | None = 204,
    last: Sequence[Event] = (),
) -> list[Event]:
    """`docker start` of container `n`, named by its full id or `reference`; `last`: what comes before the answer."""
    script = Script(at_ns, 0xC000001000 + n if g is None else g)
    fd = 20 + n if fd is None else fd
    own, folder = f"{DATA}/overlay2/{layer(n)}", f"{DATA}/containers/{container_id(n)}"
    bundle = f"{EXEC}/containerd/daemon/io.containerd.runtime.v2.task/moby/{container_id(n)}"
    first, shim, runc, init, hook, starter = (1000 * (n + 1) + i for i in range(6))
    script.happens(Kind.API_REQUEST, f"/v1.41/containers/{reference or container_id(n)}/start", fd=fd)
    script.happens(Kind.MKDIRAT, f"{own}/merged")
    script.happens(Kind.MOUNT, f"{own}/merged", detail="overlay")
    script.happens(Kind.OPENAT, f"{DATA}/network/files/local-kv.db", flags=0x80042)
    script.happens(Kind.SETNS, flags=NEWNET, fd=14)
    script.happens(Kind.OPENAT, f"{folder}/hosts", flags=0x80241)
    script.happens(Kind.MKDIRAT, f"{folder}/mounts")
    script.happens(Kind.MKDIRAT, f"{EXEC}/containerd/{container_id(n)}")
    script.happens(Kind.OPENAT, f"{folder}/{container_id(n)}-json.log", flags=0x80441)
    script.happens(Kind.MKDIRAT, bundle, pid=CONTAINERD)
    script.runs(CONTAINERD, first, "containerd-shim-runc-v2", "-id", container_id(n), "start")
    script.runs(first, shim, "containerd-shim-runc-v2", "-id", container_id(n), "-address", "/run/containerd.sock")
    script.exits(first)
    script.runs(shim, runc, "runc", "--log", f"{bundle}/log.json", "create", "--bundle", bundle, container_id(n))
    script.runs(runc, init, "runc", "init")
    script.happens(Kind.UNSHARE, pid=init, flags=0x6C020000)
    script.runs(runc, hook, "libnetwork-setkey", "-exec-root=/var/run/docker", container_id(n), "0123456789ab")
    key, other = f"{EXEC}/netns/{n:012x}", 0xC00000F000 + n
    script.happens(Kind.OPENAT, key, flags=0x80042, g=other)
    script.happens(Kind.MOUNT, key, path2=f"/proc/{init}/ns/net", g=other)
    script.exits(hook)
    script.happens(Kind.PIVOT_ROOT, ".", pid=init)
    script.exits(runc)
    script.runs(shim, starter, "runc", "--log", f"{bundle}/log.json", "start", container_id(n))
    entrypoint = {"detail": "true", "marks": Mark.ENTRYPOINT, "pid": init}
    script.happens(Kind.SCHED_PROCESS_EXEC, "/bin/true", **entrypoint)  # type: ignore[arg-type]
    script.happens(Kind.EXECVE, "/bin/true", **entrypoint)  # type: ignore[arg-type]
    script.exits(starter)
    script.writes(f"{folder}/config.v2.json", f"{folder}/.tmp-config.v2.json3")
    for event in last:
        script.events.append(replace(event, time_ns=script.now_ns, goroutine=event.goroutine or script.g))
        script.now_ns += STEP
    if status is not None:
        script.happens(Kind.API_RESPONSE, fd=fd, ret=status)
    return script.events


def told(path: str, mask: int, at_ns: int, marks: Mark = NO_MARK) -> Event:
    """An event of inotify, as the reader stamps it."""
    return Event(at_ns, Kind.INOTIFY, flags=mask, path=path, marks=marks)


def identity(n: int, at_ns: int, name: str = "", **changes: str) -> Note:
    """The engine's answer to who a container is."""
    values = {"id": container_id(n), "name": name, "image": "img", "network": "bridge", "layer": layer(n), **changes}
    return Note(NoteKind.CONTAINER, at_ns, values)


def probed(*names: str) -> list[Note]:
    """Notes of probed functions; their numbers count from 1."""
    return [Note(NoteKind.FUNCTION, 0, {"number": n, "name": name}) for n, name in enumerate(names, 1)]


def call(number: int, start_ns: int, end_ns: int, *, depth: int, g: int, pid: int = DOCKERD) -> list[Event]:
    """Entry and return of a function whose frame lies so many bytes deep."""
    columns = {"goroutine": g, "ret": depth, "flags": number, "pid": pid, "tid": pid}
    entry = Event(start_ns, Kind.FUNCTION_ENTRY, **columns)  # type: ignore[arg-type]
    return [entry, replace(entry, time_ns=end_ns, kind=Kind.FUNCTION_RETURN)]


def daemons() -> list[Item]:
    """What a recording begins with."""
    roles = ((DOCKERD, "dockerd"), (CONTAINERD, "containerd"))
    return [Note(NoteKind.PROCESS, 0, {"pid": pid, "role": role, "argv": [role]}) for pid, role in roles]


def stream(*parts: Iterable[Event] | Note) -> list[Item]:
    """The parts as one stream: events one by one in the order in which they end, notes at their time."""
    items: list[Item] = []
    for part in parts:
        items += [part] if isinstance(part, Note) else [EventBatch.of([event]) for event in part]
    return daemons() + sorted(items, key=_arrives_ns)


def _arrives_ns(item: Item) -> int:
    if isinstance(item, Note):
        return item.time_ns
    return int(item.rows["time_ns"][0] + item.rows["duration_ns"][0])


def batch_of(rows: Iterable[Row]) -> EventBatch:
    """Rows as columns again."""
    return EventBatch.of(row.event() for row in rows)


def spans_of(
    rules: Rules, found: Walk, events: EventBatch, bounds: tuple[int, int], functions: Functions | None = None
) -> tuple[Span, ...]:
    """The phases of a run whose phases were found so."""
    partition = Partition(rules.phases, found.spans, bounds)
    counts = count_events(events, innermost(events, partition, found))
    return phase_rows(rules, found, events, partition, counts=counts, functions=functions or Functions())


def rebatch(items: Iterable[Item], sizes: Iterable[int]) -> list[Item]:
    """The same stream cut differently: batches of these sizes, as far as notes let them."""
    out: list[Item] = []
    sizes = iter(sizes)
    waiting: list[EventBatch] = []

    def flush() -> None:
        batch = EventBatch.concat(waiting)
        at = 0
        while at < len(batch):
            size = next(sizes)
            out.append(EventBatch(batch.rows[at : at + size], batch.strings))
            at += size
        waiting.clear()

    for item in items:
        if isinstance(item, Note):
            flush()
            out.append(item)
        else:
            waiting.append(item)
    flush()
    return out


def correlate(items: Iterable[Item], of: Header, catalogue: Catalogue | None = None) -> tuple[list[Run], Correlator]:
    """All runs of a stream, and the correlator for its losses."""
    correlator = Correlator(of, catalogue or load())
    runs = [run for item in items for run in correlator.feed(item)]
    return runs + correlator.finish(), correlator


def recorded(name: str) -> tuple[Header, list[Item]]:
    """A recording of a real engine (tests/fixtures/make.py)."""
    recording = Recording.open(FIXTURES / f"{name}.observe")
    return recording.header, list(recording.items())
