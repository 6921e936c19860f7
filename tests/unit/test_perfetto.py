# SPDX-License-Identifier: Apache-2.0
"""Perfetto traces, read back with the official definitions: slices nest, and say what the report says."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import pytest
from made import made_report, made_run
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    BUILTIN_CLOCK_BOOTTIME,
    BUILTIN_CLOCK_REALTIME,
    Trace,
    TrackEvent,
)
from situations import BAD_NAME, SITUATIONS, situation

from observe.escape import printable
from observe.export import perfetto
from observe.model import SYSCALLS, Evidence, Kind, Span
from observe.phases import load
from observe.reports import join
from observe.reports.assemble import assemble


@dataclass
class Read:
    """One slice (or, without a duration, an instant) as a viewer has it."""

    track: int
    name: str
    category: str
    start_ns: int
    duration_ns: int | None
    details: dict[str, object]


def value_of(annotation):
    if annotation.array_values:
        return [item.string_value for item in annotation.array_values]
    if annotation.dict_entries:
        return {item.name: value_of(item) for item in annotation.dict_entries}
    kinds = ("bool_value", "int_value", "string_value")
    return next((getattr(annotation, kind) for kind in kinds if annotation.HasField(kind)), [])


class Viewer:
    """Plays a trace as trace_processor does: packets in order of time, those of equal time in order of the file."""

    def __init__(self, data: bytes) -> None:
        self.trace = Trace.FromString(data)
        self.tracks = {
            packet.track_descriptor.uuid: packet.track_descriptor
            for packet in self.trace.packet
            if packet.HasField("track_descriptor")
        }
        self.slices: list[Read] = []
        stacks: defaultdict[int, list[Read]] = defaultdict(list)
        events = [packet for packet in self.trace.packet if packet.HasField("track_event")]
        for packet in sorted(events, key=lambda packet: packet.timestamp):
            self._play(packet, stacks[packet.track_event.track_uuid])
        assert not any(stacks.values())  # everything that began has ended

    def _play(self, packet, stack):
        event = packet.track_event
        assert event.track_uuid in self.tracks
        if event.type == TrackEvent.TYPE_SLICE_END:
            begun = stack.pop()
            begun.duration_ns = packet.timestamp - begun.start_ns
            outer = stack[-1].start_ns if stack else 0
            assert outer <= begun.start_ns
            return
        details = {each.name: value_of(each) for each in event.debug_annotations}
        (category,) = event.categories
        read = Read(event.track_uuid, event.name, category, packet.timestamp, None, details)
        self.slices.append(read)
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            stack.append(read)

    @property
    def groups(self):
        """The runs' groups, in order: what has no parent and is no process."""
        roots = [track for track in self.tracks.values() if not track.parent_uuid and not track.HasField("process")]
        return sorted(roots, key=lambda track: track.sibling_order_rank)

    def of(self, group, category):
        """The slices of a category on a group's tracks."""
        return [
            each
            for each in self.slices
            if each.category == category and self.tracks[each.track].parent_uuid == group.uuid
        ]

    def is_below(self, track, group, name):
        """Whether it is the group's track of that name."""
        return self.tracks[track].parent_uuid == group.uuid and self.tracks[track].name == name


def exported(name, folder):
    report, _ = assemble(situation(name, folder), load(), keep_events=True)
    return report, Viewer(perfetto.encode(report))


def sums(slices):
    total: Counter[object] = Counter()
    for each in slices:
        total[each.details["phase"]] += each.duration_ns
    return total


@pytest.mark.parametrize("name", SITUATIONS)
def test_durations_are_those_of_the_report(name, tmp_path):
    report, viewer = exported(name, tmp_path)
    assert len(viewer.groups) == len(report.runs)
    for run, group in zip(report.runs, viewer.groups, strict=True):
        seen = [span for span in run.phases if span.duration_ns is not None]
        phases = viewer.of(group, "phase")
        assert sums(phases) == {span.id: span.duration_ns for span in seen}
        assert min(each.start_ns for each in phases) == run.start_ns
        own = viewer.of(group, "own_time")
        assert +sums(own) == {span.id: span.self_ns for span in seen if span.self_ns}
        for each in phases:
            span = next(span for span in seen if span.id == each.details["phase"])
            assert each.details["self_ns"] == span.self_ns
            assert each.details["evidence"] == span.evidence.value


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_event_and_every_call_is_there_once(name, tmp_path):
    report, viewer = exported(name, tmp_path)
    functions = {Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN}
    expected = Counter(
        (event.time_ns, event.duration_ns if event.kind in SYSCALLS else None)
        for run in report.runs
        for _, event in run.events
        if event.kind not in functions
    )
    found = [each for each in viewer.slices if each.category in {"syscall", "sched", "file"}]
    assert Counter((each.start_ns, each.duration_ns) for each in found) == expected
    calls = Counter((call.name, call.start_ns, call.duration_ns) for run in report.runs for call in run.functions)
    made = [each for each in viewer.slices if each.category == "function"]
    assert Counter((each.details["function"], each.start_ns, each.duration_ns) for each in made) == calls


