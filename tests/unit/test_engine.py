# SPDX-License-Identifier: Apache-2.0
"""Finding an engine: what /proc says, what answers on a socket, and one line for each way it can fail."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path

import pytest

from observe.collectors.docker_api import layer_of_graph_driver, redacted
from observe.engine import Engine, api, containerd, find_engine, lineage_seeds, peer, procfs
from observe.engine.containerd import flag, settings
from observe.errors import HostCannotError

VERSION = b'{"ApiVersion": "1.41", "Version": "1", "Components": [{"Name": "Engine", "Version": "1"}]}'

NET_UNIX = """\
Num       RefCount Protocol Flags    Type St Inode Path
00000000d7249af5: 00000002 00000000 00010000 0001 01 29387 /run/with space/docker.sock
00000000a45fd72b: 00000003 00000000 00000000 0001 03 29417 /run/with space/docker.sock
000000008928bce6: 00000003 00000000 00000000 0001 03  8100
0000000076a0121d: 00000002 00000000 00000000 0002 01 29384 @ff924
"""
NET_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:095F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 29395 1 0000000 100 0 0 10 0
"""
NET_TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 0000000000000000FFFF00000100007F:0947 0000000000000000FFFF00000200007F:8AE2 01 0:0 0:0 0 0 0 77 1 0 100 0 0 10 0
   1: B80D0120000000000000000001000000:0947 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 78 1 0 100 0 0 10 0
