# SPDX-License-Identifier: Apache-2.0
"""What does a fleet cost its Prometheus? Series, bytes on disk and memory, measured small and calculated large.

`python bench/fleet.py [--hosts N N] [--exporter URL] [-o docs/fleet.md]`: a real Prometheus scrapes made-up hosts
(tests/workloads/exporter.py) at two sizes; what lies between them is what a host costs. `--exporter`: the /metrics of a
live `observe serve`, to count its series instead of a made-up host's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

import promserver  # noqa: E402
from dashboards.live import Prometheus  # noqa: E402

#: A chunk of Prometheus holds 120 samples: only a full one tells what a sample takes.
CHUNK_SAMPLES = 120
#: Scrapes until the head's memory is looked at.
SCRAPES = 6
SCRAPE_SECONDS = 15
DAY_SECONDS = 86_400
FLEETS = (1, 10, 100, 1_000, 10_000)
KEPT_DAYS = 15


@dataclass(frozen=True, slots=True)
class Head:
    """A Prometheus that has scraped so many hosts for a while."""

    hosts: int
    series: int
    recorded: int
    heap_bytes: int
    resident_bytes: int

    @property
    def total(self) -> int:
        """All series, those that the rules record too."""
        return self.series + self.recorded


def main() -> None:
    """Measure, calculate, write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, nargs=2, default=(20, 100), metavar="N")
    parser.add_argument("--exporter", metavar="URL", help="the /metrics of a live observe serve")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    said = exposition(args.exporter)
    small, large = (head(hosts) for hosts in sorted(args.hosts))
    text = document(Costs(families(said), len(said), small, large, sample_bytes(0), sample_bytes(3)))
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def head(hosts: int) -> Head:
    """Scrape so many hosts some times, with our rules, and look at the server's memory after a collection."""
    with (
        tempfile.TemporaryDirectory(prefix="observe-bench-") as folder,
        promserver.exporters(hosts, operations=0) as port,
        promserver.prometheus(
            Path(folder), promserver.targets(port, hosts), interval="10s", rules=[promserver.rules(Path(folder))]
        ) as server,
    ):
        promserver.wait(lambda: promserver.scraped(server, hosts, SCRAPES), patience_seconds=600)
        series = one(server, 'sum(scrape_samples_scraped{job="observe"})')
        recorded = one(server, 'count({__name__=~"job_instance_.*"}) or vector(0)')
        # The profile with gc=1 collects garbage first.
        fetch(f"{server.url}/debug/pprof/heap?gc=1&debug=1")
        said = fetch(f"{server.url}/metrics")
        return Head(
            hosts,
            int(series),
            int(recorded),
            int(own(said, "go_memstats_heap_alloc_bytes")),
            int(own(said, "process_resident_memory_bytes")),
        )


def sample_bytes(operations: int) -> float:
    """Bytes on disk of a sample in a block of full chunks, index included, at so many operations a scrape."""
    with (
        tempfile.TemporaryDirectory(prefix="observe-bench-") as folder,
        promserver.exporters(1, operations=operations) as port,
        promserver.prometheus(
            Path(folder), promserver.targets(port, 1), interval="1s", flags=["--web.enable-admin-api"]
        ) as server,
    ):
        promserver.wait(lambda: promserver.scraped(server, 1, 2 * CHUNK_SAMPLES), patience_seconds=1_200)
        request = urllib.request.Request(f"{server.url}/api/v1/admin/tsdb/snapshot", method="POST")  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own
            snapshot = Path(folder) / "data" / "snapshots" / json.load(answer)["data"]["name"]
        samples = sum(json.loads(path.read_text())["stats"]["numSamples"] for path in snapshot.glob("*/meta.json"))
        size = sum(path.stat().st_size for path in snapshot.rglob("*") if path.is_file())
        return float(size / samples)


def exposition(url: str | None) -> str:
    """What one exporter says to a scraper."""
    if url:
        return fetch(url)
    with promserver.exporters(1) as port:
        return fetch(f"http://127.0.0.1:{port}/0/metrics")


def fetch(url: str) -> str:
    """What a GET answers."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - http, here
        return str(answer.read().decode())


def families(text: str) -> Counter[str]:
    """Series by family."""
    samples = (line for line in text.splitlines() if line and not line.startswith("#"))
    return Counter(re.sub(r"(_bucket|_sum|_count)?[{ ].*", "", line) for line in samples)


def one(server: Prometheus, expr: str) -> float:
    """The only value of an expression."""
    ((_, value),) = server.instant(expr)[0].samples
    return value


def own(said: str, name: str) -> float:
    """A metric without labels of an exposition."""
    match = re.search(rf"^{name} (\S+)$", said, re.MULTILINE)
    if match is None:
        raise ValueError(f"no {name} in what Prometheus says")
    return float(match[1])


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured."""

    #: Series of one host, by family.
    families: Counter[str]
    scrape_bytes: int
    small: Head
    large: Head
    #: Bytes on disk of a sample.
    idle_bytes: float
    busy_bytes: float

    @property
    def series(self) -> int:
        """Of one host."""
        return sum(self.families.values())

    @property
    def recorded(self) -> float:
        """Series that the rules make of one host."""
        return (self.large.recorded - self.small.recorded) / (self.large.hosts - self.small.hosts)

    def a_series(self, large_bytes: int, small_bytes: int) -> float:
        """What a series adds to a figure of memory."""
        return (large_bytes - small_bytes) / (self.large.total - self.small.total)

    @property
    def heap_bytes(self) -> float:
        """Live heap of a series."""
        return self.a_series(self.large.heap_bytes, self.small.heap_bytes)

    @property
    def resident_bytes(self) -> float:
        """Resident memory of a series."""
        return self.a_series(self.large.resident_bytes, self.small.resident_bytes)


