# SPDX-License-Identifier: Apache-2.0
"""What several reports say in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from observe.model import Evidence, Loss
from observe.phases import load
from observe.reports.report import Report
from observe.reports.rows import NotSeen, TimelineRow

NO_RUN = "No docker create and no docker start was recorded."
NO_RUN_HINT = "Let one happen while it records:"
NO_RUN_COMMAND = "observe record -o FILE -- docker run --rm IMAGE"

#: What each counter of losses means; those that mean lost data come first.
_LOSSES = {
    "ring_buffer": "{} lost because the ring buffer was full",
    "program_misses": "{} of our programs skipped by the kernel",
    "lineage": "{} not followed because the process table was full",
    "inotify_overflows": "inotify's queue overflowed {}",
    "inotify_watches": "{} not watched because inotify's limit was reached",
    "damaged_bytes": "{} of the recording damaged",
    "unmatched_returns": "{} of calls whose beginning was not seen",
    "unattributed_events": "{} that belong to no operation for sure",
}
_UNITS = {
    "ring_buffer": ("event", "events"),
    "program_misses": ("run", "runs"),
    "lineage": ("process", "processes"),
    "inotify_overflows": ("once", "times"),
    "inotify_watches": ("directory", "directories"),
    "damaged_bytes": ("byte", "bytes"),
    "unmatched_returns": ("return", "returns"),
    "unattributed_events": ("event", "events"),
    "inotify_missed": ("file operation", "file operations"),
}


def origin(report: Report) -> Iterator[str]:
    """Engine first, then host, as far as they are known: one fact each, as it was recorded."""
    host, engine = report.host, report.engine
    facts = [
        engine.get("version") and f"dockerd {engine['version']}",
        engine.get("go_version"),
        engine.get("storage_driver"),
        host.get("hostname"),
        host.get("kernel") and f"Linux {host['kernel']}",
        host.get("arch"),
    ]
    return (str(fact) for fact in facts if fact)


def percent(share: float | None) -> str:
    """A share between 0 and 1 with one decimal; `-` if there is none, and never 0.0% for what is there."""
    if share is None:
        return "-"
    if 0 < share < 0.001:
        return "<0.1%"
    return "100%" if share >= 0.9995 else f"{share:.1%}"


def evidence(row: TimelineRow) -> str:
    """What the row's times stand on; empty for what is no phase."""
    if row.evidence is None:
        return ""
    if row.at_floor:
        return "at floor"
    return "not seen" if row.evidence is Evidence.NONE else row.evidence.value


def not_seen(gaps: Iterable[NotSeen], *, failed: bool) -> list[str]:
    """Names of the phases that were not seen, without those that only a failure brings if nothing failed."""
    occurs = {phase.id: phase.occurs for phase in load().phases}
    return [
        gap.id.partition(".")[2] + (f" (all {gap.parts} parts)" if gap.parts > 1 else "")
        for gap in gaps
        if failed or occurs.get(gap.id) != "on_failure"
    ]


def counted(loss: Loss) -> dict[str, int]:
    """The counters of losses that are not 0, by their names in words."""
    counts = {field.name.replace("_", " "): getattr(loss, field.name) for field in fields(loss)}
    return {name: count for name, count in counts.items() if count}


def losses(loss: Loss) -> str:
    """All losses in one line of words."""
    found = [
        words.format(count(getattr(loss, name), *_UNITS[name]))
        for name, words in _LOSSES.items()
        if getattr(loss, name)
    ]
    line = "; ".join(found) if loss.data_was_lost else "; ".join(["nothing lost", *found])
    if loss.inotify_missed:
        missed = count(loss.inotify_missed, *_UNITS["inotify_missed"])
        line += f" (inotify missed {missed} that the system calls show)"
    return line


def count(number: int, one: str, many: str) -> str:
    """`1 run`, `2 runs`; `once`, `2 times`."""
    if one == "once":
        return one if number == 1 else f"{number} {many}"
    return f"{number} {one if number == 1 else many}"
