# SPDX-License-Identifier: Apache-2.0
"""Many hosts seen through one Prometheus. Reads what the recording rules made, so that its cost does not grow."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.common import PERCENTILES
from dashboards.host import OURS
from dashboards.panels import FULL, HALF, HIGH, QUARTER, THIRD, Column, Query, lines, number, rows
from dashboards.promql import ENDED, FAILED, HARMLESS, HOSTS, TOP_LEVEL, top

_COUNT = "job_operation_outcome:observe_operation_duration_seconds_count:rate5m"
_BUCKETS = "job_operation_network_le:observe_operation_duration_seconds_bucket:rate5m"
_PHASE_BUCKETS = "job_operation_phase_le:observe_phase_duration_seconds_bucket:rate5m"
_PHASE_SUM = "job_operation_phase:observe_phase_duration_seconds_sum:rate5m"
_UNATTRIBUTED = "job_operation:observe_operation_unattributed_seconds_sum:rate5m"
_HOST_RATE = "job_instance_operation:observe_operation_duration_seconds_count:rate5m"
_HOST_P50 = "job_instance_operation:observe_operation_duration_seconds:p50_rate5m"
_HOST_P99 = "job_instance_operation:observe_operation_duration_seconds:p99_rate5m"
_HOST_UNATTRIBUTED = "job_instance_operation:observe_operation_unattributed:ratio_rate5m"

#: Everything on this page is about one kind of operation.
CHOSEN = 'operation="$operation"'


def percentile(q: float, by: str = "") -> str:
    """A percentile over all hosts: of the summed histogram, not of the hosts' percentiles."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) ({_BUCKETS}{{{CHOSEN}}}))"


def of_hosts(metric: str) -> str:
    """A figure of each chosen host."""
    return f"max by (instance) ({metric}{{{HOSTS}, {CHOSEN}}})"


