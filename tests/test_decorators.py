"""The decorators of a FlowSpec: in any order, with and without parentheses; what they become, and all that is said when they are wrong."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook.errors import DefinitionError
from flowbook.spec import decorators
from flowbook.spec.arguments import DECORATORS
from flowbook.spec.decorators import (
    StepMark,
    card,
    catch,
    checkpoint,
    class_findings,
    class_marks,
    conda,
    conda_base,
    environment,
    exit_hook,
    exit_hooks_of,
    kubernetes,
    notes_of,
    options_of,
    parallel,
    parse_with,
    project,
    project_of,
    pypi,
    resources,
    retry,
    schedule,
    secrets,
    step,
    timeout,
    user_step_decorator,
    wrappers_of,
)
from flowbook.spec.flow import Card, Checkpoint, Options, Resources, Retry, from_json, to_json
from flowbook.spec.flowspec import FlowSpec
from flowbook.spec.marks import Mark
from flowbook.spec.parameters import Config, config_expr
from flowbook.spec.schedules import Schedule, starts_of


def marked(*found: Any) -> Any:
    """A function with these decorators, the first one outermost."""

    def train(self: Any) -> None: ...

    for decorate in reversed(found):
        assert decorate(train) is train
    return train


def options(*found: Any, with_: tuple[str, ...] = ()) -> Options:
    return options_of(marked(*found), "flow.py, step train", [parse_with(text) for text in with_])


def said(*found: Any, with_: tuple[str, ...] = ()) -> str:
    with pytest.raises(DefinitionError) as raised:
        options(*found, with_=with_)
    return str(raised.value)


# ---- what they become ---------------------------------------------------------------------------------------------------


class Flaky(OSError): ...


BECOME = [
    (resources, Options()),
    (resources(), Options()),
    (resources(cpu=8, memory=32000, gpu=1, disk=500_000), Options(resources=Resources(8, 32000, 1, 500_000))),
    (resources(cpu="0.5", memory="32GB", gpu="2", disk="1TB"), Options(resources=Resources(0.5, 32000, 2, 10**6))),
    (resources(memory=4e3, shared_memory=64, gpu=None), Options(resources=Resources(1, 4000, 0, None, 64))),
    (retry, Options(retry=Retry(3, 2))),
    (retry(times=0), Options(retry=Retry(0, 2))),
    (retry(times=3, minutes_between_retries=0.01), Options(retry=Retry(3, 0.01))),
    (
        retry(times=5, backoff=2, jitter=0.1, max_minutes=30, only=OSError, unless=["FileNotFoundError", "oom"]),
        Options(retry=Retry(5, 2, 2, 0.1, 30, ("OSError",), ("FileNotFoundError", "oom"))),
    ),
    (retry(only=(Flaky, json.JSONDecodeError)), Options(retry=Retry(3, only=(f"{__name__}.Flaky", "json.decoder.JSONDecodeError")))),
    (timeout(hours=1, minutes=30, seconds=5), Options(timeout_s=5405)),
    (catch, Options(catch="")),
    (catch(var="error"), Options(catch="error")),
    (catch(print_exception=False), Options(catch="", print_exception=False)),
    (environment(vars={"A": "1", "B": 2, "C": None}), Options(env=(("A", "1"), ("B", "2"), ("C", None)))),
    (card, Options(cards=(Card(),))),
    (
        card(type="blank", id="c1", options={"columns": 2}, timeout=9, refresh_interval=0.5, save_errors=False, customize=True, rank=1),
        Options(cards=(Card("blank", "c1", 0.5, 9, '{"columns": 2}', False, True),)),
    ),
    (checkpoint, Options(checkpoint=Checkpoint())),
    (checkpoint(load_policy="eager"), Options(checkpoint=Checkpoint("eager"))),
    (kubernetes, Options(extra=(("kubernetes", "{}"),))),
    (kubernetes(image="python:3.12", memory=8000), Options(extra=(("kubernetes", '{"image": "python:3.12", "memory": 8000}'),))),
    (pypi(packages={"numpy": "2.1"}), Options(extra=(("pypi", '{"packages": {"numpy": "2.1"}}'),))),
    (conda(python="3.12"), Options(extra=(("conda", '{"python": "3.12"}'),))),
    (step, Options()),
    (step(start=True), Options()),
]


@pytest.mark.parametrize(("decorate", "expected"), BECOME)
def test_a_decorator_becomes_options(decorate: Any, expected: Options) -> None:
    found = options(decorate)

    assert found == expected
    assert from_json(Options, json.loads(json.dumps(to_json(found)))) == found


def test_decorators_commute_above_and_below_step() -> None:
    every = [step, retry, checkpoint(), resources(gpu=1), card]

    found = {repr(options(*order)) for order in itertools.permutations(every)}

    assert found == {repr(Options(resources=Resources(gpu=1), retry=Retry(3), cards=(Card(),), checkpoint=Checkpoint()))}
    assert all(marked(*order).is_step for order in itertools.permutations(every))


def test_step_marks_a_method_with_and_without_parentheses() -> None:
    assert marked(step).__flowbook_step__ == StepMark()
    assert marked(step()).__flowbook_step__ == StepMark()
    assert marked(step(start=True)).__flowbook_step__ == StepMark(start=True)
    assert marked(step(end=True)).__flowbook_step__ == StepMark(end=True)
    assert not hasattr(marked(retry), "is_step")


def test_cards_stand_in_the_order_in_which_they_are_written() -> None:
    assert [each.id for each in options(card(id="a"), retry, card(id="b"), card).cards] == ["a", "b", None]


def test_secrets_become_places_and_never_values() -> None:
    found = options(
        secrets(sources=["TOKEN", "env:A=B", "file:~/keys", "KEY=file:k.txt", {"type": "vault", "id": "x", "options": {"v": 1}}], role="r")
    )

    assert [json.loads(text) for text in found.secrets] == [
        {"kind": "env", "place": "TOKEN", "target": "TOKEN", "role": "r"},
        {"kind": "env", "place": "A", "target": "B", "role": "r"},
        {"kind": "file", "place": "~/keys", "role": "r"},
        {"kind": "file", "place": "k.txt", "target": "KEY", "role": "r"},
        {"kind": "vault", "place": "x", "role": "r", "options": {"v": 1}},
    ]


def test_what_only_other_places_heed_is_kept_and_noted() -> None:
    notes = notes_of(options(kubernetes(image="x"), pypi(packages={}), conda))

    assert [note.split(":")[0] for note in notes] == [
        "@kubernetes has no effect here",
        "@pypi has no effect here",
        "@conda has no effect here",
    ]
    assert notes_of(options(retry)) == []


# ---- what is wrong -------------------------------------------------------------------------------------------------------


WRONG = [
    (resources(cpus=2), "flow.py, step train: @resources: unknown argument cpus; did you mean cpu?\n    arguments: cpu, gpu, memory"),
    (resources(cpu=0), "@resources: cpu=0: not a number of cores\n    write a number above 0"),
    (resources(cpu=True), "@resources: cpu=True: not a number of cores"),
    (resources(cpu=float("nan")), "cpu=nan: not a number of cores"),
    (resources(gpu=0.5), "gpu=0.5: not a number of GPUs\n    write a whole number from 0"),
    (resources(gpu=-1), "gpu=-1: not a number of GPUs"),
    (resources(memory=32), "memory=32: a bare number is megabytes, and 32 MB is hardly meant\n    did you mean 32GB (32000)?"),
    (resources(memory=32 * 10**9), "memory=32000000000: more than any machine has\n    did you mean 32000MB?"),
    (resources(memory="lots"), "memory='lots': not an amount of memory"),
    (resources(memory=[1]), "memory=[1]: not a size"),
    (resources(memory=float("inf")), "memory=inf: not a size"),
    (resources(disk=10), "disk=10: a bare number is megabytes"),
    (resources(shared_memory=8), "shared_memory=8: a bare number is megabytes"),
    (resources(4), "@resources: a value without a name\n    write @resources(cpu=…)"),
    (retry(3), "@retry: a value without a name\n    write @retry(times=…)"),
    (retry(times=-1), "times=-1: not a number of attempts"),
    (retry(times=1.5), "times=1.5: not a number of attempts"),
    (retry(times="many"), "times='many': not a number of attempts"),
    (retry(minutes_between_retries=-1), "minutes_between_retries=-1: not a number of minutes"),
    (retry(backoff=0.5), "backoff=0.5: not a factor\n    write a number from 1 to 100"),
    (retry(jitter=2), "jitter=2: not a share"),
    (retry(only=5), "only=5: 5 is no exception class"),
    (retry(only=int), "only=int: <class 'int'> is no exception class"),
    (retry(unless=["a b"]), "unless=['a b']: 'a b' is not the name of an error"),
    (timeout, "@timeout: no time at all\n    write @timeout(minutes=15)"),
    (timeout(seconds=0), "@timeout: no time at all"),
    (timeout(minutes=-5), "minutes=-5: not a number of minutes"),
    (catch(var="a b"), "var='a b': not the name of an artifact"),
    (catch(var="__x"), "var='__x': not the name of an artifact"),
    (catch(var="input"), "var='input': a flow has an attribute of that name itself"),
    (environment(vars=["A"]), "@environment: vars: not a dict"),
    (environment(vars={"1A": "x"}), "vars: '1A' is not a variable's name"),
    (environment(vars={"A": {}}), "vars: the value of A is not a text"),
    (secrets, "@secrets: no source"),
    (secrets(sources=[]), "@secrets: sources: no source"),
    (secrets(sources=[5]), "sources: a source is a text or a dict, not int"),
    (secrets(sources=["a b"]), "sources: 'a b': not a source of secrets"),
    (secrets(sources=["kubernetes:My_DB"]), "'My_DB' is no name of a Secret in Kubernetes"),
    (secrets(sources=["env:1"]), "'1' is not a variable's name"),
    (secrets(sources=[{"id": "x"}]), 'a source written as a dict needs "type"'),
    (secrets(sources=[{"type": "x", "idd": "x"}]), "'idd' is not known of a source"),
    (secrets(sources=["A"], allow_override="yes"), "allow_override='yes': not True or False"),
    (card(type="a b"), "type='a b': not a type of card"),
    (card(id="a b"), "id='a b': not an id of a card"),
    (card(options=[1]), "options=[1]: not a dict"),
    (card(options={"x": object}), "not plain data"),
    (card(refresh_interval=0), "refresh_interval=0: not a number of seconds"),
    (checkpoint(load_policy="latest"), "load_policy='latest': not known\n    write one of fresh, eager, none"),
    (kubernetes(imgae="x"), "@kubernetes: unknown argument imgae; did you mean image?"),
    (kubernetes(labels={1, 2}), "not plain data"),
    (pypi(packages=["numpy"]), "packages=['numpy']: not a dict of versions by name"),
    (parallel, "@parallel (one step on several nodes at once) is not supported"),
    (schedule(cron="0 6 * * 1"), "@schedule stands above a step\n    put it above the class of the flow"),
    (step(strat=True), "@step: unknown argument strat; did you mean start?"),
    (step(start="yes"), "@step: start='yes': not True or False"),
]


@pytest.mark.parametrize(("decorate", "message"), WRONG)
def test_a_wrong_argument_names_the_place_the_value_and_what_is_taken(decorate: Any, message: str) -> None:
    assert message in said(decorate)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(DefinitionError) as raised:
        options(resources(cpu=0, gup=1), retry(times=-1), retry, timeout, card(id="a"), card(id="a"))

    assert [finding.where for finding in raised.value.findings] == ["flow.py, step train"] * 6
    assert [finding.what.split(":")[0] for finding in raised.value.findings] == [
        "@retry is given 2 times",
        "@resources",
        "@resources",
        "@retry",
        "@timeout",
        "@card",
    ]
    assert "two cards have the id 'a'" in str(raised.value)


@pytest.mark.parametrize("found", [environment(vars={"MY_TOKEN": "hunter2secret"}), secrets(sources=['inline:{"A": hunter2secret}'])])
def test_a_secret_is_never_repeated(found: Any) -> None:
    assert "hunter2secret" not in said(found)


@pytest.mark.parametrize("name", [name for name, known in DECORATORS.items() if not known.of_class])
@given(
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.lists(st.integers(), max_size=2),
        st.just({"a": object()}),
    )
)
@settings(max_examples=20)
def test_no_value_makes_a_decorator_fail_in_any_other_way(name: str, value: Any) -> None:
    for argument in DECORATORS[name].arguments:
        try:
            json.dumps(to_json(options(getattr(decorators, name)(**{argument: value}))))
        except DefinitionError as error:
            assert error.findings and all(finding.what for finding in error.findings)


def test_a_decorator_above_what_is_no_method_says_so_at_once() -> None:
    with pytest.raises(DefinitionError, match="@retry stands above train, which is neither a method nor a class of a flow"):
        retry(times=1)(type("train", (), {"__slots__": ()})())  # an object that takes no attributes
    with pytest.raises(DefinitionError, match="@retry stands above ValueError"):
        retry(times=1)(ValueError)


def test_an_exception_class_in_the_place_of_an_argument_is_no_target() -> None:
    assert "@retry: a value without a name" in said(retry(ValueError))
    assert not hasattr(ValueError, "__flowbook_marks__")


def test_a_decorator_of_steps_above_a_class_is_a_finding() -> None:
    @retry
    class DemoFlow(FlowSpec): ...

    assert [str(each) for each in class_findings(DemoFlow)] == [
        "DemoFlow: @retry stands above a class\n    put it above a method with @step"
    ]


# ---- --with ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("retry", {}),
        ("retry:", {}),
        ("retry:times=3,minutes_between_retries=0.1", {"times": 3, "minutes_between_retries": 0.1}),
        ("retry:only=OSError,times=2", {"only": "OSError", "times": 2}),
        ("retry:only=OSError,KeyError,times=2", {"only": "OSError,KeyError", "times": 2}),
        ('retry:only=["OSError", "KeyError"],times=2', {"only": ["OSError", "KeyError"], "times": 2}),
        ("card:type=blank,id=c1", {"type": "blank", "id": "c1"}),
        ('card:options={"a": 1, "b": [1, 2]},type=blank', {"options": {"a": 1, "b": [1, 2]}, "type": "blank"}),
        ('environment:vars={"A":"x,y=z"}', {"vars": {"A": "x,y=z"}}),
        ("catch:print_exception=False,var=error", {"print_exception": False, "var": "error"}),
        ("catch:print_exception=true", {"print_exception": True}),
        ("resources:memory=32GB,cpu=4", {"memory": "32GB", "cpu": 4}),
        ('secrets:sources=["A","file:b"]', {"sources": ["A", "file:b"]}),
        ("kubernetes", {}),
        ("kubernetes:image=repo/image:tag,memory=8000", {"image": "repo/image:tag", "memory": 8000}),
        ("checkpoint:load_policy=eager", {"load_policy": "eager"}),
        ("timeout:minutes = 5", {"minutes": 5}),
    ],
)
def test_a_decorator_comes_from_the_command_line(text: str, arguments: dict[str, Any]) -> None:
    mark = parse_with(text)

    assert (mark.name, mark.arguments) == (text.partition(":")[0], arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rety", "--with rety: unknown decorator 'rety'; did you mean retry?"),
        ("", "unknown decorator ''"),
        ("step", "unknown decorator 'step'"),
        ("schedule:cron=0 6 * * 1", "@schedule is of the class, and --with adds to steps"),
        ("retry:3", "'3' is not of the form NAME=VALUE"),
        ("retry:times=3,times=4", "times is given twice"),
        ("retry:times=x", "--with retry:times=x: --with retry: times='x': not a number of attempts"),
        ("retry:tmies=3", "unknown argument tmies; did you mean times?"),
        ("timeout", "@timeout: no time at all"),
        ("parallel", "@parallel (one step on several nodes at once) is not supported"),
    ],
)
def test_a_wrong_decorator_of_the_command_line_is_refused_once(text: str, message: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_with(text)

    assert message in str(raised.value)


@given(st.text(max_size=30), st.sampled_from(["retry", "card", "environment", "secrets"]))
def test_no_text_makes_with_fail_in_any_other_way(text: str, name: str) -> None:
    try:
        parse_with(f"{name}:{text}")
    except DefinitionError as error:
        assert error.findings


def test_with_adds_only_where_the_step_has_no_such_decorator() -> None:
    assert options(retry(times=1), with_=("retry:times=9", "card")) == Options(retry=Retry(1), cards=(Card(),))
    assert options(retry(times=0), with_=("retry",)).retry.times == 0
    assert options(card(type="blank"), with_=("card",)).cards == (Card("blank"),)
    assert options(with_=("card", "card:type=blank")).cards == (Card(), Card("blank"))
    assert "@retry is given 2 times" in said(with_=("retry", "retry:times=2"))


# ---- classes ------------------------------------------------------------------------------------------------------------------


def tell(run: Any) -> None: ...


def test_marks_of_a_class_are_its_own_list_after_those_of_its_bases() -> None:
    @project(name="shop")
    @schedule
    class Base(FlowSpec): ...

    @exit_hook(on_success=[tell])
    class Later(Base): ...

    class Plain(Base): ...

    assert [mark.name for mark in class_marks(Base)] == ["project", "schedule"]
    assert [mark.name for mark in class_marks(Later)] == ["project", "schedule", "exit_hook"]
    assert [mark.name for mark in Later.__flowbook_marks__] == ["project", "schedule", "exit_hook"]  # type: ignore[attr-defined]
    assert [mark.name for mark in class_marks(Plain)] == ["project", "schedule"]
    assert class_findings(Later) == []


@pytest.mark.parametrize(
    ("given", "branch"),
    [
        ({}, "user.ann"),
        ({"branch": "lr"}, "test.lr"),
        ({"production": True}, "prod"),
        ({"production": True, "branch": "v2"}, "prod.v2"),
    ],
)
def test_a_project_names_its_branch(given: dict[str, Any], branch: str) -> None:
    @project(name="shop", **given)
    class DemoFlow(FlowSpec): ...

    found = project_of(DemoFlow)

    assert found is not None and found.branch_name("ann") == branch
    assert dict(found.current("DemoFlow", "ann")) == {
        "project_name": "shop",
        "branch_name": branch,
        "is_user_branch": branch == "user.ann",
        "is_production": branch.startswith("prod"),
        "project_flow_name": f"shop.{branch}.DemoFlow",
    }


@pytest.mark.parametrize(
    ("decorate", "message"),
    [
        (project, "@project: the name is missing"),
        (project(name="a b"), "name='a b': not a name of a project"),
        (project(name="a", prodution=True), "unknown argument prodution; did you mean production?"),
        (exit_hook(on_success=["tell"]), "'tell' is no function"),
        (conda_base(packages=1), "packages=1: not a dict of versions by name"),
    ],
)
def test_a_wrong_decorator_of_a_class_is_a_finding(decorate: Any, message: str) -> None:
    class DemoFlow(FlowSpec): ...

    decorate(DemoFlow)

    assert message in "\n".join(map(str, class_findings(DemoFlow)))


def test_exit_hooks_are_functions_in_order() -> None:
    @exit_hook(on_success=[tell])
    @exit_hook(on_error=tell)
    class DemoFlow(FlowSpec): ...

    assert [(hook.on_success, hook.on_error) for hook in exit_hooks_of(DemoFlow)] == [((tell,), ()), ((), (tell,))]


def test_a_config_may_give_an_argument() -> None:
    class DemoFlow(FlowSpec):
        config = Config("config", default_value={"cpu": 4, "vars": {"A": "x"}, "cron": "0 6 * * 1"})

        @resources(cpu=config_expr("config.cpu"))
        @environment(vars=config_expr("config.vars"))
        @retry(times=config_expr("config.nothing"))
        def train(self) -> None: ...

    with pytest.raises(DefinitionError) as raised:
        options_of(DemoFlow.train, "train", cls=DemoFlow)

    assert [finding.what.split(":")[0] for finding in raised.value.findings] == ["@retry"]
    DemoFlow.train.__flowbook_marks__.pop()  # type: ignore[attr-defined]
    assert options_of(DemoFlow.train, "train", cls=DemoFlow) == Options(resources=Resources(4), env=(("A", "x"),))


def test_a_config_may_give_an_argument_of_a_class() -> None:
    @schedule(cron=config_expr("config.cron"), timezone=config_expr("config.zone"))
    class DemoFlow(FlowSpec):
        config = Config("config", default_value={"cron": "0 6 * * 1", "zone": "Europe/Berlin"})

    @schedule(cron=config_expr("config.nothing"))
    class OtherFlow(DemoFlow): ...

    assert class_findings(DemoFlow) == [] and starts_of(DemoFlow).schedule == Schedule("0 6 * * 1", "Europe/Berlin")
    assert [finding.what.split(":")[:2] for finding in class_findings(OtherFlow)] == [["@schedule", " cron"]]
    assert starts_of(OtherFlow).schedule is None


# ---- doors ----------------------------------------------------------------------------------------------------------------------


class Live:
    """What a worker sets: it notes what it is asked for."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self.components = "live"

    def append(self, what: str) -> str:
        return f"appended {what}"

    def loop(self, iterable: Any) -> Iterator[str]:
        return (f"live {each}" for each in iterable)

    def __getitem__(self, key: str) -> Any:
        return self.items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.items[key] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self.items)

    def __contains__(self, key: str) -> bool:
        return key in self.items


