"""What a task shows: its streams, `display` and figures, and the frames that carry them to the engine.

Rich output follows the `_repr_*_` protocol of notebooks, without IPython. If the body imports IPython or matplotlib, their ways to
show something end here, too.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from flowbook.worker import modules

Json = Any
Data = dict[str, Json]  # mime type → content, as in a notebook's output
Publish = Callable[[Data, dict[str, Json], "str | None", bool], None]  # data, metadata, display id, update

TEXT_LIMIT = 1_000_000  # characters of a text/plain
FRAME_LIMIT = 7_500_000  # bytes; the engine drops lines longer than 8 MB
SHOWN_ITEMS = 1_000  # of a container that is the value of a last expression, as in IPython
LINE = 80

_METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_pdf_": "application/pdf",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
}


def prepare_streams() -> None:
    """Text output as UTF-8, a line at a time, never failing on odd characters; nothing to read on stdin."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (a descriptor, open as long as the process)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the body may have closed or replaced it
            stream.flush()


# ---- frames ----------------------------------------------------------------------------------------------------------


class Frames:
    """The pipe to the engine. Frames are hints: with no pipe, or nobody left to read it, they are dropped."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self.kept: Callable[[Mapping[str, Json]], None] | None = None  # a card that shows what the body showed takes the frames, too
        if fd is not None:
            try:
                os.set_inheritable(fd, False)  # a program that the body starts must not hold the pipe open
            except OSError:
                self._fd = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a forked child: it may live on, and must neither speak for the task nor hold the pipe open."""
        self._lock = threading.Lock()
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def send(self, frame: Mapping[str, Json]) -> bool:
        """Whether the frame was written."""
        return self._fd is not None and self.send_line(json.dumps(frame, separators=(",", ":")).encode())

    def send_line(self, line: bytes) -> bool:
        """`send`, for a frame that is JSON already."""
        left = memoryview(line + b"\n")
        with self._lock:
            try:
                while left and self._fd is not None:
                    left = left[os.write(self._fd, left) :]
            except OSError:
                self._fd = None
        return not left

    def show(self, data: Data, metadata: dict[str, Json], display_id: str | None, update: bool) -> None:
        """Send rich output; without a pipe its text is printed."""
        flush()
        while len(data) > 1 and sum(map(_length, data.values())) > FRAME_LIMIT:
            del data[max(data, key=lambda mime: _length(data[mime]))]
        frame = {"f": "display", "at": printed(), "data": data, "metadata": metadata, "id": display_id, "update": update}
        if self.kept is not None:
            self.kept(frame)
        if not self.send(frame) and not update:
            print(data.get("text/plain", ""))  # noqa: T201


def printed() -> int:
    """The size of the output file: what was printed before."""
    try:
        return os.fstat(1).st_size
    except OSError:
        return 0


def printed_since(begin: int, most: int) -> tuple[bytes, int]:
    """The last bytes of what was printed from `begin` on, and where they begin; nothing where the output is no file."""
    flush()
    end = printed()
    begin = max(begin, end - most)
    try:
        return os.pread(1, end - begin, begin), begin
    except OSError:
        return b"", begin


def _length(content: Json) -> int:
    return len(content) if isinstance(content, str) else len(json.dumps(content))


# ---- what a value looks like -----------------------------------------------------------------------------------------


def bundle(value: Any, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None) -> tuple[Data, dict[str, Json]]:
    """All forms in which a value can be shown, text/plain always among them, and metadata. Never raises."""
    data: Data = {"text/plain": text(value)}
    metadata: dict[str, Json] = {}
    for mime, content, about in [*_forms(value), *_whole_bundle(value, include, exclude)]:
        encoded = _encoded(content)
        if encoded is not None:
            data[mime] = encoded
            if about:
                metadata[mime] = about
    wanted, unwanted = set(include or data) | {"text/plain"}, set(exclude or ())
    return {mime: content for mime, content in data.items() if mime in wanted and mime not in unwanted}, metadata


def _forms(value: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, type):
        return
    for name, mime in _METHODS.items():
        method = getattr(type(value), name, None)  # of the type: an object may answer to every name
        if callable(method):
            found = _called(partial(method, value), name, value)
            content, about = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
            yield mime, content, about
    if _is_figure(value) and (png := _called(lambda: figure_png(value), "savefig", value)) is not None:
        yield "image/png", png, None


def _whole_bundle(value: Any, include: Any, exclude: Any) -> Iterator[tuple[str, Any, Any]]:
    method = None if isinstance(value, type) else getattr(type(value), "_repr_mimebundle_", None)
    if not callable(method):
        return
    found = _called(lambda: method(value, include=include, exclude=exclude), "_repr_mimebundle_", value)
    contents, about = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
    if isinstance(contents, Mapping):
        for mime, content in contents.items():
            yield str(mime), content, about.get(mime) if isinstance(about, Mapping) else None


