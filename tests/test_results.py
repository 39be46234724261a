"""COMMITs read through handles; the items of a fan-out."""

# Reading an attribute is what these tests are about.
# ruff: noqa: B018

import json
import struct
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from flowbook.errors import ArtifactError, NotPicklable, StoreError, StoreMissing
from flowbook.store import codec, layout, preview, results
from flowbook.store.compare import same
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore
from flowbook.store.results import Reader, TaskError, TaskResult, TaskResults, read_commit, read_item, write_items

FAILED = {
    "state": "failed",
    "error": {"reason": "error", "type": "ZeroDivisionError", "message": "division by zero", "cell": "Cell In[7]", "line": 4},
}


class Counting:
    """A store that tells which keys were read."""

    def __init__(self, store):
        self.store, self.read = store, []

    def __getattr__(self, name):
        if name in ("get", "open", "get_range"):
            return lambda key, *rest: (self.read.append(key), getattr(self.store, name)(key, *rest))[1]
        return getattr(self.store, name)


@pytest.fixture(params=["files", "memory"])
def store(request, tmp_path):
    return Counting(FilesStore(tmp_path / "project") if request.param == "files" else MemoryStore())


def commit(store, step, index, run="1", seconds=1.5, caught=None, unsaved=(), item=None, **values):
    artifacts = {name: codec.entry(store, name, value) for name, value in values.items()}
    body = {
        "v": 1,
        "attempt": 0,
        "artifacts": artifacts,
        "unsaved": dict(unsaved),
        "item": item,
        "seconds": {"running": seconds},
        "caught": caught,
    }
    store.create(layout.commit("demo", run, step, index), json.dumps(body).encode())


def sweep(store, count=4, exceptions=None, **join):
    for i in range(count):
        if str(i) not in (exceptions or {}):
            commit(store, "train", (i,), item=str(i / 10), lr=i / 10, score=i * 1.0, weights=np.full(5000, i), ok="yes")
    store.read.clear()
    found = {"index": [], "count": count, "exceptions": exceptions or {}, "run": "1"} | join
    return TaskResults.from_join(Reader(store, "demo"), "train", found, ["lr"])


# ---- commits ----


def test_a_commit_is_read_absent_or_named_when_damaged(store):
    commit(store, "s", (), x=1)
    assert read_commit(store, "demo", "1", "s", ())["artifacts"]["x"]["json"] == 1
    assert read_commit(store, "demo", "1", "s", (1,)) is None
    assert read_commit(store, "demo", "1", "s", (), "plan") is None

    for i, text in enumerate((b"", b"{", b"[]", b"\xff\xfe", b"3")):
        store.create(layout.commit("demo", "1", "bad", (i,)), text)
        with pytest.raises(StoreError, match=rf"flows/demo/1/bad/{i}\.COMMIT is damaged"):
            read_commit(store, "demo", "1", "bad", (i,))


def test_a_commit_is_read_once_and_an_absent_one_again(store):
    reader = Reader(store, "demo")
    assert reader.commit("1", "s", ()) is None
    commit(store, "s", (), x=1)
    first = reader.commit("1", "s", ())
    store.read.clear()

    assert reader.commit("1", "s", ()) is first and store.read == []


# ---- one task ----


def test_an_artifact_loads_when_asked_and_once(store):
    train = sweep(store)
    task = train[2]
    assert (task.step, task.index, task.run, task.state, task.ok, task.error) == ("train", (2,), "1", "succeeded", True, None)
    store.read.clear()

    assert task.score == 2.0 and task.lr == 0.2
    assert not any("blobs" in key for key in store.read)
    weights = task.weights
    assert weights[0] == 2 and task.weights is weights and train[2].weights is weights and train[2] is task
    weights[0] = 99
    assert TaskResult(Reader(store, "demo"), "1", "train", (2,)).weights[0] == 2
    assert set(results.loaded(task)) == {"score", "lr", "weights"}


def test_an_artifact_named_like_an_attribute_is_reached_as_an_item(store):
    task = sweep(store)[0]

    assert task.ok is True and task["ok"] == "yes" and task["score"] == 0.0
    with pytest.raises(ArtifactError, match=r"train\[0\] made no 'nothing'"):
        task["nothing"]


def test_an_unknown_name_lists_what_there_is_and_is_an_attribute_error(store):
    task = sweep(store)[1]

    with pytest.raises(AttributeError, match=r"train\[1\] made no 'scor'\. It made: lr, ok, score, weights\. Did you mean 'score'\?"):
        task.scor
    assert not hasattr(task, "scor") and getattr(task, "scor", None) is None and hasattr(task, "score")
    assert not hasattr(task, "_repr_html_") and not hasattr(task, "_ipython_display_")


