# SPDX-License-Identifier: Apache-2.0
"""A dashboard's expressions as a live Prometheus answers them: what Grafana does behind its panels."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: A variable as Grafana writes it: $name, ${name}, ${name:format}.
_VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")
_TIMEOUT_SECONDS = 60


class PrometheusError(Exception):
    """Prometheus did not answer, or refused an expression; the message says which."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its samples as (epoch seconds, value), oldest first."""

    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The HTTP API at a URL without a slash at its end."""

    url: str

    def instant(self, expr: str, *, at_seconds: float | None = None) -> list[Series]:
        """The value of an expression, now or then. Raises PrometheusError."""
        data = self._get("query", {"query": expr} | ({} if at_seconds is None else {"time": at_seconds}))
        if data["resultType"] == "scalar":
            return [Series({}, (_sample(data["result"]),))]
        return [Series(one["metric"], (_sample(one["value"]),)) for one in data["result"]]

    def range(self, expr: str, *, start_seconds: float, end_seconds: float, step_seconds: float) -> list[Series]:
        """The course of an expression. Raises PrometheusError."""
        wanted = {"query": expr, "start": start_seconds, "end": end_seconds, "step": step_seconds}
        data = self._get("query_range", wanted)
        return [Series(one["metric"], tuple(map(_sample, one["values"]))) for one in data["result"]]

    def values(self, label: str, selector: str) -> list[str]:
        """The values of a label, sorted. Raises PrometheusError."""
        found: list[str] = self._get(f"label/{label}/values", {"match[]": selector})
        return sorted(found)

    def _get(self, path: str, wanted: Mapping[str, object]) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(wanted)}"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - the user's own URL
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise PrometheusError(f"{self.url} refuses {wanted.get('query', path)!r}: {said}") from error
        except (OSError, ValueError) as error:
            raise PrometheusError(f"{self.url} does not answer like a Prometheus: {error}") from error


def panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All panels of a dashboard's JSON that are no rows, those in folded rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def targets(dashboard: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Every query, with its panel."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel, target


def choices(dashboard: Mapping[str, Any], prometheus: Prometheus) -> dict[str, str]:
    """What Grafana would choose for the variables: the saved choice, all of them, or the first that there is."""
    chosen: dict[str, str] = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query = fill(variable["query"]["query"], chosen)
        selector, _, label = query.removeprefix("label_values(").removesuffix(")").rpartition(", ")
        current = variable.get("current", {}).get("value")
        if current == "$__all":
            found = map(re.escape, prometheus.values(label, selector))
            # In a string of PromQL a backslash is written twice.
            current = variable.get("allValue") or "|".join(found).replace("\\", "\\\\")
        chosen[variable["name"]] = current or next(iter(prometheus.values(label, selector)), "")
    return chosen


def fill(text: str, variables: Mapping[str, str]) -> str:
    """Text with its variables replaced; those without a value stay."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), text)


def legend(target: Mapping[str, Any], series: Series) -> str:
    """A series' name in the panel's legend."""
    form: str = target.get("legendFormat", "__auto")
    if form == "__auto":
        return ", ".join(f"{key}={value}" for key, value in sorted(series.labels.items()))
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: series.labels.get(match[1], ""), form)


def _sample(pair: Sequence[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
