"""What the benchmarks drive: a real kernel, an engine process, a peer's script; each started, asked and ended here.

All of it writes into a folder of its own and sees no settings of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.environments import PEERS, PeerMissing, python_of
from benchmarks.measure import Unavailable
from flowbook.spec.flow import Foreach, Options, Spec, Step, to_json
from flowbook.store import layout
from flowbook.store.files import FilesStore

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 900.0  # for one measurement


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes with what was written into it."""
    folder = Path(tempfile.mkdtemp(prefix="flowbook-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def touch_memory(megabytes: int) -> None:
    """Have the machine hand out so much memory, and give it back at once.

    A virtual machine pays for the first touch of memory that it has not used lately ten times what a copy costs, in the page cache
    too: without this a write is measured at 0.4 or at 4 GB/s, as chance has it.
    """
    block = b"\1" * 1_000_000
    with scratch() as folder, (folder / "file").open("wb") as file:
        for _ in range(megabytes):
            file.write(block)


def clean_environment(folder: Path) -> dict[str, str]:
    """This process's environment without settings of flowbook or of a peer; what they keep goes into `folder`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWBOOK_", "METAFLOW", "DASK_", "JPY_", "PYTHON"))}
    return own | {
        "XDG_CONFIG_HOME": str(folder / "config"),
        "IPYTHONDIR": str(folder / "ipython"),
        "FLOWBOOK_STORE": str(folder / "store"),
        "FLOWBOOK_NOTEBOOK": str(folder / "bench.ipynb"),
        "METAFLOW_HOME": str(folder / "metaflow-home"),
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "metaflow"),
        "METAFLOW_USER": "bench",
        "USERNAME": "bench",
    }


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process and all below it, those that ended and were waited for too."""
    spent = 0.0
    for process in tree(pid):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has just ended: its parent's figure holds it
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


def tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_tree(pid: int) -> None:
    """Kill a process that was started here, and all below it."""
    for process in reversed(tree(pid)):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


# ---- a kernel -----------------------------------------------------------------------------------------------------------


class Kernel:
    """A real kernel with a store of its own, whose cells are timed from sending to idle."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import KernelManager

        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=clean_environment(folder), extra_arguments=["--log-level=40"])
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.pid: int = self.manager.provisioner.pid  # type: ignore[union-attr]
        self.seconds("pass")

    def seconds(self, *cells: str) -> float:
        """Wall seconds of some cells that are sent at once. Raises RuntimeError if one fails."""
        self._drain()
        started = time.perf_counter()
        waiting = {self._send(cell) for cell in cells}
        while waiting:
            reply = self.client.get_shell_msg(timeout=TIMEOUT_S)
            if reply["parent_header"].get("msg_id") not in waiting:
                continue
            waiting.discard(reply["parent_header"]["msg_id"])
            if reply["content"]["status"] != "ok":
                raise RuntimeError("\n".join(reply["content"].get("traceback", [str(reply["content"])])))
        return time.perf_counter() - started

    def value(self, expression: str) -> Any:
        """The value of an expression that JSON can say."""
        message = self.client.execute("import json as _json", user_expressions={"found": f"_json.dumps({expression})"}, silent=False)
        while True:
            reply = self.client.get_shell_msg(timeout=TIMEOUT_S)
            if reply["parent_header"].get("msg_id") == message:
                break
        found = reply["content"]["user_expressions"]["found"]
        if found["status"] != "ok":
            raise RuntimeError(f"{expression}: {found.get('ename')}: {found.get('evalue')}")
        return json.loads(eval(found["data"]["text/plain"]))  # the repr of a string of JSON

    def cpu_s(self) -> float:
        """CPU seconds so far of the kernel, its engine, and all tasks that ended."""
        return tree_cpu(self.pid)

    def close(self) -> None:
        processes = tree(self.pid)
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        for process in processes:  # the engine outlives its kernel
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        for entry in self.folder.glob("store/*/local/engines/*.json"):
            shutil.rmtree(json.loads(entry.read_bytes())["folder"], ignore_errors=True)

    def _send(self, cell: str) -> str:
        # Input is possible, as in JupyterLab: `%flow run` returns at once.
        return str(self.client.execute(cell, allow_stdin=True, stop_on_error=True))

    def _drain(self) -> None:
        """What was displayed so far is of no interest."""
        while self.client.iopub_channel.msg_ready():
            self.client.iopub_channel.get_msg(timeout=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- an engine alone ------------------------------------------------------------------------------------------------------


class EngineProcess:
    """An engine without a kernel, driven over its socket."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.store = folder, FilesStore(folder / "project")
        self._environment = clean_environment(folder)
        self._path = folder / "engine.sock"
        store = json.dumps(self.store.describe())
        command = [sys.executable, "-P", "-m", "flowbook.engine", "--socket", str(self._path), "--store", store]
        with (folder / "engine.log").open("wb") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
        self._socket = self._connect()
        self._lines = self._socket.makefile("rb")
        self._runs = 0

    def foreach(self, items: int, watch: Callable[[], None] | None = None) -> float:
        """Seconds of a run of `items` no-ops and a join, from the request to the run's end. `watch` is called at each message."""
        self._runs += 1
        run = str(self._runs)
        spec = foreach_spec(run, items)
        sources = {step.filename: {"label": step.label, "source": step.source} for step in spec.steps}
        self.store.create(layout.spec(spec.flow, run), json.dumps(to_json(spec) | {"sources": sources}).encode())
        started = time.perf_counter()
        self._say(do="run", flow=spec.flow, run=run, env=self._environment, cwd=str(self.folder), sys_path=[str(ROOT), *sys.path])
        self._say(do="follow", flow=spec.flow, run=run)
        for line in self._lines:
            message = json.loads(line)
            if watch is not None:
                watch()
            for event in message.get("events", ()) if message.get("run") == run else ():
                if event["e"] == "run_ended":
                    seconds = time.perf_counter() - started
                    found = json.loads(self.store.get(layout.commit(spec.flow, run, "gather", ())))["artifacts"]["count"]["json"]
                    if found != items:
                        raise RuntimeError(f"the run {event['state']}: {found} of {items} items were joined")
                    return seconds
        raise RuntimeError("the engine hung up: " + (self.folder / "engine.log").read_text()[-2000:])

    def cpu_s(self) -> float:
        return tree_cpu(self._process.pid)

    def own_cpu_s(self) -> float:
        """CPU seconds so far of the engine process itself."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def rss_mb(self) -> float:
        """Memory of the engine process itself, in MB of 10**6 bytes."""
        return float(psutil.Process(self._process.pid).memory_info().rss) / 1e6

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
        end_tree(self._process.pid)
        self._process.wait()

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self._path))
            except OSError:
                connection.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the engine does not answer: " + (self.folder / "engine.log").read_text()[-2000:]) from None
                time.sleep(0.01)
                continue
            connection.settimeout(TIMEOUT_S)
            return connection

    def _say(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def foreach_spec(run: str, items: int) -> Spec:
    """The flow of the `foreach` benchmark as the kernel would write it, two tasks at a time."""
    each = Step(
        "each",
        "done = i",
        "<each>",
        "Cell In[1]",
        Options(foreach=Foreach("i", f"range({items})", ("i",))),
        scope=("each",),
        saves=("done",),
    )
    gather = Step(
        "gather",
        "count = sum(task.done >= 0 for task in each)",
        "<gather>",
        "Cell In[2]",
        Options(join=("each",)),
        saves=("count",),
    )
    return Spec("bench", run, (each, gather), max_parallel=2)


# ---- peers ----------------------------------------------------------------------------------------------------------------


class Peer:
    """A peer's script that stays: a line of JSON in, a line of JSON out. It starts with the first question."""

    def __init__(self, environment: str, script: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._environment, self._script, self.folder = environment, script, folder
        self._process: subprocess.Popen[str] | None = None

    def ask(self, **question: Any) -> dict[str, Any]:
        """Raises Unavailable if the peer cannot be installed or fails."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise Unavailable(f"{self._script} ended: {_last_line(self.folder / 'peer.log')}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def cpu_s(self) -> float:
        return tree_cpu(self._started().pid)

    def close(self) -> None:
        if self._process is not None:
            end_tree(self._process.pid)
            self._process.wait()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            with (self.folder / "peer.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [str(_python(self._environment)), "-u", str(PEERS / self._script)],
                    env=clean_environment(self.folder),
                    cwd=self.folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        return self._process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_peer(environment: str, arguments: list[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run of a peer's interpreter, children included. Raises Unavailable."""
    folder.mkdir(exist_ok=True)
    return run_process([str(_python(environment)), *arguments], clean_environment(folder), folder)


def run_process(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a process with all that it waited for. Raises Unavailable if it fails."""
    log = folder / "process.log"
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Unavailable(f"{' '.join(command[1:3])} failed: {_last_line(log)}")
    return seconds, used.ru_utime + used.ru_stime


def _python(environment: str) -> Path:
    try:
        return python_of(environment)
    except PeerMissing as error:
        raise Unavailable(str(error)) from None


def _last_line(log: Path) -> str:
    said = log.read_text("utf-8", "replace").strip().splitlines() if log.exists() else []
    return said[-1] if said else "it said nothing"
