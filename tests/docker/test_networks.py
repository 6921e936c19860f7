# SPDX-License-Identifier: Apache-2.0
"""Starts in every mode of the network: what they are called, which phases they have, and that none departs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import Engine
from recorded import api_client, client_times, record, report, runs_of

RUNS = 3
OWN_BRIDGE = "observe-own-bridge"
HOOK = "start.containerd_start.runc_create.network_hook"
#: Parts of phases that functions alone show.
ENDPOINT = {f"start.network.{part}" for part in ("endpoint", "sandbox", "join", "store")}
KEY = {HOOK, f"{HOOK}.set_key", f"{HOOK}.set_key.set_ipv6"}
#: Mode → the phases of the network that it has, of all these.
MODES: dict[str, set[str]] = {
    "bridge": {"start.network", *ENDPOINT, *KEY},
    OWN_BRIDGE: {"start.network", *ENDPOINT, *KEY, f"{HOOK}.set_key.resolver"},
    "none": {"start.network", *ENDPOINT, *KEY},
    "host": {"start.network", *ENDPOINT},
    "container": {"start.network"},
}
EVERY = {*MODES[OWN_BRIDGE], "start.network.iptables"}


@pytest.fixture(scope="module")
def modes(engine: Engine) -> Iterator[dict[str, str]]:
    """Mode → what a request calls it."""
    network = engine.client.networks.create(OWN_BRIDGE, driver="bridge")
    other = engine.client.containers.run(engine.image, ["sleep", "3600"], detach=True)
    yield {**{mode: mode for mode in MODES}, "container": f"container:{other.id}"}
    other.remove(force=True)
    network.remove()


@pytest.mark.parametrize("options", [(), ("--no-functions",)], ids=["functions", "kernel"])
@pytest.mark.parametrize("mode", MODES)
def test_a_start_has_the_phases_of_its_network(
    engine: Engine, modes: dict[str, str], tmp_path: Path, mode: str, options: tuple[str, ...]
) -> None:
    path, times = tmp_path / "network.observe", tmp_path / "times"
    record(engine, path, api_client(engine, times, "--runs", str(RUNS), "--network", modes[mode]), *options)
    document = report(path)
    assert len(client_times(times)) == 2 * RUNS
    starts, creates = runs_of(document, "start"), runs_of(document, "create")
    assert len(starts) == len(creates) == RUNS
    for run in (*creates, *starts):
        assert (run["outcome"], run["network"], run["departures"]) == ("ok", modes[mode], [])
        assert sum(phase["self_ns"] or 0 for phase in run["phases"]) == run["duration_ns"]
    for run in starts:
        phases: dict[str, dict[str, Any]] = {phase["id"]: phase for phase in run["phases"]}
        seen = {name for name in EVERY if phases[name]["start_ns"] is not None}
        if options:
            by_functions = ENDPOINT | ({"start.network"} if mode == "container" else set())
            assert seen == MODES[mode] - by_functions
        else:  # runc looks for hooks though there are none
            assert seen == MODES[mode] | {HOOK}
        if "start.network" in seen:
            network = phases["start.network"]
            assert network["start_ns"] + network["duration_ns"] <= phases["start.containerd_start"]["start_ns"]
