# SPDX-License-Identifier: Apache-2.0
"""The pages as files: what they say, that nothing in them runs or loads, how large they are."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import fields, replace
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from made import DOCKERD, HOSTILE, INIT, MS, SHIM, explained, made_events, made_report, made_run
from repeating import endless
from streams import recorded

from observe.__main__ import main
from observe.model import Departure, DepartureKind, Event, EventBatch, Evidence, Header, Kind, Loss, Mark
from observe.phases import load
from observe.recording import Recording, RecordingWriter
from observe.recording import format as layout
from observe.reports import Page, Report, charts, compare_html, html_, html_page, revisit
from observe.reports.assemble import assemble
from observe.reports.breakdown import VALUES, breakdowns
from observe.reports.comparison import Arm, compare
from observe.reports.conclusions import longest_calls, where_the_time_went
from observe.reports.figure_sheet import PALETTE
from observe.reports.process_tree import processes_of
from observe.reports.rows import SLOWEST, UNATTRIBUTED, summarise, timeline
from observe.reports.timeline_data import HUES, LANES, timeline_data

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDER = Path(html_page.__file__).parent / "page"
EVERY_LOSS = Loss(**{field.name: 1234567 for field in fields(Loss)})


def with_events(run, count=60, **options):
    return replace(run, events=made_events(run, count, **options))


HOSTILE_RUN = with_events(
    made_run(3, container_name=HOSTILE, image=HOSTILE, network=HOSTILE, error=HOSTILE, outcome=HOSTILE),
    path=f"/{HOSTILE}\udcff</script><script>alert(2)</script><!--",
)
UNTIMED = made_run(4, duration_ns=0, unattributed_ns=0)
REPORTS = {
    "none": made_report(),
    "none at all": Report({}, {}, Loss(), ()),
    "one": made_report(with_events(made_run(3))),
    "one phase": made_report(made_run(1)),
    "thirty phases": made_report(with_events(made_run(30))),
    "without phases": made_report(replace(made_run(1), phases=made_run(1).phases[:1])),
    "four": made_report(*[made_run(5, seed) for seed in range(4)]),
    "many": made_report(*[with_events(made_run(5, seed)) for seed in range(20)], made_run(3, 99, outcome="failed")),
    "all failed": made_report(*[made_run(3, seed, outcome="failed", error="no such image") for seed in range(30)]),
    "unfinished": made_report(made_run(3, outcome="unfinished", error="no answer was seen")),
    "two operations": made_report(*[made_run(3, seed, operation=name) for seed in range(9) for name in ("start", "a")]),
    "lossy": made_report(made_run(3), loss=EVERY_LOSS, warnings=["first", "second"]),
    "unknown": made_report(
        made_run(3, container_id=None, container_name=None, image=None, network=None, wall_time_ns=0)
    ),
    "unknown many": made_report(
        *[made_run(3, seed, container_name=None, image=None, wall_time_ns=0) for seed in range(9)]
    ),
    "untimed": made_report(UNTIMED),
    "untimed many": made_report(*[UNTIMED] * 6),
    "hostile": made_report(HOSTILE_RUN, loss=EVERY_LOSS, warnings=[HOSTILE]),
    "hostile many": made_report(*[HOSTILE_RUN] * 6, warnings=[HOSTILE]),
    "explained": made_report(explained(with_events(made_run(3)))),
    "explained hostile": made_report(explained(HOSTILE_RUN, HOSTILE, HOSTILE), explained(made_run(1), "", "")),
    "explained many": made_report(*[explained(with_events(made_run(5, seed)), HOSTILE) for seed in range(9)]),
    "departed": made_report(made_run(3, departures=(Departure(DepartureKind.REPEATED, "start.phase_0", HOSTILE),) * 9)),
    "long": made_report(made_run(3, duration_ns=3_600_000 * MS)),
    "short": made_report(made_run(3, duration_ns=40)),
}
PAGES = {
    **{name: html_.render(report) for name, report in REPORTS.items()},
    **{
        f"compared {name}": compare_html.render(compare(Arm(f"base {HOSTILE}", report), Arm("new", REPORTS["many"])))
        for name, report in REPORTS.items()
    },
}


class Elements(HTMLParser):
    """Every element with its attributes, the text outside scripts, styles and data, and what they contain."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.words, self.raw, self.open = [], [], [], [], []
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attrs)
        if tag in ("script", "style"):
            self.raw.append((dict(attrs), []))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["script"], ["style"]):
            self.raw[-1][1].append(data)
        else:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def data(self):
        """The data blocks by id."""
        return {attrs["id"]: json.loads("".join(text)) for attrs, text in self.raw if "id" in attrs}