def test_a_name_that_was_not_saved_tells_why(store):
    commit(store, "s", (), unsaved={"loader": "it holds an open file"}, x=1)
    with pytest.raises(AttributeError, match="s did not save 'loader': it holds an open file"):
        TaskResult(Reader(store, "demo"), "1", "s", ()).loader


def test_a_failed_task_tells_its_failure_whatever_is_asked(store):
    task = sweep(store, exceptions={"1": FAILED})[1]
    store.read.clear()

    assert not task.ok and task.state == "failed"
    assert task.error == TaskError("error", "ZeroDivisionError", "division by zero", "Cell In[7]", 4)
    assert str(task.error) == "ZeroDivisionError: division by zero (Cell In[7], line 4)"
    with pytest.raises(
        ArtifactError, match=r"train\[1\] failed: ZeroDivisionError: division by zero \(Cell In\[7\], line 4\); it has no 'score'"
    ):
        task.score
    assert not hasattr(task, "score") and "division by zero" in repr(task)
    assert store.read == []


def test_a_skipped_task_says_so(store):
    task = sweep(store, exceptions={"1": {"state": "skipped"}})[1]
    with pytest.raises(AttributeError, match=r"train\[1\] was skipped; it has no 'score'"):
        task.score
    assert task.error is None


def test_a_caught_error_is_told(store):
    commit(store, "s", (), caught={"type": "ValueError", "message": "bad"}, x=1)
    task = TaskResult(Reader(store, "demo"), "1", "s", ())

    assert task.ok and task.error.type == "ValueError" and task.x == 1
    with pytest.raises(AttributeError, match="Its error was caught: ValueError: bad"):
        task.y


def test_a_result_that_was_removed_is_told(store):
    task = TaskResult(Reader(store, "demo"), "7", "s", (3,))
    with pytest.raises(ArtifactError, match=r"s\[3\] of run 7 has no result"):
        task.x
    assert "s[3]" in repr(task) and "state" in dir(task)


def test_a_task_cannot_be_changed(store):
    task = sweep(store)[0]
    with pytest.raises(AttributeError, match="'score' cannot be set"):
        task.score = 1
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del task.score


def test_dir_and_repr_show_names_and_scalars_and_load_no_blob(store):
    task = sweep(store)[3]

    assert {"lr", "score", "weights", "ok", "index"} <= set(dir(task))
    assert repr(task) == "<train[3], item 0.3, succeeded, lr=0.3, score=3.0, ok='yes'>"
    assert not any("blobs" in key for key in store.read)


def test_a_task_is_kept_as_a_reference_and_found_again(store):
    task = sweep(store, exceptions={"1": FAILED})[3]
    entry = codec.entry(store, "best", {"t": task, "bad": sweep(store, exceptions={"1": FAILED})[1]})
    assert entry["size"] < 2000

    with results.use(store, {}) as reader:
        back = codec.load(store, entry)
        assert back["t"] == task and hash(back["t"]) == hash(task) and back["t"] is not task
        assert back["t"].weights[0] == 3 and back["t"]._reader is reader
        assert back["bad"].state == "failed" and back["bad"].error.type == "ZeroDivisionError"
    assert same(task, back["t"]) and task != sweep(store)[0] and task != 3


def test_a_reference_outside_a_flow_says_how_to_read_it(store):
    entry = codec.entry(store, "best", sweep(store)[3])
    assert results.set_reader(None) is None
    back = codec.load(store, entry)

    with pytest.raises(ArtifactError, match="outside a flow"):
        back.score
    assert repr(back) == "<train[3], succeeded>"
    before = results.set_reader(Reader(store, "other"))
    assert back.score == 3.0  # found by its own flow, not by the reader's
    results.set_reader(before)


# ---- the tasks of a step ----


def test_ten_thousand_tasks_cost_nothing_until_asked(store):
    train = TaskResults.from_join(Reader(store, "demo"), "train", {"index": [], "count": 10_000, "exceptions": {"5": FAILED}, "run": "1"})
    commit(store, "train", (9_999,), score=1)
    store.read.clear()

    assert len(train) == 10_000 and repr(train) == "<train: 10000 tasks, 1 failed>" and len(train.ok) == 9_999
    assert store.read == []
    assert train[-1].score == 1 and len(store.read) == 1


def test_it_is_a_sequence_in_the_order_of_the_items(store):
    train = sweep(store)

    assert [t.score for t in train] == [0.0, 1.0, 2.0, 3.0] and [t.lr for t in train[1:3]] == [0.1, 0.2]
    assert train[-1].index == (3,) and train[-1] is train[3] and train[::-1][0] is train[3] and isinstance(train[:2], list)
    assert max(train, key=lambda t: t.score).lr == 0.3 and train[np.int64(2)] is train[2] and train[0] in train
    for i in (4, -5):
        with pytest.raises(IndexError, match=r"train has 4 tasks"):
            train[i]
    with pytest.raises(TypeError, match=r"train\[0\], not train\['x'\]"):
        train["x"]
    with pytest.raises(AttributeError, match=r"\[t\.score for t in train\]"):
        train.score


