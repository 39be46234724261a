"""A kernel is killed in mid-run and a new one takes up what it left: display, names, values; nothing runs twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowbook._version import __version__
from flowbook.engine import registry
from flowbook.kernel.engine import Engine, RunView
from flowbook.spec.flow import Spec
from flowbook.store.base import Store, open_store
from tests.kernel.conftest import Notebook


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def kill(notebook: Notebook) -> None:
    """The kernel process dies of SIGKILL, as of the machine's memory killer."""
    pid = notebook.manager.provisioner.pid  # type: ignore[union-attr]
    os.kill(pid, signal.SIGKILL)
    notebook.close()


@contextmanager
def restarted(folder: Path, allow_stdin: bool = True) -> Iterator[Notebook]:
    """A new kernel of the same notebook."""
    notebook = Notebook(folder, allow_stdin=allow_stdin)
    try:
        yield notebook
    finally:
        notebook.close()


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


FLOW = [
    "%%flowstep start\nxs = [1, 2, 3]\nfactor = 10",
    '%%flowstep train --foreach "x in xs"\n'
    "import pathlib, time\n"
    "with open('ran.txt', 'a') as log:\n"
    "    log.write(f'{x}\\n')\n"
    "while x > 1 and not pathlib.Path('go').exists():\n"
    "    time.sleep(0.02)\n"
    "score = x * factor",
    "%%flowstep best --join train\ntop = max(t.score for t in train)",
]


def start_and_kill(lab: Notebook) -> None:
    """Run FLOW until its first task is committed and the others are under way, then kill the kernel."""
    for cell in FLOW:
        lab.ok(cell)
    lab.ok("%flow run")
    commit = lab.folder / "store/default/flows/book/1/train/0.COMMIT"
    until(lambda: commit.exists() and len(lines(lab.folder / "ran.txt")) >= 2)
    kill(lab)


def test_a_new_kernel_takes_up_the_run_of_a_killed_one(lab: Notebook, tmp_path: Path) -> None:
    start_and_kill(lab)
    with restarted(tmp_path) as book:
        said = book.ok("%load_ext flowbook").stdout
        assert "run 1 of book is running (2 of 4 tasks)" in said or "run 1 of book is running" in said
        assert "`%flow attach`" in said

        shown = book.ok("%flow attach")
        assert "train" in shown.text and "running" in shown.text
        assert book.value("train[0].score, factor, start.xs") == "(10, 10, [1, 2, 3])"
        (tmp_path / "go").touch()
        assert book.value("top") == "30"

        for cell in FLOW:  # the cells run again, unchanged: nothing is stale
            book.ok(cell)
        cell = book.ok("print(top, factor, train[1].score)")
        assert cell.stdout.split() == ["30", "10", "20"] and cell.stderr == ""
        assert sorted(lines(tmp_path / "ran.txt")) == ["1", "2", "3"]


def kill_engine(folder: Path) -> None:
    for entry in (folder / "store/default/local/engines").glob("*.json"):
        os.kill(json.loads(entry.read_text())["pid"], signal.SIGKILL)


def test_the_new_kernel_goes_on_with_the_old_engine(lab: Notebook, tmp_path: Path) -> None:
    start_and_kill(lab)
    before = [p.name for p in (tmp_path / "store/default/local/engines").glob("*.json")]
    with restarted(tmp_path) as book:
        book.ok("%load_ext flowbook")
        assert "running" in book.ok("%flow runs").stdout and "running" in book.ok("%flow status").text
        (tmp_path / "go").touch()
        book.ok("%flow wait")
        for cell in FLOW:
            book.ok(cell)
        book.ok("%flow run --wait")

        assert [p.name for p in (tmp_path / "store/default/local/engines").glob("*.json")] == before


