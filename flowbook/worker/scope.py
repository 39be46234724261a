"""What stands in main before the body runs: captures, parameters, inputs; each with its entry, to be compared afterwards.

Definitions are needed while other values are loaded, and may need each other, so they are also loaded on demand: from the
captures, else from the COMMITs of the steps that define them.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flowbook.errors import ArtifactError
from flowbook.spec.flow import Spec, Step, task_name
from flowbook.store import canon, codec, layout, results, trust
from flowbook.store.base import Store

Json = Any
Place = tuple[str, str, tuple[int, ...]]  # run, step, index


@dataclass(frozen=True)
class Bound:
    """A name of main that came from the store. `place`: the task that made it; None for captures and parameters."""

    entry: Mapping[str, Json]
    value: Any
    place: Place | None = None

    @property
    def is_data(self) -> bool:
        return self.entry.get("kind") != "module" and not self.entry.get("definition")


class Recording(results.Reader):
    """A reader that remembers what was read through joined handles: the body must leave it alone, too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.handed: list[tuple[str, Bound]] = []
        self.asked: set[str] = set()  # parameters and constants that were read through a task

    def load(self, entry: Mapping[str, Json], name: str = "value") -> Any:
        value = super().load(entry, name)
        self.handed.append((name, Bound(entry, value)))
        return value

    def asked_for(self, name: str) -> None:
        self.asked.add(name)

    def load_quietly(self, entry: Mapping[str, Json], name: str) -> Any:
        return super().load(entry, name)