def words(report):
    return Elements(html_.render(report)).text


# Every page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_well_formed_and_all_its_letters_print(name):
    elements = Elements(PAGES[name])
    assert elements.open == []
    assert PAGES[name].endswith(b"</html>\n")
    assert all(letter.isprintable() for letter in PAGES[name].decode().replace("\n", ""))


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_and_nothing_runs_but_our_own_scripts(name):
    elements = Elements(PAGES[name])
    assert {*elements.tags}.isdisjoint({"img", "iframe", "object", "embed", "form", "base", "audio", "video"})
    for tag, attribute, value in elements.attributes:
        assert not attribute.startswith("on")
        assert attribute not in ("style", "src", "srcset", "srcdoc", "action")
        assert attribute != "href" or value == "data:," or (tag, value[0]) == ("a", "#")
    programs = [attrs for attrs, _ in elements.raw if attrs.get("type") != "application/json" and attrs.get("id")]
    assert programs == []


@pytest.mark.parametrize("name", ["one", "many", "compared many"])
def test_the_policy_allows_exactly_the_scripts_and_styles_inside(name):
    elements = Elements(PAGES[name])
    (policy,) = [
        value for tag, attribute, value in elements.attributes if tag == "meta" and "default-src" in (value or "")
    ]
    hashes = [
        f"'sha256-{b64encode(sha256(''.join(text).encode()).digest()).decode()}'"
        for attrs, text in elements.raw
        if attrs.get("type") != "application/json"
    ]
    assert len(hashes) == 2
    assert policy == (
        f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_ids_are_unique_and_links_lead_somewhere():
    for page in (PAGES["many"], PAGES["all failed"], PAGES["compared many"]):
        elements = Elements(page)
        ids = [value for _, attribute, value in elements.attributes if attribute == "id"]
        assert len({*ids}) == len(ids)
        targets = [value[1:] for tag, attribute, value in elements.attributes if (tag, attribute) == ("a", "href")]
        assert {*targets} <= {*ids}
        sources = [value for _, attribute, value in elements.attributes if attribute == "data-source"]
        assert sorted(sources) == sorted(elements.data)


def test_data_blocks_hold_hostile_text_and_cannot_be_ended_by_it():
    block = str(html_page.embedded({"text": "</script><!--&\u2028é"}))
    assert block.isascii()
    assert not {*"<>&"} & {*block}
    assert json.loads(block) == {"text": "</script><!--&\u2028é"}
    (data,) = Elements(PAGES["hostile"]).data.values()
    assert any("<img src=x onerror=alert(1)>" in text for text in data["strings"])
    assert all(text.isprintable() for text in data["strings"])


@pytest.mark.parametrize("report", ["one", "many"])
def test_the_same_report_gives_the_same_bytes(report):
    assert html_.render(REPORTS[report]) == html_.render(REPORTS[report])


def test_the_colours_are_those_of_the_pictures():
    style = (FOLDER / "timeline.css").read_text()
    assert tuple(re.findall(r"--phase-\d: light-dark\((#\w+),", style)) == PALETTE
    assert len(PALETTE) == HUES


@pytest.mark.parametrize("name", ["timeline.js", "page.js"])
def test_scripts_write_text_never_markup(name):
    source = (FOLDER / name).read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttp", source
    )
    assert "</script" not in source


# One run ---------------------------------------------------------------------------------------------------


