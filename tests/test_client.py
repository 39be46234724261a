"""The client: what runs of classes and of notebooks look like from outside, tags, namespaces, indexes, and removing runs beside others."""

# Reading an attribute is what these tests are about.
# ruff: noqa: B018

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowbook import build, client
from flowbook.client import Artifact, Flow, Metaflow, NamespaceMismatch, NotFound, Run, RunBusy, Step, Task, place, record
from flowbook.engine import events
from flowbook.engine.scheduler import Machine
from flowbook.engine.scheduler import Run as Driven
from flowbook.errors import ArtifactError, DefinitionError, StoreError
from flowbook.spec.flow import Foreach, Input, Retry, Spec, to_json
from flowbook.spec.flow import Step as StepSpec
from flowbook.store import codec, garbage, glance, layout, tags
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore
from flowbook.store.results import NoArtifact
from tests.test_engine_process import Engine, step

REPO = Path(__file__).parent.parent

SWEEP = """
from dataclasses import dataclass

import numpy

from flowbook import FlowSpec, Parameter, step


@dataclass
class Model:
    rate: float

    def predict(self, x):
        return scaled(self.rate, x)


def scaled(rate, x):
    return rate * x


class Sweep(FlowSpec):
    alpha = Parameter("alpha", default=0.5)
    kind = "linear"

    @step
    def start(self):
        self.rates = [0.1, 0.2, 0.3]
        self.big = numpy.arange(100_000)
        self.next(self.train, foreach="rates")

    @step
    def train(self):
        self.model = Model(self.input)
        self.score = self.input * self.alpha
        print("rate", self.input)
        self.next(self.pick)

    @step
    def pick(self, inputs):
        self.best = max(inputs, key=lambda task: task.score)
        self.model = self.best.model
        self._secret = 7
        self.quality = "good"
        self.next({"good": self.good, "bad": self.bad}, condition="quality")

    @step
    def good(self):
        self.next(self.end)

    @step
    def bad(self):
        self.next(self.end)

    @step
    def end(self):
        print("rate", self.model.rate)


if __name__ == "__main__":
    Sweep()
"""


def load_file(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def drive(store: FilesStore, flow: str, run: str) -> str | None:
    """Drive a run that is in the store to its end, with real workers."""

    async def driven() -> str | None:
        machine = Machine()
        try:
            return await Driven(store, flow, run, machine).drive()
        finally:
            machine.close()

    return asyncio.run(driven())


def run_class(store: FilesStore, path: Path, name: str, **options: Any) -> str | None:
    program = build.program_of(getattr(load_file(path), name), file=str(path))
    spec = build.spec_of(program, store, **options)
    return drive(store, spec.flow, spec.run)


def run_cells(store: FilesStore, *steps: StepSpec, run: str = "1", flow: str = "book", **fields: Any) -> str | None:
    """A run as a notebook starts it."""
    spec = Spec(flow, run, steps, started_at=time.time(), user=place.user(), **fields)
    sources = {each.filename: {"label": each.label, "source": each.source} for each in steps}
    store.create(layout.spec(flow, run), json.dumps({**to_json(spec), "sources": {**sources, **spec.sources}}).encode())
    return drive(store, flow, run)


@pytest.fixture(autouse=True)
def fresh_client() -> Iterator[None]:
    """Store and namespace belong to the process: each test begins as a new one does."""
    client.default_metadata()
    client.default_namespace()
    record._records.clear()
    yield
    client.default_metadata()
    client.default_namespace()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> FilesStore:
    """A store with one run of the class Sweep."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "sweep.py").write_text(SWEEP)
    store = FilesStore(folder / "project")
    assert run_class(store, folder / "sweep.py", "Sweep", tags=("first", "paper")) == "succeeded"
    return store


@pytest.fixture
def sweep(swept: FilesStore) -> Run:
    client.metadata(swept)
    return Run("Sweep/1")


@pytest.fixture(scope="module")
def booked(tmp_path_factory: pytest.TempPathFactory) -> FilesStore:
    """A store with runs of a notebook's flow: 1 succeeded, 2 failed in one item."""
    store = FilesStore(tmp_path_factory.mktemp("booked") / "project")
    xs = (Input("xs", ("start",)),)
    foreach = {"foreach": Foreach("x", "xs", ("x",)), "scope": ("square",), "host": "start", "plan_inputs": xs}
    start = step("start", "xs = [3, 0, 5]\nprint('begun')", saves="xs", hosted=("square",))
    total = step("total", "n = sum(t.y for t in square)", saves="n", join=("square",))
    assert run_cells(store, start, step("square", "y = x * x", saves="y", **foreach), total) == "succeeded"
    failing = step("square", "print('try', x)\ny = 1 / x", saves="y", retry=Retry(1, 0), **foreach)
    assert run_cells(store, start, failing, total, run="2", tags=("broken",), origin="1") == "failed"
    return store


@pytest.fixture
def book(booked: FilesStore) -> Flow:
    client.metadata(booked)
    return Flow("book")


class Bench:
    """A store with runs that nobody drove: they have a spec and a log."""

    def __init__(self, folder: Path) -> None:
        self.store = FilesStore(folder / "project")
        self.rows: dict[str, glance.Row] = {}
        client.metadata(self.store)

    def run(
        self,
        number: int,
        state: str | None = "succeeded",
        *,
        user: str | None = None,
        at: float | None = None,
        indexed: bool = False,
        **spec: Any,
    ) -> None:
        run, began = str(number), 1_000_000.0 + 1000 * number if at is None else at
        user = user or place.user()
        data = {"flow": "demo", "run": run, "steps": [], "started_at": began, "user": user, **spec}
        self.store.create(layout.spec("demo", run), json.dumps(data).encode())
        self.log(run, 0, events.run_started(began), *([events.run_ended(began + 10, state)] if state else []))
        if indexed:
            row = glance.begun(Spec("demo", run, (), started_at=began, user=user, tags=tuple(spec.get("tags", ()))))
            self.rows[run] = dataclasses.replace(row, state=state, ended_at=began + 10)

    def enter(self) -> None:
        """As the engines of the runs that are `indexed` did."""
        glance.record(self.store, "demo", self.rows)

    def log(self, run: str, number: int, *happened: events.Event) -> None:
        self.store.create(layout.log("demo", run, number), events.batch(events.pack(happened)))

    def ids(self, *wanted: str, **filters: Any) -> list[str]:
        return [run.id for run in Flow("demo").runs(*wanted, **filters)]

    def spoil(self, key: str, content: bytes = b"{") -> None:
        path = self.store.root / key
        path.unlink()
        path.write_bytes(content)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, store: FilesStore) -> None:
        self.store, self.asked = store, 0
        self.read: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if name not in ("get", "open", "get_range", "list", "names", "exists", "size"):
            return found

        def counted(key: str, *rest: Any) -> Any:
            self.asked += 1
            self.read += [key] if name in ("get", "open", "get_range") else []
            return found(key, *rest)

        return counted


