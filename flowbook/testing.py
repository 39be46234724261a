"""One step of a flow, alone: for unit tests (`run_step`), and for the command ``python flow.py test STEP`` (`attempt`).

    result = run_step(TrainFlow, "train", inputs={"rates": [0.1]}, input=0.1, params={"epochs": 3})
    assert result.score > 0.9 and result.next == ["pick_best"]

Both write what the step is to find into a store in a temporary folder, as if the steps before it had made it, and carry the step out
with the code of a real task: what cannot be pickled, a wrong self.next, a merge that conflicts fail here as they do in a run.

`run_step` calls the method in this process, so that monkeypatched functions, breakpoints and coverage work; decorators that
concern the process (@resources, @environment, @secrets, @timeout, @retry, @card, @checkpoint) mean nothing then, and an error of the
method reaches the test as it is. `attempt` runs a real worker, with the environment and the limits of the step, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO

from flowbook.errors import ArtifactError, DefinitionError, Finding, StepFailed
from flowbook.spec.flow import Spec, Step, is_token
from flowbook.store import codec, layout, results
from flowbook.store.base import Store

if TYPE_CHECKING:
    from flowbook.build import Program

Json = Any
Given = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class _Nothing:
    """No item was given; None is one."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()


@dataclass(frozen=True)
class StepResult:
    """What a step left. Its artifacts are attributes, too: ``result.score``.

    `next` are the steps that it handed over to, `items` those of a foreach, `output` what it printed.
    """

    step: str
    artifacts: Mapping[str, Any]
    next: list[str] = field(default_factory=list)
    items: list[Any] | None = None
    output: str = ""
    warnings: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.artifacts:
            known = ", ".join(sorted(self.artifacts)) or "none"
            raise AttributeError(f"step {self.step} left no artifact {name!r}. It left: {known}.")
        return self.artifacts[name]


def run_step(
    flow: type,
    step: str,
    *,
    inputs: Given | None = None,
    params: Mapping[str, Any] | None = None,
    input: Any = NOTHING,
) -> StepResult:
    """Run one step of a flow class in this process, and give what it left.

    `inputs`: the artifacts that the step finds, by name; of a join a list of such dicts, one a task, or a dict branch → dict.
    `input`: the item of the foreach around it, which a step that reads it must get. `params` are values by name. Raises DefinitionError
    for what is wrong with the flow or with what is given, and whatever the method raises; a missing artifact has a note that tells how
    to give it.
    """
    from flowbook import build
    from flowbook.spec import parameters

    program = build.program_of(flow)
    with _scene(program, step, params=parameters.resolve(flow, params or {}), code=build.Code(method=flow.__name__)) as scene:
        order = scene.order(inputs, input)
        return _in_process(flow, scene, order)


def attempt(
    program: Program,
    step: str,
    *,
    inputs: Given | None = None,
    params: Mapping[str, Any] | None = None,
    input: Any = NOTHING,
) -> StepResult:
    """Run one step of a flow file in a worker of its own, once. `params` are values by attribute.

    Raises DefinitionError as `run_step`, StepFailed with the user's traceback if the step fails.
    """
    with _scene(program, step, params=params or {}, code=None) as scene:
        return asyncio.run(scene.launch(scene.order(inputs, input)))


# ---- what the step finds --------------------------------------------------------------------------------------------------


