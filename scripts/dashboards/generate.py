# SPDX-License-Identifier: Apache-2.0
"""From definitions to the files that Grafana reads."""

from __future__ import annotations

import json

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import fleet, host, overview, phases


def documents() -> dict[str, str]:
    """File name → content of every dashboard."""
    built = (module.build() for module in (overview, phases, host, fleet))
    return {f"{dashboard.uid}.json": encode(dashboard) for dashboard in built}


def encode(dashboard: Dashboard) -> str:
    """As Grafana's own export writes it."""
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def decode(text: str) -> Dashboard:
    """The model of a file; what the model does not know is dropped."""
    register_default_plugins()
    return Dashboard.from_json(json.loads(text))
