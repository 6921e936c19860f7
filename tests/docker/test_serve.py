# SPDX-License-Identifier: Apache-2.0
"""`observe serve` on a real engine: exact counts, restarts, a flight recorder, and clients that mean no good."""

from __future__ import annotations

import math
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from engines import Engine, EngineFactory
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from recorded import api_client, client_times, report
from served import DEADLINE_SECONDS, OBSERVE, Serving, eventually, parsed, restart, serving, total
from slow_engine import installed, put_on_path

from observe.phases import load

COUNT = "observe_operation_duration_seconds_count"
OPERATIONS = ("create", "start")


def finished(server: Serving, operation: str, **labels: str) -> float:
    return server.total(COUNT, operation=operation, **labels)


def load_of(engine: Engine, out: Path, *options: str) -> Counter[str]:
    """Run the clients; how many requests of each operation went well."""
    subprocess.run(api_client(engine, out, *options), check=True)
    return went_well(out)


def went_well(out: Path) -> Counter[str]:
    """How many requests of each operation were answered, and not by an error."""
    return Counter(line["operation"] for line in client_times(out) if line["status"] < 400)


#: How often parts occur that not each of 11 starts on a bridge and 2 with the host's network has.
PARTS = {"set_key": 11, "set_ipv6": 11, "resolver": 0, "iptables": 0, "proxy": 0}


def test_counts_are_those_of_the_load_and_no_series_comes_or_goes(engine: Engine, tmp_path: Path) -> None:
    with serving(engine.url, tmp_path) as server:
        before = server.series()
        answered = load_of(engine, tmp_path / "times", "--clients", "3", "--runs", "3")
        # What clients that name no network ask for is the bridge.
        answered += load_of(engine, tmp_path / "default", "--runs", "2", "--network", "default")
        hosts = load_of(engine, tmp_path / "host", "--runs", "2", "--network", "host")
        assert engine.client.containers.list(all=True) == []
        for operation in OPERATIONS:
            wanted = answered[operation] + hosts[operation]
            eventually(lambda o=operation, n=wanted: finished(server, o) >= n)  # type: ignore[misc]
            assert finished(server, operation, outcome="ok", network="bridge") == answered[operation] == 11
            assert finished(server, operation, outcome="ok", network="host") == hosts[operation] == 2
            assert finished(server, operation) == 13
        after = server.series()
        documented = [phase for phase in load().phases if phase.operation in OPERATIONS and phase.parent]
        for phase in documented:
            seen = total(after, "observe_phase_duration_seconds_count", phase=phase.id)
            of_functions = total(after, "observe_phase_duration_seconds_count", phase=phase.id, evidence="function")
            if phase.is_part:
                assert seen == PARTS.get(phase.id.rpartition(".")[2], 13), phase.id
            else:
                assert seen == of_functions == (0 if phase.occurs == "on_failure" else 13), phase.id
        # Of system calls alone it is not known beforehand which ones a phase makes.
        new = {name for name, _ in after.keys() - before.keys()}
        assert new <= {"observe_syscalls_total", "observe_syscall_duration_seconds_total", "observe_engine_info"}
        assert before.keys() <= after.keys() | {key for key in before if key[0] == "observe_engine_info"}
        assert len(after) <= 2500
        assert total(after, "observe_lost_events_total", source="ring_buffer") == 0
        assert total(after, "observe_probe_hits_total", probe="functions") > 0
        assert total(after, "observe_probe_run_seconds_total", probe="sys_enter") > 0
        assert {value for (name, _), value in after.items() if name == "observe_attached"} == {1.0}
        # The contract: functions that dockerd's own metric times, and what requests take beyond them.
        assert total(after, "observe_engine_action_seconds_count", action="start") == 13


