"""`card` inside a task: what the step shows while it runs, sent to who watches and kept in the store.

    card.append(Markdown("## Epoch 3")); card.refresh()      latest state wins, the last one always arrives
    card.metric("loss", loss)                                 a line that grows, by itself
    card.run.metric("loss", loss)                             the same on the card of the run, with the lines of all tasks
    for batch in card.progress(batches): …                    a bar

`refresh` takes references and returns: components keep what they show as plain JSON and replace it when they are updated
(cards/components.py), so the state of one refresh is whole, whatever the body does next, and neither the number of refreshes nor a slow
store or pipe holds the body up. A thread of its own, started by the first refresh, turns the latest state into bytes: a frame at most
ten times a second, less often where that would take more than a twentieth of the time, and an object of the store at most every
`refresh_interval_s` and at the end. Nothing here raises into the body. In a process that the body forks all of it does nothing.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from flowbook.spec.flow import Card as CardOptions
from flowbook.spec.flow import Spec, Step
from flowbook.store import layout
from flowbook.store.base import Store

if TYPE_CHECKING:  # loaded when a card is first used: a step that only could have one does not pay for it
    from flowbook.cards.components import Component, Frozen, LineChart, ProgressBar

Json = Any
Item = TypeVar("Item")

MIN_INTERVAL_S = 0.1  # between two frames
PAUSE_RATIO = 20  # what took 30 ms of CPU is followed by a pause of 20 times that
PRINTED = 100_000  # bytes of printed text that a default card shows
END_S = 30.0  # at most so long is the thread waited for at the end of a task
REST_S = 1.0  # the same before a fork
NAMED_METRICS = 100  # charts that `metric` makes
OWN = "flowbook:"  # ids of the components that no step appended begin so


@dataclass(frozen=True)
class State:
    """One card at one refresh."""

    number: int
    entries: tuple[tuple[str, Frozen], ...]


def _quietly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake with a card is told once for each message, and the body goes on."""

    @functools.wraps(method)
    def guarded(self: LiveCard, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.cards.warn(f"card.{method.__name__} failed, the step goes on: {type(error).__name__}: {error}")
            return None

    return guarded


class LiveCard:
    """One card of the task. `name` is its id, or its type if it has none."""

    def __init__(self, cards: LiveCards, options: CardOptions, name: str, *, implicit: bool = False) -> None:
        self.cards, self.options, self.name, self.implicit = cards, options, name, implicit
        self.touched = False
        self.number = 0  # of refreshes
        self.state: State | None = None  # of the last refresh
        self._entries: list[Component] = []
        self._metrics: dict[str, LineChart] = {}

    @property
    def type(self) -> str:
        return self.options.type

    @property
    def id(self) -> str | None:
        return self.options.id

    # ---- Metaflow's own -----------------------------------------------------------------------------------------------

    @_quietly
    def append(self, component: object, id: str | None = None) -> None:
        """Add a component: one of flowbook.cards, a text (Markdown), a data frame, a figure. One with the same id is replaced."""
        from flowbook.cards.convert import component_of

        self._add(component_of(component), id)

    @_quietly
    def extend(self, components: Iterable[object]) -> None:
        for component in components:
            self.append(component)

    @_quietly
    def clear(self) -> None:
        """Take all components away; shown at the next refresh."""
        self._entries = []
        self.touched = True

    @_quietly
    def refresh(self, data: object = None, force: bool = False) -> None:
        """Show the card as it is now. `force` sends it at once and stores it, whatever was sent just before. `data` is for Metaflow's
        custom cards that draw themselves while the step runs; it is taken and not used."""
        self.touched = True
        if self.cards.asleep:
            return
        self.number += 1
        self.state = State(self.number, self.entries())
        self.cards.sender.wake(force)

    @property
    def components(self) -> Components:
        """The components by id: `card.components["bar"].update(3)`; assigning replaces one."""
        return Components(self)

    # ---- conveniences ---------------------------------------------------------------------------------------------------

    @_quietly
    def metric(
        self, name: str | None = None, value: object = None, step: object = None, *, chart: str | None = None, **more: object
    ) -> None:
        """Add a point to the line of that name; `chart` puts several lines into one chart. `card.metric(loss=0.3, accuracy=0.9)` adds several.

        `step` is the place on the x axis; without it the points are counted. Draws itself: no append, no refresh.
        """
        for each, found in [*([(name, value)] if name is not None else []), *more.items()]:
            self._chart(chart or str(each)).add(str(each), found, step)
        self.refresh()

    def progress(
        self, iterable: Iterable[Item], label: str | None = None, total: int | None = None, unit: str | None = None, id: str | None = None
    ) -> Iterator[Item]:
        """Iterate, and show how far it is. `total` is needed where the iterable has no length and the share shall be seen."""
        if total is None:
            try:
                total = len(iterable)  # type: ignore[arg-type]
            except Exception:
                total = None
        bar = self._bar(label, total, unit, id)
        began, shown, count = time.monotonic(), 0.0, 0
        try:
            for item in iterable:
                yield item
                count += 1
                if (now := time.monotonic()) - shown >= MIN_INTERVAL_S:
                    shown = now
                    self._advance(bar, count, total, now - began)
        finally:
            self._advance(bar, count, total, time.monotonic() - began)

    @_quietly
    def table(self, data: object, headers: Sequence[object] | None = None, id: str | None = None) -> None:
        """Append a table, or replace the one of that id, and refresh."""
        from flowbook.cards.components import Table

        self._add(Table(data, headers), id)
        self.refresh()

    def _chart(self, name: str) -> LineChart:
        from flowbook.cards.components import LineChart

        found = self._metrics.get(name)
        if found is None:
            found = LineChart(name)
            if len(self._metrics) < NAMED_METRICS:
                self._metrics[name] = found
            else:
                self.cards.warn(f"card.metric: only the first {NAMED_METRICS} charts are kept")
                return found
        if not any(entry is found for entry in self._entries):  # new, or the card was cleared
            self._add(found, f"metric:{name}")
        return found

    @_quietly
    def _bar(self, label: str | None, total: int | None, unit: str | None, id: str | None) -> ProgressBar:
        from flowbook.cards.components import ProgressBar

        bar = ProgressBar(max=total if total is not None else 0, label=label, unit=unit)
        self._add(bar, id)
        self.refresh()
        return bar

    @_quietly
    def _advance(self, bar: ProgressBar | None, count: int, total: int | None, seconds: float) -> None:
        if bar is not None:
            rate = f"{count / seconds:.3g} a second" if seconds > 0 and count else ""
            bar.update(count, " · ".join(filter(None, [f"{count:,} of {total:,}" if total is not None else f"{count:,}", rate])))
            self.refresh()

    # ---- inside ---------------------------------------------------------------------------------------------------------

    def _add(self, component: Component, id: str | None) -> None:
        self.touched = True
        if id is not None:
            component.id = str(id)
            for i, entry in enumerate(self._entries):
                if entry.id == component.id:
                    self._entries[i] = component
                    return
        self._entries.append(component)

    def replace_all(self, components: Iterable[object]) -> None:
        self.clear()
        self.extend(components)

    def remove(self, id: str) -> None:
        self._entries = [entry for entry in self._entries if entry.id != id]
        self.touched = True

    def listed(self) -> list[Component]:
        return list(self._entries)

    def entries(self, extra: Iterable[Component] = ()) -> tuple[tuple[str, Frozen], ...]:
        """The components as they are now, with their ids; those without one are called by their place, which stays the same
        when a card is cleared and filled anew, so that a front end changes what is there."""
        return tuple((entry.id or f"#{i}", _frozen(entry)) for i, entry in enumerate((*self._entries, *extra)))

    def __iter__(self) -> Iterator[Component]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<card {self.name!r} of type {self.type!r}, {len(self)} components>"


def _frozen(entry: Component) -> Frozen:
    from flowbook.cards.components import Frozen, error_fields

    try:
        return entry.freeze()
    except Exception as error:  # of a component of the user's own
        return Frozen(error_fields(f"{type(entry).__name__} cannot be shown", f"{type(error).__name__}: {error}"))


class Components:
    """The components of a card by id."""

    def __init__(self, card: LiveCard) -> None:
        self._card = card

    def _by_id(self) -> dict[str, Component]:
        return {entry.id: entry for entry in self._card.listed() if entry.id is not None}

    def __getitem__(self, id: str) -> Any:
        found = self._by_id()
        if id in found:
            return found[id]
        there = ", ".join(map(repr, found)) or "none with an id: give one with card.append(component, id=…)"
        self._card.cards.warn(f"card.components has no {id!r}; there is {there}. What is done to it is not shown.")
        return Nothing()

    def __setitem__(self, id: str, component: object) -> None:
        self._card.append(component, id=id)

    def __delitem__(self, id: str) -> None:
        self._card.remove(id)

    def __contains__(self, id: object) -> bool:
        return id in self._by_id()

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id())

    def __len__(self) -> int:
        return len(self._by_id())

    def keys(self) -> list[str]:
        return list(self._by_id())

    def __repr__(self) -> str:
        return repr(self._by_id())


