"""Values to bytes and back; the notebook's own definitions by name; what cannot be pickled, told by its path."""

import collections
import dataclasses
import decimal
import enum
import functools
import io
import json
import math
import pickle
import struct
import subprocess
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook.errors import ArtifactError, FlowbookError, NotPicklable
from flowbook.store import codec, layout
from flowbook.store.compare import same, unchanged
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore


def notebook(source: str = "", name: str = "__main__", **names) -> dict:
    """A main namespace in which cells were run."""
    main = {"__name__": name, "__builtins__": __builtins__, **names}
    exec(compile(source, "<cell>", "exec"), main)
    return main


def there_and_back(value, **options):
    return codec.decode(bytearray(codec.encode(value, **options).join()), main=options.get("main"))


@pytest.fixture(params=["files", "memory"])
def store(request, tmp_path):
    return FilesStore(tmp_path / "project") if request.param == "files" else MemoryStore()


# ---- round trips ----

atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text(max_size=20) | st.binary(max_size=20)
hashable = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5)
values = st.recursive(
    atoms | st.binary().map(bytearray) | st.datetimes() | st.decimals() | st.fractions() | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.lists(inner, max_size=3).map(collections.deque)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_any_plain_value_comes_back_the_same(value):
    assert same(there_and_back(value), value)


@settings(max_examples=80, deadline=None)
@given(values)
def test_any_plain_value_comes_back_the_same_from_its_entry(value):
    store = MemoryStore()
    entry = json.loads(json.dumps(codec.entry(store, "v", value)))

    assert same(codec.load(store, entry), value)
    assert len(entry["repr"]) <= 200 and "\n" not in entry["repr"]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10.0),
        np.arange(24).reshape(2, 3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(20)[::2],
        np.zeros((0, 3)),
        np.array(5),
        np.array(["a", "bcd"]),
        np.array([1, "x", None], dtype=object),
        np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
        np.array([1 + 2j, complex("nan")]),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.float32(1.5),
    ],
)
def test_arrays_come_back_the_same(array):
    back = there_and_back(array)

    assert same(back, array)
    if isinstance(back, np.ndarray):
        assert back.flags.writeable


def test_an_array_lies_over_the_given_memory_and_is_writable():
    data = bytearray(codec.encode(np.arange(1000.0)).join())
    array = codec.decode(data)

    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert array.ctypes.data % 16 == 0
    array[0] = 7
    assert codec.decode(data)[0] == 7


def test_an_array_over_bytes_is_writable_too_and_a_read_only_one_stays_so():
    assert codec.decode(codec.encode(np.arange(10)).join()).flags.writeable

    frozen = np.arange(10)
    frozen.flags.writeable = False
    assert not codec.decode(codec.encode(frozen).join()).flags.writeable


def test_encoding_joins_and_copies_nothing():
    array = np.arange(1_000_000)
    encoded = codec.encode(array)

    assert any(isinstance(p, memoryview) and np.shares_memory(np.frombuffer(p, np.uint8), array) for p in encoded.parts)
    text = b"x" * 1_000_000
    assert any(part is text for part in codec.encode([text]).parts)


def test_every_buffer_is_aligned_and_the_header_tells_where():
    encoded = codec.encode({"a": np.arange(3, dtype=np.int8), "b": np.arange(5.0), "c": np.zeros(0)})
    data = encoded.join()
    (length,) = struct.unpack("<I", data[8:12])
    start = -(-(12 + length) // 64) * 64

    assert data.startswith(b"FLOWBK1\n") and json.loads(data[12 : 12 + length]) == encoded.header == codec.read_header(data)
    assert [n for _, n in encoded.header["buffers"]] == [3, 40, 0]
    assert all((start + at) % 64 == 0 for at, _ in encoded.header["buffers"])
    assert encoded.nbytes == len(data)


def test_equal_values_make_equal_bytes():
    class Plain:
        pass

    for value in (np.arange(5), {"a": [1, 2]}, "x" * 100, Plain):
        assert codec.encode(value).join() == codec.encode(value).join()
    assert b" at 0x" not in codec.encode([object()]).join()


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": np.arange(5), "b": np.arange(5.0), "c": list("abcde"), "d": pd.date_range("2020", periods=5)}),
        pd.DataFrame({"a": pd.Categorical(["x", "y", "x"]), "b": pd.array([1, None, 3], dtype="Int64")}, index=[3, 1, 2]),
        pd.Series([1.0, math.nan], name="s", index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", "y"])),
        pd.DataFrame(),
    ],
)
def test_tables_come_back_the_same(store, frame):
    back = codec.load(store, codec.entry(store, "df", frame))

    assert same(back, frame)


