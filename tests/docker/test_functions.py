# SPDX-License-Identifier: Apache-2.0
"""The functions of real daemons, timed: against dockerd's own metric, its events and known delays; none is hurt."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from delays import moved_ns, noise_ns, pooled, samples, uncertainty_ns
from engines import Engine, EngineFactory, running_engine
from leftovers import left_since, snapshot
from recorded import api_client, client_times, record, recorder, report, runs_of
from slow_engine import PLUGIN, WORKLOADS, installed, never_waiting, put_on_path, slow_plugin, slow_runtime

from observe.collectors import session as sessions
from observe.collectors.session import POLL_SECONDS, Session, SessionOptions
from observe.correlate import Correlator
from observe.engine import find_engine
from observe.model import SYSCALLS, Item, Kind, Note, NoteKind, Run
from observe.phases import load
from observe.probes.attach import FunctionProbes
from observe.probes.cache import cache_folder
from observe.probes.events import numbered_calls
from observe.recording import Recording

OPERATIONS = ("create", "start")
DAEMON = "github.com/docker/docker/daemon.(*Daemon)."
METRICS = "127.0.0.1:9323"
PAIRS = 50
DEADLINE_SECONDS = 60
MS, US = 1_000_000, 1_000


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Report of one client's pairs, with its functions and, as "metrics", what dockerd itself measured of them."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "pairs.observe"
    with running_engine("--metrics-addr", METRICS) as engine:
        # A gap between two functions is short: waiting for a processor once would double it.
        never_waiting(engine)
        before = metrics(engine)
        record(engine, path, api_client(engine, folder / "times", "--runs", str(PAIRS), "--real-time"))
        after = metrics(engine)
    return {
        **report(path, options=["--functions"]),
        "metrics": {operation: after[operation] - before[operation] for operation in OPERATIONS},
    }


def metrics(engine: Engine) -> dict[str, float]:
    """Seconds that dockerd has spent on containers, by what it did with them."""
    code = f"import urllib.request; print(urllib.request.urlopen('http://{METRICS}/metrics').read().decode())"
    command = ["nsenter", "--target", str(engine.pid), "--net", sys.executable, "-c", code]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    start = 'engine_daemon_container_actions_seconds_sum{action="'
    lines = [line.removeprefix(start).split('"} ') for line in text.splitlines() if line.startswith(start)]
    return {action: float(seconds) for action, seconds in lines}


@pytest.mark.parametrize(("operation", "function"), [("create", "containerCreate"), ("start", "containerStart")])
def test_functions_take_as_long_as_dockerd_itself_measures(
    pairs: dict[str, Any], operation: str, function: str
) -> None:
    calls = [call for run in pairs["runs"] for call in run["functions"] if call["name"] == DAEMON + function]
    assert len(calls) == PAIRS
    assert all(call["complete"] for call in calls)
    ours_ns, theirs_ns = sum(call["duration_ns"] for call in calls), pairs["metrics"][operation] * 1e9
    assert abs(ours_ns - theirs_ns) <= max(0.01 * theirs_ns, 50 * US * PAIRS)


def timed_by_functions(operation: str) -> set[str]:
    """Phases that functions bound, their own or those of a part; a program, or a file, may show a part alone."""
    phases = load().of(operation)
    timed = [phase.id for phase in phases if phase.functions or phase.to_entry or phase.from_return]
    return {
        phase.id
        for phase in phases
        if phase.occurs != "on_failure" and any(f"{one}.".startswith(f"{phase.id}.") for one in timed)
    }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_phase_is_bounded_by_its_function_and_hardly_any_time_is_left(
    pairs: dict[str, Any], operation: str
) -> None:
    runs = runs_of(pairs, operation)
    assert len(runs) == PAIRS
    for run in runs:
        timed = {phase["id"] for phase in run["phases"] if phase["evidence"] == "function"}
        assert timed == timed_by_functions(operation)
        assert run["departures"] == []
    shares = [run["unattributed_ns"] / run["duration_ns"] for run in runs]
    assert median(shares) <= 0.02
    assert max(shares) <= 0.05
    assert pairs["refused"] == []


def test_without_system_calls_functions_still_bound_every_phase_of_theirs(engine: Engine, tmp_path: Path) -> None:
    path, runs = tmp_path / "few.observe", 3
    client = api_client(engine, tmp_path / "times", "--runs", str(runs))
    record(engine, path, client, "--strict", "--no-syscalls", "--no-inotify")
    document = report(path)
    for operation in OPERATIONS:
        assert len(runs_of(document, operation)) == runs
        for run in runs_of(document, operation):
            timed = {phase["id"] for phase in run["phases"] if phase["evidence"] == "function"}
            assert timed == timed_by_functions(operation)
            assert run["departures"] == []
            assert run["container_name"]
    needed = {call.kind for call in numbered_calls(only_needed=True).values()}
    kinds = {Kind(kind) for kind in np.unique(Recording.open(path).events().rows["kind"]).tolist()}
    assert kinds & SYSCALLS <= needed
    assert {Kind.EXECVE, Kind.SCHED_PROCESS_EXEC, Kind.SCHED_PROCESS_FORK, Kind.SCHED_PROCESS_EXIT} <= kinds
    assert any("--no-syscalls" in warning for warning in document["warnings"])


def test_sixteen_clients_at_once_and_every_event_of_dockerd_in_its_operation(engine: Engine, tmp_path: Path) -> None:
    clients, runs = 16, 20
    out, path = tmp_path / "times", tmp_path / "many.observe"
    pid = engine.pid
    with events_of(engine, tmp_path / "events") as events:
        record(engine, path, api_client(engine, out, "--clients", str(clients), "--runs", str(runs)))
        told = eventually(lambda: took(events(), 2 * clients * runs))
    document = report(path)
    attributed = {(run["operation"], run["container_id"]): run for run in document["runs"]}
    requests = {(request["operation"], request["id"]): request for request in client_times(out)}
    assert len(document["runs"]) == len(attributed) == 2 * clients * runs
    assert attributed.keys() == requests.keys() == told.keys()
    for key, run in attributed.items():
        assert requests[key]["sent_ns"] <= run["start_ns"] <= requests[key]["answered_ns"]
        # The epoch is read once a recording, and may be corrected meanwhile.
        assert -MS <= told[key] - run["wall_time_ns"] <= run["duration_ns"] + MS
        assert run["outcome"] == "ok"
    losses = {name: document["loss"][name] for name in ("ring_buffer", "program_misses", "unmatched_returns")}
    assert not any(losses.values()), losses
    assert engine.pid == pid
    os.kill(pid, 0)


@contextmanager
def events_of(engine: Engine, out: Path) -> Iterator[Any]:
    """`docker events` of creates and starts into a file; what is given takes them: (operation, id) → epoch, ns."""
    filters = [f"--filter=event={operation}" for operation in OPERATIONS]
    command = ["docker", "-H", engine.url, "events", "--filter=type=container", *filters, "--format", "{{json .}}"]

    def taken() -> dict[tuple[str, str], int]:
        lines = out.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return {(event["Action"], event["id"]): event["timeNano"] for event in found}

    with out.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            # It listens once it has told of something.
            probe = engine.client.containers.create(engine.image)
            eventually(lambda: told_of(probe, taken))
            probe.remove()
            known = set(taken())
            yield lambda: {key: time_ns for key, time_ns in taken().items() if key not in known}
        finally:
            process.kill()


def told_of(container: Any, taken: Callable[[], dict[Any, int]]) -> bool:
    """Whether anything is told while a container makes one more event."""
    container.start()
    container.wait()
    return bool(taken())


def took(found: dict[Any, int], count: int) -> dict[Any, int] | None:
    """What was found, once it is complete."""
    return found if len(found) >= count else None


def eventually(condition: Any) -> Any:
    """What the condition gives as soon as it gives something."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


