# SPDX-License-Identifier: Apache-2.0
"""Runs and file events become numbers with bounded labels. Every number is there from the beginning.

How many series that makes is worked out in `tests/unit/test_metrics.py`; docs/contract.md has the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from observe.correlate.operation import OPERATIONS
from observe.exporter.calls import EXPECTED_CALLS, MOST_CALLS, OTHER_CALL
from observe.exporter.histogram import (
    COMPUTATION_BOUNDS,
    FAILURE_BOUNDS,
    OPERATION_BOUNDS,
    PART_BOUNDS,
    WORK_BOUNDS,
    FrozenHistogram,
    Histogram,
)
from observe.model import DepartureKind, EventBatch, Evidence, Kind, Mark, Run, Span
from observe.phases import Catalogue, Phase

OUTCOMES = ("ok", "failed", "unfinished")
OTHER = "other"
NETWORKS = ("bridge", "host", "none", "container", OTHER)
#: What clients that name no network ask for.
_DEFAULT_NETWORK = "default"
AREAS = ("containers", "overlay2", "image", "network", "tmp", "volumes", OTHER)
#: Bits of an inotify event's mask (include/uapi/linux/inotify.h).
FILE_EVENTS: Mapping[str, int] = MappingProxyType(
    {"modify": 0x2, "attrib": 0x4, "moved_from": 0x40, "moved_to": 0x80, "create": 0x100, "delete": 0x200}
)
#: The function of dockerd that its own metric engine_daemon_container_actions_seconds times, by its last name.
_ACTIONS = {"(*Daemon).containerCreate": "create", "(*Daemon).containerStart": "start"}

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """All numbers at one moment, by the values of their labels in the order of `observe.exporter.families`."""

    operations: Mapping[Labels, FrozenHistogram]
    phases: Mapping[Labels, FrozenHistogram]
    unattributed: Mapping[Labels, FrozenHistogram]
    phase_self_ns: Mapping[Labels, int]
    calls: Mapping[Labels, int]
    call_ns: Mapping[Labels, int]
    file_events: Mapping[Labels, int]
    departures: Mapping[Labels, int]
    actions: Mapping[Labels, int]
    action_ns: Mapping[Labels, int]


@dataclass(slots=True)
class _Counters:
    phase_self_ns: Counter[Labels] = field(default_factory=Counter)
    calls: Counter[Labels] = field(default_factory=Counter)
    call_ns: Counter[Labels] = field(default_factory=Counter)
    file_events: Counter[Labels] = field(default_factory=Counter)
    departures: Counter[Labels] = field(default_factory=Counter)
    actions: Counter[Labels] = field(default_factory=Counter)
    action_ns: Counter[Labels] = field(default_factory=Counter)


class Tally:
    """Counts since the exporter began, over all sessions. Not for several threads: they read `freeze()`."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Every series at 0."""
        self._operations = {
            (operation, outcome, network): Histogram(OPERATION_BOUNDS if outcome == "ok" else FAILURE_BOUNDS)
            for operation in OPERATIONS
            for outcome in OUTCOMES
            for network in NETWORKS
        }
        self._phases = {labels: Histogram(bounds) for labels, bounds in phase_rows(catalogue).items()}
        self._unattributed = {(operation,): Histogram(WORK_BOUNDS) for operation in OPERATIONS}
        self._wholes = wholes(catalogue)
        self._counters = counters = _Counters()
        for operation in OPERATIONS:
            counters.departures.update({(operation, kind.value): 0 for kind in DepartureKind})
            counters.phase_self_ns.update({(operation, phase.id): 0 for phase in catalogue.of(operation)})
        for phase, labels in EXPECTED_CALLS.items():
            for label in labels:
                counters.calls[phase.partition(".")[0], phase, label] = 0
        counters.calls.update({(operation, operation, OTHER_CALL): 0 for operation in OPERATIONS})
        counters.file_events.update({(area, event): 0 for area in AREAS for event in FILE_EVENTS})
        counters.actions.update({(action,): 0 for action in _ACTIONS.values()})

    def runs(self, runs: Iterable[Run]) -> None:
        """Count finished runs."""
        for run in runs:
            self._run(run)

    def _run(self, run: Run) -> None:
        ended_ns = run.wall_time_ns + run.duration_ns
        labels = (run.operation, run.outcome, network_of(run.network))
        self._operations[labels].observe(run.duration_ns, run.container_id, ended_ns)
        if run.outcome != "unfinished":  # what was cut off lasted longer than anybody saw
            self._unattributed[run.operation,].observe(run.unattributed_ns, run.container_id, ended_ns)
            for span in run.phases:
                self._phase(run, span, ended_ns)
        for departure in run.departures:
            self._counters.departures[run.operation, departure.kind.value] += 1
        for calls in run.calls:
            phase = self._wholes.get(calls.phase, calls.phase)
            self._calls((run.operation, phase, calls.kind.label), calls.count, calls.duration_ns)
        for function in run.functions if run.outcome == "ok" else ():  # nor does dockerd count the others
            action = _ACTIONS.get(function.name.rpartition("daemon.")[2])
            if action is not None and function.complete:
                self._counters.actions[action,] += 1
                self._counters.action_ns[action,] += function.duration_ns

    def _phase(self, run: Run, span: Span, ended_ns: int) -> None:
        self._counters.phase_self_ns[run.operation, span.id] += span.self_ns or 0
        histogram = self._phases.get((run.operation, span.id, span.evidence.value))
        if histogram is not None and span.duration_ns is not None:
            histogram.observe(span.duration_ns, run.container_id, ended_ns)

    def _calls(self, labels: Labels, count: int, duration_ns: int) -> None:
        counters = self._counters
        if labels not in counters.calls and len(counters.calls) >= MOST_CALLS:
            labels = (labels[0], labels[0], OTHER_CALL)
        counters.calls[labels] += count
        counters.call_ns[labels] += duration_ns

    def file_events(self, batch: EventBatch, data_root: str, driver: str) -> None:
        """Count what inotify told in a batch; what a watcher invented is left out."""
        rows = batch.rows[batch.rows["kind"] == Kind.INOTIFY]
        rows = rows[rows["marks"] & int(Mark.INVENTED) == 0]
        if not len(rows):
            return
        paths, indexes = np.unique(rows["path"], return_inverse=True)
        prefix = data_root.rstrip("/") + "/"
        areas = np.array([AREAS.index(area_of(batch.strings[path], prefix, driver)) for path in paths.tolist()])[
            indexes
        ]
        for event, bit in FILE_EVENTS.items():
            counts = np.bincount(areas[rows["flags"] & bit != 0], minlength=len(AREAS)).tolist()
            for area, count in zip(AREAS, counts, strict=True):
                if count:
                    self._counters.file_events[area, event] += count

    def freeze(self) -> Totals:
        """All numbers as they are now."""
        counters = self._counters
        return Totals(
            operations={labels: histogram.freeze() for labels, histogram in self._operations.items()},
            phases={labels: histogram.freeze() for labels, histogram in self._phases.items()},
            unattributed={labels: histogram.freeze() for labels, histogram in self._unattributed.items()},
            phase_self_ns=dict(counters.phase_self_ns),
            calls=dict(counters.calls),
            call_ns={labels: counters.call_ns[labels] for labels in counters.calls},
            file_events=dict(counters.file_events),
            departures=dict(counters.departures),
            actions=dict(counters.actions),
            action_ns={labels: counters.action_ns[labels] for labels in counters.actions},
        )


