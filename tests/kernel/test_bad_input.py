"""Everything that can be written wrongly or go wrong, and what a person then reads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import Notebook, waits_for


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("%%flowstep a --foreahc 'x in xs'\ny = 1", ["--foreahc", "did you mean --foreach"]),
        ("%%flowstep class\ny = 1", ["class", "keyword"]),
        ("%%flowstep ../etc\ny = 1", ["../etc"]),
        ("%%flowstep a --memory 32\ny = 1", ["--memory", "32GB"]),
        ("%%flowstep a --env PASSWORD=hunter2secret\ny = 1", ["--env"]),
        ("%%flowstep a\nx = !ls", ["line 2", "!"]),
        ("%%flowstep a\n%time x = 1", ["line 2", "%"]),
        ("%%flowstep a\nx = 1\nreturn x", ["line 3", "return"]),
        ("%%flowstep a\nyield 1", ["line 2", "yield"]),
        ("%%flowstep a\nfrom math import *", ["line 2", "import *"]),
        ("%%flowstep a\nname = input('?')", ["line 2", "input"]),
        ("%%flowstep a\n\nx = (1,\ny = ]", ["line 4"]),
        ("%%flowstep a --when 'x >'\ny = 1", ["--when"]),
        ("%%flowparams\nwait = 3", ["wait", "option of `%flow run`"]),
        ("%%flowparams\nepochs: int = 'many'", ["epochs", "int"]),
        ("%flow rnu", ["did you mean `%flow run`"]),
        ("%flow run", ["no step is defined yet"]),
        ("%flow defaults --gpuu 1", ["--gpuu", "--gpu"]),
    ],
)
def test_what_is_written_wrongly_is_said_with_its_place(shared: Notebook, cell: str, says: list[str]) -> None:
    said = shared.fails(cell)

    for part in says:
        assert part in said, said


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One kernel for the tables: none of its cells defines anything that lasts."""
    notebook = Notebook(tmp_path_factory.mktemp("bad"))
    notebook.ok("%load_ext flowbook")
    yield notebook
    notebook.close()


def test_the_graph_is_checked_and_all_findings_come_at_once(book: Notebook) -> None:
    book.ok("%%flowstep first\nx = later_made + 1")
    book.ok("%%flowstep second\nlater_made = 1\ny = lerning_rate")
    book.ok("learning_rate = 0.1")
    said = book.fails("%flow run")

    assert "later_made" in said and "second" in said
    assert "lerning_rate" in said and "learning_rate" in said


def test_unknown_steps_in_after_and_join_name_the_nearest(book: Notebook) -> None:
    book.ok("%%flowstep train\nx = 1")
    book.ok("%%flowstep pick --join trian\ny = 1")
    assert "train" in book.fails("%flow run")

    book.ok("%%flowstep pick --after trian\ny = 1")
    assert "trian" in book.fails("%flow check")


def test_a_cycle_is_named(book: Notebook) -> None:
    book.ok("%%flowstep a --after b\nx = 1")
    book.ok("%%flowstep b --after a\ny = 1")

    said = book.fails("%flow run")
    assert "a" in said and "b" in said and ("cycle" in said or "below" in said)


def test_unpicklable_captures_and_artifacts_name_variable_and_path(book: Notebook) -> None:
    book.ok("import threading\nclass Box: pass\nbox = Box(); box.inner = {'lock': threading.Lock()}")
    book.ok("%%flowstep use\nx = box")
    said = book.fails("%flow run")
    assert "box.inner['lock']" in said and "use" in said

    book.ok("%flow drop use")
    book.ok("%%flowstep make\nimport threading\nhandle = {'lock': threading.Lock()}\nfine = 1")
    book.ok("%flow run")
    assert "handle" in book.ok("%flow artifacts").text
    book.ok("%%flowstep read\nz = handle")
    said = book.fails("%flow run")
    assert "handle['lock']" in said


def test_foreach_over_what_cannot_be_listed(book: Notebook) -> None:
    book.ok("%%flowstep start\nxs = 5\nbig = range(100_001)")
    book.ok('%%flowstep each --foreach "x in xs"\ny = x')
    said = book.fails("%flow run")
    assert "x in xs" in said and "int" in said

    book.ok('%%flowstep each --foreach "x in big"\ny = x')
    assert "100,000" in book.fails("%flow run")

    book.ok('%%flowstep each --foreach "x in [1, (i for i in [1])]"\ny = x')
    assert "item 1" in book.fails("%flow run")


def test_secrets_are_not_captured(book: Notebook) -> None:
    book.ok("api_key = 'abcdefgh12345678'\ncfg = {'password': 'hunter2'}")
    book.ok("%%flowstep use\nx = len(api_key)")
    said = book.fails("%flow run")

    assert "api_key" in said and "--env" in said and "abcdefgh" not in said


