"""Checkpoints of tasks in real workers: loops, states, files; kills and damage at any point; what is kept and what is written again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowbook.worker.checkpoint as module
from flowbook.spec.flow import Checkpoint, Resources
from flowbook.store import chunks, garbage, layout
from flowbook.store.chunks import DamagedCheckpoint, Shelf
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore
from flowbook.worker import restore, writer
from tests.flows import FlowFile
from tests.worker_project import FLOW, RUN, Project, Ran, cell

CRASH = """
import os
def crash(at):
    if os.environ.get("CRASH") == str(at) and current.attempt == 0:
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def define(project: Project, source: str, policy: str = "fresh", **fields: Any) -> None:
    project.define(cell("only", CRASH + source, checkpoint=Checkpoint(policy), **fields))


def shelf_of(project: Project, run: str = RUN) -> Shelf:
    return Shelf(project.store, FLOW, run, "only", ())


def value(project: Project, ran: Ran, name: str) -> Any:
    assert ran.code == 0, (ran.output, ran.frames)
    return project.value(ran.artifacts[name])


def crash_then_retry(project: Project, at: int) -> Ran:
    assert project.run("only", env={"CRASH": str(at)}).code == -signal.SIGKILL
    return project.run("only", attempt=1)


# ---- checkpoint.loop ---------------------------------------------------------------------------------------------------


def test_a_loop_goes_on_with_the_next_item_and_the_named_objects_as_they_were(project: Project) -> None:
    define(
        project,
        """
import random, collections, numpy
class Model:
    def __init__(self):
        self.weights, self.lock = [0.0], None
    def fit(self, x):
        self.weights.append(x)
class Torchlike:
    def __init__(self):
        self.hidden = lambda: None
        self.n = 0
    def state_dict(self):
        return {"n": self.n}
    def load_state_dict(self, state):
        self.n = state["n"]
model, opt, log, table, seen, last = Model(), Torchlike(), [], numpy.zeros(3), set(), collections.deque(maxlen=2)
alias, rng = model.weights and model, random.Random(1)
for epoch in checkpoint.loop(range(6), model=model, opt=opt, log=log, table=table, seen=seen, last=last, rng=rng, nothing=None):
    crash(epoch)
    model.fit(random.random())
    opt.n += 1
    log.append((current.attempt, epoch, rng.random()))
    table += epoch
    seen.add(epoch)
    last.append(epoch)
weights, n, table, seen, last, same = model.weights, opt.n, list(table), sorted(seen), list(last), alias is model
""",
        saves=("weights", "n", "log", "table", "seen", "last", "same"),
    )
    ran = crash_then_retry(project, 4)
    again = project.run("only", attempt=2)

    assert [row[:2] for row in value(project, ran, "log")] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5)]
    assert (
        value(project, ran, "n") == 6 and value(project, ran, "table") == [15.0] * 3 and value(project, ran, "seen") == [0, 1, 2, 3, 4, 5]
    )
    assert value(project, ran, "last") == [4, 5] and value(project, ran, "same") is True and len(value(project, ran, "weights")) == 7
    assert "goes on after item 4 (checkpoint 4 of attempt 1)" in ran.output and "after its last item" in again.output


def test_the_random_numbers_go_on_as_well(project: Project) -> None:
    source = "\nimport random, numpy\nlog = []\nfor i in checkpoint.loop(range(6), log=log):\n    crash(i)\n    log.append((random.random(), numpy.random.rand()))\n"
    define(project, source, saves=("log",))
    same = value(project, project.run("only"), "log")
    other = Project(project.folder / "other")
    other.folder.mkdir()
    define(other, source, saves=("log",))

    assert value(other, crash_then_retry(other, 3), "log") == same


def test_loops_after_each_other_each_go_on_where_they_were(project: Project) -> None:
    define(
        project,
        """
log, ends = [], []
for fold in range(3):
    model = [fold]
    for i in checkpoint.loop(range(4), model=model):
        crash(10 * fold + i)
        model.append((current.attempt, i))
    ends.append(list(model))
""",
        saves=("ends",),
    )
    ran = crash_then_retry(project, 12)

    a, b = [(0, i) for i in range(4)], [(1, i) for i in range(4)]
    assert value(project, ran, "ends") == [[0, *a], [1, *a[:2], *b[2:]], [2, *b]]


@pytest.mark.parametrize(
    ("items", "seen"),
    [
        ("[0, 1, 2, 3, 4]", [0, 1, 2, 3, 4]),
        ("(n for n in range(5))", [0, 1, 2, 3, 4]),
        ("dict.fromkeys('abcde')", list("abcde")),
        ("enumerate('abc')", [(0, "a"), (1, "b"), (2, "c")]),
    ],
)
def test_anything_can_be_iterated(project: Project, items: str, seen: list[Any]) -> None:
    define(
        project, f"\nlog = []\nfor n, i in enumerate(checkpoint.loop({items}, log=log)):\n    crash(n)\n    log.append(i)\n", saves=("log",)
    )

    assert value(project, crash_then_retry(project, 2), "log") == seen


