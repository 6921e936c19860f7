# SPDX-License-Identifier: Apache-2.0
"""The file events of a recording as inotifywait would have logged them: what `observe import inotifywait` reads.

Each line is in the walk-through's format, `03/03/22 11:44 /DIR/ NAME CREATE,ISDIR` (time in UTC, as `--timefmt` has
it: minutes); without a wall clock it is in inotifywait's own, `/DIR/ CREATE,ISDIR NAME`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from observe.escape import printable
from observe.inotify_words import words
from observe.model import Event, EventBatch, Header, Kind, Mark

_MINUTE_NS = 60_000_000_000


def encode(events: EventBatch, header: Header) -> str:
    """One line an inotify event, in the order of the file; what a watcher invented is left out.

    A name that does not print is escaped, so that each event is one line. `header` is that of the recording.
    """
    file_events = EventBatch(events.rows[events.rows["kind"] == Kind.INOTIFY], events.strings)
    return "".join(_lines(file_events, header))


def _lines(events: EventBatch, header: Header) -> Iterator[str]:
    for event in events:
        what = words(event.flags)
        if event.marks & Mark.INVENTED or not what or not event.path.startswith("/"):
            continue
        directory, _, name = printable(event.path).rpartition("/")
        if header.wall_time_ns <= 0:
            yield f"{directory}/ {what} {name}\n"
        else:
            yield f"{_time(event, header)} {directory}/ {name} {what}\n"


def _time(event: Event, header: Header) -> str:
    # An imported log has the time of its first line only; its events have an order.
    since_ns = 0 if event.marks & Mark.IMPORTED else event.time_ns - header.boot_time_ns
    minute = (header.wall_time_ns + since_ns) // _MINUTE_NS
    return f"{datetime.fromtimestamp(minute * 60, tz=UTC):%d/%m/%y %H:%M}"
