# SPDX-License-Identifier: Apache-2.0
"""A few lines for the end of a recording: each operation with its largest phases."""

from __future__ import annotations

from observe.model import Loss, Run, Span
from observe.reports.report import Report
from observe.reports.terminal import Page

#: How many operations, and how many phases of each, are named.
_RUNS = 8
_PHASES = 3


def render(report: Report, page: Page) -> str:
    """One line an operation, the slowest first if there are many; then what was lost. Ends with a line end."""
    runs = report.runs
    if len(runs) > _RUNS:
        runs = tuple(sorted(runs, key=lambda run: -run.duration_ns)[:_RUNS])
    lines = [_line(run, page) for run in runs]
    if len(report.runs) > _RUNS:
        lines.append(f"and {len(report.runs) - _RUNS} faster ones")
    if not lines:
        lines.append("no docker create and no docker start was seen")
    if report.loss.data_was_lost:
        lines.append(f"data was lost: {_lost(report.loss)}")
    return "\n".join(lines) + "\n"


def _line(run: Run, page: Page) -> str:
    name = page.shorten(page.safe(run.container_name or (run.container_id or "?")[:12]), 24)
    phases = sorted((span for span in run.phases[1:] if span.self_ns), key=lambda span: -(span.self_ns or 0))
    largest = [f"{span.id.rpartition('.')[2]} {_share(span, run)}" for span in phases[:_PHASES]]
    outcome = "" if run.outcome == "ok" else f" {run.outcome}"
    facts = [page.duration(run.duration_ns).rjust(9) + outcome, *largest]
    return f"{run.operation:<6} {name:<24} {page.dot.join(facts)}"


def _share(span: Span, run: Run) -> str:
    return f"{(span.self_ns or 0) / run.duration_ns:.0%}" if run.duration_ns else "0%"


def _lost(loss: Loss) -> str:
    counts = {
        "records": loss.ring_buffer,
        "skipped runs of programs": loss.program_misses,
        "processes": loss.lineage,
        "inotify overflows": loss.inotify_overflows,
        "unwatched directories": loss.inotify_watches,
        "damaged bytes": loss.damaged_bytes,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
