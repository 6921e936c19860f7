# SPDX-License-Identifier: Apache-2.0
"""A dashboard drawn from live data by matplotlib: where no Grafana is, to see what its panels would say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator

from dashboards.live import Prometheus, Series, choices, fill, legend

#: Grafana's grid: 24 columns; a row of it is 30 pixels high. Inches at 100 dots.
_COLUMNS = 24
_WIDTH_INCHES, _ROW_INCHES, _HEAD_INCHES = 18.0, 0.36, 0.75
_DPI = 100
_BACKGROUND, _PANEL, _INK, _DIM, _GRID = "#111217", "#181b1f", "#d8d9da", "#8e9297", "#2c3036"
_GREEN, _RED = "#73bf69", "#f2495c"
_PALETTE = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a"),
    *("#447ebc", "#c15c17", "#890f02", "#0a437c", "#6d1f62", "#584477"),
)
_MOST_LEGENDS = 14
_LINE_INCHES = 0.2
_POINTS = 300
_TICKS_SECONDS = (10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)
_MOST_TICKS = 6

Draw = Callable[[Axes, Mapping[str, Any], Sequence[tuple[Mapping[str, Any], list[Series]]]], None]


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is drawn, in epoch seconds."""

    start_seconds: float
    end_seconds: float
    #: How often Prometheus scrapes; rates are over four times that, as Grafana has it.
    scrape_seconds: float

    @property
    def step_seconds(self) -> float:
        """Between two points, not less than a scrape."""
        return max((self.end_seconds - self.start_seconds) / _POINTS, self.scrape_seconds)

    def variables(self) -> dict[str, str]:
        """What Grafana fills in by itself."""
        rate = max(4 * self.scrape_seconds, self.step_seconds + self.scrape_seconds)
        whole = self.end_seconds - self.start_seconds
        return {"__rate_interval": f"{round(rate * 1000)}ms", "__range": f"{round(whole * 1000)}ms"}


def draw(
    dashboard: Mapping[str, Any], prometheus: Prometheus, window: Window, given: Mapping[str, str], path: Path
) -> list[str]:
    """Draw all panels that are not folded away, with the variables `given` or those that Grafana would choose.

    Returns the titles of the panels that found no data. Raises PrometheusError.
    """
    empty = []
    variables = {**choices(dashboard, prometheus), **given, **window.variables()}
    shown = list(_unfolded(dashboard["panels"]))
    rows = max(part["gridPos"]["y"] + part["gridPos"]["h"] for part in shown)
    height = rows * _ROW_INCHES + _HEAD_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    _headline(figure, dashboard, variables, window, height)
    for part in shown:
        place = _place(part["gridPos"], height)
        if part["type"] == "row":
            figure.text(
                place[0],
                place[1] + place[3] / 2,
                f"⌄ {part['title']}",
                color=_INK,
                fontsize=11,
                va="center",
                weight="bold",
            )
            continue
        answers = [(target, _ask(prometheus, target, variables, window)) for target in part["targets"]]
        if not _panel(figure, part, place, answers, variables):
            empty.append(part["title"])
    figure.savefig(path, facecolor=_BACKGROUND)
    return empty