# ---- a run of a class -------------------------------------------------------------------------------------------------------


def test_a_run_of_a_class_is_read_from_flow_to_value(sweep: Run) -> None:
    assert [flow.id for flow in Metaflow()] == ["Sweep"] and Metaflow().flows == [Flow("Sweep")]
    assert Flow("Sweep").latest_run == Flow("Sweep").latest_successful_run == sweep
    assert (sweep.successful, sweep.finished, sweep.state) == (True, True, "succeeded")
    assert [each.id for each in sweep.steps] == ["start", "train", "pick", "good", "end"] == [each.id for each in sweep]
    assert list(sweep.steps()) == list(sweep.steps) and list(sweep.steps("paper")) == list(sweep.steps)
    assert [task.data.score for task in sweep["train"]] == [0.05, 0.1, pytest.approx(0.15)]
    assert sweep.end_task == Task("Sweep/1/end/0") and sweep.data.model.rate == 0.3


def test_a_task_has_what_it_made_what_it_inherits_parameters_and_constants(sweep: Run) -> None:
    task = Task("Sweep/1/train/1")

    assert {artifact.id for artifact in task} == {"model", "score", "rates", "big", "alpha", "kind"}
    assert (task.data.rates, task.data.alpha, task.data.kind) == ([0.1, 0.2, 0.3], 0.5, "linear")
    assert "score" in task and "scroe" not in task and "alpha" in task.data
    assert sweep.parameters.alpha == 0.5


def test_no_artifact_but_parameters_passes_a_join_by_itself(sweep: Run) -> None:
    assert "rates" not in sweep["pick"].task and sweep["pick"].task.data.alpha == 0.5


def test_a_name_that_begins_with_an_underscore_is_there_but_not_listed(sweep: Run) -> None:
    task = sweep["pick"].task

    assert "_secret" in task and task["_secret"].data == 7 == task.data._secret
    assert "_secret" not in [artifact.id for artifact in task] and "_secret" not in dir(task.data) and "_secret" not in repr(task.data)


def test_an_element_of_inputs_that_was_kept_is_its_task(sweep: Run) -> None:
    assert sweep.data.best.score == pytest.approx(0.15) and sweep.data.best.model.rate == 0.3


def test_where_a_task_stands_and_who_comes_before_and_after_it(sweep: Run) -> None:
    task = Task("Sweep/1/train/1")
    pick = sweep["pick"].task

    assert (task.index, sweep["start"].task.index, task.id) == (1, None, "1")
    assert list(task.parent_tasks) == [Task("Sweep/1/start/0")] and list(task.child_tasks) == [pick]
    assert list(pick.parent_tasks) == list(sweep["train"].tasks()) == list(sweep["start"].task.child_tasks)
    assert [each.id for each in sweep["pick"].child_steps] == ["good"]  # `bad` never ran
    assert list(pick.child_tasks) == [Task("Sweep/1/good/0")] and [each.id for each in sweep["end"].parent_steps] == ["good"]


NEST = """
from flowbook import FlowSpec, step


class Nest(FlowSpec):
    @step
    def start(self):
        self.xs = [1, 2]
        self.next(self.outer, foreach="xs")

    @step
    def outer(self):
        self.ys = [10 * self.input, 10 * self.input + 1]
        self.next(self.inner, foreach="ys")

    @step
    def inner(self):
        self.v = self.input
        self.next(self.a, self.b)

    @step
    def a(self):
        self.next(self.both)

    @step
    def b(self):
        self.next(self.both)

    @step
    def both(self, inputs):
        self.v = inputs.a.v
        self.next(self.up)

    @step
    def up(self, inputs):
        self.v = sum(each.v for each in inputs)
        self.next(self.end)

    @step
    def end(self, inputs):
        self.v = sum(each.v for each in inputs)
"""


def test_in_nested_fan_outs_neighbours_are_those_of_the_same_items(tmp_path: Path) -> None:
    (tmp_path / "nest.py").write_text(NEST)
    store = FilesStore(tmp_path / "project")
    assert run_class(store, tmp_path / "nest.py", "Nest") == "succeeded"
    client.metadata(store)
    run = Run("Nest/1")

    def around(name: str) -> tuple[list[str], list[str]]:
        task = Task(f"Nest/1/{name}")
        return tuple([each.pathspec.removeprefix("Nest/1/") for each in side] for side in (task.parent_tasks, task.child_tasks))  # type: ignore[return-value]

    assert around("outer/1") == (["start/0"], ["inner/1.0", "inner/1.1"])
    assert around("inner/1.0") == (["outer/1"], ["a/1.0", "b/1.0"])
    assert around("both/0.1") == (["a/0.1", "b/0.1"], ["up/0"])
    assert around("up/1") == (["both/1.0", "both/1.1"], ["end/0"]) and around("end/0") == (["up/0", "up/1"], [])
    assert run.data.v == 10 + 11 + 20 + 21 and Task("Nest/1/a/1.1").data.xs == [1, 2] and Task("Nest/1/a/1.1").index == 1
    assert [task.id for task in run["both"]] == ["0.0", "0.1", "1.0", "1.1"]


def test_what_a_task_printed_and_how_it_ran(sweep: Run) -> None:
    task = Task("Sweep/1/train/2")

    assert (task.stdout, task.stderr) == ("rate 0.3\n", "")
    assert list(task.loglines("stdout")) == [(None, "rate 0.3")] and list(task.loglines("stderr")) == []
    assert (task.successful, task.finished, task.exception, task.current_attempt, task.runtime_name) == (True, True, None, 0, "local")
    assert task.metadata_dict["item"] == "0.3" and task.metadata_dict["attempt"] == 0 and task.metadata_dict["seconds-running"] > 0
    assert {fact.name: fact.value for fact in task.metadata} == task.metadata_dict
    assert task.environment_info["python_version"] == sys.version.split()[0] == sweep["train"].environment_info["python_version"]
    with pytest.raises(DefinitionError, match="there is no stream 'output'"):
        task.loglines("output")


