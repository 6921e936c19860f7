# SPDX-License-Identifier: Apache-2.0
"""The recording file: what is written comes back, and whatever is wrong with a file is noticed."""

import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import observe
from observe.errors import RecordingError
from observe.model import EVENT_DTYPE, Event, EventBatch, Header, Kind, Mark, Note, NoteKind
from observe.recording import Damage, Recording, RecordingWriter, reader, writer
from observe.recording import format as layout

HEADER = Header(
    host={"hostname": "h", "kernel": "6.1.0", "arch": "x86_64"},
    engine={"version": "20.10.24"},
    boot_time_ns=5,
    wall_time_ns=1_700_000_000_000_000_000,
    tool_version="0",
    options={"origin": "record"},
)
END = Note(NoteKind.END, 99, {"why": "done"})
EVENT = Event(
    time_ns=2**63,
    kind=Kind.RENAMEAT2,
    duration_ns=7,
    goroutine=0xC000000000,
    ret=-2,
    flags=2**64 - 1,
    pid=2**32 - 1,
    tid=3,
    fd=-100,
    comm="runc:[2:INIT]",
    path="/var/lib/docker/ä\udcff",
    path2="old",
    detail="runc\0create\0--bundle",
    marks=Mark.TRUNCATED | Mark.FROM_PROC,
)

texts = st.text(st.characters(), max_size=12)  # every code point, lone surrogates too
events = st.builds(
    Event,
    time_ns=st.integers(0, 2**64 - 1),
    kind=st.sampled_from(Kind),
    duration_ns=st.integers(0, 2**64 - 1),
    goroutine=st.integers(0, 2**64 - 1),
    ret=st.integers(-(2**63), 2**63 - 1),
    flags=st.integers(0, 2**64 - 1),
    pid=st.integers(0, 2**32 - 1),
    tid=st.integers(0, 2**32 - 1),
    fd=st.integers(-(2**31), 2**31 - 1),
    comm=texts,
    path=texts,
    path2=texts,
    detail=texts,
    marks=st.integers(0, 255).map(Mark),
)
batches = st.lists(events, min_size=1, max_size=8).map(EventBatch.of)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
notes = st.builds(
    Note, st.sampled_from(NoteKind), st.integers(0, 2**64 - 1), st.dictionaries(texts, json_values, max_size=3)
)


class Clock:
    """A boot clock that stands still until told otherwise."""

    def __init__(self):
        self.now_ns = 10**12

    def __call__(self):
        return self.now_ns


def numbered(start, count):
    """`count` events whose time_ns count up from `start`; each names a file of its own."""
    rows = np.zeros(count, dtype=EVENT_DTYPE)
    rows["time_ns"] = np.arange(start, start + count)
    rows["kind"] = Kind.MKDIR
    rows["path"] = np.arange(1, count + 1)
    return EventBatch(rows, ("", *(f"/dir/{number}" for number in range(start, start + count))))


def write(path, items, header=HEADER):
    with RecordingWriter(path, header) as out:
        for item in items:
            out.write(item)
    return path


def flat(items):
    """Items with every event on its own: batches may be merged and split."""
    for item in items:
        if isinstance(item, EventBatch):
            yield from item
        else:
            yield item


def small(path):
    """A file of about 2 kB with every kind of frame; the items that were written."""
    items = [
        Note(NoteKind.PROCESS, 1, {"pid": 1, "argv": ["dockerd"]}),
        EventBatch.of([EVENT, replace(EVENT, path="a")]),
        Note(NoteKind.WARNING, 2, {"text": "ä"}),
        numbered(10, 5),
        END,
    ]
    write(path, items)
    return items


def frame_offsets(data):
    """Where each frame of an undamaged file starts, and where the last one ends."""
    offsets = [layout.PRELUDE_BYTES]
    while offsets[-1] < len(data):
        head = layout.unpack_frame_head(data[offsets[-1] :])
        offsets.append(offsets[-1] + layout.FRAME_HEAD_BYTES + head.length_bytes)
    return offsets


# Round trips


