# SPDX-License-Identifier: Apache-2.0
"""Functions against the documented order: which phase each call is a piece of, alone and beside kernel evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import MS, call, correlate, create, header, identity, probed, recorded, spans_of, start, stream

from observe.correlate import Correlator
from observe.correlate.build import Functions, use_functions
from observe.correlate.frames import Frame
from observe.correlate.functions import FunctionRules, Pieces, pieces_of
from observe.correlate.rules import Rules
from observe.correlate.spans import PhaseSpan, Walk
from observe.model import SYSCALLS, Departure, DepartureKind, EventBatch, Evidence, Kind, Note, NoteKind, Run, Span
from observe.phases import load
from observe.phases.catalogue import parse
from observe.probes.events import numbered_calls
from observe.reports import RENDERERS, Page, Report
from observe.reports.json_ import document

RULES = {name: Rules(load().of(name), "/data") for name in ("create", "start")}
NUMBERS = {phase.id: n for rules in RULES.values() for n, phase in enumerate(rules.phases)}
HANDLER = "github.com/docker/docker/api/server/router/container.(*containerRouter).postContainers"
DAEMON = "github.com/docker/docker/daemon."
IMAGES = f"{DAEMON}images.(*ImageService)."
CLIENT = "github.com/docker/docker/libcontainerd/remote.(*client)."
CHECKPOINT = "github.com/docker/docker/container.(*Container).CheckpointTo"
GET_IMAGE = "github.com/docker/docker/daemon/images.(*ImageService).GetImage"
CREATE_LAYER = "github.com/docker/docker/daemon/images.(*ImageService).CreateLayer"
RUNC = "github.com/containerd/go-runc.(*Runc)."
INIT = "github.com/opencontainers/runc/libcontainer.(*initProcess).start"
HOOKS = "github.com/opencontainers/runc/libcontainer/configs.HookList.RunHooks"
EXTERNAL_KEY = "github.com/docker/libnetwork.(*controller).processExternalKey"
REQUEST_G, OTHER_G = 0xC000000001, 0xC000000002
BOUNDS = (0, 1_000)
NOBODY: Mapping[int, tuple[int, int]] = {}


def method(name: str) -> str:
    return f"{DAEMON}(*Daemon).{name}"


def frame(
    function: str,
    start_ns: int,
    end_ns: int,
    depth: int = 64,
    *,
    g: int = REQUEST_G,
    pid: int = 1,
    complete: bool = True,
) -> Frame:
    return Frame(function, pid, g, depth, start_ns, end_ns, complete)


def pieces(operation: str, *frames: Frame, programs=NOBODY, failed: bool = False, bounds=BOUNDS) -> Pieces:
    return pieces_of(
        sorted(frames, key=lambda f: (f.start_ns, -f.end_ns)),
        RULES[operation].functions,
        bounds,
        lambda f: f.goroutine == OTHER_G,
        programs,
        failed=failed,
    )


def by_id(operation: str, found: Pieces) -> dict[str, list[tuple[int, int]]]:
    return {RULES[operation].phases[n].id: intervals for n, intervals in sorted(found.by_phase.items())}


def of(operation: str, *frames: Frame, **options) -> dict[str, list[tuple[int, int]]]:
    """The pieces of a documented run: without departures."""
    found = pieces(operation, *frames, **options)
    assert found.departures == []
    return by_id(operation, found)


# --- which phase a call is a piece of ---------------------------------------------------------------------------------


def test_what_begins_after_the_answer_and_ends_with_it_may_still_be_inside_of_what_went_on():
    outer, other = frame(method("Mount"), 500, 1_100), frame(CHECKPOINT, 1_200, 1_205, 256)
    cut = frame(method("createSpec"), 1_300, BOUNDS[1], 128)
    assert NUMBERS["start.spec"] in pieces("start", other, cut).by_phase
    assert NUMBERS["start.spec"] not in pieces("start", outer, other, cut).by_phase


def test_functions_of_one_phase_inside_each_other_are_one_piece():
    found = of(
        "start",
        frame(method("initializeNetworking"), 10, 90, 64),
        frame(method("allocateNetwork"), 12, 80, 128),
        frame(method("connectToNetwork"), 20, 70, 256),
    )
    assert found == {"start.network": [(10, 90)]}


def test_a_function_used_inside_another_phase_is_part_of_that_phase():
    """The state is saved when a network was set up, too: that is no phase of its own."""
    found = of(
        "start",
        frame(method("initializeNetworking"), 10, 50, 64),
        frame(CHECKPOINT, 20, 30, 128),
        frame(CHECKPOINT, 60, 70, 64),
    )
    assert found == {"start.network": [(10, 50)], "start.save_state": [(60, 70)]}


def test_a_function_at_the_same_time_on_another_goroutine_is_not_inside():
    found = of("start", frame(f"{CLIENT}Start", 10, 50, 64), frame(f"{RUNC}Create", 20, 30, 128, g=7, pid=9))
    assert found == {
        "start.containerd_start": [(10, 50)],
        "start.containerd_start.runc_create": [(20, 30)],
    }


def test_what_is_called_in_the_handler_is_not_inside_a_phase():
    found = of("start", frame(f"{HANDLER}Start", 1, 99, 8), frame(method("Mount"), 10, 20))
    assert found == {"start.mount": [(10, 20)]}


def test_a_phase_in_several_places_has_pieces_and_is_no_departure():
    found = of(
        "create",
        frame(GET_IMAGE, 10, 20),
        frame(method("verifyContainerSettings"), 22, 30),
        frame(GET_IMAGE, 40, 45),
        frame(method("mergeAndVerifyConfig"), 50, 60),
    )
    assert found == {
        "create.verify": [(22, 30)],
        "create.image": [(10, 20), (40, 45)],
        "create.config": [(50, 60)],
    }


def test_a_phase_in_several_places_does_not_move_the_order_on():
    """The last look at the image does not make what comes after it late."""
    config, verify = frame(method("mergeAndVerifyConfig"), 70, 75), frame(method("verifyContainerSettings"), 50, 60)
    assert pieces("create", frame(GET_IMAGE, 40, 45), verify, config, frame(GET_IMAGE, 80, 85)).departures == []


def test_a_function_is_part_of_the_innermost_phase_around_it():
    found = of(
        "start",
        frame(method("createSpec"), 1, 50, 64),
        frame(f"{DAEMON}WithMounts.func1", 10, 40, 128),
        frame(f"{DAEMON}WithApparmor.func1", 20, 30, 192),
    )
    assert found == {"start.spec": [(1, 50)], "start.spec.mounts": [(10, 40)]}


def test_a_closure_without_a_name_after_the_last_option_is_nothing():
    found = of(
        "start", *spec(CLOSURES[0]), frame(method("getLibcontainerdCreateOptions"), 50, 55), frame(CLOSURES[1], 60, 65)
    )
    assert set(found) == {"start.spec", "start.spec.sysctls", "start.runtime_options"}


def test_hooks_of_runc_start_are_no_hook_of_runc_create():
    shim, runc, starter = {"g": 7, "pid": 9}, {"g": 7, "pid": 20}, {"g": 7, "pid": 30}
    frames = [
        frame(f"{CLIENT}Start", 1, 99),
        frame(f"{RUNC}Create", 10, 60, **shim),
        frame(INIT, 15, 55, **runc),
        frame(HOOKS, 20, 40, 128, **runc),
        frame(f"{RUNC}Start", 70, 90, **shim),
        frame(HOOKS, 75, 76, **starter),
        frame(HOOKS, 60, 61, **starter),
    ]
    own = "start.containerd_start"
    expected = {
        own: [(1, 99)],
        f"{own}.runc_create": [(10, 60)],
        f"{own}.runc_create.init": [(15, 55)],
        f"{own}.runc_create.network_hook": [(20, 40)],
        f"{own}.runc_start": [(70, 90)],
    }
    assert of("start", *frames) == expected
    # Where the function is missing, the kernel knows when the program ran.
    del frames[1], expected[f"{own}.runc_create"]
    programs = {NUMBERS[f"{own}.runc_create"]: (10, 60)}
    assert of("start", *frames, programs=programs) == expected
    assert pieces("start", *frames).departures != []


def test_a_phase_with_its_functions_does_not_ask_the_kernel_when_its_program_ran():
    frames = [frame(f"{RUNC}Create", 10, 60, pid=9), frame(INIT, 12, 50, pid=20)]
    found = of("start", *frames, programs={NUMBERS["start.containerd_start.runc_create"]: (30, 60)})
    assert found["start.containerd_start.runc_create.init"] == [(12, 50)]


def test_a_function_inside_a_phase_that_is_not_above_it_counts_only_if_the_catalogue_says_so():
    """`within`: the hook runs inside runc's init; the save inside the network set-up is none of save_state."""
    rules = RULES["start"].functions
    hook, init = (NUMBERS[f"start.containerd_start.runc_create.{last}"] for last in ("network_hook", "init"))
    network, save = NUMBERS["start.network"], NUMBERS["start.save_state"]
    assert rules.may_run_inside(hook, init)
    assert not rules.may_run_inside(init, hook)
    assert not rules.may_run_inside(save, network)
    assert rules.may_run_inside(save, 0)


