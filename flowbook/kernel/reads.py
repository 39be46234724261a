"""What code reads from outside of Python, as far as its text shows: files that it names, variables of the environment, the world.

A cell that reads `"data.csv"` is not the same work when that file has changed. The text tells constants, and the values it captures
tell paths; a name that is put together at run time is not found, which is why such a step is to say it by --files or --cache-key.
"""

from __future__ import annotations

import ast
import glob
import inspect
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

WRITES = re.compile(r"(write|save|to_|dump|mkdir|makedirs|unlink|remove|rmtree|touch|rename|replace|symlink|chdir)", re.IGNORECASE)
WRITING_MODE = re.compile(r"[wax+]")
# What gives another answer each time it is asked, though no input of the step has changed
WORLD = re.compile(
    r"\b(time\.time(_ns)?|datetime\.(now|today|utcnow)|date\.today|Timestamp\.now|Timestamp\.today|os\.urandom|uuid[14]|secrets\.\w+|SystemRandom"
    r"|default_rng\(\s*\)|requests\.(get|post|request)|httpx\.\w+|urlopen|urlretrieve|read_sql\w*|read_gbq|\.connect|create_engine|boto3)\b|default_rng\(\s*\)"
)
MOST_ENTRIES = 2_000  # of a folder that are looked at


@lru_cache(256)
def named(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """Constants of the code that may name files, but for those which it writes; names of environment variables that it asks for."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset(), frozenset()
    files: set[str] = set(_texts(node for node in ast.walk(tree) if isinstance(node, ast.Constant)))
    variables: set[str] = set()
    written: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _ends(node.value, "environ"):
            variables.update(_texts([node.slice]))
        elif isinstance(node, ast.Call):
            name = _name(node.func)
            if name == "getenv" or (isinstance(node.func, ast.Attribute) and name == "get" and _ends(node.func.value, "environ")):
                variables.update(_texts(node.args[:1]))
            elif _writes(name, node):
                written.update(_texts([*node.args, *(k.value for k in node.keywords)]))
                if isinstance(node.func, ast.Attribute):  # Path("out.txt").write_text(…)
                    written.update(_texts(n for n in ast.walk(node.func.value) if isinstance(n, ast.Constant)))
    return frozenset(name for name in files - written if 0 < len(name) < 1000 and "\n" not in name), frozenset(variables)


def asks_the_world(source: str) -> bool:
    """Whether the text asks a clock, the system's randomness, a network or a database."""
    return WORLD.search(source) is not None


def source_of(value: Any) -> str:
    """The text of a function or class of the notebook, "" where it is not known."""
    try:
        return inspect.getsource(inspect.unwrap(value) if not isinstance(value, type) else value)
    except (OSError, TypeError, ValueError):
        return ""


def state(sources: Iterable[str], folder: Path, environ: Mapping[str, str], values: Iterable[Any] = ()) -> dict[str, str]:
    """What is read as it is now: "file data.csv" → its size and times, "variable HOME" → its value. Files that are not there are left out.

    `values` are values that the code uses: a path among them counts like one in the text.
    """
    found: dict[str, str] = {}
    for name in _paths(values):
        if (told := _stat(name, folder)) is not None:
            found[f"file {name}"] = told
    for source in sources:
        files, variables = named(source)
        globs = "glob" in source
        for name in files:
            if not any(map(str.isalnum, name)) and not globs:
                continue  # print("*" * 30)
            if (told := _stat(name, folder, deep=globs)) is not None:
                found[f"file {name}"] = told
        found |= {f"variable {name}": environ[name] for name in variables if name in environ}
    return found


def _paths(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str | os.PathLike):
            yield str(value)
        elif isinstance(value, list | tuple) and len(value) <= 100:
            yield from (str(each) for each in value if isinstance(each, str | os.PathLike))


def _stat(name: str, folder: Path, deep: bool = False) -> str | None:
    """`deep`: `**` in a pattern means folders below, too, which takes as long as it takes the code itself."""
    if not 0 < len(name) < 1000 or "\0" in name or "\n" in name or "://" in name:
        return None
    path = folder / name
    try:
        if any(letter in name for letter in "*?[") and not path.exists():  # most such texts are no pattern: "**bold**"
            matches = sorted(islice(glob.iglob(name, root_dir=folder, recursive=deep), MOST_ENTRIES))
            return "\n".join(match + _told((folder / match).stat()) for match in matches) or None
        if path.is_dir():
            entries = sorted(entry.name + _told(entry.stat()) for entry in list(os.scandir(path))[:MOST_ENTRIES] if entry.is_file())
            return "\n".join(entries)
        return _told(path.stat())
    except (OSError, ValueError):
        return None


def _told(found: os.stat_result) -> str:
    return f" {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _writes(name: str, call: ast.Call) -> bool:
    if name != "open":
        return WRITES.match(name) is not None
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(WRITING_MODE.search(text) for text in _texts(modes))


def _texts(nodes: Iterable[ast.expr]) -> Iterator[str]:
    """Constant texts among these expressions, and in lists of them."""
    for node in nodes:  # (an f-string's pieces are none)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.List | ast.Tuple):
            yield from _texts(node.elts)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _ends(node: ast.expr, name: str) -> bool:
    return _name(node) == name