"""


@pytest.fixture
def proc(tmp_path):
    """A /proc of three processes: 1, its child 40 (whose name has a parenthesis and spaces) and 41, child of 40."""
    for pid, ppid, name in ((1, 0, "init"), (40, 1, "a) b (c"), (41, 40, "containerd")):
        folder = tmp_path / str(pid)
        (folder / "net").mkdir(parents=True)
        (folder / "fd").mkdir()
        (folder / "stat").write_text(f"{pid} ({name}) S {ppid} " + " ".join(str(n) for n in range(5, 53)) + "\n")
    (tmp_path / "self").symlink_to("1")
    (tmp_path / "40" / "net" / "unix").write_text(NET_UNIX)
    (tmp_path / "40" / "net" / "tcp").write_text(NET_TCP)
    (tmp_path / "40" / "net" / "tcp6").write_text(NET_TCP6)
    (tmp_path / "40" / "fd" / "10").symlink_to("socket:[29417]")
    (tmp_path / "40" / "fd" / "9").symlink_to("socket:[29387]")
    (tmp_path / "40" / "fd" / "0").symlink_to("/dev/null")
    (tmp_path / "40" / "cmdline").write_bytes(b"dockerd\0--exec-root\0\0")
    return tmp_path


def test_processes(proc):
    found = procfs.processes(proc)
    assert [(p.pid, p.ppid, p.comm) for p in found] == [(1, 0, "init"), (40, 1, "a) b (c"), (41, 40, "containerd")]
    assert {p.start_ticks for p in found} == {22}  # the 22nd field of stat
    assert [p.pid for p in procfs.descendants(1, found)] == [40, 41]
    assert list(procfs.descendants(41, found)) == []
    assert procfs.process(99, proc) is None


def test_arguments_keep_empty_ones(proc):
    assert procfs.arguments(40, proc) == ["dockerd", "--exec-root", ""]
    assert procfs.arguments(41, proc) == []


def test_sockets(proc):
    assert procfs.socket_fds(40, proc) == {9: 29387, 10: 29417}
    assert procfs.socket_fds(99, proc) == {}
    path = "/run/with space/docker.sock"
    assert procfs.unix_sockets(40, proc) == [
        procfs.UnixSocket(29387, path, listening=True, connected=False),
        procfs.UnixSocket(29417, path, listening=False, connected=True),
        procfs.UnixSocket(8100, "", listening=False, connected=True),
        procfs.UnixSocket(29384, "@ff924", listening=False, connected=False),
    ]
    assert procfs.unix_sockets(41, proc) == []


@pytest.mark.skipif(sys.byteorder != "little", reason="the checked-in tables are of a little-endian machine")
def test_tcp_addresses_of_both_families(proc):
    assert procfs.tcp_sockets(40, proc) == [
        procfs.TcpSocket(29395, ("127.0.0.1", 2399), ("0.0.0.0", 0), listening=True, connected=False),  # noqa: S104
        procfs.TcpSocket(77, ("127.0.0.1", 2375), ("127.0.0.2", 35554), listening=False, connected=True),
        procfs.TcpSocket(78, ("2001:db8::1", 2375), ("::", 0), listening=True, connected=False),
    ]


def test_seeds_stop_at_shims_of_whoever(monkeypatch):
    """A shim may be a child of containerd, and containerd may serve others: theirs are not followed."""
    found = Engine(
        **{field.name: "" for field in fields(Engine)}
        | {"pid": 10, "containerd_pid": 11, "containerd_address": "/c.sock", "containerd_namespace": "moby"}
    )
    tree = [
        (10, 1, "dockerd"),
        (11, 10, "containerd"),
        (12, 10, "docker-proxy"),
        (20, 11, "containerd-shim"),
        (21, 20, "sleep"),
        (30, 1, "containerd-shim"),
        (31, 30, "pause"),
        (40, 11, "runc"),
        (50, 1, "containerd-shim"),
    ]
    arguments = {
        20: ["shim", "-namespace", "moby", "-address", "/c.sock"],
        30: ["shim", "-namespace", "k8s.io", "-address", "/c.sock"],
        50: ["shim", "--namespace=moby-165536.165536", "--address=unix:///c.sock"],
    }
    monkeypatch.setattr(procfs, "processes", lambda: [procfs.Process(*row, "S", 1) for row in tree])
    monkeypatch.setattr(procfs, "arguments", arguments.__getitem__)
    monkeypatch.setattr(containerd, "same_file", lambda one, other: one.name == other.name)
    assert dict(lineage_seeds(found)) == {
        10: "dockerd",
        11: "containerd",
        12: "child",
        40: "child",
        20: "child",
        50: "child",
    }


def test_flags_win_over_daemon_json_over_defaults():
    assert settings([], {}).containerd_address == "/run/containerd/containerd.sock"
    configured = {"containerd": "unix:///c.sock", "exec-root": "/e"}
    assert settings(["dockerd"], configured).containerd_address == "/c.sock"
    found = settings(["dockerd", "--exec-root=/given", "--containerd", "/d.sock"], configured)
    assert (found.exec_root, found.containerd_address, found.containerd_namespace) == ("/given", "/d.sock", "moby")
    assert flag(["--containerd-namespace", "x", "--containerd"], "containerd") == ""


class Talkative:
    """An engine that answers as many requests a connection as it likes (None: it lets one wait); counts connections."""

    def __init__(self, path, answers):
        self.connections = 0
        self.lets_wait = threading.Event()
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                channel = self._listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            with channel:
                for answer in self._answers:
                    if not channel.recv(65536):
                        break
                    if answer is None:
                        self.lets_wait.set()
                        channel.recv(1)
                        break
                    channel.sendall(answer)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
LAST = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def test_a_kept_connection_that_is_lost_with_the_question_is_opened_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "_was_closed", lambda _: False)  # it hangs up after we have looked
    engine = Talkative(tmp_path / "s", [OK, OK])
    kept = api.KeptConnection(api.address(f"unix://{tmp_path}/s"), 60)
    with closing(engine), closing(kept):
        assert [kept.ask("/x").status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize(
    ("answers", "connections"),
    [
        ([OK, MISSING, OK, OK], 1),
        ([OK, OK], 2),  # it hangs up without a word
        ([OK, LAST], 2),
    ],
)
def test_a_kept_connection_is_used_again_and_opened_anew(tmp_path, answers, connections):
    engine = Talkative(tmp_path / "s", answers)
    kept = api.KeptConnection(api.address(f"unix://{tmp_path}/s"), 60)
    with closing(engine), closing(kept):
        for number in range(4):
            answer = kept.ask("/x")
            expected = answers[number % len(answers)]
            assert (answer.status, answer.body) == (404 if expected is MISSING else 200, expected[-2:])
        assert engine.connections == connections


def test_a_kept_connection_that_is_closed_ends_whoever_waits_on_it(tmp_path):
    engine = Talkative(tmp_path / "s", [OK, None])
    kept = api.KeptConnection(api.address(f"unix://{tmp_path}/s"), 60)
    kept.ask("/x")
    ended = []

    def ask():
        with pytest.raises(HostCannotError):
            kept.ask("/y")
        ended.append(True)

    waiting = threading.Thread(target=ask)
    with closing(engine):
        waiting.start()
        assert engine.lets_wait.wait(30)
        kept.close()
        waiting.join(30)
        assert ended
        with pytest.raises(HostCannotError, match="not asked any more"):
            kept.ask("/z")


def test_a_kept_connection_gives_up_on_an_engine_that_does_not_answer(tmp_path):
    engine = Talkative(tmp_path / "s", [None])
    kept = api.KeptConnection(api.address(f"unix://{tmp_path}/s"), 0.05)
    with closing(engine), closing(kept):
        with pytest.raises(HostCannotError, match="in time"):
            kept.ask("/x")
        with pytest.raises(HostCannotError):
            api.KeptConnection(api.address(f"unix://{tmp_path}/nobody"), 1).ask("/x")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("unix://relative.sock", "absolute"),
        ("ssh://root@elsewhere", "run observe there"),
        ("npipe:////./pipe/docker", "use unix:///path"),
        ("tcp://127.0.0.1:port", "is not an address"),
        ("tcp://", "use unix:///path"),
        ("/var/run/docker.sock", "use unix:///path"),
    ],
)
def test_addresses_of_no_use(url, says):
    with pytest.raises(HostCannotError, match=says) as raised:
        api.address(url)
    assert "\n" not in str(raised.value)


def test_default_address(monkeypatch):
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert api.address().path == "/var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://[::1]")
    monkeypatch.delenv("DOCKER_TLS_VERIFY", raising=False)
    assert (api.address().host, api.address().port, api.address().tls) == ("::1", 2375, None)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    assert api.address().port == 2376
    assert api.address("unix:///other.sock").path == "/other.sock"


def test_no_socket_and_nobody_listening(tmp_path):
    with pytest.raises(HostCannotError, match=r"no engine at .*is dockerd running.*--docker-host"):
        find_engine(f"unix://{tmp_path}/none.sock")
    (tmp_path / "file").touch()
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(tmp_path / "stale.sock"))
    for name in ("file", "stale.sock"):
        with pytest.raises(HostCannotError, match="refused"):
            find_engine(f"unix://{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "no HTTP"),
        (b"220 mail ready\r\n", "no HTTP"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "not a JSON object"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "not a JSON object"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "no Docker engine but something else"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"ApiVersion": "1", "Components": [{"Name": "Podman Engine"}]}', "Podman Engine"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"ApiVersion": "1", "Components": [null, 1]}', "something else"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", "DOCKER_TLS_VERIFY"),
    ],
)
def test_what_is_not_docker_is_said_in_one_line(tmp_path, answer, says):
    with server(tmp_path / "s.sock", answer) as url, pytest.raises(HostCannotError, match=says) as raised:
        find_engine(url, timeout_seconds=5)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ask", [lambda one: one.get("/info"), lambda one: one.exchange("POST", "/containers/a/wait")])
def test_an_engine_that_has_answered_and_hangs_up_has_ended(tmp_path, ask):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with server(tmp_path / "s.sock", answer) as url, api.connect(api.address(url), 5) as connection:
        assert connection.get("/version") == {}
        with pytest.raises(HostCannotError, match=f"the engine at {url} has ended") as raised:
            ask(connection)
    assert "--docker-host" not in str(raised.value)


def test_a_socket_that_never_answers(tmp_path):
    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(str(tmp_path / "s.sock"))
        silent.listen()
        with pytest.raises(HostCannotError, match="does not answer in time"):
            find_engine(f"unix://{tmp_path}/s.sock", timeout_seconds=0.1)


@contextmanager
def server(path, answer):
    """Answers one connection with these bytes."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with closing(connection):
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"unix://{path}"
        thread.join()