@pytest.mark.parametrize(("every", "kept"), [("3", [3, 5]), ("'1h'", [5]), ("1", [4, 5])])
def test_every_says_how_often_and_the_last_item_is_always_saved(project: Project, every: str, kept: list[int]) -> None:
    define(project, f"\nlog = []\nfor i in checkpoint.loop(range(5), log=log, every={every}):\n    log.append(i)\n")
    assert project.run("only").code == 0

    found = sorted(shelf_of(project).manifests()[0], key=lambda manifest: int(manifest["number"]))
    assert [(m["loops"][0]["position"], m["loops"][0]["done"]) for m in found][-1] == (5, True)
    assert sorted({m["loops"][0]["position"] for m in found}) == kept or (every == "1" and len(found) == 2)


@pytest.mark.parametrize("every", ["0", "-1", "True", "'soon'", "''", "[]"])
def test_an_every_that_is_none_is_refused(project: Project, every: str) -> None:
    define(project, f"\nfor i in checkpoint.loop(range(5), every={every}):\n    pass\n")

    error = project.run("only").error
    assert error["type"] == "CheckpointError" and "'30s'" in error["message"] and "for i in checkpoint.loop" in error["source_line"]


@pytest.mark.parametrize(("given", "kind"), [("0.5", "float"), ("'a'", "str"), ("(1, 2)", "tuple")])
def test_what_can_only_be_replaced_is_refused_at_once(project: Project, given: str, kind: str) -> None:
    define(project, f"\nbest = {given}\nfor i in checkpoint.loop(range(5), best=best):\n    pass\n")

    message = project.run("only").error["message"]
    assert f"`best` is a {kind}" in message and "state={'best': best}" in message


@pytest.mark.parametrize("how", ["{}", "enumerate({})"])
def test_a_name_that_the_loop_binds_anew_is_refused_at_the_first_save(project: Project, how: str) -> None:
    loop = how.format("checkpoint.loop(range(5), params=params, nothing=nothing)")
    define(project, f"\nparams, nothing = {{'w': 0}}, None\nfor i in {loop}:\n    params = {{'w': params['w'] + 1}}\n")
    error = project.run("only").error

    assert error["type"] == "CheckpointError" and "has bound `params` to another object" in error["message"]


HARD = """
import array
numbers = {first}
if numbers is None:
    numbers = array.array("i", [0])
for i in checkpoint.loop(range(5), numbers=numbers):
    crash(i)
    numbers.append(i)
log = list(numbers)
"""


def test_what_cannot_be_changed_in_place_is_taken_from_the_checkpoint(project: Project) -> None:
    define(project, HARD.format(first="checkpoint.state.get('numbers')"), saves=("log",))

    assert value(project, crash_then_retry(project, 3), "log") == [0, 0, 1, 2, 3, 4]


def test_what_cannot_be_changed_in_place_and_is_not_taken_is_refused(project: Project) -> None:
    define(project, HARD.format(first="None"))

    assert "numbers = checkpoint.state.get('numbers')" in project.run("only").error["message"]


def test_what_cannot_be_pickled_is_refused_at_the_first_save_by_its_path(project: Project) -> None:
    define(
        project, "\nimport threading\nmodel = {'lock': threading.Lock()}\nfor i in checkpoint.loop(range(5), model=model):\n    print(i)\n"
    )
    ran = project.run("only")

    assert ran.error["type"] == "NotPicklable" and "['lock']" in ran.error["message"] and ran.output.startswith("0\n")
    assert "1\n" not in ran.output


def test_other_names_than_those_that_were_saved_are_refused(project: Project) -> None:
    define(
        project,
        "\na, b = [], []\nnames = {'a': a} if current.attempt == 0 else {'b': b}\nfor i in checkpoint.loop(range(5), **names):\n    crash(i)\n",
    )

    assert "the checkpoint holds a, but the loop names b" in crash_then_retry(project, 2).error["message"]


def test_a_loop_in_a_loop_only_iterates_and_that_is_said(project: Project) -> None:
    source = "\nlog = []\nfor i in checkpoint.loop(range(3), log=log):\n    for j in checkpoint.loop(range(2)):\n        crash(10 * i + j)\n        log.append((i, j))\n"
    define(project, source, saves=("log",))
    ran = crash_then_retry(project, 11)

    assert value(project, ran, "log") == [(i, j) for i in range(3) for j in range(2)]
    assert ran.output.count("a loop within a loop") == 1


