"""`current`: what a body may ask of the task it runs in; inert outside a task, so that a step cell stays a cell."""

from __future__ import annotations

from typing import Any


class Current:
    """The task that runs in this process. Outside a task the names are None, 0 or empty."""

    flow: str | None = None
    run: str | None = None
    step: str | None = None
    index: tuple[int, ...] = ()
    attempt: int = 0  # 0 for the first try
    retry_count: int = 0
    seed: int = 0  # stable for a task over attempts and runs
    item: Any = None  # the foreach item
    tags: tuple[str, ...] = ()
    failures: tuple[dict[str, Any], ...] = ()  # in an --always step: step, index and message of each failed task
    task: str | None = None  # "train[2]"
    idempotency_key: str | None = None  # the same over attempts: for side effects that must happen once

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(sorted(n for n in Current.__annotations__))
        raise AttributeError(f"current has no {name!r}; it has {known}")

    def __repr__(self) -> str:
        return f"<current task {self.task} of run {self.run}>" if self.task else "<current: no task runs here>"


current = Current()
