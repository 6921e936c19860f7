# SPDX-License-Identifier: Apache-2.0
"""The walk-through's steps, each with what a real recording shows of it.

`python bench/walkthrough.py [runs] [-o docs/walkthrough.md]`, as root: records creates and starts of one client on a
private engine with a bridge network and writes the page; every table comes from that recording.
"""

from __future__ import annotations

import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from posixpath import basename
from statistics import median

from _engine import CLIENT, IMAGE, recorded, write_page

from observe.correlate.why.causes import file_name
from observe.model import SYSCALLS, Event, Kind, Run, Span
from observe.phases import Phase, load
from observe.reports.assemble import assemble
from observe.reports.report import Report
from observe.reports.terminal import Page
from observe.reports.why_rows import why_many

#: How many calls and files of a phase are named.
NAMED = 4
PAGE = Page()
HANDLER = "postContainersStart"
NOT_THE_HANDLER = "postContainerExecStart"

INTRODUCTION = """\
# The walk-through, as recorded

The walk-through of moby 19.03.9 reads the source: what dockerd does on `docker create` and `docker start`. This page
follows its sections and says what a real engine did. Step numbers are `section/step`.
"""
SECTION_1 = """\
## 1. The daemon

observe attaches to a daemon that runs; its start-up (1.1 to 1.4) is over by then. Section 1.5's routes are what the
kernel sees as requests on the API's socket: `POST /containers/create` and `POST /containers/{id}/start`.
"""
SECTION_4_1 = """\
### 4.1 containerd

dockerd started containerd as its child (`initContainerD`). Both are followed; the shim leaves containerd's tree when
its starter ends, and stays in the container's.
"""


def main() -> None:
    """Record, write."""
    write_page(20, lambda folder, runs: document(record(folder, runs), runs))


def record(folder: Path, runs: int) -> Report:
    """Creates and starts on a private engine."""
    path = folder / "walkthrough.observe"
    client = ["--runs", str(runs), "--network", "bridge"]
    recorded(path, lambda socket: [sys.executable, str(CLIENT), socket, IMAGE, str(folder / "times"), *client], "--why")
    return assemble(path, load(), keep_events=True, why=True)[0]


def document(report: Report, runs: int) -> str:
    """The page."""
    creates = [run for run in report.runs if run.operation == "create"]
    starts = [run for run in report.runs if run.operation == "start"]
    phases = {phase.id: phase for phase in load().phases}
    create = [phase for phase in phases.values() if phase.operation == "create"]
    start = [phase for phase in phases.values() if phase.operation == "start"]
    network = [p for p in start if p.id.startswith("start.network") or ".network_hook" in p.id]
    spec = [p for p in start if p.id.startswith("start.spec")]
    below = [p for p in start if p.id.startswith("start.containerd_start") and ".network_hook." not in p.id]
    made = (
        f"Made by `python bench/walkthrough.py {runs} -o docs/walkthrough.md`: dockerd {report.engine.get('version')}, "
        f"{report.engine.get('go_version')}, Linux {report.host.get('kernel')}, {platform.machine()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, n = {runs}, bridge network, one client. Times are medians; *at* counts from "
        "the request, *took* is the phase with all below it. A dash: not seen in most of the runs."
    )
    blocks = [
        INTRODUCTION,
        made,
        SECTION_1,
        "## 2. docker create",
        steps(create, creates),
        order(create, creates),
        "## 3. docker start",
        handler(starts),
        steps([phase for phase in start if phase.depth <= 1], starts),
        order([phase for phase in start if phase.depth <= 1], starts),
        "## 4. Below dockerd",
        SECTION_4_1,
        "### 4.2 The container's network",
        steps(network, starts),
        "### 4.3 The spec: the options of createSpec",
        steps(spec, starts),
        "### 4.4 containerd creates the container",
        steps(below, starts),
        "#### When runc is called, by whom, how often",
        programs(starts),
        "#### The mounts of the root file system, by name",
        mounts(starts),
        "## What the time was spent on",
        times(report),
    ]
    return "\n\n".join(block.rstrip() for block in blocks if block) + "\n"


def steps(phases: Sequence[Phase], runs: Sequence[Run]) -> str:
    """What each phase took, and what it did."""
    rows = []
    for phase in phases:
        spans = [(run, span) for run in runs for span in run.phases if span.id == phase.id]
        seen = [(run, span) for run, span in spans if span.start_ns is not None and span.duration_ns is not None]
        told = len(seen) > len(runs) / 2
        rows.append(
            (
                phase.step,
                f"`{phase.id}`",
                phase.title,
                _duration(median((span.start_ns or 0) - run.start_ns for run, span in seen)) if told else "-",
                _duration(median(span.duration_ns or 0 for _, span in seen)) if told else "-",
                seen[0][1].evidence.value if told else "",
                *done(phase.id, runs),
            )
        )
    return table(("step", "phase", "documented as", "at", "took", "evidence", "calls", "files"), "lllrrlll", rows)


def done(phase: str, runs: Sequence[Run]) -> tuple[str, str]:
    """The calls that a phase makes most, and the files that it names most, each as often as in one run."""
    calls: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for event in (event for run in runs for owner, event in run.events if owner == phase):
        if event.kind in SYSCALLS:
            calls[event.kind.label] += 1
            if event.path.startswith("/"):
                files[_file(event, runs)] += 1
    return _frequent(calls, len(runs)), _frequent(files, len(runs))


def _file(event: Event, runs: Sequence[Run]) -> str:
    name = file_name(event.path) or "/"
    return "(container id)" if any(name == run.container_id for run in runs) else name


