# SPDX-License-Identifier: Apache-2.0
r"""Layout of a recording: bytes to values and back, no files.

All numbers are little endian::

    file    := prelude frame*
    prelude := "\x89OBS\r\n\x1a\n"  version:u32  crc32(what stands before it):u32
    frame   := "\xffOF\xfe"  kind:u32  length:u32  crc32(kind, length, payload):u32  payload

The first frame is the header, the end note says that the recorder stopped on purpose. Header and
notes are JSON. Events are columns, each with its bytes shuffled (all first bytes, all second bytes …)
and compressed on its own, and the frame's own string table, so that a frame needs no other frame::

    events      := size:u32  description:JSON  column*  string lengths  string text
    description := {"rows": n, "columns": [[name, dtype, stored bytes], …],
                    "strings": [count, stored bytes of the lengths, text bytes, stored bytes of the text]}

Names and dtypes travel with the data: a column that this version does not know is ignored, one that is
missing is filled with zero. So columns are added without a new format version; it rises only when an
old reader would misread the file.

Behind the end note may stand what a correlator concluded from all of it (`recording/conclusions.py`).
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from itertools import accumulate, compress, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from observe.errors import RecordingError
from observe.model import EVENT_DTYPE, STRING_COLUMNS, EventBatch, Header, Note, NoteKind

FORMAT_VERSION = 1
FILE_MAGIC = b"\x89OBS\r\n\x1a\n"
#: 0xff and 0xfe never occur in UTF-8, so no text in a frame looks like the next frame.
FRAME_MAGIC = b"\xffOF\xfe"

#: Rows of one events frame at most: what the writer buffers, and what a reader has to believe.
MAX_ROWS = 10_000
#: Text of one events frame at most, uncompressed.
MAX_TEXT_BYTES = 32 << 20
#: Header, note or description at most.
MAX_JSON_BYTES = 8 << 20
#: Payload of a frame at most; a length beyond it is a lie.
MAX_PAYLOAD_BYTES = MAX_TEXT_BYTES + MAX_JSON_BYTES

_PRELUDE = struct.Struct("<8sI")
_FRAME = struct.Struct("<4sII")
_U32 = struct.Struct("<I")
PRELUDE_BYTES = _PRELUDE.size + _U32.size
FRAME_HEAD_BYTES = _FRAME.size + _U32.size

_COMPRESSION_LEVEL = 1
_LENGTH_DTYPE = np.dtype("<u4")
_NUMBER = re.compile(r"[<|][iuf][1248]")
_NAMES = EVENT_DTYPE.names or ()


class FrameKind(IntEnum):
    """What a frame holds. Never renumber, only append: a reader leaves out kinds that it does not know."""

    HEADER = 1
    EVENTS = 2
    NOTE = 3
    CONCLUSIONS = 4


#: What every frame of conclusions begins with.
CONCLUSIONS_START = FRAME_MAGIC + _U32.pack(FrameKind.CONCLUSIONS)


@dataclass(frozen=True, slots=True)
class FrameHead:
    """The fixed part before a payload; `kind` may be one that this version does not know."""

    kind: int
    length_bytes: int
    crc32: int

    def fits(self, payload: bytes) -> bool:
        """Whether this is the payload that was written under this head."""
        return len(payload) == self.length_bytes and _frame_crc(self.kind, payload) == self.crc32


@dataclass(frozen=True, slots=True)
class Columns:
    """One events frame: every column of EVENT_DTYPE by name, shape (n,), and the string table."""

    by_name: Mapping[str, npt.NDArray[Any]]
    strings: tuple[str, ...]

    def __len__(self) -> int:
        """Number of events."""
        return len(self.by_name["time_ns"])

    def batch(self) -> EventBatch:
        """The same as rows."""
        rows = np.empty(len(self), dtype=EVENT_DTYPE)
        for name in _NAMES:
            rows[name] = self.by_name[name]
        return EventBatch(rows, self.strings)


def chained(fingerprint: int, crc: int) -> int:
    """The fingerprint of some frames and, behind them, one with this checksum."""
    return zlib.crc32(_U32.pack(crc), fingerprint)


def pack_prelude(version: int = FORMAT_VERSION) -> bytes:
    """The first PRELUDE_BYTES of a file."""
    start = _PRELUDE.pack(FILE_MAGIC, version)
    return start + _U32.pack(zlib.crc32(start))


def check_prelude(data: bytes) -> None:
    """Whether `data`, the first PRELUDE_BYTES of a file, starts a recording of a version that this code can read.

    Raises RecordingError: empty, foreign, damaged or cut at its very start, or newer.
    """
    if not data:
        raise RecordingError("the file is empty: nothing was recorded into it; record again")
    if not data.startswith(FILE_MAGIC[: len(data)]):
        raise RecordingError("not a recording of observe; a log of inotifywait needs `observe import inotifywait`")
    if len(data) < PRELUDE_BYTES:
        raise RecordingError("its header is unreadable: the file ends inside it; record again")
    if zlib.crc32(data[: _PRELUDE.size]) != _U32.unpack(data[_PRELUDE.size : PRELUDE_BYTES])[0]:
        raise RecordingError("its header is unreadable: the first bytes are damaged; take another copy")
    version = _PRELUDE.unpack(data[: _PRELUDE.size])[1]
    if version > FORMAT_VERSION:
        raise RecordingError(
            f"it has format version {version} and this observe reads up to {FORMAT_VERSION}; update observe"
        )


def pack_frame(kind: FrameKind, payload: bytes) -> bytes:
    """Head and payload. Raises RecordingError if the payload is too large for any reader."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise RecordingError(
            f"{len(payload)} bytes do not fit into one frame of {MAX_PAYLOAD_BYTES}; record less of it"
        )
    return b"".join((_frame_start(kind, payload), _U32.pack(_frame_crc(kind, payload)), payload))