def test_save_checkpoint_in_such_a_loop_asks_for_a_save(project: Project) -> None:
    define(
        project,
        "\nlog = []\nfor i in checkpoint.loop(range(5), log=log, every='1h'):\n    crash(i)\n    log.append(i)\n    if i == 1:\n        save_checkpoint(state={'i': i})\n",
    )
    ran = crash_then_retry(project, 4)

    assert "goes on after item 2" in ran.output


# ---- states ------------------------------------------------------------------------------------------------------------

STATE = """
import random
state = load_checkpoint() or {"epoch": 0, "log": []}
for epoch in range(state["epoch"], 6):
    crash(epoch)
    state["log"].append((epoch, random.random()))
    save_checkpoint(state={**state, "epoch": epoch + 1})
log = state["log"]
"""


def test_a_state_of_ones_own_is_given_back_with_the_random_numbers(project: Project) -> None:
    define(project, STATE, saves=("log",))
    same = value(project, project.run("only"), "log")
    other = Project(project.folder / "other")
    other.folder.mkdir()
    define(other, STATE, saves=("log",))

    assert value(other, crash_then_retry(other, 4), "log") == same and len(same) == 6


def test_without_a_task_everything_is_inert(capsys: pytest.CaptureFixture[str]) -> None:
    from flowbook.spec import decorators

    assert module.save_checkpoint() is None and module.save_checkpoint(state=1) is None and module.load_checkpoint() is None
    assert list(decorators.checkpoint.loop(range(3), model=1, every="30s")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_step_with_checkpoints_starts_without_anything_heavy(project: Project) -> None:
    source = "\nimport sys\nfor i in checkpoint.loop(range(0)):\n    pass\nloaded = sorted(sys.modules)\n"
    define(project, source, saves=("loaded",))
    loaded = set(value(project, project.run("only"), "loaded"))

    heavy = {"numpy", "pandas", "asyncio", "IPython", "argparse", "symtable", "flowbook.spec.options"}
    assert loaded & heavy == set()


def test_in_a_step_without_the_option_a_bare_save_is_said_to_do_nothing(project: Project) -> None:
    project.define(cell("only", "for i in range(3):\n    save_checkpoint()"))
    ran = project.run("only")

    assert (
        ran.code == 0
        and ran.output.count("save_checkpoint() does nothing here: the step has no @checkpoint (in a cell: --checkpoint)") == 1
    )


MISSING = """
class Train(FlowSpec):
    DECORATORS
    @step
    def start(self):
        self.total = 0
        for e in checkpoint.loop(range(3)):
            self.total += e
        save_checkpoint()
        self.loaded, self.shown = bool(checkpoint.is_loaded), repr(checkpoint.is_loaded)
        current.card.append("text")
        self.report()
        self.next(self.end)

    def report(self):
        card.refresh()

    @step
    def end(self):
        save_checkpoint = 1
"""


def test_what_a_class_step_uses_without_its_decorator_is_told_before_the_run_in_it_and_in_its_result(tmp_path: Path) -> None:
    flow = FlowFile(tmp_path)
    flow.write(MISSING.replace("DECORATORS", ""))
    notes = [
        "step start uses checkpoint, but has no @checkpoint: nothing is saved. Add @checkpoint above it.",
        "step start uses card, but has no @card: nothing is shown. Add @card above it.",
    ]
    checked, ran = flow.run("check").stdout, flow.run()
    commit = flow.commit("start")
    assert commit is not None

    assert [checked.count(note) for note in notes] == [1, 1] and "step end uses" not in checked
    assert all((ran.stdout + ran.stderr).count(note) >= 2 for note in notes) and commit["warnings"] == notes
    assert flow.value("loaded") is False and flow.value("shown") == "<nothing: the step has no @checkpoint>" and flow.value("total") == 3


def test_with_the_decorators_nothing_is_missed(tmp_path: Path) -> None:
    flow = FlowFile(tmp_path)
    flow.write(MISSING.replace("DECORATORS", "@card").replace("save_checkpoint()", "pass"))
    said = flow.run("run", "--with", "checkpoint")

    assert " but has no @" not in said.stdout + said.stderr and flow.commit("start")["warnings"] == []  # type: ignore[index]


def test_a_function_of_the_users_own_by_that_name_is_not_meant(tmp_path: Path) -> None:
    flow = FlowFile(tmp_path)
    flow.write("""
def save_checkpoint():
    pass

class Train(FlowSpec):
    @step
    def start(self):
        save_checkpoint()
        self.next(self.end)

    @step
    def end(self):
        card = {}
        card.update(a=1)
""")

    assert "uses" not in flow.run("check").stdout


def test_a_state_that_cannot_be_pickled_is_refused_and_the_one_before_stands(project: Project) -> None:
    define(project, "\nimport threading\nsave_checkpoint(state=1)\nsave_checkpoint(state=threading.Lock())\n")

    assert project.run("only").error["type"] == "NotPicklable" and len(shelf_of(project).numbers()) == 1


# ---- large states: beside the body -------------------------------------------------------------------------------------

LARGE = """
import numpy
{threads}
model = numpy.zeros(400_000)
for i in checkpoint.loop(range(12), model=model, every=1):
    crash(i)
    model += 1
total, how = float(model.sum()), ""
"""


@pytest.mark.parametrize("threads", ["", "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"])
def test_a_large_state_is_written_beside_the_body_and_is_of_one_moment(project: Project, threads: str) -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        define(project, LARGE.format(threads=threads), saves=("total",))
        ran = crash_then_retry(project, 9)
    finally:
        del os.environ["OPENBLAS_NUM_THREADS"]

    assert value(project, ran, "total") == 12 * 400_000.0
    newest = shelf_of(project).manifests()[0][0]
    assert newest["attempt"] == 1 and newest["loops"][0]["done"] and len(newest["loops"][0]["body"]["chunks"]) > 1


def save_of(state: Any, number: list[int]) -> writer.Save:
    from flowbook.store import codec

    return writer.Save(
        lambda: {"state": codec.encode(state, previews=False)}, lambda bodies: {"kind": "state", "n": number[0], "state": bodies["state"]}
    )


@pytest.mark.parametrize("mode", ["fork", "copy", "now"])
def test_the_latest_of_many_saves_wins_and_each_is_of_its_moment(tmp_path: Path, mode: str) -> None:
    # In a process of its own: pytest's may have threads.
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from pathlib import Path
from tests.test_checkpoint import save_of
from flowbook.store.chunks import Shelf
from flowbook.store.files import FilesStore
from flowbook.worker.writer import Writer
store = FilesStore({str(tmp_path / "store")!r})
shelf = Shelf(store, "demo", "1", "only", ())
writer = Writer(store, shelf, 0, mode={mode!r})
state, number = bytearray(6_000_000), [0]
for i in range(30):
    state[:] = bytes([i]) * len(state)
    number[0] = i
    writer.save(save_of(state, [i]))
state[:] = bytes(len(state))
writer.finish()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    shelf = Shelf(FilesStore(tmp_path / "store"), "demo", "1", "only", ())
    from flowbook.store import codec

    found = shelf.manifests()[0]
    assert found[0]["n"] == 29 and len(found) == 2
    for manifest in found:
        assert set(codec.decode(shelf.body(manifest["state"]))) == {manifest["n"]}


def test_an_error_of_a_save_beside_the_body_is_raised_by_the_next_call(tmp_path: Path) -> None:
    class Failing(FilesStore):
        def create(self, key: str, data: Any) -> bool:
            raise OSError("no disk")

    store = Failing(tmp_path / "store")
    saving = writer.Writer(store, Shelf(store, "demo", "1", "only", ()), 0, mode="copy")
    saving.save(save_of(bytearray(3_000_000), [1]))

    with pytest.raises(writer.SaveFailed, match="could not be written: OSError: no disk. The one before it stands"):
        saving.finish()
    saving.finish()


def test_a_child_that_is_killed_fails_its_save_and_no_other(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "store")
    shelf = Shelf(store, "demo", "1", "only", ())
    saving = writer.Writer(store, shelf, 0, mode="fork")

    def die() -> dict[str, Any]:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return save_of(bytearray(3_000_000), [1]).encode()

    parent = os.getpid()
    saving.save(writer.Save(die, lambda bodies: {"kind": "state", "state": bodies["state"]}))
    with pytest.raises(writer.SaveFailed, match="the process that wrote it ended with -9"):
        saving.finish()
    saving.save(save_of(bytearray(3_000_000), [2]))
    saving.finish()

    assert [manifest["n"] for manifest in shelf.manifests()[0]] == [2]


def test_a_fork_is_taken_only_where_it_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda path: ["1"])
    assert writer.why_not_fork(FilesStore(tmp_path)) is None
    assert writer.why_not_fork(MemoryStore()) == "the store is not a folder"
    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"])
    assert writer.why_not_fork(FilesStore(tmp_path)) == "threads run"
    monkeypatch.setattr(os, "listdir", lambda path: ["1"])
    monkeypatch.setitem(sys.modules, "jax", sys)
    assert writer.why_not_fork(FilesStore(tmp_path)) == "a library that works on GPUs is loaded"


