# SPDX-License-Identifier: Apache-2.0
"""What a person or a program sees: one output a module, over runs. No report knows a probe or an event."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from observe.reports import csv_, json_, markdown, text
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


def _png(report: Report) -> bytes:
    from observe.reports import figure  # noqa: PLC0415 - matplotlib takes half a second

    return figure.png(report)


def _svg(report: Report) -> bytes:
    from observe.reports import figure  # noqa: PLC0415 - see _png

    return figure.svg(report)


#: Name of a format → what writes it.
RENDERERS: Mapping[str, Renderer] = MappingProxyType(
    {"text": text.render, "json": json_.render, "csv": csv_.render, "markdown": markdown.render}
)

#: Name of a format that is a picture → what draws it.
PICTURES: Mapping[str, Picture] = MappingProxyType({"png": _png, "svg": _svg})

__all__ = ["PICTURES", "RENDERERS", "Page", "Picture", "Renderer", "Report", "join", "without_details"]
