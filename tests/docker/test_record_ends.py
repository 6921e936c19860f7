# SPDX-License-Identifier: Apache-2.0
"""However a recording ends, what was recorded is readable and nothing stays attached (the fixture looks)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from engines import Engine, EngineFactory
from recorded import OBSERVE, api_client, record, recorder, report

from observe.model import Note, NoteKind
from observe.recording import Recording


def run_one(engine: Engine, tmp_path: Path) -> None:
    subprocess.run(api_client(engine, tmp_path / "times"), check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(engine: Engine, tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "signal.observe"
    with recorder(engine, path) as process:
        run_one(engine, tmp_path)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    damage = Recording.open(path).check()
    assert not damage.truncated
    assert [run["operation"] for run in report(path)["runs"]] == ["create", "start"]


def test_sigkill_keeps_what_was_recorded(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "killed.observe"
    with recorder(engine, path) as process:
        run_one(engine, tmp_path)
        # The identity of the container is a note, and a note is written with everything before it.
        recording = Recording.open(path)
        while not any(isinstance(item, Note) and item.kind is NoteKind.CONTAINER for item in recording.items()):
            assert process.poll() is None
        process.kill()
        process.wait(60)
    shown = subprocess.run([*OBSERVE, "report", str(path)], capture_output=True, text=True, check=True)
    assert "truncated" in shown.stderr
    assert "truncated" in shown.stdout
    assert report(path)["runs"][0]["operation"] == "create"
    assert report(path)["runs"][0]["outcome"] == "ok"


def test_an_engine_that_dies_is_said_and_the_recording_kept(new_engine: EngineFactory, tmp_path: Path) -> None:
    engine = new_engine()
    path = tmp_path / "died.observe"
    with recorder(engine, path) as process:
        run_one(engine, tmp_path)
        os.kill(engine.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the engine ended" in errors.splitlines()[-1]
    assert [run["operation"] for run in report(path)["runs"]] == ["create", "start"]


def test_exit_codes_of_the_command_are_passed_on(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "code.observe"
    for script, code in (("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 128 + signal.SIGTERM)):
        assert record(engine, path, ["sh", "-c", script], check=False).returncode == code
    assert record(engine, path, ["/no/such/program"], check=False).returncode == 127
    there = tmp_path / "there"
    there.touch()
    assert record(engine, path, [str(there)], check=False).returncode == 126


def test_a_recording_without_an_operation_says_what_to_try(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "nothing.observe"
    record(engine, path, ["true"])
    shown = subprocess.run([*OBSERVE, "report", str(path)], capture_output=True, text=True, check=True).stdout
    assert "No docker create and no docker start" in shown


def test_an_output_that_cannot_be_written_is_said_before_attaching(engine: Engine, tmp_path: Path) -> None:
    done = record(engine, tmp_path / "no" / "such" / "folder.observe", ["touch", str(tmp_path / "ran")], check=False)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_a_tiny_ring_loses_and_says_how_many(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "tiny.observe"
    done = record(
        engine,
        path,
        api_client(engine, tmp_path / "times", "--runs", "3"),
        "--ring-bytes",
        "4096",
        "--strict",
        check=False,
    )
    assert done.returncode == 4, done.stderr
    lost = report(path)["loss"]["ring_buffer"]
    assert lost > 0
    shown = subprocess.run([*OBSERVE, "report", str(path)], capture_output=True, text=True, check=True).stdout
    assert f"{lost:,}" in shown or str(lost) in shown


def test_duration_ends_it(engine: Engine, tmp_path: Path) -> None:
    command = [*OBSERVE, "record", "--docker-host", engine.url, "-o", str(tmp_path / "d.observe"), "--duration", "0.5"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    wrong = subprocess.run([*command[:-1], "-1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "no number of seconds" in wrong.stderr


def test_not_root_is_exit_3_in_one_line_each(engine: Engine, tmp_path: Path) -> None:
    command = [*OBSERVE, "record", "--docker-host", engine.url, "-o", str(tmp_path / "n.observe"), "--", "true"]
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 3, done.stderr
    assert all(line.startswith("observe: ") for line in done.stderr.splitlines())
    assert any("run as root" in line for line in done.stderr.splitlines())


def test_a_socket_that_is_not_dockers(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True)\n"
        "c, _ = s.accept(); c.recv(1000); c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}')\n"
    )
    other = tmp_path / "other.sock"
    with subprocess.Popen([sys.executable, "-c", code, str(other)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        command = [
            *OBSERVE,
            "record",
            "--docker-host",
            f"unix://{other}",
            "-o",
            str(tmp_path / "o.observe"),
            "--",
            "true",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        server.kill()
    assert done.returncode == 3
    assert "no Docker engine" in done.stderr
    assert len(done.stderr.splitlines()) == 1
