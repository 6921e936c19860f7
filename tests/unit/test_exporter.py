# SPDX-License-Identifier: Apache-2.0
"""The live page and its server: escaped, complete, and not to be held up; systemd's protocol."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made import ENGINE, HOST, HOSTILE, MS, made_run
from streams import header

from observe.errors import ObserveError
from observe.exporter import server as server_module
from observe.exporter import site as site_module
from observe.exporter.live import Live
from observe.exporter.page import key_of, live_fragment, live_page, operation_page
from observe.exporter.server import CONNECTIONS, Server
from observe.exporter.site import OperationPage, Site
from observe.exporter.snapshot import Condition
from observe.host import systemd
from observe.model import Loss
from observe.phases import load
from observe.reports import PICTURES, Report

S = 1_000_000_000
NOW_NS = 1_646_327_200 * S
PROBES = ("sys_enter", "inotify")
ATTACHED = Condition(dict.fromkeys(PROBES, True))


def snapshot_of(*runs, open_runs=(), condition=ATTACHED, **changes):
    live = Live(load(), PROBES, wall_clock_ns=lambda: NOW_NS)
    live.attached(replace(header(), host=HOST, engine={**ENGINE, "data_root": "/d"}), [])
    for run in runs:
        live._keep(run)
    live.publish(condition)
    return replace(live.snapshot, open_runs=tuple(open_runs), **changes)


def site_of(snapshot, **changes):
    return Site(lambda: snapshot, lambda: None, lambda: NOW_NS, **changes)


class Reader(HTMLParser):
    """What a browser would make of it: tags, attributes, text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


# ---- pages -----------------------------------------------------------------------------------------------------------

HOSTILE_RUN = replace(made_run(6), container_name=HOSTILE, image=f'"><script>{HOSTILE}', network=HOSTILE, error=HOSTILE)


@pytest.mark.parametrize(
    "page",
    [
        live_page(snapshot_of(HOSTILE_RUN, open_runs=[HOSTILE_RUN], warnings=(HOSTILE,))),
        live_fragment(snapshot_of(HOSTILE_RUN, condition=Condition(dict.fromkeys(PROBES, False), HOSTILE))),
        operation_page(Report({**HOST, "hostname": HOSTILE}, ENGINE, Loss(), (HOSTILE_RUN,))),
    ],
)
def test_what_containers_say_stays_text(page):
    read = Reader(page)
    assert not {"img", "iframe"} & set(read.tags)
    assert read.tags.count("script") == (b"live.js" in page)
    assert not [name for name, _ in read.attributes if name.startswith("on") or name == "style"]
    assert "<img src=x onerror=alert(1)>" in read.text
    assert not set("\x00\x1b\r\u202e") & set(page.decode())


def test_the_page_shows_operations_with_their_largest_phases_and_links():
    runs = [made_run(4, seed) for seed in range(3)]
    read = Reader(live_page(snapshot_of(*runs)))
    links = {value for name, value in read.attributes if name == "href" and value.startswith("/operations/")}
    assert links == {f"/operations/{key_of(run)}" for run in runs}
    assert "web" in read.text
    assert "phase_0" in read.text
    assert read.tags.count("table") == 2  # the slowest and the recent ones


def test_what_is_in_progress_shows_how_long_it_has_taken_by_now():
    run = replace(made_run(2), wall_time_ns=NOW_NS - 4 * S, duration_ns=MS)
    text = Reader(live_fragment(snapshot_of(open_runs=[run], in_flight={"create": 0, "start": 1}))).text
    assert "In progress (1)" in text
    assert "4.0 s" in text


def test_what_is_in_progress_and_not_built_yet_is_announced():
    text = Reader(live_fragment(snapshot_of(in_flight={"create": 1, "start": 2}))).text
    assert "In progress (3)" in text
    assert "3 in progress; details in a moment" in text
    assert "No request is waiting" not in text
    built = Reader(live_fragment(snapshot_of(open_runs=[made_run(2)], in_flight={"create": 0, "start": 1}))).text
    assert "details in a moment" not in built
    assert "No request is waiting for its answer" in Reader(live_fragment(snapshot_of())).text


def test_an_empty_page_says_so_and_a_detached_one_why():
    read = Reader(live_page(snapshot_of(condition=Condition(dict.fromkeys(PROBES, False), "no engine at x"))))
    assert "table" not in read.tags
    assert "not attached" in read.text
    assert "no engine at x" in read.text
    partly = Reader(live_page(snapshot_of(condition=Condition({"sys_enter": True, "inotify": False}))))
    assert "attached without inotify" in partly.text


