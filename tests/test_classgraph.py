"""The graph of a FlowSpec class: shapes, what methods read and set, and everything that can be wrong with it, said at once."""

from __future__ import annotations

import functools

import pytest

from flowbook import FlowSpec, step, user_step_decorator
from flowbook.spec import classgraph
from flowbook.spec.classgraph import Graph
from flowbook.spec.flow import Options, Step


def graph(cls: type) -> Graph:
    found = classgraph.read(cls)
    assert not found.findings, "\n".join(map(str, found.findings))
    return found


def linked(cls: type) -> dict[str, Step]:
    found = graph(cls)
    return {each.name: each for each in classgraph.link(found, {n.name: Options() for n in found.nodes}, method=cls.__name__)}


def said(cls: type) -> str:
    return "\n".join(map(str, classgraph.read(cls).findings))


def makers(step: Step, name: str) -> tuple[str, ...]:
    return next((given.makers for given in step.inputs if given.name == name), ())


class Sweep(FlowSpec):
    base = 0

    @step
    def start(self):
        self.rates = [0.1, 0.2]
        self.epochs = 3
        self.next(self.train, foreach="rates")

    @step
    def train(self):
        self.lr = self.input
        self.score = self.fit(self.lr)
        self.next(self.look, self.count)

    def fit(self, lr):
        return lr * self.epochs + self.offset

    @property
    def offset(self):
        return self.base

    @step
    def look(self):
        self.seen = self.score
        self.next(self.both)

    @step
    def count(self):
        self.next(self.both)

    @step
    def both(self, inputs):
        self.merge_artifacts(inputs)
        self.next(self.best)

    @step
    def best(self, inputs):
        self.top = max(inputs, key=lambda x: x.score)
        self.next(self.end)

    @step
    def end(self):
        print(self.top.score)


def test_a_foreach_with_branches_inside_and_two_joins() -> None:
    steps = linked(Sweep)

    assert list(steps) == ["start", "train", "look", "count", "both", "best", "end"]
    assert [steps[name].scope for name in steps] == [(), ("train",), ("train",), ("train",), ("train",), (), ()]
    assert steps["train"].host == "start" and steps["start"].hosted == ("train",)
    assert steps["both"].options.join == ("look", "count") and steps["best"].options.join == ("both",)


def test_what_a_method_reads_counts_through_the_methods_and_properties_it_uses() -> None:
    steps = linked(Sweep)

    assert makers(steps["train"], "epochs") == ("start",)
    node = graph(Sweep).node("train")
    assert node.use.reads == {"lr", "epochs", "base"} and node.use.sets == {"lr", "score"}


def test_a_step_finds_a_value_at_the_nearest_step_that_may_have_saved_it_and_not_beyond_a_join() -> None:
    steps = linked(Sweep)

    assert makers(steps["look"], "score") == ("train",)
    assert makers(steps["end"], "top") == ("best",)
    assert makers(steps["end"], "rates") == ()
    assert "score" in steps["both"].saves, "merge_artifacts may bring anything along"


class Choice(FlowSpec):
    @step
    def start(self):
        self.mode = "a"
        self.next({"a": self.one, "b": self.two}, condition="mode", default=self.last)

    @step
    def one(self):
        self.x = 1
        self.next(self.last)

    @step
    def two(self):
        self.next(self.last)

    @step(end=True)
    def last(self):
        print(self.x)


def test_the_ways_of_a_switch_meet_again_without_a_join() -> None:
    steps = linked(Choice)

    assert makers(steps["last"], "next:last") == ("two", "one", "start")
    assert steps["start"].next is not None and steps["start"].next.default == "last"
    assert makers(steps["last"], "x") == ("one",)


class Again(FlowSpec):
    @step
    def start(self):
        self.n = 0
        self.next(self.loop)

    @step
    def loop(self):
        self.n += 1
        self.more = self.n < 3
        self.next({True: self.loop, False: self.end}, condition="more")

    @step
    def end(self):
        pass


def test_a_step_may_repeat_itself_by_a_switch() -> None:
    assert linked(Again)["loop"].saves == ("more", "n", "next:end")


class One(FlowSpec):
    @step
    def only(self):
        self.x = 1


def test_a_flow_of_one_step_needs_no_start_and_no_end() -> None:
    assert (graph(One).start, graph(One).end) == ("only", "only")


