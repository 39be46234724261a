"""The decorators of a FlowSpec. Each leaves a mark on the function or class and returns it as it was; see marks.py.

So they can stand in any order, with or without parentheses, and cost nothing when a flow is imported. What they say is read and
checked when the flow is (`options_of`, `class_findings`), by arguments.py and schedules.py, which workers never load: that is also
where all arguments are listed, and where an unknown one is refused together with all else that is wrong.

`card` and `checkpoint` are doors: called they decorate, and inside a task every attribute is that of the task's card or checkpoint.
Outside a task they accept everything and do nothing, so that a step's code runs as a plain cell.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from flowbook.errors import DefinitionError, Finding
from flowbook.spec.flowspec import FlowSpec
from flowbook.spec.marks import Mark, leave, marks_of
from flowbook.spec.marks import class_marks as class_marks  # part of what this module offers

if TYPE_CHECKING:
    from flowbook.spec.arguments import ExitHook, Project
    from flowbook.spec.flow import Options

T = TypeVar("T", bound=Callable[..., Any])
_GENERATOR = 0x20  # in co_flags


@dataclass(frozen=True)
class StepMark:
    """`@step`, `@step(start=True)`, `@step(end=True)`."""

    start: bool = False
    end: bool = False


def _leave(mark: Mark, target: Any) -> None:
    try:
        leave(mark, target)
    except (AttributeError, TypeError):
        shown = getattr(target, "__name__", None) or type(target).__name__
        what = f"@{mark.name} stands above {shown}, which is neither a method nor a class of a flow"
        raise DefinitionError(Finding("", what, f"arguments have names: @{mark.name}(NAME=VALUE); put it above a method")) from None


class Decorator:
    """One decorator. Arguments are kept as given; whether they are right is found when the flow is checked.

    `function` is that of a decorator of the user's own.
    """

    def __init__(self, name: str, doc: str, of_class: bool = False, function: Callable[..., Iterator[Any]] | None = None) -> None:
        self._name, self._of_class, self._function = name, of_class, function
        self.__name__ = self.__qualname__ = name
        self.__doc__ = doc

    @overload
    def __call__(self, target: T, /) -> T: ...
    @overload
    def __call__(self, *values: Any, **arguments: Any) -> Callable[[T], T]: ...
    def __call__(self, *values: Any, **arguments: Any) -> Any:
        if len(values) == 1 and not arguments and self._decorates(values[0]):
            return self._mark(values[0], {}, ())
        return lambda target: self._mark(target, arguments, values)

    def _mark(self, target: Any, arguments: Mapping[str, Any], values: tuple[Any, ...]) -> Any:
        _leave(Mark(self._name, arguments, values, self._function), target)
        return target

    def _decorates(self, value: Any) -> bool:
        """Whether a single value is what stands below, and not an argument: an exception class is one, for instance."""
        if isinstance(value, type):
            return self._of_class or issubclass(value, FlowSpec)
        return isinstance(value, types.FunctionType | staticmethod | classmethod | property)

    def __repr__(self) -> str:
        return f"<decorator {self._name}>"

    def __reduce__(self) -> Any:
        return self._name  # pickled by name: a function that mentions it brings no copy along


class _Step(Decorator):
    def _mark(self, target: Any, arguments: Mapping[str, Any], values: tuple[Any, ...]) -> Any:
        known = {name: arguments[name] for name in ("start", "end") if isinstance(arguments.get(name), bool)}
        if values or len(known) < len(arguments) or isinstance(target, type):
            super()._mark(target, arguments, values)  # said with all else that is wrong
        try:
            target.is_step, target.__flowbook_step__ = True, StepMark(**known)
        except AttributeError:
            super()._mark(target, arguments, values)
        return target


class _Inert:
    """What a door leads to outside a task: takes every call, is false and empty. `why` is what it shows."""

    def __init__(self, why: str = "no task runs") -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy, pickle and displays ask for such names and must not be fooled
            raise AttributeError(name)
        return _only_iterate if name in _LOOPS else self

    def __call__(self, *values: Any, **arguments: Any) -> _Inert:
        return self

    def __getitem__(self, key: Any) -> _Inert:
        return self

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __contains__(self, key: Any) -> bool:
        return False

    def __enter__(self) -> _Inert:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __repr__(self) -> str:
        return f"<nothing: {self._why}>"


_INERT = _Inert()
_LOOPS = ("progress", "loop")  # of a card, of checkpoint; also of what they lead to: card["a"], card.run


def _only_iterate(iterable: Iterable[Any], *values: Any, **arguments: Any) -> Iterator[Any]:
    return iter(iterable)


class _Door(Decorator):
    """A decorator that inside a task is also the object that the decorator promises."""

    def __init__(self, name: str, doc: str, loops: str) -> None:
        super().__init__(name, doc)
        self._loops = loops  # the method that iterates; so it does outside a task, too
        self._live: Any = None
        self._missed: Callable[[], None] | None = None

    def _set_missed(self, tell: Callable[[], None] | None) -> None:
        """For a task whose step lacks the decorator: `tell` is called whenever it is used all the same."""
        self._missed = tell

    def _object(self) -> Any:
        """The live object, or what stands in for it."""
        if self._live is not None or self._missed is None:
            return _INERT if self._live is None else self._live
        self._missed()
        return _Inert(f"the step has no @{self._name}")

    def _set_live(self, live: Any) -> None:
        """The worker says what the attributes are: the live object of the task that begins, or None when it ends."""
        self._live = live

    def __getattr__(self, name: str) -> Any:
        live = self.__dict__.get("_live")
        if live is not None:
            return getattr(live, name)
        if name.startswith("_"):
            raise AttributeError(f"{self._name} has no {name!r}" if "_name" in self.__dict__ else name)
        found = self._object()
        return _only_iterate if name == self._loops else found

    def __getitem__(self, key: Any) -> Any:
        return self._object()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._object()[key] = value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._object())

    def __contains__(self, key: Any) -> bool:
        return key in self._object()


# ---- decorators of steps -----------------------------------------------------------------------------------------------------

step = _Step("step", "A method is a step. step(start=True) begins the flow, step(end=True) ends it, whatever their names are.")
resources = Decorator(
    "resources",
    """What a step needs: resources(cpu=1, gpu=0, memory=None, disk=None, shared_memory=None).

    Bare numbers of memory, disk and shared_memory are megabytes of 10**6 bytes; "32GB" and "30GiB" are taken, too.""",
)
retry = Decorator(
    "retry",
    """A failed step is tried again: retry(times=3, minutes_between_retries=2, backoff=1, jitter=0, max_minutes=None, only=(), unless=()).

    `only` and `unless` are exception classes or their names, or "oom", "timeout", "killed", "lost", "exit".""",
)
timeout = Decorator("timeout", "An attempt ends after timeout(seconds=0, minutes=0, hours=0), added up.")
catch = Decorator(
    "catch", "After the last attempt failed the flow goes on, with the error in an artifact: catch(var=None, print_exception=True)."
)
environment = Decorator(
    "environment", "Variables of the step's environment: environment(vars={}). None takes the value where the run is started."
)
secrets = Decorator(
    "secrets",
    """Secret variables, set just before the step and never stored: secrets(sources=[], role=None, allow_override=False).

    A source is "NAME", "env:NAME=TARGET", "file:PATH", "NAME=file:PATH", "kubernetes:NAME" in a cluster, or "TYPE:ID" of a secret manager.""",
)
kubernetes = Decorator("kubernetes", "How a step runs on Kubernetes. Without effect on local pods.")
pypi = Decorator("pypi", "Packages of a step: pypi(packages={}, python=None). Without effect on local pods.")
conda = Decorator("conda", "Packages of a step: conda(packages={}, python=None). Without effect on local pods.")
parallel = Decorator("parallel", "A step on several nodes at once: not supported, `check` says what to use.")
card = _Door(
    "card",
    """A card of each task: card(type="default", id=None, options={}, timeout=45, refresh_interval=5, save_errors=True, customize=False).

    Inside a task: card.append(…), card.refresh(), card["id"], … as `current.card`.""",
    loops="progress",
)
checkpoint = _Door(
    "checkpoint",
    """After a failure a step goes on from what it kept: checkpoint(load_policy="fresh").

    Inside a task: checkpoint.loop(…), checkpoint.save(…), … as `current.checkpoint`.""",
    loops="loop",
)

# ---- decorators of flows -----------------------------------------------------------------------------------------------------

project = Decorator(
    "project", "Flows that belong together, and their branches: project(name, branch=None, production=False).", of_class=True
)
exit_hook = Decorator("exit_hook", "Functions that are called when a run ended: exit_hook(on_success=[], on_error=[]).", of_class=True)
pypi_base = Decorator(
    "pypi_base", "Packages of all steps: pypi_base(packages={}, python=None). Without effect on local pods.", of_class=True
)
conda_base = Decorator(
    "conda_base", "Packages of all steps: conda_base(packages={}, python=None). Without effect on local pods.", of_class=True
)
schedule = Decorator(
    "schedule",
    """When a deployed flow starts by itself: schedule(hourly, daily, weekly, cron=None, timezone=None); alone it is daily.

    `cron` has the five fields of Unix, in UTC unless `timezone` names an IANA zone.""",
    of_class=True,
)
trigger = Decorator(
    "trigger",
    """A deployed flow starts when an event comes: trigger(event="NAME") or trigger(events=["A", "B"]), when all have come.

    An event may be {"name": NAME, "parameters": {PARAMETER: FIELD}}. Several @trigger: each of them starts the flow.""",
    of_class=True,
)
trigger_on_finish = Decorator(
    "trigger_on_finish",
    """A deployed flow starts when another has succeeded: trigger_on_finish(flow="NAME") or flows=["A", "B"], when all have.""",
    of_class=True,
)


# ---- decorators of one's own ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrapper:
    """A decorator of the user's own, on one step."""

    name: str
    function: Callable[..., Iterator[Any]]
    attributes: Mapping[str, Any]

    def around(self, step_name: str, flow: FlowSpec, inputs: Any = None) -> contextlib.AbstractContextManager[Any]:
        """What stands before `yield` on entering, what stands after it on leaving. An exception of the step is raised at the `yield`."""
        given = (step_name, flow, inputs, dict(self.attributes))
        return contextlib.contextmanager(self.function)(*given[: self.function.__code__.co_argcount])


