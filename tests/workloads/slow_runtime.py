#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""A runtime for dockerd (--add-runtime) that waits before commands of runc and says how long it has waited.

It is told by its name, a link to this file: `runc-create-5-start-20` waits 5 ms before `runc create` and 20 ms before
`runc start`. Each wait adds a line to `NAME.delays` beside it: the command and the nanoseconds.
"""

import os
import sys
import time

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> None:
    """Wait if it is time to, then become runc."""
    name, arguments = sys.argv[0], sys.argv[1:]
    _, *words = os.path.basename(name).split("-")  # noqa: PTH119 - pathlib takes 10 ms to import
    for command, milliseconds in zip(words[::2], words[1::2], strict=True):
        if command in arguments:
            start_ns = time.monotonic_ns()
            time.sleep(int(milliseconds) / 1_000)
            delay_ns = time.monotonic_ns() - start_ns
            with open(f"{name}.delays", "a", encoding="ascii") as file:  # noqa: PTH123 - the same
                file.write(f"{command} {delay_ns}\n")
    os.execvpe("runc", ["runc", *arguments], {**os.environ, "PATH": PATH})  # noqa: S606 - it becomes runc


if __name__ == "__main__":
    main()
