# SPDX-License-Identifier: Apache-2.0
"""A bench in words: what text and markdown both say. Nothing here is made safe for a page yet."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from observe.reports.bench_rows import ArmRows, Bench, DifferenceRow, Percentile
from observe.reports.compare_words import signed
from observe.reports.inference import CLUSTER_RESAMPLES, CONFIDENCE
from observe.reports.terminal import Page, wall_time

NOTHING = "no run went well"


def facts(bench: Bench) -> Iterator[str]:
    """Engine, host and what was asked for: one fact each."""
    engine, host = bench.engine, bench.host
    told = [
        engine.get("version") and f"dockerd {engine['version']}",
        host.get("hostname"),
        host.get("kernel") and f"Linux {host['kernel']}",
        host.get("cpus") and f"{host['cpus']} CPUs",
        wall_time(bench.wall_time_ns),
        f"{bench.planned} runs of each arm, {'one' if bench.concurrency == 1 else bench.concurrency} at a time",
        f"warm-up {bench.warmup}",
        f"seed {bench.seed}",
    ]
    return (str(fact) for fact in told if fact)


def settings(rows: ArmRows) -> Iterator[str]:
    """What an arm is, as options of docker run."""
    chosen = rows.arm.settings
    yield f"image {chosen['image']}"
    yield f"network {chosen['network']}"
    if chosen.get("runtime"):
        yield f"runtime {chosen['runtime']}"
    yield from (f"security {option}" for option in chosen.get("security_opt") or ())
    if rows.arm.path is None:
        yield "not observed"


def outcome(rows: ArmRows) -> str:
    """`48 of 50 runs went well`."""
    well = rows.runs - sum(rows.failures.values())
    return f"{well} of {rows.runs} runs went well"


def range_of(percentile: Percentile, page: Page) -> str:
    """`9.1 to 10.4 ms`; an end that is not known is left out."""
    low, high = percentile.low_ns, percentile.high_ns
    if low is None or high is None:
        return "too few runs" if low is None else f"at least {page.duration(low)}"
    first, last = page.duration(low), page.duration(high)
    number, unit = first.split(" ", 1)
    return f"{number if last.endswith(f' {unit}') and ' ' not in unit else first} to {last}"


def difference(row: DifferenceRow, page: Page) -> str:
    """The interval of a difference, or why there is none."""
    if row.interval_ns is None:
        return "too few runs"
    return f"{signed(row.interval_ns[0], page)} to {signed(row.interval_ns[1], page)}"


def growth(row: DifferenceRow) -> str:
    """`+2.9%`, or that it is not known."""
    return "-" if row.growth is None else f"{row.growth:+.1%}"


def warnings(bench: Bench, rows: ArmRows) -> Iterator[str]:
    """What must be known about an arm beside its times."""
    for text, count in rows.failures.items():
        yield f"failed {count} times: {text}" if count > 1 else f"failed: {text}"
    if rows.arm.loss is not None and rows.arm.loss.data_was_lost:
        yield "data was lost while recording; observe report says what"
    well = rows.runs - sum(rows.failures.values())
    for operation, count in (rows.arm.recorded or {}).items():
        # What was in flight when it ended is in the recording, and no result.
        if count < well or (count > well and not bench.ended_early and not rows.failures):
            yield f"the recording has {count} of {well} {operation}s"


def advice(bench: Bench) -> str | None:
    """The command that tells which phases make the difference."""
    paths = {arm.name: arm.path for arm in bench.arms}
    for base, new in bench.pairs:
        if paths[base] and paths[new]:
            return f"observe compare {shlex.quote(str(paths[base]))} {shlex.quote(str(paths[new]))}"
    return None


def legend(bench: Bench) -> str:
    """How the numbers came about."""
    drawn = "runs" if bench.concurrency == 1 else "turns"
    return (
        f"as the client saw it, of runs that went well; {CONFIDENCE:.0%} bootstrap intervals ({CLUSTER_RESAMPLES:,} "
        f"resamples of {drawn}); 'at least': too few runs to know the other end; the arms took turns in random order"
    )
