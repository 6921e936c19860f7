# SPDX-License-Identifier: Apache-2.0
"""One session with a live engine: everything attached, everything that arrives, every loss counted."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from observe import __version__
from observe import engine as engines
from observe.collectors.arguments import complete_arguments, redact
from observe.collectors.containers import WATCHED, ContainerIdentities
from observe.collectors.docker_api import Identity
from observe.collectors.inotify import InotifyCollector
from observe.collectors.kernel_stacks import KernelStacks, Symbols, read_symbols
from observe.collectors.ring import RingReader
from observe.collectors.waiting import Bell, readable
from observe.engine import procfs
from observe.errors import HostCannotError
from observe.model import EventBatch, Header, Item, Kind, Note, NoteKind, Usage
from observe.phases import load
from observe.probes import bpf
from observe.probes.attach import DEFAULT_RING_BYTES, EventProbes, FunctionProbes, build_image, check_ring_bytes
from observe.probes.attach_sched import SchedProbes
from observe.probes.compiler import Image
from observe.probes.events import SYSCALL_TRACEPOINTS, TRACEPOINTS, Role
from observe.probes.functions import ENTRY_COST_NS, RETURN_COST_NS, Function
from observe.probes.layout import Counter
from observe.probes.sched import RING_BYTES as SCHED_RING_BYTES
from observe.probes.sched import SCHED_RECORD_DTYPE
from observe.probes.sched import Decoder as SchedDecoder
from observe.probes.targets import Targets, find_targets

#: All that a session attaches, by the names of `Session.attached` and `Session.usage`.
FUNCTIONS, INOTIFY = "functions", "inotify"
PROBES = (*SYSCALL_TRACEPOINTS, *TRACEPOINTS, FUNCTIONS, INOTIFY)
#: How often the session wants to be polled: the ring holds seconds of a busy engine's events.
POLL_SECONDS = 0.02
#: How often, while events are left together in the ring, it is looked whether the rings fill.
_FILLING_SECONDS = 0.04
#: How long the last answers of the engine are waited for.
_LAST_ANSWERS_SECONDS = 2.0
_SECOND_NS = 1_000_000_000
#: Folders of the data root that inotify tells of, besides the storage driver's.
_WATCHED = ("containers", "image", "network", "tmp", "volumes")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a user can choose."""

    ring_bytes: int = DEFAULT_RING_BYTES
    #: Record arguments of foreign programs, environment values and labels.
    with_values: bool = False
    inotify: bool = True
    #: Record each system call; without, only those by which processes are followed.
    syscalls: bool = True
    #: Time the documented functions, as far as the engine's binaries show them.
    functions: bool = True
    #: Ask for each container's configuration, too, and not only for its names.
    configurations: bool = True
    #: Let the kernel count and time the programs: see `Session.usage`.
    statistics: bool = False
    #: Record what threads wait for while an operation is in flight.
    why: bool = False
    #: Between two looks at file events, which give them their time and watch new directories: what is made in these
    #: before is missed, or comes without its time. Less than the correlator's patience with late file events.
    pause_seconds: float = 0.002
    #: How long events are left together in the ring: reading and correlating cost about the same for few as for many.
    batch_seconds: float = 0.25
    #: Where compiled programs and resolved functions are kept; None: nowhere.
    cache: Path | None = None


