# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: a timeline each for few runs, percentiles and the slowest runs' timelines for many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from observe.model import Run
from observe.reports import html_page
from observe.reports.html_many import ManyRuns, with_timelines
from observe.reports.html_run import Shown, name_of
from observe.reports.report import Report
from observe.reports.rows import summarise
from observe.reports.text import FEW_RUNS

#: A file of many runs has no more events than this; further timelines are left out.
MOST_EVENTS = 30_000


def render(report: Report) -> bytes:
    """UTF-8, complete in itself. Runs that bring their events along are shown with them."""
    many = len(report.runs) > FEW_RUNS
    summaries = summarise(report.runs) if many else ()
    runs = list(_shown(shown_runs(report), report, MOST_EVENTS if many else None))
    keys = {id(shown.run): shown.key for shown in runs}
    return html_page.render(
        "report.html",
        report=report,
        title=_title(report.runs),
        summaries=[ManyRuns(summary, report, keys) for summary in summaries],
        runs=runs,
        failed=any(summary.failures for summary in summaries),
    )


def shown_runs(report: Report) -> Sequence[Run]:
    """The runs whose timelines are in the file: few runs all, of many the slowest and some of those that failed."""
    if len(report.runs) <= FEW_RUNS:
        return report.runs
    return [run for summary in summarise(report.runs) for run in with_timelines(summary)]


def _shown(runs: Iterable[Run], report: Report, most_events: int | None) -> Iterator[Shown]:
    room = most_events
    for number, run in enumerate(runs, 1):
        fits = room is None or len(run.events) <= room
        if room is not None and fits:
            room -= len(run.events)
        yield Shown(f"run-{number}", run, report.functions, embedded=fits)


def _title(runs: Sequence[Run]) -> str:
    """`docker create and start web`."""
    if not runs:
        return "Where the time went"
    operations = " and ".join(dict.fromkeys(run.operation for run in runs))
    if len(runs) > FEW_RUNS:
        return f"docker {operations}: {len(runs):,} runs"
    names = {name_of(run) for run in runs}
    return f"docker {operations} {names.pop()}" if len(names) == 1 else f"docker {operations}: {len(names)} containers"
