# SPDX-License-Identifier: Apache-2.0
"""Runs and phases as flat columns, for programs that want tables: what the csv report and the Python API share.

Times are nanoseconds, as in the JSON report; what is unknown or was not seen is None.
"""

from __future__ import annotations

from operator import attrgetter

from observe.model import Run, Span

Cell = str | int | None

#: What a run's row has: the names of `Run`.
RUN_COLUMNS = (
    "operation",
    "container_id",
    "container_name",
    "image",
    "network",
    "outcome",
    "error",
    "start_ns",
    "wall_time_ns",
    "duration_ns",
    "unattributed_ns",
)

#: What a phase's row has: the names of `Span`, whose id is the phase.
PHASE_COLUMNS = (
    "phase",
    "parent",
    "step",
    "start_ns",
    "duration_ns",
    "self_ns",
    "corrected_self_ns",
    "evidence",
    "at_floor",
    "syscalls",
    "file_events",
    "probe_hits",
)

_run_cells = attrgetter(*RUN_COLUMNS)
_phase_cells = attrgetter(*({"phase": "id", "evidence": "evidence.value"}.get(name, name) for name in PHASE_COLUMNS))


def run_cells(run: Run) -> tuple[Cell, ...]:
    """The values of RUN_COLUMNS."""
    cells: tuple[Cell, ...] = _run_cells(run)
    return cells


def phase_cells(span: Span) -> tuple[Cell, ...]:
    """The values of PHASE_COLUMNS; `at_floor` is a bool."""
    cells: tuple[Cell, ...] = _phase_cells(span)
    return cells
