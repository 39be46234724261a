"""What is kept and what is removed. Ages are set on the files themselves; nothing waits a day."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from flowbook.errors import StoreError, StoreReadOnly, StoreTooNew
from flowbook.store import base, files, garbage, layout
from flowbook.store.files import FilesStore
from flowbook.store.garbage import MIN_AGE_S, Report, collect, retention_due
from flowbook.store.memory import MemoryStore

DAY = MIN_AGE_S + 3600.0


class Bench:
    """A store of files and the runs in it."""

    def __init__(self, root: Path) -> None:
        self.store = FilesStore(root / "project")

    def run(
        self,
        number: int | str,
        flow: str = "demo",
        *,
        ended: str | None = "succeeded",
        reused: str | None = None,
        spec: dict[str, Any] | None = None,
        **artifacts: bytes,
    ) -> dict[str, str]:
        """A run with one task that made `artifacts`; gives the address of each."""
        store, run = self.store, str(number)
        store.create(layout.spec(flow, run), json.dumps({"flow": flow, "run": run, "steps": [], **(spec or {})}).encode())
        made = {name: store.put_blob([content]) for name, content in artifacts.items()}
        entries = {name: {"kind": "value", "blob": address} for name, address in made.items()}
        store.create(layout.commit(flow, run, "a", ()), json.dumps({"v": 1, "artifacts": entries}).encode())
        store.create(layout.output(flow, run, "a", (), 0), b"printed\n")
        self.log(run, 0, {"e": "run_started", "at": 0}, flow=flow)
        if reused is not None:
            self.log(run, 1, {"e": "reused", "at": 1, "step": "a", "index": [], "run": reused}, flow=flow)
        if ended:
            self.log(run, 2, {"e": "run_ended", "at": 2, "state": ended}, flow=flow)
        return made

    def log(self, run: str, number: int, *events: dict[str, Any], flow: str = "demo") -> None:
        self.store.create(layout.log(flow, run, number), json.dumps({"events": list(events)}).encode())

    def age(self, prefix: str = "", seconds: float = DAY) -> None:
        """Let all objects below a prefix be so old."""
        for key in self.store.list(prefix):
            path = self.store.root / key
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))

    def spoil(self, key: str, content: bytes = b'{"artifacts": {') -> None:
        path = self.store.root / key
        path.chmod(0o600)
        path.write_bytes(content)

    def runs(self, flow: str = "demo") -> list[str]:
        return garbage.run_ids(self.store, flow)

    def has(self, address: str) -> bool:
        return self.store.exists(layout.blob(address))


def collect_all(*args: Any, **options: Any) -> Report:
    """As if every run were old."""
    return collect(*args, spare_young=False, **options)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ---- runs -----------------------------------------------------------------------------------------------------------------


def test_the_last_runs_are_kept_and_the_others_removed_whole(bench: Bench) -> None:
    for number in range(1, 13):
        bench.run(number, x=b"of %d" % number)

    report = collect_all(bench.store, 3)

    assert bench.runs() == ["10", "11", "12"]
    assert report.removed == [("demo", str(n)) for n in range(1, 10)]
    assert report.objects == 9 * 5 and report.object_bytes > 9 * 8
    assert sorted(p.name for p in (bench.store.root / "flows/demo").iterdir()) == ["10", "11", "12"]


def test_tagged_open_and_used_runs_are_kept_and_say_why(bench: Bench) -> None:
    bench.run(1, spec={"tags": ["paper", "best"]})
    bench.run(2, ended=None)
    bench.run(3)
    bench.run(4)
    bench.run(5, reused="3")
    bench.run(6)

    report = collect_all(bench.store, 2)

    assert bench.runs() == ["1", "2", "3", "5", "6"]
    assert report.kept["demo", "1"] == "tagged paper, best"
    assert report.kept["demo", "2"] == "open"
    assert report.kept["demo", "3"] == "run 5 took results from it"
    assert report.kept["demo", "6"] == "one of the last 2"


def test_a_run_that_has_only_its_spec_is_open(bench: Bench) -> None:
    bench.store.create(layout.spec("demo", "1"), b"{}")
    bench.run(2)

    assert collect_all(bench.store, 1).removed == []


def test_what_a_removed_run_used_is_removed_with_it(bench: Bench) -> None:
    bench.run(1)
    bench.run(2, reused="1")
    bench.run(3)

    collect_all(bench.store, 1)

    assert bench.runs() == ["3"]


def test_one_flow_is_collected_and_the_others_are_left_alone(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.run(number)
        bench.run(number, "other")

    collect_all(bench.store, 1, "demo")
    assert (bench.runs(), bench.runs("other")) == (["3"], ["1", "2", "3"])

    collect_all(bench.store, 1)
    assert bench.runs("other") == ["3"]


def test_zero_keeps_all_and_a_negative_number_is_refused(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.run(number)

    assert collect_all(bench.store, 0).removed == [] and not retention_due(bench.store, "demo", 0)
    with pytest.raises(ValueError, match="0 for all; got -1"):
        collect_all(bench.store, -1)


def test_collecting_is_due_when_enough_runs_have_gathered(bench: Bench) -> None:
    for number in range(7):
        bench.run(number)

    assert retention_due(bench.store, "demo", 1)
    assert not retention_due(bench.store, "demo", 2)
    assert not retention_due(bench.store, "never", 1)


def test_a_dry_run_removes_nothing_and_tells_the_same(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.run(number, x=b"x" * 1000 * number)
    bench.age()
    before = list(bench.store.list(""))

    told = collect_all(bench.store, 1, dry_run=True)
    assert list(bench.store.list("")) == before

    done = collect_all(bench.store, 1)
    assert (told.removed, told.objects, told.object_bytes, told.blobs, told.blob_bytes) == (
        done.removed,
        done.objects,
        done.object_bytes,
        done.blobs,
        done.blob_bytes,
    )
    assert (done.blobs, done.blob_bytes) == (2, 3000)


def test_half_a_run_goes_once_it_is_old(bench: Bench) -> None:
    bench.run(1)
    bench.run(2)
    bench.store.delete(layout.spec("demo", "1"))

    collect_all(bench.store)
    assert list(bench.store.list("flows/demo/1/")) != []

    bench.age("flows/demo/1/")
    report = collect_all(bench.store)
    assert list(bench.store.list("flows/demo/1/")) == [] and report.removed == [] and report.objects == 4


def test_a_collection_that_is_killed_leaves_no_listed_half_of_a_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(1)
    bench.run(2)

    def killed(self: FilesStore, folder: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FilesStore, "delete_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_all(bench.store, 1)
    assert bench.runs() == ["2"]

    bench.age("flows/demo/1/")
    collect_all(bench.store, 1)
    assert list(bench.store.list("flows/demo/1/")) == []


# ---- blobs ----------------------------------------------------------------------------------------------------------------


def test_blobs_that_only_removed_runs_used_go_once_they_are_old(bench: Bench) -> None:
    old = bench.run(1, own=b"own", both=b"both")
    bench.run(2, both=b"both")

    collect_all(bench.store, 1)
    assert bench.has(old["own"])  # too young

    bench.age("blobs/")
    report = collect_all(bench.store, 1)
    assert not bench.has(old["own"]) and bench.has(old["both"])
    assert (report.blobs, report.blob_bytes) == (1, 3)


def test_every_place_that_names_a_blob_keeps_it(bench: Bench) -> None:
    store = bench.store
    blobs = {
        place: store.put_blob([place.encode()]) for place in ("capture", "module", "param", "file", "items", "further", "logged", "lost")
    }
    spec = {
        "captures": {"f": {"entry": {"kind": "value", "blob": blobs["capture"]}, "kind": "function"}},
        "modules": {"helper": {"file": "helper.py", "blob": blobs["module"]}},
        "params": {"p": {"kind": "value", "blob": blobs["param"]}},
    }
    bench.run(1, spec=spec)
    commit = {
        "artifacts": {"f": {"kind": "value", "inline": "…", "blobs": [blobs["file"]]}},
        "plans": {"b": {"count": 1, "items": blobs["items"], "blobs": [blobs["further"]]}},
    }
    store.create(layout.commit("demo", "1", "b", (), "plan"), json.dumps(commit).encode())
    bench.log("1", 5, {"e": "succeeded", "plans": {"b": {"items": blobs["logged"]}}})
    bench.age()

    collect_all(store, 1)

    assert [place for place, address in blobs.items() if not bench.has(address)] == ["lost"]


def test_blobs_of_other_flows_and_of_open_runs_are_kept(bench: Bench) -> None:
    other = bench.run(1, "other", x=b"other")
    running = bench.run(1, ended=None, x=b"running")
    for number in (2, 3):
        bench.run(number)
    bench.age()

    collect_all(bench.store, 1, "demo")

    assert bench.has(other["x"]) and bench.has(running["x"])


def test_who_reuses_a_blob_saves_it(bench: Bench) -> None:
    address = bench.run(1, x=b"x")["x"]
    bench.run(2)
    bench.age()

    bench.store.keep(layout.blob(address))  # an engine takes the result over, and has not yet written its COMMIT
    collect_all(bench.store, 1)
    assert bench.has(address)

    bench.age("blobs/")
    assert bench.store.put_blob([b"x"]) == address  # a worker saves the same content
    collect_all(bench.store, 1)
    assert bench.has(address)


def test_large_content_that_is_known_without_its_size_is_saved_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"x" * 1000
    address = base.digest([content])
    bench.store.create(layout.blob(address), content)  # as a File value is stored
    bench.age()
    monkeypatch.setattr(files, "LARGE_BYTES", 1000)

    assert bench.store.put_blob([content]) == address
    collect_all(bench.store)
    assert bench.has(address)


def test_a_blob_that_is_reused_while_garbage_is_collected_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    address = bench.run(1, x=b"x")["x"]
    bench.run(2)
    bench.age()
    referred = garbage._referred

    def reused_meanwhile(store: Any, report: Report) -> set[str]:
        found = referred(store, report)
        store.keep(layout.blob(address))
        return found

    monkeypatch.setattr(garbage, "_referred", reused_meanwhile)
    report = collect_all(bench.store, 1)

    assert bench.has(address) and report.blobs == 0


def test_without_thorough_blobs_are_looked_at_only_if_a_run_was_removed(bench: Bench) -> None:
    lost = bench.store.put_blob([b"lost"])
    bench.run(1)
    bench.age()

    assert collect_all(bench.store, 1, "demo", thorough=False).blobs == 0 and bench.has(lost)
    bench.run(2)
    assert collect_all(bench.store, 1, "demo", thorough=False).blobs == 1 and not bench.has(lost)


# ---- files ----------------------------------------------------------------------------------------------------------------


def test_unfinished_writes_and_copies_of_removed_blobs_go_once_they_are_old(bench: Bench) -> None:
    kept = bench.run(1, x=b"kept")["x"]
    local = bench.store.local_dir()
    gone = "0" * 64
    for name in (kept, gone, f"{gone}.d", ".12-0123456789abcdef", "engines", "run-1-99-ab"):
        (local / name).mkdir()
        (local / name / "file").write_bytes(b"12345")
    (bench.store.root / "tmp" / "99-ab").write_bytes(b"half")

    collect_all(bench.store)
    assert (local / gone).exists() and (bench.store.root / "tmp" / "99-ab").exists()

    for path in (*local.iterdir(), bench.store.root / "tmp" / "99-ab"):
        then = path.stat().st_mtime - DAY
        os.utime(path, (then, then))
    report = collect_all(bench.store)
    assert sorted(p.name for p in local.iterdir()) == sorted([kept, "engines", "run-1-99-ab"])
    assert list((bench.store.root / "tmp").iterdir()) == [] and report.other_bytes == 19


# ---- damage ---------------------------------------------------------------------------------------------------------------


def test_a_damaged_spec_is_named_and_its_run_kept(bench: Bench) -> None:
    lost = bench.store.put_blob([b"may be one of its captures"])
    for number in (1, 2, 3):
        bench.run(number)
    bench.spoil(layout.spec("demo", "1"))
    bench.age()

    report = collect_all(bench.store, 1)

    assert bench.runs() == ["1", "3"] and report.kept["demo", "1"] == "cannot be read"
    assert list(report.damaged) == [layout.spec("demo", "1")] and bench.has(lost)
    assert report.troubles == ["no blob was removed, since what cannot be read may refer to any"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b'{"events": 3}', b'{"events": [3]}', b'{"events": [', b"\xff"])
def test_a_damaged_log_keeps_all_that_it_may_name(bench: Bench, content: bytes) -> None:
    for number in (1, 2, 3):
        bench.run(number)
    bench.spoil(layout.log("demo", "3", 0), content)

    report = collect_all(bench.store, 1)

    assert bench.runs() == ["1", "2", "3"]
    assert report.kept["demo", "1"] == "the log of run 3 is damaged, and may name it"
    assert layout.log_prefix("demo", "3") in report.damaged


def test_a_log_whose_end_cannot_be_read_is_not_taken_for_ended(bench: Bench) -> None:
    for number in (1, 2):
        bench.run(number)
    bench.spoil(layout.log("demo", "1", 2))

    assert collect_all(bench.store, 1).removed == []


def test_a_damaged_commit_keeps_every_blob(bench: Bench) -> None:
    lost = bench.store.put_blob([b"lost"])
    bench.run(1)
    bench.spoil(layout.commit("demo", "1", "a", ()))
    bench.age()

    report = collect_all(bench.store)

    assert bench.has(lost) and layout.commit("demo", "1", "a", ()) in report.damaged


def test_damage_in_a_run_that_goes_is_no_reason_to_keep_anything(bench: Bench) -> None:
    gone = bench.run(1, x=b"x")["x"]
    bench.run(2)
    bench.spoil(layout.commit("demo", "1", "a", ()))
    bench.age()

    report = collect_all(bench.store, 1)

    assert bench.runs() == ["2"] and not bench.has(gone) and report.damaged == {}


def test_strange_files_in_the_store_do_no_harm(bench: Bench) -> None:
    bench.run(1)
    for name in ("flows/stray", "flows/demo/stray", "blobs/zz/not-an-address", "flows/demo/1/b/x/y/z"):
        path = bench.store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{")
    bench.age()

    report = collect_all(bench.store, 1)

    assert bench.runs() == ["1"] and report.damaged == {}


def test_a_run_that_cannot_be_removed_is_told_and_the_others_go(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        bench.run(number)
    delete = FilesStore.delete

    def refuse(self: FilesStore, key: str) -> None:
        if key == layout.spec("demo", "1"):
            raise StoreReadOnly(f"cannot write {key}")
        delete(self, key)

    monkeypatch.setattr(FilesStore, "delete", refuse)
    report = collect_all(bench.store, 1)

    assert bench.runs() == ["1", "3"] and report.removed == [("demo", "2")]
    assert "run 1 of demo could not be removed" in report.troubles[0]


def test_an_empty_store_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    assert collect(FilesStore(tmp_path / "none")) == Report() and not (tmp_path / "none").exists()

    store = FilesStore(tmp_path / "new")
    store.create("flows/demo/1/run.json", b"{}")
    (tmp_path / "new/store.json").chmod(0o600)
    (tmp_path / "new/store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreTooNew):
        collect(FilesStore(tmp_path / "new"))
    with pytest.raises(StoreError, match="not a key"):
        collect_all(store, flow="../x")


# ---- beside others --------------------------------------------------------------------------------------------------------


def test_many_collections_at_once_beside_a_writer(bench: Bench) -> None:
    for number in range(1, 31):
        bench.run(number, x=b"x%d" % number, shared=b"shared")
    bench.age()
    reports: list[Report] = []
    threads = [threading.Thread(target=lambda: reports.append(collect(FilesStore(bench.store.root), 5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(31, 41):
        bench.run(number, x=b"x%d" % number, shared=b"shared")
    for thread in threads:
        thread.join()
    collect_all(bench.store, 5)

    assert len(reports) == 4 and all(report.troubles == [] and report.damaged == {} for report in reports)
    assert bench.runs() == [str(n) for n in range(36, 41)]
    for number in bench.runs():
        commit = json.loads(bench.store.get(layout.commit("demo", number, "a", ())))
        assert all(bench.has(entry["blob"]) for entry in commit["artifacts"].values())


def test_the_memory_store_is_collected_too() -> None:
    store = MemoryStore()
    for number in ("1", "2"):
        blob = store.put_blob([number.encode()])
        store.create(layout.spec("demo", number), json.dumps({"captures": {"x": {"entry": {"blob": blob}}}}).encode())
        store.create(layout.log("demo", number, 0), b'{"events": [{"e": "run_ended"}]}')

    assert collect_all(store, 1).blobs == 0
    assert collect_all(store, 1, min_age_s=0).blobs == 1
    assert len(list(store.list("flows/demo/1"))) == 0 and len(list(store.list("blobs/"))) == 1