def test_a_loaded_table_is_writable_and_the_store_does_not_change(store):
    frame = pd.DataFrame({f"c{i}": np.arange(5000.0) for i in range(4)})
    entry = codec.entry(store, "df", frame)
    back = codec.load(store, entry)
    back.loc[0, "c0"] = -1.0
    back["c1"] += 1
    back.iloc[1:3, 2] = 0

    assert "blob" in entry and back.loc[0, "c0"] == -1.0
    assert same(codec.load(store, entry), frame)


def test_views_of_memory_stay_views():
    back = there_and_back([memoryview(b"abcd"), memoryview(bytearray(8)).cast("i")])

    assert back[0].tobytes() == b"abcd" and back[0].readonly
    assert back[1].format == "i" and not back[1].readonly


def test_cycles_and_shared_parts_stay():
    a: list = [1]
    a.append(a)
    x = [0]
    back = there_and_back({"a": a, "x": x, "y": x})

    assert back["a"][1] is back["a"] and back["x"] is back["y"]


# ---- the notebook's definitions ----

CELLS = """
import dataclasses, enum, functools, collections, math
factor = 10
@dataclasses.dataclass
class Point:
    x: int
    def scaled(self): return self.x * factor
    class Inner: pass
class Colour(enum.Enum):
    RED = 1
Pair = collections.namedtuple("Pair", "a b")
class Base:
    def hello(self): return "base"
class Child(Base):
    def hello(self): return "child of " + super().hello()
    @functools.cached_property
    def costly(self): return factor
    @classmethod
    def make(cls): return cls()
def scale(x, by=2): return x * factor * by + math.floor(0.5)
def fact(n): return 1 if n <= 1 else n * fact(n - 1)
@functools.lru_cache(maxsize=7)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def counter():
    n = 0
    def step():
        nonlocal n
        n += factor
        return n
    return step
def setter(v):
    global factor
    factor = v
square = lambda x: x * factor
"""


def test_an_instance_stays_an_instance_of_the_class_in_main():
    main = notebook(CELLS)
    value = {"p": main["Point"](3), "c": main["Colour"].RED, "t": main["Pair"](1, 2), "i": main["Point"].Inner()}
    encoded = codec.encode(value, main=main, keys={"Point": "k1"}.get)
    back = codec.decode(encoded.join(), main=main)

    assert type(back["p"]) is main["Point"] and back["c"] is main["Colour"].RED and type(back["t"]) is main["Pair"]
    assert encoded.refs == {"Point", "Colour", "Pair", "Point.Inner"}
    assert ["Point", "k1"] in encoded.header["refs"] and ["Colour", None] in encoded.header["refs"]


def test_an_instance_is_bound_to_the_class_of_the_loading_process():
    here, there = notebook(CELLS), notebook(CELLS)
    back = codec.decode(codec.encode(here["Point"](3), main=here).join(), main=there)

    assert type(back) is there["Point"] and back.scaled() == 30


def test_a_changed_class_is_noted_and_the_present_one_used():
    main = notebook(CELLS)
    data = codec.encode([main["Point"](3), main["Point"](4)], name="pts", main=main, keys=lambda q: "old").join()
    notes: list[str] = []

    codec.decode(data, name="pts", main=main, keys=lambda q: "old", notes=notes)
    assert notes == []
    codec.decode(data, name="pts", main=main, keys=lambda q: "new", notes=notes)
    assert notes == ["Point has changed since pts was saved; pts uses the present one"]


