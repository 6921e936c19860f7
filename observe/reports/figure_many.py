# SPDX-License-Identifier: Apache-2.0
"""Many runs of one operation as a picture: each run's time stacked by phase, in time order, and its distributions.

The stack is of the phases below the operation, each with the own time of all that is in it, and the unattributed time:
together they are the run's duration. The largest phases have a colour of their own, in both parts of the picture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from observe.model import Evidence, Run
from observe.reports import words
from observe.reports.figure_sheet import (
    GREY,
    INDENT_INCHES,
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
    lighter,
    number_format,
    ticks,
    title,
    width_inches,
)
from observe.reports.rows import UNATTRIBUTED, StatsRow, Summary
from observe.reports.terminal import wall_time

#: Phases without a colour of their own.
_OTHER = "other phases"
_OTHER_COLOUR = "#7f7f7f"
#: More runs than this are drawn as means of neighbours; with fewer than _GAPS, the columns stand apart.
_COLUMNS, _GAPS = 200, 60
#: Up to so many runs are also drawn one by one in the distributions.
_DOTS = 200
#: From this ratio of the longest to the shortest on, the axis is logarithmic.
_WIDE = 20
#: A logarithmic axis spans no more than this; what is shorter stands at its left end.
_DECADES = 7
#: Up to so many decades have labels at 2 and 5 too.
_LABELLED_DECADES = 3

_TITLE_INCHES, _CAPTION_INCHES, _HEAD_INCHES, _AXIS_INCHES, _GAP_INCHES = 0.36, 0.3, 0.24, 0.55, 0.35
_STACK_INCHES, _TICKS_INCHES, _KEY_INCHES = 2.3, 0.75, 2.3
_LABELS_INCHES = 3.0  # at most
_NUMBERS_INCHES = (0.85, 0.85, 0.6)  # p99, p50, n: from the right


@dataclass(frozen=True)
class Many:
    """The panel of the runs of one operation."""

    summary: Summary
    engine: str

    @property
    def height_inches(self) -> float:
        """Header, stack, distributions, and what is said below them."""
        texts = _TITLE_INCHES + sum(line.height_inches for line in self._above + self._below) + _GAP_INCHES
        if not self._timed:
            return texts
        return texts + 2 * (_CAPTION_INCHES + _AXIS_INCHES) + _STACK_INCHES + _HEAD_INCHES + self._rows_inches

    @property
    def looks(self) -> Sequence[Fill]:
        """How the bars look, for a legend."""
        return [self._fill(row) for row in self.summary.rows if row.n] if self._timed else []

    def draw(self, sheet: Sheet, top_inches: float) -> None:
        """Put it on the sheet."""
        words_of = f"{letters(self.summary.operation)}: {_count(self.summary.runs)}"
        title(sheet, top_inches + _TITLE_INCHES / 2, words_of, self.engine)
        y = top_inches + _TITLE_INCHES
        for line in self._above:
            line.draw(sheet, y)
            y += line.height_inches
        if self._timed:
            y = self._draw_stack(sheet, y)
            y = self._draw_distributions(sheet, y)
        for line in self._below:
            line.draw(sheet, y)
            y += line.height_inches

    # What is shown -----------------------------------------------------------------------------------------

    @property
    def _timed(self) -> bool:
        return any(run.duration_ns for run in self.summary.measured)

    @property
    def _rows_inches(self) -> float:
        return ROW_INCHES * len(self.summary.rows)

    @property
    def _above(self) -> list[Line]:
        summary = self.summary
        whole = summary.rows[0]
        facts = [f"{count} {outcome}" for outcome, count in summary.outcomes.items()]
        if len(summary.measured) < len(summary.runs):
            facts.append("shown are those that went well")
        if self._timed and whole.p50_ns is not None and whole.p99_ns is not None:
            facts.append(f"median {PAGE.duration(whole.p50_ns)}")
            facts.append(f"p99 {PAGE.duration(whole.p99_ns)}")
        first, last = (wall_time(run.wall_time_ns) for run in (summary.runs[0], summary.runs[-1]))
        if first and last:
            facts.append(f"from {first} to {last}")
        if not self._timed:
            facts.append("their events have an order, no times")
        return [Line(text) for text in flow((letters(fact) for fact in facts), most=2)]

    @property
    def _below(self) -> list[Line]:
        summary = self.summary
        names = words.not_seen(summary.not_seen, failed=bool(summary.failures))
        lines = [Line(text) for text in flow([f"not seen in any run: {names[0]}", *names[1:]], ", ")] if names else []
        if summary.departures:
            count = sum(bool(run.departures) for run in summary.runs)
            lines.append(Line(f"{count} of {_count(summary.runs)} left the documented order"))
        return lines

    @cached_property
    def _stack(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """Name → milliseconds of each run, those with a colour of their own first, unattributed last."""
        totals_ns: Counter[str] = Counter()
        for run in self.summary.measured:
            totals_ns.update(_by_top(run))
        kept = {top for top, _ in totals_ns.most_common(len(PALETTE))}
        # One more than there are colours needs no word that covers it alone.
        order = [top for top in dict.fromkeys(row.id for row in self.summary.rows if row.depth == 1) if top in kept]
        names = [*order, *([_OTHER] if len(totals_ns) > len(kept) else []), UNATTRIBUTED]
        columns = {name: np.zeros(len(self.summary.measured)) for name in names}
        for index, run in enumerate(self.summary.measured):
            for top, own_ns in _by_top(run).items():
                columns[top if top in kept else _OTHER][index] += own_ns / 1e6
            columns[UNATTRIBUTED][index] += run.unattributed_ns / 1e6
        return columns

    @cached_property
    def _colours(self) -> Mapping[str, str]:
        fixed = {_OTHER: _OTHER_COLOUR, UNATTRIBUTED: UNATTRIBUTED_COLOUR}
        own = (name for name in self._stack if name not in fixed)
        return {**dict(zip(own, PALETTE, strict=False)), **fixed}

    @cached_property
    def _durations_ms(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """Row → its durations, one a run in which it was seen."""
        durations_ms: dict[str, list[float]] = {row.id: [] for row in self.summary.rows}
        for run in self.summary.measured:
            of_run: Counter[str] = Counter()
            for span in run.phases:
                if span.duration_ns is not None:
                    of_run[span.id] += span.duration_ns
            of_run[UNATTRIBUTED] = run.unattributed_ns
            for phase, duration_ns in of_run.items():
                durations_ms[phase].append(duration_ns / 1e6)
        return {phase: np.array(values) for phase, values in durations_ms.items()}

    @cached_property
    def _by_kernel(self) -> set[str]:
        """Phases that some run knows by kernel evidence only: the weakest evidence is what a distribution stands on."""
        return {span.id for run in self.summary.measured for span in run.phases if span.evidence is Evidence.KERNEL}

    def _fill(self, row: StatsRow) -> Fill:
        if row.id == UNATTRIBUTED:
            return Fill(UNATTRIBUTED_COLOUR)
        evidence = Evidence.KERNEL if row.id in self._by_kernel else Evidence.FUNCTION
        if not row.depth:
            return Fill(OPERATION_COLOUR, evidence)
        return Fill(self._colours.get(_top(row.id), _OTHER_COLOUR), evidence)

    # The stack ---------------------------------------------------------------------------------------------

    def _draw_stack(self, sheet: Sheet, y: float) -> float:
        n = len(self.summary.measured)
        size = math.ceil(n / _COLUMNS)
        caption = "Each run, in time order" if size == 1 else f"All runs, in time order: a column is the mean of {size}"
        sheet.text(MARGIN_INCHES, y + _CAPTION_INCHES / 2, caption, bold=True)
        y += _CAPTION_INCHES
        left = MARGIN_INCHES + _TICKS_INCHES
        axes = sheet.axes(left, y, RIGHT_INCHES - _KEY_INCHES - left, _STACK_INCHES)
        starts = np.arange(0, n, size)
        widths = np.diff([*starts, n])
        bottom = np.zeros(len(starts))
        for name, values in self._stack.items():
            heights = np.add.reduceat(values, starts) / widths
            _columns(axes, self._colours[name], starts=starts, widths=widths, bottom=bottom, heights=heights)
            bottom += heights
        axes.set_xlim(0.5, n + 0.5)
        axes.set_ylim(0, float(bottom.max()) * 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        ticks(axes.yaxis, 5)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.set_ylabel("duration (ms)", fontsize=SMALL, color=GREY)
        self._key(sheet, y)
        y += _STACK_INCHES + _AXIS_INCHES
        middle = (left + RIGHT_INCHES - _KEY_INCHES) / 2
        sheet.text(middle, y - 0.2, "run", size=SMALL, colour=GREY, side="center")
        return y

    def _key(self, sheet: Sheet, y: float) -> None:
        """The colours, in the order in which they are stacked."""
        x = RIGHT_INCHES - _KEY_INCHES + 0.2
        for index, name in enumerate(reversed(list(self._stack))):
            middle = y + (index + 0.5) * 0.24
            sheet.box(x, middle - 0.06, 0.16, 0.12, Fill(self._colours[name]).style)
            sheet.text(x + 0.26, middle, fit(_last(name), RIGHT_INCHES - x - 0.26, SMALL), size=SMALL)

    # The distributions -------------------------------------------------------------------------------------

    def _draw_distributions(self, sheet: Sheet, y: float) -> float:
        rows = self.summary.rows
        caption = "Each phase: median, middle half, shortest and longest"
        sheet.text(MARGIN_INCHES, y + _CAPTION_INCHES / 2, caption, bold=True)
        y += _CAPTION_INCHES
        widest = max(INDENT_INCHES * row.depth + width_inches(row.name, bold=not row.depth) for row in rows)
        labels = min(widest, _LABELS_INCHES) + 0.15
        left, right = MARGIN_INCHES + 0.1 + labels, RIGHT_INCHES - sum(_NUMBERS_INCHES)
        self._numbers(sheet, y + _HEAD_INCHES / 2, ("p99", "p50", "n"), GREY, SMALL)
        sheet.text(MARGIN_INCHES + 0.1, y + _HEAD_INCHES / 2, "phase", size=SMALL, colour=GREY)
        y += _HEAD_INCHES
        sheet.bands(y, len(rows))
        axes = sheet.axes(left, y, right - left, self._rows_inches)
        shortest_ms = self._duration_axis(axes)
        for index, row in enumerate(rows):
            middle, indent = y + (index + 0.5) * ROW_INCHES, INDENT_INCHES * row.depth
            label = fit(row.name, labels - indent, bold=not row.depth)
            sheet.text(MARGIN_INCHES + 0.1 + indent, middle, label, bold=not row.depth)
            times = ("-" if value is None else PAGE.duration(value) for value in (row.p99_ns, row.p50_ns))
            self._numbers(sheet, middle, (*times, str(row.n)))
            values = np.maximum(self._durations_ms[row.id], shortest_ms)
            if len(values):
                _distribution(axes, index, values, self._fill(row))
        y += self._rows_inches + _AXIS_INCHES
        scale = ", logarithmic" if axes.get_xscale() == "log" else ""
        label = f"duration (ms{scale})"
        sheet.text((left + right) / 2, y - 0.2, label, size=SMALL, colour=GREY, side="center")
        return y

    def _numbers(
        self, sheet: Sheet, y: float, texts: Sequence[str], colour: str | None = None, size: float | None = None
    ) -> None:
        x = RIGHT_INCHES - 0.1
        for text, width in zip(texts, _NUMBERS_INCHES, strict=True):
            look = {} if colour is None or size is None else {"colour": colour, "size": size}
            sheet.text(x, y, text, side="right", **look)  # type: ignore[arg-type]
            x -= width

    def _duration_axis(self, axes: Axes) -> float:
        """Scale, limits and ticks; returns the least duration in milliseconds that has a place on it."""
        values = np.concatenate(list(self._durations_ms.values()))
        longest = float(values.max())
        shortest = max(float(values[values > 0].min()), longest / 10**_DECADES)
        axes.set_ylim(len(self.summary.rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.grid(axis="x", color=LINE, linewidth=0.7)
        if longest < _WIDE * shortest:
            axes.set_xlim(0, longest * 1.03)
            ticks(axes.xaxis, 6)
            return 0.0
        axes.set_xscale("log")
        low, high = math.floor(math.log10(shortest)), math.ceil(math.log10(longest))
        steps = (1, 2, 5) if high - low <= _LABELLED_DECADES else (1,)
        places = [step * 10.0**power for power in range(low, high + 1) for step in steps]
        left = max(place for place in places if place <= shortest)
        axes.set_xlim(left * 0.95, longest * 1.15)
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(number_format())
        return left


def _columns(
    axes: Axes,
    colour: str,
    *,
    starts: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    bottom: npt.NDArray[np.float64],
    heights: npt.NDArray[np.float64],
) -> None:
    """One layer of the stack: columns that stand apart while there are few, a band with steps then."""
    if len(starts) < _GAPS:
        width = 0.72 if len(starts) > 1 else 0.2
        axes.bar(starts + 1, heights, width, bottom, color=colour, edgecolor="white", linewidth=0.4)
        return
    edges = np.append(starts, starts[-1] + widths[-1]) + 0.5
    low, high = (np.append(values, values[-1]) for values in (bottom, bottom + heights))
    axes.fill_between(edges, low, high, step="post", color=colour, linewidth=0)


def _distribution(axes: Axes, y: int, values: npt.NDArray[np.float64], fill: Fill) -> None:
    """A line from the shortest to the longest, a box around the middle half, the median; few runs as dots below."""
    low, quarter, median, three_quarters, high = np.percentile(values, (0, 25, 50, 75, 100))
    axes.plot([low, high], [y, y], color=fill.colour, linewidth=1.2, zorder=2, solid_capstyle="butt")
    axes.barh([y], [three_quarters - quarter], left=[quarter], height=0.5, zorder=3, **fill.style)
    if len(values) <= _DOTS:
        # Spread evenly, and the same way each time: the golden ratio never lines up.
        places = y + ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.5
        face = lighter(fill.colour)
        axes.scatter(values, places, s=7, facecolor=face, edgecolor=fill.colour, linewidth=0.5, zorder=2.5)
    axes.plot([median, median], [y - 0.34, y + 0.34], color="#111111", linewidth=1.8, zorder=5)


def _by_top(run: Run) -> Counter[str]:
    """Own time in nanoseconds of each phase below the operation, with all that is in it."""
    own_ns: Counter[str] = Counter()
    for span in run.phases[1:]:
        if span.self_ns is not None:
            own_ns[_top(span.id)] += span.self_ns
    return own_ns


def _top(phase: str) -> str:
    return ".".join(phase.split(".")[:2])


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _count(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run" if len(runs) == 1 else f"{len(runs)} runs"
