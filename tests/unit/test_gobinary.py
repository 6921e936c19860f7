# SPDX-License-Identifier: Apache-2.0
"""The reader of Go binaries: every format, and nothing believed that contradicts itself."""

from __future__ import annotations

import io
import struct
import warnings
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import gofiles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe.errors import ObserveError
from observe.probes import elf
from observe.probes.gobinary import BinaryError, compile_pattern, open_binary, read_binary

VERSIONS = ("go1.13.1", "go1.15.15", "go1.16.7", "go1.17.13", "go1.18.1", "go1.19.8", "go1.20", "go1.25.3", "go1.27.1")
FUNCTIONS = {
    "runtime.text": b"\x90" * 5,
    "github.com/docker/docker/daemon.(*Daemon).Mount": b"\x90" * 33,
    "github.com/docker/docker/daemon.(*Daemon).createSpec.func1": b"\x90" * 7,
    "github.com/docker/docker/daemon.withMounts.func1": b"\x90" * 16,
    "sync/atomic.(*Pointer[...]).Load": b"\x90" * 90,
    "type:.eq.naïve": b"\x90",
}
MOUNT = "github.com/docker/docker/daemon.(*Daemon).Mount"


def read(data: bytes):
    return read_binary(io.BytesIO(data))


def names(functions) -> list[str]:
    return [function.name for function in functions]


@pytest.mark.parametrize("pie", [False, True])
@pytest.mark.parametrize("machine", gofiles.MACHINES)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_format_is_read(version, machine, pie):
    data = gofiles.build(FUNCTIONS, version=version, machine=machine, pie=pie)
    binary = read(data)
    assert (binary.go_version, binary.machine, len(binary)) == (version, machine, len(FUNCTIONS))
    assert binary.build_id == bytes(range(20)).hex()
    found = binary.matching(["*"])
    assert names(found) == list(FUNCTIONS)
    for function, following in pairwise(found):
        assert function.address + function.size_bytes == following.address
    for function in found:
        code = FUNCTIONS[function.name]
        assert data[function.file_offset :].startswith(code)
        assert binary.code(function)[: len(code)] == code
        assert function.address - function.file_offset == (0 if pie else 0x400000)
        assert binary.named(function.name) == (function,)


@pytest.mark.parametrize(
    ("version", "machine", "in_registers"),
    [
        ("go1.16.7", "x86_64", False),
        ("go1.17", "x86_64", True),
        ("go1.17", "aarch64", False),
        ("go1.18rc1", "aarch64", True),
        ("devel go1.27-0123abc", "x86_64", True),
    ],
)
def test_arguments_are_in_registers_from_a_version_on(version, machine, in_registers):
    release = version.split()[-1].split("-")[0].replace("rc1", "")
    data = gofiles.build(FUNCTIONS, version=release, machine=machine)
    if release != version:
        old = bytes([len(release)]) + release.encode()
        at = data.index(old)
        new = bytes([len(version)]) + version.encode()
        # The version is followed by free space: the note comes last, far enough for these few bytes.
        data = data[:at] + new + data[at + len(new) :]
    assert read(data).register_abi is in_registers


def test_a_star_after_a_bracket_is_a_pointer_receiver_and_generic_dots_are_dots():
    binary = read(gofiles.build(FUNCTIONS))
    daemon = "github.com/docker/docker/daemon."
    assert names(binary.matching([MOUNT])) == [MOUNT]
    assert names(binary.matching([f"{daemon}[Ww]ithMounts.func[0-9]"])) == [f"{daemon}withMounts.func1"]
    assert names(binary.matching(["*.(*Pointer[...]).Lo?d"])) == ["sync/atomic.(*Pointer[...]).Load"]
    assert names(binary.matching([f"{daemon}(**).Mount"])) == [MOUNT]
    assert names(binary.matching([f"{daemon}(*Demon).Mount", f"{daemon}(*D).Mount", "mount", MOUNT[:-1]])) == []
    assert names(binary.matching(["*naïve"])) == ["type:.eq.naïve"]
    assert binary.matching([]) == ()
    assert binary.named("no.such") == ()
    # Unlike in fnmatch, a pointer receiver of another type does not match.
    other = "github.com/docker/docker/daemon.(*OtherDaemon).Mount"
    assert fnmatchcase(other, MOUNT)
    assert not compile_pattern(MOUNT).match(other.encode())


