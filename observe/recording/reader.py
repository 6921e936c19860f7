# SPDX-License-Identifier: Apache-2.0
"""Read a recording: every whole frame of it, whatever happened to the rest."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from observe.errors import RecordingError
from observe.model import (
    EVENT_DTYPE,
    STRING_COLUMNS,
    Conclusions,
    Event,
    EventBatch,
    Header,
    Item,
    Kind,
    Note,
    NoteKind,
)
from observe.recording import format as layout
from observe.recording.conclusions import decode_conclusions

if TYPE_CHECKING:
    import pandas as pd

#: Whether to read a batch with events that began and ended then (ns of the boot clock, shape (n,)).
Wanted = Callable[[npt.NDArray[Any], npt.NDArray[Any]], bool]

_CHUNK_BYTES = 1 << 20
_KINDS = {kind.value: kind.label for kind in Kind}


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a file."""

    #: Bytes that belong to no readable frame, a cut one at the end included; not what is left of conclusions.
    damaged_bytes: int
    #: The end note is missing.
    truncated: bool
    #: One line each, for people.
    warnings: tuple[str, ...]


class Recording:
    """A recording on disk. Nothing is kept open: every pass reads the file as it is then."""

    def __init__(self, path: Path, header: Header, head: _Frame) -> None:
        """Use `Recording.open`. `head` is the frame that has the header."""
        self.path = path
        self.header = header
        self._head = head
        self._damage: Damage | None = None
        self._fingerprint: int | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """The recording in `path`.

        Raises RecordingError that names the file and says whether it is missing, not allowed, empty, foreign,
        newer than this code, or without a readable header.
        """
        with _opened(path) as fd:
            scan = _Scan(fd)
            try:
                layout.check_prelude(scan.read(0, layout.PRELUDE_BYTES))
                header, head = _header(scan.frame_at(layout.PRELUDE_BYTES))
            except RecordingError as error:
                raise RecordingError(f"cannot read {path}: {error}") from error
        return cls(path, header, head)

    def items(self, wanted: Wanted | None = None) -> Iterator[Item]:
        """Batches and notes in the order of the file; holds one frame at a time.

        Batches that are not `wanted` are left out, and hardly cost anything; such a pass is not a complete one. Damage
        is passed over and counted, never raised. Raises RecordingError only if the file is gone.
        """
        for content in self._contents(wanted):
            yield content if isinstance(content, Note) else content.batch()

    def events(self) -> EventBatch:
        """All events as one batch, in the order of the file. Raises like `items`."""
        return EventBatch.concat(item for item in self.items() if isinstance(item, EventBatch))

    @property
    def damage(self) -> Damage:
        """What the last complete pass found; makes one if there was none. Raises like `items`."""
        return self.check() if self._damage is None else self._damage

    @property
    def fingerprint(self) -> int:
        """Checksum of the checksums of all frames that were recorded, as `damage` of the last complete pass."""
        if self._fingerprint is None:
            self.check()
        return self._fingerprint or 0

    def check(self) -> Damage:
        """Read everything and say what is wrong with it. Raises like `items`."""
        for _ in self._contents():
            pass
        return self.damage

    def conclusions(self, stamp: str, *, details: bool = True) -> Conclusions | None:
        """What was kept of an undamaged recording by code of this `stamp`, if it is still as it was then.

        Reads everything (no more than its start if that is of others), decodes nothing else; without `details`, runs
        have no configuration, functions and calls. Raises like `items`.
        """
        with _opened(self.path) as fd:
            scan = _Scan(fd, self._head)
            kept = (frame for frame in scan.frames(self._head.end) if frame.kind == layout.FrameKind.CONCLUSIONS)
            first = next(kept, None)
            if first is None or scan.has_gaps:
                return None
            of, payloads = scan.fingerprint, (frame.payload for frame in chain([first], kept))
            found = decode_conclusions(payloads, stamp, of, details=details)
            # By now, everything has been read: nothing else may stand between them or behind.
            return None if scan.has_gaps or scan.fingerprint != of else found

    def to_pandas(self) -> pd.DataFrame:
        """All events, a row each in the order of the file, with the columns of `Event` and their units.

        `kind` (label: "mount"), `comm`, `path`, `path2` and `detail` are categoricals, each with the values that
        occur in it; `marks` has the bits of `Mark`; every other column is a number. A wall clock is
        `header.wall_time_ns + (time_ns - header.boot_time_ns)`. Raises like `items`.
        """
        import pandas as pd  # noqa: PLC0415 - 90 MB that the recorder must not carry

        names = [field.name for field in fields(Event)]
        parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        index = {"": 0}
        for content in self._contents():
            if isinstance(content, Note):
                continue
            remap = np.array([index.setdefault(text, len(index)) for text in content.strings], dtype=np.uint32)
            for name, values in content.by_name.items():
                parts[name].append(remap[values] if name in STRING_COLUMNS else values)
        strings = list(index)

        def column(name: str) -> npt.NDArray[Any] | pd.Categorical:
            values = np.concatenate([np.empty(0, dtype=EVENT_DTYPE[name]), *parts.pop(name)])
            if name == "kind":
                return _categorical(values, lambda number: _KINDS.get(number, f"kind_{number}"))
            return _categorical(values, strings.__getitem__) if name in STRING_COLUMNS else values

        return pd.DataFrame({name: column(name) for name in names}, copy=False)

    def _contents(self, wanted: Wanted | None = None) -> Iterator[layout.Columns | Note]:
        with _opened(self.path) as fd:
            scan = _Scan(fd, self._head)
            for frame in scan.frames(self._head.end):
                if frame.kind == layout.FrameKind.CONCLUSIONS:
                    continue
                try:
                    if (
                        wanted
                        and frame.kind == layout.FrameKind.EVENTS
                        and not wanted(*layout.decode_times(frame.payload))
                    ):
                        continue
                    content = _decode(frame)
                except RecordingError:
                    scan.skip(frame.start, frame.end)
                    continue
                if content is None:
                    scan.left_out += 1
                    continue
                scan.ended |= isinstance(content, Note) and content.kind is NoteKind.END
                yield content
            if wanted is None:
                self._damage, self._fingerprint = scan.damage(), scan.fingerprint


