"""Reading what tasks made: COMMITs, the handles that --join binds, and the items of a fan-out.

A handle reads nothing until it is asked, loads an artifact once, and gives the same object each time. It is a reference: an
artifact that holds one stores where the task is, not what it made, and finds its store again through the reader in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, overload

from flowbook.errors import ArtifactError, NotPicklable, StoreError, StoreMissing
from flowbook.spec.flow import is_token, task_name
from flowbook.store import canon, codec, layout, preview, trust
from flowbook.store.base import Buffer, Store

Json = Any
ITEM_LIMIT = 100_000
REPRS = 1_000  # at most so many items are shown by their repr
ARRAYS = (
    "numpy.ndarray",
    "numpy.matrix",
    "numpy.memmap",
    "numpy.recarray",
)  # all other types of numpy's own module that are stored are scalars
ROWS = 20  # of a table drawn in a notebook


def read_commit(store: Store, flow: str, run: str, step: str, index: layout.Index, part: str = "body") -> dict[str, Json] | None:
    """The COMMIT of a task, None if there is none yet. Raises StoreError, naming the key, if it is not JSON."""
    key = layout.commit(flow, run, step, index, part)
    try:
        data = trust.read(store, key, store.get(key))
    except StoreMissing:
        return None
    except ValueError:
        raise StoreError(f"{key} is damaged: it is not JSON. Run the step again (%flow run --fresh).") from None
    if not isinstance(data, dict):
        raise StoreError(f"{key} is damaged: it is not a JSON object. Run the step again (%flow run --fresh).")
    return data


# ---- readers ---------------------------------------------------------------------------------------------------------


class Reader:
    """A store seen from one process: where definitions of the notebook are taken from, and the COMMITs read so far.

    A COMMIT never changes, so one that was read is kept; one that was not there is asked for again.
    """

    def __init__(
        self,
        store: Store,
        flow: str,
        main: codec.Main = None,
        resolve: codec.Resolve | None = None,
        *,
        keys: codec.Keys | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.store, self.flow, self.main, self.resolve, self.keys, self.notes = store, flow, main, resolve, keys, notes
        self._commits: dict[tuple[Any, ...], dict[str, Json]] = {}
        self._steps: dict[tuple[str, str], dict[str, Json]] = {}
        self._specs: dict[tuple[str, str], dict[str, Json]] = {}

    def commit(self, run: str, step: str, index: layout.Index, part: str = "body", *, flow: str | None = None) -> dict[str, Json] | None:
        place = (flow or self.flow, run, step, index, part)
        if place not in self._commits:
            found = read_commit(self.store, *place)
            if found is None:
                return None
            self._commits[place] = found
        return self._commits[place]

    def outer_item(self, flow: str, run: str, step: str, index: layout.Index, name: str) -> Mapping[str, Json] | None:
        """The entry of an item's name of a fan-out around the one in which a task runs: it stands in that fan-out's own task."""
        steps = self._spec(flow, run)
        scope = steps.get(step, {}).get("scope", [])[: len(index)]
        for depth in range(len(scope), 0, -1):
            outer = steps.get(scope[depth - 1], {})
            if name in outer.get("options", {}).get("foreach", {}).get("names", ()):
                found = self.commit(run, outer["name"], index[:depth], flow=flow)
                return found.get("artifacts", {}).get(name) if found else None
        return None

    def foreach_stack(self, flow: str, run: str, step: str, index: layout.Index) -> list[tuple[int, int, Any]]:
        """(index, number of items, item) of each fan-out around a task of a FlowSpec, outermost first."""
        steps = self._spec(flow, run)
        found = []
        for depth, name in enumerate(steps.get(step, {}).get("scope", ())[: len(index)]):
            fan = steps[name]
            host = self.commit(run, fan["host"], index[:depth], flow=flow) if fan.get("host") else None
            plan = (host or {}).get("plans", {}).get(name, {})
            if "items" not in plan:
                raise NoArtifact(f"the items of {name} are no longer in the store. Run it again.")
            item = read_item(self.store, plan, index[depth], main=self.main, resolve=self.resolve, keys=self.keys, notes=self.notes)
            found.append((index[depth], int(plan["count"]), item))
        return found

    # ---- what a method of a FlowSpec inherits ----

    def visible(self, flow: str, run: str, step: str, index: layout.Index, name: str) -> Mapping[str, Json] | None:
        """The entry of an artifact as a task of a FlowSpec leaves it: its own, else that of the nearest task before, back to the last
        join; else of a parameter or a constant of the flow. Raises NoArtifact if the nearest one could not be saved.
        """
        for place, commit in self._way_back(flow, run, step, index):
            entry: Mapping[str, Json] | None = commit.get("artifacts", {}).get(name)
            if entry is not None:
                return entry
            if name in commit.get("unsaved", {}):
                raise NoArtifact(f"{task_name(*place)} did not save {name!r}: {commit['unsaved'][name]}")
        return self.given(flow, run).get(name)

    def visible_names(self, flow: str, run: str, step: str, index: layout.Index) -> dict[str, Mapping[str, Json]]:
        """name → entry of all that `visible` finds for a task, parameters and constants included."""
        found: dict[str, Mapping[str, Json]] = {}
        unsaved: set[str] = set()
        for _, commit in self._way_back(flow, run, step, index):
            for name, entry in commit.get("artifacts", {}).items():
                if name not in unsaved:
                    found.setdefault(name, entry)
            unsaved |= commit.get("unsaved", {}).keys() - found.keys()
        return {**{name: entry for name, entry in self.given(flow, run).items() if name not in unsaved}, **found}

    def unsaved_names(self, flow: str, run: str, step: str, index: layout.Index) -> dict[str, str]:
        """name → why of what a task, or one before it, set last and could not save."""
        found: dict[str, str] = {}
        seen: set[str] = set()
        for _, commit in self._way_back(flow, run, step, index):
            found |= {name: why for name, why in commit.get("unsaved", {}).items() if name not in seen}
            seen |= commit.get("artifacts", {}).keys() | commit.get("unsaved", {}).keys()
        return found

    def asked_for(self, name: str) -> None:
        """A parameter or a constant was read through a task."""

    def before(self, flow: str, run: str, step: str, index: layout.Index) -> tuple[str, layout.Index] | None:
        """The task that handed over to one of a FlowSpec; None for the first step, for a join, and for the steps of cells."""
        steps = self._spec(flow, run)
        for given in steps.get(step, {}).get("inputs", ()):
            if is_token(given["name"]):
                for maker in given.get("makers", ()):
                    there = tuple(index[: len(steps[maker].get("scope", ()))])
                    commit = self.commit(run, maker, there, flow=flow)
                    if commit is not None and step in commit.get("next", ()):
                        return maker, there
        return None

    def given(self, flow: str, run: str) -> dict[str, Mapping[str, Json]]:
        """Entries of the parameters of a run, and of the constants of its class."""
        spec = self._whole_spec(flow, run)
        return {**spec.get("constants", {}), **spec.get("params", {})}

    def _way_back(self, flow: str, run: str, step: str, index: layout.Index) -> Iterator[tuple[tuple[str, layout.Index], dict[str, Json]]]:
        place: tuple[str, layout.Index] | None = (step, index)
        while place is not None:
            commit = self.commit(run, *place, flow=flow)
            if commit is not None:
                yield place, commit
            place = self.before(flow, run, *place)

    def _spec(self, flow: str, run: str) -> dict[str, Json]:
        """The steps of a run by name, as `run.json` has them."""
        if (flow, run) not in self._steps:
            self._steps[flow, run] = {step["name"]: step for step in self._whole_spec(flow, run).get("steps", ())}
        return self._steps[flow, run]

    def known(self, flow: str, run: str, spec: dict[str, Json]) -> None:
        """`run.json` of a run, as `trust.read` gave it: it is not read again."""
        self._specs[flow, run] = spec

    def _whole_spec(self, flow: str, run: str) -> dict[str, Json]:
        if (flow, run) not in self._specs:
            key = layout.spec(flow, run)
            try:
                found = trust.read(self.store, key, self.store.get(key))
                [step["name"] for step in found["steps"]]
            except StoreMissing:
                found = {}  # the run was removed
            except (ValueError, KeyError, TypeError):
                raise StoreError(f"{key} is damaged: it does not hold the spec of a run.") from None
            self._specs[flow, run] = found
        return self._specs[flow, run]

    def load(self, entry: Mapping[str, Json], name: str = "value") -> Any:
        token = _loading.set(self)
        try:
            return codec.load(self.store, entry, name=name, main=self.main, resolve=self.resolve, keys=self.keys, notes=self.notes)
        finally:
            _loading.reset(token)


_loading: ContextVar[Reader | None] = ContextVar("_loading", default=None)  # references in what is being loaded read through it
_reader: Reader | None = None  # one for the whole process: threads of a step body see it too


def set_reader(reader: Reader | None) -> Reader | None:
    """Let handles that are loaded from now on read through `reader`; gives the one before."""
    global _reader
    before, _reader = _reader, reader
    return before


@contextlib.contextmanager
def use(store: Store, main: codec.Main = None, *, flow: str = "", resolve: codec.Resolve | None = None) -> Iterator[Reader]:
    """`set_reader` for the time of a with block."""
    reader = Reader(store, flow, main, resolve)
    before = set_reader(reader)
    try:
        yield reader
    finally:
        set_reader(before)


# ---- one task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskError:
    """Why a task failed: ERROR of docs/internals.md as a value."""

    reason: str = "error"
    type: str = ""
    message: str = ""
    cell: str = ""
    line: int | None = None
    source_line: str = ""
    traceback: str = ""
    item: str = ""
    output_tail: str = field(default="", repr=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> TaskError:
        return cls(**{name: value for name, value in data.items() if name in cls.__dataclass_fields__ and value is not None})

    @property
    def exception(self) -> str:
        """Metaflow's name of `message`."""
        return self.message

    @property
    def stacktrace(self) -> str:
        """Metaflow's name of `traceback`."""
        return self.traceback

    def __str__(self) -> str:
        what = ": ".join(part for part in (self.type or self.reason, self.message) if part)
        where = ", ".join(part for part in (self.cell, f"line {self.line}" if self.line else "") if part)
        return f"{what} ({where})" if where else what


