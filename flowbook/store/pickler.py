"""How flowbook pickles: cloudpickle, with the notebook's own definitions by name. Imported only when a value is encoded.

Three rules differ from cloudpickle's:
- A function or class which the notebook's main namespace holds under its qualified name goes as a reference to that name, so an
  instance stays an instance of the present class. The root of a dump (a captured definition) goes by value.
- A function of main that goes by value goes without its globals: in the loading process it lives in main there, and sees later
  rebinding as in a plain notebook. Which names it needs is told in `globals`.
- What cloudpickle would silently turn into something else (an open file into its text, a memoryview into bytes) does not.
"""

from __future__ import annotations

import builtins
import dis
import functools
import io
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _code_reduce, _dynamic_class_reduce, _function_getstate

from flowbook.store import codec

_NOT_MODULES = {"builtins", "__main__", "cloudpickle", "copyreg", "flowbook"}
_LRU = type(functools.lru_cache(lambda: None))
_LOADS = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}


class Pieces:
    """A file to pickle into that keeps the pieces as they come; a large bytes object is one of them, not copied."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write(self, piece: Any) -> int:
        self.parts.append(piece)
        return len(piece)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """One dump. `refs`, `globals`, `modules` and `blobs` tell what the pickle relies on."""

    def __init__(
        self,
        pieces: Pieces,
        buffer_callback: Callable[[Any], Any],
        *,
        main: dict[str, Any] | None,
        root: Any,
        keys: Callable[[str], str | None] | None,
        store: Any,
    ) -> None:
        super().__init__(pieces, protocol=5, buffer_callback=buffer_callback)
        self.main, self.keys, self.store = main, keys, store
        self.root = root if is_definition(root) else None
        self.root_inside = f"{getattr(root, '__qualname__', '')}."
        self.refs: dict[str, str | None] = {}
        self.globals: set[str] = set()
        self.modules: set[str] = set()
        self.blobs: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if isinstance(obj, (type, types.FunctionType, _LRU)):
            return self._definition(obj)
        if kind is types.CodeType:
            return _code(obj)
        if kind is types.ModuleType:
            self._note_module(obj.__name__)
        elif isinstance(obj, io.IOBase):
            return self._file(obj)
        elif kind is memoryview:
            return codec._rebuild_view, (obj.tobytes() if obj.readonly else bytearray(obj.tobytes()), obj.format, obj.shape)
        elif kind is functools.cached_property:
            # Before Python 3.12 it holds a lock, and a class that has one could not be pickled.
            return functools.cached_property, (obj.func,), {"attrname": obj.attrname, "__doc__": obj.__doc__}
        elif self.store is not None and (save := getattr(kind, "__flowbook_save__", None)) is not None:
            reduced, blobs = save(obj, self.store)
            self.blobs |= blobs
            return reduced
        self._note_module(getattr(obj, "__module__", None) if kind is types.BuiltinFunctionType else kind.__module__)
        return NotImplemented

    def _definition(self, obj: Any) -> Any:
        qualname = self._name_in_main(obj)
        if qualname is not None:
            if qualname not in self.refs:
                self.refs[qualname] = self.keys(qualname) if self.keys else None
            return codec._main_ref, (qualname, self.refs[qualname])
        if isinstance(obj, _LRU):
            if not self._importable(obj):
                return codec._rebuild_lru, (obj.__wrapped__, obj.cache_parameters())
            self._note_module(obj.__module__)
            return NotImplemented
        if self.main is not None and self._of_main(obj):
            return _dynamic_class_reduce(obj) if isinstance(obj, type) else self._dynamic_function_reduce(obj)
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented:
            self._note_module(obj.__module__)
        return reduced

    def _name_in_main(self, obj: Any) -> str | None:
        """The qualified name under which main holds this very object, unless it is (a part of) what is dumped by value."""
        qualname = getattr(obj, "__qualname__", None)
        if self.main is None or not isinstance(qualname, str) or "<" in qualname or not self._of_main(obj):
            return None
        if self.root is not None and (obj is self.root or qualname.startswith(self.root_inside)):
            return None
        return qualname if codec.look_up(self.main, qualname) is obj else None

    def _of_main(self, obj: Any) -> bool:
        """Whether main defined it: `from numpy import mean` in a cell does not make it main's."""
        assert self.main is not None
        return getattr(obj, "__globals__", None) is self.main or getattr(obj, "__module__", None) == self.main.get("__name__", "__main__")

    def _importable(self, obj: Any) -> bool:
        module = sys.modules.get(obj.__module__) if obj.__module__ != "__main__" else None
        return module is not None and vars(module) is not self.main and codec.look_up(vars(module), obj.__qualname__) is obj

    def _file(self, obj: Any) -> Any:
        if isinstance(obj, (io.BytesIO, io.StringIO)):
            return NotImplemented
        if obj is sys.stdout or obj is sys.stderr:
            return getattr, (sys, "stdout" if obj is sys.stdout else "stderr")
        raise TypeError(f"cannot pickle an open file ({getattr(obj, 'name', type(obj).__name__)!r})")

    def _note_module(self, name: Any) -> None:
        root = name.partition(".")[0] if isinstance(name, str) else "builtins"
        if root not in _NOT_MODULES:
            self.modules.add(root)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        if self.main is None or func.__globals__ is not self.main:
            self._note_module(func.__globals__.get("__name__"))
            return super()._dynamic_function_reduce(func)
        self.globals |= global_names(func.__code__, self.main)
        state, slots = _function_getstate(func)
        del slots["__globals__"]
        # The cells are empty first, so that a function which is in its own closure finds itself in the pickle's memo.
        cells = None if func.__closure__ is None else len(func.__closure__)
        return codec._main_function, (func.__code__, cells), (state, slots), None, None, codec._set_function_state


def _code(code: types.CodeType) -> Any:
    """As cloudpickle has it, but with the name of the file, by which a traceback finds its cell: cloudpickle 3.1.3 takes that away."""
    make, parts = _code_reduce(code)
    return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


def is_definition(value: Any) -> bool:
    """A function or a class: what a cell defines rather than computes."""
    return isinstance(value, (type, types.FunctionType, _LRU))


def global_names(code: types.CodeType, main: dict[str, Any]) -> set[str]:
    """Names of main which the code, or code inside it, loads or stores; builtins only if main has a name like that.

    In a class body a name may be the body's own; it counts if it is loaded before it is stored there.
    """
    found: set[str] = set()
    own: set[str] = set()
    for step in dis.get_instructions(code):
        if step.opname in _LOADS or (step.opname == "LOAD_NAME" and step.argval not in own):
            found.add(step.argval)
        elif step.opname == "STORE_NAME":
            own.add(step.argval)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            found |= global_names(const, main)
    return {name for name in found if not name.startswith("__") and (name in main or not hasattr(builtins, name))}
