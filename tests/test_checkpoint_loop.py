"""`checkpoint.loop` in real workers: what the loop changes and nobody has named is brought back all the same, or the save is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows import FlowFile
from tests.test_seed_checkpoint import Flow, killed_and_retried, undisturbed
from tests.worker_project import Project, cell

BODIES = {
    "a number that nobody named": """
        total = 0
        for e in checkpoint.loop(range(6)):
            crash(e)
            total += e
        self.total, self.last = total, e
    """,
    "a number beside something that is named": """
        total, log, best = 0, [], None
        for e in checkpoint.loop(range(6), log=log):
            crash(e)
            total += e
            if e == 1:
                best = total, e
            log.append(total)
        self.result = total, log, best, e
    """,
    "what self holds, set here and in a method": """
        self.n, self.seen, self.other = 0, [], {"a": [0]}
        gone = self.gone = 1
        for e in checkpoint.loop(range(6), nothing={}):
            crash(e)
            self.n += e
            note(self, e)
            if e == 1:
                del self.gone, gone
        self.names = sorted(name for name in locals() if name[0] not in "_.")
    """,
    "containers that are changed in themselves, and the names that share them": """
        a = [0]
        b, log = {"a": a}, []
        self.c = a
        for e in checkpoint.loop(range(6), log=log):
            crash(e)
            b["a"].append(e)
        self.same, self.a = a is b["a"] and self.c is a, a
    """,
    "arrays, random numbers and objects of a class": """
        import numpy
        table, rng, model, slots = numpy.zeros(3), random.Random(1), Model(), Slots()
        numbers = numpy.random.default_rng(1)
        for e in checkpoint.loop(range(6), nothing={}):
            crash(e)
            table[e % 3] += rng.random() + numbers.random()
            model.fit(e)
            slots.n += 1
        self.result = list(table), model.w, slots.n
    """,
    "globals that a function of the file changes": """
        for e in checkpoint.loop(range(6), nothing={}):
            crash(e)
            train_one_epoch()
        self.result = MODEL, COUNT
    """,
    "an object that others hold, with a state_dict": """
        net = Torchlike()
        schedule = Schedule(net)
        best = None
        for e in checkpoint.loop(range(6), net=net):
            crash(e)
            net.n += 1
            schedule.step()
            if e == 2:
                best = net
        net.n += 10
        self.result = net.n, schedule.count, schedule.net.n, best.n
    """,
    "the same, and nothing is named": """
        net = Torchlike()
        schedule = Schedule(net)
        for e in checkpoint.loop(range(6)):
            crash(e)
            net.n += 1
            schedule.step()
        net.n += 10
        self.result = net.n, schedule.count, schedule.net.n
    """,
    "enumerate, a tqdm around it, a break and two loops": """
        first, second, third = 0, 0, 0
        for i, e in enumerate(checkpoint.loop([4, 5, 6])):
            first += i * e
        for e in tqdm(checkpoint.loop(range(9), every=1)):
            if e == 7:
                break
            crash(e)
            second += e
        for e in checkpoint.loop(range(3)):
            third += e
        self.result = first, second, third, e
    """,
    "a generator, which is iterated again, and a list that grows": """
        numbers, total, queue = (n * n for n in range(3)), 0, [1]
        for n in checkpoint.loop(numbers):
            total += n
        for item in checkpoint.loop(queue):
            crash(item)
            if item < 6:
                queue.append(item + 1)
            total += item
        self.result = total, queue
    """,
    "a function that shares variables with the step": """
        total = 0
        def add(n):
            nonlocal total
            total += n
        for e in checkpoint.loop(range(5), nothing={}):
            crash(e)
            add(e)
        self.total = total
    """,
    "private names, a closure, else, continue and a walrus": """
        __x, out, seen = 0, [], set()
        def show(n):
            return n + __x
        for e in checkpoint.loop(range(6), out=out):
            crash(e)
            if (twice := e * 2) == 4:
                continue
            __x += e
            seen.add(twice)
            out.append(show(e))
        else:
            __x += 100
        self.result = __x, out, seen, twice
    """,
    "inner loops and what the last item leaves": """
        history, best = {}, None
        for e in checkpoint.loop(range(6), history=history):
            for b, (x, y) in enumerate([(1, 2), (3, 4)]):
                loss = x * y + e + b
                crash(e if b == 1 else -1)
            history[e] = [loss for _ in range(2)]
            if best is None or loss > best[0]:
                best = loss, e
        self.result = history, best, loss, b
    """,
    "a logger, which is pickled by its name": """
        import logging
        log, total = logging.getLogger("of the test"), 0
        for e in checkpoint.loop(range(6), nothing={}):
            crash(e)
            log.warning("item %s", e)
            total += e
        self.total = total
    """,
    "a data frame, which keeps what it does not save": """
        import pandas
        named, other = pandas.DataFrame({"a": [0.0] * 6}), pandas.DataFrame({"a": [0.0] * 6})
        column = named["a"]
        for e in checkpoint.loop(range(6), named=named):
            crash(e)
            named.loc[e, "a"] = other.loc[e, "a"] = e
            other[f"b{e}"] = e
        self.result = named.to_dict(), other.to_dict()
    """,
    "loops in a loop over folds": """
        ends, total = [], 0
        for fold in range(3):
            model = [fold]
            for i in checkpoint.loop(range(4)):
                crash(2 * fold + i if fold == 1 else -1)
                model.append(i)
                total += i
            ends.append(list(model))
        self.result = ends, total
    """,
    "a lock that is left alone, a file that is made anew": """
        lock, total = threading.Lock(), 0
        for e in checkpoint.loop(range(6)):
            with lock:
                crash(e)
                total += e
            opened = open(os.devnull)
        self.total = total
    """,
    "a loop that is called elsewhere than in the head of the for": """
        log = []
        bar = tqdm(checkpoint.loop(range(6), log=log))
        for e in bar:
            crash(e)
            now = e + 1
            log.append(now)
        self.result = log, bar.n > 0
    """,
    "a function that the step calls, with what it names": """
        self.n, log, state = 0, [], {"total": 0}
        fit(self, log, state)
        self.result = log, state
    """,
}
BEFORE = """
class tqdm:
    def __init__(self, iterable):
        self.iterable, self.n = iterable, 0
    def __iter__(self):
        for item in self.iterable:
            yield item
            self.n += 1
