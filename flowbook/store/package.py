"""Which code travels with a run: the local `.py` files that it imports, and the small data files of their packages.

Local means: outside the standard library and site-packages. Code goes by content as it is on disk now, each file a blob, so a task
sees neither an older nor a later state. A value of the result is an entry of Spec.modules:

    dotted name → {"file": path here, "blob", "size", "package": bool, "imports": [root names], "data"?: {path: {"file", "blob", "size"}}}

`data` is of packages (folders with an `__init__.py`): what stands beside their code, by its path inside the package. **How a task gets
at data files.** The worker imports a stored module with its original `__file__` (worker/modules.py), so on this machine
``Path(__file__).with_name("x.json")`` and ``importlib.resources`` find the files where they are, in their present state; the blobs are
not used. A launcher on another machine has to write them out before the body runs: for each package the `data` under the folder of its
`file` (or under a folder that it puts in place of that one in all entries of the package, since `__file__` is made of `file`).

Never: site-packages, hidden files and folders, links that lead out of the package, and files that are named like secrets.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowbook.errors import DefinitionError, Finding
from flowbook.store.base import Store

MAX_FILES = 5000  # of one package: a folder with more is none
DATA_SUFFIXES = frozenset(".json .yaml .yml .toml .csv .txt .sql .html".split())
DATA_BYTES = 1_000_000  # of one file; a larger one is data, and belongs into an artifact, an IncludeFile or storage
SECRET_FILE = re.compile(
    r"secret|credential|passw(or)?d|private[-_.]?key|api[-_.]?key|token|id_(rsa|dsa|ecdsa|ed25519)|\.env\b|^env\.", re.I
)
SKIPPED = frozenset(["__pycache__", "node_modules", "site-packages", "dist-packages"])


# ---- of a flow's file ------------------------------------------------------------------------------------------------


def program_modules(path: str | os.PathLike[str], store: Store, without: Iterable[str] = ()) -> dict[str, Any]:
    """What the file of a flow imports, and what that imports in turn, as entries of Spec.modules; written to the store.

    Imports are found in the text, inside functions too. Siblings of the file come first, then packages above it (a file inside
    ``mypkg/flows/`` that says ``from ..lib import x`` or ``from mypkg.lib import x``), then this process's path. The file itself is not
    among them, unless it stands in such a package; nor are the roots in `without`. Raises DefinitionError for a file that cannot be read.
    """
    file = Path(path).absolute()
    source = _content(file)
    top, package = package_above(file)
    roots = imported_roots(source)
    if package and _imports_relatively(source):
        roots.add(package.partition(".")[0])
    return local_modules(roots, store, dict.fromkeys(without), places=tuple(dict.fromkeys((file.parent, top))), data=True)


def package_above(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """The folder that has to be on the path, and the dotted name of the package that a file stands in; "" if in none.

    A file that runs as ``python -m flows.train`` knows its package, also one without `__init__.py`.
    """
    file = Path(path).absolute()
    main = sys.modules.get("__main__")
    told, ran = getattr(main, "__package__", None), getattr(main, "__file__", None)
    if told and ran and Path(ran).absolute() == file:
        return file.parents[told.count(".") + 1], told
    folder, names = file.parent, []
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        names.append(folder.name)
        folder = folder.parent
    return folder, ".".join(reversed(names))


def listing(modules: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(path, bytes) of what `modules` holds, sorted, each path beginning with its package: for people. The flow's own file is not in it."""
    found: list[tuple[str, int]] = []
    for name, info in modules.items():
        folder = name.replace(".", "/")
        found.append((f"{folder}/__init__.py" if info["package"] else f"{folder}.py", info["size"]))
        found += [(f"{folder}/{path}", data["size"]) for path, data in info.get("data", {}).items()]
    return sorted(found)


