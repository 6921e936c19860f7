# SPDX-License-Identifier: Apache-2.0
"""A snapshot as the text that Prometheus scrapes: prometheus-client's, at a tenth of its time.

Of the 2,500 lines only the numbers change. So prometheus-client writes each line once, and what it wrote in front of
the number is used again; so is the text of a histogram until something is counted in it. Tests hold the result equal
to what prometheus-client writes of the same snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from observe.exporter.families import Histograms, histograms, number, scalars
from observe.exporter.histogram import Exemplar, FrozenHistogram
from observe.exporter.snapshot import Snapshot
from observe.exporter.tally import Labels

_OPENMETRICS = "application/openmetrics-text"
_END = "# EOF\n"
#: Lines of a histogram: its count and its sum.
_BESIDES_BUCKETS = 2

Encoder = Callable[[Collector], bytes]


@dataclass(frozen=True, slots=True)
class SnapshotCollector(Collector):
    """A snapshot as prometheus-client's registries take it."""

    snapshot: Snapshot

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for family in histograms(self.snapshot):
            yield family.metric()
        yield from scalars(self.snapshot)


def is_openmetrics(accept: str) -> bool:
    """Which of the two formats a scraper gets that sends this Accept header."""
    return _OPENMETRICS in accept


class Exposition:
    """Writes snapshots, for several threads."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._formats = {True: _Format(f"{_OPENMETRICS}; version=1.0.0"), False: _Format("")}
        self._process = ProcessCollector(registry=None)

    def write(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        """The text, and its content type: OpenMetrics if the scraper's Accept header has it, else Prometheus's own."""
        chosen = self._formats[is_openmetrics(accept)]
        parts = [chosen.histograms(family) for family in histograms(snapshot)]
        parts += [chosen.scalars(family) for family in scalars(snapshot)]
        parts += [chosen.scalars(family) for family in self._process.collect()]
        return "".join((*parts, chosen.end)).encode(), chosen.content_type


@dataclass(frozen=True, slots=True)
class _Heads:
    """What stands above a family, and in front of each of its numbers; good for these rows."""

    rows: object
    comments: str
    lines: tuple[str, ...]


class _Format:
    """One of prometheus-client's formats, with what it has written already: as much as there are series."""

    def __init__(self, accept: str) -> None:
        self._encode, self.content_type = choose_encoder(accept)
        self.end = _END if accept else ""
        self._known: dict[str, _Heads] = {}
        #: Family and labels → the histogram that was written last, and its text.
        self._texts: dict[tuple[str, Labels], tuple[FrozenHistogram, str]] = {}

    def histograms(self, family: Histograms) -> str:
        known = self._heads(family.name, tuple(family.rows), lambda: _bare(family).metric())
        parts = [known.comments]
        start = 0
        for labels, histogram in family.rows.items():
            end = start + len(histogram.cumulative) + _BESIDES_BUCKETS
            parts.append(self._histogram((family.name, labels), histogram, known.lines[start:end]))
            start = end
        return "".join(parts)

    def _histogram(self, key: tuple[str, Labels], histogram: FrozenHistogram, heads: Sequence[str]) -> str:
        known = self._texts.get(key)
        if known is not None and known[0] is histogram:
            return known[1]
        text = "".join(_lines(heads, histogram, exemplars=bool(self.end)))
        self._texts[key] = histogram, text
        return text

    def scalars(self, family: Metric) -> str:
        rows = [(sample.name, *sample.labels.values()) for sample in family.samples]
        known = self._heads(family.name, rows, lambda: family)
        values = (number(sample.value) for sample in family.samples)
        return known.comments + "".join(f"{head} {value}\n" for head, value in zip(known.lines, values, strict=True))

    def _heads(self, name: str, rows: object, metric: Callable[[], Metric]) -> _Heads:
        known = self._known.get(name)
        if known is None or known.rows != rows:
            lines = self._encode(_Given([metric()])).decode().removesuffix(_END).splitlines()
            comments = "".join(f"{line}\n" for line in lines if line.startswith("#"))
            heads = tuple(line.rpartition(" ")[0] for line in lines if not line.startswith("#"))
            known = self._known[name] = _Heads(rows, comments, heads)
        return known


@dataclass(frozen=True, slots=True)
class _Given(Collector):
    """Families that are there already."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _bare(family: Histograms) -> Histograms:
    """The family without exemplars, which would stand behind the numbers."""
    return replace(
        family,
        rows={
            labels: replace(histogram, exemplars=(None,) * len(histogram.exemplars))
            for labels, histogram in family.rows.items()
        },
    )


def _lines(heads: Sequence[str], histogram: FrozenHistogram, *, exemplars: bool) -> Iterator[str]:
    """Buckets, count, sum: the order in which prometheus-client has them."""
    *buckets, count_head, sum_head = heads
    for head, count, exemplar in zip(buckets, histogram.cumulative, histogram.exemplars, strict=True):
        yield f"{head} {count}.0{_exemplar(exemplar) if exemplar and exemplars else ''}\n"
    yield f"{count_head} {histogram.count}.0\n"
    yield f"{sum_head} {number(histogram.sum_seconds)}\n"


def _exemplar(exemplar: Exemplar) -> str:
    # An id has hexadecimal digits only.
    value = number(exemplar.seconds)
    return f' # {{container_id="{exemplar.container_id}"}} {value} {exemplar.wall_seconds}'
