# SPDX-License-Identifier: Apache-2.0
"""The standard streams: all of them there, standard output whole, and one line for what it cannot take."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from observe.errors import ObserveError


def prepare() -> None:
    """Open what was closed (`>&-`) on the null device; buffer standard output if it is not."""
    # In this order: each then gets its own number, which the next file that is opened would have taken.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, errors="backslashreplace"))  # noqa: PTH123, SIM115
    out = sys.stdout
    # With PYTHONUNBUFFERED it stands on the bare file, and a write that was only half done is taken for a whole one.
    if isinstance(getattr(out, "buffer", None), io.RawIOBase):
        sys.stdout = open(  # noqa: SIM115 - it stays open
            out.fileno(), "w", encoding=out.encoding, errors=out.errors, closefd=False
        )


def write(content: str | bytes) -> None:
    """All of it to standard output, now; text in its encoding. Raises like `flush`."""
    with _one_line():
        if isinstance(content, str):
            sys.stdout.write(content)
        else:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
    flush()


def flush() -> None:
    """Hand over what waits in standard output. Raises ObserveError, BrokenPipeError if nobody reads any more."""
    with _one_line():
        sys.stdout.flush()


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ObserveError(
            f"standard output cannot be written: {error.strerror}; make room, or send the output to another place"
        ) from error
