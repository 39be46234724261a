"""Fork servers seen from the engine: one for each environment that workers run in, started when it is first asked for.

A server that dies takes its attempts with it; they are told as lost, so that they are launched again. Where forking is unsafe
(another system than Linux, threads after the imports), `find` gives None and the launcher spawns.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Json = Any

COMMAND = (sys.executable, "-P", "-m", "flowbook.worker", "--fork-server")
MESSAGE_BYTES = 100_000  # a larger order goes as a file
MOST_SERVERS = 3  # one that has nothing to do is closed for a new one
START_S = float(os.environ.get("FLOWBOOK_FORK_START_S", "60"))  # for a server's start, or for its imports before it forks
KILL_S = 10.0  # until a process that was killed must have been reported
OWN = ("CUDA_VISIBLE_DEVICES",)  # set for each attempt, after the fork


class Forked:
    """One attempt in a process that a server forked. Its process group is gone when `ended` returns."""

    def __init__(self, server: ForkServer, number: int) -> None:
        self._server, self._number = server, number
        self.pid: int | None = None
        self.code: int | None = None
        self.cpu_s: float | None = None
        self.refused: str | None = None
        self.lost = False
        self._started, self._ended = asyncio.Event(), asyncio.Event()

    async def started(self) -> bool:
        """Whether the process was forked; False if the server refused, died first, or hangs, in an import for instance."""
        try:
            await asyncio.wait_for(self._started.wait(), START_S)
        except TimeoutError:
            self._server.kill()
        return self.pid is not None

    async def ended(self) -> None:
        await self._ended.wait()

    async def terminate(self, grace_s: float) -> None:
        for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process would not hear the first
            self._server.signal(self._number, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended(), grace_s)

    def kill(self) -> None:
        if self._ended.is_set():
            return
        self._server.signal(self._number, signal.SIGKILL)
        asyncio.get_running_loop().call_later(KILL_S, self._give_up)

    def _give_up(self) -> None:
        """A server that does not even end what it was told to kill hangs, in an import for instance."""
        if not self._ended.is_set():
            self._server.kill()

    def reap(self) -> int | None:
        """The exit code; below 0 the signal; None if the server died and nobody can tell."""
        return self.code

    def hear(self, message: Mapping[str, Json]) -> None:
        say = message["say"]
        if say == "started":
            self.pid = message["pid"]
        elif say == "refused":
            self.refused = message["why"]
        elif say == "ended":
            self.code, self.cpu_s = message["code"], message["cpu_s"]
        self._started.set()
        if say != "started":
            self._ended.set()

    def lose(self) -> None:
        """The server died. Its attempts die with it; what they started is ended here."""
        if self._ended.is_set():
            return
        self.lost = True
        if self.pid is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        self._started.set()
        self._ended.set()


class Process(Protocol):
    """The process of a server: started (Popen), or forked from this one (cli/nearby.py)."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


Begun = tuple[Process, socket.socket]  # a server, and our end of its connection


