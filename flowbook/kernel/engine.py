"""Engine processes seen from the kernel: start or find our own, ask it, follow runs, those of other engines too.

A plain thread reads each socket and folds events into RunViews; the kernel's main thread waits on one condition variable.
An engine has its own session, so an interrupt of the kernel never reaches it, and it outlives the kernel while runs are open:
a new kernel of the same notebook takes it over. A connection that breaks while its engine lives is made anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowbook._version import __version__
from flowbook.engine import registry
from flowbook.engine.state import RunState
from flowbook.errors import EngineError, StoreError
from flowbook.kernel.tally import Tally, read_began
from flowbook.spec.flow import Spec
from flowbook.store.base import Store

START_TIMEOUT_S = 30.0
PING_TIMEOUT_S = 5.0
log = logging.getLogger("flowbook")
Key = tuple[str, tuple[int, ...], str]  # step, index, part
RunKey = tuple[str, str]  # flow, run


class RunView:
    """What this kernel knows of one run: the folded log, and hints that came on the way."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.state = RunState(spec)
        self.tally = Tally()
        self.version = 0  # grows with every change, so that painters know when to paint
        self.output: dict[Key, tuple[str, int]] = {}  # last text printed, and how many bytes there are in all
        self.displays: dict[Key, list[dict[str, Any]]] = {}
        self.phase: dict[Key, str] = {}
        self.why: dict[Key, str] = {}  # a pod of a cluster does not get on
        self.began: dict[Key, dict[str, float]] = {}  # when each phase began, seconds after the launch
        self.metrics: dict[Key, dict[str, float]] = {}  # the last value of each line that the task's cards draw
        self.attempt: dict[Key, int] = {}
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.trouble: str | None = None
        self.watchers: list[Callable[[dict[str, Any]], None]] = []  # hear each event and each hint after it was taken in
        self.closed = False  # the log that was read ended with the run's end
        self.ended: str | None = None  # succeeded, failed, stopped; "lost" when the engine ended under it
        self._applied = 0  # events so far
        self._skip = 0  # of those that come, so many were applied before

    def again(self) -> None:
        """The events come from the first one on once more: those that were applied are passed over."""
        self._skip = self._applied

    def apply(self, event: dict[str, Any]) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._applied += 1
        self.state.apply(event)
        self.tally.apply(event)
        if event["e"] == "run_started":
            self.started_at = event["at"]
        elif event["e"] == "run_ended":
            self.ended, self.ended_at = event["state"], event["at"]
        elif event["e"] in ("succeeded", "failed", "lost", "stopped"):
            self.why.pop(_key(event), None)
            if began := read_began(event.get("began")):
                self.began[_key(event)] = began
        elif event["e"] == "launched":
            key = _key(event)
            self.attempt[key] = event.get("attempt", 0)
            self.phase.pop(key, None)
            self.why.pop(key, None)
            self.began.pop(key, None)
            self.metrics.pop(key, None)
            if event.get("attempt", 0):  # a new attempt's output takes the place of the last one's
                self.output.pop(key, None)
                self.displays.pop(key, None)
        self._tell(event)

    def hint(self, message: dict[str, Any]) -> None:
        self._take_hint(message)
        self._tell(message)

    def _tell(self, message: dict[str, Any]) -> None:
        for watch in self.watchers:
            try:
                watch(message)
            except Exception:  # who only shows a run must not end the thread that hears of it
                log.warning("a watcher of run %s failed", self.spec.run, exc_info=True)

    def _take_hint(self, message: dict[str, Any]) -> None:
        key = _key(message)
        if message["say"] == "output":
            self.output[key] = (message.get("text", ""), message.get("size", 0))
        elif message.get("f") == "phase":
            self.phase[key] = message["phase"]
            self.why.pop(key, None)
            if message.get("why"):
                self.why[key] = str(message["why"])
            self.began[key] = read_began(message.get("began"))
        elif message.get("f") == "card":
            from flowbook.cards import wire  # not needed by a flow without cards, and slow to import

            if found := wire.metrics(message.get("card")):
                self.metrics.setdefault(key, {}).update(found)
        elif message.get("f") == "display":
            shown = self.displays.setdefault(key, [])
            if message.get("update"):
                for frame in shown:
                    if frame.get("id") == message.get("id"):
                        frame["data"] = message["data"]
                return
            if len(shown) < 50:
                shown.append(message)


