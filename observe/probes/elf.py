# SPDX-License-Identifier: Apache-2.0
"""The parts of an ELF file that the loader maps, read as memory: segments, relocated bytes, notes.

Nothing is taken from section headers: stripping may remove or rename them. Every size that the file tells is
checked against the file before anything of that size is read.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from observe.errors import ObserveError

#: e_machine → our name of it, and its relocation "load bias + addend".
_MACHINES = {"EM_X86_64": ("x86_64", 8), "EM_AARCH64": ("aarch64", 1027)}
_FLAG_EXECUTE, _FLAG_WRITE = 1, 2
_DT_RELA, _DT_RELASZ = 7, 8
_RELA_BYTES = 24
_NOTE_HEADER_BYTES = 12

_CHUNK_BYTES = 4 << 20
#: No table of a Go program comes near this: a larger one is a lie.
_LARGEST_READ_BYTES = 256 << 20
#: Notes and dynamic tags are a few hundred bytes.
_LARGEST_NOTE_BYTES = 64 << 10
_MOST_SEGMENTS = 1024
_ADDRESS_LIMIT = 1 << 62


class BinaryError(ObserveError):
    """A binary's functions cannot be told for sure; the message says why. Exit code 1."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the file that the loader maps: `size_bytes` of the file from `offset`, at `address`."""

    address: int
    offset: int
    size_bytes: int
    executable: bool
    writable: bool

    def holds(self, address: int, size_bytes: int) -> bool:
        """Whether all of the range comes from the file."""
        return self.address <= address and address + size_bytes <= self.address + self.size_bytes