@dataclass(frozen=True, slots=True)
class _Frame:
    """A whole frame whose checksum fits, with its place in the file."""

    kind: int
    payload: bytes
    crc32: int
    start: int
    end: int


class _Scan:
    """One pass over an open file, of the size that it has now."""

    def __init__(self, fd: int, head: _Frame | None = None) -> None:
        """`head`: the frame before those that are asked for."""
        self.left_out = 0
        self.ended = False
        #: Of `head` and the frames that were met, but those of conclusions.
        self.fingerprint = layout.chained(0, head.crc32) if head else 0
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self.damaged_bytes = 0
        #: Whether there are bytes that belong to no whole frame, damage or not.
        self.has_gaps = False
        self._first_damage: int | None = None
        # A frame that fails is read again at most once on average: only a forged file needs more, and must not hang.
        self._patience_bytes = 2 * self._size + layout.MAX_PAYLOAD_BYTES

    def read(self, offset: int, size_bytes: int) -> bytes:
        """What is there, possibly less: an unreadable sector is damage like any other."""
        try:
            return os.pread(self._fd, size_bytes, offset)
        except OSError:
            return b""

    def frame_at(self, offset: int) -> _Frame | None:
        """The frame that starts at `offset`, if a whole one does."""
        head = layout.unpack_frame_head(self.read(offset, layout.FRAME_HEAD_BYTES))
        if head is None:
            return None
        start = offset + layout.FRAME_HEAD_BYTES
        end = start + head.length_bytes
        if end > self._size:
            return None
        payload = self.read(start, head.length_bytes)
        if head.fits(payload):
            return _Frame(head.kind, payload, head.crc32, offset, end)
        self._patience_bytes -= head.length_bytes
        return None

    def frames(self, offset: int) -> Iterator[_Frame]:
        """All whole frames from `offset` on; what lies between them is damage."""
        last: _Frame | None = None
        while offset < self._size:
            frame = self.frame_at(offset) or self._next_frame(offset + 1)
            start = self._size if frame is None else frame.start
            self.has_gaps |= start > offset
            if start > offset and not (last is not None and _ends(last) and self._are_conclusions(offset, start)):
                self.skip(offset, start)
            if frame is None:
                return
            last = frame
            if frame.kind != layout.FrameKind.CONCLUSIONS:
                self.fingerprint = layout.chained(self.fingerprint, frame.crc32)
            yield frame
            offset = frame.end

    def skip(self, start: int, end: int) -> None:
        """Count the bytes from `start` to `end` as damaged."""
        if end > start and self._first_damage is None:
            self._first_damage = start
        self.damaged_bytes += end - start

    def damage(self) -> Damage:
        """What was found; complete after `frames` is exhausted."""
        warnings = []
        if not self.ended:
            warnings.append("truncated: the recorder was killed or is still running; what it wrote before is here")
        if self.damaged_bytes:
            warnings.append(
                f"{self.damaged_bytes} of {self._size} bytes are damaged, the first at {self._first_damage}:"
                " the events in them are missing"
            )
        if self.left_out:
            warnings.append(f"{self.left_out} frames of a newer observe were left out; update observe to see them")
        return Damage(self.damaged_bytes, not self.ended, tuple(warnings))

    def _are_conclusions(self, start: int, end: int) -> bool:
        """Whether these bytes without a whole frame, behind the recording's end, are what is left of conclusions.

        Nothing recorded is missing then. The end of the file may cut even their head, or be filled with zeros.
        """
        data = self.read(start, layout.FRAME_HEAD_BYTES)
        head = layout.unpack_frame_head(data)
        if head is not None and head.kind == layout.FrameKind.CONCLUSIONS:
            return True
        begun = data.rstrip(b"\0")
        whole = layout.CONCLUSIONS_START
        return end == self._size and whole.startswith(begun[: len(whole)]) and self._is_zero(start + len(begun), end)

    def _is_zero(self, start: int, end: int) -> bool:
        sizes = ((base, min(_CHUNK_BYTES, end - base)) for base in range(start, end, _CHUNK_BYTES))
        return all(self.read(base, size_bytes) == bytes(size_bytes) for base, size_bytes in sizes)

    def _next_frame(self, offset: int) -> _Frame | None:
        """The first whole frame at `offset` or later."""
        for candidate in self._magics(offset):
            if self._patience_bytes < 0:
                return None
            frame = self.frame_at(candidate)
            if frame is not None:
                return frame
        return None

    def _magics(self, offset: int) -> Iterator[int]:
        """Offsets of all frame magics at `offset` or later."""
        overlap = len(layout.FRAME_MAGIC) - 1
        for base in range(offset, self._size, _CHUNK_BYTES):
            chunk = self.read(base, _CHUNK_BYTES + overlap)
            place = chunk.find(layout.FRAME_MAGIC)
            while place >= 0:
                yield base + place
                place = chunk.find(layout.FRAME_MAGIC, place + 1)


