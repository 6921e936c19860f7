# SPDX-License-Identifier: Apache-2.0
"""Read a Go program, stripped or not: its Go version, its build id, and where each function lies in the file."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from observe.probes.elf import BinaryError, Image, Note, open_image
from observe.probes.pclntab import Table, read_table

__all__ = ["BinaryError", "Function", "GoBinary", "compile_pattern", "open_binary", "read_binary"]

_BUILD_INFO_MAGIC = b"\xff Go buildinf:"
_BUILD_INFO_ALIGNMENT = 16
_BUILD_INFO_BYTES = 32
_FLAG_BIG_ENDIAN, _FLAG_INLINE = 1, 2
_LONGEST_VERSION_BYTES = 256
_VERSION_LENGTH_BYTES = 10  # of a varint
#: First minor version of Go 1 that passes arguments in registers.
_REGISTER_ABI_SINCE = {"x86_64": 17, "aarch64": 18}

_NT_GNU_BUILD_ID, _NT_GO_BUILD_ID = 3, 4
_HASHED_BYTES = 1 << 20
#: Larger code is no function but an entry that is missing from the table.
_LARGEST_FUNCTION_BYTES = 1 << 20
#: Tells github.com/docker/docker/daemon from most other packages.
_ROOT_BYTES = 28


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the program. `size_bytes` includes the padding up to the next function."""

    name: str
    address: int
    file_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class GoBinary:
    """A Go program, open. `machine` is "x86_64" or "aarch64"; `go_version` is like "go1.19.8"."""

    go_version: str
    build_id: str
    machine: str
    register_abi: bool
    image: Image
    table: Table

    def __len__(self) -> int:
        """Number of functions."""
        return len(self.table)

    def named(self, name: str) -> tuple[Function, ...]:
        """The functions of exactly this name, by address: normally one or none."""
        wanted = name.encode()
        found = self.table.starting_with((wanted,))
        return tuple(self._function(index, name) for index, name in found if name == wanted)

    def matching(self, patterns: Iterable[str]) -> tuple[Function, ...]:
        """The functions that match any of the patterns (see `compile_pattern`), by address."""
        globs = {compile_pattern(pattern) for pattern in patterns}
        # Most names fail the first test, which a few short beginnings make cheap.
        roots = tuple({glob.beginning[:_ROOT_BYTES] for glob in globs})
        literal = {glob.beginning for glob in globs if not glob.expression}
        others: dict[bytes, list[Pattern]] = {}
        for glob in globs:
            if glob.expression:
                others.setdefault(glob.beginning, []).append(glob)
        beginnings = tuple(others)

        def is_wanted(name: bytes) -> bool:
            if name in literal:
                return True
            if not name.startswith(beginnings):
                return False
            begun = (others[beginning] for beginning in beginnings if name.startswith(beginning))
            return any(glob.match(name) for glob in chain.from_iterable(begun))

        found = self.table.starting_with(roots)
        return tuple(self._function(index, name) for index, name in found if is_wanted(name))

    def code(self, function: Function) -> bytes:
        """The instructions of a function. Raises BinaryError if its size is not that of a function."""
        if not 0 < function.size_bytes <= _LARGEST_FUNCTION_BYTES:
            raise BinaryError(f"{function.size_bytes} bytes are not the size of a function")
        return self.image.read(function.address, function.size_bytes)

    def _function(self, index: int, name: bytes) -> Function:
        address, end = (int(value) for value in self.table.entries[index : index + 2])
        text = name.decode(errors="backslashreplace")
        return Function(text, address, self.image.file_offset(address), end - address)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.image.stream.close()


