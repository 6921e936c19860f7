# SPDX-License-Identifier: Apache-2.0
"""What pictures are drawn on: a sheet measured in inches from its top left corner, its colours and its letters.

Places are computed, not found by trial: every text is measured before it is placed, and shortened or broken to fit.
Nothing here asks for a display, a style file or the time, so the same report gives the same picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from observe.model import Evidence
from observe.reports.terminal import Page

WIDTH_INCHES = 11.0
MARGIN_INCHES = 0.4
RIGHT_INCHES = WIDTH_INCHES - MARGIN_INCHES
TEXT_INCHES = WIDTH_INCHES - 2 * MARGIN_INCHES
ROW_INCHES = 0.27
LINE_INCHES = 0.2
INDENT_INCHES = 0.16

BODY, SMALL, TITLE = 9.0, 8.0, 15.0  # points

INK, GREY, LINE, BAND, ALARM = "#222222", "#666666", "#d9d9d9", "#f5f5f5", "#b00020"
UNATTRIBUTED_COLOUR, OPERATION_COLOUR = "#bdbdbd", "#555555"
#: Okabe and Ito's palette without black and yellow, which is too pale on white.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")

#: The settings that pictures depend on, over matplotlib's own: names are never mathematics.
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "text.parse_math": False,
        "hatch.linewidth": 0.7,
        "svg.fonttype": "path",  # looks the same wherever it is opened
        "svg.hashsalt": "observe",
    }
)

PAGE = Page()


class Panel(Protocol):
    """A part of a sheet, over its whole width."""

    @property
    def height_inches(self) -> float:
        """What it needs."""

    def draw(self, sheet: Sheet, top_inches: float) -> None:
        """Put it on the sheet."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text on a sheet of its own height."""

    text: str
    colour: str = GREY
    size: float = SMALL
    bold: bool = False

    @property
    def height_inches(self) -> float:
        """Room for its letters and what is between lines."""
        return LINE_INCHES * max(1.0, self.size / BODY)

    def draw(self, sheet: Sheet, top_inches: float) -> None:
        """Put it at the left margin."""
        middle = top_inches + self.height_inches / 2
        sheet.text(MARGIN_INCHES, middle, self.text, colour=self.colour, size=self.size, bold=self.bold)


@dataclass(frozen=True, slots=True)
class Fill:
    """How a bar looks: solid if functions bound it, hatched over a lighter fill by kernel evidence, hollow at floor."""

    colour: str
    evidence: Evidence | None = None
    at_floor: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """Keyword arguments of a patch."""
        if self.at_floor:
            return {"facecolor": "white", "edgecolor": self.colour, "linewidth": 0.9}
        if self.evidence is Evidence.KERNEL:
            return {"facecolor": lighter(self.colour), "edgecolor": self.colour, "linewidth": 0.9, "hatch": "/////"}
        return {"facecolor": self.colour, "edgecolor": self.colour, "linewidth": 0.9}

    @property
    def key(self) -> Fill:
        """The same look in the colour of a legend."""
        return Fill(UNATTRIBUTED_COLOUR if self.evidence is None else OPERATION_COLOUR, self.evidence, self.at_floor)

    @property
    def meaning(self) -> str:
        """Its words in a legend."""
        if self.evidence is None:
            return "unattributed"
        if self.at_floor:
            return "at floor: as short as the probes that bound it"
        if self.evidence is Evidence.FUNCTION:
            return "function: bounded by a function's entry and return"
        return "kernel: bounded by system calls and process events"