def unpack_frame_head(data: bytes) -> FrameHead | None:
    """The head that `data` starts with; None if it is none, or claims a length that no writer writes."""
    if len(data) < FRAME_HEAD_BYTES:
        return None
    magic, kind, length_bytes = _FRAME.unpack_from(data)
    if magic != FRAME_MAGIC or length_bytes > MAX_PAYLOAD_BYTES:
        return None
    return FrameHead(kind, length_bytes, _U32.unpack_from(data, _FRAME.size)[0])


def encode_header(header: Header) -> bytes:
    """Payload of the header frame."""
    return to_json({field.name: getattr(header, field.name) for field in fields(Header)})


def decode_header(payload: bytes) -> Header:
    """Header of its payload; keys of later versions are ignored. Raises RecordingError if it cannot be one."""
    data = from_json(payload)
    try:
        header = Header(**{field.name: data[field.name] for field in fields(Header)})
    except KeyError as error:
        raise RecordingError(f"header without {error.args[0]}") from error
    numbers = (header.boot_time_ns, header.wall_time_ns)
    tables = (header.host, header.engine, header.options)
    if not (
        all(isinstance(number, int) for number in numbers)
        and all(isinstance(table, dict) for table in tables)
        and isinstance(header.tool_version, str)
    ):
        raise RecordingError("header with a value of a wrong type")
    return header


def encode_note(note: Note) -> bytes:
    """Payload of a note frame: JSON, so tuples come back as lists and keys as strings."""
    return to_json({"kind": note.kind.value, "time_ns": note.time_ns, "data": note.data})


def decode_note(payload: bytes) -> Note | None:
    """Note of its payload; None if its kind is one of a later version. Raises RecordingError if it cannot be one."""
    data = from_json(payload)
    kind, time_ns, facts = data.get("kind"), data.get("time_ns"), data.get("data")
    if not (isinstance(kind, str) and isinstance(time_ns, int) and isinstance(facts, dict)):
        raise RecordingError("note without kind, time_ns or data")
    if kind not in set(NoteKind):
        return None
    return Note(NoteKind(kind), time_ns, facts)


