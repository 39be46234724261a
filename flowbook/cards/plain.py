"""Values of users as plain JSON that is safe to keep, to send and to read in a browser: bounded, finite, never raising.

Not a number of Python is lost in silence: whole numbers that a browser would round become text, NaN and the infinities become null
(or text, where people read them), what is cut says so. Nothing here imports the library a value is of.
"""

from __future__ import annotations

import datetime
import enum
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flowbook.store import preview

Json = Any

DEPTH = 32  # of nested lists and objects
NODES = 200_000  # of one value
STRING = 100_000  # characters of one string in free JSON
JSON_BYTES = 2_000_000  # of one value as JSON, in characters
CELL = 1_000  # characters
NOTE = 40  # characters of a note of what was cut
EXACT = 2**53  # a browser keeps whole numbers up to here
_LONG_NUMBER = re.compile(r"(?<![\d.])\d{16,}(?![\d.eE])")
_AS_TEXT = (str, os.PathLike, datetime.date, datetime.time, datetime.timedelta)
_AS_TEXT_OF = ("decimal", "uuid", "fractions", "pandas")  # modules whose values are best read as their str


class JsonText(str):
    """A value that is JSON text already."""

    __slots__ = ()


class Unshowable(ValueError):
    """Why a value cannot be shown, in words for the reader of the card."""


def text(value: object, limit: int) -> str:
    """`str(value)`, cut after `limit` characters with a note of how many were left out; the note itself is never cut again.

    >>> text("x" * 50, 3)
    'xxx… (47 characters left out)'
    """
    try:
        found = str(value)
    except Exception as error:  # a user's __str__ may raise anything
        found = f"<{type(value).__name__}, whose str raises {type(error).__name__}>"
    return found if len(found) <= limit + NOTE else f"{found[:limit]}… ({len(found) - limit:,} characters left out)"


def scalar(value: object) -> object:
    """A numpy or torch scalar as Python's own number; anything else as it is."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        try:
            return item()
        except Exception:
            return value
    return value


def number(value: object) -> int | float | None:
    """A finite number, or None for everything else. A large whole number becomes a float, as a browser would read it."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    value = scalar(value)
    if isinstance(value, int) and -EXACT <= value <= EXACT:
        return int(value)
    if not hasattr(type(value), "__float__"):
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except Exception:  # too large, or of a user's class
        return None
    return found if math.isfinite(found) else None


def cell(value: object) -> Json:
    """What stands in one cell of a table: null, a bool, a number that a browser keeps, or text.

    >>> cell(3), cell(float("nan")), cell(2**60), cell([1, 2])
    (3, 'nan', '1152921504606846976', '[1, 2]')
    """
    value = scalar(value)
    if value is None or value is True or value is False:
        return value
    if isinstance(value, enum.Enum):
        return text(value.name, CELL)
    if isinstance(value, int):
        return int(value) if -EXACT <= value <= EXACT else text(value, CELL)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if _reads_well(value):
        return text(value, CELL)
    return preview.text(value, CELL)


def _reads_well(value: object) -> bool:
    if isinstance(value, _AS_TEXT):
        return True
    return type(value).__module__.partition(".")[0] in _AS_TEXT_OF and not hasattr(value, "__len__")


def encode(value: object, limit: int = JSON_BYTES, *, not_finite: str = "null") -> JsonText:
    """A value as JSON text. Raises Unshowable if it is longer than `limit` characters. `not_finite`: see `plain`.

    What JSON knows is taken as it is; what it does not know becomes its nearest: arrays lists, dates and others text.
    """
    try:
        found = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        easy = len(found) > limit or (not _LONG_NUMBER.search(found) and depth(value, DEPTH) <= DEPTH)
    except (TypeError, ValueError, RecursionError, OverflowError):
        easy = False
    if not easy:
        found = json.dumps(plain(value, not_finite=not_finite), ensure_ascii=False, separators=(",", ":"))
    if len(found) > limit:
        raise Unshowable(f"it is {len(found) / 1e6:.1f} MB as JSON; at most {limit / 1e6:.1f} MB are kept. Show a part or a sample of it.")
    return JsonText(found)


def depth(value: object, most: int) -> int:
    """How deep lists and objects are nested, counted no further than `most` + 1."""
    level, depth = [value], 0
    while level and depth <= most:
        below: list[object] = []
        for each in level:
            if isinstance(each, dict):
                below += [part for part in each.values() if isinstance(part, (dict, list, tuple))]
            elif isinstance(each, (list, tuple)):
                below += [part for part in each if isinstance(part, (dict, list, tuple))]
            else:
                continue
        depth += 1
        level = below
    return depth


def plain(value: object, *, not_finite: str = "null") -> Json:
    """A value as JSON types, at most DEPTH deep and NODES large; what is beyond is replaced by "…".

    `not_finite` "text" writes NaN and the infinities as text, else they are null. Never raises.
    """
    return _Plain(not_finite).of(value, 0)


class _Plain:
    def __init__(self, not_finite: str) -> None:
        self._not_finite, self._left = not_finite, NODES

    def of(self, value: object, depth: int) -> Json:
        self._left -= 1
        if self._left < 0 or depth > DEPTH:
            return "…"
        value = scalar(value)
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return text(value, STRING)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value)) if self._not_finite == "text" else None
        if isinstance(value, (int, enum.Enum)) or _reads_well(value):
            return cell(value)
        try:
            return self._container(value, depth)
        except Exception:  # a user's container may raise anything
            return preview.text(value, CELL)

    def _container(self, value: object, depth: int) -> Json:
        if isinstance(value, Mapping):
            return {text(key, CELL): self.of(part, depth + 1) for key, part in self._some(value.items())}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.of(part, depth + 1) for part in self._some(value)]
        tolist = getattr(value, "tolist", None)  # arrays and series
        if callable(tolist) and not isinstance(value, type):
            size = getattr(value, "size", 0)
            if isinstance(size, int) and size <= NODES:
                return self.of(tolist(), depth)
        return preview.text(value, CELL)

    def _some(self, values: Iterable[Any]) -> Iterable[Any]:
        for value in values:
            if self._left < 0:
                return
            yield value


def some(values: object, most: int) -> list[object]:
    """At most so many of the elements of an array or a sequence; of None none."""
    if values is None:
        return []
    cut: Any = values[:most]  # type: ignore[index]
    if getattr(getattr(cut, "dtype", None), "kind", "") == "M":  # dates of numpy, which tolist may give as numbers
        cut = cut.astype("datetime64[ms]").astype(str)
    tolist = getattr(cut, "tolist", None)
    return list(tolist() if callable(tolist) else cut)
