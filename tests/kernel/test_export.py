"""%flow export in a real kernel: the file is written, run by Python, and its artifacts are those of the notebook's own run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowbook.errors import ArtifactError, FlowbookError
from flowbook.kernel.exporting import definition, export_notebook
from flowbook.store import results
from flowbook.store.base import open_store
from tests.kernel.conftest import Notebook
from tests.kernel.test_law import build, read_plainly


def run(file: Path, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python FILE run` with a store of its own."""
    environ = {**os.environ, "FLOWBOOK_STORE": str(store)}
    return subprocess.run(
        [sys.executable, file.name, "run", *arguments], cwd=file.parent, env=environ, capture_output=True, text=True, check=False
    )


def artifacts(root: Path, flow: str, run_id: str = "1") -> dict[str, Any]:
    """``step[index].name`` → the value as text, of all that the tasks of a run committed; methods also of what they inherit."""
    store = open_store({"kind": "files", "root": str(root / "default")})
    reader = results.Reader(store, flow)
    spec = json.loads(store.get(f"flows/{flow}/{run_id}/run.json"))
    found = {}
    for step in spec["steps"]:
        prefix = f"flows/{flow}/{run_id}/{step['name']}/"
        for key in store.list(prefix):
            task, _, kind = key.removeprefix(prefix).rpartition(".")
            if kind != "COMMIT" or task.endswith("plan"):
                continue
            index = tuple(map(int, task.split("."))) if step.get("scope") else ()
            commit = results.read_commit(store, flow, run_id, step["name"], index) or {}
            entries = reader.visible_names(flow, run_id, step["name"], index) if "method" in step else commit["artifacts"]
            for name, entry in entries.items():
                if entry["kind"] != "module" and not entry.get("definition"):
                    found[f"{step['name']}{list(index)}.{name}"] = shown(reader, entry, name)
    return found


def shown(reader: results.Reader, entry: Any, name: str) -> str:
    """A value as text that is the same in both runs: a task is where it stands, an instance of a class of the notebook its type."""
    try:
        value = reader.load(entry, name)
    except ArtifactError:
        return f"a {entry['type']}"
    return "a task" if isinstance(value, results.FlowInput | results.TaskResult) else repr(value)


def compare(book: Notebook, flow: str = "book") -> str:
    """Export the notebook, run it and the file, and assert that each artifact of the notebook is the same in the class. Gives the text."""
    book.ok("%flow run --fresh")
    book.ok(f"%flow export {flow}.py")
    file = book.folder / f"{flow}.py"
    done = run(file, book.folder / "store of the class")
    assert done.returncode == 0, file.read_text() + done.stdout + done.stderr
    ours, theirs = artifacts(book.folder / "store", flow), artifacts(book.folder / "store of the class", flow)
    assert ours and {name: theirs.get(name) for name in ours} == ours, file.read_text()
    return file.read_text()


# ---- equal artifacts -----------------------------------------------------------------------------------------------------------


def test_the_first_example_gives_the_same_results_as_a_file(book: Notebook) -> None:
    book.ok("%%flowstep start\nlearning_rates = [0.001, 0.01, 0.1]")
    book.ok('%%flowstep train --foreach "lr in learning_rates"\n#| --cpu 1 --memory 2GB --retry 3\nscore = 1 - abs(lr - 0.01)')
    book.ok("%%flowstep pick_best --join train\nbest = max(train, key=lambda task: task.score)\nlr_found = best.lr")

    assert "class book(FlowSpec):" in compare(book)


def test_plain_cells_parameters_and_setup_go_along(book: Notebook) -> None:
    book.ok(
        "import math\nfrom pathlib import Path\nfrom statistics import mean as average\nfactor = 2.5\nLIMIT = 10 * 1024  # bytes\nDATA = Path('d')"
    )
    book.ok("# rounds down\ndef scaled(x):\n    return math.floor(x * factor) + epochs\n\nhalve = lambda x: x / 2")
    book.ok("class Model:\n    '''Two\n    lines.'''\n\n    def fit(self, x):\n        self.made = scaled(x)\n        return self")
    book.ok("%%flowparams\nepochs: int = 3  # how often\nrates = [1, 2]\nname_of = 'x'\nnothing = None")
    book.ok("%%flowsetup\nimport random\nrandom.seed(7)\nOFFSET = 100")
    book.ok("%%flowstep a\ndrawn = random.random()\nmodel = Model().fit(3)\nsize = LIMIT + OFFSET\npath = str(DATA)\ntext = '''a\n  b'''")
    book.ok("%%flowstep b --foreach 'i, rate in enumerate(rates)'\ngot = halve(model.made * rate)\nagain = random.random()")
    book.ok("%%flowstep c --join b\ntotal = average([t.got for t in b])\nmax = max([t.i for t in b])\nof = name_of\nmissing = nothing")
    text = compare(book)

    assert "LIMIT = 10 * 1024  # bytes" in text and "# rounds down\ndef scaled(x):" in text and 'help="how often"' in text
    assert text.index("import math") < text.index("class Model:") < text.index("class book(FlowSpec):")


def test_what_definitions_need_goes_along_in_an_order_that_works(book: Notebook) -> None:
    (book.folder / "own_module.py").write_text("K = 4\ndef add(x):\n    return x + K\n")
    book.ok(
        "import functools, own_module, xml.dom.minidom\nfrom dataclasses import dataclass, field, asdict\nfrom own_module import add as plus"
    )
    book.ok("STEP = 2\n@functools.lru_cache(maxsize=None)\ndef fib(n, step=STEP):\n    return n if n < 2 else fib(n - 1) + fib(n - step)")
    book.ok("class Sub: pass")
    book.ok(
        "@dataclass\nclass Base:\n    a: int = 1\n    items: list = field(default_factory=list)\n\nclass Sub(Base):\n    def total(self):\n        return fib(self.a)"
    )
    book.ok("async def soon(x):\n    return x")
    book.ok("%%flowstep a\nimport asyncio\ns = Sub(a=7)\nt = s.total(), own_module.add(1), plus(2), asyncio.run(soon(3))")
    book.ok("%%flowstep b\nsame = isinstance(s, Base)\nd = asdict(s)\nroot = xml.dom.minidom.parseString('<a/>').documentElement.tagName")
    text = compare(book)

    assert (
        "from dataclasses import asdict, dataclass, field\n" in text and "import xml.dom.minidom\n" in text and "import xml\n" not in text
    )
    assert text.index("STEP = 2") < text.index("def fib") and text.index("class Base") < text.index("class Sub(Base)")
    assert text.count("class Sub") == 1


def test_names_changes_and_errors_mean_the_same(book: Notebook) -> None:
    book.ok("data = [1, 2]\nconf = {'a': 1}\ndef reads_main(x):\n    return x + base")
    book.ok(
        "%%flowstep a\ndata = [d + 1 for d in data]\nconf['b'] = 2\nbase = 10\nfor i in range(3):\n    last = i\nif base > 20:\n    perhaps = 1"
    )
    book.ok(
        "%%flowstep b\ndef f(v):\n    return v + base\nclass P:\n    def twice(self):\n        return base * 2\np = P()\nx = reads_main(1)"
    )
    book.ok("%%flowstep c\nbase = base + 1\ny = f(1), p.twice(), reads_main(1), isinstance(p, P)\ndata += [9]")
    book.ok("%%flowstep d --catch err\nmade = 1\nmade += 1\nnever = made // 0\nlater = 1")
    book.ok("%%flowstep e\nfailed = type(err).__name__\nmade_too = made\nkeys = sorted(conf)\nimport json\nj = json.dumps(data)")
    book.ok("%%flowstep g --retry 2 --minutes-between-retries 0\nassert current.attempt == 1\nk = json.loads(j)\nstep_name = current.step")
    compare(book)


def test_branches_conditions_and_nested_fan_outs_mean_the_same(book: Notebook) -> None:
    book.ok("%%flowstep load\nnumbers = [3, 1, 2]\nkept = 5")
    book.ok("%%flowstep ordered\nin_order = sorted(numbers)")
    book.ok("%%flowstep square --foreach 'n in numbers'\nresult = n * n")
    book.ok("%%flowstep power --foreach 'exponent in range(2, 4)'\nraised = result ** exponent")
    book.ok("%%flowstep per_number --join power\npowers = [task.raised for task in power]")
    book.ok(
        "%%flowstep total --join square\ntotal_of_squares = sum(task.result for task in square)\nsmallest = min(square, key=lambda t: t.n)"
    )
    book.ok("%%flowstep all_numbers --join per_number\ntable = [task.powers for task in per_number]")
    book.ok("%%flowstep small --when 'total_of_squares < 100'\nlabel = 'small'")
    book.ok("%%flowstep large --when 'total_of_squares >= 100'\nlabel = 'large'\nhuge = 1")
    book.ok("%%flowstep report\ntext = f'{label}: {total_of_squares} {kept} {smallest.n}'")
    book.ok("%%flowstep only_large\nnever = huge")
    book.ok("%%flowstep both --join ordered,all_numbers\nresult_of_both = ordered.in_order, all_numbers.table")
    compare(book)


def test_unseeded_random_numbers_are_the_same(book: Notebook) -> None:
    book.ok("%%flowstep a\nimport random\nfirst = random.random()")
    book.ok("%%flowstep b --foreach 'i in [1, 2]'\nimport random\nx = random.random()\nseed = current.seed")
    compare(book)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("export"))
    notebook.ok("%load_ext flowbook")
    yield notebook
    notebook.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_random_notebook_computes_the_same_as_a_class(kernel: Notebook, seed: int) -> None:
    book = build(seed)
    kernel.ok(f"def {book.flow}_twice(x):\n    return 2 * x")
    for cell in book.cells:
        kernel.ok(cell)
    kernel.ok(f"%flow export {book.flow}.py --flow {book.flow}")
    store = kernel.folder / "store of the class"
    done = run(kernel.folder / f"{book.flow}.py", store)
    assert done.returncode == 0, done.stdout + done.stderr

    found = {name.partition(".")[2]: value for name, value in artifacts(store, book.flow).items() if "[]" in name}
    expected = {name: repr(value) for name, value in read_plainly(book).items()}
    assert {name: found.get(name) for name in expected} == expected, (kernel.folder / f"{book.flow}.py").read_text()


# ---- the file ------------------------------------------------------------------------------------------------------------------


