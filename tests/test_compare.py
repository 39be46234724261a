"""What counts as the same, what as unchanged, and what two values share."""

import collections
import copy
import datetime
import functools
import math
import random
import re
import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook.store import codec, compare
from flowbook.store.compare import reach, same, unchanged
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore


class Thing:
    def __init__(self, **parts):
        vars(self).update(parts)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b


class Always:
    """Says it equals everything, which is not believed."""

    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return True

    __hash__ = None


class Angry:
    def __eq__(self, other):
        raise RuntimeError("do not compare me")

    def __reduce_ex__(self, protocol):
        raise RuntimeError("nor pickle me")

    __hash__ = object.__hash__


class Costly:
    def __init__(self, n):
        self.n = n

    @functools.cached_property
    def square(self):
        return self.n**2


def cyclic(x):
    found = [x]
    found.append({"me": found})
    return found


def frame(**changes):
    return pd.DataFrame({"a": [1, 2], "b": [1.5, math.nan], "c": ["x", None]} | changes)


def closure(x):
    return lambda: x


MAKERS = {
    "none": lambda: None,
    "int": lambda: 12345678,
    "nan": lambda: float("nan"),
    "complex nan": lambda: complex(1, float("nan")),
    "text": lambda: "ab" * 50,
    "bytearray": lambda: bytearray(b"ab"),
    "nested": lambda: {"a": [1, (2.0, {3}), {"b": None}]},
    "cycle": lambda: cyclic(1),
    "set": lambda: {1, "a", (2, 3), float("nan"), Thing(a=1)},
    "object": lambda: Thing(a=[1], b=Thing(c={})),
    "slots": lambda: Slotted(1, [2]),
    "always": lambda: Always(1),
    "array": lambda: np.array([1.0, math.nan]),
    "text array": lambda: np.array(["a", "b"]),
    "object array": lambda: np.array([[1, "x"], [None, [1]]], dtype=object),
    "record array": lambda: np.array([(1, math.nan)], dtype=[("a", "i4"), ("b", "f8")]),
    "dates": lambda: np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "masked": lambda: np.ma.array([1, 2], mask=[0, 1]),
    "scalar": lambda: np.float64("nan"),
    "generator": lambda: np.random.default_rng(3),
    "random": lambda: random.Random(3),
    "frame": frame,
    "series": lambda: pd.Series([1, None], name="s"),
    "index": lambda: pd.Index(["a", None]),
    "timestamp": lambda: pd.Timestamp("2020"),
    "lists in a frame": lambda: pd.DataFrame({"a": [[1], [2, 3]]}),
    "deque": lambda: collections.deque([1, [2]], maxlen=3),
    "counter": lambda: collections.Counter("aab"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "pattern": lambda: re.compile("a+"),
    "date": lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    "error": lambda: ValueError("a", 1),
    "closure": lambda: closure([1]),
    "partial": lambda: functools.partial(int, base=3),
    "method": lambda: Thing(a=1).__init__,
    "range": lambda: range(3),
    "memoryview": lambda: memoryview(b"ab"),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_two_values_made_alike_are_the_same(make):
    assert same(make(), make())


DIFFERENT = {
    "int bool": (1, True),
    "int float": (1, 1.0),
    "text bytes": ("a", b"a"),
    "list tuple": ([1], (1,)),
    "deep type": ({"a": [1]}, {"a": [True]}),
    "longer": ([1], [1, 2]),
    "key order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "key": ({"a": 1}, {"b": 1}),
    "set": ({1, 2}, {1, 3}),
    "set type": ({1}, {True}),
    "cycle": (cyclic(1), cyclic(2)),
    "object": (Thing(a=[1]), Thing(a=[2])),
    "object attribute": (Thing(a=1), Thing(a=1, b=2)),
    "slots": (Slotted(1, [2]), Slotted(1, [3])),
    "always": (Always(1), Always(2)),
    "angry": (Angry(), Angry()),
    "locks": (threading.Lock(), threading.Lock()),
    "dtype": (np.array([1], "i4"), np.array([1], "i8")),
    "shape": (np.zeros((2, 1)), np.zeros((1, 2))),
    "array": (np.array([1.0, math.nan]), np.array([math.nan, 1.0])),
    "object array": (np.array([1, [2]], dtype=object), np.array([1, [3]], dtype=object)),
    "mask": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[0, 0])),
    "rng": (np.random.default_rng(3), np.random.default_rng(4)),
    "frame value": (frame(), frame(a=[1, 3])),
    "frame dtype": (frame(), frame(a=[1.0, 2.0])),
    "frame object type": (pd.DataFrame({"a": [1, "x"]}, dtype=object), pd.DataFrame({"a": [True, "x"]}, dtype=object)),
    "frame column": (frame(), frame().rename(columns={"a": "z"})),
    "frame index": (frame(), frame().set_index(pd.Index([5, 6]))),
    "index name": (frame(), frame().rename_axis("i")),
    "series name": (pd.Series([1], name="a"), pd.Series([1], name="b")),
    "closure": (closure([1]), closure([2])),
    "code": (lambda: 1, lambda: 2),
    "maxlen": (collections.deque([1], 2), collections.deque([1], 3)),
    "error": (ValueError("a"), ValueError("b")),
}


