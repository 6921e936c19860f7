# SPDX-License-Identifier: Apache-2.0
"""A bench for programs: JSON, schema version 1, documented and stable. Times are nanoseconds."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from observe.reports.bench_rows import ArmRows, Bench, arm_rows, difference_rows
from observe.reports.inference import CLUSTER_RESAMPLES, CONFIDENCE
from observe.reports.terminal import Page

SCHEMA_VERSION = 1


def render(bench: Bench, page: Page) -> str:
    """JSON text with a line end, plain ASCII; `page` changes nothing."""
    del page
    return json.dumps(document(bench), indent=2) + "\n"


def document(bench: Bench) -> dict[str, Any]:
    """The bench as plain dictionaries and lists. Every key is always there, null if unknown."""
    return {
        "schema_version": SCHEMA_VERSION,
        "host": dict(bench.host),
        "engine": dict(bench.engine),
        "wall_time_ns": bench.wall_time_ns,
        "planned": bench.planned,
        "concurrency": bench.concurrency,
        "warmup": bench.warmup,
        "seed": bench.seed,
        "command": list(bench.command),
        "ended_early": bench.ended_early,
        "method": {"confidence": CONFIDENCE, "resamples": CLUSTER_RESAMPLES, "unit": "turn"},
        "arms": [_arm(rows) for rows in arm_rows(bench)],
        "differences": [{**asdict(row), "growth": row.growth} for row in difference_rows(bench)],
        "runs": [
            {
                "arm": run.arm,
                "turn": run.turn,
                "outcome": "failed" if run.failed else "ok",
                "error": run.failed,
                "durations_ns": dict(run.durations_ns),
            }
            for run in bench.runs
        ],
    }


def _arm(rows: ArmRows) -> dict[str, Any]:
    arm = rows.arm
    return {
        "name": arm.name,
        **arm.settings,
        "recording": arm.path,
        "loss": asdict(arm.loss) if arm.loss else None,
        "recorded": dict(arm.recorded) if arm.recorded is not None else None,
        "runs": rows.runs,
        "failures": dict(rows.failures),
        "measures": [asdict(row) for row in rows.rows],
    }
