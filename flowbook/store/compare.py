"""Whether two values are the same, whether a live value is still the stored one, and what mutable objects a value reaches.

`same` never raises and never guesses: what it cannot compare is different. numpy, pandas and torch are recognised only if
something has imported them already.
"""

from __future__ import annotations

import enum
import gc
import math
import re
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from flowbook.store import canon, codec
from flowbook.store.base import Buffer, Store

LIMIT_BYTES = 100_000_000  # larger values are taken for unchanged
_CHUNK = 1 << 18  # pieces that are compared at once: two fit a processor's cache
_MISSING = object()
_DIRECT = (str, bytes, bytearray, range, slice, type(None), type(Ellipsis), type(NotImplemented), bool, int)


# ---- same ------------------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Deep equality by value and type: ``1``, ``1.0`` and ``True`` differ, nan equals nan, cycles are followed once."""
    try:
        return _Comparison().same(a, b)
    except Exception:  # a user's method, too deep a structure, a container changed meanwhile: not known to be the same
        return False


class _Comparison:
    """One comparison. A pair that is met again while it is being compared is taken as the same (a cycle)."""

    def __init__(self) -> None:
        self._pairs: set[tuple[int, int]] = set()
        self._kept: list[Any] = []  # ids stay valid only while the objects live

    def same(self, a: Any, b: Any) -> bool:
        if a is b:
            return True
        if type(a) is not type(b):
            return False
        kind = type(a)
        if kind in _DIRECT:
            return bool(a == b)
        if kind is float:
            return bool((a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b))
        if kind is complex:
            return self.same(a.real, b.real) and self.same(a.imag, b.imag)
        pair = (id(a), id(b))
        if pair in self._pairs:
            return True
        self._pairs.add(pair)
        self._kept.append((a, b))
        return self._deep(a, b, kind)

    def all_same(self, a: Any, b: Any) -> bool:
        return len(a) == len(b) and all(self.same(x, y) for x, y in zip(a, b, strict=True))

    def _deep(self, a: Any, b: Any, kind: type) -> bool:
        if kind in (list, tuple):
            return self.all_same(a, b)
        if kind is dict:  # the order counts: a body that iterates sees it
            return self.all_same(list(a), list(b)) and self.all_same(list(a.values()), list(b.values()))
        if kind in (set, frozenset):
            return self._sets(a, b)
        if kind is types.FunctionType:
            return self._functions(a, b)
        if kind is types.CodeType:
            return self._codes(a, b)
        if kind is types.CellType:
            return self.same(_cell(a), _cell(b))
        if kind is types.MethodType:
            return self.same(a.__func__, b.__func__) and self.same(a.__self__, b.__self__)
        if isinstance(a, type):
            return self._classes(a, b)
        if kind is memoryview:
            return bool(a.format == b.format and a.shape == b.shape and a.tobytes() == b.tobytes())
        if hasattr(a, "cache_parameters") and hasattr(a, "__wrapped__"):
            return self.same(a.cache_parameters(), b.cache_parameters()) and self.same(a.__wrapped__, b.__wrapped__)
        library = self._library(a, b)
        return self._objects(a, b) if library is None else library

    def _sets(self, a: Any, b: Any) -> bool:
        if len(a) != len(b):
            return False
        there = {item: item for item in b}
        left = []
        for item in a:
            other = there.get(item, _MISSING)
            if other is not _MISSING and self.same(item, other):
                del there[item]
            else:
                left.append(item)
        if len(left) > 300:  # members compared by identity, each against each
            return False
        rest = list(there.values())
        for item in left:
            match = next((i for i, other in enumerate(rest) if _Comparison().same(item, other)), None)
            if match is None:
                return False
            del rest[match]
        return True

    def _functions(self, a: types.FunctionType, b: types.FunctionType) -> bool:
        names = ("__qualname__", "__module__", "__code__", "__defaults__", "__kwdefaults__", "__closure__", "__dict__")
        return all(self.same(getattr(a, name), getattr(b, name)) for name in names)

    def _codes(self, a: types.CodeType, b: types.CodeType) -> bool:
        names = ("co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_argcount", "co_kwonlyargcount", "co_posonlyargcount")
        return all(self.same(getattr(a, name), getattr(b, name)) for name in names)

    def _classes(self, a: type, b: type) -> bool:
        own = {"__dict__", "__weakref__", "__slotnames__", "__doc__", "__firstlineno__", "_abc_impl", "__static_attributes__"}
        if (a.__module__, a.__qualname__) != (b.__module__, b.__qualname__) or not self.all_same(a.__bases__, b.__bases__):
            return False
        parts = [{k: v for k, v in vars(c).items() if k not in own and not isinstance(v, types.MemberDescriptorType)} for c in (a, b)]
        return parts[0].keys() == parts[1].keys() and all(self.same(v, parts[1][k]) for k, v in parts[0].items())

    # ---- libraries, only if they are loaded ----

    def _library(self, a: Any, b: Any) -> bool | None:
        """Whether they are the same, as far as a known library tells; None for objects of no such library."""
        numpy, pandas, torch = (sys.modules.get(name) for name in ("numpy", "pandas", "torch"))
        if numpy is not None and hasattr(numpy, "ndarray"):
            if isinstance(a, numpy.ma.MaskedArray):
                return self._arrays(numpy, a.data, b.data) and self._arrays(numpy, numpy.ma.getmaskarray(a), numpy.ma.getmaskarray(b))
            if isinstance(a, (numpy.ndarray, numpy.generic)):
                return self._arrays(numpy, numpy.asarray(a), numpy.asarray(b)) and self._attributes(a, b)
        if pandas is not None and hasattr(pandas, "DataFrame"):
            if isinstance(a, (pandas.DataFrame, pandas.Series)):
                return self._tables(pandas, a, b)
            if isinstance(a, pandas.Index):
                return self._indexes(a, b)
        if torch is not None and hasattr(torch, "Tensor") and isinstance(a, torch.Tensor):
            nan = (a != a) & (b != b)
            return bool(a.dtype == b.dtype and a.shape == b.shape and a.requires_grad == b.requires_grad and ((a == b) | nan).all())
        return None

    def _arrays(self, numpy: Any, a: Any, b: Any) -> bool:
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.dtype.hasobject:
            return self.all_same(a.ravel().tolist(), b.ravel().tolist())
        if numpy.array_equal(a, b):
            return True
        if a.dtype.kind in "fcmM":
            return bool(numpy.array_equal(a, b, equal_nan=True))
        return a.dtype.kind == "V" and bool(a.tobytes() == b.tobytes())

    def _attributes(self, a: Any, b: Any) -> bool:
        return self.same(getattr(a, "__dict__", None), getattr(b, "__dict__", None))

    def _tables(self, pandas: Any, a: Any, b: Any) -> bool:
        if a.shape != b.shape or not self._indexes(a.index, b.index) or not self.same(dict(a.attrs), dict(b.attrs)):
            return False
        if isinstance(a, pandas.Series):
            return self.same(a.name, b.name) and self._columns(a, b)
        if not self._indexes(a.columns, b.columns) or list(a.dtypes) != list(b.dtypes):
            return False
        if not any(dtype.kind == "O" for dtype in a.dtypes):
            return bool(a.equals(b))
        return all(self._columns(a.iloc[:, i], b.iloc[:, i]) for i in range(a.shape[1]))

    def _columns(self, a: Any, b: Any) -> bool:
        if a.dtype != b.dtype:
            return False
        return self.all_same(a.tolist(), b.tolist()) if a.dtype == object else bool(a.equals(b))

    def _indexes(self, a: Any, b: Any) -> bool:
        if type(a) is not type(b) or list(a.names) != list(b.names) or a.dtype != b.dtype:
            return False
        return self.all_same(a.tolist(), b.tolist()) if a.dtype == object else bool(a.equals(b))

    # ---- everything else: by type and state ----

    def _objects(self, a: Any, b: Any) -> bool:
        if isinstance(a, enum.Enum | types.ModuleType | types.BuiltinFunctionType):
            return bool(a == b)
        try:
            states = [_reduced(value) for value in (a, b)]
        except Exception:
            return self._by_attributes(a, b)
        self._kept.append(states)
        x, y = states
        if isinstance(x, str) or isinstance(y, str):
            return False  # a global by name, and not the same object
        cached = canon.cached_names(type(a))
        if cached:
            x, y = (_without(state, cached) for state in (x, y))
            self._kept.append((x, y))
        return self.all_same(x, y)

    def _by_attributes(self, a: Any, b: Any) -> bool:
        attributes = [_attributes_of(value) for value in (a, b)]
        if not attributes[0] and not attributes[1]:
            return bool(a == b)
        return self.same(attributes[0], attributes[1])


