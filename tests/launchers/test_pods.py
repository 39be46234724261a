"""The launcher of pods against a fake cluster, whose pods are processes: on any machine, and where the cluster has to misbehave."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine.launch import kubernetes, podspec
from flowbook.engine.launch.apiserver import Api
from flowbook.engine.scheduler import Machine
from flowbook.store.files import FilesStore
from tests.launchers.fake_cluster import Denied, FakeCluster
from tests.launchers.stage import Stage, cell, sweep, until

pytest.register_assert_rewrite("tests.launchers.pods")

from tests.launchers.pods import *  # noqa: E402, F403 (the stories are tests of this file, too)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeCluster]:
    folder = tmp_path / "node"
    folder.mkdir()
    cluster = FakeCluster(folder)
    yield cluster
    cluster.close()


@pytest.fixture
def stage(fake: FakeCluster, tmp_path: Path) -> Stage:
    return Stage(FilesStore(tmp_path / "project"), fake, {}, {"KUBECONFIG": str(fake.kubeconfig)})


# ---- where the cluster misbehaves, which a real one does not on demand -----------------------------------------------------------


def times(count: int, denied: Denied, method: str, what: str) -> Any:
    """Denies the first so many requests of a kind."""
    left = [count]

    def denies(asked: str, path: str, body: Any) -> None:
        if asked == method and re.search(what, path) and left[0]:
            left[0] -= 1
            raise denied

    return denies


def test_a_busy_api_server_is_asked_again_when_it_says(stage: Stage, fake: FakeCluster) -> None:
    fake.denies = times(3, Denied(429, "TooManyRequests", "later", retry_after=1), "POST", "/pods$")
    stage.drive(cell("start", "x = 1", saves="x"))

    assert stage.value("x", "start") == 1
    assert stage.happened().count("launched start") == 1
    assert any("the cluster is busy (429)" in m.get("message", "") for m in stage.said)


def test_a_quota_that_is_used_up_makes_pods_wait_and_says_so(stage: Stage, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "QUOTA_S", 0.3)
    fake.denies = times(2, Denied(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: team, requested: pods=1'), "POST", "/pods$")
    stage.drive(cell("start", "x = 1", saves="x"))

    assert stage.value("x", "start") == 1
    assert any("the quota of namespace team is used up" in m.get("why", "") for m in stage.said)


@pytest.mark.parametrize(
    ("method", "what", "told"),
    [("POST", "/pods$", "verbs: [create]"), ("GET", "/pods[?]", "verbs: [watch]")],
)
def test_a_right_that_lacks_is_named_as_a_rule(stage: Stage, fake: FakeCluster, method: str, what: str, told: str) -> None:
    fake.denies = times(10**6, Denied(403, "Forbidden", 'User "ann" cannot do that'), method, what)
    stage.drive(cell("start", "x = 1"))

    message = stage.error("start")["message"]
    assert told in message and "resources: [pods]" in message and 'User "ann"' in message


def test_an_account_that_the_cluster_does_not_know_is_told(stage: Stage, fake: FakeCluster) -> None:
    config = fake.kubeconfig
    config.write_text(config.read_text().replace("secret-token", "expired"))
    stage.drive(cell("start", "x = 1"))

    assert "does not know this account (401)" in stage.error("start")["message"]


def test_without_a_cluster_it_is_said_what_is_missing(stage: Stage, tmp_path: Path) -> None:
    stage.environ["KUBECONFIG"] = str(tmp_path / "nothing")
    stage.drive(cell("start", "x = 1"))

    assert "no cluster is set up here" in stage.error("start")["message"] and "KUBECONFIG" in stage.error("start")["message"]


def test_with_the_fewest_rights_a_run_still_tidies_up(stage: Stage, fake: FakeCluster) -> None:
    def denies(method: str, path: str, body: Any) -> None:
        if "configmaps" in path or (method == "DELETE" and re.search(r"/pods\?label", path)):
            raise Denied(403, "Forbidden", "cannot")

    fake.denies = denies
    stage.drive(*sweep(2))

    asyncio.run(until(lambda: not fake.names(), "the end of the pods"))


def test_no_more_pods_than_the_ceiling_at_once(stage: Stage, fake: FakeCluster) -> None:
    stage.drive(*sweep(3), settings={"max_pods": 1})

    running, most = 0, 0
    begun: set[str] = set()
    for _, _, pod in fake.events:
        name, phase = pod["metadata"]["name"], pod["status"]["phase"]
        begun = begun - {name} if phase in ("Succeeded", "Failed") else begun | {name}
        running = len(begun)
        most = max(most, running)
    assert most == 1 and stage.value("total", "best") == 30


def test_gc_removes_what_ended_runs_left_and_nothing_of_open_ones(stage: Stage, fake: FakeCluster) -> None:
    api = Api.connect(environ=stage.environ)

    def pod(run: str, store: dict[str, Any]) -> dict[str, Any]:
        ask = podspec.Ask("demo", run, "other", store=store, image="missing/x:1")
        return podspec.manifest(ask, podspec.Cluster(namespace="team"))

    mine = kubernetes.place_of(stage.store)
    stage.drive(cell("start", "x = 1"), run="1")
    stage.spec(cell("start", "x = 1"), run="2")
    for run, store in (("1", mine), ("2", mine), ("3", mine), ("1", {"kind": "files", "root": "/another"})):
        fake.create(pod(run, store))

    listed = kubernetes.sweep(api, stage.store, "team", dry_run=True).removed
    assert len(fake.names()) == 4 and len(listed) == 2
    assert sorted(kubernetes.sweep(api, stage.store, "team").removed) == sorted(listed)
    notes = [fake.pods[name]["metadata"]["annotations"] for name in fake.names()]
    assert sorted((note["flowbook/run"], "another" in note["flowbook/store"]) for note in notes) == [("1", True), ("2", False)]


def test_a_pod_of_the_attempts_name_is_not_made_twice(stage: Stage, fake: FakeCluster) -> None:
    """The answer to a create is lost: the pod is there, and the create that is tried again is told so."""
    real = fake.create

    def create(pod: Any) -> Any:
        real(pod)
        fake.create = real  # type: ignore[method-assign]
        raise Denied(500, "InternalError", "the answer is lost")

    fake.create = create  # type: ignore[method-assign]
    stage.drive(cell("start", "x = 1", saves="x"))

    assert stage.value("x", "start") == 1 and stage.happened().count("launched start") == 1
    assert len({pod["metadata"]["uid"] for _, _, pod in fake.events}) == 1


def test_a_watch_that_is_told_410_reads_all_anew_and_misses_nothing(stage: Stage, fake: FakeCluster) -> None:
    async def scene() -> int:
        run = stage.run(*sweep(4, "import time\nprint('begun', flush=True)\ntime.sleep(5)\ny = x"))
        driven = asyncio.create_task(run.drive())
        await until(lambda: any("begun" in live.tail()[0] for live in run.live.values()), "the sweep")
        fake.forget()
        await driven
        return 0

    stage.complete(scene())

    assert stage.log()[-1]["state"] == "succeeded"
    assert [e["e"] for e in stage.log()].count("launched") == 6


def test_of_two_engines_of_a_run_the_one_that_steps_back_leaves_the_pods_to_the_other(stage: Stage, tmp_path: Path) -> None:
    """As when somebody goes on with a run on another machine, where its engine is not seen."""
    body = f"""
import os, time
open(f"{tmp_path}/begun-{{x}}", "a").write("x")
while not os.path.exists(f"{tmp_path}/go-{{x}}"):
    time.sleep(0.02)
y = x * 10
"""

    def begun() -> list[int]:
        return sorted(len(file.read_text()) for file in tmp_path.glob("begun-*"))

    async def scene() -> list[str | None]:
        engines = [asyncio.create_task(stage.run(*sweep(2, body)).drive())]
        await until(lambda: begun() == [1, 1], "the pods")
        stage.machine, first = Machine(), stage.machine
        other = stage.run(adopt=True)
        engines.append(asyncio.create_task(other.drive()))
        await until(lambda: len(other.live) == 2 and all(live.pod is not None for live in other.live.values()), "the other engine")
        (tmp_path / "go-0").touch()
        await asyncio.wait(engines, return_when=asyncio.FIRST_COMPLETED)
        (tmp_path / "go-1").touch()
        ended = [await engine for engine in engines]
        first.close()
        return ended

    assert set(stage.complete(scene())) == {None, "succeeded"}
    assert begun() == [1, 1] and stage.value("total", "best") == 10