def test_losses_are_prominent():
    quiet = Reader(live_page(snapshot_of(loss=Loss(inotify_missed=3))))
    assert "No data lost" in quiet.text
    assert ("class", "warning") not in quiet.attributes
    loud = Reader(live_page(snapshot_of(loss=Loss(ring_buffer=1234))))
    assert "1,234" in loud.text
    assert ("class", "warning") in loud.attributes


@pytest.mark.parametrize("render", [operation_page, PICTURES["html"]])
def test_what_the_process_lost_is_not_said_of_one_operation(render):
    run, lost = made_run(3), Loss(ring_buffer=1234, unattributed_events=77)
    path, page = key_of(run), OperationPage(render)
    text = Reader(site_of(snapshot_of(run, loss=lost), operation_page=page).get(f"/operations/{path}").body).text
    assert "Lost since observe began, of whatever operation: 1234 events lost because the ring buffer was full." in text
    assert "incomplete" not in text
    assert "Nothing lost" not in text
    text = Reader(site_of(snapshot_of(run), operation_page=page).get(f"/operations/{path}").body).text
    assert "since observe began" not in text
    assert ("Nothing lost" in text) is (render is not operation_page)
    # In the JSON it is the process's, and documented so.
    answer = site_of(snapshot_of(run, loss=lost)).get(f"/api/operations/{path}")
    assert json.loads(answer.body)["loss"]["ring_buffer"] == 1234


@pytest.mark.parametrize("render", [operation_page, PICTURES["html"]])
def test_the_page_of_an_operation_leads_back(render):
    hostile = replace(made_run(3), container_name='<main><p class="loss">', image="<main>")
    for run in (made_run(3), hostile):
        site = site_of(snapshot_of(run, loss=Loss(ring_buffer=1)), operation_page=OperationPage(render))
        read = Reader(site.get(f"/operations/{key_of(run)}").body)
        assert [value for name, value in read.attributes if (name, value) == ("href", "/")] == ["/"]
        assert read.tags[read.tags.index("main") + 1 :][:2] == ["p", "a"]
        assert run.container_name in read.text


def test_without_javascript_the_page_is_complete_and_comes_anew():
    page = live_page(snapshot_of(made_run(2)))
    assert b'<noscript><meta http-equiv="refresh"' in page
    assert live_fragment(snapshot_of(made_run(2))) in page


# ---- addresses -------------------------------------------------------------------------------------------------------


def test_every_address():
    run = made_run(3)
    site = site_of(snapshot_of(run))
    for path in ("/", "/fragment", "/metrics", "/healthz", "/readyz", "/live.js", "/style.css", "/api/operations"):
        assert site.get(path).status == 200, path
    for path in ("", "/x", "/operations/", "/operations/start-1", "/operations/../x", "/api/operations/start-x"):
        assert site.get(path).status == 404, path
    assert site.get(f"/operations/{key_of(run)}").status == 200
    assert json.loads(site.get(f"/api/operations/{key_of(run)}").body)["runs"][0]["container_name"] == "web"


def test_operations_as_json_are_the_reports_runs():
    run, other = made_run(3), made_run(2, 1)
    document = json.loads(site_of(snapshot_of(run, open_runs=[other])).get("/api/operations").body)
    assert [one["id"] for one in document["runs"]] == [key_of(run)] == document["slowest"]
    assert document["runs"][0]["phases"][0]["id"] == "start"
    assert [one["id"] for one in document["in_progress"]] == [key_of(other)]
    assert document["schema_version"] == 1
    assert document["attached"] == dict.fromkeys(PROBES, True)


def test_readiness_and_health_are_not_the_same():
    waiting = site_of(snapshot_of(condition=Condition(dict.fromkeys(PROBES, False), "no engine")))
    assert (waiting.get("/readyz").status, waiting.get("/readyz").body) == (503, b"no engine\n")
    assert waiting.get("/healthz").status == 200
    stuck = Site(snapshot_of, lambda: None, lambda: NOW_NS + 61 * S)
    assert (stuck.get("/readyz").status, stuck.get("/healthz").status) == (200, 503)


def test_only_who_looks_at_what_is_in_progress_makes_it_be_built():
    looked = []
    site = Site(snapshot_of, lambda: looked.append(1), lambda: NOW_NS)
    for path in ("/metrics", "/healthz", "/readyz", "/style.css"):
        site.get(path)
    assert looked == []
    site.get("/fragment")
    assert looked == [1]


