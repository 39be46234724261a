"""FlowSpec files run on local pods: shapes, artifacts, joins, failures, and what runs again on resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows import FlowFile


@pytest.fixture
def flow(tmp_path: Path) -> FlowFile:
    return FlowFile(tmp_path)


SHAPES = """
class Shapes(FlowSpec):
    base = 10

    @step(start=True)
    def begin(self):
        self.outer = [1, 2]
        self.none = []
        self.kind = "b"
        self.next(self.fan, self.alone)

    @step
    def alone(self):
        self.who = "alone"
        self.next(self.together)

    @step
    def fan(self):
        self.next(self.each, foreach="outer")

    @step
    def each(self):
        self.name = f"item {self.input}"
        self.next(self.inner, foreach=(c for c in "xy"))

    @step
    def inner(self):
        self.stack = self.foreach_stack()
        self.cell = f"{self.name}{self.input}"
        self.next({"a": self.way_a, "b": self.way_b}, condition="kind")

    @step
    def way_a(self):
        self.way = "a"
        self.next(self.inner_join)

    @step
    def way_b(self):
        self.way = "b"
        self.next(self.inner_join)

    @step
    def inner_join(self, inputs):
        self.cells = [i.cell + i.way for i in inputs]
        self.next(self.outer_join)

    @step
    def outer_join(self, inputs):
        self.all_cells = [c for i in inputs for c in i.cells]
        self.who = "fan"
        self.next(self.together)

    @step
    def together(self, inputs):
        self.both = (inputs.alone.who, inputs.outer_join.all_cells, inputs[0].who)
        self.merge_artifacts(inputs, exclude=["who"])
        self.next(self.empty, foreach="none")

    @step
    def empty(self):
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.count = len(inputs)
        self.n = 0
        self.next(self.again)

    @step
    def again(self):
        self.n += 1
        self.state = "more" if self.n < 4 else "enough"
        self.next({"more": self.again}, condition="state", default=self.split)

    @step
    def split(self):
        self.next(self.p, self.q)

    @step
    def p(self):
        self.v = 1
        self.next(self.finish)

    @step
    def q(self):
        self.v = 2
        self.next(self.finish)

    @step(end=True)
    def finish(self, inputs):
        self.total = sum(i.v for i in inputs) + inputs.p.n + inputs.q.base
"""


def test_every_shape_in_one_flow(flow: FlowFile) -> None:
    flow.write(SHAPES)
    flow.run()

    assert flow.value("cells", "inner_join", 1) == ["item 2xb", "item 2yb"]
    assert flow.value("stack", "inner", 1, 0) == [(1, 2, 2), (0, 2, "x")]
    assert flow.value("both", "together") == ("alone", ["item 1xb", "item 1yb", "item 2xb", "item 2yb"], "alone")
    assert flow.value("count", "gather") == 0
    assert (flow.value("n", "again"), flow.value("total", "finish")) == (4, 17)
    assert flow.commit("way_a", 0, 0) is None and flow.value("way", "way_b", 0, 0) == "b"


ARTIFACTS = """
import numpy as np

class Box:
    def __init__(self): self.items = []

def fill(flow, name, value):
    setattr(flow, name, value)

class Keeps(FlowSpec):
    size = Parameter("size", default=3)
    limit = 5
    kept = [1]

    @step
    def start(self):
        self.log = []
        self.big = np.zeros(20_000_000)
        self.box = Box()
        self._hidden = "h"
        self.untouched = [1, 2]
        self.twin = self.log
        fill(self, "given", 42)
        self.next(self.change)

    @property
    def double(self):
        return self.size * 2

    @step
    def change(self):
        self.log.append("changed")
        self.big[-1] = 7
        self.box.items.append(1)
        self.limit = 6
        self.kept.append(2)
        self.seen = (self.double, hasattr(self, "nothing"), getattr(self, "given"), self.untouched[0])
        del self.twin
        self.next(self.end)

    @step
    def end(self):
        name = "box"
        assert not hasattr(self, "twin")
        self.shared = list(self.kept)
        self.found = (self.log, float(self.big[-1]), getattr(self, name).items, self.limit, self._hidden, self.seen)
