"""The flow's names in the kernel: placeholders, the scan of a cell before it runs, loading.

From definition on, every name the flow will make is bound to a Placeholder, whose repr is all it does. Before a cell runs, `Scan`
(an AST transformer, so that `%time` and `%timeit` are covered) finds the placeholders that the cell reads, waits for those that
are being made, and puts the real object in their place. No proxy: afterwards `type(best)` is the real type.
"""

from __future__ import annotations

import ast
import signal
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from IPython.core.error import InputRejected

from flowbook.engine.events import Task
from flowbook.errors import ArtifactNotLoaded, FlowbookError, StepFailed
from flowbook.kernel.cells import is_history, loaded_names, names_behind
from flowbook.spec.amounts import size_text
from flowbook.spec.body import ast_key, read_body
from flowbook.spec.flow import Options, Step, task_name
from flowbook.store import preview, results

if TYPE_CHECKING:
    from flowbook.kernel.session import FlowDef, Run, Session
    from flowbook.spec.graph import Linked

PROGRESS_AFTER_S = 0.5
_ABSENT = object()
MEMORY_SHARE = 4  # a value larger than a quarter of the free memory is not loaded unasked


class NotReady(ArtifactNotLoaded, InputRejected):
    """A cell reads a name that is not there. Raised before the cell runs."""


class StepFailedBefore(StepFailed, InputRejected):
    """A cell waits for a name whose run failed."""


StepFailedBefore.__name__ = "StepFailed"
NotReady.__name__ = "ArtifactNotLoaded"


class Interrupted(FlowbookError, InputRejected):
    """The wait was interrupted; the run goes on."""


class Placeholder:
    """Stands for a name that the flow makes until a cell reads it. Its repr is inert; all else raises ArtifactNotLoaded."""

    __slots__ = ("_flowbook_describe", "_flowbook_name")
    _flowbook_absent = True  # for codec.look_up: what a pickle looks for is not here

    def __init__(self, name: str, describe: Any) -> None:
        object.__setattr__(self, "_flowbook_name", name)
        object.__setattr__(self, "_flowbook_describe", describe)

    def __repr__(self) -> str:
        return str(object.__getattribute__(self, "_flowbook_describe")())

    def __dir__(self) -> list[str]:
        return []

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(name)  # what Python, IPython and completers probe for
        _refuse(self)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        _refuse(self)


def _refuse(self: Placeholder, *args: Any, **kwargs: Any) -> NoReturn:
    name = object.__getattribute__(self, "_flowbook_name")
    raise ArtifactNotLoaded(
        f"`{name}` is made by the flow and was not loaded, because this cell does not mention it by name (eval, exec, or a call "
        f"that hides it).\n    Mention `{name}` in the cell, or load it: flow.load({name!r})."
    )


for _special in [
    "bool",
    "len",
    "iter",
    "next",
    "contains",
    "getitem",
    "setitem",
    "delitem",
    "call",
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "neg",
    "pos",
    "abs",
    "int",
    "float",
    "complex",
    "index",
    "round",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
    "str",
    "format",
    "bytes",
    "reduce_ex",
    "enter",
    "exit",
    "await",
    "array",
    "and",
    "or",
    "xor",
    "invert",
    "fspath",
]:
    setattr(Placeholder, f"__{_special}__", _refuse)


def _text(self: Placeholder) -> str:
    if sys._getframe(1).f_globals.get("__name__") == "IPython.core.magics.namespace":  # %whos shows what str() gives
        return repr(self)
    _refuse(self)


Placeholder.__str__ = _text  # type: ignore[assignment]
Placeholder.__hash__ = object.__hash__  # type: ignore[method-assign]  # a set of namespace values must not break


