# SPDX-License-Identifier: Apache-2.0
"""`observe dashboards`: the Grafana dashboards, Prometheus rules and provisioning files of this version."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from observe.errors import ObserveError
from observe.resources import folder

NAME = "dashboards"
HELP = "write the Grafana dashboards, Prometheus rules and provisioning files of this version"

_DEFAULT = Path("observe-dashboards")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "-o", "--output", type=Path, default=_DEFAULT, metavar="DIR", help=f"default: {_DEFAULT}; made if missing"
    )


def run(args: argparse.Namespace) -> int:
    """Write the files; those of another version with the same names are replaced. Raises ObserveError."""
    source = folder("dashboards")
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for file in files:
        target = args.output / file
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((source / file).read_bytes())
        except OSError as error:
            raise ObserveError(f"{target}: cannot be written: {error.strerror}; name another folder with -o") from error
    print(f"observe: {len(files)} files in {args.output}; its README.md says where they go", file=sys.stderr)
    return 0