"""


def test_artifacts_changed_in_place_set_by_helpers_hidden_or_read_by_name_arrive(flow: FlowFile) -> None:
    flow.write(ARTIFACTS)
    flow.run("run", "--size", "4")

    assert flow.value("found") == (["changed"], 7.0, [1], 6, "h", (8, False, 42, 1))
    assert flow.value("shared") == [1, 2] and flow.value("kept", "start") == [1]
    assert flow.value("log", "start") == [] and flow.value("limit", "start") == 5
    assert set(flow.commit("end")["artifacts"]) == {"found", "shared"}, "what a task only reads is not written again"
    assert "untouched" not in flow.commit("change")["artifacts"]


MERGE = """
class Merge(FlowSpec):
    @step
    def start(self):
        self.same = {"a": 1}
        self.next(self.a, self.b)

    @step
    def a(self):
        self.x, self.y, self.equal, self.only_a = 1, 1, {"p": 1, "q": 2}, "a"
        self.next(self.join)

    @step
    def b(self):
        self.x, self.y, self.equal = 2, 2, {"p": 1, "q": 2}
        self.next(self.join)

    @step
    def join(self, inputs):
        WHAT
        self.next(self.end)

    @step
    def end(self):
        self.found = (self.x, self.y, self.equal, self.same, self.only_a)
"""


def test_merging_takes_equal_values_and_resolves_or_refuses_different_ones(flow: FlowFile) -> None:
    flow.write(MERGE.replace("WHAT", "self.y = 5; self.merge_artifacts(inputs, resolve={'x': max})"))
    flow.run()
    assert flow.value("found") == (2, 5, {"p": 1, "q": 2}, {"a": 1}, "a")

    flow.write(MERGE.replace("WHAT", "self.merge_artifacts(inputs)"))
    assert "the inputs differ in x, y" in flow.fails()
    flow.write(MERGE.replace("WHAT", "self.merge_artifacts(inputs, include=['z'])"))
    assert "no input has it" in flow.fails()
    flow.write(MERGE.replace("WHAT", "self.merge_artifacts(inputs, include=['x'], exclude=['y'])"))
    assert "include or exclude, not both" in flow.fails()
    flow.write(
        MERGE.replace("WHAT", "pass").replace(
            "found = (self.x, self.y, self.equal, self.same, self.only_a)", "found = [getattr(self, n) for n in 'xy']"
        )
    )
    assert "step b sets it, but the join join did not take it over" in flow.fails()


RESUME = """
import os

FACTOR = 2

class Resume(FlowSpec):
    a = Parameter("a", default=1)
    b = Parameter("b", default=1)

    @step
    def start(self):
        self.x = self.a
        self.next(self.left, self.right)

    @step
    def left(self):
        self.l = self.x * FACTOR
        self.next(self.join)

    @step
    def right(self):
        self.r = self.b
        self.next(self.join)

    @step
    def join(self, inputs):
        self.sum = inputs.left.l + inputs.right.r
        self.next(self.each, foreach=[1, 2])

    @step
    def each(self):
        self.y = self.input * 10 + self.sum
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.ys = [i.y for i in inputs]
        self.next(self.end)

    @step
    def end(self):
        if os.environ.get("FAIL"):
            raise RuntimeError("not today")
        self.done = sum(self.ys)
