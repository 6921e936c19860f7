# SPDX-License-Identifier: Apache-2.0
"""Rows, and what the renderers make of them."""

from __future__ import annotations

import io
import json
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import made_report, made_run

from observe.model import Departure, DepartureKind, Evidence, Loss, Run, Span
from observe.phases import load
from observe.reports import RENDERERS, Page, Report, join, json_
from observe.reports.layout import Column, table
from observe.reports.rows import UNATTRIBUTED, NotSeen, summarise, timeline
from observe.reports.terminal import wall_time

MS = 1_000_000
ID = "3f2a91c04d7e" + "0" * 52


def a_run(operation="start", places=(), *, duration_ms=100, start_ns=5 * MS, counts=(7, 2), **changes):
    """A run whose seen phases are `places`: id → (start, duration, own time) in ms after its start."""
    places = dict(places)
    own_ms = changes.pop("unattributed_ms", 0)
    spans = [Span(operation, None, "3.1", start_ns, duration_ms * MS, own_ms * MS, Evidence.KERNEL, *counts)]
    for phase in load().of(operation)[1:]:
        if phase.id in places:
            start, length, own = places[phase.id]
            times = (start_ns + start * MS, length * MS, own * MS, Evidence.KERNEL, 10, 1)
            spans.append(Span(phase.id, phase.parent, phase.step, *times))
        else:
            spans.append(Span(phase.id, phase.parent, phase.step, None, None, None, Evidence.NONE))
    run = Run(
        operation=operation,
        container_id=ID,
        container_name="web",
        image="nginx:1.25",
        network="bridge",
        outcome="ok",
        error=None,
        start_ns=start_ns,
        wall_time_ns=1_646_327_172_345_678_901,
        duration_ns=duration_ms * MS,
        unattributed_ns=own_ms * MS,
        departures=(),
        phases=tuple(spans),
    )
    return replace(run, **changes)


START = a_run(
    places={
        "start.mount": (10, 20, 20),
        "start.containerd_start.runc_create": (50, 40, 10),
        "start.containerd_start.runc_create.init": (55, 30, 30),
    },
    unattributed_ms=40,
)
CREATE = a_run("create", {"create.rw_layer": (0, 100, 100)})
HOSTILE = "web\x1b[31m\r\n\u202egnp\x00\x9b2J"
HOST = {"hostname": "node1", "kernel": "6.1.0", "arch": "x86_64"}
ENGINE = {"version": "20.10.24", "go_version": "go1.19.8", "storage_driver": "overlay2"}


def report(*runs, loss=None, warnings=()):
    return Report(HOST, ENGINE, loss or Loss(), tuple(runs), tuple(warnings))


def many(operation="start", n=20):
    """Runs of 101, 102, … ms, whose mount takes what is more than 100."""
    return [
        a_run(operation, {f"{operation}.{phase}": (0, extra, extra)}, duration_ms=100 + extra, start_ns=extra * MS)
        for extra in range(1, n + 1)
        for phase in (["mount"] if operation == "start" else ["rw_layer"])
    ]


def text(some_report, **page):
    return RENDERERS["text"](some_report, Page(**page))


# Rows of one run -------------------------------------------------------------------------------------------


def test_timeline_has_what_was_seen_in_the_documented_order_then_what_is_unattributed():
    rows = timeline(START).rows
    assert [(row.name, row.depth) for row in rows] == [
        ("start", 0),
        ("mount", 1),
        ("containerd_start", 1),
        ("runc_create", 2),
        ("init", 3),
        (UNATTRIBUTED, 1),
    ]


def test_shares_and_pieces_are_of_the_operations_time():
    rows = {row.name: row for row in timeline(START).rows}
    assert rows["mount"].share == pytest.approx(0.2)
    assert rows["mount"].pieces == ((pytest.approx(0.1), pytest.approx(0.2)),)
    assert rows["start"].pieces == ((0, 1),)
    assert rows[UNATTRIBUTED].pieces == (
        (0, pytest.approx(0.1)),
        (pytest.approx(0.3), pytest.approx(0.2)),
        (pytest.approx(0.9), pytest.approx(0.1)),
    )