@pytest.mark.parametrize("door", [card, checkpoint])
def test_a_door_leads_to_the_live_object_while_a_task_runs(door: Any) -> None:
    door._set_live(Live())
    try:
        door["a"] = 1
        assert (door.append("x"), door.components, door["a"], list(door), "a" in door) == ("appended x", "live", 1, ["a"], True)
        with pytest.raises(AttributeError, match="nothing"):
            door.nothing  # noqa: B018
        assert options(door) != Options()  # it still decorates
    finally:
        door._set_live(None)
    assert not door.components


@pytest.mark.parametrize("door", [card, checkpoint])
def test_a_door_outside_a_task_takes_everything_and_does_nothing(door: Any) -> None:
    door.append("x").update(5)
    door["a"] = door["b"]["c"].d
    with door.anything() as inside:
        assert not inside and list(inside) == [] and list(door) == [] and "x" not in door
    assert not hasattr(door, "_repr_html_") and not hasattr(door.append, "__array__")


def test_loops_outside_a_task_only_iterate() -> None:
    assert list(checkpoint.loop(range(3), model=1, every="30s")) == [0, 1, 2]
    assert list(card.progress([1, 2], label="x")) == [1, 2]


def test_decorators_pickle_by_name() -> None:
    for each in (card, checkpoint, retry, step):
        assert pickle.loads(pickle.dumps(each)) is each
    own = cloudpickle.loads(cloudpickle.dumps(noted))
    assert [wrapper.name for wrapper in wrappers_of(marked(own(tag="a")))] == ["noted"]


