"""What a cell showed, as components of its default card: what it printed, and its displays, in their order.

`display` frames are those of docs/internals.md ("at" is the size of the printed text before). Nothing here raises for what a body showed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowbook.cards import components as parts
from flowbook.cards import plain
from flowbook.cards.components import Component

Json = Any
Frame = Mapping[str, Json]

TEXT = 20_000  # characters of printed text between two displays
HTML_IN_PLACE = 20_000  # characters; more of it stands in a frame of its own
DISPLAYS = 50
_VEGA = "application/vnd.vega"
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")


class Kept:
    """The displays of a running body: the latest state of each, at most DISPLAYS and so many bytes."""

    def __init__(self, most_bytes: int = 4_000_000) -> None:
        self.frames: list[Frame] = []
        self.left_out = 0
        self._room = most_bytes

    def add(self, frame: Frame) -> None:
        size = sum(len(content) if isinstance(content, str) else 1_000 for content in frame["data"].values())
        known = next((i for i, each in enumerate(self.frames) if frame["id"] is not None and each["id"] == frame["id"]), None)
        if frame["update"]:
            if known is not None:
                self.frames[known] = {**frame, "at": self.frames[known]["at"]}
        elif len(self.frames) >= DISPLAYS or size > self._room:
            self.left_out += 1
        else:
            self._room -= size
            self.frames.append(frame)


class Output(Component):
    """Printed text."""

    type = "code"

    def __init__(self, text: str) -> None:
        with self._taking():
            self._set(text=plain.text(text, parts.TEXT))


def components(kept: Kept, printed: bytes, begin: int = 0, left_out: int = 0) -> list[Component]:
    """`printed`: the last part of what was printed, from byte `begin` of the output on; `left_out` bytes of the body's stand before it."""
    found: list[Component] = []
    at = 0
    for frame in kept.frames:
        cut = min(max(int(frame["at"]) - begin, at), len(printed))
        found += _text(printed[at:cut])
        at = cut
        found.append(_display(frame["data"]))
    found += _text(printed[at:])
    if left_out > 0:
        found.insert(0, parts.Markdown(f"*… {left_out:,} bytes were printed before this*"))
    if kept.left_out:
        found.append(parts.Markdown(f"*{kept.left_out} more displays are left out*"))
    for i, part in enumerate(found):
        part.id = f"flowbook:shown-{i}"
    return found


def _text(printed: bytes) -> list[Component]:
    """Of a line with carriage returns its last state, as a terminal leaves it."""
    text = printed.decode("utf-8", "replace")
    shown = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")).strip("\n")
    if len(shown) > TEXT:
        half = TEXT // 2
        shown = f"{shown[:half]}\n… {len(shown) - TEXT:,} characters left out …\n{shown[-half:]}"
    return [Output(shown)] if shown.strip() else []


def _display(data: Mapping[str, Json]) -> Component:
    """The best of the forms in which a value was shown."""
    for mime, content in data.items():
        if mime.startswith(_VEGA) and isinstance(content, Mapping):
            return parts.VegaChart(content)
    texts = {mime: content for mime, content in data.items() if isinstance(content, str)}
    for mime in _IMAGES:
        if mime in texts:
            return parts.Image(f"data:{mime};base64,{texts[mime]}")
    if "image/svg+xml" in texts:
        return parts.Image(texts["image/svg+xml"].encode("utf-8", "replace"))
    if "text/html" in texts:
        return _html(texts["text/html"], texts.get("text/plain", ""))
    if "text/markdown" in texts:
        return parts.Markdown(texts["text/markdown"])
    return Output(texts.get("text/plain", ""))


def _html(html: str, text: str) -> Component:
    if len(html) > HTML_IN_PLACE:
        return parts.HTML(html)
    shown = parts.Artifact(None)
    shown._set(of=None, text=plain.text(text, parts.TEXT), html=html)
    return shown
