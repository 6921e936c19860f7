# SPDX-License-Identifier: Apache-2.0
"""The live page: what is in progress, what was slow, what came last. Complete without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate
from xml.etree.ElementTree import Element

from observe.exporter.families import SOURCES
from observe.exporter.markup import document, element, html
from observe.exporter.snapshot import Snapshot
from observe.model import Loss, Run, Span
from observe.reports import words
from observe.reports.report import Report
from observe.reports.rows import UNATTRIBUTED, timeline
from observe.reports.terminal import Page, wall_time

_PAGE = Page()
#: Phases that are named beside the bar.
_NAMED = 3
#: Colours of phases in style.css.
_COLOURS = 6
#: Head of a column → what it is called in style.css.
_COLUMNS = {
    "started (UTC)": "time",
    "operation": "operation",
    "container": "container",
    "image": "image",
    "network": "network",
    "outcome": "outcome",
    "duration": "number",
    "where the time went": "where",
}
_PHASE_COLUMNS = {
    "phase": "",
    "duration": "number",
    "self": "number",
    "share": "number",
    "system calls": "number",
    "file events": "number",
    "evidence": "",
    "when": "where",
}
_MAIN = re.compile(rb"<main\b[^>]*>")
#: Where the HTML report says that nothing was lost.
_NOTHING_LOST = re.compile(rb'<p class="loss">.*?</p>', re.DOTALL)
#: Without JavaScript the page comes anew.
_RELOAD_SECONDS = "5"


def key_of(run: Run) -> str:
    """What a run is called in the page's addresses."""
    return f"{run.operation}-{run.start_ns}"


def live_page(snapshot: Snapshot) -> bytes:
    """The page at `/`."""
    reload = element("noscript", element("meta", http_equiv="refresh", content=_RELOAD_SECONDS))
    host = str(snapshot.header.host.get("hostname", "")) if snapshot.header else ""
    return document(
        *_head(f"{host} · observe" if host else "observe"),
        reload,
        element("script", src="/live.js", defer="defer"),
        body=element("body", _main(snapshot), _footer()),
    )


def live_fragment(snapshot: Snapshot) -> bytes:
    """What of the page changes: the content of its `main`."""
    return "".join(map(html, _sections(snapshot))).encode()


def operation_page(report: Report) -> bytes:
    """One operation as a table of its phases. `report` has one run."""
    run = report.runs[0]
    title = f"{run.operation} {_name(run)}"
    facts = [f"{run.operation} took {_PAGE.duration(run.duration_ns)}", _outcome(run), wall_time(run.wall_time_ns)]
    facts += [f"image {run.image}" if run.image else "", f"network {run.network}" if run.network else ""]
    body = element(
        "body",
        element(
            "main",
            element("h1", title),
            element("p", " · ".join(filter(None, facts)), class_="facts"),
            element("p", " · ".join(words.origin(report)), class_="facts"),
            _phases(run),
        ),
        _footer(),
    )
    return document(*_head(f"{title} · observe"), body=body)


def in_serve(page: bytes, lost: Loss) -> bytes:
    """An operation's page with the way back to `/`. `lost`: by the process so far, of whatever operation."""
    added = [element("p", element("a", "← all operations", href="/"))]
    if lost.data_was_lost:
        # Nobody knows whether this operation is concerned.
        page = _NOTHING_LOST.sub(b"", page, count=1)
        line = f"Lost since observe began, of whatever operation: {words.losses(lost)}."
        added.append(element("p", line, class_="facts"))
    top = "".join(map(html, added)).encode()
    return _MAIN.sub(lambda main: main[0] + top, page, count=1)


def _head(title: str) -> tuple[Element, ...]:
    return (
        element("title", title),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="stylesheet", href="/style.css"),
    )


def _footer() -> Element:
    links = {"/metrics": "metrics", "/api/operations": "JSON", "/readyz": "readiness"}
    return element("footer", *(element("a", text, href=href) for href, text in links.items()))


def _main(snapshot: Snapshot) -> Element:
    return element("main", *_sections(snapshot), id="live", aria_live="off")


def _sections(snapshot: Snapshot) -> list[Element]:
    running = sum(snapshot.in_flight.values())
    heading = f"In progress ({running})" if running else "In progress"
    # They are built for who looks, from the first snapshot after that.
    none = f"{running} in progress; details in a moment." if running else "No request is waiting for its answer."
    return [
        _state(snapshot),
        element("h2", heading),
        _operations(snapshot, snapshot.open_runs, none, "in progress"),
        element("h2", "Slowest of the last hour"),
        _operations(snapshot, snapshot.slowest, "No create and no start in the last hour.", "slowest"),
        element("h2", "Most recent"),
        _operations(snapshot, snapshot.recent, "No create and no start since observe was attached.", "recent"),
    ]


