# SPDX-License-Identifier: Apache-2.0
"""The report as csv and as Markdown: the same numbers, and nothing in a name that a reader would act on."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import HOSTILE, ID, MS, made_report, made_run

from observe.model import Departure, DepartureKind, Evidence, Loss
from observe.reports import RENDERERS, Page
from observe.reports.csv_ import COLUMNS
from observe.reports.rows import summarise, timeline

MANY = [made_run(3, seed) for seed in range(9)]
DEPARTURE = Departure(DepartureKind.REPEATED, "start.phase_0", "it was | repeated")


def csv_rows(report, **page):
    """The rows by column, read by somebody else's rules."""
    text = RENDERERS["csv"](report, Page(**page))
    assert text.endswith("\r\n")
    head, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert tuple(head) == COLUMNS
    return [dict(zip(head, row, strict=True)) for row in rows]


def markdown(report, **page):
    return RENDERERS["markdown"](report, Page(**page))


def tables(text):
    """Each table of a Markdown text: its rows, the head first, without what separates them."""
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
        elif lines:
            found.append([lines[0], *lines[2:]])
            assert all(set(cell) <= set("-:") for cell in lines[1])
            assert len({len(row) for row in lines}) == 1, "every row has as many cells as the head"
            lines = []
    return found


# csv -------------------------------------------------------------------------------------------------------


def test_csv_has_one_row_a_phase_a_run_with_the_numbers_of_the_run():
    runs = [made_run(3), made_run(4, 1, container_name="two")]
    rows = csv_rows(made_report(*runs))
    assert [(row["run"], row["phase"]) for row in rows] == [
        (str(number), span.id) for number, run in enumerate(runs) for span in run.phases
    ]
    span = runs[1].phases[2]
    assert {name: row for name, row in rows[6].items() if name not in ("image", "network", "error")} == {
        "run": "1",
        "operation": "start",
        "container_id": ID,
        "container_name": "two",
        "outcome": "ok",
        "run_start_ns": str(runs[1].start_ns),
        "run_wall_time_ns": str(runs[1].wall_time_ns),
        "run_duration_ns": str(runs[1].duration_ns),
        "run_unattributed_ns": str(20 * MS),
        "phase": span.id,
        "parent": "start.phase_0",
        "step": "3.1",
        "start_ns": str(span.start_ns),
        "duration_ns": str(span.duration_ns),
        "self_ns": str(span.self_ns),
        "corrected_self_ns": "",
        "evidence": "function",
        "at_floor": "false",
        "syscalls": "3",
        "file_events": "1",
        "probe_hits": "0",
    }


def test_csv_leaves_empty_what_was_not_seen():
    run = made_run(1, container_name=None)
    unseen = replace(run.phases[1], start_ns=None, duration_ns=None, self_ns=None, evidence=Evidence.NONE)
    _, row = csv_rows(made_report(replace(run, phases=(run.phases[0], unseen))))
    names = ("container_name", "error", "start_ns", "duration_ns", "self_ns")
    assert [row[name] for name in names] == [""] * 5
    assert (row["evidence"], row["syscalls"]) == ("none", "3")


def test_csv_of_nothing_is_its_header():
    assert csv_rows(made_report()) == []


def test_csv_is_one_line_a_row_whatever_a_container_is_called():
    text = RENDERERS["csv"](made_report(made_run(3, container_name=HOSTILE, error='a "b", c')), Page())
    assert text.count("\r\n") == len(text.splitlines()) == 5
    row, *_ = csv_rows(made_report(made_run(3, error='a "b", c')))
    assert row["error"] == 'a "b", c'


@given(st.text(min_size=1) | st.text(st.sampled_from(" '=+-@＝＋－＠\t\r\n\"a"), min_size=1))  # noqa: RUF001 - as in csv_
def test_csv_never_has_a_formula_and_the_text_can_be_had_back(name):
    row, *_ = csv_rows(made_report(made_run(1, container_name=name)))
    cell = row["container_name"]
    assert not cell.lstrip().startswith(tuple("=+-@＝＋－＠"))  # noqa: RUF001 - as in csv_
    assert cell.removeprefix("'") == Page().safe(name)


@pytest.mark.parametrize(
    ("name", "cell"), [("=1+1", "'=1+1"), (" =1", "' =1"), ("-a", "'-a"), ("'a", "''a"), ("a=b", "a=b"), ("a-b", "a-b")]
)
def test_csv_takes_the_effect_from_a_formula(name, cell):
    assert csv_rows(made_report(made_run(1, container_name=name)))[0]["container_name"] == cell


# Markdown --------------------------------------------------------------------------------------------------


