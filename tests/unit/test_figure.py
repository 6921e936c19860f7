# SPDX-License-Identifier: Apache-2.0
"""Pictures: what stands where, that no text hides another, and that the same report gives the same bytes."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from made import HOSTILE, MS, made_report, made_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.text import Text

from observe.__main__ import main
from observe.model import Departure, DepartureKind, Evidence, Loss
from observe.reports import PICTURES, figure
from observe.reports.figure_many import Many
from observe.reports.figure_sheet import PALETTE, TEXT_INCHES, fit, flow, letters, number_format, width_inches
from observe.reports.rows import UNATTRIBUTED, summarise, timeline
from observe.reports.words import losses

HOSTILE_RUN = made_run(
    3, container_name=HOSTILE * 3, image=HOSTILE, network=HOSTILE, error=HOSTILE * 20, outcome=HOSTILE
)
LOSSY = Loss(**{field.name: 1234567 for field in fields(Loss)})
DEPARTED = made_run(3, departures=(Departure(DepartureKind.REPEATED, "start.phase_0", HOSTILE),) * 40)
UNTIMED = made_run(4, duration_ns=0, unattributed_ns=0)
LONG = made_run(3, duration_ns=3_600_000 * MS)
SHORT = made_run(3, duration_ns=40)

REPORTS = {
    "none": made_report(),
    "one of 3": made_report(made_run(3)),
    "one of 30": made_report(made_run(30)),
    "four": made_report(*[made_run(5, seed) for seed in range(4)]),
    "many of 3": made_report(*[made_run(3, seed) for seed in range(20)]),
    "many of 30": made_report(*[made_run(30, seed) for seed in range(20)], made_run(3, 99, outcome="failed")),
    "many flat": made_report(*[made_run(30, seed, flat=True) for seed in range(250)]),
    "two operations": made_report(*[made_run(3, seed, operation=name) for seed in range(9) for name in ("start", "a")]),
    "all alike": made_report(*[made_run(1)] * 5),
    "hostile": made_report(HOSTILE_RUN, warnings=[HOSTILE * 30] * 3, loss=LOSSY),
    "hostile many": made_report(*[HOSTILE_RUN] * 5, loss=Loss(inotify_missed=3, unattributed_events=2)),
    "departed": made_report(DEPARTED),
    "untimed": made_report(UNTIMED),
    "untimed many": made_report(*[UNTIMED] * 5),
    "without phases": made_report(replace(made_run(1), phases=())),
    "unknown": made_report(
        made_run(3, container_id=None, container_name=None, image=None, network=None, wall_time_ns=0)
    ),
    "hour": made_report(LONG),
    "nanoseconds": made_report(SHORT),
    "far apart": made_report(*[LONG, SHORT] * 3),
}


def drawn(report):
    """The figure, laid out, with all that the pictures themselves are drawn with."""
    with figure._settings():
        fig = figure.draw(report)
        FigureCanvasAgg(fig)
        fig.draw_without_rendering()
    return fig


def texts(fig):
    """Every text that can be seen; matplotlib also keeps labels of ticks beyond the ends of an axis."""
    axis = [axis for axes in fig.axes for axis in (axes.xaxis, axes.yaxis)]
    beyond = {tick.label1 for one in axis for tick in {*one.get_major_ticks()} - {*one._update_ticks()}}
    return [text for text in fig.findobj(Text) if text.get_visible() and text.get_text() and text not in beyond]


def words(report):
    return [text.get_text() for text in texts(drawn(report))]


# Layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
def test_no_text_hides_another_or_leaves_the_sheet(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a letter that the font lacks is one
        fig = drawn(REPORTS[name])
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(fig)]
    assert len(boxes) > 2
    overlaps = [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]
    assert overlaps == []
    assert [text for text, box in boxes if not (box.x0 >= 0 <= box.y0 and box.x1 <= fig.bbox.x1 >= box.x1)] == []
    assert [text for text, box in boxes if box.y1 > fig.bbox.y1] == []


def test_the_check_for_overlaps_finds_one():
    fig = drawn(REPORTS["one of 3"])
    fig.text(0.5, 0.5, "a")
    fig.text(0.5, 0.5, "b")
    one, other = (text.get_window_extent() for text in texts(fig) if text.get_text() in "ab")
    assert one.overlaps(other)


def test_the_sheet_grows_with_its_rows():
    few, many = (drawn(REPORTS[f"one of {n}"]).get_figheight() for n in (3, 30))
    assert many - few == pytest.approx(27 * 0.27, abs=0.01)


def test_texts_are_cut_and_broken_where_the_room_ends():
    assert fit("short", 3) == "short"
    cut = fit("a rather long name" * 20, 2)
    assert cut.endswith("…")
    assert width_inches(cut) <= 2
    assert fit("anything", 0) == ""
    lines = flow([f"word{number}" for number in range(200)], ", ", most=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(width_inches(line, 8.0) <= TEXT_INCHES for line in lines)
    assert flow(["a", "b"], ", ") == ["a, b"]
    assert "".join(flow([f"word{number}" for number in range(50)], " ")).count("word") == 50


@pytest.mark.parametrize(("value", "label"), [(0, "0"), (0.00001, "0.00001"), (2.5, "2.5"), (1200, "1,200")])
def test_an_axis_is_labelled_without_exponents(value, label):
    assert number_format()(value) == label


# Text from outside -----------------------------------------------------------------------------------------


def test_names_are_shown_as_they_are_and_never_as_mathematics_or_markup():
    name = "$\\frac{a}{b}$_x_"
    shown = texts(drawn(made_report(made_run(3, container_name=name))))
    assert any(text.get_text().startswith(f"start {name}: ") for text in shown)
    assert not any(text.get_parse_math() or text.get_usetex() for text in shown)


@pytest.mark.parametrize("name", ["hostile", "hostile many", "departed"])
def test_what_does_not_print_is_an_escape(name):
    assert all(text.isprintable() for text in words(REPORTS[name]))
    assert letters("a\n\x1b你\ue123µ") == "a\\x0a\\x1b\\u4f60\\ue123µ"


def test_an_svg_is_well_formed_whatever_a_container_is_called():
    root = ET.fromstring(PICTURES["svg"](REPORTS["hostile"]))  # noqa: S314 - we have just written it
    assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"img", "script", "text", "a"})


# The same report, the same picture -------------------------------------------------------------------------


@pytest.mark.parametrize("form", PICTURES)
def test_two_renderings_are_equal_whatever_the_users_settings_are(form):
    first = PICTURES[form](REPORTS["all alike"])
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "text.parse_math": True, "savefig.bbox": "tight"}):
        assert PICTURES[form](REPORTS["all alike"]) == first
        assert mpl.rcParams["font.size"] == 30
    assert not re.search(rb"20\d\d-\d\d-\d\dT|matplotlib\.org|Matplotlib v", first)


def test_a_png_is_one_and_a_long_one_has_fewer_dots(monkeypatch):
    def size(data):
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        return struct.unpack(">II", data[16:24])

    width, height = size(PICTURES["png"](REPORTS["one of 3"]))
    monkeypatch.setattr(figure, "_MOST_DOTS", height / 2)
    assert size(PICTURES["png"](REPORTS["one of 3"])) == (
        pytest.approx(width / 2, abs=1),
        pytest.approx(height / 2, abs=1),
    )


@pytest.fixture
def recording():
    return str(Path(__file__).parents[1] / "fixtures" / "create-start.observe")


@pytest.mark.parametrize("form", PICTURES)
def test_a_picture_goes_to_a_file_or_into_a_pipe(form, recording, tmp_path, capfdbinary):
    out = tmp_path / "out"
    assert main(["report", recording, "-f", form, "-o", str(out)]) == 0
    assert capfdbinary.readouterr().out == b""
    assert main(["report", recording, "-f", form]) == 0
    assert capfdbinary.readouterr().out == out.read_bytes()
    assert out.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"<!doc")


def test_a_terminal_is_spared_the_bytes_of_a_png(recording, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["report", recording, "-f", "png"]) == 1
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err == "observe: png is no text for a terminal; name a file with -o, or send the output to one\n"


def test_a_user_without_a_home_hears_nothing_of_it(recording, tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "observe", "report", recording, "-f", "svg", "-o", str(tmp_path / "out.svg")],
        env={
            **os.environ,
            "MPLCONFIGDIR": str(tmp_path / "file"),
            "TMPDIR": str(tmp_path),
            "MPLBACKEND": "module://no",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_matplotlib_is_loaded_for_a_picture_only():
    code = "import sys, observe.reports, observe.commands.report; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


# One run ---------------------------------------------------------------------------------------------------


def test_the_title_tells_operation_container_duration_and_engine():
    shown = words(REPORTS["one of 3"])
    assert "start web: 200.0 ms" in shown
    assert "dockerd 20.10.24 · go1.19.8" in shown
    assert "time since the request (ms)" in shown


def test_each_row_has_its_label_time_and_share_and_is_indented_by_its_depth():
    run = made_run(4)
    # Reversed: the legend has words of the rows, and comes later.
    shown = {text.get_text(): text for text in reversed(texts(drawn(made_report(run))))}
    names = [row.name for row in timeline(run).rows]
    assert names == ["start", "phase_0", "part_1", "part_2", "phase_3", UNATTRIBUTED]
    places = [shown[name].get_position() for name in names]
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert places[0][0] < places[1][0] < places[2][0] == places[3][0]
    assert places[4][0] == places[5][0] == places[1][0]
    assert {"20.0 ms", "10.0%"} <= set(shown)


def bars(axes):
    """(row, start, length in ms, hatched, fill) of each bar."""
    return [
        (
            round(bar.get_y() + bar.get_height() / 2),
            bar.get_x(),
            bar.get_width(),
            bool(bar.get_hatch()),
            bar.get_facecolor(),
        )
        for bar in axes.patches
    ]


def test_bars_stand_where_the_phases_were_and_show_their_evidence():
    run = made_run(4)
    (axes,) = drawn(made_report(run)).axes
    found = bars(axes)
    for row, span in enumerate(run.phases):
        (bar,) = [bar for bar in found if bar[0] == row]
        assert bar[1] == pytest.approx((span.start_ns - run.start_ns) / MS)
        assert bar[2] == pytest.approx(span.duration_ns / MS)
        assert bar[3] == (span.evidence is Evidence.KERNEL)
    unattributed = [bar for bar in found if bar[0] == len(run.phases)]
    assert sum(bar[2] for bar in unattributed) == pytest.approx(run.unattributed_ns / MS)
    colours = {row: colour for row, _, _, _, colour in found}
    assert colours[2] != colours[4] != colours[5]


def test_what_is_at_the_floor_is_hollow_and_what_has_pieces_has_as_many_bars():
    run = made_run(2, flat=True)
    whole, one, two = run.phases
    at_ns = run.start_ns
    one = replace(one, pieces=((at_ns, 2 * MS), (at_ns + 5 * MS, MS)))
    two = replace(two, duration_ns=1000)
    report = made_report(replace(run, phases=(whole, one, two)))
    (axes,) = drawn(report).axes
    assert [(bar[1], bar[2]) for bar in bars(axes) if bar[0] == 1] == [(0, 2), (5, 1)]
    assert [bar[4] for bar in bars(axes) if bar[0] == 2] == [(1, 1, 1, 1)]
    assert any(text.startswith("at floor") for text in words(report))


def test_the_legend_has_what_occurs_and_nothing_else():
    def legend(report):
        return {text.partition(":")[0] for text in words(report)} & {"function", "kernel", "at floor"}

    functions = [replace(span, evidence=Evidence.FUNCTION) for span in made_run(3).phases]
    assert legend(made_report(made_run(3))) == {"function", "kernel"}
    assert legend(made_report(made_run(3, phases=tuple(functions)))) == {"function"}
    assert legend(made_report()) == set()


def test_a_failure_shows_its_error_and_a_log_without_times_says_so():
    assert "error: no such file" in words(made_report(made_run(3, outcome="failed", error="no such file")))
    shown = words(REPORTS["untimed"])
    assert "from the first to the last event: no times" in shown
    assert not any(re.search(r"\d (ms|ns|µs)$", text) for text in shown)


# Many runs -------------------------------------------------------------------------------------------------


def panel(*runs):
    (summary,) = summarise(runs)
    return Many(summary, "")


@pytest.mark.parametrize("phases", [3, 30])
def test_a_stack_is_as_high_as_its_run_took(phases):
    runs = [made_run(phases, seed, flat=True) for seed in range(12)]
    columns = panel(*runs)._stack
    np.testing.assert_allclose(sum(columns.values()), [run.duration_ns / MS for run in runs])
    assert ("other phases" in columns) == (phases > len(PALETTE))
    assert list(columns)[-1] == UNATTRIBUTED
    # The legend and the layers are of the same order.
    shown = words(made_report(*runs))
    assert all(name.rpartition(".")[2] in shown for name in columns)


def test_the_largest_phases_have_the_colours():
    columns = panel(*[made_run(30, seed, flat=True) for seed in range(12)])._stack
    own = [values.sum() for name, values in columns.items() if name.startswith("start.")]
    assert len(own) == len(PALETTE)
    assert sum(own) > columns["other phases"].sum() / 24 * 6


def test_a_bar_a_run_in_time_order_and_only_of_those_that_went_well():
    runs = [made_run(3, seed, flat=True) for seed in range(7)]
    failed = made_run(3, 9, outcome="failed", duration_ns=9000 * MS)
    stacked, _ = drawn(made_report(*runs, failed)).axes
    tops = {}
    for bar in stacked.patches:
        x = round(bar.get_x() + bar.get_width() / 2)
        tops[x] = max(tops.get(x, 0), bar.get_y() + bar.get_height())
    assert tops == {index + 1: pytest.approx(run.duration_ns / MS) for index, run in enumerate(runs)}
    assert any("1 failed · shown are those that went well" in text for text in words(made_report(*runs, failed)))


def test_thousands_of_runs_become_means_of_neighbours():
    runs = [made_run(1, seed) for seed in range(250)] + [made_run(1, 999, duration_ns=1, unattributed_ns=0)]
    stacked, _ = drawn(made_report(*runs)).axes
    layers = [layer for layer in stacked.collections if isinstance(layer, PolyCollection)]
    assert len(layers) == 2
    assert not stacked.patches
    top = layers[-1].get_paths()[0].vertices
    assert top[:, 0].min() == 0.5
    assert top[:, 0].max() == 251.5
    assert top[:, 1].max() == pytest.approx(200)
    assert "All runs, in time order: a column is the mean of 2" in words(made_report(*runs))


def test_distributions_show_quartiles_and_the_median():
    runs = [made_run(1, seed, duration_ns=(100 + seed) * MS) for seed in range(21)]
    runs = [replace(run, phases=(replace(run.phases[0], duration_ns=run.duration_ns),)) for run in runs]
    _, spread = drawn(made_report(*runs)).axes
    (box,) = [bar for bar in bars(spread) if bar[0] == 0]
    assert (box[1], box[2]) == (pytest.approx(105), pytest.approx(10))
    medians = {line.get_xdata()[0] for line in spread.lines if line.get_ydata()[0] != line.get_ydata()[1]}
    assert 110 in medians
    assert [len(dots.get_offsets()) for dots in spread.collections] == [21, 21]


def test_a_distribution_is_as_good_as_its_weakest_evidence():
    def by(evidence):
        return replace(run, phases=tuple(replace(span, evidence=evidence) for span in run.phases))

    run = made_run(1)
    for runs, hatched in (
        ([by(Evidence.FUNCTION)] * 5, False),
        ([by(Evidence.KERNEL)] * 5, True),
        ([*[by(Evidence.FUNCTION)] * 4, by(Evidence.KERNEL)], True),
    ):
        spread = drawn(made_report(*runs)).axes[1]
        assert [bar[3] for bar in bars(spread)] == [hatched, hatched, False]


def test_the_axis_is_logarithmic_only_when_it_must_be_and_nothing_falls_off():
    alike = drawn(REPORTS["all alike"]).axes[1]
    assert (alike.get_xscale(), alike.get_xlim()[0]) == ("linear", 0)
    zero = made_run(3, unattributed_ns=0)
    apart = drawn(made_report(*[*[made_run(30, seed) for seed in range(9)], zero])).axes[1]
    assert apart.get_xscale() == "log"
    low, high = apart.get_xlim()
    places = [x for line in apart.lines for x in line.get_xdata()]
    assert low <= min(places) <= max(places) <= high
    assert len([text for text in apart.get_xticklabels() if text.get_text()]) >= 2


# What must not be overlooked -------------------------------------------------------------------------------


def test_an_empty_picture_says_so_and_what_to_do():
    shown = words(REPORTS["none"])
    assert "No docker create and no docker start was recorded." in shown
    assert any("observe record" in text for text in shown)


@pytest.mark.parametrize("name", [field.name for field in fields(Loss)])
def test_no_loss_goes_undrawn(name):
    loss = Loss(**{name: 41})
    (line,) = [text for text in words(made_report(made_run(3), loss=loss)) if "41" in text]
    assert line.startswith("data was lost: " if loss.data_was_lost else "nothing lost")
    assert losses(loss) in line


def test_warnings_and_departures_are_told():
    assert "warning: truncated" in words(made_report(made_run(3), warnings=["truncated"]))
    assert any(text.startswith("departures: ") for text in words(REPORTS["departed"]))
    assert "5 of 5 runs left the documented order" in words(made_report(*[DEPARTED] * 5))
