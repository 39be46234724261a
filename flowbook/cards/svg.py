"""Small charts as SVG, for where no browser code runs: lines, points, areas and bars with axes and a legend.

`from_vega` reads what is simple in a Vega-Lite specification; for all else it gives None, and the caller shows the data as a table.
All text is escaped here. Lines differ by dashes, too, never by colour alone.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Json = Any

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40  # pixels around the plot
COLOURS = ("#3572b0", "#c25b12", "#2f8f5b", "#a3499c", "#8a6d00", "#2a8c99", "#b8354b", "#666f7a")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4", "4 2", "12 3 3 3")
CATEGORIES = 60  # on an axis
SERIES = 20
MARKS = {
    "line": "line",
    "trail": "line",
    "area": "area",
    "bar": "bar",
    "point": "point",
    "circle": "point",
    "square": "point",
    "tick": "point",
}


@dataclass(frozen=True)
class Series:
    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]  # None: a gap
    mark: str = "line"


@dataclass(frozen=True)
class Chart:
    """`categories`: x are places in this list. `temporal`: x are seconds since the epoch."""

    series: Sequence[Series]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    categories: Sequence[str] = ()
    temporal: bool = False


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def draw(chart: Chart) -> str | None:
    """An `<svg>`; None if there is nothing to draw, or numbers too far apart."""
    points = [(x, y) for series in chart.series for x, y in zip(series.xs, series.ys, strict=False) if y is not None]
    if not points or not chart.series:
        return None
    bars = any(series.mark in ("bar", "area") for series in chart.series)
    x = _scale([x for x, _ in points], LEFT, WIDTH - RIGHT, 0.5 if chart.categories else 0.0)
    y = _scale([*(y for _, y in points), *([0.0] if bars else [])], HEIGHT - BOTTOM, TOP, 0.0)
    if x is None or y is None:
        return None
    label = f"{chart.title or 'chart'}: {', '.join(series.name for series in chart.series[:8])}"
    drawn = [f'<svg class="fbc-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label[:300], quote=True)}">']
    drawn += _axes(chart, x, y)
    for i, series in enumerate(chart.series[:SERIES]):
        drawn += _marks(series, i, x, y, _bar_width(chart, x))
    drawn.append("</svg>")
    return "".join(drawn) + _legend(chart)


def _scale(values: Sequence[float], start: float, stop: float, around: float) -> _Scale | None:
    low, high = min(values) - around, max(values) + around
    if high <= low:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    return _Scale(low, high, start, stop) if math.isfinite(high - low) and high > low else None


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two, at most some more than `most`."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next((factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most), 10)
    first = math.ceil(low / step)
    return [n * step for n in range(first, first + most + 2) if n * step <= high + step * 1e-9]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e7 else f"{value:.4g}"


def _axes(chart: Chart, x: _Scale, y: _Scale) -> list[str]:
    drawn = []
    for value in _ticks(y.low, y.high, 5):
        at = f"{y(value):.1f}"
        drawn.append(f'<line class="fbc-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{at}" dy="0.32em" text-anchor="end">{_shown(value)}</text>')
    for value, text in _x_ticks(chart, x):
        drawn.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>')
    drawn.append(f'<line class="fbc-axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    if chart.x_label:
        drawn.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.x_label[:80])}</text>')
    if chart.y_label:
        middle = (TOP + HEIGHT - BOTTOM) / 2
        drawn.append(
            f'<text transform="rotate(-90 12 {middle})" x="12" y="{middle}" text-anchor="middle">{escape(chart.y_label[:40])}</text>'
        )
    return drawn


def _x_ticks(chart: Chart, x: _Scale) -> list[tuple[float, str]]:
    if chart.categories:
        every = math.ceil(len(chart.categories) / 8)
        return [(i, name[:14] + ("…" if len(name) > 14 else "")) for i, name in enumerate(chart.categories) if i % every == 0]
    ticks = _ticks(x.low, x.high, 6)
    return [(value, _moment(value, x.high - x.low) if chart.temporal else _shown(value)) for value in ticks]


def _moment(seconds: float, span: float) -> str:
    try:
        found = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return _shown(seconds)
    return found.strftime("%H:%M:%S" if span < 86_400 else "%Y-%m-%d")


def _bar_width(chart: Chart, x: _Scale) -> float:
    places = sorted({at for series in chart.series if series.mark == "bar" for at in series.xs})
    gaps = [b - a for a, b in itertools.pairwise(places)]
    step = abs(x(x.low + min(gaps, default=1)) - x(x.low)) if places else 0
    return max(min(step * 0.8, 60.0), 1.0)


def _marks(series: Series, number: int, x: _Scale, y: _Scale, width: float) -> list[str]:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    points = [(x(a), y(b)) if b is not None else None for a, b in zip(series.xs, series.ys, strict=False)]
    if series.mark == "bar":
        zero = y(min(max(0.0, y.low), y.high))
        return [
            f'<rect x="{a - width / 2:.1f}" y="{min(b, zero):.1f}" width="{width:.1f}" height="{abs(zero - b):.1f}" fill="{colour}" '
            f'fill-opacity="0.8"/>'
            for a, b in filter(None, points)
        ]
    if series.mark == "point" or sum(point is not None for point in points) == 1:
        return [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}" fill-opacity="0.8"/>' for a, b in filter(None, points)]
    path, pen = [], "M"
    for point in points:
        if point is not None:
            path.append(f"{pen}{point[0]:.1f},{point[1]:.1f}")
        pen = "L" if point is not None else "M"
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return [f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"{dashed}/>']


def _legend(chart: Chart) -> str:
    if len(chart.series) < 2:
        return ""
    items = []
    for i, series in enumerate(chart.series[:SERIES]):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        line = f'<line x1="0" x2="22" y1="5" y2="5" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>'
        items.append(f'<li><svg width="22" height="10" aria-hidden="true">{line}</svg> <bdi>{escape(series.name[:60])}</bdi></li>')
    more = f"<li>and {len(chart.series) - SERIES} more</li>" if len(chart.series) > SERIES else ""
    return f'<ul class="fbc-legend">{"".join(items)}{more}</ul>'


# ---- Vega-Lite -------------------------------------------------------------------------------------------------------


def from_vega(spec: Mapping[str, Json]) -> Chart | None:
    """A chart of what is simple: marks of MARKS over x and y (and a colour), of data in the specification, as it is."""
    if {"facet", "hconcat", "vconcat", "concat", "repeat", "transform", "marks"} & set(spec):
        return None
    layers = spec.get("layer")
    parts = [part for part in layers if isinstance(part, dict)] if isinstance(layers, list) else [spec]
    found: list[Series] = []
    axes: list[_Axis] = []
    for part in parts[:SERIES]:
        series = _layer(spec, part, axes)
        if series is None:
            return None
        found += series
    if not found or not axes:
        return None
    title = spec.get("title")
    title = title.get("text") if isinstance(title, dict) else title
    axis = axes[0]
    return Chart(found, title if isinstance(title, str) else "", axis.x_label, axis.y_label, axis.categories, axis.temporal)


@dataclass(frozen=True)
class _Axis:
    x_label: str
    y_label: str
    categories: list[str]
    temporal: bool


def _layer(spec: Mapping[str, Json], part: Mapping[str, Json], axes: list[_Axis]) -> list[Series] | None:
    mark = part.get("mark")
    mark = mark.get("type") if isinstance(mark, dict) else mark
    encoding = {**_dict(spec.get("encoding")), **_dict(part.get("encoding"))}
    x, y, colour = _dict(encoding.get("x")), _dict(encoding.get("y")), _dict(encoding.get("color"))
    rows = vega_rows(spec, part)
    plain = all(isinstance(axis.get("field"), str) and not {"aggregate", "bin", "timeUnit", "stack"} & set(axis) for axis in (x, y))
    if not isinstance(mark, str) or mark not in MARKS or not plain or not rows or "transform" in part:
        return None
    if y.get("type") in ("nominal", "ordinal") and x.get("type") == "quantitative":
        x, y = y, x
    if not axes:
        named = [str(row.get(x["field"])) for row in rows] if x.get("type") in ("nominal", "ordinal") else []
        axes.append(_Axis(_label(x), _label(y), list(dict.fromkeys(named)), x.get("type") == "temporal"))
    if len(axes[0].categories) > CATEGORIES:
        return None
    groups: dict[str, list[tuple[float, float | None]]] = {}
    for row in rows:
        at, value = _place(row.get(x["field"]), axes[0]), row.get(y["field"])
        if at is not None:
            name = str(row.get(colour["field"])) if isinstance(colour.get("field"), str) else _label(y)
            groups.setdefault(name, []).append((at, _number(value)))
    return [_series(name, points, MARKS[mark]) for name, points in groups.items()]


def _series(name: str, points: list[tuple[float, float | None]], mark: str) -> Series:
    ordered = sorted(points, key=lambda point: point[0])
    return Series(name, [x for x, _ in ordered], [y for _, y in ordered], mark)


def vega_rows(spec: Mapping[str, Json], part: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The records of a layer's data that stand in the specification."""
    data = _dict(part.get("data")) or _dict(spec.get("data"))
    values = data.get("values")
    if isinstance(data.get("name"), str) and values is None:
        values = _dict(spec.get("datasets")).get(data["name"])
    if not isinstance(values, list):
        return []
    return [row if isinstance(row, dict) else {"data": row} for row in values]


def _dict(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _label(axis: Mapping[str, Json]) -> str:
    title = axis.get("title")
    return title if isinstance(title, str) else str(axis.get("field", ""))


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _place(value: Json, axis: _Axis) -> float | None:
    if axis.categories:
        return float(axis.categories.index(str(value)))
    if not axis.temporal:
        return _number(value)
    if isinstance(value, str):
        try:
            found = datetime.datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    number = _number(value)
    return number / 1000 if number is not None else None  # milliseconds in Vega