@given(
    st.lists(st.text("a(*[].", max_size=6), max_size=4),
    st.lists(st.text("a(*[].", min_size=1, max_size=6), min_size=1, max_size=9, unique=True),
)
def test_many_patterns_find_what_each_finds(patterns, symbols):
    binary = read(gofiles.build([(name, b"\x90") for name in symbols]))
    expected = [name for name in symbols if any(compile_pattern(pattern).match(name.encode()) for pattern in patterns)]
    assert names(binary.matching(patterns)) == expected


def test_two_functions_of_one_name_are_both_found():
    binary = read(gofiles.build([("main.f", b"\x90"), ("main.f", b"\x90\x90")]))
    assert len(binary.named("main.f")) == 2


@pytest.mark.parametrize(
    ("notes", "build_id"),
    [
        ([(b"Go", 4, b"abc/def"), (b"GNU", 3, b"\x01\xff")], "01ff"),
        ([(b"GNU", 1, b"\x09" * 16), (b"Go", 4, b"abc/def")], "abc/def"),
    ],
)
def test_the_build_id_is_the_linkers_else_gos(notes, build_id):
    assert read(gofiles.build(FUNCTIONS, notes=notes)).build_id == build_id


def test_without_a_build_id_beginning_and_size_tell_files_apart():
    data = gofiles.build({"main.large": b"\x90" * (2 << 20)}, notes=())
    one, longer = read(data).build_id, read(data + b"\0").build_id
    changed = bytearray(data)
    changed[gofiles.TEXT_OFFSET] ^= 1
    assert len({one, longer, read(bytes(changed)).build_id}) == 3
    assert one == read(data).build_id


def test_build_info_is_aligned():
    """The linker aligns it: so it is told from the same text in data."""
    misplaced = b"\0\xff Go buildinf:\x08\x02" + bytes(16) + b"\x06go1.20"
    assert read(gofiles.build(FUNCTIONS, decoy=misplaced)).go_version == "go1.19.8"


def test_where_chunks_end_makes_no_difference(monkeypatch):
    for pie in (False, True):
        data = gofiles.build(FUNCTIONS, version="go1.16.7", pie=pie)
        expected = read(data).matching(["*"])
        for chunk_bytes in (8, 56):
            monkeypatch.setattr(elf, "_CHUNK_BYTES", chunk_bytes)
            assert read(data).matching(["*"]) == expected


def test_a_file_that_is_cut_while_it_is_read_is_refused():
    stream = io.BytesIO(gofiles.build(FUNCTIONS))
    binary = read_binary(stream)
    (function,) = binary.named(MOUNT)
    stream.truncate(function.file_offset + 1)
    with pytest.raises(BinaryError, match="truncated"):
        binary.code(function)


def test_a_copy_of_a_table_that_the_runtime_does_not_use_is_passed_over():
    """A Go program may hold another one, as data."""
    other = gofiles.build({"wrong.f": b"\x90" * 8}, version="go1.19.8")
    start = other.index(struct.pack("<I", 0xFFFFFFF0))
    binary = read(gofiles.build(FUNCTIONS, version="go1.19.8", decoy=bytes(64) + other[start:]))
    assert names(binary.matching(["*"])) == list(FUNCTIONS)


def test_a_file_full_of_lookalikes_is_refused():
    """What is tried of each look-alike costs a search of the file: their number is bounded."""
    header = struct.pack("<IHBB", 0xFFFFFFF0, 0, 1, 8)
    assert len(read(gofiles.build(FUNCTIONS, decoy=header * 20))) == len(FUNCTIONS)
    for lookalike in (header, b"\0" + header[1:]):
        with pytest.raises(BinaryError, match="function table"):
            read(gofiles.build(FUNCTIONS, decoy=lookalike * 100))
    decoy = bytes(8 * 100)
    data = gofiles.build(FUNCTIONS, decoy=decoy)
    pointer = struct.pack("<Q", data.index(header) + 0x400000)
    assert read(gofiles.build(FUNCTIONS, decoy=decoy[:-80] + pointer * 10)).build_id == read(data).build_id
    with pytest.raises(BinaryError, match="corrupt function table"):
        read(gofiles.build(FUNCTIONS, decoy=pointer * 100))


