# SPDX-License-Identifier: Apache-2.0
"""One host: its engine, what we are attached to, its operations, and what observing it costs."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.common import in_flight, latency_of, unattributed_share, where_the_time_goes
from dashboards.panels import HALF, LOW, QUARTER, THIRD, Column, Query, lines, number, rows
from dashboards.promql import ENDED, HOSTS, OK, OPERATION, mean, quantile, rate

#: Our own process among all that Prometheus scrapes on this host.
OURS = f"and on (job, instance) observe_build_info{{{HOSTS}}}"


#: Facts of the engine, with 1 while we are attached to it and 0 while it is the last one.
ATTACHED = (
    f"max by (version, go_version, storage_driver) (observe_engine_info{{{HOSTS}}}\n"
    f"* on (job, instance) group_left () max by (job, instance) (observe_attached{{{HOSTS}}}))"
)


def build() -> Dashboard:
    """The dashboard."""
    nothing = 'label_replace(vector(0), "result", "none", "", "")'
    start = (HOSTS, OK, 'operation="start"')
    return frame.dashboard(
        "observe-host",
        "observe / One host",
        "One host: its engine, what is attached, its creates and starts, and what observing costs it.",
        [frame.one_host()],
        [
            number(
                "Operations",
                "Creates and starts that ended, per second.",
                units.OpsPerSecond,
                Query(rate(f"{OPERATION}_count", HOSTS)),
            ),
            number(
                "Start, median",
                "Half of the starts took no longer.",
                units.Seconds,
                Query(quantile(0.5, OPERATION, *start)),
            ),
            number(
                "Start, p99",
                "One start in a hundred took longer.",
                units.Seconds,
                Query(quantile(0.99, OPERATION, *start)),
                warn_above=2,
            ),
            number(
                "Unattributed",
                "Share of the operations' time that is in no documented phase.",
                units.PercentUnit,
                Query(unattributed_share("")),
                warn_above=0.05,
            ),
            rows(
                "Engine",
                "The dockerd that we are attached to (1), or were last (0).",
                [
                    Column("Engine", label="version"),
                    Column("Go", label="go_version"),
                    Column("Storage driver", label="storage_driver"),
                    Column("Attached", ATTACHED),
                ],
                width=HALF,
                height=LOW,
            ),
            Row("Attached"),
            lines(
                "Attached probes",
                "1 while a probe is attached to the live dockerd, 0 while it waits for one: a gap is an engine "
                "that was restarted.",
                units.Short,
                [Query(f"min by (probe) (observe_attached{{{HOSTS}}})", "{{probe}}")],
                width=THIRD,
            ),
            lines(
                "Lost or unattributed events",
                "Events per second, by where they were lost or why they count.",
                units.CountsPerSecond,
                [Query(rate("observe_lost_events_total", HOSTS, by="source"), "{{source}}")],
                width=THIRD,
            ),
            in_flight(),
            Row("Creates and starts"),
            lines(
                "Operations by outcome",
                "Operations that ended, per second.",
                units.OpsPerSecond,
                [
                    Query(
                        rate(f"{OPERATION}_count", HOSTS, by="operation, outcome") + " > 0", "{{operation}} {{outcome}}"
                    )
                ],
                width=THIRD,
            ),
            latency_of("start"),
            latency_of("create"),
            where_the_time_goes("start"),
            lines(
                "File events",
                "Changes that inotify reported below the engine's data root, per second, by area and kind.",
                units.CountsPerSecond,
                [Query(rate("observe_file_events_total", HOSTS, by="area, event") + " > 0", "{{area}} {{event}}")],
                width=THIRD,
            ),
            lines(
                "Requests and dockerd's own timing",
                "Mean time from the request to the answer, and in the function that dockerd's own metric times "
                "(engine_daemon_container_actions_seconds), where functions are probed.",
                units.Seconds,
                [
                    Query(mean(OPERATION, HOSTS, ENDED, by="operation"), "{{operation}}: request"),
                    Query(mean("observe_engine_action_seconds", HOSTS, by="action"), "{{action}}: dockerd's own"),
                ],
                width=THIRD,
            ),
            lines(
                "Recordings and traces",
                "What became of the recordings of slow operations (--keep) and of traces (--otlp-endpoint), per "
                "second. 0 where neither was asked for.",
                units.CountsPerSecond,
                [
                    Query(
                        f"{rate('observe_deliveries_total', HOSTS, by='sink, result')}\nor on () {nothing}",
                        "{{sink}} {{result}}",
                    )
                ],
                width=THIRD,
            ),
            Row("What observing costs"),
            lines(
                "Exporter's CPU",
                "Share of one processor that observe serve itself uses.",
                units.PercentUnit,
                [Query(f"rate(process_cpu_seconds_total{{{HOSTS}}}[$__rate_interval]) {OURS}", "observe serve")],
                width=QUARTER,
            ),
            lines(
                "Exporter's memory",
                "Memory of observe serve that is resident.",
                units.BytesIEC,
                [Query(f"process_resident_memory_bytes{{{HOSTS}}} {OURS}", "resident")],
                width=QUARTER,
            ),
            lines(
                "Probe hits",
                "Runs of the programs in the kernel, per second, by probe.",
                units.OpsPerSecond,
                [Query(rate("observe_probe_hits_total", HOSTS, by="probe"), "{{probe}}")],
                width=QUARTER,
            ),
            lines(
                "Probes' CPU",
                "Share of one processor that the programs in the kernel use, by probe. All of it is time that the "
                "observed processes wait.",
                units.PercentUnit,
                [Query(rate("observe_probe_run_seconds_total", HOSTS, by="probe"), "{{probe}}")],
                width=QUARTER,
            ),
        ],
    )
