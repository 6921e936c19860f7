# SPDX-License-Identifier: Apache-2.0
"""The comparison as one HTML file: the table, and the median run of each arm on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from observe.model import Run
from observe.reports import compare_words, html_page
from observe.reports.comparison import Arm, Comparison, OperationComparison, Row, Verdict
from observe.reports.html_run import Shown
from observe.reports.terminal import Page

#: Differences that are drawn; what may be chance is not.
_DRAWN = (Verdict.SLOWER, Verdict.FASTER, Verdict.APPEARED, Verdict.DISAPPEARED)
_PAGE = Page()


@dataclass(frozen=True, slots=True)
class ComparedOperation:
    """One operation, and the median run of BASE and of NEW as far as there is one."""

    comparison: OperationComparison
    medians: tuple[tuple[str, Shown], ...]

    @property
    def key(self) -> str:
        """Of the timelines that share an axis."""
        return f"median-{self.comparison.operation}"

    def bar(self, row: Row) -> tuple[float, float] | None:
        """Where its contribution is drawn: left end and width in percent, to the right of the middle if it grew."""
        contributions_ns = [abs(one.contribution_ns or 0) for one in self.comparison.rows if one.verdict in _DRAWN]
        if row.verdict not in _DRAWN or not row.contribution_ns:
            return None
        width = 49 * abs(row.contribution_ns) / max(contributions_ns)
        return (50 if row.contribution_ns > 0 else 50 - width), width


def render(comparison: Comparison) -> bytes:
    """UTF-8, complete in itself. Median runs that bring their events along are shown with them."""
    operations = []
    for one in comparison.operations:
        medians = tuple(
            (name, Shown(f"{name.lower()}-{one.operation}", run, arm.report.functions))
            for name, arm in (("BASE", comparison.base), ("NEW", comparison.new))
            if (run := _median_run(arm, one.operation)) is not None
        )
        operations.append(ComparedOperation(one, medians))
    return html_page.render(
        "compare.html", comparison=comparison, operations=operations, told=compare_words, letters=_PAGE
    )


def median_runs(arm: Arm) -> Sequence[Run]:
    """Of each operation the run whose timeline the page shows."""
    operations = dict.fromkeys(run.operation for run in arm.report.runs)
    return [run for operation in operations if (run := _median_run(arm, operation)) is not None]


def _median_run(arm: Arm, operation: str) -> Run | None:
    """Of an even number the shorter one of the two in the middle; of equals the first."""
    runs = [run for run in arm.report.runs if run.operation == operation and run.outcome == "ok" and run.duration_ns]
    return sorted(runs, key=lambda run: run.duration_ns)[(len(runs) - 1) // 2] if runs else None
