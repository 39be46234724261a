"""One attempt in a real worker: what the body sees, what it shows, what is saved, and how it fails."""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowbook.spec.flow import Foreach, Input, Options, Retry, Step
from flowbook.store import canon, layout
from flowbook.worker import current as current_module
from flowbook.worker import trace
from tests.worker_project import FLOW, RUN, Project, cell, reads


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# ---- start and end ---------------------------------------------------------------------------------------------------


def test_a_body_is_run_saved_and_told(project: Project) -> None:
    ran = project.body("import math\nx = math.sqrt(16)\n_private = 1\nprint('hello')", saves=("x", "math", "y"))

    assert ran.code == 0 and ran.output == "hello\n"
    assert [frame.get("phase") or frame["f"] for frame in ran.frames] == ["running", "saving"]
    assert ran.artifacts["x"]["json"] == 4.0 and ran.artifacts["math"] == {**ran.artifacts["math"], "kind": "module", "module": "math"}
    assert set(ran.artifacts) == {"x", "math"} and ran.commit is not None
    assert ran.commit["v"] == 1 and ran.commit["caught"] is None and ran.commit["warnings"] == [] and 0 < ran.commit["peak_mb"] < 200
    assert set(ran.commit["seconds"]) == {"loading", "running", "saving"}


def test_a_stdlib_body_starts_without_anything_heavy(project: Project) -> None:
    ran = project.body("import sys\nloaded = ' '.join(sorted(sys.modules))\nname = __name__", saves=("loaded", "name"))
    loaded = set(ran.artifacts["loaded"]["json"].split())

    heavy = {"numpy", "pandas", "cloudpickle", "asyncio", "IPython", "matplotlib", "boto3", "kubernetes", "flowbook.worker.serial"}
    assert loaded & heavy == set() and ran.artifacts["name"]["json"] == "__main__"
    assert {
        m for m in loaded if m.startswith("flowbook.") and m.split(".")[1] not in ("worker", "store", "spec", "errors", "_version")
    } == set()


def test_a_second_attempt_leaves_the_first_result_alone(project: Project) -> None:
    project.define(cell("only", "x = current.attempt", saves=("x",)))
    first, second = project.run("only"), project.run("only", attempt=1)

    assert second.code == 0 and second.commit == first.commit


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"flow": '])
def test_an_order_that_is_none_is_refused_in_one_line(text: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "flowbook.worker"], input=text.encode(), capture_output=True, check=False)

    assert (
        done.returncode == 2 and done.stderr.decode().startswith("flowbook.worker: no order on stdin: ") and done.stderr.count(b"\n") == 1
    )


def test_a_store_without_the_run_and_a_folder_that_is_gone_are_said(project: Project) -> None:
    project.store.create(layout.spec("demo", "0"), b"{}")
    assert project.run("only").error["type"] == "StoreMissing"

    project.define(cell("only", "x = 1"))
    gone = project.run("only", cwd=str(project.folder / "gone"))
    assert gone.code == 1 and "gone: No such file or directory" in gone.error["message"] and gone.commit is None


def test_a_step_that_the_run_does_not_have_is_said(project: Project) -> None:
    project.define(cell("only", "x = 1"))
    assert project.run("other").error["message"] == "run 1 of flow demo has no step 'other'"


def test_without_a_pipe_the_error_is_printed(project: Project) -> None:
    project.define(cell("only", "display(1)\nx = 1 / 0"))
    order = json.dumps(project.order("only")).encode()
    done = subprocess.run([sys.executable, "-P", "-m", "flowbook.worker"], input=order, capture_output=True, check=False)

    assert done.returncode == 1 and done.stdout == b"1\n" and b"ZeroDivisionError: division by zero" in done.stderr


# ---- what a body may do to its process -------------------------------------------------------------------------------


def test_leftover_threads_and_children_do_not_hold_the_worker_and_atexit_functions_run(project: Project) -> None:
    ran = project.body(
        "import atexit, threading, multiprocessing\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "multiprocessing.get_context('fork').Process(target=threading.Event().wait).start()\n"
        "atexit.register(print, 'bye')\nx = 1",
        saves=("x",),
    )

    assert ran.code == 0 and ran.artifacts["x"]["json"] == 1 and ran.output == "bye\n"


@pytest.mark.parametrize("end", ["", "raise ValueError('in the child')", "import sys; sys.exit(3)"])
def test_a_forked_child_that_comes_out_of_the_body_commits_nothing(project: Project, end: str) -> None:
    ran = project.body(
        "import os\npid = os.fork()\n"
        f"if pid == 0:\n    x = 'child'\n    {end or 'pass'}\nelse:\n    x = 'parent'\n    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])",
        saves=("x", "status"),
    )

    assert ran.artifacts["x"]["json"] == "parent" and [f["f"] for f in ran.frames] == ["phase", "phase"]
    assert ran.artifacts["status"]["json"] == {"": 0, "r": 1, "i": 3}[end[:1]]


def test_a_body_that_ends_the_process_commits_nothing(project: Project) -> None:
    ran = project.body("import os\nx = 1\nos._exit(7)", saves=("x",))

    assert ran.code == 7 and ran.commit is None and ran.frames[-1]["f"] == "phase"


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("import sys; sys.exit(3)", "SystemExit", "the body called sys.exit(3)"),
        ("raise SystemExit", "SystemExit", "the body called sys.exit()"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "the body raised KeyboardInterrupt"),
        ("x = input()", "EOFError", "EOF when reading a line"),
    ],
)
def test_exits_and_interrupts_of_the_body_are_failures(project: Project, source: str, kind: str, message: str) -> None:
    ran = project.body(source)

    assert ran.code == 1 and ran.commit is None and (ran.error["type"], ran.error["message"]) == (kind, message)


def test_odd_characters_and_raw_bytes_can_be_printed(project: Project) -> None:
    ran = project.body("import os\nprint('ä \\udc80')\nos.write(1, b'\\xff\\n')\nx = '\\udc80'", saves=("x",))

    assert ran.code == 0 and ran.output == "ä \\udc80\n\ufffd\n" and project.value(ran.artifacts["x"]) == "\udc80"


def test_a_body_that_closes_its_output_is_saved_all_the_same(project: Project) -> None:
    assert project.body("import sys\nsys.stdout.close()\nsys.stderr = None\nx = 1", saves=("x",)).artifacts["x"]["json"] == 1


def test_await_works_at_the_top_level_and_multiprocessing_finds_functions_of_the_body(project: Project) -> None:
    ran = project.body(
        "import asyncio, multiprocessing\nasync def twice(x):\n    await asyncio.sleep(0)\n    return 2 * x\n"
        "def square(x):\n    return x * x\na = await twice(4)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n    squares = pool.map(square, range(4))\nawait twice(3)",
        saves=("a", "squares", "square"),
    )

    assert ran.artifacts["a"]["json"] == 8 and project.value(ran.artifacts["squares"]) == [0, 1, 4, 9]
    assert ran.artifacts["square"]["definition"] is True and ran.displays[0]["data"] == {"text/plain": "6"}


# ---- what a body sees ------------------------------------------------------------------------------------------------


def test_captured_definitions_are_those_of_main_and_see_later_bindings(project: Project) -> None:
    project.capture(
        "import json\nfrom dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n    def far(self):\n        return far(self)\n"
        "origin = Point(0)\nregistry = {'point': Point}\ndef far(p):\n    return p.x + offset\noffset = 5\n"
        "def use():\n    return current.step, json.dumps(far(registry['point'](1)))"
    )
    ran = project.body(
        "offset = 10\na = origin.far()\nsame = type(origin) is Point is registry['point'] and Point.__module__ == __name__\nb, c = use()\np = Point(7)",
        captures=tuple(sorted(project.captures)),
        saves=("a", "same", "b", "c", "p", "offset"),
    )

    assert [ran.artifacts[n]["json"] for n in ("a", "same", "b", "c")] == [10, True, "only", "11"]
    assert ran.artifacts["p"]["type"] == "Point" and ran.artifacts["p"]["repr"] == "Point(x=7)"


def test_what_captures_need_comes_with_them_also_in_a_circle(project: Project) -> None:
    project.capture(
        "class Node:\n    made = []\n    def __init__(self):\n        first\n\ndef build():\n    return Node()\nfirst = None\nfirst = build()"
    )
    assert project.body("ok = isinstance(first, type(build()))", captures=("build",), saves=("ok",)).artifacts["ok"]["json"] is True


def test_inputs_are_bound_and_classes_of_other_steps_are_found(project: Project) -> None:
    project.define(
        cell(
            "start",
            "class Model:\n    def __init__(self, w):\n        self.w = w\nmodel = Model(3)\nxs = [1, 2]",
            saves=("Model", "model", "xs"),
        ),
        cell(
            "end",
            "w = model.w\nkind = type(model) is Model\nn = len(xs)",
            saves=("w", "kind", "n"),
            inputs=reads("model", "xs", makers=("start",)),
        ),
    )
    assert project.run("start").code == 0
    ran = project.run("end", inputs=project.made("model", "xs", by="start"))

    assert [ran.artifacts[n]["json"] for n in ("w", "kind", "n")] == [3, True, 2]


def test_two_names_of_one_object_stay_one_object(project: Project) -> None:
    project.define(
        cell("start", "a = [1]\nb = a\nc = {'a': a}\nd = [1]", saves=("a", "b", "c", "d")),
        cell("end", "same = b is a", saves=("same",), inputs=reads("a", "b", makers=("start",))),
    )
    entries = project.run("start").artifacts
    ran = project.run("end", inputs=project.made("b", "a", by="start"))

    assert entries["b"]["alias"] == "a" and entries["a"]["shares"] == ["b", "c"] and "shares" not in entries["d"]
    assert ran.artifacts["same"]["json"] is True


def test_an_input_that_was_not_saved_is_named_with_the_reason(project: Project) -> None:
    project.define(
        cell("start", "f = open('/dev/null')", saves=("f",)),
        cell("end", "x = f", inputs=(Input("f", ("start",), required=False),)),
    )
    assert "open file" in (project.run("start").commit or {})["unsaved"]["f"]
    ran = project.run("end", inputs=project.made("f", by="start"))

    assert ran.code == 1 and ran.error["type"] == "ArtifactError"
    assert ran.error["message"].startswith("`f`, read by step end, was not saved by start: f cannot be pickled")


def test_an_input_whose_module_is_missing_here_says_so(project: Project) -> None:
    (project.folder / "lib").mkdir()
    (project.folder / "lib" / "oddmod.py").write_text("class Odd:\n    pass\n")
    project.define(
        cell("start", "import oddmod\nodd = oddmod.Odd()", saves=("odd",)), cell("end", "x = odd", inputs=reads("odd", makers=("start",)))
    )
    assert project.run("start", sys_path=[str(project.folder / "lib"), *sys.path]).code == 0
    ran = project.run("end", inputs=project.made("odd", by="start"))

    assert "needs the module 'oddmod', which is not installed here" in ran.error["message"] and ran.commit is None