@pytest.mark.parametrize(("limit_mb", "how"), [(None, "fork"), (1e9, "fork"), (0.5, "now")])
def test_memory_that_is_limited_decides_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_mb: float | None, how: str) -> None:
    monkeypatch.setattr(writer, "why_not_fork", lambda store: None)
    store = FilesStore(tmp_path)

    assert writer.Writer(store, Shelf(store, "demo", "1", "only", ()), 0, limit_mb)._how(10_000_000) == how


@pytest.mark.parametrize(
    ("faults", "system_s", "how"),
    [(3000, 1.0, "copy"), (3000, 0.0, "fork"), (10, 1.0, "fork")],
    ids=["the loop rewrites the state", "pages come cheaply", "the loop leaves the state alone"],
)
def test_a_fork_that_the_loop_pays_for_page_by_page_gives_way_to_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: int, system_s: float, how: str
) -> None:
    monkeypatch.setattr(writer, "why_not_fork", lambda store: None)
    store = FilesStore(tmp_path)
    saving = writer.Writer(store, Shelf(store, "demo", "1", "only", ()), 0)
    saving._size = 10_000_000
    saving._watched = writer._Usage(0, 0.0)
    monkeypatch.setattr(writer._Usage, "now", classmethod(lambda cls: cls(faults, system_s)))
    saving._weigh()

    assert saving._how(10_000_000) == how


