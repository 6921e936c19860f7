# SPDX-License-Identifier: Apache-2.0
"""Arguments of executed programs: completed from /proc where the kernel could not read them, secrets left out."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import basename

import numpy as np

from observe.model import EventBatch, Kind, Mark, table_of_kinds

_PROC = Path("/proc")
_EXECS = table_of_kinds({Kind.SCHED_PROCESS_EXEC, Kind.EXECVE, Kind.EXECVEAT})
_INCOMPLETE = Mark.PATH_UNREADABLE | Mark.TRUNCATED
#: Programs of the engine itself: their arguments are ids, paths and addresses.
_ENGINE_PROGRAM = re.compile(
    r"containerd(-shim.*)?|runc|crun|youki|runsc|kata-runtime|dockerd|docker-(proxy|init|untar|applyLayer|.*-chroot)"
    r"|libnetwork-setkey|set-ipv6|setup-resolver|netns-create|set-default-vlan|mount|umount|modprobe|x?(ip6?|nf|eb)?tables.*|ipset|unpigz|gzip|zstd"
)
#: How a runtime of any name is called by its shim.
_RUNTIME_WORDS = frozenset({"--root", "--log", "--log-format", "--bundle", "--pid-file"})
_ID = re.compile(r"[0-9a-f]{64}")
REDACTED = "<redacted>"


def complete_arguments(batch: EventBatch, *, with_values: bool, proc: Path = _PROC) -> EventBatch:
    """The batch with the arguments (`detail`) of its execs as they may be recorded.

    Where the kernel could not read all of them, they come from /proc/PID/cmdline if the process still lives
    (Mark.FROM_PROC). Unless `with_values`, arguments of programs that are not the engine's own, and of every
    container's entrypoint, are left out but for the program's name and full ids (Mark.REDACTED).
    """
    indexes = np.flatnonzero(_EXECS[batch.rows["kind"]])
    if not len(indexes):
        return batch
    changed: dict[int, tuple[str, Mark]] = {}
    for index in indexes.tolist():
        row = batch.rows[index]
        before = (batch.strings[row["detail"]], Mark(int(row["marks"])))
        after = _recorded(*before, with_values=with_values)
        if row["kind"] == Kind.SCHED_PROCESS_EXEC and before[1] & _INCOMPLETE:
            found = _command_line(int(row["pid"]), proc)
            if found is not None and _completes(found, before[0]):
                after = _recorded(found, before[1] & ~_INCOMPLETE | Mark.FROM_PROC, with_values=with_values)
        if after != before:
            changed[index] = after
    if not changed:
        return batch
    rows, strings = batch.rows.copy(), list(batch.strings)
    for index, (text, marks) in changed.items():
        rows["marks"][index] = marks
        rows["detail"][index] = len(strings)
        strings.append(text)
    # What was left out must not stay in the table of strings.
    return EventBatch(rows, tuple(strings)).compacted()


def _recorded(arguments: str, marks: Mark, *, with_values: bool) -> tuple[str, Mark]:
    """Arguments and marks as they may be recorded."""
    if with_values:
        return arguments, marks
    kept = redact(arguments, entrypoint=bool(marks & Mark.ENTRYPOINT))
    return kept, marks | Mark.REDACTED if kept != arguments else marks


def redact(arguments: str, *, entrypoint: bool) -> str:
    """Arguments joined by NUL without what may be secret."""
    words = arguments.split("\0")
    is_engine = _ENGINE_PROGRAM.fullmatch(basename(words[0]))
    is_runtime = "--bundle" in words or len(_RUNTIME_WORDS & set(words)) > 1
    if not entrypoint and (is_engine or is_runtime):
        return arguments
    return "\0".join([words[0], *(word if _ID.fullmatch(word) else REDACTED for word in words[1:])])


def _completes(found: str, text: str) -> bool:
    """Whether `text` is what the kernel's record kept of `found`: arguments cut, the last left out."""
    parts, words = text.split("\0"), found.split("\0")
    return len(parts) <= len(words) and all(map(str.startswith, words, parts))


def _command_line(pid: int, proc: Path) -> str | None:
    try:
        data = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    return data.rstrip(b"\0").decode(errors="backslashreplace") or None