class NoArtifact(ArtifactError, AttributeError):
    """The task made no artifact of that name. It is an AttributeError too, so that hasattr and getattr work."""


class TaskResult:
    """One task of a step that --join bound: ``t.score`` loads the artifact, once.

    An artifact named like one of the attributes here (ok, error, state, index, step, run) is reached as ``t["ok"]``.
    """

    def __init__(
        self,
        reader: Reader | None,
        run: str,
        step: str,
        index: layout.Index,
        *,
        flow: str | None = None,
        state: str = "succeeded",
        error: Mapping[str, Json] | None = None,
    ) -> None:
        flow = flow if flow is not None else reader.flow if reader else ""
        vars(self).update(_reader=reader, _place=(flow, run, step, tuple(index)), _state=state, _error=error, _values={})

    # ---- what is known without loading ----

    @property
    def run(self) -> str:
        return str(self._place[1])

    @property
    def step(self) -> str:
        return str(self._place[2])

    @property
    def index(self) -> layout.Index:
        return tuple(self._place[3])

    @property
    def state(self) -> str:
        """``succeeded`` (also if --catch caught its error), ``failed``, ``skipped`` or ``stopped``."""
        return str(self._state)

    @property
    def ok(self) -> bool:
        return self.state == "succeeded"

    @property
    def error(self) -> TaskError | None:
        """Why it failed; for a task whose error was caught, that error; else None."""
        if self._error is not None:
            return TaskError.from_json(self._error)
        caught = self._commit().get("caught") if self.ok else None
        return TaskError.from_json(caught) if caught else None

    # ---- artifacts ----

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # never an artifact; asked by copy, pickle and every notebook frontend
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self[name]

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._find_reader().load(self._entry(name), f"{self}.{name}")
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self} is a finished task; {name!r} cannot be set on it")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self} is a finished task; {name!r} cannot be deleted from it")

    def __dir__(self) -> list[str]:
        names = self._commit(needed=False).get("artifacts", {})
        return sorted({*names, *(name for name in dir(type(self)) if not name.startswith("_") or name.startswith("__"))})

    def _entry(self, name: str) -> Mapping[str, Json]:
        if not self.ok:
            why = f": {self.error}" if self._error is not None else ""
            verb = {"failed": "", "skipped": "was ", "stopped": "was "}.get(self.state, "is ")  # the kernel's handles may be waiting
            raise NoArtifact(f"{self} {verb}{self.state}{why}; it has no {name!r}")
        commit = self._commit()
        found: Mapping[str, Json] | None = commit.get("artifacts", {}).get(name)
        if found is None and name not in commit.get("unsaved", {}):
            flow, run, step, index = self._place
            reader = self._find_reader()
            if "next" in commit:  # a method of a FlowSpec
                found = reader.visible(flow, run, step, index, name)
            elif len(self.index) > 1:
                found = reader.outer_item(flow, run, step, index, name)
        if found is None:
            raise NoArtifact(self._absent(name, commit))
        return found

    def _absent(self, name: str, commit: Mapping[str, Json]) -> str:
        if name in commit.get("unsaved", {}):
            return f"{self} did not save {name!r}: {commit['unsaved'][name]}"
        import difflib  # slow to import, and only for a mistake

        if "next" in commit:  # a method of a FlowSpec has what came before it, too
            known = _unknown(str(self), name, self._find_reader().visible_names(*self._place))
            return known + (f" Its error was caught: {self.error}." if commit.get("caught") else "")
        names = sorted(commit.get("artifacts", {}))
        near = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        caught = f" Its error was caught: {self.error}." if commit.get("caught") else ""
        return f"{self} made no {name!r}. It made: {', '.join(names) or 'nothing'}.{caught}{hint}"

    def _find_reader(self) -> Reader:
        found = self._reader if self._reader is not None else _reader
        if found is None:
            raise ArtifactError(f"{self} was loaded outside a flow; flowbook.store.results.use(store) tells where to read it")
        return found

    def _commit(self, *, needed: bool = True) -> Mapping[str, Json]:
        flow, run, step, index = self._place
        found = self._find_reader().commit(run, step, index, flow=flow) if self.ok else None
        if found is None and self.ok and needed:
            raise NoArtifact(f"{self} of run {run} has no result in the store; it may have been removed")
        return found or {}

    def _scalars(self) -> dict[str, Any]:
        artifacts = self._commit(needed=False).get("artifacts", {})
        found = {name: entry["json"] for name, entry in artifacts.items() if entry.get("kind") == "json"}
        for (
            name,
            entry,
        ) in artifacts.items():  # numpy's own scalars, such as the mean of some scores; they are small and stand in the COMMIT
            kind = str(entry.get("type", ""))
            if "inline" in entry and kind.startswith("numpy.") and kind.count(".") == 1 and kind not in ARRAYS:
                with contextlib.suppress(ArtifactError, AttributeError, ValueError):
                    value = self._find_reader().load(entry, name)
                    found[name] = value.item()
        return {name: found[name] for name in artifacts if name in found}

    # ---- identity ----

    def __reduce__(self) -> tuple[Any, ...]:
        # By its maker: a reference is the same value, whether its task ran or was taken over from an earlier run.
        return _task, (self._maker(), None if self.ok else (self._state, self._error))

    def _maker(self) -> tuple[Any, ...]:
        """The task that made the result: of a COMMIT which another run took over, that of the first run."""
        flow, run, step, index = self._place
        try:
            made = self._commit(needed=False).get("made_in")
            return (flow, str(made["run"]), step, tuple(made["index"])) if made else (flow, run, step, index)
        except (ArtifactError, StoreError, KeyError, TypeError):
            return (flow, run, step, index)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskResult):
            return NotImplemented
        return self._place == other._place or (self.step == other.step and self._maker() == other._maker())

    def __hash__(self) -> int:
        return hash(self._maker())

    def __str__(self) -> str:
        return task_name(self.step, self.index)

    def __repr__(self) -> str:
        try:
            commit, scalars = self._commit(needed=False), self._scalars()
        except (ArtifactError, StoreError):
            commit, scalars = {}, {}
        words = [str(self)]
        if commit.get("item") and preview.mode() == preview.FULL:
            words.append(f"item {commit['item']}")
        words.append(f"{self.state}: {self.error}" if self._error is not None else self.state)
        if preview.mode() == preview.FULL:
            words += [f"{name}={preview.text(value, 40)}" for name, value in list(scalars.items())[:8]]
        return f"<{', '.join(words)}>"


