"""The cells that ran in this kernel: what they bound, in which order they stand.

A step reads what the cells *above* it made. Where they stand is known from the notebook file when the client sends cell ids
(JupyterLab does, nbclient does not); otherwise the order in which cells first ran is taken for it, and `known` is False.
"""

from __future__ import annotations

import ast
import json
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowbook.spec.body import Body, read_body

MAX_SOURCE = 1_000_000  # characters; a larger cell is not analysed


@dataclass
class Ran:
    """One execution of one cell."""

    number: int  # of this execution, counted from 1
    first: int  # number of the first execution of the same cell
    cell_id: str | None
    count: int  # In[count]
    source: str
    transformed: str
    plain: bool = True  # not a cell of a flow

    @property
    def label(self) -> str:
        return f"Cell In[{self.count}]"

    @cached_property
    def body(self) -> Body | None:
        """What the cell binds; None where it cannot be told."""
        if len(self.transformed) > MAX_SOURCE:
            return None
        try:
            return read_body(self.transformed, label=self.label)
        except (SyntaxError, RecursionError, ValueError):
            return None

    def binds(self, name: str) -> bool:
        body = self.body
        return body is not None and (name in body.makes or name in body.others or name in body.changes)


@dataclass(frozen=True)
class Place:
    """Where a cell stands. Places compare only when both are `known`, else by the order of first execution."""

    index: int | None
    first: int

    def below(self, other: Place) -> bool:
        if self.index is not None and other.index is not None:
            return self.index > other.index
        return self.first > other.first

    def known_with(self, other: Place) -> bool:
        return self.index is not None and other.index is not None


class Cells:
    """All executions, newest last."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self.ran: list[Ran] = []
        self._first: dict[str, int] = {}
        self._seen_in_file: set[str] = set()

    def record(self, info: Any) -> None:
        """IPython's `pre_run_cell`: note the cell that is about to run."""
        if info.silent or not info.raw_cell:
            return
        number = len(self.ran) + 1
        cell_id = getattr(info, "cell_id", None)
        first = self._first.setdefault(cell_id, number) if cell_id else number
        transformed = getattr(info, "transformed_cell", None) or info.raw_cell
        # The shell counts a cell before this event since IPython 9, after it in 8; the history knows which In[] is next in both.
        count = len(self._shell.history_manager.input_hist_raw)
        self.ran.append(Ran(number, first, cell_id, count, info.raw_cell, transformed))

    @property
    def now(self) -> Ran | None:
        return self.ran[-1] if self.ran else None

    def place(self, cell: Ran | None, order: dict[str, int]) -> Place:
        if cell is None:
            return Place(None, 0)
        return Place(order.get(cell.cell_id) if cell.cell_id else None, cell.first)

    def last_binder(self, name: str) -> Ran | None:
        """The plain cell that last bound or changed `name`."""
        return next((cell for cell in reversed(self.ran) if cell.plain and cell.binds(name)), None)

    def origin(self, name: str) -> str:
        cell = self.last_binder(name)
        return cell.label if cell else "this kernel"

    def file_order(self) -> dict[str, int]:
        """Cell id → position in the notebook file, empty where no file is known or it cannot be read."""
        path = notebook_path(self._shell)
        if path is None or path.suffix != ".ipynb":
            return {}
        try:
            cells = json.loads(path.read_text("utf-8"))["cells"]
            order = {cell["id"]: position for position, cell in enumerate(cells) if "id" in cell}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        self._seen_in_file |= set(order)
        return order

    def deleted(self, cell_id: str | None, order: dict[str, int]) -> bool:
        """Whether a cell that once stood in the file stands there no more."""
        return bool(order) and cell_id is not None and cell_id in self._seen_in_file and cell_id not in order


def notebook_path(shell: Any) -> Path | None:
    """The notebook's file, as the client tells it; None if nobody does."""
    told = os.environ.get("FLOWBOOK_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__")
    if not isinstance(told, str) or not told:
        return None
    path = Path(told)
    if not path.is_absolute():
        path = Path(shell.starting_dir if hasattr(shell, "starting_dir") else Path.cwd()) / path.name
    return path


def flow_name(shell: Any) -> str:
    """The default flow: the notebook's name, reduced to what a key may hold; else ``notebook``."""
    path = notebook_path(shell)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).strip("._-") if path else ""
    return name[:100] or "notebook"


def is_history(name: str) -> bool:
    """Whether IPython keeps a result or an input under this name."""
    return (
        name.strip("_") == ""
        or (name[1:2] in "ih0123456789" and name.lstrip("_ih").isdigit())
        or name in ("_dh", "_oh", "_ih", "_i", "_ii", "_iii")
    )


def code_globals(code: types.CodeType) -> set[str]:
    """Names that a function's code loads, stores or deletes globally, nested functions included.

    >>> def f():
    ...     return [len(xs) for _ in range(3)]
    >>> sorted(code_globals(f.__code__) & {"xs", "len"})
    ['len', 'xs']
    """
    import dis

    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= code_globals(const)
    return names


def functions_of(value: Any, namespace: dict[str, Any]) -> list[types.FunctionType]:
    """The functions of the notebook that using `value` may call: itself, what it wraps, the methods of its class."""
    found: list[types.FunctionType] = []
    seen: set[int] = set()

    def visit(item: Any, depth: int) -> None:
        if id(item) in seen or depth > 6:
            return
        seen.add(id(item))
        if isinstance(item, types.FunctionType):
            if item.__globals__ is namespace:
                found.append(item)
            for cell in item.__closure__ or ():
                try:
                    visit(cell.cell_contents, depth + 1)
                except ValueError:  # an empty cell
                    continue
            if hasattr(item, "__wrapped__"):
                visit(item.__wrapped__, depth + 1)
        elif isinstance(item, (staticmethod, classmethod)):
            visit(item.__func__, depth + 1)
        elif isinstance(item, property):
            for part in (item.fget, item.fset, item.fdel):
                visit(part, depth + 1)
        elif isinstance(item, types.MethodType):
            visit(item.__func__, depth + 1)
        elif isinstance(item, type):
            if item.__module__ == "__main__":
                for member in vars(item).values():
                    visit(member, depth + 1)
                for base in item.__bases__:
                    visit(base, depth + 1)
        elif type(item).__module__ == "__main__":
            visit(type(item), depth + 1)
        elif type(item).__name__ in ("_lru_cache_wrapper", "partial"):
            visit(getattr(item, "__wrapped__", None) or getattr(item, "func", None), depth + 1)

    visit(value, 0)
    return found


def names_behind(names: set[str], namespace: dict[str, Any], mine: Mapping[str, Any] | None = None) -> set[str]:
    """`names`, and all global names that the notebook's functions among them may use in turn.

    `namespace` is the kernel's own dict, by which its functions are known; values in `mine` stand in front of it.
    """
    mine = mine or {}
    seen: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        value = mine.get(name, namespace.get(name))
        if value is None or isinstance(value, (int, float, str, bytes, types.ModuleType)):
            continue
        for function in functions_of(value, namespace):
            queue.extend(code_globals(function.__code__) - seen)
    return seen


def loaded_names(tree: ast.AST) -> set[str]:
    """Every name that the code mentions as a value, or changes by ``x += …``: a cheap upper bound of what it reads."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
