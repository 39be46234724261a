"""The engine's socket: clients ask for runs and follow them (docs/internals.md, "Socket").

A client that is slow delays nobody. Events are not queued for it: each follower has a place in the run's list of batches and is
sent what comes after it as fast as it reads. Hints are queued up to a limit and then dropped, of printed output only the latest
state is kept. Junk is ignored. A lost client never ends a run; the process ends when there is neither a run nor a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowbook._version import __version__
from flowbook.engine import events, registry
from flowbook.engine.scheduler import Machine, Place, Run
from flowbook.errors import StoreError
from flowbook.store import journal, layout
from flowbook.store.base import Store

Json = Any
Key = tuple[str, str]  # flow, run

LINE_LIMIT = 64_000_000  # bytes of one message; an environment is far smaller
HINT_BYTES = 4_000_000  # hints that wait for one client
LATEST = 5_000  # latest states that wait for one client
OUTPUT_S = 0.2  # between two looks at what running attempts printed
ALONE_S = 2.0  # without run and client before the process ends
FIRST_CLIENT_S = 30.0  # the same, before the first client came
FLUSH_S = 1.0  # for the last messages
WRITE_BUFFER = 1 << 20


@dataclass(eq=False)
class Followed:
    """A client's place in the batches of a run."""

    key: Key
    batches: list[bytes]
    sent: int = 0
    complete: bool = False  # no batch will come after those


@dataclass(frozen=True)
class Hint:
    """A message that waits for a client. It is sent after the batches that were there before it, and before later ones."""

    key: Key
    after: int  # batches of its run that come before it
    line: bytes | None  # None: the latest output of `attempt`
    attempt: tuple[Any, ...] = ()


@dataclass(eq=False)
class Client:
    """One connection and what waits to be sent over it."""

    writer: asyncio.StreamWriter
    followed: dict[Key, Followed] = field(default_factory=dict)
    hints: deque[Hint] = field(default_factory=deque)
    outputs: dict[tuple[Any, ...], bytes] = field(default_factory=dict)  # what attempts printed, and cards: only the latest state is sent
    hint_bytes: int = 0
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    def hint(self, key: Key, message: Mapping[str, Json]) -> None:
        after = len(self.followed[key].batches) if key in self.followed else 0
        line = json.dumps(message).encode() + b"\n"
        card = str(message.get("id")) if message.get("f") == "card" else None
        if message["say"] == "output" or card is not None:
            attempt = (key, message["step"], tuple(message["index"]), message["part"], message["attempt"], card)
            if attempt not in self.outputs:
                if card is not None and len(self.outputs) >= LATEST:
                    return  # a worker that makes up ids without end
                self.hints.append(Hint(key, after, None, attempt))
            self.outputs[attempt] = line
        elif message["say"] == "trouble" or self.hint_bytes + len(line) <= HINT_BYTES:
            self.hint_bytes += len(line)
            self.hints.append(Hint(key, after, line))
        self.awake.set()

    def tell(self, message: Mapping[str, Json]) -> None:
        """What belongs to no run."""
        line = json.dumps(message).encode() + b"\n"
        self.hint_bytes += len(line)
        self.hints.append(Hint(("", ""), 0, line))
        self.awake.set()

    async def write(self) -> None:
        """Send what there is, for ever; no more is taken than the client reads."""
        try:
            while True:
                self.awake.clear()
                while (line := self._next()) is not None:
                    self.writer.write(line)
                    await self.writer.drain()
                await self.awake.wait()
        except OSError:
            pass  # the client is gone; whoever reads from it sees that too

    def _next(self) -> bytes | None:
        if self.hints:
            hint = self.hints[0]
            followed = self.followed.get(hint.key)
            if followed is not None and followed.sent < hint.after:
                return self._next_batch(followed)
            self.hints.popleft()
            if hint.line is None:
                return self.outputs.pop(hint.attempt)
            self.hint_bytes -= len(hint.line)
            return hint.line
        for followed in list(self.followed.values()):
            if followed.sent < len(followed.batches):
                return self._next_batch(followed)
            if followed.complete:
                del self.followed[followed.key]
        return None

    def _next_batch(self, followed: Followed) -> bytes:
        packed = followed.batches[followed.sent]
        followed.sent += 1
        head = json.dumps({"say": "events", "flow": followed.key[0], "run": followed.key[1]}).encode()
        return head[:-1] + b', "events": ' + packed + b"}\n"

    @property
    def waits(self) -> bool:
        return bool(self.hints) or any(followed.sent < len(followed.batches) for followed in self.followed.values())


