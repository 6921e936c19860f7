# SPDX-License-Identifier: Apache-2.0
"""OTLP, received over HTTP and decoded with the official definitions: traces that say what the report says."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from made import ENGINE, HOST, made_report, made_run
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from situations import BAD_NAME, SITUATIONS, situation
from streams import container_id

from observe.__main__ import main
from observe.errors import ObserveError
from observe.escape import printable
from observe.export import otlp, otlp_http
from observe.model import Evidence
from observe.model import Span as Phase
from observe.phases import load
from observe.reports.assemble import assemble

TIMED = [name for name in SITUATIONS if not name.startswith("log")]


class Receiver(HTTPServer):
    """Keeps what is posted to it; answers with `status` and `answer`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posts = []
        self.status = 200
        self.answer = ExportTraceServiceResponse().SerializeToString()
        self.headers = {"Content-Type": "application/x-protobuf"}

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def requests(self):
        return [ExportTraceServiceRequest.FromString(body) for _, _, body in self.posts]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, self.headers, body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@contextmanager
def listening() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


@pytest.fixture
def receiver():
    with listening() as one:
        yield one


def read(request):
    """Attributes as a dictionary."""

    def value(one):
        kind = one.WhichOneof("value")
        return [value(item) for item in one.array_value.values] if kind == "array_value" else getattr(one, kind)

    return {attribute.key: value(attribute.value) for attribute in request}


def spans_of(request):
    return [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]


def exported(name, folder, *, keep_events=True):
    report, _ = assemble(situation(name, folder), load(), keep_events=keep_events)
    return report, ExportTraceServiceRequest.FromString(b"".join(otlp.requests(report)))


@pytest.mark.parametrize("name", TIMED)
def test_a_trace_an_operation_and_a_span_a_piece_of_each_phase(name, tmp_path):
    report, request = exported(name, tmp_path)
    traces = defaultdict(list)
    for span in spans_of(request):
        traces[span.trace_id].append(span)
    assert len(traces) == len(report.runs)
    for run in report.runs:
        spans = traces[otlp.trace_id(run)]
        durations: Counter[str] = Counter()
        own_ns = 0
        for span in spans:
            if "process.pid" not in read(span.attributes):
                durations[span.name] += span.end_time_unix_nano - span.start_time_unix_nano
                own_ns += read(span.attributes).get("observe.self_ns", 0)
        seen = {span.id: span.duration_ns for span in run.phases if span.duration_ns is not None}
        assert durations == Counter(seen)
        assert own_ns == run.duration_ns
        assert spans[0].start_time_unix_nano == run.wall_time_ns


@pytest.mark.parametrize("name", TIMED)
def test_every_span_hangs_below_one_root(name, tmp_path):
    report, request = exported(name, tmp_path)
    spans = {span.span_id: span for span in spans_of(request)}
    assert len(spans) == len(spans_of(request))
    assert {len(span_id) for span_id in spans} <= {8}
    assert {len(span.trace_id) for span in spans.values()} <= {16}
    roots = [span for span in spans.values() if not span.parent_span_id]
    assert [root.name for root in roots] == [run.operation for run in report.runs]
    assert {root.kind for root in roots} <= {Span.SPAN_KIND_SERVER}
    for span in spans.values():
        above = [span]
        while above[-1].parent_span_id:
            above.append(spans[above[-1].parent_span_id])
            assert above[-1].trace_id == span.trace_id
            assert len(above) < 20


def test_phases_lie_below_their_parents_and_programs_below_their_phases(tmp_path):
    _, request = exported("functions", tmp_path)
    spans = {span.span_id: span for span in spans_of(request)}
    above = {
        span.name: spans[span.parent_span_id].name
        for span in spans.values()
        if span.parent_span_id and "process.pid" not in read(span.attributes)
    }
    assert above["start.containerd_start.runc_create.init"] == "start.containerd_start.runc_create"
    assert above["start.spec.seccomp"] == "start.spec"
    assert above["create.rw_layer"] == "create"
    programs = [span for span in spans.values() if "process.pid" in read(span.attributes)]
    hook = next(span for span in programs if span.name == "libnetwork-setkey")
    assert spans[hook.parent_span_id].name == "start.containerd_start.runc_create.network_hook"
    attributes = read(hook.attributes)
    assert attributes["process.command_args"][0] == "libnetwork-setkey"
    assert attributes["process.executable.name"] == "libnetwork-setkey"
    assert attributes["observe.complete"] is True


