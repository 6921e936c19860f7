# SPDX-License-Identifier: Apache-2.0
"""From names to places in a file: in a child, from the cache, and never from a cache that is about other code."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
from pathlib import Path

import gofiles
import pytest
from gofiles import SMALL

from observe.errors import ObserveError
from observe.probes import resolve as resolving
from observe.probes.resolve import Refused, Resolution, resolve

FUNCTIONS = {
    "pkg.(*Daemon).Mount": SMALL,
    "pkg.(*Daemon).Unmount": b"\xc3",
    "pkg.WithUser.func1": SMALL,
    "pkg.WithUser.func2": SMALL + b"\xc3",
}
WANTED = {
    "mount": ["pkg.(*Daemon).NoSuch", "pkg.(*Daemon).Mount"],
    "user": ["pkg.[Ww]ithUser.func[0-9]"],
    "none": ["pkg.NoSuch", "pkg.NoSuch*"],
    "unmount": ["pkg.(*Daemon).Unmount"],
    "all of the daemon": ["pkg.(*Daemon).*"],
}


def resolve_in_child(path: Path, wanted, cache: Path | None = None) -> Resolution:
    """One file; its error raised."""
    (found,) = resolving.resolve_in_child({"file": path}, wanted, cache).values()
    if isinstance(found, ObserveError):
        raise found
    return found


@pytest.fixture
def engine(tmp_path) -> Path:
    path = tmp_path / "engine"
    path.write_bytes(gofiles.build(FUNCTIONS, pie=True))
    return path


@pytest.fixture
def no_child(monkeypatch):
    """After `no_child()`, starting a process fails."""

    def forbid():
        def run(*_, **__):
            raise AssertionError("a child was started")

        monkeypatch.setattr(resolving.subprocess, "run", run)

    return forbid


def test_every_function_that_any_pattern_of_a_key_matches_is_resolved(engine):
    found = resolve(engine, WANTED)
    assert [(f.key, f.name, f.pattern) for f in found.functions] == [
        ("mount", "pkg.(*Daemon).Mount", 1),
        ("user", "pkg.WithUser.func1", 0),
        ("user", "pkg.WithUser.func2", 0),
        ("all of the daemon", "pkg.(*Daemon).Mount", 0),
    ]
    reason = "it has no stack check and begins with 'ret'"
    assert found.refused == (
        Refused("unmount", "pkg.(*Daemon).Unmount", reason),
        Refused("all of the daemon", "pkg.(*Daemon).Unmount", reason),
    )
    assert found.unmatched == ("none",)
    assert (found.go_version, found.machine, found.register_abi) == ("go1.19.8", "x86_64", True)
    assert found.build_id == bytes(range(20)).hex()


def test_offsets_are_those_of_the_file(engine):
    data = engine.read_bytes()
    for function in resolve(engine, WANTED).functions:
        assert data[function.offset :].startswith(SMALL)
        assert data[function.entry_offset :].startswith(bytes.fromhex("0f86"))  # jbe
        assert function.entry_is_emulated
        assert function.entry_sp_adjust_bytes == 0
        assert {data[offset] for offset in function.return_offsets} == {0xC3}
        assert len(function.return_offsets) == (2 if function.name.endswith("func2") else 1)
        assert function.size_bytes == -(-len(FUNCTIONS[function.name]) // 16) * 16


def test_a_child_answers_the_same(engine, tmp_path):
    expected = resolve(engine, WANTED)
    assert resolve_in_child(engine, WANTED) == expected
    assert resolve_in_child(engine, WANTED, tmp_path / "cache") == expected
    assert resolve_in_child(engine, WANTED, tmp_path / "cache") == expected


def test_the_cache_spares_the_child(engine, tmp_path, no_child):
    expected = resolve_in_child(engine, WANTED, tmp_path)
    no_child()
    assert resolve_in_child(engine, WANTED, tmp_path) == expected
    copy = tmp_path / "copy"
    copy.write_bytes(engine.read_bytes())
    assert resolve_in_child(copy, WANTED, tmp_path) == expected


def kept_file(folder: Path) -> Path:
    (kept,) = folder.iterdir()
    return kept


def test_a_cache_of_other_patterns_other_readers_or_other_files_is_not_asked(engine, tmp_path, no_child, monkeypatch):
    # The whole of a small file would be its head.
    monkeypatch.setattr(resolving, "_HEAD_BYTES", gofiles.TEXT_OFFSET)
    cache = tmp_path / "cache"
    resolve_in_child(engine, WANTED, cache)
    assert kept_file(cache).stat().st_mode & 0o777 == 0o600
    no_child()
    with pytest.raises(AssertionError, match="a child"):
        resolve_in_child(engine, {**WANTED, "none": ["pkg.*"]}, cache)
    with pytest.raises(AssertionError, match="a child"):
        resolve_in_child(engine, dict(reversed(WANTED.items())), cache)
    longer = tmp_path / "longer"
    longer.write_bytes(engine.read_bytes() + b"\0")
    with pytest.raises(AssertionError, match="a child"):
        resolve_in_child(longer, WANTED, cache)
    monkeypatch.setattr(resolving, "_READER_VERSION", 0)
    with pytest.raises(AssertionError, match="a child"):
        resolve_in_child(engine, WANTED, cache)


def test_a_cache_about_other_code_is_not_believed_whatever_the_build_id_says(tmp_path, monkeypatch):
    """A patched binary keeps its build id: a probe at an old place could be in the middle of an instruction."""
    # The whole of a small file would be its head.
    monkeypatch.setattr(resolving, "_HEAD_BYTES", gofiles.TEXT_OFFSET)
    engine = tmp_path / "engine"
    cache = tmp_path / "cache"
    data = gofiles.build(FUNCTIONS)
    engine.write_bytes(data)
    before = resolve_in_child(engine, WANTED, cache)
    at = before.functions[0].return_offsets[0]
    engine.write_bytes(data[:at] + b"\x90" + data[at + 1 :])
    after = resolve_in_child(engine, WANTED, cache)
    assert after.build_id == before.build_id
    assert len(kept_file(cache).read_bytes()) > 32
    assert "it has no return" in [reason for _, _, reason in after.refused]
    assert after == resolve(engine, WANTED)
    # What was found now is kept now.
    assert resolve_in_child(engine, WANTED, cache) == after


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "not JSON", "another form"])
def test_a_damaged_cache_is_not_there_and_is_mended(engine, tmp_path, harm):
    cache = tmp_path / "cache"
    expected = resolve_in_child(engine, WANTED, cache)
    kept = kept_file(cache)
    good = kept.read_bytes()
    if harm == "flipped":
        kept.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    elif harm == "cut":
        kept.write_bytes(good[:-1])
    elif harm == "empty":
        kept.write_bytes(b"")
    else:
        resolving.write_cached(cache, kept.name, b"{" if harm == "not JSON" else b'{"functions": [{}]}')
    assert resolve_in_child(engine, WANTED, cache) == expected
    assert kept.read_bytes() == good


def test_a_cache_that_others_could_have_written_is_not_believed(engine, tmp_path, no_child):
    cache = tmp_path / "cache"
    resolve_in_child(engine, WANTED, cache)
    kept_file(cache).chmod(0o666)
    no_child()
    with pytest.raises(AssertionError, match="a child"):
        resolve_in_child(engine, WANTED, cache)


def test_the_file_of_a_running_program_is_read_though_it_was_replaced(tmp_path):
    path = tmp_path / "engine"
    path.write_bytes(gofiles.build({"pkg.Old": SMALL}))
    with path.open("rb") as held:
        path.unlink()
        path.write_bytes(gofiles.build({"pkg.New": SMALL}))
        found = resolve_in_child(Path(f"/proc/{os.getpid()}/fd/{held.fileno()}"), {"any": ["pkg.*"]})
    assert [function.name for function in found.functions] == ["pkg.Old"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an ELF file"), (b"#!/bin/sh\n", "not an ELF file"), (None, "No such file")],
)
def test_an_error_is_one_line_with_the_path_as_it_was_given(tmp_path, content, reason):
    path = tmp_path / "engine"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ObserveError, match=reason) as caught:
        resolve_in_child(path, WANTED, tmp_path / "cache")
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("cannot be timed")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_child_that_ends_badly_or_never_is_an_error(engine, monkeypatch):
    monkeypatch.setattr(resolving, "_CHILD_SECONDS", 0)
    with pytest.raises(ObserveError, match="not read within 0 s"):
        resolve_in_child(engine, WANTED)
    monkeypatch.setattr(resolving, "_CHILD_SECONDS", 60)
    monkeypatch.setattr(resolving.sys, "executable", "/bin/false")
    with pytest.raises(ObserveError, match="its reader ended with 1"):
        resolve_in_child(engine, WANTED)


def test_a_child_that_needs_too_much_memory_says_so(engine, monkeypatch):
    real_run = subprocess.run

    def run(*arguments, **options):
        code = "import sys, observe.probes.resolve as r\n"
        code += "def resolve(path, wanted): raise MemoryError\n"
        code += "r.resolve = resolve\nsys.exit(r._main())"
        command = [arguments[0][0], "-c", code]
        return real_run(command, **options)

    monkeypatch.setattr(resolving.subprocess, "run", run)
    with pytest.raises(ObserveError, match="takes more than 1024 MB"):
        resolve_in_child(engine, WANTED)


def test_the_caller_stays_small():
    """Neither numpy nor capstone nor pyelftools comes into the process that asks."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom observe.probes.resolve import resolve_in_child\n"
        "print(resolve_in_child({'it': Path('/bin/true')}, {'a': ['b']})['it'])\n"
        "print(sorted({'numpy', 'capstone', 'elftools'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(resolving.__file__).resolve().parents[2])}
    done = subprocess.run(
        [resolving.sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert "no Go build information" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_answer_survives_json(engine):
    found = resolve(engine, WANTED)
    assert resolving._from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_the_limit_of_the_child_is_not_ours(engine):
    before = resource.getrlimit(resource.RLIMIT_AS)
    resolve_in_child(engine, WANTED)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_one_file_that_cannot_be_read_does_not_keep_the_others_from_it(engine, tmp_path):
    paths = {"no go": Path("/bin/true"), "engine": engine, "absent": tmp_path / "absent", "again": engine}
    found = resolving.resolve_in_child(paths, WANTED, tmp_path / "cache")
    assert found["engine"] == found["again"] == resolve(engine, WANTED)
    assert "no Go build information" in str(found["no go"])
    assert "/bin/true" in str(found["no go"])
    assert "No such file" in str(found["absent"])


def test_what_a_child_told_before_it_was_killed_counts(engine, monkeypatch):
    real_run = subprocess.run

    def run(*arguments, **options):
        code = "import os, observe.probes.resolve as r\nreal = r.resolve\nseen = []\n"
        code += "def resolve(path, wanted):\n    seen.append(path)\n    if len(seen) > 1: os.kill(os.getpid(), 9)\n"
        code += "    return real(path, wanted)\nr.resolve = resolve\nr._main()"
        return real_run([arguments[0][0], "-c", code], **options)

    monkeypatch.setattr(resolving.subprocess, "run", run)
    found = resolving.resolve_in_child({"one": engine, "two": engine}, WANTED)
    assert found["one"] == resolve(engine, WANTED)
    assert "ended with -9" in str(found["two"])