def test_a_class_that_main_lacks_is_asked_from_the_run_else_named():
    main = notebook(CELLS)
    data = codec.encode(main["Point"](3), main=main, keys=lambda q: "key of " + q).join()
    asked = []

    def resolve(qualname, key):
        asked.append((qualname, key))
        return main[qualname]

    assert type(codec.decode(data, main=notebook(), resolve=resolve)) is main["Point"]
    assert asked == [("Point", "key of Point")]
    for nothing in (None, lambda q, k: None, lambda q, k: {}[q]):
        with pytest.raises(ArtifactError, match="best needs 'Point' of the notebook.*Run the cell"):
            codec.decode(data, name="best", main=notebook(), resolve=nothing)


def test_a_function_goes_without_globals_and_lives_in_the_loading_main():
    here = notebook(CELLS, big=np.zeros(1_000_000))
    encoded = codec.encode(here["scale"], main=here, root=True)
    there = {"factor": 100, "math": math}
    back = codec.decode(encoded.join(), main=there)

    assert encoded.globals == {"factor", "math"} and encoded.refs == set()
    assert back.__globals__ is there and back(1) == 200
    there["factor"] = 1  # later rebinding is seen
    assert back(1, by=3) == 3
    assert (back.__qualname__, back.__module__, back.__defaults__) == ("scale", "__main__", (2,))


def test_functions_of_one_main_share_it_and_find_themselves():
    here, there = notebook(CELLS), {}
    for name in ("fact", "fib", "setter"):
        there[name] = codec.decode(codec.encode(here[name], main=here, root=True).join(), main=there)

    assert there["fact"](5) == 120 and there["fib"](20) == 6765 and there["fib"].cache_parameters() == {"maxsize": 7, "typed": False}
    there["setter"](5)
    assert there["factor"] == 5 and here["factor"] == 10
    assert codec.encode(here["setter"], main=here, root=True).globals == {"factor"}


def test_by_reference_a_function_of_main_is_a_name():
    main = notebook(CELLS)
    encoded = codec.encode({"f": main["scale"], "g": main["fib"], "m": main["Child"]().hello}, main=main)

    assert encoded.refs == {"scale", "fib", "Child", "Child.hello"} and encoded.globals == set()
    back = codec.decode(encoded.join(), main=main)
    assert back["f"] is main["scale"] and back["g"] is main["fib"] and back["m"]() == "child of base"


def test_closures_and_lambdas_go_by_value_without_globals():
    main = notebook(CELLS)
    step = main["counter"]()
    step()
    back = codec.decode(codec.encode([step, main["square"]], main=main).join(), main=(there := {"factor": 1}))

    assert back[0]() == 11 and step() == 20
    assert back[1](3) == 3 and back[1].__globals__ is there


def test_a_recursive_closure_comes_back():
    main = notebook("def make():\n  def down(n): return 0 if n == 0 else down(n - 1)\n  return down\n")
    back = codec.decode(codec.encode(main["make"](), main=main).join(), main={})

    assert back(5) == 0 and back.__closure__[0].cell_contents is back


def test_a_class_by_value_brings_its_methods_and_refers_to_its_bases():
    here = notebook(CELLS)
    encoded = codec.encode(here["Child"], main=here, root=True)
    there = {"__name__": "__main__", "factor": 3}
    there["Base"] = codec.decode(codec.encode(here["Base"], main=here, root=True).join(), main=there)
    child = codec.decode(encoded.join(), main=there)

    assert encoded.refs == {"Base"} and encoded.globals == {"factor"}
    assert issubclass(child, there["Base"])
    assert child().hello() == "child of base" and child().costly == 3 and isinstance(child.make(), child)


def test_a_class_by_value_holds_its_nested_class_and_its_generated_methods():
    here = notebook(CELLS)
    encoded = codec.encode(here["Point"], main=here, root=True)
    point = codec.decode(encoded.join(), main=(there := {"factor": 2}))

    assert encoded.refs == set() and point(4) == point(4) and point(4).scaled() == 8
    assert point.Inner.__qualname__ == "Point.Inner" and point.scaled.__globals__ is there


