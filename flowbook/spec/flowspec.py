"""FlowSpec: the class whose methods are steps. What a method says of itself goes to the task that runs it.

A step's `self` is a fresh instance in each task. Attributes that a method sets are artifacts; one that it reads and has not set is
loaded when it is read, from the nearest task before that made it. The instance knows nothing of stores: it asks `_task`, which
the worker sets (worker/method.py). Outside a task there is none, and an artifact cannot be read.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flowbook.errors import FlowbookError

MUTATORS = "__flowbook_mutators__"  # of a step's function: what is called with the class when that is made
RESERVED = frozenset("next name input index cmd inputs merge_artifacts foreach_stack script_name".split())  # for steps
WORDS = frozenset("next input index merge_artifacts foreach_stack".split())  # for artifacts


class NextError(FlowbookError):
    """A method says wrongly how the flow goes on."""


class ReadOnly(FlowbookError, AttributeError):
    """An attribute of a FlowSpec that a method may not set."""


@dataclass(frozen=True)
class Transition:
    """What one call of `self.next` says, as the method said it: `items` are those of foreach, `value` that of a switch's condition."""

    kind: str  # as in spec.flow.Next
    steps: tuple[str, ...]
    name: str | None = None
    items: Any = None
    value: Any = None


class Task(Protocol):
    """The task that a FlowSpec instance lives in."""

    def artifact(self, name: str) -> Any:
        """The value of an artifact that the method has not set. Raises AttributeError if no task before made it."""

    def parameter(self, attribute: str) -> Any: ...
    def forget(self, name: str) -> None:
        """An artifact was deleted: later steps do not have it."""

    def hand_over(self, transition: Transition) -> None: ...
    def merge(
        self,
        inputs: Any,
        exclude: Sequence[str] | None,
        include: Sequence[str] | None,
        resolve: Mapping[str, Callable[[list[Any]], Any]] | Callable[[str, list[Any]], Any] | None,
    ) -> None: ...
    def foreach_stack(self) -> list[tuple[int, int, Any]]: ...
    def item(self) -> Any: ...
    def position(self) -> int | None: ...


@dataclass
class _Process:
    """What this process is: `in_task` keeps `MyFlow()` at the end of a file from starting the command line in a worker."""

    in_task: bool = False
    entries: list[type] = field(default_factory=list)


process = _Process()


