"""The engine process seen from the kernel: start it, ask it, follow its runs.

A plain thread reads the socket and folds events into RunViews; the kernel's main thread waits on one condition variable.
The engine has its own session, so an interrupt of the kernel never reaches it, and it outlives the kernel while runs are open.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowbook.engine.state import RunState
from flowbook.errors import EngineError
from flowbook.spec.flow import Spec

START_TIMEOUT_S = 30.0
Key = tuple[str, tuple[int, ...], str]  # step, index, part


class RunView:
    """What this kernel knows of one run: the folded log, and hints that came on the way."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.state = RunState(spec)
        self.version = 0  # grows with every change, so that painters know when to paint
        self.output: dict[Key, tuple[str, int]] = {}  # last text printed, and how many bytes there are in all
        self.displays: dict[Key, list[dict[str, Any]]] = {}
        self.phase: dict[Key, str] = {}
        self.attempt: dict[Key, int] = {}
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.trouble: str | None = None
        self.ended: str | None = None  # succeeded, failed, stopped; "lost" when the engine ended under it

    def apply(self, event: dict[str, Any]) -> None:
        self.state.apply(event)
        if event["e"] == "run_started":
            self.started_at = event["at"]
        elif event["e"] == "run_ended":
            self.ended, self.ended_at = event["state"], event["at"]
        elif event["e"] == "launched":
            key = _key(event)
            self.attempt[key] = event.get("attempt", 0)
            if event.get("attempt", 0):  # a new attempt's output takes the place of the last one's
                self.output.pop(key, None)
                self.displays.pop(key, None)

    def hint(self, message: dict[str, Any]) -> None:
        key = _key(message)
        if message["say"] == "output":
            self.output[key] = (message.get("text", ""), message.get("size", 0))
        elif message.get("f") == "phase":
            self.phase[key] = message["phase"]
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


class Engine:
    """The one engine of this kernel. Every method may be called from any thread."""

    def __init__(self, store: dict[str, Any], environ: dict[str, str] | None = None) -> None:
        self._store = store
        self._environ = environ
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self.changed = threading.Condition()
        self.views: dict[tuple[str, str], RunView] = {}
        self.listeners: list[Callable[[RunView], None]] = []

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, not waiting for it; nothing happens if it runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._socket = None
            if self._folder is None:
                # A socket's path may have 107 bytes, which a user's data folder can exceed; hence the temp folder.
                self._folder = Path(tempfile.mkdtemp(prefix="flowbook-"))
            path = self._folder / "engine.sock"
            path.unlink(missing_ok=True)
            with (self._folder / "engine.log").open("ab") as log:
                try:
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "flowbook.engine", "--socket", str(path), "--store", json.dumps(self._store)],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        env=self._environ,
                    )
                except OSError as error:
                    raise EngineError(f"the engine process cannot be started: {error}. Is {sys.executable} still there?") from error

    def send(self, message: dict[str, Any]) -> None:
        self._connect()
        assert self._socket is not None
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise EngineError(f"the engine process does not answer ({error}); {self._last_words()}") from error

    def run(self, spec: Spec, environ: dict[str, str], cwd: str, sys_path: list[str]) -> RunView:
        view = RunView(spec)
        with self.changed:
            self.views[spec.flow, spec.run] = view
        self.send({"do": "run", "flow": spec.flow, "run": spec.run, "env": environ, "cwd": cwd, "sys_path": sys_path})
        self.send({"do": "follow", "flow": spec.flow, "run": spec.run})
        return view

    def poke(self, flow: str, run: str) -> None:
        self.send({"do": "poke", "flow": flow, "run": run})

    def close(self) -> None:
        """Leave the engine: it ends by itself once its runs have ended."""
        with self._lock:
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                self._socket.close()
                self._socket = None

    def _connect(self) -> None:
        self.start()
        with self._lock:
            if self._socket is not None:
                return
            assert self._folder is not None and self._process is not None
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    connection.connect(str(self._folder / "engine.sock"))
                    break
                except OSError:
                    connection.close()
                    if self._process.poll() is not None:
                        raise EngineError(f"the engine process ended at its start; {self._last_words()}") from None
                    if time.monotonic() > deadline:
                        raise EngineError(f"the engine process did not answer in {START_TIMEOUT_S:.0f} s; {self._last_words()}") from None
                    time.sleep(0.005)
            self._socket = connection
            threading.Thread(target=self._read, args=(connection,), name="flowbook-engine", daemon=True).start()

    def _last_words(self) -> str:
        assert self._folder is not None
        log = self._folder / "engine.log"
        tail = log.read_text("utf-8", "replace").strip().splitlines()[-3:] if log.exists() else []
        return "it said: " + " | ".join(tail) if tail else f"its log {log} is empty"

    def _read(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            try:
                for line in lines:
                    self._heard(json.loads(line))
            except (OSError, ValueError):
                pass
        with self._lock:
            lost = self._socket is connection
            if lost:
                self._socket = None
        if lost:
            self._engine_lost()

    def _heard(self, message: dict[str, Any]) -> None:
        with self.changed:
            view = self.views.get((message.get("flow", ""), message.get("run", "")))
            if view is None:
                return
            if message["say"] == "events":
                for event in message["events"]:
                    view.apply(event)
            elif message["say"] == "trouble":
                view.trouble = message["message"]
            else:
                view.hint(message)
            view.version += 1
            self.changed.notify_all()
        for listener in list(self.listeners):
            listener(view)

    def _engine_lost(self) -> None:
        with self.changed:
            lost = [view for view in self.views.values() if view.ended is None]
            for view in lost:
                view.ended = "lost"
                view.trouble = "the engine process ended; what was committed is kept: `%flow resume` runs what is missing"
                view.version += 1
            self.changed.notify_all()
        for view in lost:
            for listener in list(self.listeners):
                listener(view)


def environment() -> dict[str, str]:
    """The notebook's environment as it is now; sent over the socket, never stored."""
    return dict(os.environ)