def test_check_shows_where_the_file_and_the_notebook_differ(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1")
    assert "does not exist" in book.fails("%flow export mine.py --check")
    assert "class book, 1 steps. Run it: python mine.py run" in book.ok("%flow export mine.py").stdout
    assert "is what the notebook exports" in book.ok("%flow export mine.py --check").stdout

    book.ok("%%flowstep a\nx = 2")
    said = book.fails("%flow export mine.py --check")
    assert "no longer what the notebook exports" in said and "-        self.x = 1" in said and "+        self.x = 2" in said
    book.ok("flow.export('mine.py', class_name='Mine')\nflow.export('mine.py', check=True, class_name='Mine')")
    assert "class Mine(FlowSpec):" in (book.folder / "mine.py").read_text()


def test_a_file_that_somebody_wrote_is_left_alone(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1")
    (book.folder / "own.py").write_text("print('mine')\n")

    assert "was not written by `%flow export`" in book.fails("%flow export own.py")
    assert (book.folder / "own.py").read_text() == "print('mine')\n"


def test_bad_file_names_are_refused(book: Notebook) -> None:
    assert "no step is defined yet" in book.fails("%flow export mine.py")
    book.ok("%%flowstep a\nx = 1")

    assert "does not end in .py" in book.fails("%flow export mine.ipynb")
    assert "hide Python's own module random" in book.fails("%flow export random.py")
    assert "cannot be written" in book.fails("%flow export nowhere/mine.py")
    assert "not a class's name" in book.fails("%flow export mine.py --class 'My Flow'")
    assert "required: file" in book.fails("%flow export")
    assert "did you mean --check" in book.fails("%flow export mine.py --chek")
    assert not (book.folder / "mine.py").exists()


def test_help_and_completion_know_the_command(book: Notebook) -> None:
    assert "FILE.py [--check]" in book.ok("%flow export?").text
    matches = book.client.complete("%flow export x.py --ch", reply=True, timeout=30)["content"]["matches"]
    assert any("check" in match for match in matches)


def test_what_cannot_be_written_down_exactly_is_refused_by_name(book: Notebook) -> None:
    book.ok(
        "import numpy as np, functools\ngrid = np.zeros(3)\nshared = []\nother = [shared]\nadd = functools.partial(max, 1)\nlong = 'x' * 5000"
    )
    book.ok("def outer():\n    def inner():\n        return 1\n    return inner\ncomputed = outer()")
    book.ok("%%flowstep a\ny = grid.sum()\nz = shared, other\nw = add(0)\nv = computed()\nu = len(long)")
    said = book.fails("%flow export mine.py")

    for name, why in (
        ("grid", "ndarray"),
        ("shared", "shares a part"),
        ("add", "partial"),
        ("computed", "but computed"),
        ("long", "5,002 characters"),
    ):
        assert f"`{name}`" in said and why in said, (name, said)
    assert "step a" in said and "%%flowsetup" in said and not (book.folder / "mine.py").exists()


def test_a_setup_cell_that_no_file_can_repeat_is_refused(book: Notebook) -> None:
    book.ok("%%flowparams\nn = 1")
    book.ok("%%flowsetup\nimport random\nm = n\nif m:\n    random.seed(m)\nnoise = random.random()")
    book.ok("%%flowstep a\nx = noise")
    said = book.fails("%flow export mine.py")

    assert "reads the parameter `n`" in said and "draws random numbers" in said


# ---- a notebook file -------------------------------------------------------------------------------------------------------------


def write_notebook(path: Path, *cells: str) -> Path:
    told: list[dict[str, Any]] = [
        {"id": f"c{i}", "cell_type": "code", "source": cell, "metadata": {}, "outputs": [], "execution_count": None}
        for i, cell in enumerate(cells)
    ]
    words = {"id": "m", "cell_type": "markdown", "source": ["# A flow"], "metadata": {}}
    path.write_text(json.dumps({"cells": [words, *told], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_a_notebook_file_is_exported_without_running_its_flow(tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "sweep.ipynb",
        "%load_ext flowbook\n%config FlowMagics.autorun = True\nprint('noise')",
        "def twice(x):\n    return 2 * x",
        "%%flowstep a --run\nopen('ran', 'w').close()\nx = twice(2)",
        "#| flowstep b\n#| --run\ny = x + 1",
        "run = %flow run --wait",
        "await flow.run()\n1 / 0",
        "y + 1",
    )
    told = export_notebook(notebook, tmp_path / "sweep_flow.py")
    text = (tmp_path / "sweep_flow.py").read_text()

    assert "class sweep, 2 steps" in told[0] and not (tmp_path / "ran").exists()
    assert "exported from the step cells of sweep.ipynb" in text and "def twice(x):" in text
    assert "is what the notebook exports" in export_notebook(notebook, tmp_path / "sweep_flow.py", check=True)[0]
    assert run(tmp_path / "sweep_flow.py", tmp_path / "store").returncode == 0 and (tmp_path / "ran").exists()


def test_cells_that_read_results_are_left_out_and_named(tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "reads.ipynb",
        "%load_ext flowbook\nlimit = 2",
        "%%flowstep a\nx = limit",
        "run = %flow run --wait\nrun",
        "assert run.state == 'succeeded'",
        "twice = run['x'] * 2",
        "flow['1']['x']",
        "x + 1",
    )
    told = export_notebook(notebook, tmp_path / "reads_flow.py")

    assert told[1:] == [
        "code cells 3, 6 run the flow: left out from there on",
        "code cell 4 was left out: name 'run' is not defined",
        "code cell 5 was left out: name 'run' is not defined",
        "code cell 7 was left out: it uses results of the flow",
    ]
    write_notebook(notebook, "%load_ext flowbook", "run = %flow run", "twice = run['x'] * 2", "%%flowstep a\ny = twice")
    with pytest.raises(FlowbookError, match=r"(?s)twice.*code cell 3 was left out: name 'run' is not defined"):
        export_notebook(notebook, tmp_path / "reads_flow.py")


def test_a_class_is_not_exported_because_it_is_one(book: Notebook) -> None:
    book.ok(
        "from flowbook import FlowSpec, step\n"
        "class Mini(FlowSpec):\n    @step\n    def start(self):\n        self.next(self.end)\n    @step\n    def end(self):\n        pass"
    )
    for line in ("%flow export x.py --flow Mini", "%flow export x.py"):
        said = book.fails(line)
        assert "Mini is already a class" in said and "%%writefile" in said
    book.ok("%%flowstep a\nx = 1")
    book.ok("%flow export x.py")
    assert "Mini is already a class" in book.fails("%flow export x.py --flow Mini")
    (book.folder / "theirs.py").write_text(
        "from flowbook import FlowSpec, step\nclass Theirs(FlowSpec):\n    @step\n    def start(self):\n        pass\n"
    )
    book.ok("from theirs import Theirs")
    assert "It stands in the module theirs." in book.fails("%flow export x.py --flow Theirs")


def test_what_is_wrong_with_a_notebook_file_is_said(tmp_path: Path) -> None:
    out = tmp_path / "mine.py"
    with pytest.raises(FlowbookError, match="there is no notebook"):
        export_notebook(tmp_path / "none.ipynb", out)
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(FlowbookError, match="cannot be read as a notebook"):
        export_notebook(tmp_path / "broken.ipynb", out)
    with pytest.raises(FlowbookError, match="code cell 2 of the notebook failed: ZeroDivisionError"):
        export_notebook(write_notebook(tmp_path / "fails.ipynb", "%load_ext flowbook", "1 / 0"), out)
    with pytest.raises(FlowbookError, match="--always has no equal"):
        export_notebook(write_notebook(tmp_path / "refused.ipynb", "%load_ext flowbook", "%%flowstep a --always\nx = 1"), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("cell", "kept"),
    [
        ("%flow run", None),
        ("x = 1\n%flow run --wait", "x = 1\n"),
        ("run = %flow run", None),
        ("r = await flow.run(x=1)", None),
        ("run = %flow run --wait\nrun", None),
        ("limit = 2\nrun = %flow run --wait\nassert run.state == 'succeeded'", "limit = 2\n"),
        ("for lr in (1, 2):\n    run = %flow run --wait\n    print(run['x'])", None),
        ("flow['3']['x']", None),
        ("%time %flow run --wait", None),
        ("get_ipython().run_line_magic('flow', 'run')", None),
        ("if True:\n    %flow status\nx = 1", "if True:\n    pass\nx = 1"),
        ("a = 1\nb = %flow graph\nc = 2", "a = 1\n\nc = 2"),
        ("text = 'then %flow export x.py'", "text = 'then %flow export x.py'"),
        ("%flow defaults --retry 2", "%flow defaults --retry 2"),
        ("%%flowstep a --run --retry 1\nx = 1", "%%flowstep a --retry 1\nx = 1"),
        ("flow_runs = 1", "flow_runs = 1"),
    ],
)
def test_only_what_defines_something_is_executed(cell: str, kept: str | None) -> None:
    assert definition(cell) == kept
