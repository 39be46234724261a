"""`%flow gc` and `%flow doctor`: in a real kernel, in plain IPython, and their parts with what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flowbook.engine import registry
from flowbook.engine.doctor import storage
from flowbook.engine.doctor.core import Found
from flowbook.engine.registry import Entry
from flowbook.kernel import doctor, housekeeping
from flowbook.kernel.housekeeping import Orphan, orphans, remove
from flowbook.store import layout
from flowbook.store.files import FilesStore
from tests.kernel.conftest import Notebook

OLD_S = housekeeping.LEFT_FOR_S + 60


def older(path: Path, seconds: float = OLD_S) -> Path:
    """Let a file or folder, and all in it, be so old."""
    for each in (*path.rglob("*"), path):
        then = each.stat().st_mtime - seconds
        os.utime(each, (then, then))
    return path


# ---- gc in a kernel ---------------------------------------------------------------------------------------------------------


def test_gc_removes_old_runs_and_the_names_still_load(book: Notebook) -> None:
    book.ok("%%flowparams\nn: int = 1")
    book.ok("%%flowstep a\nx = bytes(100_000) + bytes([n])")
    for n in (1, 2, 3):
        book.ok(f"%flow run --n {n}" + (" --tag first" if n == 1 else ""))
    store = FilesStore(book.folder / "store/default")

    tried = book.ok("%flow gc --keep 1 --dry-run").stdout
    assert "would remove 1 run of book: 2" in tried and "would free" in tried
    assert sorted(store.names("flows/book")) == ["1", "2", "3"]

    for path in (store.root / "blobs").rglob("*"):
        older(path, 25 * 3600)
    done = book.ok("%flow gc --keep 1").stdout
    assert "removed 1 run of book: 2" in done and "1 blob that nothing refers to, 100 kB" in done
    assert "kept 2 runs (1 tagged, 1 the last)" in done
    assert sorted(store.names("flows/book")) == ["1", "3"]
    assert book.value("x[-1]") == "3"
    assert "nothing to remove" in book.ok("flow.gc(keep=1, all_flows=True)").stdout


def test_gc_keeps_what_the_setting_says(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, kernel_env={"FLOWBOOK_KEEP_RUNS": "2"})
    try:
        notebook.ok("%load_ext flowbook\n")
        notebook.ok("%%flowparams\nn: int = 1")
        notebook.ok("%%flowstep a\nx = n")
        for n in (1, 2, 3):
            notebook.ok(f"%flow run --n {n}")
        assert "kept 3 runs (1 of today, 2 the last)" in notebook.ok("%flow gc").stdout
        older(tmp_path / "store/default/flows/book/1/run.json", 25 * 3600)
        assert "1 run of book: 1" in notebook.ok("%flow gc").stdout
    finally:
        notebook.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%flow gc --keep 0", "'0' is not a number above 0"),
        ("%flow gc --keep many", "'many' is not a number above 0"),
        ("%flow gc --dry-rum", "did you mean --dry-run?"),
        ("%flow gc --flow ../x", "not a flow's name"),
        ("%flow gc 3", "unknown option '3'"),
        ("%flow doctor --verfy", "did you mean --verify?"),
        ("flow.gc(keep=-1)", "-1"),
    ],
)
def test_bad_words_are_told(book: Notebook, line: str, said: str) -> None:
    assert said in book.fails(line)


def test_gc_names_what_is_damaged_and_goes_on(book: Notebook) -> None:
    book.ok("%%flowparams\nn: int = 1")
    book.ok("%%flowstep a\nx = n")
    for n in (1, 2, 3):
        book.ok(f"%flow run --n {n}")
    spec = book.folder / "store/default/flows/book/1/run.json"
    spec.chmod(0o600)
    spec.write_text('{"flow": ')

    said = book.ok("%flow gc --keep 1").stdout

    assert "removed 1 run of book: 2" in said
    assert "flows/book/1/run.json is damaged: it is not JSON" in said and "remove the folder flows/book/1" in said


# ---- what killed engines left -----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> FilesStore:
    made = FilesStore(tmp_path / "project")
    made.create("flows/demo/7/run.json", b"{}")
    made.create(layout.log("demo", "7", 0), b'{"events": [{"e": "run_ended", "state": "succeeded"}]}')
    made.create("flows/demo/8/run.json", b"{}")
    return made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder as kernels make them for their engines, with what tasks and fork servers leave in it."""
    with tempfile.TemporaryDirectory(prefix="flowbook-") as name:
        path = Path(name)
        (path / "engine.log").write_text("started\n")
        (path / "scratch-1").mkdir()
        (path / "scratch-1" / "big").write_bytes(bytes(1000))
        yield path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def enter(store: FilesStore, pid: int, folder: Path, path: str = "") -> Path:
    return registry.enter(store, Entry(pid, path or str(folder / "engine.sock"), str(folder), "0", sys.executable))


