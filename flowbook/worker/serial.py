"""The serial reading: all steps of a run, one after the other, in one plain process; then a comparison with what the flow made.

It follows the law of design 1.0. The steps run in the order of the notebook, each once for every place of its fan-out. A place has
a scope of its own: what a step binds there is seen by later steps of that place and of places inside it; of several bindings the
latest step's counts. --join binds those scopes, --when is `if`, --catch `try/except`, --always `finally`. Values pass from step to
step as the objects they are; nothing is pickled on the way. Seeds and %%flowsetup come before every task, as in the flow.

Each artifact is compared right after its task, before a later step may change it.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowbook.errors import FlowbookError, StoreError
from flowbook.spec import flow as flows
from flowbook.spec.flow import Input, Spec, Step, task_name
from flowbook.spec.retries import qualifies
from flowbook.store import codec, compare, layout, preview, results, trust, values
from flowbook.store.base import Store, open_store
from flowbook.worker import current, execute, modules, output
from flowbook.worker.attempt import lasting
from flowbook.worker.scope import Scope
from flowbook.worker.trace import Tracer, bases_of, message_of

Json = Any
Index = tuple[int, ...]
Place = tuple[tuple[str, ...], Index]  # the foreach steps around, and the item of each
_DELETED = object()
_MISSING = object()
SHOWN = 200  # characters of a value in the report


class Failed(FlowbookError):
    """A step failed, and nothing tolerates that."""


def run(order: Mapping[str, Json]) -> int:
    """The command `--serial`: reads, compares, and prints the report as the last line of stdout. Returns the exit code, 0 with a report."""
    report_fd = os.dup(1)
    os.dup2(2, 1)  # whatever the bodies print is not the report
    try:
        store = open_store(order["store"])
        spec: Spec = flows.from_json(Spec, trust.spec(store, order["flow"], order["run"]))
        report = serial(spec, store, order)
    except Exception as error:
        report = {"equal": [], "different": [], "missing": [], "error": f"{type(error).__name__}: {message_of(error)}"}
    output.flush()
    with os.fdopen(report_fd, "wb") as out:
        out.write(json.dumps(report).encode() + b"\n")
    return 0


def serial(spec: Spec, store: Store, order: Mapping[str, Json]) -> dict[str, Json]:
    """Read a finished run serially and compare: {"equal": ["train[2].score"], "different": [{"task", "name", "flow", "serial"}],
    "missing": [{"task", "name"}], "error": text}, the last only if a step failed in this reading.

    `order` gives "cwd" and "sys_path". Takes over this process: `__main__`, sys.path and the working folder.
    """
    return _Reading(spec, store, order).report()


# ---- what a joined task gives ----------------------------------------------------------------------------------------


@dataclass
class _Done:
    """One task of this reading: "succeeded", "failed" or "skipped", and what it made."""

    state: str
    made: dict[str, Any] = field(default_factory=dict)
    error: Json = None
    caught: Json = None


class _Live(results.Reader):
    """A reader for the handles that --join binds, so that they give the live objects of this reading instead of stored ones."""

    def __init__(self, store: Store, flow: str, done: dict[tuple[str, Index], _Done]) -> None:
        super().__init__(store, flow)
        self._done = done

    def commit(self, run: str, step: str, index: Index, part: str = "body", *, flow: str | None = None) -> dict[str, Json] | None:
        found = self._done.get((step, tuple(index)))
        if found is None or found.state != "succeeded":
            return None
        artifacts = {
            name: {"kind": "json", "json": value} if codec.is_json(value) else {"kind": "live", "live": value, "repr": preview.text(value)}
            for name, value in found.made.items()
        }
        made_in = (results.read_commit(self.store, flow or self.flow, run, step, index, part) or {}).get("made_in")
        return {"artifacts": artifacts, "caught": found.caught, "made_in": made_in}

    def load(self, entry: Mapping[str, Json], name: str = "value") -> Any:
        return entry["live"] if entry["kind"] == "live" else entry["json"]


# ---- the reading -----------------------------------------------------------------------------------------------------


class _Reading:
    def __init__(self, spec: Spec, store: Store, order: Mapping[str, Json]) -> None:
        self.spec, self.store = spec, store
        self.steps = {step.name: step for step in spec.steps}
        self.places: dict[Place, dict[str, tuple[int, Any]]] = {}  # name → (position of the step that bound it, value)
        self.fans: dict[tuple[str, Index], list[Any] | None] = {}  # foreach step, base index → its items; None: skipped
        self.ids: dict[tuple[str, Index], list[str]] = {}  # the same → the id of each item
        self.done: dict[tuple[str, Index], _Done] = {}
        self.found: dict[str, list[Json]] = {"equal": [], "different": [], "missing": []}
        self.tracer = Tracer(spec.sources)
        self.display = output.Display(lambda data, metadata, display_id, update: None)
        self._prepare(order)

    def _prepare(self, order: Mapping[str, Json]) -> None:
        if cwd := order.get("cwd"):
            os.chdir(cwd)
        if order.get("sys_path") is not None:
            sys.path[:] = [path for path in order["sys_path"] if isinstance(path, str)]
        sys.argv = [""]
        self.module = execute.fresh_main()
        self.main = vars(self.module)
        execute.register_sources(self.spec)
        modules.serve(self.spec.modules, self.store)
        output.install(self.display)
        self.live = _Live(self.store, self.spec.flow, self.done)
        results.set_reader(self.live)
        self.scope = Scope(self.store, self.spec, self.module)
        self.scope.captures(self.spec.captures)
        self.scope.parameters()
        self.base = dict(self.main)

    def report(self) -> dict[str, Json]:
        failure = None
        plain = [step for step in self.spec.steps if not self._is_always(step)]
        try:
            for step in plain:
                self._step(step)
        except Failed as error:
            failure = str(error)
        for step in self.spec.steps:
            if self._is_always(step):
                try:
                    self._step(step)
                except Failed as error:
                    failure = failure or str(error)
        if failure is None:
            self._look_for_more()
        return self.found if failure is None else {**self.found, "error": failure}

    @staticmethod
    def _is_always(step: Step) -> bool:
        return step.options.always and not step.scope

    # ---- one step, at all its places ----

    def _step(self, step: Step) -> None:
        errors = []
        for base in self._indices(step.base):
            if step.options.foreach is None:
                tasks: list[tuple[Index, Any]] = [(base, _MISSING)]
            else:
                items = self.fans[step.name, base] = self._fan_out(step, base)
                tasks = [((*base, i), item) for i, item in enumerate(items or ())]
            for index, item in tasks:
                done = self.done[step.name, index] = self._task(step, index, item)
                if done.state == "failed" and not self._tolerated(step):
                    errors.append(f"{task_name(step.name, index)} ({step.label}): {done.error['type']}: {done.error['message']}")
        if errors:
            raise Failed(errors[0])

    def _indices(self, scope: tuple[str, ...]) -> Iterator[Index]:
        """All places of a scope, in the order of the items."""
        if not scope:
            yield ()
            return
        for base in self._indices(scope[:-1]):
            yield from ((*base, i) for i in range(len(self.fans.get((scope[-1], base)) or ())))

    def _tolerated(self, step: Step) -> bool:
        return any(self.steps[name].options.min_ok is not None for name in step.scope if name in self.steps)

    def _fan_out(self, step: Step, base: Index) -> list[Any] | None:
        """The items of a fan-out; None if it is skipped."""
        if self._lacks(step, step.plan_inputs, base) or self._joins_nothing(step, base):
            return None
        self._enter(step, base, "plan")
        try:
            if step.options.when is not None and not execute.holds(step, self.spec, self.main):
                return None
            found = list(itertools.islice(execute.items_of(step, self.spec, self.main), results.ITEM_LIMIT + 1))
            if len(found) > results.ITEM_LIMIT:
                raise execute.too_many(step)
            self.ids[step.name, base] = results.item_ids(found, main=self.main, keys=self.scope.key_of)
            return found
        except Exception as error:
            raise Failed(
                f"the --foreach or --when of {task_name(step.name, base)} ({step.label}): {type(error).__name__}: {message_of(error)}"
            ) from error

    def _ids(self, step: Step, index: Index) -> tuple[str, ...]:
        return tuple(self.ids[name, index[:level]][i] for level, (name, i) in enumerate(zip(step.scope, index, strict=False)))

    def _lacks(self, step: Step, inputs: Iterable[Input], index: Index) -> bool:
        """Whether something is required that only skipped or failed tasks would have made."""
        return any(
            given.required
            and given.makers
            and not given.captured
            and not any(self._has(maker, given.name, step, index) for maker in given.makers)
            for given in inputs
        )

    def _has(self, maker: str, name: str, step: Step, index: Index) -> bool:
        if maker not in self.steps:
            return False
        found = self.done.get((maker, index[: len(self.steps[maker].scope)]))
        return found is not None and found.state == "succeeded" and name in found.made

    def _joins_nothing(self, step: Step, base: Index) -> bool:
        joined = [self.steps[name] for name in step.options.join if name in self.steps]
        return bool(joined) and all(self._skipped(other, base) for other in joined)

    def _skipped(self, joined: Step, base: Index) -> bool:
        depth = len(base)
        if len(joined.scope) == depth:
            found = self.done.get((joined.name, base))
            return found is None or found.state == "skipped"
        if self.fans.get((joined.scope[depth], base)) is None:
            return True
        below = [done for (name, index), done in self.done.items() if name == joined.name and index[:depth] == base]
        return bool(below) and all(done.state == "skipped" for done in below)

    # ---- one task ----

    def _task(self, step: Step, index: Index, item: Any) -> _Done:
        inner = index[: len(step.base)]
        if not self._is_always(step) and (self._lacks(step, step.inputs, index) or self._joins_nothing(step, inner)):
            return _Done("skipped")
        if step.options.when is not None and step.options.foreach is None and not self._when(step, index):
            return _Done("skipped")
        scratch = tempfile.mkdtemp(prefix="flowbook-scratch-")
        try:
            for attempt in range(step.options.retry.times + 1):
                done = self._attempt(step, index, item, attempt, scratch)
                if done.state != "failed" or not qualifies(step.options.retry, done.error):
                    break
            return done
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _when(self, step: Step, index: Index) -> bool:
        if self._lacks(step, step.plan_inputs, index):
            return False
        self._enter(step, index, "plan")
        try:
            return execute.holds(step, self.spec, self.main)
        except Exception as error:
            raise Failed(
                f"the --when of {task_name(step.name, index)} ({step.label}): {type(error).__name__}: {message_of(error)}"
            ) from error

    def _attempt(self, step: Step, index: Index, item: Any, attempt: int, scratch: str) -> _Done:
        spec, catch = self.spec, step.options.catch
        value = None if item is _MISSING else item
        failures = tuple(
            {"step": name, "index": list(where), "message": f"{done.error['type']}: {done.error['message']}"}
            for (name, where), done in (self.done.items() if step.options.always else ())
            if done.state == "failed"
        )
        tags, ids = tuple(spec.tags), self._ids(step, index)
        current.set_task(current.Task(spec.flow, spec.run, step.name, index, attempt, value, tags, failures, ids), scratch)
        current.give(scratch, cards=True, checkpoints=True)
        visible = self._enter(step, index, "body")
        caught = None
        try:
            if item is not _MISSING:
                execute.bind_item(step, spec, self.main, item)
            try:
                execute.run_code(execute.compile_cell(step.source, step.filename), self.main, self.display.value)
            finally:
                self.display.figures()
        except BaseException as error:
            described = self.tracer.error(error) | {"bases": bases_of(error)}
            again = attempt < step.options.retry.times and qualifies(step.options.retry, described)
            if catch is None or not isinstance(error, Exception) or again:
                print(described["traceback"], file=sys.stderr)  # noqa: T201
                return _Done("failed", error=described)
            caught = described
            self.main[catch] = lasting(error, self.main)
        if catch is not None and caught is None:
            self.main[catch] = None
        self._keep(step, index, visible)
        done = _Done("succeeded", self._made(step), caught=caught)
        self._compare(step, index, done)
        return done

    def _made(self, step: Step) -> dict[str, Any]:
        foreach, catch = step.options.foreach, step.options.catch
        names = dict.fromkeys([*(foreach.names if foreach else ()), *step.saves, *([catch] if catch else ())])
        return {name: self.main[name] for name in names if name in self.main}

    # ---- scopes ----

    def _enter(self, step: Step, index: Index, part: str) -> dict[str, Any]:
        """Fill main for a task, or for a plan; gives the names that earlier steps bound, as they are seen at this place."""
        self.main.clear()
        self.main.update(self.base)
        modules.seed_generators(current.task_seed(self.spec.flow, step.name, self._ids(step, index), part))
        execute.run_setup(self.spec, self.main)
        depth = len(index)
        visible: dict[str, tuple[int, Any]] = {}
        for level in range(depth + 1):
            for name, (position, value) in self.places.get((step.scope[:level], index[:level]), {}).items():
                if name not in visible or position >= visible[name][0]:
                    visible[name] = (position, value)
        seen = {name: value for name, (_, value) in visible.items() if value is not _DELETED}
        for name, (_, value) in visible.items():
            if value is _DELETED:
                self.main.pop(name, None)
        self.main.update(seen)
        if part == "body":
            self._own_copies(step, index, seen)
        for name in step.options.join:
            if name in self.steps:
                self.main[name] = self._joined(self.steps[name], index[: len(step.base)])
        if part == "plan":  # what comes after reseeds nothing: the flow evaluates right after the seed, too
            modules.seed_generators(current.task_seed(self.spec.flow, step.name, self._ids(step, index), part))
        return seen

    def _own_copies(self, step: Step, index: Index, seen: Mapping[str, Any]) -> None:
        """A fresh scope for each item: what a task changes in place although it stands outside of its fan-out is its own."""
        if not index:
            return
        own = self.places.get((step.scope, index), {})
        for name in step.saves:
            if name in own or name not in self.main or codec.is_json(self.main[name]):
                continue
            try:
                self.main[name] = copy.deepcopy(self.main[name])
            except Exception:
                pass  # it cannot be copied; the tasks then share it, as plain code would

    def _keep(self, step: Step, index: Index, visible: Mapping[str, Any]) -> None:
        """Note what the task bound and deleted, at its place."""
        place = self.places.setdefault((step.scope, index), {})
        position = self.spec.steps.index(step)
        joined = set(step.options.join)
        for name, value in self.main.items():
            before = visible.get(name, self.base.get(name, _MISSING))
            if value is not before and not (name.startswith("__") and name.endswith("__")) and name not in joined:
                place[name] = (position, value)
        for name in visible:
            if name not in self.main:
                place[name] = (position, _DELETED)

    def _joined(self, step: Step, base: Index) -> Any:
        depth = len(base)
        exceptions: dict[str, Json] = {}
        count: int | None = None
        indices = [base]
        if len(step.scope) > depth:
            count = len(self.fans.get((step.scope[depth], base)) or ())
            indices = [(*base, i) for i in range(count)]
        for index in indices:
            done = self.done.get((step.name, index), _Done("skipped"))
            if done.state != "succeeded":
                exceptions[str(index[-1]) if index else "0"] = {"state": done.state, "error": done.error}
        join = {"index": list(base), "count": count, "exceptions": exceptions, "run": self.spec.run}
        foreach = step.options.foreach
        return results.TaskResults.from_join(self.live, step.name, join, foreach.names if foreach else (), flow=self.spec.flow)

    # ---- comparing ----

    def _compare(self, step: Step, index: Index, done: _Done) -> None:
        """Each artifact that the flow committed for this task, against this reading's object as it is now."""
        task = task_name(step.name, index)
        commit = results.read_commit(self.store, self.spec.flow, self.spec.run, step.name, index)
        artifacts = (commit or {}).get("artifacts", {})
        unsaved = (commit or {}).get("unsaved", {})
        for name in sorted({*artifacts, *done.made}):
            if name in unsaved:
                continue
            if name not in artifacts or name not in done.made:
                self.found["missing"].append({"task": task, "name": name})
                continue
            value = done.made[name]
            try:
                made = codec.load(self.store, artifacts[name], name=name, main=self.main, resolve=self.scope.resolve)
            except (FlowbookError, StoreError) as error:
                self._differs(task, name, f"cannot be loaded: {error}", value)
                continue
            if _equal(made, value, artifacts[name]):
                self.found["equal"].append(f"{task}.{name}")
            else:
                self._differs(task, name, preview.text(made, SHOWN), value)

    def _differs(self, task: str, name: str, flow: str, value: Any) -> None:
        self.found["different"].append({"task": task, "name": name, "flow": flow, "serial": preview.text(value, SHOWN)})

    def _look_for_more(self) -> None:
        """Tasks that the flow committed and that this reading did not run, or skipped."""
        prefix = layout.run_prefix(self.spec.flow, self.spec.run)
        for key in self.store.list(prefix):
            step, _, task = key[len(prefix) :].partition("/")
            if step not in self.steps or not task.endswith(".COMMIT") or task.endswith(".plan.COMMIT"):
                continue
            numbers = tuple(map(int, task.removesuffix(".COMMIT").split(".")))
            index = numbers if self.steps[step].scope else ()
            done = self.done.get((step, index))
            if done is None or done.state != "succeeded":
                commit = results.read_commit(self.store, self.spec.flow, self.spec.run, step, index) or {}
                names = sorted(commit.get("artifacts", {})) or ["(the task)"]
                self.found["missing"] += [{"task": task_name(step, index), "name": name} for name in names]


def _equal(made: Any, value: Any, entry: Mapping[str, Json]) -> bool:
    if isinstance(made, (values.File, values.Directory)):
        return bool(made == value)  # by content: a loaded one lies elsewhere
    return compare.same(made, value)
