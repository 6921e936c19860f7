# SPDX-License-Identifier: Apache-2.0
"""What `observe record` says once it has recorded; the recording itself is tested with engines."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest

from observe import host
from observe.__main__ import main
from observe.commands import record
from observe.model import Event, EventBatch, Header, Kind, Loss
from observe.reports.report import Report


class Recorder:
    """Has recorded an event, whatever it is asked for."""

    events = 1
    engine_ended = False

    def __init__(self, _session, writer):
        self.writer = writer

    def record(self, _command, _duration_seconds):
        self.writer.write(EventBatch.of([Event(5, Kind.MKDIR)]))
        return 0


class Session(nullcontext):
    def __init__(self, _engine, _options):
        super().__init__()

    def header(self, _options):
        return Header(host={}, engine={}, boot_time_ns=0, wall_time_ns=1, tool_version="0", options={})


@pytest.fixture(autouse=True)
def nothing_is_attached(monkeypatch):
    monkeypatch.setattr(host, "checks", list)
    monkeypatch.setattr(record, "find_engine", lambda _: None)
    monkeypatch.setattr(record, "Session", Session)
    monkeypatch.setattr(record, "_Recorder", Recorder)


def concludes(monkeypatch, how):
    """On a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(record, "conclude", how)


CLEARED = "\r\x1b[K"


def test_where_it_is_stands_before_what_was_seen(tmp_path, capsys, monkeypatch):
    path = tmp_path / "r.observe"
    said = []

    def conclude(given):
        assert given == path
        said.append(capsys.readouterr().err)
        return Report(host={}, engine={}, loss=Loss(), runs=())

    concludes(monkeypatch, conclude)
    assert main(["record", "-o", str(path)]) == 0
    assert said == [f"observe: recorded 1 events in {path}\n{CLEARED}looking at 1 events"]
    assert capsys.readouterr().err == f"{CLEARED}no docker create and no docker start was seen\n"


@pytest.mark.parametrize(("fault", "code"), [(KeyboardInterrupt(), 130), (ValueError("x"), 1)])
def test_who_does_not_wait_knows_where_it_is_and_has_a_clear_line(tmp_path, capsys, monkeypatch, fault, code):
    path = tmp_path / "r.observe"

    def conclude(_):
        raise fault

    concludes(monkeypatch, conclude)
    assert main(["record", "-o", str(path)]) == code
    said, _, rest = capsys.readouterr().err.rpartition(CLEARED)
    assert said == f"observe: recorded 1 events in {path}\n{CLEARED}looking at 1 events"
    assert "looking" not in rest