"""


def test_resume_runs_what_is_missing_and_what_a_changed_parameter_or_text_reaches(flow: FlowFile) -> None:
    flow.write(RESUME)
    flow.environ["FAIL"] = "1"
    said = flow.fails()
    assert "RuntimeError: not today" in said and "flow.py, line" in said and "resume" in said
    del flow.environ["FAIL"]

    flow.run("resume")
    assert flow.ran("2") == {"end"} and flow.value("done", run="2") == 36

    flow.run("resume", "--b", "5")
    assert flow.ran("3") == {"right", "join", "each[0]", "each[1]", "gather", "end"} and flow.value("done", run="3") == 44

    flow.write(RESUME.replace("self.l = self.x", "self.l = 0 + self.x"))  # another text, the same value
    flow.run("resume", "--origin-run-id", "2")
    assert flow.ran("4") == {"left"}

    flow.write(RESUME.replace("FACTOR = 2", "FACTOR = 3"))
    flow.run("resume", "--origin-run-id", "2")
    assert flow.ran("5") == {"start", "left", "right", "join", "each[0]", "each[1]", "gather", "end"}

    flow.write(RESUME)
    flow.run("resume", "gather", "--origin-run-id", "2")
    assert flow.ran("6") == {"gather"}, "it gave the same, so nothing after it need run"
    flow.run("resume")
    assert flow.ran("7") == set(), "it was asked for once"


INHERITED = """
class Inherited(FlowSpec):
    p = Parameter("p", default=1)

    @step
    def start(self):
        self.early = self.p
        self.next(self.each, foreach=[1, 2])

    @step
    def each(self):
        self.own = self.input
        self.next(self.pass_on)

    @step
    def pass_on(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = look(inputs)
        self.next(self.end)

    @step
    def end(self):
        pass

def look(inputs):
    return [(i.early, i.own, getattr(i, "p")) for i in inputs]
"""


def test_a_join_runs_again_when_something_it_can_see_through_its_inputs_changed(flow: FlowFile) -> None:
    flow.write(INHERITED)
    flow.run()
    flow.run("resume", "--p", "2")

    assert flow.value("found", run="2") == [(2, 1, 2), (2, 2, 2)]
    assert flow.ran("2") == {"start", "join"}


FAILS = """
import os, signal, sys, threading

class Fails(FlowSpec):
    @step
    def start(self):
        self.lock = threading.Lock()
        self.fine = 1
        self.next(self.each, foreach=[0, 1, 2])

    @catch(var="problem")
    @retry(times=1, minutes_between_retries=0)
    @step
    def each(self):
        self.tried = current.retry_count
        if self.input == 1:
            raise ValueError("one")
        if self.input == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.problems = [str(i.problem) for i in inputs]
        self.next(self.end)

    @step
    def end(self):
        LAST
"""


def test_caught_errors_and_deaths_go_on_with_the_error_as_an_artifact(flow: FlowFile) -> None:
    flow.write(FAILS.replace("LAST", "pass"))
    flow.run()

    assert flow.value("problems")[:2] == ["None", "one"] and "SIGKILL" in flow.value("problems")[2]


def test_an_artifact_that_cannot_be_saved_is_named_where_it_is_read_and_the_others_are_saved(flow: FlowFile) -> None:
    flow.write(FAILS.replace("def join(self, inputs):", "def join(self, inputs):\n        inputs[0].lock"))
    said = flow.fails()
    assert "did not save 'lock'" in said and "cannot be pickled" in said
    assert flow.value("fine", "start") == 1 and "lock" in flow.commit("start")["unsaved"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("self.end = 1", "a method of the flow"),
        ("self.input = 1", "'input' is a word of the flow"),
        ("self.p = 2", "read-only"),
        ("print(self.typo)", "Did you mean self.typed?"),
        ("getattr(self, 'typo')", "Did you mean self.typed?"),
        ("self.cfg['a'] = 2", "is a parameter, and step middle changed it in place; other steps do not see that, and end reads it"),
        ("return", "ended without its self.next"),
        ("self.merge_artifacts([])", "takes no inputs"),
        ("exit(3)", "sys.exit"),
    ],
)
def test_what_a_method_may_not_do_is_said_with_the_line(flow: FlowFile, body: str, expected: str) -> None:
    flow.write(
        f"""
        class Bad(FlowSpec):
            p = Parameter("p", default=1)
            cfg = Parameter("cfg", default={{"a": 1}})
            @step
            def start(self):
                self.typed = 1
                self.next(self.middle)
            @step
            def middle(self):
                if True:
                    {body}
                self.next(self.end)
            @step
            def end(self):
                print(self.cfg)
        """
    )
    said = flow.fails()

    assert expected in said, said


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("self.next(self.each, foreach='missing')", "self.missing, which no step before it sets"),
        ("setattr(self, 'x', 1); vars(self); self.next(self.each, foreach='missing')", "self.missing is not set"),
        ("self.next(self.each, foreach=7)", "which cannot be iterated"),
        ("self.next(self.each, foreach=__import__('itertools').count())", "or no end of them"),
        ("self.next(self.each, foreach=[lambda: __import__('threading').Lock(), __import__('threading').Lock()])", "item 1 of"),
    ],
)
def test_what_cannot_be_fanned_out_is_said(flow: FlowFile, how: str, expected: str) -> None:
    flow.write(
        f"""
        class Bad(FlowSpec):
            @step
            def start(self):
                {how}
            @step
            def each(self):
                self.next(self.end)
            @step
            def end(self, inputs):
                pass
        """
    )

    assert expected in flow.fails()


def test_a_switch_without_a_fitting_case_says_which_there_are(flow: FlowFile) -> None:
    flow.write(SHAPES.replace('self.kind = "b"', 'self.kind = "c"'))

    assert "self.kind is 'c', and the switch has no such case (it has 'a', 'b')" in flow.fails()


def test_the_module_of_the_flow_and_modules_beside_it_are_those_of_the_start(flow: FlowFile) -> None:
    (flow.folder / "helper.py").write_text("VALUE = 1\nclass Thing:\n    value = 3\n")
    flow.write(
        """
        import helper
        from pathlib import Path

        class Own:
            pass

        class Modules(FlowSpec):
            @step
            def start(self):
                self.thing, self.own = helper.Thing(), Own()
                Path(helper.__file__).write_text("VALUE = 2")
                self.next(self.end)

            @step
            def end(self):
                assert isinstance(self.thing, helper.Thing) and isinstance(self.own, Own)
                self.value = helper.VALUE
        """
    )
    flow.run()

    assert flow.value("value") == 1


def test_an_error_that_is_not_tried_again_is_caught_at_once(flow: FlowFile) -> None:
    flow.write(
        """
        class Caught(FlowSpec):
            @catch(var="problem")
            @retry(times=3, minutes_between_retries=10, only=(OSError,))
            @step
            def start(self):
                raise ValueError("no use")
                self.next(self.end)

            @step
            def end(self):
                self.said = str(self.problem)
        """
    )
    flow.run()

    assert flow.value("said") == "no use" and flow.commit("start")["attempt"] == 0


HIDDEN = """
class Hidden(FlowSpec):
    best = None
    limit = 3
    err = None
    __k = 1

    @step
    def start(self):
        self.__k = 2
        for name, value in {"lr": 5}.items():
            setattr(self, name, value)
        self.next(self.a, foreach=[1])

    lr = 1

    @catch(var="err")
    @step
    def a(self):
        self.best = "model"
        self.limit += 1
        raise ValueError("caught")
        self.next(self.b)

    @step
    def b(self):
        self.seen = (str(self.err), self.__k, getattr(self, "".join(["l", "r"])))
        self.best, self.limit = "model", self.limit + 1
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs)
        self.limit += 1
        self.all = inputs
        self.next(self.end)

    @step
    def end(self):
        self.found = (self.best, self.limit, self.seen, self.all[0].best)
