# SPDX-License-Identifier: Apache-2.0
"""How good is kernel evidence? The same runs, bounded by functions and by the kernel's events alone.

`python bench/accuracy.py [runs] [-o docs/accuracy.md]`, as root: records creates and starts on a private dockerd with
everything attached, then correlates the recording twice, with and without its function events.
"""

from __future__ import annotations

import platform
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from _engine import CLIENT, IMAGE, recorded, write_page

from observe.correlate import Correlator
from observe.model import EventBatch, Evidence, Item, Kind, NoteKind, Run
from observe.phases import load
from observe.recording import Recording

FUNCTIONS = (Kind.FUNCTION_ENTRY, Kind.FUNCTION_RETURN)


def main() -> None:
    """Record, compare, write the table."""
    write_page(50, lambda folder, runs: document(record(folder, runs), runs))


def record(folder: Path, runs: int) -> Recording:
    """A recording of creates and starts on a private engine."""
    path = folder / "accuracy.observe"
    client = ["--runs", str(runs)]
    recorded(path, lambda socket: [sys.executable, str(CLIENT), socket, IMAGE, str(folder / "times"), *client])
    return Recording.open(path)


def without_functions(items: Iterable[Item]) -> Iterator[Item]:
    """The same stream as if no function had been probed."""
    for item in items:
        if isinstance(item, EventBatch):
            yield EventBatch(item.rows[~np.isin(item.rows["kind"], FUNCTIONS)], item.strings)
        elif item.kind is not NoteKind.FUNCTION:
            yield item


def correlate(recording: Recording, items: Iterable[Item]) -> dict[tuple[str, str | None], Run]:
    """Runs by operation and container."""
    correlator = Correlator(recording.header, load())
    runs = [run for item in items for run in correlator.feed(item)] + correlator.finish()
    return {(run.operation, run.container_id): run for run in runs}


def document(recording: Recording, runs: int) -> str:
    """The page."""
    truth = correlate(recording, recording.items())
    kernel = correlate(recording, without_functions(recording.items()))
    errors: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    seen: dict[str, set[Evidence]] = defaultdict(set)
    for key, exact in truth.items():
        for span, bound in zip(exact.phases, kernel[key].phases, strict=True):
            seen[span.id] |= {span.evidence, bound.evidence}
            if span.evidence is not Evidence.FUNCTION or None in (bound.start_ns, bound.duration_ns):
                continue
            end = (span.start_ns or 0) + (span.duration_ns or 0)
            bound_end = (bound.start_ns or 0) + (bound.duration_ns or 0)
            errors[span.id].append(
                (
                    (bound.start_ns or 0) - (span.start_ns or 0),
                    bound_end - end,
                    (bound.duration_ns or 0) - (span.duration_ns or 0),
                )
            )
    engine, header = recording.header.engine, recording.header.host
    made = (
        f"Made by `python bench/accuracy.py {runs} -o docs/accuracy.md`: dockerd {engine.get('version')}, "
        f"{engine.get('go_version')}, Linux {header.get('kernel')}, {platform.machine()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, n = {runs} creates and {runs} starts, bridge network, one client."
    )
    lines = [
        "# How good is kernel evidence?",
        "",
        "System calls bound a phase from inside: it begins before its first one and ends after its last one. This page",
        "holds those bounds against the entry and the return of the phase's own functions, in the same runs.",
        "",
        made,
        "",
        "Differences are kernel minus function, in µs; p95 is of the absolute difference.",
        "",
        "| phase | n | start, median | start, p95 | end, median | end, p95 | duration, median | duration, p95 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for phase in load().phases:
        if phase.id in errors:
            table = np.array(errors[phase.id]) / 1_000
            cells = []
            for column in table.T:
                cells += [f"{np.median(column):.0f}", f"{np.percentile(abs(column), 95):.0f}"]
            lines.append(f"| `{phase.id}` | {len(table)} | {' | '.join(cells)} |")
    only = [p.id for p in load().phases if Evidence.FUNCTION in seen[p.id] and p.id not in errors]
    lines += ["", "Seen by functions only: " + ", ".join(f"`{name}`" for name in only) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