def user_step_decorator(function: Callable[..., Iterator[Any]]) -> Decorator:
    """Make a decorator of a generator function: what stands before its one `yield` runs before the step, the rest afterwards.

    It is called with step_name, flow (the step's `self`), inputs (of a join, else None) and attributes (what the decorator was given),
    or the first two or three of them. An exception of the step is raised at the `yield`: let it pass, replace or swallow it.

        @user_step_decorator
        def timed(step_name, flow, inputs=None, attributes=None):
            began = time.perf_counter()
            yield
            print(f"{step_name} took {time.perf_counter() - began:.1f} s")

    Raises DefinitionError for anything else.
    """
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", "it")
    if code is None or not code.co_flags & _GENERATOR or not 2 <= code.co_argcount <= 4 or code.co_kwonlyargcount:
        remedy = f"write def {name}(step_name, flow, inputs=None, attributes=None): with one yield in it"
        raise DefinitionError(Finding(f"@user_step_decorator {name}", "not a generator function of two to four arguments", remedy))
    return _OwnDecorator(function)


class _OwnDecorator(Decorator):
    def __init__(self, function: Callable[..., Iterator[Any]]) -> None:
        super().__init__(function.__name__, function.__doc__ or "", function=function)

    def __reduce__(self) -> Any:
        return user_step_decorator, (self._function,)


