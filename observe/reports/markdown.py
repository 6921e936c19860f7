# SPDX-License-Identifier: Apache-2.0
"""The report for issues, wikis and pull requests: the rows of the text report as Markdown tables.

Text from outside stands in code spans, where nothing is markup, a link, a mention or a formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from observe.model import Departure, Run
from observe.phases import load
from observe.reports import words
from observe.reports.report import Report
from observe.reports.rows import DepartureCount, StatsRow, Summary, Timeline, TimelineRow, summarise, timeline
from observe.reports.terminal import Page, wall_time
from observe.reports.text import FEW_RUNS

_INDENT = "&emsp;"


def render(report: Report, page: Page) -> str:
    """The whole report, with a line end; of the page only its letters matter."""
    blocks = ["# Where the time went", page.dot.join(code(fact, page) for fact in words.origin(report))]
    if not report.runs:
        blocks.extend([words.NO_RUN, f"{words.NO_RUN_HINT} `{words.NO_RUN_COMMAND}`"])
    elif len(report.runs) <= FEW_RUNS:
        for run in report.runs:
            blocks.extend(_timeline(timeline(run), page))
    else:
        for summary in summarise(report.runs):
            blocks.extend(_summary(summary, page))
    blocks.extend(_notes(report, page))
    return "\n\n".join(block for block in blocks if block) + "\n"


# One run ---------------------------------------------------------------------------------------------------


def _timeline(line: Timeline, page: Page) -> Iterable[str]:
    run = line.run
    yield f"## {run.operation} {code(run.container_name or '(no name)', page)}"
    yield _facts(run, page)
    yield _error(run, page)
    titles = {phase.id: phase.title for phase in load().phases}
    yield markdown_table(
        ("phase", "", "time", "share", "own", "calls", "files", "evidence"),
        "llrrrrrl",
        [_timeline_cells(row, titles.get(row.id, "") if row.depth else "", page) for row in line.rows],
    )
    if not line.timed:
        yield "Its events have an order, no times."
    yield _list("Not seen:", words.not_seen(line.not_seen, failed=run.outcome != "ok"))
    yield "\n".join(f"- departure: {_departure(departure, page)}" for departure in run.departures)


def _timeline_cells(row: TimelineRow, title: str, page: Page) -> Sequence[str]:
    return (
        _INDENT * row.depth + row.name,
        title,
        _duration(row.duration_ns, page),
        words.percent(row.share),
        _duration(row.self_ns, page) if row.depth else "",
        str(row.syscalls or ""),
        str(row.file_events or ""),
        words.evidence(row),
    )


def _facts(run: Run, page: Page) -> str:
    """How it ended, how long it took, then who and when."""
    facts = [
        code(run.outcome, page),
        page.duration(run.duration_ns) if run.duration_ns else "",
        code((run.container_id or "")[:12], page),
        code(run.image or "", page),
        run.network and f"network {code(run.network, page)}",
        wall_time(run.wall_time_ns),
    ]
    return page.dot.join(fact for fact in facts if fact)


def _error(run: Run, page: Page) -> str:
    return f"Error: {code(run.error, page)}" if run.error else ""


# Many runs -------------------------------------------------------------------------------------------------


def _summary(summary: Summary, page: Page) -> Iterable[str]:
    yield f"## {summary.operation}"
    yield page.dot.join(
        [
            f"{len(summary.runs)} runs",
            *(f"{count} {code(outcome, page)}" for outcome, count in summary.outcomes.items()),
        ]
    )
    head = ("phase", "n", "p50", "p90", "p99", "max", "share")
    yield markdown_table(head, "lrrrrrr", [_stats_cells(row, page) for row in summary.rows])
    yield _list("Not seen in any run:", words.not_seen(summary.not_seen, failed=bool(summary.failures)))
    yield "\n".join(
        f"- departure in {departure.runs} of {len(summary.runs)} runs: {_departure(departure, page)}"
        for departure in summary.departures
    )
    if summary.slowest:
        yield "### Slowest"
        yield markdown_table(
            ("time", "container", "id", "network", "most above the median", "when"),
            "rlllll",
            [
                (
                    *_who(slow.run, page),
                    f"{slow.phase.rpartition('.')[2]} +{page.duration(slow.excess_ns)}" if slow.excess_ns > 0 else "",
                    wall_time(slow.run.wall_time_ns),
                )
                for slow in summary.slowest
            ],
        )
    if summary.failures:
        yield "### Not ok"
        rows = [(*_who(run, page), code(run.outcome, page), code(run.error or "", page)) for run in summary.failures]
        yield markdown_table(("time", "container", "id", "network", "outcome", "error"), "rlllll", rows)


def _stats_cells(row: StatsRow, page: Page) -> Sequence[str]:
    times = (_duration(value, page) for value in (row.p50_ns, row.p90_ns, row.p99_ns, row.max_ns))
    return (_INDENT * row.depth + row.name, str(row.n), *times, words.percent(row.share))


def _who(run: Run, page: Page) -> Sequence[str]:
    names = (run.container_name or "(no name)", (run.container_id or "")[:12], run.network or "")
    return (page.duration(run.duration_ns), *(code(name, page) for name in names))


# Both ------------------------------------------------------------------------------------------------------


def _notes(report: Report, page: Page) -> Iterable[str]:
    yield "**Data was lost.**" if report.loss.data_was_lost else "Nothing lost."
    lost = words.counted(report.loss)
    if lost:
        yield markdown_table(("counter", "count"), "lr", [(name, str(count)) for name, count in lost.items()])
    yield "\n".join(f"- warning: {code(warning, page)}" for warning in report.warnings)


def _departure(departure: Departure | DepartureCount, page: Page) -> str:
    return f"{departure.kind.replace('_', ' ')}: {code(departure.text or departure.phase, page)}"


def _list(first: str, names: Sequence[str]) -> str:
    return f"{first} {', '.join(names)}" if names else ""


def _duration(duration_ns: float | None, page: Page) -> str:
    return "-" if duration_ns is None else page.duration(duration_ns)


def code(text: str, page: Page) -> str:
    """Text from outside as a code span; empty if there is none."""
    safe = page.safe(text)
    if not safe:
        return ""
    # A fence longer than any in the text; spaces keep its backticks apart from the text's.
    fence = "`" * (max((len(run) for run in re.findall("`+", safe)), default=0) + 1)
    space = " " if safe.startswith("`") or safe.endswith("`") else ""
    return f"{fence}{space}{safe}{space}{fence}"


def markdown_table(head: Sequence[str], sides: str, rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns also line up where it is read as plain text; `sides` has l or r for each column."""
    # Parsers do not agree on what an escaped bar in a code span is.
    cells = [[cell.replace("|", "\\x7c") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    ruler = ["-" * (width - 1) + ":" if side == "r" else "-" * width for side, width in zip(sides, widths, strict=True)]
    lines = [
        [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, side, width in zip(row, sides, widths, strict=True)
        ]
        for row in cells
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ruler, *lines[1:]))
