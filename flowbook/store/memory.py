"""The memory store: the same promises in one process's memory, for tests and for trying things."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowbook.errors import StoreError, StoreMissing
from flowbook.store import layout
from flowbook.store.base import Buffer, Data, buffers, check_key, check_range, digest


class MemoryStore:
    """Objects in a dict. Another process cannot open it."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
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
            self._objects[key] = content
            return True

    def put(self, key: str, data: Data) -> None:
        content = _joined(data)
        with self._lock:
            self._objects[check_key(key)] = content

    def exists(self, key: str) -> bool:
        return check_key(key) in self._objects

    def keep(self, key: str) -> bool:
        return self.exists(key)

    def size(self, key: str) -> int:
        return len(self.get(key))

    def list(self, prefix: str) -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        with self._lock:
            found = sorted(key for key in self._objects if key.startswith(prefix))
        yield from found

    def names(self, folder: str) -> list[str]:
        start = f"{check_key(folder)}/"
        with self._lock:
            return sorted({key[len(start) :].partition("/")[0] for key in self._objects if key.startswith(start)})

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

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