def test_conclusions_come_first_then_the_timeline_then_all_phases():
    text = words(REPORTS["thirty phases"])
    places = [
        text.index(heading) for heading in ("Where the time went", "Timeline", "Longest system calls", "All phases")
    ]
    assert places == sorted(places)
    largest = max(timeline(REPORTS["thirty phases"].runs[0]).rows[1:], key=lambda row: row.self_ns or 0)
    assert f"{largest.name} took {Page().duration(largest.self_ns)} of its own" in text


def test_own_times_sum_to_the_whole_and_the_largest_come_first():
    line = timeline(made_run(30))
    went = where_the_time_went(line)
    assert went is not None
    assert sum(own.self_ns for own in went.largest) + went.rest_ns == line.run.duration_ns
    assert sum(own.share for own in went.largest) + went.rest_share == pytest.approx(1)
    times = [own.self_ns for own in went.largest]
    assert times == sorted(times, reverse=True)
    assert len(times) + went.rest == sum(bool(row.self_ns) for row in line.rows[1:])
    assert where_the_time_went(timeline(UNTIMED)) is None


def test_the_longest_system_calls_are_named_with_their_process_and_phase():
    run = with_events(made_run(3), 50)
    slow = Event(run.start_ns + 5, Kind.FSYNC, 7 * MS, pid=INIT, tid=INIT, comm="runc", path="/slow")
    run = replace(run, events=tuple(sorted([*run.events, ("start.phase_0", slow)], key=lambda one: one[1].time_ns)))
    assert longest_calls(run)[0] == ("start.phase_0", slow)
    assert "fsync 7.0 ms /slow runc init phase_0" in words(made_report(run))


def test_causes_say_how_long_and_what_helps_and_every_phase_what_it_was_spent_on():
    report = REPORTS["explained"]
    text = words(report)
    assert text.index("Why it took that long") < text.index("Critical path") < text.index("Timeline")
    assert "runc create: write waited" in text
    assert "runc create[5/51] asleep in write cgroup.procs (rcu_barrier), in start.phase_0" in text
    assert "What is known to help: do less. Source: moby#1. Risk: none." in text
    assert "And 2 smaller ones" in text
    shares = text[text.index("What each phase was spent on") :]
    assert "disk 25.0%, rcu 25.0%" in shares
    assert "Why it took that long" not in words(REPORTS["one"])


def test_losses_and_warnings_stand_before_everything_else():
    text = words(REPORTS["lossy"])
    assert text.index("Data was lost") < text.index("first") < text.index("second") < text.index("Where the time went")
    assert "1234567 events lost because the ring buffer was full" in text
    quiet = words(made_report(made_run(3), loss=Loss(inotify_missed=2)))
    assert "Nothing lost (inotify missed 2 file operations that the system calls show)" in quiet
    assert "Data was lost" not in quiet


def test_engine_host_outcome_and_error_are_named():
    text = words(made_report(made_run(3, outcome="failed", error="no such image")))
    for fact in (
        "dockerd 20.10.24",
        "go1.19.8",
        "overlay2",
        "node1",
        "Linux 6.1.0",
        "failed",
        "no such image",
        "bridge",
    ):
        assert fact in text


def test_special_reports_say_what_they_are():
    assert "No docker create and no docker start was recorded." in words(REPORTS["none"])
    assert "an order, no times" in words(REPORTS["untimed"])
    assert "no answer was seen" in words(REPORTS["unfinished"])
    assert "its events are not in this file" in words(REPORTS["one phase"])
    assert "lies in no documented phase" in words(REPORTS["without phases"])
    assert "repeated: " in words(REPORTS["departed"])


def test_a_run_of_500_events_is_far_below_2_mb():
    small, large = (html_.render(made_report(with_events(made_run(30), count))) for count in (0, 500))
    assert len(large) < 2_000_000 / 8
    assert (len(large) - len(small)) / 500 < 60


