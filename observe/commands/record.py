# SPDX-License-Identifier: Apache-2.0
"""`observe record`: attach to a live dockerd, keep what happens in a file."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf
from pathlib import Path
from types import FrameType

import numpy as np

from observe import host
from observe.collectors.session import POLL_SECONDS, Session, boot_clock_ns
from observe.commands._session import LiveLine, add_arguments, options
from observe.engine import find_engine
from observe.errors import DataLostError, EngineGoneError
from observe.model import EventBatch, Item, Kind, Loss, Note, NoteKind
from observe.recording import RecordingWriter
from observe.reports import Page, brief
from observe.reports.assemble import conclude

NAME = "record"
HELP = "record a live dockerd while a command runs, or until stopped"

#: Whether what the time was spent on is recorded unless asked otherwise: it costs a start some 2% more (docs/cost.md).
WHY = False

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_LIVE_SECONDS = 0.5
_ALIVE_SECONDS = 0.25
#: After the command: file events that inotify tells late, answers of the engine.
_LINGER_SECONDS = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.usage = "observe record [options] [-- COMMAND [ARGUMENT ...]]"
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: observe-DATE-TIME.observe")
    parser.add_argument("--duration", metavar="SECONDS", type=_seconds, help="stop after so many seconds")
    add_arguments(parser)
    parser.add_argument(
        "--why",
        action=argparse.BooleanOptionalAction,
        default=WHY,
        help="also what the time was spent on, for observe report --why; docs/cost.md says what that costs",
    )
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="what to run while recording")


def run(args: argparse.Namespace) -> int:
    """Record. Raises HostCannotError before anything is attached, EngineGoneError if the engine ended meanwhile."""
    command: list[str] = args.command
    code = _command_missing(command)
    if code:
        return code
    host.require(host.checks())
    session = Session(find_engine(args.docker_host), replace(options(args), why=args.why))
    path: Path = args.output or Path(f"observe-{datetime.now().astimezone():%Y%m%d-%H%M%S}.observe")
    header = session.header({"command": _told_command(command, args.with_values)})
    with RecordingWriter(path, header) as writer, session:
        recorder = _Recorder(session, writer)
        code = recorder.record(command, args.duration)
    page = Page.of(sys.stderr)
    # Said first: whoever does not wait for the rest knows where it is.
    print(f"observe: recorded {recorder.events:,} events in {page.safe(str(path))}", file=sys.stderr)
    line = LiveLine()
    try:
        line.show(f"looking at {recorder.events:,} events")  # a million take ten seconds
        report = conclude(path)
    finally:
        line.clear()
    sys.stderr.write(brief.render(report, page))
    if recorder.engine_ended:
        raise EngineGoneError(f"the engine ended while it was recorded; what was recorded until then is in {path}")
    if args.strict and report.loss.data_was_lost:
        raise DataLostError("data was lost while recording; observe report says what")
    return code


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _command_missing(command: list[str]) -> int:
    """Say that the command cannot be run before anything is attached; the shell's exit code for it, or 0."""
    if not command or shutil.which(command[0]):
        return 0
    there = os.path.exists(command[0]) and "/" in command[0]  # noqa: PTH110 - a word of a command line
    what, code = ("not executable", _NOT_EXECUTABLE) if there else ("not found", _NOT_FOUND)
    print(f"observe: {Page().safe(command[0])}: command {what}", file=sys.stderr)
    return code


def _told_command(command: list[str], with_values: bool) -> list[str]:
    """The command as the recording keeps it: arguments may hold secrets."""
    return command if with_values else command[:1]


@dataclass
class _Recorder:
    """Moves items from a session into a file until it is time to stop."""

    session: Session
    writer: RecordingWriter
    events: int = 0
    operations: int = 0
    engine_ended: bool = False
    _stopped: bool = False
    _child: subprocess.Popen[bytes] | None = None
    _live: LiveLine = field(default_factory=LiveLine)

    def record(self, command: list[str], duration_seconds: float | None) -> int:
        """Until the command ends, the duration is over, a signal comes or the engine ends; the exit code."""
        with ExitStack() as restore:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                restore.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._take(self.session.start())
            code = self._run(command, duration_seconds)
            self._take(self.session.stop())
            end = {"exit_code": code, "engine_ended": self.engine_ended}
            self.writer.write(Note(NoteKind.END, boot_clock_ns(), end))
            self._live.clear()
        return code

    def _run(self, command: list[str], duration_seconds: float | None) -> int:
        started = time.monotonic()
        try:
            # The command has our terminal and our process group: Ctrl-C reaches it by itself.
            self._child = subprocess.Popen(command) if command else None
        except OSError as error:
            print(f"observe: {self._live.page.safe(command[0])}: {error.strerror}", file=sys.stderr)
            return _NOT_EXECUTABLE
        with ExitStack() as stack:
            ended = []  # can be read once the command has ended
            if self._child:
                ended.append(os.pidfd_open(self._child.pid))
                stack.callback(os.close, ended[0])
            self._until_over(started, duration_seconds, ended)
        return self._end_of_child()

    def _until_over(self, started: float, duration_seconds: float | None, descriptors: Sequence[int]) -> None:
        """Take what arrives. `started` is on the monotonic clock; `descriptors` end the wait for more."""
        alive_due = live_due = started
        while not self._is_over(started, duration_seconds):
            left_seconds = inf if duration_seconds is None else started + duration_seconds - time.monotonic()
            self.session.wait(max(min(left_seconds, _ALIVE_SECONDS), 0), *descriptors)
            self._take(self.session.poll())
            now = time.monotonic()
            if now >= alive_due:
                alive_due = now + _ALIVE_SECONDS
                self.engine_ended = not self.session.engine.is_alive()
            if self._live.is_shown and now >= live_due:
                live_due = now + _LIVE_SECONDS
                self._show(now - started)

    def _is_over(self, started: float, duration_seconds: float | None) -> bool:
        if self.engine_ended or (self._child is None and self._stopped):
            return True
        if duration_seconds is not None and time.monotonic() - started >= duration_seconds:
            return True
        return self._child is not None and self._child.poll() is not None

    def _end_of_child(self) -> int:
        if self._child is None:
            return 0
        deadline = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < deadline and not self.engine_ended:
            time.sleep(POLL_SECONDS)
            self._take(self.session.poll())
        if self._child.poll() is None:  # the duration is over or the engine ended: the command is not ours to kill
            return 0
        code = self._child.returncode
        return code if code >= 0 else 128 - code

    def _take(self, items: Iterable[Item]) -> None:
        for item in items:
            self.writer.write(item)
            if isinstance(item, EventBatch):
                self.events += len(item)
                self.operations += int(np.count_nonzero(item.rows["kind"] == Kind.API_RESPONSE))
        self.writer.flush_if_due(boot_clock_ns())

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        if self._child is not None and self._child.poll() is None and not (number == signal.SIGINT and _on_terminal()):
            self._child.send_signal(number)

    def _show(self, elapsed_seconds: float) -> None:
        facts = [
            f"recording {elapsed_seconds:.0f} s",
            f"{self.operations:,} operations",
            f"{self.events:,} events",
        ]
        losses = Loss(**self.session.losses())
        facts.append("events are being lost" if losses.data_was_lost else "nothing lost")
        self._live.show(self._live.page.dot.join(facts))


def _on_terminal() -> bool:
    """Whether Ctrl-C went to the command as well: both are in the terminal's foreground group."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
