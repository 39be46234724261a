"""A pod's own process: carries out one attempt in a child, and keeps what a machine's engine would keep of it.

Started by the script in the pod's command (engine/launch/boot.py), which has put flowbook's runtime on the path. The parent (this file)
runs nothing of the user's: it prints what the child prints, so that `kubectl logs` reads as expected; keeps frames for those who listen at a
port of the pod's loopback; and stores output, rich output and the attempt's end, so that all is there even if nobody ever listened:

    K/output, K/display.json        as on a machine
    K/end.json                      {"v": 1, "code", "signal"?, "oom"?, "failed"?: ERROR, "phase", "output": bytes}

Exit codes: those of the child, 128 + n for a signal. SIGTERM is passed to the child, which may finish a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from flowbook.errors import FlowbookError, StoreError
from flowbook.spec.flow import Spec, Step
from flowbook.store import layout, trust
from flowbook.store.base import Store, open_store
from flowbook.worker import attempt, output

Json = Any
Frame = dict[str, Json]

TAIL_S = 0.2  # between two looks at what the child printed
BEAT_S = 10.0  # between two signs of life to those who listen
CHUNK = 1 << 16
LISTENER_BYTES = 16_000_000  # that wait for one listener; one that is slower is let go
DISPLAY_LIMIT = 32_000_000  # bytes of rich output kept
SHOWN = 40  # lines of pip that an error shows


class Unfit(FlowbookError):
    """The image of the pod is not what the step needs."""


Unfit.__name__ = Unfit.__qualname__ = "ImageError"


def main(told: Mapping[str, Json]) -> NoReturn:
    """Carry out the attempt that `told` names (see Ask in engine/launch/podspec.py), and end the process."""
    output.prepare_streams()
    store = open_store(told["store"])
    order: dict[str, Json] = trust.read(store, told["order"], store.get(told["order"]))
    place = (order["flow"], order["run"], order["step"], tuple(order.get("index") or ()), int(order.get("attempt") or 0))
    kept = Kept(store, place, order.get("part") or "body")
    home = Path(os.environ.get("HOME", "/tmp"))
    kept.output = home / "output"
    kept.output.touch(0o600)
    try:
        check_key(store, order)
        order = prepare(order, store, told, home)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        kept.output.write_text(text + "\n")
        print(text, flush=True)  # noqa: T201
        kept.failed = {"reason": "error", "type": type(error).__name__, "message": str(error), "traceback": text}
        kept.store_all({"code": 1})
        sys.exit(1)
    sys.exit(Watched(kept, told).run(order))


# ---- getting ready ------------------------------------------------------------------------------------------------------


def prepare(order: Mapping[str, Json], store: Store, told: Mapping[str, Json], home: Path) -> dict[str, Json]:
    """The order as this pod can carry it out: its folders, the run's code put in place, packages installed and looked at.

    Raises Unfit with all that the image lacks, StoreError.
    """
    work = home / "work"
    work.mkdir(exist_ok=True)
    own = {name: value for name, value in order.items() if name != "sys_path"}
    own |= {"cwd": str(work), "scratch": str(home / "scratch")}
    if told.get("pip"):
        install(told["pip"], home / "pip")
    spec = attempt.read_spec(own)[1]
    spec = put_in_place(spec, store, home / "code", work)
    attempt._specs[attempt._spec_key(own)] = store, spec
    own["notes"] = check_image(spec, spec.step(order["step"]), str(told.get("python") or spec.python))
    return own


def check_key(store: Store, order: Mapping[str, Json]) -> None:
    """Raises Unfit without the project's key, or with another: what this pod makes would be believed by nobody."""
    if store.key_file is None or trust.holds(store, order):
        return
    if not os.environ.get(trust.VARIABLE):
        raise Unfit(
            f"this pod has not got the project's key: the engine may not make a Secret in its namespace (secrets: create). Allow that, "
            f"or put {trust.VARIABLE} into the Secret that kubernetes_secret names."
        )
    raise Unfit(
        f"this pod has got another key of the project than the engine: correct {trust.VARIABLE} in the Secret of kubernetes_secret."
    )


