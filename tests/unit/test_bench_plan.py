# SPDX-License-Identifier: Apache-2.0
"""Which arms a bench has and whose turn it is when: every combination, balanced, random, repeatable."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from itertools import groupby

import pytest

from observe.__main__ import main
from observe.bench.plan import (
    LABEL,
    ROUNDS_ATTACHED,
    Arm,
    Attach,
    arm_of_container,
    arms_of,
    container_name,
    orders,
    pairs_of,
    turns_of,
)
from observe.commands._session import ring_bytes

NETWORKS = ("none", "host", "bridge")


def arms(networks=NETWORKS, images=("app",), runtimes=(None,), security=((),), attach=Attach.YES):
    return arms_of(images, networks, runtimes, security, attach)


def named(*names, **changes):
    return tuple(Arm(name, "app", "none", **changes) for name in names)


# Arms ------------------------------------------------------------------------------------------------------


def test_every_combination_is_an_arm_named_by_what_differs():
    found = arms(("none", "bridge"), runtimes=(None, "crun"))
    assert [(arm.name, arm.network, arm.runtime) for arm in found] == [
        ("none-default", "none", None),
        ("none-crun", "none", "crun"),
        ("bridge-default", "bridge", None),
        ("bridge-crun", "bridge", "crun"),
    ]
    assert [arm.name for arm in arms()] == [*NETWORKS]
    assert [arm.name for arm in arms(("host",))] == ["host"]
    assert [arm.name for arm in arms(("host",), images=("a", "b"))] == ["a", "b"]


def test_a_value_given_twice_makes_two_arms():
    found = arms(("none", "none", "none"))
    assert [arm.name for arm in found] == ["none", "none-2", "none-3"]
    assert len({arm.network for arm in found}) == 1


@pytest.mark.parametrize(
    "images",
    [
        (
            "reg.example:5000/a/b:1@sha256:00",
            "..",
            "<img src=x>/../../etc/passwd",
            "a" * 300,
            "你",
            "-x",
            "a",
            "a-2",
            "a",
        ),
        ("a/b", "a:b", "a b"),
    ],
)
def test_names_are_fit_for_files_and_containers_and_differ(images):
    names = [arm.name for arm in arms(images=images, attach=Attach.BOTH)]
    assert len(set(names)) == len(names) == 2 * len(images) * len(NETWORKS)
    assert all(re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,70}", name) for name in names)


def test_attached_or_not_is_a_factor_too():
    found = arms(("none", "host"), attach=Attach.BOTH)
    assert [(arm.name, arm.attached) for arm in found] == [
        ("none", True),
        ("none-unattached", False),
        ("host", True),
        ("host-unattached", False),
    ]
    assert [arm.attached for arm in arms(("none",), attach=Attach.NO)] == [False]


def test_what_is_compared():
    def names(found):
        return [(base.name, new.name) for base, new in pairs_of(found)]

    assert names(arms()) == [("none", "host"), ("none", "bridge")]
    assert names(arms(attach=Attach.NO)) == [("none", "host"), ("none", "bridge")]
    assert names(arms(("none", "host"), attach=Attach.BOTH)) == [
        ("none-unattached", "none"),
        ("host-unattached", "host"),
        ("none", "host"),
    ]
    assert names(arms(("none",))) == []


def settings_of(arm):
    return (arm.image, arm.network, arm.runtime, arm.security_opt, arm.attached)


@pytest.mark.parametrize("attach", Attach)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"runtimes": (None, "crun")},
        {"runtimes": (None, "crun"), "security": ((), ("seccomp=unconfined",), ("apparmor=x",))},
        {"networks": ("none", "none"), "images": ("a", "b", "a")},
    ],
)
def test_nothing_is_compared_that_differs_in_two_things(values, attach):
    found = arms(**values, attach=attach)
    differing = [
        sum(one != other for one, other in zip(settings_of(base), settings_of(new), strict=True))
        for base, new in pairs_of(found)
    ]
    # Equal arms are what chance is seen by; of what differs every arm has its place.
    assert set(differing) <= {0, 1}
    assert {arm.name for pair in pairs_of(found) for arm in pair} == {arm.name for arm in found}
    assert len(set(pairs_of(found))) == len(pairs_of(found))


def test_each_setting_is_held_against_what_the_first_arm_has_in_its_place():
    def names(found):
        return [(base.name, new.name) for base, new in pairs_of(found)]

    assert names(arms(("none", "host"), security=((), ("seccomp=unconfined",)))) == [
        ("none-default", "none-seccomp-unconfined"),
        ("none-default", "host-default"),
        ("none-seccomp-unconfined", "host-seccomp-unconfined"),
        ("host-default", "host-seccomp-unconfined"),
    ]
    # Of three networks and three runtimes: two and two of the first ones, and two of each of the four others.
    assert len(names(arms(runtimes=(None, "crun", "kata")))) == 2 + 2 + 2 * 4
    # Equal arms are told apart by chance only, wherever they stand.
    assert names(arms(("none", "none"), runtimes=(None, "crun"))) == [
        ("none-default", "none-crun"),
        ("none-default", "none-default-2"),
        ("none-default", "none-crun-2"),
    ]
    assert names(arms(("none", "host"), runtimes=(None, "crun"), attach=Attach.BOTH))[4:] == [
        ("none-default", "none-crun"),
        ("none-default", "host-default"),
        ("none-crun", "host-crun"),
        ("host-default", "host-crun"),
    ]


def test_the_create_request_says_what_the_arm_is():
    arm = Arm("x", "app:1", "host", "crun", ("seccomp=unconfined",))
    assert arm.body(["sleep", "1"], "abc") == {
        "Image": "app:1",
        "Entrypoint": ["sleep"],
        "Cmd": ["1"],
        "Labels": {LABEL: "abc"},
        "HostConfig": {"NetworkMode": "host", "SecurityOpt": ["seccomp=unconfined"], "Runtime": "crun"},
    }
    assert "Runtime" not in Arm("x", "app", "none").body(["true"], "abc")["HostConfig"]


# Wrong usage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runs", "0"], "--runs: '0' is no number from 1 to 1000000"),
        (["--runs", "9" * 20], f"--runs: '{'9' * 20}' is no number from 1 to 1000000"),
        (["--concurrency", "9" * 20], f"--concurrency: '{'9' * 20}' is no number from 1 to 1000000"),
        (["--warmup", "-1"], "--warmup: '-1' is no number from 0 to 1000000"),
        (["--warmup", "1" * 5000], " is no number from 0 to 1000000"),
        (["--attach", "maybe"], "--attach: invalid choice: 'maybe' (choose from 'yes', 'no', 'both')"),
        (["--network", "none", ""], "--network: '' is no name: it is empty, or has letters that do not print"),
        (["--image", "\udcff"], r"--image: '\xff' is no name: it is empty, or has letters that do not print"),
        (["--runtime", "a\nb"], r"--runtime: 'a\x0ab' is no name: it is empty, or has letters that do not print"),
        (["--security-opt", ""], "--security-opt: '' is no name: it is empty, or has letters that do not print"),
    ],
)
def test_what_no_arm_can_be_made_of_is_wrong_usage(options, said, tmp_path, capsys):
    assert main(["bench", *options, "-o", str(tmp_path / "new"), "--docker-host", f"unix://{tmp_path}/none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{said}; see observe bench --help")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("command", ["bench", "record"])
@pytest.mark.parametrize("size", ["5", "0", "-4096", "2048", "12288", "4k", str(1 << 32), "9" * 20])
def test_a_ring_of_an_impossible_size_is_wrong_usage(command, size, tmp_path, capsys):
    assert main([command, f"--ring-bytes={size}", "--docker-host", f"unix://{tmp_path}/none"]) == 2
    assert capsys.readouterr().err == (
        f"observe: {command}: argument --ring-bytes: '{size}' is no size of a ring: a power of two from "
        f"{mmap.PAGESIZE} to 2147483648; see observe {command} --help\n"
    )


@pytest.mark.parametrize("size", [mmap.PAGESIZE, 1 << 31])
def test_a_ring_may_be_a_page_and_as_large_as_a_map(size):
    assert ring_bytes(str(size)) == size


# Turns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3, 8, 100])
@pytest.mark.parametrize("attach", Attach)
def test_every_arm_has_exactly_its_runs(concurrency, attach):
    found = turns_of(arms(attach=attach), 50, concurrency, 2, seed=1)
    count = len(arms(attach=attach))
    runs, warmups = Counter(), Counter()
    for turn in found:
        (warmups if turn.warmup else runs)[turn.arm.name] += turn.runs
    assert set(runs.values()) == {50}
    assert set(warmups.values()) == {2 * concurrency}
    assert len(runs) == len(warmups) == count
    assert max(turn.runs for turn in found) <= concurrency
    assert [turn.number for turn in found] == [*range(len(found))]
    assert [turn.warmup for turn in found] == sorted((turn.warmup for turn in found), reverse=True)


def rounds(found, size):
    names = [turn.arm.name for turn in found if not turn.warmup]
    return [tuple(names[first : first + size]) for first in range(0, len(names), size)]


def test_each_round_has_every_arm_once_in_an_order_of_its_own():
    found = rounds(turns_of(arms(), 600, 1, 1, seed=2), 3)
    assert {frozenset(one) for one in found} == {frozenset(NETWORKS)}
    counts = Counter(found)
    # All six orders, about as often as each other.
    assert len(counts) == 6
    assert min(counts.values()) > 60


def test_the_seed_decides_the_order_and_nothing_else():
    first, again, other = (turns_of(arms(attach=Attach.BOTH), 20, 2, 1, seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert Counter((turn.arm.name, turn.runs) for turn in first) == Counter(
        (turn.arm.name, turn.runs) for turn in other
    )


def test_attaching_is_changed_in_blocks_only_and_their_order_is_random():
    found = turns_of(named("a", "b") + named("c", "d", attached=False), 200, 1, 0, seed=3)
    blocks = [(attached, len([*turns])) for attached, turns in groupby(found, key=lambda turn: turn.arm.attached)]
    halves = [attached for attached, size in blocks for _ in range(size // (2 * ROUNDS_ATTACHED))]
    assert {size % (2 * ROUNDS_ATTACHED) for _, size in blocks} == {0}
    assert len(halves) == 2 * 200 / ROUNDS_ATTACHED
    pairs = Counter(zip(halves[::2], halves[1::2], strict=True))
    assert set(pairs) == {(True, False), (False, True)}
    assert min(pairs.values()) > 5


# Names of containers --------------------------------------------------------------------------------------


def test_a_container_tells_its_arm():
    for turn in turns_of(arms(("none", "container:web-1")), 4, 2, 1, seed=1):
        found = [arm_of_container("abc", order["name"]) for order in orders("abc", turn, ["true"])]
        assert found == [None if turn.warmup else turn.arm.name] * turn.runs
        assert arm_of_container("def", container_name("abc", turn, 0)) is None
    assert arm_of_container("abc", "web") is None


def test_no_two_containers_share_a_name():
    found = turns_of(arms(("none", "none"), attach=Attach.BOTH), 20, 3, 2, seed=1)
    names = [order["name"] for turn in found for order in orders("abc", turn, ["true"])]
    assert len(set(names)) == len(names) == 4 * (20 + 2 * 3)
