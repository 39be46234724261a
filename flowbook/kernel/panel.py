"""The run panel: one anywidget a run, above the static status, moved by a thread of its own.

What it shows is made in panel_data.py; here is who sends it when. All of it is state of the widget, sent key by key as it changes
(`head`, `graph`, `steps`, `tasks`, `tables`, `detail TASK`, `card TASK NAME`): a page that is loaded anew, a second view and an
executed notebook have all of it. A changed card leaves at once and by itself, everything at most ten times a second (a card: on average), and
much rarer where making it costs much: nearly all time is left to the cells. What follows from a card elsewhere, as the last metric in a
table, comes a little later. Messages come from the browser on any thread and only ask: to stop, to retry, to show a task.

The front end is built by .ci/frontend. Without it, or without anywidget, `create` gives None and the static status is all.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flowbook import cards
from flowbook.cards import whole
from flowbook.engine.events import Task
from flowbook.errors import FlowbookError
from flowbook.kernel.panel_data import Made, PanelData, Shown
from flowbook.store import layout, results

if TYPE_CHECKING:
    from flowbook.kernel.runs import Run
    from flowbook.kernel.session import Session

Json = Any

STATIC = Path(__file__).parent.parent / "static"
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 2.0
PAUSE_RATIO = 40  # a sending that cost 5 ms of CPU is followed by a pause of 40 times that
EARLY_S = 0.05  # a card that comes so much early goes out: frames of a worker that sends ten a second do not come evenly
CARDS_ONLY_S = 0.5  # while nothing but cards changes, all else is made anew so often
CLOCK_S = 1.0  # the same while nothing changes
FIRST_DELAY_S = 0.3  # importing anywidget takes as long, and the value of the first run does not wait for it
SPEAKS_OF_CARDS = re.compile(r"\bcards?\b")
FINISH_S = 5.0
VIEW = "application/vnd.jupyter.widget-view+json"
log = logging.getLogger("flowbook")


class Widget(Protocol):
    """What is asked of the widget."""

    model_id: str

    def change(self, state: Mapping[str, Json]) -> None: ...


def create(session: Session, run: Run, show: Callable[[dict[str, Json]], None], retried: Callable[[Run], None]) -> RunPanel | None:
    """The panel of a run, not yet begun; None where there cannot be one. Costs next to nothing.

    `show` puts a mime bundle in its place under the cell; `retried` hears of the run that Retry started.
    """
    if not hasattr(session.shell, "kernel") or not _built() or util.find_spec("anywidget") is None:
        return None
    return RunPanel(session, run, show, retried)


def _built() -> bool:
    return (STATIC / "panel.js").is_file() and (STATIC / "panel.css").is_file()


class RunPanel:
    """Follows one run, and the one that Retry made of it."""

    def __init__(self, session: Session, run: Run, show: Callable[[dict[str, Json]], None], retried: Callable[[Run], None]) -> None:
        self._session, self._show, self._retried = session, show, retried
        self.token = f"{run.spec.flow} {run.id} {time.time_ns():x}"
        self._widget: Widget | None = None
        self._sent: dict[str, Json] = {}
        self._sending = threading.Lock()
        self._busy = threading.Lock()  # held by a retry
        self._thread: threading.Thread | None = None
        self._begun, self._done = threading.Event(), threading.Event()
        self._asked = 0
        self._seen: tuple[int, bool, int] = (-1, False, -1)  # what the last sending of everything told: changes, end, questions
        self._seen_cards = -1  # and how many changes of nothing but a card
        # By time.monotonic(): when everything was sent last, when it may be again, when a card may, and each card by its own pace.
        self._last_s = self._next_s = self._cards_s = 0.0
        self._paces: dict[str, float] = {}
        self._watch(run)

    def _watch(self, run: Run) -> None:
        with self._session.engine.changed:
            self._run, self._data = run, PanelData(run, self.token)
            run.view.watchers.append(self._data.heard)

    @property
    def shown(self) -> bool:
        """Whether it is in its place."""
        return self._widget is not None

    # ---- the thread -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._done.clear()
        self._thread = threading.Thread(target=self._loop, name="flowbook-panel", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        try:
            if self._widget is None:
                self._wait_for_quiet()
                self._begun.set()
                self._open()
            self._move()
        except Exception as error:  # the static status goes on without it, and no traceback of ours stands under a user's cell
            log.warning("the run panel ended: %s: %s", type(error).__name__, error, exc_info=True)
            self._apologise(error)
        finally:
            self._done.set()

    def _wait_for_quiet(self) -> None:
        if "anywidget" in sys.modules or _shows_cards(self._run):
            return
        changed, view = self._session.engine.changed, self._run.view
        with changed:
            changed.wait_for(lambda: view.ended is not None, FIRST_DELAY_S)
            ended = view.ended is not None
        if ended:
            time.sleep(FIRST_DELAY_S)  # the cell that waited reads its values now

    def _open(self) -> None:
        state = self._state(self._collect()) | {"graph": self._data.layout()}
        self._sent = dict(state)
        self._widget = widget_class()(state, self._hear)
        self._show({VIEW: {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}, "text/plain": ""})

    def _move(self) -> None:
        changed, view = self._session.engine.changed, self._run.view
        while True:
            with changed:
                while (wait_s := min(self._all_due_s(), self._cards_due_s()) - time.monotonic()) > 0:
                    changed.wait(wait_s)
                everything = self._all_due_s() <= time.monotonic()
            if not everything:
                self.send_cards()
                continue
            more = self.send()
            if view.ended is not None and not more:
                self.send(whole=True)  # an executed notebook takes in only what is sent while a cell runs
                with changed:
                    if self._seen == self._now_seen():
                        self._done.set()  # under the lock: whoever asks from now on sends himself
                        return

    def _now_seen(self) -> tuple[int, bool, int]:
        view = self._run.view
        return view.version - self._data.only_cards, view.ended is not None, self._asked

    def _all_due_s(self) -> float:
        """When everything is to be sent, by time.monotonic(). Here and below: with the lock of the engine's client."""
        if self._seen != self._now_seen():
            return self._next_s
        return max(self._next_s, self._last_s + (CARDS_ONLY_S if self._seen_cards != self._data.only_cards else CLOCK_S))

    def _cards_due_s(self) -> float:
        """When the next of the changed cards that are shown is to be sent."""
        due = [self._paces.get(key, 0.0) - EARLY_S for key in self._data.moved if key in self._sent]
        return max(min(due), self._cards_s) if due else math.inf

    def finish(self) -> None:
        """For a cell that waited and whose notebook is saved when it ends: let the last state be sent, if the panel has begun."""
        if self._begun.is_set():
            self._done.wait(FINISH_S)

    # ---- sending ----------------------------------------------------------------------------------------------------

    def send(self, whole: bool = False) -> bool:
        """Send what has changed, or everything. True if there is more to read from the store."""
        with self._sending:
            begun = time.thread_time()
            more = self._read()
            time.sleep(0)  # the main thread may have its turn between two parts, else it waits for the interpreter's next switch
            state = self._state(self._collect())
            time.sleep(0)
            gone = {
                key: None for key in self._sent if key not in state and key.startswith(("detail ", "card ")) and self._sent[key] is not None
            }
            new = {key: value for key, value in state.items() if key not in self._sent or self._sent[key] != value}
            if "head" in new and _is_only_later(new["head"], self._sent.get("head")):
                del new["head"]
            if whole:
                new = {**self._sent, **state, **gone}
            if self._widget is not None and (new or gone):
                time.sleep(0)
                self._widget.change(new | gone)
                with self._session.engine.changed:
                    self._sent.update(new)
                    for key in gone:
                        del self._sent[key]
                        self._paces.pop(key, None)
            self._last_s = now = time.monotonic()
            self._pace(new, now)
            self._next_s = now + min(max(PAUSE_RATIO * (time.thread_time() - begun), MIN_INTERVAL_S), MAX_INTERVAL_S)
            return more

    def send_cards(self) -> None:
        """Send the cards that have changed and are due, as far as they are shown already."""
        with self._sending:
            begun = time.thread_time()
            with self._session.engine.changed:
                early = time.monotonic() + EARLY_S
                found = self._data.take([key for key in self._data.moved if key in self._sent and self._paces.get(key, 0.0) <= early])
            new = _with_vega({key: card for key, card in found.items() if self._sent[key] != card}, self._sent)
            if self._widget is not None and new:
                time.sleep(0)
                self._widget.change(new)
                self._sent.update(new)
            now = time.monotonic()
            self._pace(found, now)
            self._cards_s = now + min(PAUSE_RATIO * (time.thread_time() - begun), MAX_INTERVAL_S)

    def _pace(self, sent: Iterable[str], now: float) -> None:
        for key in sent:
            if key.startswith("card "):
                self._paces[key] = max(self._paces.get(key, 0.0), now) + MIN_INTERVAL_S

    def _collect(self) -> Shown:
        with self._session.engine.changed:
            self._seen, self._seen_cards = self._now_seen(), self._data.only_cards
            return self._data.shown(time.time())

    @staticmethod
    def _state(shown: Shown) -> dict[str, Json]:
        """By the keys of the model."""
        state: dict[str, Json] = {"head": shown.head, "steps": shown.steps, "tasks": shown.tasks, "tables": shown.tables}
        state |= {f"detail {name}": detail for name, detail in shown.details.items()}
        return state | _with_vega(shown.cards, {})

    def _read(self) -> bool:
        """Bring to the data what it wants from the store. The store is read without the lock."""
        changed, data = self._session.engine.changed, self._data
        with changed:
            commits, carded, parts = data.wanted_commits(), data.wanted_cards(), data.wanted_parts()
            places = {task: self._run.view.state.printed_by(task) for task in (*commits, *carded, *parts)}
        made = {task: self._made(task, places[task]) for task in commits}
        stored = {task: self._stored_cards(task, places[task]) for task in carded}
        put = {task: next(iter(self._stored_cards(task, places[task], of_run=True).values()), None) for task in parts}
        with changed:
            data.commits |= made
            data.stored |= stored
            data.put(put)
            return bool(data.wanted_commits() or data.wanted_cards() or data.wanted_parts())

    def _made(self, task: Task, place: tuple[str, tuple[int, ...], int]) -> Made | None:
        run, index, _ = place
        try:
            found = results.read_commit(self._session.store, self._run.spec.flow, run, task.step, index, task.part)
        except FlowbookError:
            return None
        return Made.of(found) if found is not None else None

    def _stored_cards(self, task: Task, place: tuple[str, tuple[int, ...], int], *, of_run: bool = False) -> dict[str, Json]:
        run, index, attempt = place
        where = (self._run.spec.flow, run, task.step, index, attempt)
        store, prefix = self._session.store, layout.card_prefix(*where)
        found = {}
        try:
            for key in whole.keys(store, where, of_run):
                found[key.removeprefix(prefix).removesuffix(".json")] = cards.read(store.get(key))
        except FlowbookError:
            pass  # only a picture
        return found

    def _apologise(self, error: Exception) -> None:
        head = self._sent.get("head")
        if self._widget is not None and head is not None:
            said = f"the panel ended ({type(error).__name__}); {self._run.command('status')} tells how the run stands"
            self._widget.change({"head": head | {"trouble": said}})

    # ---- what the browser asks --------------------------------------------------------------------------------------

    def _hear(self, command: Json) -> None:
        """Runs on whatever thread the kernel hears on, also while a cell blocks the main one; hence it only asks."""
        if not isinstance(command, dict):
            return
        step, index = command.get("step"), command.get("index")
        step = step if isinstance(step, str) else None
        index = [i for i in index if isinstance(i, int)] if isinstance(index, list) else None
        if command.get("do") == "stop":
            self._stop(step, index)
        elif command.get("do") == "retry":
            threading.Thread(target=self._retry, name="flowbook-retry", daemon=True).start()
        elif command.get("do") == "show" and step is not None:
            with self._session.engine.changed:
                self._data.look_at(Task(step, tuple(index or ())))
            self._wake()

    def _stop(self, step: str | None, index: list[int] | None) -> None:
        try:
            self._say(self._session.stop(self._run, step, index))
        except FlowbookError as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        with self._session.engine.changed:
            self._data.say(text)
        self._wake()

    def _wake(self) -> None:
        with self._session.engine.changed:
            self._asked += 1
            self._session.engine.changed.notify_all()
            done = self._done.is_set()
        if done:
            while self.send():
                pass

    def _retry(self) -> None:
        if not self._busy.acquire(blocking=False):
            return  # a second click
        try:
            old = self._run
            if old.view.ended is None:
                self._say(f"run {old.id} is still open: it can be retried when it has ended")
                return
            try:
                run, notes = self._session.resume(old.id, old.spec.flow)
            except FlowbookError as error:
                self._say(str(error))
                return
            self._done.wait()
            said = f"run {run.id} goes on where run {old.id} ended" if run.id != old.id else f"run {run.id} goes on"
            self._take_up(run, notes, said)
        finally:
            self._busy.release()

    def _take_up(self, run: Run, notes: list[str], said: str) -> None:
        """Show another run in the same place."""
        before = self._data.said
        with self._session.engine.changed:
            self._run.view.watchers.remove(self._data.heard)
            self._watch(run)
            self._data.notes = notes
            self._data.said = before
            self._data.say(said)
        if self._widget is not None:
            layout_now = self._data.layout()
            self._sent["graph"] = layout_now
            self._widget.change({"graph": layout_now})
        self._retried(run)
        self.start()


