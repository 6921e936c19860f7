# SPDX-License-Identifier: Apache-2.0
"""scripts/private-dockerd: a daemon that works like a real one, beside others, and goes without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import docker
import pytest
from engines import PRIVATE_DOCKERD, Engine, EngineFactory

#: Where a dockerd or containerd writes on its host whatever its options are.
SHARED_WITH_HOST = ("/etc/docker", "/opt/containerd", "/run/docker", "/run/containerd", "/run/xtables.lock")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PRIVATE_DOCKERD, *map(str, arguments)], capture_output=True, text=True, check=False)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def processes_of(directory: Path) -> set[int]:
    """Processes that carry the engine's marker, and those in its containers' cgroups."""
    marker = f"OBSERVE_PRIVATE_DOCKERD={directory}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker in path.read_bytes().split(b"\0"):
                found.add(int(path.parts[2]))
        except OSError:
            continue
    for group in cgroups_of(directory):
        for tasks in group.rglob("cgroup.procs"):
            found.update(map(int, tasks.read_text().split()))
    return found


def cgroups_of(directory: Path) -> list[Path]:
    name = f"observe-{hashlib.sha256(bytes(directory)).hexdigest()[:12]}"
    return [path for path in Path("/sys/fs/cgroup").rglob(name) if path.is_dir()]


def assert_no_trace(directory: Path) -> None:
    assert not directory.exists()
    assert processes_of(directory) == set()
    assert cgroups_of(directory) == []
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()


def run_detached(client: docker.DockerClient) -> docker.models.containers.Container:
    return client.containers.run("observe-tiny", ["sleep", "3600"], detach=True, network_mode="bridge")


def test_a_container_runs_on_the_bridge(engine: Engine) -> None:
    assert engine.client.info()["Driver"] == "overlay2"
    script = "cat /proc/net/dev; echo ready"
    output = engine.client.containers.run(engine.image, ["sh", "-c", script], network_mode="bridge", remove=True)
    assert b"eth0:" in output
    assert output.endswith(b"ready\n")


def test_what_the_fixture_says_is_so(engine: Engine) -> None:
    arguments = Path(f"/proc/{engine.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[arguments.index(b"--data-root") + 1] == bytes(engine.data_root)
    assert arguments[arguments.index(b"--exec-root") + 1] == bytes(engine.exec_root)
    assert engine.socket.is_socket()
    assert engine.client.info()["DockerRootDir"] == str(engine.data_root)
    for namespace in ("mnt", "net"):
        assert Path(f"/proc/{engine.pid}/ns/{namespace}").readlink() != Path(f"/proc/self/ns/{namespace}").readlink()


def test_what_a_daemon_would_write_on_its_host_is_hidden(engine: Engine) -> None:
    lines = [line.split(" ") for line in Path(f"/proc/{engine.pid}/mountinfo").read_text().splitlines()]
    # The last mount on a place is the one that is seen.
    kinds = {fields[4]: fields[fields.index("-") + 1] for fields in lines}
    options = {fields[4]: fields[5].split(",") for fields in lines}
    assert {place: kinds.get(place) for place in ("/etc", "/opt", "/run")} == {
        "/etc": "overlay",
        "/opt": "overlay",
        "/run": "tmpfs",
    }
    assert "ro" in options["/proc/sys/kernel/keys"]
    arguments = Path(f"/proc/{engine.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[arguments.index(b"--config-file") + 1].startswith(bytes(engine.directory))


def test_start_and_stop_leave_no_trace(directory: Path) -> None:
    def host() -> dict[str, object]:
        paths = [path for top in SHARED_WITH_HOST for path in (Path(top), *Path(top).rglob("*"))]
        found: dict[str, object] = {str(path): path.lstat().st_mtime_ns for path in paths if path.exists()}
        found["keys"] = Path("/proc/sys/kernel/keys/root_maxkeys").read_text()
        return found

    before = host()
    started = command("start", directory)
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    client = docker.DockerClient(f"unix://{directory}/docker.sock")
    container = run_detached(client)
    init = client.api.inspect_container(container.id)["State"]["Pid"]
    client.close()
    assert cgroups_of(directory) != []
    assert init in processes_of(directory)
    stopped = command("stop", directory)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "")
    assert_no_trace(directory)
    assert host() == before


def test_stop_is_harmless_twice_and_without_a_start(directory: Path) -> None:
    assert command("stop", directory).returncode == 0
    assert command("start", directory).returncode == 0
    assert command("stop", directory).returncode == 0
    assert command("stop", directory).returncode == 0
    assert_no_trace(directory)


def test_two_at_once_share_nothing(engine: Engine, new_engine: EngineFactory) -> None:
    other = new_engine()
    containers = [run_detached(each.client) for each in (engine, other)]
    try:
        for mine, stranger in ((0, 1), (1, 0)):
            client = (engine, other)[mine].client
            assert [each.id for each in client.containers.list()] == [containers[mine].id]
            assert containers[stranger].id not in json.dumps(client.api.containers(all=True))
        # The same address in two networks: only apart from each other can both be right.
        addresses = set()
        for each in containers:
            each.reload()
            addresses.add(each.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])
        assert len(addresses) == 1
        namespaces = {Path(f"/proc/{each.pid}/ns/net").readlink() for each in (engine, other)}
        assert len(namespaces) == 2
    finally:
        containers[0].remove(force=True)


def test_options_and_environment_reach_dockerd(new_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOGC", "83")
    other = new_engine("--label", "odd=17")
    assert other.client.info()["Labels"] == ["odd=17"]
    assert b"GOGC=83" in Path(f"/proc/{other.pid}/environ").read_bytes().split(b"\0")


@pytest.mark.parametrize("moment", ["dockerd runs", "it answers"])
def test_a_killed_starter_can_still_be_stopped(directory: Path, moment: str) -> None:
    starter = subprocess.Popen([PRIVATE_DOCKERD, "start", directory])
    seen = {"dockerd runs": lambda: processes_of(directory), "it answers": (directory / "docker.sock").is_socket}[
        moment
    ]
    wait_for(lambda: bool(seen()))
    starter.kill()
    assert starter.wait() == -signal.SIGKILL
    assert processes_of(directory) != set()
    assert command("stop", directory).returncode == 0
    assert_no_trace(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_is_called_off_cleans_up(directory: Path, number: signal.Signals) -> None:
    starter = subprocess.Popen([PRIVATE_DOCKERD, "start", directory])
    wait_for(lambda: bool(processes_of(directory)))
    starter.send_signal(number)
    assert starter.wait(60) == 128 + number
    assert_no_trace(directory)


def test_stop_after_everything_but_a_container_was_killed(directory: Path) -> None:
    assert command("start", directory).returncode == 0
    client = docker.DockerClient(f"unix://{directory}/docker.sock")
    init = client.api.inspect_container(run_detached(client).id)["State"]["Pid"]
    client.close()

    def only_the_container_is_left() -> bool:
        # Again and again: a dockerd that sees its containerd die starts another.
        others = processes_of(directory) - {init}
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not others

    wait_for(only_the_container_is_left)
    assert processes_of(directory) == {init}
    assert command("stop", directory).returncode == 0
    assert_no_trace(directory)


def test_a_daemon_that_does_not_come_up_says_why_in_one_line(directory: Path) -> None:
    failed = command("start", directory, "--no-such-option")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "no-such-option" in failed.stderr
    assert_no_trace(directory)


def test_start_refuses_a_directory_that_is_there(directory: Path) -> None:
    directory.mkdir()
    (directory / "precious").touch()
    failed = command("start", directory)
    assert failed.returncode == 1
    assert "already there" in failed.stderr
    assert (directory / "precious").exists()


def test_wrong_usage_prints_the_usage() -> None:
    wrong = subprocess.run([sys.executable, PRIVATE_DOCKERD, "stat"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "private-dockerd start DIR" in wrong.stderr
