# SPDX-License-Identifier: Apache-2.0
"""Overview: how many operations, how fast, how many fail, where their time goes, and whether to believe it."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.common import in_flight, latency_of, unattributed_share, where_the_time_goes
from dashboards.panels import THIRD, Query, lines, number
from dashboards.promql import FAILED, HARMLESS, HOSTS, OK, OPERATION, quantile, rate


def build() -> Dashboard:
    """The dashboard."""
    failed = f"{rate(f'{OPERATION}_count', HOSTS, FAILED)}\n/\n{rate(f'{OPERATION}_count', HOSTS)}"
    start = (HOSTS, OK, 'operation="start"')
    return frame.dashboard(
        "observe-overview",
        "observe / Overview",
        "Creates and starts of the chosen hosts: rates, latencies, failures, and the phases that take the time.",
        [frame.hosts()],
        [
            number(
                "Operations",
                "Creates and starts that ended, per second.",
                units.OpsPerSecond,
                Query(rate(f"{OPERATION}_count", HOSTS)),
            ),
            number(
                "In flight",
                "Operations that dockerd works on now.",
                units.Short,
                Query(f"sum (observe_operations_in_flight{{{HOSTS}}})"),
            ),
            number(
                "Start, median",
                "Half of the starts that succeeded took no longer.",
                units.Seconds,
                Query(quantile(0.5, OPERATION, *start)),
            ),
            number(
                "Start, p99",
                "One start in a hundred that succeeded took longer. Red above 2 s, where the alert is.",
                units.Seconds,
                Query(quantile(0.99, OPERATION, *start)),
                warn_above=2,
            ),
            number(
                "Failed",
                "Share of the operations that dockerd answered with an error.",
                units.PercentUnit,
                Query(failed),
                warn_above=0.1,
            ),
            number(
                "Unattributed",
                "Share of the operations' time that is in no documented phase. Above 5% the phases "
                "do not tell the story.",
                units.PercentUnit,
                Query(unattributed_share("")),
                warn_above=0.05,
            ),
            number(
                "Lost events",
                "Events that were not handed over in the time shown: what the phases say may lack something. Without "
                "what a recorder cannot help.",
                units.Short,
                Query(f"sum (increase(observe_lost_events_total{{{HOSTS}, {HARMLESS}}}[$__range]))"),
                warn_above=0.5,
            ),
            number(
                "Hosts attached",
                "Hosts whose exporter is attached to a live dockerd by at least one probe.",
                units.Short,
                Query(f"sum (max by (instance) (observe_attached{{{HOSTS}}}))"),
            ),
            Row("Rates and latencies"),
            lines(
                "Operations by kind",
                "Operations that ended, per second.",
                units.OpsPerSecond,
                [Query(rate(f"{OPERATION}_count", HOSTS, by="operation"), "{{operation}}")],
                width=THIRD,
            ),
            latency_of("start"),
            latency_of("create"),
            in_flight(),
            lines(
                "Failures",
                "Operations that did not succeed, per second, by what became of them.",
                units.OpsPerSecond,
                [
                    Query(
                        rate(f"{OPERATION}_count", HOSTS, FAILED, by="operation, outcome"),
                        "{{operation}} {{outcome}}",
                    )
                ],
                width=THIRD,
            ),
            lines(
                "Departures from the documented order",
                "Phases that were missing, repeated or out of order, per second: the engine does not do what is "
                "documented, or the evidence has a hole.",
                units.OpsPerSecond,
                [Query(rate("observe_departures_total", HOSTS, by="operation, kind"), "{{operation}} {{kind}}")],
                width=THIRD,
            ),
            Row("Where the time goes"),
            where_the_time_goes("start"),
            where_the_time_goes("create"),
            Row("Can it be believed?"),
            lines(
                "Unattributed share",
                "Of the operations' time, the share that is in no documented phase.",
                units.PercentUnit,
                [Query(unattributed_share("operation"), "{{operation}}")],
            ),
            lines(
                "Lost or unattributed events",
                "Events per second, by where they were lost or why they count. inotify_missed, unmatched_returns and "
                "unattributed_events are normal in small numbers; anything else is a gap in the evidence.",
                units.CountsPerSecond,
                [Query(rate("observe_lost_events_total", HOSTS, by="source"), "{{source}}")],
            ),
        ],
    )