def test_a_run_whose_engine_was_killed_too_is_adopted(lab: Notebook, tmp_path: Path) -> None:
    start_and_kill(lab)
    kill_engine(tmp_path)
    with restarted(tmp_path, allow_stdin=False) as book:
        said = book.ok("%load_ext flowbook").stdout
        assert "run 1 of book is open" in said and "its engine is gone" in said
        assert "open (its engine is gone; `%flow attach 1` goes on with it)" in book.ok("%flow runs").stdout
        assert "`%flow attach 1`" in book.ok("%flow status").text
        assert book.value("flow[1].state") == "'lost'"
        assert "nothing of run 1 runs" in book.ok("%flow stop").stdout and "%flow attach 1" in book.fails("%flow wait 1")

        (tmp_path / "go").touch()
        shown = book.ok("%flow attach")
        assert "goes on with it" in shown.stderr and "succeeded" in shown.text
        assert book.value("top, train[2].score, flow[1].state") == "(30, 30, 'succeeded')"
        ran = lines(tmp_path / "ran.txt")
        assert ran.count("1") == 1 and set(ran) == {"1", "2", "3"}


def test_resume_goes_on_with_a_run_that_was_left_open(lab: Notebook, tmp_path: Path) -> None:
    start_and_kill(lab)
    kill_engine(tmp_path)
    (tmp_path / "go").touch()
    with restarted(tmp_path, allow_stdin=False) as book:
        book.ok("%load_ext flowbook")
        assert "goes on with it" in book.ok("%flow resume").stderr
        assert book.value("top, flow[1].id") == "(30, '1')"
        assert [p.name for p in (tmp_path / "store/default/flows/book").iterdir()] == ["1"]


def test_an_engine_killed_under_a_living_kernel_is_replaced_by_attach(lab: Notebook, tmp_path: Path) -> None:
    for cell in FLOW:
        lab.ok(cell)
    lab.ok("%flow run")
    until(lambda: len(lines(tmp_path / "ran.txt")) >= 2)
    kill_engine(tmp_path)
    assert "%flow attach 1" in lab.fails("%flow wait")
    (tmp_path / "go").touch()
    lab.ok("%flow attach")

    assert lab.value("top") == "30"


def test_an_ended_run_comes_back_with_names_outputs_and_resume(book: Notebook, tmp_path: Path) -> None:
    book.ok("%%flowparams\nn: int = 2")
    book.ok("%%flowstep a\nprint('said by a')\nx = n * 10")
    book.ok("%%flowstep b\nimport os\nassert os.path.exists('mended')\ny = x + 1")
    book.fails("%flow run --n 3")
    kill(book)
    with restarted(tmp_path, allow_stdin=False) as new:  # nobody is there to attach it
        assert new.ok("%load_ext flowbook").text == ""
    with restarted(tmp_path) as new:
        assert "run 1 of book failed just now: `%flow attach`" in new.ok("%load_ext flowbook").stdout
        assert "said by a" in new.ok("%flow logs a").stdout and "x" in new.ok("%flow artifacts 1").text
        shown = new.ok("%flow attach 1")
        assert "said by a" in shown.text and "failed" in shown.text
        assert new.value("x, n, flow[1].params") == "(30, 3, {'n': 3})"
        assert "AssertionError" in new.fails("y")
        new.ok("%%flowstep a\nprint('said by a')\nx = n * 10")
        assert "`n`" in new.fails("%flow run a")  # the value of an earlier run is never captured
        new.ok("%%flowparams\nn: int = 2")
        assert new.value("n") == "2"
        new.ok("%%flowstep a\nprint('said by a')\nx = n * 10")
        new.ok("%%flowstep b\nimport os\nassert os.path.exists('mended')\ny = x + 1")
        (tmp_path / "mended").touch()
        assert "from run 1" in new.ok("%flow resume 1 --wait").text
        assert new.value("x, y") == "(30, 31)"


