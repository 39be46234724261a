"""Cards: what components keep, what reads them back, how they are drawn, and how a running step shows them."""

from __future__ import annotations

import base64
import builtins
import dataclasses
import html.parser
import itertools
import json
import math
import os
import queue
import sys
import threading
import types
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook import cards as public
from flowbook.cards import (
    HTML,
    Artifact,
    Card,
    Component,
    Error,
    EventsTimeline,
    Image,
    JSONViewer,
    LineChart,
    Markdown,
    MetaflowCard,
    ProgressBar,
    PythonCode,
    Table,
    ValueBox,
    VegaChart,
    YAMLViewer,
    convert,
    custom,
    plain,
    read,
    shown,
    svg,
    whole,
    wire,
)
from flowbook.cards import html as drawing
from flowbook.engine.server import LATEST, Client
from flowbook.errors import StoreFull
from flowbook.spec.flow import Card as CardOptions
from flowbook.store import layout
from flowbook.store.files import FilesStore
from flowbook.worker import card as live
from flowbook.worker import output
from tests.test_scheduler import Bench, step
from tests.worker_project import FLOW, RUN, Project, cell

Json = Any
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"
    b"\x00\x00\x00\rIDATx\x9cc\xf8\xcf\xc0\xf0\x1f\x00\x05\x00\x01\xff\x89\x99=\x1d\x00\x00\x00\x00IEND\xaeB`\x82"
)
NAN, INF = math.nan, math.inf


