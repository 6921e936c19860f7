# SPDX-License-Identifier: Apache-2.0
"""What is exported as inotifywait's log is the same after it was imported again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from situations import BAD_NAME, SITUATIONS, imported, situation
from streams import DATA, FIXTURES, IN_CREATE, IN_ISDIR, IN_MODIFY, SECOND, told

from observe.__main__ import main
from observe.collectors.inotifywait_log import read_log
from observe.escape import printable
from observe.export.inotifywait import encode
from observe.inotify_words import MASK_WORDS, words
from observe.model import EventBatch, Header, Kind, Mark
from observe.phases import load
from observe.recording import Recording
from observe.reports.assemble import assemble

#: 3 March 2022, 11:44 UTC, an hour after the host was started.
HEADER = Header({}, {}, boot_time_ns=3600 * SECOND, wall_time_ns=1646307840 * SECOND, tool_version="0")
NO_CLOCK = Header({}, {}, 0, 0, "0")
NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1)


def export(path, out):
    assert main(["export", str(path), "-t", "inotifywait", "-o", str(out)]) == 0
    return out


# One line of the first has lost a space, one of the second was cut off.
@pytest.mark.parametrize(("log", "changed"), [("create", 1), ("start", 1), ("pull", 0)])
def test_the_walk_throughs_logs_come_back_as_they_were(log, changed, tmp_path):
    original = FIXTURES / f"inotify-{log}-19.03.log"
    first = imported(tmp_path / "1.observe", original)
    again = imported(tmp_path / "2.observe", export(first, tmp_path / "log"))
    reports = [assemble(path, load(), keep_events=True)[0] for path in (first, again)]
    assert len(reports[0].runs) == 1
    assert reports[1].runs == reports[0].runs
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == len(read_log(original.read_text()).events)
    # An event of a watched directory itself comes back with the directory's name; the others to the letter.
    named = Counter(line for line in original.read_text().splitlines() if "/  " not in line)
    assert (named - Counter(lines)).total() == changed


@pytest.mark.parametrize("name", SITUATIONS)
def test_file_events_of_any_recording_come_back(name, tmp_path):
    path = situation(name, tmp_path)
    expected = [
        (printable(event.path), event.flags)
        for event in Recording.open(path).events()
        if event.kind is Kind.INOTIFY and Mark.INVENTED not in event.marks
    ]
    log = read_log(export(path, tmp_path / "log").read_text())
    assert log.problems == ()
    assert [(event.path, event.flags) for event in log.events] == expected


@given(names=st.lists(NAMES, min_size=1, max_size=3), clock=st.sampled_from([HEADER, NO_CLOCK]))
@example([BAD_NAME], HEADER)
@example([" a b "], HEADER)
@example(["CREATE"], NO_CLOCK)
@example(["  "], NO_CLOCK)
@example(["a", "MODIFY,ISDIR x"], HEADER)
def test_any_name_comes_back_printable(names, clock):
    path = f"{DATA}/{'/'.join(names)}"
    log = read_log(encode(EventBatch.of([told(path, IN_CREATE | IN_ISDIR, 7200 * SECOND)]), clock))
    assert log.problems == ()
    assert [(event.path, event.flags) for event in log.events] == [(printable(path), IN_CREATE | IN_ISDIR)]


def test_lines_have_the_time_of_their_events_in_utc():
    made = [told(f"{DATA}/x", IN_MODIFY, (3600 + seconds) * SECOND) for seconds in (0, 59, 60, 86400)]
    lines = encode(EventBatch.of(made), HEADER).splitlines()
    assert lines[0] == f"03/03/22 11:44 {DATA}/ x MODIFY"
    assert [line[:14] for line in lines] == ["03/03/22 11:44"] * 2 + ["03/03/22 11:45", "04/03/22 11:44"]


def test_an_imported_log_keeps_the_one_time_that_it_has():
    lines = [told(f"{DATA}/x", IN_MODIFY, number * 3600 * SECOND, Mark.IMPORTED) for number in (1, 2)]
    assert {line[:14] for line in encode(EventBatch.of(lines), HEADER).splitlines()} == {"03/03/22 11:44"}


def test_without_a_clock_the_format_is_inotifywaits_own():
    assert encode(EventBatch.of([told(f"{DATA}/x", IN_MODIFY, 1)]), NO_CLOCK) == f"{DATA}/ MODIFY x\n"


def test_what_no_log_can_say_is_left_out():
    made = [told("", IN_MODIFY, 1), told("relative", IN_MODIFY, 1), told("/x", 0, 1)]
    assert encode(EventBatch.of([*made, told("/x", IN_CREATE, 1, Mark.INVENTED)]), HEADER) == ""


@pytest.mark.parametrize("word", MASK_WORDS.keys() - {"CLOSE", "MOVE"})
def test_each_word_stands_for_its_bit(word):
    assert words(MASK_WORDS[word]) == word
    assert words(MASK_WORDS["ISDIR"] | MASK_WORDS["CREATE"]) == "CREATE,ISDIR"