def boot_clock_ns() -> int:
    """The clock of all events."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Session:
    """Attached between `start` and `stop`; `poll` brings what has arrived. A context manager."""

    def __init__(self, engine: engines.Engine, options: SessionOptions = SessionOptions()) -> None:
        """Nothing is attached yet."""
        self.engine = engine
        self._options = options
        self._probes: EventProbes | None = None
        self._functions: FunctionProbes | None = None
        self._sched: _Scheduler | None = None
        self._ring: RingReader | None = None
        self._bell: Bell | None = None
        self._inotify: InotifyCollector | None = None
        self._containers: ContainerIdentities | None = None
        self._statistics: int | None = None
        self._usage_is_counted = False
        #: How many functions are timed.
        self._timed = 0
        self._told_losses: dict[str, int] = {}
        self._losses_due_ns = 0
        self._told_warnings = 0
        #: Positions in the ring: up to where new containers were looked for, and (boot clock, position) of the looks.
        self._noticed = 0
        self._looks: list[tuple[int, int]] = []

    def header(self, extra: Mapping[str, Any] | None = None) -> Header:
        """Header of a recording of this session; `extra` goes into its options."""
        uname = platform.uname()
        root = self.engine.data_root.rstrip("/")
        watched = (
            [f"{root}/{area}" for area in (*_WATCHED, self.engine.storage_driver)] if self._options.inotify else []
        )
        return Header(
            host={"hostname": uname.node, "kernel": uname.release, "arch": uname.machine},
            engine=self.engine.facts(),
            boot_time_ns=boot_clock_ns(),
            wall_time_ns=time.time_ns(),
            tool_version=__version__,
            options={
                "origin": "record",
                "watched": watched,
                "syscalls": self._options.syscalls,
                "probe_cost_ns": {"entry": ENTRY_COST_NS, "return": RETURN_COST_NS},
                **(extra or {}),
            },
        )

    def start(self) -> list[Item]:
        """Attach everything; the first items. Raises HostCannotError; then nothing stays attached."""
        try:
            check_ring_bytes(self._options.ring_bytes)
            with ThreadPoolExecutor(2) as pool:
                wanted = (self.engine, load(), self._options.cache)
                found = pool.submit(find_targets, *wanted) if self._options.functions else None
                # Before anything arrives: a busy machine's rings would fill meanwhile.
                symbols = pool.submit(read_symbols) if self._options.why else None
                compiled = build_image(self._options.cache, scheduler=self._options.why)
                self._probes = EventProbes(
                    compiled, self._options.ring_bytes, self._options.cache, syscalls=self._options.syscalls
                )
                self._ring = RingReader(self._probes.ring, self._probes.ring_bytes)
                self._bell = Bell(self._probes.ring)
                targets = found.result() if found else None
            if self._options.inotify:
                engine = self.engine
                self._inotify = InotifyCollector(engine.path("/"), engine.data_root, engine.storage_driver)
                self._inotify.start()
            identity = Identity(self.engine, with_values=self._options.with_values)
            self._containers = ContainerIdentities(
                identity, self.engine.data_root, configurations=self._options.configurations
            )
            uncounted = self._count_usage() if self._options.statistics else []
            return [
                *self._attach(self._probes),
                *self._attach_functions(compiled, targets),
                *self._attach_sched(compiled, symbols.result() if symbols else None),
                *uncounted,
            ]
        except BaseException:
            self.close()
            raise

    def _count_usage(self) -> list[Item]:
        """Let the kernel count what our programs cost; says so if it does not."""
        with contextlib.suppress(OSError):
            self._statistics = bpf.enable_run_time_statistics()
        self._usage_is_counted = self._statistics is not None or bpf.run_time_is_counted()
        text = "what the probes cost is not counted: that takes CAP_SYS_ADMIN, or sysctl kernel.bpf_stats_enabled=1"
        return [] if self._usage_is_counted else [Note(NoteKind.WARNING, boot_clock_ns(), {"text": text})]

    def _attach(self, probes: EventProbes) -> list[Item]:
        engine = self.engine
        roles = {engine.pid: Role.DOCKERD}
        if engine.containerd_pid is not None:
            roles[engine.containerd_pid] = Role.CONTAINERD
        probes.seed(roles, ())
        probes.attach()
        # Only now: what starts or connects in between is seen by the programs themselves.
        seeds = engines.lineage_seeds(engine)
        probes.seed({pid: Role[role.upper()] for pid, role in seeds}, engines.api_connection_fds(engine))
        now_ns = boot_clock_ns()
        return [
            Note(NoteKind.PROCESS, now_ns, {"pid": pid, "role": role, "argv": self._arguments(pid, role)})
            for pid, role in seeds
        ]

    def _attach_functions(self, image: Image, found: Targets | None) -> list[Item]:
        """Functions are a gain in precision: what cannot be had of them is said, and the rest goes on."""
        if found is None or self._probes is None:
            return []
        now_ns = boot_clock_ns()
        warnings = list(found.warnings)
        attached: tuple[Function, ...] = ()
        try:
            self._functions = FunctionProbes(image, self._probes)
            attached = self._functions.attach(found.targets)
            self._timed = len(attached)
        except HostCannotError as error:
            warnings.append(f"functions are not timed: {error}")
        return [
            *(Note(NoteKind.FUNCTION, now_ns, function.note()) for function in attached),
            *(Note(NoteKind.FUNCTION, now_ns, refused) for refused in found.refused),
            *(Note(NoteKind.WARNING, now_ns, {"text": text}) for text in warnings),
        ]

    def _attach_sched(self, image: Image, symbols: Symbols | None) -> list[Item]:
        """What threads wait for is a gain too. `symbols`: None if nobody wants it."""
        if symbols is None or self._probes is None:
            return []
        try:
            self._sched = _Scheduler(image, self._probes, symbols)
        except HostCannotError as error:
            text = f"what the time was spent on is not recorded: {error}"
            return [Note(NoteKind.WARNING, boot_clock_ns(), {"text": text})]
        return []

    def _arguments(self, pid: int, role: str) -> list[str]:
        """Arguments of a process that runs already; a daemon's may hold secrets (log drivers, key stores)."""
        arguments = procfs.arguments(pid)
        if self._options.with_values or not arguments:
            return arguments
        return arguments[:1] if role != "child" else redact("\0".join(arguments), entrypoint=False).split("\0")

    @property
    def attached(self) -> dict[str, bool]:
        """Which of PROBES are attached now."""
        watching = self._inotify is not None and self._inotify.fileno() >= 0
        return {**dict.fromkeys(PROBES, self._probes is not None), FUNCTIONS: self._timed > 0, INOTIFY: watching}

    def usage(self) -> dict[str, Usage | None]:
        """What each of the programs has cost since it was attached; None if nobody counts. Empty if nothing is."""
        if self._probes is None:
            return {}
        functions = {FUNCTIONS: self._functions.usage()} if self._functions is not None else {}
        counted = {**self._probes.usage(), **functions}
        return {name: usage if self._usage_is_counted else None for name, usage in counted.items()}

    def wait(self, timeout_seconds: float, *descriptors: int, batch_seconds: float | None = None) -> None:
        """Sleep until events arrive, and then until there are many; less if a descriptor can be read.

        Events wake only a reader that has read all there was: poll before. `batch_seconds`: instead of the option.
        """
        if self._probes is None or self._ring is None or self._bell is None:
            readable(descriptors, timeout_seconds)
            return
        ring = self._probes.ring
        if readable((*descriptors, ring), timeout_seconds) == {ring}:
            together_seconds = self._options.batch_seconds if batch_seconds is None else batch_seconds
            self._gather(self._ring, self._bell, descriptors, together_seconds)

    def _gather(self, ring: RingReader, bell: Bell, descriptors: Sequence[int], batch_seconds: float) -> None:
        """Leave events together, but look at what cannot wait for the poll."""
        files = self._inotify.fileno() if self._inotify is not None else -1
        now = files_due = time.monotonic()
        end = now + batch_seconds
        while now < end and not self._is_filling(ring):
            due = end if files < 0 else files_due
            sources = (bell.fileno(), files) if now >= due else (bell.fileno(),)
            left_seconds = min(end, due if due > now else end) - now
            ready = readable((*descriptors, *sources), min(left_seconds, _FILLING_SECONDS))
            if not ready <= set(sources):
                return
            now = time.monotonic()
            if files in ready:
                self._look_at_files(ring)
                files_due = now + self._options.pause_seconds
            if bell.fileno() in ready:
                bell.answer()
                self._look_for_containers(ring)
            if self._containers is not None:
                self._containers.advance()

    def _is_filling(self, ring: RingReader) -> bool:
        return ring.is_filling or (self._sched is not None and self._sched.is_filling)

    def _look_at_files(self, ring: RingReader) -> None:
        if self._inotify is not None:
            self._inotify.collect()
            self._looks.append((boot_clock_ns(), ring.produced))

    def _look_for_containers(self, ring: RingReader) -> None:
        if self._containers is not None:
            batch, self._noticed = ring.peek(self._noticed, WATCHED)
            self._containers.watch(batch)

    def poll(self) -> list[Item]:
        """What has arrived since the last call, in an order that `Correlator` understands."""
        if self._probes is None or self._ring is None:
            return []
        items: list[Item] = []
        # inotify first: its events then never come before the calls that caused them in a later poll.
        files = self._inotify.drain() if self._inotify else EventBatch.of(())
        looks, self._looks = self._looks, []
        noticed, *places = self._ring.places([self._noticed, *(position for _, position in looks)])
        batch = complete_arguments(self._ring.drain(), with_values=self._options.with_values)
        if len(batch) and self._containers:
            self._containers.watch(EventBatch(batch.rows[max(noticed, 0) :], batch.strings))
        # Drained after the calls but told before them: a run that these finish has all of its waits.
        if self._sched is not None and len(waits := self._sched.drain()):
            items.append(waits)
        if len(batch) or len(files):
            items.append(merged(batch, files, [time_ns for time_ns, _ in looks], places))
        now_ns = boot_clock_ns()
        items += self._identities(now_ns, last=False)
        if now_ns >= self._losses_due_ns:
            self._losses_due_ns = now_ns + _SECOND_NS
            items += self._losses(now_ns)
        return items

    def _identities(self, now_ns: int, *, last: bool) -> list[Item]:
        if self._containers is None:
            return []
        found = self._containers.last(_LAST_ANSWERS_SECONDS) if last else self._containers.take()
        return [Note(NoteKind.CONTAINER, now_ns, container.data()) for container in found]

    def losses(self) -> dict[str, int]:
        """Counters so far, by the names of `observe.model.Loss`."""
        counts = {}
        if self._probes is not None:
            counts["ring_buffer"] = self._probes.counter(Counter.RING_BUFFER)
            counts["program_misses"] = self._probes.misses() + (self._sched.probes.misses() if self._sched else 0)
            counts["lineage"] = self._probes.counter(Counter.LINEAGE)
            counts["unmatched_returns"] = self._probes.counter(Counter.UNMATCHED_RETURNS)
        if self._inotify is not None:
            counts["inotify_overflows"] = self._inotify.losses.overflows
            counts["inotify_watches"] = self._inotify.losses.unwatched_directories
        return counts

    def _losses(self, now_ns: int) -> list[Item]:
        items: list[Item] = []
        counts = self.losses()
        if counts != self._told_losses:
            self._told_losses = counts
            items.append(Note(NoteKind.LOSS, now_ns, counts))
        warnings = self._inotify.warnings[self._told_warnings :] if self._inotify else []
        self._told_warnings += len(warnings)
        return items + [Note(NoteKind.WARNING, now_ns, {"text": text}) for text in warnings]

    def stop(self) -> list[Item]:
        """Detach, and bring the last items: what still lay in the ring and the queue, names, losses."""
        if self._probes is None:
            return []
        if self._functions is not None:
            self._functions.close()
        if self._sched is not None:
            self._sched.probes.detach()
        self._probes.detach()
        items = self.poll()
        now_ns = boot_clock_ns()
        items += self._identities(now_ns, last=self.engine.is_alive())  # one that has ended will not answer
        items += self._losses(now_ns)
        self.close()
        return items

    def close(self) -> None:
        """Detach and free everything; what has not been read is gone. Can be called twice."""
        if self._functions is not None:
            self._functions.close()
        if self._sched is not None:
            self._sched.close()
        if self._bell is not None:
            self._bell.close()
        if self._ring is not None:
            self._ring.close()
        if self._probes is not None:
            self._probes.close()
        if self._inotify is not None:
            self._inotify.stop()
        if self._containers is not None:
            self._containers.close()
        if self._statistics is not None:
            os.close(self._statistics)
        self._statistics = None
        self._timed = 0
        self._ring = self._bell = self._probes = self._inotify = self._containers = None
        self._functions = self._sched = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class _Scheduler:
    """The scheduler's programs with the reader of their ring, and the names of the stacks in it."""

    def __init__(self, image: Image, probes: EventProbes, symbols: Symbols) -> None:
        """Attach. Raises HostCannotError; then nothing stays attached."""
        self.probes = SchedProbes(image, probes)
        try:
            self._ring = RingReader(self.probes.ring, SCHED_RING_BYTES, SCHED_RECORD_DTYPE)
            self.probes.attach()
        except BaseException:
            self.probes.close()
            raise
        self._stacks = KernelStacks(self.probes.stack, symbols)
        self._decoder = SchedDecoder()

    @property
    def is_filling(self) -> bool:
        """Whether so much waits that it should be read now."""
        return self._ring.is_filling

    def drain(self) -> EventBatch:
        """What has arrived."""
        return self._ring.read(self._decode)

    def _decode(self, records: npt.NDArray[Any]) -> EventBatch:
        is_switch = records["kind"] == Kind.SCHED_SWITCH
        return self._decoder.decode(records, self._stacks.texts(set(records["stack"][is_switch].tolist())))

    def close(self) -> None:
        """Detach and free."""
        self._ring.close()
        self.probes.close()


def merged(calls: EventBatch, files: EventBatch, times_ns: Sequence[int], places: Sequence[int]) -> EventBatch:
    """One batch of calls and of the file events that were read meanwhile, each behind the calls that were over by then.

    Ascending: `times_ns` of the looks at file events, and how many calls there were at each. What was read later stands
    at the end.
    """
    if not len(files):
        return calls
    look = np.searchsorted(np.array(times_ns, dtype=np.uint64), files.rows["time_ns"])
    place = np.minimum(np.array([*places, len(calls)], dtype=np.int64)[look], len(calls))
    both = EventBatch.concat([calls, files])
    return EventBatch(np.insert(both.rows[: len(calls)], place, both.rows[len(calls) :]), both.strings)
