# SPDX-License-Identifier: Apache-2.0
"""What is at which address: a path and a snapshot become an answer. No sockets here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import resources
from typing import Any

from observe.exporter.exposition import Exposition
from observe.exporter.page import key_of, live_fragment, live_page, operation_page
from observe.exporter.snapshot import Snapshot
from observe.model import Run
from observe.reports.json_ import document
from observe.reports.report import Report, without_details

_HTML, _TEXT, _JSON = "text/html; charset=utf-8", "text/plain; charset=utf-8", "application/json"
#: Nothing but our own files; `style` and `script` elements and attributes do not count.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {"/live.js": "text/javascript; charset=utf-8", "/style.css": "text/css; charset=utf-8"}
_OPERATION, _API = "/operations/", "/api/operations"
#: Whoever asks for these looks at what is in progress.
_WATCHING = frozenset({"/", "/fragment", _API})
#: A recorder whose snapshot is older than this is stuck.
_STUCK_NS = 60_000_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body, and its type; `policy`: Content-Security-Policy."""

    body: bytes
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    policy: str = _POLICY


@dataclass(frozen=True, slots=True)
class OperationPage:
    """Makes the page of a report's only run. `policy`: what that page may load and run."""

    render: Callable[[Report], bytes] = operation_page
    policy: str = _POLICY


@dataclass(slots=True)
class Site:
    """Answers from the snapshot of the moment; `watch` is told when somebody looks at what is in progress."""

    snapshot: Callable[[], Snapshot]
    watch: Callable[[], None]
    clock_ns: Callable[[], int]
    operation_page: OperationPage = field(default_factory=OperationPage)
    _exposition: Exposition = field(default_factory=Exposition)

    def get(self, path: str, accept: str = "") -> Answer:
        """The answer to GET `path` (without its query), whose Accept header is given."""
        snapshot = self.snapshot()
        if path in _WATCHING:
            self.watch()
        if path == "/metrics":
            return Answer(*self._exposition.write(snapshot, accept))
        if path in _FILES:
            return Answer(resources.files(__package__).joinpath("static", path[1:]).read_bytes(), _FILES[path])
        plain = {
            "/": lambda: Answer(live_page(snapshot), _HTML),
            "/fragment": lambda: Answer(live_fragment(snapshot), _HTML),
            "/healthz": lambda: self._health(snapshot),
            "/readyz": lambda: _readiness(snapshot),
            _API: lambda: _json(operations(snapshot)),
        }.get(path)
        return plain() if plain else self._one_operation(snapshot, path)

    def _one_operation(self, snapshot: Snapshot, path: str) -> Answer:
        for prefix, answer in ((_OPERATION, self._page), (f"{_API}/", _detail)):
            run = _find(snapshot, path.removeprefix(prefix)) if path.startswith(prefix) else None
            if run is not None:
                return answer(_report(snapshot, (run,)))
        return Answer(b"not found: see / for what there is\n", status=HTTPStatus.NOT_FOUND)

    def _health(self, snapshot: Snapshot) -> Answer:
        if self.clock_ns() - snapshot.wall_time_ns < _STUCK_NS:
            return Answer(b"ok\n")
        return Answer(b"the recorder is stuck\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    def _page(self, report: Report) -> Answer:
        return Answer(self.operation_page.render(report), _HTML, policy=self.operation_page.policy)


def operations(snapshot: Snapshot) -> dict[str, Any]:
    """`/api/operations`: the report's JSON of the recent runs, and what is live beside it."""
    report = without_details(_report(snapshot, snapshot.recent), configuration=False, functions=False, path=False)
    in_progress = document(_report(snapshot, snapshot.open_runs))["runs"]
    answer = document(report)
    for runs, rows in ((snapshot.recent, answer["runs"]), (snapshot.open_runs, in_progress)):
        for run, row in zip(runs, rows, strict=True):
            row["id"] = key_of(run)
    return {
        **answer,
        "wall_time_ns": snapshot.wall_time_ns,
        "attached": dict(snapshot.condition.attached),
        "obstacle": snapshot.condition.obstacle,
        "operations_in_flight": dict(snapshot.in_flight),
        "in_progress": in_progress,
        "slowest": [key_of(run) for run in snapshot.slowest],
    }


def _readiness(snapshot: Snapshot) -> Answer:
    if snapshot.condition.is_ready:
        return Answer(b"attached\n")
    text = snapshot.condition.obstacle or "not attached yet"
    return Answer(f"{text}\n".encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)


def _detail(report: Report) -> Answer:
    return _json(document(report))


def _json(value: Any) -> Answer:
    return Answer(f"{json.dumps(value)}\n".encode(), _JSON)


def _find(snapshot: Snapshot, key: str) -> Run | None:
    runs = (*snapshot.open_runs, *snapshot.recent, *snapshot.slowest)
    return next((run for run in runs if key_of(run) == key), None)


def _report(snapshot: Snapshot, runs: tuple[Run, ...]) -> Report:
    header = snapshot.header
    return Report(
        header.host if header else {}, header.engine if header else {}, snapshot.loss, runs, snapshot.warnings
    )