class Model:
    def __init__(self):
        self.w = [0]
    def fit(self, x):
        self.w = [*self.w, x]
class Slots:
    __slots__ = ("n",)
    def __init__(self):
        self.n = 0
class Torchlike:
    def __init__(self):
        self.n, self.hidden = 0, lambda: None
    def state_dict(self):
        return {"n": self.n}
    def load_state_dict(self, state):
        self.n = state["n"]
class Schedule:
    def __init__(self, net):
        self.net, self.count = net, 0
    def step(self):
        self.count += self.net.n
MODEL, COUNT = {"w": 0}, 0
def train_one_epoch():
    global COUNT
    COUNT += 1
    MODEL["w"] += random.random()
def note(flow, e):
    flow.seen.append(e)
    flow.other["a"].append(e)
    flow.late = e
def fit(flow, log, state):
    for e in checkpoint.loop(range(6), state=state):
        crash(e)
        flow.n += e
        log.append(e)
        state["total"] += e
"""


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_killed_loop_ends_as_an_undisturbed_one_whoever_named_what(tmp_path: Path, body: str) -> None:
    same = undisturbed(tmp_path, body, BEFORE)
    again, ran = killed_and_retried(tmp_path, body, BEFORE)

    assert again == same
    assert "goes on after" in ran.output


def test_a_third_attempt_has_what_the_first_changed(tmp_path: Path) -> None:
    body = """
    once, total = [], 0
    for e in checkpoint.loop(range(6), nothing={}):
        if e == 0:
            once.append(e)
        if e == 2 * current.retry_count + 1 and current.retry_count < 2:
            os.kill(os.getpid(), 9)
        total += e
    self.result = once, total
    """
    flow = Flow(tmp_path / "flow", body)

    assert [flow.attempt(number).code for number in range(3)] == [-9, -9, 0]
    assert flow.artifacts()["result"] == ([0], 15)


def test_what_the_loop_leaves_alone_is_not_saved(tmp_path: Path) -> None:
    body = """
    data, log = os.urandom(100_000), []
    table = {"rows": [data]}
    for e in checkpoint.loop(range(3), log=log):
        log.append(len(table["rows"][0]))
    """
    flow = Flow(tmp_path / "flow", body)

    assert flow.attempt().code == 0
    assert max(manifest["loops"][0]["body"]["size"] for manifest in flow.manifests()) < 5_000


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "def fit():\n    total = 0\n    for e in checkpoint.loop(range(6)):\n        total += e\n    return total\nfit()",
            "changes `total`",
        ),
        (
            "def fit():\n    slots = Slots()\n    for e in checkpoint.loop(range(6), a={}):\n        slots.n += e\n    return slots\nfit()",
            "changes `slots`",
        ),
        ("items = checkpoint.loop(range(6))\ntotal = 0\nfor e in items:\n    total += e", "with nothing between"),
        ("items = checkpoint.loop(range(6), a={})\ntotal = []\nfor e in items:\n    total.append(e)", "with nothing between"),
        ("out = open(os.devnull, 'w')\nfor e in checkpoint.loop(range(6)):\n    out.write('x')", "`out` cannot be pickled"),
        ("self.log = [e for e in checkpoint.loop(range(6))]", "stands in a comprehension"),
        ("it = None\nfor e in checkpoint.loop(range(6), a={}):\n    print(it)\n    it = (n for n in range(3))", "`it` to another object"),
        ("it = None\nfor e in checkpoint.loop(range(6)):\n    print(it)\n    it = (n for n in range(3))", "`it` cannot be pickled"),
    ],
)
def test_what_could_not_be_brought_back_is_refused_at_the_first_save(tmp_path: Path, body: str, why: str) -> None:
    ran = Flow(tmp_path / "flow", body, BEFORE).attempt()

    assert ran.error is not None and ran.error["type"] == "CheckpointError" and why in ran.error["message"], ran


def test_what_cannot_be_saved_and_was_changed_beside_a_named_object_is_told(tmp_path: Path) -> None:
    body = """
    bar, log = Model(), []
    bar.lock = threading.Lock()
    for e in checkpoint.loop(range(6), log=log):
        crash(e)
        bar.fit(e)
        log.append(e)
    self.log = log
    """
    again, ran = killed_and_retried(tmp_path, body, BEFORE)

    assert again["log"] == [0, 1, 2, 3, 4, 5]
    assert ran.output.count("`bar` was changed by the loop and cannot be saved; a retry has what the code before the loop makes of it") == 1


CELL = """
import os
total, seen, kept = 0, [], {"a": 1}
for e in checkpoint.loop(range(6)NAMED):
    if e == 4 and current.attempt == 0:
        os.kill(os.getpid(), 9)
    total += e
    seen.append(e)
