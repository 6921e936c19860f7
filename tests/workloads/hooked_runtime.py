#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""A runtime for dockerd (--add-runtime) that delays what lies below `runc create`; told by its name, a link to this.

`runc-hook-20`: a prestart hook sleeps 20 ms; every create has the hook, if only for nothing: `runc-hook-0` is what to
compare with. `runc-init-20`: strace holds `runc init` for 20 ms where it enters pivot_root (from aside: it follows init
into the container, and must not be waited for); compare with `runc-init-0`.
"""

import json
import os
import sys

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> None:
    """Become runc, below strace for a create."""
    name, arguments = sys.argv[0], sys.argv[1:]
    _, where, milliseconds = os.path.basename(name).split("-")  # noqa: PTH119 - pathlib takes 10 ms to import
    command = ["runc", *arguments]
    if "create" in arguments:
        add_hook(f"{arguments[arguments.index('--bundle') + 1]}/config.json", milliseconds if where == "hook" else "0")
        if where == "init":
            held = ["-e", f"inject=pivot_root:delay_enter={milliseconds}000"] if milliseconds != "0" else []
            trace = ["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=pivot_root", *held]
            command = ["strace", *trace, *command]
    os.execvpe(command[0], command, {**os.environ, "PATH": PATH})  # noqa: S606 - it becomes runc


def add_hook(path: str, milliseconds: str) -> None:
    """A prestart hook that sleeps."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - the same
        spec = json.load(file)
    hook = {"path": "/bin/sleep", "args": ["sleep", str(int(milliseconds) / 1_000)]}
    spec.setdefault("hooks", {}).setdefault("prestart", []).append(hook)
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - the same
        json.dump(spec, file)


if __name__ == "__main__":
    main()