def test_a_parent_that_was_not_seen_keeps_the_tree_together_and_has_no_times():
    row = timeline(START).rows[2]
    assert (row.id, row.duration_ns, row.share, row.pieces) == ("start.containerd_start", None, None, ())
    assert row.evidence is Evidence.NONE


def test_counts_include_the_phases_below_and_unattributed_has_the_operations_own():
    rows = {row.name: (row.syscalls, row.file_events) for row in timeline(START).rows}
    assert rows == {
        "start": (37, 5),
        "mount": (10, 1),
        "containerd_start": (20, 2),
        "runc_create": (20, 2),
        "init": (10, 1),
        UNATTRIBUTED: (7, 2),
    }


def test_what_was_not_seen_is_named_by_its_topmost_phase():
    not_seen = timeline(START).not_seen
    assert NotSeen("start.spec", 15) in not_seen
    assert NotSeen("start.containerd_start.shim", 0) in not_seen
    assert not any(gap.id.startswith("start.spec.") for gap in not_seen)
    rows = {row.id for row in timeline(START).rows}
    named = sum(1 + gap.parts for gap in not_seen)
    assert named + len(rows - {UNATTRIBUTED}) == len(load().of("start"))


def test_the_hottest_phase_has_the_most_time_of_its_own():
    hottest = timeline(START).hottest
    assert hottest is not None
    assert hottest.name == "init"
    assert timeline(a_run(unattributed_ms=100)).hottest is None


def test_a_run_without_duration_or_phases_has_rows_all_the_same():
    empty = replace(a_run(duration_ms=0), phases=())
    assert [row.id for row in timeline(empty).rows] == [UNATTRIBUTED]
    assert [row.share for row in timeline(a_run(duration_ms=0)).rows] == [None, None]


def test_a_run_without_times_keeps_its_order():
    first, *rest = START.phases
    line = timeline(replace(START, duration_ns=0, unattributed_ns=0, phases=(first, *rest)))
    assert not line.timed
    assert [row.pieces for row in line.rows[:-1]] == [row.pieces for row in timeline(START).rows[:-1]]
    assert {(row.duration_ns, row.self_ns, row.share) for row in line.rows} == {(None, None, None)}
    out = text(report(line.run))
    assert "first to last event" in out
    assert " ns" not in out
    assert " ms" not in out


# Rows of many runs -----------------------------------------------------------------------------------------


def test_percentiles_are_those_of_the_durations():
    (summary,) = summarise(many())
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["start", "mount", UNATTRIBUTED]
    mount = rows["mount"]
    assert (mount.n, mount.p50_ns, mount.max_ns) == (20, 10.5 * MS, 20 * MS)
    assert mount.p90_ns == pytest.approx(18.1 * MS)
    assert mount.p99_ns == pytest.approx(19.81 * MS)
    assert mount.share == pytest.approx(210 / 2210)
    assert rows["start"].share == 1


def test_failures_are_listed_and_do_not_move_the_percentiles():
    failed = a_run(duration_ms=9000, outcome="failed", error="no such file")
    (summary,) = summarise([*many(), failed])
    assert summary.rows[0].max_ns == 120 * MS
    assert summary.failures == (failed,)
    assert (len(summary.runs), len(summary.measured)) == (21, 20)


def test_without_any_success_the_failures_are_measured():
    (summary,) = summarise([a_run(duration_ms=9, outcome="failed")] * 5)
    assert (summary.rows[0].n, summary.rows[0].p50_ns) == (5, 9 * MS)


def test_a_repeated_phase_counts_once_a_run_with_all_its_time():
    run = a_run(places={"start.mount": (0, 10, 10)})
    run = replace(run, phases=(*run.phases, run.phases[2]))
    (summary,) = summarise([run])
    assert [(row.n, row.p50_ns) for row in summary.rows if row.name == "mount"] == [(1, 20 * MS)]