def test_promtool_finds_nothing_to_complain_about(engine: Engine, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: scripts/setup engine peers installs prometheus"
    with serving(engine.url, tmp_path) as server:
        load_of(engine, tmp_path / "times")
        eventually(lambda: finished(server, "start") == 1)
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=server.get("/metrics")[1], capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_that_is_restarted_under_load_is_attached_to_again(
    new_engine: EngineFactory, tmp_path: Path, number: signal.Signals
) -> None:
    engine = new_engine()
    answered: Counter[str] = Counter()
    with serving(engine.url, tmp_path) as server:
        for round_ in range(2):
            out = tmp_path / f"interrupted-{round_}"
            # Its clients end when the engine does, wherever they are then.
            with subprocess.Popen(
                api_client(engine, out, "--clients", "2", "--runs", "1000"), stderr=subprocess.DEVNULL
            ) as load_:
                before = finished(server, "start")
                eventually(lambda n=before: finished(server, "start") >= n + 2)  # type: ignore[misc]
                restart(engine, number)
                load_.wait(DEADLINE_SECONDS)
            answered.update(went_well(out))
            eventually(lambda n=round_: attachments(server) == n + 2)  # type: ignore[misc]
            for container in engine.client.containers.list(all=True):
                if not container.name.startswith("left-"):
                    container.rename(f"left-{container.short_id}")  # the next clients need its name
            answered.update(load_of(engine, tmp_path / f"after-{round_}", "--runs", "2"))
            for operation in OPERATIONS:
                done = {"outcome": "ok", "operation": operation}
                eventually(lambda d=done, o=operation: server.total(COUNT, **d) >= answered[o])  # type: ignore[misc]
        assert attachments(server) == 3
        series = server.series()
        for operation in OPERATIONS:
            ok = total(series, COUNT, operation=operation, outcome="ok")
            # An answer that dockerd wrote just before its end may not have reached the client.
            assert answered[operation] <= ok <= answered[operation] + 2 * 2
            assert total(series, COUNT, operation=operation, outcome="unfinished") <= 2 * 2
        assert total(series, "observe_operations_in_flight") == 0


def test_a_dockerd_whose_file_is_replaced_is_followed_to_the_new_one(
    new_engine: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = put_on_path(tmp_path, monkeypatch) / "dockerd"
    shutil.copy(installed("dockerd"), program)
    engine = new_engine()
    assert program.samefile(f"/proc/{engine.pid}/exe")
    with serving(engine.url, tmp_path) as server:

        def load_is_counted(number: int) -> None:
            load_of(engine, tmp_path / "times", "--runs", "2")
            done = {"operation": "start", "outcome": "ok", "network": "bridge"}
            eventually(lambda: server.total(COUNT, **done) >= 2 * number)
            assert finished(server, "start") == 2 * number
            # By its functions: those of the file that runs.
            assert server.total("observe_engine_action_seconds_count", action="start") == 2 * number

        load_is_counted(1)
        # As a package's upgrade does it: another file by that name, while the old one runs.
        shutil.copy(program, tmp_path / "new")
        (tmp_path / "new").rename(program)
        assert not program.samefile(f"/proc/{engine.pid}/exe")
        load_is_counted(2)
        assert attachments(server) == 1
        restart(engine, signal.SIGTERM)
        assert program.samefile(f"/proc/{engine.pid}/exe")
        eventually(lambda: attachments(server) == 2)
        eventually(server.is_attached)
        load_is_counted(3)
        assert server.total("observe_lost_events_total", source="ring_buffer") == 0


def test_an_engine_that_comes_later_is_waited_for(new_engine: EngineFactory, tmp_path: Path) -> None:
    engine = new_engine()
    link = tmp_path / "later.sock"
    with serving(f"unix://{link}", tmp_path, attached=False) as server:
        # It listens before it has looked for the first time.
        eventually(lambda: b"no engine" in server.get("/readyz")[1])
        assert server.get("/readyz")[0] == 503
        assert server.get("/healthz")[0] == 200
        assert {value for (name, _), value in server.series().items() if name == "observe_attached"} == {0.0}
        link.symlink_to(engine.socket)
        eventually(server.is_attached)


def test_slow_operations_are_kept_and_reported_as_they_were_seen(engine: Engine, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    with serving(engine.url, tmp_path, "--keep", str(keep), "--keep-slower-than", "0ms") as server:
        load_of(engine, tmp_path / "times", "--clients", "2", "--runs", "2")
        eventually(lambda: server.total("observe_deliveries_total", result="kept") == 8)
        live = {run["id"]: run for run in server.json("/api/operations")["runs"]}
    files = sorted(keep.iterdir())
    assert len(files) == len(live) == 8
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        (kept,) = report(file)["runs"]
        seen = live[f"{kept['operation']}-{kept['start_ns']}"]
        for name in ("container_id", "container_name", "image", "network", "outcome", "duration_ns", "unattributed_ns"):
            assert kept[name] == seen[name], name
        for theirs, ours in zip(kept["phases"], seen["phases"], strict=True):
            for name in ("id", "start_ns", "duration_ns", "self_ns", "evidence", "syscalls"):
                assert theirs[name] == ours[name], (ours["id"], name)


def test_operations_show_while_they_last_and_afterwards(new_engine: EngineFactory, tmp_path: Path) -> None:
    engine = new_engine()
    with serving(engine.url, tmp_path) as server, ExitStack() as stack:
        server.get("/")
        # A start that waits: for a containerd that is frozen.
        container = engine.client.containers.create(engine.image, ["true"], name="waits", network_mode="host")
        eventually(lambda: finished(server, "create") == 1)
        (daemon,) = containerd_of(engine)
        target = f"http://d/containers/{container.id}/start"
        request = ["curl", "-s", "--unix-socket", str(engine.socket), "-XPOST", target]
        subprocess.run(["kill", "-STOP", daemon], check=True)
        stack.enter_context(subprocess.Popen(request))
        stack.callback(subprocess.run, ["kill", "-CONT", daemon], check=True)
        eventually(lambda: server.total("observe_operations_in_flight", operation="start") == 1)
        (run,) = eventually(lambda: server.json("/api/operations")["in_progress"])
        assert (run["operation"], run["container_id"]) == ("start", container.id)
        assert f"/operations/{run['id']}".encode() in server.get("/fragment")[1]
        assert server.get(f"/operations/{run['id']}")[0] == 200
        stack.close()
        eventually(lambda: finished(server, "start", outcome="ok") == 1)
        assert server.json(f"/api/operations/{run['id']}")["runs"][0]["outcome"] == "ok"
        assert server.total("observe_operations_in_flight") == 0
        container.remove(force=True)


def containerd_of(engine: Engine) -> list[str]:
    found = subprocess.run(
        ["pgrep", "--parent", str(engine.pid), "containerd"], capture_output=True, text=True, check=True
    )
    return found.stdout.split()


def test_slow_and_hostile_clients_do_not_reach_the_recorder(engine: Engine, tmp_path: Path) -> None:
    with serving(engine.url, tmp_path) as server, ExitStack() as stack:
        for number in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), DEADLINE_SECONDS))
            # Half a request; every third one with a header that does not end.
            client.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (60_000 if number % 3 == 0 else 10))
        # Whoever asks gets the place of one that has not.
        assert [server.get(path)[0] for path in ("/healthz", "/metrics")] == [200, 200]
        answered = load_of(engine, tmp_path / "times", "--clients", "2", "--runs", "2")
        for operation in OPERATIONS:
            eventually(lambda o=operation: finished(server, o, outcome="ok") == answered[o] == 4)  # type: ignore[misc]
        assert server.total("observe_lost_events_total", source="ring_buffer") == 0


