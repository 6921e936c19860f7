# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes a real `observe serve` and a real dockerd under load: they say the same."""

from __future__ import annotations

from pathlib import Path

import promserver
import pytest
from engines import EngineFactory
from proof import ENGINE_OPTIONS, OPERATIONS, prove, watched


def test_prometheus_knows_what_the_load_made_and_what_dockerd_says_of_it(
    new_engine: EngineFactory, tmp_path: Path
) -> None:
    reason = promserver.missing()
    if reason:
        pytest.skip(reason)
    engine = new_engine(*ENGINE_OPTIONS)
    with watched(engine, tmp_path) as (server, prometheus):
        found = prove(engine, server, prometheus, 20)
    assert found.lost == 0, found
    assert found.failed_scrapes == 0
    for operation in OPERATIONS:
        for outcome in ("ok", "failed"):
            assert found.made[operation, outcome] > 0
            assert found.counted[operation, outcome] == found.made[operation, outcome], (operation, outcome)
        assert found.counted[operation, "unfinished"] == 0
        ok = found.made[operation, "ok"]
        assert (found.ours[operation][0], found.theirs[operation][0]) == (ok, ok)
        assert abs(found.difference(operation)) < 0.01
