# SPDX-License-Identifier: Apache-2.0
"""Create and start containers through the API and time each request as the client sees it.

    api_client.py SOCKET IMAGE OUT [--clients N] [--runs N] [--every SECONDS] [--network MODE ...] [--no-start]
                  [--real-time] [--command WORD ...]

Each client has one connection and does its runs one after the other: create, start, wait, remove. With --every they
begin so far apart, unless the one before takes longer; with several networks they take turns. OUT gets one JSON line a
timed request: {"operation", "id", "name", "status", "sent_ns", "taken_ns", "answered_ns"}, boot clock: before the
request is sent, when the engine has been seen to have read it, and when the first byte of the answer has come. With
--real-time the client never waits for a processor, so that what it measures is the engine's time.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

#: Between two looks at whether a request has been read: short beside a millisecond, and the engine has the processor.
LOOK_SECONDS = 20e-6


class Client:
    """One keep-alive connection."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._buffer = b""

    def request(self, method: str, target: str, body: Any = None) -> tuple[int, Any, dict[str, int]]:
        """Status, decoded body, and the times."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: docker\r\nContent-Length: {len(data)}\r\n"
        if data:
            head += "Content-Type: application/json\r\n"
        message = head.encode() + b"\r\n" + data
        sent_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._socket.sendall(message)
        while self._unread_bytes() > 0:
            time.sleep(LOOK_SECONDS)
        taken_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._buffer = self._socket.recv(65536)
        answered_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        times = {"sent_ns": sent_ns, "taken_ns": taken_ns, "answered_ns": answered_ns}
        status, content = self._answer()
        return status, content, times

    def _unread_bytes(self) -> int:
        """Memory of what the other side has not read yet (SIOCOUTQ, whose number is TIOCOUTQ's; unix(7))."""
        (size,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return int(size)

    def _answer(self) -> tuple[int, Any]:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self._buffer = rest
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                while b"\r\n" not in self._buffer:
                    self._more()
                size, _, self._buffer = self._buffer.partition(b"\r\n")
                while len(self._buffer) < int(size, 16) + 2:
                    self._more()
                body += self._buffer[: int(size, 16)]
                self._buffer = self._buffer[int(size, 16) + 2 :]
                if int(size, 16) == 0:
                    break
        else:
            length = int(headers.get("content-length", 0))
            while len(self._buffer) < length:
                self._more()
            body, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(lines[0].split()[1]), json.loads(body) if body.strip() else None

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            sys.exit("the engine closed the connection")
        self._buffer += data


def main() -> int:
    """Run all clients; 0 if every request went well."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("image")
    parser.add_argument("out", type=Path)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--every", type=float, default=0.0)
    parser.add_argument("--network", nargs="+", default=["bridge"])
    parser.add_argument("--no-start", action="store_true")
    parser.add_argument("--real-time", action="store_true")
    parser.add_argument("--command", nargs=argparse.REMAINDER, default=["true"])
    args = parser.parse_args()
    if args.real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    lines: list[str] = []
    failures: list[str] = []

    begun = time.monotonic()

    def work(number: int) -> None:
        client = Client(args.socket)
        for run in range(args.runs):
            due = begun + (run + number / args.clients) * args.every
            time.sleep(max(0.0, due - time.monotonic()))
            name = f"observe-{number}-{run}"
            # Every other one is named by dockerd itself.
            query = f"?name={name}" if run % 2 == 0 else ""
            network = args.network[run % len(args.network)]
            body = {"Image": args.image, "Cmd": args.command, "HostConfig": {"NetworkMode": network}}
            status, answer, times = client.request("POST", f"/containers/create{query}", body)
            if status != 201:
                failures.append(f"create: {status} {answer}")
                return
            container = answer["Id"]
            line = {"operation": "create", "id": container, "name": name if query else "", "status": status}
            lines.append(json.dumps({**line, **times}))
            if not args.no_start:
                reference = name if query else container
                status, answer, times = client.request("POST", f"/v1.41/containers/{reference}/start")
                line = {"operation": "start", "id": container, "name": name if query else "", "status": status}
                lines.append(json.dumps({**line, **times}))
                if status == 204:
                    client.request("POST", f"/containers/{container}/wait")
            client.request("DELETE", f"/containers/{container}?force=1")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(args.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    args.out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