class Nothing:
    """Stands for a component that is not there: takes every call and does nothing, so that a training goes on."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class LiveCards:
    """All cards of a task; what is done to it itself is done to the default card.

    That is the only card, else the one with `customize=True`, else the only one without an id. Where that tells none, it is the first,
    and a warning says so once.
    """

    def __init__(self, task: Place, options: Sequence[CardOptions]) -> None:
        self.task = task
        self.pid = os.getpid()
        self.closed = False
        self.sender = Sender(self)
        self._warned: set[str] = set()
        self.cards: dict[str, LiveCard] = {}
        self._of_run: LiveCard | None = None
        for each in options or (CardOptions(type="blank"),):
            self._make(each, implicit=not options)

    def _make(self, options: CardOptions, *, implicit: bool = False) -> LiveCard:
        wanted = layout.card_name(options.id or options.type)
        name, number = wanted, 2
        while name in self.cards:
            name, number = f"{wanted}-{number}", number + 1
        card = self.cards[name] = LiveCard(self, options, name, implicit=implicit)
        return card

    @property
    def run(self) -> LiveCard:
        """The card of the whole run: what this task puts there stands beside what the others put. A line of the same id (as `metric`
        makes it) is drawn in one chart with theirs."""
        if self._of_run is None:
            from flowbook.cards import wire

            self._of_run = LiveCard(self, CardOptions(type="blank", save_errors=False), wire.OF_RUN, implicit=True)
        return self._of_run

    def every(self) -> list[LiveCard]:
        """All cards, and the part of the run's card if there is one."""
        return [*list(self.cards.values()), *([self._of_run] if self._of_run is not None else [])]

    @property
    def asleep(self) -> bool:
        """Whether nothing is shown any more: the task has ended, or this is a process that the body forked."""
        return self.closed or os.getpid() != self.pid

    @functools.cached_property
    def default(self) -> LiveCard:
        cards = list(self.cards.values())
        for some in (cards, [c for c in cards if c.options.customize], [c for c in cards if c.id is None]):
            if len(some) == 1:
                return some[0]
        names = ", ".join(f"{card.id or card.type!r}" for card in cards)
        self.warn(
            f"the step has {len(cards)} cards ({names}) and `card` does not say which is meant: it is the first. Use card[id], "
            f"or @card(customize=True) on one."
        )
        return cards[0]

    def warn(self, message: str) -> None:
        """Tell on stderr, each message once."""
        if message not in self._warned and len(self._warned) < 100:
            self._warned.add(message)
            print(f"flowbook: {message}", file=sys.stderr)  # noqa: T201

    def __getitem__(self, id: str) -> LiveCard:
        for card in self.cards.values():
            if card.id == id:
                return card
        there = ", ".join(repr(card.id) for card in self.cards.values() if card.id is not None) or "none with an id"
        self.warn(f"no card {id!r}; there is {there}. It is shown as a card of its own; to have no such warning: @card(id={id!r}).")
        return self._make(CardOptions(type="blank", id=str(id)), implicit=True)

    def __setitem__(self, id: str, components: Iterable[object]) -> None:
        self[id].replace_all(components)

    def get(self, type: str | None = None) -> list[LiveCard]:
        """The cards of a type; without one all."""
        return [card for card in self.cards.values() if type is None or card.type == type]

    def __contains__(self, id: object) -> bool:
        return any(card.id == id for card in self.cards.values())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in _OF_A_CARD:
            raise AttributeError(f"card has no {name!r}; it has {', '.join(_OF_A_CARD)}")
        return getattr(self.default, name)

    def __iter__(self) -> Iterator[Component]:
        return iter(self.default)

    def __len__(self) -> int:
        return len(self.default)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<cards of {self.task.name}: {', '.join(self.cards)}>"


