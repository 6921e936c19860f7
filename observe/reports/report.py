# SPDX-License-Identifier: Apache-2.0
"""What every report shows: finished runs, and what must be known beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
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
    #: Phase → the functions that were probed for it.
    functions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: {"name", "binary", "reason"} of documented functions that are there and could not be probed.
    refused: tuple[Mapping[str, Any], ...] = ()
    #: Why events during operations were given to none → how many.
    left: Mapping[str, int] = field(default_factory=dict)


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
        functions={phase: names for part in reversed(parts) for phase, names in part.functions.items()},
        refused=first.refused,
        left=dict(_sum(part.left for part in parts)),
    )


def without_details(report: Report, *, configuration: bool, functions: bool, path: bool) -> Report:
    """The report without what takes some kilobytes a run, unless it was asked for."""
    return replace(
        report,
        runs=tuple(
            replace(
                run,
                configuration=run.configuration if configuration else {},
                functions=run.functions if functions else (),
                path=run.path if path else (),
            )
            for run in report.runs
        ),
    )


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def total_loss(losses: Iterable[Loss]) -> Loss:
    """Every counter added up."""
    parts = tuple(losses)
    return Loss(**{one.name: sum(getattr(loss, one.name) for loss in parts) for one in fields(Loss)})
