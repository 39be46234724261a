"""Writing checkpoints beside the body: in a forked child, in a thread from a copy, or at once.

    fork    the child has the state as it was, without a copy; it pickles and writes. Only where this process has one thread, no GPU
            is open, and its memory may count twice. It pays as long as the body leaves most of the state alone meanwhile: what it
            writes to, the system copies page by page, which costs more than one copy of all. So that is watched.
    copy    the state is pickled here, its buffers are copied into memory that is kept for the next time; a thread writes.
    now     small states, and those for which there is no memory.

One save is written at a time. A newer one waits, and replaces one that waits already: the latest wins. `finish` ends only when
the newest is in the store. An error of a save that went on beside the body is raised by the next call.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from flowbook.errors import ArtifactError, FlowbookError, NotPicklable
from flowbook.store.base import Buffer, Store
from flowbook.store.chunks import Manifest, Shelf
from flowbook.store.codec import Encoded

Json = Any
REWRITTEN = 0.2  # from this share of the state on, pages that are copied one by one count
COPY_BYTES_S = 4e9  # bytes that are copied in a second, about
NOW_BYTES = 1 << 20  # so small a state is written at once: within milliseconds, and it survives whatever comes next
_GPU_MODULES = ("cupy", "jax", "tensorflow", "numba.cuda")
TEXT_LIMIT = 2_000  # characters of an error: all that is said must fit the pipe


@dataclass(frozen=True)
class Save:
    """One checkpoint to be written: `encode` pickles the values as they are when it is called, `manifest` says where their BODYs stand.

    `rng` and whatever else a fork would change must be in the values already.
    """

    encode: Callable[[], dict[str, Encoded]]  # part → its value
    manifest: Callable[[Mapping[str, Json]], dict[str, Json]]  # BODY of each part → MANIFEST


class SaveFailed(ArtifactError):
    """A checkpoint could not be written."""


class Writer:
    """The saves of one attempt. `limit_mb`: what the process may hold of memory, None: no limit. For one thread."""

    def __init__(self, store: Store, shelf: Shelf, attempt: int, limit_mb: float | None = None, mode: str | None = None) -> None:
        self._store, self._shelf, self._attempt, self._limit_mb, self._mode = store, shelf, attempt, limit_mb, mode
        self._size: int | None = None  # bytes of the last save
        self._encode_s = 0.0  # what pickling takes here
        self._watched: _Usage | None = None  # since the last fork
        self._copies_pay = False
        self._swept = False
        self._known: list[Manifest] | None = None  # that are kept, newest first; None after another process wrote
        self._running: _Child | None = None
        self._waiting: _Child | None = None
        self._thread: _Thread | None = None
        self.newest: Manifest | None = None

    # ---- saving ----

    def save(self, save: Save) -> None:
        """Write the state as it is now. Raises NotPicklable, StoreError; SaveFailed for an earlier one that failed beside the body."""
        self.look()
        self._weigh()
        large = self._size is not None and self._size > NOW_BYTES
        if large and self._how(self._size or 0) == "fork":
            self._fork(save)
            return
        started_s = time.perf_counter()
        encoded = save.encode()
        self._encode_s = time.perf_counter() - started_s
        self._size = _size_of(encoded)
        how = "now" if self._size <= NOW_BYTES else self._how(self._size)
        if how == "fork":
            self._fork(save)
        elif how == "copy":
            self._copy(save, encoded)
        else:
            self.settle()
            self.newest = self._write(save, encoded)

    def look(self) -> None:
        """Take in what became of saves beside the body."""
        if self._running is not None and self._running.ended():
            ended, self._running, self._waiting = self._running, self._waiting, None
            self._take(ended)
        if self._thread is not None:
            self._thread.raise_error()

    def settle(self) -> None:
        """Wait until nothing is being written. A save that waits is given up: a newer one takes its place."""
        if self._waiting is not None:
            self._waiting.give_up()
            self._waiting = None
        if self._running is not None:
            ended, self._running = self._running, None
            self._take(ended)
        if self._thread is not None:
            self._thread.give_up_waiting()
            self._thread.finish()

    def finish(self) -> None:
        """Wait until the newest save is in the store."""
        children, self._running, self._waiting = (self._running, self._waiting), None, None
        for child in children:
            if child is not None:
                self._take(child)
        if self._thread is not None:
            self._thread.finish()

    # ---- how ----

    def _how(self, size: int) -> str:
        if self._mode is not None:
            return self._mode
        room_mb = free_mb() if self._limit_mb is None else min(free_mb(), self._limit_mb - resident_mb())
        in_flight = 1 + (self._running is not None) + (self._waiting is not None)
        can_copy = 2.2 * size / 1e6 < room_mb
        if self._copies_pay and can_copy:
            return "copy"
        # The engine adds up what processes hold; what a child shares with this one counts for both.
        if why_not_fork(self._store) is None and (self._limit_mb is None or resident_mb() * in_flight < room_mb):
            return "fork"
        return "copy" if can_copy else "now"

    def _weigh(self) -> None:
        """Whether the pages that were copied since the last fork, because the body wrote to them, cost more than a copy of all."""
        if self._watched is None or self._size is None:
            return
        since, self._watched = _Usage.now().since(self._watched), None
        rewritten = since.faults * os.sysconf("SC_PAGE_SIZE") > REWRITTEN * self._size
        if rewritten and since.system_s > 1.5 * (self._encode_s + self._size / COPY_BYTES_S):
            self._copies_pay = True

    def _write(self, save: Save, encoded: Mapping[str, Encoded]) -> Manifest:
        return self._write_parts(save, {part: value.parts for part, value in encoded.items()}, _blobs_of(encoded))

    def _write_parts(self, save: Save, parts: Mapping[str, Sequence[Buffer]], blobs: list[str]) -> Manifest:
        bodies = {part: self._shelf.write_body(pieces, self._attempt) for part, pieces in parts.items()}
        return self.create(save.manifest(bodies) | ({"blobs": blobs} if blobs else {}))

    def create(self, fields: Mapping[str, Json]) -> Manifest:
        """Create the manifest of what is written, and retire older ones. Nothing else may be under way."""
        known = self._known
        made = self._shelf.create(fields, self._attempt, after=known[0]["number"] if known else None)
        if known and made["number"] != known[0]["number"] + 1:
            known = None  # another process of this task writes, too
        self._known = self._shelf.retire(sweep=None if self._swept else self._attempt, known=[made, *known] if known else None)
        self._swept = True
        return made

    # ---- in a thread ----

    def _copy(self, save: Save, encoded: dict[str, Encoded]) -> None:
        if self._thread is None:
            self._thread = _Thread()
        blobs = _blobs_of(encoded)

        def write(parts: Mapping[str, Sequence[Buffer]]) -> None:
            self.newest = self._write_parts(save, parts, blobs)

        self._thread.hand(encoded, write)

    # ---- in a child ----

    def _fork(self, save: Save) -> None:
        if self._waiting is not None:
            self._waiting.give_up()
            self._waiting = None
        before = self._running
        child = _Child.start(lambda: self._child(save, before))
        if self._running is None:
            self._running = child
        else:
            self._waiting = child
        self._swept, self._known = True, None
        self._watched = _Usage.now()

    def _child(self, save: Save, before: _Child | None) -> dict[str, Json]:
        """In the child: write, once the save before this one is done. Gives what is told to the parent."""
        if before is not None:
            before.wait_from_sibling()
        encoded = save.encode()
        made = self._write(save, encoded)
        return {"size": _size_of(encoded), "number": made["number"]}

    def _take(self, child: _Child) -> None:
        said = child.result()
        if "size" in said:
            self._size = said["size"]
            self.newest = {"number": said["number"]}
        elif "path" in said:
            raise NotPicklable(said["path"], said["cause"])
        else:
            raise SaveFailed(f"a checkpoint could not be written: {said['error']}. The one before it stands.")


def _size_of(encoded: Mapping[str, Encoded]) -> int:
    return sum(value.nbytes for value in encoded.values())


def _blobs_of(encoded: Mapping[str, Encoded]) -> list[str]:
    return sorted({blob for value in encoded.values() for blob in value.blobs})


# ---- a child -------------------------------------------------------------------------------------------------------------


@dataclass
class _Child:
    """A forked process that writes one save, and the pipe on which it says what came of it."""

    pid: int
    pipe: int
    _said: dict[str, Json] | None = None

    @classmethod
    def start(cls, work: Callable[[], dict[str, Json]]) -> _Child:
        from flowbook.worker import forkserver  # before the fork: the child imports nothing

        read, write = os.pipe()
        parent = os.getpid()
        # Signals go to the whole group of the attempt: the child must not be ended by what the parent waits for it about.
        ignored = (signal.SIGTERM, signal.SIGINT)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                _work_and_leave(work, write, parent, ignored, forkserver.die_with_parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write)
        return cls(pid, read)

    def ended(self) -> bool:
        """Whether it has said what came of it, or has died."""
        return bool(select.select([self.pipe], [], [], 0)[0])

    def wait_from_sibling(self) -> None:
        """In another child: wait for its end, and leave what it says to the parent."""
        select.select([self.pipe], [], [])

    def result(self) -> dict[str, Json]:
        """What it says, waited for."""
        if self._said is None:
            with os.fdopen(self.pipe, "rb") as pipe:
                data = pipe.read()
            code = self._reap()
            self._said = json.loads(data) if data else {"error": f"the process that wrote it ended with {code}"}
        return self._said

    def give_up(self) -> None:
        """End it: a newer save takes its place."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.pipe)
        self._reap()

    def _reap(self) -> int | None:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # the body has waited for its children itself
            return None