class _Scene:
    """A store with the results that one step is to find."""

    def __init__(self, folder: Path, store: Store, spec: Spec, step: Step, text: str) -> None:
        """`text` is the source of the method."""
        self.folder, self.store, self.spec, self.step, self.text = folder, store, spec, step, text
        self.index = tuple(0 for _ in step.scope)
        self._commits: dict[tuple[str, layout.Index], dict[str, Json]] = {}

    def order(self, inputs: Given | None, item: Any) -> dict[str, Json]:
        """Write the COMMITs, and give the ORDER of the attempt. Raises DefinitionError for inputs that the step cannot have."""
        spec, step = self.spec, self.step
        fans = self._fan_outs(None if item is NOTHING else item)
        before = self._before()
        order: dict[str, Json] = {
            "store": self.store.describe(),
            "flow": spec.flow,
            "run": spec.run,
            "step": step.name,
            "index": list(self.index),
            "part": "body",
            "attempt": 0,
            "inputs": {},
            "joins": {},
            "item": None,
            "fans": fans,
            "failures": [],
            "ids": [str(i) for i in self.index],
            "cwd": str(Path.cwd()),
            "sys_path": list(sys.path),
        }
        if step.joins:
            order["joins"] = self._joined(inputs)
        elif before is not None:
            order["inputs"] = self._inherited(before, inputs)
        elif inputs:
            raise DefinitionError(Finding(f"step {step.name}", "is the first and finds no artifacts", "Give parameters instead."))
        if item is NOTHING and self.needs_item:
            remedy = "On the command line: --input input=… (JSON). Of run_step: input=…"
            raise DefinitionError(Finding(f"step {step.name}", "is in a foreach: give the item that it gets", remedy))
        for (name, index), commit in self._commits.items():
            key = layout.commit(spec.flow, spec.run, name, index)
            self.store.create(key, json.dumps(commit, separators=(",", ":")).encode())
        return order

    def _fan_outs(self, item: Any) -> list[Json]:
        """The fan-outs around the step, with one item each, `item` in the innermost; gives the part "fans" of the ORDER."""
        fans: list[Json] = []
        for depth, name in enumerate(self.step.scope):
            fan = self.spec.step(name)
            value = item if depth == len(self.step.scope) - 1 else None
            plan = results.write_items(self.store, [value], name="input", main=_main(self.spec))
            self._commit(fan.host or "", self.index[:depth])["plans"][name] = {"key": fan.plan_key, **plan}
            fans.append([plan["items"], 0, 1])
        if item is not None and not self.step.scope:
            raise DefinitionError(Finding(f"step {self.step.name}", "is in no foreach, so it has no item", "Leave `input` out."))
        return fans

    def _before(self) -> Step | None:
        """The step that hands over to this one; of several, any."""
        for given in self.step.inputs:
            if is_token(given.name):
                for maker in given.makers:
                    if maker != self.step.name:
                        return self.spec.step(maker)
        return None

    def _inherited(self, before: Step, inputs: Given | None) -> dict[str, Json]:
        if inputs is not None and not isinstance(inputs, Mapping):
            raise DefinitionError(Finding(f"step {self.step.name}", "is no join", "Give `inputs` as a dict name → value."))
        index = self.index[: len(before.scope)]
        commit = self._commit(before.name, index)
        commit["artifacts"] |= self._entries(inputs or {})
        commit["next"] = [self.step.name]
        place = {"run": self.spec.run, "step": before.name, "index": list(index)}
        names = [given.name for given in self.step.inputs if not is_token(given.name)]
        tokens = [given.name for given in self.step.inputs if is_token(given.name)]
        return {name: place for name in [*names, *tokens] if is_token(name) or name in commit["artifacts"]}

    def _joined(self, inputs: Given | None) -> dict[str, Json]:
        """The parts "joins" of the ORDER, and a COMMIT for each task that is joined."""
        branches = self.step.options.join
        fan = next((name for name in branches if len(self.spec.step(name).scope) > len(self.step.scope)), None)
        given = self._by_branch(inputs, branches, fan)
        joins: dict[str, Json] = {}
        for name in branches:
            tasks = given[name]
            count = len(tasks) if len(self.spec.step(name).scope) > len(self.step.scope) else None
            joins[name] = {"index": list(self.index), "count": count, "exceptions": {}, "run": self.spec.run}
            for i, artifacts in enumerate(tasks):
                index = self.index if count is None else (*self.index, i)
                commit = self._commit(name, index)
                commit["artifacts"] |= self._entries(artifacts)
                commit["next"] = [self.step.name]
        return joins

    def _by_branch(self, inputs: Given | None, branches: Sequence[str], fan: str | None) -> dict[str, list[Mapping[str, Any]]]:
        where = f"step {self.step.name}"
        if fan is not None:
            if not isinstance(inputs, Sequence) or isinstance(inputs, str) or not all(isinstance(each, Mapping) for each in inputs):
                raise DefinitionError(Finding(where, f"joins the tasks of {fan}", "Give `inputs` as a list of dicts, one a task."))
            return {name: list(inputs) if name == fan else [] for name in branches}
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            if len(inputs) != len(branches):
                what = f"joins {len(branches)} branches, and {len(inputs)} inputs are given"
                raise DefinitionError(Finding(where, what, f"In this order: {', '.join(branches)}."))
            return {name: [artifacts] for name, artifacts in zip(branches, inputs, strict=True)}
        given = dict(inputs or {})
        if set(given) - set(branches) or not all(isinstance(each, Mapping) for each in given.values()):
            raise DefinitionError(Finding(where, f"joins {', '.join(branches)}", "Give `inputs` as a dict branch → dict of its artifacts."))
        return {name: [given.get(name, {})] for name in branches}

    def _entries(self, artifacts: Mapping[str, Any]) -> dict[str, Json]:
        return {name: codec.entry(self.store, name, value, main=_main(self.spec)) for name, value in artifacts.items()}

    def _commit(self, step: str, index: layout.Index) -> dict[str, Json]:
        """The COMMIT of a step that is taken to have run."""
        empty = {"v": 1, "attempt": 0, "artifacts": {}, "unsaved": {}, "plans": {}, "next": [], "warnings": [], "changed": []}
        return self._commits.setdefault((step, index), empty)

    @property
    def needs_item(self) -> bool:
        """Whether the step has an item and reads it, or is the one that the foreach calls."""
        if not self.step.scope:
            return False
        return self.step.options.foreach is not None or "self.input" in self.text

    # ---- a worker of its own ----

    async def launch(self, order: dict[str, Json]) -> StepResult:
        from flowbook.engine.launch.local import Attempt, LocalLauncher

        options, printed = self.step.options, self.folder / "output"
        env = {name: value for name, value in options.env if value is not None}
        failed: list[Json] = []
        launcher = LocalLauncher(folder=self.folder)
        ended = await launcher.run(
            Attempt(order, printed, dict(os.environ), env, dataclasses.replace(options.resources, gpu=0), options.timeout_s),
            lambda frame: failed.append(frame["error"]) if frame.get("f") == "failed" else None,
        )
        output = printed.read_text("utf-8", "replace") if printed.exists() else ""
        commit = results.read_commit(self.store, self.spec.flow, self.spec.run, self.step.name, self.index)
        if commit is None:
            error = failed[-1] if failed else {"message": ended.message or f"its process ended ({ended.reason})"}
            what = ": ".join(str(error[part]) for part in ("type", "message") if error.get(part))
            raise StepFailed(f"step {self.step.name}: {what}", str(error.get("traceback") or ""), output)
        return self.result(commit, output)

    def result(self, commit: Mapping[str, Json], output: str) -> StepResult:
        artifacts = {name: self.load(entry, name) for name, entry in commit["artifacts"].items()}
        plans = list(commit.get("plans", {}).values())
        items = None
        if plans and plans[0].get("items"):
            items = [results.read_item(self.store, plans[0], i, main=_main(self.spec)) for i in range(plans[0]["count"])]
        found = tuple(commit.get("warnings", ()))
        return StepResult(self.step.name, artifacts, list(commit.get("next", ())), items, output, found)

    def load(self, entry: Mapping[str, Json], name: str) -> Any:
        """A value as text if it cannot be loaded here."""
        try:
            return codec.load(self.store, entry, name=name, main=_main(self.spec))
        except ArtifactError:
            return entry.get("repr")


