# SPDX-License-Identifier: Apache-2.0
"""From a recording to a report: read it, correlate it, put its runs in time order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from observe.correlate import Correlator
from observe.phases import Catalogue
from observe.recording import Recording
from observe.reports.report import Report, join

_IMPORTED = "imported from a log: its lines give an order, not times, and durations mean nothing"


def assemble(
    path: Path, catalogue: Catalogue, *, keep_events: bool = False, why: bool = False
) -> tuple[Report, tuple[str, ...]]:
    """The report of one recording, and what is damaged in the file (one line each; also among its warnings).

    `keep_events`, `why`: see `Correlator`.

    Raises RecordingError if nothing of the file can be read.
    """
    recording = Recording.open(path)
    correlator = Correlator(recording.header, catalogue, keep_events=keep_events, why=why)
    with _without_collector():
        runs = [run for item in recording.items() for run in correlator.feed(item)]
        runs.extend(correlator.finish())
        # An engine tells a container's configuration no sooner than it has been started.
        runs = [correlator.completed(run) for run in runs]
    # Damage is known only once the last item has been read.
    damage = tuple(f"{path}: {warning}" for warning in recording.damage.warnings)
    imported = (_IMPORTED,) if recording.header.options.get("origin") == "import" else ()
    report = Report(
        host=recording.header.host,
        engine=recording.header.engine,
        loss=replace(correlator.loss, damaged_bytes=recording.damage.damaged_bytes),
        runs=tuple(runs),
        warnings=(*damage, *imported, *correlator.warnings),
        functions=correlator.probed(),
        refused=tuple(correlator.refused),
        left=correlator.left,
    )
    return join([report]), damage


@contextmanager
def _without_collector() -> Iterator[None]:
    """Runs refer to nothing that refers to them: to look for cycles among so many costs, and finds none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
