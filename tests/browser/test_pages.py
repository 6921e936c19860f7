# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser: what they draw, how they answer to hands and keys, and what they never do."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from made import HOSTILE, MS, made_events, made_report, made_run
from streams import header

from observe.commands._files import read, read_again
from observe.exporter import server as server_module
from observe.exporter.live import Live
from observe.exporter.server import Server
from observe.exporter.site import Site
from observe.exporter.snapshot import Condition
from observe.model import Loss
from observe.phases import load
from observe.reports import Report, compare_html, html_
from observe.reports.comparison import Arm, compare

FIXTURES = Path(__file__).parents[1] / "fixtures"
STAGE = ".timeline-stage"


def of_file(name: str) -> Report:
    """A real recording as `observe report -f html` reads it."""
    files = [FIXTURES / f"{name}.observe"]
    report = read(files)
    return read_again(files, report, html_.shown_runs(report))


def start_of(name: str) -> Report:
    """Its start alone."""
    report = of_file(name)
    return replace(report, runs=tuple(run for run in report.runs if run.operation == "start"))


def with_events(run, count):
    return replace(run, events=made_events(run, count))


def compared(base, new):
    return compare_html.render(compare(Arm("base.observe", base), Arm("new.observe", new)))


HOSTILE_RUN = made_run(
    3, container_name=HOSTILE, image=HOSTILE, network=HOSTILE, error=HOSTILE, outcome="failed", container_id=HOSTILE
)
HOSTILE_RUN = replace(
    HOSTILE_RUN, events=made_events(HOSTILE_RUN, 40, path=f"/{HOSTILE}</script><script>alert(2)</script>")
)
PAGES = {
    "none": html_.render(made_report()),
    "one phase": html_.render(made_report(made_run(1))),
    "thirty phases": html_.render(made_report(with_events(made_run(30), 500))),
    "real": html_.render(of_file("functions")),
    "many": html_.render(of_file("three-at-once")),
    "failed": html_.render(
        made_report(*[made_run(3, seed, outcome="failed", error="no such image") for seed in range(9)])
    ),
    "lossy": html_.render(made_report(made_run(3), loss=Loss(ring_buffer=5), warnings=["w" * 300])),
    "untimed": html_.render(made_report(made_run(4, duration_ns=0, unattributed_ns=0))),
    "untimed many": html_.render(made_report(*[made_run(4, duration_ns=0, unattributed_ns=0)] * 6)),
    "hostile": html_.render(made_report(HOSTILE_RUN, warnings=[HOSTILE])),
    "hostile many": html_.render(made_report(*[HOSTILE_RUN] * 6)),
    "compared": compared(of_file("create-start"), of_file("functions")),
    "compared none": compared(made_report(), made_report()),
    "compared hostile": compared(
        made_report(HOSTILE_RUN, warnings=[HOSTILE]), made_report(replace(HOSTILE_RUN, outcome="ok"))
    ),
}


@pytest.fixture(scope="module")
def start() -> bytes:
    return html_.render(start_of("functions"))


def timeline(page, expression):
    """A value of the first timeline."""
    return page.evaluate(
        f"(() => {{ const t = document.querySelector('.timeline').timeline; return {expression}; }})()"
    )


def open_everything(page):
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true;")
    page.wait_for_function("[...document.querySelectorAll('[data-source]')].every((element) => element.timeline)")
    settle(page)


def settle(page):
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def place(page, item):
    """Where the middle of an item of the first timeline is on the screen."""
    return timeline(
        page,
        f"""(() => {{
            const item = {item}, [from, to] = t.model.bounds(item), [top, height] = t.span(item);
            const box = t.stage.getBoundingClientRect();
            const x = ((from + to) / 2 - t.view.start) / t.view.span * t.width;
            return [box.left + x, box.top + top + height / 2];
        }})()""",
    )


def phase(page, name):
    """The item of a phase, as an expression."""
    index = timeline(page, f"t.model.phases.id.indexOf('{name}')")
    assert index >= 0
    return f"{{type: 'phase', index: {index}}}"


