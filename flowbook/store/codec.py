"""Values as bytes and back. `decode` is the one choke point: nothing else in flowbook unpickles.

The file format, which an entry's blob or inline text holds:

    b"FLOWBK1\\n"                       magic
    u32 little-endian                  length of the header
    header, JSON                       {"type", "size", "repr"?, "shape"?, "dtype"?, "pickle": [offset, length],
                                        "buffers": [[offset, length], …], "refs": [[qualname, key], …], "blobs"?: [hash, …], "rows"?: dtype}
    zeros up to a multiple of 64       the payload begins here; offsets count from here
    pickle, protocol 5
    raw out-of-band buffers            each at a multiple of 64

So an array is opened by mapping the file: nothing is copied, and writing into it stays private. `refs` are definitions of the
notebook's main namespace that the value needs, `blobs` are further blobs that it reads when loaded. With `rows` the only buffer is a
plain array's rows, one after the other, which can be read in part.

Functions named `_…` here stand in pickles by name: they may grow, but never move.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import importlib
import json
import pickle
import struct
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from flowbook.errors import ArtifactError, FlowbookError, NotPicklable
from flowbook.store import canon, layout, preview, trust
from flowbook.store.base import Buffer, Store

MAGIC = b"FLOWBK1\n"
ALIGN = 64
INLINE_BYTES = 16 * 1024  # values up to this size stand in the COMMIT itself
KEYED_BYTES = 100_000_000  # a larger value is not hashed a second time for its key: its address has to tell it
EXACT_INT = 2**53  # larger ones do not survive readers that know only doubles

Keys = Callable[[str], "str | None"]
Resolve = Callable[[str, "str | None"], Any]
Main = types.ModuleType | dict[str, Any] | None

_ATOMS = (type(None), bool, int, float, complex, str, bytes)


# ---- encode ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A value as bytes in `parts`, which are views of the value's own memory: write them before the value changes.

    `refs`: qualified names of main's definitions that it needs; `globals`: names of main which functions inside it use;
    `modules`: root names of modules it imports when loaded; `blobs`: further blobs it reads.
    """

    parts: list[Buffer]
    header: dict[str, Any]
    refs: frozenset[str] = frozenset()
    globals: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        return sum(memoryview(part).nbytes for part in self.parts)

    def join(self) -> bytes:
        return b"".join(self.parts)


@dataclass
class Pickled:
    """The pickle stream in pieces, and the buffers that stand beside it."""

    stream: list[Buffer]
    buffers: list[memoryview]
    refs: dict[str, str | None] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)


def encode(
    value: Any,
    *,
    name: str = "value",
    main: Main = None,
    root: bool = False,
    keys: Keys | None = None,
    store: Store | None = None,
    previews: bool = True,
) -> Encoded:
    """The value in the file format above, without joining or copying its buffers.

    `main` holds the notebook's definitions, which go by name; `keys(qualname)` tells the key of such a definition. With `root`, a
    value that is itself a definition goes by value. `store` takes the content of File and Directory values; without it they are
    only paths. Raises NotPicklable with the path to the culprit, beginning with `name`.
    """
    pickled = dump(value, name=name, main=main, root=root, keys=keys, store=store)
    header: dict[str, Any] = {"type": preview.type_name(value), "size": 0}
    length = sum(memoryview(part).nbytes for part in pickled.stream)
    header["size"] = length + sum(view.nbytes for view in pickled.buffers)
    if previews:
        header |= preview.brief(value, header["size"])
    end, places = length, []
    for view in pickled.buffers:
        start = aligned(end)
        end = start + view.nbytes
        places.append([start, view.nbytes])
    header |= {"pickle": [0, length], "buffers": places, "refs": sorted([q, k] for q, k in pickled.refs.items())}
    if pickled.blobs:
        header["blobs"] = sorted(pickled.blobs)
    if (rows := _rows_of(value, pickled.buffers)) is not None:
        header["rows"] = rows
    return Encoded(
        [_head(header), *pickled.stream, *_padded(length, pickled.buffers)],
        header,
        frozenset(pickled.refs),
        frozenset(pickled.globals),
        frozenset(pickled.modules),
        frozenset(pickled.blobs),
    )


