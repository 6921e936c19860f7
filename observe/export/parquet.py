# SPDX-License-Identifier: Apache-2.0
"""Two tables in Parquet (zstd), for DuckDB, Spark, pandas: one row a phase a run, and one row an event.

Each column has its `unit` and `description` in the metadata of its field; the key `observe` of the file's metadata is
JSON: host, engine, loss, version. `run` numbers the runs as the JSON report lists them. Text is printable UTF-8; text
that is unknown or empty is null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from observe import __version__
from observe.escape import printable
from observe.export import Recorded
from observe.export.events import EventTable, Texts
from observe.export.programs import EXECS, arguments
from observe.model import Run, Span

_BOOT = "ns of the boot clock"
_TEXT = pa.dictionary(pa.int32(), pa.string())
_PIECES = pa.list_(pa.struct([("start_ns", pa.int64()), ("duration_ns", pa.int64())]))
_ARGUMENTS = pa.list_(pa.string())


class Column(NamedTuple):
    """One column: its name, its type, its unit ("" if it has none), what it holds, and where a row has that."""

    name: str
    type: pa.DataType
    unit: str
    description: str
    value: str = ""


class _Origin(NamedTuple):
    """Where the runs come from."""

    hostname: Any
    kernel: Any
    engine_version: Any
    storage_driver: Any


class _PhaseRow(NamedTuple):
    """What the columns of a phase's row are taken from."""

    number: int
    run: Run
    span: Span
    origin: _Origin


PHASE_COLUMNS = (
    Column("run", pa.int32(), "", "number of the run, from 0, in time order", "number"),
    Column("operation", _TEXT, "", "create, start …", "run.operation"),
    Column("container_id", _TEXT, "", "64 hexadecimal digits", "run.container_id"),
    Column("container_name", _TEXT, "", "name of the container", "run.container_name"),
    Column("image", _TEXT, "", "image, as the user named it", "run.image"),
    Column("network", _TEXT, "", "network mode", "run.network"),
    Column("outcome", _TEXT, "", "ok, failed or unfinished", "run.outcome"),
    Column("error", _TEXT, "", "what the engine answered, if it was not ok", "run.error"),
    Column("run_start_ns", pa.int64(), _BOOT, "when the request came", "run.start_ns"),
    Column("run_wall_time_ns", pa.int64(), "ns since the epoch", "the same; 0: unknown", "run.wall_time_ns"),
    Column("run_duration_ns", pa.int64(), "ns", "request to answer; 0: a log without times", "run.duration_ns"),
    Column("run_unattributed_ns", pa.int64(), "ns", "of it in no phase", "run.unattributed_ns"),
    Column("phase", _TEXT, "", "id of the phase; the operation's own row is the first of a run", "span.id"),
    Column("parent", _TEXT, "", "the phase that it is part of; null in the operation's own row", "span.parent"),
    Column("step", _TEXT, "", "section and step of the walk-through of moby 19.03", "span.step"),
    Column("start_ns", pa.int64(), _BOOT, "when it began; null: not seen", "span.start_ns"),
    Column("duration_ns", pa.int64(), "ns", "sum of its pieces; null: not seen", "span.duration_ns"),
    Column("self_ns", pa.int64(), "ns", "in which it is the innermost phase; they sum to the run's", "span.self_ns"),
    Column("corrected_self_ns", pa.int64(), "ns", "self_ns without what probes cost", "span.corrected_self_ns"),
    Column("evidence", _TEXT, "", "function, kernel or none: what its times stand on", "span.evidence.value"),
    Column("at_floor", pa.bool_(), "", "so short that it measures its probes only", "span.at_floor"),
    Column("syscalls", pa.int64(), "count", "with this phase as the innermost one", "span.syscalls"),
    Column("file_events", pa.int64(), "count", "with this phase as the innermost one", "span.file_events"),
    Column("probe_hits", pa.int64(), "count", "with this phase as the innermost one", "span.probe_hits"),
    Column("pieces", _PIECES, "ns", "when it ran, if not in one piece; else empty", "span.pieces"),
    Column("hostname", _TEXT, "", "host that was recorded", "origin.hostname"),
    Column("kernel", _TEXT, "", "its kernel", "origin.kernel"),
    Column("engine_version", _TEXT, "", "version of dockerd", "origin.engine_version"),
    Column("storage_driver", _TEXT, "", "storage driver of dockerd", "origin.storage_driver"),
)

_RET = (
    "return value, negative errno on failure; child of a fork; thread that called the exec; HTTP status of an answer; "
    "cookie of an inotify move; of a function: bytes from its goroutine's stack's end to its frame, 0: unknown"
)
_FLAGS = (
    "flags of a call, operation of a seccomp, netlink message of a sendto; mask of an inotify event; "
    "of a function: its number, below 16 bits (Go before 1.17: the stack pointer above)"
)

