#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""A runtime for dockerd (--add-runtime) that waits before a command of runc and says how long it has waited.

It is told by its name, a link to this file: `runc-COMMAND-MILLISECONDS` waits before `runc COMMAND` (`runc-none-0`
never waits) and adds one line with the nanoseconds to `runc-COMMAND-MILLISECONDS.delays` beside it.
"""

import os
import sys
import time

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> None:
    """Wait if it is time to, then become runc."""
    name, arguments = sys.argv[0], sys.argv[1:]
    _, command, milliseconds = os.path.basename(name).split("-")  # noqa: PTH119 - pathlib takes 10 ms to import
    if command in arguments:
        start_ns = time.monotonic_ns()
        time.sleep(int(milliseconds) / 1_000)
        delay_ns = time.monotonic_ns() - start_ns
        with open(f"{name}.delays", "a", encoding="ascii") as file:  # noqa: PTH123 - the same
            file.write(f"{delay_ns}\n")
    os.execvpe("runc", ["runc", *arguments], {**os.environ, "PATH": PATH})  # noqa: S606 - it becomes runc


if __name__ == "__main__":
    main()
