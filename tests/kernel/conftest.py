# SPDX-License-Identifier: Apache-2.0
"""The real programs, attached to a puppet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from puppets import Puppet
from watching import Watch

from observe.probes import events
from observe.probes.attach import build_image
from observe.probes.compiler import Image


@pytest.fixture(scope="session")
def image() -> Image:
    return build_image(scheduler=True)


@pytest.fixture
def watch(image: Image) -> Iterator[Watch]:
    """Attached, following nobody yet."""
    with Watch(image) as watch:
        watch.probes.attach()
        yield watch


@pytest.fixture
def older_watch(image: Image) -> Iterator[Watch]:
    """Attached as on a kernel that does not take the programs for SYSCALL_TRACEPOINTS."""
    refused = bytes.fromhex("9500000000000000")  # exit without a result
    programs = [
        replace(program, code=refused, maps=()) if program.name in events.SYSCALL_TRACEPOINTS else program
        for program in image.programs
    ]
    with Watch(replace(image, programs=tuple(programs))) as watch:
        watch.probes.attach()
        assert set(watch.probes._programs) == {*events.RAW_TRACEPOINTS, *events.TRACEPOINTS}
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
