# SPDX-License-Identifier: Apache-2.0
"""The scheduler's real programs: what a puppet's threads wait for while a request is in flight, and nothing else."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
from puppets import Puppet, wait_until
from uapi import numbers
from watching import Watch

from observe.collectors.kernel_stacks import KernelStacks, read_symbols
from observe.collectors.ring import RingReader
from observe.correlate.why.calls import call_name
from observe.errors import HostCannotError
from observe.model import Event, EventBatch, Kind
from observe.probes import bpf, sched
from observe.probes.attach_sched import SchedProbes
from observe.probes.compiler import Image

SLEEP_MS = 5


class Scheduler:
    """The programs with the reader of their ring."""

    def __init__(self, image: Image, watch: Watch) -> None:
        self._watch = watch
        self.probes = SchedProbes(image, watch.probes)
        self._ring = RingReader(self.probes.ring, sched.RING_BYTES, sched.SCHED_RECORD_DTYPE)
        self._decoder, self._stacks = sched.Decoder(), KernelStacks(self.probes.stack, read_symbols())

    def in_flight(self, requests: int) -> None:
        """As if so many requests had no answer yet."""
        bpf.map_update(self._watch.probes._maps["requests_in_flight"], bytes(4), struct.pack("<q", requests))

    def events(self) -> list[Event]:
        """What has happened since the last look."""
        return list(self._ring.read(self._decode))

    def _decode(self, records: npt.NDArray[Any]) -> EventBatch:
        is_switch = records["kind"] == Kind.SCHED_SWITCH
        return self._decoder.decode(records, self._stacks.texts(records["stack"][is_switch].tolist()))

    def close(self) -> None:
        self._ring.close()
        self.probes.close()


@pytest.fixture
def scheduler(image: Image, watch: Watch) -> Iterator[Scheduler]:
    found = Scheduler(image, watch)
    try:
        found.probes.attach()
        yield found
    finally:
        found.close()


def is_asleep(pid: int) -> bool:
    """Whether it waits: on a busy machine its next command may come first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def call_of(event: Event) -> str:
    return call_name((event.flags >> 16 & 0xFFFF) - 1, os.uname().machine)


def test_nothing_is_recorded_without_a_request_in_flight(watch: Watch, scheduler: Scheduler, puppet: Puppet) -> None:
    watch.follow(puppet)
    for _ in range(20):
        puppet.call("getppid")
    assert scheduler.events() == []
    scheduler.in_flight(1)
    for _ in range(20):
        puppet.call("getppid")
    assert len(scheduler.events()) >= 40
    scheduler.in_flight(0)
    puppet.call("getppid")
    scheduler.events()
    puppet.call("getppid")
    assert scheduler.events() == []


def test_a_process_that_is_not_followed_is_not_recorded(scheduler: Scheduler, puppet: Puppet) -> None:
    scheduler.in_flight(1)
    for _ in range(20):
        puppet.call("getppid")
    assert [event for event in scheduler.events() if puppet.pid in (event.pid, event.flags >> 32)] == []


def test_a_sleep_says_its_call_its_file_and_where_it_is_and_who_ends_it(
    watch: Watch, scheduler: Scheduler, puppet: Puppet
) -> None:
    watch.follow(puppet)
    scheduler.in_flight(1)
    for _ in range(3):
        puppet.call("getppid")
        wait_until(lambda: is_asleep(puppet.pid))
    events = scheduler.events()
    assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
    sleeps = [e for e in events if e.kind is Kind.SCHED_SWITCH and e.pid == puppet.pid and e.flags & 0x203]
    assert {call_of(event) for event in sleeps} == {"read"}  # of its next command
    assert {(event.fd, event.path2) for event in sleeps} == {(0, "pipefs")}
    assert all("pipe_read" in event.detail for event in sleeps)
    assert all(event.detail.endswith("ksys_read") or "read" in event.detail for event in sleeps)
    wakes = [event for event in events if event.kind is Kind.SCHED_WAKING and event.pid == puppet.pid]
    assert (os.getpid(), os.getpid()) in {(event.flags >> 32, event.ret) for event in wakes}
    assert scheduler.probes.misses() == 0


def test_a_timer_wakes_as_an_interrupt_whoever_it_interrupts(
    watch: Watch, scheduler: Scheduler, puppet: Puppet
) -> None:
    watch.follow(puppet)
    scheduler.in_flight(1)
    for _ in range(10):
        puppet.call("poll", 0, 0, SLEEP_MS)
    events = scheduler.events()
    slept = [
        number
        for number, event in enumerate(events)
        if event.kind is Kind.SCHED_SWITCH and event.pid == puppet.pid and call_of(event) == "poll"
    ]
    assert len(slept) == 10
    for number in slept:
        wake = next(event for event in events[number:] if event.kind is Kind.SCHED_WAKING and event.pid == puppet.pid)
        assert (wake.ret, wake.flags >> 32) == (0, 0)
        assert wake.time_ns - events[number].time_ns > SLEEP_MS * 1_000_000 * 0.9


def test_a_child_is_born_by_its_parent_and_awaited(watch: Watch, scheduler: Scheduler, puppet: Puppet) -> None:
    watch.follow(puppet)
    scheduler.in_flight(1)
    child = puppet.fork(["call", numbers(os.uname().machine)["poll"], 0, 0, SLEEP_MS])["pid"]
    events = scheduler.events()
    (born,) = [event for event in events if event.kind is Kind.SCHED_WAKEUP_NEW]
    assert (born.pid, born.tid, born.ret, born.flags >> 32) == (child, child, puppet.pid, puppet.pid)
    wakes = [e for e in events if e.kind is Kind.SCHED_WAKING and e.pid == puppet.pid and e.flags >> 32 == child]
    assert wakes


def test_a_kernel_that_refuses_is_named_and_nothing_stays(image: Image, watch: Watch) -> None:
    programs = tuple(program for program in image.programs if program.name != "sched_switch")
    with pytest.raises(HostCannotError, match="the kernel has no type information"):
        SchedProbes(Image(image.maps, programs), watch.probes)
