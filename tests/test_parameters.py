"""What a flow is told from outside: parameters of every type, files, configs; given well, given badly, and not given."""

from __future__ import annotations

import copy
import datetime
import enum
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy
import pytest

from flowbook.errors import DefinitionError, FlowbookError
from flowbook.spec import parameters
from flowbook.spec.flowspec import FlowSpec
from flowbook.spec.parameters import (
    Config,
    ConfigValue,
    IncludeFile,
    JSONType,
    Parameter,
    ParameterContext,
    check_parameters,
    config_arguments,
    config_environment,
    config_expr,
    evaluate,
    parameters_of,
    resolve,
    set_config_sources,
)

ROOT = Path(__file__).parent.parent


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


def flow(**attributes: Any) -> type:
    """A flow whose class body is these attributes."""
    return type("TrainFlow", (FlowSpec,), attributes)


def findings(cls: type, given: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> list[str]:
    """What and remedy of each finding of `resolve`, without places."""
    with pytest.raises(DefinitionError) as caught:
        resolve(cls, given or {}, environ)
    return [f"{finding.what} | {finding.remedy}" for finding in caught.value.findings]


@pytest.fixture(autouse=True)
def _no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    set_config_sources()
    yield
    set_config_sources()


# ---- types -----------------------------------------------------------------------------------------------------------

READ = [
    (Parameter("p"), " a b ", " a b "),
    (Parameter("p", default=1), " 12 ", 12),
    (Parameter("p", type=int), "1_000", 1000),
    (Parameter("p", default=0.1), "1e-3", 0.001),
    (Parameter("p", type=float), "3", 3.0),
    (Parameter("p", default=False), "True", True),
    (Parameter("p", type=bool), "no", False),
    (Parameter("p", type=JSONType), '{"a": [1, null]}', {"a": [1, None]}),
    (Parameter("p", type=JSONType), "null", None),
    (Parameter("p", default={}), '{"a": 1}', {"a": 1}),
    (Parameter("p", type=dict[str, int]), '{"a": 1}', {"a": 1}),
    (Parameter("p", default=[0.1, 0.2]), "1,2.5", [1.0, 2.5]),
    (Parameter("p", type=list), "a, b", ["a", "b"]),
    (Parameter("p", type=list), '["a,b", 2]', ["a,b", 2]),
    (Parameter("p", type=list), "", []),
    (Parameter("p", type=list[int], separator=";"), "1; 2", [1, 2]),
    (Parameter("p", type=list[Colour]), "RED,blue", [Colour.RED, Colour.BLUE]),
    (Parameter("p", default=(1, 2)), "3,4", (3, 4)),
    (Parameter("p", separator=","), "a,b c,[", ["a", "b c", "["]),
    (Parameter("p", default="a|b", separator="|"), "c|d", ["c", "d"]),
    (Parameter("p", type=int, separator=","), "1,2", [1, 2]),
    (Parameter("p", type=datetime.date), "2026-01-31", datetime.date(2026, 1, 31)),
    (Parameter("p", default=datetime.date(2026, 1, 1)), "2026-01-31", datetime.date(2026, 1, 31)),
    (Parameter("p", type=datetime.datetime), "2026-01-31T06:00Z", datetime.datetime(2026, 1, 31, 6, tzinfo=datetime.timezone.utc)),  # noqa: UP017
    (Parameter("p", type=Colour), "RED", Colour.RED),
    (Parameter("p", default=Colour.RED), "blue", Colour.BLUE),
    (Parameter("p", type=Colour), "b", Colour.BLUE),
    (Parameter("p", type=Path), "a/b", Path("a/b")),
    (Parameter("p", default=Path("x")), "y", Path("y")),
    (Parameter("p", choices=["adam", "sgd"]), "sgd", "sgd"),
    (Parameter("p", choices=[1, 2]), "2", 2),
]


@pytest.mark.parametrize(("parameter", "text", "value"), READ, ids=lambda case: str(case)[:20] if isinstance(case, str) else None)
def test_a_text_is_read_by_the_type(parameter: Parameter, text: str, value: Any) -> None:
    assert parameter.check() == []
    found = parameter.parse(text)
    assert (found, type(found)) == (value, type(value))


BAD = [
    (Parameter("p", default=1), "1.5", "`--p 1.5`, but a whole number is expected", "Default: 1."),
    (Parameter("p", type=int), "", "`--p `, but a whole number is expected", "It has no default."),
    (Parameter("p", type=float), "1,5", "`--p 1,5`, but a number is expected", "It has no default."),
    (Parameter("p", default=True), "maybe", "`--p maybe`, but true or false is expected", "Default: True."),
    (Parameter("p", type=JSONType), "{a: 1}", "`--p {a: 1}`, but JSON is expected", "It has no default."),
    (Parameter("p", default={"a": 1}), "[1]", '`--p [1]`, but a JSON object, like {"a": 1} is expected', 'Default: {"a": 1}.'),
    (Parameter("p", default=[1]), "1,x", "a list with ',' between (whole number each) or a JSON list is expected", "Default: [1]."),
    (Parameter("p", type=list[int]), '["x"]', "a list with ',' between (whole number each)", "It has no default."),
    (Parameter("p", type=list), "[1", "a list with ',' between (item each) or a JSON list is expected", "It has no default."),
    (Parameter("p", type=datetime.date), "31.1.2026", "a date, like 2026-01-31 is expected", "It has no default."),
    (Parameter("p", type=datetime.datetime), "soon", "a date with time, like 2026-01-31T12:00 is expected", "It has no default."),
    (Parameter("p", default=Colour.RED), "BLU", "one of RED, BLUE is expected", "Default: RED. Did you mean BLUE?"),
    (Parameter("p", default="adam", choices=["adam", "sgd"]), "adm", "one of adam, sgd is expected", "Default: adam. Did you mean adam?"),
    (Parameter("p", type=JSONType), "[" * 100_000, "JSON is expected", "It has no default."),
    (Parameter("p", type=int), "9" * 5000, "9…`, but a whole number is expected", "It has no default."),
]


@pytest.mark.parametrize(("parameter", "text", "what", "remedy"), BAD, ids=range(len(BAD)))
def test_a_text_that_does_not_fit_is_refused_with_what_is_expected(parameter: Parameter, text: str, what: str, remedy: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parameter.parse(text)

    (finding,) = caught.value.findings
    assert what in finding.what and finding.remedy == remedy
    assert finding.where.startswith("parameter p (test_parameters.py, line ")


TAKEN = [
    (Parameter("p", type=int), numpy.int64(3), 3),
    (Parameter("p", type=int), 3.0, 3),
    (Parameter("p", type=int), "3", 3),
    (Parameter("p", type=float), 3, 3.0),
    (Parameter("p", type=float), numpy.float32(0.5), 0.5),
    (Parameter("p", type=bool), numpy.bool_(True), True),
    (Parameter("p", type=JSONType), {"a": [1]}, {"a": [1]}),
    (Parameter("p", type=JSONType), '{"a": [1]}', {"a": [1]}),
    (Parameter("p", type=list[int]), (1, 2), [1, 2]),
    (Parameter("p", type=list[float]), range(2), [0.0, 1.0]),
    (Parameter("p", separator=","), ["a", "b"], ["a", "b"]),
    (Parameter("p", default=(1,)), [2], (2,)),
    (Parameter("p", type=Colour), Colour.RED, Colour.RED),
    (Parameter("p", type=Path), Path("a"), Path("a")),
    (Parameter("p", choices=[1, 2]), 2, 2),
    (Parameter("p", type=int), None, None),
]


@pytest.mark.parametrize(("parameter", "given", "value"), TAKEN, ids=range(len(TAKEN)))
def test_a_python_value_is_checked_and_made_plain(parameter: Parameter, given: Any, value: Any) -> None:
    found = parameter.convert(given)
    assert (found, type(found)) == (value, type(value))


REFUSED = [
    (Parameter("p", type=int), 1.5),
    (Parameter("p", type=int), True),
    (Parameter("p", type=int), float("nan")),
    (Parameter("p", type=int), float("inf")),
    (Parameter("p", type=float), True),
    (Parameter("p", type=float), [1]),
    (Parameter("p", type=bool), 1),
    (Parameter("p", type=str), 1),
    (Parameter("p", type=JSONType), {1, 2}),
    (Parameter("p", type=JSONType), object()),
    (Parameter("p", type=dict), [1]),
    (Parameter("p", type=list), b"ab"),
    (Parameter("p", type=list), {"a": 1}),
    (Parameter("p", type=list[int]), [1, None]),
    (Parameter("p", type=datetime.date), datetime.datetime(2026, 1, 1)),
    (Parameter("p", type=datetime.datetime), datetime.date(2026, 1, 1)),
    (Parameter("p", type=Colour), 1),
    (Parameter("p", type=Path), 1),
    (Parameter("p", choices=[1, 2]), 3),
    (Parameter("p", type=int, required=True), None),
]


@pytest.mark.parametrize(("parameter", "given"), REFUSED, ids=range(len(REFUSED)))
def test_a_python_value_that_does_not_fit_is_refused(parameter: Parameter, given: Any) -> None:
    with pytest.raises(DefinitionError, match="`p=.*`, but .* is expected"):
        parameter.convert(given)


def test_a_value_that_holds_itself_is_no_json() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(DefinitionError, match="but JSON is expected"):
        Parameter("p", type=JSONType).convert(value)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(DefinitionError) as caught:
        Parameter("p", type=int).parse("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_help_knows_type_and_default_in_words() -> None:
    assert (Parameter("p", default=0.1).expected, Parameter("p", default=0.1).default_text) == ("a number", "0.1")
    assert (Parameter("p", default=[1, 2]).default_text, Parameter("p", default=Colour.RED).default_text) == ("[1, 2]", "RED")
    assert Parameter("p", default=lambda context: 1).default_text == "set when the run starts"
    assert Parameter("p", default=1, show_default=False).default_text is None
    assert Parameter("p").default_text is None
    assert IncludeFile("p", default="a.csv").expected == "the path of a file"
    assert Parameter("p", default=Config("nowhere_to_be_found", required=True).alpha).default_text == "nowhere_to_be_found.alpha"


# ---- a class ---------------------------------------------------------------------------------------------------------


def test_the_attribute_may_have_another_name_than_the_option() -> None:
    cls = flow(rate=Parameter("learning-rate", default=0.1))

    assert list(parameters_of(cls)) == ["rate"]
    for name in ("learning-rate", "learning_rate", "Learning-Rate", "rate"):
        assert resolve(cls, {name: "0.5"}) == {"rate": 0.5}


def test_parameters_come_in_the_order_of_definition_those_of_base_classes_first() -> None:
    class Base(FlowSpec):
        alpha = Parameter("alpha", default=1)
        beta = Parameter("beta", default=2)
        gone = Parameter("gone", default=3)

    class Child(Base):
        gamma = Parameter("gamma", default=4)
        alpha = Parameter("alpha", default=10)
        gone = 5

    assert resolve(Child, {}) == {"alpha": 10, "beta": 2, "gamma": 4}
    assert resolve(Base, {}) == {"alpha": 1, "beta": 2, "gone": 3}


def test_the_class_gives_the_parameter_and_a_task_its_value() -> None:
    class Task:
        def parameter(self, attribute: str) -> str:
            return f"value of {attribute}"

    cls = flow(alpha=Parameter("al-pha"), config=Config("config"), file=IncludeFile("file"))
    self = cls(use_cli=False)
    object.__setattr__(self, "_task", Task())  # as the worker does

    assert cls.alpha is vars(cls)["alpha"] and cls.config is vars(cls)["config"]
    assert [self.alpha, self.config, self.file] == ["value of alpha", "value of config", "value of file"]


@pytest.mark.parametrize("name", ["alpha", "config"])
def test_parameters_are_read_only(name: str) -> None:
    self = flow(alpha=Parameter("alpha"), config=Config("config"))(use_cli=False)

    with pytest.raises(AttributeError, match=rf"{name!r} is a parameter, and parameters are read-only"):
        setattr(self, name, 1)
    with pytest.raises(AttributeError, match="read-only"):
        delattr(self, name)


def test_a_parameter_read_outside_of_a_run_says_so() -> None:
    with pytest.raises(FlowbookError, match=r"self\.alpha is a parameter and has a value only while a step runs"):
        flow(alpha=Parameter("alpha", default=1))(use_cli=False).alpha  # noqa: B018


def test_an_optional_parameter_that_nobody_gives_is_none() -> None:
    assert resolve(flow(a=Parameter("a", type=int), b=IncludeFile("b"), c=Config("c")), {}) == {"a": None, "b": None, "c": None}


def test_all_that_is_wrong_with_what_is_given_is_said_at_once() -> None:
    cls = flow(alpha=Parameter("alpha", default=1), data=Parameter("data", required=True), rate=Parameter("learning_rate", type=float))

    assert findings(cls, {"alpha": "x", "learnin-rate": "1", "zeta": "2"}) == [
        "no parameter `learnin-rate`; did you mean --learning_rate? | Parameters: alpha, data, learning_rate.",
        "no parameter `zeta` | Parameters: alpha, data, learning_rate.",
        "`--alpha x`, but a whole number is expected | Default: 1.",
        "it is required, and nobody gives it (a text) | Give --data VALUE, or set FLOWBOOK_PARAM_DATA.",
    ]
    assert findings(flow(), {"alpha": "1"}) == ["no parameter `alpha` | The flow has no parameters."]


def test_a_parameter_is_given_once() -> None:
    assert findings(flow(a=Parameter("my-rate")), {"my-rate": "1", "my_rate": "2"}) == [
        "it is given twice, also as `my_rate` | Give it once."
    ]


def test_the_environment_gives_what_the_command_line_does_not() -> None:
    cls = flow(rate=Parameter("learning-rate", default=0.1))
    ours, theirs = {"FLOWBOOK_PARAM_LEARNING_RATE": "0.2"}, {"METAFLOW_RUN_LEARNING_RATE": "0.3"}

    assert resolve(cls, {}, theirs) == {"rate": 0.3}
    assert resolve(cls, {}, theirs | ours) == {"rate": 0.2}
    assert resolve(cls, {"learning-rate": "0.4"}, theirs | ours) == {"rate": 0.4}
    assert findings(cls, {}, {"METAFLOW_RUN_LEARNING_RATE": "x"}) == [
        "`METAFLOW_RUN_LEARNING_RATE=x`, but a number is expected | Default: 0.1."
    ]


def test_a_required_parameter_with_a_default_has_it() -> None:
    assert resolve(flow(a=Parameter("a", default=3, required=True)), {}) == {"a": 3}


def test_a_default_is_read_like_a_given_text() -> None:
    cls = flow(
        a=Parameter("a", type=JSONType, default='{"x": 1}'),
        b=Parameter("b", default="u,v", separator=","),
        c=Parameter("c", type=int, default="3"),
    )

    assert resolve(cls, {}) == {"a": {"x": 1}, "b": ["u", "v"], "c": 3}


# ---- defaults of the start of a run ----------------------------------------------------------------------------------


def test_a_default_function_is_called_when_the_run_starts_with_its_context() -> None:
    seen: list[ParameterContext] = []
    said: list[str] = []

    def tomorrow(context: ParameterContext) -> datetime.date:
        seen.append(context)
        context.logger(f"default of {context.parameter_name}")
        return datetime.date(2026, 1, 1)

    cls = flow(day=Parameter("day", type=datetime.date, default=tomorrow), config=Config("config", default_value={"a": 1}))
    assert check_parameters(cls) == [] and seen == []

    assert resolve(cls, {}, user="ada", say=said.append)["day"] == datetime.date(2026, 1, 1)
    assert (seen[0].flow_name, seen[0].user_name, seen[0].parameter_name, seen[0].configs["config"].a) == ("TrainFlow", "ada", "day", 1)
    assert said == ["default of day"]
    assert resolve(cls, {"day": "2026-02-02"})["day"] == datetime.date(2026, 2, 2) and len(seen) == 1


def test_a_default_function_that_fails_is_named_with_its_place() -> None:
    (finding,) = findings(flow(a=Parameter("a", default=lambda context: 1 / 0)))

    assert re.fullmatch(
        r"the function that gives its default failed in test_parameters\.py, line \d+: ZeroDivisionError: division by zero \| Mend it, or give --a to the run\.",
        finding,
    )


def test_a_default_function_of_another_type_is_named() -> None:
    assert findings(flow(a=Parameter("a", type=int, default=lambda context: [1]))) == [
        "`default(context) → [1]`, but a whole number is expected | Default: set when the run starts."
    ]


def test_a_function_that_is_given_by_name_may_take_the_place_of_a_text() -> None:
    assert resolve(flow(a=Parameter("a", type=int, default=lambda context: "7")), {}) == {"a": 7}


# ---- definitions that are wrong --------------------------------------------------------------------------------------

WRONG = [
    ({"a": Parameter("")}, "'' is not a name"),
    ({"a": Parameter("two words")}, "'two words' is not a name"),
    ({"a": Parameter("1st")}, "'1st' is not a name"),
    ({"a": Parameter(7)}, "7 is not a name"),  # type: ignore[arg-type]
    ({"a": Parameter("Max-Workers")}, "--Max-Workers is an option of `run` itself"),
    ({"a": Parameter("tag")}, "--tag is an option of `run` itself"),
    ({"next": Parameter("a")}, "'next' is a word of FlowSpec itself"),
    ({"input": Parameter("a")}, "'input' is a word of FlowSpec itself"),
    ({"a": Parameter("x"), "b": Parameter("X")}, "`a` has the name 'x'"),
    ({"a": Parameter("my-x"), "b": Parameter("my_x")}, "`a` has the name 'my-x'"),
    ({"a": Parameter("x"), "b": Parameter("x")}, "`b` and `a` share the name 'x'"),
    ({"a": Parameter("x", defualt=1)}, "no argument 'defualt'; did you mean default?"),
    ({"a": IncludeFile("x", encodng="latin1")}, "no argument 'encodng'; did you mean encoding?"),
    ({"a": Config("x", default_vlaue={})}, "no argument 'default_vlaue'; did you mean default_value?"),
    ({"a": Parameter("x", type=bytes)}, "values of type bytes cannot be given to a run"),
    ({"a": Parameter("x", type="int")}, "values of type 'int' cannot be given to a run"),
    ({"a": Parameter("x", default=object())}, "values of type object cannot be given to a run"),
    ({"a": Parameter("x", type=list[bytes])}, "values of type list cannot be given to a run"),
    ({"a": Parameter("x", type=int, default="many")}, "the default 'many' is not a whole number"),
    ({"a": Parameter("x", type=int, default=1.5)}, "the default 1.5 is not a whole number"),
    ({"a": Parameter("x", default="c", choices=["a", "b"])}, "the default 'c' is not one of a, b"),
    ({"a": Parameter("x", type=int, choices=["a"])}, "the choice 'a' is not a whole number"),
    ({"a": Parameter("x", choices=[])}, "choices is empty"),
    ({"a": Parameter("x", separator="")}, "separator='' is not a text"),
    ({"a": Parameter("x", separator=lambda: 1)}, "is not a text"),  # type: ignore[arg-type]
    ({"a": IncludeFile("x", default=1)}, "the default 1 is no path"),
    ({"a": IncludeFile("x", parser="nothing.there")}, "parser='nothing.there' is no function"),
    ({"a": Config("x", parser=3)}, "parser=3 is no function"),
]


@pytest.mark.parametrize(("attributes", "what"), WRONG, ids=[what for _, what in WRONG])
def test_a_wrong_definition_is_found(attributes: dict[str, Any], what: str) -> None:
    (finding,) = check_parameters(flow(**attributes))

    assert what in finding.what and finding.remedy
    with pytest.raises(DefinitionError, match=re.escape(what)):
        resolve(flow(**attributes), {})


def test_all_wrong_definitions_are_found_at_once() -> None:
    cls = flow(a=Parameter("with"), b=Parameter("b c"), d=Parameter("d", type=int, default="x"))

    assert len(check_parameters(cls)) == 3


def test_names_of_options_before_the_command_are_free_as_in_metaflow() -> None:
    cls = flow(a=Parameter("environment", default="dev"), b=Parameter("datastore", default="x"), c=Parameter("user", default="u"))

    assert check_parameters(cls) == []


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("ä,b\n1,2\n")
    (tmp_path / "old.txt").write_bytes("ä".encode("latin1"))
    cls = flow(
        text=IncludeFile("text", default="rows.csv"),
        raw=IncludeFile("raw", default="rows.csv", is_text=False),
        old=IncludeFile("old", default=tmp_path / "old.txt", encoding="latin1"),
        rows=IncludeFile("rows", default="rows.csv", parser=lambda text: text.splitlines()),
        later=IncludeFile("later", default=lambda context: "rows.csv"),
        json=IncludeFile("json", parser="json.loads"),
    )
    (tmp_path / "given.json").write_text('{"a": 1}')

    assert resolve(cls, {"json": "given.json"}) == {
        "text": "ä,b\n1,2\n",
        "raw": "ä,b\n1,2\n".encode(),
        "old": "ä",
        "rows": ["ä,b", "1,2"],
        "later": "ä,b\n1,2\n",
        "json": {"a": 1},
    }


def test_a_default_file_is_also_found_beside_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/rows.csv").write_text("beside")
    (tmp_path / "project/theflow.py").write_text(
        "from flowbook import FlowSpec, IncludeFile\nclass F(FlowSpec):\n    rows = IncludeFile('rows', default='rows.csv')\n"
    )
    namespace: dict[str, Any] = {"__name__": "theflow"}
    exec(compile((tmp_path / "project/theflow.py").read_text(), str(tmp_path / "project/theflow.py"), "exec"), namespace)

    assert resolve(namespace["F"], {}) == {"rows": "beside"}
    (tmp_path / "rows.csv").write_text("here")
    assert resolve(namespace["F"], {}) == {"rows": "here"}


def _raise(text: str) -> None:
    raise ValueError("a bad row")


FILES = [
    (IncludeFile("data"), "rwos.csv", "there is no file rwos.csv; did you mean rows.csv?"),
    (IncludeFile("data"), "no/such/folder.csv", "there is no file no/such/folder.csv"),
    (IncludeFile("data"), "s3://bucket/rows.csv", "s3://bucket/rows.csv is not a file of this machine"),
    (IncludeFile("data"), ".", ". is a folder, not a file"),
    (IncludeFile("data"), "latin.txt", "latin.txt is not utf-8 text: "),
    (IncludeFile("data", encoding="utf-99"), "rows.csv", "no encoding 'utf-99'"),
    (IncludeFile("data", parser="json.loads"), "rows.csv", "rows.csv cannot be read by loads: JSONDecodeError: "),
    (IncludeFile("data", parser=_raise), "rows.csv", "rows.csv cannot be read by _raise: ValueError: a bad row"),
    (IncludeFile("data"), "a\0b", "'a\\x00b' cannot be read: "),
    (IncludeFile("data"), b"rows", "but the path of a file is expected"),
    (IncludeFile("data", required=True), None, "it is required, and nobody gives it (the path of a file)"),
]


@pytest.mark.parametrize(("file", "given", "what"), FILES, ids=range(len(FILES)))
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path, file: IncludeFile, given: Any, what: str) -> None:
    (tmp_path / "rows.csv").write_text("1,2")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xff")

    (finding,) = findings(flow(data=file), {} if given is None else {"data": given})

    assert what in finding.split(" | ")[0] and finding.split(" | ")[1]


# ---- configs ---------------------------------------------------------------------------------------------------------


def test_a_config_is_read_from_its_file_by_the_ending(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"train": {"gpu": 2, "name": "x"}}')
    (tmp_path / "b.toml").write_text("[train]\ngpu = 3\n")
    cls = flow(a=Config("a", default="a.json"), b=Config("b", default="b.toml"))

    values = resolve(cls, {})

    assert (values["a"].train.gpu, values["a"]["train"]["name"], values["b"].train.gpu) == (2, "x", 3)


def test_the_command_line_stands_before_the_environment_and_that_before_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("default", "given", "env"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"from": name}))
    cls = flow(config=Config("my-config", default="default.json", default_value={"from": "default_value"}))

    def origin() -> str:
        set_config_sources(sources.get("files"), sources.get("values"))
        return str(resolve(cls, {})["config"]["from"])

    sources: dict[str, dict[str, str]] = {}
    assert origin() == "default"
    monkeypatch.setenv("METAFLOW_FLOW_CONFIG_VALUE", '{"my-config": {"from": "theirs"}}')
    assert origin() == "theirs"
    monkeypatch.setenv("FLOWBOOK_CONFIG_MY_CONFIG", "env.json")
    assert origin() == "env"
    monkeypatch.setenv("FLOWBOOK_CONFIG_VALUE_MY_CONFIG", '{"from": "env value"}')
    assert origin() == "env value"
    sources = {"files": {"my-config": "given.json"}}
    assert origin() == "given"
    sources = {"values": {"my_config": '{"from": "value"}'}}
    assert origin() == "value"
    (tmp_path / "default.json").unlink()
    for name in ("FLOWBOOK_CONFIG_VALUE_MY_CONFIG", "FLOWBOOK_CONFIG_MY_CONFIG", "METAFLOW_FLOW_CONFIG_VALUE"):
        monkeypatch.delenv(name)
    sources = {}
    assert origin() == "default_value"


