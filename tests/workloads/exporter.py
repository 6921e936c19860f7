# SPDX-License-Identifier: Apache-2.0
"""Made-up hosts with the metrics of `observe serve`, for a Prometheus to scrape: no engine, no kernel.

`python exporter.py [--hosts N] [--operations N] [--sick N]` listens on a free port of 127.0.0.1, prints it, and serves
`/HOST/metrics` for HOST from 0. Time passes by scrapes: each one brings that many creates and starts more. The last
`--sick` hosts are slow, fail, lose events and are detached. The same scrape of the same host always says
the same; without operations all do.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from observe.exporter.calls import EXPECTED_CALLS, OTHER_CALL
from observe.phases import Phase, load

#: 26% apart, 0.1 ms to 63 s; what did not go well has every tenth.
OK_BUCKETS = [float(f"{10 ** (exponent / 10):.4g}") for exponent in range(-40, 19)]
FAILED_BUCKETS = OK_BUCKETS[::10]
#: Phases that the kernel sees, parts that not every operation has, and those that are computation.
WORK_BUCKETS = [float(f"{10 ** (exponent / 4):.4g}") for exponent in range(-16, 5)]
PART_BUCKETS = [float(f"{10 ** (exponent / 2):.4g}") for exponent in range(-7, 1)]
COMPUTATION_BUCKETS = [float(f"{10 ** (exponent / 2):.4g}") for exponent in (*range(-10, -5), -4, -2, 0)]
NETWORKS = {"bridge": 1.0, "host": 0.2, "none": 0.6, "container": 0.2, "other": 1.2}
OUTCOMES = ("ok", "failed", "unfinished")
SOURCES = (
    "ring_buffer",
    "program_misses",
    "lineage",
    "inotify",
    "inotify_watches",
    "inotify_missed",
    "unmatched_returns",
    "unattributed_events",
)
AREAS = ("containers", "overlay2", "image", "network", "tmp", "volumes", "other")
EVENTS = ("modify", "attrib", "moved_from", "moved_to", "create", "delete")
DEPARTURES = ("missing", "repeated", "out_of_order")
PROBES = (
    "sys_enter",
    "sys_exit",
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "functions",
    "inotify",
)
ENGINE = {"version": "20.10.24", "api_version": "1.41", "go_version": "go1.19.8", "storage_driver": "overlay2"}
DELIVERIES = {
    "flight_recorder": ("kept", "removed", "too_large", "failed", "dropped"),
    "traces": ("sent", "failed", "dropped"),
}
#: Mean milliseconds of the phases that have no parts; the others take a hundredth of a millisecond.
MEANS = {
    "create.rw_layer": 4,
    "create.root": 2,
    "create.os_specific": 2,
    "create.register": 2,
    "start.mount": 1.2,
    "start.network.endpoint": 5,
    "start.network.sandbox": 2,
    "start.network.join": 4,
    "start.containerd_create": 5,
    "start.containerd_start.shim": 20,
    "start.containerd_start.runc_create.init.rootfs": 4,
    "start.containerd_start.runc_create.init.seccomp": 16,
    "start.containerd_start.runc_create.cgroups": 5,
    "start.containerd_start.runc_create.network_hook.set_key.set_ipv6": 90,
    "start.containerd_start.runc_start": 25,
    "start.save_state": 2,
}
#: What grows and shrinks with the network.
NETWORKED = {
    *(f"start.network.{part}" for part in ("endpoint", "sandbox", "join")),
    "start.containerd_start.runc_create.network_hook.set_key.set_ipv6",
}


class Family(Collector):
    """Several histograms as one family."""

    def __init__(self, parts: Sequence[Histogram]) -> None:
        """The first one has the name and the help."""
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        """All rows."""
        metrics = [metric for part in self._parts for metric in part.collect()]
        for metric in metrics[1:]:
            metrics[0].samples += metric.samples
        return metrics[:1]


class Host:
    """One made-up host; `number` seeds it, so each is a little different."""

    def __init__(self, number: int, *, sick: bool) -> None:
        """All series exist from here on, as in the exporter."""
        self.registry = CollectorRegistry()
        self._lock = Lock()
        self._sick = sick
        self._random = random.Random(number)  # noqa: S311 - no secret
        self._pace = 1 + 0.05 * (number % 10)
        self._made = 0
        self._said: tuple[bytes, str] | None = None
        catalogue = load()
        self._phases = {name: catalogue.of(name) for name in ("create", "start")}
        self._evidence = {key: kinds for phases in self._phases.values() for key, kinds in evidence(phases).items()}
        self._leaves = {
            name: [phase for phase in phases if not any(other.parent == phase.id for other in phases)]
            for name, phases in self._phases.items()
        }
        self._make_metrics()
        self._fill()

    def scrape(self, operations: int, accept: str) -> tuple[bytes, str]:
        """Let some creates and starts happen; what the exporter says then, and its content type."""
        with self._lock:
            if not operations and self._said:
                return self._said
            for _ in range(operations):
                network = self._random.choices(list(NETWORKS), weights=[10, 3, 2, 1, 1])[0]
                self._happens("create", network)
                self._happens("start", network)
            encode, content_type = choose_encoder(accept)
            self._said = encode(self.registry), content_type
            return self._said

    def _make_metrics(self) -> None:
        new = {"registry": self.registry}
        name, text = "observe_operation_duration_seconds", "Time from a request to its answer"
        labels = ("operation", "outcome", "network")
        self.ok, self.not_ok = self._histograms(name, text, labels, OK_BUCKETS, FAILED_BUCKETS)
        name, text = "observe_phase_duration_seconds", "Time in a documented phase"
        labels = ("operation", "phase", "evidence")
        self.work, self.part, self.computation = self._histograms(
            name, text, labels, WORK_BUCKETS, PART_BUCKETS, COMPUTATION_BUCKETS
        )
        self.unattributed = Histogram(
            "observe_operation_unattributed_seconds", "In no phase", ["operation"], buckets=WORK_BUCKETS, **new
        )
        self.in_flight = Gauge("observe_operations_in_flight", "Operations now", ["operation"], **new)
        self.self_seconds = Counter("observe_phase_self_seconds", "Innermost", ["operation", "phase"], **new)
        call = ["operation", "phase", "syscall"]
        self.syscalls = Counter("observe_syscalls", "System calls", call, **new)
        self.syscall_seconds = Counter("observe_syscall_duration_seconds", "Time in system calls", call, **new)
        self.file_events = Counter("observe_file_events", "inotify's events", ["area", "event"], **new)
        self.lost = Counter("observe_lost_events", "Events lost", ["source"], **new)
        self.hits = Counter("observe_probe_hits", "Runs of a program", ["probe"], **new)
        self.probe_seconds = Counter("observe_probe_run_seconds", "Time in a program", ["probe"], **new)
        self.departures = Counter("observe_departures", "Departures", ["operation", "kind"], **new)
        self.actions = Summary("observe_engine_action_seconds", "The engine's own timing", ["action"], **new)
        self.deliveries = Counter("observe_deliveries", "Recordings and traces", ["sink", "result"], **new)
        self.attached = Gauge("observe_attached", "1 if attached", ["probe"], **new)
        self.engine = Info("observe_engine", "The engine", **new)
        self.build = Info("observe_build", "This exporter", **new)
        ProcessCollector(registry=self.registry)

    def _histograms(self, name: str, text: str, labels: Sequence[str], *buckets: Sequence[float]) -> list[Histogram]:
        """Histograms of one family whose rows differ in their buckets."""
        parts = [Histogram(name, text, labels, buckets=bounds, registry=None) for bounds in buckets]
        self.registry.register(Family(parts))
        return parts

    def _phase(self, phase: Phase, evidence: str) -> Histogram:
        histogram = self.work if "kernel" in self._evidence[phase.id] else self.computation
        if phase.is_part:
            histogram = self.part
        return histogram.labels(phase.operation, phase.id, evidence)

    def _fill(self) -> None:
        for name, phases in self._phases.items():
            for outcome, network in product(OUTCOMES, NETWORKS):
                (self.ok if outcome == "ok" else self.not_ok).labels(name, outcome, network)
            for phase in phases:
                self.self_seconds.labels(name, phase.id)
                for kind in self._evidence[phase.id]:
                    self._phase(phase, kind)
                for syscall in calls_of(phase):
                    self.syscalls.labels(name, phase.id, syscall)
                    self.syscall_seconds.labels(name, phase.id, syscall)
            for counter in (self.unattributed, self.in_flight, self.actions):
                counter.labels(name)
        for probe in PROBES:
            self.attached.labels(probe).set(not self._sick)
        rows = {
            self.departures: product(self._phases, DEPARTURES),
            self.file_events: product(AREAS, EVENTS),
            self.lost: product(SOURCES),
            self.hits: product(PROBES),
            self.probe_seconds: product(PROBES),
            self.deliveries: ((sink, result) for sink, results in DELIVERIES.items() for result in results),
        }
        for metric, labels in rows.items():
            for values in labels:
                metric.labels(*values)
        self.engine.info(ENGINE)
        self.build.info({"version": "0"})

    def _happens(self, operation: str, network: str) -> None:
        """One operation: its leaves take random times, and what contains them takes their sum."""
        durations: dict[str, float] = {}
        for leaf in self._leaves[operation]:
            mean = MEANS.get(leaf.id, 0.01) / 1_000 * (NETWORKS[network] if leaf.id in NETWORKED else 1)
            seconds = mean * self._pace * (15 if self._sick else 1) * self._random.lognormvariate(-0.03, 0.25)
            part: str = leaf.id
            while part:
                durations[part] = durations.get(part, 0) + seconds
                part = part.rpartition(".")[0]
        unattributed = durations[operation] * (0.2 if self._sick else 0.01)
        durations[operation] += unattributed
        failed = self._random.random() < (0.3 if self._sick else 0.02)
        self._made += 1
        exemplar = {"container_id": sha256(b"container %d" % self._made).hexdigest()}
        outcome, histogram = ("failed", self.not_ok) if failed else ("ok", self.ok)
        histogram.labels(operation, outcome, network).observe(durations[operation], exemplar)
        self.unattributed.labels(operation).observe(unattributed, exemplar)
        self.self_seconds.labels(operation, operation).inc(unattributed)
        self.actions.labels(operation).observe(durations[operation] - unattributed)
        for phase in self._phases[operation]:
            for evidence in self._evidence[phase.id][:1]:
                self._phase(phase, evidence).observe(durations[phase.id], exemplar)
        self._meanwhile(operation, durations)

    def _meanwhile(self, operation: str, durations: dict[str, float]) -> None:
        """The counters beside the durations."""
        self.in_flight.labels(operation).set(self._random.randrange(4))
        for leaf in self._leaves[operation]:
            self.self_seconds.labels(operation, leaf.id).inc(durations[leaf.id])
            whole = whole_of(leaf, self._phases[operation])
            for syscall in calls_of(whole):
                self.syscalls.labels(operation, whole.id, syscall).inc(3)
                self.syscall_seconds.labels(operation, whole.id, syscall).inc(durations[leaf.id] / 10)
        for area in AREAS:
            for event in EVENTS:
                self.file_events.labels(area, event).inc()
        self.lost.labels("inotify_missed").inc(self._random.randrange(3))
        self.lost.labels("ring_buffer").inc(3 if self._sick else 0)
        self.departures.labels(operation, self._random.choice(DEPARTURES)).inc(self._random.random() < 0.1)
        for probe in PROBES:
            self.hits.labels(probe).inc(180)
            self.probe_seconds.labels(probe).inc(180 * 1e-6)


def calls_of(phase: Phase) -> tuple[str, ...]:
    """The calls that have a series from the beginning."""
    return (*EXPECTED_CALLS.get(phase.id, ()), *(() if phase.parent else (OTHER_CALL,)))


def evidence(phases: Sequence[Phase]) -> dict[str, list[str]]:
    """Phase → the kinds of evidence that it can stand on; none for the operation, which is a metric of its own."""
    kinds = {}
    for phase in phases:
        parts = [other for other in phases if below(other, phase)]
        function = any(part.functions or part.to_entry or part.from_return for part in parts)
        kernel = any(part.evidence for part in parts)
        kinds[phase.id] = [*["function"] * function, *["kernel"] * kernel] if phase.parent else []
    return kinds


def whole_of(phase: Phase, phases: Sequence[Phase]) -> Phase:
    """The phase itself, or the one that it is a part of that not every operation has."""
    by_id = {one.id: one for one in phases}
    while phase.is_part and phase.parent is not None:
        phase = by_id[phase.parent]
    return phase


def below(phase: Phase, other: Phase) -> bool:
    """Whether a phase is another one or one of its parts."""
    return f"{phase.id}.".startswith(f"{other.id}.")


def handler(hosts: list[Host], operations: int) -> Callable[..., BaseHTTPRequestHandler]:
    """What answers for the hosts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, content_type = hosts[int(self.path.split("/")[1])].scrape(operations, self.headers.get("Accept", ""))
            # A scraper that has waited long enough is gone.
            with suppress(ConnectionError):
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def made_up(hosts: int, sick: int) -> Iterable[Host]:
    """The hosts; the last ones are sick."""
    return (Host(number, sick=number >= hosts - sick) for number in range(hosts))


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--operations", type=int, default=3, help="creates and starts a scrape")
    parser.add_argument("--sick", type=int, default=0)
    args = parser.parse_args()
    disable_created_metrics()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(list(made_up(args.hosts, args.sick)), args.operations))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
