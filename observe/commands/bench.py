# SPDX-License-Identifier: Apache-2.0
"""`observe bench`: create and start containers in interleaved arms, and tell how long it takes in each."""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from observe.bench.recordings import ArmRecordings, path_of
from observe.collectors.session import Session
from observe.commands._files import write
from observe.commands._session import LiveLine, add_arguments, options
from observe.engine import api, find_engine
from observe.errors import DataLostError, EngineGoneError, ObserveError
from observe.phases import load
from observe.reports import Page, bench_json, bench_markdown, bench_text
from observe.reports.assemble import assemble
from observe.reports.bench_rows import Bench, BenchArm, ClientRun, failed

NAME = "bench"
HELP = "create and start containers in interleaved arms, record each arm, tell percentiles and differences"

FORMATS: Mapping[str, Callable[[Bench, Page], str]] = MappingProxyType(
    {"text": bench_text.render, "json": bench_json.render, "markdown": bench_markdown.render}
)

_RESULT = "bench.json"
_TIMEOUT_SECONDS = 30.0
_BAR_COLUMNS = 24
_FIRST_SIGNAL_CODE = 128


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
    _factor(parser, "--security-opt", "OPTION[,OPTION]", "as of docker run; 'default' is none; default: none")
    parser.add_argument(
        "--attach",
        choices=list(Attach),
        type=Attach,
        default=Attach.YES,
        help="observe the engine meanwhile; both: in every second block, to see what that costs; default: yes",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="of the order of turns; default: a new one")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help=f"for the recordings and {_RESULT}; default: bench-DATE-TIME"
    )
    parser.add_argument("-f", "--format", choices=list(FORMATS), default="text", help="default: text")
    parser.add_argument(
        "--clean", action="store_true", help="only remove the containers that killed benches have left"
    )
    add_arguments(parser)
    parser.add_argument(
        "command", metavar="COMMAND", nargs="*", help="what each container runs, which must end; default: true"
    )


def _factor(parser: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    parser.add_argument(name, metavar=metavar, nargs="+", action="extend", help=text)


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
        args.attach,
    )
    session = _session(args, arms)
    engine = _ask(target, arms)
    if session:
        engine = session().engine.facts()
    folder: Path = args.output or Path(f"bench-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    _make(folder)
    plan = _Plan(args, target.url, arms, folder, engine)
    bench, error, code = plan.run(session)
    _finish(bench, folder, FORMATS[args.format])
    if error:
        raise error
    if args.strict and any(arm.loss and arm.loss.data_was_lost for arm in bench.arms):
        raise DataLostError("data was lost while recording; observe report says what")
    return code


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
            answer = connection.exchange("GET", f"/images/{quote(image)}/json")
            if answer.status != 200:
                raise ObserveError(f"image {image}: {answer.message}; docker pull it, or name another with --image")
        left = len(containers(connection))
    if left:
        print(
            f"observe: {left} containers of another bench are there; if it does not run any more, "
            "observe bench --clean removes them",
            file=sys.stderr,
        )
    return {"version": version.get("Version", ""), "go_version": version.get("GoVersion", "")}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObserveError(f"{folder}: cannot be made: {error.strerror}; name another directory with -o") from error


@dataclass(slots=True)
class _Plan:
    """Everything that is known before the first run."""

    args: argparse.Namespace
    url: str
    arms: Sequence[Arm]
    folder: Path
    engine: Mapping[str, Any]
    token: str = field(default_factory=lambda: secrets.token_hex(3))
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.seed = secrets.randbelow(1_000_000) if self.args.seed is None else self.args.seed

    def run(self, attach: Callable[[], Session] | None) -> tuple[Bench, ObserveError | None, int]:
        """The result, what has to be said at the end, and the exit code if that is nothing."""
        args, observed = self.args, [arm for arm in self.arms if arm.attached]
        began_ns = time.time_ns()
        error: ObserveError | None = None
        ended_early: str | None = None
        live = _Progress()
        with ExitStack() as stack:
            recordings = None
            if attach:
                header = attach().header()
                recordings = stack.enter_context(ArmRecordings(self.folder, header, observed, self.token))
            measurement = Measurement(
                turns=turns_of(self.arms, args.runs, args.concurrency, args.warmup, self.seed),
                token=self.token,
                command=args.command or ["true"],
                generator=LoadGenerator(self.url, args.concurrency, self.token),
                recordings=recordings,
                attach=attach or _nothing_to_attach,
                progress=live.show,
            )
            try:
                measurement.measure()
            except EngineGoneError as gone:
                ended_early = str(gone)
                error = EngineGoneError(f"{gone}; what was measured until then is in {self.folder}")
            finally:
                live.line.clear()
            if measurement.stopped_by:
                ended_early = f"stopped by {measurement.stopped_by.name}"
            if recordings:
                recordings.end(ended_early or "all runs done")
        bench = Bench(
            host={
                "hostname": platform.node(),
                "kernel": platform.release(),
                "arch": platform.machine(),
                "cpus": os.cpu_count(),
            },
            engine=self.engine,
            wall_time_ns=began_ns,
            planned=args.runs,
            concurrency=args.concurrency,
            warmup=args.warmup,
            seed=self.seed,
            command=measurement.command,
            arms=[_arm(arm, self.folder, recordings) for arm in self.arms],
            runs=measurement.runs,
            pairs=[(base.name, new.name) for base, new in pairs_of(self.arms)],
            ended_early=ended_early,
        )
        failures = failed(bench)
        if not error and failures:
            total, (text, _) = sum(failures.values()), failures.most_common(1)[0]
            error = ObserveError(f"{total} of {len(bench.runs)} runs failed: {text}")
        if measurement.stopped_by:
            return bench, None, _FIRST_SIGNAL_CODE + measurement.stopped_by
        return bench, error, 0


def _nothing_to_attach() -> Session:
    raise AssertionError("no arm is observed")


def _arm(arm: Arm, folder: Path, recordings: ArmRecordings | None) -> BenchArm:
    """The arm, with what its recording has."""
    if not arm.attached or recordings is None:
        return BenchArm(arm.name, arm.settings())
    path = path_of(folder, arm)
    report, _ = assemble(path, load())
    well = Counter(run.operation for run in report.runs if run.outcome == "ok")
    recorded = {operation: well[operation] for operation in ("create", "start")}
    return BenchArm(arm.name, arm.settings(), str(path), report.loss, recorded)


def _finish(bench: Bench, folder: Path, render: Callable[[Bench, Page], str]) -> None:
    """Save the result for programs, and tell it."""
    write(folder / _RESULT, bench_json.render(bench, Page()))
    write(None, render(bench, Page.of(sys.stdout)))


class _Progress:
    """A bar, how much is done, and how long it may still take."""

    def __init__(self) -> None:
        self.line = LiveLine()
        self._began = time.monotonic()

    def show(self, runs: Sequence[ClientRun], share: float) -> None:
        """`share` of all turns is done."""
        page = self.line.page
        elapsed = time.monotonic() - self._began
        facts = [f"{len(runs)} runs", *([f"{count} failed"] if (count := sum(bool(run.failed) for run in runs)) else [])]
        if share:
            facts.append(f"{page.duration(elapsed * (1 / share - 1) * 1e9)} left")
        bar = page.bar([(0.0, share)], _BAR_COLUMNS).ljust(_BAR_COLUMNS)
        self.line.show(f"{bar} {share:4.0%}{page.dot}{page.dot.join(facts)}")


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
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {least} or more")
    return value
