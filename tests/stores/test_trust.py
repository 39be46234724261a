"""Only what was signed with the project's key is unpickled; all else is shown."""

import base64
import json
import os
import pickle
import stat
import threading

import pytest

from flowbook.errors import ArtifactError, StoreError
from flowbook.store import codec, layout, results, trust
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore

KEY = layout.commit("f", "1", "a", ())


class Bad:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture(params=["memory", "s3"])
def store(request, tmp_path):
    """A store that asks for signatures."""
    key_file = str(tmp_path / "keys" / "project.key")
    if request.param == "s3":
        return request.getfixturevalue("s3")(key_file=key_file)
    store = MemoryStore()
    store.key_file = key_file
    return store


def commit(store, value, name="x"):
    return {"v": 1, "artifacts": {name: codec.entry(store, name, value)}}


def attack(store, marker, size=0):
    """What somebody without the key may write: an entry whose pickle does harm."""
    bad = pickle.dumps(Bad(marker), 5)
    head = json.dumps({"type": "list", "size": 1, "repr": "[…]", "pickle": [0, len(bad)], "buffers": [], "refs": []}).encode()
    start = codec.MAGIC + len(head).to_bytes(4, "little") + head
    data = start.ljust(codec.aligned(len(start)), b"\0") + bad + bytes(size)
    where = {"blob": store.put_blob([data])} if size else {"inline": base64.b64encode(data).decode()}
    return {"kind": "value", "type": "list", "size": 1, "repr": "['harmless']", **where}


def test_what_is_signed_comes_back_and_carries_no_signature_of_another_place(store):
    store.create(KEY, trust.sign(store, KEY, commit(store, {1, 2})))
    found = results.read_commit(store, "f", "1", "a", ())

    assert codec.load(store, found["artifacts"]["x"]) == {1, 2}
    elsewhere = layout.commit("f", "2", "a", ())
    store.create(elsewhere, store.get(KEY))
    moved = results.read_commit(store, "f", "2", "a", ())
    with pytest.raises(ArtifactError, match="not written with this project's key"):
        codec.load(store, moved["artifacts"]["x"])


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_malicious_pickle_is_shown_and_not_loaded(store, tmp_path, size):
    marker = tmp_path / "harm"
    trust.project_key(store, make=True)
    document = {"v": 1, "artifacts": {"model": attack(store, marker, size)}}
    for number, data in enumerate(
        (json.dumps(document).encode(), json.dumps(document | {"sig": "0" * 64}, separators=(",", ":")).encode())
    ):
        store.create(layout.commit("f", str(number), "a", ()), data)
        with results.use(store, flow="f") as reader:
            task = results.TaskResult(reader, str(number), "a", ())

            assert reader.commit(str(number), "a", ())["artifacts"]["model"]["repr"] == "['harmless']"
            with pytest.raises(ArtifactError, match=r"a.model is not loaded: .* could run anybody's code"):
                task.model  # noqa: B018
            repr(task)
    assert not marker.exists()

    codec.load(MemoryStore(), attack(MemoryStore(), marker))
    assert marker.exists()  # the attack would have worked


def test_the_items_of_a_fan_out_and_modules_are_held_to_it_too(store, tmp_path):
    plan = results.write_items(store, [{1}, {2}])

    assert results.read_item(store, trust.Signed(plan), 1) == {2}
    with pytest.raises(ArtifactError, match="item 1 is not loaded"):
        results.read_item(store, plan, 1)
    with pytest.raises(ArtifactError, match="is not loaded"):
        codec.load(store, {"kind": "module", "module": "antigravity"})
    with pytest.raises(ArtifactError, match="is not loaded"):
        codec.decode(codec.encode({1}).join(), store=store)
    assert codec.load(store, {"kind": "json", "json": 3}) == 3


def test_content_that_was_exchanged_below_a_signed_result_is_not_loaded(s3, s3_server, tmp_path):
    store = s3(key_file=str(tmp_path / "key"))
    store.create(KEY, trust.sign(store, KEY, commit(store, {"x": b"y" * 50_000})))
    entry = results.read_commit(store, "f", "1", "a", ())["artifacts"]["x"]
    evil = pickle.dumps(Bad(tmp_path / "harm"))
    (s3_server.folder / "tests" / store.prefix / layout.blob(entry["blob"])).write_bytes(evil)

    with pytest.raises(ArtifactError, match="is damaged"):
        codec.load(store, entry)
    assert not (tmp_path / "harm").exists()


def test_every_change_of_a_signed_document_is_seen(store):
    data = trust.sign(store, KEY, {"a": {"b": [1, {"c": 2}]}, "sig": "old"})
    found = trust.read(store, KEY, data)

    assert trust.holds(store, found) and trust.holds(store, found["a"]["b"][1]) and found["a"] == {"b": [1, {"c": 2}]}
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        assert not trust.is_right(store, KEY, changed)
    for other in (data + b" ", b"", b"{}", data[:-1]):
        assert not trust.is_right(store, KEY, other)
    assert not trust.is_right(store, KEY + "x", data)


def test_the_key_is_made_once_for_all_and_for_its_owner_only(store, tmp_path):
    gate, found = threading.Barrier(8), []

    def make():
        gate.wait()
        found.append(trust.project_key(store, make=True))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    path = tmp_path / "keys" / "project.key"
    assert len(set(found)) == 1 and len(found[0]) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(path.parent) == ["project.key"]
    path.chmod(0o644)
    os.utime(path, (1, 1))
    with pytest.raises(StoreError, match="can be read by others"):
        trust.project_key(store)


def test_the_key_of_the_environment_wins_and_may_not_be_short(store, monkeypatch):
    by_file = trust.sign(store, KEY, {"a": 1})
    monkeypatch.setenv("FLOWBOOK_PROJECT_KEY", "a key that the team shares")

    assert not trust.is_right(store, KEY, by_file)
    assert trust.is_right(store, KEY, trust.sign(store, KEY, {"a": 1}))
    monkeypatch.setenv("FLOWBOOK_PROJECT_KEY", "short")
    with pytest.raises(StoreError, match="too short for a key"):
        trust.sign(store, KEY, {"a": 1})


def test_a_store_on_files_needs_no_key_and_a_bucket_always_does(tmp_path, s3):
    files = FilesStore(tmp_path / "p")
    assert trust.sign(files, KEY, {"a": 1}) == b'{"a":1}'
    assert trust.holds(files, {}) and codec.load(files, json.loads(json.dumps(codec.entry(files, "x", {1})))) == {1}

    assert not trust.holds(s3(), {})
    with pytest.raises(StoreError, match="has no project key: set FLOWBOOK_PROJECT_KEY"):
        trust.sign(s3(), KEY, {"a": 1})