def test_times_are_local_and_in_order(sweep: Run) -> None:
    task = sweep["train"].task
    assert task is not None and task.created_at and task.finished_at and sweep.created_at and sweep.finished_at

    assert sweep.created_at <= task.created_at <= task.finished_at <= sweep.finished_at <= datetime.now()
    assert sweep["train"].finished_at >= task.finished_at and task["score"].finished_at == task.finished_at
    assert sweep.parameters._artifacts["alpha"].finished_at == sweep.created_at


def test_the_code_of_a_run_is_its_text_then(sweep: Run) -> None:
    assert sweep.code.flowspec == SWEEP and sweep.code.script_name == "sweep.py" and str(sweep.code) == SWEEP
    with sweep.code.extract() as folder:
        assert (Path(folder) / "sweep.py").read_text() == SWEEP
    assert sweep.code.info["flow"] == "Sweep" and sweep.trigger is None


def test_pathspecs_lead_up_and_down(sweep: Run) -> None:
    artifact = Artifact("Sweep/1/train/0/score")

    assert (artifact.pathspec, artifact.id, artifact.path_components[1]) == ("Sweep/1/train/0/score", "score", "1")
    assert artifact.parent == Task("Sweep/1/train/0") and artifact.parent.parent == Step("Sweep/1/train")
    assert artifact.parent.parent.parent == sweep and sweep.parent == Flow("Sweep") and sweep.parent.parent is None
    assert Flow("Sweep")[1] == sweep == Flow("Sweep")["1"] and 1 in Flow("Sweep") and "2" not in Flow("Sweep")
    assert sweep["train"][2] == Task("Sweep/1/train/2") and sweep["train"][2]["score"] == Artifact("Sweep/1/train/2/score")
    assert len({Task("Sweep/1/train/2"), Task("Sweep/1/train/2")}) == 1 and artifact != Artifact("Sweep/1/train/1/score")
    assert repr(artifact) == "Artifact('Sweep/1/train/0/score')"
    assert (len(sweep), len(sweep["train"]), "train" in sweep, "2" in sweep["train"], "3" in sweep["train"]) == (5, 3, True, True, False)
    assert client.DataArtifact is Artifact and client.MetaflowNotFound is NotFound


# ---- a run of a notebook ----------------------------------------------------------------------------------------------------


def test_a_run_of_step_cells_is_read_the_same_way(book: Flow) -> None:
    run = book["1"]

    assert [(each.id, len(each)) for each in run] == [("start", 1), ("square", 3), ("total", 1)]
    assert [task.data.y for task in run["square"]] == [9, 0, 25] and [task.data.x for task in run["square"]] == [3, 0, 5]
    assert (run.data.n, run.data.xs, run.end_task.id) == (34, [3, 0, 5], "0")
    assert list(run["total"].task.parent_tasks) == list(run["square"].tasks()) and run["start"].task.stdout == "begun\n"
    assert (
        run["square"].task.code.flowspec == "y = x * x"
        and "y = x * x" in run.code.flowspec
        and run.code.sources["Cell square"] == "y = x * x"
    )


def test_a_failed_run_shows_what_failed_and_what_did_not(book: Flow) -> None:
    run = Run("book/2")
    good, bad, _ = run["square"].tasks()

    assert (run.state, run.successful, run.finished, run["square"].state) == ("failed", False, True, "failed")
    assert good.data.y == 1 / 3 and (bad.state, bad.successful, bad.finished) == ("failed", False, True)
    assert (bad.exception.type, bad.exception.message, bad.exception.line) == ("ZeroDivisionError", "division by zero", 2)
    assert "total" not in run and run.origin_pathspec == "book/1" and "origin:1" in run.system_tags
    with pytest.raises(NotFound, match=r"no task of step 'total' was begun in Run\('book/2'\), which is failed. Begun: start, square"):
        run["total"]
    with pytest.raises(NoArtifact, match="has no artifact 'y': it is failed"):
        bad.data.y


def test_each_attempt_has_its_own_output(book: Flow) -> None:
    assert Task("book/2/square/1").current_attempt == 1
    first = Task("book/2/square/1", attempt=0)

    assert (first.stdout, first.current_attempt, first.successful, first.finished) == ("try 0\n", 0, False, True)
    assert first != Task("book/2/square/1") and repr(first) == "Task('book/2/square/1', attempt=0)"
    with pytest.raises(NotFound, match="there is no attempt '2' of book/2/square/1. There are: 0, 1."):
        Task("book/2/square/1", attempt=2)


