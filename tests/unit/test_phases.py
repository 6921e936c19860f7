# SPDX-License-Identifier: Apache-2.0
"""The catalogue: complete, in the documented order, and refused with a reason when a rule is broken."""

from __future__ import annotations

import fnmatch
import json
import re

import pytest

from observe.__main__ import main
from observe.errors import ObserveError
from observe.phases import load
from observe.phases.catalogue import parse

CREATE = [
    "create",
    "create.request",
    "create.verify",
    "create.image",
    "create.config",
    "create.new_container",
    "create.security",
    "create.rw_layer",
    "create.root",
    "create.os_specific",
    "create.network",
    "create.register",
    "create.answer",
]
SPEC = [
    "common",
    "cgroups",
    "resources",
    "sysctls",
    "devices",
    "user",
    "rlimits",
    "namespaces",
    "capabilities",
    "seccomp",
    "mounts",
    "libnetwork",
    "apparmor",
    "selinux",
    "oom_score",
]
START = [
    "start",
    "start.validate",
    "start.mount",
    "start.network",
    *(f"start.network.{part}" for part in ("endpoint", "sandbox", "join", "store", "iptables", "proxy")),
    "start.spec",
    *(f"start.spec.{option}" for option in SPEC),
    "start.runtime_options",
    "start.containerd_create",
    "start.containerd_start",
    "start.containerd_start.shim",
    "start.containerd_start.runc_create",
    "start.containerd_start.runc_create.init",
    *(
        f"start.containerd_start.runc_create.init.{part}"
        for part in ("self_clone", "namespaces", "rootfs", "pivot_root", "mask", "seccomp")
    ),
    "start.containerd_start.runc_create.cgroups",
    "start.containerd_start.runc_create.network_hook",
    "start.containerd_start.runc_create.network_hook.set_key",
    "start.containerd_start.runc_create.network_hook.set_key.set_ipv6",
    "start.containerd_start.runc_create.network_hook.set_key.resolver",
    "start.containerd_start.runc_start",
    "start.save_state",
    "start.cleanup",
    "start.answer",
]


@pytest.mark.parametrize(("operation", "ids"), [("create", CREATE), ("start", START)])
def test_every_documented_phase_in_the_documented_order(operation, ids):
    assert [phase.id for phase in load().of(operation)] == ids


def test_only_the_cleanup_needs_a_failure():
    assert [phase.id for phase in load().phases if phase.occurs == "on_failure"] == ["start.cleanup"]


def test_steps_point_into_the_walk_through():
    for phase in load().phases:
        for step in re.split(r", (?=\d+\.)", phase.step):
            assert re.fullmatch(r"[1-4](\.\d)+(/\d+((-|,)\d+)?)?", step), phase.id


def test_titles_fit_a_terminal_and_are_told_apart():
    titles = [phase.title for phase in load().phases]
    assert len(set(titles)) == len(titles)
    assert max(map(len, titles)) <= 41


def test_functions_are_whole_go_symbols():
    for phase in load().phases:
        for function in phase.functions:
            assert re.fullmatch(r"github\.com/[\w./*\[\]()-]+\.[\w.()*\[\]-]+", function), function
        assert len(set(phase.functions)) == len(phase.functions)


@pytest.mark.parametrize(
    ("symbol", "phases"),
    [
        ("github.com/docker/docker/daemon.(*Daemon).createSpec", ["start.spec"]),
        ("github.com/docker/docker/daemon.WithMounts.func1", ["start.spec.mounts"]),
        ("github.com/docker/docker/daemon.WithMounts.func1.1", []),
        ("github.com/docker/docker/daemon.(*Daemon).createSpec.withMounts.func12", ["start.spec.mounts"]),
        ("github.com/docker/docker/daemon.WithMounts", []),
        ("github.com/docker/docker/daemon.(*Daemon).setHostConfig", ["create.root"]),
        ("github.com/docker/libnetwork.(*sandbox).SetKey", ["start.containerd_start.runc_create.network_hook.set_key"]),
        ("github.com/docker/libnetwork.(*sandbox).SetKey.func1", []),
        ("github.com/moby/moby/v2/daemon.(*Daemon).register", ["create.register"]),
        ("github.com/docker/docker/libcontainerd/remote.(*task).Start", ["start.containerd_start"]),
    ],
)
def test_a_symbol_finds_its_phase_and_no_other(symbol, phases):
    found = [phase.id for phase in load().phases if any(fnmatch.fnmatchcase(symbol, glob) for glob in phase.functions)]
    assert found == phases


TOP = '[[phase]]\nid = "create"\nstep = "2.1"\ntitle = "create"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[phase", "not TOML"),
        ("", "no [[phase]] in it"),
        ('[[phase]]\nstep = "1"\n', "without an id"),
        ('[[phase]]\nid = "create"\ntitle = "x"\n', "step is missing"),
        (TOP + "color = 1\n", "unknown key 'color'"),
        (TOP + 'occurs = "never"\n', "occurs must be one of"),
        (TOP + "functions = [1]\n", "functions must be"),
        (TOP + TOP, "there twice"),
        (TOP + TOP.replace('"create"', '"start"', 1), "second phase without a parent"),
        (TOP + TOP.replace('id = "create"', 'id = "create.a"\nparent = "start"'), "parent is 'start'"),
        (TOP.replace('id = "create"', 'id = "create.a"\nparent = "create"'), "must stand before it"),
        (TOP + '[[phase.evidence]]\ncalls = ["nonsense"]\n', "no such call: nonsense"),
    ],
)
def test_a_broken_data_file_is_refused_by_name_and_rule(text, says):
    with pytest.raises(ObserveError, match=f"x.toml.*{re.escape(says)}"):
        parse(text, "x.toml")


def test_the_command_lists_every_phase_in_each_format(capsys):
    ids = [phase.id for phase in load().phases]
    assert main(["phases", "-f", "json"]) == 0
    assert [phase["id"] for phase in json.loads(capsys.readouterr().out)["phases"]] == ids
    assert main(["phases", "-f", "markdown"]) == 0
    assert re.findall(r"^\| `([\w.]+)` \|", capsys.readouterr().out, re.MULTILINE) == ids
    assert main(["phases"]) == 0
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines() if line and not line.startswith("phase ")]
    assert names == [name.rpartition(".")[2] for name in ids]
    assert max(map(len, text.splitlines())) <= 100
