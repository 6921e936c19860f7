# SPDX-License-Identifier: Apache-2.0
"""The engine is found from its socket, whoever made the socket and however many engines there are."""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from observe.collectors.docker_api import Identity
from observe.commands import doctor
from observe.engine import api_connection_fds, find_engine, lineage_seeds, procfs
from observe.errors import HostCannotError

DEADLINE_SECONDS = 30


@contextmanager
def container(engine, *command, run=True, **options):
    made = engine.client.containers.create(engine.image, list(command), **options)
    try:
        if run:
            made.start()
        yield made
    finally:
        made.remove(force=True)


def eventually(condition):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_dockerd_and_its_containerd(engine):
    found = find_engine(engine.url)
    assert found.pid == engine.pid
    assert Path(procfs.executable(found.containerd_pid)).name == "containerd"
    assert procfs.process(found.containerd_pid).ppid == engine.pid
    version = engine.client.version()
    assert (found.version, found.api_version, found.go_version) == (
        version["Version"],
        version["ApiVersion"],
        version["GoVersion"],
    )
    assert found.data_root == str(engine.data_root)
    assert found.exec_root == str(engine.exec_root)
    assert found.storage_driver == engine.client.info()["Driver"]
    assert found.path(found.data_root).samefile(engine.data_root)
    assert engine.url in found.listeners
    assert found.is_alive()
    assert not replace(found, start_ticks=found.start_ticks + 1).is_alive()


def test_two_engines_are_not_confused(engine, new_engine):
    other = new_engine()
    with container(engine, "sleep", "600"):
        first, second = find_engine(engine.url), find_engine(other.url)
        assert (first.pid, second.pid) == (engine.pid, other.pid)
        assert first.containerd_pid != second.containerd_pid
        assert len(first.shim_pids) == 1
        assert second.shim_pids == ()
        assert {pid for pid, _ in lineage_seeds(first)}.isdisjoint(pid for pid, _ in lineage_seeds(second))


def test_two_engines_of_one_containerd_are_told_apart_by_namespace(engine, new_engine):
    address = f"/proc/{engine.pid}/root{engine.exec_root}/containerd/containerd.sock"
    other = new_engine("--containerd", address, "--containerd-namespace", "other")
    with container(engine, "sleep", "600"):
        first, second = find_engine(engine.url), find_engine(other.url)
        assert second.pid == other.pid
        assert second.containerd_pid == first.containerd_pid
        assert (second.containerd_address, second.containerd_namespace) == (address, "other")
        assert len(first.shim_pids) == 1
        assert second.shim_pids == ()


def test_an_engine_of_another_pid_namespace_is_out_of_view(engine):
    found = find_inside(["unshare", "--pid", "--fork", "--mount-proc"], engine.url)
    assert (found.returncode, found.stdout) == (1, "")
    assert "run in the host's pid namespace" in found.stderr.splitlines()[-1]


def test_a_link_to_the_socket_and_a_long_path_are_the_same_engine(engine, tmp_path):
    link = tmp_path / ("x" * 120)
    link.symlink_to(engine.socket)
    assert find_engine(f"unix://{link}").pid == engine.pid


def test_seeds_are_daemons_and_shims_but_not_what_containers_run(engine):
    with container(engine, "sleep", "600") as running:
        running.reload()
        seeds = dict(lineage_seeds(find_engine(engine.url)))
        entrypoint = running.attrs["State"]["Pid"]
        shim = procfs.process(entrypoint).ppid
        assert seeds[engine.pid] == "dockerd"
        assert list(seeds.values()).count("containerd") == 1
        assert seeds[shim] == "child"
        assert entrypoint not in seeds