def test_an_enum_goes_by_value_as_a_root():
    here = notebook(CELLS)
    colour = codec.decode(codec.encode(here["Colour"], main=here, root=True).join(), main={})

    assert colour.RED.value == 1 and colour(1) is colour.RED


def test_what_main_only_imported_goes_by_its_module():
    main = notebook("from collections import OrderedDict\nfrom functools import reduce\nimport numpy as np\nfrom json import dumps")
    encoded = codec.encode([main["OrderedDict"], main["dumps"], main["np"], main["np"].float64(1)], main=main)

    assert encoded.refs == set() and encoded.modules >= {"collections", "json", "numpy"}
    assert codec.decode(encoded.join(), main={})[:3] == [collections.OrderedDict, json.dumps, np]


def test_an_instance_of_a_class_that_was_defined_anew_still_travels():
    main = notebook(CELLS)
    stale = main["Point"](3)
    exec(CELLS, main)
    back = codec.decode(codec.encode(stale, main=main).join(), main=main)

    assert back.x == 3 and back.scaled() == 30 and type(back) is not main["Point"]


def test_root_says_nothing_of_values_that_are_no_definitions():
    main = notebook(CELLS)

    assert codec.encode(main["Point"](1), main=main, root=True).refs == {"Point"}
    assert codec.encode([main["scale"]], main=main, root=True).refs == {"scale"}


def test_names_of_main_are_found_in_nested_code_and_class_bodies():
    main = notebook(
        "a = b = c = d = 1\ndef f():\n  def g(): return [a for _ in range(3)]\n  class K:\n    y = b\n    c = 5\n    z = c\n  return lambda: print(d), undefined"
    )

    assert codec.encode(main["f"], main=main, root=True).globals == {"a", "b", "d", "undefined"}


def test_a_module_object_works_as_main_too():
    module = types.ModuleType("__main__")
    exec(CELLS, vars(module))
    back = codec.decode(codec.encode(module.Point(1), main=module).join(), main=module)

    assert type(back) is module.Point


def test_decorated_functions_travel():
    main = notebook(
        "import functools\ndef twice(f):\n  @functools.wraps(f)\n  def inner(*a): return 2 * f(*a)\n  return inner\n@twice\ndef one(x): return x + off\noff = 1"
    )
    back = codec.decode(codec.encode(main["one"], main=main, root=True).join(), main={"off": 10})

    assert back(1) == 22 and back.__wrapped__(1) == 11


# ---- what cannot be pickled ----


class Holder:
    def __init__(self, **parts):
        vars(self).update(parts)


class Choosy(Holder):
    def __getstate__(self):
        return {name: part for name, part in vars(self).items() if name != "skipped"}


class Slotted:
    __slots__ = ("a", "lock")


def slotted():
    value = Slotted()
    value.a, value.lock = 1, threading.Lock()
    return value


def closing(lock):
    return lambda: lock


def shy():
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("make", "path", "cause"),
    [
        (threading.Lock, "model", r"TypeError: cannot pickle '_thread.lock' object"),
        (lambda: Holder(cache={"lock": threading.Lock()}), "model.cache['lock']", r"cannot pickle '_thread.lock'"),
        (lambda: [1, (2, {"k": threading.Lock()})], "model[1][1]['k']", "_thread.lock"),
        (lambda: {"gen": (i for i in [1])}, "model['gen']", "cannot pickle 'generator' object"),
        (lambda: Choosy(skipped=threading.Lock(), f=threading.Lock()), "model.f", "lock"),
        (slotted, "model.lock", "lock"),
        (lambda: closing(threading.Lock()), "model.__closure__['lock']", "lock"),
        (lambda: Holder(f=closing([threading.Lock()])), "model.f.__closure__['lock'][0]", "lock"),
        (lambda: collections.deque([1, threading.Lock()]), "model[1]", "lock"),
        (lambda: collections.OrderedDict(a=threading.Lock()), "model['a']", "lock"),
        (lambda: functools.partial(print, threading.Lock()), "model", "lock"),
        (lambda: np.array([1, threading.Lock()], dtype=object), "model", "lock"),
    ],
)
def test_the_culprit_is_named_by_its_path(make, path, cause):
    with pytest.raises(NotPicklable, match=cause) as caught:
        codec.encode(make(), name="model")
    assert caught.value.path == path if path != "model" else caught.value.path.startswith("model")


