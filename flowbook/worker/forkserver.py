"""A process that has imported what tasks need, and forks a fresh one for each attempt. Linux only.

It talks with the engine over one SEQPACKET socket, a JSON object a message:

    → {"do": "run", "id", "order"?, "devices"?, "bare"?}     with the descriptors of the output file and the frames, and of the order if that is large
    → {"do": "import", "modules": ["pandas"]}       get ready
    → {"do": "signal", "id", "number"}              to the attempt's whole process group
    ← {"say": "ready", "unsafe": null | why}        after the start and after each import: whether it may fork
    ← {"say": "started", "id", "pid"}
    ← {"say": "ended", "id", "code", "cpu_s"}       its group is gone; code below 0: the signal
    ← {"say": "refused", "id", "why"}               not started, because forking is unsafe now

Nothing of a user runs here but imports. An attempt leads a session of its own and dies with this process, as this process ends
with the engine. What attempts leave behind by daemons of their own is adopted here and ends at the latest when this process does.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

Json = Any
Order = dict[str, Json]

MESSAGE_BYTES = 1 << 20
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def serve(fd: int, run: Callable[[Order], Json], prepare: Callable[[Order], Iterable[str]] = lambda order: ()) -> NoReturn:
    """Serve until the engine closes its end of the socket. `run` carries out an order in its own process and ends that.

    `prepare` is called here before the fork and gives the modules to import; what it keeps in memory, attempts find there.
    """
    server = _Server(socket.socket(fileno=fd), prepare)
    order = server.until_forked()  # returns only in a forked process, so that nothing of this loop is below the body
    run(order)
    os._exit(0)


def die_with_parent() -> None:
    """Let this process be killed when the one that started it ends, in whatever way. Linux only; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _forget_exits() -> None:
    """What imported modules want to do at the end of the process that imported them is not for each attempt to do."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]
    if "logging" in sys.modules:
        atexit.register(sys.modules["logging"].shutdown)
    if "multiprocessing.util" in sys.modules:
        atexit.register(sys.modules["multiprocessing.util"]._exit_function)


class _Server:
    def __init__(self, connection: socket.socket, prepare: Callable[[Order], Iterable[str]]) -> None:
        self._socket, self._prepare = connection, prepare
        self._attempts: dict[int, int] = {}  # pid → id
        self._imported: set[str] = set()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._unsafe: str | None = None

    def until_forked(self) -> Order:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        wake_read, self._wake = os.pipe()
        for end in (wake_read, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake)
        self._freeze()
        self._say({"say": "ready", "unsafe": self._why_unsafe()})
        while True:
            ready = select.select([self._socket.fileno(), wake_read], [], [])[0]
            if wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                self._reap()
            if self._socket.fileno() in ready and (order := self._hear()) is not None:
                os.close(wake_read)
                return order

    # ---- messages ----

    def _hear(self) -> Order | None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 3)
        except OSError:
            data, fds = b"", []
        if not data:
            self._end()
        message = json.loads(data)
        do = message["do"]
        if do == "import":
            self._import(message["modules"])
            self._say({"say": "ready", "unsafe": self._why_unsafe()})
        elif do == "signal":
            self._signal(message["id"], message["number"])
        elif do == "run":
            return self._run(message, fds)
        return None

    def _say(self, message: Json) -> None:
        with contextlib.suppress(OSError):  # the engine is gone; the next receive tells
            self._socket.send(json.dumps(message).encode())

    # ---- attempts ----

    def _run(self, message: Json, fds: list[int]) -> Order | None:
        order: Order = message["order"] if "order" in message else _read_order(fds[2])
        modules = self._prepare(order)
        self._import(() if message.get("bare") else modules)
        if (why := self._why_unsafe()) is not None:
            self._say({"say": "refused", "id": message["id"], "why": why})
        else:
            parent = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:
                pid = -1
                self._say({"say": "refused", "id": message["id"], "why": f"no process could be forked: {error}"})
            if pid == 0:
                self._become_attempt(parent, fds, message)
                return {**order, "frames_fd": fds[1]}
            if pid > 0:
                self._attempts[pid] = message["id"]
                self._say({"say": "started", "id": message["id"], "pid": pid})
        for fd in fds:
            os.close(fd)
        return None

    def _become_attempt(self, parent: int, fds: list[int], message: Json) -> None:
        """In the forked process: what a program started anew would have."""
        os.setsid()
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it has died meanwhile
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(self._wake)
        self._socket.close()
        for stream in (1, 2):
            os.dup2(fds[0], stream)
        for fd in (fds[0], *fds[2:]):
            os.close(fd)
        _forget_exits()
        if message.get("devices"):
            os.environ["CUDA_VISIBLE_DEVICES"] = message["devices"]
        gc.enable()

    def _reap(self) -> None:
        """Attempts that ended, and adopted orphans. What is left of an attempt's group goes before its number is given free."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            task = self._attempts.pop(pid, None)
            if task is not None:
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            if task is not None:
                code = os.waitstatus_to_exitcode(status)
                self._say({"say": "ended", "id": task, "code": code, "cpu_s": round(used.ru_utime + used.ru_stime, 3)})

    def _signal(self, task: int, number: int) -> None:
        for pid, known in self._attempts.items():
            if known == task:
                with contextlib.suppress(OSError):
                    os.killpg(pid, number)

    def _end(self) -> NoReturn:
        """The engine has closed the socket or is dead: nothing of it may go on, adopted orphans neither."""
        for pid in self._attempts:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)

    # ---- imports ----

    def _import(self, modules: Iterable[str]) -> None:
        new = [name for name in modules if name not in self._imported]
        if not new:
            return
        self._imported.update(new)
        gc.enable()
        for name in new:
            try:
                importlib.import_module(name)
            except BaseException as error:  # the body that needs it will say so, in its own words
                print(f"not imported beforehand: {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        self._freeze()

    def _freeze(self) -> None:
        """Keep the collector from touching what all attempts share: a touched page is a copied page."""
        gc.collect()
        gc.disable()
        gc.freeze()
        sys.stdout.flush()
        sys.stderr.flush()
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
        imported = ", ".join(sorted(self._imported)) or "flowbook itself"
        self._unsafe = None if threads == 1 else f"{threads - 1} threads run after the import of {imported}"

    def _why_unsafe(self) -> str | None:
        return self._unsafe


def _read_order(fd: int) -> Order:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return json.load(file)  # type: ignore[no-any-return]


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []
