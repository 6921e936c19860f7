# SPDX-License-Identifier: Apache-2.0
"""`observe phases`: the catalogue of documented phases."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from observe.commands._streams import write
from observe.model import Kind
from observe.phases import Catalogue, Phase, load
from observe.reports.layout import Column, table
from observe.reports.terminal import Page

NAME = "phases"
HELP = "list the documented phases"

SCHEMA_VERSION = 1

_OCCURS = {"always": "", "on_failure": "only when it fails", "if_configured": "if configured"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("-f", "--format", choices=list(FORMATS), default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """Print the catalogue."""
    write(FORMATS[args.format](load(), Page.of(sys.stdout)))
    return 0


def as_text(catalogue: Catalogue, page: Page) -> str:
    """A tree an operation; the columns say how a phase can be seen."""
    blocks = []
    for operation in catalogue.operations:
        phases = catalogue.of(operation)
        columns = [
            Column("phase", ["  " * phase.depth + phase.id.rpartition(".")[2] for phase in phases], right=False),
            Column("step", [phase.step for phase in phases], right=False, rank=2),
            Column("documented as", [phase.title for phase in phases], right=False),
            Column("seen by", [" ".join(_seen_by(phase)) for phase in phases], right=False, rank=1),
            Column("occurs", [_OCCURS[phase.occurs] for phase in phases], right=False, rank=3),
        ]
        blocks.append("\n".join(table(page, columns, ["" if phase.parent else "1" for phase in phases])))
    return "\n\n".join(blocks) + "\n"


def as_markdown(catalogue: Catalogue, page: Page) -> str:
    """A section with a table an operation."""
    del page
    blocks = []
    for operation in catalogue.operations:
        lines = [f"## {operation}", "", "| id | step | documented as | seen by | occurs |", "|---|---|---|---|---|"]
        for phase in catalogue.of(operation):
            cells = (f"`{phase.id}`", phase.step, phase.title, ", ".join(_seen_by(phase)), _OCCURS[phase.occurs])
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def as_json(catalogue: Catalogue, page: Page) -> str:
    """The catalogue with everything in it, for programs."""
    del page
    document = {"schema_version": SCHEMA_VERSION, "phases": [_phase(phase) for phase in catalogue.phases]}
    return json.dumps(document, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Catalogue, Page], str]] = MappingProxyType(
    {"text": as_text, "json": as_json, "markdown": as_markdown}
)


def _seen_by(phase: Phase) -> tuple[str, ...]:
    """The kinds of evidence that can show it."""
    return ("function",) * bool(phase.functions) + ("kernel",) * bool(phase.evidence)


def _phase(phase: Phase) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(phase).items()}


def _plain(value: Any) -> Any:
    """A value as the data files write it: kinds of events by the kernel's names."""
    if isinstance(value, Kind):
        return value.label
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
