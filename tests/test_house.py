"""The rules of the house, held by reading it: who imports whom, what an import costs, what the documentation must name."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import flowbook
from flowbook.settings import ENV, SETTINGS, Settings
from flowbook.spec.options import OPTIONS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flowbook"
DOCS = ROOT / "docs"

FOUNDATION = {"errors", "_version"}
PURE = {"spec", "cards", "store"}
ROOMS = {
    "errors": set(),
    "_version": set(),
    **dict.fromkeys(PURE, FOUNDATION | PURE),
    "settings": FOUNDATION | PURE,
    "worker": FOUNDATION | PURE | {"worker"},
    "engine": FOUNDATION | PURE | {"engine"},  # starts workers as processes; imports none of their code
}
DOORS = {
    "kernel",
    "cli",
    "deploy",
    "server",
    "client",
    "compat",
    "testing",
    "build",
    "runner",
    "__main__",
    "",
}  # may import every room; "" is flowbook/__init__.py

# Which rooms may name a library that is not in the standard library, anywhere in their code.
LIBRARIES = {
    "cloudpickle": {"store", "worker", "kernel"},
    "psutil": {"engine", "worker", "kernel"},
    "platformdirs": {"settings"},
    "rich": {"cli"},
    "cronsim": {"spec"},  # what a schedule means is part of what a flow says; imported where one is checked
    "nh3": {"cards", "kernel"},
    "markdown_it": {"cards"},
    "botocore": {"store"},  # only s3_credentials.py, and only for what is not in the environment
    "kubernetes": {"engine"},  # only launch/apiserver.py, when a cluster is first used
    "urllib3": {"engine"},
    "numpy": {"store", "worker", "kernel"},
    "pandas": {"store", "worker", "kernel"},
    "matplotlib": {"worker", "kernel"},
    "IPython": {"kernel"},
    "ipykernel": {"kernel"},
    "traitlets": {"kernel"},
    "anywidget": {"kernel"},
}

# Imports inside a function that lead back, each with the reason why they may.
DEFERRED = {
    ("flowbook.store.base", "flowbook.store.files"): "a description names the store to open",
    ("flowbook.store.base", "flowbook.store.s3"): "a description names the store to open",
    ("flowbook.store.codec", "flowbook.store.pickler"): "cloudpickle is loaded for the first value that needs it",
    ("flowbook.kernel.api", "flowbook.kernel.magics"): "the twin calls what the magic calls",
    ("flowbook.kernel.display", "flowbook.kernel.panel"): "a panel speaks with the words of the status, above which it stands",
    ("flowbook.kernel.session", "flowbook.kernel.magics"): "loading the extension registers the magics",
}
HEAVY = "boto3 botocore kubernetes IPython ipykernel numpy pandas cloudpickle asyncio nbclient platformdirs psutil argparse tomllib".split()


@dataclass(frozen=True)
class Import:
    """One import statement: in which module, of what, and whether it is executed when the module is imported."""

    module: str
    target: str
    at_import: bool
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Dotted name → file, of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """``flowbook.store.files`` → ``store``; the package itself is ``""``."""
    return module.split(".")[1] if "." in module else ""


def _imports_below(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports_below(other, at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports_below(child, at_import and not inside)


@cache
def imports() -> tuple[Import, ...]:
    """Every import of the package but those for type checkers. ``from flowbook.store import files`` targets the file."""
    known = modules()
    found = []
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, at_import in _imports_below(ast.parse(path.read_text()), True):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                base = node.module or ""
                if node.level:
                    base = ".".join(filter(None, [*package.split(".")[: len(package.split(".")) - node.level + 1], node.module]))
                targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
            found += [Import(name, target, at_import, node.lineno) for target in dict.fromkeys(targets)]
    return tuple(found)


def knots(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of two or more that import each other in a circle."""
    reach = {start: _reachable(start, edges) for start in edges}
    groups = {frozenset(n for n in edges if n in reach[m] and m in reach[n]) for m in edges}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    front = [start]
    while front:
        for target in edges.get(front.pop(), ()):
            if target not in seen:
                seen.add(target)
                front.append(target)
    return seen


def test_a_room_imports_only_the_rooms_below_it() -> None:
    wrong = []
    for each in imports():
        here, there = room(each.module), room(each.target)
        if not each.target.startswith("flowbook") or here in DOORS:
            continue
        assert here in ROOMS, f"{each.module} is in no room of tests/test_house.py"
        if there not in ROOMS[here]:
            wrong.append(str(each))

    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for each in imports():
        meant = not each.at_import and (each.module, each.target) in DEFERRED
        if each.target in edges and each.target != each.module and each.module != "flowbook" and not meant:
            edges[each.module].add(each.target)

    assert knots(edges) == []
    assert {pair for pair in DEFERRED if pair not in {(each.module, each.target) for each in imports()}} == set()