last = e
"""


@pytest.mark.parametrize("named", ["", ", kept=kept"])
def test_in_a_cell_nothing_need_be_named_either(tmp_path: Path, named: str) -> None:
    from flowbook.spec.flow import Checkpoint

    project = Project(tmp_path)
    project.define(cell("only", CELL.replace("NAMED", named), checkpoint=Checkpoint(), saves=("total", "seen", "last")))

    assert project.run("only").code == -9
    ran = project.run("only", attempt=1)
    assert [project.value(ran.artifacts[name]) for name in ("total", "seen", "last")] == [15, [0, 1, 2, 3, 4, 5], 5]


def test_a_flow_that_is_killed_in_such_a_loop_and_one_that_fails_behind_it_go_on(tmp_path: Path) -> None:
    flow = FlowFile(tmp_path)
    text = """
import os

class Train(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        total = 0
        for e in checkpoint.loop(range(6)):
            if e == 4 and current.retry_count == 0:
                os.kill(os.getpid(), 9)
            total += e
        MEND
        self.result = total, e
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    flow.write(text.replace("MEND", "raise ValueError('broken')"))
    assert "broken" in flow.fails()
    flow.write(text.replace("MEND", "pass"))
    said = flow.run("resume").stdout

    assert flow.value("result", run="2") == (15, 5) and "goes on after its last item" in said