def wrappers_of(function: Any) -> list[Wrapper]:
    """The decorators of the user's own on a step, the outermost first."""
    return [Wrapper(mark.name, mark.function, mark.arguments) for mark in marks_of(function) if mark.function is not None]


# ---- reading ---------------------------------------------------------------------------------------------------------------------


def options_of(function: Any, label: str, with_marks: Sequence[Mark] = (), cls: type | None = None) -> Options:
    """What the decorators of a step say. `with_marks`, those of --with, count where the step has no decorator of that name.

    `cls` is the flow whose configs the arguments may name.

    Raises DefinitionError, each finding placed at `label`, with all that is wrong.
    """
    from flowbook.spec import arguments

    return arguments.options_of(marks_of(function), label, with_marks, cls)


def parse_with(text: str) -> Mark:
    """The decorator of ``--with retry:times=3,minutes_between_retries=0.1``. Raises DefinitionError."""
    from flowbook.spec import arguments

    return arguments.parse_with(text)


def class_findings(cls: type, required: Iterable[str] = (), parameters: Iterable[str] | None = None) -> list[Finding]:
    """All that is wrong with the decorators of a flow's class.

    `required`: the parameters that have no default; `parameters`: all of them, None where they are not known.
    """
    from flowbook.spec import arguments

    return arguments.class_findings(cls, required, parameters)


def notes_of(options: Options, clustered: bool = False) -> list[str]:
    """What a step's decorators ask for that local pods do not heed."""
    from flowbook.spec import arguments

    return arguments.notes_of(options, clustered)


def project_of(cls: type) -> Project | None:
    """What @project says; None without one, or when it is written wrongly."""
    from flowbook.spec import arguments

    return arguments.project_of(cls)


def exit_hooks_of(cls: type) -> list[ExitHook]:
    """What @exit_hook says, the first written first; what is written wrongly is left out."""
    from flowbook.spec import arguments

    return arguments.exit_hooks_of(cls)
