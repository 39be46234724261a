"""Metaflow, Flow, Run, Step, Task, Artifact: the runs of a store as objects, by Metaflow's names, for notebooks and classes alike.

    Metaflow() → flows → runs (newest first) → steps (in the order of the flow) → tasks (in the order of the items) → artifacts

Each is a pathspec and nothing more until something is asked: making one looks whether it is there and in the namespace; `Artifact.data`
alone reads values. What an open run says may change from one question to the next. Times are datetimes of the local time
zone without one (``datetime.now() - run.created_at`` works), as in Metaflow. Only tags and `Run.delete` change the store.

Raises NotFound, NamespaceMismatch (place.py), DefinitionError for what is no pathspec, StoreError for what is damaged.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Self

from flowbook.client import code, html, place, record, remove, times
from flowbook.client.named import Artifacts, Children, Data
from flowbook.client.place import NamespaceMismatch, NotFound
from flowbook.client.record import Record
from flowbook.client.values import load as load_value
from flowbook.engine.state import TaskState
from flowbook.errors import DefinitionError, Finding, StoreMissing
from flowbook.spec.flow import Step as StepSpec
from flowbook.store import codec, glance, layout, preview, tags
from flowbook.store.base import Store, open_store
from flowbook.store.glance import Glance, Row
from flowbook.store.results import TaskError

Json = Any
_FORMS = ("FLOW", "RUN", "STEP", "TASK", "ARTIFACT")


class Object:
    """What all have in common. Equal are those of one place in one store."""

    _depth: ClassVar[int] = 0

    def __init__(
        self, pathspec: str = "", attempt: int | None = None, *, store: Store | None = None, _parts: Sequence[str] | None = None
    ) -> None:
        self._store = store if store is not None else place.store()
        self._attempt = attempt
        self._parts = tuple(_parts) if _parts is not None else self._parsed(pathspec)
        if _parts is None:
            self._look()

    @classmethod
    def _parsed(cls, pathspec: str) -> tuple[str, ...]:
        parts = tuple(pathspec.strip("/").split("/")) if isinstance(pathspec, str) else ()
        if len(parts) != cls._depth or not all(parts) or any(part.startswith(".") for part in parts):
            form = "/".join(_FORMS[: cls._depth])
            raise DefinitionError(
                Finding(f"{cls.__name__}({pathspec!r})", "that is no pathspec of this kind", f"Write {cls.__name__}('{form}').")
            )
        return parts

    def _look(self) -> None:
        """Raises NotFound or NamespaceMismatch."""

    # ---- names --------------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Its own name: the last part of the pathspec."""
        return self._parts[-1] if self._parts else ""

    @property
    def pathspec(self) -> str:
        """``Flow/run/step/task/artifact``, as far as it goes."""
        return "/".join(self._parts)

    @property
    def path_components(self) -> list[str]:
        return list(self._parts)

    @property
    def parent(self) -> Any:
        """What it is in: of a task its step, of a flow None."""
        above = next((kind for kind in (Flow, Run, Step, Task) if kind._depth == self._depth - 1), None)
        return above._at(self._store, self._parts[:-1], self._attempt) if above is not None else None

    @classmethod
    def _at(cls, store: Store, parts: Sequence[str], attempt: int | None = None) -> Self:
        """Without looking whether it is there."""
        return cls(attempt=attempt, store=store, _parts=parts)

    # ---- what every run, step, task and artifact has of its run -------------------------------------------------------------

    @property
    def _record(self) -> Record:
        return record.record_of(self._store, self._parts[0], self._parts[1])

    @property
    def tags(self) -> frozenset[str]:
        """Those that people gave and those of flowbook, of the run it is of."""
        return self.user_tags | self.system_tags

    @property
    def user_tags(self) -> frozenset[str]:
        """Of the run, as they are now."""
        if self._depth < 2:
            return frozenset()
        return frozenset(tags.read(self._store, self._parts[0], self._parts[1], self._record.spec.tags)[0])

    @property
    def system_tags(self) -> frozenset[str]:
        """``user:…``, ``python_version:…``, ``date:2026-11-25`` (UTC), ``origin:RUN``, ``project:…``, as far as known. They never change."""
        return frozenset(glance.system_tags(self._record.spec)) if self._depth >= 2 else frozenset()

    @property
    def created_at(self) -> datetime | None:
        return None

    @property
    def finished_at(self) -> datetime | None:
        return None

    @property
    def origin_pathspec(self) -> str | None:
        """Of what was taken over from another run: where it was made."""
        return None

    def is_in_namespace(self) -> bool:
        """Whether its run is in the namespace that holds now."""
        if self._depth < 2:
            return True
        return place.is_visible(self._record.spec.user, self.tags, place.get_namespace())

    # ---- what is in it ------------------------------------------------------------------------------------------------------

    def _ids(self) -> list[str]:
        return []

    def _child(self, name: str) -> Any:
        """Raises NotFound."""
        raise NotFound(f"{self!r} has nothing in it")

    def __getitem__(self, name: str | int) -> Any:
        return self._child(str(name))

    def __contains__(self, name: object) -> bool:
        return str(name) in self._ids()

    def __iter__(self) -> Iterator[Any]:
        return (self._child(name) for name in self._ids())

    def __len__(self) -> int:
        return len(self._ids())

    def __bool__(self) -> bool:
        return True  # also where nothing is in it

    def _ipython_key_completions_(self) -> list[str]:
        return self._ids()

    # ---- itself -------------------------------------------------------------------------------------------------------------

    def _key(self) -> tuple[Any, ...]:
        return type(self), self._parts, self._attempt, self._store

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Object):
            return NotImplemented
        return self._key()[:3] == other._key()[:3] and (self._store is other._store or repr(self._store) == repr(other._store))

    def __hash__(self) -> int:
        return hash(self._key()[:3])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self._parts, self._attempt, self._store.describe())

    def __repr__(self) -> str:
        attempt = f", attempt={self._attempt}" if self._attempt is not None else ""
        return f"{type(self).__name__}({self.pathspec!r}{attempt})"

    def _repr_html_(self) -> str:
        return html.shown(self)


