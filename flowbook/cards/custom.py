"""Types of cards: what a card shows when its task has ended, beside what the step appended.

One's own type is a class with a name and one method:

    class Sizes(Card):
        type = "sizes"

        def render(self, task):
            return [Markdown("# Sizes"), Table(list(task.data.sizes.items()))]

It is known as soon as it is defined or imported, and used by `@card(type="sizes")`; a package offers its own by an entry point of the
group "flowbook.cards". `render` runs once, when the artifacts are saved; whatever it raises is shown on the card and harms nothing else.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from flowbook.cards import convert, frames
from flowbook.cards.components import HTML, Component, Error, Table
from flowbook.store import preview

Json = Any

ARTIFACTS = 500  # listed by the default card
ENTRY_POINTS = "flowbook.cards"


class TaskView(Protocol):
    """What `render` is given. Values are loaded when they are asked for."""

    flow: str
    run: str
    step: str
    attempt: int
    pathspec: str  # "TrainFlow/12/train/2"
    tags: tuple[str, ...]
    parameters: Mapping[str, Json]  # name → entry (docs/internals.md)
    artifacts: Mapping[str, Json]  # name → entry, of those that this task set

    @property
    def shown(self) -> Sequence[Component]: ...  # what the body printed and displayed

    @property
    def data(self) -> Any: ...  # `task.data.score`

    def __getitem__(self, name: str) -> Any: ...  # `task["score"].data`


class Card:
    """Base of card types. `options` is what `@card(options={…})` says, `components` what the step appended."""

    type: ClassVar[str] = ""
    ALLOW_USER_COMPONENTS: ClassVar[bool] = True

    def __init__(
        self, options: Mapping[str, Json] | None = None, components: Sequence[Component] = (), graph: Json = None, flow: object = None
    ) -> None:
        self.options, self.components, self.graph, self.flow = dict(options or {}), list(components), graph, flow

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.type:
            _types[cls.type] = cls

    def render(self, task: Any) -> object:
        """A component, a list of them, or anything that `card.append` takes; a text is Markdown."""
        return []


_types: dict[str, type[Card]] = {}


class MetaflowCard(Card):
    """A card type as Metaflow has them: `render` gives HTML, which is shown in a frame of its own, without scripts."""

    ALLOW_USER_COMPONENTS = False

    def render(self, task: Any) -> object:
        return ""


class BlankCard(Card):
    """Only what the step appended."""

    type = "blank"


class DefaultCard(Card):
    """What the body showed (prints, displays, figures), where the task stands, its parameters and its artifacts; needs no code."""

    type = "default"

    def render(self, task: TaskView) -> object:
        place = [["Task", task.pathspec], ["Attempt", task.attempt + 1]]
        place += [["Tags", ", ".join(task.tags)]] if task.tags else []
        shown: list[Component] = [*task.shown, _named(Table(place), "flowbook:task")]
        for label, entries in (("Parameter", task.parameters), ("Artifact", task.artifacts)):
            rows = [_row(name, entry) for name, entry in sorted(entries.items()) if not name.startswith("_")]
            if rows:
                table = Table(rows[:ARTIFACTS], headers=[label, "Type", "Size", "Value"])
                shown.append(_named(table, f"flowbook:{label.lower()}s"))
        return shown


class DefaultJsonCard(DefaultCard):
    type = "default_json"


class TaskSpecCard(DefaultCard):
    type = "taskspec_card"


class HtmlCard(Card):
    """The HTML in the artifact `html`, or in the one that the option `attribute` names."""

    type = "html"

    def render(self, task: TaskView) -> object:
        return HTML(task[str(self.options.get("attribute", "html"))].data)


def _named(component: Component, name: str) -> Component:
    component.id = name
    return component


def _row(name: str, entry: Mapping[str, Json]) -> list[object]:
    """One line of a table of artifacts, from the entry alone: nothing is loaded."""
    entry = preview.shown(entry)
    kind, shape = entry.get("type"), entry.get("shape")
    if entry.get("kind") == "module":
        return [name, "module", None, entry.get("module")]
    if "json" in entry:
        value = entry["json"]
        return [name, kind or type(value).__name__, None, value if isinstance(value, (int, float, str)) else str(value)]
    described = f"{kind or '?'} {' × '.join(map(str, shape))}" if shape else kind
    return [name, described, _size(entry.get("size")), entry.get("repr")]


def _size(size: Json) -> str | None:
    """Bytes as people read them, in units of 1000."""
    if not isinstance(size, (int, float)):
        return None
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def find(kind: str) -> type[Card] | None:
    """The class of a type of card: built in, defined or imported by the flow, or offered by an installed package."""
    if kind not in _types:
        from importlib import metadata

        for point in metadata.entry_points(group=ENTRY_POINTS, name=kind):
            found = point.load()
            if isinstance(found, type) and issubclass(found, Card):
                _types.setdefault(kind, found)
    return _types.get(kind)


def unknown(kind: str) -> Error:
    """What a card of a type that nobody defines shows."""
    import difflib  # slow to import, and only for a mistake

    near = difflib.get_close_matches(kind, _types, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    why = f"There are {', '.join(sorted(_types))}.{hint} One's own type is a class: class Mine(flowbook.cards.Card) with type = {kind!r}."
    return Error(why, f"no type of card {kind!r}")


def rendered(card: Card, task: TaskView) -> list[Component]:
    """What a card shows of a task that has ended. Never raises."""
    try:
        found = card.render(task)
        if isinstance(found, str) and isinstance(card, MetaflowCard):
            return [HTML(found)]
        if not isinstance(found, Iterable) or isinstance(found, (str, bytes, Mapping)) or frames.is_frame(found):
            found = [found]
        return [convert.component_of(part) for part in found if part is not None]
    except Exception as error:
        return [Error("".join(traceback.format_exception(error)), f"the card of type {card.type!r} cannot be rendered")]
