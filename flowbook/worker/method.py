"""A task whose body is a method of a FlowSpec: the instance, what it loads, and what of it is saved.

The instance holds what the method set and what it has loaded. Saved is what was set, and what was loaded and is no longer what was
stored; all else is inherited, that is, found in the COMMITs of the tasks before (store/results.py, Reader.visible). A step that
repeats itself does so here, on the same instance, until its switch leads elsewhere.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from flowbook.errors import ArtifactError, NotPicklable
from flowbook.spec.flow import Next, Step, is_token
from flowbook.spec.flowspec import FlowSpec, MergeError, NextError, ReadOnly, Transition, process
from flowbook.store import codec, compare, layout, results, trust
from flowbook.worker import execute, modules
from flowbook.worker.scope import Bound

if TYPE_CHECKING:
    from flowbook.spec.flow import Spec
    from flowbook.store.base import Store
    from flowbook.worker.attempt import Attempt, Findings
    from flowbook.worker.scope import Scope

Json = Any
Place = tuple[str, str, layout.Index]  # run, step, index
ANY_SIZE = 1 << 62  # bytes; a change in place of a large array is as much a change as one of a small one


class Inputs(Sequence[results.FlowInput]):
    """What a join gets: the tasks before it, in the order of the items, else of the branches. `inputs.STEP` is that branch."""

    def __init__(self, tasks: Sequence[results.FlowInput], branches: Mapping[str, list[results.FlowInput]]) -> None:
        self._tasks, self._branches = list(tasks), branches

    def __getitem__(self, where: Any) -> Any:
        return self._tasks[where]

    def __len__(self) -> int:
        return len(self._tasks)

    def __getattr__(self, name: str) -> results.FlowInput:
        if name.startswith("_") or name not in self._branches:
            raise AttributeError(f"inputs has no branch {name!r}; it has {', '.join(self._branches)}")
        found = self._branches[name]
        if len(found) != 1:
            raise AttributeError(f"step {name} has {len(found)} tasks here: take them as inputs[i], or in a loop")
        return found[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Inputs, (self._tasks, self._branches)

    def __repr__(self) -> str:
        return f"<inputs: {len(self)} tasks of {', '.join(self._branches)}>"


class Around(Protocol):
    """What a MethodTask needs to know of the attempt that it is part of."""

    @property
    def step(self) -> Step: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def store(self) -> Store: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def order(self) -> Mapping[str, Json]: ...
    @property
    def main(self) -> dict[str, Any]: ...
    @property
    def index(self) -> layout.Index: ...
    @property
    def found(self) -> Findings: ...


class MethodTask:
    """The `_task` of a FlowSpec instance. Errors of the method pass through; see Attempt for what becomes of them."""

    def __init__(self, attempt: Around) -> None:
        self.attempt, self.step, self.spec, self.store = attempt, attempt.step, attempt.spec, attempt.store
        self.reader = attempt.scope.reader
        self.order = attempt.order
        self.loaded: dict[str, Bound] = {}
        self.merged: dict[str, Mapping[str, Json]] = {}
        self.handed: Transition | None = None
        self.undeclared: list[str] = []
        self.deleted: set[str] = set()
        self._parameters: dict[str, Any] = {}
        self._items: dict[int, Any] = {}  # by the depth of their foreach
        self.flow: FlowSpec = self._instance()

    # ---- loading ----

    def _instance(self) -> FlowSpec:
        cls = self.attempt.main.get(self.step.method or "")
        if not (isinstance(cls, type) and issubclass(cls, FlowSpec)):
            raise ArtifactError(
                f"{self.step.label} no longer defines the flow {self.step.method} when a task runs it. Define it at the top level."
            )
        flow = cls.__new__(cls)
        object.__setattr__(flow, "_task", self)
        return flow

    def preload(self) -> None:
        """An artifact that hides an attribute of the class would not be asked for: it is there from the start."""
        before = self._before()
        names = [name for name in _values_of(type(self.flow)) if name not in vars(self.flow)]
        if before is None or not names:
            return
        visible = self.reader.visible_names(self.spec.flow, self.spec.run, *before)
        given = self.reader.given(self.spec.flow, self.spec.run)
        for name in names:
            if name in visible and visible[name] is not given.get(name):
                self._bind(name, visible[name])
                self._note(name)

    def _bind(self, name: str, entry: Mapping[str, Json]) -> Any:
        value = self.reader.load_quietly(entry, name)
        self.loaded[name] = Bound(entry, value)
        vars(self.flow)[name] = value
        return value

    def _note(self, name: str) -> None:
        """What the method reads although its text does not say so: a later run must not take this result unasked."""
        if name not in self.step.saves and name not in self.undeclared:  # what is read by its text stands there, too
            self.undeclared.append(name)

    def artifact(self, name: str) -> Any:
        """See flowspec.Task. What is loaded becomes an attribute of the instance."""
        entry = None if name in self.deleted else self._entry(name)
        if entry is None and name in ("name", "_current_step"):  # Metaflow has these, and flows read them
            return type(self.flow).__name__ if name == "name" else self.step.name
        if entry is None:
            raise AttributeError(self._missing(name))
        return self._bind(name, entry)

    def _entry(self, name: str) -> Mapping[str, Json] | None:
        if name in self.merged:
            return self.merged[name]
        before = None if self.step.joins else self._before()
        found = self.reader.visible(self.spec.flow, self.spec.run, *before, name) if before else None
        if before is not None:
            self._note(name)  # also where nothing was found: that may change
        return found

    def _before(self) -> tuple[str, layout.Index] | None:
        for name, where in (self.order.get("inputs") or {}).items():
            if is_token(name):
                return where["step"], tuple(where["index"])
        return None

    def _missing(self, name: str) -> str:
        if name in self.deleted:
            return f"self.{name} was deleted."
        if self.step.joins:
            return (
                f"self.{name} is not set: a join gets nothing from the steps before it unasked. Take it from them (inputs[0].{name}), "
                f"or call self.merge_artifacts(inputs)."
            )
        before = self._before()
        if before is not None and (told := self._dropped(name, before)) is not None:
            return told
        names = self.reader.visible_names(self.spec.flow, self.spec.run, *before) if before else {}
        known = sorted({*names, *vars(self.flow)} - {"_task"})
        import difflib  # slow to import, and only for a mistake

        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean self.{near[0]}?" if near else f"There are: {', '.join(n for n in known if not n.startswith('_')) or 'none'}."
        return f"self.{name} is not set: no step before {self.step.name} sets it. {hint}"

    def _dropped(self, name: str, place: tuple[str, layout.Index]) -> str | None:
        """What to say of an artifact that the last join did not take over."""
        while (before := self.reader.before(self.spec.flow, self.spec.run, *place)) is not None:
            place = before
        join = self.spec.step(place[0])
        above = self.spec.steps[: self.spec.steps.index(join)]
        maker = next((step.name for step in reversed(above) if name in step.saves), None)
        if not join.joins or maker is None:
            return None
        return (
            f"self.{name} is not set: step {maker} sets it, but the join {join.name} did not take it over. "
            f"In {join.name}: self.{name} = inputs[0].{name}, or self.merge_artifacts(inputs)."
        )

    def parameter(self, attribute: str) -> Any:
        if attribute not in self._parameters:
            entry = self.spec.params.get(attribute)
            if entry is None:
                raise AttributeError(
                    f"the run has no parameter {attribute!r}: it was started by an older text of the flow. Start a new run."
                )
            self._parameters[attribute] = self.reader.load_quietly(entry, f"parameter {attribute}")
            if attribute not in self.step.params:
                self._note(attribute)
        return self._parameters[attribute]

    def foreach_stack(self) -> list[tuple[int, int, Any]]:
        return [(i, count, self.item(depth)) for depth, (_, i, count) in enumerate(self._fans)]

    @property
    def _fans(self) -> list[list[Json]]:
        """[blob of the items, place, number of items] of each foreach around the task."""
        found: list[list[Json]] = self.order.get("fans") or []
        return found

    def item(self, depth: int = -1) -> Any:
        """The item of a foreach around the task, of the innermost by default; None outside of one. The same object each time."""
        fans = self._fans
        if not fans:
            return None
        depth %= len(fans)
        if depth not in self._items:
            scope, (blob, i, _) = self.attempt.scope, fans[depth]
            self._items[depth] = results.read_item(
                self.store, trust.Signed(items=blob), i, main=scope.main, resolve=scope.resolve, keys=scope.key_of, notes=scope.notes
            )
        return self._items[depth]

    def position(self) -> int | None:
        return self._fans[-1][1] if self._fans else None

    def inputs(self) -> Inputs:
        branches: dict[str, list[results.FlowInput]] = {}
        joins = self.order.get("joins") or {}
        found: list[tuple[int, int, results.FlowInput]] = []
        for position, name in enumerate(self.step.options.join):
            bound = results.TaskResults.from_join(self.reader, name, joins[name])
            tasks = [bound] if isinstance(bound, results.TaskResult) else list(bound)
            kept = [(i, position, results.FlowInput(task)) for i, task in enumerate(tasks) if task.state != "skipped"]
            found += kept
            branches[name] = [element for _, _, element in kept]
        found.sort(key=lambda each: each[:2])
        return Inputs([element for _, _, element in found], branches)

    # ---- running ----

    def run(self) -> None:
        """The method, again as long as it hands over to itself. Raises what it raises, and NextError."""
        method = self._wrapped()
        while True:
            self.handed = None
            method()
            if self.step.next is not None and self.handed is None:
                raise NextError(f"step {self.step.name} ended without its self.next: a `return` came before it. Let every way lead there.")
            if self.handed is None or self.handed.steps != (self.step.name,):
                return

    def _wrapped(self) -> Callable[[], Any]:
        from flowbook.spec import decorators

        function = getattr(type(self.flow), self.step.name)
        given = self.inputs() if self.step.joins else None
        body = function
        if self.step.options.checkpoint is not None:
            from flowbook.worker import loops

            body = loops.rewrite(function)
        wrappers = decorators.wrappers_of(function)

        def call() -> None:
            with contextlib.ExitStack() as around:
                for wrapper in wrappers:
                    instead = around.enter_context(wrapper.around(self.step.name, self.flow, given))
                    if instead is not None:
                        self._run_instead(instead, given)
                        return
                body(self.flow, *([given] if self.step.joins else []))

        return call

    def _run_instead(self, instead: Any, inputs: Inputs | None) -> None:
        """What a wrapper yields: a function in place of the step, or a dict of options of self.next, and the step is skipped."""
        said = instead(self.flow, *([inputs] if self.step.joins else [])) if callable(instead) else instead
        known = self.step.next
        if said is None or said is False or known is None:
            return
        options = dict(said) if isinstance(said, Mapping) else {}
        if known.kind == "foreach" and "foreach" not in options:
            options["foreach"] = known.name
        if known.kind == "switch" or options.get("foreach", "") is None:
            raise NextError(f"step {self.step.name} is skipped, but only its body can say where it goes on. Call flow.next in a function.")
        self.flow.next(*(getattr(self.flow, name) for name in known.steps), **options)

    def forget(self, name: str) -> None:
        self.deleted.add(name)
        self.merged.pop(name, None)

    def hand_over(self, transition: Transition) -> None:
        known = self.step.next
        if self.handed is not None:
            raise NextError(f"step {self.step.name} calls self.next more than once. One call says it all: self.next(self.a, self.b).")
        if known is None:
            raise NextError(f"step {self.step.name} is the last of the flow; it calls no self.next.")
        if transition.kind != known.kind or not self._allowed(known, transition):
            raise NextError(
                f"step {self.step.name} goes on to {', '.join(transition.steps)} ({transition.kind}), where its text says "
                f"{', '.join(known.steps)} ({known.kind}). The flow was checked by its text: let self.next be written out."
            )
        self.handed = transition

    @staticmethod
    def _allowed(known: Next, transition: Transition) -> bool:
        return set(transition.steps) <= set(known.steps) if known.kind == "switch" else transition.steps == known.steps

    # ---- saving ----

    def artifacts(self) -> tuple[dict[str, Json], dict[str, str]]:
        """The entries of what the method set or changed; and what cannot be saved, with the reason. Raises ReadOnly."""
        self._look_at_parameters()
        self._take_changed_constants()
        found: dict[str, Json] = dict(self.merged)
        unsaved = {name: f"step {self.step.name} deleted it" for name in self.deleted if name not in vars(self.flow)}
        for name, value in vars(self.flow).items():
            if name == "_task" or (name.startswith("__") and name.endswith("__")) or self._inherited(name, value):
                continue
            try:
                found[name] = codec.entry(self.store, name, value, main=self.attempt.main, keys=self.attempt.scope.key_of)
            except NotPicklable as error:
                unsaved[name] = str(error)
                found.pop(name, None)
                self.attempt.found.add(f"self.{name} is not saved: {error}. A step that reads it will fail; make it where it is used.")
        return found, unsaved

    def _inherited(self, name: str, value: Any) -> bool:
        bound = self.loaded.get(name)
        return bound is not None and bound.value is value and self._unchanged(bound.entry, value)

    def _unchanged(self, entry: Mapping[str, Json], value: Any) -> bool:
        scope = self.attempt.scope
        return compare.unchanged(self.store, entry, value, main=scope.main, keys=scope.key_of, resolve=scope.resolve, limit=ANY_SIZE)

    def _look_at_parameters(self) -> None:
        """A parameter is the same in every step; a change in place would be seen in this one alone."""
        for name, value in self._parameters.items():
            if self._unchanged(self.spec.params[name], value):
                continue
            later = [step.name for step in self.spec.steps if name in step.params and step.name != self.step.name]
            text = f"self.{name} is a parameter, and step {self.step.name} changed it in place; other steps do not see that"
            if later:
                raise ReadOnly(f"{text}, and {', '.join(later)} reads it. Work on a copy, under another name: copy.deepcopy(self.{name}).")
            self.attempt.found.add(f"{text}. Work on a copy, under another name.")

    def _take_changed_constants(self) -> None:
        """An attribute of the class that was changed in place is an artifact from here on."""
        for name, entry in self.spec.constants.items():
            if name in self.step.saves and name not in vars(self.flow) and entry.get("kind") != "json":
                value = getattr(type(self.flow), name, None)
                if not self._unchanged(entry, value):
                    vars(self.flow)[name] = value

    def plans(self) -> dict[str, Json]:
        """The items of the foreach that the method handed over to."""
        handed = self.handed
        if handed is None or handed.kind != "foreach":
            return {}
        target: Step = self.spec.step(handed.steps[0])
        plan: dict[str, Json] = {"key": target.plan_key}
        name = f"self.{handed.name}" if handed.name else "foreach"
        items = results.write_items(
            self.store, self._bounded(handed.items, name), name=name, main=self.attempt.main, keys=self.attempt.scope.key_of
        )
        return {target.name: plan | items}

    def _bounded(self, items: Any, name: str) -> Any:
        try:
            iter(items)
        except TypeError:
            raise NextError(f"self.next(…, foreach=…): {name} is a {type(items).__name__}, which cannot be iterated.") from None
        if hasattr(items, "__len__"):
            return items
        return _counted(items, name)

    def read_unasked(self) -> list[str]:
        """Names that were read although the text does not say so, through inputs, too."""
        return sorted({*self.undeclared, *(self.reader.asked - set(self.step.params) - self.spec.constants.keys())})

    def next(self) -> list[str]:
        """The steps that the task hands over to. A body whose error was caught goes on where its text says."""
        if self.handed is not None:
            return list(self.handed.steps)
        return list(self.step.next.steps) if self.step.next is not None else []

    # ---- merging ----

    def merge(
        self,
        inputs: Any,
        exclude: Sequence[str] | None,
        include: Sequence[str] | None,
        resolve: Mapping[str, Callable[[list[Any]], Any]] | Callable[[str, list[Any]], Any] | None,
    ) -> None:
        if not self.step.joins:
            raise MergeError(f"merge_artifacts means something only in a join; step {self.step.name} takes no inputs.")
        if exclude and include:
            raise MergeError("merge_artifacts takes include or exclude, not both.")
        elements = list(inputs) or self._before_the_split()
        if not all(isinstance(element, results.FlowInput) for element in elements):
            raise MergeError("merge_artifacts takes the join's inputs: self.merge_artifacts(inputs).")
        visible = [_artifacts_of(self.reader, element) for element in elements]
        lost = [self.reader.unsaved_names(*results.task_of(element)._place) for element in elements]
        names = list(dict.fromkeys(name for one in visible for name in one if not name.startswith("_")))
        for asked in include or ():
            if not any(asked in one for one in visible):
                raise MergeError(f"merge_artifacts(include=[{asked!r}]): no input has it. They have: {', '.join(names) or 'nothing'}.")
        wanted = [n for n in names if (not include or n in include) and n not in (exclude or ()) and n not in vars(self.flow)]
        missing = [n for n in include or () if n in wanted and not all(n in one for one in visible)]
        if missing:
            raise MergeError(f"merge_artifacts: not every input has {', '.join(missing)}. Set it on self before, or leave it out.")
        merged, resolved, conflicts = {}, {}, []
        for name in wanted:
            entries = [(one[name], element) for one, element in zip(visible, elements, strict=True) if name in one]
            why = next((one[name] for one in lost if name in one and "deleted" not in one[name]), None)
            if why is not None:
                raise MergeError(f"merge_artifacts: {name} of an input could not be saved: {why}. Set self.{name} before, or exclude it.")
            if self._all_same(name, entries):
                merged[name] = entries[0][0]
            elif (decide := _resolver(resolve, name)) is not None:
                resolved[name] = decide([getattr(element, name) for _, element in entries])
            else:
                conflicts.append(name)
        if conflicts:
            raise MergeError(
                f"merge_artifacts: the inputs differ in {', '.join(conflicts)}. Set {'them' if len(conflicts) > 1 else 'it'} on self before, "
                f"exclude {'them' if len(conflicts) > 1 else 'it'}, or say how: resolve={{{conflicts[0]!r}: max}}."
            )
        self.merged |= merged
        for name in merged.keys() & _values_of(type(self.flow)):
            self._bind(name, merged[name])  # an attribute of the class would hide it
        for name, value in resolved.items():
            setattr(self.flow, name, value)

    def _before_the_split(self) -> list[results.FlowInput]:
        """In the join of a fan-out without items: the task that fanned out, for what it leaves is what every item would have had."""
        if len(self.inputs()):
            return []
        leaf = self.spec.step(self.step.options.join[0])
        host = self.spec.step(leaf.scope[len(self.step.scope)]).host if len(leaf.scope) > len(self.step.scope) else None
        if host is None:
            return []
        run = (self.order.get("joins") or {})[leaf.name]["run"]
        flow = self.spec.flow
        return [results.FlowInput(results.TaskResult(self.reader, run, host, tuple(self.attempt.index), flow=flow))]

    def _all_same(self, name: str, entries: list[tuple[Mapping[str, Json], results.FlowInput]]) -> bool:
        first = entries[0]
        for entry, element in entries[1:]:
            if _address(entry) != _address(first[0]) and not compare.same(getattr(element, name), getattr(first[1], name)):
                return False
        return True


def _values_of(cls: type) -> set[str]:
    """Attributes of the class that are neither code nor parameters: an artifact may have the same name."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base not in (object, FlowSpec):
            found |= vars(base)
    code = (types.FunctionType, property, staticmethod, classmethod)
    return {
        n
        for n, v in found.items()
        if not (n.startswith("__") and n.endswith("__")) and not isinstance(v, code) and not hasattr(type(v), "__set__")
    }


