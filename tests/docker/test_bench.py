# SPDX-License-Identifier: Apache-2.0
"""`observe bench` on a real engine: exact counts in each arm's recording, and nothing left however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engines import Engine, EngineFactory
from recorded import OBSERVE, TIMEOUT_SECONDS, report

from observe.bench.plan import LABEL
from observe.correlate import stamp
from observe.recording import Recording

RUNS = 9
NETWORKS = ("none", "host")


def command(engine: Engine, folder: Path, *options: str) -> list[str]:
    """Command line of a bench."""
    return [*OBSERVE, "bench", "--docker-host", engine.url, "--image", engine.image, "-o", str(folder), *options]


def bench(engine: Engine, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A bench that is done; no container of it may be left."""
    done = subprocess.run(
        command(engine, folder, *options), capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
    )
    assert left(engine) == []
    return done


def left(engine: Engine) -> list[str]:
    """Names of the containers that are there."""
    return [str(entry["Names"][0]).removeprefix("/") for entry in engine.client.api.containers(all=True)]


def result(folder: Path) -> dict[str, Any]:
    """What it has saved."""
    document: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return document


def turn_of(name: str) -> int:
    """In which turn a container was made; 0 if it is not one of a measured run."""
    return int(name.rpartition("-")[2].partition(".")[0]) if name.startswith("observe-bench-") else 0


