# SPDX-License-Identifier: Apache-2.0
"""Go's own function table (pclntab) of a stripped binary: where every function begins, and its name.

The table is found by its magic number and believed only if the module data of the Go runtime points at it and
both agree on every address and size. Layouts: Go's src/runtime/symtab.go and src/debug/gosym/pclntab.go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from observe.probes.elf import BinaryError, Image

_POINTER_BYTES = 8
#: Quantum: bytes of the shortest instruction.
_QUANTUM = {"x86_64": 1, "aarch64": 4}
_MOST_FUNCTIONS = 1 << 21
_LONGEST_NAME_BYTES = 16 << 10
#: A program has one table and one pointer to it. Data may look alike now and then; a file full of it is refused.
_MOST_LOOKALIKES = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between the table's formats.

    `offsets_at` is the index of the header's word with the names' offset, `text_at` of that with the text's start
    (None: the table holds addresses, not offsets from there); words follow the 8 bytes of magic and sizes.
    """

    magic: int
    oldest_minor: int
    newest_minor: int | None
    offsets_at: int | None
    text_at: int | None

    @property
    def entry_type(self) -> str:
        """How an entry and an offset are stored."""
        return "<u8" if self.text_at is None else "<u4"


#: Go 1.26 leaves the text's start out of the header (0 there): only the module data has it.
LAYOUTS = (
    Layout(0xFFFFFFFB, 2, 15, offsets_at=None, text_at=None),
    Layout(0xFFFFFFFA, 16, 17, offsets_at=2, text_at=None),
    Layout(0xFFFFFFF0, 18, 19, offsets_at=3, text_at=2),
    Layout(0xFFFFFFF1, 20, None, offsets_at=3, text_at=2),
)
_HEADER_WORDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All functions of a program, by address. `entries` has one more: where the last function ends.

    entries: uint64, shape (n + 1,), addresses. names_at: uint32, shape (n,), offsets of the names in `names`,
    each ended by a NUL.
    """

    layout: Layout
    entries: npt.NDArray[np.uint64]
    names_at: npt.NDArray[np.uint32]
    names: bytes

    def __len__(self) -> int:
        """Number of functions."""
        return len(self.names_at)

    def starting_with(self, prefixes: tuple[bytes, ...]) -> Iterator[tuple[int, bytes]]:
        """(index, name) of every function whose name begins with one of the prefixes.

        Raises BinaryError if any function's name does not end where names do.
        """
        names, ends = self.names, self._name_ends().tolist()
        for index, start in enumerate(self.names_at.tolist()):
            if names.startswith(prefixes, start, ends[index]):
                yield index, names[start : ends[index]]

    def _name_ends(self) -> npt.NDArray[np.int64]:
        nuls = np.flatnonzero(np.frombuffer(self.names, dtype=np.uint8) == 0)
        places = np.searchsorted(nuls, self.names_at)
        ends = np.append(nuls, np.iinfo(np.int64).max)[places]
        endless = np.flatnonzero(ends - self.names_at.astype(np.int64) >= _LONGEST_NAME_BYTES)
        if len(endless):
            raise BinaryError(f"corrupt function table: the name of function {endless[0]} does not end")
        return ends


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where the parts of a table lie, as its module data tells: addresses and sizes."""

    names: int
    names_bytes: int
    functions: int
    functions_bytes: int
    entries: int
    count: int
    text: int
    first: int
    last: int


def read_table(image: Image) -> Table:
    """The function table. Raises BinaryError if there is none, or if anything about it contradicts itself."""
    reasons = []
    for address in islice(_candidates(image), _MOST_LOOKALIKES):
        try:
            return _table_at(image, address)
        except BinaryError as error:
            reasons.append(f"corrupt function table at {address:#x}: {error}")
    raise BinaryError(reasons[0] if reasons else "no Go function table in it")


def _candidates(image: Image) -> Iterator[int]:
    """Addresses of headers, those outside of code first."""
    # All magics but their first byte, two bytes of padding, quantum and pointer size.
    needle = bytes([0xFF, 0xFF, 0xFF, 0, 0, _QUANTUM[image.machine], _POINTER_BYTES])
    magics = {layout.magic & 0xFF for layout in LAYOUTS}
    for segment in sorted(image.segments, key=lambda segment: segment.executable):
        for address in islice(image.find(needle, segment), _MOST_LOOKALIKES):
            if segment.holds(address - 1, 1) and image.read(address - 1, 1)[0] in magics:
                yield address - 1