@dataclass(frozen=True, slots=True)
class Note:
    """An entry of a PT_NOTE segment."""

    name: bytes
    type: int
    description: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A program as the loader would map it at load bias 0. Addresses are virtual addresses of the file.

    `relocations` are the places that get an address when the program is loaded: places and values, uint64,
    shape (n,) each, ordered by place.
    """

    stream: BinaryIO
    machine: str
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...]
    relocations: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]

    def segment_of(self, address: int, size_bytes: int = 1) -> Segment | None:
        """The segment that holds the whole range, None if there is none."""
        return next((segment for segment in self.segments if segment.holds(address, size_bytes)), None)

    def file_offset(self, address: int) -> int:
        """Where an address lies in the file. Raises BinaryError if it does not come from the file."""
        segment = self.segment_of(address)
        if segment is None:
            raise BinaryError(f"address {address:#x} is in no segment of the file")
        return address - segment.address + segment.offset

    def read(self, address: int, size_bytes: int) -> bytes:
        """Memory at an address, relocated. Raises BinaryError if it is not all in one segment, or far too large."""
        if not 0 <= size_bytes <= _LARGEST_READ_BYTES:
            raise BinaryError(f"a table of {size_bytes} bytes at {address:#x} is larger than any")
        segment = self.segment_of(address, size_bytes)
        if segment is None:
            raise BinaryError(f"{size_bytes} bytes at {address:#x} are not all in one segment of the file")
        raw = _read_exactly(self.stream, address - segment.address + segment.offset, size_bytes)
        places, values = self.relocations
        # One that begins up to 7 bytes before still reaches in.
        first, last = np.searchsorted(places, [max(address - 7, 0), address + size_bytes])
        if first == last:
            return raw
        memory = np.frombuffer(raw, np.uint8).copy()
        targets = (places[first:last].astype(np.int64) - address)[:, None] + np.arange(8)
        inside = (targets >= 0) & (targets < size_bytes)
        memory[targets[inside]] = values[first:last].astype("<u8").view(np.uint8).reshape(-1, 8)[inside]
        return memory.tobytes()

    def find(self, needle: bytes, segment: Segment) -> Iterator[int]:
        """Addresses in a segment where the file, not relocated, holds `needle`."""
        overlap = len(needle) - 1
        for start in range(0, segment.size_bytes - overlap, _CHUNK_BYTES):
            size_bytes = min(_CHUNK_BYTES + overlap, segment.size_bytes - start)
            chunk = _read_exactly(self.stream, segment.offset + start, size_bytes)
            at = chunk.find(needle)
            while at >= 0:
                yield segment.address + start + at
                at = chunk.find(needle, at + 1)

    def find_pointers(self, target: int) -> Iterator[int]:
        """Aligned addresses in writable segments where the loaded program holds the pointer `target`."""
        for segment in self.segments:
            if segment.writable:
                begin, end = -(-segment.address // 8) * 8, segment.address + segment.size_bytes
                for start in range(begin, end - 7, _CHUNK_BYTES):
                    size_bytes = min(_CHUNK_BYTES, (end - start) // 8 * 8)
                    words = np.frombuffer(self.read(start, size_bytes), "<u8")
                    yield from (start + 8 * int(index) for index in np.flatnonzero(words == target))


def open_image(stream: BinaryIO) -> Image:
    """The program in an ELF file open for reading. Raises BinaryError if it is none we know or contradicts itself."""
    file_size_bytes = stream.seek(0, io.SEEK_END)
    try:
        machine, relative, headers = _program_headers(stream)
    except (ELFError, ValueError, OverflowError) as error:
        raise BinaryError(f"not an ELF file that can be read ({error or type(error).__name__})") from None
    for _, address, offset, size_bytes, _ in headers:
        if offset + size_bytes > file_size_bytes:
            raise BinaryError("truncated: a segment ends after the file")
        if address + size_bytes > _ADDRESS_LIMIT:
            raise BinaryError(f"a segment lies at {address:#x}, where no program can")
    segments = tuple(
        Segment(address, offset, size_bytes, bool(flags & _FLAG_EXECUTE), bool(flags & _FLAG_WRITE))
        for kind, address, offset, size_bytes, flags in headers
        if kind == "PT_LOAD"
    )
    # What is mapped often would be searched as often.
    if sum(segment.size_bytes for segment in segments) > 2 * file_size_bytes:
        raise BinaryError("its segments overlap")
    small = [
        (kind, _read_exactly(stream, offset, size_bytes))
        for kind, _, offset, size_bytes, _ in headers
        if kind in ("PT_NOTE", "PT_DYNAMIC") and size_bytes <= _LARGEST_NOTE_BYTES
    ]
    notes = tuple(note for kind, data in small if kind == "PT_NOTE" for note in _notes(data))
    none = np.empty(0, np.uint64)
    image = Image(stream, machine, segments, notes, (none, none))
    dynamic = next((data for kind, data in small if kind == "PT_DYNAMIC"), b"")
    return Image(stream, machine, segments, notes, _relocations(image, dynamic, relative))


def _program_headers(stream: BinaryIO) -> tuple[str, int, list[tuple[str, int, int, int, int]]]:
    """Machine, number of its relative relocation, and (type, address, offset, bytes of the file, flags) of segments."""
    stream.seek(0)
    elf = ELFFile(stream)
    header = elf.header
    if elf.elfclass != 64 or not elf.little_endian or header["e_machine"] not in _MACHINES:
        raise BinaryError("made for a machine that is neither x86-64 nor arm64")
    if not 0 < header["e_phnum"] <= _MOST_SEGMENTS:
        raise BinaryError(f"{header['e_phnum']} program headers: not a program")
    machine, relative = _MACHINES[header["e_machine"]]
    headers = []
    for index in range(header["e_phnum"]):
        place = header["e_phoff"] + index * header["e_phentsize"]
        entry = struct_parse(elf.structs.Elf_Phdr, stream, stream_pos=place)
        headers.append((str(entry["p_type"]), entry["p_vaddr"], entry["p_offset"], entry["p_filesz"], entry["p_flags"]))
    return machine, relative, headers


def _relocations(image: Image, dynamic: bytes, relative: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Places and values of the relative relocations; RELR ones need nothing: the file holds their values."""
    tags = dict(struct.iter_unpack("<qQ", dynamic[: len(dynamic) // 16 * 16]))
    size_bytes = tags.get(_DT_RELASZ, 0) // _RELA_BYTES * _RELA_BYTES
    table = np.frombuffer(image.read(tags[_DT_RELA], size_bytes) if _DT_RELA in tags else b"", "<u8").reshape(-1, 3)
    table = table[(table[:, 1] == relative) & (table[:, 0] < _ADDRESS_LIMIT)]
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0].astype(np.uint64), table[:, 2].astype(np.uint64)


def _notes(data: bytes) -> Iterator[Note]:
    at = 0
    while at + _NOTE_HEADER_BYTES <= len(data):
        name_bytes, description_bytes, kind = struct.unpack_from("<III", data, at)
        name_at = at + _NOTE_HEADER_BYTES
        description_at = name_at + -(-name_bytes // 4) * 4
        name = data[name_at : name_at + name_bytes].rstrip(b"\0")
        yield Note(name, kind, data[description_at : description_at + description_bytes])
        at = description_at + -(-description_bytes // 4) * 4


def _read_exactly(stream: BinaryIO, offset: int, size_bytes: int) -> bytes:
    try:
        stream.seek(offset)
        data = stream.read(size_bytes)
    except (OSError, ValueError, OverflowError) as error:
        raise BinaryError(f"cannot read {size_bytes} bytes at offset {offset}: {error}") from None
    if len(data) != size_bytes:
        raise BinaryError("truncated: it ended while it was read")
    return data
