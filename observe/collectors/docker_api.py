# SPDX-License-Identifier: Apache-2.0
"""Who a container is, asked of the Docker API and read from the data root.

Asking must never disturb a recording: every wait is bounded, nothing raises, and what could not be learned is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from observe import engine as engines
from observe.errors import HostCannotError
from observe.model import Container

_TIMEOUT_SECONDS = 1.0
_REDACTED = "<redacted>"
_ID = re.compile(r"[0-9a-f]{64}")


class Identity:
    """Names, images, networks, layers and configurations of containers of one engine."""

    def __init__(
        self, engine: engines.Engine, *, with_values: bool = False, timeout_seconds: float = _TIMEOUT_SECONDS
    ) -> None:
        """Ask `engine`; `with_values` keeps environment values, arguments and labels in the configuration.

        Raises HostCannotError if the engine's address is of no use (it was good when the engine was found).
        """
        self._engine = engine
        self._with_values = with_values
        target = engines.address(engine.docker_host)
        # One each: while an inspect waits for a container that is being started, names are still told.
        self._names = engines.KeptConnection(target, timeout_seconds)
        self._inspects = engines.KeptConnection(target, timeout_seconds)

    @property
    def engine_is_alive(self) -> bool:
        """Whether the engine still runs."""
        return self._engine.is_alive()

    def inspect(self, asked: str) -> Container | None:
        """What is known of a container, by id or name; None if the engine does not answer (in time).

        Of a container that is gone, or not registered yet, that is its id (if an id was given) and, while its layer
        exists, the layer.
        """
        answer = self._get(self._inspects, f"/containers/{quote(asked, safe='')}/json")
        return self._container(asked, answer) if isinstance(answer, dict) else None

    def names_of(self, references: Iterable[str]) -> list[Container]:
        """Id, name, image, network and layer of each container that the engine knows, by full id or name.

        Unlike an inspect, a list takes no container's lock, so it answers at once also while one is being started.
        """
        asked = list(references)
        ids = [text for text in asked if _ID.fullmatch(text)]
        names = [f"^/{re.escape(text)}$" for text in asked if not _ID.fullmatch(text)]
        return [
            self._listed(entry)
            for filters in ({"id": ids}, {"name": names})
            if any(filters.values())
            for entry in self._list(filters)
        ]

    def _list(self, filters: Mapping[str, list[str]]) -> list[Mapping[str, Any]]:
        query = urlencode({"all": 1, "filters": orjson.dumps(filters)})
        answer = self._get(self._names, f"/containers/json?{query}")
        return [entry for entry in answer if isinstance(entry, dict)] if isinstance(answer, list) else []

    def _get(self, connection: engines.KeptConnection, path: str) -> Any:
        """The engine's answer, {} if it refuses or says no JSON, None if it does not answer."""
        try:
            answer = connection.ask(f"/v{self._engine.api_version}{path}")
        except (HostCannotError, OSError):
            return None
        try:
            return orjson.loads(answer.body) if answer.status == HTTPStatus.OK else {}
        except ValueError:
            return {}

    def _listed(self, entry: Mapping[str, Any]) -> Container:
        container_id = str(entry.get("Id", ""))
        names = [str(name).removeprefix("/") for name in entry.get("Names") or ()]
        return Container(
            id=container_id,
            # Links give a container further names, with a slash inside.
            name=next((name for name in names if "/" not in name), ""),
            image=str(entry.get("Image", "")),
            network=_network(_within(entry, "HostConfig", "NetworkMode")),
            layer=self._layer(container_id),
        )

    def close(self) -> None:
        """Close the connections to the engine."""
        self._names.close()
        self._inspects.close()

    def _container(self, asked: str, inspected: Mapping[str, Any]) -> Container:
        container_id = str(inspected.get("Id", "")) or (asked if _ID.fullmatch(asked) else "")
        return Container(
            id=container_id,
            name=str(inspected.get("Name", "")).removeprefix("/") or ("" if container_id else asked),
            image=str(_within(inspected, "Config", "Image") or ""),
            network=_network(_within(inspected, "HostConfig", "NetworkMode")),
            layer=self._layer(container_id) or layer_of_graph_driver(inspected),
            configuration=inspected if self._with_values else redacted(inspected),
        )

    def _layer(self, container_id: str) -> str:
        """Name of the container's layer directory, from the data root; "" if it is not there."""
        if not _ID.fullmatch(container_id):
            return ""
        engine = self._engine
        mounts = engine.path(engine.data_root) / "image" / engine.storage_driver / "layerdb" / "mounts"
        try:
            return (mounts / container_id / "mount-id").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""


def _network(mode: Any) -> str:
    """What clients call default is the bridge; newer engines say so themselves."""
    return "bridge" if mode == "default" else str(mode or "")


def layer_of_graph_driver(inspected: Mapping[str, Any]) -> str:
    """Name of the layer directory in inspect's GraphDriver: `…/overlay2/<layer>/diff`; "" if it does not tell."""
    upper = _within(inspected, "GraphDriver", "Data", "UpperDir")
    return PurePosixPath(upper).parent.name if isinstance(upper, str) else ""


def redacted(inspected: Mapping[str, Any]) -> dict[str, Any]:
    """The same structure without what may be secret; names stay, values do not.

    Left out, wherever they stand: values of the environment, arguments, values of labels, annotations and driver
    options (a log driver's token, a volume's password), what health checks printed.
    """
    return {name: _redact(name, value) for name, value in inspected.items()}


def _redact(name: str, value: Any) -> Any:
    rule = _RULES.get(name)
    if rule is not None:
        return rule(value)
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, list):
        return [redacted(entry) if isinstance(entry, Mapping) else entry for entry in value]
    return value


def _environment(value: Any) -> Any:
    return [f"{str(entry).partition('=')[0]}={_REDACTED}" for entry in value] if isinstance(value, list) else value


def _every_word(value: Any) -> Any:
    if isinstance(value, list):
        return [_REDACTED for _ in value]
    return _REDACTED if value else value


def _all_but_first_word(value: Any) -> Any:
    return [*value[:1], *_every_word(value[1:])] if isinstance(value, list) else value


def _every_value(value: Any) -> Any:
    return dict.fromkeys(value, _REDACTED) if isinstance(value, Mapping) else value


def _log_driver(value: Any) -> Any:
    return {**value, "Config": _every_value(value.get("Config"))} if isinstance(value, Mapping) else value


#: What happens to the value of a key of inspect's JSON, at any depth.
_RULES: Mapping[str, Callable[[Any], Any]] = {
    "Env": _environment,
    "Args": _every_word,
    "Cmd": _every_word,
    "Entrypoint": _every_word,
    "Test": _all_but_first_word,  # of a health check: CMD or CMD-SHELL stays
    "Output": _every_word,  # of a health check
    "Labels": _every_value,
    "Annotations": _every_value,
    "Options": _every_value,  # of a volume's driver
    "DriverOpts": _every_value,  # of a network's driver
    "LogConfig": _log_driver,
}


def _within(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