@pytest.mark.parametrize("failed", [True, False])
def test_a_cleanup_is_one_only_if_the_start_failed(failed):
    found = of("start", frame(method("Mount"), 10, 20), frame(method("Cleanup"), 30, 40), failed=failed)
    assert ("start.cleanup" in found) == failed


def test_what_other_goroutines_do_counts_only_where_the_catalogue_expects_it():
    found = of(
        "start",
        frame(method("Mount"), 10, 20, g=OTHER_G),
        frame(EXTERNAL_KEY, 30, 40, g=OTHER_G),
        frame(CHECKPOINT, 50, 60, g=OTHER_G),
    )
    assert found == {"start.containerd_start.runc_create.network_hook": [(30, 40)]}


def test_functions_of_no_phase_and_of_another_operation_are_left_out():
    assert of("create", frame("main.main", 1, 2), frame(f"{RUNC}Create", 3, 4), frame(CHECKPOINT, 5, 6)) == {}


# --- closures without a name ------------------------------------------------------------------------------------------

CLOSURES = [method(f"createSpec.func{n}") for n in range(1, 6)]


def spec(*options: str) -> list[Frame]:
    frames = [frame(method("createSpec"), 1, 10 * len(options) + 9)]
    return frames + [frame(option, 10 * n, 10 * n + 5, 128) for n, option in enumerate(options, 1)]