# ---- what is written, what is kept -------------------------------------------------------------------------------------


def test_pieces_begin_where_buffers_begin_and_join_to_the_whole() -> None:
    parts = [b"head", bytes(300_000), b"x", bytes(9 << 20), *[b"y" * 1000] * 2000]
    pieces = list(chunks.cut(parts))

    assert b"".join(pieces) == b"".join(parts)
    assert max(map(len, pieces)) == chunks.CHUNK_BYTES and len(pieces) < 10


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from flowbook.store import codec

    store = FilesStore(tmp_path)
    shelf = Shelf(store, "demo", "1", "only", ())
    state = {"frozen": numpy.random.rand(4_000_000), "head": numpy.zeros(1000)}
    first = shelf.write_body(codec.encode(state, previews=False).parts, 0)
    files = set(store.list("flows/"))
    state["head"][0] = 1
    second = shelf.write_body(codec.encode(state, previews=False).parts, 0)

    new = set(store.list("flows/")) - files
    assert sum(store.size(key) for key in new) < 20_000 and len(new) < len(first["chunks"]) == len(second["chunks"])


def test_the_last_two_are_kept_those_with_a_name_too_and_no_piece_without_a_manifest(tmp_path: Path) -> None:
    store = FilesStore(tmp_path)
    shelf = Shelf(store, "demo", "1", "only", ())
    leftover = layout.checkpoint_chunk("demo", "1", "only", (), 0, "a" * 64)
    store.create(leftover, b"of a save that was killed")
    later = layout.checkpoint_chunk("demo", "1", "only", (), 1, "b" * 64)
    store.create(later, b"of a later attempt, which may be writing it")
    for n in range(5):
        body = shelf.write_body([random.Random(n).randbytes(100_000)], 0)
        shelf.create({"kind": "state", "state": body, "n": n}, 0)
        shelf.retire(sweep=0 if n == 0 else None)
    shelf.create({"kind": "files", "name": "best", "files": []}, 0)
    for _ in range(3):
        shelf.create({"kind": "files", "name": "mfchckpt", "files": []}, 0)
    shelf.retire()

    found = shelf.manifests()[0]
    assert [(m["kind"], m.get("name"), m.get("n")) for m in found] == [
        ("files", "mfchckpt", None),
        ("files", "mfchckpt", None),
        ("files", "best", None),
        ("state", None, 4),
        ("state", None, 3),
    ]
    pieces = [key for key in store.list("flows/") if not key.endswith(".json")]
    assert len(pieces) == 3 and leftover not in pieces and later in pieces


def test_blobs_that_a_checkpoint_names_are_not_garbage(tmp_path: Path) -> None:
    store = FilesStore(tmp_path)
    store.create(layout.spec("demo", "1"), b'{"steps": []}')
    store.create(layout.log("demo", "1", 0), b'{"events": []}')
    named, other = store.put_blob([b"named"]), store.put_blob([b"other"])
    Shelf(store, "demo", "1", "only", ()).create({"kind": "state", "blobs": [named]}, 0)
    for digest in (named, other):
        os.utime(tmp_path / layout.blob(digest), (0, 0))
    garbage.collect(store)

    assert store.exists(layout.blob(named)) and not store.exists(layout.blob(other))


