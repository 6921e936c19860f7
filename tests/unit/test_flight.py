# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: recordings of slow runs that reopen as they were, whole or not at all, in bounded room."""

from __future__ import annotations

import errno
import os
import sys
import threading
from dataclasses import replace

import pytest
from made import made_events, made_run
from streams import MS, create, header, identity, start, stream

from observe.errors import ObserveError
from observe.exporter import flight
from observe.exporter.flight import FlightRecorder
from observe.exporter.live import Live
from observe.exporter.sinks import Sink, Stream
from observe.exporter.snapshot import Condition
from observe.model import Note, NoteKind
from observe.phases import load
from observe.recording import RecordingWriter
from observe.reports.assemble import assemble

STREAM = Stream(header(), ())
SLOW = 20 * MS


def pair(n, at_ns):
    made = create(n, at_ns)
    return [made, identity(n, made[-1].end_ns, f"web-{n}"), start(n, made[-1].end_ns + MS)]


def live_with(recorder):
    return Live(load(), (), [recorder], events_slower_than_ns=recorder.slower_than_ns, boot_clock_ns=lambda: 0)


def feed(live, items):
    live.attached(header(), items)
    live.take([Note(NoteKind.WARNING, 3600 * 1000 * MS, {})])
    live.publish(Condition({}))


def test_a_containers_configuration_is_in_its_recording_and_not_kept_otherwise(tmp_path):
    recorder = FlightRecorder(tmp_path / "keep", 0)
    recorder.start()
    live = live_with(recorder)
    note = identity(1, 1)
    told = replace(note, data={**note.data, "configuration": {"HostConfig": {"Privileged": True}}})
    feed(live, stream(create(1, 0), told))
    recorder.close()
    (path,) = recorder.folder.iterdir()
    (run,) = assemble(path, load())[0].runs
    assert run.configuration == told.data["configuration"]
    assert [one.configuration for one in live.snapshot.recent] == [{}]
    feed(live, stream(*(identity(n, n) for n in range(300))))
    assert len(live._containers) == 100


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_slow_runs_are_kept_and_reopen_as_they_were(tmp_path):
    recorder = FlightRecorder(tmp_path / "keep", SLOW)
    recorder.start()
    live = live_with(recorder)
    feed(live, stream(*pair(1, 0), *pair(2, 5 * MS)))
    recorder.close()
    slow = {(run.operation, run.container_id): run for run in live.snapshot.recent if run.duration_ns >= SLOW}
    assert len(slow) == recorder.results()["kept"] >= 2
    for path in recorder.folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        report, damage = assemble(path, load())
        assert damage == ()
        (run,) = report.runs
        seen = slow.pop((run.operation, run.container_id))
        assert run.container_name == seen.container_name
        assert [(span.id, span.start_ns, span.duration_ns, span.syscalls) for span in run.phases] == [
            (span.id, span.start_ns, span.duration_ns, span.syscalls) for span in seen.phases
        ]
    assert slow == {}


def test_fast_runs_are_not_kept_and_bring_no_events(tmp_path):
    recorder = FlightRecorder(tmp_path / "keep", 3600 * 1000 * MS)
    offered = []
    recorder.offer = lambda run, _stream: offered.append(run)  # type: ignore[method-assign]
    feed(live_with(recorder), stream(*pair(1, 0)))
    assert [run.operation for run in offered] == ["create", "start"]
    assert [run.events for run in offered] == [(), ()]
    assert not recorder.wants(offered[0])


def slow_run(seed, **changes):
    return replace(made_run(1, seed), wall_time_ns=(1_700_000_000 + seed) * 1_000_000_000, **changes)


def deliver(recorder, *runs):
    return [dict(recorder.deliver([flight.Delivery(run, STREAM)])) for run in runs]


def test_the_oldest_go_first_and_what_is_not_ours_stays(tmp_path):
    size = FlightRecorder(tmp_path / "one", 0)
    deliver(size, slow_run(0))
    (one,) = size.folder.iterdir()
    keep = tmp_path / "keep"
    keep.mkdir()
    for name in ("notes.txt", "mine.observe"):
        (keep / name).write_bytes(b"x" * 100_000)
    recorder = FlightRecorder(keep, 0, 3 * one.stat().st_size + 10)
    results = deliver(recorder, *(slow_run(seed) for seed in range(5)))
    assert [result["removed"] for result in results] == [0, 0, 0, 1, 1]
    kept = [name for name in names(keep) if name not in ("notes.txt", "mine.observe")]
    assert len(kept) == 3
    assert len(names(keep)) == 5
    assert kept[0].startswith("20231114T221322")
    assert sum((keep / name).stat().st_size for name in kept) <= 3 * one.stat().st_size + 10


