# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: small, without waits that a client could prolong, and without a say in what is recorded."""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Container, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.exposition import gzip_accepted

from observe.errors import ObserveError
from observe.exporter.site import Answer, Site

#: Connections that are served at once; the next one takes the place of one that has not asked yet, or is closed.
CONNECTIONS = 32
#: However slowly a client speaks or reads, it has so long in all.
PATIENCE_SECONDS = 10.0
#: In which it must have asked: a request's head is one packet.
HEAD_SECONDS = 2.0
#: Who has just come is not cut off in favour of others: its request is on its way.
_GRACE_SECONDS = 0.05
#: If all places are taken, one is waited for so many times that long; most answers take milliseconds.
_TRIES = 4
_POLL_SECONDS = 1.0
_NOT_OURS = b"this host name is not ours: use the address, or give observe serve --allow-host NAME\n"


class Server(ThreadingHTTPServer):
    """Serves a site on an address, on threads of its own, between `start` and `stop`."""

    daemon_threads = True
    #: Who comes while places are handed over waits, instead of being unheard and trying again a second later.
    request_queue_size = 256

    def __init__(self, host: str, port: int, site: Site, names: Iterable[str] = ()) -> None:
        """Listen; port 0 takes a free one. `names`: of hosts, beside our own, for which requests are answered.

        Raises ObserveError if the address cannot be had.
        """
        self.site = site
        own = socket.gethostname()
        self.names = frozenset(name.lower() for name in ("localhost", own, own.partition(".")[0], *names))
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        #: Connection → when it is cut off.
        self._deadlines: dict[socket.socket, float] = {}
        #: The same for those whose request has not come yet, the oldest first.
        self._unheard: dict[socket.socket, float] = {}
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_SECONDS,), name="http", daemon=True)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ObserveError(
                f"cannot listen on {host} port {port}: {reason}; choose another with --listen"
            ) from error

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind, without asking a name server who we are as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread, if there is one to spare."""
        if not self._slots.acquire(blocking=False) and not self._take_a_place():
            self.shutdown_request(request)
            return
        now = time.monotonic()
        self._deadlines[request] = now + PATIENCE_SECONDS
        self._unheard[request] = now + HEAD_SECONDS
        super().process_request(request, client_address)

    def _take_a_place(self) -> bool:
        """Of whoever has kept us waiting for a request longest, or is served just now; whether there was one."""
        cut_off = False
        for _ in range(_TRIES):
            cut_off = cut_off or self._cut_off_oldest()
            if self._slots.acquire(timeout=_GRACE_SECONDS):
                return True
        return False

    def _cut_off_oldest(self) -> bool:
        """Whether there was one from whom a request should have come by now."""
        latest = time.monotonic() + HEAD_SECONDS - _GRACE_SECONDS
        for waiting, deadline in self._unheard.copy().items():
            # Whose request comes at this moment has taken itself off.
            if deadline <= latest and self._unheard.pop(waiting, None) is not None:
                _cut_off(waiting)
                return True
        return False

    def heard(self, request: Any) -> None:
        """Its request has come: it is not cut off in favour of others."""
        self._unheard.pop(request, None)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve it, then give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._unheard.pop(request, None)
            self._deadlines.pop(request, None)
            self._slots.release()

    def service_actions(self) -> None:
        """Cut off who takes too long."""
        now = time.monotonic()
        for request, deadline in (*self._unheard.copy().items(), *self._deadlines.copy().items()):
            if now >= deadline:
                _cut_off(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class has them
        """A client that went away is nobody's concern; anything else is a fault of ours, and one line."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"observe: http: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class _Handler(BaseHTTPRequestHandler):
    """One request a connection."""

    server: Server
    timeout = PATIENCE_SECONDS
    server_version, sys_version = "observe", ""

    def do_GET(self) -> None:
        """Answer."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer(with_body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the base class refuses, with the headers of every other answer."""
        status = HTTPStatus(code)
        text = f"{code} {message or status.phrase}\n"
        self._send(Answer(text.encode(errors="replace"), status=status), with_body=self.command != "HEAD")

    def _answer(self, *, with_body: bool) -> None:
        self.server.heard(self.connection)
        if not _is_ours(self.headers.get("Host", ""), self.server.names):
            answer = Answer(_NOT_OURS, status=HTTPStatus.MISDIRECTED_REQUEST)
        else:
            compressed = gzip_accepted(self.headers.get("Accept-Encoding", ""))
            path, accept = self.path.partition("?")[0], self.headers.get("Accept", "")
            answer = self.server.site.get(path, accept, compressed=compressed)
        self._send(answer, with_body=with_body)

    def _send(self, answer: Answer, *, with_body: bool) -> None:
        self.send_response(answer.status)
        if answer.encoding:
            self.send_header("Content-Encoding", answer.encoding)
        for name, value in {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Content-Security-Policy": answer.policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept, Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class has
        """Scrapes are not worth a line."""


def _cut_off(connection: socket.socket) -> None:
    """Its thread reads an end, and ends."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself


def _is_ours(host: str, names: Container[str]) -> bool:
    """Whether a Host header has an address or one of the names: a web page of another name must not read us."""
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
