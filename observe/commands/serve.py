# SPDX-License-Identifier: Apache-2.0
"""`observe serve`: stay attached to a live dockerd, and tell Prometheus and people what it does."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from observe import engine, host
from observe.collectors.follow import EngineFollower
from observe.collectors.session import PROBES, SessionOptions
from observe.commands._session import add_evidence
from observe.errors import HostCannotError, UsageError
from observe.exporter.flight import DEFAULT_BYTES, FlightRecorder
from observe.exporter.live import Live
from observe.exporter.server import Server
from observe.exporter.sinks import Sink, say
from observe.exporter.site import OperationPage, Site
from observe.exporter.snapshot import Condition
from observe.exporter.traces import TraceSink
from observe.host import memory, systemd
from observe.model import Item, Note, NoteKind
from observe.phases import load
from observe.probes.cache import cache_folder
from observe.reports import PICTURES, Page

NAME = "serve"
HELP = "stay attached to a live dockerd: metrics for Prometheus, and a page of its operations"

_LISTEN = ("127.0.0.1", 9758)
#: See SessionOptions. For days, it has to cost little: more file events in directories that are new may be missed.
_PAUSE_SECONDS = 0.04
#: How long events are left together while nobody looks at the live page: a scrape may be older by so much.
_UNWATCHED_BATCH_SECONDS = 1.0
_SLOWER_THAN = "1s"
#: Between two snapshots.
_PUBLISH_SECONDS = 0.5
#: Another containerd or new programs on disk are attached to when nothing is in progress, or after so long in any case.
_OUTDATED_SECONDS = 10.0
#: Of gc.set_threshold; Python's own are 700, 10, 10.
_GARBAGE_THRESHOLDS = (20_000, 20, 20)
_UNITS_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_SIZES = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--listen", metavar="ADDR:PORT", type=_address, default=_LISTEN, help=f"default: {_LISTEN[0]}:{_LISTEN[1]}"
    )
    parser.add_argument("--allow-remote", action="store_true", help="listen also on an address that others can reach")
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="answer also to requests for that host name, not only for an address, localhost or this host's own name",
    )
    parser.add_argument("--docker-host", metavar="URL", help="default: $DOCKER_HOST, then unix:///var/run/docker.sock")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep a recording of each slow operation there")
    parser.add_argument(
        "--keep-bytes",
        metavar="N",
        type=_size,
        default=DEFAULT_BYTES,
        help=f"of all of them; the oldest go first (default: {DEFAULT_BYTES >> 20}M)",
    )
    parser.add_argument(
        "--keep-slower-than",
        metavar="DURATION",
        type=_duration,
        default=_duration(_SLOWER_THAN),
        help=f"which operations are slow (default: {_SLOWER_THAN})",
    )
    parser.add_argument(
        "--otlp-endpoint",
        metavar="URL",
        help="send each operation as a trace there (http/protobuf; headers from $OTEL_EXPORTER_OTLP_HEADERS)",
    )
    parser.add_argument("--with-values", action="store_true", help="keep program arguments, environment and labels too")
    add_evidence(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes. Raises HostCannotError, UsageError or ObserveError before anything is attached."""
    address, port = args.listen
    if not (args.allow_remote or _is_loopback(address)):
        raise UsageError(f"{address} can be reached from other hosts: add --allow-remote if that is meant")
    engine.address(args.docker_host)  # no waiting mends an address
    traces = [_traces(args.otlp_endpoint)] if args.otlp_endpoint is not None else []
    host.require(host.checks())
    options = SessionOptions(
        ring_bytes=args.ring_bytes,
        with_values=args.with_values,
        inotify=not args.no_inotify,
        functions=not args.no_functions,
        syscalls=not args.no_syscalls,
        configurations=args.keep is not None,
        statistics=True,
        pause_seconds=_PAUSE_SECONDS,
        cache=cache_folder(),
    )
    memory.give_back()
    with ExitStack() as stack:
        stop = stack.enter_context(_stop_signals())
        sinks: list[Sink] = []
        if args.keep is not None:
            sinks.append(FlightRecorder(args.keep, args.keep_slower_than, args.keep_bytes))
        sinks += traces
        live = Live(
            load(), PROBES, sinks, events_slower_than_ns=args.keep_slower_than if args.keep is not None else None
        )
        site = Site(lambda: live.snapshot, live.watch, time.time_ns, _operation_page())
        server = Server(address, port, site, args.allow_host)
        for sink in sinks:
            sink.start()
            stack.callback(sink.close)
        _collect_garbage_seldom()
        server.start()
        stack.callback(server.stop)
        say(f"listening on http://{f'[{address}]' if ':' in address else address}:{server.port}/")
        systemd.notify(systemd.READY)
        _Recorder(EngineFollower(args.docker_host, options), live, stop).run()
        systemd.notify(systemd.STOPPING)
    return 0


