# SPDX-License-Identifier: Apache-2.0
"""Real engines for tests: one for the whole session, more on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from engines import Engine, EngineFactory, engine_directory, running_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The session's private dockerd. A test removes the containers it makes."""
    with running_engine() as started:
        yield started


@pytest.fixture
def new_engine() -> Iterator[EngineFactory]:
    """Start a further private dockerd: `new_engine("--icc=false")`; it ends with the test."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(running_engine(*options))


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a test starts and stops an engine itself."""
    with engine_directory() as path:
        yield path
