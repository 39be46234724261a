"""Attempts as processes on this machine: start one, watch it, tell how it ended.

Knows nothing of runs, logs or stores: an order goes in, frames come out by a pipe, and how the process ended is an Exit. Whether
the attempt succeeded is not said here; its COMMIT says that. A fork server makes the process (fork.py); where it cannot, a new
Python does, which reads its order from stdin.

A worker is the leader of a session and process group of its own. Whatever ends it, the whole group is gone before `run` returns.
psutil is imported when a memory limit is first watched, never at start-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flowbook.engine.admission import Capacity
from flowbook.engine.launch.fork import ForkServer, ForkServers
from flowbook.spec.flow import Resources

Json = Any
Frame = dict[str, Json]

GRACE_S = 5.0  # between SIGTERM and SIGKILL
WATCH_S = 0.3  # between two looks at the memory of a worker
FRAME_LIMIT = 8_000_000  # bytes; a longer line is dropped
CHUNK = 1 << 16
DRAIN = 1000  # chunks read at most after the worker's end
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
WORKER = (sys.executable, "-P", "-m", "flowbook.worker")


@dataclass(frozen=True)
class Exit:
    """How an attempt's process ended.

    `reason`: "ended" (by itself, with `code`), "killed" (by a signal, whose name is `signal`), "oom" (over its memory limit),
    "timeout", "lost" (it could not be started or its end is not known; `message` says why, `again` whether that was no fault of
    the attempt), "evicted" (the cluster took its pod away). `peak_mb` (10**6 bytes) is known where memory was watched. `kept`: what it
    printed and showed is in the store already.
    """

    reason: str
    code: int | None = None
    signal: str | None = None
    peak_mb: float | None = None
    message: str = ""
    again: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Attempt:
    """What a launcher needs to know: `order` without "scratch" and "frames_fd", and where and with what to run it.

    `env` is the whole environment; `step_env` are the values of --env, which win over everything. Output is appended to the
    file `output`. `resources` are granted ones; `timeout_s` None: no limit.
    """

    order: Mapping[str, Json]
    output: Path
    env: Mapping[str, str] = field(default_factory=dict)
    step_env: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    timeout_s: float | None = None
    pod: Mapping[str, Json] | None = None  # what its step says of a pod of a cluster (podspec.pod_of); None: it runs here


class Process(Protocol):
    """A running attempt, forked or spawned."""

    @property
    def pid(self) -> int | None: ...
    async def ended(self) -> None: ...
    async def terminate(self, grace_s: float) -> None: ...
    def kill(self) -> None: ...
    def reap(self) -> int | None: ...


class LocalLauncher:
    """Runs attempts here. `devices` are the GPUs it may hand out, by the names CUDA_VISIBLE_DEVICES knows.

    `forks` None: every attempt is spawned as `worker`. `folder` is where scratch folders are made.
    """

    def __init__(
        self,
        devices: Sequence[str] = (),
        worker: Sequence[str] = WORKER,
        grace_s: float = GRACE_S,
        forks: ForkServers | None = None,
        folder: Path | None = None,
    ) -> None:
        self.devices = list(devices)  # those that are free
        self.forks = forks
        self._worker, self._grace_s = tuple(worker), grace_s
        self._folder, self._own_folder = folder, folder is None
        self._count = 0
        self._last: tuple[Any, Mapping[str, str], ForkServer] | None = None

    def warm(self, env: Mapping[str, str], cwd: str | None, sys_path: Sequence[str], modules: Sequence[str]) -> None:
        """Get a fork server ready for attempts that ask for one core, as most do."""
        if self.forks is not None:
            order = {"cwd": cwd, "sys_path": list(sys_path)}
            with contextlib.suppress(OSError):
                server = self.forks.find(environment(Attempt(order, Path(os.devnull), env)), cwd, sys_path)
                if server is not None and modules:
                    server.prepare(modules)

    def close(self) -> None:
        if self.forks is not None:
            self.forks.close()
        if self._own_folder and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def run(self, attempt: Attempt, on_frame: Callable[[Frame], None] = lambda frame: None) -> Exit:
        """Run one attempt to its end. Cancelling stops the process group (SIGTERM, then SIGKILL) and is then passed on.

        `on_frame` is called with each well-formed frame, in order, all of them before this returns.
        """
        devices = [self.devices.pop(0) for _ in range(min(attempt.resources.gpu, len(self.devices)))]
        scratch = ""
        try:
            scratch = self._scratch()
            return await self._run(attempt, on_frame, scratch, devices)
        except OSError as error:
            return Exit("lost", message=_why_not_started(error, attempt))
        finally:
            self.devices += devices
            if scratch and not _removed(scratch):
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, scratch, True))

    def _scratch(self) -> str:
        """A path that is free; the worker makes the folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="flowbook-scratch-"))
        self._count += 1
        return f"{self._folder}/scratch-{self._count}"

    async def _run(self, attempt: Attempt, on_frame: Callable[[Frame], None], scratch: str, devices: list[str]) -> Exit:
        frames = _Frames(on_frame)
        process: Process
        try:
            process = await self._start(attempt, frames.write_fd, scratch, devices)
        except BaseException:
            frames.close()
            raise
        frames.listen()
        meter = _Meter(process, attempt.resources.memory_mb)
        try:
            reason = await _watch(process, meter, attempt.timeout_s)
            if reason == "timeout":
                await process.terminate(self._grace_s)
        except asyncio.CancelledError:
            await process.terminate(self._grace_s)
            raise
        finally:
            process.kill()
            try:
                await process.ended()
            finally:  # cancelled again: after SIGKILL the last wait is short
                code = process.reap()
                frames.close()
        if code is None:
            return Exit("lost", message="the fork server of this engine died", again=True)
        return _exit(reason, code, meter.peak_mb)

    async def _start(self, attempt: Attempt, frames_fd: int, scratch: str, devices: list[str]) -> Process:
        order = {**attempt.order, "scratch": scratch, "frames_fd": frames_fd}
        cwd = attempt.order.get("cwd") or None
        output = os.open(attempt.output, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            server = self._find_server(attempt)
            if server is not None and await server.ready():
                forked = server.run(order, output, frames_fd, _visible(attempt, devices))
                try:
                    if await forked.started() or forked.lost:
                        return forked
                except asyncio.CancelledError:
                    forked.kill()
                    raise
            return _Child(self._spawn(order, cwd, environment(attempt, devices), output))
        finally:
            os.close(output)

    def _find_server(self, attempt: Attempt) -> ForkServer | None:
        """The fork server for an attempt. That of the one before is asked for first: to compare whole environments costs more than a task."""
        if self.forks is None:
            return None
        same = (id(attempt.env), attempt.order.get("cwd"), tuple(attempt.step_env.items()), attempt.resources.cpu)
        if self._last is not None and self._last[0] == same and not self._last[2].dead and self._last[2].unsafe is None:
            return self._last[2]
        server = self.forks.find(environment(attempt), attempt.order.get("cwd") or None, attempt.order.get("sys_path") or ())
        self._last = (same, attempt.env, server) if server is not None else None
        return server

    def _spawn(self, order: Mapping[str, Json], cwd: str | None, env: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as stdin:  # a file, not a pipe: an order of any size is read when the worker is ready for it
            stdin.write(json.dumps(order).encode())
            stdin.seek(0)
            return subprocess.Popen(
                self._worker,
                stdin=stdin,
                stdout=output,
                stderr=output,
                pass_fds=(order["frames_fd"],),
                start_new_session=True,
                cwd=cwd,
                env=dict(env),
            )


def _removed(folder: str) -> bool:
    """Remove a folder that is empty or was never made, as most are; False if there is more to do."""
    try:
        os.rmdir(folder)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def environment(attempt: Attempt, devices: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a worker: numeric libraries use as many threads as there are cores granted, unless the user said otherwise."""
    threads = str(max(1, math.ceil(attempt.resources.cpu)))
    env = {**dict.fromkeys(THREADS, threads), **attempt.env}
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return {**env, **attempt.step_env}


def _visible(attempt: Attempt, devices: Sequence[str]) -> str | None:
    """The GPUs that an attempt may see; None: as its environment says anyway."""
    name = "CUDA_VISIBLE_DEVICES"
    return attempt.step_env.get(name) or (",".join(devices) if devices else attempt.env.get(name))


def _why_not_started(error: OSError, attempt: Attempt) -> str:
    cwd = attempt.order.get("cwd")
    if cwd and not Path(cwd).is_dir():
        return f"the worker was not started: its folder {cwd} is gone. Make it again, or restart the kernel in another folder"
    return f"the worker was not started: {error}. Close some programs if memory or processes ran out, then run again"


async def _watch(child: Process, meter: _Meter, timeout_s: float | None) -> str:
    """Until the process ends by itself, reaches its time or its memory limit: "ended", "timeout" or "oom"."""
    if timeout_s is None and meter.limit_mb is None:
        await child.ended()
        return "ended"
    ended = asyncio.ensure_future(child.ended())
    over = asyncio.ensure_future(meter.over()) if meter.limit_mb is not None else None
    try:
        done, _ = await asyncio.wait({ended, over} if over else {ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in (ended, over):
            if future is not None:
                future.cancel()
    return "timeout" if not done else "ended" if ended in done else "oom"


def _exit(reason: str, code: int, peak_mb: float | None) -> Exit:
    if reason != "ended":
        return Exit(reason, code, peak_mb=peak_mb)
    if code >= 0:
        return Exit("ended", code, peak_mb=peak_mb)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return Exit("killed", code, name, peak_mb)


class _Child:
    """A process that leads its group. It is reaped last, so that until then its number cannot belong to anybody else."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(process.pid)
            self._loop.add_reader(self._pidfd, self._note_end)
        except (AttributeError, OSError):  # not Linux, or a kernel before 5.3
            threading.Thread(target=self._wait_in_thread, name=f"wait-{process.pid}", daemon=True).start()

    def _wait_in_thread(self) -> None:
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        try:
            self._loop.call_soon_threadsafe(self._ended.set)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _note_end(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._ended.set()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> None:
        await self._ended.wait()

    async def terminate(self, grace_s: float) -> None:
        """Ask the group to end and wait for its leader, at most the grace. Cancelling this ends the waiting."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a stopped process would not hear it
        try:
            await asyncio.wait_for(self.ended(), grace_s)
        except TimeoutError:
            pass

    def kill(self) -> None:
        """The whole group, also what the leader left behind."""
        self._signal(signal.SIGKILL)

    def reap(self) -> int:
        """The exit code; below 0 the signal. Waits for the end, so kill first."""
        code = self._process.wait()
        self._note_end()
        return code

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # nothing of the group is left that could be reached (macOS says EPERM for a group of zombies)


class _Meter:
    """Resident memory of a process and its descendants, in MB of 10**6 bytes, watched against a limit."""

    def __init__(self, process: Process, limit_mb: float | None) -> None:
        self._process, self.limit_mb = process, limit_mb
        self.peak_mb: float | None = None

    async def over(self) -> None:
        """Returns once the limit is exceeded."""
        assert self.limit_mb is not None
        while True:
            now_mb = await asyncio.to_thread(_resident_mb, self._process.pid)
            self.peak_mb = max(self.peak_mb or 0.0, now_mb)
            if now_mb > self.limit_mb:
                return
            await asyncio.sleep(WATCH_S)


def _resident_mb(pid: int | None) -> float:
    if pid is None:
        return 0.0
    import psutil

    total = 0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            try:
                total += member.memory_info().rss
            except psutil.Error:
                continue  # ended meanwhile
    except psutil.Error:
        pass
    return total / 1e6


class _Frames:
    """The pipe of frames. Junk never harms: a line that is too long, not JSON or not a frame is left out."""

    def __init__(self, on_frame: Callable[[Frame], None]) -> None:
        self._on_frame = on_frame
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line = bytearray()
        self._too_long = False

    def listen(self) -> None:
        """Once the worker holds the other end."""
        os.close(self.write_fd)
        self.write_fd = -1
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_fd, self._read)

    def close(self) -> None:
        """Take in what is left in the pipe. A process that escaped may still hold its end; it is not waited for."""
        if self.write_fd >= 0:  # the worker was not started
            os.close(self.write_fd)
        else:
            for _ in range(DRAIN):
                if not self._read():
                    break
            self._feed(b"\n")
        self._stop()
        os.close(self._read_fd)

    def _stop(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._read_fd)
            self._loop = None

    def _read(self) -> bool:
        try:
            data = os.read(self._read_fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._stop()
            return False
        self._feed(data)
        return True

    def _feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for part in whole:
            if not self._too_long:
                self._line += part
                self._take(bytes(self._line))
            self._line.clear()
            self._too_long = False
        if not self._too_long:
            self._line += rest
            if len(self._line) > FRAME_LIMIT:
                self._line.clear()
                self._too_long = True

    def _take(self, line: bytes) -> None:
        if not line.strip() or len(line) > FRAME_LIMIT:
            return
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(frame, dict) and isinstance(frame.get("f"), str):
            self._on_frame(frame)


# ---- the machine --------------------------------------------------------------------------------------------------------


def machine_capacity(gpus: int = 0) -> Capacity:
    """Cores and memory that this process may use, the limits of its container included."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota = _read_words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
        cores = min(cores, max(1.0, int(quota[0]) / int(quota[1])))
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    limit = _read_words("/sys/fs/cgroup/memory.max")
    if limit and limit[0].isdigit():
        memory_mb = min(memory_mb, int(limit[0]) / 1e6)
    return Capacity(cores, memory_mb, gpus)


def find_devices(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that may be handed out: FLOWBOOK_GPUS of them, those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists.

    Takes up to 5 s where a driver hangs, so call it in a thread.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    named = [] if visible is None else [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    wanted = environ.get("FLOWBOOK_GPUS", "")
    if wanted.strip().isdigit():
        return named[: int(wanted)] if visible is not None else [str(i) for i in range(int(wanted))]
    if visible is not None:
        return named
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return []
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, errors="replace", timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def _read_words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []
