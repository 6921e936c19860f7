# SPDX-License-Identifier: Apache-2.0
"""Load an image into the kernel, seed its maps, attach its programs, and take all of it away again.

Everything attached is held by file descriptors of this process: when it ends, however it ends, the kernel
detaches and frees all of it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from observe.errors import HostCannotError
from observe.model import Usage
from observe.probes import bpf, compiler, events, functions, kernel_types, sched
from observe.probes.layout import Counter

#: Holds more than 7,000 records: about 15 container starts between two drains.
DEFAULT_RING_BYTES = 8 * 1024 * 1024

#: Program → its type (BPF_PROG_TYPE_*).
_KINDS = {
    **dict.fromkeys(events.RAW_TRACEPOINTS, bpf.PROG_TYPE_RAW_TRACEPOINT),
    **dict.fromkeys(events.SYSCALL_TRACEPOINTS, bpf.PROG_TYPE_TRACEPOINT),
    **dict.fromkeys(events.TRACEPOINTS, bpf.PROG_TYPE_TRACEPOINT),
}

#: Sites that are probed one by one where links for many are missing.
_FEW_SITES = 48

_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


def tracefs() -> Path:
    """Where tracefs is mounted. Raises HostCannotError if it is not."""
    for folder in _TRACEFS:
        if (folder / "events").is_dir():
            return folder
    raise HostCannotError("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")


class EventProbes:
    """The programs of `bpf/events.bpf.c`, loaded and seeded; attached between `attach()` and `close()`."""

    def __init__(
        self,
        image: compiler.Image,
        ring_bytes: int = DEFAULT_RING_BYTES,
        cache: Path | None = None,
        *,
        syscalls: bool = True,
    ) -> None:
        """Create the maps and load the programs. `ring_bytes`: a power of two, at least a page.

        `syscalls`: tell of all that are looked at, and not only of those by which processes are followed. An older
        kernel needs two programs more, which are compiled then, or taken from `cache`. Raises HostCannotError if the
        kernel refuses, saying what it said.
        """
        self.ring_bytes = ring_bytes
        self._calls = events.numbered_calls(only_needed=not syscalls)
        self._cache = cache
        self._stack = ExitStack()
        self._attached: list[int] = []
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        try:
            self._load(image)
        except OSError as error:
            self.close()
            raise HostCannotError(
                f"the kernel does not take the BPF programs: {error.strerror}; see observe doctor"
            ) from error
        except BaseException:
            self.close()
            raise

    def _load(self, image: compiler.Image) -> None:
        for spec in image.maps:
            if spec.name in sched.MAPS:
                continue
            max_entries = self.ring_bytes if spec.type == bpf.MAP_TYPE_RINGBUF else spec.max_entries
            self._maps[spec.name] = self._own(
                bpf.map_create(
                    spec.type, spec.key_bytes, spec.value_bytes, max_entries, flags=spec.flags, name=spec.name
                )
            )
        self._load_programs(image, events.TRACEPOINTS)
        try:
            self._load_programs(image, events.SYSCALL_TRACEPOINTS)
        except OSError:
            self._load_programs(build_raw_image(self._cache), events.RAW_TRACEPOINTS)
        for number, call in self._calls.items():
            bpf.map_update(self._maps["calls"], struct.pack("<I", number), call.pack())

    def _load_programs(self, image: compiler.Image, names: Iterable[str]) -> None:
        programs = {program.name: program for program in image.programs}
        for name in names:
            code = self.relocate(programs[name])
            self._programs[name] = self._own(bpf.program_load(_KINDS[name], name, code))

    def relocate(self, program: compiler.Program, others: Mapping[str, int] = MappingProxyType({})) -> bytes:
        """The program's code with the descriptors of our maps, and of `others` by their names, in it."""
        code = bytearray(program.code)
        for index, name in program.maps:
            descriptor = others[name] if name in others else self._maps[name]
            code[index * 8 + 4 : index * 8 + 8] = struct.pack("<i", descriptor)
        return bytes(code)

    def _own(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor

    @property
    def ring(self) -> int:
        """Descriptor of the ring buffer map."""
        return self._maps["records"]

    def seed(self, roles: Mapping[int, events.Role], api_connections: Iterable[int]) -> None:
        """Say whom to follow (pid → role), and which descriptors of dockerd are API connections already.

        What the programs themselves have found out meanwhile is left as it is.
        """
        for pid, role in roles.items():
            self._add("lineage", struct.pack("<I", pid), struct.pack("<I", role))
        for descriptor in api_connections:
            self._add("connections", struct.pack("<I", descriptor), bytes(2))

    def _add(self, name: str, key: bytes, value: bytes) -> None:
        try:
            bpf.map_update(self._maps[name], key, value, bpf.NO_EXIST)
        except FileExistsError:
            pass
        except OSError as error:
            raise HostCannotError(f"the map {name} is full: {error.strerror}") from error

    def attach(self) -> None:
        """Attach every program. Raises HostCannotError if a tracepoint is missing or refused."""
        try:
            # Fork before everything else: no child may be missed that a seeded process starts meanwhile.
            for program, tracepoint in (events.TRACEPOINTS | events.SYSCALL_TRACEPOINTS).items():
                if program in self._programs:
                    number = int((tracefs() / "events" / tracepoint / "id").read_text())
                    self._attached.append(bpf.perf_tracepoint_open(number, self._programs[program]))
            for program, name in events.RAW_TRACEPOINTS.items():
                if program in self._programs:
                    self._attached.append(bpf.raw_tracepoint_open(name, self._programs[program]))
        except OSError as error:
            self.detach()
            what = "permission denied" if error.errno in (errno.EPERM, errno.EACCES) else error.strerror
            raise HostCannotError(f"tracepoints cannot be attached: {what}; see observe doctor") from error

    def detach(self) -> None:
        """Detach; the ring can still be read."""
        while self._attached:
            os.close(self._attached.pop())

    def counter(self, counter: Counter) -> int:
        """A counter of the programs, summed over the CPUs."""
        possible = _possible_cpus()
        values = bpf.map_lookup(self._maps["counters"], struct.pack("<I", counter), 8 * possible)
        return sum(struct.unpack(f"<{possible}Q", values[: 8 * possible]))

    def misses(self) -> int:
        """How often the kernel skipped one of the programs, because another one ran on that CPU: events lost."""
        return sum(bpf.program_misses(program) for program in self._programs.values())

    def usage(self) -> dict[str, Usage]:
        """What each program has cost, as far as the kernel counted (`bpf.enable_run_time_statistics`)."""
        return {name.removeprefix("raw_"): Usage(*bpf.program_usage(fd)) for name, fd in self._programs.items()}

    def close(self) -> None:
        """Detach, and free programs and maps."""
        self.detach()
        self._stack.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _possible_cpus() -> int:
    """Number of values of a per-CPU map: the kernel's possible CPUs ("0-3" or "0,2-5")."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def build_image(cache: Path | None = None, *, scheduler: bool = False) -> compiler.Image:
    """Compile the programs, or take them from the cache. Raises HostCannotError if this host lacks something.

    `scheduler`: with those of `bpf/sched.bpf.c`, if the kernel has the type information that they need.
    """
    tracefs()  # bcc reads tracepoint formats there: say what is missing before it does
    sources = [events.SOURCE, functions.SOURCE]
    programs = [*events.TRACEPOINTS, *events.SYSCALL_TRACEPOINTS, functions.PROGRAM]
    if scheduler and kernel_types.VMLINUX.exists():
        sources.append(sched.SOURCE)
        programs += [*sched.RAW_TRACEPOINTS, *sched.OPTIONAL_RAW_TRACEPOINTS]
    return compiler.build(sources, programs, cache)


def build_raw_image(cache: Path | None = None) -> compiler.Image:
    """The programs for RAW_TRACEPOINTS alone, with the same maps. Raises HostCannotError like `build_image`."""
    return compiler.build([events.SOURCE, events.RAW_SOURCE], [*events.RAW_TRACEPOINTS], cache)


def build_event_probes(ring_bytes: int = DEFAULT_RING_BYTES) -> EventProbes:
    """Compile and load the programs for events. Raises HostCannotError if this host lacks something, naming it."""
    check_ring_bytes(ring_bytes)
    return EventProbes(build_image(), ring_bytes)


def check_ring_bytes(ring_bytes: int) -> None:
    """Raises HostCannotError if the kernel would not make a ring of this size."""
    if ring_bytes < mmap.PAGESIZE or ring_bytes & (ring_bytes - 1):
        raise HostCannotError(f"a ring buffer of {ring_bytes} bytes is not a power of two of at least {mmap.PAGESIZE}")


class FunctionProbes:
    """The program of `bpf/functions.bpf.c`, attached to the functions of the engine's binaries until `close()`.

    It writes into the ring of `EventProbes` and asks its lineage, so that both streams are one.
    """

    def __init__(self, image: compiler.Image, events_probes: EventProbes, *, multi: bool = True) -> None:
        """Load. `multi`: use one link a file (Linux 6.6); otherwise perf events, and few sites.

        Raises HostCannotError if the kernel refuses.
        """
        self._multi = multi
        self._program = -1
        self._links: list[int] = []
        self._reapers: list[subprocess.Popen[bytes]] = []
        try:
            self._program = self._load(image, events_probes)
        except OSError as error:
            raise HostCannotError(f"the kernel does not take the program for functions: {error.strerror}") from error

    def _load(self, image: compiler.Image, events_probes: EventProbes) -> int:
        program = next(program for program in image.programs if program.name == functions.PROGRAM)
        code = events_probes.relocate(program)
        if self._multi:
            try:
                return bpf.program_load(bpf.PROG_TYPE_KPROBE, program.name, code, bpf.ATTACH_UPROBE_MULTI)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._multi = False
        return bpf.program_load(bpf.PROG_TYPE_KPROBE, program.name, code)

    def attach(self, targets: Iterable[functions.Target]) -> tuple[functions.Function, ...]:
        """Attach to every function, or to as many as this kernel allows; those that are attached.

        Raises HostCannotError if a site is refused.
        """
        attached: list[functions.Function] = []
        for target in targets:
            try:
                already = sum(len(function.sites()) for function in attached)
                attached += self._attach_all(target) if self._multi else self._attach_few(target, already)
            except OSError as error:
                self.close()  # what is attached so far would write records that nobody can name
                raise HostCannotError(f"{target.path}: functions cannot be probed: {error.strerror}") from error
        return tuple(attached)

    def _attach_all(self, target: functions.Target) -> tuple[functions.Function, ...]:
        sites = [site for function in target.functions for site in function.sites()]
        offsets, cookies = zip(*sites, strict=True)
        self._links.append(bpf.uprobe_multi_open(self._program, str(target.path), offsets, cookies, target.pid))
        return target.functions

    def _attach_few(self, target: functions.Target, already: int) -> list[functions.Function]:
        """Perf events take a tenth of a second each to detach: the outermost phases only, held by a reaper."""
        chosen: list[functions.Function] = []
        room = _FEW_SITES - already
        for function in sorted(target.functions, key=lambda function: function.depth):
            if len(function.sites()) > room:
                continue
            room -= len(function.sites())
            chosen.append(function)
        descriptors: list[int] = []
        try:
            for offset, cookie in (site for function in chosen for site in function.sites()):
                descriptors += bpf.perf_uprobe_open(self._program, str(target.path), offset, cookie, target.pid or -1)
            if descriptors:
                # It ends when its input does, which is when we close it, or end ourselves, however we end.
                reaper = subprocess.Popen(
                    ["cat"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    pass_fds=descriptors,
                    start_new_session=True,
                )
                self._reapers.append(reaper)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return chosen

    def usage(self) -> Usage:
        """What the program has cost, as far as the kernel counted."""
        return Usage(*bpf.program_usage(self._program)) if self._program >= 0 else Usage()

    def close(self) -> None:
        """Detach, and free the program. Can be called twice."""
        while self._links:
            os.close(self._links.pop())
        while self._reapers:
            stdin = self._reapers.pop().stdin
            if stdin is not None:
                stdin.close()
        if self._program >= 0:
            os.close(self._program)
            self._program = -1
