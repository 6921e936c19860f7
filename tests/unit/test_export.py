# SPDX-License-Identifier: Apache-2.0
"""`observe export`: every format over every kind of recording, and what it says when it cannot."""

from __future__ import annotations

import builtins
import subprocess
import sys

import pytest
from situations import SITUATIONS, situation

from observe.__main__ import main
from observe.escape import printable, spreadsheet_safe
from observe.export import perfetto

FORMATS = ("perfetto", "otlp", "parquet", "csv", "inotifywait")


def export(path, to, out, *options):
    return main(["export", str(path), "-t", to, *(["-o", str(out)] if out else []), *options])


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_takes_every_recording(to, name, tmp_path, capsys):
    path, out = situation(name, tmp_path), tmp_path / "out"
    capsys.readouterr()
    timeless = name.startswith("log")
    assert export(path, to, out) == (1 if to == "otlp" and timeless else 0)
    err = capsys.readouterr().err
    assert all(line.startswith("observe: ") for line in err.splitlines())
    assert err.replace("\n", "").isprintable()
    assert ("imported from a log" in err) == timeless
    if to == "otlp" and timeless:
        assert err.splitlines()[-1].startswith("observe: spans need times, and an imported log has none")
        assert not out.exists()
    elif to == "parquet":
        assert sorted(each.name for each in out.iterdir()) == ["events.parquet", "phases.parquet"]
    else:
        # Without a run or a file event there is nothing to say but, for some formats, how they begin.
        nothing = name == "empty" if to == "otlp" else name not in _WITH_FILES and to == "inotifywait"
        assert (out.read_bytes() == b"") == nothing


_WITH_FILES = ("create-start", "three-at-once", "functions", "hostile", "log", "log without times")


@pytest.mark.parametrize("to", ["csv", "inotifywait", "perfetto", "otlp"])
def test_standard_output_gets_what_a_file_would_have(to, tmp_path, capfdbinary):
    path, out = situation("create-start", tmp_path), tmp_path / "out"
    assert export(path, to, out) == 0
    assert export(path, to, None) == 0
    assert capfdbinary.readouterr().out == out.read_bytes() != b""


@pytest.mark.parametrize("to", ["perfetto", "otlp"])
def test_bytes_are_no_text_for_a_terminal(to, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert export(situation("one run", tmp_path), to, None) == 1
    assert "name a file with -o" in capsys.readouterr().err


def test_parquet_needs_a_folder(tmp_path, capsys):
    path = situation("one run", tmp_path)
    assert export(path, "parquet", None) == 1
    assert "name a folder" in capsys.readouterr().err
    assert export(path, "parquet", path) == 1
    assert "no folder can be made there" in capsys.readouterr().err


@pytest.mark.parametrize("to", FORMATS)
def test_where_nothing_can_be_written_is_said_in_one_line(to, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert export(situation("one run", tmp_path), to, tmp_path / "file" / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_no_recording_is_said_in_one_line(to, tmp_path, capsys):
    (tmp_path / "text").write_text("hello")
    assert export(tmp_path / "text", to, tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not a recording" in line


@pytest.mark.parametrize(
    ("to", "library"),
    [("perfetto", "perfetto"), ("otlp", "opentelemetry"), ("parquet", "pyarrow"), ("otlp", "google")],
)
def test_a_missing_library_is_named_with_what_brings_it(to, library, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("observe.export", library))]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert export(situation("one run", tmp_path), to, tmp_path / "out") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{library}." in line or f"{library} " in line
    assert "pip install 'observe[export]'" in line


def test_a_missing_module_of_ours_is_no_missing_library(tmp_path, capsys, monkeypatch):
    def surprise(_recorded):
        raise ModuleNotFoundError("No module named 'observe.surprise'", name="observe.surprise")

    monkeypatch.setattr(perfetto, "encode", surprise)
    assert export(situation("one run", tmp_path), "perfetto", tmp_path / "out") == 1
    assert "observe[export]" not in capsys.readouterr().err


def test_strict_is_four_where_data_was_lost_and_the_export_is_written_all_the_same(tmp_path, capsys):
    assert export(situation("losses", tmp_path), "csv", tmp_path / "out", "--strict") == 4
    assert "data was lost" in capsys.readouterr().err
    assert (tmp_path / "out").stat().st_size > 0
    assert export(situation("one run", tmp_path), "csv", tmp_path / "out", "--strict") == 0


def test_each_format_loads_its_own_library_only(tmp_path):
    path = situation("one run", tmp_path)
    code = (
        "import sys; from observe.__main__ import main\n"
        f"assert main(['export', {str(path)!r}, '-t', 'csv', '-o', {str(tmp_path / 'out')!r}]) == 0\n"
        "print(sorted({'perfetto', 'pyarrow', 'opentelemetry', 'pandas', 'matplotlib', 'google'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 你 <b>", "plain 你 <b>"),
        ("\x00\x1b\x7f\n", "\\x00\\x1b\\x7f\\x0a"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("\ud800\u202e\ue123", "\\ud800\\u202e\\ue123"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_does_not_print_is_an_escape(text, shown):
    assert printable(text) == shown
    assert printable(text).encode()


@pytest.mark.parametrize("text", ["=1", " +1", "-1", "@x", "\uff1d1", "'x"])
def test_a_spreadsheet_has_nothing_to_calculate(text):
    assert spreadsheet_safe(text) == f"'{text}"
    assert spreadsheet_safe("x" + text) == "x" + text
