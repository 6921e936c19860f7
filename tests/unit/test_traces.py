# SPDX-License-Identifier: Apache-2.0
"""Traces of live runs: batched, counted, and no reason to wait for anybody."""

from __future__ import annotations

import threading
from dataclasses import replace

from made import made_run
from streams import header

from observe.errors import ObserveError
from observe.exporter.sinks import Stream
from observe.exporter.traces import TraceSink

STREAM = Stream(header(), ())


def encode(report):
    assert report.host == header().host
    return [b"%d" % len(report.runs)]


def offer(sink, count):
    for seed in range(count):
        sink.offer(made_run(1, seed), STREAM)


def test_what_waits_is_sent_together():
    held, begun, sent = threading.Event(), threading.Event(), []

    def send(request):
        sent.append(int(request))
        begun.set()
        held.wait(60)
        return 0

    sink = TraceSink(encode, send)
    sink.start()
    offer(sink, 1)
    assert begun.wait(60)
    offer(sink, 100)
    held.set()
    sink.close()
    assert sent == [1, 64, 36]
    assert sink.results() == {"sent": 101, "failed": 0, "dropped": 0}


def test_a_slow_collector_costs_traces_and_no_time():
    held, begun = threading.Event(), threading.Event()

    def send(_request):
        begun.set()
        held.wait(60)
        return 0

    sink = TraceSink(encode, send, waiting=5)
    sink.start()
    offer(sink, 1)
    assert begun.wait(60)
    offer(sink, 20)
    assert sink.results()["dropped"] == 15
    held.set()
    sink.close()
    assert sink.results() == {"sent": 6, "failed": 0, "dropped": 15}


def test_what_a_collector_refuses_is_counted_and_said_once(capsys):
    def send(_request):
        raise ObserveError("http://x cannot be reached: refused")

    sink = TraceSink(encode, send)
    sink.start()
    offer(sink, 2)
    sink.close()
    assert sink.results() == {"sent": 0, "failed": 2, "dropped": 0}
    assert capsys.readouterr().err == "observe: traces: http://x cannot be reached: refused\n"


def test_rejected_spans_are_no_delivery():
    sink = TraceSink(encode, lambda _request: 1)
    sink.start()
    offer(sink, 1)
    sink.close()
    assert sink.results() == {"sent": 0, "failed": 1, "dropped": 0}


def test_what_was_cut_off_is_no_trace():
    assert not TraceSink(encode, lambda _request: 0).wants(replace(made_run(1), outcome="unfinished"))
