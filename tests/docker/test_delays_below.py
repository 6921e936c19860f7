# SPDX-License-Identifier: Apache-2.0
"""Known delays below dockerd land in their phase, and are the cause: in a hook, `runc init`, iptables, an fsync."""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from delays import moved_ns, noise_ns, samples
from engines import running_engine
from recorded import record, report, runs_of
from slow_engine import FIRST, WORKLOADS, installed, start_dockerd_by

ROUNDS = 8
FLUSHES = 6
DELAY_MS = 20
MS = 1_000_000
PLAIN = ("plain", "again")
#: strace alone changes what a start takes.
HELD = ("held", "anew")
RUNC_CREATE = "start.containerd_start.runc_create"
#: arm → its equals without a delay, the phase that it moves, and the beginning and the end of the cause that grows.
ARMS = {
    "hook": (PLAIN, f"{RUNC_CREATE}.network_hook", "blocked.timer.", ".sleep"),
    "iptables": (PLAIN, "start.network.iptables", "blocked.timer.", ".sleep"),
    "init": (HELD, f"{RUNC_CREATE}.init.pivot_root", "blocked.", ""),
}
RUNTIMES = {"hook": f"runc-hook-{DELAY_MS}", "init": f"runc-init-{DELAY_MS}", **dict.fromkeys(HELD, "runc-init-0")}
PLAIN_RUNTIME = "runc-hook-0"
#: The port that the wrapper of iptables waits for.
SLOW_PORT = 8181