def test_a_cell_that_was_changed_after_the_restart_is_stale(book: Notebook, tmp_path: Path) -> None:
    book.ok("%%flowstep a\nx = 1  # one")
    book.ok("%flow run")
    kill(book)
    with restarted(tmp_path) as new:
        new.ok("%load_ext flowbook")
        new.ok("%flow attach")
        new.ok("%%flowstep a\nx = 1  # another comment")
        assert new.ok("print(x)").stderr == ""
        new.ok("flow.attach(1)")
        new.ok("%%flowstep a\nx = 2")
        assert "stale" in new.ok("print(x)").stderr


def test_at_gives_the_names_of_an_earlier_run(book: Notebook) -> None:
    book.ok("%%flowparams\nn: int = 1")
    book.ok("%%flowstep a\nx = n")
    book.ok('%%flowstep each --foreach "i in range(2)"\ny = x + i')
    book.ok("%flow run --n 1\n%flow run a --n 2\n%flow run --n 3")
    assert book.value("x") == "3"
    assert "names of run 1 (succeeded): a, each, x" in book.ok("%flow at 1").stdout
    assert book.value("x, each[1].y, n") == "(1, 2, 1)"
    book.ok("flow.at(2)")
    assert "is not in run 2" in book.fails("each[0]") and book.value("x") == "2"
    assert "names of run 3" in book.ok("%flow at").stdout
    assert book.value("x, each[0].y") == "(3, 3)"
    book.ok("%flow at 1\n%flow run --n 4")
    assert book.value("x, each[0].y") == "(4, 4)"


def test_wrong_runs_are_answered_with_those_there_are(book: Notebook) -> None:
    for command in ("attach", "at", "status", "wait", "artifacts", "resume", "logs --run", "stop --run"):
        assert "nothing was run yet" in book.fails(f"%flow {command.split()[0]}")
    book.ok("%%flowstep a\nx = 1")
    book.ok("%flow run")
    for command in ("attach", "at", "status", "wait", "artifacts", "resume", "logs --run", "stop --run"):
        said = book.fails(f"%flow {command} 99")
        assert "no run 99 of book" in said and "Runs of book: 1." in said
    assert "no run" in book.fails("%flow attach ../1") and "nothing was run" in book.fails("%flow attach --flow other")
    assert "no run nine" in book.fails("flow['nine']")


def test_a_damaged_run_is_named_and_does_not_hinder_the_others(book: Notebook, tmp_path: Path) -> None:
    book.ok("%%flowstep a\nx = 1")
    book.ok("%flow run\n%flow run")
    path = tmp_path / "store/default/flows/book/2/run.json"
    path.chmod(0o600)
    path.write_text("{")
    kill(book)
    with restarted(tmp_path) as new:
        assert new.ok("%load_ext flowbook").text == ""
        assert "damaged" in new.fails("%flow attach 2")
        new.ok("%flow attach 1")
        assert new.value("x") == "1"


def test_a_run_of_another_kernel_is_followed_and_stopped(lab: Notebook, tmp_path: Path) -> None:
    """The other kernel has another notebook, and so another engine, but runs the same flow."""
    lab.ok("%flow defaults")
    for cell in FLOW:
        lab.ok(cell)
    lab.ok("%flow run")
    until(lambda: len(lines(tmp_path / "ran.txt")) >= 2)
    other = Notebook(tmp_path, allow_stdin=True, kernel_env={"FLOWBOOK_NOTEBOOK": str(tmp_path / "other.ipynb")})
    try:
        assert other.ok("%load_ext flowbook").text == ""
        other.ok("%flow attach --flow book")
        assert other.value("train[0].score") == "10"
        assert "asked to stop" in other.ok("%flow stop --flow book").stdout
        assert "stopped" in other.fails("%flow wait --flow book")
    finally:
        other.close()
    assert "stopped" in lab.fails("%flow wait")


