# SPDX-License-Identifier: Apache-2.0
"""`observe.open`: tables for notebooks, with the columns and types that their descriptions name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from situations import SITUATIONS, situation

import observe
from observe import api
from observe.errors import RecordingError
from observe.export import events
from observe.model import SYSCALLS, Header, Loss, Note, NoteKind
from observe.phases import load
from observe.recording import Recording, RecordingWriter
from observe.reports.assemble import assemble

THREE = Path(__file__).parents[1] / "fixtures" / "three-at-once.observe"
FUNCTIONS = THREE.with_name("functions.observe")
TABLES = ("runs", "phases", "events")


@pytest.fixture(scope="module")
def three():
    return observe.open(THREE)


@pytest.fixture
def empty(tmp_path):
    path = tmp_path / "empty.observe"
    with RecordingWriter(path, Header({}, {}, 0, 0, "0")):
        pass
    return path


def documented(table):
    """Column → type, as the table in its description says."""
    found = {}
    for line in (getattr(api.OpenRecording, table).__doc__ or "").splitlines():
        match = re.fullmatch(r"\s*\| ([\w, ]+) \| (\w+) \| .* \|", line)
        if match and match[1] != "column":
            found |= dict.fromkeys(match[1].split(", "), match[2])
    return found


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_and_types_are_those_of_the_description(three, table, empty):
    described = documented(table)
    assert len(described) >= 12
    for recording in (three, observe.open(empty)):
        frame = getattr(recording, table)
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == described
    assert len(frame) == 0


def test_there_is_a_row_a_run_a_phase_and_an_event(three):
    report, _ = assemble(THREE, load())
    assert list(three.runs.operation) == [run.operation for run in report.runs]
    assert sorted(three.runs.container_name) == ["one", "one", "three", "three", "two", "two"]
    assert len(three.phases) == sum(len(run.phases) for run in report.runs)
    assert len(three.events) == len(Recording.open(THREE).events())
    assert three.loss == report.loss
    assert three.loss.unattributed_events == 76
    assert (three.host, three.engine, three.warnings) == (report.host, report.engine, report.warnings)


def test_own_times_sum_to_the_run_and_runs_are_joined_by_their_index(three):
    own_ns = three.phases.groupby("run").self_ns.sum()
    assert list(own_ns) == list(three.runs.duration_ns)
    joined = three.phases.merge(three.runs, left_on="run", right_index=True, suffixes=("", "_of_run"))
    assert (joined.operation == joined.operation_of_run).all()
    assert (joined.start_ns.dropna() >= joined.start_ns_of_run[joined.start_ns.notna()]).all()


def test_what_was_not_seen_is_null(three):
    unseen = three.phases[three.phases.evidence == "none"]
    assert len(unseen)
    assert unseen[["start_ns", "duration_ns", "self_ns"]].isna().all(axis=None)
    assert three.phases[three.phases.evidence != "none"].duration_ns.notna().all()


def test_times_become_dates(three):
    assert set(pd.to_datetime(three.runs.wall_time_ns, utc=True).dt.date.astype(str)) == {"2026-11-24"}


@pytest.mark.parametrize("name", SITUATIONS)
def test_events_say_whose_they_are_as_the_export_does(name, tmp_path):
    path = situation(name, tmp_path)
    recording = observe.open(path)
    frame = recording.events
    report, _ = assemble(path, load(), keep_events=True)
    told = frame[frame.run.notna()]
    assert Counter(zip(told.run, told.phase, told.kind, told.path, strict=True)) == Counter(
        (number, phase, event.kind.label, event.path)
        for number, run in enumerate(report.runs)
        for phase, event in run.events
    )
    assert (frame.run.isna() == frame.phase.isna()).all()
    table = events.table(Recording.open(path).items(), report.runs)
    assert frame.run.fillna(-1).tolist() == table.run.tolist()
    assert len(frame) == len(table.events)
    # What is in the frame beside them is what was recorded.
    plain = Recording.open(path).to_pandas()
    assert list(frame[[*plain]].itertuples(index=False, name=None)) == list(plain.itertuples(index=False, name=None))


@pytest.mark.parametrize("first", ["events", "phases"])
def test_events_are_joined_to_runs_and_phases(first):
    recording = observe.open(THREE)
    getattr(recording, first)
    joined = recording.events.dropna(subset="run").merge(recording.runs, left_on="run", right_index=True)
    assert len(joined) == recording.events.run.notna().sum() > 1000
    # inotify tells late.
    timed = joined[joined.kind != "inotify"]
    after_ns = timed.time_ns.astype("int64") - timed.start_ns
    assert ((after_ns >= 0) & (after_ns <= timed.duration_ns_y)).all()
    # As many system calls as the phases count.
    calls = recording.events[recording.events.kind.isin([kind.label for kind in SYSCALLS])]
    counted = calls.groupby(["run", "phase"], observed=True).size()
    phases = recording.phases.groupby(["run", "phase"], observed=True).syscalls.sum()
    assert counted.sum() == phases.sum() > 300
    assert phases[phases > 0].to_dict() == counted.to_dict()


def test_events_of_functions_have_names():
    frame = observe.open(FUNCTIONS).events
    of_functions = frame.kind.isin(["function_entry", "function_return"])
    assert of_functions.sum() > 100
    assert (frame.function.notna() == of_functions).all()
    numbers = {
        int(note.data["number"]): note.data["name"]
        for note in Recording.open(FUNCTIONS).items()
        if isinstance(note, Note) and note.kind is NoteKind.FUNCTION
    }
    named = frame[of_functions]
    assert named.function.tolist() == [numbers[flags & 0xFFFF] for flags in named["flags"].tolist()]
    assert (named.ret > 0).all()


def test_each_table_is_made_once_and_only_when_it_is_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(api, "assemble", lambda *args, **more: calls.append(more) or assemble(*args, **more))
    recording = observe.open(str(THREE))
    assert calls == []
    assert len(recording.events)
    # Whoever has correlated it for the events knows the runs.
    for table in TABLES:
        assert getattr(recording, table) is getattr(recording, table)
    assert recording.loss != Loss()
    assert len(calls) == 1
    other = observe.open(THREE)
    assert len(other.runs)
    assert [more.get("keep_events", False) for more in calls] == [True, False]
    pd.testing.assert_frame_equal(other.runs, recording.runs)
    pd.testing.assert_frame_equal(other.phases, recording.phases)
    pd.testing.assert_frame_equal(other.events, recording.events)


def test_the_events_are_not_kept_twice():
    recording = observe.open(THREE)
    assert len(recording.events)
    assert {run.events for run in recording.__dict__["_report"].runs} == {()}


def test_what_is_no_recording_is_said_at_once(tmp_path):
    with pytest.raises(RecordingError, match="none"):
        observe.open(tmp_path / "none")


def test_a_cut_recording_warns(tmp_path):
    path = tmp_path / "cut.observe"
    path.write_bytes(THREE.read_bytes()[:-2000])
    recording = observe.open(path)
    assert recording.loss.damaged_bytes > 0
    assert any("truncated" in warning for warning in recording.warnings)
    assert len(recording.runs)


def test_importing_observe_loads_nothing():
    code = "import sys, observe; print({'numpy', 'pandas', 'observe.model', 'observe.api'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
