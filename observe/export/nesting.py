# SPDX-License-Identifier: Apache-2.0
"""Overlapping intervals become lanes on which they nest; a run's time is cut into that of its innermost phases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

from observe.model import Run, Span

T = TypeVar("T")


class Edge(NamedTuple, Generic[T]):
    """An item begins or ends."""

    time_ns: int
    item: T
    begins: bool


@dataclass(slots=True)
class _Lane(Generic[T]):
    """Edges so far, and what is open: (item, end_ns), the innermost last."""

    edges: list[Edge[T]] = field(default_factory=list)
    open: list[tuple[T, int]] = field(default_factory=list)

    def takes(self, item: T, start_ns: int, end_ns: int) -> bool:
        """Add the item, unless it would cross what is open."""
        self.close(start_ns)
        if self.open and self.open[-1][1] < end_ns:
            return False
        self.edges.append(Edge(start_ns, item, begins=True))
        self.open.append((item, end_ns))
        return True

    def close(self, until_ns: int) -> None:
        """End what is over by then."""
        while self.open and self.open[-1][1] <= until_ns:
            item, end_ns = self.open.pop()
            self.edges.append(Edge(end_ns, item, begins=False))


def lanes(items: Iterable[T], interval: Callable[[T], tuple[int, int]]) -> list[list[Edge[T]]]:
    """The edges of all items, in order of time, on as few lanes as it takes for them to nest on each.

    `interval`: (start_ns, end_ns) of an item. What crosses another item goes to the next lane. Of items with the same
    interval, the first is the outer one; one without length is beside, not inside, what ends or begins there.
    """
    found: list[_Lane[T]] = []
    bounded = [(*interval(item), item) for item in items]
    for start_ns, end_ns, item in sorted(bounded, key=lambda each: (each[0], -each[1])):
        if not any(lane.takes(item, start_ns, end_ns) for lane in found):
            found.append(_Lane())
            found[-1].takes(item, start_ns, end_ns)
    for lane in found:
        lane.close(max(end_ns for _, end_ns in lane.open) if lane.open else 0)
    return [lane.edges for lane in found]


def pieces(span: Span) -> tuple[tuple[int, int], ...]:
    """(start_ns, end_ns) of each piece of a phase; none if it was not seen. Their lengths sum to its duration."""
    if span.start_ns is None or span.duration_ns is None:
        return ()
    parts = span.pieces or ((span.start_ns, span.duration_ns),)
    return tuple((start_ns, start_ns + duration_ns) for start_ns, duration_ns in parts)


def own_time(run: Run) -> list[tuple[int, int, Span]]:
    """The run's time cut at the bounds of its phases: (start_ns, end_ns, innermost phase), in order, without gaps.

    The lengths of a phase's cuts sum to its `self_ns`. The rule is that of `observe.correlate.accounting`: the deeper
    phase counts, of two equally deep ones the one that began later, then the one that stands later in the order.
    """
    bounds = pieces(run.phases[0]) if run.phases else ()
    if not bounds:
        return []
    first_ns, last_ns = bounds[0][0], bounds[-1][1]
    ranked = [
        ((span.id.count("."), start_ns, number), end_ns, span)
        for number, span in enumerate(run.phases)
        for start_ns, end_ns in pieces(span)
    ]
    edges = {edge for (_, start_ns, _), end_ns, _ in ranked for edge in (start_ns, end_ns)}
    cuts = sorted(edge for edge in edges if first_ns <= edge <= last_ns)
    found: list[tuple[int, int, Span]] = []
    for start_ns, end_ns in pairwise(cuts):
        _, _, owner = max(each for each in ranked if each[0][1] <= start_ns < each[1])
        if found and found[-1][2] is owner:
            found[-1] = (found[-1][0], end_ns, owner)
        else:
            found.append((start_ns, end_ns, owner))
    return found
