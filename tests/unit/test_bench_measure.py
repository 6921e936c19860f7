# SPDX-License-Identifier: Apache-2.0
"""A bench without an engine: what is attached when, what becomes of results and signals, and whose item is whose."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from observe.__main__ import main
from observe.bench import measure
from observe.bench.load import STEPS
from observe.bench.measure import Measurement
from observe.bench.plan import Arm, Attach, Turn, arm_of_container, arms_of, container_name, turns_of
from observe.bench.recordings import ArmRecordings, path_of
from observe.collectors.waiting import readable
from observe.commands import bench
from observe.errors import EngineGoneError, ObserveError
from observe.model import Event, EventBatch, Header, Kind, Note, NoteKind
from observe.recording import Recording

TOKEN = "abc"  # noqa: S105 - of a bench
HEADER = Header({}, {}, 0, 0, "test", {"origin": "record"})


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(measure, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(measure, "POLL_SECONDS", 0.0)


class FakeGenerator:
    """Answers what it is told to; its log has the name of each container."""

    def __init__(self, answer=lambda _order: None, log=None):
        self.answer, self.given, self.waiting, self.closed = answer, [], [], 0
        self.ready = os.eventfd(1)
        self.log = [] if log is None else log

    def fileno(self):
        return self.ready

    def begin(self, orders):
        self.log += [order["name"] for order in orders]
        self.given += orders
        self.waiting += orders

    def take(self):
        results = []
        durations_ns = dict.fromkeys((*STEPS, "total"), 1)
        for order in self.waiting:
            failed = self.answer(order)
            if isinstance(failed, Exception):
                raise failed
            results.append(
                {"turn": order["turn"], "name": order["name"], "failed": failed, "durations_ns": durations_ns}
            )
        self.waiting = []
        return results

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed += 1
        os.close(self.ready)


class FakeSession:
    """Says in its log when it is attached and detached; each poll brings one event: the log's last line."""

    def __init__(self, log):
        self.log, self.lost = log, 0

    def start(self):
        self.log.append("attach")
        return [Note(NoteKind.PROCESS, 1, {"pid": 1, "role": "dockerd", "argv": []})]

    def wait(self, _timeout_seconds, *descriptors):
        assert readable(descriptors, 0)

    def poll(self):
        return [a_batch(Event(1, Kind.MKDIR, path=self.log[-1]))]

    def stop(self):
        self.log.append("detach")
        return []

    def losses(self):
        self.lost += 1
        return {"ring_buffer": self.lost}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def a_batch(*events):
    return EventBatch.of(events)


def measured(folder, arms, generator=None, log=None, *, runs=6):
    """A measurement that is done, its generator's orders, and when it was attached."""
    generator, log = generator or FakeGenerator(), [] if log is None else log
    observed = [arm for arm in arms if arm.attached]
    with ArmRecordings(folder, HEADER, observed, TOKEN) as recordings:
        found = Measurement(
            turns_of(arms, runs, concurrency=2, warmup=1, seed=1),
            TOKEN,
            ["true"],
            generator,
            recordings if observed else None,
            lambda: FakeSession(log),
            lambda _runs, _share: None,
        )
        try:
            found.measure()
        finally:
            assert generator.closed == 1
            assert log.count("attach") == log.count("detach")
    return found, generator.given, log


def arms(*networks, attach=Attach.YES):
    return arms_of(["app"], networks, [None], [()], attach)


def test_one_session_serves_all_arms(tmp_path):
    found, given, log = measured(tmp_path, arms("none", "host", "bridge"))
    assert log == ["attach", "detach"]
    assert Counter(run.arm for run in found.runs) == {"none": 6, "host": 6, "bridge": 6}
    assert len(given) == 3 * (6 + 2)
    assert found.ended_early is None


def test_it_is_attached_for_the_arms_that_are_observed_only(tmp_path):
    log = []
    generator = FakeGenerator(log=log)
    measured(tmp_path, arms("none", attach=Attach.BOTH), generator, log, runs=30)
    attached = False
    for line in log:
        if line in ("attach", "detach"):
            attached = line == "attach"
        else:
            assert attached == ("unattached" not in line)
    # Warm-up, and three blocks of five turns of two runs; a block may follow its like.
    assert 2 <= log.count("attach") <= 4
    assert measured(tmp_path, arms("none", attach=Attach.NO))[2] == []