def _key(message: dict[str, Any]) -> Key:
    return message["step"], tuple(message.get("index") or ()), message.get("part") or "body"


class Link:
    """One connection to one engine; `heard` gets each message, `broke` is called when it ends unasked. Raises OSError."""

    def __init__(self, path: str, heard: Callable[[dict[str, Any]], None], broke: Callable[[Link], None]) -> None:
        self.path, self._heard, self._broke = path, heard, broke
        self.closed = False  # by us
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sending = threading.Lock()
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        threading.Thread(target=self._read, name="flowbook-engine", daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _read(self) -> None:
        with self.socket.makefile("rb") as lines:
            try:
                for line in lines:
                    self._heard(json.loads(line))
            except (OSError, ValueError):
                pass
        if not self.closed:
            self.socket.close()
            self._broke(self)


def ping(path: str, timeout_s: float = PING_TIMEOUT_S) -> dict[str, Any] | None:
    """What the engine at this socket says of itself; None if nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(path)
            probe.sendall(b'{"do": "ping"}\n')
            with probe.makefile("rb") as lines:
                found = json.loads(lines.readline())
        except (OSError, ValueError):
            return None
    return found if isinstance(found, dict) else None


class Engine:
    """The engine of this kernel, and those of others whose runs it follows. Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        environ: dict[str, str] | None = None,
        notebook: str = "",
        option: Callable[[str], str] = lambda flow: "",
    ) -> None:
        self._store, self._environ, self._notebook, self.option = store, environ, notebook, option
        self.cluster: Mapping[str, Any] | None = None  # what the settings say of pods; see Settings.cluster
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._own: Link | None = None
        self._links: dict[str, Link] = {}  # by the path of the socket, our own engine's too
        self._followed: dict[RunKey, str] = {}  # run → the socket over which it is followed
        self._lock = threading.RLock()
        self._forked = False
        self.changed = threading.Condition()
        self.views: dict[RunKey, RunView] = {}
        self.listeners: list[Callable[[RunView], None]] = []
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: engine._leave_to_parent() if (engine := this()) is not None else None)

    @property
    def pid(self) -> int | None:
        """Of the process that was started here; None if there is none, or one of an earlier kernel is used."""
        return self._process.pid if self._process else None

    # ---- our own engine ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over the living engine of this notebook, else start a process, not waiting for it; nothing happens if there is one."""
        self.check_process()
        with self._lock:
            if self._own is not None or (self._process is not None and self._process.poll() is None):
                return
            self._own = self._take_over()
            if self._own is None:
                self._start_process()

    def _take_over(self) -> Link | None:
        """A connection to the engine that a kernel of this notebook left, if it is of this version and Python."""
        if not self._notebook:
            return None
        with contextlib.suppress(OSError, StoreError):  # a store that cannot be used says so when a run wants to
            for _, entry in registry.entries(self._store):
                if (entry.notebook, entry.version, entry.python) == (self._notebook, __version__, sys.executable):
                    with contextlib.suppress(OSError):
                        return self._open(entry.socket)
        return None

    def _start_process(self) -> None:
        if self._folder is None or not self._folder.is_dir():  # an engine that ended as it should takes its folder away
            # A socket's path may have 107 bytes, which a user's data folder can exceed; hence the temp folder.
            self._folder = Path(tempfile.mkdtemp(prefix="flowbook-"))
        path = self._folder / "engine.sock"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-P", "-m", "flowbook.engine", "--socket", str(path), "--store", json.dumps(self._store.describe())]
        with (self._folder / "engine.log").open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    [*command, "--notebook", self._notebook],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=self._environ,
                )
            except OSError as error:
                raise EngineError(f"the engine process cannot be started: {error}. Is {sys.executable} still there?") from error

    def _connect(self) -> Link:
        self.start()
        with self._lock:
            if self._own is not None:
                return self._own
            assert self._folder is not None and self._process is not None
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    self._own = self._open(str(self._folder / "engine.sock"))
                    return self._own
                except OSError:
                    if self._process.poll() is not None:
                        raise EngineError(f"the engine process ended at its start; {self._last_words()}") from None
                    if time.monotonic() > deadline:
                        raise EngineError(f"the engine process did not answer in {START_TIMEOUT_S:.0f} s; {self._last_words()}") from None
                    time.sleep(0.005)

    def _last_words(self) -> str:
        if self._folder is None:
            return "it was started by an earlier kernel of this notebook"
        log = self._folder / "engine.log"
        tail = log.read_text("utf-8", "replace").strip().splitlines()[-3:] if log.exists() else []
        return "it said: " + " | ".join(tail) if tail else f"its log {log} is empty"

    # ---- asking -----------------------------------------------------------------------------------------------------

    def send(self, message: dict[str, Any]) -> None:
        """To our own engine, which is started if need be."""
        self._say(self._connect(), message)

    def warm(self, environ: dict[str, str], cwd: str, sys_path: list[str], imports: Sequence[str]) -> None:
        """Let our engine get a fork server ready that has imported these modules. Returns at once; a hint, so it never fails."""
        message = {"do": "warm", "env": environ, "cwd": cwd, "sys_path": sys_path, "imports": list(imports)}

        def ask() -> None:
            with contextlib.suppress(EngineError):  # a run will say it
                self.send(message)

        threading.Thread(target=ask, name="flowbook-warm", daemon=True).start()

    def run(
        self,
        spec: Spec,
        environ: dict[str, str],
        cwd: str,
        sys_path: list[str],
        *,
        adopt: RunView | None = None,
        keep_runs: int = 0,
        cluster: Mapping[str, Any] | None = None,
    ) -> RunView:
        """Let our engine drive a run; with `adopt`, the view of its log so far, one that its own engine left open.

        `keep_runs`: so many runs of the flow are kept when it has ended, 0: all. `cluster`: of this run, where it differs from the settings.
        """
        key = (spec.flow, spec.run)
        view = adopt or RunView(spec)
        link = self._connect()
        message: dict[str, Any] = {"do": "run", "flow": spec.flow, "run": spec.run, "env": environ, "cwd": cwd, "sys_path": sys_path}
        message["keep_runs"] = keep_runs
        if told := cluster or self.cluster:
            message["cluster"] = dict(told)
        self._say(link, message | {"adopt": True} if adopt is not None else message)
        self._follow(link, key, view)
        return view

    def follow(self, view: RunView, path: str) -> None:
        """Follow a run that the engine at this socket drives. Raises EngineError if it answers no more."""
        self.check_process()
        with self._lock:
            try:
                link = self._links.get(path) or self._open(path)
            except OSError as error:
                raise EngineError(f"the engine of run {view.spec.run} does not answer ({error})") from error
        self._follow(link, (view.spec.flow, view.spec.run), view)

    def poke(self, flow: str, run: str) -> None:
        """Tell the engine of a run that a request object was written."""
        with self._lock:
            link = self._links.get(self._followed.get((flow, run), ""))
        self._say(link or self._connect(), {"do": "poke", "flow": flow, "run": run})

    def driven(self, timeout_s: float = PING_TIMEOUT_S) -> dict[RunKey, str]:
        """The open runs of all living engines of this machine and store, each with its engine's socket."""
        found: dict[RunKey, str] = {}
        for path, runs in self._answers(timeout_s):
            found |= dict.fromkeys(runs, path)
        return found

    def _answers(self, timeout_s: float) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        with contextlib.suppress(OSError, StoreError):
            for _, entry in registry.entries(self._store):
                answer = ping(entry.socket, timeout_s)
                yield entry.socket, [(str(flow), str(run)) for flow, run in (answer or {}).get("runs", ())]

    def close(self) -> None:
        """Leave all engines: each ends by itself once its runs have ended."""
        with self._lock:
            for link in self._links.values():
                link.close()
            self._links, self._own = {}, None

    # ---- connections ------------------------------------------------------------------------------------------------

    def check_process(self) -> None:
        """Raises EngineError in a process that was forked from the kernel: the connections are the kernel's own."""
        if self._forked:
            raise EngineError("this process was forked from the notebook's kernel: only the kernel itself can start and follow runs")

    def _leave_to_parent(self) -> None:
        """In a forked child: the parent's connections and threads are not ours, and a lock may be held by one that is not here."""
        self._forked = True
        self._lock, self.changed = threading.RLock(), threading.Condition()
        for link in self._links.values():
            with contextlib.suppress(OSError):
                os.close(link.socket.detach())  # the parent's stays open
        self._links, self._own = {}, None

    def _open(self, path: str) -> Link:
        link = self._links[path] = Link(path, self._heard, self._broke)
        return link

    def _say(self, link: Link, message: dict[str, Any]) -> None:
        try:
            link.send(message)
        except OSError as error:
            raise EngineError(f"the engine process does not answer ({error}); {self._last_words()}") from error

    def _follow(self, link: Link, key: RunKey, view: RunView) -> None:
        with self.changed:
            view.again()
            self.views[key] = view
        with self._lock:
            self._followed[key] = link.path
        self._say(link, {"do": "follow", "flow": key[0], "run": key[1]})

    def _heard(self, message: dict[str, Any]) -> None:
        with self.changed:
            view = self.views.get((message.get("flow", ""), message.get("run", "")))
            if view is None:
                return
            if message["say"] == "events":
                try:
                    for event in message["events"]:
                        view.apply(event)
                except EngineError as error:  # an engine of another version, or a bug: nobody may wait for ever
                    view.ended, view.trouble = "lost", f"run {view.spec.run} cannot be followed: {error}"
            elif message["say"] == "trouble":
                view.trouble = message["message"]
            else:
                view.hint(message)
            view.version += 1
            self.changed.notify_all()
        for listener in list(self.listeners):
            listener(view)

    def _broke(self, link: Link) -> None:
        """A connection ended unasked. If its engine lives it is made anew, and its runs followed again; else they are lost."""
        with self._lock:
            if self._links.get(link.path) is not link:
                return
            del self._links[link.path]
            try:
                fresh = self._open(link.path)
            except OSError:
                fresh = None
            if self._own is link:
                self._own = fresh
            keys = [key for key, path in self._followed.items() if path == link.path]
        for key in keys:
            view = self.views[key]
            if view.ended is not None:
                continue
            try:
                if fresh is None:
                    raise EngineError("the engine process ended")
                self._follow(fresh, key, view)
            except EngineError:
                self._lost(view)

    def _lost(self, view: RunView) -> None:
        with self.changed:
            view.ended = "lost"
            view.trouble = gone(view.spec.run, self.option(view.spec.flow))
            view.version += 1
            self.changed.notify_all()
        for listener in list(self.listeners):
            listener(view)


def gone(run: str, option: str = "") -> str:
    """What is said of an open run without an engine. `option`: what tells its flow to a command, see Session.option."""
    return f"the engine process of run {run} is gone; what was committed is kept: `%flow attach {run}{option}` goes on with it"


def environment() -> dict[str, str]:
    """The notebook's environment as it is now; sent over the socket, never stored."""
    return dict(os.environ)
