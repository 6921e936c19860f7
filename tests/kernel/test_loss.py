# SPDX-License-Identifier: Apache-2.0
"""What is lost is counted to the event, and told; attaching and detaching loses nothing else."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from puppets import Puppet, call, wait_until
from watching import Watch

from observe.__main__ import main
from observe.errors import HostCannotError
from observe.model import Event, EventBatch, Header, Kind, Note, NoteKind
from observe.probes.attach import EventProbes, build_event_probes
from observe.probes.compiler import Image
from observe.probes.events import Role
from observe.probes.layout import RECORD_DTYPE, Counter
from observe.recording import RecordingWriter

SLOT_BYTES = RECORD_DTYPE.itemsize + 8
MADE = 17


def make(puppet: Puppet, folder: Path, count: int = MADE) -> None:
    for index in range(count):
        puppet.call("mkdir", folder / f"{index}", 0o700)


@pytest.mark.parametrize("ring_bytes", [4096, 8192])
def test_what_does_not_fit_is_counted_to_the_event(ring_bytes: int, image: Image, puppet: Puppet, folder: Path) -> None:
    with Watch(image, ring_bytes) as watch:
        watch.probes.attach()
        watch.follow(puppet)
        make(puppet, folder)
        watch.probes.detach()
        kept = watch.events()
        assert [Path(event.path).name for event in kept] == [str(index) for index in range(ring_bytes // SLOT_BYTES)]
        assert watch.counters() == {
            Counter.RING_BUFFER: MADE - len(kept),
            Counter.LINEAGE: 0,
            Counter.UNMATCHED_RETURNS: 0,
            Counter.RECORDS: len(kept),
        }


def test_a_ring_that_is_drained_in_time_goes_round_and_loses_nothing(
    image: Image, puppet: Puppet, folder: Path
) -> None:
    with Watch(image, 4096) as watch:
        watch.probes.attach()
        watch.follow(puppet)
        seen: list[Event] = []
        for index in range(MADE):
            puppet.call("mkdir", folder / f"{index:03}{'x' * (index * 5)}", 0o700)
            if index % 3 == 2 or index == MADE - 1:
                seen += watch.events()
        assert [event.path for event in seen] == [str(folder / f"{i:03}{'x' * (i * 5)}") for i in range(MADE)]
        assert watch.counters()[Counter.RING_BUFFER] == 0


def test_the_report_tells_what_was_lost(
    image: Image, puppet: Puppet, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Watch(image, 4096) as watch:
        watch.probes.attach()
        watch.follow(puppet)
        make(puppet, folder)
        watch.probes.detach()
        batch = watch.batch()
        lost = watch.counters()[Counter.RING_BUFFER]
    assert len(batch) + lost == MADE
    now_ns = int(batch.rows["time_ns"].max())
    recording = folder / "recording"
    header = Header({"hostname": "test"}, {}, boot_time_ns=1, wall_time_ns=1, tool_version="test")
    with RecordingWriter(recording, header) as writer:
        writer.write(batch)
        writer.write(Note(NoteKind.LOSS, now_ns, {"ring_buffer": lost}))
        writer.write(Note(NoteKind.END, now_ns, {"exit_code": 0, "engine_ended": False}))
    assert main(["report", str(recording)]) == 0
    assert f"{lost} events" in capsys.readouterr().out


def test_a_process_the_filter_has_no_room_for_is_counted(image: Image, puppet: Puppet, folder: Path) -> None:
    small = replace(
        image, maps=tuple(replace(spec, max_entries=4) if spec.name == "lineage" else spec for spec in image.maps)
    )
    with Watch(small) as watch:
        watch.probes.attach()
        watch.follow(puppet)
        children = [
            puppet.fork(call("mkdir", folder / f"{i}", 0o700), call("pause"), wait=False)["pid"] for i in range(7)
        ]
        for index in range(7):
            wait_until((folder / str(index)).exists)
        seen = watch.events()
        # The puppet itself and three children fill it.
        assert {event.pid for event in seen if event.kind == Kind.MKDIR} == set(children[:3])
        assert [event.ret for event in seen if event.kind == Kind.SCHED_PROCESS_FORK] == children
        assert watch.counters()[Counter.LINEAGE] == 4
        for child in children:
            os.kill(child, 9)
            puppet.call("wait4", child, 0, 0, 0)
        # Whoever ends makes room.
        assert watch.followed() == {puppet.pid}


def test_a_seed_that_does_not_fit_is_an_error(image: Image) -> None:
    small = replace(
        image, maps=tuple(replace(spec, max_entries=2) if spec.name == "lineage" else spec for spec in image.maps)
    )
    with (
        EventProbes(small, 4096) as probes,
        pytest.raises(HostCannotError, match="the map lineage is full"),
    ):
        probes.seed(dict.fromkeys((1, 2, 3), Role.CHILD), ())


def test_attaching_and_detaching_under_load(image: Image, new_puppet: Callable[[], Puppet], folder: Path) -> None:
    """Twenty times, while two processes make calls without pause: nothing lost, nothing twice, every time."""
    loads = [new_puppet(), new_puppet()]
    stop = threading.Event()

    def load(puppet: Puppet) -> None:
        while not stop.is_set():
            puppet.call("mkdir", folder / str(puppet.pid), 0o700)
            puppet.call("rmdir", folder / str(puppet.pid))

    threads = [threading.Thread(target=load, args=(puppet,)) for puppet in loads]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with Watch(image) as watch:
                for puppet in loads:
                    watch.follow(puppet)
                watch.probes.attach()
                wait_until(lambda watch=watch: watch.counters()[Counter.RECORDS] >= 50)
                watch.probes.detach()
                batch = watch.batch()
                counters = watch.counters()
                assert len(batch) == counters[Counter.RECORDS]
                assert counters[Counter.RING_BUFFER] == 0
                # Attached in the middle of a call, at most one of each thread.
                assert counters[Counter.UNMATCHED_RETURNS] <= len(loads)
                for puppet in loads:
                    own = batch.rows["kind"][batch.rows["pid"] == puppet.pid]
                    assert all(own[1:] != own[:-1]), "mkdir and rmdir take turns"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_detached_programs_record_nothing(image: Image, puppet: Puppet, folder: Path) -> None:
    with Watch(image) as watch:
        watch.follow(puppet)
        puppet.call("mkdir", folder / "before", 0o700)
        watch.probes.attach()
        puppet.call("mkdir", folder / "while", 0o700)
        watch.probes.detach()
        puppet.call("mkdir", folder / "after", 0o700)
        assert [Path(event.path).name for event in watch.events()] == ["while"]


@pytest.mark.parametrize("ring_bytes", [0, 2048, 12_288, -4096])
def test_a_ring_of_an_impossible_size(ring_bytes: int) -> None:
    with pytest.raises(HostCannotError, match=f"not a power of two of at least {mmap.PAGESIZE}"):
        build_event_probes(ring_bytes)


def test_an_empty_ring_is_an_empty_batch(watch: Watch) -> None:
    batch = watch.batch()
    assert isinstance(batch, EventBatch)
    assert len(batch) == 0
