# SPDX-License-Identifier: Apache-2.0
"""Compile a BPF source with bcc in a process of its own, and bring back only the bytecode.

bcc keeps clang in the process that compiles (well over 100 MB) and compiles against kernel headers; here a
short-lived child compiles against our own header tree (`bpf/include`) and prints an `Image` as JSON.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observe import resources
from observe.errors import HostCannotError, ObserveError
from observe.probes import kernel_types, sched
from observe.probes.cache import read_cached, write_cached

_INCLUDE = re.compile(r'\s*#include "(?P<name>[\w./-]+)"')
_TRACEFS = Path("/sys/kernel/tracing")
_INSTRUCTION_BYTES = 8
_LOAD_64_BIT_IMMEDIATE = 0x18
_PSEUDO_MAP_FD = 1


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map that programs use: what BPF_MAP_CREATE wants to know."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """Bytecode of one program; `maps` says at which instruction which map's descriptor goes."""

    name: str
    code: bytes
    maps: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Image:
    """A compiled source: independent of the process that compiled it."""

    maps: tuple[MapSpec, ...]
    programs: tuple[Program, ...]


def build(sources: Sequence[str], programs: Sequence[str], cache: Path | None = None) -> Image:
    """Compile `sources` (files of the folder bpf/, one after the other) and bring back `programs`.

    `cache`: a folder where the result is kept, by everything that it depends on. Raises HostCannotError if bcc or
    the UAPI headers are missing, ObserveError if it does not compile.
    """
    key = _cache_key(sources, programs) if cache else ""
    kept = read_cached(cache, key) if cache else None
    if kept is None:
        kept = _build_in_child(sources, programs)
        if cache:
            write_cached(cache, key, kept)
    return _image_from_json(json.loads(kept))


def _build_in_child(sources: Sequence[str], programs: Sequence[str]) -> bytes:
    command = [sys.executable, "-m", __name__, ",".join(sources), *programs]
    package = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "BCC_KERNEL_SOURCE": str(resources.folder("bpf")),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    if done.returncode == HostCannotError.exit_code:
        raise HostCannotError(said.strip())
    if done.returncode:
        reason = next((line for line in said.splitlines() if "error:" in line), said.strip()[-300:])
        raise ObserveError(f"the BPF programs do not compile: {reason}")
    return done.stdout


def _cache_key(sources: Sequence[str], programs: Sequence[str]) -> str:
    """Digest of all that the bytecode depends on: sources, headers, tracepoint formats, kernel, bcc."""
    digest = hashlib.sha256()
    folder = resources.folder("bpf")
    parts = [repr((list(sources), list(programs), platform.uname()[2:5], _uapi_include_flags()))]
    parts += [expand(folder / source) for source in sources]
    parts += [path.read_text(encoding="utf-8") for path in sorted((folder / "include").rglob("*.h"))]
    for name in programs:
        for path in sorted(_TRACEFS.glob(f"events/sched/{name}/format")):
            # The ID line changes with each boot.
            parts.append("".join(line for line in path.read_text().splitlines() if not line.startswith("ID:")))
    for library in [*sorted(Path("/usr/lib").glob("*/libbcc.so*")), Path("/usr/include/linux/bpf.h")]:
        if library.exists():
            parts.append(f"{library} {library.stat().st_size} {library.stat().st_mtime_ns}")
    for part in parts:
        digest.update(part.encode() + b"\0")
    return f"programs-{digest.hexdigest()[:32]}"


def expand(path: Path) -> str:
    """The source with our own includes put in place: bcc rewrites map accesses in the main file only."""
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include:
            lines += [expand(path.parent / include["name"]), f'#line {number + 1} "{path.name}"']
        else:
            lines.append(line)
    return "\n".join(lines)