# The data of a timeline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, report in REPORTS.items() if report.runs])
def test_columns_are_equally_long_and_their_indices_lead_somewhere(name):
    for run in REPORTS[name].runs:
        data = timeline_data(run, {})
        for part in ("phases", "processes", "events", "kinds"):
            assert len({len(column) for column in data[part].values()}) == 1
        ends = {"kind": "kinds.label", "process": "processes.pid", "phase": "phases.id"}
        for column, target in ends.items():
            part, of = target.split(".")
            assert all(0 <= index < len(data[part][of]) for index in data["events"][column])
        for column in ("path", "other", "detail"):
            assert all(0 <= index < len(data["strings"]) for index in data["events"][column])
        assert data["events"]["time_ns"] == sorted(data["events"]["time_ns"])
        json.dumps(data)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_phases_lie_below_their_parents_and_hide_nobody(count):
    phases = timeline_data(made_run(count), {})["phases"]
    for row, parent in zip(phases["row"], phases["parent"], strict=True):
        assert row == 0 if parent < 0 else row > phases["row"][parent]
    for level in {*phases["row"]}:
        pieces = sorted(
            tuple(piece)
            for row, own in zip(phases["row"], phases["pieces"], strict=True)
            if row == level
            for piece in own
        )
        assert all(start + length <= later for (start, length), (later, _) in pairwise(pieces))


def test_phases_that_overlap_get_rows_of_their_own():
    run = made_run(2, flat=True)
    first, second = run.phases[1:]
    run = replace(run, phases=(run.phases[0], first, replace(second, start_ns=first.start_ns + 1)))
    assert timeline_data(run, {})["phases"]["row"] == [0, 1, 2]


def test_a_phase_in_pieces_is_drawn_in_them_and_functions_are_named_where_they_bound_it():
    run = made_run(2, flat=True)
    pieces = ((run.start_ns, 10), (run.start_ns + 50, 20))
    spans = [replace(span, pieces=pieces, evidence=Evidence.FUNCTION) for span in run.phases]
    data = timeline_data(replace(run, phases=tuple(spans)), {span.id: ("main.f",) for span in spans})
    assert data["phases"]["pieces"][1] == [(0, 10), (50, 20)]
    assert data["phases"]["functions"][1] == ["main.f"]
    kernel = [replace(span, evidence=Evidence.KERNEL) for span in spans]
    assert (
        timeline_data(replace(run, phases=tuple(kernel)), {kernel[1].id: ("main.f",)})["phases"]["functions"][1] == []
    )


def test_a_phase_has_the_same_colour_whether_its_neighbours_were_seen_or_not():
    report, _ = assemble(FIXTURES / "functions.observe", load())
    by_functions = report.runs[1]
    few = replace(
        by_functions,
        phases=tuple(
            replace(span, start_ns=None, duration_ns=None, self_ns=None) if number % 2 and number > 1 else span
            for number, span in enumerate(by_functions.phases)
        ),
    )
    hues = [
        dict(zip(d["phases"]["id"], d["phases"]["hue"], strict=True))
        for d in (timeline_data(by_functions, {}), timeline_data(few, {}))
    ]
    assert 0 < len(hues[1]) < len(hues[0])
    assert hues[1].items() <= hues[0].items()


def test_events_keep_their_times_and_words():
    run = made_run(1)
    events = (
        Event(
            run.start_ns + 7,
            Kind.MOUNT,
            5,
            pid=1,
            tid=1,
            comm="dockerd",
            path="/m",
            path2="src",
            detail="overlay",
            ret=-2,
            flags=4096,
        ),
        Event(run.start_ns + 9, Kind.INOTIFY, flags=0x4000_0100, path="/new"),
        Event(run.start_ns + 3, Kind.FUNCTION_ENTRY, pid=1, tid=1),
    )
    data = timeline_data(replace(run, events=tuple(("start.phase_0", event) for event in events)), {})
    assert data["events"]["time_ns"] == [7, 9]
    assert data["events"]["duration_ns"] == [5, 0]
    assert [data["kinds"]["label"][kind] for kind in data["events"]["kind"]] == ["mount", "create, isdir"]
    assert [data["kinds"]["shape"][kind] for kind in data["events"]["kind"]] == ["call", "file"]
    assert [data["strings"][data["events"][column][0]] for column in ("path", "other", "detail")] == [
        "/m",
        "src",
        "overlay",
    ]
    assert data["events"]["flags"] == [4096, 0]
    assert data["errors"] == {-2: "ENOENT"}
    assert [data["phases"]["id"][phase] for phase in data["events"]["phase"]] == ["start.phase_0"] * 2
    assert data["processes"]["pid"] == [1, 0]