def test_markdown_has_the_rows_of_the_timeline():
    run = made_run(4)
    text = markdown(made_report(run))
    head, *rows = tables(text)[0]
    assert head == ["phase", "", "time", "share", "own", "calls", "files", "evidence"]
    assert [row[0].replace("&emsp;", "") for row in rows] == [row.name for row in timeline(run).rows]
    assert [row[0].count("&emsp;") for row in rows] == [row.depth for row in timeline(run).rows]
    assert rows[0][2:] == ["200.0 ms", "100%", "", "19", "6", "function"]
    assert rows[-1][2:] == ["20.0 ms", "10.0%", "20.0 ms", "7", "2", ""]
    assert "## start `web`" in text
    assert "`ok` · 200.0 ms · `3f2a91c04d7e` · `nginx:1.25` · network `bridge` · 2022-03-03 17:06:12.345 UTC" in text


def test_markdown_has_the_percentiles_of_many_runs():
    failed = made_run(3, 99, outcome="failed", error="no | file")
    text = markdown(made_report(*MANY, failed))
    phases, slowest, not_ok = tables(text)[:3]
    (summary,) = summarise([*MANY, failed])
    assert phases[0] == ["phase", "n", "p50", "p90", "p99", "max", "share"]
    assert [row[0].replace("&emsp;", "") for row in phases[1:]] == [row.name for row in summary.rows]
    assert [row[0].count("&emsp;") for row in phases[1:]] == [row.depth for row in summary.rows]
    assert phases[2][2:6] == [
        Page().duration(value)
        for value in (
            summary.rows[1].p50_ns,
            summary.rows[1].p90_ns,
            summary.rows[1].p99_ns,
            summary.rows[1].max_ns,
        )
    ]
    assert len(slowest) == 6
    assert not_ok[1][-2:] == ["`failed`", "`no \\x7c file`"]
    assert "10 runs · 9 `ok` · 1 `failed`" in text


def test_markdown_tells_what_was_not_seen_departures_errors_and_warnings():
    run = made_run(1, outcome="failed", error="no such file", departures=(DEPARTURE,))
    unseen = replace(run.phases[1], start_ns=None, duration_ns=None, self_ns=None, evidence=Evidence.NONE)
    text = markdown(made_report(replace(run, phases=(run.phases[0], unseen)), warnings=["cut"]))
    assert "Not seen: phase_0" in text
    assert "Error: `no such file`" in text
    assert "- departure: repeated: `it was | repeated`" in text
    assert "- warning: `cut`" in text
    many = [replace(run, departures=(DEPARTURE,)) for run in MANY]
    assert "- departure in 9 of 9 runs: repeated: `it was | repeated`" in markdown(made_report(*many))


@pytest.mark.parametrize("name", [field.name for field in fields(Loss)])
def test_markdown_tells_every_loss(name):
    loss = Loss(**{name: 41})
    text = markdown(made_report(made_run(1), loss=loss))
    assert tables(text)[-1] == [["counter", "count"], [name.replace("_", " "), "41"]]
    assert ("**Data was lost.**" in text) == loss.data_was_lost
    assert ("Nothing lost." in text) != loss.data_was_lost


def test_markdown_of_nothing_says_so():
    text = markdown(made_report())
    assert "No docker create and no docker start was recorded." in text
    assert "`observe record -o FILE -- docker run --rm IMAGE`" in text
    assert tables(text) == []


def code_spans(text):
    """What stands in code spans, by CommonMark's rule; and the text without them."""
    spans = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
    contents = [match[2] for match in spans.finditer(text)]
    trimmed = [
        content[1:-1] if content[0] == content[-1] == " " and content.strip() else content for content in contents
    ]
    return trimmed, spans.sub("", text)


@given(st.text(st.sampled_from("`|\\* _<a")) | st.text())
def test_a_name_is_a_code_span_of_its_own(name):
    head = next(line for line in markdown(made_report(made_run(1, container_name=name))).splitlines() if "##" in line)
    spans, rest = code_spans(head)
    assert rest == "## start "
    assert [span.strip() for span in spans] == [Page().safe(name).strip() or spans[0].strip()]


@pytest.mark.parametrize("runs", [1, 9])
def test_no_markup_of_a_name_gets_out(runs):
    hostile = made_run(3, container_name=HOSTILE, image=HOSTILE, network=HOSTILE, error=HOSTILE, outcome="failed")
    text = markdown(made_report(*[hostile] * runs, warnings=[HOSTILE]))
    assert "<img" in text
    for line in text.splitlines():
        _, rest = code_spans(line)
        assert not set(rest) & set("<$\\")
    assert tables(text)
