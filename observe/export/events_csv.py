# SPDX-License-Identifier: Apache-2.0
"""Events as comma-separated values (RFC 4180), one row an event: what `report -f csv`, a row a phase, sums up.

`run` and `phase` are those of the report, empty for an event of no operation; `function` is the Go function of an entry
or a return. The columns are those of `observe.open(…).events`, with the arguments of an exec as a shell would
take them. Text is escaped as in the report's csv: a row is one line, and nothing that a spreadsheet would calculate.
"""

from __future__ import annotations

import csv
import io
import shlex

from observe.escape import spreadsheet_safe
from observe.export.events import EventTable
from observe.export.programs import arguments

_NUMBERS = ("goroutine", "ret", "flags", "pid", "tid", "fd")
_TEXTS = ("phase", "kind", "function", "comm", "path", "path2", "detail")
COLUMNS = ("run", "time_ns", "duration_ns", *_TEXTS[:3], *_NUMBERS, *_TEXTS[3:], "marks")


def encode(table: EventTable) -> str:
    """The header and the rows, each with CR LF at its end."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\r\n")
    write.writerow(COLUMNS)
    write.writerows(zip(*(_cells(table, name) for name in COLUMNS), strict=True))
    return out.getvalue()


def _cells(table: EventTable, name: str) -> list[str] | list[int]:
    if name == "run":
        return ["" if number < 0 else str(number) for number in table.run.tolist()]
    if name in _TEXTS:
        column = table.texts(name)
        readable = map(_command, column.values) if name == "detail" else column.values
        texts = [*map(spreadsheet_safe, readable)]
        return [*map(texts.__getitem__, column.codes.tolist())]
    numbers: list[int] = table.events.rows[name].tolist()
    return numbers


def _command(detail: str) -> str:
    """Arguments as one line for a shell; what is no list of them stays as it is."""
    return shlex.join(arguments(detail)) if "\0" in detail else detail
