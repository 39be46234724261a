"""Runs of a flow file started from Python: `Runner`, with Metaflow's names.

    with Runner("train_flow.py").run(alpha=0.5, tags=["nightly"]) as running:
        print(running.status, running.run.data.accuracy)

A run is a process of its own: ``python -m flowbook run FILE``, with this Python, in the folder of the present process. What it
prints goes into files of a temporary folder, which is gone when the `with` block or the Runner's `cleanup` is left. `run` and `resume`
wait; `async_run` and `async_resume` come back as soon as the run has its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import enum
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook.errors import DefinitionError, Finding, FlowbookError

if TYPE_CHECKING:
    from flowbook.client import Run

LOOK_S = 0.05  # between two looks at a process
END_S = 10.0  # for a run to stop before its process is killed
STREAMS = ("stdout", "stderr")


class RunNotStarted(FlowbookError):
    """The process ended before there was a run: the message holds what it said."""


class Runner:
    """A flow file that can be run.

    `show_output`: what the run prints is printed here, too, when it has ended. `env` is added to the environment. `decospecs` are
    decorators for all steps, as ``--with`` takes them. Other options are those before the command: ``namespace="user:ann"``.
    """

    def __init__(
        self,
        flow_file: str | os.PathLike[str],
        show_output: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        decospecs: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.flow_file = os.fspath(flow_file)
        self.show_output = show_output
        self.env = {**os.environ, **(env or {})}
        self.cwd = os.fspath(cwd) if cwd is not None else None
        path = Path(self.cwd or ".") / self.flow_file.partition(":")[0]
        if not path.is_file():
            raise DefinitionError(Finding(f"Runner({self.flow_file!r})", "there is no such file", f"Looked for {path.absolute()}."))
        self._before = [*_words(options), *(word for spec in decospecs for word in ("--with", spec))]
        self._started: list[ExecutingRun] = []

    def run(self, **given: Any) -> ExecutingRun:
        """Run to the end. `given`: parameters, and the options of ``run`` (tags, max_workers, run_id_file, with_).

        A run that fails is no error here: ask `status`. Raises RunNotStarted if there was no run, since parameters were wrong, say.
        """
        return self._to_end(self._start("run", (), given))

    def resume(self, step: str | None = None, origin_run_id: str | int | None = None, **given: Any) -> ExecutingRun:
        """Go on with an earlier run, the newest if none is named, with changed parameters if some are given."""
        return self._to_end(self._start_resume(step, origin_run_id, given))

    async def async_run(self, **given: Any) -> ExecutingRun:
        """Start a run; it goes on after this has come back. Await its `wait()`."""
        return await self._begun(self._start("run", (), given))

    async def async_resume(self, step: str | None = None, origin_run_id: str | int | None = None, **given: Any) -> ExecutingRun:
        return await self._begun(self._start_resume(step, origin_run_id, given))

    def cleanup(self) -> None:
        """Stop what still runs, and remove what the runs printed."""
        for executing in self._started:
            executing.cleanup()
        self._started.clear()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.cleanup()

    async def __aenter__(self) -> Runner:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cleanup()

    def _start_resume(self, step: str | None, origin: str | int | None, given: Mapping[str, Any]) -> ExecutingRun:
        return self._start("resume", [step] if step else [], {**given, **({"origin_run_id": origin} if origin is not None else {})})

    def _start(self, command: str, arguments: Sequence[str], given: Mapping[str, Any]) -> ExecutingRun:
        folder = Path(tempfile.mkdtemp(prefix="flowbook-runner-"))
        told = folder / "run.json"
        words = [*self._before, command, self.flow_file, *arguments, f"--runner-attribute-file={told}", *_words(given)]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flowbook", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.env,
                cwd=self.cwd,
            )
        executing = ExecutingRun(self, process, folder)
        self._started.append(executing)
        return executing

    def _to_end(self, executing: ExecutingRun) -> ExecutingRun:
        try:
            executing.process.wait()
        except BaseException:
            executing.stop()
            raise
        executing._must_have_begun()
        if self.show_output:
            sys.stdout.write(executing.stdout)
            sys.stderr.write(executing.stderr)
        return executing

    async def _begun(self, executing: ExecutingRun) -> ExecutingRun:
        while executing._place() is None and executing.returncode is None:
            await asyncio.sleep(LOOK_S)
        executing._must_have_begun()
        return executing


class ExecutingRun:
    """A run that a Runner started, while it runs and afterwards."""

    def __init__(self, runner: Runner, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.runner, self.process = runner, process
        self._folder = folder
        self._timed_out = False
        self._kept: dict[str, str] = {}  # what was printed, once the folder is gone

    @property
    def run(self) -> Run:
        """The run as the client sees it."""
        from flowbook import client
        from flowbook.store.base import open_store

        place = self._place()
        if place is None:
            raise RunNotStarted(self._said())
        return client.Run(f"{place['flow_name']}/{place['run_id']}", store=open_store(place["store"]))

    @property
    def returncode(self) -> int | None:
        """The exit code (docs/cli.md); None while it runs."""
        return self.process.poll()

    @property
    def status(self) -> str:
        """``running``, ``successful``, ``failed``, or, after a `wait` that took too long, ``timeout``."""
        code = self.returncode
        if code is None:
            return "timeout" if self._timed_out else "running"
        return "successful" if code == 0 else "failed"

    @property
    def stdout(self) -> str:
        """All that was printed so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        return self._read("stderr")

    async def wait(self, timeout: float | None = None, stream: str | None = None) -> ExecutingRun:
        """Wait for the end, at most `timeout` seconds; with `stream` its lines are printed meanwhile."""
        deadline = None if timeout is None else time.monotonic() + timeout
        lines = _Lines(self._file(stream)) if stream else None
        while True:
            ended = self.returncode is not None
            for line in lines.new(ended) if lines else ():
                print(line)  # noqa: T201
            if ended:
                return self
            if deadline is not None and time.monotonic() >= deadline:
                self._timed_out = True
                return self
            await asyncio.sleep(LOOK_S)

    async def stream_log(self, stream: str, position: int | None = None) -> AsyncIterator[tuple[int, str]]:
        """The lines of ``stdout`` or ``stderr`` as they come, to the end of the run; each with the position from which to go on."""
        lines = _Lines(self._file(stream), position or 0)
        while True:
            ended = self.returncode is not None
            for line in lines.new(ended):
                yield lines.position, line
            if ended:
                return
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """Stop the run as Ctrl-C does, and wait until its process has ended."""
        if self.returncode is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cleanup(self) -> None:
        """Stop it if it runs, and remove its temporary files; what it printed stays readable here."""
        self.stop()
        if self._folder.exists():
            self._place()
            self._kept = {stream: self._read(stream) for stream in STREAMS} | {"place": self._kept.get("place", "")}
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> ExecutingRun:
        return self

    def __exit__(self, *error: object) -> None:
        self.cleanup()

    def __repr__(self) -> str:
        place = self._place()
        name = f"{place['flow_name']}/{place['run_id']}" if place else self.runner.flow_file
        return f"<ExecutingRun {name}: {self.status}>"

    def _place(self) -> dict[str, Any] | None:
        """Flow, run and store, once the process has told them."""
        if not self._kept.get("place"):
            with contextlib.suppress(OSError):
                self._kept["place"] = (self._folder / "run.json").read_text()
        found: dict[str, Any] | None = json.loads(self._kept["place"]) if self._kept.get("place") else None
        return found

    def _must_have_begun(self) -> None:
        if self._place() is None:
            said = self._said()
            self.cleanup()
            raise RunNotStarted(said)

    def _said(self) -> str:
        said = self.stderr.strip() or f"the process ended with exit code {self.returncode}"
        return f"{self.runner.flow_file} was not run.\n{said}"

    def _file(self, stream: str) -> Path:
        if stream not in STREAMS:
            raise DefinitionError(Finding("", f"there is no stream {stream!r}", f"Streams: {', '.join(STREAMS)}."))
        return self._folder / stream

    def _read(self, stream: str) -> str:
        try:
            return self._file(stream).read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return self._kept.get(stream, "")


