# SPDX-License-Identifier: Apache-2.0
"""Where the difference between network modes goes: starts with host, none and bridge, interleaved, in one recording.

`python bench/networks.py [runs] [-o docs/networks.md]`, as root and on an idle machine. Own times of phases sum to a
start's duration, so do their mean differences; what is in no phase is the row `unattributed`.
"""

from __future__ import annotations

import json
import platform
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from _engine import IMAGE, PLAN_CLIENT, recorded, write_page

from observe.model import Run
from observe.phases import load
from observe.reports.assemble import assemble
from observe.reports.report import Report

MODES = ("host", "none", "bridge")
BASE = "host"
UNATTRIBUTED = "unattributed"
#: Rows whose share of the difference is smaller are told as one.
SMALL = 0.005


def main() -> None:
    """Record, compare, write the page."""
    write_page(50, lambda folder, runs: document(record(folder, runs), runs))


def record(folder: Path, runs: int) -> Report:
    """So many starts of each mode, interleaved, on a private engine."""
    order = random.Random(1)  # noqa: S311 - repeatable on purpose
    plan, path = folder / "plan.json", folder / "networks.observe"
    requests = [
        (f"{mode}-{number}", {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": mode}})
        for number in range(runs)
        for mode in order.sample(MODES, len(MODES))
    ]
    plan.write_text(json.dumps(requests), encoding="utf-8")
    recorded(path, lambda socket: [sys.executable, str(PLAN_CLIENT), socket, str(plan)], "--no-why")
    return assemble(path, load())[0]


def own_times(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Phase → its own time in each run, ns; what is in no phase has its name."""
    found: dict[str, list[int]] = defaultdict(list)
    for run in runs:
        found[UNATTRIBUTED].append(run.unattributed_ns)
        for span in run.phases[1:]:
            found[span.id].append(span.self_ns or 0)
    return found


def interval(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Difference of the means, with a bootstrapped 95% interval."""
    rng = np.random.default_rng(1)
    drawn = [rng.choice(values, (5_000, len(values))).mean(axis=1) for values in (ours, base)]
    low, high = np.percentile(drawn[0] - drawn[1], (2.5, 97.5))
    return float(np.mean(ours) - np.mean(base)), float(low), float(high)


def comparison(mode: str, starts: Mapping[str, Sequence[Run]]) -> list[str]:
    """Lines of a chapter: a mode against the base, by phase."""
    whole, low, high = interval([r.duration_ns for r in starts[mode]], [r.duration_ns for r in starts[BASE]])
    ours, base = own_times(starts[mode]), own_times(starts[BASE])
    differences = {phase: interval(ours[phase], base[phase]) for phase in ours}
    named = whole - differences[UNATTRIBUTED][0]
    lines = [
        "",
        f"## {mode} - {BASE}",
        "",
        f"{whole / 1e6:.1f} ms [{low / 1e6:.1f}, {high / 1e6:.1f}], of which {named / whole:.1%} lie in named phases.",
        "",
        "| phase | mean difference of its own time, ms | 95% interval | share |",
        "|---|---:|---:|---:|",
    ]
    small = 0.0
    for phase, (value, from_, to) in sorted(differences.items(), key=lambda item: -item[1][0]):
        if phase != UNATTRIBUTED and abs(value) < SMALL * abs(whole):
            small += value
            continue
        lines.append(f"| {phase} | {value / 1e6:.2f} | {from_ / 1e6:.2f} … {to / 1e6:.2f} | {value / whole:.1%} |")
    return [*lines, f"| all others together | {small / 1e6:.2f} | | {small / whole:.1%} |"]


def document(report: Report, runs: int) -> str:
    """The page."""
    starts = {
        mode: [run for run in report.runs if run.operation == "start" and (run.container_name or "").startswith(mode)]
        for mode in MODES
    }
    medians = ", ".join(f"{mode} {np.median([run.duration_ns for run in starts[mode]]) / 1e6:.1f} ms" for mode in MODES)
    made = (
        f"Made by `python bench/networks.py {runs} -o docs/networks.md`: dockerd {report.engine.get('version')}, "
        f"Linux {report.host.get('kernel')}, {platform.machine()}, {datetime.now(UTC):%Y-%m-%d}; {runs} interleaved "
        f"starts of each mode. Medians: {medians}."
    )
    lines = [
        "# What a network costs a start",
        "",
        made,
        *comparison("bridge", starts),
        *comparison("none", starts),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