def parents(*phases):
    """Name and number of each span → those of the span above it, for a run of these phases."""

    def span(name, start_ns, duration_ns, *pieces):
        return Phase(name, name.rpartition(".")[0], "", start_ns, duration_ns, 0, Evidence.KERNEL, pieces=pieces)

    whole = Phase("start", None, "", 0, 100, 0, Evidence.KERNEL)
    run = made_run(1, phases=(whole, *(span(*phase) for phase in phases)), start_ns=0, duration_ns=100)
    spans = spans_of(ExportTraceServiceRequest.FromString(b"".join(otlp.requests(made_report(run)))))
    names = {span.span_id: (span.name, read(span.attributes).get("observe.piece", 0)) for span in spans}
    return {names[span.span_id]: names[span.parent_span_id] for span in spans[1:]}


def test_a_phase_between_that_was_not_seen_is_left_out_of_the_parents():
    above = parents(("start.a", 10, 50), ("start.a.b", None, None), ("start.a.b.c", 20, 5))
    assert above == {("start.a", 0): ("start", 0), ("start.a.b.c", 0): ("start.a", 0)}


def test_a_phase_lies_below_the_piece_of_its_parent_that_it_ran_in():
    above = parents(("start.a", 10, 30, (10, 10), (60, 20)), ("start.a.b", 65, 5), ("start.a.c", 40, 5))
    assert above[("start.a.b", 0)] == ("start.a", 1)
    assert above[("start.a.c", 0)] == ("start.a", 0)  # in none of them: below the first


def test_attributes_are_those_of_the_semantic_conventions(tmp_path):
    report, request = exported("one run", tmp_path)
    (resource,) = request.resource_spans
    about = read(resource.resource.attributes)
    assert about["service.name"] == "dockerd"
    assert about["service.version"] == ENGINE["version"]
    assert about["host.name"] == "vm"
    assert about["observe.loss.ring_buffer"] == 0
    for span in spans_of(request):
        attributes = read(span.attributes)
        assert attributes["container.id"] == container_id(1)
        assert attributes["container.name"] == "web"
        assert attributes["container.image.name"] == "reg:5000/nginx"
        assert attributes["container.image.tags"] == ["1.25"]
    assert read(spans_of(request)[0].attributes)["observe.outcome"] == "ok"
    _, request = exported("losses", tmp_path)
    assert read(request.resource_spans[0].resource.attributes)["observe.loss.ring_buffer"] == 7
    arch = ExportTraceServiceRequest.FromString(b"".join(otlp.requests(made_report(*report.runs))))
    assert read(arch.resource_spans[0].resource.attributes)["host.arch"] == {"x86_64": "amd64"}[HOST["arch"]]


@pytest.mark.parametrize(
    ("image", "name", "tags"),
    [
        ("nginx", "nginx", None),
        ("localhost:5000/a/b", "localhost:5000/a/b", None),
        ("a@sha256:00ff", "a@sha256:00ff", None),
        ("sha256:00ff", "sha256:00ff", None),
        ("", None, None),
    ],
)
def test_an_images_name_is_apart_from_its_tag(image, name, tags):
    report = made_report(made_run(1, image=image))
    attributes = read(spans_of(ExportTraceServiceRequest.FromString(next(otlp.requests(report))))[0].attributes)
    assert (attributes.get("container.image.name"), attributes.get("container.image.tags")) == (name, tags)


def test_only_what_failed_is_an_error(tmp_path):
    codes = {}
    for name in ("failed", "unfinished", "one run"):
        _, request = exported(name, tmp_path)
        codes[name] = [span.status.code for span in spans_of(request)]
        if name == "failed":
            assert spans_of(request)[0].status.message == "dockerd answered 500"
    assert codes["failed"][0] == Status.STATUS_CODE_ERROR
    assert {*codes["failed"][1:], *codes["unfinished"], *codes["one run"]} == {Status.STATUS_CODE_UNSET}


def test_the_same_operation_has_the_same_ids_however_it_is_exported(tmp_path):
    _, first = exported("functions", tmp_path)
    _, again = exported("functions", tmp_path)
    _, without_events = exported("functions", tmp_path, keep_events=False)
    assert first == again
    ids = {span.span_id for span in spans_of(first)}
    assert {span.span_id for span in spans_of(without_events)} < ids


def test_names_from_outside_are_harmless_and_recognisable(tmp_path):
    _, request = exported("hostile", tmp_path)
    texts = [span.name for span in spans_of(request)]
    for span in spans_of(request):
        for value in read(span.attributes).values():
            texts += value if isinstance(value, list) else [str(value)]
    assert all(text.isprintable() for text in texts)
    assert printable(BAD_NAME) in texts