def document(costs: Costs) -> str:
    """The page."""
    parts = (_made(costs), _measured(costs), _calculated(costs), _families(costs), ADVICE.splitlines())
    return "\n".join(line for part in parts for line in part) + "\n"


def _made(costs: Costs) -> Iterator[str]:
    version = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=True)
    name = (version.stdout + version.stderr).split()[2]
    yield "# What a fleet costs its Prometheus"
    yield ""
    command = f"python bench/fleet.py --hosts {costs.small.hosts} {costs.large.hosts} -o docs/fleet.md"
    host = f"Linux {platform.release().partition('-')[0]}, {platform.machine()}, {os.cpu_count()} shared cores"
    yield f"Made by `{command}`: Prometheus {name} (Debian),"
    yield f"{host}, {datetime.now(UTC):%Y-%m-%d}. Measured once at each size, with our recording rules;"
    yield "what is said of more hosts is calculated."
    yield ""


def _measured(costs: Costs) -> Iterator[str]:
    small, large = costs.small, costs.large
    both = f"at {small.hosts} and {large.hosts} hosts"
    rows = {
        "series of one host": f"{costs.series:,}",
        "bytes of one scrape, not compressed": f"{costs.scrape_bytes:,}",
        "series that the rules record for one host": f"{costs.recorded:,.0f}",
        "bytes on disk of a sample: a host that starts nothing": f"{costs.idle_bytes:.2f}",
        "bytes on disk of a sample: 3 creates and starts a scrape": f"{costs.busy_bytes:.2f}",
        f"series in memory {both}": f"{small.total:,} and {large.total:,}",
        f"live heap {both}": f"{_size(small.heap_bytes)} and {_size(large.heap_bytes)}",
        f"resident memory {both}": f"{_size(small.resident_bytes)} and {_size(large.resident_bytes)}",
        "live heap a series (the difference)": f"{costs.heap_bytes:,.0f} bytes",
        "resident memory a series (the difference)": f"{costs.resident_bytes:,.0f} bytes",
    }
    yield from ("## Measured", "", "| | |", "|---|---:|")
    yield from (f"| {name} | {value} |" for name, value in rows.items())
    yield ""
    yield "Bytes of a sample are those of a snapshot's blocks with full chunks, index included; with"
    yield f"{2 * CHUNK_SAMPLES} samples a series, so in blocks of two hours the index weighs less. Memory is that"
    yield f"of a head with {SCRAPES} scrapes of each host; a full chunk of a series ({CHUNK_SAMPLES} samples) adds up"
    yield f"to {CHUNK_SAMPLES * costs.busy_bytes:.0f} bytes. Resident memory depends on when Go collects garbage:"
    yield "by default at twice the live heap. Queries come on top."
    yield ""


def _calculated(costs: Costs) -> Iterator[str]:
    yield from ("## Calculated", "")
    yield f"A scrape each {SCRAPE_SECONDS} s, the rules of `observe.rules.yml`, {KEPT_DAYS} days kept, hosts with 3"
    yield "creates and starts a scrape; memory is twice the live heap, chunks full."
    yield ""
    yield "| hosts | series | samples a second | disk a day | disk | memory |"
    yield "|---:|---:|---:|---:|---:|---:|"
    for hosts in FLEETS:
        total = hosts * (costs.series + costs.recorded)
        rate = hosts * (costs.series / SCRAPE_SECONDS + costs.recorded / 60)
        day = rate * DAY_SECONDS * costs.busy_bytes
        sizes = (
            _size(day),
            _size(KEPT_DAYS * day),
            _size(2 * total * (costs.heap_bytes + CHUNK_SAMPLES * costs.busy_bytes)),
        )
        yield f"| {' | '.join((f'{hosts:,}', f'{total:,.0f}', f'{rate:,.0f}', *sizes))} |"
    yield ""


def _families(costs: Costs) -> Iterator[str]:
    small = sum(count for count in costs.families.values() if count < costs.series / 100)
    yield from ("## Where the series are", "", "| family | series | share |", "|---|---:|---:|")
    for family, count in costs.families.most_common():
        if count >= costs.series / 100:
            yield f"| `{family}` | {count:,} | {count / costs.series:.0%} |"
    yield f"| the others | {small:,} | {small / costs.series:.0%} |"
    yield ""


ADVICE = """\
None of them grows with the number of containers, images or names: labels are bounded.

## What to do when it is too much

- **Scrape less often.** At 60 s a fleet costs a quarter of the samples and of the disk; percentiles stay what they are,
  since histograms lose nothing between two scrapes. Series and memory do not change.
- **Drop what nobody looks at**, on the way in, for instance the fifteen parts of the OCI spec, and what inotify tells:

  ```yaml
  metric_relabel_configs:
    - {source_labels: [__name__, phase], regex: "observe_phase_.*;start\\\\.spec\\\\..*", action: drop}
    - {source_labels: [__name__], regex: "observe_file_events_total", action: drop}
  ```

- **Split the fleet** over several Prometheus servers, by rack or by hash (`hashmod`). Each evaluates
  `observe.rules.yml` for its own hosts; a global one federates only `{__name__=~"job_operation.*"}`, the sums over all
  hosts of a job. Histograms sum, so percentiles of the whole fleet stay right; percentiles are never averaged.
- **The host rules** (`observe-hosts`, `observe-phases`) are what grows with hosts in rule evaluation. Beyond a thousand
  hosts a server, leave `observe-phases` and its alert out, or to servers that have fewer hosts.
"""


def _size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit, least in (("TiB", 2**40), ("GiB", 2**30)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
