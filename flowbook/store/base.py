"""What a store is: keys and bytes, with one promise that everything else rests on.

The promise: `create` makes an object only if its key is free, whole or not at all, and among any number of concurrent
writers exactly one is told True. Commits, the log and run numbers are made with it. `put` replaces and is for hints only.
Nothing here knows what the bytes mean; `layout.py` names the keys, `codec.py` reads and writes values.

A key is like ``flows/demo/12/train/2.COMMIT``: parts joined by ``/``; a part is not empty and does not begin with a dot.
No key is a folder of another. The first parts ``tmp`` and ``local`` belong to the store itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flowbook._version import __version__
from flowbook.errors import StoreError, StoreTooNew

Buffer = bytes | bytearray | memoryview
Data = Buffer | Iterable[Buffer]

FORMAT = 1  # of the layout and of all that is written; a store of a higher one is refused
OWN_PARTS = ("tmp", "local")  # first parts of a key which a store keeps for itself


class Aged(NamedTuple):
    """An object as garbage collection sees it."""

    key: str
    age_s: float  # since it was written or kept, by the store's own clock, never by that of this machine
    size: int  # bytes


class Store(Protocol):
    """`mapped`: `open` maps a file, and costs the same for one byte as for all.

    Raises StoreMissing where a key must exist, StoreFull and StoreReadOnly on writes, StoreError otherwise."""

    mapped: bool
    key_file: str | None  # where the key is with which results are signed (trust.py); None: nothing here needs a signature

    @property
    def where(self) -> str:
        """Where it is, for people: a folder, or ``s3://bucket/prefix``."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object."""
        ...

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes start to stop of the object, like a slice: shorter at its end. Negative places raise StoreError."""
        ...

    def create(self, key: str, data: Data) -> bool:
        """Create if absent; True if this call made it. `data` is read only if the key looks free, and never joined."""
        ...

    def put(self, key: str, data: Data) -> None:
        """Write, replacing what is there, whole or not at all. For hints; what must be true is created."""
        ...

    def exists(self, key: str) -> bool: ...

    def keep(self, key: str) -> bool:
        """Whether the object exists; if it does, it counts as used now when garbage is collected by age."""
        ...

    def size(self, key: str) -> int:
        """Bytes."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """All keys that begin with `prefix` (any string, not only whole parts), sorted."""
        ...

    def names(self, folder: str) -> Iterable[str]:
        """What stands directly in a folder (``flows/demo``): the next part of each key there, once, sorted."""
        ...

    def aged(self, prefix: str) -> Iterator[Aged]:
        """Like `list`, with age and size. An object that is removed meanwhile may be missing."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens if it is not there."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Remove all objects below ``flows/demo/12``; nothing happens if there are none. Not whole or not at all."""
        ...

    def open(self, key: str) -> memoryview:
        """The object as writable memory that is private: what is written there is seen by nobody else and never stored."""
        ...

    def adopt_file(self, key: str, path: Path | str) -> bool:
        """Move a finished local file into the store as `key`. It is gone afterwards, also if the key was taken (False)."""
        ...

    def put_blob(self, parts: Sequence[Buffer]) -> str:
        """Store content under its address and give that address (sha256 in hex). Known content writes nothing."""
        ...

    def local_path(self, key: str) -> Path | None:
        """Where the object is as a file of this machine, never to be written; None where there is no such file."""
        ...

    def local_dir(self) -> Path:
        """A folder of this machine for files that are made from objects, and can be made again."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON from which another process opens this store by `open_store`."""
        ...


def open_store(description: Mapping[str, Any]) -> Store:
    """The store that `describe` described: ``{"kind": "files", "root": "/…/project"}``, or ``{"kind": "s3", "bucket", "prefix", …}``.

    Raises StoreError for any other. Nothing is asked of a server here.
    """
    kind = description.get("kind")
    if kind == "files":
        from flowbook.store.files import FilesStore

        root = description.get("root")
        if not isinstance(root, str) or not root:
            raise StoreError(f"a files store needs a root folder, got {root!r}")
        return FilesStore(root, durable=bool(description.get("durable", False)))
    if kind == "s3":
        from flowbook.store.s3 import S3Store

        given = {name: value for name, value in description.items() if name != "kind"}
        unknown = given.keys() - {"bucket", "prefix", "endpoint", "region", "profile", "encryption", "key_file"}
        if unknown or not isinstance(given.get("bucket"), str) or not all(isinstance(value, str) for value in given.values()):
            raise StoreError(f"an S3 store needs a bucket and knows no {', '.join(sorted(unknown)) or 'such values'}: {given!r}")
        return S3Store(**given)
    raise StoreError(f"no kind of store {kind!r}; known: 'files', 's3'")


def check_key(key: str) -> str:
    """The key itself, if it is one. Raises StoreError: a key never leads out of the store nor into its own folders."""
    parts = key.split("/")
    if "\0" in key or any(not part or part.startswith(".") for part in parts):
        raise StoreError(f"not a key: {key!r} (parts joined by '/', none empty, none beginning with a dot)")
    if parts[0] in OWN_PARTS:
        raise StoreError(f"not a key: {key!r} ({parts[0]!r} belongs to the store itself)")
    return key


def check_format(text: bytes, path: str, store: str, other: str) -> dict[str, Any]:
    """What store.json at `path` says, if this flowbook reads the format of that store. Raises StoreError, StoreTooNew; `other` is what
    to use instead of a damaged one."""
    try:
        data: dict[str, Any] = json.loads(text)
        number = data["format"]
        if type(number) is not int:
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{path} is damaged: it should hold the store's format. Restore it, or use {other}.") from None
    if number > FORMAT:
        writer = data.get("written_by", "unknown")
        raise StoreTooNew(
            f"the store {store} was written by flowbook {writer} (format {number}); this is flowbook {__version__}, "
            f"which reads up to format {FORMAT}. Upgrade: pip install -U flowbook"
        )
    return data


def check_range(key: str, start: int, stop: int) -> None:
    if start < 0 or stop < start:
        raise StoreError(f"not a range of {key}: {start} to {stop}")


def buffers(data: Data) -> Iterable[Buffer]:
    """The pieces of `data`; one buffer is one piece."""
    return [data] if isinstance(data, (bytes, bytearray, memoryview)) else data


def digest(parts: Iterable[Buffer]) -> str:
    """sha256 in hex of the pieces, one after the other."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()