class StepHandle:
    """A step's name in the kernel: `train[1].model`, `train.table()`, `start.rates`. Reading waits only for the task it needs."""

    def __init__(self, session: Session, flow: FlowDef, step: str, run: Run | None = None) -> None:
        self._session, self._flow, self._step, self._run_given = session, flow, step, run

    @property
    def _run(self) -> Run:
        run = self._run_given or self._session.names.run_with(self._flow, self._step)
        if run is None:
            raise ArtifactNotLoaded(f"step {self._step} {not_run(self._flow)}")
        return run

    @property
    def _linked(self) -> Step:
        return self._run.spec.step(self._step)

    def _tasks(self) -> list[Any]:
        state = self._run.view.state
        found = [t for t in state.tasks if t.step == self._step and t.part == "body"]
        return sorted(found, key=lambda t: t.index)

    def _result(self, index: tuple[int, ...], wait: bool = True) -> results.TaskResult:
        run, session = self._run, self._session
        if wait:
            with interruptible():
                session.wait(run, until=lambda: _settled(run, self._step, index))
        return task_result(session, run, self._step, index)

    def __len__(self) -> int:
        return len(self._tasks())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self._one()[index]
        scope = len(self._linked.scope)
        if isinstance(index, slice):
            return [self._result(t.index) for t in self._tasks()[index]]
        wanted = index if isinstance(index, tuple) else (index,)
        if scope == 0:
            raise TypeError(f"step {self._step} runs once: read its artifacts as {self._step}.NAME")
        if len(wanted) == 1 and scope > 1:
            tasks = self._known_tasks()
            return self._result(tasks[wanted[0]].index)
        if wanted[0] < 0:
            tasks = self._known_tasks()
            return self._result(tasks[wanted[0]].index)
        self._known_tasks(lambda tasks: any(t.index == wanted for t in tasks))
        if not any(t.index == wanted for t in self._tasks()):
            raise IndexError(f"step {self._step} has {len(self)} tasks; there is no {task_name(self._step, wanted)}")
        return self._result(wanted)

    def _known_tasks(self, enough: Any = None) -> list[Any]:
        run = self._run
        with interruptible():
            self._session.wait(run, until=lambda: bool(self._tasks()) if enough is None else enough(self._tasks()))
        return self._tasks()

    def __iter__(self) -> Iterator[Any]:
        if not self._linked.scope:
            raise TypeError(f"step {self._step} runs once: read its artifacts as {self._step}.NAME")
        return iter([self._result(t.index) for t in self._known_tasks()])

    def _one(self) -> results.TaskResult:
        if self._linked.scope:
            raise AttributeError(f"step {self._step} has a task per item: {self._step}[0].NAME, or {self._step}.table()")
        return self._result(())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return getattr(self._one(), name)
        except ArtifactNotLoaded as error:
            raise AttributeError(str(error)) from None

    def __dir__(self) -> list[str]:
        run = self._session.names.run_with(self._flow, self._step)
        step = next((s for s in run.spec.steps if s.name == self._step), None) if run else None
        return ["table", *(step.saves if step and not step.scope else ())]

    def table(self) -> Any:
        """A DataFrame of the tasks: item names, last metrics, scalar artifacts, state and seconds; also while the step runs."""
        from flowbook.kernel.cards import metrics  # cards are slow to import
        from flowbook.kernel.panel_data import item_values, names_of_item

        told, names = preview.mode() == preview.FULL, names_of_item(self._linked)

        def more(task: results.TaskResult) -> dict[str, Any]:
            key = Task(self._step, task.index)
            item = state.item if (state := self._run.view.state.tasks.get(key)) is not None and told else None
            return {**item_values(item, names), **metrics(self._run, self._session.store, key)}

        return self._all().table(more)

    def _all(self) -> results.TaskResults:
        foreach = self._linked.options.foreach
        tasks = [task_result(self._session, self._run, self._step, t.index) for t in self._tasks()]
        return results.TaskResults(tasks, foreach.names if foreach else (), self._step)

    def __repr__(self) -> str:
        run = self._session.names.run_with(self._flow, self._step)
        if run is None:
            return f"<step {self._step}: not run>"
        counts = run.view.state.counts(self._step)
        states = ", ".join(f"{n} {'running' if state == 'launched' else state}" for state, n in counts.items() if n) or "waiting"
        return f"<step {self._step} of run {run.id}: {states}>"


