"""Which code travels: what a flow's file imports beside it, above it and through others; and what never does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowbook.errors import DefinitionError
from flowbook.spec.flow import Spec, Step
from flowbook.store import layout
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore
from flowbook.store.package import DATA_BYTES, contents, listing, local_modules, package_above, program_modules, required_roots
from flowbook.worker.pod import needed

Tree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write files, path → text, and give the folder that they are in."""

    def write(files: dict[str, str]) -> Path:
        folder = tmp_path / "project"
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return folder

    return write


def paths(folder: Path, flow: str) -> list[str]:
    return [path for path, _ in listing(program_modules(folder / flow, MemoryStore()))]


def test_a_sibling_travels_and_what_it_imports_in_turn(tree: Tree) -> None:
    folder = tree({"flow.py": "import first", "first.py": "def f():\n    import second\n", "second.py": "", "unused.py": ""})

    assert paths(folder, "flow.py") == ["first.py", "second.py"]


def test_an_import_inside_a_step_counts(tree: Tree) -> None:
    folder = tree({"flow.py": "class F:\n    def start(self):\n        from deep import x\n", "deep.py": "x = 1"})

    assert paths(folder, "flow.py") == ["deep.py"]


def test_a_package_beside_the_file_travels_whole(tree: Tree) -> None:
    folder = tree(
        {
            "flow.py": "from lib.models import net",
            "lib/__init__.py": "",
            "lib/models/__init__.py": "",
            "lib/models/net.py": "",
            "lib/b.py": "",
        }
    )

    assert paths(folder, "flow.py") == ["lib/__init__.py", "lib/b.py", "lib/models/__init__.py", "lib/models/net.py"]


def test_a_package_without_an_init_file_travels(tree: Tree) -> None:
    folder = tree({"flow.py": "import loose.part", "loose/part.py": "import other_of_mine", "other_of_mine.py": ""})

    assert paths(folder, "flow.py") == ["loose/part.py", "other_of_mine.py"]


@pytest.mark.parametrize("line", ["from ..lib import x", "from mypkg.lib import x", "from .. import lib", "import mypkg.lib"])
def test_a_package_above_the_file_travels(tree: Tree, line: str) -> None:
    folder = tree({"mypkg/__init__.py": "", "mypkg/lib.py": "x = 1", "mypkg/flows/__init__.py": "", "mypkg/flows/train.py": line})

    assert paths(folder, "mypkg/flows/train.py") == ["mypkg/__init__.py", "mypkg/flows/__init__.py", "mypkg/flows/train.py", "mypkg/lib.py"]


def test_the_package_of_a_file_is_known_from_the_folders_above(tree: Tree) -> None:
    folder = tree({"mypkg/__init__.py": "", "mypkg/flows/__init__.py": "", "mypkg/flows/train.py": "", "plain/train.py": ""})

    assert package_above(folder / "mypkg/flows/train.py") == (folder, "mypkg.flows")
    assert package_above(folder / "plain/train.py") == (folder / "plain", "")


def test_a_file_that_runs_as_a_module_knows_its_package_without_init_files(tree: Tree) -> None:
    code = "from flowbook.store.package import package_above, program_modules, listing\nfrom flowbook.store.memory import MemoryStore\n"
    code += "from ..lib import x\nprint(package_above(__file__)[1], [p for p, _ in listing(program_modules(__file__, MemoryStore()))])"
    folder = tree({"loose/flows/train.py": code, "loose/lib.py": "x = 1"})

    ran = subprocess.run([sys.executable, "-m", "loose.flows.train"], cwd=folder, capture_output=True, text=True)

    assert ran.stdout == "loose.flows ['loose/flows/train.py', 'loose/lib.py']\n", ran.stderr


def test_a_sibling_stands_before_an_installed_package_of_its_name(tree: Tree) -> None:
    folder = tree({"flow.py": "import psutil", "psutil.py": ""})

    assert paths(folder, "flow.py") == ["psutil.py"]


def test_installed_packages_and_the_standard_library_stay(tree: Tree) -> None:
    folder = tree({"flow.py": "import json, psutil, cloudpickle, flowbook, not_there_at_all\nfrom os import path"})

    assert paths(folder, "flow.py") == []


def test_small_data_files_of_a_package_travel_and_those_beside_the_flow_do_not(tree: Tree) -> None:
    folder = tree(
        {"flow.py": "import lib", "lib/__init__.py": "", "lib/a.json": "{}", "lib/sql/q.sql": "select", "lib/raw.bin": "x", "rows.csv": "1"}
    )
    folder.joinpath("lib/most.csv").write_bytes(b"x" * DATA_BYTES)
    folder.joinpath("lib/large.csv").write_bytes(b"x" * (DATA_BYTES + 1))

    assert paths(folder, "flow.py") == ["lib/__init__.py", "lib/a.json", "lib/most.csv", "lib/sql/q.sql"]


