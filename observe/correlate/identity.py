# SPDX-License-Identifier: Apache-2.0
"""Who is who: containers by id, name and layer, as notes and the stream itself tell."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from observe.model import Container

#: How many containers are remembered at most, unless it is said otherwise.
MOST_CONTAINERS = 10_000
#: What clients print of an id. Fewer digits may as well be the name of a container that is not known.
_SHORT_ID = re.compile(r"[0-9a-f]{12,63}")


class Identities:
    """What is known of containers so far; bounded."""

    def __init__(self, most: int = MOST_CONTAINERS) -> None:
        """Nothing is known. `most`: how many containers are remembered; those told of least lately are forgotten."""
        self._most = most
        self._containers: OrderedDict[str, Container] = OrderedDict()
        self._ids_by_name: OrderedDict[str, str] = OrderedDict()
        self._ids_by_layer: OrderedDict[str, str] = OrderedDict()
        #: How often something was learned about layers that was not known before.
        self.layer_changes = 0

    def learn(self, data: Mapping[str, Any]) -> None:
        """Take a container note: the fields of `Container`."""
        container = Container(**{key: data[key] for key in Container.__slots__ if key in data})
        self._remember(self._containers, container.id, container)
        if container.name:
            self.learn_name(container.name, container.id)
        if container.layer:
            self.learn_layer(container.layer, container.id)

    def learn_name(self, name: str, container_id: str) -> None:
        """A name belongs to a container from now on; it may have been another's."""
        self._remember(self._ids_by_name, name, container_id)

    def learn_layer(self, layer: str, container_id: str) -> None:
        """A layer belongs to a container."""
        self.layer_changes += self._ids_by_layer.get(layer) != container_id
        self._remember(self._ids_by_layer, layer, container_id)

    def get(self, container_id: str | None) -> Container | None:
        """The container of an id."""
        return self._containers.get(container_id) if container_id else None

    def by_layer(self, layer: str) -> str | None:
        """Id of the container whose layer it is."""
        return self._ids_by_layer.get(layer)

    def by_reference(self, reference: str) -> str | None:
        """Id of the container that a user named by full id, by name or by short id, in dockerd's order."""
        if reference in self._containers:
            return reference
        container_id = self._ids_by_name.get(reference)
        if container_id is None and _SHORT_ID.fullmatch(reference):
            found = [known for known in self._containers if known.startswith(reference)]
            container_id = found[0] if len(found) == 1 else None
        return container_id

    def _remember(self, table: OrderedDict[str, Any], key: str, value: Any) -> None:
        table[key] = value
        table.move_to_end(key)
        if len(table) > self._most:
            table.popitem(last=False)
