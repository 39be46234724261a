"""`%flow doctor`: does all that flowbook rests on hold here? One line a check, and what to do about it.

A check is a function of the session that gives Findings; one that fails itself is a finding too. Nothing is changed, but that the
store is tried with objects which are removed at once.
"""

from __future__ import annotations

import hashlib
import html
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowbook._version import __version__
from flowbook.engine import registry
from flowbook.errors import FlowbookError, StoreError
from flowbook.kernel.cells import notebook_path
from flowbook.kernel.display import STYLE
from flowbook.kernel.engine import ping
from flowbook.kernel.housekeeping import counted, orphans
from flowbook.kernel.names import interruptible
from flowbook.spec.amounts import size_text
from flowbook.spec.flow import task_name
from flowbook.store import garbage, layout
from flowbook.store.base import FORMAT, Store, open_store
from flowbook.store.files import FilesStore

if TYPE_CHECKING:
    from flowbook.kernel.session import Session

WRITERS, KEYS = 32, 50
LEAST_FREE, LEAST_FREE_BYTES = 0.05, 1e9
MOST_SKEW_S = 60.0
CHUNK = 1 << 24
MARK = {"ok": "✓", "warn": "!", "bad": "✗"}
COLOUR = {"ok": "success", "warn": "warn", "bad": "error"}  # of JupyterLab's --jp-…-color1


@dataclass(frozen=True)
class Found:
    """What a check says. `state` is ok, warn or bad."""

    state: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{MARK[self.state]} {self.text}" + (f". {self.remedy}" if self.remedy else "")


Check = Callable[["Session"], Iterable[Found]]


def doctor(session: Session, *, verify: bool = False) -> None:
    """Make all checks and show what they say; with `verify` every blob is read, too."""
    from IPython.display import publish_display_data

    begun = time.perf_counter()
    with interruptible():
        found = examine(session, [*CHECKS, _verified] if verify else CHECKS)
    wrong = sum(each.state != "ok" for each in found)
    last = f"{len(found)} checks in {time.perf_counter() - begun:.1f} s, " + (f"{wrong} to look at" if wrong else "all is well")
    publish_display_data({"text/plain": "\n".join([*map(str, found), last]), "text/html": _page(found, last)})


def examine(session: Session, checks: Iterable[Check]) -> list[Found]:
    """What all checks say; never raises, but for an interrupt."""
    found: list[Found] = []
    for check in checks:
        try:
            found += check(session)
        except Exception as error:
            if isinstance(error, StoreError) and any(each.state == "bad" and each.text.startswith("the store ") for each in found):
                continue  # told already
            name = check.__name__.strip("_").replace("_", " ")
            found.append(Found("bad", f"{name}: the check failed: {type(error).__name__}: {error}"))
    return found


def _page(found: Iterable[Found], last: str) -> str:
    rows = "".join(
        f'<div style="padding-left:1.4em;text-indent:-1.4em;overflow-wrap:anywhere">'
        f'<b style="color:var(--jp-{COLOUR[each.state]}-color1,inherit)">{MARK[each.state]}</b> {html.escape(each.text)}'
        + (f'. <span class="fb-dim">{html.escape(each.remedy)}</span>' if each.remedy else "")
        + "</div>"
        for each in found
    )
    return f'{STYLE}<div class="flowbook">{rows}<div class="fb-dim">{html.escape(last)}</div></div>'


# ---- versions -----------------------------------------------------------------------------------------------------------


def _versions(session: Session) -> Iterator[Found]:
    yield Found("ok", f"flowbook {__version__}")
    needed = importlib.metadata.metadata("flowbook")
    wanted = {"python": needed["Requires-Python"] or ""}
    for line in needed.get_all("Requires-Dist") or ():
        name, versions = re.fullmatch(r"\s*([A-Za-z0-9._-]+)[^<>=!~;]*([^;]*).*", line).groups()  # type: ignore[union-attr]
        if "extra ==" not in line:
            wanted[name.lower()] = versions
    for name, versions in wanted.items():
        label = "Python" if name == "python" else name
        try:
            installed = platform.python_version() if name == "python" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Found("bad", f"{label} is not installed", f"pip install {name}")
            continue
        if not within(installed, versions):
            yield Found("bad", f"{label} {installed} is not what flowbook asks for ({versions})", f'pip install "{name}{versions}"')
        elif name in ("python", "ipykernel", "ipython"):
            yield Found("ok", f"{label} {installed}")


