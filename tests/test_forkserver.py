"""Attempts in forked processes of a real engine: fresh, private, and gone with those they depend on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowbook.engine import registry
from flowbook.spec.flow import Foreach, Input, Options, Step
from flowbook.store import layout
from flowbook.store.files import FilesStore
from tests.test_engine_process import REPO, Connection, Engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is a fork server on Linux only")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.close()


def step(name: str, source: str, saves: tuple[str, ...] = (), **options: Any) -> Step:
    return Step(name, source, f"<{name}>", f"Cell {name}", Options(**options), saves=saves, certain=saves)


def fan(source: str, count: int, saves: tuple[str, ...] = ()) -> tuple[Step, Step]:
    start = Step("start", f"xs = list(range({count}))", "<start>", "Cell 1", saves=("xs",), certain=("xs",), hosted=("each",))
    options = Options(foreach=Foreach("x", "xs", ("x",)))
    plan = (Input("xs", ("start",)),)
    return start, Step("each", source, "<each>", "Cell 2", options, ("each",), plan_inputs=plan, host="start", saves=saves, certain=saves)


def ran(engine: Engine, *steps: Step, run: str = "1", ended: str = "succeeded", **fields: Any) -> Connection:
    client = engine.connect()
    engine.start(client, *steps, run=run, **fields)
    client.send(do="follow", flow="demo", run=run)
    client.until(lambda: client.ended(run) is not None)
    assert client.ended(run) == ended, client.events(run)[-3:]
    return client


def values(engine: Engine, name: str, step: str, *index: int, run: str = "1") -> Any:
    from flowbook.store import codec, results

    commit = results.read_commit(engine.store, "demo", run, step, index)
    assert commit is not None
    return codec.load(engine.store, commit["artifacts"][name], main={})


def server_of(engine: Engine, client: Connection) -> int:
    client.send(do="ping")
    client.until(lambda: bool(client.said("pong")))
    pids = client.said("pong")[-1]["fork"]["pids"]
    assert len(pids) == 1
    return int(pids[0])


def eventually(seen: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


# ---- a fresh process for each attempt -----------------------------------------------------------------------------------


def test_each_attempt_is_a_new_process_that_leads_a_session_and_comes_from_the_server(engine: Engine) -> None:
    source = "import os, sys\nme = [os.getpid(), os.getppid(), os.getsid(0), sys.modules.get('left_behind') is None]\nsys.modules['left_behind'] = os"
    client = ran(engine, *fan(source, 4, saves=("me",)))

    server = server_of(engine, client)
    found = [values(engine, "me", "each", i) for i in range(4)]
    assert len({pid for pid, *_ in found}) == 4
    assert all(parent == server and session == pid and fresh for pid, parent, session, fresh in found)


def test_what_the_flow_imports_is_imported_once_for_all(engine: Engine) -> None:
    source = "import sys\nbefore = 'wave' in sys.modules\nimport wave"
    ran(engine, *fan(source, 2, saves=("before",)), imports=("wave", "no_such_module"))

    assert [values(engine, "before", "each", i) for i in range(2)] == [True, True]


def test_generators_are_seeded_anew_in_each_process(engine: Engine) -> None:
    source = "import random, numpy\ndrawn = [random.random(), float(numpy.random.rand()), numpy.random.default_rng().random()]"
    steps = fan(source, 3, saves=("drawn",))
    ran(engine, *steps, imports=("numpy", "random"))
    ran(engine, *steps, run="2", imports=())

    drawn = [values(engine, "drawn", "each", i) for i in range(3)]
    again = [values(engine, "drawn", "each", i, run="2") for i in range(3)]
    assert len({row[0] for row in drawn}) == len({row[1] for row in drawn}) == len({row[2] for row in drawn}) == 3
    assert [row[:2] for row in drawn] == [row[:2] for row in again]  # of the task's own seed, whatever was imported before
    assert all(a[2] != b[2] for a, b in zip(drawn, again, strict=True))


def test_an_import_that_starts_threads_makes_attempts_start_as_new_programs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(engine.folder)
    (engine.folder / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    )
    source = "import os, threading\nme = [os.getppid(), threading.active_count()]"
    client = ran(engine, step("a", source, ("me",)), imports=("threaded",))
    first = values(engine, "me", "a")
    ran(engine, step("a", source, ("me",)), run="2", imports=("threaded",))

    client.got.clear()
    client.send(do="ping")
    client.until(lambda: bool(client.said("pong")))
    assert "1 threads run after the import of threaded" in client.said("pong")[-1]["fork"]["unsafe"]
    assert first == [engine.process.pid, 1] == values(engine, "me", "a", run="2")


def test_an_environment_of_its_own_has_a_server_of_its_own(engine: Engine) -> None:
    source = "import os\nseen = [os.environ.get('MINE'), os.environ['OMP_NUM_THREADS']]"
    ran(engine, step("a", source, ("seen",)), step("b", source, ("seen",), env=(("MINE", "yes"),)))

    assert values(engine, "seen", "a") == [None, "1"]
    assert values(engine, "seen", "b") == ["yes", "1"]


def test_installed_packages_are_seen_by_the_next_run(engine: Engine) -> None:
    packages = engine.folder / "site-packages"
    packages.mkdir()
    (packages / "new_one.py").write_text("version = 1\n")
    source = "import new_one\nversion = new_one.version"

    def run(number: str) -> int:
        from flowbook.spec.flow import Spec, to_json

        one = step("a", source, ("version",))
        import json

        data = {**to_json(Spec("demo", number, (one,), imports=("new_one",))), "sources": {"<a>": {"label": "Cell", "source": source}}}
        engine.store.create(layout.spec("demo", number), json.dumps(data).encode())
        client = engine.connect()
        client.send(do="run", flow="demo", run=number, env=engine.env, cwd=str(engine.folder), sys_path=[*sys.path, str(packages)])
        client.send(do="follow", flow="demo", run=number)
        client.until(lambda: client.ended(number) is not None)
        return int(values(engine, "version", "a", run=number))

    assert run("1") == 1
    (packages / "new_one.py").unlink()
    (packages / "new_one.py").write_text("version = 22\n")  # as `%pip install` does it: the folder changes
    assert run("2") == 22


# ---- processes that a body starts ----------------------------------------------------------------------------------------

POOLS = {
    "fork pool": "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(2) as pool:\n    found = pool.map(double, range(4))",
    "executor": "from concurrent.futures import ProcessPoolExecutor\nwith ProcessPoolExecutor(2) as pool:\n    found = list(pool.map(double, range(4)))",
    "spawn": "import multiprocessing, operator\nwith multiprocessing.get_context('spawn').Pool(2) as pool:\n    found = pool.map(operator.neg, range(4))",
    "loky": "from joblib import Parallel, delayed\nfound = Parallel(2)(delayed(double)(i) for i in range(4))",
    "threads": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n    found = list(pool.map(double, range(4)))",
    "workers fed by queues": (
        "import multiprocessing\ndef work(todo, done):\n    for i in iter(todo.get, None):\n        done.put((i, double(i)))\n"
        "context = multiprocessing.get_context('fork')\ntodo, done = context.Queue(), context.Queue()\n"
        "workers = [context.Process(target=work, args=(todo, done), daemon=True) for _ in range(2)]\n"
        "for w in workers:\n    w.start()\nfor i in range(4):\n    todo.put(i)\nfound = [v for _, v in sorted(done.get(timeout=20) for _ in range(4))]\n"
        "for w in workers:\n    todo.put(None)\nfor w in workers:\n    w.join()\ndel todo, done, workers, context, w"
    ),
    "subprocess": "import subprocess, sys\nfound = [int(subprocess.run([sys.executable, '-c', 'print(7)'], capture_output=True, check=True).stdout)]",
}


@pytest.mark.parametrize("how", POOLS)
def test_processes_and_threads_inside_a_body_work(engine: Engine, how: str) -> None:
    source = f"def double(i):\n    return 2 * i\n{POOLS[how]}"
    ran(engine, step("a", source, ("found",)), imports=("multiprocessing", "concurrent.futures"))

    expected = {"spawn": [0, -1, -2, -3], "subprocess": [7]}.get(how, [0, 2, 4, 6])
    assert values(engine, "found", "a") == expected


def test_what_a_body_leaves_running_in_its_session_ends_with_it(engine: Engine) -> None:
    source = "import subprocess\nleft = subprocess.Popen(['sleep', '1000']).pid"
    ran(engine, step("a", source, ("left",)))

    eventually(
        lambda: not psutil.pid_exists(values(engine, "left", "a")) or psutil.Process(values(engine, "left", "a")).status() == "zombie"
    )


# ---- deaths ---------------------------------------------------------------------------------------------------------------


def waiting(engine: Engine) -> tuple[Step, Path, Path]:
    """A step that notes its process and waits until it is let go."""
    pids, go = engine.folder / "pids", engine.folder / "go"
    source = (
        f"import os, time\nwith open({str(pids)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
        f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.005)\ndone = True"
    )
    return step("a", source, ("done",)), pids, go


def noted(pids: Path) -> list[int]:
    return [int(line) for line in pids.read_text().splitlines()] if pids.exists() else []


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_killed_fork_server_takes_its_attempts_along_and_they_are_launched_again(engine: Engine) -> None:
    one, pids, go = waiting(engine)
    client = engine.connect()
    engine.start(client, one)
    client.send(do="follow", flow="demo", run="1")
    eventually(lambda: len(noted(pids)) == 1)

    os.kill(server_of(engine, client), signal.SIGKILL)
    eventually(lambda: len(noted(pids)) == 2)

    assert is_gone(noted(pids)[0])
    go.write_text("")
    client.until(lambda: client.ended() is not None)
    assert [e["e"] for e in client.events()] == ["run_started", "launched", "lost", "launched", "succeeded", "run_ended"]


def test_a_killed_engine_takes_server_and_attempts_along_and_another_goes_on(engine: Engine, tmp_path: Path) -> None:
    one, pids, go = waiting(engine)
    client = engine.connect()
    engine.start(client, one, step("b", "x = 1", ("x",), after=("a",)))
    eventually(lambda: len(noted(pids)) == 1)
    server = server_of(engine, client)

    engine.process.kill()
    engine.process.wait()
    eventually(lambda: is_gone(server) and is_gone(noted(pids)[0]))

    go.write_text("")
    other = Engine(tmp_path)
    try:
        client = other.connect()
        client.send(do="run", flow="demo", run="1", env=other.env, cwd=str(tmp_path), sys_path=sys.path, adopt=True)
        client.send(do="follow", flow="demo", run="1")
        client.until(lambda: client.ended() is not None)
        assert client.ended() == "succeeded"
        assert [e["e"] for e in client.events()][:4] == ["run_started", "launched", "lost", "launched"]
    finally:
        other.close()


def test_an_attempt_that_was_started_as_a_new_program_dies_with_the_engine_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(engine.folder)
    (engine.folder / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    )
    one, pids, _ = waiting(engine)
    client = engine.connect()
    engine.start(client, one, imports=("threaded",))
    eventually(lambda: len(noted(pids)) == 1)
    assert psutil.Process(noted(pids)[0]).ppid() == engine.process.pid

    engine.process.kill()
    eventually(lambda: is_gone(noted(pids)[0]))


def test_a_body_that_ends_by_a_signal_is_told_so_and_the_server_lives_on(engine: Engine) -> None:
    client = ran(engine, step("a", "import os\nos.kill(os.getpid(), 11)"), ended="failed")
    server = server_of(engine, client)
    ran(engine, step("b", "x = 1", ("x",)), run="2")

    assert "SIGSEGV" in next(e for e in client.events() if e["e"] == "failed")["error"]["message"]
    assert psutil.pid_exists(server)


# ---- the engine among others ----------------------------------------------------------------------------------------------


def test_an_engine_is_found_while_it_lives(engine: Engine) -> None:
    engine.connect()
    store = FilesStore(engine.folder / "project")

    (path, entry), *more = registry.entries(store)
    assert not more and entry.pid == engine.process.pid and entry.socket == str(engine.socket) and entry.lives()

    engine.close()
    assert not path.exists() and not entry.lives()


@pytest.mark.parametrize("junk", [b"", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_damaged_entry_is_passed_over(tmp_path: Path, junk: bytes) -> None:
    store = FilesStore(tmp_path)
    folder = store.local_dir() / registry.FOLDER
    folder.mkdir()
    (folder / "1.json").write_bytes(junk)

    assert list(registry.entries(store)) == []


def test_a_server_is_made_ready_before_there_is_work(engine: Engine) -> None:
    client = engine.connect()
    client.send(do="warm", env=engine.env, cwd=str(engine.folder), sys_path=[str(REPO), *sys.path], imports=["wave", 3])
    server = server_of(engine, client)
    ran(engine, step("a", "import os, sys\nme = [os.getppid(), 'wave' in sys.modules]", ("me",)))

    assert values(engine, "me", "a") == [server, True]


# ---- imports that end or hold up the server -------------------------------------------------------------------------------


@pytest.mark.parametrize("does", ["os._exit(7)", "os.kill(os.getpid(), 9)", "time.sleep(1000)"])
def test_an_import_that_kills_or_holds_up_the_server_does_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """In the server only: the body does not import it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bad_one.py").write_text(f"import os, time\n{does}\n")
    engine = Engine(tmp_path, FLOWBOOK_FORK_START_S="2")
    try:
        client = ran(engine, step("a", "x = 1", ("x",)), imports=("bad_one",))
        assert [e["e"] for e in client.events()].count("lost") == 1
    finally:
        engine.close()


def test_what_a_module_does_at_the_end_of_its_process_is_not_done_by_each_attempt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(engine.folder)
    (engine.folder / "keeper.py").write_text(
        "import atexit, shutil, tempfile, weakref\nD = tempfile.mkdtemp()\natexit.register(shutil.rmtree, D, True)\n"
        "class T: pass\nt = T()\nE = tempfile.mkdtemp()\nweakref.finalize(t, shutil.rmtree, E, True)\n"
    )
    source = "import os, keeper, atexit\nthere = [os.path.isdir(keeper.D), os.path.isdir(keeper.E)]\natexit.register(open(f'own{x}', 'w').write, 'done')"
    ran(engine, *fan(source, 3, saves=("there",)), imports=("keeper", "logging", "multiprocessing.util"))

    assert [values(engine, "there", "each", i) for i in range(3)] == [[True, True]] * 3
    assert [(engine.folder / f"own{i}").exists() for i in range(3)] == [True] * 3
