# SPDX-License-Identifier: Apache-2.0
"""What was concluded from a recording is kept in it: the same as concluding it again, or not used."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repeating import endless
from streams import FIXTURES, recorded

import observe
from observe.__main__ import main
from observe.correlate import stamp, stamps
from observe.errors import RecordingError
from observe.model import (
    Conclusions,
    Departure,
    DepartureKind,
    Event,
    EventBatch,
    Evidence,
    Header,
    Kind,
    Loss,
    Note,
    NoteKind,
)
from observe.phases import Catalogue, load
from observe.recording import Damage, Recording, RecordingWriter, conclusions, keep_conclusions, reader, writer
from observe.recording import format as layout
from observe.reports import assemble as assembling
from observe.reports.assemble import assemble, conclude

NAMES = ("create-start", "functions", "three-at-once")
PACKAGE = Path(observe.__file__).parent
FRAME = layout.FrameKind.CONCLUSIONS


def copied(tmp_path: Path, name: str = "functions") -> Path:
    path = tmp_path / f"{name}.observe"
    path.write_bytes((FIXTURES / f"{name}.observe").read_bytes())
    return path


def concluded(tmp_path: Path, name: str = "functions") -> tuple[Path, int]:
    """A recording with its conclusions, and where they begin."""
    path = copied(tmp_path, name)
    start = path.stat().st_size
    conclude(path)
    assert path.stat().st_size > start
    return path, start


def frames(path: Path) -> list[reader._Frame]:
    with reader._opened(path) as fd:
        return list(reader._Scan(fd).frames(Recording.open(path)._head.end))


def with_header(header: Header) -> bytes:
    """The beginning of another recording."""
    return layout.pack_prelude() + layout.pack_frame(layout.FrameKind.HEADER, layout.encode_header(header))


def tiny(tmp_path: Path) -> tuple[Path, int]:
    """A recording of two events, with conclusions of hardly anything, and where these begin."""
    path = tmp_path / "tiny.observe"
    of, _ = recorded("functions")
    events = EventBatch.of([Event(5, Kind.MKDIR, path="/a"), Event(6, Kind.MKDIR, path="/b")])
    with RecordingWriter(path, of) as recorder:
        for item in (Note(NoteKind.WARNING, 4, {"text": "w"}), events, Note(NoteKind.END, 7, {})):
            recorder.write(item)
    start = path.stat().st_size
    run, _ = assemble(FIXTURES / "functions.observe", load())[0].runs
    found = Conclusions(
        runs=(replace(run, phases=run.phases[:1], functions=(), calls=(), configuration={}),), loss=Loss()
    )
    assert keep_conclusions(path, found, stamp(), Recording.open(path).fingerprint)
    return path, start


def is_used(path: Path) -> bool:
    return Recording.open(path).conclusions(stamp()) is not None


@contextmanager
def nobody_correlates(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("it was concluded again")

    with monkeypatch.context() as context:
        context.setattr(assembling, "Correlator", refuse)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_what_was_kept_is_what_would_be_concluded_again(tmp_path, monkeypatch, name):
    original = copied(tmp_path, name)
    wanted = [repr(assemble(original, load(), why=why)) for why in (False, True)]
    events = assemble(original, load(), keep_events=True)
    assert repr((conclude(original), ())) == wanted[0]
    assert is_used(original)
    with nobody_correlates(monkeypatch):
        assert [repr(assemble(original, load(), why=why)) for why in (False, True)] == wanted
        report, _ = assemble(original, load(), details=False)
    assert repr(assemble(original, load(), keep_events=True)) == repr(events)
    assert len(report.runs) == len(events[0].runs) > 0
    for run, whole in zip(report.runs, assemble(original, load())[0].runs, strict=True):
        assert whole.calls
        assert run == replace(whole, configuration={}, functions=(), calls=())


def test_a_long_recording_has_several_parts(tmp_path):
    of, items = recorded("functions")
    path = tmp_path / "long.observe"
    with RecordingWriter(path, of) as recorder:
        for item in endless(items, conclusions._RUNS // 2 + 5):
            recorder.write(item)
    report = conclude(path)
    assert len(report.runs) > conclusions._RUNS
    assert [frame.kind for frame in frames(path)].count(FRAME) == 5
    assert repr(assemble(path, load())[0]) == repr(report)


def test_departures_pieces_and_texts_that_are_not_utf8_are_kept(tmp_path):
    path = copied(tmp_path)
    report, _ = assemble(path, load())
    first, second = report.runs
    strange = "\udcff <b>\0"
    departure = Departure(DepartureKind.REPEATED, "start", strange)
    changed = replace(first, departures=(departure,), image=strange, configuration={"Cmd": [strange, None, 1.5]})
    found = assembling._concluded(Recording.open(path), load())[0]
    found = replace(found, runs=(changed, second), warnings=(strange,), refused=({"name": strange},))
    assert any(span.pieces for run in found.runs for span in run.phases)
    assert keep_conclusions(path, found, stamp(), Recording.open(path).fingerprint)
    assert Recording.open(path).conclusions(stamp()) == found
    assert Recording.open(path).conclusions("of other code") is None


@pytest.mark.parametrize("form", ["text", "json", "csv", "markdown", "html"])
def test_every_report_is_the_same_with_and_without(tmp_path, capsysbinary, form):
    path = copied(tmp_path, "three-at-once")
    assert main(["report", str(path), "-f", form]) == 0
    before = capsysbinary.readouterr()
    conclude(path)
    assert is_used(path)
    assert main(["report", str(path), "-f", form]) == 0
    assert capsysbinary.readouterr() == before
    assert before.out
    assert not before.err


@pytest.mark.parametrize("options", [["--events"], ["--functions"], ["--configuration"], ["--why"]])
def test_json_with_more_is_the_same_with_and_without(tmp_path, capsysbinary, options):
    path = copied(tmp_path)
    assert main(["report", str(path), "-f", "json"]) == 0
    short = len(capsysbinary.readouterr().out)
    assert main(["report", str(path), "-f", "json", *options]) == 0
    before = capsysbinary.readouterr()
    assert "--why" in options or len(before.out) > short
    conclude(path)
    assert main(["report", str(path), "-f", "json", *options]) == 0
    assert capsysbinary.readouterr() == before


def test_other_code_concludes_again(tmp_path, monkeypatch):
    path, _ = concluded(tmp_path)
    with nobody_correlates(monkeypatch):
        report, _ = assemble(path, load())
        monkeypatch.setattr(assembling, "stamp", lambda: "of other code")
        with pytest.raises(AssertionError, match="concluded again"):
            assemble(path, load())
    monkeypatch.setattr(assembling, "stamp", lambda: "of other code")
    assert repr(assemble(path, load())[0]) == repr(report)


@pytest.fixture
def package(tmp_path):
    """A copy of our own code."""
    place = tmp_path / "installed" / "observe"
    shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


#: Whatever decides what is concluded.
DECIDES = [
    PACKAGE / "model.py",
    PACKAGE / "reports" / "assemble.py",
    *(
        path
        for folder in ("recording", "phases", "correlate")
        for path in sorted((PACKAGE / folder).rglob("*"))
        if path.suffix in (".py", ".toml")
    ),
]


def test_the_stamp_is_of_all_that_decides(package):
    """Any change in the model, the reader, the correlator or the documented phases makes another stamp."""
    seen = {stamps.digest_of(package)}
    assert seen == {stamp()}
    assert len(DECIDES) > 40
    for path in DECIDES:
        with (package / path.relative_to(PACKAGE)).open("a") as file:
            file.write("#")
        assert stamps.digest_of(package) not in seen, path
        seen.add(stamps.digest_of(package))


def test_the_stamp_is_of_nothing_else(package):
    (package / "reports" / "text.py").write_text("")
    (package / "correlate" / "__pycache__").mkdir()
    for name in ("correlate/__pycache__/spans.cpython-312.pyc", "recording/reader.pyc", "phases/start.toml~"):
        (package / name).write_bytes(b"compiled")
    assert stamps.digest_of(package) == stamp()


AN_UPGRADE_MEANWHILE = """
import sys, pathlib
from observe.reports.assemble import conclude
package = pathlib.Path(sys.argv[2])
assert pathlib.Path(sys.modules["observe"].__file__).parent == package
for name in ("correlate/spans.py", "phases/start.toml", "phases/create.toml"):
    path = package / name
    path.write_text(path.read_text().replace('step = "', 'step = "9.'))
    with path.open("a") as file:
        file.write("# newer")
