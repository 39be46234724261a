"""The seed's checkpoint block as written: after a kill the retry goes on, and ends as an undisturbed run would have ended."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowbook import build
from flowbook.store import layout, results
from flowbook.store.files import FilesStore
from flowbook.worker import loops
from tests.flows import FlowFile
from tests.worker_project import Project, cell, reads

HEAD = """
import os, random, threading
from flowbook import FlowSpec, checkpoint, current, step

def crash(at):
    "Ends the process where the test says so, in the first attempt."
    if os.environ.get("CRASH") == str(at) and current.retry_count == 0:
        os.kill(os.getpid(), 9)
"""


@dataclass
class Ran:
    code: int
    output: str
    error: dict[str, Any] | None


class Flow:
    """A flow of one step `train`, run attempt by attempt in real workers."""

    def __init__(self, folder: Path, body: str, before: str = "") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.file = folder / "train_flow.py"
        method = textwrap.indent(textwrap.dedent(body), " " * 8)
        helpers = textwrap.dedent(before)
        self.file.write_text(
            f"{HEAD}{helpers}\n\nclass Train(FlowSpec):\n    @checkpoint\n    @step(start=True, end=True)\n    def train(self):\n{method}\n\n"
            f"if __name__ == '__main__':\n    Train()\n"
        )
        self.store = FilesStore(folder / "store")
        spec = importlib.util.spec_from_file_location("train_flow_under_test", self.file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        self.spec = build.spec_of(build.program_of(module.Train, file=str(self.file)), self.store)

    def attempt(self, number: int = 0, crash: int | None = None) -> Ran:
        order = {"store": self.store.describe(), "flow": "Train", "run": self.spec.run, "step": "train", "index": [], "attempt": number}
        order |= {"cwd": str(self.folder), "sys_path": list(sys.path), "scratch": str(self.folder / "scratch")}
        frames = self.folder / "frames"
        pipe = os.open(frames, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "flowbook.worker"],
                input=json.dumps({**order, "frames_fd": pipe}).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(pipe,),
                env={**os.environ, **({"CRASH": str(crash)} if crash is not None else {})},
                check=False,
            )
        finally:
            os.close(pipe)
        told = [json.loads(line) for line in frames.read_text().splitlines()]
        error = next((frame["error"] for frame in told if frame["f"] == "failed"), None)
        return Ran(done.returncode, done.stdout.decode(), error)

    def artifacts(self) -> dict[str, Any]:
        reader = results.Reader(self.store, "Train", {})
        commit = results.read_commit(self.store, "Train", self.spec.run, "train", ())
        assert commit is not None
        return {name: reader.load(entry, name) for name, entry in commit["artifacts"].items()}

    def manifests(self) -> list[dict[str, Any]]:
        return [json.loads(self.store.get(key)) for key in self.store.list(layout.checkpoint_prefix("Train", self.spec.run, "train", ()))]


def undisturbed(folder: Path, body: str, before: str = "") -> dict[str, Any]:
    flow = Flow(folder / "undisturbed", body, before)
    ran = flow.attempt()
    assert ran.code == 0, ran
    return flow.artifacts()


def killed_and_retried(folder: Path, body: str, before: str = "", at: int = 3) -> tuple[dict[str, Any], Ran]:
    flow = Flow(folder / "killed", body, before)
    first = flow.attempt(crash=at)
    assert first.code == -9, first
    second = flow.attempt(1)
    assert second.code == 0, second
    return flow.artifacts(), second


# ---- the seed ----------------------------------------------------------------------------------------------------------


def test_the_seeds_block_as_written_goes_on_at_epoch_45(tmp_path: Path) -> None:
    flow = FlowFile(tmp_path)
    flow.write("""
import os
calls = []
def train_one_epoch():
    calls.append(current.retry_count)
    if len(calls) == 46 and current.retry_count == 0:
        os.kill(os.getpid(), 9)

class TrainFlow(FlowSpec):
    @step
    def start(self):
        self.epochs = 50
        self.next(self.train)

    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @resources(gpu=1)
    @step
    def train(self):
        # Checkpoint periodically saves your training state to S3.
        for epoch in range(self.epochs):
            train_one_epoch()
            save_checkpoint() # Metaflow persists this to S3
        self.calls = list(calls)
        self.epoch = epoch
        self.next(self.end)

    @step
    def end(self):
        pass