def options_of(found: dict[str, list[tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    return {name.removeprefix("start.spec."): at for name, at in found.items() if name != "start.spec"}


def test_closures_without_a_name_are_the_options_that_have_none_in_documented_order():
    first, second, third, *more = CLOSURES
    named = [f"{DAEMON}WithDevices.func1", f"{DAEMON}WithApparmor.func1"]
    found = options_of(of("start", *spec(first, *named, second, third, *more)))
    assert found == {
        "sysctls": [(10, 15)],
        "devices": [(20, 25)],
        "apparmor": [(30, 35)],
        "selinux": [(40, 45)],
        "oom_score": [(50, 55)],
    }


def test_an_option_with_a_name_leaves_the_others_to_those_without():
    """Go 1.21 and later name what was inlined: then only the options that really have no name are left to guess."""
    found = options_of(
        of("start", *spec(method("createSpec.WithSysctls.func7"), f"{DAEMON}WithUser.func1", *CLOSURES[:2]))
    )
    assert found == {
        "sysctls": [(10, 15)],
        "user": [(20, 25)],
        "selinux": [(30, 35)],
        "oom_score": [(40, 45)],
    }


def test_a_closure_that_runs_again_is_the_same_option():
    again = [CLOSURES[0], CLOSURES[0], CLOSURES[1]]
    found = options_of(of("start", *spec(*again)))
    assert found == {"sysctls": [(10, 25)], "selinux": [(30, 35)]}


# --- the documented order ---------------------------------------------------------------------------------------------


def test_a_phase_after_later_ones_is_a_departure_and_keeps_its_time():
    found = pieces("start", frame(f"{CLIENT}Create", 10, 20), frame(method("Mount"), 30, 40))
    assert [(d.kind, d.phase) for d in found.departures] == [(DepartureKind.OUT_OF_ORDER, "start.mount")]
    assert by_id("start", found)["start.mount"] == [(30, 40)]


def test_a_phase_once_more_after_later_ones_is_a_departure_once():
    mounts = [frame(method("Mount"), at, at + 5) for at in (10, 50, 90)]
    between = [frame(f"{CLIENT}Create", 30, 40), frame(f"{CLIENT}Start", 70, 80)]
    found = pieces("start", *mounts, *between)
    assert [(d.kind, d.phase) for d in found.departures] == [(DepartureKind.REPEATED, "start.mount")]
    assert "again" in found.departures[0].text
    assert by_id("start", found)["start.mount"] == [(10, 15), (50, 55), (90, 95)]


def test_going_on_with_a_phase_after_those_below_it_is_none():
    """containerd 2's task: created, then started, with the shim and runc in between."""
    task = "github.com/docker/docker/libcontainerd/remote."
    found = of(
        "start",
        frame(f"{task}(*container).NewTask", 10, 40),
        frame(f"{RUNC}Create", 20, 30, pid=9),
        frame(f"{task}(*task).Start", 45, 60),
        frame(f"{RUNC}Start", 50, 55, pid=9),
    )
    assert found == {
        "start.containerd_start": [(10, 60)],
        "start.containerd_start.runc_create": [(20, 30)],
        "start.containerd_start.runc_start": [(50, 55)],
    }


# --- phases bounded by other functions --------------------------------------------------------------------------------


def test_a_phase_may_end_where_a_function_is_entered():
    entered = frame(method("containerCreate"), 30, 90, complete=False)
    assert of("create", entered) == {"create.request": [(0, 30)]}
    assert of("start", entered) == {}
    entered = frame(method("containerStart"), 30, 90, complete=False)
    assert of("start", entered, bounds=(10, 100)) == {"start.validate": [(10, 30)]}


def test_a_phase_may_be_what_comes_after_a_function_until_the_end():
    told = frame(method("LogContainerEvent"), 70, 80)
    assert of("create", told, bounds=(10, 100)) == {"create.register": [(70, 80)], "create.answer": [(80, 100)]}
    assert of("start", told, bounds=(10, 100)) == {"start.save_state": [(70, 80)], "start.answer": [(80, 100)]}
    # Another goroutine tells of the container's end, maybe before the answer to its start.
    ended = frame(method("LogContainerEvent"), 85, 90, g=REQUEST_G + 1)
    found = pieces_of([told, ended], RULES["start"].functions, (10, 100), lambda f: f is ended, NOBODY, failed=False)
    assert by_id("start", found)["start.answer"] == [(80, 100)]


def test_a_phase_may_begin_where_a_function_returns():
    frames = [frame(CREATE_LAYER, 10, 20), frame(method("setHostConfig"), 30, 40)]
    assert of("create", *frames) == {"create.rw_layer": [(10, 20)], "create.root": [(20, 40)]}
    # Not if the function did not return, or did so only after the phase's own.
    cut = frames[0]._replace(complete=False)
    assert of("create", cut, frames[1])["create.root"] == [(30, 40)]
    late = frame(CREATE_LAYER, 32, 50, 128)
    assert by_id("create", pieces("create", late, frames[1]))["create.root"] == [(30, 40)]
    # Without a function of its own it has no end.
    assert "create.root" not in of("create", frames[0])


def test_of_several_returns_the_last_one_before_counts():
    frames = [frame(CREATE_LAYER, 10, 20), frame(CREATE_LAYER, 22, 28), frame(method("setHostConfig"), 30, 40)]
    assert of("create", *frames) == {"create.rw_layer": [(10, 28)], "create.root": [(28, 40)]}


def test_what_the_phases_function_did_before_the_return_is_not_its_beginning():
    save = method("setHostConfig")
    found = pieces("create", frame(save, 5, 8), frame(CREATE_LAYER, 10, 20), frame(save, 30, 40))
    assert by_id("create", found)["create.root"] == [(5, 8), (20, 40)]


def test_pieces_stay_inside_the_operation():
    frames = [frame(method("Mount"), 5, 30), frame(f"{CLIENT}Start", 80, 2_000), frame(CHECKPOINT, 3_000, 4_000)]
    found = of("start", *frames, bounds=(10, 90))
    assert found == {
        "start.mount": [(10, 30)],
        "start.containerd_start": [(80, 90)],
        "start.save_state": [(90, 90)],
    }


# --- what lies between pieces -----------------------------------------------------------------------------------------


def test_the_time_between_two_functions_of_a_phase_is_the_phases():
    frames = [frame(method("setStateCounter"), 10, 12), frame(CHECKPOINT, 20, 30)]
    assert of("start", *frames) == {"start.save_state": [(10, 30)]}


def test_the_time_that_another_phase_takes_in_between_is_not():
    """Hooks that run before and after runc init's own work: the phase around the gap keeps it."""
    runc = {"g": 7, "pid": 20}
    frames = [frame(INIT, 10, 90, **runc), frame(HOOKS, 20, 30, 128, **runc), frame(HOOKS, 80, 85, 128, **runc)]
    frames += [frame(EXTERNAL_KEY, 22, 28, g=OTHER_G)]
    found = of("start", *frames)
    assert found["start.containerd_start.runc_create.network_hook"] == [(20, 30), (80, 85)]
    # Another one that only begins or ends in between takes some of it as well.
    frames[0] = frame(INIT, 10, 50, **runc)
    frames[2] = frame(HOOKS, 80, 85, 64, **runc)
    assert of("start", *frames)["start.containerd_start.runc_create.network_hook"] == [(20, 30), (80, 85)]


def test_a_phase_above_or_below_takes_nothing_away():
    outer = frame(f"{RUNC}Create", 10, 90, pid=9)
    hooks = [frame(HOOKS, 20, 30, pid=20), frame(HOOKS, 80, 85, pid=20)]
    found = of("start", outer, *hooks)
    assert found["start.containerd_start.runc_create.network_hook"] == [(20, 85)]
    task = "github.com/docker/docker/libcontainerd/remote."
    parts = [frame(f"{task}(*container).NewTask", 5, 8), frame(f"{task}(*task).Start", 92, 95)]
    late = frame(f"{RUNC}Create", 7, 90, pid=9)
    assert of("start", *parts, late) == {
        "start.containerd_start": [(5, 95)],
        "start.containerd_start.runc_create": [(7, 90)],
    }


# --- beside kernel evidence -------------------------------------------------------------------------------------------


def used(operation: str, kernel: dict[str, PhaseSpan], functions: dict[str, list[tuple[int, int]]]):
    """Spans by id after functions have bounded what they can."""
    found = Walk({NUMBERS[name]: span for name, span in kernel.items()})
    rules = RULES[operation]
    use_functions(found, Pieces({NUMBERS[name]: intervals for name, intervals in functions.items()}), rules)
    return {rules.phases[number].id: span for number, span in sorted(found.spans.items())}


def test_functions_replace_the_kernels_bounds_and_keep_its_processes():
    spans = used(
        "start",
        {"start.containerd_start.shim": PhaseSpan(20, 90, frozenset({5})), "start.mount": PhaseSpan(1, 2)},
        {"start.containerd_start.shim": [(10, 30), (40, 50)]},
    )
    shim = spans["start.containerd_start.shim"]
    assert (shim.start_ns, shim.end_ns, shim.duration_ns) == (10, 50, 30)
    assert shim.processes == {5}
    assert spans["start.mount"] == PhaseSpan(1, 2)


def test_a_phase_on_kernel_evidence_holds_the_phases_below_that_have_functions():
    spans = used(
        "start",
        {"start.spec": PhaseSpan(50, 52), "start.spec.mounts": PhaseSpan(50, 52)},
        {"start.spec.common": [(10, 20)], "start.spec.oom_score": [(70, 71)]},
    )
    assert spans["start.spec"] == PhaseSpan(10, 71)


def test_a_phase_that_only_those_below_show_stands_on_their_functions():
    init = {"start.containerd_start.runc_create.init": [(10, 20)]}
    spans = used("start", {}, init)
    for name in ("start.containerd_start.runc_create", "start.containerd_start"):
        assert spans[name].pieces == ((10, 20),)


def test_a_phase_with_functions_of_its_own_keeps_their_bounds():
    spans = used("start", {"start.spec.mounts": PhaseSpan(5, 90)}, {"start.spec": [(10, 20)]})
    assert spans["start.spec"] == PhaseSpan(10, 20, pieces=((10, 20),))


def test_departures_of_the_kernel_are_told_of_phases_without_functions_only():
    found = Walk({NUMBERS["start.mount"]: PhaseSpan(1, 2)})
    kernel = [
        replace(pieces("start", frame(CHECKPOINT, 1, 2), frame(method("Mount"), 3, 4)).departures[0], phase=name)
        for name in ("start.mount", "start.network")
    ]
    found.departures += kernel
    told = use_functions(found, Pieces({NUMBERS["start.mount"]: [(1, 2)]}), RULES["start"])
    assert told == kernel[1:]


def test_a_phase_whose_function_did_not_run_departs_from_nothing():
    """Cleaning up after a failure touches what mounting would."""
    kernel = [Departure(DepartureKind.OUT_OF_ORDER, name, "") for name in ("start.network", "start.mount")]
    found = Walk({NUMBERS["start.network"]: PhaseSpan(1, 2)}, kernel)
    for functions, told in (
        ([], kernel),
        ([method("conditionalMountOnStart"), method("initializeNetworking")], kernel[:1]),
    ):
        assert use_functions(found, Pieces(), RULES["start"], functions) == told


# --- any calls at all -------------------------------------------------------------------------------------------------

#: Every function that the catalogue names, without wildcards.
SYMBOLS = sorted(
    {
        pattern.replace("[0-9]", "1").replace("[Ww]", "W").replace("[Nn]", "n").replace("[Cc]", "c")
        for rules in RULES.values()
        for phase in rules.phases
        for pattern in (*phase.functions, *phase.to_entry, *phase.from_return)
        if "moby/moby" not in pattern
    }
)


@st.composite
def calls(draw):
    """Frames of several goroutines: trees on each."""
    frames = []
    for g in (REQUEST_G, OTHER_G, 7):
        cuts = sorted(draw(st.lists(st.integers(0, 100), max_size=16)))
        stack: list[tuple[int, int]] = []
        for at in cuts:
            if stack and draw(st.booleans()):
                began, depth = stack.pop()
                frames.append(frame(draw(st.sampled_from(SYMBOLS)), began, at, depth, g=g))
            else:
                stack.append((at, 64 * (len(stack) + 1)))
        for began, depth in stack:
            frames.append(
                frame(draw(st.sampled_from(SYMBOLS)), began, 100, depth, g=g)._replace(complete=draw(st.booleans()))
            )
    return frames


@settings(deadline=None)
@given(st.sampled_from(["create", "start"]), calls(), st.booleans(), st.data())
def test_pieces_never_overlap_and_the_phases_make_the_whole(operation, frames, failed, data):
    bounds = (10, 90)
    rules = RULES[operation]
    found = pieces(operation, *frames, failed=failed, bounds=bounds)
    for intervals in found.by_phase.values():
        assert all(bounds[0] <= first <= last <= bounds[1] for first, last in intervals)
        assert all(first[1] < second[0] for first, second in pairwise(intervals))
    assert 0 not in found.by_phase
    assert len(set(found.departures)) == len(found.departures)
    # Some phases have kernel evidence, wherever it may be.
    kernel = {
        number: PhaseSpan(*sorted(data.draw(st.tuples(st.integers(10, 90), st.integers(10, 90)))))
        for number in data.draw(st.sets(st.integers(1, len(rules.phases) - 1), max_size=5))
    }
    walked = Walk(kernel)
    use_functions(walked, found, rules)
    rows = spans_of(rules, walked, EventBatch.of([]), bounds, Functions({1: "f"}, 2, 3))
    assert sum(row.self_ns or 0 for row in rows) == bounds[1] - bounds[0]
    for row in rows[1:]:
        if row.start_ns is not None:
            assert 0 <= row.self_ns <= row.duration_ns
            assert not row.pieces or sum(length for _, length in row.pieces) == row.duration_ns
            parent = next(other for other in rows if other.id == row.parent)
            assert parent.start_ns is not None


# --- runs -------------------------------------------------------------------------------------------------------------

COSTS = {"entry": 2_000, "return": 5_000}


def timed_create(*called: tuple[str, int, int, int]) -> tuple[Run, list]:
    """A create with these calls (function, start and end in microseconds after 1 ms, depth)."""
    names = list(dict.fromkeys(name for name, *_ in called))
    events = create(1, MS)
    for name, begin, end, depth in called:
        number = names.index(name) + 1
        events += call(number, MS + 1_000 * begin, MS + 1_000 * end, depth=depth, g=0xC000000001)
    items = stream(events, identity(1, 0), *probed(*names))
    of_header = replace(header(), options={**header().options, "probe_cost_ns": COSTS})
    (run,), correlator = correlate(items, of_header)
    assert correlator.loss.unmatched_returns == 0
    return run, items


def phase(run: Run, name: str) -> Span:
    return next(span for span in run.phases if span.id == name)


def test_the_handler_makes_the_operation_one_that_functions_bound():
    run, _ = timed_create((f"{HANDLER}Create", 10, 13_900, 8))
    assert run.phases[0].evidence is Evidence.FUNCTION
    assert run.phases[0].duration_ns == run.duration_ns
    without, _ = timed_create((method("verifyContainerSettings"), 10, 20, 64))
    assert without.phases[0].evidence is Evidence.KERNEL


def test_hits_are_counted_where_they_lie_and_their_cost_is_taken_off():
    run, _ = timed_create(
        (method("containerCreate"), 100, 13_000, 64),
        (method("verifyContainerSettings"), 200, 230, 128),
        (method("newContainer"), 300, 330, 128),
        (method("newBaseContainer"), 310, 320, 192),
    )
    hits = {span.id: span.probe_hits for span in run.phases if span.probe_hits}
    # A phase ends before the moment of its return: that hit is of what comes next.
    assert hits == {"create": 3, "create.verify": 1, "create.new_container": 3, "create.os_specific": 1}
    assert sum(hits.values()) == 8
    new = phase(run, "create.new_container")
    assert (new.self_ns, new.corrected_self_ns) == (30_000, 30_000 - 2 * 2_000 - 5_000)
    assert phase(run, "create.verify").corrected_self_ns == 30_000 - 2_000


def test_no_own_time_is_corrected_below_zero_and_none_without_functions():
    run, _ = timed_create((method("verifyContainerSettings"), 200, 201, 128))
    assert phase(run, "create.verify").corrected_self_ns == 0
    (plain,), _ = correlate(stream(create(1, MS), identity(1, 0)), header())
    assert {span.corrected_self_ns for span in plain.phases} == {None}
    assert {span.probe_hits for span in plain.phases} == {0}
    unseen = [span for span in run.phases if span.start_ns is None]
    assert unseen
    assert {span.corrected_self_ns for span in unseen} == {None}


def test_a_phase_as_short_as_its_probes_is_at_the_floor():
    run, _ = timed_create(
        (method("verifyContainerSettings"), 200, 204, 64), (method("mergeAndVerifyConfig"), 300, 305, 64)
    )
    assert [span.id for span in run.phases if span.at_floor] == ["create.verify"]
    assert not phase(run, "create.rw_layer").at_floor


def test_pieces_are_told_with_their_durations_if_there_is_more_than_one():
    run, _ = timed_create(
        (GET_IMAGE, 100, 120, 64), (method("verifyContainerSettings"), 130, 140, 64), (GET_IMAGE, 150, 165, 64)
    )
    image = phase(run, "create.image")
    assert image.pieces == ((run.start_ns + 100_000, 20_000), (run.start_ns + 150_000, 15_000))
    assert (image.start_ns, image.duration_ns, image.self_ns) == (run.start_ns + 100_000, 35_000, 35_000)
    assert phase(run, "create.verify").pieces == ()
    assert run.unattributed_ns + sum(span.self_ns or 0 for span in run.phases[1:]) == run.duration_ns


def test_a_call_still_open_at_the_answer_lasts_until_then():
    events = [*create(1, MS), *call(1, 15 * MS, 80 * MS, depth=64, g=0xC000000001)]
    (run,), _ = correlate(stream(events, identity(1, 0), *probed(method("Register"))), header())
    (open_call,) = run.functions
    assert (open_call.complete, open_call.start_ns + open_call.duration_ns) == (False, run.start_ns + run.duration_ns)


def test_what_is_in_progress_lasts_until_now_and_is_where_its_open_call_is():
    events = create(1, MS, status=None)
    events += call(1, 15 * MS, 80 * MS, depth=64, g=0xC000000001)[:1]
    correlator = Correlator(header(), load())
    for item in stream(events, identity(1, 0), *probed(method("Register"))):
        correlator.feed(item)
    (run,) = correlator.in_flight(5_000 * MS)
    assert (run.outcome, run.error, run.duration_ns) == ("unfinished", "no answer yet", 4_999 * MS)
    assert phase(run, "create.register").duration_ns == 4_985 * MS
    assert sum(span.self_ns or 0 for span in run.phases) == run.duration_ns


def test_functions_of_the_request_only_on_its_own_goroutine():
    events = create(1, MS)
    events += call(1, 2 * MS, 3 * MS, depth=64, g=0xC000000001) + call(1, 4 * MS, 5 * MS, depth=64, g=0xC000000099)
    (run,), _ = correlate(stream(events, identity(1, 0), *probed(GET_IMAGE)), header())
    assert phase(run, "create.image").duration_ns == MS
    assert len(run.functions) == 2


def test_two_operations_at_once_keep_their_functions_apart():
    """Equal depth, equal functions, interleaved: only the goroutine tells."""
    first, second = 0xC000000001, 0xC000000002
    events = create(1, MS, name="first") + create(2, MS + MS // 2, name="second")
    events += call(1, 3 * MS, 6 * MS, depth=64, g=first) + call(1, 4 * MS, 5 * MS, depth=64, g=second)
    runs, _ = correlate(stream(events, identity(1, 0), identity(2, 0), *probed(GET_IMAGE)), header())
    assert {run.container_name: phase(run, "create.image").duration_ns for run in runs} == {
        "first": 3 * MS,
        "second": MS,
    }


def test_a_probed_phase_that_did_not_run_is_missing_and_one_that_was_not_probed_is_not():
    run, _ = timed_create((method("verifyContainerSettings"), 200, 210, 64))
    items = stream(create(1, MS), identity(1, 0), *probed(method("verifyContainerSettings"), method("newContainer")))
    (silent,), _ = correlate(items, header())
    assert run.departures == ()
    assert [(d.kind, d.phase) for d in silent.departures] == [
        (DepartureKind.MISSING, "create.verify"),
        (DepartureKind.MISSING, "create.new_container"),
    ]


def test_a_closure_without_a_name_does_not_make_its_options_missing():
    items = stream(start(1, MS, "c"), identity(1, 0, "c"), *probed(CLOSURES[0], f"{DAEMON}WithUser.func1"))
    (run,), _ = correlate(items, header())
    assert [d.phase for d in run.departures] == ["start.spec.user"]


# --- a recording of a real engine -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    of_header, items = recorded("functions")
    runs, correlator = correlate(items, of_header)
    return of_header, items, runs, correlator


def test_every_phase_of_a_real_run_has_its_functions(real):
    _, _, runs, correlator = real
    assert [run.operation for run in runs] == ["create", "start"]
    for run in runs:
        due = {phase.id for phase in load().of(run.operation) if phase.occurs == "always"}
        seen = {span.id: span.evidence for span in run.phases if span.id in due}
        assert set(seen.values()) == {Evidence.FUNCTION}
        assert len(seen) == (13 if run.operation == "create" else 30)
        assert run.departures == ()
        assert sum(span.self_ns or 0 for span in run.phases) == run.duration_ns
        assert run.unattributed_ns < run.duration_ns / 20
    assert (correlator.loss.unmatched_returns, correlator.loss.unattributed_events) == (0, 0)
    assert not correlator.loss.data_was_lost


def extent(span: Span) -> tuple[int, int]:
    """From the begin of its first piece to the end of its last."""
    first, last = (span.pieces[0], span.pieces[-1]) if span.pieces else [(span.start_ns, span.duration_ns)] * 2
    return first[0], last[0] + last[1]


def assert_parents_contain_their_children(run: Run) -> None:
    spans = {span.id: span for span in run.phases if span.start_ns is not None}
    for span in spans.values():
        (start_ns, end_ns), (first_ns, last_ns) = extent(span), extent(spans[span.parent or span.id])
        assert first_ns <= start_ns <= end_ns <= last_ns, span.id


def test_the_parents_of_a_real_run_contain_their_children(real):
    for run in real[2]:
        assert_parents_contain_their_children(run)


def test_the_calls_of_a_real_run_are_a_tree(real):
    for run in real[2]:
        assert all(each.complete for each in run.functions)
        handler = run.functions[0]
        assert handler.name.endswith(("postContainersCreate", "postContainersStart"))
        for each in run.functions:
            assert handler.start_ns <= each.start_ns
            assert each.start_ns + each.duration_ns <= handler.start_ns + handler.duration_ns


def test_each_hit_of_a_real_run_is_counted_once(real):
    for run in real[2]:
        assert sum(span.probe_hits for span in run.phases) == 2 * len(run.functions)
        cost_ns = sum(span.self_ns - span.corrected_self_ns for span in run.phases if span.self_ns)
        assert 0 < cost_ns < run.duration_ns / 20


def test_the_hook_of_a_real_start_does_not_take_the_time_of_runc_init(real):
    start_run = real[2][1]
    hook = phase(start_run, "start.containerd_start.runc_create.network_hook")
    hooks = [each for each in start_run.functions if each.name == HOOKS]
    created = [each for each in hooks if each.start_ns < phase(start_run, "start.containerd_start.runc_start").start_ns]
    assert len(hooks) == len(created) + 1
    assert hook.duration_ns == sum(each.duration_ns for each in created)
    assert len(hook.pieces) > 1


def names_of(items) -> dict[int, str]:
    notes = (item for item in items if isinstance(item, Note) and item.kind is NoteKind.FUNCTION)
    return {note.data["number"]: note.data["name"] for note in notes}


def without(items, names: frozenset[str]) -> list:
    """The recording as it would be had these functions not been probed."""
    numbers = [number for number, name in names_of(items).items() if name in names]
    kept: list = []
    for item in items:
        if isinstance(item, EventBatch):
            hit = np.isin(item.rows["kind"], [Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN])
            kept.append(EventBatch(item.rows[~(hit & np.isin(item.rows["flags"], numbers))], item.strings))
        elif item.kind is not NoteKind.FUNCTION or item.data["number"] not in numbers:
            kept.append(item)
    return kept


REAL_NAMES = sorted(set(names_of(recorded("functions")[1]).values()))


@settings(max_examples=40, deadline=None)
@given(st.frozensets(st.sampled_from(REAL_NAMES)))
def test_whatever_functions_are_missing_a_real_run_stays_whole_and_in_order(real, missing):
    of_header, items, full, _ = real
    runs, correlator = correlate(without(items, missing), of_header)
    for run, complete in zip(runs, full, strict=True):
        assert run.departures == ()
        assert sum(span.self_ns or 0 for span in run.phases) == run.duration_ns == complete.duration_ns
        assert_parents_contain_their_children(run)
        # What has kernel evidence is seen with or without its functions.
        always = {each.id for each in load().of(run.operation) if each.evidence and each.occurs == "always"}
        assert always <= {span.id for span in run.phases if span.start_ns is not None}
    assert correlator.loss.unmatched_returns == 0


def test_without_any_function_a_real_run_stands_on_the_kernel_alone(real):
    of_header, items, _, _ = real
    runs, _ = correlate(without(items, frozenset(REAL_NAMES)), of_header)
    for run in runs:
        assert {span.evidence for span in run.phases} == {Evidence.KERNEL, Evidence.NONE}
        assert run.functions == ()


@pytest.mark.parametrize("recorded_calls", [True, False])
def test_what_only_system_calls_show_is_missed_only_where_they_were_recorded(real, recorded_calls):
    of_header, items, _, _ = real
    needed = {call.kind for call in numbered_calls("x86_64", only_needed=True).values()}
    kinds = sorted((SYSCALLS - needed) | {Kind.INOTIFY})
    few = [
        EventBatch(item.rows[~np.isin(item.rows["kind"], kinds)], item.strings)
        if isinstance(item, EventBatch)
        else item
        for item in without(items, frozenset(REAL_NAMES))
    ]
    runs, correlator = correlate(few, replace(of_header, options={**of_header.options, "syscalls": recorded_calls}))
    assert any("--no-syscalls" in warning for warning in correlator.warnings) != recorded_calls
    missed = [departure.phase for run in runs for departure in run.departures]
    assert bool(missed) == recorded_calls
    seen = {span.id for run in runs for span in run.phases if span.start_ns is not None}
    assert "start.containerd_start.runc_create" in seen  # a program
    assert "create.rw_layer" not in seen


# --- reports ----------------------------------------------------------------------------------------------------------


def report_of(items, of_header, *, keep_events: bool = False) -> Report:
    from observe.correlate import Correlator

    correlator = Correlator(of_header, load(), keep_events=keep_events)
    runs = [run for item in items for run in correlator.feed(item)] + correlator.finish()
    return Report(
        of_header.host,
        of_header.engine,
        correlator.loss,
        tuple(runs),
        functions=correlator.probed(),
        refused=tuple(correlator.refused),
    )


def test_json_tells_what_was_probed_and_what_could_not_be(real):
    of_header, items, _, _ = real
    refused = {"name": method("Mount"), "binary": "dockerd", "reason": "why"}
    told = json.loads(json.dumps(document(report_of([*items, Note(NoteKind.FUNCTION, 0, refused)], of_header))))
    assert told["refused"] == [refused]
    assert told["functions"]["create.image"] == [GET_IMAGE]
    assert told["functions"]["start.mount"] == [method("Mount"), method("conditionalMountOnStart")]
    assert set(told["functions"]["create"]) == {f"{HANDLER}Create"}
    run = told["runs"][0]
    assert run["functions"][0]["name"] == f"{HANDLER}Create"
    assert set(run["functions"][0]) == {"name", "pid", "start_ns", "duration_ns", "complete"}
    by_phase = {each["id"]: each for each in run["phases"]}
    image = by_phase["create.image"]
    assert len(image["pieces"]) == 2
    assert sum(length for _, length in image["pieces"]) == image["duration_ns"]
    assert image["corrected_self_ns"] < image["self_ns"]
    assert by_phase["create.security"]["at_floor"]
    assert not by_phase["create.rw_layer"]["at_floor"]


def test_json_has_every_event_in_its_phase_if_they_were_asked_for(real):
    of_header, items, _, _ = real
    assert not any("events" in each for run in document(report_of(items, of_header))["runs"] for each in run["phases"])
    labels = {kind.label for kind in SYSCALLS}
    for run in document(report_of(items, of_header, keep_events=True))["runs"]:
        assert sum(each["syscalls"] for each in run["phases"]) > 0
        for each in run["phases"]:
            kinds = [event["kind"] for event in each.get("events", [])]
            assert sum(kind.startswith("function_") for kind in kinds) == each["probe_hits"]
            assert kinds.count("inotify") == each["file_events"]
            assert sum(kind in labels for kind in kinds) == each["syscalls"]


def text(items, of_header) -> str:
    return RENDERERS["text"](report_of(items, of_header), Page(width=200))


#: The recording was made when these had no function yet.
PARTS_BY_KERNEL = (
    "by kernel evidence only: containerd_start.runc_create.init.pivot_root, containerd_start.runc_create.cgroups"
)


def test_text_says_what_is_at_the_floor_and_what_the_probes_cost(real):
    of_header, items, runs, _ = real
    page = text(items, of_header)
    floors = sum(span.at_floor for run in runs for span in run.phases)
    assert floors > 0
    assert page.count("at floor") == floors
    for run in runs:
        assert f"probes of functions: {2 * len(run.functions)} hits, about " in page
    assert [line for line in page.splitlines() if line.startswith("by kernel evidence")] == [PARTS_BY_KERNEL]


def test_text_names_what_stands_on_the_kernel_alone(real):
    of_header, items, _, _ = real
    lines = text(
        without(items, frozenset({CREATE_LAYER, method("createSpec"), f"{HANDLER}Create"})), of_header
    ).splitlines()
    named = [line for line in lines if line.startswith("by kernel evidence only:")]
    more = PARTS_BY_KERNEL.replace("only: ", "only: spec, ")
    assert named == ["by kernel evidence only: rw_layer", more]
    plain = text(without(items, frozenset(REAL_NAMES)), of_header)
    assert "not seen by kernel evidence:" in plain
    assert "probes of functions" not in plain
    assert "at floor" not in plain


# --- the catalogue's keys for functions -------------------------------------------------------------------------------

PHASES = """
[[phase]]
id = "op"
step = "1"
title = "all"
[[phase]]
id = "op.one"
parent = "op"
step = "1"
title = "first"
functions = ["one"]
[[phase]]
id = "op.two"
parent = "op"
step = "1"
title = "second"
functions = ["two"]
{keys}
"""


def of_catalogue(keys: str, *frames: Frame) -> tuple[dict[str, list[tuple[int, int]]], list[str]]:
    rules = FunctionRules(parse(PHASES.format(keys=keys), "x.toml"))
    found = pieces_of(frames, rules, BOUNDS, lambda _: False, NOBODY, failed=False)
    return {rules.phases[n].id: at for n, at in sorted(found.by_phase.items())}, [d.kind for d in found.departures]


ONE_AND_TWO = [frame("two", 1, 2), frame("one", 3, 4), frame("two", 5, 6)]


@pytest.mark.parametrize(
    ("keys", "frames", "expected"),
    [
        ("", ONE_AND_TWO, ({"op.one": [(3, 4)], "op.two": [(1, 2), (5, 6)]}, ["out_of_order"])),
        ("several = true", ONE_AND_TWO, ({"op.one": [(3, 4)], "op.two": [(1, 2), (5, 6)]}, [])),
        ("", [frame("one", 1, 9, 8), frame("two", 3, 4)], ({"op.one": [(1, 9)]}, [])),
        (
            'within = ["op.one"]',
            [frame("one", 1, 9, 8), frame("two", 3, 4)],
            ({"op.one": [(1, 9)], "op.two": [(3, 4)]}, []),
        ),
        ('to_entry = ["three"]', [frame("three", 3, 4)], ({"op.two": [(0, 3)]}, [])),
        ('from_return = ["thr*"]', [frame("three", 3, 4), frame("two", 6, 7)], ({"op.two": [(4, 7)]}, [])),
    ],
)
def test_a_key_does_what_it_says(keys, frames, expected):
    assert of_catalogue(keys, *frames) == expected
