# SPDX-License-Identifier: Apache-2.0
"""Send OTLP requests to an endpoint (http/protobuf): a collector, Tempo, Jaeger."""

from __future__ import annotations

import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from observe import __version__
from observe.errors import ObserveError, UsageError
from observe.escape import printable

_PATH = "/v1/traces"
_HEADERS = {"Content-Type": "application/x-protobuf", "User-Agent": f"observe/{__version__}"}
#: What OpenTelemetry's own exporters wait: for all of it, from the name server to the last byte of the answer.
TIMEOUT_SECONDS = 10.0
#: Of an answer: it holds a number and perhaps a sentence.
_ANSWER_BYTES = 64 << 10
_ENDPOINT = re.compile(r"https?://", re.IGNORECASE)
#: What people write who mean an endpoint: another scheme, or none before a port.
_ALMOST = re.compile(r"[a-z][a-z0-9+.-]*://|[\w.-]+:\d+(?:/|$)", re.IGNORECASE)
#: Answers that mean "later" (OTLP/HTTP, "Retryable Response Codes").
_BUSY = (429, 502, 503, 504)
#: A header's name in HTTP (RFC 9110).
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_IS_IT_ONE = "is it an OTLP receiver that takes http/protobuf?"
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver said of the spans that it took: how many it rejected, and why, or what it warns of."""

    rejected_spans: int = 0
    message: str = ""


def is_endpoint(text: str) -> bool:
    """Whether it names an endpoint, and no file. Raises UsageError if it is meant to be one and cannot be."""
    if not _ENDPOINT.match(text):
        if _ALMOST.match(text):
            raise UsageError(f"{text} is no endpoint: begin it with http:// or https://")
        return False
    if "@" in text.split("/")[2]:
        # Not repeated: it may hold a password.
        raise UsageError("an endpoint takes no user and password: set OTEL_EXPORTER_OTLP_HEADERS to Authorization=…")
    return True


def has_host(endpoint: str) -> bool:
    """Whether an endpoint names a host, and no port that cannot be."""
    try:
        parts = urlsplit(endpoint)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def traces_url(endpoint: str) -> str:
    """Where an endpoint takes traces: `/v1/traces` below it, as OTEL_EXPORTER_OTLP_ENDPOINT means it."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/").removesuffix(_PATH) + _PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def headers_of(text: str) -> dict[str, str]:
    """The headers of OTEL_EXPORTER_OTLP_HEADERS: `name=value,name=value`, percent-encoded. Raises UsageError."""
    headers = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = (unquote(word.strip()) for word in part.partition("="))
        # The value may be a secret: no message repeats it.
        if not _NAME.fullmatch(name) or not value or not (value.isascii() and value.isprintable()):
            raise UsageError("OTEL_EXPORTER_OTLP_HEADERS is no list of name=value with commas between; mend it")
        headers[name] = value
    return headers


def send(
    endpoint: str, request: bytes, headers: Mapping[str, str] = _NONE, timeout_seconds: float = TIMEOUT_SECONDS
) -> Reply:
    """Post one request, with `headers` beside our own.

    Raises ObserveError that says what the endpoint answered, or why it cannot be reached: also if not all of that is
    over in `timeout_seconds`, or the answer is longer than an answer may be.
    """
    try:
        url = traces_url(endpoint)
        post = urllib.request.Request(url, request, {**headers, **_HEADERS})  # noqa: S310 - see is_endpoint
        kind, body = _exchange(post, timeout_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        raise ObserveError(f"{url} answered {error.code} {error.reason}; {_advice(error)}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ObserveError(f"{endpoint} cannot be reached: {reason}; check the address, and that it runs") from error
    if len(body) > _ANSWER_BYTES:
        raise ObserveError(f"{url} answered more than {_ANSWER_BYTES >> 10} KiB; {_IS_IT_ONE}")
    if kind == "text/html":  # what answers everything with a page stores no span
        raise ObserveError(f"{url} answered with a web page; {_IS_IT_ONE}")
    try:
        said = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return Reply()  # accepted, though with an answer that is none of OTLP
    return Reply(int(said.rejected_spans), said.error_message)


def _advice(error: urllib.error.HTTPError) -> str:
    """What to do about a refusal."""
    if error.code in _BUSY:
        return "it is busy or not up yet: export again later, the ids stay the same"
    elsewhere = error.headers.get("Location")
    return f"it is elsewhere: name {printable(elsewhere)} instead" if elsewhere else _IS_IT_ONE


def _exchange(post: urllib.request.Request, timeout_seconds: float) -> tuple[str, bytes]:
    """The media type of the answer to a request, and the answer, at most one byte more than it may have.

    Raises OSError, HTTPException or ValueError.
    """
    answer: Future[tuple[str, bytes]] = Future()
    # On a thread, which may be left: a socket's timeout begins anew at each byte, and a name server has none.
    with closing(_Connections()) as connections:
        threading.Thread(
            target=_answer, args=(post, timeout_seconds, connections, answer), name="otlp", daemon=True
        ).start()
        try:
            return answer.result(timeout_seconds)
        except TimeoutError as error:
            raise TimeoutError(f"no whole answer within {timeout_seconds:g} s") from error


def _answer(
    post: urllib.request.Request, timeout_seconds: float, connections: _Connections, answer: Future[tuple[str, bytes]]
) -> None:
    try:
        opener = urllib.request.build_opener(_Handler(connections), _NoRedirects())
        with opener.open(post, timeout=timeout_seconds) as response:
            body = response.read(_ANSWER_BYTES + 1)
            if response.length and len(body) <= _ANSWER_BYTES:
                raise IncompleteRead(body, response.length)  # noqa: TRY301 - as a read of everything would
        answer.set_result((response.headers.get_content_type(), body))
    except Exception as error:  # noqa: BLE001 - raised where the answer is waited for
        answer.set_exception(error)


class _Connections:
    """The connections of one exchange; its end cuts them off, so that no thread goes on waiting for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[socket.socket] | None = []

    def add(self, connection: socket.socket) -> None:
        """Take note of one. Raises TimeoutError if the exchange has ended."""
        with self._lock:
            if self._open is None:
                raise TimeoutError
            # A descriptor of our own, which nobody else closes meanwhile.
            self._open.append(socket.fromfd(connection.fileno(), connection.family, connection.type))

    def close(self) -> None:
        """Cut them all off."""
        with self._lock:
            ours, self._open = self._open or [], None
        for connection in ours:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class _Connection(HTTPConnection):
    def __init__(self, connections: _Connections, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._connections = connections

    def send(self, data: Any) -> None:
        """Send as the base class does, on a connection that can be cut off (also while a proxy is asked for it)."""
        if self.sock is None:
            self.connect()
        self._connections.add(self.sock)
        super().send(data)


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Followed, a request to post becomes one to get, and its spans are nowhere."""

    def redirect_request(self, *_: object) -> None:
        """Refuse: the answer itself is the error."""


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens such connections; proxies are urllib's business, as always."""

    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open `http://`."""
        return self.do_open(lambda host, **options: _Connection(self._connections, host, **options), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open `https://`."""
        return self.do_open(lambda host, **options: _TlsConnection(self._connections, host, **options), req)
