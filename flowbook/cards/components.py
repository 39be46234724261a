"""The parts of a card: text, tables, charts, images, numbers. A card is a list of them.

A component takes what it shows when it is made or updated, and keeps it as plain JSON of bounded size; a list, a table or a figure that
is changed in place afterwards is shown as it was, until `update` is called. So a refresh only takes references, whatever the size.

Making or updating a component never raises for what it is given: what cannot be shown becomes an error that says why, on the card.
`to_json` gives the wire form, `{"type": "markdown", "text": …}`; docs/cards.md lists the fields of each. Nothing here knows of runs.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flowbook.cards import frames, plain
from flowbook.cards.plain import JsonText, Unshowable
from flowbook.store import preview

Json = Any

TEXT = 200_000  # characters of a Markdown text, a code, a traceback
TITLE = 200  # characters of a title or a label
ROWS, COLUMNS, CELLS = 1_000, 100, 20_000  # of a table
PREVIEW_ROWS = 100  # of a data frame
VEGA_BYTES = 4_000_000
IMAGE_BYTES = 3_000_000
PIXELS = 2_000  # of a side of a PIL image
EVENTS = 1_000  # of a timeline
POINTS = 2_000  # of one line
SERIES = 50  # of one chart
NESTED = 4  # components inside each other

THEMES = ("default", "success", "warning", "danger", "bg-gradient-indigo-purple")
EVENT_THEMES = ("default", "success", "warning", "error", "info", "primary", "secondary", "tool_call", "ai_response")
PRIORITIES = ("low", "normal", "high", "critical")
_IMAGE_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"RIFF", "webp"),
    (b"BM", "bmp"),
    (b"<svg", "svg+xml"),
    (b"<?xml", "svg+xml"),
)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I")  # of PIL
DATA_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp|bmp|svg\+xml);base64,[A-Za-z0-9+/]+={0,2}\Z")
CSS_LENGTH = re.compile(r"\d{1,5}(\.\d{1,3})?(px|em|rem|vh|%)\Z")


class Numbers(tuple[float | None, ...]):
    """Finite numbers and gaps, written as JSON in one go."""

    __slots__ = ()


class Frozen:
    """A component as it was at one moment; it becomes JSON text once, when somebody asks, in any thread."""

    __slots__ = ("_text", "fields")

    def __init__(self, fields: Mapping[str, Json]) -> None:
        self.fields = fields
        self._text: str | None = None

    def text(self) -> str:
        if self._text is None:
            self._text = _dump(self.fields)
        return self._text


def _dump(value: Json) -> str:
    if isinstance(value, JsonText):
        return str(value)
    if isinstance(value, Frozen):
        return value.text()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(key)}:{_dump(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple) and not isinstance(value, Numbers):
        return "[" + ",".join(map(_dump, value)) + "]"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def error_fields(title: str, why: str) -> dict[str, Json]:
    return {"type": "error", "title": plain.text(title, TITLE), "text": plain.text(why, TEXT)}


class Component:
    """Base of all components. Fields are replaced, never changed, so that what was frozen stays as it was.

    One's own component is a subclass whose `render` gives what is shown at a refresh: other components, or HTML as a text.
    """

    type: ClassVar[str] = ""
    # Of the class, since a component of one's own may have an __init__ that does not call this one.
    id: str | None = None  # under which a card holds it
    _fields: dict[str, Json] = {}  # noqa: RUF012 (replaced, never changed)
    _problem: str | None = None
    _frozen: Frozen | None = None

    def render(self) -> object:
        """See above; None: the component is one of ours."""
        return None

    @property
    def component_id(self) -> str | None:
        """Metaflow's name of `id`."""
        return self.id

    @contextlib.contextmanager
    def _taking(self) -> Iterator[None]:
        """What goes wrong inside is shown in place of the component, and no more."""
        self._problem, self._frozen = None, None
        try:
            yield
        except Unshowable as error:
            self._problem = str(error)
        except Exception as error:
            self._problem = f"{type(error).__name__}: {plain.text(error, 1_000)}"

    def _set(self, **fields: Json) -> None:
        self._fields = {**self._fields, **fields}
        self._frozen = None

    def _parts(self) -> dict[str, Json]:
        """The fields beside "type"; None is left out."""
        return self._fields

    def freeze(self, depth: int = 0) -> Frozen:
        """The component as it is now. Costs little, whatever it holds."""
        if self._frozen is not None:
            return self._frozen
        if self._problem is not None:
            return Frozen(error_fields(f"{type(self).__name__} cannot be shown", self._problem))
        if depth > NESTED:
            return Frozen(error_fields(f"{type(self).__name__} cannot be shown", f"components are nested more than {NESTED} deep"))
        if type(self).render is not Component.render:
            return self._rendered().freeze(depth + 1)
        nested: list[Component] = []
        fields = {"type": self.type}
        for name, part in list(self._parts().items()):
            if part is not None:
                fields[name] = _frozen_part(part, depth, nested)
        found = Frozen(fields)
        if not nested:
            self._frozen = found
        return found

    def _rendered(self) -> Component:
        title = f"{type(self).__name__} cannot be shown"
        try:
            found = self.render()
        except Exception as error:
            return Error(error, title)
        if isinstance(found, str):
            return HTML(found)
        return (
            found
            if isinstance(found, Component)
            else Error(f"its render gives a {preview.type_name(found)}, no component and no text", title)
        )

    def to_json(self) -> dict[str, Json]:
        """Plain JSON types, newly made."""
        found: dict[str, Json] = json.loads(self.freeze().text())
        return {"type": found.pop("type"), **({"id": self.id} if self.id else {}), **found}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{f' {self.id!r}' if self.id else ''}>"