class Odd:
    """Whose str and repr raise."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class OddRows:
    def __iter__(self) -> Any:
        raise RuntimeError("no rows today")


def points(component: LineChart, number: int = 0) -> list[tuple[float, float | None]]:
    line = component.to_json()["series"][number]
    return list(zip(line["x"], line["y"], strict=True))


def packed(*components: Component, **head: Json) -> bytes:
    """A card of these components as bytes."""
    entries = [(part.id or f"#{i}", part.freeze()) for i, part in enumerate(components)]
    return wire.write({"id": "main", "type": "blank", "state": "running", "n": 1, **head}, entries)


# ---- components ------------------------------------------------------------------------------------------------------

SHOWN = [
    (Markdown("## Epoch 3"), {"type": "markdown", "text": "## Epoch 3"}),
    (Table([["Loss", "0.1234"]]), {"type": "table", "headers": [], "rows": [["Loss", "0.1234"]]}),
    (Table([[1, True], [2.5, None]], headers=["a", "b"]), {"type": "table", "headers": ["a", "b"], "rows": [[1, True], [2.5, None]]}),
    (Table([{"a": 1}, {"a": 2, "b": 3}]), {"type": "table", "headers": ["a", "b"], "rows": [[1, None], [2, 3]]}),
    (Table({"a": [1, 2], "b": [3]}), {"type": "table", "headers": ["a", "b"], "rows": [[1, 3], [2, None]]}),
    (Table({"lr": 0.1}), {"type": "table", "headers": [], "rows": [["lr", 0.1]]}),
    (Table(["x", 1]), {"type": "table", "headers": [], "rows": [["x"], [1]]}),
    (Table(), {"type": "table", "headers": [], "rows": []}),
    (VegaChart({"mark": "bar"}), {"type": "vega", "spec": {"mark": "bar"}}),
    (VegaChart({"mark": "bar"}, show_controls=True), {"type": "vega", "controls": True, "spec": {"mark": "bar"}}),
    (
        ProgressBar(50, "epochs", 3, "epoch", "slow"),
        {"type": "progress", "max": 50, "label": "epochs", "unit": "epoch", "value": 3, "details": "slow"},
    ),
    (ValueBox("Loss", 0.5, theme="success"), {"type": "value", "title": "Loss", "value": 0.5, "theme": "success"}),
    (Artifact([1, 2], "xs"), {"type": "artifact", "name": "xs", "of": "list", "text": "[1, 2]"}),
    (Error("broken", "Oh"), {"type": "error", "title": "Oh", "text": "broken"}),
    (PythonCode(code_string="x = 1"), {"type": "code", "text": "x = 1", "language": "python"}),
    (JSONViewer({"a": [1]}), {"type": "json", "collapsible": True, "copy": True, "data": {"a": [1]}}),
    (JSONViewer('{"a": 1}', title="t"), {"type": "json", "title": "t", "collapsible": True, "copy": True, "data": {"a": 1}}),
    (YAMLViewer([1], max_height="300px"), {"type": "yaml", "collapsible": True, "max_height": "300px", "copy": True, "data": [1]}),
    (HTML("<b>x</b>", height=90), {"type": "html", "html": "<b>x</b>", "height": 90}),
]


@pytest.mark.parametrize(("component", "expected"), SHOWN, ids=lambda value: type(value).__name__ if isinstance(value, Component) else "")
def test_a_component_is_plain_json(component: Component, expected: Json) -> None:
    assert component.to_json() == expected


def test_every_component_comes_back_from_the_wire_as_it_was() -> None:
    timeline = EventsTimeline("calls", max_events=2)
    timeline.update({"tool": "search", "n": 3}, "success", "high", payloads={"code": PythonCode(code_string="x"), "note": "**hi**"})
    chart = LineChart("loss")
    chart.add("train", 0.5)
    parts = [*(component for component, _ in SHOWN), timeline, chart, Image(PNG, "dot"), Table([["bar", ProgressBar(value=3)]])]

    assert [part["type"] for part in read(packed(*parts))["components"]] == [part.type for part in parts]
    assert [{k: v for k, v in part.items() if k != "id"} for part in read(packed(*parts))["components"]] == [
        part.to_json() for part in parts
    ]


def test_the_classes_that_make_components_are_public() -> None:
    made = {value.type for value in vars(public).values() if isinstance(value, type) and issubclass(value, Component) and value.type}

    assert made == set(wire.FIELDS) and set(public.__all__) == {name for name in public.__all__ if hasattr(public, name)}


UPDATES: list[tuple[Any, Callable[[Any], None], str, Json]] = [
    (Markdown("a"), lambda c: c.update("b"), "text", "b"),
    (Table([[1]], headers=["h"]), lambda c: c.update([[2]]), "rows", [[2]]),
    (Table([[1]], headers=["h"]), lambda c: c.update([[2]]), "headers", ["h"]),
    (VegaChart({"a": 1}), lambda c: c.update({"a": 2}), "spec", {"a": 2}),
    (Image(PNG, "one"), lambda c: c.update(PNG, "two"), "label", "two"),
    (Image(PNG, "one"), lambda c: c.update(PNG), "label", "one"),
    (ProgressBar(10), lambda c: c.update(4, "more"), "value", 4),
    (ValueBox("t", 1, "s"), lambda c: c.update(value=2), "value", 2),
    (ValueBox("t", 1, "s"), lambda c: c.update(value=2), "subtitle", "s"),
    (Artifact(1), lambda c: c.update([2]), "text", "[2]"),
    (JSONViewer([1]), lambda c: c.update([2]), "data", [2]),
    (YAMLViewer([1]), lambda c: c.update([2]), "data", [2]),
    (HTML("a"), lambda c: c.update("b"), "html", "b"),
]


@pytest.mark.parametrize(("component", "update", "field", "expected"), UPDATES)
def test_an_update_shows_and_what_was_frozen_before_stays(
    component: Any, update: Callable[[Any], None], field: str, expected: Json
) -> None:
    before = component.freeze()
    text = before.text()
    update(component)

    assert component.to_json()[field] == expected and before.text() == text


def test_a_list_changed_in_place_is_shown_as_it_was_until_the_update() -> None:
    rows, spec = [["a", 1]], {"data": {"values": [1]}}
    table, chart = Table(rows), VegaChart(spec)
    rows[0][1] = 2
    spec["data"]["values"].append(2)

    assert table.to_json()["rows"] == [["a", 1]] and chart.to_json()["spec"]["data"]["values"] == [1]

    table.update(rows)
    assert table.to_json()["rows"] == [["a", 2]]


def test_a_component_in_a_cell_is_updated_in_its_place() -> None:
    bar = ProgressBar(10)
    table = Table([["epochs", bar]])
    before = table.freeze()
    bar.update(7)

    assert table.to_json()["rows"] == [["epochs", {"type": "progress", "max": 10, "value": 7}]]
    assert json.loads(before.text())["rows"][0][1]["value"] == 0


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
BAD: list[tuple[Callable[[], Component], str]] = [
    (lambda: Table(3), "TypeError"),
    (lambda: Table(OddRows()), "no rows today"),
    (lambda: Table.from_dataframe([1, 2]), "needs a data frame"),
    (lambda: VegaChart(3), "not int"),
    (lambda: VegaChart({"data": "x" * 5_000_000}), "MB as JSON"),
    (lambda: Image(b"abc"), "no PNG"),
    (lambda: Image("/nowhere/at/all.png"), "FileNotFoundError"),
    (lambda: Image("https://example.org/a.png"), "loads nothing from elsewhere"),
    (lambda: Image("data:text/html;base64,AAAA"), "must be base64"),
    (lambda: Image(PNG + b"\0" * 4_000_000), "lower dpi"),
    (lambda: Image(3), "a int is no image"),
    (lambda: Image(None), "is no image"),
    (lambda: ValueBox("t", 1, theme="pink"), "no theme 'pink'"),
    (lambda: PythonCode(), "code_func"),
    (lambda: PythonCode(code_func=len), "TypeError"),
    (lambda: HTML("x" * 5_000_000), "at most 4 MB"),
    (lambda: JSONViewer(["x" * 90_000] * 50), "as JSON"),
]


@pytest.mark.parametrize(("make", "why"), BAD)
def test_what_cannot_be_shown_becomes_an_error_that_says_why(make: Callable[[], Component], why: str) -> None:
    shown = make().to_json()

    assert shown["type"] == "error" and why in shown["text"] and "cannot be shown" in shown["title"]


@pytest.mark.parametrize(
    "component",
    [
        Markdown(Odd()),
        Markdown(None),
        Artifact(Odd()),
        JSONViewer(CYCLE),
        JSONViewer({Odd(): Odd()}),
        Table([[Odd(), CYCLE]]),
        ProgressBar(Odd()),
    ],
)
def test_odd_values_are_shown_as_far_as_they_can_be(component: Component) -> None:
    shown = read(packed(component))["components"][0]

    assert shown["type"] == component.type and json.dumps(shown, allow_nan=False)


def test_a_component_that_failed_is_whole_again_after_a_good_update() -> None:
    chart = VegaChart(None)
    chart.update({"mark": "line"})

    assert chart.to_json() == {"type": "vega", "spec": {"mark": "line"}}


def test_numbers_that_a_browser_would_change_stay_what_they_are() -> None:
    assert Table([[2**60, NAN, -INF, 2**53]]).to_json()["rows"] == [[str(2**60), "nan", "-inf", 2**53]]
    assert JSONViewer({"id": 2**60, "x": NAN, "d": date(2026, 1, 2)}).to_json()["data"] == {"id": str(2**60), "x": "nan", "d": "2026-01-02"}
    assert VegaChart({"values": [1.0, NAN, INF]}).to_json()["spec"] == {"values": [1.0, None, None]}
    assert ProgressBar(max=INF, value=NAN).to_json() == {"type": "progress", "value": 0}


def test_a_long_table_says_what_it_leaves_out() -> None:
    long, wide = Table([[i] for i in range(5_000)]).to_json(), Table([[0] * 300] * 3).to_json()

    assert len(long["rows"]) == 1_000 and long["rows_left_out"] == 4_000
    assert len(wide["rows"][0]) == 100 and wide["columns_left_out"] == 200


def test_numbers_of_a_table_have_six_digits_and_all_of_them_on_pointing_there() -> None:
    cells = [drawing._cell(value) for value in (1 / 3, 0.5, 12345, 1e-9, -2.0)]

    assert cells == [
        '<td><span title="0.3333333333333333">0.333333</span></td>',
        "<td>0.5</td>",
        "<td>12,345</td>",
        "<td>1e-09</td>",
        '<td><span title="-2.0">-2</span></td>',
    ]


def test_a_table_inside_itself_ends() -> None:
    table = Table([["x"]])
    table.update([[table]])

    assert "nested more than" in table.freeze().text()
    assert read(packed(table))["components"][0]["type"] == "table"


def test_a_component_of_ones_own_renders_others_or_html() -> None:
    class Pair(Component):
        def __init__(self, value: int) -> None:
            self.value = value

        def render(self) -> object:
            return Table([["value", 10 // self.value]])

    class Page(Component):
        def render(self) -> object:
            return "<b>x</b>"

    class Endless(Component):
        def render(self) -> object:
            return self

    assert [Pair(5).to_json()["rows"], Pair(0).to_json()["title"]] == [[["value", 2]], "Pair cannot be shown"]
    assert Page().to_json() == {"type": "html", "html": "<b>x</b>"} and "nested more than" in Endless().to_json()["text"]


def test_a_timeline_counts_all_and_keeps_the_last() -> None:
    timeline = EventsTimeline(max_events=3)
    for i in range(10):
        timeline.update({"i": i}, style_theme="no such theme", priority="high")
    timeline.update(finished=True)
    shown = timeline.to_json()

    assert [event["data"]["i"] for event in shown["events"]] == [9, 8, 7] and shown["count"] == 10 and shown["finished"] is True
    assert "theme" not in shown["events"][0] and shown["events"][0]["priority"] == "high"
    assert timeline.get_stats()["total_events"] == 10 and timeline.get_stats()["displayed_events"] == 3


def test_a_line_of_any_length_keeps_its_ends_and_its_spikes_in_bounded_memory() -> None:
    chart = LineChart()
    for i in range(100_000):
        chart.add("loss", 9.0 if i == 33_333 else -9.0 if i == 77_777 else math.sin(i / 900))
    found = points(chart)

    assert len(found) <= 2_010 and found[0][0] == 0 and found[-1] == (99_999, math.sin(99_999 / 900))
    assert (33_333, 9.0) in found and (77_777, -9.0) in found
    assert [x for x, _ in found] == sorted(x for x, _ in found) and chart.to_json()["series"][0]["count"] == 100_000
    assert max(b - a for (a, _), (b, _) in itertools.pairwise(found)) < 500  # as fine at the start as at the end


def test_a_gap_in_a_line_is_a_gap_and_too_many_lines_are_told() -> None:
    chart = LineChart()
    for y in (1, NAN, "x", 2):
        chart.add("a", y)
    for i in range(60):
        chart.add(f"line {i}", i)

    assert points(chart) == [(0, 1), (1, None), (2, None), (3, 2)]
    assert len(chart.to_json()["series"]) == 50 and "only the first 50" in chart.to_json()["left_out"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4) | st.tuples(inner),
    max_leaves=20,
)


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_whatever_a_component_is_given_the_card_can_be_read_and_drawn(value: Any) -> None:
    parts = [
        Markdown(value),
        Table(value),
        JSONViewer(value),
        Artifact(value),
        VegaChart(value),
        ValueBox("v", value),
        convert.component_of(value),
    ]
    card = read(packed(*parts))

    assert [part["type"] for part in card["components"]] == [json.loads(part.freeze().text())["type"] for part in parts]
    assert drawing.page([card]).startswith("<!DOCTYPE html>")


# ---- what else can be appended ---------------------------------------------------------------------------------------


def test_a_data_frame_becomes_a_table_with_its_index() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"lr": [0.1, None], "when": [pandas.Timestamp("2026-01-02"), pandas.NaT]}, index=pandas.Index(["a", "b"], name="run")
    )

    shown = convert.component_of(frame).to_json()
    assert shown["headers"] == ["run", "lr", "when"]
    assert shown["rows"] == [["a", 0.1, "2026-01-02 00:00:00"], ["b", "nan", "NaT"]]
    assert len(Table(frame["lr"]).to_json()["rows"]) == 2

    long = pandas.DataFrame({"x": range(3_000)})
    assert len(Table.from_dataframe(long).to_json()["rows"]) == 100 and Table.from_dataframe(long).to_json()["rows_left_out"] == 2_900
    assert len(Table.from_dataframe(long, truncate=False).to_json()["rows"]) == 1_000
    assert Table(pandas.DataFrame()).to_json()["rows"] == []


def test_figures_and_images_of_libraries_become_images() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image as Pillow

    figure, axes = pyplot.subplots()
    axes.plot([1, 2])
    for made in (convert.component_of(figure), convert.component_of(axes), Image.from_matplotlib(axes), Image.from_matplotlib(pyplot)):
        assert made.to_json()["src"].startswith("data:image/png;base64,")
    for mode in ("RGB", "F", "CMYK"):
        assert Image.from_pil_image(Pillow.new(mode, (3, 3)), "dot").to_json()["src"].startswith("data:image/png")
    assert convert.component_of(Pillow.new("L", (2, 2))).type == "image"
    assert len(Image(Pillow.new("RGB", (6_000, 10))).to_json()["src"]) < 10_000, "a photograph is made smaller"
    _, axes = pyplot.subplots(1, 2)
    assert convert.component_of(axes).type == "image"
    grid = type("Grid", (), {"figure": figure, "savefig": figure.savefig})()
    assert convert.component_of(grid).type == "image", "as those of seaborn"
    assert convert.component_of(memoryview(PNG)).type == "image"
    pyplot.close("all")


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")

    assert Table(numpy.array([[1, 2], [3, 4]])).to_json()["rows"] == [[1, 2], [3, 4]]
    assert Table([[numpy.float32(0.5), numpy.int64(2**60)]]).to_json()["rows"] == [[0.5, str(2**60)]]
    assert JSONViewer({"a": numpy.arange(3), "b": numpy.float64(NAN)}).to_json()["data"] == {"a": [0, 1, 2], "b": "nan"}
    assert ValueBox("v", numpy.float64(0.25)).to_json()["value"] == 0.25


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> type:
    """A class that counts as that of a library which is imported."""
    made = types.ModuleType(module)
    kind = type(name, (), {"__module__": module})
    setattr(made, name, kind)
    monkeypatch.setitem(sys.modules, module, made)
    return kind


def test_an_altair_chart_becomes_a_vega_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = stand_in(monkeypatch, "altair.vegalite.v5.api", "Chart")
    chart = kind()
    chart.to_dict = lambda: {"mark": "point", "data": {"name": "d"}, "datasets": {"d": [{"x": 1}]}}

    assert convert.component_of(chart).to_json()["spec"]["mark"] == "point"
    chart.to_dict = lambda: 1 / 0
    assert "ZeroDivisionError" in convert.component_of(chart).to_json()["text"]


def test_lines_points_and_bars_of_plotly_become_a_chart_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = stand_in(monkeypatch, "plotly.basedatatypes", "BaseFigure")
    figure = kind()
    title = types.SimpleNamespace(title=types.SimpleNamespace(text="loss"))
    figure.layout = types.SimpleNamespace(title=types.SimpleNamespace(text="run"), xaxis=title, yaxis=None)
    trace = types.SimpleNamespace(type="scatter", mode="lines", name="a", x=(1, 2), y=(3.0, NAN))
    figure.data = (trace, types.SimpleNamespace(type="bar", mode=None, name=None, x=["p", "q"], y=[1, 2]))

    spec = convert.component_of(figure).to_json()["spec"]
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["line", "bar"] and len(spec["layer"][0]["data"]["values"]) == 2
    figure.data = (trace,)
    assert convert.component_of(figure).to_json()["spec"]["encoding"]["y"]["type"] == "quantitative"
    assert "<circle" in drawing.fragment(read(packed(convert.component_of(figure))))  # of one point, since NaN is a gap
    figure.data = (types.SimpleNamespace(type="histogram", name=None, x=["2026-01-02", "2026-01-03"], y=None),)
    assert convert.component_of(figure).to_json()["spec"]["encoding"]["x"]["type"] == "temporal"
    figure.data = (types.SimpleNamespace(type="sankey", name="s"),)
    assert "sankey" in convert.component_of(figure).to_json()["text"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("**x**", "markdown"),
        (ValueError("x"), "error"),
        ({"a": 1}, "json"),
        ([{"a": 1}], "json"),
        (PNG, "image"),
        (3, "artifact"),
        (int, "artifact"),
    ],
)
def test_what_is_no_component_becomes_the_one_that_shows_it_best(value: Any, kind: str) -> None:
    assert convert.component_of(value).to_json()["type"] == kind


def test_an_object_is_shown_as_in_a_notebook() -> None:
    def made(**methods: Any) -> Any:
        return type("Shown", (), methods)()

    assert convert.component_of(made(_repr_markdown_=lambda self: "# x")).type == "markdown"
    assert convert.component_of(made(_repr_html_=lambda self: "<b>x</b>")).type == "html"
    assert convert.component_of(made(_repr_svg_=lambda self: "<svg/>")).to_json()["src"].startswith("data:image/svg+xml")
    assert convert.component_of(made(_repr_html_=lambda self: 1 / 0)).to_json()["type"] == "error"


# ---- what is read from a pod -----------------------------------------------------------------------------------------


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def card_of(*components: Json, **head: Json) -> str:
    return json.dumps({"v": 1, "id": "main", "type": "blank", "n": 1, "components": list(components), **head})


HOSTILE = {
    "nothing": "",
    "not json": "{",
    "binary": b"\xff\xfe\x00\x01",
    "a list": "[]",
    "null": "null",
    "a number": "1e999",
    "no version": '{"components": []}',
    "a later version": '{"v": 2, "components": []}',
    "too large": card_of({"type": "markdown", "text": "x" * 9_000_000}),
    "deep brackets": deep(200_000),
    "deep data": f'{{"v": 1, "components": [{{"type": "json", "data": {deep(500)}}}]}}',
    "deep objects": '{"v": 1, "components": [{"type": "json", "data": ' + '{"a":' * 900 + "1" + "}" * 900 + "}]}",
    "components are a string": '{"v": 1, "components": "abc"}',
    "components of wrong types": card_of(None, 3, "x", [], {}, {"type": 3}, {"type": ["markdown"]}, {"type": {"a": 1}}),
    "unknown type": card_of({"type": "script", "src": "x"}),
    "type of an attribute": card_of({"type": "__class__"}),
    "many components": card_of(*[{"type": "markdown", "text": str(i)} for i in range(20_000)]),
    "text is a list": card_of({"type": "markdown", "text": ["<script>"]}),
    "text is missing": card_of({"type": "markdown"}),
    "huge text": card_of({"type": "markdown", "text": "[" * 1_000_000}),
    "script in markdown": card_of({"type": "markdown", "text": "<script>fetch('//evil')</script><img src=x onerror=alert(1)>"}),
    "javascript link": card_of({"type": "markdown", "text": "[x](javascript:alert(1)) <a href='data:text/html,x'>y</a> [z](data:text/html;base64,AAAA)"}),
    "remote image": card_of({"type": "markdown", "text": "![x](http://evil/x.png) ![y](//evil/y.png)"}),
    "style": card_of({"type": "markdown", "text": "<style>*{background:url(http://evil)}</style><p style='x'>"}),
    "title with markup": card_of({"type": "error", "title": "<img src=x onerror=alert(1)>", "text": "</pre><script>1</script>"}),
    "table of objects": card_of({"type": "table", "headers": [{}, None, 3, "<b>"], "rows": [[{"type": "table", "rows": [[1]]}, {"a": 1}, [1]], 3, {}]}),
    "table rows a dict": card_of({"type": "table", "rows": {"a": 1}}),
    "tables in tables": card_of(json.loads('{"type":"table","rows":[[' * 9 + "1" + "]]}" * 9)),
    "many rows": card_of({"type": "table", "rows": [[1, 2, 3]] * 50_000}),
    "wide row": card_of({"type": "table", "rows": [list(range(50_000))]}),
    "nan": '{"v": 1, "n": NaN, "components": [{"type": "progress", "value": Infinity, "max": -Infinity}, {"type": "json", "data": [NaN]}]}',
    "long number": '{"v": 1, "n": ' + "9" * 5_000 + ', "components": [{"type": "value", "value": ' + "9" * 100_000 + "}]}",
    "huge float": '{"v": 1, "components": [{"type": "progress", "value": 1e308, "max": 1e-308}, {"type": "lines", "series": [{"x": [1e308, -1e308], "y": [1e308, -1e308]}]}]}',
    "lines of wrong types": card_of({"type": "lines", "series": [{"name": 3, "x": ["a", None, True, 4], "y": [1, 2, 3, "b"]}, 5, {"x": 1, "y": 2}]}),
    "remote image component": card_of({"type": "image", "src": "http://evil/x.png"}, {"type": "image", "src": 'data:image/png;base64,AA==" onload="x'}),
    "svg image as text": card_of({"type": "image", "src": "data:image/svg+xml,<svg onload=alert(1)>"}),
    "html with scripts": card_of({"type": "html", "html": "</iframe><script>1</script>\"'><img src=x onerror=y>", "height": 1e99}),
    "html of an artifact": card_of({"type": "artifact", "of": "<b>", "text": "x", "html": "<table onclick=x><script>1</script><svg onload=x></svg></table>"}),
    "vega with addresses": card_of({"type": "vega", "spec": {"data": {"url": "http://evil/d.csv"}, "mark": {"type": "image"}, "encoding": {"url": {"value": "http://evil"}, "href": {"signal": "1"}}}}),
    "vega of odd data": card_of({"type": "vega", "spec": {"mark": "bar", "data": {"values": [None, 3, {"x": {}}]}, "encoding": {"x": {"field": "x", "type": "nominal"}, "y": {"field": "y"}}}}),
    "vega is a list": card_of({"type": "vega", "spec": []}),
    "prototype": '{"v": 1, "components": [{"type": "json", "data": {"__proto__": {"polluted": 1}}, "__proto__": {"x": 1}}]}',
    "css in height": card_of({"type": "json", "data": 1, "max_height": "1px;background:url(http://evil)"}),
    "right to left": card_of({"type": "markdown", "text": "\u202egnp.exe"}, id="\u202emain", place={"step": "\u202e<b>", "index": [1, "x", -1]}),
    "lone surrogate": '{"v": 1, "id": "\\ud800", "components": [{"type": "markdown", "text": "\\udfff"}]}',
    "null bytes": card_of({"type": "markdown", "text": "a\0b"}, id="a\0b"),
    "place of wrong types": card_of(place={"flow": 3, "index": "abc", "attempt": -1}, at="x", state="<b>", left_out=-5),
    "moment far away": card_of({"type": "timeline", "events": [{"at": 1e300, "data": {"a": {}}}, 3]}, at=1e300),
    "timeline of odd events": card_of({"type": "timeline", "title": 3, "events": [{"data": [], "payloads": {"x": {"type": "timeline", "events": []}, "y": 3}, "theme": "<b>"}]}),
    "same id twice": card_of({"type": "markdown", "id": "a", "text": "1"}, {"type": "markdown", "id": "a", "text": "2"}),
    "id of wrong form": card_of({"type": "markdown", "id": ["x"], "text": "1"}, {"type": "markdown", "id": "x" * 10_000, "text": "2"}),
}  # fmt: skip


class Seen(html.parser.HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def assert_harmless(page: str) -> None:
    seen = Seen()
    seen.feed(page)
    for tag, attributes in seen.elements:
        assert tag not in {"script", "object", "embed", "link", "base", "form", "input", "foreignobject"}, tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert tag != "style" or "http" not in page.partition("</style>")[0].partition("<style>")[2]
        for name in ("src", "href", "srcset", "action", "background", "poster", "xlink:href"):
            address = attributes.get(name) or ""
            assert not address or (tag == "a" and address.startswith(("http", "mailto:", "#"))) or address.startswith("data:image/"), (
                attributes
            )
        if tag == "iframe":
            assert attributes["sandbox"] == "" and (attributes["srcdoc"] or "").startswith('<meta http-equiv="Content-Security-Policy"')
        if "style" in attributes:
            assert "url" not in (attributes["style"] or "")


def levels(value: Json) -> int:
    return 1 + max(map(levels, value.values() if isinstance(value, dict) else value), default=0) if isinstance(value, (dict, list)) else 0


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_is_read_bounded_and_drawn_without_harm(name: str) -> None:
    given = HOSTILE[name]
    card = read(given if isinstance(given, bytes) else given.encode())
    text = json.dumps(card, allow_nan=False)

    assert card["v"] == 1 and card["components"] is not None and len(card["components"]) <= 500 and len(text) < 8_100_000
    assert levels(card) <= 50 and "__proto__" not in text
    assert all(isinstance(part["id"], str) and part["type"] in wire.FIELDS for part in card["components"])
    assert wire.checked(card) == card
    assert_harmless(drawing.page([card, json.loads(text)]))


def test_there_are_enough_hostile_cards() -> None:
    assert len(HOSTILE) >= 30


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(sorted(wire.FIELDS)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(sorted({"type", "id", *(name for fields in wire.FIELDS.values() for name in fields)})), inner, max_size=5
        )
    ),
    max_leaves=25,
)


@given(st.lists(JUNK, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_junk_in_place_of_components_is_read_and_drawn(junk: list[Json]) -> None:
    card = wire.checked({"v": 1, "components": junk})

    json.dumps(card, allow_nan=False)
    assert wire.checked(card) == card
    assert_harmless(drawing.page([card]))


def test_a_card_that_is_too_large_says_what_is_left_out() -> None:
    image = Image(PNG + b"\0" * 2_000_000)
    data = packed(*[Markdown("first")], *[image] * 5, *[Markdown("x")] * 600)
    card = read(data)

    assert len(data) < 7_000_000 and [part["type"] for part in card["components"][:4]] == ["markdown", "image", "image", "error"]
    assert "more than 6 MB" in card["components"][3]["text"] and card["left_out"] == 106


def test_addresses_are_taken_out_of_charts() -> None:
    spec = {
        "data": {"url": "https://evil"},
        "layer": [{"encoding": {"url": {"field": "img"}, "href": {"signal": "x"}}}],
        "x": {"url": "data:,1"},
    }

    assert read(packed(VegaChart(spec)))["components"][0]["spec"] == {
        "data": {},
        "layer": [{"encoding": {"url": {"field": "img"}}}],
        "x": {"url": "data:,1"},
    }


# ---- drawing ---------------------------------------------------------------------------------------------------------


def test_a_page_is_whole_in_itself_and_shows_every_component() -> None:
    chart = LineChart("loss")
    for i in range(20):
        chart.add("train", 1 / (i + 1))
        chart.add("val", 2 / (i + 1))
    timeline = EventsTimeline("calls")
    timeline.update({"tool": "search"}, "error", payloads={"note": "seen"})
    parts = [*(component for component, _ in SHOWN), chart, timeline, Image(PNG, "a dot"), Markdown("| a |\n|---|\n| **b** |\n\n~~c~~")]
    place = {"flow": "demo", "run": "7", "step": "train", "index": [2], "attempt": 1}
    page = drawing.page([read(packed(*parts, place=place, at=1.8e9))], title="<run>")

    assert_harmless(page)
    for text in (
        "train[2]",
        "run 7 of demo",
        "attempt 2",
        "Epoch 3",
        "0.1234",
        "a dot",
        "<table>",
        "<strong>b</strong>",
        "<s>c</s>",
        "search",
        "2 events"[2:],
    ):
        assert text in page, text
    assert page.count('class="fbc-chart"') == 1 and "stroke-dasharray" in page and "&lt;run&gt;" in page
    assert "cannot be drawn" not in page and "http" not in page.replace("http-equiv", "")


def test_of_very_much_markdown_the_rest_is_plain_text() -> None:
    card = read(packed(*[Markdown("*a* " * 10_000)] * 8))
    page = drawing.fragment(card)

    assert page.count("<em>a</em>") == drawing.CARD_MARKDOWN // 4 and page.count("*a* ") == 8 * 10_000 - drawing.CARD_MARKDOWN // 4


def test_simple_charts_of_vega_are_drawn_and_others_show_their_data() -> None:
    values = [{"m": "a", "n": 3, "t": "2026-01-01"}, {"m": "b", "n": 5, "t": "2026-02-01"}]
    xy = {"x": {"field": "m", "type": "nominal"}, "y": {"field": "n", "type": "quantitative"}}

    def drawn(**spec: Json) -> str:
        return drawing.fragment(read(packed(VegaChart({"data": {"values": values}, **spec}))))

    assert "<rect" in drawn(mark="bar", encoding=xy)
    assert "<path" in drawn(mark="line", encoding={**xy, "x": {"field": "t", "type": "temporal"}}) and "2026-01" in drawn(
        mark="line", encoding={**xy, "x": {"field": "t", "type": "temporal"}}
    )
    assert "<circle" in drawn(layer=[{"mark": {"type": "point"}, "encoding": xy}])
    assert "<rect" in drawn(mark="bar", encoding={"y": xy["x"], "x": xy["y"]})  # bars that lie
    assert "here is its data" in drawn(mark="arc", encoding={"theta": {"field": "n"}}) and "<td>a</td>" in drawn(mark="arc")
    assert "here is its data" in drawn(mark="bar", encoding={**xy, "y": {"aggregate": "mean", "field": "n"}})
    assert "drawn in the notebook only" in drawing.fragment(read(packed(VegaChart({"mark": "bar"}))))


def test_a_chart_without_numbers_draws_nothing() -> None:
    assert svg.draw(svg.Chart([])) is None
    assert svg.draw(svg.Chart([svg.Series("a", [1.0], [None])])) is None
    assert svg.draw(svg.Chart([svg.Series("a", [1e308, -1e308], [1.0, 2.0])])) is None
    assert "<circle" in (svg.draw(svg.Chart([svg.Series("a", [1.0], [5.0])])) or "")


def test_json_is_written_as_yaml_that_reads_the_same() -> None:
    yaml = pytest.importorskip("yaml")
    data = {
        "a": "yes",
        "b": [1, "x y", {"c": None, "d": [], "e": {}}],
        "f: g": "- h",
        "i": 1.5,
        "j": "2026-01-01",
        "k": "a\nb",
        "l": True,
        "m": [[1], []],
    }

    assert yaml.safe_load("\n".join(drawing.yaml_lines(data, 0))) == data


# ---- a running step --------------------------------------------------------------------------------------------------


class Watched(FilesStore):
    """A store that tells of each card put, and can be told to be full, or to hang until it is let go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.cards: queue.Queue[Json] = queue.Queue()
        self.full = False
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def put(self, key: str, data: Any) -> None:
        self.entered.set()
        self.free.wait()
        if self.full:
            raise StoreFull("no space left")
        super().put(key, data)
        self.cards.put(json.loads(data))