def dump(
    value: Any, *, name: str = "value", main: Main = None, root: bool = False, keys: Keys | None = None, store: Store | None = None
) -> Pickled:
    """The pickle alone, as `encode` writes it. Raises NotPicklable."""
    if type(value) in _ATOMS:
        return Pickled([pickle.dumps(value, 5)], [])
    scope = _namespace(main)
    try:
        return _dump(value, scope, value if root else None, keys, store)
    except FlowbookError:
        raise
    except Exception as error:
        path, cause = _culprit(value, name, error, lambda part: _dump(part, scope, value if root else None, keys, store))
        raise NotPicklable(path, cause) from error


def _dump(value: Any, main: dict[str, Any] | None, root: Any, keys: Keys | None, store: Store | None) -> Pickled:
    from flowbook.store import pickler

    pieces = pickler.Pieces()
    buffers: list[pickle.PickleBuffer] = []
    writer = pickler.Pickler(pieces, buffers.append, main=main, root=root, keys=keys, store=store)
    writer.dump(value)
    views = [buffer.raw() for buffer in buffers]
    return Pickled(pieces.parts, views, writer.refs, writer.globals, writer.modules, writer.blobs)


def _head(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    head = MAGIC + struct.pack("<I", len(text)) + text
    return head.ljust(aligned(len(head)), b"\0")


def _padded(end: int, buffers: list[memoryview]) -> Iterator[Buffer]:
    for view in buffers:
        if gap := aligned(end) - end:
            yield bytes(gap)
        yield view
        end = aligned(end) + view.nbytes


def aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN


def _namespace(main: Main) -> dict[str, Any] | None:
    return vars(main) if isinstance(main, types.ModuleType) else main


# ---- what could not be pickled ---------------------------------------------------------------------------------------

_DEPTH, _CHILDREN, _SEARCH_S = 30, 10_000, 10.0  # a search for the culprit ends there and names what it found so far


def _culprit(value: Any, path: str, error: Exception, attempt: Callable[[Any], Any]) -> tuple[str, str]:
    """The path to the smallest part that fails on its own, found by trying the parts of what fails, and why it fails."""
    seen: set[int] = set()
    kept: list[Any] = []  # a part may exist only for the search; its id must not be given to another
    deadline = time.monotonic() + _SEARCH_S
    for _ in range(_DEPTH):
        seen.add(id(value))
        kept.append(value)
        for count, (label, part) in enumerate(_parts(value)):
            if count >= _CHILDREN or time.monotonic() > deadline:
                break
            if id(part) in seen or type(part) in _ATOMS:
                continue
            try:
                attempt(part)
            except FlowbookError:
                raise
            except Exception as found:
                path, value, error = path + label, part, found
                break
        else:
            break
        if id(value) in seen or time.monotonic() > deadline:
            break
    return path, f"{type(error).__name__}: {error}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling this value pickles in turn, each with the piece of path that leads to it."""
    from flowbook.store import pickler

    if type(value) is dict:
        yield from _items(list(value.items()))
    elif type(value) in (list, tuple):
        yield from ((f"[{i}]", part) for i, part in enumerate(list(value)))
    elif type(value) in (set, frozenset):
        yield from ((f"{{{preview.text(part, 40)}}}", part) for part in list(value))
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, type):
        yield from ((f".{name}", part) for name, part in list(vars(value).items()) if name not in ("__dict__", "__weakref__"))
    elif isinstance(value, (staticmethod, classmethod)):
        yield "", value.__func__
    elif isinstance(value, property):
        yield from ((f".{name}", getattr(value, name)) for name in ("fget", "fset", "fdel"))
    elif pickler.is_definition(value):
        yield ".__wrapped__", value.__wrapped__
    else:
        yield from _reduced_parts(value)


