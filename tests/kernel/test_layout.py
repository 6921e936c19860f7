# SPDX-License-Identifier: Apache-2.0
"""What C and Python must agree on: record, table of calls, numbers, names; and what compiling brings back."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from uapi import numbers

from observe import resources
from observe.errors import HostCannotError, ObserveError
from observe.model import SYSCALLS, Kind, Mark
from observe.probes import bpf, compiler, events, functions, sched
from observe.probes.attach import EventProbes
from observe.probes.compiler import Image
from observe.probes.events import CALLS, Call, Role, What, numbered_calls
from observe.probes.layout import RECORD_DTYPE, Counter

_FIELD = re.compile(r"\s*(?P<type>u8|u16|u32|u64|s16|s32|s64|char)\s+(?P<names>[^;]+);")
_NUMPY = {"u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "s16": "<i2", "s32": "<i4", "s64": "<i8"}


def source(name: str) -> str:
    return (resources.folder("bpf") / name).read_text(encoding="utf-8")


def defines(name: str, prefix: str) -> dict[str, int]:
    """Numeric #defines of a source that begin with prefix, without it."""
    found = re.findall(rf"^#define {prefix}(\w+)\s+(0x[0-9a-fA-F]+|\d+)\b", source(name), re.MULTILINE)
    return {key: int(value, 0) for key, value in found}


def dtype(name: str, struct_name: str) -> np.dtype[np.void]:
    """A C structure as numpy lays it out by C's own rules."""
    sizes = defines("record.h", "") | defines(name, "")
    body = re.search(rf"struct {struct_name} {{(.*?)^}};", source(name), re.MULTILINE | re.DOTALL)
    assert body is not None
    fields = []
    for line in body[1].splitlines():
        match = _FIELD.match(line)
        for field in match["names"].split(", ") if match else []:
            text, _, length = field.partition("[")
            length = length.rstrip("]")
            size = sizes.get(length) or int(length or 0)
            kind = f"S{size}" if match and match["type"] == "char" else _NUMPY[match["type"]]
            fields.append((text, kind) if not size or kind.startswith("S") else (text, kind, size))
    return np.dtype(fields, align=True)


def test_the_record_is_laid_out_alike() -> None:
    ours = dtype("record.h", "record")
    assert ours.names == RECORD_DTYPE.names
    assert ours.fields == RECORD_DTYPE.fields
    assert ours.itemsize == RECORD_DTYPE.itemsize


@pytest.mark.parametrize(
    ("name", "ours"), [("sched_record", sched.SCHED_RECORD_DTYPE), ("sched_file", sched.SCHED_FILE_DTYPE)]
)
def test_the_schedulers_records_are_laid_out_alike(name: str, ours: np.dtype[np.void]) -> None:
    theirs = dtype("sched.bpf.c", name)
    assert theirs.names == ours.names
    assert theirs.itemsize == ours.itemsize == sched.SCHED_RECORD_DTYPE.itemsize
    assert [theirs.fields[field][1] for field in theirs.names] == [ours.fields[field][1] for field in ours.names]


def test_a_call_is_packed_as_c_reads_it(image: Image) -> None:
    assert dtype("events.bpf.c", "call").names == ("kind", "what", "path", "path2", "detail", "flags", "fd")
    packed = Call(Kind.INOTIFY, 0, 0, What.API_CLOSE, path=1, path2=2, detail=3, flags=4, fd=5).pack()
    (row,) = np.frombuffer(packed, dtype("events.bpf.c", "call")).tolist()
    assert row == (Kind.INOTIFY, What.API_CLOSE, 1, 2, 3, 4, 5)
    (calls,) = (spec for spec in image.maps if spec.name == "calls")
    assert (calls.value_bytes, calls.key_bytes) == (len(packed), 4)
    assert calls.max_entries > max(numbered_calls())


@pytest.mark.parametrize(
    ("header", "prefix", "names"),
    [
        ("record.h", "KIND_", Kind),
        ("record.h", "MARK_", Mark),
        ("record.h", "COUNTER_", Counter),
        ("lineage.h", "ROLE_", Role),
        ("events.bpf.c", "CALL_(?!NUMBERS)", What),
    ],
)
def test_numbers_have_the_same_names(header: str, prefix: str, names: type[Kind]) -> None:
    ours = defines(header, prefix)
    assert ours
    theirs = {name.name: int(name) for name in names}
    if names is Role:  # the other roles are the programs' own
        ours = {name: value for name, value in ours.items() if name in theirs}
    elif names in (Counter, What):
        assert ours.keys() == theirs.keys()
    assert ours.items() <= theirs.items()
    assert names is not Role or ours == theirs


