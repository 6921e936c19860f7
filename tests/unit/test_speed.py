# SPDX-License-Identifier: Apache-2.0
"""Reports of long recordings: ten times the events cost about ten times the time. Ratios only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from repeating import endless
from streams import correlate, rebatch, recorded

from observe.phases import load
from observe.recording import RecordingWriter
from observe.reports import RENDERERS, Page
from observe.reports.assemble import assemble, conclude

#: Eleven is promised of quiet machines and long recordings; these are short.
MOST = 13
TURNS = 4


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of the fastest of some times: what others do meanwhile only adds."""
    times = []
    for _ in range(4):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def written(path: Path, name: str, turns: int) -> Path:
    of, items = recorded(name)
    with RecordingWriter(path, of) as writer:
        for item in endless(items, turns):
            writer.write(item)
    return path


@pytest.mark.parametrize("name", ["functions", "three-at-once"])
def test_a_report_of_ten_times_the_events_costs_about_ten_times_the_time(tmp_path, name):
    few, many = (written(tmp_path / f"{turns}.observe", name, turns) for turns in (TURNS, 10 * TURNS))

    def report(path: Path) -> str:
        return RENDERERS["json"](assemble(path, load())[0], Page())

    assert len(report(many)) > 9 * len(report(few))  # and everything is loaded
    assert cpu_seconds(lambda: report(many)) <= MOST * cpu_seconds(lambda: report(few))


def test_what_was_kept_is_reported_in_a_fraction_of_the_time(tmp_path):
    path = written(tmp_path / "many.observe", "functions", 10 * TURNS)
    again_seconds = cpu_seconds(lambda: assemble(path, load()))
    conclude(path)
    assert cpu_seconds(lambda: assemble(path, load())) < again_seconds / 5


def test_a_live_stream_of_small_batches_costs_no_more_the_longer_it_lasts():
    of, items = recorded("functions")
    few, many = (rebatch(endless(items, turns), iter(lambda: 100, None)) for turns in (TURNS, 10 * TURNS))
    assert len(correlate(many, of)[0]) == 10 * len(correlate(few, of)[0])
    assert cpu_seconds(lambda: correlate(many, of)) <= MOST * cpu_seconds(lambda: correlate(few, of))
