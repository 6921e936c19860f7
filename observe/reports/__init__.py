# SPDX-License-Identifier: Apache-2.0
"""What a person or a program sees: one output a module, over runs. No report knows a probe or an event."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from observe.reports import csv_, json_, markdown, text, why_markdown, why_text
from observe.reports.report import Report, join, without_details
from observe.reports.terminal import Page


class Renderer(Protocol):
    """Everything that an output offers."""

    def __call__(self, report: Report, page: Page) -> str:
        """The report as text that ends with a line end. Pure: the same report and page give the same text."""


class Picture(Protocol):
    """Everything that a picture offers."""

    def __call__(self, report: Report) -> bytes:
        """The report as a file of its format. Pure: the same report gives the same bytes."""


def _picture(form: str) -> Picture:
    """Draws pictures of that format; matplotlib, which takes half a second, is loaded for the first one only."""

    def draw(report: Report) -> bytes:
        # It tells on standard error where its caches are.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        from observe.reports import figure  # noqa: PLC0415 - see above

        return figure.FORMATS[form](report)

    return draw


#: Name of a format → what writes it.
RENDERERS: Mapping[str, Renderer] = MappingProxyType(
    {"text": text.render, "json": json_.render, "csv": csv_.render, "markdown": markdown.render}
)


def _html(report: Report) -> bytes:
    """The page; its templates' engine is loaded for the first one only."""
    from observe.reports import html_  # noqa: PLC0415 - see above

    return html_.render(report)


#: Name of a format that is looked at → what draws it.
PICTURES: Mapping[str, Picture] = MappingProxyType({"png": _picture("png"), "svg": _picture("svg"), "html": _html})
#: Name of a format → what writes the critical path and the causes behind it.
WHY: Mapping[str, Renderer] = MappingProxyType({"text": why_text.render, "markdown": why_markdown.render})

__all__ = ["PICTURES", "RENDERERS", "WHY", "Page", "Picture", "Renderer", "Report", "join", "without_details"]