def install(requirements: Iterable[str], folder: Path) -> None:
    """--pip: into a folder of this pod. Raises Unfit."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder), *requirements]
    import subprocess  # most pods install nothing

    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-SHOWN:])
        raise Unfit(f"--pip {' '.join(requirements)} could not be installed in the pod:\n{said}")
    sys.path.insert(1, str(folder))


def put_in_place(spec: Spec, store: Store, code: Path, work: Path) -> Spec:
    """The spec with its local modules at places of this pod, their data files written there, and the input files in the working folder."""
    moved = {}
    for name, info in spec.modules.items():
        relative = Path(*name.split("."))
        file = code / relative / "__init__.py" if info.get("package") else code / relative.with_suffix(".py")
        moved[name] = {**info, "file": str(file)}
        for path, data in info.get("data", {}).items():
            _write(file.parent / path, store.get(layout.blob(data["blob"])))
    files = {}
    for path, info in spec.files.items():
        if "blob" not in info:
            continue  # an older kernel wrote the spec; the check of the files tells
        target = work / path if not os.path.isabs(path) else Path(path)  # noqa: PTH117
        try:
            _write(target, store.get(layout.blob(info["blob"])))
        except OSError as error:
            raise Unfit(
                f"the input file {path} cannot be written in the pod ({error.strerror}): name it by a relative path in --files"
            ) from None
        files[path] = info
    return dataclasses.replace(spec, modules=moved, files={**spec.files, **files})


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def check_image(spec: Spec, step: Step, python: str) -> list[str]:
    """What differs between this image and where the run was started, in words. Raises Unfit for packages that are not there at all."""
    missing, notes = [], []
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python and ".".join(python.split(".")[:2]) != here:
        notes.append(
            f"the image has Python {here}, the run was started with {python}: functions and classes that travel by value may not load. "
            f"Use --image python:{'.'.join(python.split('.')[:2])}"
        )
    for root in sorted(needed(spec, step)):
        name, version = spec.packages[root]
        found = _version(name)
        if found is None and not _is_there(root):
            missing.append((name, version))
        elif found is not None and found != version:
            notes.append(f"the image has {name} {found}, the run was started with {version}")
    if missing:
        listed = " ".join(f"{name}=={version}" for name, version in missing)
        names = ", ".join(name for name, _ in missing)
        raise Unfit(
            f"step {step.name} needs {names}, which the image has not. Name an image that has, with --image (@kubernetes(image=…)), "
            f'or let the pod install them: --pip "{listed}" (@pypi(packages={{…}})).'
        )
    return notes


def _is_there(root: str) -> bool:
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return False


def _version(name: str) -> str | None:
    import importlib.metadata  # most pods need not ask

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def needed(spec: Spec, step: Step) -> set[str]:
    """Root modules of packages that a step cannot do without: by its text, by what it captures, by the program, by the local modules that these import."""
    if not spec.packages:
        return set()
    from flowbook.store import package

    found = {root for name in spec.setup for root in package.required_roots(package.python_lines(spec.sources[name]["source"]))}
    if spec.program is None:
        found |= package.required_roots(package.python_lines(step.source))
    else:
        found |= package.required_roots(spec.sources[spec.program]["source"], step.name)
    queue, seen = [*step.captures, *spec.setup_captures], set()
    while queue:
        name = queue.pop()
        if name in seen or name not in spec.captures:
            continue
        seen.add(name)
        capture = spec.captures[name]
        queue += capture.get("needs", ())
        found |= {module.partition(".")[0] for module in capture.get("modules", ())}
        entry = capture.get("entry") or {}
        if entry.get("kind") == "module":
            found.add(entry["module"].partition(".")[0])
    local: dict[str, set[str]] = {}  # root of a local module → what its files require
    for name, info in spec.modules.items():
        local.setdefault(name.partition(".")[0], set()).update(info.get("requires", ()))
    queue = list(found)
    while queue:
        more = local.pop(queue.pop(), set()) - found
        found |= more
        queue += more
    return found & spec.packages.keys()


# ---- what is kept -------------------------------------------------------------------------------------------------------


class Kept:
    """What will be stored of an attempt, and what a listener who comes late is told first."""

    def __init__(self, store: Store, place: tuple[str, str, str, layout.Index, int], part: str) -> None:
        self.store, self.place, self.part = store, place, part
        self.output = Path(os.devnull)
        self.failed: Json = None
        self.phase = "importing"
        self.displays: list[Frame] = []
        self.display_bytes = self.left_out = 0
        self.cards: dict[str, Frame] = {}

    def take(self, frame: Frame) -> None:
        kind = frame.get("f")
        if kind == "failed":
            self.failed = frame.get("error")
        elif kind == "phase":
            self.phase = str(frame.get("phase"))
        elif kind == "card":
            self.cards[str(frame.get("id"))] = frame
        elif kind == "display":
            self._take_display(frame)

    def _take_display(self, frame: Frame) -> None:
        if frame.get("update"):
            for i, shown in enumerate(self.displays):
                if shown.get("id") == frame.get("id"):
                    self.displays[i] = {**shown, "data": frame["data"], "metadata": frame.get("metadata", {})}
            return
        size = len(json.dumps(frame.get("data")))
        if self.display_bytes + size > DISPLAY_LIMIT:
            self.left_out += 1
            return
        self.display_bytes += size
        self.displays.append(frame)

    def snapshot(self) -> list[Frame]:
        return [{"f": "phase", "phase": self.phase}, *self.displays, *self.cards.values()]

    def store_all(self, end: Mapping[str, Json]) -> None:
        """Output first, the end last: who finds the end finds all. A store that refuses leaves the engine what it heard by itself."""
        flow, run, step, index, number = self.place
        try:
            data = self.output.read_bytes()
            if data:
                self.store.create(layout.output(flow, run, step, index, number, self.part), data)
            if self.displays:
                shown = json.dumps({"frames": self.displays, "left_out": self.left_out}).encode()
                self.store.create(layout.display(flow, run, step, index, number, self.part), shown)
            told = {"v": 1, **end, "failed": self.failed, "phase": self.phase, "output": len(data)}
            self.store.create(layout.end(flow, run, step, index, number, self.part), json.dumps(told).encode())
        except (StoreError, OSError) as error:
            print(f"flowbook: what was printed could not be stored: {error}", file=sys.stderr, flush=True)  # noqa: T201


# ---- the child and those who listen -----------------------------------------------------------------------------------------


class Listener:
    """Somebody at the port: what waits for them."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection, self.waiting = connection, bytearray()

    def send(self) -> bool:
        """Whether they are still there."""
        try:
            while self.waiting:
                del self.waiting[: self.connection.send(self.waiting)]
        except BlockingIOError:
            return len(self.waiting) <= LISTENER_BYTES
        except OSError:
            return False
        return True


