# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pyinotify
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from observe.collectors.inotifywait_log import read_log
from observe.inotify_words import MASK_WORDS
from observe.model import Kind, Mark

FIXTURES = Path(__file__).parent.parent / "fixtures"
TIME = "03/03/22 11:44 "


def fixture(name):
    return read_log((FIXTURES / f"inotify-{name}-19.03.log").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "events", "problems"), [("create", 56, 0), ("start", 20, 1), ("pull", 6, 0)])
def test_the_walk_throughs_logs_are_read_whole(name, events, problems):
    log = fixture(name)
    assert (len(log.events), len(log.problems)) == (events, problems)
    assert log.data_root == "/var/lib/docker"
    assert {(event.kind, event.marks) for event in log.events} == {(Kind.INOTIFY, Mark.IMPORTED)}
    assert all(event.path.startswith("/var/lib/docker/") for event in log.events)


def test_the_truncated_last_line_is_reported_by_number_and_not_guessed():
    (problem,) = fixture("start").problems
    assert problem.line == 21
    assert problem.text.endswith("/8f7318baf651f7a9539e1d41486151946b36af2")
    assert "cut off" in problem.reason


def test_the_line_that_lost_a_space_is_recovered():
    by_line = {event.time_ns // 1_000_000: event for event in fixture("create").events}
    assert by_line[31].path == by_line[30].path
    assert by_line[31].path.endswith("858745cb/link")
    assert (by_line[30].flags, by_line[31].flags) == (MASK_WORDS["CREATE"], MASK_WORDS["MODIFY"])


def test_an_event_of_the_directory_itself_has_the_directorys_path():
    events = list(fixture("create").events)
    assert events[7].path == events[6].path
    assert events[7].path.endswith("-init/work/work")


def test_time_is_the_lines_number_and_the_first_time_is_kept():
    log = fixture("create")
    assert [event.time_ns for event in log.events] == [number * 1_000_000 for number in range(1, 57)]
    assert log.wall_time_ns == 1_646_307_840 * 10**9  # 2022-03-03 11:44 UTC


@pytest.mark.parametrize(
    ("line", "path", "words"),
    [
        (TIME + "/r/overlay2/ x CREATE,ISDIR", "/r/overlay2/x", "CREATE,ISDIR"),
        (TIME + "/r/overlay2/  ATTRIB,ISDIR", "/r/overlay2", "ATTRIB,ISDIR"),
        (TIME + "/r/a b/ c d CREATE", "/r/a b/c d", "CREATE"),
        (TIME + "/r/ CREATE MODIFY", "/r/CREATE", "MODIFY"),
        (TIME + "/r/ my linkMODIFY", "/r/my link", "MODIFY"),
        (TIME + "/r/ cCLOSE_WRITE,CLOSE", "/r/c", "CLOSE_WRITE"),
        ("03/03/22 11:44:59 /r/ c DELETE", "/r/c", "DELETE"),
        ("/r/overlay2/ CREATE,ISDIR x", "/r/overlay2/x", "CREATE,ISDIR"),
        ("/r/overlay2/ CREATE x", "/r/overlay2/x", "CREATE"),
        ("/r/a b/ MOVED_TO c d", "/r/a b/c d", "MOVED_TO"),
        ("/r/overlay2/ ATTRIB,ISDIR ", "/r/overlay2", "ATTRIB,ISDIR"),
        ("/r/overlay2/ ATTRIB,ISDIR", "/r/overlay2", "ATTRIB,ISDIR"),
        ("/r/ CLOSE_NOWRITE,CLOSE,ISDIR x", "/r/x", "CLOSE_NOWRITE,ISDIR"),
        ("/ ATTRIB,ISDIR ", "/", "ATTRIB,ISDIR"),
    ],
)
def test_both_formats(line, path, words):
    log = read_log([line + "\n"])
    (event,) = log.events
    assert event.path == path
    assert event.flags == sum(MASK_WORDS[word] for word in words.split(","))


@pytest.mark.parametrize(
    "line",
    [
        TIME + "/r/overlay2/ abc",
        TIME + "/r/overlay2/ abc ",
        TIME + "/r/overlay2/ abc CREATE,ISD",
        TIME + "/r/overlay2/ abc CREATE,",
        TIME + "/r/overlay2/ abc MODIFYxx",
        TIME + "/r/overlay2/ CREATE",
        TIME + "/r/overlay2/",
        TIME + "/r/overl",
        TIME,
        "03/03/22 11:",
        "99/99/22 11:44 /r/ x CREATE",
        "/r/overlay2/ CREATE",
        "/r/overlay2/ CREA",
        "/r/overlay2/",
        "r/overlay2/ CREATE x",
        "something else",
        "/r/ Q_OVERFLOW ",
        " Q_OVERFLOW ",
        TIME + " Q_OVERFLOW",
        TIME + "/r/  Q_OVERFLOW",
    ],
)
def test_what_cannot_be_read_is_a_problem_with_its_number_and_text(line):
    log = read_log(["/r/tmp/ CREATE before", line, "/r/tmp/ CREATE after"])
    (problem,) = log.problems
    assert (problem.line, problem.text) == (2, line)
    assert [event.path for event in log.events] == ["/r/tmp/before", "/r/tmp/after"]


def test_a_cut_anywhere_in_a_line_never_invents_a_path():
    whole = TIME + "/r/containers/ .tmp-hostconfig.json38 CREATE,ISDIR"
    for length in range(1, len(whole)):
        log = read_log(whole[:length])
        assert len(log.events) + len(log.problems) == 1 or not whole[:length].strip()
        assert all(event.path == "/r/containers/.tmp-hostconfig.json38" for event in log.events)


def test_what_inotifywait_says_itself_is_no_problem():
    talk = "Setting up watches.  Beware: since -r was given, this may take a while!\nWatches established.\n\n"
    log = read_log(talk + "/r/tmp/ CREATE x\n")
    assert (len(log.events), log.problems) == (1, ())


def test_an_empty_log():
    log = read_log("")
    assert (len(log.events), log.problems, log.data_root, log.wall_time_ns) == (0, (), "", 0)


@pytest.mark.parametrize(
    ("lines", "data_root"),
    [
        (["/var/lib/docker/ CREATE tmp"], "/var/lib/docker"),
        (["/tmp/d/overlay2/ CREATE x", "/tmp/d/containers/ CREATE y"], "/tmp/d"),
        (["/mnt/volumes/d/overlay2/ CREATE x", "/mnt/volumes/d/network/files/ MODIFY y"], "/mnt/volumes/d"),
        (["/var/lib/docker/image/overlay2/layerdb/mounts/ CREATE x"], "/var/lib/docker"),
        (["/d/overlay2/x/diff/tmp/ CREATE y", "/d/overlay2/x/ CREATE z"], "/d"),
        (["/somewhere/else/ CREATE x"], ""),
    ],
)
def test_the_data_root_is_found(lines, data_root):
    assert read_log(lines).data_root == data_root


def test_the_words_are_the_kernels_bits():
    for word in MASK_WORDS.keys() - {"CLOSE", "MOVE"}:
        assert MASK_WORDS[word] == getattr(pyinotify, f"IN_{word}")


NAMES = st.text(st.characters(exclude_characters="/\0\n\r", exclude_categories=("Cs",)), min_size=1)


@example("a", "Q_OVERFLOW", "CREATE")
@example("CREATE", "CREATE,ISDIR x", "ATTRIB,ISDIR")
@given(NAMES, NAMES, st.sampled_from(["CREATE", "CREATE,ISDIR", "MODIFY", "ATTRIB,ISDIR", "MOVED_TO"]))
def test_every_name_survives_both_formats(directory, name, words):
    log = read_log([f"{TIME}/{directory}/ {name} {words}\n", f"/{directory}/ {words} {name}\n"])
    assert [event.path for event in log.events] == [f"/{directory}/{name}"] * 2
