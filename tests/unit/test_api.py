# SPDX-License-Identifier: Apache-2.0
"""`observe.open`: tables for notebooks, with the columns and types that their descriptions name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import observe
from observe import api
from observe.errors import RecordingError
from observe.model import Header, Loss
from observe.phases import load
from observe.recording import Recording, RecordingWriter
from observe.reports.assemble import assemble

THREE = Path(__file__).parents[1] / "fixtures" / "three-at-once.observe"
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


def test_each_table_is_made_once_and_only_when_it_is_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(api, "assemble", lambda *args, **more: calls.append(args) or assemble(*args, **more))
    recording = observe.open(str(THREE))
    assert len(recording.events)
    assert calls == []
    for table in TABLES:
        assert getattr(recording, table) is getattr(recording, table)
    assert recording.loss != Loss()
    assert len(calls) == 1


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
