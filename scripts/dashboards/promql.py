# SPDX-License-Identifier: Apache-2.0
"""The expressions that several panels have in common, over the metrics of `observe serve`."""

from __future__ import annotations

#: What most selectors begin with: the hosts that the reader chose.
HOSTS = 'instance=~"$instance"'
#: Percentiles are of these: other outcomes have fewer buckets, and a failure's duration says something else.
OK = 'outcome="ok"'
FAILED = 'outcome!="ok"'
#: What the phases' and the unattributed time are counted for: nobody saw the end of the others.
ENDED = 'outcome!="unfinished"'
#: Not the losses that nobody can help: attached in the middle of a call, inotify's races, what is no operation's.
HARMLESS = 'source!~"inotify_missed|unmatched_returns|unattributed_events"'
#: A phase directly below its operation. Deeper ones are parts of these: stacking both would count time twice.
TOP_LEVEL = 'phase=~"[^.]+[.][^.]+"'

OPERATION = "observe_operation_duration_seconds"
PHASE = "observe_phase_duration_seconds"
UNATTRIBUTED = "observe_operation_unattributed_seconds"
SYSCALL_TIME = "observe_syscall_duration_seconds_total"


def rate(metric: str, *where: str, by: str = "", window: str = "$__rate_interval") -> str:
    """Sum of a counter's rates, per second, by labels (all in one if none)."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{', '.join(where)}}}[{window}]))"


def quantile(q: float, histogram: str, *where: str, by: str = "", window: str = "$__rate_interval") -> str:
    """A quantile of a histogram in its unit, over all series that agree in `by`."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', *where, by=labels, window=window)})"


def mean(histogram: str, *where: str, by: str = "", window: str = "$__rate_interval") -> str:
    """The mean of what a histogram counted, in its unit."""
    total = rate(f"{histogram}_sum", *where, by=by, window=window)
    return f"{total}\n/\n{rate(f'{histogram}_count', *where, by=by, window=window)}"


def per_operation(metric: str, *where: str, operation: str, by: str, window: str = "$__rate_interval") -> str:
    """A counter's growth for each operation of a kind that ended."""
    chosen = f'operation="{operation}"'
    total = rate(metric, *where, chosen, by=by, window=window)
    return f"{total}\n/ on () group_left ()\n{rate(f'{OPERATION}_count', HOSTS, ENDED, chosen, window=window)}"


def top(count: int, expression: str) -> str:
    """The largest so many series, at each moment."""
    return f"topk({count}, {expression})"
