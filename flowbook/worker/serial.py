"""The serial reading: all steps of a run, one after the other, in one plain process; then a comparison with what the flow made.

It follows the law of design 1.0: a fan-out is a loop, each item in a fresh scope over the one `__main__`; --join binds those scopes;
--when is `if`, --catch `try/except`, --always `finally`. Seeds and %%flowsetup come before every task, as in the flow.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from flowbook.errors import FlowbookError
from flowbook.spec.flow import Spec, Step, from_json, task_name
from flowbook.store import codec, compare, layout, results
from flowbook.store.base import open_store
from flowbook.worker import output
from flowbook.worker.attempt import Workspace, stable_seed
from flowbook.worker.current import current

Index = tuple[int, ...]


class Scope:
    """The names bound at one place of the fan-out, each with the position of the step that bound it."""

    def __init__(self, parent: Scope | None) -> None:
        self.parent = parent
        self.names: dict[str, tuple[int, Any]] = {}

    def effective(self) -> dict[str, tuple[int, Any]]:
        """What is visible here: of the enclosing scopes the latest binding of each name."""
        found = self.parent.effective() if self.parent else {}
        for name, (position, value) in self.names.items():
            if name not in found or position >= found[name][0]:
                found[name] = (position, value)
        return found


class Element:
    """What --join binds in the serial reading: a scope as an object."""

    def __init__(self, names: dict[str, Any], index: Index, ok: bool = True, error: Any = None) -> None:
        self.__dict__.update(names)
        self.__dict__.setdefault("ok", ok)
        self.__dict__.setdefault("error", error)
        self.__dict__.setdefault("index", index)
        self._place: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name]


class Serial:
    """One serial reading of a finished run."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.store = open_store(order["store"])
        self.spec: Spec = from_json(Spec, json.loads(self.store.get(layout.spec(order["flow"], order["run"]))))
        self.space = Workspace(self.store, self.spec, output.Display(output.Frames(None)))
        self.scopes: dict[tuple[tuple[str, ...], Index], Scope] = {((), ()): Scope(None)}
        self.made: dict[tuple[str, Index], dict[str, Any]] = {}
        self.skipped: set[tuple[str, Index]] = set()

    def run(self) -> None:
        later = [s for s in self.spec.steps if s.options.always]
        for position, step in enumerate([*(s for s in self.spec.steps if not s.options.always), *later], 1):
            for base in [b for scope, b in list(self.scopes) if scope == step.base]:
                self._step(step, base, position)

    def _step(self, step: Step, base: Index, position: int) -> None:
        main = self._enter(step, step.base, base)
        if step.options.when is not None and not eval(step.options.when, dict(main)):
            self.skipped.add((step.name, base))
            return
        if not step.options.foreach:
            self._task(step, base, position, {})
            return
        for i, item in enumerate(eval(step.options.foreach.expr, dict(main))):
            index = (*base, i)
            self.scopes[step.scope, index] = Scope(self.scopes[step.base, base])
            target = {"__item__": item}
            exec(f"{step.options.foreach.target} = __item__", target)
            self._task(step, index, position, {n: target[n] for n in step.options.foreach.names})

    def _enter(self, step: Step, scope: tuple[str, ...], index: Index) -> dict[str, Any]:
        """Fill `__main__` with what this place sees, after the preparations of a task."""
        main = self.space.main
        main.clear()
        import builtins

        main.update({"__builtins__": builtins, "__name__": "__main__", "current": current})
        self.space.bound.clear()
        self.space.prepare(step, index)
        main.update({name: value for name, (_, value) in self.scopes[scope, index].effective().items()})
        main.update({name: self._joined(step, name, index) for name in step.options.join})
        return main

    def _joined(self, step: Step, name: str, index: Index) -> Any:
        other = self.spec.step(name)
        depth = len(step.base)
        if len(other.scope) <= depth:
            place = index[: len(other.scope)]
            return Element(self.made.get((name, place), {}), place, (name, place) in self.made)
        prefix = index[: len(other.scope) - 1]
        places = sorted(p for s, p in self.made if s == name and p[:-1] == prefix)
        return [Element(self.made[name, p], p) for p in places]

    def _task(self, step: Step, index: Index, position: int, item: dict[str, Any]) -> None:
        if self._needs_only_skipped(step, index):
            self.skipped.add((step.name, index))
            return
        main = self._enter(step, step.scope, index)
        main.update(item)
        vars(current).update(
            step=step.name, index=index, task=task_name(step.name, index), seed=stable_seed(self.spec.flow, step.name, index)
        )
        before = dict(main)
        caught = None
        try:
            self.space.execute(step.source, step.filename)
        except Exception as error:
            if step.options.catch is None:
                raise FlowbookError(f"{task_name(step.name, index)} fails when read serially: {type(error).__name__}: {error}") from error
            caught = error
        if step.options.catch is not None:
            main[step.options.catch] = caught
        scope = self.scopes[step.scope, index]
        for name, value in main.items():
            if name.startswith("__") or name in ("current", *step.options.join):
                continue
            if name in step.saves or name in item or name not in before or before[name] is not value:
                scope.names[name] = (position, value)
        self.made[step.name, index] = {n: main[n] for n in step.saves if n in main}

    def _needs_only_skipped(self, step: Step, index: Index) -> bool:
        for made in step.inputs:
            makers = [(m, index[: len(self.spec.step(m).scope)]) for m in made.makers]
            there = any(made.name in self.made.get(place, {}) for place in makers)
            if made.required and makers and not there and not made.captured:
                return True
        joins = [self._joined(step, n, index) for n in step.options.join]
        singles = [j for j in joins if isinstance(j, Element)]
        return bool(joins) and len(singles) == len(joins) and not any(j.ok for j in singles)

    # ---- comparing --------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        found: dict[str, list[Any]] = {"equal": [], "different": [], "missing": []}
        for step in self.spec.steps:
            places = {p for s, p in self.made if s == step.name}
            for index in sorted(places | self._committed(step)):
                commit = results.read_commit(self.store, self.spec.flow, self.spec.run, step.name, index) or {
                    "artifacts": {},
                    "unsaved": {},
                }
                mine = self.made.get((step.name, index), {})
                for name in sorted({*commit["artifacts"], *mine} - set(commit.get("unsaved", {}))):
                    self._compare(found, task_name(step.name, index), name, commit["artifacts"].get(name), mine)
        return found

    def _committed(self, step: Step) -> set[Index]:
        prefix = f"{layout.run_prefix(self.spec.flow, self.spec.run)}{step.name}/"
        found = set()
        for key in self.store.list(prefix):
            if key.endswith(".COMMIT") and ".plan" not in key:
                place = key[len(prefix) : -len(".COMMIT")]
                if "/" not in place:
                    found.add(tuple(int(i) for i in place.split(".")) if step.scope else ())
        return found

    def _compare(self, found: dict[str, list[Any]], task: str, name: str, entry: Any, mine: dict[str, Any]) -> None:
        if entry is None or name not in mine:
            found["missing"].append({"task": task, "name": name})
            return
        if entry.get("kind") == "module" or entry.get("definition"):
            found["equal"].append(f"{task}.{name}")
            return
        value = codec.load(self.store, entry, main=self.space.main, resolve=self.space.resolve)
        if _same(value, mine[name]):
            found["equal"].append(f"{task}.{name}")
        else:
            found["different"].append({"task": task, "name": name, "flow": _short(value), "serial": _short(mine[name])})


def _same(flow: Any, serial: Any) -> bool:
    if isinstance(serial, Element) or isinstance(flow, results.TaskResult):
        return isinstance(serial, Element) and isinstance(flow, results.TaskResult) and flow.index == serial.__dict__["index"]
    if isinstance(flow, BaseException) or isinstance(serial, BaseException):
        return type(flow).__name__ == type(serial).__name__ and str(flow) == str(serial)
    return compare.same(flow, serial)


def _short(value: Any) -> str:
    from flowbook.store.preview import text

    return str(text(value, 80))


def main(order: dict[str, Any]) -> int:
    import os

    os.chdir(order["cwd"])
    sys.path[:] = order["sys_path"]
    reading = Serial(order)
    try:
        reading.run()
        report: dict[str, Any] = reading.report()
    except FlowbookError as error:
        report = {"error": str(error)}
    sys.stdout.write("\n" + json.dumps(report) + "\n")
    return 0