def test_the_slowest_runs_name_the_phase_that_is_furthest_above_its_median():
    usual = {"start.mount": (0, 5, 5), "start.network": (5, 80, 80)}
    slow = a_run(places={**usual, "start.mount": (0, 45, 45)}, duration_ms=140, container_name="slow")
    (summary,) = summarise([*[a_run(places=usual)] * 20, slow])
    assert summary.slowest[0].run is slow
    assert summary.slowest[0].phase == "start.mount"  # network takes longer, but always does
    assert summary.slowest[0].excess_ns == 40 * MS
    assert len(summary.slowest) == 5


def test_departures_are_counted_once_a_run():
    missing = Departure(DepartureKind.MISSING, "start.mount", "start.mount was not seen")
    (summary,) = summarise([a_run(departures=(missing, missing)), a_run(departures=(missing,)), a_run()])
    assert [(found.phase, found.runs) for found in summary.departures] == [("start.mount", 2)]


def test_operations_are_summarised_apart():
    assert [(s.operation, len(s.runs)) for s in summarise([*many(), *many("create", 3)])] == [
        ("start", 20),
        ("create", 3),
    ]


# Joining ---------------------------------------------------------------------------------------------------


def test_joined_runs_are_in_time_order_and_losses_add_up():
    late, early = a_run(wall_time_ns=2_000, start_ns=1), a_run(wall_time_ns=1_000, start_ns=9)
    one = report(late, loss=Loss(ring_buffer=2, inotify_missed=1), warnings=["w"])
    two = report(early, loss=Loss(ring_buffer=3), warnings=["w"])
    joined = join([replace(one, left={"a": 2, "b": 1}), replace(two, left={"a": 3})])
    assert joined.left == {"a": 5, "b": 1}
    assert joined.runs == (early, late)
    assert joined.loss == Loss(ring_buffer=5, inotify_missed=1)
    assert joined.warnings == ("w",)


def test_a_second_host_is_said():
    joined = join([report(), replace(report(), host={"hostname": "other"})])
    assert [warning for warning in joined.warnings if "same host" in warning]
    assert join([report(), report()]).warnings == ()


def test_nothing_to_join_is_an_error():
    with pytest.raises(ValueError, match="no report"):
        join([])


# Every renderer over the same reports ----------------------------------------------------------------------

