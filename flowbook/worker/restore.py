"""Bringing objects back to a saved state in place, so that everything that holds them sees it.

An object with `state_dict` and `load_state_dict` is saved and loaded by these; of others the saved copy's content is moved into the
object that is there. What cannot be changed (a number, a string) or hides its state in C code cannot be brought back in place.

The same holds for what is inside: an inner object which was there when the loop began and still was when it was saved (`unchanged`)
has its twin in the process that goes on, at the same path, and is brought back in that; an object that the loop has made is new
there, too. References among all of these are those that were saved.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import sys
import types
import weakref
from typing import Any

_CONTAINERS = (dict, list, set, bytearray, collections.deque)
_UNCHANGING = (int, float, complex, str, bytes, tuple, frozenset, range, slice, type)
_ATOMS = frozenset((int, float, complex, str, bytes, bool, type(None)))  # nothing is inside of them
_KEYS = (str, int, bytes, tuple)  # what may stand in a path
_BY_NAME = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_PLAIN_BYTES = object.__basicsize__ + 16  # with room for __dict__ and weak references: no more state than these


def has_state_dict(value: Any) -> bool:
    """Whether the object is saved by `state_dict`, as modules and optimizers of torch are."""
    kind = type(value)
    return callable(getattr(kind, "state_dict", None)) and callable(getattr(kind, "load_state_dict", None))


def never_changes(value: Any) -> bool:
    """Whether the value is of a kind that can only be replaced: whoever was handed it will not see that."""
    return isinstance(value, _UNCHANGING)


def in_place(value: Any) -> bool:
    """Whether a saved state of this object can be put back into it."""
    return has_state_dict(value) or isinstance(value, (*_CONTAINERS, *_generators())) or is_array(value) or _is_plain(value)


def is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, "ndarray", ()))


def is_generator(value: Any) -> bool:
    """Whether it makes random numbers, and is of a known kind."""
    return isinstance(value, _generators())


def _generators() -> tuple[type, ...]:
    """The kinds of random number generators that are known here."""
    numbers = sys.modules.get("numpy.random")
    plain = sys.modules.get("random")
    return (*((numbers.Generator, numbers.RandomState) if numbers is not None else ()), *((plain.Random,) if plain is not None else ()))


def _is_plain(value: Any) -> bool:
    """Whether all the state of an instance is in its `__dict__`."""
    kind = type(value)
    plain = kind.__basicsize__ <= _PLAIN_BYTES and not kind.__itemsize__ and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
    return plain and isinstance(getattr(value, "__dict__", None), dict)


Path = tuple[tuple[str, Any], ...]  # ("name", n), then ("key", k), ("place", i), ("attribute", a)
INSIDE = 10_000  # objects looked at; what lies beyond is made anew


def inside(values: dict[str, Any]) -> dict[Path, Any]:
    """The objects that the named ones lead to and that can be brought back in place, each under the first path to it.

    What only a `state_dict` leads to is that object's own affair.
    """
    found: dict[Path, Any] = {}
    tops = {name: value for name, value in values.items() if not has_state_dict(value)}
    queue: collections.deque[tuple[Path, Any]] = collections.deque(((("name", name),), value) for name, value in tops.items())
    seen: set[int] = set()
    while queue and len(seen) < INSIDE:
        path, value = queue.popleft()
        if id(value) in seen or (never_changes(value) and not isinstance(value, tuple)) or isinstance(value, _BY_NAME):
            continue
        seen.add(id(value))
        if in_place(value):
            found[path] = value
        if not has_state_dict(value):
            queue.extend(((*path, step), part) for step, part in _parts(value))
    return found


def _parts(value: Any) -> list[tuple[tuple[str, Any], Any]]:
    found: list[tuple[tuple[str, Any], Any]] = []
    if isinstance(value, dict):
        found += [(("key", key), part) for key, part in value.items() if type(part) not in _ATOMS and isinstance(key, _KEYS)]
    elif isinstance(value, (list, tuple, collections.deque)):
        found += [(("place", place), part) for place, part in enumerate(value) if type(part) not in _ATOMS]
    if isinstance(getattr(value, "__dict__", None), dict) and _is_pickled_by_attributes(type(value)):
        found += [(("attribute", name), part) for name, part in vars(value).items()]
    return found


def _is_pickled_by_attributes(kind: type) -> bool:
    """Whether what an instance's attributes hold is what its pickle holds; others keep there what they do not save."""
    own = any(getattr(kind, name, None) is not getattr(object, name, None) for name in ("__reduce_ex__", "__reduce__", "__getstate__"))
    return not own and kind not in copyreg.dispatch_table


def at(values: dict[str, Any], path: Path) -> Any:
    """What stands at a path; None if it leads nowhere."""
    found: Any = values
    try:
        for kind, step in path:
            found = vars(found)[step] if kind == "attribute" else found[step]
    except (LookupError, TypeError):
        return None
    return found


def held(found: dict[Path, Any]) -> dict[Path, Any]:
    """The same to be compared with later, without keeping large objects alive: functions that give the objects."""
    kept: dict[Path, Any] = {}
    for path, value in found.items():
        try:
            kept[path] = weakref.ref(value)
        except TypeError:  # lists and dicts have no weak references
            kept[path] = lambda value=value: value
    return kept