def test_a_name_of_the_user_wins_over_what_flowbook_gives(project: Project) -> None:
    project.capture("current = 'mine'\ndef show():\n    return current")
    project.fields = {}
    ran = project.body("a = current\nb = show()\nscratch = 2\nhere = scratch", captures=("current", "show"), saves=("a", "b", "here"))

    assert [ran.artifacts[n]["json"] for n in ("a", "b", "here")] == ["mine", "mine", 2]


def test_current_tells_the_task_and_scratch_is_a_folder(project: Project) -> None:
    project.define(
        cell(
            "train",
            "(scratch / 'big').write_text('x')\nfrom flowbook import current as c\nsame = c is current\nkey = current.idempotency_key\n"
            "told = [c.flow, c.run, c.step, c.index, c.attempt, c.item, c.task, c.tags, c.failures]\nseed = c.seed\nimport pickle\n"
            "kept = pickle.loads(pickle.dumps(c)) is c\ntry:\n    c.nothing\nexcept AttributeError as error:\n    why = str(error)\n"
            "try:\n    c.run_idd\nexcept AttributeError as error:\n    meant = str(error)",
            foreach="i, x in pairs",
            scope=("outer", "train"),
            saves=("same", "key", "told", "seed", "why", "meant", "kept"),
        ),
        tags=("nightly",),
    )
    (project.folder / "scratch").mkdir()
    plan = _items(project, [(0, "a"), (1, "b")])
    failures = [{"step": "x", "index": [], "message": "no"}]
    ran = project.run("train", (2, 1), attempt=4, item={"blob": plan, "i": 1}, failures=failures, ids=["a", "b"])
    told = project.value(ran.artifacts["told"])

    assert told == [FLOW, RUN, "train", (2, 1), 4, (1, "b"), "train[2,1]", ("nightly",), tuple(failures)]
    assert ran.artifacts["key"]["json"] == "demo/1/train/2.1" and ran.artifacts["same"]["json"] and ran.artifacts["kept"]["json"]
    assert ran.artifacts["why"]["json"].startswith("current has no 'nothing'; it has flow, run, step")
    assert ran.artifacts["meant"]["json"] == "current has no 'run_idd'; did you mean 'run_id'?"
    assert ran.artifacts["x"]["json"] == "b" and ran.artifacts["i"]["json"] == 1 and ran.commit and ran.commit["item"] == "(1, 'b')"
    seed = int.from_bytes(hashlib.sha256(b"demo\ntrain\nbody\na\nb").digest()[:8], "big") >> 1
    assert project.value(ran.artifacts["seed"]) == seed


def test_a_plan_tells_whose_it_is_and_what_its_items_are(project: Project) -> None:
    project.capture("rates = ['a', 'b', 'a']")
    plans = {"plan_inputs": reads("rates", captured=True), "captures": ("rates",), "scope": ("each",)}
    project.define(cell("each", "x", foreach="r in rates", **plans, plan_key="of the plan"))
    plan = (project.run("each", part="plan").commit or {})["plans"]["each"]

    assert plan["key"] == "of the plan"
    assert plan["ids"] == "".join(canon.item_ids(str(canon.content_key(each)) for each in ("a", "b", "a"))) and len(plan["ids"]) == 66


def test_an_item_keeps_its_random_numbers_when_it_moves(project: Project) -> None:
    project.define(cell("each", "import random\ny = random.random()", foreach="x in xs", scope=("each",), saves=("y",)))
    blob = _items(project, [1, 2, 1])
    drawn = [
        project.run("each", (i,), item={"blob": blob, "i": i}, ids=[own]).artifacts["y"]["json"] for i, own in enumerate(["a", "b", "a"])
    ]

    assert drawn[0] == drawn[2] != drawn[1]


def test_an_instance_counts_by_what_its_class_uses(project: Project) -> None:
    project.capture("class A:\n    def f(self): return 1")
    keys = []
    for deep in ("1", "1", "2"):
        project.captures["A"]["deep"] = deep
        again = Project(project.folder, project.folder / f"store{len(keys)}")
        again.captures, again.sources = project.captures, project.sources
        again.define(cell("only", "a = A()", captures=("A",), saves=("a",)))
        keys.append(again.run("only").artifacts["a"]["key"])

    assert keys[0] == keys[1] != keys[2]


def test_a_commit_tells_the_processor_time(project: Project) -> None:
    spin = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    body = f"import subprocess, sys\n{spin}\nsubprocess.run([sys.executable, '-c', {spin!r}])"

    assert 0.6 <= (project.body(body).commit or {})["cpu_s"] < 10


def test_current_is_inert_outside_a_task() -> None:
    from flowbook.worker.current import current, scratch

    assert (current.step, current.index, current.item, current.tags) == ("", (), None, ())
    assert repr(current) == "<current: outside a run>" and scratch.is_dir() and current_module.scratch == scratch
    with pytest.raises(AttributeError, match="cannot be set"):
        current.step = "x"


def _items(project: Project, values: Any) -> str:
    from flowbook.store import results

    return str(results.write_items(project.store, values)["items"])


