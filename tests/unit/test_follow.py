# SPDX-License-Identifier: Apache-2.0
"""When what a session is attached to is not what the engine uses any more."""

import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from observe.collectors import follow
from observe.collectors.follow import EngineFollower
from observe.collectors.session import SessionOptions
from observe.errors import ObserveError


@pytest.fixture
def containerd(tmp_path):
    """A process that knows a runc and a shim by its PATH."""
    for program in ("runc", "containerd-shim-runc-v2"):
        (tmp_path / program).write_text("#!/bin/sh\n")
    with subprocess.Popen(["/bin/sleep", "600"], env={"PATH": str(tmp_path)}) as process:
        deadline = time.monotonic() + 60
        while not Path(f"/proc/{process.pid}/environ").read_bytes():  # for a moment a new program has none
            assert time.monotonic() < deadline
        yield process
        process.kill()


@pytest.fixture
def follower(containerd, monkeypatch):
    """Attached to an engine with that containerd, looking at it whenever it is asked; nobody finds another one."""
    found = EngineFollower("unix:///nowhere/docker.sock", SessionOptions())
    engine = SimpleNamespace(pid=os.getpid(), containerd_pid=containerd.pid)
    found.session = SimpleNamespace(engine=engine)
    found._programs = follow._programs(engine)
    assert set(found._programs) == {"dockerd", "containerd", "runc", "containerd-shim-runc-v2"}
    monkeypatch.setattr(follow, "_CHECK_SECONDS", 0.0)
    finds(monkeypatch, None)
    return found


def finds(monkeypatch, containerd_pid):
    """Who asks for the engine finds it with this containerd."""
    monkeypatch.setattr(follow.engines, "find_engine", lambda _: SimpleNamespace(containerd_pid=containerd_pid))


def end(process):
    process.kill()
    process.wait()


def test_what_does_not_change_is_not_outdated(follower):
    assert not follower.is_outdated


def test_a_new_program_on_disk_is(follower, tmp_path):
    new = tmp_path / "new"
    new.write_text("#!/bin/sh\n")
    new.replace(tmp_path / "runc")
    assert follower.is_outdated


def test_an_engine_that_shuts_down_has_no_containerd_and_no_other_programs(follower, containerd, monkeypatch):
    """It still answers: who detached then would miss that."""
    end(containerd)
    assert not follower.is_outdated

    def fails(_):
        raise ObserveError("no engine")

    monkeypatch.setattr(follow.engines, "find_engine", fails)
    assert not follower.is_outdated


def test_another_containerd_is(follower, containerd, monkeypatch):
    end(containerd)
    finds(monkeypatch, containerd.pid + 1)
    assert follower.is_outdated


def test_one_that_comes_late_is(follower, containerd, monkeypatch):
    follower.session.engine.containerd_pid = None
    follower._programs = follow._programs(follower.session.engine)
    assert not follower.is_outdated
    finds(monkeypatch, containerd.pid)
    assert follower.is_outdated


def test_how_long_events_may_stay_together_is_passed_on(follower):
    waits = []
    follower.session.wait = lambda *given, **options: waits.append((given, options))
    for batch_seconds in (None, 7.0):
        follower.wait(3, batch_seconds=batch_seconds)
    assert waits == [((follow.IDLE_SECONDS, 3), {"batch_seconds": batch}) for batch in (None, 7.0)]
