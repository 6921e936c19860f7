# SPDX-License-Identifier: Apache-2.0
"""A recording as DataFrames, for notebooks: `observe.open(path)`. Needs no root and no engine.

recording = observe.open("slow.observe")
recording.runs.duration_ns.describe() / 1e6
recording.phases.groupby("phase").duration_ns.median().nlargest(10) / 1e6
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from observe.export.events import EventTable, Texts
from observe.export.events import table as event_table
from observe.model import STRING_COLUMNS, Event, Loss
from observe.phases import load
from observe.recording import Recording
from observe.reports import Report
from observe.reports.assemble import assemble, without_collector
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
#: What an event's row has behind its run: the names of `Event`, the phase and the function.
_EVENT_COLUMNS = ("phase", "time_ns", "kind", "function", *[field.name for field in fields(Event)][2:])
_EVENT_TEXTS = {"phase", "kind", "function", *STRING_COLUMNS}
_EVENT_NULLABLE = {"phase", "function"}
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

        Whose they are is concluded anew, for which the whole recording is read: of a long one this table takes much
        longer than `runs` and `phases`, whose conclusions may stand in the file, and as long as `observe export`.

        | column | type | unit, meaning |
        |---|---|---|
        | run | Int64 | the run's index in `runs`; null: of no operation |
        | phase | category | the innermost phase, as in `phases`; null: of no operation |
        | time_ns | uint64 | ns of the boot clock: entry of a system call, the moment of everything else |
        | kind | category | the kernel's name: `mount`, `sched_process_exec`; `api_request`, `inotify` … |
        | function | category | the Go function of a `function_entry` or `function_return`; null for all else |
        | duration_ns | uint64 | ns from entry to return of a system call; else 0 |
        | goroutine | uint64 | Go's g pointer; 0 if unknown |
        | ret | int64 | see below |
        | flags | uint64 | see below |
        | pid, tid | uint32 | in the initial pid namespace; 0 if unknown |
        | fd | int32 | descriptor argument; -1 if none |
        | comm | category | name of the thread |
        | path, path2 | category | what is acted upon (mount target, new name …), and the other one (source, old name) |
        | detail | category | file system type; arguments of an exec, joined by NUL; host name |
        | marks | uint16 | bits of `observe.model.Mark` |

        `ret` is the return value of a system call (negative errno on failure), the child of a fork, the thread that
        called the exec, the HTTP status of an `api_response`, the cookie of an inotify move; of a function how many
        bytes its frame lies below the end of the goroutine's stack (0: unknown).

        `flags` is the flags argument of a call (of a seccomp its operation, of a sendto its netlink message), the mask
        of an inotify event; of a function its number in this recording, below 16 bits (Go before 1.17: the stack
        pointer stands above them), whose name is in `function`. (`frame.flags` is pandas' own: write `frame["flags"]`.)

        The scheduler's kinds (`record --why`) have their own use of both: see `observe.model.EVENT_DTYPE`.
        """
        with without_collector():
            report, _ = assemble(self.path, load(), keep_events=True)
            table = event_table(Recording.open(self.path).items(), report.runs)
        # Who asks for the runs next has them; their events are in the table.
        report = replace(report, runs=tuple(replace(run, events=()) for run in report.runs))
        self.__dict__.setdefault("_report", report)
        return _events_frame(table)

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


def _events_frame(table: EventTable) -> pd.DataFrame:
    columns: dict[str, Any] = {"run": pd.arrays.IntegerArray(table.run.astype(np.int64), table.run < 0)}
    for name in _EVENT_COLUMNS:
        if name in _EVENT_TEXTS:
            columns[name] = _categorical(table.texts(name), null="" if name in _EVENT_NULLABLE else None)
        else:
            columns[name] = np.ascontiguousarray(table.events.rows[name])
    return pd.DataFrame(columns, copy=False)


def _categorical(texts: Texts, null: str | None) -> pd.Categorical:
    """The texts that occur as categories; `null`: the one that stands for none, if one does."""
    values = texts.values  # noqa: PD011 - a tuple
    place = np.full(len(values), -1, dtype=np.int32)
    categories: dict[str, int] = {}
    for code in np.flatnonzero(np.bincount(texts.codes)).tolist():
        if values[code] != null:
            # Two numbers may be functions of one name.
            place[code] = categories.setdefault(values[code], len(categories))
    # object: the strings of Arrow cannot hold a file name that is not UTF-8.
    return pd.Categorical.from_codes(place[texts.codes], categories=pd.Index([*categories], dtype=object))


def _frame(rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> pd.DataFrame:
    """A frame with the types that do not depend on what is in it: an empty one has them too."""
    frame = pd.DataFrame(rows, columns=pd.Index(columns), dtype=object)
    return frame.astype({name: _TYPES[name] for name in columns if name in _TYPES})
