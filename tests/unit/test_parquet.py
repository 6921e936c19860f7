# SPDX-License-Identifier: Apache-2.0
"""The tables in Parquet and the csv of events: read back, they have the numbers of the report, and every event."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from situations import BAD_NAME, SITUATIONS, situation
from streams import IN_CREATE, SECOND, create, identity, stream, told

from observe.__main__ import main
from observe.escape import printable, spreadsheet_safe
from observe.export import events, parquet
from observe.model import Event, EventBatch, Kind, Mark
from observe.phases import load
from observe.recording import Recording
from observe.reports.assemble import assemble
from observe.reports.flat import PHASE_COLUMNS, RUN_COLUMNS
from observe.reports.json_ import document


@pytest.fixture
def exported(tmp_path):
    """Makes the two files of a situation; the report, and a connection in which they are `phases` and `events`."""

    def make(name):
        path, out = situation(name, tmp_path), tmp_path / "out" / "tables"
        assert main(["export", str(path), "-t", "parquet", "-o", str(out)]) == 0
        connection = duckdb.connect()
        for table in ("phases", "events"):
            connection.execute(f"create view {table} as from '{out / table}.parquet'")
        return assemble(path, load(), keep_events=True)[0], connection

    return make


@pytest.mark.parametrize("name", SITUATIONS)
def test_phases_are_the_rows_of_the_report(name, exported):
    report, duck = exported(name)
    expected = []
    for number, run in enumerate(document(report)["runs"]):
        for phase in run["phases"]:
            own = {**phase, "phase": phase["id"]}
            of_run = {f"run_{key}" if key.endswith("_ns") else key: run[key] for key in RUN_COLUMNS}
            expected.append({"run": number, **of_run, **{key: own[key] for key in PHASE_COLUMNS}})
    names = ", ".join(["run", *(f"run_{key}" if key.endswith("_ns") else key for key in RUN_COLUMNS), *PHASE_COLUMNS])
    result = duck.execute(f"select {names} from phases")  # noqa: S608
    found = [dict(zip(names.split(", "), row, strict=True)) for row in result.fetchall()]
    for row in expected:
        row.update({key: printable(value) for key, value in row.items() if isinstance(value, str)})
    assert found == expected


@pytest.mark.parametrize("name", SITUATIONS)
def test_events_are_those_of_the_recording_and_belong_where_the_report_says(name, exported, tmp_path):
    report, duck = exported(name)
    recording = list(Recording.open(situation(name, tmp_path)).events())
    numbers = ("time_ns", "duration_ns", "goroutine", "ret", "flags", "pid", "tid", "fd", "marks")
    rows = duck.execute(f"select kind, {', '.join(numbers)} from events")  # noqa: S608
    assert rows.fetchall() == [(one.kind.label, *(getattr(one, name) for name in numbers)) for one in recording]
    texts = duck.execute("select comm, path, path2 from events").fetchall()
    assert texts == [tuple(printable(text) or None for text in (one.comm, one.path, one.path2)) for one in recording]
    belongs = duck.execute("select run, phase, kind, path from events where run is not null").fetchall()
    assert Counter(belongs) == Counter(
        (number, phase, event.kind.label, printable(event.path) or None)
        for number, run in enumerate(report.runs)
        for phase, event in run.events
    )
    assert duck.execute("select count(*) from events where (run is null) <> (phase is null)").fetchall() == [(0,)]


def test_a_query_over_both_tables_gives_the_reports_counts(exported):
    report, duck = exported("functions")
    counted = duck.execute(
        """select p.run, p.phase, any_value(p.syscalls), count(e.kind)
           from phases p left join events e
             on e.run = p.run and e.phase = p.phase
             and not regexp_matches(e.kind, '^(sched|function|inotify)')
           group by all"""
    ).fetchall()
    assert sum(row[2] for row in counted) == sum(span.syscalls for run in report.runs for span in run.phases) > 300
    assert [row for row in counted if row[2] != row[3]] == []


def test_arguments_are_a_list_and_functions_have_names(exported):
    _, duck = exported("functions")
    (hook,) = duck.execute(
        "select arguments from events"
        " where kind = 'sched_process_exec' and list_contains(arguments, 'libnetwork-setkey')"
    ).fetchall()
    assert hook[0][0] == "libnetwork-setkey"
    assert duck.execute("select count(*) from events where detail like '%setkey%'").fetchall() == [(0,)]
    named = duck.execute("select kind, count(*), count(function) from events where kind like 'function%' group by 1")
    assert all(count == with_name > 0 for _, count, with_name in named.fetchall())
    assert duck.execute("select count(function) from events where kind not like 'function%'").fetchall() == [(0,)]
    assert ("overlay",) in duck.execute("select distinct detail from events where kind = 'mount'").fetchall()


def test_the_files_describe_themselves(exported, tmp_path):
    exported("losses")
    for table, columns in (("phases", parquet.PHASE_COLUMNS), ("events", parquet.EVENT_COLUMNS)):
        schema = pq.read_schema(tmp_path / "out" / "tables" / f"{table}.parquet")
        assert schema.names == [column.name for column in columns]
        for column in columns:
            metadata = schema.field(column.name).metadata
            assert metadata[b"description"].decode() == column.description != ""
            assert metadata.get(b"unit", b"").decode() == column.unit
            assert (column.unit != "") >= column.name.endswith("_ns")
        about = json.loads(schema.metadata[b"observe"])
        assert about["loss"]["ring_buffer"] == 7
        assert about["engine"]["version"] == "20.10.24"


def test_an_empty_recording_has_the_same_columns_and_types(exported):
    types = []
    for name in ("empty", "functions"):
        _, duck = exported(name)
        types.append([duck.execute(f"describe {table}").fetchall() for table in ("phases", "events")])
    assert types[0] == types[1]


# Whose event ------------------------------------------------------------------------------------------------


def table_of(items):
    """The table of a stream, and the runs that it was made for."""
    from streams import correlate, header

    from observe.correlate import Correlator

    correlator = Correlator(header(), load(), keep_events=True)
    runs = [run for item in items for run in correlator.feed(item)] + correlator.finish()
    assert len(runs) == len(correlate(items, header())[0])
    return events.table(items, runs), runs


def test_events_at_the_same_nanosecond_are_told_apart_by_thread_and_kind():
    made = create(1, SECOND)
    strangers = [Event(event.time_ns, Kind.FSYNC, tid=99, pid=99) for event in made]
    others = [Event(event.time_ns, Kind.CHROOT, tid=event.tid, pid=event.pid) for event in made]
    # In the file, they stand before those that belong to the run.
    items = [EventBatch.of([*strangers, *others]), *stream(made)]
    table, (run,) = table_of(items)
    owned = table.events.rows[table.run == 0]
    assert len(owned) == len(run.events) > 0
    assert not {99} & set(owned["tid"].tolist())
    assert not {Kind.CHROOT} & set(owned["kind"].tolist())


def test_a_file_event_that_was_told_before_the_call_is_not_its():
    made = create(1, SECOND)
    call = next(event for event in made if event.path.endswith("/checkpoints"))
    early = told(call.path, IN_CREATE | 0x40000000, SECOND // 2)
    late = told(call.path, IN_CREATE | 0x40000000, call.end_ns + 1)
    invented = told(call.path, IN_CREATE | 0x40000000, call.end_ns, Mark.INVENTED)
    table, (run,) = table_of(stream([early], [*made, invented, late], identity(1, 2 * SECOND)))
    assert [event.kind for _, event in run.events].count(Kind.INOTIFY) == 1
    files = table.events.rows["kind"] == Kind.INOTIFY
    owned = table.events.rows[files & (table.run == 0)]
    assert owned["time_ns"].tolist() == [late.time_ns]


# csv --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_csv_has_a_line_an_event_with_its_run_and_phase(name, tmp_path):
    path, out = situation(name, tmp_path), tmp_path / "events.csv"
    assert main(["export", str(path), "-t", "csv", "-o", str(out)]) == 0
    raw = out.read_bytes()
    rows = list(csv.DictReader(raw.decode().splitlines()))
    recording = list(Recording.open(path).events())
    assert raw.count(b"\n") == raw.count(b"\r\n") == len(recording) + 1 == len(rows) + 1
    for row, event in zip(rows, recording, strict=True):
        assert (int(row["time_ns"]), row["kind"], int(row["ret"])) == (event.time_ns, event.kind.label, event.ret)
        assert row["path"] == spreadsheet_safe(event.path)
    report, _ = assemble(path, load(), keep_events=True)
    belongs = Counter((row["run"], row["phase"]) for row in rows if row["run"])
    assert belongs == Counter((str(n), phase) for n, run in enumerate(report.runs) for phase, _ in run.events)


def test_the_csv_shows_arguments_as_a_shell_takes_them(tmp_path):
    out = tmp_path / "events.csv"
    main(["export", str(situation("hostile", tmp_path)), "-t", "csv", "-o", str(out)])
    rows = list(csv.DictReader(out.read_text().splitlines()))
    (program,) = [row for row in rows if row["pid"] == "77"]
    quoted = printable(f"'{BAD_NAME}'")
    assert program["detail"] == f"'{quoted} {quoted}"  # a leading apostrophe is doubled, as in the report's csv
    assert out.read_text().replace("\n", "").isprintable()


# docs/export.md ---------------------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


@pytest.mark.parametrize("query", re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL))
def test_the_documents_queries_run(query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(situation("three-at-once", tmp_path)), "-t", "parquet", "-o", "tables"]) == 0
    rows = duckdb.connect().execute(query).fetchall()
    assert len(rows) >= 5
    if "ORDER BY ms" in query:
        for row in rows:
            assert "  ".join(map(str, row)) in re.sub(" {2,}", "  ", DOCUMENT)


@pytest.mark.parametrize("columns", [parquet.PHASE_COLUMNS, parquet.EVENT_COLUMNS])
def test_the_document_describes_every_column(columns):
    described = [
        (name, unit, text) for name, unit, text in re.findall(r"\| `(\w+)` \| [^|]+ \| ([^|]*) \| ([^|]*) \|", DOCUMENT)
    ]
    assert {(column.name, column.unit, column.description) for column in columns} <= set(described)
