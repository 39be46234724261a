"""The facts of a run's log as values: one function an event, named as the event is, in the past tense.

An event is a plain dict, exactly as it stands in the log (docs/internals.md, "The log"). These functions are the only place
that spells its fields; parts that hold their default are left out. Nothing here decides anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flowbook.spec.flow import task_name
from flowbook.store import journal

Json = Any
Event = dict[str, Json]
Index = tuple[int, ...]

KINDS = ("run_started", "reused", "launched", "succeeded", "failed", "lost", "skipped", "stopped", "stop_requested", "run_ended")
DIED = ("oom", "timeout", "killed", "exit")  # reasons with which a worker cannot commit by itself what --catch caught


@dataclass(frozen=True, slots=True)
class Task:
    """One step at one place of the fan-out. `part` is "plan" for the small task that evaluates --foreach and --when."""

    step: str
    index: Index = ()
    part: str = "body"

    def __str__(self) -> str:
        """How people write it: ``train[2]``, ``the plan of train``."""
        name = task_name(self.step, self.index)
        return name if self.part == "body" else f"the plan of {name}"


def task_of(event: Mapping[str, Json]) -> Task:
    return Task(event["step"], tuple(event.get("index") or ()), event.get("part") or "body")


def run_started(at: float) -> Event:
    return {"e": "run_started", "at": at}


def reused(task: Task, at: float, *, run: str, index: Index, made_at: float | None = None, attempt: int = 0, **facts: Json) -> Event:
    """The COMMIT of another run was taken over: that of `run` at `index`, made by its `attempt`. `facts`: missing, plans, keys."""
    elsewhere = list(index) if index != task.index else None
    return _of(task, "reused", at, run=run, from_index=elsewhere, made_at=made_at, attempt=attempt or None, **facts)


def launched(task: Task, at: float, attempt: int = 0, notes: Iterable[str] = (), why: str = "") -> Event:
    """`why`: what kept the cache from answering."""
    return {**_of(task, "launched", at, notes=list(notes), why=why or None), "attempt": attempt}


def succeeded(task: Task, at: float, attempt: int = 0, **facts: Json) -> Event:
    """`facts`: missing, plans, caught, warnings, seconds, peak_mb, cpu_s, keys; `began`, of a pod: phase → seconds after the launch."""
    return {**_of(task, "succeeded", at, **facts), "attempt": attempt}


def lost(task: Task, at: float, attempt: int, message: str) -> Event:
    """flowbook itself lost the attempt; it is no failure of the task."""
    return {**_of(task, "lost", at), "attempt": attempt, "message": message}


def failed(task: Task, at: float, attempt: int = 0, *, error: Json, **facts: Json) -> Event:
    """`facts`: began."""
    return {**_of(task, "failed", at, **facts), "attempt": attempt, "error": error}


def skipped(task: Task, at: float, why: str) -> Event:
    return _of(task, "skipped", at, why=why)


def stopped(task: Task, at: float, **facts: Json) -> Event:
    """`facts`: began."""
    return _of(task, "stopped", at, **facts)


def stop_requested(at: float, step: str | None = None, index: Iterable[int] | None = None, request: str | None = None) -> Event:
    """`request` is the key of the object that asked, so that an engine which goes on with the log does not obey it twice."""
    event: Event = {"e": "stop_requested", "at": at, "step": step, "index": None if index is None else list(index)}
    return event | ({"request": request} if request else {})


def run_ended(at: float, state: str) -> Event:
    return {"e": "run_ended", "at": at, "state": state}


def pack(events: Iterable[Event]) -> bytes:
    """The JSON array of some events, without a line break."""
    return json.dumps(list(events), separators=(",", ":")).encode()  # ASCII only: half a surrogate in a user's text does no harm


def batch(packed: bytes) -> bytes:
    """The log object that holds packed events."""
    return b'{"events":' + packed + b"}"


def unbatch(data: bytes, key: str) -> list[Event]:
    """The events of a log object. Raises StoreError, naming the key, for anything else."""
    return journal.checked(data, key)


def _of(task: Task, kind: str, at: float, **facts: Json) -> Event:
    event: Event = {"e": kind, "at": at, "step": task.step, "index": list(task.index)}
    if task.part != "body":
        event["part"] = task.part
    event.update((name, value) for name, value in facts.items() if value not in (None, [], {}, False))
    return event