def loaded(task: TaskResult) -> dict[str, tuple[Mapping[str, Json], Any]]:
    """name → (entry, value) of the artifacts that were read through this handle so far."""
    return {name: (task._entry(name), value) for name, value in task._values.items()}


def _task(place: tuple[Any, ...], failure: tuple[str, Json] | None) -> TaskResult:
    flow, run, step, index = place
    state, error = failure or ("succeeded", None)
    return TaskResult(_loading.get() or _reader, run, step, index, flow=flow, state=state, error=error)


class FlowInput:
    """A task as a join of a FlowSpec sees it, and as an artifact that keeps one: every attribute is an artifact, inherited ones too.

    It is a reference: kept as an artifact, it stores where the task is, in this very run, since what the task inherits is of its run.
    Its own attributes have names that no artifact has; `task_of` gives the TaskResult.
    """

    def __init__(self, task: TaskResult) -> None:
        vars(self).update({_TASK: task, _VALUES: {}})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_ipython_display_", "_repr_mimebundle_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        values = vars(self)[_VALUES]
        if name not in values:
            values[name] = _load_input(task_of(self), name)
        return values[name]

    def foreach_stack(self) -> list[tuple[int, int, Any]]:
        """(index, number of items, item) of each foreach around the task."""
        task = task_of(self)
        return task._find_reader().foreach_stack(*task._place)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{task_of(self)} is a finished task; {name!r} cannot be set on it. Set it on self.")

    def __dir__(self) -> list[str]:
        task = task_of(self)
        with contextlib.suppress(ArtifactError, StoreError):
            return sorted(task._find_reader().visible_names(*task._place))
        return []

    def __reduce__(self) -> tuple[Any, ...]:
        task = task_of(self)
        return _input, (task._place, None if task.ok else (task._state, task._error))

    def __eq__(self, other: object) -> bool:
        return task_of(self) == task_of(other) if isinstance(other, FlowInput) else NotImplemented

    def __hash__(self) -> int:
        return hash(task_of(self))

    def __repr__(self) -> str:
        return repr(task_of(self))


