# SPDX-License-Identifier: Apache-2.0
"""The programs of an engine, in a made-up /proc: what runs, and what will be run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from observe.engine.binaries import binaries

DOCKERD, CONTAINERD = 40, 41
ENGINE = SimpleNamespace(pid=DOCKERD, containerd_pid=CONTAINERD)
ALONE = SimpleNamespace(pid=DOCKERD, containerd_pid=None)
SHIM = "containerd-shim-runc-v2"


@pytest.fixture
def proc(tmp_path):
    """Adds a process with these PATHs and these programs below its root."""

    def add(pid: int, *programs: str, environ: bytes | None = None) -> Path:
        folder = tmp_path / str(pid)
        (folder / "root").mkdir(parents=True)
        for program in programs:
            path = folder / "root" / program
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        if environ is not None:
            (folder / "environ").write_bytes(environ)
        return tmp_path

    return add


def test_daemons_are_the_files_that_they_execute(proc):
    root = proc(DOCKERD)
    proc(CONTAINERD)
    assert binaries(ENGINE, root) == {"dockerd": root / "40" / "exe", "containerd": root / "41" / "exe"}


def test_what_will_be_run_is_looked_up_as_containerd_does(proc):
    """On its own PATH, in its own root, the first folder first; dockerd's are other ones."""
    proc(DOCKERD, "usr/bin/runc", environ=b"PATH=/usr/bin\0")
    root = proc(
        CONTAINERD, "opt/a/runc", "opt/b/runc", f"opt/b/{SHIM}", environ=b"A=1\0PATH=/none:/opt/a:/opt/b\0B=2\0"
    )
    found = binaries(ENGINE, root)
    own = root / "41" / "root" / "opt"
    assert (found["runc"], found[SHIM]) == (own / "a" / "runc", own / "b" / SHIM)


def test_without_a_containerd_in_view_dockerds_path_counts(proc):
    root = proc(DOCKERD, "x/runc", environ=b"PATH=/x\0")
    assert binaries(ALONE, root) == {"dockerd": root / "40" / "exe", "runc": root / "40" / "root" / "x" / "runc"}


@pytest.mark.parametrize("environ", [None, b"", b"PATH=\0", b"MYPATH=/x\0", b"HOME=/\0XPATH=PATH=/x\0"])
def test_without_a_path_the_usual_folders_count(proc, environ):
    root = proc(CONTAINERD, "usr/sbin/runc", "bin/runc", "x/runc", environ=environ)
    assert binaries(ENGINE, root)["runc"] == root / "41" / "root" / "usr/sbin/runc"


def test_relative_and_empty_folders_of_a_path_are_left_out(proc, monkeypatch, tmp_path):
    (tmp_path / "runc").write_text("")
    monkeypatch.chdir(tmp_path)
    root = proc(CONTAINERD, "runc", "x/runc", environ=b"PATH=.::here:/x\0")
    assert binaries(ENGINE, root)["runc"] == root / "41" / "root" / "x" / "runc"


def test_a_folder_of_that_name_and_a_dangling_link_are_no_program(proc):
    root = proc(CONTAINERD, "a/runc/file", "c/runc", environ=b"PATH=/a:/b:/c\0")
    (root / "41/root/b").mkdir()
    (root / "41/root/b/runc").symlink_to("nowhere")
    assert binaries(ENGINE, root)["runc"] == root / "41" / "root" / "c" / "runc"


def test_a_path_that_is_no_text_is_read_as_far_as_it_is(proc):
    root = proc(CONTAINERD, "x/runc", environ=b"PATH=/\xff\xfe:/x\0")
    assert binaries(ENGINE, root)["runc"] == root / "41" / "root" / "x" / "runc"


def test_programs_that_are_nowhere_are_left_out(proc):
    root = proc(CONTAINERD, "x/other", environ=b"PATH=/x\0")
    assert set(binaries(ENGINE, root)) == {"dockerd", "containerd"}
