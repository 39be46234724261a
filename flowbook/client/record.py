"""One run as the store has it: its spec, and the state that its log leads to, read when they are asked for.

The log of an open run grows: every question lists it, and only what is new is read and folded. An ended run is read once. No
engine is asked; what only it knows (what a task prints while it runs) is not here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from flowbook.client import values
from flowbook.client.place import NotFound
from flowbook.engine.events import Task as TaskId
from flowbook.engine.state import ENDED, RunState, TaskState
from flowbook.errors import EngineError, StoreError, StoreMissing
from flowbook.spec import graph
from flowbook.spec.flow import Spec, Step, from_json, is_token
from flowbook.store import journal, layout, results, trust
from flowbook.store.base import Store

Json = Any
Index = layout.Index


class Record:
    """Raises NotFound if the run is gone, StoreError, naming the key, for what is damaged."""

    def __init__(self, store: Store, flow: str, run: str) -> None:
        self.store, self.flow, self.run = store, flow, run
        self._folded: RunState | None = None
        self._read: str = ""  # the last key of the log that was folded
        self._by_step: dict[str, list[TaskState]] | None = None
        self._lock = threading.RLock()

    # ---- the spec -----------------------------------------------------------------------------------------------------------

    @cached_property
    def raw(self) -> dict[str, Json]:
        """`run.json` as it stands."""
        key = layout.spec(self.flow, self.run)
        try:
            found = trust.read(self.store, key, self.store.get(key))
        except StoreMissing:
            raise NotFound(f"run {self.run} of {self.flow} is not in the store any more") from None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError(f"{key} is damaged: it does not hold the spec of a run.")
        return found

    @cached_property
    def spec(self) -> Spec:
        raw = self.raw
        try:
            found = from_json(Spec, raw)
        except (TypeError, ValueError, KeyError, AttributeError):
            raise StoreError(f"{layout.spec(self.flow, self.run)} is damaged: it does not hold the spec of a run.") from None
        assert isinstance(found, Spec)
        return found

    @cached_property
    def steps(self) -> dict[str, Step]:
        return {step.name: step for step in self.spec.steps}

    @cached_property
    def edges(self) -> list[tuple[str, str]]:
        """(step, step after it), as the graph of the flow says; a method hands over, step cells read."""
        found: dict[tuple[str, str], None] = {}
        for step in self.spec.steps:
            found |= dict.fromkeys((step.name, after) for after in step.next.steps if after in self.steps) if step.next else {}
        for before, after, names in graph.edges(self.spec.steps):
            method = self.steps[after].method is not None
            if before in self.steps and before != after and (not method or any(map(is_token, names))):
                found[before, after] = None
        return list(found)

    # ---- the log ------------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """What the log says by now."""
        with self._lock:
            state = self._folded or self._new_state()
            if self._folded is None or state.ended is None:
                self._fold(state)
            self._folded = state
            return state

    def _new_state(self) -> RunState:
        spec = self.spec
        try:
            return RunState(spec)
        except (KeyError, ValueError) as error:
            raise StoreError(f"{layout.spec(self.flow, self.run)} is damaged: its steps do not fit together ({error}).") from error

    def _fold(self, state: RunState) -> None:
        for key, batch in journal.read(self.store, self.flow, self.run, self._read):
            try:
                for event in batch:
                    state.apply(event)
            except (EngineError, KeyError, TypeError, ValueError) as error:
                raise StoreError(f"{key} is damaged: {error}") from error
            self._read = key

    def task(self, step: str, index: Index) -> TaskState | None:
        """A task that was at least begun, or taken over from another run."""
        found = self.state.tasks.get(TaskId(step, index))
        return found if found is not None and _begun(found) else None

    def tasks(self, step: str) -> list[TaskState]:
        """The tasks of a step that were begun, in the order of the items."""
        return self._grouped().get(step, [])

    def begun(self) -> list[str]:
        """The steps of which a task was begun, in the order of the flow."""
        found = self._grouped()
        return [step.name for step in self.spec.steps if step.name in found]

    def _grouped(self) -> dict[str, list[TaskState]]:
        state = self.state
        if self._by_step is not None:
            return self._by_step
        found: dict[str, list[TaskState]] = {}
        for task, each in state.tasks.items():
            if task.part == "body" and _begun(each):
                found.setdefault(task.step, []).append(each)
        found = {name: sorted(tasks, key=lambda each: each.task.index) for name, tasks in found.items()}
        self._by_step = found if state.ended is not None else None  # an open run has more of them soon
        return found

    # ---- what tasks made ----------------------------------------------------------------------------------------------------

    @cached_property
    def reader(self) -> results.Reader:
        found = results.Reader(self.store, self.flow, values.Space(self.store, self.spec, self._commits))
        found.known(self.flow, self.run, self.raw)
        return found

    def _commits(self, step: str) -> Iterator[Mapping[str, Json]]:
        for found in self.tasks(step):
            if found.state == "succeeded" and (commit := self.commit(step, found.task.index)) is not None:
                yield commit

    def commit(self, step: str, index: Index) -> dict[str, Json] | None:
        return self.reader.commit(self.run, step, index)

    def entry(self, step: str, index: Index, name: str) -> Mapping[str, Json] | None:
        """The entry of an artifact of a task that succeeded: made, inherited, a parameter, or an item. Raises NoArtifact for one not saved."""
        found = self.reader.visible(self.flow, self.run, step, index, name)
        return found if found is not None else self.reader.outer_item(self.flow, self.run, step, index, name)

    def entries(self, step: str, index: Index) -> dict[str, Mapping[str, Json]]:
        """name → entry of all artifacts of a task."""
        found = self.reader.visible_names(self.flow, self.run, step, index)
        for outer in self.steps[step].scope if step in self.steps else ():
            foreach = self.steps[outer].options.foreach if outer in self.steps else None
            for name in foreach.names if foreach is not None else ():
                if name not in found and (entry := self.reader.outer_item(self.flow, self.run, step, index, name)) is not None:
                    found[name] = entry
        return found

    # ---- neighbours ---------------------------------------------------------------------------------------------------------

    def before(self, step: str, index: Index) -> Iterator[TaskState]:
        """The tasks that a task comes after."""
        for parent in dict.fromkeys(first for first, after in self.edges if after == step):
            yield from (found for found in self._beside(parent, step, index) if self._hands_over(found, step))

    def after(self, step: str, index: Index) -> Iterator[TaskState]:
        """The tasks that come after a task."""
        own = self.task(step, index)
        for child in dict.fromkeys(after for first, after in self.edges if first == step):
            if own is not None and self._hands_over(own, child):
                yield from self._beside(child, step, index)

    def _beside(self, wanted: str, step: str, index: Index) -> Iterator[TaskState]:
        """The tasks of a step in the same items as the task `index` of another, as far as both are in the same fan-outs."""
        scopes = zip(self.steps[wanted].scope, self.steps[step].scope, strict=False)
        shared = next((n for n, (one, other) in enumerate(scopes) if one != other), min(len(self.steps[wanted].scope), len(index)))
        if shared == len(self.steps[wanted].scope):
            one = self.task(wanted, index[:shared])
            return iter([one] if one is not None else [])
        return (found for found in self.tasks(wanted) if found.task.index[:shared] == index[:shared])

    def _hands_over(self, found: TaskState, step: str) -> bool:
        """Whether a task went on to a step: of a switch, only one case did."""
        own = self.steps[found.task.step]
        if own.next is None or own.next.kind != "switch" or found.state != "succeeded":
            return True
        return step in (self.commit(found.task.step, found.task.index) or {}).get("next", ())


def _begun(found: TaskState) -> bool:
    return found.attempts > 0 or found.origin is not None


def is_over(found: TaskState) -> bool:
    """Whether nothing more will come of a task. One that waits for its next attempt has an end, but is not over."""
    return found.done or found.state in ENDED


_KEPT = 32
_records: dict[tuple[str, str, str], Record] = {}


def record_of(store: Store, flow: str, run: str) -> Record:
    """The record of a run; that of the last runs that were looked at is kept."""
    key = (repr(store), flow, run)
    found = _records.pop(key, None)
    if found is None or (found.store is not store and repr(found.store) != repr(store)):
        found = Record(store, flow, run)
    _records[key] = found
    while len(_records) > _KEPT:
        _records.pop(next(iter(_records)), None)
    return found


def forget(store: Store, flow: str, run: str) -> None:
    _records.pop((repr(store), flow, run), None)
