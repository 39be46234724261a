"""What the arguments of decorators mean: marks become `Options` of a step, or what a class says of its flow.

DECORATORS is the whole table: every decorator, every argument and how its value is read. A reader returns the value or raises
Refused, with what is wrong and what to write; all that is wrong with a step is said at once. Arguments that are None count as not
given. Values may be text (`--with retry:times=3`, configs), so numbers are read from both. Workers never load this file.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowbook.errors import DefinitionError, Finding
from flowbook.spec.flow import Card, Checkpoint, Options, Resources, Retry
from flowbook.spec.flowspec import RESERVED
from flowbook.spec.marks import Mark, class_marks, own_marks
from flowbook.spec.options import MOST_DEVICES, MOST_FACTOR, MOST_RETRIES, Refused, disk, error_names, looks_secret, memory, shared_memory
from flowbook.spec.parameters import evaluate
from flowbook.spec.secrets import HOW, VARIABLE, WrongSource, parse_source

Reader = Callable[[Any], Any]
Values = Mapping[str, Any]  # argument → value as read; only those given

LONGEST_MINUTES = 365 * 1440
FLOW_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}\Z")


# ---- readers ------------------------------------------------------------------------------------------------------------------


def _number(least: float, most: float, what: str, above: bool = False) -> Reader:
    """Numbers from `least` (or only above it) to `most`."""
    span = f"{'above' if above else 'from'} {least:g} {'and up to' if above else 'to'} {most:g}"

    def read(value: Any) -> float:
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if math.isnan(number) or not least <= number <= most or (above and number == least):
            raise Refused(f"not {what}", f"write a number {span}")
        return number

    return read


def _whole(most: int, what: str) -> Reader:
    read_number = _number(0, most, what)

    def read(value: Any) -> int:
        number = read_number(value)
        if number != int(number):
            raise Refused(f"not {what}", f"write a whole number from 0 to {most}")
        return int(number)

    return read


def _size(read_text: Callable[[str], int]) -> Reader:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise Refused("not a size", 'write megabytes, such as 32000, or a text such as "32GB"')
        return read_text(str(math.ceil(value)) if isinstance(value, float) else str(value))

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Refused("not True or False", "write True or False")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Refused("not a text", "write a text in quotes")
    return value


def _word(what: str, form: re.Pattern[str]) -> Reader:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not form.match(value):
            raise Refused(f"not {what}", "use letters, digits and _, beginning with a letter")
        return value

    return read


def _one_of(*words: str) -> Reader:
    def read(value: Any) -> str:
        if value not in words:
            raise Refused("not known", f"write one of {', '.join(words)}")
        return str(value)

    return read


def _anything(value: Any) -> Any:
    return value


def _json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise Refused("not plain data", "use texts, numbers, lists and dicts") from None
    return value


def _json_object(value: Any) -> str:
    if not isinstance(value, dict):
        raise Refused("not a dict", 'write a dict, such as {"columns": 2}')
    return json.dumps(_json(value)) if value else ""


def _errors(value: Any) -> tuple[str, ...]:
    """Exception classes, their names, or words such as "oom"; one, or several in a list."""
    several = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    names: list[str] = []
    for each in several:
        if isinstance(each, type) and issubclass(each, BaseException):
            names.append(each.__name__ if each.__module__ in ("builtins", "__main__") else f"{each.__module__}.{each.__qualname__}")
        elif isinstance(each, str):
            names += error_names(each)
        else:
            raise Refused(f"{each!r} is no exception class", "write classes or their names: only=(OSError, 'requests.Timeout', 'oom')")
    return tuple(dict.fromkeys(names))


def _artifact(value: Any) -> str:
    if not isinstance(value, str) or not value.isidentifier() or value.startswith("__"):
        raise Refused("not the name of an artifact", 'write a name, such as catch(var="error")')
    if value in RESERVED:
        raise Refused("a flow has an attribute of that name itself", "use another name, such as error")
    return value


def _variables(value: Any) -> tuple[tuple[str, str | None], ...]:
    if not isinstance(value, Mapping):
        raise Refused("not a dict", 'write vars={"NAME": "value"}')
    found: list[tuple[str, str | None]] = []
    for name, each in value.items():
        if not isinstance(name, str) or not VARIABLE.match(name):
            raise Refused(f"{name!r} is not a variable's name", "use letters, digits and _")
        if isinstance(each, Mapping | list | tuple | set | bytes):
            raise Refused(f"the value of {name} is not a text", "write a text")
        text = None if each is None else str(each)
        if text is not None and looks_secret(name, text):
            raise Refused(
                f"the value of {name} looks like a secret, and the text of a flow is stored", f'write @secrets(sources=["env:{name}"])'
            )
        found.append((name, text))
    return tuple(found)


def _sources(value: Any) -> list[Any]:
    several = list(value) if isinstance(value, list | tuple) else [value]
    for each in several:
        try:
            parse_source(each)
        except WrongSource as wrong:
            hidden = isinstance(each, str) and not each.startswith("inline:")
            raise Refused(f"{each!r}: {wrong}" if hidden else str(wrong), HOW) from None
    if not several:
        raise Refused("no source", HOW)
    return several


def _packages(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise Refused("not a dict of versions by name", 'write packages={"numpy": "2.1"}')
    return dict(value)


def _functions(value: Any) -> tuple[Callable[..., Any], ...]:
    several = list(value) if isinstance(value, list | tuple) else [value]
    for each in several:
        if not callable(each):
            raise Refused(f"{each!r} is no function", "write functions: on_success=[tell]")
    return tuple(several)


# ---- the table -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A decorator: its arguments, whether it may stand twice, and whether it is of a class."""

    arguments: Mapping[str, Reader]
    repeatable: bool = False
    of_class: bool = False