def test_a_file_that_is_mapped_over_and_over_is_refused():
    data = bytearray(gofiles.build(FUNCTIONS, pie=True))
    # Three of its four program headers map all of the file.
    for index in range(3):
        struct.pack_into("<IIQQQQQ", data, 64 + 56 * index, 1, 6, 0, index << 32, 0, len(data), len(data))
    with pytest.raises(BinaryError, match="overlap"):
        read(bytes(data))


def test_the_file_of_a_running_program_is_read_though_it_was_replaced(tmp_path):
    path = tmp_path / "engine"
    path.write_bytes(gofiles.build({"old.f": b"\x90"}))
    with path.open("rb") as held:
        path.unlink()
        path.write_bytes(gofiles.build({"new.f": b"\x90"}))
        with open_binary(Path(f"/proc/self/fd/{held.fileno()}")) as binary:
            assert names(binary.matching(["*"])) == ["old.f"]
        assert binary.image.stream.closed


def test_errors_name_the_file_and_leave_none_open(tmp_path):
    path = tmp_path / "engine"
    path.write_bytes(b"#!/bin/sh\n")
    for bad in (path, tmp_path / "missing", tmp_path):
        # A file that nobody closed warns when it is collected.
        with warnings.catch_warnings(record=True, action="always") as left, pytest.raises(BinaryError) as caught:
            open_binary(bad)
        assert left == []
        assert str(caught.value).startswith(f"{bad}: ")
        assert str(caught.value).endswith("cannot be timed")
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, ObserveError)


def changed(data: bytes, at: int, value: bytes) -> bytes:
    assert data[at : at + len(value)] != value
    return data[:at] + value + data[at + len(value) :]


class Parts:
    """Where the parts of a file of Go 1.19, not position-independent, are."""

    def __init__(self):
        self.data = gofiles.build(FUNCTIONS)
        self.file = 0
        self.table = self.data.index(struct.pack("<I", 0xFFFFFFF0))
        words = struct.unpack_from("<8Q", self.data, self.table + 8)
        self.names = self.table + words[3]
        self.functab = self.table + words[7]
        self.first_record = self.functab + struct.unpack_from("<I", self.data, self.functab + 4)[0]
        address = self.table + 0x400000
        self.module = self.data.rindex(struct.pack("<Q", address))
        self.info = self.data.index(b"\xff Go buildinf:")