SERVER = """
import os, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    connection, _ = listener.accept()
    while connection.recv(65536):
        connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}')
    connection.close()
"""


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_the_process_that_answers_is_found_not_the_one_that_made_the_socket(tmp_path, family):
    """This process makes the listener and keeps it open, as systemd does; another one accepts."""
    unix = family == "unix"
    with closing(socket.socket(socket.AF_UNIX if unix else socket.AF_INET)) as listener:
        listener.bind(str(tmp_path / "s.sock") if unix else ("127.0.0.1", 0))
        listener.listen()
        command = [sys.executable, "-c", SERVER, str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as child:
            try:
                url = f"unix://{tmp_path}/s.sock" if unix else f"tcp://127.0.0.1:{listener.getsockname()[1]}"
                with api.connect(api.address(url), 5) as connection:
                    connection.get("/version")
                    if unix:
                        assert peer.listener_maker(connection.socket) == os.getpid()
                    assert peer.serving_process(connection).pid == child.pid
            finally:
                child.kill()


def test_a_process_that_answers_but_is_not_dockerd(tmp_path):
    body = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(VERSION), VERSION)
    path = tmp_path / "s.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        code = SERVER.replace("HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}", repr(body)[2:-1])
        with subprocess.Popen(
            [sys.executable, "-c", code, str(listener.fileno())], pass_fds=[listener.fileno()]
        ) as child:
            try:
                with pytest.raises(HostCannotError, match=rf"pid {child.pid}\), not dockerd"):
                    find_engine(f"unix://{path}")
            finally:
                child.kill()