class FlowSpec:
    """Base of a flow. `MyFlow()` at the end of a file is its command line."""

    _task: Task | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for function in [*vars(cls).values()]:
            for apply in getattr(function, MUTATORS, ()) if isinstance(function, types.FunctionType) else ():
                apply(cls)

    def __init__(self, use_cli: bool = True) -> None:
        if not use_cli or process.in_task:
            return
        import importlib  # the command line is a door: it imports this room, never the other way

        importlib.import_module("flowbook.cli").main_flow(type(self), sys.argv[1:])

    # ---- the way on ----

    def next(
        self,
        *targets: Any,
        foreach: Any = None,
        condition: str | None = None,
        default: Any = None,
        num_parallel: int | None = None,
    ) -> None:
        """Say how the flow goes on. The last statement of a step.

        ``self.next(self.a)``; ``self.next(self.a, self.b)`` for both, side by side; ``self.next(self.a, foreach="names")`` once for each
        item of an artifact, or of any finite iterable; ``self.next({"x": self.a, "y": self.b}, condition="mode", default=self.c)``
        for one of them, chosen by an artifact. Raises NextError.
        """
        task = self._in_task("self.next")
        if num_parallel is not None:
            raise NextError("self.next(num_parallel=…): gangs of tasks that run as one are not supported. Use foreach=range(n).")
        task.hand_over(self._transition(targets, foreach, condition, default))

    def _transition(self, targets: tuple[Any, ...], foreach: Any, condition: str | None, default: Any) -> Transition:
        if len(targets) == 1 and isinstance(targets[0], Mapping):
            return self._switch(targets[0], foreach, condition, default)
        if condition is not None or default is not None:
            raise NextError("self.next(condition=…) chooses among the steps of a dict: self.next({value: self.step, …}, condition='name').")
        names = tuple(_step_name(target) for target in targets)
        if not names:
            raise NextError("self.next() names no step. Write self.next(self.STEP).")
        if foreach is None:
            return Transition("linear" if len(names) == 1 else "split", names)
        if len(names) != 1:
            raise NextError(f"self.next(…, foreach=…) takes one step, not {len(names)}: let that step split.")
        if isinstance(foreach, str):
            return Transition("foreach", names, foreach, self._attribute(foreach, "foreach"))
        return Transition("foreach", names, None, foreach)

    def _switch(self, cases: Mapping[Any, Any], foreach: Any, condition: str | None, default: Any) -> Transition:
        if foreach is not None:
            raise NextError("self.next takes either foreach or condition: let the step that is chosen fan out.")
        if not isinstance(condition, str):
            raise NextError("self.next({…}) needs condition='NAME', the artifact that chooses.")
        value = self._attribute(condition, "condition")
        steps = {key: _step_name(target) for key, target in cases.items()}
        chosen = steps.get(value) if _hashable(value) else None
        if chosen is None and default is not None:
            chosen = _step_name(default)
        if chosen is None:
            known = ", ".join(repr(key) for key in steps)
            raise NextError(
                f"self.{condition} is {value!r}, and the switch has no such case (it has {known}). Add it, or default=self.STEP."
            )
        return Transition("switch", (chosen,), condition, value=value)

    def _attribute(self, name: str, option: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError as error:
            raise NextError(f"self.next({option}={name!r}): {error}") from None

    # ---- what a task knows ----

    @property
    def input(self) -> Any:
        """The item of the innermost foreach around this task; None outside of one."""
        return self._in_task("self.input").item()

    @property
    def index(self) -> int | None:
        """The place of that item in its list, from 0."""
        return self._in_task("self.index").position()

    def foreach_stack(self) -> list[tuple[int, int, Any]]:
        """(index, number of items, item) of each foreach around this task, outermost first."""
        return self._in_task("self.foreach_stack()").foreach_stack()

    def merge_artifacts(
        self,
        inputs: Any,
        exclude: Sequence[str] | None = None,
        include: Sequence[str] | None = None,
        resolve: Mapping[str, Callable[[list[Any]], Any]] | Callable[[str, list[Any]], Any] | None = None,
    ) -> None:
        """Take over the artifacts of a join's inputs; those that differ between the inputs must be set before, or resolved.

        Equal means equal in value. `resolve` is called with the values that differ: a dict name → function of the list of values, or
        one function of name and list. `include` takes these alone, `exclude` all but these. Raises MergeError, and nothing is set then.
        """
        self._in_task("self.merge_artifacts").merge(inputs, exclude, include, resolve)

    def _in_task(self, what: str) -> Task:
        if self._task is None:
            raise FlowbookError(f"{what} means something only while a step runs: start a run, or flowbook.testing.run_step for a test.")
        return self._task

    # ---- artifacts ----

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._task is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._task.artifact(name)

    def __setattr__(self, name: str, value: Any) -> None:
        found = getattr(type(self), name, None)
        read_only = isinstance(found, property) and found.fset is None
        if name in WORDS or name == "_task" or read_only or isinstance(found, types.FunctionType):
            own = name in WORDS or name == "_task"
            kind = "a word" if own else "a method" if isinstance(found, types.FunctionType) else "a property without a setter"
            raise ReadOnly(f"self.{name} = …: {name!r} is {kind} of the flow. Give the artifact another name.")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if hasattr(type(getattr(type(self), name, None)), "__delete__"):
            return object.__delattr__(self, name)  # a parameter, which refuses
        getattr(self, name)  # raises for what is not there
        if self._task is not None:
            self._task.forget(name)
        vars(self).pop(name, None)

    def __iter__(self) -> Iterable[Any]:
        raise TypeError(f"a {type(self).__name__} cannot be iterated; a join's `inputs` can")


class MergeError(FlowbookError):
    """merge_artifacts found values that differ, or names that are not there."""


def _step_name(target: Any) -> str:
    function = getattr(target, "__func__", target)
    if not getattr(function, "is_step", False):
        raise NextError(f"self.next({target!r}): not a step. Write self.STEP, where STEP is a method with @step.")
    return str(function.__name__)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