#: Rounds of all arms are added until chance moves no arm's phase by more than two thirds of what is asserted: quiet
#: machines need the first alone.
ROUNDS = 20
ADDED_ROUNDS = 10
MAX_ROUNDS = 60
TOLERANCE_NS = 2 * MS
#: Every place waits in every arm, one for long: what follows a sleep is slower by up to 1.7 ms here, however long that
#: was, which is no part of the delay.
SHORT_MS, LONG_MS = 10, 30
DELAY_NS = (LONG_MS - SHORT_MS) * MS
PLAIN = ("plain", "again")
#: arm → the phases that its delay must move, and no other.
ARMS = {
    "create": {"start.containerd_start.runc_create"},
    "start": {"start.containerd_start.runc_start"},
    # VolumeDriver.Mount: dockerd mounts the volume once to copy the image's files into it (createContainerOSSpecific-
    # Settings → populateVolumes; /tmp is in the image), and for each start (WithMounts → setupMounts).
    "mount": {"create.os_specific", "start.spec.mounts"},
    # AuthZReq is asked before the request's handler runs.
    "authorization": {"create.request"},
}
#: Commands of runc.
COMMANDS = ("create", "start")


@dataclass(frozen=True, slots=True)
class Waits:
    """What one place of an arm said of its waits, in nanoseconds."""

    short: list[int]
    long: list[int]

    @property
    def delay_ns(self) -> float:
        """How much longer it waited in its own arm than in others."""
        return median(self.long) - median(self.short)


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Waits]]:
    """Runs of all arms, interleaved on one engine, and what the place of each said of its waits."""
    folder = tmp_path_factory.mktemp("arms")
    runtimes = {arm: slow_runtime(folder, runtime_of(arm)) for arm in (*COMMANDS, PLAIN[0])}
    generator = random.Random(0)  # noqa: S311 - repeatable on purpose
    runs: list[dict[str, Any]] = []
    rounds = 0
    with pytest.MonkeyPatch.context() as patch, slow_plugin(folder, SHORT_MS, LONG_MS, patch) as told:
        names = [f"--add-runtime={runtime.name}={runtime}" for runtime in runtimes.values()]
        with running_engine(f"--authorization-plugin={PLUGIN}", *names) as engine:
            while rounds < ROUNDS or (rounds < MAX_ROUNDS and chance_ns(runs) > TOLERANCE_NS * 2 / 3):
                more = ADDED_ROUNDS if rounds else ROUNDS
                # Shuffled: dockerd collects garbage after so many requests, which must not always be the same arm's.
                order = [generator.sample((*PLAIN, *ARMS), len(PLAIN) + len(ARMS)) for _ in range(more)]
                requests = [
                    (f"{arm}-{rounds + number}", body_of(arm)) for number, arms in enumerate(order) for arm in arms
                ]
                runs += runs_of_plan(engine, folder / f"after-{rounds}", requests)
                rounds += more
    assert len(runs) == 2 * rounds * len((*PLAIN, *ARMS))
    waits = {**waits_of_runtimes(list(runtimes.values())), **waits_of_plugin(told)}
    for arm, found in waits.items():
        assert len(found.long) == rounds * len(ARMS[arm])
        assert len(found.short) == len(found.long) * (len((*PLAIN, *ARMS)) - 1)
    return runs, waits


