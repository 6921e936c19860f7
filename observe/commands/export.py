# SPDX-License-Identifier: Apache-2.0
"""`observe export`: a recording for other programs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from observe.commands._files import result_of_bench_refused, write
from observe.errors import DataLostError, HostCannotError, ObserveError
from observe.phases import load
from observe.recording import Recording
from observe.reports import Page, Report
from observe.reports.assemble import assemble

NAME = "export"
HELP = "write a recording for other programs: Perfetto, OpenTelemetry, DuckDB, spreadsheets"

#: Modules that the extra `export` brings.
_EXTRA = frozenset({"google", "opentelemetry", "perfetto", "pyarrow"})
_STDOUT_HINT = "name a file with -o, or send the output to one"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a recording")
    parser.add_argument("-t", "--to", choices=[*_WRITERS], required=True, help="what to write")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="write there instead of standard output; parquet: a folder; otlp: a file or an endpoint (http://HOST:4318)",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 4 if data was lost")


def run(args: argparse.Namespace) -> int:
    """Read, encode, write or send.

    Raises RecordingError for an unreadable file, HostCannotError if a library is missing, DataLostError for --strict,
    ObserveError if it cannot be written or sent, or if the format cannot say what the recording has.
    """
    with result_of_bench_refused(args.file):
        report, _ = assemble(args.file, load(), keep_events=True)
    for warning in report.warnings:
        print(f"observe: warning: {Page().safe(warning)}", file=sys.stderr)
    try:
        _WRITERS[args.to](args.file, report, args.output)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise HostCannotError(
            f"{error.name} is missing, which -t {args.to} needs; run make setup, or pip install 'observe[export]'"
        ) from error
    if args.strict and report.loss.data_was_lost:
        raise DataLostError(
            "data was lost while recording, the export is incomplete (observe report says what is missing)"
        )
    return 0


def _perfetto(_file: Path, report: Report, out: str | None) -> None:
    from observe.export import perfetto  # noqa: PLC0415 - each format loads its own library only

    _write_bytes(out, perfetto.encode(report))


def _otlp(_file: Path, report: Report, out: str | None) -> None:
    from observe.export import otlp, otlp_http  # noqa: PLC0415 - see _perfetto

    left_out = len(report.runs) - len(otlp.exportable(report.runs))
    if left_out == len(report.runs) > 0:
        raise ObserveError("spans need times, and an imported log has none, only an order; take -t perfetto or -t csv")
    if left_out:
        print(f"observe: warning: operations without a time, left out: {left_out}", file=sys.stderr)
    if out is None or not otlp_http.is_endpoint(out):
        _write_bytes(out, b"".join(otlp.requests(report)))
        return
    headers = otlp_http.headers_of(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
    replies = [otlp_http.send(out, request, headers) for request in otlp.requests(report)]
    said = Page().safe(next((reply.message for reply in replies if reply.message), ""))
    rejected = sum(reply.rejected_spans for reply in replies)
    if rejected:
        raise ObserveError(
            f"{out} rejected {rejected} spans and took the others: {said or 'it did not say why, its log may'}"
        )
    if said:
        print(f"observe: warning: {out} took all, and says: {said}", file=sys.stderr)


def _parquet(file: Path, report: Report, out: str | None) -> None:
    from observe.export import events, parquet  # noqa: PLC0415 - see _perfetto

    if out is None:
        raise ObserveError("parquet is two files, phases.parquet and events.parquet; name a folder for them with -o")
    folder = Path(out)
    table = events.table(Recording.open(file).items(), report.runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObserveError(f"{folder}: no folder can be made there: {error.strerror}; name another with -o") from error
    write(folder / "phases.parquet", parquet.phases(report))
    write(folder / "events.parquet", parquet.events(table, report))


def _csv(file: Path, report: Report, out: str | None) -> None:
    from observe.export import events, events_csv  # noqa: PLC0415 - see _perfetto

    write(_path(out), events_csv.encode(events.table(Recording.open(file).items(), report.runs)))


def _inotifywait(file: Path, report: Report, out: str | None) -> None:
    from observe.export import inotifywait  # noqa: PLC0415 - see _perfetto

    del report
    recording = Recording.open(file)
    write(_path(out), inotifywait.encode(recording.events(), recording.header))


def _write_bytes(out: str | None, data: bytes) -> None:
    if out is None and sys.stdout.isatty():
        raise ObserveError(f"that is no text for a terminal; {_STDOUT_HINT}")
    write(_path(out), data)


def _path(out: str | None) -> Path | None:
    return None if out is None else Path(out)


_WRITERS: MappingProxyType[str, Callable[[Path, Report, str | None], None]] = MappingProxyType(
    {"perfetto": _perfetto, "otlp": _otlp, "parquet": _parquet, "csv": _csv, "inotifywait": _inotifywait}
)
