# SPDX-License-Identifier: Apache-2.0
"""Runs for other programs: pure encoders, each a module that needs the libraries of its format only.

Files: `perfetto`, `otlp`, `parquet`, `events_csv`, `inotifywait`. An endpoint: `otlp_http`. What they share:
`timeline` (runs as tracks of slices), `nesting`, `programs`, `events` (events as columns with their run and phase).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from observe.model import Loss, Run


class Recorded(Protocol):
    """What an encoder is given: runs in time order, and what they come with (as `observe.reports.Report` has it)."""

    @property
    def host(self) -> Mapping[str, Any]:
        """`hostname`, `kernel`, `arch`; empty if unknown."""

    @property
    def engine(self) -> Mapping[str, Any]:
        """`version`, `go_version`, `storage_driver`, `data_root` …; empty if unknown."""

    @property
    def loss(self) -> Loss:
        """What is missing."""

    @property
    def runs(self) -> Sequence[Run]:
        """The operations."""