""")
    said = flow.run().stdout

    assert flow.value("calls") == [0] * 45 + [1] * 5 and flow.value("epoch") == 49
    assert "goes on after item 45" in said


@pytest.mark.parametrize("at", [0, 1, 6])
def test_whenever_it_is_killed_the_result_is_that_of_an_undisturbed_run(tmp_path: Path, at: int) -> None:
    body = """
    self.seen = []
    for epoch in range(6):
        crash(epoch)
        self.seen.append((epoch, random.random()))
        save_checkpoint()
    crash(6)
    self.last = epoch
    """
    same = undisturbed(tmp_path, body)
    again, ran = killed_and_retried(tmp_path, body, at=at)

    assert again == same and again["last"] == 5
    assert ("checkpoint: the loop" in ran.output) == (at > 0)


SWEEP = """
class Sweep(FlowSpec):
    scale = Parameter("scale", default=1)

    @step
    def start(self):
        self.rates = [1, 2]
        self.next(self.train, foreach="rates")

    @checkpoint
    @step
    def train(self):
        self.log = []
        # NEW
        for epoch in range(6):
            self.check(epoch)
            self.log.append((current.run_id, self.input * self.scale))
            save_checkpoint()
        self.next(self.join)

    def check(self, epoch):
        MEND

    @step
    def join(self, inputs):
        self.logs = [i.log for i in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_resume_goes_on_from_the_failed_tasks_unless_what_they_work_with_has_changed(tmp_path: Path) -> None:
    flow = FlowFile(tmp_path)
    flow.write(SWEEP.replace("MEND", "assert epoch < 2 + self.input, 'broken'"))
    assert "broken" in flow.fails()
    flow.write(SWEEP.replace("# NEW", "self.new = 1").replace("MEND", "assert self.new == 1"))
    flow.run("resume")
    flow.run("resume", "--origin-run-id", "1", "--scale", "10")

    assert flow.value("logs", run="2") == [[("1", rate)] * (2 + rate) + [("2", rate)] * (4 - rate) for rate in (1, 2)]
    assert flow.value("logs", run="3") == [[("3", 10 * rate)] * 6 for rate in (1, 2)]


@pytest.mark.parametrize(("policy", "runs"), [("", ["2"] * 6), ("(load_policy='eager')", ["1"] * 3 + ["2"] * 3)])
def test_a_loop_that_was_edited_begins_anew_in_a_resumed_run_and_says_how_to_go_on(tmp_path: Path, policy: str, runs: list[str]) -> None:
    flow = FlowFile(tmp_path)
    text = SWEEP.replace("@checkpoint", f"@checkpoint{policy}").replace("[1, 2]", "[1]")
    flow.write(text.replace("MEND", "assert epoch < 3, 'broken'"))
    assert "broken" in flow.fails()
    flow.write(text.replace("MEND", "pass").replace("self.input * self.scale", "self.scale * self.input"))
    said = flow.run("resume").stdout

    assert [run for run, _ in flow.value("logs", run="2")[0]] == runs
    assert ("has changed since run 1: it begins anew; to go on all the same: @checkpoint(load_policy='eager')" in said) == (not policy)


LOOPS = {
    "named": "for e in checkpoint.loop(range(5), model=model):\n            model['w'] += 1",
    "plain": "for e in range(5):\n            model['w'] += 1\n            save_checkpoint()",
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_task_that_succeeded_leaves_nothing_to_go_on_from(tmp_path: Path, loop: str) -> None:
    flow = FlowFile(tmp_path)
    text = f"""
class Train(FlowSpec):
    @checkpoint
    @step
    def start(self):
        model = {{"w": 0}}
        {loop}
        self.w = model["w"]
        self.run = current.run_id
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    flow.write(text)
    flow.run()
    again = flow.run("resume", "start").stdout
    flow.write(text.replace("+= 1", "+= 100"))
    edited = flow.run("resume", "--origin-run-id", "1").stdout

    assert [(flow.value("w", run=run), flow.value("run", run=run)) for run in "123"] == [(5, "1"), (5, "2"), (500, "3")]
    assert "goes on after" not in again + edited


def test_a_step_that_was_asked_for_and_failed_goes_on_in_the_next_resume(tmp_path: Path) -> None:
    flow = FlowFile(tmp_path)
    flow.write("""
class Train(FlowSpec):
    @checkpoint
    @step
    def start(self):
        self.log = []
        for epoch in range(5):
            assert (current.run_id, epoch) not in [("1", 3), ("2", 2)], "broken"
            self.log.append(current.run_id)
            save_checkpoint()
        self.next(self.end)

    @step
    def end(self):
        pass
""")
    assert "broken" in flow.fails() and "broken" in flow.fails("resume", "start")
    flow.run("resume")

    assert flow.value("log", run="3") == ["2"] * 2 + ["3"] * 3


BODIES = {
    "statements after the save belong to the item": """
        self.seen = []
        for epoch in range(5):
            crash(epoch)
            save_checkpoint()
            self.seen.append(epoch)
    """,
    "continue and a save now and then": """
        self.seen = []
        for epoch in range(8):
            crash(epoch)
            self.seen.append(epoch)
            if epoch % 2:
                continue
            save_checkpoint()
    """,
    "a list that grows meanwhile is the same list": """
        queue = [1]
        self.done = []
        for item in queue:
            crash(item)
            self.done.append(item)
            if item < 6:
                queue.append(item + 1)
            save_checkpoint()
        self.queue = queue
    """,
    "names that share an object share it afterwards": """
        a = [0]
        b = {"a": a}
        self.c = a
        for epoch in range(5):
            crash(epoch)
            b["a"].append(epoch)
            save_checkpoint()
        self.same = a is b["a"] and self.c is a
        self.a = a
    """,
    "a while loop": """
        self.n, self.half = 1, []
        while self.n < 200:
            crash(self.n)
            self.n = self.n * 2 + 1
            self.half.append(self.n // 2)
            save_checkpoint()
        else:
            self.ended = True
    """,
    "an else, private names and deleted ones": """
        __hidden, extra = [], 5
        for epoch in range(5):
            crash(epoch)
            __hidden.append(epoch)
            if epoch == 1:
                del extra
                self.gone = 1
            if epoch == 2:
                del self.gone
            save_checkpoint()
        else:
            __hidden.append("else")
        self.hidden, self.names = __hidden, sorted(name for name in locals() if name[0] not in "_.")
    """,
    "two loops, and what stands between": """
        self.seen = []
        for epoch in range(3):
            self.seen.append(epoch)
            save_checkpoint()
        self.between = len(self.seen)
        for epoch in range(3, 6):
            crash(epoch)
            self.seen.append(epoch)
            save_checkpoint()
    """,
    "a break before the loop that is killed": """
        self.seen = []
        for epoch in range(100):
            if epoch == 2:
                break
            self.seen.append(epoch)
            save_checkpoint()
        self.seen.append("between")
        for epoch in range(6):
            crash(epoch)
            self.seen.append(epoch)
            save_checkpoint()
    """,
    "globals of the file": """
        for epoch in range(5):
            crash(epoch)
            train_one_epoch()
            save_checkpoint()
        self.model, self.count = MODEL, COUNT
    """,
    "a function that shares variables with the step": """
        total, calls = 0, []
        def add(n):
            nonlocal total
            total += n
            calls.append(n)
        for epoch in range(5):
            crash(epoch)
            add(epoch)
            save_checkpoint()
        self.total, self.calls = total, calls
    """,
    "inside with, try and if": """
        self.seen = []
        if True:
            with threading.Lock():
                try:
                    for epoch in reversed(range(5)):
                        crash(epoch)
                        self.seen.append(epoch)
                        save_checkpoint()
                finally:
                    self.closed = True
    """,
    "a loop in a loop goes on with an item of the outer one": """
        self.seen = []
        for epoch in range(4):
            lost = []
            for batch in "ab":
                crash(epoch if batch == "b" else -1)
                lost.append(batch)
                save_checkpoint()
            self.seen.append((epoch, lost))
    """,
    "things that every item makes anew": """
        self.seen = []
        for epoch in range(5):
            lock = threading.Lock()
            with open(os.devnull) as file:
                crash(epoch)
                self.seen.append(file.read())
            done = lambda: lock.locked()
            self.seen.append(done())
            save_checkpoint()
    """,
    "a progress bar around a range": """
        self.seen, bar = [], tqdm(range(5))
        for epoch in bar:
            crash(epoch)
            self.seen.append(epoch)
            save_checkpoint()
        self.shown = bar.n
    """,
    "a dict's items, with enumerate": """
        self.seen = []
        for place, (name, value) in enumerate({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}.items()):
            crash(place)
            self.seen.append((name, value))
            save_checkpoint()
    """,
}
BEFORE = """
class tqdm:
    "As much of it as matters."
    def __init__(self, iterable):
        self.iterable, self.n, self.lock = iterable, 0, threading.Lock()
    def __iter__(self):
        for item in self.iterable:
            yield item
            self.update(1)
    def update(self, n):
        self.n += n
    def close(self):
        pass
tqdm.__module__ = "tqdm.std"
MODEL, COUNT = {"w": 0}, 0
def train_one_epoch():
    global COUNT
    COUNT += 1
    deeper()
def deeper():
    MODEL["w"] += random.random()
"""


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_killed_loop_ends_as_an_undisturbed_one(tmp_path: Path, body: str) -> None:
    same = undisturbed(tmp_path, body, BEFORE)
    again, ran = killed_and_retried(tmp_path, body, BEFORE)

    assert again == same
    assert "goes on after" in ran.output


# ---- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("for epoch in (n for n in range(6)):\n    crash(epoch)\n    save_checkpoint()", "iterates over a generator"),
        ("[save_checkpoint() for n in range(3)]\ncrash(3)", "does not stand in a loop"),
        ("save_checkpoint()\ncrash(3)", "does not stand in a loop"),
    ],
)
def test_what_cannot_be_gone_on_with_is_said_and_a_retry_fails_with_the_remedy(tmp_path: Path, body: str, why: str) -> None:
    flow = Flow(tmp_path / "flow", body)
    first = flow.attempt(crash=3)
    second = flow.attempt(1)

    assert first.code == -9 and why in first.output and "A retry of this attempt will fail." in first.output
    assert second.code == 1 and second.error is not None and second.error["type"] == "CheckpointError"
    assert why in second.error["message"] and "checkpoint.loop(" in second.error["message"]


def test_without_a_failure_such_a_loop_simply_runs(tmp_path: Path) -> None:
    same = undisturbed(tmp_path, "self.seen = []\nfor n in (n for n in range(3)):\n    self.seen.append(n)\n    save_checkpoint()")

    assert same["seen"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (
            "lock = None\nfor n in range(3):\n    print(lock)\n    lock = threading.Lock()\n    save_checkpoint()",
            "`lock` cannot be pickled",
        ),
        ("numbers = (n for n in range(9))\nfor n in range(3):\n    next(numbers)\n    save_checkpoint()", "`numbers` cannot be pickled"),
        ("for n in range(3):\n    self.lock = threading.Lock()\n    save_checkpoint()", "`self.lock` cannot be pickled"),
        (
            "def draw():\n    return next(numbers)\nnumbers = (n for n in range(9))\nfor n in range(3):\n    draw()\n    save_checkpoint()",
            "`numbers` cannot be pickled",
        ),
        (
            "self.numbers = (n for n in range(9))\nfor n in range(3):\n    next(self.numbers)\n    save_checkpoint()",
            "`self.numbers` cannot",
        ),
        ("for n in range(3):\n    draw_global()\n    save_checkpoint()", "`NUMBERS` cannot be pickled"),
        (
            "class Holder:\n    pass\nmodel = [1]\nholder = Holder()\nholder.lock, holder.model = threading.Lock(), model\n"
            "for n in range(3):\n    model.append(n)\n    save_checkpoint()",
            "shares an object with `model`",
        ),
    ],
)
def test_a_save_that_would_lose_something_is_refused_by_name(tmp_path: Path, body: str, names: str) -> None:
    before = "NUMBERS = (n for n in range(9))\ndef draw_global():\n    return next(NUMBERS)"
    ran = Flow(tmp_path / "flow", body, before).attempt()

    assert ran.code == 1 and ran.error is not None and ran.error["type"] == "CheckpointError"
    assert names in ran.error["message"] and "checkpoint.loop(" in ran.error["message"]


def test_what_cannot_be_saved_and_stays_as_it_was_is_made_again_and_that_is_said(tmp_path: Path) -> None:
    body = """
    lock, self.seen = threading.Lock(), []
    for epoch in range(5):
        with lock:
            crash(epoch)
            self.seen.append(epoch)
        save_checkpoint()
    """
    again, ran = killed_and_retried(tmp_path, body)

    assert again["seen"] == [0, 1, 2, 3, 4]
    assert ran.output.count(": lock cannot be saved") == 1


def test_an_error_after_the_loop_was_rewritten_shows_the_line_of_the_file(tmp_path: Path) -> None:
    ran = Flow(tmp_path / "flow", "for n in range(3):\n    save_checkpoint()\n    if n == 1:\n        1 / 0").attempt()

    assert ran.error is not None and ran.error["source_line"] == "1 / 0" and "checkpoint.py" not in ran.error["traceback"]


def test_a_function_keeps_its_wrapper_its_defaults_its_closure_and_its_class(tmp_path: Path) -> None:
    text = """
import functools

def shout(function):
    @functools.wraps(function)
    def around(*values, **named):
        return "!", function(*values, **named)
    return around

def make(free):
    class Base:
        def hi(self):
            return "hi"

    class Child(Base):
        @shout
        def method(self, n=3, *, k=2):
            "Its words."
            __private = 0
            for i in range(n):
                save_checkpoint()
                __private += i
            return __private, k, free, super().hi()

    return Child
"""
    file = tmp_path / "wrapped.py"
    file.write_text(text)
    space: dict[str, Any] = {"__file__": str(file), "__name__": "wrapped", "save_checkpoint": lambda: None}
    exec(compile(text, str(file), "exec"), space)
    child = space["make"]("free")
    inner = child.method.__wrapped__
    before = inner.__code__

    rewritten = loops.rewrite(child.method)

    assert rewritten is child.method and inner.__code__ is not before and inner.__code__.co_freevars == before.co_freevars
    assert rewritten(child(), k=5) == ("!", (3, 5, "free", "hi"))  # outside a task it loops as it did
    assert rewritten.__doc__ == "Its words." and inner.__code__.co_qualname == before.co_qualname


def test_what_has_no_such_loop_is_left_alone() -> None:
    def plain() -> None:
        for _ in range(3):
            pass

    assert loops.rewrite(plain) is plain and loops.rewrite(len) is len


# ---- cells -------------------------------------------------------------------------------------------------------------

CRASH = "import os\ndef crash(at):\n    if os.environ.get('CRASH') == str(at) and current.attempt == 0:\n        os.kill(os.getpid(), 9)\n"


def test_a_cell_with_checkpoints_goes_on_too(tmp_path: Path) -> None:
    from flowbook.spec.flow import Checkpoint

    project = Project(tmp_path)
    project.capture("state = {'w': 0}\ndef train_one_epoch():\n    state['w'] += 1")
    source = f"{CRASH}seen, late = [], start\nfor epoch in range(5):\n    crash(epoch)\n    train_one_epoch()\n    start.append(epoch)\n    seen.append((current.attempt, epoch))\n    save_checkpoint()\nw = state['w']"
    options = {
        "saves": ("seen", "w", "start", "late"),
        "captures": ("train_one_epoch", "state"),
        "inputs": reads("start", makers=("first",)),
    }
    project.define(cell("first", "start = []", saves=("start",)), cell("only", source, number=4, checkpoint=Checkpoint(), **options))
    assert project.run("first").code == 0
    given = {"inputs": project.made("start", by="first")}

    assert project.run("only", env={"CRASH": "3"}, **given).code == -9
    ran = project.run("only", attempt=1, **given)

    assert project.value(ran.artifacts["seen"]) == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)]
    assert ran.artifacts["w"]["json"] == 5 and project.value(ran.artifacts["start"]) == [0, 1, 2, 3, 4]
    assert ran.artifacts["late"]["alias"] == "start"