@pytest.mark.parametrize(("a", "b"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different_values_are_not_the_same(a, b):
    assert not same(a, b) and not same(b, a)


def test_too_deep_a_structure_is_not_known_to_be_the_same():
    def deep():
        found: list = []
        for _ in range(100_000):
            found = [found]
        return found

    a, b = deep(), deep()
    assert not same(a, b)
    for value in (a, b):
        while value:
            value = value.pop()


def test_reading_a_cached_property_is_no_change():
    a, b = Costly(3), Costly(3)
    assert a.square == 9 and same(a, b)
    assert not same(a, Costly(4))


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.integers() | st.floats() | st.text(max_size=3), lambda v: st.lists(v) | st.dictionaries(st.text(max_size=2), v), max_leaves=8
    )
)
def test_a_deep_copy_is_the_same(value):
    assert same(value, copy.deepcopy(value))


# ---- unchanged ----


@pytest.fixture(params=["files", "memory"])
def store(request, tmp_path):
    return FilesStore(tmp_path / "project") if request.param == "files" else MemoryStore()


SAVED = {name: make for name, make in MAKERS.items() if name not in ("method",)}


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED.keys())
def test_a_loaded_value_that_was_left_alone_is_unchanged(store, make):
    entry = codec.entry(store, "v", make())
    value = codec.load(store, entry)

    assert unchanged(store, entry, value) and unchanged(store, entry, make())


def mutate_model(value):
    value.b.c["new"] = 1


CHANGES = {
    "append": (lambda: [1, 2], lambda v: v.append(3)),
    "deep": (lambda: Thing(a=1, b=Thing(c={})), mutate_model),
    "array": (lambda: np.zeros(100_000), lambda v: v.__setitem__(99_999, 1.0)),
    "small array": (lambda: np.zeros(10), lambda v: v.__setitem__(0, 1.0)),
    "nan": (lambda: np.zeros(10), lambda v: v.__setitem__(0, math.nan)),
    "frame cell": (lambda: pd.DataFrame({"a": np.zeros(50_000)}), lambda v: v.__setitem__("a", v["a"].where(v.index != 3, 1.0))),
    "frame column": (frame, lambda v: v.__setitem__("z", 1)),
    "rng": (lambda: np.random.default_rng(3), lambda v: v.random()),
    "set": (lambda: {1, 2}, lambda v: v.add(3)),
    "order": (lambda: {"a": 1, "b": 2}, lambda v: v.__setitem__("a", v.pop("a"))),
    "unpicklable now": (lambda: Thing(a=1), lambda v: setattr(v, "lock", threading.Lock())),
}


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_in_place_is_found(store, make, change):
    entry = codec.entry(store, "v", make())
    value = codec.load(store, entry)
    assert unchanged(store, entry, value)

    change(value)
    assert not unchanged(store, entry, value)


def test_scalars_and_modules_are_compared_too(store):
    assert unchanged(store, codec.entry(store, "n", 1), 1) and not unchanged(store, codec.entry(store, "n", 1), True)
    assert unchanged(store, codec.entry(store, "np", np), np) and not unchanged(store, codec.entry(store, "np", np), pd)


def test_an_instance_of_the_notebook_s_class_is_compared_within_main(store):
    main = {"__name__": "__main__"}
    exec("class Model:\n  def __init__(self): self.w = [0]", main)
    entry = codec.entry(store, "m", main["Model"](), main=main)
    value = codec.load(store, entry, main=main)

    assert unchanged(store, entry, value, main=main)
    value.w.append(1)
    assert not unchanged(store, entry, value, main=main)


def test_a_value_above_the_limit_is_not_looked_at(store):
    entry = codec.entry(store, "a", np.zeros(10_000))

    assert unchanged(store, entry, np.ones(10_000), limit=1000) and not unchanged(store, entry, np.ones(10_000))


def test_a_lost_blob_counts_as_changed(store):
    entry = codec.entry(store, "a", np.zeros(10_000)) | {"blob": "0" * 64}
    assert not unchanged(store, entry, np.zeros(10_000))


def test_the_fast_way_loads_nothing(store, monkeypatch):
    entry = codec.entry(store, "a", {"x": np.zeros(10_000), "t": "t" * 100_000})
    value = codec.load(store, entry)
    monkeypatch.setattr(compare.codec, "load", lambda *a, **k: pytest.fail("loaded"))

    assert unchanged(store, entry, value)


# ---- reach ----


def test_values_that_share_an_object_meet():
    shared = [1]
    base = np.zeros(10)
    table = pd.DataFrame({"a": base})

    assert reach({"a": shared}) & reach(Thing(b=(shared,)))
    assert reach(base) & reach(base[2:5]) and reach([base.reshape(2, 5)]) & reach(base)
    assert reach(np.array([shared, None], dtype=object)) & reach(shared)
    assert reach(table) & reach(Thing(t=table))
    assert reach(functools.partial(print, shared)) & reach(shared)


def test_values_that_share_only_constants_do_not_meet():
    name, day = "a long name of something", datetime.date(2020, 1, 1)
    model = Thing(name=name, day=day, kind=Thing, f=same, pattern=re.compile("x"), n=10**30, d=np.dtype("f8"))
    other = Thing(name=name, day=day, kind=Thing, f=same, pattern=re.compile("x"), n=10**30, d=np.dtype("f8"))

    assert not reach(model) & reach(other)
    assert not reach(np.zeros(3)) & reach(np.zeros(3))
    assert not reach(pd.DataFrame({"a": [1, 2]})) & reach(pd.DataFrame({"a": [1, 2]}))
    assert reach((1, "a", None)) == set()


def test_the_search_ends_at_its_limit_and_in_cycles():
    value = cyclic(1)
    assert len(reach(value)) == 2
    assert len(reach([[i] for i in range(100_000)], limit=100)) == 100
