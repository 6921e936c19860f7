# SPDX-License-Identifier: Apache-2.0
"""What a bench says: percentiles and differences with intervals, failures counted, and how all of it is written."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made import HOSTILE

from observe.model import Loss
from observe.reports import Page, bench_json, bench_markdown, bench_text
from observe.reports.bench_rows import MEASURES, SHARES, Bench, BenchArm, ClientRun, arm_rows, difference_rows, failed
from observe.reports.inference import CLUSTER_RESAMPLES, knows, resampled_percentiles

MS = 1_000_000
SETTINGS = {"image": "app", "network": "none", "runtime": None, "security_opt": (), "attached": True}


def a_run(arm, turn, start_ms=100.0, failure=None):
    times_ms = {"create": 10.0, "start": start_ms, "wait": 5.0, "remove": 8.0, "total": start_ms + 25}
    durations_ns = {"create": 10 * MS} if failure else {name: round(ms * MS) for name, ms in times_ms.items()}
    return ClientRun(arm, turn, failure, durations_ns)


def runs_of(arm, starts_ms, at_once=1):
    return [a_run(arm, number // at_once, ms) for number, ms in enumerate(starts_ms)]


def a_bench(runs, names=("a", "b"), **changes):
    arms = [BenchArm(name, SETTINGS, f"out/{name}.observe", Loss()) for name in names]
    bench = Bench(
        host={"hostname": "node1", "kernel": "6.1.0", "arch": "x86_64", "cpus": 2},
        engine={"version": "20.10.24"},
        wall_time_ns=1_646_327_172_345_678_901,
        planned=20,
        concurrency=1,
        warmup=1,
        seed=7,
        command=("true",),
        arms=arms,
        runs=runs,
        pairs=[(names[0], name) for name in names[1:]],
    )
    return replace(bench, **changes)


# Intervals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 40])
def test_without_clusters_it_is_the_plain_bootstrap(n):
    rng = np.random.default_rng(1)
    values = rng.lognormal(3, 0.5, n)
    drawn = resampled_percentiles(values, np.arange(n), SHARES)
    assert drawn.shape == (CLUSTER_RESAMPLES, len(SHARES))
    plain = np.quantile(values[rng.integers(0, n, (20_000, n))], SHARES, axis=1).T
    for ours, theirs in zip(drawn.T, plain.T, strict=True):
        for share in (0.025, 0.5, 0.975):
            assert np.mean(theirs < np.quantile(ours, share)) <= share + 0.04
            assert np.mean(theirs <= np.quantile(ours, share)) >= share - 0.04


def test_a_resample_of_one_cluster_is_the_sample_itself():
    values = np.array([5.0, 1.0, 4.0, 2.0])
    drawn = resampled_percentiles(values, np.zeros(4, dtype=np.intp), SHARES)
    assert np.allclose(drawn, np.quantile(values, SHARES))


def test_clusters_of_different_sizes_are_drawn_whole():
    values, clusters = np.array([1.0, 1.0, 1.0, 9.0]), np.array([0, 0, 0, 1])
    drawn = resampled_percentiles(values, clusters, (0.5,))[:, 0]
    # Both once, or one of them twice: 1 1 1 9, 1 1 1 1 1 1, 9 9.
    assert set(drawn.tolist()) == {1.0, 9.0}
    assert np.mean(drawn == 9) == pytest.approx(0.25, abs=0.05)


def test_what_was_measured_at_once_makes_the_interval_wider():
    rng = np.random.default_rng(4)
    covered = {"turns": 0, "runs": 0}
    for _ in range(100):
        # What disturbs a turn disturbs all of its eight runs.
        values = (rng.normal(100, 10, (20, 1)) + rng.normal(0, 1, (20, 8))).ravel()
        for name, clusters in (("turns", np.arange(160) // 8), ("runs", np.arange(160))):
            low, high = np.quantile(resampled_percentiles(values, clusters, (0.5,)), (0.025, 0.975))
            covered[name] += low <= 100 <= high
    assert covered["turns"] >= 88
    assert covered["runs"] <= 75


def test_few_runs_do_not_bound_a_percentile():
    assert [next(n for n in range(1, 500) if knows(n, share)[1]) for share in SHARES] == [6, 36, 368]
    assert [knows(5, 0.5), knows(6, 0.5)] == [(False, False), (True, True)]


# Rows ------------------------------------------------------------------------------------------------------


def test_rows_have_the_percentiles_of_what_went_well():
    starts = [float(ms) for ms in range(1, 101)]
    broken = [a_run("a", 500 + n, failure="start: no space left") for n in range(3)]
    rows = next(arm_rows(a_bench(runs_of("a", starts) + broken)))
    assert (rows.runs, rows.failures) == (103, {"start: no space left": 3})
    assert [row.measure for row in rows.rows] == [*MEASURES]
    start = rows.rows[1]
    assert start.n == 100
    percentiles = [start.p50, start.p90, start.p99]
    assert [one.value_ns / MS for one in percentiles] == pytest.approx([50.5, 90.1, 99.01])
    assert start.max_ns == 100 * MS
    assert percentiles[0].low_ns < 50.5 * MS < percentiles[0].high_ns
    assert percentiles[1].low_ns < 90.1 * MS < percentiles[1].high_ns
    assert (percentiles[2].low_ns is not None, percentiles[2].high_ns) == (True, None)


def test_what_is_independent_are_turns():
    starts = [float(ms) for ms in range(1, 41)]
    apart, together = (next(arm_rows(a_bench(runs_of("a", starts, n)))).rows[1] for n in (1, 8))
    assert apart.p90.high_ns is not None
    assert together.p90.high_ns is None
    assert together.p50.low_ns is None  # five turns


def test_differences_tell_what_is_new_minus_what_was():
    rng = np.random.default_rng(5)
    base, new = rng.normal(100, 3, 40), rng.normal(130, 3, 40)
    rows = {row.measure: row for row in difference_rows(a_bench(runs_of("a", base) + runs_of("b", new)))}
    start = rows["start"]
    assert start.difference_ns == pytest.approx(30 * MS, rel=0.1)
    assert start.interval_ns[0] < start.difference_ns < start.interval_ns[1]
    assert start.growth == pytest.approx(0.3, abs=0.03)
    assert (start.is_clear, rows["create"].is_clear) == (True, False)


def test_the_interval_of_a_difference_holds_it_about_as_often_as_it_says():
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(100):
        bench = a_bench(runs_of("a", rng.lognormal(3, 0.3, 25)) + runs_of("b", rng.lognormal(3, 0.3, 25)))
        low, high = {row.measure: row for row in difference_rows(bench)}["start"].interval_ns
        hits += low <= 0 <= high
    assert 89 <= hits <= 99


def test_arms_without_a_good_run_have_no_rows_and_no_differences():
    bench = a_bench([*runs_of("a", [1.0] * 9), a_run("b", 3, failure="start: no")])
    first, second = arm_rows(bench)
    assert (len(first.rows), second.rows, second.failures) == (len(MEASURES), (), {"start: no": 1})
    assert [*difference_rows(bench)] == []
    assert failed(bench) == {"start: no": 1}


def test_five_runs_say_nothing_of_a_difference():
    rows = [*difference_rows(a_bench(runs_of("a", [1.0] * 5) + runs_of("b", [9.0] * 50)))]
    assert {(row.interval_ns, row.is_clear) for row in rows} == {(None, False)}


# How it is written -----------------------------------------------------------------------------------------

RENDERERS = {"text": bench_text.render, "markdown": bench_markdown.render, "json": bench_json.render}


@pytest.mark.parametrize("form", RENDERERS)
@pytest.mark.parametrize("page", [Page(), Page(width=60, unicode=False)])
def test_text_from_outside_is_harmless(form, page):
    arm = BenchArm(HOSTILE, {**SETTINGS, "image": HOSTILE, "security_opt": (HOSTILE,)}, f"{HOSTILE}.observe", Loss(1))
    runs = [*runs_of(HOSTILE, [1.0] * 9), a_run(HOSTILE, 50, failure=HOSTILE)]
    bench = replace(a_bench(runs, names=(HOSTILE, "b")), ended_early=HOSTILE)
    bench = replace(bench, arms=[arm, bench.arms[1]], engine={"version": HOSTILE})
    out = RENDERERS[form](bench, page)
    assert out.endswith("\n")
    assert not [letter for letter in out if not letter.isprintable() and letter != "\n"]
    assert page.unicode or form == "markdown" or out.isascii()


def test_text_fits_its_page_and_says_all_there_is():
    base, new = [float(ms) for ms in range(90, 130)], [float(ms) for ms in range(190, 230)]
    bench = a_bench([*runs_of("a", base), *runs_of("b", new), *[a_run("b", 90, failure="start: no space")] * 2])
    out = bench_text.render(bench, Page())
    for text in ("40 of 40 runs went well", "40 of 42 runs went well", "failed 2 times: start: no space", "seed 7"):
        assert text in out
    assert "observe compare out/a.observe out/b.observe" in out
    assert "+100.0 ms" in out
    for width in (60, 100):
        lines = bench_text.render(bench, Page(width=width)).splitlines()
        assert max(map(len, lines)) <= width


def test_what_was_lost_or_is_missing_in_a_recording_is_said():
    lost, short = (
        BenchArm(name, SETTINGS, f"{name}.observe", loss, {"create": 9, "start": starts})
        for name, loss, starts in (("a", Loss(ring_buffer=3), 9), ("b", Loss(), 7))
    )
    bench = replace(a_bench(runs_of("a", [1.0] * 9) + runs_of("b", [1.0] * 9)), arms=[lost, short])
    for render in (bench_text.render, bench_markdown.render):
        out = render(bench, Page())
        assert out.count("data was lost") == 1
        assert out.count("the recording has 7 of 9 starts") == 1
        assert "creates" not in out


def test_json_has_every_run_and_every_row():
    bench = a_bench([*runs_of("a", [1.0] * 9), a_run("b", 3, failure="start: no")], ended_early="stopped by SIGINT")
    document = json.loads(bench_json.render(bench, Page()))
    assert document["schema_version"] == 1
    assert [run["outcome"] for run in document["runs"]] == ["ok"] * 9 + ["failed"]
    assert document["runs"][-1]["error"] == "start: no"
    first, second = document["arms"]
    assert [row["measure"] for row in first["measures"]] == [*MEASURES]
    assert first["measures"][1]["p50"] == {"value_ns": 1.0 * MS, "low_ns": 1.0 * MS, "high_ns": 1.0 * MS}
    assert (second["runs"], second["failures"], second["measures"]) == (1, {"start: no": 1}, [])
    assert (document["ended_early"], document["differences"]) == ("stopped by SIGINT", [])


@pytest.mark.parametrize("form", RENDERERS)
def test_a_bench_without_any_run_is_readable(form):
    assert RENDERERS[form](a_bench([], ended_early="stopped by SIGINT"), Page()).count("stopped by SIGINT") == 1
