# SPDX-License-Identifier: Apache-2.0
"""What commands that read recordings and write a result have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from observe.commands import _streams
from observe.errors import ObserveError
from observe.model import Run
from observe.phases import load
from observe.reports import Page, Report, join
from observe.reports.assemble import assemble
from observe.reports.revisit import with_events


def read(files: Iterable[Path], *, keep_events: bool = False, why: bool = False, details: bool = True) -> Report:
    """One report of all files (see `assemble`); damage is also said on standard error. Raises RecordingError."""
    catalogue = load()
    reports = []
    for path in files:
        report, damage = assemble(path, catalogue, keep_events=keep_events, why=why, details=details)
        reports.append(report)
        for warning in damage:
            print(f"observe: warning: {Page().safe(warning)}", file=sys.stderr)
    return join(reports)


def read_again(files: Sequence[Path], report: Report, runs: Iterable[Run]) -> Report:
    """The report of these files, in which those of its runs bring their events along. Raises RecordingError."""
    return with_events(report, runs, files, load())


def write(path: Path | None, content: str | bytes) -> None:
    """Text to standard output goes through its encoding; everything else is bytes, text in UTF-8.

    Raises ObserveError if it cannot be written.
    """
    if path is None:
        _streams.write(content)
        return
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ObserveError(f"{path}: cannot be written: {error.strerror}; name another file with -o") from error
