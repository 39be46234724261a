"""The shell around state.py: one run driven from its first event to its last.

    turn:  what happened → apply → decide, until nothing more follows → record all of it as one log object → act

Nothing is started before the log says so, and the log object is created, never replaced: a refused create means that another
engine owns the run, and this one steps back. Whether an attempt succeeded is told by its COMMIT alone; exits and frames only
explain a missing one. Bytes that workers print stay in files: the engine reads their ends and moves them into the store.

All waiting is here, all deciding is in state.py. Store calls run in threads, because a store may hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flowbook.engine import cache, events
from flowbook.engine.admission import Capacity, admit, admit_pods
from flowbook.engine.cache import Cache
from flowbook.engine.events import DIED, Event, Json, Task
from flowbook.engine.launch.fork import ForkServers
from flowbook.engine.launch.local import Attempt, Exit, Frame, LocalLauncher, find_devices, machine_capacity
from flowbook.engine.launch.podspec import Cluster, asked, hub_image, in_cluster, pod_of
from flowbook.engine.state import Cancel, Finish, Launch, RunState, Skip, Wake, decide
from flowbook.errors import StoreError, StoreMissing, StoreTooNew
from flowbook.spec.flow import Options, Resources, Spec, Step, from_json, next_token
from flowbook.store import glance, journal, layout, trust
from flowbook.store.base import Store
from flowbook.store.canon import entry_key

if TYPE_CHECKING:
    from flowbook.engine.launch.kubernetes import Pods

T = TypeVar("T")

ROOM = 4  # launches asked of `decide` at once; more are asked for while they fit
REUSE_ROOM = 256
SLOW_S, MOST_SLOW = 0.02, 3  # after so many store calls that took longer, they are a matter for threads
MOST_LOSSES = 5  # of one task; then flowbook's own troubles are the task's failure
REQUESTS_S = 1.0  # between two looks for request objects
PATIENCE_S = 600.0  # how long a store that refuses is tried again before the run is given up
STOP_PATIENCE_S = 5.0  # the same, once the engine itself is asked to end
PHASES, PHASE_CHARS = 12, 40  # of one attempt, and of one name: they come from a worker
TAIL_BYTES = 64_000  # of output, in one message or error
TAIL_LINES = 20
TRACEBACK_LIMIT = 100_000  # characters kept in the log
DISPLAY_LIMIT = 32_000_000  # bytes of rich output kept of one attempt
SPEC_VERSION = 1


class Launcher(Protocol):
    async def run(self, attempt: Attempt, on_frame: Callable[[Frame], None]) -> Exit: ...


class Machine:
    """What the runs of one engine share: a launcher, and the room on this machine."""

    def __init__(self, launcher: Launcher | None = None, capacity: Capacity | None = None, folder: Path | None = None) -> None:
        """`folder` is the engine's own: for scratch folders, and for what fork servers have to say."""
        self.local = None
        if launcher is None:
            launcher = self.local = LocalLauncher(forks=ForkServers(log=folder / "fork.log" if folder else None), folder=folder)
        self.launcher: Launcher = launcher
        self.capacity = capacity or machine_capacity()
        self._knows_gpus = capacity is not None
        if self.local is not None:
            self.local.devices = [str(i) for i in range(self.capacity.gpus)]
        self.granted: dict[object, Resources] = {}
        self.wakers: set[Callable[[], None]] = set()  # of the runs that may wait for room
        self.clusters: dict[str, Pods] = {}  # by what the settings of a run say of its cluster
        self.caches: dict[str, Cache] = {}  # by flow
        self.flights: dict[tuple[str, str], Flight] = {}  # (flow, key) of tasks that run now

    async def look(self, spec: Spec) -> None:
        """Find the GPUs, once, and only for a run that asks for one: asking the driver takes its time."""
        if self._knows_gpus or not any(step.options.resources.gpu for step in spec.steps):
            return
        self._knows_gpus = True
        devices = await asyncio.to_thread(find_devices, os.environ)
        self.capacity = Capacity(self.capacity.cores, self.capacity.memory_mb, len(devices))
        if self.local is not None:
            self.local.devices = devices

    def pods(self, store: Store, place: Place) -> Pods:
        """The launcher of the cluster where the steps of a run are placed."""
        assert place.cluster is not None
        key = json.dumps([place.cluster, place.env.get("KUBECONFIG")], sort_keys=True)
        if key not in self.clusters:
            from flowbook.engine.launch.kubernetes import Pods

            self.clusters[key] = Pods(store, Cluster.read({"image": hub_image(place.env), **place.cluster}), place.env)
        return self.clusters[key]

    def close(self) -> None:
        """End what the launchers keep ready."""
        if self.local is not None:
            self.local.close()
        for pods in self.clusters.values():
            pods.close()

    def landed(self, flow: str, key: str | None) -> None:
        """A task that others may have waited for has ended, in whatever way."""
        if key is not None and (flight := self.flights.pop((flow, key), None)) is not None:
            for tell in flight.waiting:
                tell()

    def release(self, key: object) -> None:
        if self.granted.pop(key, None) is not None:
            for wake in list(self.wakers):
                wake()


