# SPDX-License-Identifier: Apache-2.0
"""What is probed: numbers, cookies as the program reads them, and what is told of the rest."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observe.errors import ObserveError
from observe.phases.catalogue import Catalogue, parse
from observe.phases.strings import StringArgument
from observe.probes import targets as finding
from observe.probes.functions import plan, wanted
from observe.probes.resolve import Refused, Resolution, ResolvedFunction
from observe.probes.targets import find_targets

BPF = Path(__file__).parents[2] / "bpf"
CATALOGUE = Catalogue(
    parse(
        """
[[phase]]
id = "op"
step = "1"
title = "all"
functions = ["d.Handler"]
[[phase]]
id = "op.a"
parent = "op"
step = "1"
title = "a"
functions = ["d.A", "c.A"]
to_entry = ["d.B"]
[[phase]]
id = "op.a.deep"
parent = "op.a"
step = "1"
title = "deep"
functions = ["d.A"]
from_return = ["d.C"]
[[phase]]
id = "op.kernel"
parent = "op"
step = "1"
title = "on kernel evidence only"
evidence = [{ calls = ["mount"] }]
""",
        "x.toml",
    )
)
ID, PLACE = StringArgument("container id", 3, ("d.A",)), StringArgument("place", 0, ("d.B*", "d.A"))


def function(name: str, key: str = "op.a", offset: int = 0x1000, *, sp_adjust: int = 0) -> ResolvedFunction:
    return ResolvedFunction(key, 0, name, offset, 64, offset + 4, True, sp_adjust, (offset + 40, offset + 60))


def resolution(*functions: ResolvedFunction, register_abi: bool = True, refused: tuple[Refused, ...] = ()):
    return Resolution("id", "go1.19.8", "x86_64", register_abi, functions, refused, (), "")


def planned(strings=(), **binaries: Resolution):
    found = {name: (Path("/bin") / name, pid, each) for pid, (name, each) in enumerate(binaries.items(), 100)}
    return plan(found, CATALOGUE, strings)


def macro(name: str) -> re.Match[str]:
    """Shift and mask with which the program reads a part of the cookie."""
    text = (BPF / "functions.bpf.c").read_text()
    match = re.search(rf"#define {name}\(cookie\) \(\(cookie\)(?: >> (?P<shift>\d+))? & (?P<mask>\w+)\)", text)
    assert match, name
    return match


def part(cookie: int, name: str) -> int:
    """A part of a cookie as `bpf/functions.bpf.c` reads it."""
    match = macro(name)
    return cookie >> int(match["shift"] or 0) & int(match["mask"], 0)


def test_everything_that_the_catalogue_names_is_wanted_by_phase():
    assert wanted(CATALOGUE) == {
        "op": ("d.Handler",),
        "op.a": ("d.A", "c.A", "d.B"),
        "op.a.deep": ("d.A", "d.C"),
    }


def test_functions_are_numbered_from_one_across_the_binaries():
    dockerd, containerd = planned(
        dockerd=resolution(function("d.A"), function("d.B")), containerd=resolution(function("c.A"))
    )
    assert [(f.number, f.name, f.binary) for t in (dockerd, containerd) for f in t.functions] == [
        (1, "d.A", "dockerd"),
        (2, "d.B", "dockerd"),
        (3, "c.A", "containerd"),
    ]
    assert (dockerd.path, dockerd.pid, containerd.path, containerd.pid) == (
        Path("/bin/dockerd"),
        100,
        Path("/bin/containerd"),
        101,
    )


def test_a_function_of_several_phases_is_probed_once_at_its_shallowest():
    for order in ((0, 1), (1, 0)):
        both = [function("d.A", "op.a.deep"), function("d.A", "op.a")]
        (target,) = planned(dockerd=resolution(*(both[i] for i in order)))
        assert [(f.name, f.depth) for f in target.functions] == [("d.A", 1)]


def test_the_same_name_in_two_binaries_is_two_functions():
    targets = planned(shim=resolution(function("c.A")), runc=resolution(function("c.A")))
    assert [f.number for t in targets for f in t.functions] == [1, 2]


def test_a_binary_without_functions_is_no_target():
    assert planned(dockerd=resolution()) == ()
    assert planned(dockerd=resolution(function("d.A", sp_adjust=8))) == ()


def test_sites_are_the_entry_and_every_return():
    (target,) = planned(dockerd=resolution(function("d.A", offset=0x2000)))
    (only,) = target.functions
    assert [offset for offset, _ in only.sites()] == [0x2004, 0x2000 + 40, 0x2000 + 60]
    cookies = [cookie for _, cookie in only.sites()]
    assert [part(cookie, "COOKIE_IS_RETURN") for cookie in cookies] == [0, 1, 1]
    assert {part(cookie, "COOKIE_FUNCTION") for cookie in cookies} == {only.number}
    assert only.note() == {"number": 1, "name": "d.A", "binary": "dockerd", "entry_is_emulated": True, "sites": 3}


@pytest.mark.parametrize("register_abi", [True, False])
def test_the_cookie_says_where_arguments_and_goroutine_are(register_abi):
    (target,) = planned(dockerd=resolution(function("d.A"), function("d.B"), register_abi=register_abi))
    for each in target.functions:
        for _, cookie in each.sites():
            assert part(cookie, "COOKIE_STACK_ABI") == (not register_abi)


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 40), st.booleans())
def test_no_part_of_a_cookie_disturbs_another(word, count, register_abi):
    functions = [function(f"d.F{n}") for n in range(count)]
    (target,) = planned(
        [StringArgument("x", word, (f"d.F{count - 1}",))], dockerd=resolution(*functions, register_abi=register_abi)
    )
    for number, each in enumerate(target.functions, 1):
        entry, *returns = (cookie for _, cookie in each.sites())
        assert part(entry, "COOKIE_FUNCTION") == each.number == number
        assert part(entry, "COOKIE_STRING") == (word + 1 if number == count else 0)
        assert part(entry, "COOKIE_STACK_ABI") == (not register_abi)
        assert [part(cookie, "COOKIE_IS_RETURN") for cookie in (entry, *returns)] == [0, 1, 1]


def test_of_several_strings_the_first_counts_and_a_function_without_one_has_none():
    (target,) = planned([ID, PLACE], dockerd=resolution(function("d.A"), function("d.Bcd"), function("d.C")))
    assert [part(f.cookie, "COOKIE_STRING") for f in target.functions] == [4, 1, 0]


def test_the_program_knows_every_position_that_a_string_may_have():
    text = (BPF / "functions.bpf.c").read_text()
    words = int(re.search(r"#define WORDS (\d+)", text)[1])  # type: ignore[index]
    assert macro("COOKIE_STRING")["mask"] == "15"
    assert 6 + 1 < words <= 15


# --- of an engine -----------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """An engine whose four programs are resolved as the test says: name → resolution or error."""

    def make(answers, containerd_pid=41):
        files = {name: Path("/files") / name for name in ("dockerd", "containerd", "containerd-shim-runc-v2", "runc")}
        asked = []

        def resolve_in_child(paths, patterns, cache):
            asked.append((paths, patterns, cache))
            return {name: answers.get(name, resolution()) for name in paths}

        monkeypatch.setattr(finding, "binaries", lambda _engine: files)
        monkeypatch.setattr(finding, "resolve_in_child", resolve_in_child)
        found = find_targets(SimpleNamespace(pid=40, containerd_pid=containerd_pid), CATALOGUE, Path("/cache"))
        # dockerd by itself, the others together; each with everything that is wanted.
        groups = sorted((sorted(paths) for paths, _, _ in asked), key=len)
        assert groups == [["dockerd"], ["containerd", "containerd-shim-runc-v2", "runc"]]
        assert {name: path for paths, _, _ in asked for name, path in paths.items()} == files
        assert all(rest == (wanted(CATALOGUE), Path("/cache")) for _, *pair in asked for rest in [tuple(pair)])
        return found

    return make


def test_daemons_are_watched_as_processes_and_short_lived_programs_as_files(engine):
    every = {name: resolution(function("d.A")) for name in ("dockerd", "containerd", "containerd-shim-runc-v2", "runc")}
    assert {t.path.name: t.pid for t in engine(every).targets} == {
        "dockerd": 40,
        "containerd": 41,
        "containerd-shim-runc-v2": 0,
        "runc": 0,
    }
    assert {t.path.name: t.pid for t in engine(every, containerd_pid=None).targets}["containerd"] == 0


def test_a_binary_that_cannot_be_read_is_a_warning_and_the_rest_is_probed(engine):
    found = engine({"dockerd": resolution(function("d.A")), "runc": ObserveError("/files/runc: no Go program")})
    assert found.warnings == ("functions of runc are not timed: /files/runc: no Go program",)
    assert [t.path.name for t in found.targets] == ["dockerd"]
    assert found.refused == ()


def test_a_function_that_is_there_and_cannot_be_probed_is_told_with_its_reason(engine):
    refusal = Refused("op.a", "d.B", "it leaves by a tail jump")
    found = engine({"dockerd": resolution(function("d.A"), function("d.C", sp_adjust=16), refused=(refusal,))})
    assert [f.name for t in found.targets for f in t.functions] == ["d.A"]
    first, second = found.refused
    assert first == {"name": "d.B", "binary": "dockerd", "reason": "it leaves by a tail jump"}
    assert (second["name"], second["binary"]) == ("d.C", "dockerd")
    assert "stack pointer" in second["reason"]
    assert found.warnings == ()
