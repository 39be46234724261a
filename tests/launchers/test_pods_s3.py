"""Pods whose store is a bucket: a stock Python, without boto3 or flowbook, fetches what it needs by itself. A real S3 server, a fake cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowbook.store import layout
from flowbook.store.base import open_store
from tests.launchers.fake_cluster import Denied, FakeCluster
from tests.launchers.stage import Stage, cell, sweep
from tests.stores.s3_server import Server, serve


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
