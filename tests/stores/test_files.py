"""What only a store of files can show: folders, modes, other processes, full and read-only disks."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowbook.errors import StoreError, StoreFull, StoreReadOnly, StoreTooNew
from flowbook.store import base, files, layout
from flowbook.store.base import open_store
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore


@pytest.fixture
def root(tmp_path):
    return tmp_path / "project"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"NOT TESTED on a really full disk: no mount here ({made.stderr.strip()})")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def leftovers(root: Path) -> list[Path]:
    return list((root / "tmp").iterdir())


def test_nothing_is_made_before_the_first_write_and_then_for_the_owner_only(root):
    store = FilesStore(root)
    assert not store.exists("a") and list(store.list("")) == [] and not root.exists()

    store.create("flows/a", b"")

    assert root.stat().st_mode & 0o777 == 0o700
    assert (root / "flows" / "a").stat().st_mode & 0o777 == 0o400
    assert json.loads((root / "store.json").read_text())["format"] == base.FORMAT
    assert leftovers(root) == []


def test_a_small_commit_leaves_one_file(root):
    store = FilesStore(root)
    store.create("flows/a/1/s/0.COMMIT", b"{}")

    assert [p.name for p in (root / "flows/a/1/s").rglob("*")] == ["0.COMMIT"]


def test_a_description_opens_the_same_store(root):
    store = FilesStore(root, durable=True)
    store.create("a", b"1")

    assert store.describe() == {"kind": "files", "root": str(root), "durable": True}
    again = open_store(json.loads(json.dumps(store.describe())))
    assert again.get("a") == b"1" and again.describe() == store.describe()


@pytest.mark.parametrize("wrong", [{}, {"kind": "ftp"}, {"kind": "files"}, {"kind": "files", "root": 3}, {"kind": "memory"}])
def test_a_wrong_description_is_refused(wrong):
    with pytest.raises(StoreError):
        open_store(wrong)


def test_a_memory_store_cannot_be_described():
    with pytest.raises(StoreError, match="another process cannot open it"):
        MemoryStore().describe()


def test_a_store_of_a_later_flowbook_is_refused_with_its_version(root):
    FilesStore(root).create("a", b"")
    (root / "store.json").chmod(0o600)
    (root / "store.json").write_text(json.dumps({"format": 99, "written_by": "9.1.0"}))

    for use in (lambda s: s.get("a"), lambda s: s.create("b", b""), lambda s: list(s.list("")), lambda s: s.put("b", b"")):
        with pytest.raises(StoreTooNew, match=r"flowbook 9\.1\.0 .*pip install -U flowbook"):
            use(FilesStore(root))
    assert not (root / "b").exists()


@pytest.mark.parametrize("text", ["", "garbage", "[]", "{}", '{"format": "1"}', '{"format": true}', "\xff"])
def test_a_damaged_store_file_is_named(root, text):
    root.mkdir()
    (root / "store.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        FilesStore(root).create("a", b"")


def test_a_store_whose_folder_was_removed_is_made_again(root):
    store = FilesStore(root)
    store.create("a/b", b"1")
    subprocess.run(["rm", "-rf", str(root)], check=True)

    assert store.create("a/b", b"2") and store.get("a/b") == b"2"


RACE = """
import sys
from flowbook.store.files import FilesStore
store = FilesStore(sys.argv[1])
sys.stdin.readline()
print([k for k in range(40) if store.create(f"race/{k}", sys.argv[2].encode() * 1000)])
"""


def test_among_racing_processes_exactly_one_creates_each_key(root):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(root), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    wins = {str(i): json.loads(racer.communicate(timeout=60)[0]) for i, racer in enumerate(racers)}

    assert sorted(sum(wins.values(), [])) == list(range(40))
    assert all(FilesStore(root).get(f"race/{k}") == me.encode() * 1000 for me, won in wins.items() for k in won)
    assert leftovers(root) == []


def test_a_really_full_disk_is_told_and_leaves_no_half_object(small_disk):
    store = FilesStore(small_disk / "project")
    store.create("small", b"x")

    for write in (
        lambda: store.create("big", b"x" * 3_000_000),
        lambda: store.put("big", b"x" * 3_000_000),
        lambda: store.put_blob([bytes(3_000_000)]),
    ):
        with pytest.raises(StoreFull, match=r"No space left.*Free some space"):
            write()
    assert leftovers(store.root) == [] and not store.exists("big")
    assert store.create("after", b"still writes")


def test_a_really_read_only_disk_is_told(small_disk):
    store = FilesStore(small_disk / "project")
    store.create("a", b"1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    for write in (
        lambda: store.create("b", b""),
        lambda: store.put("b", b""),
        lambda: store.delete("a"),
        lambda: FilesStore(small_disk / "n").create("x", b""),
    ):
        with pytest.raises(StoreReadOnly, match=str(small_disk)):
            write()
    assert store.get("a") == b"1"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, StoreReadOnly),
        (errno.EACCES, StoreReadOnly),
        (errno.EPERM, StoreReadOnly),
    ],
)
def test_what_the_system_refuses_is_told_in_our_words(root, monkeypatch, code, kind):
    store = FilesStore(root)
    store.create("first", b"")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "link", refuse)
    with pytest.raises(kind, match=str(root)):
        store.create("a", b"1")
    monkeypatch.setattr(files.os, "write", refuse)
    with pytest.raises(kind, match=str(root)):
        store.put("a", b"1")
    assert leftovers(root) == []


def test_a_root_that_is_a_file_or_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/flowbook")):
        with pytest.raises(StoreError, match="cannot write"):
            FilesStore(bad).create("a", b"")


def test_an_object_cannot_be_made_below_an_object(root):
    store = FilesStore(root)
    store.create("a", b"")

    with pytest.raises(StoreError, match="cannot write"):
        store.create("a/b", b"")


def test_a_file_of_another_device_is_copied(root, small_disk):
    source = small_disk / "made"
    source.write_bytes(b"z" * 500_000)

    assert FilesStore(root).adopt_file("x", source)
    assert FilesStore(root).size("x") == 500_000 and not source.exists()


def test_adopting_what_is_not_there_is_told(root):
    with pytest.raises(StoreError, match="none"):
        FilesStore(root).adopt_file("x", "/none")


def test_known_content_is_made_young_again_after_half_a_day(root):
    store = FilesStore(root)
    path = root / layout.blob(store.put_blob([b"content"]))
    recent, old = time.time() - 3600, time.time() - 13 * 3600

    os.utime(path, (recent, recent))
    store.put_blob([b"content"])
    assert path.stat().st_mtime == pytest.approx(recent, abs=1)

    os.utime(path, (old, old))
    store.put_blob([b"content"])
    assert path.stat().st_mtime > time.time() - 60


def test_what_killed_writers_left_is_swept_by_age(root):
    store = FilesStore(root)
    store.create("a", b"")
    for name, age in (("young", 60), ("old", 25 * 3600)):
        (root / "tmp" / name).write_bytes(b"12345")
        os.utime(root / "tmp" / name, (time.time() - age, time.time() - age))

    assert list(store.list("")) == ["a"]
    assert files.sweep(store) == 5
    assert [p.name for p in leftovers(root)] == ["young"]
    assert files.sweep(FilesStore(root.parent / "none")) == 0


def test_a_durable_store_syncs_the_file_and_its_folder(root, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    FilesStore(root, durable=True).create("a/b", b"1")

    assert any("/tmp/" in path for path in synced) and str(root / "a") in synced

    synced.clear()
    FilesStore(root).create("a/c", b"1")
    assert synced == []


def test_the_store_imports_nothing_heavy():
    rooms = "base files memory codec compare results values preview layout".split()
    code = f"import sys\nfor m in {rooms}: __import__('flowbook.store.' + m)\n" + (
        "print([m for m in ('numpy','pandas','boto3','IPython','cloudpickle','asyncio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.strip() == "[]"


def test_age_is_told_by_the_clock_of_the_disk(root, monkeypatch):
    store = FilesStore(root)
    store.create("a", b"1")
    then = (root / "a").stat().st_mtime - 3600
    os.utime(root / "a", (then, then))

    monkeypatch.setattr(files.time, "time", lambda: 0.0)  # this machine's clock may be anything

    assert [round(each.age_s / 60) for each in store.aged("a")] == [60]
    assert leftovers(root) == []


def test_large_content_is_stored_whole_and_once_whether_its_size_was_seen_or_not(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE_BYTES", 1000)
    store = FilesStore(tmp_path)
    content, other = [b"a" * 700, memoryview(b"b" * 700)], [b"c" * 1400]
    written = []
    monkeypatch.setattr(store, "_write_temp", lambda data, mode, write=store._write_temp: written.append(1) or write(data, mode))

    addresses = [store.put_blob(parts) for parts in (content, content, other, other, content)]

    assert [store.get(layout.blob(address)) for address in addresses[1:3]] == [b"a" * 700 + b"b" * 700, b"c" * 1400]
    assert addresses[0] == addresses[1] == addresses[4] and addresses[2] == addresses[3] == base.digest(other)
    assert len(written) == 2 + 1  # the store's own format, and each content
    assert list((tmp_path / "tmp").iterdir()) == []


def test_large_content_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE_BYTES", 1000)
    store = FilesStore(tmp_path)
    store.create("a/b", b"x")
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))

    with pytest.raises(StoreFull):
        store.put_blob([b"a" * 2000])

    assert list((tmp_path / "tmp").iterdir()) == []
