# SPDX-License-Identifier: Apache-2.0
"""The comparison for programs: JSON, schema version 1, documented and stable. Times are nanoseconds."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from observe.reports.comparison import Arm, Comparison, DepartureChange, Difference, Group, OperationComparison, Row
from observe.reports.inference import ALPHA, CONFIDENCE, RESAMPLES
from observe.reports.terminal import Page

SCHEMA_VERSION = 1


def render(comparison: Comparison, page: Page) -> str:
    """JSON text with a line end, plain ASCII; `page` changes nothing."""
    del page
    return json.dumps(document(comparison), indent=2) + "\n"


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain dictionaries and lists. Every key is always there, null if unknown."""
    return {
        "schema_version": SCHEMA_VERSION,
        "base": _arm(comparison.base),
        "new": _arm(comparison.new),
        "differences": [_fields(difference) for difference in comparison.differences],
        "method": {
            "test": "mann-whitney",
            "correction": "holm",
            "alpha": ALPHA,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "tests": comparison.tests,
            "needed_runs": comparison.needed_runs,
        },
        "operations": [_operation(operation) for operation in comparison.operations],
    }


def _arm(arm: Arm) -> dict[str, Any]:
    report = arm.report
    return {
        "name": arm.name,
        "host": dict(report.host),
        "engine": dict(report.engine),
        "loss": {field.name: getattr(report.loss, field.name) for field in fields(report.loss)},
        "warnings": list(report.warnings),
    }


def _operation(operation: OperationComparison) -> dict[str, Any]:
    return {
        "operation": operation.operation,
        "base": _fields(operation.base),
        "new": _fields(operation.new),
        "rows": [_fields(row) for row in operation.rows],
        "departures": [_fields(departure) for departure in operation.departures],
    }


def _fields(value: DepartureChange | Difference | Group | Row) -> dict[str, Any]:
    """A flat record."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
