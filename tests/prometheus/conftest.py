# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus that scrapes made-up exporters, with our rules, and with a week-old past."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import promserver
import pytest
from dashboards.live import Prometheus

from observe.phases import load

HOSTS = 3
#: Enough for the alerts that want 30 operations of a kind.
OPERATIONS = 10
SCRAPES = 6
WEEK_SECONDS = 7 * 24 * 3600


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Three hosts, the last of them sick, and one that does not answer; our rules, evaluated at each scrape."""
    folder = tmp_path_factory.mktemp("prometheus")
    last_week(folder)
    nobody = {"targets": [f"127.0.0.1:{promserver.free_port()}"], "labels": {"instance": "gone"}}
    with (
        promserver.exporters(HOSTS, operations=OPERATIONS, sick=1) as port,
        promserver.prometheus(
            folder, [*promserver.targets(port, HOSTS), nobody], rules=[promserver.rules(folder)]
        ) as server,
    ):
        promserver.wait(lambda: promserver.scraped(server, HOSTS, SCRAPES))
        # The last rule of a group is evaluated after the others.
        last = "job_instance_operation_phase:observe_phase_duration_seconds_count:increase1h"
        promserver.wait(lambda: bool(server.instant(f"{last} > 30")))
        yield server


def last_week(folder: Path) -> None:
    """Make blocks in which every phase of the sick host took 0.1 ms, for an hour around this time a week ago."""
    now = time.time()
    times = [now - WEEK_SECONDS + 60 * minute for minute in range(-30, 31)]
    values = {
        "job_instance_operation_phase:observe_phase_duration_seconds:p50_rate1h": 0.0001,
        "job_instance_operation_phase:observe_phase_duration_seconds:mean_rate1h": 0.0001,
        "job_instance_operation_phase:observe_phase_duration_seconds_count:increase1h": 100,
    }
    lines = []
    for name, value in values.items():
        lines.append(f"# TYPE {name} gauge")
        for phase in load().phases:
            labels = f'job="observe",instance="host{HOSTS - 1}",operation="{phase.operation}",phase="{phase.id}"'
            lines += [f"{name}{{{labels}}} {value} {at:.3f}" for at in times]
    text = folder / "last-week.om"
    text.write_text("\n".join([*lines, "# EOF", ""]))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet", str(text), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True)