_TASK, _VALUES = "(task)", "(values)"  # no attribute can be written so


def _input(place: tuple[Any, ...], failure: tuple[str, Json] | None) -> FlowInput:
    return FlowInput(_task(place, failure))


def _load_input(task: TaskResult, name: str) -> Any:
    if not task.ok:
        raise NoArtifact(f"{task} {task.state}: {task.error}; it has no {name!r}" if task.error else f"{task} {task.state}: no {name!r}")
    flow, run, step, index = task._place
    reader = task._find_reader()
    if name in ("input", "index"):
        stack = reader.foreach_stack(flow, run, step, index)
        return (stack[-1][2] if name == "input" else stack[-1][0]) if stack else None
    entry = reader.visible(flow, run, step, index, name)
    if entry is None:
        raise NoArtifact(_unknown(f"{task}", name, reader.visible_names(flow, run, step, index)))
    if entry is reader.given(flow, run).get(name):
        reader.asked_for(name)
    return reader.load(entry, f"{task}.{name}")


def task_of(element: FlowInput) -> TaskResult:
    """The task that an element of a join's `inputs` stands for."""
    found = vars(element)[_TASK]
    assert isinstance(found, TaskResult)
    return found


def _unknown(task: str, name: str, names: Iterable[str]) -> str:
    import difflib  # slow to import, and only for a mistake

    shown = sorted(known for known in names if not known.startswith("_"))
    near = difflib.get_close_matches(name, shown, 1)
    return f"{task} has no artifact {name!r}." + (f" Did you mean {near[0]!r}?" if near else f" It has: {', '.join(shown) or 'none'}.")


