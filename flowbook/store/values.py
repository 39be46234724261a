"""File and Directory: values that are paths here, and travel with their content.

Inside a run their content goes to blobs when they are saved, and comes back as read-only files under the store's local folder
when they are loaded, with the name they had. Pickled by anything else (copy, multiprocessing) they are plain paths.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flowbook.errors import ArtifactError, NotPicklable
from flowbook.store import codec, layout
from flowbook.store.base import Store

_CHUNK = 1 << 20
_P = TypeVar("_P", bound="_Local")


class _Local:
    """What File and Directory share: a path, and equality by content."""

    __slots__ = ("_path",)
    _path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self._check()

    def _check(self) -> None:
        raise NotImplementedError

    @property
    def path(self) -> Path:
        """Where it is on this machine, absolute. A loaded one is read-only: other tasks read the same file."""
        return self._path

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def digest(self) -> str:
        """sha256 in hex of the content (of a directory: of its manifest), computed anew only if the files look changed."""
        raise NotImplementedError

    def __fspath__(self) -> str:
        return str(self._path)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, _Local) and type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), self.digest))

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, (type(self), str(self._path))


class File(_Local):
    """A file that travels with its content. Raises FileNotFoundError if there is no such file."""

    __slots__ = ()

    def _check(self) -> None:
        if not self._path.is_file():
            hint = " It is a folder: use Directory." if self._path.is_dir() else " A relative path starts at the working folder."
            raise FileNotFoundError(f"File({str(self._path)!r}): there is no such file.{hint}")

    @property
    def digest(self) -> str:
        return _file_digest(self._path)

    def read_bytes(self) -> bytes:
        return self._path.read_bytes()

    def read_text(self, encoding: str = "utf-8", errors: str | None = None) -> str:
        return self._path.read_text(encoding, errors)

    def __repr__(self) -> str:
        return f"File({self.name!r}{_shown_size(self._path)})"

    def __flowbook_save__(self, store: Store) -> tuple[tuple[Callable[..., Any], tuple[Any, ...]], set[str]]:
        """How it is pickled inside a run, and the blobs its content is in."""
        address = _save_file(store, self._path, repr(self))
        return (_open_file, (address, self.name)), {address}


class Directory(_Local):
    """A folder that travels with all files in it. Raises FileNotFoundError if there is no such folder.

    Links are followed inside the folder; one that leads out of it cannot travel.
    """

    __slots__ = ()

    def _check(self) -> None:
        if not self._path.is_dir():
            hint = " It is a file: use File." if self._path.is_file() else " A relative path starts at the working folder."
            raise FileNotFoundError(f"Directory({str(self._path)!r}): there is no such folder.{hint}")

    @property
    def digest(self) -> str:
        return hashlib.sha256(_manifest(self._path, repr(self), _file_digest)).hexdigest()

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self._path / name

    def __repr__(self) -> str:
        return f"Directory({self.name!r})"

    def __flowbook_save__(self, store: Store) -> tuple[tuple[Callable[..., Any], tuple[Any, ...]], set[str]]:
        """How it is pickled inside a run, and the blobs its content is in."""
        blobs: set[str] = set()

        def save(path: Path) -> str:
            blobs.add(address := _save_file(store, path, f"{self!r}/{path.name}"))
            return address

        manifest = store.put_blob([_manifest(self._path, repr(self), save)])
        return (_open_directory, (manifest, self.name)), blobs | {manifest}


# ---- saving ----


def _file_digest(path: Path) -> str:
    found = path.stat()
    return _digest_of(str(path), found.st_mtime_ns, found.st_size, found.st_ino)


@functools.lru_cache(maxsize=10_000)
def _digest_of(path: str, *_state: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_file(store: Store, path: Path, label: str) -> str:
    """The content as a blob, read in pieces; it must be the same while it is hashed and while it is written."""
    try:
        with path.open("rb") as file:
            address = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if not store.keep(layout.blob(address)):
                store.create(layout.blob(address), _same_content(file, address, label))
    except OSError as error:
        raise NotPicklable(label, f"{type(error).__name__}: {error}") from error
    return address


def _same_content(file: Any, address: str, label: str) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    while piece := file.read(_CHUNK):
        hasher.update(piece)
        yield piece
    if hasher.hexdigest() != address:  # raised into the store's writer, which throws away what it has written
        raise NotPicklable(label, "the file changed while it was being saved")


def _manifest(root: Path, label: str, address_of: Callable[[Path], str]) -> bytes:
    """Relative path → [address, executable] of every file, and the empty folders, as JSON."""
    files: dict[str, list[Any]] = {}
    empty: list[str] = []
    real_root = root.resolve()
    for folder, names, file_names in _walked(root, real_root, label):
        for name in file_names:
            path = folder / name
            relative = str(path.relative_to(root))
            _must_stay_inside(path, real_root, label)
            if not path.is_file():
                raise NotPicklable(f"{label}/{relative}", "it is not a regular file")
            files[relative] = [address_of(path), bool(path.stat().st_mode & stat.S_IXUSR)]
        if not names and not file_names and folder != root:
            empty.append(str(folder.relative_to(root)))
    return json.dumps({"files": files, "empty": sorted(empty)}, sort_keys=True).encode()


def _walked(root: Path, real_root: Path, label: str) -> Iterator[tuple[Path, list[str], list[str]]]:
    for folder, names, file_names in os.walk(root, followlinks=True):
        above = Path(folder).resolve()
        for name in names:
            path = Path(folder) / name
            _must_stay_inside(path, real_root, label)
            if path.is_symlink() and above.is_relative_to(path.resolve()):
                raise NotPicklable(f"{label}/{path.relative_to(root)}", "it is a link to a folder around it")
        yield Path(folder), sorted(names), sorted(file_names)


def _must_stay_inside(path: Path, real_root: Path, label: str) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(real_root):
        raise NotPicklable(f"{label}/{path.name}", f"it is a link that leads out of the folder, to {str(path.readlink())!r}")


# ---- loading: functions that stand in pickles, see codec.py ----


def _plain(kind: type[_P], path: str) -> _P:
    value = kind.__new__(kind)  # without looking: a path that went along may not exist here
    value._path = Path(path)
    return value


def _open_file(address: str, name: str) -> File:
    store = _store()
    _check_name(name)
    target = store.local_dir() / _checked(address) / name
    _materialise(store, address, target, executable=False)
    return _plain(File, str(target))


def _open_directory(address: str, name: str) -> Directory:
    store = _store()
    _check_name(name)
    target = store.local_dir() / f"{_checked(address)}.d" / name
    if not target.is_dir():
        files, empty = _read_manifest(store, address)
        building = store.local_dir() / f".{os.getpid()}-{os.urandom(8).hex()}"
        try:
            for relative in empty:
                (building / relative).mkdir(parents=True, exist_ok=True)
            building.mkdir(parents=True, exist_ok=True)
            for relative, (blob, executable) in files.items():
                _materialise(store, _checked(blob), building / relative, executable=bool(executable))
            target.parent.mkdir(exist_ok=True)
            building.rename(target)
        except OSError as error:
            if not target.is_dir():  # else another task was faster, and made the same
                raise ArtifactError(f"cannot write {target}: {error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return _plain(Directory, str(target))


def _read_manifest(store: Store, address: str) -> tuple[dict[str, Any], list[str]]:
    try:
        manifest = json.loads(store.get(layout.blob(address)))
        files, empty = dict(manifest["files"]), list(manifest["empty"])
        for relative in [*files, *empty]:
            for part in relative.split("/"):
                _check_name(part)
        return files, empty
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"the list of files {address[:12]}… of a Directory is damaged. Run its step again.") from None


def _materialise(store: Store, address: str, target: Path, *, executable: bool) -> None:
    """The blob as a read-only file at `target`. Safe beside others doing the same: a file appears finished or not at all."""
    key = layout.blob(address)
    if target.is_file() and target.stat().st_size == store.size(key):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = store.local_path(key)
    temp = target.parent / f".{os.getpid()}-{os.urandom(8).hex()}"
    try:
        # A link costs nothing, and its mode keeps the blob from being written through it; root is not kept, and gets a copy.
        if source is None or executable or os.geteuid() == 0 or not _linked(source, temp):
            _copied(store, key, source, temp)
            temp.chmod(0o500 if executable else 0o400)
        temp.replace(target)
    except OSError as error:
        raise ArtifactError(f"cannot write {target}: {error}") from error
    finally:
        temp.unlink(missing_ok=True)  # replacing a link by a link to the same file leaves it


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
        return True
    except OSError:
        return False  # no links on this file system; a copy does


def _copied(store: Store, key: str, source: Path | None, target: Path) -> None:
    if source is not None:
        shutil.copyfile(source, target)
    else:
        target.write_bytes(store.get(key))


def _store() -> Store:
    loading = codec.loading()
    if loading.store is None:
        raise ArtifactError(f"{loading.name} holds a file whose content is in a store, but it is loaded without one")
    return loading.store


def _check_name(name: str) -> None:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ArtifactError(f"a stored file has the name {name!r}, which could lead out of its folder; it is not loaded")


def _checked(address: Any) -> str:
    if not (isinstance(address, str) and len(address) == 64 and set(address) <= set("0123456789abcdef")):
        raise ArtifactError("a stored file has no valid content address; it is not loaded")
    return address


def _shown_size(path: Path) -> str:
    try:
        size = float(path.stat().st_size)
    except OSError:
        return ", missing"
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f", {size:.3g} {unit}"
        size /= 1000
    return f", {size:.3g} GB"
