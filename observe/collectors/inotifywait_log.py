# SPDX-License-Identifier: Apache-2.0
"""Read what inotifywait logged elsewhere.

Two formats, told apart by the time at the start of a line:

- `03/03/22 11:44 /DIR/ NAME CREATE,ISDIR`: the walk-through's, `--timefmt '%d/%m/%y %H:%M' --format '%T %w %f %e'`
- `/DIR/ CREATE,ISDIR NAME`: inotifywait's own

NAME is empty for an event of the watched directory itself. A name has no slash, so the last slash of a line ends the
directory, whatever spaces there are. A line that is cut off is reported, never guessed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from observe.inotify_words import MASK_WORDS
from observe.model import Event, EventBatch, Kind, Mark

#: Events that the kernel always reports with the name of what they happened to.
_NEEDS_NAME = MASK_WORDS["CREATE"] | MASK_WORDS["DELETE"] | MASK_WORDS["MOVED_FROM"] | MASK_WORDS["MOVED_TO"]

_TIME = re.compile(r"(\d\d/\d\d/\d\d \d\d:\d\d)(:\d\d)? ")
_WORDS = "|".join(sorted(MASK_WORDS, key=len, reverse=True))
_EVENTS = re.compile(rf"(?:{_WORDS})(?:,(?:{_WORDS}))*")
#: The walk-through's log has one line without the space between name and event: `linkMODIFY`.
_GLUED = re.compile(rf"(.*[^A-Z_, ])({_EVENTS.pattern})")

#: What inotifywait says on stderr, often in the same file.
_CHATTER = ("", "Setting up watches.", "Watches established.")
_CHATTER_START = "Setting up watches.  Beware"

#: Folders of an engine's data root by which it is recognised.
_AREAS = frozenset({"overlay2", "containers", "image", "network", "tmp", "volumes"})

_OVERFLOW = "the queue of the watcher overflowed here: events are missing"

_LINE_NS = 1_000_000


class Problem(NamedTuple):
    """A line that could not be read: its number (from 1), its text, and why."""

    line: int
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class ParsedLog:
    """What a log holds."""

    #: Events in the log's order, marked IMPORTED. time_ns is an order: the line's number times one millisecond.
    events: EventBatch
    problems: tuple[Problem, ...]
    #: The engine's data root, found by the names of its folders; "" if no line shows one.
    data_root: str
    #: Epoch of the first time in the log, read as UTC (a log does not say its zone); 0 if it has none.
    wall_time_ns: int


class _BadLineError(ValueError):
    """Why a line could not be read."""


def read_log(text_or_lines: str | Iterable[str]) -> ParsedLog:
    """Events and problems of a log: each line is one of them, but for inotifywait's own talk and empty lines."""
    lines = text_or_lines.split("\n") if isinstance(text_or_lines, str) else text_or_lines
    events: list[Event] = []
    problems: list[Problem] = []
    wall_time_ns = 0
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip("\r\n")
        if line.strip() in _CHATTER or line.startswith(_CHATTER_START):
            continue
        try:
            path, mask = _parse(line)
            wall_time_ns = wall_time_ns or _wall_time_ns(line)
        except _BadLineError as error:
            problems.append(Problem(number, line, str(error)))
        else:
            events.append(
                Event(time_ns=number * _LINE_NS, kind=Kind.INOTIFY, flags=mask, path=path, marks=Mark.IMPORTED)
            )
    return ParsedLog(EventBatch.of(events), tuple(problems), _data_root(event.path for event in events), wall_time_ns)


def _parse(line: str) -> tuple[str, int]:
    """Full path and mask of one line. Raises _BadLineError."""
    time = _TIME.match(line)
    body = line[time.end() :] if time else line
    directory, slash, rest = body.rpartition("/")
    if body.strip() == "Q_OVERFLOW":
        raise _BadLineError(_OVERFLOW)
    if not body.startswith("/"):
        raise _BadLineError("no absolute path where one should be")
    if not rest.startswith(" "):
        raise _BadLineError("cut off inside the path: no event in it")
    name, words = _walk_through(rest[1:]) if time else _default(rest[1:])
    mask = 0
    for word in words.split(","):
        mask |= MASK_WORDS[word]
    if mask & MASK_WORDS["Q_OVERFLOW"]:
        raise _BadLineError(_OVERFLOW)
    if not name and mask & _NEEDS_NAME:
        raise _BadLineError(f"{words} without a name: cut off")
    return (f"{directory}{slash}{name}" if name else directory or slash), mask


def _walk_through(rest: str) -> tuple[str, str]:
    """Name and events of `NAME EVENTS`."""
    name, _, words = rest.rpartition(" ")
    if _EVENTS.fullmatch(words):
        return name, words
    glued = _GLUED.fullmatch(rest)
    if glued is None:
        raise _BadLineError("cut off: it does not end with an event")
    return glued[1], glued[2]


def _default(rest: str) -> tuple[str, str]:
    """Name and events of `EVENTS NAME`, or `EVENTS` alone."""
    words, _, name = rest.partition(" ")
    if not _EVENTS.fullmatch(words):
        raise _BadLineError("no event after the directory: cut off, or another format")
    return name, words


def _wall_time_ns(line: str) -> int:
    """Epoch of a line's time; 0 if it has none. Raises _BadLineError."""
    time = _TIME.match(line)
    if time is None:
        return 0
    try:
        moment = datetime.strptime(time[1] + (time[2] or ":00"), "%d/%m/%y %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise _BadLineError(f"no such time: {time[0].strip()}") from None
    return int(moment.timestamp()) * 1_000_000_000


def _data_root(paths: Iterable[str]) -> str:
    """The directory that most paths lie below, in folders of a data root; of equals the one with more of them."""
    lines: Counter[str] = Counter()
    areas: defaultdict[str, set[str]] = defaultdict(set)
    for path, count in Counter(paths).items():
        for root, area in _candidates(path):
            lines[root] += count
            areas[root].add(area)
    # Of equals the first, which is the outer one of folders in each other, as in `image/overlay2`.
    return max(lines, key=lambda root: (lines[root], len(areas[root])), default="")


def _candidates(path: str) -> Iterator[tuple[str, str]]:
    parts = path.split("/")
    for position, part in enumerate(parts[2:], start=2):
        if part in _AREAS:
            yield "/".join(parts[:position]), part