def test_an_item_that_does_not_fit_the_target_fails_in_the_users_line(project: Project) -> None:
    project.define(cell("each", "x = a", foreach="a, b in xs", scope=("each",)))
    ran = project.run("each", (0,), item={"blob": _items(project, [1, 2]), "i": 0})

    assert (ran.error["type"], ran.error["cell"], ran.error["line"], ran.error["item"]) == ("TypeError", "Cell In[3]", 1, "1")
    assert '----> 1 %%flowstep each --foreach "a, b in xs"' in ran.error["traceback"]


def test_parameters_setup_and_seeds_come_before_the_body(project: Project) -> None:
    project.capture("base = 100")
    project.sources["<setup>"] = {"label": "Cell In[2]", "source": "import os\nos.environ['SET'] = 'yes'\nlimit = base + epochs\nlimit"}
    draw = "import random, numpy\nimport numpy as np\nr, n = random.random(), float(np.random.rand())\ne = epochs + limit\nimport os\ns = os.environ['SET']"
    project.define(
        cell("one", draw, saves=("r", "n", "e", "s"), params=("epochs",)),
        cell("two", "import numpy\n" + draw, saves=("r", "n")),
        params={"epochs": {"kind": "json", "json": 7}},
        setup=("<setup>",),
        setup_captures=("base",),
    )
    one, again, two = project.run("one").artifacts, project.run("one", attempt=1).artifacts, project.run("two").artifacts

    assert one["e"]["json"] == 114 and one["s"]["json"] == "yes"
    seed = current_module.task_seed(FLOW, "one", ())
    import random

    numpy = pytest.importorskip("numpy")
    assert one["r"]["json"] == random.Random(seed).random() and one["n"]["json"] == float(numpy.random.RandomState(seed % 2**32).rand())
    assert one["r"] == again["r"] and one["r"] != two["r"] and one["n"] != two["n"]


def test_a_seed_in_the_setup_cell_wins_and_an_error_there_is_shown_there(project: Project) -> None:
    project.sources["<setup>"] = {
        "label": "Cell In[2]",
        "source": "import random\nrandom.seed(1)\nif 'FAIL' in __import__('os').environ:\n    1 / 0",
    }
    project.define(cell("only", "r = random.random()", saves=("r",)), setup=("<setup>",))
    import random

    failed = project.run("only", env={"FAIL": "1"})
    assert (failed.error["cell"], failed.error["line"]) == ("Cell In[2]", 4)
    assert project.run("only").artifacts["r"]["json"] == random.Random(1).random()


def test_local_modules_are_those_of_the_start_of_the_run(project: Project) -> None:
    folder = project.folder / "mypkg"
    folder.mkdir()
    (folder / "data.txt").write_text("beside")
    texts = {"mypkg": ("__init__.py", "from mypkg.inner import f\n"), "mypkg.inner": ("inner.py", "def f(x):\n    return 1 / x\n")}
    modules = {}
    for name, (file, text) in texts.items():
        modules[name] = {"file": str(folder / file), "blob": project.store.put_blob([text.encode()]), "package": file == "__init__.py"}
        (folder / file).write_text("raise RuntimeError('changed since')\n")
    body = (
        "import mypkg, importlib.resources, inspect, pathlib\na = mypkg.f(2)\nb = importlib.resources.files('mypkg').joinpath('data.txt').read_text()\n"
        "c = inspect.getsource(mypkg.f)\nd = pathlib.Path(mypkg.__file__).with_name('data.txt').read_text()"
    )
    project.define(cell("good", body, saves=("a", "b", "c", "d")), cell("bad", "import mypkg\nmypkg.f(0)"), modules=modules)
    good, bad = project.run("good"), project.run("bad")

    assert [good.artifacts[n]["json"] for n in "abcd"] == [0.5, "beside", "def f(x):\n    return 1 / x\n", "beside"]
    assert f"File {folder / 'inner.py'}:2, in f\n" in bad.error["traceback"] and "----> 2     return 1 / x" in bad.error["traceback"]
    assert (bad.error["cell"], bad.error["line"], bad.error["source_line"]) == ("Cell In[3]", 3, "mypkg.f(0)")
    assert not (folder / "__pycache__").exists()


def test_joined_tasks_are_read_lazily_and_changes_of_theirs_are_told(project: Project) -> None:
    project.define(
        cell("train", "model = [lr]\nscore = lr * 2", foreach="lr in rates", scope=("train",), saves=("model", "score")),
        cell(
            "end",
            "best = max(train.ok, key=lambda t: t.score)\nlr = best.lr\nfailed = train[1].error.message\ntrain[0].model.append(1)",
            join=("train",),
            saves=("best", "lr", "failed"),
        ),
    )
    blob = _items(project, [0.1, 0.2, 0.3])
    for i in (0, 2):
        assert project.run("train", (i,), item={"blob": blob, "i": i}).code == 0
    failure = {"state": "failed", "error": {"type": "ValueError", "message": "no luck"}}
    ran = project.run("end", joins={"train": {"index": [], "count": 3, "exceptions": {"1": failure}, "run": RUN}})

    assert ran.artifacts["lr"]["json"] == 0.3 and ran.artifacts["failed"]["json"] == "no luck" and ran.commit
    assert ran.commit["warnings"] == ["`train[0].model` was changed in place; the change is not saved. Assign it to a name to keep it."]


