"""What is kept, and what is removed: old runs first, then blobs that nothing refers to any more.

A run is kept if it is one of the last, has a tag now (see tags.py), is open (its log has no run_ended), or if a kept run took results
from it. A blob is kept if its address stands anywhere in the spec, the log or a COMMIT of any run: any 64 hex digits count, so whatever a later
version writes there is safe. What is younger than 24 h by the store's own clock is never touched, and who reuses a blob makes it
young again (Store.keep), so that engines may run meanwhile. What cannot be read is named, and all that it may refer to is kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowbook.errors import StoreError, StoreMissing
from flowbook.store import files, glance, layout, tags
from flowbook.store.base import Store

Json = Any
RunKey = tuple[str, str]  # flow, run

KEEP_RUNS = 20
SLACK_RUNS = 5  # so many more may gather before it is worth while to collect
MIN_AGE_S = 24 * 3600.0
ADDRESS = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass
class Report:
    """What was removed, or would be (`dry_run`). Sizes are bytes."""

    dry_run: bool = False
    removed: list[RunKey] = field(default_factory=list)
    kept: dict[RunKey, str] = field(default_factory=dict)  # run → why, of the flows that were looked at
    objects: int = 0  # of removed runs, and of what was left of runs that were half removed
    object_bytes: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    other_bytes: int = 0  # unfinished writes of killed processes, and local copies of removed blobs
    damaged: dict[str, str] = field(default_factory=dict)  # key → what is wrong with it
    troubles: list[str] = field(default_factory=list)  # what could not be done

    @property
    def bytes(self) -> int:
        return self.object_bytes + self.blob_bytes + self.other_bytes


def retention_due(store: Store, flow: str, keep_runs: int = KEEP_RUNS) -> bool:
    """Whether so many runs of the flow have gathered that `collect` is worth while. One listing; raises StoreError."""
    return keep_runs > 0 and len(list(store.names(layout.flow_prefix(flow).rstrip("/")))) > keep_runs + SLACK_RUNS


def collect(
    store: Store,
    keep_runs: int = KEEP_RUNS,
    flow: str | None = None,
    *,
    dry_run: bool = False,
    thorough: bool = True,
    min_age_s: float = MIN_AGE_S,
    spare_young: bool = True,
) -> Report:
    """Remove old runs of one flow (None: of all), then blobs of the project that nothing refers to.

    `keep_runs` 0 keeps all runs; with `spare_young` those that began less than `min_age_s` ago are kept, too. Without `thorough` blobs are looked at only if a run was removed, which is what an engine wants
    after each of its runs. Safe in any thread and beside other processes. Raises StoreError only if the store as a whole cannot
    be read; what goes wrong with one object stands in the report.
    """
    if keep_runs < 0:
        raise ValueError(f"keep_runs is the number of runs to keep, 0 for all; got {keep_runs}")
    report = Report(dry_run)
    for name in [flow] if flow is not None else list(store.names("flows")):
        _retire(store, name, keep_runs, min_age_s, spare_young, report)
    for key, age_s, _ in list(store.aged("probes/")) if not dry_run else ():
        if age_s >= min_age_s:
            store.delete(key)  # of a doctor that was killed
    if thorough or report.removed:
        _sweep_blobs(store, min_age_s, report)
    if isinstance(store, files.FilesStore) and store.root.is_dir() and not dry_run:
        _sweep_files(store, min_age_s, report)
    elif (sweep := getattr(store, "sweep", None)) is not None:  # of S3, which this room need not load to ask
        try:
            sweep(min_age_s, dry_run=dry_run)
        except StoreError as error:
            report.troubles.append(f"unfinished uploads could not be given up: {error}")
    return report


def run_ids(store: Store, flow: str) -> list[str]:
    """The runs of a flow, oldest first."""
    names = list(store.names(f"flows/{flow}"))
    keys = [layout.spec(flow, run) for run in names]
    if store.mapped or len(keys) < 2:
        there = list(map(store.exists, keys))
    else:  # each is a request
        with ThreadPoolExecutor(8, "flowbook-runs") as pool:
            there = list(pool.map(store.exists, keys))
    return sorted((run for run, exists in zip(names, there, strict=True) if exists), key=layout.run_order)


def is_open(store: Store, flow: str, run: str) -> bool:
    """Whether the log of a run lacks its end. Raises StoreError, naming the key, for a damaged log."""
    last = max(store.list(layout.log_prefix(flow, run)), default=None)
    return last is None or all(event.get("e") != "run_ended" for event in _events(store, last))


def referring(store: Store, flow: str, run: str) -> Iterator[str]:
    """The keys of a run whose objects may refer to blobs: its spec, its log, its COMMITs, its checkpoints."""
    for key in store.list(layout.run_prefix(flow, run)):
        if (
            key.endswith((".COMMIT", "/run.json"))
            or key.startswith(layout.log_prefix(flow, run))
            or (key.endswith(".json") and "/checkpoints/" in key)
        ):
            yield key


def addresses(data: bytes) -> set[str]:
    """All that may be a blob's address in an object."""
    return {found.decode() for found in ADDRESS.findall(data)}


