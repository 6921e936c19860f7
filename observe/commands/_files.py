# SPDX-License-Identifier: Apache-2.0
"""What commands that read recordings and write a result have in common."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from observe.commands import _streams
from observe.errors import ObserveError, RecordingError, UsageError
from observe.model import Run
from observe.phases import load
from observe.recording.format import FILE_MAGIC
from observe.reports import Page, Report, join
from observe.reports.assemble import assemble
from observe.reports.revisit import with_events


def read(files: Iterable[Path], *, keep_events: bool = False, why: bool = False, details: bool = True) -> Report:
    """One report of all files (see `assemble`); damage is also said on standard error. Raises RecordingError."""
    catalogue = load()
    reports = []
    for path in files:
        with result_of_bench_refused(path):
            report, damage = assemble(path, catalogue, keep_events=keep_events, why=why, details=details)
        reports.append(report)
        for warning in damage:
            print(f"observe: warning: {Page().safe(warning)}", file=sys.stderr)
    return join(reports)


def read_again(files: Sequence[Path], report: Report, runs: Iterable[Run]) -> Report:
    """The report of these files, in which those of its runs bring their events along. Raises RecordingError."""
    return with_events(report, runs, files, load())


@contextmanager
def result_of_bench_refused(path: Path) -> Iterator[None]:
    """Say of what is a bench's result, and so no recording, where its recordings are. Raises RecordingError."""
    try:
        yield
    except RecordingError as error:
        if not _is_result_of_bench(path):
            raise
        raise RecordingError(
            f"cannot read {path}: it is a bench's result; name one of its *.observe, or, to compare, its folder"
        ) from error


def _is_result_of_bench(path: Path) -> bool:
    try:
        # Opening a pipe would wait for its other end.
        document = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"schema_version", "arms", "planned"} <= document.keys()


def write(path: Path | None, content: str | bytes) -> None:
    """Text to standard output goes through its encoding; everything else is bytes, text in UTF-8.

    Raises ObserveError if it cannot be written, UsageError if that would replace a recording.
    """
    if path is None:
        _streams.write(content)
        return
    if _is_recording(path):
        raise UsageError(f"{path} is a recording, which would be lost; name another file with -o")
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ObserveError(f"{path}: cannot be written: {error.strerror}; name another file with -o") from error


def _is_recording(path: Path) -> bool:
    try:
        # Opening a pipe would wait for its other end.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(FILE_MAGIC)) == FILE_MAGIC
    except OSError:
        return False