def test_a_class_that_comes_with_a_joined_value_is_no_name_of_the_body(project: Project) -> None:
    project.capture("class M:\n    w = 1\nclass N(M): pass")
    project.define(
        cell("a", "m = M()\nclass Own: pass\nown = Own()", captures=("M",), saves=("m", "own", "Own")),
        cell("end", "w = a.m.w\nown = type(a.own).__name__", 4, join=("a",), saves=("w", "own")),
    )
    assert project.run("a").code == 0
    ran = project.run("end", joins={"a": {"index": [], "count": None, "exceptions": {}, "run": RUN}})

    assert ran.artifacts["w"]["json"] == 1 and ran.artifacts["own"]["json"] == "Own" and ran.commit and ran.commit["warnings"] == []


def test_input_files_must_be_those_of_the_start_of_the_run(project: Project) -> None:
    (project.folder / "data.csv").write_text("1")
    known = {"size": 1, "mtime_ns": 0, "sha256": hashlib.sha256(b"1").hexdigest()}
    project.define(cell("only", "x = open('data.csv').read()", saves=("x",), files=("*.csv",)), files={"data.csv": known})
    assert project.run("only").artifacts["x"]["json"] == "1"
    (project.folder / "data.csv").write_text("2")

    assert "data.csv was changed or removed since the run started" in project.run("only").error["message"]


# ---- what a body shows -----------------------------------------------------------------------------------------------


def test_rich_output_keeps_its_place_between_the_lines(project: Project) -> None:
    ran = project.body(
        "class Rich:\n    def __repr__(self): return 'plain'\n    def _repr_html_(self): return '<b>rich</b>'\n    def _repr_png_(self): return b'png'\n"
        "    def _repr_svg_(self): raise ValueError('no svg')\n    def _repr_latex_(self): return None\n"
        "print('one')\nh = display(Rich(), display_id=True)\nprint('two')\nh.update(3)\ndisplay({'a/b': 1}, raw=True)\nRich()"
    )
    first, second, third, last = ran.displays

    assert first["data"] == {"text/plain": "plain", "text/html": "<b>rich</b>", "image/png": "cG5n"}
    assert first["at"] == len("one\nRich._repr_svg_ failed: ValueError: no svg\n") and not first["update"] and last["id"] is None
    assert second["update"] and second["id"] == first["id"] and second["data"] == {"text/plain": "3"} and second["at"] == first["at"] + 4
    assert third["data"] == {"a/b": 1} and last["data"]["text/html"] == "<b>rich</b>"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("1 + 1", ["2"]),
        ("1 + 1;", []),
        ("1 + 1  # a; comment", ["2"]),
        ("None", []),
        ("x = 5", []),
        ("('ä;'  );  # quiet", []),
        ("from __future__ import annotations\ndef f(a: Nothing): ...\nf.__annotations__", ["{'a': 'Nothing'}"]),
        ("list(range(2000))[:0] or {i: 'x' * 20 for i in range(4)}", [None]),
    ],
)
def test_the_value_of_a_last_expression_is_shown(project: Project, source: str, shown: list[str | None]) -> None:
    texts = [frame["data"]["text/plain"] for frame in project.body(source).displays]

    assert len(texts) == len(shown) and all(b is None or a == b for a, b in zip(texts, shown, strict=True))


def test_what_cannot_be_shown_harms_nothing(project: Project) -> None:
    ran = project.body(
        "class Odd:\n    def __repr__(self): raise ValueError('no')\n    def _repr_mimebundle_(self, include=None, exclude=None): return {'a/b': object(), 'c/d': {'e': 1}}\n"
        "class Yes:\n    def __getattr__(self, name): return lambda *a, **k: 'anything'\n    def __repr__(self): return 'yes'\n"
        "display(Odd(), Yes(), Odd)\nlist(range(1001))\nbig = 'x' * 9_000_000\ndisplay({'text/plain': 'small', 'text/html': big}, raw=True)\nx = 1",
        saves=("x",),
    )
    texts = [frame["data"]["text/plain"] for frame in ran.displays]

    assert ran.displays[0]["data"] == {"text/plain": "<Odd, whose repr raises ValueError: no>", "c/d": {"e": 1}}
    assert texts[1:] == ["yes", "<class '__main__.Odd'>", "small"] and "text/html" not in ran.displays[3]["data"] and ran.code == 0


def test_figures_are_shown_once_and_ipython_shows_through_us(project: Project) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("IPython")
    ran = project.body(
        "import matplotlib.pyplot as plt\nfrom IPython.display import display as show, HTML, clear_output, update_display\n"
        "fig, ax = plt.subplots()\nax.plot([1])\nshow(fig)\nplt.figure().gca().plot([2])\nplt.show()\nprint('between')\n"
        "show(HTML('<i>x</i>'), display_id='here')\nupdate_display(HTML('<i>y</i>'), display_id='here')\nclear_output()\nplt.figure().gca().plot([3])\nbackend = plt.get_backend()",
        saves=("backend",),
    )
    assert ran.artifacts["backend"]["json"].lower() == "agg" and "UserWarning" not in ran.output
    kinds = ["image/png" if "image/png" in f["data"] else f["data"].get("text/html") for f in ran.displays]
    assert kinds == ["image/png", "image/png", "<i>x</i>", "<i>y</i>", "image/png"]
    assert [f["update"] for f in ran.displays] == [False, False, False, True, False] and ran.displays[2]["id"] == "here"


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_saved_is_told_and_fails_only_if_a_step_needs_it(project: Project) -> None:
    body = "import threading\nlock = {'inner': threading.Lock()}\nx = 1"
    reader = cell("end", "y = lock", 4, inputs=reads("lock", makers=("free", "needed")))
    project.define(
        cell("free", body, saves=("lock", "x"), unsaved=(("_t", "it is private"),)),
        cell("needed", body, saves=("lock", "x")),
        cell("named", body, saves=("lock", "x"), out_add=("lock",)),
        dataclasses.replace(reader, inputs=reads("lock", makers=("needed",))),
    )
    free, needed, named = (project.run(name) for name in ("free", "needed", "named"))

    assert set(free.artifacts) == {"x"} and free.commit and "lock['inner'] cannot be pickled" in free.commit["unsaved"]["lock"]
    assert needed.commit is None and "step end (Cell In[4]) reads it: lock['inner'] cannot be pickled" in needed.error["message"]
    assert (
        named.commit is None
        and "--out names it" in named.error["message"]
        and named.error["traceback"].splitlines()[1:] == [f"StepError: {named.error['message']}"]
    )