@settings(deadline=None)
@given(items=st.lists(batches | notes, max_size=8))
def test_what_is_written_comes_back_in_order(tmp_path_factory, items):
    path = write(tmp_path_factory.mktemp("r") / "r", items)
    recording = Recording.open(path)
    expected = list(flat(items))
    if not any(isinstance(item, Note) and item.kind is NoteKind.END for item in items):
        assert list(recording.items())[-1].kind is NoteKind.END
        assert list(flat(recording.items()))[:-1] == expected
    else:
        assert list(flat(recording.items())) == expected
    assert recording.header == HEADER
    assert recording.damage == Damage(0, truncated=False, warnings=())


def test_items_can_be_read_again_and_events_are_all_of_them(tmp_path):
    recording = Recording.open(write(tmp_path / "r", [numbered(0, 3), END, numbered(3, 4)]))
    assert [len(item) for item in recording.items() if isinstance(item, EventBatch)] == [3, 4]
    assert [len(item) for item in recording.items() if isinstance(item, EventBatch)] == [3, 4]
    assert [event.time_ns for event in recording.events()] == list(range(7))


def test_a_recording_without_events(tmp_path):
    recording = Recording.open(write(tmp_path / "r", [EventBatch.of([])]))
    assert len(recording.events()) == 0
    assert recording.to_pandas().shape == (0, 14)


def test_mappings_of_any_type_can_be_noted(tmp_path):
    note = Note(NoteKind.CONTAINER, 1, MappingProxyType({"configuration": MappingProxyType({"a": 1})}))
    recording = Recording.open(write(tmp_path / "r", [note], replace(HEADER, host=MappingProxyType({"x": "y"}))))
    assert next(recording.items()).data == {"configuration": {"a": 1}}
    assert recording.header.host == {"x": "y"}


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with RecordingWriter(tmp_path / "r", HEADER) as out:
        with pytest.raises(TypeError, match="bytes"):
            out.write(Note(NoteKind.WARNING, 1, {"text": b"x"}))
        out.write(numbered(0, 1))
    assert Recording.open(tmp_path / "r").check() == Damage(0, truncated=False, warnings=())


def test_a_frame_carries_only_its_own_strings(tmp_path):
    whole = numbered(0, 1000)
    part = EventBatch(whole.rows[500:502], whole.strings)
    batch = next(Recording.open(write(tmp_path / "r", [part])).items())
    assert batch.strings == ("", "/dir/500", "/dir/501")


def test_large_batches_become_frames_of_a_bounded_size(tmp_path):
    recording = Recording.open(write(tmp_path / "r", [numbered(0, 25_000)]))
    assert [len(item) for item in recording.items() if isinstance(item, EventBatch)] == [10_000, 10_000, 5_000]
    assert np.array_equal(recording.events().rows["time_ns"], np.arange(25_000))


def test_long_texts_are_spread_over_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "MAX_TEXT_BYTES", 100)
    recording = Recording.open(write(tmp_path / "r", [numbered(0, 50)]))
    sizes = [len(item) for item in recording.items() if isinstance(item, EventBatch)]
    assert sum(sizes) == 50
    assert max(sizes) <= 100 // len("/dir/0")
    assert [event.path for event in recording.events()] == [f"/dir/{number}" for number in range(50)]
    with pytest.raises(RecordingError, match="one event has 101 bytes"):
        list(layout.encode_events(EventBatch.of([Event(1, Kind.OPEN, path="x" * 101)])))


# When the writer hands over


def rows_on_disk(path):
    return len(Recording.open(path).events())


def test_events_wait_for_the_row_limit(tmp_path):
    out = RecordingWriter(tmp_path / "r", HEADER, Clock())
    out.write(numbered(0, writer.FLUSH_ROWS - 1))
    assert rows_on_disk(tmp_path / "r") == 0
    out.write(numbered(0, 1))
    assert rows_on_disk(tmp_path / "r") == writer.FLUSH_ROWS
    out.close()


def test_events_wait_for_a_second_at_most(tmp_path):
    clock = Clock()
    out = RecordingWriter(tmp_path / "r", HEADER, clock)
    out.write(numbered(0, 1))
    out.flush_if_due(clock.now_ns + writer.FLUSH_INTERVAL_NS - 1)
    assert rows_on_disk(tmp_path / "r") == 0
    out.flush_if_due(clock.now_ns + writer.FLUSH_INTERVAL_NS)
    assert rows_on_disk(tmp_path / "r") == 1
    out.write(numbered(1, 1))
    clock.now_ns += writer.FLUSH_INTERVAL_NS
    out.write(numbered(2, 1))
    assert rows_on_disk(tmp_path / "r") == 3
    out.close()