def _frequent(counts: Counter[str], runs: int) -> str:
    often = [(name, round(count / runs)) for name, count in counts.most_common(NAMED)]
    return ", ".join(f"`{name}`" + (f" x{count}" if count > 1 else "") for name, count in often if count)


def order(phases: Sequence[Phase], runs: Sequence[Run]) -> str:
    """Whether the documented order is the recorded one."""
    departures = Counter(f"{d.kind.replace('_', ' ')}: {d.phase}" for run in runs for d in run.departures)
    told = "; ".join(f"{name} in {count} runs" for name, count in departures.most_common())
    names = {phase.id for phase in phases if not phase.several}
    in_order = sum(_is_in_order(run, names) for run in runs)
    seen = f"Begun in the documented order (where there is one) in {in_order} of {len(runs)} runs"
    return f"{seen}; departures: {told or 'none'}."


def _is_in_order(run: Run, names: set[str]) -> bool:
    begins = [span.start_ns for span in run.phases if span.id in names and span.start_ns is not None]
    return begins == sorted(begins)


def handler(starts: Sequence[Run]) -> str:
    """Where the walk-through is wrong."""
    calls = Counter(call.name.rpartition(".")[2] for run in starts for call in run.functions)
    return (
        f"The walk-through's heading 3.1 says `{NOT_THE_HANDLER}`; what ran is `{HANDLER}`, as its own code shows: "
        f"{calls[HANDLER]} calls in {len(starts)} starts, and {calls[NOT_THE_HANDLER]} of the other."
    )


def programs(starts: Sequence[Run]) -> str:
    """Every program that a start executes, in order, in the run of median duration; and how often in all runs."""
    chosen = sorted(starts, key=lambda run: run.duration_ns)[len(starts) // 2]
    rows = []
    for event, parent, took in executed(chosen):
        rows.append(
            (
                _duration(event.time_ns - chosen.start_ns),
                f"`{' '.join(_short(event))}`",
                parent,
                _duration(took) if took else "until after the answer",
            )
        )
    counts = Counter(" ".join(_short(event)) for run in starts for event, _, _ in executed(run))
    often = ", ".join(f"`{name}` {count / len(starts):g}" for name, count in counts.most_common())
    return (
        table(("at", "program", "executed by", "for"), "rllr", rows)
        + f"\n\nTimes a program is executed in one start, over {len(starts)} starts: {often}."
    )


def executed(run: Run) -> Iterator[tuple[Event, str, int]]:
    """(exec, what the process or its parent ran before, ns until its next exec or its exit), by time."""
    parents: dict[int, int] = {}
    running: dict[int, str] = {}
    makers: dict[int, str] = {}
    events = [event for _, event in run.events]
    for number, event in enumerate(events):
        if event.kind is Kind.SCHED_PROCESS_FORK:
            parents[event.ret] = event.pid
            makers.setdefault(event.pid, event.comm)
        elif event.kind is Kind.SCHED_PROCESS_EXEC:
            pid = event.pid
            while pid in parents and pid not in running:
                pid = parents[pid]
            ends = (Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_EXIT)
            end = next((one for one in events[number + 1 :] if one.pid == event.pid and one.kind in ends), None)
            yield event, running.get(pid) or makers.get(pid, "a daemon"), end.time_ns - event.time_ns if end else 0
            running[event.pid] = " ".join(_short(event))


def _short(event: Event) -> list[str]:
    first, *rest = event.detail.split("\0")
    command = [word for word in rest if word in {"create", "start", "init", "state", "delete"}]
    return [basename(first), *command[:1]]


def mounts(starts: Sequence[Run]) -> str:
    """Targets in the order of one run, with what is mounted there."""
    found = []
    for phase, event in starts[-1].events:
        if event.kind is Kind.MOUNT and phase.endswith(".init.rootfs") and not event.ret:
            target = event.path.partition("/merged")[2] or "/"
            what = event.detail or "bind" if event.flags & 0x1000 else event.detail or "flags"
            if (target, what) not in found:
                found.append((target, what))
    return ", ".join(f"`{target}` ({what})" for target, what in found) + "."


def times(report: Report) -> str:
    """Shares of each phase of a start, and the largest causes."""
    starts = [run for run in report.runs if run.operation == "start"]
    spans: dict[str, list[Span]] = defaultdict(list)
    for run in starts:
        for span in run.phases:
            if span.time is not None and span.duration_ns:
                spans[span.id].append(span)
    rows = []
    for phase, found in spans.items():
        total = sum(span.duration_ns or 0 for span in found)
        if total < 0.02 * sum(run.duration_ns for run in starts):
            continue
        spent: Counter[str] = Counter()
        for span in found:
            if span.time is not None:
                spent["cpu"] += span.time.cpu_ns
                spent["run queue"] += span.time.runqueue_ns
                spent.update(span.time.blocked_ns)
        rows.append((f"`{phase}`", _duration(total / len(starts)), _shares(spent, total)))
    causes = [
        (row.id, str(row.n), _duration(row.p50_ns), _duration(row.p90_ns), f"{row.share:.1%}", row.text)
        for many in why_many(report.runs)
        if many.operation == "start"
        for row in many.causes
    ]
    return (
        "On the critical path of a start: the threads and processes that the request was really waiting for.\n\n"
        + table(("phase", "mean", "spent on"), "lrl", rows)
        + "\n\n"
        + table(("cause", "runs", "p50", "p90", "share", "in words (of the longest)"), "lrrrrl", causes)
    )


def _shares(spent: Mapping[str, int], total: int) -> str:
    parts = sorted(spent.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value / total:.0%}" for name, value in parts if value >= 0.01 * total)


def _duration(duration_ns: float) -> str:
    return PAGE.duration(duration_ns)


def table(head: Sequence[str], sides: str, rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---:" if side == "r" else "---" for side in sides], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
