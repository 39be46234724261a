"""Metaflow files unchanged: each flow file runs as it is under Metaflow and under flowbook, and the artifacts are compared."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowbook
from flowbook import client, compat
from flowbook.compat import table
from flowbook.spec import decorators
from flowbook.spec.flowspec import FlowSpec
from flowbook.store.files import FilesStore
from tests.compat import both, features
from tests.kernel.conftest import Notebook

FLOWS = both.flow_files()


@pytest.fixture(scope="session")
def metaflow() -> Any:
    """Gives what Metaflow makes of a file. Its environment and records are made once, also where tests run in several processes."""

    def ask(flow: both.FlowFile) -> both.Record:
        lock = both.cached(flow).parent / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return both.expected(flow)

    return ask


# ---- the comparison ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_flow_file_makes_the_same_under_both(flow: both.FlowFile, metaflow: Any, tmp_path: Path) -> None:
    theirs = metaflow(flow)

    ours = both.run_ours(flow, tmp_path)

    found = features.unlike(theirs, ours)
    meant = [each for each in features.DIFFERENCES if each.flow == flow.name]
    unmeant = {key: values for key, values in found.items() if not any(each.covers(key) for each in meant)}
    shown = "\n".join(f"{key}: Metaflow {theirs}, flowbook {ours}" for key, (theirs, ours) in unmeant.items())
    assert not unmeant, f"{shown}\n{ours[-1]['shown']}"
    stale = [
        pattern for each in meant for pattern in each.where if not any(features.Difference("", (pattern,), "").covers(k) for k in found)
    ]
    assert not stale, "these differ no more"


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_what_is_recorded_is_what_metaflow_makes(flow: both.FlowFile, metaflow: Any) -> None:
    digest, record = both.recorded(flow)

    assert digest == flow.digest, "the file has changed since: python -m tests.compat.both"
    found = features.unlike(record, metaflow(flow))
    assert [key for key in found if not key.endswith("printed")] == [], "Metaflow makes something else: python -m tests.compat.both"


def test_there_are_records_of_these_files_and_no_others() -> None:
    assert {path.stem for path in both.RECORDED.glob("*.json")} == {flow.name for flow in FLOWS}


# ---- the documentation ------------------------------------------------------------------------------------------------------


def test_each_flow_file_stands_in_the_list_of_features() -> None:
    assert set(features.FEATURES) == {flow.name for flow in FLOWS}


def test_the_documentation_has_the_list_in_force() -> None:
    text = features.DOC.read_text()

    assert features.written(text) == text, "python -m tests.compat.features"
    assert all(f"`{flow.name}.py`" in text for flow in FLOWS)
    assert all(f"`{name}`" in text for name in table.REFUSED)


# ---- names ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


def served() -> list[tuple[str, str]]:
    return [(module, name) for module, names in table.MODULES.items() for name in names]


@pytest.mark.parametrize(("module", "name"), served(), ids=".".join)
def test_each_name_is_there(installed: None, module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


def test_the_names_are_flowbooks_own(installed: None) -> None:
    import metaflow
    from metaflow.cards import Markdown

    assert metaflow.FlowSpec is FlowSpec
    assert metaflow.card is decorators.card
    assert metaflow.Flow is client.Flow
    assert Markdown is importlib.import_module("flowbook.cards").Markdown
    assert {"FlowSpec", "step", "current"} <= set(dir(metaflow))


def test_an_import_of_everything_brings_the_names_that_are_served(installed: None) -> None:
    namespace: dict[str, Any] = {}

    exec("from metaflow import *", namespace)

    assert namespace["FlowSpec"] is FlowSpec
    assert "S3" not in namespace


def refused() -> list[str]:
    return [name for name in table.REFUSED if name not in table.DECORATORS]


@pytest.mark.parametrize("name", refused())
def test_a_name_that_is_not_there_is_refused_where_it_is_imported_with_the_reason(installed: None, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    homes = [module] if module else ["metaflow"]
    if attribute in ("PageComponent", "ErrorCard"):
        homes = ["metaflow.cards"]

    with pytest.raises(compat.NotSupported) as caught:
        exec(compile(f"from {homes[0]} import {attribute}", "my_flow.py", "exec"), {})

    assert attribute in str(caught.value) and "my_flow.py, line 1" in str(caught.value)
    assert table.REFUSED[name].split(".")[0] in str(caught.value)
    assert isinstance(caught.value, ImportError), "so that `except ImportError` finds it"


@pytest.mark.parametrize("name", sorted(table.DECORATORS))
def test_a_decorator_that_is_not_there_may_be_imported_but_not_used(installed: None, name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"from metaflow import {name}", namespace)

    for use in ("(cpu=1)", ""):
        with pytest.raises(compat.NotSupported, match=name):
            exec(compile(f"@{name}{use}\ndef train(self): ...", "my_flow.py", "exec"), namespace)


@pytest.mark.parametrize("module", ["metaflow.datatools", "metaflow.plugins.aws.batch", "metaflow._vendor.click"])
def test_a_submodule_that_is_not_there_is_refused_with_the_reason(installed: None, module: str) -> None:
    with pytest.raises(compat.NotSupported, match="is not supported") as caught:
        importlib.import_module(module)

    assert caught.value.findings[0].remedy == table.why_not(module)


def test_a_name_that_metaflow_has_not_either_is_an_ordinary_mistake(installed: None) -> None:
    import metaflow

    with pytest.raises(ImportError, match="cannot import name 'FlowSpek'"):
        exec("from metaflow import FlowSpek", {})
    with pytest.raises(ModuleNotFoundError, match=r"metaflow\.nothing"):
        importlib.import_module("metaflow.nothing")
    with pytest.raises(AttributeError, match="Did you mean 'resources'"):
        _ = metaflow.resource
    assert not hasattr(metaflow, "nothing_like_it")


# ---- installing -------------------------------------------------------------------------------------------------------------


def test_installing_twice_is_installing_once(installed: None) -> None:
    before = list(sys.meta_path)

    compat.install()

    assert sys.meta_path == before and compat.installed()


def test_uninstalling_leaves_nothing() -> None:
    compat.install()
    importlib.import_module("metaflow.cards")

    compat.uninstall()

    assert not compat.installed()
    assert not any(name.partition(".")[0] == "metaflow" for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("metaflow")


def test_a_metaflow_that_is_installed_is_hidden_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metaflow").mkdir()
    (tmp_path / "metaflow" / "__init__.py").write_text("own = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    real = importlib.import_module("metaflow")
    assert real.own

    with compat.resolving():
        assert importlib.import_module("metaflow").FlowSpec is FlowSpec

    assert importlib.import_module("metaflow") is real
    del sys.modules["metaflow"]


def test_importing_metaflow_loads_nothing_heavy() -> None:
    lines = "from flowbook import compat; compat.install(); from metaflow import FlowSpec, step; import sys"
    heavy = "numpy pandas IPython asyncio boto3 rich flowbook.kernel flowbook.engine flowbook.client".split()
    told = f"print([name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", f"{lines}; {told}"], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# ---- flows ------------------------------------------------------------------------------------------------------------------


def run(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "flow.py").write_text(textwrap.dedent(text))
    environ = {**os.environ, "FLOWBOOK_STORE": str(folder / "store"), "PYTHONPATH": str(both.ROOT)}
    command = [sys.executable, "-m", "flowbook", *(words or ("run", "flow.py"))]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


HEAD = """
from metaflow import FlowSpec, step{more}
class SmallFlow(FlowSpec):
    @step
    def start(self):
        {body}
        self.next(self.end)
    @step
    def end(self):
        pass
