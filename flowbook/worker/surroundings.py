"""What a rewritten loop lives in: the locals of its function, `self`, and the globals that its code uses; saved and brought back whole.

All of it goes into one pickle, the loop's iterator with it, so that what was one object stays one object. Globals count as far as
the loop's function, and the user's functions that it names in turn, can reach them by name.

What cannot be pickled, and functions that share variables with the loop's function, are not saved:
- what the code before the loop made, and the loop leaves alone, is kept as that code makes it again; that is said once;
- what every item makes anew before it reads it is left out;
- anything else would be lost in silence, so the save is refused.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flowbook.errors import ArtifactError, NotPicklable
from flowbook.spec.flowspec import FlowSpec
from flowbook.store import codec, compare
from flowbook.worker.loops import ENTRY, Site

Key = tuple[str, str, str]  # "local" | "cell" | "self" | "global", module, name
Values = dict[Key, Any]

REACH = 10_000  # objects looked at in search of what two values share
_OWN_ATTRIBUTES = ("_task", "name")
_DEFINITIONS = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
_OURS = ("flowbook", "builtins")


class CheckpointError(ArtifactError):
    """A checkpoint cannot be made, or cannot be gone on with; the message says what to write instead."""


class Surroundings:
    """Those of one loop that runs. `frame` is that of the loop; it is not kept."""

    def __init__(self, site: Site, frame: types.FrameType, main: dict[str, Any], flow: FlowSpec | None = None) -> None:
        self.site, self._main = site, main
        self.call = "save_checkpoint()"  # what the user has written
        self.apart: set[int] = set()  # ids of objects that are no part of it: the loop itself, what it iterates over
        self.in_cell = frame.f_locals is frame.f_globals or frame.f_code.co_name == "<module>"
        self.flow = self._flow(frame) or flow
        self._inner = {code for code in _codes(frame.f_code) if code.co_freevars and (code.co_name == "<lambda>" or code.co_name[0] != "<")}
        self._elsewhere = set(frame.f_code.co_cellvars)  # names that other functions than the loop's may use
        self._own_module = _module(frame.f_globals)
        self._globals = set(self._walk(frame.f_code, frame.f_globals))
        self._spaces = {_module(space): space for space in self._used}
        self.kept: Values = {}  # what is made again and not saved
        self.note = ""
        self._start: Values = {}
        self._checked = False

    def _flow(self, frame: types.FrameType) -> FlowSpec | None:
        found = frame.f_locals.get(self.site.first) if self.site.first else None
        return found if isinstance(found, FlowSpec) else None

    # ---- what there is ---------------------------------------------------------------------------------------------------

    def values(self, frame: types.FrameType) -> Values:
        """Everything that counts, as it is now."""
        found: Values = {}
        if not self.in_cell:
            for name, value in frame.f_locals.items():
                if value is not self.flow and name != ENTRY and not name.startswith(("__flowbook_", ".")) and name != "__class__":
                    found["cell" if name in self.site.cells else "local", "", name] = value
        if self.flow is not None:
            for name, value in vars(self.flow).items():
                if name not in _OWN_ATTRIBUTES:
                    found["self", "", name] = value
        for module, name in sorted(self._globals):
            space = self._spaces[module]
            if name in space and self._counts(space[name]):
                found["global", module, name] = space[name]
        return found

    def _counts(self, value: Any) -> bool:
        return not isinstance(value, _DEFINITIONS) and not type(value).__module__.startswith(_OURS[0])

    def _walk(self, code: types.CodeType, space: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """(module, name) of the globals that the code names, and that the user's functions and classes named there name."""
        self._used: list[dict[str, Any]] = []
        queue: list[tuple[types.CodeType, dict[str, Any]]] = [(code, space)]
        seen: set[types.CodeType] = set()
        while queue:
            code, space = queue.pop()
            if code in seen:
                continue
            seen.add(code)
            if not any(known is space for known in self._used):
                self._used.append(space)
            queue += [(inner, space) for inner in _codes(code)]
            for name in code.co_names:
                if name in space and not name.startswith("__"):
                    yield _module(space), name
                    if len(seen) > 1:
                        self._elsewhere.add(name)
                    queue += _code_of(space[name])
                elif self.flow is not None:
                    queue += _code_of(getattr(type(self.flow), name, None))

    # ---- what is saved ---------------------------------------------------------------------------------------------------

    def probe(self, frame: types.FrameType) -> None:
        """At the loop's start: what cannot be saved now was made by the code before the loop, and is kept as long as it stays."""
        values = self.values(frame)
        unsaved = self._unpicklable(values) if not self._dumps(values) else []
        if self._inner:
            unsaved += [key for key, value in values.items() if self._shares(value) or self._holds_shared(value)]
        self.kept = {key: values[key] for key in unsaved if not self.is_dead(key)}
        self._start = values if self.in_cell else {}

    def same(self, values: Values) -> set[Key]:
        """Those names of a cell's main that still hold what they held when the loop began, be it changed in itself."""
        return {key for key, value in values.items() if key in self._start and self._start[key] is value}

    def saved(self, frame: types.FrameType) -> Values:
        """The values to save, as far as can be told without pickling. Raises CheckpointError for what would be lost."""
        values = self.values(frame)
        for key in self.kept:
            if key in values and values[key] is self.kept[key]:
                del values[key]
        if self._inner:
            self._drop([key for key, value in values.items() if self._shares(value) or self._holds_shared(value)], values)
        if not self._checked:
            self._check_kept(values)
            self._checked = True
        return values

    def without_unpicklable(self, values: Values) -> Values:
        """The values without those that cannot be pickled and need not be kept. Raises CheckpointError if one must be."""
        left = dict(values)
        self._drop(self._unpicklable(values), left)
        return left

    def _drop(self, keys: Iterable[Key], values: Values) -> None:
        for key in keys:
            if not self.is_dead(key):
                raise self._refusal(key, values[key])
            del values[key]

    def is_dead(self, key: Key) -> bool:
        """Whether every item binds the name before it reads it."""
        return (key[0] == "local" or (self.in_cell and key[:2] == ("global", "__main__"))) and key[2] in self.site.dead

    def _dumps(self, values: Values) -> bool:
        if len(values) == 0:
            return True
        try:
            codec.dump(values, main=self._main)
        except NotPicklable:
            return False
        return True

    def _unpicklable(self, values: Values) -> list[Key]:
        return [key for key, value in values.items() if not self._dumps({key: value})]

    def _shares(self, value: Any) -> bool:
        """Whether it is a function of the loop's function, with variables in common: a copy would have its own."""
        return isinstance(value, types.FunctionType) and value.__code__ in self._inner and bool(value.__closure__)

    def _holds_shared(self, value: Any) -> bool:
        seen, queue = {id(value)}, [value]
        while queue and len(seen) < REACH:
            item = queue.pop()
            if self._shares(item):
                return True
            if item is self.flow or isinstance(item, _DEFINITIONS):
                continue
            for part in gc.get_referents(item):
                if id(part) not in seen:
                    seen.add(id(part))
                    queue.append(part)
        return False

    def _refusal(self, key: Key, value: Any) -> CheckpointError:
        name = shown(key)
        why = "is a function that shares variables with the step" if self._shares(value) else self._why(key, value)
        return CheckpointError(
            f"{self.call} in {self.site.label}: `{name}` {why}, and the loop changes it, so that a retry could not go on with it. "
            f"Make `{name}` anew in each item before it is read, or say what to keep: "
            f"`for … in checkpoint.loop(…, model=model)`, or save_checkpoint(state=…) and load_checkpoint()."
        )

    def _why(self, key: Key, value: Any) -> str:
        try:
            codec.dump(value, name=shown(key), main=self._main)
        except NotPicklable as error:
            return f"cannot be pickled ({error.cause})" if error.path == shown(key) else f"cannot be pickled ({error})"
        return "holds a function that shares variables with the step"

    def _check_kept(self, values: Values) -> None:
        """Refuse what is kept and yet changes with the loop: a generator that it draws from, a holder of what is saved."""
        told = []
        loggers = _loggers()
        for key, value in self.kept.items():
            if self._shares(value) or id(value) in self.apart:
                continue
            if hasattr(type(value), "__next__") and (key[0] == "self" or key[2] in self.site.mentioned | self._elsewhere):
                raise self._refusal(key, value)
            inside = compare.reach(value, REACH) - loggers
            if not inside & (self.apart | ({id(self.flow)} if self.flow is not None else set())):
                for other, saved in values.items():
                    if compare.reach(saved, REACH) & inside:
                        raise CheckpointError(
                            f"{self.call} in {self.site.label}: `{shown(key)}` cannot be pickled, and shares an object with "
                            f"`{shown(other)}`, which is saved; after a retry they would be two. Say what to keep instead: "
                            f"`for … in checkpoint.loop(…, {other[2]}={shown(other)})` brings it back in place."
                        )
            told.append(shown(key))
        if told:
            self.note = f"{self.site.label}: {', '.join(told)} cannot be saved; a retry has what the code before the loop makes of it"

    # ---- what is brought back --------------------------------------------------------------------------------------------

    def bring_back(self, values: Mapping[Key, Any], frame: types.FrameType, same_code: bool) -> tuple[dict[str, Any], set[str]]:
        """Bind all that stands outside the frame; gives the locals to bind, and those to delete.

        Without `same_code`, of a run that was resumed, nothing is deleted: a name that was not saved may be new in the text.
        """
        now = self.values(frame)
        return self.bind(values, {key for key in now if key not in values and key not in self.kept} if same_code else set())

    def bind(self, values: Mapping[Key, Any], gone: set[Key]) -> tuple[dict[str, Any], set[str]]:
        """The same, of names that are known to be gone."""
        for (kind, module, name), value in values.items():
            if kind == "self" and self.flow is not None:
                vars(self.flow)[name] = value
            elif kind == "global":
                self._spaces.setdefault(module, vars(sys.modules[module]) if module in sys.modules else {})[name] = value
            elif kind == "cell" and name in self.site.cells:
                self.site.cells[name].cell_contents = value
        for kind, module, name in gone:
            if kind == "self" and self.flow is not None:
                vars(self.flow).pop(name, None)
            elif kind == "global" and self.in_cell and module == self._own_module and name in self.site.assigned:
                self._spaces[module].pop(name, None)
        unset = {key[2] for key in gone if key[0] == "local" and not self.is_dead(key)}
        return {name: value for (kind, _, name), value in values.items() if kind == "local"}, unset