def contents(modules: Mapping[str, Any]) -> list[str]:
    """A line for each file, code and data, that changes if and only if the file's name or content does: what a key is made of."""
    lines = [f"{name} {info['blob']}" for name, info in modules.items()]
    lines += [f"{name}/{path} {data['blob']}" for name, info in modules.items() for path, data in info.get("data", {}).items()]
    return sorted(lines)


def _imports_relatively(source: bytes) -> bool:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


# ---- local modules ---------------------------------------------------------------------------------------------------


def local_modules(
    roots: Iterable[str], store: Store, known: Mapping[str, Any] | None = None, *, places: Sequence[Path] = (), data: bool = False
) -> dict[str, Any]:
    """Every `.py` file of the local packages in `roots` and of those they import, as entries of Spec.modules.

    `places` are folders that come before this process's path. With `data`, the data files of packages come along. A package with more
    than MAX_FILES files is taken in part. Raises DefinitionError for a file that cannot be read.
    """
    found: dict[str, Any] = {}
    done = {name.partition(".")[0] for name in known or ()}
    queue = sorted(roots)
    while queue:
        root = queue.pop()
        if root in done or root in ("__main__", "flowbook") or root in sys.stdlib_module_names:
            continue
        done.add(root)
        file, folder = _place_of(root, places)
        if not any(place is not None and is_local(place) for place in (file, folder)):
            continue
        paths = list(_files(folder))[:MAX_FILES] if folder is not None else [file] if file is not None else []
        above = folder.parent if folder is not None else file.parent if file is not None else Path()
        taken = _code(paths, above, store)
        queue.extend(imported for info in taken.values() for imported in info["imports"])
        if data:
            _add_data(taken, paths, above, store)
        found |= taken
    return found


def _code(paths: Iterable[Path], above: Path, store: Store) -> dict[str, Any]:
    """Entries of the `.py` files among `paths`, whose dotted names begin below the folder `above`."""
    found: dict[str, Any] = {}
    for path in paths:
        relative = path.relative_to(above).with_suffix("")
        is_package = relative.name == "__init__"
        parts = relative.parts[:-1] if is_package else relative.parts
        if path.suffix != ".py" or not all(part.isidentifier() for part in parts):
            continue
        content = _content(path)
        found[".".join(parts)] = {
            "file": str(path),
            "blob": store.put_blob([content]),
            "size": len(content),
            "package": is_package,
            "imports": sorted(imported_roots(content)),
            "requires": sorted(required_roots(content.decode("utf-8", "replace"), "")),
        }
    return found


def _add_data(taken: dict[str, Any], paths: Iterable[Path], above: Path, store: Store) -> None:
    """Put the data files among `paths` into the entries of the packages that they stand in, the innermost."""
    packages = {Path(info["file"]).parent: info for info in taken.values() if info["package"]}
    for path in paths:
        home = next((folder for folder in path.parents if folder in packages), None)
        if home is None or not _is_data(path, above):
            continue
        try:
            content = path.read_bytes()
        except OSError:
            continue  # the code does without it here, too
        entry = {"file": str(path), "blob": store.put_blob([content]), "size": len(content)}
        packages[home].setdefault("data", {})[path.relative_to(home).as_posix()] = entry


