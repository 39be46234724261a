"""What a run may do next, given what has happened so far. Everything that affects scheduling is in this file.

Pure: no clock, no I/O, no asyncio. `fold` turns a log into a RunState; `decide` turns a RunState and the time into commands.
The scheduler carries them out and records what came of it, so any run, and any bug, can be replayed from its log; a kernel
folds the same events to show them. TRANSITIONS is the whole machine of a task.

How to read it. There are three kinds of node: a TaskState, a Plan (what --foreach and --when of a step gave at one place) and a
Group (all tasks of a step under one index prefix). A task counts the nodes it still waits for; a node that is done tells those
that wait for it. So every event costs as much as what it settles, whatever the size of the run: joins count, they do not list.

Besides its state, a task may be *blocked*: it will never run, because something it needs failed or was stopped. That is no
event, it follows from the log; the task stays "waiting". A failure is *tolerated* while --min-ok of its fan-out still holds;
tasks that need what a tolerated failure did not make are skipped instead, and the run goes on.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from flowbook.engine.events import KINDS, Event, Index, Json, Task, task_of
from flowbook.errors import EngineError
from flowbook.spec.flow import Input, Spec, Step, is_token
from flowbook.spec.options import min_ok_count
from flowbook.spec.retries import qualifies, wait_s

# state → what happens → state. "settled": all that it needs is there; "retried": failed with attempts left;
# "given_up": the run began to fail while it waited for its next attempt. The other words are events of the log.
TRANSITIONS: dict[str, dict[str, str]] = {
    "waiting": {"settled": "ready", "skipped": "skipped", "stopped": "stopped"},
    "ready": {"launched": "launched", "reused": "succeeded", "skipped": "skipped", "stopped": "stopped"},
    "launched": {"succeeded": "succeeded", "failed": "failed", "retried": "backoff", "lost": "ready", "stopped": "stopped"},
    "backoff": {"launched": "launched", "given_up": "failed", "stopped": "stopped"},
    "succeeded": {},
    "failed": {},
    "skipped": {},
    "stopped": {},
}
ENDED = frozenset(state for state, ways in TRANSITIONS.items() if not ways)
ITEM_LIMIT = 100_000  # of one fan-out
ID = 22  # characters of an item's id in Plan.ids
TRACEBACKS = 100  # a join over many failures is told the tracebacks of so many


class InvalidTransition(EngineError):
    """Something happened to a task that cannot happen in its state: a bug, never a user's mistake."""


# ---- commands -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """Start an attempt. `reusable`: look first whether a task of another run may stand for this one."""

    task: Task
    attempt: int = 0
    reusable: bool = False


@dataclass(frozen=True)
class Skip:
    task: Task
    why: str


@dataclass(frozen=True)
class Wake:
    """Nothing to do before this time; decide again then."""

    at: float


@dataclass(frozen=True)
class Cancel:
    """Stop the running attempt of a task."""

    task: Task


@dataclass(frozen=True)
class Finish:
    state: str  # succeeded, failed, stopped


Command = Launch | Skip | Wake | Cancel | Finish


# ---- nodes --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class TaskState:
    """What is known of one task. Times are the engine's, `launched_at` that of the last attempt."""

    task: Task
    state: str = "waiting"
    attempt: int = 0
    launched_at: float | None = None
    ended_at: float | None = None
    error: Json = None
    origin: str | None = None  # the run whose COMMIT was taken over, and the task's index there
    origin_index: Index | None = None
    made_at: float | None = None  # when that run made it, seconds since the epoch
    keys: Json = None  # name → key of an artifact that others read; "*" → key of all
    item: str | None = None  # short repr of its item of the innermost fan-out
    missing: tuple[str, ...] = ()  # names of Step.saves that it did not make
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    why: str | None = None  # why it was skipped, or, of a launched one, why the cache had nothing
    blocked: str | None = None  # why it will never run
    caught: bool = False
    peak_mb: float | None = None
    cpu_s: float | None = None
    story: str = ""  # what happened to it, for the message of an impossible transition
    done: bool = False  # ended or blocked: nothing more will come of it
    listeners: tuple[TaskState, ...] = ()
    open: int = 0  # nodes that it still waits for
    attempts: int = 0  # launched so far
    losses: int = 0  # of those, lost by flowbook itself

    @property
    def index_there(self) -> Index:
        """The index in the run that made the result."""
        return self.task.index if self.origin_index is None else self.origin_index

    @property
    def bad(self) -> bool:
        return self.done and (self.state in ("failed", "stopped") or self.blocked is not None)

    @property
    def skipped(self) -> bool:
        return self.state == "skipped"


@dataclass(slots=True, eq=False)
class Plan:
    """What --foreach and --when of a step gave at one base index: "ok", "skip" (--when was false), "blocked"; None: not yet."""

    step: Step
    index: Index
    state: str | None = None
    why: str = ""
    count: int = 0
    items: str | None = None  # the blob of the items
    reprs: tuple[str, ...] = ()
    ids: str = ""  # of the items, ID characters each
    lost_items: set[int] = field(default_factory=set)  # items in which a task failed or was stopped
    exceeded: bool = False  # more of them than --min-ok allows
    done: bool = False
    listeners: tuple[TaskState, ...] = ()