# ---- one's own --------------------------------------------------------------------------------------------------------------------


@user_step_decorator
def noted(step_name: str, flow: Any, inputs: Any = None, attributes: Any = None) -> Iterator[None]:
    """Notes what happens."""
    flow.notes.append(f"{step_name} {attributes} begins")
    try:
        yield
    except ZeroDivisionError:
        flow.notes.append("swallowed")
    flow.notes.append(f"{attributes} ends")


@user_step_decorator
def short(step_name: str, flow: Any) -> Iterator[None]:
    yield
    flow.notes.append("short")


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []


def test_a_decorator_of_ones_own_wraps_the_step_the_outermost_first() -> None:
    function, flow = marked(noted(tag="a"), step, short, retry, noted), Notes()

    wrappers = wrappers_of(function)

    assert [(wrapper.name, dict(wrapper.attributes)) for wrapper in wrappers] == [("noted", {"tag": "a"}), ("short", {}), ("noted", {})]
    with wrappers[0].around("train", flow), wrappers[1].around("train", flow), wrappers[2].around("train", flow):  # type: ignore[arg-type]
        flow.notes.append("body")
    assert flow.notes == ["train {'tag': 'a'} begins", "train {} begins", "body", "{} ends", "short", "{'tag': 'a'} ends"]
    assert options_of(function, "train") == Options(retry=Retry(3))
    assert wrappers_of(marked(retry)) == []


