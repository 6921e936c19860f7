#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients that create, start, wait for and remove containers until standard input is closed.

    load.py SOCKET IMAGE CLIENTS

Says "up" once every client has done a run. At the end it prints one JSON line, {"runs": N, "failures": [text, …]}, and
the exit code is 0 only if no request failed.
"""

from __future__ import annotations

import json
import sys
import threading

from api_client import Client


def main(path: str, image: str, clients: int) -> int:
    """Run until told to stop."""
    stop, up = threading.Event(), threading.Barrier(clients + 1)
    runs = [0] * clients
    failures: list[str] = []

    def one_run(client: Client) -> None:
        body = {"Image": image, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
        container = expect(client, "POST", "/containers/create", 201, body)["Id"]
        expect(client, "POST", f"/containers/{container}/start", 204)
        expect(client, "POST", f"/containers/{container}/wait", 200)
        expect(client, "DELETE", f"/containers/{container}?force=1", 204)

    def work(number: int) -> None:
        try:
            client = Client(path)
            while not stop.is_set():
                one_run(client)
                runs[number] += 1
                if runs[number] == 1:
                    up.wait()
        except (OSError, RuntimeError, SystemExit) as error:
            failures.append(repr(error))
            up.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        up.wait()
        print("up", flush=True)
        sys.stdin.read()
    except threading.BrokenBarrierError:
        pass
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"runs": sum(runs), "failures": failures}))
    return 1 if failures else 0


def expect(client: Client, method: str, target: str, expected: int, body: object = None) -> dict[str, str]:
    """The answer's body. Raises RuntimeError if the status is another one."""
    status, answer, _ = client.request(method, target, body)
    if status != expected:
        raise RuntimeError(f"{method} {target}: {status} {answer}")
    return answer or {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
