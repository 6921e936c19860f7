# SPDX-License-Identifier: Apache-2.0
"""What systemd wants to know of a service, by its notification protocol (man 3 sd_notify); nothing without it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

READY, STOPPING, WATCHDOG = "READY=1", "STOPPING=1", "WATCHDOG=1"


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager; whoever does not listen misses it."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            channel.send("\n".join(lines).encode())
        except OSError:
            return


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often the service manager wants a sign of life (half of what it allows); None: it wants none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(environ["WATCHDOG_USEC"]) / 2e6
    except (KeyError, ValueError):
        return None