def _restored(kind: type[Object], parts: tuple[str, ...], attempt: int | None, store: Mapping[str, Json]) -> Object:
    """By pathspec: nothing that a run made is in the pickle. Looked for when something is asked."""
    return kind._at(open_store(store), parts, attempt)


# ---- flows ------------------------------------------------------------------------------------------------------------------


class Metaflow(Object):
    """All flows of the store that have a run in the namespace. ``Metaflow()["TrainFlow"]``"""

    _depth = 0

    def __init__(
        self, pathspec: str = "", attempt: int | None = None, *, store: Store | None = None, _parts: Sequence[str] | None = None
    ) -> None:
        super().__init__(store=store, _parts=())

    @property
    def flows(self) -> list[Flow]:
        return list(self)

    def _ids(self) -> list[str]:
        return [name for name in self._store.names("flows") if next(iter(Flow._at(self._store, (name,)).runs()), None) is not None]

    def _child(self, name: str) -> Flow:
        return Flow(name, store=self._store)

    def __repr__(self) -> str:
        return "Metaflow()"


class Flow(Object):
    """All runs of a flow: ``Flow("TrainFlow")``, ``Flow("notebook")``. Iterated, the newest run comes first."""

    _depth = 1

    def _look(self) -> None:
        (name,) = self._parts
        known = list(self._store.names("flows"))
        if name not in known:
            raise place.not_found("flow", name, known, "in this store")
        if next(self._chosen(place.get_namespace()), None) is None:
            if next(self._chosen(None), None) is None:
                raise NotFound(f"there is no run of {name} any more")
            raise NamespaceMismatch(f"no run of {name} is in the namespace {place.get_namespace()!r}. namespace(None) shows all runs.")

    @property
    def _glance(self) -> Glance:
        return Glance(self._store, self.id)

    @property
    def latest_run(self) -> Run | None:
        """The newest run in the namespace; None if there is none."""
        return next(self.runs(), None)

    @property
    def latest_successful_run(self) -> Run | None:
        """The newest run that succeeded. Reads no older run."""
        return next(self.runs(state="succeeded"), None)

    @property
    def created_at(self) -> datetime | None:
        """When its oldest run began."""
        began = [row.started_at for _, row in self._rows(place.get_namespace()) if row.started_at is not None]
        return times.local(min(began, default=None))

    @property
    def finished_at(self) -> datetime | None:
        """When its newest run ended; None while that runs."""
        newest = self.latest_run
        return newest.finished_at if newest is not None else None

    def runs(
        self, *wanted: str, state: str | None = None, since: times.When | None = None, until: times.When | None = None
    ) -> Iterator[Run]:
        """The runs in the namespace, newest first, read only as far as they are taken.

        `wanted`: tags that a run must all have. `state`: "running" (not ended), "succeeded", "failed", "stopped". `since`, `until`: when it began: a
        datetime, a date, seconds since the epoch, a text such as "2026-11-25" or "2026-11-25 13:00", or a timedelta before now.
        Raises DefinitionError for another state or time. A run that cannot be read is left out, with a warning, where that matters.
        """
        times.check_state(state)
        first, last = times.seconds(since, "since"), times.seconds(until, "until")
        return self._chosen(place.get_namespace(), tags.checked(wanted), state, first, last)

    def _chosen(
        self,
        within: str | None,
        wanted: Sequence[str] = (),
        state: str | None = None,
        first: float | None = None,
        last: float | None = None,
    ) -> Iterator[Run]:
        filtered = bool(wanted) or not (state is None and first is None and last is None)
        for run, row in self._rows(within):
            if row.damaged and filtered:
                warnings.warn(f"run {run} of {self.id} is left out: {row.damaged}", stacklevel=3)
                continue
            if _fits(row, wanted, state, first, last) and self._store.exists(layout.spec(self.id, run)):
                yield Run._at(self._store, (self.id, run))

    def _rows(self, within: str | None) -> Iterator[tuple[str, Row]]:
        """The runs in a namespace."""
        for run, row in self._glance:
            if row.damaged or place.is_visible(row.user, row.all_tags, within):
                yield run, row

    def __iter__(self) -> Iterator[Run]:
        return self.runs()

    def _ids(self) -> list[str]:
        return [run.id for run in self.runs()]

    def _child(self, name: str) -> Run:
        return Run(f"{self.id}/{name}", store=self._store)

    def __contains__(self, name: object) -> bool:
        return self._store.exists(layout.spec(self.id, str(name))) and Run._at(self._store, (self.id, str(name))).is_in_namespace()