class Stage:
    """The cards of a task without a worker around it."""

    made: ClassVar[list[Stage]] = []

    def __init__(self, folder: Path, *options: CardOptions) -> None:
        self.store = Watched(folder)
        self.frames: queue.Queue[Json] = queue.Queue()
        place = live.Place(self.store, lambda line: self.frames.put(json.loads(line)), FLOW, RUN, "train", (2,))
        self.cards = live.LiveCards(place, options or (CardOptions(type="blank"),))
        self.made.append(self)

    def until(self, holds: Callable[[Json], bool]) -> list[Json]:
        """The frames up to the first for which it holds."""
        seen = [self.frames.get(timeout=20)]
        while not holds(seen[-1]):
            seen.append(self.frames.get(timeout=20))
        return seen

    def shown(self, name: str = "blank") -> list[Json]:
        """What the card shows at its next refresh."""
        card = self.cards.cards[name]
        return list(read(live.packed(card, live.State(1, card.entries()), "running"))["components"])


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    while Stage.made:
        stage = Stage.made.pop()
        stage.store.free.set()
        assert stage.cards.sender.end()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_pattern_of_the_seed_shows_its_last_state_without_another_call(stage: Stage) -> None:
    card = stage.cards
    for epoch in range(500):
        card.clear()
        card.append(Markdown(f"## Epoch {epoch}/500"))
        card.append(Table([["Loss", f"{1 / (epoch + 1):.4f}"]]))
        card.refresh()
    frames = stage.until(lambda frame: frame["v"] == 500)

    assert len(frames) < 250 and [frame["v"] for frame in frames] == sorted(frame["v"] for frame in frames)
    assert frames[-1]["f"] == "card" and frames[-1]["id"] == "blank"
    shown = read(json.dumps(frames[-1]["card"]).encode())
    assert shown["components"] == [
        {"type": "markdown", "id": "#0", "text": "## Epoch 499/500"},
        {"type": "table", "id": "#1", "headers": [], "rows": [["Loss", "0.0020"]]},
    ]
    assert shown["place"] == {"flow": FLOW, "run": RUN, "step": "train", "index": [2], "attempt": 0} and shown["state"] == "running"