def test_an_exception_of_the_step_is_raised_at_the_yield() -> None:
    (wrapper,), flow = wrappers_of(marked(noted)), Notes()

    with wrapper.around("train", flow):  # type: ignore[arg-type]
        raise ZeroDivisionError
    with pytest.raises(KeyError), wrapper.around("train", flow):  # type: ignore[arg-type]
        raise KeyError("passes")
    assert flow.notes == ["train {} begins", "swallowed", "{} ends", "train {} begins"]


def test_a_decorator_of_ones_own_takes_named_arguments_only() -> None:
    assert "@noted: a value without a name" in said(noted("a"))


@pytest.mark.parametrize("function", [lambda step_name, flow: None, 5, len, lambda: (yield), lambda a, b, c, d, e: (yield)])
def test_only_a_generator_function_becomes_a_decorator(function: Any) -> None:
    with pytest.raises(DefinitionError, match="not a generator function of two to four arguments"):
        user_step_decorator(function)


# ---- the house ----------------------------------------------------------------------------------------------------------------------


def test_every_decorator_is_in_the_table_and_every_entry_is_a_decorator() -> None:
    surface = {name for name, value in vars(decorators).items() if isinstance(value, decorators.Decorator)}

    assert surface == set(DECORATORS)
    for name in surface:
        assert getattr(decorators, name).__doc__


def test_a_worker_that_imports_a_flow_does_not_load_what_checks_it() -> None:
    code = "import sys, flowbook.spec.decorators as d\nd.retry(times=3)(lambda self: 0)\nprint([m for m in sys.modules if m.startswith('flowbook.spec')])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "flowbook.spec.arguments" not in loaded and "flowbook.spec.schedules" not in loaded and "flowbook.spec.options" not in loaded


def test_a_mark_says_what_was_written() -> None:
    assert Mark("retry", {"times": 3}).shown == "@retry"
    assert parse_with("retry:times=3").shown == "--with retry"
