# SPDX-License-Identifier: Apache-2.0
"""From the scheduler's records to events: files that went before, stacks by name, offsets of kernel structures."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scheduling import switch, waking
from uapi import numbers

from observe.collectors.kernel_stacks import KernelStacks, read_symbols
from observe.correlate.descriptors import with_names
from observe.correlate.rows import Row
from observe.correlate.why import SchedulerEvents
from observe.correlate.why.calls import CALLS, call_name
from observe.correlate.why.threads import Thread
from observe.errors import HostCannotError
from observe.model import Event, EventBatch, Kind
from observe.probes import kernel_types, sched

FILE = 71


def records(*rows: dict[str, object]) -> np.ndarray:
    """Records of the ring; a row with `file` is a sched_file."""
    made = np.zeros(len(rows), dtype=sched.SCHED_RECORD_DTYPE)
    files = made.view(sched.SCHED_FILE_DTYPE)
    for at, row in enumerate(rows):
        target = files if "file" in row else made
        for name, value in {"call": -1, "stack": -1, "fd": -1, **row}.items():
            if name in (target.dtype.names or ()):
                target[name][at] = value
    return made


def test_a_switch_gets_the_file_that_went_before_even_if_that_came_in_an_earlier_drain():
    decoder = sched.Decoder()
    first = decoder.decode(
        records(
            {"kind": FILE, "tid": 11, "file": b"meta.db", "filesystem": b"ext4"},
            {"kind": FILE, "tid": 12, "file": b"late", "filesystem": b"tmpfs"},
            {
                "kind": Kind.SCHED_SWITCH,
                "time_ns": 5,
                "pid": 1,
                "tid": 11,
                "call": 75,
                "fd": 3,
                "has_file": 1,
                "state": 2,
                "other_pid": 9,
                "other_tid": 91,
                "stack": 4,
            },
            {"kind": Kind.SCHED_WAKING, "time_ns": 6, "pid": 1, "tid": 11, "other_pid": 9, "other_tid": 91},
        ),
        {4: "submit_bio_wait;fsync"},
    )
    (one, two) = first
    assert (one.kind, one.pid, one.tid, one.ret, one.flags >> 32) == (Kind.SCHED_SWITCH, 1, 11, 91, 9)
    assert (one.flags & 0xFFFF, (one.flags >> 16 & 0xFFFF) - 1, one.fd) == (2, 75, 3)
    assert (one.path, one.path2, one.detail) == ("meta.db", "ext4", "submit_bio_wait;fsync")
    assert (two.kind, two.ret, two.flags >> 32, two.path, two.fd) == (Kind.SCHED_WAKING, 91, 9, "", -1)
    (three,) = decoder.decode(records({"kind": Kind.SCHED_SWITCH, "tid": 12, "pid": 1, "has_file": 1, "fd": 7}), {})
    assert (three.path, three.path2, three.fd) == ("late", "tmpfs", 7)
    (four,) = decoder.decode(records({"kind": Kind.SCHED_SWITCH, "tid": 12, "pid": 1, "has_file": 1, "fd": 7}), {})
    assert four.path == ""


def test_nothing_decodes_to_nothing():
    assert len(sched.Decoder().decode(records(), {})) == 0


def btf(*types: bytes, names: bytes) -> bytes:
    """A blob with these types."""
    body = b"".join(types)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(names)) + body + names


def type_(name: int, kind: int, members: int, size: int, *rest: int, bit_fields: bool = False) -> bytes:
    return struct.pack("<III", name, kind << 24 | members | bit_fields << 31, size) + struct.pack(
        f"<{len(rest)}I", *rest
    )


NAMES = b"\0outer\0plain\0deep\0last\0outer2\0"
OUTER, PLAIN, DEEP, LAST = (NAMES.index(b"\0" + name + b"\0") + 1 for name in (b"outer", b"plain", b"deep", b"last"))
INT = type_(0, 1, 0, 4, 32)
INNER = type_(0, 5, 1, 8, DEEP, 1, 32)  # a nameless union
DECLARED = type_(OUTER, 7, 0, 0)
STRUCTURE = type_(OUTER, 4, 3, 32, PLAIN, 1, 0, 0, 2, 64, LAST, 1, 5 << 24 | 192, bit_fields=True)


def test_members_are_found_where_the_kernel_has_them_nameless_structures_included():
    blob = btf(INT, INNER, DECLARED, STRUCTURE, names=NAMES)
    found = kernel_types.offsets(blob, {"outer": ["plain", "deep", "last", "none"], "absent": ["x"]})
    assert found == {("outer", "plain"): 0, ("outer", "deep"): 12, ("outer", "last"): 24}


@pytest.mark.parametrize("blob", [b"", b"\x9f\xeb", bytes(40)])
def test_what_is_no_btf_is_refused(blob):
    with pytest.raises(ValueError, match="no BTF"):
        kernel_types.offsets(blob, {})
    with pytest.raises(HostCannotError, match="type information cannot be read"):
        sched.kernel_offsets(blob)


def test_a_kernel_without_a_member_is_named():
    with pytest.raises(HostCannotError, match=r"has no task_struct\.pid"):
        sched.kernel_offsets(btf(INT, STRUCTURE, names=NAMES))


def test_stacks_are_told_from_the_sleep_to_the_system_call(tmp_path: Path):
    kallsyms = tmp_path / "kallsyms"
    names = ["_stext", "schedule", "submit_bio_wait", "do_fsync", "do_syscall_64", "userland", "_einittext"]
    lines = [f"{0xFFFF0000 + 0x100 * n:016x} {'tT'[n % 2]} {name}" for n, name in enumerate(names)]
    kallsyms.write_text("\n".join([*lines, "0000000000000000 t module_function\t[m]"]) + "\n")
    asked: list[int] = []

    def addresses(number: int) -> list[int]:
        asked.append(number)
        return [0xFFFF0000 + 0x100 * n + 7 for n in (9, 1, 2, 3, 4, 5)]  # the first is our program's

    stacks = KernelStacks(addresses, read_symbols(kallsyms))
    assert stacks.texts([3, -1, 3])[3] == "submit_bio_wait;do_fsync"
    assert stacks.texts([3])[3] == "submit_bio_wait;do_fsync"
    assert asked == [3]


def test_a_kernel_that_hides_its_symbols_or_has_none_gives_no_names(tmp_path: Path):
    kallsyms = tmp_path / "kallsyms"
    kallsyms.write_text("0000000000000000 T schedule\n0000000000000000 T do_fsync\n")
    for path in (kallsyms, tmp_path / "none"):
        assert KernelStacks(lambda _: [1, 2], read_symbols(path)).texts([0]) == {0: ""}


@pytest.mark.parametrize(("machine", "place"), [("x86_64", 0), ("aarch64", 1)])
def test_names_of_calls_are_the_kernels(machine, place):
    by_name = numbers(machine)
    generic = {"newfstatat": "fstatat"} if machine == "aarch64" else {}
    for name, known in CALLS.items():
        assert known[place] == by_name.get(generic.get(name, name)), name
        if known[place] is not None:
            assert call_name(known[place], machine) == name
    assert (call_name(-1, machine), call_name(999, machine)) == ("", "system call 999")


A, B = Thread(1, 11), Thread(2, 21)


def batch(*rows: Row) -> EventBatch:
    return EventBatch.of([row.event() for row in rows])


def test_the_schedulers_events_are_put_aside_until_they_are_asked_for():
    kept = SchedulerEvents(keep=True)
    mount = Event(20, Kind.MOUNT, path="/a")
    mixed = EventBatch.concat([batch(switch(10, A, B)), EventBatch.of([mount]), batch(waking(30, A, B))])
    assert list(kept.take(mixed)) == [mount]
    plain = EventBatch.of([mount])
    assert kept.take(plain) is plain
    kept.take(batch(switch(40, B, A)))
    assert [row.time_ns for row in kept.between(10, 30)] == [10, 30]
    assert [row.time_ns for row in kept.between(11, 40)] == [30, 40]
    kept.forget(3_000_000_000)
    assert kept.between(0, 100) == []


def test_nothing_is_kept_that_nobody_will_ask_for():
    left = SchedulerEvents(keep=False)
    mount = Event(20, Kind.MOUNT, path="/a")
    assert list(left.take(EventBatch.concat([batch(switch(10, A, B)), EventBatch.of([mount])]))) == [mount]
    assert left.between(0, 100) == []


def test_they_are_kept_as_long_as_an_operation_may_still_turn_up():
    kept = SchedulerEvents(keep=True)
    kept.take(batch(switch(5_000_000_000, A, B)))
    kept.forget(6_000_000_000)
    assert len(kept.between(0, 10_000_000_000)) == 1


def test_a_mount_by_descriptor_has_the_name_that_was_opened():
    opened = Event(1, Kind.OPENAT, pid=1, ret=6, path="/merged/proc")
    failed = Event(2, Kind.OPENAT, pid=1, ret=-2, path="/no")
    mount = Event(3, Kind.MOUNT, pid=1, path="/proc/self/fd/6", path2="proc")
    others = Event(4, Kind.MOUNT, pid=2, path="/proc/self/fd/6")
    again = Event(5, Kind.OPENAT2, pid=1, ret=6, path="/merged/sys")
    moved = Event(6, Kind.MOUNT, pid=1, path="/merged/x", path2="/proc/thread-self/fd/6")
    named = list(with_names(EventBatch.of([opened, failed, mount, others, again, moved])))
    assert named == [
        opened,
        failed,
        replace(mount, path="/merged/proc"),
        others,
        again,
        replace(moved, path2="/merged/sys"),
    ]
    alone = EventBatch.of([mount])
    assert list(with_names(alone)) == [mount]
    by_name = EventBatch.of([opened, replace(mount, path="/merged/proc")])
    assert with_names(by_name) is by_name
