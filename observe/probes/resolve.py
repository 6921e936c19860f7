# SPDX-License-Identifier: Apache-2.0
"""From names of Go functions to the places in a file where to probe them.

Reading a large binary takes over 100 MB for a moment: `resolve_in_child` does it in a short-lived child process
and keeps the answer in a cache. A kept answer is believed only while the code it is about is byte for byte the
same in the file at hand, whatever its build id says: a probe in a wrong place kills the program.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from observe.errors import ObserveError
from observe.probes.cache import read_cached, write_cached

if TYPE_CHECKING:
    from observe.probes.gobinary import Function, GoBinary
    from observe.probes.sites import Sites

#: Part of the cache's key: changes whenever the same file would be resolved differently.
_READER_VERSION = 2
#: The beginning of an ELF file has its layout and, where linkers put it, its build id.
_HEAD_BYTES = 64 << 10
_CHILD_SECONDS = 60
#: Address space; the largest engine takes a third of it.
_CHILD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ResolvedFunction:
    """A function and where to probe it; all offsets are in the file. See `observe.probes.sites.Sites`.

    `pattern` is the index of the first pattern of `key` that matches the name; the function is `size_bytes` from
    `offset`.
    """

    key: str
    pattern: int
    name: str
    offset: int
    size_bytes: int
    entry_offset: int
    entry_is_emulated: bool
    entry_sp_adjust_bytes: int
    return_offsets: tuple[int, ...]


class Refused(NamedTuple):
    """A function that matches a pattern of `key` and cannot be probed, and why."""

    key: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of the wanted functions in one binary.

    `unmatched` are the keys whose patterns match no function at all. `code_sha256` is over the code of `functions`.
    """

    build_id: str
    go_version: str
    machine: str
    register_abi: bool
    functions: tuple[ResolvedFunction, ...]
    refused: tuple[Refused, ...]
    unmatched: tuple[str, ...]
    code_sha256: str


def resolve(path: Path, wanted: Mapping[str, Sequence[str]]) -> Resolution:
    """Find every function that matches a pattern of any key, and its probe sites, in this process.

    `wanted`: key → patterns (see `observe.probes.gobinary.compile_pattern`). Functions come by key, then by address;
    one that several keys want is there for each. Raises BinaryError if the file is no Go program that can be read.
    """
    from observe.probes.gobinary import compile_pattern, open_binary  # noqa: PLC0415 - numpy, capstone, pyelftools

    functions, refused, unmatched = [], [], []
    with open_binary(path) as binary:
        candidates = binary.matching(pattern for patterns in wanted.values() for pattern in patterns)
        sites = {function: _sites(binary, function) for function in candidates}
        for key, patterns in wanted.items():
            globs = [compile_pattern(pattern) for pattern in patterns]
            matched = False
            for function, found in sites.items():
                pattern = next((i for i, glob in enumerate(globs) if glob.match(function.name.encode())), None)
                if pattern is None:
                    continue
                matched = True
                if isinstance(found, str):
                    refused.append(Refused(key, function.name, found))
                else:
                    functions.append(_resolved(key, pattern, function, found))
            if not matched:
                unmatched.append(key)
        return Resolution(
            binary.build_id,
            binary.go_version,
            binary.machine,
            binary.register_abi,
            tuple(functions),
            tuple(refused),
            tuple(unmatched),
            _code_sha256(binary.image.stream, functions),
        )


