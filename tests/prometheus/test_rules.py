# SPDX-License-Identifier: Apache-2.0
"""The rules by promtool: their form, and each alert once when it must and not when it must not."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from pathlib import Path

import promserver
import pytest
import yaml

from observe.resources import folder

TESTS = sorted(Path(__file__).parent.glob("*.rules.test.yml"))
PROMETHEUS = folder("dashboards") / "prometheus"


def promtool(*arguments: object, said: bytes = b"") -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], input=said, capture_output=True, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def test_the_rules_and_the_configuration_are_well_formed():
    rules = yaml.safe_load((PROMETHEUS / "observe.rules.yml").read_text())
    count = sum(len(group["rules"]) for group in rules["groups"])
    assert f"{count} rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "observe.rules.yml"
    )
    assert f"{count} rules found" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_alerts(path: Path):
    assert "SUCCESS" in promtool("test", "rules", path)


def test_every_alert_is_tested():
    rules = yaml.safe_load((PROMETHEUS / "observe.rules.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    fired = set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            fired |= {case["alertname"] for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert fired == alerts


def test_every_alert_has_its_runbook():
    rules = yaml.safe_load((PROMETHEUS / "observe.rules.yml").read_text())
    text = (Path(__file__).parents[2] / "docs" / "runbooks.md").read_text()
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert page == "docs/runbooks.md"
        assert anchor == alert["alert"].lower()
        assert alert["labels"]["severity"] in {"info", "warning"}
    assert anchors == {alert["alert"].lower() for alert in alerts}


def test_promtool_accepts_what_a_made_up_exporter_says():
    with promserver.exporters(1) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/0/metrics") as answer:
        promtool("check", "metrics", said=answer.read())
