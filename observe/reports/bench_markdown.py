# SPDX-License-Identifier: Apache-2.0
"""A bench for pull requests and tickets: a Markdown table an arm, one of the differences.

Text from outside stands in code spans, where nothing is markup, a link or a mention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from observe.reports import bench_words as words
from observe.reports.bench_rows import ArmRows, Bench, DifferenceRow, MeasureRow, arm_rows, difference_rows
from observe.reports.compare_words import signed
from observe.reports.markdown import code
from observe.reports.terminal import Page

_HEAD = "| | n | p50 | 95% interval | p90 | 95% interval | p99 | 95% interval | max |"
_RULE = "|---|---:|---:|---|---:|---|---:|---|---:|"
_DIFFERENCES = "| base | new | | p50 of base | p50 of new | difference | | 95% interval |"
_DIFFERENCES_RULE = "|---|---|---|---:|---:|---:|---:|---|"


def render(bench: Bench, page: Page) -> str:
    """The whole bench, with a line end; of the page only its letters matter."""
    blocks = [page.dot.join(code(fact, page) for fact in words.facts(bench))]
    for rows in arm_rows(bench):
        blocks.extend(_arm(bench, rows, page))
    differences = list(difference_rows(bench))
    if differences:
        blocks.append("## Differences")
        blocks.append("\n".join([_DIFFERENCES, _DIFFERENCES_RULE, *(_difference(row, page) for row in differences)]))
    if bench.ended_early:
        blocks.append(f"**Ended early: {code(bench.ended_early, page)}**")
    advice = words.advice(bench)
    if advice:
        blocks.append(f"Which phases make the difference: {code(advice, page)}")
    blocks.append(words.legend(bench))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _arm(bench: Bench, rows: ArmRows, page: Page) -> Iterator[str]:
    yield f"## {code(rows.arm.name, page)}: {words.outcome(rows)}"
    yield page.dot.join(code(fact, page) for fact in words.settings(rows))
    yield "\n".join([_HEAD, _RULE, *(_measure(row, page) for row in rows.rows)]) if rows.rows else words.NOTHING
    yield "\n".join(f"- {code(warning, page)}" for warning in words.warnings(bench, rows))


def _measure(row: MeasureRow, page: Page) -> str:
    cells = [row.measure, str(row.n)]
    for percentile in (row.p50, row.p90, row.p99):
        cells += [page.duration(percentile.value_ns), words.range_of(percentile, page)]
    return _line([*cells, page.duration(row.max_ns)])


def _difference(row: DifferenceRow, page: Page) -> str:
    times = [page.duration(row.base_ns), page.duration(row.new_ns)]
    mark = "**" if row.is_clear else ""
    difference = f"{mark}{signed(row.difference_ns, page)}{mark}"
    names = [code(row.base, page), code(row.new, page)]
    return _line([*names, row.measure, *times, difference, words.growth(row), words.difference(row, page)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
