# SPDX-License-Identifier: Apache-2.0
"""What remedies save: each one's create and start beside those of an engine that was left as it is.

`python bench/advice.py [rounds] [-o docs/advice.md]`, as root, on an idle machine. Some remedies are settings of the
container, others of the daemon: for those, engines of their own run side by side. In each round every arm has its turn,
in random order: a few runs of `observe bench`, unobserved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
from _engine import IMAGE, private_engine, scratch

from observe.reports.inference import CONFIDENCE, Sample, resampled_percentiles

#: Of an arm in each round.
RUNS = 5
LINE_COLUMNS = 120
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Remedy:
    """What is tried; `risk`: what it costs elsewhere, with its source."""

    name: str
    risk: str
    #: Environment of a daemon of its own; None: the untouched one runs it.
    environment: Mapping[str, str] | None = None
    in_memory: bool = False
    options: tuple[str, ...] = ()


BASE = Remedy("left as it is (bridge)", "")
REMEDIES = (
    Remedy("nothing: a second engine like the first", "shows what chance does", NOTHING),
    Remedy(
        "`GOGC=800` for dockerd and what it starts",
        "a heap of up to nine times what lives (Go's GC guide); containerd, shims and runc inherit it",
        {"GOGC": "800"},
    ),
    Remedy("`GOMAXPROCS=1`", "one core for all requests of the daemon (Go, package runtime)", {"GOMAXPROCS": "1"}),
    Remedy("`GOMAXPROCS=4`", "more threads than this machine has cores", {"GOMAXPROCS": "4"}),
    Remedy("data root on a tmpfs", "everything is lost at a restart, and takes memory", NOTHING, in_memory=True),
    Remedy("`--network host`", "no isolation of the network; ports collide", options=("--network", "host")),
    Remedy("`--network none`", "no network", options=("--network", "none")),
    Remedy(
        "`--security-opt seccomp=unconfined`",
        "for diagnosis only: all system calls are allowed (Docker's seccomp page)",
        options=("--security-opt", "seccomp=unconfined"),
    ),
)


@dataclass(slots=True)
class Times:
    """Of one arm's runs: seconds by operation, and the round of each."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"create": [], "start": [], "both": []})
    rounds: list[int] = field(default_factory=list)

    def add(self, durations_ns: Mapping[str, int], number: int) -> None:
        """One more run."""
        create, start = durations_ns["create"] / 1e9, durations_ns["start"] / 1e9
        for name, value in (("create", create), ("start", start), ("both", create + start)):
            self.seconds[name].append(value)
        self.rounds.append(number)

    def median_ms(self, name: str) -> float:
        """Of an operation."""
        return float(np.median(self.seconds[name])) * 1e3

    def resampled_ms(self, seed: int) -> Sample:
        """The median of create and start together, of each resample of whole rounds."""
        clusters = np.array(self.rounds, dtype=np.intp)
        medians: Sample = resampled_percentiles(np.array(self.seconds["both"]), clusters, (0.5,), seed)[:, 0] * 1e3
        return medians


def main() -> None:
    """Measure, write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int, nargs="?", default=20)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    dice = random.Random(1)  # noqa: S311 - repeatable on purpose
    arms = (BASE, *REMEDIES)
    times = {arm.name: Times() for arm in arms}
    with scratch() as folder, ExitStack() as engines:
        stock = engines.enter_context(engine(folder / "stock", BASE))
        sockets = {
            arm.name: stock
            if arm.environment is None
            else engines.enter_context(engine(folder / f"engine-{number}", arm))
            for number, arm in enumerate(arms)
        }
        for number in range(args.rounds):
            for arm in dice.sample(arms, len(arms)):
                for durations_ns in turn(sockets[arm.name], arm, folder / "out"):
                    times[arm.name].add(durations_ns, number)
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    text = document(times, args.rounds)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


@contextmanager
def engine(folder: Path, arm: Remedy) -> Iterator[str]:
    """A daemon with an arm's environment, on a disk or in memory; its socket."""
    folder.mkdir()
    kept = dict(os.environ)
    with ExitStack() as stack:
        if arm.in_memory:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
            stack.callback(subprocess.run, ["umount", folder], check=True)
        os.environ.update(arm.environment or NOTHING)
        try:
            socket = stack.enter_context(private_engine(folder))
        finally:
            os.environ.clear()
            os.environ.update(kept)
        yield socket


def turn(socket: str, arm: Remedy, out: Path) -> list[Mapping[str, int]]:
    """Some runs of an arm: ns by operation of each. Raises CalledProcessError if one fails."""
    command = [sys.executable, "-m", "observe", "bench", "--docker-host", f"unix://{socket}", "-f", "json"]
    options = ["--attach", "no", "--image", IMAGE, "--runs", str(RUNS), "-o", str(out), *arm.options]
    done = subprocess.run([*command, *options], check=True, capture_output=True)
    return [run["durations_ns"] for run in json.loads(done.stdout)["runs"]]


def document(times: Mapping[str, Times], rounds: int) -> str:
    """The page."""
    uname = platform.uname()
    how = (
        f"Made by `python bench/advice.py {rounds} -o docs/advice.md`: Linux {uname.release}, {uname.machine}, "
        f"{os.cpu_count()} CPUs, {datetime.now(UTC):%Y-%m-%d}; n = {rounds * RUNS} of each arm, in {rounds} rounds of "
        "random order. Medians, as the client saw them; the saving is of create and start together, with its "
        f"{CONFIDENCE:.0%} bootstrap interval (whole rounds are drawn). A saving whose interval has 0 in it was not "
        "shown. Another machine, image or engine has other numbers: run it there. observe itself applies none of it."
    )
    lines = [
        "# Which remedies help",
        "",
        *textwrap.wrap(how, LINE_COLUMNS),
        "",
        "| remedy | create | start | saving | of create and start | shown | what it costs |",
        "|---|---:|---:|---:|---:|---|---|",
        *_rows(times),
        "",
    ]
    return "\n".join(lines)


def _rows(times: Mapping[str, Times]) -> Iterator[str]:
    base = times[BASE.name]
    yield _row(BASE, base, "", "", "")
    for seed, remedy in enumerate(REMEDIES, start=1):
        arm = times[remedy.name]
        saved_ms = base.median_ms("both") - arm.median_ms("both")
        low, high = _interval(base.resampled_ms(0) - arm.resampled_ms(seed))
        shown = "saves" if low > 0 else "costs" if high < 0 else "no"
        saving = f"{saved_ms:+.1f} ms [{low:+.1f}, {high:+.1f}]"
        yield _row(remedy, arm, saving, f"{saved_ms / base.median_ms('both'):+.0%}", shown)


def _interval(differences_ms: Sample) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences_ms, (tail, 1 - tail))
    return float(low), float(high)


def _row(remedy: Remedy, times: Times, saving: str, share: str, shown: str) -> str:
    medians = [f"{times.median_ms(name):.1f} ms" for name in ("create", "start")]
    return f"| {' | '.join([remedy.name, *medians, saving, share, shown, remedy.risk])} |"


if __name__ == "__main__":
    main()