def test_the_options_of_configs_are_taken_out_of_a_command_line() -> None:
    found = config_arguments(["--config", "a", "x.json", "run", "--config-value", "b", "{}", "--alpha", "1"])

    assert (found.rest, found.files, found.values) == (["run", "--alpha", "1"], {"a": "x.json"}, {"b": "{}"})
    with pytest.raises(DefinitionError, match="--config needs two words\n    Write --config NAME PATH"):
        config_arguments(["run", "--config", "a"])
    with pytest.raises(DefinitionError, match="config a: is given both a file and a value"):
        set_config_sources({"a": "x"}, {"a": "{}"})


def test_decorators_may_use_what_is_looked_up_later(tmp_path: Path) -> None:
    """The class body has run when the command line says which file is meant."""
    config = Config("config", default_value={"gpu": 1, "env": {"A": "x"}, "sizes": [1, 2]})
    cls = flow(config=config)
    arguments = {
        "gpu": config.gpu,
        "vars": {"A": config.env["A"], "B": [config["gpu"]]},
        "cpu": config_expr("config.gpu * 2 + max(config.sizes)"),
        "env": config.env,
        "all": config,
        "plain": 3,
    }
    set_config_sources(values={"config": {"gpu": 4, "env": {"A": "y"}, "sizes": [5]}})

    found = evaluate(arguments, cls)

    env = {"A": "y"}
    assert found == {"gpu": 4, "vars": {"A": "y", "B": [4]}, "cpu": 13, "env": env, "all": {"gpu": 4, "env": env, "sizes": [5]}, "plain": 3}
    assert type(found["env"]) is dict and type(found["all"]) is dict


