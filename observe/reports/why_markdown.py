# SPDX-License-Identifier: Apache-2.0
"""`report --why` for issues, wikis and pull requests: what follows the report itself."""

from __future__ import annotations

from collections.abc import Iterable

from observe.reports import words
from observe.reports.markdown import code, markdown_table
from observe.reports.report import Report
from observe.reports.terminal import Page
from observe.reports.text import FEW_RUNS
from observe.reports.why_rows import WhyMany, WhyRun, why_many, why_run
from observe.reports.why_words import NOT_RECORDED, evidence, remedy, spent


def render(report: Report, page: Page) -> str:
    """One chapter a run, or one an operation of many; with a line end. Empty if there is no run."""
    blocks: list[str] = []
    if len(report.runs) <= FEW_RUNS:
        for run in report.runs:
            found = why_run(run)
            blocks.extend(_run(found, page) if found else ())
    else:
        for many in why_many(report.runs):
            blocks.extend(_many(many, page))
    if report.runs and not blocks:
        blocks.append(NOT_RECORDED)
    return "\n\n".join(block for block in blocks if block) + "\n" if blocks else ""


def _run(why: WhyRun, page: Page) -> Iterable[str]:
    run = why.run
    name = code(run.container_name or "(no name)", page)
    yield f"## Why {run.operation} {name} took {page.duration(run.duration_ns)}"
    yield page.dot.join(spent(why.time, run.duration_ns, page))
    for number, row in enumerate(why.causes, start=1):
        duration, share = page.duration(row.cause.duration_ns), words.percent(row.share)
        lines = [f"{number}. **{duration}** ({share}): {code(row.cause.text, page)}"]
        lines += [f"   - {code(evidence(step, run.start_ns, page), page)}" for step in row.evidence]
        if row.cause.remedy:
            lines.append(f"   - {remedy(row.cause.remedy)}")
        yield "\n".join(lines)
    if why.others:
        yield f"And {words.count(why.others, 'smaller one', 'smaller ones')}: {page.duration(why.others_ns)}."
    yield "### Critical path"
    yield markdown_table(
        ("at", "time", "program", "CPU", "run queue", "blocked", "mostly in"),
        "rrlrrrl",
        [
            (
                page.duration(link.start_ns),
                page.duration(link.duration_ns),
                code(link.program or "?", page),
                _time(link.time.cpu_ns, page),
                _time(link.time.runqueue_ns, page),
                _time(sum(link.time.blocked_ns.values()), page),
                link.phase,
            )
            for link in why.links
        ],
    )


def _many(why: WhyMany, page: Page) -> Iterable[str]:
    yield f"## Why {why.runs} times {why.operation} took their time"
    yield markdown_table(
        ("cause", "runs", "p50", "p90", "share", "in words (of the longest)"),
        "lrrrrl",
        [
            (
                row.id,
                str(row.n),
                page.duration(row.p50_ns),
                page.duration(row.p90_ns),
                words.percent(row.share),
                code(row.text, page),
            )
            for row in why.causes
        ],
    )
    yield "\n".join(f"- {row.id}: {remedy(row.remedy)}" for row in why.causes if row.remedy)


def _time(duration_ns: int, page: Page) -> str:
    return page.duration(duration_ns) if duration_ns else ""
