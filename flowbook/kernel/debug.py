"""`%flow debug`: one task again, in the kernel itself, with its own inputs, so that `%debug`, `breakpoint()` and the visual debugger
stop in the user's line.

Data comes from the run; functions, classes and modules are the kernel's, so that a mended one is tried at once. What is bound
here is lent: the next step cell, run or attach puts back what stood there before (names.py).
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import difflib
import inspect
import os
import random
import re
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook.engine.events import Task
from flowbook.errors import DefinitionError, Finding
from flowbook.kernel.names import Placeholder, StepHandle
from flowbook.spec.flow import Spec, Step, is_token, task_name
from flowbook.store import compare, preview
from flowbook.store.base import Store
from flowbook.worker import current, execute, modules
from flowbook.worker.attempt import Findings
from flowbook.worker.scope import Scope

if TYPE_CHECKING:
    from flowbook.kernel.runs import Run
    from flowbook.kernel.session import Session

_MISSING = object()
_OURS = str(Path(inspect.getfile(execute)).parents[1]) + os.sep  # the folder of this package


def debug(session: Session, run: Run, step: str | None = None, index: tuple[int, ...] | None = None) -> None:
    """Run the body of a task in the kernel; by default that of the first one that failed. Raises what the body raises."""
    __tracebackhide__ = True
    session.names.give_back()
    session.names.see_mine()
    with session.engine.changed:  # the run may go on meanwhile
        task = choose(run, step, index)
        kind = Here if run.spec.step(task.step).method is None else HereMethod
        here = kind(session, run, task)
    before = dict(session.shell.user_ns)
    try:
        with here.as_in_task():
            here.load()
            print(here.told())
            here.execute()
    finally:
        session.names.lend(before)
    made = here.made()
    print(f"{here.name} ran through" + (f"; it bound {', '.join(made)}" if made else ""))


def choose(run: Run, step: str | None, index: tuple[int, ...] | None) -> Task:
    """The task that is meant, if it had its inputs. Raises DefinitionError, naming what there is."""
    state = run.view.state
    steps = [s.name for s in run.spec.steps]
    if step is not None and step not in steps:
        near = difflib.get_close_matches(step, steps, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise _refusal(f"run {run.id} has no step {step!r}{hint}", f"Steps: {', '.join(steps)}.")
    tasks = sorted((t for t in state.tasks if step in (None, t.step) and t.part == "body"), key=lambda t: (steps.index(t.step), t.index))
    if index is not None:
        task = Task(str(step), index)
        if task not in state.tasks:
            there = f"{tasks[0]} to {tasks[-1]}" if len(tasks) > 1 else ", ".join(map(str, tasks)) or "none"
            raise _refusal(f"run {run.id} has no task {task}", f"Tasks of {step}: {there}.")
    else:
        failed = [t for t in tasks if state.tasks[t].state == "failed"]
        first = min(failed, key=lambda t: state.tasks[t].ended_at or 0.0, default=None)
        if first is not None:
            task = next(t for t in failed if t.step == first.step)
        elif step is None:
            raise _no_failure(run)
        elif not tasks:
            raise _refusal(f"step {step} has no task in run {run.id}", "Its --foreach or --when was not evaluated, or gave no item.")
        else:
            task = tasks[0]
    found = state.tasks[task]
    if found.state == "waiting" or found.blocked is not None:
        why = found.blocked or "it still waits for them"
        raise _refusal(f"{task} of run {run.id} did not get its inputs: {why}", "A task that ran, or that failed, can be debugged.")
    return task


def _no_failure(run: Run) -> DefinitionError:
    plan = next((t for t, s in run.view.state.tasks.items() if s.state == "failed" and t.part == "plan"), None)
    if plan is None:
        return _refusal(f"no task of run {run.id} failed", f"Name the task: {run.command('debug STEP')} or {run.command('debug STEP[2]')}.")
    options = run.spec.step(plan.step).options
    text = options.foreach.expr if options.foreach else options.when
    return _refusal(
        f"what failed in run {run.id} is an option of step {plan.step}, not its body", f"Evaluate the expression in a cell: {text}"
    )


def _refusal(what: str, remedy: str) -> DefinitionError:
    return DefinitionError(Finding("%flow debug", what, remedy))


class Here:
    """A task in the kernel's namespace: `load` binds what it reads, `execute` runs its body."""

    def __init__(self, session: Session, run: Run, task: Task) -> None:
        self._session, self._run, self._task = session, run, task
        self.name = str(task)
        self.spec: Spec = run.spec
        self.step: Step = run.spec.step(task.step)
        self._space: dict[str, Any] = session.shell.user_ns
        self._scope = Scope(session.store, run.spec, session.shell.user_module, task.index)
        self._inputs, self._joins, self._item, self._failures = run.view.state.order_inputs(task)
        self._value: Any = None  # of the item
        self._theirs: list[str] = []  # captured data that differs from the kernel's
        flow = session.flow(run.spec.flow)
        self._cell = flow.steps.get(task.step)
        self._setups = flow.setups
        self.code = self._compiled()

    def _compiled(self) -> execute.Code:
        """The body under the name that the shell gives its cell, by which debuggers find breakpoints and tracebacks their lines."""
        if self._cell is not None:
            source, raw, number = self._cell.source, self._cell.ran.source, self._cell.ran.count
        else:
            label = re.search(r"In\[(\d+)\]", self.step.label)
            source, number = self.step.source, int(label[1]) if label else 0
            raw = self.spec.sources.get(self.step.filename, {}).get("source", source)
        return execute.compile_cell(source, self._session.shell.compile.cache(raw, number, raw_code=raw))

    # ---- loading ----------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """In the order of a task: captures, parameters, seeds, %%flowsetup, inputs, the item."""
        self._load_captures()
        self._scope.parameters()
        modules.seed_generators(current.current.seed)
        self._run_setup()
        self._load_inputs()
        self._scope.joins(self._joins)
        if self._item:
            self._value = self._scope.item(self._item)
            execute.bind_item(self.step, self.spec, self._space, self._value)
            self._set_current()

    def _load_captures(self) -> None:
        mine = self._session.names.mine
        for name in dict.fromkeys([*self.step.captures, *self.spec.setup_captures]):
            captured = self.spec.captures[name]
            present = mine.get(name, self._space.get(name, _MISSING))
            if isinstance(present, (Placeholder, StepHandle)):
                present = _MISSING
            if captured["kind"] != "data" and present is not _MISSING:
                self._space[name] = present
                continue
            entry = captured["entry"]
            if present is not _MISSING and not compare.unchanged(
                self._session.store, entry, present, main=self._space, resolve=self._scope.resolve
            ):
                self._theirs.append(name)
            self._space[name] = self._scope.reader.load_quietly(entry, name)  # a copy: the body may change it

    def _load_inputs(self) -> None:
        for given in self.step.inputs:
            absent = given.name not in self._inputs and not given.captured
            if absent and given.required and given.makers:
                raise _refusal(f"{self.name} of run {self._run.id} reads `{given.name}`, which was not made", "")
            if absent and isinstance(self._space.get(given.name), Placeholder):
                del self._space[given.name]  # for the task it is not there either
        self._scope.inputs(self._inputs, f"step {self.name}")
        if self._changed:  # it may read names of the flow that it did not read then
            names = self._session.names
            for name in names.read_by(ast.parse(self._source)):
                if names.where(name)[2] == "ready":
                    names.load(name)

    def _run_setup(self) -> None:
        if not self._setups:
            execute.register_sources(self.spec)
            execute.run_setup(self.spec, self._space)
        for setup in self._setups:
            number = setup.ran.count
            name = self._session.shell.compile.cache(setup.ran.source, number, raw_code=setup.ran.source)
            run_cell(execute.compile_cell(setup.source, name), self._space, lambda value: None)

    @property
    def _source(self) -> str:
        return self._cell.source if self._cell is not None else self.step.source

    @property
    def _changed(self) -> bool:
        return self._cell is not None and self._session.names.stale(self._run, self.step.name)

    def told(self) -> str:
        """What was bound, in a line or two."""
        makers: dict[str, list[str]] = {}
        for name, where in self._inputs.items():
            makers.setdefault(task_name(where["step"], tuple(where["index"])), []).append(name)
        parts = [f"{', '.join(names)} from {maker}" for maker, names in makers.items()]
        parts += [f"joins {', '.join(self._joins)}"] if self._joins else []
        foreach = self.step.options.foreach
        parts += [f"{foreach.target} = {preview.text(self._value, 60)}"] if foreach is not None and self._item else []
        lines = [f"{self.name} of run {self._run.id}: " + ("; ".join(parts) or "it reads nothing of the flow")]
        if self._theirs:
            names = ", ".join(f"`{name}`" for name in self._theirs)
            lines.append(f"{names} as captured by the run; the kernel's own differs, and is back with the next step cell or run")
        if self._changed:
            lines.append(f"the cell was changed since run {self._run.id}: its body as it is now runs")
        return "\n".join(lines)

    # ---- running ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def as_in_task(self) -> Iterator[None]:
        """`current`, `scratch`, --env and the random generators are the task's inside, and the kernel's again outside."""
        __tracebackhide__ = True
        environ = {name: value for name, value in self.step.options.env if value is not None}
        before = {name: os.environ.get(name) for name in environ}
        generators = _generators()
        os.environ.update(environ)
        self._set_current()
        current.give(str(current.scratch_path()), cards=True, checkpoints=True)
        try:
            yield
        finally:
            current.set_task(current.Task(), None)
            for name in ("current", "scratch", "card", "checkpoint", "save_checkpoint", "load_checkpoint"):
                vars(builtins).pop(name, None)
            for name, old in before.items():
                os.environ.pop(name) if old is None else os.environ.update({name: old})
            for put_back, old_state in generators:
                put_back(old_state)

    def _set_current(self) -> None:
        task, spec, state = self._task, self.spec, self._run.view.state
        attempt, ids = state.tasks[task].attempt or 0, tuple(state.ids(task))
        told = current.Task(spec.flow, spec.run, task.step, task.index, attempt, self._value, tuple(spec.tags), tuple(self._failures), ids)
        current.set_task(told, str(current.scratch_path()))

    def execute(self) -> None:
        __tracebackhide__ = True
        from IPython.display import display

        run_cell(self.code, self._space, display)

    def made(self) -> list[str]:
        """The public names that the body bound."""
        return sorted(name for name in self.code.binds if name in self._space and not name.startswith("_"))


