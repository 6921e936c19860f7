# SPDX-License-Identifier: Apache-2.0
"""`observe bench`: create and start containers in interleaved arms, and tell how long it takes in each."""

from __future__ import annotations

import argparse
import http
import os
import platform
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from observe import host
from observe.bench.generator import LoadGenerator
from observe.bench.load import containers, sweep
from observe.bench.measure import Measurement
from observe.bench.plan import Arm, Attach, arms_of, pairs_of, turns_of
from observe.bench.recordings import ANY_RECORDING, ArmRecordings, path_of
from observe.collectors.session import Session
from observe.commands._files import write
from observe.commands._session import LiveLine, add_arguments, options
from observe.engine import api, find_engine
from observe.errors import DataLostError, ObserveError, UsageError
from observe.escape import printable
from observe.model import Header
from observe.reports import Page, bench_json, bench_markdown, bench_text
from observe.reports.assemble import conclude
from observe.reports.bench_rows import Bench, BenchArm, ClientRun, failed

NAME = "bench"
HELP = "create and start containers in interleaved arms, record each arm, tell percentiles and differences"

FORMATS: Mapping[str, Callable[[Bench, Page], str]] = MappingProxyType(
    {"text": bench_text.render, "json": bench_json.render, "markdown": bench_markdown.render}
)

_RESULT = "bench.json"
_TIMEOUT_SECONDS = 30.0
_BAR_COLUMNS = 24
_LIVE_SECONDS = 0.25
_FIRST_SIGNAL_CODE = 128
_SEEDS = 1_000_000
#: Of runs, of clients and of warm-ups; a million runs take days.
_MOST = 1_000_000
_COMMAND = ("true",)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.usage = "observe bench [options] [-- COMMAND [ARGUMENT ...]]"
    parser.epilog = (
        "Of --network, --image, --runtime and --security-opt several values may be given; every combination is an arm, "
        "and a value given twice makes two equal arms, which show what chance does."
    )
    parser.add_argument("--runs", metavar="N", type=_count, default=20, help="of each arm; default: 20")
    parser.add_argument("--concurrency", metavar="N", type=_count, default=1, help="runs at once; default: 1")
    parser.add_argument(
        "--warmup", metavar="N", type=_count_or_none, default=1, help="turns of each arm before; default: 1"
    )
    _factor(parser, "--network", "MODE", "none, host, bridge, or a network's name; default: bridge")
    _factor(parser, "--image", "NAME", "default: busybox")
    _factor(parser, "--runtime", "NAME", "default: the engine's")
    _factor(
        parser,
        "--security-opt",
        "OPTION[,OPTION]",
        "as of docker run, joined by commas if an arm has several; 'default': none",
    )
    parser.add_argument(
        "--attach",
        choices=[one.value for one in Attach],
        default=Attach.YES.value,
        help="observe the engine meanwhile; both: in every second block, to see what that costs; default: yes",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="of the order of turns; default: a new one")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help=f"for the recordings and {_RESULT}, without a bench in it; default: bench-DATE-TIME",
    )
    parser.add_argument("-f", "--format", choices=list(FORMATS), default="text", help="default: text")
    parser.add_argument("--clean", action="store_true", help="only remove the containers that killed benches have left")
    add_arguments(parser)
    parser.add_argument(
        "command", metavar="COMMAND", nargs="*", help="what each container runs, which must end; default: true"
    )