# Every page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_quiet_and_never_wider_than_the_window(look, name):
    page = look(PAGES[name])
    open_everything(page)
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            settle(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    sources = page.locator("[data-source]").count()
    assert page.locator(f"{STAGE} canvas").count() == 2 * sources
    assert (sources > 0) is (name not in ("none", "compared none"))


@pytest.mark.parametrize("name", [name for name in PAGES if "hostile" in name])
def test_names_of_containers_are_letters_and_nothing_else(look, name):
    page = look(PAGES[name])
    open_everything(page)
    timelines = page.evaluate("[...document.querySelectorAll('.timeline')].length")
    for number in range(timelines):
        # Search and choose whatever there is: names, paths and arguments go through the details, too.
        page.evaluate(
            """(number) => {
                const t = document.querySelectorAll('.timeline')[number].timeline;
                for (const row of t.model.walk) for (const item of row) { t.choose(item); t.tell(t.tip, item); }
                t.search('alert');
            }""",
            number,
        )
    assert page.locator("img, iframe, object").count() == 0
    assert page.locator("script").count() == page.locator("script[type='application/json']").count() + 1
    assert "<img src=x onerror=alert(1)>" in page.inner_text("body")
    assert page.evaluate("document.body.innerText").count("\u202e") == 0


def test_without_scripts_the_tables_have_everything(look):
    page = look(PAGES["real"], scripts=False)
    text = page.inner_text("main")
    assert "network_hook" in text
    assert "needs JavaScript" in text
    assert page.locator(STAGE).count() == 0


# The timeline ----------------------------------------------------------------------------------------------


def test_search_finds_phases_processes_and_events_and_walks_through_them(look, start):
    page = look(start)
    field = page.get_by_role("searchbox")
    field.fill("runc_start")
    assert page.locator(".timeline-count").inner_text() == "1 phase"
    field.press("Enter")
    assert page.locator(".timeline-details strong").inner_text() == "start.containerd_start.runc_start"
    field.fill("setkey")
    assert page.locator(".timeline-count").inner_text() == "1 process, 2 events"
    field.press("Shift+Enter")
    assert page.locator(".timeline-count").inner_text() == "3 of 3"
    field.fill("no such thing")
    assert page.locator(".timeline-count").inner_text() == "no match"


def test_the_keyboard_zooms_pans_and_walks(look, start):
    page = look(start)
    page.locator(STAGE).focus()
    whole = timeline(page, "t.view.span")
    for key, span in [("+", whole / 2), ("+", whole / 4), ("-", whole / 2)]:
        page.keyboard.press(key)
        assert timeline(page, "t.view.span") == pytest.approx(span)
    before = timeline(page, "t.view.start")
    page.keyboard.press("Shift+ArrowRight")
    assert timeline(page, "t.view.start") == pytest.approx(before + 0.2 * whole / 2)
    page.keyboard.press("0")
    assert timeline(page, "t.view.whole")
    heading = page.locator(".timeline-details strong")
    names = []
    for key in ["ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"]:
        page.keyboard.press(key)
        names.append(heading.inner_text())
    assert names == ["start", "start.validate", "start.mount", "start"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert timeline(page, "t.view.span") < whole / 100
    page.keyboard.press("Escape")
    assert heading.count() == 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"


def test_buttons_and_the_wheel_zoom_and_dragging_pans(look, start):
    page = look(start)
    whole = timeline(page, "t.view.span")
    page.get_by_role("button", name="Zoom in").click()
    assert timeline(page, "t.view.span") == pytest.approx(whole / 2)
    page.get_by_role("button", name="Show everything").click()
    box = page.locator(STAGE).bounding_box()
    x, y = box["x"] + box["width"] / 4, box["y"] + 100
    page.mouse.move(x, y)
    page.mouse.wheel(0, -120)
    settle(page)
    assert timeline(page, "t.view.whole"), "without Ctrl the wheel belongs to the page"
    page.locator(STAGE).scroll_into_view_if_needed()
    box = page.locator(STAGE).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 100)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    page.wait_for_function("!document.querySelector('.timeline').timeline.view.whole")
    assert timeline(page, "t.view.start + t.view.span / 4") == pytest.approx(whole / 4, rel=0.01)
    before = timeline(page, "t.view.start")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 8, box["y"] + 100, steps=4)
    page.mouse.up()
    assert timeline(page, "t.view.start") > before