def test_every_counter_has_its_place(image: Image) -> None:
    assert defines("record.h", "")["COUNTERS"] == len(Counter)
    (counters,) = (spec for spec in image.maps if spec.name == "counters")
    assert (counters.max_entries, counters.value_bytes) == (len(Counter), 8)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_of_calls_are_the_kernels(machine: str) -> None:
    by_name = numbers(machine)
    api = {What.API_READ: {"read"}, What.API_WRITE: {"write"}, What.API_ACCEPT: {"accept", "accept4"}}
    api[What.API_CLOSE] = {"close"}
    for number, call in numbered_calls(machine).items():
        names = api.get(call.what, {call.kind.label})
        assert number in {by_name[name] for name in names}, call
    recorded = {call.kind for call in numbered_calls(machine).values()} & SYSCALLS
    assert recorded == {kind for kind in SYSCALLS if kind.label in by_name}


def test_no_number_is_taken_twice() -> None:
    for machine in ("x86_64", "arm64"):
        assert len(numbered_calls(machine)) == sum(getattr(call, machine) is not None for call in CALLS)


def test_every_position_is_one_that_is_copied() -> None:
    copied = {
        text.count("(regs)->") for text in source("registers.h").splitlines() if text.startswith("#define ARGUMENTS")
    }
    assert copied == {max(max(call.path, call.path2, call.detail, call.flags, call.fd) for call in CALLS)}


def test_another_machine_is_refused() -> None:
    with pytest.raises(HostCannotError, match="riscv64"):
        numbered_calls("riscv64")


def test_an_image_survives_its_journey(image: Image) -> None:
    assert compiler._image_from_json(json.loads(json.dumps(compiler._image_to_json(image)))) == image


def test_an_image_names_each_place_of_a_map(image: Image) -> None:
    names = {spec.name for spec in image.maps}
    assert {"records", "counters", "lineage", "pending", "calls", "connections"} <= names
    tracepoints = {*events.SYSCALL_TRACEPOINTS, *events.TRACEPOINTS}
    tracepoints |= {*sched.RAW_TRACEPOINTS, *sched.OPTIONAL_RAW_TRACEPOINTS}
    assert {program.name for program in image.programs} == {*tracepoints, functions.PROGRAM}
    for program in image.programs:
        places = dict(program.maps)
        assert set(places.values()) <= names
        instructions = [program.code[at : at + 8] for at in range(0, len(program.code), 8)]
        assert [i for i, code in enumerate(instructions) if code[0] == 0x18 and code[1] >> 4 == 1] == sorted(places)


def test_an_image_whose_map_is_the_wrong_one_is_refused(image: Image) -> None:
    """The kernel checks what we patch in: a program whose map fits nothing does not load."""
    wrong = [
        compiler.Program(p.name, p.code, tuple((at, "counters" if name == "records" else name) for at, name in p.maps))
        for p in image.programs
    ]
    with pytest.raises(HostCannotError, match="BPF programs"):
        EventProbes(Image(image.maps, tuple(wrong)), 4096)


def test_a_program_that_does_not_compile_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(Path(compiler.__file__).parents[1], tmp_path / "observe")
    shutil.copytree(resources.folder("bpf"), tmp_path / "bpf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "observe" / "probes" / "compiler.py"))
    header = tmp_path / "bpf" / "lineage.h"
    text = header.read_text(encoding="utf-8")
    header.write_text(text.replace("ROLE_CHILD;", "ROLE_CHILDREN;", 1), encoding="utf-8")
    line = text[: text.index("ROLE_CHILD;")].count("\n") + 1
    with pytest.raises(ObserveError, match=rf"the BPF programs do not compile: lineage\.h:{line}:.*ROLE_CHILDREN"):
        compiler.build([events.SOURCE], ["sys_enter"])


def test_a_verifiers_refusal_is_told() -> None:
    # An exit and nothing before it: the return value was never set.
    with pytest.raises(OSError, match="R0 !read_ok"):
        bpf.program_load(bpf.PROG_TYPE_TRACEPOINT, "broken", bytes.fromhex("9500000000000000"))


def test_maps_set_look_up_and_delete(image: Image) -> None:
    with EventProbes(image, 4096) as probes:
        lineage = probes._maps["lineage"]
        key = struct.pack("<I", 1)
        with pytest.raises(FileNotFoundError):
            bpf.map_lookup(lineage, key, 4)
        bpf.map_update(lineage, key, struct.pack("<I", 7))
        with pytest.raises(FileExistsError):
            bpf.map_update(lineage, key, struct.pack("<I", 8), bpf.NO_EXIST)
        assert struct.unpack("<I", bpf.map_lookup(lineage, key, 4)[:4]) == (7,)
        bpf.map_delete(lineage, key)
        with pytest.raises(FileNotFoundError):
            bpf.map_delete(lineage, key)