# ---- runs ---------------------------------------------------------------------------------------------------------------


def _retire(store: Store, flow: str, keep_runs: int, min_age_s: float, spare_young: bool, report: Report) -> None:
    ids = run_ids(store, flow)
    kept = _kept(store, flow, ids, keep_runs, report)
    for run in ids if spare_young else ():
        if run not in kept and any(found.age_s < min_age_s for found in store.aged(layout.spec(flow, run))):
            kept[run] = "began less than a day ago"
    report.kept |= {(flow, run): kept[run] for run in ids if run in kept}
    for run in ids:
        if run not in kept and _remove(store, flow, run, report):
            report.removed.append((flow, run))
    names = list(store.names(f"flows/{flow}"))
    last = max((int(run) for run in names if run.isdigit()), default=0)
    for run in names:
        if run == str(last) and store.exists(layout.deleted(flow, run)):
            continue  # else the next run would get its number
        if not store.exists(layout.spec(flow, run)) and (flow, run) not in report.removed:
            ages = [found.age_s for found in store.aged(layout.run_prefix(flow, run))]
            if ages and min(ages) >= min_age_s:  # else it may be one that is being removed, by another collection
                _remove(store, flow, run, report)
    if report.removed and not report.dry_run:
        glance.forget(store, flow, [run for name, run in report.removed if name == flow])


def _kept(store: Store, flow: str, ids: list[str], keep_runs: int, report: Report) -> dict[str, str]:
    """Run → why it is kept."""
    if not keep_runs or len(ids) <= keep_runs:
        return dict.fromkeys(ids, "all runs are kept" if not keep_runs else f"one of the last {keep_runs}")
    kept = dict.fromkeys(ids[-keep_runs:], f"one of the last {keep_runs}")
    for run in ids[:-keep_runs]:
        why = _why_kept(store, flow, run, report)
        if why:
            kept[run] = why
    for run in list(kept):
        try:
            taken: Iterable[str] = origins(store, flow, run)
            why = f"run {run} took results from it"
        except StoreMissing:
            continue  # removed meanwhile
        except StoreError as error:
            report.damaged[layout.log_prefix(flow, run)] = str(error)
            taken, why = ids, f"the log of run {run} is damaged, and may name it"
        for origin in taken:
            if origin in ids:
                kept.setdefault(origin, why)
    return kept


def _why_kept(store: Store, flow: str, run: str, report: Report) -> str:
    key = layout.spec(flow, run)
    try:
        tagged, _ = tags.read(store, flow, run, _json(store, key).get("tags") or ())
        if tagged:
            return f"tagged {', '.join(map(str, tagged))}"
        key = layout.log_prefix(flow, run)
        return "open" if is_open(store, flow, run) else ""
    except StoreMissing:
        return ""  # removed meanwhile
    except (StoreError, TypeError) as error:
        report.damaged[key] = str(error)
        return "cannot be read"


def origins(store: Store, flow: str, run: str) -> set[str]:
    """The runs of which a run took results, or, as one that it resumes, may still take some."""
    try:
        resumed = _json(store, layout.spec(flow, run)).get("origin")
    except StoreMissing:
        raise
    except StoreError:
        resumed = None  # it cannot go on either
    return {str(resumed)} - {"None"} | {
        str(event["run"])
        for key in store.list(layout.log_prefix(flow, run))
        for event in _events(store, key)
        if event.get("e") == "reused" and "run" in event
    }