# ---- damage and kills --------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(project: Project) -> None:
    define(
        project,
        "\nimport os\nlog = []\nfor i in checkpoint.loop(range(5), log=log):\n    crash(i)\n    log.append((current.attempt, i, os.urandom(70_000)))\n",
        saves=("log",),
    )
    assert project.run("only", env={"CRASH": "3"}).code == -9
    shelf = shelf_of(project)
    newest = shelf.manifests()[0][0]
    address = newest["loops"][0]["body"]["chunks"][-1][0]
    (project.store.root / layout.checkpoint_chunk(FLOW, RUN, "only", (), 0, address)).unlink()
    ran = project.run("only", attempt=1)

    assert [row[:2] for row in value(project, ran, "log")] == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]
    assert f"checkpoint {newest['number']}: " in ran.output and "is gone; the one before it is taken" in ran.output


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"v": 1}', "flip"])
def test_a_manifest_that_is_none_is_passed_over(tmp_path: Path, damage: str) -> None:
    store = FilesStore(tmp_path)
    shelf = Shelf(store, "demo", "1", "only", ())
    for n in range(2):
        shelf.create({"kind": "state", "state": shelf.write_body([b"%d" % n], 0)}, 0)
    path = tmp_path / layout.checkpoint("demo", "1", "only", (), 2)
    text = path.read_text().replace('"size":1', '"size":2') if damage == "flip" else damage
    path.unlink()
    path.write_text(text)
    found = chunks.find(shelf, ("state",))

    assert found.data["state"] == b"0" and found.manifest is not None and found.manifest["number"] == 1
    assert len(found.troubles) == 1 and "000002.json" in found.troubles[0]
    with pytest.raises(DamagedCheckpoint):
        shelf.manifest(2)


@pytest.mark.slow
def test_killed_at_any_point_every_restart_loads_a_whole_checkpoint_and_the_end_is_right(project: Project) -> None:
    """A worker is killed again and again while it saves; each attempt goes on from a verified checkpoint."""
    define(
        project,
        """
import numpy
print("starts", flush=True)
model, log = numpy.zeros(300_000), []
for i in checkpoint.loop(range(50), model=model, log=log, every=1):
    model += 1
    log.append(i)
    assert (model == len(log)).all() and log == list(range(i + 1))
log.append(float(model.sum()))
""",
        saves=("log",),
    )
    chance = random.Random(5)
    shelf = shelf_of(project)
    for number in range(12):
        order = json.dumps(project.order("only", attempt=number)).encode()
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "flowbook.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(order)
        worker.stdin.close()
        assert b"starts" in worker.stdout.readline()
        target = max(shelf.numbers(), default=0) + chance.randrange(1, 4)
        until(lambda target=target, worker=worker: max(shelf.numbers(), default=0) >= target or worker.poll() is not None)  # type: ignore[misc]
        for _ in range(chance.randrange(20_000)):
            pass  # some way into the next save
        worker.kill()
        worker.stdout.close()
        worker.wait()
        found = chunks.find(shelf, ("loop",))
        assert found.manifest is not None and found.data
    ran = project.run("only", attempt=12)

    assert value(project, ran, "log") == [*range(50), 50 * 300_000.0]


def until(seen: Callable[[], bool]) -> None:
    while not seen():
        time.sleep(0.001)


# ---- SIGTERM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 500_000])
def test_sigterm_saves_at_the_end_of_the_item_and_exits_143(project: Project, size: int) -> None:
    define(
        project,
        f"""
import os, signal, numpy
model, log = numpy.zeros({size}), []
for i in checkpoint.loop(range(6), model=model, log=log, every="1h"):
    model += 1
    if i == 3 and current.attempt == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    log.append((current.attempt, i))
total = float(model[0])
""",
        saves=("log", "total"),
    )
    assert project.run("only").code == 143
    ran = project.run("only", attempt=1)

    assert value(project, ran, "log") == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5)] and value(project, ran, "total") == 6.0


def test_sigterm_outside_a_loop_lets_the_running_save_finish(project: Project) -> None:
    define(
        project,
        """
import os, signal, numpy
state = load_checkpoint()
if state is None:
    for n in range(3):
        save_checkpoint(state=numpy.full(500_000, n))
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
n = int(state.sum() / 500_000)
""",
        saves=("n",),
    )
    assert project.run("only").code == 143
    assert value(project, project.run("only", attempt=1), "n") == 2


# ---- other runs --------------------------------------------------------------------------------------------------------


def second_run(project: Project, source: str, policy: str = "fresh", **fields: Any) -> None:
    """Run 2 of the same flow."""
    import dataclasses

    from flowbook.spec import flow as flows

    spec = project.define(cell("only", CRASH + source, checkpoint=Checkpoint(policy), saves=("log",))) if not project.steps else None
    assert spec is None
    step = cell("only", CRASH + source, checkpoint=Checkpoint(policy), saves=("log",))
    first = flows.from_json(flows.Spec, json.loads(project.store.get(layout.spec(FLOW, RUN))))
    second = dataclasses.replace(first, run="2", steps=(step,), **fields)
    project.store.create(layout.spec(FLOW, "2"), json.dumps(flows.to_json(second)).encode())


