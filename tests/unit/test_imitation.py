# SPDX-License-Identifier: Apache-2.0
"""docs/fleet.md measures made-up hosts (workloads/exporter.py): they must have what `observe serve` has."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path

from prometheus_client import ProcessCollector
from streams import header

from observe.collectors.session import PROBES
from observe.exporter.exposition import SnapshotCollector
from observe.exporter.flight import FlightRecorder
from observe.exporter.live import Live
from observe.exporter.snapshot import Condition
from observe.exporter.traces import TraceSink
from observe.phases import load

EXPORTER = Path(__file__).parents[1] / "workloads" / "exporter.py"


def shape(metrics):
    """Family and type → names of its samples' labels → buckets; and how many series it has by that."""
    found = defaultdict(lambda: defaultdict(set))
    series = defaultdict(set)
    for metric in metrics:
        if metric.name.startswith("process_"):
            continue
        for sample in metric.samples:
            if sample.name.endswith("_created"):
                continue
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            key = (metric.name, metric.type, sample.name)
            found[key][tuple(sorted(labels))].add(sample.labels.get("le"))
            series[key].add(tuple(sorted(sample.labels.items())))
    return found, series


def imitation():
    spec = importlib.util.spec_from_file_location("made_up_exporter", EXPORTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def real(tmp_path):
    sinks = (FlightRecorder(tmp_path, 1), TraceSink(lambda _: [], lambda _: 0))
    live = Live(load(), PROBES, sinks)
    live.attached(header(), [])
    live.publish(Condition(dict.fromkeys(PROBES, True)))
    return SnapshotCollector(live.snapshot).collect()


def test_families_labels_and_buckets_are_those_of_the_exporter(tmp_path):
    theirs, their_series = shape(imitation().Host(0, sick=False).registry.collect())
    ours, our_series = shape(real(tmp_path))
    assert theirs.keys() == ours.keys()
    for key, by_labels in ours.items():
        assert theirs[key] == by_labels, key
    # What a series is labelled with, too, but for the facts of an engine.
    for key, rows in our_series.items():
        if key[1] != "info":
            assert their_series[key] == rows, key


def test_the_processes_metrics_are_prometheus_clients():
    names = {metric.name for metric in imitation().Host(0, sick=False).registry.collect()}
    assert {metric.name for metric in ProcessCollector(registry=None).collect()} <= names
