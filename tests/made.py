# SPDX-License-Identifier: Apache-2.0
"""Runs and reports made up for tests of reports: as many phases as wanted, whose own times sum to the run's."""

from __future__ import annotations

import random
from dataclasses import replace

from observe.model import Cause, Event, Evidence, Kind, Loss, PathStep, Remedy, Run, Span, Time
from observe.reports import Report

MS = 1_000_000
ID = "3f2a91c04d7e" + "0" * 52
HOST = {"hostname": "node1", "kernel": "6.1.0", "arch": "x86_64"}
ENGINE = {"version": "20.10.24", "go_version": "go1.19.8", "storage_driver": "overlay2"}
#: What every report must survive: markup, mathematics, a formula, control characters, a letter that no font has.
HOSTILE = "=<img src=x onerror=alert(1)>|`a`|$\\frac{a}{b}$ _x_ \x1b[31m\r\n\u202egnp\x00\ue123你"


def made_run(count, seed=0, *, flat=False, **changes):
    """A start of about 200 ms: phases one after the other, every third one with two inside; odd ones by functions."""
    dice = random.Random(seed)  # noqa: S311 - the same runs each time
    weights = [dice.lognormvariate(0, 1.5) for _ in range(count)]
    lengths_ns = [round(180 * MS * weight / sum(weights)) for weight in weights]
    start_ns, own_ns = 5 * MS + seed, 20 * MS
    spans, at_ns = [], start_ns
    first = 0
    for number, length_ns in enumerate(lengths_ns):
        if flat or number % 3 == 0:
            first, parent = number, "start"
        else:
            parent = f"start.phase_{first}"
        inside = 0 if flat or number % 3 else sum(lengths_ns[number + 1 : number + 3])
        evidence = Evidence.FUNCTION if number % 2 else Evidence.KERNEL
        spans.append(
            Span(
                f"{parent}.{'phase' if parent == 'start' else 'part'}_{number}",
                parent,
                "3.1",
                at_ns,
                length_ns + inside,
                length_ns,
                evidence,
                3,
                1,
            )
        )
        at_ns += length_ns
    duration_ns = sum(lengths_ns) + own_ns
    whole = Span("start", None, "3.1", start_ns, duration_ns, own_ns, Evidence.FUNCTION, 7, 2)
    values = {
        "operation": "start",
        "container_id": ID,
        "container_name": "web",
        "image": "nginx:1.25",
        "network": "bridge",
        "outcome": "ok",
        "error": None,
        "start_ns": start_ns,
        "wall_time_ns": 1_646_327_172_345_678_901 + seed,
        "duration_ns": duration_ns,
        "unattributed_ns": own_ns,
        "departures": (),
        "phases": (whole, *spans),
    }
    return Run(**{**values, **changes})


#: Of the engine, of the shim that it starts, and of what that runs: see `made_events`.
DOCKERD, SHIM, INIT = 100, 200, 300
_CALLS = (Kind.MOUNT, Kind.OPENAT, Kind.MKDIRAT, Kind.FSYNC, Kind.RENAMEAT2)


def made_events(run, count, *, path="/var/lib/docker/overlay2/merged"):
    """`count` (phase, event) of a run, by time: dockerd forks a shim, which executes runc; calls and file events."""
    seen = [span for span in run.phases[1:] if span.start_ns is not None] or [run.phases[0]]
    step_ns = max(run.duration_ns // (count + 1), 1)
    events = []
    for number in range(count):
        time_ns = run.start_ns + number * step_ns
        common = {
            "time_ns": time_ns,
            "pid": (DOCKERD, SHIM, INIT)[number % 3],
            "comm": ("dockerd", "shim", "runc")[number % 3],
        }
        common["tid"] = common["pid"]
        if number in (0, 1):
            event = Event(
                **{
                    **common,
                    "kind": Kind.SCHED_PROCESS_FORK,
                    "pid": (DOCKERD, SHIM)[number],
                    "ret": (SHIM, INIT)[number],
                }
            )
        elif number == 2:
            event = Event(**common, kind=Kind.SCHED_PROCESS_EXEC, path="/usr/sbin/runc", detail="runc\0--log\0/x\0init")
        elif number % 10 == 9:
            event = Event(**common, kind=Kind.INOTIFY, flags=0x4000_0100, path=f"{path}/{number}")
        else:
            kind = _CALLS[number % len(_CALLS)]
            event = Event(
                **common,
                kind=kind,
                duration_ns=step_ns * 2 // 3,
                path=f"{path}/{number % 50}",
                ret=-2 if number % 7 == 0 else 0,
            )
        inside = [span for span in seen if span.start_ns <= time_ns < span.start_ns + span.duration_ns]
        events.append(((inside or [run.phases[0]])[-1].id, event))
    return tuple(events)


def made_report(*runs, loss=None, warnings=()):
    """A report of them, in the given order."""
    return Report(HOST, ENGINE, loss or Loss(), tuple(runs), tuple(warnings))


def explained(run, program="runc create", file="cgroup.procs"):
    """A run whose path has three programs, four steps in each, and a cause for every step of the second one."""
    part_ns = run.duration_ns // 12
    path = []
    for number in range(12):
        name = program if number // 4 == 1 else "dockerd"
        state, reason = (("cpu", ""), ("runqueue", ""), ("blocked", "disk"), ("blocked", "rcu"))[number % 4]
        start_ns = run.start_ns + number * part_ns
        length_ns = part_ns if number < 11 else run.duration_ns - 11 * part_ns
        where = ("write", file, ("rcu_barrier",)) if state == "blocked" else ("", "", ())
        path.append(PathStep(start_ns, length_ns, state, reason, "start.phase_0", name, 5, 51, *where))
    remedy = Remedy("do less", "moby#1", "none")
    causes = [
        Cause("writes", f"{program}: write waited", 4 * part_ns, remedy, (4, 5, 6, 7)),
        *(Cause(f"cause_{n}", "something small", 1, None, (n,)) for n in range(6)),
    ]
    times = Time(3 * part_ns, 3 * part_ns, {"disk": 3 * part_ns, "rcu": run.duration_ns - 9 * part_ns})
    first, *rest = run.phases
    return replace(run, path=tuple(path), causes=tuple(causes), phases=(replace(first, time=times), *rest))