def _remove(store: Store, flow: str, run: str, report: Report) -> bool:
    """Remove a run, run.json first: whatever happens then, half a run is never listed."""
    prefix = layout.run_prefix(flow, run)
    try:
        found = list(store.aged(prefix))
        if not report.dry_run:
            store.delete(layout.spec(flow, run))
            store.delete_folder(prefix.rstrip("/"))
    except StoreError as error:
        report.troubles.append(f"run {run} of {flow} could not be removed: {error}")
        return False
    report.objects += len(found)
    report.object_bytes += sum(each.size for each in found)
    return True


# ---- blobs --------------------------------------------------------------------------------------------------------------


def _sweep_blobs(store: Store, min_age_s: float, report: Report) -> None:
    old = {key.rpartition("/")[2] for key, age_s, _ in store.aged("blobs/") if age_s >= min_age_s}
    if not old:
        return
    old -= _referred(store, report)
    if report.damaged:
        report.troubles.append("no blob was removed, since what cannot be read may refer to any")
        return
    try:
        for key, age_s, size in store.aged("blobs/"):
            # Asked anew: whoever reused it meanwhile has made it young.
            if key.rpartition("/")[2] in old and age_s >= min_age_s:
                if not report.dry_run:
                    store.delete(key)
                report.blobs += 1
                report.blob_bytes += size
    except StoreError as error:
        report.troubles.append(f"not all blobs could be removed: {error}")


def _referred(store: Store, report: Report) -> set[str]:
    """The addresses that stand in what is left of all runs of the project."""
    found: set[str] = set()
    gone = set(report.removed)
    for flow in store.names("flows"):
        for run in store.names(f"flows/{flow}"):
            if (flow, run) in gone:
                continue
            for key in referring(store, flow, run):
                try:
                    data = store.get(key)
                    found |= addresses(data)
                    json.loads(data)
                except StoreMissing:
                    continue  # removed meanwhile
                except StoreError as error:
                    report.damaged[key] = str(error)
                except ValueError:
                    report.damaged[key] = f"{key} is damaged: it is not JSON"
    return found


# ---- files --------------------------------------------------------------------------------------------------------------


def _sweep_files(store: files.FilesStore, min_age_s: float, report: Report) -> None:
    """What only a store of files has: tmp/, and the files that were made of blobs which are gone."""
    try:
        report.other_bytes += files.sweep(store, min_age_s)
        now = store.now()
        for path in list(store.local_dir().iterdir()):
            address = path.name.removesuffix(".d")
            made_of = layout.blob(address) if re.fullmatch("[0-9a-f]{64}", address) else None
            building = re.fullmatch(r"\.\d+-[0-9a-f]{16}", path.name)  # a Directory whose reader was killed
            if (building or (made_of and not store.exists(made_of))) and now - _touched(path) >= min_age_s:
                report.other_bytes += remove_tree(path)
    except (OSError, StoreError) as error:
        report.troubles.append(f"not all temporary files could be removed: {error}")


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def remove_tree(path: Path, *, dry_run: bool = False) -> int:
    """Remove a folder, as far as that is possible; gives its bytes. Links are not followed."""
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                found = (Path(folder) / name).lstat()
                size += found.st_size if found.st_nlink == 1 else 0  # a linked one frees nothing
            except OSError:
                continue  # gone meanwhile
    if not dry_run:
        shutil.rmtree(path, ignore_errors=True)
    return size


# ---- reading ------------------------------------------------------------------------------------------------------------


def _json(store: Store, key: str) -> dict[str, Json]:
    try:
        found = json.loads(store.get(key))
    except ValueError:
        raise StoreError(f"{key} is damaged: it is not JSON") from None
    if not isinstance(found, dict):
        raise StoreError(f"{key} is damaged: it is not a JSON object")
    return found


def _events(store: Store, key: str) -> list[dict[str, Json]]:
    found = _json(store, key).get("events")
    if not isinstance(found, list) or not all(isinstance(event, dict) for event in found):
        raise StoreError(f"{key} is damaged: it does not hold the events of a run")
    return found