def shown(key: Key) -> str:
    kind, module, name = key
    return f"self.{name}" if kind == "self" else name if kind != "global" or module == "__main__" else f"{module}.{name}"


def _module(space: Mapping[str, Any]) -> str:
    return str(space.get("__name__", "__main__"))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield const
            yield from _codes(const)


def _code_of(value: Any) -> list[tuple[types.CodeType, dict[str, Any]]]:
    """The code of a function, or of the methods of a class or an instance, if it is the user's own."""
    if isinstance(value, (types.ModuleType, FlowSpec)):
        return []
    value = getattr(value, "__func__", value)
    value = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
    if isinstance(value, types.FunctionType):
        return [(value.__code__, value.__globals__)] if _is_users(value.__globals__) else []
    kind = value if isinstance(value, type) else type(value)
    space = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
    if not _is_users(space) or issubclass(kind, FlowSpec):
        return []
    return [(method.__code__, method.__globals__) for method in vars(kind).values() if isinstance(method, types.FunctionType)]


def _is_users(space: Mapping[str, Any]) -> bool:
    """Whether a module is neither installed nor a part of Python."""
    name, file = _module(space), space.get("__file__")
    if name == "__main__":
        return True
    return isinstance(file, str) and not name.startswith(_OURS) and not file.startswith(_roots())


@functools.cache
def _roots() -> tuple[str, ...]:
    """Where Python and what is installed stand."""
    import sysconfig

    return tuple({sys.prefix, sys.base_prefix, *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))})


def _loggers() -> set[int]:
    """Loggers are one object in a process, however they are pickled."""
    logging = sys.modules.get("logging")
    if logging is None:
        return set()
    manager = logging.Logger.manager
    return compare.reach([manager, logging.root], REACH)


__all__ = ["CheckpointError", "Key", "Surroundings", "Values", "shown"]