def test_data_is_synced_once_a_second(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    clock = Clock()
    out = RecordingWriter(tmp_path / "r", HEADER, clock)
    for _ in range(100):
        clock.now_ns += 100_000_000
        out.write(numbered(0, 1))
        out.flush()
    assert len(synced) == 10
    out.flush_if_due(clock.now_ns + 10**10)
    count = len(synced)
    out.flush_if_due(clock.now_ns + 10**11)
    assert len(synced) == count, "nothing new, nothing to sync"
    out.close()


def test_a_note_brings_the_events_before_it_along(tmp_path):
    out = RecordingWriter(tmp_path / "r", HEADER, Clock())
    out.write(numbered(0, 1))
    out.write(Note(NoteKind.LOSS, 1, {}))
    assert list(flat(Recording.open(tmp_path / "r").items()))[1] == Note(NoteKind.LOSS, 1, {})
    out.close()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:7], offset))
    assert list(flat(Recording.open(write(tmp_path / "r", [EventBatch.of([EVENT]), END])).items())) == [EVENT, END]


def test_an_interrupted_write_leaves_no_damage(tmp_path, monkeypatch):
    whole = os.pwrite
    out = RecordingWriter(tmp_path / "r", HEADER)
    interrupted_at = []

    def interrupted(fd, data, offset):
        interrupted_at.append(whole(fd, data[: len(data) * 2 // 3], offset))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            out.write(numbered(0, 25_001))
    out.close()
    recording = Recording.open(tmp_path / "r")
    assert interrupted_at
    assert np.array_equal(recording.events().rows["time_ns"], np.arange(25_001))
    assert recording.damage == Damage(0, truncated=False, warnings=())


def test_closing_twice_is_fine_and_writing_afterwards_is_not(tmp_path):
    out = RecordingWriter(tmp_path / "r", HEADER)
    out.close()
    out.close()
    with pytest.raises(RecordingError, match="it is closed"):
        out.write(numbered(0, 1))
    with pytest.raises(RecordingError, match="it is closed"):
        out.write(END)


def test_a_full_disk_keeps_what_was_written(tmp_path):
    path = tmp_path / "r"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = RecordingWriter(path, HEADER)
    out.write(numbered(0, 10_000))
    size = path.stat().st_size
    # Python ignores SIGXFSZ: beyond the limit a write is short, then fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
    try:
        with pytest.raises(RecordingError, match=f"cannot write {path}: File too large; the {size} bytes before"):
            out.write(numbered(10_000, 10_000))
        out.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recording = Recording.open(path)
    assert len(recording.events()) == 10_000
    assert recording.damage.damaged_bytes == 0
    assert recording.damage.truncated


@pytest.mark.parametrize("acknowledgements", [1, 7, 50])
def test_a_killed_recorder_loses_nothing_that_it_flushed(tmp_path, acknowledgements):
    path = tmp_path / "r"
    code = (
        "import sys; from pathlib import Path; from tests_numbered import HEADER, numbered\n"
        "from observe.recording import RecordingWriter\n"
        "out = RecordingWriter(Path(sys.argv[1]), HEADER); rows = 0\n"
        "while True:\n"
        "    out.write(numbered(rows, 777)); out.flush(); rows += 777; print(rows, flush=True)\n"
    )
    (tmp_path / "tests_numbered.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from {Path(__file__).stem} import HEADER, numbered\n"
    )
    search = os.pathsep.join([str(Path(observe.__file__).parents[1]), str(tmp_path)])
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": search}
    ) as child:
        for _ in range(acknowledgements):
            acknowledged = int(child.stdout.readline())
        child.kill()
        acknowledged = int((child.stdout.read().split() or [acknowledged])[-1])
        assert child.wait() == -signal.SIGKILL
    recording = Recording.open(path)
    times = recording.events().rows["time_ns"]
    assert len(times) >= acknowledged
    assert np.array_equal(times, np.arange(len(times)))
    assert recording.damage.truncated
    assert "killed or is still running" in recording.damage.warnings[0]


def test_a_running_recording_can_be_read(tmp_path):
    out = RecordingWriter(tmp_path / "r", HEADER)
    recording = Recording.open(tmp_path / "r")
    assert recording.damage.truncated
    out.write(numbered(0, 5))
    out.close()
    assert len(recording.events()) == 5
    assert recording.damage == Damage(0, truncated=False, warnings=())


# Where the writer writes


@pytest.mark.parametrize("umask", [0o000, 0o277])
def test_only_the_owner_reads_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        out = RecordingWriter(tmp_path / "r", HEADER)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o600, "from the first moment"
    out.close()


def test_it_is_created_closed_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    before = os.umask(0)
    try:
        RecordingWriter(tmp_path / "r", HEADER).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o600, "without a moment in which others can open it"


def test_an_older_recording_is_replaced_and_closed_to_others(tmp_path):
    path = write(tmp_path / "r", [numbered(0, 10_000)])
    path.chmod(0o644)
    write(path, [numbered(7, 1)])
    recording = Recording.open(path)
    assert [event.time_ns for event in recording.events()] == [7]
    assert recording.damage == Damage(0, truncated=False, warnings=())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", layout.FILE_MAGIC[:3]])
def test_an_empty_file_and_a_stub_of_ours_are_replaced(tmp_path, content):
    (tmp_path / "r").write_bytes(content)
    assert len(Recording.open(write(tmp_path / "r", [numbered(0, 1)])).events()) == 1


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("chapter 1")
    with pytest.raises(RecordingError, match=r"thesis.txt: it holds something that is not a recording; .* with -o"):
        RecordingWriter(path, HEADER)
    assert path.read_text() == "chapter 1"


def test_places_that_cannot_be_written_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, reason in [
        (tmp_path, "Is a directory"),
        (tmp_path / "missing" / "r", "No such file or directory"),
        (tmp_path / "pipe", "it is not a regular file"),
        (Path("/dev/null"), "it is not a regular file"),
    ]:
        with pytest.raises(RecordingError, match=f"cannot write {place}: {reason}; choose another place with -o"):
            RecordingWriter(place, HEADER)


def test_two_recorders_do_not_share_a_file(tmp_path):
    first = RecordingWriter(tmp_path / "r", HEADER)
    first.write(numbered(0, 1))
    with pytest.raises(RecordingError, match="another recorder is writing it"):
        RecordingWriter(tmp_path / "r", HEADER)
    first.close()
    assert rows_on_disk(tmp_path / "r") == 1
    RecordingWriter(tmp_path / "r", HEADER).close()


def test_no_descriptor_is_left_open(tmp_path):
    (tmp_path / "foreign").write_text("x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    recording = Recording.open(write(tmp_path / "r", [numbered(0, 1)]))
    recording.check()
    with pytest.raises(RecordingError):
        Recording.open(tmp_path / "foreign")
    with pytest.raises(RecordingError):
        RecordingWriter(tmp_path / "foreign", HEADER)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@contextmanager
def as_nobody():
    """Without root's rights, if we have them."""
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(uid)


def test_reading_needs_no_root_only_permission():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write(Path(folder) / "r", [numbered(0, 3)])
        path.chmod(0o000)
        with as_nobody(), pytest.raises(RecordingError, match=rf"cannot read {path}: not allowed; .* chmod a\+r"):
            Recording.open(path)
        path.chmod(0o444)
        with as_nobody():
            assert len(Recording.open(path).events()) == 3


# Files that are no recording


def unreadable(path, content):
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=f"cannot read {path}: ") as caught:
        Recording.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_recording_are_told_apart(tmp_path):
    path = tmp_path / "r"
    small(path)
    whole = path.read_bytes()
    header_end = frame_offsets(whole)[1]
    assert "the file is empty" in unreadable(path, b"")
    assert "not a recording" in unreadable(path, b"/var/lib/docker/ CREATE x\n" * 9)
    assert "not a recording" in unreadable(path, b"PK")
    newer = unreadable(path, layout.pack_prelude(layout.FORMAT_VERSION + 1) + b"something else")
    assert "format version 2 and this observe reads up to 1; update observe" in newer
    assert "header is unreadable" in unreadable(path, whole[: layout.PRELUDE_BYTES - 1])
    assert "header is unreadable" in unreadable(path, whole[: header_end - 1])
    assert "header is unreadable" in unreadable(path, layout.pack_prelude() + whole[header_end:])
    no_host = layout.pack_frame(layout.FrameKind.HEADER, b'{"engine":{}}')
    assert "header without host" in unreadable(path, layout.pack_prelude() + no_host)
    wrong = json.loads(layout.encode_header(HEADER)) | {"boot_time_ns": "soon"}
    frame = layout.pack_frame(layout.FrameKind.HEADER, json.dumps(wrong).encode())
    assert "wrong type" in unreadable(path, layout.pack_prelude() + frame)


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordingError, match=r"pipe: not a regular file"):
        Recording.open(tmp_path / "pipe")
    with pytest.raises(RecordingError, match="not a regular file"):
        Recording.open(tmp_path)
    with pytest.raises(RecordingError, match="missing: No such file or directory"):
        Recording.open(tmp_path / "missing")


# Damage


def test_every_flipped_bit_is_noticed_and_costs_one_frame(tmp_path):
    path = tmp_path / "r"
    items = small(path)
    whole = path.read_bytes()
    assert 1_500 < len(whole) < 2_500
    offsets = frame_offsets(whole)
    refused = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        if bit // 8 < offsets[1]:
            with pytest.raises(RecordingError, match=r"header is unreadable|not a recording"):
                Recording.open(path)
            refused += 1
            continue
        recording = Recording.open(path)
        hit = sum(offset <= bit // 8 for offset in offsets) - 2
        assert list(flat(recording.items())) == list(flat(items[:hit] + items[hit + 1 :]))
        damage = recording.damage
        assert damage.damaged_bytes == offsets[hit + 2] - offsets[hit + 1]
        assert damage.truncated == (items[hit] is END)
        assert f"the first at {offsets[hit + 1]}" in damage.warnings[-1]
    assert refused == 8 * offsets[1]


def test_every_cut_is_noticed_and_costs_what_is_behind_it(tmp_path):
    path = tmp_path / "r"
    items = small(path)
    whole = path.read_bytes()
    offsets = frame_offsets(whole)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < offsets[1]:
            with pytest.raises(RecordingError, match=r"empty|header is unreadable"):
                Recording.open(path)
            continue
        recording = Recording.open(path)
        kept = sum(offset <= size for offset in offsets) - 2
        assert list(flat(recording.items())) == list(flat(items[:kept]))
        assert recording.damage.truncated
        assert recording.damage.damaged_bytes == size - offsets[kept + 1]
        assert recording.damage.warnings[0].startswith("truncated: the recorder was killed or is still running")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_whatever_is_done_to_a_file_reading_never_fails(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("r") / "r"
    items = small(path)
    whole = path.read_bytes()
    header_end = frame_offsets(whole)[1]
    start = data.draw(st.integers(header_end, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    inserted = data.draw(st.binary(max_size=64) | st.just(layout.FRAME_MAGIC * 9) | st.just(whole[header_end:stop]))
    path.write_bytes(whole[:start] + inserted + whole[stop:])
    recording = Recording.open(path)
    written = list(flat(items))
    assert all(item in written for item in flat(recording.items()))
    accounted = sum(layout.FRAME_HEAD_BYTES + len(frame.payload) for frame in _frames(path, header_end))
    # Behind the end note, the beginning of a head, and zeros, are what a crash leaves of conclusions.
    is_left = start == len(whole) and layout.CONCLUSIONS_START.startswith(inserted.rstrip(b"\0"))
    excused = len(inserted) if is_left else 0
    assert header_end + accounted + recording.damage.damaged_bytes + excused == path.stat().st_size


def _frames(path, offset):
    with reader._opened(path) as fd:
        yield from reader._Scan(fd).frames(offset)


def test_the_damage_of_a_file_is_known_without_asking_for_items(tmp_path):
    path = tmp_path / "r"
    small(path)
    path.write_bytes(path.read_bytes() + b"tail")
    assert Recording.open(path).damage.damaged_bytes == 4
    assert Recording.open(path).check().damaged_bytes == 4
    assert not Recording.open(path).damage.truncated


def test_an_unfinished_pass_is_not_taken_for_a_complete_one(tmp_path):
    path = tmp_path / "r"
    small(path)
    path.write_bytes(path.read_bytes() + b"tail")
    recording = Recording.open(path)
    next(recording.items())
    assert recording.damage.damaged_bytes == 4


def test_a_pass_that_leaves_batches_out_is_not_taken_for_a_complete_one(tmp_path):
    path = tmp_path / "r"
    with RecordingWriter(path, HEADER):
        pass
    (payload,) = layout.encode_events(EventBatch.of([EVENT]))
    broken = layout.pack_frame(layout.FrameKind.EVENTS, payload[:-3])  # whole, but its strings are not
    path.write_bytes(path.read_bytes() + broken)
    recording = Recording.open(path)
    seen = []
    items = list(recording.items(lambda start_ns, end_ns: seen.append((*start_ns, *end_ns))))
    assert seen == [(EVENT.time_ns, EVENT.end_ns)]
    assert [item.kind for item in items] == [NoteKind.END]
    assert recording.damage.damaged_bytes == len(broken)
    assert list(recording.items(lambda *_: True)) == items


def test_two_recordings_in_one_file_do_not_pass_for_one(tmp_path):
    path = tmp_path / "r"
    small(path)
    whole = path.read_bytes()
    path.write_bytes(whole * 2)
    assert Recording.open(path).damage.damaged_bytes == frame_offsets(whole)[1]


def test_bad_sectors_are_damage(tmp_path, monkeypatch):
    path = tmp_path / "r"
    items = small(path)
    offsets = frame_offsets(path.read_bytes())
    recording = Recording.open(path)
    whole = os.pread

    def failing(first, last):
        def pread(fd, size, offset):
            if first <= offset < last:
                raise OSError(5, "Input/output error")
            return whole(fd, size, offset)

        return pread

    monkeypatch.setattr(
        os, "pread", failing(offsets[2] + layout.FRAME_HEAD_BYTES, offsets[2] + layout.FRAME_HEAD_BYTES + 1)
    )
    assert list(flat(recording.items())) == list(flat(items[:1] + items[2:]))
    monkeypatch.setattr(os, "pread", failing(offsets[2], offsets[-1]))
    assert list(recording.items()) == items[:1]
    assert recording.damage.damaged_bytes == offsets[-1] - offsets[2]


# Forged files: a checksum is no promise


def with_frames(path, *frames):
    path.write_bytes(
        layout.pack_prelude()
        + layout.pack_frame(layout.FrameKind.HEADER, layout.encode_header(HEADER))
        + b"".join(frames)
        + layout.pack_frame(layout.FrameKind.NOTE, layout.encode_note(END))
    )
    return Recording.open(path)


def events_payload(rows=2, columns=(), strings=("",), claims=None):
    """An events payload by hand: `columns` are (name, dtype, values), `claims` replace the true description."""
    stored = [(name, dtype, zlib.compress(layout._shuffle(np.array(values, dtype)))) for name, dtype, values in columns]
    text = "".join(strings).encode()
    lengths = zlib.compress(layout._shuffle(np.array([len(string) for string in strings], "<u4")))
    description = {
        "rows": rows,
        "columns": [(name, dtype, len(data)) for name, dtype, data in stored],
        "strings": [len(strings), len(lengths), len(text), len(zlib.compress(text))],
    }
    data = json.dumps(description | (claims or {})).encode()
    return b"".join((struct.pack("<I", len(data)), data, *(data for *_, data in stored), lengths, zlib.compress(text)))


def events_frame(**parts):
    return layout.pack_frame(layout.FrameKind.EVENTS, events_payload(**parts))


def test_an_unknown_column_is_ignored_and_a_missing_one_is_zero(tmp_path):
    frame = events_frame(
        columns=[("cpu", "<u2", [3, 4]), ("time_ns", "<u8", [5, 6]), ("path", "<u4", [1, 0])], strings=("", "/x")
    )
    recording = with_frames(tmp_path / "r", frame)
    batch = next(recording.items())
    assert batch.rows.dtype == EVENT_DTYPE
    assert batch.rows["time_ns"].tolist() == [5, 6]
    assert [batch.strings[index] for index in batch.rows["path"]] == ["/x", ""]
    assert not batch.rows["pid"].any()
    assert not batch.rows["comm"].any()
    assert recording.damage == Damage(0, truncated=False, warnings=())
    assert "cpu" not in recording.to_pandas()


def test_a_column_of_another_width_is_converted(tmp_path):
    batch = next(
        with_frames(tmp_path / "r", events_frame(columns=[("pid", "<u8", [7, 8]), ("ret", "|i1", [-1, 1])])).items()
    )
    assert batch.rows["pid"].tolist() == [7, 8]
    assert batch.rows["ret"].tolist() == [-1, 1]


def test_frames_and_notes_of_a_later_version_are_left_out_and_counted(tmp_path):
    frame = layout.pack_frame(77, b"from the future")
    note = layout.pack_frame(layout.FrameKind.NOTE, b'{"kind":"forecast","time_ns":1,"data":{}}')
    recording = with_frames(tmp_path / "r", frame, note)
    assert list(recording.items()) == [END]
    assert recording.damage == Damage(
        0, truncated=False, warnings=("2 frames of a newer observe were left out; update observe to see them",)
    )


@pytest.mark.parametrize(
    "parts",
    [
        {"columns": [("time_ns", "<u8", [1, 2, 3])]},
        {"columns": [("time_ns", "<u8", [1])]},
        {"columns": [("time_ns", "<u8", [1, 2]), ("time_ns", "<u8", [1, 2])]},
        {"columns": [("time_ns", "<f8", [1, 2])]},
        {"columns": [("comm", "<u4", [0, 1])]},
        {"strings": ("x", "")},
        {"claims": {"rows": 0}},
        {"claims": {"rows": -1}},
        {"claims": {"rows": 10**12}},
        {"claims": {"rows": "two"}},
        {"claims": {"columns": 7}},
        {"claims": {"columns": [["time_ns", "O", 0]]}},
        {"claims": {"columns": [["time_ns", "<u3", 0]]}},
        {"claims": {"columns": [["time_ns", 8, 0]]}},
        {"claims": {"columns": [["time_ns", "<u8", 10**9]]}},
        {"claims": {"columns": [["time_ns", "<u8", -1]]}},
        {"claims": {"columns": [["time_ns", "<u8"]]}},
        {"claims": {"strings": [10**9, 0, 0, 0]}},
        {"claims": {"strings": [1, 0, 0]}},
        {"claims": {"strings": [0, 12, 0, 8]}},
        {"claims": {"strings": [1, 12, 10**10, 8]}},
    ],
)
def test_events_that_contradict_themselves_are_damage(tmp_path, parts):
    frame = events_frame(**parts)
    recording = with_frames(tmp_path / "r", frame, events_frame())
    assert [len(item) for item in recording.items() if isinstance(item, EventBatch)] == [2]
    assert recording.damage.damaged_bytes == len(frame)


@pytest.mark.parametrize(
    "payload", [b"", b"\x01", b"\xff\xff\xff\xff", b"\x02\0\0\0[]", b"\x02\0\0\0{}", b"\x02\0\0\0{\xff"]
)
def test_events_without_a_description_are_damage(tmp_path, payload):
    frame = layout.pack_frame(layout.FrameKind.EVENTS, payload)
    assert with_frames(tmp_path / "r", frame).damage.damaged_bytes == len(frame)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"kind":"loss","time_ns":1}',
        b'{"kind":"loss","time_ns":"1","data":{}}',
        b'{"kind":["loss"],"time_ns":1,"data":{}}',
    ],
)
def test_notes_that_are_none_are_damage(tmp_path, payload):
    frame = layout.pack_frame(layout.FrameKind.NOTE, payload)
    recording = with_frames(tmp_path / "r", frame)
    assert list(recording.items()) == [END]
    assert recording.damage.damaged_bytes == len(frame)


def test_lying_sizes_allocate_nothing(tmp_path):
    bomb = zlib.compress(bytes(500 << 20), 9)
    description = json.dumps({"rows": 2, "columns": [["time_ns", "<u8", len(bomb)]], "strings": [1, 0, 0, 0]}).encode()
    payload = struct.pack("<I", len(description)) + description + bomb
    liar = layout.FRAME_MAGIC + struct.pack("<III", layout.FrameKind.EVENTS, 2**32 - 1, 0)
    frame = layout.pack_frame(layout.FrameKind.EVENTS, payload)
    recording = with_frames(tmp_path / "r", frame, liar)
    tracemalloc.start()
    assert list(recording.items()) == [END]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recording.damage.damaged_bytes == len(frame) + len(liar)
    assert peak_bytes < 8 << 20


def test_a_length_that_no_writer_writes_is_no_frame():
    head = layout.FRAME_MAGIC + struct.pack("<II", layout.FrameKind.EVENTS, layout.MAX_PAYLOAD_BYTES)
    assert layout.unpack_frame_head(head + bytes(4)) is not None
    head = layout.FRAME_MAGIC + struct.pack("<II", layout.FrameKind.EVENTS, layout.MAX_PAYLOAD_BYTES + 1)
    assert layout.unpack_frame_head(head + bytes(4)) is None


def test_a_forged_file_costs_a_bounded_effort(tmp_path, monkeypatch):
    size = 64 << 10
    claims = layout.FRAME_MAGIC + struct.pack("<III", layout.FrameKind.EVENTS, size // 2, 0)
    read_bytes = []
    whole = os.pread

    def counting(fd, count, offset):
        read_bytes.append(count)
        return whole(fd, count, offset)

    recording = with_frames(tmp_path / "r", claims * (size // len(claims)))
    monkeypatch.setattr(layout, "MAX_PAYLOAD_BYTES", size)
    monkeypatch.setattr(os, "pread", counting)
    assert recording.check().damaged_bytes >= size
    assert sum(read_bytes) < 8 * size + 2 * reader._CHUNK_BYTES


def test_reading_holds_one_frame_at_a_time(tmp_path):
    recording = Recording.open(write(tmp_path / "r", [numbered(start, 10_000) for start in range(0, 300_000, 10_000)]))

    def peak_bytes(work):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def all_items():
        for _ in recording.items():
            pass

    assert peak_bytes(all_items) < 4 * peak_bytes(lambda: next(recording.items()))


# pandas


def test_a_data_frame_has_a_row_an_event(tmp_path):
    recording = Recording.open(write(tmp_path / "r", [EventBatch.of([EVENT]), END, numbered(1, 2)]))
    frame = recording.to_pandas()
    assert list(frame) == list(Event.__dataclass_fields__)
    assert frame.to_dict("records")[0] == {
        name: getattr(EVENT, name) for name in Event.__dataclass_fields__ if name != "kind"
    } | {"kind": "renameat2"}
    assert frame["path"].tolist() == [EVENT.path, "/dir/1", "/dir/2"]
    assert frame["comm"].cat.categories.tolist() == ["", EVENT.comm]
    assert frame["path"].cat.categories.dtype == object, "Arrow's strings cannot hold a lone surrogate"
    assert frame["kind"].cat.categories.tolist() == ["mkdir", "renameat2"]
    for name in ("time_ns", "duration_ns", "goroutine", "ret", "flags", "pid", "tid", "fd", "marks"):
        assert frame[name].dtype == EVENT_DTYPE[name].newbyteorder("=")


@settings(deadline=None, max_examples=50)
@given(parts=st.lists(batches, max_size=4))
def test_a_data_frame_agrees_with_the_events(tmp_path_factory, parts):
    recording = Recording.open(write(tmp_path_factory.mktemp("r") / "r", parts))
    expected = [
        tuple(event.kind.label if name == "kind" else getattr(event, name) for name in Event.__dataclass_fields__)
        for event in recording.events()
    ]
    assert list(recording.to_pandas().itertuples(index=False, name=None)) == expected


def test_a_kind_of_a_later_version_keeps_its_number(tmp_path):
    recording = with_frames(tmp_path / "r", events_frame(columns=[("kind", "<u2", [Kind.MOUNT, 999])]))
    assert recording.to_pandas()["kind"].tolist() == ["mount", "kind_999"]


def test_recording_needs_no_pandas():
    code = "import sys, observe.recording; sys.exit(sorted({'pandas', 'pyarrow'} & set(sys.modules)) or None)"
    search = {"PYTHONPATH": str(Path(observe.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | search)