def phase_rows(catalogue: Catalogue) -> dict[Labels, tuple[float, ...]]:
    """(operation, phase, evidence) → bounds, for each evidence that the phase can stand on.

    The operation's own row is left out: it is a metric of its own.
    """
    rows: dict[Labels, tuple[float, ...]] = {}
    for operation in OPERATIONS:
        phases = catalogue.of(operation)
        # A phase without evidence, or functions, of its own is covered by that of the phases below it.
        by_kernel = {phase.id for phase in phases if any(o.evidence and _is_in(o.id, phase.id) for o in phases)}
        by_function = {
            phase.id for phase in phases if any(_has_functions(o) and _is_in(o.id, phase.id) for o in phases)
        }
        for phase in phases[1:]:
            bounds = WORK_BOUNDS if phase.id in by_kernel else COMPUTATION_BOUNDS
            if phase.is_part:
                bounds = PART_BOUNDS
            if phase.id in by_function:
                rows[operation, phase.id, Evidence.FUNCTION.value] = bounds
            if phase.id in by_kernel:
                rows[operation, phase.id, Evidence.KERNEL.value] = bounds
    return rows


def wholes(catalogue: Catalogue) -> dict[str, str]:
    """Part of a phase → the phase, which every operation has: that is where its system calls are counted."""
    found: dict[str, str] = {}
    for phase in catalogue.phases:  # a parent stands before its children
        if phase.is_part and phase.parent is not None:
            found[phase.id] = found.get(phase.parent, phase.parent)
    return found


def _has_functions(phase: Phase) -> bool:
    return bool(phase.functions or phase.to_entry or phase.from_return)


def _is_in(phase: str, parent: str) -> bool:
    return phase == parent or phase.startswith(f"{parent}.")


def network_of(mode: str | None) -> str:
    """One of NETWORKS: users name networks as they like."""
    word = (mode or "").partition(":")[0]
    return "bridge" if word == _DEFAULT_NETWORK else word if word in NETWORKS else OTHER


def area_of(path: str, prefix: str, driver: str) -> str:
    """One of AREAS: the folder of the data root (`prefix`, with its slash) that a path lies in."""
    if not path.startswith(prefix):
        return OTHER
    folder = path[len(prefix) :].partition("/")[0]
    return folder if folder in AREAS and (folder != "overlay2" or driver == "overlay2") else OTHER
