# SPDX-License-Identifier: Apache-2.0
"""A recording as DataFrames, for notebooks: `observe.open(path)`. Needs no root and no engine.

recording = observe.open("slow.observe")
recording.runs.duration_ns.describe() / 1e6
recording.phases.groupby("phase").duration_ns.median().nlargest(10) / 1e6
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from observe.model import Loss
from observe.phases import load
from observe.recording import Recording
from observe.reports import Report
from observe.reports.assemble import assemble
from observe.reports.flat import PHASE_COLUMNS, RUN_COLUMNS, phase_cells, run_cells

#: Columns of few values, by their pandas type; every other text stays an object, whatever bytes it holds.
_TYPES = {
    "operation": "category",
    "outcome": "category",
    "phase": "category",
    "parent": "category",
    "step": "category",
    "evidence": "category",
    "at_floor": "bool",
}
_NULLABLE = {"start_ns", "duration_ns", "self_ns", "corrected_self_ns"}


@dataclass(frozen=True)
class OpenRecording:
    """One recording, and what observe concludes from it. Each table is made when it is first asked for, then kept.

    The tables are yours to change: the next `observe.open` makes new ones. Each raises RecordingError if the file
    has gone since.
    """

    path: Path

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row an operation, in time order; the index is the number of the run, from 0.

        | column | type | unit, meaning |
        |---|---|---|
        | operation | category | `create`, `start` … |
        | container_id, container_name, image, network | object | None if unknown |
        | outcome | category | `ok`, `failed`, `unfinished` |
        | error | object | what the engine answered; None if it went well |
        | start_ns | int64 | ns of the host's boot clock |
        | wall_time_ns | int64 | the same in ns since the epoch, for `pandas.to_datetime(…, utc=True)`; 0 if unknown |
        | duration_ns | int64 | ns from request to answer; 0 for an imported log, which has no times |
        | unattributed_ns | int64 | ns of it in no phase |
        | departures | int64 | count of departures from the documented order |
        """
        runs = self._report.runs
        frame = _frame([(*run_cells(run), len(run.departures)) for run in runs], (*RUN_COLUMNS, "departures"))
        numbers = [name for name in RUN_COLUMNS if name.endswith("_ns")]
        return frame.astype(dict.fromkeys((*numbers, "departures"), "int64"))

    @cached_property
    def phases(self) -> pd.DataFrame:
        """One row a documented phase a run, in the documented order; the first of a run is the operation itself.

        A phase that was not seen keeps its row, with null times; one that was repeated has several.

        | column | type | unit, meaning |
        |---|---|---|
        | run | int64 | the run's index in `runs` |
        | operation | category | that of the run |
        | phase, parent | category | `start.containerd_start.shim`; parent is null in the operation's own row |
        | step | category | section and step of the walk-through |
        | start_ns | Int64 | ns of the host's boot clock |
        | duration_ns | Int64 | ns; of all its pieces, if it has several |
        | self_ns | Int64 | ns in which it is the innermost phase; they sum to the run's duration |
        | corrected_self_ns | Int64 | the same without what the probes of functions cost; null without functions |
        | evidence | category | `function`, `kernel`, `none` |
        | at_floor | bool | so short that it measures its probes only |
        | syscalls, file_events, probe_hits | int64 | counts with this phase as the innermost one |
        """
        rows = [
            (number, run.operation, *phase_cells(span))
            for number, run in enumerate(self._report.runs)
            for span in run.phases
        ]
        frame = _frame(rows, ("run", "operation", *PHASE_COLUMNS))
        counts = dict.fromkeys(("run", "syscalls", "file_events", "probe_hits"), "int64")
        return frame.astype({**counts, **dict.fromkeys(_NULLABLE, "Int64")})

    @cached_property
    def events(self) -> pd.DataFrame:
        """One row an event, in the order of the file, whether it belongs to an operation or not.

        | column | type | unit, meaning |
        |---|---|---|
        | time_ns | uint64 | ns of the boot clock: entry of a system call, the moment of everything else |
        | kind | category | the kernel's name: `mount`, `sched_process_exec`; `api_request`, `inotify` … |
        | duration_ns | uint64 | ns from entry to return of a system call; else 0 |
        | goroutine | uint64 | Go's g pointer; 0 if unknown |
        | ret | int64 | return value, negative errno on failure; child of a fork; status of an `api_response` |
        | flags | uint64 | flags argument of a call; mask of an inotify event |
        | pid, tid | uint32 | in the initial pid namespace; 0 if unknown |
        | fd | int32 | descriptor argument; -1 if none |
        | comm | category | name of the thread |
        | path, path2 | category | what is acted upon (mount target, new name …), and the other one (source, old name) |
        | detail | category | file system type; arguments of an exec, joined by NUL; host name |
        | marks | uint16 | bits of `observe.model.Mark` |
        """
        return Recording.open(self.path).to_pandas()

    @property
    def loss(self) -> Loss:
        """What is missing or was not attributed: counts; `loss.data_was_lost` says whether anything was lost."""
        return self._report.loss

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting it, one line each: damage of the file, that a log was imported."""
        return self._report.warnings

    @property
    def host(self) -> Mapping[str, Any]:
        """`hostname`, `kernel`, `arch` of the machine that recorded it; empty if unknown."""
        return self._report.host

    @property
    def engine(self) -> Mapping[str, Any]:
        """`version`, `go_version`, `storage_driver` … of the engine; empty if unknown."""
        return self._report.engine

    @cached_property
    def _report(self) -> Report:
        return assemble(self.path, load(), details=False)[0]


def open_recording(path: str | os.PathLike[str]) -> OpenRecording:
    """The recording at `path`. Raises RecordingError, which says why, if it is missing, foreign or not allowed."""
    return OpenRecording(Recording.open(Path(path)).path)


def _frame(rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> pd.DataFrame:
    """A frame with the types that do not depend on what is in it: an empty one has them too."""
    frame = pd.DataFrame(rows, columns=pd.Index(columns), dtype=object)
    return frame.astype({name: _TYPES[name] for name in columns if name in _TYPES})
