"""The store: is it there, can it be written, does it keep its promise, is there room; and, if asked, is every blob whole.

Nothing is changed, but that the store is tried with objects which are removed at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flowbook.engine.doctor.core import Check, Found
from flowbook.errors import StoreError
from flowbook.spec.amounts import counted, size_text
from flowbook.spec.flow import task_name
from flowbook.store import garbage, layout
from flowbook.store.base import FORMAT, Store, open_store
from flowbook.store.files import FilesStore

WRITERS, KEYS = 32, 50
CONTEST_S = 180.0  # a server that takes a tenth of a second for each object is not to blame
SIZES_S = 60.0  # a large store is listed page by page
LEAST_FREE, LEAST_FREE_BYTES = 0.05, 1e9
MOST_SKEW_S = 60.0
CHUNK = 1 << 24


def checks(store: Store, keep_runs: int, *, verify: bool = False) -> list[Check]:
    """`keep_runs`: the setting. `verify`: every blob is read, too."""
    found = [
        Check("store", f"the store {store.where}", partial(usable, store), gate=True),
        Check("store", "room", partial(free_space, store)),
        Check("store", "create-if-absent", partial(create_if_absent, store), CONTEST_S),
        Check("store", "hard links", partial(hard_links, store)),
        Check("store", "clocks", partial(clock, store)),
        Check("store", "sizes", partial(size, store, keep_runs), SIZES_S),
    ]
    return [*found, Check("store", "blobs", partial(verified, store), None)] if verify else found


def usable(store: Store) -> Iterator[Found]:
    """Whether anything can be done with it at all, and with what rights."""
    if store.describe()["kind"] == "s3":
        from flowbook.store.s3 import S3Store
        from flowbook.store.s3_check import check

        assert isinstance(store, S3Store)
        told = [Found(*each) for each in check(store)]
        yield from told
        if any(each.state == "bad" for each in told):
            return
    name = f"{os.getpid()}-{os.urandom(8).hex()}"
    key = layout.probe(name, 0)
    try:
        store.create(key, b"probe")
        same = store.get(key) == b"probe"
    except StoreError as error:
        yield Found("bad", f"the store {store.where} cannot be used: {error}")
        return
    finally:
        _clear(store, name)
    if not same:
        yield Found("bad", f"the store {store.where} gives back something else than was written", "Use a store on another disk.")
        return
    number = json.loads(store.get(layout.STORE)).get("format") if store.exists(layout.STORE) else FORMAT
    yield Found("ok", f"store {store.where}, format {number}, can be written")


def free_space(store: Store) -> Iterator[Found]:
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


def create_if_absent(store: Store) -> Iterator[Found]:
    description = store.describe()
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


def hard_links(store: Store) -> Iterator[Found]:
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


def clock(store: Store) -> Iterator[Found]:
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


def size(store: Store, keep: int) -> Iterator[Found]:
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


# ---- blobs, read ----------------------------------------------------------------------------------------------------------


def verified(store: Store) -> Iterator[Found]:
    begun, read = time.perf_counter(), 0
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
