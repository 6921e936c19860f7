# SPDX-License-Identifier: Apache-2.0
"""What every report shows: finished runs, and what must be known beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from observe.model import Loss, Run


@dataclass(frozen=True, slots=True)
class Report:
    """Runs in time order, and the host, engine, losses and warnings they come with."""

    #: {"hostname", "kernel", "arch"}; empty if unknown (an imported log)
    host: Mapping[str, Any]
    #: {"version", "go_version", "storage_driver", …}
    engine: Mapping[str, Any]
    loss: Loss
    runs: tuple[Run, ...]
    #: One line each, for people.
    warnings: tuple[str, ...] = ()


def join(reports: Iterable[Report]) -> Report:
    """One report of many: runs in time order, losses added up; a second host or engine becomes a warning.

    Raises ValueError if there is none.
    """
    parts = tuple(reports)
    if not parts:
        raise ValueError("no report to join")
    first = parts[0]
    warnings = [warning for part in parts for warning in part.warnings]
    warnings.extend(
        f"the recordings are not all of the same {what}; only the first one's {what} is named"
        for what in ("host", "engine")
        if any(getattr(part, what) != getattr(first, what) for part in parts[1:])
    )
    return Report(
        host=first.host,
        engine=first.engine,
        loss=total_loss(part.loss for part in parts),
        # Boot clocks of different boots cannot be compared; the epoch can.
        runs=tuple(
            sorted((run for part in parts for run in part.runs), key=lambda run: (run.wall_time_ns, run.start_ns))
        ),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def without_configurations(report: Report) -> Report:
    """The report without what inspect said of each container: some kilobytes a run."""
    return replace(report, runs=tuple(replace(run, configuration={}) for run in report.runs))


def total_loss(losses: Iterable[Loss]) -> Loss:
    """Every counter added up."""
    parts = tuple(losses)
    return Loss(**{field.name: sum(getattr(loss, field.name) for loss in parts) for field in fields(Loss)})
