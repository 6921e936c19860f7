# SPDX-License-Identifier: Apache-2.0
"""A comparison in words: what text and markdown both say. Nothing here is made safe for a page yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from observe.reports.comparison import Comparison, DepartureChange, OperationComparison, Row, Verdict
from observe.reports.inference import ALPHA, CONFIDENCE, RESAMPLES
from observe.reports.terminal import Page

#: In place of an interval.
_WHY_NONE = {
    Verdict.NOT_ENOUGH_RUNS: "not enough runs",
    Verdict.APPEARED: "appeared",
    Verdict.DISAPPEARED: "disappeared",
    Verdict.OTHER_EVIDENCE: "other evidence",
    Verdict.AT_FLOOR: "at floor",
}

NOTHING = "No docker create and no docker start in either of them: nothing to compare"


def arrow(verdict: Verdict, page: Page) -> str:
    """The sign of a difference that was found; empty otherwise."""
    if verdict is Verdict.SLOWER:
        return "▲" if page.unicode else "^"
    if verdict is Verdict.FASTER:
        return "▼" if page.unicode else "v"
    return ""


def duration(duration_ns: float | None, page: Page) -> str:
    """A duration, or that there is none."""
    return "-" if duration_ns is None else page.duration(duration_ns)


def signed(duration_ns: float | None, page: Page) -> str:
    """A difference with its sign."""
    if duration_ns is None:
        return "-"
    text = page.duration(abs(duration_ns))
    if text == "0 ns":
        return text
    return f"{'+' if duration_ns > 0 else '-'}{text}"


def own(row: Row, page: Page) -> str:
    """The difference of a phase's own time, with its sign if one was found and it is not the whole's."""
    sign = arrow(row.own_verdict, page) if row.own_p != row.p else ""
    return f"{sign} {signed(row.contribution_ns, page)}".lstrip()


def interval(row: Row, page: Page) -> str:
    """`+3.9 to +6.2 ms`; or why there is none."""
    if row.interval_ns is None:
        return _WHY_NONE.get(row.verdict, "")
    low, high = (signed(end_ns, page) for end_ns in row.interval_ns)
    number, unit = low.split(" ", 1)
    return f"{number if high.endswith(f' {unit}') and ' ' not in unit else low} to {high}"


def growth(row: Row) -> str:
    """`+2.9%`, or that it is not known."""
    return "-" if row.growth is None else f"{row.growth:+.1%}"


def count(row: Row) -> str:
    """In how many runs of BASE, and of NEW, it was seen."""
    return f"{row.base_n}, {row.new_n}"


def headline(operation: OperationComparison, needed_runs: int, page: Page) -> str:
    """What became of the operation itself, in a few words."""
    row = operation.rows[0]
    if row.verdict.significant:
        size = page.duration(abs(row.difference_ns or 0))
        return f"{arrow(row.verdict, page)} {row.verdict.value} by {size} ({growth(row)})"
    if row.verdict is Verdict.NO_DIFFERENCE:
        return "no difference found"
    return f"not enough runs: {row.base_n} and {row.new_n}, each needs {needed_runs}"


def groups(operation: OperationComparison, quote: Callable[[str], str]) -> tuple[str, str]:
    """`BASE: 30 of 31 runs compared, 1 failed` for each arm; `quote` makes text from outside safe."""
    told = []
    for name, group in (("BASE", operation.base), ("NEW", operation.new)):
        total = sum(group.outcomes.values())
        others = [f"{number} {quote(outcome)}" for outcome, number in group.outcomes.items() if outcome != "ok"]
        untimed = group.outcomes.get("ok", 0) - group.compared
        if untimed:
            others.append(f"{untimed} without times")
        told.append(", ".join([f"{name}: {group.compared} of {total} runs compared", *others]))
    return told[0], told[1]


def departure(change: DepartureChange, operation: OperationComparison) -> str:
    """`departure appeared in 12 of 30 runs: …`."""
    if change.new_runs:
        where = f"appeared in {change.new_runs} of {operation.new.compared} runs"
    else:
        where = f"is gone (it was in {change.base_runs} of {operation.base.compared} runs)"
    return f"departure {where}: {change.kind.replace('_', ' ')}: {change.text or change.phase}"


def warnings(comparison: Comparison) -> Iterator[str]:
    """What must be known about the recordings."""
    for name, arm in (("BASE", comparison.base), ("NEW", comparison.new)):
        if arm.report.loss.data_was_lost:
            yield f"{name}: data was lost while recording; observe report says what"
        for warning in arm.report.warnings:
            yield f"{name}: {warning}"


def legend(comparison: Comparison) -> str:
    """How the numbers came about, and what it takes."""
    needed = f"needs {comparison.needed_runs} runs that go well in each arm"
    if not comparison.is_tested:
        among = f" (Holm over {comparison.tests} tests)" if comparison.tests else ""
        return f"medians of runs that went well; an answer{among} {needed}: fewer may differ altogether by chance"
    return (
        f"medians of runs that went well, with {CONFIDENCE:.0%} intervals of their difference ({RESAMPLES:,} bootstrap "
        f"resamples); marked so that of 100 comparisons of equals at most {ALPHA * 100:.0f} would mark anything "
        f"(Mann-Whitney, Holm over {comparison.tests} tests), which {needed}; ranked by a phase's own time, "
        "which is marked by itself where others are in it"
    )
