"""What a failed run says at its end: the user's traceback, the item, the last lines printed, what went on, and the next move."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flowbook.cli.text import clean, has_colours, styled
from flowbook.spec.flow import Spec, task_name
from flowbook.store import preview

if TYPE_CHECKING:
    from flowbook.cli.place import Place
    from flowbook.engine.state import RunState, TaskState

TAIL_LINES = 20


def text(spec: Spec, state: RunState | None, place: Place, trouble: str = "", briefly: Callable[[str], str] = str) -> str:
    """All of it, as one text. `trouble` is what kept the run from being driven to its end; `briefly` leaves out what stands above."""
    colours = has_colours(sys.stderr)
    word = styled("error", "bold red", colours)
    first = first_failure(spec, state) if state is not None else None
    if first is None or state is None:
        lines = [f"{word}: run {spec.run} of {spec.flow} failed" + (f": {trouble}" if trouble else "")]
        return "\n".join([*lines, f"`{place.spell('resume')}` runs only what is missing."])
    error: dict[str, Any] = first.error or {}
    name = task_name(first.task.step, first.task.index)
    why = reason(error).strip()
    traceback, printed = (str(error.get(part) or "").strip("\n").rstrip() for part in ("traceback", "output_tail"))
    parts = [traceback] if traceback.strip() != why else []  # a worker that could not begin has none of the user's
    tail = [clean(line, colours) for line in printed.strip().splitlines()][-TAIL_LINES:]
    if tail and printed.strip() != why:
        parts += [f"last lines printed by {name}:", *(f"    {line}" for line in tail)]
    parts += [f"{word}: {briefly(headline(spec, first))}", _way_on(spec, state, first.task.step, place)]
    return "\n".join(part for part in parts if part)


def first_failure(spec: Spec, state: RunState) -> TaskState | None:
    """The failed task that the run failed with: of the step that failed first, the one that comes first."""
    failed = [found for found in state.tasks.values() if found.state == "failed"]
    if not failed:
        return None
    step = min(failed, key=lambda found: found.ended_at or 0).task.step
    return min((found for found in failed if found.task.step == step), key=lambda found: found.task.index)


def headline(spec: Spec, found: TaskState) -> str:
    """``train[2] of run 3, at train.py, line 14, item 0.01: ValueError: too large``."""
    error: dict[str, Any] = found.error or {}
    where = f", at {error['cell']}, line {error['line']}" if error.get("cell") and error.get("line") else ""
    item = f", item {error['item']}" if error.get("item") and preview.mode() == preview.FULL else ""
    return f"{task_name(found.task.step, found.task.index)} of run {spec.run}{where}{item}: {reason(error)}"


def reason(error: dict[str, Any]) -> str:
    """What an ERROR says in one piece: ``ValueError: bad``, or the words of the engine."""
    if error.get("type"):
        return f"{error['type']}: {error.get('message', '')}"
    return str(error.get("message") or error.get("reason") or "failed")


def _way_on(spec: Spec, state: RunState, step: str, place: Place) -> str:
    parts = []
    counts = state.counts(step)
    total = sum(counts.values())
    if total > 1:
        parts.append(f"{counts.get('succeeded', 0):,} of {total:,} tasks of {step} succeeded, {counts.get('failed', 0):,} failed.")
    ran = ("succeeded", "failed", "launched", "skipped", "stopped", "backoff")
    idle = [each.name for each in spec.steps if not any(state.counts(each.name).get(word) for word in ran)]
    if idle:
        parts.append(f"Not run: {', '.join(idle)}.")
    parts.append(f"Correct the cause, then `{place.spell('resume')}` runs only what is missing.")
    parts.append(f"All that was printed: `{place.spell('logs', f'{spec.run}/{step}')}`.")
    return " ".join(parts)