def test_what_is_told_after_the_answer_is_inside_the_extent():
    run = made_run(1)
    late = Event(run.start_ns + run.duration_ns + 10 * MS, Kind.INOTIFY, flags=2, path="/late")
    data = timeline_data(replace(run, events=(("start", late),)), {})
    assert data["extent_ns"] == run.duration_ns + 10 * MS
    assert data["duration_ns"] == run.duration_ns


# Processes -------------------------------------------------------------------------------------------------


def test_processes_stand_below_those_that_started_them():
    run = with_events(made_run(3), 30)
    assert [(one.pid, one.depth, one.name) for one in processes_of(run)] == [
        (DOCKERD, 0, "dockerd"),
        (SHIM, 1, "shim"),
        (INIT, 2, "runc init"),
    ]
    dockerd, shim, init = processes_of(run)
    assert dockerd.start_ns == 0 < shim.start_ns or shim.start_ns == 0
    assert shim.start_ns <= init.start_ns
    assert {one.end_ns for one in (dockerd, shim, init)} == {run.duration_ns}


def test_a_process_ends_with_its_exit_or_its_entrypoint():
    run = made_run(1)

    def at(offset_ns, kind, pid, **columns):
        return ("start", Event(run.start_ns + offset_ns, kind, pid=pid, tid=columns.pop("tid", pid), **columns))

    events = (
        at(10, Kind.SCHED_PROCESS_FORK, 1, ret=2, comm="runc"),
        at(11, Kind.SETNS, 2, comm="runc:[2:INIT]"),
        at(12, Kind.SCHED_PROCESS_EXIT, 2, tid=9, comm="thread"),
        at(20, Kind.SCHED_PROCESS_EXEC, 2, comm="sh", path="/bin/sh", detail="sh\0-c\0x", marks=Mark.ENTRYPOINT),
        at(30, Kind.SCHED_PROCESS_FORK, 1, ret=3, comm="runc"),
        at(40, Kind.SCHED_PROCESS_EXIT, 3, comm="runc"),
    )
    parent, container, child = processes_of(replace(run, events=events))
    assert (parent.start_ns, parent.end_ns, parent.ended) == (0, run.duration_ns, False)
    assert (container.name, container.end_ns, container.ended) == ("runc:[2:INIT] → sh", 20, False)
    assert (child.name, child.start_ns, child.end_ns, child.ended) == ("runc", 30, 40, True)


def test_thousands_of_processes_share_a_lane_beyond_what_can_be_shown():
    run = made_run(1)
    events = tuple(
        ("start", Event(run.start_ns + pid, Kind.MKDIR, pid=pid, tid=pid, comm="p")) for pid in range(1, 1001)
    )
    data = timeline_data(replace(run, events=events), {})
    assert len(data["processes"]["pid"]) == LANES + 1
    assert data["processes"]["name"][-1] == f"{1000 - LANES} more processes"
    assert data["events"]["process"].count(LANES) == 1000 - LANES


# Many runs -------------------------------------------------------------------------------------------------


def test_many_runs_show_percentiles_and_the_slowest_with_their_timelines():
    report = REPORTS["many"]
    elements = Elements(html_.render(report))
    (summary,) = summarise(report.runs)
    whole = summary.rows[0]
    page = Page()
    numbers = " ".join(page.duration(value) for value in (whole.p50_ns, whole.p90_ns, whole.p99_ns, whole.max_ns))
    assert f"start {whole.n} {numbers} 100%" in elements.text
    assert len(elements.data) == SLOWEST + len(summary.failures)
    embedded = {data["duration_ns"] for data in elements.data.values()}
    assert {slow.run.duration_ns for slow in summary.slowest} <= embedded
    assert elements.tags.count("details") == len(elements.data)


