# SPDX-License-Identifier: Apache-2.0
"""The boundaries of API operations, and nothing else of what a client and dockerd say to each other."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from puppets import Puppet, call, wait_until_inside
from watching import Watch

from observe.collectors.waiting import Bell, readable
from observe.model import Event, Kind, Mark
from observe.probes.events import Role

ID = "0123456789abcdef" * 4
SECRET = "hunter2"  # noqa: S105 - what must not be recorded
API = (Kind.API_REQUEST, Kind.API_RESPONSE)
#: net/http reads into a buffer of 4096 bytes.
BUFFER = bytes(4096)


def request(target: str, method: str = "POST", body: str = "") -> bytes:
    """A request as docker's client sends it, with something that must not be recorded."""
    head = f"{method} {target} HTTP/1.1\r\nHost: {SECRET}\r\nX-Registry-Auth: {SECRET}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def response(status: int) -> bytes:
    """A response as dockerd sends it."""
    return f"HTTP/1.1 {status} Some Reason\r\nX-Secret: {SECRET}\r\n\r\n{{}}".encode()


class Connection:
    """A client's end, and dockerd's descriptor."""

    def __init__(self, dockerd: Puppet, listening: int, client: socket.socket, accept: str = "accept4") -> None:
        self._dockerd = dockerd
        self.client = client
        self.fd = dockerd.call(accept, listening, 0, 0, 0)["ret"]
        assert self.fd >= 0

    def says(self, data: bytes, *sizes: int) -> list[dict[str, int]]:
        """The client sends `data`, dockerd reads it: in pieces of at most these sizes, the last one without limit."""
        self.client.sendall(data)
        return [self._dockerd.call("read", self.fd, bytes(size), size) for size in (*sizes, len(BUFFER))]

    def answers(self, *data: bytes) -> list[dict[str, int]]:
        """Dockerd writes, the client reads."""
        made = [self._dockerd.call("write", self.fd, each, len(each)) for each in data]
        assert self.client.recv(1 << 16).startswith(b"HTTP/1.1")
        return made


class Engine:
    """A puppet that is followed as dockerd, listening."""

    def __init__(self, dockerd: Puppet, folder: Path, stack: ExitStack) -> None:
        self.dockerd = dockerd
        self._stack = stack
        self.path = str(folder / "sock")
        self._listening = dockerd.do(["listen", self.path])

    def connect(self) -> Connection:
        client = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(self.path)
        return Connection(self.dockerd, self._listening, client)

    def connect_tcp(self) -> Connection:
        listening, port = self.dockerd.do(["listen", None])
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        return Connection(self.dockerd, listening, client, "accept")


@pytest.fixture
def engine(watch: Watch, puppet: Puppet, folder: Path) -> object:
    with ExitStack() as stack:
        watch.follow(puppet, Role.DOCKERD)
        yield Engine(puppet, folder, stack)


