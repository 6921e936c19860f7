# SPDX-License-Identifier: Apache-2.0
"""One stream of a live engine becomes one recording an arm.

Turns follow each other with a pause, so whatever arrives belongs to the arm whose turn it is; what comes late (a
container's identity) goes where its container belongs. What must be known before (processes, functions) goes into all
of them. Operations that others ask of the engine meanwhile are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from observe.bench.plan import Arm, arm_of_container, prefix
from observe.collectors.session import boot_clock_ns
from observe.model import EventBatch, Header, Item, Kind, Loss, Note, NoteKind
from observe.recording import RecordingWriter

#: The recordings in a bench's folder.
ANY_RECORDING = "*.observe"


def path_of(folder: Path, arm: Arm) -> Path:
    """Where an arm's recording is."""
    return folder / f"{arm.name}.observe"


class ArmRecordings:
    """The recordings of all arms that are observed; a context manager that closes them."""

    def __init__(self, folder: Path, header: Header, arms: Sequence[Arm], token: str) -> None:
        """Create the files, all or none. Raises RecordingError if one cannot be written."""
        self._token = token
        self._paths: list[Path] = []
        self._losses: dict[str, dict[str, int]] = {arm.name: {} for arm in arms}
        self._told: dict[str, int] = {}
        self._stack = ExitStack()
        self._writers: dict[str, RecordingWriter] = {}
        try:
            for arm in arms:
                path = path_of(folder, arm)
                options = {**header.options, "bench": {"arm": arm.name, **arm.settings()}}
                writer = self._stack.enter_context(RecordingWriter(path, replace(header, options=options)))
                self._writers[arm.name] = writer
                self._paths.append(path)
        except BaseException:
            self.discard()
            raise

    def attached(self, items: Iterable[Item]) -> None:
        """A new session has begun with these items: its counters begin at 0."""
        self._told = {}
        for item in items:
            for writer in self._writers.values():
                writer.write(item)

    def take(self, items: Iterable[Item], arm: str | None) -> None:
        """Keep what has arrived in an arm's turn; None: in nobody's."""
        for item in items:
            if isinstance(item, EventBatch):
                self._write(arm, without_foreign_requests(item, prefix(self._token)))
            elif item.kind is NoteKind.LOSS:
                self.count(item.data, arm)
            elif item.kind is NoteKind.CONTAINER:
                self._write(arm_of_container(self._token, str(item.data.get("name", ""))) or arm, item)
            else:
                self._write(arm, item)
        now_ns = boot_clock_ns()
        for writer in self._writers.values():
            writer.flush_if_due(now_ns)

    def count(self, losses: Mapping[str, int], arm: str | None) -> None:
        """What the session has lost so far, by the names of `Loss`: what is new was lost in this arm's turn."""
        new = {name: count - self._told.get(name, 0) for name, count in losses.items()}
        self._told = dict(losses)
        if arm not in self._losses or not any(new.values()):
            return
        own = self._losses[arm]
        own.update({name: own.get(name, 0) + count for name, count in new.items()})
        self._write(arm, Note(NoteKind.LOSS, boot_clock_ns(), own))

    def loss(self, arm: str) -> Loss:
        """What an arm has lost so far, as counted while recording."""
        return Loss(**self._losses[arm])

    def end(self, why: str) -> None:
        """Mark the clean end of all recordings."""
        for name in self._writers:
            self._write(name, Note(NoteKind.END, boot_clock_ns(), {"why": why}))

    def discard(self) -> None:
        """Close all files and remove them: nothing was measured."""
        self._stack.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _write(self, arm: str | None, item: Item) -> None:
        if arm in self._writers:
            self._writers[arm].write(item)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self._stack.close()


def without_foreign_requests(batch: EventBatch, ours: str) -> EventBatch:
    """The same events without API requests whose target does not contain `ours`: they begin no operation then."""
    requests = batch.rows["kind"] == Kind.API_REQUEST
    if not requests.any():
        return batch
    named = np.array([ours in text for text in batch.strings])
    return EventBatch(batch.rows[~requests | named[batch.rows["path"]]], batch.strings)