def test_only_some_of_the_failures_bring_their_timelines():
    elements = Elements(PAGES["all failed"])
    assert len(elements.data) <= 2 * SLOWEST
    assert "and 10 more" in elements.text


def test_a_file_of_many_runs_has_no_more_events_than_it_has_room_for(monkeypatch):
    monkeypatch.setattr(html_, "MOST_EVENTS", 100)
    elements = Elements(html_.render(made_report(*[with_events(made_run(3, seed), 60) for seed in range(9)])))
    assert len(elements.data) == 1
    assert elements.text.count("Not in this file, which would become too large.") == SLOWEST - 1


def test_breakdowns_count_every_run_once_and_failures_by_outcome_only():
    runs = [made_run(3, seed, network=f"net-{seed % 2}", image=f"image-{seed}") for seed in range(20)]
    runs.append(made_run(3, 50, outcome="failed", network=None))
    report = made_report(*runs, made_run(3, 51, configuration={"Driver": "btrfs"}))
    (summary,) = summarise(report.runs)
    found = {one.what: one for one in breakdowns(summary, report)}
    assert [(group.value, group.n) for group in found["network"].groups] == [
        ("net-0", 10),
        ("net-1", 10),
        ("bridge", 1),
    ]
    assert [(group.value, group.n) for group in found["storage driver"].groups] == [("overlay2", 20), ("btrfs", 1)]
    assert [(group.value, group.n) for group in found["outcome"].groups] == [("ok", 21), ("failed", 1)]
    assert len(found["image"].groups) == VALUES
    assert found["image"].others == 21 - VALUES
    durations = sorted(run.duration_ns for run in runs[:20:2])
    assert found["network"].groups[0].max_ns == durations[-1]
    assert durations[4] <= found["network"].groups[0].p50_ns <= durations[5]


@pytest.mark.parametrize("values", [[5], [1, 2, 3], [10, 10_000], [1, 10**12], [0, 0], [0, 5]])
def test_everything_has_its_place_on_an_axis_in_order(values):
    axis = charts.Axis.over(values)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    assert all(3 < tick.at < 97 for tick in axis.ticks())
    assert len(axis.ticks()) <= 7
    for most in (4, 6):
        apart = [second.at - first.at for first, second in pairwise(axis.ticks(most))]
        assert all(gap >= 80 / most for gap in apart)
    assert axis.logarithmic is (max(values) >= 20 * max(min(values), 1) and min(values) > 0)


@pytest.mark.parametrize("low_ns", [10**6, 1.5 * 10**6, 3.3 * 10**6, 9 * 10**6])
@pytest.mark.parametrize("ratio", [20, 30, 60, 100, 900, 10**5])
def test_a_logarithmic_axis_has_more_than_one_label_wherever_it_begins(low_ns, ratio):
    assert len(charts.Axis.over([low_ns, low_ns * ratio]).ticks(4)) >= 2


def test_charts_count_every_run_and_stay_small_however_many_there_are():
    for count in (20, 2_000):
        runs = [made_run(1, seed, outcome="failed" if seed % 10 == 3 else "ok") for seed in range(count)]
        (summary,) = summarise(runs)
        over_time = charts.over_time(summary.runs)
        assert sum(column.n for column in over_time.columns) == count
        assert sum(column.n for column in over_time.columns if column.failed) == count // 10
        assert len(over_time.columns) <= 240
        values = [run.duration_ns for run in summary.measured]
        bars = charts.histogram(values, charts.Axis.over(values))
        assert sum(bar.n for bar in bars) == len(values)


def test_distributions_lie_in_order_on_their_axis():
    (summary,) = summarise(made_run(6, seed) for seed in range(30))
    durations = charts.durations(summary)
    axis = charts.Axis.over(value for values in durations.values() for value in values)
    found = charts.distributions(durations, axis)
    assert found.keys() == {row.id for row in summary.rows}
    assert UNATTRIBUTED in found
    for one in found.values():
        assert 0 <= one.low <= one.quarter <= one.median <= one.three_quarters <= one.high <= 100