def test_data_of_a_folder_that_is_no_package_stays(tree: Tree) -> None:
    assert paths(tree({"flow.py": "import loose.part", "loose/part.py": "", "loose/a.json": "{}"}), "flow.py") == ["loose/part.py"]


def test_data_stands_in_the_innermost_package_with_its_content(tree: Tree) -> None:
    folder = tree({"flow.py": "import lib", "lib/__init__.py": "", "lib/inner/__init__.py": "", "lib/inner/more/a.json": "[7]"})
    store = MemoryStore()

    modules = program_modules(folder / "flow.py", store)

    assert "data" not in modules["lib"]
    entry = modules["lib.inner"]["data"]["more/a.json"]
    assert (entry["file"], entry["size"]) == (str(folder / "lib/inner/more/a.json"), 3)
    assert store.get(layout.blob(entry["blob"])) == b"[7]"


SECRETS = [
    ".env",
    ".env.json",
    "prod.env.json",
    "key.pem",
    "tls.key",
    "secrets.yaml",
    "my_credentials.json",
    "token.txt",
    "id_rsa.txt",
    "passwords.csv",
]


@pytest.mark.parametrize("name", [*SECRETS, ".hidden/a.json", ".hidden.json", "secret/a.json", ".git/config.txt"])
def test_what_is_hidden_or_named_like_a_secret_never_travels(tree: Tree, name: str) -> None:
    folder = tree({"flow.py": "import lib", "lib/__init__.py": "", f"lib/{name}": "{}"})

    assert paths(folder, "flow.py") == ["lib/__init__.py"]


@pytest.mark.parametrize("place", [".hidden", "venv", "site-packages", "__pycache__"])
def test_code_in_hidden_or_installed_folders_of_a_package_stays(tree: Tree, place: str) -> None:
    folder = tree({"flow.py": "import lib", "lib/__init__.py": "", f"lib/{place}/x.py": "", f"lib/{place}/pyvenv.cfg": ""})

    assert paths(folder, "flow.py") == ["lib/__init__.py"]


def test_a_link_that_leads_out_of_the_package_is_not_followed_for_data(tree: Tree, tmp_path: Path) -> None:
    folder = tree({"flow.py": "import lib", "lib/__init__.py": ""})
    (tmp_path / "outside.json").write_text("{}")
    (folder / "lib/link.json").symlink_to(tmp_path / "outside.json")
    (folder / "lib/broken.json").symlink_to(tmp_path / "nothing.json")

    assert paths(folder, "flow.py") == ["lib/__init__.py"]


def test_a_module_that_is_no_python_travels_and_tells_of_itself_when_it_is_imported(tree: Tree) -> None:
    assert paths(tree({"flow.py": "import broken", "broken.py": "def ("}), "flow.py") == ["broken.py"]


def test_modules_that_import_each_other_are_taken_once(tree: Tree) -> None:
    assert paths(tree({"flow.py": "import a", "a.py": "import b", "b.py": "import a, flow"}), "flow.py") == ["a.py", "b.py", "flow.py"]


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(DefinitionError, match=r"/nowhere/flow\.py: it cannot be read: No such file"):
        program_modules("/nowhere/flow.py", MemoryStore())


def test_a_module_that_cannot_be_read_is_named(tree: Tree) -> None:
    folder = tree({"flow.py": "import lib", "lib/__init__.py": ""})
    (folder / "lib/gone.py").symlink_to(folder / "nothing.py")

    with pytest.raises(DefinitionError, match=r"lib/gone\.py: it cannot be read"):
        program_modules(folder / "flow.py", MemoryStore())


def test_equal_code_has_equal_blobs_and_a_change_shows(tree: Tree) -> None:
    folder = tree({"flow.py": "import lib", "lib.py": "x = 1"})
    first, again = (program_modules(folder / "flow.py", MemoryStore())["lib"]["blob"] for _ in range(2))
    (folder / "lib.py").write_text("x = 2")

    assert first == again != program_modules(folder / "flow.py", MemoryStore())["lib"]["blob"]


def test_a_change_of_data_shows_in_what_a_key_is_made_of(tree: Tree) -> None:
    folder = tree({"flow.py": "import lib", "lib/__init__.py": "", "lib/a.json": "1"})
    first, again = (contents(program_modules(folder / "flow.py", MemoryStore())) for _ in range(2))
    (folder / "lib/a.json").write_text("2")
    changed = contents(program_modules(folder / "flow.py", MemoryStore()))

    assert first == again and len(first) == 2
    assert (set(first) - set(changed)).pop().startswith("lib/a.json ")