def test_every_public_attribute_of_a_config_is_a_key() -> None:
    keys = ["name", "default", "type", "file", "value", "help", "source", "parser", "items"]
    config = Config("config", default_value={key: key.upper() for key in keys if key != "items"} | {"items": 1})

    assert [evaluate(getattr(config, key)) for key in keys[:-1]] == [key.upper() for key in keys[:-1]]
    assert evaluate(config["items"]) == 1


def test_a_class_body_may_need_a_config_at_once() -> None:
    config = Config("config", default_value={"env": {"A": "x", "B": "y"}, "n": 3, "on": False, "sizes": [1, 2], "name": "Ada"})

    def decorator(**arguments: Any) -> dict[str, Any]:
        return arguments

    assert evaluate(decorator(**config.env)) == {"A": "x", "B": "y"}
    assert set(decorator(**config)) == {"env", "n", "on", "sizes", "name"}
    assert [size + 1 for size in config.sizes] == [2, 3] and len(config.sizes) == 2 and 2 in config.sizes
    assert f"{config.name}: {config.n:03d}" == "Ada: 003" and str(config.name) == "Ada"
    assert (int(config.n), float(config.n), bool(config.on), config.name.upper()) == (3, 3.0, False, "ADA")


def test_globals_of_the_file_are_known_in_an_expression() -> None:
    Config("config", default_value={"path": "a/b"})

    assert evaluate(config_expr("Path(config.path).name")) == "b"