@pytest.mark.parametrize(
    "target",
    [
        "/v1.41/containers/create?name=x",
        "/v1.41/containers/create",
        "/v1.9/containers/create",
        "/containers/create",
        "/containers/create?name=a/start?b",
        f"/v1.45/containers/{ID}/start",
        "/v1.45/containers/some_name.1/start?detachKeys=ctrl-p",
        "/containers/x/start",
        f"/v1.41/containers/{'n' * 215}/start",
        f"/v1.41/containers/create?name={'n' * 215}",
    ],
)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_followed_request_and_its_answer(target: str, transport: str, watch: Watch, engine: Engine) -> None:
    connection = engine.connect() if transport == "unix" else engine.connect_tcp()
    (read,) = connection.says(request(target, body="{}"))
    (written,) = connection.answers(response(201))
    asked, answered = watch.events()
    pid = engine.dockerd.pid
    assert (asked.kind, asked.path, asked.marks) == (Kind.API_REQUEST, target, Mark(0))
    assert (answered.kind, answered.ret, answered.path) == (Kind.API_RESPONSE, 201, "")
    for event, call_ in ((asked, read), (answered, written)):
        assert (event.fd, event.pid, event.tid, event.comm, event.path2, event.detail) == (
            connection.fd, pid, pid, "puppet", "", "",
        )  # fmt: skip
        assert call_["before_ns"] <= event.time_ns <= event.end_ns <= call_["after_ns"]
    assert asked.duration_ns == 0


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1.41/containers/create",
        "PUT /v1.41/containers/create",
        "POST /v1.41/containers/x/stop",
        "POST /v1.41/containers/x/restart",
        "POST /v1.41/containers/x/startx",
        "POST /v1.41/containers/x/start/more",
        "POST /v1.41/containers/start",
        "POST /v1.41/containers/createx",
        "POST /v1.41/containers/x/create",
        "POST /v1.41/volumes/create",
        "POST /v1.41/networks/create?name=/containers/create",
        "POST /v1.41/exec/x/start",
        "POST /v1.41/images/create?fromImage=/containers/x/start",
        "POST /v1.41/containers/x/wait?condition=/start",
        "POST http://host/containers/create",
        "POST /v123456/containers/create",
    ],
)
def test_other_requests_are_not_recorded(line: str, watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    method, _, target = line.partition(" ")
    connection.says(request(target, method))
    connection.answers(response(200))
    assert watch.events() == []
    # The connection is still looked at.
    connection.says(request("/containers/create"))
    assert [event.path for event in watch.events()] == ["/containers/create"]


@pytest.mark.parametrize("status", [200, 201, 204, 304, 400, 404, 409, 500])
def test_status_is_recorded(status: int, watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    connection.says(request("/containers/create"))
    connection.answers(response(status))
    assert [event.ret for event in watch.events(Kind.API_RESPONSE)] == [status]


def test_an_announcement_is_no_answer(watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    connection.says(request("/containers/create"))
    connection.answers(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.answers(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert [event.kind for event in watch.events()] == [Kind.API_REQUEST]
    connection.answers(response(201))
    assert [event.ret for event in watch.events()] == [201]


def test_only_the_first_bytes_of_a_request_and_of_its_answer_count(watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    connection.says(request("/containers/create"))
    connection.says(request("/containers/of-the-body/start"))
    connection.answers(response(201))
    engine.dockerd.call("write", connection.fd, response(500), 12)
    assert [(event.kind, event.path, event.ret) for event in watch.events()] == [
        (Kind.API_REQUEST, "/containers/create", 0),
        (Kind.API_RESPONSE, "", 201),
    ]


def test_one_connection_many_requests(watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    names = [f"/containers/{index}/start" for index in range(7)]
    for name in names:
        connection.says(request(name))
        connection.answers(response(204))
        connection.says(request("/containers/json", "GET"))
        connection.answers(response(200))
    seen = watch.events()
    assert [event.kind for event in seen] == [*API] * 7
    assert [event.path for event in seen[::2]] == names


def test_connections_at_the_same_time(watch: Watch, engine: Engine) -> None:
    connections = [engine.connect() for _ in range(5)]
    for index, connection in enumerate(connections):
        connection.says(request(f"/containers/{index}/start"))
    for connection in reversed(connections):
        connection.answers(response(204))
    seen = watch.events()
    fds = [connection.fd for connection in connections]
    assert [(event.fd, event.path) for event in seen[:5]] == [
        (fd, f"/containers/{index}/start") for index, fd in enumerate(fds)
    ]
    assert [event.fd for event in seen[5:]] == fds[::-1]


def test_the_first_letter_is_read_by_itself(watch: Watch, engine: Engine) -> None:
    """net/http reads one byte in the background, to notice a client that goes away."""
    connection = engine.connect()
    for index in range(3):
        connection.says(request(f"/v1.41/containers/{index}/start"), 1)
        connection.answers(response(204))
        connection.says(request("/containers/json", "GET"), 1)
        connection.answers(response(200))
        connection.says(request("/containers/prune"), 1)
        connection.answers(response(200))
    seen = watch.events()
    assert [event.kind for event in seen] == [*API] * 3
    assert [event.path for event in seen[::2]] == [f"/v1.41/containers/{index}/start" for index in range(3)]


def test_the_next_request_is_read_while_the_answer_is_still_being_written(watch: Watch, engine: Engine) -> None:
    """The client may have the answer before dockerd's write returns; the background read then has the next 'P'."""
    connection = engine.connect()
    connection.says(request("/containers/1/start"))
    long = response(200) + b" " * (1 << 22)
    engine.dockerd.thread(call("write", connection.fd, long, len(long)), wait=False)
    wait_until_inside(engine.dockerd.pid, "write")
    connection.says(request("/containers/2/start"), 1)
    received = 0
    while received < len(long):
        received += len(connection.client.recv(1 << 20))
    (written,) = engine.dockerd.do(["join"])
    assert written["ret"] == len(long)
    connection.answers(response(204))
    seen = sorted(watch.events(*API), key=lambda event: event.time_ns)
    assert [(event.kind, event.path, event.ret) for event in seen] == [
        (Kind.API_REQUEST, "/containers/1/start", 0),
        (Kind.API_RESPONSE, "", 200),
        (Kind.API_REQUEST, "/containers/2/start", 0),
        (Kind.API_RESPONSE, "", 204),
    ]


def test_a_request_in_pieces_is_not_completed_with_another_connections_bytes(watch: Watch, engine: Engine) -> None:
    """Old memory of the programs stands behind what was read."""
    whole, half = engine.connect(), engine.connect()
    target = f"/containers/{'x' * 40}/start?{SECRET}"
    for _ in range(5):  # on whichever processor it runs
        whole.says(request(target))
        whole.answers(response(204))
        half.says(b"POST /containers/half")
        half.answers(response(204))
    assert [(event.kind, event.path) for event in watch.events()] == [
        (Kind.API_REQUEST, target),
        (Kind.API_RESPONSE, ""),
    ] * 5


def test_connections_that_were_open_before(watch: Watch, puppet: Puppet, folder: Path) -> None:
    with ExitStack() as stack:
        engine = Engine(puppet, folder, stack)
        told, untold = engine.connect(), engine.connect()
        watch.probes.seed({puppet.pid: Role.DOCKERD}, [told.fd])
        for connection in (told, untold):
            connection.says(request("/containers/create"))
            connection.answers(response(201))
        assert [(event.kind, event.fd) for event in watch.events()] == [(kind, told.fd) for kind in API]


def test_seeding_again_does_not_forget_a_request(watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    connection.says(request("/containers/create"))
    watch.probes.seed({engine.dockerd.pid: Role.DOCKERD}, [connection.fd])
    connection.answers(response(201))
    assert [event.kind for event in watch.events()] == [*API]


@pytest.mark.parametrize("reused", [False, True], ids=["new number", "number of a closed connection"])
def test_what_is_no_connection_is_not_looked_at(reused: bool, watch: Watch, engine: Engine, folder: Path) -> None:
    connection = engine.connect()
    if reused:
        assert engine.dockerd.call("close", connection.fd)["ret"] == 0
    fifo, file = folder / "fifo", folder / "file"
    os.mkfifo(fifo)
    file.write_bytes(request("/containers/create"))
    opened = engine.dockerd.call("open", fifo, os.O_RDWR)["ret"]
    assert (opened == connection.fd) == reused
    for _ in range(5):
        fifo_end = os.open(fifo, os.O_WRONLY)
        os.write(fifo_end, request("/containers/create"))
        os.close(fifo_end)
        assert engine.dockerd.call("read", opened, BUFFER, len(BUFFER))["ret"] > 0
        engine.dockerd.call("write", opened, response(201), 12)
        engine.dockerd.call("read", opened, BUFFER, len(BUFFER))
    assert engine.dockerd.call("close", opened)["ret"] == 0
    opened = engine.dockerd.call("open", file, os.O_RDONLY)["ret"]
    assert engine.dockerd.call("read", opened, BUFFER, len(BUFFER))["ret"] > 0
    assert [event.path for event in watch.events()] == [str(fifo)]  # its opening, for it could be written


@pytest.mark.parametrize("role", [Role.CONTAINERD, Role.CHILD], ids=lambda role: role.name.lower())
def test_only_dockerd_is_listened_to(role: Role, watch: Watch, puppet: Puppet, folder: Path) -> None:
    with ExitStack() as stack:
        watch.follow(puppet, role)
        connection = Engine(puppet, folder, stack).connect()
        watch.probes.seed({}, [connection.fd])
        connection.says(request("/containers/create"))
        connection.answers(response(201))
        assert watch.events() == []


def test_a_target_longer_than_the_record(watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    target = f"/v1.41/containers/create?name={'n' * 300}"
    connection.says(request(target))
    connection.answers(response(201))
    asked, answered = watch.events()
    assert asked.marks == Mark.TRUNCATED
    assert len(asked.path) > 240
    assert target.startswith(asked.path)
    assert answered.ret == 201


def test_no_byte_of_headers_or_body_leaves_the_kernel(watch: Watch, engine: Engine) -> None:
    connection = engine.connect()
    for target in ("/containers/create?name=told", "/containers/told/start"):
        connection.says(request(target, body=SECRET * 20), 1)
        connection.answers(response(201) + SECRET.encode() * 20, SECRET.encode())
    memory = watch.memory()
    assert memory.count(b"told") == 2
    assert SECRET.encode() not in memory
    for word in (b"HTTP", b"Host", b"Registry", b"201"):
        assert word not in memory


def test_goroutine_of_a_request(watch: Watch, engine: Engine) -> None:
    """What the register holds: the same for a read and a write of the same thread here, whatever it is."""
    connection = engine.connect()
    connection.says(request("/containers/create"))
    connection.answers(response(201))
    seen: list[Event] = watch.events()
    assert len({event.goroutine for event in seen}) == 1


def test_older_kernels_record_the_same(older_watch: Watch, puppet: Puppet, folder: Path) -> None:
    with ExitStack() as stack:
        older_watch.follow(puppet, Role.DOCKERD)
        test_one_connection_many_requests(older_watch, Engine(puppet, folder, stack))


def test_an_answer_wakes_the_reader_while_other_events_still_wait(watch: Watch, engine: Engine, folder: Path) -> None:
    def rings() -> bool:
        """Whether the bell was rung since the last time; the kernel rings from an interrupt, at once."""
        rung = bell.fileno() in readable((bell.fileno(),), 0.2)
        bell.answer()
        return rung

    connection = engine.connect()
    bell = Bell(watch.probes.ring)
    try:
        assert not rings()
        connection.says(request("/containers/create"))
        assert rings()  # the first event since all was read
        for number in range(3):
            assert engine.dockerd.call("mkdir", str(folder / f"d{number}").encode(), 0o755)["ret"] == 0
        assert not rings()
        connection.answers(response(201))
        assert rings()
    finally:
        bell.close()
    assert [event.kind for event in watch.events()] == [Kind.API_REQUEST, *3 * [Kind.MKDIR], Kind.API_RESPONSE]
