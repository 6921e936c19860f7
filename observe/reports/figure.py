# SPDX-License-Identifier: Apache-2.0
"""The report as a picture (PNG, SVG): a waterfall each for few runs, stacks and distributions for many.

The same report gives the same bytes: no time, no random number, no style file and no display has a part in it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from observe.reports import words
from observe.reports.figure_many import Many
from observe.reports.figure_run import Waterfall
from observe.reports.figure_sheet import (
    ALARM,
    BODY,
    INK,
    LINE_INCHES,
    MARGIN_INCHES,
    PAGE,
    SETTINGS,
    SMALL,
    TEXT_INCHES,
    TITLE,
    Fill,
    Line,
    Panel,
    Sheet,
    flow,
    letters,
    stack,
    width_inches,
)
from observe.reports.report import Report
from observe.reports.rows import summarise, timeline
from observe.reports.text import FEW_RUNS

_DOTS_PER_INCH = 144
#: Longer pictures get fewer dots an inch: the renderer takes no more than 2^16.
_MOST_DOTS = 60_000


def png(report: Report) -> bytes:
    """A PNG file."""
    with _settings():
        figure = draw(report)
        dpi = min(_DOTS_PER_INCH, _MOST_DOTS / figure.get_figheight())
        out = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def svg(report: Report) -> bytes:
    """An SVG file, UTF-8; its letters are paths, so it looks the same without the font."""
    with _settings():
        figure = draw(report)
        out = io.BytesIO()
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def draw(report: Report) -> Figure:
    """The figure; for whoever wants to add to it. What the user's matplotlibrc says counts here, not in png and svg."""
    engine = PAGE.dot.join([letters(fact) for fact in words.origin(report)][:2])
    panels: list[Panel] = []
    fills: list[Fill] = []
    if not report.runs:
        panels = [Line(words.NO_RUN, INK, TITLE, bold=True), Line(f"{words.NO_RUN_HINT} {words.NO_RUN_COMMAND}")]
    elif len(report.runs) <= FEW_RUNS:
        for run in report.runs:
            waterfall = Waterfall(timeline(run), engine)
            panels.append(waterfall)
            fills.extend(waterfall.looks)
    else:
        for summary in summarise(report.runs):
            many = Many(summary, engine)
            panels.append(many)
            fills.extend(many.looks)
    return stack([*panels, *([_Legend(tuple(fills))] if fills else []), *_foot(report)])


class _Legend:
    """What the looks of the bars mean: those that occur."""

    def __init__(self, fills: Sequence[Fill]) -> None:
        self._keys = sorted({fill.key for fill in fills}, key=lambda key: key.meaning)
        self._lines: list[list[tuple[float, Fill]]] = [[]]
        x = 0.0
        for key in self._keys:
            width = 0.4 + width_inches(key.meaning, SMALL) + 0.3
            if x and x + width > TEXT_INCHES:
                self._lines.append([])
                x = 0.0
            self._lines[-1].append((x, key))
            x += width

    @property
    def height_inches(self) -> float:
        """One line, or as many as it takes."""
        return LINE_INCHES * len(self._lines) + 0.1

    def draw(self, sheet: Sheet, top_inches: float) -> None:
        """Swatches, each with its words."""
        for index, line in enumerate(self._lines):
            y = top_inches + (index + 0.5) * LINE_INCHES
            for x, key in line:
                sheet.box(MARGIN_INCHES + x, y - 0.06, 0.3, 0.12, key.style)
                sheet.text(MARGIN_INCHES + x + 0.4, y, key.meaning, size=SMALL)


def _foot(report: Report) -> list[Line]:
    """Losses, warnings, and where it was recorded."""
    losses = words.losses(report.loss).split()
    if report.loss.data_was_lost:
        # Bold letters are wider than those that are measured.
        lines = [Line(text, ALARM, BODY, bold=True) for text in flow(["data was lost:", *losses], " ", BODY * 1.2)]
    else:
        lines = [Line(text) for text in flow(losses, " ")]
    for warning in report.warnings:
        lines.extend(Line(text) for text in flow(letters(f"warning: {warning}").split(), " ", most=2))
    lines.extend(Line(text) for text in flow(letters(fact) for fact in words.origin(report)))
    return lines


#: Name of a format → what draws it.
FORMATS = {"png": png, "svg": svg}


@contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the user's own files say; as it was afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)  # type: ignore[arg-type]  # its stubs want literal names
        yield