REPORTS = {
    "none": Report({}, {}, Loss(), ()),
    "one": report(CREATE),
    "few": report(CREATE, START),
    "many": report(*many(), *many("create")),
    "hostile": report(a_run(container_name=HOSTILE, image=HOSTILE, network=HOSTILE, error=HOSTILE, outcome="failed")),
    "hostile many": report(*[a_run(container_name=HOSTILE, network=HOSTILE, error=HOSTILE, outcome=HOSTILE)] * 9),
    "unknown": report(a_run(container_id=None, container_name=None, image=None, network=None, wall_time_ns=0)),
    "lossy": report(START, loss=Loss(*range(1, len(fields(Loss)) + 1)), warnings=[HOSTILE]),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("form", RENDERERS)
@pytest.mark.parametrize("unicode", [True, False])
def test_every_renderer_writes_every_report_harmlessly(form, name, unicode):
    out = RENDERERS[form](REPORTS[name], Page(unicode=unicode))
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    assert all(letter.isprintable() for letter in out.replace("\r\n", "\n").replace("\n", ""))
    assert unicode or out.isascii()


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_page(name, width):
    lines = text(REPORTS[name], width=width).splitlines()
    # A name of somebody else's may be longer than any page.
    assert [line for line in lines if len(line) > width and "x1b" not in line] == []


@pytest.mark.parametrize("name", REPORTS)
def test_colours_change_nothing_but_the_colour(name):
    coloured = text(REPORTS[name], colour=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == text(REPORTS[name])
    assert ("\x1b[" in coloured) is True


# Text ------------------------------------------------------------------------------------------------------


def test_the_header_line_tells_who_how_and_how_long():
    facts = ["start web", "ok", "100.0 ms", ID[:12], "nginx:1.25", "network bridge", "2022-03-03 17:06:12.345 UTC"]
    assert " · ".join(facts) in text(report(START)).splitlines()


def test_a_row_tells_duration_share_counts_and_evidence():
    (row,) = [line for line in text(report(START)).splitlines() if line.startswith("  mount ")]
    assert row.split()[:9] == ["mount", "20.0", "ms", "20.0%", "20.0", "ms", "10", "1", "kernel"]
    assert set(row.split()[9]) <= set("▏▎▍▌▋▊▉█▐")


def test_bars_stand_where_the_phase_was():
    lines = text(report(START), unicode=False).splitlines()
    whole, mount, init = (next(line for line in lines if line.strip().startswith(name)) for name in WORDS)
    first, end = whole.index("#"), len(whole)
    width = end - first
    assert mount.index("#") - first == pytest.approx(0.1 * width, abs=1)
    assert mount.count("#") == pytest.approx(0.2 * width, abs=2)
    assert init.index("#") - first == pytest.approx(0.55 * width, abs=1)


WORDS = ("start  ", "mount  ", "init  ")


def test_unattributed_time_keeps_its_row_even_when_there_is_none():
    (row,) = [line for line in text(report(CREATE)).splitlines() if "unattributed" in line]
    assert "0 ns" in row


def test_phases_not_seen_are_named_in_one_place():
    assert "not seen by kernel evidence: request, verify, image" in text(report(CREATE))
    wide = text(report(START), width=160)
    (line,) = [line for line in wide.splitlines() if line.startswith("not seen")]
    assert "spec (all 15 parts)" in line
    assert "cleanup" not in wide  # comes with a failure only
    assert "cleanup" in text(report(replace(START, outcome="failed")))


def test_with_function_evidence_it_does_not_blame_the_kernel():
    first, *rest = CREATE.phases
    run = replace(CREATE, phases=(replace(first, evidence=Evidence.FUNCTION), *rest))
    assert "not seen: request" in text(report(run))


def test_departures_are_shown_with_their_kind():
    departure = Departure(DepartureKind.OUT_OF_ORDER, "start.mount", "start.mount after start.network")
    line = "out of order: start.mount after start.network"
    assert f"departure: {line}" in text(report(replace(START, departures=(departure,))))
    runs = [*many(), replace(START, departures=(departure,))]
    assert f"departure in 1 of 21 runs: {line}" in text(report(*runs))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Loss(), "nothing lost"),
        (Loss(ring_buffer=1), "1 event lost because the ring buffer was full"),
        (Loss(ring_buffer=3, inotify_overflows=1), "3 events lost because the ring buffer was full; inotify's queue"),
        (Loss(inotify_overflows=2), "inotify's queue overflowed 2 times"),
        (Loss(inotify_missed=4), "nothing lost (inotify missed 4 file operations that the system calls show)"),
        (Loss(unattributed_events=5), "nothing lost; 5 events that belong to no operation for sure"),
        (Loss(damaged_bytes=9), "9 bytes of the recording damaged"),
    ],
)
def test_losses_are_told_in_words(loss, words):
    assert words in text(report(START, loss=loss))


@pytest.mark.parametrize("name", [field.name for field in fields(Loss)])
def test_no_loss_goes_untold(name):
    assert text(report(START, loss=Loss(**{name: 41}))) != text(report(START))
    assert "41" in text(report(START, loss=Loss(**{name: 41})))


def test_four_runs_are_shown_one_by_one_and_five_as_percentiles():
    assert text(report(*many()[:4])).count("start web") == 4
    assert "p99" not in text(report(*many()[:4]))
    assert "p99" in text(report(*many()[:5]))


def test_many_runs_tell_failures_with_their_error():
    failed = [a_run(outcome="failed", error="exec: nope", container_name=f"bad{i}") for i in range(12)]
    out = text(report(*many(), *failed))
    assert "start · 32 runs · 20 ok · 12 failed" in out
    assert out.count("error: exec: nope") == 10
    assert "and 2 more" in out


def test_no_runs_says_so_and_what_to_try():
    out = text(report())
    assert "No docker create and no docker start" in out
    assert "observe record" in out
    assert "nothing lost" in out


# JSON ------------------------------------------------------------------------------------------------------