def _is_data(path: Path, above: Path) -> bool:
    """Whether a file is small data that belongs to the code beside it, and nothing that must not leave this machine."""
    if path.suffix.lower() not in DATA_SUFFIXES or any(SECRET_FILE.search(part) for part in path.relative_to(above).parts[1:]):
        return False
    try:
        inside = path.resolve().is_relative_to(above.resolve())
        return inside and path.is_file() and path.stat().st_size <= DATA_BYTES
    except OSError:
        return False


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, sorted, without what is hidden, installed or generated."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not _skipped(here / name))
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _skipped(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in SKIPPED or (folder / "pyvenv.cfg").exists()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"it cannot be read: {error.strerror}"
        raise DefinitionError(Finding(str(path), what, "It goes along with the run, since the flow imports it or its package.")) from None


# ---- where modules are -----------------------------------------------------------------------------------------------


def _place_of(root: str, places: Sequence[Path]) -> tuple[Path | None, Path | None]:
    """The file of a module (of a package its `__init__.py`), and the folder of a package."""
    for place in places:
        if (place / root / "__init__.py").is_file():
            return place / root / "__init__.py", place / root
        if (place / f"{root}.py").is_file():
            return place / f"{root}.py", None
    file = module_file(root)
    if file is not None:
        return file, file.parent if file.name == "__init__.py" else None
    for place in places:  # Python, too, prefers any module to a folder without __init__.py
        if (place / root).is_dir() and any((place / root).glob("**/*.py")):
            return None, place / root
    return None, namespace_folder(root)


def module_file(root: str) -> Path | None:
    """The source file of a top-level module as this process imports it; of a package its `__init__.py`."""
    module = sys.modules.get(root)
    file = getattr(module, "__file__", None)
    if file is None:
        try:
            spec = importlib.util.find_spec(root)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec and spec.has_location else None
    return Path(file) if isinstance(file, str) and file.endswith(".py") else None


def namespace_folder(root: str) -> Path | None:
    """The folder of a package without `__init__.py`, if it is one folder."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError, AttributeError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None and spec.origin is None else []
    return Path(places[0]) if len(places) == 1 else None


def is_local(file: Path) -> bool:
    """Whether a file is the user's own: outside the standard library and site-packages."""
    paths = sysconfig.get_paths()
    if {"site-packages", "dist-packages"} & set(file.parts):
        return False
    return not any(file.is_relative_to(paths[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


def module_spec(name: str) -> bool:
    """Whether a module is there and not local."""
    root = name.partition(".")[0]
    if root in sys.builtin_module_names:
        return False
    if root in sys.stdlib_module_names:
        return True
    try:
        spec = sys.modules[root].__spec__ if root in sys.modules else importlib.util.find_spec(root)
    except (ImportError, ValueError, AttributeError):
        return False
    origin = spec.origin if spec is not None else None
    return origin is None or not is_local(Path(origin))


def python_lines(text: str) -> str:
    """A cell without its magic and option lines, which are no Python; each other line stays in its place."""
    return "\n".join("" if line.lstrip().startswith(("%%", "#|")) else line for line in text.splitlines())


def imported_roots(source: bytes) -> set[str]:
    """Root names of all modules that a source imports, also inside functions; none if it is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    return {root for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for root in _roots_of(node)}


def _roots_of(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {node.module.partition(".")[0]} if node.module and not node.level else set()


def required_roots(source: str, within: str | None = None) -> set[str]:
    """Root names of the modules without which a source cannot do its work: not those of ``try: import … except ImportError``, nor of type checking.

    `within` None: also what its functions import, as those of a step's cell are there to be called. Else of all functions only those of that name
    (the method of a step): a file may hold the other steps, and helpers of theirs.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    found = _Required(within)
    found.visit(tree)
    return found.roots


class _Required(ast.NodeVisitor):
    def __init__(self, within: str | None) -> None:
        self.within, self.roots = within, set[str]()
        self._inside = within is None

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.roots |= _roots_of(node)

    visit_ImportFrom = visit_Import

    def visit_Try(self, node: ast.Try) -> None:
        if any(handler.type is None or _MISSING & _mentioned(handler.type) for handler in node.handlers):
            for each in (*node.handlers, *node.finalbody):
                self.visit(each)
        else:
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in _mentioned(node.test):
            for each in node.orelse:
                self.visit(each)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before = self._inside
        self._inside = before or node.name == self.within
        if self._inside:
            self.generic_visit(node)
        self._inside = before

    visit_AsyncFunctionDef = visit_FunctionDef


_MISSING = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


def _mentioned(node: ast.expr) -> set[str]:
    """The last names of what an expression names."""
    named = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return named | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def imported_first(source: str) -> set[str]:
    """Modules that the statements at the top level of a cell import."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found