# Comparisons -----------------------------------------------------------------------------------------------


def test_a_comparison_shows_its_rows_and_the_median_run_of_each_arm():
    base = made_report(*[with_events(made_run(3, 1, duration_ns=length * MS)) for length in (150, 190, 170)])
    new = made_report(*[made_run(3, 1, duration_ns=length * MS) for length in (260, 240)])
    elements = Elements(compare_html.render(compare(Arm("old", base), Arm("young", new))))
    assert {key: data["duration_ns"] for key, data in elements.data.items()} == {
        "data-base-start": 170 * MS,
        "data-new-start": 240 * MS,
    }
    groups = [value for _, attribute, value in elements.attributes if attribute == "data-group"]
    assert groups == ["median-start"] * 2
    assert elements.text.count("its events are not in this file") == 1
    for fact in ("old", "young", "not enough runs: 3 and 2", "phase_0.part_1", "BASE: 3 of 3 runs compared"):
        assert fact in elements.text


def test_bars_of_a_comparison_go_to_the_side_of_the_change():
    base = made_report(*[made_run(3, 1, flat=True, wall_time_ns=seed) for seed in range(20)])

    def longer(run, seed):
        spans = [
            replace(span, self_ns=(span.self_ns or 0) * 3 + seed, duration_ns=(span.duration_ns or 0) * 3 + seed)
            for span in run.phases
        ]
        return replace(run, phases=tuple(spans), duration_ns=run.duration_ns * 3 + seed)

    new = made_report(*[longer(run, seed) for seed, run in enumerate(base.runs)])
    for arms, at in (
        ((base, new), lambda left, _: left == 50),
        ((new, base), lambda left, width: left + width == pytest.approx(50)),
    ):
        comparison = compare(Arm("a", arms[0]), Arm("b", arms[1]))
        one = compare_html.ComparedOperation(comparison.operations[0], ())
        bars = [bar for row in one.comparison.rows[1:] if (bar := one.bar(row)) is not None]
        assert len(bars) >= 3
        assert all(at(*bar) for bar in bars)
    assert "▲ slower by" in Elements(compare_html.render(compare(Arm("a", base), Arm("b", new)))).text


# Reading again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["create-start", "functions", "three-at-once"])
def test_a_second_look_brings_the_events_of_the_wanted_runs_only(name):
    path = FIXTURES / f"{name}.observe"
    report, _ = assemble(path, load())
    whole, _ = assemble(path, load(), keep_events=True)
    for number in range(len(report.runs)):
        again = revisit.with_events(report, [report.runs[number]], [path], load())
        assert again.runs[number].events == whole.runs[number].events != ()
        assert [bool(run.events) for run in again.runs].count(True) == 1


def test_a_second_look_reads_only_what_is_around_the_runs(monkeypatch):
    path = FIXTURES / "three-at-once.observe"
    report, _ = assemble(path, load())
    fed = []
    real = revisit.Correlator

    class Counting(real):
        def feed(self, item):
            fed.append(len(item) if isinstance(item, EventBatch) else 0)
            return super().feed(item)

    monkeypatch.setattr(revisit, "Correlator", Counting)
    shortest = min(report.runs, key=lambda run: run.duration_ns)
    again = revisit.with_events(report, [shortest], [path], load())
    assert sum(bool(run.events) for run in again.runs) == 1
    assert 0 < sum(fed) < sum(len(item) for item in Recording.open(path).items() if isinstance(item, EventBatch))


def test_a_second_look_decodes_only_batches_around_the_runs(tmp_path, monkeypatch):
    path, turns = tmp_path / "long.observe", 4
    of, items = recorded("functions")
    with RecordingWriter(path, of) as writer:
        for item in endless(items, turns):
            writer.write(item)
            writer.flush()
    report, _ = assemble(path, load())
    decoded = []
    decode = layout.decode_events
    monkeypatch.setattr(layout, "decode_events", lambda payload: decoded.append(1) or decode(payload))
    again = revisit.with_events(report, report.runs[:1], [path], load())
    batches = sum(isinstance(item, EventBatch) for item in items)
    assert sum(bool(run.events) for run in again.runs) == 1
    assert 0 < len(decoded) <= batches < turns * batches