def test_an_expression_belongs_to_the_config_of_its_class() -> None:
    first = flow(config=Config("config", default_value={"n": 1}))
    second = flow(config=Config("config", default_value={"n": 2}))
    expression = config_expr("config.n")

    assert [evaluate(expression, first), evaluate(expression, second), evaluate(expression)] == [1, 2, 2]
    assert [evaluate(first.config.n), evaluate(second.config.n, second)] == [2, 2]
    assert evaluate(first.config.n, first) == 1


def test_a_parameter_may_have_its_default_from_a_config() -> None:
    config = Config("config", default_value={"alpha": 0.5, "sizes": [1, 2]})
    cls = flow(config=config, alpha=Parameter("alpha", default=config.alpha), sizes=Parameter("sizes", default=config_expr("config.sizes")))

    assert {**resolve(cls, {}), "config": 0} == {"config": 0, "alpha": 0.5, "sizes": [1, 2]}
    assert resolve(cls, {"alpha": "2", "sizes": "3,4"})["sizes"] == [3, 4]
    set_config_sources(values={"config": {"alpha": 7, "sizes": []}})
    assert resolve(cls, {})["alpha"] == 7


def test_a_parser_makes_the_value_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.ini").write_text("a=1\nb=2")

    def ini(text: str) -> dict[str, str]:
        return dict(line.split("=") for line in text.splitlines())

    cls = flow(
        a=Config("a", default="a.ini", parser=ini),
        b=Config("b", default_value="x = 1", parser="tomllib.loads"),
        c=Config("c", default_value="1,2", parser=lambda text: text.split(","), plain=True),
        d=Config("d", default_value="x = [1, 2]"),
        e=Config("e", default_value=lambda context: {"n": context.parameter_name}),
        f=Config("f", default_value=[{"x": 1}]),
    )
    values = resolve(cls, {})

    assert values == {"a": {"a": "1", "b": "2"}, "b": {"x": 1}, "c": ["1", "2"], "d": {"x": [1, 2]}, "e": {"n": "e"}, "f": [{"x": 1}]}
    assert values["f"][0].x == 1