class _Lines:
    """The lines of a file that grows."""

    def __init__(self, file: Path, position: int = 0) -> None:
        self._file, self.position = file, position

    def new(self, ended: bool) -> Iterator[str]:
        """Those that are whole; when it has `ended`, the rest, too."""
        try:
            with self._file.open("rb") as source:
                source.seek(self.position)
                data = source.read()
        except FileNotFoundError:
            return
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n") and not ended:
                return
            self.position += len(line)
            yield line.decode("utf-8", "replace").rstrip("\r\n")


# ---- options as words -------------------------------------------------------------------------------------------------------


def _words(given: Mapping[str, Any]) -> list[str]:
    """``{"alpha": 0.5, "tags": ["a"]}`` as ``["--alpha=0.5", "--tag=a"]``; None is left out."""
    found = []
    for name, value in given.items():
        if value is None:
            continue
        if name in ("tags", "with_", "decospecs"):
            option = "--tag" if name == "tags" else "--with"
            found += [f"{option}={each}" for each in ([value] if isinstance(value, str) else value)]
        elif name in ("max_workers", "run_id_file", "origin_run_id", "max_num_splits", "max_log_size", "user_namespace"):
            found.append(f"--{name.replace('_', '-')}={value}")
        elif name == "quiet":
            found += ["--quiet"] if value else []
        else:
            found.append(f"--{name}={_text(value)}")
    return found


def _text(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value)
    return str(value)
