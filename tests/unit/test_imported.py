# SPDX-License-Identifier: Apache-2.0
"""The walk-through's logs: every line in a documented phase, in the documented order."""

from __future__ import annotations

from argparse import Namespace

import pytest
from streams import DATA, FIXTURES, SECOND, correlate, header, layer

from observe.collectors.inotifywait_log import ParsedLog, read_log
from observe.commands.import_ import run as import_log
from observe.correlate import Correlator
from observe.correlate.rows import rows_of
from observe.correlate.rules import Rules
from observe.model import Event, EventBatch, Header, Kind, Mark, Run
from observe.phases import load
from observe.recording import Recording

CONTAINER = "15b8d0b7c46c37cf62a2c388aba016226e4ec327a5729991f6a1ae9e81b89e52"
STARTED = "8f7318baf651f7a9539e1d41486151946b36af202f0b0ef4257954911fb77edc"
#: 3 March 2022, 11:44 and 17:06 UTC.
CREATED_NS, STARTED_NS = 1646307840 * SECOND, 1646327160 * SECOND


def log(name: str) -> ParsedLog:
    return read_log((FIXTURES / f"inotify-{name}-19.03.log").read_text())


def runs_of(parsed: ParsedLog) -> tuple[list[Run], Correlator]:
    return correlate([parsed.events], header_of(parsed))


def header_of(parsed: ParsedLog) -> Header:
    return Header({}, {"data_root": parsed.data_root}, 0, parsed.wall_time_ns, "0", {"origin": "import"})


def phases(run: Run) -> dict[str, int]:
    return {span.id: span.file_events for span in run.phases if span.file_events}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("create", {"create.rw_layer": 36, "create.root": 8, "create.os_specific": 7, "create.register": 5}),
        ("start", {"start.mount": 5, "start.network": 15}),
        ("pull", {"pull.download": 6}),
    ],
)
def test_every_line_falls_into_a_documented_phase_in_the_documented_order(name, counts):
    parsed = log(name)
    (run,), correlator = runs_of(parsed)
    assert (run.operation, run.outcome) == (name, "ok")
    assert phases(run) == counts
    assert sum(counts.values()) == len(parsed.events)
    assert run.departures == ()
    assert correlator.loss.unattributed_events == 0
    begins = [span.start_ns for span in run.phases if span.start_ns is not None]
    assert begins == sorted(begins)


def test_the_cut_off_line_is_told_by_number_and_is_all_that_is_left_out():
    parsed = log("start")
    assert [problem.line for problem in parsed.problems] == [21]
    assert len(parsed.events) == 20
    assert [len(log(name).problems) for name in ("create", "pull")] == [0, 0]


@pytest.mark.parametrize(
    ("name", "line", "phase"),
    [
        ("create", 1, "create.rw_layer"),  # -init
        ("create", 3, "create.rw_layer"),  # the parent layer is committed
        ("create", 16, "create.rw_layer"),  # .dockerenv in -init
        ("create", 31, "create.rw_layer"),  # the line without a space before its event
        ("create", 36, "create.rw_layer"),  # layerdb/mounts
        ("create", 37, "create.root"),  # containers/<id>
        ("create", 41, "create.root"),
        ("create", 45, "create.os_specific"),  # merged is made
        ("create", 51, "create.os_specific"),  # and removed
        ("create", 52, "create.register"),
        ("create", 56, "create.register"),
        ("start", 1, "start.mount"),
        ("start", 5, "start.mount"),
        ("start", 6, "start.network"),  # local-kv.db
        ("start", 20, "start.network"),  # resolv.conf
        ("pull", 6, "pull.download"),
    ],
)
def test_a_line_falls_into_the_phase_that_the_walk_through_says(name, line, phase):
    (run,), _ = runs_of(log(name))
    row = list(rows_of(log(name).events))[line - 1]
    span = next(span for span in run.phases if span.id == phase)
    assert span.start_ns <= row.time_ns <= span.start_ns + span.duration_ns


def test_a_run_of_a_log_tells_its_container_and_when_it_was_recorded():
    (created,), _ = runs_of(log("create"))
    (started,), _ = runs_of(log("start"))
    assert (created.container_id, created.wall_time_ns) == (CONTAINER, CREATED_NS)
    assert (started.container_id, started.wall_time_ns) == (STARTED, STARTED_NS)
    assert created.duration_ns == created.unattributed_ns == 0  # an order is no time