def _frozen_part(part: Json, depth: int, nested: list[Component]) -> Json:
    if isinstance(part, Component):
        nested.append(part)
        return part.freeze(depth + 1)
    if isinstance(part, tuple) and not isinstance(part, Numbers):
        return tuple(_frozen_part(each, depth, nested) for each in part)
    if isinstance(part, Mapping):
        return {key: _frozen_part(each, depth, nested) for key, each in list(part.items())}
    return part


def _title(value: object) -> str | None:
    return None if value is None else plain.text(value, TITLE)


# ---- text ------------------------------------------------------------------------------------------------------------


class Markdown(Component):
    type = "markdown"

    def __init__(self, text: object = "") -> None:
        self.update(text)

    def update(self, text: object) -> None:
        with self._taking():
            self._set(text=plain.text(text, TEXT))


class Error(Component):
    """An exception with its traceback, or any text that tells what went wrong."""

    type = "error"

    def __init__(self, exception: BaseException | str, title: str | None = None) -> None:
        with self._taking():
            if isinstance(exception, BaseException):
                shown = "".join(traceback.format_exception(exception))
                title = title or f"{type(exception).__name__}: {plain.text(exception, TITLE)}"
            else:
                shown = plain.text(exception, TEXT)
            self._set(title=_title(title or "Error"), text=plain.text(shown, TEXT))


class PythonCode(Component):
    """The text of a function (`code_func`), or a text (`code_string`)."""

    type = "code"

    def __init__(self, code_func: Callable[..., object] | None = None, code_string: str | None = None) -> None:
        with self._taking():
            if code_func is not None:
                import inspect
                import textwrap

                code_string = textwrap.dedent(inspect.getsource(code_func))
            if code_string is None:
                raise Unshowable("PythonCode needs code_func=… or code_string=…")
            self._set(text=plain.text(code_string, TEXT), language="python")


class HTML(Component):
    """HTML of your own. It is shown in a frame of its own, without scripts, and can load nothing. `height` is in pixels."""

    type = "html"

    def __init__(self, html: str = "", height: int | None = None) -> None:
        self.update(html, height)

    def update(self, html: str, height: int | None = None) -> None:
        with self._taking():
            shown = html if isinstance(html, str) else plain.text(html, VEGA_BYTES)
            if len(shown) > VEGA_BYTES:
                raise Unshowable(f"the HTML has {len(shown) / 1e6:.1f} MB; at most {VEGA_BYTES / 1e6:.0f} MB are kept")
            self._set(html=shown, height=plain.number(height))


# ---- tables ----------------------------------------------------------------------------------------------------------


