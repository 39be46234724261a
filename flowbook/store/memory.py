"""The memory store: the same promises in one process's memory, for tests and for trying things."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowbook.errors import StoreError, StoreMissing
from flowbook.store import layout
from flowbook.store.base import Aged, Buffer, Data, buffers, check_key, check_range, digest


class MemoryStore:
    """Objects in a dict. Another process cannot open it."""

    mapped = False
    key_file: str | None = None
    where = "this process's memory"

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._used: dict[str, float] = {}  # when each was written or kept, by time.monotonic
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, key: str) -> bytes:
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise StoreMissing(f"no object {key} in this memory store") from None

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        return self.get(key)[start:stop]

    def create(self, key: str, data: Data) -> bool:
        check_key(key)
        if key in self._objects:
            return False
        content = _joined(data)
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key], self._used[key] = content, time.monotonic()
            return True

    def put(self, key: str, data: Data) -> None:
        content = _joined(data)
        with self._lock:
            self._objects[check_key(key)], self._used[key] = content, time.monotonic()

    def exists(self, key: str) -> bool:
        return check_key(key) in self._objects

    def keep(self, key: str) -> bool:
        with self._lock:
            if found := check_key(key) in self._objects:
                self._used[key] = time.monotonic()
            return found

    def size(self, key: str) -> int:
        return len(self.get(key))

    def list(self, prefix: str) -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        with self._lock:
            found = sorted(key for key in self._objects if key.startswith(prefix))
        yield from found

    def names(self, folder: str) -> Iterable[str]:
        start = f"{check_key(folder)}/"
        with self._lock:
            return sorted({key[len(start) :].partition("/")[0] for key in self._objects if key.startswith(start)})

    def aged(self, prefix: str) -> Iterator[Aged]:
        now = time.monotonic()
        for key in self.list(prefix):
            content = self._objects.get(key)
            if content is not None:
                yield Aged(key, now - self._used.get(key, now), len(content))

    def delete_folder(self, folder: str) -> None:
        for key in self.list(f"{check_key(folder)}/"):
            self.delete(key)

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)
            self._used.pop(key, None)

    def open(self, key: str) -> memoryview:
        return memoryview(bytearray(self.get(key)))

    def adopt_file(self, key: str, path: Path | str) -> bool:
        source = Path(path)
        made = self.create(key, source.read_bytes())
        source.unlink()
        return made

    def put_blob(self, parts: Sequence[Buffer]) -> str:
        address = digest(parts)
        self.create(layout.blob(address), parts)
        return address

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return None

    def local_dir(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="flowbook-")
        return Path(self._folder.name)

    def describe(self) -> dict[str, Any]:
        raise StoreError("a memory store is this process's own; another process cannot open it. Use a files store.")


def _joined(data: Data) -> bytes:
    return b"".join(buffers(data))