_OF_A_CARD = ("append", "extend", "clear", "refresh", "components", "metric", "progress", "table", "type", "id")


# ---- sending ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The attempt whose cards they are, and where they go. `send_line` takes a frame as JSON."""

    store: Store
    send_line: Callable[[bytes], object]
    flow: str
    run: str
    step: str
    index: layout.Index = ()
    attempt: int = 0

    @property
    def name(self) -> str:
        return f"{self.step}[{','.join(map(str, self.index))}]" if self.index else self.step

    def key(self, card: LiveCard) -> str:
        return layout.card(self.flow, self.run, self.step, self.index, self.attempt, card.name)


class Sender:
    """The thread that sends and stores the latest states. It is a daemon: it never keeps the process alive.

    It ends before the body forks and begins again after: a child of a process with threads may hang, and newer Pythons warn of it.
    """

    def __init__(self, cards: LiveCards) -> None:
        self._cards = cards
        self._awake = threading.Event()  # there may be something new
        self._hurry = threading.Event()  # the pause between two frames is over early
        self._thread: tuple[threading.Thread, threading.Event] | None = None  # and what ends it
        self._starting = threading.Lock()  # never taken in a forked process
        self._force = self._rests = False
        self._sent: dict[str, int] = {}  # name → number of the state
        self._stored: dict[str, tuple[int, float]] = {}  # name → number, time

    def wake(self, force: bool = False) -> None:
        """Costs a few microseconds; the first time that of starting a thread."""
        if force:
            self._force = True
            self._hurry.set()
        self._awake.set()
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    import flowbook.cards.wire  # noqa: F401 (what the thread needs; it shall hold no lock of an import when the body forks)

                    ended = threading.Event()
                    thread = threading.Thread(target=self._serve, args=(ended,), name="flowbook-card", daemon=True)
                    thread.start()
                    self._thread = thread, ended

    def end(self, within_s: float = END_S) -> bool:
        """Stop the thread; False if it hangs in the store or the pipe. `wake` starts another."""
        if self._thread is None:
            return True
        (thread, ended), self._thread = self._thread, None
        ended.set()
        self._hurry.set()
        self._awake.set()
        thread.join(within_s)
        return not thread.is_alive()

    def rest(self) -> None:
        """Before a fork."""
        if self._thread is not None:
            self.end(REST_S)
            self._rests = True

    def go_on(self) -> None:
        """After a fork, in the parent: what was not sent yet is."""
        if self._rests:
            self._rests = False
            self.wake()

    def _serve(self, ended: threading.Event) -> None:
        while True:
            self._awake.wait(self._until_store_s())
            if ended.is_set():
                return
            self._awake.clear()
            spent_s = time.thread_time()  # not what a slow store takes: it costs the body nothing
            force, self._force = self._force, False
            for card in self._cards.every():
                try:
                    self._serve_card(card, force)
                except Exception as error:
                    self._cards.warn(f"the card of {self._cards.task.name} cannot be kept while it runs: {error}")
            self._hurry.wait(max(MIN_INTERVAL_S, PAUSE_RATIO * (time.thread_time() - spent_s)))
            self._hurry.clear()

    def _until_store_s(self) -> float | None:
        """When the next card is due to be stored; None if all are as they were sent."""
        waits = [
            self._stored[card.name][1] + card.options.refresh_interval_s - time.monotonic()
            for card in self._cards.every()
            if card.name in self._stored and self._stored[card.name][0] < card.number
        ]
        return max(min(waits), 0.0) if waits else None

    def _serve_card(self, card: LiveCard, force: bool) -> None:
        state = card.state
        if state is None:
            return
        number, at = self._stored.get(card.name, (0, float("-inf")))
        now = time.monotonic()
        due = number < state.number and (force or now - at >= card.options.refresh_interval_s)
        if self._sent.get(card.name, 0) >= state.number and not due:
            return
        data = packed(card, state, "running")
        if self._sent.get(card.name, 0) < state.number:
            self._sent[card.name] = state.number
            self._cards.task.send_line(frame(card, state.number, data))
        if due:
            self._stored[card.name] = (state.number, now)  # also if it fails: not again at once
            self._cards.task.store.put(self._cards.task.key(card), data)