def _state(snapshot: Snapshot) -> Element:
    """Attached to what, or why not; what was lost; what must be known besides."""
    condition, header = snapshot.condition, snapshot.header
    report = Report(header.host if header else {}, header.engine if header else {}, snapshot.loss, ())
    missing = [probe for probe, attached in condition.attached.items() if not attached]
    if not condition.is_ready:
        badge, text = "bad", "not attached"
    elif missing:
        badge, text = "fair", f"attached without {', '.join(missing)}"
    else:
        badge, text = "good", "attached"
    lines = [element("p", element("strong", text, class_=f"badge {badge}"), " ", " · ".join(words.origin(report)))]
    if condition.obstacle:
        lines.append(element("p", condition.obstacle, class_="warning"))
    lost = {SOURCES.get(name.replace(" ", "_"), name): count for name, count in words.counted(snapshot.loss).items()}
    told = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in lost.items())
    what = "Lost events" if snapshot.loss.data_was_lost else "No data lost; counted besides"
    if told:
        style = "warning" if snapshot.loss.data_was_lost else "facts"
        lines.append(element("p", f"{what}: {told}", class_=style))
    lines += [element("p", warning, class_="warning") for warning in snapshot.warnings]
    return element("header", element("h1", "Container operations"), *lines)


def _operations(snapshot: Snapshot, runs: Iterable[Run], empty: str, label: str) -> Element:
    rows = [_operation(snapshot, run) for run in runs]
    if not rows:
        return element("p", empty, class_="empty")
    return _table(_COLUMNS, rows, label, "operations")


def _operation(snapshot: Snapshot, run: Run) -> Element:
    open_ = any(run is one for one in snapshot.open_runs)
    duration_ns = max(snapshot.wall_time_ns - run.wall_time_ns, 0) if open_ else run.duration_ns
    link = element("a", _name(run), href=f"/operations/{key_of(run)}")
    started = wall_time(run.wall_time_ns).removesuffix(" UTC")
    outcome = "in progress" if open_ else _outcome(run)
    return element(
        "tr",
        element("td", started.partition(" ")[2], class_="time", title=started),
        element("td", run.operation, class_="operation"),
        element("td", link, class_="container", title=_name(run)),
        element("td", run.image or "", class_="image", title=run.image or ""),
        element("td", run.network or "", class_="network"),
        element("td", outcome, class_="outcome" if open_ else f"outcome {run.outcome}", title=outcome),
        element("td", _PAGE.duration(duration_ns), class_="number"),
        element("td", *_where(run), class_="where"),
    )


def _name(run: Run) -> str:
    return run.container_name or (run.container_id or "unknown")[:12]


def _outcome(run: Run) -> str:
    return f"{run.outcome}: {run.error}" if run.error else run.outcome


def _where(run: Run) -> list[Element]:
    """A bar of the phases directly below the operation, and the largest of them in words."""
    top = [
        (index, span) for index, span in enumerate(s for s in run.phases if s.id.count(".") == 1) if span.duration_ns
    ]
    if not top or not run.duration_ns:
        return []
    shares = [(span.duration_ns or 0) / run.duration_ns * 100 for _, span in top]
    starts = [0.0, *accumulate(shares)]
    bars = [
        element(
            "rect",
            element("title", f"{span.id}: {_PAGE.duration(span.duration_ns or 0)}"),
            class_=f"phase-{index % _COLOURS}",
            x=f"{start:.3f}",
            y="0",
            width=f"{share:.3f}",
            height="10",
        )
        for (index, span), start, share in zip(top, starts, shares, strict=False)
    ]
    picture = element("svg", *bars, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")
    largest = sorted((span for _, span in top), key=lambda span: -(span.duration_ns or 0))[:_NAMED]
    text = ", ".join(f"{_last(span)} {words.percent((span.duration_ns or 0) / run.duration_ns)}" for span in largest)
    return [picture, element("span", text, title=text)]


def _last(span: Span) -> str:
    return span.id.rpartition(".")[2]


def _phases(run: Run) -> Element:
    whole = timeline(run)
    rows = []
    for row in whole.rows:
        pieces = [
            element("rect", x=f"{start * 100:.3f}", y="0", width=f"{max(length * 100, 0.2):.3f}", height="10")
            for start, length in row.pieces
        ]
        bar = element("svg", *pieces, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")
        name = row.id if row.id == UNATTRIBUTED else row.name
        rows.append(
            element(
                "tr",
                element("td", name, class_=f"depth-{min(row.depth, 3)}"),
                *(
                    element("td", "" if value is None else _PAGE.duration(value), class_="number")
                    for value in (row.duration_ns, row.self_ns)
                ),
                element("td", words.percent(row.share), class_="number"),
                element("td", f"{row.syscalls:,}", class_="number"),
                element("td", f"{row.file_events:,}", class_="number"),
                element("td", words.evidence(row)),
                element("td", bar, class_="where"),
            )
        )
    return _table(_PHASE_COLUMNS, rows, "phases")


def _table(columns: Mapping[str, str], rows: Iterable[Element], label: str, kind: str = "") -> Element:
    """`columns`: head → class; `kind`: class of the table."""
    heads = (element("th", name, scope="col", class_=class_) for name, class_ in columns.items())
    body = element("tbody", *rows)
    table = element("table", element("thead", element("tr", *heads)), body, aria_label=label, class_=kind)
    return element("div", table, class_="scroll")
