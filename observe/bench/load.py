# SPDX-License-Identifier: Apache-2.0
"""The load generator, a process of its own: creates, starts, waits for and removes containers, and times each request.

`python -m observe.bench.load URL CLIENTS TOKEN`: each line of standard input is an order, {"turn", "name", "body"};
each is run by the next client that is free, and answered by one line: the order's turn and name, "durations_ns" of
each step that was answered, and "failed" (null, or what went wrong; then the other steps were not tried). A line
{"broken": text} says that the engine cannot be reached any more. Once standard input ends, however that came about,
it stops, and removes every container that it has made.

In a process of its own because a client that waits for the recorder would time the recorder.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

from observe.bench.plan import LABEL
from observe.engine import api
from observe.errors import HostCannotError

#: A create or start that takes longer means that the engine is stuck; a container that runs longer, that its command
#: does not end.
ANSWER_SECONDS = 60.0
_SWEEP_SECONDS = 0.2
#: Steps of a run and the status that each is answered with if it went well, in order. `remove` is tried in any case.
STEPS = {"create": 201, "start": 204, "wait": 200, "remove": 204}


class _FailedError(Exception):
    """A step went wrong; what the engine says."""


class Client:
    """One client: its own connection, one run after the other."""

    def __init__(self, target: api.Address, timeout_seconds: float = ANSWER_SECONDS) -> None:
        """Connects with the first run."""
        self._target = target
        self._timeout_seconds = timeout_seconds
        self._stack = ExitStack()
        self._connection: api.Connection | None = None

    def run(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """One container's life; see the module for what is given back. Raises HostCannotError if nobody answers."""
        name = quote(order["name"])
        durations_ns: dict[str, int] = {}
        sent_ns, failed = 0, None
        try:
            made = self._step("create", "POST", f"/containers/create?name={name}", durations_ns, order["body"])
            sent_ns = made.sent_ns
            self._step("start", "POST", f"/containers/{name}/start", durations_ns)
            ended = self._step("wait", "POST", f"/containers/{name}/wait", durations_ns)
            code = json.loads(ended.body).get("StatusCode")
            failed = f"the container's command ended with {code}" if code else None
        except _FailedError as error:
            failed = str(error)
        if "create" in durations_ns:
            try:
                gone = self._step("remove", "DELETE", f"/containers/{name}?force=1&v=1", durations_ns)
                durations_ns["total"] = gone.answered_ns - sent_ns
            except _FailedError as error:
                failed = failed or str(error)
        return {"turn": order["turn"], "name": order["name"], "failed": failed, "durations_ns": durations_ns}

    def _step(
        self,
        step: str,
        method: str,
        path: str,
        durations_ns: dict[str, int],
        body: Mapping[str, Any] | None = None,
    ) -> api.Answer:
        try:
            answer = self._connected().exchange(method, path, body)
        except HostCannotError as error:
            self.close()
            if step == "wait" and isinstance(error.__cause__, TimeoutError):
                raise _FailedError(
                    f"wait: the container did not end within {self._timeout_seconds:g} s: "
                    "give it a command that ends, behind --"
                ) from error
            raise
        if answer.status != STEPS[step]:
            raise _FailedError(f"{step}: {answer.message}")
        durations_ns[step] = answer.answered_ns - answer.sent_ns
        return answer

    def _connected(self) -> api.Connection:
        if self._connection is None:
            self._connection = self._stack.enter_context(api.connect(self._target, self._timeout_seconds))
        return self._connection

    def close(self) -> None:
        """Close the connection; the next run makes a new one."""
        self._connection = None
        self._stack.close()


def sweep(target: api.Address, token: str | None = None) -> int:
    """Remove the containers of a bench, of any bench without a token; how many. Raises HostCannotError."""
    label = LABEL if token is None else f"{LABEL}={token}"
    removed = 0
    with api.connect(target, ANSWER_SECONDS) as connection:
        for container_id in containers(connection, label):
            removed += (
                connection.exchange("DELETE", f"/containers/{container_id}?force=1&v=1").status == STEPS["remove"]
            )
    return removed


def containers(connection: api.Connection, label: str = LABEL) -> list[str]:
    """Ids of all containers that have a label. Raises HostCannotError."""
    filters = quote(json.dumps({"label": [label]}))
    answer = connection.exchange("GET", f"/containers/json?all=1&filters={filters}")
    return [str(entry["Id"]) for entry in json.loads(answer.body)] if answer.status == 200 else []


class _Generator:
    """Clients on threads; what they have to say goes to standard output, a line each."""

    def __init__(self, target: api.Address, clients: int) -> None:
        self._target = target
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(clients)
        self._lock = threading.Lock()
        self._stopping = False

    def serve(self, token: str) -> None:
        """Until standard input ends; then nothing is left."""
        running = [self._pool.submit(self._work, json.loads(line)) for line in sys.stdin]
        self._stopping = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        # A container that goes away ends the wait for it; one that was being created is found the next time.
        while wait(running, _SWEEP_SECONDS).not_done:
            sweep(self._target, token)
        sweep(self._target, token)

    def _work(self, order: Mapping[str, Any]) -> None:
        try:
            if not hasattr(self._own, "client"):
                self._own.client = Client(self._target)
            self._say(self._own.client.run(order))
        except HostCannotError as error:
            self._say({"broken": str(error)})
        except Exception as error:  # noqa: BLE001 - the bench would wait for ever
            self._say({"broken": f"unexpected {type(error).__name__}: {error}"})

    def _say(self, message: Mapping[str, Any]) -> None:
        # What is disturbed by the end is no result.
        if not self._stopping:
            with self._lock:
                print(json.dumps(message), flush=True)


def main(url: str, clients: int, token: str) -> int:
    """Serve; 1 if the engine could not be asked to remove what was made."""
    try:
        _Generator(api.address(url), clients).serve(token)
    except HostCannotError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
