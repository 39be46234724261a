"""Checkpoints that are files: a folder is saved piece by piece and written back. Metaflow's words: save, load, list, directory.

A file that did not change is read and not written again. Links are saved as links, empty folders too; of modes only whether a file
can be executed. What is written back never leaves the folder that was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from flowbook.errors import StoreMissing
from flowbook.store import chunks, layout
from flowbook.store.chunks import Manifest, Shelf
from flowbook.worker.surroundings import CheckpointError

if TYPE_CHECKING:
    from flowbook.worker.checkpoint import Live

Json = Any
Reference = dict[str, Json]


class Files:
    """The file checkpoints of one attempt."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._folder: Path | None = None
        self.info: Reference | None = None

    @property
    def directory(self) -> str:
        """See Live.directory."""
        if self._folder is None:
            import tempfile  # only for those who use it: a step with checkpoints starts fast

            self._folder = Path(tempfile.mkdtemp(prefix="flowbook-checkpoint-"))
            found = self._live.find(("files",))
            if found is not None and found.manifest is not None and found.shelf is not None:
                _write_back(found.shelf, found.manifest, self._folder)
                self.info = _reference(found.shelf, found.manifest)
        return str(self._folder)

    def cleanup(self) -> None:
        if self._folder is not None:
            import shutil

            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def save(self, path: str | os.PathLike[str] | None, name: str | None, metadata: Mapping[str, Json] | None, latest: bool) -> Reference:
        live = self._live
        source = Path(self.directory if path is None else path)
        if not source.exists():
            raise CheckpointError(f"checkpoint.save({str(source)!r}): there is no such file or folder")
        live.writer.settle()
        number = live.attempt.number
        found = [_saved(live.shelf, file, place, number) for file, place in _tree(source)]
        fields = live.manifest("files", name=name or chunks.OWN_NAME, metadata=dict(metadata or {}), files=found)
        return _reference(live.shelf, live.writer.create({**fields, "latest": bool(latest)}))

    def load(self, reference: Any, path: str | os.PathLike[str] | None) -> Path:
        shelf, manifest = self._of(reference)
        target = Path(self.directory if path is None else path)
        target.mkdir(parents=True, exist_ok=True)
        _write_back(shelf, manifest, target)
        return target

    def _of(self, reference: Any) -> tuple[Shelf, Manifest]:
        if reference is None:
            found = self._live.find(("files",))
            if found is None or found.manifest is None or found.shelf is None:
                raise CheckpointError("checkpoint.load(): no files were saved yet; ask checkpoint.is_loaded first")
            return found.shelf, found.manifest
        key = reference.get("key") if isinstance(reference, Mapping) else reference
        parts = str(key).split("/")
        if len(parts) != 7 or parts[0] != "flows" or parts[5] != "checkpoints" or not parts[6].removesuffix(".json").isdigit():
            raise CheckpointError(f"checkpoint.load({reference!r}): not a checkpoint; give what checkpoint.save or checkpoint.list gave")
        shelf = Shelf(self._live.shelf.store, parts[1], parts[2], parts[3], _index(parts[4]))
        try:
            return shelf, shelf.manifest(int(parts[6].removesuffix(".json")))
        except (StoreMissing, chunks.DamagedCheckpoint) as error:
            raise CheckpointError(
                f"checkpoint.load: {error}; of those without a name of their own the last {chunks.KEEP} are kept"
            ) from None

    def list(self, name: str | None, task: Any, attempt: int | None, full_namespace: bool) -> list[Reference]:
        found = []
        for shelf in self._shelves(task, full_namespace):
            for manifest in shelf.manifests()[0]:
                wanted = name in (None, manifest.get("name")) and attempt in (None, manifest["attempt"])
                if manifest["kind"] == "files" and wanted:
                    found.append(_reference(shelf, manifest))
        return found

    def _shelves(self, task: Any, full_namespace: bool) -> Iterator[Shelf]:
        own = self._live.shelf
        if task is not None:
            parts = str(getattr(task, "pathspec", task)).split("/")
            if len(parts) != 4:
                raise CheckpointError(f"checkpoint.list(task={task!r}): a task is written Flow/run/step/task, such as TrainFlow/12/train/0")
            yield Shelf(own.store, parts[0], parts[1], parts[2], _index(parts[3]))
        elif full_namespace:
            for run in sorted(own.store.names(f"flows/{own.flow}"), key=layout.run_order, reverse=True):
                yield Shelf(own.store, own.flow, run, own.step, own.index)
        else:
            yield own


