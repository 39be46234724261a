"""One body of tests for every store; what only a store of files can show is in test_files.py."""

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook.errors import StoreError, StoreMissing
from flowbook.store import layout
from flowbook.store.base import check_key
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore


@pytest.fixture(params=["files", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3")()
    return FilesStore(tmp_path / "project") if request.param == "files" else MemoryStore()


def test_what_is_created_is_read_whole_and_in_parts(store):
    assert store.create("flows/a/1/run.json", b"0123456789")

    assert store.get("flows/a/1/run.json") == b"0123456789"
    assert store.get_range("flows/a/1/run.json", 2, 5) == b"234"
    assert store.get_range("flows/a/1/run.json", 8, 99) == b"89"
    assert store.get_range("flows/a/1/run.json", 50, 99) == b""
    assert store.size("flows/a/1/run.json") == 10
    assert store.exists("flows/a/1/run.json") and store.keep("flows/a/1/run.json")


def test_creating_what_exists_is_refused_and_changes_nothing(store):
    store.create("a", b"first")

    assert store.create("a", b"second") is False
    assert store.get("a") == b"first"


def test_pieces_are_written_one_after_the_other(store):
    store.create("a", iter([b"ab", bytearray(b"cd"), memoryview(b"ef"), b""]))

    assert store.get("a") == b"abcdef"


def test_put_replaces(store):
    store.put("x/hint", b"1")
    store.put("x/hint", [b"2", b"3"])

    assert store.get("x/hint") == b"23"


def test_an_object_that_is_not_there_is_missing_by_name(store):
    for read in (store.get, store.size, store.open, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(StoreMissing, match="flows/none"):
            read("flows/none")
    assert not store.exists("flows/none") and not store.keep("flows/none")
    store.create("flows/none/child", b"")
    with pytest.raises(StoreMissing):
        store.get("flows/none")  # a folder is no object
    assert not store.exists("flows/none")


def test_deleting_twice_is_the_same_as_once(store):
    store.create("a/b", b"")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")

    assert not store.exists("a/b") and store.create("a/b", b"again")


def test_age_and_size_of_objects_are_told_in_order(store):
    assert list(store.aged("")) == []
    for key in ("b/2", "a", "b/1"):
        store.create(key, b"x" * len(key))
    store.put("b/hint", b"")

    found = list(store.aged("b/"))
    assert [(key, size) for key, _, size in found] == [("b/1", 3), ("b/2", 3), ("b/hint", 0)]
    assert all(-1 < each.age_s < 60 for each in found)
    store.delete("b/1")
    assert [each.key for each in store.aged("b")] == ["b/2", "b/hint"]


def test_deleting_a_folder_removes_what_is_below_it_and_nothing_else(store):
    for key in ("a/1/x", "a/1/y/z", "a/10/x", "a/1x"):
        store.create(key, b"")
    store.delete_folder("a/1")
    store.delete_folder("a/1")
    store.delete_folder("never")

    assert list(store.list("")) == ["a/10/x", "a/1x"]
    assert "1" not in store.names("a")
    for wrong in ("", "../x", "tmp", "a/"):
        with pytest.raises(StoreError, match="not a key"):
            store.delete_folder(wrong)


def test_listing_gives_sorted_keys_of_a_prefix_and_nothing_of_the_store_itself(store):
    keys = [
        "flows/a/1/run.json",
        "flows/a/1/t/0.COMMIT",
        "flows/a/1/t/0/0/output",
        "flows/a/10/run.json",
        "flows/ab/1/run.json",
        "blobs/aa/aab",
    ]
    for key in keys:
        store.create(key, b"x")
    store.local_dir()

    assert list(store.list("")) == sorted(keys)
    assert list(store.list("flows/a/")) == sorted(k for k in keys if k.startswith("flows/a/"))
    assert list(store.list("flows/a/1")) == sorted(k for k in keys if k.startswith("flows/a/1"))
    assert list(store.list("flows/a")) == sorted(k for k in keys if k.startswith("flows/a"))
    assert list(store.list("flows/a/1/t/0")) == ["flows/a/1/t/0.COMMIT", "flows/a/1/t/0/0/output"]
    assert list(store.list("none/at/all")) == []


@settings(max_examples=25, deadline=None)
@given(st.sets(st.text("ab.", min_size=1, max_size=3).filter(lambda s: not s.startswith(".")), max_size=6), st.text("ab", max_size=2))
def test_files_list_what_memory_lists(tmp_path_factory, names, prefix):
    files, memory = FilesStore(tmp_path_factory.mktemp("s")), MemoryStore()
    for name in names:
        for store in (files, memory):
            store.create(f"{name}.leaf", b"")
            store.create(f"{name}/x", b"")

    assert list(files.list(prefix)) == list(memory.list(prefix))


def test_opened_memory_is_writable_and_private(store):
    store.create("a", b"abc")
    view = store.open("a")
    view[0] = ord("X")

    assert bytes(view) == b"Xbc" and not view.readonly
    assert store.get("a") == b"abc" and bytes(store.open("a")) == b"abc"


def test_an_empty_object_opens(store):
    store.create("empty", b"")

    assert len(store.open("empty")) == 0 and store.get("empty") == b""


def test_a_blob_has_the_address_of_its_content_and_known_content_writes_nothing(store):
    parts = [b"ab", memoryview(b"cd")]
    address = store.put_blob(parts)

    assert address == hashlib.sha256(b"abcd").hexdigest()
    assert store.get(layout.blob(address)) == b"abcd"
    assert store.put_blob([b"abcd"]) == address
    assert list(store.list("")) == [layout.blob(address)]


def test_an_adopted_file_becomes_the_object_and_is_gone(store, tmp_path):
    path = tmp_path / "made"
    path.write_bytes(b"content")

    assert store.adopt_file("flows/x", path) is True
    assert store.get("flows/x") == b"content" and not path.exists()

    path.write_bytes(b"other")
    assert store.adopt_file("flows/x", path) is False
    assert store.get("flows/x") == b"content" and not path.exists()


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "a//b", "a/", "../x", "a/../b", "a/..", ".", "a/./b", "a\0b", ".hidden", "a/.b", "tmp/x", "local/x", "tmp"],
)
def test_a_hostile_key_is_refused_by_every_call(store, key, tmp_path):
    calls = [
        store.get,
        store.open,
        store.exists,
        store.size,
        store.delete,
        store.local_path,
        lambda k: store.create(k, b""),
        lambda k: store.put(k, b""),
        lambda k: store.get_range(k, 0, 1),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="not a key"):
            call(key)


def test_a_hostile_prefix_is_refused(store):
    for prefix in ("../", "/etc/", "a/../../x", "tmp/"):
        with pytest.raises(StoreError, match="not a key"):
            list(store.list(prefix))


def test_a_range_that_is_none_is_refused(store):
    store.create("a", b"abc")
    for start, stop in ((-1, 2), (2, 1)):
        with pytest.raises(StoreError, match="not a range of a"):
            store.get_range("a", start, stop)


@given(st.text(max_size=20))
def test_a_key_that_passes_stays_inside_the_root(text):
    try:
        key = check_key(text)
    except StoreError:
        return

    assert Path("/root", key).resolve().is_relative_to("/root/") and ".." not in key.split("/")


def test_among_racing_threads_exactly_one_creates_each_key(store):
    threads, keys = 32, 20
    gate = threading.Barrier(threads)
    wins: list[tuple[int, int]] = []

    def race(me: int) -> None:
        gate.wait()
        for k in range(keys):
            if store.create(f"race/{k}", b"%d" % me * 100):
                wins.append((k, me))

    running = [threading.Thread(target=race, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()

    assert sorted(k for k, _ in wins) == list(range(keys))
    assert all(store.get(f"race/{k}") == b"%d" % me * 100 for k, me in wins)


def test_an_error_of_the_data_leaves_nothing_behind(store):
    def broken():
        yield b"some"
        raise RuntimeError("the disk of the source died")

    for write in (store.create, store.put):
        with pytest.raises(RuntimeError, match="source died"):
            write("a/b", broken())
    assert list(store.list("")) == [] and not store.exists("a/b")


def test_names_are_what_stands_directly_in_a_folder(store):
    for key in ("flows/demo/2/run.json", "flows/demo/10/run.json", "flows/demo/10/a/0.COMMIT", "flows/demolition/1/run.json"):
        store.create(key, b"x")

    assert list(store.names("flows/demo")) == ["10", "2"]
    assert list(store.names("flows/demo/10")) == ["a", "run.json"]
    assert list(store.names("flows/none")) == []
    with pytest.raises(StoreError):
        store.names("../etc")
