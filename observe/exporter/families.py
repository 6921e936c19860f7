# SPDX-License-Identifier: Apache-2.0
"""The metrics of a snapshot: names, help, labels and values, as prometheus-client's families take them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.utils import floatToGoString

from observe import __version__
from observe.exporter.histogram import Exemplar as OurExemplar
from observe.exporter.histogram import FrozenHistogram
from observe.exporter.snapshot import Snapshot
from observe.exporter.tally import Labels
from observe.model import Loss

_SECOND_NS = 1_000_000_000
_UNCOUNTED = "; NaN if it does not count (see the log)."
#: Values of the labels → value.
Rows = Mapping[Labels, int] | Mapping[tuple[str], float] | Mapping[tuple[str], int] | Mapping[tuple[str, str], int]
#: Facts of the engine that observe_engine_info shows.
_ENGINE_FACTS = ("version", "api_version", "go_version", "storage_driver")
#: Losses by the name that they have as a source; the file of a recording cannot be damaged here.
SOURCES: Mapping[str, str] = {
    field.name: "inotify" if field.name == "inotify_overflows" else field.name
    for field in fields(Loss)
    if field.name != "damaged_bytes"
}


def number(value: float) -> str:
    """A number as prometheus-client writes it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Histograms:
    """A family of histograms, whose many lines are written by `observe.exporter.exposition`."""

    name: str
    help: str
    labels: tuple[str, ...]
    rows: Mapping[Labels, FrozenHistogram]

    def metric(self) -> Metric:
        """The family as prometheus-client has it."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, histogram in self.rows.items():
            bounds = (*map(number, histogram.bounds), "+Inf")
            buckets = [
                (bound, count, _exemplar(exemplar)) if exemplar else (bound, count)
                for bound, count, exemplar in zip(bounds, histogram.cumulative, histogram.exemplars, strict=True)
            ]
            family.add_metric(labels, buckets, histogram.sum_seconds)
        return family


def histograms(snapshot: Snapshot) -> tuple[Histograms, ...]:
    """The families that have most of the series."""
    totals = snapshot.totals
    return (
        Histograms(
            "observe_operation_duration_seconds",
            "Time from dockerd's reading of a request to its answer. Outcomes other than ok have fewer buckets:"
            ' take percentiles of outcome="ok".',
            ("operation", "outcome", "network"),
            totals.operations,
        ),
        Histograms(
            "observe_phase_duration_seconds",
            "Time in a documented phase, the phases below it included, by what its bounds stand on.",
            ("operation", "phase", "evidence"),
            totals.phases,
        ),
        Histograms(
            "observe_operation_unattributed_seconds",
            "Time of an operation that lies in none of its documented phases.",
            ("operation",),
            totals.unattributed,
        ),
    )


def scalars(snapshot: Snapshot) -> Iterator[Metric]:
    """All other families."""
    totals = snapshot.totals
    yield _gauge(
        "observe_operations_in_flight",
        "Requests that dockerd has not answered yet.",
        ("operation",),
        {(operation,): count for operation, count in snapshot.in_flight.items()},
    )
    yield _seconds(
        "observe_phase_self_seconds",
        "Time in which a phase was the innermost one; the operation's own row is what is unattributed.",
        ("operation", "phase"),
        totals.phase_self_ns,
    )
    call = ("operation", "phase", "syscall")
    yield _counter(
        "observe_syscalls", "System calls by the innermost phase that every operation has.", call, totals.calls
    )
    yield _seconds("observe_syscall_duration_seconds", "Time in system calls.", call, totals.call_ns)
    yield _counter(
        "observe_file_events", "File events of the data root, by inotify.", ("area", "event"), totals.file_events
    )
    yield _counter(
        "observe_departures",
        "Departures of runs from the documented order.",
        ("operation", "kind"),
        totals.departures,
    )
    yield _actions(snapshot)
    losses = {(source,): getattr(snapshot.loss, name) for name, source in SOURCES.items()}
    yield _counter(
        "observe_lost_events",
        "Events that are missing or belong to no operation for sure. inotify_missed, unmatched_returns and "
        "unattributed_events are no fault of the recorder.",
        ("source",),
        losses,
    )
    hits = {(probe,): usage.hits if usage else math.nan for probe, usage in snapshot.usage.items()}
    run_ns = {(probe,): usage.run_ns if usage else math.nan for probe, usage in snapshot.usage.items()}
    yield _counter("observe_probe_hits", f"How often our programs ran in the kernel{_UNCOUNTED}", ("probe",), hits)
    yield _seconds(
        "observe_probe_run_seconds", f"How long our programs ran in the kernel{_UNCOUNTED}", ("probe",), run_ns
    )
    attached = {(probe,): int(is_attached) for probe, is_attached in snapshot.condition.attached.items()}
    yield _gauge("observe_attached", "Whether the probe is attached to the engine.", ("probe",), attached)
    yield _counter(
        "observe_deliveries",
        "What became of slow runs' recordings (--keep) and of traces (--otlp-endpoint).",
        ("sink", "result"),
        snapshot.deliveries,
    )
    engine = snapshot.header.engine if snapshot.header is not None else {}
    yield InfoMetricFamily(
        "observe_engine",
        "The engine that is, or was last, attached to.",
        {name: str(engine.get(name, "")) for name in _ENGINE_FACTS},
    )
    yield InfoMetricFamily("observe_build", "This program.", {"version": __version__})


def _exemplar(exemplar: OurExemplar) -> Exemplar:
    return Exemplar({"container_id": exemplar.container_id}, exemplar.seconds, exemplar.wall_seconds)


def _actions(snapshot: Snapshot) -> Metric:
    family = SummaryMetricFamily(
        "observe_engine_action_seconds",
        "Time in dockerd's containerCreate and containerStart: what its own metric "
        "engine_daemon_container_actions_seconds times. Only where functions are probed.",
        labels=("action",),
    )
    for labels, count in snapshot.totals.actions.items():
        family.add_metric(labels, count, snapshot.totals.action_ns[labels] / _SECOND_NS)
    return family


def _counter(name: str, text: str, labels: Labels, rows: Rows) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in rows.items():
        family.add_metric(values, count)
    return family


def _seconds(name: str, text: str, labels: Labels, rows: Rows) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, duration_ns in rows.items():
        family.add_metric(values, duration_ns / _SECOND_NS)
    return family


def _gauge(name: str, text: str, labels: Labels, rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows.items():
        family.add_metric(values, value)
    return family
