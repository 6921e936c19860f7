# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, one line for what went wrong, and the commands that need no engine."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from observe import __version__, commands
from observe.__main__ import main
from observe.commands import _streams
from observe.errors import DataLostError, HostCannotError, ObserveError, RegressionError
from observe.model import Event, EventBatch, Header, Kind, Loss, Mark
from observe.recording import Recording, RecordingWriter
from observe.reports import Page, bench_json
from observe.reports.bench_rows import Bench

COMMANDS = Path(commands.__file__).parent
FIXTURE = Path(__file__).parents[1] / "fixtures" / "three-at-once.observe"


class Spy:
    """A command that does what it was made for, and remembers what it was given."""

    NAME = "phases"
    HELP = "spy"

    def __init__(self, outcome=0):
        self.outcome = outcome
        self.args = None

    def configure(self, parser):
        parser.add_argument("words", nargs="*")

    def run(self, args):
        self.args = args
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def spy(monkeypatch):
    """Puts a spy in the place of `observe phases`."""

    def place(outcome=0):
        one = Spy(outcome)
        monkeypatch.setattr(commands, "load", lambda _name: one)
        return one

    return place


# Exit codes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (0, 0),
        (7, 7),
        (ObserveError("it failed; do this"), 1),
        (HostCannotError("no tracefs; mount it"), 3),
        (DataLostError("lost"), 4),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (ValueError("surprise"), 1),
    ],
)
def test_exit_codes(spy, outcome, code):
    spy(outcome)
    assert main(["phases"]) == code


def test_an_error_is_one_line_that_names_us(spy, capsys):
    spy(ObserveError("web\x1b[31m\nfailed;\tdo this"))
    main(["phases"])
    assert capsys.readouterr().err == "observe: web [31m failed; do this\n"


@pytest.mark.parametrize("outcome", [KeyboardInterrupt(), BrokenPipeError()])
def test_who_stopped_us_knows_it(spy, outcome, capsys):
    spy(outcome)
    main(["phases"])
    assert capsys.readouterr().err == ""


def test_the_unexpected_is_one_line_that_says_how_to_see_more(spy, capsys):
    spy(ValueError("surprise"))
    main(["phases"])
    err = capsys.readouterr().err
    assert err == "observe: unexpected ValueError: surprise; run again with --debug for the traceback\n"


@pytest.mark.parametrize("arguments", [["--debug", "phases"], ["phases", "--debug"], ["phases", "a", "--debug"]])
@pytest.mark.parametrize("outcome", [ValueError("surprise"), ObserveError("surprise")])
def test_debug_gives_the_traceback_wherever_it_stands(spy, arguments, outcome, capsys):
    one = spy(outcome)
    assert main(arguments) == 1
    assert one.args is not None
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].endswith("surprise")