def test_a_killed_engine_leaves_nothing_but_its_log(store: FilesStore, folder: Path) -> None:
    entry = enter(store, dead_pid(), folder)
    assert orphans(store) == []  # it may be starting

    older(entry)
    found = orphans(store)
    assert [(orphan.path.name, orphan.kind) for orphan in found] == [("scratch-1", "scratch"), (entry.name, "engine")]

    size = entry.stat().st_size
    assert [remove(orphan, dry_run=True) for orphan in found] == [1000, size] and entry.exists()
    assert [remove(orphan) for orphan in found] == [1000, size]
    assert [path.name for path in folder.iterdir()] == ["engine.log"] and orphans(store) == []
    assert [remove(orphan) for orphan in found] == [0, 0]


def test_an_engine_that_answers_or_whose_process_runs_is_left_alone(store: FilesStore, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "engine.sock"))
        listening.listen()
        older(enter(store, dead_pid(), folder))
        assert orphans(store) == []

    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "flowbook.engine"], stdin=subprocess.PIPE)
    try:
        older(enter(store, process.pid, folder))
        (store.local_dir() / f"run-7-{process.pid}-ab").mkdir()
        older(store.local_dir() / f"run-7-{process.pid}-ab")
        assert {orphan.path.name for orphan in orphans(store)} & {f"{process.pid}.json", f"run-7-{process.pid}-ab"} == set()
    finally:
        process.communicate()


def test_an_engine_that_was_started_again_in_its_folder_keeps_what_is_there(store: FilesStore, folder: Path) -> None:
    gone = older(enter(store, dead_pid(), folder))
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "flowbook.engine"], stdin=subprocess.PIPE)
    try:
        older(enter(store, process.pid, folder))
        assert orphans(store) == [Orphan(gone, "engine")]
    finally:
        process.communicate()


def test_only_folders_that_kernels_made_are_emptied(store: FilesStore, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "engine.log").write_text("")
    (home / "thesis").write_text("years")
    link = tmp_path / "flowbook-link"
    link.symlink_to(home)
    for place in (home, link, tmp_path / "flowbook-elsewhere"):
        older(enter(store, dead_pid(), place))

    assert [orphan.path for orphan in orphans(store) if orphan.kind == "scratch"] == []


def test_an_entry_of_another_machine_is_forgotten_after_a_week(store: FilesStore, tmp_path: Path) -> None:
    entry = enter(store, dead_pid(), tmp_path / "flowbook-elsewhere")
    older(entry)
    assert orphans(store) == []

    older(entry, housekeeping.FORGET_S)
    assert orphans(store) == [Orphan(entry, "engine")]


def test_output_folders_go_when_they_are_old_and_their_run_has_ended(store: FilesStore) -> None:
    pid = dead_pid()
    for name in (f"run-7-{pid}-ab", f"run-8-{pid}-ab", f"run-x-y-{pid}-ab", "run-7", "run-7-ab", f"run-7-{10**12}-cd"):
        (store.local_dir() / name).mkdir()
        (store.local_dir() / name / "a-0-0").write_bytes(b"said")
    assert orphans(store) == []

    for path in store.local_dir().glob("run-*"):
        older(path)
    assert [orphan.path.name for orphan in orphans(store)] == [f"run-7-{10**12}-cd", f"run-7-{pid}-ab", f"run-x-y-{pid}-ab"]

    (store.local_dir() / f"run-7-{pid}-ab" / "a-0-0").write_bytes(b"said more")
    assert f"run-7-{pid}-ab" not in [orphan.path.name for orphan in orphans(store)]


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"pid": "x", "socket": 3}', '{"pid": 1, "socket": "s", "folder": null}', "\xff"])
def test_a_damaged_entry_does_no_harm(store: FilesStore, text: str) -> None:
    path = store.local_dir() / "engines" / "1.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    older(path)

    assert [orphan for orphan in orphans(store) if orphan.kind != "engine"] == []