def _called(method: Callable[[], Any], name: str, value: Any) -> Any:
    try:
        return method()
    except Exception as error:  # a form that fails is left out; the others show the value
        print(f"{type(value).__name__}.{name} failed: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return None


def _encoded(content: Any) -> Json | None:
    """Content as JSON can carry it; None if it cannot."""
    if isinstance(content, (bytes, bytearray, memoryview)):
        return base64.b64encode(content).decode()
    try:
        json.dumps(content)
    except (TypeError, ValueError, RecursionError):
        return None
    return content


def text(value: Any) -> str:
    """What a notebook prints for a value; never raises."""
    try:
        found = _laid_out(value) if type(value) in (list, dict, tuple, set, frozenset) else repr(value)
    except Exception as error:
        found = f"<{type(value).__name__}, whose repr raises {type(error).__name__}: {error}>"
    return found if len(found) <= TEXT_LIMIT else f"{found[:TEXT_LIMIT]}…"


def _laid_out(value: Any) -> str:
    """A container over several lines if it is long, and only its beginning if it is very long."""
    left = len(value) - SHOWN_ITEMS
    if left > 0:
        shown = list(value.items() if isinstance(value, dict) else value)[:SHOWN_ITEMS]
        return f"{_laid_out(dict(shown) if isinstance(value, dict) else shown)}\n… {left:,} more"
    found = repr(value)
    if len(found) < LINE:
        return found
    import pprint

    return pprint.pformat(value, width=LINE, sort_dicts=False)


# ---- display ---------------------------------------------------------------------------------------------------------


class Handle:
    """What `display(…, display_id=…)` gives: shows or updates in the same place."""

    def __init__(self, show: Display, display_id: str) -> None:
        self._show, self.display_id = show, display_id

    def display(self, value: Any, **options: Any) -> None:
        self._show(value, display_id=self.display_id, **options)

    def update(self, value: Any, **options: Any) -> None:
        self._show.update(value, display_id=self.display_id, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} display_id={self.display_id}>"


class Display:
    """The function `display` of notebooks. `publish` takes what is shown."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._figures: list[Any] = []  # shown by hand; not again when the body ends

    def __call__(
        self,
        *values: Any,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        metadata: Mapping[str, Json] | None = None,
        transient: Mapping[str, Json] | None = None,
        display_id: str | bool | None = None,
        raw: bool = False,
        clear: bool = False,
        update: bool = False,
        **options: Any,
    ) -> Handle | None:
        """Show values as a notebook does. With `raw` they are mime bundles already."""
        if display_id is True:
            display_id = os.urandom(16).hex()
        shown_id: str | None = display_id or (transient or {}).get("display_id") or None
        for value in values:
            if raw:
                self.publish_raw(value, metadata, transient={"display_id": shown_id}, update=update)
            elif not isinstance(value, type) and callable(own := getattr(type(value), "_ipython_display_", None)):
                _called(partial(own, value), "_ipython_display_", value)
            else:
                data, about = bundle(value, include, exclude)
                if _is_figure(value):
                    self._figures.append(value)
                self._publish(data, about | dict(metadata or {}), shown_id, update)
        return Handle(self, shown_id) if display_id and shown_id else None

    def update(self, value: Any, *, display_id: str, **options: Any) -> None:
        self(value, display_id=display_id, **{**options, "update": True})

    def publish_raw(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Json] | None = None,
        *args: Any,
        transient: Mapping[str, Json] | None = None,
        update: bool = False,
        **options: Any,
    ) -> None:
        """Show a mime bundle as it is; parts that JSON cannot carry are left out."""
        encoded = {str(mime): found for mime, content in data.items() if (found := _encoded(content)) is not None}
        if encoded:
            self._publish(encoded, dict(metadata or {}), (transient or {}).get("display_id"), update)

    def value(self, value: Any) -> None:
        """Show the value of a last expression."""
        self(value)

    def figures(self) -> None:
        """Show and close the open figures of pyplot, as notebooks do after a cell. Imports nothing."""
        pyplot, helpers = sys.modules.get("matplotlib.pyplot"), sys.modules.get("matplotlib._pylab_helpers")
        if pyplot is None or helpers is None:
            return
        for manager in helpers.Gcf.get_all_fig_managers():
            figure = manager.canvas.figure
            if not any(figure is shown for shown in self._figures) and (figure.axes or figure.lines):
                self(figure)
        self._figures.clear()
        pyplot.close("all")


def _is_figure(value: Any) -> bool:
    figure = sys.modules.get("matplotlib.figure")
    return figure is not None and isinstance(value, getattr(figure, "Figure", ()))


def figure_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


# ---- hooks -----------------------------------------------------------------------------------------------------------


def install(display: Display) -> None:
    """Make `display` a builtin, and the end of what IPython and pyplot show, if the body imports them."""
    builtins.display = display  # type: ignore[attr-defined]
    backend = os.environ.get("MPLBACKEND", "")
    if not backend or "inline" in backend or "ipympl" in backend or "nbagg" in backend.lower() or backend == "widget":
        os.environ["MPLBACKEND"] = "Agg"  # a kernel sets one that draws into its own cells
    # A fork server may import these before it knows of any task, and others take the functions from them: hence one level more.
    global _now
    _now = display
    modules.when_imported("IPython.core.display_functions", _hook_ipython)
    modules.when_imported("matplotlib.pyplot", lambda module: setattr(module, "show", lambda *args, **options: _now.figures()))


_now: Display  # of the task that runs in this process


def _hook_ipython(module: Any) -> None:
    # The functions of this module do nothing useful without an IPython shell; those who import them come after.
    module.display = lambda *args, **options: _now(*args, **options)
    module.update_display = lambda *args, **options: _now.update(*args, **options)
    module.publish_display_data = lambda *args, **options: _now.publish_raw(*args, **options)
    module.clear_output = lambda wait=False: None
