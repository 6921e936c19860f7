# SPDX-License-Identifier: Apache-2.0
"""Columns of text that fit a page: the least important ones go first, the bars take what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from observe.reports.terminal import Page

#: Fewest columns in which bars still say something.
_MIN_BAR = 12
_GAP = "  "
_HEAD_STYLE = "2"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of cells. `rank` 0 always stays; of the others, the highest goes first when room is short."""

    head: str
    cells: Sequence[str]
    right: bool = True
    rank: int = 0

    @property
    def width(self) -> int:
        """Columns of the widest cell."""
        return max(map(len, (self.head, *self.cells)))

    def pad(self, cell: str) -> str:
        """The cell at the column's width."""
        return cell.rjust(self.width) if self.right else cell.ljust(self.width)


@dataclass(frozen=True, slots=True)
class Bars:
    """The last column: for each row pieces as shares of the line; `head` is given the columns it has."""

    rows: Sequence[Sequence[tuple[float, float]]]
    styles: Sequence[str]
    head: Callable[[int], str]


def table(page: Page, columns: Sequence[Column], styles: Sequence[str], bars: Bars | None = None) -> list[str]:
    """Lines of a table: its head, then one line a row. `styles` are SGR codes, one a row."""
    kept = list(columns)
    room = page.width - (_MIN_BAR + len(_GAP) if bars else 0)
    while _width(kept) > room and any(column.rank for column in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    cells = max(page.width - _width(kept) - len(_GAP), 1)
    head = _GAP.join(column.pad(column.head) for column in kept)
    if bars:
        head += _GAP + bars.head(cells)
    lines = [page.style(head.rstrip(), _HEAD_STYLE)]
    for index, style in enumerate(styles):
        text = _GAP.join(column.pad(column.cells[index]) for column in kept)
        bar = page.bar(bars.rows[index], cells) if bars else ""
        if bars and bar:
            lead = len(bar) - len(bar.lstrip())
            lines.append(page.style(text, style) + _GAP + bar[:lead] + page.style(bar[lead:], bars.styles[index]))
        else:
            lines.append(page.style(text.rstrip(), style))
    return lines


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * max(len(columns) - 1, 0)