def test_a_kernel_whose_engine_was_killed_tidies_up_and_starts_another(lab: Notebook) -> None:
    lab.ok("%%flowstep a\nx = 1")
    lab.ok("%flow run --wait")
    store = FilesStore(lab.folder / "store/default")
    [(entry, engine)] = registry.entries(store)
    os.kill(engine.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(engine.pid)] if psutil.pid_exists(engine.pid) else [], timeout=30)
    deadline = time.monotonic() + 30
    while engine.lives() or housekeeping.lives(engine.pid):
        assert time.monotonic() < deadline
    older(entry)

    assert "! killed engines left something: 1 entry" in lab.ok("%flow doctor").text
    assert "what killed engines left" in lab.ok("%flow gc").text
    assert not entry.exists() or json.loads(entry.read_text())["pid"] != engine.pid
    lab.ok("%flow run --wait")
    assert "no killed engine has left anything" in lab.ok("%flow doctor").text


# ---- doctor -----------------------------------------------------------------------------------------------------------------


def test_a_healthy_notebook_is_told_so_as_text_and_html(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1", "c1")
    book.ok("%flow run", "c2")
    shown = next(iter(book.ok("%flow doctor", "c3").displays.values()))
    text = shown["text/plain"]

    assert [line for line in text.splitlines() if line.startswith(("!", "✗"))] == [], text
    for said in ("flowbook ", "Python 3", "ipykernel ", "format 1", "free on", "32 writers", "hard links", "clocks", "engine answers"):
        assert said in text
    assert "1 run of 1 flow" in text and text.endswith("all is well") and "steps are started by" in text
    assert "<b " in shown["text/html"] and "32 writers" in shown["text/html"]
    assert list((book.folder / "store/default/probes").iterdir()) == []


def test_a_client_without_cell_ids_is_told(book: Notebook) -> None:
    assert "! the client sends no cell ids" in book.ok("flow.doctor()").text


def test_verify_names_what_is_damaged_and_whose_it_is(book: Notebook) -> None:
    book.ok("%%flowstep start\nitems = [1, 2]")
    book.ok('%%flowstep work --foreach "i in items"\ndata = bytes([i]) * 100_000\nmore = 1')
    book.ok("%flow run")
    assert "blobs are whole" in book.ok("%flow doctor --verify").text

    store = FilesStore(book.folder / "store/default")
    entry = json.loads(store.get(layout.commit("book", "1", "work", (1,))))["artifacts"]["data"]
    blob = store.root / layout.blob(entry["blob"])
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(50_000)
        file.write(b"!")
    commit = store.root / layout.commit("book", "1", "start", ())
    commit.chmod(0o600)
    commit.write_text("{")

    text = book.ok("%flow doctor --verify").text
    assert "✗ a blob is damaged (run 1 of book, work[1]: data)" in text and str(blob) in text
    assert "✗ flows/book/1/start/0.COMMIT is damaged" in text
    assert "blobs are whole" not in text and "2 to look at" in text.replace("3 to look at", "2 to look at")


@pytest.mark.parametrize("root", ["project", "file/below"])
def test_doctor_and_gc_work_in_plain_ipython_and_without_a_store(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", "%load_ext flowbook\n%flow doctor --verify\n%flow gc"],
        env={**os.environ, "FLOWBOOK_STORE": str(tmp_path / root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    said = done.stdout + done.stderr

    assert "Traceback" not in said and "Error" not in said.replace("StoreError", ""), said
    assert "✓ no notebook, but a terminal" in said and "nothing to remove" in said
    assert ("all is well" in said) is (root == "project")
    assert said.count("cannot write") <= 1


def test_doctor_tells_of_old_runs_only_if_gc_would_remove_some(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    for run in range(1, 36):
        store.create(layout.spec("demo", str(run)), b'{"steps": []}')
        store.create(layout.log("demo", str(run), 0), b'{"events": [{"e": "run_ended", "at": 1, "state": "succeeded"}]}')
    assert [found.state for found in storage.size(store, 20)] == ["ok"]  # all of today: gc keeps them
    old = time.time() - 3 * 24 * 3600
    for run in range(1, 6):
        os.utime(store.root / layout.spec("demo", str(run)), (old, old))

    *_, last = storage.size(store, 20)

    assert (last.state, last.text) == ("warn", "old runs have gathered, beyond the last 20: 5 of demo")
    assert len(housekeeping.garbage.collect(store, 20, "demo").removed) == 5


def test_text_of_the_machine_is_escaped() -> None:
    assert "<script>" not in doctor._page([Found("bad", "<script>", "<script>", "<script>")], "<script>")