_MINUTES = _number(0, LONGEST_MINUTES, "a number of minutes")
_SECONDS = _number(0, LONGEST_MINUTES * 60, "a number of seconds")
_ASKED: dict[str, Reader] = {
    "cpu": _number(0, MOST_DEVICES, "a number of cores", above=True),
    "gpu": _whole(MOST_DEVICES, "a number of GPUs"),
    "memory": _size(memory),
    "disk": _size(disk),
    "shared_memory": _size(shared_memory),
}
_PYPI: dict[str, Reader] = {"packages": _packages, "python": _text, "disabled": _flag, "extra_indices": _json}
_CONDA: dict[str, Reader] = {"packages": _packages, "libraries": _packages, "python": _text, "disabled": _flag, "channels": _json}
_ON_KUBERNETES = """image image_pull_policy image_pull_secrets service_account secrets node_selector namespace gpu_vendor tolerations labels
    annotations use_tmpfs tmpfs_tempdir tmpfs_size tmpfs_path persistent_volume_claims port compute_pool hostname_resolution_timeout
    qos security_context executable volumes template spot service_account_token""".split()

DECORATORS: dict[str, Known] = {
    "step": Known({"start": _flag, "end": _flag}),
    "resources": Known(_ASKED),
    "retry": Known(
        {
            "times": _whole(MOST_RETRIES, "a number of attempts"),
            "minutes_between_retries": _MINUTES,
            "backoff": _number(1, MOST_FACTOR, "a factor"),
            "jitter": _number(0, 1, "a share"),
            "max_minutes": _MINUTES,
            "only": _errors,
            "unless": _errors,
        }
    ),
    "timeout": Known({"seconds": _SECONDS, "minutes": _MINUTES, "hours": _number(0, LONGEST_MINUTES / 60, "a number of hours")}),
    "catch": Known({"var": _artifact, "print_exception": _flag}),
    "environment": Known({"vars": _variables}),
    "secrets": Known({"sources": _sources, "role": _text, "allow_override": _flag}),
    "card": Known(
        {
            "type": _word("a type of card", re.compile(r"[A-Za-z_][\w.-]{0,99}\Z")),
            "id": _word("an id of a card", re.compile(r"\w{1,100}\Z")),
            "options": _json_object,
            "timeout": _number(0, 86400, "a number of seconds", above=True),
            "refresh_interval": _number(0, 3600, "a number of seconds", above=True),
            "save_errors": _flag,
            "customize": _flag,
            "rank": _whole(10**6, "a rank"),
        },
        repeatable=True,
    ),
    "checkpoint": Known({"load_policy": _one_of("fresh", "eager", "none"), "temp_dir_root": _text}),
    "kubernetes": Known(_ASKED | dict.fromkeys(_ON_KUBERNETES, _json)),
    "pypi": Known(_PYPI),
    "conda": Known(_CONDA),
    "parallel": Known({}),
    "project": Known({"name": _word("a name of a project", FLOW_NAME), "branch": _text, "production": _flag}, of_class=True),
    "exit_hook": Known({"on_success": _functions, "on_error": _functions, "options": _json}, repeatable=True, of_class=True),
    "pypi_base": Known(_PYPI, of_class=True),
    "conda_base": Known(_CONDA, of_class=True),
    "schedule": Known(dict.fromkeys(("hourly", "daily", "weekly", "cron", "timezone"), _anything), of_class=True),
    "trigger": Known(dict.fromkeys(("event", "events", "options"), _anything), repeatable=True, of_class=True),
    "trigger_on_finish": Known(dict.fromkeys(("flow", "flows", "options"), _anything), repeatable=True, of_class=True),
}
LATER = ("kubernetes", "pypi", "conda")  # kept in Options.extra: heeded where pods are not local
_STARTS = ("schedule", "trigger", "trigger_on_finish")
_HIDDEN = ("vars", "sources")  # arguments whose values are not repeated in a message