@dataclass(eq=False)
class Flight:
    """A running task with a key; who waits for an equal one is told when it has ended."""

    run: Run
    waiting: list[Callable[[], None]] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where the workers of a run start: the notebook's environment, folder and import path, by default the engine's own; and its cluster.

    Never stored.
    """

    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: str = field(default_factory=os.getcwd)
    sys_path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    cluster: Mapping[str, Json] | None = None  # what the settings say of pods (podspec.Cluster); None: all steps run here


class SteppedBack(Exception):
    """Another engine writes the log of this run."""


class GivenUp(Exception):
    """The store refused for longer than patience lasts."""


@dataclass(eq=False)
class Live:
    """What is known of a running attempt besides the log."""

    task: Task
    attempt: int
    output: Path
    cancelled: bool = False
    pod: asyncio.Task[Any] | None = None  # what a cancel is for
    failed: Json = None  # the ERROR of its last "failed" frame
    displays: list[Frame] = field(default_factory=list)
    display_bytes: int = 0
    displays_left_out: int = 0
    shown: int = 0  # bytes of output that followers were told of
    key: str | None = None  # of the cache
    launched_at: float | None = None  # None: by an earlier engine, so that nobody knows when its phases began
    in_pod: bool = False  # of a cluster
    phase: str = "loading"
    began: dict[str, float] = field(default_factory=dict)  # phase → seconds after its launch
    why: str = ""  # it does not get on: what a pod waits for
    phase_shown: tuple[str, str] = ("loading", "")

    def take(self, frame: Frame, now: float) -> None:
        if frame["f"] == "failed" and isinstance(frame.get("error"), dict):
            self.failed = frame["error"]
        elif frame["f"] == "display" and isinstance(frame.get("data"), dict):
            self._take_display(frame)
        elif frame["f"] == "phase":
            self.phase, self.why = str(frame.get("phase"))[:PHASE_CHARS], str(frame.get("why") or "")
            if self.launched_at is not None and len(self.began) < PHASES:
                self.began.setdefault(self.phase, round(now - self.launched_at, 3))

    def _take_display(self, frame: Frame) -> None:
        size = len(json.dumps(frame["data"]))
        if frame.get("update"):  # what it replaces goes, so that a progress bar does not grow
            for i, shown in enumerate(self.displays):
                if shown.get("id") == frame.get("id"):
                    self.displays[i] = {**shown, "data": frame["data"], "metadata": frame.get("metadata", {})}
            return
        if self.display_bytes + size > DISPLAY_LIMIT:
            self.displays_left_out += 1
            return
        self.display_bytes += size
        self.displays.append(frame)

    def tail(self) -> tuple[str, int]:
        """The last part printed and how many bytes there are in all."""
        try:
            with self.output.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - TAIL_BYTES))
                data = file.read(TAIL_BYTES)
        except OSError:
            return "", 0
        if size > TAIL_BYTES:
            data = data.lstrip(bytes(range(0x80, 0xC0)))  # the rest of a character that was cut
        return data.decode("utf-8", "replace"), size


class Run:
    """One run, driven by this engine. `packed` are the batches recorded so far, each a JSON array of events.

    `say` is called with every hint (docs/internals.md, "Socket", "←" without "events"), `changed` when a batch was added.
    """

    def __init__(
        self,
        store: Store,
        flow: str,
        run: str,
        machine: Machine,
        place: Place | None = None,
        *,
        say: Callable[[dict[str, Json]], None] = lambda message: None,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        patience_s: float = PATIENCE_S,
        adopt: bool = False,
    ) -> None:
        """`adopt`: go on with the log of an engine that is gone."""
        self.store, self.flow, self.run, self.machine = store, flow, run, machine
        self.place = place or Place()
        self.state: RunState | None = None
        self.live: dict[Task, Live] = {}
        self.packed: list[bytes] = []
        self._together = 1  # so many batches were there when the log was last put together
        self.last_trouble = ""
        self._say_hint, self._changed, self._clock, self._patience_s = say, changed, clock, patience_s
        self._number = 0
        self._turn: list[Event] = []  # happened, not yet recorded
        self._inbox: list[Event] = []  # happened, not yet applied
        self._attempts: set[asyncio.Task[None]] = set()
        self._wake, self._poked = asyncio.Event(), asyncio.Event()
        self._seen: set[str] = set()  # request objects
        self._pod_grants: dict[Task, Resources] = {}  # of pods that this run has in a cluster
        self._driving: asyncio.Task[Any] | None = None
        self._broken: BaseException | None = None
        self._given_up = self._over_here = False
        self._folder: Path | None = None
        self._adopt = adopt
        self._slow_calls = 0 if store.key_file is None else MOST_SLOW + 1  # of the store; a server may keep the loop for a minute
        self._cache = machine.caches.setdefault(flow, Cache(store, flow))
        self._from_origin: dict[str, cache.Place] = {}
        self._before: dict[str, cache.Before] = {}
        self._looked: dict[Task, tuple[str | None, str]] = {}  # key, and why nothing could stand for it; until it is launched
        self._landed: list[Task] = []
        self._blank: list[Path] = []  # output files that nothing was printed to: renaming one costs less than making one

    # ---- from outside -----------------------------------------------------------------------------------------------------

    async def drive(self) -> str | None:
        """Drive the run to its end and give its state; None if this engine cannot go on with it (it has said so)."""
        self.machine.wakers.add(self._wake.set)
        self._driving = asyncio.current_task()
        requests: asyncio.Task[None] | None = None
        try:
            spec = await self._insist(self._load)
            self.state = await self._insist(self._open, spec)
            await self.machine.look(spec)
            if self.state.ended is not None:
                return self.state.ended
            await self._look_back(spec)
            self._folder = await self._insist(self._make_folder)
            requests = asyncio.create_task(self._watch_requests(self.state))
            await self._turns(self.state)
            return self.state.ended
        except GivenUp as error:
            await self._let_finish()
            self._end_without_log(
                f"{error}. Run {self.run} is given up here; what its tasks made is kept: {self._resume} runs what is missing"
            )
        except SteppedBack:
            if self._pod_grants:
                self._pods.spared.add((self.flow, self.run))
            self._end_without_log(f"another engine owns run {self.run}; this one has stepped back")
        except (StoreError, ValueError, TypeError, KeyError) as error:
            self._end_without_log(f"run {self.run} cannot be driven: {error}")
            traceback.print_exc(file=sys.stderr)
        except Exception as error:  # a mistake of our own must not end the other runs of this engine
            self._end_without_log(
                f"run {self.run} met a fault of flowbook ({type(error).__name__}: {error}); {self._resume} goes on with it"
            )
            traceback.print_exc(file=sys.stderr)
        finally:
            if requests is not None:
                requests.cancel()
            await self._clear_up()
        return None

    @property
    def _resume(self) -> str:
        """How to go on is spelled: a run of a flow file has no notebook."""
        return "`resume`" if self.state is not None and self.state.spec.program else "`%flow resume`"

    def poke(self) -> None:
        """A request object was written."""
        self._poked.set()

    def stop(self) -> None:
        """Stop the run now, its --always steps included: the engine itself is asked to end."""
        self._patience_s = min(self._patience_s, STOP_PATIENCE_S)
        self._inbox += [events.stop_requested(self._clock()), events.stop_requested(self._clock())]
        self._wake.set()

    def leave(self) -> bool:
        """Leave the run open, for a later engine to go on with, if it has pods in a cluster: those live on. False if it has none.

        The engine itself is asked to end, as when a hub takes the pod of an idle notebook away; a training must not end by that.
        """
        if not self._pod_grants or self._driving is None:
            return False
        self._pods.stop_on_cancel = False
        self._driving.cancel()
        return True

    def show_output(self) -> None:
        """Tell followers what was printed since the last call."""
        for live in self.live.values():
            if (live.phase, live.why) != live.phase_shown:
                live.phase_shown = live.phase, live.why
                self._say_hint(self._phase(live))
            self._show_output(live)

    def until_now(self) -> list[dict[str, Json]]:
        """How far the attempts that run now have come, and their rich output, for a follower who came late."""
        shown = [self._hint(live, {"say": "frame", **frame}) for live in self.live.values() for frame in live.displays]
        return [*(self._phase(live) for live in self.live.values() if live.began), *shown]

    def _phase(self, live: Live) -> dict[str, Json]:
        """What an attempt does now. `began` tells of those phases, too, that passed between two looks."""
        told: dict[str, Json] = {"say": "frame", "f": "phase", "phase": live.phase, "began": dict(live.began)}
        return self._hint(live, {**told, "why": live.why} if live.why else told)

    # ---- the loop -----------------------------------------------------------------------------------------------------------

    async def _turns(self, state: RunState) -> None:
        if state.started_at is None:
            self._happened(state, events.run_started(self._clock()))
        for task in list(state.active):
            event = await self._insist(self._take_over, state, task)
            if event is None:
                self._follow_again(state, task)
            else:
                self._happened(state, event)
        while True:
            self._wake.clear()
            if self._broken is not None:
                raise self._broken
            landed, self._landed = self._landed, []
            for task in landed:
                state.end_sharing(task)
            inbox, self._inbox = self._inbox, []
            for event in inbox:
                self._happened(state, event)
            starts, wake_at = await self._carry_out(state)
            await self._record()
            for launch, granted in starts:
                self._start(state, launch, granted)
            if state.ended is not None:
                await self._leave_index(state)
                return
            timeout = None if wake_at is None else max(0.0, wake_at - self._clock())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)

    def _happened(self, state: RunState, event: Event) -> None:
        state.apply(event)
        self._turn.append(event)

    async def _carry_out(self, state: RunState) -> tuple[list[tuple[Launch, Resources]], float | None]:
        """Decide until nothing more follows. Launches are admitted and entered in the log here, and started after it is written."""
        starts: list[tuple[Launch, Resources]] = []
        room = ROOM
        while True:
            wake_at, before, launches = None, len(self._turn), []
            for command in decide(state, self._clock(), room):
                match command:
                    case Cancel(task):
                        self._cancel(task)
                    case Skip(task, why):
                        self._happened(state, events.skipped(task, self._clock(), why))
                    case Finish(ended):
                        self._happened(state, events.run_ended(self._clock(), ended))
                    case Wake(at):
                        wake_at = at
                    case Launch():
                        launches.append(command)
            tried = await self._look_up(state, [launch for launch in launches if launch.reusable])
            starts += self._admit(state, [launch for launch in launches if not launch.reusable])
            if len(self._turn) == before and not tried:
                return starts, wake_at
            room = REUSE_ROOM if tried else ROOM

    def _admit(self, state: RunState, launches: list[Launch]) -> list[tuple[Launch, Resources]]:
        most = None if state.spec.max_parallel is None else max(0, state.spec.max_parallel - len(state.active))
        here = [launch for launch in launches if not self._placed(state, launch.task)]
        asks = ((launch, _ask(state, launch.task)) for launch in here)
        admitted = admit(asks, self.machine.granted.values(), self.machine.capacity, most)
        for launch, granted, _ in admitted:
            self.machine.granted[self, launch.task] = granted
        if len(here) < len(launches):
            left = None if most is None else most - len(admitted)
            pods = [(launch, self._pod_ask(state, launch.task)) for launch in launches if self._placed(state, launch.task)]
            cluster = self._pods.cluster
            for launch, granted in admit_pods(pods, self._pod_grants.values(), cluster.max_pods, cluster.max_gpus, left):
                self._pod_grants[launch.task] = granted
                admitted.append((launch, granted, _scaled(cluster.scale)))
        for launch, _, notes in admitted:
            step = state.spec.step(launch.task.step)
            started_by = "notebook runs" if step.method is None else "run was started"
            notes += tuple(
                f"environment variable {name} is not set where the {started_by}"
                for name, value in step.options.env
                if value is None and name not in self.place.env
            )
            why = self._looked.get(launch.task, (None, ""))[1]
            self._happened(state, events.launched(launch.task, self._clock(), launch.attempt, notes, why))
        return [(launch, granted) for launch, granted, _ in admitted]

    def _placed(self, state: RunState, task: Task) -> bool:
        """Whether a task runs in a pod of a cluster."""
        return self.place.cluster is not None and in_cluster(state.spec.step(task.step).options)

    def _pod_ask(self, state: RunState, task: Task) -> Resources:
        return asked(state.spec.step(task.step).options) if task.part == "body" else asked(Options())

    @property
    def _pods(self) -> Pods:
        pods = self.machine.pods(self.store, self.place)
        pods.troubled.add(self._trouble)
        return pods

    async def _record(self) -> None:
        """All that happened in this turn, as one log object."""
        if not self._turn:
            return
        turn, self._turn = self._turn, []
        packed = events.pack(turn)
        key = layout.log(self.flow, self.run, self._number)
        if not await self._insist(self.store.create, key, trust.sign_text(self.store, key, events.batch(packed))):
            raise SteppedBack
        self._number += 1
        self.packed.append(packed)
        self._changed()
        ended = any(event["e"] == "run_ended" for event in turn)
        if journal.due(self.store, len(self.packed), 1 if ended else self._together):
            self._together = len(self.packed)
            with contextlib.suppress(StoreError):  # the log itself says the same
                await asyncio.to_thread(journal.write, self.store, self.flow, self.run, list(self.packed))

    # ---- the log of an engine that is gone -----------------------------------------------------------------------------------

    def _open(self, spec: Spec) -> RunState:
        """The state that the log leads to: at the beginning, but for a run that is adopted."""
        state = RunState(spec)
        if not self._adopt:
            return state
        for key in self.store.list(layout.log_prefix(self.flow, self.run)):
            data = self.store.get(key)
            if not trust.is_right(self.store, key, data):  # it names what tasks unpickle: the items of fan-outs
                raise StoreError(f"{key} was not written with this project's key; the run cannot be gone on with. Start a new one")
            found = events.unbatch(data, key)
            for event in found:
                state.apply(event)
                if event.get("request"):
                    self._seen.add(event["request"])
            self.packed.append(events.pack(found))
        self._number = len(self.packed)
        return state

    def _take_over(self, state: RunState, task: Task) -> Event | None:
        """What became of an attempt that the last engine had launched. Its process died with that engine; a pod lives on: None."""
        found = state.tasks[task]
        if self._placed(state, task) and read_commit(self.store, self.flow, self.run, task) is None:
            return None
        self._take_output(task, found.attempt)
        commit = read_commit(self.store, self.flow, self.run, task)
        if commit is None:
            return events.lost(task, self._clock(), found.attempt, "its engine died")
        return events.succeeded(task, self._clock(), found.attempt, **_facts(state, task, commit))

    def _take_output(self, task: Task, attempt: int) -> None:
        for path in self.store.local_dir().glob(f"run-{self.run}-*/{_output_name(task, attempt)}"):
            with contextlib.suppress(StoreError, OSError):
                if path.stat().st_size:
                    self.store.adopt_file(layout.output(self.flow, self.run, task.step, task.index, attempt, task.part), path)

    # ---- the cache ------------------------------------------------------------------------------------------------------------

    async def _look_back(self, spec: Spec) -> None:
        try:
            self._from_origin, self._before = await asyncio.to_thread(self._cache.refresh, self.run, spec.origin, spec.steps)
        except Exception as error:  # whatever is wrong with other runs must not keep this one from running
            self._trouble(f"{error}. Results of earlier runs are not taken; every task runs")

    async def _look_up(self, state: RunState, launches: list[Launch]) -> bool:
        """For each task: take over the result of an equal one, wait for an equal one that runs, or find out that there is none.

        True if there was anything to look up.
        """
        for launch in launches:
            task = launch.task
            keyed = state.key(task)
            key, read = keyed if keyed is not None else (None, {})
            place = self._place(state, task, key)
            if key is not None and place is not None:
                event = await self._insist(self._copy, state, task, place)
                if event is not None:
                    self._happened(state, event)
                    continue
                self._cache.forget(key)
            step = state.spec.step(task.step)
            flight = self.machine.flights.get((self.flow, key)) if key is not None else None
            if flight is not None and flight.run is not self and not state.spec.fresh and not step.options.no_cache:
                flight.waiting.append(lambda task=task: self._land(task))  # type: ignore[misc]
                state.share(task)
                continue
            self._looked[task] = key, cache.why_missed(step, task, read, self._before.get(task.step))
            state.not_reusable(task)
        return bool(launches)

    async def _leave_index(self, state: RunState) -> None:
        with contextlib.suppress(StoreError):  # the log says the same
            await asyncio.to_thread(cache.write_index, self.store, state)
            row = dataclasses.replace(glance.begun(state.spec), state=state.ended, ended_at=state.ended_at)
            await asyncio.to_thread(glance.record, self.store, self.flow, {self.run: row})

    def _land(self, task: Task) -> None:
        self._landed.append(task)
        self._wake.set()

    def _place(self, state: RunState, task: Task, key: str | None) -> cache.Place | None:
        """Where a result with this key is that this run may take."""
        if key is None:
            return None
        if key in self._from_origin:
            return self._from_origin[key]
        options = state.spec.step(task.step).options
        place = None if state.spec.fresh or options.no_cache else self._cache.find(key)
        if place is not None and options.cache_for_s is not None and place.at + options.cache_for_s < self._clock():
            return None
        return place

    def _copy(self, state: RunState, task: Task, place: cache.Place) -> Event | None:
        """Take over the COMMIT of another run; None if it is there no more, damaged, or one whose error was caught."""
        try:
            commit = results_commit(self.store, self.flow, place.run, place.step, place.index, place.part)
            watched = {name for name, level in state.spec.step(task.step).watch if level == "error"}
            if (
                commit is None
                or not trust.holds(self.store, commit)
                or commit.get("caught")
                or commit.get("undeclared")
                or watched & set(commit.get("changed", ()))
            ):
                return None  # the last: a change in place which was lost when nobody read it, and which somebody reads now
            if not all(self.store.keep(layout.blob(blob)) for blob in _blobs(commit)):
                return None
            made = commit.get("made_in")
            if made is not None:
                str(made["run"]), tuple(made["index"]), float(made["at"])
            facts = _facts(state, task, commit)
        except (StoreError, TypeError, AttributeError, KeyError, ValueError, RecursionError):
            return None  # damaged: it is made again
        made = commit.setdefault("made_in", {"run": place.run, "index": list(place.index), "at": place.at})
        key = layout.commit(self.flow, self.run, task.step, task.index, task.part)
        self.store.create(key, trust.sign(self.store, key, commit))
        steps = {step.name: step for step in state.spec.steps}
        plans = {
            name: facts["plans"][name]
            for name, plan in commit.get("plans", {}).items()
            if name in steps and plan.get("key", "") == steps[name].plan_key
        }
        return events.reused(
            task,
            self._clock(),
            run=made["run"],
            index=tuple(made["index"]),
            made_at=made["at"],
            attempt=commit.get("attempt", 0),
            missing=facts["missing"],
            plans=plans,
            keys=facts["keys"],
        )

    # ---- attempts -----------------------------------------------------------------------------------------------------------

    def _start(self, state: RunState, launch: Launch, granted: Resources) -> None:
        assert self._folder is not None
        task = launch.task
        live = self.live[task] = Live(task, launch.attempt, self._folder / _output_name(task, launch.attempt))
        live.launched_at, live.in_pod = state.tasks[task].launched_at, self._placed(state, task)
        with contextlib.suppress(OSError, IndexError):
            self._blank.pop().rename(live.output)
        looked = self._looked.pop(task, None)
        keyed = state.key(task) if looked is None else None  # a later attempt, or a run that takes nothing: others may take from it
        live.key = looked[0] if looked is not None else keyed[0] if keyed is not None else None
        if live.key is not None:
            self.machine.flights.setdefault((self.flow, live.key), Flight(self))
        follow = asyncio.create_task(self._follow(state, live, self._order(state, live, granted)))
        self._attempts.add(follow)
        follow.add_done_callback(self._attempts.discard)

    def _follow_again(self, state: RunState, task: Task) -> None:
        """A pod that an earlier engine made, or was about to make: its name is known, so it is followed as if it had just been created."""
        granted = self._pod_grants[task] = self._pod_ask(state, task)
        self._start(state, Launch(task, state.tasks[task].attempt), granted)
        self.live[task].launched_at = None

    def _order(self, state: RunState, live: Live, granted: Resources) -> Attempt:
        task, spec = live.task, state.spec
        options = spec.step(task.step).options
        inputs, joins, item, failures = state.order_inputs(task)
        order = {
            "store": self.store.describe(),
            "flow": self.flow,
            "run": self.run,
            "step": task.step,
            "index": list(task.index),
            "part": task.part,
            "attempt": live.attempt,
            "inputs": inputs,
            "joins": joins,
            "item": item,
            "failures": failures,
            "ids": state.ids(task),
            "cwd": self.place.cwd,
            "sys_path": list(self.place.sys_path),
        }
        if spec.step(task.step).method is not None:
            order["fans"] = state.fans(task)
        step_env = {name: value for name, value in options.env if value is not None}
        if not self._placed(state, task):
            return Attempt(order, live.output, self.place.env, step_env, granted, options.timeout_s)
        step_env |= {name: self.place.env[name] for name, value in options.env if value is None and name in self.place.env}
        return Attempt(order, live.output, {}, step_env, granted, options.timeout_s, pod_of(options, spec.python))

    async def _follow(self, state: RunState, live: Live, attempt: Attempt) -> None:
        """From the start of an attempt to the event that tells its end."""
        try:
            ended = await self._ended(live, attempt)
            self._release(live.task)
            self._show_output(live)
            event = await self._insist(self._conclude, state, live, ended, attempt.resources)
            self._note_result(state, live, event)
            self._inbox.append(event)  # not in one line: the inbox is another list after the await
        except Exception as error:
            self._broken = self._broken or error  # raised where the run is driven
        finally:
            self._release(live.task)
            self.live.pop(live.task, None)
            self.machine.landed(self.flow, live.key)
            self._wake.set()

    def _release(self, task: Task) -> None:
        self.machine.release((self, task))
        if self._pod_grants.pop(task, None) is not None:
            self._wake.set()

    async def _ended(self, live: Live, attempt: Attempt) -> Exit | None:
        """How an attempt ended; None if it was stopped."""
        if live.cancelled:
            return None
        live.pod = asyncio.current_task()
        try:
            launcher: Launcher = self.machine.launcher if attempt.pod is None else self._pods
            return await launcher.run(attempt, lambda frame: self._on_frame(live, frame))
        except asyncio.CancelledError:
            if live.pod is not None:
                live.pod.uncancel()
            return None
        except Exception as error:
            return Exit("lost", message=f"the worker could not be watched: {type(error).__name__}: {error}")
        finally:
            live.pod = None

    def _cancel(self, task: Task) -> None:
        live = self.live.get(task)
        if live is not None and not live.cancelled:
            live.cancelled = True
            if live.pod is not None:
                live.pod.cancel()

    def _note_result(self, state: RunState, live: Live, event: Event) -> None:
        """From now on an equal task of any run of this engine may take the result."""
        if live.key is not None and event["e"] == "succeeded" and not event.get("caught"):
            task = live.task
            self._cache.add(live.key, cache.Place(self.run, task.step, task.index, task.part, event["at"]))

    def _conclude(self, state: RunState, live: Live, ended: Exit | None, granted: Resources) -> Event:
        """What became of an attempt, from its COMMIT, else from how it ended. May be run again after a StoreError."""
        task, step = live.task, state.spec.step(live.task.step)
        commit = read_commit(self.store, self.flow, self.run, task)
        error = None
        if commit is None and ended is not None:
            if ended.again and state.tasks[task].losses < MOST_LOSSES:
                self._keep(live, ended)
                return events.lost(task, self._clock(), live.attempt, ended.message)
            error = _error(live, ended, step, granted, state.tasks[task].item)
            if task.part == "body" and step.options.catch is not None and error["reason"] in DIED and not state.attempts_left(task, error):
                commit = self._commit_caught(step.options.catch, live, error, ended)
        self._keep(live, ended)
        began = dict(live.began) if live.in_pod else {}
        if commit is not None:
            return events.succeeded(task, self._clock(), live.attempt, **_facts(state, task, commit), began=began)
        if error is not None:
            return events.failed(task, self._clock(), live.attempt, error=error, began=began)
        return events.stopped(task, self._clock(), began=began)

    def _commit_caught(self, variable: str, live: Live, error: Json, ended: Exit) -> Json:
        """--catch of a death that the worker could not commit itself. A COMMIT that is there after all wins."""
        text = f"{error['reason']}: {error['message']}"
        entry = {"kind": "json", "json": text, "type": "str", "size": len(text.encode()), "repr": repr(text)[:200]}
        if variable and self.state is not None and self.state.spec.compat:
            from flowbook.store import codec, results  # values are otherwise none of the engine's business

            told = results.TaskError(reason=error["reason"], type=error["reason"], message=error["message"])
            entry = codec.entry(self.store, variable, told)  # Metaflow has an object with `type` and `exception` there
        caught = {"type": error["reason"], "message": error["message"]}
        artifacts = {variable: entry} if variable else {}
        commit = {"v": 1, "attempt": live.attempt, "artifacts": artifacts, "unsaved": {}, "plans": {}, "item": error.get("item")}
        commit |= {"warnings": [], "changed": [], "caught": caught, "seconds": {}, "peak_mb": ended.peak_mb}
        step = self.state.spec.step(live.task.step) if self.state is not None else None
        if step is not None and step.next is not None:
            commit["next"] = list(step.next.steps)  # `check` allows --catch only where the way on needs no value
        key = layout.commit(self.flow, self.run, live.task.step, live.task.index)
        self.store.create(key, trust.sign(self.store, key, commit))
        return read_commit(self.store, self.flow, self.run, live.task)

    def _keep(self, live: Live, ended: Exit | None) -> None:
        """Move what an attempt printed and showed into the store, unless a pod has done so itself."""
        if ended is not None and ended.kept:
            live.output.unlink(missing_ok=True)
            return
        place = (self.flow, self.run, live.task.step, live.task.index, live.attempt, live.task.part)
        try:
            size = live.output.stat().st_size
        except FileNotFoundError:
            size = 0  # never started, or moved already
        if size:
            self.store.adopt_file(layout.output(*place), live.output)
        else:
            self._blank.append(live.output)
        if live.displays:
            shown = {"frames": live.displays, "left_out": live.displays_left_out}
            self.store.create(layout.display(*place), json.dumps(shown).encode())

    # ---- hints --------------------------------------------------------------------------------------------------------------

    def _hint(self, live: Live, message: Mapping[str, Json]) -> dict[str, Json]:
        task = live.task
        where = {"step": task.step, "index": list(task.index), "part": task.part, "attempt": live.attempt}
        return {**message, "flow": self.flow, "run": self.run, **where}

    def _on_frame(self, live: Live, frame: Frame) -> None:
        live.take(frame, self._clock())
        if frame["f"] in ("display", "card"):
            self._say_hint(self._hint(live, {**frame, "say": "frame"}))

    def _show_output(self, live: Live) -> None:
        try:
            size = live.output.stat().st_size
        except OSError:
            return
        if size != live.shown:
            text, live.shown = live.tail()
            self._say_hint(self._hint(live, {"say": "output", "text": text, "size": live.shown}))

    def _trouble(self, message: str) -> None:
        """An empty message says that the trouble is over."""
        if message != self.last_trouble:
            self.last_trouble = message
            self._say_hint({"say": "trouble", "flow": self.flow, "run": self.run, "message": message})

    # ---- requests -----------------------------------------------------------------------------------------------------------

    async def _watch_requests(self, state: RunState) -> None:
        while True:
            try:
                found = await asyncio.to_thread(self._new_requests, state)
            except StoreError:
                found = []  # looked for again in a moment
            if found:
                self._inbox += found
                self._wake.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poked.wait(), REQUESTS_S)
            self._poked.clear()

    def _new_requests(self, state: RunState) -> list[Event]:
        found = []
        for key in self.store.list(layout.request_prefix(self.flow, self.run)):
            if key not in self._seen:
                event = _request(self.store.get(key), state.spec, self._clock(), key)
                self._seen.add(key)
                found += [event] if event is not None else []
        return found

    # ---- trouble, and the end -------------------------------------------------------------------------------------------------

    async def _insist(self, act: Callable[..., T], *args: Any) -> T:
        """Do it in a thread; while the store refuses, say so and try again. Raises GivenUp after `patience_s`."""
        started, delay = time.monotonic(), 0.25
        while True:
            try:
                result = await self._call(act, *args)
                if not self._over_here:
                    self._trouble("")
                return result
            except (StoreMissing, StoreTooNew):
                raise
            except StoreError as error:
                if self._given_up or time.monotonic() - started + delay > self._patience_s:
                    self._given_up = True
                    raise GivenUp(str(error)) from error
                self._trouble(
                    f"{error}. Nothing is lost: it is tried again for {self._patience_s / 60:.0f} minutes, and no new task starts"
                )
            await asyncio.sleep(delay)
            delay = min(2 * delay, 30.0)

    async def _call(self, act: Callable[..., T], *args: Any) -> T:
        """In the loop as long as the store answers at once, as a local disk does: a thread costs more than the call. Else in a thread."""
        if self._slow_calls > MOST_SLOW:
            return await asyncio.to_thread(act, *args)
        started = time.perf_counter()
        try:
            return act(*args)
        except StoreError:
            self._slow_calls = MOST_SLOW + 1
            raise
        finally:
            self._slow_calls += time.perf_counter() - started > SLOW_S

    def _load(self) -> Spec:
        data = trust.spec(self.store, self.flow, self.run)
        if data.get("version", 1) > SPEC_VERSION:
            raise StoreTooNew(f"run {self.run} was written by a newer flowbook. Restart the kernel after an upgrade")
        spec = from_json(Spec, data)
        assert isinstance(spec, Spec)
        return spec

    def _make_folder(self) -> Path:
        """For what attempts print: on the store's own disk, so that it is moved and not copied."""
        return Path(tempfile.mkdtemp(prefix=f"run-{self.run}-{os.getpid()}-", dir=self.store.local_dir()))

    def _end_without_log(self, message: str) -> None:
        """Nobody who follows may wait for ever: they are told an end that the log does not hold, and why."""
        self._over_here = True
        self._trouble(message)
        self.packed.append(events.pack([events.run_ended(self._clock(), "failed")]))
        self._changed()

    async def _let_finish(self) -> None:
        """What runs may commit by itself; it is not stopped because the log cannot be written."""
        if self._attempts:
            await asyncio.wait(self._attempts)

    async def _clear_up(self) -> None:
        """Stop what still runs (nothing does after an ordinary end) and take the folder of outputs away."""
        self.machine.wakers.discard(self._wake.set)
        self._given_up = True
        for task in list(self.live):
            self._cancel(task)
        await self._let_finish()
        for key in [key for key in self.machine.granted if isinstance(key, tuple) and key[0] is self]:
            self.machine.release(key)  # granted, and never started since the log could not be written
        for pods in self.machine.clusters.values():
            pods.troubled.discard(self._trouble)
            await pods.leave_run(self.flow, self.run, ended=self.state is not None and self.state.ended is not None)
        if self._folder is not None:
            await asyncio.to_thread(self._remove_folder, self._folder)
        self._changed()

    def _remove_folder(self, folder: Path) -> None:
        """What an attempt printed and could not be moved into the store stays where it is."""
        if self.state is None or self.state.ended is not None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            folder.rmdir()


