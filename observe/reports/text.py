# SPDX-License-Identifier: Apache-2.0
"""The report for people in a terminal: a timeline each for few runs, percentiles for many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from observe.model import Departure, Evidence, Run
from observe.phases import Phase, load
from observe.reports import words
from observe.reports.layout import Bars, Column, table
from observe.reports.report import Report
from observe.reports.rows import (
    DepartureCount,
    NotSeen,
    SlowRun,
    StatsRow,
    Summary,
    Timeline,
    TimelineRow,
    summarise,
    timeline,
)
from observe.reports.terminal import Page, wall_time

#: Up to so many runs are shown one by one.
FEW_RUNS = 4

#: How many failed runs are named.
_FAILURES = 10

_BOLD, _DIM, _RED, _GREEN, _YELLOW, _MAGENTA, _CYAN = "1", "2", "31", "32", "33", "35", "36"
_OUTCOME_STYLES = {"ok": _GREEN, "failed": f"{_BOLD};{_RED}", "unfinished": _YELLOW}

_NOTHING = (
    "No docker create and no docker start in it. What to try:",
    "- let one happen while it records: observe record -o FILE -- docker run --rm IMAGE",
    "- see whether the client talked to the recorded engine: docker context ls, $DOCKER_HOST, --docker-host",
    "- let observe doctor say what this host can do",
)


def render(report: Report, page: Page) -> str:
    """The whole report, with a line end."""
    phases = {phase.id: phase for phase in load().phases}
    blocks = [_origin(report, page)]
    if not report.runs:
        blocks.append([line for text in _NOTHING for line in page.paragraph(text)])
    elif len(report.runs) <= FEW_RUNS:
        blocks.extend(_timeline(timeline(run), phases, page) for run in report.runs)
    else:
        blocks.extend(_summary(summary, phases, page) for summary in summarise(report.runs))
    blocks.append(_notes(report, page))
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _origin(report: Report, page: Page) -> list[str]:
    """Where it was recorded, as far as it is known."""
    host, engine = report.host, report.engine
    facts = [
        host.get("hostname"),
        host.get("kernel") and f"Linux {host['kernel']}",
        host.get("arch"),
        engine.get("version") and f"dockerd {engine['version']}",
        engine.get("go_version"),
        engine.get("storage_driver"),
    ]
    known = [page.safe(str(fact)) for fact in facts if fact]
    return [page.style(line, _DIM) for line in page.flow("", known, page.dot)] if known else []


def _notes(report: Report, page: Page) -> list[str]:
    lines = page.paragraph(words.losses(report.loss), f"{_BOLD};{_RED}" if report.loss.data_was_lost else _DIM)
    for warning in report.warnings:
        lines.extend(page.paragraph(f"warning: {warning}", _YELLOW))
    return lines


# One run ---------------------------------------------------------------------------------------------------


def _timeline(line: Timeline, phases: Mapping[str, Phase], page: Page) -> list[str]:
    rows, hottest = line.rows, line.hottest
    columns = [
        Column("phase", [_label(row.name, row.depth) for row in rows], right=False),
        Column(
            "", [phases[row.id].title if row.depth and row.id in phases else "" for row in rows], right=False, rank=7
        ),
        *(_times(rows, page) if line.timed else ()),
        Column("calls", [str(row.syscalls or "") for row in rows], rank=4),
        Column("files", [str(row.file_events or "") for row in rows], rank=5),
        Column("evidence", [_evidence(row) for row in rows], right=False, rank=3),
    ]
    bars = Bars(
        rows=[row.pieces for row in rows],
        styles=[_bar_style(row, row is hottest) for row in rows],
        head=lambda cells: _scale(line.run.duration_ns, cells, page) if line.timed else "first to last event",
    )
    styles = [_row_style(row, row is hottest) for row in rows]
    lines = [*_header(line.run, page), *table(page, columns, styles, bars)]
    by = "" if any(row.evidence is Evidence.FUNCTION for row in rows) else " by kernel evidence"
    expected = _expected(line.not_seen, phases, failed=line.run.outcome != "ok")
    lines.extend(_not_seen(f"not seen{by}:", expected, page))
    if not by:
        kernel = [NotSeen(row.id, 1) for row in rows if row.evidence is Evidence.KERNEL and _has_functions(row, phases)]
        lines.extend(_not_seen("by kernel evidence only:", kernel, page))
        lines.append(page.style(_probes(line.run, page), _DIM))
    for departure in line.run.departures:
        lines.extend(page.paragraph(f"departure: {_departure(departure)}", _YELLOW))
    return lines


def _has_functions(row: TimelineRow, phases: Mapping[str, Phase]) -> bool:
    """Whether it could be bounded by functions."""
    return bool(row.depth and row.id in phases and phases[row.id].functions)


def _probes(run: Run, page: Page) -> str:
    """What timing the functions cost this run."""
    hits = sum(span.probe_hits for span in run.phases)
    cost_ns = sum((span.self_ns or 0) - (span.corrected_self_ns or 0) for span in run.phases if span.self_ns)
    return f"probes of functions: {hits} hits, about {page.duration(cost_ns)} of the time above"


def _departure(departure: Departure | DepartureCount) -> str:
    return f"{departure.kind.replace('_', ' ')}: {departure.text or departure.phase}"


def _times(rows: Sequence[TimelineRow], page: Page) -> list[Column]:
    return [
        Column("time", [_duration(row.duration_ns, page) for row in rows]),
        Column("share", [_percent(row.share) for row in rows]),
        Column("own", [_duration(row.self_ns, page) if row.depth else "" for row in rows], rank=6),
    ]


def _header(run: Run, page: Page) -> list[str]:
    """Operation and container, how long, how it ended; then who and when."""
    title = f"{run.operation} {page.safe(run.container_name or '(no name)')}"
    outcome = page.safe(run.outcome)
    facts = [
        page.duration(run.duration_ns) if run.duration_ns else None,
        (run.container_id or "")[:12],
        run.image,
        f"network {run.network}" if run.network else None,
        wall_time(run.wall_time_ns),
    ]
    known = [page.safe(fact) for fact in facts if fact]
    lead = title + page.dot + outcome
    first, *rest = page.flow(lead, ["", *known], page.dot)
    # Styles only now: they have no width.
    styled = page.style(title, _BOLD) + page.dot + page.style(outcome, _OUTCOME_STYLES.get(run.outcome, ""))
    return [styled + first.removeprefix(lead), *rest, *_error(run, page)]


def _error(run: Run, page: Page) -> list[str]:
    return page.paragraph(f"error: {run.error}", _RED, indent=2) if run.error else []


def _expected(missing: Iterable[NotSeen], phases: Mapping[str, Phase], *, failed: bool) -> list[NotSeen]:
    """Without the phases that only a failure brings, if nothing failed."""
    return [gap for gap in missing if failed or gap.id not in phases or phases[gap.id].occurs != "on_failure"]


def _not_seen(first: str, phases: Sequence[NotSeen], page: Page) -> list[str]:
    """One line (or as many as it needs) that names every documented phase that was not seen."""
    if not phases:
        return []
    names = [
        phase.id.partition(".")[2] + (f" (all {phase.parts} parts)" if phase.parts > 1 else "") for phase in phases
    ]
    items = [f"{name}," for name in names[:-1]] + names[-1:]
    return [page.style(line, _DIM) for line in page.flow(first, ["", *items], " ")]


def _evidence(row: TimelineRow) -> str:
    if row.evidence is None:
        return ""
    if row.at_floor:
        return "at floor"
    return "not seen" if row.evidence is Evidence.NONE else row.evidence.value


def _row_style(row: TimelineRow, hottest: bool) -> str:
    if not row.depth or hottest:
        return _BOLD
    return _DIM if row.evidence is Evidence.NONE else ""


def _bar_style(row: TimelineRow, hottest: bool) -> str:
    if row.evidence is None:
        return _MAGENTA
    if hottest:
        return _YELLOW
    return _CYAN if row.depth else _DIM


def _scale(duration_ns: int, cells: int, page: Page) -> str:
    """The axis over the bars: 0 at the left, the whole duration at the right, its middle if there is room."""
    end = page.duration(duration_ns)
    middle = page.duration(duration_ns / 2)
    if cells < 3 * len(end) + 6:
        return "0" + end.rjust(cells - 1)
    left = "0".ljust(cells // 2 - len(middle) // 2) + middle
    return left + end.rjust(cells - len(left))


# Many runs -------------------------------------------------------------------------------------------------


def _summary(summary: Summary, phases: Mapping[str, Phase], page: Page) -> list[str]:
    rows = summary.rows
    columns = [
        Column("phase", [_label(row.name, row.depth) for row in rows], right=False),
        Column("n", [str(row.n) for row in rows]),
        Column("p50", [_duration(row.p50_ns, page) for row in rows]),
        Column("p90", [_duration(row.p90_ns, page) for row in rows], rank=3),
        Column("p99", [_duration(row.p99_ns, page) for row in rows]),
        Column("max", [_duration(row.max_ns, page) for row in rows], rank=4),
        Column("share", [_percent(row.share) for row in rows]),
    ]
    bars = Bars(
        rows=[[(0.0, row.share)] if row.share else [] for row in rows],
        styles=[_share_style(row) for row in rows],
        head=lambda _cells: "",
    )
    counts = [
        f"{len(summary.runs)} runs",
        *(f"{count} {page.safe(outcome)}" for outcome, count in summary.outcomes.items()),
    ]
    title, *rest = page.flow(summary.operation, ["", *counts], page.dot)
    lines = [page.style(title, _BOLD), *rest]
    lines.extend(table(page, columns, ["" if row.depth else _BOLD for row in rows], bars))
    expected = _expected(summary.not_seen, phases, failed=bool(summary.failures))
    lines.extend(_not_seen("not seen in any run:", expected, page))
    for departure in summary.departures:
        text = f"departure in {departure.runs} of {len(summary.runs)} runs: {_departure(departure)}"
        lines.extend(page.paragraph(text, _YELLOW))
    if summary.slowest:
        lines.extend(["", page.style("slowest", _BOLD), *_slowest(summary.slowest, page)])
    if summary.failures:
        lines.extend(["", page.style("not ok", f"{_BOLD};{_RED}"), *_failures(summary.failures, page)])
    return lines


def _share_style(row: StatsRow) -> str:
    if row.id == "unattributed":
        return _MAGENTA
    return _CYAN if row.depth else _DIM


def _slowest(slowest: Sequence[SlowRun], page: Page) -> list[str]:
    reasons = [
        f"{slow.phase.rpartition('.')[2]} +{page.duration(slow.excess_ns)}" if slow.excess_ns > 0 else ""
        for slow in slowest
    ]
    columns = [
        Column("time", [page.duration(slow.run.duration_ns) for slow in slowest]),
        *_who([slow.run for slow in slowest], page),
        Column("most above the median", reasons, right=False, rank=1),
        Column("when", [wall_time(slow.run.wall_time_ns) for slow in slowest], right=False, rank=3),
    ]
    return table(page, columns, [""] * len(slowest))


def _failures(failures: Sequence[Run], page: Page) -> list[str]:
    named = failures[:_FAILURES]
    columns = [
        Column("time", [page.duration(run.duration_ns) for run in named]),
        *_who(named, page),
        Column("outcome", [page.safe(run.outcome) for run in named], right=False),
        Column("last phase seen", [_last_phase(run) for run in named], right=False, rank=1),
    ]
    head, *lines = table(page, columns, [_RED] * len(named))
    out = [head]
    for run, line in zip(named, lines, strict=True):
        out.extend([line, *_error(run, page)])
    if len(failures) > len(named):
        out.append(f"and {len(failures) - len(named)} more")
    return out


def _who(runs: Sequence[Run], page: Page) -> list[Column]:
    names = [page.shorten(page.safe(run.container_name or "(no name)"), 24) for run in runs]
    return [
        Column("container", names, right=False),
        Column("id", [page.safe((run.container_id or "")[:12]) for run in runs], right=False, rank=2),
        Column("network", [page.shorten(page.safe(run.network or ""), 16) for run in runs], right=False, rank=4),
    ]


def _last_phase(run: Run) -> str:
    ends: Iterable[tuple[int, str]] = (
        (span.start_ns, span.id.partition(".")[2]) for span in run.phases[1:] if span.start_ns is not None
    )
    return max(ends, default=(0, "none"))[1]


# Both ------------------------------------------------------------------------------------------------------


def _label(name: str, depth: int) -> str:
    return "  " * depth + name


def _duration(duration_ns: float | None, page: Page) -> str:
    return "-" if duration_ns is None else page.duration(duration_ns)


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    percent = share * 100
    if 0 < percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 99.95 else f"{percent:.0f}%"