def _read(mark: Mark, cls: type | None, wrong: list[Refused]) -> Values:
    """The arguments of a mark, read; what cannot be is added to `wrong`."""
    known = DECORATORS[mark.name].arguments
    if mark.values:
        first = next(iter(known), None)
        remedy = f"write @{mark.name}({first}=…)" if first else f"write @{mark.name}"
        wrong.append(Refused(f"{mark.shown}: a value without a name", remedy))
    found: dict[str, Any] = {}
    for name, value in mark.arguments.items():
        if name not in known:
            wrong.append(_unknown(mark, name, known))
            continue
        try:
            value = evaluate(value, cls)
            if value is not None:
                found[name] = known[name](value)
        except Refused as refused:
            shown = name if name in _HIDDEN else f"{name}={_short(value)}"
            wrong.append(Refused(f"{mark.shown}: {shown}: {refused.what}", refused.remedy))
        except DefinitionError as error:
            wrong += [Refused(f"{mark.shown}: {name}: {each.what}", each.remedy) for each in error.findings]
    return found


def _short(value: Any) -> str:
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _unknown(mark: Mark, name: str, known: Mapping[str, Reader]) -> Refused:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return Refused(f"{mark.shown}: unknown argument {name}{hint}", f"arguments: {', '.join(known)}" if known else "it takes none")


def _nearest(name: str, of_class: bool) -> str:
    near = difflib.get_close_matches(name, [other for other, known in DECORATORS.items() if known.of_class == of_class], 1)
    return f"; did you mean {near[0]}?" if near else ""


# ---- steps ---------------------------------------------------------------------------------------------------------------------


def options_of(marks: Sequence[Mark], label: str, with_marks: Sequence[Mark] = (), cls: type | None = None) -> Options:
    """See decorators.options_of. `cls` is the flow whose configs the arguments may name."""
    names = {mark.name for mark in marks if mark.function is None}
    counted = [mark for mark in marks if mark.function is None] + [mark for mark in with_marks if mark.name not in names]
    wrong: list[Refused] = _misplaced(counted, of_class=False)
    for mark in marks:
        if mark.function is not None and mark.values:
            wrong.append(Refused(f"{mark.shown}: a value without a name", f"write @{mark.name}(NAME=VALUE)"))
    by_name: dict[str, list[Values]] = {}
    for mark in counted:
        if mark.name in DECORATORS and not DECORATORS[mark.name].of_class:
            by_name.setdefault(mark.name, []).append(_read(mark, cls, wrong))
    fields: dict[str, Any] = {}
    for name, several in by_name.items():
        try:
            fields |= _FIELDS[name](several) if name in _FIELDS else {}
        except Refused as refused:
            wrong.append(Refused(f"@{name}: {refused.what}", refused.remedy))
    extra = tuple((name, json.dumps(by_name[name][0], sort_keys=True)) for name in LATER if name in by_name)
    if wrong:
        raise DefinitionError(*(Finding(label, each.what, each.remedy) for each in wrong))
    return Options(**fields, extra=extra)