@pytest.mark.parametrize(("level", "code"), [("warn", 0), ("error", 1)])
def test_an_input_changed_in_place_is_never_lost_in_silence(project: Project, level: str, code: int) -> None:
    project.capture("settings = {'a': [1]}")
    project.define(
        cell("start", "results = [1]\nfine = [2]", saves=("results", "fine")),
        cell(
            "add",
            "results.append(2)\nsettings['a'].append(2)\nfine.copy().append(1)\nfine = fine",
            4,
            inputs=reads("results", "fine", makers=("start",)),
            captures=("settings",),
            watch=(("fine", "error"), ("settings", "warn"), ("results", level)),
        ),
        cell("report", "results", 5, inputs=reads("results", makers=("start",))),
    )
    project.run("start")
    ran = project.run("add", inputs=project.made("results", "fine", by="start"))
    text = (
        "`results` was changed in place by step add (Cell In[4]), and the change is not saved; step report (Cell In[5]) reads `results` later. "
        "Add `--out +results` to keep the change, or work on a copy."
    )
    assert ran.code == code
    if level == "error":
        assert ran.error["message"] == text and ran.commit is None and ran.error["type"] == "StepError"
    else:
        assert ran.commit and ran.commit["changed"] == ["settings", "results"] and text in ran.commit["warnings"]


def test_a_change_of_one_of_two_names_that_shared_an_object_is_an_error_naming_both(project: Project) -> None:
    change = {"saves": ("a",), "inputs": reads("a", makers=("start",))}
    project.define(
        cell("start", "a = [1]\nb = {'a': a}\nc = [2]\nd = {'c': c}", saves=("a", "b", "c", "d")),
        cell("both", "a.append(b)", 4, **{**change, "inputs": reads("a", "b", makers=("start",))}),
        cell("later", "a.append(2)", 5, **change),
        cell("nobody", "c.append(2)", 6, saves=("c",), inputs=reads("c", makers=("start",))),
        cell("unchanged", "n = len(a)", 7, **change),
        cell("end", "b", 8, inputs=reads("b", makers=("start",))),
    )
    project.run("start")
    both = project.run("both", inputs=project.made("a", "b", by="start"))
    later, nobody = project.run("later", inputs=project.made("a", by="start")), project.run("nobody", inputs=project.made("c", by="start"))

    assert "`a` and `b`" in both.error["message"] and "step both itself reads `b`" in both.error["message"]
    assert "step end (Cell In[8]) reads `b`" in later.error["message"] and later.commit is None
    assert nobody.commit and "`d` does not see the change" in nobody.commit["warnings"][0]
    assert project.run("unchanged", inputs=project.made("a", by="start")).code == 0


def test_an_item_changed_in_place_is_told(project: Project) -> None:
    project.define(cell("each", "x.append(1)", foreach="x in xs", scope=("each",)))
    ran = project.run("each", (0,), item={"blob": _items(project, [[1]]), "i": 0})

    assert ran.commit and ran.commit["warnings"][0].startswith("the item of --foreach `x` was changed in place; `xs` itself does not see")
    assert project.value(ran.artifacts["x"]) == [1, 1]


def test_names_that_the_text_does_not_show_are_told_and_are_an_error_if_read_later(project: Project) -> None:
    project.capture("counter = 0\ndef count():\n    global counter, total\n    counter += 1\n    total = 5")
    step = cell("only", "count()\nglobals()['hidden'] = 1\nexec('other = 2')", captures=("count", "counter"), saves=("other",))
    project.define(
        step, cell("again", "count()", 4, captures=("count", "counter")), cell("end", "total", 5, inputs=reads("total", captured=True))
    )

    ran = project.run("again")
    assert ran.code == 1 and "`total` was set by step again (Cell In[4]) in a way that its text does not show" in ran.error["message"]
    assert "step end (Cell In[5]) reads `total` later" in ran.error["message"] and "--out +total" in ran.error["message"]
    ran = project.run("only")
    assert ran.code == 1 and "`counter` was set" in ran.error["message"] and "step again" in ran.error["message"]


def test_hidden_names_that_nobody_reads_are_only_warned_of(project: Project) -> None:
    ran = project.body("globals()['hidden'] = 1\nexec('other = 2; _private = 3')", saves=("other",))

    restricted = Project(project.folder, project.folder / "second").body("x = 1\ny = 2\nfor z in 'a': pass", saves=("x",), out=("x",))

    assert restricted.commit and restricted.commit["warnings"] == []
    assert ran.commit and len(ran.commit["warnings"]) == 1 and "--out +hidden" in ran.commit["warnings"][0]
    assert ran.artifacts["other"]["json"] == 2


