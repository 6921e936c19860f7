# SPDX-License-Identifier: Apache-2.0
"""Records of the ring as events; sources as bcc gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe import resources
from observe.errors import ObserveError
from observe.model import EVENT_DTYPE, Event, Kind, Mark
from observe.probes import compiler, events
from observe.probes.layout import RECORD_DTYPE, decode

#: What a ring that has gone round holds behind the strings.
OLD = b"old memory " * 50


def record(**values: object) -> np.ndarray:
    """A record; strings with their lengths, and with old memory behind them."""
    made = np.zeros(1, RECORD_DTYPE)
    made["kind"] = Kind.MKDIR
    for name, value in values.items():
        if name in ("path", "path2", "detail"):
            assert isinstance(value, bytes)
            width = RECORD_DTYPE[name].itemsize
            made[name] = np.frombuffer((value + OLD)[:width].ljust(width, b"o"), f"S{width}")
            made[f"{name}_bytes"] = len(value)
        else:
            made[name] = value
    return made


def event(**values: object) -> Event:
    (only,) = decode(record(**values))
    return only


def test_every_column() -> None:
    assert event(
        time_ns=2**63, duration_ns=2, goroutine=2**64 - 1, ret=-(2**63), flags=2**64 - 1, pid=2**32 - 1, tid=7, fd=-100,
        kind=Kind.SCHED_PROCESS_EXEC, marks=Mark.ENTRYPOINT | Mark.TRUNCATED, comm=b"runc:[2:INIT]", path=b"/a",
        path2=b"/bb", detail=b"ccc",
    ) == Event(
        time_ns=2**63, duration_ns=2, goroutine=2**64 - 1, ret=-(2**63), flags=2**64 - 1, pid=2**32 - 1, tid=7, fd=-100,
        kind=Kind.SCHED_PROCESS_EXEC, marks=Mark.ENTRYPOINT | Mark.TRUNCATED, comm="runc:[2:INIT]", path="/a",
        path2="/bb", detail="ccc",
    )  # fmt: skip


def test_old_memory_is_cut_off() -> None:
    assert (event(path=b"").path, event(path=b"/a").path, event(detail=b"").detail) == ("", "/a", "")


@pytest.mark.parametrize("name", ["path", "path2", "detail"])
def test_strings_as_long_as_the_record(name: str) -> None:
    width = RECORD_DTYPE[name].itemsize
    for length in (width - 1, width):
        assert getattr(event(**{name: b"x" * length}), name) == "x" * length


def test_arguments_keep_their_zeros() -> None:
    assert event(detail=b"sh\0\0-c\0").detail == "sh\0\0-c"


def test_bytes_that_are_no_text() -> None:
    assert event(path=b"caf\xe9 \xff", comm=b"\xe2\x82").path == "caf\\xe9 \\xff"
    assert event(comm=b"\xe2\x82").comm == "\\xe2\\x82"
    assert event(path="größe/大".encode()).path == "größe/大"


def test_no_records() -> None:
    batch = decode(np.empty(0, RECORD_DTYPE))
    assert len(batch) == 0
    assert batch.rows.dtype == EVENT_DTYPE
    assert batch.strings == ("",)


def test_a_text_is_kept_once() -> None:
    batch = decode(np.concatenate([record(path=b"/a", path2=b"/b", comm=b"/a", detail=b"/b") for _ in range(9)]))
    assert sorted(batch.strings) == ["", "/a", "/b"]
    assert batch.strings[0] == ""


@given(
    st.lists(
        st.tuples(st.binary(max_size=256), st.binary(max_size=256), st.binary(max_size=512), st.binary(max_size=16)),
        max_size=6,
    )
)
def test_many_records_are_each_as_if_alone(texts: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
    made = [record(path=path, path2=path2, detail=detail, comm=comm) for path, path2, detail, comm in texts]
    batch = decode(np.concatenate([np.empty(0, RECORD_DTYPE), *made]))
    for seen, (path, path2, detail, comm) in zip(batch, texts, strict=True):
        expected = [text.rstrip(b"\0").decode(errors="backslashreplace") for text in (path, path2, detail, comm)]
        assert [seen.path, seen.path2, seen.detail, seen.comm] == expected


def test_own_includes_are_put_in_place_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text('#include <linux/types.h>\n#include "one.h"\nint x;\n', encoding="utf-8")
    (tmp_path / "one.h").write_text('int a;\n#include "two.h"\nint b;\n', encoding="utf-8")
    (tmp_path / "two.h").write_text("int c;\n", encoding="utf-8")
    assert compiler.expand(tmp_path / "main.c").splitlines() == [
        '#line 1 "main.c"',
        "#include <linux/types.h>",
        '#line 1 "one.h"',
        "int a;",
        '#line 1 "two.h"',
        "int c;",
        '#line 3 "one.h"',
        "int b;",
        '#line 3 "main.c"',
        "int x;",
    ]


def test_nothing_of_ours_is_left_to_include() -> None:
    text = compiler.expand(resources.folder("bpf") / events.SOURCE)
    assert '#include "' not in text
    assert "BPF_RINGBUF_OUTPUT(records, 1)" in text


def test_a_folder_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "observe")
    with pytest.raises(ObserveError, match="lacks its folder bpf: install observe again"):
        resources.folder("bpf")
    (tmp_path / "bpf").mkdir()
    assert resources.folder("bpf") == tmp_path / "bpf"
    (tmp_path / "observe" / "_data" / "bpf").mkdir(parents=True)
    assert resources.folder("bpf") == tmp_path / "observe" / "_data" / "bpf"
