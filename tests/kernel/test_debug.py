"""`%flow debug`: a task again in the kernel, with its own inputs, in the user's own cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import Notebook

HELPER = "def ratio(a, b):\n    return a / b"
START = "%%flowstep start\nxs = [1, 0, 2]\nconfig = {'scale': 10}"
TRAIN = '%%flowstep train --foreach "x in xs"\n\nbefore = x * 2\nscore = ratio(config["scale"], x)'


@pytest.fixture
def failed(book: Notebook) -> Notebook:
    """A run whose task train[1] failed in a function of the notebook."""
    book.ok(HELPER)
    book.ok(START)
    book.ok(TRAIN)
    assert "ZeroDivisionError" in book.fails("%flow run")
    return book


def test_the_first_failed_task_runs_in_the_kernel_and_its_traceback_is_the_users(failed: Notebook) -> None:
    cell = failed.run("%flow debug")

    assert "train[1] of run 1: xs" not in cell.stdout and "config from start" in cell.stdout and "x = 0" in cell.stdout
    assert cell.ename == "ZeroDivisionError" and cell.error is not None
    assert "Cell In[4], line 4" in cell.error and "Cell In[2], line 2" in cell.error
    assert '----> 4 score = ratio(config["scale"], x)' in cell.error and "----> 2     return a / b" in cell.error
    assert "/flowbook/" not in cell.error


def test_a_post_mortem_stops_in_the_users_line_with_the_tasks_variables(failed: Notebook) -> None:
    failed.run("%flow debug train[1]")
    frames = failed.value("[f.f_code.co_name for f, _ in __import__('traceback').walk_tb(__import__('sys').last_traceback)][-2:]")
    assert frames == "['<module>', 'ratio']"
    assert failed.value("x, before, config") == "(0, 0, {'scale': 10})"
    said = failed.run(
        "import sys, io\nfrom IPython.core.debugger import Pdb\n"
        "p = Pdb(stdin=io.StringIO('up\\np x, before\\nq\\n'), stdout=sys.stdout)\np.use_rawinput = False\n"
        "p.reset()\np.interaction(None, sys.last_traceback)"
    ).stdout
    assert "(0, 0)" in said and "score = ratio(config" in said


def test_the_code_has_the_name_of_its_cell_so_that_breakpoints_hit(failed: Notebook) -> None:
    failed.run("%flow debug train[1]")
    raw = TRAIN
    name = "list(__import__('traceback').walk_tb(__import__('sys').last_traceback))[-2][0].f_code.co_filename"
    assert failed.value(f"{name} == get_ipython().compile.get_code_name({raw!r}, {raw!r}, 4)") == "True"


def test_a_mended_function_makes_it_pass_and_the_next_run_takes_the_names_back(failed: Notebook) -> None:
    failed.ok("def ratio(a, b):\n    return a / b if b else 0.0")
    cell = failed.ok("%flow debug train[1]")
    assert "train[1] ran through; it bound before, score" in cell.stdout
    assert failed.value("score, before") == "(0.0, 0)"

    resumed = failed.ok("%flow resume")
    assert "flow.mine" not in resumed.text
    assert failed.value("[t.score for t in train], config, 'score' in globals(), 'x' in globals()") == (
        "([10.0, 0.0, 5.0], {'scale': 10}, False, False)"
    )


def test_a_mended_cell_runs_as_it_is_now(failed: Notebook) -> None:
    failed.ok(TRAIN.replace("ratio(config", "ratio(1 + config").replace(", x)", ", x or 11)"))
    said = failed.ok("%flow debug train[1]").stdout

    assert "the cell was changed since run 1" in said
    assert failed.value("score") == "1.0"


def test_captured_data_is_that_of_the_run_and_the_users_own_comes_back(book: Notebook) -> None:
    book.ok("limits = {'low': 1}\nsame = [1]")
    book.ok("%%flowstep a\nx = limits['low'] + same[0]\nlimits.update(low=99)\n1 / 0")
    book.fails("%flow run")
    book.ok("limits = {'low': 5}")  # the cell above, run again with another value
    cell = book.run("%flow debug")

    assert cell.ename == "ZeroDivisionError"
    assert "`limits` as captured by the run" in cell.stdout and "same" not in cell.stdout
    assert book.value("x, limits") == "(2, {'low': 99})"
    book.ok("%%flowstep b\ny = 1")
    assert book.value("limits, same") == "({'low': 5}, [1])"


def test_a_name_that_the_user_sets_after_debugging_stays_the_users(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1\nn = 7\n1 / 0")
    book.run("%flow run")
    book.run("%flow debug")
    book.ok("n = 7\nk = 1")
    assert "flow.mine" in book.ok("%%flowstep a\nx = 1\nn = 7").text


def test_setup_seeds_current_joins_parameters_and_environment_are_the_tasks(book: Notebook) -> None:
    book.ok("%%flowsetup\nunit = 'm'")
    book.ok("%%flowparams\nepochs: int = 1")
    book.ok('%%flowstep each --foreach "i in [5, 6]"\nsquare = i * i')
    body = (
        "import os, random\nfrom flowbook import current\n"
        "drawn = random.random()\nseen = (unit, epochs, [t.square for t in each], current.task, current.run, os.environ['MODE'])"
    )
    book.ok(f"%%flowstep gather --join each --env MODE=fast\n{body}")
    book.ok("%flow run --epochs 3")
    kept = book.value("drawn, seen")
    assert "('m', 3, [25, 36], 'gather', '1', 'fast')" in kept
    assert "ran through" in book.ok("%flow debug gather").stdout

    assert book.value("drawn, seen") == kept
    assert book.value("current.task, 'MODE' in __import__('os').environ") == "('', False)"


def test_await_and_the_last_value_work_as_in_a_cell(book: Notebook) -> None:
    book.ok("%%flowstep a\nimport asyncio\nawait asyncio.sleep(0)\nx = 5\n{'answer': x}")
    book.ok("%flow run")

    assert "'answer': 5" in book.ok("flow.debug('a')").text
    book.ok("%%flowstep a\nimport asyncio\nawait asyncio.sleep(0)\n1 / 0")
    said = book.fails("flow.debug('a')")
    assert "----> 4 1 / 0" in said and "runners.py" not in said


def test_breakpoint_stops_in_the_cell(failed: Notebook) -> None:
    failed.ok("import sys\nseen = []\nsys.breakpointhook = lambda: seen.append((sys._getframe(1).f_lineno, x))")
    failed.ok('%%flowstep train --foreach "x in xs"\n\nbefore = x * 2\nbreakpoint()\nscore = before')
    failed.ok("%flow debug train[2]")

    assert failed.value("seen") == "[(4, 2)]"


def test_wrong_tasks_and_runs_are_named(failed: Notebook) -> None:
    assert "did you mean 'train'" in failed.fails("%flow debug trian")
    assert "train[0] to train[2]" in failed.fails("%flow debug train[9]")
    assert "STEP[2]" in failed.fails("%flow debug train[x]")
    assert "no run 7" in failed.fails("%flow debug train --run 7")
    failed.ok("%%flowstep end --join train\nn = len(train)")
    failed.fails("%flow run")
    assert "did not get its inputs" in failed.fails("%flow debug end")


def test_without_a_failure_it_asks_for_a_task(book: Notebook) -> None:
    assert "nothing was run" in book.fails("%flow debug")
    book.ok("%%flowstep a\nx = 1")
    book.ok("%flow run")
    assert "no task of run 1 failed" in book.fails("%flow debug")
    book.ok('%%flowstep each --foreach "y in 1 // 0"\nz = y')
    book.fails("%flow run")
    assert "1 // 0" in book.fails("%flow debug")


def test_a_variable_that_the_flow_took_is_captured_as_it_was_set_last(book: Notebook) -> None:
    book.ok("k = [1]")
    book.ok("%%flowstep a\nk += [2]")
    book.ok("%flow run")
    assert book.value("k, flow.mine['k']") == "([1, 2], [1])"
    book.ok("k = [5]")
    book.ok("%flow run")

    assert book.value("k, flow.mine['k']") == "([5, 2], [5])"


def test_a_task_of_an_earlier_kernel_is_debugged_before_any_cell_has_run(failed: Notebook, tmp_path: Path) -> None:
    failed.close()
    new = Notebook(tmp_path)
    try:
        new.ok("%load_ext flowbook")
        cell = new.run("%flow debug")
        assert cell.ename == "ZeroDivisionError" and cell.error is not None
        assert '----> 4 score = ratio(config["scale"], x)' in cell.error and "/flowbook/" not in cell.error
        assert new.value("x, before, ratio(4, 2)") == "(0, 0, 2.0)"

        new.ok("def ratio(a, b):\n    return -1")
        new.ok("%flow debug train[1] --run 1")
        assert new.value("score") == "-1"
    finally:
        new.close()


def test_the_random_state_of_the_kernel_is_left_alone(book: Notebook) -> None:
    book.ok("%%flowstep a\nimport random\nx = random.random()")
    book.ok("%flow run")
    book.ok("import random\nrandom.seed(1)\nfirst = random.random()\nrandom.seed(1)")
    book.ok("%flow debug a")

    assert book.value("random.random() == first") == "True"


def test_a_breakpoint_of_the_visual_debugger_hits_in_the_cell(failed: Notebook) -> None:
    """As JupyterLab does it: the cell is known by the file name that the kernel gives its text."""
    pytest.importorskip("debugpy")
    number = iter(range(1, 100))

    def ask(command: str, **arguments: object) -> dict[str, Any]:
        content = {"type": "request", "seq": next(number), "command": command, "arguments": arguments}
        message = failed.client.session.msg("debug_request", content)
        failed.client.control_channel.send(message)
        while True:
            reply = failed.client.get_control_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return dict(reply["content"].get("body") or {})

    ask("initialize", clientID="test", adapterID="", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
    ask("attach")
    path = ask("dumpCell", code=TRAIN)["sourcePath"]
    ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 4}], lines=[4], sourceModified=False)
    ask("configurationDone")
    running = failed.start("%flow debug train[2]")
    while True:
        message = failed.client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "debug_event" and message["content"]["event"] == "stopped":
            break
    thread = message["content"]["body"]["threadId"]
    frame = ask("stackTrace", threadId=thread)["stackFrames"][0]
    assert (frame["source"]["path"], frame["line"]) == (path, 4)
    assert ask("evaluate", expression="x, before", frameId=frame["id"])["result"] == "(2, 4)"
    ask("continue", threadId=thread)

    assert "ran through" in failed.finish(running).stdout
