"""Decorators of the user's own in Metaflow's forms: classes that wrap a step, and mutators that change a flow before it is read.

A wrapper becomes a generator, as flowbook's own `user_step_decorator` takes it. Mutators are applied while the file is executed: those
of a class when it is decorated, those of a step when its class is made; configs are known by then. Metaflow does so only when its
command line starts, so a mutator must not ask what the command line says.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flowbook.errors import DefinitionError, Finding
from flowbook.spec import decorators, parameters
from flowbook.spec.classgraph import steps_of
from flowbook.spec.flowspec import MUTATORS, FlowSpec
from flowbook.spec.marks import MARKS, Mark, class_marks, leave, marks_of
from flowbook.spec.parameters import Parameter

user_step_decorator = decorators.user_step_decorator
USER_SKIP_STEP: dict[str, Any] = {}  # what a wrapper yields to skip the step

IGNORE, ERROR, OVERRIDE = 1, 2, 3
_SEVERAL = frozenset("card exit_hook secrets trigger trigger_on_finish schedule".split())  # decorators that may stand more than once


# ---- wrappers ---------------------------------------------------------------------------------------------------------------


class UserStepDecorator:
    """Derive from it and define `init` (of the decorator's arguments), `pre_step` and `post_step`; then `@MyDecorator(…)`."""

    skip_step: bool | dict[str, Any] = False

    def __new__(cls, *values: Any, **arguments: Any) -> Any:
        if len(values) == 1 and not arguments and isinstance(values[0], types.FunctionType):
            return _wrap(cls, values[0], {})
        if values:
            raise DefinitionError(Finding(f"@{cls.__name__}", "its arguments have no names", f"Write @{cls.__name__}(NAME=VALUE)."))
        return lambda function: _wrap(cls, function, arguments)

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments."""

    def pre_step(self, step_name: str, flow: FlowSpec, inputs: Any = None) -> Callable[..., Any] | None:
        """Before the step; a function is called in place of it, with the flow and, in a join, the inputs."""
        return None

    def post_step(self, step_name: str, flow: FlowSpec, exception: Exception | None = None) -> Any:
        """After it. What is given back is raised: the exception, another, or a tuple that begins with it; None swallows it."""
        return exception


def _wrap(cls: type, function: Any, arguments: Mapping[str, Any]) -> Any:
    leave(Mark(cls.__name__, dict(arguments), function=_generator(cls)), function)
    return function


def _generator(cls: type) -> Callable[..., Iterator[Any]]:
    def around(
        step_name: str, flow: FlowSpec, inputs: Any = None, attributes: Mapping[str, Any] = types.MappingProxyType({})
    ) -> Iterator[Any]:
        wrapper: UserStepDecorator = object.__new__(cls)
        wrapper.init(**{name: parameters.evaluate(value, type(flow)) for name, value in attributes.items()})
        instead: Any = wrapper.pre_step(step_name, flow, inputs)
        if wrapper.skip_step is not False:
            instead = {} if wrapper.skip_step is True else wrapper.skip_step
        try:
            yield instead
        except Exception as error:
            said = wrapper.post_step(step_name, flow, error)
            told = said[0] if isinstance(said, tuple) else said
            if told is error:
                raise
            if told is not None:
                raise told from error
        else:
            said = wrapper.post_step(step_name, flow)
            told = said[0] if isinstance(said, tuple) else said
            if isinstance(told, BaseException):
                raise told

    around.__name__ = cls.__name__
    return around


# ---- mutators ---------------------------------------------------------------------------------------------------------------


class _Mutator:
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any]

    @classmethod
    def _made(cls, args: Sequence[Any], kwargs: Mapping[str, Any], owner: type) -> Any:
        found = object.__new__(cls)
        found._args = tuple(parameters.evaluate(value, owner) for value in args)
        found._kwargs = {name: parameters.evaluate(value, owner) for name, value in kwargs.items()}
        found.init(*found._args, **found._kwargs)
        return found

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments."""

    def pre_mutate(self, target: Any) -> None:
        """First: parameters and decorators may be added and taken away."""

    def mutate(self, target: Any) -> None:
        """Then: decorators of steps may be added and taken away."""


class FlowMutator(_Mutator):
    """Derive from it and define `pre_mutate(self, mutable_flow)` and `mutate(self, mutable_flow)`; then `@MyMutator` above a flow."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], type) and issubclass(args[0], FlowSpec):
            return _mutate_flow(cls, args[0], (), {})
        return lambda flow: _mutate_flow(cls, flow, args, kwargs)


def _mutate_flow(cls: Any, flow: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> type:
    mutator = cls._made(args, kwargs, flow)
    mutator.pre_mutate(MutableFlow(flow))
    mutator.mutate(MutableFlow(flow))
    return flow


class StepMutator(_Mutator):
    """Derive from it and define `pre_mutate(self, mutable_step)` and `mutate(self, mutable_step)`; then `@MyMutator` above a step."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType):
            return _leave_mutator(cls, args[0], (), {})
        return lambda function: _leave_mutator(cls, function, args, kwargs)


def _leave_mutator(cls: Any, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    def apply(flow: type) -> None:
        mutator = cls._made(args, kwargs, flow)
        mutator.pre_mutate(MutableStep(flow, function))
        mutator.mutate(MutableStep(flow, function))

    setattr(function, MUTATORS, (*getattr(function, MUTATORS, ()), apply))
    return function


class _Mutable:
    """What a flow and a step have in common: decorators, as the marks that they left."""

    IGNORE, ERROR, OVERRIDE = IGNORE, ERROR, OVERRIDE
    _flow: Any

    def _marks(self) -> list[Mark]:
        raise NotImplementedError

    def _set_marks(self, marks: list[Mark]) -> None:
        raise NotImplementedError

    def _target(self) -> Any:
        raise NotImplementedError

    @property
    def decorator_specs(self) -> Iterator[tuple[str, str, list[Any], dict[str, Any]]]:
        """(name, full name, values, arguments) of each decorator."""
        return ((mark.name, f"flowbook.{mark.name}", list(mark.values), dict(mark.arguments)) for mark in self._marks())

    def has_decorator(self, name: str) -> bool:
        return any(mark.name == name.rpartition(".")[2] for mark in self._marks())

    def get_decorator_specs(self, name: str) -> list[tuple[str, str, list[Any], dict[str, Any]]]:
        return [spec for spec in self.decorator_specs if spec[0] == name.rpartition(".")[2]]

    def add_decorator(
        self, deco_type: Any, deco_args: Sequence[Any] | None = None, deco_kwargs: Mapping[str, Any] | None = None, duplicates: int = IGNORE
    ) -> Any:
        """A decorator, or its text (``retry:times=3``). Of one that stands there already, `duplicates` says which of the two counts."""
        arguments = {name: parameters.evaluate(value, self._flow) for name, value in (deco_kwargs or {}).items()}
        if isinstance(deco_type, str):
            mark = decorators.parse_with(deco_type) if ":" in deco_type else Mark(deco_type)
            deco_type = getattr(decorators, mark.name, None)
            if deco_type is None:
                raise DefinitionError(Finding("add_decorator", f"there is no decorator {mark.name!r}", "Give the decorator itself."))
            arguments = {**mark.arguments, **arguments}
        name = getattr(deco_type, "__name__", "")
        if name not in _SEVERAL and self.has_decorator(name):
            if duplicates == ERROR:
                raise DefinitionError(Finding("add_decorator", f"@{name} stands there already", "Remove it first."))
            if duplicates != OVERRIDE:
                return None
            self.remove_decorator(name)
        deco_type(*(deco_args or ()), **arguments)(self._target()) if deco_args or arguments else deco_type(self._target())
        return deco_type

    def remove_decorator(
        self, deco_name: str, deco_args: Sequence[Any] | None = None, deco_kwargs: Mapping[str, Any] | None = None
    ) -> bool:
        """Take a decorator away; with arguments only one that has just these. Whether there was one."""
        name = deco_name.rpartition(".")[2]

        def is_meant(mark: Mark) -> bool:
            exact = deco_args is not None or deco_kwargs is not None
            same = list(mark.values) == list(deco_args or ()) and dict(mark.arguments) == dict(deco_kwargs or {})
            return mark.name == name and (same or not exact)

        before = self._marks()
        self._set_marks([mark for mark in before if not is_meant(mark)])
        return len(self._marks()) < len(before)


class MutableFlow(_Mutable):
    """A flow as a mutator sees it. Its configs, parameters and steps are attributes, too."""

    def __init__(self, flow: type) -> None:
        self._flow = flow

    def _marks(self) -> list[Mark]:
        return class_marks(self._flow)

    def _set_marks(self, marks: list[Mark]) -> None:
        setattr(self._flow, MARKS, marks)

    def _target(self) -> Any:
        return self._flow

    @property
    def configs(self) -> Iterator[tuple[str, Any]]:
        return ((name, config.value) for name, config in parameters.configs_of(self._flow).items())

    @property
    def parameters(self) -> Iterator[tuple[str, Any]]:
        configs = parameters.configs_of(self._flow)
        return ((name, each) for name, each in parameters.parameters_of(self._flow).items() if name not in configs)

    @property
    def steps(self) -> Iterator[tuple[str, MutableStep]]:
        return ((function.__name__, MutableStep(self._flow, function)) for function in steps_of(self._flow))

    def add_parameter(self, name: str, value: Parameter, overwrite: bool = False) -> None:
        if hasattr(self._flow, name) and not overwrite:
            raise DefinitionError(Finding("add_parameter", f"the flow has {name!r} already", "Say overwrite=True to replace it."))
        setattr(self._flow, name, value)
        value.__set_name__(self._flow, name)

    def remove_parameter(self, parameter_name: str) -> bool:
        """Whether there was one of that name."""
        for attribute, parameter in self.parameters:
            if parameter.name == parameter_name:
                delattr(self._flow, attribute)
                return True
        return False

    def __getattr__(self, name: str) -> Any:
        for known in (self.steps, self.configs, self.parameters):
            for attribute, value in known:
                if attribute == name:
                    return value
        raise AttributeError(f"{self._flow.__name__} has no step, config or parameter {name!r}")


class MutableStep(_Mutable):
    """A step as a mutator sees it; `flow` is that around it."""

    def __init__(self, flow: type, function: Any) -> None:
        self._flow, self._function = flow, function

    @property
    def flow(self) -> MutableFlow:
        return MutableFlow(self._flow)

    def _marks(self) -> list[Mark]:
        return list(marks_of(self._function))

    def _set_marks(self, marks: list[Mark]) -> None:
        setattr(self._function, MARKS, marks)

    def _target(self) -> Any:
        return self._function
