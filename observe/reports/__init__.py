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


#: Name of a format → what writes it.
RENDERERS: Mapping[str, Renderer] = MappingProxyType(
    {"text": text.render, "json": json_.render, "csv": csv_.render, "markdown": markdown.render}
)

__all__ = ["RENDERERS", "Page", "Renderer", "Report", "join", "without_details"]