@contextlib.contextmanager
def _scene(program: Program, step: str, *, params: Mapping[str, Any], code: Any) -> Iterator[_Scene]:
    from flowbook import build
    from flowbook.store.files import FilesStore

    program.check()
    names = [node.name for node in program.graph.nodes]
    if step not in names:
        import difflib

        near = difflib.get_close_matches(step, names, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise DefinitionError(Finding("", f"{program.name} has no step {step!r}", f"{hint}Steps: {', '.join(names)}."))
    with tempfile.TemporaryDirectory(prefix="flowbook-test-") as folder:
        store = FilesStore(Path(folder) / "store")
        spec = build.spec_of(program, store, params=params, code=code)
        with results.use(store, _main(spec), flow=spec.flow):
            yield _Scene(Path(folder), store, spec, spec.step(step), _text(program, step))


def _text(program: Program, step: str) -> str:
    """The source of a method; "" where there is none to read."""
    function = next(node.function for node in program.graph.nodes if node.name == step)
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


def missing(message: str, joins: bool) -> tuple[str, str] | None:
    """What an AttributeError says of an artifact that the test did not give: its name, and the `inputs` that give it. None for any other.

    >>> missing("self.best is not set: no step before end sets it.", False)
    ('best', "{'best': …}")
    """
    found = re.match(r"self\.(\w+) is not set" if not joins else r".* has no artifact '(\w+)'", message)
    if found is None:
        return None
    given = f"{{{found[1]!r}: …}}"
    return found[1], f"[{given}, …]" if joins else given


def _main(spec: Spec) -> dict[str, Any]:
    return vars(sys.modules["__main__"])


# ---- in this process ------------------------------------------------------------------------------------------------------


class _Tee(io.TextIOBase):
    """Prints on, and keeps what was printed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.kept = stream, io.StringIO()

    def write(self, text: str) -> int:
        self.kept.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def _run_told(task: Any, step: Step) -> None:
    """Run the method; an error about an artifact that was not given tells how to give it."""
    try:
        task.run()
    except AttributeError as error:
        told = missing(str(error), step.joins)
        if told is not None:
            error.add_note(f"run_step gave step {step.name} no {told[0]}. Give it: inputs={told[1]}")
        raise


def _in_process(cls: type, scene: _Scene, order: dict[str, Json]) -> StepResult:
    """The method with the MethodTask of a real attempt, whose surroundings are this process's own."""
    from flowbook.worker import current
    from flowbook.worker.method import MethodTask
    from flowbook.worker.scope import Recording

    notes: list[str] = []
    main = _main(scene.spec)
    reader = Recording(scene.store, scene.spec.flow, main)
    scope = SimpleNamespace(reader=reader, key_of=None, main=main, resolve=None, notes=notes)
    found = SimpleNamespace(add=lambda message, error=False: notes.append(message))
    surroundings: Any = SimpleNamespace(
        step=scene.step,
        spec=scene.spec,
        store=scene.store,
        scope=scope,
        order=order,
        index=scene.index,
        main={cls.__name__: cls},
        found=found,
    )
    task = MethodTask(surroundings)
    before = current._state.task, current._state.scratch
    current.set_task(current.Task(scene.spec.flow, scene.spec.run, scene.step.name, scene.index, user=scene.spec.user), None)
    tee = _Tee(sys.stdout)
    try:
        with contextlib.redirect_stdout(tee):  # type: ignore[type-var]
            task.preload()
            _run_told(task, scene.step)
            entries, unsaved = task.artifacts()
            plans = task.plans()
    finally:
        current.set_task(*before)
    if unsaved:
        name, why = next(iter(unsaved.items()))
        raise ArtifactError(f"self.{name} cannot be saved: {why}")
    own = {name: value for name, value in vars(task.flow).items() if name in entries}
    values = {name: own[name] if name in own else scene.load(entry, name) for name, entry in entries.items()}
    result = scene.result({"artifacts": {}, "plans": plans, "next": task.next(), "warnings": notes}, tee.kept.getvalue())
    return dataclasses.replace(result, artifacts=values)
