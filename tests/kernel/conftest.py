# SPDX-License-Identifier: Apache-2.0
"""The real programs, attached to a puppet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from puppets import Puppet
from watching import Watch

from observe.probes.attach import build_image
from observe.probes.compiler import Image


@pytest.fixture(scope="session")
def image() -> Image:
    return build_image()


@pytest.fixture
def watch(image: Image) -> Iterator[Watch]:
    """Attached, following nobody yet."""
    with Watch(image) as watch:
        watch.probes.attach()
        yield watch


@pytest.fixture
def new_puppet() -> Iterator[Callable[[], Puppet]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Puppet())


@pytest.fixture
def puppet(new_puppet: Callable[[], Puppet]) -> Puppet:
    """Not followed yet."""
    return new_puppet()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a path short enough for any record."""
    assert len(str(tmp_path)) < 150
    return tmp_path
