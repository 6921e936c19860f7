# SPDX-License-Identifier: Apache-2.0
"""Which arms there are, and whose turn it is when: balanced, in random order, the same for the same seed. Pure.

A *turn* is `concurrency` runs of one arm at once; a *round* is a turn of every arm, in random order. What disturbs the
host then disturbs all arms alike, and no arm runs beside another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import chain, product
from typing import Any

#: Attaching takes a second: so many rounds are run before arms that are observed and those that are not change over.
ROUNDS_ATTACHED = 5
#: Of every container that a bench makes; its value is the bench's token.
LABEL = "observe.bench"
UNATTACHED = "unattached"

_NAME_LETTERS = 40
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_.]+")


class Attach(StrEnum):
    """Whether the engine is observed meanwhile; `both` is what measures the cost of observing."""

    YES = "yes"
    NO = "no"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to create and start a container."""

    #: Of letters, digits, `_`, `.` and `-` only: it is part of names of files and containers.
    name: str
    image: str
    network: str
    runtime: str | None = None
    security_opt: tuple[str, ...] = ()
    attached: bool = True

    def settings(self) -> dict[str, Any]:
        """All but the name, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "name"}

    def body(self, command: Sequence[str], token: str) -> dict[str, Any]:
        """Body of the create request."""
        host: dict[str, Any] = {"NetworkMode": self.network, "SecurityOpt": list(self.security_opt)}
        if self.runtime is not None:
            host["Runtime"] = self.runtime
        return {
            "Image": self.image,
            "Entrypoint": list(command[:1]),
            "Cmd": list(command[1:]),
            "Labels": {LABEL: token},
            "HostConfig": host,
        }


@dataclass(frozen=True, slots=True)
class Turn:
    """So many runs of one arm at once. A warm-up counts for nothing."""

    number: int
    arm: Arm
    runs: int
    warmup: bool


def arms_of(
    images: Sequence[str],
    networks: Sequence[str],
    runtimes: Sequence[str | None],
    security_opts: Sequence[tuple[str, ...]],
    attach: Attach,
) -> tuple[Arm, ...]:
    """Every combination, in the given order, named by what differs; a name's second owner has `-2` added.

    So a value given twice makes two equal arms, whose differences are chance.
    """
    factors = (images, networks, runtimes, security_opts)
    varied = [position for position, values in enumerate(factors) if len(values) > 1] or [1]
    taken: set[str] = set()
    arms = []
    for combination in product(*factors):
        name = _free("-".join(_word(combination[position]) for position in varied)[:_NAME_LETTERS], taken)
        for attached in (True, False) if attach is Attach.BOTH else (attach is Attach.YES,):
            own = _free(f"{name}-{UNATTACHED}", taken) if attach is Attach.BOTH and not attached else name
            arms.append(Arm(own, *combination, attached=attached))
    return tuple(arms)


def _word(value: str | tuple[str, ...] | None) -> str:
    text = "-".join(value) if isinstance(value, tuple) else value
    return _NOT_IN_NAMES.sub("-", text or "").strip("-.") or "default"


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    taken.add(name)
    return name


def pairs_of(arms: Sequence[Arm]) -> tuple[tuple[Arm, Arm], ...]:
    """What is held against what, (base, new): pairs that differ in one setting, or in none.

    Unattached against attached; then each arm against those that have one setting from the first arm and all else as
    it has itself. Of arms that differ in two things nobody could tell which of them made the difference.
    """
    observed, blind = ([arm for arm in arms if arm.attached is attached] for attached in (True, False))
    cost = zip(blind, observed, strict=True) if observed and blind else ()
    held = observed or blind
    return (*cost, *((base, new) for new in held[1:] for base in _bases(new, held)))


def _bases(new: Arm, arms: Sequence[Arm]) -> Iterator[Arm]:
    """What an arm is held against: with one setting as the first arm has it; the first itself, if it is its equal."""
    first = arms[0]
    owners = {replace(arm, name=""): arm for arm in reversed(arms)}
    changed = [name for name, value in first.settings().items() if getattr(new, name) != value]
    for name in changed:
        yield owners[replace(new, name="", **{name: getattr(first, name)})]
    if not changed:
        yield first


def turns_of(arms: Sequence[Arm], runs: int, concurrency: int, warmup: int, seed: int) -> tuple[Turn, ...]:
    """All turns in order: `warmup` rounds first, then as many as it takes for `runs` runs of each arm."""
    dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
    sizes = [concurrency] * (runs // concurrency) + [runs % concurrency] * (runs % concurrency > 0)
    halves = [half for half in ([arm for arm in arms if arm.attached is yes] for yes in (True, False)) if half]
    block = ROUNDS_ATTACHED if len(halves) > 1 else 1
    warm = _blocks([concurrency] * warmup, max(warmup, 1), halves, dice)
    real = _blocks(sizes, block, halves, dice)
    planned = chain(((arm, size, True) for arm, size in warm), ((arm, size, False) for arm, size in real))
    return tuple(Turn(number, *turn) for number, turn in enumerate(planned))


def _blocks(
    sizes: Sequence[int], block: int, halves: Sequence[Sequence[Arm]], dice: random.Random
) -> Iterator[tuple[Arm, int]]:
    for first in range(0, len(sizes), block):
        for half in dice.sample(halves, len(halves)):
            for size in sizes[first : first + block]:
                for arm in dice.sample(half, len(half)):
                    yield arm, size


# Names of containers --------------------------------------------------------------------------------------


def prefix(token: str) -> str:
    """What the names of all measured containers of a bench begin with."""
    return f"observe-bench-{token}-"


def container_name(token: str, turn: Turn, number: int) -> str:
    """Name of a run's container; `number` counts the runs of a turn."""
    first = f"observe-warmup-{token}-" if turn.warmup else prefix(token)
    return f"{first}{turn.arm.name}-{turn.number}.{number}"


def arm_of_container(token: str, name: str) -> str | None:
    """Name of the arm that a container was made for; None if it is a warm-up's or not of this bench."""
    first = prefix(token)
    return name.removeprefix(first).rpartition("-")[0] if name.startswith(first) else None


def orders(token: str, turn: Turn, command: Sequence[str]) -> list[Mapping[str, Any]]:
    """What the load generator is told to run in this turn."""
    body = turn.arm.body(command, token)
    names = (container_name(token, turn, number) for number in range(turn.runs))
    return [{"turn": turn.number, "name": name, "body": body} for name in names]