# ---- reading and telling ------------------------------------------------------------------------------------------------


def read_commit(store: Store, flow: str, run: str, task: Task) -> Json:
    return results_commit(store, flow, run, task.step, task.index, task.part)


def results_commit(store: Store, flow: str, run: str, step: str, index: events.Index, part: str) -> Json:
    from flowbook.store.results import read_commit as read  # it brings the codec, which start-up need not wait for

    return read(store, flow, run, step, index, part)


def _ask(state: RunState, task: Task) -> Resources:
    """A plan task evaluates one expression: a core at most, and no GPU."""
    asked = state.spec.step(task.step).options.resources
    return asked if task.part == "body" else Resources(cpu=min(1.0, asked.cpu))


def _scaled(scale: float) -> tuple[str, ...]:
    """What is said of a pod that does not get what its step asks for."""
    return () if scale == 1 else (f"pods get {scale:g} of the cpu, memory and disk asked for (kubernetes_scale)",)


def _facts(state: RunState, task: Task, commit: Json) -> dict[str, Json]:
    """The part of a COMMIT that the log repeats. A name that was bound but could not be saved is not missing: reading it is an error."""
    step, artifacts = state.spec.step(task.step), commit.get("artifacts", {})
    made = artifacts.keys() | commit.get("unsaved", {}).keys() | {next_token(name) for name in commit.get("next", ())}
    foreach, catch = step.options.foreach, step.options.catch
    names = dict.fromkeys((*step.saves, *(foreach.names if foreach else ()), *([catch] if catch else ())))
    kept = ("when", "count", "items", "reprs", "ids", "error")
    return {
        "missing": [name for name in names if name not in made] if task.part == "body" else [],
        "plans": {name: {key: plan[key] for key in kept if key in plan} for name, plan in commit.get("plans", {}).items()},
        "caught": bool(commit.get("caught")),
        "warnings": commit.get("warnings", []),
        "seconds": commit.get("seconds"),
        "peak_mb": commit.get("peak_mb"),
        "cpu_s": commit.get("cpu_s"),
        "keys": _keys(state, task, artifacts, commit.get("unsaved", {})) if task.part == "body" else None,
    }