class EndJoins(FlowSpec):
    @step(start=True)
    def begin(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.next(self.fan)

    @step
    def b(self):
        self.next(self.fan)

    @step
    def fan(self, inputs):
        self.next(self.each, foreach=range(3))

    @step
    def each(self):
        self.next(self.end)

    @step
    def end(self, inputs):
        self.n = len(inputs)


def test_a_join_may_split_again_and_the_end_may_join() -> None:
    steps = linked(EndJoins)

    assert steps["fan"].options.join == ("a", "b") and steps["end"].options.join == ("each",)
    assert steps["each"].scope == ("each",) and steps["end"].scope == ()


class Giving(FlowSpec):
    @step
    def start(self):
        self.a = self.b = 1
        self.next(self.middle)

    @step
    def middle(self):
        helper(self)
        self.next(self.end)

    @step
    def end(self):
        getattr(self, "a")  # noqa: B009
        print(self.z, hasattr(self, "w"))


def helper(flow: object) -> None: ...


def test_a_self_that_is_given_away_may_have_read_and_set_everything() -> None:
    steps = linked(Giving)

    assert makers(steps["end"], "z") == ("middle",) and makers(steps["end"], "w") == ("middle",)
    assert makers(steps["end"], "a") == ("middle", "start")


# ---- everything that can be wrong -------------------------------------------------------------------------------------------


class Wrong(FlowSpec):
    @step
    def start(self):
        if self.x:
            self.next(self.a)
        else:
            self.next(self.b)

    @step
    def a(self):
        self.next(self.bb)

    @step
    def b(self, inputs, more):
        self.next(self.end)

    @step
    def lost(self):
        self.next(self.end, foreach="x", condition="y")

    @step
    def end(self):
        self.next(self.a)


def test_all_findings_come_at_once_each_with_step_file_line_and_remedy() -> None:
    text = said(Wrong)

    for expected in (
        "step start (test_classgraph.py, line",
        "self.next stands inside `if`",
        'condition="choice"',
        "there is no step 'bb'",
        "Did you mean self.b?",
        "takes 3 arguments",
        "condition= needs a dict",
        "the last step calls self.next",
    ):
        assert expected in text, text


class Unjoined(FlowSpec):
    @step
    def start(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.next(self.end)

    @step
    def b(self):
        self.next(self.end)

    @step
    def end(self):
        pass


class HalfJoined(FlowSpec):
    @step
    def start(self):
        self.next(self.a, self.b, self.c)

    @step
    def a(self):
        self.next(self.join)

    @step
    def b(self):
        self.next(self.join)

    @step
    def c(self):
        self.next(self.d)

    @step
    def d(self):
        self.next(self.end)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


class OpenFan(FlowSpec):
    @step
    def start(self):
        self.xs = [1]
        self.next(self.each, foreach="xs")

    @step
    def each(self):
        self.next(self.end)

    @step
    def end(self):
        pass


class NoFan(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self, inputs):
        pass


class Circle(FlowSpec):
    @step
    def start(self):
        self.next(self.a)

    @step
    def a(self):
        self.next(self.b)

    @step
    def b(self):
        self.next({True: self.a, False: self.end}, condition="x")

    @step
    def end(self):
        pass


class Orphan(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def lonely(self):
        self.next(self.end)

    @step
    def end(self):
        pass


class Straight(FlowSpec):
    @step
    def start(self):
        self.next(self.join, foreach="xs")

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


class Mute(FlowSpec):
    @step
    def start(self):
        pass

    @step
    def end(self):
        pass


class Tried(FlowSpec):
    @step
    def start(self):
        try:
            self.next(self.end)
        finally:
            print()

    @step
    def end(self):
        pass


class Twice(FlowSpec):
    @step
    def start(self):
        self.next(self.end)
        self.next(self.end)

    @step
    def end(self):
        pass


class Early(FlowSpec):
    @step
    def start(self):
        self.next(self.end)
        print("after")

    @step
    def end(self):
        pass


class Words(FlowSpec):
    @step
    def start(self):
        self.start = 1
        self.next(self.input)

    @step
    def input(self):
        self.next(self.end, forech="xs")

    @step
    def end(self):
        pass


class Gang(FlowSpec):
    @step
    def start(self):
        self.next(self.end, num_parallel=4)

    @step
    def end(self):
        pass


class Forever(FlowSpec):
    @step
    def start(self):
        self.next(self.again)

    @step
    def again(self):
        self.next(self.again)

    @step
    def end(self):
        pass


class Async(FlowSpec):
    @step
    async def start(self):
        self.next(self.end)

    @step
    def end(self):
        yield 1


class Typo(FlowSpec):
    @step
    def start(self):
        self.best = 1
        self.next(self.end)

    @step
    def end(self):
        print(self.bst)


class Dropped(FlowSpec):
    @step
    def start(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.x = 1
        self.next(self.join)

    @step
    def b(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        print(self.x)


class Unfanned(FlowSpec):
    @step
    def start(self):
        self.rates = [1]
        self.next(self.each, foreach="rate")

    @step
    def each(self):
        self.next(self.end)

    @step
    def end(self, inputs):
        pass


class NoStep(FlowSpec):
    @step
    def start(self):
        self.next(self.middle)

    def middle(self):
        self.next(self.end)

    def end(self):
        pass


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Unjoined, "reached from a, b, which are different branches"),
        (HalfJoined, "joins 2 of the 3 branches of step start; c does not come here"),
        (OpenFan, "the foreach of step start was never joined"),
        (NoFan, "start comes from no split or foreach"),
        (Circle, "lead to each other in a circle"),
        (Orphan, "nothing leads to it from start"),
        (Straight, "foreach leads straight into the join join"),
        (Mute, "does not say how the flow goes on"),
        (Tried, "self.next stands inside `try`"),
        (Twice, "called more than once"),
        (Early, "not the last statement"),
        (Words, "it sets self.start, which is a method of the flow"),
        (Words, "'input' is a word of the flow itself"),
        (Words, "Did you mean foreach=?"),
        (Gang, "gangs of tasks"),
        (Forever, "leads to itself for ever"),
        (Async, "neither async nor a generator"),
        (FlowSpec, "it has no step"),
        (Typo, "it reads self.bst, which no step before it sets"),
        (Typo, "Did you mean self.best?"),
        (Dropped, "it reads self.x, which step a sets on no way that leads here"),
        (Unfanned, "it reads self.rate, which no step before it sets"),
        (NoStep, "middle is a method, but no step"),
        (NoStep, "end is a method, but no step"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_wrong_is_said(cls: type, expected: str) -> None:
    assert expected in said(cls)


# ---- methods that other decorators wrap -------------------------------------------------------------------------------------


def counted(function):
    @functools.wraps(function)
    def wrapper(self, *arguments):
        self.calls = 1
        return function(self, *arguments)

    return wrapper


def opaque(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


class Wrapped(FlowSpec):
    @counted
    @step
    def start(self):
        self.x = 1
        self.next(self.each, foreach="xs")

    @step
    @counted
    def each(self):
        self.next(self.end)

    @opaque
    @counted
    @step
    def end(self, inputs):
        self.y = self.z


def test_a_wrapped_method_is_read_through_its_wrappers() -> None:
    found = graph(Wrapped)

    assert [node.name for node in found.nodes] == ["start", "each", "end"]
    assert found.node("start").next.kind == "foreach" and found.node("end").joins
    assert "calls" in found.node("start").use.sets and "y" in found.node("end").use.sets
    assert found.node("start").line == classgraph.definition(classgraph.wrapped(vars(Wrapped)["start"])[-1]).lineno


def test_the_text_of_a_wrapper_counts_as_the_steps_code() -> None:
    functions = graph(Wrapped).node("end").use.functions

    assert [function.__code__.co_name for function in functions][:3] == ["end", "wrapper", "wrapper"]
    assert classgraph.code_of(functions).count("FunctionDef") == 3


def test_what_a_wrapper_does_with_self_that_cannot_be_seen_may_be_everything() -> None:
    assert graph(Wrapped).node("end").use.leaves


class Careful(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        try:
            print(self.maybe)
        except AttributeError:
            pass
        if hasattr(self, "other"):
            print(self.other)
        print(getattr(self, "third", None))


def test_what_a_method_tests_for_need_not_be_set() -> None:
    assert not classgraph.read(Careful).findings


@user_step_decorator
def setting(step_name, flow, inputs=None, attributes=None):
    yield
    flow.told = step_name


class Decorated(FlowSpec):
    @step
    def start(self):
        self.told = "nothing"
        self.next(self.middle)

    @setting
    @step
    def middle(self):
        self.next(self.end)

    @step
    def end(self):
        print(self.told)


def test_a_decorator_of_ones_own_may_have_set_what_a_later_step_reads() -> None:
    assert makers(linked(Decorated)["end"], "told") == ("middle", "start")