if __name__ == "__main__":
    SmallFlow()
"""


@pytest.mark.parametrize(
    ("more", "body", "told"),
    [
        (", S3", "pass", "metaflow.S3 is not supported"),
        (", Deployer", "pass", "metaflow.Deployer is not supported"),
        (", NBRunner", "pass", "%flow run"),
    ],
)
def test_a_flow_that_needs_what_is_not_there_does_not_begin(tmp_path: Path, more: str, body: str, told: str) -> None:
    done = run(tmp_path, HEAD.format(more=more, body=body))

    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr and "flow.py, line 2" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_gangs_are_refused_by_the_check(tmp_path: Path) -> None:
    text = """
    from metaflow import FlowSpec, step, parallel
    class GangFlow(FlowSpec):
        @step
        def start(self):
            self.next(self.train, num_parallel=2)
        @parallel
        @step
        def train(self):
            self.next(self.join)
        @step
        def join(self, inputs):
            self.next(self.end)
        @step
        def end(self):
            pass
    if __name__ == "__main__":
        GangFlow()
    """

    done = run(tmp_path, text)

    assert done.returncode == 2
    assert "num_parallel" in done.stderr and "@parallel" in done.stderr


def test_a_batch_decorator_is_refused_where_it_is_used(tmp_path: Path) -> None:
    done = run(
        tmp_path, HEAD.format(more=", batch", body="pass").replace("    @step\n    def end", "    @batch(cpu=1)\n    @step\n    def end")
    )

    assert done.returncode == 2
    assert "AWS Batch" in done.stderr and "flow.py, line 8" in done.stderr


def test_what_a_run_kept_can_be_loaded_where_metaflow_is_nowhere(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("from metaflow import Parameter\nclass Model:\n    weight = 3\n")
    done = run(tmp_path, HEAD.format(more="\nfrom models import Model", body="self.model = Model()"))
    assert done.returncode == 0, done.stdout + done.stderr

    lines = "import sys; from flowbook.client import Flow; print(Flow('SmallFlow').latest_run['start'].task.data.model.weight, 'metaflow' in sys.modules)"
    environ = {**os.environ, "FLOWBOOK_STORE": str(tmp_path / "store"), "PYTHONPATH": f"{both.ROOT}:{tmp_path}"}
    read = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    assert read.stdout.strip() == "3 False", read.stderr


def test_a_file_that_imports_flowbook_alone_is_run_as_before(tmp_path: Path) -> None:
    done = run(tmp_path, HEAD.format(more="", body="self.x = 1").replace("metaflow", "flowbook"))

    assert done.returncode == 0
    assert client.Run("SmallFlow/1", store=FilesStore(tmp_path / "store" / "default")).successful


def test_a_metaflow_beside_the_file_or_on_the_path_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path, tmp_path / "elsewhere"):
        (place / "metaflow").mkdir(parents=True)
        (place / "metaflow" / "__init__.py").write_text("raise RuntimeError('the real one')\n")
    monkeypatch.setattr(both, "ROOT", f"{tmp_path / 'elsewhere'}{os.pathsep}{both.ROOT}")
    body = "from metaflow import current; self.path = current.pathspec; self.flow_class = __import__('metaflow').FlowSpec.__module__"

    done = run(tmp_path, HEAD.format(more="", body=body))

    assert done.returncode == 0, done.stdout + done.stderr
    made = client.Run("SmallFlow/1", store=FilesStore(tmp_path / "store" / "default")).data
    assert (made.path, made.flow_class) == ("SmallFlow/1/start/0", "flowbook.spec.flowspec")
    spec = json.loads((tmp_path / "store" / "default" / "flows" / "SmallFlow" / "1" / "run.json").read_text())
    assert "metaflow" not in spec.get("modules", {}) and "metaflow" not in spec.get("imports", [])


@pytest.mark.parametrize(
    ("words", "branch"), [(["--branch", "b"], "test.b"), (["--production"], "prod"), (["--production", "--branch=b"], "prod.b")]
)
def test_a_branch_of_a_project_is_named_before_the_command(tmp_path: Path, words: list[str], branch: str) -> None:
    text = HEAD.format(more=", project, current", body="self.branch = current.branch_name").replace("class", '@project(name="p")\nclass')

    done = run(tmp_path, text, *words, "run", "flow.py")

    assert done.returncode == 0, done.stdout + done.stderr
    assert client.Run("SmallFlow/1", store=FilesStore(tmp_path / "store" / "default")).data.branch == branch


def test_a_branch_without_a_project_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, HEAD.format(more="", body="pass"), "--branch", "b", "run", "flow.py")

    assert done.returncode == 2
    assert "@project" in done.stderr and "Traceback" not in done.stderr


def test_the_spec_says_that_metaflow_means_flowbook(tmp_path: Path) -> None:
    run(tmp_path, HEAD.format(more="", body="self.x = 1"))

    spec = json.loads((tmp_path / "store" / "default" / "flows" / "SmallFlow" / "1" / "run.json").read_text())
    assert spec["compat"] is True


def test_a_mutator_that_is_used_wrongly_says_so(installed: None) -> None:
    with pytest.raises(flowbook.FlowbookError, match=r"its arguments have no names"):
        exec(
            textwrap.dedent("""
            from metaflow import UserStepDecorator
            class Mine(UserStepDecorator): ...
            Mine(1, 2)
            """),
            {},
        )


# ---- where Metaflow cannot be had -------------------------------------------------------------------------------------------


@pytest.fixture
def no_metaflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def missing(peer: str) -> Path:
        raise both.PeerMissing("metaflow cannot be installed: no network")

    monkeypatch.setattr(both, "python_of", missing)
    monkeypatch.setattr(both, "cached", lambda flow: tmp_path / "nothing")
    both.why_missing.cache_clear()
    yield
    both.why_missing.cache_clear()


def test_without_metaflow_the_records_are_what_is_compared_with(no_metaflow: None) -> None:
    flow = next(each for each in FLOWS if each.name == "linear")

    with pytest.warns(UserWarning, match="compared with what was recorded: metaflow cannot be installed: no network"):
        record = both.expected(flow)

    assert record == both.recorded(flow)[1]


def test_without_metaflow_a_changed_file_is_not_passed_over(no_metaflow: None, tmp_path: Path) -> None:
    (tmp_path / "linear.py").write_text("class OtherFlow(FlowSpec): ...\n")

    with pytest.raises(AssertionError, match=r"linear\.py has changed since it was recorded"):
        both.expected(both.FlowFile(tmp_path / "linear.py"))


# ---- notebooks --------------------------------------------------------------------------------------------------------------


def test_a_class_of_a_cell_that_imports_metaflow_runs_in_a_notebook(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    try:
        for code in (
            "%load_ext flowbook\nfrom flowbook import compat\ncompat.install()",
            """
from metaflow import Flow, FlowSpec, current, step

class CellFlow(FlowSpec):
    @step
    def start(self):
        from metaflow import current as inside
        self.path = inside.pathspec
        self.next(self.end)

    @step
    def end(self):
        self.run_is = current.run.pathspec
""",
            "%flow run CellFlow --wait",
        ):
            cell = notebook.run(code)
            assert cell.error is None, cell.error
        shown = notebook.run("data = Flow('CellFlow').latest_run.data\nprint(data.path, data.run_is)")
    finally:
        notebook.close()

    assert shown.text.strip() == "CellFlow/1/start/0 CellFlow/1"