def test_the_page_of_an_operation_can_be_anothers():
    run = made_run(3)
    page = OperationPage(lambda report: report.runs[0].operation.encode(), "default-src 'none'")
    answer = site_of(snapshot_of(run), operation_page=page).get(f"/operations/{key_of(run)}")
    assert (answer.body, answer.policy) == (b"start", "default-src 'none'")


def test_scripts_and_styles_come_from_files_only():
    answer = site_of(snapshot_of()).get("/")
    assert "default-src 'none'" in answer.policy
    assert "unsafe" not in answer.policy
    read = Reader(answer.body)
    assert "style" not in read.tags
    assert [value for name, value in read.attributes if name == "src"] == ["/live.js"]


class Moments:
    """A site whose snapshot can be replaced; counts what is rendered, and how much of it at once."""

    def __init__(self, monkeypatch, snapshot):
        self.snapshot, self.rendered, self.at_once, self.most_at_once = snapshot, Counter(), 0, 0
        for module, name in ((site_module, name) for name in ("live_page", "live_fragment", "operations")):
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))
        monkeypatch.setattr(site_module.gzip, "compress", self._counted("compressed", gzip.compress))
        page = OperationPage(self._counted("operation", operation_page))
        self.site = Site(lambda: self.snapshot, lambda: None, lambda: NOW_NS, page)
        self.site._exposition.write = self._counted("metrics", self.site._exposition.write)

    def _counted(self, name, render):
        def counted(*arguments):
            self.rendered[name] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            time.sleep(0)  # whoever could render beside us would do it now
            try:
                return render(*arguments)
            finally:
                self.at_once -= 1

        return counted


def test_what_a_snapshot_says_is_rendered_and_compressed_once(monkeypatch):
    run = made_run(3)
    moments = Moments(monkeypatch, snapshot_of(run))
    asked = [(path, "") for path in ("/", "/fragment", "/api/operations", "/metrics")]
    asked += [("/metrics", "application/openmetrics-text; version=1.0.0"), (f"/operations/{key_of(run)}", "")]
    for _ in range(3):
        for path, accept in asked:
            plain = moments.site.get(path, accept)
            packed = moments.site.get(path, accept, compressed=True)
            assert (plain.encoding, packed.encoding) == ("", "gzip")
            assert gzip.decompress(packed.body) == plain.body
            assert packed.content_type == plain.content_type
    once = {"live_page": 1, "live_fragment": 1, "operations": 1, "metrics": 2, "operation": 1, "compressed": 6}
    assert moments.rendered == once
    before = moments.site.get("/api/operations").body
    moments.snapshot = replace(moments.snapshot, wall_time_ns=NOW_NS + S)
    assert moments.site.get("/api/operations").body != before
    # An operation that has ended stays what it was.
    assert moments.site.get(f"/operations/{key_of(run)}", compressed=True).status == 200
    assert moments.rendered == {**once, "operations": 2}
    assert list(moments.site._made) == ["/api/operations"], "what was made of an old snapshot is kept"


def test_a_page_of_an_operation_is_made_anew_when_more_is_lost_and_not_when_more_is_counted(monkeypatch):
    moments, path = Moments(monkeypatch, snapshot_of(made_run(3))), f"/operations/{key_of(made_run(3))}"
    losses = (Loss(), Loss(unattributed_events=9), Loss(ring_buffer=1), Loss(ring_buffer=1, inotify_missed=7))
    for loss, pages in zip(losses, (1, 1, 2, 2), strict=True):
        moments.snapshot = replace(moments.snapshot, loss=loss)
        moments.site.get(path)
        assert moments.rendered["operation"] == pages, loss


def test_no_more_than_the_last_pages_of_operations_are_kept(monkeypatch):
    runs = [made_run(3, seed) for seed in range(site_module.PAGES + 2)]
    moments = Moments(monkeypatch, snapshot_of(*runs))
    for run in [*runs, runs[-1], runs[0]]:
        moments.site.get(f"/operations/{key_of(run)}")
    assert moments.rendered["operation"] == len(runs) + 1
    assert len(moments.site._pages) == site_module.PAGES


def test_the_page_of_an_operation_that_goes_on_is_made_anew(monkeypatch):
    run = made_run(3)
    moments = Moments(monkeypatch, snapshot_of(open_runs=[run]))
    before = moments.site.get(f"/operations/{key_of(run)}").body
    moments.snapshot = replace(moments.snapshot, open_runs=(replace(run, duration_ns=run.duration_ns + S),))
    assert moments.site.get(f"/operations/{key_of(run)}").body != before


