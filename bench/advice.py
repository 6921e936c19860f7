# SPDX-License-Identifier: Apache-2.0
"""What is known to help, tried: how much shorter a create and a start are with each remedy that can be tried here.

`python bench/advice.py [runs] [-o docs/advice.md]`, as root and on an idle machine. Every arm's engine runs all the
time, and nothing is attached; turns of all arms follow each other in random order, a new one each round, so that what
disturbs the machine disturbs all arms alike. One arm changes nothing: what chance does.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from _engine import IMAGE, private_engine, scratch

from observe.bench.generator import LoadGenerator
from observe.bench.plan import Arm, Turn, orders, turns_of
from observe.engine import api
from observe.errors import ObserveError
from observe.reports import Page
from observe.reports.bench_rows import Bench, BenchArm, ClientRun, DifferenceRow, difference_rows

COMMAND, SEED, TOKEN = ("true",), 1, "advice"
#: How long a run is waited for, and the pause after it: what an engine still does then is not seen in the next arm.
TIMEOUT_SECONDS, POLL_SECONDS, PAUSE_SECONDS = 60.0, 0.01, 0.1
PLAIN, TMPFS = "plain", "tmpfs"


@dataclass(frozen=True, slots=True)
class Remedy:
    """One arm: what is changed, on which engine, and what speaks against it."""

    text: str
    risk: str
    engine: str = PLAIN
    network: str = "bridge"
    security_opt: tuple[str, ...] = ()


#: Engine → the environment of its dockerd.
ENGINES: Mapping[str, Mapping[str, str]] = {
    PLAIN: {},
    "gogc": {"GOGC": "800"},
    "gomaxprocs": {"GOMAXPROCS": "4"},
    TMPFS: {},
}
BASE = "base"
REMEDIES: Mapping[str, Remedy] = {
    "again": Remedy("nothing, again", "none: this is what chance does"),
    "gogc": Remedy("`GOGC=800` in dockerd's environment", "its heap grows to several times its size", engine="gogc"),
    "gomaxprocs": Remedy("`GOMAXPROCS=4` in dockerd's environment", "none known", engine="gomaxprocs"),
    "host": Remedy("the host's network instead of a bridge", "isolates nothing, ports collide", network="host"),
    "none": Remedy("no network instead of a bridge", "the container reaches nobody", network="none"),
    "unconfined": Remedy(
        "seccomp unconfined",
        "takes a layer of protection away: for diagnosis only",
        security_opt=("seccomp=unconfined",),
    ),
    TMPFS: Remedy("a data root on a tmpfs", "everything is gone after a crash or a reboot", engine=TMPFS),
}


def main() -> None:
    """Measure, write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=int, nargs="?", default=100, help="of each arm")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    text = document(measure(args.runs))
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def measure(runs: int) -> Bench:
    """So many runs of each arm, one after the other. Raises ObserveError if one of them fails."""
    base = Remedy("as installed", "")
    arms = {BASE: base, **REMEDIES}
    planned = [Arm(name, IMAGE, one.network, None, one.security_opt, attached=False) for name, one in arms.items()]
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(engine(name, environment)) for name, environment in ENGINES.items()}
        clients = {
            name: stack.enter_context(LoadGenerator(f"unix://{socket}", 1, TOKEN)) for name, socket in sockets.items()
        }
        with api.connect(api.address(f"unix://{sockets[PLAIN]}"), TIMEOUT_SECONDS) as connection:
            version = connection.get("/version")
        done = [
            run
            for turn in turns_of(planned, runs, 1, 2, SEED)
            for run in results(clients[arms[turn.arm.name].engine], turn)
            if not turn.warmup
        ]
    return Bench(
        host={"kernel": platform.release(), "arch": platform.machine(), "cpus": os.cpu_count()},
        engine={"version": version.get("Version"), "go_version": version.get("GoVersion")},
        wall_time_ns=time.time_ns(),
        planned=runs,
        concurrency=1,
        warmup=2,
        seed=SEED,
        command=COMMAND,
        arms=[BenchArm(arm.name, arm.settings()) for arm in planned],
        runs=done,
        pairs=[(BASE, name) for name in REMEDIES],
    )