class Server:
    """All runs and clients of one engine process."""

    def __init__(self, store: Store, machine: Machine) -> None:
        self.store, self.machine = store, machine
        self.runs: dict[Key, Run] = {}
        self.clients: set[Client] = set()
        self._driven: set[asyncio.Task[None]] = set()
        self._had_client = False
        self._stopping = False
        self._busy = asyncio.Event()  # something came or went

    async def serve(self, path: Path) -> None:
        """Listen at `path` until nobody needs the engine any more."""
        server = await self._listen(path)
        showing = asyncio.create_task(self._show_output())
        try:
            await self._until_alone()
            await self._flush()
        finally:
            showing.cancel()
            server.close()
            path.unlink(missing_ok=True)
            self.machine.close()

    @contextlib.asynccontextmanager
    async def hosting(self, path: Path, key: Key, run: Run) -> AsyncIterator[None]:
        """Listen at `path` and be found while this process itself drives `run`, whose hints go to `tell` and whose changes to `wake`.

        So a notebook can follow and stop a run of the command line, and does not take it for one whose engine is gone.
        """
        self.runs[key] = run
        server = await self._listen(path)
        own = registry.Entry(os.getpid(), str(path), str(path.parent), __version__, sys.executable, started_at=time.time())
        entered = None
        with contextlib.suppress(OSError, StoreError):  # a store that cannot be written says so by itself
            entered = registry.enter(self.store, own)
        try:
            yield
        finally:
            self._let_go(key)
            await self._flush()
            if entered is not None:
                entered.unlink(missing_ok=True)
            server.close()
            path.unlink(missing_ok=True)

    def tell(self, key: Key, hint: Mapping[str, Json]) -> None:
        self._say(key, hint)

    def wake(self, key: Key) -> None:
        self._wake_followers(key)

    def stop(self) -> None:
        """Stop all runs tidily: workers are ended, the logs say stopped; runs with pods in a cluster are left open. Then the process ends."""
        self._stopping = True
        for run in self.runs.values():
            if not run.leave():
                run.stop()
        self._busy.set()

    async def _listen(self, path: Path) -> asyncio.AbstractServer:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = os.umask(0o177)  # the socket is the user's own from its first moment
        try:
            return await asyncio.start_unix_server(self._serve_client, path, limit=LINE_LIMIT)
        finally:
            os.umask(before)

    async def _until_alone(self) -> None:
        while True:
            self._busy.clear()
            if self.runs or (self.clients and not self._stopping):
                await self._busy.wait()
                continue
            if self._stopping:
                return
            try:
                await asyncio.wait_for(self._busy.wait(), ALONE_S if self._had_client else FIRST_CLIENT_S)
            except TimeoutError:
                return

    async def _flush(self) -> None:
        """Clients that are still there are told how their runs ended, if they read it soon."""
        deadline = asyncio.get_running_loop().time() + FLUSH_S
        while any(client.waits for client in self.clients) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    # ---- clients ----------------------------------------------------------------------------------------------------------

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(writer)
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.clients.add(client)
        self._had_client = True
        self._busy.set()
        writing = asyncio.create_task(client.write())
        try:
            while line := await _read_line(reader):
                await self._hear(client, line)
        except OSError:
            pass  # the client is gone
        finally:
            writing.cancel()
            self.clients.discard(client)
            self._busy.set()
            writer.close()

    async def _hear(self, client: Client, line: bytes) -> None:
        try:
            message = json.loads(line)
            do = message["do"]
            if do in ("ping", "warm"):
                client.tell(self._pong()) if do == "ping" else self._warm(message)
                return
            key = (message["flow"], message["run"])
            if not all(isinstance(part, str) and layout.FLOW_NAME.match(part) for part in key):
                return
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # junk
        if do == "run":
            self._run(key, message)
        elif do == "follow":
            await self._follow(client, key)
        elif do == "poke" and key in self.runs:
            self.runs[key].poke()

    def _pong(self) -> dict[str, Json]:
        forks = self.machine.local.forks if self.machine.local is not None else None
        fork = {"servers": len(forks), "pids": forks.pids, "unsafe": forks.unsafe} if forks is not None else None
        return {"say": "pong", "pid": os.getpid(), "version": __version__, "runs": [list(key) for key in self.runs], "fork": fork}

    def _warm(self, message: Mapping[str, Json]) -> None:
        place, modules = _place(message), message.get("imports") or ()
        if self.machine.local is not None and not self._stopping:
            names = [name for name in modules if isinstance(name, str)]
            self.machine.local.warm(place.env, place.cwd, place.sys_path, names)

    def _run(self, key: Key, message: Mapping[str, Json]) -> None:
        if key in self.runs or self._stopping:
            return
        place = _place(message)
        run = self.runs[key] = Run(
            self.store,
            *key,
            self.machine,
            place,
            say=lambda hint: self._say(key, hint),
            changed=lambda: self._wake_followers(key),
            adopt=bool(message.get("adopt")),
        )
        for client in self.clients:
            if key in client.followed:
                self._attach(client, key, run)
        keep_runs = message.get("keep_runs")
        driven = asyncio.create_task(self._drive(key, run, keep_runs if type(keep_runs) is int and keep_runs > 0 else 0))
        self._driven.add(driven)
        driven.add_done_callback(self._driven.discard)

    async def _drive(self, key: Key, run: Run, keep_runs: int) -> None:
        try:
            await run.drive()
        except Exception:  # one run never ends another
            traceback.print_exc(file=sys.stderr)
        finally:
            self._let_go(key)
            self._busy.set()
        if keep_runs and not any(flow == key[0] for flow, _ in self.runs):
            await asyncio.to_thread(self._retire, key[0], keep_runs)

    def _let_go(self, key: Key) -> None:
        """The run has ended: nothing more will come of it."""
        del self.runs[key]
        for client in self.clients:
            if key in client.followed:
                client.followed[key].complete = True
                client.awake.set()

    def _retire(self, flow: str, keep_runs: int) -> None:
        """Remove runs that are no longer kept, once enough of them have gathered."""
        from flowbook.store import garbage

        try:
            if garbage.retention_due(self.store, flow, keep_runs):
                garbage.collect(self.store, keep_runs, flow=flow, thorough=False)
        except StoreError as error:
            print(f"old runs of {flow} were not removed: {error}", file=sys.stderr, flush=True)  # noqa: T201

    async def _follow(self, client: Client, key: Key) -> None:
        """From the first event on: of a run that is driven here from memory, of any other from the store.

        A run that is in neither may be asked for in a moment, by another client: who follows it is then told of it.
        """
        if key not in self.runs:
            try:
                batches, ended = await asyncio.to_thread(_read_log, self.store, key)
            except StoreError as error:
                client.hint(key, _trouble(key, str(error)))
                return
            if key not in self.runs:
                client.followed[key] = Followed(key, batches, complete=bool(batches))
                if batches and not ended:
                    client.hint(key, _trouble(key, f"run {key[1]} is not driven by this engine"))
                client.awake.set()
                return
        self._attach(client, key, self.runs[key])

    def _attach(self, client: Client, key: Key, run: Run) -> None:
        client.followed[key] = Followed(key, run.packed)
        for message in run.until_now():
            client.hint(key, message)
        if run.last_trouble:
            client.hint(key, _trouble(key, run.last_trouble))
        client.awake.set()

    def _say(self, key: Key, hint: Mapping[str, Json]) -> None:
        for client in self.clients:
            if key in client.followed:
                client.hint(key, hint)

    def _wake_followers(self, key: Key) -> None:
        for client in self.clients:
            if key in client.followed:
                client.awake.set()

    async def _show_output(self) -> None:
        while True:
            await asyncio.sleep(OUTPUT_S)
            for key, run in self.runs.items():
                if any(key in client.followed for client in self.clients):
                    run.show_output()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """The next line, b"" at the end. A line longer than the limit is as good as the end: what follows it has no meaning."""
    try:
        return await reader.readline()
    except ValueError:
        return b""


def _place(message: Mapping[str, Json]) -> Place:
    """What a client says of its notebook; what it leaves out, or says in a wrong way, is the engine's own."""
    own = Place()
    env, cwd, sys_path, cluster = message.get("env"), message.get("cwd"), message.get("sys_path"), message.get("cluster")
    return Place(
        {str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else own.env,
        cwd if isinstance(cwd, str) else own.cwd,
        tuple(map(str, sys_path)) if isinstance(sys_path, list) and sys_path else own.sys_path,
        cluster if isinstance(cluster, dict) else None,
    )


def _trouble(key: Key, message: str) -> dict[str, Json]:
    return {"say": "trouble", "flow": key[0], "run": key[1], "message": message}


def _read_log(store: Store, key: Key) -> tuple[list[bytes], bool]:
    """The batches of a log in the store, and whether it holds the run's end."""
    batches, ended = [], False
    for _, found in journal.read(store, *key):
        ended = ended or any(event["e"] == "run_ended" for event in found)
        batches.append(events.pack(found))
    return batches, ended


def listen_to_signals(server: Server) -> None:
    """An interrupt of a terminal is meant for the notebook; SIGTERM ends the engine tidily."""
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, server.stop)
