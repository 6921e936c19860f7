# SPDX-License-Identifier: Apache-2.0
"""Go programs for tests, made of nothing: small ELF files with code, function table, module data and build info."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TEXT_OFFSET = 0x1000
#: Between the start of the text and the first function, as the C start-up code of externally linked programs.
TEXT_PADDING = 0x20
MACHINES = {"x86_64": (62, 1, 8), "aarch64": (183, 4, 1027)}  # e_machine, quantum, relative relocation

#: A function that returns at once, per machine.
RETURN = {"x86_64": b"\xc3", "aarch64": bytes.fromhex("c0035fd6")}


def assemble(*parts: str | tuple[str, str]) -> bytes:
    """x86-64 code from hex and jumps: ("0f86", "label") with a 32-bit distance; ("", "label") sets a label."""
    at, labels = 0, {}
    for part in parts:
        if isinstance(part, str):
            at += len(bytes.fromhex(part))
        elif part[0]:
            at += len(bytes.fromhex(part[0])) + 4
        else:
            labels[part[1]] = at
    code = b""
    for part in parts:
        if isinstance(part, str):
            code += bytes.fromhex(part)
        elif part[0]:
            code += bytes.fromhex(part[0])
            code += struct.pack("<i", labels.get(part[1], 0x100000) - len(code) - 4)
    return code


CALL, JMP, JBE, JB, JE = "e8", "e9", "0f86", "0f82", "0f84"
START = ("", "start")
#: What a check of the stack jumps to: spill, runtime.morestack, reload, and again from the start.
MORESTACK = (("", "grow"), "4889442408", (CALL, "morestack"), "488b442408", (JMP, "start"))
#: Register ABI, small frame: cmp rsp,[r14+0x10]; jbe; sub rsp,0x18; add rsp,0x18; ret.
SMALL = assemble(START, "493b6610", (JBE, "grow"), "4883ec18", "4883c418", "c3", *MORESTACK, "cc" * 3)


@dataclass
class Memory:
    """Bytes at an address; pointers become relocations where the program is position-independent."""

    address: int
    pie: bool
    padding: bytes = b"\0"
    content: bytearray = field(default_factory=bytearray)
    relocations: list[tuple[int, int]] = field(default_factory=list)

    def here(self, alignment: int = 1) -> int:
        """Address of what comes next."""
        self.content += self.padding * (-(self.address + len(self.content)) % alignment)
        return self.address + len(self.content)

    def add(self, data: bytes, alignment: int = 1) -> int:
        """Append; returns the address."""
        address = self.here(alignment)
        self.content += data
        return address

    def add_pointers(self, *values: int, alignment: int = 8) -> int:
        """Append pointers; returns the address."""
        address = self.here(alignment)
        for value in values:
            if self.pie:
                self.relocations.append((self.here(), value))
            self.content += struct.pack("<Q", 0 if self.pie else value)
        return address


def minor_of(version: str) -> int:
    """go1.19.8 → 19."""
    return int(version.split(".")[1])


def build(
    functions: Mapping[str, bytes] | Sequence[tuple[str, bytes]],
    *,
    version: str = "go1.19.8",
    machine: str = "x86_64",
    pie: bool = False,
    notes: Sequence[tuple[bytes, int, bytes]] = ((b"GNU", 3, bytes(range(20))),),
    decoy: bytes = b"",
) -> bytes:
    """An ELF file of a Go program with these functions, in this order. `decoy` stands before its function table."""
    pairs = list(functions.items()) if isinstance(functions, Mapping) else list(functions)
    minor = minor_of(version)
    e_machine, quantum, relative = MACHINES[machine]
    base = 0 if pie else 0x400000
    text = Memory(base + TEXT_OFFSET, pie, b"\xcc" if machine == "x86_64" else b"\0")
    # From 1.26 on the text starts where the first function does.
    if minor < 26:
        text.add(bytes(TEXT_PADDING))
    entries = [text.add(code, 16) for _, code in pairs] + [text.here(16)]
    text_start = base + TEXT_OFFSET + (0 if minor < 18 or minor >= 26 else TEXT_PADDING // 2)

    data = Memory(base + TEXT_OFFSET + -(-len(text.content) // 0x1000) * 0x1000, pie)
    data.add(decoy, 16)
    data.here(32)
    module = table_15(data, pairs, entries, quantum) if minor < 16 else None
    if module is None:
        module = table_16(data, pairs, entries, quantum, minor, text_start=text_start)
    data.add_pointers(*module)
    data.add(bytes(64))
    add_build_info(data, version, minor)
    dynamic = 0
    if pie:
        rela = b"".join(struct.pack("<QQQ", place, relative, value) for place, value in data.relocations)
        rela_at = data.add(rela, 8)
        dynamic = data.add(struct.pack("<6Q", 7, rela_at, 8, len(rela), 0, 0), 8)
    note = b"".join(
        struct.pack("<III", len(name) + 1, len(text_), kind) + pad(name + b"\0") + pad(text_)
        for name, kind, text_ in notes
    )
    note_at = data.add(note, 8)

    data_offset = data.address - base
    data_bytes = len(data.content)
    headers = [
        (1, 5, TEXT_OFFSET, text.address, len(text.content)),
        (1, 6, data_offset, data.address, data_bytes),
        (4, 4, note_at - base, note_at, len(note)),
    ]
    if pie:
        headers.append((2, 6, dynamic - base, dynamic, 48))
    elf = bytearray(b"\x7fELF\x02\x01\x01" + bytes(9))
    elf += struct.pack(
        "<HHIQQQIHHHHHH", 3 if pie else 2, e_machine, 1, entries[0], 64, 0, 0, 64, 56, len(headers), 64, 0, 0
    )
    for kind, flags, offset, address, size in headers:
        elf += struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, size, 0x1000)
    elf += bytes(TEXT_OFFSET - len(elf)) + text.content
    elf += bytes(data_offset - len(elf)) + data.content
    return bytes(elf)


def pad(data: bytes) -> bytes:
    """To a multiple of four."""
    return data + bytes(-len(data) % 4)


def table_15(data: Memory, pairs: Sequence[tuple[str, bytes]], entries: list[int], quantum: int) -> list[int]:
    """Table of Go 1.2 to 1.15, names among records; returns the module data."""
    start = data.add(struct.pack("<IHBBQ", 0xFFFFFFFB, 0, quantum, 8, len(pairs)), 32)
    at = 16 + 16 * len(pairs) + 8
    records = []
    for name, _ in pairs:
        records.append(at)
        at += -(-(16 + len(name.encode()) + 1) // 8) * 8
    for entry, record in zip(entries, records, strict=False):
        data.add_pointers(entry)
        data.add(struct.pack("<Q", record))
    data.add_pointers(entries[-1])
    for (name, _), entry, record in zip(pairs, entries, records, strict=False):
        data.add_pointers(entry)
        data.add(struct.pack("<iI", record + 16, 0) + name.encode() + b"\0")
        data.here(8)
    size = data.here(8) - start
    count = len(pairs) + 1
    return [start, size, size, start + 16, count, count, 0, 0, 0, 0, entries[0], entries[-1], entries[0], 0, *[0] * 12]


def table_16(
    data: Memory, pairs: Sequence[tuple[str, bytes]], entries: list[int], quantum: int, minor: int, *, text_start: int
) -> list[int]:
    """Table of Go 1.16 and later; returns the module data."""
    magic = 0xFFFFFFFA if minor < 18 else 0xFFFFFFF0 if minor < 20 else 0xFFFFFFF1
    names, names_at = b"\0", []
    for name, _ in pairs:
        names_at.append(len(names))
        names += name.encode() + b"\0"
    header_bytes = 8 + 8 * (7 if minor < 18 else 8)
    names_offset = -(-header_bytes // 32) * 32 if minor < 26 else header_bytes
    gap = -(-len(names) // 32) * 32
    # Names, then four other parts, of which only the last, the functions, is more than a place.
    offsets = [names_offset, *(names_offset + gap + 32 * index for index in range(4))]
    start = data.add(struct.pack("<IHBBQQ", magic, 0, quantum, 8, len(pairs), 3), 32 if minor < 26 else 8)
    if 18 <= minor < 26:
        data.add_pointers(text_start)
    elif minor >= 26:
        data.add(bytes(8))
    data.add(struct.pack("<5Q", *offsets))
    data.add(bytes(start + names_offset - data.here()) + names)
    data.add(bytes(start + offsets[4] - data.here()))
    functab = data.here()
    wide = minor < 18
    width = 8 if wide else 4
    records_at = (2 * len(pairs) + 1) * width
    records_at += -records_at % 8
    for index, entry in enumerate(entries[:-1]):
        add_entry(data, entry, text_start, wide=wide)
        data.add((records_at + 16 * index).to_bytes(width, "little"))
    add_entry(data, entries[-1], text_start, wide=wide)
    data.here(8)
    data.add(bytes(functab + records_at - data.here()))
    for entry, name_at in zip(entries, names_at, strict=False):
        add_entry(data, entry, text_start, wide=wide)
        data.add(struct.pack("<i", name_at) + bytes(12 - width))
    size = data.here() - functab
    count = len(pairs) + 1
    return [
        *(start, start + names_offset, len(names), len(names)),
        *(start + offsets[1], 1, 1, start + offsets[2], 1, 1, start + offsets[3], 1, 1),
        *(functab, size, size, functab, count, count, 0, entries[0], entries[-1], text_start, entries[-1], 0, 0),
    ]


def add_entry(data: Memory, entry: int, text_start: int, *, wide: bool) -> None:
    """An address (up to Go 1.17) or an offset from the text's start."""
    if wide:
        data.add_pointers(entry, alignment=1)
    else:
        data.add(struct.pack("<I", entry - text_start))


def add_build_info(data: Memory, version: str, minor: int) -> None:
    """The .go.buildinfo of that version: inline from Go 1.18."""
    text = version.encode()
    if minor >= 18:
        data.add(b"\xff Go buildinf:\x08\x02" + bytes(16) + bytes([len(text)]) + text + b"\0", 16)
        return
    string = data.add(text, 8)
    header = data.add_pointers(string)
    data.add(struct.pack("<Q", len(text)))
    data.add(b"\xff Go buildinf:\x08\0", 16)
    data.add_pointers(header, 0)


def fuzz(path: Path, start: int, end: int, rounds: int) -> tuple[int, int]:
    """Read damaged copies in a process with limits: how many were read, how many refused. Nothing else may happen."""
    script = Path(__file__).parent / "workloads" / "fuzz_gobinary.py"
    command = [sys.executable, str(script), str(path), str(start), str(end), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    read_count, refused_count = map(int, done.stdout.split())
    return read_count, refused_count
