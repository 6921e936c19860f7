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
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

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


def resolve_in_child(
    paths: Mapping[str, Path], wanted: Mapping[str, Sequence[str]], cache: Path | None = None
) -> dict[str, Resolution | ObserveError]:
    """`resolve` of several files in one child process, since starting one takes as long as reading a binary.

    `paths`: name → file; `cache` is the folder where answers are kept, None to keep none. What is at a path now is
    read, even if it is replaced meanwhile. A file that cannot be read has the reason in place of its resolution.
    """
    found: dict[str, Resolution | ObserveError] = {}
    asked: dict[str, BinaryIO] = {}
    keys: dict[str, str] = {}
    with ExitStack() as streams:
        for name, path in paths.items():
            try:
                stream = streams.enter_context(path.open("rb"))
            except OSError as error:
                reason = f"{path}: cannot be read ({error.strerror}), so its functions cannot be timed"
                found[name] = ObserveError(reason)
                continue
            keys[name] = _cache_key(stream, wanted) if cache else ""
            kept = _kept(cache, keys[name], stream) if cache else None
            if kept is None:
                asked[name] = stream
            else:
                found[name] = kept
        answers = _ask_child(asked, paths, wanted) if asked else {}
    for name, answer in answers.items():
        found[name] = answer if isinstance(answer, ObserveError) else _from_json(answer)
        if cache and not isinstance(answer, ObserveError):
            write_cached(cache, keys[name], json.dumps(answer).encode())
    return found


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
        resolution = _from_json(json.loads(answer))
    except (ValueError, KeyError, TypeError):
        return None
    return resolution if _code_sha256(stream, resolution.functions) == resolution.code_sha256 else None


def _ask_child(
    streams: Mapping[str, BinaryIO], paths: Mapping[str, Path], wanted: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Name → resolution as `asdict` gives it, or an ObserveError with the reason."""
    package = Path(__file__).resolve().parents[2]
    inherited = {name: f"/proc/self/fd/{stream.fileno()}" for name, stream in streams.items()}
    question = {"files": inherited, "wanted": {key: list(patterns) for key, patterns in wanted.items()}}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(question).encode(),
            capture_output=True,
            check=False,
            pass_fds=[stream.fileno() for stream in streams.values()],
            timeout=_CHILD_SECONDS,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
                # Threads that are not needed would take address space.
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        # One line an answer: a child that a binary has killed has told what it found before.
        lines = done.stdout.decode().splitlines()
        said = done.stderr.decode(errors="replace").strip() or f"its reader ended with {done.returncode}"
    except subprocess.TimeoutExpired as late:
        lines = (late.stdout or b"").decode().splitlines()
        said = f"not read within {_CHILD_SECONDS} s"
    answers: dict[str, Any] = {}
    for line in lines:
        answer = json.loads(line)
        answers[answer["name"]] = answer.get("resolution") or _error(answer["error"], inherited, paths)
    for name in inherited:
        # An error that was foreseen is one line; of a traceback the last line counts.
        answers.setdefault(name, _error(f"{paths[name]}: {said.splitlines()[-1]}", inherited, paths))
    return answers


def _error(reason: str, inherited: Mapping[str, str], paths: Mapping[str, Path]) -> ObserveError:
    for name, place in inherited.items():
        reason = reason.replace(place, str(paths[name]))
    return ObserveError(reason)


def _from_json(data: Mapping[str, Any]) -> Resolution:
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
    question = json.load(sys.stdin)
    for name, file in question["files"].items():
        path = Path(file)
        try:
            answer: dict[str, Any] = {"resolution": asdict(resolve(path, question["wanted"]))}
        except MemoryError:
            megabytes = _CHILD_BYTES >> 20
            answer = {"error": f"{path}: reading it takes more than {megabytes} MB, so its functions cannot be timed"}
        except ObserveError as error:
            answer = {"error": str(error)}
        print(json.dumps({"name": name, **answer}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