class HereMethod(Here):
    """A task whose body is a method: an instance of the kernel's class, which loads what the method reads. Nothing of it is kept."""

    def _compiled(self) -> execute.Code:
        return execute.Code(None, None)

    @property
    def _changed(self) -> bool:
        return False

    def load(self) -> None:
        from flowbook.worker.method import MethodTask

        cls = self._session.flow_class(self.step.method)
        if cls is None:
            raise _refusal(f"the class {self.step.method} is not defined in this kernel", "Run the cell that defines it.")
        if self._item:
            self._value = self._scope.item(self._item)
            self._set_current()
        modules.seed_generators(current.current.seed)
        order = {"inputs": self._inputs, "joins": self._joins, "fans": self._run.view.state.fans(self._task)}
        found = Findings()
        self._method = MethodTask(
            Stand(self.step, self.spec, self._session.store, self._scope, order, self._space, self._task.index, found)
        )
        self._method.preload()
        self._space["self"] = self._method.flow  # lent like the names of a cell: what the method read and set can be looked at

    def told(self) -> str:
        before = [task_name(where["step"], tuple(where["index"])) for name, where in self._inputs.items() if is_token(name)]
        after = f"after {', '.join(before)}" if before else f"joins {', '.join(self._joins)}" if self._joins else "the first step"
        item = f"; self.input = {preview.text(self._value, 60)}" if self._item else ""
        return f"{self.name} of run {self._run.id}: {after}{item}"

    def execute(self) -> None:
        __tracebackhide__ = True
        try:
            self._method.run()
        except BaseException as error:
            code = inspect.unwrap(getattr(type(self._method.flow), self.step.name)).__code__
            seen: set[int] = set()
            each: BaseException | None = error
            while each is not None and id(each) not in seen:
                seen.add(id(each))
                each.__traceback__ = theirs(each.__traceback__, code)
                each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
            raise

    def made(self) -> list[str]:
        return sorted(f"self.{name}" for name in vars(self._method.flow) if name not in self._method.loaded and not name.startswith("_"))


