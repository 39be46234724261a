"""The commands, names and files that the main road does not pass: each in a real kernel."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kernel.conftest import Notebook


def test_show_lists_what_a_step_reads_and_captures_with_origin_and_hash(book: Notebook) -> None:
    book.ok("import math\nfactor = 2.5\ndef scaled(x):\n    return math.floor(x * factor)")
    book.ok("%%flowstep a\nx = 3")
    book.ok("%%flowstep b\ny = scaled(x)")
    said = book.ok("%flow show b").stdout

    rows = {line.split()[0]: line.split() for line in said.splitlines() if line and not line.startswith("step")}
    assert rows["x"][1:4] == ["artifact", "step", "a"]
    assert rows["scaled"][1:4] == ["function", "Cell", "In[2]"]
    assert rows["factor"][1] == "data" and rows["math"][1] == "module"


def test_graph_is_svg_with_a_text_form(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 3")
    book.ok("%%flowstep b\ny = x")
    shown = next(iter(book.ok("%flow graph").displays.values()))

    assert "<svg" in shown["text/html"] and "a" in shown["text/plain"] and "b" in shown["text/plain"]


def test_help_completion_and_defaults(book: Notebook) -> None:
    assert "resume" in book.ok("%flow").stdout
    assert "--max-parallel" in book.ok("%flow run?").text
    book.ok("%%flowstep alpha\nx = 1")
    for typed, wanted in (("%flow ru", "run"), ("%flow run --max-p", "parallel"), ("%%flowstep b --joi", "join")):
        matches = book.client.complete(typed, reply=True, timeout=30)["content"]["matches"]
        assert any(wanted in match for match in matches), (typed, matches)
    book.ok("%flow defaults --retry 2 --cpu 1")
    book.ok("%flow run")
    spec = json.loads((book.folder / "store/default/flows/book/1/run.json").read_text())
    assert spec["steps"][0]["options"]["retry"]["times"] == 2


def test_a_cell_id_defines_one_step(book: Notebook, tmp_path: Path) -> None:
    cells = [{"id": i, "cell_type": "code", "source": "", "metadata": {}, "outputs": [], "execution_count": None} for i in ("c1", "c2")]
    path = tmp_path / "book.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    book.ok("%%flowstep a\nx = 1", "c1")
    assert "already defined" in book.fails("%%flowstep a\nx = 2", "c2")
    assert "now called b" in book.ok("%%flowstep b\nx = 3", "c1").stdout

    book.ok("%%flowstep c\ny = 1", "c2")
    path.write_text(json.dumps({"cells": cells[:1], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert "c is dropped" in book.ok("%flow run").text
    assert book.value("x") == "3"


def test_files_travel_as_artifacts_and_input_files_are_pinned(book: Notebook, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    book.ok("from flowbook import File")
    book.ok("%%flowstep make --files '*.csv'\nopen('out.txt', 'w').write(open('in.csv').read() * 2)\nreport = File('out.txt')")
    book.ok("%flow run")
    (tmp_path / "out.txt").unlink()
    assert book.value("report.read_text()") == "'a,b\\n1,2\\na,b\\n1,2\\n'"

    book.ok("%%flowstep make --files '*.nothing'\nx = 1")
    assert "matches no file" in book.fails("%flow run")


def test_a_value_too_large_for_the_free_memory_is_not_loaded_unasked(book: Notebook) -> None:
    book.ok("%%flowstep a\nbig = bytes(3_000_000)")
    book.ok("%flow run")
    book.ok("import flowbook.kernel.names as n\nn.MEMORY_SHARE = 10**6")
    said = book.fails("len(big)")

    assert "3.0 MB" in said and "flow.load('big')" in said
    assert book.value("len(flow.load('big'))") == "3000000"


def test_arrays_come_back_writable_and_tables_show_a_sweep(book: Notebook) -> None:
    book.ok("%%flowstep a\nimport numpy as np\ngrid = np.arange(1_000_000.0)")
    book.ok('%%flowstep each --foreach "k in [1, 2]"\nsquare = k * k')
    book.ok("%flow run")
    book.ok("grid[0] = 5.0")

    assert book.value("grid[0], grid[1], grid.flags.writeable") == "(np.float64(5.0), np.float64(1.0), True)"
    assert book.value("list(each.table().columns)[:2], each.table()['square'].tolist()") == "(['k', 'square'], [1, 4])"


def test_a_table_has_items_and_last_metrics_of_tasks_that_still_run_and_after_the_end(lab: Notebook, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.02)"
    lab.ok(f"%%flowstep each --foreach 'k in [3, 4]'\ncard.metric('loss', 1.0)\ncard.metric('loss', k / 10)\n{wait}\nsquare = k * k")
    lab.ok("%flow run")
    lab.ok("import time\nwhile 'loss' not in each.table() or each.table()['loss'].tolist() != [0.3, 0.4]:\n    time.sleep(0.02)")
    shown = "each.table()[['k', 'loss', 'state']].values.tolist()"

    assert lab.value(shown) == "[[3, 0.3, 'running'], [4, 0.4, 'running']]"
    go.touch()
    lab.ok("%flow wait")
    assert lab.value(shown) == "[[3, 0.3, 'succeeded'], [4, 0.4, 'succeeded']]"
    assert lab.value("list(each.table().columns)") == "['k', 'loss', 'square', 'state', 'seconds']"


def test_several_flows_in_one_notebook_and_two_runs_side_by_side(lab: Notebook) -> None:
    lab.ok("%%flowstep a --flow one\nx1 = 1")
    lab.ok("%%flowstep b --flow two\nx2 = 2")
    lab.ok("%flow run --flow one\n%flow run --flow two")
    assert lab.value("x1, x2") == "(1, 2)"

    lab.ok("runs = [flow.run(flow='one') for _ in range(2)]")
    lab.ok("for r in runs:\n    await r")
    assert lab.value("[r.state for r in runs], len({r.id for r in runs})") == "(['succeeded', 'succeeded'], 2)"
    assert "succeeded" in lab.ok("%flow runs --flow one").stdout


def test_min_ok_lets_a_sweep_go_on_and_tells_who_failed(book: Notebook) -> None:
    book.ok('%%flowstep try_all --foreach "x in [1, 0, 2]" --min-ok 60%\ny = 1 / x')
    book.ok("%%flowstep gather --join try_all\ngood = [t.y for t in try_all if t.ok]\nwhy = [t.error.message for t in try_all if not t.ok]")
    book.ok("%flow run")

    assert book.value("good, why") == "([1.0, 0.5], ['division by zero'])"


def test_retry_tries_again_and_the_attempt_is_known(book: Notebook, tmp_path: Path) -> None:
    book.ok(
        "%%flowstep flaky --retry 2 --minutes-between-retries 0\nfrom flowbook import current\nassert current.attempt == 2\nn = current.attempt"
    )
    book.ok("%flow run")

    assert book.value("n") == "2"


def test_local_modules_go_as_they_are_when_the_run_starts(book: Notebook, tmp_path: Path) -> None:
    (tmp_path / "helpers_of_mine.py").write_text("def f():\n    return 'first'\n")
    book.ok("import helpers_of_mine")
    book.ok("%%flowstep a\nx = helpers_of_mine.f()")
    book.ok("%flow run")
    (tmp_path / "helpers_of_mine.py").write_text("def f():\n    return 'second'\n")
    assert book.value("x") == "'first'"
    book.ok("%flow run")
    assert book.value("x") == "'second'"
