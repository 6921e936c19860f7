# SPDX-License-Identifier: Apache-2.0
"""Our expressions on a real Prometheus: all of them find data, and hosts sum."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
import yaml
from dashboards.live import Prometheus, Series, choices, fill, targets

from dashboards import picture
from observe.resources import folder

DASHBOARDS = sorted(folder("dashboards").glob("grafana/*.json"))
RULES = yaml.safe_load((folder("dashboards") / "prometheus" / "observe.rules.yml").read_text())
TIMES = {"__rate_interval": "20s", "__range": "1m", "__interval": "1s"}
METRIC = re.compile(r"\b(?:\w+:)?observe_[\w:]+|\bprocess_\w+|\bscrape_\w+|\bup\b")


def expressions() -> list[tuple[str, Path, str]]:
    """Name, dashboard and expression of every query of every panel."""
    found = []
    for path in DASHBOARDS:
        for panel, target in targets(json.loads(path.read_text())):
            name = f"{path.stem}: {panel['title']} {target['refId']}"
            found.append(pytest.param(path, target, id=name))
    return found


def rules() -> list[object]:
    """Expression of every rule."""
    return [
        pytest.param(rule["expr"], id=rule.get("record") or rule["alert"])
        for group in RULES["groups"]
        for rule in group["rules"]
    ]


def settled() -> float:
    """A moment whose scrapes are all in: a sample has the time at which its scrape began, and that may take 2 s."""
    return time.time() - 4


def numbers(found: list[Series]) -> list[float]:
    """All values that are numbers."""
    return [value for series in found for _, value in series.samples if not math.isnan(value)]


@pytest.mark.parametrize(("path", "target"), expressions())
def test_a_panel_finds_data(fleet: Prometheus, path: Path, target: dict[str, object]):
    variables = TIMES | choices(json.loads(path.read_text()), fleet)
    expr = fill(str(target["expr"]), variables)
    assert "$" not in expr
    now = time.time()
    if target["instant"]:
        assert numbers(fleet.instant(expr, at_seconds=now))
    else:
        # 0 ≤: nothing here can be negative, and an empty panel is no panel.
        values = numbers(fleet.range(expr, start_seconds=now - 6, end_seconds=now, step_seconds=1))
        assert values
        assert min(values) >= 0


@pytest.mark.parametrize("expr", rules())
def test_a_rule_finds_data(fleet: Prometheus, expr: str):
    assert numbers(fleet.instant(expr))


def test_only_the_sick_host_alarms(fleet: Prometheus):
    for group in RULES["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                wanted = "gone" if rule["alert"] == "ObserveDown" else "host2"
                assert {series.labels["instance"] for series in fleet.instant(rule["expr"])} == {wanted}, rule["alert"]


def test_every_metric_named_exists(fleet: Prometheus):
    texts = [str(parameter.values[1]["expr"]) for parameter in expressions()]
    texts += [str(parameter.values[0]) for parameter in rules()]
    named = {name for text in texts for name in METRIC.findall(text)}
    assert len(named) > 20
    known = set(fleet.values("__name__", '{job=~".+"}'))
    assert named - known == set()


def test_every_metric_of_the_exporter_is_drawn_or_watched(fleet: Prometheus):
    texts = [str(parameter.values[1]["expr"]) for parameter in expressions()]
    known = {name for name in fleet.values("__name__", '{job=~".+"}') if name.startswith("observe_")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    assert len(families) == 17
    assert {family for family in families if not any(family in text for text in texts)} == set()


def test_the_recorded_series_are_the_ones_that_rules_and_dashboards_name(fleet: Prometheus):
    records = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    used = "".join(str(parameter.values[1]["expr"]) for parameter in expressions())
    used += "".join(str(parameter.values[0]) for parameter in rules())
    assert {name for name in records if name not in used} == set()
    assert records <= set(fleet.values("__name__", '{job="observe"}'))


def test_histograms_of_hosts_sum_to_the_fleet(fleet: Prometheus):
    bucket = 'observe_operation_duration_seconds_bucket{operation="start", outcome="ok"}'
    at = settled()
    hosts = [
        numbers(fleet.instant(f'sum by (le) ({bucket[:-1]}, instance="host{n}"}})', at_seconds=at)) for n in range(3)
    ]
    assert all(len(host) == 60 for host in hosts)
    by_host = fleet.instant(f"sum by (instance, le) ({bucket})", at_seconds=at)
    summed: dict[float, float] = {}
    for series in by_host:
        bound = float(series.labels["le"])
        summed[bound] = summed.get(bound, 0) + series.samples[0][1]
    assert len({series.labels["instance"] for series in by_host}) == 3
    for q in (0.5, 0.9, 0.99):
        (one,) = fleet.instant(f"histogram_quantile({q}, sum by (le) ({bucket}))", at_seconds=at)
        assert one.samples[0][1] == pytest.approx(quantile(q, summed), rel=1e-9)


def test_fleet_percentiles_lie_between_those_of_the_hosts(fleet: Prometheus):
    overview = json.loads(next(path for path in DASHBOARDS if path.stem == "observe-fleet").read_text())
    (panel,) = {id(p): p for p, _ in targets(overview) if p["title"] == "Latency over all hosts"}.values()
    variables = TIMES | choices(overview, fleet)
    assert variables["operation"] == "start"
    at = settled()
    for target, name in zip(panel["targets"], ("p50", "p90", "p99"), strict=True):
        assert target["legendFormat"] == name
        (whole,) = numbers(fleet.instant(fill(target["expr"], variables), at_seconds=at))
        q = int(name[1:]) / 100
        hosts = numbers(
            fleet.instant(
                f"histogram_quantile({q}, sum by (instance, le) (rate(observe_operation_duration_seconds_bucket"
                f'{{operation="start", outcome="ok"}}[5m])))',
                at_seconds=at,
            )
        )
        assert len(hosts) == 3
        # The rule was evaluated up to a few scrapes earlier.
        assert min(hosts) * 0.8 <= whole <= max(hosts) * 1.25
        assert min(hosts) < max(hosts) / 5


def test_counts_of_the_fleet_are_those_of_its_hosts(fleet: Prometheus):
    at = settled()
    scrapes = {
        s.labels["instance"]: s.samples[0][1]
        for s in fleet.instant('count_over_time(up{instance=~"host.*"}[1h])', at_seconds=at)
    }
    counts = fleet.instant(
        'sum by (instance) (observe_operation_duration_seconds_count{operation="start"})', at_seconds=at
    )
    assert len(counts) == 3
    for series in counts:
        # 10 starts a scrape; a scrape that timed out brought its starts all the same.
        assert series.samples[0][1] % 10 == 0
        assert series.samples[0][1] >= 10 * (scrapes[series.labels["instance"]] - 1)


def quantile(q: float, cumulative: dict[float, float]) -> float:
    """histogram_quantile as its documentation has it."""
    bounds = sorted(cumulative)
    rank = q * cumulative[math.inf]
    below, start = 0.0, 0.0
    for bound in bounds:
        if cumulative[bound] >= rank:
            if math.isinf(bound):
                return start
            return start + (bound - start) * (rank - below) / (cumulative[bound] - below)
        below, start = cumulative[bound], bound
    raise AssertionError


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_drawn(fleet: Prometheus, path: Path, tmp_path: Path):
    now = time.time()
    window = picture.Window(now - 10, now, scrape_seconds=2)
    assert picture.draw(json.loads(path.read_text()), fleet, window, {}, tmp_path / "drawn.png") == []
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_percentiles_are_of_what_succeeded():
    # Other outcomes have fewer buckets: a sum over both is no histogram.
    texts = [str(parameter.values[1]["expr"]) for parameter in expressions()]
    texts += [str(parameter.values[0]) for parameter in rules()]
    selectors = [
        each for text in texts for each in re.findall(r"\bobserve_operation_duration_seconds_bucket{.*?}", text)
    ]
    assert len(selectors) > 10
    assert all('outcome="ok"' in selector for selector in selectors)
    assert not any(re.search(r"(?<!:)observe_operation_duration_seconds_bucket\[", text) for text in texts)
