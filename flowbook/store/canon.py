"""What a value is, as a short key: equal values have equal keys in every process, different values different ones.

Pickle bytes do not tell: they depend on the order of sets, on interned strings, on who shares a constant with whom. So a value
is walked here and hashed in a canonical form. Type and order of insertion count; -0.0 is not 0.0. Which *mutable* objects are
one and the same counts, too: a change of one would be seen in the other. An object counts by what `__reduce_ex__` tells of it,
a function or class by its name. What cannot be told has no key (None); neither has a value so large that the walk would be felt.

The form is a prefix code: each piece begins with its kind, and says its length or ends by itself. Atoms and flat containers of
atoms are written by `marshal`, version 2, which knows neither sharing nor interning.
"""

from __future__ import annotations

import base64
import copyreg
import enum
import functools
import hashlib
import marshal
import operator
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Keys = Callable[[str], "str | None"]

OBJECTS = 200_000  # more are not walked; a flat container counts less, see _FLAT
DEPTH = 150  # levels; deeper ones would meet Python's own limit, here or in another process
_FLAT = 16  # so many atoms of a flat container cost what one object does
_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes, type(Ellipsis)))
_CODE = (
    "co_name co_qualname co_flags co_argcount co_posonlyargcount co_kwonlyargcount co_code co_exceptiontable co_consts co_names "
    "co_varnames co_freevars co_cellvars"
).split()
_NOT_CODE = frozenset("__dict__ __weakref__ __slotnames__ __module__ __qualname__ __firstlineno__ __static_attributes__ _abc_impl".split())
_MUTABLES = (list, dict, set)
_FUNCTIONS = (type, types.FunctionType, types.BuiltinFunctionType)
_CONSTANTS = (range, slice, re.Pattern, types.MethodType, types.BuiltinFunctionType)
_PLAIN_DTYPES = "biufcSUmM"


class _NoForm(Exception):
    """The value has no canonical form, or it is too large."""


def content_key(
    value: Any, *, main: types.ModuleType | dict[str, Any] | None = None, keys: Keys | None = None, code: bool = False
) -> str | None:
    """22 characters that tell the value from every other one; None if there is no canonical form. Never raises.

    `main` is the notebook's namespace, by default this process's own. `keys(qualname)` tells what stands behind a name of it,
    `keys("module NAME")` what a module is, if that may change while its name stays; None: not known (a name of main then has
    no form). With `code`, a value that is itself a definition of main counts by its code, as do functions and classes inside it
    that no name leads to. What code uses by name is not looked at.
    """
    try:
        if type(value) in _ATOMS:  # what a walk would come to, at a tenth of its cost: a fan-out may have 100,000 items
            return _short(hashlib.sha256(marshal.dumps(value, 2)).digest())
        walk = _Walk(main if isinstance(main, dict) else vars(main or sys.modules["__main__"]), keys, code)
        if code and (isinstance(value, (type, types.FunctionType)) or hasattr(value, "cache_parameters")):
            walk.root = value
        walk.visit(value)
        return _short(walk.hash.digest())
    except Exception:  # a user's __reduce_ex__ may raise anything; a structure may be too deep, or change meanwhile
        return None


def entry_key(entry: Mapping[str, Any]) -> str:
    """The key of an artifact entry (docs/internals.md): of the value, where it is known, else of where its content is.

    Which names share an object with it counts, as it does inside a value.
    """
    found = _own_key(entry)
    tied = [entry.get("alias"), *entry.get("shares", ())]
    return short_hash(f"{found} {tied}") if any(tied) else found


def _own_key(entry: Mapping[str, Any]) -> str:
    if found := entry.get("key"):
        return str(found)
    if entry.get("kind") == "json" and (found := content_key(entry["json"])) is not None:
        return found
    if entry.get("kind") == "module":
        return _short(hashlib.sha256(_module(entry["module"])).digest())
    return short_hash(f"{entry.get('kind')} {entry.get('blob') or entry.get('inline')}")


def item_ids(keys: Iterable[str]) -> list[str]:
    """22 characters for each item of a fan-out, by its key. Equal items differ by how many of them stood before."""
    seen: Counter[str] = Counter()
    found = []
    for key in keys:
        found.append(short_hash(f"{key} {seen[key]}") if seen[key] else key)
        seen[key] += 1
    return found


def short_hash(text: str) -> str:
    """A key of a text, 22 characters."""
    return _short(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def by_address(value: Any) -> bool:
    """Whether the address of the saved bytes tells the value as well as a key would, so that nothing is hashed twice."""
    if type(value) in (bytes, bytearray):
        return True
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "ndarray") or type(value) is not numpy.ndarray:
        return False
    return value.dtype.kind in _PLAIN_DTYPES and bool(value.flags.c_contiguous or value.flags.f_contiguous)