def test_a_config_value_is_read_only_and_names_what_is_near() -> None:
    value = ConfigValue({"alpha": {"beta": [{"c": 1}]}, "items": 2})

    for change in ("value['x'] = 1", "value.x = 1", "del value['alpha']", "del value.alpha", "value.update(x=1)", "value.pop('alpha')"):
        with pytest.raises(TypeError, match=r"a config is read-only; to_dict\(\) gives a copy"):
            exec(change, {"value": value})
    with pytest.raises(TypeError, match="read-only"):
        value |= {"x": 1}
    with pytest.raises(AttributeError, match="the config has no 'alhpa'; did you mean 'alpha'"):
        value.alhpa  # noqa: B018
    with pytest.raises(KeyError, match="the config has no 'zzz'"):
        value["zzz"]
    assert value.alpha.beta[0].c == 1 and value["items"] == 2 and value.get("zzz", 3) == 3 and "alpha" in dir(value)
    assert json.loads(json.dumps(value)) == value == {"alpha": {"beta": [{"c": 1}]}, "items": 2}
    plain = value.to_dict()
    plain["alpha"]["beta"][0]["c"] = 9
    assert value.alpha.beta[0].c == 1 and type(plain["alpha"]) is dict


CONFIGS = [
    (Config("config", required=True), {}, "it is required, and nobody gives it"),
    (Config("config"), {"files": {"config": "nothing.json"}}, "there is no file nothing.json"),
    (Config("config"), {"files": {"config": "bad.json"}}, "bad.json is not JSON: "),
    (Config("config", default="bad.json", default_value={}), {}, "bad.json is not JSON: "),
    (Config("config"), {"files": {"config": "bad.toml"}}, "bad.toml cannot be read by loads: TOMLDecodeError"),
    (Config("config"), {"files": {"config": "a.yaml"}}, "a.yaml is YAML"),
    (Config("config"), {"values": {"config": "{1"}}, "--config-value config is not JSON"),
    (Config("config"), {"values": {"config": "3"}}, "--config-value config gives 3, but a config is a dict"),
    (Config("config", parser=lambda text: text), {"values": {"config": "3"}}, "--config-value config gives '3', but a config is a dict"),
    (Config("config", parser=_raise), {"values": {"config": "3"}}, "--config-value config cannot be read by _raise: ValueError: a bad row"),
    (Config("config", default=3), {}, "3 is no path"),
    (Config("config", default=lambda context: 1 / 0), {}, "the function that gives its default failed in test_parameters.py"),
    (Config("config"), {"files": {"confg": "a.json"}}, "no config `confg`; did you mean config?"),
    (Config("config"), {"files": {"zzz": "a.json"}}, "no config `zzz`"),
]