def iptables_wrapper(folder: Path) -> None:
    """An iptables, earlier on dockerd's PATH, that is slow for one rule of one port."""
    program = folder / "iptables"
    program.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"-t filter -A DOCKER "*"--dport {SLOW_PORT} "*) sleep 0.0{DELAY_MS};; esac\n'
        f'exec {installed("iptables")} "$@"\n'
    )
    program.chmod(0o755)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The starts of all arms, interleaved on one engine."""
    folder = tmp_path_factory.mktemp("below")
    runtimes = {name: folder / name for name in (PLAIN_RUNTIME, *RUNTIMES.values())}
    for runtime in runtimes.values():
        runtime.symlink_to(WORKLOADS / "hooked_runtime.py")
    order = random.Random(0)  # noqa: S311 - repeatable on purpose
    requests = []
    for number in range(ROUNDS):
        for arm in order.sample((*PLAIN, *HELD, *ARMS), len(PLAIN) + len(HELD) + len(ARMS)):
            port = f"{SLOW_PORT if arm == 'iptables' else 8080}/tcp"
            runtime = RUNTIMES.get(arm, PLAIN_RUNTIME)
            host = {"Runtime": runtime, "PortBindings": {port: [{"HostPort": "0"}]}}
            body = {"Image": "observe-tiny", "Cmd": ["true"], "HostConfig": host, "ExposedPorts": {port: {}}}
            requests.append((f"{arm}-{number}", body))
    plan, path = folder / "plan.json", folder / "below.observe"
    plan.write_text(json.dumps(requests))
    with pytest.MonkeyPatch.context() as patch:
        start_dockerd_by(f"export GOMAXPROCS=4; {FIRST}", folder, patch)
        iptables_wrapper(folder / "bin")
        with running_engine(*(f"--add-runtime={name}={path}" for name, path in runtimes.items())) as engine:
            record(
                engine,
                path,
                [sys.executable, str(WORKLOADS / "plan_client.py"), str(engine.socket), str(plan)],
                "--why",
            )
    found = runs_of(report(path, options=["--why"]), "start")
    assert len(found) == len(requests)
    return found


@pytest.mark.parametrize("arm", ARMS)
def test_a_delay_below_dockerd_lands_in_its_phase(runs: list[dict[str, Any]], arm: str) -> None:
    base, phase, _, _ = ARMS[arm]
    found = samples(runs)
    moved, noise = moved_ns(found, arm, base), noise_ns(found, base)
    assert moved[phase] == pytest.approx(DELAY_MS * MS, abs=max(3 * MS, 1.5 * noise[phase])), (moved, noise)
    assert max(moved, key=lambda one: moved[one]) == phase


@pytest.mark.parametrize("arm", ARMS)
def test_a_delay_below_dockerd_is_the_cause(runs: list[dict[str, Any]], arm: str) -> None:
    base, phase, start, end = ARMS[arm]
    spent: dict[str, list[int]] = defaultdict(list)
    for run in runs:
        spent[run["container_name"].rpartition("-")[0]].append(
            sum(
                run["critical_path"][step]["duration_ns"]
                for cause in run["causes"]
                if cause["id"].startswith(start) and cause["id"].endswith(end)
                for step in cause["steps"]
                if run["critical_path"][step]["phase"] == phase
            )
        )
    plain = median([one for name in base for one in spent[name]])
    assert median(spent[arm]) - plain == pytest.approx(DELAY_MS * MS, rel=0.25), spent


@pytest.fixture(scope="module")
def flushed_slowly(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Starts on an engine that saves the state of containers in a file system which is slow for one arm."""
    folder = tmp_path_factory.mktemp("flushed")
    order = random.Random(0)  # noqa: S311 - repeatable on purpose
    arms = [f"{arm}-{number}" for number in range(FLUSHES) for arm in order.sample((*PLAIN, "slow"), len(PLAIN) + 1)]
    body = {"Image": "observe-tiny", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
    plan, path = folder / "plan.json", folder / "flushed.observe"
    plan.write_text(json.dumps([(arm, body) for arm in arms]))
    files = f"{sys.executable} {WORKLOADS / 'slow_files.py'}"
    with pytest.MonkeyPatch.context() as patch:
        start_dockerd_by(
            'for word; do [ "$before" = --data-root ] && root=$word; before=$word; done\n'
            # dockerd mounts over a root that is not shared.
            'mkdir -p "$root/containers" && mount --bind "$root" "$root" && mount --make-shared "$root" || exit 1\n'
            f'{files} "$root/containers" {DELAY_MS} &\n'
            'until grep -q " $root/containers fuse" /proc/self/mounts; do kill -0 $! || exit 1; sleep 0.05; done\n'
            f"export GOMAXPROCS=4\n{FIRST}",
            folder,
            patch,
        )
        with running_engine() as engine:
            command = [sys.executable, str(WORKLOADS / "plan_client.py"), str(engine.socket), str(plan)]
            record(engine, path, command, "--why")
    found = runs_of(report(path, options=["--why"]), "start")
    assert len(found) == len(arms)
    return found


def test_a_slow_fsync_lands_in_its_phase(flushed_slowly: list[dict[str, Any]]) -> None:
    found = samples(flushed_slowly)
    moved, noise = moved_ns(found, "slow", PLAIN), noise_ns(found, PLAIN)
    phase = "start.save_state"
    assert moved[phase] == pytest.approx(DELAY_MS * MS, abs=max(3 * MS, 1.5 * noise[phase])), (moved, noise)
    assert max(moved, key=lambda one: moved[one]) == phase


def test_a_slow_fsync_is_the_cause(flushed_slowly: list[dict[str, Any]]) -> None:
    spent: dict[str, list[int]] = defaultdict(list)
    for run in flushed_slowly:
        causes = {cause["id"]: cause for cause in run["causes"]}
        arm = run["container_name"].rpartition("-")[0]
        spent[arm].append(causes["container_state_sync"]["duration_ns"] if "container_state_sync" in causes else 0)
        if arm == "slow":
            assert "fsync" in causes["container_state_sync"]["text"]
            (saved,) = [phase for phase in run["phases"] if phase["id"] == "start.save_state"]
            assert saved["time"]["blocked_ns"]["disk"] > 0.75 * DELAY_MS * MS
    plain = median([one for name in PLAIN for one in spent[name]])
    assert median(spent["slow"]) - plain == pytest.approx(DELAY_MS * MS, rel=0.25), spent
