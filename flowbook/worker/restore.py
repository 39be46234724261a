"""Bringing an object back to a saved state in place, so that everything that holds the object sees it.

An object with `state_dict` and `load_state_dict` is saved and loaded by these; of others the saved copy's content is moved into the
object that is there. What cannot be changed (a number, a string) or hides its state in C code cannot be brought back in place.
"""

from __future__ import annotations

import collections
import copyreg
import sys
from typing import Any

_CONTAINERS = (dict, list, set, bytearray, collections.deque)
_UNCHANGING = (int, float, complex, str, bytes, tuple, frozenset, range, slice, type)
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


def saved_form(value: Any) -> Any:
    """What is saved of an object: its state_dict, or itself."""
    return value.state_dict() if has_state_dict(value) else value


def put_back(value: Any, saved: Any) -> bool:
    """Bring the object to the state `saved` (a `saved_form`); False if that cannot be done in place."""
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
