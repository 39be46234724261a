"""The text of a cell on its way into a method: indented, and changed at as few places as possible.

A body keeps its words: comments, blank lines and layout stay. What must differ is told as `Edit`s, found in the syntax tree by
the functions here and applied from the end, so that places stay true. Nothing here knows of steps.
"""

from __future__ import annotations

import ast
import io
import json
import math
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

WIDTH = 100
LONGEST_LITERAL = 2000  # characters


@dataclass(frozen=True)
class Edit:
    """Put `text` in place of what stands from `start` to `end`; both are (line from 1, column in UTF-8 bytes), as in the syntax tree."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def apply(source: str, edits: Iterable[Edit]) -> str:
    """The text with all edits made; they must not overlap."""
    lines = [line.encode() for line in source.split("\n")]
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        (first, left), (last, right) = edit.start, edit.end
        lines[first - 1 : last] = [lines[first - 1][:left] + edit.text.encode() + lines[last - 1][right:]]
    return b"\n".join(lines).decode()


def place_of(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a node begins and ends."""
    start = (getattr(node, "lineno"), getattr(node, "col_offset"))  # noqa: B009 (the stub of AST has none)
    return start, (getattr(node, "end_lineno"), getattr(node, "end_col_offset"))  # noqa: B009


def parse(source: str) -> ast.Module:
    """The tree of a cell's text, which may hold `await` at its top level."""
    tree = compile(source, "<cell>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


def trimmed(source: str) -> str:
    """Without blank lines before and after it, and without blanks at its end."""
    lines = source.split("\n")
    while lines and not lines[0].strip():
        del lines[0]
    return "\n".join(lines).rstrip()


def indented(source: str, prefix: str) -> str:
    """Each line of a text moved to the right, but for those that begin inside a string: they are its content."""
    inside = set(_inside_strings(source))
    lines = source.split("\n")
    return "\n".join(line if number in inside or not line.strip() else prefix + line for number, line in enumerate(lines, 1))


def _inside_strings(source: str) -> Iterator[int]:
    """Numbers of the lines that begin inside a string."""
    start, end = getattr(tokenize, "FSTRING_START", -1), getattr(tokenize, "FSTRING_END", -1)  # since Python 3.12
    opened: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING:
            yield from range(token.start[0] + 1, token.end[0] + 1)
        elif token.type == start:
            opened.append(token.start[0])
        elif token.type == end:
            yield from range(opened.pop() + 1, token.end[0] + 1)


def at_cell_level(tree: ast.AST) -> Iterator[ast.AST]:
    """All parts but those inside functions, lambdas and classes; these themselves are given."""
    for child in ast.iter_child_nodes(tree):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from at_cell_level(child)


def global_edits(tree: ast.Module, names: frozenset[str]) -> Iterator[Edit]:
    """What must change in a body whose method declares `names` global: they may not be annotated or declared again."""
    for node in at_cell_level(tree):
        if isinstance(node, ast.Global):
            yield Edit(*place_of(node), "pass")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in names:
            if node.value is None:
                yield Edit(*place_of(node), "pass")
            else:
                yield Edit(place_of(node.target)[1], place_of(node.annotation)[1], "")


def future_edits(tree: ast.Module) -> Iterator[Edit]:
    """`from __future__` may only stand at the top of a file."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            yield Edit(*place_of(node), "pass" if len(tree.body) == 1 else "")


def futures(tree: ast.Module) -> set[str]:
    found = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__")
    return {alias.name for node in found for alias in node.names}


def sole_assignments(tree: ast.Module) -> dict[str, Edit]:
    """Name → the edit that makes ``name = …`` an assignment to ``self.name``, for names that occur nowhere else in the body."""
    counts: dict[str, int] = {}
    for node in ast.walk(tree):
        for name in _mentions(node):
            counts[name] = counts.get(name, 0) + 1
    found = {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
        if isinstance(statement, ast.AnnAssign) and statement.value is not None and statement.simple:
            target = statement.target
        if isinstance(target, ast.Name) and counts[target.id] == 1:
            start, _ = place_of(target)
            found[target.id] = Edit(start, start, "self.")
    return found


def _mentions(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Global | ast.Nonlocal):
        return node.names
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name] if node.name else []
    if isinstance(node, ast.MatchMapping):
        return [node.rest] if node.rest else []
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).partition(".")[0]]
    return [node.arg] if isinstance(node, ast.arg) else []


def mangled(tree: ast.Module) -> str | None:
    """A name that Python would spell differently inside a class: two underscores before it, none behind."""
    for node in _outside_classes(tree):
        names = [*_mentions(node), *([node.attr] if isinstance(node, ast.Attribute) else [])]
        for name in names:
            if name.startswith("__") and not name.endswith("__"):
                return name
    return None


def _outside_classes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        yield child
        if not isinstance(child, ast.ClassDef):
            yield from _outside_classes(child)


# ---- values as text -------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A string as people write it: in double quotes, where that needs no more backslashes."""
    plain = repr(text)
    double = json.dumps(text, ensure_ascii=False)
    return double if plain[1:-1] == double[1:-1] and "\\" not in double else plain


class NoLiteral(Exception):
    """A value that no literal gives exactly; the message says why."""


def literal(value: Any) -> str:
    """An expression that gives an equal value of the same types. Raises NoLiteral."""
    text = _literal(value, set())
    if len(text) > LONGEST_LITERAL:
        raise NoLiteral(f"its text has {len(text):,} characters")
    return text


def _literal(value: Any, around: set[int]) -> str:
    kind = type(value)
    if value is None or value is Ellipsis or kind in (bool, int, bytes):
        return repr(value)
    if kind is str:
        return quoted(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if kind in (list, tuple, set, frozenset, dict):
        if id(value) in around:
            raise NoLiteral("it contains itself")
        return _collection(value, {*around, id(value)})
    if isinstance(value, PurePath) and kind is type(Path()):
        return f"Path({quoted(str(value))})"
    raise NoLiteral(f"it is a {kind.__name__}" if not around else f"it contains a {kind.__name__}")


def _collection(value: Any, around: set[int]) -> str:
    kind = type(value)
    if kind is dict:
        return "{" + ", ".join(f"{_literal(k, around)}: {_literal(v, around)}" for k, v in value.items()) + "}"
    parts = [_literal(item, around) for item in (sorted(value, key=repr) if kind in (set, frozenset) else value)]
    if kind is tuple:
        return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"
    if kind is list:
        return "[" + ", ".join(parts) + "]"
    if not parts:
        return f"{kind.__name__}()"
    inner = "{" + ", ".join(parts) + "}"
    return inner if kind is set else f"frozenset({inner})"


def mutable_parts(value: Any) -> Iterator[int]:
    """Ids of the lists, sets and dicts that a value is made of."""
    if isinstance(value, list | set | dict):
        yield id(value)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from mutable_parts(item)


def call(head: str, arguments: Iterable[str], indent: str = "") -> str:
    """``head(a, b)``, on lines of their own where one line would be too long."""
    given = list(arguments)
    line = f"{head}({', '.join(given)})"
    if len(indent) + len(line) <= WIDTH or not given:
        return line
    inner = "".join(f"{indent}    {argument},\n" for argument in given)
    return f"{head}(\n{inner}{indent})"


def comment(text: str, indent: str) -> str:
    """A comment of full sentences, wrapped."""
    return textwrap.fill(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
