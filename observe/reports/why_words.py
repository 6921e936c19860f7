# SPDX-License-Identifier: Apache-2.0
"""What the reports of causes say in the same words."""

from __future__ import annotations

from collections.abc import Iterator

from observe.model import PathStep, Remedy, Time
from observe.reports import words
from observe.reports.terminal import Page

NOT_RECORDED = "What the time was spent on was not recorded: record again with observe record --why."
#: A run queue, a CPU, and what one waits for, in a person's words.
_STATES = {"cpu": "on a CPU", "runqueue": "waiting for a free CPU"}


def spent(time: Time, whole_ns: int, page: Page) -> Iterator[str]:
    """What a time was spent on, one fact each: duration and share of the whole."""
    parts = [(_STATES["cpu"], time.cpu_ns), (_STATES["runqueue"], time.runqueue_ns)]
    parts += [(f"blocked: {reason}", duration_ns) for reason, duration_ns in time.blocked_ns.items()]
    for name, duration_ns in parts:
        if duration_ns:
            yield f"{name} {page.duration(duration_ns)} ({words.percent(duration_ns / (whole_ns or 1))})"


def evidence(step: PathStep, run_start_ns: int, page: Page) -> str:
    """One piece of a cause: when, how long, who, and where."""
    who = f"{step.program or '?'}[{step.pid}/{step.tid}]"
    what = _STATES.get(step.state) or " ".join(filter(None, ["asleep in", step.call or "the kernel", step.file]))
    where = f" ({step.stack[0]})" if step.stack else ""
    at = f"+{page.duration(step.start_ns - run_start_ns)}"
    return f"{at}  {page.duration(step.duration_ns)}  {who} {what}{where}, in {step.phase}"


def remedy(known: Remedy) -> str:
    """Advice, with its source and its risk."""
    return f"what is known to help: {known.text} (source: {known.source}; risk: {known.risk})"
