# SPDX-License-Identifier: Apache-2.0
"""The steps of a critical path become causes in plain words: those that the catalogue knows, and all others by name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from observe.model import Cause, PathStep
from observe.phases.causes import CauseRule, Causes

#: So many names are listed in a text.
_NAMES = 3
#: moby writes a new file beside the old one and renames it (pkg/ioutils.AtomicWriteFile).
_ATOMIC = re.compile(r"\.tmp-(.+?)\d*")


def causes_of(path: Sequence[PathStep], catalogue: Causes, engine_version: str) -> tuple[Cause, ...]:
    """Every step belongs to exactly one cause; the largest first."""
    rules = [rule for rule in catalogue.causes if rule.applies_to(engine_version)]
    known: defaultdict[CauseRule, list[int]] = defaultdict(list)
    unknown: defaultdict[str, list[int]] = defaultdict(list)
    for number, step in enumerate(path):
        rule = next((rule for rule in rules if rule.fits(step)), None)
        if rule is not None:
            known[rule].append(number)
        else:
            unknown[_id(step)].append(number)
    found = [
        Cause(rule.id, _filled(rule.text, [path[n] for n in numbers]), _sum(path, numbers), rule.remedy, tuple(numbers))
        for rule, numbers in known.items()
    ]
    found += [
        Cause(name, _words([path[n] for n in numbers], catalogue), _sum(path, numbers), None, tuple(numbers))
        for name, numbers in unknown.items()
    ]
    return tuple(sorted(found, key=lambda cause: -cause.duration_ns))


def _sum(path: Sequence[PathStep], numbers: Iterable[int]) -> int:
    return sum(path[number].duration_ns for number in numbers)


def _id(step: PathStep) -> str:
    """What tells causes apart that nobody wrote down."""
    parts = (step.state, step.reason, step.call, file_name(step.file), step.program)
    return ".".join(part.replace(" ", "_") for part in parts if part)


def _words(steps: Sequence[PathStep], catalogue: Causes) -> str:
    step = steps[0]
    program = step.program or "a process that began before"
    if step.state == "cpu":
        return f"{program} ran on a CPU"
    count = _count(steps)
    call = step.call or "a sleep outside of system calls"
    of = f" of {file_name(step.file)}" if step.file else ""
    times = f" ({count} times)" if count > 1 else ""
    return f"{program}: {call}{of} waited for {catalogue.title(step.reason)}{times}"


def _filled(text: str, steps: Sequence[PathStep]) -> str:
    count = _count(steps)
    return text.format(
        count=count,
        sleeps="1 sleep" if count == 1 else f"{count} sleeps",
        processes=len({step.pid for step in steps}),
        programs=_list(step.program for step in steps),
        files=_list(file_name(step.file) for step in steps),
        phases=_list(step.phase for step in steps),
    )


def _count(steps: Iterable[PathStep]) -> int:
    """How many calls they were, or, where the call itself was not recorded, sleeps."""
    return len({(step.tid, step.call_ns or step.start_ns) for step in steps})


def _list(names: Iterable[str]) -> str:
    """The most frequent names, as text."""
    counts = Counter(name for name in names if name)
    listed = [name for name, _ in counts.most_common(_NAMES)]
    more = len(counts) - len(listed)
    if more:
        return f"{', '.join(listed)} and {more} more"
    return " and ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))


def file_name(path: str) -> str:
    """What people call a file: its last name, and of one that replaces another, the other's."""
    name = path.rstrip("/").rpartition("/")[2]
    match = _ATOMIC.fullmatch(name)
    return match[1] if match else name
