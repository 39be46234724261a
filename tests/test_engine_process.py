"""The engine as a process with its socket: what clients see, and when it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine import events
from flowbook.engine.__main__ import read_capacity
from flowbook.engine.state import RunState
from flowbook.spec.flow import Foreach, Input, Options, Retry, Spec, Step, from_json, to_json
from flowbook.store import layout
from flowbook.store.files import FilesStore

REPO = Path(__file__).parent.parent


class Connection:
    """One client: sends messages, keeps those it got."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.settimeout(0.05)
        self.got: list[dict[str, Any]] = []
        self._rest = b""

    def send(self, **message: Any) -> None:
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        self.socket.settimeout(20)
        self.socket.sendall(data)
        self.socket.settimeout(0.05)

    def until(self, seen: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not seen():
            assert time.monotonic() < deadline, f"it never came; got {self.got[-5:]}"
            try:
                data = self.socket.recv(1 << 20)
            except TimeoutError:
                continue
            assert data, f"the engine hung up; got {self.got[-5:]}"
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.got += [json.loads(line) for line in lines]

    def events(self, run: str = "1") -> list[dict[str, Any]]:
        return [e for m in self.got if m["say"] == "events" and m["run"] == run for e in m["events"]]

    def ended(self, run: str = "1") -> str | None:
        return next((e["state"] for e in self.events(run) if e["e"] == "run_ended"), None)

    def said(self, what: str) -> list[dict[str, Any]]:
        return [m for m in self.got if m["say"] == what]


class Engine:
    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.store = folder, FilesStore(folder / "project")
        self.sockets = Path(tempfile.mkdtemp(prefix="fb-"))
        self.socket = self.sockets / "engine.sock"
        self.log = (folder / "engine.log").open("wb")
        store = json.dumps({"kind": "files", "root": str(folder / "project")})
        command = [sys.executable, "-P", "-m", "flowbook.engine", "--socket", str(self.socket), "--store", store]
        self.env = {**os.environ, "PYTHONPATH": str(REPO), **env}
        self.process = subprocess.Popen(command, env=self.env, start_new_session=True, stdout=self.log, stderr=self.log)

    def connect(self) -> Connection:
        deadline = time.monotonic() + 30
        while True:
            try:
                return Connection(self.socket)
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, (self.folder / "engine.log").read_text()
                time.sleep(0.01)

    def start(self, client: Connection, *steps: Step, run: str = "1", **fields: Any) -> None:
        spec = Spec("demo", run, steps, **fields)
        filed = {s.filename: {"label": s.label, "source": s.source} for s in steps}
        data = {**to_json(spec), "sources": filed}
        self.store.create(layout.spec("demo", run), json.dumps(data).encode())
        client.send(do="run", flow="demo", run=run, env=self.env, cwd=str(self.folder), sys_path=[str(REPO), *sys.path])

    def output(self, step: str, *index: int, run: str = "1", attempt: int = 0) -> str:
        return self.store.get(layout.output("demo", run, step, index, attempt)).decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.sockets, ignore_errors=True)  # an engine that was killed leaves it


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    found = Engine(tmp_path)
    yield found
    found.close()


def step(name: str, source: str, reads: str = "", saves: str = "", **fields: Any) -> Step:
    options = Options(**{key: fields.pop(key) for key in list(fields) if key in Options.__dataclass_fields__})
    inputs = tuple(Input(word.split(":")[0], tuple(word.split(":")[1].split(","))) for word in reads.split())
    return Step(name, source, f"<{name}>", f"Cell {name}", options, inputs=inputs, saves=tuple(saves.split()), **fields)


QUICK = step("a", "print('hello')\nx = 1", saves="x")
SLOW = step("a", "import time\nprint('here', flush=True)\ntime.sleep(60)")


def test_a_sweep_of_real_workers_goes_from_start_to_join(engine: Engine) -> None:
    client = engine.connect()
    xs = (Input("xs", ("start",)),)
    engine.start(
        client,
        step("start", "xs = [3, 4, 5]", saves="xs", hosted=("square",)),
        step(
            "square",
            "y = x * x\nprint(x, '->', y)",
            saves="y",
            foreach=Foreach("x", "xs", ("x",)),
            scope=("square",),
            host="start",
            plan_inputs=xs,
        ),
        step(
            "total",
            "best = max(square, key=lambda t: t.y)\nprint(best.x, sum(t.y for t in square))\nn = best.y",
            saves="n",
            join=("square",),
        ),
        step("tell", "print('n is', n)", "n:total"),
    )
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: client.ended() is not None)

    assert client.ended() == "succeeded", [e for e in client.events() if e["e"] == "failed"]
    assert engine.output("total") == "5 50\n"
    assert engine.output("tell") == "n is 25\n"
    assert engine.output("square", 1) == "4 -> 16\n"


