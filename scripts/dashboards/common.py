# SPDX-License-Identifier: Apache-2.0
"""What several dashboards show of the chosen hosts: latencies, where the time goes, what is in flight."""

from __future__ import annotations

from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.models import units

from dashboards.panels import FULL, THIRD, Query, lines
from dashboards.promql import ENDED, HOSTS, OK, OPERATION, PHASE, TOP_LEVEL, UNATTRIBUTED, per_operation, quantile, rate

PERCENTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))


def _percentiles(operation: str) -> list[Query]:
    """Percentiles of an operation on the chosen hosts."""
    where = (HOSTS, OK, f'operation="{operation}"')
    return [Query(quantile(q, OPERATION, *where), name, exemplars=name == "p99") for q, name in PERCENTILES]


def _parts(operation: str) -> list[Query]:
    """Mean time of one operation, by phase; what is in no phase is the last part, so the stack is the operation."""
    phases = per_operation(f"{PHASE}_sum", HOSTS, TOP_LEVEL, operation=operation, by="phase")
    rest = per_operation(f"{UNATTRIBUTED}_sum", HOSTS, operation=operation, by="operation")
    return [Query(phases, "{{phase}}"), Query(rest, "unattributed")]


def unattributed_share(by: str) -> str:
    """Of the time of the operations, the share that is in no documented phase."""
    return f"{rate(f'{UNATTRIBUTED}_sum', HOSTS, by=by)}\n/\n{rate(f'{OPERATION}_sum', HOSTS, ENDED, by=by)}"


def latency_of(operation: str) -> Panel:
    """Percentiles of an operation over time."""
    return lines(
        f"{operation.capitalize()} latency",
        f"From the API request to dockerd's answer, if it succeeded. Dots are single {operation}s with their "
        "container's id.",
        units.Seconds,
        _percentiles(operation),
        width=THIRD,
    )


def where_the_time_goes(operation: str) -> Panel:
    """An operation's mean time, by phase."""
    return lines(
        f"Where a {operation}'s time goes",
        f"Mean time of one {operation} by phase; with what is in no phase the areas sum to the mean {operation}.",
        units.Seconds,
        _parts(operation),
        width=FULL,
        stacked=True,
    )


def in_flight() -> Panel:
    """Operations that have no answer yet."""
    return lines(
        "In flight",
        "Operations that dockerd works on at the moment of the scrape.",
        units.Short,
        [Query(f"sum by (operation) (observe_operations_in_flight{{{HOSTS}}})", "{{operation}}")],
        width=THIRD,
    )