@dataclass(slots=True, eq=False)
class Group:
    """All tasks of a step under one index prefix, counted."""

    fan: Plan  # the fan-out at this prefix
    parent: Group | None
    open: int = 0  # parts directly below that are not done; meaningless before the fan-out is known
    total: int = 0
    succeeded: int = 0
    skipped_count: int = 0
    lost: int = 0  # failed or stopped
    blocked: int = 0
    exceptions: list[TaskState] = field(default_factory=list)  # tasks directly below that ended, but did not succeed
    done: bool = False
    listeners: tuple[TaskState, ...] = ()

    @property
    def bad(self) -> bool:
        return self.done and (self.blocked > 0 or self.fan.state == "blocked" or (self.fan.exceeded and self.lost > 0))

    @property
    def skipped(self) -> bool:
        return self.fan.state == "skip" or (self.total > 0 and self.skipped_count == self.total)

    def add(self, part: TaskState | Group) -> None:
        """Count what is below and done."""
        self.open -= 1
        if isinstance(part, Group):
            self.total, self.succeeded = self.total + part.total, self.succeeded + part.succeeded
            self.skipped_count, self.lost = self.skipped_count + part.skipped_count, self.lost + part.lost
            self.blocked += part.blocked + (part.fan.state == "blocked")
            return
        self.total += 1
        if part.state == "succeeded":
            self.succeeded += 1
            return
        self.exceptions.append(part)
        self.skipped_count += part.state == "skipped"
        self.lost += part.state in ("failed", "stopped")
        self.blocked += part.blocked is not None and part.state == "waiting"


Node = TaskState | Plan | Group
Need = tuple[str, int]  # a step, and how much of the reader's index leads to its task or group


@dataclass(frozen=True)
class Links:
    """What a step waits for and what waits for its plan, computed once."""

    body: tuple[Need, ...]
    plan: tuple[Need, ...]
    data: tuple[Need, ...]  # those of `body` whose results the body sees
    hosted: tuple[Step, ...]
    below: tuple[Step, ...]  # of a foreach step: the steps that run in its fan-out, itself included


# ---- the run ------------------------------------------------------------------------------------------------------------