def unchanged(before: dict[Path, Any], values: dict[str, Any]) -> list[tuple[Path, Any]]:
    """Those inner objects that are still the ones which `held` found at their path."""
    return [(path, value) for path, value in inside(values).items() if path in before and before[path]() is value]


def bring_back(values: dict[str, Any], saved: dict[str, Any], same: list[tuple[Path, Any]]) -> list[str]:
    """Bring the named objects back: `saved` are their saved forms, `same` what `unchanged` gave. Gives the names with which it failed."""
    plain = {name: value for name, value in values.items() if value is not None and not has_state_dict(value)}
    twins = {id(saved[name]): (saved[name], value) for name, value in plain.items() if saved[name] is not None}
    for path, copy in same:
        twin = at(values, path)
        if id(copy) not in twins and _fits(twin, copy):
            twins[id(copy)] = copy, twin
    _relink([saved[name] for name in plain], twins)
    failed = [name for name, value in values.items() if value is not None and not put_back(value, saved[name])]
    tops = {id(form) for form in saved.values()}
    named = {id(value) for value in values.values()}
    for copy, twin in twins.values():
        if id(copy) not in tops and id(twin) not in named and not failed:
            put_back(twin, saved_form(copy))
    return failed


def _fits(value: Any, saved: Any) -> bool:
    """Whether `put_back` would succeed."""
    if type(value) is not type(saved) or not in_place(value):
        return False
    if is_array(value):
        return bool(value.dtype == saved.dtype and value.shape == saved.shape and value.flags.writeable)
    return not isinstance(value, collections.deque) or value.maxlen == saved.maxlen


def _relink(roots: list[Any], twins: dict[int, tuple[Any, Any]]) -> None:
    """Let everything that the saved copies lead to hold the objects that are there in place of their copies."""
    seen: set[int] = set()
    queue = list(roots)

    def swap(part: Any) -> Any:
        if id(part) in twins:
            queue.append(part)
            return twins[id(part)][1]
        if isinstance(part, tuple) and id(part) not in seen:
            swapped = [swap(each) for each in part]
            if any(new is not old for new, old in zip(swapped, part, strict=True)):
                return type(part)(*swapped) if hasattr(part, "_fields") else tuple(swapped)
        queue.append(part)
        return part

    while queue:
        value = queue.pop()
        if id(value) in seen or isinstance(value, type) or (never_changes(value) and not isinstance(value, tuple)):
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            for key, part in list(value.items()):
                if (new := swap(part)) is not part:
                    value[key] = new
        elif isinstance(value, (list, collections.deque)):
            for place, part in enumerate(list(value)):
                value[place] = swap(part)
        elif isinstance(value, set):
            parts = [swap(part) for part in value]
            value.clear()
            value.update(parts)
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                with contextlib.suppress(ValueError):  # an empty one
                    cell.cell_contents = swap(cell.cell_contents)
        if isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, (types.ModuleType, types.FunctionType)):
            vars(value).update({name: swap(part) for name, part in vars(value).items()})


def saved_form(value: Any) -> Any:
    """What is saved of an object: its state_dict, or itself."""
    return value.state_dict() if has_state_dict(value) else value


def put_back(value: Any, saved: Any) -> bool:
    """Bring the object to the state `saved` (a `saved_form`); False if that cannot be done in place."""
    if value is saved:  # what is pickled by its name, such as a logger
        return True
    if has_state_dict(value):
        value.load_state_dict(saved)
        return True
    if type(value) is not type(saved):
        return False
    if is_array(value):
        return _put_back_array(value, saved)
    if isinstance(value, _generators()):
        _put_back_generator(value, saved)
        return True
    if not isinstance(value, _CONTAINERS) and not _is_plain(value):
        return False
    if isinstance(value, (dict, set)):
        value.clear()
        value.update(saved)
    elif isinstance(value, (list, bytearray)):
        value[:] = saved
    elif isinstance(value, collections.deque):
        if value.maxlen != saved.maxlen:
            return False
        value.clear()
        value.extend(saved)
    if isinstance(getattr(value, "__dict__", None), dict):
        vars(value).clear()
        vars(value).update(vars(saved))
    return True


def _put_back_generator(value: Any, saved: Any) -> None:
    if hasattr(value, "bit_generator"):
        value.bit_generator.state = saved.bit_generator.state
    elif hasattr(value, "set_state"):
        value.set_state(saved.get_state(legacy=False))
    else:
        value.setstate(saved.getstate())


def _put_back_array(value: Any, saved: Any) -> bool:
    if value.dtype != saved.dtype or not value.flags.writeable:
        return False
    if value.shape != saved.shape:
        if not value.flags.owndata or value.base is not None:
            return False
        value.resize(saved.shape, refcheck=False)
    value[...] = saved
    return True


def random_state() -> dict[str, Any]:
    """The state of the global random number generators of what is imported."""
    found: dict[str, Any] = {}
    if (plain := sys.modules.get("random")) is not None:
        found["random"] = plain.getstate()
    if (numbers := sys.modules.get("numpy.random")) is not None:
        found["numpy"] = numbers.get_state(legacy=False)
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the numbers as `random_state` found them. What was imported then and is not now will be, by its unpickled state."""
    if "random" in state:
        import random

        random.setstate(state["random"])
    if "numpy" in state:
        import importlib

        importlib.import_module("numpy.random").set_state(state["numpy"])
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in state:
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state_all(state["cuda"])
