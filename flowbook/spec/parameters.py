"""What a flow is told from outside: Parameter, IncludeFile and Config, and how their values are found.

A Parameter is a descriptor on the FlowSpec class. Its value is fixed when the run starts (`resolve`), goes into the run's spec by
the name of the attribute, and is read in a task through `_task.parameter`. A Config is known earlier: decorators may use it
(`config.gpu`, `config_expr("config.gpu + 1")`), and these expressions stay unevaluated until `evaluate` is called on the
arguments, so that the command line has time to say which file is meant (`set_config_sources`).

    one value      parse (a text) · convert (a text or a Python value)          raise DefinitionError
    one class      parameters_of · check_parameters (all findings) · resolve    resolve raises DefinitionError with all findings
    configs        set_config_sources · config_arguments · evaluate · config_environment

Reads files and the environment, and nothing else; no store, no graph.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import enum
import importlib
import json
import keyword
import numbers
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from flowbook.errors import DefinitionError, Finding, FlowbookError
from flowbook.spec.flowspec import RESERVED as FLOW_WORDS
from flowbook.spec.flowspec import ReadOnly

# Options of `run` and `resume`, as `_norm` spells them. A parameter of such a name could not be given on the command line.
RESERVED = frozenset(
    "config config_value help max_log_size max_num_splits max_workers namespace origin_run_id params run_id_file tag with".split()
)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
VARIABLE_BYTES = 100_000
ENVIRONMENT = ("FLOWBOOK_PARAM_", "METAFLOW_RUN_")  # the first wins


class JSONType:
    """``Parameter("rates", type=JSONType, default="[0.1, 0.2]")``: any JSON value, given as text or as the Python value."""


@dataclass(frozen=True)
class ParameterContext:
    """What a function given as `default` is called with. `logger(text)` shows a line to whoever starts the run."""

    flow_name: str
    user_name: str
    parameter_name: str
    logger: Callable[[str], None]
    ds_type: str = "local"
    configs: Mapping[str, Any] = field(default_factory=dict)  # name → value


# ---- types -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How values of one type are written and checked. Both functions raise ValueError for what does not fit."""

    expected: str  # "a whole number"
    read: Callable[[str], Any]
    accept: Callable[[Any], Any]  # of what is no text

    def take(self, value: Any) -> Any:
        return self.read(value) if isinstance(value, str) else self.accept(value)


def _refuse(value: Any) -> NoReturn:
    raise ValueError(value)


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        _refuse(text)
    return word in ("true", "yes", "on", "1")


def _whole(value: Any) -> int:
    if not isinstance(value, bool) and isinstance(value, numbers.Real) and float(value).is_integer():
        return int(value) if isinstance(value, numbers.Integral) else int(float(value))
    _refuse(value)


def _number(value: Any) -> float:
    return _refuse(value) if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)


