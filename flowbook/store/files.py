"""The files store: a project folder on a disk, an object a file.

An object is written to ``tmp/`` under a name of its own and then linked to its key. A hard link fails if the key exists, so the
link is the create-if-absent, and a reader never meets half an object; killed writers leave only files in ``tmp/``. There is no
fsync unless `durable`: results survive killed processes, not a loss of power.
"""

# Paths are plain strings here: the commit of a small task is a few system calls, and Path would double its time.
# ruff: noqa: PTH101, PTH103, PTH105, PTH108, PTH110, PTH112, PTH113, PTH116, PTH120, PTH121, PTH123

from __future__ import annotations

import errno
import json
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowbook._version import __version__
from flowbook.errors import StoreError, StoreFull, StoreMissing, StoreReadOnly
from flowbook.store import layout
from flowbook.store.base import FORMAT, Aged, Buffer, Data, buffers, check_format, check_key, check_range, digest

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
LARGE_BYTES = 16_000_000  # from here on content is hashed and written at the same time
REFRESH_AFTER_S = 12 * 3600.0  # a reused blob older than this is made young again, so that collecting garbage (24 h) spares it


class FilesStore:
    """Objects under `root`, which is made on the first write, open to its owner only."""

    mapped = True
    key_file: str | None = None

    def __init__(self, root: Path | str, *, durable: bool = False) -> None:
        self.root = Path(root).expanduser().absolute()
        self.durable = durable
        self._base = str(self.root)
        self._tmp = f"{self._base}/tmp"
        self._format_known = False

    def __repr__(self) -> str:
        return f"FilesStore({self._base!r})"

    @property
    def where(self) -> str:
        return self._base

    # ---- reading ----

    def get(self, key: str) -> bytes:
        path = self._readable(key)
        try:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        except OSError as error:
            raise _read_error(key, path, error) from error

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        path = self._readable(key)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise _read_error(key, path, error) from error

    def exists(self, key: str) -> bool:
        return os.path.isfile(self._readable(key))

    def size(self, key: str) -> int:
        path = self._readable(key)
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise _read_error(key, path, error) from error

    def open(self, key: str) -> memoryview:
        path = self._readable(key)
        try:
            with open(path, "rb") as file:
                if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
                    return memoryview(bytearray())
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        except OSError as error:
            raise _read_error(key, path, error) from error

    def local_path(self, key: str) -> Path | None:
        path = self._readable(key)
        return Path(path) if os.path.isfile(path) else None

    def list(self, prefix: str) -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        self._check_format()
        yield from self._walk(folder, prefix)

    def names(self, folder: str) -> Iterable[str]:
        path = self._readable(folder)
        try:
            return sorted(name for name in os.listdir(path) if not name.startswith("."))  # noqa: PTH208
        except OSError as error:
            if error.errno in _ABSENT:
                return []
            raise StoreError(f"cannot list {path}: {error.strerror}") from error

    def aged(self, prefix: str) -> Iterator[Aged]:
        if not os.path.isdir(self._base):
            return
        now = self.now()
        for key in self.list(prefix):
            try:
                found = os.stat(f"{self._base}/{key}")
            except FileNotFoundError:
                continue
            yield Aged(key, now - found.st_mtime, found.st_size)

    def now(self) -> float:
        """The time by the clock that sets the times of files here: on a network disk not that of this machine."""
        probe = self._write_temp(b"", 0o600)
        try:
            return os.stat(probe).st_mtime
        finally:
            _remove(probe)

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(f"{self._base}/{folder}") as entries:
                found = [(entry.name + "/" if entry.is_dir() else entry.name) for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise StoreError(f"cannot list {self._base}/{folder}: {error.strerror}") from error
        for name in sorted(found):  # a folder sorts with its "/", which is the order of the whole keys
            key = f"{folder}/{name}" if folder else name
            if not folder and name in ("tmp/", "local/", layout.STORE):
                continue
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key[:-1], prefix)
            elif key.startswith(prefix):
                yield key

    # ---- writing ----

    def create(self, key: str, data: Data) -> bool:
        path = self._path(key)
        self._check_format()
        if os.path.lexists(path):
            return False
        temp = self._write_temp(data, 0o400)  # created objects never change, and their mode says so
        try:
            return self._link(temp, path)
        finally:
            _remove(temp)

    def put(self, key: str, data: Data) -> None:
        path = self._path(key)
        self._check_format()
        temp = self._write_temp(data, 0o600)
        try:
            self._into_place(lambda: os.replace(temp, path), path)
        except OSError as error:
            raise _write_error(path, error) from error
        finally:
            _remove(temp)

    def put_blob(self, parts: Sequence[Buffer]) -> str:
        size = sum(memoryview(part).nbytes for part in parts)
        if size >= LARGE_BYTES and not os.path.exists(self._size_mark(size)):
            return self._put_new_blob(parts, size)
        address = digest(parts)
        key = layout.blob(address)
        if not self.keep(key):
            self.create(key, parts)
        return address

    def _put_new_blob(self, parts: Sequence[Buffer], size: int) -> str:
        """Large content of a size that was never stored, so that it cannot be known: written while its address is computed."""
        from concurrent.futures import ThreadPoolExecutor

        self._prepare()
        with ThreadPoolExecutor(1, "flowbook-digest") as pool:
            address = pool.submit(digest, parts)
            temp = self._write_temp(parts, 0o400)
            try:
                key = layout.blob(address.result())
                if not self._link(temp, self._path(key)):
                    self.keep(key)  # known after all: stored as a file, or before sizes were marked
            finally:
                _remove(temp)
        mark = self._size_mark(size)
        try:
            os.makedirs(os.path.dirname(mark), exist_ok=True)
            os.close(os.open(mark, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:
            pass  # then equal content is written once more, and found to be known afterwards
        return address.result()

    def _size_mark(self, size: int) -> str:
        """A file that tells that content of this size was stored once."""
        return f"{self._base}/local/sizes/{size}"

    def keep(self, key: str) -> bool:
        path = self._readable(key)
        try:
            if time.time() - os.stat(path).st_mtime > REFRESH_AFTER_S:
                os.utime(path)
        except PermissionError:
            pass  # another user's object: it is there, and its age is that user's affair
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise _write_error(path, error) from error
        return True

    def adopt_file(self, key: str, path: Path | str) -> bool:
        target, source = self._path(key), os.fspath(path)
        self._prepare()
        try:
            os.chmod(source, 0o400)
            made = self._link(source, target)
        except OSError as error:
            raise _write_error(source, error) from error
        except _OtherDevice:
            with open(source, "rb") as file:
                made = self.create(key, iter(lambda: file.read(1 << 20), b""))
        _remove(source)
        return made

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            os.unlink(path)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise _write_error(path, error) from error

    def delete_folder(self, folder: str) -> None:
        import shutil

        path = self._path(folder)
        while os.path.isdir(path):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                continue  # another process removes it, too
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:  # else an engine that has just ended this run still wrote into it
                    raise _write_error(path, error) from error

    def local_dir(self) -> Path:
        self._prepare()
        folder = self.root / "local"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _write_error(str(folder), error) from error
        return folder

    def describe(self) -> dict[str, Any]:
        return {"kind": "files", "root": self._base, **({"durable": True} if self.durable else {})}

    # ---- the parts of a write ----

    def _path(self, key: str) -> str:
        return f"{self._base}/{check_key(key)}"

    def _readable(self, key: str) -> str:
        path = self._path(key)
        self._check_format()
        return path

    def _write_temp(self, data: Data, mode: int) -> str:
        """A finished file of its own in tmp/. It is removed again if anything fails, an error of `data` itself included."""
        temp = f"{self._tmp}/{os.getpid()}-{os.urandom(8).hex()}"
        try:
            try:
                handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            except FileNotFoundError:
                self._prepare()
                handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except OSError as error:
            raise _write_error(temp, error) from error
        pieces = iter(buffers(data))
        try:
            for piece in pieces:
                try:
                    _write_all(handle, piece)
                except OSError as error:
                    raise _write_error(temp, error) from error
            if self.durable:
                os.fsync(handle)
        except BaseException:
            _remove(temp)
            raise
        finally:
            os.close(handle)
        return temp

    def _link(self, source: str, path: str) -> bool:
        try:
            self._into_place(lambda: os.link(source, path), path)
        except FileExistsError:
            # A network file system may answer a repeated request: then the link is ours after all.
            return os.path.samefile(source, path)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise _OtherDevice from error
            raise _write_error(path, error) from error
        return True

    def _into_place(self, act: Any, path: str) -> None:
        """Do it, and make the folder first if that is what it lacks."""
        folder = os.path.dirname(path)
        try:
            act()
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            act()
        if self.durable:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _prepare(self) -> None:
        """The root, tmp/ and store.json, if they are not there."""
        try:
            os.makedirs(self._base, mode=0o700, exist_ok=True)
            os.makedirs(self._tmp, exist_ok=True)
        except OSError as error:
            raise _write_error(self._base, error) from error
        self._check_format()
        if not self._format_known:
            text = json.dumps({"format": FORMAT, "written_by": __version__})
            self._format_known = True  # before create, which asks again
            try:
                self.create(layout.STORE, text.encode())
            except BaseException:
                self._format_known = False
                raise

    def _check_format(self) -> None:
        """Refuse a store that a later flowbook wrote. An absent store.json is asked for again next time."""
        if self._format_known:
            return
        path = f"{self._base}/{layout.STORE}"
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise StoreError(f"cannot read {path}: {error.strerror}. Check who owns the folder, or use another store.") from error
        check_format(text, path, os.path.dirname(path), "another folder as the store")
        self._format_known = True


class _OtherDevice(Exception):
    """The file is on another device, where a link cannot reach."""


def _write_all(handle: int, piece: Buffer) -> None:
    view = memoryview(piece)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    while view:
        view = view[os.write(handle, view) :]


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # gone already, or the disk refuses: nothing is lost, tmp/ is swept by age


def _read_error(key: str, path: str, error: OSError) -> StoreError:
    if error.errno in _ABSENT:
        return StoreMissing(f"no object {key} ({path})")
    return StoreError(f"cannot read {path}: {error.strerror or error}")


def _write_error(path: str, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreFull(f"cannot write {path}: {error.strerror}{_free(path)}. Free some space there, or use a store on another disk.")
    if error.errno in _READ_ONLY:
        return StoreReadOnly(f"cannot write {path}: {error.strerror}. Make the folder writable for this user, or use a store elsewhere.")
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def _free(path: str) -> str:
    try:
        found = os.statvfs(os.path.dirname(path))
        return f" ({found.f_bavail * found.f_frsize / 1e6:.1f} MB free)"
    except OSError:
        return ""


def sweep(store: FilesStore, older_than_s: float = 24 * 3600.0) -> int:
    """Remove what killed writers left in tmp/; gives the bytes freed. Age is by the file system's own clock."""
    import shutil
    import tempfile

    freed = 0
    if not os.path.isdir(store._tmp):
        return 0
    with tempfile.NamedTemporaryFile(dir=store._tmp) as probe:
        now = os.stat(probe.name).st_mtime
    with os.scandir(store._tmp) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # its writer has just finished
            if now - found.st_mtime > older_than_s:
                shutil.rmtree(entry.path, ignore_errors=True) if entry.is_dir(follow_symlinks=False) else _remove(entry.path)
                freed += found.st_size
    return freed
