"""What people append that is no component yet: a text, a data frame, a figure, a dict.

Libraries are recognised only if the step has imported them already; nothing is imported here. Never raises: what cannot be shown in any
way is shown by its repr.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from flowbook.cards import components as parts
from flowbook.cards import frames, plain
from flowbook.cards.components import Component
from flowbook.store import preview

Json = Any

TRACES = 50  # of a plotly figure
TRACE_POINTS = 5_000
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d|\Z)")


def component_of(value: object) -> Component:
    """The component that shows a value best; a component is itself."""
    if isinstance(value, Component):
        return value
    try:
        return _component_of(value)
    except Exception as error:  # of a foreign object whose attributes do odd things
        return parts.Error(f"{type(error).__name__}: {plain.text(error, 1_000)}", f"{preview.type_name(value)} cannot be shown")


def _component_of(value: object) -> Component:
    if isinstance(value, str):
        return parts.Markdown(value)
    if isinstance(value, BaseException):
        return parts.Error(value)
    if isinstance(value, type):
        return parts.Artifact(value)
    if frames.is_frame(value):
        return parts.Table.from_dataframe(value)
    if (
        frames.is_a(value, "matplotlib.figure", "Figure")
        or frames.is_a(value, "matplotlib.axes", "Axes")
        or frames.is_a(value, "PIL.Image", "Image")
        or _is_figure(value)
    ):
        return parts.Image(value)
    if _is_altair(value):
        return parts.VegaChart(value)
    if frames.is_a(value, "plotly.basedatatypes", "BaseFigure"):
        return plotly_chart(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return parts.Image(bytes(value))
    if isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list)) for part in value)):
        return parts.JSONViewer(value)
    return _by_its_repr(value)


def _by_its_repr(value: object) -> Component:
    """By the methods with which an object shows itself in a notebook."""
    ways: dict[str, Callable[[Any], Component]] = {
        "_repr_markdown_": parts.Markdown,
        "_repr_png_": parts.Image,
        "_repr_svg_": _svg,
        "_repr_html_": parts.HTML,
    }
    for name, make in ways.items():
        method = getattr(type(value), name, None)
        found = method(value) if callable(method) else None
        if isinstance(found, tuple):
            found = found[0]
        if isinstance(found, (str, bytes)):
            return make(found)
    return parts.Artifact(value)


def _svg(text: str | bytes) -> Component:
    return parts.Image(text.encode() if isinstance(text, str) else text)


def _is_figure(value: object) -> bool:
    """Whether it is what plt.subplots gives beside the figure, an array of axes, or a grid of seaborn, which is drawn by its figure."""
    first = next(iter(value.flat), None) if frames.is_a(value, "numpy", "ndarray") else getattr(value, "figure", None)  # type: ignore[attr-defined]
    return frames.is_a(first, "matplotlib.axes", "Axes") or (
        frames.is_a(first, "matplotlib.figure", "Figure") and callable(getattr(value, "savefig", None))
    )


def _is_altair(value: object) -> bool:
    return type(value).__module__.startswith("altair.") and callable(getattr(value, "to_dict", None))


# ---- plotly ----------------------------------------------------------------------------------------------------------


def plotly_chart(figure: Any) -> Component:
    """The lines, points, bars and histograms of a plotly figure as a chart; other traces are told as what they are."""
    by_mark: dict[str, list[dict[str, Json]]] = {}
    for i, trace in enumerate(list(figure.data)[:TRACES]):
        mark = _plotly_mark(trace)
        if mark is None:
            kind = plain.text(getattr(trace, "type", "?"), 50)
            why = f"flowbook draws plotly's scatter, bar and histogram, not {kind!r}; append fig.to_image(), or Image(fig.to_image()), instead."
            return parts.Error(why, "this plotly figure cannot be drawn in a card")
        by_mark.setdefault(mark, []).extend(_plotly_points(trace, str(getattr(trace, "name", None) or f"trace {i}")))
    every = [value for values in by_mark.values() for value in values]
    x = {"field": "x", "type": _type_of(every, "x"), "title": _axis_title(figure.layout, "xaxis")}
    y = {"field": "y", "type": _type_of(every, "y"), "title": _axis_title(figure.layout, "yaxis")}
    layers = [_plotly_layer(mark, values, x, y) for mark, values in by_mark.items()]
    title = plain.text(getattr(getattr(figure.layout, "title", None), "text", None) or "", parts.TITLE)
    return parts.VegaChart({**({"title": title} if title else {}), **(layers[0] if len(layers) == 1 else {"layer": layers})})


def _plotly_layer(mark: str, values: list[dict[str, Json]], x: Mapping[str, Json], y: Mapping[str, Json]) -> dict[str, Json]:
    across, up = dict(x), dict(y)
    if mark == "histogram":
        across["bin"] = x["type"] == "quantitative"
        up = {"aggregate": "count", "type": "quantitative", "title": y["title"]}
    drawn = {"type": "bar" if mark == "histogram" else mark, **({"filled": True} if mark == "point" else {})}
    return {
        "data": {"values": values},
        "mark": drawn,
        "encoding": {"x": across, "y": up, "color": {"field": "name", "type": "nominal", "title": None}},
    }


def _plotly_mark(trace: Any) -> str | None:
    if trace.type in ("scatter", "scattergl"):
        mode = str(trace.mode or "lines")
        return "point" if "markers" in mode and "lines" not in mode else "line"
    return trace.type if trace.type in ("bar", "histogram") else None


def _plotly_points(trace: Any, name: str) -> list[dict[str, Json]]:
    xs, ys = (plain.plain(plain.some(axis, TRACE_POINTS)) for axis in (trace.x, trace.y))
    shown = plain.text(name, 100)
    size = max(len(xs), len(ys))
    return [{"x": xs[i] if i < len(xs) else i, "y": ys[i] if i < len(ys) else None, "name": shown} for i in range(size)]


def _type_of(values: list[dict[str, Json]], axis: str) -> str:
    seen = [value[axis] for value in values if value[axis] is not None]
    if all(isinstance(value, (int, float)) for value in seen):
        return "quantitative"
    return "temporal" if all(isinstance(value, str) and DATE.match(value) for value in seen) else "nominal"


def _axis_title(layout: Any, axis: str) -> str | None:
    title = getattr(getattr(getattr(layout, axis, None), "title", None), "text", None)
    return plain.text(title, parts.TITLE) if title else None
