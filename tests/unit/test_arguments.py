# SPDX-License-Identifier: Apache-2.0
"""Arguments are completed only with what the kernel began to record, and secrets are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe.collectors.arguments import REDACTED, complete_arguments, redact
from observe.model import Event, EventBatch, Kind, Mark

ID = "0123456789abcdef" * 4
TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)


def words(*arguments: str) -> str:
    return "\0".join(arguments)


def exec_event(detail: str, marks: Mark = Mark(0), kind: Kind = Kind.SCHED_PROCESS_EXEC, pid: int = 7) -> Event:  # noqa: B008 - immutable
    return Event(time_ns=1, kind=kind, pid=pid, path="/bin/x", detail=detail, marks=marks)


def told(event: Event, proc: Path, *, with_values: bool = True) -> Event:
    (only,) = complete_arguments(EventBatch.of([event]), with_values=with_values, proc=proc)
    return only


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_bytes(b"runc\0--root\0" + b"r" * 300 + b"\0init\0")
    return tmp_path


WHOLE = words("runc", "--root", "r" * 300, "init")


@pytest.mark.parametrize(
    "recorded",
    ["", "runc", words("runc", "--ro"), words("runc", "--root", "r" * 255), words("runc", "--root", "r" * 255, "in")],
)
@pytest.mark.parametrize("mark", [Mark.TRUNCATED, Mark.PATH_UNREADABLE, Mark.TRUNCATED | Mark.PATH_UNREADABLE])
def test_completed(recorded: str, mark: Mark, proc: Path) -> None:
    event = told(exec_event(recorded, mark | Mark.ENTRYPOINT), proc)
    assert (event.detail, event.marks) == (WHOLE, Mark.FROM_PROC | Mark.ENTRYPOINT)


@pytest.mark.parametrize(
    "event",
    [
        exec_event("runc"),
        exec_event("runc", Mark.TRUNCATED, Kind.EXECVE),
        exec_event("runc", Mark.TRUNCATED, pid=8),
        exec_event(words("runc", "-root"), Mark.TRUNCATED),
        exec_event(words("runc", "--root", "r" * 300, "init", "more"), Mark.TRUNCATED),
        exec_event("other", Mark.TRUNCATED),
    ],
    ids=["whole", "of the call", "gone", "another argument", "fewer arguments", "another program"],
)
def test_left_as_recorded(event: Event, proc: Path) -> None:
    assert told(event, proc) == event


def test_an_empty_command_line_is_none(proc: Path) -> None:
    (proc / "7" / "cmdline").write_bytes(b"")
    event = exec_event("", Mark.PATH_UNREADABLE)
    assert told(event, proc) == event


def test_a_command_line_that_is_no_text(proc: Path) -> None:
    (proc / "7" / "cmdline").write_bytes(b"caf\xe9\0")
    assert told(exec_event("", Mark.PATH_UNREADABLE), proc).detail == "caf\\xe9"


def test_completed_before_it_is_redacted(proc: Path) -> None:
    (proc / "7" / "cmdline").write_bytes(b"shell\0" + ID.encode() + b"\0hunter2\0")
    event = told(exec_event("shell", Mark.TRUNCATED), proc, with_values=False)
    assert event.detail == words("shell", ID, REDACTED)
    assert event.marks == Mark.FROM_PROC | Mark.REDACTED


ENGINE = [
    words("containerd-shim-runc-v2", "-namespace", "moby", "-id", ID, "start"),
    words("/usr/bin/containerd-shim", "-x"),
    words("runc", "--root", "/run", "create", ID),
    words("/proc/self/exe", "--root", "/run/x", "--log-format", "json", "init"),
    words("/opt/my-runtime", "create", "--bundle", "/run/x", ID),
    words("libnetwork-setkey", "-exec-root=/run", ID),
    words("docker-proxy", "-proto", "tcp"),
    words("iptables", "--wait", "-t", "nat"),
    words("/sbin/ip6tables-restore", "-n"),
    words("docker-untar", "/", "/x"),
]
FOREIGN = [
    words("mysqld", "--password=hunter2"),
    words("sh", "-c", "hunter2"),
    words("runcible", "hunter2"),
    words("/runc/x", "hunter2"),
    words("mount.cifs", "-o", "hunter2"),
    words("docker", "login", "-p", "hunter2"),
    words("hook", "--log-format", "json", "--password=hunter2"),
]


@pytest.mark.parametrize("arguments", ENGINE)
def test_the_engines_own_stay(arguments: str) -> None:
    assert redact(arguments, entrypoint=False) == arguments


@pytest.mark.parametrize("arguments", [*FOREIGN, words("runc", "hunter2"), words("x", "--bundle", "hunter2")])
def test_an_entrypoint_is_left_out_whatever_its_name(arguments: str) -> None:
    kept = redact(arguments, entrypoint=True)
    assert "hunter2" not in kept
    assert kept.split("\0")[0] == arguments.split("\0", maxsplit=1)[0]
    assert kept.count("\0") == arguments.count("\0")


@pytest.mark.parametrize("arguments", FOREIGN)
def test_foreign_ones_are_left_out(arguments: str) -> None:
    assert "hunter2" not in redact(arguments, entrypoint=False)


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_redacting_leaves_nothing_but_the_name_and_ids(arguments: list[str]) -> None:
    kept = redact(words(*arguments, ID, f"{ID}0", f"x{ID}"), entrypoint=True).split("\0")
    assert kept == [arguments[0], *[REDACTED] * (len(arguments) - 1), ID, REDACTED, REDACTED]
    assert redact(words(*kept), entrypoint=True).split("\0") == kept


@pytest.mark.parametrize("kind", [Kind.SCHED_PROCESS_EXEC, Kind.EXECVE, Kind.EXECVEAT])
def test_what_is_left_out_is_nowhere_in_the_batch(kind: Kind, tmp_path: Path) -> None:
    events = [
        Event(time_ns=1, kind=Kind.MKDIR, path="/before", comm="runc"),
        exec_event(words("sh", "-c", "hunter2"), kind=kind),
        exec_event(words("runc", "hunter2"), Mark.ENTRYPOINT, kind),
        exec_event(words("runc", "create", ID), kind=kind),
        Event(time_ns=2, kind=Kind.MOUNT, path="/after", path2="overlay", detail="overlay"),
    ]
    batch = complete_arguments(EventBatch.of(events), with_values=False, proc=tmp_path)
    assert not any("hunter2" in text for text in batch.strings)
    before, foreign, entrypoint, own, after = batch
    assert (before, own, after) == (events[0], events[3], events[4])
    assert (foreign.detail, foreign.marks) == (words("sh", REDACTED, REDACTED), Mark.REDACTED)
    assert (entrypoint.detail, entrypoint.marks) == (words("runc", REDACTED), Mark.REDACTED | Mark.ENTRYPOINT)
    assert batch.strings[0] == ""


def test_with_values_everything_stays(tmp_path: Path) -> None:
    events = [exec_event(words("sh", "-c", "hunter2"), marks) for marks in (Mark(0), Mark.ENTRYPOINT)]
    assert list(complete_arguments(EventBatch.of(events), with_values=True, proc=tmp_path)) == events


def test_a_batch_without_execs_is_the_same(tmp_path: Path) -> None:
    batch = EventBatch.of([Event(time_ns=1, kind=Kind.MKDIR, path="/x")])
    assert complete_arguments(batch, with_values=False, proc=tmp_path) is batch
