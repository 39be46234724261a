"""`%flow card` and `%flow report`: cards of any run of the flow, and the run's own, below the cell; a whole run as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook import cards
from flowbook.cards import html, whole, wire
from flowbook.cards.report import report
from flowbook.engine.events import Task
from flowbook.errors import DefinitionError, Finding
from flowbook.spec.flow import task_name
from flowbook.store import layout

if TYPE_CHECKING:
    from flowbook.kernel.session import Run, Session
    from flowbook.store.base import Store

Json = Any

PATH = re.compile(r"(?:(?P<run>[^/\[\]]+)/)?(?P<step>[A-Za-z_]\w*)(?:\[(?P<index>\d+(?:,\s*\d+)*)\]|/(?P<task>\d+(?:\.\d+)*))?\Z")
RUN = re.compile(r"\d+\Z|signal-[^/\[\]]+\Z")
SHOWN = 20  # tasks of a step whose cards are shown
LINE = 200  # characters of a line, where there is only text


def show(session: Session, path: str | None, *, id: str | None = None, flow: str | None = None) -> tuple[str, str]:
    """The cards of a step or of one task, or that of a run, as text and as HTML. Raises DefinitionError if there is none, or no such step."""
    where = f"%flow card {path or ''}".rstrip()
    found = PATH.match(path) if path else None
    if found is None and (path is None or RUN.match(path)):
        return _of_run(session.runs.find(path, flow), session.store, where, id)
    if not found:
        raise DefinitionError(Finding(where, f"{path!r} is no run, step or task", "Write RUN, STEP, STEP[2], RUN/STEP or RUN/STEP/2."))
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
    shown = [(task, card) for task in known[:SHOWN] for card in cards_of(run, session.store, task) if id in (None, card["id"])]
    if not shown:
        there = sorted({card["id"] for task in known[:SHOWN] for card in cards_of(run, session.store, task)})
        what = f"no card {id!r}" if id is not None and there else "no card"
        advice = f"Cards: {', '.join(there)}." if there else "A step keeps one with `--card`, or when its body uses `card`."
        raise DefinitionError(Finding(where, f"{what} of {step.name} in run {run.id}" + ("" if run.view.ended else " yet"), advice))
    left = (
        f"{len(known) - SHOWN:,} more tasks; one of them: %flow card {run.id}/{step.name}/{layout.task_key(known[SHOWN].index)}{run.option}"
        if len(known) > SHOWN
        else ""
    )
    return _text(shown, left), _html(shown, left)


def _of_run(run: Run, store: Store, where: str, id: str | None) -> tuple[str, str]:
    """The card of a run: what its tasks put on `card.run`."""
    if id is not None:
        raise DefinitionError(
            Finding(where, "--id is of a step's cards, a run has one", f"{run.command(f'card {run.id}/STEP --id {id}')}.")
        )
    found = card_of_run(run, store)
    if found is None:
        what = f"no task of run {run.id} put anything on the run's card" + ("" if run.view.ended else " yet")
        raise DefinitionError(
            Finding(where, what, f"In a step: `card.run.append(…)`. Cards of steps: {run.command(f'card {run.id}/STEP')}.")
        )
    return "\n".join([f"── card of run {run.id}: {found['state']}", *_lines(found)]), html.STYLE + html.fragment(found)


def card_of_run(run: Run, store: Store) -> Json | None:
    """The run's own card as the store has it; None if no task put anything there."""
    order = {step.name: i for i, step in enumerate(run.spec.steps)}
    tasks = sorted((task for task in run.view.state.tasks if task.part == "body"), key=lambda task: (order.get(task.step, 0), task.index))
    parts = ((task_name(task.step, task.index), card) for task in tasks for card in cards_of(run, store, task, of_run=True))
    return whole.card(parts, run.spec.flow, run.id, run.view.ended or "running")


def _tasks(run: Run, step: str) -> list[Task]:
    """Those of a step, failed ones in front."""
    states = run.view.state.tasks
    found = [task for task in states if task.step == step and task.part == "body"]
    return sorted(found, key=lambda task: (states[task].state != "failed", task.index))


def cards_of(run: Run, store: Store, task: Task, *, of_run: bool = False) -> Iterator[Json]:
    """The cards of the attempt that made a task's result or was its last; `of_run`: its part of the run's card."""
    origin, index, attempt = run.view.state.printed_by(task)
    state = run.view.state.tasks[task]
    for key in whole.keys(store, (run.spec.flow, origin, task.step, index, attempt), of_run):
        card = cards.read(store.get(key))
        yield card if of_run else wire.settled(card, state.state, state.error, lost=run.view.ended == "lost")


def metrics(run: Run, store: Store, task: Task) -> dict[str, float]:
    """The last value of each line that the cards of a task draw: as they came, else as the store has them."""
    heard = run.view.metrics.get((task.step, task.index, task.part))
    return dict(heard) if heard else wire.metrics_of(cards_of(run, store, task)) if task in run.view.state.tasks else {}


def _html(shown: list[tuple[Task, Json]], left: str) -> str:
    blocks = [html.fragment(card) for _, card in shown]
    return html.STYLE + "".join(blocks) + (f'<p class="fbc fbc-dim">{left}</p>' if left else "")


def _text(shown: list[tuple[Task, Json]], left: str) -> str:
    """For where no HTML is shown: what each component says in a line."""
    lines = []
    for task, card in shown:
        lines.append(f"── card {card['id']} of {task_name(task.step, task.index)}: {card['state']}")
        lines += _lines(card)
    return "\n".join([*lines, *([left] if left else [])])


def _lines(card: Json) -> Iterator[str]:
    for part in card["components"]:
        said = next((str(part[name]) for name in ("title", "label", "name", "text", "value") if part.get(name) not in (None, "")), "")
        yield f"  {part['type']}: {' '.join(said.split())[:LINE]}".rstrip(": ")


def write(session: Session, file: str | None, *, run_id: str | None = None, flow: str | None = None) -> Path:
    """Write the report of a run; without a file it is FLOW-RUN.html in the notebook's folder."""
    run = session.runs.find(run_id, flow)
    path = session.folder / (file or f"{run.spec.flow}-{run.id}.html")
    page = report(session.store, run.spec.flow, run.id, lost=run.view.ended == "lost")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DefinitionError(
            Finding("%flow report", f"{path} cannot be written: {error.strerror or error}", "Name another file with -o.")
        ) from None
    return path