def _artifacts_of(reader: results.Reader, element: results.FlowInput) -> dict[str, Mapping[str, Json]]:
    flow, run, step, index = results.task_of(element)._place
    given = reader.given(flow, run)
    return {name: entry for name, entry in reader.visible_names(flow, run, step, index).items() if given.get(name) is not entry}


def _address(entry: Mapping[str, Json]) -> tuple[Any, ...]:
    value = entry.get("json")
    return entry.get("kind"), entry.get("blob"), entry.get("inline"), type(value).__name__, repr(value)


def _resolver(resolve: Any, name: str) -> Callable[[list[Any]], Any] | None:
    if isinstance(resolve, Mapping):
        found: Callable[[list[Any]], Any] | None = resolve.get(name)
        return found
    return (lambda values: resolve(name, values)) if callable(resolve) else None


def _counted(items: Iterable[Any], name: str) -> Iterator[Any]:
    for count, item in enumerate(items):
        if count >= results.ITEM_LIMIT:
            raise NextError(f"self.next(…, foreach=…): {name} gives more than {results.ITEM_LIMIT:,} items, or no end of them.")
        yield item


def load(attempt: Attempt) -> MethodTask:
    """The program in main, and the task's instance. Raises what the program raises."""
    process.in_task = True
    attempt.scope.captures([*attempt.step.captures, *attempt.spec.setup_captures])
    modules.seed_generators(attempt.seed)  # before the user's own code: a seed of theirs wins
    execute.run_setup(attempt.spec, attempt.main)
    if attempt.spec.program is not None:
        filename = attempt.spec.program
        attempt.main["__file__"] = filename
        attempt.main["__package__"] = modules.package_of(filename, attempt.spec.modules)
        sys.argv[:] = [filename]
        execute.run_program(attempt.spec.sources[filename]["source"], filename, attempt.main)
    task = MethodTask(attempt)
    task.preload()
    return task
