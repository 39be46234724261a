"""What a body shows: text goes to the process's own stdout, rich output to the engine as frames.

A frame says how large the output file was when it was shown, so that a figure stands between the right lines of text. Rich forms are
found by the `_repr_*_` protocol alone; IPython is never imported here, but if the body imports it, its `display` comes to us.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import uuid
from typing import Any

MIMES = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_latex_": "text/latex",
}
MAX_FRAME = 7_000_000


class Frames:
    """Lines of JSON to the engine. They are hints: a lost one changes no result, so nothing here raises."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def send(self, frame: dict[str, Any]) -> None:
        if self._fd is None:
            return
        try:
            data = json.dumps(frame, default=str).encode() + b"\n"
            if len(data) > MAX_FRAME:
                if frame.get("f") != "display":
                    return
                note = f"(output of {len(data) / 1e6:.0f} MB left out)"
                data = json.dumps({**frame, "data": {"text/plain": note}}).encode() + b"\n"
            while data:
                data = data[os.write(self._fd, data) :]
        except (OSError, ValueError, TypeError, RecursionError):
            return

    def phase(self, name: str) -> None:
        self.send({"f": "phase", "phase": name})


class Display:
    """`display(...)` of a body."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def __call__(self, *values: Any, display_id: Any = None, **ignored: Any) -> Any:
        handle = None
        for value in values:
            name = None
            if display_id:
                name = display_id if isinstance(display_id, str) else uuid.uuid4().hex
                handle = Handle(self, name)
            self.publish(bundle(value), name)
        return handle

    def publish(self, data: dict[str, Any], name: str | None = None, update: bool = False) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            at = os.fstat(1).st_size
        except (OSError, ValueError):
            at = 0
        if data:
            self._frames.send({"f": "display", "at": at, "data": data, "metadata": {}, "id": name, "update": update})


class Handle:
    """What `display(x, display_id=True)` returns."""

    def __init__(self, display: Display, name: str) -> None:
        self._display, self.display_id = display, name

    def update(self, value: Any, **ignored: Any) -> None:
        self._display.publish(bundle(value), self.display_id, update=True)


def bundle(value: Any) -> dict[str, Any]:
    """The value's forms by MIME type; text/plain always."""
    data: dict[str, Any] = {}
    cls = type(value)
    if hasattr(cls, "_repr_mimebundle_"):
        try:
            found = value._repr_mimebundle_()
            data.update(found[0] if isinstance(found, tuple) else found or {})
        except Exception:  # a broken repr must not fail a step, as in a notebook
            pass
    for method, mime in MIMES.items():
        if mime in data or not hasattr(cls, method):
            continue
        try:
            found = getattr(value, method)()
        except Exception:
            continue
        if isinstance(found, tuple):
            found = found[0]
        if found is not None:
            data[mime] = found
    figure = sys.modules.get("matplotlib.figure")
    if figure is not None and isinstance(value, figure.Figure) and "image/png" not in data:
        data["image/png"] = figure_png(value)
    if "text/plain" not in data:
        try:
            data["text/plain"] = repr(value)[:100_000]
        except Exception as error:
            data["text/plain"] = f"<{cls.__name__}: its repr fails with {type(error).__name__}>"
    return {mime: base64.b64encode(v).decode() if isinstance(v, bytes) else v for mime, v in data.items()}


def figure_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def show_open_figures(display: Display) -> None:
    """What the inline backend does at the end of a cell: figures that are open are shown and closed."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    for number in pyplot.get_fignums():
        display(pyplot.figure(number))
    pyplot.close("all")


def hook_ipython(display: Display) -> None:
    """If the body has imported IPython, its display functions publish through us."""
    functions = sys.modules.get("IPython.core.display_functions")
    if functions is None or getattr(functions, "_flowbook", False):
        return
    functions._flowbook = True  # type: ignore[attr-defined]

    def publish(data: dict[str, Any], metadata: Any = None, *, transient: Any = None, update: bool = False, **ignored: Any) -> None:
        display.publish(dict(data), (transient or {}).get("display_id"), update)

    def show(*values: Any, raw: bool = False, display_id: Any = None, **ignored: Any) -> Any:
        if raw:
            for value in values:
                publish(value)
            return None
        return display(*values, display_id=display_id)

    functions.publish_display_data = publish  # type: ignore[attr-defined]
    for name in ("IPython.core.display_functions", "IPython.display", "IPython.core.display"):
        module = sys.modules.get(name)
        if module is not None:
            module.display = show  # type: ignore[attr-defined]