@pytest.mark.parametrize(("maker", "says"), [(0, "hostPID"), (os.getpid(), "run as root")])
def test_processes_that_may_not_be_looked_at(monkeypatch, tmp_path, maker, says):
    """From another pid namespace the maker is 0: then being root would not help."""

    def refuse(_pid):
        raise PermissionError

    monkeypatch.setattr(peer, "listener_maker", lambda _channel: maker)
    monkeypatch.setattr(procfs, "socket_fds", refuse)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        with (
            api.connect(api.address(f"unix://{tmp_path}/s.sock"), 5) as connection,
            pytest.raises(HostCannotError, match=says),
        ):
            peer.serving_process(connection)


def test_one_file_through_two_roots(tmp_path):
    (tmp_path / "one").touch()
    seen = peer.root_of(os.getpid(), str(tmp_path / "one"))
    assert seen != tmp_path / "one"
    assert peer.same_file(seen, tmp_path / "one")
    assert not peer.same_file(tmp_path / "none", tmp_path / "one")


def test_what_may_be_secret_is_left_out_and_the_rest_stays():
    inspected = {
        "Id": "i",
        "Path": "sh",
        "Args": ["-c", "s3"],
        "Config": {
            "Env": ["A=s3", "EMPTY", "B=x=s3"],
            "Cmd": ["s3"],
            "Entrypoint": None,
            "Labels": {"k": "s3"},
            "Healthcheck": {"Test": ["CMD", "curl", "s3"]},
        },
        "State": {"Health": {"Log": [{"ExitCode": 0, "Output": "s3"}]}},
        "HostConfig": {
            "NetworkMode": "none",
            "LogConfig": {"Type": "splunk", "Config": {"token": "s3"}},
            "Mounts": [{"VolumeOptions": {"DriverConfig": {"Name": "nfs", "Options": {"o": "password=s3"}}}}],
        },
    }
    left = redacted(inspected)
    assert "s3" not in str(left)
    assert left["Config"]["Env"] == ["A=<redacted>", "EMPTY=<redacted>", "B=<redacted>"]
    assert left["Config"]["Entrypoint"] is None
    assert left["Config"]["Healthcheck"]["Test"] == ["CMD", "<redacted>", "<redacted>"]
    assert left["HostConfig"]["LogConfig"] == {"Type": "splunk", "Config": {"token": "<redacted>"}}
    assert (left["Id"], left["Path"], left["HostConfig"]["NetworkMode"]) == ("i", "sh", "none")
    assert inspected["Args"] == ["-c", "s3"]


def test_layer_from_the_graph_driver():
    data = {"GraphDriver": {"Data": {"UpperDir": "/var/lib/docker/overlay2/abc/diff"}}}
    assert layer_of_graph_driver(data) == "abc"
    assert layer_of_graph_driver({"GraphDriver": {"Data": None}}) == ""
    assert Path(layer_of_graph_driver({})) == Path()
