# SPDX-License-Identifier: Apache-2.0
"""Read a Go binary over and over, damaged: fuzz_gobinary.py FILE START END ROUNDS.

Flips bits, overwrites words with numbers that lie, and cuts, between START and END. Prints how many copies were
read and how many refused; anything else that is raised, memory over 1 GiB or 4 minutes of CPU end it with an error.
"""

from __future__ import annotations

import io
import random
import resource
import sys
from pathlib import Path

from observe.probes.gobinary import BinaryError, read_binary
from observe.probes.sites import find_sites

LIES = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def damage(data: bytearray, start: int, end: int, chance: random.Random) -> bytearray:
    """One to four damages of one kind or another, in place; a cut makes it shorter."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(start, end)
        kind = chance.randrange(20)
        if kind == 0:
            return data[:at]
        if kind < 12:
            data[at] ^= 1 << chance.randrange(8)
        else:
            at = at // 8 * 8
            data[at : at + 8] = chance.choice(LIES).to_bytes(8, "little")
    return data


def main() -> None:
    """Run ROUNDS rounds, always the same ones."""
    path, start, end, rounds = sys.argv[1], *map(int, sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (240, 240))
    original = Path(path).read_bytes()
    chance = random.Random(1)  # noqa: S311 - damage, not secrets
    read_count = refused_count = 0
    for _ in range(rounds):
        data = damage(bytearray(original), start, end, chance)
        try:
            binary = read_binary(io.BytesIO(data))
            for function in binary.matching(["*main*", "*daemon.*"])[:20]:
                find_sites(binary.code(function), function.address, binary.machine, register_abi=binary.register_abi)
            read_count += 1
        except BinaryError:
            refused_count += 1
    print(read_count, refused_count)


if __name__ == "__main__":
    main()