def test_a_full_store_is_said_and_nothing_is_committed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, b"size=256k") != 0:
        pytest.skip(f"NO FULL DISK WAS TRIED: cannot mount a small tmpfs here ({os.strerror(ctypes.get_errno())})")
    try:
        project = Project(tmp_path, disk / "store")
        ran = project.body("import os\nbig = os.urandom(1_000_000)", saves=("big",))

        assert ran.code == 1 and ran.commit is None and ran.error["type"] == "StoreFull"
        assert ran.error["message"].startswith("the results of step only cannot be saved, the store is full: ")
    finally:
        libc.umount(str(disk).encode())


# ---- catch -----------------------------------------------------------------------------------------------------------


def test_a_caught_error_is_an_artifact_and_what_was_made_before_is_kept(project: Project) -> None:
    project.capture("class Odd(Exception):\n    def __init__(self, a, b):\n        super().__init__(f'{a} and {b}')")
    project.define(
        cell("plain", "x = 1\ny = 1 / 0\nz = 2", catch="err", saves=("x", "y", "z", "err")),
        cell("odd", "raise Odd(1, 2)", catch="err", saves=("err",), captures=("Odd",)),
        cell("good", "x = 1", catch="err", saves=("x", "err")),
        cell("again", "1 / 0", catch="err", retry=Retry(2)),
        cell("stop", "import sys; sys.exit(1)", catch="err"),
    )
    plain, odd, good = project.run("plain"), project.run("odd"), project.run("good")

    assert plain.code == 0 and set(plain.artifacts) == {"x", "err"} and isinstance(project.value(plain.artifacts["err"]), ZeroDivisionError)
    assert plain.commit and plain.commit["caught"]["type"] == "ZeroDivisionError" and "ZeroDivisionError" in plain.output
    assert str(project.value(odd.artifacts["err"])) == "Odd: 1 and 2"
    assert good.artifacts["err"]["json"] is None and good.commit and good.commit["caught"] is None
    assert project.run("again", attempt=1).code == 1 and project.run("again", attempt=2).code == 0 and project.run("stop").code == 1


# ---- plans -----------------------------------------------------------------------------------------------------------


def _hosted(name: str, number: int, **options: Any) -> Step:
    return cell(name, "pass", number, host="start", plan_inputs=reads("xs", makers=("start",)), scope=(name,), **options)


def test_plans_of_hosted_steps_are_evaluated_and_their_failure_is_theirs(project: Project) -> None:
    project.capture("def triple(v):\n    return [3 * i for i in v]\ndef broken():\n    yield 1\n    raise ValueError('no more')\nlimit = 2")
    helpers = reads("triple", "broken", "limit", captured=True)
    steps = [
        _hosted("good", 4, foreach="i, x in enumerate(triple(xs))", when="len(xs) > limit"),
        _hosted("off", 5, foreach="x in xs", when="xs[0] > limit"),
        _hosted("odd", 6, foreach="x in len(xs)"),
        _hosted("text", 7, foreach="x in str(xs)"),
        _hosted("late", 8, foreach="x in broken()"),
        _hosted("locks", 9, foreach="x in [1, __import__('threading').Lock()]"),
        _hosted("endless", 10, foreach="x in __import__('itertools').count()"),
        _hosted("many", 11, foreach="x in range(10**9)"),
        _hosted("exits", 12, foreach="x in __import__('sys').exit(1)"),
        _hosted("empty", 13, foreach="x in [y for y in xs if y > 100]"),
    ]
    steps = [dataclasses.replace(step, plan_inputs=step.plan_inputs + helpers) for step in steps]
    project.define(cell("start", "xs = [1, 2, 3]", saves=("xs",), hosted=tuple(s.name for s in steps)), *steps)
    ran = project.run("start")
    assert ran.code == 0 and ran.commit
    plans = ran.commit["plans"]
    errors = {name: plan["error"] for name, plan in plans.items() if "error" in plan}

    assert (plans["good"]["when"], plans["good"]["count"], plans["good"]["reprs"]) == (True, 3, ["(0, 3)", "(1, 6)", "(2, 9)"])
    assert plans["off"] == {"when": False, "key": ""} and plans["empty"]["count"] == 0 and set(ran.artifacts) == {"xs"}
    assert set(errors) == {"odd", "text", "late", "locks", "endless", "many", "exits"}
    assert errors["odd"]["message"] == '--foreach "x in len(xs)": `len(xs)` is a int, which cannot be iterated.'
    assert (errors["odd"]["cell"], errors["odd"]["line"]) == ("Cell In[6]", 1)
    assert (
        "list(str(xs))" in errors["text"]["message"]
        and "100,000" in errors["endless"]["message"]
        and "1,000,000,000" in errors["many"]["message"]
    )
    assert "item 1 of [1, __import__('threading').Lock()]" in errors["locks"]["message"]
    assert errors["late"]["message"] == "no more" and (errors["late"]["cell"], errors["late"]["line"]) == ("Cell In[1]", 5)
    assert errors["exits"]["message"] == "the expression called sys.exit(1)"


def test_an_error_in_an_expression_is_shown_in_the_line_of_the_cell(project: Project) -> None:
    project.define(cell("start", "xs = []", saves=("xs",), hosted=("each",)), _hosted("each", 4, foreach="x in [1 / len(xs)]"))
    error = (project.run("start").commit or {})["plans"]["each"]["error"]

    assert (error["type"], error["cell"], error["line"]) == ("ZeroDivisionError", "Cell In[4]", 1)
    assert '----> 1 %%flowstep each --foreach "x in [1 / len(xs)]"' in error["traceback"]


