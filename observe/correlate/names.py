# SPDX-License-Identifier: Apache-2.0
"""What paths and arguments say of containers and layers."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

#: moby's graph drivers (daemon/graphdriver/register): the folder of each below the data root.
DRIVERS = ("overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs", "overlay", "aufs", "devicemapper")

_LAYER = re.compile(rf"/(?:{'|'.join(DRIVERS)})/(?:dir/)?([0-9a-z]{{25,64}})(?:-init)?(?=/|$)")
_ID = re.compile(r"[0-9a-f]{64}")
# With what stands before it: a name alone is as likely a layer's; an argument of its own stands behind a NUL.
_ID_INSIDE = re.compile(r"[^0-9a-zA-Z]([0-9a-f]{64})(?![0-9a-zA-Z])")
# Before a 64-digit name that is none of a container: digests, layers, anonymous volumes, plugins, content that
# containerd takes in, the hash in a shim's socket path.
_NOT_A_CONTAINER = re.compile(rf"(?:sha256[:/]|/s/|/volumes/|/plugins/|/ingest/|/(?:{'|'.join(DRIVERS)})/(?:dir/)?)$")
_PROCESS = re.compile(r"^/proc/(\d+)/(?:task/\d+/)?ns/")
_ID_DIGITS = 64
# Paths repeat within an operation, seldom beyond it.
_CACHED = 1 << 11


def container_in(text: str) -> str | None:
    """The first full container id in a path or in arguments (joined by NUL)."""
    if len(text) <= _ID_DIGITS:
        return None
    for match in _ID_INSIDE.finditer(text):
        if not _stands_before_something_else(text[max(0, match.start() - 39) : match.start() + 1]):
            return match[1]
    return None


@lru_cache(_CACHED)
def _stands_before_something_else(text: str) -> bool:
    return _NOT_A_CONTAINER.search(text) is not None


def is_container_id(text: str) -> bool:
    """Whether a string is a full container id, as the engine's functions get it."""
    return _ID.fullmatch(text) is not None


@lru_cache(_CACHED)
def layer_in(text: str) -> str | None:
    """The layer folder of the storage driver that a path lies in, without `-init`."""
    match = _LAYER.search(text)
    return match[1] if match else None


class Named(NamedTuple):
    """What a text names: a container, else maybe a layer of one, or a process."""

    container_id: str | None = None
    layer: str | None = None
    process: int | None = None


_NOTHING = Named()
_SHORTEST_LAYER = len("/vfs/") + 25


@lru_cache(_CACHED)
def named_in(text: str) -> Named:
    """The container, or the layer and the process, that a path or arguments (joined by NUL) name."""
    container_id = container_in(text)
    if container_id is not None:
        return Named(container_id)
    layer = layer_in(text) if len(text) >= _SHORTEST_LAYER else None
    process = process_in(text) if text.startswith("/proc/") else None
    return _NOTHING if layer is None and process is None else Named(None, layer, process)


def process_in(text: str) -> int | None:
    """The process whose namespace file a path is: `/proc/PID/ns/net`."""
    match = _PROCESS.match(text)
    return int(match[1]) if match else None