def test_modules_that_a_run_knows_already_are_left_out(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree({"one_of_mine.py": "import two_of_mine", "two_of_mine.py": ""})
    monkeypatch.syspath_prepend(folder)

    assert list(local_modules(["one_of_mine"], MemoryStore(), known={"two_of_mine": {}})) == ["one_of_mine"]


def test_a_worker_imports_the_code_from_the_store_and_finds_data_where_it_is(tree: Tree, tmp_path: Path) -> None:
    """The files changed since; the worker runs in another folder, and nothing of the project is on its path."""
    text = "from pathlib import Path\nfrom .inner import y\ndata = Path(__file__).with_name('a.json').read_text()\n"
    folder = tree(
        {
            "mypkg/__init__.py": "",
            "mypkg/lib.py": text,
            "mypkg/inner.py": "y = 'then'",
            "mypkg/a.json": "{}",
            "mypkg/flow.py": "from .lib import data",
        }
    )
    store = FilesStore(tmp_path / "store")
    modules = program_modules(folder / "mypkg/flow.py", store)
    (folder / "mypkg/inner.py").write_text("y = 'now'")
    code = (
        "import json, sys\nfrom flowbook.store.base import open_store\nfrom flowbook.worker.modules import serve\n"
        "serve(json.loads(sys.argv[1]), open_store(json.loads(sys.argv[2])))\n"
        "import importlib.resources, mypkg.lib\nprint(mypkg.lib.y, mypkg.lib.data, importlib.resources.files('mypkg').joinpath('a.json').read_text())"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(modules), json.dumps(store.describe())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )

    assert ran.stdout == "then {} {}\n", ran.stderr


# ---- flows inside packages run ---------------------------------------------------------------------------------------

FLOW = """
from flowbook import FlowSpec, step
{line}


class T(FlowSpec):
    @step
    def start(self):
        print(f"read {{x}} in {{__package__}}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    T()
"""


@pytest.mark.parametrize("line", ["from ..lib import x", "from mypkg.lib import x"])
@pytest.mark.parametrize(
    "words", [["mypkg.flows.train", "run"], ["flowbook", "run", "mypkg/flows/train.py"]], ids=["python -m", "flowbook run"]
)
def test_a_flow_inside_a_package_runs_with_what_is_above_it(tree: Tree, tmp_path: Path, line: str, words: list[str]) -> None:
    files = {
        "mypkg/__init__.py": "",
        "mypkg/lib.py": "x = 'lib'",
        "mypkg/flows/__init__.py": "",
        "mypkg/flows/train.py": FLOW.format(line=line),
    }
    environ = {**os.environ, "FLOWBOOK_STORE": str(tmp_path / "store"), "PYTHONPATH": str(Path(__file__).parent.parent)}

    ran = subprocess.run([sys.executable, "-m", *words], cwd=tree(files), env=environ, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
    assert "read lib in mypkg.flows\n" in ran.stdout


IMPORTS = """
import a
try:
    import optional
except (ImportError, KeyError):
    optional = None
try:
    import wanted
except KeyError:
    pass
if TYPE_CHECKING:
    import typed
else:
    import untyped
class Flow:
    import inside_class
    @step
    def start(self):
        import of_start
        def deeper():
            from of_deeper.x import y
    @step
    async def end(self):
        import of_end
def helper():
    import of_helper
from . import near
"""
ALWAYS = {"a", "wanted", "untyped", "inside_class"}


@pytest.mark.parametrize(
    ("within", "also"),
    [
        ("start", {"of_start", "of_deeper"}),
        ("end", {"of_end"}),
        ("", set()),
        (None, {"of_start", "of_deeper", "of_end", "of_helper"}),
    ],
)
def test_what_a_step_cannot_do_without_is_not_what_other_steps_import(within: str | None, also: set[str]) -> None:
    assert required_roots(IMPORTS, within) == ALWAYS | also


@pytest.mark.parametrize("source", ["def (", "import \0", ""])
def test_a_text_that_is_no_python_requires_nothing(source: str) -> None:
    assert required_roots(source) == set()


def test_the_pod_of_a_step_is_asked_for_its_packages_and_those_of_the_local_modules_that_it_imports() -> None:
    text = "import near\nclass Flow:\n    def start(self):\n        pass\n    def end(self):\n        import torch, far"
    modules = {"near": {"requires": ["numpy", "nearer"]}, "nearer.one": {"requires": ["pandas"]}, "far": {"requires": ["scipy"]}}
    packages = {name: [name, "1.0"] for name in ("numpy", "pandas", "scipy", "torch")}
    steps = tuple(Step(name, "", f"<{name}>", name) for name in ("start", "end"))
    spec = Spec("demo", "1", steps, sources={"f.py": {"label": "f", "source": text}}, program="f.py", packages=packages, modules=modules)

    assert needed(spec, steps[0]) == {"numpy", "pandas"}
    assert needed(spec, steps[1]) == {"numpy", "pandas", "scipy", "torch"}