LOOP = "\nlog = []\nfor i in checkpoint.loop(range(5), log=log):\n    crash(i)\n    log.append((current.run, i))\n"


def log_of_second_run(project: Project) -> list[Any]:
    from flowbook.store import results

    ran = project.run("only", run="2")
    commit = results.read_commit(project.store, FLOW, "2", "only", ())
    assert ran.code == 0 and commit is not None, (ran.output, ran.frames)
    return [run for run, _ in project.value(commit["artifacts"]["log"])]


@pytest.mark.parametrize(
    ("policy", "fields", "log"),
    [
        ("fresh", {}, ["2"] * 5),
        ("none", {"origin": "1"}, ["2"] * 5),
        ("eager", {}, ["1"] * 3 + ["2"] * 2),
        ("fresh", {"origin": "1"}, ["1"] * 3 + ["2"] * 2),
        ("fresh", {"origin": "1", "params": {"rate": {"kind": "json", "json": 2}}}, ["2"] * 5),
    ],
)
def test_which_earlier_run_is_gone_on_from(project: Project, policy: str, fields: dict[str, Any], log: list[str]) -> None:
    define(project, LOOP, policy, saves=("log",))
    assert project.run("only", env={"CRASH": "3"}).code == -9
    second_run(project, LOOP, policy, **fields)

    assert log_of_second_run(project) == log


def test_load_policy_none_begins_anew_on_a_retry(project: Project) -> None:
    define(
        project,
        "\nlog = []\nfor i in checkpoint.loop(range(5), log=log):\n    crash(i)\n    log.append(current.attempt)\n",
        "none",
        saves=("log",),
    )

    assert value(project, crash_then_retry(project, 3), "log") == [1] * 5


# ---- files -------------------------------------------------------------------------------------------------------------


def test_a_folder_of_files_is_there_again_on_a_retry(project: Project) -> None:
    define(
        project,
        """
from pathlib import Path
folder = Path(checkpoint.directory)
was = checkpoint.is_loaded, sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")), checkpoint.info
if not checkpoint.is_loaded:
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "model.bin").write_bytes(os.urandom(5_000_000))
    (folder / "run.sh").write_text("true")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("model.bin")
    first = checkpoint.save(metadata={"epoch": 1})
    (folder / "model.bin").write_bytes(b"later")
    last = current.checkpoint.save(name="best")
    crash("here")
runs = os.access(folder / "run.sh", os.X_OK)
content, link = (folder / "model.bin").read_bytes(), os.readlink(folder / "link")
listed = checkpoint.list()
older = checkpoint.load(listed[1], path="older")
size = (older / "model.bin").stat().st_size
checkpoint.cleanup()
""",
        saves=("was", "content", "link", "listed", "size", "runs"),
    )
    ran = crash_then_retry(project, "here")  # type: ignore[arg-type]
    was = value(project, ran, "was")

    assert was[0] is True and was[1] == ["deep", "deep/empty", "link", "model.bin", "run.sh"] and was[2]["name"] == "best"
    assert (
        value(project, ran, "content") == b"later"
        and value(project, ran, "link") == "model.bin"
        and value(project, ran, "size") == 5_000_000
    )
    assert [(each["name"], each["metadata"]) for each in value(project, ran, "listed")] == [("best", {}), ("mfchckpt", {"epoch": 1})]
    assert value(project, ran, "runs") is True


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("checkpoint.save('nowhere')", "no such file or folder"),
        ("checkpoint.load()", "no files were saved yet"),
        ("checkpoint.load('flows/x')", "not a checkpoint"),
        ("checkpoint.load({'key': 'flows/demo/1/only/0/checkpoints/000009.json'})", "is gone"),
        ("checkpoint.list(task='only')", "a task is written Flow/run/step/task"),
    ],
)
def test_files_that_are_not_there_are_said(project: Project, call: str, why: str) -> None:
    define(project, f"\n{call}\n")
    error = project.run("only").error

    assert error["type"] == "CheckpointError" and why in error["message"]


def test_a_single_file_and_one_that_is_not_the_latest(project: Project) -> None:
    define(
        project,
        """
from pathlib import Path
Path("a.txt").write_text("a")
Path("b.txt").write_text("b")
kept = checkpoint.save("a.txt", name="a")
checkpoint.save("b.txt", name="b", latest=False)
back = checkpoint.load(kept, path="back")
names = [p.name for p in back.iterdir()], [each["name"] for each in checkpoint.list(full_namespace=True)], checkpoint.list(name="b")[0]["size"]
newest = [p.name for p in checkpoint.load(path="newest").iterdir()]
""",
        saves=("names", "newest"),
    )
    ran = project.run("only")

    assert value(project, ran, "names") == (["a.txt"], ["b", "a"], 1) and value(project, ran, "newest") == ["a.txt"]