class Watched:
    """The attempt in a child process, from the fork to what is stored."""

    def __init__(self, kept: Kept, told: Mapping[str, Json]) -> None:
        self.kept, self.told = kept, told
        self.pid = 0
        self.selector = selectors.DefaultSelector()
        self.listeners: dict[int, Listener] = {}
        self._line = bytearray()
        self._printed = 0
        self._kill_at: float | None = None
        self._beat_at = time.monotonic() + BEAT_S

    def run(self, order: Mapping[str, Json]) -> int:
        """The exit code of the pod."""
        frames, theirs = os.pipe()
        wake, self._wake = os.pipe()
        for fd in (wake, self._wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become_attempt(frames, theirs, {**order, "frames_fd": theirs})
        os.close(theirs)
        os.set_blocking(frames, False)
        self._tail = self.kept.output.open("rb", buffering=0)
        self.selector.register(frames, selectors.EVENT_READ, "frames")
        self.selector.register(wake, selectors.EVENT_READ, "wake")
        self._listen()
        status = self._until_ended(frames, wake)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)  # what the body left behind
        self._read_frames(frames)
        self._show(everything=True)
        code = os.waitstatus_to_exitcode(status)
        oom = code == -signal.SIGKILL and oom_kills() > 0
        end: dict[str, Json] = {"code": code} if code >= 0 else {"code": code, "signal": signal.Signals(-code).name}
        self.kept.store_all(end | ({"oom": True} if oom else {}))
        self._say({"f": "end"})
        return code if code >= 0 else 128 - code

    def _become_attempt(self, frames: int, theirs: int, order: dict[str, Json]) -> NoReturn:
        os.setsid()  # no need to follow the parent's death: that is the pod's first process, with which the kernel ends all
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(frames)
        os.close(self._wake)
        file = os.open(self.kept.output, os.O_RDWR | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.close(file)
        attempt.leave(attempt.run(order))
        os._exit(1)

    def _until_ended(self, frames: int, wake: int) -> int:
        while True:
            for key, _ in self.selector.select(TAIL_S):
                if key.data == "frames":
                    self._read_frames(frames)
                elif key.data == "wake":
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif key.data == "port":
                    self._accept(key.fileobj)
                elif isinstance(key.data, Listener):
                    self._hear(key.data)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            self._show()
            now = time.monotonic()
            if self._kill_at is not None and now >= self._kill_at:
                with contextlib.suppress(OSError):
                    os.killpg(self.pid, signal.SIGKILL)
            if now >= self._beat_at:
                self._beat_at = now + BEAT_S
                self._say({"f": "beat"})

    def _stop(self) -> None:
        """SIGTERM: the child may tidy up, but not for longer than the pod may live."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + float(self.told.get("grace_s", 5))
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGTERM)

    # ---- output and frames ----

    def _show(self, everything: bool = False) -> None:
        """Print what the child has printed since the last look."""
        while data := self._tail.read(CHUNK):
            left = memoryview(data)
            while left:
                left = left[os.write(1, left) :]
            if len(data) < CHUNK and not everything:
                return

    def _read_frames(self, fd: int) -> None:
        while True:
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self.selector.unregister(fd)
                return
            *whole, rest = (bytes(self._line) + data).split(b"\n")
            self._line = bytearray(rest)
            for line in whole:
                with contextlib.suppress(ValueError, RecursionError):
                    frame = json.loads(line)
                    if isinstance(frame, dict):
                        self.kept.take(frame)
                        self._say_line(line)

    # ---- those who listen ----

    def _listen(self) -> None:
        """A port of the loopback: only who may forward ports to this pod reaches it. Without it nothing but liveness is lost."""
        try:
            door = socket.create_server(("127.0.0.1", int(self.told.get("port", 0))))
        except OSError as error:
            print(f"flowbook: no live view of this pod: {error}", file=sys.stderr, flush=True)  # noqa: T201
            return
        door.setblocking(False)
        self.selector.register(door, selectors.EVENT_READ, "port")

    def _accept(self, door: Any) -> None:
        with contextlib.suppress(OSError):
            listener = Listener(door.accept()[0])
            self.listeners[listener.connection.fileno()] = listener
            self.selector.register(listener.connection, selectors.EVENT_READ, listener)
            for frame in self.kept.snapshot():
                listener.waiting += json.dumps(frame, separators=(",", ":")).encode() + b"\n"
            self._send(listener)

    def _hear(self, listener: Listener) -> None:
        try:
            gone = not listener.connection.recv(4096)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            self._let_go(listener)
        else:
            self._send(listener)

    def _say(self, frame: Frame) -> None:
        self._say_line(json.dumps(frame, separators=(",", ":")).encode())

    def _say_line(self, line: bytes) -> None:
        for listener in list(self.listeners.values()):
            listener.waiting += line + b"\n"
            self._send(listener)

    def _send(self, listener: Listener) -> None:
        if not listener.send():
            self._let_go(listener)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if listener.waiting else 0)
        self.selector.modify(listener.connection, events, listener)

    def _let_go(self, listener: Listener) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(listener.connection)
        self.listeners = {fd: each for fd, each in self.listeners.items() if each is not listener}
        listener.connection.close()


def oom_kills() -> int:
    """How many processes of this container the kernel has killed for memory."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", Path(path).read_text(), re.MULTILINE):
                return int(found[1])
    return 0
