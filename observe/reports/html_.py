# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: a timeline each for few runs, percentiles and the slowest runs' timelines for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from observe.model import Run
from observe.reports import html_page
from observe.reports.html_run import Looks, Shown
from observe.reports.report import Report
from observe.reports.text import FEW_RUNS

#: No more events than this are in one file of many runs.
_MOST_EVENTS = 30_000


def render(report: Report) -> bytes:
    """UTF-8, complete in itself. Runs that bring their events along are shown with them."""
    if len(report.runs) > FEW_RUNS:
        return b""
    runs = [Shown(f"run-{number}", run, report.functions) for number, run in enumerate(report.runs, 1)]
    return html_page.render("report.html", report=report, title=_title(report.runs), runs=runs, looks_of=_looks)


def _looks(shown: Shown) -> Looks:
    return Looks.of([row.id for row in shown.line.rows])


def _title(runs: Sequence[Run]) -> str:
    """`docker create and start web`."""
    if not runs:
        return "Where the time went"
    names = {run.container_name for run in runs}
    operations = " and ".join(dict.fromkeys(run.operation for run in runs))
    (name, *others) = names
    return f"docker {operations} {'' if others else name or '(no name)'}".rstrip()
