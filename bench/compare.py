# SPDX-License-Identifier: Apache-2.0
"""Does `observe compare` find what is there, and only that? Real runs, compared over and over.

`python bench/compare.py [runs] [-o docs/comparing.md]`, as root: `observe bench` records two arms on a private dockerd
that differ in 5 ms before `runc create`, and two that do not differ at all. Then, with a fresh draw of runs each time,
100 comparisons of equals and 20 of unequals: which phases are marked.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from _engine import IMAGE, private_engine, scratch

from observe.model import Run
from observe.phases import load
from observe.reports import Report
from observe.reports.assemble import assemble
from observe.reports.comparison import Arm, compare

DELAY_MS = 5
NAMED = "start.containerd_start.runc_create"
EQUALS, UNEQUALS, MOST_INVENTED = 100, 20, 5
SLOW, PLAIN = "slow", "plain"
#: A shell starts in a millisecond; a Python would take longer than what is looked for, and vary more.
RUNTIME = """#!/bin/sh
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
case " $* " in *" create "*) sleep {seconds} ;; esac
exec runc "$@"
"""


def main() -> int:
    """Record, compare, write the page; 1 if equals differ too often."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=int, nargs="?", default=120)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with scratch() as folder:
        reports = record(folder, args.runs)
    equals = [marked(*halves([reports[PLAIN], reports[f"{PLAIN}-2"]], seed)) for seed in range(EQUALS)]
    unequals = [marked(*draw(reports[PLAIN], reports[SLOW], seed)) for seed in range(UNEQUALS)]
    text = document(reports, equals, unequals, args.runs)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    # What it finds of the delay depends on how busy the machine is; what it invents does not.
    return 0 if sum(map(bool, equals)) <= MOST_INVENTED else 1


def record(folder: Path, runs: int) -> dict[str, Report]:
    """A report of each arm."""
    for name, seconds in ((SLOW, DELAY_MS / 1000), (PLAIN, 0)):
        (folder / name).write_text(RUNTIME.format(seconds=seconds), encoding="ascii")
        (folder / name).chmod(0o755)
    # With two Go processors a start waits 15 ms or not, and a delay before that decides which.
    os.environ["GOMAXPROCS"] = "4"
    # Whoever works on this machine meanwhile comes second.
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    with private_engine(folder, *(f"--add-runtime={name}={folder / name}" for name in (SLOW, PLAIN))) as socket:
        arms = ["--network", "host", "--runtime", PLAIN, PLAIN, SLOW, "--image", IMAGE, "--runs", str(runs)]
        observe = [sys.executable, "-m", "observe", "bench", "--docker-host", f"unix://{socket}", "-o", str(folder)]
        subprocess.run([*observe, "--seed", "1", "-f", "json", *arms], check=True, stdout=subprocess.DEVNULL)
    return {path.stem: assemble(path, load())[0] for path in folder.glob("*.observe")}


def halves(equal: Sequence[Report], seed: int) -> tuple[Report, Report]:
    """All runs of equal arms, dealt anew to two."""
    containers = containers_of([run for report in equal for run in report.runs])
    random.Random(seed).shuffle(containers)  # noqa: S311 - repeatable on purpose
    middle = len(containers) // 2
    return _with(equal[0], containers[:middle]), _with(equal[0], containers[middle:])


def draw(base: Report, new: Report, seed: int) -> tuple[Report, Report]:
    """Half of the runs of each arm."""
    dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
    drawn = []
    for report in (base, new):
        containers = containers_of(report.runs)
        drawn.append(_with(report, dice.sample(containers, len(containers) // 2)))
    return drawn[0], drawn[1]


def containers_of(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """The create and the start of each container."""
    found: dict[str | None, list[Run]] = {}
    for run in runs:
        found.setdefault(run.container_id, []).append(run)
    return [tuple(pair) for pair in found.values()]


def _with(report: Report, containers: Sequence[tuple[Run, ...]]) -> Report:
    return replace(report, runs=tuple(run for pair in containers for run in pair))


def marked(base: Report, new: Report) -> tuple[str, ...]:
    """Ids of the rows that are said to differ, those that contribute most first."""
    comparison = compare(Arm("base", base), Arm("new", new))
    return tuple(row.id for one in comparison.operations for row in one.rows if row.is_marked)


def spread(reports: Mapping[str, Report]) -> str:
    """How long what is looked for takes, and how much that varies by itself."""
    told = []
    for name in (PLAIN, f"{PLAIN}-2", SLOW):
        own_ms = [(span.self_ns or 0) / 1e6 for run in reports[name].runs for span in run.phases if span.id == NAMED]
        low, middle, high = np.percentile(own_ms, (25, 50, 75))
        told.append(f"{middle:.1f} ms ({low:.1f} to {high:.1f}) with `{name}`")
    return f"Own time of the phase, median and quartiles: {', '.join(told)}."


def is_right(found: Sequence[str]) -> bool:
    """Whether it names the phase, and besides it only those that it is a part of."""
    return NAMED in found and all(phase == NAMED or NAMED.startswith(f"{phase}.") for phase in found)


def document(
    reports: Mapping[str, Report], equals: Sequence[Sequence[str]], unequals: Sequence[Sequence[str]], runs: int
) -> str:
    """The page."""
    report = reports[PLAIN]
    lines = [
        "# Does compare find what is there, and only that?",
        "",
        f"Made by `python bench/compare.py {runs} -o docs/comparing.md`: dockerd {report.engine.get('version')}, Linux",
        f"{report.host.get('kernel')}, {platform.machine()}, {os.cpu_count()} CPUs, {datetime.now(UTC):%Y-%m-%d}.",
        f"Three arms of {runs} runs each, interleaved by `observe bench`, host network, everything at nice -20. The",
        f"runtime is a wrapper that runs `sleep` before `runc create`: of {DELAY_MS} ms, or of 0.",
        "",
        "| arms | comparisons | runs in each arm | with any phase marked | right |",
        "|---|---:|---:|---:|---:|",
        _line("equal, dealt anew", runs, equals, [not found for found in equals]),
        _line(
            f"{DELAY_MS} ms before runc create, half of the runs drawn",
            runs // 2,
            unequals,
            [is_right(found) for found in unequals],
        ),
        "",
        f"Right: of equals nothing is marked; of unequals `{NAMED}`, and besides it only what it is a part of.",
        "",
        spread(reports),
        "",
        "| marked in the unequal arms | times |",
        "|---|---:|",
        *(f"| `{phase}` | {count} |" for phase, count in Counter(p for found in unequals for p in found).most_common()),
    ]
    return "\n".join(lines) + "\n"


def _line(arms: str, runs: int, found: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    return f"| {arms} | {len(found)} | {runs} | {sum(map(bool, found))} | {sum(right)} |"


if __name__ == "__main__":
    sys.exit(main())