# ---- the tasks of a foreach step -------------------------------------------------------------------------------------


class _Joined(Sequence[TaskResult]):
    """The tasks that a part "joins" of ORDER tells of, each made when it is asked for, and once."""

    def __init__(self, reader: Reader | None, flow: str, step: str, join: Mapping[str, Json]) -> None:
        self.reader, self.flow, self.step, self.join = reader, flow, step, join
        self._made: dict[int, TaskResult] = {}

    def __len__(self) -> int:
        return int(self.join["count"])

    def __getitem__(self, i: Any) -> Any:
        if i not in self._made:
            self._made[i] = _joined_task(self.reader, self.flow, self.step, self.join, (*self.join["index"], i), str(i))
        return self._made[i]

    def __reduce__(self) -> tuple[Any, ...]:
        return _joined, (self.flow, self.step, dict(self.join))


def _joined(flow: str, step: str, join: Mapping[str, Json]) -> _Joined:
    return _Joined(_loading.get() or _reader, flow, step, join)


def _joined_task(reader: Reader | None, flow: str, step: str, join: Mapping[str, Json], index: layout.Index, last: str) -> TaskResult:
    run = join.get("runs", {}).get(last, join["run"])
    failure = join.get("exceptions", {}).get(last) or {"state": "succeeded"}
    return TaskResult(reader, run, step, index, flow=flow, state=failure.get("state", "failed"), error=failure.get("error"))


