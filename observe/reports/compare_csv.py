# SPDX-License-Identifier: Apache-2.0
"""The comparison as a table for spreadsheets: one line a row, ranked as in every format. Times are nanoseconds."""

from __future__ import annotations

import csv
import io

from observe.reports.comparison import Comparison
from observe.reports.terminal import Page

COLUMNS = (
    "operation",
    "phase",
    "base_n",
    "new_n",
    "base_median_ns",
    "new_median_ns",
    "difference_ns",
    "interval_low_ns",
    "interval_high_ns",
    "growth",
    "contribution_ns",
    "p",
    "verdict",
    "own_interval_low_ns",
    "own_interval_high_ns",
    "own_p",
    "own_verdict",
)


def render(comparison: Comparison, page: Page) -> str:
    """CSV with a head and a line end; what is not known is an empty cell. `page` changes nothing."""
    del page
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for operation in comparison.operations:
        for row in operation.rows:
            writer.writerow(
                (
                    operation.operation,
                    row.id,
                    row.base_n,
                    row.new_n,
                    row.base_median_ns,
                    row.new_median_ns,
                    row.difference_ns,
                    *(row.interval_ns or (None, None)),
                    row.growth,
                    row.contribution_ns,
                    row.p,
                    row.verdict,
                    *(row.own_interval_ns or (None, None)),
                    row.own_p,
                    row.own_verdict,
                )
            )
    return out.getvalue()
