# SPDX-License-Identifier: Apache-2.0
"""Which phase was when, and every departure from the documented order by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from streams import (
    CONTAINERD,
    DATA,
    DOCKERD,
    EXEC,
    MS,
    NEWNET,
    STEP,
    Script,
    container_id,
    correlate,
    create,
    header,
    identity,
    layer,
    recorded,
    start,
    stream,
)

from observe.model import DepartureKind, Event, Evidence, Kind, Mark, Run, Span
from observe.phases import load

MISSING, REPEATED, OUT_OF_ORDER = DepartureKind.MISSING, DepartureKind.REPEATED, DepartureKind.OUT_OF_ORDER
SHIM = "start.containerd_start.shim"
RUNC_CREATE = "start.containerd_start.runc_create"
INIT, HOOK = f"{RUNC_CREATE}.init", f"{RUNC_CREATE}.network_hook"
RUNC_START = "start.containerd_start.runc_start"
FOLDER = f"{DATA}/containers/{container_id(1)}"
MERGED = f"{DATA}/overlay2/{layer(1)}/merged"


def the_run(events: Iterable[Event], go_version: str = "go1.19.8") -> Run:
    runs, _ = correlate(stream(events, identity(1, 0)), header(go_version))
    assert len(runs) == 1
    return runs[0]


def spans(run: Run) -> dict[str, Span]:
    return {span.id: span for span in run.phases}


def seen(run: Run) -> list[str]:
    """The phases that every run has; their parts depend on the configuration, and on who records."""
    due = {phase.id for phase in load().phases if phase.occurs != "if_configured"}
    return [span.id for span in run.phases[1:] if span.start_ns is not None and span.id in due]


def departures(run: Run) -> list[tuple[DepartureKind, str]]:
    return [(departure.kind, departure.phase) for departure in run.departures]


def without(events: Iterable[Event], *words: str) -> list[Event]:
    return [event for event in events if not any(word in event.path or word in event.detail for word in words)]


def at_the_end(events: list[Event], *more: Event) -> list[Event]:
    """The same operation with more events before its answer."""
    answer = events[-1]
    g = events[0].goroutine
    added = [
        replace(event, time_ns=answer.time_ns + n * STEP, goroutine=event.goroutine or g, duration_ns=STEP // 2)
        for n, event in enumerate(more)
    ]
    return [*events[:-1], *added, replace(answer, time_ns=answer.time_ns + len(more) * STEP)]


def call(kind: Kind, path: str = "", **columns: object) -> Event:
    return Event(0, kind, path=path, pid=DOCKERD, tid=DOCKERD, **columns)  # type: ignore[arg-type]


# --- real recordings --------------------------------------------------------------------------------------------------

CREATE_PHASES = ["create.rw_layer", "create.root", "create.os_specific", "create.register"]
START_PHASES = [
    "start.mount",
    "start.network",
    "start.spec",
    "start.spec.mounts",
    "start.containerd_create",
    "start.containerd_start",
    SHIM,
    RUNC_CREATE,
    INIT,
    HOOK,
    RUNC_START,
    "start.save_state",
]


@pytest.mark.parametrize("name", ["create-start", "three-at-once"])
def test_a_real_engine_shows_every_phase_with_kernel_evidence_and_no_departure(name):
    of, items = recorded(name)
    runs, _ = correlate(items, of)
    for run in runs:
        assert seen(run) == (CREATE_PHASES if run.operation == "create" else START_PHASES)
        assert run.departures == ()


@pytest.mark.parametrize("name", ["create-start", "three-at-once"])
def test_phases_of_a_real_engine_begin_in_the_documented_order_and_inside_their_parents(name):
    of, items = recorded(name)
    runs, _ = correlate(items, of)
    for run in runs:
        found = spans(run)
        begins = [found[phase].start_ns for phase in seen(run)]
        assert begins == sorted(begins)
        for span in run.phases[1:]:
            if span.start_ns is not None:
                parent = found[span.parent]
                assert parent.start_ns <= span.start_ns
                assert span.start_ns + span.duration_ns <= parent.start_ns + parent.duration_ns


def test_parts_of_a_real_start_that_the_kernel_shows_without_a_departure():
    of, items = recorded("create-start")
    runs, _ = correlate(items, of)
    start = runs[1]
    parts = [span.id for span in start.phases[1:] if span.start_ns is not None and span.id not in seen(start)]
    assert parts == [
        *(f"{INIT}.{part}" for part in ("self_clone", "namespaces", "rootfs", "pivot_root", "mask")),
        f"{RUNC_CREATE}.cgroups",
        f"{HOOK}.set_key",
        f"{HOOK}.set_key.set_ipv6",
    ]


# --- made-up ones -----------------------------------------------------------------------------------------------------


def test_a_phase_goes_from_its_first_event_to_its_last_one():
    run = the_run(create(1, MS))
    found = spans(run)
    # request, -init, mount, umount, layer, mounts | folder, checkpoints, open, fsync, rename | ...
    assert (found["create.rw_layer"].start_ns, found["create.rw_layer"].duration_ns) == (2 * MS, 4 * STEP + STEP // 2)
    assert (found["create.root"].start_ns, found["create.root"].duration_ns) == (7 * MS, 4 * STEP + STEP // 2)
    assert found["create.network"].start_ns is None
    assert found["create.network"].evidence is Evidence.NONE
    assert found["create.root"].evidence is Evidence.KERNEL


def test_a_program_goes_from_its_fork_to_its_exit():
    events = start(1, MS)
    fork = next(e for e in events if e.kind == Kind.SCHED_PROCESS_FORK and e.pid == CONTAINERD)
    end = next(e for e in events if e.kind == Kind.SCHED_PROCESS_EXIT)
    shim = spans(the_run(events))[SHIM]
    assert (shim.start_ns, shim.start_ns + shim.duration_ns) == (fork.time_ns, end.time_ns)


def test_init_goes_to_its_last_event_inside_runc_create():
    events = start(1, MS)
    pivot = next(e for e in events if e.kind == Kind.PIVOT_ROOT)
    init = spans(the_run(events))[INIT]
    assert init.start_ns + init.duration_ns == pivot.end_ns


def test_the_order_decides_between_phases_that_share_evidence():
    run = the_run(create(1, MS))
    assert [spans(run)[phase].syscalls for phase in CREATE_PHASES] == [5, 5, 4, 3]


@pytest.mark.parametrize(
    ("words", "phases"),
    [
        (["local-kv.db", "hosts"], []),  # setns still shows the network
        (["/mounts"], ["start.spec.mounts"]),
        (["config.v2.json"], ["start.save_state"]),
        (["libnetwork-setkey", "netns"], [HOOK]),
        (["runc\0init"], []),  # its namespaces still show it
        (["merged"], ["start.mount"]),
    ],
)
def test_what_is_documented_and_not_seen_is_missing(words, phases):
    run = the_run(without(start(1, MS), *words))
    assert departures(run) == [(MISSING, phase) for phase in phases]


def test_only_phases_that_the_kernel_can_show_are_missed():
    events = create(1, MS)
    run = the_run([events[0], events[-1]])
    assert departures(run) == [(MISSING, phase) for phase in CREATE_PHASES]


@pytest.mark.parametrize("status", [304, 400, 404, 500])
def test_what_did_not_happen_is_not_missing_if_dockerd_said_so(status):
    events = start(1, MS, status=status)
    run = the_run([events[0], events[-1]])
    assert departures(run) == []


def test_a_layer_that_is_mounted_again_at_the_end_is_repeated():
    run = the_run(at_the_end(start(1, MS), call(Kind.MOUNT, MERGED)))
    assert departures(run) == [(REPEATED, "start.mount")]
    assert run.departures[0].text == "start.mount again, after later phases had begun"


def test_what_is_repeated_often_is_said_once():
    run = the_run(at_the_end(start(1, MS), *[call(Kind.MOUNT, MERGED)] * 3))
    assert departures(run) == [(REPEATED, "start.mount")]


def test_a_phase_that_comes_too_late_for_the_first_time_is_out_of_order():
    events = at_the_end(without(start(1, MS), "merged"), call(Kind.MOUNT, MERGED))
    assert departures(the_run(events)) == [(OUT_OF_ORDER, "start.mount"), (MISSING, "start.mount")]


def test_a_late_repetition_does_not_stretch_the_phase():
    alone, again = (the_run(events) for events in (start(1, MS), at_the_end(start(1, MS), call(Kind.MOUNT, MERGED))))
    assert spans(again)["start.mount"] == spans(alone)["start.mount"]


def script(events: list[Event]) -> Script:
    """To go on with an operation before its answer."""
    return Script(events[-1].time_ns, events[0].goroutine)


def test_a_program_that_runs_again_is_repeated():
    events = start(1, MS)
    more = script(events)
    more.runs(2001, 7001, "runc", "--log", "l", "start", container_id(1))
    more.exits(7001)
    run = the_run([*events[:-1], *more.events, replace(events[-1], time_ns=more.now_ns)])
    assert departures(run) == [(REPEATED, RUNC_START)]


def test_a_program_that_begins_after_later_ones_is_out_of_order():
    events = without(start(1, MS), "start\0-x", f"start\0{container_id(1)}")
    late = script(events)
    late.runs(2001, 7001, "runc", "--log", "l", "start", container_id(1))
    run = the_run([*events[:-1], *late.events, replace(events[-1], time_ns=late.now_ns)])
    assert departures(run) == [(OUT_OF_ORDER, RUNC_START)]
    assert RUNC_START in seen(run)


def test_a_program_that_runs_many_times_is_no_departure():
    events = start(1, MS)
    index = next(n for n, event in enumerate(events) if event.path.endswith("/hosts"))
    own = Script(0, events[0].goroutine)
    for n in range(3):
        own.runs(DOCKERD, 8000 + n, "iptables", "-t", "nat")
        own.exits(8000 + n)
    shift = len(own.events) * STEP
    tables = [replace(event, time_ns=event.time_ns + events[index].time_ns) for event in own.events]
    later = [replace(event, time_ns=event.time_ns + shift) for event in events[index:]]
    run = the_run([*events[:index], *tables, *later])
    assert departures(run) == []
    assert spans(run)["start.network"].duration_ns == spans(the_run(events))["start.network"].duration_ns + shift


def test_a_program_that_another_one_of_the_catalogue_runs_is_that_ones():
    events = start(1, MS)
    index = next(n for n, event in enumerate(events) if event.path.endswith("/netns/000000000001"))
    own = Script(0, events[index].goroutine)
    own.runs(DOCKERD, 8000, "setup-resolver", f"{EXEC}/netns/000000000001", "127.0.0.11:1", "127.0.0.11:2")
    own.runs(8000, 8001, "iptables", "-t", "nat")
    own.exits(8001)
    own.exits(8000)
    inside = [replace(event, time_ns=event.time_ns + events[index].time_ns) for event in own.events]
    shift = len(own.events) * STEP
    later = [replace(event, time_ns=event.time_ns + shift) for event in events[index:]]
    run = the_run([*events[:index], *inside, *later])
    assert departures(run) == []
    assert spans(run)[f"{HOOK}.set_key.resolver"].duration_ns is not None
    assert spans(run)["start.network.iptables"].duration_ns is None
    assert spans(run)["start.network"] == spans(the_run(events))["start.network"]


def test_a_wrapper_around_runc_is_one_program():
    events = start(1, MS)
    index = next(n for n, event in enumerate(events) if "create\0--bundle" in event.detail)
    wrapped = events[index]
    wrapper = replace(wrapped, path="/opt/wrapper", detail=wrapped.detail.replace("runc", "wrapper", 1))
    child = replace(wrapped, pid=7001, tid=7001, time_ns=wrapped.time_ns + 2)
    fork = Event(wrapped.time_ns + 1, Kind.SCHED_PROCESS_FORK, pid=wrapped.pid, tid=wrapped.pid, ret=7001)
    run = the_run([*events[:index], wrapper, fork, child, *events[index + 1 :]])
    assert departures(run) == []
    assert spans(run)[RUNC_CREATE] == spans(the_run(events))[RUNC_CREATE]


def test_the_containers_own_program_is_none_of_the_engines_whatever_its_arguments():
    events = start(1, MS)
    like_runc = [
        replace(event, detail="app\0start\0--log") if event.marks & Mark.ENTRYPOINT else event for event in events
    ]
    assert the_run(like_runc).phases == the_run(events).phases


CLEANUP = [
    call(Kind.UMOUNT2, MERGED),
    call(Kind.UNLINKAT, f"{EXEC}/netns/0123456789ab"),
    call(Kind.OPENAT, f"{DATA}/network/files/local-kv.db"),
]


def test_a_start_that_failed_has_its_cleanup_and_misses_nothing():
    events = without(start(1, MS, status=500), "config.v2.json", "runc\0--log")
    run = the_run(at_the_end(events, *CLEANUP))
    assert (run.outcome, run.error) == ("failed", "dockerd answered 500")
    assert spans(run)["start.cleanup"].syscalls == len(CLEANUP)
    assert departures(run) == []


@pytest.mark.parametrize("go_version", ["go1.19.8", "go1.15.15"])
def test_a_start_that_succeeded_has_no_cleanup_whatever_looks_like_one(go_version):
    events = at_the_end(start(1, MS), call(Kind.SETNS, flags=NEWNET, fd=3))
    run = the_run(events, go_version)
    assert "start.cleanup" not in seen(run)
    assert departures(run) == []


def test_the_same_call_is_the_cleanup_of_a_start_that_failed():
    run = the_run(at_the_end(start(1, MS, status=500), call(Kind.SETNS, flags=NEWNET, fd=3)))
    assert spans(run)["start.cleanup"].syscalls == 1


def test_a_weak_witness_counts_only_between_the_neighbours_of_its_phase():
    """containerd syncs for others too."""
    events = start(1, MS)
    index = next(n for n, event in enumerate(events) if event.path.endswith(f"containerd/{container_id(1)}"))
    made = events[index]
    sync = replace(call(Kind.FDATASYNC), pid=CONTAINERD, tid=CONTAINERD)
    near = replace(sync, time_ns=made.time_ns - 300_000, duration_ns=100_000)
    early = replace(sync, time_ns=events[1].time_ns + 1, duration_ns=1)
    run = the_run([*events[:2], early, *events[2:index], near, *events[index:]])
    span = spans(run)["start.containerd_create"]
    assert span.start_ns == near.time_ns
    assert span.start_ns + span.duration_ns == made.end_ns


def test_dockerd_works_for_the_hook_on_another_goroutine_only_while_it_runs():
    other = call(Kind.OPENAT, f"{EXEC}/netns/{1:012x}", goroutine=0xC00000F001)
    events = start(1, MS)
    early = [replace(other, time_ns=events[3].time_ns + STEP // 2, duration_ns=1)]
    run = the_run([*events[:4], *early, *events[4:]])
    assert spans(run)[HOOK] == spans(the_run(events))[HOOK]
    assert departures(run) == []


@pytest.mark.parametrize("go_version", ["go1.19.8", "go1.15.15"])
def test_a_container_that_ends_before_the_answer_to_its_start_is_no_second_hook(go_version):
    """Another goroutine of dockerd takes its network back meanwhile."""
    events = start(1, MS)
    back = [
        call(Kind.UNLINKAT, f"{EXEC}/netns/{1:012x}", goroutine=0xC00000F001),
        call(Kind.OPENAT, f"{EXEC}/netns/{1:012x}", goroutine=0xC00000F001),
    ]
    run = the_run(at_the_end(events, *back), go_version)
    assert departures(run) == []
    assert spans(run)[HOOK] == spans(the_run(events, go_version))[HOOK]


def test_without_goroutines_a_start_has_the_same_phases():
    assert seen(the_run(start(1, MS), "go1.15.15")) == START_PHASES
    assert departures(the_run(start(1, MS), "go1.15.15")) == []


def test_without_goroutines_what_dockerd_does_before_the_hook_is_not_the_hooks():
    """Between the network and the hook, the network's file is written once more: a departure, but not a hook."""
    events = start(1, MS)
    index = next(n for n, event in enumerate(events) if event.path.endswith("json.log"))
    late = replace(events[3], time_ns=events[index].end_ns + 1, duration_ns=1)
    run = the_run([*events[: index + 1], late, *events[index + 1 :]], "go1.15.15")
    assert spans(run)[HOOK] == spans(the_run(events, "go1.15.15"))[HOOK]
    assert departures(run) == [(REPEATED, "start.network")]


def test_an_engine_that_ended_leaves_an_unfinished_run_with_the_phases_until_then():
    events = start(1, MS)[:-4]
    died = Event(events[-1].time_ns + STEP, Kind.SCHED_PROCESS_EXIT, pid=DOCKERD, tid=DOCKERD)
    run = the_run([*events, died])
    assert run.outcome == "unfinished"
    assert seen(run) == START_PHASES[:-1]
    assert departures(run) == []