def build() -> Dashboard:
    """The dashboard."""
    rate = f"sum ({_COUNT}{{{CHOSEN}}})"
    ended = f"sum ({_COUNT}{{{CHOSEN}, {ENDED}}})"
    lost = f"sum by (instance) (increase(observe_lost_events_total{{{HOSTS}, {HARMLESS}}}[$__range]))"
    attached = f"max by (instance) (observe_attached{{{HOSTS}}})"
    table = [
        Column("Host", label="instance", link=frame.HOST_LINK + "${__value.raw}"),
        Column("Attached", attached),
        Column("Rate", of_hosts(_HOST_RATE), unit=units.OpsPerSecond),
        Column("Median", of_hosts(_HOST_P50), unit=units.Seconds),
        Column("p99", of_hosts(_HOST_P99), unit=units.Seconds),
        Column("Unattributed", of_hosts(_HOST_UNATTRIBUTED), unit=units.PercentUnit),
        Column("Lost", lost),
    ]
    return frame.dashboard(
        "observe-fleet",
        "observe / Many hosts",
        "Many hosts seen through one Prometheus. Needs the recording rules (observe.rules.yml).",
        [frame.hosts(), frame.operation()],
        [
            number(
                "Hosts",
                "Hosts whose exporter answers.",
                units.Short,
                Query(f"count (count by (instance) (observe_attached{{{HOSTS}}}))"),
            ),
            number("Attached", "Hosts that are attached to a live dockerd.", units.Short, Query(f"sum ({attached})")),
            number("Operations", "Operations of all hosts, per second.", units.OpsPerSecond, Query(rate)),
            number("Median", "Over all hosts.", units.Seconds, Query(percentile(0.5))),
            number("p99", "Over all hosts.", units.Seconds, Query(percentile(0.99)), warn_above=2),
            number(
                "Failed",
                "Share of the operations of all hosts that did not succeed.",
                units.PercentUnit,
                Query(f"sum ({_COUNT}{{{CHOSEN}, {FAILED}}})\n/\n{rate}"),
                warn_above=0.1,
            ),
            number(
                "Hosts that lost events",
                "Hosts that lost an event in the time shown, other than what is normal.",
                units.Short,
                Query(f"count ({lost} > 0) or vector(0)"),
                warn_above=0.5,
            ),
            number(
                "Slowest host, p99",
                "The p99 of the host whose p99 is highest.",
                units.Seconds,
                Query(f"max ({of_hosts(_HOST_P99)})"),
                warn_above=2,
            ),
            Row("The fleet"),
            lines(
                "Latency over all hosts",
                "Percentiles of the summed histograms: of all operations, wherever they ran.",
                units.Seconds,
                [Query(percentile(q), name) for q, name in PERCENTILES],
                width=THIRD,
            ),
            lines(
                "p99 by network",
                "One operation in a hundred took longer, by the container's network mode, over all hosts.",
                units.Seconds,
                [Query(percentile(0.99, "network"), "{{network}}")],
                width=THIRD,
            ),
            lines(
                "Phases' p99 over all hosts",
                "The ten phases directly below the operation whose p99 is highest.",
                units.Seconds,
                [
                    Query(
                        top(
                            10,
                            f"histogram_quantile(0.99, sum by (phase, le) ({_PHASE_BUCKETS}{{{CHOSEN}, {TOP_LEVEL}}}))",
                        ),
                        "{{phase}}",
                    )
                ],
                width=THIRD,
            ),
            lines(
                "Where the time goes, over all hosts",
                "Mean time of one operation by phase; with what is in no phase the areas sum to the mean operation.",
                units.Seconds,
                [
                    Query(
                        f"sum by (phase) ({_PHASE_SUM}{{{CHOSEN}, {TOP_LEVEL}}})\n/ on () group_left ()\n{ended}",
                        "{{phase}}",
                    ),
                    Query(f"sum ({_UNATTRIBUTED}{{{CHOSEN}}})\n/\n{ended}", "unattributed"),
                ],
                width=FULL,
                stacked=True,
            ),
            Row("The hosts"),
            lines(
                "Medians of the hosts",
                "How far the hosts are apart: the fastest, the middle and the slowest host's median.",
                units.Seconds,
                [
                    Query(f"quantile({q}, {of_hosts(_HOST_P50)})", name)
                    for q, name in (
                        (0, "fastest host"),
                        (0.5, "middle host"),
                        (0.9, "90% of the hosts"),
                        (1, "slowest host"),
                    )
                ],
                width=HALF,
            ),
            lines(
                "Ten slowest hosts",
                "The hosts whose p99 is highest, at each moment.",
                units.Seconds,
                [Query(top(10, of_hosts(_HOST_P99)), "{{instance}}")],
                width=HALF,
            ),
            rows(
                "Hosts",
                "A row a host; a click on its name opens it. Lost counts events lost in the time shown.",
                table,
                height=HIGH,
                sort="p99",
            ),
            rows(
                "Engines",
                "Which engines the hosts run: a version that is slower than the others shows in the table above.",
                [
                    Column("Engine", label="version"),
                    Column("Storage driver", label="storage_driver"),
                    Column("Hosts", f"count by (version, storage_driver) (observe_engine_info{{{HOSTS}}})"),
                ],
                width=THIRD,
            ),
            lines(
                "Departures from the documented order",
                "Per second, by kind, over the chosen hosts.",
                units.CountsPerSecond,
                [
                    Query(
                        f"sum by (kind) (rate(observe_departures_total{{{HOSTS}, {CHOSEN}}}[$__rate_interval]))",
                        "{{kind}}",
                    )
                ],
                width=THIRD,
            ),
            lines(
                "Lost events by host",
                "The ten hosts that lose most, per second.",
                units.CountsPerSecond,
                [
                    Query(
                        top(10, f"sum by (instance) (rate(observe_lost_events_total{{{HOSTS}}}[$__rate_interval]))"),
                        "{{instance}}",
                    )
                ],
                width=THIRD,
            ),
            Row("What observing costs"),
            lines(
                "Exporters' CPU",
                "Share of one processor that observe serve uses on the host where it uses most, and on the middle one.",
                units.PercentUnit,
                [
                    Query(f"quantile({q}, rate(process_cpu_seconds_total{{{HOSTS}}}[$__rate_interval]) {OURS})", name)
                    for q, name in ((0.5, "middle host"), (1, "highest"))
                ],
                width=QUARTER,
            ),
            lines(
                "Exporters' memory",
                "Resident memory of observe serve on the host where it is highest, and on the middle one.",
                units.BytesIEC,
                [
                    Query(f"quantile({q}, process_resident_memory_bytes{{{HOSTS}}} {OURS})", name)
                    for q, name in ((0.5, "middle host"), (1, "highest"))
                ],
                width=QUARTER,
            ),
            lines(
                "Series",
                "Samples that a scrape brings, over all hosts: what the fleet costs Prometheus.",
                units.Short,
                [Query(f"sum (scrape_samples_scraped{{{HOSTS}}} {OURS})", "series")],
                width=QUARTER,
            ),
            lines(
                "Scrapes",
                "How long a scrape takes: the slowest host, and the middle one.",
                units.Seconds,
                [
                    Query(f"quantile({q}, scrape_duration_seconds{{{HOSTS}}} {OURS})", name)
                    for q, name in ((0.5, "middle host"), (1, "slowest"))
                ],
                width=QUARTER,
            ),
        ],
    )
