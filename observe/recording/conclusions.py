# SPDX-License-Identifier: Apache-2.0
r"""What was concluded from a recording, kept at its end so that a report need not conclude it again: no files.

Payloads of frames, in order, each a JSON object, compressed, behind its size::

    payload := size:u32  zlib(JSON)
    first   := {"stamp", "of", "parts", "loss", "warnings", "functions", "refused", "left"}
    part    := {"runs", "departures", "phases"}
    details := {"configurations", "functions", "calls"}

`stamp` names the code that concluded; `of` is the fingerprint of the recording (`Recording.fingerprint`), so that no
frame of it can have been added, taken away or exchanged since. Each part has some runs as columns, and what each has
several of as [how many of each run, columns]; its details, which most reports do not look at, follow it. A column of
numbers is a list, any other [distinct values, place of each row's].
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import Any, Generic, NoReturn, TypeVar

from observe.errors import RecordingError
from observe.model import Calls, Conclusions, Departure, DepartureKind, Evidence, FunctionCall, Kind, Loss, Run, Span
from observe.recording import format as layout

#: Runs of one part at most: some megabyte of JSON; fewer if it would be longer than a reader takes.
_RUNS = 200
#: Phases, calls and so on of all runs of one part at most; fewer runs if they have more.
_ROWS = 100 * _RUNS
_INT64 = range(-(2**63), 2**63)
_SIZE = struct.Struct("<I")
_Row = TypeVar("_Row")


def encode_conclusions(conclusions: Conclusions, stamp: str, of: int) -> Iterator[bytes]:
    """Payloads of the frames, for a recording with the fingerprint `of`.

    Raises RecordingError if one of a single run, or the first, is too large to be read, ValueError if runs have what is
    not kept: events, causes.
    """
    runs = conclusions.runs
    if any(run.events or run.causes or run.path for run in runs):
        raise ValueError("events and causes are not kept")
    parts = [part for at in range(0, len(runs), _RUNS) for part in _parts(runs[at : at + _RUNS])]
    yield _packed(
        {
            "stamp": stamp,
            "of": of,
            "parts": len(parts),
            "loss": _values(conclusions.loss),
            "warnings": conclusions.warnings,
            "functions": conclusions.functions,
            "refused": conclusions.refused,
            "left": conclusions.left,
        }
    )
    yield from chain.from_iterable(parts)


def decode_conclusions(payloads: Iterable[bytes], stamp: str, of: int, *, details: bool) -> Conclusions | None:
    """What `encode_conclusions` made of the same stamp and fingerprint; None if it is of others, or cannot be that.

    Takes one payload after the other, and none behind the first that does not fit. Without `details`, runs have no
    configuration, functions and calls.
    """
    rest = iter(payloads)
    runs: list[Run] = []
    try:
        first = _unpacked(next(rest))
        if (first["stamp"], first["of"]) != (stamp, of):
            return None
        for _ in range(_number(first["parts"])):
            part, more = next(rest), next(rest)
            runs += _runs(_unpacked(part), _unpacked(more) if details else None)
        if next(rest, None) is not None:
            return None
        return Conclusions(
            runs=tuple(runs),
            loss=Loss(**{name: _number(count) for name, count in first["loss"].items()}),
            warnings=tuple(map(_text, first["warnings"])),
            functions={phase: tuple(map(_text, names)) for phase, names in first["functions"].items()},
            refused=tuple([dict(facts) for facts in first["refused"]]),
            left={reason: _number(count) for reason, count in first["left"].items()},
        )
    except (AttributeError, IndexError, KeyError, RecordingError, TypeError, ValueError, struct.error, zlib.error):
        return None
    except StopIteration:  # fewer parts than the first says
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _refused(value)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _number(value: Any) -> int:
    # A larger one is no time, and an error where it meets a float.
    return value if isinstance(value, int) and value in _INT64 else _refused(value)


def _number_or_none(value: Any) -> int | None:
    return None if value is None else _number(value)


def _pieces(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple([(_number(start_ns), _number(duration_ns)) for start_ns, duration_ns in value])


#: Columns as they are → the types in them.
_OF_NUMBERS: Mapping[Callable[[Any], Any], frozenset[type]] = {
    _number: frozenset({int, bool}),
    _number_or_none: frozenset({int, type(None)}),
}


def _refused(value: Any) -> NoReturn:
    raise ValueError(f"a {type(value).__name__} that was never concluded")


@dataclass(frozen=True, slots=True)
class _Table(Generic[_Row]):
    """Rows of a dataclass as columns, one for each of its first fields; the other fields keep their defaults."""

    row: Callable[..., _Row]
    #: Field, in the dataclass's order → what makes its value of what JSON has of it.
    fields: Mapping[str, Callable[[Any], Any]]

    def columns(self, rows: Sequence[_Row]) -> dict[str, Any]:
        """Of these rows. Raises RecordingError if they are more, or have other numbers, than are read again."""
        return {name: _column([getattr(row, name) for row in rows], value) for name, value in self.fields.items()}

    def lists(self, columns: Mapping[str, Any], most: int) -> list[list[Any]]:
        """The values of each column, at most so many. Raises ValueError, KeyError, IndexError or TypeError if none."""
        return [_list(columns[name], value, most) for name, value in self.fields.items()]


def _fit(numbers: Sequence[int | None]) -> bool:
    known = [number for number in numbers if number is not None]
    return min(known, default=0) in _INT64 and max(known, default=0) in _INT64


def _column(values: list[Any], value: Callable[[Any], Any]) -> list[Any]:
    if len(values) > _ROWS or (value in _OF_NUMBERS and not _fit(values)):
        raise RecordingError(f"more than {_ROWS} rows, or a number of more than 64 bits, cannot be kept")
    if value in _OF_NUMBERS:
        return values
    places = {one: place for place, one in enumerate(dict.fromkeys(values))}
    if value is _pieces and sum(map(len, places)) > _ROWS:
        raise RecordingError(f"more than {_ROWS} pieces cannot be kept")
    return [list(places), [places[one] for one in values]]


def _list(column: Any, value: Callable[[Any], Any], most: int) -> list[Any]:
    if value in _OF_NUMBERS:
        fits = len(column) <= most and set(map(type, column)) <= _OF_NUMBERS[value] and _fit(column)
        return list(column) if fits else _refused(column)
    distinct, places = column
    if max(len(distinct), len(places)) > most or (value is _pieces and sum(map(len, distinct)) > most):
        return _refused(column)
    values = list(map(value, distinct))
    return [values[place] for place in places]


_RUN = _Table(
    Run,
    {
        "operation": _text,
        **dict.fromkeys(("container_id", "container_name", "image", "network"), _text_or_none),
        "outcome": _text,
        "error": _text_or_none,
        **dict.fromkeys(("start_ns", "wall_time_ns", "duration_ns", "unattributed_ns"), _number),
    },
)
_SPAN = _Table(
    Span,
    {
        "id": _text,
        "parent": _text_or_none,
        "step": _text,
        **dict.fromkeys(("start_ns", "duration_ns", "self_ns"), _number_or_none),
        "evidence": Evidence,
        **dict.fromkeys(("syscalls", "file_events", "probe_hits"), _number),
        "corrected_self_ns": _number_or_none,
        "pieces": _pieces,
    },
)
_DEPARTURE = _Table(Departure, {"kind": DepartureKind, "phase": _text, "text": _text})
_FUNCTION_CALL = _Table(
    FunctionCall,
    {"name": _text, **dict.fromkeys(("pid", "start_ns", "duration_ns", "complete"), _number)},
)
_CALLS = _Table(Calls, {"phase": _text, "kind": Kind, **dict.fromkeys(("count", "duration_ns"), _number)})
#: What a run has several of, in its order.
_SHOWN: Mapping[str, _Table[Any]] = {"departures": _DEPARTURE, "phases": _SPAN}
_DETAILS: Mapping[str, _Table[Any]] = {"functions": _FUNCTION_CALL, "calls": _CALLS}


def _parts(runs: Sequence[Run]) -> Iterator[tuple[bytes, bytes]]:
    """Payloads of these runs, with their details: in halves if they are more than is read at once.

    Raises RecordingError if those of a single run are.
    """
    try:
        part = (
            _packed({"runs": _RUN.columns(runs), **_nested(runs, _SHOWN)}),
            _packed({"configurations": [run.configuration for run in runs], **_nested(runs, _DETAILS)}),
        )
    except RecordingError:
        middle = len(runs) // 2
        if not middle:
            raise
        yield from _parts(runs[:middle])
        yield from _parts(runs[middle:])
    else:
        yield part


def _nested(runs: Sequence[Run], tables: Mapping[str, _Table[Any]]) -> dict[str, Any]:
    found = {}
    for name, table in tables.items():
        rows = [getattr(run, name) for run in runs]
        found[name] = [list(map(len, rows)), table.columns(list(chain.from_iterable(rows)))]
    return found


def _runs(part: Mapping[str, Any], details: Mapping[str, Any] | None) -> list[Run]:
    """The runs of a part. Raises like `_Table.lists`."""
    columns = [*_RUN.lists(part["runs"], _RUNS), *(_several(table, *part[name]) for name, table in _SHOWN.items())]
    if details is not None:
        columns.append(list(map(dict, details["configurations"])))
        columns += [_several(table, *details[name]) for name, table in _DETAILS.items()]
    if len(set(map(len, columns))) != 1:
        raise ValueError("columns of different lengths")
    return list(map(Run, *columns))


def _several(table: _Table[_Row], counts: list[int], columns: Mapping[str, Any]) -> list[tuple[_Row, ...]]:
    """Rows by run. Raises like `_Table.lists`."""
    lists = table.lists(columns, _ROWS)
    if set(map(len, lists)) != {sum(counts)}:
        raise ValueError("columns of different lengths")
    rows = map(table.row, *lists)
    return [tuple(islice(rows, count)) for count in counts]


def _values(loss: Loss) -> dict[str, int]:
    return {one.name: getattr(loss, one.name) for one in fields(loss)}


def _packed(value: Mapping[str, Any]) -> bytes:
    data = layout.to_json(value)
    return _SIZE.pack(len(data)) + layout.deflate(data)


def _unpacked(payload: bytes) -> dict[str, Any]:
    (size_bytes,) = _SIZE.unpack_from(payload)
    if size_bytes > layout.MAX_JSON_BYTES:
        raise ValueError("larger than anything that is written")
    return layout.from_json(layout.inflate(memoryview(payload)[_SIZE.size :], size_bytes))
