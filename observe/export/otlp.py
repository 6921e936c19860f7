# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry spans (OTLP, protobuf): runs in, bytes out; the same runs give the same bytes.

A trace an operation. Its root span is the request to dockerd; below it a span for each piece of each phase that was
seen, named by the phase, and one for each program that ran (if the run brings its events along), below the phase that
it began in. Attributes follow the semantic conventions where those have a name, and are `observe.*` otherwise. The ids
come from the container, the operation and its wall time, so what is sent twice is the same trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from observe import __version__
from observe.escape import printable
from observe.export import Recorded
from observe.export.nesting import pieces
from observe.export.programs import Program, programs
from observe.model import Run
from observe.model import Span as Phase

#: Spans of one request at most, unless one run has more: what OpenTelemetry's own exporters send at once.
BATCH_SPANS = 512

SCHEMA_URL = "https://opentelemetry.io/schemas/1.27.0"
#: `host.arch` by the machine's name.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Value = str | int | bool | Iterable[str] | None


def exportable(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The runs that can be spans: those with a wall time and a duration, which an imported log has not."""
    return tuple(run for run in runs if run.wall_time_ns > 0 and run.duration_ns > 0)


def requests(recorded: Recorded) -> Iterator[bytes]:
    """Serialised ExportTraceServiceRequests of the exportable runs, each of whole runs and about BATCH_SPANS spans.

    Joined, they are one request with all spans.
    """
    resource = _resource(recorded)
    batch: list[Span] = []
    for run in exportable(recorded.runs):
        spans = list(_spans(run))
        if batch and len(batch) + len(spans) > BATCH_SPANS:
            yield _request(resource, batch)
            batch = []
        batch += spans
    if batch:
        yield _request(resource, batch)


def trace_id(run: Run) -> bytes:
    """16 bytes, from the container's id, the operation and its wall time."""
    return _digest(16, run.container_id or "", run.operation, str(run.wall_time_ns))


def _request(resource: Resource, spans: Iterable[Span]) -> bytes:
    scope = InstrumentationScope(name="observe", version=__version__)
    scoped = ScopeSpans(scope=scope, spans=spans, schema_url=SCHEMA_URL)
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[scoped], schema_url=SCHEMA_URL)]
    )
    serialised: bytes = request.SerializeToString(deterministic=True)
    return serialised


def _resource(recorded: Recorded) -> Resource:
    """The dockerd that was recorded, and what is missing from the recording."""
    host, engine = recorded.host, recorded.engine
    arch = str(host.get("arch", ""))
    attributes: dict[str, Value] = {
        "service.name": "dockerd",
        "service.version": _text(engine.get("version")),
        "host.name": _text(host.get("hostname")),
        "host.arch": _ARCHITECTURES.get(arch, arch),
        "os.type": "linux",
        "os.version": _text(host.get("kernel")),
        "process.executable.name": "dockerd",
        "process.runtime.name": "go",
        "process.runtime.version": _text(engine.get("go_version")),
        "observe.storage_driver": _text(engine.get("storage_driver")),
        **{f"observe.loss.{name}": count for name, count in asdict(recorded.loss).items()},
    }
    return Resource(attributes=_attributes(attributes))