class Scope:
    """Loads names into one main. `index` is that of the task, which finds the COMMITs of the steps above it."""

    def __init__(self, store: Store, spec: Spec, main: types.ModuleType, index: tuple[int, ...] = ()) -> None:
        self.store, self.spec, self.main = store, spec, vars(main)
        self.index = index
        self.bound: dict[str, Bound] = {}
        self.notes: list[str] = []
        self.reader = Recording(store, spec.flow, self.main, self.resolve, keys=self.key_of, notes=self.notes)
        self._captured: dict[str, Any] = {}
        self._on_demand: dict[str, Any] = {}
        self._visited: set[str] = set()
        self._decoding: set[str] = set()
        self._shared: dict[tuple[Any, ...], Any] = {}
        self._module_keys: dict[str, str | None] = {}
        self._own_keys: dict[str, tuple[Any, str | None]] = {}
        self._keying: set[str] = set()  # recursive definitions end here

    # ---- captures and parameters ----

    def parameters(self) -> None:
        for name, entry in self.spec.params.items():
            self._bind(name, entry, self.reader.load_quietly(entry, f"parameter {name}"))

    def captures(self, names: Iterable[str]) -> None:
        """Bind captured names, and all that they need in turn; what is needed comes first."""
        for name in names:
            self._capture(name)

    def _capture(self, name: str) -> None:
        if name in self._visited or name not in self.spec.captures:
            return
        self._visited.add(name)
        for need in self.spec.captures[name].get("needs", ()):
            self._capture(need)
        self._decode_capture(name)

    def _decode_capture(self, name: str) -> None:
        if name in self._captured:
            return
        self._decoding.add(name)
        try:
            value = self.reader.load_quietly(self.spec.captures[name]["entry"], name)
        finally:
            self._decoding.discard(name)
        self._captured[name] = value
        self._bind(name, self.spec.captures[name]["entry"], value)

    def captured(self, name: str) -> Any:
        """The captured value itself, whatever main holds under its name by now; names that main lacks are bound."""
        before = self.main.get(name, self)
        self._capture(name)
        if before is not self:
            self.main[name] = before
        return self._captured[name]

    def _bind(self, name: str, entry: Mapping[str, Json], value: Any, place: Place | None = None) -> None:
        self.main[name] = value
        self.bound[name] = Bound(entry, value, place)

    # ---- definitions on demand ----

    def key_of(self, qualname: str) -> str | None:
        """The key of a definition that main holds, if it is the captured one; of all that it uses in turn, where that is known.

        Of a local module ("module NAME") the key of its content.
        """
        if qualname.startswith("module "):
            return self._module_key(qualname.removeprefix("module "))
        root = qualname.partition(".")[0]
        if root not in self._captured or self._captured[root] is not self.main.get(root):
            return self._own_key(root)
        captured = self.spec.captures[root]
        key: str | None = captured.get("deep") or captured.get("key")
        return key

    def _own_key(self, root: str) -> str | None:
        """Of a definition that a step's body made: of its code, wherever it was loaded."""
        value = self.main.get(root)
        if not isinstance(value, type | types.FunctionType) or getattr(value, "__module__", None) != "__main__" or root in self._keying:
            return None
        known = self._own_keys.get(root)
        if known is None or known[0] is not value:
            self._keying.add(root)
            try:
                known = self._own_keys[root] = value, canon.content_key(value, main=self.main, keys=self.key_of, code=True)
            finally:
                self._keying.discard(root)
        return known[1]

    def _module_key(self, root: str) -> str | None:
        """Of a local module's content, and of that of all local modules that it imports in turn."""
        if root not in self._module_keys:
            reached: set[str] = set()
            queue = [root]
            while queue:
                name = queue.pop()
                if name not in reached:
                    reached.add(name)
                    queue += [i for n, info in self.spec.modules.items() if n.partition(".")[0] == name for i in info.get("imports", ())]
            blobs = [f"{name} {info['blob']}" for name, info in sorted(self.spec.modules.items()) if name.partition(".")[0] in reached]
            local = any(name.partition(".")[0] == root for name in self.spec.modules)
            self._module_keys[root] = canon.short_hash("\n".join(blobs)) if local else None
        return self._module_keys[root]

    def resolve(self, qualname: str, key: str | None) -> Any:
        """A definition that main lacks; it is bound there, so that all instances have the one class. None if nobody has it."""
        root = qualname.partition(".")[0]
        if root not in self.main:
            if root in self.spec.captures and root not in self._decoding:
                self._capture(root)
                if root not in self._captured:
                    self._decode_capture(root)
            elif (entry := self._definition(root)) is not None:
                self.main.setdefault(root, self.reader.load_quietly(entry, root))
            self._on_demand[root] = self.main.get(root)
        return codec.look_up(self.main, qualname)

    def gave(self, name: str, value: Any) -> bool:
        """Whether main has this value because something that was loaded needed it, be it while the body ran."""
        return name in self._on_demand and self._on_demand[name] is value

    def _definition(self, name: str) -> Mapping[str, Json] | None:
        """The entry of a function or class that a step's body defined."""
        for step in reversed(self.spec.steps):
            if name in step.saves:
                for run in self._runs():
                    own = self.reader.commit(run, step.name, self.index[: len(step.scope)])
                    entry: Mapping[str, Json] | None = (own or self._any_commit(run, step)).get("artifacts", {}).get(name)
                    if entry is not None and entry.get("definition"):
                        return entry
        return None

    def _any_commit(self, run: str, step: Step) -> Mapping[str, Json]:
        """A COMMIT of any task of the step: all tasks of a fan-out run the same definitions."""
        prefix = f"{layout.run_prefix(self.spec.flow, run)}{step.name}/"
        for key in self.store.list(prefix):
            task, dot, kind = key[len(prefix) :].rpartition(".")
            if kind == "COMMIT" and dot and all(part.isdigit() for part in task.split(".")) and step.scope:
                return self.reader.commit(run, step.name, tuple(map(int, task.split(".")))) or {}
        return {}

    def _runs(self) -> list[str]:
        return [self.spec.run, *([self.spec.origin] if self.spec.origin else [])]

    # ---- what other tasks made ----

    def inputs(self, wanted: Mapping[str, Json], reader_name: str) -> None:
        """Bind what other tasks made. Raises ArtifactError, naming the variable, its maker and why it was not saved."""
        for name, where in wanted.items():
            place = (where["run"], where["step"], tuple(where["index"]))
            entry = self._entry(name, place, reader_name)
            shared = (*place, entry.get("alias", name))
            if shared not in self._shared:
                self._shared[shared] = self.reader.load_quietly(entry, name)
            self._bind(name, entry, self._shared[shared], place)

    def _entry(self, name: str, place: Place, reader_name: str) -> Mapping[str, Json]:
        run, step, index = place
        maker = task_name(step, index)
        commit = self.reader.commit(run, step, index)
        if commit is None:
            raise ArtifactError(
                f"`{name}`, read by {reader_name}: the result of {maker} in run {run} is no longer in the store. Run it again."
            )
        entry: Mapping[str, Json] | None = commit.get("artifacts", {}).get(name)
        if entry is None:
            why = commit.get("unsaved", {}).get(name, "the body did not bind it")
            raise ArtifactError(f"`{name}`, read by {reader_name}, was not saved by {maker}: {why}")
        return entry

    def joins(self, wanted: Mapping[str, Json]) -> None:
        """Bind each joined step's name to its task or tasks."""
        for step, join in wanted.items():
            foreach = next((s.options.foreach for s in self.spec.steps if s.name == step), None)
            self.main[step] = results.TaskResults.from_join(self.reader, step, join, foreach.names if foreach else ())

    def item(self, item: Mapping[str, Json]) -> Any:
        """The value of the fan-out's item, a fresh one each time."""
        return results.read_item(
            self.store,
            trust.Signed(items=item["blob"]),
            item["i"],
            main=self.main,
            resolve=self.resolve,
            keys=self.key_of,
            notes=self.notes,
        )
