"""`%flow card` and `%flow report`: cards of any run of the flow below the cell, and a whole run as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook import cards
from flowbook.cards import html, wire
from flowbook.cards.report import report
from flowbook.engine.events import Task
from flowbook.errors import DefinitionError, Finding
from flowbook.spec.flow import task_name
from flowbook.store import layout

if TYPE_CHECKING:
    from flowbook.kernel.session import Run, Session

Json = Any

PATH = re.compile(r"(?:(?P<run>[^/\[\]]+)/)?(?P<step>[A-Za-z_]\w*)(?:\[(?P<index>\d+(?:,\s*\d+)*)\]|/(?P<task>\d+(?:\.\d+)*))?\Z")
SHOWN = 20  # tasks of a step whose cards are shown
LINE = 200  # characters of a line, where there is only text


def show(session: Session, path: str, *, id: str | None = None, flow: str | None = None) -> tuple[str, str]:
    """The cards of a step or of one task, as text and as HTML. Raises DefinitionError if there is none, or no such step."""
    where = f"%flow card {path}"
    found = PATH.match(path)
    if not found:
        raise DefinitionError(Finding(where, f"{path!r} is no step or task", "Write STEP, STEP[2], RUN/STEP or RUN/STEP/2."))
    run = session.runs.find(found["run"], flow)
    step = next((step for step in run.spec.steps if step.name == found["step"]), None)
    if step is None:
        names = ", ".join(step.name for step in run.spec.steps)
        raise DefinitionError(Finding(where, f"run {run.id} has no step {found['step']!r}", f"Steps: {names}."))
    digits = re.findall(r"\d+", found["index"] or found["task"] or "")
    index = tuple(map(int, digits)) if digits and step.scope else None
    known = [task for task in _tasks(run, step.name) if index in (None, task.index)]
    if index is not None and not known:
        raise DefinitionError(
            Finding(where, f"run {run.id} has no task {task_name(step.name, index)}", f"{run.command(f'card {step.name}')}.")
        )
    shown = [(task, card) for task in known[:SHOWN] for card in _cards(session, run, task) if id in (None, card["id"])]
    if not shown:
        there = sorted({card["id"] for task in known[:SHOWN] for card in _cards(session, run, task)})
        what = f"no card {id!r}" if id is not None and there else "no card"
        advice = f"Cards: {', '.join(there)}." if there else "A step keeps one with `--card`, or when its body uses `card`."
        raise DefinitionError(Finding(where, f"{what} of {step.name} in run {run.id}" + ("" if run.view.ended else " yet"), advice))
    left = (
        f"{len(known) - SHOWN:,} more tasks; one of them: %flow card {run.id}/{step.name}/{layout.task_key(known[SHOWN].index)}{run.option}"
        if len(known) > SHOWN
        else ""
    )
    return _text(shown, left), _html(shown, left)


def _tasks(run: Run, step: str) -> list[Task]:
    """Those of a step, failed ones in front."""
    states = run.view.state.tasks
    found = [task for task in states if task.step == step and task.part == "body"]
    return sorted(found, key=lambda task: (states[task].state != "failed", task.index))


def _cards(session: Session, run: Run, task: Task) -> Iterator[Json]:
    origin, index, attempt = run.view.state.printed_by(task)
    state = run.view.state.tasks[task]
    for key in sorted(session.store.list(layout.card_prefix(run.spec.flow, origin, task.step, index, attempt))):
        card = cards.read(session.store.get(key))
        yield wire.ended(card, state.error) if state.state in ("failed", "stopped") else card


def _html(shown: list[tuple[Task, Json]], left: str) -> str:
    blocks = [html.fragment(card) for _, card in shown]
    return html.STYLE + "".join(blocks) + (f'<p class="fbc fbc-dim">{left}</p>' if left else "")


def _text(shown: list[tuple[Task, Json]], left: str) -> str:
    """For where no HTML is shown: what each component says in a line."""
    lines = []
    for task, card in shown:
        lines.append(f"── card {card['id']} of {task_name(task.step, task.index)}: {card['state']}")
        for part in card["components"]:
            said = next((str(part[name]) for name in ("title", "label", "name", "text", "value") if part.get(name) not in (None, "")), "")
            lines.append(f"  {part['type']}: {' '.join(said.split())[:LINE]}".rstrip(": "))
    return "\n".join([*lines, *([left] if left else [])])


def write(session: Session, file: str | None, *, run_id: str | None = None, flow: str | None = None) -> Path:
    """Write the report of a run; without a file it is FLOW-RUN.html in the notebook's folder."""
    run = session.runs.find(run_id, flow)
    path = session.folder / (file or f"{run.spec.flow}-{run.id}.html")
    page = report(session.store, run.spec.flow, run.id)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DefinitionError(
            Finding("%flow report", f"{path} cannot be written: {error.strerror or error}", "Name another file with -o.")
        ) from None
    return path