def within(version: str, wanted: str) -> bool:
    """Whether a version is in ``>=6.31,<8``; of versions only the leading numbers are compared.

    >>> within("6.31.0", ">=6.31,<8"), within("8.0", ">=6.31,<8"), within("3.11.2", "")
    (True, False, True)
    """
    have = _numbers(version)
    for part in filter(None, (part.strip() for part in wanted.split(","))):
        sign, text = re.fullmatch(r"(>=|<=|==|!=|~=|>|<)\s*(.+)", part).groups()  # type: ignore[union-attr]
        want = _numbers(text)
        width = max(len(have), len(want))
        a, b = (numbers + (0,) * (width - len(numbers)) for numbers in (have, want))
        short = have[: len(want)] == want
        fits = {">=": a >= b, "<=": a <= b, ">": a > b, "<": a < b}
        fits |= {"==": short if "*" in text else a == b, "!=": not short if "*" in text else a != b}
        fits["~="] = a >= b and have[: len(want) - 1] == want[:-1]
        if not fits[sign]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(map(int, found[0].split("."))) if found else ()


def _settings(session: Session) -> Iterator[Found]:
    for warning in session.settings.warnings:
        yield Found("warn", warning)


# ---- the store ----------------------------------------------------------------------------------------------------------


def _store(session: Session) -> Iterator[Found]:
    store, name = session.store, f"{os.getpid()}-{os.urandom(8).hex()}"
    if store.describe()["kind"] == "s3":
        from flowbook.store.s3 import S3Store
        from flowbook.store.s3_check import check

        assert isinstance(store, S3Store)
        told = [Found(*each) for each in check(store)]
        yield from told
        if any(each.state == "bad" for each in told):
            yield Found("bad", f"the store {store.where} cannot be used")
            return
    key = layout.probe(name, 0)
    try:
        store.create(key, b"probe")
        same = store.get(key) == b"probe"
    except StoreError as error:
        yield Found("bad", f"the store {session.store.where} cannot be used: {error}")
        return
    finally:
        _clear(store, name)
    if not same:
        yield Found("bad", f"the store {session.store.where} gives back something else than was written", "Use a store on another disk.")
        return
    number = json.loads(store.get(layout.STORE)).get("format") if store.exists(layout.STORE) else FORMAT
    yield Found("ok", f"store {session.store.where}, format {number}, can be written")


def _free_space(session: Session) -> Iterator[Found]:
    store = session.store
    root = store.root if isinstance(store, FilesStore) else store.local_dir()
    usage = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists()))
    if not usage.total:
        return  # no disk of which that can be said
    disk = "the store's disk" if isinstance(store, FilesStore) else f"the disk of {root}, where objects are kept that were read"
    text = f"{size_text(usage.free)} free on {disk} ({100 * usage.free / usage.total:.0f} %)"
    if usage.free < LEAST_FREE_BYTES or usage.free < LEAST_FREE * usage.total:
        yield Found("warn", text, "`%flow gc --dry-run` says what could go; or use a store on another disk.")
    else:
        yield Found("ok", text)


def _create_if_absent(session: Session) -> Iterator[Found]:
    description = session.store.describe()
    wrong = contest(lambda: open_store(description))
    if wrong:
        yield Found(
            "bad",
            f"create-if-absent is not kept: {wrong[0]}" + (f" ({len(wrong)} of {KEYS} keys)" if len(wrong) > 1 else ""),
            "Results could be lost: use a store on a local disk, on NFS 3 or later, or in a bucket whose server has conditional writes.",
        )
    else:
        yield Found("ok", f"create-if-absent is kept: {WRITERS} writers at once, {KEYS} keys, one winner each")


def contest(opened: Callable[[], Store], writers: int = WRITERS, keys: int = KEYS) -> list[str]:
    """Let many writers create the same keys at the same moment; gives what is wrong, nothing where the store keeps its promise.

    `opened` gives each writer a store object of its own. What the writers raise is raised.
    """
    name = f"{os.getpid()}-{os.urandom(8).hex()}"
    stores = [opened() for _ in range(writers)]
    start = threading.Barrier(writers)
    winners: list[list[int]] = [[] for _ in range(keys)]
    errors: list[BaseException] = []

    def write(me: int) -> None:
        content = b"%d " % me * 500
        try:
            for number in range(keys):
                start.wait(60)  # all at once, for each key
                if stores[me].create(layout.probe(name, number), content):
                    winners[number].append(me)
        except threading.BrokenBarrierError:
            pass  # another one has failed
        except BaseException as error:
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=write, args=(me,), name="flowbook-contest", daemon=True) for me in range(writers)]
    wrong = []
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        for number, won in enumerate(winners):
            if len(won) != 1:
                wrong.append(f"{len(won)} of {writers} writers were told that they had created one key")
            elif stores[0].get(layout.probe(name, number)) != b"%d " % won[0] * 500:
                wrong.append("an object does not hold what its creator wrote")
    finally:
        start.abort()
        _clear(stores[0], name)
    return wrong


def _clear(store: Store, name: str) -> None:
    try:
        store.delete_folder(layout.probe(name, 0).rpartition("/")[0])
    except StoreError:
        pass  # it goes with the garbage