def holds_only(fd: int, fingerprint: int) -> bool:
    """Whether an open file is the whole recording with this fingerprint, and nothing was concluded from it yet."""
    scan = _Scan(fd)
    kinds = {frame.kind for frame in scan.frames(layout.PRELUDE_BYTES)}
    return not scan.has_gaps and scan.fingerprint == fingerprint and layout.FrameKind.CONCLUSIONS not in kinds


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Descriptor of a regular file for reading. Raises RecordingError."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for its other end.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise RecordingError(f"cannot read {path}: not allowed; let its owner run chmod a+r on it") from error
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}; check the name") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RecordingError(f"cannot read {path}: not a regular file; name a recording")
        yield fd
    finally:
        os.close(fd)


def _header(frame: _Frame | None) -> tuple[Header, _Frame]:
    """The header in the file's first frame, and that frame. Raises RecordingError."""
    if frame is None or frame.kind != layout.FrameKind.HEADER:
        raise RecordingError("its header is unreadable: damaged or cut; take another copy")
    return layout.decode_header(frame.payload), frame


def _decode(frame: _Frame) -> layout.Columns | Note | None:
    """What is in a frame; None if it is of a later version. Raises RecordingError if it contradicts itself."""
    if frame.kind == layout.FrameKind.EVENTS:
        return layout.decode_events(frame.payload)
    if frame.kind == layout.FrameKind.NOTE:
        return layout.decode_note(frame.payload)
    if frame.kind == layout.FrameKind.HEADER:
        raise RecordingError("a second header: two recordings in one file")
    return None


def _ends(frame: _Frame) -> bool:
    """Whether nothing that was recorded stands behind it."""
    if frame.kind != layout.FrameKind.NOTE:
        return frame.kind == layout.FrameKind.CONCLUSIONS
    try:
        note = layout.decode_note(frame.payload)
    except RecordingError:
        return False
    return note is not None and note.kind is NoteKind.END


def _categorical(codes: npt.NDArray[Any], label: Callable[[int], str]) -> pd.Categorical:
    """`codes` by their labels; only those that occur become categories."""
    import pandas as pd  # noqa: PLC0415 - see to_pandas

    used = np.flatnonzero(np.bincount(codes))
    place = np.zeros(used[-1] + 1 if len(used) else 0, dtype=np.int32)
    place[used] = np.arange(len(used))
    # object: the strings of Arrow cannot hold a file name that is not UTF-8.
    categories = pd.Index([label(code) for code in used.tolist()], dtype=object)
    return pd.Categorical.from_codes(place[codes], categories=categories)