def packed(card: LiveCard, state: State, ended: str) -> bytes:
    """The card as `cards.read` takes it."""
    from flowbook.cards import wire

    task = card.cards.task
    place = {"flow": task.flow, "run": task.run, "step": task.step, "index": list(task.index), "attempt": task.attempt}
    head: dict[str, Json] = {
        "id": card.name,
        "type": card.type,
        "state": ended,
        "n": state.number,
        "at": round(time.time(), 3),
        "place": place,
    }
    return wire.write(head, state.entries)


def frame(card: LiveCard, number: int, data: bytes) -> bytes:
    return b'{"f":"card","id":%b,"v":%d,"card":%b}' % (json.dumps(card.name).encode(), number, data)


# ---- around a body ---------------------------------------------------------------------------------------------------


_open: LiveCards | None = None


def _before_fork() -> None:
    if _open is not None and not _open.asleep:
        _open.sender.rest()


def _after_fork() -> None:
    if _open is not None and not _open.asleep:
        _open.sender.go_on()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)


def open(attempt: Any) -> None:
    """Before the body of an attempt (worker/attempt.py): from now on `card` is live."""
    from flowbook.spec import decorators

    global _open
    spec: Spec = attempt.spec
    step: Step = attempt.step
    task = Place(attempt.store, attempt.frames.send_line, spec.flow, spec.run, step.name, attempt.index, attempt.number)
    _open = LiveCards(task, step.options.cards)
    if step.options.cards:
        _keep_shown(attempt)
    decorators.card._set_live(_open)


