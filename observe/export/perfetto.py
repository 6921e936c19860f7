# SPDX-License-Identifier: Apache-2.0
"""A Perfetto trace: native track events (https://perfetto.dev/docs/reference/synthetic-track-event).

Written with the official definitions of PyPI's `perfetto`: their import takes a tenth of a second, and an encoder of
our own would have to be kept equal to them. Times are those of the boot clock; a snapshot of the clocks beside each
run tells its wall time. Slices on a track nest; what crosses another slice stands on a further track of the same name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    BUILTIN_CLOCK_BOOTTIME,
    BUILTIN_CLOCK_REALTIME,
    DebugAnnotation,
    Trace,
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)

from observe.export import Recorded
from observe.export.nesting import lanes
from observe.export.timeline import Slice, Track, Value, timeline

#: All packets are of one sequence.
_SEQUENCE = 1


def encode(recorded: Recorded) -> bytes:
    """The trace of all runs; `recorded.runs` should bring their events along. The same runs give the same bytes."""
    # Messages of one type, joined, are one message that has the packets of all of them.
    return b"".join(Trace(packet=[packet]).SerializeToString(deterministic=True) for packet in _packets(recorded))


def _packets(recorded: Recorded) -> Iterator[TracePacket]:
    machine = {"release": str(recorded.host.get("kernel", "")), "machine": str(recorded.host.get("arch", ""))}
    yield TracePacket(
        trusted_packet_sequence_id=_SEQUENCE,
        sequence_flags=TracePacket.SEQ_INCREMENTAL_STATE_CLEARED,
        first_packet_on_sequence=True,
        trace_packet_defaults={"timestamp_clock_id": BUILTIN_CLOCK_BOOTTIME},
        system_info={"utsname": {"sysname": "Linux", **machine}},
    )
    for run in recorded.runs:
        if run.wall_time_ns > 0:
            yield _clocks(run.start_ns, run.wall_time_ns)
    ranks: dict[str | None, int] = {}
    for track in timeline(recorded):
        rank = ranks[track.parent] = ranks.get(track.parent, -1) + 1
        yield from _on_lanes(track, rank)


def _clocks(boot_time_ns: int, wall_time_ns: int) -> TracePacket:
    return TracePacket(
        trusted_packet_sequence_id=_SEQUENCE,
        timestamp=boot_time_ns,
        timestamp_clock_id=BUILTIN_CLOCK_BOOTTIME,
        clock_snapshot={
            "primary_trace_clock": BUILTIN_CLOCK_BOOTTIME,
            "clocks": [
                {"clock_id": BUILTIN_CLOCK_BOOTTIME, "timestamp": boot_time_ns},
                {"clock_id": BUILTIN_CLOCK_REALTIME, "timestamp": wall_time_ns},
            ],
        },
    )


def _on_lanes(track: Track, rank: int) -> Iterator[TracePacket]:
    """The track and its slices, in the order in which they nest; a lane that is needed beside it is one of its own."""
    yield _descriptor(track, rank)
    for slice_ in track.slices:
        if slice_.duration_ns is None:
            yield _event(_uuid(track.key), slice_.start_ns, TrackEvent.TYPE_INSTANT, slice_)
    timed = [slice_ for slice_ in track.slices if slice_.duration_ns is not None]
    for number, lane in enumerate(lanes(timed, lambda slice_: slice_.interval)):
        uuid = _uuid(track.key)
        if number:
            beside = Track(f"{track.key}/{number}", track.name, parent=track.parent)
            uuid = _uuid(beside.key)
            yield _descriptor(beside, rank, merge_key=track.key)
        for time_ns, slice_, begins in lane:
            kind = TrackEvent.TYPE_SLICE_BEGIN if begins else TrackEvent.TYPE_SLICE_END
            yield _event(uuid, time_ns, kind, slice_ if begins else None)


def _descriptor(track: Track, rank: int, merge_key: str = "") -> TracePacket:
    descriptor = TrackDescriptor(
        uuid=_uuid(track.key),
        name=track.name,
        sibling_order_rank=rank,
        child_ordering=TrackDescriptor.EXPLICIT,
        # The lanes of a track are drawn as one; tracks that are only called the same are not.
        sibling_merge_behavior=TrackDescriptor.SIBLING_MERGE_BEHAVIOR_BY_SIBLING_MERGE_KEY,
        sibling_merge_key=merge_key or track.key,
    )
    if track.parent is not None:
        descriptor.parent_uuid = _uuid(track.parent)
    if track.tid is not None:
        descriptor.thread.pid, descriptor.thread.tid, descriptor.thread.thread_name = track.pid, track.tid, track.name
    elif track.pid is not None:
        descriptor.process.pid, descriptor.process.process_name = track.pid, track.name
        descriptor.process.cmdline.extend(track.arguments)
    return TracePacket(trusted_packet_sequence_id=_SEQUENCE, track_descriptor=descriptor)


def _event(uuid: int, time_ns: int, kind: TrackEvent.Type, slice_: Slice | None) -> TracePacket:
    event = TrackEvent(type=kind, track_uuid=uuid)
    if slice_ is not None:
        event.name = slice_.name
        event.categories.append(slice_.category)
        event.debug_annotations.extend(_annotation(name, value) for name, value in slice_.details.items())
    return TracePacket(trusted_packet_sequence_id=_SEQUENCE, timestamp=time_ns, track_event=event)


def _annotation(name: str, value: Value) -> DebugAnnotation:
    if isinstance(value, bool):
        return DebugAnnotation(name=name, bool_value=value)
    if isinstance(value, int):
        return DebugAnnotation(name=name, int_value=value)
    if isinstance(value, str):
        return DebugAnnotation(name=name, string_value=value)
    if isinstance(value, Mapping):
        return DebugAnnotation(name=name, dict_entries=[_annotation(key, item) for key, item in value.items()])
    return DebugAnnotation(name=name, array_values=[DebugAnnotation(string_value=text) for text in value])


def _uuid(key: str) -> int:
    """The number of a track: the same for the same recording, never 0."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") or 1