@pytest.mark.parametrize("name", ["functions", "failed", "unfinished"])
def test_every_attribute_is_documented(name, tmp_path):
    document = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    _, request = exported(name, tmp_path)
    keys = set(read(request.resource_spans[0].resource.attributes))
    for span in spans_of(request):
        keys |= set(read(span.attributes))
    assert {key for key in keys if f"`{re.sub('loss[.].*', 'loss.*', key)}`" not in document} == set()


# Sending ----------------------------------------------------------------------------------------------------


def test_a_receiver_gets_what_a_file_would_have(receiver, tmp_path, monkeypatch):
    path, out = situation("functions", tmp_path), tmp_path / "spans"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20Zm9v, X-Scope-OrgID=1")
    assert main(["export", str(path), "-t", "otlp", "-o", receiver.endpoint]) == 0
    assert main(["export", str(path), "-t", "otlp", "-o", str(out)]) == 0
    ((url_path, headers, body),) = receiver.posts
    assert url_path == "/v1/traces"
    assert headers["Content-Type"] == "application/x-protobuf"
    assert (headers["Authorization"], headers["X-scope-orgid"]) == ("Basic Zm9v", "1")
    assert body == out.read_bytes()
    assert len(spans_of(receiver.requests[0])) > 40


def test_many_runs_go_in_batches(receiver):
    runs = [made_run(30, seed, wall_time_ns=10**18 + seed) for seed in range(40)]
    report = made_report(*runs)
    for request in otlp.requests(report):
        assert otlp_http.send(receiver.endpoint, request) == otlp_http.Reply()
    sizes = [len(spans_of(request)) for request in receiver.requests]
    assert sum(sizes) == 40 * 31
    assert max(sizes) <= otlp.BATCH_SPANS < 2 * max(sizes)
    whole = ExportTraceServiceRequest.FromString(b"".join(otlp.requests(report)))
    assert len({span.trace_id for span in spans_of(whole)}) == 40


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "is it an OTLP rec"), (404, "is it an OTLP rec"), (429, "it is busy"), (503, "it is busy")],
)
def test_an_endpoint_that_refuses_is_one_line(status, advice, receiver, tmp_path, capsys):
    receiver.status = status
    assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", receiver.endpoint]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"observe: {receiver.endpoint}/v1/traces answered {status} .*; {advice}", line)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_receiver_that_is_elsewhere_is_no_success_and_named(status, receiver, tmp_path, capsys):
    receiver.status, receiver.headers = status, {"Location": f"{receiver.endpoint}/elsewhere"}
    assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", receiver.endpoint]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; it is elsewhere: name {receiver.endpoint}/elsewhere instead")
    assert len(receiver.posts) == 1


def test_a_web_page_is_no_receiver(receiver, tmp_path, capsys):
    receiver.answer, receiver.headers = b"<!doctype html>", {"Content-Type": "text/html; charset=utf-8"}
    assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", receiver.endpoint]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "answered with a web page; is it an OTLP receiver" in line