def encode_events(batch: EventBatch) -> Iterator[bytes]:
    """Payloads of events frames, in order: as many as keep each within MAX_ROWS and MAX_TEXT_BYTES; none of no events.

    Raises RecordingError if the strings of a single event are longer than MAX_TEXT_BYTES.
    """
    for start in range(0, len(batch), MAX_ROWS):
        yield from _encode_part(EventBatch(batch.rows[start : start + MAX_ROWS], batch.strings))


def decode_events(payload: bytes) -> Columns:
    """Columns of one events payload. Raises RecordingError if it contradicts itself; allocates within the limits."""
    parts = _Parts(payload)
    try:
        description = _description(parts)
        values = _decode_columns(parts, description["columns"], _count(description["rows"], MAX_ROWS), _NAMES)
        strings = _decode_strings(parts, *description["strings"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise RecordingError(f"events that do not fit their description: {error}") from error
    if any(values[name].max() >= len(strings) for name in STRING_COLUMNS):
        raise RecordingError("events with a string that is not in their table")
    return Columns(values, strings)


def decode_times(payload: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """When each event of a payload began and ended, boot clock, shape (n,), at a fraction of the price of all columns.

    Raises RecordingError like `decode_events`.
    """
    parts = _Parts(payload)
    try:
        description = _description(parts)
        rows = _count(description["rows"], MAX_ROWS)
        values = _decode_columns(parts, description["columns"], rows, ("time_ns", "duration_ns"))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise RecordingError(f"events that do not fit their description: {error}") from error
    return values["time_ns"], values["time_ns"] + values["duration_ns"]


def _description(parts: _Parts) -> dict[str, Any]:
    return from_json(parts.take(_U32.unpack(parts.take(_U32.size))[0]))


def _encode_part(part: EventBatch) -> Iterator[bytes]:
    own = _with_own_strings(part)
    text = "".join(own.strings).encode("utf-8", "surrogatepass")
    if len(text) <= MAX_TEXT_BYTES:
        yield _encode_frame(own, text)
    elif len(own) > 1:
        middle = len(own) // 2
        yield from _encode_part(EventBatch(own.rows[:middle], own.strings))
        yield from _encode_part(EventBatch(own.rows[middle:], own.strings))
    else:
        raise RecordingError(f"one event has {len(text)} bytes of text; at most {MAX_TEXT_BYTES} can be recorded")


def _with_own_strings(part: EventBatch) -> EventBatch:
    """The same events with a table of only the strings that they use (and the empty one)."""
    used = np.zeros(len(part.strings), dtype=bool)
    used[0] = True
    for name in STRING_COLUMNS:
        used[part.rows[name]] = True
    place = np.cumsum(used, dtype="<u4") - np.uint32(1)
    rows = part.rows.copy()
    for name in STRING_COLUMNS:
        rows[name] = place[rows[name]]
    return EventBatch(rows, tuple(compress(part.strings, used.tolist())))


def _encode_frame(own: EventBatch, text: bytes) -> bytes:
    columns = [(name, own.rows.dtype[name].str, deflate(_shuffle(own.rows[name]))) for name in _NAMES]
    lengths = deflate(_shuffle(np.array([len(string) for string in own.strings], dtype=_LENGTH_DTYPE)))
    stored_text = deflate(text)
    description = to_json(
        {
            "rows": len(own),
            "columns": [(name, dtype, len(stored)) for name, dtype, stored in columns],
            "strings": [len(own.strings), len(lengths), len(text), len(stored_text)],
        }
    )
    stored_columns = [stored for _, _, stored in columns]
    return b"".join((_U32.pack(len(description)), description, *stored_columns, lengths, stored_text))


def _decode_columns(
    parts: _Parts, described: list[Any], rows: int, names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """These columns of EVENT_DTYPE, shape (rows,); zero where nothing is described."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, dtype_text, stored_bytes in described:
        stored = parts.take(stored_bytes)
        if name not in names:
            continue
        wanted = EVENT_DTYPE[name]
        dtype = np.dtype(dtype_text) if _NUMBER.fullmatch(dtype_text) else np.dtype("V1")
        if name in found or not np.can_cast(dtype, wanted, "same_kind"):
            raise ValueError(f"column {name} twice or as {dtype_text!r}")
        found[name] = _unshuffle(inflate(stored, rows * dtype.itemsize), dtype).astype(wanted, copy=False)
    return {name: found[name] if name in found else np.zeros(rows, dtype=EVENT_DTYPE[name]) for name in names}


def _decode_strings(
    parts: _Parts, count: int, lengths_bytes: int, text_bytes: int, stored_bytes: int
) -> tuple[str, ...]:
    # An event names at most one string a string column, and every table has the empty string.
    size_bytes = _count(count, len(STRING_COLUMNS) * MAX_ROWS + 1) * _LENGTH_DTYPE.itemsize
    lengths = _unshuffle(inflate(parts.take(lengths_bytes), size_bytes), _LENGTH_DTYPE)
    stored = parts.take(stored_bytes)
    text = inflate(stored, _count(text_bytes, MAX_TEXT_BYTES, least=0)).decode("utf-8", "surrogatepass")
    ends = list(accumulate(lengths.tolist(), initial=0))
    if ends[-1] != len(text) or ends[1] != 0:
        raise ValueError("a wrong string table")
    # A list first: a tuple of a generator takes a third longer.
    return tuple([text[start:end] for start, end in pairwise(ends)])


def _count(value: Any, most: int, least: int = 1) -> int:
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{value!r} is not from {least} to {most}")
    return value


class _Parts:
    """Cuts a payload into its parts, front to back."""

    def __init__(self, payload: bytes) -> None:
        self._rest = memoryview(payload)

    def take(self, size_bytes: Any) -> memoryview:
        """The next `size_bytes`. Raises ValueError if there are not so many."""
        size_bytes = _count(size_bytes, len(self._rest), least=0)
        part, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        return part


def _shuffle(column: npt.NDArray[Any]) -> bytes:
    """All first bytes of the values, then all second bytes …: neighbours become alike."""
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1).T.tobytes()


def _unshuffle(data: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Values of what `_shuffle` made, shape (n,)."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)


def deflate(data: bytes) -> bytes:
    """Compressed as every part of a frame is."""
    return zlib.compress(data, _COMPRESSION_LEVEL)


def inflate(data: memoryview, size_bytes: int) -> bytes:
    """Exactly `size_bytes`. Raises ValueError if it is more or less, without inflating more."""
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, size_bytes + 1)
    if len(inflated) != size_bytes or not stream.eof:
        raise ValueError(f"not {size_bytes} bytes")
    return inflated


def to_json(value: Mapping[str, Any]) -> bytes:
    """One line of ASCII. Raises RecordingError if it is longer than a reader takes."""
    data = json.dumps(dict(value), separators=(",", ":"), default=_plain).encode("ascii")
    if len(data) > MAX_JSON_BYTES:
        raise RecordingError(f"a note of {len(data)} bytes cannot be recorded; at most {MAX_JSON_BYTES}")
    return data


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be recorded in a note")


def from_json(data: bytes | memoryview) -> dict[str, Any]:
    """The object in a text. Raises RecordingError if there is none, or too long a one."""
    if len(data) > MAX_JSON_BYTES:
        raise RecordingError(f"{len(data)} bytes of JSON where at most {MAX_JSON_BYTES} are written")
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RecordingError("JSON, but not an object")
    return value


def _frame_start(kind: int, payload: bytes) -> bytes:
    return _FRAME.pack(FRAME_MAGIC, kind, len(payload))


def _frame_crc(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_frame_start(kind, payload)[len(FRAME_MAGIC) :]))