def _spans(run: Run) -> Iterator[Span]:
    """The root first; a parent before its children."""
    trace, common = trace_id(run), _common(run)
    root = _digest(8, trace.hex(), run.operation)

    def span(identity: str, parent: bytes, name: str, interval: tuple[int, int], own: Mapping[str, Value]) -> Span:
        start_ns, end_ns = (run.wall_time_ns + moment - run.start_ns for moment in interval)
        return Span(
            trace_id=trace,
            span_id=_digest(8, trace.hex(), identity) if parent else root,
            parent_span_id=parent,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL if parent else Span.SPAN_KIND_SERVER,
            start_time_unix_nano=start_ns,
            end_time_unix_nano=end_ns,
            attributes=_attributes({**common, **own}),
        )

    whole = span("", b"", run.operation, (run.start_ns, run.start_ns + run.duration_ns), _of_run(run))
    if run.outcome == "failed":
        whole.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=printable(run.error or "")))
    yield whole
    #: Phase → (start_ns, end_ns, span id) of each of its pieces.
    placed: dict[str, list[tuple[int, int, bytes]]] = {}
    if run.phases:
        placed[run.phases[0].id] = [(run.start_ns, run.start_ns + run.duration_ns, root)]

    def parent_of(phase: str | None, at_ns: int) -> bytes:
        """The piece of the phase, or of the nearest one above it that was seen, at that time; else its first."""
        while phase and phase not in placed:
            phase = phase.rpartition(".")[0]
        found = placed.get(phase or "", [(0, 0, root)])
        return next((each[2] for each in found if each[0] <= at_ns <= each[1]), found[0][2])

    for number, phase in enumerate(run.phases[1:]):
        for piece, interval in enumerate(pieces(phase)):
            made = span(
                f"{phase.id} {number} {piece}",
                parent_of(phase.parent, interval[0]),
                phase.id,
                interval,
                _of_phase(phase, piece),
            )
            placed.setdefault(phase.id, []).append((*interval, made.span_id))
            yield made
    for number, program in enumerate(programs(run)):
        parent = parent_of(program.phase, program.start_ns)
        interval = (program.start_ns, program.end_ns)
        yield span(f"program {number}", parent, printable(program.name) or "program", interval, _of_program(program))


def _common(run: Run) -> dict[str, Value]:
    """What every span of a run has, so that a search finds it by the container."""
    image, tag = _image(run.image or "")
    return {
        "container.id": run.container_id,
        "container.name": run.container_name,
        "container.image.name": image,
        "container.image.tags": [tag] if tag else None,
        "observe.operation": run.operation,
        "observe.network": run.network,
    }


def _image(reference: str) -> tuple[str, str]:
    """Name and tag of `registry:5000/name:tag`; the tag is empty if there is none, or a digest instead."""
    name, colon, tag = reference.rpartition(":")
    return (name, tag) if colon and "/" not in tag and not name.endswith("sha256") else (reference, "")


def _of_run(run: Run) -> dict[str, Value]:
    return {
        "observe.outcome": run.outcome,
        "observe.error": run.error,
        "observe.unattributed_ns": run.unattributed_ns,
        "observe.departures": [departure.text for departure in run.departures] or None,
        **(_of_phase(run.phases[0], 0) if run.phases else {}),
    }


def _of_phase(phase: Phase, piece: int) -> dict[str, Value]:
    """The counts are the phase's, so they stand on its first piece only: sums over spans are right."""
    own: dict[str, Value] = {
        "observe.phase": phase.id,
        "observe.step": phase.step,
        "observe.evidence": phase.evidence.value,
        "observe.at_floor": phase.at_floor,
    }
    if piece:
        return {**own, "observe.piece": piece}
    return {
        **own,
        "observe.duration_ns": phase.duration_ns,
        "observe.self_ns": phase.self_ns,
        "observe.corrected_self_ns": phase.corrected_self_ns,
        "observe.syscalls": phase.syscalls,
        "observe.file_events": phase.file_events,
        "observe.probe_hits": phase.probe_hits,
    }


def _of_program(program: Program) -> dict[str, Value]:
    return {
        "process.pid": program.pid,
        "process.parent_pid": program.parent_pid or None,
        "process.executable.name": program.name,
        "process.executable.path": program.path,
        "process.command_args": program.arguments or None,
        "observe.entrypoint": program.entrypoint,
        "observe.complete": program.complete,
        "observe.phase": program.phase,
    }


def _attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    """What is unknown or empty is left out; text is made printable."""
    return [KeyValue(key=name, value=_value(value)) for name, value in values.items() if value not in (None, "")]


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=printable(value))
    return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value or ()]))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _digest(size_bytes: int, *parts: str) -> bytes:
    # A NUL is in no id and no name: parts cannot run into each other.
    text = "\0".join(parts)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:size_bytes]