def _uapi_include_flags() -> list[str]:
    flags = ["-I/usr/include"]
    # Debian and Ubuntu keep <asm/…> in a folder named by architecture.
    flags += [
        f"-I{folder}" for folder in sorted(Path("/usr/include").glob("*-linux-gnu*")) if (folder / "asm").is_dir()
    ]
    return flags


def _kernel_flags(sources: Sequence[str]) -> list[str]:
    """What a source must know of the running kernel."""
    if sched.SOURCE not in sources:
        return []
    offsets = sched.kernel_offsets(kernel_types.VMLINUX.read_bytes())
    return [f"-D{name}={value}" for name, value in offsets.items()]


def _compile(sources: Sequence[str], programs: Sequence[str]) -> Image:
    try:
        from bcc import BPF, lib  # noqa: PLC0415 - only this child may load clang
    except ImportError as error:
        raise HostCannotError(
            f"bcc for {sys.executable} is missing ({error}): install the distribution's package python3-bpfcc"
        ) from None
    _declare(lib)
    text = "\n".join(expand(resources.folder("bpf") / source) for source in sources)
    module = BPF(text=text, cflags=[*_uapi_include_flags(), *_kernel_flags(sources)])
    maps = {}
    for index in range(lib.bpf_num_tables(module.module)):
        maps[lib.bpf_table_fd_id(module.module, index)] = MapSpec(
            name=lib.bpf_table_name(module.module, index).decode(),
            type=lib.bpf_table_type_id(module.module, index),
            key_bytes=lib.bpf_table_key_size_id(module.module, index),
            value_bytes=lib.bpf_table_leaf_size_id(module.module, index),
            max_entries=lib.bpf_table_max_entries_id(module.module, index),
            flags=lib.bpf_table_flags_id(module.module, index),
        )
    compiled = [_program(name, module.dump_func(name.encode()), maps) for name in programs]
    return Image(tuple(maps.values()), tuple(compiled))


def _declare(lib: Any) -> None:
    """Types of functions of libbcc (bcc/src/cc/bcc_common.h) that bcc's own Python does not use."""
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_num_tables.restype = ctypes.c_size_t
    for function in ("fd_id", "key_size_id", "leaf_size_id", "name"):
        entry = getattr(lib, f"bpf_table_{function}")
        entry.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        entry.restype = ctypes.c_size_t
    lib.bpf_table_fd_id.restype = ctypes.c_int
    lib.bpf_table_name.restype = ctypes.c_char_p


def _program(name: str, code: bytes, maps: dict[int, MapSpec]) -> Program:
    places = []
    for index in range(len(code) // _INSTRUCTION_BYTES):
        at = index * _INSTRUCTION_BYTES
        if code[at] == _LOAD_64_BIT_IMMEDIATE and code[at + 1] >> 4 == _PSEUDO_MAP_FD:
            descriptor = int.from_bytes(code[at + 4 : at + 8], "little")
            places.append((index, maps[descriptor].name))
    return Program(name, code, tuple(places))


def _image_to_json(image: Image) -> dict[str, Any]:
    return {
        "maps": [[getattr(spec, name) for name in MapSpec.__slots__] for spec in image.maps],
        "programs": [
            [p.name, base64.b64encode(p.code).decode(), [list(place) for place in p.maps]] for p in image.programs
        ],
    }


def _image_from_json(data: dict[str, Any]) -> Image:
    return Image(
        tuple(MapSpec(*fields) for fields in data["maps"]),
        tuple(
            Program(name, base64.b64decode(code), tuple((index, spec) for index, spec in places))
            for name, code, places in data["programs"]
        ),
    )


def _main() -> int:
    sources, *programs = sys.argv[1:]
    output = os.dup(1)
    os.dup2(2, 1)  # bcc and clang may print on standard output
    try:
        image = _compile(sources.split(","), programs)
    except HostCannotError as error:
        print(error, file=sys.stderr)
        return HostCannotError.exit_code
    with os.fdopen(output, "w") as stream:
        json.dump(_image_to_json(image), stream)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