"""


def test_an_artifact_counts_before_an_attribute_of_the_class_with_its_name(flow: FlowFile) -> None:
    flow.write(HIDDEN)
    flow.run()

    assert flow.value("found") == ("model", 6, ("caught", 2, 5), "model")


BYPASS = """
class Bypass(FlowSpec):
    @step
    def start(self):
        self.x, self.way = "old", "p"
        self.next({"p": self.p, "q": self.q}, condition="way")

    @step
    def p(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.x = "a"
        self.next(self.j)

    @step
    def b(self):
        self.next(self.j)

    @step
    def j(self, inputs):
        self.next(self.z)

    @step
    def q(self):
        self.next(self.z)

    @step
    def z(self):
        self.seen = getattr(self, "x", "nothing")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_switch_around_a_join_brings_nothing_past_it(flow: FlowFile) -> None:
    flow.write(BYPASS)
    flow.run()
    assert flow.value("seen", "z") == "nothing"
    flow.write(BYPASS.replace('"old", "p"', '"old", "q"'))
    flow.run()
    assert flow.value("seen", "z", run="2") == "old"


STALE = """
import functools

K = 1
TABLE = []

def scale(by):
    def around(function):
        @functools.wraps(function)
        def inner(self):
            function(self)
            self.scaled = by
        return inner
    return around

def fill():
    TABLE.append(1)

fill()

class Stale(FlowSpec):
    mode = Parameter("mode", default="x")
    _k = 1

    @staticmethod
    def h():
        return 1

    @step
    def start(self):
        self.base = 1
        self.next(self.work, foreach=["a", "b"])

    @step
    def work(self):
        self.got = (self.input, self.index, Stale.h(), self._k, len(TABLE), getattr(self, "mode"))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.best = inputs[0]
        self.gots = [i.got for i in inputs]
        self.next({"x": self.one, "y": self.two}, condition="mode")

    @step
    def one(self):
        self.via = "one"
        self.next(self.end)

    @step
    def two(self):
        self.via = "two"
        self.next(self.end)

    @step
    def end(self):
        self.found = (self.gots, self.best.base, self.via)
"""


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("self.base = 1", "self.base = 2"), ()),
        (("return 1", "return 2"), ()),
        (("_k = 1", "_k = 2"), ()),
        (("    TABLE.append(1)", "    TABLE.append(1); TABLE.append(2)"), ()),
        (('["a", "b"]', '["b", "a"]'), ()),
        (("", ""), ("--mode", "y")),
    ],
    ids=["inherited", "static method", "private attribute", "mutated global", "order of items", "parameter of a switch"],
)
def test_a_resumed_run_gives_what_a_fresh_one_gives(flow: FlowFile, edit: tuple[str, str], words: tuple[str, ...]) -> None:
    flow.write(STALE)
    flow.run()
    flow.write(STALE.replace(*edit) if edit[0] else STALE)
    flow.run("resume", *words)
    flow.run("run", *words)

    assert flow.value("found", run="2") == flow.value("found", run="3")
    assert flow.value("found", run="2") != flow.value("found", run="1")


def test_a_branch_that_lost_a_value_is_no_silent_merge(flow: FlowFile) -> None:
    flow.write(
        MERGE.replace(
            "self.x, self.y, self.equal, self.only_a = 1, 1,",
            "self.same = __import__('threading').Lock(); self.x, self.y, self.equal, self.only_a = 2, 2,",
        ).replace("WHAT", "self.merge_artifacts(inputs)")
    )

    assert "same of an input could not be saved" in flow.fails()
