# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus on a free port, with its data in a folder, and made-up exporters (workloads/exporter.py) for it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from dashboards.live import Prometheus, PrometheusError

EXPORTER = Path(__file__).parent / "workloads" / "exporter.py"
ROOT = Path(__file__).parents[1]
RULES = ROOT / "dashboards" / "prometheus" / "observe.rules.yml"
#: Nothing here takes long; a machine under load may.
PATIENCE_SECONDS = 120


def missing() -> str | None:
    """Why no Prometheus can be started here, None if it can."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            return f"{program} is missing: run `make test`, or scripts/setup peers"
    return None


@contextmanager
def exporters(hosts: int, *, operations: int = 3, sick: int = 0) -> Iterator[int]:
    """The port of so many made-up hosts; each scrape of one brings `operations` creates and starts more."""
    command = [
        sys.executable,
        str(EXPORTER),
        "--hosts",
        str(hosts),
        "--operations",
        str(operations),
        "--sick",
        str(sick),
    ]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


def targets(port: int, hosts: int) -> list[dict[str, object]]:
    """Scrape configurations of the made-up hosts, named host0, host1, …"""
    return [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {"instance": f"host{number}", "__metrics_path__": f"/{number}/metrics"},
        }
        for number in range(hosts)
    ]


def rules(folder: Path) -> Path:
    """Our rules with their groups' intervals left out, so that the server's own counts; a file in `folder`."""
    content = yaml.safe_load(RULES.read_text())
    for group in content["groups"]:
        group.pop("interval", None)
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def prometheus(
    folder: Path,
    scraped: Sequence[dict[str, object]],
    *,
    interval: str = "2s",
    rules: Sequence[Path] = (),
    flags: Sequence[str] = (),
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the job `observe` that often; its data and its log are in `folder`."""
    # JSON is YAML.
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [{"job_name": "observe", "static_configs": list(scraped)}],
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(configuration))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=30d",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
        *flags,
    ]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            server = Prometheus(f"http://127.0.0.1:{port}")
            wait(lambda: ready(server, process, folder))
            yield server
        finally:
            process.terminate()


def ready(server: Prometheus, process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Whether it answers; raises if it ended."""
    if process.poll() is not None:
        raise RuntimeError((folder / "prometheus.log").read_text())
    try:
        with urllib.request.urlopen(f"{server.url}/-/ready", timeout=5) as answer:  # noqa: S310 - our own
            return answer.status == 200
    except OSError:
        return False


def scraped(server: Prometheus, hosts: int, samples: int) -> bool:
    """Whether each of so many hosts was scraped that often."""
    try:
        found = server.instant('count_over_time(up{job="observe"}[1h])')
    except PrometheusError:
        return False
    return sum(series.samples[0][1] >= samples for series in found) >= hosts


def wait(condition: Callable[[], bool], *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Ask until it is so. Raises TimeoutError if that takes unreasonably long."""
    end = time.monotonic() + patience_seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not so after {patience_seconds} s")
        time.sleep(0.05)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
