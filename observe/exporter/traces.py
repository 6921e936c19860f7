# SPDX-License-Identifier: Apache-2.0
"""Finished runs as traces to a collector: in batches, and dropped with a count when it is slow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from observe.exporter.sinks import FAILED, Delivery, Sink
from observe.model import Loss, Run
from observe.reports.report import Report

#: Runs that wait for the collector, and that are encoded together.
_WAITING, _BATCH = 1_000, 64
SENT = "sent"


class TraceSink(Sink):
    """Sends every run that an engine was seen to finish."""

    def __init__(
        self, encode: Callable[[Report], Iterable[bytes]], send: Callable[[bytes], int], *, waiting: int = _WAITING
    ) -> None:
        """`encode`: runs in, requests out; `send`: one request to the collector, the number of spans it rejected."""
        super().__init__("traces", (SENT,), waiting=waiting, batch=_BATCH)
        self._encode, self._send = encode, send

    def wants(self, run: Run) -> bool:
        """Every run that has a time; a trace of what was cut off would claim an end."""
        return run.outcome != "unfinished"

    def deliver(self, deliveries: Sequence[Delivery]) -> Mapping[str, int]:
        """Encode and send. Raises ObserveError if the collector cannot be reached: none of them is sent again."""
        runs = tuple(delivery.run for delivery in deliveries)
        header = deliveries[-1].stream.header
        report = Report(header.host, header.engine, Loss(), runs)
        rejected = sum(self._send(request) for request in self._encode(report))
        # Collectors reject by spans, and seldom: a batch that lost some of them has not arrived whole.
        return {FAILED if rejected else SENT: len(runs)}