def attachments(server: Serving) -> int:
    """How often it has attached."""
    return server.log.read_text().count("observe: attached to dockerd")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(engine: Engine, tmp_path: Path, number: signal.Signals) -> None:
    with serving(engine.url, tmp_path) as server:
        server.process.send_signal(number)
        assert server.process.wait(DEADLINE_SECONDS) == 0
        *_, said = server.log.read_text().splitlines()
        assert said == "observe: stopping"


def test_without_the_capability_the_cost_of_the_probes_is_not_told_as_nothing(engine: Engine, tmp_path: Path) -> None:
    with serving(engine.url, tmp_path, under=["setpriv", "--bounding-set=-sys_admin"]) as server:
        load_of(engine, tmp_path / "times")
        eventually(lambda: finished(server, "start") == 1)
        eventually(lambda: math.isnan(server.total("observe_probe_run_seconds_total", probe="sys_enter")))
        assert math.isnan(server.total("observe_probe_hits_total", probe="functions"))
        said = [line for line in server.log.read_text().splitlines() if "CAP_SYS_ADMIN" in line]
        assert len(said) == 1
        assert said[0] in [f"observe: {text}" for text in server.json("/api/operations")["warnings"]]


def test_an_address_that_cannot_be_had_is_one_line(engine: Engine) -> None:
    command = [*OBSERVE, "serve", "--docker-host", engine.url, "--listen"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*command, f"127.0.0.1:{port}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"observe: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --listen\n"
    )
    done = subprocess.run([*command, "0.0.0.0:0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--allow-remote" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_openmetrics_has_exemplars_with_the_containers_id(engine: Engine, tmp_path: Path) -> None:
    with serving(engine.url, tmp_path) as server:
        (line, *_) = load_lines(engine, tmp_path / "times")
        eventually(lambda: finished(server, "create") == 1)
        text = server.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")[1].decode()
        assert text.endswith("# EOF\n")
        assert f'# {{container_id="{line["id"]}"}}' in text
        plain = server.get("/metrics")[1].decode()
        assert line["id"] not in plain
        assert parsed(plain)


def load_lines(engine: Engine, out: Path) -> list[dict[str, str]]:
    load_of(engine, out)
    return client_times(out)


class _Collector(BaseHTTPRequestHandler):
    """Takes traces as a collector does."""

    spans: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans]
        self.spans.extend(span for scope in scopes for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_every_operation_becomes_a_trace(engine: Engine, tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Collector) as collector, ExitStack() as stack:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(collector.shutdown)
        with serving(engine.url, tmp_path, "--otlp-endpoint", f"http://127.0.0.1:{collector.server_port}") as server:
            load_of(engine, tmp_path / "times", "--runs", "2")
            eventually(lambda: server.total("observe_deliveries_total", sink="traces", result="sent") == 4)
            took = {run["duration_ns"] for run in server.json("/api/operations")["runs"]}
    roots = [span for span in _Collector.spans if not span.parent_span_id]
    assert len({span.trace_id for span in roots}) == len(roots) == 4
    assert {span.end_time_unix_nano - span.start_time_unix_nano for span in roots} == took


def test_an_endpoint_that_is_none_is_one_line(engine: Engine) -> None:
    command = [*OBSERVE, "serve", "--docker-host", engine.url, "--otlp-endpoint", "collector:4318"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