def test_a_culprit_in_a_cycle_is_found():
    value: list = []
    value.extend([value, {"me": value, "lock": threading.Lock()}])

    with pytest.raises(NotPicklable) as caught:
        codec.encode(value, name="v")
    assert caught.value.path.startswith("v[") and "lock" in str(caught.value)


def test_an_open_file_is_refused_not_turned_into_its_text(tmp_path):
    (tmp_path / "f").write_text("secret")
    for mode in ("r", "rb", "w"):
        with (
            open(tmp_path / "f", mode) as file,
            pytest.raises(NotPicklable, match=r"data\['f'\] cannot be pickled: TypeError: cannot pickle an open file"),
        ):
            codec.encode({"f": file}, name="data")
    assert there_and_back(io.BytesIO(b"abc")).getvalue() == b"abc"


def test_an_object_whose_own_reduce_raises_is_the_culprit():
    class Angry:
        def __reduce__(self):
            raise ValueError("never me")

    with pytest.raises(NotPicklable, match=r"v\[0\] cannot be pickled: ValueError: never me"):
        codec.encode([Angry()], name="v")


def test_too_deep_a_structure_is_told():
    deep: list = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(NotPicklable, match="recursion"):
        codec.encode(deep)
    while deep:  # let go of it level by level: freeing it at once would recurse as deep
        deep = deep.pop()


# ---- damage ----


def encoded_bytes() -> bytes:
    return codec.encode({"a": np.arange(100), "b": "text" * 50}).join()


def test_truncated_data_is_told_wherever_it_is_cut():
    data = encoded_bytes()
    for cut in [*range(0, 400, 7), len(data) - 1]:
        with pytest.raises(ArtifactError, match="the stored data of best is damaged"):
            codec.decode(data[:cut], name="best")


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200)
    | st.binary(max_size=100).map(lambda b: codec.MAGIC + b)
    | st.binary(max_size=60).map(lambda b: codec.MAGIC + struct.pack("<I", len(b)) + b)
)
def test_garbage_is_an_artifact_error(data):
    with pytest.raises(ArtifactError):
        codec.decode(data)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{}",
        '{"pickle": [0]}',
        '{"pickle": [0, 99999]}',
        '{"pickle": [-1, 4]}',
        '{"pickle": [0, true]}',
        '{"pickle": [0, 2], "buffers": 3}',
        '{"pickle": [0, 2], "buffers": [[0, 9999]]}',
    ],
)
def test_a_hostile_header_is_an_artifact_error(header):
    data = codec.MAGIC + struct.pack("<I", len(header)) + header.encode()
    with pytest.raises(ArtifactError, match="damaged"):
        codec.decode(data.ljust(128, b"\0"))


def test_a_missing_module_and_a_missing_name_are_told():
    module = types.ModuleType("lately_here")
    exec("class Thing: pass", vars(module))
    sys.modules["lately_here"] = module
    try:
        data = codec.encode(module.Thing()).join()
        del module.Thing
        with pytest.raises(ArtifactError, match="best cannot be loaded: AttributeError"):
            codec.decode(data, name="best")
    finally:
        del sys.modules["lately_here"]
    with pytest.raises(ArtifactError, match="needs the module 'lately_here', which is not installed"):
        codec.decode(data, name="best")


def test_an_entry_whose_blob_is_gone_or_whose_kind_is_new_is_told(store):
    entry = codec.entry(store, "a", np.arange(10_000))
    store.delete(layout.blob(entry["blob"]))
    with pytest.raises(FlowbookError, match=entry["blob"]):
        codec.load(store, entry)
    with pytest.raises(ArtifactError, match="unknown kind 'hologram'"):
        codec.load(store, {"kind": "hologram"})
    with pytest.raises(ArtifactError, match="damaged"):
        codec.load(store, {"kind": "value", "inline": "%%%"})
    with pytest.raises(ArtifactError, match="damaged"):
        codec.load(store, {"kind": "value"})
    with pytest.raises(ArtifactError, match="not installed"):
        codec.load(store, {"kind": "module", "module": "no_such_module_anywhere"})


