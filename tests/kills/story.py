"""The run that is killed from outside: 60 tasks, what they leave behind, and what must be true of it afterwards.

Each body appends "STEP INDEX" to a file, in one write, so that what ran can be told from what is committed. A point of time is
"when so many COMMITs are there", and a few looks later: it comes from a seed, and needs no sleep.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flowbook.engine import events
from flowbook.engine.state import RunState, decide, fold
from flowbook.spec.flow import Spec, from_json
from flowbook.store import layout
from flowbook.store.files import FilesStore

ITEMS = 58
TASKS = ITEMS + 2  # start and join
TOTAL = sum(x * x for x in range(ITEMS))
MOST_LOOKS = 40  # at the store, after the COMMIT that was waited for: about as long as a task takes
DEADLINE_S = 60.0
POINTS = 25

NOTE = """import os, time
with open("ran.txt", "ab", 0) as ran:
    ran.write(b"{name} %d\\n" % {index})
time.sleep(0.003)
"""


def body(name: str, index: str, rest: str) -> str:
    """The source of a task that tells of itself, takes a few milliseconds, and goes on with `rest`."""
    return NOTE.format(name=name, index=index) + rest


START = body("start", "0", f"xs = list(range({ITEMS}))")
WORK = body("work", "x", "y = x * x")
TOTAL_OF = body("total", "0", "found = sum(t.y for t in work)")

CELLS = [
    f"%%flowstep start --no-cache\n{START}",
    f'%%flowstep work --no-cache --foreach "x in xs"\n{WORK}',
    f"%%flowstep total --no-cache --join work\n{TOTAL_OF}",
]


@dataclass(frozen=True)
class Point:
    """When to kill: as soon as `commits` COMMITs are there, and `looks` looks later."""

    commits: int
    looks: int
    choice: float  # which of several processes, as a part of 1

    def __str__(self) -> str:
        return f"{self.commits}+{self.looks}"


def points(what: str) -> list[Point]:
    """The points for one kind of process, always the same."""
    draw = random.Random(f"kill {what}")
    return [Point(draw.randrange(TASKS - 1), draw.randrange(MOST_LOOKS), draw.random()) for _ in range(POINTS)]


@dataclass(frozen=True)
class Seen:
    """What there was at one moment: the COMMITs, and how often each task had begun by then."""

    committed: frozenset[str]
    begun: Counter[str]


class Story:
    """The runs of one flow in one store, as the files tell it."""

    def __init__(self, store: FilesStore, flow: str, folder: Path) -> None:
        self.store, self.flow, self.folder = store, flow, folder

    def new_run(self) -> None:
        """Forget what earlier runs noted."""
        (self.folder / "ran.txt").unlink(missing_ok=True)

    def committed(self, run: str) -> frozenset[str]:
        """ "STEP INDEX" of each COMMIT of a run."""
        top = self.store.root / "flows" / self.flow / run
        return frozenset(
            f"{path.parent.name} {path.name.removesuffix('.COMMIT')}" for path in top.glob("*/*.COMMIT") if path.parent.name != "run.log"
        )

    def begun(self) -> Counter[str]:
        """How often each task wrote its line."""
        noted = self.folder / "ran.txt"
        return Counter(noted.read_text().splitlines()) if noted.exists() else Counter()

    def seen(self, run: str) -> Seen:
        """What there is now. The COMMITs first: a line that is older than its COMMIT must not be taken for a newer one."""
        committed = self.committed(run)
        return Seen(committed, self.begun())

    def over(self, run: str) -> bool:
        """Whether nothing is left to be killed: the last COMMIT is there."""
        return "total 0" in self.committed(run)

    def wait_for(self, run: str, point: Point) -> None:
        """Until the point has come. Looks, and does not sleep."""
        until(lambda: self.store.exists(layout.spec(self.flow, run)))
        until(lambda: len(self.committed(run)) >= point.commits or self.over(run))
        for _ in range(point.looks):
            if self.over(run):
                return

    # ---- what must be true -----------------------------------------------------------------------------------------------

    def check_whole(self, run: str, before: Seen, again: int) -> None:
        """All results are there once and right; nothing that had been committed `before` ran again, and of the rest `again` at most."""
        state, log = self.state(run), self.log(run)
        assert state.ended == "succeeded", [e for e in log if e["e"] in ("failed", "lost")]
        assert self.committed(run) == frozenset(["start 0", "total 0", *(f"work {i}" for i in range(ITEMS))])
        settled = Counter(str(events.task_of(e)) for e in log if e["e"] in ("succeeded", "reused"))
        assert set(settled.values()) == {1} and len(settled) == TASKS
        self.check_not_again(before)
        assert sum(self.begun().values()) <= TASKS + again, [task for task, times in self.begun().items() if times > 1]
        self.check_values(run)
        self.check_prefixes(run)

    def check_not_again(self, before: Seen) -> None:
        now = self.begun()
        again = {task: (before.begun[task], now[task]) for task in before.committed if now[task] != before.begun[task]}
        assert again == {}, f"committed, and ran again (lines before, now): {again}"

    def check_values(self, run: str) -> None:
        for i in range(ITEMS):
            assert self.artifact(run, "work", (i,), "y") == i * i
        assert self.artifact(run, "total", (), "found") == TOTAL

    def check_prefixes(self, run: str) -> None:
        """Whatever part of the log a reader finds, it folds, and it can be told what is to be done next; `fold` applies event after event."""
        state = fold(self.spec(run), [])
        for event in self.log(run):
            state.apply(event)
            decide(state, event["at"])

    # ---- reading ---------------------------------------------------------------------------------------------------------

    def artifact(self, run: str, step: str, index: tuple[int, ...], name: str) -> Any:
        return json.loads(self.store.get(layout.commit(self.flow, run, step, index)))["artifacts"][name]["json"]

    def spec(self, run: str) -> Spec:
        found = from_json(Spec, json.loads(self.store.get(layout.spec(self.flow, run))))
        assert isinstance(found, Spec)
        return found

    def log(self, run: str) -> list[events.Event]:
        keys = list(self.store.list(layout.log_prefix(self.flow, run)))
        assert keys == [layout.log(self.flow, run, number) for number in range(len(keys))], "the log has a gap"
        return [event for key in keys for event in events.unbatch(self.store.get(key), key)]

    def state(self, run: str) -> RunState:
        return fold(self.spec(run), self.log(run))


def until(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"


def fork_servers(engine: int) -> list[psutil.Process]:
    """The fork servers of an engine: its children that were started as such."""
    found = []
    for child in _children(engine):
        try:
            if _lives(child) and "--fork-server" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def workers(engine: int) -> list[psutil.Process]:
    """The processes of attempts: children of fork servers, and children of the engine itself where it spawns."""
    servers = fork_servers(engine)
    own = [child for child in _children(engine) if child.pid not in {server.pid for server in servers}]
    return [each for each in own + [worker for server in servers for worker in _children(server.pid)] if _lives(each)]


def kill(process: psutil.Process) -> None:
    """SIGKILL, unless it is gone already."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them have ended; a zombie runs no more."""
    return not any(_lives(process) for process in processes)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