def test_libraries_are_named_only_where_they_belong() -> None:
    wrong = []
    for each in imports():
        library = each.target.split(".")[0]
        if library == "flowbook" or library in sys.stdlib_module_names:
            continue
        if room(each.module) not in LIBRARIES.get(library, set()):
            wrong.append(str(each))

    assert wrong == []


def test_what_is_imported_is_declared_as_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~\[ ;]", line)[0].lower() for line in project["dependencies"]}
    optional = {"botocore", "numpy", "pandas", "matplotlib"}  # used only where a value or the user brings them
    distributions = {"markdown_it": "markdown-it-py"}  # whose name is not that of their module
    used = {each.target.split(".")[0].lower() for each in imports()} - {name.lower() for name in sys.stdlib_module_names} - {"flowbook"}

    assert {distributions.get(name, name) for name in used} - optional - {"traitlets"} <= declared  # traitlets: IPython's own


@pytest.mark.parametrize("module", ["flowbook", "flowbook.settings", "flowbook.spec.flow", "flowbook.spec.options"])
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    heavy = [name for name in HEAVY if name != "argparse"] if module != "flowbook" else HEAVY
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_of_the_package_is_there_and_no_other() -> None:
    assert sorted(flowbook.__all__) == flowbook.__all__
    for name in flowbook.__all__:
        assert getattr(flowbook, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flowbook.nothing  # noqa: B018


def test_the_client_is_there_by_its_names_in_metaflow_and_loaded_only_when_asked_for() -> None:
    code = "import sys, flowbook; before = 'flowbook.client' in sys.modules; from flowbook import Flow, Run, Step, Task, client; "
    code += "print(before, Flow is client.Flow, Run is client.Run, Step is client.Step, Task is client.Task)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False True True True True\n"


def test_the_version_is_said_the_same_everywhere() -> None:
    assert flowbook.__version__ == importlib.metadata.version("flowbook")
    assert flowbook.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_file_opens_with_what_it_is_for() -> None:
    python = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
        *(ROOT / "notebooks").glob("*.py"),
    ]
    bare = [
        str(path.relative_to(ROOT)) for path in python if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]

    assert bare == []


def test_the_pins_name_no_registry_and_cover_what_the_package_needs() -> None:
    lines = [line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {re.split(r"[=\[ ;]", line)[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[^ ]+( ; .+)?", line)] == []
    assert {re.split(r"[<>=!~\[ ;]", line)[0].lower() for line in project["dependencies"]} <= pinned


# ---- the documentation names all that there is ---------------------------------------------------------------------------


def documentation() -> dict[str, str]:
    """Page → text, of what is written for users."""
    pages = {path.name: path.read_text() for path in DOCS.glob("*.md") if path.name != "internals.md"}
    return pages | {"README.md": (ROOT / "README.md").read_text()}


def test_the_documentation_explains_every_option_of_a_step() -> None:
    text = documentation()["steps.md"]

    assert [option.name for option in OPTIONS if not re.search(rf"`{option.name}[ `]", text)] == []


def test_the_documentation_names_no_option_that_does_not_exist() -> None:
    """In a heading or a table of steps.md an option is promised."""
    promised = set(re.findall(r"^\| `(--[a-z-]+)", documentation()["steps.md"], re.MULTILINE))

    assert promised == {option.name for option in OPTIONS}


def test_the_documentation_explains_every_command() -> None:
    from flowbook.kernel.magics import COMMANDS

    text = documentation()["commands.md"]
    promised = set(re.findall(r"^\| `%flow ([a-z]+)", text, re.MULTILINE))

    assert promised == set(COMMANDS)


def test_the_documentation_explains_every_setting_with_its_variable_and_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9_]+)` \| (.*) \|$", documentation()["settings.md"], re.MULTILINE))
    defaults = Settings(store=Path())

    assert set(rows) == {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        assert f"`{ENV}{setting.name.upper()}`" in rows[setting.name]
        default = getattr(defaults, setting.name)
        if isinstance(default, bool | str):
            assert f"`{str(default).lower()}`" in rows[setting.name]


def test_links_between_pages_lead_somewhere() -> None:
    for name, text in documentation().items():
        folder = ROOT if name == "README.md" else DOCS
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (folder / target).exists(), f"{name} links to {target}, which is not there"


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text()))

    assert {"quickstart", "test"} <= named <= targets
