"""What people see of a value without loading it: type, shape, dtype, a short repr, the first rows of a table.

Written once, when the value is saved. Nothing here raises, runs long on a huge value, or imports the library a value is of.

How much of it there is says the setting `previews` (`use`), for the whole process: a worker has that of its run, so that nothing else is ever
stored, a kernel and a command line that of their settings, so that of older runs nothing else is shown (`shown`).

    full     all of it
    schema   type, size, shape, dtype, names of columns
    off      type and size
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

FULL, SCHEMA, OFF = MODES = ("full", "schema", "off")  # from all to nothing
REPR_LENGTH = 200
HTML_BYTES = 4096
SLOW_BYTES = 20_000_000  # of a larger value, only a repr known to be short is asked
_SHORT_REPRS = {"numpy", "pandas", "torch", "polars", "pyarrow", "xarray", "scipy", "sklearn", "flowbook", "jax", "jaxlib", "PIL"}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


_mode = FULL


def use(mode: str) -> None:
    """From now on this process writes and shows no more than that. A word of a later version counts as off."""
    global _mode
    _mode = mode if mode in MODES else OFF


def mode() -> str:
    return _mode


def shown(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """An artifact's entry as far as it may be shown, by the setting here and by that of the run which made it: without its value."""
    written = entry.get("previews", FULL)
    strict = max(_mode, written if written in MODES else OFF, key=MODES.index)
    if strict == FULL or entry.get("kind") == "module":
        return entry
    kept = {key: value for key, value in entry.items() if key not in ("json", "repr", "html")}
    if strict == OFF:
        return {key: value for key, value in kept.items() if key not in ("shape", "dtype")}
    text = str(entry.get("repr") or "")
    told = written == SCHEMA or (str(entry.get("type")).endswith("DataFrame") and text.startswith("DataFrame, "))  # as `_table` writes it
    return {**kept, "repr": text} if text and told else kept


def item(value: Any, limit: int = 60) -> str | None:
    """An item of a fan-out in a few words, None where no value may be shown."""
    return text(value, limit) if _mode == FULL else None


