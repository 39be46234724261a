"""File and Directory: paths here, content on the way."""

import copy
import json
import os
import pickle
import threading

import pytest

from flowbook.errors import ArtifactError, NotPicklable
from flowbook.store import codec, compare, layout, values
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore
from flowbook.store.values import Directory, File


@pytest.fixture(params=["files", "memory"])
def store(request, tmp_path):
    return FilesStore(tmp_path / "project") if request.param == "files" else MemoryStore()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "a.csv").write_text("x,y\n1,2\n")
    (root / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "run.sh").chmod(0o755)
    (root / "link.csv").symlink_to("a.csv")
    return root


def travel(store, value):
    entry = json.loads(json.dumps(codec.entry(store, "v", value)))
    return codec.load(store, entry), entry


def test_a_file_travels_with_its_content_and_its_name(store, folder):
    before = File(folder / "a.csv")
    after, entry = travel(store, {"f": before})
    (folder / "a.csv").unlink()

    assert after["f"].read_text() == "x,y\n1,2\n" and after["f"].read_bytes() == b"x,y\n1,2\n"
    assert after["f"].name == "a.csv" and os.fspath(after["f"]) == str(after["f"].path) != str(before.path)
    assert after["f"].path.stat().st_mode & 0o222 == 0
    assert entry["blobs"] == codec.blobs_of(entry) and store.get(layout.blob(entry["blobs"][0])) == b"x,y\n1,2\n"
    with open(after["f"]) as file:
        assert file.readline() == "x,y\n"


def test_writing_through_a_loaded_file_does_not_reach_the_store(store, folder):
    after, entry = travel(store, File(folder / "a.csv"))
    try:
        after.path.write_text("spoilt")  # root may, others are refused
    except PermissionError:
        pass

    assert store.get(layout.blob(entry["blobs"][0])) == b"x,y\n1,2\n"
    assert codec.load(store, entry).read_text() == "x,y\n1,2\n"


def test_two_names_of_one_content_are_two_files(store, tmp_path):
    for name in ("a.txt", "b.csv"):
        (tmp_path / name).write_text("same")
    (a, b), entry = travel(store, [File(tmp_path / "a.txt"), File(tmp_path / "b.csv")])

    assert (a.name, b.name) == ("a.txt", "b.csv") and a == b and hash(a) == hash(b) and len(entry["blobs"]) == 1


def test_a_directory_travels_whole(store, folder):
    before = Directory(folder)
    after, entry = travel(store, before)

    assert after.name == "data" and after == before
    assert sorted(str(p.relative_to(after.path)) for p in after.path.rglob("*")) == ["a.csv", "link.csv", "sub", "sub/empty", "sub/run.sh"]
    assert (after / "link.csv").read_text() == "x,y\n1,2\n"
    assert os.access(after / "sub/run.sh", os.X_OK) and (after / "a.csv").stat().st_mode & 0o333 == 0
    assert len(entry["blobs"]) == 3 and all(store.exists(layout.blob(b)) for b in entry["blobs"])


def test_equality_is_by_content(tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
    a, b, c = (File(tmp_path / name) for name in "abc")

    assert a == b != c and a != "1" and len({a, b, c}) == 2
    (tmp_path / "b").write_text("22")
    assert a != b


def test_an_unchanged_file_is_unchanged_and_a_changed_one_is_not(store, tmp_path):
    path = tmp_path / "f"
    path.write_text("1")
    value = File(path)
    entry = codec.entry(store, "f", value)

    assert compare.unchanged(store, entry, value)
    path.write_text("22")
    assert not compare.unchanged(store, entry, value)


@pytest.mark.parametrize(
    ("kind", "wrong", "hint"),
    [
        (File, "data", "use Directory"),
        (Directory, "data/a.csv", "use File"),
        (File, "none", "no such file"),
        (Directory, "none", "no such folder"),
    ],
)
def test_a_path_that_is_not_there_is_told_at_once(folder, kind, wrong, hint):
    with pytest.raises(FileNotFoundError, match=hint):
        kind(folder.parent / wrong)


def test_outside_a_run_it_is_only_a_path(folder, tmp_path):
    for value in (File(folder / "a.csv"), Directory(folder)):
        for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), codec.decode(codec.encode(value).join())):
            assert type(again) is type(value) and again.path == value.path


