# SPDX-License-Identifier: Apache-2.0
"""Where the time of a real docker create and docker start goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from observe.api import OpenRecording

__version__ = "0.1.0"


def open(path: str | os.PathLike[str]) -> OpenRecording:  # noqa: A001 - read as observe.open
    """A recording as DataFrames: `.runs`, `.phases`, `.events`; also `.loss`, `.warnings`, `.host`, `.engine`.

    Their columns and units are described at `observe.api.OpenRecording`. Raises RecordingError.
    """
    from observe.api import open_recording  # noqa: PLC0415 - pandas, which no command line needs at once

    return open_recording(path)
