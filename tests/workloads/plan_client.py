#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Create and start the containers of a plan, one after the other, on one connection.

    plan_client.py SOCKET PLAN

PLAN is a JSON list of [name, body of the create request]. Each container is started, waited for and removed before the
next one is made. The exit code is 0 only if every request went well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from api_client import Client


def main(path: str, plan: Path) -> int:
    """Carry out the plan."""
    client = Client(path)
    for name, body in json.loads(plan.read_text(encoding="utf-8")):
        requests = [
            ("POST", f"/containers/create?name={name}", body, 201),
            ("POST", f"/containers/{name}/start", None, 204),
            ("POST", f"/containers/{name}/wait", None, 200),
            ("DELETE", f"/containers/{name}?force=1", None, 204),
        ]
        for method, target, content, expected in requests:
            status, answer, _ = client.request(method, target, content)
            if status != expected:
                print(f"{method} {target}: {status} {answer}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
