"""The serial reading: what the law of the design says, against real runs, and against results that were tampered with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowbook.spec.flow import Input, Retry
from flowbook.store import layout
from tests.worker_project import FLOW, RUN, Project, cell, reads


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def read_serially(project: Project) -> dict[str, Any]:
    order = {"store": project.store.describe(), "flow": FLOW, "run": RUN, "cwd": str(project.folder), "sys_path": list(sys.path)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flowbook.worker", "--serial"],
        input=json.dumps(order).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 1
    return report


def tamper(project: Project, step: str, index: tuple[int, ...], name: str, entry: Any) -> None:
    """Rewrite a committed artifact, or with None take it away."""
    commit = project.commit(step, index)
    assert commit is not None
    if entry is None:
        del commit["artifacts"][name]
    else:
        commit["artifacts"][name] = entry
    project.store.put(layout.commit(FLOW, RUN, step, index), json.dumps(commit).encode())


def sweep(project: Project) -> None:
    """A flow with a fan-out, classes, seeds, setup, a branch, a join and a catch."""
    project.capture(
        "import random\nclass Model:\n    def __init__(self, lr):\n        self.lr, self.weights = lr, [random.random() for _ in range(3)]\n"
        "def build(lr):\n    return Model(lr * scale)\nscale = 10"
    )
    project.sources["<setup>"] = {"label": "Cell In[2]", "source": "digits = 3"}
    rates = reads("rates", makers=("start",))
    project.define(
        cell("start", "rates = [0.1, 0.2, 0.3]\nshared = {'n': 0}\nprint('start')", 3, saves=("rates", "shared"), hosted=("train",)),
        cell(
            "train",
            "model = build(lr)\nshared['n'] += 1\nscore = round(lr + random.random(), digits)\nclass Local: pass\nlocal = Local()",
            4,
            foreach="lr in rates",
            plan_inputs=rates,
            host="start",
            scope=("train",),
            inputs=reads("shared", makers=("start",)),
            captures=("Model", "build", "random", "scale"),
            saves=("model", "score", "shared", "Local", "local"),
        ),
        cell(
            "grade",
            "good = score > 0.5\nmodel.lr += 1",
            5,
            scope=("train",),
            inputs=reads("score", "model", makers=("train",)),
            captures=("Model",),
            saves=("good", "model"),
        ),
        cell(
            "pick",
            "best = max(train, key=lambda t: t.score)\nlrs = [t.lr for t in train]\ngoods = [t.good for t in grade]\nns = [t.shared['n'] for t in train]\nn = shared['n']",
            6,
            join=("train", "grade"),
            inputs=reads("shared", makers=("start",)),
            saves=("best", "lrs", "goods", "ns", "n"),
        ),
        cell(
            "maybe",
            "extra = n",
            7,
            when="n > 5",
            plan_inputs=reads("n", makers=("pick",)),
            host="pick",
            inputs=reads("n", makers=("pick",)),
            saves=("extra",),
        ),
        cell("after", "y = extra", 8, inputs=reads("extra", makers=("maybe",)), saves=("y",)),
        cell("risky", "1 / n", 9, catch="problem", inputs=reads("n", makers=("pick",)), saves=("problem",)),
        cell("again", "if current.attempt == 0:\n    raise ValueError\nz = 1", 10, retry=Retry(1), saves=("z",)),
        cell("last", "done = len(lrs)", 11, always=True, inputs=reads("lrs", makers=("pick",)), saves=("done",)),
        setup=("<setup>",),
    )


def run_sweep(project: Project) -> None:
    sweep(project)
    steps = project.steps
    project.steps = tuple(step for step in steps if step.name not in ("maybe", "after", "again"))
    project.run_all()
    project.steps = steps
    assert project.run("again", attempt=1).code == 0


def test_a_flow_and_its_serial_reading_are_equal(project: Project) -> None:
    run_sweep(project)
    report = read_serially(project)

    assert report["different"] == [] and report["missing"] == [] and "error" not in report
    expected = {"start.rates", "start.shared", "last.done", "risky.problem", "again.z"}
    expected |= {f"train[{i}].{n}" for i in range(3) for n in ("lr", "model", "score", "shared", "Local", "local")}
    expected |= {f"grade[{i}].{n}" for i in range(3) for n in ("good", "model")} | {
        f"pick.{n}" for n in ("best", "lrs", "goods", "ns", "n")
    }
    assert set(report["equal"]) == expected
    assert project.value((project.commit("pick") or {})["artifacts"]["ns"]) == [1, 1, 1]


def test_a_different_result_is_named_with_both_values(project: Project) -> None:
    run_sweep(project)
    tamper(project, "pick", (), "n", {"kind": "json", "json": 7})
    tamper(project, "train", (1,), "score", None)
    report = read_serially(project)

    assert report["different"] == [{"task": "pick", "name": "n", "flow": "7", "serial": "0"}]
    assert report["missing"] == [{"task": "train[1]", "name": "score"}]


def test_a_task_that_only_the_flow_ran_is_missing(project: Project) -> None:
    project.define(cell("start", "n = 1", saves=("n",)), cell("maybe", "x = 1", 4, when="False", saves=("x",)))
    project.run("start")
    project.run("maybe")

    assert read_serially(project)["missing"] == [{"task": "maybe", "name": "x"}]


def test_a_change_in_place_that_the_flow_lost_is_found(project: Project) -> None:
    shared = reads("xs", makers=("start",))
    project.define(
        cell("start", "xs = [1]", saves=("xs",)),
        cell("add", "xs.append(2)", 4, inputs=shared),
        cell("end", "total = sum(xs)", 5, inputs=shared, saves=("total",)),
    )
    project.run_all()

    assert read_serially(project)["different"] == [{"task": "end", "name": "total", "flow": "1", "serial": "3"}]


def test_a_flow_and_files_and_notebook_classes_compare_by_what_they_are(project: Project) -> None:
    project.define(
        cell(
            "start",
            "from flowbook import File\nopen('f.txt', 'w').write('x')\nf = File('f.txt')\nclass P:\n    def __init__(self, x): self.x = x\np = P([1])",
            saves=("f", "P", "p"),
        ),
        cell(
            "end",
            "text = f.read_text()\nq = p\nkind = type(p).__name__",
            4,
            inputs=reads("f", "p", makers=("start",)),
            saves=("text", "q", "kind"),
        ),
    )
    project.run_all()
    report = read_serially(project)

    assert report["different"] == [] and report["missing"] == [] and {"start.f", "start.p", "end.q"} <= set(report["equal"])


def test_nested_fan_outs_read_the_latest_binding_of_the_scopes_around(project: Project) -> None:
    project.capture("xs = [1, 2]")
    project.define(
        cell(
            "outer",
            "base = x * 10\ny = 'outer'",
            3,
            foreach="x in xs",
            scope=("outer",),
            plan_inputs=reads("xs", captured=True),
            captures=("xs",),
            saves=("base", "y"),
        ),
        cell(
            "inner",
            "s = base + z",
            4,
            foreach="z in range(x)",
            scope=("outer", "inner"),
            plan_inputs=reads("x", makers=("outer",)),
            inputs=reads("base", makers=("outer",)),
            saves=("s",),
        ),
        cell("sums", "total = sum(t.s for t in inner)\ny = 'sums'", 5, join=("inner",), scope=("outer",), saves=("total", "y")),
        cell("leaf", "seen = (y, total)", 6, scope=("outer", "inner"), inputs=(*reads("y", "total", makers=("sums",)),), saves=("seen",)),
        cell("end", "all_totals = [t.total for t in sums]", 7, join=("sums",), saves=("all_totals",)),
    )
    plan = (project.run("outer", part="plan").commit or {})["plans"]["outer"]
    for i in range(2):
        project.run("outer", (i,), item={"blob": plan["items"], "i": i})
        where = project.made("x", by="outer", index=(i,))
        inner = (project.run("inner", (i,), part="plan", inputs=where).commit or {})["plans"]["inner"]
        for j in range(inner["count"]):
            project.run("inner", (i, j), item={"blob": inner["items"], "i": j}, inputs=project.made("base", by="outer", index=(i,)))
        project.run("sums", (i,), joins={"inner": {"index": [i], "count": inner["count"], "exceptions": {}, "run": RUN}})
        for j in range(inner["count"]):
            project.run("leaf", (i, j), inputs=project.made("y", "total", by="sums", index=(i,)))
    project.run("end", joins={"sums": {"index": [], "count": 2, "exceptions": {}, "run": RUN}})
    report = read_serially(project)

    assert report["different"] == [] and report["missing"] == [] and "leaf[1,1].seen" in report["equal"] and len(report["equal"]) == 20
    assert project.value((project.commit("end") or {})["artifacts"]["all_totals"]) == [10, 41]


def test_an_error_of_a_step_is_the_report_and_always_steps_still_run(project: Project) -> None:
    project.define(
        cell("bad", "1 / 0"),
        cell("end", "x = 1", 4),
        cell("last", "open('ran', 'w').write(current.failures[0]['message'])", 5, always=True),
    )
    report = read_serially(project)

    assert report["error"] == "bad (Cell In[3]): ZeroDivisionError: division by zero"
    assert (project.folder / "ran").read_text() == "ZeroDivisionError: division by zero"


def test_tolerated_failures_of_a_sweep_are_joined_as_such(project: Project) -> None:
    project.capture("xs = [1, 0]")
    project.define(
        cell(
            "each",
            "y = 1 / x",
            foreach="x in xs",
            scope=("each",),
            min_ok="50%",
            plan_inputs=reads("xs", captured=True),
            captures=("xs",),
            saves=("y",),
        ),
        cell("next_", "z = y", 4, scope=("each",), inputs=reads("y", makers=("each",)), saves=("z",)),
        cell("end", "ok = [t.ok for t in each]\nwhy = each[1].error.message", 5, join=("each",), saves=("ok", "why")),
    )
    plan = (project.run("each", part="plan").commit or {})["plans"]["each"]
    good, bad = (project.run("each", (i,), item={"blob": plan["items"], "i": i}) for i in range(2))
    project.run("next_", (0,), inputs=project.made("y", by="each", index=(0,)))
    exceptions = {"1": {"state": "failed", "error": bad.error}}
    assert project.run("end", joins={"each": {"index": [], "count": 2, "exceptions": exceptions, "run": RUN}}).code == 0 == good.code
    report = read_serially(project)

    assert report["different"] == report["missing"] == [] and "end.why" in report["equal"] and "error" not in report


def test_a_task_is_compared_with_the_commit_of_this_run_into_which_a_reused_one_was_copied(project: Project) -> None:
    project.define(cell("start", "x = [1]", saves=("x",)))
    project.run("start")
    commit = project.store.get(layout.commit(FLOW, RUN, "start", ()))
    project.store.create(layout.commit(FLOW, "0", "start", ()), commit)
    project.store.delete(layout.commit(FLOW, RUN, "start", ()))
    assert read_serially(project)["missing"] == [{"task": "start", "name": "x"}]
    project.store.create(layout.commit(FLOW, RUN, "start", ()), commit)

    assert read_serially(project) == {"equal": ["start.x"], "different": [], "missing": []}


def test_a_run_that_is_not_there_is_an_error_in_the_report(project: Project) -> None:
    report = read_serially(project)

    assert report["error"].startswith("StoreMissing: ") and report["equal"] == []


def test_a_step_whose_maker_was_skipped_falls_back_to_the_one_before(project: Project) -> None:
    both = (Input("x", ("second", "first")),)
    project.define(
        cell("first", "x = 1", saves=("x",)),
        cell("second", "x = 2", 4, when="x > 1", plan_inputs=reads("x", makers=("first",)), host="first", saves=("x",)),
        cell("end", "y = x", 5, inputs=both, saves=("y",)),
    )
    project.run("first")
    project.run("end", inputs=project.made("x", by="first"))

    assert read_serially(project)["equal"] == ["first.x", "end.y"]
