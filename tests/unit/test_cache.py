# SPDX-License-Identifier: Apache-2.0
"""Small files kept for the next time: whatever is wrong with one, it is simply not there."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observe.probes.cache import cache_folder, read_cached, write_cached

KEY, DATA = "functions-0123", b"what was found out with much work"


@pytest.fixture
def kept(tmp_path) -> Path:
    """A folder that keeps DATA."""
    folder = tmp_path / "new" / "cache"
    write_cached(folder, KEY, DATA)
    return folder


@pytest.mark.parametrize("data", [DATA, b"", b"\0" * 100_000])
def test_what_is_written_is_read(tmp_path, data):
    write_cached(tmp_path, KEY, data)
    assert read_cached(tmp_path, KEY) == data
    assert read_cached(tmp_path, "functions-4567") is None


def test_folder_and_file_are_for_their_owner_only(kept):
    old = os.umask(0)
    try:
        write_cached(kept.parent / "another", KEY, DATA)
    finally:
        os.umask(old)
    for folder in (kept, kept.parent / "another"):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / KEY).stat().st_mode & 0o777 == 0o600


def test_the_last_one_written_counts_and_nothing_else_stays(kept):
    write_cached(kept, KEY, b"newer")
    assert read_cached(kept, KEY) == b"newer"
    assert [path.name for path in kept.iterdir()] == [KEY]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 32 + len(DATA) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(kept, at, bits):
    path = kept / KEY
    whole = path.read_bytes()
    assert len(whole) == 32 + len(DATA)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
    assert read_cached(kept, KEY) is None
    path.write_bytes(whole)
    assert read_cached(kept, KEY) == DATA


def test_any_cut_and_any_addition_is_noticed(kept):
    path = kept / KEY
    whole = path.read_bytes()
    for content in (*(whole[:size] for size in range(len(whole))), whole + b"x"):
        path.write_bytes(content)
        assert read_cached(kept, KEY) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_may_write_is_not_believed(kept, mode):
    (kept / KEY).chmod(mode)
    assert read_cached(kept, KEY) is None


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444])
def test_what_others_may_only_read_is(kept, mode):
    (kept / KEY).chmod(mode)
    assert read_cached(kept, KEY) == DATA


def test_what_another_user_owns_is_not_believed(kept, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert read_cached(kept, KEY) is None


def test_the_owner_of_the_file_counts_and_not_of_a_link_to_it(kept, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / KEY).symlink_to(kept / KEY)
    assert read_cached(foreign, KEY) == DATA
    (kept / KEY).chmod(0o666)
    assert read_cached(foreign, KEY) is None


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/not even root may make it"])
def test_a_folder_that_cannot_be_is_no_error(tmp_path, place):
    (tmp_path / "file").write_text("")
    write_cached(tmp_path / place, KEY, DATA)
    assert read_cached(tmp_path / place, KEY) is None
    assert (tmp_path / "file").read_text() == ""


def test_a_name_that_is_taken_by_a_folder_is_no_error_and_leaves_nothing(tmp_path):
    (tmp_path / KEY / "x").mkdir(parents=True)
    write_cached(tmp_path, KEY, DATA)
    assert read_cached(tmp_path, KEY) is None
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


def test_a_full_disk_keeps_the_old_one_and_leaves_nothing(kept, monkeypatch):
    class Full:
        def __init__(self, *args, **kwargs):
            self.inner = real(*args, **kwargs)
            self.name = self.inner.name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def write(self, data):
            self.inner.write(data[:5])
            raise OSError(28, "No space left on device")

    real = tempfile.NamedTemporaryFile
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", Full)
    write_cached(kept, KEY, b"newer")
    assert read_cached(kept, KEY) == DATA
    assert [path.name for path in kept.iterdir()] == [KEY]


def test_a_file_is_whole_before_it_gets_its_name(tmp_path, monkeypatch):
    renamed = []
    replace = Path.replace

    def look(path, target):
        renamed.append((target, path.read_bytes()[32:]))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", look)
    write_cached(tmp_path, KEY, DATA)
    assert renamed == [(tmp_path / KEY, DATA)]


def test_a_reader_beside_writers_sees_one_of_them_whole(kept):
    """Each answer is its own digest's: a mixture would not be believed, and nothing between two answers is missing."""
    stop = threading.Event()

    def write(letter: bytes) -> None:
        while not stop.is_set():
            write_cached(kept, KEY, letter * 1_000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in writers:
        thread.start()
    try:
        seen = [read_cached(kept, KEY) for _ in range(300)]
    finally:
        stop.set()
        for thread in writers:
            thread.join()
    assert set(seen) <= {DATA, b"a" * 1_000, b"b" * 1_000}
    assert [path.name for path in kept.iterdir()] == [KEY]


@pytest.mark.parametrize(
    ("uid", "environment", "folder"),
    [
        (0, {"OBSERVE_CACHE": "/given"}, "/given"),
        (7, {"OBSERVE_CACHE": "/given", "XDG_CACHE_HOME": "/xdg"}, "/given"),
        (0, {"XDG_CACHE_HOME": "/xdg"}, "/var/cache/observe"),
        (7, {"XDG_CACHE_HOME": "/xdg"}, "/xdg/observe"),
        (7, {"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/observe"),
        (7, {"OBSERVE_CACHE": "", "HOME": "/home/me"}, "/home/me/.cache/observe"),
    ],
)
def test_the_folder_is_the_one_that_was_given_or_the_users(monkeypatch, uid, environment, folder):
    for name in ("OBSERVE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert cache_folder() == Path(folder)
