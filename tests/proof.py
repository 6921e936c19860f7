# SPDX-License-Identifier: Apache-2.0
"""What a Prometheus knows of a load, from `observe serve` and from dockerd itself: for a test and for a bench."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import promserver
from dashboards.live import Prometheus, PrometheusError
from engines import Engine
from served import Serving, eventually, serving

WORKLOADS = Path(__file__).parent / "workloads"
OPERATIONS = ("create", "start")
OUTCOMES = ("ok", "failed", "unfinished")
#: Where the engine tells its own metrics, in its own network namespace.
ENGINE_PORT = 9323
ENGINE_OPTIONS = (f"--metrics-addr=127.0.0.1:{ENGINE_PORT}", "--experimental")
COUNT = "observe_operation_duration_seconds_count"
OURS, THEIRS = "observe_engine_action_seconds", "engine_daemon_container_actions_seconds"


@dataclass(frozen=True, slots=True)
class Proof:
    """Differences between before and after a load."""

    #: Operation and outcome → how many requests the clients made, and how many Prometheus knows of.
    made: dict[tuple[str, str], int]
    counted: dict[tuple[str, str], float]
    #: Action → (count, seconds) by our metric and by the engine's.
    ours: dict[str, tuple[float, float]]
    theirs: dict[str, tuple[float, float]]
    #: Events lost in the kernel or by us.
    lost: float
    #: Scrapes of both that did not succeed.
    failed_scrapes: float
    #: What serve took of one core.
    cpu: float

    def difference(self, action: str) -> float:
        """How far our sum is from the engine's, as a share of it."""
        return self.ours[action][1] / self.theirs[action][1] - 1


@contextmanager
def forwarded(pid: int, port: int) -> Iterator[int]:
    """A port of ours that leads to a port of 127.0.0.1 in the network namespace of a process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own = listener.getsockname()[1]
        inside = ["nsenter", "--target", str(pid), "--net", sys.executable, str(WORKLOADS / "forward.py")]
        descriptor = listener.fileno()
        with subprocess.Popen([*inside, str(descriptor), str(port)], pass_fds=[descriptor]) as process:
            try:
                yield own
            finally:
                process.kill()


@contextmanager
def watched(engine: Engine, folder: Path, *, interval: str = "1s") -> Iterator[tuple[Serving, Prometheus]]:
    """`observe serve` on an engine that has ENGINE_OPTIONS, and a Prometheus that scrapes both."""
    with serving(engine.url, folder) as server, forwarded(engine.pid, ENGINE_PORT) as port:
        targets: list[dict[str, object]] = [
            {"targets": [f"127.0.0.1:{server.port}"]},
            {"targets": [f"127.0.0.1:{port}"], "labels": {"job": "dockerd"}},
        ]
        rules = [promserver.rules(folder)]
        with promserver.prometheus(folder, targets, interval=interval, rules=rules) as prometheus:
            yield server, prometheus


def prove(engine: Engine, server: Serving, prometheus: Prometheus, seconds: float, *load: str) -> Proof:
    """Let clients create and start containers for a while, and compare what everybody says of it."""
    scraped(prometheus)
    before, started = _Known.of(prometheus), time.monotonic()
    script = [sys.executable, str(WORKLOADS / "mixed.py"), str(engine.socket), engine.image, str(seconds), *load]
    said = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    made = {(operation, how): count for operation, counts in said.items() for how, count in counts.items()}
    total = sum(made.values()) + sum(before.counted.values())
    eventually(lambda: server.total(COUNT) >= total)
    scraped(prometheus)
    after, elapsed = _Known.of(prometheus), time.monotonic() - started
    return Proof(
        made,
        {key: after.counted[key] - before.counted[key] for key in after.counted},
        _differences(before.ours, after.ours),
        _differences(before.theirs, after.theirs),
        after.lost - before.lost,
        _value(prometheus, "sum(count_over_time(up[1h]) - sum_over_time(up[1h]))"),
        (after.cpu_seconds - before.cpu_seconds) / elapsed,
    )


def scraped(prometheus: Prometheus) -> None:
    """Wait until Prometheus has asked both once more."""
    now = time.time()

    def both() -> bool:
        try:
            # Of a selector alone it is the sample's time; of an expression the question's.
            found = prometheus.instant('timestamp(up{job=~"observe|dockerd"})')
        except PrometheusError:
            return False
        return sum(series.samples[0][1] > now for series in found) == 2

    eventually(both, "Prometheus does not reach both")


@dataclass(frozen=True, slots=True)
class _Known:
    """What Prometheus knows at a moment."""

    counted: dict[tuple[str, str], float]
    ours: dict[str, tuple[float, float]]
    theirs: dict[str, tuple[float, float]]
    lost: float
    cpu_seconds: float

    @classmethod
    def of(cls, prometheus: Prometheus) -> _Known:
        keys = [(operation, outcome) for operation in OPERATIONS for outcome in OUTCOMES]
        lost = 'sum(observe_lost_events_total{source=~"ring_buffer|program_misses|lineage|unmatched_returns"})'
        return cls(
            {
                (operation, outcome): _value(
                    prometheus, f'sum({COUNT}{{operation="{operation}", outcome="{outcome}"}})'
                )
                for operation, outcome in keys
            },
            _actions(prometheus, OURS),
            _actions(prometheus, THEIRS),
            _value(prometheus, lost),
            _value(prometheus, 'process_cpu_seconds_total{job="observe"}'),
        )


def _actions(prometheus: Prometheus, metric: str) -> dict[str, tuple[float, float]]:
    return {
        action: tuple(_value(prometheus, f'sum({metric}_{part}{{action="{action}"}})') for part in ("count", "sum"))
        for action in OPERATIONS
    }  # type: ignore[return-value]


def _differences(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    return {
        action: (after[action][0] - before[action][0], after[action][1] - before[action][1]) for action in OPERATIONS
    }


def _value(prometheus: Prometheus, expr: str) -> float:
    (series,) = prometheus.instant(expr)
    return series.samples[0][1]