@contextmanager
def engine(name: str, environment: Mapping[str, str]) -> Iterator[str]:
    """A private engine; its socket. Its data root is on a tmpfs if that is its name."""
    with scratch() as folder, ExitStack() as stack:
        if name == TMPFS:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
            stack.callback(subprocess.run, ["umount", folder], check=True)
        yield stack.enter_context(private_engine(folder, environment=environment))


def results(generator: LoadGenerator, turn: Turn) -> list[ClientRun]:
    """Run a turn. Raises ObserveError if a run fails, or does not end."""
    generator.begin(orders(TOKEN, turn, COMMAND))
    deadline = time.monotonic() + TIMEOUT_SECONDS
    found: list[ClientRun] = []
    while len(found) < turn.runs:
        if time.monotonic() > deadline:
            raise ObserveError(f"{turn.arm.name}: no answer within {TIMEOUT_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
        for result in generator.take():
            if result["failed"]:
                raise ObserveError(f"{turn.arm.name}: {result['failed']}")
            found.append(ClientRun(turn.arm.name, turn.number, None, result["durations_ns"]))
    time.sleep(PAUSE_SECONDS)
    return found


def document(bench: Bench) -> str:
    """The page."""
    rows: dict[str, dict[str, DifferenceRow]] = {}
    for row in difference_rows(bench):
        rows.setdefault(row.new, {})[row.measure] = row
    whole = rows["again"]["start"].base_ns, rows["again"]["create"].base_ns
    page = Page()
    facts = (
        f"dockerd {bench.engine['version']} ({bench.engine['go_version']}), Linux {bench.host['kernel']}, "
        f"{bench.host['arch']}, {bench.host['cpus']} CPUs, {datetime.now(UTC):%Y-%m-%d}, n = {bench.planned} runs of "
        f"each arm, one at a time, interleaved"
    )
    told = (
        f"Of the base (bridge network, as installed) a create takes {page.duration(whole[1])} and a start "
        f"{page.duration(whole[0])}, as its client sees them (medians). A saving is the difference of medians with its "
        "bootstrapped 95% interval; **bold** where the interval leaves 0 out. Nothing of this is ever done by observe."
    )
    lines = [
        "# What helps, and how much",
        "",
        f"Made by `python bench/advice.py {bench.planned} -o docs/advice.md`: {facts}.",
        "",
        told,
        "",
        "| remedy | saved of a start, ms | 95% interval | of a create, ms | 95% interval | what speaks against it |",
        "|---|---:|---|---:|---|---|",
        *(line(REMEDIES[name], measures) for name, measures in by_saving(rows)),
    ]
    return "\n".join(lines) + "\n"


def by_saving(rows: Mapping[str, Mapping[str, DifferenceRow]]) -> Sequence[tuple[str, Mapping[str, DifferenceRow]]]:
    """The arms, the largest saving of a start first."""
    return sorted(rows.items(), key=lambda item: item[1]["start"].difference_ns)


def line(remedy: Remedy, measures: Mapping[str, DifferenceRow]) -> str:
    """A row of the table."""
    cells = [remedy.text]
    for measure in ("start", "create"):
        row = measures[measure]
        mark = "**" if row.is_clear else ""
        cells.append(f"{mark}{-row.difference_ns / 1e6:.1f}{mark}")
        low, high = row.interval_ns or (None, None)
        cells.append("-" if low is None or high is None else f"{-high / 1e6:.1f} … {-low / 1e6:.1f}")
    return f"| {' | '.join([*cells, remedy.risk])} |"


if __name__ == "__main__":
    main()