@contextmanager
def measuring(engine: Engine, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A bench that has measured a run of its only arm, and is at the next."""
    with subprocess.Popen(
        command(engine, folder, "--runs", "1000", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            # Turn 0 is the warm-up.
            while max(map(turn_of, left(engine)), default=0) < 2:
                assert process.poll() is None
            yield process
        finally:
            process.kill()


def test_each_arm_has_a_recording_with_exactly_its_runs(engine: Engine, tmp_path: Path) -> None:
    done = bench(engine, tmp_path, "--runs", str(RUNS), "--network", *NETWORKS, "--seed", "5", "--strict", "-f", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == result(tmp_path)
    assert Counter(run["arm"] for run in document["runs"]) == dict.fromkeys(NETWORKS, RUNS)
    assert {run["outcome"] for run in document["runs"]} == {"ok"}
    for arm in document["arms"]:
        assert arm["recorded"] == {"create": RUNS, "start": RUNS}
        recorded = report(Path(arm["recording"]))
        assert [run["operation"] for run in recorded["runs"]] == ["create", "start"] * RUNS
        assert {(run["network"], run["image"], run["outcome"]) for run in recorded["runs"]} == {
            (arm["name"], engine.image, "ok")
        }
        assert not any(recorded["loss"][name] for name in ("ring_buffer", "program_misses", "lineage"))
        # One answer took no longer than what the client saw of it.
        seen = [run["durations_ns"] for run in document["runs"] if run["arm"] == arm["name"]]
        for client, engines in zip(seen, zip(*[iter(recorded["runs"])] * 2, strict=True), strict=True):
            assert [run["duration_ns"] < client[run["operation"]] for run in engines] == [True, True]
        assert sum(map(len, seen)) == 5 * RUNS
    for name in NETWORKS:
        kept = Recording.open(tmp_path / f"{name}.observe").conclusions(stamp())
        assert kept is not None
        assert len(kept.runs) == 2 * RUNS
    compared = subprocess.run(
        [*OBSERVE, "compare", "-f", "json", *(str(tmp_path / f"{name}.observe") for name in NETWORKS)],
        capture_output=True,
        check=True,
    )
    groups = [(one["base"], one["new"]) for one in json.loads(compared.stdout)["operations"]]
    assert groups == [({"compared": RUNS, "outcomes": {"ok": RUNS}},) * 2] * 2


def test_many_at_once_with_and_without_the_observer(engine: Engine, tmp_path: Path) -> None:
    done = bench(
        engine, tmp_path, "--runs", "5", "--concurrency", "4", "--attach", "both", "--network", "none", "--seed", "1"
    )
    assert done.returncode == 0, done.stderr
    observed, blind = result(tmp_path)["arms"]
    assert [(arm["name"], arm["attached"], arm["runs"]) for arm in (observed, blind)] == [
        ("none", True, 5),
        ("none-unattached", False, 5),
    ]
    assert (observed["recorded"], blind["recording"]) == ({"create": 5, "start": 5}, None)
    turns = Counter((run["arm"], run["turn"]) for run in result(tmp_path)["runs"])
    assert sorted(turns.values()) == [1, 1, 4, 4]
    assert "none-unattached" in done.stdout
    assert [path.name for path in tmp_path.glob("*.observe")] == ["none.observe"]


def test_operations_of_others_are_not_in_the_recording(engine: Engine, tmp_path: Path) -> None:
    with measuring(engine, tmp_path, "--network", "none") as process:
        foreign = engine.client.containers.run(engine.image, ["true"], name="foreign", detach=True, network_mode="none")
        foreign.wait()
        foreign.remove()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_SECONDS)
    names = {run["container_name"] for run in report(tmp_path / "none.observe")["runs"]}
    assert names
    assert all(name.startswith("observe-bench-") for name in names)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_container_and_a_readable_result(
    engine: Engine, tmp_path: Path, number: signal.Signals
) -> None:
    with measuring(engine, tmp_path, "--concurrency", "3", "--network", "none") as process:
        process.send_signal(number)
        out, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 128 + number, errors
    assert left(engine) == []
    assert f"ended early: stopped by {number.name}" in out
    document = result(tmp_path)
    assert {run["outcome"] for run in document["runs"]} <= {"ok"}
    recording = Recording.open(tmp_path / "none.observe")
    damage = recording.check()
    assert (damage.damaged_bytes, damage.truncated) == (0, False)
    recorded = [run["operation"] for run in report(recording.path)["runs"] if run["outcome"] == "ok"]
    assert recorded.count("start") >= len(document["runs"])


def test_a_signal_in_the_warm_up_leaves_nothing_at_all(engine: Engine, tmp_path: Path) -> None:
    line = command(engine, tmp_path / "new", "--network", "none", "--", "sleep", "50")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not left(engine):
            assert process.poll() is None
        assert (tmp_path / "new" / "none.observe").exists()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, out, errors) == (130, "", "")
    assert left(engine) == []
    assert [*tmp_path.iterdir()] == []


def test_a_bench_leaves_an_earlier_one_alone(engine: Engine, tmp_path: Path) -> None:
    assert bench(engine, tmp_path, "--runs", "1", "--warmup", "0", "--network", "none").returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = bench(engine, tmp_path, "--network", "host", "no-such")
    assert done.returncode == 2
    assert done.stderr == f"observe: {tmp_path}: there is a bench in it; name another folder with -o\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_killed_bench_leaves_no_container_either(engine: Engine, tmp_path: Path) -> None:
    with measuring(engine, tmp_path, "--network", "none") as process:
        process.kill()
        process.wait()
    # The load generator notices; the fixture sees that it ends.
    while left(engine):
        pass
    assert Recording.open(tmp_path / "none.observe").check().truncated


def test_what_a_killed_bench_has_left_is_removed_on_request_only(engine: Engine, tmp_path: Path) -> None:
    engine.client.containers.create(engine.image, name="old", labels={LABEL: "0"})
    engine.client.containers.create(engine.image, name="other")
    done = subprocess.run(
        command(engine, tmp_path, "--runs", "1", "--attach", "no"), capture_output=True, text=True, check=True
    )
    assert "1 containers of another bench are there" in done.stderr
    assert sorted(left(engine)) == ["old", "other"]
    done = subprocess.run(command(engine, tmp_path, "--clean"), capture_output=True, text=True, check=True)
    assert done.stderr == "observe: removed 1 containers\n"
    assert left(engine) == ["other"]
    engine.client.containers.get("other").remove()


def test_failed_runs_are_counted_shown_and_an_error(engine: Engine, tmp_path: Path) -> None:
    done = bench(engine, tmp_path, "--runs", "3", "--warmup", "0", "--network", "none", "--", "sh", "-c", "exit 7")
    assert done.returncode == 1
    assert "0 of 3 runs went well" in done.stdout
    assert "failed 3 times: the container's command ended with 7" in done.stdout
    assert done.stderr == "observe: 3 of 3 runs failed: the container's command ended with 7\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image", "no-such-image"], "no such image: no-such-image; docker pull it, or name another with --image"),
        (["--network", "no-such"], "warm-up of no-such: start: network no-such not found"),
        (["--runtime", "no-such"], "warm-up of bridge: create: Unknown runtime specified no-such"),
        (["--", "no-such-program"], "no-such-program"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(engine: Engine, tmp_path: Path, options: list[str], said: str) -> None:
    done = bench(engine, tmp_path, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_without_attaching_it_needs_no_privileges(engine: Engine, tmp_path: Path) -> None:
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    for mode, code in (("no", 0), ("yes", 3)):
        line = [*powerless, *command(engine, tmp_path / mode, "--runs", "2", "--attach", mode)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert (tmp_path / mode / "bench.json").exists() == (mode == "no")


def test_an_engine_that_dies_is_said_and_what_was_measured_is_kept(new_engine: EngineFactory, tmp_path: Path) -> None:
    engine = new_engine()
    folder = tmp_path / "out"
    with measuring(engine, folder, "--network", "none") as process:
        os.kill(engine.pid, signal.SIGKILL)
        out, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 1
    assert f"the engine at {engine.url} has ended" in errors.splitlines()[-1]
    assert f"what was measured until then is in {folder}" in errors.splitlines()[-1]
    assert "ended early" in out
    assert result(folder)["ended_early"]
    assert not Recording.open(folder / "none.observe").check().truncated