def test_debug_behind_two_dashes_belongs_to_the_recorded_command(spy, capsys):
    one = spy(ValueError("surprise"))
    main(["phases", "--", "--debug"])
    assert one.args is not None
    assert one.args.words == ["--debug"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["--nonsense"], ["phases", "-f", "png"], ["report"], ["import"]]
)
def test_wrong_usage_is_two(arguments, capsys):
    assert main(arguments) == 2
    assert re.fullmatch(r"observe: .*; see observe .*--help\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "A", "B", "C", "D"], "compare: unrecognized arguments: C D; see observe compare --help"),
        (["phases", "--nonsense"], "phases: unrecognized arguments: --nonsense; see observe phases --help"),
        (["--nonsense", "phases"], "unrecognized arguments: --nonsense; see observe --help"),
    ],
)
def test_a_wrong_usage_is_said_by_the_command_that_it_is_of(arguments, said, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"observe: {said}\n"


def test_a_wrong_command_is_answered_with_the_right_ones(capsys):
    main(["nonsense"])
    err = capsys.readouterr().err
    assert all(name in err for name in commands.COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"observe {__version__}\n"


# The list of commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_command_is_what_the_list_says(name):
    spec = importlib.util.find_spec(commands.module_name(name))
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("NAME", "HELP"):
                found[node.targets[0].id] = ast.literal_eval(node.value)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = [argument.arg for argument in node.args.args]
    assert found["NAME"] == name
    assert found["HELP"] == commands.COMMANDS[name]
    assert (found["configure"], found["run"]) == (["parser"], ["args"])


def test_no_command_is_forgotten():
    stems = {path.stem.rstrip("_") for path in COMMANDS.glob("*.py")} - {"__init__", ""}
    assert {stem for stem in stems if not stem.startswith("_")} == set(commands.COMMANDS)


def test_no_such_command():
    with pytest.raises(KeyError):
        commands.load("nonsense")


def run_python(code, **environ):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
    )


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_loads_nothing_heavy(argument):
    heavy = {"numpy", "pandas", "docker", "bcc", "pyinotify", "matplotlib", "observe.model"}
    done = run_python(
        f"import sys, observe.__main__ as m\nassert m.main([{argument!r}]) == 0\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    if argument == "--help":
        assert all(name in done.stdout for name in commands.COMMANDS)


def test_a_reader_that_leaves_early_hears_no_complaint():
    done = subprocess.run(
        ["bash", "-c", '"$0" -m observe phases -f json | true; echo ${PIPESTATUS[0]}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    # Whether the reader was gone before the last byte is the kernel's choice.
    assert done.stdout in ("141\n", "0\n")
    assert done.stderr == ""


def test_the_exit_code_is_the_same_when_nobody_reads_stderr():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "observe", "serve", "--listen", "0.0.0.0:0"],
            stderr=writing,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        os.close(writing)
    assert done.returncode == 2


# Standard streams ------------------------------------------------------------------------------------------

#: Python's own standard output, and one whose write that was only half done is taken for a whole one.
buffered_or_not = pytest.mark.parametrize("unbuffered", ["", "1"])


def environment(**environ):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", **environ}


def in_shell(line, *arguments, **environ):
    """What became of a shell's line, in which "$@" is observe with these arguments."""
    return subprocess.run(
        ["bash", "-c", line, "-", sys.executable, "-m", "observe", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(**environ),
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@buffered_or_not
@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["phases"],
        ["phases", "-f", "json"],
        ["report", str(FIXTURE)],
        ["report", str(FIXTURE), "-f", "html"],
        ["compare", str(FIXTURE), str(FIXTURE), "--fail-above", "0"],
    ],
)
def test_a_full_disk_is_said_once(arguments, unbuffered):
    done = in_shell('"$@" > /dev/full', *arguments, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == (
        "observe: standard output cannot be written: No space left on device; "
        "make room, or send the output to another place\n"
    )


@buffered_or_not
@pytest.mark.parametrize("form", ["json", "html"])
def test_a_disk_that_becomes_full_cuts_nothing_off_in_silence(form, unbuffered, tmp_path):
    # The limit of a file's size (in KiB) lets a part of it through, as a disk does.
    line = f'ulimit -f 8; "$@" > "{tmp_path}/out"'
    done = in_shell(line, "report", str(FIXTURE), "-f", form, PYTHONUNBUFFERED=unbuffered)
    assert (tmp_path / "out").stat().st_size == 8 << 10
    assert done.returncode == 1
    assert done.stderr.startswith("observe: standard output cannot be written: File too large; ")
    assert len(done.stderr.splitlines()) == 1


@buffered_or_not
def test_a_reader_that_leaves_in_the_middle_ends_it(unbuffered):
    command = [sys.executable, "-m", "observe", "report", str(FIXTURE), "-f", "html"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(PYTHONUNBUFFERED=unbuffered)
    ) as process:
        # A pipe holds less than the page has: it waits in the middle of a write.
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""


def test_a_report_that_a_regression_ends_with_is_written_first(spy, monkeypatch):
    """`compare --fail-above` says 5 only of a comparison that could be read."""
    one = spy()

    def run(_args):
        _streams.write("told")
        raise RegressionError("slower")

    one.run = run
    assert main(["phases"]) == 5
    with Path("/dev/full").open("w") as full, monkeypatch.context() as place:
        place.setattr(sys, "stdout", full)
        assert main(["phases"]) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_change_neither_the_result_nor_the_exit_code(closed, recording, tmp_path):
    path = recording(events=5000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - len(data) // 3])  # there is something to warn of
    out = tmp_path / "out.json"
    done = in_shell(f'"$@" {closed}', "report", "--strict", "-f", "json", "-o", str(out), str(path))
    assert done.returncode == 4
    assert json.loads(out.read_text())["loss"]["damaged_bytes"] > 0
    assert done.stdout == ""
    assert ("Traceback" in done.stderr, bool(done.stderr)) == (False, "2>&-" not in closed)


def test_warnings_of_a_closed_stderr_are_not_in_the_data(recording):
    path = recording(events=5000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - len(data) // 3])
    done = in_shell('"$@" 2>&-', "report", "-f", "json", str(path))
    assert done.returncode == 0
    assert json.loads(done.stdout)["warnings"]


@pytest.mark.parametrize("arguments", [["--version"], ["phases"], ["report", str(FIXTURE)]])
def test_output_for_nobody_is_no_error(arguments):
    done = in_shell('"$@" >&-', *arguments)
    assert (done.returncode, done.stderr) == (0, "")


# report ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path):
    """Writes a recording of so many mkdirs; without any operation."""

    def write(name="a.rec", events=5, **header):
        path = tmp_path / name
        with RecordingWriter(path, Header({"hostname": "node1"}, {}, 0, 0, __version__, **header)) as writer:
            writer.write(EventBatch.of(Event(time_ns=n, kind=Kind.MKDIR, path=f"/d{n}") for n in range(events)))
        return path

    return write


def test_a_recording_without_any_operation_says_so(recording, capsys):
    assert main(["report", str(recording())]) == 0
    out = capsys.readouterr().out
    assert "No docker create and no docker start" in out
    assert "node1" in out


def test_many_files_make_one_report(recording, capsys):
    assert main(["report", str(recording("a.rec")), str(recording("b.rec")), "-f", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["runs"], document["host"]["hostname"]) == ([], "node1")


def test_the_report_goes_where_it_was_sent(recording, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["report", str(recording()), "-f", "json", "-o", str(out)]) == 0
    assert json.loads(out.read_text())["schema_version"] == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "a.rec"],
        ["report", "a.rec", "-f", "html"],
        ["compare", "a.rec", "b.rec"],
        ["export", "a.rec", "-t", "inotifywait"],
    ],
)
def test_no_recording_is_overwritten(arguments, recording, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(recording("a.rec"))
    recording("b.rec")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for target in before:
        assert main([*arguments, "-o", target]) == 2
        assert capsys.readouterr().err == (
            f"observe: {target} is a recording, which would be lost; name another file with -o\n"
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_older_report_is_overwritten(recording, tmp_path):
    out = tmp_path / "out"
    for content in (b"", b"older"):
        out.write_bytes(content)
        assert main(["report", str(recording()), "-o", str(out)]) == 0
        assert b"node1" in out.read_bytes()


def test_a_place_that_cannot_be_written_is_said(recording, tmp_path, capsys):
    assert main(["report", str(recording()), "-o", str(tmp_path / "no" / "where")]) == 1
    assert re.fullmatch(
        r"observe: .*no/where: cannot be written: .*; name another file with -o\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("content", [None, b"", b"not a recording at all, but long enough to be one" * 40])
def test_what_is_no_recording_is_refused_by_name(tmp_path, content, capsys):
    path = tmp_path / "foreign.rec"
    if content is not None:
        path.write_bytes(content)
    assert main(["report", str(path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("observe: ")
    assert "foreign.rec" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["report"], ["compare", str(FIXTURE)], ["export", "-t", "csv"]], ids=lambda words: words[0]
)
def test_the_result_of_a_bench_is_called_by_its_name(arguments, tmp_path, capsys):
    path = tmp_path / "renamed.json"
    path.write_text(bench_json.render(Bench({}, {}, 0, 1, 1, 1, 7, ["true"], [], [], []), Page()))
    assert main([*arguments, str(path)]) == 1
    assert capsys.readouterr().err == (
        f"observe: cannot read {path}: it is a bench's result; name one of its *.observe, or, to compare, its folder\n"
    )


@pytest.mark.parametrize("content", ["{", '{"schema_version": 1, "runs": []}', "[" * 100_000])
def test_other_json_is_not_taken_for_the_result_of_a_bench(content, tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text(content)
    assert main(["report", str(path)]) == 1
    assert "not a recording of observe" in capsys.readouterr().err


def test_a_damaged_recording_is_reported_as_far_as_it_goes(recording, capsys):
    path = recording(events=5000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - len(data) // 3])
    assert main(["report", str(path), "-f", "json"]) == 0
    seen = capsys.readouterr()
    document = json.loads(seen.out)
    assert document["loss"]["damaged_bytes"] > 0
    assert document["warnings"]
    for warning in document["warnings"]:
        assert f"observe: warning: {warning}" in seen.err.splitlines()
        assert warning.startswith(str(path))


def test_strict_exits_with_four_only_when_data_was_lost_and_still_writes_the_report(recording, capsys):
    whole, cut = recording("whole.rec"), recording("cut.rec", events=5000)
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) - len(data) // 3])
    assert main(["report", "--strict", str(whole)]) == 0
    capsys.readouterr()
    assert main(["report", "--strict", "-f", "json", str(cut)]) == 4
    seen = capsys.readouterr()
    assert json.loads(seen.out)["loss"]["damaged_bytes"] > 0
    assert seen.err.splitlines()[-1].startswith("observe: data was lost")


def test_an_imported_recording_says_that_its_times_are_none(recording, capsys):
    assert main(["report", "-f", "json", str(recording(options={"origin": "import"}))]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert "not times" in warning


def test_a_recording_of_ours_has_nothing_to_warn_of(recording, capsys):
    assert main(["report", "-f", "json", str(recording())]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out)["warnings"] == []
    assert set(json.loads(seen.out)["loss"].values()) == {0}
    assert seen.err == ""
    assert Loss().data_was_lost is False


# import ----------------------------------------------------------------------------------------------------

LOG = """\
03/03/22 17:06 /var/lib/docker/overlay2/ abc-init CREATE,ISDIR
03/03/22 17:06 /var/lib/docker/overlay2/abc-init/ work CREATE,ISDIR
03/03/22 17:06 /var/lib/docker/containers/8f7318baf651f7a9539e1d41486151946b36af2
"""


def test_import_makes_a_recording_and_names_the_lines_it_left_out(tmp_path, capsys):
    log, out = tmp_path / "log", tmp_path / "out.rec"
    log.write_text(LOG)
    assert main(["import", "inotifywait", str(log), "-o", str(out)]) == 0
    err = capsys.readouterr().err
    assert err.splitlines()[0].startswith(f"observe: {log}:3: ")
    assert err.splitlines()[-1].endswith("events: 2, lines left out: 1")
    recorded = Recording.open(out)
    events = list(recorded.events())
    assert [event.path for event in events] == [
        "/var/lib/docker/overlay2/abc-init",
        "/var/lib/docker/overlay2/abc-init/work",
    ]
    assert all(event.marks & Mark.IMPORTED for event in events)
    assert recorded.header.options["origin"] == "import"
    assert recorded.header.engine == {"data_root": "/var/lib/docker"}
    assert recorded.damage.warnings == ()


def test_of_many_lines_that_cannot_be_read_ten_are_told_and_the_others_counted(tmp_path, capsys):
    log, out = tmp_path / "log", tmp_path / "out\x1b[2J.rec"
    for bad in (10, 300):
        log.write_text(f"no event{' ' * 9000}.\n" * bad + LOG)
        assert main(["import", "inotifywait", str(log), "-o", str(out)]) == 0
        told = capsys.readouterr().err.splitlines()
        assert [line.split(":")[2] for line in told[:10]] == [str(number) for number in range(1, 11)]
        assert max(map(len, told)) < 1000
        # The log has another one.
        assert told[10] == f"observe: {log}: other lines that cannot be read: {bad + 1 - 10}"
        assert told[11:] == [f"{tmp_path}/out\\x1b[2J.rec: events: 2, lines left out: {bad + 1}"]


def test_a_log_without_any_readable_line_is_an_error_and_makes_no_file(tmp_path, capsys):
    log, out = tmp_path / "log", tmp_path / "out.rec"
    log.write_text("this is\nno log\n")
    assert main(["import", "inotifywait", str(log), "-o", str(out)]) == 1
    assert "no line of it can be read" in capsys.readouterr().err
    assert not out.exists()


def test_a_log_that_is_not_there_is_an_error(tmp_path, capsys):
    assert main(["import", "inotifywait", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_log_may_hold_any_byte(tmp_path, capsys):
    log, out = tmp_path / "log", tmp_path / "out.rec"
    log.write_bytes(LOG.encode() + b"03/03/22 17:06 /var/lib/docker/tmp/ caf\xe9\x1b CREATE\n\xff\x1b[2J\n")
    assert main(["import", "inotifywait", str(log), "-o", str(out)]) == 0
    assert Recording.open(out).events().strings[-1].endswith("caf\\xe9\x1b")
    assert "\x1b" not in capsys.readouterr().err
