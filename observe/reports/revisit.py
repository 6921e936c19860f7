# SPDX-License-Identifier: Apache-2.0
"""The events of a few runs of a long recording: a second look at those parts of it, once it is known which matter.

Holding every run's events until the slowest are known would take gigabytes for a long recording.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from observe.correlate import Correlator
from observe.model import EventBatch, Header, Item, Run
from observe.phases import Catalogue
from observe.recording import Recording
from observe.reports.report import Report

#: What is read around a run: what was under way when it began, and file events that are told late.
_BEFORE_NS = 100_000_000
_AFTER_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a recording, boot clock."""

    start_ns: int
    end_ns: int


def with_events(report: Report, wanted: Iterable[Run], paths: Sequence[Path], catalogue: Catalogue) -> Report:
    """The report in which the wanted of its runs bring their events along; `paths` are what it was made of.

    Only what was recorded around those runs is correlated again. Where that does not give the same run, as it may if
    what came before matters, all of its recording is. Raises RecordingError if a recording is gone.
    """
    lacking = [run for run in wanted if not run.events]
    found: dict[int, Run] = {}
    for path in paths:
        recording = Recording.open(path)
        own = [run for run in lacking if _is_of(run, recording.header)]
        if not own:
            continue
        found |= _found(own, recording, catalogue, windows(own, report.runs))
        found |= _found([run for run in own if id(run) not in found], recording, catalogue, None)
    return replace(report, runs=tuple(found.get(id(run), run) for run in report.runs))


def windows(runs: Iterable[Run], others: Sequence[Run]) -> list[Window]:
    """What must be read for some runs: from where the first of the others began that was under way then."""
    wanted = []
    for run in runs:
        around = [other.start_ns for other in others if other.start_ns <= run.start_ns <= _end_ns(other)]
        wanted.append(Window(min([run.start_ns, *around]) - _BEFORE_NS, _end_ns(run) + _AFTER_NS))
    return wanted


def _is_of(run: Run, header: Header) -> bool:
    """Whether a run may come from a recording: of two recordings no two have the same offset of their clocks."""
    if header.options.get("origin") == "import":
        return run.wall_time_ns == header.wall_time_ns
    return run.wall_time_ns - run.start_ns == header.wall_time_ns - header.boot_time_ns


def _found(
    runs: Sequence[Run], recording: Recording, catalogue: Catalogue, parts: Sequence[Window] | None
) -> Mapping[int, Run]:
    """Identity of a run → the same with its events, as far as it comes out the same; `parts`: None for everything."""
    if not runs:
        return {}
    correlator = Correlator(recording.header, catalogue, keep_events=True)
    same = {}
    wanted = {(run.operation, run.start_ns): run for run in runs}

    def keep(candidates: Iterable[Run]) -> None:
        for candidate in candidates:
            run = wanted.get((candidate.operation, candidate.start_ns))
            if run is not None and _conclusions(run) == _conclusions(candidate):
                same[id(run)] = replace(run, events=candidate.events)

    for item in recording.items() if parts is None else _cut(recording, parts):
        keep(correlator.feed(item))
    keep(correlator.finish())
    return same


def _conclusions(run: Run) -> tuple[object, ...]:
    """What must be the same; what the time was spent on is not asked for again."""
    return tuple(replace(span, time=None) for span in run.phases), run.container_id, run.outcome


def _cut(recording: Recording, parts: Sequence[Window]) -> Iterator[Item]:
    """All notes, and of the batches what lies in one of the parts."""
    for item in recording.items(lambda start_ns, end_ns: bool(_inside(parts, start_ns, end_ns).any())):
        if isinstance(item, EventBatch):
            start_ns, duration_ns = item.rows["time_ns"], item.rows["duration_ns"]
            yield EventBatch(item.rows[_inside(parts, start_ns, start_ns + duration_ns)], item.strings)
        else:
            yield item


def _inside(
    parts: Sequence[Window], start_ns: npt.NDArray[np.uint64], end_ns: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Which events lie, at least with an end, in one of the parts."""
    inside = np.zeros(len(start_ns), dtype=bool)
    for part in parts:
        inside |= (end_ns >= max(part.start_ns, 0)) & (start_ns <= part.end_ns)
    return inside


def _end_ns(run: Run) -> int:
    return run.start_ns + run.duration_ns
