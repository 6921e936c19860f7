# SPDX-License-Identifier: Apache-2.0
"""Phases: how long each documented phase of one operation takes, how that is spread, and what it does meanwhile."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.common import PERCENTILES
from dashboards.panels import FULL, HIGH, THIRD, Column, Query, buckets, folded, lines, repeated, rows
from dashboards.promql import ENDED, HOSTS, OK, OPERATION, PHASE, SYSCALL_TIME, mean, per_operation, quantile, rate, top

CHOSEN = (HOSTS, 'operation="$operation"')
SUCCEEDED = (*CHOSEN, OK)
#: The operation itself is a phase, too; here it would hide the others.
PHASES = (*CHOSEN, 'phase=~"$phase"')


def build() -> Dashboard:
    """The dashboard."""
    share = f"{rate(f'{PHASE}_sum', *PHASES, by='phase', window='$__range')}\n/ on () group_left ()\n" + rate(
        f"{OPERATION}_sum", *CHOSEN, ENDED, window="$__range"
    )
    table = [
        Column("Phase", label="phase"),
        Column("Count", f"sum by (phase) (increase({PHASE}_count{{{', '.join(PHASES)}}}[$__range]))"),
        Column("Mean", mean(PHASE, *PHASES, by="phase", window="$__range"), unit=units.Seconds),
        *(
            Column(name, quantile(q, PHASE, *PHASES, by="phase", window="$__range"), unit=units.Seconds)
            for q, name in PERCENTILES
        ),
        Column("Share", share, unit=units.PercentUnit),
    ]
    return frame.dashboard(
        "observe-phases",
        "observe / Phases",
        "The documented phases of one operation: percentiles, heat maps, networks, and what is done in them.",
        [frame.hosts(), frame.operation(), frame.phases()],
        [
            rows(
                "Phases",
                "All phases in the time shown. A phase contains those whose name continues its own; shares are of the "
                "operation's time. The catalogue (observe phases) says what each is.",
                table,
                height=HIGH,
                sort="Mean",
            ),
            Row("Over time"),
            lines(
                "Median by phase",
                "Half of the times the phase took no longer. Logarithmic.",
                units.Seconds,
                [Query(quantile(0.5, PHASE, *PHASES, by="phase"), "{{phase}}")],
                height=HIGH,
                log=True,
            ),
            lines(
                "p99 by phase",
                "One in a hundred took longer. Logarithmic.",
                units.Seconds,
                [Query(quantile(0.99, PHASE, *PHASES, by="phase"), "{{phase}}")],
                height=HIGH,
                log=True,
            ),
            buckets(
                "Heat map: $operation",
                "How the durations of the operations that succeeded are spread: two bands are two kinds of containers, "
                "or a wait that only some hit.",
                rate(f"{OPERATION}_bucket", *SUCCEEDED, by="le"),
                width=FULL,
            ),
            lines(
                "Where the time goes, to the innermost phase",
                "Mean time of one operation by the innermost phase: the twelve largest. The operation's own row is "
                "what is in no phase.",
                units.Seconds,
                [
                    Query(
                        top(
                            12,
                            per_operation(
                                "observe_phase_self_seconds_total", HOSTS, operation="$operation", by="phase"
                            ),
                        ),
                        "{{phase}}",
                    )
                ],
                width=FULL,
                stacked=True,
            ),
            folded(
                "Heat maps by phase",
                repeated(
                    buckets(
                        "Heat map: $phase",
                        "How the durations of this phase are spread.",
                        rate(f"{PHASE}_bucket", *PHASES, by="le"),
                        width=THIRD,
                    ),
                    "phase",
                    a_row=3,
                ),
            ),
            Row("By network"),
            lines(
                "Median by network",
                "Half of the operations took no longer, by the container's network mode. Phases are not told apart by "
                "network; start.network and the network hook are where it shows.",
                units.Seconds,
                [Query(quantile(0.5, OPERATION, *SUCCEEDED, by="network"), "{{network}}")],
                width=THIRD,
            ),
            lines(
                "p99 by network",
                "One operation in a hundred took longer, by the container's network mode.",
                units.Seconds,
                [Query(quantile(0.99, OPERATION, *SUCCEEDED, by="network"), "{{network}}")],
                width=THIRD,
            ),
            lines(
                "Operations by network",
                "Operations that ended, per second.",
                units.OpsPerSecond,
                [Query(rate(f"{OPERATION}_count", *CHOSEN, by="network"), "{{network}}")],
                width=THIRD,
            ),
            Row("What it does meanwhile"),
            lines(
                "Time in system calls",
                "Seconds an operation spends in the system calls that are looked at, by the phase they belong to: "
                "the ten largest. Calls of several processes run at once, so the sum can be more than the phase.",
                units.Seconds,
                [
                    Query(
                        top(10, per_operation(SYSCALL_TIME, HOSTS, operation="$operation", by="phase, syscall")),
                        "{{phase}} {{syscall}}",
                    )
                ],
            ),
            lines(
                "System calls",
                "System calls that are looked at, for each operation, by phase: the ten largest.",
                units.Short,
                [
                    Query(
                        top(10, per_operation("observe_syscalls_total", HOSTS, operation="$operation", by="phase")),
                        "{{phase}}",
                    )
                ],
            ),
            lines(
                "File events",
                "Changes that inotify reported below the engine's data root, per second, by area. For all operations.",
                units.CountsPerSecond,
                [Query(rate("observe_file_events_total", HOSTS, by="area"), "{{area}}")],
                width=THIRD,
            ),
            lines(
                "Evidence",
                "Phases per second by what their times stand on: entry and return of a function (exact), or system "
                "calls and file events alone (bounds).",
                units.CountsPerSecond,
                [Query(rate(f"{PHASE}_count", *CHOSEN, by="evidence"), "{{evidence}}")],
                width=THIRD,
            ),
            lines(
                "Departures from the documented order",
                "Phases that were missing, repeated or out of order, per second.",
                units.CountsPerSecond,
                [Query(rate("observe_departures_total", *CHOSEN, by="kind"), "{{kind}}")],
                width=THIRD,
            ),
        ],
    )