def _keys(state: RunState, task: Task, artifacts: Mapping[str, Json], unsaved: Iterable[str]) -> dict[str, str]:
    names, joined = state.wanted(task.step)
    found = {name: entry_key(artifacts[name]) for name in names if name in artifacts}
    if joined:
        told = [(name, entry_key(entry)) for name, entry in artifacts.items()]
        if state.spec.step(task.step).method is not None:
            told += [(name, "") for name in unsaved]  # that a name is gone can be seen through the task
        text = json.dumps(sorted(told))
        found["*"] = hashlib.sha256(text.encode()).hexdigest()[:22]
    return found


def _blobs(commit: Json) -> set[str]:
    """Every blob that a COMMIT refers to."""
    found = {blob for entry in commit.get("artifacts", {}).values() for blob in (entry.get("blob"), *entry.get("blobs", ()))}
    found |= {blob for plan in commit.get("plans", {}).values() for blob in (plan.get("items"), *plan.get("blobs", ()))}
    return {blob for blob in found if blob}


def _output_name(task: Task, attempt: int) -> str:
    return f"{task.step}-{layout.task_key(task.index, task.part)}-{attempt}"


def _request(data: bytes, spec: Spec, at: float, key: str) -> Event | None:
    """A request object as an event; None for what is no request, or of a later version."""
    try:
        request = json.loads(data)
        step, index = request.get("step"), request.get("index")
    except (ValueError, AttributeError):
        return None
    known = step is None or any(step == known.name for known in spec.steps)
    is_index = index is None or (step is not None and isinstance(index, list) and all(type(i) is int for i in index))
    if request.get("ask") != "stop" or not known or not is_index:
        return None
    return events.stop_requested(at, step, index, key)