def _factor(parser: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    parser.add_argument(name, metavar=metavar, nargs="+", type=_word, action="extend", help=text)


def run(args: argparse.Namespace) -> int:
    """Measure, save, tell. Raises HostCannotError before anything is created; other errors once all is told."""
    target = api.address(args.docker_host)
    if args.clean:
        print(f"observe: removed {sweep(target)} containers", file=sys.stderr)
        return 0
    arms = arms_of(
        args.image or ["busybox"],
        args.network or ["bridge"],
        args.runtime or [None],
        [_options(text) for text in args.security_opt or ["default"]],
        Attach(args.attach),
    )
    folder: Path = args.output or Path(f"bench-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    _refuse_used(folder)
    session = _session(args, arms)
    engine = _ask(target, arms)
    if session:
        engine = session().engine.facts()
    seed = secrets.randbelow(_SEEDS) if args.seed is None else args.seed
    plan = _Plan(args, target.url, arms, folder, engine, seed)
    with _made(folder):
        return _measure(plan, session)


def _measure(plan: _Plan, session: Callable[[], Session] | None) -> int:
    """All but the preparations; raises like `run`."""
    args, folder = plan.args, plan.folder
    measured = plan.measure(session)
    if measured.stopped_by and not measured.runs:
        return _FIRST_SIGNAL_CODE + measured.stopped_by
    bench = plan.result(measured)
    write(folder / _RESULT, bench_json.render(bench, Page()))
    write(None, FORMATS[args.format](bench, Page.of(sys.stdout)))
    if measured.stopped_by:
        return _FIRST_SIGNAL_CODE + measured.stopped_by
    if measured.broken:
        raise ObserveError(f"{measured.broken}; what was measured until then is in {folder}")
    _judge(bench, strict=args.strict)
    return 0


def _session(args: argparse.Namespace, arms: Sequence[Arm]) -> Callable[[], Session] | None:
    """Makes sessions with the engine; None if no arm is observed. Raises HostCannotError."""
    if not any(arm.attached for arm in arms):
        return None
    host.require(host.checks())
    engine = find_engine(args.docker_host)
    return lambda: Session(engine, options(args))


def _ask(target: api.Address, arms: Sequence[Arm]) -> dict[str, Any]:
    """What the engine says of itself. Raises HostCannotError, and ObserveError if it lacks an arm's image."""
    with api.connect(target, _TIMEOUT_SECONDS) as connection:
        version = connection.get("/version")
        for image in dict.fromkeys(arm.image for arm in arms):
            if connection.exchange("GET", f"/images/{quote(image)}/json").status != http.HTTPStatus.OK:
                raise ObserveError(f"no such image: {image}; docker pull it, or name another with --image")
        left = len(containers(connection))
    if left:
        print(
            f"observe: {left} containers of another bench are there; if it does not run any more, "
            "observe bench --clean removes them",
            file=sys.stderr,
        )
    return {"version": version.get("Version", ""), "go_version": version.get("GoVersion", "")}


def _refuse_used(folder: Path) -> None:
    """Raise UsageError for the folder of another bench: its recordings would be replaced, or taken for ours."""
    if (folder / _RESULT).exists() or any(folder.glob(ANY_RECORDING)):
        raise UsageError(f"{folder}: there is a bench in it; name another folder with -o")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder is there; what had to be made for it is taken away again if it stays empty."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ObserveError(f"{folder}: cannot be made: {error.strerror}; name another folder with -o") from error
        yield
    finally:
        with suppress(OSError):
            for place in new:
                place.rmdir()


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is known before the first run."""

    args: argparse.Namespace
    url: str
    arms: Sequence[Arm]
    folder: Path
    engine: Mapping[str, Any]
    seed: int
    token: str = field(default_factory=lambda: secrets.token_hex(3))
    wall_time_ns: int = field(default_factory=time.time_ns)

    def measure(self, attach: Callable[[], Session] | None) -> Measurement:
        """All runs, recorded; no recording is left if nothing was measured. Raises ObserveError if a warm-up fails."""
        args, progress = self.args, _Progress(self.args.runs * len(self.arms))
        with ExitStack() as stack:
            stack.callback(progress.line.clear)
            recordings = stack.enter_context(self._recordings(attach().header())) if attach else None
            runs: list[ClientRun] = []
            try:
                measurement = Measurement(
                    turns=turns_of(self.arms, args.runs, args.concurrency, args.warmup, self.seed),
                    token=self.token,
                    command=args.command or _COMMAND,
                    generator=LoadGenerator(self.url, args.concurrency, self.token),
                    recordings=recordings,
                    attach=attach or _nothing_to_attach,
                    progress=progress.show,
                    runs=runs,
                )
                measurement.measure()
            finally:
                if recordings and not runs:
                    recordings.discard()
            if recordings and runs:
                recordings.end(measurement.ended_early or "all runs done")
        return measurement

    def result(self, measured: Measurement) -> Bench:
        """What is told of it."""
        args = self.args
        return Bench(
            host={
                "hostname": platform.node(),
                "kernel": platform.release(),
                "arch": platform.machine(),
                "cpus": os.cpu_count(),
            },
            engine=self.engine,
            wall_time_ns=self.wall_time_ns,
            planned=args.runs,
            concurrency=args.concurrency,
            warmup=args.warmup,
            seed=self.seed,
            command=measured.command,
            arms=[_arm(arm, self.folder if arm.attached else None) for arm in self.arms],
            runs=measured.runs,
            pairs=[(base.name, new.name) for base, new in pairs_of(self.arms)],
            ended_early=measured.ended_early,
        )

    def _recordings(self, header: Header) -> ArmRecordings:
        return ArmRecordings(self.folder, header, [arm for arm in self.arms if arm.attached], self.token)


def _nothing_to_attach() -> Session:
    raise AssertionError("no arm is observed")


def _arm(arm: Arm, folder: Path | None) -> BenchArm:
    """The arm, with what its recording in `folder` has, if it has one."""
    if folder is None:
        return BenchArm(arm.name, arm.settings())
    path = path_of(folder, arm)
    report = conclude(path)
    well = Counter(run.operation for run in report.runs if run.outcome == "ok")
    recorded = {operation: well[operation] for operation in ("create", "start")}
    return BenchArm(arm.name, arm.settings(), str(path), report.loss, recorded)


def _judge(bench: Bench, *, strict: bool) -> None:
    """Raise what went wrong, the worst first."""
    failures = failed(bench)
    if failures:
        most, _ = failures.most_common(1)[0]
        raise ObserveError(f"{failures.total()} of {len(bench.runs)} runs failed: {most}")
    if strict and any(arm.loss and arm.loss.data_was_lost for arm in bench.arms):
        raise DataLostError("data was lost while recording; observe report says what")


class _Progress:
    """A bar, how much is done, and how long it may still take."""

    def __init__(self, runs: int) -> None:
        """`runs`: how many there will be."""
        self.line = LiveLine()
        self._runs = runs
        self._began = time.monotonic()
        self._due = 0.0

    def show(self, runs: Sequence[ClientRun], share: float) -> None:
        """`share` of all turns is done."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _LIVE_SECONDS
        page, failures = self.line.page, sum(bool(run.failed) for run in runs)
        facts = [f"{share:4.0%}", f"{len(runs)} of {self._runs} runs" if runs else "warming up"]
        if failures:
            facts.append(f"{failures} failed")
        if runs and share:
            facts.append(f"{page.duration((now - self._began) * (1 / share - 1) * 1e9)} left")
        self.line.show(f"{page.bar([(0.0, share)], _BAR_COLUMNS).ljust(_BAR_COLUMNS)} {page.dot.join(facts)}")


def _options(text: str) -> tuple[str, ...]:
    return () if text == "default" else tuple(text.split(","))


def _count(text: str) -> int:
    return _at_least(1, text)


def _count_or_none(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {_MOST}")
    return value


def _word(text: str) -> str:
    """What an arm can be made of: it goes into requests and names. Raises ArgumentTypeError."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"'{printable(text)}' is no name: it is empty, or has letters that do not print"
        )
    return text
