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

#: Of the cost of ten short ones. 1.1 is promised of quiet machines and long recordings; these are short.
MOST = 1.3
TURNS = 4
ROUNDS = 4


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of doing it once."""
    start = time.process_time()
    work()
    return time.process_time() - start


def cost_of_one_long_to_ten_short(long: Callable[[], object], short: Callable[[], object]) -> float:
    """Ratio of the fastest: what others do meanwhile only adds, and to both alike, as they take turns and as long."""
    times = [(cpu_seconds(long), sum(cpu_seconds(short) for _ in range(10))) for _ in range(ROUNDS)]
    long_seconds, short_seconds = map(min, zip(*times, strict=True))
    return float(long_seconds / short_seconds)


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
    assert cost_of_one_long_to_ten_short(lambda: report(many), lambda: report(few)) <= MOST


def test_what_was_kept_is_reported_in_a_fraction_of_the_time(tmp_path):
    path = written(tmp_path / "many.observe", "functions", 10 * TURNS)
    again_seconds = min(cpu_seconds(lambda: assemble(path, load())) for _ in range(ROUNDS))
    conclude(path)
    assert min(cpu_seconds(lambda: assemble(path, load())) for _ in range(ROUNDS)) < again_seconds / 5


def test_a_live_stream_of_small_batches_costs_no_more_the_longer_it_lasts():
    of, items = recorded("functions")
    few, many = (rebatch(endless(items, turns), iter(lambda: 100, None)) for turns in (TURNS, 10 * TURNS))
    assert len(correlate(many, of)[0]) == 10 * len(correlate(few, of)[0])
    assert cost_of_one_long_to_ten_short(lambda: correlate(many, of), lambda: correlate(few, of)) <= MOST