def test_one_that_is_larger_than_all_room_is_not_kept(tmp_path):
    recorder = FlightRecorder(tmp_path, 0, 10)
    assert deliver(recorder, slow_run(0)) == [{"too_large": 1, "removed": 0}]
    assert names(tmp_path) == []


def test_runs_of_one_moment_do_not_overwrite_each_other(tmp_path):
    recorder = FlightRecorder(tmp_path, 0)
    deliver(recorder, slow_run(0), slow_run(0))
    assert len(names(tmp_path)) == 2


def test_a_name_holds_nothing_that_a_container_says(tmp_path):
    recorder = FlightRecorder(tmp_path, 0)
    deliver(recorder, slow_run(0, container_id="../../etc/x", container_name="../x"), slow_run(1, container_id=None))
    assert all(flight._NAME.fullmatch(name) for name in names(tmp_path))
    assert len(names(tmp_path)) == 2


def test_a_crash_in_the_middle_leaves_nothing_that_looks_like_a_recording(tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    class Writer(flight.RecordingWriter):
        def flush(self):
            super().flush()
            raise Crash

    recorder = FlightRecorder(tmp_path, 0)
    monkeypatch.setattr(flight, "RecordingWriter", Writer)
    monkeypatch.setattr(flight.Path, "unlink", lambda *_args, **_options: None)  # a crash cleans nothing up
    with pytest.raises(Crash):
        deliver(recorder, slow_run(0))
    assert all(name.startswith(".") and name.endswith(".part") for name in names(tmp_path))
    assert names(tmp_path)
    monkeypatch.undo()
    FlightRecorder(tmp_path, 0)
    assert names(tmp_path) == []


OURS = "20231114T221322000Z-start-0123456789ab"


def test_only_what_a_crash_of_ours_has_left_is_removed(tmp_path):
    (tmp_path / f".{OURS}.observe.part").write_bytes(b"OBSERVE")
    others = {".vimrc.part", ".observe.part", f"{OURS}.observe.part", f".x{OURS}.observe.part", f".{OURS}.part"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / f".{OURS}-2.observe.part").mkdir()
    (tmp_path / f".{OURS}-3.observe.part").symlink_to(tmp_path / ".vimrc.part")
    os.mkfifo(tmp_path / f".{OURS}-4.observe.part")
    unfit = {f".{OURS}-{number}.observe.part" for number in (2, 3, 4)}
    FlightRecorder(tmp_path, 0)
    assert set(names(tmp_path)) == others | unfit


def test_what_another_recorder_is_writing_stays(tmp_path):
    part = tmp_path / f".{OURS}.observe.part"
    with RecordingWriter(part, header()):
        FlightRecorder(tmp_path, 0)
        assert part.exists()
    FlightRecorder(tmp_path, 0)
    assert not part.exists()


def test_two_recorders_of_one_folder_do_not_take_each_others_files(tmp_path, capsys):
    recorder = FlightRecorder(tmp_path, 0)
    part = tmp_path / f".{recorder._free_name(slow_run(0))}.part"
    with RecordingWriter(part, header()):
        recorder.start()
        recorder.offer(slow_run(0), STREAM)
        recorder.close()
        assert names(tmp_path) == [part.name]
    assert recorder.results()["failed"] == 1
    said = "another recorder is writing it; choose another --keep"
    assert capsys.readouterr().err == f"observe: flight_recorder: cannot write {part}: {said}\n"


def test_a_folder_with_the_name_of_a_recording_is_none(tmp_path):
    (tmp_path / f"{OURS}.observe").mkdir()
    recorder = FlightRecorder(tmp_path, 0, 10)
    assert deliver(recorder, slow_run(0)) == [{"too_large": 1, "removed": 0}]
    assert names(tmp_path) == [f"{OURS}.observe"]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (("pwrite", errno.ENOSPC), "No space left on device; make room there, or lower --keep-bytes"),
        (("fdatasync", errno.EDQUOT), "Disk quota exceeded; make room there, or lower --keep-bytes"),
        (("open", errno.EROFS), "Read-only file system; choose another --keep"),
        (("rename", errno.EACCES), "Permission denied; choose another --keep"),
    ],
)
def test_a_disk_that_refuses_is_counted_and_said_once(refusal, said, tmp_path, monkeypatch, capsys):
    call, number = refusal
    recorder = FlightRecorder(tmp_path, 0)
    real_open = os.open

    def refuse(path, *arguments, **_options):
        if call == "open" and not str(path).endswith(".part"):
            return real_open(path, *arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    recorder.start()
    for seed in range(3):
        recorder.offer(slow_run(seed), STREAM)
    recorder.close()
    monkeypatch.undo()
    assert recorder.results() == {"kept": 0, "removed": 0, "too_large": 0, "failed": 3, "dropped": 0}
    assert capsys.readouterr().err == f"observe: flight_recorder: {tmp_path}: {said}\n"
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_starts(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ObserveError, match="choose another --keep"):
        FlightRecorder(tmp_path / "file" / "keep", 0)


def test_a_sink_that_is_slow_drops_and_the_recorder_does_not_wait():
    held, begun = threading.Event(), threading.Event()

    class Slow(Sink):
        def wants(self, run):
            return run is not None

        def deliver(self, deliveries):
            begun.set()
            held.wait(60)
            return {"done": len(deliveries)}

    sink = Slow("slow", ("done",), waiting=3, batch=2)
    sink.start()
    sink.offer(slow_run(0), STREAM)
    assert begun.wait(60)
    for seed in range(10):
        sink.offer(slow_run(seed), STREAM)
    assert sink.results()["dropped"] == 7
    held.set()
    sink.close()
    assert sink.results() == {"done": 4, "failed": 0, "dropped": 7}


class Direct(Sink):
    """Delivers when it is told to; `deliver` is what it is made with."""

    def __init__(self, deliver, **options):
        super().__init__("direct", ("done",), **options)
        self._how = deliver

    def wants(self, run):
        return run is not None

    def deliver(self, deliveries):
        return self._how(deliveries)


def with_events(count):
    run = slow_run(0)
    return replace(run, events=tuple(made_events(run, count)))


def test_what_a_sink_holds_is_bounded_by_events_too():
    during = []

    def deliver(deliveries):
        sink.offer(with_events(3), STREAM)
        during.append(sink.results()["dropped"])
        return {"done": len(deliveries)}

    sink = Direct(deliver, waiting=100, batch=100, events=10)
    for count in (4, 4, 3, 2):
        sink.offer(with_events(count), STREAM)
    assert sink.results()["dropped"] == 1
    sink.offer(slow_run(0), STREAM)
    assert sink.results()["dropped"] == 1
    sink._turn()
    assert during == [2]  # what is being delivered is still held
    sink.offer(with_events(10), STREAM)
    assert sink.results() == {"done": 4, "failed": 0, "dropped": 2}


def test_a_fault_of_a_delivery_is_counted_and_said_once_and_the_next_one_comes(capsys):
    faults = iter([ValueError("no\nnumber"), KeyError("x"), ObserveError("refused")])

    def deliver(deliveries):
        for fault in faults:
            raise fault
        return {"done": len(deliveries)}

    sink = Direct(deliver, waiting=10)
    sink.start()
    for seed in range(5):
        sink.offer(slow_run(seed), STREAM)
    sink.close()
    assert sink.results() == {"done": 2, "failed": 3, "dropped": 0}
    assert capsys.readouterr().err == "observe: direct: unexpected ValueError: no\\x0anumber\n"


def test_a_failure_that_nobody_hears_of_ends_nothing(monkeypatch):
    class Gone:
        def write(self, _text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def deliver(deliveries):
        if deliveries[0].run.wall_time_ns == slow_run(0).wall_time_ns:
            raise ObserveError("refused")
        return {"done": len(deliveries)}

    monkeypatch.setattr(sys, "stderr", Gone())
    sink = Direct(deliver, waiting=10)
    sink.start()
    for seed in range(3):
        sink.offer(slow_run(seed), STREAM)
    sink.close()
    assert sink.results() == {"done": 2, "failed": 1, "dropped": 0}