def test_a_caught_error_is_an_exception_of_a_task_that_succeeded(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    assert run_cells(store, step("a", "1 / 0", saves="oops", catch="oops")) == "succeeded"
    client.metadata(store)

    task = Task("book/1/a/0")
    assert task.successful and task.exception is not None and task.exception.type == "ZeroDivisionError"


def test_what_a_step_did_not_save_says_why(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    assert run_cells(store, step("a", "import threading\nlock = threading.Lock()\nx = 1", saves="lock x")) == "succeeded"
    client.metadata(store)

    with pytest.raises(NoArtifact, match="did not save 'lock': .*cannot be pickled"):
        Task("book/1/a/0").data.lock
    assert Run("book/1").data.x == 1


def test_an_open_run_is_seen_as_it_goes_on(bench: Bench) -> None:
    bench.run(1, None, steps=[to_json(step("a", "x = 1"))])
    run = Run("demo/1")
    assert (run.state, run.finished, run.successful, run.finished_at, list(run)) == ("running", False, False, None, [])

    bench.log("1", 1, {"e": "launched", "at": 1_002_000.0, "step": "a", "index": [], "attempt": 0})
    assert [(task.state, task.finished, task.stdout) for task in run["a"]] == [("running", False, "")] and run["a"].finished_at is None
    assert bench.ids(state="running") == ["1"] and run["a"].state == "running"

    bench.log("1", 2, {"e": "stopped", "at": 1_002_001.0, "step": "a", "index": []}, events.run_ended(1_002_002.0, "stopped"))
    assert (run.state, run["a"].task.state, run["a"].state) == ("stopped", "stopped", "stopped")
    assert bench.ids(state="stopped") == ["1"] and bench.ids(state="running") == []


def test_a_result_that_was_taken_over_tells_from_where(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    cell = step("a", "print('once')\nx = 1", saves="x", key="the same")
    assert run_cells(store, cell) == run_cells(store, cell, run="2") == "succeeded"
    client.metadata(store)

    task = Task("book/2/a/0")
    assert task.origin_pathspec == "book/1/a/0" and task.data.x == 1 and task.stdout == "once\n"
    assert Task("book/1/a/0").origin_pathspec is None and task.metadata_dict["origin-run-id"] == "1"
    assert "from run 1" in task._repr_html_() and task.created_at <= task.parent.created_at <= task.parent.finished_at


# ---- values -----------------------------------------------------------------------------------------------------------------


def test_previews_completion_and_html_read_no_value(swept: FilesStore) -> None:
    counting = Counting(swept)
    client.metadata(counting)
    big = Artifact("Sweep/1/start/0/big")

    assert (big.type, big.shape, big.dtype, big.size) == ("numpy.ndarray", (100_000,), "int64", pytest.approx(800_000, rel=0.01))
    assert big.preview.startswith("array([") and len(big.sha) == 64
    assert "100,000" in big._repr_html_() and "big" in Task("Sweep/1/start/0")._repr_html_() and "big" in dir(big.parent.data)
    assert "big" in big.parent._ipython_key_completions_() and "big" in repr(big.parent.data)
    assert [key for key in counting.read if key.startswith("blobs/")] == []

    assert int(big.data.sum()) == sum(range(100_000))
    assert [key for key in counting.read if key.startswith("blobs/")] == [layout.blob(big.sha)]


def test_a_large_array_is_mapped_and_private(sweep: Run) -> None:
    first, again = (Artifact("Sweep/1/start/0/big").data for _ in range(2))
    first[0] = 99

    assert not first.flags.owndata and first.flags.writeable and again[0] == 0
    data = sweep["start"].task.data
    assert data.big is data.big


def test_a_class_of_the_run_is_rebuilt_from_its_text_where_this_process_has_none(sweep: Run) -> None:
    model, other = (sweep["train"][i].data.model for i in (0, 1))

    assert type(model) is type(other) and model == type(model)(0.1) and model.predict(10) == 1.0
    assert not hasattr(sys.modules["__main__"], "Model")


def test_a_class_of_this_process_is_taken_if_it_has_that_name(sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Model:
        rate: float

    monkeypatch.setattr(sys.modules["__main__"], "Model", Model, raising=False)

    assert type(sweep["train"].task.data.model) is Model


def captured(store: FilesStore, code: str, *names: str) -> dict[str, Any]:
    """Definitions as a notebook captures them."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(code, space)
    return {
        name: {"entry": codec.entry(store, name, space[name], main=space), "kind": "definition", "origin": "", "key": name, "needs": []}
        for name in names
    }


def test_classes_of_a_notebook_are_rebuilt_from_what_the_run_captured(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    code_text = "factor = 3\ndef times(x):\n    return factor * x\nclass Point:\n    def __init__(self, x):\n        self.x = times(x)\n"
    names = ("factor", "times", "Point")
    cells = step("a", "p = Point(2)\nq = [Point(1)]\nf = lambda x: times(x) + 1", saves="p q f", captures=names)
    assert run_cells(store, cells, captures=captured(store, code_text, *names)) == "succeeded"
    client.metadata(store)

    data = Run("book/1").data
    assert data.p.x == 6 and isinstance(data.q[0], type(data.p)) and type(data.p)(5).x == 15 and data.f(2) == 7


def test_a_class_that_a_step_defined_is_found_in_its_result(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    cell = step("a", "class Point:\n    x = 4\np = Point()", saves="Point p")
    assert run_cells(store, cell) == "succeeded"
    client.metadata(store)

    assert Run("book/1").data.p.x == 4


def test_a_value_whose_class_is_nowhere_says_what_it_needs(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Lost: pass\nvalue = [Lost()]", space)
    entry = codec.entry(store, "value", space["value"], main=space)
    store.create(layout.spec("book", "1"), json.dumps(to_json(Spec("book", "1", (step("a", ""),)))).encode())
    store.create(layout.commit("book", "1", "a", ()), json.dumps({"v": 1, "attempt": 0, "artifacts": {"value": entry}}).encode())
    happened = [events.run_started(1.0), {"e": "launched", "at": 1.0, "step": "a", "attempt": 0}]
    happened += [{"e": "succeeded", "at": 2.0, "step": "a", "attempt": 0}, events.run_ended(3.0, "succeeded")]
    store.create(layout.log("book", "1", 0), events.batch(events.pack(happened)))
    client.metadata(store)

    with pytest.raises(ArtifactError, match="needs 'Lost', which is not defined here, nor kept with the run. Define it in this process"):
        Run("book/1").data.value


def test_a_file_that_cannot_be_executed_here_is_named(swept: FilesStore, tmp_path: Path) -> None:
    text = SWEEP.replace("import numpy\n", "import numpy\nimport os\nos.environ['ONLY_THERE']\n")
    (tmp_path / "sweep.py").write_text(text)
    store = FilesStore(tmp_path / "project")
    os.environ["ONLY_THERE"] = "yes"
    try:
        assert run_class(store, tmp_path / "sweep.py", "Sweep") == "succeeded"
    finally:
        del os.environ["ONLY_THERE"]
    client.metadata(store)

    with pytest.raises(ArtifactError, match=r"sweep\.py, as it was in run 1, is needed; but that file raises KeyError here: 'ONLY_THERE'"):
        Run("Sweep/1").data.model
    assert Run("Sweep/1")["start"].task.data.rates == [0.1, 0.2, 0.3]


def test_lost_data_and_a_damaged_result_are_named(swept: FilesStore, tmp_path: Path) -> None:
    shutil.copytree(swept.root, tmp_path / "copy")
    store = FilesStore(tmp_path / "copy")
    client.metadata(store)
    big = Artifact("Sweep/1/start/0/big")
    store.delete(layout.blob(big.sha))
    with pytest.raises(ArtifactError, match="the data of Sweep/1/start/0/big is no longer in the store"):
        big.data

    record._records.clear()
    commit = store.root / layout.commit("Sweep", "1", "train", (0,))
    commit.chmod(0o600)
    commit.write_bytes(b"{")
    with pytest.raises(StoreError, match=r"Sweep/1/train/0\.COMMIT is damaged"):
        Task("Sweep/1/train/0").data
    assert Task("Sweep/1/train/1").data.score == 0.1


# ---- what is not there ------------------------------------------------------------------------------------------------------


def test_wrong_names_are_answered_with_the_nearest(sweep: Run) -> None:
    for make, told in (
        (lambda: Flow("Sweeep"), "there is no flow 'Sweeep' in this store. Did you mean 'Sweep'?"),
        (lambda: Run("Sweep/7"), "there is no run '7' of Sweep. There is: 1."),
        (lambda: Run("Swep/1"), "there is no flow 'Swep' in this store. Did you mean 'Sweep'?"),
        (lambda: Step("Sweep/1/trian"), "there is no step 'trian' in Run('Sweep/1'). Did you mean 'train'?"),
        (lambda: Task("Sweep/1/train/9"), "there is no task '9' in Step('Sweep/1/train'). There are: 0, 1, 2."),
        (lambda: Task("Sweep/1/train/x.y"), "there is no task 'x.y' in"),
        (lambda: Artifact("Sweep/1/train/0/scroe"), "Task('Sweep/1/train/0') has no artifact 'scroe'. Did you mean 'score'?"),
        (lambda: sweep["train"].task.data["zzz"], "has no artifact 'zzz'. It has: kind, alpha, model, score, rates, big."),
    ):
        with pytest.raises(NotFound) as found:
            make()
        assert told in str(found.value) and isinstance(found.value, KeyError)
    with pytest.raises(AttributeError, match="Did you mean 'score'"):
        sweep["train"].task.data.scroe
    assert not hasattr(sweep.data, "nothing") and getattr(sweep.data, "nothing", 5) == 5


@pytest.mark.parametrize("pathspec", ["", "Sweep", "Sweep/1/train", "Sweep//", "/", "../1", None, 7])
def test_what_is_no_pathspec_of_a_run_is_told_with_the_form(swept: FilesStore, pathspec: Any) -> None:
    client.metadata(swept)
    with pytest.raises(DefinitionError, match=r"Write Run\('FLOW/RUN'\)"):
        Run(pathspec)


def test_an_empty_store_has_no_flows(tmp_path: Path) -> None:
    client.metadata(FilesStore(tmp_path / "nothing"))

    assert Metaflow().flows == [] and not (tmp_path / "nothing").exists()
    with pytest.raises(NotFound, match="there is no flow 'Demo' in this store. There is none yet."):
        Flow("Demo")


def test_a_damaged_run_is_named_and_hides_no_other(bench: Bench) -> None:
    for number in (1, 2, 3, 4):
        bench.run(number, tags=("kept",))
    bench.spoil(layout.spec("demo", "3"))
    bench.spoil(layout.log("demo", "4", 0))

    with pytest.warns(UserWarning) as told:
        assert bench.ids("kept", state="succeeded") == ["2", "1"]
    assert [str(each.message)[:55] for each in told] == [
        "run 4 of demo is left out: flows/demo/4/run.log/000000.",
        "run 3 of demo is left out: flows/demo/3/run.json is dam",
    ]
    with pytest.warns(UserWarning, match="is left out"):
        assert Flow("demo").latest_successful_run == Run("demo/2")
    assert bench.ids() == ["4", "3", "2", "1"]
    with pytest.raises(StoreError, match=r"flows/demo/3/run.json is damaged"):
        Run("demo/3")
    with pytest.raises(StoreError, match=r"flows/demo/4/run.log/000000.json"):
        Run("demo/4").state
    assert "damaged" in Run._at(bench.store, ("demo", "3"))._repr_html_()


def test_a_damaged_index_is_made_again(bench: Bench) -> None:
    bench.run(1, tags=("kept",))
    for text in (
        b"",
        b"[]",
        b'{"v": 1, "runs": {"1": 3}}',
        b'{"v": 99, "runs": {}}',
        b'{"v": 1, "runs": {"1": ["failed", 1, 2, null, [], "x", []]}}',
    ):
        bench.store.put(layout.glance("demo"), text)
        assert bench.ids("kept", state="succeeded") == ["1"]


# ---- namespaces -------------------------------------------------------------------------------------------------------------


def test_a_process_begins_in_the_namespace_of_its_user_root_included(bench: Bench) -> None:
    bench.run(1, user="ann")
    bench.run(2, user=place.user())
    bench.run(3, user="ann")

    assert client.get_namespace() == f"user:{place.user()}" and bench.ids() == ["2"] and Flow("demo").latest_run == Run("demo/2")
    with pytest.raises(
        NamespaceMismatch, match=r"Run\('demo/3'\) is not in the namespace .*it is of ann. namespace\('user:ann'\) shows it"
    ):
        Run("demo/3")
    assert client.namespace("user:ann") == "user:ann" and bench.ids() == ["3", "1"]
    assert client.namespace(None) is None and bench.ids() == ["3", "2", "1"] and Run("demo/3").is_in_namespace()
    assert client.default_namespace() == f"user:{place.user()}" and 3 not in Flow("demo") and 2 in Flow("demo")


def test_any_tag_is_a_namespace(bench: Bench) -> None:
    bench.run(1, user="ann", tags=("production:token",))
    bench.run(2)
    client.namespace("production:token")

    assert bench.ids() == ["1"]
    client.namespace("production:other")
    with pytest.raises(NamespaceMismatch, match=r"no run of demo is in the namespace 'production:other'. namespace\(None\) shows all"):
        Flow("demo")
    assert Metaflow().flows == []


def test_a_run_of_nobody_is_in_every_users_namespace(bench: Bench) -> None:
    bench.store.create(layout.spec("demo", "1"), b'{"flow": "demo", "run": "1", "steps": []}')
    client.namespace("user:ann")

    assert bench.ids() == ["1"] and Run("demo/1").created_at is None


@pytest.mark.parametrize("name", ["", "  ", 3, ["user:ann"]])
def test_what_is_no_namespace_is_refused(name: Any) -> None:
    before = client.get_namespace()
    with pytest.raises(DefinitionError, match="is no namespace"):
        client.namespace(name)
    assert client.get_namespace() == before


def test_where_the_system_knows_no_user_all_runs_are_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(1, user="ann")

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert client.get_namespace() is None and bench.ids() == ["1"]


# ---- the store --------------------------------------------------------------------------------------------------------------


def test_without_a_word_the_store_is_that_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bench(tmp_path / "store" / "default").store.root.parent.mkdir(parents=True)
    client.default_metadata()
    assert client.get_metadata() == f"files@{tmp_path}/store/default"

    monkeypatch.setenv("FLOWBOOK_PROJECT", "other")
    assert client.get_metadata() == f"files@{tmp_path}/store/other"


def test_another_store_is_chosen_by_its_folder(bench: Bench) -> None:
    bench.run(1)
    client.default_metadata()
    with pytest.raises(NotFound):
        Flow("demo")

    assert client.metadata(f"files@{bench.store.root}") == f"files@{bench.store.root}" and Flow("demo").latest_run == Run("demo/1")
    with pytest.raises(DefinitionError, match="is no folder"):
        client.metadata(f"files@{bench.store.root}/nowhere")
    with pytest.raises(DefinitionError, match="does not begin with 'files@'"):
        client.metadata("service@http://example.org")


# ---- filters ----------------------------------------------------------------------------------------------------------------


def test_runs_are_chosen_by_tag_state_and_time_newest_first(bench: Bench) -> None:
    for number in range(1, 13):
        bench.run(number, "failed" if number % 3 == 0 else "succeeded", tags=("even",) if number % 2 == 0 else ())
    began = [datetime.fromtimestamp(1_000_000 + 1000 * n) for n in range(13)]

    assert bench.ids() == [str(n) for n in range(12, 0, -1)]
    assert bench.ids(state="failed") == ["12", "9", "6", "3"] and bench.ids("even", state="failed") == ["12", "6"]
    assert bench.ids("even", f"user:{place.user()}") == ["12", "10", "8", "6", "4", "2"] and bench.ids("even", "odd") == []
    assert bench.ids(since=began[11]) == ["12", "11"] == bench.ids(since=began[11].isoformat(" ")) == bench.ids(since=1_011_000)
    assert bench.ids(since=began[3], until=began[5]) == ["5", "4", "3"] and bench.ids(since=began[11].astimezone()) == ["12", "11"]
    assert bench.ids(since=timedelta(hours=1)) == [] and bench.ids(since=date(1970, 1, 1)) == bench.ids()
    assert bench.ids("date:1970-01-12")[-1] == "1"


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"state": "suceeded"}, "there is no state 'suceeded'.*Did you mean 'succeeded'"),
        ({"state": 3}, "there is no state 3"),
        ({"since": "yesterday"}, "'yesterday' is no time"),
        ({"until": [1]}, r"\[1\] is no time"),
        ({"since": float("nan")}, "nan is no time"),
        ({"since": True}, "True is no time"),
    ],
)
def test_wrong_filters_are_refused_at_once(bench: Bench, filters: dict[str, Any], told: str) -> None:
    bench.run(1)
    with pytest.raises(DefinitionError) as found:
        Flow("demo").runs(**filters)
    assert re.search(told, str(found.value), re.DOTALL)
    with pytest.raises(DefinitionError, match="3 is a int"):
        Flow("demo").runs(3)  # type: ignore[arg-type]


def test_filters_over_500_runs_read_the_index_and_the_runs_that_fit(bench: Bench) -> None:
    for number in range(1, 501):
        bench.run(number, "failed" if number > 250 else "succeeded", tags=("rare",) if number in (17, 400) else (), indexed=True)
    bench.enter()
    for number in (30, 40):
        Run(f"demo/{number}").add_tag("late")
    counting = Counting(bench.store)
    client.metadata(counting)
    flow = Flow._at(place.store(), ("demo",))

    def asked(*wanted: str, **filters: Any) -> tuple[list[str], int]:
        before = counting.asked
        return [run.id for run in flow.runs(*wanted, **filters)], counting.asked - before

    # Each lists the runs and the marks of changed tags, reads the index, and looks whether each run that fits is there.
    assert asked("rare") == (["400", "17"], 3 + 2 + 2 * 2 + 1)  # and reads the tags of the two whose tags were changed, and enters them
    assert asked("late") == (["40", "30"], 3 + 2)  # which the index has by now
    assert asked(since=1_000_000 + 1000 * 499) == (["500", "499"], 3 + 2)
    assert asked(state="running") == ([], 3)
    before = counting.asked
    assert (flow.latest_successful_run, flow.latest_run) == (
        Run._at(place.store(), ("demo", "250")),
        Run._at(place.store(), ("demo", "500")),
    )
    assert counting.asked - before == 2 * (3 + 1)


def test_without_an_index_only_the_runs_up_to_the_first_that_fits_are_read_and_then_one_is_there(bench: Bench) -> None:
    for number in range(1, 501):
        bench.run(number, "failed" if number > 495 else "succeeded")
    counting = Counting(bench.store)
    client.metadata(counting)
    flow = Flow._at(place.store(), ("demo",))

    assert flow.latest_successful_run == Run._at(place.store(), ("demo", "495")) and counting.asked < 40
    assert [run.id for run in flow.runs(state="failed")] == ["500", "499", "498", "497", "496"]
    before = counting.asked
    assert [run.id for run in flow.runs(state="failed")] == ["500", "499", "498", "497", "496"] and counting.asked - before == 3 + 5


def test_a_listing_may_stop_anywhere_and_needs_no_right_to_write(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(1)
    bench.run(2)

    def refuse(key: str, data: Any) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(bench.store, "put", refuse)
    assert next(Flow("demo").runs()).id == "2" and bench.ids(state="succeeded") == ["2", "1"]


def test_an_engine_enters_its_run_in_the_index_as_it_ends(swept: FilesStore, booked: FilesStore) -> None:
    row = glance.read(swept, "Sweep")["1"]

    assert (row.state, row.user, row.tags, row.changes) == ("succeeded", place.user(), ("first", "paper"), 0)
    assert {run: row.state for run, row in glance.read(booked, "book").items()} == {"1": "succeeded", "2": "failed"}
    assert row.started_at < row.ended_at


# ---- tags -------------------------------------------------------------------------------------------------------------------


def test_tags_are_added_removed_and_replaced_and_seen_everywhere(bench: Bench) -> None:
    bench.run(1, tags=("first",), python="3.11.7", indexed=True)
    bench.enter()
    run = Run("demo/1")
    run.add_tag("good")
    run.add_tags(["good", "paper"])
    assert run.user_tags == {"first", "good", "paper"} and bench.ids("paper") == ["1"] and bench.ids("first", "good") == ["1"]

    run.remove_tags(["first", "paper"])
    run.replace_tag("good", "better")
    assert run.user_tags == {"better"} and bench.ids("good") == [] and bench.ids("better") == ["1"] and bench.ids("first") == []
    assert run.system_tags == {f"user:{place.user()}", "python_version:3.11.7", "date:1970-01-12"}
    assert run.tags == run.user_tags | run.system_tags and Step._at(bench.store, ("demo", "1", "a")).tags == run.tags


def test_adding_a_tag_that_is_there_writes_nothing_and_a_system_tag_adds_none(bench: Bench) -> None:
    bench.run(1, tags=("first",))
    Run("demo/1").add_tags(["first", f"user:{place.user()}"])

    assert tags.last_change(bench.store, "demo", "1") == -1 and Run("demo/1").user_tags == {"first"}


def test_a_tag_to_be_removed_that_is_not_there_is_told_with_the_nearest(bench: Bench) -> None:
    bench.run(1, tags=("paper",))

    with pytest.warns(UserWarning, match=r"Run\('demo/1'\) has no tag 'papr'. Did you mean 'paper'\?"):
        Run("demo/1").remove_tag("papr")
    with pytest.raises(DefinitionError, match="it has no tag 'papr'.*\n.*Did you mean 'paper'"):
        tags.change(bench.store, "demo", "1", remove=["papr"], strict=True)
    with pytest.raises(DefinitionError, match="is flowbook's own and stays"):
        Run("demo/1").remove_tag(f"user:{place.user()}")


@pytest.mark.parametrize("tag", ["", "  ", "a\nb", "x" * 501, 3, None])
def test_what_is_no_tag_is_refused(bench: Bench, tag: Any) -> None:
    bench.run(1)
    with pytest.raises(DefinitionError):
        Run("demo/1").add_tags([tag])
    assert Run("demo/1").user_tags == frozenset()


def test_fifty_tags_fit_and_the_next_is_refused(bench: Bench) -> None:
    bench.run(1)
    run = Run("demo/1")
    run.add_tags([f"t{n}" for n in range(49)])
    run.add_tag("y" * 500)

    with pytest.raises(DefinitionError, match="it would have 51 tags, and may have 50"):
        run.add_tag("one too many")
    run.replace_tag("t0", "one more")
    assert len(run.user_tags) == 50


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_of_many_writers_none_loses_the_tags_of_another(kind: str, tmp_path: Path) -> None:
    store: Any = FilesStore(tmp_path / "project") if kind == "files" else MemoryStore()
    store.create(layout.spec("demo", "1"), b'{"flow": "demo", "run": "1", "steps": [], "tags": ["first"]}')
    start = threading.Barrier(8)

    def write(n: int) -> None:
        start.wait()
        for i in range(5):
            tags.change(store, "demo", "1", add=[f"{n}.{i}"], remove=[f"{n}.{i - 1}"])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(tags.read(store, "demo", "1", ())[0]) == {"first", *(f"{n}.4" for n in range(8))}


def test_tags_of_other_processes_are_not_lost_either(bench: Bench) -> None:
    bench.run(1)
    text = (
        "import sys; from flowbook.store import tags; from flowbook.store.files import FilesStore\n"
        "store = FilesStore(sys.argv[1])\n"
        "for i in range(10): tags.change(store, 'demo', '1', add=[f'{sys.argv[2]}-{i}'])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", text, str(bench.store.root), str(n)], cwd=REPO) for n in range(3)]

    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert Run("demo/1").user_tags == {f"{n}-{i}" for n in range(3) for i in range(10)}


def test_a_writer_that_was_killed_after_its_mark_hides_nothing(bench: Bench) -> None:
    bench.run(1, tags=("first",), indexed=True)
    bench.enter()
    bench.store.create(layout.tag_mark("demo", "1", 0), b"")
    assert bench.ids("first") == ["1"]

    Run("demo/1").add_tag("second")
    assert bench.ids("second") == ["1"] and bench.ids("first", "second") == ["1"]


def test_damaged_tags_are_named(bench: Bench) -> None:
    bench.run(1, indexed=True)
    bench.enter()
    Run("demo/1").add_tag("good")
    for text in (b"{", b"[]", b'{"tags": 3}', b'{"tags": [1]}'):
        bench.spoil(layout.tags("demo", "1", 0), text)
        with pytest.raises(StoreError, match=r"run\.tags/000000\.json is damaged"):
            Run("demo/1").user_tags


def test_garbage_collection_heeds_tags_as_they_are_now(bench: Bench) -> None:
    for number in range(1, 6):
        bench.run(number, tags=("begun",) if number == 2 else (), indexed=True)
    bench.enter()
    Run("demo/1").add_tag("keep")
    Run("demo/2").remove_tag("begun")

    report = garbage.collect(bench.store, 1, spare_young=False)

    assert garbage.run_ids(bench.store, "demo") == ["1", "5"] and report.kept["demo", "1"] == "tagged keep"
    assert set(glance.read(bench.store, "demo")) <= {"1", "5"} and bench.ids() == ["5", "1"]
    assert [tags.mark_number(name) for name in bench.store.names(layout.tag_marks_folder("demo"))] == [("1", 0)]


# ---- pickles, notebooks -----------------------------------------------------------------------------------------------------


def test_objects_are_pickled_by_pathspec_and_work_in_another_process(sweep: Run) -> None:
    found = [sweep, Flow("Sweep"), sweep["train"], sweep["train"][1], sweep["train"][1]["score"], Metaflow()]
    data = pickle.dumps(found)
    assert pickle.loads(data) == found and len(data) < 2000

    text = (
        "import pickle, sys; found = pickle.loads(sys.stdin.buffer.read()); print(found[4].data, found[0].data.alpha, found[1].latest_run)"
    )
    shown = subprocess.run([sys.executable, "-c", text], input=data, capture_output=True, cwd=REPO, check=True).stdout.decode()
    assert shown == "0.1 0.5 Run('Sweep/1')\n"


def test_html_escapes_what_users_wrote(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    bad = step("a", "x = '<script>alert(1)</script>'\nraise ValueError('<b>no</b>')", saves="x", catch="oops")
    good = step("b", "y = '<img src=x>'", saves="y")
    run_cells(store, bad, good, tags=("<i>",))
    client.metadata(store)
    run = Run("book/1")
    parts = [Metaflow(), Flow("book"), run, run["b"], run["b"].task, run["b"].task["y"], run["b"].task.data, run["a"], run["a"].task]
    shown = "".join(part._repr_html_() for part in parts)

    assert "<script" not in shown and "<img" not in shown and "<i>" not in shown and "<b>" not in shown
    assert "&lt;img src=x&gt;" in shown and "&lt;i&gt;" in shown and "&lt;b&gt;no" in shown


def test_names_are_completed(sweep: Run) -> None:
    assert Metaflow()._ipython_key_completions_() == ["Sweep"] and Flow("Sweep")._ipython_key_completions_() == ["1"]
    assert sweep._ipython_key_completions_() == ["start", "train", "pick", "good", "end"]
    assert sweep["train"]._ipython_key_completions_() == ["0", "1", "2"]
    assert {"model", "score"} <= set(sweep["train"].task._ipython_key_completions_())
    assert {"model", "score"} <= set(dir(sweep["train"].task.data)) and {"model"} <= set(dir(sweep["train"].task.artifacts))


def test_importing_the_client_loads_nothing_heavy() -> None:
    text = "import sys, flowbook.client; print([n for n in ('numpy', 'pandas', 'cloudpickle', 'IPython', 'asyncio', 'argparse', 'platformdirs') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=REPO, check=True).stdout == "[]\n"


def test_inside_a_step_the_client_sees_the_store_of_its_run(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "somewhere" / "project")
    assert run_cells(store, step("a", "x = 41", saves="x")) == "succeeded"
    reads = step("b", "from flowbook.client import Flow\ny = Flow('book')['1'].data.x + 1", saves="y")
    assert run_cells(store, reads, run="2") == "succeeded"
    client.metadata(store)

    assert Run("book/2").data.y == 42


# ---- removing ---------------------------------------------------------------------------------------------------------------


def test_a_removed_run_is_gone_and_its_number_is_not_given_again(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.run(number, tags=("t",), indexed=True)
    bench.enter()
    Run("demo/1").add_tag("more")
    for number in (1, 3):
        Run(f"demo/{number}").delete()

    assert list(glance.read(bench.store, "demo")) == ["2"] == bench.ids() == bench.ids("t")
    for number in (1, 3):
        with pytest.raises(NotFound, match=f"there is no run '{number}' of demo"):
            Run(f"demo/{number}")
    assert not list(bench.store.list(layout.run_prefix("demo", "1"))) and not list(bench.store.names(layout.tag_marks_folder("demo")))
    assert build.take_number(Spec("demo", "", ()), bench.store).run == "4"
    assert garbage.collect(bench.store, 1, min_age_s=0.0).damaged == {} and build.take_number(Spec("demo", "", ()), bench.store).run == "5"
    assert not list(bench.store.names("flows/demo/3"))  # a newer one is there: the mark is needed no more


def test_the_mark_of_the_newest_run_survives_garbage_collection(bench: Bench) -> None:
    bench.run(1)
    Run("demo/1").delete()
    assert Metaflow().flows == []
    with pytest.raises(NotFound, match="there is no run of demo any more"):
        Flow("demo")

    garbage.collect(bench.store, 1, min_age_s=0.0)
    assert build.take_number(Spec("demo", "", ()), bench.store).run == "2"


def test_a_run_that_was_removed_meanwhile_says_so(bench: Bench) -> None:
    for number in (1, 2):
        bench.run(number)
    run, other = Run("demo/1"), pickle.loads(pickle.dumps(Run("demo/1")))
    run.delete()
    record._records.clear()

    for ask in (run.delete, lambda: other.state, lambda: other.tags, lambda: other.add_tag("x"), lambda: other.steps):
        with pytest.raises(NotFound, match="run 1 of demo"):
            ask()


def test_a_run_that_has_not_ended_is_removed_only_by_force(bench: Bench) -> None:
    bench.run(1, None)
    bench.run(2)

    with pytest.raises(RunBusy, match=r"run 1 of demo has not ended. If it runs nowhere any more.*delete\(force=True\)"):
        Run("demo/1").delete()
    Run("demo/1").delete(force=True)
    assert bench.ids() == ["2"]


def test_a_run_from_which_others_took_results_is_removed_only_by_force(bench: Bench) -> None:
    bench.run(1)
    bench.run(2, origin="1")
    bench.run(3)

    with pytest.raises(RunBusy, match="run 1 of demo is kept: run 2 took results from it"):
        Run("demo/1").delete()
    Run("demo/3").delete()
    Run("demo/1").delete(force=True)
    assert bench.ids() == ["2"]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    found = Engine(tmp_path)
    yield found
    found.close()


def test_beside_a_real_engine_old_runs_go_and_the_running_one_stays(engine: Engine) -> None:
    kernel = engine.connect()
    data = step("a", "import numpy\nx = numpy.arange(50_000)", saves="x")
    for run in ("1", "2"):
        engine.start(kernel, data, run=run, user=place.user(), started_at=time.time())
        kernel.send(do="follow", flow="demo", run=run)
        kernel.until(lambda run=run: kernel.ended(run) is not None)
    slow = step(
        "b", "import pathlib, time\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.01)\ny = x.sum()", reads="x:a", saves="y"
    )
    engine.start(kernel, data, slow, run="3", user=place.user(), started_at=time.time())
    kernel.send(do="follow", flow="demo", run="3")
    kernel.until(lambda: any(e["e"] == "launched" and e["step"] == "b" for e in kernel.events("3")))
    client.metadata(engine.store)

    for force in (False, True):
        with pytest.raises(RunBusy, match="run 3 of demo is running. Stop it first"):
            Run("demo/3").delete(force=force)
    Run("demo/1").delete()
    Run("demo/2").delete()
    report = garbage.collect(engine.store, 1, spare_young=False)
    assert report.troubles == [] and [run.id for run in Flow("demo")] == ["3"]

    (engine.folder / "go").touch()
    kernel.until(lambda: kernel.ended("3") is not None)
    assert kernel.ended("3") == "succeeded" and int(Run("demo/3").data.y) == sum(range(50_000))


def test_runs_go_on_while_others_are_removed_and_collected(engine: Engine) -> None:
    """Twenty quick runs; every second one is removed, and garbage collected, while those after it run."""
    kernel, count = engine.connect(), 20
    client.metadata(engine.store)
    cell = step("a", "import numpy\nx = numpy.full(5000, 7)", saves="x")
    reads = step("b", "y = int(x[0])", reads="x:a", saves="y")
    removed = []
    for number in range(1, count + 1):
        engine.start(kernel, cell, reads, run=str(number), user=place.user(), started_at=time.time())
        kernel.send(do="follow", flow="demo", run=str(number))
        if number > 3 and number % 2:
            removed.append(str(number - 3))
            kernel.until(lambda: kernel.ended(removed[-1]) is not None)
            Run(f"demo/{removed[-1]}").delete()
            garbage.collect(engine.store, count)
    kernel.until(lambda: all(kernel.ended(str(number)) for number in range(1, count + 1)))

    assert {kernel.ended(str(number)) for number in range(1, count + 1)} == {"succeeded"}
    left = [run.id for run in Flow("demo").runs(state="succeeded")]
    assert left == [str(n) for n in range(count, 0, -1) if str(n) not in removed] and len(removed) == 8
    assert all(Run(f"demo/{run}").data.y == 7 for run in left)