def test_one_thing_at_a_time_is_rendered_however_many_ask(monkeypatch):
    runs = [made_run(3, seed) for seed in range(4)]
    moments = Moments(monkeypatch, snapshot_of(*runs))
    paths = ["/", "/fragment", "/metrics", "/api/operations", *(f"/operations/{key_of(run)}" for run in runs)] * 4
    with ThreadPoolExecutor(len(paths)) as clients:
        answers = list(clients.map(moments.site.get, paths))
    assert {answer.status for answer in answers} == {200}
    assert moments.rendered.total() == len(set(paths))
    assert moments.most_at_once == 1


def test_health_and_readiness_wait_for_nothing_that_is_rendered():
    gate, begun, run = threading.Event(), threading.Event(), made_run(3)

    def slow(_report):
        begun.set()
        return b"slow" * gate.wait(60)

    site = site_of(snapshot_of(run), operation_page=OperationPage(slow))
    with ThreadPoolExecutor(1) as client:
        waiting = client.submit(site.get, f"/operations/{key_of(run)}")
        assert begun.wait(60)
        assert [site.get(path).status for path in ("/healthz", "/readyz")] == [200, 200]
        assert not waiting.done()
        gate.set()
        assert waiting.result().body.endswith(b"slow")


# ---- the server ------------------------------------------------------------------------------------------------------