def _items(items: list[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    for key, part in items:
        label = preview.text(key, 40)
        yield f"[{label}]", part
        yield f" key {label}", key


def _function_parts(value: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            yield f".__closure__[{name!r}]", cell.cell_contents
        except ValueError:
            continue  # an empty cell
    yield from ((f".__defaults__[{i}]", part) for i, part in enumerate(value.__defaults__ or ()))
    yield from ((f".__kwdefaults__[{name!r}]", part) for name, part in (value.__kwdefaults__ or {}).items())
    yield from ((f".{name}", part) for name, part in vars(value).items())
    yield from ((f".__annotations__[{name!r}]", part) for name, part in value.__annotations__.items())


def _reduced_parts(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced = value.__reduce_ex__(5)
    except Exception:
        return  # the value itself is the culprit
    if not isinstance(reduced, tuple):
        return
    state, listed, keyed = (*reduced[2:5], None, None, None)[:3]
    slots = state[1] if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict) else None
    for attributes in (state if isinstance(state, dict) else state[0] if slots is not None else None, slots):
        if isinstance(attributes, dict):
            yield from ((f".{name}", part) for name, part in attributes.items())
    if state is not None and not isinstance(state, dict) and slots is None:
        yield "", state
    yield from ((f"[{i}]", part) for i, part in enumerate(listed or ()))
    yield from _items(list(keyed or ()))
    yield from (("", part) for part in reduced[1])


# ---- decode ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loading:
    """What the functions that stand in pickles need to know of the load they are called in."""

    name: str
    main: dict[str, Any] | None
    resolve: Resolve | None = None
    keys: Keys | None = None
    notes: list[str] | None = None
    store: Store | None = None

    @property
    def scope(self) -> dict[str, Any]:
        return vars(sys.modules["__main__"]) if self.main is None else self.main


_current: ContextVar[Loading] = ContextVar("flowbook_loading", default=Loading("value", None))  # noqa: B039 (frozen)


def loading() -> Loading:
    """The load that is going on, for functions that stand in pickles."""
    return _current.get()


def decode(
    buffer: Buffer,
    *,
    name: str = "value",
    main: Main = None,
    resolve: Resolve | None = None,
    keys: Keys | None = None,
    notes: list[str] | None = None,
    store: Store | None = None,
    trusted: bool = False,
) -> Any:
    """The value that `encode` wrote. `trusted`: a document with the project's signature names these bytes; asked of stores that sign. Arrays lie over `buffer` itself if that is writable, else over a copy.

    A definition of the notebook is taken from `main` (this process's own by default), else from `resolve(qualname, key)`. With
    `keys`, a definition that differs from the one at the time of saving is told in `notes`. Raises ArtifactError, naming `name`,
    for damaged data and for whatever the value needs and is not there.
    """
    if store is not None and store.key_file is not None and not trusted:
        raise trust.refusal(store, name)
    view = memoryview(buffer).cast("B")
    header, start = _read_header(view, name)
    stream = _piece(view, start, header.get("pickle"), name)
    places = header.get("buffers", [])
    if not isinstance(places, list):
        raise _damaged(name, "its header lists no buffers")
    pieces: list[Buffer] = [_piece(view, start, place, name) for place in places]
    if view.readonly:
        pieces = [bytearray(piece) for piece in pieces]  # an array that was writable must be so again
    token = _current.set(Loading(name, _namespace(main), resolve, keys, notes, store))
    try:
        return pickle.loads(stream, buffers=pieces)
    except (FlowbookError, MemoryError):
        raise
    except Exception as error:
        raise _unloadable(name, error) from error
    finally:
        _current.reset(token)


def read_header(buffer: Buffer, *, name: str = "value") -> dict[str, Any]:
    """The header alone; nothing is unpickled. Raises ArtifactError if it is damaged."""
    return _read_header(memoryview(buffer).cast("B"), name)[0]


def parts_of(buffer: Buffer, *, name: str = "value") -> tuple[memoryview, list[memoryview]]:
    """The pickle stream and the buffers of an encoded value, for comparing; nothing is unpickled."""
    view = memoryview(buffer).cast("B")
    header, start = _read_header(view, name)
    return _piece(view, start, header.get("pickle"), name), [_piece(view, start, place, name) for place in header.get("buffers", [])]


def _read_header(view: memoryview, name: str) -> tuple[dict[str, Any], int]:
    if len(view) < 12 or bytes(view[:8]) != MAGIC:
        raise _damaged(name, "it does not begin as a saved value does" if len(view) >= 12 else f"only {len(view)} bytes are left")
    (length,) = struct.unpack("<I", view[8:12])
    if len(view) < 12 + length:
        raise _damaged(name, f"it is cut off in its header, after {len(view)} bytes")
    try:
        header = json.loads(bytes(view[12 : 12 + length]))
    except ValueError:
        raise _damaged(name, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(name, "its header is not an object")
    return header, aligned(12 + length)


def _piece(view: memoryview, start: int, place: Any, name: str) -> memoryview:
    if not (isinstance(place, list) and len(place) == 2 and all(type(number) is int and number >= 0 for number in place)):
        raise _damaged(name, "its header gives no place for a part of it")
    first, last = start + place[0], start + place[0] + place[1]
    if last > len(view):
        raise _damaged(name, f"it is cut off: {len(view)} bytes of at least {last}")
    return view[first:last]


def _damaged(name: str, why: str) -> ArtifactError:
    return ArtifactError(f"the stored data of {name} is damaged: {why}. Run its step again (%flow run --fresh).")


def _unloadable(name: str, error: Exception) -> ArtifactError:
    if isinstance(error, ModuleNotFoundError):
        return ArtifactError(f"{name} cannot be loaded: it needs the module {error.name!r}, which is not installed here.")
    if isinstance(error, (pickle.UnpicklingError, EOFError, struct.error, KeyError, IndexError, UnicodeDecodeError)):
        return _damaged(name, f"{type(error).__name__}: {error}")
    return ArtifactError(
        f"{name} cannot be loaded: {type(error).__name__}: {error}. It may have been saved with other versions of its packages."
    )


# ---- a part of an array ------------------------------------------------------------------------------------------------


def _rows_of(value: Any, buffers: list[memoryview]) -> str | None:
    """The dtype of an array whose rows stand one after the other in the one buffer; None for all else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or not value.ndim or len(buffers) != 1:
        return None
    plain = value.flags.c_contiguous and not value.dtype.hasobject and value.dtype.names is None and value.dtype.subdtype is None
    return str(value.dtype.str) if plain and buffers[0].nbytes == value.nbytes else None


def rows(store: Store, entry: Mapping[str, Any], start: int | None = None, stop: int | None = None, *, name: str = "value") -> Any:
    """``array[start:stop]`` of an entry that holds a numpy array, as an array of its own: of a large one only the header and these rows
    are read, and nothing is unpickled. Raises ArtifactError for what is no plain array, StoreError.
    """
    if "blob" not in entry:
        data = memoryview(stored(store, entry, name=name))
        return _rows(data.__getitem__, len(data), start, stop, name)
    key = layout.blob(entry["blob"])
    return _rows(lambda place: store.get_range(key, place.start, place.stop), HEAD_BYTES, start, stop, name)


HEAD_BYTES = 4096  # read at first: nearly every header is shorter


def _rows(read: Callable[[slice], Buffer], size: int, start: int | None, stop: int | None, name: str) -> Any:
    head = memoryview(read(slice(0, size)))
    if len(head) >= 12 and (length := 12 + struct.unpack("<I", head[8:12])[0]) > len(head):
        head = memoryview(read(slice(0, length)))
    header, origin = _read_header(head, name)
    if "rows" not in header:
        told = f"{header.get('type', 'unknown')}, and not a plain array whose rows stand one after the other"
        raise ArtifactError(f"{name} cannot be read in part: it is of type {told}. Load all of it.")
    import numpy

    try:
        dtype, shape, (place, nbytes) = numpy.dtype(header["rows"]), tuple(header["shape"]), header["buffers"][0]
        first, last, _ = slice(start, stop).indices(shape[0])
        row = nbytes // shape[0] if shape[0] else 0
        last = max(first, last)
        data = bytearray(read(slice(origin + place + first * row, origin + place + last * row)))
        return numpy.frombuffer(data, dtype).reshape((last - first, *shape[1:]))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise _damaged(name, f"{type(error).__name__}: {error}") from None


# ---- functions that stand in pickles ---------------------------------------------------------------------------------


def look_up(namespace: Mapping[str, Any], qualname: str) -> Any:
    """What a namespace holds under a dotted name, None if nothing."""
    first, *rest = qualname.split(".")
    found = namespace.get(first)
    if getattr(type(found), "_flowbook_absent", False):
        return None
    for part in rest:
        try:
            found = getattr(found, part)
        except Exception:  # a property of a user's class may raise anything
            return None
    return found


def _main_ref(qualname: str, key: str | None) -> Any:
    now = loading()
    found = look_up(now.scope, qualname)
    if found is None and now.resolve is not None:
        try:
            found = now.resolve(qualname, key)
        except LookupError:  # not known there either
            found = None
    elif found is not None and now.keys is not None and now.notes is not None and key is not None:
        present = now.keys(qualname)
        note = f"{qualname} has changed since {now.name} was saved; {now.name} uses the present one"
        if present not in (None, key) and note not in now.notes:
            now.notes.append(note)
    if found is None:
        raise ArtifactError(f"{now.name} needs {qualname!r} of the notebook, which is not defined here. Run the cell that defines it.")
    return found


def _main_function(code: types.CodeType, cells: int | None) -> types.FunctionType:
    closure = None if cells is None else tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(code, loading().scope, None, None, closure)


def _set_function_state(function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, slots = state
    vars(function).update(attributes)
    slots.pop("_cloudpickle_submodules", None)  # stood there only to be imported
    for own, loaded in zip(function.__closure__ or (), slots.pop("__closure__") or (), strict=True):
        try:
            own.cell_contents = loaded.cell_contents
        except ValueError:
            continue  # an empty cell
    for name, part in slots.items():
        setattr(function, name, part)


def _rebuild_lru(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _rebuild_view(data: Buffer, form: str, shape: tuple[int, ...]) -> memoryview:
    view: Any = memoryview(data)
    return cast(memoryview, view.cast(form, shape)) if (form, shape) != ("B", view.shape) else cast(memoryview, view)


# ---- entries ---------------------------------------------------------------------------------------------------------


def is_json(value: Any) -> bool:
    """Whether the value stands in an entry as JSON: exact types only, and only what comes back equal."""
    kind = type(value)
    if kind is int:
        return bool(-EXACT_INT < value < EXACT_INT)
    if kind is float:
        return bool(value - value == 0)  # not nan, not infinite
    if kind is str:
        try:
            return len(value) <= INLINE_BYTES and len(value.encode()) <= INLINE_BYTES
        except UnicodeEncodeError:
            return False  # half of a surrogate pair
    return value is None or kind is bool


def entry(store: Store, name: str, value: Any, *, main: Main = None, keys: Keys | None = None, root: bool = True) -> dict[str, Any]:
    """Save a value and give its entry (docs/internals.md). Raises NotPicklable, StoreError.

    A function or class is saved by value; with `root=False` by name if main holds it.
    """
    if isinstance(value, types.ModuleType):
        if value.__name__ == "__main__" or value.__name__ not in sys.modules:
            raise NotPicklable(name, f"the module {value.__name__} cannot be imported by name")
        found = trust.Signed(kind="module", module=value.__name__, type="module", repr=f"<module {value.__name__!r}>")
        # Which module it is tells its name; which state of it, a local one its content, an installed one its version.
        content = keys(f"module {value.__name__.partition('.')[0]}") if keys is not None else None
        version = content or getattr(value, "__version__", None)
        if isinstance(version, str):
            found["key"] = canon.short_hash(f"{value.__name__} {version}")
        return found
    if is_json(value):
        return _json_entry(value)
    return finish(store, encode(value, name=name, main=main, root=root, keys=keys, store=store), value, main=main, keys=keys)


def finish(store: Store, encoded: Encoded, value: Any, *, main: Main = None, keys: Keys | None = None) -> dict[str, Any]:
    """The entry of a value that is encoded already; its bytes go inline or to a blob. `main` and `keys` as in `encode`."""
    if is_json(value):
        return _json_entry(value)
    from flowbook.store import pickler

    where: dict[str, Any] = trust.Signed(kind="value")
    if encoded.nbytes <= INLINE_BYTES:
        where["inline"] = base64.b64encode(encoded.join()).decode()
    else:
        where["blob"] = store.put_blob(encoded.parts)
    where |= {key: encoded.header[key] for key in ("type", "size", "repr", "shape", "dtype", "previews", "blobs") if key in encoded.header}
    if (html := preview.html(value)) is not None:
        where["html"] = html
    if pickler.is_definition(value):
        where["definition"] = True
    elif encoded.nbytes <= KEYED_BYTES and not canon.by_address(value) and (key := canon.content_key(value, main=main, keys=keys)):
        where["key"] = key
    return where


def _json_entry(value: Any) -> dict[str, Any]:
    found = {"kind": "json", "json": value, "type": preview.type_name(value), "size": len(json.dumps(value))}
    return found | preview.brief(value, found["size"])


def blobs_of(entry: Mapping[str, Any]) -> list[str]:
    """Every blob that loading the entry may read."""
    return [*([entry["blob"]] if "blob" in entry else []), *entry.get("blobs", ())]


def load(
    store: Store,
    entry: Mapping[str, Any],
    *,
    name: str = "value",
    main: Main = None,
    resolve: Resolve | None = None,
    keys: Keys | None = None,
    notes: list[str] | None = None,
) -> Any:
    """The value of an entry. Arrays are private: writing into one changes nothing in the store. Raises ArtifactError, StoreError."""
    kind = entry.get("kind")
    if kind == "json":
        return entry["json"]
    if not trust.holds(store, entry):
        raise trust.refusal(store, name)
    if kind == "module":
        try:
            for submodule in entry.get("submodules", ()):
                with contextlib.suppress(ImportError):  # the body will say what it lacks
                    importlib.import_module(submodule)
            return importlib.import_module(entry["module"])
        except ModuleNotFoundError as error:
            raise _unloadable(name, error) from error
    if kind != "value":
        raise ArtifactError(f"{name} is of the unknown kind {kind!r}; a later flowbook may have written it")
    data = stored(store, entry, name=name)
    return decode(data, name=name, main=main, resolve=resolve, keys=keys, notes=notes, store=store, trusted=True)


def stored(store: Store, entry: Mapping[str, Any], *, name: str = "value") -> Buffer:
    """The encoded bytes of an entry of kind "value": mapped from its blob, or its inline text."""
    if "blob" in entry:
        return store.open(layout.blob(entry["blob"]))
    try:
        return bytearray(base64.b64decode(entry["inline"], validate=True))
    except (KeyError, ValueError, TypeError, binascii.Error):
        raise _damaged(name, "its entry holds neither inline data nor a blob") from None