def _reduced(value: Any) -> Any:
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return reduced
    function, args, *more = reduced
    state, listed, keyed = [*more, None, None, None][:3]
    return [function, args, state, None if listed is None else list(listed), None if keyed is None else list(keyed)]


def _without(reduced: list[Any], names: set[str]) -> list[Any]:
    state = reduced[2]
    if isinstance(state, dict):
        state = {name: part for name, part in state.items() if name not in names}
    return [*reduced[:2], state or None, *reduced[3:]]


def _attributes_of(value: Any) -> dict[str, Any]:
    slots = [name for base in type(value).__mro__ for name in _slots(base)]
    found = {name: getattr(value, name, None) for name in slots if name not in ("__dict__", "__weakref__")}
    return found | dict(getattr(value, "__dict__", {}))


def _slots(base: type) -> tuple[str, ...]:
    slots = base.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


# ---- unchanged -------------------------------------------------------------------------------------------------------


def unchanged(
    store: Store,
    entry: Mapping[str, Any],
    value: Any,
    *,
    main: codec.Main = None,
    keys: codec.Keys | None = None,
    resolve: codec.Resolve | None = None,
    limit: int = LIMIT_BYTES,
) -> bool:
    """Whether a live value is still what its entry says. A value larger than `limit` bytes is not looked at: True.

    First the value is pickled again and compared with the stored bytes where they lie; only if these differ, which equal values
    may do, is a fresh copy loaded and compared by `same`. A value that cannot be pickled any more has changed.
    """
    kind = entry.get("kind")
    if kind == "json":
        return same(entry["json"], value)
    if kind == "module":
        return isinstance(value, types.ModuleType) and value.__name__ == entry["module"]
    if entry.get("size", 0) > limit:
        return True
    try:
        stored = codec.stored(store, entry)
        stream, buffers = codec.parts_of(stored)
        live = codec.dump(value, main=main, root=True, keys=keys, store=store if entry.get("blobs") else None)
        if _equal_pieces(stream, live.stream) and _equal_buffers(buffers, live.buffers):
            return True
        return same(codec.load(store, entry, main=main, resolve=resolve), value)
    except Exception:
        return False


