# SPDX-License-Identifier: Apache-2.0
"""Runs become numbers: exactly, with bounded labels, and within the budget of series."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from made import HOSTILE, ID, MS, made_run
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from streams import DATA, create, header, identity, recorded, start, stream, told
from streams import MS as MILLISECOND

from observe.correlate.operation import OPERATIONS
from observe.exporter import exposition as exposition_module
from observe.exporter.calls import EXPECTED_CALLS, MOST_CALLS
from observe.exporter.exposition import Exposition, SnapshotCollector
from observe.exporter.histogram import FAILURE_BOUNDS, OPERATION_BOUNDS, PART_BOUNDS, WORK_BOUNDS, Histogram
from observe.exporter.live import Live
from observe.exporter.snapshot import Condition
from observe.exporter.tally import NETWORKS, OUTCOMES, Tally, area_of, network_of
from observe.model import (
    Calls,
    Departure,
    DepartureKind,
    EventBatch,
    Evidence,
    FunctionCall,
    Kind,
    Mark,
    Note,
    NoteKind,
    Span,
    Usage,
)
from observe.phases import load

PROGRAMS = ("sys_enter", "sys_exit", "functions")
PROBES = dict.fromkeys((*PROGRAMS, "inotify"), True)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
BUDGET = 2500
S = 1_000_000_000


def live_of(items=(), of=None):
    """A live engine that has seen these items, with a clock that stands still behind them."""
    live = Live(load(), PROGRAMS, boot_clock_ns=lambda: 0, wall_clock_ns=lambda: 1_700_000_000 * S)
    live.attached(of or header(), items)
    live.publish(Condition(PROBES, usage={"sys_enter": Usage(3, 2 * S)}))
    return live


def series(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def scraped(live):
    return series(Exposition().write(live.snapshot, "")[0].decode())


def value(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


def run_with(**changes):
    return replace(made_run(3), **changes)


def tally_of(*runs):
    tally = Tally(load())
    tally.runs(runs)
    return tally.freeze()


# ---- the budget ------------------------------------------------------------------------------------------------------


def test_the_series_fit_the_budget_whatever_containers_do():
    """Of 2,500: 2 x 5 x (59 + 3) + 2 x 2 x 5 x (6 + 3) of operations, 76 rows of phases, and some 400 others."""
    live = live_of()
    found = scraped(live)
    operations = [labels for name, labels in found if name.startswith("observe_operation_duration_seconds")]
    assert len(operations) == 2 * 5 * (59 + 3) + 2 * 2 * 5 * (6 + 3) == 800
    phases = [labels for name, labels in found if name.startswith("observe_phase_duration_seconds")]
    assert len(phases) <= 1300
    pairs = sum(name == "observe_syscalls_total" for name, _ in found)
    # What may still come: calls that no phase was expected to make, and the two sinks.
    assert len(found) + 2 * (MOST_CALLS - pairs) + 2 * 6 <= BUDGET


def test_no_call_and_no_container_adds_series_without_end():
    runs = [
        run_with(
            container_id=f"{number:064x}",
            container_name=HOSTILE,
            image=HOSTILE,
            network=f"{HOSTILE}{number}",
            calls=tuple(Calls(f"start.made_up_{number}", kind, 1, 5) for kind in Kind if kind < 64),
        )
        for number in range(50)
    ]
    totals = tally_of(*runs)
    assert len(totals.calls) <= MOST_CALLS + len(OPERATIONS)
    assert sum(totals.calls.values()) == 50 * sum(kind < 64 for kind in Kind)
    assert sum(totals.call_ns.values()) == 5 * sum(totals.calls.values())
    assert totals.operations.keys() == tally_of().operations.keys()
    assert totals.operations["start", "ok", "other"].count == 50


def test_buckets_of_operations_are_at_most_26_percent_apart_from_a_tenth_of_a_millisecond_to_a_minute():
    assert OPERATION_BOUNDS[0] == 0.0001
    assert OPERATION_BOUNDS[-1] >= 60
    assert all(after / before <= 1.26 for before, after in pairwise(OPERATION_BOUNDS))
    assert set(FAILURE_BOUNDS) < set(OPERATION_BOUNDS)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_a_histogram_counts_its_bounds_as_included():
    histogram = Histogram((0.001, 0.01))
    for duration_ns in (1_000_000, 1_000_001, 10_000_001):
        histogram.observe(duration_ns, None, 0)
    assert histogram.freeze().cumulative == (1, 2, 3)
    assert histogram.freeze().sum_seconds == pytest.approx(0.012000002, abs=1e-12)
    assert histogram.freeze() is histogram.freeze()


def test_a_run_is_counted_once_in_every_family():
    span = Span("start.network", "start", "3.3/4", 0, 30 * MS, 20 * MS, Evidence.KERNEL)
    run = run_with(
        duration_ns=200 * MS,
        unattributed_ns=8 * MS,
        phases=(replace(made_run(0).phases[0], self_ns=8 * MS), span),
        departures=(Departure(DepartureKind.MISSING, "start.mount", "x"),),
        calls=(Calls("start.network", Kind.SETNS, 3, 4 * MS), Calls("start", Kind.UMOUNT2, 1, MS)),
        functions=(
            FunctionCall("github.com/docker/docker/daemon.(*Daemon).containerStart", 1, 0, 150 * MS, True),
            FunctionCall("github.com/docker/docker/daemon.(*Daemon).containerStart", 1, 0, 150 * MS, False),
        ),
    )
    totals = tally_of(run, run)
    whole = totals.operations["start", "ok", "bridge"]
    assert (whole.count, whole.sum_seconds) == (2, 0.4)
    assert sum(histogram.count for histogram in totals.operations.values()) == 2
    assert totals.phases["start", "start.network", "kernel"].sum_seconds == 0.06
    assert totals.phases["start", "start.network", "function"].count == 0
    assert totals.unattributed["start",].sum_seconds == 0.016
    assert totals.phase_self_ns["start", "start.network"] == 40 * MS
    assert totals.phase_self_ns["start", "start"] == 16 * MS
    assert totals.calls["start", "start.network", "setns"] == 6
    assert totals.call_ns["start", "start.network", "setns"] == 8 * MS
    assert totals.calls["start", "start", "umount2"] == 2
    assert totals.departures["start", "missing"] == 2
    assert (totals.actions["start",], totals.action_ns["start",]) == (2, 300 * MS)


def test_what_is_done_in_a_part_is_counted_with_its_phase():
    init = "start.containerd_start.runc_create.init"
    parts = [f"{init}.rootfs", f"{init}.mask", init, "start.containerd_start.runc_create.network_hook.set_key.set_ipv6"]
    totals = tally_of(run_with(calls=tuple(Calls(part, Kind.MOUNT, 2, MS) for part in parts)))
    assert totals.calls["start", init, "mount"] == 6
    assert totals.calls["start", "start.containerd_start.runc_create.network_hook", "mount"] == 2
    assert not any(phase in parts[:2] for _, phase, _ in totals.calls)


def test_a_phase_has_a_row_for_each_evidence_that_it_can_stand_on():
    rows = tally_of().phases
    init = "start.containerd_start.runc_create.init"
    kinds = {phase: [kind for _, one, kind in rows if one == phase] for _, phase, _ in rows}
    assert kinds[init] == ["function", "kernel"]  # functions of runc below it
    assert (kinds[f"{init}.rootfs"], kinds[f"{init}.seccomp"]) == (["kernel"], ["function"])
    assert rows["start", init, "kernel"].bounds == WORK_BOUNDS
    assert rows["start", f"{init}.rootfs", "kernel"].bounds == PART_BOUNDS


def test_functions_of_what_failed_are_not_counted_as_dockerd_does_not_either():
    call = FunctionCall("github.com/docker/docker/daemon.(*Daemon).containerStart", 1, 0, 150 * MS, complete=True)
    assert tally_of(run_with(functions=(call,))).actions["start",] == 1
    assert tally_of(run_with(functions=(call,), outcome="failed")).actions["start",] == 0


def test_what_was_cut_off_counts_as_an_operation_and_measures_no_phase():
    span = Span("start.network", "start", "3.3/4", 0, 30 * MS, 20 * MS, Evidence.KERNEL)
    totals = tally_of(run_with(outcome="unfinished", phases=(made_run(0).phases[0], span)))
    assert totals.operations["start", "unfinished", "bridge"].count == 1
    assert totals.phases["start", "start.network", "kernel"].count == 0
    assert totals.unattributed["start",].count == 0


def test_a_bucket_remembers_its_last_run():
    totals = tally_of(
        run_with(container_id="a" * 64), run_with(container_id="b" * 64), run_with(container_id=None, duration_ns=5 * S)
    )
    exemplars = [one for one in totals.operations["start", "ok", "bridge"].exemplars if one]
    assert [one.container_id for one in exemplars] == ["b" * 64]


@pytest.mark.parametrize(
    ("mode", "network"),
    [
        ("bridge", "bridge"),
        ("default", "bridge"),
        ("host", "host"),
        ("none", "none"),
        ("container:4f2a", "container"),
        ("my-network", "other"),
        ("other", "other"),
        ("", "other"),
        (None, "other"),
        ("bridge\n", "other"),
        (HOSTILE, "other"),
    ],
)
def test_networks_are_bounded(mode, network):
    assert network_of(mode) == network
    assert network in NETWORKS


@pytest.mark.parametrize(
    ("path", "driver", "area"),
    [
        ("containers/x/config.v2.json", "overlay2", "containers"),
        ("overlay2/l", "overlay2", "overlay2"),
        ("overlay2/l", "btrfs", "other"),
        ("image/overlay2/layerdb", "overlay2", "image"),
        ("buildkit/x", "overlay2", "other"),
        ("tmp", "overlay2", "tmp"),
    ],
)
def test_areas_are_bounded(path, driver, area):
    assert area_of(f"/data/{path}", "/data/", driver) == area
    assert area_of(f"/elsewhere/{path}", "/data/", driver) == "other"


def test_file_events_are_counted_by_area_and_event_without_what_a_watcher_invented():
    tally = Tally(load())
    batch = EventBatch.of(
        [
            told(f"{DATA}/containers/x", 0x100, 1),
            told(f"{DATA}/containers/y", 0x40000100, 1),
            told(f"{DATA}/containers/y", 0x100, 1, Mark.INVENTED),
            told(f"{DATA}/overlay2/{HOSTILE}", 0x2, 1),
            told("/elsewhere", 0x200, 1),
        ]
    )
    tally.file_events(batch, DATA, "overlay2")
    counted = {labels: count for labels, count in tally.freeze().file_events.items() if count}
    assert counted == {("containers", "create"): 2, ("overlay2", "modify"): 1, ("other", "delete"): 1}


# ---- the exposition --------------------------------------------------------------------------------------------------


def busy_live():
    """All kinds of numbers, from recordings of a real engine."""
    of, items = recorded("functions")
    live = live_of(items, of)
    live.take(recorded("three-at-once")[1])
    live.detached()
    live.publish(Condition(PROBES, "gone", {"sys_enter": Usage(5, S)}))
    return live


@pytest.mark.parametrize(("accept", "encode"), [("", generate_latest), (OPENMETRICS, generate_openmetrics)])
def test_it_is_what_prometheus_client_writes(accept, encode):
    exposition = Exposition()
    for live in (live_of(), busy_live(), live_of()):
        text, _ = exposition.write(live.snapshot, accept)
        ours = [line for line in text.decode().splitlines() if "process_" not in line]
        assert ours == encode(SnapshotCollector(live.snapshot)).decode().splitlines()
    assert ("# {" in exposition.write(busy_live().snapshot, accept)[0].decode()) == bool(accept)


@pytest.mark.parametrize(("accept", "encode"), [("", generate_latest), (OPENMETRICS, generate_openmetrics)])
def test_only_histograms_that_have_changed_are_written_again(monkeypatch, accept, encode):
    exposition, live, written = Exposition(), live_of(), []
    of, items = recorded("three-at-once")
    write = exposition_module._lines
    monkeypatch.setattr(
        exposition_module, "_lines", lambda heads, one, **how: written.append(one) or write(heads, one, **how)
    )
    counts = []
    live.attached(of, ())
    for batches in ((), items, (), items[:1]):
        live.take(batches)
        live.publish(Condition(PROBES, ""))
        text, _ = exposition.write(live.snapshot, accept)
        ours = [line for line in text.decode().splitlines() if "process_" not in line]
        assert ours == encode(SnapshotCollector(live.snapshot)).decode().splitlines()
        counts.append(len(written))
        written.clear()
    everything, changed, *unchanged = counts
    assert everything > changed > 0
    assert unchanged == [0, 0]


def test_openmetrics_parses_and_follows_the_rules_of_names():
    text = Exposition().write(busy_live().snapshot, OPENMETRICS)[0].decode()
    families = {family.name: family for family in parse_openmetrics(text)}
    for name, family in families.items():
        assert name.startswith(("observe_", "process_"))
        assert family.documentation
        for sample in family.samples:
            assert not {"container_id", "container_name", "name", "image", "path"} & sample.labels.keys()
            if sample.exemplar:
                assert sample.exemplar.labels.keys() == {"container_id"}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "observe_probe_run_seconds"} <= families.keys()


def test_an_accept_header_cannot_make_it_keep_more():
    exposition, live = Exposition(), live_of()
    kinds = {exposition.write(live.snapshot, f"{OPENMETRICS}.{number}; escaping=dots")[1] for number in range(20)}
    assert len(kinds) == 1


def test_every_series_is_there_before_an_engine_is():
    nothing = Live(load(), PROGRAMS)
    before, after = scraped(nothing).keys(), scraped(busy_live()).keys()
    gone = {name for name, _ in before - after}
    come = {name for name, _ in after - before}
    assert gone == {"observe_engine_info"}
    assert come <= {"observe_engine_info", "observe_attached"}
    for outcome in OUTCOMES:
        labels = {"operation": "start", "outcome": outcome, "network": "none"}
        assert value(scraped(nothing), "observe_operation_duration_seconds_count", **labels) == 0


def test_the_expected_calls_are_those_of_documented_phases():
    phases = {phase.id for phase in load().phases}
    assert EXPECTED_CALLS.keys() <= phases
    labels = {kind.label for kind in Kind if kind < 64}
    assert {call for calls in EXPECTED_CALLS.values() for call in calls} <= labels


# ---- sessions --------------------------------------------------------------------------------------------------------


def one_pair(at_ns=0):
    made = create(1, at_ns)
    begun = start(1, made[-1].end_ns + MILLISECOND)
    return stream(
        made, identity(1, made[-1].end_ns, "web"), begun, Note(NoteKind.WARNING, begun[-1].end_ns + 4 * S, {})
    )


def test_a_live_engines_runs_are_counted_with_their_network():
    found = scraped(live_of(one_pair()))
    for operation in OPERATIONS:
        labels = {"operation": operation, "outcome": "ok", "network": "bridge"}
        assert value(found, "observe_operation_duration_seconds_count", **labels) == 1
    assert value(found, "observe_syscalls_total", operation="create", phase="create.rw_layer", syscall="mount") == 1


def test_a_second_session_adds_to_the_first_and_counts_nothing_twice():
    live = live_of(one_pair())
    live.take([Note(NoteKind.LOSS, 0, {"ring_buffer": 2})])
    live.publish(Condition(PROBES, usage={"sys_enter": Usage(3, 2 * S)}))
    live.detached()
    live.publish(Condition(dict.fromkeys(PROBES, False), "gone"))
    assert value(scraped(live), "observe_attached", probe="inotify") == 0
    live.attached(header(), one_pair(60 * S))
    live.take([Note(NoteKind.LOSS, 0, {"ring_buffer": 5})])
    live.publish(Condition(PROBES, usage={"sys_enter": Usage(10, S)}))
    found = scraped(live)
    labels = {"operation": "start", "outcome": "ok", "network": "bridge"}
    assert value(found, "observe_operation_duration_seconds_count", **labels) == 2
    assert value(found, "observe_lost_events_total", source="ring_buffer") == 7
    assert value(found, "observe_probe_hits_total", probe="sys_enter") == 13
    assert value(found, "observe_probe_run_seconds_total", probe="sys_enter") == 3


def test_what_the_kernel_does_not_count_is_not_a_number():
    live = live_of()
    live.publish(Condition(PROBES, usage={"sys_enter": None}))
    for _ in range(2):
        found = scraped(live)
        for name in ("observe_probe_hits_total", "observe_probe_run_seconds_total"):
            assert math.isnan(value(found, name, probe="sys_enter"))
            assert value(found, name, probe="sys_exit") == 0
        live.detached()
        # Nor is it known what it has cost since the beginning when a later session is counted.
        live.publish(Condition(PROBES, usage={"sys_enter": Usage(3, S)}))


def test_what_has_no_answer_when_the_engine_ends_is_unfinished_once():
    live = live_of(stream(create(1, 0, status=None)))
    assert value(scraped(live), "observe_operations_in_flight", operation="create") == 1
    assert live.is_busy
    live.detached()
    live.detached()
    live.publish(Condition(PROBES))
    found = scraped(live)
    assert value(found, "observe_operations_in_flight", operation="create") == 0
    labels = {"operation": "create", "outcome": "unfinished", "network": "other"}
    assert value(found, "observe_operation_duration_seconds_count", **labels) == 1


def test_what_is_kept_for_the_page_is_bounded():
    live = live_of()
    for number in range(200):
        live._keep(replace(made_run(1, number), container_id=ID))
    live.publish(Condition(PROBES))
    assert len(live.snapshot.recent) == 50
    assert len(live.snapshot.slowest) <= 10
    assert live.snapshot.recent[0].start_ns > live.snapshot.recent[-1].start_ns


def test_the_slowest_are_those_of_the_last_hour():
    now = [1_700_000_000 * S]
    live = Live(load(), PROGRAMS, boot_clock_ns=lambda: 0, wall_clock_ns=lambda: now[0])
    for minute in range(120):
        live._keep(run_with(wall_time_ns=now[0] + minute * 60 * S, duration_ns=(120 - minute) * MS))
    now[0] += 120 * 60 * S
    live.publish(Condition(PROBES))
    ages = [(now[0] - run.wall_time_ns) / (60 * S) for run in live.snapshot.slowest]
    assert len(ages) == 10
    assert max(ages) <= 60
    assert ages[0] == max(ages)


def test_what_was_slow_is_forgotten_after_an_hour_also_if_nothing_comes_after_it():
    now = [1_700_000_000 * S]
    live = Live(load(), PROGRAMS, boot_clock_ns=lambda: 0, wall_clock_ns=lambda: now[0])
    live._keep(run_with(wall_time_ns=now[0]))
    for minutes, kept in ((59, 1), (61, 0)):
        now[0] = (1_700_000_000 + 60 * minutes) * S
        live.publish(Condition(PROBES))
        assert len(live.snapshot.slowest) == kept


def test_runs_in_progress_are_built_only_while_somebody_looks():
    live = live_of(stream(create(1, 0, status=None)))
    assert live.snapshot.open_runs == ()
    live.watch()
    live.publish(Condition(PROBES))
    assert [run.operation for run in live.snapshot.open_runs] == ["create"]


def test_bounds_of_phases_have_room_for_what_starts_take():
    assert WORK_BOUNDS[0] == 0.0001
    assert WORK_BOUNDS[-1] == 10
