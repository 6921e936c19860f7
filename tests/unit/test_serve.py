# SPDX-License-Identifier: Apache-2.0
"""What `observe serve` says, with a follower that is made up."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from streams import header

from observe.__main__ import main
from observe.collectors.session import SessionOptions
from observe.commands.serve import _UNWATCHED_BATCH_SECONDS, _Recorder, _Stop
from observe.errors import HostCannotError
from observe.exporter.live import Live
from observe.model import Note, NoteKind
from observe.phases import load


class Follower:
    """Each session ends at the first poll; `then` is called at that moment."""

    def __init__(self, then, *warnings):
        self.session = None
        self.obstacle = "the engine has ended: waiting for it to come back"
        self.is_outdated = False
        self.attached = {}
        self._then = then
        self._warnings = warnings

    def attach(self):
        self.session = self
        return header(), [Note(NoteKind.WARNING, 0, {"text": text}) for text in self._warnings]

    def poll(self):
        self._then()
        return []

    @property
    def has_ended(self):
        return self.session is not None

    def detach(self):
        self.session = None
        return []

    def usage(self):
        return {}

    def wait(self, *_descriptors, **_batch):
        pass


def said(capsys, follower, stop):
    _Recorder(follower, Live(load(), ()), stop).run()
    return capsys.readouterr().err.splitlines()


def test_when_it_is_told_to_stop_an_engine_that_ends_too_is_not_waited_for(capsys):
    stop = _Stop(-1)
    follower = Follower(lambda: setattr(stop, "requested", True))
    assert said(capsys, follower, stop) == ["observe: attached to dockerd 20.10.24", "observe: stopping"]


def test_what_is_not_as_it_should_be_is_said_once_and_not_for_each_session(capsys):
    stop, sessions = _Stop(-1), iter(range(3))

    def then():
        stop.requested = next(sessions) == 2

    lines = said(capsys, Follower(then, "one", "two"), stop)
    assert [line for line in lines if line in ("observe: one", "observe: two")] == ["observe: one", "observe: two"]
    assert lines.count("observe: attached to dockerd 20.10.24") == 3
    assert lines.count("observe: the engine has ended: waiting for it to come back") == 2
    assert lines[-1] == "observe: stopping"


def test_it_goes_on_when_nobody_takes_what_it_says(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    stop, sessions = _Stop(-1), iter(range(3))

    def then():
        stop.requested = next(sessions) == 2

    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        _Recorder(Follower(then, "one"), Live(load(), ()), stop).run()
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), writing)  # closing would write the rest
    assert next(sessions, None) is None


@pytest.mark.parametrize(
    ("endpoint", "headers", "named"),
    [
        ("http://", "", "http:// is no endpoint"),
        ("https:///v1/traces", "", "is no endpoint"),
        ("http://:4318", "", "is no endpoint"),
        ("http://h:port", "", "is no endpoint"),
        ("http://[", "", "is no endpoint"),
        ("collector:4318", "", "is no endpoint"),
        ("http://127.0.0.1:4318", "Authorization", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_where_traces_cannot_go_is_wrong_usage_on_any_host(endpoint, headers, named, monkeypatch, capsys):
    def refuse(_checks):
        raise HostCannotError("this host cannot")

    monkeypatch.setattr("observe.commands.serve.host.require", refuse)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    assert main(["serve", "--otlp-endpoint", endpoint]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--docker-host", "garbage"], 3, "garbage is no address"),
        (["--docker-host", "unix://docker.sock"], 3, "no absolute path"),
        (["--ring-bytes", "12345"], 2, "is no size of a ring"),
        (["--ring-bytes", "-1"], 2, "is no size of a ring"),
    ],
)
def test_what_no_waiting_mends_is_said_at_once(options, code, named, monkeypatch, capsys):
    monkeypatch.setattr("observe.commands.serve.host.require", lambda _checks: pytest.fail("waits for an engine"))
    assert main(["serve", "--listen", "127.0.0.1:0", *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


class Staying(Follower):
    """Its session does not end; remembers how long each wait leaves events together (None: as usual)."""

    has_ended = False
    waits: list[float | None]

    def wait(self, *_descriptors, batch_seconds=None):
        self.waits.append(batch_seconds)


def test_batches_are_larger_while_nobody_looks_at_the_page():
    stop, live, turns = _Stop(-1), Live(load(), ()), iter(range(4))

    def then():
        turn = next(turns)
        if turn == 1:
            live.watch()
        stop.requested = turn == 3

    follower = Staying(then)
    follower.waits = []
    _Recorder(follower, live, stop).run()
    assert follower.waits == [_UNWATCHED_BATCH_SECONDS, None, None, None]
    assert SessionOptions().batch_seconds < _UNWATCHED_BATCH_SECONDS
