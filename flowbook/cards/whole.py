"""The card of a run: what its tasks put on `card.run`, as one card.

Each attempt keeps its part as a card of its own, named wire.OF_RUN (worker/card.py), so that no task writes where another one does, and a
retry replaces what the attempt before it said. Whoever shows the run puts the parts together, here: in the order of the notebook, charts of
the same id joined into one with the lines of all tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from flowbook.cards import wire
from flowbook.cards.components import SERIES, TITLE
from flowbook.store import layout
from flowbook.store.base import Store

Json = Any

PARTS = 200  # tasks whose parts are put together


def keys(store: Store, where: tuple[str, str, str, layout.Index, int], of_run: bool = False) -> list[str]:
    """The keys of an attempt's own cards, or that of its part of the run's card. `where`: flow, run, step, index, attempt."""
    part = layout.card(*where, wire.OF_RUN)
    if of_run:
        return [part] if store.exists(part) else []
    return sorted(key for key in store.list(layout.card_prefix(*where)) if key != part)


def card(parts: Iterable[tuple[str, Json]], flow: str, run: str, state: str) -> Json | None:
    """The card of a run in that state (running, succeeded; all else is failed) from the parts of its tasks, by name and in order, as
    `wire.read` gives them; None without any."""
    kept = list(islice(parts, PARTS))
    if not kept:
        return None
    shared = _charts(kept)
    joined: dict[str, Json] = {}  # id → the chart of all
    components: list[Json] = []
    for task, part in kept:
        for each in part["components"]:
            id = str(each["id"])
            if id not in shared:
                components.append({**each, "id": f"{task} {id}"[:200]})
            elif id not in joined:
                joined[id] = {**each, "series": _named(each, task)}
                components.append(joined[id])
            else:
                _join(joined[id], each, task)
    left_out = sum(part.get("left_out", 0) for _, part in kept) + max(len(components) - wire.COMPONENTS, 0)
    found = {
        "v": wire.VERSION,
        "id": "run",
        "type": "run",
        "state": state if state in wire.STATES else "failed",
        "n": sum(part["n"] for _, part in kept),
        "at": max((part["at"] for _, part in kept if part.get("at")), default=None),
        "place": {"flow": flow, "run": run, "index": [], "attempt": 0},
        "components": components[: wire.COMPONENTS],
        "left_out": left_out or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _charts(parts: list[tuple[str, Json]]) -> set[str]:
    """Ids of line charts that several tasks have."""
    seen: dict[str, int] = {}
    for _, part in parts:
        for id in {each["id"] for each in part["components"] if each["type"] == "lines" and not str(each["id"]).startswith("#")}:
            seen[id] = seen.get(id, 0) + 1
    other = {each["id"] for _, part in parts for each in part["components"] if each["type"] != "lines"}
    return {id for id, count in seen.items() if count > 1} - other


def _named(chart: Json, task: str) -> list[Json]:
    """The lines of a task's chart under the task's name, and their own where that is not the chart's."""

    def name(line: Json) -> str:
        return task if line.get("name") == chart.get("title") else f"{task} {line.get('name', '')}"[:TITLE]

    return [{**line, "name": name(line)} for line in chart.get("series", ())]


def _join(chart: Json, more: Json, task: str) -> None:
    lines = [*chart["series"], *_named(more, task)]
    chart["series"] = lines[:SERIES]
    if len(lines) > SERIES:
        chart["left_out"] = f"only the first {SERIES} lines are shown"
