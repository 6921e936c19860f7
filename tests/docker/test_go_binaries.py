# SPDX-License-Identifier: Apache-2.0
"""The reader of Go binaries on the engine's own files: against the linker's symbols, whole, and damaged."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gofiles
import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from observe.phases import load
from observe.probes.functions import wanted
from observe.probes.gobinary import open_binary
from observe.probes.instructions import disassemble
from observe.probes.pclntab import _candidates
from observe.probes.resolve import resolve, resolve_in_child
from observe.probes.sites import Refusal, find_sites

pytestmark = pytest.mark.docker

PROGRAMS = ("dockerd", "containerd", "containerd-shim-runc-v2", "runc")
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
FUNCTION_TYPE = 2


def find(program: str) -> Path:
    path = shutil.which(program)
    assert path is not None, f"{program} is not installed"
    return Path(path).resolve()


def linker_symbols(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, address, size) of every function that the linker left in .dynsym."""
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        symbols = np.frombuffer(elf.get_section_by_name(".dynsym").data(), SYMBOL)
        strings = elf.get_section_by_name(".dynstr").data()
    for symbol in symbols[(symbols["info"] & 15 == FUNCTION_TYPE) & (symbols["section"] != 0)]:
        start = int(symbol["name"])
        yield strings[start : strings.index(b"\0", start)].decode(), int(symbol["value"]), int(symbol["size"])


@pytest.mark.parametrize("program", ["dockerd", "containerd"])
def test_names_addresses_and_sizes_are_those_of_the_linker(program):
    path = find(program)
    with open_binary(path) as binary:
        ours = {(function.name, function.address): function.size_bytes for function in binary.matching(["*"])}
    known = {name for name, _ in ours}
    compared = [symbol for symbol in linker_symbols(path) if symbol[0] in known]
    if not compared:
        pytest.skip(f"{path} has no Go symbols left to compare with")
    wrong = [name for name, address, size in compared if ours.get((name, address), -1) < size]
    assert len(compared) > 10_000
    # Assembly functions may have a twin of the same name for the other ABI, of which the table has one.
    assert len(wrong) <= 5, wrong


def test_every_documented_function_of_every_program_can_be_probed():
    found: Counter[str] = Counter()
    for program in PROGRAMS:
        resolution = resolve(find(program), wanted(load()))
        assert resolution.refused == ()
        assert all(function.entry_is_emulated for function in resolution.functions)
        assert all(function.entry_sp_adjust_bytes == 0 for function in resolution.functions)
        found.update(function.key for function in resolution.functions)
    assert {"create", "create.rw_layer", "start", "start.network", "start.spec", "start.containerd_start"} <= set(found)
    assert {"start.containerd_start.shim", "start.containerd_start.runc_create"} <= set(found)


def test_a_child_answers_the_same_and_its_cache_too(tmp_path):
    path = find("dockerd")
    expected = resolve(path, wanted(load()))
    assert len(expected.functions) > 30
    for _ in range(2):
        assert resolve_in_child({"dockerd": path}, wanted(load()), tmp_path) == {"dockerd": expected}


def test_a_whole_package_is_swept_clean_and_its_sites_are_instructions():
    reasons: Counter[str] = Counter()
    with open_binary(find("dockerd")) as binary:
        functions = binary.matching(["*/docker/daemon.*"])
        for function in functions:
            code = binary.code(function)
            found = find_sites(code, function.address, binary.machine, register_abi=binary.register_abi)
            if isinstance(found, Refusal):
                reasons[found.reason.partition(" at +")[0]] += 1
                continue
            texts = {step.at: step.text for step in disassemble(code, function.address, binary.machine)}
            assert all("ret" in texts[offset] for offset in found.return_offsets)
            assert found.entry_offset > 0
            assert found.entry_offset in texts
    assert len(functions) > 500
    # Wrappers that jump to what they wrap, and functions too small to have a check, are refused for good reasons.
    assert sum(reasons.values()) < len(functions) / 3
    assert not any("do not end" in reason or "middle" in reason or "morestack" in reason for reason in reasons), reasons


def test_a_damaged_function_table_is_refused_or_read_in_bounded_memory_and_time():
    path = find("runc")
    with open_binary(path) as binary:
        header = binary.image.file_offset(next(_candidates(binary.image)))
        functions_bytes = 8 * len(binary)
    for start, end, rounds in ((header, header + 72, 60), (header, header + 32 * functions_bytes, 240)):
        read_count, refused_count = gofiles.fuzz(path, start, end, rounds)
        assert read_count + refused_count == rounds
        assert refused_count > rounds / 20