def test_an_empty_fan_out_is_an_empty_sequence(store):
    train = sweep(store, count=0)

    assert list(train) == [] and len(train) == 0 and not train and train.table().empty and "0 tasks" in train._repr_html_()


def test_a_join_may_be_of_one_task_or_below_an_outer_index(store):
    commit(store, "start", (), x=5)
    commit(store, "inner", (2, 1), x=7)
    reader = Reader(store, "demo")
    one = TaskResults.from_join(reader, "start", {"index": [], "count": None, "exceptions": {}, "run": "1"})
    inner = TaskResults.from_join(reader, "inner", {"index": [2], "count": 3, "run": "1"})

    assert isinstance(one, TaskResult) and one.x == 5 and str(one) == "start"
    assert inner[1].x == 7 and str(inner[1]) == "inner[2,1]"


def test_a_reused_task_is_read_in_its_origin(store):
    commit(store, "train", (0,), run="1", x="old")
    commit(store, "train", (1,), run="2", x="new")
    train = TaskResults.from_join(Reader(store, "demo"), "train", {"index": [], "count": 2, "run": "2", "runs": {"0": "1"}})

    assert [t.x for t in train] == ["old", "new"] and [t.run for t in train] == ["1", "2"]


def test_the_table_has_items_scalars_state_and_seconds_and_reads_no_blob(store):
    table = sweep(store, exceptions={"1": FAILED}).table()

    assert list(table.columns) == ["lr", "score", "ok", "state", "seconds"] and len(table) == 4
    assert list(table["state"]) == ["succeeded", "failed", "succeeded", "succeeded"] and table["score"][3] == 3.0
    assert np.isnan(table["score"][1]) and table["seconds"][0] == 1.5


def test_the_table_has_numbers_of_numpy_and_nothing_else_of_it_whatever_previews_are_kept(store):
    for i, mode in enumerate(preview.MODES):
        preview.use(mode)
        try:
            commit(store, "train", (i,), mean=np.float64(0.5), grid=np.arange(3), rng=np.random.default_rng(1), one=np.array([2.0]))
        finally:
            preview.use(preview.FULL)
    train = TaskResults.from_join(Reader(store, "demo"), "train", {"index": [], "count": len(preview.MODES), "run": "1"})

    assert list(train.table().columns) == ["mean", "state", "seconds"] and list(train.table()["mean"]) == [0.5] * len(preview.MODES)


def test_the_table_says_what_is_missing_without_pandas(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ArtifactError, match="needs pandas.*pip install pandas"):
        sweep(store).table()


def test_an_item_that_is_no_scalar_is_shown_by_its_repr(store):
    commit(store, "train", (0,), cfg={"lr": 1}, score=1)
    train = TaskResults.from_join(Reader(store, "demo"), "train", {"index": [], "count": 1, "run": "1"}, ["cfg"])

    assert train.table()["cfg"][0] == "{'lr': 1}"


def test_the_html_is_escaped_and_short(store):
    for i in range(30):
        commit(store, "train", (i,), note="<script>alert(1)</script>", score=i / 3)
    page = TaskResults.from_join(Reader(store, "demo"), "train", {"index": [], "count": 30, "run": "1"})._repr_html_()

    assert "<script>" not in page and "&lt;script&gt;" in page and page.count("<tr>") == 21 and "10 more" in page


def test_a_sequence_of_handles_is_one_too_and_travels_by_reference(store):
    train = sweep(store, exceptions={"1": FAILED})
    some = TaskResults(train.ok)
    assert repr(some) == "<train: 3 tasks>" and list(some) == train.ok

    entry = codec.entry(store, "v", [train, some])
    with results.use(store):
        whole, part = codec.load(store, entry)
        assert whole == train and part == some and whole[3].score == 3.0 and part[-1].score == 3.0 and whole[1].state == "failed"
        assert "lr" in whole.table().columns


# ---- items ----


def test_items_come_back_one_by_one(store):
    values = [1, "a", np.arange(5000.0), None, {"k": [1]}, pd.DataFrame({"a": [1]})]
    plan = write_items(store, values)

    assert plan["count"] == 6 and plan["reprs"][:2] == ["1", "'a'"] and set(plan) == {"count", "items", "reprs", "ids"}
    for i, value in enumerate(values):
        back = read_item(store, plan, i)
        assert same(back, value)
    assert read_item(store, plan, 2).flags.writeable


