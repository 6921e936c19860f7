# SPDX-License-Identifier: Apache-2.0
"""One run, as the pages show it: its rows, what to conclude from them, and the data of its timeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from observe.model import Event, Evidence, Run
from observe.phases import load
from observe.reports import words
from observe.reports.conclusions import WhereTheTimeWent, longest_calls, where_the_time_went
from observe.reports.process_tree import processes_of
from observe.reports.rows import UNATTRIBUTED, Timeline, timeline
from observe.reports.terminal import Page
from observe.reports.timeline_data import hues_of, timeline_data, top_of
from observe.reports.why_rows import CauseRow, WhyRun, why_run
from observe.reports.why_words import evidence, spent

_PAGE = Page()


@dataclass(frozen=True)
class Shown:
    """A run under a key that is unique on its page. `data` is None where a page has no room for its timeline."""

    key: str
    run: Run
    functions: Mapping[str, Sequence[str]]
    embedded: bool = True

    @property
    def name(self) -> str:
        """Of the container, as far as it is known."""
        return name_of(self.run)

    @cached_property
    def line(self) -> Timeline:
        """Its rows."""
        return timeline(self.run)

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the timeline draws."""
        return timeline_data(self.run, self.functions)

    @property
    def looks(self) -> Looks:
        """Colours and titles of its rows."""
        return Looks.of([self.run])

    @property
    def conclusion(self) -> WhereTheTimeWent | None:
        """The largest own times; None for a log without times."""
        return where_the_time_went(self.line)

    @property
    def calls(self) -> Sequence[tuple[str, Event]]:
        """The longest system calls."""
        return longest_calls(self.run)

    @cached_property
    def why(self) -> WhyRun | None:
        """What its time was spent on; None if that was not asked for, or not recorded."""
        return why_run(self.run)

    @property
    def spent(self) -> Sequence[str]:
        """The same in one line, a fact each."""
        return tuple(spent(self.why.time, self.run.duration_ns, _PAGE)) if self.why else ()

    def evidence(self, row: CauseRow) -> Sequence[str]:
        """The largest pieces of a cause, in words."""
        return tuple(evidence(step, self.run.start_ns, _PAGE) for step in row.evidence)

    @property
    def process_names(self) -> Mapping[int, str]:
        """Pid → what it executed."""
        return {process.pid: process.name for process in processes_of(self.run)}

    @property
    def not_seen(self) -> Sequence[str]:
        """Documented phases without evidence, in words."""
        return words.not_seen(self.line.not_seen, failed=self.run.outcome != "ok")

    @property
    def phases_seen(self) -> int:
        """How many documented phases have times, the operation itself left out."""
        return len({span.id for span in self.run.phases[1:] if span.start_ns is not None})

    @property
    def probe_hits(self) -> int:
        """How many probes of functions were hit."""
        return sum(span.probe_hits for span in self.run.phases)

    @property
    def probe_cost_ns(self) -> int:
        """What that took of the run's time."""
        return sum((span.self_ns or 0) - (span.corrected_self_ns or 0) for span in self.run.phases if span.self_ns)

    @property
    def by_functions(self) -> bool:
        """Whether any phase is bounded by functions."""
        return any(row.evidence is Evidence.FUNCTION for row in self.line.rows)


def name_of(run: Run) -> str:
    """What to call its container: its name, else the beginning of its id."""
    return run.container_name or (run.container_id or "")[:12] or "(no name)"


@dataclass(frozen=True)
class Looks:
    """Which colour a row has, as a class of the style sheet, and what the catalogue calls it."""

    hues: Mapping[str, int]
    titles: Mapping[str, str]

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Looks:
        """For runs of one operation."""
        phases = dict.fromkeys(span.id for run in runs for span in run.phases)
        return cls(hues_of(phases), {phase.id: phase.title for phase in load().phases})

    def hue(self, phase: str) -> str:
        """`hue-3`."""
        if phase == UNATTRIBUTED:
            return "hue-unattributed"
        top = top_of(phase)
        return f"hue-{self.hues[top]}" if top in self.hues else "hue-operation"

    def title(self, phase: str) -> str:
        """Empty if it has none."""
        return "" if phase == UNATTRIBUTED else self.titles.get(phase, "")