def test_a_plan_task_evaluates_its_own_step_and_fails_itself(project: Project) -> None:
    project.capture("rates = [1, 2]\nnone = None")
    good = cell("good", "x", foreach="x in rates", scope=("good",), plan_inputs=reads("rates", captured=True), captures=("rates",))
    bad = cell("bad", "x", 4, foreach="x in none", scope=("bad",), plan_inputs=reads("none", captured=True))
    project.define(good, bad, cell("maybe", "x", 5, when="rates[0] > 1", plan_inputs=reads("rates", captured=True)))

    ran = project.run("good", part="plan")
    assert ran.commit and ran.commit["plans"]["good"]["count"] == 2 and ran.commit["artifacts"] == {}
    assert (project.run("maybe", part="plan").commit or {})["plans"] == {"maybe": {"when": False, "key": ""}}
    ran = project.run("bad", part="plan")
    assert (
        ran.code == 1
        and ran.commit is None
        and ran.error["message"] == '--foreach "x in none": `none` is a NoneType, which cannot be iterated.'
    )


# ---- errors of the user ----------------------------------------------------------------------------------------------


def test_a_traceback_is_in_terms_of_cells(project: Project) -> None:
    project.capture("def divide(a, b):\n    # the culprit\n    return a / b\n")
    ran = project.body("a = 1\nb = 0\ndivide(a, b)\nprint(a)", captures=("divide",))

    assert {key: ran.error[key] for key in ("reason", "type", "message", "cell", "line", "source_line")} == {
        "reason": "error",
        "type": "ZeroDivisionError",
        "message": "division by zero",
        "cell": "Cell In[1]",
        "line": 3,
        "source_line": "return a / b",
    }
    assert ran.error["traceback"] == (
        "---------------------------------------------------------------------------\n"
        "ZeroDivisionError                         Traceback (most recent call last)\n"
        "Cell In[3], line 4\n      2 a = 1\n      3 b = 0\n----> 4 divide(a, b)\n      5 print(a)\n\n"
        "Cell In[1], line 3, in divide\n      1 def divide(a, b):\n      2     # the culprit\n----> 3     return a / b\n\n"
        "ZeroDivisionError: division by zero"
    )


def test_a_short_body_shows_the_line_with_an_arrow(project: Project) -> None:
    error = project.body("a / b").error

    assert (
        "Cell In[3], line 2\n" in error["traceback"]
        and "----> 2 a / b" in error["traceback"]
        and error["message"] == "name 'a' is not defined"
    )


def test_chains_groups_notes_and_recursion_are_told(project: Project) -> None:
    project.define(
        cell("chain", "try:\n    {}['k']\nexcept KeyError as e:\n    e.add_note('noted')\n    raise ValueError('v') from e"),
        cell("context", "try:\n    {}['k']\nexcept KeyError:\n    int('x')"),
        cell("group", "raise ExceptionGroup('both', [ValueError('one'), TypeError('two')])"),
        cell("deep", "def f(n):\n    return f(n + 1)\nf(0)"),
        cell("syntax", "exec('a b')"),
        cell("library", "import json\njson.loads('{')"),
        cell("async_", "import asyncio\nawait asyncio.sleep(0)\n1 / 0"),
        cell("rude", "class E(Exception):\n    def __str__(self): raise ValueError\nraise E"),
        cell("long", "raise ValueError('x' * 10**6)"),
    )
    texts = {step.name: project.run(step.name).error for step in project.steps}

    chain = texts["chain"]["traceback"]
    assert chain.index("KeyError: 'k'\nnoted") < chain.index("direct cause") < chain.index("ValueError: v")
    assert "During handling of the above exception" in texts["context"]["traceback"]
    assert "1 of 2" in texts["group"]["traceback"] and "TypeError: two" in texts["group"]["traceback"]
    assert "times more" in texts["deep"]["traceback"] and texts["deep"]["traceback"].count("in f") == 1
    assert "SyntaxError: invalid syntax" in texts["syntax"]["traceback"] and texts["syntax"]["line"] == 2
    assert texts["library"]["line"] == 3 and "JSONDecodeError: Expecting" in texts["library"]["traceback"].splitlines()[-1]
    assert texts["async_"]["line"] == 4 and "asyncio" not in texts["async_"]["traceback"].split("line 4")[0].split("Cell")[0]
    assert texts["rude"]["message"] == "(its message cannot be shown: ValueError)" and len(texts["long"]["message"]) < 11_000
    assert all("flowbook/worker" not in error["traceback"] for error in texts.values())


def test_the_text_of_an_error_needs_no_source() -> None:
    space: dict[str, Any] = {}
    try:
        exec(compile("\n\n1 / 0", "<nowhere>", "exec"), space)
    except ZeroDivisionError as error:
        found = trace.Tracer({}).error(error, place=trace.Place("Cell In[9]", "<nowhere>", 1))
    assert found["cell"] == "Cell In[9]" and found["line"] == 1 and found["traceback"].endswith("ZeroDivisionError: division by zero")


def test_the_options_of_the_helper_are_real_ones() -> None:
    step = cell("each", "x", foreach="a, b in xs", catch="err")

    assert step.options == Options(foreach=Foreach("a, b", "xs", ("a", "b")), catch="err") and step.source == "\nx"