#: What is damaged: part, offset in it, what is written there, and the reason that must be given.
DAMAGES = {
    "magic": ("table", 0, b"\xf2", "no Go function table"),
    "padding": ("table", 4, b"\1", "no Go function table"),
    "quantum": ("table", 6, b"\4", "no Go function table"),
    "pointer size": ("table", 7, b"\4", "no Go function table"),
    "number of functions": ("table", 8, b"\xff", "functions in its header"),
    "huge number of functions": ("table", 8, b"\xff" * 8, "functions in its header"),
    "text start": ("table", 24, b"\x01", "its text elsewhere"),
    "offset of names": ("table", 32, b"\x68", "its parts elsewhere"),
    "order of parts": ("table", 40, b"\xff" * 4, "out of order"),
    "offset of functions": ("table", 64, b"\xff\xff\xff\x7f", "its parts elsewhere"),
    "module data": ("module", 0, b"\x01", "does not point to it"),
    "size of names": ("module", 16, b"\xff\xff", "run into the next part"),
    "size of functions": ("module", 14 * 8, b"\xff" * 4, "larger than any"),
    "functions past the segment": ("module", 14 * 8, b"\xff" * 3, "not all in one segment"),
    "first entry": ("module", 20 * 8, b"\x01", "first or last entry elsewhere"),
    "last entry": ("module", 21 * 8, b"\xff", "first or last entry elsewhere"),
    "order of entries": ("functab", 8, b"\xff\xff\xff\x7f", "not in order"),
    "offset of a record": ("functab", 4, b"\xff\xff\xff\xff", "record is outside"),
    "entry of a record": ("first_record", 0, b"\x01", "another entry"),
    "offset of a name": ("first_record", 4, b"\xff\xff", "name is outside"),
    "negative offset of a name": ("first_record", 4, b"\xff\xff\xff\xff", "name is outside"),
    "no build info": ("info", 0, b"\0", "no Go build information"),
    "length of the version": ("info", 32, b"\xff\xff\x7f", "Go version has"),
    "unending length": ("info", 32, b"\xff" * 10, "Go version has"),
    "text of the version": ("info", 33, b"\n", "not text"),
    "number of the version": ("info", 33, b"x", "not a release"),
    "version of another table": ("info", 33, b"go1.24", "but its function table is not"),
    "endianness": ("info", 15, b"\1", "another machine"),
    "machine": ("file", 18, b"\x03", "neither x86-64 nor arm64"),
    "class": ("file", 4, b"\1", "neither x86-64 nor arm64|not an ELF"),
    "no segments": ("file", 56, b"\0", "program headers"),
    "65,535 segments": ("file", 56, b"\xff\xff", "program headers"),
    "segment past the file": ("file", 64 + 32, b"\xff\xff", "truncated"),
    "huge segment": ("file", 64 + 56 + 32, b"\xff" * 8, "truncated"),
    "address of a segment": ("file", 64 + 16, b"\xff" * 8, "where no program can"),
    "code that is not executable": ("file", 64 + 4, b"\4", "not all in one segment with code"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_contradicts_itself_is_refused_with_the_reason(damage):
    parts = Parts()
    part, offset, value, reason = DAMAGES[damage]
    read(parts.data)
    with pytest.raises(BinaryError, match=reason):
        read(changed(parts.data, getattr(parts, part) + offset, value))


@pytest.mark.parametrize(
    ("word", "reason"), [(3, "its entries elsewhere"), (4, "functions in its header"), (10, "first or last entry")]
)
def test_the_old_format_must_agree_with_its_module_data_too(word, reason):
    data = gofiles.build(FUNCTIONS, version="go1.15.15")
    table = data.index(struct.pack("<I", 0xFFFFFFFB))
    module = data.rindex(struct.pack("<Q", table + 0x400000))
    read(data)
    with pytest.raises(BinaryError, match=reason):
        read(changed(data, module + 8 * word, bytes([data[module + 8 * word] ^ 0x40])))


def test_a_name_without_end_is_refused():
    parts = Parts()
    end = parts.names + struct.unpack_from("<Q", parts.data, parts.module + 16)[0]
    binary = read(changed(parts.data, end - 1, b"x"))
    with pytest.raises(BinaryError, match="does not end"):
        binary.matching(["*"])


def test_a_hole_in_the_table_is_no_function():
    binary = read(gofiles.build({"main.f": bytes(2 << 20), "main.g": b"\x90"}))
    (function,) = binary.named("main.f")
    with pytest.raises(BinaryError, match="not the size of a function"):
        binary.code(function)


def test_a_cut_anywhere_is_refused():
    data = gofiles.build(FUNCTIONS, pie=True)
    cuts = [*range(0, 512, 7), *range(512, len(data), 97), len(data) - 1]
    assert len(cuts) > 100
    for cut in cuts:
        with pytest.raises(BinaryError):
            read(data[:cut])


@pytest.mark.parametrize("version", ["go1.15.15", "go1.19.8", "go1.27.1"])
def test_damaged_files_are_refused_or_read_in_bounded_memory_and_time(version, tmp_path):
    path = tmp_path / "engine"
    path.write_bytes(gofiles.build(FUNCTIONS, version=version, pie=True))
    read_count, refused_count = gofiles.fuzz(path, 0, path.stat().st_size, rounds=600)
    assert read_count + refused_count == 600
    assert refused_count > 50
