# SPDX-License-Identifier: Apache-2.0
r"""The report as comma-separated values (RFC 4180): a header, then one row a phase a run.

`run` numbers the runs from 0 in time order. What belongs to the run is repeated in each of its rows; its times are
`run_start_ns`, `run_wall_time_ns`, `run_duration_ns` and `run_unattributed_ns`. Every other column is that of the
JSON report, its `id` named `phase`; the unit is in the name. A phase that was not seen keeps its row, with empty times.

Text from outside is harmless: what does not print is an escape (`\x0a`), so a row is always one line; and a text
that a spreadsheet would calculate (`=`, `+`, `-` or `@` first, also full-width ones) gets an apostrophe before it. So
does one that begins with an apostrophe: who takes one apostrophe away always has the text.
"""

from __future__ import annotations

import csv
import io

from observe.escape import spreadsheet_safe
from observe.reports.flat import PHASE_COLUMNS, RUN_COLUMNS, Cell, phase_cells, run_cells
from observe.reports.report import Report
from observe.reports.terminal import Page

COLUMNS = ("run", *(f"run_{name}" if name.endswith("_ns") else name for name in RUN_COLUMNS), *PHASE_COLUMNS)


def render(report: Report, page: Page) -> str:
    """The rows, each with CR LF at its end; only `page.unicode` matters."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\r\n").writerow
    write(COLUMNS)
    for number, run in enumerate(report.runs):
        first = [str(number), *(_text(cell, page) for cell in run_cells(run))]
        for span in run.phases:
            write([*first, *(_text(cell, page) for cell in phase_cells(span))])
    return out.getvalue()


def _text(cell: Cell, page: Page) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        return str(cell)
    return spreadsheet_safe(cell, ascii_only=not page.unicode)
