# SPDX-License-Identifier: Apache-2.0
"""The subcommands: one module each, in the order of `observe --help`.

A command module has `NAME`, `HELP`, `configure(parser)` and `run(args) -> int`. Only the module of the
command that was typed is imported, so it may import at its top whatever it needs, however heavy.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, cast

#: Name of each command → its line in `observe --help` (its module's HELP; a test holds them equal).
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "doctor": "say what this host can do, and what to do about what it cannot",
        "record": "record a live dockerd while a command runs, or until stopped",
        "serve": "stay attached to a live dockerd: metrics for Prometheus, and a page of its operations",
        "report": "show where the time went: one run's timeline, or percentiles of many",
        "compare": "tell which phase became slower, by how much, and whether that could be chance",
        "export": "write a recording for other programs: Perfetto, OpenTelemetry, DuckDB, spreadsheets",
        "bench": "create and start containers in interleaved arms, record each arm, tell percentiles and differences",
        "import": "make a recording of a log that was recorded elsewhere",
        "dashboards": "write the Grafana dashboards, Prometheus rules and provisioning files of this version",
        "phases": "list the documented phases",
    }
)


class Command(Protocol):
    """What a command module offers."""

    NAME: str
    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it. Returns the exit code; raises ObserveError."""


def load(name: str) -> Command:
    """The module of one command, imported now. Raises KeyError for a name that is no command."""
    if name not in COMMANDS:
        raise KeyError(name)
    return cast(Command, importlib.import_module(module_name(name)))


def module_name(name: str) -> str:
    """Where a command lives: its name, with an underscore behind a word that Python keeps for itself."""
    return f"{__name__}.{name}_" if keyword.iskeyword(name) else f"{__name__}.{name}"
