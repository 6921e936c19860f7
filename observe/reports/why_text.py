# SPDX-License-Identifier: Apache-2.0
"""`report --why` for people in a terminal: what follows the report itself."""

from __future__ import annotations

from observe.reports import words
from observe.reports.layout import Bars, Column, table
from observe.reports.report import Report
from observe.reports.terminal import Page
from observe.reports.text import FEW_RUNS
from observe.reports.why_rows import Link, WhyMany, WhyRun, why_many, why_run
from observe.reports.why_words import NOT_RECORDED, evidence, remedy, spent

_BOLD, _DIM, _CYAN, _GREEN = "1", "2", "36", "32"


def render(report: Report, page: Page) -> str:
    """One block a run, or one an operation of many; with a line end. Empty if there is no run."""
    blocks: list[list[str]] = []
    if len(report.runs) <= FEW_RUNS:
        blocks.extend(_run(found, page) for run in report.runs if (found := why_run(run)))
    else:
        blocks.extend(_many(found, page) for found in why_many(report.runs))
    if report.runs and not blocks:
        blocks.append(page.paragraph(NOT_RECORDED))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n" if blocks else ""


def _run(why: WhyRun, page: Page) -> list[str]:
    run = why.run
    title = f"why {run.operation} {page.safe(run.container_name or '(no name)')} took {page.duration(run.duration_ns)}"
    lines = [page.style(title, _BOLD)]
    lines += page.flow("", list(spent(why.time, run.duration_ns, page)), page.dot)
    for number, row in enumerate(why.causes, start=1):
        head = f"{number}. {page.duration(row.cause.duration_ns)} ({words.percent(row.share)}): {row.cause.text}"
        lines += ["", *page.paragraph(head, _BOLD)]
        for step in row.evidence:
            lines += page.paragraph(evidence(step, run.start_ns, page), _DIM, indent=3)
        if row.cause.remedy:
            lines += page.paragraph(remedy(row.cause.remedy), _GREEN, indent=3)
    if why.others:
        lines += ["", f"and {words.count(why.others, 'smaller one', 'smaller ones')}: {page.duration(why.others_ns)}"]
    return [*lines, "", page.style("critical path", _BOLD), *_path(why.links, run.duration_ns, page)]


def _path(links: tuple[Link, ...], whole_ns: int, page: Page) -> list[str]:
    columns = [
        Column("at", [page.duration(link.start_ns) for link in links]),
        Column("time", [page.duration(link.duration_ns) for link in links]),
        Column("program", [page.shorten(page.safe(link.program or "?"), 30) for link in links], right=False),
        Column("CPU", [_time(link.time.cpu_ns, page) for link in links], rank=2),
        Column("run queue", [_time(link.time.runqueue_ns, page) for link in links], rank=3),
        Column("blocked", [_time(sum(link.time.blocked_ns.values()), page) for link in links], rank=2),
        Column("mostly in", [link.phase.rpartition(".")[2] for link in links], right=False, rank=1),
    ]
    bars = Bars(
        rows=[[(link.start_ns / whole_ns, link.duration_ns / whole_ns)] for link in links],
        styles=[_CYAN] * len(links),
        head=lambda _cells: "",
    )
    return table(page, columns, [""] * len(links), bars)


def _time(duration_ns: int, page: Page) -> str:
    return page.duration(duration_ns) if duration_ns else ""


def _many(why: WhyMany, page: Page) -> list[str]:
    lines = [page.style(f"why {why.runs} times {why.operation} took their time, on average", _BOLD)]
    lines += page.flow("", list(spent(why.mean, why.mean_ns, page)), page.dot)
    for number, row in enumerate(why.causes, start=1):
        median, high = page.duration(row.p50_ns), page.duration(row.p90_ns)
        share, runs = words.percent(row.share), words.count(row.n, "run", "runs")
        head = f"{number}. p50 {median}, p90 {high} ({share}; in {runs}): {row.text}"
        lines += ["", *page.paragraph(head, _BOLD)]
        if row.remedy:
            lines += page.paragraph(remedy(row.remedy), _GREEN, indent=3)
    return lines
