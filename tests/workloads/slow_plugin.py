#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A volume plugin and authorization plugin for dockerd that is slow where a name says so.

    slow_plugin.py SOCKET FOLDER DELAYS SHORT LONG

It waits before it answers VolumeDriver.Mount, LONG milliseconds for a volume whose name begins with "slow", and before
it allows a POST …/containers/create, LONG for a container whose name begins with "authorization"; for all others SHORT.
Each wait adds a JSON line to DELAYS: {"what": "mount" or "authorization", "long": whether it was, "delay_ns"}. Every
volume is FOLDER. It says "up" when it listens.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Plugin(BaseHTTPRequestHandler):
    """One connection of dockerd's."""

    protocol_version = "HTTP/1.1"
    folder: Path
    delays: Path
    #: Short and long.
    seconds: tuple[float, float]
    volumes: set[str]
    lock = threading.Lock()

    def do_POST(self) -> None:
        """Answer one call of the plugin protocol."""
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        answer = json.dumps(self.answer(self.path, request)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.plugins.v1.1+json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, call: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the call returns."""
        name = request.get("Name", "")
        volume = {"Name": name, "Mountpoint": str(self.folder)}
        answer: dict[str, Any] = {}
        match call.removeprefix("/"):
            case "Plugin.Activate":
                answer = {"Implements": ["VolumeDriver", "authz"]}
            case "AuthZPlugin.AuthZReq" | "AuthZPlugin.AuthZRes" as which:
                created = _created(request) if which.endswith("Req") else None
                if created is not None:
                    self.wait("authorization", long=created.startswith("authorization"))
                answer = {"Allow": True}
            case "VolumeDriver.Capabilities":
                answer = {"Capabilities": {"Scope": "local"}}
            case "VolumeDriver.List":
                answer = {"Volumes": [{**volume, "Name": each} for each in sorted(self.volumes)]}
            case "VolumeDriver.Create":
                self.volumes.add(name)
            case "VolumeDriver.Remove":
                self.volumes.discard(name)
            case "VolumeDriver.Get":
                answer = {"Volume": volume} if name in self.volumes else {"Err": "no such volume"}
            case "VolumeDriver.Mount" | "VolumeDriver.Path" as which:
                if which.endswith("Mount"):
                    self.wait("mount", long=name.startswith("slow"))
                answer = volume
        return answer

    def wait(self, what: str, *, long: bool) -> None:
        """Be slow, and say how slow it was."""
        start_ns = time.monotonic_ns()
        time.sleep(self.seconds[long])
        delay_ns = time.monotonic_ns() - start_ns
        with self.lock, self.delays.open("a", encoding="ascii") as file:
            file.write(json.dumps({"what": what, "long": long, "delay_ns": delay_ns}) + "\n")

    def log_message(self, *_: object) -> None:
        """A unix socket's client has no address to log."""


def _created(request: dict[str, Any]) -> str | None:
    """The name of the container that an API request makes, if it makes one."""
    target = urlsplit(request["RequestUri"])
    if request["RequestMethod"] != "POST" or not target.path.endswith("/containers/create"):
        return None
    return parse_qs(target.query).get("name", [""])[0]


def main() -> None:
    """Serve until killed."""
    path, folder, delays, short, long = sys.argv[1:]
    Plugin.folder, Plugin.delays, Plugin.seconds = Path(folder), Path(delays), (int(short) / 1_000, int(long) / 1_000)
    Plugin.volumes = set()
    with ThreadingUnixStreamServer(path, Plugin) as server:
        server.daemon_threads = True
        print("up", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