def _fits(row: Row, wanted: Sequence[str], state: str | None, first: float | None, last: float | None) -> bool:
    if state is not None and (row.state or "running") != state:
        return False
    if row.started_at is None and not (first is None and last is None):
        return False
    began = row.started_at or 0.0
    return (first is None or began >= first) and (last is None or began <= last) and set(wanted) <= row.all_tags


# ---- runs -------------------------------------------------------------------------------------------------------------------


class Run(Object):
    """One run: ``Run("TrainFlow/12")``. Iterated, its steps, in the order of the flow."""

    _depth = 2

    def _look(self) -> None:
        flow, run = self._parts
        if not self._store.exists(layout.spec(flow, run)):
            known = [name for name in Glance(self._store, flow).ids() if name != run]
            if not known:
                raise place.not_found("flow", flow, self._store.names("flows"), "in this store")
            raise place.not_found("run", run, known, f"of {flow}")
        if not self.is_in_namespace():
            raise NamespaceMismatch(
                f"{self!r} is not in the namespace {place.get_namespace()!r}; it is of {self._record.spec.user}. "
                f"namespace('user:{self._record.spec.user}') shows it, namespace(None) all runs."
            )

    # ---- how it stands ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``running`` (until its log has an end, also if its process is gone: then `runs` says ``open``), ``succeeded``, ``failed`` or ``stopped``."""
        return self._record.state.ended or "running"

    @property
    def successful(self) -> bool:
        return self.state == "succeeded"

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state != "running"

    @property
    def created_at(self) -> datetime | None:
        started = self._record.spec.started_at
        return times.local(self._record.state.started_at if started is None else started)

    @property
    def finished_at(self) -> datetime | None:
        return times.local(self._record.state.ended_at)

    @property
    def trigger(self) -> None:
        """What started it, if that was a signal; runs of this machine have none."""
        return None

    @property
    def origin_pathspec(self) -> str | None:
        """Of a resumed run: the run that it resumes."""
        origin = self._record.spec.origin
        return f"{self._parts[0]}/{origin}" if origin else None

    @property
    def code(self) -> code.Code:
        """The text of what ran, as it was then."""
        return code.Code(self._record)

    @property
    def parameters(self) -> Data:
        """The parameters of the run: ``run.parameters.alpha``."""
        return Data(
            {name: Artifact._of(self, (*self._parts, "", "", name), entry) for name, entry in self._record.spec.params.items()}, repr(self)
        )

    # ---- what it made -------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> Children[Step]:
        """Its steps of which a task was begun, in the order of the flow."""
        return Children(self._child(name) for name in self._ids())

    @property
    def end_task(self) -> Task | None:
        """The task of the last step: of a class, of the step after which it ends; of a notebook, of the one that nothing comes after."""
        ends = _last_steps(self._record)
        found = self._record.tasks(ends[0]) if len(ends) == 1 else []
        return Task._at(self._store, (*self._parts, ends[0], layout.task_key(found[0].task.index))) if len(found) == 1 else None

    @property
    def data(self) -> Data:
        """The artifacts of the last step of a class; of a notebook, all that its steps made outside of fan-outs, as its cells would see it."""
        if any(step.method for step in self._record.spec.steps):
            last = self.end_task
            return last.data if last is not None else Data({}, repr(self), "its last step has not run")
        found: dict[str, Artifact] = {}
        for step in self._record.spec.steps:
            task = self._record.task(step.name, ()) if not step.scope else None
            if task is not None:
                found |= Task._of(self, task).data._artifacts
        return Data(found, repr(self))

    def _ids(self) -> list[str]:
        return self._record.begun()

    def _child(self, name: str) -> Step:
        known = self._ids()
        if name in known:
            return Step._at(self._store, (*self._parts, name))
        if name in self._record.steps:
            raise NotFound(f"no task of step {name!r} was begun in {self!r}, which is {self.state}. Begun: {', '.join(known) or 'none'}.")
        raise place.not_found("step", name, list(self._record.steps), f"in {self!r}")

    # ---- tags ---------------------------------------------------------------------------------------------------------------

    def add_tag(self, tag: str | Iterable[str]) -> None:
        """Like `add_tags`."""
        self.replace_tags((), tag)

    def add_tags(self, given: Iterable[str]) -> None:
        """Add tags, at most 50 in all, each a text of at most 500 characters. One that is there already stays as it is."""
        self.replace_tags((), given)

    def remove_tag(self, tag: str | Iterable[str]) -> None:
        """Like `remove_tags`."""
        self.replace_tags(tag, ())

    def remove_tags(self, given: Iterable[str]) -> None:
        """Remove tags; of one that is not there a warning tells. Raises DefinitionError for one of flowbook's own."""
        self.replace_tags(given, ())

    def replace_tag(self, old: str | Iterable[str], new: str | Iterable[str]) -> None:
        """Like `replace_tags`."""
        self.replace_tags(old, new)

    def replace_tags(self, old: Iterable[str], new: Iterable[str]) -> None:
        """Remove some and add others, in one step. Others may change the tags at the same time: no change is lost."""
        gone, present = tags.checked(old), self.tags if old else frozenset()
        for tag in gone:
            if tag not in present:
                near = difflib.get_close_matches(tag, present, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                warnings.warn(f"{self!r} has no tag {tag!r}.{hint}", stacklevel=3)
        tags.change(self._store, *self._parts, add=new, remove=gone, system=self.system_tags, user=place.user())

    # ---- removing -----------------------------------------------------------------------------------------------------------

    def delete(self, *, force: bool = False) -> None:
        """Remove the run from the store; `gc` removes later what only it referred to.

        Raises RunBusy while it runs, and if other runs took results from it. `force` removes also a run that was left open by a
        killed engine, and one from which others took results (they keep their values, and lose what the tasks printed).
        """
        remove.remove_run(self._store, *self._parts, force=force)


def _last_steps(known: Record) -> list[str]:
    methods = [step.name for step in known.spec.steps if step.method]
    if methods:
        return [step.name for step in known.spec.steps if step.method and (step.next is None or not step.next.steps)]
    before = {first for first, _ in known.edges}
    names = [step.name for step in known.spec.steps if step.name not in before]
    return ["end"] if "end" in names else names


# ---- steps ------------------------------------------------------------------------------------------------------------------


class Step(Object):
    """One step of a run: ``Step("TrainFlow/12/train")``. Iterated, its tasks, in the order of the items."""

    _depth = 3

    def _look(self) -> None:
        Run("/".join(self._parts[:2]), store=self._store)._child(self.id)

    @property
    def _run(self) -> Run:
        return Run._at(self._store, self._parts[:2])

    @property
    def _spec(self) -> StepSpec:
        return self._record.steps[self.id]

    @property
    def task(self) -> Task | None:
        """Its task; of several, the first."""
        found = self._record.tasks(self.id)
        return Task._of(self, found[0]) if found else None

    def tasks(self, *wanted: str) -> Children[Task]:
        """Its tasks, in the order of the items; with tags, those whose run has them all."""
        return Children(Task._of(self, found) for found in self._record.tasks(self.id))(*wanted)

    def control_tasks(self, *wanted: str) -> Children[Task]:
        """Metaflow's name for the first tasks of gangs: without gangs, all tasks."""
        return self.tasks(*wanted)

    @property
    def state(self) -> str:
        """Of its tasks together: ``failed`` if one failed, ``running`` if one is not done, ``stopped``, ``succeeded``."""
        states = {found.state for found in self._record.tasks(self.id)}
        order = ("failed", "launched", "backoff", "ready", "waiting", "stopped", "succeeded", "skipped")
        first = next((state for state in order if state in states), "running")
        return "running" if first in order[1:5] else first

    @property
    def created_at(self) -> datetime | None:
        """When its first task was started, or taken over from another run."""
        began = (found.ended_at if found.origin else found.launched_at for found in self._record.tasks(self.id))
        return times.local(min((at for at in began if at is not None), default=None))

    @property
    def finished_at(self) -> datetime | None:
        """When its last task ended; None while one runs."""
        found = self._record.tasks(self.id)
        ended = all(map(record.is_over, found))
        return times.local(max((each.ended_at for each in found if each.ended_at is not None), default=None)) if ended else None

    @property
    def parent_steps(self) -> Iterator[Step]:
        """The steps right before it that have run."""
        begun = self._run._ids()
        names = dict.fromkeys(first for first, after in self._record.edges if after == self.id)
        return (Step._at(self._store, (*self._parts[:2], name)) for name in names if name in begun)

    @property
    def child_steps(self) -> Iterator[Step]:
        """The steps right after it that have run."""
        begun = self._run._ids()
        names = dict.fromkeys(after for first, after in self._record.edges if first == self.id)
        return (Step._at(self._store, (*self._parts[:2], name)) for name in names if name in begun)

    @property
    def environment_info(self) -> dict[str, Json]:
        """What is known of where it ran: Python, user, notebook or file, the packages that were imported."""
        return _environment(self._record)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks())

    def __len__(self) -> int:
        return len(self._record.tasks(self.id))

    def __contains__(self, name: object) -> bool:
        return _task_index(str(name), self._spec) is not None and Task._at(self._store, (*self._parts, str(name)))._is_there()

    def _ids(self) -> list[str]:
        return [layout.task_key(found.task.index) for found in self._record.tasks(self.id)]

    def _child(self, name: str) -> Task:
        if name in self:
            return Task._at(self._store, (*self._parts, name), self._attempt)
        raise place.not_found("task", name, self._ids(), f"in {self!r}")