def test_json_is_what_was_promised():
    whole = replace(report(START, loss=Loss(ring_buffer=2), warnings=["w"]), left={"nothing_tells": 3})
    document = json.loads(RENDERERS["json"](whole, Page()))
    assert document["schema_version"] == 1
    assert document["events_left"] == {"nothing_tells": 3}
    assert document["host"] == HOST
    assert document["engine"] == ENGINE
    assert set(document["loss"]) == {field.name for field in fields(Loss)}
    assert document["loss"]["ring_buffer"] == 2
    assert document["warnings"] == ["w"]
    (run,) = document["runs"]
    keys = "operation container_id container_name image network outcome error start_ns wall_time_ns duration_ns"
    assert set(run) == {*keys.split(), "unattributed_ns", "departures", "phases"}
    first, *phases = run["phases"]
    assert first == {
        "id": "start",
        "parent": None,
        "step": "3.1",
        "start_ns": 5 * MS,
        "duration_ns": 100 * MS,
        "self_ns": 40 * MS,
        "evidence": "kernel",
        "syscalls": 7,
        "file_events": 2,
        "probe_hits": 0,
        "corrected_self_ns": None,
        "pieces": [],
        "at_floor": False,
    }
    assert len(phases) == len(load().of("start")) - 1
    unseen = next(phase for phase in phases if phase["id"] == "start.spec")
    assert (unseen["start_ns"], unseen["duration_ns"], unseen["self_ns"], unseen["evidence"]) == (
        None,
        None,
        None,
        "none",
    )


def test_json_keeps_its_promised_keys_when_nothing_is_known():
    document = json.loads(RENDERERS["json"](Report({}, {}, Loss(), ()), Page()))
    assert document["host"] == {"hostname": None, "kernel": None, "arch": None}
    assert document["engine"] == {"version": None, "go_version": None, "storage_driver": None}
    assert document["runs"] == []


def test_json_keeps_names_as_they_are():
    document = json.loads(RENDERERS["json"](report(a_run(container_name=HOSTILE + "\udcff")), Page()))
    assert document["runs"][0]["container_name"] == HOSTILE + "\udcff"


@pytest.mark.parametrize("name", ["plain", HOSTILE, '\x7f\x80\u2028\U0001f433"\\', "not UTF-8: \udcff", ""])
@pytest.mark.parametrize("number", [0, 2**63, 2**70])
def test_json_is_spelled_as_python_spells_it(name, number):
    """A fast encoder writes it, unless a name is one that it cannot hold."""
    one = report(a_run(container_name=name, configuration={"Env": [name, 1, -1, number, True, None, {}, []]}), START)
    assert RENDERERS["json"](one, Page()) == json.dumps(json_.document(one), indent=2) + "\n"
    assert RENDERERS["json"](one, Page()).isascii()


def test_json_tells_departures():
    run = a_run(departures=(Departure(DepartureKind.REPEATED, "start.mount", "twice"),))
    document = json.loads(RENDERERS["json"](report(run), Page()))
    assert document["runs"][0]["departures"] == [{"kind": "repeated", "phase": "start.mount", "text": "twice"}]


# The page --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal of some encoding."""

    def __init__(self, encoding="utf-8", *, tty=True):
        super().__init__()
        self._encoding, self._tty = encoding, tty

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return self._tty


@pytest.mark.parametrize(
    ("stream", "environ", "colour", "unicode"),
    [
        (Terminal(), {}, True, True),
        (Terminal(), {"NO_COLOR": "1"}, False, True),
        (Terminal(), {"NO_COLOR": ""}, True, True),
        (Terminal(), {"TERM": "dumb"}, False, True),
        (Terminal("ISO-8859-1"), {}, True, False),
        (Terminal("UTF8", tty=False), {}, False, True),
        (Terminal("ascii", tty=False), {}, False, False),
    ],
)
def test_the_page_follows_the_stream_and_the_environment(stream, environ, colour, unicode):
    page = Page.of(stream, environ)
    assert (page.colour, page.unicode) == (colour, unicode)


def test_a_page_is_as_wide_as_its_terminal_but_never_too_narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "133")
    assert Page.of(Terminal(), {}).width == 133
    assert Page.of(Terminal(tty=False), {}).width == 100
    monkeypatch.setenv("COLUMNS", "20")
    assert Page.of(Terminal(), {}).width == 60


