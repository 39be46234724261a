"""Which committed task of another run may stand for one of this run: a dict from keys to places, and why it has none.

Keys are computed by state.py from the log. Each run leaves an index of its own, `run.keys.json`, which is a hint: where it is missing
(a killed engine, an open run) the log says the same. The engine's runs of one flow share one Cache, which learns of each result at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowbook.engine import events
from flowbook.engine.events import Index, Task
from flowbook.engine.state import RunState, fold
from flowbook.errors import StoreError
from flowbook.spec.flow import Spec, Step, from_json
from flowbook.store import journal, layout
from flowbook.store.base import Store

Json = Any

RUNS = 20  # of the flow, the newest; older ones are not kept for ever either
MOST_NAMED = 3  # changed things named in one explanation
ELSEWHERE = "the working folder"  # a part of every key that a notebook makes, and of no other


@dataclass(frozen=True, slots=True)
class Place:
    """Where a COMMIT is, and when its task ended (seconds since the epoch, by the clock of its engine)."""

    run: str
    step: str
    index: Index
    part: str
    at: float


@dataclass(frozen=True)
class Before:
    """How a step went in an earlier run: what its key was made of, and what each of its tasks read."""

    run: str
    step: Step
    read: Mapping[tuple[Index, str], Mapping[str, str]]


class Cache:
    """The results of one flow. `refresh` reads the store and belongs into a thread; the rest is quick."""

    def __init__(self, store: Store, flow: str) -> None:
        self._store, self._flow = store, flow
        self._places: dict[str, Place] = {}
        self._indexes: dict[str, dict[str, Json]] = {}  # run → its index, of the runs that were read
        self._lock = threading.Lock()

    def refresh(self, own: str, origin: str | None, steps: Iterable[Step]) -> tuple[dict[str, Place], dict[str, Before]]:
        """Take in the runs that ended since. Gives the places of the origin, and for each step its newest run before this one."""
        with self._lock:
            runs = [run for run in _run_ids(self._store, self._flow) if run != own]
            recent = runs[-RUNS:]
            for run in recent:
                self._take(run)
            if origin is not None:
                self._take(origin)
            return self._places_of(origin) if origin is not None else {}, self._before(list(reversed(recent)), steps)

    def find(self, key: str) -> Place | None:
        return self._places.get(key)

    def add(self, key: str, place: Place) -> None:
        self._places[key] = place

    def forget(self, key: str) -> None:
        self._places.pop(key, None)

    def _take(self, run: str) -> None:
        if run in self._indexes:
            return
        index, final = read_index(self._store, self._flow, run)
        if final:
            self._indexes[run] = index
        for key, place in _places(run, index):
            known = self._places.get(key)
            if known is None or known.at <= place.at:
                self._places[key] = place

    def _places_of(self, run: str) -> dict[str, Place]:
        index = self._indexes.get(run) or read_index(self._store, self._flow, run)[0]
        return dict(_places(run, index))

    def _before(self, runs: list[str], steps: Iterable[Step]) -> dict[str, Before]:
        found: dict[str, Before] = {}
        missing = {step.name for step in steps}
        for run in runs[:5]:
            if not missing:
                break
            try:
                spec = _spec(self._store, self._flow, run)
                index = self._indexes.get(run, {})
                for step in spec.steps:
                    if step.name in missing:
                        read = {(tuple(e[1]), e[2]): e[4] for e in index.values() if e[0] == step.name}
                        found[step.name] = Before(run, step, read)
                missing -= found.keys()
            except Exception:
                continue
        return found


def index_of(state: RunState) -> Iterator[tuple[str, Json]]:
    """The index of a run: each KEY and [step, index, part, at, keys of what it read]."""
    for task, known in state.tasks.items():
        if known.state == "succeeded" and not known.caught and (keyed := state.key(task)) is not None:
            yield keyed[0], [task.step, list(task.index), task.part, known.made_at or known.ended_at or 0.0, keyed[1]]


def write_index(store: Store, state: RunState) -> None:
    def text() -> Iterator[bytes]:  # piece by piece: of a wide run it is megabytes
        before = b'{"v":1,"tasks":{'
        for key, entry in index_of(state):
            yield before + f'"{key}":'.encode() + json.dumps(entry, separators=(",", ":")).encode()
            before = b","
        yield b"}}" if before == b"," else before + b"}}"

    store.put(layout.keys(state.spec.flow, state.spec.run), text())


def read_index(store: Store, flow: str, run: str) -> tuple[dict[str, Json], bool]:
    """The index of a run, and whether it will not change any more. What cannot be read is as good as empty."""
    try:
        data = json.loads(store.get(layout.keys(flow, run)))
        tasks = data["tasks"]
        if all(isinstance(entry, list) and len(entry) == 5 and isinstance(entry[4], dict) for entry in tasks.values()):
            return tasks, True
    except (StoreError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # not written yet, or damaged: the log says the same
    try:
        state = fold(_spec(store, flow, run), log_of(store, flow, run))
        return dict(index_of(state)), state.ended is not None
    except Exception:  # a damaged run has no results that could be taken
        return {}, False


def log_of(store: Store, flow: str, run: str) -> list[events.Event]:
    """All events of a run. Raises StoreError."""
    return [event for _, batch in journal.read(store, flow, run) for event in batch]


def why_missed(step: Step, task: Task, read: Mapping[str, str], before: Before | None) -> str:
    """What kept the result of an earlier run from being taken, in a few words; "" if there is nothing to compare with."""
    if before is None:
        return ""
    if step.options.no_cache:
        return "--no-cache"
    run = f"since run {before.run}"
    mine, theirs = (step.parts, before.step.parts) if task.part == "body" else ({"": step.plan_key}, {"": before.step.plan_key})
    changed = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    if "life" in changed:
        return (
            "its last result is of an earlier kernel, and nothing it reads could tell that it still holds, so it runs once in each kernel"
        )
    if changed and task.part == "plan":
        return f"its expression changed {run}"
    both = [name for name in changed if name in mine and name in theirs]
    if both:
        return f"{_few(both)} changed {run}"
    if ELSEWHERE in changed:
        return f"run {before.run} was started in another way, from a file or from a notebook"
    if changed:
        if changed[0] in mine:
            return f"it uses {_few(changed)}, which run {before.run} did not"
        return f"it no longer uses {_few(changed)}, as run {before.run} did"
    known = before.read.get((task.index, task.part))
    if known is None:
        return f"run {before.run} has no result of it"
    inputs = [name for name in {**known, **read} if known.get(name) != read.get(name)]
    if inputs:
        return f"{', '.join(f'`{name}`' for name in inputs[:MOST_NAMED])} changed {run}"
    return f"its item changed {run}" if task.index else ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def _places(run: str, index: Mapping[str, Json]) -> Iterable[tuple[str, Place]]:
    for key, entry in index.items():
        try:
            step, where, part, at, _ = entry
            yield key, Place(run, step, tuple(where), part, float(at))
        except (TypeError, ValueError):
            continue


def _spec(store: Store, flow: str, run: str) -> Spec:
    spec = from_json(Spec, json.loads(store.get(layout.spec(flow, run))))
    assert isinstance(spec, Spec)
    return spec


def _run_ids(store: Store, flow: str) -> list[str]:
    """The runs of a flow, oldest first."""
    return sorted(store.names(layout.flow_prefix(flow).rstrip("/")), key=layout.run_order)