def _unfolded(parts: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Rows and panels; what stands below a folded row moves up, as in Grafana."""
    up = 0
    for part in parts:
        yield {**part, "gridPos": {**part["gridPos"], "y": part["gridPos"]["y"] - up}}
        inner = part.get("panels") or ()
        if inner:
            up += max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in inner) - part["gridPos"]["y"] - 1


def _ask(
    prometheus: Prometheus, target: Mapping[str, Any], variables: Mapping[str, str], window: Window
) -> list[Series]:
    expr = fill(target["expr"], variables)
    if target["instant"]:
        return prometheus.instant(expr, at_seconds=window.end_seconds)
    return prometheus.range(
        expr, start_seconds=window.start_seconds, end_seconds=window.end_seconds, step_seconds=window.step_seconds
    )


def _headline(
    figure: Figure, dashboard: Mapping[str, Any], variables: Mapping[str, str], window: Window, height: float
) -> None:
    chosen = ", ".join(f"{name}: {_short(value)}" for name, value in variables.items() if not name.startswith("__"))
    start, end = (datetime.fromtimestamp(at, UTC) for at in (window.start_seconds, window.end_seconds))
    top = 1 - 0.25 / height
    figure.text(0.008, top, dashboard["title"], color=_INK, fontsize=16, weight="bold", va="center")
    figure.text(
        0.008,
        1 - 0.55 / height,
        "Drawn by scripts/dashboard-picture from live data, not by Grafana.",
        color=_DIM,
        va="center",
    )
    figure.text(0.992, top, f"{start:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC", color=_INK, ha="right", va="center")
    figure.text(0.992, 1 - 0.55 / height, chosen, color=_DIM, ha="right", va="center")


def _short(value: str) -> str:
    return "All" if value in (".+", ".*") or len(value) > 60 else value


def _place(cell: Mapping[str, int], height: float) -> tuple[float, float, float, float]:
    """Left, bottom, width, height of a cell, as shares of the figure."""
    bottom = height - _HEAD_INCHES - (cell["y"] + cell["h"]) * _ROW_INCHES
    return cell["x"] / _COLUMNS, bottom / height, cell["w"] / _COLUMNS, cell["h"] * _ROW_INCHES / height


def _panel(
    figure: Figure,
    panel: Mapping[str, Any],
    place: tuple[float, float, float, float],
    answers: Sequence[tuple[Mapping[str, Any], list[Series]]],
    variables: Mapping[str, str],
) -> bool:
    """One panel: its card, its title, and what its kind draws into it. Returns whether there was anything to draw."""
    width, height = _WIDTH_INCHES, figure.get_figheight()
    gap_x, gap_y = 0.05 / width, 0.05 / height
    left, bottom, wide, high = place[0] + gap_x, place[1] + gap_y, place[2] - 2 * gap_x, place[3] - 2 * gap_y
    card = figure.add_axes((left, bottom, wide, high), facecolor=_PANEL)
    card.set(xticks=[], yticks=[])
    card.spines[:].set_color(_GRID)
    title = fill(panel["title"], variables)
    figure.text(
        left + 0.08 / width, bottom + high - 0.17 / height, title, color=_INK, fontsize=10, va="center", weight="bold"
    )
    inset = _INSETS[_legend_place(panel)]
    inner = figure.add_axes(
        (
            left + inset.left / width,
            bottom + inset.bottom / height,
            max(wide - (inset.left + inset.right) / width, 0.01),
            max(high - (inset.top + inset.bottom) / height, 0.01),
        ),
        facecolor=_PANEL,
    )
    inner.spines[:].set_visible(False)
    inner.tick_params(colors=_DIM, labelsize=8, length=0)
    drawn = any(not math.isnan(value) for _, found in answers for series in found for _, value in series.samples)
    if not drawn:
        inner.set_axis_off()
        inner.text(0.5, 0.5, "No data", color=_DIM, ha="center", va="center", transform=inner.transAxes)
        return False
    _KINDS[panel["type"]](inner, panel, answers)
    return True


@dataclass(frozen=True, slots=True)
class _Inset:
    """Inches of a panel that its title, its axes and its legend take."""

    left: float
    right: float
    top: float
    bottom: float


_INSETS = {
    "bottom": _Inset(0.75, 0.2, 0.37, 0.63),
    "right": _Inset(0.75, 4.4, 0.37, 0.28),
    "stat": _Inset(0.3, 0.3, 0.37, 0.1),
    "table": _Inset(0.1, 0.1, 0.35, 0.05),
    "heatmap": _Inset(0.75, 0.2, 0.37, 0.28),
}


def _legend_place(panel: Mapping[str, Any]) -> str:
    """Which of the insets a panel has: by its legend, or by its kind."""
    return str(panel["options"]["legend"]["placement"] if panel["type"] == "timeseries" else panel["type"])


def _lines(axes: Axes, panel: Mapping[str, Any], answers: Sequence[tuple[Mapping[str, Any], list[Series]]]) -> None:
    """Lines over time, or areas on top of each other."""
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    named = [(legend(target, series), series) for target, found in answers for series in found]
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    if stacked:
        _areas(axes, named, unit)
    else:
        for (name, series), color in zip(named, _colors(), strict=False):
            times, values = _columns(series)
            axes.plot(times, values, color=color, linewidth=1.2, label=name)
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        top = max((value for _, one in named for _, value in one.samples if not math.isnan(value)), default=0.0)
        axes.set_ylim(bottom=0, top=None if stacked or not top else 1.08 * top)
        if unit == "bytes" and top:
            axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(top / 5))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value, unit)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
    _time_axis(axes)
    handles, labels = axes.get_legend_handles_labels()
    if stacked:
        _legend(axes, handles, labels, corner=(1.005, 1.08), columns=1)
    else:
        columns = max(1, int(axes.bbox.width / (40 + 6 * max(map(len, labels)))))
        _legend(axes, handles[: 2 * columns], labels[: 2 * columns], corner=(-0.05, -0.12), columns=columns)


def _legend(
    axes: Axes, handles: Sequence[Artist], labels: Sequence[str], *, corner: tuple[float, float], columns: int
) -> None:
    axes.legend(
        handles[:_MOST_LEGENDS],
        labels[:_MOST_LEGENDS],
        loc="upper left",
        bbox_to_anchor=corner,
        ncols=columns,
        frameon=False,
        labelcolor=_INK,
        fontsize=8,
        handlelength=1.2,
        borderaxespad=0,
    )


def _areas(axes: Axes, named: Sequence[tuple[str, Series]], unit: str) -> None:
    """All series on one set of times; a gap counts as nothing. The legend has the means."""
    times = sorted({at for _, series in named for at, _ in series.samples})
    table = np.zeros((len(named), len(times)))
    for row, (_, series) in enumerate(named):
        values = {at: value for at, value in series.samples if not math.isnan(value)}
        table[row] = [values.get(at, 0.0) for at in times]
    labels = [f"{name}  {words(float(row.mean()), unit)}" for (name, _), row in zip(named, table, strict=True)]
    order = np.argsort([-row.mean() for row in table])
    colors = [color for color, _ in zip(_colors(), order, strict=False)]
    axes.stackplot(
        times, table[order], labels=[labels[index] for index in order], colors=colors, alpha=0.75, linewidth=0
    )


def _number(axes: Axes, panel: Mapping[str, Any], answers: Sequence[tuple[Mapping[str, Any], list[Series]]]) -> None:
    """The last value over its course."""
    defaults = panel["fieldConfig"]["defaults"]
    ((_, found),) = answers
    times, values = _columns(found[0])
    last = float(values[~np.isnan(values)][-1])
    limit = next((step["value"] for step in defaults["thresholds"]["steps"] if step["value"] is not None), math.inf)
    color = _RED if last >= limit else _GREEN
    axes.fill_between(times, values, color=color, alpha=0.18, linewidth=0)
    axes.plot(times, values, color=color, linewidth=1)
    axes.set_axis_off()
    axes.set_ylim(bottom=0, top=(np.nanmax(values) * 2 or 1))
    text = words(last, defaults["unit"])
    fit = min(21.0, 1.1 * axes.bbox.width / len(text))
    axes.text(
        0.5, 0.72, text, color=color, fontsize=fit, weight="bold", transform=axes.transAxes, ha="center", va="center"
    )


def _heat(axes: Axes, panel: Mapping[str, Any], answers: Sequence[tuple[Mapping[str, Any], list[Series]]]) -> None:
    """Buckets over time: what lies between two bounds, on a logarithmic axis."""
    unit = panel["options"]["yAxis"]["unit"]
    ((_, found),) = answers
    found = sorted(found, key=lambda series: float(series.labels["le"]))
    bounds = [float(series.labels["le"]) for series in found]
    times = sorted({at for series in found for at, _ in series.samples})
    cumulative = np.array([[dict(series.samples).get(at, np.nan) for at in times] for series in found])
    counts = np.diff(np.nan_to_num(cumulative), axis=0, prepend=0)
    counts[counts <= 0] = np.nan
    finite = [index for index, bound in enumerate(bounds) if math.isfinite(bound)]
    edges = [bounds[finite[0]] / (bounds[finite[1]] / bounds[finite[0]]), *(bounds[index] for index in finite)]
    seen = np.flatnonzero(~np.isnan(counts[finite]).all(axis=1))
    step = times[1] - times[0] if len(times) > 1 else 1.0
    map_ = colormaps["inferno"]
    axes.pcolormesh(
        np.array([*times, times[-1] + step]), edges, counts[finite], cmap=map_, norm=LogNorm(), shading="flat"
    )
    axes.set_yscale("log")
    axes.set_ylim(edges[max(seen[0] - 1, 0)], edges[min(seen[-1] + 2, len(edges) - 1)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value, unit)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    _time_axis(axes)


def _table(axes: Axes, panel: Mapping[str, Any], answers: Sequence[tuple[Mapping[str, Any], list[Series]]]) -> None:
    """Rows merged by their labels, in the panel's order of columns."""
    axes.set_axis_off()
    (organize,) = (one["options"] for one in panel["transformations"] if one["id"] == "organize")
    order = sorted(organize["indexByName"], key=organize["indexByName"].__getitem__)
    labels = [key for key in order if not key.startswith("Value")]
    values = [key for key in order if key.startswith("Value")]
    merged: dict[tuple[str, ...], dict[str, float]] = {}
    for target, found in answers:
        column = f"Value #{target['refId']}" if len(answers) > 1 else "Value"
        for series in found:
            key = tuple(series.labels.get(label, "") for label in labels)
            merged.setdefault(key, {})[column] = series.samples[0][1]
    names = organize["renameByName"]
    units = {
        one["matcher"]["options"]: prop["value"]
        for one in panel["fieldConfig"]["overrides"]
        for prop in one["properties"]
        if prop["id"] == "unit"
    }
    sort = next((one["displayName"] for one in panel["options"].get("sortBy") or ()), "")
    by = next((key for key in order if names[key] == sort), None)
    keys = sorted(merged, key=lambda key: -np.nan_to_num(merged[key].get(by, math.nan), nan=-math.inf) if by else 0)
    line = _LINE_INCHES * _DPI / axes.bbox.height
    body = [
        [*key, *(words(merged[key].get(column, math.nan), units.get(names[column], "short")) for column in values)]
        for key in keys[: int(1 / line) - 1]
    ]
    head = [names[column] for column in order]
    widths = [max(len(row[index]) for row in [head, *body]) + 2 for index in range(len(head))]
    starts = np.cumsum([0, *widths]) / sum(widths)
    for number, row in enumerate([head, *body]):
        color = _INK if number else _DIM
        for index, cell in enumerate(row):
            x, side = (starts[index + 1] - 0.01, "right") if index >= len(labels) else (starts[index], "left")
            axes.text(x, 1 - (number + 0.5) * line, cell, color=color, fontsize=9, ha=side, va="center")


_KINDS: Mapping[str, Draw] = {"timeseries": _lines, "stat": _number, "heatmap": _heat, "table": _table}

_SCALES: Mapping[str, tuple[tuple[float, float, str], ...]] = {
    "s": ((60, 1 / 60, "min"), (1, 1, "s"), (1e-3, 1e3, "ms"), (0, 1e6, "µs")),
    "bytes": ((2**30, 2**-30, "GiB"), (2**20, 2**-20, "MiB"), (2**10, 2**-10, "KiB"), (0, 1, "B")),
    "percentunit": ((0, 100, "%"),),
    "ops": ((1e3, 1e-3, "K ops/s"), (0, 1, "ops/s")),
    "cps": ((1e3, 1e-3, "K c/s"), (0, 1, "c/s")),
    "short": ((1e9, 1e-9, "Bil"), (1e6, 1e-6, "Mil"), (1e3, 1e-3, "K"), (0, 1, "")),
}


def words(value: float, unit: str) -> str:
    """A number as Grafana writes it: three digits and the unit."""
    if math.isnan(value):
        return "-"
    if value == 0 and unit == "percentunit":
        return "0%"
    if value == 0:
        return "0" if unit == "short" else f"0 {'s' if unit == 's' else _SCALES[unit][-1][2]}"
    factor, suffix = next((factor, suffix) for least, factor, suffix in _SCALES[unit] if abs(value) >= least)
    digits = f"{value * factor:.3g}"
    if "e" in digits:
        digits = f"{value * factor:.0f}"
    return f"{digits}{'' if suffix in ('', '%') else ' '}{suffix}"


def _columns(series: Series) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Times and values."""
    table = np.array(series.samples)
    return table[:, 0], table[:, 1]


def _time_axis(axes: Axes) -> None:
    """Epoch seconds as the time of the day, UTC."""
    start, end = axes.dataLim.intervalx
    step = next((step for step in _TICKS_SECONDS if (end - start) / step <= _MOST_TICKS), _TICKS_SECONDS[-1])
    form = "%H:%M:%S" if step < 60 else "%H:%M"
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: datetime.fromtimestamp(at, UTC).strftime(form)))
    axes.margins(x=0)


def _colors() -> Iterator[str]:
    while True:
        yield from _PALETTE
