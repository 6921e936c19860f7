# SPDX-License-Identifier: Apache-2.0
"""What the time was spent on, held against programs whose parts are known, and against other witnesses."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engines import Engine, running_engine
from recorded import api_client, client_times, record, report, runs_of
from slow_engine import WORKLOADS

RUNS = 6
MS = 1_000_000


def spent(steps: Iterable[Mapping[str, Any]], start_ns: int, end_ns: int) -> Counter[str]:
    """What the critical path was spent on between two moments: "cpu", "runqueue" and the reasons of blocks."""
    found: Counter[str] = Counter()
    for step in steps:
        inside_ns = min(step["start_ns"] + step["duration_ns"], end_ns) - max(step["start_ns"], start_ns)
        if inside_ns > 0:
            found[step["reason"] if step["state"] == "blocked" else step["state"]] += inside_ns
    return found


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Starts through a runtime that is built of known parts, and what it says of each, by process."""
    folder = tmp_path_factory.mktemp("busy")
    runtime = folder / "busy"
    runtime.symlink_to(WORKLOADS / "busy_runtime.py")
    with running_engine(f"--add-runtime=busy={runtime}", "--default-runtime=busy") as engine:
        client = api_client(engine, folder / "times", "--runs", str(RUNS), "--network", "host")
        record(engine, folder / "busy.observe", client, "--why")
    parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in Path(f"{runtime}.parts").read_text().splitlines():
        told = json.loads(line)
        parts[told["pid"]].append(told)
    return runs_of(report(folder / "busy.observe", options=["--why"]), "start"), parts


def parts_of(run: dict[str, Any], parts: Mapping[int, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The parts that lie in a run, by their names."""
    end_ns = run["start_ns"] + run["duration_ns"]
    return {
        part["part"]: part
        for told in parts.values()
        for part in told
        if run["start_ns"] <= part["start_ns"] and part["end_ns"] <= end_ns
    }


def test_a_runtime_of_known_parts_is_split_as_it_is_built(
    busy: tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]],
) -> None:
    runs, told = busy
    assert len(runs) == RUNS
    for run in runs:
        parts = parts_of(run, told)
        assert set(parts) == {"spin", "sleep", "fsync", "child", "child_spin", "child_sleep"}
        split = {name: spent(run["critical_path"], part["start_ns"], part["end_ns"]) for name, part in parts.items()}
        length = {name: part["end_ns"] - part["start_ns"] for name, part in parts.items()}
        for name, found in split.items():
            assert sum(found.values()) == length[name], name
        for name in ("spin", "child_spin"):
            queued_ns = parts[name]["queued_ns"]
            assert split[name]["runqueue"] == pytest.approx(queued_ns, abs=0.1 * length[name]), (name, split[name])
            assert split[name]["cpu"] == pytest.approx(length[name] - queued_ns, rel=0.1), (name, split[name])
        for name in ("sleep", "child_sleep"):
            awake = split[name]["cpu"] + split[name]["runqueue"]
            assert split[name]["timer"] == pytest.approx(length[name] - awake, rel=0.1), (name, split[name])
            assert split[name]["timer"] > split[name]["cpu"]
        awake = split["fsync"]["cpu"] + split["fsync"]["runqueue"]
        assert split["fsync"]["disk"] == pytest.approx(length["fsync"] - awake, rel=0.1), split["fsync"]
        # A wait for a child is replaced by what the child did.
        assert split["child"]["child"] <= 0.1 * length["child"], split["child"]
        assert split["child"]["timer"] == pytest.approx(split["child_sleep"]["timer"], rel=0.1)


def test_the_parts_are_causes_that_nobody_wrote_down(
    busy: tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]],
) -> None:
    for run in busy[0]:
        causes = {cause["id"]: cause for cause in run["causes"]}
        assert causes["cpu.busy_create"]["text"] == "busy create ran on a CPU"
        assert causes["blocked.disk.fsync.busy.file.busy_create"]["text"].startswith(
            "busy create: fsync of busy.file waited for the disk ("
        )
        assert any(name.startswith("blocked.timer.") and name.endswith(".busy_create") for name in causes)
        assert [cause["duration_ns"] for cause in run["causes"]] == sorted(
            (cause["duration_ns"] for cause in run["causes"]), reverse=True
        )
        assert sum(cause["duration_ns"] for cause in run["causes"]) == run["duration_ns"]


def test_shares_sum_to_every_phase_at_eight_clients_and_no_step_is_another_containers(
    engine: Engine, tmp_path: Path
) -> None:
    clients, networks = 8, ("host", "none", "bridge")
    runs = 2 * len(networks)
    path, times = tmp_path / "many.observe", tmp_path / "times"
    client = api_client(engine, times, "--clients", str(clients), "--runs", str(runs), "--network", *networks)
    record(engine, path, client, "--why")
    document = report(path, options=["--why", "--events"])
    assert len(document["runs"]) == len(client_times(times)) == 2 * clients * runs
    assert {run["network"] for run in document["runs"]} == {*networks}
    assert not document["loss"]["ring_buffer"]
    assert not document["loss"]["program_misses"]
    daemons = {"dockerd", "containerd"}
    owners: dict[int, set[str]] = defaultdict(set)
    for run in document["runs"]:
        for phase in run["phases"]:
            for event in phase.get("events", []):
                if event["kind"] == "sched_process_exec":
                    owners[event["pid"]].add(run["container_id"])
    for run in document["runs"]:
        for phase in run["phases"]:
            if phase["duration_ns"]:
                time = phase["time"]
                total = time["cpu_ns"] + time["runqueue_ns"] + sum(time["blocked_ns"].values())
                assert total == phase["duration_ns"], (phase["id"], time)
        assert sum(step["duration_ns"] for step in run["critical_path"]) == run["duration_ns"]
        strangers = [
            step
            for step in run["critical_path"]
            if step["program"] not in daemons
            and step["pid"] in owners
            and run["container_id"] not in owners[step["pid"]]
        ]
        assert strangers == []
        assert all(step["program"] for step in run["critical_path"])


def test_without_why_nothing_is_said_of_it(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "plain.observe"
    record(engine, path, api_client(engine, tmp_path / "times"), "--no-why")
    document = report(path, options=["--why"])
    assert len(document["runs"]) == 2
    for run in document["runs"]:
        assert not {"causes", "critical_path"} & run.keys()
        assert not any("time" in phase for phase in run["phases"])