@pytest.mark.parametrize(
    ("duration_ns", "words"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (999.7, "1.0 µs"),
        (1_000, "1.0 µs"),
        (999_960, "1.0 ms"),
        (12_345_678, "12.3 ms"),
        (999_949_999, "999.9 ms"),
        (1_500_000_000, "1.5 s"),
        (59_960_000_000, "1 min 0 s"),
        (123_000_000_000, "2 min 3 s"),
    ],
)
def test_durations_have_units(duration_ns, words):
    assert Page().duration(duration_ns) == words


def test_wall_times_are_utc_and_unknown_ones_are_left_out():
    assert wall_time(1_646_327_172_345_678_901) == "2022-03-03 17:06:12.345 UTC"
    assert wall_time(0) == ""


@given(st.text())
def test_text_from_outside_cannot_steer_the_terminal(name):
    for unicode in (True, False):
        safe = Page(unicode=unicode).safe(name)
        assert all(letter.isprintable() for letter in safe)
        assert unicode or safe.isascii()
    assert Page().safe(name) == name or not name.isprintable()


@given(
    st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(0, 2)), max_size=4),
    st.integers(1, 200),
    st.booleans(),
)
def test_bars_stay_on_their_line_and_no_piece_vanishes(pieces, cells, unicode):
    bar = Page(unicode=unicode).bar(pieces, cells)
    assert len(bar) <= cells
    assert bool(bar) == bool(pieces)
    assert bar == bar.rstrip()


@pytest.mark.parametrize(
    ("piece", "bar"),
    [
        ((0, 1), "████████"),
        ((0, 1 / 64), "▏"),
        ((0.5, 0.5), "    ████"),
        ((1 / 16, 15 / 16), "▐███████"),
        ((0, 0), "▏"),
    ],
)
def test_bars_are_exact_to_an_eighth(piece, bar):
    assert Page().bar([piece], 8) == bar


def test_columns_go_by_rank_when_the_page_is_narrow():
    columns = [Column("aaaa", ["1"]), Column("bbbb", ["2"], rank=1), Column("cccc", ["3"], rank=2)]
    heads = {width: table(Page(width=width), columns, [""])[0].split() for width in (16, 15, 9)}
    assert heads == {16: ["aaaa", "bbbb", "cccc"], 15: ["aaaa", "bbbb"], 9: ["aaaa"]}


# --- runs without times among others ----------------------------------------------------------------------------------


def test_runs_without_times_are_counted_and_measure_nothing():
    timed = [made_run(6, seed) for seed in range(4)]
    untimed = [made_run(6, 9, duration_ns=0, unattributed_ns=0), made_run(6, 10, duration_ns=0, unattributed_ns=0)]
    (summary,) = summarise([*timed, *untimed])
    (alone,) = summarise(timed)
    assert (summary.rows, summary.slowest) == (alone.rows, alone.slowest)
    assert summary.outcomes == {"ok": 6, "without times": 2}
    (none,) = summarise(untimed)
    assert {row.n for row in none.rows} == {2}
    assert {(row.p50_ns, row.max_ns, row.share) for row in none.rows} == {(None, None, None)}
    assert none.slowest == ()
    for render in (RENDERERS["text"], RENDERERS["markdown"]):
        shown = render(made_report(*timed, *untimed), Page())
        assert "2 without times" in shown.replace("`", "")
        assert "slowest" not in render(made_report(*untimed * 3), Page()).lower()


def test_not_seen_in_any_run_means_the_failed_ones_too():
    whole = made_run(6)
    (first, second), rest = whole.phases[1:3], whole.phases[3:]
    blind = replace(second, start_ns=None, duration_ns=None, self_ns=None, evidence=Evidence.NONE)
    well = replace(whole, phases=(whole.phases[0], first, blind, *rest))
    (summary,) = summarise([well, well])
    assert [gap.id for gap in summary.not_seen] == [second.id]
    (summary,) = summarise([well, replace(whole, outcome="failed")])
    assert summary.not_seen == ()
