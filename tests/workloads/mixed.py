# SPDX-License-Identifier: Apache-2.0
"""Clients that create and start containers on several networks, some of which fail on purpose, at a steady pace.

    mixed.py SOCKET IMAGE SECONDS [--clients N] [--every SECONDS]

Each client's runs begin so far apart, unless the one before takes longer. Of ten runs one asks for an image that is
not there, one for a program that is not there. At the end it prints one JSON line, how many requests ended how:
{"create": {"ok": N, "failed": N}, "start": {…}}.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter

from api_client import Client

NETWORKS = ("bridge", "host", "none", "default")
NO_IMAGE, NO_PROGRAM = 4, 9
FIRST_FAILURE = 400


def main() -> int:
    """Run all clients; 0 if none of them broke off."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("image")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--every", type=float, default=1.0)
    args = parser.parse_args()
    begun, counts, ended = time.monotonic(), Counter[tuple[str, str]](), [0]

    def work(number: int) -> None:
        client, run = Client(args.socket), 0
        while (due := begun + (run + number / args.clients) * args.every) < begun + args.seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            one_run(client, args.image, run + number, counts)
            run += 1
        ended[0] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(args.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({name: {how: counts[name, how] for how in ("ok", "failed")} for name in ("create", "start")}))
    return 0 if ended[0] == args.clients else 1


def one_run(client: Client, image: str, number: int, counts: Counter[tuple[str, str]]) -> None:
    """Create, start, wait, remove, as far as it goes."""
    body = {
        "Image": "no-such-image" if number % 10 == NO_IMAGE else image,
        "Cmd": ["no-such-program"] if number % 10 == NO_PROGRAM else ["true"],
        "HostConfig": {"NetworkMode": NETWORKS[number % len(NETWORKS)]},
    }
    status, answer, _ = client.request("POST", "/containers/create", body)
    counts["create", outcome(status)] += 1
    if status >= FIRST_FAILURE:
        return
    container = answer["Id"]
    status, _, _ = client.request("POST", f"/containers/{container}/start")
    counts["start", outcome(status)] += 1
    if status < FIRST_FAILURE:
        client.request("POST", f"/containers/{container}/wait")
    client.request("DELETE", f"/containers/{container}?force=1")


def outcome(status: int) -> str:
    """As the exporter has it."""
    return "ok" if status < FIRST_FAILURE else "failed"


if __name__ == "__main__":
    sys.exit(main())
