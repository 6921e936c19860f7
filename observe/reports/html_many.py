# SPDX-License-Identifier: Apache-2.0
"""Many runs of one operation, as the pages show them; and which of them bring their timelines along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from observe.model import Run
from observe.reports import charts, words
from observe.reports.breakdown import Breakdown, breakdowns
from observe.reports.html_run import Looks
from observe.reports.report import Report
from observe.reports.rows import SLOWEST, Summary
from observe.reports.terminal import Page
from observe.reports.why_rows import WhyMany, why_many
from observe.reports.why_words import spent


@dataclass(frozen=True)
class ManyRuns:
    """One operation. `keys`: the identity of a run that has a timeline on the page → its key there."""

    summary: Summary
    report: Report
    keys: Mapping[int, str]

    @property
    def looks(self) -> Looks:
        """Colours and titles of its rows."""
        return Looks.of(self.summary.runs)

    @property
    def timed(self) -> bool:
        """Whether there is anything to draw."""
        return any(run.duration_ns for run in self.summary.measured)

    @property
    def outcomes(self) -> Sequence[str]:
        """`19 ok`, `1 failed`."""
        return [f"{count:,} {outcome}" for outcome, count in self.summary.outcomes.items()]

    @cached_property
    def durations_ns(self) -> Mapping[str, Sequence[int]]:
        """Row → its durations."""
        return charts.durations(self.summary)

    @cached_property
    def axis(self) -> charts.Axis:
        """On which all rows have their place."""
        return charts.Axis.over(value for values in self.durations_ns.values() for value in values)

    @property
    def distributions(self) -> Mapping[str, charts.Distribution]:
        """Row → where its quartiles are on the axis."""
        return charts.distributions(self.durations_ns, self.axis)

    @cached_property
    def whole_axis(self) -> charts.Axis:
        """For the operation itself."""
        return charts.Axis.over(run.duration_ns for run in self.summary.measured)

    @property
    def histogram(self) -> Sequence[charts.Bar]:
        """Of the operation's durations."""
        return charts.histogram([run.duration_ns for run in self.summary.measured], self.whole_axis)

    @property
    def over_time(self) -> charts.OverTime:
        """All runs, the failed ones included."""
        return charts.over_time(self.summary.runs)

    @property
    def breakdowns(self) -> Sequence[Breakdown]:
        """By network, image, storage driver, outcome."""
        return breakdowns(self.summary, self.report)

    @cached_property
    def why(self) -> WhyMany | None:
        """What the time of those that went well was spent on; None if that was not asked for, or not recorded."""
        return next(iter(why_many(self.summary.runs)), None)

    @property
    def spent(self) -> Sequence[str]:
        """The same in one line, a fact each, of one run on average."""
        return tuple(spent(self.why.mean, self.why.mean_ns, Page())) if self.why else ()

    @property
    def not_seen(self) -> Sequence[str]:
        """Documented phases that no run shows."""
        return words.not_seen(self.summary.not_seen, failed=bool(self.summary.failures))

    def key(self, run: Run) -> str:
        """Of its timeline on the page; empty if it has none."""
        return self.keys.get(id(run), "")


def with_timelines(summary: Summary) -> Sequence[Run]:
    """The runs that bring their timelines along: the slowest (the first, if none has times), and some that failed."""
    shown = [slow.run for slow in summary.slowest] or summary.measured[:SLOWEST]
    runs = [*shown, *summary.failures[:SLOWEST]]
    return list({id(run): run for run in runs}.values())
