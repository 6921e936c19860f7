# SPDX-License-Identifier: Apache-2.0
"""The live dockerd behind a socket: its processes, version, data root."""

from observe.engine.api import DEFAULT_DOCKER_HOST, KeptConnection, TlsFiles, address
from observe.engine.find import Engine, api_connection_fds, find_engine, lineage_seeds

__all__ = [
    "DEFAULT_DOCKER_HOST",
    "Engine",
    "KeptConnection",
    "TlsFiles",
    "address",
    "api_connection_fds",
    "find_engine",
    "lineage_seeds",
]
