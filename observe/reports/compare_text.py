# SPDX-License-Identifier: Apache-2.0
"""The comparison for people in a terminal: what became of each operation, and which phases did it."""

from __future__ import annotations

from collections.abc import Sequence

from observe.reports import compare_words as words
from observe.reports.comparison import Comparison, OperationComparison, Row, Verdict
from observe.reports.layout import Bars, Column, table
from observe.reports.terminal import Page

_BOLD, _DIM, _RED, _GREEN, _YELLOW = "1", "2", "31", "32", "33"
_STYLES = {
    Verdict.SLOWER: _RED,
    Verdict.FASTER: _GREEN,
    Verdict.APPEARED: _YELLOW,
    Verdict.DISAPPEARED: _YELLOW,
}


def render(comparison: Comparison, page: Page) -> str:
    """The whole comparison, with a line end."""
    blocks = [_arms(comparison, page)]
    blocks.extend(_operation(operation, comparison.needed_runs, page) for operation in comparison.operations)
    if not comparison.operations:
        blocks.append(page.paragraph(words.NOTHING))
    blocks.append(_notes(comparison, page))
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _arms(comparison: Comparison, page: Page) -> list[str]:
    """Where both come from, and what else differs between them."""
    lines = page.paragraph(f"BASE  {comparison.base.name}", _DIM)
    lines.extend(page.paragraph(f"NEW   {comparison.new.name}", _DIM))
    for difference in comparison.differences:
        text = f"not the same {difference.what}: {difference.base} {_to(page)} {difference.new}"
        lines.extend(page.paragraph(text, _YELLOW))
    return lines


def _notes(comparison: Comparison, page: Page) -> list[str]:
    lines = [line for warning in words.warnings(comparison) for line in page.paragraph(f"warning: {warning}", _YELLOW)]
    return [*lines, *page.paragraph(words.legend(comparison), _DIM)]


def _operation(operation: OperationComparison, needed_runs: int, page: Page) -> list[str]:
    rows = operation.rows
    headline = words.headline(operation, needed_runs, page)
    title = page.style(operation.operation, _BOLD) + page.dot
    first, *more = words.groups(operation, page.safe)
    lines = [
        title + page.style(headline, f"{_BOLD};{_STYLES.get(rows[0].verdict, _DIM)}"),
        *(page.style(line, _DIM) for line in page.flow(first, ["", *more], page.dot)),
        *table(page, _columns(operation, page), [_row_style(row) for row in rows], _bars(rows)),
    ]
    for change in operation.departures:
        lines.extend(page.paragraph(words.departure(change, operation), _YELLOW if change.new_runs else _DIM))
    return lines


def _columns(operation: OperationComparison, page: Page) -> list[Column]:
    """The sign stands with the number it is about; `n` only tells what the line above has not."""
    rows = operation.rows
    signs = [words.arrow(row.verdict, page) for row in rows]
    counts = Column("n", [words.count(row) for row in rows], rank=4)
    whole = (operation.base.compared, operation.new.compared)
    return [
        Column("phase", [("  " if index else "") + row.name for index, row in enumerate(rows)], right=False),
        Column("base", [words.duration(row.base_median_ns, page) for row in rows], rank=1),
        Column("new", [words.duration(row.new_median_ns, page) for row in rows], rank=2),
        Column(
            "difference",
            [f"{sign} {words.signed(row.difference_ns, page)}".lstrip() for sign, row in zip(signs, rows, strict=True)],
        ),
        Column("", [words.growth(row) for row in rows], rank=3),
        Column("95% interval", [words.interval(row, page) for row in rows]),
        *([counts] if any((row.base_n, row.new_n) != whole for row in rows) else []),
        Column("own", [words.own(row, page) if index else "" for index, row in enumerate(rows)]),
    ]


def _bars(rows: Sequence[Row]) -> Bars:
    """How large each contribution is; the column before tells its sign. No bar for what may be chance."""
    lengths_ns = [abs(row.contribution_ns or 0) for row in rows]
    longest_ns = max(lengths_ns) or 1.0
    return Bars(
        rows=[
            [(0.0, length_ns / longest_ns)] if length_ns and row.own_verdict in _STYLES else []
            for row, length_ns in zip(rows, lengths_ns, strict=True)
        ],
        styles=[_STYLES.get(row.own_verdict, "") for row in rows],
        head=lambda _cells: "",
    )


def _row_style(row: Row) -> str:
    if row.is_marked:
        return _BOLD
    return "" if row.verdict in _STYLES else _DIM


def _to(page: Page) -> str:
    return "→" if page.unicode else "->"
