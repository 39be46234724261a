"""What code reads from outside of Python, as far as its text shows: files that it opens by name, variables of the environment.

A cell that reads `"data.csv"` is not the same work when that file has changed. Its text tells only constants; a name that is put
together at run time is not found, which is why such a step is to say it by --files or --cache-key.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

READING = re.compile(r"(open|read|load|imread|glob|scan|from_file|Path)", re.IGNORECASE)  # in the name of what is called
WRITING = re.compile(r"[wax+]")
MOST_ENTRIES = 2_000  # of a folder that are looked at


@lru_cache(256)
def named(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """Constants that the code gives to what reads files; names of environment variables that it asks for."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset(), frozenset()
    files: set[str] = set()
    variables: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _ends(node.value, "environ"):
            variables.update(_texts([node.slice]))
        elif isinstance(node, ast.Call):
            name = _name(node.func)
            if name == "getenv" or (isinstance(node.func, ast.Attribute) and name == "get" and _ends(node.func.value, "environ")):
                variables.update(_texts(node.args[:1]))
            elif READING.search(name) and not _writes(name, node):
                files.update(_texts([*node.args[:1], *(k.value for k in node.keywords if k.arg != "mode")]))
    return frozenset(files), frozenset(variables)


def source_of(value: Any) -> str:
    """The text of a function or class of the notebook, "" where it is not known."""
    try:
        return inspect.getsource(inspect.unwrap(value) if not isinstance(value, type) else value)
    except (OSError, TypeError, ValueError):
        return ""


def state(sources: Iterable[str], folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """What is read as it is now: "file data.csv" → its size and time, "variable HOME" → its value. Files that are not there are left out."""
    found: dict[str, str] = {}
    for source in sources:
        files, variables = named(source)
        for name in files:
            if (told := _stat(name, folder)) is not None:
                found[f"file {name}"] = told
        found |= {f"variable {name}": environ[name] for name in variables if name in environ}
    return found


def _stat(name: str, folder: Path) -> str | None:
    if not 0 < len(name) < 1000 or "\0" in name or "\n" in name or "://" in name:
        return None
    if any(letter in name for letter in "*?["):
        name = os.path.dirname(name.split("*")[0].split("?")[0].split("[")[0]) or "."  # noqa: PTH120 (text, not a path yet)
    path = folder / name
    try:
        if path.is_dir():
            entries = sorted(entry.name + _told(entry.stat()) for entry in list(os.scandir(path))[:MOST_ENTRIES] if entry.is_file())
            return "\n".join(entries)
        return _told(path.stat())
    except (OSError, ValueError):
        return None


def _told(found: os.stat_result) -> str:
    return f" {found.st_size} {found.st_mtime_ns}"


def _writes(name: str, call: ast.Call) -> bool:
    if name != "open":
        return name.startswith(("write", "save", "to_", "dump"))
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(WRITING.search(text) for text in _texts(modes))


def _texts(nodes: Iterable[ast.expr]) -> Iterator[str]:
    """Constant texts among these expressions, and in lists of them."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.List | ast.Tuple):
            yield from _texts(node.elts)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _ends(node: ast.expr, name: str) -> bool:
    return _name(node) == name
