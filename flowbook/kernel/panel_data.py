"""What the run panel shows, as JSON: pure, from a RunView and what was heard on the way.

A `PanelData` hears every event and hint of one run (`heard`, some microseconds each) and is asked now and then for all that the
panel shows (`shown`). Asking costs what there is to show, not what there are tasks: at most TASKS tasks, ROWS rows of a table, some
details. Which tasks: those that failed, those that run, those that changed last, and those that somebody looks at; the counts of the
steps tell of the others. It reads no store and knows no clock: what a task left (`commits`) is brought to it.

The form of everything is in labextension/src/types.ts; the TypedDicts here are compared with it by a test.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypedDict, cast

from flowbook.cards import whole, wire
from flowbook.engine.events import Task
from flowbook.kernel import display
from flowbook.kernel.tally import POD_PHASES
from flowbook.spec import graph
from flowbook.spec.flow import Spec, Step, task_name
from flowbook.store import preview

if TYPE_CHECKING:
    from flowbook.engine.state import TaskState
    from flowbook.kernel.runs import Run

Json = Any

TASKS = 300  # of the timeline
FAILED = 100  # of those, failed ones
ROWS = 200  # of one table
ALL_ROWS = 1_000  # of all tables together
COLUMNS = 24  # of one table
DETAILS = 24  # tasks with details
DETAIL_BYTES = 1_000_000  # of all details together, roughly
CARD_BYTES = 1_500_000  # of all cards together, roughly: with the copy that lasts less than 2 MB in the notebook
CARDS_KEPT, CARDS_KEPT_BYTES = 64, 64_000_000  # tasks whose live cards are kept
OUTPUT, OUTPUT_LOOKED_AT = 4_000, 60_000  # characters of a task's output: unasked, and of one that somebody looks at
IMAGE_CHARS = 400_000  # of what one task displayed
ARTIFACTS = 60  # of one task
REPR, TEXT, SHORT = 300, 2_000, 120  # characters
COMMITS_AT_ONCE = 40  # read for one sending
LOOKED_AT = 4  # tasks that views have opened last
RUN_CARD = "card run"  # key of the run's own card
USES_RUN_CARD = re.compile(r"card[\s\S]*\.\s*run\b")
NUMBER = re.compile(r"-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\Z|(?:np\.\w+\()(?P<inner>-?[\d.eE+-]+)\)\Z")


class Said(TypedDict):
    n: int
    text: str


class Param(TypedDict):
    name: str
    value: str


class Head(TypedDict):
    flow: str
    run: str
    token: str
    state: str
    started: float | None
    ended: float | None
    now: float
    origin: str | None
    notes: list[str]
    trouble: str | None
    params: list[Param]
    error: str | None
    advice: str | None
    said: Said | None
    retry: str | None


class GraphNode(TypedDict):
    step: str
    x: float
    y: float
    w: float
    h: float
    label: str
    note: str


GraphEdge = TypedDict("GraphEdge", {"from": str, "to": str, "path": str, "reads": list[str]})


class Graph(TypedDict):
    width: float
    height: float
    nodes: list[GraphNode]
    edges: list[GraphEdge]


class StepJson(TypedDict):
    step: str
    state: str
    phase: str | None
    counts: dict[str, int]
    total: int
    begun: float | None
    seconds: float | None
    note: str
    fan: bool


class TaskJson(TypedDict):
    id: str
    step: str
    index: list[int]
    item: str | None
    state: str
    phase: str | None
    attempt: int
    queued: float | None
    launched: float | None
    pod: dict[str, float] | None
    running: float | None
    saving: float | None
    ended: float | None
    peak_mb: float | None
    cpu_s: float | None
    why: str | None
    cached: str | None


class Column(TypedDict):
    name: str
    kind: str
    numeric: bool


class Table(TypedDict):
    columns: list[Column]
    rows: list[list[Json]]
    total: int


class Failure(TypedDict):
    type: str
    message: str
    cell: str | None
    line: int | None
    source_line: str | None
    traceback: str


class Artifact(TypedDict):
    name: str
    type: str
    size: int | None
    repr: str


class Piece(TypedDict):
    mime: str
    data: str


class Detail(TypedDict):
    output: list[Piece]
    size: int
    error: Failure | None
    artifacts: list[Artifact]
    left_out: int
    cards: list[str]


@dataclass(frozen=True)
class Made:
    """What the panel keeps of a COMMIT."""

    artifacts: tuple[Artifact, ...]
    left_out: int
    scalars: Mapping[str, Json]
    seconds: Mapping[str, float]  # loading, running, saving

    @classmethod
    def of(cls, commit: Mapping[str, Json]) -> Made:
        entries = commit.get("artifacts")
        named = [(name, e) for name, e in entries.items() if isinstance(e, dict)] if isinstance(entries, dict) else []
        named = [(name, entry) for name, entry in named if not name.startswith("_") and entry.get("kind") != "module"]
        kept = [_artifact(name, entry) for name, entry in named[:ARTIFACTS]]
        scalars = {name: value for name, e in named if (value := _scalar(e)) is not None}
        return cls(tuple(kept), max(len(named) - ARTIFACTS, 0), scalars, _seconds(commit.get("seconds")))


@dataclass(frozen=True)
class Shown:
    """All that the panel shows. `details` and `cards` are by task and by key."""

    head: Head
    steps: list[StepJson]
    tasks: list[TaskJson]
    tables: dict[str, Table]
    details: dict[str, Detail]
    cards: dict[str, Json]


class PanelData:
    """One run. `heard` and `shown` are called with the lock of the engine's client held; nothing here waits."""

    def __init__(self, run: Run, token: str = "") -> None:
        self._run, self._view, self._token = run, run.view, token
        self.commits: dict[Task, Made | None] = {}  # None: there is none that could be read
        self.stored: dict[Task, Mapping[str, Json]] = {}  # cards from the store, of tasks whose frames were not heard: name → card
        self.notes: list[str] = []
        self.said: Said | None = None
        self.only_cards = 0  # hints so far that changed nothing but a card that was there before
        self.moved: dict[str, tuple[Task, str]] = {}  # key → task and name of the cards that such hints changed, since they were taken
        self._order = {step.name: place for place, step in enumerate(run.spec.steps)}
        self._steps = {step.name: step for step in run.spec.steps}
        self._sources = _sources(run.spec.steps)
        self._touched: dict[str, dict[Task, None]] = {step.name: {} for step in run.spec.steps}  # the last one changed last
        self._newest: dict[Task, None] = {}
        self._failed: dict[Task, None] = {}
        self._seconds: dict[Task, Mapping[str, float]] = {}  # of loading, running, saving
        self._cards: dict[Task, dict[str, tuple[int, Json]]] = {}  # name → version, card
        self._card_sizes: dict[Task, int] = {}
        self._checked: dict[tuple[Task, str], tuple[int, Json]] = {}
        self._parts: dict[Task, tuple[int, Json]] = {}  # of the run's card: version, what the task put on it
        self._put_by = _may_put(run.spec)
        self._unasked: dict[Task, None] = {}  # ended, and their parts of the run's card are not known
        self._whole: tuple[Json, Json] = (None, None)  # the run's card, and what it was made of
        self._looked_at: dict[Task, None] = {}
        self._grouped, self._by_step = -1, dict[str, dict[Task, None]]()
        self._rows: dict[Task, TaskJson] = {}  # of tasks that have not changed since
        self._failure: tuple[bool, str, str] | None = None
        for task, state in sorted(run.view.state.tasks.items(), key=lambda pair: pair[1].ended_at or pair[1].launched_at or 0.0):
            if state.launched_at is not None or state.ended_at is not None:
                self._touch(task)
                if state.state == "failed":
                    self._failed[task] = None
                if state.ended_at is not None:
                    self._ended(task)

    # ---- hearing ----------------------------------------------------------------------------------------------------

    def heard(self, message: Mapping[str, Json]) -> None:
        """Take in one event of the log, or one hint, after the view has."""
        if message.get("step") is None or "index" not in message or message.get("e") == "stop_requested":
            return
        task = Task(message["step"], tuple(message.get("index") or ()), message.get("part") or "body")
        if "e" in message:
            self._on_event(task, message)
        elif message.get("f") == "phase":
            self._rows.pop(task, None)
        elif message.get("f") == "card":
            self._on_card(task, message)

    def _on_event(self, task: Task, event: Mapping[str, Json]) -> None:
        self._touch(task)
        kind = event["e"]
        if kind in ("succeeded", "failed", "stopped", "reused"):
            self._ended(task)
        if kind == "launched":
            self._seconds.pop(task, None)
            for name in self._cards.pop(task, ()):
                self._checked.pop((task, name), None)
                self.moved.pop(card_key(task, name), None)
            self._card_sizes.pop(task, None)
            self.stored.pop(task, None)
            self._parts.pop(task, None)
            self._unasked.pop(task, None)
        elif kind == "failed":
            self._failed[task] = None
        elif kind == "succeeded":
            self._seconds[task] = _seconds(event.get("seconds"))

    def _on_card(self, task: Task, message: Mapping[str, Json]) -> None:
        card, version = message.get("card"), message.get("v")
        if not isinstance(card, dict) or not isinstance(version, int):
            return
        name = str(message.get("id"))[:SHORT]
        if name == wire.OF_RUN:
            if task in self._parts or len(self._parts) < whole.PARTS:
                self._parts[task] = (version, wire.checked(card))
            return
        kept = self._cards.setdefault(task, {})
        if name in kept:
            self.only_cards += 1
            self.moved[card_key(task, name)] = (task, name)
        kept[name] = (version, card)
        self._card_sizes[task] = sum(_strings(card) for _, card in kept.values())
        while len(self._cards) > CARDS_KEPT or (len(self._cards) > 1 and sum(self._card_sizes.values()) > CARDS_KEPT_BYTES):
            self._drop_card()

    def _drop_card(self) -> None:
        """Forget the cards that are least worth keeping: the store has them, too. Of tasks that run those stay that came first, else
        those that are shown would change all the time."""
        active, looked_at = self._view.state.active, self._looked_at
        idle = (task for task in self._cards if task not in active and task not in looked_at)
        last = (task for task in reversed(self._cards) if task not in looked_at)
        worst = next(idle, None) or next(last, None) or next(iter(self._cards))
        self._card_sizes.pop(worst, None)
        for name in self._cards.pop(worst):
            self._checked.pop((worst, name), None)
            self.moved.pop(card_key(worst, name), None)

    def _touch(self, task: Task) -> None:
        self._rows.pop(task, None)
        for order in (self._touched.get(task.step), self._newest):
            if order is not None:
                order.pop(task, None)
                order[task] = None

    def look_at(self, task: Task) -> None:
        """Somebody opened this task: it is shown whole, and stays in the lists."""
        if task in self._view.state.tasks:
            self._looked_at.pop(task, None)
            self._looked_at[task] = None
            while len(self._looked_at) > LOOKED_AT:
                del self._looked_at[next(iter(self._looked_at))]

    def say(self, text: str) -> None:
        self.said = {"n": (self.said["n"] if self.said else 0) + 1, "text": _text(text, TEXT)}

    # ---- showing ----------------------------------------------------------------------------------------------------

    def shown(self, now: float) -> Shown:
        """All of it, at `now` by the clock of the engine."""
        self.moved.clear()
        chosen = self._details()
        budget = DETAIL_BYTES
        details: dict[str, Detail] = {}
        for task in chosen:
            if budget > 0:
                details[name_of(task)] = found = self._detail(task)
                trace = len(found["error"]["traceback"]) if found["error"] else 0
                budget -= sum(len(piece["data"]) for piece in found["output"]) + 100 * len(found["artifacts"]) + trace + 200
        cards = dict(self._shown_cards(task for task in chosen if name_of(task) in details))
        if (run_card := self._run_card()) is not None:
            cards[RUN_CARD] = run_card
        for task in chosen:
            if name_of(task) in details:
                details[name_of(task)]["cards"] = [key for key in self._card_keys(task) if key in cards]
        return Shown(self._head(now), self._step_rows(now), self._task_rows(), self._tables(), details, cards)

    def layout(self) -> Graph:
        return cast(Graph, graph.graph_layout(self._run.spec.steps))

    def _head(self, now: float) -> Head:
        view, spec = self._view, self._run.spec
        failure = self._first_failure()
        notes = [*display.all_waits(self._run), *display.all_notes(self._run), *display.all_warnings(self._run), *self.notes]
        return {
            "flow": spec.flow,
            "run": spec.run,
            "token": self._token,
            "state": view.ended or "running",
            "started": view.started_at,
            "ended": view.ended_at,
            "now": round(now, 2),
            "origin": spec.origin,
            "notes": [_text(note, TEXT) for note in notes if note],
            "trouble": _text(view.trouble, TEXT) if view.trouble else None,
            "params": [{"name": name, "value": _entry_text(entry)} for name, entry in islice(spec.params.items(), 40)],
            "error": failure[0],
            "advice": failure[1],
            "said": self.said,
            "retry": _retry(view.ended),
        }

    def _first_failure(self) -> tuple[str | None, str | None]:
        failed = sum(self._view.state.counts(step).get("failed", 0) for step in self._order)
        if not failed:
            return None, None
        ended = self._view.ended is not None
        if self._failure is None or self._failure[0] != ended:  # the first one stays the first; the advice is another one at the end
            found = display.failure(self._run)
            self._failure = (ended, _text(found.message, TEXT), _text(found.advice, TEXT))
        return self._failure[1], self._failure[2]

    def _step_rows(self, now: float) -> list[StepJson]:
        found: list[StepJson] = []
        for row in display.rows(self._run, now):
            step: Step = row["step"]
            tally = self._view.tally.of(step.name)
            runs_on = bool(row["running"]) and self._view.ended is None
            found.append(
                {
                    "step": step.name,
                    "state": display.row_state(row, self._view.ended),
                    "phase": row["phase"],
                    "counts": {state: count for state, count in row["counts"].items() if count},
                    "total": row["total"],
                    "begun": tally.begun,
                    "seconds": None if runs_on or row["seconds"] is None else round(row["seconds"], 3),
                    "note": _text(row["note"], TEXT),
                    "fan": bool(step.scope),
                }
            )
        return found

    # ---- tasks ------------------------------------------------------------------------------------------------------

    def _listed(self, every: Mapping[Task, Json], newest: dict[Task, None], limit: int, step: str | None = None) -> list[Task]:
        """At most `limit` of some tasks in the order of the notebook: failed ones, running ones, the newest."""
        if len(every) <= limit:
            return sorted(every, key=self._place)
        state = self._view.state
        wanted: dict[Task, None] = {t: None for t in self._looked_at if step in (None, t.step)}
        failed = (t for t in self._failed if step in (None, t.step) and state.tasks[t].state == "failed")
        wanted |= dict.fromkeys(islice(failed, min(FAILED, limit // 2)))
        wanted |= dict.fromkeys(islice((t for t in reversed(list(state.active)) if step in (None, t.step)), FAILED))
        for task in reversed(newest):
            if len(wanted) >= limit:
                break
            wanted[task] = None
        return sorted(islice(wanted, limit), key=self._place)

    def _place(self, task: Task) -> tuple[int, tuple[int, ...], bool]:
        return self._order.get(task.step, 0), task.index, task.part == "body"

    def _task_rows(self) -> list[TaskJson]:
        tasks = self._view.state.tasks
        listed = self._listed(tasks, self._newest, TASKS)
        # A --foreach that was evaluated is no work of its own: its tasks stand for it.
        return [self._task_row(task) for task in listed if task.part == "body" or tasks[task].state != "succeeded"]

    def _task_row(self, task: Task) -> TaskJson:
        row = self._rows.get(task)
        if row is None:
            row = self._new_row(task, self._view.state.tasks[task])
            if row["ended"] is not None or row["launched"] is not None:  # what waits may change without an event of its own
                self._rows[task] = row
        return row

    def _new_row(self, task: Task, state: TaskState) -> TaskJson:
        key = (task.step, task.index, task.part)
        launched = state.launched_at if state.origin is None else None
        after = self._view.began.get(key, {}) if launched is not None else {}
        began = {phase: round(at + (launched or 0.0), 3) for phase, at in after.items()}
        running, saving = began.get("running"), began.get("saving")
        made = self.commits.get(task)
        seconds = self._seconds.get(task) or (made.seconds if made else None)
        if seconds and state.ended_at is not None and state.origin is None:  # an engine that was asked late has not seen it begin
            saving = saving or state.ended_at - seconds.get("saving", 0.0)
            running = running or saving - seconds.get("running", 0.0)
        phase = self._view.phase.get(key)
        works = state.state == "launched" and phase in ("running", "saving")
        word = display.phase_word(phase, began) if state.state == "launched" else None
        pod = {name: began[name] for name in POD_PHASES if name in began}
        why = state.blocked or self._view.why.get(key) or (state.why if word is None else "")
        return {
            "id": name_of(task),
            "step": task.step,
            "index": list(task.index),
            "item": _text(state.item, SHORT) if state.item is not None and preview.mode() == preview.FULL else None,
            "state": "running" if works else state.state,
            "phase": word,
            "attempt": state.attempt,
            "queued": _ms(self._queued(task, launched)),
            "launched": _ms(launched),
            "pod": pod or None,
            "running": _ms(running),
            "saving": _ms(saving),
            "ended": _ms(state.ended_at),
            "peak_mb": _number(state.peak_mb),
            "cpu_s": _number(state.cpu_s),
            "why": _text(why or "", SHORT * 3) or None,
            "cached": state.origin,
        }

    def _queued(self, task: Task, launched: float | None) -> float | None:
        """When all that it needs was there: the last end of what it reads, as far as that was before its launch."""
        if launched is None:
            return None
        ends = [self._view.started_at]
        for source in self._sources.get(task.step, ()):
            scope = len(self._steps[source].scope)
            if scope <= len(task.index):
                found = self._view.state.tasks.get(Task(source, task.index[:scope]))
                ends.append(found.ended_at if found else None)
            else:
                ends.append(self._view.tally.of(source).ended)
        return max((end for end in ends if end is not None and end <= launched), default=None)

    # ---- tables -----------------------------------------------------------------------------------------------------

    def _tables(self) -> dict[str, Table]:
        fans = [step for step in self._run.spec.steps if step.scope]
        limit = min(ROWS, max(ALL_ROWS // len(fans), 20)) if fans else 0
        found = {}
        for step in fans:
            every = self._every(step.name)
            chosen = self._listed(every, self._touched[step.name], limit, step.name)
            found[step.name] = self._table(step, [task for task in chosen if task.part == "body"], len(every))
        return found

    def _every(self, step: str) -> Mapping[Task, None]:
        """All tasks of the body of a step; gone through anew only when there are more than before."""
        tasks = self._view.state.tasks
        if self._grouped != len(tasks):
            self._grouped, self._by_step = len(tasks), {}
            for task in tasks:
                if task.part == "body":
                    self._by_step.setdefault(task.step, {})[task] = None
        return self._by_step.get(step, {})

    def _table(self, step: Step, tasks: Sequence[Task], total: int) -> Table:
        named = names_of_item(step)
        told = preview.mode() == preview.FULL
        items = [item_values(self._view.state.tasks[task].item if told else None, named) for task in tasks]
        item_names = list(dict.fromkeys(name for item in items for name in item))
        heard = self._view.metrics
        metrics = [heard.get((task.step, task.index, task.part)) or wire.metrics_of(self.stored.get(task, {}).values()) for task in tasks]
        scalars = [made.scalars if (made := self.commits.get(task)) else {} for task in tasks]
        made_names = [name for name in dict.fromkeys(name for row in scalars for name in row) if name not in item_names]
        metric_names = [n for n in dict.fromkeys(name for row in metrics for name in row) if n not in (*item_names, *made_names)]
        columns: list[tuple[str, str, list[Json]]] = [("task", "task", [name_of(task) for task in tasks])]
        columns += [(name, "item", [item.get(name) for item in items]) for name in item_names]
        columns.append(("state", "state", [row["phase"] or row["state"] for row in map(self._task_row, tasks)]))
        columns.append(("time", "time", [self._time(task) for task in tasks]))
        columns += [(name, "metric", [row.get(name) for row in metrics]) for name in metric_names]
        live_too = zip(scalars, metrics, strict=True)
        both = [(row, metric) for row, metric in live_too]
        columns += [(name, "artifact", [row.get(name, metric.get(name)) for row, metric in both]) for name in made_names]
        columns = columns[:COLUMNS]
        return {
            "columns": [{"name": _text(name, SHORT), "kind": kind, "numeric": _numeric(kind, values)} for name, kind, values in columns],
            "rows": [list(row) for row in zip(*(values for _, _, values in columns), strict=True)],
            "total": total,
        }

    def _time(self, task: Task) -> float | None:
        state = self._view.state.tasks[task]
        if state.launched_at is None or state.origin is not None:
            return None
        if state.ended_at is None:
            return -state.launched_at if state.state == "launched" else None
        return _ms(state.ended_at - state.launched_at)

    # ---- details ----------------------------------------------------------------------------------------------------

    def _details(self) -> list[Task]:
        """The tasks of which everything is shown, the most wanted first."""
        state = self._view.state
        wanted: dict[Task, None] = dict.fromkeys(reversed(self._looked_at))
        wanted |= dict.fromkeys(islice((t for t in self._failed if state.tasks[t].state == "failed"), DETAILS // 3))
        wanted |= dict.fromkeys(islice((task for task in self._cards if task in state.active), DETAILS // 3))
        wanted |= dict.fromkeys(islice(reversed(list(state.active)), DETAILS // 3))
        for task in reversed(self._newest):
            if len(wanted) >= DETAILS:
                break
            if task.part == "body":
                wanted[task] = None
        return list(wanted)

    def _detail(self, task: Task) -> Detail:
        state = self._view.state.tasks[task]
        key = (task.step, task.index, task.part)
        text, size = self._view.output.get(key, ("", 0))
        made = self.commits.get(task)
        limit = OUTPUT_LOOKED_AT if task in self._looked_at else OUTPUT
        output, written_over = _pieces(text, size, self._view.displays.get(key, ()), limit)
        return {
            "output": output,
            "size": size - written_over,
            "error": _failure(state.error) if state.error else None,
            "artifacts": list(made.artifacts) if made else [],
            "left_out": made.left_out if made else 0,
            "cards": [],
        }

    def wanted_commits(self) -> list[Task]:
        """Ended tasks whose COMMIT is to be shown and was not brought yet, the most wanted first, some at a time."""
        tasks = self._view.state.tasks
        found: dict[Task, None] = {}
        for task in (*self._details(), *self._table_tasks()):
            if task.part == "body" and task not in self.commits and tasks[task].state == "succeeded":
                found[task] = None
                if len(found) >= COMMITS_AT_ONCE:
                    break
        return list(found)

    def _table_tasks(self) -> Iterator[Task]:
        for step in self._run.spec.steps:
            if step.scope:
                yield from islice(reversed(self._touched[step.name]), ROWS)

    def wanted_cards(self) -> list[Task]:
        """Tasks with details that ended, of which no frame was heard: what the store has of their cards is to be put into `stored`."""
        tasks = self._view.state.tasks
        return [t for t in self._details() if t not in self._cards and t not in self.stored and tasks[t].ended_at is not None]

    def wanted_parts(self) -> list[Task]:
        """Tasks that ended, of whose part of the run's card nothing was heard: what the store has is to be given to `put`."""
        return list(islice(self._unasked, COMMITS_AT_ONCE)) if len(self._parts) < whole.PARTS else []

    def put(self, parts: Mapping[Task, Json]) -> None:
        """What the store has of the wanted parts; None where there is none."""
        for task, part in parts.items():
            self._unasked.pop(task, None)
            if part is not None and len(self._parts) < whole.PARTS:
                self._parts.setdefault(task, (0, part))

    def _ended(self, task: Task) -> None:
        if task.part == "body" and task.step in self._put_by and task not in self._parts:
            self._unasked[task] = None

    # ---- cards ------------------------------------------------------------------------------------------------------

    def take(self, keys: Iterable[str]) -> dict[str, Json]:
        """Cards that have moved, by their keys."""
        return {key: self._card(*self.moved.pop(key)) for key in keys}

    def _run_card(self) -> Json:
        """What the tasks put on the card of their run, as one card; the same object as long as nothing changed."""
        view = self._view
        kept = [(task, *self._parts[task]) for task in sorted(self._parts, key=self._place)]
        made_of = view.ended, [(task, version, view.state.tasks[task].attempt) for task, version, _ in kept]
        if self._whole[1] != made_of:
            parts = [(name_of(task), part) for task, _, part in kept]
            self._whole = whole.card(parts, self._run.spec.flow, self._run.id, view.ended or "running"), made_of
        return self._whole[0]

    def _names(self, task: Task) -> Iterable[str]:
        return self._cards.get(task) or self.stored.get(task) or ()

    def _card_keys(self, task: Task) -> list[str]:
        return [card_key(task, name) for name in self._names(task)]

    def _shown_cards(self, tasks: Iterable[Task]) -> Iterator[tuple[str, Json]]:
        budget = CARD_BYTES
        for task in tasks:
            for name in self._names(task):
                card = self._card(task, name)
                budget -= _weight(card)
                if budget < 0:
                    return
                yield card_key(task, name), card

    def _card(self, task: Task, name: str) -> Json:
        """The card as it may be shown: checked, and ended if its attempt has."""
        heard = self._cards.get(task, {}).get(name)
        if heard is None:
            card = self.stored[task][name]
        else:
            known = self._checked.get((task, name))
            if known is None or known[0] != heard[0]:
                known = self._checked[task, name] = (heard[0], wire.checked(heard[1]))
            card = known[1]
        state = self._view.state.tasks[task]
        return wire.settled(card, state.state, state.error, lost=self._view.ended == "lost")


# ---- words and numbers --------------------------------------------------------------------------------------------------


def name_of(task: Task) -> str:
    return task_name(task.step, task.index) + ("" if task.part == "body" else " plan")


def card_key(task: Task, name: str) -> str:
    return f"card {name_of(task)} {name}"


def _may_put(spec: Spec) -> set[str]:
    """The steps that may put something on the card of the run, as their code speaks of it; all of them where other code does. Of these alone
    the store is asked."""
    speak = {
        name for name, source in spec.sources.items() if isinstance(source, dict) and USES_RUN_CARD.search(str(source.get("source", "")))
    }
    others = speak - {step.filename for step in spec.steps if step.method is None}
    return {step.name for step in spec.steps if others or step.filename in speak}


def _retry(ended: str | None) -> str | None:
    if ended in ("failed", "stopped"):
        return "runs again what failed, and what is missing"
    return "goes on with the run" if ended == "lost" else None


def _sources(steps: Sequence[Step]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for source, target, _ in graph.edges(steps):
        found.setdefault(target, []).append(source)
    return found


def _safe(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate cannot be sent


def _text(value: object, limit: int) -> str:
    text = _safe(str(value)[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _number(value: Json) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _ms(value: float | None) -> float | None:
    return round(value, 3) if _number(value) is not None and value is not None else None


def _seconds(given: Json) -> dict[str, float]:
    if not isinstance(given, dict):
        return {}
    return {name: value for name in ("loading", "running", "saving") if (value := _number(given.get(name))) is not None}


def _entry_text(entry: Json) -> str:
    if not isinstance(entry, dict):
        return ""
    entry = preview.shown(entry)
    if "json" in entry:
        return _text(repr(entry["json"]), SHORT)
    return _text(entry.get("repr") or entry.get("type") or "", SHORT)


def _artifact(name: str, entry: Mapping[str, Json]) -> Artifact:
    entry = preview.shown(entry)
    kind = entry.get("type") or (type(entry.get("json")).__name__ if entry.get("kind") == "json" else entry.get("kind"))
    size = entry.get("size")
    shape = entry.get("shape")
    said = f"{kind} {'×'.join(map(str, shape))}" if isinstance(shape, list) and shape else str(kind)
    text = _text(repr(entry["json"]) if entry.get("kind") == "json" and "json" in entry else entry.get("repr") or "", REPR)
    return {
        "name": _text(name, SHORT),
        "type": _text(said, SHORT),
        "size": size if isinstance(size, int) and not isinstance(size, bool) else None,
        "repr": text,
    }


def _scalar(entry: Mapping[str, Json]) -> Json:
    """The value of an artifact that fits into a cell of a table; None for all others."""
    entry = preview.shown(entry)
    if entry.get("kind") == "json":
        value = entry.get("json")
        if isinstance(value, str):
            return _text(value, SHORT) if len(value) <= SHORT else None
        return value if isinstance(value, bool) else _number(value)
    if str(entry.get("type", "")).startswith("numpy.") and not entry.get("shape"):
        return _as_number(str(entry.get("repr") or ""))
    return None


def _as_number(text: str) -> float | None:
    found = NUMBER.match(text.strip()) if len(text) < 40 else None
    try:
        return _number(float(found["inner"] or text)) if found else None
    except ValueError:
        return None


def names_of_item(step: Step) -> tuple[str, ...]:
    """What a table calls the item of a step's tasks, or its parts."""
    foreach = step.options.foreach
    return (foreach.names or ((foreach.target,) if foreach.target else ())) if foreach else ()


@lru_cache(4_096)
def item_values(item: str | None, names: tuple[str, ...]) -> Mapping[str, Json]:
    """The names of a foreach with the values of one item, as its short repr tells them.

    >>> item_values("(0.1, 'a')", ("lr", "kind"))
    {'lr': 0.1, 'kind': 'a'}
    """
    if item is None:
        return {}
    try:
        value = ast.literal_eval(item) if len(item) <= SHORT else item
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = item
    if len(names) > 1 and isinstance(value, (tuple, list)) and len(value) == len(names):
        return {name: _cell(part) for name, part in zip(names, value, strict=True)}
    return {names[0] if len(names) == 1 else "item": _cell(value if isinstance(value, (int, float, str)) else item)}


def _cell(value: Json) -> Json:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)):
        return _number(value) if abs(value) <= 2**53 else _text(value, SHORT)
    return _text(value if isinstance(value, str) else repr(value), SHORT)


def _numeric(kind: str, values: Sequence[Json]) -> bool:
    if kind == "time":
        return True
    given = [value for value in values if value is not None]
    return bool(given) and kind != "task" and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)


def _pieces(text: str, size: int, frames: Sequence[Mapping[str, Json]], limit: int) -> tuple[list[Piece], int]:
    """What a task printed and showed, in its order: text, and of each display what a browser shows best. Of the text at most the last
    `limit` bytes, counted when what was written over is gone: else the thousand states of a progress bar would be all that is seen.
    Also how many bytes were written over."""
    raw = text.encode("utf-8", "replace")
    offset, at = size - len(raw), 0
    found: list[Piece] = []
    room = IMAGE_CHARS
    for frame in frames:
        cut = min(max(int(_number(frame.get("at")) or 0) - offset, at), len(raw))
        found.append({"mime": "stream", "data": _last_states(raw[at:cut].decode("utf-8", "replace"))})
        at = cut
        shown = _display(frame.get("data"), room)
        room -= len(shown["data"])
        found.append(shown)
    found.append({"mime": "stream", "data": _last_states(raw[at:].decode("utf-8", "replace"))})
    kept, left = 0, limit
    for piece in reversed(found):
        if piece["mime"] == "stream":
            printed = piece["data"].encode("utf-8", "replace")
            kept += len(printed)
            piece["data"] = printed[-left:].decode("utf-8", "replace") if left else ""
            left -= min(len(printed), left)
    return [piece for piece in found if piece["mime"] != "stream" or piece["data"]], max(len(raw) - kept, 0)


def _last_states(text: str) -> str:
    """Of each line with carriage returns the last two states, which the browser lays over each other."""
    if "\r" not in text:
        return text
    return "\n".join(line if line.count("\r") < 2 else _last_two(line) for line in text.split("\n"))


def _last_two(line: str) -> str:
    whole = line.rstrip("\r")
    return "\r".join(whole.rsplit("\r", 2)[-2:]) + line[len(whole) :][:1]


def _display(bundle: Json, room: int) -> Piece:
    bundle = bundle if isinstance(bundle, dict) else {}
    for mime in ("image/png", "image/jpeg", "image/svg+xml", "text/html", "text/plain"):
        data = bundle.get(mime)
        if isinstance(data, list):
            data = "".join(map(str, data))
        if not isinstance(data, str):
            continue
        if mime == "text/plain":
            data = _text(data, TEXT)
        elif len(data) > room:
            return {"mime": "text/plain", "data": "(too large to be shown here)"}
        return {"mime": mime, "data": _safe(display.sanitised(data) if mime == "text/html" else data)}
    return {"mime": "text/plain", "data": ""}


def _failure(error: Mapping[str, Json]) -> Failure:
    line = error.get("line")
    return {
        "type": _text(error.get("type") or error.get("reason") or "failed", SHORT),
        "message": _text(error.get("message") or "", TEXT),
        "cell": _text(error["cell"], SHORT) if error.get("cell") else None,
        "line": line if isinstance(line, int) else None,
        "source_line": _text(error["source_line"], REPR) if error.get("source_line") else None,
        "traceback": _safe(str(error.get("traceback") or "")[-OUTPUT_LOOKED_AT:]),
    }


def _strings(card: Mapping[str, Json]) -> int:
    """How long the texts of a card are, images above all: what may make it large."""
    parts = card.get("components")
    texts = (v for part in (parts if isinstance(parts, list) else ()) if isinstance(part, dict) for v in part.values())
    return sum(len(value) for value in texts if isinstance(value, (str, list)))


def _weight(card: Json) -> int:
    """Roughly how many bytes a card is, without writing it out."""
    if isinstance(card, str):
        return len(card) + 2
    if isinstance(card, dict):
        return sum(len(name) + 4 + _weight(part) for name, part in card.items())
    return sum(map(_weight, card)) + 2 if isinstance(card, list) else 8
