# SPDX-License-Identifier: Apache-2.0
"""`observe import`: make a recording of a log that was recorded elsewhere."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from observe import __version__
from observe.collectors.inotifywait_log import read_log
from observe.errors import ObserveError
from observe.model import Header, Note, NoteKind
from observe.recording import RecordingWriter
from observe.reports.terminal import Page

NAME = "import"
HELP = "make a recording of a log that was recorded elsewhere"

#: Of so many lines that cannot be read it is said why; the others are counted.
_TOLD = 10
#: A line of a file that is no log has no end.
_TOLD_COLUMNS = 400


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("source", choices=["inotifywait"], help="what wrote the log")
    parser.add_argument("log", metavar="LOG", type=Path, help="the log")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the recording to write")


def run(args: argparse.Namespace) -> int:
    """Read the log, write the recording. Some lines that cannot be read are named; only all of them are an error."""
    try:
        # A path may hold any byte; what is not UTF-8 stays visible as an escape.
        text = args.log.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ObserveError(f"{args.log}: cannot be read: {error.strerror}") from error
    log = read_log(text)
    page = Page()
    for number, line, reason in log.problems[:_TOLD]:
        told = page.safe(f"observe: {args.log}:{number}: {reason}: {line.strip()}")
        print(page.shorten(told, _TOLD_COLUMNS), file=sys.stderr)
    if len(log.problems) > _TOLD:
        others = f"observe: {args.log}: other lines that cannot be read: {len(log.problems) - _TOLD}"
        print(page.safe(others), file=sys.stderr)
    if not len(log.events):
        raise ObserveError(f"{args.log}: no line of it can be read; is it the output of inotifywait -m?")
    header = Header(
        host={},
        engine={"data_root": log.data_root} if log.data_root else {},
        boot_time_ns=0,
        wall_time_ns=log.wall_time_ns,
        tool_version=__version__,
        options={"origin": "import", "source": args.source, "log": args.log.name},
    )
    with RecordingWriter(args.output, header) as writer:
        writer.write(log.events)
        writer.write(Note(NoteKind.END, int(log.events.rows["time_ns"][-1]), {"why": "end of the log"}))
    told = f"{args.output}: events: {len(log.events)}, lines left out: {len(log.problems)}"
    print(page.safe(told), file=sys.stderr)
    return 0
