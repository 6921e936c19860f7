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
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from observe.errors import HostCannotError
from observe.probes import bpf, compiler, events
from observe.probes.layout import Counter

#: Holds more than 7,000 records: about 15 container starts between two drains.
DEFAULT_RING_BYTES = 8 * 1024 * 1024

_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


def tracefs() -> Path:
    """Where tracefs is mounted. Raises HostCannotError if it is not."""
    for folder in _TRACEFS:
        if (folder / "events").is_dir():
            return folder
    raise HostCannotError("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")


class EventProbes:
    """The programs of `bpf/events.bpf.c`, loaded and seeded; attached between `attach()` and `close()`."""

    def __init__(self, image: compiler.Image, ring_bytes: int = DEFAULT_RING_BYTES) -> None:
        """Create the maps and load the programs. `ring_bytes`: a power of two, at least a page.

        Raises HostCannotError if the kernel refuses, saying what it said.
        """
        self.ring_bytes = ring_bytes
        self._stack = ExitStack()
        self._attached: list[int] = []
        self._maps: dict[str, int] = {}
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
            max_entries = self.ring_bytes if spec.type == bpf.MAP_TYPE_RINGBUF else spec.max_entries
            self._maps[spec.name] = self._own(
                bpf.map_create(
                    spec.type, spec.key_bytes, spec.value_bytes, max_entries, flags=spec.flags, name=spec.name
                )
            )
        self._programs = {}
        for program in image.programs:
            code = bytearray(program.code)
            for index, name in program.maps:
                code[index * 8 + 4 : index * 8 + 8] = struct.pack("<i", self._maps[name])
            kind = bpf.PROG_TYPE_RAW_TRACEPOINT if program.name in events.RAW_TRACEPOINTS else bpf.PROG_TYPE_TRACEPOINT
            self._programs[program.name] = self._own(bpf.program_load(kind, program.name, bytes(code)))
        for number, call in events.numbered_calls().items():
            bpf.map_update(self._maps["calls"], struct.pack("<I", number), call.pack())

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
            for program, tracepoint in events.TRACEPOINTS.items():
                number = int((tracefs() / "events" / tracepoint / "id").read_text())
                self._attached.append(bpf.perf_tracepoint_open(number, self._programs[program]))
            for program, name in events.RAW_TRACEPOINTS.items():
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


def build_event_probes(ring_bytes: int = DEFAULT_RING_BYTES) -> EventProbes:
    """Compile and load. Raises HostCannotError if this host lacks something, naming it."""
    if ring_bytes < mmap.PAGESIZE or ring_bytes & (ring_bytes - 1):
        raise HostCannotError(f"a ring buffer of {ring_bytes} bytes is not a power of two of at least {mmap.PAGESIZE}")
    tracefs()  # bcc reads tracepoint formats there: say what is missing before it does
    return EventProbes(compiler.build(events.SOURCE, [*events.RAW_TRACEPOINTS, *events.TRACEPOINTS]), ring_bytes)
