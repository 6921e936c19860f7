# SPDX-License-Identifier: Apache-2.0
"""Stacks in the kernel as text: addresses looked up in /proc/kallsyms."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")

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


class KernelStacks:
    """Number of a stack → its functions, innermost first, joined by `;`; each is looked up once."""

    def __init__(self, addresses_of: Callable[[int], Iterable[int]], kallsyms: Path = KALLSYMS) -> None:
        """`addresses_of`: the return addresses of a stack by its number, innermost first."""
        self._addresses_of = addresses_of
        self._kallsyms = kallsyms
        self._symbols: tuple[list[int], list[str]] | None = None
        self._known: dict[int, str] = {}

    def texts(self, numbers: Iterable[int]) -> dict[int, str]:
        """The text of each stack; empty if it is not known (a negative number), or nothing of it has a name."""
        for number in numbers:
            if number >= 0 and not self._known.get(number):
                self._known[number] = ";".join(self._named(self._addresses_of(number)))
        return self._known

    def _named(self, addresses: Iterable[int]) -> Iterator[str]:
        if self._symbols is None:
            self._symbols = _read(self._kallsyms)
        starts, names = self._symbols
        kept = 0
        for address in addresses:
            index = bisect_right(starts, address) - 1
            name = names[index] if index >= 0 else ""
            if not name or (not kept and (name in _SCHEDULER or name.startswith(_OURS))):
                continue
            if name in _ENTRY:
                return
            yield name
            kept += 1
            if kept == _KEPT:
                return


def _read(path: Path) -> tuple[list[int], list[str]]:
    """Addresses, sorted, and names of the kernel's functions; nothing if it hides them (kernel.kptr_restrict)."""
    found = []
    with path.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            address, kind, name = line.split(maxsplit=3)[:3]
            if kind in "tTwW":
                found.append((int(address, 16), name))
    found.sort()
    if not found or not found[-1][0]:
        return [], []
    return [address for address, _ in found], [name for _, name in found]