def test_the_command_keeps_the_logs_time_in_the_recording(tmp_path):
    path = tmp_path / "create.observe"
    import_log(Namespace(source="inotifywait", log=FIXTURES / "inotify-create-19.03.log", output=path))
    recording = Recording.open(path)
    (run,), correlator = correlate(recording.items(), recording.header)
    assert (run.wall_time_ns, correlator.loss.unattributed_events) == (CREATED_NS, 0)


def test_a_log_without_times_has_no_wall_time():
    parsed = read_log(f"{DATA}/tmp/ CREATE GetImageBlob1\n")
    (run,), _ = runs_of(parsed)
    assert (run.operation, run.wall_time_ns) == ("pull", 0)


def test_a_create_and_then_a_start_in_one_log_are_two_runs_in_order():
    text = (FIXTURES / "inotify-start-19.03.log").read_text()
    whole_lines = "\n".join(text.split("\n")[:20]) + "\n"
    create, pull = ((FIXTURES / f"inotify-{name}-19.03.log").read_text() for name in ("create", "pull"))
    runs, correlator = runs_of(read_log(pull + create + whole_lines + create))
    assert [run.operation for run in runs] == ["pull", "create", "start", "create"]
    assert [sum(phases(run).values()) for run in runs] == [6, 56, 20, 56]
    assert [run.container_id for run in runs] == [None, CONTAINER, STARTED, CONTAINER]
    assert correlator.loss.unattributed_events == 0
    assert [run.start_ns for run in runs] == sorted(run.start_ns for run in runs)


def test_lines_of_nothing_documented_are_counted_not_guessed():
    lines = [f"{DATA}/swarm/ CREATE x{n}" for n in range(5)]
    create = (FIXTURES / "inotify-create-19.03.log").read_text().splitlines()
    runs, correlator = runs_of(read_log("\n".join([*lines[:3], *create, *lines[3:]])))
    assert [run.operation for run in runs] == ["create"]
    assert correlator.loss.unattributed_events == 5


def test_a_log_in_two_batches_is_the_same_log():
    events = log("create").events
    halves = [EventBatch(events.rows[:30], events.strings), EventBatch(events.rows[30:], events.strings)]
    of = header_of(log("create"))
    assert correlate(halves, of)[0] == correlate([events], of)[0]


def test_a_log_says_what_it_has_only_at_its_end_and_once():
    correlator = Correlator(header_of(log("pull")), load())
    assert correlator.feed(log("pull").events) == []
    assert len(correlator.finish()) == 1
    assert correlator.finish() == []


def test_an_empty_log_has_no_run():
    assert correlate([], header_of(log("pull")))[0] == []


def test_a_long_log_of_nothing_is_looked_at_line_by_line(monkeypatch):
    """Not again and again from every line to the end."""
    lines = 300
    rows = [Event(n, Kind.INOTIFY, path=f"{DATA}/swarm/{n}", marks=Mark.IMPORTED) for n in range(lines)]
    looked = []
    candidates = Rules.candidates

    def counted(self, row, role, on_request_goroutine):
        looked.append(row)
        return candidates(self, row, role, on_request_goroutine)

    monkeypatch.setattr(Rules, "candidates", counted)
    _, correlator = correlate([EventBatch.of(rows)], header_of(log("pull")))
    assert correlator.loss.unattributed_events == lines
    assert len(looked) == lines * len(load().operations)


def test_a_recording_of_ours_is_no_log():
    event = Event(1, Kind.INOTIFY, path=f"{DATA}/overlay2/{layer(1)}")
    assert correlate([EventBatch.of([event])], header())[0] == []


def test_runs_of_a_log_bring_their_events_along_if_they_are_wanted():
    parsed = log("create")
    for keep, count in ((True, len(parsed.events)), (False, 0)):
        correlator = Correlator(header_of(parsed), load(), keep_events=keep)
        correlator.feed(parsed.events)
        (run,) = correlator.finish()
        assert len(run.events) == count
        assert [phase for phase, _ in run.events] == sorted(
            (phase for phase, _ in run.events), key=[span.id for span in run.phases].index
        )
