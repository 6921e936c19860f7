# SPDX-License-Identifier: Apache-2.0
"""What text is written on: how wide, with which letters and colours; and text made safe for it."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from observe.escape import printable

#: Columns when the output is no terminal, and the fewest that a report is laid out for.
PLAIN_WIDTH = 100
MIN_WIDTH = 60

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_RIGHT_HALF = "▐"


@dataclass(frozen=True, slots=True)
class Page:
    """Width in columns; whether colours and letters beyond ASCII may be used."""

    width: int = PLAIN_WIDTH
    colour: bool = False
    unicode: bool = True

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str] = os.environ) -> Page:
        """The page behind a stream. Plain unless it is a terminal; NO_COLOR and TERM=dumb take the colour away."""
        unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
        if not stream.isatty():
            return cls(unicode=unicode)
        columns = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
        colour = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        return cls(width=max(columns, MIN_WIDTH), colour=colour, unicode=unicode)

    @property
    def dot(self) -> str:
        """What stands between the facts of one line."""
        return " · " if self.unicode else " | "

    def style(self, text: str, codes: str) -> str:
        """`text` with SGR codes ("1;36"), if there is colour, and the codes are not empty."""
        return f"\x1b[{codes}m{text}\x1b[0m" if self.colour and codes and text.strip() else text

    def safe(self, text: str) -> str:
        r"""Text from outside, made harmless: what does not print, or may not here, is shown as an escape (`\x1b`)."""
        return printable(text, ascii_only=not self.unicode)

    def shorten(self, text: str, width: int) -> str:
        """At most `width` columns of it; a cut is visible."""
        if len(text) <= width:
            return text
        mark = "…" if self.unicode else "~"
        return text[: max(width - 1, 0)] + mark[:width]

    def duration(self, duration_ns: float) -> str:
        """A duration with its unit, one decimal: `873 ns`, `12.3 ms`, `2 min 3 s`."""
        micro = "µs" if self.unicode else "us"
        if round(duration_ns) < 1000:
            return f"{duration_ns:.0f} ns"
        for unit, size_ns in ((micro, 1e3), ("ms", 1e6), ("s", 1e9)):
            value = round(duration_ns / size_ns, 1)
            if value < (60 if unit == "s" else 1000):
                return f"{value:.1f} {unit}"
        minutes, seconds = divmod(round(duration_ns / 1e9), 60)
        return f"{minutes} min {seconds} s"

    def bar(self, pieces: Iterable[tuple[float, float]], cells: int) -> str:
        """Bars on a line of `cells` columns; each piece is (start, length) in shares of the line.

        No piece is so short that it vanishes. Trailing space is left out.
        """
        line = [" "] * cells
        for start, length in pieces:
            for place, letter in self._piece(start, length, cells):
                line[place] = letter
        return "".join(line).rstrip()

    def _piece(self, start: float, length: float, cells: int) -> Iterable[tuple[int, str]]:
        # In eighths of a column, at least one of them, and never beyond the line.
        first = min(max(round(start * cells * 8), 0), cells * 8 - 1)
        last = min(max(round((start + length) * cells * 8), first + 1), cells * 8)
        for place in range(first // 8, (last + 7) // 8):
            here_first, here_last = max(first - place * 8, 0), min(last - place * 8, 8)
            if not self.unicode:
                yield place, "#"
            elif here_first >= 4 and here_last == 8:
                yield place, _RIGHT_HALF
            else:
                yield place, _EIGHTHS[here_last - here_first]

    def paragraph(self, text: str, codes: str = "", indent: int = 0) -> list[str]:
        """Text from outside, made harmless, broken between words where the page ends; later lines are indented."""
        lines = textwrap.wrap(
            self.safe(text),
            self.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        return [self.style(line, codes) for line in lines]

    def flow(self, first: str, items: Iterable[str], joint: str, indent: int = 2) -> list[str]:
        """`first` and the items, joined, broken between items where the page ends; later lines are indented."""
        lines = [first]
        fresh = True
        for item in items:
            candidate = lines[-1] + ("" if fresh else joint) + item
            if len(candidate) > self.width and not fresh:
                lines[-1] += joint.rstrip()
                lines.append(" " * indent + item)
            else:
                lines[-1] = candidate
            fresh = False
        return lines


def wall_time(wall_time_ns: int) -> str:
    """`2022-03-03 17:06:12.345 UTC`; empty if the time is unknown (0)."""
    if wall_time_ns <= 0:
        return ""
    seconds, rest_ns = divmod(wall_time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest_ns // 1_000_000:03d} UTC"