def _keep_shown(attempt: Any) -> None:
    """From now on a default card has what the body shows."""
    from flowbook.cards import shown
    from flowbook.worker import output

    attempt.shown = shown.Kept()
    attempt.shown_from = output.printed()
    attempt.frames.kept = attempt.shown.add


def close(attempt: Any, error: Mapping[str, Json] | None) -> None:
    """After the body: the last state of every card is sent and stored. `error` is ERROR of docs/internals.md, for an attempt that failed."""
    from flowbook.spec import decorators

    global _open
    cards, _open = _open, None
    decorators.card._set_live(None)
    if cards is None or cards.asleep:
        return
    cards.closed = True
    if not cards.sender.end():
        cards.warn(f"the card of {cards.task.name} cannot be kept: the store or the engine did not take it within {END_S:.0f} s")
        return
    for card in cards.every():
        if card.touched or not card.implicit:
            _conclude(card, attempt, error)


def _conclude(card: LiveCard, attempt: Any, error: Mapping[str, Json] | None) -> None:
    cards = card.cards
    failed = error is not None and error is not getattr(attempt, "caught", None)
    try:
        extra = _last_components(card, attempt, error, failed)
        state = State(card.number + 1, card.entries(extra))
        data = packed(card, state, "failed" if failed else "succeeded")
        cards.task.send_line(frame(card, state.number, data))
        cards.task.store.put(cards.task.key(card), data)
    except Exception as trouble:  # a full store: the results matter more, and tell it too
        cards.warn(f"the card {card.name!r} of {cards.task.name} cannot be kept: {trouble}")


