# SPDX-License-Identifier: Apache-2.0
"""A bench for people in a terminal: a table an arm, then what is different."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from observe.reports import bench_words as words
from observe.reports.bench_rows import ArmRows, Bench, DifferenceRow, MeasureRow, arm_rows, difference_rows
from observe.reports.compare_words import signed
from observe.reports.layout import Column, table
from observe.reports.terminal import Page

_BOLD, _DIM, _YELLOW = "1", "2", "33"


def render(bench: Bench, page: Page) -> str:
    """The whole bench, with a line end."""
    blocks = [[page.style(line, _DIM) for line in page.flow("bench", ["", *_safe(words.facts(bench), page)], page.dot)]]
    blocks.extend(_arm(bench, rows, page) for rows in arm_rows(bench))
    blocks.append(_differences(list(difference_rows(bench)), page))
    blocks.append(_notes(bench, page))
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _safe(texts: Iterable[str], page: Page) -> list[str]:
    return [page.safe(text) for text in texts]


def _arm(bench: Bench, rows: ArmRows, page: Page) -> list[str]:
    facts = [words.outcome(rows), *words.settings(rows), *([rows.arm.path] if rows.arm.path else [])]
    name = page.style(page.safe(rows.arm.name), _BOLD)
    lines = page.flow(name, ["", *_safe(facts, page)], page.dot)
    lines.extend(_measures(rows.rows, page) if rows.rows else [words.NOTHING])
    for warning in words.warnings(bench, rows):
        lines.extend(page.paragraph(warning, _YELLOW))
    return lines


def _measures(rows: Sequence[MeasureRow], page: Page) -> list[str]:
    columns = [Column("", [row.measure for row in rows], right=False), Column("n", [str(row.n) for row in rows])]
    for name, rank in (("p50", 0), ("p90", 2), ("p99", 4)):
        found = [getattr(row, name) for row in rows]
        columns.append(Column(name, [page.duration(one.value_ns) for one in found], rank=rank))
        columns.append(Column("95% interval", [words.range_of(one, page) for one in found], right=False, rank=rank + 1))
    columns.append(Column("max", [page.duration(row.max_ns) for row in rows], rank=6))
    return table(page, columns, [""] * len(rows))


def _differences(rows: Sequence[DifferenceRow], page: Page) -> list[str]:
    if not rows:
        return []
    columns = [
        Column("base", [page.safe(row.base) for row in rows], right=False),
        Column("new", [page.safe(row.new) for row in rows], right=False),
        Column("", [row.measure for row in rows], right=False),
        Column("p50", [page.duration(row.base_ns) for row in rows], rank=2),
        Column("p50", [page.duration(row.new_ns) for row in rows], rank=2),
        Column("difference", [signed(row.difference_ns, page) for row in rows]),
        Column("", [words.growth(row) for row in rows], rank=1),
        Column("95% interval", [words.difference(row, page) for row in rows], right=False),
    ]
    return table(page, columns, [_BOLD if row.is_clear else "" for row in rows])


def _notes(bench: Bench, page: Page) -> list[str]:
    lines = page.paragraph(f"ended early: {bench.ended_early}", _YELLOW) if bench.ended_early else []
    advice = words.advice(bench)
    if advice:
        lines.extend(["which phases make the difference:", f"  {page.safe(advice)}"])
    return [*lines, *page.paragraph(words.legend(bench), _DIM)]