def _equal_buffers(stored: list[memoryview], live: list[memoryview]) -> bool:
    return len(stored) == len(live) and all(_equal_pieces(a, [b]) for a, b in zip(stored, live, strict=True))


def _equal_pieces(whole: memoryview, pieces: list[Any]) -> bool:
    """Whether the pieces, one after the other, are the whole; as bytes chunk by chunk, which compares at memory speed."""
    views = [memoryview(piece) for piece in pieces]
    if sum(view.nbytes for view in views) != whole.nbytes:
        return False
    at = 0
    for view in views:
        flat: Buffer = view.cast("B") if view.nbytes else b""
        for start in range(0, len(flat), _CHUNK):
            chunk = bytes(flat[start : start + _CHUNK])
            if bytes(whole[at : at + len(chunk)]) != chunk:
                return False
            at += len(chunk)
    return True


# ---- reach -----------------------------------------------------------------------------------------------------------

_ATOMIC: tuple[type, ...] = (str, bytes, int, float, complex, type(None), type(Ellipsis), range, slice, enum.Enum, re.Pattern)
_SKIPPED: tuple[type, ...] = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType, weakref.ref, property),
)
_IMMUTABLE = (tuple, frozenset, types.MappingProxyType, types.MethodType, types.CellType)


def reach(value: Any, limit: int = 10_000) -> set[int]:
    """ids of the mutable objects that the value leads to, itself included; at most `limit` objects are visited.

    Two values whose sets meet share an object: a change of one is seen in the other. Of arrays, the owner of the memory counts,
    so a slice meets its whole.
    """
    skipped = (*_ATOMIC, *_SKIPPED, *canon.constants())
    found: set[int] = set()
    seen = {id(value)}
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, skipped):
            continue
        if not isinstance(item, _IMMUTABLE):
            found.add(id(item))
        for part in _referents(item, limit):
            if id(part) not in seen and len(seen) < limit:
                seen.add(id(part))
                queue.append(part)
    return found


def _referents(item: Any, limit: int) -> list[Any]:
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "ndarray") and isinstance(item, numpy.ndarray):
        base = [item.base] if item.base is not None else []
        return [*base, *(item.ravel()[:limit].tolist() if item.dtype.hasobject else [])]
    if isinstance(item, memoryview):
        return [item.obj]
    read: Callable[..., list[Any]] = gc.get_referents
    return read(item)