def task_result(session: Session, run: Run, step: str, index: tuple[int, ...]) -> results.TaskResult:
    """The handle of one task as it is now."""
    state = run.view.state
    task = state.tasks.get(Task(step, index))
    return results.TaskResult(
        session.reader(run),
        run=run.id,
        step=step,
        index=index,
        state=task.state if task else "waiting",
        error=getattr(task, "error", None),
    )


def shown(flow: FlowDef) -> list[Run]:
    """The runs whose values the names of a flow give, the first that comes into question first."""
    return [flow.at] if flow.at is not None else flow.runs[::-1]


def not_run(flow: FlowDef) -> str:
    if flow.at is not None:
        return f"is not in run {flow.at.id}; {flow.at.command('at')} goes back to the newest run"
    return "was not run yet: `%flow run` first"


def meaning(source: str, options: Options) -> tuple[Any, ...]:
    """What makes the values of a step old if it changes: its code, and the options that decide what runs and is kept."""
    o = options
    return ast_key(source), o.foreach, o.when, o.join, o.out, o.out_add, o.catch


def _settled(run: Run, step: str, index: tuple[int, ...]) -> bool:
    """Whether nothing more will come of a task."""
    found = run.view.state.tasks.get(Task(step, index))
    return found is not None and found.done


class Names:
    """Which names of the kernel are the flow's, and what stands under them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.mine: dict[str, Any] = {}  # plain values that a name of the flow took the place of
        self._makers: dict[str, tuple[FlowDef, list[str]]] = {}  # name → steps outside a fan-out that make it, last first
        self._handles: dict[str, StepHandle] = {}
        self._ours: dict[str, Any] = {}  # name → the object that we bound last
        self._params: dict[str, Any] = {}
        self._lent: dict[str, tuple[Any, Any]] = {}  # name → what stood there, and what `%flow debug` put there
        self._lent_in = 0  # number of the cell that did

    @property
    def _space(self) -> dict[str, Any]:
        return self._session.shell.user_ns  # type: ignore[no-any-return]

    # ---- binding ----------------------------------------------------------------------------------------------------

    def is_ours(self, name: str) -> bool:
        """Whether the kernel's present value of `name` was bound by the flow."""
        return name in self._ours and self._space.get(name) is self._ours[name]

    def bound(self, flow: FlowDef) -> set[str]:
        return {n for n, (f, _) in self._makers.items() if f is flow} | set(self._handles)

    def bind(self, flow: FlowDef, linked: Linked) -> list[str]:
        """Bind the names which `flow` makes; returns notes about plain variables that gave way."""
        makers: dict[str, list[str]] = {}
        for step in reversed([*(s for s in flow.past.values() if s.name not in flow.steps), *linked.steps]):
            if not step.scope:
                for name in step.saves:
                    makers.setdefault(name, []).append(step.name)
        notes = []
        names = {**flow.past, **flow.steps}
        gone = [n for n, (f, _) in self._makers.items() if f is flow and n not in makers]
        gone += [n for n, h in self._handles.items() if h._flow is flow and n not in names]
        for name in gone:
            self._release(name)
        for name, steps in makers.items():
            self._makers[name] = (flow, steps)
            if isinstance(self._space.get(name), types.ModuleType) and self._is_import(flow, steps, name):
                self._makers.pop(name)  # the same import stands in the kernel already
                continue
            if not self.is_ours(name):
                notes += self._take(name, Placeholder(name, lambda n=name: self.describe(n)))
        for name in names:
            if name not in self._handles or self._handles[name]._flow is not flow or not self.is_ours(name):
                self._handles[name] = StepHandle(self._session, flow, name)
                notes += self._take(name, self._handles[name])
        return notes

    def _is_import(self, flow: FlowDef, steps: list[str], name: str) -> bool:
        return any(s not in flow.steps or flow.steps[s].body.others.get(name) == "import" for s in steps)

    def _take(self, name: str, value: Any) -> list[str]:
        notes = []
        if name in self._space and not self.is_ours(name) and not isinstance(self._space[name], (Placeholder, StepHandle)):
            self.mine[name] = self._space[name]
            notes.append(f"`{name}` is now made by the flow; the variable you had is kept as flow.mine[{name!r}]")
        self._put(name, value)
        return notes

    def _put(self, name: str, value: Any) -> None:
        self._space[name] = value
        self._ours[name] = value

    def _release(self, name: str) -> None:
        if self.is_ours(name):
            del self._space[name]
            if name in self.mine:
                self._space[name] = self.mine.pop(name)
        self._ours.pop(name, None)
        self._makers.pop(name, None)
        self._handles.pop(name, None)

    def bind_param(self, name: str, value: Any) -> None:
        self._space[name] = value
        self._params[name] = value

    def param_untouched(self, name: str) -> bool:
        """Whether the kernel's value is still the one that the flow bound."""
        if name not in self._space:
            return True
        present, ours = self._space[name], self._params.get(name)
        return present is ours or (type(present) is type(ours) and isinstance(present, (int, float, str, bool)) and present == ours)

    def rebind(self, flow: FlowDef, run: Run) -> list[str]:
        """A run started or is shown: the names of its steps wait for it."""
        notes: list[str] = []
        for name, (owner, steps) in list(self._makers.items()):
            if owner is flow and (flow.at is not None or any(s.name in steps for s in run.spec.steps)):
                notes += self._take(name, Placeholder(name, lambda n=name: self.describe(n)))
        for name, value in run.params.items():
            if name in flow.params:
                self.bind_param(name, value)
            else:  # the %%flowparams cell has not run in this kernel: the value is shown, and never captured
                notes += self._take(name, value)
        return notes

    def see_mine(self) -> None:
        """A plain variable that was kept in `mine`, and that a cell has set anew, is kept as it is now."""
        for name in self.mine:
            present = self._space.get(name, _ABSENT)
            if present is not _ABSENT and not self.is_ours(name) and not isinstance(present, (Placeholder, StepHandle)):
                self.mine[name] = present

    def lend(self, before: dict[str, Any]) -> None:
        """All that differs from `before`, the namespace of a moment ago, is lent until `give_back`."""
        space, cell = self._space, self._session.cells.now
        names = [n for n in {**before, **space} if before.get(n, _ABSENT) is not space.get(n, _ABSENT) and not is_history(n)]
        self._lent = {n: (before.get(n, _ABSENT), space.get(n, _ABSENT)) for n in names}
        self._lent_in = cell.number if cell else 0

    def give_back(self) -> None:
        """Put back what `%flow debug` lent, unless a cell has set the name since."""
        for name, (own, lent) in self._lent.items():
            setter = self._session.cells.last_binder(name)
            if self._space.get(name, _ABSENT) is not lent or (setter is not None and setter.number >= self._lent_in):
                continue
            if own is _ABSENT:
                self._space.pop(name, None)
            else:
                self._space[name] = own
        self._lent = {}

    def show(self, flow: FlowDef, run: Run) -> list[str]:
        """Bind the names of a run whose step cells may not have run in this kernel."""
        return self.bind(flow, self._session.link(flow)) + self.rebind(flow, run)

    # ---- where a name is --------------------------------------------------------------------------------------------

    def run_with(self, flow: FlowDef, step: str) -> Run | None:
        """The latest run of this kernel that includes the step; after `%flow at` that run or none."""
        return next((r for r in shown(flow) if any(s.name == step for s in r.spec.steps)), None)

    def where(self, name: str) -> tuple[Run, str, str] | tuple[None, str, str]:
        """(run, step, state) of a name: state is one of not run, pending, ready, failed, stopped, skipped."""
        flow, steps = self._makers[name]
        run = next((r for r in shown(flow) if any(s.name in steps for s in r.spec.steps)), None)
        if run is None:
            return None, steps[0], "not run"
        in_run = [s.name for s in reversed(run.spec.steps) if not s.scope and name in s.saves]
        fate = "skipped"
        for step in in_run or steps[:1]:
            task = run.view.state.tasks.get(Task(step))
            state = task.state if task else "waiting"
            if state == "succeeded":
                if name not in (getattr(task, "missing", None) or ()):
                    return run, step, "ready"
            elif state == "skipped":
                continue
            elif state in ("failed", "stopped"):
                return run, step, state
            else:
                ended = run.view.ended
                if ended is None:
                    return run, step, "pending"
                fate = "skipped" if ended == "succeeded" else ended
                if fate != "skipped":
                    return run, step, fate
        return run, (in_run or steps)[0], fate

    def waits(self, name: str) -> bool:
        """Whether a placeholder stands under a name that the flow makes."""
        return name in self._makers and isinstance(self._space.get(name), Placeholder)

    def stale(self, run: Run, step: str) -> bool:
        """Whether the step's cell says something else now than when the run started."""
        cell = self._session.flow(run.spec.flow).steps.get(step)
        return cell is not None and meaning(cell.source, cell.options) != meaning(run.spec.step(step).source, run.spec.step(step).options)

    def describe(self, name: str) -> str:
        """The repr of a placeholder: nothing is loaded for it."""
        if name not in self._makers:
            return f"<{name}: no longer made by the flow>"
        run, step, state = self.where(name)
        if run is None:
            return f"<{name}: not run, made by step {step}, which {not_run(self._makers[name][0])}>"
        if state != "ready":
            return f"<{name}: {state}, step {step} of run {run.id}>"
        note = "stale, " if self.stale(run, step) else ""
        try:
            entry = self._session.commit(run, step, ()).get("artifacts", {}).get(name, {})
        except FlowbookError:
            entry = {}
        entry = preview.shown(entry)
        shape = f" {tuple(entry['shape'])}" if entry.get("shape") else ""
        size = f", {size_text(entry['size'])}" if entry.get("size") else ""
        return f"<{name}: {note}ready, {entry.get('type', '?')}{shape}{size}, run {run.id}> {entry.get('repr', '')}".rstrip()

    # ---- reading ----------------------------------------------------------------------------------------------------

    def read_by(self, tree: ast.AST) -> list[str]:
        """The placeholders that running this code would read, also through functions of the notebook which it calls."""
        waiting = {n for n in self._makers if isinstance(self._space.get(n), Placeholder)}
        if not waiting:
            return []
        mentioned = loaded_names(tree)
        if not (mentioned & waiting) and not names_behind(mentioned & set(self._space), self._space) & waiting:
            return []
        body = read_body(ast.unparse(tree))
        immediate = set(body.immediate)
        # A function that this very cell defines and calls reads what its body mentions.
        queue = [n for n in immediate | mentioned if n in body.deferred and n in _called(tree)]
        local: set[str] = set()
        while queue:
            name = queue.pop()
            if name not in local:
                local.add(name)
                queue.extend(n for n in body.deferred.get(name, ()) if n in body.deferred)
                immediate |= set(body.deferred.get(name, ())) - set(body.deferred)
        plain = {n for n in immediate if n not in waiting}
        behind = names_behind(plain, self._space)
        return sorted((immediate | behind) & waiting)

    def load_for(self, names: Iterable[str]) -> None:
        """Wait for and load names, each in place of its placeholder. Raises what the cell has to say instead of running."""
        for name in names:
            self.load(name)

    def load(self, name: str, *, huge: bool = False) -> Any:
        """Load one name into the kernel; `huge`: also if it is larger than a quarter of the free memory."""
        if name not in self._makers:
            raise NotReady(f"`{name}` is not made by a flow of this notebook")
        run, step, state = self.where(name)
        if run is None:
            raise NotReady(f"`{name}` is made by step {step}, which {not_run(self._makers[name][0])}")
        if state == "pending":
            self._wait(name, run)
            run, step, state = self.where(name)
            assert run is not None
        if state == "skipped":
            if name in self.mine:
                self._put(name, self.mine[name])
                return self.mine[name]
            raise NotReady(f"`{name}` was not made in run {run.id}: step {step} was skipped, or its branch did not run")
        if state != "ready":
            from flowbook.kernel.display import failure

            if run.view.ended is None:
                self._wait(name, run, ended=True)
            if state == "failed":
                failed = failure(run)
                raise StepFailedBefore(failed.message, failed.traceback, failed.advice)
            if state == "lost":
                raise NotReady(f"`{name}` was not made: {run.view.trouble}")
            raise NotReady(
                f"`{name}` was not made: run {run.id} {'was stopped' if state == 'stopped' else 'ended: ' + str(run.view.trouble)}; {run.command('resume')} runs what is missing"
            )
        return self._load_ready(name, run, step, huge)

    def _load_ready(self, name: str, run: Run, step: str, huge: bool) -> Any:
        commit = self._session.commit(run, step, ())
        entry = commit["artifacts"][name]
        self._guard(name, entry, huge)
        if self.stale(run, step):
            print(f"`{name}` is stale: step {step} was changed since run {run.id}; {run.command('run')} makes it anew", file=sys.stderr)
        if name in commit.get("changed", ()):
            print(f"`{name}`: see the warnings of run {run.id}", file=sys.stderr)
        notes: list[str] = []
        with Progress(f"loading `{name}` ({size_text(entry.get('size', 0))})"):
            try:
                value = self._session.load_entry(entry, run, notes)
            except FlowbookError as error:
                raise NotReady(f"`{name}` of run {run.id} cannot be loaded: {error}") from error
        for note in notes:
            print(note, file=sys.stderr)
        self._put(name, value)
        return value

    def _guard(self, name: str, entry: dict[str, Any], huge: bool) -> None:
        import psutil

        free = psutil.virtual_memory().available
        if not huge and entry.get("size", 0) > free / MEMORY_SHARE:
            raise NotReady(
                f"`{name}` has {size_text(entry['size'])}, more than a quarter of the free memory ({size_text(free)}); it is not loaded unasked.\n"
                f"    flow.load({name!r}) loads it all the same; a step that reads `{name}` and keeps what you need is the lighter way."
            )

    def _wait(self, name: str, run: Run, ended: bool = False) -> None:
        with Progress(f"waiting for `{name}` (run {run.id})", run=run), interruptible():
            try:
                self._session.wait(run, until=None if ended else lambda: self.where(name)[2] != "pending")
            except KeyboardInterrupt:
                raise Interrupted(f"the wait for `{name}` was interrupted; run {run.id} goes on ({run.command('stop')} ends it)") from None