def _index(key: str) -> tuple[int, ...]:
    """The index of a task whose key is ``2.5``. A task outside any fan-out and the first of one have the same key."""
    if not all(part.isdigit() for part in key.split(".")):
        raise CheckpointError(f"{key!r} is no task: a task is a number such as 0, in nested fan-outs 2.5")
    return tuple(map(int, key.split(".")))


def _reference(shelf: Shelf, manifest: Manifest) -> Reference:
    """What people hold of a checkpoint; `load` takes it."""
    return {
        "type": "checkpoint",
        "key": layout.checkpoint(shelf.flow, shelf.run, shelf.step, shelf.index, manifest["number"]),
        "pathspec": f"{shelf.flow}/{shelf.run}/{shelf.step}/{layout.task_key(shelf.index)}",
        "name": manifest.get("name"),
        "attempt": manifest["attempt"],
        "created_on": manifest["made_at"],
        "metadata": manifest.get("metadata", {}),
        "size": sum(file["body"]["size"] for file in manifest.get("files", ()) if "body" in file),
        "storage_format": "files",
    }


def _tree(source: Path) -> Iterator[tuple[Path, str]]:
    """Each file, link and empty folder below, with its place in the checkpoint."""
    if not source.is_dir():
        yield source, source.name
        return
    for folder, names, files in os.walk(source):
        names.sort()
        here = Path(folder)
        links = [name for name in names if (here / name).is_symlink()]
        for name in [*sorted(files), *links]:
            yield here / name, (here / name).relative_to(source).as_posix()
        if not names and not files and here != source:
            yield here, here.relative_to(source).as_posix()


def _saved(shelf: Shelf, path: Path, place: str, attempt: int) -> dict[str, Json]:
    """An element of "files" of a MANIFEST."""
    if path.is_symlink():
        return {"path": place, "link": os.readlink(path)}  # noqa: PTH115
    if path.is_dir():
        return {"path": place, "folder": True}
    try:
        with path.open("rb") as file:
            pieces = shelf.write_pieces(iter(lambda: file.read(chunks.CHUNK_BYTES), b""), attempt)
            executable = bool(os.fstat(file.fileno()).st_mode & 0o100)
    except OSError as error:
        raise CheckpointError(f"checkpoint.save: {path} cannot be read: {error.strerror}") from error
    body = {"size": sum(size for _, size in pieces), "run": shelf.run, "attempt": attempt, "chunks": pieces}
    return {"path": place, "body": body, **({"executable": True} if executable else {})}


def _write_back(shelf: Shelf, manifest: Manifest, target: Path) -> None:
    for file in manifest.get("files", ()):
        place = PurePosixPath(file["path"])
        if place.is_absolute() or ".." in place.parts:
            raise CheckpointError(f"a file of the checkpoint would be written outside of its folder: {place}")
        path = target / place
        if not path.parent.resolve().is_relative_to(target.resolve()):
            raise CheckpointError(f"a file of the checkpoint would be written through a link that leads out of {target}: {place}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        if "link" in file:
            path.symlink_to(file["link"])
        elif file.get("folder"):
            path.mkdir(exist_ok=True)
        else:
            with path.open("wb") as out:
                for piece in shelf.pieces(file["body"]):
                    out.write(piece)
            path.chmod(0o755 if file.get("executable") else 0o644)