def connection() -> tuple[socket.socket, socket.socket]:
    """Our end and that of a server."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return ends


def start(command: Sequence[str], env: Mapping[str, str], cwd: str | None, log: Path | None) -> Begun:
    """A server as a new Python."""
    ours, theirs = connection()
    with theirs, open(log or os.devnull, "ab") as out:  # noqa: PTH123
        process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            cwd=cwd,
            env=dict(env),
        )
    return process, ours


class ForkServer:
    """One server process. All its methods belong to the thread of the event loop."""

    def __init__(self, begun: Begun) -> None:
        self._loop = asyncio.get_running_loop()
        self._process, ours = begun
        self._socket = ours
        ours.setblocking(False)
        self.attempts: dict[int, Forked] = {}
        self.unsafe: str | None = None
        self.dead = False
        self.bare = False  # forks without importing anything beforehand
        self.fell = False  # died while it was to start an attempt, most likely by an import
        self._answered = asyncio.Event()
        self._number = 0
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._loop.add_reader(ours.fileno(), self._receive)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> bool:
        """Whether it may fork, once it has said so."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), START_S)
        return self._answered.is_set() and not self.dead and self.unsafe is None

    def run(self, order: Mapping[str, Json], output_fd: int, frames_fd: int, devices: str | None) -> Forked:
        """Start an attempt; the descriptors are the caller's and may be closed after this."""
        self._number += 1
        forked = self.attempts[self._number] = Forked(self, self._number)
        message: dict[str, Json] = {"do": "run", "id": self._number}
        if devices:
            message["devices"] = devices
        if self.bare:
            message["bare"] = True
        fds = [os.dup(output_fd), os.dup(frames_fd)]
        data = json.dumps({**message, "order": order}).encode()
        if len(data) > MESSAGE_BYTES:
            fds.append(os.memfd_create("flowbook-order"))
            with os.fdopen(os.dup(fds[2]), "wb") as file:
                file.write(json.dumps(order).encode())
            data = json.dumps(message).encode()
        self._send(data, fds)
        return forked

    def prepare(self, modules: Sequence[str]) -> None:
        if self.bare:
            return
        self._send(json.dumps({"do": "import", "modules": list(modules)}).encode(), [])

    def signal(self, number: int, sign: int) -> None:
        self._send(json.dumps({"do": "signal", "id": number, "number": int(sign)}).encode(), [])

    def kill(self) -> None:
        """End a server that does not answer. Its attempts are lost."""
        self._process.kill()
        self._lose()

    def close(self) -> None:
        """End the server and whatever it runs."""
        self._lose()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
            return
        self._process.kill()
        self._process.wait()

    def _send(self, data: bytes, fds: list[int]) -> None:
        if self.dead:
            for fd in fds:
                os.close(fd)
            return
        self._unsent.append((data, fds))
        self._flush()

    def _flush(self) -> None:
        while self._unsent and not self.dead:
            data, fds = self._unsent[0]
            try:
                socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError:
                self._lose()
                return
            self._unsent.popleft()
            for fd in fds:
                os.close(fd)
        if not self.dead:
            self._loop.remove_writer(self._socket.fileno())

    def _receive(self) -> None:
        for _ in range(64):  # then others have their turn
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            message = json.loads(data)
            if message["say"] == "ready":
                self.unsafe = message["unsafe"]
                self._answered.set()
                continue
            if message["say"] == "refused":
                self.unsafe = message["why"]
            forked = self.attempts.get(message["id"])
            if forked is not None:
                forked.hear(message)
                if message["say"] != "started":
                    del self.attempts[message["id"]]

    def _lose(self) -> None:
        if self.dead:
            return
        self.dead = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()
        self._answered.set()
        self.fell = any(forked.pid is None for forked in self.attempts.values())
        for forked in list(self.attempts.values()):
            forked.lose()
        self.attempts.clear()
        self._process.poll()


class ForkServers:
    """The servers of one engine by what they are for: environment, folder, import path, installed packages."""

    def __init__(self, command: Sequence[str] = COMMAND, log: Path | None = None) -> None:
        self._command, self._log = tuple(command), log
        self._servers: dict[str, ForkServer] = {}

    @property
    def unsafe(self) -> str | None:
        """Why attempts are spawned rather than forked; None where they are not."""
        if sys.platform != "linux":
            return f"forking is not safe on {sys.platform}"
        return next((server.unsafe for server in self._servers.values() if server.unsafe is not None), None)

    def find(self, env: Mapping[str, str], cwd: str | None, sys_path: Sequence[str]) -> ForkServer | None:
        """The server for this, started if need be; None where attempts must be spawned."""
        if sys.platform != "linux":
            return None
        key = _key(env, cwd, sys_path)
        server = self._servers.pop(key, None)
        if server is None or server.dead:
            self._make_room()
            bare = server is not None and (server.bare or server.fell)
            own = {name: value for name, value in env.items() if name not in OWN}
            server = ForkServer(start(self._command, own, cwd, self._log))
            server.bare = bare
        self._servers[key] = server  # the last used is the last
        return server if server.unsafe is None else None

    def take(self, begun: Begun, env: Mapping[str, str], cwd: str | None, sys_path: Sequence[str]) -> None:
        """From now on `find` gives this server, which is there already, for these."""
        self._servers[_key(env, cwd, sys_path)] = ForkServer(begun)

    def __len__(self) -> int:
        return sum(not server.dead for server in self._servers.values())

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self._servers.values() if not server.dead]

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _make_room(self) -> None:
        for key, server in list(self._servers.items()):
            if len(self._servers) < MOST_SERVERS:
                return
            if server.dead or not server.attempts:
                server.close()
                del self._servers[key]


def _key(env: Mapping[str, str], cwd: str | None, sys_path: Sequence[str]) -> str:
    """Changes with all that a process takes in at its start; also when packages are installed or removed."""
    own = {name: value for name, value in env.items() if name not in OWN}
    packages = [(path, _changed_at(path)) for path in sys_path if path.endswith(("site-packages", "dist-packages"))]
    return hashlib.sha256(json.dumps([sorted(own.items()), cwd, list(sys_path), packages]).encode()).hexdigest()


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0