def test_hovering_tells_what_is_there_and_clicking_keeps_it(look, start):
    page = look(start)
    page.locator(STAGE).scroll_into_view_if_needed()
    name = "start.containerd_start.runc_create.network_hook"
    item = phase(page, name)
    page.mouse.move(*place(page, item))
    tip = page.locator(".timeline-tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert name in text
    (run,) = start_of("functions").runs
    lasts_ns = next(span.duration_ns for span in run.phases if span.id == name)
    assert f"{lasts_ns / MS:.1f} ms ({lasts_ns / run.duration_ns:.1%})" in text
    assert "processExternalKey" in text
    page.mouse.click(*place(page, item))
    assert "network_hook" in page.locator(".timeline-details").inner_text()
    page.mouse.move(5, 5)
    assert tip.is_hidden()


def test_a_system_call_tells_its_path_process_and_phase(look, start):
    page = look(start)
    event = timeline(page, "t.model.events.kind.findIndex((kind) => t.model.kinds.label[kind] === 'pivot_root')")
    page.evaluate(f"document.querySelector('.timeline').timeline.choose({{type: 'event', index: {event}}}, true)")
    settle(page)
    page.locator(STAGE).scroll_into_view_if_needed()
    page.mouse.move(*place(page, f"{{type: 'event', index: {event}}}"))
    text = page.locator(".timeline-tip").inner_text()
    assert text.startswith("pivot_root")
    assert "runc:[2:INIT] → true" in text
    assert "start.containerd_start.runc_create.init" in text


def test_processes_stand_in_lanes_below_those_that_started_them(look, start):
    page = look(start)
    names = timeline(page, "t.model.processes.name")
    depths = dict(zip(names, timeline(page, "t.model.processes.depth"), strict=True))
    assert names[0] == "dockerd"
    assert depths["dockerd"] == 0
    assert depths["set-ipv6"] == 1
    assert depths["runc init"] == depths["runc create"] + 1 == 4
    lanes = timeline(page, "t.places.lanes.map((lane) => lane.top)")
    assert lanes == sorted(lanes)


# Light and dark --------------------------------------------------------------------------------------------


def brightness(page):
    """Of the page, and of the middle of the operation's bar on the canvas, from 0 to 255."""
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    x, y = timeline(page, "[Math.round(t.width * 0.9 * t.ratio), Math.round((t.places.rows[0] + 12) * t.ratio)]")
    pixel = timeline(
        page,
        f"""(() => {{
            const copy = new OffscreenCanvas(1, 1).getContext("2d", {{ willReadFrequently: true }});
            copy.drawImage(t.canvas, {x}, {y}, 1, 1, 0, 0, 1, 1);
            return [...copy.getImageData(0, 0, 1, 1).data];
        }})()""",
    )
    return sum(paper) / 3, sum(pixel[:3]) / 3


def test_dark_follows_the_system_and_the_switch(look, start):
    light, dark = look(start), look(start, scheme="dark")
    assert brightness(light)[0] > 200
    assert brightness(dark)[0] < 50
    before = brightness(dark)
    dark.get_by_role("button", name="Light or dark").click()
    settle(dark)
    assert brightness(dark) == brightness(light) != before


# Much ------------------------------------------------------------------------------------------------------


def drawn(page, count_of):
    """What one frame visits and draws, whole and at each of ten zoom steps."""
    steps = []
    for step in range(10):
        page.evaluate(f"document.querySelector('.timeline').timeline.view.set(0, {200 * MS} / 2 ** {step})")
        settle(page)
        steps.append(timeline(page, f"t.drawn.{count_of}"))
    return steps


def test_a_hundred_times_the_events_take_hardly_more_to_draw(look):
    run = made_run(9)
    few, much = (look(html_.render(made_report(with_events(run, count)))) for count in (1_000, 100_000))
    width = timeline(much, "t.width")
    lanes = timeline(much, "t.model.lanes.length")
    assert timeline(much, "t.model.time.length") == 100_000
    primitives = drawn(much, "primitives")
    # Three shapes in each of a few colours a lane, and none where the one before it ends.
    assert max(primitives) <= 3 * lanes * width
    assert max(primitives) <= 6 * max(drawn(few, "primitives"))
    visited = drawn(much, "visited")
    assert visited[0] == 100_000
    # What is out of view is not even looked at.
    assert visited[9] < 100_000 / 2**8
    assert all(later <= 0.6 * earlier for earlier, later in pairwise(visited))


def test_many_changes_make_one_frame(look, start):
    page = look(start)
    frames = timeline(page, "t.drawn.frames")
    timeline(page, "Array.from({ length: 50 }, () => t.view.zoom(0.98)).length")
    settle(page)
    assert timeline(page, "t.drawn.frames") == frames + 1


# Many runs and comparisons ---------------------------------------------------------------------------------


def test_a_slow_run_leads_to_its_timeline(look):
    page = look(PAGES["many"])
    assert page.locator(STAGE).count() == 0, "timelines are made when they are looked at"
    link = page.get_by_role("link", name="three").last
    link.click()
    page.wait_for_selector("details[open] .timeline")
    assert page.locator("details[open]").count() == 1
    assert page.locator("details[open] summary").inner_text().startswith("start three 681.4 ms")
    assert page.locator("details[open] .timeline-stage").bounding_box()["width"] > 1000


def test_both_arms_share_one_axis(look):
    page = look(PAGES["compared"])
    spans = "[...document.querySelectorAll('.timeline')].map(({timeline}) => [timeline.view.start, timeline.view.span])"
    create_base, create_new, start_base, start_new = page.evaluate(spans)
    assert create_base == create_new
    assert start_base == start_new != create_base
    page.locator(STAGE).nth(3).focus()
    page.keyboard.press("+")
    settle(page)
    after = page.evaluate(spans)
    assert after[2] == after[3] == [start_base[1] / 4, start_base[1] / 2]
    assert after[0] == create_base


# The live page ---------------------------------------------------------------------------------------------


class Engine:
    """What the live page shows: `happens` adds an operation; counts how often the page has asked."""

    def __init__(self):
        self._live = Live(load(), ("sys_enter",))
        self._live.attached(header(), [])
        self.asked, self.answers = 0, threading.Event()
        self.answers.set()
        self.happens("first")

    def happens(self, name):
        self._live._keep(replace(made_run(4, self.asked), container_name=name, wall_time_ns=time.time_ns()))
        self._live.publish(Condition({"sys_enter": True}))

    def snapshot(self):
        self.answers.wait()
        return self._live.snapshot

    def watch(self):
        self.asked += 1

    def is_asked_again(self, times=2):
        """Wait for so many more questions; a page that asks again has taken the answer before."""
        wanted, deadline = self.asked + times, time.monotonic() + 60
        while self.asked < wanted:
            assert time.monotonic() < deadline, "the page does not ask any more"
            time.sleep(0.01)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def address(engine):
    server = Server("127.0.0.1", 0, Site(engine.snapshot, engine.watch, time.time_ns))
    server.start()
    yield f"http://127.0.0.1:{server.port}/"
    engine.answers.set()
    server.stop()


def shows(page, name):
    page.wait_for_function("(name) => document.querySelector('main').innerText.includes(name)", arg=name)


FOCUSED = """(() => {
    const link = document.activeElement;
    return [link.innerText, link.getAttribute("href"), link.closest("table")?.getAttribute("aria-label")];
})()"""


@pytest.mark.parametrize("how", ["focus", "ctrl-click"])
def test_the_live_page_goes_on_when_a_link_has_the_focus_and_the_link_keeps_it(engine, address, visit, how):
    page = visit(address)
    link = page.get_by_role("table", name="recent").get_by_role("link", name="first")
    link.focus() if how == "focus" else link.click(modifiers=["Control"])
    before = page.evaluate(FOCUSED)
    assert before[::2] == ["first", "recent"]
    engine.happens("second")
    shows(page, "second")
    assert page.evaluate(FOCUSED) == before
    engine.is_asked_again()
    assert page.evaluate(FOCUSED) == before


def test_text_that_is_selected_holds_the_live_page_back_and_it_says_so(engine, address, visit):
    page = visit(address)
    page.evaluate("document.getSelection().selectAllChildren(document.querySelector('main h1'))")
    page.wait_for_selector("body.paused")
    told = page.evaluate("getComputedStyle(document.body, '::after').content")
    assert told == '"paused while text is selected"'
    engine.happens("second")
    engine.is_asked_again()
    assert "second" not in page.inner_text("main")
    assert page.evaluate("document.getSelection().toString()") == "Container operations"
    page.evaluate("document.getSelection().removeAllRanges()")
    shows(page, "second")
    assert page.locator("body.paused").count() == 0


def test_what_is_selected_beside_the_tables_holds_nothing_back(engine, address, visit):
    page = visit(address)
    page.evaluate("document.getSelection().selectAllChildren(document.querySelector('footer'))")
    engine.happens("second")
    shows(page, "second")
    assert page.locator("body.paused").count() == 0


def test_a_link_that_is_pressed_while_the_live_page_goes_on_is_followed(engine, address, visit):
    page = visit(address)
    page.get_by_role("link", name="first").first.hover()
    page.mouse.down()
    engine.happens("second")
    engine.is_asked_again(3)
    page.mouse.up()
    page.wait_for_url("**/operations/*")


def test_a_server_that_does_not_answer_shows_as_stale(engine, address, visit, monkeypatch):
    # The server would cut such a question off itself, but it need not be ours that hangs.
    monkeypatch.setattr(server_module, "PATIENCE_SECONDS", 600)
    page = visit(address)
    engine.is_asked_again()
    engine.answers.clear()
    page.wait_for_selector("body.stale")
    engine.happens("second")
    engine.answers.set()
    shows(page, "second")
    page.wait_for_selector("body:not(.stale)")


def test_a_window_that_is_shown_again_is_up_to_date_at_once(engine, address, visit):
    page = visit(address, paused=True)
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    engine.happens("second")
    for _ in range(100):
        page.clock.run_for(1000)
        if "second" in page.inner_text("main"):
            break
    engine.happens("third")
    asked = engine.asked
    page.clock.run_for(5000)
    assert engine.asked == asked, "a hidden window asks seldom"
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { value: false });"
        "document.dispatchEvent(new Event('visibilitychange'));"
    )
    # The clock stands still: nothing but that brings it.
    page.locator("main", has_text="third").wait_for()
    assert engine.asked == asked + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_live_page_is_never_wider_than_the_window(engine, address, visit, scheme):
    engine.happens("n" * 200)
    for width in (1280, 400):
        page = visit(address, width=width, scheme=scheme)
        page.evaluate("document.body.classList.add('paused')")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
