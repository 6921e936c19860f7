# SPDX-License-Identifier: Apache-2.0
"""Stacks in the kernel as text: addresses looked up in /proc/kallsyms."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")

_FUNCTION = re.compile(rb"^([0-9a-f]+) [tTwW] (\S+)$", re.MULTILINE)

#: So many functions of a stack are kept, the innermost ones.
_KEPT = 16
#: The way into the scheduler, and into us, is every sleeper's.
_SCHEDULER = (
    "__schedule",
    "schedule",
    "schedule_timeout",
    "schedule_preempt_disabled",
    "io_schedule",
    "io_schedule_timeout",
    "preempt_schedule",
)
#: The way into the kernel too.
_ENTRY = ("do_syscall_64", "entry_SYSCALL_64_after_hwframe", "el0_svc", "do_el0_svc", "invoke_syscall")
_OURS = ("bpf_", "__bpf_", "__traceiter_", "get_perf_callchain")


@dataclass(frozen=True, slots=True)
class Symbols:
    """The kernel's functions, by address; kept small, since a recorder keeps them as long as it runs."""

    starts: array[int]
    #: Where in `text` the name of each begins.
    offsets: array[int]
    text: bytes

    def name(self, address: int) -> str:
        """The function that an address lies in; empty if nothing is known.

        Behind the last one, which marks the end, are programs like ours.
        """
        index = bisect_right(self.starts, address) - 1
        if not 0 <= index < len(self.starts) - 1:
            return ""
        start = self.offsets[index]
        return self.text[start : self.text.index(b"\n", start)].decode("ascii", errors="replace")


class KernelStacks:
    """Number of a stack → its functions, innermost first, joined by `;`; each is looked up once."""

    def __init__(self, addresses_of: Callable[[int], Iterable[int]], symbols: Symbols) -> None:
        """`addresses_of`: the return addresses of a stack by its number, innermost first."""
        self._addresses_of = addresses_of
        self._symbols = symbols
        self._known: dict[int, str] = {}

    def texts(self, numbers: Iterable[int]) -> dict[int, str]:
        """The text of each stack; empty if it is not known (a negative number), or nothing of it has a name."""
        for number in numbers:
            if number >= 0 and not self._known.get(number):
                self._known[number] = ";".join(self._named(self._addresses_of(number)))
        return self._known

    def _named(self, addresses: Iterable[int]) -> Iterator[str]:
        kept = 0
        for address in addresses:
            name = self._symbols.name(address)
            if not name or (not kept and (name in _SCHEDULER or name.startswith(_OURS))):
                continue
            if name in _ENTRY:
                return
            yield name
            kept += 1
            if kept == _KEPT:
                return


def read_symbols(path: Path = KALLSYMS) -> Symbols:
    """The kernel's own functions (modules' come last and are left out); none if it has no list or hides it.

    It takes a fifth of a second. sysctl kernel.kptr_restrict hides addresses.
    """
    starts, offsets = array("Q"), array("L")
    try:
        text = path.read_bytes()
    except OSError:
        text = b""
    names = bytearray()
    for line in _FUNCTION.finditer(text):
        start = int(line[1], 16)
        if starts and start < starts[-1]:  # a module, or the end of what is sorted
            break
        starts.append(start)
        offsets.append(len(names))
        names += line[2] + b"\n"
    if not starts or not starts[-1]:
        return Symbols(array("Q"), array("L"), b"")
    return Symbols(starts, offsets, bytes(names))