EVENT_COLUMNS = (
    Column("run", pa.int32(), "", "number of the run, as in the phases; null: of no operation"),
    Column("phase", _TEXT, "", "the innermost phase; null: of no operation"),
    Column("time_ns", pa.int64(), _BOOT, "entry of a system call, the moment of everything else"),
    Column("duration_ns", pa.int64(), "ns", "entry to return of a system call; else 0"),
    Column("kind", _TEXT, "", "the kernel's name of it: mount, sched_process_exec; api_request, inotify …"),
    Column("function", _TEXT, "", "the Go function of a function_entry or function_return"),
    Column("goroutine", pa.uint64(), "", "Go's g pointer; 0: unknown"),
    Column("ret", pa.int64(), "", _RET),
    Column("flags", pa.uint64(), "", _FLAGS),
    Column("pid", pa.uint32(), "", "process, in the initial pid namespace; 0: unknown"),
    Column("tid", pa.uint32(), "", "thread, in the initial pid namespace; 0: unknown"),
    Column("fd", pa.int32(), "", "descriptor argument; -1: none"),
    Column("comm", _TEXT, "", "name of the thread"),
    Column("path", _TEXT, "", "what is acted upon: mount target, new name, file, program"),
    Column("path2", _TEXT, "", "the other one: mount source, old name"),
    Column("detail", _TEXT, "", "file system type, host name"),
    Column("arguments", _ARGUMENTS, "", "arguments of an exec"),
    Column("marks", pa.uint16(), "", "bits of observe.model.Mark"),
)


def phases(recorded: Recorded) -> bytes:
    """The table of phases as a file: the rows of the JSON report, in its order."""
    host, engine = recorded.host, recorded.engine
    origin = _Origin(host.get("hostname"), host.get("kernel"), engine.get("version"), engine.get("storage_driver"))
    rows = [_PhaseRow(number, run, span, origin) for number, run in enumerate(recorded.runs) for span in run.phases]
    return _file([_of_rows(column, rows) for column in PHASE_COLUMNS], PHASE_COLUMNS, recorded)


def events(table: EventTable, recorded: Recorded) -> bytes:
    """The table of events as a file, in the order of the recording."""
    return _file([_of_events(column, table) for column in EVENT_COLUMNS], EVENT_COLUMNS, recorded)


def _file(arrays: Sequence[pa.Array], columns: Sequence[Column], recorded: Recorded) -> bytes:
    about = {
        "host": dict(recorded.host),
        "engine": dict(recorded.engine),
        "loss": asdict(recorded.loss),
        "version": __version__,
    }
    schema = pa.schema([_field(column) for column in columns], metadata={"observe": json.dumps(about)})
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), out, compression="zstd")
    data: bytes = out.getvalue().to_pybytes()
    return data


def _field(column: Column) -> pa.Field:
    unit = {"unit": column.unit} if column.unit else {}
    return pa.field(column.name, column.type, metadata={**unit, "description": column.description})


def _of_rows(column: Column, rows: Sequence[_PhaseRow]) -> pa.Array:
    values = [*map(attrgetter(column.value), rows)]
    if column.type == _TEXT:
        return pa.array([printable(str(value)) if value else None for value in values], pa.string()).dictionary_encode()
    return pa.array(values, column.type)


def _of_events(column: Column, table: EventTable) -> pa.Array:
    rows = table.events.rows
    if column.name == "run":
        return pa.array(table.run, column.type, mask=table.run < 0)
    # The arguments of an exec are a list; whatever else is a detail is one text.
    is_exec = np.isin(rows["kind"], [*EXECS])
    if column.name == "arguments":
        return _arguments(table.texts("detail"), is_exec)
    if column.type == _TEXT:
        texts = table.texts(column.name)
        return _dictionary(texts, is_exec if column.name == "detail" else np.zeros(len(rows), dtype=bool))
    return pa.array(rows[column.name].astype(column.type.to_pandas_dtype()), column.type)


def _dictionary(texts: Texts, hidden: npt.NDArray[np.bool_]) -> pa.DictionaryArray:
    """Printable texts, those that occur as the dictionary; null where hidden or empty."""
    used, place = _places(texts.codes)
    values = [printable(texts.values[code]) for code in used]
    empty = np.array([not value for value in values], dtype=bool)
    return pa.DictionaryArray.from_arrays(pa.array(place, mask=hidden | empty[place]), pa.array(values, pa.string()))


def _arguments(details: Texts, is_exec: npt.NDArray[np.bool_]) -> pa.Array:
    used, place = _places(np.where(is_exec, details.codes, 0))
    values = [[printable(text) for text in arguments(details.values[code])] for code in used]
    return pa.array(values, _ARGUMENTS).take(pa.array(place, mask=~is_exec))


def _places(codes: npt.NDArray[Any]) -> tuple[list[int], npt.NDArray[np.int32]]:
    """The codes that occur, in order, and the place of each one among them."""
    used = np.flatnonzero(np.bincount(codes))
    place = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.int32)
    place[used] = np.arange(len(used), dtype=np.int32)
    return used.tolist(), place[codes]