def test_a_failing_cell_tells_its_error_and_its_retry_goes_on(engine: Engine) -> None:
    client = engine.connect()
    engine.start(
        client,
        step("a", "print('try', current.attempt)\nif current.attempt == 0:\n    1 / 0\nx = 1", saves="x", retry=Retry(1, 0)),
        step("b", "print('b')\nd = {}\nd['k']"),
    )
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: client.ended() is not None)

    failed = {(e["step"], e["attempt"]): e["error"] for e in client.events() if e["e"] == "failed"}
    assert failed["b", 0]["type"] == "KeyError" and failed["b", 0]["line"] == 3 and "b" in failed["b", 0]["output_tail"]


def test_an_exit_of_the_body_and_a_kill_are_explained(engine: Engine) -> None:
    client = engine.connect()
    engine.start(client, step("a", "import os\nos._exit(0)"), step("b", "import os\nos.kill(os.getpid(), 9)"), max_parallel=2)
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: client.ended() is not None)

    reasons = {e["error"]["reason"] for e in client.events() if e["e"] == "failed"}
    assert reasons <= {"exit", "killed"} and reasons


def test_followers_see_events_from_the_start_and_hints_in_their_place(engine: Engine) -> None:
    client = engine.connect()
    engine.start(client, QUICK)
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: client.ended() is not None)
    late = engine.connect()
    late.send(do="follow", flow="demo", run="1")
    late.until(lambda: late.ended() is not None)

    assert late.events() == client.events()
    spec = from_json(Spec, json.loads(engine.store.get(layout.spec("demo", "1"))))
    state = RunState(spec)
    for event in client.events():
        state.apply(event)
    assert state.ended == "succeeded"
    places = {m["say"]: i for i, m in enumerate(client.got)}
    launched = next(i for i, m in enumerate(client.got) if m["say"] == "events" and any(e["e"] == "launched" for e in m["events"]))
    succeeded = next(i for i, m in enumerate(client.got) if m["say"] == "events" and any(e["e"] == "succeeded" for e in m["events"]))
    assert launched < places["output"] < succeeded
    assert client.said("output")[-1]["text"] == "hello\n"


def test_who_follows_a_run_before_it_is_asked_for_is_told_of_it(engine: Engine) -> None:
    early, client = engine.connect(), engine.connect()
    early.send(do="follow", flow="demo", run="1")
    early.send(do="follow", flow="demo", run="none")
    time.sleep(0.2)  # not for an outcome: either order must do, and this makes the early one likely
    engine.start(client, QUICK)

    early.until(lambda: early.ended() is not None)

    assert early.said("trouble") == []


def test_a_run_of_another_engine_is_shown_as_far_as_its_log_goes(engine: Engine) -> None:
    engine.store.create(layout.log("demo", "1", 0), events.batch(events.pack([events.run_started(1.0)])))
    client = engine.connect()
    client.send(do="follow", flow="demo", run="1")

    client.until(lambda: bool(client.events()) and bool(client.said("trouble")))

    assert "not driven by this engine" in client.said("trouble")[0]["message"]


def test_what_a_running_task_prints_is_seen_while_it_runs(engine: Engine) -> None:
    client = engine.connect()
    engine.start(client, SLOW)
    client.send(do="follow", flow="demo", run="1")

    client.until(lambda: any(m["text"] == "here\n" for m in client.said("output")))

    assert client.ended() is None


def test_a_request_object_and_a_poke_stop_a_run(engine: Engine) -> None:
    client = engine.connect()
    engine.start(client, SLOW)
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: bool(client.said("output")))

    engine.store.create(layout.request("demo", "1", "stop-1"), b'{"ask": "stop", "step": null, "index": null}')
    client.send(do="poke", flow="demo", run="1")
    client.until(lambda: client.ended() is not None)

    assert client.ended() == "stopped"


def test_a_run_goes_on_without_its_client_and_the_engine_ends_when_it_is_alone(engine: Engine) -> None:
    client = engine.connect()
    engine.start(client, step("a", "import time\ntime.sleep(1)\nx = 1", saves="x"))
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: any(e["e"] == "launched" for e in client.events()))
    client.socket.close()

    assert engine.process.wait(30) == 0
    keys = list(engine.store.list(layout.log_prefix("demo", "1")))
    assert events.unbatch(engine.store.get(keys[-1]), keys[-1])[-1]["state"] == "succeeded"
    assert not engine.socket.exists()


def test_a_client_that_does_not_read_holds_nobody_up(engine: Engine) -> None:
    deaf, client = engine.connect(), engine.connect()
    noisy = "for i in range(20000): print('x' * 100)\nfrom time import sleep\nfor i in range(300): display({'n': 'y' * 50_000})"
    engine.start(client, step("a", noisy))
    for one in (deaf, client):
        one.send(do="follow", flow="demo", run="1")

    client.until(lambda: client.ended() is not None)

    assert client.ended() == "succeeded"
    deaf.until(lambda: deaf.ended() is not None)  # once it reads: hints may be missing, events never
    assert deaf.events() == client.events()


