# SPDX-License-Identifier: Apache-2.0
"""What commands that attach to a live engine have in common: their options, and a line that shows how far they are."""

from __future__ import annotations

import argparse
import mmap
import sys

from observe.collectors.session import SessionOptions
from observe.errors import HostCannotError
from observe.probes.attach import DEFAULT_RING_BYTES, check_ring_bytes
from observe.probes.cache import cache_folder
from observe.reports import Page

#: The largest power of two that a map's number of entries can be.
_MOST_RING_BYTES = 1 << 31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which engine, and what of it is recorded."""
    parser.add_argument("--docker-host", metavar="URL", help="default: $DOCKER_HOST, then unix:///var/run/docker.sock")
    parser.add_argument("--strict", action="store_true", help="exit with 4 if data was lost")
    parser.add_argument(
        "--with-values",
        action="store_true",
        help="record program arguments, environment values and labels too: they may hold secrets",
    )
    add_evidence(parser)


def add_evidence(parser: argparse.ArgumentParser) -> None:
    """What is left out, and how much room the rest has."""
    parser.add_argument("--no-inotify", action="store_true", help="without file events")
    parser.add_argument("--no-functions", action="store_true", help="kernel evidence only")
    parser.add_argument(
        "--no-syscalls", action="store_true", help="functions and programs only: phases without their system calls"
    )
    parser.add_argument(
        "--ring-bytes", metavar="N", type=ring_bytes, default=DEFAULT_RING_BYTES, help=f"default: {DEFAULT_RING_BYTES}"
    )


def ring_bytes(text: str) -> int:
    """Size of a ring buffer: what `check_ring_bytes` and the kernel's 32 bits allow. Raises ArgumentTypeError."""
    try:
        value = int(text)
        check_ring_bytes(value)
    except (ValueError, HostCannotError):
        value = -1
    if not 0 < value <= _MOST_RING_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size of a ring: a power of two from {mmap.PAGESIZE} to {_MOST_RING_BYTES}"
        )
    return value


def options(args: argparse.Namespace) -> SessionOptions:
    """What was chosen by these arguments."""
    return SessionOptions(
        ring_bytes=args.ring_bytes,
        with_values=args.with_values,
        inotify=not args.no_inotify,
        functions=not args.no_functions,
        syscalls=not args.no_syscalls,
        cache=cache_folder(),
    )


class LiveLine:
    """One line on standard error that is written over and over; nothing if that is no terminal."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self.page = Page.of(sys.stderr)
        self.is_shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Write this in its place."""
        self._write(text[: self.page.width - 1])

    def clear(self) -> None:
        """Take it away."""
        self._write("")

    def _write(self, text: str) -> None:
        if self.is_shown:
            sys.stderr.write("\r\x1b[K" + text)
            sys.stderr.flush()