class Scan(ast.NodeTransformer):
    """IPython's AST transformer: loads what a cell reads, before it runs. It changes no code."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def visit(self, node: ast.AST) -> ast.AST:
        try:
            wanted = self._names.read_by(node)
        except (RecursionError, SyntaxError, ValueError):  # odd code: the cell itself will say what is wrong
            return node
        self._names.load_for(wanted)
        return node


def _called(tree: ast.AST) -> set[str]:
    """Names that this code uses outside of function bodies: those may be called when it runs."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Name):
            found.add(node.id)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


class interruptible:
    """During a wait Ctrl-C raises KeyboardInterrupt here, also in a cell with top-level await, where ipykernel handles it otherwise."""

    def __enter__(self) -> None:
        self._old = None
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exc: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)


class Progress:
    """A line that appears when something takes longer than half a second, and goes when it is done."""

    def __init__(self, text: str, run: Run | None = None) -> None:
        self._text, self._run = text, run
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="flowbook-progress", daemon=True)

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self._handle: Any = None
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        if self._handle is not None:
            seconds = time.monotonic() - self._started
            self._handle.update(_Line(f"{self._text}: {'done' if exc[0] is None else 'not done'}, {seconds:.1f} s"))

    def _show(self) -> None:
        if self._over.wait(PROGRESS_AFTER_S):
            return
        from IPython.display import display

        self._handle = display(_Line(f"{self._text} …"), display_id=True)
        while not self._over.wait(0.5):
            if self._handle is not None:
                self._handle.update(_Line(f"{self._text} … {time.monotonic() - self._started:.0f} s{self._counts()}"))

    def _counts(self) -> str:
        if self._run is None:
            return ""
        done = total = 0
        for step in self._run.spec.steps:
            counts = self._run.view.state.counts(step.name)
            total += sum(counts.values())
            done += sum(counts.get(s, 0) for s in ("succeeded", "failed", "skipped", "stopped"))
        return f" · {done} of {total} tasks"


class _Line:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text