def theirs(trace: types.TracebackType | None, first: types.CodeType) -> types.TracebackType | None:
    """A traceback from the frame of `first` on, without frames of our own in between or at its end; the whole of it if nothing is left."""
    frames: list[types.TracebackType] = []
    each = trace
    while each is not None:
        if each.tb_frame.f_code is first:
            frames = []
        if not each.tb_frame.f_code.co_filename.startswith(_OURS):
            frames.append(each)
        each = each.tb_next
    found: types.TracebackType | None = None
    for each in reversed(frames):
        found = types.TracebackType(found, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return found or trace


@dataclass(frozen=True)
class Stand:
    """What a MethodTask asks of an attempt, in the kernel."""

    step: Step
    spec: Spec
    store: Store
    scope: Scope
    order: dict[str, Any]
    main: dict[str, Any]
    index: tuple[int, ...]
    found: Findings


def _generators() -> list[tuple[Any, Any]]:
    """How the kernel's global random generators are put back, each with its present state."""
    found: list[tuple[Any, Any]] = [(random.setstate, random.getstate())]
    numpy = sys.modules.get("numpy.random")
    return [*found, (numpy.set_state, numpy.get_state())] if numpy is not None else found


def run_cell(code: execute.Code, namespace: dict[str, Any], show: Any) -> None:
    """Run a compiled cell here. What it raises has the cell's own traceback, without the way there."""
    __tracebackhide__ = True
    parts = [part for part in (code.first, code.last) if part is not None]
    try:
        if any(part.co_flags & inspect.CO_COROUTINE for part in parts):
            _run_in_thread(code, namespace, show)
        else:
            execute.run_code(code, namespace, show)
    except BaseException as error:
        inner = error.__traceback__
        while inner is not None and inner.tb_frame.f_code not in parts:
            inner = inner.tb_next
        error.__traceback__ = inner or error.__traceback__
        raise


def _run_in_thread(code: execute.Code, namespace: dict[str, Any], show: Any) -> None:
    """The kernel's own loop is busy with the very cell that we are called from: `await` needs another."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            execute.run_code(code, namespace, show)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, name="flowbook-debug", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
