"""What stays of a run in the notebook when no kernel and no script is there: its graph and its cards, under the last status.

Part of the static status of an ended run, so it is in the reopened notebook, in nbconvert's pages and on sites that show code. Bounded: of
each step the cards of its first tasks, and in all not more than MOST_CHARS; what is left out is said. `%flow card` shows any of them.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from flowbook.cards import html as drawing
from flowbook.engine.events import Task
from flowbook.errors import FlowbookError
from flowbook.kernel.cards import card_of_run, cards_of
from flowbook.spec import graph
from flowbook.spec.flow import Spec, task_name

if TYPE_CHECKING:
    from flowbook.engine.state import TaskState
    from flowbook.kernel.runs import Run
    from flowbook.store.base import Store

Json = Any

TASKS_OF_A_STEP = 4
MOST_CARDS = 16
MOST_CHARS = 400_000  # of all cards as HTML
OPEN = 2  # cards that are unfolded


def lasting_html(store: Store, run: Run, states: Mapping[str, str]) -> str:
    """The graph, its steps in these states, and the cards. Reads the store; "" of a run that is one step without a card."""
    steps = run.spec.steps
    drawn = f'<div class="fb-graph" style="overflow-x:auto;margin:8px 0">{graph.graph_svg(steps, states)}</div>' if len(steps) > 1 else ""
    blocks: list[str] = []
    left_out, room = 0, MOST_CHARS
    for name, card in _cards(store, run) if may_have_cards(run.spec) else ():
        page = drawing.fragment(card)
        if len(blocks) == MOST_CARDS or len(page) > room:
            left_out += 1
            continue
        room -= len(page)
        opened = " open" if len(blocks) < OPEN else ""
        blocks.append(f"<details{opened}><summary>card of {html.escape(name)}</summary>{page}</details>")
    ended = Counter(task.step for task, state in run.view.state.tasks.items() if task.part == "body" and state.ended_at is not None)
    tasks = sum(max(count - TASKS_OF_A_STEP, 0) for count in ended.values()) if blocks or left_out else 0
    if left_out or tasks:
        more = " and ".join([*([f"{left_out} more cards"] if left_out else []), *([f"cards of {tasks:,} more tasks"] if tasks else [])])
        blocks.append(f'<div class="fb-dim">{more}: <code>%flow card {html.escape(run.id)}/STEP{html.escape(run.option)}</code></div>')
    return drawn + (drawing.STYLE + "".join(blocks) if blocks else "")


def may_have_cards(spec: Spec) -> bool:
    """Whether any step asked for a card, or any of the flow's code speaks of one."""
    if any(step.options.cards for step in spec.steps):
        return True
    return any("card" in str(source.get("source", "")) for source in spec.sources.values() if isinstance(source, dict))


def _cards(store: Store, run: Run) -> Iterator[tuple[str, Json]]:
    """(task, card) in the order of the notebook, that of the run in front; of a fan-out failed tasks first."""
    if (whole := _read(lambda: [card_of_run(run, store)])) and whole[0] is not None:
        yield f"run {run.id}", whole[0]
    own: dict[str, list[tuple[Task, TaskState]]] = {step.name: [] for step in run.spec.steps}
    for task, state in run.view.state.tasks.items():
        if task.part == "body" and state.ended_at is not None and task.step in own:
            own[task.step].append((task, state))
    for found in own.values():
        found.sort(key=lambda pair: (pair[1].state != "failed", pair[0].index))
        for task, _ in found[:TASKS_OF_A_STEP]:
            for card in _read(partial(cards_of, run, store, task)):
                yield task_name(task.step, task.index), card


def _read(cards: Callable[[], Iterable[Json]]) -> list[Json]:
    try:
        return list(cards())
    except FlowbookError:
        return []  # only a picture