def _collect_garbage_seldom() -> None:
    """What is there by now stays: looking through it again and again was a tenth of the cost under load."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def _operation_page() -> OperationPage:
    """The HTML report of one operation, whose own policy names all that it runs; else a table."""
    report = PICTURES.get("html")
    return OperationPage(report, "frame-ancestors 'none'") if report is not None else OperationPage()


def _traces(endpoint: str) -> TraceSink:
    """Raises UsageError or HostCannotError if traces cannot be sent at all."""
    try:
        from observe.export import otlp, otlp_http  # noqa: PLC0415 - needs the extra `export`
    except ModuleNotFoundError as error:
        raise HostCannotError(
            f"{error.name} is missing, which --otlp-endpoint needs; run make setup, or pip install 'observe[export]'"
        ) from error
    if not (otlp_http.is_endpoint(endpoint) and otlp_http.has_host(endpoint)):
        raise UsageError(f"{endpoint} is no endpoint: write it like http://127.0.0.1:4318")
    headers = otlp_http.headers_of(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
    return TraceSink(otlp.requests, lambda request: otlp_http.send(endpoint, request, headers).rejected_spans)


@dataclass(slots=True)
class _Stop:
    """`descriptor` can be read once a signal has come."""

    descriptor: int
    requested: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGTERM and SIGINT ask for the end; whoever sleeps on the descriptor wakes up."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stop = _Stop(reading)

    def request(_number: int, _frame: object) -> None:
        stop.requested = True

    with ExitStack() as restore:
        restore.callback(os.close, reading)
        restore.callback(os.close, writing)
        restore.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
        for number in (signal.SIGINT, signal.SIGTERM):
            restore.callback(signal.signal, number, signal.signal(number, request))
        yield stop


class _Recorder:
    """Moves what a follower brings into `live`, until it is stopped."""

    def __init__(self, follower: EngineFollower, live: Live, stop: _Stop) -> None:
        self._follower, self._live, self._stop = follower, live, stop
        self._publish_due = self._alive_due = 0.0
        self._outdated_since: float | None = None
        self._alive_seconds = systemd.watchdog_seconds()
        self._told = ""
        self._warned: set[str] = set()

    def run(self) -> None:
        """Until the stop is requested; then detach."""
        try:
            while not self._stop.requested:
                self._step()
            say("stopping")
        finally:
            self._detach()

    def _step(self) -> None:
        follower = self._follower
        if follower.session is None:
            attached = follower.attach()
            if attached is None:
                self._publish(follower.obstacle)
                follower.wait(self._stop.descriptor)
                return
            self._live.attached(*attached)
            engine = attached[0].engine
            self._publish(f"attached to dockerd {engine.get('version', '')}")
            self._warn(attached[1])
        self._live.take(follower.poll())
        if follower.has_ended:
            self._detach()
        elif self._must_attach_anew():
            say("the engine has another containerd, or new programs on disk: attaching anew")
            self._detach()
        else:
            self._publish()
            # Fewer, larger batches cost less; only who looks at the page sees the difference.
            batch_seconds = None if self._live.is_watched else _UNWATCHED_BATCH_SECONDS
            follower.wait(self._stop.descriptor, batch_seconds=batch_seconds)

    def _must_attach_anew(self) -> bool:
        now = time.monotonic()
        if self._outdated_since is None and self._follower.is_outdated:
            self._outdated_since = now
        since = self._outdated_since
        return since is not None and (not self._live.is_busy or now - since > _OUTDATED_SECONDS)

    def _detach(self) -> None:
        if self._follower.session is None:
            return
        # Detaching takes a moment in which nothing is seen any more.
        self._live.publish(Condition(dict.fromkeys(PROBES, False), "detaching", self._follower.usage()))
        self._live.take(self._follower.detach())
        self._live.detached()
        self._outdated_since = None
        # An engine that ends at the same time, as in a shutdown, is no news: nobody waits for it.
        if not self._stop.requested:
            self._publish(self._follower.obstacle)

    def _warn(self, items: Sequence[Item]) -> None:
        """Say what is not as it should be, once and not for each session."""
        for item in items:
            text = str(item.data.get("text", "")) if isinstance(item, Note) and item.kind is NoteKind.WARNING else ""
            if text and text not in self._warned:
                self._warned.add(text)
                say(text)

    def _publish(self, news: str = "") -> None:
        """A snapshot when it is due or there is news; a sign of life."""
        now = time.monotonic()
        fresh = bool(news) and news != self._told
        if fresh:
            self._told = news
            say(news)
            systemd.notify(f"STATUS={Page().safe(news)}")
        if fresh or now >= self._publish_due:
            self._publish_due = now + _PUBLISH_SECONDS
            follower = self._follower
            self._live.publish(Condition(follower.attached, follower.obstacle, follower.usage()))
        if self._alive_seconds is not None and now >= self._alive_due:
            self._alive_due = now + self._alive_seconds
            systemd.notify(systemd.WATCHDOG)


def _address(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") or _LISTEN[0]
    address = _LISTEN[0] if address == "localhost" else address
    try:
        ipaddress.ip_address(address)
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no address and port, such as {_LISTEN[0]}:{_LISTEN[1]}")
    return address, number


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _duration(text: str) -> int:
    """Nanoseconds of `250ms`, `1.5s`, `2m`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, such as 250ms, 1.5s or 2m")
    return round(float(match[1]) * _UNITS_NS[match[2]])


def _size(text: str) -> int:
    """Bytes of `1000000`, `256M`, `1G`."""
    match = re.fullmatch(r"(\d+)([kMG]?)", text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, such as 1000000 or 256M")
    return int(match[1]) * _SIZES[match[2]]