def _error(live: Live, ended: Exit, step: Step, granted: Resources, item: str | None) -> dict[str, Json]:
    """ERROR of an attempt that left no COMMIT. What the worker said of itself counts, unless it was killed for its limits."""
    error: dict[str, Json]
    if live.failed is not None and ended.reason in ("ended", "killed"):
        error = {"reason": "error", **live.failed}
        error["traceback"] = str(error.get("traceback") or "")[-TRACEBACK_LIMIT:]
    else:
        reason = "exit" if ended.reason == "ended" else ended.reason
        error = {"reason": "lost" if reason == "evicted" else reason, "message": _why(live.task, ended, step, granted)}
    if item is not None:
        error.setdefault("item", item)
    if not error.get("output_tail"):
        error["output_tail"] = last_lines(live.tail()[0])
    return error


def _why(task: Task, ended: Exit, step: Step, granted: Resources) -> str:
    memory, timeout = ("@resources(memory=…)", "@timeout(…)") if step.method is not None else ("--memory", "--timeout")
    if ended.reason == "oom":
        peak = f"{ended.peak_mb:.0f} MB" if ended.peak_mb is not None else "more memory than it may"
        limit = f"its limit is {granted.memory_mb} MB"
        return f"{task} used {peak}, {limit}. Ask for more with {memory}, or load less at once"
    if ended.reason == "timeout":
        return f"{task} ran longer than its limit of {step.options.timeout_s:g} s. Raise {timeout}, or give it less to do"
    if ended.reason == "killed":
        hints = {
            "SIGKILL": f" (often the system, when memory is short: ask for what it needs with {memory})",
            "SIGSEGV": " (compiled code crashed)",
        }
        return f"the process of {task} was killed by {ended.signal}{hints.get(ended.signal or '', '')}. Its last output may say why"
    if ended.reason == "ended":
        return f"{task}: the body ended the process: os._exit({ended.code}). Let it run to its end; to make it fail, raise an error"
    return ended.message or f"{task} was lost ({ended.reason})"


def last_lines(text: str) -> str:
    """The last lines as a terminal would show them: what a carriage return overwrote is gone, colours stay.

    >>> last_lines("10%\\r20%\\ndone\\n")
    '20%\\ndone'
    """
    lines = [re.sub(r"\r+\Z", "", line).rpartition("\r")[2] for line in text.rstrip("\n").split("\n")]
    return "\n".join(lines[-TAIL_LINES:])