def _hard_links(session: Session) -> Iterator[Found]:
    store = session.store
    if not isinstance(store, FilesStore):
        return
    folder = store.local_dir()
    first, second = (folder / f".{os.getpid()}-{os.urandom(8).hex()}" for _ in range(2))
    try:
        first.write_bytes(b"")
        os.link(first, second)
        linked = first.stat().st_nlink == 2
    except OSError as error:
        yield Found("bad", f"no hard links in {store.root}: {error.strerror}", "flowbook needs them: use a store on another disk.")
        return
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    yield Found("ok", "hard links work in the store") if linked else Found("warn", f"hard links in {store.root} are not counted")


def _clock(session: Session) -> Iterator[Found]:
    store = session.store
    now = getattr(store, "now", None)
    if now is None:
        return
    what = "the store's disk" if isinstance(store, FilesStore) else "the S3 server"
    skew = now() - time.time()
    if abs(skew) > MOST_SKEW_S:
        word = "ahead of" if skew > 0 else "behind"
        yield Found("warn", f"the clock of {what} is {abs(skew):.0f} s {word} that of this machine", "Set both by a time server (NTP).")
    else:
        yield Found("ok", f"the clocks of {what} and of this machine agree (within {max(abs(skew), 0.1):.1f} s)")


def _size(session: Session) -> Iterator[Found]:
    store, keep = session.store, session.settings.keep_runs
    flows = list(store.names("flows"))
    runs = {flow: garbage.run_ids(store, flow) for flow in flows}
    of_runs = sum(each.size for each in store.aged("flows/"))
    blobs = [each.size for each in store.aged("blobs/")]
    count = sum(map(len, runs.values()))
    have = f"{counted(count, 'run')} of {counted(len(flows), 'flow')} take {size_text(of_runs)}"
    yield Found("ok", f"{have}, {counted(len(blobs), 'blob')} {size_text(sum(blobs))}")
    due = [flow for flow in flows if garbage.retention_due(store, flow, keep)]
    old = {flow: len(garbage.collect(store, keep, flow, dry_run=True, thorough=False).removed) for flow in due}
    many = [flow for flow in due if old[flow]]
    if many:
        word = ", ".join(f"{old[flow]} of {flow}" for flow in many[:5]) + (", …" if len(many) > 5 else "")
        yield Found("warn", f"old runs have gathered, beyond the last {keep}: {word}", "`%flow gc --all-flows` removes them.")


# ---- the engine -----------------------------------------------------------------------------------------------------------


def _engine(session: Session) -> Iterator[Found]:
    engine = getattr(session, "engine", None)
    if engine is None:
        yield Found("bad", "this kernel has no engine", "Restart the kernel, then `%load_ext flowbook`.")
        return
    try:
        engine.send({"do": "ping"})  # starts one if there is none, and waits for it
    except FlowbookError as error:
        yield Found("bad", f"the engine does not work: {error}", "Restart the kernel, then `%load_ext flowbook`.")
        return
    notebook = str(notebook_path(session.shell) or "")
    entries = [entry for _, entry in registry.entries(session.store)]
    own = [e for e in entries if e.pid == engine.pid] or [e for e in entries if notebook and e.notebook == notebook and e.lives()]
    answer = ping(own[0].socket) if own else None
    if answer is None:
        yield Found(
            "warn", "an engine runs, but is not listed: a restarted kernel will not find it", f"Can {session.store.local_dir()} be written?"
        )
        return
    text = f"the engine answers (process {answer.get('pid')}, {counted(len(answer.get('runs') or ()), 'open run')})"
    if answer.get("version") != __version__:
        yield Found("warn", f"{text}, but it is of flowbook {answer.get('version')}", "Restart the kernel once its runs have ended.")
    else:
        yield Found("ok", text)
    fork = answer.get("fork") or {}
    if fork.get("unsafe"):
        yield Found("ok", f"steps are started by spawn, which takes longer than fork: {fork['unsafe']}")
    else:
        servers = fork.get("servers") or 0
        word = f"{servers} fork server{'s are' if servers != 1 else ' is'} up" if servers else "a fork server starts with the first run"
        yield Found("ok", f"steps are started by fork ({word})")


def _left_over(session: Session) -> Iterator[Found]:
    left = orphans(session.store)
    engines = sum(orphan.kind == "engine" for orphan in left)
    folders = len(left) - engines
    if left:
        words = [counted(engines, "entry", "entries")] * bool(engines) + [counted(folders, "file or folder", "files and folders")] * bool(
            folders
        )
        yield Found("warn", f"killed engines left something: {', '.join(words)}", "`%flow gc` removes it.")
    else:
        yield Found("ok", "no killed engine has left anything")


# ---- the notebook -----------------------------------------------------------------------------------------------------------


