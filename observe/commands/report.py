# SPDX-License-Identifier: Apache-2.0
"""`observe report`: where the time went, from one or many recordings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from observe.commands._files import read, read_again, write
from observe.errors import DataLostError, ObserveError
from observe.reports import PICTURES, RENDERERS, WHY, Page, Report, without_details
from observe.reports.assemble import without_collector
from observe.reports.why_words import NOT_RECORDED

NAME = "report"
HELP = "show where the time went: one run's timeline, or percentiles of many"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a recording")
    parser.add_argument("-f", "--format", choices=[*RENDERERS, *PICTURES], default="text", help="default: text")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="write there instead of standard output")
    parser.add_argument(
        "--configuration", action="store_true", help="json: with each container's configuration, as inspect gave it"
    )
    parser.add_argument(
        "--functions", action="store_true", help="json: with each call of a documented function that was timed"
    )
    parser.add_argument(
        "--why", action="store_true", help="text, markdown, html, json: with the critical path and the largest causes"
    )
    parser.add_argument("--events", action="store_true", help="json: with the events of each phase")
    parser.add_argument("--strict", action="store_true", help="exit with 4 if data was lost")


@without_collector()
def run(args: argparse.Namespace) -> int:
    """Read, render, write.

    Raises RecordingError for an unreadable file, DataLostError for --strict, ObserveError if it cannot be written.
    """
    if args.format == "png" and args.output is None and sys.stdout.isatty():
        raise ObserveError("png is no text for a terminal; name a file with -o, or send the output to one")
    # Pages tell runs apart by what their configuration says.
    configuration = args.configuration or args.format == "html"
    report = read(
        args.files,
        keep_events=args.events,
        why=args.why or args.format == "json",
        details=configuration or args.functions,
    )
    report = without_details(report, configuration=configuration, functions=args.functions, path=args.why)
    if args.format == "html":
        from observe.reports.html_ import shown_runs  # noqa: PLC0415 - see PICTURES

        report = read_again(args.files, report, shown_runs(report))
    if args.why and args.format not in WHY and report.runs and not any(run.causes for run in report.runs):
        print(f"observe: warning: {NOT_RECORDED}", file=sys.stderr)
    page = Page.of(sys.stdout) if args.output is None else Page()
    write(args.output, _rendered(report, args.format, page, why=args.why))
    if args.strict and report.loss.data_was_lost:
        raise DataLostError(
            "data was lost while recording, the report is incomplete (its loss line says what is missing)"
        )
    return 0


def _rendered(report: Report, form: str, page: Page, *, why: bool) -> str | bytes:
    if form in PICTURES:
        return PICTURES[form](report)
    more = WHY[form](report, page) if why and form in WHY else ""
    return "\n".join(filter(None, [RENDERERS[form](report, page), more]))