class Table(Component):
    """Rows of cells. A cell is a number, a text, or a component, which can then be updated in its place.

    `data` is a list of rows, a list of dicts, a dict of columns, or a data frame. At most 1,000 rows, 100 columns and 20,000 cells are
    kept, and the table says how many were left out.
    """

    type = "table"

    def __init__(self, data: object = None, headers: Sequence[object] | None = None, disable_updates: bool = False) -> None:
        self.update(data, headers)

    def update(self, data: object = None, headers: Sequence[object] | None = None) -> None:
        """Replace the rows, and the headers if they are given."""
        with self._taking():
            if frames.is_frame(data):
                self._take(*frames.rows(data, ROWS, COLUMNS))
                return
            rows, found = _rows_of(data)
            given = [] if headers is None else list(headers)
            self._take(given or found or self._fields.get("headers", ()), rows, len(rows))

    def _take(self, headers: Sequence[object], rows: list[Sequence[object]], count: int) -> None:
        width = max([len(headers), *map(len, rows)], default=0)
        columns = min(width, COLUMNS)
        kept = rows[: min(ROWS, CELLS // max(columns, 1))]
        shown: Json
        if any(isinstance(value, Component) for row in kept for value in row):
            shown = tuple(tuple(value if isinstance(value, Component) else plain.cell(value) for value in row[:columns]) for row in kept)
        else:
            shown = JsonText(json.dumps([[plain.cell(value) for value in row[:columns]] for row in kept], ensure_ascii=False))
        self._set(
            headers=tuple(plain.text(header, TITLE) for header in headers[:columns]),
            rows=shown,
            rows_left_out=max(count - len(kept), 0) or None,
            columns_left_out=(width - columns) or None,
        )

    @classmethod
    def from_dataframe(cls, dataframe: object = None, truncate: bool = True) -> Table:
        """The first 100 rows of a data frame with its index; without `truncate` 1,000."""
        table = cls()
        with table._taking():
            if not frames.is_frame(dataframe):
                raise Unshowable(f"from_dataframe needs a data frame of pandas or polars, not {preview.type_name(dataframe)}")
            table._take(*frames.rows(dataframe, PREVIEW_ROWS if truncate else ROWS, COLUMNS))
        return table


def _rows_of(data: object) -> tuple[list[Sequence[object]], list[object]]:
    """Rows, and the headers that the data itself has."""
    if data is None:
        return [], []
    if isinstance(data, Mapping):
        if all(isinstance(column, (list, tuple)) for column in data.values()):
            columns = [list(column)[: ROWS + 1] for column in data.values()]
            height = max(map(len, columns), default=0)
            return [[column[i] if i < len(column) else None for column in columns] for i in range(height)], list(data)
        return [[key, value] for key, value in data.items()], []
    tolist = getattr(data, "tolist", None)
    found: Iterable[Any] = tolist() if callable(tolist) else data  # type: ignore[assignment]
    rows = list(found)
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = list(dict.fromkeys(name for row in rows[:ROWS] for name in row))
        return [[row.get(name) for name in names] for row in rows], names
    return [row if isinstance(row, (list, tuple)) else _row(row) for row in rows], []


def _row(row: object) -> Sequence[object]:
    tolist = getattr(row, "tolist", None)
    found = tolist() if callable(tolist) else row
    return found if isinstance(found, list) else [found]


# ---- charts ----------------------------------------------------------------------------------------------------------


class VegaChart(Component):
    """A Vega-Lite or Vega specification as a dict, or an altair chart. Its data must be in it: nothing is loaded from elsewhere."""

    type = "vega"

    def __init__(self, spec: object, show_controls: bool = False) -> None:
        self._set(controls=bool(show_controls) or None)
        self.update(spec)

    @classmethod
    def from_altair_chart(cls, altair_chart: object) -> VegaChart:
        return cls(altair_chart)

    def update(self, spec: object) -> None:
        with self._taking():
            to_dict = getattr(spec, "to_dict", None)
            found = to_dict() if callable(to_dict) else spec
            if not isinstance(found, Mapping):
                raise Unshowable(f"a specification of Vega-Lite is a dict or an altair chart, not {preview.type_name(spec)}")
            self._set(spec=plain.encode(found, VEGA_BYTES))


Point = tuple[float, float | None]  # y None: a gap


class Line:
    """The points of one line, however many there were: beyond 2,000, each kept pair is the lowest and the highest of its stretch."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: tuple[list[float], list[float | None]] = ([], [])
        self._stride = 1  # each kept point stands for so many
        self._stretch: tuple[Point, ...] = ()  # the extremes of the last 2 * _stride points or fewer
        self._in_stretch = 0
        self._last: Point | None = None

    def add(self, y: object, x: object = None) -> None:
        """`x` counts the points if it is left out; a `y` that is no finite number makes a gap."""
        at = plain.number(x)
        point = (self.count if at is None else at, plain.number(y))
        self.count += 1
        self._last = point
        if self._stride == 1:
            self._keep((point,))
        else:
            self._stretch = _extremes((*self._stretch, point))
            self._in_stretch += 1
            if self._in_stretch >= 2 * self._stride:
                self._keep(self._stretch)
                self._stretch, self._in_stretch = (), 0
        if len(self._kept[0]) >= POINTS:
            self._halve()

    def _keep(self, points: Sequence[Point]) -> None:
        xs, ys = self._kept
        for x, y in points:
            xs.append(x)
            ys.append(y)

    def _halve(self) -> None:
        points = list(zip(*self._kept, strict=False))
        self._kept = ([], [])
        for i in range(0, len(points), 4):
            self._keep(_extremes(points[i : i + 4]))
        self._stride *= 2

    def frozen(self, name: str) -> dict[str, Json]:
        """Copies, so that another thread may add meanwhile."""
        xs, ys = self._kept
        size = min(len(xs), len(ys))
        points = [*self._stretch, *([self._last] if self._last is not None and self._stride > 1 else [])]
        found = {"name": name, "x": Numbers((*xs[:size], *(x for x, _ in points))), "y": Numbers((*ys[:size], *(y for _, y in points)))}
        return {**found, "count": self.count}


def _extremes(points: Sequence[Point]) -> tuple[Point, ...]:
    """The lowest and the highest, in their order; of a stretch without any number its first."""
    known = [(y, i) for i, (_, y) in enumerate(points) if y is not None]
    if not known:
        return tuple(points[:1])
    return tuple(points[i] for i in sorted({min(known)[1], max(known)[1]}))


class LineChart(Component):
    """Lines that grow: `add("loss", 0.3)`. Holds at most 50 lines of some 2,000 points, however long it goes on."""

    type = "lines"

    def __init__(self, title: str | None = None, x_label: str | None = None) -> None:
        self._lines: dict[str, Line] = {}
        self._set(title=_title(title), x_label=_title(x_label))

    def add(self, name: str, y: object, x: object = None) -> None:
        key = plain.text(name, TITLE)
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= SERIES:
                self._set(left_out=f"only the first {SERIES} lines are kept")
                return
            line = self._lines[key] = Line()
        line.add(y, x)
        self._frozen = None

    def update(self, name: str, y: object, x: object = None) -> None:
        self.add(name, y, x)

    def _parts(self) -> dict[str, Json]:
        return {**self._fields, "series": tuple(line.frozen(name) for name, line in list(self._lines.items()))}


# ---- images ----------------------------------------------------------------------------------------------------------


class Image(Component):
    """An image: the bytes of a PNG, JPEG, GIF, WebP, BMP or SVG file, the path of one, or a `data:` address of one; at most 3 MB."""

    type = "image"

    def __init__(self, src: object = None, label: str | None = None, disable_updates: bool = True) -> None:
        self._take(src, label)

    def update(self, image: object, label: str | None = None) -> None:
        """Another image: bytes, a path, a PIL image or a matplotlib figure. The label stays unless one is given."""
        self._take(image, self._fields.get("label") if label is None else label)

    def _take(self, src: object, label: str | None) -> None:
        with self._taking():
            self._set(label=_title(label), src=_image_address(src))

    @classmethod
    def from_matplotlib(cls, plot: object, label: str | None = None, disable_updates: bool = False) -> Image:
        """A figure, axes, or what a plotting function of pandas gives."""
        return cls(plot, label, disable_updates)

    @classmethod
    def from_pil_image(cls, pilimage: object, label: str | None = None, disable_updates: bool = False) -> Image:
        return cls(pilimage, label, disable_updates)


def _image_address(src: object) -> str:
    if isinstance(src, str) and src.startswith("data:"):
        address = re.sub(r"\s", "", src)
        if not DATA_IMAGE.match(address):
            raise Unshowable("a data: address of an image must be base64 of a PNG, JPEG, GIF, WebP, BMP or SVG")
        return _bounded_image(address, len(address) * 3 // 4)
    if isinstance(src, (str, os.PathLike)):
        path = Path(src)
        if str(src).startswith(("http:", "https:")):
            raise Unshowable("a card loads nothing from elsewhere; download the image in the step and give its bytes")
        data = path.read_bytes()
    elif isinstance(src, (bytes, bytearray, memoryview)):
        data = bytes(src)
    else:
        data = _drawn(src)
    kind = next((kind for start, kind in _IMAGE_STARTS if data.lstrip()[: len(start)] == start), None)
    if kind is None:
        raise Unshowable(f"these {len(data):,} bytes are no PNG, JPEG, GIF, WebP, BMP or SVG")
    return _bounded_image(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", len(data))


def _bounded_image(address: str, size: int) -> str:
    if size > IMAGE_BYTES:
        raise Unshowable(
            f"the image has {size / 1e6:.1f} MB; at most {IMAGE_BYTES / 1e6:.0f} MB are kept. Save it smaller, or with a lower dpi."
        )
    return address


def _drawn(value: object) -> bytes:
    """The PNG of a matplotlib figure (or axes, or pyplot) or of a PIL image."""
    buffer = io.BytesIO()
    figure = value
    if not callable(getattr(value, "savefig", None)):
        axes = next(iter(getattr(value, "flat", ())), value)  # an array of axes
        get_figure = getattr(axes, "get_figure", None)
        figure = get_figure() if callable(get_figure) else getattr(axes, "figure", axes)
    if callable(savefig := getattr(figure, "savefig", None)):
        savefig(buffer, format="png", bbox_inches="tight")
    elif callable(getattr(value, "save", None)) and hasattr(value, "mode"):
        image: Any = _bounded(value)
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, format="PNG")
    else:
        raise Unshowable(f"a {preview.type_name(value)} is no image: give bytes, a path, a PIL image or a matplotlib figure")
    return buffer.getvalue()


def _bounded(image: Any) -> Any:
    """A PIL image with at most PIXELS on a side: what a photograph has beyond that is not seen in a card, and would not go into it."""
    if max(image.size) <= PIXELS:
        return image
    smaller = image.copy()
    smaller.thumbnail((PIXELS, PIXELS))
    return smaller


# ---- numbers and values ----------------------------------------------------------------------------------------------


class ProgressBar(Component):
    type = "progress"

    def __init__(
        self, max: float = 100, label: str | None = None, value: float = 0, unit: str | None = None, metadata: str | None = None
    ) -> None:
        with self._taking():
            self._set(max=plain.number(max), label=_title(label), unit=_title(unit))
        self.update(value, metadata)

    def update(self, new_value: float, metadata: str | None = None) -> None:
        with self._taking():
            found = plain.number(new_value)
            self._set(value=0 if found is None else found)
            if metadata is not None:
                self._set(details=_title(metadata))


class ValueBox(Component):
    """One number or short text, large. `theme` is one of default, success, warning, danger, bg-gradient-indigo-purple."""

    type = "value"

    def __init__(
        self,
        title: str | None = None,
        value: object = "",
        subtitle: str | None = None,
        theme: str | None = None,
        change_indicator: str | None = None,
    ) -> None:
        self.update(title, value, subtitle, theme, change_indicator)

    def update(
        self,
        title: str | None = None,
        value: object = None,
        subtitle: str | None = None,
        theme: str | None = None,
        change_indicator: str | None = None,
    ) -> None:
        """Only what is given is replaced."""
        with self._taking():
            found = {"title": title, "subtitle": subtitle, "change": change_indicator}
            self._set(**{name: _title(text) for name, text in found.items() if text is not None})
            if value is not None:
                shown = plain.cell(value)
                self._set(value=plain.text(shown, TITLE) if isinstance(shown, str) else shown)
            if theme is not None:
                if theme not in THEMES:
                    raise Unshowable(f"no theme {plain.text(theme, 50)!r}; there are {', '.join(THEMES)}")
                self._set(theme=theme)


class Artifact(Component):
    """Type and a short repr of any object."""

    type = "artifact"

    def __init__(self, artifact: object, name: str | None = None, compressed: bool = True) -> None:
        self._set(name=_title(name))
        self.update(artifact)

    def update(self, artifact: object) -> None:
        with self._taking():
            found = preview.brief(artifact)
            self._set(of=preview.type_name(artifact)[:TITLE], text=plain.text(found.get("repr", ""), TEXT), html=preview.html(artifact))


class _Viewer(Component):
    def __init__(
        self,
        data: object,
        collapsible: bool = True,
        max_height: str | None = None,
        show_copy_button: bool = True,
        title: str | None = None,
    ) -> None:
        height = max_height if isinstance(max_height, str) and CSS_LENGTH.match(max_height) else None
        self._set(title=_title(title), collapsible=bool(collapsible), max_height=height, copy=bool(show_copy_button))
        self.update(data)

    def update(self, data: object) -> None:
        """Any data; a text that is JSON is shown as what it says."""
        with self._taking():
            if isinstance(data, str):
                with contextlib.suppress(ValueError, RecursionError):
                    data = json.loads(data)
            self._set(data=plain.encode(data, not_finite="text"))


class JSONViewer(_Viewer):
    type = "json"


class YAMLViewer(_Viewer):
    type = "yaml"