# ---- in place ----------------------------------------------------------------------------------------------------------


def test_what_can_be_brought_back_in_place() -> None:
    class Plain:
        pass

    class Slots:
        __slots__ = ("a",)

    assert [restore.in_place(each) for each in ({}, [], set(), bytearray(), Plain(), random.Random(1))] == [True] * 6
    assert [restore.in_place(each) for each in (1, "a", (), Slots(), object(), memoryview(b""))] == [False] * 6


def test_arrays_of_another_shape_or_type() -> None:
    numpy = pytest.importorskip("numpy")
    small = numpy.zeros(2)
    view = numpy.zeros(4)[:2]

    assert restore.put_back(small, numpy.ones(3)) and list(small) == [1, 1, 1]
    assert not restore.put_back(view, numpy.ones(3)) and not restore.put_back(small, numpy.ones(3, "f4")) and not restore.put_back([], {})


def test_a_memory_limit_of_the_step_reaches_the_writer(project: Project) -> None:
    source = "\nlimit = checkpoint.writer._limit_mb\n"
    define(project, source, saves=("limit",), resources=Resources(memory_mb=5000))

    assert value(project, project.run("only"), "limit") == 5000


class Node:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Torchlike:
    def __init__(self, n: int) -> None:
        self.n, self.hidden = n, lambda: None

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n = state["n"]


def after_a_retry(make: Callable[[], dict[str, Any]], train: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], list[str]]:
    """What `make` makes, brought back to what `train` made of another one; and the names with which that failed."""
    from flowbook.store import codec

    first = make()
    named = {name: value for name, value in first.items() if not name.startswith("_")}
    start = restore.held(restore.inside(named))
    train(first)
    forms = {name: restore.saved_form(value) for name, value in named.items()}
    saved = codec.decode(codec.encode({"values": forms, "same": restore.unchanged(start, named)}, previews=False).join())
    again = make()
    named = {name: value for name, value in again.items() if not name.startswith("_")}
    return again, restore.bring_back(named, saved["values"], saved["same"])


def test_objects_that_hold_each_other_still_do() -> None:
    def make() -> dict[str, Any]:
        model = Node(w=[0], me=None)
        model.me = model
        net = Torchlike(0)
        return {"model": model, "opt": Node(model=model, pair=(model, 1), net=net, call=lambda: model), "net": net}

    def train(objects: dict[str, Any]) -> None:
        objects["model"].w.append(1)
        objects["net"].n = 7

    again, failed = after_a_retry(make, train)
    model, opt = again["model"], again["opt"]
    assert failed == [] and model.w == [0, 1] and again["net"].n == 7
    assert model.me is model is opt.model is opt.pair[0] and opt.net is again["net"] and opt.call() is model


def test_an_inner_object_is_brought_back_in_place_if_it_was_the_same_all_along_and_made_anew_if_not() -> None:
    numpy = pytest.importorskip("numpy")

    def make() -> dict[str, Any]:
        kept, replaced, grown = numpy.zeros(2), numpy.zeros(2), [1]
        return {"model": Node(kept=kept, replaced=replaced, grown=[grown]), "_kept": kept, "_replaced": replaced, "_grown": grown}

    def train(objects: dict[str, Any]) -> None:
        model = objects["model"]
        model.kept += 1
        model.replaced = model.replaced + 1
        model.grown[0].append(2)

    again, failed = after_a_retry(make, train)
    model = again["model"]
    assert failed == [] and model.kept is again["_kept"] and list(model.kept) == [1, 1]
    assert list(model.replaced) == [1, 1] and list(again["_replaced"]) == [0, 0]
    assert model.grown[0] is again["_grown"] and again["_grown"] == [1, 2]


def test_containers_of_all_kinds_are_brought_back() -> None:
    import collections

    def make() -> dict[str, Any]:
        return {
            "a": collections.Counter("ab"),
            "b": collections.OrderedDict(x=1, y=2),
            "c": collections.defaultdict(list),
            "d": {frozenset(): {1}},
        }

    def train(objects: dict[str, Any]) -> None:
        objects["a"].update("aac")
        objects["b"].move_to_end("x")
        objects["c"]["k"].append(objects["a"])
        objects["d"][frozenset()].add(2)

    again, failed = after_a_retry(make, train)
    assert failed == [] and again["a"] == {"a": 3, "b": 1, "c": 1} and list(again["b"]) == ["y", "x"]
    assert again["c"]["k"][0] is again["a"] and again["d"] == {frozenset(): {1, 2}}