def test_a_connection_that_breaks_is_made_anew(lab: Notebook, tmp_path: Path) -> None:
    for cell in FLOW:
        lab.ok(cell)
    lab.ok("%flow run")
    until(lambda: len(lines(tmp_path / "ran.txt")) >= 2)
    lab.ok(
        "import socket\nfrom flowbook.kernel.session import current_session\n"
        "current_session().engine._own.socket.shutdown(socket.SHUT_RDWR)"
    )
    (tmp_path / "go").touch()
    lab.ok("%flow wait")

    assert lab.value("top, flow[1].state") == "(30, 'succeeded')"


def test_a_process_forked_from_the_kernel_leaves_the_connection_alone(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1")
    book.ok("%flow run")
    book.ok(
        "import multiprocessing\n"
        "def work(pipe):\n"
        "    try:\n        flow.run()\n"
        "    except BaseException as error:\n        pipe.send(str(error))\n"
        "ours, theirs = multiprocessing.Pipe()\n"
        "child = multiprocessing.get_context('fork').Process(target=work, args=(theirs,))\n"
        "child.start()\nsaid = ours.recv()\nchild.join()"
    )
    assert "forked from the notebook's kernel" in book.value("said")
    book.ok("%flow run")

    assert book.value("x, flow[2].state") == "(1, 'succeeded')"


def test_a_failure_of_a_cell_that_waits_is_shown_once(lab: Notebook) -> None:
    lab.ok("%%flowstep a\n1 / 0")
    cell = lab.run("%flow run --wait")
    pages = " ".join(d.get("text/html", "") for d in cell.displays.values())
    assert cell.error is not None and "ZeroDivisionError" in cell.error and "ZeroDivisionError" not in pages

    assert "ZeroDivisionError" in "".join(d.get("text/html", "") for d in lab.ok("%flow status").displays.values())


# ---- the client alone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store({"kind": "files", "root": str(tmp_path / "store")})


@contextmanager
def listening(folder: Path) -> Iterator[str]:
    """Something that lets others connect, and never says a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(folder / "s"))
        server.listen()
        yield str(folder / "s")


@pytest.mark.parametrize("wrong", [{"notebook": "/other.ipynb"}, {"version": "0.0"}, {"python": "/other/python"}, {"socket": "/gone"}])
def test_an_engine_of_something_else_or_that_is_dead_is_not_taken_over(store: Store, tmp_path: Path, wrong: dict[str, str]) -> None:
    (store.local_dir() / registry.FOLDER).mkdir()
    (store.local_dir() / registry.FOLDER / "7.json").write_text("junk")
    with listening(tmp_path) as path:
        known = {"socket": path, "folder": "", "version": __version__, "python": sys.executable, "notebook": "/a.ipynb"}
        registry.enter(store, registry.Entry(pid=1, **{**known, **wrong}))
        engine = Engine(store, notebook="/a.ipynb")
        engine.start()
        try:
            assert engine.pid is not None
        finally:
            engine.close()
            os.kill(engine.pid or 0, signal.SIGKILL)


def test_an_engine_that_does_not_answer_drives_nothing(store: Store, tmp_path: Path) -> None:
    with listening(tmp_path) as path:
        registry.enter(store, registry.Entry(1, path, "", __version__, sys.executable))

        assert Engine(store).driven(timeout_s=0.05) == {}


def test_events_that_cannot_be_understood_end_the_wait(store: Store) -> None:
    engine, view = Engine(store), RunView(Spec("f", "1", ()))
    engine.views["f", "1"] = view
    engine._heard({"say": "events", "flow": "f", "run": "1", "events": [{"e": "launched", "at": 1.0, "step": "nobody", "index": []}]})

    assert view.ended == "lost" and "cannot be followed" in str(view.trouble)


def test_events_that_come_once_more_are_applied_once() -> None:
    view = RunView(Spec("f", "1", ()))
    for _ in range(2):
        view.apply({"e": "run_started", "at": 1.0})
        view.again()
    view.apply({"e": "run_started", "at": 1.0})
    view.apply({"e": "run_ended", "at": 2.0, "state": "succeeded"})

    assert (view.started_at, view.ended) == (1.0, "succeeded")