def test_where_the_beginning_matters_all_of_the_recording_is_read(monkeypatch):
    path = FIXTURES / "functions.observe"
    report, _ = assemble(path, load())
    monkeypatch.setattr(revisit, "windows", lambda runs, _others: [revisit.Window(0, 1) for _ in runs])
    assert all(run.events for run in revisit.with_events(report, report.runs, [path], load()).runs)


def test_runs_are_looked_for_in_the_recording_they_are_from(tmp_path):
    first, second = FIXTURES / "functions.observe", tmp_path / "other.observe"
    with RecordingWriter(second, Header({}, {}, 1, 2, "test")):
        pass
    report, _ = assemble(first, load())
    assert all(run.events for run in revisit.with_events(report, report.runs, [second, first], load()).runs)
    assert not any(run.events for run in revisit.with_events(report, report.runs, [second], load()).runs)


# The commands ----------------------------------------------------------------------------------------------


def test_the_report_command_writes_a_page_with_events(tmp_path, capfdbinary):
    out = tmp_path / "out.html"
    assert main(["report", str(FIXTURES / "functions.observe"), "-f", "html", "-o", str(out)]) == 0
    assert main(["report", str(FIXTURES / "functions.observe"), "-f", "html"]) == 0
    assert capfdbinary.readouterr().out == out.read_bytes()
    data = Elements(out.read_bytes()).data
    assert [len(one["events"]["time_ns"]) > 50 for one in data.values()] == [True, True]
    assert [one["name"] for one in data.values()] == ["create alone", "start alone"]


def test_the_report_command_says_why_on_the_page_or_that_it_was_not_recorded(tmp_path, capsys):
    out = tmp_path / "out.html"
    assert main(["report", "--why", str(FIXTURES / "why.observe"), "-f", "html", "-o", str(out)]) == 0
    elements = Elements(out.read_bytes())
    assert elements.text.count("Why it took that long") == 2
    assert all(one["events"]["time_ns"] for one in elements.data.values())
    assert capsys.readouterr().err == ""
    assert main(["report", "--why", str(FIXTURES / "functions.observe"), "-f", "html", "-o", str(out)]) == 0
    assert "was not recorded" in capsys.readouterr().err
    assert "Why it took that long" not in Elements(out.read_bytes()).text


def test_many_runs_say_why_on_the_page_if_it_was_asked_for():
    runs = [explained(made_run(3, seed)) for seed in range(12)]
    text = Elements(html_.render(made_report(*runs))).text
    assert text.count("Why they took that long") == 1
    assert "on average of 12 runs: on a CPU" in " ".join(text.split())
    assert "What is known to help: do less" in text
    assert "Why they took that long" not in Elements(html_.render(made_report(*map(made_run, [3] * 12)))).text


def test_an_imported_log_becomes_a_page(tmp_path):
    recording, out = tmp_path / "log.observe", tmp_path / "out.html"
    log = str(FIXTURES / "inotify-create-19.03.log")
    assert main(["import", "inotifywait", log, "-o", str(recording)]) == 0
    assert main(["report", str(recording), "-f", "html", "-o", str(out)]) == 0
    assert "imported from a log" in Elements(out.read_bytes()).text


def test_the_compare_command_writes_a_page_with_the_events_of_both(tmp_path):
    out = tmp_path / "out.html"
    names = [str(FIXTURES / f"{name}.observe") for name in ("create-start", "three-at-once")]
    assert main(["compare", *names, "-f", "html", "-o", str(out)]) == 0
    data = Elements(out.read_bytes()).data
    assert sorted(data) == ["data-base-create", "data-base-start", "data-new-create", "data-new-start"]
    assert all(len(one["events"]["time_ns"]) > 50 for one in data.values())
