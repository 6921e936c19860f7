# SPDX-License-Identifier: Apache-2.0
"""The comparison for pull requests and tickets: a Markdown table an operation.

Text from outside stands in code spans, where nothing is markup, a link or a mention.
"""

from __future__ import annotations

from collections.abc import Iterator

from observe.reports import compare_words as words
from observe.reports.comparison import Comparison, OperationComparison, Row
from observe.reports.markdown import code
from observe.reports.terminal import Page

_HEAD = "| phase | base | new | difference | growth | 95% interval | own time | n |"
_RULE = "|---|---:|---:|---:|---:|---|---:|---:|"


def render(comparison: Comparison, page: Page) -> str:
    """The whole comparison, with a line end; of the page only its letters matter."""
    blocks = [_arms(comparison, page)]
    for operation in comparison.operations:
        blocks.extend(_operation(operation, comparison.needed_runs, page))
    if not comparison.operations:
        blocks.append(f"{words.NOTHING}.")
    blocks.append("\n".join(f"- warning: {code(warning, page)}" for warning in words.warnings(comparison)))
    blocks.append(words.legend(comparison))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _arms(comparison: Comparison, page: Page) -> str:
    lines = [f"- BASE: {code(comparison.base.name, page)}", f"- NEW: {code(comparison.new.name, page)}"]
    for difference in comparison.differences:
        what, base, new = (code(part, page) for part in (difference.what, difference.base, difference.new))
        lines.append(f"- not the same {what}: {base}, now {new}")
    return "\n".join(lines)


def _operation(operation: OperationComparison, needed_runs: int, page: Page) -> Iterator[str]:
    yield f"## {operation.operation}: {words.headline(operation, needed_runs, page)}"
    yield "; ".join(words.groups(operation, lambda outcome: code(outcome, page)))
    yield "\n".join([_HEAD, _RULE, *(_row(row, page) for row in operation.rows)])
    yield "\n".join(f"- {words.departure(change, operation)}" for change in operation.departures)


def _row(row: Row, page: Page) -> str:
    cells = (
        f"`{row.id}`",
        words.duration(row.base_median_ns, page),
        words.duration(row.new_median_ns, page),
        f"{words.arrow(row.verdict, page)} {words.signed(row.difference_ns, page)}".strip(),
        words.growth(row),
        words.interval(row, page),
        words.own(row, page),
        words.count(row),
    )
    mark = "**" if row.is_marked else ""
    return f"| {' | '.join(f'{mark}{cell}{mark}' for cell in cells)} |"