class _Short(reprlib.Repr):
    """reprlib, which looks at a few items only, also for subclasses of containers and for dataclasses."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxdict = self.maxarray = 8
        self.maxstring, self.maxother, self.maxlevel, self.maxlong = 120, REPR_LENGTH, 4, 60
        self.size = size

    def repr_instance(self, x: Any, level: int) -> str:
        kind = type(x)
        shorten: tuple[tuple[type, Any], ...] = (
            (dict, self.repr_dict),
            (list, self.repr_list),
            (set, self.repr_set),
            (tuple, self.repr_tuple),
        )
        for base, method in shorten:
            if isinstance(x, base) and not (base is tuple and hasattr(kind, "_fields")):
                return f"{kind.__name__}({method(x, level)})"
        if isinstance(x, (bytes, bytearray)):
            return f"{kind.__name__}({self._bytes(x)})"
        names = _field_names(x)
        if names is not None:
            if level <= 0:
                return f"{kind.__name__}(...)"
            shown = [f"{name}={self.repr1(getattr(x, name, None), level - 1)}" for name in names[:12]]
            return f"{kind.__name__}({', '.join(shown)}{', …' if len(names) > 12 else ''})"
        if self.size > SLOW_BYTES and kind.__module__.partition(".")[0] not in _SHORT_REPRS:
            return object.__repr__(x)
        return repr(x)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0 and x:
            return "{...}"
        shown = [f"{self.repr1(key, level - 1)}: {self.repr1(part, level - 1)}" for key, part in islice(x.items(), self.maxdict)]
        return f"{{{', '.join(shown)}{', ...' if len(x) > self.maxdict else ''}}}"

    def repr_set(self, x: set[Any], level: int) -> str:
        return self._set(x, level) if x else "set()"

    def repr_frozenset(self, x: frozenset[Any], level: int) -> str:
        return f"frozenset({self._set(x, level) if x else ''})"

    def _set(self, x: set[Any] | frozenset[Any], level: int) -> str:
        # reprlib would sort all of it.
        shown = [self.repr1(part, level - 1) for part in islice(x, self.maxset)] if level > 0 else ["..."]
        return f"{{{', '.join(shown)}{', ...' if len(x) > self.maxset else ''}}}"

    def _bytes(self, x: bytes | bytearray) -> str:
        return f"{bytes(x[:60])!r}{'…' if len(x) > 60 else ''}"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return self._bytes(x)

    def repr_bytearray(self, x: bytearray, level: int) -> str:
        return self.repr_instance(x, level)


def _field_names(x: Any) -> list[str] | None:
    """The fields of a named tuple or of a dataclass with the repr it was given; None for all else."""
    kind = type(x)
    if isinstance(x, tuple) and hasattr(kind, "_fields"):
        return list(kind._fields)
    if dataclasses.is_dataclass(x) and hasattr(kind.__repr__, "__wrapped__"):  # a generated repr is wrapped against recursion
        return [f.name for f in dataclasses.fields(x) if f.repr]
    return None


def type_name(value: Any) -> str:
    """``numpy.ndarray``, ``int``, ``Model`` (of the notebook)."""
    kind = type(value)
    module = getattr(kind, "__module__", "builtins")
    name = getattr(kind, "__qualname__", kind.__name__)
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def text(value: Any, limit: int = REPR_LENGTH, size: int = 0) -> str:
    """The repr on one line, at most `limit` characters. `size`: bytes of the value, as far as known."""
    try:
        found = _table(value) or _object_array(value) or _Short(size).repr(value)
    except Exception as error:  # a user's __repr__ may raise anything
        found = f"<{type_name(value)}, whose repr raises {type(error).__name__}>"
    found = _ADDRESS.sub("", " ".join(found[: 10 * limit].split()))
    return found if len(found) <= limit else found[: limit - 1] + "…"


def brief(value: Any, size: int = 0) -> dict[str, Any]:
    """repr, and shape and dtype where the value has them; less, and then which setting it was, where `use` says so."""
    if _mode == OFF:
        return {"previews": OFF}
    found: dict[str, Any] = {"repr": text(value, size=size)} if _mode == FULL else _schema(value)
    if isinstance(value, type):
        return found
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and all(isinstance(number, int) for number in shape):
            found["shape"] = [int(number) for number in shape]
            dtype = getattr(value, "dtype", None)
            if dtype is not None:
                found["dtype"] = str(dtype)[:REPR_LENGTH]
    except Exception:
        pass  # a property of a user's class; the value has no shape to show
    return found


def html(value: Any) -> str | None:
    """The first rows of a pandas table as HTML, at most 4 kB."""
    pandas = sys.modules.get("pandas")
    if _mode != FULL or pandas is None or not isinstance(value, (pandas.DataFrame, pandas.Series)):
        return None
    try:
        head = value.head(5)
        frame = head.to_frame() if isinstance(head, pandas.Series) else head
        for columns in (20, 8):
            found: str = frame.to_html(max_cols=columns, border=0)
            if len(found.encode()) <= HTML_BYTES:
                return found
    except Exception:
        pass  # a cell's own repr may raise; the table is shown by its shape
    return None


def _schema(value: Any) -> dict[str, Any]:
    """What a frame's columns are called."""
    try:
        found = _table(value)
    except Exception:
        found = None
    return {"previews": SCHEMA, **({"repr": found[:REPR_LENGTH]} if found else {})}


def _table(value: Any) -> str | None:
    if not any(isinstance(value, library.DataFrame) for name in ("pandas", "polars") if (library := sys.modules.get(name)) is not None):
        return None
    rows, columns = value.shape
    names = ", ".join(str(name) for name in value.columns[:12])
    return f"DataFrame, {rows:,} rows × {columns:,} columns: {names}{', …' if columns > 12 else ''}"


def _object_array(value: Any) -> str | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray) or not value.dtype.hasobject:
        return None
    return f"array of {value.dtype}, shape {tuple(value.shape)}"  # its elements may have reprs of any length
