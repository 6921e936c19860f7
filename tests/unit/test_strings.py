# SPDX-License-Identifier: Apache-2.0
"""String arguments of functions, and the catalogue's keys for functions: read, and refused with a reason."""

from __future__ import annotations

import pytest

from observe.errors import ObserveError
from observe.phases import load
from observe.phases.catalogue import parse
from observe.phases.strings import StringArgument, load_strings, parse_strings
from observe.probes.functions import wanted

GOOD = """
[[string]]
means = "container id"
word = 3
functions = ["a.F", "b.(*T).G*"]

[[string]]
means = "name"
word = 0
functions = ["c.H"]
"""


def test_each_entry_is_an_argument_in_the_files_order():
    assert parse_strings(GOOD, "x.toml") == (
        StringArgument("container id", 3, ("a.F", "b.(*T).G*")),
        StringArgument("name", 0, ("c.H",)),
    )
    assert parse_strings("", "x.toml") == ()


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ('means = "container id"\n', "", "exactly the keys functions, means, word"),
        ("word = 3\n", "", "exactly the keys"),
        ("word = 3\n", "word = 3\nwhy = 1\n", "exactly the keys"),
        ("word = 3", "word = 7", "word must be between 0 and 6"),
        ("word = 3", "word = -1", "word must be between"),
        ("word = 3", 'word = "3"', "word must be between"),
        ("word = 3", "word = true", "word must be between"),
        ('["c.H"]', '"c.H"', "functions must be a list of names"),
        ('["c.H"]', '["c.H", ""]', "functions must be a list of names"),
        ("[[string]]", "[[string", "not TOML"),
    ],
)
def test_a_broken_rule_is_one_line_that_names_file_and_rule(good, bad, said):
    assert good in GOOD
    with pytest.raises(ObserveError, match=rf"^x\.toml: .*{said}") as caught:
        parse_strings(GOOD.replace(good, bad), "x.toml")
    assert "\n" not in str(caught.value)


def test_pointer_and_length_are_among_the_words_that_the_probe_keeps():
    for word in (0, 6):
        assert parse_strings(GOOD.replace("word = 3", f"word = {word}"), "x.toml")[0].word == word


def test_every_string_is_of_functions_that_are_probed():
    """As the catalogue names them, pattern by pattern: another spelling would never meet a function."""
    probed = {pattern for patterns in wanted(load()).values() for pattern in patterns}
    strings = load_strings()
    assert strings
    for argument in strings:
        assert set(argument.functions) <= probed, argument.means


def test_no_function_has_two_strings():
    functions = [function for argument in load_strings() for function in argument.functions]
    assert len(functions) == len(set(functions))


def test_each_engine_names_the_container_once_a_create_and_once_a_start():
    """What tells whose goroutine it is: one function of each operation at least, in every layout of the sources."""
    named = {
        function for argument in load_strings() if argument.means == "container id" for function in argument.functions
    }
    for source in ("github.com/docker/docker/", "github.com/moby/moby/v2/"):
        for phase in ("create.new_container", "start.containerd_create"):
            functions = next(each.functions for each in load().phases if each.id == phase)
            assert any(function.startswith(source) and function in named for function in functions), (source, phase)


# --- keys of the catalogue --------------------------------------------------------------------------------------------

CATALOGUE = """
[[phase]]
id = "op"
step = "1"
title = "all"

[[phase]]
id = "op.a"
parent = "op"
step = "1"
title = "first"
KEYS
"""


def phase_with(keys: str):
    return parse(CATALOGUE.replace("KEYS", keys), "x.toml")[-1]


def test_keys_for_functions_are_read():
    phase = phase_with('several = true\nto_entry = ["f"]\nfrom_return = ["g", "h"]\nwithin = ["op"]\nfunctions = ["k"]')
    assert phase.several is True
    assert (phase.to_entry, phase.from_return, phase.within) == (("f",), ("g", "h"), ("op",))
    assert phase.functions == ("k",)


def test_without_them_a_phase_is_in_one_place_and_bounded_by_its_own_functions():
    phase = phase_with("")
    assert phase.several is False
    assert phase.functions == phase.to_entry == phase.from_return == phase.within == ()


@pytest.mark.parametrize("key", ["functions", "to_entry", "from_return", "within"])
@pytest.mark.parametrize("value", ['"op"', '[""]', "[1]", "true", '["op", 2]'])
def test_lists_of_names_are_nothing_else(key, value):
    with pytest.raises(ObserveError, match=rf"^x\.toml: op\.a: {key} must be a list of names$"):
        phase_with(f"{key} = {value}")


@pytest.mark.parametrize("value", ['"true"', "1", "[]"])
def test_several_is_true_or_false(value):
    with pytest.raises(ObserveError, match=r"^x\.toml: op\.a: several must be true or false$"):
        phase_with(f"several = {value}")


def test_within_names_a_phase_of_the_same_operation():
    with pytest.raises(ObserveError, match=r"^x\.toml: op\.a: within names no phase of this file: op\.b$"):
        phase_with('within = ["op", "op.b"]')


def test_phases_bounded_by_the_functions_of_others_are_probed_with_them():
    found = wanted(load())
    for phase in load().phases:
        patterns = (*phase.functions, *phase.to_entry, *phase.from_return)
        assert found.get(phase.id, ()) == patterns