def test_the_format_of_items_is_the_documented_one(store):
    plan = write_items(store, ["a", np.arange(100)])
    data = store.get(layout.blob(plan["items"]))
    count, *offsets = struct.unpack("<4Q", data[:32])

    assert count == 2 and offsets[-1] == len(data) and all(offset % 64 == 0 for offset in offsets)
    assert [same(codec.decode(data[a:b]), v) for a, b, v in zip(offsets, offsets[1:], ["a", np.arange(100)], strict=False)] == [True, True]


def test_a_task_of_a_bucket_fetches_a_table_and_its_own_item_of_a_large_fan_out():
    store, fetched = MemoryStore(), []
    get_range = store.get_range
    store.get_range = lambda key, first, last: (fetched.append(last - first), get_range(key, first, last))[1]
    values = [np.full(100_000, i, dtype=float) for i in range(5)]
    plan = write_items(store, values)
    body = plan["blobs"][0]

    assert [same(read_item(store, plan, i), value) for i, value in enumerate(values)] == [True] * 5
    assert fetched == [len(store.get(layout.blob(body))) // 5] * 5
    assert len(store.get(layout.blob(plan["items"]))) == 8 + 32 + 5 * 48
    assert read_item(store, plan, 2).flags.writeable
    for i in (5, 10**6):
        with pytest.raises(ArtifactError, match=f"have no item {i}, or are damaged"):
            read_item(store, plan, i)


def test_a_split_item_that_was_changed_is_found_and_the_others_are_read():
    store = MemoryStore()
    plan = write_items(store, ["a" * 600_000, "b" * 600_000])
    key = layout.blob(plan["blobs"][0])
    store.put(key, store.get(key).replace(b"bbbb", b"bbXb", 1))

    assert read_item(store, plan, 0) == "a" * 600_000
    with pytest.raises(ArtifactError, match="have no item 1, or are damaged"):
        read_item(store, plan, 1)
    store.delete(key)
    with pytest.raises(StoreMissing):
        read_item(store, plan, 0)


def test_no_items_and_items_of_a_generator(store):
    assert write_items(store, [])["count"] == 0

    def refilled():
        buffer = np.zeros(1000)
        for i in range(3):
            buffer[:] = i
            yield buffer

    plan = write_items(store, refilled())
    assert [read_item(store, plan, i)[0] for i in range(3)] == [0, 1, 2]


def test_too_many_items_are_refused_before_they_are_all_listed(store):
    def endless():
        while True:
            yield 1

    with pytest.raises(ArtifactError, match="rates has more than 50 items"):
        write_items(store, endless(), name="rates", limit=50)
    assert write_items(store, range(50), limit=50)["count"] == 50


def test_an_item_that_cannot_be_pickled_is_named(store):
    with pytest.raises(NotPicklable, match=r"item 3 of rates\['lock'\] cannot be pickled: TypeError") as caught:
        write_items(store, [1, 2, 3, {"lock": threading.Lock()}], name="rates")
    assert caught.value.path == "item 3 of rates['lock']"


def test_an_error_of_iterating_is_the_user_s_own(store):
    def broken():
        yield 1
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        write_items(store, broken())


def test_an_item_that_is_not_there_or_damaged_is_told(store):
    plan = write_items(store, [1, 2])
    for i in (2, 3, 1000):
        with pytest.raises(ArtifactError, match=f"no item {i}|damaged"):
            read_item(store, plan, i)
    with pytest.raises(IndexError):
        read_item(store, plan, -1)
    with pytest.raises(StoreMissing):
        read_item(store, {"items": "0" * 64}, 0)
    data = store.get(layout.blob(plan["items"]))
    for cut in (b"", data[:20], data[:70], data[:-200], b"\xff" * 300):
        with pytest.raises(ArtifactError):
            read_item(store, {"items": store.put_blob([cut])}, 1)


def test_items_of_the_notebook_s_classes_are_bound_to_main(store):
    main = {"__name__": "__main__"}
    exec("class Config:\n  def __init__(self, a): self.a = a", main)
    plan = write_items(store, [main["Config"](1)], main=main, keys=lambda q: "k")

    assert type(read_item(store, plan, 0, main=main)) is main["Config"]
    with pytest.raises(ArtifactError, match="item 0 needs 'Config'"):
        read_item(store, plan, 0, main={})


def test_files_among_the_items_are_listed_for_the_garbage_collector(store, tmp_path):
    from flowbook.store.values import File

    (tmp_path / "a.txt").write_text("content")
    plan = write_items(store, [File(tmp_path / "a.txt")])

    assert len(plan["blobs"]) == 1 and read_item(store, plan, 0).read_text() == "content"