def _shows_cards(run: Run) -> bool:
    """Whether a step has a card, or speaks of one: it is to be seen soon after the step begins."""
    texts = (str(source.get("source", "")) for source in run.spec.sources.values() if isinstance(source, dict))
    return any(step.options.cards or SPEAKS_OF_CARDS.search(step.source) for step in run.spec.steps) or any(
        map(SPEAKS_OF_CARDS.search, texts)
    )


def _with_vega(cards: Mapping[str, Json], sent: Mapping[str, Json]) -> dict[str, Json]:
    """Cards, and what draws their charts if it was not sent yet."""
    if "vega" not in sent and any(map(uses_vega, cards.values())) and (asset := vega()) is not None:
        return {**cards, "vega": asset}
    return dict(cards)


def uses_vega(part: Json) -> bool:
    """Whether a card, or a part of one, has a chart that needs Vega."""
    if isinstance(part, dict):
        inner = part.get("components"), part.get("rows"), part.get("events"), part.get("payloads")
        return part.get("type") == "vega" or any(uses_vega(each) for each in inner if each)
    if isinstance(part, list):
        return any(uses_vega(each) for each in part if isinstance(each, (dict, list)))
    return False


@cache
def vega() -> dict[str, str] | None:
    """Vega for all panels of this kernel: one more widget, which holds its code as bytes, so that no panel carries it and no network is asked."""
    path = STATIC / "vega.js"
    if not path.is_file():
        return None
    import anywidget
    import traitlets

    class Vega(anywidget.AnyWidget):
        _esm = "export default {}"
        bytes = traitlets.Bytes().tag(sync=True)

    code = path.read_bytes()
    return {"model": Vega(bytes=code).model_id, "version": hashlib.sha256(code).hexdigest()[:16]}


