"""Metaflow's `get_cards`: the cards that a task kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowbook import cards, client
from flowbook.store import layout


@dataclass(frozen=True)
class StoredCard:
    """One card. `content` is what wire.read gives."""

    path: str
    content: dict[str, Any]

    @property
    def id(self) -> str | None:
        """None for one that was given no id, which is kept under the name of its type."""
        found = self.content.get("id")
        return None if found == self.type else found

    @property
    def type(self) -> str:
        return str(self.content.get("type"))

    def get(self) -> str:
        """The card as a page of HTML."""
        from flowbook.cards import html

        return html.page([self.content])

    @property
    def html(self) -> str:
        return self.get()

    def _repr_html_(self) -> str:
        return self.get()


def get_cards(task: str | client.Task, id: str | None = None, type: str | None = None, follow_resumed: bool = True) -> list[StoredCard]:
    """The cards of a task's last attempt, or of the task whose result it took over. Raises NotFound for a task that is not there."""
    found = client.Task(task) if isinstance(task, str) else task
    origin = found.origin_pathspec
    if follow_resumed and origin is not None:
        found = client.Task._at(found._store, origin.split("/"))
    return [card for card in _cards_of(found) if id in (None, card.id) and type in (None, card.type)]


def _cards_of(task: client.Task) -> Iterator[StoredCard]:
    flow, run, step, _ = task.path_components
    for key in task._store.list(layout.card_prefix(flow, run, step, task._index, task.current_attempt)):
        yield StoredCard(key, cards.read(task._store.get(key)))