conclude(pathlib.Path(sys.argv[1]))
"""


def test_an_upgrade_meanwhile_gets_no_conclusions_of_the_code_before(tmp_path, package, monkeypatch):
    """The code and the catalogue that are loaded conclude, and it is their stamp that the conclusions have."""
    path = copied(tmp_path)
    wanted = repr(assemble(path, load()))
    subprocess.run(
        [sys.executable, "-c", AN_UPGRADE_MEANWHILE, path, package],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
    )
    assert stamps.digest_of(package) != stamp()
    assert Recording.open(path).conclusions(stamps.digest_of(package)) is None
    with nobody_correlates(monkeypatch):
        assert repr(assemble(path, load())) == wanted


def test_another_catalogue_concludes_again(tmp_path, monkeypatch):
    path, _ = concluded(tmp_path)
    other = Catalogue(tuple(replace(phase, step=f"other {phase.step}") for phase in load().phases))
    assert all(span.step.startswith("other") for run in assemble(path, other)[0].runs for span in run.phases)
    with nobody_correlates(monkeypatch), pytest.raises(AssertionError, match="concluded again"):
        assemble(path, other)


def test_with_the_schedulers_events_nothing_is_kept(tmp_path):
    path = copied(tmp_path, "why")
    before = path.read_bytes()
    conclude(path)
    assert path.read_bytes() == before
    assert any(run.causes for run in assemble(path, load(), why=True)[0].runs)


def test_of_a_killed_or_damaged_recording_nothing_is_kept(tmp_path):
    path = copied(tmp_path)
    whole = path.read_bytes()
    end = frames(path)[-1].start
    for data in (whole[:-10], whole[:end], whole[:5000] + b"\0" + whole[5001:]):
        path.write_bytes(data)
        conclude(path)
        assert path.read_bytes() == data


def test_nothing_is_kept_twice_of_a_recording_that_was_concluded(tmp_path):
    path, start = concluded(tmp_path)
    size = path.stat().st_size
    conclude(path)
    assert path.stat().st_size == size > start


def test_what_happens_to_conclusions_costs_time_only(tmp_path):
    path, start = concluded(tmp_path)
    whole = path.read_bytes()
    report = assemble(path, load())[0]
    # Magic and kind: without them, nobody knows that these are no events. Nor with a length that nobody writes.
    starts = [frame.start for frame in frames(path) if frame.kind == FRAME]
    heads = {start + place for start in starts for place in range(len(layout.CONCLUSIONS_START))}
    lengths = {start + len(layout.CONCLUSIONS_START) + place for start in starts for place in range(4)}
    choose = random.Random(4)  # noqa: S311 - places to damage
    for place in [*choose.sample(sorted(heads), 10), *choose.sample(sorted({*range(start, len(whole))} - lengths), 80)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << choose.randrange(8)]) + whole[place + 1 :])
        assert not is_used(path), place
        found, damage = assemble(path, load())
        assert bool(damage) == (place in heads), place
        assert repr(found.runs) == repr(report.runs), place
    for cut in (
        start,
        *range(start + 1, start + 20),
        *choose.sample(range(start + 16, len(whole)), 20),
        len(whole) - 1,
    ):
        path.write_bytes(whole[:cut])
        assert not is_used(path), cut
        assert repr(assemble(path, load())) == repr((report, ())), cut


UNHARMED = Damage(0, truncated=False, warnings=())


def test_a_cut_at_any_byte_behind_the_recordings_end_loses_no_events(tmp_path):
    path, start = tiny(tmp_path)
    whole = path.read_bytes()
    for cut in range(start, len(whole)):
        for tail in (b"", bytes(len(whole) - cut)):  # what a crash had no time to write may be zeros
            path.write_bytes(whole[:cut] + tail)
            recording = Recording.open(path)
            assert recording.check() == UNHARMED, (cut, tail)
            assert len(recording.events()) == 2
    assert main(["report", str(path), "--strict"]) == 0
    path.write_bytes(whole[: start + 1])
    assert main(["report", str(path), "--strict"]) == 0


def test_what_else_stands_behind_the_recordings_end_is_told(tmp_path):
    path, start = tiny(tmp_path)
    whole = path.read_bytes()
    begun = layout.CONCLUSIONS_START
    for tail in (b"tail", begun[:3] + b"x", begun[:3] + b"\0x", begun[:4] + b"\2", bytes(40) + b"x", b"x" + bytes(40)):
        for end in (start, len(whole)):
            path.write_bytes(whole[:end] + tail)
            assert Recording.open(path).damage.damaged_bytes == len(tail), (tail, end)
    for zeros in (bytes(9), bytes(40)):
        path.write_bytes(whole[:start] + zeros + whole[start:])
        assert Recording.open(path).damage.damaged_bytes == len(zeros)


def test_what_cannot_be_read_behind_the_recordings_end_is_told(tmp_path, monkeypatch):
    path, start = tiny(tmp_path)
    read = os.pread

    def failing(fd, size, offset):
        if offset >= start:
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    assert Recording.open(path).damage.damaged_bytes == path.stat().st_size - start


def test_damage_that_looks_like_conclusions_is_told_before_the_recordings_end(tmp_path):
    """One byte makes a frame of any kind look like them: what it held is lost all the same."""
    path, start = tiny(tmp_path)
    whole = path.read_bytes()
    hit = [frame for frame in frames(path) if frame.start < start]
    assert [frame.kind for frame in hit] == [layout.FrameKind.NOTE, layout.FrameKind.EVENTS, layout.FrameKind.NOTE]
    for end in (start, len(whole)):
        for frame in hit:
            kind = frame.start + len(layout.FRAME_MAGIC)
            path.write_bytes(whole[:kind] + bytes([layout.FrameKind.CONCLUSIONS]) + whole[kind + 1 : end])
            assert Recording.open(path).damage.damaged_bytes == frame.end - frame.start
            assert main(["report", str(path), "--strict"]) == 4
    for cut in range(hit[0].start + 1, hit[-1].end):
        path.write_bytes(whole[:cut])
        assert Recording.open(path).damage.truncated
        assert Recording.open(path).damage.damaged_bytes == cut - max(
            place for frame in hit for place in (frame.start, frame.end) if place <= cut
        )


def test_what_happens_to_the_recording_is_told_all_the_same(tmp_path):
    path, start = concluded(tmp_path)
    whole = path.read_bytes()
    choose = random.Random(5)  # noqa: S311 - places to damage
    for place in choose.sample(range(layout.PRELUDE_BYTES + 1000, start), 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << choose.randrange(8)]) + whole[place + 1 :])
        report, damage = assemble(path, load())
        assert report.loss.damaged_bytes > 0, place
        assert damage


def test_a_frame_that_was_taken_away_or_added_is_noticed(tmp_path):
    path, start = concluded(tmp_path)
    whole = path.read_bytes()
    every = frames(path)
    own = [frame for frame in every if frame.start < start]
    gone = own[len(own) // 2]
    path.write_bytes(whole[: gone.start] + whole[gone.end :])
    assert not is_used(path)
    path.write_bytes(whole[:start] + whole[gone.start : gone.end] + whole[start:])
    assert not is_used(path)
    path.write_bytes(whole + whole[gone.start : gone.end])
    assert not is_used(path)
    for added in (b"x", b"\0", layout.FRAME_MAGIC[:1]):
        path.write_bytes(whole + added)
        assert not is_used(path), added
        for frame in every:
            path.write_bytes(whole[: frame.start] + added + whole[frame.start :])
            assert not is_used(path), (added, frame.start)
    for first, second in pairwise(own):  # as long as before, and every frame is whole
        swapped = whole[second.start : second.end] + whole[first.start : first.end]
        path.write_bytes(whole[: first.start] + swapped + whole[second.end :])
        assert not is_used(path)
    head = Recording.open(path).header
    path.write_bytes(with_header(replace(head, host={"arch": "none"})) + whole[own[0].start :])
    assert not is_used(path)
    path.write_bytes(whole)
    assert is_used(path)


def test_without_room_the_recording_is_as_it_was(tmp_path, monkeypatch):
    path = copied(tmp_path)
    before = path.read_bytes()
    write = os.pwrite

    def full(fd, data, offset):
        if offset > len(before):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:100], offset)

    monkeypatch.setattr(writer.os, "pwrite", full)
    report = conclude(path)
    assert report.runs
    assert path.read_bytes() == before


def test_what_is_being_written_gone_or_too_large_is_left_alone(tmp_path, monkeypatch):
    path = copied(tmp_path)
    found = assembling._concluded(Recording.open(path), load())[0]
    of, _ = recorded("functions")
    of_it = Recording.open(path).fingerprint
    assert not keep_conclusions(tmp_path / "none.observe", found, stamp(), of_it)
    with RecordingWriter(tmp_path / "live.observe", of) as recorder:
        assert not keep_conclusions(tmp_path / "live.observe", found, stamp(), of_it)
        recorder.write(Note(NoteKind.END, 5, {}))
    before = path.read_bytes()
    monkeypatch.setattr(layout, "MAX_JSON_BYTES", 1000)
    assert not keep_conclusions(path, found, stamp(), of_it)
    assert path.read_bytes() == before


def test_what_was_put_in_its_place_meanwhile_gets_no_wrong_conclusions(tmp_path):
    path, other = copied(tmp_path), copied(tmp_path, "three-at-once")
    recording = Recording.open(path)
    found = assembling._concluded(recording, load())[0]
    wanted = repr(assemble(other, load())[0].runs)
    before, of = other.read_bytes(), recording.fingerprint
    other.rename(path)
    assert not keep_conclusions(path, found, stamp(), of)
    assert path.read_bytes() == before
    report, damage = assemble(path, load())
    assert repr(report.runs) == wanted
    assert not damage


@pytest.mark.parametrize("content", [b"", b"root:x:0:0", layout.FILE_MAGIC[:4]])
def test_what_is_no_recording_by_now_is_left_alone(tmp_path, content):
    path, place = copied(tmp_path), tmp_path / "place"
    recording = Recording.open(path)
    found, of = assembling._concluded(recording, load())[0], recording.fingerprint
    place.write_bytes(content)
    path.unlink()
    place.rename(path)
    assert not keep_conclusions(path, found, stamp(), of)
    assert path.read_bytes() == content
    path.unlink()
    assert not keep_conclusions(path, found, stamp(), of)
    assert not path.exists()
    os.mkfifo(path)
    assert not keep_conclusions(path, found, stamp(), of)


def test_a_symbolic_link_is_not_followed_not_even_to_the_same(tmp_path):
    path, place = copied(tmp_path), tmp_path / "place"
    recording = Recording.open(path)
    found, of = assembling._concluded(recording, load())[0], recording.fingerprint
    path.rename(place)
    before = place.read_bytes()
    path.symlink_to(place)
    assert not keep_conclusions(path, found, stamp(), of)
    assert place.read_bytes() == before
    assert keep_conclusions(place, found, stamp(), of)


def test_only_what_was_read_gets_conclusions_and_only_once(tmp_path):
    path = copied(tmp_path)
    recording = Recording.open(path)
    found, of = assembling._concluded(recording, load())[0], recording.fingerprint
    whole = path.read_bytes()
    own = frames(path)
    first = own[3]
    for other in (
        whole[: own[-1].start],
        whole[: first.start] + whole[first.end :],
        whole + whole[first.start : first.end],
        whole[: first.start] + b"\0" + whole[first.start :],
        *(whole + tail for tail in (b"x", b"\0", layout.CONCLUSIONS_START)),
    ):
        path.write_bytes(other)
        assert not keep_conclusions(path, found, stamp(), of)
        assert path.read_bytes() == other
    path.write_bytes(whole)
    assert keep_conclusions(path, found, "of other code", of)
    kept = path.read_bytes()
    for code in ("of other code", stamp()):
        assert not keep_conclusions(path, found, code, of)
        assert path.read_bytes() == kept


def test_who_holds_the_file_is_waited_for_by_nobody_and_may_have_changed_it(tmp_path, monkeypatch):
    path = copied(tmp_path)
    recording = Recording.open(path)
    found, of = assembling._concluded(recording, load())[0], recording.fingerprint
    before, other = path.read_bytes(), (FIXTURES / "three-at-once.observe").read_bytes()
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not keep_conclusions(path, found, stamp(), of)
    assert path.read_bytes() == before
    lock = fcntl.flock

    def late(fd, how):
        path.write_bytes(other)
        lock(fd, how)

    monkeypatch.setattr(writer.fcntl, "flock", late)
    assert not keep_conclusions(path, found, stamp(), of)
    assert path.read_bytes() == other


def test_what_is_interrupted_leaves_the_recording_as_it_was(tmp_path, monkeypatch):
    path = copied(tmp_path)
    before = path.read_bytes()
    write = os.pwrite

    def interrupted(fd, data, offset):
        write(fd, data[:100], offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(writer.os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conclude(path)
    assert path.read_bytes() == before


def test_it_stays_closed_to_others(tmp_path):
    path = copied(tmp_path)
    path.chmod(0o600)
    conclude(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("table", "elsewhere"),
    [
        (conclusions._RUN, {"departures", "phases", "configuration", "functions", "calls", "causes", "path", "events"}),
        (conclusions._SPAN, {"time"}),
        (conclusions._DEPARTURE, set()),
        (conclusions._FUNCTION_CALL, set()),
        (conclusions._CALLS, set()),
    ],
)
def test_no_field_is_forgotten(table, elsewhere):
    """What is not a column is kept otherwise (of a run), or only there with the scheduler's events."""
    names = [field.name for field in fields(table.row)]
    assert names[: len(table.fields)] == list(table.fields)
    assert set(names[len(table.fields) :]) == elsewhere