def _misplaced(marks: Sequence[Mark], of_class: bool) -> list[Refused]:
    """Decorators that stand where they do not belong, twice, or that are not supported at all."""
    wrong = []
    names = [mark.name for mark in marks]
    for mark in marks:
        known = DECORATORS.get(mark.name)
        if known is None:
            wrong.append(Refused(f"{mark.shown} is not known{_nearest(mark.name, of_class)}", "remove it"))
        elif known.of_class != of_class:
            here, there = ("a class", "a method with @step") if of_class else ("a step", "the class of the flow")
            wrong.append(Refused(f"{mark.shown} stands above {here}", f"put it above {there}"))
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and name in DECORATORS and not DECORATORS[name].repeatable:
            wrong.append(Refused(f"@{name} is given {names.count(name)} times", "keep one of them"))
    if "parallel" in names:
        what = "@parallel (one step on several nodes at once) is not supported: every task of a step runs by itself"
        wrong.append(Refused(what, "use foreach, a task for each part; or processes of one pod, with @resources(cpu=…, gpu=…)"))
    return wrong


def _resources(several: list[Values]) -> dict[str, Any]:
    given = several[0]
    standard = Resources()
    asked = Resources(
        given.get("cpu", standard.cpu), given.get("memory"), given.get("gpu", 0), given.get("disk"), given.get("shared_memory")
    )
    return {"resources": asked}


def _retry(several: list[Values]) -> dict[str, Any]:
    return {"retry": Retry(**{"times": 3} | dict(several[0]))}


def _timeout(several: list[Values]) -> dict[str, Any]:
    given = several[0]
    seconds = given.get("seconds", 0.0) + 60 * given.get("minutes", 0.0) + 3600 * given.get("hours", 0.0)
    if not seconds:
        raise Refused("no time at all", "write @timeout(minutes=15); seconds, minutes and hours are added up")
    return {"timeout_s": seconds}


def _catch(several: list[Values]) -> dict[str, Any]:
    given = several[0]
    return {"catch": given.get("var", ""), "print_exception": given.get("print_exception", True)}


def _environment(several: list[Values]) -> dict[str, Any]:
    return {"env": several[0].get("vars", ())}


def _secrets(several: list[Values]) -> dict[str, Any]:
    given = several[0]
    if "sources" not in given:
        raise Refused("no source", HOW)
    role, override = given.get("role"), given.get("allow_override", False)
    return {"secrets": tuple(parse_source(source, role, override).to_text() for source in given["sources"])}


def _cards(several: list[Values]) -> dict[str, Any]:
    ids = [given["id"] for given in several if "id" in given]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise Refused(f"two cards have the id {twice!r}", "give each its own")
    return {"cards": tuple(_card(given) for given in several)}


def _card(given: Values) -> Card:
    standard = Card()
    return Card(
        type=given.get("type", standard.type),
        id=given.get("id"),
        refresh_interval_s=given.get("refresh_interval", standard.refresh_interval_s),
        timeout_s=given.get("timeout", standard.timeout_s),
        options=given.get("options", standard.options),
        save_errors=given.get("save_errors", standard.save_errors),
        customize=given.get("customize", standard.customize),
    )


def _checkpoint(several: list[Values]) -> dict[str, Any]:
    return {"checkpoint": Checkpoint(several[0].get("load_policy", Checkpoint.load_policy))}


_FIELDS: dict[str, Callable[[list[Values]], dict[str, Any]]] = {
    "resources": _resources,
    "retry": _retry,
    "timeout": _timeout,
    "catch": _catch,
    "environment": _environment,
    "secrets": _secrets,
    "card": _cards,
    "checkpoint": _checkpoint,
}


def notes_of(options: Options, clustered: bool = False) -> list[str]:
    """See decorators.notes_of."""
    if clustered and any(name == "kubernetes" for name, _ in options.extra):
        return []
    reasons = {
        "kubernetes": "the step runs in a local pod (docs/kubernetes.md says what a cluster needs)",
        "pypi": "the step runs with the packages of this environment",
        "conda": "the step runs with the packages of this environment",
    }
    return [f"@{name} has no effect here: {reasons[name]}" for name, _ in options.extra if name in reasons]


# ---- --with ----------------------------------------------------------------------------------------------------------------------


def parse_with(text: str) -> Mark:
    """See decorators.parse_with. Values are JSON where they can be read so, else texts; True, False and None as in Python."""
    name, colon, rest = text.strip().partition(":")
    where = f"--with {text.strip()}"
    known = DECORATORS.get(name)
    if known is None or name == "step":
        names = ", ".join(other for other, each in DECORATORS.items() if not each.of_class and other != "step")
        raise DefinitionError(Finding(where, f"unknown decorator {name!r}{_nearest(name, False)}", f"decorators of steps: {names}"))
    if known.of_class:
        raise DefinitionError(Finding(where, f"@{name} is of the class, and --with adds to steps", f"write @{name} above the class"))
    try:
        mark = Mark(name, _read_pairs(rest) if colon else {}, origin=f"--with {name}")
    except Refused as refused:
        raise DefinitionError(Finding(where, refused.what, refused.remedy)) from None
    options_of([mark], where)  # what is wrong is said once, not for every step
    return mark