def _task_index(name: str, step: StepSpec) -> layout.Index | None:
    """The index that a task's name stands for, None if it is no name of a task of this step."""
    parts = name.split(".")
    if not all(part.isdecimal() for part in parts):
        return None
    index = tuple(map(int, parts)) if step.scope else ()
    return index if layout.task_key(index) == name and len(index) == len(step.scope) else None


def _environment(known: Record) -> dict[str, Json]:
    spec = known.spec
    found = {
        "type": "local",
        "python_version": spec.python,
        "username": spec.user,
        "flowbook_version": known.raw.get("flowbook"),
        "script": spec.program or spec.notebook,
        "imports": list(spec.imports),
        "local_modules": sorted(spec.modules),
    }
    return {name: value for name, value in found.items() if value}


# ---- tasks ------------------------------------------------------------------------------------------------------------------


class Metadata(NamedTuple):
    """One fact about a task."""

    name: str
    value: Json
    created_at: datetime | None
    type: str
    task: Task


class Task(Object):
    """One task: ``Task("TrainFlow/12/train/2")``; with `attempt`, what that attempt printed. Iterated, its artifacts.

    The last part is ``0`` for the task of a step outside of fan-outs, else the place of its item: ``2``, nested ``2.5``.
    """

    _depth = 4

    @classmethod
    def _of(cls, beside: Object, found: TaskState) -> Task:
        return cls._at(beside._store, (*beside._parts[:2], found.task.step, layout.task_key(found.task.index)), beside._attempt)

    def _look(self) -> None:
        Step("/".join(self._parts[:3]), store=self._store)._child(self.id)
        last = self._known.attempt
        if self._attempt is not None and not 0 <= self._attempt <= last:
            raise place.not_found("attempt", str(self._attempt), [str(n) for n in range(last + 1)], f"of {self.pathspec}")

    @property
    def _index(self) -> layout.Index:
        """In a fan-out ``0`` is its first item, outside of one nothing. Raises NotFound."""
        spec = self._record.steps.get(self._parts[2])
        index = _task_index(self._parts[3], spec) if spec is not None else None
        if index is None:
            raise NotFound(f"there is no {self!r}")
        return index

    def _is_there(self) -> bool:
        return self._record.task(self._parts[2], self._index) is not None

    @property
    def _known(self) -> TaskState:
        """Raises NotFound for a task that was not begun, or is gone."""
        try:
            found = self._record.task(self._parts[2], self._index)
        except StoreMissing:
            found = None
        if found is None:
            raise NotFound(f"there is no {self!r}; it may have been removed")
        return found

    # ---- how it went --------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``running`` (also between two attempts), ``succeeded``, ``failed``, ``skipped`` or ``stopped``."""
        found = self._known.state
        return "running" if found in ("launched", "backoff", "ready", "waiting") else found

    @property
    def successful(self) -> bool:
        """Whether it made its artifacts; also if --catch or @catch caught its error."""
        return self._is_last and self.state == "succeeded"

    @property
    def finished(self) -> bool:
        return not self._is_last or self.state != "running"

    @property
    def _is_last(self) -> bool:
        """Whether it is meant as a whole, or its last attempt is."""
        return self._attempt is None or self._attempt == self._known.attempt

    @property
    def exception(self) -> TaskError | None:
        """Why it failed, or the error that was caught: type, message, line, traceback. None if it went well."""
        found = self._known
        caught = (self._commit or {}).get("caught") if found.state == "succeeded" else found.error
        return TaskError.from_json(caught) if caught else None

    @property
    def created_at(self) -> datetime | None:
        """When its last attempt was started; of a result that was taken over, when it was made."""
        found = self._known
        return times.local(found.launched_at if found.origin is None else found.made_at)

    @property
    def finished_at(self) -> datetime | None:
        found = self._known
        return times.local(found.ended_at) if record.is_over(found) else None

    @property
    def current_attempt(self) -> int:
        """The number of the last attempt, from 0; or the attempt that was asked for."""
        return self._known.attempt if self._attempt is None else self._attempt

    @property
    def index(self) -> int | None:
        """The place of its item in the innermost fan-out; None outside of one."""
        return self._index[-1] if self._index else None

    @property
    def runtime_name(self) -> str:
        """Where it ran: ``local``."""
        return "local"

    @property
    def code(self) -> code.Code:
        """The text of what ran, as it was then; `flowspec` is that of this step, where it is a cell."""
        return code.Code(self._record, self._parts[2])

    @property
    def environment_info(self) -> dict[str, Json]:
        return _environment(self._record)

    @property
    def origin_pathspec(self) -> str | None:
        """Where the result was made, if it was taken over from another run."""
        found = self._known
        return f"{self._parts[0]}/{found.origin}/{self._parts[2]}/{layout.task_key(found.index_there)}" if found.origin else None

    @property
    def metadata(self) -> list[Metadata]:
        """What is known of how it ran, in the order in which it is asked for."""
        return [Metadata(name, value, self.created_at, name, self) for name, value in self.metadata_dict.items()]

    @property
    def metadata_dict(self) -> dict[str, Json]:
        """attempt, item, seconds by phase, peak memory (10**6 bytes), CPU seconds, what it was taken over from, notes and warnings."""
        found, commit = self._known, self._commit or {}
        facts: dict[str, Json] = {"attempt": self.current_attempt, "attempt_ok": self.successful, "runtime": self.runtime_name}
        facts |= {f"seconds-{phase}": seconds for phase, seconds in (commit.get("seconds") or {}).items()}
        facts |= {"item": found.item, "peak_mb": found.peak_mb or commit.get("peak_mb"), "cpu_s": found.cpu_s or commit.get("cpu_s")}
        facts |= {"origin-run-id": found.origin, "notes": list(found.notes), "warnings": list(found.warnings), "why": found.why}
        facts |= {"user": self._record.spec.user, "python_version": self._record.spec.python}
        return {name: value for name, value in facts.items() if value not in (None, [], "")}

    # ---- neighbours ---------------------------------------------------------------------------------------------------------

    @property
    def parent_tasks(self) -> Iterator[Task]:
        """The tasks right before it: of a join, all that it joins."""
        return (Task._of(self, found) for found in self._record.before(self._parts[2], self._index))

    @property
    def child_tasks(self) -> Iterator[Task]:
        """The tasks right after it: of a step before a fan-out, one for each item."""
        return (Task._of(self, found) for found in self._record.after(self._parts[2], self._index))

    # ---- what it printed ----------------------------------------------------------------------------------------------------

    @property
    def stdout(self) -> str:
        """All that it printed, on stdout and stderr, in the order in which it came. Empty while its attempt runs."""
        run, index, last = self._record.state.printed_by(self._known.task)
        attempt = last if self._attempt is None else self._attempt
        try:
            return self._store.get(layout.output(self._parts[0], run, self._parts[2], index, attempt)).decode("utf-8", "replace")
        except StoreMissing:
            return ""

    @property
    def stderr(self) -> str:
        """Empty: both streams are kept as one, so that their lines stay in order. See `stdout`."""
        return ""

    def loglines(
        self, stream: str = "stdout", as_unicode: bool = True, meta_dict: Mapping[str, Json] | None = None
    ) -> Iterator[tuple[None, Any]]:
        """(None, line) of what it printed; lines have no times. `stream` is "stdout" or "stderr", which is empty.

        Raises DefinitionError for another stream.
        """
        if stream not in ("stdout", "stderr"):
            raise DefinitionError(
                Finding("loglines", f"there is no stream {stream!r}", "Streams are 'stdout', which holds both, and 'stderr'.")
            )
        text = self.stdout if stream == "stdout" else ""
        return ((None, line if as_unicode else line.encode()) for line in text.splitlines())

    # ---- artifacts ----------------------------------------------------------------------------------------------------------

    @property
    def _commit(self) -> dict[str, Json] | None:
        return self._record.commit(self._parts[2], self._index) if self._is_last and self._known.state == "succeeded" else None

    @property
    def data(self) -> Data:
        """The values of its artifacts: ``task.data.model`` loads that one."""
        return Data(self._artifacts(), repr(self), "" if self.successful else f"it is {self.state}", self._unsaved)

    @property
    def artifacts(self) -> Artifacts:
        """Its artifacts without their values: ``task.artifacts.model.size``."""
        return Artifacts(self._artifacts(), repr(self), "" if self.successful else f"it is {self.state}", self._unsaved)

    @property
    def _unsaved(self) -> Mapping[str, str]:
        found: Mapping[str, str] = (self._commit or {}).get("unsaved") or {}
        return found

    def _artifacts(self) -> dict[str, Artifact]:
        if not self.successful:
            return {}
        entries = self._record.entries(self._parts[2], self._index)
        return {name: Artifact._of(self, (*self._parts, name), entry) for name, entry in entries.items()}

    def __iter__(self) -> Iterator[Artifact]:
        return iter(self.artifacts)

    def _ids(self) -> list[str]:
        return [name for name in self._artifacts() if not name.startswith("_")]

    def _child(self, name: str) -> Artifact:
        found = self._artifacts().get(name)
        if found is None:
            raise NotFound(self.artifacts._absent(name))
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._artifacts()


