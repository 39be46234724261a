"""Data frames of pandas and polars as rows, recognised only if the step has imported the library already."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

Rows = list[Sequence[object]]


def is_a(value: object, module: str, name: str) -> bool:
    """Whether it is of a class of a module, if that is imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def is_frame(value: object) -> bool:
    """Whether it is a data frame or a series of pandas or polars."""
    return any(is_a(value, module, name) for module in ("pandas", "polars") for name in ("DataFrame", "Series"))


def rows(frame: Any, most: int, columns: int) -> tuple[list[object], Rows, int]:
    """Headers, the first rows, and how many rows there are. The index of pandas is the first column."""
    count = len(frame)
    head = frame.head(most)
    if hasattr(head, "to_frame"):  # a series
        head = head.to_frame()
    if type(head).__module__.startswith("pandas"):
        names = [_header(name) for name in head.columns[:columns]]
        found: Rows = [list(row) for row in head.iloc[:, :columns].itertuples(index=True, name=None)]
        return [_header(head.index.name or ""), *names], [[_label(row[0]), *row[1:]] for row in found], count
    return list(head.columns), [list(row) for row in head.rows()], count


def _header(name: object) -> str:
    return " / ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _label(value: object) -> object:
    return _header(value) if isinstance(value, tuple) else value