def open_binary(path: Path) -> GoBinary:
    """Open a Go program (use `with`). `path` may be /proc/PID/exe of a file that was deleted or replaced.

    Raises BinaryError, with the path and the reason, if it cannot be read, is not Go, or is damaged.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise BinaryError(f"{path}: cannot be read ({error.strerror}), so its functions cannot be timed") from None
    try:
        return read_binary(stream)
    except BinaryError as error:
        stream.close()
        raise BinaryError(f"{path}: {error}, so its functions cannot be timed") from None
    except BaseException:
        stream.close()
        raise


def read_binary(stream: BinaryIO) -> GoBinary:
    """A Go program in an open file. Raises BinaryError with the reason alone."""
    image = open_image(stream)
    version = _go_version(image)
    table = read_table(image)
    return GoBinary(
        version, _build_id(image), image.machine, _register_abi(version, table, image.machine), image, table
    )


@dataclass(frozen=True, slots=True)
class Pattern:
    """A glob of Go symbols. Most are literal, most names fail at the beginning: an expression is the last resort."""

    #: What every match begins with; all of it, if there is no `expression`.
    beginning: bytes
    expression: str

    def match(self, name: bytes) -> bool:
        """Whether a whole name, in UTF-8, is meant."""
        if not self.expression:
            return name == self.beginning
        return name.startswith(self.beginning) and _compiled(self.expression).match(name) is not None


@cache
def compile_pattern(pattern: str) -> Pattern:
    """A glob of Go symbols.

    As in fnmatch (case matters), except that what every Go symbol may contain is literal: the star of a pointer
    receiver, "(*Daemon)", and the dots of a generic one, "[...]".
    """
    protected = pattern.replace("[...]", "[[]...]").replace("(*", "([*]")
    # What stands for itself only is in brackets of one character.
    literal = re.sub(r"\[([*[])\]", "\0\\1", protected)
    prefix = re.split(r"(?<!\0)[*?[]", literal, maxsplit=1)[0]
    return Pattern(prefix.replace("\0", "").encode(), "" if prefix == literal else fnmatch.translate(protected))


@cache
def _compiled(expression: str) -> re.Pattern[bytes]:
    return re.compile(expression.encode())


def _go_version(image: Image) -> str:
    """Version that built it, from .go.buildinfo: inline from Go 1.18, a pointer to a Go string before."""
    for segment in image.segments:
        for address in image.find(_BUILD_INFO_MAGIC, segment) if segment.writable else ():
            if address % _BUILD_INFO_ALIGNMENT == 0:
                return _version_at(image, address)
    raise BinaryError("no Go build information in it: not a Go program, or one of before Go 1.13")


def _version_at(image: Image, address: int) -> str:
    header = image.read(address, _BUILD_INFO_BYTES)
    pointer_bytes, flags = header[len(_BUILD_INFO_MAGIC) : len(_BUILD_INFO_MAGIC) + 2]
    if flags & _FLAG_INLINE:
        varint = image.read(address + _BUILD_INFO_BYTES, _VERSION_LENGTH_BYTES)
        length, used = _varint(varint)
        start = address + _BUILD_INFO_BYTES + used
    elif pointer_bytes == 8 and not flags & _FLAG_BIG_ENDIAN:
        string = image.read(int.from_bytes(header[16:24], "little"), 16)
        start, length = int.from_bytes(string[:8], "little"), int.from_bytes(string[8:], "little")
    else:
        raise BinaryError("its Go build information is for another machine")
    if not 0 < length <= _LONGEST_VERSION_BYTES:
        raise BinaryError(f"its Go version has {length} bytes")
    version = image.read(start, length).decode(errors="backslashreplace")
    if not version.isprintable():
        raise BinaryError("its Go version is not text")
    return version


def _varint(data: bytes) -> tuple[int, int]:
    """(value, bytes used) of an unsigned varint; (0, 0) if it does not end."""
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, index + 1
    return 0, 0


def _register_abi(version: str, table: Table, machine: str) -> bool:
    """Whether arguments are in registers. Raises BinaryError if version and table are not of the same Go."""
    found = re.search(r"\bgo1\.(\d{1,3})(?!\d)", version)
    if found is None:
        raise BinaryError(f"its Go version is {version!r}: not a release")
    minor = int(found[1])
    layout = table.layout
    if not layout.oldest_minor <= minor <= (layout.newest_minor or minor):
        raise BinaryError(f"its Go version is {version} but its function table is not")
    return minor >= _REGISTER_ABI_SINCE[machine]


def _build_id(image: Image) -> str:
    """GNU build id in hex, else Go's own, else a hash of the beginning and the size."""
    for name, kind in ((b"GNU", _NT_GNU_BUILD_ID), (b"Go", _NT_GO_BUILD_ID)):
        for note in image.notes:
            if (note.name, note.type) == (name, kind) and note.description:
                return _note_text(note)
    stream = image.stream
    size_bytes = stream.seek(0, 2)
    stream.seek(0)
    return hashlib.sha256(stream.read(_HASHED_BYTES) + size_bytes.to_bytes(8, "little")).hexdigest()


def _note_text(note: Note) -> str:
    return note.description.hex() if note.name == b"GNU" else note.description.decode(errors="backslashreplace")