# ---- artifacts --------------------------------------------------------------------------------------------------------------


class Artifact(Object):
    """One artifact: ``Artifact("TrainFlow/12/train/2/model")``. Only `data` reads the value; all else stands beside it."""

    _depth = 5
    _entry_known: Mapping[str, Json] | None = None

    @classmethod
    def _of(cls, beside: Object, parts: Sequence[str], entry: Mapping[str, Json]) -> Artifact:
        found = cls._at(beside._store, parts, beside._attempt)
        found._entry_known = entry
        return found

    def _look(self) -> None:
        Task("/".join(self._parts[:4]), self._attempt, store=self._store)._child(self.id)

    @property
    def _entry(self) -> Mapping[str, Json]:
        if self._entry_known is None:
            self._entry_known = self.parent._child(self.id)._entry
        return self._entry_known

    @property
    def data(self) -> Any:
        """The value, loaded anew each time. An array is mapped, not read. Raises ArtifactError if it cannot be loaded here."""
        parts = [part for part in self._parts if part]
        return load_value(self._record.reader, self._entry, "/".join(parts))

    def rows(self, start: int | None = None, stop: int | None = None) -> Any:
        """``data[start:stop]`` of a numpy array, of which only these rows are read: from a bucket too. Raises ArtifactError for all else."""
        return codec.rows(self._store, self._entry, start, stop, name="/".join(part for part in self._parts if part))

    @property
    def sha(self) -> str:
        """sha256 in hex of its encoded content."""
        entry = self._entry
        if "blob" in entry:
            return str(entry["blob"])
        content = base64.b64decode(entry["inline"]) if "inline" in entry else json.dumps(entry.get("json", entry.get("module"))).encode()
        return hashlib.sha256(content).hexdigest()

    @property
    def size(self) -> int | None:
        """Bytes; of a module None."""
        found: int | None = self._entry.get("size")
        return found

    @property
    def type(self) -> str:
        """``numpy.ndarray``, ``int``, ``Model``"""
        return str(self._entry.get("type", ""))

    @property
    def shape(self) -> tuple[int, ...] | None:
        found = self._entry.get("shape")
        return tuple(found) if found is not None else None

    @property
    def dtype(self) -> str | None:
        found: str | None = self._entry.get("dtype")
        return found

    @property
    def preview(self) -> str:
        """A short repr, made when it was saved; empty where the setting `previews` says so."""
        return str(preview.shown(self._entry).get("repr", ""))

    @property
    def created_at(self) -> datetime | None:
        return self.finished_at

    @property
    def finished_at(self) -> datetime | None:
        """When its task ended; of a parameter as such, when the run began."""
        found = self.parent if self._parts[3] else Run._at(self._store, self._parts[:2])
        return found.finished_at if isinstance(found, Task) else found.created_at if isinstance(found, Run) else None