def runtime_of(arm: str) -> str:
    """Name of the runtime of an arm."""
    return "-".join(["runc", *(f"{command}-{LONG_MS if command == arm else SHORT_MS}" for command in COMMANDS)])


def waits_of_runtimes(runtimes: list[Path]) -> dict[str, Waits]:
    """Command → what the runtimes said."""
    found = {command: Waits([], []) for command in COMMANDS}
    for runtime in runtimes:
        for line in Path(f"{runtime}.delays").read_text().splitlines():
            command, delay_ns = line.split()
            waits = found[command]
            (waits.long if runtime.name == runtime_of(command) else waits.short).append(int(delay_ns))
    return found


def waits_of_plugin(told: Path) -> dict[str, Waits]:
    """Call → what the plugin said."""
    found = {call: Waits([], []) for call in ("mount", "authorization")}
    for wait in map(json.loads, told.read_text().splitlines()):
        waits = found[wait["what"]]
        (waits.long if wait["long"] else waits.short).append(wait["delay_ns"])
    return found


def runs_of_plan(engine: Engine, folder: Path, requests: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a recording of these containers has, made one after the other."""
    folder.mkdir()
    path, plan = folder / "arms.observe", folder / "plan.json"
    plan.write_text(json.dumps(requests))
    record(engine, path, [sys.executable, str(WORKLOADS / "plan_client.py"), str(engine.socket), str(plan)])
    runs: list[dict[str, Any]] = report(path)["runs"]
    return runs


def chance_ns(runs: list[dict[str, Any]]) -> float:
    """How far chance alone may have moved the phase of any arm."""
    found = samples(runs)
    return max(
        uncertainty_ns(found[arm][phase], pooled(found, others(arm))[phase])
        for arm, phases in ARMS.items()
        for phase in phases
    )


def others(arm: str) -> list[str]:
    """The arms that wait elsewhere, or nowhere: all of them are without a delay where this one has it."""
    return [other for other in (*PLAIN, *ARMS) if other != arm]


def body_of(arm: str) -> dict[str, Any]:
    """Body of a create request. Everything that some arm needs is in all of them; only the delays differ."""
    volume = {"Type": "volume", "Source": "slow" if arm == "mount" else "fast", "Target": "/tmp"}
    mount = {**volume, "VolumeOptions": {"DriverConfig": {"Name": PLUGIN}}}
    return {
        "Image": "observe-tiny",
        "Cmd": ["true"],
        # Without the network's hook a start is three times shorter, and so is its noise.
        "HostConfig": {"NetworkMode": "host", "Runtime": runtime_of(arm), "Mounts": [mount]},
    }


@pytest.mark.parametrize("arm", ARMS)
def test_a_known_delay_moves_its_phase_and_no_other(
    arms: tuple[list[dict[str, Any]], dict[str, Waits]], arm: str
) -> None:
    runs, waits = arms
    assert {run["outcome"] for run in runs} == {"ok"}
    delay_ns = waits[arm].delay_ns
    assert delay_ns == pytest.approx(DELAY_NS, rel=0.1)
    found = samples(runs)
    own, moved, noise = moved_ns(found, arm, others(arm)), moved_ns(found, arm, PLAIN), noise_ns(found, PLAIN)
    for phase, difference_ns in moved.items():
        if phase in ARMS[arm]:
            assert abs(own[phase] - delay_ns) <= TOLERANCE_NS, (phase, own, delay_ns)
        else:
            assert abs(difference_ns) <= max(TOLERANCE_NS, 1.5 * noise[phase]), (phase, moved, noise)
    assert max(moved, key=lambda phase: moved[phase]) in ARMS[arm]


@contextmanager
def load_of(engine: Engine, clients: int) -> Iterator[subprocess.Popen[str]]:
    """Clients that create and start until the end of the block; then none of their requests may have failed."""
    command = [sys.executable, str(WORKLOADS / "load.py"), str(engine.socket), engine.image, str(clients)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
            out, _ = process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
    told = json.loads(out)
    assert told["failures"] == []
    assert told["runs"] >= clients
    assert process.returncode == 0


def test_attaching_and_detaching_fifty_times_fails_no_request(engine: Engine) -> None:
    pid, before = engine.pid, snapshot()
    attached = 0
    with load_of(engine, clients=4):
        for _ in range(50):
            with Session(find_engine(engine.url), SessionOptions(cache=cache_folder())) as session:
                items = session.start()
                attached += any(is_probed(item) for item in items)
                session.stop()
    assert attached == 50
    assert engine.pid == pid
    os.kill(pid, 0)
    assert left_since(before, DEADLINE_SECONDS) == []


def is_probed(item: Item) -> bool:
    """Whether it tells of a function that is timed."""
    return isinstance(item, Note) and item.kind is NoteKind.FUNCTION and "number" in item.data


def test_a_soak_finds_nothing_lost_and_nothing_failed(engine: Engine) -> None:
    script = Path(__file__).parents[2] / "bench" / "soak.py"
    command = [sys.executable, str(script), "--runs", "80", "--concurrency", "8", "--docker-host", engine.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS * 3)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:])
    assert (cells["runs"], cells["operations attributed"]) == ("80", "160")


def test_sigkill_in_the_middle_of_many_runs_hurts_none_and_leaves_no_probe(engine: Engine, tmp_path: Path) -> None:
    path, before = tmp_path / "killed.observe", snapshot()
    with recorder(engine, path) as process:
        client = subprocess.Popen(api_client(engine, tmp_path / "times", "--clients", "50", "--runs", "1"))
        eventually(lambda: answers(path) >= 50)
        assert client.poll() is None
        assert (snapshot() - before).bpf
        process.kill()
        process.wait(DEADLINE_SECONDS)
    assert [line for line in left_since(before, 2) if line.startswith("BPF")] == []
    assert client.wait(DEADLINE_SECONDS) == 0
    assert len(client_times(tmp_path / "times")) == 100


def answers(path: Path) -> int:
    """How many requests were answered, by a recording that is being written."""
    return sum(event.kind == Kind.API_RESPONSE for event in Recording.open(path).events())


class Recorder:
    """A session in this process: what it sees of a command becomes runs."""

    def __init__(self, engine: Engine, cache: Path | None = None) -> None:
        self.session = Session(find_engine(engine.url), SessionOptions(cache=cache))
        self.items: list[Item] = []

    def record(self, command: list[str]) -> None:
        """Attach, run the command, detach."""
        with self.session:
            self.items += self.session.start()
            with subprocess.Popen(command) as process:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    self.items += self.session.poll()
            assert process.returncode == 0
            self.items += self.session.stop()

    def runs(self) -> list[Run]:
        """The runs."""
        correlator = Correlator(self.session.header(), load())
        return [run for item in self.items for run in correlator.feed(item)] + correlator.finish()

    def probed(self) -> set[str]:
        """Names of the functions that were timed."""
        return {item.data["name"] for item in self.items if isinstance(item, Note) and is_probed(item)}


def test_without_links_for_many_sites_the_outermost_phases_have_functions(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel before 6.6 gets: few perf events, which take long to detach, and nobody waits for that."""
    before = snapshot()
    made: list[FunctionProbes] = []

    class FewProbes(FunctionProbes):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, multi=False)
            made.append(self)

        def close(self) -> None:
            reapers = list(self._reapers)
            super().close()
            # It still had them to detach when we went on.
            alive.extend(reaper for reaper in reapers if reaper.poll() is None)

    alive: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(sessions, "FunctionProbes", FewProbes)
    recorder = Recorder(engine, cache_folder())
    recorder.record(api_client(engine, tmp_path / "times", "--runs", "3"))
    assert len(made) == 1
    assert alive

    probed, runs = recorder.probed(), recorder.runs()
    assert {DAEMON + "containerCreate", DAEMON + "containerStart"} & probed
    assert [run.operation for run in runs] == ["create", "start"] * 3
    for run in runs:
        evidence = {span.id: span.evidence.value for span in run.phases}
        always = {phase.id for phase in load().of(run.operation) if phase.evidence and phase.occurs == "always"}
        assert evidence[run.operation] == "function"
        assert {phase for phase in always if evidence[phase] == "none"} == set()
        assert "kernel" in evidence.values()
        assert run.outcome == "ok"
    for reaper in alive:
        reaper.wait(DEADLINE_SECONDS)
    assert left_since(before, DEADLINE_SECONDS) == []


def test_a_dockerd_that_was_replaced_on_disk_is_timed(
    new_engine: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = put_on_path(tmp_path, monkeypatch) / "dockerd"
    shutil.copy(installed("dockerd"), program)
    engine = new_engine()
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho an update\n")
    other.chmod(0o755)
    other.replace(program)
    assert str(Path(f"/proc/{engine.pid}/exe").readlink()) == f"{program} (deleted)"
    path = tmp_path / "replaced.observe"
    record(engine, path, api_client(engine, tmp_path / "times"))
    for operation in OPERATIONS:
        (run,) = runs_of(report(path), operation)
        timed = {phase["id"] for phase in run["phases"] if phase["evidence"] == "function"}
        assert timed == timed_by_functions(operation)