def test_connections_open_at_attach_are_listed_wherever_the_client_is(engine):
    found = find_engine(engine.url)
    before = api_connection_fds(found)
    with ExitStack() as stack:
        for _ in range(3):
            ours = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            ours.connect(str(engine.socket))
            request(ours)
        # One more from inside dockerd's own network namespace.
        command = [sys.executable, "-c", CLIENT, str(engine.socket)]
        inside = ["nsenter", f"--net=/proc/{engine.pid}/ns/net", *command]
        client = stack.enter_context(subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert client.stdout.readline() == b"200\n"
        assert len(set(api_connection_fds(found)) - set(before)) == 4
        client.stdin.close()
        client.wait(DEADLINE_SECONDS)
    eventually(lambda: api_connection_fds(found) == before)


CLIENT = """
import http.client, socket, sys
channel = socket.socket(socket.AF_UNIX)
channel.connect(sys.argv[1])
connection = http.client.HTTPConnection("docker")
connection.sock = channel
connection.request("GET", "/_ping")
print(connection.getresponse().status, flush=True)
sys.stdin.read()
"""


def request(channel):
    connection = http.client.HTTPConnection("docker")
    connection.sock = channel
    connection.request("GET", "/_ping")
    assert connection.getresponse().status == 200


def test_tcp_is_found_by_the_connection_also_in_another_network_namespace(new_engine):
    engine = new_engine("-H", "tcp://127.0.0.1:2398")
    inside = ["nsenter", f"--net=/proc/{engine.pid}/ns/net"]
    assert find_inside(inside, "tcp://127.0.0.1:2398").stdout == f"{engine.pid}\n"
    found = find_engine(engine.url)
    assert "tcp://127.0.0.1:2398" in found.listeners
    before = api_connection_fds(found)
    code = CLIENT.replace("socket.AF_UNIX", "socket.AF_INET").replace("sys.argv[1]", "('127.0.0.1', 2398)")
    with subprocess.Popen(
        [*inside, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout.readline() == b"200\n"
        assert len(set(api_connection_fds(found)) - set(before)) == 1
        client.stdin.close()
    eventually(lambda: api_connection_fds(found) == before)


def find_inside(enter, url):
    """The pid that find_engine finds for `url` (on stdout), asked in namespaces that `enter` enters."""
    code = "import sys; from observe.engine import find_engine; print(find_engine(sys.argv[1]).pid)"
    return subprocess.run(
        [*enter, sys.executable, "-c", code, url], capture_output=True, text=True, check=False, env=environment()
    )


def test_an_activated_socket_leads_to_dockerd(directory):
    """As with systemd and `-H fd://`: the peer of a connection is who made the socket, here this very process."""
    directory.mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        path = directory / "activated.sock"
        listener.bind(str(path))
        listener.listen()
        with activated_dockerd(listener, directory) as dockerd:
            assert wait_for_engine(f"unix://{path}").pid == dockerd


@contextmanager
def activated_dockerd(listener, directory):
    script = (
        'exec 3<&"$1"; ip link set lo up; export LISTEN_PID=$$ LISTEN_FDS=1; '
        'exec dockerd -H fd:// --data-root "$2/data" --exec-root "$2/exec" --pidfile "$2/docker.pid"'
    )
    command = ["unshare", "--mount", "--net", "--propagation", "private", "bash", "-c", script, "-"]
    with (directory / "log").open("wb") as log:
        started = subprocess.Popen(
            [*command, str(listener.fileno()), str(directory)],
            pass_fds=[listener.fileno()],
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            stdout=log,
            stderr=log,
        )
    try:
        yield started.pid
    finally:
        started.terminate()
        started.wait(DEADLINE_SECONDS)


def wait_for_engine(url):
    def found():
        try:
            return find_engine(url)
        except HostCannotError:
            return None

    return eventually(found)


def test_an_api_behind_a_proxy_is_not_taken_for_dockerd(engine, tmp_path):
    with proxy(tmp_path / "proxy.sock", engine.socket) as url, pytest.raises(HostCannotError, match="not dockerd"):
        find_engine(url)


@contextmanager
def proxy(path, target):
    """A process that passes on what it hears on `path` to the socket `target`."""
    with subprocess.Popen([sys.executable, "-c", PROXY, path, target], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield f"unix://{path}"
        finally:
            process.kill()


PROXY = """
import socket, sys, threading
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
while True:
    client, _ = listener.accept()
    server = socket.socket(socket.AF_UNIX)
    server.connect(sys.argv[2])
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    threading.Thread(target=pump, args=(server, client), daemon=True).start()
"""


def test_who_a_container_is(engine):
    options = {
        "network_mode": "none",
        "environment": {"TOKEN": "hidden-1"},
        "labels": {"key": "hidden-2"},
        "healthcheck": {"test": ["CMD-SHELL", "true hidden-3"]},
    }
    with container(engine, "sleep", "hidden-4", run=False, **options) as made, closed_identity(engine) as identity:
        by_id, by_name = (identity.inspect(asked) for asked in (made.id, made.name))
        assert by_id == by_name
        assert (by_id.id, by_id.name, by_id.image, by_id.network) == (made.id, made.name, engine.image, "none")
        assert (engine.data_root / "overlay2" / by_id.layer / "diff").is_dir()
        assert by_id.configuration["Config"]["Env"][0] == "TOKEN=<redacted>"
        assert by_id.configuration["Config"]["Labels"] == {"key": "<redacted>"}
        assert "hidden" not in json.dumps(by_id.configuration)


def test_arguments_and_values_are_kept_if_asked_for(engine):
    with (
        container(engine, "sleep", "6", run=False, environment={"TOKEN": "shown"}) as made,
        closed_identity(engine, with_values=True) as identity,
    ):
        found = identity.inspect(made.id)
        assert found.configuration["Config"]["Cmd"] == ["sleep", "6"]
        assert "TOKEN=shown" in found.configuration["Config"]["Env"]
        assert found.network == "bridge"


def test_a_container_that_is_gone_keeps_its_id(engine):
    made = engine.client.containers.create(engine.image)
    made.remove()
    with closed_identity(engine) as identity:
        gone, unknown = (identity.inspect(asked) for asked in (made.id, "no-such-name"))
        assert (gone.id, gone.name, gone.layer, dict(gone.configuration)) == (made.id, "", "", {})
        assert (unknown.id, unknown.name) == ("", "no-such-name")


@contextmanager
def closed_identity(engine, **options):
    identity = Identity(find_engine(engine.url), **options)
    try:
        yield identity
    finally:
        identity.close()


def test_an_engine_that_hangs_or_dies_does_not_stop_the_session(new_engine):
    engine = new_engine()
    made = engine.client.containers.create(engine.image)
    with closed_identity(engine) as identity:
        assert identity.engine_is_alive
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            assert identity.inspect(made.id) is None
            assert identity.names_of([made.id]) == []
            with pytest.raises(HostCannotError, match="in time"):
                find_engine(engine.url, timeout_seconds=0.2)
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        eventually(lambda: identity.inspect(made.id) is not None)
        assert [one.id for one in identity.names_of([made.id])] == [made.id]
        pid = engine.pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not identity.engine_is_alive)
        assert identity.inspect(made.id) is None
        assert identity.names_of([made.id]) == []


def test_doctor_says_yes_with_an_engine_and_no_without(engine, capsys):
    assert diagnosed("--docker-host", engine.url, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["can_record"] is True
    assert told["engine"]["version"] == engine.client.version()["Version"]
    assert told["phases"]["with_kernel_evidence"] > 0
    assert diagnosed("--docker-host", "unix:///nowhere.sock") == 3
    assert "no engine at unix:///nowhere.sock" in capsys.readouterr().out


def diagnosed(*arguments):
    parser = argparse.ArgumentParser()
    doctor.configure(parser)
    return doctor.run(parser.parse_args(arguments))


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
