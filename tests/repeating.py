# SPDX-License-Identifier: Apache-2.0
"""Long recordings made of short real ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from streams import SECOND, container_id

from observe.model import EventBatch, Item, Kind, Note, NoteKind

PIDS_APART = 10_000


def endless(fixture: Sequence[Item], times: int) -> Iterable[Item]:
    """A recording again and again: each time later, of other containers, layers and processes, by other goroutines."""
    batches = [item for item in fixture if isinstance(item, EventBatch)]
    notes = [item for item in fixture if isinstance(item, Note)]
    moments = np.concatenate([batch.rows["time_ns"] for batch in batches])
    lasts_ns = int(moments.max() - moments.min()) + SECOND
    seeds = [note for note in notes if note.kind in (NoteKind.PROCESS, NoteKind.FUNCTION)]
    daemons = [note.data["pid"] for note in seeds if note.kind is NoteKind.PROCESS]
    ids = [text for note in notes if note.kind is NoteKind.CONTAINER for text in (note.data["id"], note.data["layer"])]
    yield from seeds
    for turn in range(times):
        names = {text: container_id(turn * 100 + n) for n, text in enumerate(ids)}
        for item in fixture:
            if isinstance(item, EventBatch):
                strings = tuple(renamed(text, names, daemons, turn * PIDS_APART) for text in item.strings)
                yield EventBatch(moved(item.rows, turn, lasts_ns, daemons), strings)
            elif item.kind is NoteKind.CONTAINER:
                own = {key: names[item.data[key]] for key in ("id", "layer")}
                yield Note(item.kind, item.time_ns + turn * lasts_ns, {**item.data, **own})


def moved(rows: npt.NDArray[np.void], turn: int, lasts_ns: int, daemons: Sequence[int]) -> npt.NDArray[np.void]:
    rows = rows.copy()
    rows["time_ns"] += turn * lasts_ns
    rows["goroutine"] += turn << 20
    born = np.isin(rows["kind"], (Kind.SCHED_PROCESS_FORK, Kind.CLONE, Kind.CLONE3)) & (rows["ret"] > 0)
    rows["ret"][born] += turn * PIDS_APART
    own = ~np.isin(rows["pid"], [0, *daemons])
    for column in ("pid", "tid"):
        rows[column][own] += turn * PIDS_APART
    return rows


def renamed(text: str, names: Mapping[str, str], daemons: Sequence[int], pids_later: int) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    if (process := re.match(r"/proc/(\d+)/", text)) and int(process[1]) not in daemons:
        text = f"/proc/{int(process[1]) + pids_later}/{text[process.end() :]}"
    return text
