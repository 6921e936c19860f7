# SPDX-License-Identifier: Apache-2.0
"""`observe compare`: which phase became slower, by how much, and whether that could be chance."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from observe.commands._files import read, read_again, write
from observe.errors import ObserveError, RegressionError
from observe.reports import Page, compare_csv, compare_json, compare_markdown, compare_text, without_details
from observe.reports.assemble import without_collector
from observe.reports.comparison import Arm, Comparison, Row, compare, regressions, undecided
from observe.reports.rows import UNATTRIBUTED

NAME = "compare"
HELP = "tell which phase became slower, by how much, and whether that could be chance"

FORMATS: Mapping[str, Callable[[Comparison, Page], str]] = MappingProxyType(
    {
        "text": compare_text.render,
        "json": compare_json.render,
        "markdown": compare_markdown.render,
        "csv": compare_csv.render,
    }
)

#: The page, which is bytes whatever the output's letters are.
HTML = "html"

#: Of the recordings in a directory.
_PATTERN = "*.observe"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    for name, what in (("base", "what it was"), ("new", "what it is now")):
        text = f"{what}: a recording, or a directory with recordings ({_PATTERN})"
        parser.add_argument(name, metavar=name.upper(), type=Path, help=text)
    parser.add_argument("-f", "--format", choices=[*FORMATS, HTML], default="text", help="default: text")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="write there instead of standard output")
    parser.add_argument(
        "--fail-above",
        metavar="PCT",
        type=_percent,
        help="exit with 5 if the median of an operation, or of a phase that is more than 1%% of it, grew by more "
        "than PCT percent, significantly; with 1 if there are not enough runs to know",
    )


@without_collector()
def run(args: argparse.Namespace) -> int:
    """Read, compare, render, write. Raises RecordingError, and what `--fail-above` asks for."""
    comparison = compare(_arm(args.base), _arm(args.new))
    if args.format == HTML:
        write(args.output, _html(comparison))
    else:
        write(args.output, FORMATS[args.format](comparison, Page.of(sys.stdout) if args.output is None else Page()))
    if args.fail_above is not None:
        _judge(comparison, args.fail_above)
    elif _without_times(comparison):
        print(f"observe: warning: {_without_times(comparison)}", file=sys.stderr)
    return 0


def _html(comparison: Comparison) -> bytes:
    """The page, whose timelines need the events of some runs."""
    from observe.reports import compare_html  # noqa: PLC0415 - loads its templates' engine

    arms = [
        replace(arm, report=read_again(_recordings(Path(arm.name)), arm.report, compare_html.median_runs(arm)))
        for arm in (comparison.base, comparison.new)
    ]
    return compare_html.render(replace(comparison, base=arms[0], new=arms[1]))


def _judge(comparison: Comparison, above_percent: float) -> None:
    """Raise what became too slow; or, if nothing did, that it cannot be known."""
    page = Page(unicode=False)
    slower = [
        f"{_called(operation, row)}: the median grew by {row.growth or 0:.1%}, "
        f"from {page.duration(row.base_median_ns or 0)} to {page.duration(row.new_median_ns or 0)}; "
        f"--fail-above allows {above_percent:g}%"
        for operation, row in regressions(comparison, above_percent)
    ]
    if slower:
        raise RegressionError(*slower)
    if _without_times(comparison):
        raise ObserveError(_without_times(comparison))
    open_questions = undecided(comparison)
    if open_questions or not comparison.operations:
        counts = [f"{one.operation} {one.base.compared} and {one.new.compared}" for one in open_questions]
        raise ObserveError(
            f"not enough runs for --fail-above ({'; '.join(counts) or 'none at all'}): record at least "
            f"{comparison.needed_runs} runs that go well for BASE and for NEW"
        )


def _without_times(comparison: Comparison) -> str:
    """That no number of runs would do, if what went well in an arm is all of imported logs; else nothing."""
    arms = [
        name
        for name, arm in (("BASE", comparison.base), ("NEW", comparison.new))
        if any(run.outcome == "ok" for run in arm.report.runs)
        and not any(run.duration_ns > 0 for run in arm.report.runs)
    ]
    if not arms:
        return ""
    return (
        f"{' and '.join(arms)}: imported logs have no times, only an order, and cannot be compared by time; "
        "compare what observe record or observe bench have made"
    )


def _called(operation: str, row: Row) -> str:
    """Its id; with the operation if that is no part of it."""
    return f"{operation} ({row.id})" if row.id == UNATTRIBUTED else row.id


def _arm(place: Path) -> Arm:
    """All recordings of one arm; what is damaged is also said on standard error."""
    report = read(_recordings(place), details=False)
    return Arm(str(place), without_details(report, configuration=False, functions=False, path=False))


def _recordings(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(place.glob(_PATTERN))
    if not found:
        raise ObserveError(f"{place}: no recording ({_PATTERN}) in it; name a recording, or another directory")
    return found


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage: 0 or more")
    return value
