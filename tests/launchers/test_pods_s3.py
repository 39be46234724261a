"""Pods whose store is a bucket: a stock Python, without boto3 or flowbook, fetches what it needs by itself. A real S3 server, a fake cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowbook.store import layout
from flowbook.store.base import open_store
from tests.kernel.conftest import Notebook
from tests.launchers.fake_cluster import Denied, FakeCluster
from tests.launchers.left import Left, eventually
from tests.launchers.stage import Stage, cell, sweep
from tests.stores.s3_server import Server, serve

SEED = Path(__file__).parent.parent / "seed"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("s3") / "buckets") as found:
        found.bucket("tests")
        yield found


@pytest.fixture
def stage(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    given = server.environment
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    key = tmp_path / "project.key"
    folder = tmp_path / "node"
    folder.mkdir()
    cluster = FakeCluster(folder)
    cluster.secrets["store"] = {name: value for name, value in given.items() if name.startswith("AWS_")}
    place = {"kind": "s3", "bucket": "tests", "prefix": uuid.uuid4().hex, "endpoint": server.endpoint, "key_file": str(key)}
    store = open_store(place)
    yield Stage(store, cluster, {"secret": "store"}, {"KUBECONFIG": str(cluster.kubeconfig)})
    cluster.close()


def test_a_sweep_runs_with_its_artifacts_in_the_bucket(stage: Stage) -> None:
    run = stage.drive(*sweep(3, "import time\nprint('item', x)\nbig = [x] * 50_000\ny = x * 10", saves="y big"))

    assert run.state is not None and run.state.ended == "succeeded", stage.log()
    assert stage.value("total", "best") == 30
    assert stage.value("big", "train", 2) == [2] * 50_000
    assert stage.printed("train", 1) == "item 1\n"


def test_an_error_is_told_from_what_the_pod_stored(stage: Stage) -> None:
    stage.drive(cell("start", "print('so far')\n1 / 0"))

    assert (stage.error("start")["type"], stage.error("start")["line"]) == ("ZeroDivisionError", 2)
    assert stage.printed("start").startswith("so far\n")


def test_a_secret_that_the_namespace_has_not_is_named(stage: Stage) -> None:
    stage.drive(cell("start", "x = 1"), settings={"secret": "absent"})

    assert "the pod needs the secret 'absent'" in stage.error("start")["message"]


def test_a_pod_without_credentials_says_so(stage: Stage) -> None:
    stage.drive(cell("start", "x = 1"), settings={"secret": None})

    assert "this pod has no credentials for the store" in stage.error("start")["message"]


def test_wrong_credentials_are_told_with_the_servers_word(stage: Stage) -> None:
    stage.cluster.secrets["store"]["AWS_SECRET_ACCESS_KEY"] = "wrong"
    stage.drive(cell("start", "x = 1"))

    assert "does not give" in stage.error("start")["message"] and "SignatureDoesNotMatch" in stage.error("start")["message"]


def test_no_secret_is_in_what_the_cluster_or_the_store_holds(stage: Stage) -> None:
    stage.drive(cell("start", "x = 1", saves="x"))

    assert stage.store.key_file is not None
    key, secret = Path(stage.store.key_file).read_text().strip(), stage.cluster.secrets["store"]["AWS_SECRET_ACCESS_KEY"]
    told = repr(stage.cluster.events)
    stored = [stage.store.get(name) for name in stage.store.list("flows/")]
    assert stored and layout.order("demo", "1", "start", (), 0) in list(stage.store.list("flows/"))
    assert key not in told and secret not in told
    assert not any(word.encode() in data for word in (key, secret) for data in stored)


def test_the_projects_key_is_named_where_the_engine_may_not_hand_it_over(stage: Stage) -> None:
    def denies(method: str, path: str, body: object) -> None:
        if path.endswith("/secrets"):
            raise Denied(403, "Forbidden", "secrets is forbidden")

    stage.cluster.denies = denies
    stage.drive(cell("start", "x = 1"))

    assert stage.error("start")["type"] == "ImageError" and "has not got the project's key" in stage.error("start")["message"]


# ---- the ways in: command line and notebook --------------------------------------------------------------------------------------


@pytest.fixture
def environ(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a person has set who uses the cluster and the bucket of the stage."""
    given = {
        "FLOWBOOK_STORE": f"s3://tests/{uuid.uuid4().hex}",
        "FLOWBOOK_KUBERNETES_SECRET": "store",
        "FLOWBOOK_KUBERNETES_SCALE": "0.01",
        "KUBECONFIG": stage.environ["KUBECONFIG"],
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


@pytest.mark.parametrize("words", [("--with", "kubernetes", "run"), ("run", "--with", "kubernetes")], ids=" ".join)
def test_the_seeds_flow_runs_in_the_cluster_from_the_command_line(
    stage: Stage, environ: dict[str, str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    for name in ("foreach_flow.py", "training.py"):
        (tmp_path / name).write_bytes((SEED / name).read_bytes())
    command = [sys.executable, "foreach_flow.py", *words]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Best LR: 0.01" in done.stdout, done.stdout
    pods = {pod["metadata"]["name"]: pod for _, _, pod in stage.cluster.events}
    assert len(pods) == 6
    trained = [pod for pod in pods.values() if pod["metadata"]["annotations"]["flowbook/step"] == "train"]
    amounts = trained[0]["spec"]["containers"][0]["resources"]["limits"]
    assert amounts["nvidia.com/gpu"] == "1" and len(trained) == 3


def test_a_notebook_runs_its_steps_in_the_cluster_and_loads_what_they_made(stage: Stage, environ: dict[str, str], tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, kernel_env=environ)
    try:
        notebook.ok("%load_ext flowbook")
        notebook.ok("def square(n):\n    return n * n")
        (tmp_path / "rates.txt").write_text("1 2 3")
        notebook.ok("%%flowstep start --files rates.txt\nrates = [int(word) for word in open('rates.txt').read().split()]")
        notebook.ok('%%flowstep train --foreach "lr in rates" --memory 300MB\nscore = square(lr)\nprint("trained", lr)')
        notebook.ok("%%flowstep pick --join train\nbest = max(train, key=lambda task: task.score)")
        ran = notebook.ok("%flow run --with kubernetes")

        assert notebook.value("best.lr, best.score") == "(3, 9)", ran.text
        assert len({pod["metadata"]["name"] for _, _, pod in stage.cluster.events}) == 5
        pod = json.loads(notebook.ok("%flow show train --pod").stdout)
        assert pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "64M"  # 300 MB, scaled, and the least there is
        assert "only --with kubernetes is there" in notebook.fails("%flow run --with retry")
    finally:
        notebook.close()


def test_a_cluster_that_is_not_there_ends_a_command_before_there_is_a_run(stage: Stage, environ: dict[str, str], tmp_path: Path) -> None:
    for name in ("foreach_flow.py", "training.py"):
        (tmp_path / name).write_bytes((SEED / name).read_bytes())
    command = [sys.executable, "foreach_flow.py", "--with", "kubernetes", "run"]
    env = {**os.environ, **environ, "KUBECONFIG": str(tmp_path / "nothing")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert "no cluster is set up here" in done.stderr and "Nothing was run" in done.stderr and "Traceback" not in done.stderr


# ---- a run of the command line that was killed -----------------------------------------------------------------------------------


@pytest.fixture
def left(environ: dict[str, str], tmp_path: Path) -> Left:
    folder = tmp_path / "left"
    folder.mkdir()
    return Left(folder, environ)


@pytest.mark.parametrize(
    "words", [("--with", "kubernetes", "resume"), ("resume", "--origin-run-id", "1"), ("resume", "--alpha", "1")], ids=" ".join
)
def test_a_run_whose_process_was_killed_is_taken_over_with_its_pods(stage: Stage, left: Left, words: tuple[str, ...]) -> None:
    left.kill()
    left.go()
    done = left(*words)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "the engine of run 1 was gone: this process goes on with it, and with its pods" in done.stdout.splitlines()
    assert "the sum is 60" in done.stdout and "run 1 of LeftFlow succeeded" in done.stdout
    assert left.begun() == {"begun-1": 1, "begun-2": 1, "begun-3": 1}
    made = {pod["metadata"]["name"]: pod["metadata"]["annotations"] for _, _, pod in stage.cluster.events}
    steps = ["1/end", "1/join", "1/start", "1/train", "1/train", "1/train"]
    assert sorted(f"{notes['flowbook/run']}/{notes['flowbook/step']}" for notes in made.values()) == steps
    assert left.runs() == {"1": "succeeded"}
    assert not stage.cluster.names()


def test_tags_of_a_resume_are_tags_of_the_run_that_it_takes_over(left: Left) -> None:
    left.kill()
    left.go()
    assert left("resume", "--tag", "night").returncode == 0
    assert "night" in left("tag", "list", "--run-id", "1").stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--alpha", "2"), "its parameters were changed"),
        (("train",), "step train is to run again"),
        ((), "the flow, or what it was started with"),
    ],
    ids=["parameter", "step", "code"],
)
def test_a_resume_that_does_something_else_stops_the_pods_of_the_run_that_was_left(
    stage: Stage, left: Left, words: tuple[str, ...], why: str
) -> None:
    left.kill()
    if not words:
        left.file.write_text(left.file.read_text().replace("* 10", "* 20"))
    before = set(stage.cluster.names())

    def go() -> None:
        eventually(lambda: not before & set(stage.cluster.names()), "the end of the pods")
        left.go()

    going = threading.Thread(target=go)
    going.start()
    done = left("resume", *words)
    going.join()

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run 1 was left open by a process that is gone: its 3 pods are stopped first, since {why}" in done.stderr
    assert f"the sum is {60 if words == ('train',) else 120}" in done.stdout
    assert left.runs() == {"2": "succeeded", "1": "stopped"}
    assert left.begun() == {"begun-1": 2, "begun-2": 2, "begun-3": 2}
    assert not stage.cluster.names()


def test_a_run_that_another_terminal_drives_is_not_resumed(left: Left) -> None:
    process = left.start()
    try:
        done = left("resume")
        assert done.returncode == 2 and "run 1 of LeftFlow is running, in another process of this machine" in done.stderr
        assert "Ctrl-C" in done.stderr and not done.stdout
        left.go()
        printed, _ = process.communicate()
        assert process.returncode == 0 and left.runs() == {"1": "succeeded"}, printed
    finally:
        process.kill()
        process.wait()


def test_gc_removes_pods_of_a_run_that_was_left_once_their_results_are_stored_and_tells_of_it(stage: Stage, left: Left) -> None:
    left.kill()
    told = "run 1 of LeftFlow is open, but no process of this machine drives it"
    tried = left("gc", "--dry-run").stdout
    assert f"{told}, and 3 pods of it are there: `resume --origin-run-id 1` goes on with it, `flowbook stop LeftFlow/1` closes it" in tried
    assert "would remove 1 pod in the cluster" in tried  # that of start
    left.go()
    phases = stage.cluster.pods
    eventually(lambda: all(pod["status"]["phase"] == "Succeeded" for pod in list(phases.values())), "the ends of the pods")

    done = left("gc").stdout
    assert "removed 4 pods in the cluster that nobody needs any more" in done and f"! {told}: `resume" in done
    assert not stage.cluster.names()
    resumed = left("resume")
    assert resumed.returncode == 0 and "the sum is 60" in resumed.stdout, resumed.stdout + resumed.stderr
    assert left.begun() == {"begun-1": 1, "begun-2": 1, "begun-3": 1} and left.runs() == {"1": "succeeded"}
    assert "is open" not in left("gc").stdout


def test_gc_leaves_the_pods_of_a_run_that_is_driven_alone(stage: Stage, left: Left) -> None:
    process = left.start()
    try:
        before = stage.cluster.names()
        done = left("gc").stdout
        assert "in the cluster" not in done and "is open" not in done and stage.cluster.names() == before
        left.go()
        assert process.wait() == 0
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_was_left_is_closed_with_its_pods(stage: Stage, left: Left) -> None:
    left.kill()
    done = left("stop")

    assert done.returncode == 0 and "run 1 of LeftFlow was stopped" in done.stdout, done.stdout + done.stderr
    assert "run 1 was left open by a process that is gone: its 3 pods are stopped" in done.stderr
    assert left.runs() == {"1": "stopped"} and not stage.cluster.names() and not stage.cluster.anchors
    assert "has already ended" in left("stop", "1").stdout