def _notebook(session: Session) -> Iterator[Found]:
    path, kernel = notebook_path(session.shell), getattr(session.shell, "kernel", None)
    if kernel is None:
        yield Found("ok", "no notebook, but a terminal: steps are in the order of their definition")
        return
    if path is None:
        yield Found(
            "warn",
            "the notebook's path is not known: the flow is called notebook, and the order of cells is that of their first run",
            "Set the variable FLOWBOOK_NOTEBOOK to its path before the kernel starts.",
        )
    else:
        yield Found("ok", f"notebook {path}")
    now = session.cells.now
    if now is not None and now.cell_id is None:
        yield Found(
            "warn",
            "the client sends no cell ids: the order of cells is that of their first run, and a renamed step leaves the old one",
            "After renaming a step cell, `%flow drop` the old name.",
        )
    else:
        yield Found("ok", "the client sends cell ids")


# ---- blobs, read ----------------------------------------------------------------------------------------------------------


def _verified(session: Session) -> Iterator[Found]:
    store, begun, read = session.store, time.perf_counter(), 0
    damaged: list[str] = []
    count = 0
    try:
        for key, _, size in store.aged("blobs/"):
            count, read = count + 1, read + size
            if _digest(store, key, size) != key.rpartition("/")[2]:
                damaged.append(key)
    except KeyboardInterrupt:
        yield Found("warn", f"interrupted: {count:,} blobs were read", "`%flow doctor --verify` reads them all.")
    owners = belongs_to(store, {key.rpartition("/")[2] for key in damaged})
    for key in damaged:
        who = owners.get(key.rpartition("/")[2], [])
        of = "; ".join(who[:5]) + (f" and {len(who) - 5} more places" if len(who) > 5 else "") if who else "nothing refers to it"
        place = store.local_path(key) or key
        yield Found("bad", f"a blob is damaged ({of})", f"Remove {place}, then what made it runs again: `%flow run`.")
    for key in unreadable(store):
        yield Found(
            "bad", f"{key} is damaged", f"Remove the folder {'/'.join(key.split('/')[:3])} of the store if you can do without that run."
        )
    if not damaged:
        yield Found("ok", f"{count:,} blobs are whole ({size_text(read)} read in {time.perf_counter() - begun:.1f} s)")


def _digest(store: Store, key: str, size: int) -> str:
    hasher = hashlib.sha256()
    try:
        for start in range(0, size, CHUNK):
            hasher.update(store.get_range(key, start, start + CHUNK))
    except StoreError:
        return "unreadable"
    return hasher.hexdigest()


def belongs_to(store: Store, wanted: set[str]) -> dict[str, list[str]]:
    """Address → the places that refer to it, in words: ``run 3 of demo, train[2]: model``."""
    found: dict[str, list[str]] = {}
    for flow, run, key in _referring(store) if wanted else ():
        data = _read(store, key)
        if data is None or not wanted & garbage.addresses(data):
            continue
        who = f"run {run} of {flow}"
        if key.endswith(".COMMIT"):
            step, task = key.removesuffix(".COMMIT").split("/")[-2:]
            index = tuple(int(part) for part in task.split(".") if part.isdigit())
            who += f", {task_name(step, index if task.partition('.')[0] != '0' or '.' in task.removesuffix('.plan') else ())}"
        try:
            for address, place in _places(json.loads(data)):
                if address in wanted:
                    found.setdefault(address, []).append(f"{who}: {place}")
        except ValueError:
            continue  # told as unreadable
    return found


def _places(data: Any) -> Iterator[tuple[str, str]]:
    """Each address in a spec or a COMMIT, and the name of what it is part of: the key below "artifacts", "plans", "captures", …"""
    for part, entries in data.items() if isinstance(data, dict) else ():
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            label = name if part == "artifacts" else f"the items of {name}" if part == "plans" else f"{name} ({part})"
            for address in dict.fromkeys(garbage.addresses(json.dumps(entry).encode())):
                yield address, label


def unreadable(store: Store) -> list[str]:
    """The specs, logs and COMMITs that are not JSON, or cannot be read."""
    return [key for _, _, key in _referring(store) if not _is_json(_read(store, key))]


def _referring(store: Store) -> Iterator[tuple[str, str, str]]:
    for flow in store.names("flows"):
        for run in store.names(f"flows/{flow}"):
            yield from zip(itertools.repeat(flow), itertools.repeat(run), garbage.referring(store, flow, run), strict=False)


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except StoreError:
        return None


def _is_json(data: bytes | None) -> bool:
    try:
        return data is not None and json.loads(data) is not None
    except ValueError:
        return False


CHECKS: tuple[Check, ...] = (
    _versions,
    _settings,
    _notebook,
    _store,
    _free_space,
    _create_if_absent,
    _hard_links,
    _clock,
    _engine,
    _left_over,
    _size,
)
