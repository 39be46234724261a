"""Runs, those of earlier kernels too: which the store has, how they stand, and how this kernel takes one up.

A run that has ended is folded from its log; an open one is followed over the socket of the engine that drives it. An open run
that no engine drives is "lost" until it is attached: then our own engine goes on with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from flowbook.engine import events
from flowbook.errors import DefinitionError, EngineError, Finding, StoreError, StoreMissing
from flowbook.kernel.cells import notebook_path
from flowbook.kernel.engine import RunKey, RunView, environment, gone
from flowbook.spec import flow as flows
from flowbook.spec.amounts import ago_text
from flowbook.spec.flow import Spec
from flowbook.store import garbage, journal, layout
from flowbook.store.base import Store

if TYPE_CHECKING:
    from flowbook.kernel.session import FlowDef, Session

LISTED = 20  # runs that are listed, and looked through for an open one
NEWS_S = 24 * 3600.0  # a run that ended longer ago is no news
NEWS_TIMEOUT_S = 0.5  # for an engine to answer
NEWS_LOG_BYTES = 300_000  # a longer log is not read for the news
OUTPUT_TAIL = 20_000  # bytes of what a task printed that are shown again
RECALLED_TASKS = 100
LISTED_OBJECTS = 4_000  # of one run, in about as many requests as thousands


@dataclass
class Run:
    """A run as this kernel sees it, whoever started it."""

    spec: Spec
    view: RunView
    params: dict[str, Any] = field(default_factory=dict)
    option: str = ""  # `` --flow NAME`` where a command means another flow without it: see Session.option

    @property
    def id(self) -> str:
        return self.spec.run

    @property
    def of_class(self) -> bool:
        """Whether it is a run of a FlowSpec class."""
        return any(step.method for step in self.spec.steps)

    def command(self, words: str) -> str:
        """A command of `%flow` as a hint: it means this run's flow, whichever is the default."""
        return f"`%flow {words}{self.option}`"