def _last_components(card: LiveCard, attempt: Any, error: Mapping[str, Json] | None, failed: bool) -> list[Component]:
    """What a card shows at the end beside what the step appended: by its type, and the error."""
    from flowbook.cards import custom
    from flowbook.cards.components import Error

    found: list[Component] = []
    kind = custom.find(card.type)
    if kind is None:
        found.append(custom.unknown(card.type))
    elif not failed or issubclass(kind, custom.DefaultCard):
        shown = kind(_options(card.options), card.listed(), flow=getattr(getattr(attempt, "method", None), "flow", None))
        found += _rendered(shown, Task(attempt, card.cards.task), card.options.timeout_s)
    if error is not None and card.options.save_errors:
        title = f"{error.get('type') or error.get('reason') or 'Error'}: {error.get('message', '')}"
        shown_error = Error(str(error.get("traceback") or error.get("message") or ""), title)
        shown_error.id = f"{OWN}error"
        found.append(shown_error)
    return found


def _options(options: CardOptions) -> dict[str, Json]:
    try:
        found = json.loads(options.options or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _rendered(card: Any, task: Task, timeout_s: float) -> list[Component]:
    """`render` of a card, given up after its time; it runs in a thread of its own, since it may be anybody's code."""
    from flowbook.cards import custom
    from flowbook.cards.components import Error

    if type(card).__module__ == custom.__name__:
        return custom.rendered(card, task)
    found: list[list[Component]] = []
    thread = threading.Thread(target=lambda: found.append(custom.rendered(card, task)), name="flowbook-card-render", daemon=True)
    thread.start()
    thread.join(timeout_s if timeout_s > 0 else None)
    if found:
        return found[0]
    why = f"its render took more than {timeout_s:g} s (@card(timeout=…))" if thread.is_alive() else "its render ended without a result"
    return [Error(why, f"the card of type {card.type!r} cannot be rendered")]


class Task:
    """What `render` of a card type is given; see cards/custom.py, TaskView. A value is the very object of the body, or loaded."""

    def __init__(self, attempt: Any, place: Place) -> None:
        self.flow, self.run, self.step, self.index, self.attempt = place.flow, place.run, place.step, place.index, place.attempt
        self.id = layout.task_key(place.index)
        self.pathspec = f"{place.flow}/{place.run}/{place.step}/{self.id}"
        self.tags: tuple[str, ...] = tuple(attempt.spec.tags)
        self.parameters: Mapping[str, Json] = dict(attempt.spec.params)
        self.artifacts: Mapping[str, Json] = dict(getattr(attempt, "saved_entries", None) or {})
        self._attempt = attempt

    @property
    def shown(self) -> list[Component]:
        """What the body printed and displayed, as components."""
        from flowbook.cards import shown
        from flowbook.worker import output

        kept = getattr(self._attempt, "shown", None)
        if kept is None:
            return []
        start = self._attempt.shown_from
        text, begin = output.printed_since(start, PRINTED)
        return shown.components(kept, text, begin, left_out=begin - start)

    @property
    def data(self) -> Values:
        return Values(self)

    def value(self, name: str) -> Any:
        """Raises KeyError for a name that the task does not know."""
        method = getattr(self._attempt, "method", None)
        if method is not None:
            try:
                return getattr(method.flow, name)
            except AttributeError:
                raise KeyError(name) from None
        main: Mapping[str, Any] = self._attempt.main
        if name not in main:
            raise KeyError(name)
        return main[name]

    def __getitem__(self, name: str) -> Value:
        return Value(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self.artifacts or name in self.parameters

    def __iter__(self) -> Iterator[Value]:
        return (Value(self, name) for name in self.artifacts)


@dataclass(frozen=True)
class Value:
    """One artifact of the task, by Metaflow's names."""

    task: Task
    id: str

    @property
    def data(self) -> Any:
        return self.task.value(self.id)


class Values:
    """`task.data.score`"""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        try:
            return self._task.value(name)
        except KeyError:
            raise AttributeError(f"the task has no artifact {name!r}; it has {', '.join(sorted(self._task.artifacts)) or 'none'}") from None