PAYLOADS: list[bytes] = []


def payloads() -> list[bytes]:
    if not PAYLOADS:
        found = assembling._concluded(Recording.open(FIXTURES / "functions.observe"), load())[0]
        PAYLOADS.extend(conclusions.encode_conclusions(found, "s", 7))
    return PAYLOADS


def places(value, path=()):
    """Every place in JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inside, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_nobody_concluded_is_no_conclusion(data):
    """A forged frame is not used, or has runs of the right types; it never fails."""
    number = data.draw(st.integers(0, 2))
    value = conclusions._unpacked(payloads()[number])
    place = data.draw(st.sampled_from(sorted(places(value), key=len)[:400]))
    new = data.draw(st.sampled_from([None, 5, -1, 10**30, "x", [], {}, [[]], {"x": 1}, [1, 2], 1.5, True]))
    changed = replaced(value, place, new)
    forged = [*payloads()[:number], conclusions._packed({"x": changed} if not isinstance(changed, dict) else changed)]
    forged += payloads()[number + 1 :]
    found = conclusions.decode_conclusions(forged, "s", 7, details=True)
    if found is not None:
        for run in found.runs:
            assert isinstance(run.operation, str)
            assert all(isinstance(span.syscalls, int) for span in run.phases)
            json.dumps(run.configuration)


def forged(*changes):
    """The payloads with something else in these places: (payload, place in its JSON, value)."""
    values = [conclusions._unpacked(payload) for payload in payloads()]
    for number, place, new in changes:
        values[number] = replaced(values[number], place, new)
    return [conclusions._packed(value) for value in values]


def is_read(given, *, details=True):
    return conclusions.decode_conclusions(given, "s", 7, details=details) is not None


def of_runs(count, **rows):
    """Payloads of so many runs with nothing in them; `rows`: how many of what else the first one has."""

    def columns(table, count):
        return {
            name: [0] * count if value in conclusions._OF_NUMBERS else [[DEFAULTS.get(value, "x")], [0] * count]
            for name, value in table.fields.items()
        }

    def several(tables):
        return {
            name: [[rows.get(name, 0)] + [0] * (count - 1), columns(table, rows.get(name, 0))]
            for name, table in tables.items()
        }

    first = conclusions._unpacked(payloads()[0]) | {"parts": 1}
    part = {"runs": columns(conclusions._RUN, count), **several(conclusions._SHOWN)}
    details = {"configurations": [{}] * rows.get("configurations", count), **several(conclusions._DETAILS)}
    return [conclusions._packed(payload) for payload in (first, part, details)]


DEFAULTS = {Evidence: "none", DepartureKind: "missing", Kind: int(Kind.MKDIR), conclusions._pieces: []}


def test_a_part_with_more_than_is_written_is_refused():
    """A few bytes inflate to millions of rows: what no writer writes takes no memory."""
    assert is_read(of_runs(conclusions._RUNS))
    assert not is_read(of_runs(conclusions._RUNS + 1))
    assert not is_read(of_runs(3, configurations=4))
    for name in (*conclusions._SHOWN, *conclusions._DETAILS):
        assert is_read(of_runs(2, **{name: conclusions._ROWS}))
        assert not is_read(of_runs(2, **{name: conclusions._ROWS + 1})), name
    distinct = ("phases", 1, "pieces", 0)
    _, *others = conclusions._unpacked(payloads()[1])["phases"][1]["pieces"][0]
    few, many = ([[0, 0]] * (conclusions._ROWS - sum(map(len, others)) + more) for more in (0, 1))
    assert is_read(forged((1, (*distinct, 0), few)))
    assert not is_read(forged((1, (*distinct, 0), many)))
    unused = ["x"] * (conclusions._ROWS + 1)
    assert not is_read(forged((1, ("phases", 1, "step", 0), unused)))


def test_what_is_of_others_is_not_even_inflated(monkeypatch):
    inflated, taken = [], []
    inflate = layout.inflate

    def counted(data, size_bytes):
        inflated.append(size_bytes)
        return inflate(data, size_bytes)

    def one_by_one(some):
        for payload in some:
            taken.append(payload)
            yield payload

    whole, longer = payloads(), [*payloads(), *payloads()[1:] * 9]
    none, two = forged((0, ("parts",), 0)), forged((0, ("parts",), 2))
    monkeypatch.setattr(layout, "inflate", counted)
    for some, stamp_of_it, of, inflations, takes in (
        (whole, "s", 7, 3, 3),
        (whole, "t", 7, 1, 1),
        (whole, "s", 8, 1, 1),
        (none, "s", 7, 1, 2),
        (longer, "s", 7, 3, 4),
        (two, "s", 7, 3, 3),
    ):
        inflated.clear()
        taken.clear()
        conclusions.decode_conclusions(one_by_one(some), stamp_of_it, of, details=True)
        assert (len(inflated), len(taken)) == (inflations, takes)
    assert not any(map(is_read, (none, longer, two)))
    inflated.clear()
    assert not is_read([layout.MAX_JSON_BYTES.to_bytes(4, "little") + whole[0][4:]])
    assert not is_read([(layout.MAX_JSON_BYTES + 1).to_bytes(4, "little") + whole[0][4:]])
    assert inflated == [layout.MAX_JSON_BYTES]


def test_of_conclusions_of_others_only_the_beginning_is_read(tmp_path, monkeypatch):
    path, _ = concluded(tmp_path)
    kept = [len(frame.payload) for frame in frames(path) if frame.kind == FRAME]
    read_bytes = []
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read_bytes.append(size) or read(fd, size, offset))
    recording = Recording.open(path)
    read_bytes.clear()
    assert recording.conclusions(stamp()) is not None
    everything = sum(read_bytes)
    read_bytes.clear()
    assert recording.conclusions("of other code") is None
    assert everything - sum(read_bytes) >= sum(kept[1:]) > 0


NUMBERS = [
    *((1, ("runs", name, 0)) for name in ("start_ns", "wall_time_ns", "duration_ns", "unattributed_ns")),
    *((1, ("phases", 1, name, 0)) for name in ("start_ns", "self_ns", "syscalls", "corrected_self_ns")),
    *((2, ("functions", 1, name, 0)) for name in ("pid", "duration_ns")),
    *((2, ("calls", 1, name, 0)) for name in ("count", "duration_ns")),
    (1, ("phases", 1, "pieces", 0, 0), lambda number: [[number, 1]]),
    (0, ("loss", "ring_buffer")),
    (0, ("left", "nothing_tells")),
]


@pytest.mark.parametrize(("payload", "place", "value"), [(*one, int)[:3] for one in NUMBERS])
def test_a_number_that_no_clock_shows_is_refused(payload, place, value):
    for number in (2**63 - 1, -(2**63)):
        assert is_read(forged((payload, place, value(number))))
    for number in (2**63, -(2**63) - 1, 10**400):
        assert not is_read(forged((payload, place, value(number))))


def assert_is_written_if_it_is_read(run, *, kept):
    found = Conclusions(runs=(run,), loss=Loss())
    if kept:
        assert is_read(list(conclusions.encode_conclusions(found, "s", 7)))
    else:
        with pytest.raises(RecordingError):
            list(conclusions.encode_conclusions(found, "s", 7))


def test_no_number_is_written_that_is_not_read():
    run, _ = assemble(FIXTURES / "functions.observe", load())[0].runs
    for duration_ns, kept in ((2**63 - 1, True), (2**63, False)):
        assert_is_written_if_it_is_read(replace(run, duration_ns=duration_ns), kept=kept)


def test_no_more_pieces_are_written_than_are_read():
    run, _ = assemble(FIXTURES / "functions.observe", load())[0].runs
    for more, kept in ((0, True), (1, False)):
        span = replace(run.phases[0], pieces=((1, 1),) * (conclusions._ROWS + more))
        assert_is_written_if_it_is_read(replace(run, phases=(span,)), kept=kept)


def test_columns_of_different_lengths_are_refused():
    values = [conclusions._unpacked(payload) for payload in payloads()]
    places = [(1, ("runs", name)) for name in conclusions._RUN.fields]
    for number, tables in ((1, conclusions._SHOWN), (2, conclusions._DETAILS)):
        for name, table in tables.items():
            places += [(number, (name, 1, column)) for column in table.fields if values[number][name][0] != [0, 0]]
    assert len(places) > 25
    for number, place in places:
        column = values[number]
        for key in place:
            column = column[key]
        shorter = [column[0], column[1][:-1]] if column and isinstance(column[0], list) else column[:-1]
        assert not is_read(forged((number, place, shorter))), place


def test_how_many_of_each_run_must_be_how_many_there_are():
    for number, name in ((1, "phases"), (2, "functions"), (2, "calls")):
        counts = conclusions._unpacked(payloads()[number])[name][0]
        assert len(counts) == 2
        moved = [counts[0] + 1, counts[1] - 1]
        assert is_read(forged((number, (name, 0), moved)))
        for wrong in (
            [counts[0], counts[1] + 1],
            [counts[0], counts[1] - 1],
            [counts[0] + counts[1]],
            [*counts, 0],
            [-1, sum(counts) + 1],
        ):
            assert not is_read(forged((number, (name, 0), wrong))), (name, wrong)
    assert not is_read(forged((2, ("configurations",), [{}])))


def kept_of_many(path: Path) -> tuple[Conclusions, int]:
    """What a recording of some 20 runs has kept, and in how many frames."""
    of, items = recorded("functions")
    with RecordingWriter(path, of) as recorder:
        for item in endless(items, 10):
            recorder.write(item)
    report = conclude(path)
    kept = Recording.open(path).conclusions(stamp())
    assert kept is not None
    assert kept.runs == tuple(assembling._concluded(Recording.open(path), load())[0].runs)
    assert len(kept.runs) == len(report.runs) == 20
    return kept, [frame.kind for frame in frames(path)].count(FRAME)


def test_a_part_that_is_too_large_is_halved(tmp_path, monkeypatch):
    path = tmp_path / "many.observe"
    whole, count = kept_of_many(path)
    assert count == 1 + 2
    sizes = [int.from_bytes(frame.payload[:4], "little") for frame in frames(path) if frame.kind == FRAME]
    for name, most, of in ((layout, "MAX_JSON_BYTES", max(sizes) // 2), (conclusions, "_ROWS", 20 * 40)):
        with monkeypatch.context() as context:
            context.setattr(name, most, of)
            halves, count = kept_of_many(path)
        assert halves == whole
        assert 1 + 2 * 2 <= count <= 1 + 2 * 4, most


@pytest.mark.parametrize("name", ["events", "causes", "path"])
def test_what_is_not_kept_is_refused(tmp_path, name):
    run = assemble(FIXTURES / "why.observe", load(), keep_events=True, why=True)[0].runs[-1]
    only = {other: () for other in ("events", "causes", "path") if other != name}
    run = replace(run, **only)
    assert getattr(run, name)
    found = Conclusions(runs=(run,), loss=Loss())
    with pytest.raises(ValueError, match="not kept"):
        list(conclusions.encode_conclusions(found, "s", 7))
    path = copied(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not kept"):
        keep_conclusions(path, found, stamp(), Recording.open(path).fingerprint)
    assert path.read_bytes() == before


def test_payloads_that_are_none_are_no_conclusion():
    whole = payloads()
    assert conclusions.decode_conclusions(whole, "s", 7, details=True) is not None
    for wrong in (whole[:1], whole[:-1], [*whole, whole[1]], whole[1:], [b"", *whole[1:]], [b"\xff" * 9, *whole[1:]]):
        assert conclusions.decode_conclusions(wrong, "s", 7, details=True) is None
    assert conclusions.decode_conclusions(whole, "t", 7, details=True) is None
    assert conclusions.decode_conclusions(whole, "s", 8, details=True) is None
