# SPDX-License-Identifier: Apache-2.0
"""Forward connections into the network namespace that this program runs in: forward.py DESCRIPTOR PORT.

DESCRIPTOR: a listening socket, inherited, of whatever namespace; PORT: of 127.0.0.1 here. Until killed.
"""

from __future__ import annotations

import socket
import sys
import threading


def copy(one: socket.socket, other: socket.socket) -> None:
    """What one says, to the other, until it ends."""
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        one.close()
        other.close()


def main() -> None:
    """Accept and forward."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    port = int(sys.argv[2])
    while True:
        client = listener.accept()[0]
        try:
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            client.close()
            continue
        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


if __name__ == "__main__":
    main()