def _read_pairs(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rest = text
    while rest.strip():
        name, equals, after = rest.partition("=")
        if not equals or not name.strip().isidentifier():
            raise Refused(f"{rest!r} is not of the form NAME=VALUE", "write --with retry:times=3,minutes_between_retries=0.1")
        if name.strip() in found:
            raise Refused(f"{name.strip()} is given twice", "keep one of them")
        found[name.strip()], rest = _read_value(after)
    return found


def _read_value(text: str) -> tuple[Any, str]:
    """A value, and what follows its comma. A comma inside of JSON is no end; nor is one that no NAME= follows."""
    try:
        value, end = json.JSONDecoder().raw_decode(text.lstrip())
        rest = text.lstrip()[end:].lstrip()
        if not rest or re.match(r",\s*[A-Za-z_]\w*=", rest):
            return value, rest[1:]
    except ValueError:
        pass
    found = re.search(r",\s*(?=[A-Za-z_]\w*=)", text)
    word, rest = (text[: found.start()], text[found.end() :]) if found else (text, "")
    return {"True": True, "False": False, "None": None}.get(word.strip(), word.strip()), rest


# ---- classes -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Project:
    """`@project`. Flows of one project, each branch of it by itself."""

    name: str
    branch: str | None = None
    production: bool = False

    def branch_name(self, user: str) -> str:
        """``user.ann``, ``test.BRANCH``, ``prod`` or ``prod.BRANCH``."""
        if self.production:
            return f"prod.{self.branch}" if self.branch else "prod"
        return f"test.{self.branch}" if self.branch else f"user.{user}"

    def current(self, flow: str, user: str) -> tuple[tuple[str, Any], ...]:
        """What `current` tells of it, by Metaflow's names."""
        branch = self.branch_name(user)
        return (
            ("project_name", self.name),
            ("branch_name", branch),
            ("is_user_branch", branch.startswith("user.")),
            ("is_production", self.production),
            ("project_flow_name", f"{self.name}.{branch}.{flow}"),
        )


@dataclass(frozen=True)
class ExitHook:
    """`@exit_hook`: functions to be called when a run ended."""

    on_success: tuple[Callable[..., Any], ...] = ()
    on_error: tuple[Callable[..., Any], ...] = ()


def class_findings(cls: type, required: Iterable[str] = (), parameters: Iterable[str] | None = None) -> list[Finding]:
    """See decorators.class_findings."""
    wrong: list[Refused] = []
    for each in reversed(cls.__mro__):
        wrong += _misplaced(own_marks(each), of_class=True)
    for mark in class_marks(cls):
        if mark.name in DECORATORS and DECORATORS[mark.name].of_class:
            given = _read(mark, cls, wrong)
            if mark.name == "project" and "name" not in given and "name" not in mark.arguments:
                wrong.append(Refused("@project: the name is missing", 'write @project(name="my_project")'))
    found = [Finding(cls.__name__, each.what, each.remedy) for each in wrong]
    if not any(mark.name in _STARTS for mark in class_marks(cls)):
        return found  # most flows are started by people only, and need not load what reads cron
    from flowbook.spec import schedules

    return found + schedules.findings(cls, required, parameters)


def _given(cls: type, name: str) -> list[Values]:
    """The arguments of the decorators of that name, of the nearest class that has any; what is wrong is left out."""
    for each in cls.__mro__:
        own = [mark for mark in own_marks(each) if mark.name == name]
        if own:
            return [_read(mark, cls, []) for mark in own]
    return []


def project_of(cls: type) -> Project | None:
    """See decorators.project_of."""
    given = next(iter(_given(cls, "project")), {})
    return Project(**given) if "name" in given else None


def exit_hooks_of(cls: type) -> list[ExitHook]:
    """See decorators.exit_hooks_of."""
    return [ExitHook(given.get("on_success", ()), given.get("on_error", ())) for given in _given(cls, "exit_hook")]
