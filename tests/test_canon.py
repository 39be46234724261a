"""Canonical keys: equal values have equal keys in every process, and no change of a value leaves its key as it was."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import pickle
import re
import subprocess
import sys
import threading
import types
import uuid
import zoneinfo
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook.store import canon, codec
from flowbook.store.canon import content_key, entry_key, item_ids
from flowbook.store.compare import same
from flowbook.store.memory import MemoryStore
from flowbook.store.values import Directory, File


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    a: int
    b: str


@dataclasses.dataclass
class Config:
    rate: float
    names: list[str]


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


class Lazy:
    def __init__(self, n: int) -> None:
        self.n = n

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.n


DISTINCT = """
None True False 0 1 2**70 -1 0.0 -0.0 1.0 float('nan') float('inf') 1j '' 'a' 'ä' b'' b'a' bytearray(b'a') ... () (1,) [1] [] {} {1:2}
{1} frozenset([1]) {(1,2),'a'} range(3) range(0,4,2) slice(1,2) [[1],[1]] ([1],) [(1,)] {'a':1,'b':2} {'b':2,'a':1} {1:'a'} {True:'a'} {1.0:'a'}
datetime.date(2020,1,1) datetime.datetime(2020,1,1) datetime.datetime(2020,1,1,tzinfo=datetime.UTC) datetime.datetime(2020,1,1,fold=1)
datetime.datetime(2020,1,1,tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')) datetime.time(1) datetime.timedelta(1) datetime.timezone.utc
decimal.Decimal('1.0') decimal.Decimal('1.00') fractions.Fraction(1,3) uuid.UUID(int=1) pathlib.PurePosixPath('a') pathlib.PurePosixPath('b')
Colour.RED Colour.BLUE Pair(1,'a') Pair(1,'b') Config(1,['a']) Config(1,['b']) Config(1.0,['a']) Slotted(1,2) Slotted(2,1)
collections.OrderedDict(a=1) collections.Counter('ab') collections.deque([1]) collections.deque([1],3) collections.defaultdict(list) re.compile('a') re.compile('a',re.I)
types.SimpleNamespace(a=1) functools.partial(max,1) 'a'.upper max len int list[int] Config math os.path
np.float64(1) np.float32(1) np.int64(1) np.bool_(True) np.str_('a') np.datetime64('2020-01-01') np.dtype('f8') np.dtype([('a','i4')]) np.array(1.0) np.zeros(3) np.zeros(4)
np.zeros((3,1)) np.zeros((2,3)) np.zeros((2,3),order='F') np.zeros(3,'f4') np.zeros(3,'>f8') np.zeros(3,'i8') np.array(['a']) np.array(['b']) np.array([b'a'])
np.array(['a'],dtype=object) np.array([{'a':1}],dtype=object) np.array(['ab'],np.dtypes.StringDType()) np.zeros(2,[('a','i4'),('b','f8',(2,))]) np.zeros(2,[('a','i4')])[0]
np.array(['2020'],'M8[Y]') np.array(['2020'],'M8[s]') np.zeros(0) np.ma.array([1,2],mask=[0,1]) np.ma.array([1,2],mask=[1,0]) np.arange(6)[::2] np.arange(6)[::-1]
pd.Series([1,2]) pd.Series([1,2],name='a') pd.Series([1,2],index=[1,2]) pd.Series([1,2],dtype='Int64') pd.Series([1,None],dtype='Int64') pd.Series(['a']) pd.Series(['a'],dtype=object)
pd.Series(['a','b'],dtype='category') pd.Series(['a','b'],dtype=pd.CategoricalDtype(['b','a'])) pd.Series(['a','b'],dtype=pd.CategoricalDtype(['a','b'],ordered=True))
pd.date_range('2020',periods=3) pd.date_range('2020',periods=3,tz='UTC') pd.date_range('2020',periods=3,tz='Asia/Tokyo') pd.period_range('2020',periods=3,freq='D')
pd.Timestamp('2020') pd.NaT pd.NA pd.Timedelta(1) pd.Index([1,2]) pd.RangeIndex(3) pd.Index([0,1,2]) pd.MultiIndex.from_product([[1,2],['a']]) pd.interval_range(0,3)
pd.DataFrame({'a':[1],'b':['x']}) pd.DataFrame({'b':['x'],'a':[1]}) pd.DataFrame({'a':[1],'b':['y']}) pd.DataFrame(np.zeros((3,3))) pd.DataFrame(index=[1]) pd.DataFrame({'a':[1.0],'b':['x']})
""".split()
PICKLED_OTHERWISE = {  # numpy gives back another order of bytes, and a fill value that was not there
    "np.zeros(3,'>f8')",
    "np.ma.array([1,2],mask=[0,1])",
    "np.ma.array([1,2],mask=[1,0])",
}
NAMES = {
    **{m.__name__: m for m in (collections, datetime, decimal, fractions, functools, pathlib, re, types, uuid, zoneinfo, os)},
    **{c.__name__: c for c in (Colour, Pair, Config, Slotted)},
    "np": np,
    "pd": pd,
    "math": __import__("math"),
}


def made(text: str) -> Any:
    return eval(text, dict(NAMES))


def test_different_values_have_different_keys_and_each_has_one() -> None:
    keys = {text: content_key(made(text)) for text in DISTINCT}
    first: dict[str | None, str] = {}

    assert [text for text, key in keys.items() if key is None] == []
    assert [(text, first[key]) for text, key in keys.items() if first.setdefault(key, text) != text] == []
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", key or "") for key in keys.values())


@pytest.mark.parametrize("text", DISTINCT)
def test_the_same_value_made_twice_copied_or_pickled_has_one_key(text: str) -> None:
    value = made(text)

    assert content_key(made(text)) == content_key(value)
    if not isinstance(value, types.ModuleType) and text not in PICKLED_OTHERWISE:
        assert content_key(pickle.loads(pickle.dumps(value))) == content_key(value)
        assert content_key(copy.deepcopy(value)) == content_key(value)


def test_every_process_comes_to_the_same_keys() -> None:
    code = "import sys; from tests.test_canon import DISTINCT, made, content_key; print([content_key(made(t)) for t in DISTINCT])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }

    assert told == {f"{[content_key(made(text)) for text in DISTINCT]}\n"}


# ---- random structures ----

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.just(Colour.RED),
    st.dates(),
)
HASHABLE = st.recursive(ATOMS, lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)), max_leaves=6)


@st.composite
def nodes(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    return Slotted(draw(inner), draw(inner))


VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        nodes(inner),
        st.builds(Config, st.floats(allow_nan=False), st.lists(st.text(max_size=2), max_size=2)),
        st.builds(lambda items: np.array(items), st.lists(st.integers(0, 9), max_size=4)),
    ),
    max_leaves=12,
)


def rebuilt(value: Any) -> Any:
    """The same value of other objects: sets filled in another order, strings not interned, integers anew."""
    kind = type(value)
    if kind is str:
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    if kind is int:
        return int(str(value))
    if kind in (list, tuple):
        return kind(map(rebuilt, value))
    if kind in (set, frozenset):
        return kind(map(rebuilt, reversed(list(value))))
    if kind is dict:
        return {rebuilt(key): rebuilt(part) for key, part in value.items()}
    if kind is Slotted:
        return Slotted(rebuilt(value.x), rebuilt(value.y))
    return copy.deepcopy(value)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_equal_structures_of_other_objects_have_one_key(value: Any) -> None:
    assert content_key(rebuilt(value)) == content_key(value) is not None


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES)
def test_two_structures_have_one_key_exactly_if_they_are_the_same(a: Any, b: Any) -> None:
    if content_key(a) == content_key(b):
        assert same(a, b)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3), st.data())
def test_a_change_anywhere_inside_changes_the_key(values: list[Any], data: st.DataObject) -> None:
    whole: Any = {"a": values, "b": (values[0], [1])}
    places = [part for part in _inside(whole) if isinstance(part, (list, dict, set, Slotted, Config)) or _is_filled(part)]
    before = content_key(whole)
    place = data.draw(st.sampled_from(range(len(places))))
    _change(places[place])

    assert content_key(whole) != before


def _inside(value: Any) -> list[Any]:
    kind = type(value)
    parts = [*value.keys(), *value.values()] if kind is dict else list(value) if kind in (list, tuple) else []
    parts += [value.x, value.y] if kind is Slotted else []
    return [value, *(deep for part in parts for deep in _inside(part))]


def _is_filled(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size > 0


def _change(value: Any) -> None:
    new = "longer than any other text here"
    if isinstance(value, list):
        value.append(new)
    elif isinstance(value, dict):
        value[new] = 1
    elif isinstance(value, set):
        value.add(new)
    elif isinstance(value, np.ndarray):
        value[-1] += 1
    elif isinstance(value, Config):
        value.names.append(new)
    else:
        value.x = (value.x, new)


# ---- identity ----


def test_who_shares_a_mutable_object_counts() -> None:
    one: list[int] = [1]

    assert content_key([one, one]) != content_key([[1], [1]])
    assert content_key([one, one]) == content_key([two := [1], two])
    assert content_key([one, [2], one]) != content_key([one, two := [2], two])
    shared = np.zeros(3)
    assert content_key([shared, shared]) != content_key([np.zeros(3), np.zeros(3)])


def test_who_shares_a_constant_does_not() -> None:
    word, day, pair = "x" * 50, datetime.datetime(2020, 1, 1), ("a", 1.5)
    apart = [["x" * 25 + "x" * 25, datetime.datetime(2020, 1, 1), ("a", float("1.5"))] for _ in range(2)]

    assert content_key([[word, day, pair], [word, day, pair]]) == content_key(apart)


def test_cycles_end() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    node = Slotted(1, None)
    node.y = {"me": (node,)}

    assert content_key(loop) == content_key(copy.deepcopy(loop)) is not None
    assert content_key(node) == content_key(copy.deepcopy(node)) is not None
    assert content_key(loop) != content_key([1, [1, loop]])


def test_a_set_whose_members_share_what_may_change_has_no_key() -> None:
    inner = types.SimpleNamespace(x=1)
    a, b = (functools.partial(max, inner) for _ in range(2))

    assert content_key({a, b}) is None
    assert content_key({a}) is not None and content_key([inner, {a}]) is None


# ---- objects ----


def test_a_cached_property_that_was_read_is_no_change() -> None:
    fresh, read = Lazy(3), Lazy(3)
    assert read.double == 6

    assert content_key(fresh) == content_key(read) != content_key(Lazy(4))


def test_definitions_of_the_notebook_go_by_their_name_and_key() -> None:
    main: dict[str, Any] = {"__name__": "__main__"}
    exec("class A:\n    pass\ndef f(): pass\na = A()", main)

    def key(value: Any, **known: str) -> str | None:
        return content_key(value, main=main, keys=known.get)

    assert key(main["a"]) is None and content_key(main["a"], main=main) is None
    assert key(main["a"], A="1") == key(main["A"](), A="1") is not None
    assert key(main["a"], A="1") != key(main["a"], A="2")
    assert key([main["f"], main["A"]], f="1", A="1") is not None and key(lambda: 1, f="1") is None
    old = main["a"]
    exec("class A:\n    pass", main)
    assert key(old, A="1") is None


def test_a_module_whose_content_may_change_counts_by_it() -> None:
    def key(content: str | None) -> str | None:
        return content_key(Config(1, []), keys=lambda name: content if name == "module tests" else None)

    assert key("1") == key("1") != key("2") and key(None) == content_key(Config(1, []))


CODE = """
def f(x, y=1): return [x + y for x in range(3) if x in {1, 2}]
def f(x, y=2): return [x + y for x in range(3) if x in {1, 2}]
def f(x, *, y=1): return [x + y for x in range(3) if x in {1, 2}]
def f(x, y=1): return [x - y for x in range(3) if x in {1, 2}]
def f(x, y=1): return [x + y for x in range(3) if x in {1, 3}]
def f(x: int, y=1): return [x + y for x in range(3) if x in {1, 2}]
f = lambda x: x
f = lambda x: -x
f = {'a': lambda x: x}
f = (lambda n: lambda: n)(1)
f = (lambda n: lambda: n)(2)
class f: x = 1
class f: x = 2
class f(dict): x = 1
class f:\\n def g(self): return super()
class f:\\n def g(self): return super().x
class f:\\n g = property(lambda self: 1)
class f:\\n g = staticmethod(lambda self: 1)
class f:\\n __slots__ = ('a',)
import dataclasses\\n@dataclasses.dataclass\\nclass f:\\n a: int = 1
import dataclasses\\n@dataclasses.dataclass\\nclass f:\\n a: int = 2
import dataclasses\\n@dataclasses.dataclass(frozen=True)\\nclass f:\\n a: int = 2
import typing\\nclass f(typing.NamedTuple):\\n a: int
import enum\\nclass f(enum.Enum):\\n A = 1
import enum\\nclass f(enum.Enum):\\n A = 2
import functools\\n@functools.lru_cache(maxsize=3)\\ndef f(x): return f(x - 1)
import functools\\n@functools.lru_cache(maxsize=4)\\ndef f(x): return f(x - 1)
import functools\\ndef deco(g):\\n @functools.wraps(g)\\n def w(*a): return g(*a) + 1\\n return w\\n@deco\\ndef f(x): return x
import functools\\ndef deco(g):\\n @functools.wraps(g)\\n def w(*a): return g(*a) + 2\\n return w\\n@deco\\ndef f(x): return x
""".strip().split("\n")


def by_code(source: str) -> str | None:
    main: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source.replace("\\n", "\n"), "<cell>", "exec"), main)
    return content_key(main["f"], main=main, keys=lambda name: "", code=True)


def test_definitions_count_by_their_code_where_that_is_asked() -> None:
    keys = [by_code(source) for source in CODE]

    assert [source for source, key in zip(CODE, keys, strict=True) if key is None] == []
    assert len(set(keys)) == len(CODE)
    assert [by_code(f"# a comment\n\n{source}") for source in CODE] == keys


def test_what_has_no_form_has_no_key_and_nothing_is_raised() -> None:
    class Bad:
        def __reduce_ex__(self, protocol: object) -> Any:
            raise SystemError("no")

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (threading.Lock(), (i for i in []), sys.__stderr__, lambda: 1, Bad(), [Bad()], {"a": Bad}, memoryview(b"a"), deep):
        assert content_key(value) is None


def test_a_structure_of_very_many_objects_has_none_and_a_large_flat_one_has() -> None:
    assert content_key([(i,) for i in range(canon.OBJECTS)]) is None
    assert content_key(list(range(canon.OBJECTS * 4))) is not None
    assert content_key(np.zeros(10**7)) is not None


def test_files_and_folders_count_by_content_and_name(tmp_path: pathlib.Path) -> None:
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder / "data").mkdir(parents=True)
        (tmp_path / folder / "data" / "f.txt").write_text(text)
    keys = [content_key(File(tmp_path / folder / "data" / "f.txt")) for folder in "abc"]
    folders = [content_key(Directory(tmp_path / folder / "data")) for folder in "abc"]

    assert keys[0] == keys[1] != keys[2] and None not in keys
    assert folders[0] == folders[1] != folders[2] and None not in folders


# ---- arrays and tables ----


def test_an_array_counts_by_its_elements_wherever_they_lie() -> None:
    whole = np.arange(24.0).reshape(4, 6)

    assert content_key(whole[::2]) == content_key(whole[::2].copy()) != content_key(whole[1::2])
    assert content_key(whole.T) == content_key(np.asfortranarray(whole.T.copy())) != content_key(whole.T.copy(order="C"))
    packed, padded = np.dtype([("a", "i1"), ("b", "f8")]), np.dtype([("a", "i1"), ("b", "f8")], align=True)
    garbage = np.frombuffer(bytes(range(32)), padded).copy()
    clean = np.zeros(2, padded)
    clean["a"], clean["b"] = garbage["a"], garbage["b"]
    assert content_key(garbage) == content_key(clean) != content_key(clean.astype(packed))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.__setitem__("c", 1),
        lambda t: t.attrs.__setitem__("unit", "m"),
        lambda t: t.columns.__setattr__("name", "x"),
        lambda t: t.index.__setattr__("name", "x"),
        lambda t: t.__setattr__("index", [5, 6]),
        lambda t: t.loc.__setitem__((0, "a"), 9.0),
        lambda t: t.loc.__setitem__((1, "b"), "z"),
        lambda t: t.__setitem__("a", t["a"].astype("f4")),
        lambda t: t.pop("a"),
    ],
)
def test_a_change_of_a_table_changes_its_key(change: Any) -> None:
    table = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", None], "d": pd.Categorical(["u", "v"])})
    before = content_key(table)
    assert content_key(table.copy()) == before
    change(table)

    assert content_key(table) != before is not None


# ---- entries and items ----


def test_an_entry_tells_the_key_of_its_value() -> None:
    store = MemoryStore()
    for value in (3, 1.5, -0.0, "ä", None, True, float("nan"), 2**70, {"a": {1, 2}}, (1, [2]), pd.DataFrame({"a": [1]}), Colour.RED, os):
        assert entry_key(codec.entry(store, "v", value)) == content_key(value)


def test_what_its_address_tells_is_not_hashed_again() -> None:
    store = MemoryStore()
    for value in (np.arange(9), np.arange(90_000.0), np.zeros((2, 3), order="F"), b"abc", bytes(20_000), bytearray(b"a")):
        entry, again = (codec.entry(store, "v", copy.copy(value)) for _ in range(2))
        assert "key" not in entry and entry_key(entry) == entry_key(again) and len(entry_key(entry)) == 22
    for value in (np.arange(9)[::2], np.array([1, "a"], dtype=object), {"a": np.zeros(3)}):
        assert "key" in codec.entry(store, "v", value)
    assert entry_key(codec.entry(store, "v", np.arange(9))) != entry_key(codec.entry(store, "v", np.arange(10)))


def test_an_entry_tells_with_which_names_it_shares_an_object() -> None:
    entry = codec.entry(MemoryStore(), "v", [1])

    assert len({entry_key(each) for each in (entry, entry | {"shares": ["a"]}, entry | {"shares": ["b"]}, entry | {"alias": "a"})}) == 4


def test_a_definition_goes_by_its_address() -> None:
    main: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(): return 1", main)
    entry = codec.entry(MemoryStore(), "f", main["f"], main=main)

    assert "key" not in entry and entry_key(entry)


def test_equal_items_have_ids_of_their_own_and_an_item_that_moves_keeps_its() -> None:
    a, b, c = item_ids(["a" * 22, "b" * 22, "a" * 22])

    assert len({a, b, c}) == 3 and {len(each) for each in (a, b, c)} == {22}
    assert item_ids(["b" * 22, "a" * 22, "a" * 22]) == [b, a, c]