def test_a_refresh_is_whole_whatever_the_body_does_next(stage: Stage) -> None:
    stage.store.free.clear()  # the thread hangs in the first store
    text, rows = Markdown("0"), [["x", 0]]
    stage.cards.append(text)
    stage.cards.append(Table(rows))
    stage.cards.refresh()
    assert stage.store.entered.wait(20)
    text.update("1")
    stage.cards.refresh()  # this state
    text.update("2")
    rows[0][1] = 2
    stage.cards.clear()
    stage.store.free.set()
    last = stage.until(lambda frame: frame["v"] == 2)[-1]["card"]["components"]

    assert [last[0]["text"], last[1]["rows"]] == ["1", [["x", 0]]]


def test_a_store_that_hangs_holds_no_refresh_up(stage: Stage) -> None:
    stage.store.free.clear()
    for _ in range(100):
        stage.cards.append("x")
        stage.cards.refresh()  # would hang here
    stage.store.free.set()

    assert len(stage.until(lambda frame: frame["v"] == 100)[-1]["card"]["components"]) == 100


def test_an_engine_that_is_gone_holds_no_refresh_up_and_the_card_is_stored(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    object.__setattr__(stage.cards.task, "send_line", output.Frames(write_end).send_line)
    for _ in range(100):
        stage.cards.append("x")
        stage.cards.refresh()

    assert stage.store.cards.get(timeout=20)["state"] == "running"
    assert stage.cards.sender.end() and capsys.readouterr().err == ""
    os.close(write_end)


def test_a_consumer_that_hangs_holds_no_refresh_up_and_the_end_of_the_task_only_so_long(stage: Stage) -> None:
    entered, free = threading.Event(), threading.Event()

    def hang(line: bytes) -> None:
        entered.set()
        free.wait()

    object.__setattr__(stage.cards.task, "send_line", hang)
    stage.cards.refresh()
    assert entered.wait(20)
    for _ in range(1_000):
        stage.cards.refresh(force=True)  # would hang here

    assert not stage.cards.sender.end(within_s=0.05)
    free.set()


def test_what_a_slow_store_takes_is_no_reason_to_wait_with_the_next_frame(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAUSE_RATIO", 2_000)  # the store's half second would be a quarter of an hour
    stage.store.free.clear()
    threading.Timer(0.5, stage.store.free.set).start()
    stage.cards.refresh()
    assert stage.store.cards.get(timeout=20)["n"] == 1
    stage.cards.refresh()

    assert stage.until(lambda frame: frame["v"] == 2)


def test_a_store_that_fails_is_told_once_and_the_frames_go_on(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.store.full = True
    for _ in range(3):
        stage.cards.refresh(force=True)
        stage.until(lambda frame: frame["v"] == stage.cards.default.number)
    stage.cards.sender.end()

    assert capsys.readouterr().err.count("cannot be kept while it runs: no space left") == 1


def test_a_card_is_stored_at_once_then_after_its_interval_or_when_forced(tmp_path: Path) -> None:
    slow = Stage(tmp_path, CardOptions(type="blank", refresh_interval_s=10_000))
    slow.cards.refresh()
    assert slow.store.cards.get(timeout=20)["n"] == 1
    for _ in range(3):
        slow.cards.refresh()
    slow.until(lambda frame: frame["v"] == 4)
    slow.cards.refresh(force=True)
    assert slow.store.cards.get(timeout=20)["n"] == 5 and slow.store.cards.empty()

    quick = Stage(tmp_path / "quick", CardOptions(type="blank", refresh_interval_s=0.05))
    quick.cards.refresh()
    assert quick.store.cards.get(timeout=20)["n"] == 1
    quick.cards.refresh()
    assert quick.store.cards.get(timeout=20)["n"] == 2  # without another call


def test_a_metric_draws_itself_and_outlives_a_clear(stage: Stage) -> None:
    card = stage.cards
    for i in range(3):
        card.clear()
        card.append("text")
        card.metric("loss", 1 - i / 10, step=10 * i)
        card.metric(train=i, val=NAN, chart="accuracy")
    text, loss, accuracy = stage.until(lambda frame: frame["v"] == 6)[-1]["card"]["components"]

    assert text["text"] == "text" and loss["id"] == "metric:loss" and [line["name"] for line in accuracy["series"]] == ["train", "val"]
    assert loss["series"] == [{"name": "loss", "x": [0, 10, 20], "y": [1.0, 0.9, 0.8], "count": 3}]


def test_progress_counts_what_is_iterated_and_stands_where_a_loop_is_left(stage: Stage) -> None:
    assert list(stage.cards.progress(["a", "b"], "load")) == ["a", "b"]
    for each in stage.cards.progress(iter(range(10)), total=10):
        if each == 4:
            break
    assert list(stage.cards.progress(x for x in "ab")) == ["a", "b"]
    whole, left, unknown = stage.shown()

    assert (whole["value"], whole["max"], whole["label"]) == (2, 2, "load") and (left["value"], left["max"]) == (4, 10)
    assert unknown["value"] == 2 and unknown["max"] == 0


def test_an_error_inside_a_progress_loop_is_the_users_own(stage: Stage) -> None:
    with pytest.raises(ZeroDivisionError):
        for each in stage.cards.progress([0]):
            1 / each


def test_a_component_is_replaced_by_its_id_and_updated_by_it(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    card = stage.cards
    card.append(Markdown("one"), id="note")
    card.extend(["between", {"a": 1}])
    card.append(Markdown("two"), id="note")
    card.components["note"].update("three")
    card.table([[1]], id="rows")
    card.table([[2]], id="rows")
    assert [(part["id"], part.get("text")) for part in stage.shown()] == [
        ("note", "three"),
        ("#1", "between"),
        ("#2", None),
        ("rows", None),
    ]

    card.components["note"] = ProgressBar(3)
    assert list(card.components) == ["note", "rows"] and "note" in card.components and len(card.components) == 2
    del card.components["rows"]
    card.components["typo"].update(1)
    assert [part["type"] for part in stage.shown()] == ["progress", "markdown", "json"] and len(card) == 3
    assert "card.components has no 'typo'; there is 'note'" in capsys.readouterr().err


def test_clear_alone_is_a_change(stage: Stage) -> None:
    stage.cards.append("x")
    stage.cards.refresh()
    stage.cards.clear()
    stage.cards.refresh()

    assert stage.until(lambda frame: frame["v"] == 2)[-1]["card"]["components"] == []


def test_cards_by_id_and_by_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(tmp_path, CardOptions("blank", "a"), CardOptions("blank", "b"), CardOptions())
    cards = stage.cards
    cards["a"].append("in a")
    cards["b"] = ["in b", {"x": 1}]
    cards.append("in the one without id")
    assert [len(stage.shown(name)) for name in ("a", "b", "default")] == [1, 2, 1]
    assert [card.id for card in cards.get(type="blank")] == ["a", "b"] and len(cards.get()) == 3
    assert "a" in cards and "c" not in cards and [part.type for part in cards["b"]] == ["markdown", "json"]

    cards["typo"].append("not lost")
    assert "no card 'typo'; there is 'a', 'b'" in capsys.readouterr().err and len(stage.shown("typo")) == 1
    cards["typo"].refresh()
    assert stage.until(lambda frame: frame["id"] == "typo")[-1]["card"]["components"][0]["text"] == "not lost"


@pytest.mark.parametrize(
    ("options", "default", "warned"),
    [
        ([CardOptions("blank", "a")], "a", False),
        ([CardOptions("blank", "a"), CardOptions()], "default", False),
        ([CardOptions(), CardOptions("blank", "a", customize=True)], "a", False),
        ([CardOptions(), CardOptions()], "default", True),
        ([CardOptions("blank", "a"), CardOptions("blank", "b")], "a", True),
    ],
)
def test_which_card_is_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[CardOptions], default: str, warned: bool
) -> None:
    cards = Stage(tmp_path, *options).cards
    cards.append("x")
    cards.append("y")

    assert cards.default.name == default and len(cards.default) == 2
    assert capsys.readouterr().err.count("does not say which is meant") == int(warned)


def test_two_cards_never_share_a_key(tmp_path: Path) -> None:
    cards = Stage(tmp_path, CardOptions(), CardOptions(), CardOptions("blank", "a/b"), CardOptions("blank", "a b")).cards

    assert list(cards.cards) == ["default", "default-2", "a_b", "a_b-2"]


def test_a_mistake_with_a_card_is_told_and_the_body_goes_on(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Component):
        type = "broken"

        def freeze(self, depth: int = 0) -> Any:
            raise RuntimeError("no")

    stage.cards.append(Broken())
    stage.cards.extend(None)
    stage.cards.refresh()

    assert stage.until(lambda frame: frame["v"] == 1)[-1]["card"]["components"][0]["title"] == "Broken cannot be shown"
    assert "card.extend failed, the step goes on: TypeError" in capsys.readouterr().err
    with pytest.raises(AttributeError, match="card has no 'metrics'; it has append"):
        stage.cards.metrics("loss", 1)


def test_only_the_latest_state_of_a_card_waits_for_a_slow_client() -> None:
    client = Client(writer=None)  # type: ignore[arg-type]
    place = {"say": "frame", "f": "card", "step": "train", "index": [0], "part": "body", "attempt": 0}
    for i in range(1_000):
        for name in ("a", "b"):
            client.hint(("f", "1"), {**place, "id": name, "v": i, "card": {"text": "x" * 10_000}})
    waiting = [json.loads(client.outputs[hint.attempt]) for hint in client.hints]
    for i in range(LATEST + 10):
        client.hint(("f", "1"), {**place, "id": str(i)})

    assert [(frame["id"], frame["v"]) for frame in waiting] == [("a", 999), ("b", 999)] and len(client.outputs) == LATEST


# ---- in a real worker ------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def stored(project: Project, step: str = "only", attempt: int = 0) -> dict[str, Json]:
    """The cards of an attempt by name, as a reader takes them."""
    prefix = layout.card_prefix(FLOW, RUN, step, (), attempt)
    return {key.removeprefix(prefix).removesuffix(".json"): read(project.store.get(key)) for key in project.store.list(prefix)}


def test_a_step_cell_shows_a_card_without_any_option(project: Project) -> None:
    ran = project.body("for i in range(3):\n    card.append(f'step {i}')\n    card.refresh()\nx = 1", saves=("x",))
    cards = stored(project)

    assert ran.code == 0 and ran.artifacts["x"]["json"] == 1
    assert [part["text"] for part in cards["blank"]["components"]] == ["step 0", "step 1", "step 2"] and cards["blank"][
        "state"
    ] == "succeeded"
    frames = [frame for frame in ran.frames if frame["f"] == "card"]
    assert wire.checked(frames[-1]["card"]) == cards["blank"] and frames[-1]["v"] == 4


def test_a_text_that_only_mentions_cards_keeps_none_and_loads_nothing(project: Project) -> None:
    ran = project.body("import sys\nx = 'flowbook.cards' in sys.modules  # no card here", saves=("x",))

    assert ran.artifacts["x"]["json"] is False and stored(project) == {} and "card" not in [frame["f"] for frame in ran.frames]


def test_the_default_card_lists_what_the_task_was_given_and_made(project: Project) -> None:
    project.define(
        cell("only", "xs = [1, 2]\nname = 'a'\ncard.append('mine')", saves=("xs", "name"), cards=(CardOptions(),)),
        params={"epochs": {"kind": "json", "json": 50, "type": "int"}},
        tags=("nightly",),
    )
    ran = project.run("only")
    mine, place, params, made = stored(project)["default"]["components"]

    assert ran.code == 0 and mine["text"] == "mine" and place["rows"] == [["Task", "demo/1/only/0"], ["Attempt", 1], ["Tags", "nightly"]]
    assert params["rows"] == [["epochs", "int", None, 50]] and params["id"] == "flowbook:parameters"
    assert [row[:2] for row in made["rows"]] == [["name", "str"], ["xs", "list"]] and made["rows"][1][3] == "[1, 2]"


def test_a_blank_card_holds_only_what_was_appended(project: Project) -> None:
    project.body("x = 1", saves=("x",), cards=(CardOptions("blank", "a"), CardOptions("blank")))

    assert {name: card["components"] for name, card in stored(project).items()} == {"a": [], "blank": []}


def test_a_failed_attempt_keeps_its_card_with_the_error_added(project: Project) -> None:
    body = "card['a'].append('so far')\ncard['b'].append('too')\n1 / 0"
    ran = project.body(body, cards=(CardOptions("blank", "a"), CardOptions("blank", "b", save_errors=False), CardOptions()))
    cards = stored(project)

    assert ran.code == 1 and {card["state"] for card in cards.values()} == {"failed"}
    text, error = cards["a"]["components"]
    assert text["text"] == "so far" and error["title"] == "ZeroDivisionError: division by zero" and "1 / 0" in error["text"]
    assert [part["text"] for part in cards["b"]["components"]] == ["too"]
    assert [part["id"] for part in cards["default"]["components"]] == ["flowbook:task", "flowbook:error"]


def test_an_error_that_is_caught_is_on_the_card_of_a_task_that_succeeded(project: Project) -> None:
    ran = project.body("1 / 0", saves=("failed",), catch="failed", cards=(CardOptions("blank"),))

    assert ran.code == 0 and stored(project)["blank"]["state"] == "succeeded"
    assert stored(project)["blank"]["components"][0]["title"] == "ZeroDivisionError: division by zero"


CUSTOM = """
from flowbook.cards import Card, MetaflowCard, Table, Markdown

class Sizes(Card):
    type = "sizes"
    def render(self, task):
        return [Markdown(f"# {task.pathspec} {self.options['unit']}"), Table([[len(task.data.xs), task["xs"].data[0], len(self.components)]]), "text"]

class Page(MetaflowCard):
    type = "page"
    def render(self, task):
        return f"<h1>{task.data.xs}</h1>"

class Bad(Card):
    type = "bad"
    def render(self, task):
        return task.data.nothing

class Slow(Card):
    type = "slow"
    def render(self, task):
        import threading
        threading.Event().wait()

xs = [7, 8]
card["sizes"].append("mine")
"""


def test_types_of_cards_are_classes_and_what_they_raise_harms_nothing(project: Project) -> None:
    options = [CardOptions("sizes", "sizes", options='{"unit": "MB"}'), CardOptions("page"), CardOptions("bad"), CardOptions("sises")]
    ran = project.body(CUSTOM, saves=("xs",), cards=(*options, CardOptions("slow", timeout_s=0.1), CardOptions("html", "h")))
    cards = {name: card["components"] for name, card in stored(project).items()}

    assert ran.code == 0
    assert [part.get("text") or part["rows"] for part in cards["sizes"]] == ["mine", "# demo/1/only/0 MB", [[2, 7, 1]], "text"]
    assert cards["page"] == [{"type": "html", "id": "#0", "html": "<h1>[7, 8]</h1>"}]
    assert "the task has no artifact 'nothing'; it has xs" in cards["bad"][0]["text"]
    assert "no type of card 'sises'" in cards["sises"][0]["title"] and "Did you mean 'sizes'?" in cards["sises"][0]["text"]
    assert "took more than 0.1 s" in cards["slow"][0]["text"] and "KeyError: 'html'" in cards["h"][0]["text"]


def test_a_type_of_card_of_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed(Card):
        def render(self, task: Any) -> object:
            return {"a": 1}

    point = types.SimpleNamespace(load=lambda: Installed)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **asked: [point] if asked["name"] == "theirs" else [])
    monkeypatch.setattr(custom, "_types", dict(custom._types))

    assert custom.find("theirs") is Installed and custom.find("nobodys") is None
    assert custom.rendered(Installed(), None)[0].type == "json"  # type: ignore[arg-type]
    assert custom.rendered(MetaflowCard(), None)[0].type == "html"  # type: ignore[arg-type]


def test_a_forked_child_shows_nothing_and_is_not_held_up(project: Project) -> None:
    ran = project.body(
        "import os\n"
        "card.append('parent'); card.refresh()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    card.append('child'); card.refresh(force=True); card.metric('loss', 1)\n"
        "    os._exit(7)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])",
        saves=("status",),
    )

    assert ran.artifacts["status"]["json"] == 7
    assert [part["text"] for part in stored(project)["blank"]["components"]] == ["parent"]
    assert "child" not in json.dumps([frame for frame in ran.frames if frame["f"] == "card"])


def test_no_thread_of_ours_is_alive_while_the_body_forks(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_open", stage.cards)
    stage.cards.refresh()
    stage.until(lambda frame: frame["v"] == 1)
    live._before_fork()
    stage.cards.append("meanwhile")
    stage.cards.default.number += 1
    stage.cards.default.state = live.State(2, stage.cards.default.entries())
    assert "flowbook-card" not in [thread.name for thread in threading.enumerate()]

    live._after_fork()
    assert stage.until(lambda frame: frame["v"] == 2)[-1]["card"]["components"][0]["text"] == "meanwhile"
    live._before_fork()
    stage.cards.refresh()  # from another thread of the body
    assert stage.until(lambda frame: frame["v"] == 3)


def test_a_child_that_comes_out_of_the_body_leaves_the_card_alone(project: Project) -> None:
    ran = project.body(
        "import os\ncard.append('x'); card.refresh()\nchild = os.fork()\nif child: os.waitpid(child, 0)\nx = 1", saves=("x",)
    )

    assert ran.code == 0 and [frame["card"]["state"] for frame in ran.frames if frame["f"] == "card"].count("succeeded") == 1


def test_a_full_store_is_told_and_the_step_succeeds(project: Project) -> None:
    ran = project.body(
        "from flowbook.store.files import FilesStore\n"
        "from flowbook.errors import StoreFull\n"
        "def put(self, key, data): raise StoreFull('no space left')\n"
        "FilesStore.put = put\n"
        "card.append('x'); card.refresh()\n"
        "x = 1",
        saves=("x",),
    )

    assert ran.code == 0 and "cannot be kept" in ran.output and stored(project) == {}


def test_outside_a_task_the_card_takes_everything_and_does_nothing() -> None:
    from flowbook.spec.decorators import card

    card.append(Markdown("x"))
    card.clear()
    card.metric("loss", 1)
    card["a"].append("x")
    card["a"] = [Markdown("x")]
    card.components["x"].update(1)
    card.refresh()
    card.run.append("x")
    card.run.metric("loss", 1)

    assert list(card.progress([1, 2])) == list(card["a"].progress([1, 2])) == list(card.run.progress([1, 2])) == [1, 2]


def test_values_that_only_look_like_numbers_are_no_numbers() -> None:
    class Liar:
        def __float__(self) -> float:
            raise RuntimeError("no")

    assert [plain.number(value) for value in ("3", None, Liar(), 10**400, 1j, [1])] == [None] * 6
    assert plain.number(2**60) == float(2**60) and plain.text(Odd(), 100) == "<Odd, whose str raises RuntimeError>"


def test_the_options_of_a_card_stay_those_of_the_spec() -> None:
    """What the worker reads of a card's options is there under these names."""
    names = {f.name for f in dataclasses.fields(CardOptions)}

    assert {"type", "id", "refresh_interval_s", "timeout_s", "options", "save_errors", "customize"} <= names
    assert not hasattr(builtins, "card") or os.environ.get("PYTEST_CURRENT_TEST")


def test_the_card_of_a_killed_attempt_is_ended_by_its_reader() -> None:
    running = read(packed(Markdown("so far")))
    killed = wire.ended(running, {"reason": "oom", "message": "more than 2 GB"})

    assert [part.get("title") for part in killed["components"]] == [None, "oom: more than 2 GB"] and killed["state"] == "failed"
    assert wire.checked(killed) == killed and wire.ended(killed, None) == killed and running["state"] == "running"
    assert wire.ended(running, None)["components"][1]["title"] == "Stopped: the attempt ended"


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("launched", None),
        ("running", None),
        ("succeeded", None),  # its last card could not be kept
        ("failed", "timeout: more than 2 s"),
        ("backoff", "timeout: more than 2 s"),
        ("ready", "Lost: the attempt was lost, and the task is started again"),
        ("stopped", "Stopped: the task was stopped"),
    ],
)
def test_a_card_says_that_it_is_running_only_while_its_attempt_may_be(state: str, told: str | None) -> None:
    running = read(packed(Markdown("so far")))
    shown = wire.settled(running, state, {"reason": "timeout", "message": "more than 2 s"})

    assert shown["state"] == {"launched": "running", "running": "running", "succeeded": "succeeded"}.get(state, "failed")
    assert [part["title"] for part in shown["components"][1:]] == ([told] if told else [])
    assert wire.settled({**running, "state": "succeeded"}, "stopped", None)["components"] == running["components"]
    gone = wire.settled(running, state, {"reason": "timeout", "message": "more than 2 s"}, lost=True)
    assert gone["state"] != "running" and ("its engine is gone" in str(gone)) == (state in ("launched", "running"))


# ---- the card of the run -----------------------------------------------------------------------------------------------


def part_of(stage: Stage) -> Json:
    card = stage.cards.run
    return read(live.packed(card, live.State(1, card.entries()), "succeeded"))


def test_tasks_put_things_on_the_card_of_their_run_and_lines_of_one_name_share_a_chart(tmp_path: Path) -> None:
    stages = [Stage(tmp_path / str(i)) for i in range(3)]
    for i, stage in enumerate(stages):
        stage.cards.run.append(f"# task {i}")
        stage.cards.run.metric("loss", 1 / (i + 1))
        stage.cards.run.metric(train=i, test=-i, chart="scores")
    stages[0].cards.run.metric("alone", 7)
    stages[0].cards.append("its own")
    found = whole.card([(f"train[{i}]", part_of(stage)) for i, stage in enumerate(stages)], "demo", "7", "succeeded")

    assert found == wire.checked(found) and (found["id"], found["state"], found["place"]["run"]) == ("run", "succeeded", "7")
    kinds = [part["type"] for part in found["components"]]
    assert kinds == ["markdown", "lines", "lines", "lines", "markdown", "markdown"]
    loss, scores, alone = found["components"][1:4]
    assert [line["name"] for line in loss["series"]] == ["train[0]", "train[1]", "train[2]"]
    assert [line["y"][-1] for line in loss["series"]] == [1, 0.5, 1 / 3]
    assert [line["name"] for line in scores["series"]][:3] == ["train[0] train", "train[0] test", "train[1] train"]
    assert [line["name"] for line in alone["series"]] == ["alone"]
    assert len({part["id"] for part in found["components"]}) == 6
    assert "its own" not in str(found) and whole.card([], "demo", "7", "succeeded") is None
    assert "train[1]" in drawing.page([found]) and "run 7" in drawing.page([found])


def test_the_card_of_a_run_stays_bounded_and_has_the_state_of_its_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.cards.run.metric("loss", 1)
    stage.cards.run.extend(["x"] * 3)
    part = part_of(stage)
    found = whole.card(((f"train[{i}]", part) for i in range(1_000)), "demo", "7", "running")

    assert len(found["components"]) == 500 and found["left_out"] == 3 * whole.PARTS + 1 - 500
    assert len(found["components"][0]["series"]) == 50 and "first 50 lines" in found["components"][0]["left_out"]
    assert wire.checked(found) == found
    assert [whole.card([("a", part)], "demo", "7", state)["state"] for state in ("failed", "stopped", "running")] == [
        "failed",
        "failed",
        "running",
    ]


def test_parts_that_anybody_may_have_written_make_a_card_that_can_be_read() -> None:
    odd = wire.checked(
        {
            "v": 1,
            "id": wire.OF_RUN,
            "components": [{"type": "lines"}, {"type": "lines", "id": "a", "series": [{"name": "x" * 500, "x": [1], "y": [1]}]}, 7],
        }
    )
    other = wire.checked({"v": 1, "id": wire.OF_RUN, "components": [{"type": "markdown", "id": "a", "text": "no chart"}]})
    found = whole.card([("a", odd), ("b", odd), ("c", other), ("d", read(b"junk"))], "demo", "7", "succeeded")

    assert wire.checked(found) == found and "this card cannot be read" in str(found) and "no chart" in str(found)
    assert_harmless(drawing.page([found]))


def test_the_run_card_of_a_task_is_kept_beside_its_own_and_under_no_name_of_a_users(project: Project) -> None:
    ran = project.body("card['run'].append('mine')\ncard.run.append('of all')\ncard.run.refresh()\ncard.append('own')", saves=())
    cards = stored(project)

    assert ran.code == 0 and set(cards) == {"run", ".run", "blank"}
    assert [part["text"] for part in cards[".run"]["components"]] == ["of all"] and cards[".run"]["state"] == "succeeded"
    assert any(frame["id"] == ".run" for frame in ran.frames if frame["f"] == "card")
    assert layout.card_name(".run") != wire.OF_RUN
    where = (FLOW, RUN, "only", (), 0)
    assert [key[-9:] for key in whole.keys(project.store, where, True)] == [".run.json"] and len(whole.keys(project.store, where)) == 2
    assert whole.keys(project.store, (FLOW, RUN, "only", (), 1), True) == []


def test_the_card_of_the_run_leaves_the_default_card_what_it_is(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.cards.run.append("x")
    stage.cards.append("y")

    assert len(stage.cards) == 1 and len(stage.cards.run) == 1 and len(stage.cards.get()) == 1 and capsys.readouterr().err == ""


def test_the_engine_passes_cards_on_to_who_watches(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.drive(step("a", "frame(f='card', id='blank', v=1, card={'v': 1})\ncommit()"))

    told = [message for message in bench.said if message.get("f") == "card"]
    assert told == [{**told[0], "say": "frame", "step": "a", "attempt": 0, "id": "blank", "v": 1, "card": {"v": 1}}]


# ---- what a default card shows by itself -----------------------------------------------------------------------------


def test_the_default_card_shows_what_the_cell_would_have_shown() -> None:
    kept = shown.Kept()
    text = b"one\n 10%\r 99%\ntwo\n"
    frames = [
        {"at": 4, "data": {"text/plain": "<Figure>", "image/png": base64.b64encode(PNG).decode() + "\n"}, "id": None, "update": False},
        {"at": 14, "data": {"text/plain": "a b", "text/html": "<table><tr><td>1</table>"}, "id": "t", "update": False},
        {"at": 99, "data": {"text/plain": "a c"}, "id": "t", "update": True},
        {"at": 99, "data": {"text/plain": "x"}, "id": "unknown", "update": True},
        {"at": 99, "data": {"text/plain": "", "application/vnd.vegalite.v5+json": {"mark": "bar"}}, "id": None, "update": False},
        {"at": 99, "data": {"text/plain": "x", "image/svg+xml": "<svg></svg>"}, "id": None, "update": False},
        {"at": 99, "data": {"text/plain": "x", "text/html": "<p>" * 10_000}, "id": None, "update": False},
        {"at": 99, "data": {"text/plain": "x", "text/markdown": "*m*"}, "id": None, "update": False},
        {"at": 99, "data": {"text/plain": "broken", "image/png": "%%"}, "id": None, "update": False},
    ]
    for frame in frames:
        kept.add(frame)
    found = [part.to_json() for part in shown.components(kept, text)]

    assert [part["type"] for part in found] == ["code", "image", "code", "code", "code", "vega", "image", "html", "markdown", "error"]
    assert [part["text"] for part in found if part["type"] == "code"] == ["one", " 99%", "a c", "two"]
    assert found[0]["id"] == "flowbook:shown-0" and "language" not in found[0]


def test_what_a_default_card_shows_is_bounded() -> None:
    kept = shown.Kept(most_bytes=1_000)
    for i in range(100):
        kept.add({"at": 0, "data": {"text/plain": str(i) * (2_000 if i == 3 else 1)}, "id": None, "update": False})
    found = [part.to_json() for part in shown.components(kept, b"x" * 100_000, 5_000, left_out=4_000)]

    assert len(found) == shown.DISPLAYS + 3 and found[0]["text"] == "*… 4,000 bytes were printed before this*"
    assert len(found[-2]["text"]) < 20_100 and "80,000 characters left out" in found[-2]["text"]
    assert found[-1]["text"] == f"*{100 - shown.DISPLAYS} more displays are left out*"