@pytest.mark.parametrize(
    "junk",
    [
        b"\n",
        b"junk\n",
        b"[1]\n",
        b"null\n",
        b'{"do": "dance", "flow": "demo", "run": "1"}\n',
        b'{"do": "run"}\n',
        b'{"do": "run", "flow": "../x", "run": "1"}\n',
        b'{"do": "run", "flow": "demo", "run": 1}\n',
        b'{"do": "follow", "flow": "demo", "run": "none"}\n',
        b'{"do": "poke", "flow": "demo", "run": "none"}\n',
        b'{"do": ["run"], "flow": "demo", "run": "x"}\n',
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_junk_from_a_client_is_passed_over(engine: Engine, junk: bytes) -> None:
    client = engine.connect()
    client.raw(junk)
    engine.start(client, QUICK)
    client.send(do="follow", flow="demo", run="1")

    client.until(lambda: client.ended() is not None)

    assert client.ended() == "succeeded"


def test_a_run_that_is_not_in_the_store_is_trouble_and_the_others_go_on(engine: Engine) -> None:
    client = engine.connect()
    client.send(do="run", flow="demo", run="9", env={}, cwd="/", sys_path=[])
    client.send(do="follow", flow="demo", run="9")
    engine.start(client, QUICK)
    client.send(do="follow", flow="demo", run="1")

    client.until(lambda: client.ended() is not None and bool(client.said("trouble")))

    assert client.ended() == "succeeded"
    assert client.said("trouble")[0]["run"] == "9"


def test_an_interrupt_does_not_reach_the_engine_and_sigterm_ends_it_tidily(engine: Engine) -> None:
    client = engine.connect()
    engine.start(client, SLOW)
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: bool(client.said("output")))

    engine.process.send_signal(signal.SIGINT)
    client.send(do="follow", flow="demo", run="none")
    assert engine.process.poll() is None
    engine.process.terminate()
    client.until(lambda: client.ended() is not None)

    assert client.ended() == "stopped"
    assert engine.process.wait(15) == 0
    keys = list(engine.store.list(layout.log_prefix("demo", "1")))
    assert events.unbatch(engine.store.get(keys[-1]), keys[-1])[-1]["state"] == "stopped"


def test_the_socket_belongs_to_its_user_alone(engine: Engine) -> None:
    engine.connect()

    assert stat.S_IMODE(engine.socket.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--socket", "s"],
        ["--socket", "s", "--store", "{"],
        ["--socket", "s", "--store", "[]"],
        ["--socket", "s", "--store", '{"kind": "tape"}'],
        ["--socket", "s", "--store", '{"kind": "files", "root": "/tmp/x"}', "--capacity", "much"],
    ],
)
def test_wrong_arguments_are_refused_in_a_line(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "flowbook.engine", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )

    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "error:" in done.stderr


def test_a_capacity_is_read_and_a_wrong_one_refused() -> None:
    assert read_capacity('{"cores": 2, "memory_mb": 500, "gpus": 1}').gpus == 1
    for wrong in ("3", "{", '{"cores": 0}', '{"cores": "2"}', '{"cpus": 2}', '{"cores": true}', '{"cores": -1}'):
        with pytest.raises(ValueError):
            read_capacity(wrong)


def test_starting_the_engine_imports_nothing_heavy() -> None:
    code = "import sys, flowbook.engine.__main__; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=True
    )

    heavy = {"numpy", "pandas", "cloudpickle", "IPython", "psutil", "flowbook.worker", "flowbook.store.codec", "boto3", "kubernetes"}
    assert heavy.isdisjoint(found.stdout.split())


def test_old_runs_go_when_enough_have_gathered(engine: Engine) -> None:
    client = engine.connect()
    for number in range(1, 9):
        run = str(number)
        spec = Spec("demo", run, (QUICK,), sources={QUICK.filename: {"label": QUICK.label, "source": QUICK.source}})
        engine.store.create(layout.spec("demo", run), json.dumps(to_json(spec)).encode())
        client.send(do="run", flow="demo", run=run, env=engine.env, cwd=str(engine.folder), sys_path=sys.path, keep_runs=2)
        client.send(do="follow", flow="demo", run=run)
        client.until(lambda run=run: client.ended(run) is not None)  # type: ignore[misc]
        if number < 7:  # as if it were of last week; the seventh is of today, and so is kept
            os.utime(engine.folder / "project" / layout.spec("demo", run), (1, 1))

    client.until(lambda: list(engine.store.names("flows/demo")) == ["7", "8"])


def test_an_engine_that_ends_as_it_should_leaves_nothing_in_the_temp_folder(engine: Engine) -> None:
    client = engine.connect()
    engine.start(client, QUICK)
    client.send(do="follow", flow="demo", run="1")
    client.until(lambda: client.ended() is not None)
    client.socket.close()

    assert engine.process.wait(30) == 0
    assert not engine.sockets.exists()