def test_a_secret_of_a_cluster_is_not_there_on_this_machine(book: Notebook) -> None:
    book.ok("%%flowstep load --secret kubernetes:db\nx = 1")
    said = book.fails("%flow run")

    assert "kubernetes:db is a Secret of a cluster, and this step runs on this machine" in said and "--with kubernetes" in said
    assert '"secretRef"' in book.ok("%flow show load --pod").text and "no name of a Secret" in book.fails(
        "%%flowstep b --secret kubernetes:A_B\n1"
    )


def test_a_failure_shows_the_users_own_traceback_with_cell_and_line(book: Notebook) -> None:
    book.ok("def ratio(a, b):\n    # a helper of another cell\n    return a / b")
    book.ok("%%flowstep start\nxs = [1, 0, 2]")
    book.ok('%%flowstep train --foreach "x in xs"\nprint("trying", x)\n\nr = ratio(1, x)')
    book.ok("%%flowstep end --join train\nn = len(train)")
    said = book.fails("%flow run")

    assert "ZeroDivisionError" in said
    assert "Cell In[4], line 4" in said and "Cell In[2], line 3" in said
    assert "----> 4 r = ratio(1, x)" in said and "----> 3     return a / b" in said
    assert "train[1]" in said and "item 0" in said and "trying 0" in said
    assert "2 of 3 tasks of train succeeded" in said and "%flow resume" in said
    assert "train[1]" in book.fails("n")
    assert book.value("train[2].r, train[0].ok, train[1].ok") == "(0.5, True, False)"


def test_resume_runs_only_what_is_missing(book: Notebook, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    book.ok("%%flowstep start\nimport os\nxs = [1, 2, 3]\npid = os.getpid()")
    book.ok(
        f'%%flowstep train --foreach "x in xs"\nimport os\npid = os.getpid()\nassert x != 2 or os.path.exists({str(flag)!r}), "not yet"'
    )
    book.ok("%%flowstep end --join train\npids = [t.pid for t in train]")
    assert "not yet" in book.fails("%flow run")
    before = book.value("[start.pid, train[0].pid, train[2].pid]")
    flag.touch()
    shown = book.ok("%flow resume")

    assert "from run 1" in shown.text
    assert book.value("[pid, pids[0], pids[2]]") == before


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import sys\nsys.exit(3)", ["sys.exit", "3"]),
        ("import os\nos._exit(0)", ["_exit"]),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", ["kill"]),
        ("1 +* 2" if False else "undefined_thing_made_by_exec = eval('nothing_here')", ["NameError", "nothing_here"]),
    ],
)
def test_bodies_that_end_their_process(book: Notebook, body: str, says: list[str]) -> None:
    book.ok(f"%%flowstep bad\nprint('last words')\n{body}")
    said = book.fails("%flow run")

    for part in says:
        assert part.lower() in said.lower(), said
    assert "last words" in said


def test_memory_and_time_are_ceilings(book: Notebook) -> None:
    book.ok("%%flowstep eat --memory 200MB\nimport time\nb = bytearray(600_000_000)\ntime.sleep(30)")
    said = book.fails("%flow run")
    assert "memory" in said and "200" in said

    book.ok("%flow drop eat")
    book.ok("%%flowstep slow --timeout 1s\nimport time\ntime.sleep(60)")
    assert "1" in (said := book.fails("%flow run")) and "time" in said.lower()


def test_forks_threads_floods_and_odd_bytes_do_no_harm(book: Notebook) -> None:
    book.ok("%%flowstep forks\nimport os\npid = os.fork()\nx = 1")
    book.ok("%%flowstep threads\nimport threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\ny = 1")
    book.ok("%%flowstep floods\nimport sys\nfor _ in range(200):\n    sys.stdout.write('x' * 999_999 + '\\n')\nz = 1")
    book.ok("%%flowstep odd\nimport os\nos.write(1, b'\\xff\\xfe\\x00 odd\\n')\nw = 1")
    book.ok("%flow run")

    assert book.value("x, y, z, w") == "(1, 1, 1, 1)"


def test_a_step_that_changes_an_input_by_a_call_is_never_silent(book: Notebook) -> None:
    book.ok("%%flowstep start\nresults = []")
    book.ok("%%flowstep add\nresults.append(1)")
    book.ok("%%flowstep use\nn = len(results)")
    said = book.fails("%flow run")
    assert "results" in said and "--out +results" in said

    book.ok("%%flowstep add --out +results\nresults.append(1)")
    book.ok("%flow run")
    assert book.value("n") == "1"