class Sheet:
    """A figure; places and sizes in inches, from its left and from its top."""

    def __init__(self, height_inches: float) -> None:
        """An empty white sheet of the common width."""
        self.height_inches = height_inches
        self.figure = Figure(figsize=(WIDTH_INCHES, height_inches), facecolor="white")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = BODY,
        colour: str = INK,
        bold: bool = False,
        side: str = "left",
    ) -> None:
        """Text whose middle line is at y and whose `side` (left, right or center) is at x."""
        if text:
            self.figure.text(
                x / WIDTH_INCHES,
                1 - y / self.height_inches,
                text,
                fontsize=size,
                color=colour,
                fontweight="bold" if bold else "normal",
                horizontalalignment=side,
                verticalalignment="center_baseline",
            )

    def box(self, x: float, y: float, width: float, height: float, style: Mapping[str, Any]) -> None:
        """A rectangle behind everything else, whose top left corner is at x, y."""
        corner = (x / WIDTH_INCHES, 1 - (y + height) / self.height_inches)
        size = (width / WIDTH_INCHES, height / self.height_inches)
        place = self.figure.transFigure
        self.figure.add_artist(Rectangle(corner, *size, transform=place, zorder=-1, **style))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Bare axes whose top left corner is at x, y: no frame but the lower line, no background."""
        axes = self.figure.add_axes(
            (
                x / WIDTH_INCHES,
                1 - (y + height) / self.height_inches,
                width / WIDTH_INCHES,
                height / self.height_inches,
            ),
            facecolor="none",
        )
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(GREY)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=SMALL, labelcolor=GREY, color=GREY, length=3)
        return axes

    def bands(self, y: float, rows: int) -> None:
        """A pale band behind every second row, to lead the eye from a label to its numbers."""
        for row in range(0, rows, 2):
            self.box(
                MARGIN_INCHES, y + row * ROW_INCHES, TEXT_INCHES, ROW_INCHES, {"facecolor": BAND, "edgecolor": "none"}
            )


def stack(panels: Sequence[Panel]) -> Figure:
    """The figure of panels below each other."""
    sheet = Sheet(sum(panel.height_inches for panel in panels) + 2 * MARGIN_INCHES)
    top_inches = MARGIN_INCHES
    for panel in panels:
        panel.draw(sheet, top_inches)
        top_inches += panel.height_inches
    return sheet.figure


def lighter(colour: str) -> str:
    """The colour, mixed with white."""
    red, green, blue = (0.45 * part + 0.55 for part in to_rgb(colour))
    return to_hex((red, green, blue))


def ticks(axis: Axis, most: int) -> None:
    """Round numbers from 0 on, in the digits that people write."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(number_format())


def number_format() -> FuncFormatter:
    """`0.00001`, `2.5`, `1,200`: never an exponent."""
    return FuncFormatter(lambda value, _place: f"{value:,.9f}".rstrip("0").rstrip("."))


def letters(text: str) -> str:
    """Text from outside, made harmless: what does not print, or what the font lacks, is shown as an escape."""
    known = _known_letters()
    return "".join(letter if ord(letter) in known else Page(unicode=False).safe(letter) for letter in PAGE.safe(text))


@lru_cache(maxsize=10_000)
def width_inches(text: str, size: float = BODY, *, bold: bool = False) -> float:
    """How wide a text is."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, _font(size, bold=bold), ismath=False)
    return float(width) / 72


def fit(text: str, room_inches: float, size: float = BODY, *, bold: bool = False) -> str:
    """As much of the text as there is room for; a cut is visible."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width_inches(PAGE.shorten(text, middle), size, bold=bold) <= room_inches:
            low = middle
        else:
            high = middle - 1
    return PAGE.shorten(text, low)


def flow(items: Iterable[str], joint: str = PAGE.dot, size: float = SMALL, most: int = 6) -> list[str]:
    """The items, joined, as lines that fit the sheet, each item cut if it must be; no more than `most` lines."""
    joint_inches = width_inches(joint, size)
    lines: list[str] = []
    used_inches = 0.0
    for item in items:
        # The sum of the parts: measuring each longer line anew would take seconds.
        used_inches += joint_inches + width_inches(item, size)
        if lines and used_inches + joint_inches <= TEXT_INCHES:
            lines[-1] += joint + item
            continue
        if lines:
            lines[-1] += joint.rstrip()
        if len(lines) > most:
            break
        lines.append(fit(item, TEXT_INCHES - joint_inches, size))
        used_inches = width_inches(lines[-1], size)
    if len(lines) > most:
        lines = [*lines[: most - 1], fit(f"{lines[most - 1]} …", TEXT_INCHES, size)]
    return lines


def title(sheet: Sheet, y: float, text: str, aside: str) -> None:
    """A bold title at the left and a quiet fact at the right of the same line."""
    aside = fit(aside, TEXT_INCHES * 0.4, BODY)
    room = TEXT_INCHES - width_inches(aside, BODY) - 0.3
    sheet.text(MARGIN_INCHES, y, fit(text, room, TITLE, bold=True), size=TITLE, bold=True)
    sheet.text(RIGHT_INCHES, y, aside, colour=GREY, side="right")


@cache
def _font(size: float, *, bold: bool) -> FontProperties:
    return FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")


@cache
def _known_letters() -> frozenset[int]:
    return frozenset(get_font(findfont(_font(BODY, bold=False))).get_charmap())