def _table_at(image: Image, address: int) -> Table:
    head = image.read(address, 8 + _HEADER_WORDS * _POINTER_BYTES)
    layout = next(layout for layout in LAYOUTS if layout.magic == int.from_bytes(head[:4], "little"))
    words = struct.unpack_from(f"<{_HEADER_WORDS}Q", head, 8)
    reason = "the runtime's module data does not point to it"
    for module in islice(image.find_pointers(address), _MOST_LOOKALIKES):
        try:
            extent = _extent(image, module, layout)
            _check_header(layout, address, words, extent)
        except BinaryError as error:
            reason = str(error)
            continue
        return _table(image, layout, extent)
    raise BinaryError(reason)


def _extent(image: Image, module: int, layout: Layout) -> _Extent:
    """Read runtime.moduledata: the slices of the table, then findfunctab, minpc, maxpc, text."""
    word = struct.unpack("<23Q", image.read(module, 23 * _POINTER_BYTES))
    if layout.offsets_at is None:
        # One slice is the whole table: names and functions lie in it, offsets count from its start.
        return _Extent(word[0], word[1], word[0], word[1], word[3], word[4], word[12], word[10], word[11])
    return _Extent(word[1], word[2], word[13], word[14], word[16], word[17], word[22], word[20], word[21])


def _check_header(layout: Layout, address: int, words: tuple[int, ...], extent: _Extent) -> None:
    count = words[0]
    if not 0 < count <= _MOST_FUNCTIONS or extent.count != count + 1:
        raise BinaryError(f"{count} functions in its header, {extent.count - 1} in the module data")
    if layout.offsets_at is None:
        if extent.entries != address + 8 + _POINTER_BYTES:
            raise BinaryError("the module data has its entries elsewhere")
        return
    offsets = words[layout.offsets_at : layout.offsets_at + 5]
    if list(offsets) != sorted(offsets):
        raise BinaryError("its parts are out of order")
    names, functions = address + offsets[0], address + offsets[-1]
    if (names, functions, functions) != (extent.names, extent.functions, extent.entries):
        raise BinaryError("the module data has its parts elsewhere")
    if extent.names_bytes > offsets[1] - offsets[0]:
        raise BinaryError("its names run into the next part")
    if layout.text_at is not None and words[layout.text_at] not in (0, extent.text):
        raise BinaryError("the module data has its text elsewhere")


def _table(image: Image, layout: Layout, extent: _Extent) -> Table:
    width = np.dtype(layout.entry_type).itemsize
    count = extent.count - 1
    pairs = np.frombuffer(image.read(extent.entries, (2 * count + 1) * width), layout.entry_type)
    base = 0 if layout.text_at is None else extent.text
    entries = pairs[0::2].astype(np.uint64) + np.uint64(base)
    functions_at = pairs[1::2]
    if np.any(entries[1:] < entries[:-1]):
        raise BinaryError("its entries are not in order")
    if (int(entries[0]), int(entries[-1])) != (extent.first, extent.last):
        raise BinaryError("the module data has its first or last entry elsewhere")
    segment = image.segment_of(extent.first, extent.last - extent.first)
    if segment is None or not segment.executable:
        raise BinaryError("its functions are not all in one segment with code")
    # struct _func: the entry, stored as in the table, then the name's offset, int32.
    records = np.frombuffer(image.read(extent.functions, extent.functions_bytes), np.uint8)
    if np.any(functions_at > max(len(records) - width - 4, -1)):
        raise BinaryError("a function's record is outside of it")
    own = _gather(records, functions_at, width).view(layout.entry_type)[:, 0]
    if not np.array_equal(own, pairs[0:-1:2]):
        raise BinaryError("a function's record has another entry than the table")
    names_at = _gather(records, functions_at + np.asarray(width, functions_at.dtype), 4).view("<u4")[:, 0]
    if int(names_at.max()) >= extent.names_bytes:
        raise BinaryError("a name is outside of it")
    return Table(layout, entries, names_at.astype(np.uint32), image.read(extent.names, extent.names_bytes))


def _gather(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.integer[Any]], width: int) -> npt.NDArray[np.uint8]:
    """`width` bytes from each start, as rows: shape (n, width)."""
    rows: npt.NDArray[np.uint8] = data[starts.astype(np.int64)[:, None] + np.arange(width)]
    return rows