class RunState:
    """All that a log says. `apply` changes it; everything else only reads, but for `not_reusable`, `share` and `end_sharing`."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.tasks: dict[Task, TaskState] = {}
        self.started_at: float | None = None
        self.ended: str | None = None
        self.ended_at: float | None = None
        self.failing = False
        self.stop_requests = 0  # for the whole run
        self.active: dict[Task, None] = {}  # launched and not ended
        self._steps = {step.name: step for step in spec.steps}
        self._links = {step.name: self._link_step(step) for step in spec.steps}
        self._regions = {name: self._region(name) for step in spec.steps if step.joins for name in step.options.join}
        self._wanted = {step.name: self._want(step) for step in spec.steps}
        self._bodies = _by(spec.steps, lambda step: step.scope)
        self._planned = _by((step for step in spec.steps if step.planned), lambda step: step.base)
        self._plans: dict[tuple[str, Index], Plan] = {}
        self._groups: dict[tuple[str, Index], Group] = {}
        self._counts: dict[str, dict[str, int]] = {step.name: {} for step in spec.steps}
        self._ready: dict[Task, None] = {}  # first come, first served
        self._reusable: dict[Task, None] = {}
        self._sharing: dict[Task, None] = {}  # wait for an equal task of another run
        self._skips: dict[Task, str] = {}
        self._cancels: dict[Task, None] = {}
        self._backoff: dict[Task, float] = {}
        self._due: list[tuple[float, int, Task]] = []  # heap over _backoff; an entry that differs from it is void
        self._pushed = 0
        self._held: dict[tuple[str, str, Index], list[TaskState]] = {}  # ready, but not to be launched since the run fails
        self._siblings: set[tuple[str, str, Index]] = set()  # fan-outs of failed tasks, which are finished
        self._stopped_steps: set[str] = set()
        self._stopped_tasks: set[tuple[str, Index]] = set()
        self._stopped = False  # a task was stopped and nothing tolerates that
        self._always: list[TaskState] = []
        self._always_at = 0  # those before are done
        self._unfinished = 0  # tasks and plans that are not done
        self._failures: list[TaskState] = []
        self._agenda: deque[TaskState] = deque()
        self._connect(self._populate((), (), None))
        self._settle_all()

    # ---- reading --------------------------------------------------------------------------------------------------------

    def counts(self, step: str) -> Mapping[str, int]:
        """How many tasks of a step are in each state. A plan task counts until it has succeeded and its tasks stand for it."""
        return self._counts[step]

    def printed_by(self, task: Task) -> tuple[str, Index, int]:
        """Run, index and attempt of what made the result: there stands what it printed."""
        found = self.tasks[task]
        return found.origin or self.spec.run, found.index_there, found.attempt

    def attempts_left(self, task: Task, error: Json) -> bool:
        """Whether this failure of the attempt that runs now would be tried again."""
        found, retry = self.tasks[task], self._steps[task.step].options.retry
        return (
            found.attempts - found.losses <= retry.times
            and qualifies(retry, error)
            and self._may_start(found)
            and task not in self._cancels
        )

    def order_inputs(self, task: Task) -> tuple[dict[str, Json], dict[str, Json], Json, list[Json]]:
        """The parts "inputs", "joins", "item" and "failures" of an ORDER."""
        step = self._steps[task.step]
        inputs: dict[str, Json] = {}
        for given in step.inputs if task.part == "body" else step.plan_inputs:
            maker = next(self._made(given, step, task.index), None)
            if maker is not None:
                where = maker.task
                inputs[given.name] = {"run": self.spec.run, "step": where.step, "index": list(where.index)}
        read = {given.name for given in step.plan_inputs}
        joined = [name for name in step.options.join if name in self._steps and (task.part == "body" or name in read)]
        joins = {name: self._join(self._need(name, step.base), task.index) for name in joined}
        item = None
        if step.options.foreach is not None and task.part == "body":
            item = {"blob": self._plans[step.name, task.index[:-1]].items, "i": task.index[-1]}
        failures = [_failure(found) for found in self._failures] if step.options.always else []
        return inputs, joins, item, failures

    def fans(self, task: Task) -> list[list[Json]]:
        """[blob of the items, place, number of items] of each fan-out around a task: the part "fans" of an ORDER."""
        scope, index = self._scope(self.tasks[task]), task.index
        plans = [self._plans[scope[depth], index[:depth]] for depth in range(len(index))]
        return [[plan.items, i, plan.count] for plan, i in zip(plans, index, strict=True)]

    def _join(self, need: Need, index: Index) -> Json:
        node = self._node(need, index)
        below = node.exceptions if isinstance(node, Group) else [node]
        if isinstance(node, Group) and not node.done:  # only an --always step comes here before the group is complete
            tasks = (self.tasks.get(Task(need[0], (*index[: need[1]], i))) for i in range(node.fan.count))
            below = [found for found in tasks if found is not None and found.state != "succeeded"]
        exceptions = {}
        for n, found in enumerate(below):
            if found.state != "succeeded":
                last = str(found.task.index[-1]) if found.task.index else "0"
                exceptions[last] = {
                    "state": found.state if found.state in ENDED else "stopped",
                    "error": _short(found.error, n < TRACEBACKS),
                }
        join: dict[str, Json] = {"index": list(index[: need[1]]), "count": None, "exceptions": exceptions, "run": self.spec.run}
        if isinstance(node, Group):
            join["count"] = node.fan.count
        return join

    # ---- keys -----------------------------------------------------------------------------------------------------------

    def ids(self, task: Task) -> list[str]:
        """The id of the item at each place of the task's index."""
        scope, index = self._scope(self.tasks[task]), task.index
        found = []
        for depth, i in enumerate(index):
            ids = self._plans[scope[depth], index[:depth]].ids
            found.append(ids[ID * i : ID * (i + 1)] or str(i))
        return found

    def wanted(self, step: str) -> tuple[frozenset[str], bool]:
        """The artifacts of a step whose keys the log must hold: those that others read; and whether all of them count together."""
        return self._wanted[step]

    def read_keys(self, task: Task) -> dict[str, str] | None:
        """name → key of what the task reads from other tasks; None where the key of something is not known."""
        step = self._steps[task.step]
        found: dict[str, str] = {}
        for given in step.inputs if task.part == "body" else step.plan_inputs:
            if is_token(given.name):
                continue  # which step handed over is no value; what was read of it is
            maker = next(self._made(given, step, task.index), None)
            found[given.name] = "" if maker is None else (maker.keys or {}).get(given.name, "?")
        read = {given.name for given in step.plan_inputs}
        for name in step.options.join:
            if name in self._steps and (task.part == "body" or name in read):
                found[name] = self._joined_key(self._need(name, step.base), task.index)
        return None if "?" in found.values() else found

    def _after_key(self, need: Need, index: Index) -> str:
        """Of a step that is only to be waited for: of all that its tasks depend on, since what they did outside nobody can compare."""
        digest = hashlib.sha256()
        for found in self._below(need, index):
            key = self.key(found.task) if found.state == "succeeded" else None
            if key is None:
                return "?"
            digest.update(key[0].encode())
        return digest.hexdigest()[:ID]

    def _below(self, need: Need, index: Index) -> list[TaskState]:
        """The task that a need leads to, or those directly below its group."""
        node = self._node(need, index)
        if isinstance(node, TaskState):
            return [node]
        prefix = index[: need[1]]
        return [found for i in range(node.fan.count) if (found := self.tasks.get(Task(need[0], (*prefix, i)))) is not None]

    def _joined_key(self, need: Need, index: Index) -> str:
        digest = hashlib.sha256()
        for found in self._below(need, index):
            digest.update(",".join(self.ids(found.task)).encode())  # the item can be read through a handle, too
            for part in (found, *self._inherited(found)):
                key = (part.keys or {}).get("*", "?") if part.state == "succeeded" else json.dumps([part.state, _short(part.error, False)])
                if key == "?":
                    return "?"
                digest.update(f"{len(key)} {key}".encode())
        return digest.hexdigest()[:ID]

    def _inherited(self, found: TaskState) -> Iterator[TaskState]:
        """The tasks from which one of a FlowSpec inherits what it does not set: a join can read that through it."""
        return self._way_back(self._steps[found.task.step], found.task.index)

    def key(self, task: Task) -> tuple[str, dict[str, str]] | None:
        """The task's key and the keys of what it reads; None for a task that no other may stand for. Its needs must be done."""
        step = self._steps[task.step]
        own = step.key if task.part == "body" else step.plan_key
        read = self.read_keys(task) if own and not step.options.always else None
        if read is None:
            return None
        if task.part == "body":
            for name in step.options.after:
                if name in self._steps and name not in read:
                    read[name] = self._after_key(self._need(name, step.base), task.index)
        if "?" in read.values():
            return None
        # Its place can be seen by the body; of a method also how many items there are.
        where: list[Json] | None = list(task.index) if "current" in step.parts else None
        if where is not None and step.method is not None:
            where += [count for _, _, count in self.fans(task)]
        text = json.dumps([own, task.part, self.ids(task), where, sorted(read.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:32], read

    # ---- events ---------------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Take in one event. Raises InvalidTransition, telling the task's story, for one that cannot have happened."""
        kind = event["e"]
        if kind not in KINDS:
            return  # of a later minor version
        if self.ended is not None:
            raise InvalidTransition(f"{kind} after the run ended ({self.ended}): {event}")
        getattr(self, f"_on_{kind}")(event)
        self._settle_all()

    def not_reusable(self, task: Task) -> None:
        """Nothing can stand for this task: launch it. No event; a fold of the log asks again."""
        if task in self._reusable:
            del self._reusable[task]
            self._ready[task] = None

    def share(self, task: Task) -> None:
        """An equal task of another run is running: wait for it."""
        if task in self._reusable:
            del self._reusable[task]
            self._sharing[task] = None

    def end_sharing(self, task: Task) -> None:
        """What this task waited for has ended: look again."""
        if task in self._sharing:
            del self._sharing[task]
            self._reusable[task] = None

    def _on_run_started(self, event: Event) -> None:
        if self.started_at is not None:
            raise InvalidTransition(f"the run started twice: {event}")
        self.started_at = event["at"]

    def _on_run_ended(self, event: Event) -> None:
        self.ended, self.ended_at = event["state"], event["at"]

    def _on_launched(self, event: Event) -> None:
        found = self._find(event)
        if event.get("attempt", 0) != found.attempts:
            raise InvalidTransition(
                f"attempt {event.get('attempt', 0)} of {found.task} was launched, {found.attempts} is next.{_story(found)}"
            )
        if found.state == "waiting" and self._is_always(found):
            self._move(found, "settled", event)
        self._move(found, "launched", event)
        found.attempt, found.attempts = found.attempts, found.attempts + 1
        found.launched_at, found.ended_at, found.notes = event["at"], None, tuple(event.get("notes", ()))
        found.why = event.get("why")
        self.active[found.task] = None

    def _on_succeeded(self, event: Event) -> None:
        found = self._find(event)
        self._check_attempt(found, event)
        self._move(found, "succeeded", event)
        found.error, found.caught = None, bool(event.get("caught"))
        found.peak_mb, found.cpu_s = event.get("peak_mb"), event.get("cpu_s")
        found.warnings = tuple(event.get("warnings", ()))
        self._committed(found, event)

    def _on_reused(self, event: Event) -> None:
        found = self._find(event)
        self._move(found, "reused", event)
        found.origin, found.attempt, found.made_at = event["run"], event.get("attempt", 0), event.get("made_at")
        if event.get("from_index") is not None:
            found.origin_index = tuple(event["from_index"])
        self._committed(found, event)

    def _committed(self, found: TaskState, event: Event) -> None:
        found.ended_at, found.missing, found.keys = event["at"], tuple(event.get("missing", ())), event.get("keys")
        plans = event.get("plans") or {}
        if found.task.part == "plan":
            self._planned_by(found, self._plans[found.task.step, found.task.index], plans, event["at"])
        self._close(found)
        for step in self._links[found.task.step].hosted if found.task.part == "body" else ():
            self._planned_by(found, self._plans[step.name, found.task.index], plans, event["at"])

    def _on_failed(self, event: Event) -> None:
        found = self._find(event)
        self._check_attempt(found, event)
        retry = self.attempts_left(found.task, event["error"])
        self._move(found, "retried" if retry else "failed", event)
        found.error, found.ended_at = event["error"], event["at"]
        if retry:
            failures = found.attempts - found.losses
            at = event["at"] + wait_s(self._steps[found.task.step].options.retry, failures - 1, f"{self.spec.run} {found.task}")
            self._backoff[found.task] = at
            self._pushed += 1
            heapq.heappush(self._due, (at, self._pushed, found.task))
        else:
            self._fail(found)

    def _on_lost(self, event: Event) -> None:
        found = self._find(event)
        self._check_attempt(found, event)
        self._move(found, "lost", event)
        found.losses += 1
        if self._is_stopped(found):
            self._end_stopped(found, event)
        else:
            self._queue(found)

    def _on_skipped(self, event: Event) -> None:
        found = self._find(event)
        self._move(found, "skipped", event)
        found.why, found.ended_at = event.get("why"), event["at"]
        self._close(found)

    def _on_stopped(self, event: Event) -> None:
        self._end_stopped(self._find(event), event)

    def _on_stop_requested(self, event: Event) -> None:
        step, index = event.get("step"), event.get("index")
        if step is None:
            self.stop_requests += 1
            chosen = list(self.tasks.values())
        elif step not in self._steps:
            return
        elif index is None:
            self._stopped_steps.add(step)
            chosen = [found for found in self.tasks.values() if found.task.step == step]
        else:
            self._stopped_tasks.add((step, tuple(index)))
            chosen = [found for part in ("body", "plan") if (found := self.tasks.get(Task(step, tuple(index), part))) is not None]
        for found in chosen:
            if self._is_stopped(found):
                self._stop(found, event)

    # ---- what follows from an event ---------------------------------------------------------------------------------------

    def _find(self, event: Event) -> TaskState:
        found = self.tasks.get(task_of(event))
        if found is None:
            raise InvalidTransition(f"{event['e']}: there is no task {task_of(event)}: {event}")
        return found

    def _check_attempt(self, found: TaskState, event: Event) -> None:
        if found.state == "launched" and event.get("attempt", 0) != found.attempt:
            raise InvalidTransition(f"attempt {event.get('attempt', 0)} of {found.task} {event['e']}, {found.attempt} runs.{_story(found)}")

    def _move(self, found: TaskState, what: str, event: Event | None = None) -> None:
        """One step of the machine; also keeps counts and queues in step with it."""
        state = TRANSITIONS[found.state].get(what)
        if state is None:
            raise InvalidTransition(f"{found.task} is {found.state} and cannot be {what}: {event}.{_story(found)}")
        attempt = f" {event['attempt']}" if event is not None and "attempt" in event else ""
        found.story += f", {what}{attempt}" + (f" @{round(event['at'], 3)}" if event is not None else "")
        self._count(found, -1)
        found.state = state
        self._count(found, 1)
        task = found.task
        queues: tuple[dict[Task, Any], ...] = (
            self.active,
            self._ready,
            self._reusable,
            self._sharing,
            self._skips,
            self._cancels,
            self._backoff,
        )
        for queue in queues:
            queue.pop(task, None)
        while self._due and self._backoff.get(self._due[0][2]) != self._due[0][0]:
            heapq.heappop(self._due)

    def _count(self, found: TaskState, by: int) -> None:
        if found.task.part == "body" or found.state != "succeeded":
            counts = self._counts[found.task.step]
            counts[found.state] = counts.get(found.state, 0) + by

    def _close(self, found: TaskState) -> None:
        """Nothing more will come of a task: tell its group and all that wait for it."""
        found.done = True
        self._unfinished -= 1
        self._tell(found)
        task = found.task
        if task.part == "plan":
            plan = self._plans[task.step, task.index]
            if not plan.done:
                self._plan_lost(plan, found)
            return
        for step in self._links[task.step].hosted:
            if found.state != "succeeded":
                self._plan_lost(self._plans[step.name, task.index], found)
        if task.index:
            group = self._groups[task.step, task.index[:-1]]
            group.add(found)
            self._complete(group)

    def _complete(self, group: Group | None) -> None:
        """A group whose parts are all done is done, and so may be the one above it."""
        while group is not None and group.open == 0 and not group.done:
            group.done = True
            self._tell(group)
            if group.parent is not None:
                group.parent.add(group)
            group = group.parent

    def _tell(self, node: Node) -> None:
        for listener in node.listeners:
            listener.open -= 1
            if listener.open == 0:
                self._agenda.append(listener)
        node.listeners = ()

    def _settle_all(self) -> None:
        while self._agenda:
            self._settle(self._agenda.popleft())

    def _settle(self, found: TaskState) -> None:
        """All that a task waited for is done: it becomes ready, is to be skipped, or will never run."""
        if found.state != "waiting" or found.done:
            return
        verdict, why = self._verdict(found)
        if verdict == "blocked" and self._tolerated(found):
            verdict = "skip"
        if verdict == "skip":
            self._skips[found.task] = why
        elif verdict == "blocked":
            found.blocked = why
            self._close(found)
        else:
            self._move(found, "settled")
            self._queue(found)

    def _queue(self, found: TaskState) -> None:
        if not self._may_start(found):
            self._held.setdefault(_family(found), []).append(found)
        elif self._is_reusable(found):
            self._reusable[found.task] = None
        else:
            self._ready[found.task] = None

    # ---- verdicts ---------------------------------------------------------------------------------------------------------

    def _verdict(self, found: TaskState) -> tuple[str, str]:
        """("ready" | "skip" | "blocked", why) of a task whose needs are done."""
        step, index, is_body = self._steps[found.task.step], found.task.index, found.task.part == "body"
        skip = ""
        if is_body and step.planned and step.options.foreach is None:
            plan = self._plans[step.name, index]
            if plan.state == "blocked":
                return "blocked", plan.why
            skip = plan.why if plan.state == "skip" else ""
        if is_body:
            joined = [(name, self._node(self._need(name, step.base), index)) for name in step.options.join if name in self._steps]
            after = [(name, self._node(self._need(name, step.base), index)) for name in step.options.after if name in self._steps]
            for name, node in joined + after:
                if node.bad:
                    return "blocked", f"{name} did not succeed"
            if joined and all(node.skipped for _, node in joined):
                skip = skip or f"{', '.join(name for name, _ in joined)} was skipped"
        for given in step.inputs if is_body else step.plan_inputs:
            if given.required:
                verdict, why = self._available(given, step, index)
                if verdict == "blocked":
                    return verdict, why
                skip = skip or why
        return ("skip", skip) if skip else ("ready", "")

    def _available(self, given: Input, step: Step, index: Index) -> tuple[str, str]:
        """Whether a name is there: ("ready", ""), or skip or blocked and why. A nearer maker that failed hides those behind it."""
        for maker in self._makers(given, step, index):
            if maker.state == "succeeded" and given.name not in maker.missing:
                return "ready", ""
            if maker.bad:
                return "blocked", f"it needs {given.name} of {maker.task}, which did not succeed"
        if given.captured or not given.makers:
            return "ready", ""
        return "skip", f"{given.name} was not made by {' or '.join(given.makers)}"

    def _makers(self, given: Input, step: Step, index: Index) -> Iterator[TaskState]:
        """The tasks that may have made a name for the task of `step` at `index`, nearest first."""
        for name in given.makers:
            if name in self._steps:
                node = self._node(self._need(name, step.scope), index)
                if isinstance(node, TaskState):
                    yield node

    def _made(self, given: Input, step: Step, index: Index) -> Iterator[TaskState]:
        if step.method is not None and not is_token(given.name):
            makers = (maker for maker in self._way_back(step, index) if maker.task.step in given.makers)
            return (maker for maker in makers if given.name not in maker.missing)
        return (maker for maker in self._makers(given, step, index) if maker.state == "succeeded" and given.name not in maker.missing)

    def _way_back(self, step: Step, index: Index) -> Iterator[TaskState]:
        """The tasks that handed over to a method, nearest first, back to the last join: of a switch only the way that was taken."""
        while (token := next((given for given in step.inputs if is_token(given.name)), None)) is not None:
            before = next(self._made(token, step, index), None)
            if before is None:
                return
            yield before
            step, index = self._steps[before.task.step], before.task.index

    def _is_reusable(self, found: TaskState) -> bool:
        """Whether a task of another run may stand for this one, if one is found. --no-cache and --fresh leave the origin of a resume."""
        step = self._steps[found.task.step]
        known = step.key if found.task.part == "body" else step.plan_key
        if not known or step.options.always or found.attempts:
            return False
        if found.task.part == "body":
            after = [self._need(name, step.base) for name in step.options.after if name in self._steps]
            if any(below.origin is None for need in after for below in self._below(need, found.task.index) if below.state == "succeeded"):
                return False  # what it comes after ran anew, and may have done something outside of its artifacts
        return self.spec.origin is not None or not (self.spec.fresh or step.options.no_cache)

    # ---- failing and stopping -----------------------------------------------------------------------------------------------

    def _may_start(self, found: TaskState) -> bool:
        return not self.failing or self._is_always(found) or _family(found) in self._siblings

    def _is_always(self, found: TaskState) -> bool:
        step = self._steps[found.task.step]
        return step.options.always and not step.scope

    def _is_stopped(self, found: TaskState) -> bool:
        """Whether a request to stop concerns this task. --always steps go on when the run is stopped, until it is asked again."""
        if self.stop_requests > (1 if self._is_always(found) else 0) or found.task.step in self._stopped_steps:
            return True
        return (found.task.step, found.task.index) in self._stopped_tasks

    def _stop(self, found: TaskState, event: Event | None = None) -> None:
        if found.task in self.active:
            self._cancels[found.task] = None
        elif not found.done:
            self._end_stopped(found, event)

    def _end_stopped(self, found: TaskState, event: Event | None) -> None:
        self._move(found, "stopped", event)
        found.ended_at = event["at"] if event else None
        if self._lose(found):
            self._stopped = True
        self._close(found)

    def _fail(self, found: TaskState) -> None:
        self._failures.append(found)
        if self._lose(found):
            self._start_failing(found)
        self._close(found)

    def _lose(self, found: TaskState) -> bool:
        """Count an item as lost, in its fan-out and, if that has now lost too many, in the one around it; True if nothing tolerates it."""
        scope, index = self._scope(found), found.task.index
        for depth in range(len(scope), 0, -1):
            fan = self._plans[scope[depth - 1], index[: depth - 1]]
            fan.lost_items.add(index[depth - 1])
            text = fan.step.options.min_ok
            least = fan.count if text is None else min_ok_count(text, fan.count)
            if not fan.exceeded and fan.count - len(fan.lost_items) >= least:
                return False
            fan.exceeded = True
        return True

    def _tolerated(self, found: TaskState) -> bool:
        """Whether a task is part of an item that was lost and may be."""
        scope, index = self._scope(found), found.task.index
        fans = ((self._plans[scope[depth], index[:depth]], index[depth]) for depth in range(len(scope)))
        return any(i in fan.lost_items and not fan.exceeded for fan, i in fans)

    def _scope(self, found: TaskState) -> tuple[str, ...]:
        step = self._steps[found.task.step]
        return step.scope if found.task.part == "body" else step.base

    def _start_failing(self, failed: TaskState) -> None:
        """From now on only siblings of failed tasks are started: what is not one is held, or given up if it was to be tried again."""
        family = _family(failed)
        if failed.task.index and family not in self._siblings:
            self._siblings.add(family)
            for found in self._held.pop(family, ()):
                if found.state == "ready":
                    self._queue(found)
        if self.failing:
            return
        self.failing = True
        for queue in (self._ready, self._reusable, self._sharing):
            for task in [task for task in queue if not self._may_start(self.tasks[task])]:
                del queue[task]
                self._queue(self.tasks[task])
        for task in [task for task in self._backoff if not self._may_start(self.tasks[task])]:
            found = self.tasks[task]
            if found.state == "backoff" and not self._may_start(found):  # one given up before may have let its siblings go on
                self._move(found, "given_up")
                self._fail(found)

    # ---- plans and fan-outs ---------------------------------------------------------------------------------------------------

    def _planned_by(self, by: TaskState, plan: Plan, plans: Mapping[str, Json], at: float) -> None:
        """A committed task evaluated a plan: `plans` are those of its event."""
        found = plans.get(plan.step.name)
        if plan.done:
            return
        if found is None and by.origin is not None and by.task.part == "body":
            # The result was taken over, but the expression is another by now: a task of its own evaluates it.
            return self._connect([self._new(plan.step, plan.index, "plan", by.item)])
        if found is None:
            return self._decide(plan, "skip", f"{by.task} did not evaluate its --foreach or --when")
        error = found.get("error")
        count = found.get("count")
        if error is None and found.get("when") is False:
            return self._decide(plan, "skip", f"--when {plan.step.options.when} was false")
        if error is None and plan.step.options.foreach is not None and not (type(count) is int and 0 <= count <= ITEM_LIMIT):
            error = {
                "reason": "error",
                "message": f"the --foreach of {plan.step.name} gave {count} items; 0 to {ITEM_LIMIT:,} are possible",
            }
        if error is not None:
            return self._plan_failed(by, plan, error, at)
        plan.count, plan.items, plan.reprs = count or 0, found.get("items"), tuple(found.get("reprs", ()))
        plan.ids = str(found.get("ids", ""))
        return self._decide(plan, "ok", "")

    def _plan_failed(self, by: TaskState, plan: Plan, error: Json, at: float) -> None:
        """A plan that raised in its host's worker is shown as a failed plan task of its own."""
        if by.task.part == "plan":
            self._count(by, -1)
            by.state = "failed"
            self._count(by, 1)
            found = by
        else:
            found = self._new(plan.step, plan.index, "plan", state="failed")
            self._unfinished -= 1
            found.done = True
        found.error, found.ended_at = error, at
        found.story += f", failed with {by.task} @{round(at, 3)}"
        self._failures.append(found)
        if self._lose(found):
            self._start_failing(found)
        self._plan_lost(plan, found)

    def _plan_lost(self, plan: Plan, by: TaskState) -> None:
        """The task that should have evaluated a plan did not succeed."""
        if plan.done:
            return
        if by.state == "skipped":
            self._decide(plan, "skip", by.why or f"{by.task} was skipped")
        else:
            scope = TaskState(Task(plan.step.name, plan.index, "plan"))
            self._decide(plan, "skip" if self._tolerated(scope) else "blocked", f"{by.task} did not succeed")

    def _decide(self, plan: Plan, state: str, why: str) -> None:
        plan.state, plan.why, plan.done = state, why, True
        self._unfinished -= 1
        self._tell(plan)
        if plan.step.options.foreach is not None:
            self._fan_out(plan)

    def _fan_out(self, plan: Plan) -> None:
        """The tasks of a fan-out, now that their number is known: of the step, and of all that run per item."""
        scope, index = plan.step.scope, plan.index
        groups = [self._groups[step.name, index] for step in self._links[plan.step.name].below]
        for group in groups:
            group.open = plan.count
        created: list[TaskState] = []
        for i in range(plan.count):
            created += self._populate(scope, (*index, i), plan.reprs[i] if i < len(plan.reprs) else None)
        self._connect(created)
        for group in groups:
            self._complete(group)
        if plan.state == "skip" and Task(plan.step.name, index, "plan") not in self.tasks:
            counts = self._counts[plan.step.name]  # nothing else shows that the step was skipped here
            counts["skipped"] = counts.get("skipped", 0) + 1

    def _populate(self, scope: tuple[str, ...], index: Index, item: str | None) -> list[TaskState]:
        """All nodes of one place of the fan-out, not yet connected."""
        created: list[TaskState] = []
        for step in self._planned.get(scope, ()):
            plan = self._plans[step.name, index] = Plan(step, index)
            self._unfinished += 1
            if step.host is None:
                created.append(self._new(step, index, "plan", item))
            if step.options.foreach is not None:
                for below in self._links[step.name].below:
                    parent = self._groups.get((below.name, index[:-1])) if index else None
                    self._groups[below.name, index] = Group(plan, parent, open=-1)
        created += [self._new(step, index, "body", item) for step in self._bodies.get(scope, ())]
        return created

    def _new(self, step: Step, index: Index, part: str, item: str | None = None, state: str = "waiting") -> TaskState:
        found = self.tasks[Task(step.name, index, part)] = TaskState(Task(step.name, index, part), state=state, item=item)
        self._unfinished += 1
        self._count(found, 1)
        return found

    def _connect(self, created: list[TaskState]) -> None:
        for found in created:
            if self._is_stopped(found):
                self._end_stopped(found, None)
            elif not self._is_always(found):
                self._wait(found)
            elif found.task.part == "body":
                self._always.append(found)

    def _wait(self, found: TaskState) -> None:
        step, index = self._steps[found.task.step], found.task.index
        links = self._links[step.name]
        nodes: list[Node] = [self._node(need, index) for need in (links.body if found.task.part == "body" else links.plan)]
        if found.task.part == "body" and step.planned and step.options.foreach is None:
            nodes.append(self._plans[step.name, index])
        for node in nodes:
            if not node.done:
                node.listeners += (found,)
                found.open += 1
        if found.open == 0:
            self._agenda.append(found)

    # ---- links ----------------------------------------------------------------------------------------------------------------

    def _node(self, need: Need, index: Index) -> TaskState | Group:
        name, depth = need
        if depth == len(self._steps[name].scope):
            return self.tasks[Task(name, index[:depth])]
        return self._groups[name, index[:depth]]

    def _need(self, name: str, scope: tuple[str, ...]) -> Need:
        """How a task in `scope` finds the step's task or group: by the part of the index that both share."""
        other = self._steps[name].scope
        depth = next((n for n, (a, b) in enumerate(zip(other, scope, strict=False)) if a != b), min(len(other), len(scope)))
        return name, depth

    def _want(self, maker: Step) -> tuple[frozenset[str], bool]:
        steps = self.spec.steps
        read = {
            given.name
            for step in steps
            for given in (*step.inputs, *step.plan_inputs)
            if maker.name in given.makers and not is_token(given.name)
        }
        inherited = any(maker.name in region for region in self._regions.values())
        return frozenset(read), inherited or any(maker.name in step.options.join for step in steps)

    def _region(self, name: str) -> tuple[str, ...]:
        """The steps from which a method inherits: back to the last join, itself included there."""
        found: dict[str, None] = {}
        queue = [name]
        while queue:
            before = [maker for given in self._steps[queue.pop()].inputs if is_token(given.name) for maker in given.makers]
            queue += [maker for maker in before if maker not in found]
            found |= dict.fromkeys(before)
        return tuple(found)

    def _link_step(self, step: Step) -> Links:
        options = step.options
        made = [(name, step.scope) for given in step.inputs for name in given.makers]
        joined = [(name, step.base) for name in options.join]
        # A plan that reads what --join binds waits for it; one that does not, does not.
        planned = [
            (name, step.base) for given in step.plan_inputs for name in (*given.makers, *(n for n in options.join if n == given.name))
        ]

        def needs(pairs: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[Need, ...]:
            return tuple(dict.fromkeys(self._need(name, scope) for name, scope in pairs if name in self._steps and name != step.name))

        return Links(
            body=needs([*made, *joined, *((name, step.base) for name in options.after)]),
            plan=needs(planned),
            data=needs([*made, *joined]),
            hosted=tuple(other for other in self.spec.steps if other.host == step.name and other.planned and other.base == step.scope),
            below=tuple(other for other in self.spec.steps if options.foreach is not None and other.scope[: len(step.scope)] == step.scope),
        )


def fold(spec: Spec, events: Iterable[Event]) -> RunState:
    """The state that a log leads to."""
    state = RunState(spec)
    for event in events:
        state.apply(event)
    return state


# ---- deciding -----------------------------------------------------------------------------------------------------------


def decide(state: RunState, now: float, room: int | None = None) -> list[Command]:
    """What is to be done now. Asking again, with nothing recorded in between, gives the same commands.

    `room` bounds the number of launches, so that a turn costs what can start and not what waits. Wake comes only when a task
    waits for its next attempt, Finish only when nothing is left to wait for.
    """
    if state.ended is not None:
        return []
    commands: list[Command] = [Cancel(task) for task in state._cancels]
    commands += [Skip(task, why) for task, why in state._skips.items()]
    launches = _launches(state, now)
    commands += launches if room is None else islice(launches, room)
    if not (state.active or state._ready or state._reusable or state._sharing or state._backoff or state._skips):
        commands += _next_always(state) or [Finish(_outcome(state))]
    if state._due and state._due[0][0] > now:
        commands.append(Wake(state._due[0][0]))
    return commands


def _launches(state: RunState, now: float) -> Iterator[Launch]:
    for task in state._reusable:
        yield Launch(task, reusable=True)
    for task in _due(state, now):
        yield Launch(task, state.tasks[task].attempts)
    for task in state._ready:
        yield Launch(task, state.tasks[task].attempts)


def _due(state: RunState, now: float) -> Iterator[Task]:
    """Tasks whose next attempt is due. Walks the heap from its top, so that those not due cost nothing."""
    places = [0]
    while places:
        place = places.pop()
        if place >= len(state._due) or state._due[place][0] > now:
            continue
        at, _, task = state._due[place]
        if state._backoff.get(task) == at:
            yield task
        places += (2 * place + 2, 2 * place + 1)


def _next_always(state: RunState) -> list[Command]:
    """The next --always step: what is not yet done of it, with whatever exists."""
    while state._always_at < len(state._always) and state._always[state._always_at].done:
        state._always_at += 1
    if state._always_at == len(state._always):
        return []
    body = state._always[state._always_at]
    plan = state._plans.get((body.task.step, ()))
    if plan is None or plan.state == "ok":
        return [Launch(body.task, body.attempts)]
    evaluator = state.tasks.get(Task(body.task.step, (), "plan"))
    if plan.state is None and evaluator is not None:
        verdict, why = state._verdict(evaluator)
        return [Launch(evaluator.task, evaluator.attempts)] if verdict == "ready" else [Skip(evaluator.task, why)]
    return [Skip(body.task, plan.why or f"its --when was never evaluated: {plan.step.host} did not run")]


def _outcome(state: RunState) -> str:
    if state.stop_requests or state._stopped:
        return "stopped"
    # Tasks that nothing will ever settle would be a bug of the graph; a run that left them out did not succeed.
    return "failed" if state.failing or state._unfinished else "succeeded"


# ---- small things ----------------------------------------------------------------------------------------------------------


def _by(steps: Iterable[Step], key: Any) -> dict[tuple[str, ...], list[Step]]:
    found: dict[tuple[str, ...], list[Step]] = {}
    for step in steps:
        found.setdefault(key(step), []).append(step)
    return found


def _family(found: TaskState) -> tuple[str, str, Index]:
    """Tasks of one step in one fan-out share it."""
    return found.task.step, found.task.part, found.task.index[:-1]


def _story(found: TaskState) -> str:
    return f" The story of {found.task}: {found.story[2:] or 'nothing yet'}."


def _failure(found: TaskState) -> Json:
    error = found.error or {}
    message = ": ".join(str(error[key]) for key in ("type", "message") if error.get(key)) or error.get("reason", "failed")
    return {"step": found.task.step, "index": list(found.task.index), "message": message}


def _short(error: Json, traceback: bool) -> Json:
    """An error without its bulk, for a join over many."""
    if not error:
        return error
    return {key: value for key, value in error.items() if key != "output_tail" and (traceback or key != "traceback")}