def test_each_recording_has_the_events_of_its_arms_turns_and_no_warm_ups(tmp_path):
    log = []
    pair = arms("none", "host")
    measured(tmp_path, pair, FakeGenerator(log=log), log)
    for arm in pair:
        told = {event.path for event in Recording.open(path_of(tmp_path, arm)).events()}
        assert {arm_of_container(TOKEN, path) for path in told} == {arm.name}
        # Of each turn the last container that was ordered.
        assert len(told) == 3


def test_failed_runs_are_kept(tmp_path):
    def every_third(order):
        return "start: no" if order["turn"] % 3 == 0 and "warmup" not in order["name"] else None

    found, _, _ = measured(tmp_path, arms("none", "host"), FakeGenerator(every_third))
    assert len(found.runs) == 12
    assert {run.failed for run in found.runs} == {None, "start: no"}


def test_a_warm_up_that_fails_ends_it_with_its_reason(tmp_path):
    with pytest.raises(ObserveError, match="warm-up of host: start: no such network"):
        measured(
            tmp_path, arms("none", "host"), FakeGenerator(lambda o: "host" in o["name"] and "start: no such network")
        )


def test_an_engine_that_goes_leaves_what_was_measured(tmp_path):
    def gone_later(order):
        return EngineGoneError("no engine there") if order["turn"] == 4 else None

    found, _, log = measured(tmp_path, arms("none"), FakeGenerator(gone_later), runs=20)
    assert len(found.runs) == 6  # turns 1 to 3; turn 0 is the warm-up
    assert found.ended_early == "no engine there"
    assert log == ["attach", "detach"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(tmp_path, number):
    before = signal.getsignal(number)

    def signal_in_turn_3(order):
        if order["turn"] == 3:
            os.kill(os.getpid(), number)

    found, given, _ = measured(tmp_path, arms("none"), FakeGenerator(signal_in_turn_3), runs=20)
    assert found.stopped_by is number
    assert len(found.runs) == 6
    assert {order["turn"] for order in given} == {0, 1, 2, 3}
    assert signal.getsignal(number) is before


# Whose item is whose ---------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path):
    """Recordings of the arms a and b, and a function that closes them and gives an arm's items."""
    pair = [Arm(name, "app", "none") for name in ("a", "b")]
    with ArmRecordings(tmp_path, HEADER, pair, TOKEN) as open_recordings:

        def items(name):
            open_recordings.__exit__(None, None, None)
            recording = Recording.open(path_of(tmp_path, Arm(name, "app", "none")))
            assert recording.header.options["bench"]["arm"] == name
            return [*recording.items()]

        yield open_recordings, items


def paths(items):
    return [event.path for item in items if isinstance(item, EventBatch) for event in item]


def data_of(items, kind):
    return [item.data for item in items if isinstance(item, Note) and item.kind is kind]


def test_events_belong_to_the_arm_whose_turn_it_is(recordings):
    split, items = recordings
    for number, arm in enumerate(["a", None, "b", "nobody", "a"]):
        split.take([a_batch(Event(number, Kind.MKDIR, path=f"/{number}"))], arm)
    assert paths(items("a")) == ["/0", "/4"]
    assert paths(items("b")) == ["/2"]


def test_what_must_be_known_before_is_in_all_of_them(recordings):
    split, items = recordings
    split.attached([Note(NoteKind.PROCESS, 1, {"pid": 7}), Note(NoteKind.FUNCTION, 1, {"number": 1, "name": "f"})])
    for name in ("a", "b"):
        assert data_of(items(name), NoteKind.PROCESS) == [{"pid": 7}]
        assert data_of(items(name), NoteKind.FUNCTION) == [{"number": 1, "name": "f"}]


def test_an_identity_goes_where_its_container_belongs(recordings):
    split, items = recordings
    named = container_name(TOKEN, Turn(3, Arm("b", "app", "none"), 1, warmup=False), 0)
    split.take([Note(NoteKind.CONTAINER, 1, {"id": "1", "name": name}) for name in (named, "foreign")], "a")
    split.take([Note(NoteKind.CONTAINER, 1, {"id": "2", "name": "late"})], None)
    assert [data["name"] for data in data_of(items("b"), NoteKind.CONTAINER)] == [named]
    assert [data["name"] for data in data_of(items("a"), NoteKind.CONTAINER)] == ["foreign"]


def test_losses_belong_to_the_turn_in_which_they_grew(recordings):
    split, items = recordings
    split.attached([])
    split.count({"ring_buffer": 2, "lineage": 0}, None)  # a warm-up's
    split.count({"ring_buffer": 5, "lineage": 0}, "a")
    split.take([Note(NoteKind.LOSS, 1, {"ring_buffer": 6, "lineage": 1})], "b")
    split.count({"ring_buffer": 6, "lineage": 1}, "b")
    split.attached([])  # a new session counts from 0
    split.count({"ring_buffer": 4, "lineage": 0}, "a")
    assert data_of(items("a"), NoteKind.LOSS)[-1] == {"ring_buffer": 7, "lineage": 0}
    assert data_of(items("b"), NoteKind.LOSS) == [{"ring_buffer": 1, "lineage": 1}]


def test_operations_of_others_begin_nothing(recordings):
    split, items = recordings
    own = container_name(TOKEN, Turn(3, Arm("a", "app", "none"), 1, warmup=False), 0)
    targets = [f"/containers/create?name={own}", "/containers/create?name=web", f"/containers/{own}/start"]
    warmup = container_name(TOKEN, Turn(0, Arm("a", "app", "none"), 1, warmup=True), 0)
    targets += [f"/containers/{warmup}/start", "/v1.41/containers/web/start"]
    requests = [Event(number, Kind.API_REQUEST, path=target) for number, target in enumerate(targets)]
    split.take([a_batch(*requests, Event(9, Kind.MKDIR, path="/web"), Event(9, Kind.API_RESPONSE))], "a")
    assert paths(items("a")) == [targets[0], targets[2], "/web", ""]


def test_the_end_says_why_and_the_files_are_whole(recordings, tmp_path):
    split, items = recordings
    split.end("stopped by SIGINT")
    for name in ("a", "b"):
        assert data_of(items(name), NoteKind.END) == [{"why": "stopped by SIGINT"}]
        assert Recording.open(tmp_path / f"{name}.observe").check().damaged_bytes == 0


def test_a_place_that_cannot_be_written_leaves_nothing_open(tmp_path):
    (tmp_path / "b.observe").mkdir()
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(ObserveError, match=r"b\.observe"):
        ArmRecordings(tmp_path, HEADER, [Arm("a", "app", "none"), Arm("b", "app", "none")], TOKEN)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert [path.name for path in tmp_path.iterdir()] == ["b.observe"]


# What is left in the folder --------------------------------------------------------------------------------


@pytest.fixture
def bench_of(monkeypatch):
    """Runs `observe bench` of two arms in a folder, with a generator that answers like this; its exit code."""

    class Session(FakeSession):
        engine = SimpleNamespace(facts=dict)

        def header(self):
            return HEADER

    def run(folder, answer):
        monkeypatch.setattr(bench, "LoadGenerator", lambda *_: FakeGenerator(answer))
        monkeypatch.setattr(bench, "_session", lambda *_: lambda: Session([""]))
        monkeypatch.setattr(bench, "_ask", lambda *_: {})
        return main(["bench", "-o", str(folder), "--runs", "3", "--network", "none", "host"])

    return run


def interrupt(_order):
    os.kill(os.getpid(), signal.SIGINT)


def hang_up(_order):
    return EngineGoneError("the engine has ended")


@pytest.mark.parametrize(
    ("answer", "code"),
    [(lambda order: "host" in order["name"] and "start: no such network", 1), (interrupt, 130), (hang_up, 1)],
)
def test_of_a_bench_that_has_measured_nothing_nothing_is_left(tmp_path, bench_of, answer, code, capsys):
    for folder in (tmp_path / "new" / "folder", tmp_path):
        assert bench_of(folder, answer) == code
        assert [*tmp_path.iterdir()] == []
        assert capsys.readouterr().out == ""


def test_what_was_measured_before_a_signal_is_kept(tmp_path, bench_of):
    assert bench_of(tmp_path / "new", lambda order: interrupt(order) if order["turn"] == 4 else None) == 130
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["bench.json", "host.observe", "none.observe"]


@pytest.mark.parametrize("name", ["none.observe", "other.observe", "bench.json"])
def test_the_folder_of_another_bench_is_refused_before_anything_is_looked_at(tmp_path, name, capsys):
    (tmp_path / name).write_bytes(b"measured")
    assert main(["bench", "-o", str(tmp_path), "--docker-host", f"unix://{tmp_path}/none"]) == 2
    assert capsys.readouterr().err == (f"observe: {tmp_path}: there is a bench in it; name another folder with -o\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"measured"}


def test_a_folder_with_something_else_in_it_will_do(tmp_path, bench_of):
    (tmp_path / "notes.txt").touch()
    assert bench_of(tmp_path, lambda _order: None) == 0
    assert len([*tmp_path.iterdir()]) == 4