def _is_only_later(head: Mapping[str, Json], before: Mapping[str, Json] | None) -> bool:
    """Whether a head tells nothing but the time, less than a second after the last."""
    return before is not None and head["now"] - before["now"] < 0.95 and {**head, "now": 0} == {**before, "now": 0}


@cache
def widget_class() -> Callable[[dict[str, Json], Callable[[Json], None]], Widget]:
    """The class of the widget; made when the first panel is shown, as importing anywidget takes 0.3 s."""
    import anywidget

    class Panel(anywidget.AnyWidget):
        """State that is sent by hand: a changed card is one message with that card, not with all cards."""

        _esm = (STATIC / "panel.js").read_text("utf-8")
        _css = (STATIC / "panel.css").read_text("utf-8")

        def __init__(self, state: dict[str, Json], heard: Callable[[Json], None]) -> None:
            self._kept, self._keeping = dict(state), threading.Lock()
            super().__init__()
            self.on_msg(lambda widget, content, buffers: heard(content))
            # From ipykernel 7.4 on a message goes to the thread that last sent something, here the main one, where a cell may
            # block it. Ours may come on any thread, so it stays on the one that JupyterLab chose.
            if hasattr(self.comm, "_reply_subshell_for"):
                self.comm._reply_subshell_for = lambda data, default: default

        def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Json]:
            found: dict[str, Json] = super().get_state(key, drop_defaults)
            if key is None:
                with self._keeping:
                    found |= self._kept
            return found

        def change(self, state: Mapping[str, Json]) -> None:
            with self._keeping:
                self._kept.update(state)
                for key in [key for key, value in state.items() if value is None]:
                    del self._kept[key]
            if self.comm is not None:
                self.comm.send({"method": "update", "state": dict(state), "buffer_paths": []})

    return Panel
