"""What people append that is no component yet: a text, a data frame, a figure, a dict.

Libraries are recognised only if the step has imported them already; nothing is imported here. Never raises: what cannot be shown in any
way is shown by its repr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowbook.cards import components as parts
from flowbook.cards import frames, plain
from flowbook.cards.components import Component
from flowbook.store import preview

Json = Any

TRACES = 50  # of a plotly figure
TRACE_POINTS = 5_000


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
    ):
        return parts.Image(value)
    if _is_altair(value):
        return parts.VegaChart(value)
    if frames.is_a(value, "plotly.basedatatypes", "BaseFigure"):
        return plotly_chart(value)
    if isinstance(value, (bytes, bytearray)):
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


def _is_altair(value: object) -> bool:
    return type(value).__module__.startswith("altair.") and callable(getattr(value, "to_dict", None))


# ---- plotly ----------------------------------------------------------------------------------------------------------


def plotly_chart(figure: Any) -> Component:
    """The lines, points, bars and histograms of a plotly figure as a chart; other traces are told as what they are."""
    layers: list[dict[str, Json]] = []
    values: list[dict[str, Json]] = []
    for i, trace in enumerate(list(figure.data)[:TRACES]):
        mark = _plotly_mark(trace)
        if mark is None:
            kind = plain.text(getattr(trace, "type", "?"), 50)
            why = f"flowbook draws plotly's scatter, bar and histogram, not {kind!r}; append fig.to_image(), or Image(fig.to_image()), instead."
            return parts.Error(why, "this plotly figure cannot be drawn in a card")
        values += _plotly_points(trace, str(getattr(trace, "name", None) or f"trace {i}"))
        if mark not in [layer["mark"] for layer in layers]:
            layers.append({"mark": mark})
    axes = figure.layout
    x: dict[str, Json] = {"field": "x", "type": _type_of(values, "x"), "title": _axis_title(axes, "xaxis")}
    y: dict[str, Json] = {"field": "y", "type": _type_of(values, "y"), "title": _axis_title(axes, "yaxis")}
    for layer in layers:
        if layer["mark"]["type"] == "bar" and layer["mark"].pop("count", False):
            x, y = {**x, "bin": x["type"] == "quantitative"}, {"aggregate": "count", "type": "quantitative", "title": y["title"]}
        layer["transform"] = [{"filter": {"field": "mark", "equal": layer["mark"]["type"]}}]
        layer["encoding"] = {"x": x, "y": y, "color": {"field": "name", "type": "nominal", "title": None}}
    title = plain.text(getattr(getattr(axes, "title", None), "text", None) or "", parts.TITLE)
    return parts.VegaChart({**({"title": title} if title else {}), "data": {"values": values}, "layer": layers})


def _plotly_mark(trace: Any) -> dict[str, Json] | None:
    if trace.type in ("scatter", "scattergl"):
        points = "markers" in str(trace.mode or "") and "lines" not in str(trace.mode or "")
        return {"type": "point", "filled": True} if points else {"type": "line"}
    if trace.type == "bar":
        return {"type": "bar"}
    return {"type": "bar", "count": True} if trace.type == "histogram" else None


def _plotly_points(trace: Any, name: str) -> list[dict[str, Json]]:
    xs, ys = ([plain.cell(v) for v in plain.some(axis, TRACE_POINTS)] for axis in (trace.x, trace.y))
    mark = (_plotly_mark(trace) or {})["type"]
    size = max(len(xs), len(ys))
    return [
        {"x": xs[i] if i < len(xs) else i, "y": ys[i] if i < len(ys) else None, "name": plain.text(name, 100), "mark": mark}
        for i in range(size)
    ]


def _type_of(values: list[dict[str, Json]], axis: str) -> str:
    seen = [value[axis] for value in values if value[axis] is not None]
    return "quantitative" if all(isinstance(value, (int, float)) for value in seen) else "nominal"


def _axis_title(layout: Any, axis: str) -> str | None:
    title = getattr(getattr(getattr(layout, axis, None), "title", None), "text", None)
    return plain.text(title, parts.TITLE) if title else None