def test_a_stored_file_needs_a_store_to_be_loaded(store, folder):
    data = codec.encode(File(folder / "a.csv"), store=store).join()
    with pytest.raises(ArtifactError, match="loaded without one"):
        codec.decode(data)


def test_a_file_that_is_gone_when_saved_is_named(store, folder):
    value = File(folder / "a.csv")
    (folder / "a.csv").unlink()
    with pytest.raises(NotPicklable, match=r"a\.csv.*FileNotFoundError"):
        codec.entry(store, "f", value)


def test_a_file_that_changes_while_it_is_saved_is_refused(store, tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_text("1")
    real = values.hashlib.file_digest

    def digest_then_append(file, name):
        found = real(file, name)
        path.write_text("12")
        return found

    monkeypatch.setattr(values.hashlib, "file_digest", digest_then_append)
    with pytest.raises(NotPicklable, match="changed while it was being saved"):
        codec.entry(store, "f", File(path))
    assert list(store.list("")) == []


def test_links_that_lead_out_or_around_and_special_files_are_refused(store, folder, tmp_path):
    (tmp_path / "outside").write_text("secret")
    for make, why in (
        (lambda p: p.symlink_to(tmp_path / "outside"), "leads out of the folder"),
        (lambda p: p.symlink_to(tmp_path), "leads out of the folder"),
        (lambda p: p.symlink_to(folder), "folder around it"),
        (lambda p: p.symlink_to("nowhere"), "not a regular file"),
        (os.mkfifo, "not a regular file"),
    ):
        path = folder / "sub" / "odd"
        make(path)
        with pytest.raises(NotPicklable, match=why):
            codec.entry(store, "d", Directory(folder))
        path.unlink()


@pytest.mark.parametrize("name", ["../evil", "..", "/etc/evil", "a/../../evil", "", "a//b", "a\0b"])
def test_a_manifest_with_a_hostile_name_is_not_loaded(store, name, tmp_path):
    content = store.put_blob([b"evil"])
    for manifest in ({"files": {name: [content, False]}, "empty": []}, {"files": {}, "empty": [name]}):
        address = store.put_blob([json.dumps(manifest).encode()])
        token = codec._current.set(codec.Loading("v", None, store=store))
        try:
            with pytest.raises(ArtifactError, match="could lead out"):
                values._open_directory(address, "d")
        finally:
            codec._current.reset(token)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(("address", "name"), [("../../x", "a"), ("0" * 64, "../a"), ("0" * 64, "a/b"), ("0" * 64, ".."), (3, "a")])
def test_a_hostile_address_or_name_of_a_file_is_not_loaded(store, address, name):
    token = codec._current.set(codec.Loading("v", None, store=store))
    try:
        with pytest.raises(ArtifactError):
            values._open_file(address, name)
    finally:
        codec._current.reset(token)


def test_a_damaged_manifest_is_told(store):
    for text in (b"", b"[]", b"{}", b'{"files": 3, "empty": []}'):
        address = store.put_blob([text])
        token = codec._current.set(codec.Loading("v", None, store=store))
        try:
            with pytest.raises(ArtifactError, match="damaged"):
                values._open_directory(address, "d")
        finally:
            codec._current.reset(token)


def test_many_tasks_may_load_the_same_at_once(store, folder):
    entry = codec.entry(store, "v", [File(folder / "a.csv"), Directory(folder)])
    gate, found, failed = threading.Barrier(8), [], []

    def load():
        gate.wait()
        try:
            file, directory = codec.load(store, entry)
            found.append((file.read_text(), (directory / "a.csv").read_text()))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and found == [("x,y\n1,2\n",) * 2] * 8
    assert not [p for p in store.local_dir().iterdir() if p.name.startswith(".")]


def test_a_large_file_and_an_empty_one_travel(store, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(3_000_001))
    (tmp_path / "empty").write_bytes(b"")
    (large, empty), _ = travel(store, [File(tmp_path / "large"), File(tmp_path / "empty")])

    assert large.read_bytes() == (tmp_path / "large").read_bytes() and empty.read_bytes() == b""


def test_reprs_show_name_and_size(folder):
    assert repr(File(folder / "a.csv")) == "File('a.csv', 8 bytes)" and repr(Directory(folder)) == "Directory('data')"