@pytest.mark.parametrize(("config", "sources", "what"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_that_cannot_be_had_is_named_with_the_remedy(tmp_path: Path, config: Config, sources: dict[str, Any], what: str) -> None:
    for name in ("bad.json", "bad.toml", "a.yaml"):
        (tmp_path / name).write_text("{a: 1}")
    set_config_sources(**sources)

    (finding,) = findings(flow(config=config))

    assert what in finding.split(" | ")[0] and finding.split(" | ")[1]


def test_a_config_is_not_given_like_a_parameter() -> None:
    assert findings(flow(config=Config("config")), {"config": "x.json"}) == [
        "a config is known before the run's parameters are | Give --config config PATH, --config-value config JSON, or default=…."
    ]


BAD_EXPRESSIONS = [
    ("config.nothing", "config.nothing: the config has no 'nothing'"),
    ("confg.a", "confg.a: NameError: name 'confg' is not defined"),
    ("config.a / 0", "config.a / 0: ZeroDivisionError: division by zero"),
    ("config.a +", r"config.a \+: SyntaxError"),
]


@pytest.mark.parametrize(("expression", "message"), BAD_EXPRESSIONS)
def test_an_expression_that_fails_is_named(expression: str, message: str) -> None:
    cls = flow(config=Config("config", default_value={"a": 1}))

    with pytest.raises(DefinitionError, match=message):
        evaluate(config_expr(expression), cls)


def test_a_key_that_is_not_there_is_named_with_its_path() -> None:
    cls = flow(config=Config("config", default_value={"a": {"b": 1}}), none=Config("none"))

    with pytest.raises(DefinitionError, match=r"config\.a\.c: the config has no 'c'"):
        evaluate(cls.config.a.c)
    with pytest.raises(DefinitionError, match=r"config\['a'\]\['x'\]: the config has no 'x'"):
        evaluate(cls.config["a"]["x"])
    with pytest.raises(DefinitionError, match=r"none\.a: 'NoneType' object has no attribute 'a'"):
        evaluate(cls.none.a)


def test_a_missing_config_is_said_once_and_not_for_each_default_that_needs_it() -> None:
    config = Config("config", required=True)
    cls = flow(config=config, a=Parameter("a", default=config.a), b=Parameter("b", default=config.b))

    assert [finding.split(" | ")[0] for finding in findings(cls)] == ["it is required, and nobody gives it"]


SCRIPT = """
from flowbook.spec.flowspec import FlowSpec, process
from flowbook.spec.parameters import Config, config_environment, resolve
import json, sys
process.in_task = True
class F(FlowSpec):
    config = Config("config", default="config.json")
    arguments = dict(**config.env)
print(json.dumps([f"{F.arguments['a']}", config_environment(F)]))
"""


def test_a_class_body_sees_the_command_line_of_its_script_and_a_worker_the_same_values(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "other.toml").write_text("[env]\na = 5\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*words: str, **more: str) -> Any:
        ran = subprocess.run([sys.executable, "script.py", *words], cwd=tmp_path, env=environ | more, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    value, told = run("--config", "config", "other.toml", "run")
    (tmp_path / "other.toml").unlink()

    assert (value, told) == ("5", {"FLOWBOOK_CONFIG_VALUE_CONFIG": "[env]\na = 5\n"})
    assert run(**told) == ["5", told]


EAGER = """
from flowbook import Config, FlowSpec, Parameter, environment, step


class EagerFlow(FlowSpec):
    config = Config("config", required=True)
    beta = Parameter("beta", default=config.beta)
    sizes = [size * 2 for size in config.sizes]

    @environment(vars=dict(**config.env))
    @step
    def start(self):
        import os

        print(os.environ["A"], self.config.env.A, self.sizes, self.beta)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    EagerFlow()
"""


def test_tasks_have_the_config_that_the_command_line_names_also_in_the_class_body(tmp_path: Path) -> None:
    (tmp_path / "eager.py").write_text(EAGER)
    (tmp_path / "c.json").write_text('{"env": {"A": "x"}, "sizes": [1, 2], "beta": 3}')
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "FLOWBOOK_STORE": str(tmp_path / "store")}
    words = [sys.executable, "eager.py", "--config", "config", "c.json", "run"]

    ran = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
    assert "x x [2, 4] 3\n" in ran.stdout


def test_a_class_body_that_misses_its_config_is_told_without_our_traceback(tmp_path: Path) -> None:
    (tmp_path / "eager.py").write_text(EAGER)

    ran = subprocess.run(
        [sys.executable, "eager.py", "run"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )

    message = "error: config config (eager.py, line 6): it is required, and nobody gives it\n"
    assert (ran.returncode, ran.stderr) == (1, f"{message}    Give --config config PATH, --config-value config JSON, or default=….\n")


def test_a_worker_is_told_of_values_and_not_of_what_the_file_itself_says() -> None:
    cls = flow(a=Config("a"), b=Config("b", default_value={"n": {1, 2}}), c=Config("c", default_value={"n": 1}))

    assert config_environment(cls) == {"FLOWBOOK_CONFIG_VALUE_C": '{"n": 1}'}


def test_a_long_config_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "long.json").write_text(json.dumps({"text": "x" * 200_000}))

    assert config_environment(flow(config=Config("config", default="long.json"))) == {"FLOWBOOK_CONFIG_CONFIG": str(tmp_path / "long.json")}


def test_required_means_that_whoever_starts_a_run_has_to_give_it() -> None:
    assert [Parameter("a", required=True).required, Parameter("a", required=True, default=1).required] == [True, False]
    assert parameters_of(flow(a=Config("a", required=True)))["a"].required is False


# ---- pickles ---------------------------------------------------------------------------------------------------------


def test_parameters_go_by_pickle_with_the_class_that_has_them() -> None:
    cls = flow(
        a=Parameter("a", default=lambda context: 3, type=int),
        b=Parameter("b", default=Colour.RED),
        j=Parameter("j", type=JSONType, default="[1]"),
        f=IncludeFile("f", parser=lambda text: text),
        c=Config("c", default_value={"x": 1}),
    )
    cls.expression, cls.lazy = config_expr("c.x + 1"), cls.c.x  # type: ignore[attr-defined]

    again = pickle.loads(cloudpickle.dumps(cls))

    assert resolve(again, {}) == {"a": 3, "b": Colour.RED, "j": [1], "f": None, "c": {"x": 1}}
    assert [evaluate(again.expression, again), evaluate(again.lazy, again)] == [2, 1]
    value = copy.deepcopy(pickle.loads(pickle.dumps(ConfigValue({"x": {"y": 1}}))))
    assert value.x.y == 1 and type(value.x) is ConfigValue


def test_importing_parameters_loads_nothing_heavy() -> None:
    code = "import sys, flowbook.spec.parameters; print([n for n in ('tomllib', 'asyncio', 'numpy', 'cloudpickle') if n in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_public_names_of_the_package_are_these() -> None:
    import flowbook

    for name in ("Config", "IncludeFile", "JSONType", "Parameter", "config_expr"):
        assert getattr(flowbook, name) is getattr(parameters, name)


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "parameters.md"
BLOCK = re.compile(
    r"(?:^`(?P<file>[\w./]+)`:\n\n)?(?:^<!-- exits (?P<code>\d) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def test_the_page_is_true(tmp_path: Path) -> None:
    """Files are written and commands run, in the order of the page; each line below a command is in what it prints."""
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLOWBOOK_STORE": str(tmp_path / "store"),
        "PYTHONPATH": str(ROOT),
    }
    printed, commands = "", 0
    for block in BLOCK.finditer(PAGE.read_text()):
        if block["file"]:
            file = tmp_path / block["file"]
            file.parent.mkdir(exist_ok=True)
            file.write_text(block["text"])
        elif block["kind"] == "sh":
            ran = subprocess.run(["bash", "-c", block["text"]], cwd=tmp_path, env=environ, capture_output=True, text=True)
            printed, commands = ran.stdout + ran.stderr, commands + 1
            assert ran.returncode == int(block["code"] or 0), f"{block['text']}\n{printed}"
        else:
            assert block["kind"] == "text", block["kind"]
            assert [line for line in block["text"].splitlines() if line.strip() not in printed] == [], printed
    assert commands == PAGE.read_text().count("```sh") > 5


def test_the_page_names_every_type_and_every_reserved_name() -> None:
    text = PAGE.read_text()

    assert [name for name in parameters.RESERVED if f"`{name.replace('_', '-')}`" not in text] == []
    assert [kind.__name__ for kind in parameters.KINDS if kind.__name__ not in text] == []