def test_a_real_start_has_its_programs_goroutines_and_files(tmp_path):
    report, viewer = exported("functions", tmp_path)
    programs = [each for each in viewer.slices if each.category == "program"]
    assert [each.name for each in sorted(programs, key=lambda each: each.start_ns)] == [
        *["containerd-shim-runc-v2"] * 2, *["runc"] * 3, "libnetwork-setkey", "set-ipv6", "runc", "true"
    ]  # fmt: skip
    assert [each.name for each in programs if each.details["entrypoint"]] == ["true"]
    hook = next(each for each in programs if each.name == "libnetwork-setkey")
    assert (hook.details["arguments"][0], hook.details["phase"]) == (
        "libnetwork-setkey",
        "start.containerd_start.runc_create.network_hook",
    )
    # On the goroutine that served the request, system calls lie inside the functions that made them.
    on_it = [each for each in viewer.slices if viewer.is_below(each.track, viewer.groups[1], "request goroutine")]
    handler = on_it[0]
    assert handler.name.endswith("postContainersStart")
    syscalls = [each for each in on_it if each.category == "syscall"]
    assert len(syscalls) > 20
    assert all(each.start_ns >= handler.start_ns for each in syscalls)
    assert all(each.start_ns + each.duration_ns <= handler.start_ns + handler.duration_ns for each in syscalls)
    areas = {viewer.tracks[each.track].name for each in viewer.slices if each.category == "file"}
    assert areas == {f"files: {area}" for area in ("containers", "image", "network", "overlay2")}
    threads = {(track.thread.pid, track.thread.tid) for track in viewer.tracks.values() if track.HasField("thread")}
    assert {pid for pid, _ in threads} <= {track.process.pid for track in viewer.tracks.values()}
    assert len(report.runs) == 2


@pytest.mark.parametrize(("go_version", "named"), [("go1.19.8", 2), ("go1.16.15", 0)])
def test_the_requests_goroutine_is_told_where_system_calls_know_it(go_version, named, tmp_path):
    report, _ = assemble(situation("create-start", tmp_path), load(), keep_events=True)
    viewer = Viewer(perfetto.encode(replace(report, engine={**report.engine, "go_version": go_version})))
    assert [track.name for track in viewer.tracks.values()].count("request goroutine") == named
    for group in viewer.groups[:named]:
        on_it = [each for each in viewer.slices if viewer.is_below(each.track, group, "request goroutine")]
        assert len(on_it) > 30


def test_times_are_of_the_boot_clock_and_tell_the_wall_clock(tmp_path):
    report, viewer = exported("functions", tmp_path)
    (defaults,) = [each for each in viewer.trace.packet if each.HasField("trace_packet_defaults")]
    assert viewer.trace.packet[0] == defaults
    assert defaults.trace_packet_defaults.timestamp_clock_id == BUILTIN_CLOCK_BOOTTIME
    snapshots = [packet.clock_snapshot for packet in viewer.trace.packet if packet.HasField("clock_snapshot")]
    clocks = [{clock.clock_id: clock.timestamp for clock in snapshot.clocks} for snapshot in snapshots]
    assert clocks == [
        {BUILTIN_CLOCK_BOOTTIME: run.start_ns, BUILTIN_CLOCK_REALTIME: run.wall_time_ns} for run in report.runs
    ]


def test_phases_that_cross_keep_their_durations_on_lanes_that_are_drawn_as_one():
    def span(name, start_ns, duration_ns, **changes):
        return Span(name, "start", "", start_ns, duration_ns, 0, Evidence.KERNEL, **changes)

    whole = Span("start", None, "", 0, 100, 0, Evidence.KERNEL)
    crossing = (
        whole,
        span("start.a", 10, 40),
        span("start.b", 30, 40),
        span("start.c", 0, 9, pieces=((0, 4), (60, 5))),
    )
    run = made_run(1, phases=crossing, start_ns=0, duration_ns=100, wall_time_ns=0)
    viewer = Viewer(perfetto.encode(made_report(run)))
    phases = viewer.of(viewer.groups[0], "phase")
    assert sums(phases) == {"start": 100, "start.a": 40, "start.b": 40, "start.c": 9}
    tracks = {each.track for each in phases}
    assert len(tracks) == 2
    assert len({viewer.tracks[track].sibling_merge_key for track in tracks}) == 1
    assert len({track.sibling_merge_key for track in viewer.tracks.values()}) == len(viewer.tracks) - 1


def test_losses_and_failures_are_told(tmp_path):
    _, viewer = exported("losses", tmp_path)
    (root,) = [each for each in viewer.slices if each.details.get("phase") == "create" and each.category == "phase"]
    assert root.details["loss"]["ring_buffer"] == 7
    assert root.details["engine"]["version"] == "20.10.24"
    _, viewer = exported("failed", tmp_path)
    assert [group.name for group in viewer.groups] == ["start web (failed)"]
    (root,) = [each for each in viewer.slices if each.details.get("phase") == "start" and each.category == "phase"]
    assert (root.details["outcome"], root.details["error"]) == ("failed", "dockerd answered 500")


def test_names_from_outside_are_harmless_and_recognisable(tmp_path):
    _, viewer = exported("hostile", tmp_path)
    texts = [each.name for each in viewer.slices] + [track.name for track in viewer.tracks.values()]
    for each in viewer.slices:
        for value in each.details.values():
            texts += value if isinstance(value, list) else [str(value)]
    assert all(text.isprintable() for text in texts)
    bad = printable(BAD_NAME)
    assert bad.endswith("\\x1b[31m\\x0d\\x0a\\xff\\x80\\u202egnp 你")
    assert any(text.endswith(f"/{bad}") for text in texts)


def test_two_runs_of_one_name_are_two_groups(tmp_path):
    report, _ = assemble(situation("one run", tmp_path), load(), keep_events=True)
    later = replace(report, runs=tuple(replace(run, start_ns=run.start_ns + 10**12) for run in report.runs))
    viewer = Viewer(perfetto.encode(join([report, later])))
    assert [group.name for group in viewer.groups] == ["create web"] * 2
    assert len({group.sibling_merge_key for group in viewer.groups}) == 2


def test_the_same_recording_gives_the_same_bytes(tmp_path):
    path = situation("functions", tmp_path)
    first, second = (perfetto.encode(assemble(path, load(), keep_events=True)[0]) for _ in range(2))
    assert first == second
