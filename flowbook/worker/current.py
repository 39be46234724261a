"""`current`: what a step body can know of the task it runs in; `scratch`: its folder for big temporary files.

Both are real inside a task and inert outside one, so a cell that uses them also runs as a plain cell.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flowbook.spec.flow import task_name
from flowbook.store import layout


@dataclass(frozen=True)
class Task:
    """One task while it runs. `attempt` counts from 0 and grows with each retry."""

    flow: str = ""
    run: str = ""
    step: str = ""
    index: tuple[int, ...] = ()
    attempt: int = 0
    item: Any = None  # of --foreach; None in a step without
    tags: tuple[str, ...] = ()
    failures: tuple[dict[str, Any], ...] = ()  # only in --always steps: {step, index, message} of what failed
    ids: tuple[str, ...] = ()  # what the item of each place of `index` is
    origin: str | None = None  # the run that this one resumes
    user: str | None = None
    project: tuple[tuple[str, Any], ...] = ()  # of @project: project_name, branch_name, is_production, …

    @property
    def seed(self) -> int:
        """63 bits that depend on flow, step and items alone: a retry, a later run and the serial reading draw the same numbers."""
        return task_seed(self.flow, self.step, self.ids)

    # ---- Metaflow's names ----

    @property
    def flow_name(self) -> str:
        return self.flow

    @property
    def run_id(self) -> str:
        return self.run

    @property
    def step_name(self) -> str:
        return self.step

    @property
    def task_id(self) -> str:
        return layout.task_key(self.index)

    @property
    def pathspec(self) -> str:
        """``TrainFlow/12/train/2``"""
        return f"{self.flow}/{self.run}/{self.step}/{self.task_id}"

    @property
    def origin_run_id(self) -> str | None:
        return self.origin

    @property
    def username(self) -> str | None:
        return self.user

    @property
    def namespace(self) -> str:
        return f"user:{self.user}"

    @property
    def is_running_flow(self) -> bool:
        return bool(self.step)

    @property
    def tempdir(self) -> str:
        """A folder for temporary files of this task: `scratch` as a string."""
        return str(scratch_path())

    @property
    def retry_count(self) -> int:
        """Metaflow's name of `attempt`."""
        return self.attempt

    @property
    def task(self) -> str:
        """``train[2]``"""
        return task_name(self.step, self.index)

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this task: ``flow/run/step/2.5``."""
        return f"{self.flow}/{self.run}/{self.step}/{layout.task_key(self.index)}"


_HIDDEN = ("ids", "origin", "user", "project")
_PROPERTIES = tuple(name for name, value in vars(Task).items() if isinstance(value, property))
_NAMES = (*(f.name for f in dataclasses.fields(Task) if f.name not in _HIDDEN), *_PROPERTIES, "card", "checkpoint")


def task_seed(flow: str, step: str, ids: tuple[str, ...], part: str = "body") -> int:
    """The seed of a task, or with `part` "plan" of the evaluation of a step's --foreach and --when.

    `ids` are those of its items, not their places: an item that moves keeps its numbers, and its result.

    >>> task_seed("demo", "train", ("a",)) == task_seed("demo", "train", ("a",)) != task_seed("demo", "train", ("b",))
    True
    """
    digest = hashlib.sha256("\n".join([flow, step, part, *ids]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Current:
    """The attributes of the `Task` that runs now; those of an empty one outside a run."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name in ("card", "checkpoint"):
            from flowbook.spec import decorators  # one object each: what decorates a step is also what it has inside

            return getattr(decorators, name)
        if name in _NAMES:
            return getattr(_state.task, name)
        for known, value in _state.task.project:
            if known == name:
                return value
        import difflib  # slow to import, and only for a mistake

        names = (*_NAMES, *(known for known, _ in _state.task.project))
        near = difflib.get_close_matches(name, names, 1)
        raise AttributeError(f"current has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"))

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"current tells what runs now; {name!r} cannot be set on it")

    def __dir__(self) -> list[str]:
        return list(_NAMES)

    def __repr__(self) -> str:
        task = _state.task
        return f"<current: {task.task} of run {task.run} of {task.flow}>" if task.step else "<current: outside a run>"

    def __reduce__(self) -> str:
        return "current"  # by name: a captured `current` is that of the task which loads it


@dataclass
class _State:
    task: Task
    scratch: str | None


_state = _State(Task(), None)
current = Current()


def set_task(task: Task, scratch: str | None) -> None:
    """From now on `current` tells of `task`; `scratch` is that folder, made when it is first asked for."""
    _state.task, _state.scratch = task, scratch


def scratch_path() -> Path:
    """The scratch folder of this task, made if need be; outside a task a temporary folder of this process."""
    if _state.scratch is None:
        import atexit
        import shutil
        import tempfile

        _state.scratch = tempfile.mkdtemp(prefix="flowbook-scratch-")
        atexit.register(shutil.rmtree, _state.scratch, ignore_errors=True)
    path = Path(_state.scratch)
    path.mkdir(parents=True, exist_ok=True)
    return path


def __getattr__(name: str) -> Any:
    if name == "scratch":
        return scratch_path()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def give(scratch: str | None, *, cards: bool = False, checkpoints: bool = False) -> None:
    """Make what a step cell may use without an import builtins, so that a user's own names come first."""
    import builtins

    given: dict[str, Any] = {"current": current}
    if scratch is not None:
        given["scratch"] = Path(scratch)
    if cards or checkpoints:
        from flowbook.spec import decorators

        given |= {"card": decorators.card, "checkpoint": decorators.checkpoint}
    if checkpoints:
        from flowbook.worker.checkpoint import load_checkpoint, save_checkpoint

        given |= {"save_checkpoint": save_checkpoint, "load_checkpoint": load_checkpoint}
    vars(builtins).update(given)