def _work_and_leave(
    work: Callable[[], dict[str, Json]], pipe: int, parent: int, ignored: tuple[signal.Signals, ...], die_with_parent: Callable[[], None]
) -> NoReturn:
    """The whole life of the child. It runs no exit functions and flushes no streams: those are the parent's."""
    code = 1
    try:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        gc.disable()  # a collection would touch, and so copy, all that is shared
        try:
            said = work()
            code = 0
        except NotPicklable as error:
            said = {"path": error.path[:TEXT_LIMIT], "cause": error.cause[:TEXT_LIMIT]}
        except FlowbookError as error:
            said = {"error": str(error)[:TEXT_LIMIT]}
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"[:TEXT_LIMIT]}
        os.write(pipe, json.dumps(said).encode())
    finally:
        os._exit(code)


def why_not_fork(store: Store) -> str | None:
    """Why a fork that goes on to work would not be safe here; None if it is."""
    if sys.platform != "linux":
        return "it is safe on Linux only"
    if getattr(store, "_base", None) is None:
        return "the store is not a folder"
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        return "threads run"
    if any(name in sys.modules for name in _GPU_MODULES):
        return "a library that works on GPUs is loaded"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised"
    return None


# ---- a thread ------------------------------------------------------------------------------------------------------------

Write = Callable[[Mapping[str, Sequence[Buffer]]], None]