def _only(*types: type, but: type | None = None) -> Callable[[Any], Any]:
    """A check that a value is of one of the types, and not of `but`, which is a subclass of one."""
    return lambda value: value if isinstance(value, types) and not (but and isinstance(value, but)) else _refuse(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        _refuse(text)


def _json_value(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        _refuse(value)
    return value


def _object(text: str) -> dict[str, Any]:
    value = _json(text)
    return value if isinstance(value, dict) else _refuse(text)


def _mapping(value: Any) -> dict[Any, Any]:
    return dict(value) if isinstance(value, Mapping) else _refuse(value)


def _path(value: Any) -> Path:
    return Path(value) if isinstance(value, os.PathLike) else _refuse(value)


KINDS: dict[Any, Kind] = {
    str: Kind("a text", str, _only(str)),
    int: Kind("a whole number", lambda text: int(text.strip()), _whole),
    float: Kind("a number", lambda text: float(text.strip()), _number),
    bool: Kind("true or false", _boolean, lambda value: bool(value) if type(value).__name__ in ("bool", "bool_") else _refuse(value)),
    JSONType: Kind("JSON", _json, _json_value),
    dict: Kind('a JSON object, like {"a": 1}', _object, _mapping),
    datetime.datetime: Kind(
        "a date with time, like 2026-01-31T12:00",
        lambda text: datetime.datetime.fromisoformat(text.strip()),
        _only(datetime.datetime),
    ),
    datetime.date: Kind(
        "a date, like 2026-01-31", lambda text: datetime.date.fromisoformat(text.strip()), _only(datetime.date, but=datetime.datetime)
    ),
    Path: Kind("a path", Path, _path),
}


def _list_kind(item: Kind, separator: str, make: Callable[[Iterable[Any]], Any], as_json: bool) -> Kind:
    def read(text: str) -> Any:
        if as_json and text.lstrip().startswith("["):
            return make(item.take(value) for value in json.loads(text))
        return make(item.read(part.strip() if as_json else part) for part in text.split(separator)) if text else make(())

    def accept(value: Any) -> Any:
        many = isinstance(value, Iterable) and not isinstance(value, bytes | Mapping)
        return make(item.take(part) for part in value) if many else _refuse(value)

    each = item.expected.removeprefix("a ") if item is not _ANY else "item"
    return Kind(f"a list with {separator!r} between ({each} each)" + (" or a JSON list" if as_json else ""), read, accept)


_ANY = Kind("anything", str, lambda value: value)


def _enum_kind(cls: type[enum.Enum]) -> Kind:
    members = {member.name: member for member in cls}

    def read(text: str) -> enum.Enum:
        for spelling in (lambda m: m.name == text, lambda m: m.name.lower() == text.lower(), lambda m: str(m.value) == text):
            if found := [member for member in cls if spelling(member)]:
                return found[0]
        _refuse(text)

    return Kind("one of " + ", ".join(members), read, cls)


def kind_of(type_: Any, separator: str | None = None, items: Any = None) -> Kind | None:
    """The kind of a type as given to Parameter, None if values of it cannot be given. `items`: of a list whose type does not say it."""
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if type_ in (list, tuple) or origin in (list, tuple):
        each = arguments[0] if arguments else items
        item = _ANY if each is None else kind_of(each)
        return item and _list_kind(item, separator or ",", origin or type_, True)
    if origin is dict:
        type_ = dict
    is_class = isinstance(type_, type)
    kind = _enum_kind(type_) if is_class and issubclass(type_, enum.Enum) else KINDS.get(type_)
    if kind is None and is_class and issubclass(type_, Path):
        kind = KINDS[Path]
    return _list_kind(kind, separator, list, False) if kind and separator else kind


# ---- Parameter -------------------------------------------------------------------------------------------------------


def _norm(name: str) -> str:
    """Names are one if they differ only in case, or in ``-`` and ``_``."""
    return name.lower().replace("-", "_")


def _maker() -> tuple[str, int]:
    """File and line of the code outside of this module that is running."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def shown(value: Any, limit: int = 60) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class Parameter:
    """A value of a flow that is given when a run starts; read-only in steps.

    ``alpha = Parameter("alpha", default=0.1, help="learning rate")``: given as ``--alpha 0.2``, read as ``self.alpha``. The type is that
    of the default, else text. `default` may be a function of a ParameterContext, called when a run starts. With `separator` the
    value is a list. `choices` are all values allowed. An optional parameter that nobody gives is None.

    Nothing is checked here: `check_parameters` tells all that is wrong at once.
    """

    is_option = True  # given as --NAME; a Config is not
    arguments = tuple("default type help required show_default separator choices".split())

    def __init__(
        self,
        name: str,
        default: Any = None,
        type: Any = None,
        help: str | None = None,
        required: bool | None = None,
        show_default: bool = True,
        separator: str | None = None,
        choices: Iterable[Any] | None = None,
        **unknown: Any,
    ) -> None:
        self.name = name
        self.default = default
        self.given_type = type
        self.help = help
        self.required = bool(required) and default is None  # whoever starts a run has to give it
        self.show_default = show_default
        self.separator = separator
        self.choices = None if choices is None else tuple(choices)
        self.attribute = name  # until the class is made
        self.unknown = tuple(unknown)
        self.file, self.line = _maker()

    def __set_name__(self, owner: Any, name: str) -> None:
        self.attribute = name

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        if obj is None:
            return self
        if (task := getattr(obj, "_task", None)) is None:
            raise FlowbookError(f"self.{self.attribute} is a parameter and has a value only while a step runs.")
        return task.parameter(self.attribute)

    def __set__(self, obj: Any, value: Any) -> None:
        raise ReadOnly(f"self.{self.attribute} = …: {self.attribute!r} is a parameter, and parameters are read-only. Use another name.")

    def __delete__(self, obj: Any) -> None:
        raise ReadOnly(f"del self.{self.attribute}: {self.attribute!r} is a parameter, and parameters are read-only.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # ---- for help and messages ----

    @property
    def option(self) -> str:
        return f"--{self.name}"

    @property
    def where(self) -> str:
        word = f"parameter {self.name}"
        known = self.file.endswith(".py") and os.path.isfile(self.file)  # noqa: PTH113 (a cell's file is not there)
        return f"{word} ({os.path.basename(self.file)}, line {self.line})" if known else word  # noqa: PTH119

    @property
    def type(self) -> Any:
        """As given; else that of the default, of the choices, else `str`."""
        if self.given_type is not None:
            return self.given_type
        default = evaluate(self.default)
        if default is not None and not callable(default):
            return _type_of(default)
        kinds = {_type_of(choice) for choice in self.choices or ()}
        return kinds.pop() if len(kinds) == 1 else str

    @property
    def kind(self) -> Kind | None:
        """How values are read and checked; None if the type is none that can be given."""
        return kind_of(self.type, self.separator, self._items())

    def _items(self) -> Any:
        """The type of the items of a list, as far as the default shows it."""
        default = evaluate(self.default)
        kinds = {_type_of(item) for item in default} if isinstance(default, list | tuple) else set()
        return kinds.pop() if len(kinds) == 1 and kinds <= KINDS.keys() else None

    @property
    def expected(self) -> str:
        """In words, for help and messages: ``a whole number``, ``one of a, b``."""
        if self.choices is not None:
            return "one of " + ", ".join(_word(choice) for choice in self.choices)
        try:
            return self.kind.expected if self.kind else "a value"
        except DefinitionError:  # of a config that the default needs; a run says so
            return "a value"

    @property
    def default_text(self) -> str | None:
        """The default as one would type it; None if there is none, or if it is not to be shown."""
        if self.default is None or not self.show_default:
            return None
        if callable(self.default) and not isinstance(self.default, ConfigExpression):
            return "set when the run starts"
        try:
            return shown(_word(evaluate(self.default)))
        except DefinitionError:  # of a config; a run says so
            return repr(self.default)

    # ---- one value ----

    def parse(self, text: str, given_by: str | None = None) -> Any:
        """The value that a text of the command line or of the environment stands for. Raises DefinitionError."""
        return self.convert(text, given_by or f"{self.option} {shown(text)}")

    def convert(self, value: Any, given_by: str | None = None) -> Any:
        """A value given from Python, checked; a text is read as on the command line. `given_by` is for the message.

        None is the value of an optional parameter that is not given. Raises DefinitionError.
        """
        if value is None and not self.required:
            return None
        kind = self.kind
        if kind is None:
            raise DefinitionError(self._no_type())
        try:
            found = kind.take(value)
            choices = None if self.choices is None else [kind.take(choice) for choice in self.choices]
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise DefinitionError(self._wrong(value, given_by)) from None
        if choices is not None and found not in choices:
            raise DefinitionError(self._wrong(value, given_by))
        return found

    def _wrong(self, value: Any, given_by: str | None) -> Finding:
        given = given_by or f"{self.name}={shown(value) if not isinstance(value, str) else shown(repr(value))}"
        near = difflib.get_close_matches(str(value), [_word(choice) for choice in self._known()], 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        default = "It has no default." if self.default_text is None else f"Default: {self.default_text}."
        return Finding(self.where, f"`{given}`, but {self.expected} is expected", default + hint)

    def _known(self) -> Sequence[Any]:
        if self.choices is not None:
            return self.choices
        return list(self.type) if isinstance(self.type, type) and issubclass(self.type, enum.Enum) else ()

    # ---- what is wrong with it ----

    def _no_type(self) -> Finding:
        word = getattr(self.type, "__name__", repr(self.type))
        return Finding(
            self.where,
            f"values of type {word} cannot be given to a run",
            "Types: str, int, float, bool, JSONType, dict, list, list[int], date, datetime, an Enum, Path; for others read the value in a step.",
        )

    def check(self) -> list[Finding]:
        """All that is wrong with the definition. No default function is called and no file read."""
        found = self._check_name()
        for word in self.unknown:
            near = difflib.get_close_matches(word, self.arguments, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            found.append(Finding(self.where, f"no argument {word!r}{hint}", f"Arguments: {', '.join(self.arguments)}."))
        if self.separator is not None and (not isinstance(self.separator, str) or not self.separator):
            return [*found, Finding(self.where, f"separator={self.separator!r} is not a text", "Give one like separator=','.")]
        return found + self._check_values()

    def _check_name(self) -> list[Finding]:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            remedy = "Use letters, digits, - and _, a letter first: Parameter('alpha', …)."
            return [Finding(self.where, f"{self.name!r} is not a name", remedy)]
        if self.is_option and _norm(self.name) in RESERVED:
            remedy = f"Name it otherwise, e.g. Parameter('my_{_norm(self.name)}', …); the attribute's name may stay."
            return [Finding(self.where, f"{self.option} is an option of `run` itself", remedy)]
        return []

    def _check_values(self) -> list[Finding]:
        if self.kind is None:
            return [self._no_type()]
        found = []
        for choice in self.choices or ():
            try:
                self.kind.take(choice)
            except (ValueError, TypeError, OverflowError):
                found.append(
                    Finding(self.where, f"the choice {shown(repr(choice))} is not {self.kind.expected}", "Change it, or the type.")
                )
        if self.choices == ():
            found.append(Finding(self.where, "choices is empty", "Name the values that are allowed."))
        default = evaluate(self.default)
        if default is not None and not callable(default) and not found:
            try:
                self.convert(default)
            except DefinitionError:
                remedy = "Change the default, or the type."
                found.append(Finding(self.where, f"the default {shown(repr(default))} is not {self.expected}", remedy))
        return found

    def default_value_for(self, context: ParameterContext) -> Any:
        """The default of a run that starts now: a function is called. Raises DefinitionError that names the parameter."""
        default = self.default
        given_by = None
        if callable(default) and not isinstance(default, ConfigExpression):
            default = self._call(default, context)
            given_by = f"default(context) → {shown(repr(default))}"
        return self.convert(evaluate(default), given_by)

    def _call(self, function: Callable[[ParameterContext], Any], context: ParameterContext) -> Any:
        try:
            return function(context)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{os.path.basename(place.filename)}, line {place.lineno}"  # noqa: PTH119
            what = f"the function that gives its default failed in {at}: {type(error).__name__}: {error}"
            raise DefinitionError(Finding(self.where, what, f"Mend it, or give {self.option} to the run.")) from error


def _type_of(value: Any) -> Any:
    if isinstance(value, Path):
        return Path
    if isinstance(value, ConfigValue):
        return dict
    return type(value)


def _word(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list | tuple | dict):
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):
            return repr(value)
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


# ---- files -----------------------------------------------------------------------------------------------------------


def _located(path: str | os.PathLike[str], maker: str, where: str) -> Path:
    """A path as given, relative to the working folder; one that is not there is also looked for beside the flow's file."""
    if isinstance(path, str) and "://" in path:
        raise DefinitionError(Finding(where, f"{shown(path)} is not a file of this machine", "Load it in a step, or download it first."))
    found = Path(path).expanduser()
    beside = Path(maker).parent / found
    return beside if not found.is_absolute() and not found.exists() and beside.exists() else found


def _missing(where: str, path: Path, option: str) -> Finding:
    if path.is_dir():
        return Finding(where, f"{path} is a folder, not a file", f"Give a file: {option}.")
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return Finding(where, f"there is no file {path}{hint}", f"Looked in {path.parent.absolute()}. Give another: {option}.")


def _read(path: Path, where: str, option: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DefinitionError(_missing(where, path, option)) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DefinitionError(Finding(where, f"{shown(repr(str(path)))} cannot be read: {why}", f"Give another: {option}.")) from None


def _decoded(data: bytes, encoding: str, path: Path, where: str) -> str:
    try:
        return data.decode(encoding)
    except LookupError:
        raise DefinitionError(Finding(where, f"no encoding {encoding!r}", "Say encoding='utf-8', or another that Python knows.")) from None
    except UnicodeDecodeError as error:
        what = f"{path} is not {encoding} text: {error.reason} at byte {error.start}"
        raise DefinitionError(Finding(where, what, "Say is_text=False for its bytes, or another encoding=….")) from None


def _parser(parser: Any, where: str) -> Callable[[Any], Any]:
    """A function as given, or by its dotted name: ``"tomllib.loads"``. Raises DefinitionError."""
    if callable(parser):
        return typing.cast("Callable[[Any], Any]", parser)
    module, _, name = str(parser).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if isinstance(parser, str) and module else None
    except (ImportError, AttributeError, ValueError):
        found = None
    if not callable(found):
        raise DefinitionError(Finding(where, f"parser={parser!r} is no function", "Give a function, or a name like 'tomllib.loads'."))
    return typing.cast("Callable[[Any], Any]", found)


def _parsed(parser: Any, content: Any, source: str, where: str) -> Any:
    function = _parser(parser, where)
    try:
        return function(content)
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        what = f"{source} cannot be read by {name}: {type(error).__name__}: {shown(str(error), 200)}"
        raise DefinitionError(Finding(where, what, "Mend the file or the parser.")) from error


class IncludeFile(Parameter):
    """A file whose content goes into the run: ``data = IncludeFile("data", default="rows.csv")``; given as ``--data other.csv``.

    The value is a text, bytes with ``is_text=False``, or what `parser` (a function or its dotted name) makes of that. A relative
    path is one of the working folder; one that is not there is looked for beside the flow's file.
    """

    arguments = tuple("default is_text encoding required help parser show_default".split())

    def __init__(
        self,
        name: str,
        default: Any = None,
        is_text: bool = True,
        encoding: str | None = "utf-8",
        required: bool | None = False,
        help: str | None = None,
        parser: Any = None,
        show_default: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__(name, default, Path, help, required, show_default)
        self.is_text, self.encoding, self.parser, self.unknown = is_text, encoding or "utf-8", parser, tuple(unknown)

    @property
    def expected(self) -> str:
        return "the path of a file"

    def convert(self, value: Any, given_by: str | None = None) -> Any:
        """The content of the file at a path. Raises DefinitionError."""
        path = super().convert(value, given_by)
        if path is None:
            return None
        path = _located(value if isinstance(value, str) else path, self.file, self.where)
        data = _read(path, self.where, f"{self.option} PATH")
        content = _decoded(data, self.encoding, path, self.where) if self.is_text else data
        return content if self.parser is None else _parsed(self.parser, content, str(path), self.where)

    def _check_values(self) -> list[Finding]:
        if self.parser is not None:
            try:
                _parser(self.parser, self.where)
            except DefinitionError as error:
                return list(error.findings)
        good = self.default is None or callable(self.default) or isinstance(self.default, str | os.PathLike | ConfigExpression)
        return [] if good else [Finding(self.where, f"the default {shown(repr(self.default))} is no path", "Give the path of a file.")]


# ---- Config ----------------------------------------------------------------------------------------------------------


class ConfigValue(dict[Any, Any]):
    """A read-only dict whose keys are attributes, too: ``cfg.a.b`` is ``cfg["a"]["b"]``. `to_dict` gives a copy to change.

    A key that is named like a method of dict (``items``) is reached only as ``cfg["items"]``.
    """

    def __init__(self, data: Mapping[Any, Any] = types.MappingProxyType({})) -> None:
        super().__init__({key: _frozen(value) for key, value in data.items()})

    def __missing__(self, key: Any) -> NoReturn:
        raise KeyError(self._no_key(key))

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name if name.startswith("_") else self._no_key(name))

    def _no_key(self, key: Any) -> str:
        near = difflib.get_close_matches(str(key), map(str, self), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"the config has no {key!r}{hint} It has: {', '.join(map(str, self)) or 'nothing'}."

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a config is read-only; to_dict() gives a copy that can be changed")

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    update = pop = popitem = setdefault = clear = _refuse  # type: ignore[assignment]

    def to_dict(self) -> dict[Any, Any]:
        return typing.cast("dict[Any, Any]", _thawed(self))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(key for key in self if isinstance(key, str) and key.isidentifier())})

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigValue, (self.to_dict(),)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value if isinstance(value, ConfigValue) else ConfigValue(value)
    return type(value)(map(_frozen, value)) if type(value) in (list, tuple) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return type(value)(map(_thawed, value)) if type(value) in (list, tuple) else value


@dataclass
class _Sources:
    """Where configs come from, as the command line says. `count` tells a config that it has to look again."""

    files: dict[str, str] = field(default_factory=dict)  # normed name → path
    values: dict[str, Any] = field(default_factory=dict)  # normed name → JSON text, or a Python value
    count: int = 0
    hook: Any = sys.excepthook  # what showed errors before `_plainly` does


_sources = _Sources()
_configs: dict[str, ConfigParameter] = {}  # name or attribute → the newest config of that name, for expressions outside of any class


def set_config_sources(files: Mapping[str, str] | None = None, values: Mapping[str, Any] | None = None) -> None:
    """Say where configs come from, before a class is used: name → path, and name → JSON text or value. It replaces what was said before.

    Raises DefinitionError if a config is named in both.
    """
    new_files = {_norm(name): str(path) for name, path in (files or {}).items()}
    new_values = {_norm(name): value for name, value in (values or {}).items()}
    if both := sorted(new_files.keys() & new_values.keys()):
        raise DefinitionError(*(Finding(f"config {name}", "is given both a file and a value", "Give one of them.") for name in both))
    _sources.files, _sources.values, _sources.count = new_files, new_values, _sources.count + 1


@dataclass(frozen=True)
class ConfigArguments:
    """A command line without what it says of configs, and that."""

    rest: list[str]
    files: dict[str, str]
    values: dict[str, str]


def config_arguments(argv: Sequence[str]) -> ConfigArguments:
    """Take ``--config NAME PATH`` and ``--config-value NAME JSON`` out of a command line, wherever they stand.

    Raises DefinitionError if one lacks its two words.
    """
    found = ConfigArguments([], {}, {})
    words = iter(argv)
    for word in words:
        if word not in ("--config", "--config-value"):
            found.rest.append(word)
            continue
        name, value = next(words, None), next(words, None)
        if name is None or value is None:
            usage = f"{word} NAME {'PATH' if word == '--config' else 'JSON'}"
            raise DefinitionError(Finding("command line", f"{word} needs two words", f"Write {usage}."))
        (found.files if word == "--config" else found.values)[name] = value
    return found


def _told() -> _Sources:
    """What `set_config_sources` said; before it was called, what the command line of this process says.

    A class body that uses a config at once (``@conda(**config.env)``) runs before the command line is read in due order.
    """
    if not _sources.count and {"--config", "--config-value"} & set(sys.argv):
        try:
            read = config_arguments(sys.argv[1:])
        except DefinitionError:
            return _sources  # the command line will say so
        return _Sources({_norm(n): p for n, p in read.files.items()}, {_norm(n): v for n, v in read.values.items()})
    return _sources


@dataclass(frozen=True)
class _Source:
    """Where a config's value was found: as a text, in which format ("" is JSON or TOML), or as a value."""

    origin: str
    text: str | None = None
    suffix: str = ""
    value: Any = None
    path: str = ""  # absolute, of a file


class Config:
    """Settings of a flow in a file, known before the run starts, so that decorators can use them.

    ``config = Config("config", default="config.json")``; then ``@resources(gpu=config.gpu)``, and ``self.config.gpu`` in a step. The
    value is read-only. JSON, TOML by the file's ending, or what `parser` (a function or its dotted name) makes of the text; with
    `plain` as the parser gives it, of any type. All public attributes are keys of the value.

    It is taken from, in this order: ``--config NAME PATH`` or ``--config-value NAME JSON``, FLOWBOOK_CONFIG_<NAME> (a path) or
    FLOWBOOK_CONFIG_VALUE_<NAME> (the text), the file `default`, `default_value`. Else it is None.
    """

    def __init__(
        self,
        name: str,
        default: Any = None,
        default_value: Any = None,
        help: str | None = None,
        required: bool | None = None,
        parser: Any = None,
        plain: bool = False,
        show_default: bool = True,
        **unknown: Any,
    ) -> None:
        self._parameter = ConfigParameter(name, default, default_value, help, required, parser, plain, show_default, tuple(unknown))

    def __set_name__(self, owner: Any, name: str) -> None:
        self._parameter.__set_name__(owner, name)

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        return self if obj is None else self._parameter.__get__(obj, owner)

    def __set__(self, obj: Any, value: Any) -> None:
        self._parameter.__set__(obj, value)

    def __delete__(self, obj: Any) -> None:
        self._parameter.__delete__(obj)

    def __getattr__(self, name: str) -> ConfigExpression:
        if name.startswith("_") or name == "is_step":
            raise AttributeError(name)
        return ConfigExpression(self._parameter.name, (("attribute", name),), self._parameter)

    def __getitem__(self, key: Any) -> ConfigExpression:
        return ConfigExpression(self._parameter.name, (("item", key),), self._parameter)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parameter.value)

    def __repr__(self) -> str:
        return repr(self._parameter)


class ConfigParameter(Parameter):
    """What stands behind a Config: where its value is looked for, and how it is read."""

    is_option = False
    arguments = tuple("default default_value help required parser plain show_default".split())

    def __init__(
        self,
        name: str,
        default: Any,
        default_value: Any,
        help: str | None,
        required: bool | None,
        parser: Any,
        plain: bool,
        show_default: bool,
        unknown: tuple[str, ...],
    ) -> None:
        super().__init__(name, default, JSONType, help, show_default=show_default)
        self.needed = bool(required)  # not `required`: it is no option of a run
        self.default_value, self.parser, self.plain, self.unknown = default_value, parser, plain, unknown
        self._read: tuple[int, Any] | None = None  # in which count of the sources, and what
        _configs[name] = self

    def __set_name__(self, owner: Any, name: str) -> None:
        super().__set_name__(owner, name)
        _configs[name] = self

    def __repr__(self) -> str:
        return f"<Config {self.name}>"

    @property
    def where(self) -> str:
        return "config" + super().where.removeprefix("parameter")

    @property
    def option(self) -> str:
        return f"--config {self.name}"

    @property
    def expected(self) -> str:
        return "the path of a file"

    @property
    def variable(self) -> str:
        return f"FLOWBOOK_CONFIG_VALUE_{_norm(self.name).upper()}"

    @property
    def path_variable(self) -> str:
        return f"FLOWBOOK_CONFIG_{_norm(self.name).upper()}"

    @property
    def value(self) -> Any:
        """The value, read once for each `set_config_sources`. Raises DefinitionError."""
        return self._current()

    def _current(self) -> Any:
        if self._read is None or self._read[0] != _sources.count:
            if self.file == getattr(sys.modules.get("__main__"), "__file__", None) and sys.excepthook is not _plainly:
                _sources.hook, sys.excepthook = sys.excepthook, _plainly
            self._read = _sources.count, self._value()
        return self._read[1]

    def _value(self) -> Any:
        source = self.source()
        if source is None:
            if self.needed:
                raise DefinitionError(Finding(self.where, "it is required, and nobody gives it", self._remedy()))
            return None
        value = source.value
        if source.text is not None:
            value = self._parse(source.text, source)
        if self.plain:
            return value
        if isinstance(value, Mapping | list):
            return _frozen(value)
        what = f"{source.origin} gives {shown(repr(value))}, but a config is a dict"
        raise DefinitionError(Finding(self.where, what, "Write {…}, give a parser that makes a dict, or say plain=True."))

    def _remedy(self) -> str:
        return f"Give {self.option} PATH, --config-value {self.name} JSON, or default=…."

    def _parse(self, text: str, source: _Source) -> Any:
        if self.parser is not None:
            return _parsed(self.parser, text, source.origin, self.where)
        if source.suffix == ".toml":
            return _parsed("tomllib.loads", text, source.origin, self.where)
        if source.suffix in (".yaml", ".yml"):
            raise DefinitionError(Finding(self.where, f"{source.origin} is YAML", "Say parser='yaml.safe_load', and install PyYAML."))
        try:
            return json.loads(text)
        except ValueError as error:
            if source.suffix != ".json" and not text.lstrip().startswith("{"):
                try:
                    return _parsed("tomllib.loads", text, source.origin, self.where)
                except DefinitionError:
                    pass  # what is wrong with it as JSON is said
            raise DefinitionError(Finding(self.where, f"{source.origin} is not JSON: {error}", "Mend it, or name a parser=….")) from None

    def source(self) -> _Source | None:
        """Where the value comes from now; None if from nowhere. Raises DefinitionError for a file that is given and missing."""
        told, key = _told(), _norm(self.name)
        if key in told.files:
            return self._file(told.files[key], required=True)
        if key in told.values:
            given = told.values[key]
            origin = f"--config-value {self.name}"
            return _Source(origin, given) if isinstance(given, str) else _Source(origin, value=given)
        if (found := self._from_environment()) is not None:
            return found
        context = ParameterContext("", "", self.name, _say)
        default = self._call(self.default, context) if callable(self.default) else self.default
        if default is not None and (source := self._file(default, required=False)) is not None:
            return source
        value = self._call(self.default_value, context) if callable(self.default_value) else self.default_value
        if value is None:
            return None
        return _Source("default_value", value) if isinstance(value, str) else _Source("default_value", value=value)

    def told_to_others(self, source: _Source) -> dict[str, str]:
        """Variables that give another process this source. A long text goes by its path: a variable holds 128 KiB at most."""
        text = source.text
        if text is None:
            try:
                text = json.dumps(source.value)
            except (TypeError, ValueError):
                return {}  # the default_value that the file of the flow itself gives: it is there again
        if len(text.encode()) <= VARIABLE_BYTES:
            return {self.variable: text}
        return {self.path_variable: source.path} if source.path else {}

    def _from_environment(self) -> _Source | None:
        if (text := os.environ.get(self.variable)) is not None:
            return _Source(self.variable, text)
        if path := os.environ.get(self.path_variable):
            return self._file(path, required=True)
        for variable in ("METAFLOW_FLOW_CONFIG_VALUE", "METAFLOW_FLOW_CONFIG"):
            given = _object_or_nothing(os.environ.get(variable, "")).get(self.name)
            if given is not None and variable == "METAFLOW_FLOW_CONFIG":
                return self._file(given, required=True)
            if given is not None:
                return _Source(variable, given) if isinstance(given, str) else _Source(variable, value=given)
        return None

    def _file(self, path: Any, required: bool) -> _Source | None:
        if not isinstance(path, str | os.PathLike):
            raise DefinitionError(Finding(self.where, f"{shown(repr(path))} is no path", self._remedy()))
        found = _located(path, self.file, self.where)
        if not required and not found.exists():
            return None
        data = _read(found, self.where, f"{self.option} PATH")
        return _Source(str(found), _decoded(data, "utf-8", found, self.where), found.suffix.lower(), path=str(found.absolute()))

    def convert(self, value: Any, given_by: str | None = None) -> NoReturn:
        raise DefinitionError(Finding(self.where, "a config is known before the run's parameters are", self._remedy()))

    def _check_values(self) -> list[Finding]:
        if self.parser is None:
            return []
        try:
            _parser(self.parser, self.where)
        except DefinitionError as error:
            return list(error.findings)
        return []


def _plainly(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """An excepthook. A class body that needs a config at once can fail before the command line is there to show our errors."""
    if isinstance(error, FlowbookError):
        _say(f"error: {error}")
    else:
        _sources.hook(kind, error, trace)


def _object_or_nothing(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class ConfigExpression:
    """A value out of a config that is not looked up yet: ``config.train.gpu``, ``config_expr("max(config.sizes)")``.

    `evaluate` looks it up. Where a class body needs the value itself (iterate, ``**config.env``, an f-string, bool, int, float),
    it is looked up at that moment.
    """

    def __init__(self, text: str, path: tuple[tuple[str, Any], ...] = (), config: ConfigParameter | None = None, names: Any = None) -> None:
        self._text, self._path, self._config = text, path, config
        self._names = names  # globals where the expression was written; they stay in this process

    def __getattr__(self, name: str) -> ConfigExpression:
        if name.startswith("_") or name == "is_step":
            raise AttributeError(name)
        return ConfigExpression(self._text, (*self._path, ("attribute", name)), self._config, self._names)

    def __getitem__(self, key: Any) -> ConfigExpression:
        return ConfigExpression(self._text, (*self._path, ("item", key)), self._config, self._names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._now()(*args, **kwargs)

    def __repr__(self) -> str:
        return self._text + "".join(f".{key}" if how == "attribute" else f"[{key!r}]" for how, key in self._path)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __contains__(self, item: Any) -> bool:
        return item in self._now()

    def __bool__(self) -> bool:
        return bool(self._now())

    def __str__(self) -> str:
        return str(self._now())

    def __format__(self, spec: str) -> str:
        return format(self._now(), spec)

    def __int__(self) -> int:
        return int(self._now())

    def __float__(self) -> float:
        return float(self._now())

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigExpression, (self._text, self._path, self._config)

    def _now(self, configs: Mapping[str, ConfigParameter] | None = None) -> Any:
        """The value. Raises DefinitionError that names the expression."""
        known = _configs if configs is None else {**_configs, **configs}
        try:
            if self._config is not None:
                value = known.get(self._text, self._config).value
            else:
                names = {name: config.value for name, config in known.items() if re.search(rf"\b{re.escape(name)}\b", self._text)}
                value = eval(self._text, self._names or {}, names)
            for how, key in self._path:
                key = evaluate(key)
                value = getattr(value, key) if how == "attribute" else value[key]
        except FlowbookError:
            raise
        except Exception as error:
            what = error.args[0] if isinstance(error, KeyError | AttributeError) and error.args else f"{type(error).__name__}: {error}"
            raise DefinitionError(Finding(repr(self), shown(str(what), 300), "Mend the expression or the config.")) from None
        return value


def config_expr(expression: str) -> ConfigExpression:
    """An expression over configs for the arguments of decorators, also of those above the class: ``config_expr("config.gpu + 1")``.

    Configs are known in it by their names; so are the globals of the file where it stands.
    """
    return ConfigExpression(expression, names=sys._getframe(1).f_globals)


def evaluate(value: Any, cls: type | None = None) -> Any:
    """`value` with all expressions over configs, also inside lists and dicts, looked up; a config itself becomes its value.

    `cls` is the flow whose configs count; without it the newest of the name. What has no expression is given back as it is.
    Raises DefinitionError.
    """
    configs = None if cls is None else {n: c for c in configs_of(cls).values() for n in (c.name, c.attribute)}
    return _evaluated(value, configs)


def _evaluated(value: Any, configs: Mapping[str, ConfigParameter] | None) -> Any:
    if isinstance(value, ConfigExpression):
        return _thawed(value._now(configs))
    if isinstance(value, Config):
        return _thawed(value._parameter.value)
    if type(value) is dict:
        return {_evaluated(key, configs): _evaluated(item, configs) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_evaluated(item, configs) for item in value)
    return value


# ---- of a class ------------------------------------------------------------------------------------------------------


def parameters_of(cls: type) -> dict[str, Parameter]:
    """Attribute → parameter, configs and files included, in the order of definition, those of base classes first."""
    found: dict[str, Parameter] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            if isinstance(value, Parameter | Config):
                found[attribute] = value._parameter if isinstance(value, Config) else value
            else:
                found.pop(attribute, None)  # a subclass has something else of that name
    return found


def configs_of(cls: type) -> dict[str, ConfigParameter]:
    """Attribute → config."""
    return {attribute: value for attribute, value in parameters_of(cls).items() if isinstance(value, ConfigParameter)}


def check_parameters(cls: type) -> list[Finding]:
    """All that is wrong with the parameters of a flow as they are defined. Reads no file but those of configs in defaults."""
    found: list[Finding] = []
    first: dict[str, Parameter] = {}
    for attribute, parameter in parameters_of(cls).items():
        try:
            found += parameter.check()
        except DefinitionError as error:  # of a config that a default uses
            found += error.findings
        if attribute in FLOW_WORDS or attribute.startswith("__") or keyword.iskeyword(attribute):
            found.append(Finding(parameter.where, f"{attribute!r} is a word of FlowSpec itself", "Give the attribute another name."))
        other = first.setdefault(_norm(str(parameter.name)), parameter)
        if other is not parameter or other.attribute != attribute:
            same = f"`{other.attribute}` has the name {other.name!r}"
            what = f"`{attribute}` and `{other.attribute}` share the name {parameter.name!r}" if other.name == parameter.name else same
            found.append(Finding(parameter.where, what, "Names count without case, and - is _: rename one of them."))
    return found


def resolve(
    cls: type,
    given: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    user: str = "",
    say: Callable[[str], None] = _say,
) -> dict[str, Any]:
    """Attribute → value, of all parameters, files and configs of a flow, for a run that starts now.

    `given`: option or attribute name → text or value; a text is read by the type. What is not given is looked for in `environ`
    (FLOWBOOK_PARAM_<NAME>, METAFLOW_RUN_<NAME>), then comes the default; its function is called here and nowhere else. `say` is the
    context's logger. Raises DefinitionError with all findings.
    """
    known = parameters_of(cls)
    findings = check_parameters(cls)
    chosen, unknown = _matched(cls, known, given)
    findings += unknown + _unknown_configs(cls)
    values: dict[str, Any] = {}
    for attribute, config in configs_of(cls).items():
        values[attribute] = _or_findings(findings, config._current)
    context = ParameterContext(cls.__name__, user, "", say, configs={c.name: values[a] for a, c in configs_of(cls).items()})
    broken = {finding.where for finding in findings}
    for attribute, parameter in known.items():
        if isinstance(parameter, ConfigParameter) or parameter.where in broken:
            continue
        values[attribute] = _or_findings(findings, _value_of, parameter, chosen.get(attribute, _NOT_GIVEN), environ or {}, context)
    if findings:
        raise DefinitionError(*dict.fromkeys(findings))
    return {attribute: values[attribute] for attribute in known}


_NOT_GIVEN: Any = object()


def _or_findings(findings: list[Finding], compute: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return compute(*arguments)
    except DefinitionError as error:
        findings += error.findings
        return None


def _value_of(parameter: Parameter, given: Any, environ: Mapping[str, str], context: ParameterContext) -> Any:
    if given is not _NOT_GIVEN:
        return parameter.parse(given) if isinstance(given, str) else parameter.convert(given)
    for prefix in ENVIRONMENT:
        variable = prefix + _norm(parameter.name).upper()
        if variable in environ:
            return parameter.parse(environ[variable], f"{variable}={shown(environ[variable])}")
    if parameter.required:
        what = f"it is required, and nobody gives it ({parameter.expected})"
        variable = ENVIRONMENT[0] + _norm(parameter.name).upper()
        raise DefinitionError(Finding(parameter.where, what, f"Give {parameter.option} VALUE, or set {variable}."))
    return parameter.default_value_for(dataclasses.replace(context, parameter_name=parameter.name))


def _matched(cls: type, known: Mapping[str, Parameter], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Attribute → what is given for it, and what cannot be matched."""
    by_name = {_norm(str(parameter.name)): attribute for attribute, parameter in known.items()}
    by_name = {_norm(attribute): attribute for attribute in known} | by_name  # an option's name stands before an attribute's
    chosen: dict[str, Any] = {}
    findings = []
    for name, value in given.items():
        attribute = by_name.get(_norm(name))
        if attribute is None:
            options = [p.name for p in known.values() if p.is_option]
            near = difflib.get_close_matches(_norm(name), [_norm(option) for option in options], 1)
            hint = next((f"; did you mean --{option}?" for option in options if near and _norm(option) == near[0]), "")
            remedy = f"Parameters: {', '.join(options)}." if options else "The flow has no parameters."
            findings.append(Finding(cls.__name__, f"no parameter `{name}`{hint}", remedy))
        elif attribute in chosen:
            findings.append(Finding(known[attribute].where, f"it is given twice, also as `{name}`", "Give it once."))
        elif isinstance(known[attribute], ConfigParameter):
            _or_findings(findings, known[attribute].convert, value)
        else:
            chosen[attribute] = value
    return chosen, findings


def _unknown_configs(cls: type) -> list[Finding]:
    names = {_norm(config.name): config.name for config in configs_of(cls).values()}
    told = _told()
    findings = []
    for name in sorted({*told.files, *told.values} - names.keys()):
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {names[near[0]]}?" if near else ""
        remedy = f"Configs: {', '.join(names.values())}." if names else "The flow has none."
        findings.append(Finding(cls.__name__, f"no config `{name}`{hint}", remedy))
    return findings


def config_environment(cls: type) -> dict[str, str]:
    """Variables with which the same file, run in another process, has the configs of this one, whatever files are there.

    Worker processes get them: a class body may need a config at once. Raises DefinitionError.
    """
    found: dict[str, str] = {}
    for config in configs_of(cls).values():
        source = config.source()
        if source is not None:
            found |= config.told_to_others(source)
    return found
