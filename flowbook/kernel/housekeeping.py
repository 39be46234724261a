"""`%flow gc`: old runs, blobs that nothing refers to, and what killed engines left behind.

What is kept is decided in store/garbage.py. Here is what the store cannot know: which engines of this machine live. What an engine
left is removed only when nobody answers at its socket, no such process is there, and all of it is older than ten minutes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowbook.engine import registry
from flowbook.engine.launch.sweep import swept
from flowbook.errors import StoreError
from flowbook.kernel.names import interruptible
from flowbook.spec.amounts import counted, size_text
from flowbook.store import garbage
from flowbook.store.base import Store
from flowbook.store.files import FilesStore
from flowbook.store.garbage import Report

if TYPE_CHECKING:
    from flowbook.kernel.session import Session

LEFT_FOR_S = 600.0
FORGET_S = 7 * 24 * 3600.0  # the entry of an engine whose folder is not on this machine
OUTPUTS = re.compile(r"run-(?P<run>.+)-(?P<pid>\d+)-[^-]+\Z")  # in Store.local_dir()
MOST_TOLD = 10


@dataclass(frozen=True)
class Orphan:
    """What a killed engine left."""

    path: Path
    kind: str  # "output": what tasks of an ended run printed; "engine": an entry of the registry; "scratch": files of tasks


def gc(session: Session, *, flow: str | None = None, keep: int | None = None, all_flows: bool = False, dry_run: bool = False) -> None:
    """Remove, and print in a few lines what was removed; `keep` None stands for the setting."""
    begun = time.perf_counter()
    name = None if all_flows else session.flow(flow).name
    with interruptible():
        report = garbage.collect(
            session.store, session.settings.keep_runs if keep is None else keep, name, dry_run=dry_run, spare_young=keep is None
        )
        left = orphans(session.store)
        left_bytes = sum(remove(orphan, dry_run=dry_run) for orphan in left)
        in_cluster = swept(session.store, session.settings.cluster, session.engine.driven(), "%flow attach RUN", dry_run=dry_run)
    for line in [*told(report, left, left_bytes, time.perf_counter() - begun), *in_cluster]:
        print(line)


def told(report: Report, left: list[Orphan], left_bytes: int, seconds: float) -> list[str]:
    """A report as lines to print."""
    verb = "would remove" if report.dry_run else "removed"
    lines = [f"{verb} {_runs(report.removed, flow)}" for flow in dict.fromkeys(flow for flow, _ in report.removed)]
    if report.objects:
        lines.append(f"{verb} {report.objects:,} objects of runs, {size_text(report.object_bytes)}")
    if report.blobs:
        lines.append(f"{verb} {counted(report.blobs, 'blob')} that nothing refers to, {size_text(report.blob_bytes)}")
    if left:
        lines.append(
            f"{verb} what killed engines left: {counted(len(left), 'file or folder', 'files and folders')}, {size_text(left_bytes)}"
        )
    lines = lines or ["nothing to remove"]
    freed = report.bytes + left_bytes
    lines.append(f"{'would free' if report.dry_run else 'freed'} {size_text(freed)} in {seconds:.1f} s" + _kept(report))
    for key, why in list(report.damaged.items())[:MOST_TOLD]:
        folder = "/".join(key.split("/")[:3])
        lines.append(f"! {why}. What it may refer to is kept; if you can do without this run, remove the folder {folder} of the store")
    lines += [f"! {trouble}" for trouble in report.troubles[:MOST_TOLD]]
    hidden = max(len(report.damaged) - MOST_TOLD, 0) + max(len(report.troubles) - MOST_TOLD, 0)
    return lines + ([f"! … and {hidden} more"] if hidden else [])


def _kept(report: Report) -> str:
    reasons: dict[str, int] = {}
    for why in report.kept.values():
        word = why.partition(" ")[0]
        reason = {
            "tagged": "tagged",
            "open": "open",
            "run": "used by a kept one",
            "one": "the last",
            "all": "all",
            "began": "of today",
        }.get(word, "not readable")
        reasons[reason] = reasons.get(reason, 0) + 1
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"; kept {counted(len(report.kept), 'run')} ({parts})" if len(reasons) > 1 else f"; kept {counted(len(report.kept), 'run')}"


def _runs(removed: Iterable[tuple[str, str]], flow: str) -> str:
    """``3 runs of demo: 1–3``."""
    runs = [run for name, run in removed if name == flow]
    parts: list[list[str]] = []
    for run in runs:
        if parts and run.isdigit() and parts[-1][-1].isdigit() and int(run) == int(parts[-1][-1]) + 1:
            parts[-1].append(run)
        else:
            parts.append([run])
    words = [part[0] if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts]
    shown = ", ".join(words[:MOST_TOLD]) + (", …" if len(words) > MOST_TOLD else "")
    return f"{counted(len(runs), 'run')} of {flow}: {shown}"


# ---- what killed engines left ---------------------------------------------------------------------------------------------


def orphans(store: Store, older_than_s: float = LEFT_FOR_S) -> list[Orphan]:
    """What killed engines of this machine left. The output of an open run is not among it: who goes on with the run wants it."""
    if isinstance(store, FilesStore) and not (store.root / "local").is_dir():
        return []
    now, found = store.now() if isinstance(store, FilesStore) else time.time(), []  # by the clock of the disk that has the folder
    entries = list(registry.entries(store))
    living = {entry.socket for _, entry in entries if lives(entry.pid)}
    for path, entry in entries:
        folder = Path(entry.folder)
        replaced = entry.socket in living  # by one that its kernel started in the same folder
        if lives(entry.pid) or (entry.lives() and not replaced) or now - _touched(path) < older_than_s:
            continue
        if replaced:
            pass
        elif _is_engine_folder(folder):
            found += [Orphan(inside, "scratch") for inside in folder.iterdir() if inside.name != "engine.log"]
        elif now - _touched(path) < FORGET_S:
            continue  # of another machine, it may be
        found.append(Orphan(path, "engine"))
    for path in sorted(store.local_dir().glob("run-*")):
        named = OUTPUTS.match(path.name)
        if named and not lives(int(named["pid"])) and now - _newest(path) >= older_than_s and not _may_be_open(store, named["run"]):
            found.append(Orphan(path, "output"))
    return found


def remove(orphan: Orphan, *, dry_run: bool = False) -> int:
    """Remove it, as far as that is possible; gives its bytes."""
    if orphan.path.is_dir() and not orphan.path.is_symlink():
        return garbage.remove_tree(orphan.path, dry_run=dry_run)
    try:
        size = orphan.path.lstat().st_size
        if not dry_run:
            orphan.path.unlink()
        return size
    except OSError:
        return 0


def lives(pid: int) -> bool:
    """Whether an engine process of this number runs on this machine; True where that cannot be told."""
    import psutil

    try:
        return "flowbook.engine" in psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess, ValueError, OverflowError):
        return False
    except psutil.Error:
        return True


def _is_engine_folder(folder: Path) -> bool:
    """An entry is only a file: nothing but a folder that a kernel of this user made for its engine may be emptied."""
    try:
        own = folder.name.startswith("flowbook-") and not folder.is_symlink() and folder.stat().st_uid == os.getuid()
        return own and ((folder / "engine.log").exists() or (folder / "engine.sock").exists())
    except OSError:
        return False


def _may_be_open(store: Store, run: str) -> bool:
    """Whether any flow has an open run of that number: the name of the folder does not tell the flow."""
    try:
        return any(run in store.names(f"flows/{flow}") and garbage.is_open(store, flow, run) for flow in store.names("flows"))
    except StoreError:
        return True


def _touched(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return float("inf")


def _newest(folder: Path) -> float:
    return max([_touched(folder), *(_touched(path) for path in folder.rglob("*"))])
