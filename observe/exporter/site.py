# SPDX-License-Identifier: Apache-2.0
"""What is at which address: a path and a snapshot become an answer. No sockets here."""

from __future__ import annotations

import gzip
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from http import HTTPStatus
from importlib import resources
from threading import Lock
from typing import Any

from observe.exporter.exposition import Exposition, is_openmetrics
from observe.exporter.page import in_serve, key_of, live_fragment, live_page, operation_page
from observe.exporter.snapshot import Snapshot
from observe.model import Loss, Run
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
#: Pages of operations that are kept, of 100 KB each.
PAGES = 8
#: Shorter answers are not worth it.
_GZIP_BYTES = 1400
#: A recorder whose snapshot is older than this is stuck.
_STUCK_NS = 60_000_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body, and its type; `policy`: Content-Security-Policy; `encoding`: Content-Encoding, if any."""

    body: bytes
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    policy: str = _POLICY
    encoding: str = ""


@dataclass(slots=True)
class _Made:
    """An answer as it is and, once somebody has asked for it, compressed."""

    plain: Answer
    _packed: Answer | None = None

    def form(self, *, compressed: bool) -> Answer:
        """One of the two; the first one if it is too short."""
        if not compressed or len(self.plain.body) < _GZIP_BYTES:
            return self.plain
        if self._packed is None:
            self._packed = replace(self.plain, body=gzip.compress(self.plain.body, 1), encoding="gzip")
        return self._packed


@dataclass(frozen=True, slots=True)
class OperationPage:
    """Makes the page of a report's only run. `policy`: what that page may load and run."""

    render: Callable[[Report], bytes] = operation_page
    policy: str = _POLICY


@dataclass(slots=True)
class Site:
    """Answers from the snapshot of the moment; `watch` is told when somebody looks at what is in progress.

    However many ask, little of the interpreter is taken from the recorder: what a snapshot says is rendered once, and
    only one thing at a time.
    """

    snapshot: Callable[[], Snapshot]
    watch: Callable[[], None]
    clock_ns: Callable[[], int]
    operation_page: OperationPage = field(default_factory=OperationPage)
    _exposition: Exposition = field(default_factory=Exposition)
    _rendering: Lock = field(default_factory=Lock)
    #: What was made of this snapshot; the last answers about one operation, with what they were made of.
    _snapshot: Snapshot | None = None
    _made: dict[str, _Made] = field(default_factory=dict)
    _pages: OrderedDict[str, tuple[Report, _Made]] = field(default_factory=OrderedDict)

    def get(self, path: str, accept: str = "", *, compressed: bool = False) -> Answer:
        """The answer to GET `path` (without its query), whose Accept header is given. `compressed`: if it is long."""
        if path in _WATCHING:
            self.watch()
        if path == "/healthz":
            return self._health(self.snapshot())
        if path == "/readyz":
            return _readiness(self.snapshot())
        with self._rendering:
            made = _file(path) if path in _FILES else self._of_snapshot(self.snapshot(), path, accept)
            return made.form(compressed=compressed)

    def _of_snapshot(self, snapshot: Snapshot, path: str, accept: str) -> _Made:
        render: Callable[[], Answer] | None = {
            "/": lambda: Answer(live_page(snapshot), _HTML),
            "/fragment": lambda: Answer(live_fragment(snapshot), _HTML),
            "/metrics": lambda: Answer(*self._exposition.write(snapshot, accept)),
            _API: lambda: _json(operations(snapshot)),
        }.get(path)
        if render is None:
            return self._one_operation(snapshot, path)
        if snapshot is not self._snapshot:
            self._snapshot, self._made = snapshot, {}
        key = f"{path} of OpenMetrics" if path == "/metrics" and is_openmetrics(accept) else path
        if key not in self._made:
            self._made[key] = _Made(render())
        return self._made[key]

    def _one_operation(self, snapshot: Snapshot, path: str) -> _Made:
        for prefix, render, loss in (
            (_OPERATION, self._page, _lost(snapshot.loss)),
            (f"{_API}/", _detail, snapshot.loss),
        ):
            run = _find(snapshot, path.removeprefix(prefix)) if path.startswith(prefix) else None
            if run is not None:
                return self._kept_page(path, replace(_report(snapshot, (run,)), loss=loss), render)
        return _Made(Answer(b"not found: see / for what there is\n", status=HTTPStatus.NOT_FOUND))

    def _kept_page(self, path: str, report: Report, render: Callable[[Report], Answer]) -> _Made:
        known = self._pages.pop(path, None)
        if known is None or known[0] != report:
            known = report, _Made(render(report))
        self._pages[path] = known
        if len(self._pages) > PAGES:
            self._pages.popitem(last=False)
        return known[1]

    def _health(self, snapshot: Snapshot) -> Answer:
        if self.clock_ns() - snapshot.wall_time_ns < _STUCK_NS:
            return Answer(b"ok\n")
        return Answer(b"the recorder is stuck\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    def _page(self, report: Report) -> Answer:
        """`report.loss` is the process's: the page says it as that, and not as this operation's."""
        page = self.operation_page.render(replace(report, loss=Loss()))
        return Answer(in_serve(page, report.loss), _HTML, policy=self.operation_page.policy)


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


@cache
def _file(path: str) -> _Made:
    return _Made(Answer(resources.files(__package__).joinpath("static", path[1:]).read_bytes(), _FILES[path]))


def _detail(report: Report) -> Answer:
    return _json(document(report))


def _json(value: Any) -> Answer:
    return Answer(f"{json.dumps(value)}\n".encode(), _JSON)


def _lost(loss: Loss) -> Loss:
    """Without what is counted besides, which grows with every snapshot: a page stays the same without it."""
    return replace(loss, inotify_missed=0, unmatched_returns=0, unattributed_events=0)


def _find(snapshot: Snapshot, key: str) -> Run | None:
    runs = (*snapshot.open_runs, *snapshot.recent, *snapshot.slowest)
    return next((run for run in runs if key_of(run) == key), None)


def _report(snapshot: Snapshot, runs: tuple[Run, ...]) -> Report:
    header = snapshot.header
    return Report(
        header.host if header else {}, header.engine if header else {}, snapshot.loss, runs, snapshot.warnings
    )