class TaskResults(Sequence[TaskResult]):
    """The tasks of a foreach step in the order of its items. Nothing is read for a task that is not asked for.

    `names` are those that the step's --foreach binds; they come first in a table.
    """

    def __init__(self, tasks: Sequence[TaskResult], names: Sequence[str] = (), step: str = "") -> None:
        self._tasks, self._names = tasks, tuple(names)
        self._step = step or (tasks[0].step if tasks else "tasks")

    @classmethod
    def from_join(
        cls, reader: Reader | None, step: str, join: Mapping[str, Json], names: Sequence[str] = (), *, flow: str | None = None
    ) -> TaskResults | TaskResult:
        """What --join binds: the sequence, or, where "count" is null, the one task. `join` is a part "joins" of ORDER."""
        flow = flow if flow is not None else reader.flow if reader else ""
        if join["count"] is None:
            index = tuple(join["index"])
            return _joined_task(reader, flow, step, join, index, str(index[-1]) if index else "0")
        return cls(_Joined(reader, flow, step, join), names, step)

    @overload
    def __getitem__(self, where: int) -> TaskResult: ...
    @overload
    def __getitem__(self, where: slice) -> list[TaskResult]: ...
    def __getitem__(self, where: int | slice) -> TaskResult | list[TaskResult]:
        count = len(self._tasks)
        if isinstance(where, slice):
            return [self._tasks[i] for i in range(*where.indices(count))]
        try:
            i = where.__index__()
        except AttributeError:
            raise TypeError(f"{self._step} is a sequence of tasks: {self._step}[0], not {self._step}[{where!r}]") from None
        if not -count <= i < count:
            raise IndexError(f"{self._step} has {count} tasks; there is no {self._step}[{i}]")
        return self._tasks[i % count]

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[TaskResult]:
        return (self._tasks[i] for i in range(len(self._tasks)))

    @property
    def ok(self) -> list[TaskResult]:
        """The tasks that succeeded. Reads nothing."""
        return [task for task in self if task.ok]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        step = self._step
        raise AttributeError(f"{step} is a sequence of {len(self)} tasks: [t.{name} for t in {step}], or {step}.table() for all scalars")

    def table(self, more: Callable[[TaskResult], Mapping[str, Any]] | None = None) -> Any:
        """A pandas DataFrame, a row a task: the item's names, every scalar artifact, the state, the seconds it ran.

        Reads COMMITs only; `more` gives what else is known of a task, by name: where the COMMIT tells it too, that holds.
        Raises ArtifactError if pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise ArtifactError(
                f"{self._step}.table() needs pandas, which is not installed here: %pip install pandas. "
                f"Without it: [(t.index, t.state) for t in {self._step}]"
            ) from None
        rows = [{**(more(task) if more is not None else {}), **self._row(task)} for task in self]
        return pandas.DataFrame(rows, columns=self._columns(rows))

    def _row(self, task: TaskResult) -> dict[str, Any]:
        commit = task._commit(needed=False)
        items = {name: entry.get("json", entry.get("repr")) for name, entry in commit.get("artifacts", {}).items() if name in self._names}
        seconds = commit.get("seconds", {}).get("running")
        state = "running" if task.state == "launched" else task.state  # as the panel has it
        return {**items, **task._scalars(), "state": state, "seconds": seconds}

    def _columns(self, rows: list[dict[str, Any]]) -> list[str]:
        found = dict.fromkeys(name for row in rows for name in row)
        inner = [name for name in found if name not in (*self._names, "state", "seconds")]
        return [*(name for name in self._names if name in found), *inner, "state", "seconds"]

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskResults, (self._tasks, self._names, self._step)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, TaskResults) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._step, *self))

    def __repr__(self) -> str:
        states = [task.state for task in self if not task.ok]
        told = "".join(f", {states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"<{self._step}: {len(self)} tasks{told}>"

    def _repr_html_(self) -> str:
        from html import escape

        told = f"<p>{escape(repr(self))}</p>"
        try:
            rows = [self._row(task) for task in self[:ROWS]]
        except (ArtifactError, StoreError):
            return told
        columns = self._columns(rows) if preview.mode() == preview.FULL else ["state", "seconds"]
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns))
        body = "".join(_html_row(i, row, columns) for i, row in enumerate(rows))
        more = f"<p>{len(self) - ROWS:,} more; {escape(self._step)}.table() has all</p>" if len(self) > ROWS else ""
        return f"{told}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _html_row(i: int, row: Mapping[str, Any], columns: Sequence[str]) -> str:
    from html import escape

    return f"<tr><th>{i}</th>{''.join(f'<td>{escape(_shown(row.get(name)))}</td>' for name in columns)}</tr>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value[:60] if isinstance(value, str) else preview.text(value, 60)


# ---- the items of a fan-out ------------------------------------------------------------------------------------------

SPLIT_BYTES = 1_000_000  # of items; fewer are fetched by each task with those that are not its own
SPLIT = b"\xffITEMS1\xff"  # begins the table of split items; a blob of items begins with their number
_HEAD = len(SPLIT) + 32  # and the address of the items themselves
_ROW = struct.Struct("<QQ32s")  # first byte, last byte, sha256


def write_items(
    store: Store,
    values: Iterable[Any],
    *,
    name: str = "the items",
    main: codec.Main = None,
    keys: codec.Keys | None = None,
    limit: int = ITEM_LIMIT,
) -> dict[str, Json]:
    """Save the items of a fan-out as one blob: the count, items, reprs and ids of a PLAN; "blobs" if items have further ones.

    In a store that cannot be mapped, more than SPLIT_BYTES are two blobs: a table of places and hashes, which the PLAN names, and the
    items. So a task fetches the table and its own item, and can check both. Raises NotPicklable ("item 3 of rates"), ArtifactError for more than `limit` items, and whatever iterating raises.
    """
    lasting = isinstance(values, (list, tuple, range, str, dict, set, frozenset))
    parts: list[Buffer] = []
    offsets: list[int] = []
    reprs: list[str] = []
    told: list[str] = []
    blobs: set[str] = set()
    end = 0
    sums: list[bytes] = []
    for i, value in enumerate(values):
        if i >= limit:
            raise ArtifactError(f"{name} has more than {limit:,} items, the limit of a fan-out; give each task a part of them")
        try:
            encoded = codec.encode(value, name=f"item {i} of {name}", main=main, keys=keys, store=store, previews=False)
        except RecursionError as error:
            raise NotPicklable(f"item {i} of {name}", str(error)) from error
        offsets.append(end)
        told.append(_item_key(value, encoded, main, keys))
        # What an iterator gave may be filled anew for the next item, so its memory is copied now.
        pieces = encoded.parts if lasting else [part if isinstance(part, bytes) else bytes(part) for part in encoded.parts]
        pieces = [*pieces, bytes(-encoded.nbytes % codec.ALIGN)]
        parts += pieces
        if not store.mapped:
            sums.append(_sha256(pieces))
        end += codec.aligned(encoded.nbytes)
        blobs |= encoded.blobs
        if i < REPRS and (short := preview.item(value)) is not None:
            reprs.append(short)
    if end > SPLIT_BYTES and not store.mapped:
        body = store.put_blob(parts)
        rows = (_ROW.pack(first, last, sha) for first, last, sha in zip(offsets, [*offsets[1:], end], sums, strict=True))
        address = store.put_blob([SPLIT, bytes.fromhex(body), *rows])
        return {
            "count": len(offsets),
            "items": address,
            "reprs": reprs,
            "ids": "".join(canon.item_ids(told)),
            "blobs": sorted({*blobs, body}),
        }
    head = struct.pack("<Q", len(offsets))
    start = codec.aligned(8 * (len(offsets) + 2))
    head += struct.pack(f"<{len(offsets) + 1}Q", *(start + offset for offset in (*offsets, end)))
    plan: dict[str, Json] = {"count": len(offsets), "items": store.put_blob([head.ljust(start, b"\0"), *parts]), "reprs": reprs}
    plan["ids"] = "".join(canon.item_ids(told))
    return plan | ({"blobs": sorted(blobs)} if blobs else {})


def item_ids(values: Iterable[Any], *, main: codec.Main = None, keys: codec.Keys | None = None) -> list[str]:
    """The ids that `write_items` gives the same items. Raises NotPicklable."""
    return canon.item_ids([_item_key(value, None, main, keys) for value in values])


def _item_key(value: Any, encoded: codec.Encoded | None, main: codec.Main, keys: codec.Keys | None) -> str:
    key = canon.content_key(value, main=main, keys=keys)
    if key is not None:
        return key
    encoded = encoded or codec.encode(value, main=main, keys=keys, previews=False)
    return canon.short_hash(_sha256(encoded.parts).hex())


def _sha256(parts: Iterable[Buffer]) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def read_item(
    store: Store,
    plan: Mapping[str, Json],
    i: int,
    *,
    name: str | None = None,
    main: codec.Main = None,
    resolve: codec.Resolve | None = None,
    keys: codec.Keys | None = None,
    notes: list[str] | None = None,
) -> Any:
    """Item `i` of the fan-out that a PLAN tells of. Raises ArtifactError for damaged data, IndexError for i < 0."""
    name = name or f"item {i}"
    if i < 0:
        raise IndexError(f"no item {i}")
    data = _item_data(store, store.open(layout.blob(plan["items"])), i)
    if not data:
        raise ArtifactError(f"the stored items have no item {i}, or are damaged. Run the step that made them again (%flow run --fresh).")
    trusted = trust.holds(store, plan)
    return codec.decode(data, name=name, main=main, resolve=resolve, keys=keys, notes=notes, store=store, trusted=trusted)


def _item_data(store: Store, whole: memoryview, i: int) -> Buffer:
    """The bytes of one item out of a blob of items, or by a table of split ones; empty if there is no such item, or it is damaged."""
    if whole[: len(SPLIT)] == SPLIT:
        row = whole[_HEAD + _ROW.size * i : _HEAD + _ROW.size * (i + 1)]
        if len(row) != _ROW.size:
            return b""
        first, last, sha = _ROW.unpack(row)
        data = bytearray(store.get_range(layout.blob(bytes(whole[len(SPLIT) : _HEAD]).hex()), first, last))
        return data if _sha256([data]) == sha else b""
    where = whole[8 + 8 * i : 24 + 8 * i]
    first, last = struct.unpack("<2Q", where) if len(where) == 16 else (0, 0)
    found = whole[first:last] if 8 + 8 * (i + 2) <= first < last else whole[:0]
    return found if len(found) == last - first else b""
