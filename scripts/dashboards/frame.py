# SPDX-License-Identifier: Apache-2.0
"""What all dashboards have in common: the variables on top, the links to the others, time, refresh."""

from __future__ import annotations

from collections.abc import Iterable

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    RowPanel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from dashboards.panels import SOURCE

TAG = "observe"
UIDS = ("observe-overview", "observe-phases", "observe-host", "observe-fleet")
#: Opens one host; what stands before the host's name.
HOST_LINK = "/d/observe-host?${datasource:queryparam}&${__url_time_range}&var-instance="

#: Every exporter has this metric, whatever it is attached to.
_INSTANCES = "label_values(observe_attached, instance)"


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: Iterable[builders.QueryVariable],
    parts: Iterable[Builder[Panel] | builders.Row],
) -> Dashboard:
    """A dashboard of rows and panels, top to bottom, left to right. Panels are numbered in that order."""
    builder = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .editable()
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("observe")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .tooltip("The other dashboards of observe, with the same hosts and time")
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            builders.DatasourceVariable("datasource")
            .label("Data source")
            .description("The Prometheus that scrapes observe serve")
            .type("prometheus")
        )
    )
    for variable in variables:
        builder.with_variable(variable)
    for part in parts:
        if isinstance(part, builders.Row):
            builder.with_row(part)
        else:
            builder.with_panel(part)
    built = builder.build()
    _number(built.panels or [])
    return built


def hosts() -> builders.QueryVariable:
    """The hosts to look at: all, or some."""
    return (
        _query("instance", "Hosts", "Hosts that run observe serve", _INSTANCES)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(VariableOption(text="All", value="$__all"))
    )


def one_host() -> builders.QueryVariable:
    """The host to look at. "All", which another dashboard's link may bring, becomes the first one."""
    return _query("instance", "Host", "A host that runs observe serve", _INSTANCES).allow_custom_value(False)


def operation() -> builders.QueryVariable:
    """The operation to look at."""
    query = 'label_values(observe_operation_duration_seconds_count{instance=~"$instance"}, operation)'
    return _query("operation", "Operation", "What dockerd was asked for", query).current(
        VariableOption(text="start", value="start")
    )


def phases() -> builders.QueryVariable:
    """The phases of that operation to look at: all, or some."""
    query = (
        'label_values(observe_phase_duration_seconds_count{instance=~"$instance", operation="$operation", '
        'phase=~".*[.].*"}, phase)'
    )
    return (
        _query("phase", "Phases", "Documented phases of the operation", query)
        .multi(True)
        .include_all(True)
        .current(VariableOption(text="All", value="$__all"))
    )


def _query(name: str, label: str, description: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _number(parts: Iterable[Panel | RowPanel]) -> None:
    """Give every panel its number: links to a panel name it."""
    ordered: list[Panel | RowPanel] = []
    for part in parts:
        ordered += [part, *(part.panels or [])] if isinstance(part, RowPanel) else [part]
    for number, part in enumerate(ordered, start=1):
        part.id_val = number