# ---- entries ----


@pytest.mark.parametrize("value", [None, True, 0, -(2**53) + 1, 1.5, -0.0, 1e308, 5e-324, "", "ä€😀", "x" * 16384])
def test_plain_scalars_stand_in_the_entry_as_json(store, value):
    entry = json.loads(json.dumps(codec.entry(store, "v", value)))

    assert entry["kind"] == "json" and same(codec.load(store, entry), value)
    assert math.copysign(1, codec.load(store, entry)) == math.copysign(1, value) if isinstance(value, float) else True


class Text(str):
    pass


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        2**53,
        -(2**70),
        10**5000,
        "x" * 16385,
        "é" * 9000,
        "\ud800",
        Text("a"),
        Level.HIGH,
        np.float64(1.5),
        np.bool_(True),
        1j,
        b"x",
        [1],
        decimal.Decimal("1.1"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_everything_else_is_encoded_and_keeps_its_type(store, value):
    entry = json.loads(json.dumps(codec.entry(store, "v", value)))

    assert entry["kind"] == "value" and same(codec.load(store, entry), value)


def test_small_values_are_inline_and_large_ones_blobs(store):
    small, large = codec.entry(store, "a", np.arange(100)), codec.entry(store, "b", np.arange(10_000))

    assert "inline" in small and "blob" not in small
    assert "blob" in large and store.size(layout.blob(large["blob"])) >= 80_000
    assert codec.blobs_of(large) == [large["blob"]] and codec.blobs_of(small) == []
    assert (large["type"], large["shape"], large["dtype"]) == ("numpy.ndarray", [10_000], "int64") and large["size"] >= 80_000
    assert codec.load(store, small)[3] == 3 and codec.load(store, large)[9_999] == 9_999


def test_finish_gives_the_entry_that_entry_gives(store):
    for value in (3, "a", [1, 2], np.arange(10_000)):
        encoded = codec.encode(value, name="v", store=store, root=True)
        assert codec.finish(store, encoded, value) == codec.entry(store, "v", value)


def test_a_module_is_its_name(store):
    entry = codec.entry(store, "np", np)

    assert entry["kind"] == "module" and codec.load(store, entry) is np
    for lost in (types.ModuleType("made_up"), sys.modules["__main__"]):
        with pytest.raises(NotPicklable, match="cannot be imported by name"):
            codec.entry(store, "m", lost)


def test_definitions_are_marked_and_go_by_value(store):
    main = notebook(CELLS)
    entry = codec.entry(store, "scale", main["scale"], main=main)

    assert entry["definition"] is True and codec.load(store, entry, main={"factor": 1, "math": math})(2) == 4
    assert "definition" not in codec.entry(store, "x", [1])
    by_name = codec.entry(store, "scale", main["scale"], main=main, root=False)
    assert codec.load(store, by_name, main=main) is main["scale"]


def test_a_table_has_a_preview_of_its_first_rows(store):
    entry = codec.entry(store, "df", pd.DataFrame({"name<b>": ["<script>"] * 100, "n": range(100)}))

    assert entry["repr"] == "DataFrame, 100 rows × 2 columns: name<b>, n" and entry["shape"] == [100, 2]
    assert "<table" in entry["html"] and "<script>" not in entry["html"] and entry["html"].count("<tr") == 6
    assert "<table" in codec.entry(store, "s", pd.Series([1, 2]))["html"]
    wide = codec.entry(store, "w", pd.DataFrame({"a-rather-long-name-" * 5 + str(i): ["text " * 20] * 9 for i in range(50)}))
    assert len(wide.get("html", "")) <= 4096


class Rude:
    def __repr__(self):
        raise RuntimeError("no repr")

    @property
    def shape(self):
        raise RuntimeError("no shape")


@dataclasses.dataclass
class Config:
    rates: list
    hidden: int = dataclasses.field(default=1, repr=False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Rude(), "<test_codec.Rude, whose repr raises RuntimeError>"),
        (list(range(1_000_000)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        ({i: i for i in range(1_000_000)}, "{0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, ...}"),
        (collections.defaultdict(list, {"a": list(range(100))}), "defaultdict({'a': [0, 1, 2, 3, 4, 5, 6, 7, ...]})"),
        (Config(list(range(1_000_000))), "Config(rates=[0, 1, 2, 3, 4, 5, 6, 7, ...])"),
        (b"x" * 10_000_000, "b'" + "x" * 60 + "'…"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
        (object(), "<object object>"),
        (set(), "set()"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_repr_is_short_and_never_raises(value, shown):
    encoded = codec.encode(value) if not isinstance(value, Rude) else None
    text = encoded.header["repr"] if encoded else codec.encode(value).header["repr"]

    assert text == shown.replace("test_codec", Rude.__module__)


def test_a_loaded_value_is_plain_pickle_free_of_flowbook_for_plain_values():
    stream, _ = codec.parts_of(codec.encode({"a": [1, 2.5, "x"]}).join())

    assert pickle.loads(stream) == {"a": [1, 2.5, "x"]} and b"flowbook" not in bytes(stream)


def test_decoding_in_threads_keeps_their_mains_apart():
    mains = [notebook(CELLS) for _ in range(8)]
    data = [codec.encode(main["Point"](i), main=main).join() for i, main in enumerate(mains)]
    wrong = []

    def work(i):
        for _ in range(50):
            if type(codec.decode(data[i], main=mains[i])) is not mains[i]["Point"]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


WRITER = (
    CELLS
    + """
import json, sys
from flowbook.store import codec
from flowbook.store.files import FilesStore
store, main = FilesStore(sys.argv[1]), vars(sys.modules["__main__"])
values = {"Point": Point, "scale": scale, "fib": fib, "p": Point(3), "step": counter(), "big": [Point(i) for i in range(3000)]}
print(json.dumps({n: codec.entry(store, n, v, main=main, keys=lambda q: "key") for n, v in values.items()}))
"""
)
READER = """
import json, math, sys
from flowbook.store import codec
from flowbook.store.files import FilesStore
store, main, factor = FilesStore(sys.argv[1]), vars(sys.modules["__main__"]), 7
for name, entry in json.load(sys.stdin).items():
    main[name] = codec.load(store, entry, name=name, main=main)
assert type(p) is Point and p == Point(3) and p.scaled() == 21 and isinstance(big[2999], Point)
assert scale(1) == 14 and scale.__globals__ is main and scale.__module__ == "__main__" and fib(30) == 832040 and step() == 7
import multiprocessing, pickle
assert pickle.loads(pickle.dumps(p)) == p and pickle.loads(pickle.dumps(scale)) is scale
print("fine")
"""


def test_two_processes_with_a_real_main_understand_each_other(tmp_path):
    for name, text in (("writer.py", WRITER), ("reader.py", READER)):
        (tmp_path / name).write_text(text)
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    written = run([sys.executable, "writer.py", str(tmp_path / "store")])
    assert written.stderr == ""
    read = run([sys.executable, "reader.py", str(tmp_path / "store")], input=written.stdout)

    assert (read.stdout, read.stderr) == ("fine\n", "")


def test_a_fitted_model_travels_and_is_unchanged(store):
    ensemble = pytest.importorskip("sklearn.ensemble")
    x = np.random.default_rng(0).random((200, 4))
    model = ensemble.RandomForestClassifier(10, random_state=0).fit(x, x[:, 0] > 0.5)
    entry = codec.entry(store, "model", model)
    back = codec.load(store, entry)

    assert (back.predict(x) == model.predict(x)).all() and unchanged(store, entry, back) and same(back, model)
    back.fit(x, x[:, 1] > 0.5)
    assert not unchanged(store, entry, back)