def test_a_capture_that_was_rebound_below_its_step_is_an_error_naming_both_cells(book: Notebook, tmp_path: Path) -> None:
    import json

    cells = [
        {"id": i, "cell_type": "code", "source": "", "metadata": {}, "outputs": [], "execution_count": None} for i in ("c1", "c2", "c3")
    ]
    (tmp_path / "book.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    book.ok("k = 1", "c1")
    book.ok("%%flowstep use\nx = k", "c2")
    book.ok("k = 2", "c3")
    said = book.fails("%flow run")

    assert "`k`" in said and "Cell In[4]" in said and "Cell In[3]" in said


def test_a_plain_variable_gives_way_with_one_line_and_is_kept(book: Notebook) -> None:
    book.ok("x = 'mine'")
    assert "flow.mine" in book.ok("%%flowstep a\nx = 1").stdout
    book.ok("%flow run")

    assert book.value("x, flow.mine['x']") == "(1, 'mine')"


def test_a_placeholder_is_inert_and_says_what_to_do(book: Notebook) -> None:
    book.ok("%%flowstep a\nbest = [1, 2]")
    assert "not run" in book.value("globals()['best']")
    assert "`%flow run` first" in book.fails("best + [3]")
    assert "flow.load('best')" in book.fails("eval('be' + 'st') + [3]")
    assert "%whos" not in book.ok("%whos").text
    book.ok("%flow run")
    assert "ready" in book.value("globals()['best']") and "list" in book.value("globals()['best']")
    assert book.value("best") == "[1, 2]"


def test_a_stale_name_loads_with_a_warning(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1")
    book.ok("%flow run")
    book.ok("%%flowstep a\nx = 2")
    cell = book.ok("print(x)")

    assert "stale" in cell.stderr and "1" in cell.stdout


def test_a_parameter_set_by_a_plain_cell_is_refused(book: Notebook) -> None:
    book.ok("%%flowparams\nn: int = 1")
    book.ok("%%flowstep a\nx = n")
    book.ok("n = 5")
    assert "--n" in book.fails("%flow run")
    assert "n" in book.fails("%flow run --m 3") and "int" in book.fails("%flow run --n many")


def test_two_kernels_on_one_notebook_keep_apart(book: Notebook, tmp_path: Path) -> None:
    other = Notebook(tmp_path)
    try:
        other.ok("%load_ext flowbook")
        for notebook, value in ((book, 1), (other, 2)):
            notebook.ok(f"%%flowstep a\nx = {value}")
        for notebook in (book, other):
            notebook.ok("%flow run")
        assert (book.value("x"), other.value("x")) == ("1", "2")
        assert (book.value("flow[1].state"), other.value("flow[2].state")) == ("'succeeded'", "'succeeded'")
    finally:
        other.close()


def test_a_store_of_a_newer_version_is_refused_in_plain_words(tmp_path: Path) -> None:
    root = tmp_path / "store" / "default"
    root.mkdir(parents=True)
    (root / "store.json").write_text('{"format": 99, "written_by": "9.9"}')
    notebook = Notebook(tmp_path)
    try:
        notebook.run("%load_ext flowbook")
        notebook.run("%%flowstep a\nx = 1")
        said = notebook.run("%flow run").text
        assert "9.9" in said or "newer" in said
    finally:
        notebook.close()


def test_outside_a_kernel_the_python_twin_says_what_to_do() -> None:
    done = subprocess.run([sys.executable, "-c", "from flowbook import flow; flow.run()"], capture_output=True, text=True, check=False)

    assert "%load_ext flowbook" in done.stderr


def test_the_run_goes_on_when_the_kernel_dies(lab: Notebook, tmp_path: Path) -> None:
    lab.ok(f"%%flowstep slow\n{waits_for(tmp_path / 'go')}\nx = 7")
    lab.ok("%flow run")
    lab.manager.shutdown_kernel(now=True)
    (tmp_path / "go").touch()
    commit = tmp_path / "store" / "default" / "flows" / "book" / "1" / "slow" / "0.COMMIT"
    deadline = time.monotonic() + 60
    while not commit.exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    assert commit.exists()


def test_stop_ends_a_run_and_one_task(lab: Notebook) -> None:
    lab.ok('%%flowstep each --foreach "i in range(2)"\nimport time\ntime.sleep(60 if i else 0)\ny = i')
    lab.ok("%flow run")
    lab.ok("import time\nwhile not flow[1]._run.view.state.counts('each').get('succeeded'): time.sleep(0.05)")
    assert "asked to stop each[1]" in lab.ok("%flow stop each[1]").stdout
    assert "stopped" in lab.fails("%flow wait")
    assert lab.value("each[0].y") == "0"
    assert "no step" in lab.fails("%flow stop eahc")