@contextmanager
def served(snapshot, names=(), **changes):
    server = Server("127.0.0.1", 0, site_of(snapshot, **changes), names)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def request(server, method="GET", path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_answers_have_strict_headers_and_may_be_compressed():
    with served(snapshot_of(made_run(3))) as server:
        answer, body = request(server)
        assert answer.status == 200
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Connection"] == "close"
        small, compressed = request(server, **{"Accept-Encoding": "gzip"})
        assert small.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(compressed) == body
        head, nothing = request(server, "HEAD")
        assert (head.headers["Content-Length"], nothing) == (str(len(body)), b"")
        assert request(server, path="/?x=1")[0].status == 200


def test_what_http_itself_refuses_has_the_same_headers():
    with served(snapshot_of()) as server:
        good, _ = request(server, path="/healthz")
        names = set(good.headers) - {"Content-Length"}
        refused = [request(server, method) for method in ("POST", "<b>", "HEAD /healthz")]
        assert [answer.status for answer, _ in refused] == [501, 501, 400]
        for answer, body in refused:
            assert {name: answer.headers[name] for name in names - {"Date"}} == {
                name: good.headers[name] for name in names - {"Date"}
            }
            assert answer.headers["Content-Length"] == str(len(body))


def test_a_web_page_of_another_name_cannot_read_it():
    allowed = ("127.0.0.1:9758", "192.0.2.7", "localhost", "LOCALHOST:1", "[::1]:9", "")
    forbidden = ("evil.example", "[", "127.0.0.1.evil.example", "localhost.evil.example", "localhost:80@evil.example")
    with served(snapshot_of()) as server:
        assert [request(server, Host=host)[0].status for host in allowed] == [200] * len(allowed)
        assert [request(server, Host=host)[0].status for host in forbidden] == [421] * len(forbidden)


def test_names_that_are_allowed_are_its_own_and_those_that_were_given(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Node7.example.net")
    own = ("node7.example.net:9758", "NODE7", "node7:1")
    given, others = (
        ("observe:9758", "Observe", "a.b"),
        ("node7.example.org", "example.net", "b", "observe.evil.example"),
    )
    with served(snapshot_of(), ["observe", "A.b"]) as server:
        assert [request(server, Host=host)[0].status for host in (*own, *given)] == [200] * 6
        answers = [request(server, Host=host) for host in others]
        assert [answer.status for answer, _ in answers] == [421] * len(others)
        assert all(b"--allow-host NAME" in body for _, body in answers)


def test_a_port_that_is_taken_is_said_in_one_line():
    with served(snapshot_of()) as server, pytest.raises(ObserveError, match=r"already in use.*--listen"):
        Server("127.0.0.1", server.port, site_of(snapshot_of()))


HALF = b"GET / HTTP/1.1\r\nX: "


def held(stack, server, said):
    """A connection on which that was said."""
    client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
    client.sendall(said)
    return client


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def served_slowly():
    """A server, a request that it does not answer before `gate` is set, and `gate`."""
    gate, run = threading.Event(), made_run(3)
    with served(snapshot_of(run), operation_page=OperationPage(lambda _: b"slow" * gate.wait(60))) as server:
        yield server, f"GET /operations/{key_of(run)} HTTP/1.0\r\n\r\n".encode(), gate


def test_when_all_places_are_taken_by_requests_the_next_one_is_closed_soon():
    with served_slowly() as (server, slow, gate), ExitStack() as stack:
        clients = [held(stack, server, slow) for _ in range(CONNECTIONS)]
        until(lambda: len(server._deadlines) == CONNECTIONS and not server._unheard)
        # Less than the patience with the others, which must not be what makes room.
        with socket.create_connection(("127.0.0.1", server.port), server_module.PATIENCE_SECONDS / 2) as late:
            assert late.recv(10) == b""
        assert len(server._deadlines) == CONNECTIONS
        gate.set()
        assert all(client.makefile("rb").read().endswith(b"slow") for client in clients)
        until(lambda: not server._deadlines)
        assert request(server, path="/healthz")[0].status == 200


def test_a_place_that_becomes_free_soon_is_waited_for(monkeypatch):
    monkeypatch.setattr(server_module, "_GRACE_SECONDS", 60)
    with served_slowly() as (server, slow, gate), ExitStack() as stack:
        for _ in range(CONNECTIONS):
            held(stack, server, slow)
        until(lambda: len(server._deadlines) == CONNECTIONS and not server._unheard)
        late = held(stack, server, b"GET /healthz HTTP/1.0\r\n\r\n")
        gate.set()
        assert late.makefile("rb").read().endswith(b"ok\n")


def test_who_has_not_asked_yet_makes_room_for_who_comes_the_oldest_first(monkeypatch):
    for patience in ("HEAD_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(server_module, patience, 600)
    with served(snapshot_of()) as server, ExitStack() as stack:
        clients = [held(stack, server, HALF) for _ in range(3 * CONNECTIONS)]
        assert request(server, path="/healthz")[0].status == 200
        cut_off, waiting = clients[: 1 - CONNECTIONS], clients[1 - CONNECTIONS :]
        assert [client.recv(1) for client in cut_off] == [b""] * len(cut_off)
        for client in waiting:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


def test_who_has_just_come_is_not_cut_off_in_favour_of_others(monkeypatch):
    with served(snapshot_of()) as server, ExitStack() as stack:
        client = held(stack, server, HALF)
        until(lambda: server._unheard)
        monkeypatch.setattr(server_module, "_GRACE_SECONDS", 600)
        assert not server._cut_off_oldest()
        monkeypatch.setattr(server_module, "_GRACE_SECONDS", 0)
        assert server._cut_off_oldest()
        assert client.recv(1) == b""


def test_who_does_not_ask_is_cut_off_sooner_than_who_waits_for_an_answer(monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(server_module, "PATIENCE_SECONDS", 600)
    monkeypatch.setattr(server_module._Handler, "timeout", 600)
    with served_slowly() as (server, slow, gate), ExitStack() as stack:
        asks = held(stack, server, slow)
        until(lambda: server._deadlines and not server._unheard)
        assert held(stack, server, HALF).recv(1) == b""
        gate.set()
        assert asks.makefile("rb").read().endswith(b"slow")


def test_who_speaks_for_too_long_is_cut_off_however_often_he_says_something(monkeypatch):
    monkeypatch.setattr(server_module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "_POLL_SECONDS", 0.05)
    with served(snapshot_of()) as server, socket.create_connection(("127.0.0.1", server.port), 0.02) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(500):
            try:
                client.sendall(b"x")
                assert client.recv(1) == b""
            except TimeoutError:
                continue  # nothing was said, and we were not cut off: go on
            except ConnectionError:
                break
            else:
                break
        else:
            pytest.fail("it is still being listened to")


def test_huge_headers_are_refused():
    with served(snapshot_of()) as server, socket.create_connection(("127.0.0.1", server.port), 60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n")
        assert b" 431 " in client.recv(100)


# ---- systemd ---------------------------------------------------------------------------------------------------------


def test_systemd_is_told_where_it_listens(tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        systemd.notify(systemd.READY, "STATUS=x", environ={"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"READY=1\nSTATUS=x"
    systemd.notify(systemd.READY, environ={"NOTIFY_SOCKET": address})
    systemd.notify(systemd.READY, environ={})


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_wants(environ, seconds):
    assert systemd.watchdog_seconds(environ) == seconds
