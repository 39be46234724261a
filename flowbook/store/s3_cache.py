"""Objects of an S3 store as files of this machine: what was read once is mapped, and read from the network no more.

Only what never changes is here: blobs, by their content, and COMMITs, by their key within one store (its id is part of the
folder's name, so that a bucket that was emptied and filled anew is another store). A file appears finished or not at all, and may
be removed at any time, also while it is mapped. The files that were used longest ago go when all together are too many bytes.
"""

# Paths are plain strings here, as in files.py: this is on the way of every small read.
# ruff: noqa: PTH103, PTH105, PTH108, PTH116, PTH118, PTH120, PTH123

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from flowbook.store.base import Buffer

MOST_BYTES = 20_000_000_000
MODE = 0o400  # a File that a step loads may be a link to one of these
LEAST_SHARE = 4  # of what is free on the disk, at most one of so many parts is taken
SWEEP_EVERY = 0.05  # of the bytes allowed: so much is written between two looks at all files


def folder_for(name: str) -> Path:
    """The folder of this machine for a store of that name; made, open to its owner only."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")  # noqa: PTH111
    import tempfile

    for place in (f"{base}/flowbook", f"{tempfile.gettempdir()}/flowbook-{os.getuid()}"):  # the second: a pod whose home cannot be written
        folder = Path(place) / "stores" / name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    return Path(tempfile.mkdtemp(prefix="flowbook-"))


class Cache:
    """Files under `folder`, by name. Nothing here raises for a disk that is full or read-only: then there is no cache."""

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self._folder = str(folder)
        self._most = most_bytes
        self._written = 0.0  # bytes since the last sweep; the first write looks

    def path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            with open(self.path(name), "rb", buffering=0) as file:
                found = file.readall()
            self._used(name)
            return found
        except OSError:
            return None

    def map(self, name: str) -> memoryview | None:
        """The file as private writable memory; None if it is not there."""
        try:
            with open(self.path(name), "rb") as file:
                if not os.fstat(file.fileno()).st_size:
                    return memoryview(bytearray())
                found = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            self._used(name)
            return found
        except OSError:
            return None

    def _used(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.path(name))

    def write(self, name: str, parts: list[Buffer]) -> None:
        """Keep content that is here anyway."""
        size = sum(memoryview(part).nbytes for part in parts)
        if not self._room(size):
            return
        temp = self._temp(name)
        try:
            os.makedirs(os.path.dirname(temp), exist_ok=True)
            with open(temp, "xb") as file:
                for part in parts:
                    file.write(part)
                os.fchmod(file.fileno(), MODE)
            os.replace(temp, self.path(name))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temp)

    @contextlib.contextmanager
    def fill(self, name: str, size: int) -> Iterator[memoryview | None]:
        """Memory of `size` bytes that is the file once the block ends without an error; None where there is no room for it."""
        temp, memory = self._temp(name), None
        try:
            if size and self._room(size):
                os.makedirs(os.path.dirname(temp), exist_ok=True)
                with open(temp, "x+b") as file:
                    os.fchmod(file.fileno(), MODE)
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would be a SIGBUS
                        memory = mmap.mmap(file.fileno(), size)
        except OSError:
            memory = None
        try:
            yield memoryview(memory) if memory is not None else None
            if memory is not None:
                with contextlib.suppress(OSError):
                    os.replace(temp, self.path(name))
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temp)

    def drop(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path(name))

    def _temp(self, name: str) -> str:
        return f"{self.path(name)}.{os.getpid()}-{os.urandom(6).hex()}.part"

    # ---- bounds -------------------------------------------------------------------------------------------------------------------

    def _room(self, size: int) -> bool:
        most = self._limit()
        if size > most / 2:
            return False
        if not self._written or self._written + size > SWEEP_EVERY * most:
            self._sweep(most - size)
            self._written = 1.0
        self._written += size
        return True

    def _limit(self) -> float:
        if self._most is not None:
            return self._most
        try:
            os.makedirs(self._folder, exist_ok=True)
            space = os.statvfs(self._folder)
        except OSError:
            return 0
        return min(MOST_BYTES, space.f_bavail * space.f_frsize / LEAST_SHARE)

    def _sweep(self, most: float) -> None:
        """Remove what was used longest ago, and what killed processes left half written."""
        import time

        found, total, now = [], 0, time.time()
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    told = os.stat(path)
                except OSError:
                    continue
                if name.endswith(".part"):
                    if now - told.st_mtime > 24 * 3600:
                        with contextlib.suppress(OSError):
                            os.unlink(path)
                    continue
                found.append((told.st_mtime, told.st_size, path))
                total += told.st_size
        for _, size, path in sorted(found):
            if total <= most:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size
