# SPDX-License-Identifier: Apache-2.0
"""The report for programs: JSON, schema version 1, documented and stable. Times are nanoseconds."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from operator import attrgetter
from typing import Any

import orjson

from observe.model import Cause, Departure, Event, FunctionCall, Loss, Mark, PathStep, Remedy, Run, Span, Time
from observe.reports.report import Report
from observe.reports.terminal import Page

SCHEMA_VERSION = 1

_HOST_KEYS = ("hostname", "kernel", "arch")
_ENGINE_KEYS = ("version", "go_version", "storage_driver")
#: Without what a phase has only if the scheduler's events were recorded.
_PHASE_KEYS = (*(field.name for field in fields(Span) if field.name != "time"), "at_floor")
_phase_values = attrgetter(*_PHASE_KEYS)
_NOT_ASCII = re.compile("[^\0-\x7e]")


def render(report: Report, page: Page) -> str:
    """JSON text with a line end. Plain ASCII, so it survives any encoding and any path; `page` changes nothing."""
    del page
    return _dump(document(report)) + "\n"


def _dump(value: dict[str, Any]) -> str:
    """What `json.dumps(value, indent=2)` says, many times faster; a float may be spelled in another way."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except TypeError:  # a path that is not UTF-8, or a number of more than 64 bits
        return json.dumps(value, indent=2)
    if text.isascii() and "\x7f" not in text:
        return text
    return _NOT_ASCII.sub(lambda character: json.dumps(character[0])[1:-1], text)


def document(report: Report) -> dict[str, Any]:
    """The report as plain dictionaries and lists. Keys that are promised are always there, null if unknown."""
    return {
        "schema_version": SCHEMA_VERSION,
        "host": {**dict.fromkeys(_HOST_KEYS), **report.host},
        "engine": {**dict.fromkeys(_ENGINE_KEYS), **report.engine},
        "loss": _fields(report.loss),
        "events_left": dict(report.left),
        "warnings": list(report.warnings),
        "functions": {phase: list(names) for phase, names in report.functions.items()},
        "refused": [dict(refused) for refused in report.refused],
        "runs": [_run(run) for run in report.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    events: dict[str, list[dict[str, Any]]] = {}
    for phase, event in run.events:
        events.setdefault(phase, []).append(_event(event))
    functions = {"functions": [_fields(call) for call in run.functions]} if run.functions else {}
    why = {"causes": [_cause(cause) for cause in run.causes]} if run.causes else {}
    path = {"critical_path": [_fields(step) for step in run.path]} if run.path else {}
    configuration = {"configuration": dict(run.configuration)} if run.configuration else {}
    return {
        "operation": run.operation,
        "container_id": run.container_id,
        "container_name": run.container_name,
        "image": run.image,
        "network": run.network,
        "outcome": run.outcome,
        "error": run.error,
        "start_ns": run.start_ns,
        "wall_time_ns": run.wall_time_ns,
        "duration_ns": run.duration_ns,
        "unattributed_ns": run.unattributed_ns,
        "departures": [_fields(departure) for departure in run.departures],
        "phases": [_phase(span, events.get(span.id)) for span in run.phases],
        **why,
        **path,
        **functions,
        **configuration,
    }


def _phase(span: Span, events: list[dict[str, Any]] | None) -> dict[str, Any]:
    values = dict(zip(_PHASE_KEYS, _phase_values(span), strict=True))
    if span.time is not None:
        values["time"] = _fields(span.time)
    if events:
        values["events"] = events
    return values


def _cause(cause: Cause) -> dict[str, Any]:
    return {**_fields(cause), "remedy": _fields(cause.remedy) if cause.remedy else None}


def _event(event: Event) -> dict[str, Any]:
    """An event without what it does not have."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    values["kind"] = event.kind.label
    values["marks"] = [mark.name.lower() for mark in Mark if mark in event.marks and mark.name]
    return {name: value for name, value in values.items() if value not in ("", [])}


def _fields(value: Cause | Departure | FunctionCall | Loss | PathStep | Remedy | Time) -> dict[str, Any]:
    """A flat record; `asdict` would copy every value deeply, which is felt over thousands of them."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