def resolve_in_child(path: Path, wanted: Mapping[str, Sequence[str]], cache: Path | None = None) -> Resolution:
    """`resolve` in a child process; `cache` is the folder where answers are kept, None to keep none.

    The file that is at `path` now is read, even if it is replaced meanwhile. Raises ObserveError, with the reason.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ObserveError(f"{path}: cannot be read ({error.strerror}), so its functions cannot be timed") from None
    with stream:
        key = _cache_key(stream, wanted) if cache else ""
        kept = _kept(cache, key, stream) if cache else None
        if kept is not None:
            return kept
        answer = _ask_child(stream, path, wanted)
    if cache:
        write_cached(cache, key, answer)
    return _from_json(answer)


def _sites(binary: GoBinary, function: Function) -> Sites | str:
    """Where to probe a function, or why it cannot be."""
    from observe.probes.elf import BinaryError  # noqa: PLC0415
    from observe.probes.sites import Refusal, find_sites  # noqa: PLC0415 - capstone

    try:
        code = binary.code(function)
    except BinaryError as error:
        return str(error)
    found = find_sites(code, function.address, binary.machine, register_abi=binary.register_abi)
    return found.reason if isinstance(found, Refusal) else found


def _resolved(key: str, pattern: int, function: Function, sites: Sites) -> ResolvedFunction:
    start = function.file_offset
    return ResolvedFunction(
        key,
        pattern,
        function.name,
        start,
        function.size_bytes,
        start + sites.entry_offset,
        sites.entry_is_emulated,
        sites.entry_sp_adjust_bytes,
        tuple(start + offset for offset in sites.return_offsets),
    )


def _code_sha256(stream: BinaryIO, functions: Iterable[ResolvedFunction]) -> str:
    digest = hashlib.sha256()
    for offset, size_bytes in sorted({(function.offset, function.size_bytes) for function in functions}):
        stream.seek(offset)
        digest.update(stream.read(size_bytes))
    return digest.hexdigest()


def _cache_key(stream: BinaryIO, wanted: Mapping[str, Sequence[str]]) -> str:
    size_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    digest = hashlib.sha256(stream.read(_HEAD_BYTES))
    digest.update(json.dumps([size_bytes, _READER_VERSION, *wanted.items()]).encode())
    return f"functions-{digest.hexdigest()[:32]}"


def _kept(cache: Path, key: str, stream: BinaryIO) -> Resolution | None:
    """The answer of another time, if it is about the very code of this file."""
    answer = read_cached(cache, key)
    if answer is None:
        return None
    try:
        resolution = _from_json(answer)
    except (ValueError, KeyError, TypeError):
        return None
    return resolution if _code_sha256(stream, resolution.functions) == resolution.code_sha256 else None


def _ask_child(stream: BinaryIO, path: Path, wanted: Mapping[str, Sequence[str]]) -> bytes:
    package = Path(__file__).resolve().parents[2]
    inherited = f"/proc/self/fd/{stream.fileno()}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, inherited],
            input=json.dumps({key: list(patterns) for key, patterns in wanted.items()}).encode(),
            capture_output=True,
            check=False,
            pass_fds=[stream.fileno()],
            timeout=_CHILD_SECONDS,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
                # Threads that are not needed would take address space.
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
    except subprocess.TimeoutExpired:
        raise ObserveError(f"{path}: not read within {_CHILD_SECONDS} s, so its functions cannot be timed") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"its reader ended with {done.returncode}"
        # An error that was foreseen is one line; of a traceback the last line counts.
        raise ObserveError(said.splitlines()[-1].replace(inherited, str(path)))
    return done.stdout


def _from_json(answer: bytes) -> Resolution:
    data = json.loads(answer)
    return Resolution(
        data["build_id"],
        data["go_version"],
        data["machine"],
        data["register_abi"],
        tuple(ResolvedFunction(**{**f, "return_offsets": tuple(f["return_offsets"])}) for f in data["functions"]),
        tuple(Refused(*refused) for refused in data["refused"]),
        tuple(data["unmatched"]),
        data["code_sha256"],
    )


def _main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_CHILD_BYTES, _CHILD_BYTES))
    path = Path(sys.argv[1])
    try:
        answer = json.dumps(asdict(resolve(path, json.load(sys.stdin))))
    except MemoryError:
        print(
            f"{path}: reading it takes more than {_CHILD_BYTES >> 20} MB, so its functions cannot be timed",
            file=sys.stderr,
        )
        return ObserveError.exit_code
    except ObserveError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
