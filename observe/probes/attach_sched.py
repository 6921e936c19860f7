# SPDX-License-Identifier: Apache-2.0
"""Load and attach the programs of `bpf/sched.bpf.c`; see `attach` for how they go away again."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack

from observe.errors import HostCannotError
from observe.probes import bpf, compiler, kernel_types, sched
from observe.probes.attach import EventProbes

_ADDRESS_BYTES = 8


class SchedProbes:
    """Attached from `attach()` to `close()`. They ask the lineage of `EventProbes`; their ring is their own."""

    def __init__(self, image: compiler.Image, events_probes: EventProbes) -> None:
        """Create the maps and load. Raises HostCannotError if this kernel cannot, saying why."""
        self._stack = ExitStack()
        self._attached: list[int] = []
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        programs = {program.name: program for program in image.programs}
        if not programs.keys() >= set(sched.RAW_TRACEPOINTS):
            raise HostCannotError(f"the kernel has no type information ({kernel_types.VMLINUX})")
        try:
            for spec in image.maps:
                if spec.name in sched.MAPS:
                    size = sched.RING_BYTES if spec.type == bpf.MAP_TYPE_RINGBUF else spec.max_entries
                    self._maps[spec.name] = self._own(
                        bpf.map_create(
                            spec.type, spec.key_bytes, spec.value_bytes, size, flags=spec.flags, name=spec.name
                        )
                    )
            for name in (*sched.RAW_TRACEPOINTS, *sched.OPTIONAL_RAW_TRACEPOINTS):
                code = events_probes.relocate(programs[name], self._maps)
                self._programs[name] = self._own(bpf.program_load(bpf.PROG_TYPE_RAW_TRACEPOINT, name, code))
        except OSError as error:
            self.close()
            raise HostCannotError(f"the kernel does not take the programs: {error.strerror}") from error

    def _own(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor

    @property
    def ring(self) -> int:
        """Descriptor of the ring buffer map; it is `sched.RING_BYTES` large."""
        return self._maps["sched_records"]

    def attach(self) -> None:
        """Attach every program. Raises HostCannotError if a tracepoint is missing or refused."""
        for name in sched.RAW_TRACEPOINTS:
            try:
                self._attached.append(bpf.raw_tracepoint_open(name, self._programs[name]))
            except OSError as error:
                self.detach()
                raise HostCannotError(f"the tracepoint {name} cannot be attached: {error.strerror}") from error
        for name in sched.OPTIONAL_RAW_TRACEPOINTS:
            try:
                self._attached.append(bpf.raw_tracepoint_open(name, self._programs[name]))
            except OSError:
                continue

    def detach(self) -> None:
        """Detach; the ring can still be read."""
        while self._attached:
            os.close(self._attached.pop())

    def stack(self, number: int) -> tuple[int, ...]:
        """Return addresses of a stack in the kernel, the innermost first; empty if it is not kept."""
        try:
            value = bpf.map_lookup(self._maps["stacks"], struct.pack("<I", number), sched.STACK_DEPTH * _ADDRESS_BYTES)
        except OSError:
            return ()
        addresses = struct.unpack(f"<{sched.STACK_DEPTH}Q", value)
        return tuple(address for address in addresses if address)

    def misses(self) -> int:
        """How often the kernel skipped one of the programs, because it ran already on that CPU: events lost."""
        return sum(bpf.program_misses(program) for program in self._programs.values())

    def close(self) -> None:
        """Detach, and free programs and maps. Can be called twice."""
        self.detach()
        self._stack.close()
