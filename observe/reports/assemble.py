# SPDX-License-Identifier: Apache-2.0
"""From a recording to a report: read it, correlate it, put its runs in time order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from observe.correlate import Correlator, stamp
from observe.model import Conclusions
from observe.phases import Catalogue, load
from observe.recording import Damage, Recording, keep_conclusions
from observe.reports.report import Report, join

_IMPORTED = "imported from a log: its lines give an order, not times, and durations mean nothing"


def assemble(
    path: Path, catalogue: Catalogue, *, keep_events: bool = False, why: bool = False, details: bool = True
) -> tuple[Report, tuple[str, ...]]:
    """The report of one recording, and what is damaged in the file (one line each; also among its warnings).

    `keep_events`, `why`: see `Correlator`. Without `details`, runs may have no configuration, functions and calls. What
    `conclude` kept in the file is taken from there.

    Raises RecordingError if nothing of the file can be read.
    """
    recording = Recording.open(path)
    with without_collector():
        kept = None if keep_events or catalogue is not load() else recording.conclusions(stamp(), details=details)
        if kept is not None:
            return _report(recording, kept, Damage(0, truncated=False, warnings=()))
        found, _ = _concluded(recording, catalogue, keep_events=keep_events, why=why)
    return _report(recording, found, recording.damage)


def conclude(path: Path) -> Report:
    """The report of a recording that has just been made; what was concluded is kept in the file for the next ones.

    Not if something is damaged, nor if they can be asked for more: what the time was spent on. Not twice. Raises like
    `assemble`.
    """
    recording = Recording.open(path)
    with without_collector():
        found, all_of_it = _concluded(recording, load())
    if all_of_it and not recording.damage.warnings:
        keep_conclusions(path, found, stamp(), recording.fingerprint)
    return _report(recording, found, recording.damage)[0]


def _concluded(
    recording: Recording, catalogue: Catalogue, *, keep_events: bool = False, why: bool = False
) -> tuple[Conclusions, bool]:
    """What follows from a recording; whether `why` makes no difference."""
    correlator = Correlator(recording.header, catalogue, keep_events=keep_events, why=why)
    runs = [run for item in recording.items() for run in correlator.feed(item)]
    runs.extend(correlator.finish())
    found = Conclusions(
        # An engine tells a container's configuration no sooner than it has been started.
        runs=tuple([correlator.completed(run) for run in runs]),
        loss=correlator.loss,
        warnings=tuple(correlator.warnings),
        functions=correlator.probed(),
        refused=tuple(correlator.refused),
        left=correlator.left,
    )
    return found, not correlator.could_say_why


def _report(recording: Recording, found: Conclusions, damage: Damage) -> tuple[Report, tuple[str, ...]]:
    told = tuple(f"{recording.path}: {warning}" for warning in damage.warnings)
    imported = (_IMPORTED,) if recording.header.options.get("origin") == "import" else ()
    report = Report(
        host=recording.header.host,
        engine=recording.header.engine,
        loss=replace(found.loss, damaged_bytes=damage.damaged_bytes),
        runs=found.runs,
        warnings=(*told, *imported, *found.warnings),
        functions=found.functions,
        refused=found.refused,
        left=found.left,
    )
    return join([report]), told


@contextmanager
def without_collector() -> Iterator[None]:
    """For what makes many runs, or much of them: nothing refers to what refers to it, and looking for that costs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
