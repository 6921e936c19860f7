# SPDX-License-Identifier: Apache-2.0
"""Connections to a Docker API: where it is, what it answers, and one line for each way it can fail."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from observe.errors import HostCannotError

DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"

_OTHER_HOST = "choose another with --docker-host"
_LARGEST_ANSWER_BYTES = 4 << 20
FOREIGN_HOST = "engine is not on this host: run observe there"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The client's certificate, its key and the authority, as the docker command finds them."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Address:
    """Where an API listens: a unix socket's `path`, or `host` and `port`; `url` as it was given."""

    url: str
    path: str = ""
    host: str = ""
    port: int = 0
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status, body, and the boot clock before the request was sent and when the first byte came."""

    status: int
    body: bytes
    sent_ns: int
    answered_ns: int

    @property
    def message(self) -> str:
        """What the engine says of a failure."""
        try:
            return str(json.loads(self.body)["message"])
        except (ValueError, KeyError, TypeError):
            return self.body.decode(errors="replace") or f"status {self.status}"


@dataclass(slots=True)
class Connection:
    """An open connection to an API. It stays open between requests: its other end shows which process answers."""

    address: Address
    socket: socket.socket
    _http: http.client.HTTPConnection
    #: Whoever then hangs up was an engine, and has ended.
    _has_answered: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the other end means to answer further requests."""
        return self._http.sock is not None

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`. Raises HostCannotError if what answers is not a Docker engine, or nothing does."""
        url = self.address.url
        with _one_line(url, has_answered=self._has_answered):
            self._http.request("GET", path, headers={"User-Agent": "observe"})
            response = self._http.getresponse()
            body = response.read(_LARGEST_ANSWER_BYTES)
        if b"HTTP request to an HTTPS server" in body:
            raise HostCannotError(f"{url} speaks TLS: set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH")
        if response.status != http.HTTPStatus.OK:
            raise HostCannotError(f"{url} does not answer like Docker (GET {path}: {response.status}); {_OTHER_HOST}")
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise HostCannotError(f"{url} does not answer like Docker (GET {path}: not a JSON object); {_OTHER_HOST}")
        self._has_answered = True
        return answer

    def exchange(self, method: str, path: str, body: Mapping[str, Any] | bytes | None = None) -> Answer:
        """Send a request and wait for its answer, whatever its status. Raises HostCannotError.

        `body`: what is sent as JSON, or a tar archive as it is. After an error the connection is of no further use.
        """
        data, headers = body, {"User-Agent": "observe"}
        if data is not None:
            headers["Content-Type"] = "application/x-tar" if isinstance(data, bytes) else "application/json"
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
        with _one_line(self.address.url, has_answered=self._has_answered):
            sent_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._http.request(method, path, data, headers)
            # Not by getresponse: reading the headers takes as long as a short phase.
            if not select.select([self.socket], [], [], self.socket.gettimeout())[0]:
                raise TimeoutError
            answered_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            response = self._http.getresponse()
            content = response.read()
        self._has_answered = True
        return Answer(response.status, content, sent_ns, answered_ns)


class KeptConnection:
    """A connection for many questions over a long time, opened when it is needed and again when it was lost.

    For several threads, one question at a time; `close` ends the one that waits.
    """

    def __init__(self, target: Address, timeout_seconds: float) -> None:
        """Nothing is opened yet; so long an answer is waited for."""
        self._target, self._timeout_seconds = target, timeout_seconds
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._connection: Connection | None = None
        self._closed = False

    def ask(self, path: str) -> Answer:
        """The answer to GET `path`, whatever its status. Raises HostCannotError."""
        with self._lock:
            kept = self._connection
            if kept is not None and not _was_closed(kept):
                try:
                    return self._ask(kept, path)
                except HostCannotError as error:
                    # It may have hung up just now, before it read the question.
                    if self._closed or not isinstance(error.__cause__, (http.client.HTTPException, ConnectionError)):
                        raise
            self._drop()
            self._connection = self._stack.enter_context(connect(self._target, self._timeout_seconds))
            if self._closed:  # meanwhile
                self._drop()
                raise HostCannotError(f"{self._target.url} is not asked any more")
            return self._ask(self._connection, path)

    def _ask(self, connection: Connection, path: str) -> Answer:
        try:
            answer = connection.exchange("GET", path)
        except BaseException:
            self._drop()
            raise
        if not connection.is_open:
            self._drop()
        return answer

    def _drop(self) -> None:
        self._connection = None
        self._stack.close()

    def close(self) -> None:
        """Close it, for good."""
        self._closed = True
        waiting = self._connection
        if waiting is not None:
            with contextlib.suppress(OSError):
                waiting.socket.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop()


def _was_closed(connection: Connection) -> bool:
    """Whether the other end has hung up; between two questions it has nothing else to say."""
    return bool(select.select([connection.socket], [], [], 0)[0])


def address(docker_host: str | None = None) -> Address:
    """Where `docker_host` (default: $DOCKER_HOST, then the usual socket) is. HostCannotError if it is of no use."""
    url = docker_host or os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST
    if url.startswith("unix://"):
        path = url.removeprefix("unix://")
        if not path.startswith("/"):
            raise HostCannotError(f"{url} has no absolute path: write it like {DEFAULT_DOCKER_HOST}")
        return Address(url, path=path)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise HostCannotError(f"{url} is not an address ({error}); {_OTHER_HOST}") from error
    if parts.scheme == "ssh":
        raise HostCannotError(f"{url}: {FOREIGN_HOST}")
    if parts.scheme not in ("tcp", "http", "https") or not parts.hostname:
        raise HostCannotError(f"{url} is no address of a Docker engine: use unix:///path or tcp://127.0.0.1:port")
    secure = parts.scheme == "https" or bool(os.environ.get("DOCKER_TLS_VERIFY"))
    tls = _tls_files() if secure else None
    return Address(url, host=parts.hostname, port=port or (2376 if tls else 2375), tls=tls)


@contextlib.contextmanager
def connect(target: Address, timeout_seconds: float) -> Iterator[Connection]:
    """An open connection. Raises HostCannotError: nothing there, refused, not allowed, too slow, TLS."""
    with contextlib.ExitStack() as stack:
        with _one_line(target.url):
            plain = stack.enter_context(_open(target, timeout_seconds))
            channel = plain
            if target.tls is not None:
                channel = stack.enter_context(_secure(plain, target.host, target.tls))
        client = http.client.HTTPConnection(target.host or "docker")
        client.sock = channel
        yield Connection(target, channel, client)


def _open(target: Address, timeout_seconds: float) -> socket.socket:
    if not target.path:
        return socket.create_connection((target.host, target.port), timeout_seconds)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.settimeout(timeout_seconds)
        connect_by_path(channel, Path(target.path))
    except BaseException:
        channel.close()
        raise
    return channel


def connect_by_path(channel: socket.socket, path: Path) -> None:
    """Connect to a unix socket whose path may be longer than an address can hold (107 bytes)."""
    descriptor = os.open(path, os.O_PATH)
    try:
        channel.connect(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _tls_files() -> TlsFiles:
    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path("~/.docker").expanduser())
    return TlsFiles(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def _secure(channel: socket.socket, host: str, files: TlsFiles) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(files.authority))
    context.load_cert_chain(files.certificate, files.key)
    return context.wrap_socket(channel, server_hostname=host)


@contextlib.contextmanager
def _one_line(url: str, *, has_answered: bool = False) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP raise into one line that says what to do; special errors come first.

    `has_answered`: something that answers like Docker was there before.
    """
    try:
        yield
    except FileNotFoundError as error:
        if url.startswith("unix://"):
            raise HostCannotError(f"no engine at {url}: is dockerd running? {_OTHER_HOST}") from error
        raise HostCannotError(f"{url} needs TLS files: {_tls_files().authority.parent} lacks some") from error
    except PermissionError as error:
        raise HostCannotError(f"no permission to use {url}: run as root") from error
    except ConnectionRefusedError as error:
        raise HostCannotError(f"no engine at {url} (connection refused): is dockerd running? {_OTHER_HOST}") from error
    except TimeoutError as error:
        raise HostCannotError(f"{url} does not answer in time: is dockerd stuck? {_OTHER_HOST}") from error
    except ssl.SSLError as error:
        raise HostCannotError(f"{url}: TLS failed ({error.reason}): check DOCKER_CERT_PATH") from error
    except (http.client.HTTPException, ConnectionError) as error:
        if has_answered:
            raise HostCannotError(f"the engine at {url} has ended: it hung up while it was asked") from error
        raise HostCannotError(f"{url} does not answer like Docker (no HTTP); {_OTHER_HOST}") from error
    except OSError as error:
        raise HostCannotError(f"cannot connect to {url} ({error.strerror or error}); {_OTHER_HOST}") from error