@dataclass
class _Memory:
    """Memory for copies, kept from one save to the next: fresh pages cost more than the copying."""

    area: mmap.mmap | None = None

    def copy(self, encoded: Mapping[str, Encoded]) -> dict[str, list[Buffer]]:
        """The parts of values with their buffers copied here; `bytes` cannot change and stay where they are."""
        need = sum(_room(part) for value in encoded.values() for part in value.parts if not isinstance(part, bytes))
        if need and (self.area is None or len(self.area) < need):
            self.area = mmap.mmap(-1, need)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):
                    self.area.madvise(mmap.MADV_HUGEPAGE)
        place = 0
        copied: dict[str, list[Buffer]] = {}
        for name, value in encoded.items():
            parts: list[Buffer] = []
            copied[name] = parts
            for part in value.parts:
                if isinstance(part, bytes):
                    parts.append(part)
                    continue
                source = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
                target = memoryview(self.area)[place : place + source.nbytes] if self.area is not None else memoryview(bytearray())
                target[:] = source
                parts.append(target)
                place += _room(part)
        return copied


def _room(part: Buffer) -> int:
    return -(-memoryview(part).nbytes // 64) * 64


@dataclass
class _Thread:
    """Writes copies, one at a time, in a thread of its own. The newest copy replaces one that waits."""

    _condition: threading.Condition = field(default_factory=threading.Condition)
    _free: list[_Memory] = field(default_factory=lambda: [_Memory(), _Memory()])
    _waiting: tuple[_Memory, Mapping[str, Sequence[Buffer]], Write] | None = None
    _busy: bool = False
    _error: Exception | None = None
    _thread: threading.Thread | None = None

    def hand(self, encoded: dict[str, Encoded], write: Write) -> None:
        self.give_up_waiting()
        with self._condition:
            memory = self._free.pop()
        copied = memory.copy(encoded)
        with self._condition:
            self._waiting = memory, copied, write
            self._condition.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="flowbook-checkpoint", daemon=True)
            self._thread.start()

    def give_up_waiting(self) -> None:
        with self._condition:
            if self._waiting is not None:
                self._free.append(self._waiting[0])
                self._waiting = None

    def finish(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting is None and not self._busy)
        self.raise_error()

    def raise_error(self) -> None:
        with self._condition:
            error, self._error = self._error, None
        if isinstance(error, FlowbookError):
            raise error
        if error is not None:
            raise SaveFailed(f"a checkpoint could not be written: {type(error).__name__}: {error}. The one before it stands.") from error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting is not None)
                assert self._waiting is not None
                memory, copied, write = self._waiting
                self._waiting, self._busy = None, True
            error = None
            try:
                write(copied)
            except Exception as found:
                error = found
            with self._condition:
                self._busy = False
                self._error = error or self._error
                self._free.append(memory)
                self._condition.notify_all()


# ---- what it costs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Usage:
    """Pages that the system had to provide for this process, and the seconds that it worked for it."""

    faults: int
    system_s: float

    @classmethod
    def now(cls) -> _Usage:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(used.ru_minflt, used.ru_stime)

    def since(self, before: _Usage) -> _Usage:
        return _Usage(self.faults - before.faults, self.system_s - before.system_s)


# ---- memory --------------------------------------------------------------------------------------------------------------


def resident_mb() -> float:
    """MB of 10**6 bytes that this process holds; 0 where that is not told."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


def free_mb() -> float:
    """MB of 10**6 bytes that this machine can still give; infinite where that is not told."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("inf")


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123
            yield from file
    except OSError:
        return