def _short(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def constants() -> tuple[Any, ...]:
    """Types of the loaded modules whose objects never change, and are shared freely."""
    wanted = (
        ("datetime", ("date", "time", "timedelta", "tzinfo")),
        ("decimal", ("Decimal",)),
        ("fractions", ("Fraction",)),
        ("pathlib", ("PurePath",)),
        ("uuid", ("UUID",)),
        ("numpy", ("dtype", "generic")),
        ("pandas", ("Index", "Timestamp", "Timedelta")),
        ("pandas.api.extensions", ("ExtensionDtype",)),
    )
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in wanted
        if module in sys.modules
        for name in names
        if hasattr(sys.modules[module], name)
    )


def cached_names(kind: type) -> set[str]:
    """Names of cached properties: reading one fills it, and is no change."""
    return {n for base in kind.__mro__ for n, v in vars(base).items() if isinstance(v, functools.cached_property)}


def _token(kind: bytes, text: str | bytes | int = b"") -> bytes:
    """A piece of the form that marshal does not write: no type code of its begins with this byte."""
    content = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")
    return b"\xfe" + kind + b"%d:" % len(content) + content


def _module(name: str) -> bytes:
    return _token(b"M", name)


class _Walk:
    """One walk. The members of a set have no order, so each has a hash of its own; these are sorted.

    Mutable objects are numbered as they are first met. Numbers count within a `place`: the whole value, or one member of a set.
    An object that is met in two places has no number that would be the same in every process.
    """

    def __init__(self, main: dict[str, Any], keys: Keys | None, code: bool) -> None:
        self.hash = hashlib.sha256()
        self._update = self.hash.update
        self._main, self._keys = main, keys
        self._by_code = code
        self.root: Any = None  # counts by its code although it has a name
        self._left, self._depth = OBJECTS, 0
        self._place, self._places, self._number = 0, 0, 0
        self._met: dict[int, tuple[int, int]] = {}
        self._kept: list[Any] = []  # ids stay valid only while the objects live
        self._names: dict[int, bytes] = {}
        self._constants: tuple[Any, ...] = (*_CONSTANTS, *constants())
        self._numpy, self._pandas = (sys.modules.get(name) for name in ("numpy", "pandas"))
        if not hasattr(self._numpy, "ndarray"):
            self._numpy = None  # it is being imported
        if not hasattr(self._pandas, "DataFrame"):
            self._pandas = None

    def visit(self, value: Any) -> None:
        kind = type(value)
        self._spend(1)
        if kind in _ATOMS:
            self._update(marshal.dumps(value, 2))
            return
        self._depth += 1
        if self._depth > DEPTH:
            raise _NoForm
        if kind is tuple:
            self._listed(b"(", value)
        elif kind is frozenset:
            self._set(b"z", value)
        elif kind not in _MUTABLES:
            self._other(value, kind)
        elif not self._met_before(value):
            if kind is list:
                self._listed(b"[", value)
            elif kind is dict:
                self._keyed(value)
            else:
                self._set(b"s", value)
        self._depth -= 1

    def _spend(self, objects: int) -> None:
        self._left -= objects
        if self._left < 0:
            raise _NoForm

    def _flat(self, *parts: Iterable[Any]) -> bool:
        return all(_ATOMS.issuperset(map(type, part)) for part in parts)

    def _met_before(self, value: Any) -> bool:
        """Note a mutable object; one that was met already is written as its number."""
        place, number = self._met.setdefault(id(value), (self._place, self._number))
        if place != self._place:
            raise _NoForm
        if number == self._number:
            self._number += 1
            self._kept.append(value)
            return False
        self._update(_token(b"@", number))
        return True

    # ---- containers ----

    def _listed(self, kind: bytes, value: list[Any] | tuple[Any, ...]) -> None:
        if self._flat(value):
            self._spend(len(value) // _FLAT)
            self._update(marshal.dumps(value, 2))
            return
        self._update(_token(kind, len(value)))
        for part in value:
            self.visit(part)

    def _keyed(self, value: dict[Any, Any]) -> None:
        if self._flat(value, value.values()):
            self._spend(len(value) // _FLAT)
            self._update(marshal.dumps(value, 2))
            return
        self._update(_token(b"{", len(value)))
        for key, part in value.items():
            self.visit(key)
            self.visit(part)

    def _set(self, kind: bytes, value: Any) -> None:
        if self._flat(value):
            self._spend(len(value) // _FLAT)
            members = sorted(marshal.dumps(member, 2) for member in value)
        else:
            outside = self._update, self._place, self._number
            members = sorted(map(self._member, value))
            self._update, self._place, self._number = outside
        self._update(_token(kind, len(members)))
        self._update(b"".join(members))

    def _member(self, value: Any) -> bytes:
        own = hashlib.sha256()
        self._places += 1
        self._update, self._place, self._number = own.update, self._places, 0
        self.visit(value)
        return own.digest()

    # ---- names ----

    def _named(self, value: Any, name: str) -> None:
        """A function, class or constant that a module holds under its name."""
        if self._by_code and not self._has_name(value, name):
            if not self._met_before(value):
                self._definition(value)
            return
        if id(value) not in self._names:
            self._names[id(value)] = self._name(value, name)
            self._kept.append(value)
        self._update(self._names[id(value)])

    def _has_name(self, value: Any, name: str) -> bool:
        of_main = value.__module__ == self._main.get("__name__", "__main__")
        if value is self.root or "<" in name or (of_main and self.root is not None and name.startswith(f"{self.root.__qualname__}.")):
            return False
        try:
            space = self._main if of_main else vars(sys.modules[value.__module__])
            return _look_up(space, name) is value
        except (KeyError, AttributeError):
            return False

    def _definition(self, value: Any) -> None:
        self._update(_token(b"D", value.__qualname__))
        if isinstance(value, type):
            self.visit((type(value), value.__bases__))
            for name, part in vars(value).items():
                if name not in _NOT_CODE:
                    self.visit(name)
                    self.visit(part)
        elif isinstance(value, types.FunctionType):
            self.visit((value.__code__, value.__defaults__, value.__kwdefaults__, value.__annotations__, vars(value)))
            for cell in value.__closure__ or ():
                self.visit(cell)
        else:  # functools.lru_cache
            self.visit((value.cache_parameters(), value.__wrapped__))

    def _pieces(self, value: Any, kind: type) -> tuple[Any, ...] | None:
        """What a part of a definition is made of, if it is of a kind that occurs only there."""
        if kind is types.CodeType:
            return tuple(getattr(value, name) for name in _CODE)
        if kind is types.CellType:
            try:
                return (value.cell_contents,)
            except ValueError:
                return ()  # empty
        if kind in (staticmethod, classmethod):
            return (value.__func__,)
        if kind is property:
            return value.fget, value.fset, value.fdel
        if kind is functools.cached_property:
            return value.func, value.attrname
        if kind in (types.MemberDescriptorType, types.GetSetDescriptorType):
            return (value.__name__,)
        return None

    def _name(self, value: Any, name: str) -> bytes:
        module = value.__module__
        if module == self._main.get("__name__", "__main__") or getattr(value, "__globals__", None) is self._main:
            key = self._keys(name) if self._keys is not None and _look_up(self._main, name) is value else None
            if key is None:
                raise _NoForm
            return _token(b"d", name) + _token(b"=", key)
        if _look_up(vars(sys.modules[module]), name) is not value:
            raise _NoForm
        key = self._keys(f"module {module.partition('.')[0]}") if self._keys is not None else None
        return _token(b"g", f"{module}\n{name}") + _token(b"=", key or "")

    # ---- everything else ----

    def _other(self, value: Any, kind: type) -> None:
        if isinstance(value, enum.Enum):
            self._update(_token(b"e", value._name_ or ""))
            self.visit(kind)
            self.visit(value._value_)
        elif isinstance(value, _FUNCTIONS) and not _is_method(value):
            self._named(value, value.__qualname__)
        elif kind is types.ModuleType:
            self._update(_module(value.__name__))
        elif kind is types.MappingProxyType:
            self._update(_token(b"m"))
            self.visit(tuple(value.items()))
        elif self._by_code and (pieces := self._pieces(value, kind)) is not None:
            self._update(_token(b"c", kind.__name__))
            self.visit(pieces)
        elif hasattr(kind, "__flowbook_save__"):  # a File or Directory: its path is nothing
            self._update(_token(b"f", f"{value.digest} {value.name}"))
            self.visit(kind)
        elif self._numpy is not None and isinstance(value, (self._numpy.ndarray, self._numpy.generic, self._numpy.dtype)):
            self._of_numpy(value, kind)
        elif self._pandas is not None and isinstance(value, (self._pandas.DataFrame, self._pandas.Series, self._pandas.Index)):
            self._of_pandas(value, kind)
        else:
            self._reduced(value, kind)

    def _reduced(self, value: Any, kind: type) -> None:
        reducer = copyreg.dispatch_table.get(kind)
        reduced: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            self._named(value, reduced)
            return
        if not isinstance(value, self._constants) and self._met_before(value):
            return
        parts: list[Any] = [*reduced, None, None, None, None][:6]
        if isinstance(parts[2], dict) and (cached := cached_names(kind)):
            parts[2] = {name: part for name, part in parts[2].items() if name not in cached} or None
        for i in (3, 4):  # iterators over the items of a list and of a dict
            parts[i] = None if parts[i] is None else tuple(parts[i])
        self._update(_token(b"o"))
        for part in parts:
            self.visit(part)

    # ---- numpy ----

    def _of_numpy(self, value: Any, kind: type) -> None:
        assert self._numpy is not None
        if isinstance(value, self._numpy.dtype):
            self._dtype(value)
        elif isinstance(value, self._numpy.generic):
            self._update(_token(b"n"))
            self.visit(kind)
            self._array(self._numpy.asarray(value))
        elif kind is not self._numpy.ndarray:
            self._reduced(value, kind)
        elif not self._met_before(value):
            self._update(_token(b"a", "C" if value.flags.c_contiguous or not value.flags.f_contiguous else "F"))
            self._array(value)

    def _dtype(self, dtype: Any) -> None:
        if dtype.kind in _PLAIN_DTYPES + "O":
            self._update(_token(b"t", dtype.str))
        else:
            self._reduced(dtype, type(dtype))

    def _array(self, array: Any) -> None:
        """Type, shape, elements in C order, whatever the order in memory."""
        assert self._numpy is not None
        self._dtype(array.dtype)
        self.visit(array.shape)
        if array.dtype.kind in _PLAIN_DTYPES or (array.dtype.kind == "V" and array.dtype.names is None):
            if array.nbytes:
                self._update(self._numpy.ascontiguousarray(array).reshape(-1).view("u1").data)
        elif array.dtype.names is not None:  # field by field, since what lies between fields is not content
            for name in array.dtype.names:
                self._array(array[name])
        elif array.dtype.kind in "OT":
            self._spend(array.size // _FLAT)
            self.visit(tuple(array.ravel().tolist()))
        else:
            raise _NoForm

    # ---- pandas ----

    def _of_pandas(self, value: Any, kind: type) -> None:
        pandas = self._pandas
        assert pandas is not None
        if isinstance(value, pandas.Index):
            self._index(value, kind)
        elif kind is not pandas.Series and kind is not pandas.DataFrame:
            self._reduced(value, kind)
        elif not self._met_before(value):
            self._update(_token(b"p", kind.__name__))
            self._index(value.index, type(value.index))
            self.visit((dict(value.attrs), value.flags.allows_duplicate_labels))
            if kind is pandas.Series:
                self.visit(value.name)
                self._column(value)
            else:
                self._index(value.columns, type(value.columns))
                for i in range(value.shape[1]):
                    self._column(value.iloc[:, i])

    def _index(self, index: Any, kind: type) -> None:
        assert self._pandas is not None
        self._update(_token(b"x"))
        self.visit(kind)
        self.visit(tuple(index.names))
        if kind is self._pandas.RangeIndex:
            self.visit((index.start, index.stop, index.step))
        elif kind is self._pandas.MultiIndex:
            for level, codes in zip(index.levels, index.codes, strict=True):
                self._index(level, type(level))
                self._array(codes)
        else:
            self.visit(getattr(index, "freqstr", None))
            self._column(index)

    def _column(self, column: Any) -> None:
        assert self._numpy is not None and self._pandas is not None
        self._spend(1)
        dtype = column.dtype
        if isinstance(dtype, self._numpy.dtype):
            self._array(column.to_numpy())
            return
        if isinstance(dtype, self._pandas.CategoricalDtype):
            self.visit(("category", dtype.ordered))
            self._index(dtype.categories, type(dtype.categories))
            self._array(self._numpy.asarray(column.array.codes))
            return
        self.visit(repr(dtype))
        if isinstance(dtype, self._pandas.DatetimeTZDtype):
            self._array(column.array.asi8)
        else:
            self._spend(len(column) // _FLAT)
            self.visit(tuple(column.to_numpy(dtype=object).tolist()))


def _is_method(value: Any) -> bool:
    return not isinstance(getattr(value, "__self__", None), (types.ModuleType, type(None)))


def _look_up(namespace: Mapping[str, Any], qualname: str) -> Any:
    first, _, rest = qualname.partition(".")
    return operator.attrgetter(rest)(namespace[first]) if rest else namespace[first]