class Listed:
    """Which objects there are, and how large. Where each question is a request, one list of a run answers a thousand."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, dict[str, int]] = {}  # prefix → key → bytes

    def size(self, prefix: str, key: str) -> int:
        """Of an object below `prefix`, bytes; 0 if it is not there."""
        if not self._store.mapped:
            if prefix not in self._known:
                self._known[prefix] = {each.key: each.size for each in islice(self._store.aged(prefix), LISTED_OBJECTS)}
            known = self._known[prefix]
            if key in known or len(known) < LISTED_OBJECTS or key < next(reversed(known)):
                return known.get(key, 0)
        return self._store.size(key) if self._store.exists(key) else 0


class Runs:
    """All runs of the store, as far as one asks for them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._opened: dict[RunKey, Run] = {}

    # ---- the store --------------------------------------------------------------------------------------------------

    def ids(self, flow: str) -> list[str]:
        """Every run of a flow, oldest first."""
        return garbage.run_ids(self._session.store, flow)

    def read_spec(self, flow: str, run_id: str) -> dict[str, Any]:
        """The plain `run.json`. Raises StoreError if it is damaged."""
        key = layout.spec(flow, run_id)
        try:
            found = json.loads(self._session.store.get(key))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError(f"{key} is damaged: it is not JSON. The run cannot be shown; start a new one.")
        return found

    def end_of(self, flow: str, run_id: str) -> dict[str, Any] | None:
        """The event with which a run ended: it stands in the last object of its log."""
        last = max(self._session.store.list(layout.log_prefix(flow, run_id)), default=None)
        found = events.unbatch(self._session.store.get(last), last) if last is not None else []
        return next((event for event in reversed(found) if event["e"] == "run_ended"), None)

    def state(self, flow: str, run_id: str, driven: Mapping[RunKey, str]) -> str:
        """How a run stands, in a word, or in words that say how to go on. `driven`: the runs that have an engine."""
        end = self.end_of(flow, run_id)
        if end is not None:
            return str(end["state"])
        if (flow, run_id) in driven:
            return "running"
        return f"open (its engine is gone; `%flow attach {run_id}{self._session.option(flow)}` goes on with it)"

    # ---- taking one up ----------------------------------------------------------------------------------------------

    def open(self, flow: str, run_id: str) -> Run:
        """Any run of the store. Raises DefinitionError, naming those there are, for one that is not there."""
        known = self._opened.get((flow, run_id))
        if known is not None and known.view.ended != "lost":
            return known
        try:
            if "/" in run_id or "\0" in run_id or run_id.startswith("."):
                raise StoreMissing(run_id)  # it cannot even be a key
            spec = flows.from_json(Spec, self.read_spec(flow, run_id))
        except StoreMissing:
            found = Finding("", f"there is no run {run_id} of {flow}", f"Runs of {flow}: {_listed(self.ids(flow))}.")
            raise DefinitionError(found) from None
        run = self._opened[flow, run_id] = Run(spec, self._view(spec), option=self._session.option(flow))
        run.params = {name: self._session.load_entry(entry, run) for name, entry in spec.params.items()}
        return run

    def _view(self, spec: Spec) -> RunView:
        view = RunView(spec)
        last = self._read(view, "")
        path = None
        if view.ended is None:  # engines are asked before the rest is read: a run that nobody drives has then ended, or was left open
            path = self._session.engine.driven().get((spec.flow, spec.run))
            self._read(view, last)
        view.closed = view.ended is not None
        if view.closed:
            return view
        try:
            if path is None:
                raise EngineError(gone(spec.run, self._session.option(spec.flow)))
            self._session.engine.follow(view, path)
        except EngineError:
            view.ended, view.trouble = "lost", gone(spec.run, self._session.option(spec.flow))
        return view

    def _read(self, view: RunView, after: str) -> str:
        """Take in the log behind the object `after`; the key of the last object."""
        last = after
        for key, batch in journal.read(self._session.store, view.spec.flow, view.spec.run, after):
            last = key
            for event in batch:
                view.apply(event)
        return last

    def find(self, run_id: str | int | None = None, flow: str | None = None) -> Run:
        """The run of that number, else the newest: of this kernel, else of the store."""
        defined = self._session.flow(flow)
        wanted = None if run_id is None else str(run_id)
        run = next((r for r in reversed(defined.runs) if wanted in (None, r.id)), None)
        if run is not None:
            self._refresh(run)
            return run
        if wanted is None:
            ids = self.ids(defined.name)
            if not ids:
                raise DefinitionError(
                    Finding("", f"nothing was run yet of {defined.name}", f"`%flow run{self._session.starts(defined)}` starts a run.")
                )
            wanted = ids[-1]
        return self.open(defined.name, wanted)

    def _refresh(self, run: Run) -> None:
        """An engine that went away may have been replaced meanwhile, by another kernel too."""
        if run.view.ended == "lost":
            run.view = self._view(run.spec)

    def newest_open(self, flow: str) -> str | None:
        return next((r for r in reversed(self.ids(flow)[-LISTED:]) if self.end_of(flow, r) is None), None)

    def attach(self, run_id: str | int | None = None, flow: str | None = None) -> tuple[Run, list[str]]:
        """Take up a run: its names become those of the notebook. One that was left open goes on. Also gives what to tell the user."""
        defined = self._session.flow(flow)
        run = self.find(run_id if run_id is not None else self.newest_open(defined.name), defined.name)
        if run.view.ended is not None and not run.view.closed and self.end_of(defined.name, run.id) is None:
            run.view = self._view(run.spec)  # its engine gave it up, or another one has taken it up meanwhile
        notes = [self._adopt(run)] if run.view.ended == "lost" else []
        if run.view.ended is not None:
            self._recall(run)
        defined.runs = [*(r for r in defined.runs if r.id != run.id), run]
        return run, notes + self._show(defined, run, None)

    def at(self, run_id: str | int | None = None, flow: str | None = None) -> tuple[Run, list[str]]:
        """Let the names of a flow be those of an earlier run; without a number, of the newest again."""
        defined = self._session.flow(flow)
        run = self.find(run_id, defined.name)
        if run_id is None and run not in defined.runs:
            defined.runs.append(run)
        return run, self._show(defined, run, None if run is defined.last else run)

    def _show(self, flow: FlowDef, run: Run, at: Run | None) -> list[str]:
        if run.of_class:
            return []  # a class binds no names of the notebook
        flow.at = at
        flow.past = {step.name: step for step in run.spec.steps}
        return self._session.names.show(flow, run)

    def _adopt(self, run: Run) -> str:
        """Let our engine go on with a run whose own engine is gone."""
        with self._session.engine.changed:
            run.view.ended = run.view.trouble = None
        self._recall(run)
        self._session.engine.run(run.spec, environment(), os.getcwd(), list(sys.path), adopt=run.view)
        return f"the engine of run {run.id} was gone: the engine of this notebook goes on with it"

    def _recall(self, run: Run) -> None:
        """What ended tasks printed and showed, for the display: of a run that was not followed it is only in the store."""
        store, view, there = self._session.store, run.view, Listed(self._session.store)
        for task, state in list(view.state.tasks.items())[:RECALLED_TASKS]:
            key = (task.step, task.index, task.part)
            if state.ended_at is None or key in view.output or key in view.displays:
                continue
            origin, place, attempt = view.state.printed_by(task)
            prefix, where = layout.run_prefix(run.spec.flow, origin), (run.spec.flow, origin, task.step, place, attempt, task.part)
            printed, shown = layout.output(*where), layout.display(*where)
            if size := there.size(prefix, printed):
                view.output[key] = (store.get_range(printed, max(0, size - OUTPUT_TAIL), size).decode("utf-8", "replace"), size)
            if there.size(prefix, shown):
                try:
                    view.displays[key] = list(json.loads(store.get(shown))["frames"])
                except (ValueError, KeyError, TypeError):
                    continue  # only a picture

    # ---- what a new kernel says -------------------------------------------------------------------------------------

    def news(self, *, ended: bool = True) -> str | None:
        """One line about the newest run of this notebook, if it is open or, with `ended`, ended less than a day ago. Reads little."""
        flow = self._session.flow().name
        ids = self.ids(flow)
        if not ids:
            return None
        spec, notebook = self.read_spec(flow, ids[-1]), str(notebook_path(self._session.shell) or "")
        if spec.get("notebook", "") != notebook:
            return None  # of another notebook of that name
        end, name, option = self.end_of(flow, ids[-1]), f"run {ids[-1]} of {flow}", self._session.option(flow)
        if end is not None:
            how, ago = _WORDS.get(end["state"], end["state"]), time.time() - end["at"]
            return f"{name} {how} {ago_text(ago)}: `%flow attach{option}` brings back its names" if ended and ago < NEWS_S else None
        counted = self._counted(flow, ids[-1], spec)
        if (flow, ids[-1]) in self._session.engine.driven(NEWS_TIMEOUT_S):
            return f"{name} is running{counted}: `%flow attach{option}` brings back its display and names"
        return f"{name} is open{counted}, but its engine is gone: `%flow attach{option}` goes on with it"

    def _counted(self, flow: str, run_id: str, spec: Mapping[str, Any]) -> str:
        store = self._session.store
        keys = list(store.list(layout.log_prefix(flow, run_id)))
        if sum(store.size(key) for key in keys) > NEWS_LOG_BYTES:
            return ""
        view = RunView(flows.from_json(Spec, spec))
        for key in keys:
            for event in events.unbatch(store.get(key), key):
                view.apply(event)
        total = len(view.state.tasks)
        done = sum(state.ended_at is not None for state in view.state.tasks.values())
        return f" ({done} of {total} tasks)"


_WORDS = {"stopped": "was stopped"}


def _listed(ids: list[str]) -> str:
    return ", ".join(["…"] * (len(ids) > LISTED) + ids[-LISTED:]) or "none yet"
