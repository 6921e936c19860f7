# SPDX-License-Identifier: Apache-2.0
"""Send OTLP requests to an endpoint (http/protobuf): a collector, Tempo, Jaeger."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from types import MappingProxyType
from urllib.parse import unquote, urlsplit, urlunsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from observe import __version__
from observe.errors import ObserveError

_PATH = "/v1/traces"
_HEADERS = {"Content-Type": "application/x-protobuf", "User-Agent": f"observe/{__version__}"}
#: What OpenTelemetry's own exporters wait.
TIMEOUT_SECONDS = 10.0
_NONE: Mapping[str, str] = MappingProxyType({})


def is_endpoint(text: str) -> bool:
    """Whether it names an endpoint, and no file."""
    return text.startswith(("http://", "https://"))


def traces_url(endpoint: str) -> str:
    """Where an endpoint takes traces: `/v1/traces` below it, as OTEL_EXPORTER_OTLP_ENDPOINT means it."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/").removesuffix(_PATH) + _PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def headers_of(text: str) -> dict[str, str]:
    """The headers of OTEL_EXPORTER_OTLP_HEADERS: `name=value,name=value`, percent-encoded. Raises ObserveError."""
    headers = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = (unquote(word.strip()) for word in part.partition("="))
        # The value may be a secret: no message repeats it.
        if not name or not value or not (name + value).isascii() or not (name + value).isprintable():
            raise ObserveError("OTEL_EXPORTER_OTLP_HEADERS is no list of name=value with commas between; mend it")
        headers[name] = value
    return headers


def send(
    endpoint: str, request: bytes, headers: Mapping[str, str] = _NONE, timeout_seconds: float = TIMEOUT_SECONDS
) -> int:
    """Post one request, with `headers` beside our own. Returns how many of its spans the receiver rejected.

    Raises ObserveError that says what the endpoint answered, or why it cannot be reached.
    """
    try:
        url = traces_url(endpoint)
        post = urllib.request.Request(url, request, {**headers, **_HEADERS})  # noqa: S310 - see is_endpoint
        with urllib.request.urlopen(post, timeout=timeout_seconds) as answer:  # noqa: S310
            body = answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise ObserveError(
            f"{url} answered {error.code} {error.reason}; is it an OTLP receiver that takes http/protobuf?"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ObserveError(f"{endpoint} cannot be reached: {reason}; check the address, and that it runs") from error
    try:
        return int(ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans)
    except DecodeError:
        return 0  # accepted, though with an answer that is none of OTLP