@pytest.mark.parametrize("out", ["localhost:4318", "grpc://localhost:4317", "collector.example:4318/v1/traces"])
def test_what_was_meant_as_an_endpoint_makes_no_file(out, tmp_path, monkeypatch, capsys):
    path = situation("one run", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.iterdir()}
    assert main(["export", str(path), "-t", "otlp", "-o", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("begin it with http:// or https://")
    assert {*tmp_path.iterdir()} == before


def test_an_endpoint_may_be_written_in_capitals_and_takes_no_password(receiver, tmp_path, capsys):
    path = str(situation("one run", tmp_path))
    assert main(["export", path, "-t", "otlp", "-o", receiver.endpoint.replace("http", "HTTP")]) == 0
    assert len(receiver.posts) == 1
    assert main(["export", path, "-t", "otlp", "-o", receiver.endpoint.replace("//", "//me:hidden@")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "OTEL_EXPORTER_OTLP_HEADERS" in line
    assert "hidden" not in line


def test_spans_that_are_rejected_are_told(receiver, tmp_path, capsys):
    rejected = ExportTracePartialSuccess(rejected_spans=3, error_message="too \x1bold")
    receiver.answer = ExportTraceServiceResponse(partial_success=rejected).SerializeToString()
    assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", receiver.endpoint]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("rejected 3 spans and took the others: too \\x1bold")


def test_what_a_receiver_warns_of_is_told(receiver, tmp_path, capsys):
    warned = ExportTracePartialSuccess(error_message="slow down")
    receiver.answer = ExportTraceServiceResponse(partial_success=warned).SerializeToString()
    assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", receiver.endpoint]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"observe: warning: {receiver.endpoint} took all, and says: slow down"
    ]


def test_an_answer_that_is_none_of_otlp_is_no_error(receiver):
    receiver.answer = b"thank you"
    assert otlp_http.send(receiver.endpoint, b"") == otlp_http.Reply()


@pytest.mark.parametrize("endpoint", ["http://[", "http://127.0.0.1:bad", "http://no such host.invalid", "closed"])
def test_an_endpoint_that_cannot_be_reached_is_one_line(endpoint, tmp_path, capsys):
    if endpoint == "closed":
        with Receiver() as gone:
            endpoint = gone.endpoint
    assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", endpoint]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"observe: {endpoint} cannot be reached: ")


class Endless:
    """Answers one request with `head`, then with as many pieces as `most`, one each `pause_seconds`; 0: is silent."""

    def __init__(self, head, piece=b"", *, most=0, pause_seconds=0.0):
        self.pieces = 0
        self._answer = (head, piece, most, pause_seconds)
        self._gone = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._gone.set()
        self._thread.join()
        self._listener.close()

    def _serve(self):
        head, piece, most, pause_seconds = self._answer
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(1 << 16)
            try:
                connection.sendall(head)
                while self.pieces < most and not self._gone.wait(pause_seconds):
                    connection.sendall(piece)
                    self.pieces += 1
            except OSError:
                pass  # the client has left
            if not most:
                self._gone.wait(60)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "piece", "most"),
    [(b"", b"", 0), (OK + b"X: ", b"x", 500), (OK + b"\r\n", b"\0", 500), (b"", b"HTTP/1.1 100 C\r\n\r\n", 500)],
    ids=["silent", "headers", "body", "continue"],
)
def test_an_answer_has_one_deadline_however_slowly_it_drips(head, piece, most):
    with Endless(head, piece, most=most, pause_seconds=0.02) as collector:
        with pytest.raises(ObserveError, match=rf"^{collector.endpoint} cannot be reached: no whole answer within 0.2"):
            otlp_http.send(collector.endpoint, b"", timeout_seconds=0.2)
        for thread in threading.enumerate():
            if thread.name == "otlp":
                thread.join(60)
        assert collector.pieces < 500  # it was cut off: nobody waits for the rest


def test_an_answer_without_an_end_is_not_read_and_one_line(tmp_path, capsys):
    with Endless(OK + b"\r\n", b"\0" * (1 << 20), most=64) as collector:
        assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", collector.endpoint]) == 1
    assert collector.pieces < 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"observe: {collector.endpoint}/v1/traces answered more than 64 KiB; ")


def test_an_export_to_an_endpoint_that_drips_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(otlp_http, "send", partial(otlp_http.send, timeout_seconds=0.2))
    with Endless(OK + b"\r\n", b"\0", most=100, pause_seconds=0.02) as collector:
        assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", collector.endpoint]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no whole answer within 0.2 s" in line


def test_an_answer_that_is_cut_off_is_no_answer():
    with Endless(OK + b"Content-Length: 9\r\n\r\nabc") as collector:
        collector._gone.set()
        with pytest.raises(ObserveError, match="IncompleteRead"):
            otlp_http.send(collector.endpoint, b"")


@pytest.mark.parametrize(
    "text", ["novalue", "=x", "a=b,c", "a=secret%0Ax", "a=secret%C3%A9", "a%20b=secret", "a:b=secret"]
)
def test_headers_that_are_no_list_are_wrong_usage_in_one_line(text, monkeypatch, receiver, tmp_path, capsys):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    assert main(["export", str(situation("one run", tmp_path)), "-t", "otlp", "-o", receiver.endpoint]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "OTEL_EXPORTER_OTLP_HEADERS" in line
    assert "secret" not in line
    assert receiver.posts == []


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("http://h:4318", "/v1/traces"),
        ("http://h:4318/", "/v1/traces"),
        ("https://h/otlp", "/otlp/v1/traces"),
        ("http://h/v1/traces", "/v1/traces"),
        ("http://h/a/v1/traces/", "/a/v1/traces"),
    ],
)
def test_traces_go_below_the_endpoint(endpoint, path):
    url = urlsplit(otlp_http.traces_url(endpoint))
    assert (url.path, url.netloc) == (path, urlsplit(endpoint).netloc)
