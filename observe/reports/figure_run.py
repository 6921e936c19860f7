# SPDX-License-Identifier: Apache-2.0
"""One run as a picture: a waterfall of its phases, nested as they were, on the operation's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from observe.reports import words
from observe.reports.figure_sheet import (
    ALARM,
    GREY,
    INDENT_INCHES,
    INK,
    LINE,
    MARGIN_INCHES,
    OPERATION_COLOUR,
    PAGE,
    PALETTE,
    RIGHT_INCHES,
    ROW_INCHES,
    SMALL,
    UNATTRIBUTED_COLOUR,
    Fill,
    Line,
    Sheet,
    fit,
    flow,
    letters,
    ticks,
    title,
    width_inches,
)
from observe.reports.rows import Timeline, TimelineRow
from observe.reports.terminal import wall_time

_TITLE_INCHES, _HEAD_INCHES, _AXIS_INCHES, _GAP_INCHES = 0.36, 0.24, 0.5, 0.35
_LABELS_INCHES = 3.0  # at most
_SHARE_INCHES, _TIME_INCHES = 0.62, 0.95


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The panel of one run."""

    line: Timeline
    engine: str

    @property
    def height_inches(self) -> float:
        """Header, rows, axis, and what is said below it."""
        around = _TITLE_INCHES + _HEAD_INCHES + _AXIS_INCHES + _GAP_INCHES
        return around + ROW_INCHES * len(self.line.rows) + sum(line.height_inches for line in self._above + self._below)

    @property
    def looks(self) -> Sequence[Fill]:
        """How the bars look, for a legend."""
        return [fill for row, fill in zip(self.line.rows, self._fills, strict=True) if row.pieces]

    @property
    def _fills(self) -> Sequence[Fill]:
        tops = [row.id for row in self.line.rows if row.depth == 1 and row.evidence is not None]
        colours = {top: PALETTE[index % len(PALETTE)] for index, top in enumerate(tops)}
        return [_fill(row, colours) for row in self.line.rows]

    def draw(self, sheet: Sheet, top_inches: float) -> None:
        """Put it on the sheet."""
        run, rows = self.line.run, self.line.rows
        name = letters(run.container_name or "(no name)")
        duration = f": {PAGE.duration(run.duration_ns)}" if self.line.timed else ""
        title(sheet, top_inches + _TITLE_INCHES / 2, f"{letters(run.operation)} {name}{duration}", self.engine)
        y = top_inches + _TITLE_INCHES
        for line in self._above:
            line.draw(sheet, y)
            y += line.height_inches
        left = MARGIN_INCHES + 0.1 + self._labels_inches
        right = RIGHT_INCHES - _SHARE_INCHES - (_TIME_INCHES if self.line.timed else 0)
        self._head(sheet, y + _HEAD_INCHES / 2)
        y += _HEAD_INCHES
        sheet.bands(y, len(rows))
        axes = sheet.axes(left, y, right - left, ROW_INCHES * len(rows))
        self._axis(axes)
        for index, (row, fill) in enumerate(zip(rows, self._fills, strict=True)):
            self._row(sheet, y + (index + 0.5) * ROW_INCHES, row)
            whole = self._whole
            axes.barh(
                [index] * len(row.pieces),
                [length * whole for _, length in row.pieces],
                left=[start * whole for start, _ in row.pieces],
                height=0.6,
                **fill.style,
            )
        y += ROW_INCHES * len(rows)
        unit = "time since the request (ms)" if self.line.timed else "from the first to the last event: no times"
        sheet.text((left + right) / 2, y + 0.34, unit, size=SMALL, colour=GREY, side="center")
        y += _AXIS_INCHES
        for line in self._below:
            line.draw(sheet, y)
            y += line.height_inches

    @property
    def _whole(self) -> float:
        """What the axis shows: milliseconds, or nothing but an order."""
        return self.line.run.duration_ns / 1e6 if self.line.timed else 1.0

    @property
    def _labels_inches(self) -> float:
        widest = max(INDENT_INCHES * row.depth + width_inches(row.name, bold=not row.depth) for row in self.line.rows)
        return min(widest, _LABELS_INCHES) + 0.15

    @property
    def _above(self) -> list[Line]:
        run = self.line.run
        facts = [
            run.outcome,
            run.image,
            run.network and f"network {run.network}",
            (run.container_id or "")[:12],
            wall_time(run.wall_time_ns),
        ]
        lines = [Line(text) for text in flow((letters(fact) for fact in facts if fact), most=2)]
        if run.error:
            errors = flow(letters(f"error: {run.error}").split(), " ", most=3)
            lines.extend(Line(text, colour=ALARM) for text in errors)
        return lines

    @property
    def _below(self) -> list[Line]:
        run = self.line.run
        names = words.not_seen(self.line.not_seen, failed=run.outcome != "ok")
        lines = [Line(text) for text in flow([f"not seen: {names[0]}", *names[1:]], ", ")] if names else []
        departures = [letters(departure.text or departure.phase) for departure in run.departures]
        if departures:
            lines.extend(Line(text, INK) for text in flow([f"departures: {departures[0]}", *departures[1:]], "; "))
        return lines

    def _head(self, sheet: Sheet, y: float) -> None:
        sheet.text(MARGIN_INCHES + 0.1, y, "phase", size=SMALL, colour=GREY)
        if self.line.timed:
            sheet.text(RIGHT_INCHES - _SHARE_INCHES - 0.1, y, "time", size=SMALL, colour=GREY, side="right")
            sheet.text(RIGHT_INCHES - 0.1, y, "share", size=SMALL, colour=GREY, side="right")

    def _row(self, sheet: Sheet, y: float, row: TimelineRow) -> None:
        indent = INDENT_INCHES * row.depth
        label = fit(row.name, self._labels_inches - indent, bold=not row.depth)
        sheet.text(MARGIN_INCHES + 0.1 + indent, y, label, bold=not row.depth)
        if self.line.timed:
            time = "-" if row.duration_ns is None else PAGE.duration(row.duration_ns)
            sheet.text(RIGHT_INCHES - _SHARE_INCHES - 0.1, y, time, side="right")
            sheet.text(RIGHT_INCHES - 0.1, y, words.percent(row.share), colour=GREY, side="right")

    def _axis(self, axes: Axes) -> None:
        axes.set_xlim(0, self._whole)
        axes.set_ylim(len(self.line.rows) - 0.5, -0.5)
        axes.set_yticks([])
        ticks(axes.xaxis, 8)
        axes.grid(axis="x", color=LINE, linewidth=0.7)
        if not self.line.timed:
            axes.set_xticks([])


def _fill(row: TimelineRow, colours: dict[str, str]) -> Fill:
    if row.evidence is None:
        return Fill(UNATTRIBUTED_COLOUR)
    if not row.depth:
        return Fill(OPERATION_COLOUR, row.evidence)
    return Fill(colours[".".join(row.id.split(".")[:2])], row.evidence, row.at_floor)
