"""Runs in pods of a real cluster, with artifacts in a real S3 server: the stories of tests/launchers/pods.py, and what only a kubelet can show.

The engine acts with the rights of flowbook/engine/launch/rights.yaml, pods with none, in a namespace that enforces the restricted standard.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine.launch import podspec
from flowbook.engine.launch.apiserver import Api, PodWatch
from flowbook.spec.flow import Resources, Retry
from tests.cluster.cluster import S3, Cluster, Namespace
from tests.cluster.stages import credentials, environ_of, here, make_secret, stage_on
from tests.launchers.stage import Stage, cell, until

pytest.register_assert_rewrite("tests.launchers.pods")

from tests.launchers.pods import *  # noqa: E402, F403 (the stories are tests of this file, too)

pytestmark = pytest.mark.slow


@pytest.fixture
def stage(cluster: Cluster, namespace: Namespace, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    make_secret(namespace, "store", credentials(bucket))
    return stage_on(cluster, namespace, bucket, tmp_path, monkeypatch)


def test_a_step_that_takes_more_memory_than_it_may_is_told_so(stage: Stage) -> None:
    stage.drive(cell("start", "print('begun', flush=True)\nx = bytearray(10**9)\nx[::4096] = b'1' * len(x[::4096])"))

    error = stage.error("start")
    assert error["reason"] == "oom" and "128 MB" in error["message"], error
    assert "begun" in error["output_tail"]


def test_an_eviction_uses_up_no_retry(stage: Stage, namespace: Namespace) -> None:
    body = "import time\nfrom flowbook import current\nprint('begun', flush=True)\nif not current.retry_count:\n    time.sleep(600)\nx = 1"

    async def scene() -> None:
        run = stage.run(cell("start", body, saves="x", retry=Retry(0, 0)))
        driven = asyncio.create_task(run.drive())
        await until(lambda: any("begun" in live.tail()[0] for live in run.live.values()), "the first attempt")
        name = stage.cluster.names()[0]
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace.name},
            "deleteOptions": {"gracePeriodSeconds": 1},
        }
        path = f"/api/v1/namespaces/{namespace.name}/pods/{name}/eviction"
        namespace.kube.run("create", "--raw", path, "-f", "-", given=json.dumps(eviction))
        await driven

    stage.complete(scene())

    assert stage.happened() == ["run_started", "launched start", "lost start", "launched start", "succeeded start", "run_ended"]
    lost = next(event for event in stage.log() if event["e"] == "lost")
    assert "evicted" in lost["message"], lost


def test_frames_come_live_through_a_forwarded_port(stage: Stage) -> None:
    """A phase of the worker is known while the body still runs: no log and no stored object tells that. It would run on for ever: it is stopped then."""
    phases: list[str] = []

    async def scene() -> None:
        run = stage.run(cell("start", "import time\nwhile True:\n    time.sleep(0.2)"))
        driven = asyncio.create_task(run.drive())
        await until(lambda: any(live.phase == "running" for live in run.live.values()) or driven.done(), "the running phase")
        phases.extend(live.phase for live in run.live.values())
        run.stop()
        await driven

    stage.complete(scene())

    assert phases == ["running"], stage.log()
    assert stage.log()[-1]["state"] == "stopped"


def test_without_the_right_to_forward_ports_all_is_right_all_the_same(stage: Stage, namespace: Namespace) -> None:
    role = namespace.kube.get("role", "flowbook-engine")
    rules = [rule for rule in role["rules"] if "pods/portforward" not in rule["resources"]]
    namespace.kube.patch("role", "flowbook-engine", {"rules": rules})
    stage.drive(cell("start", "print('hello')\nx = 7", saves="x"))

    assert stage.value("x", "start") == 7 and stage.printed("start") == "hello\n"


def test_the_rule_that_lacks_is_named(stage: Stage, namespace: Namespace) -> None:
    stage.environ["KUBECONFIG"] = str(namespace.kubeconfig("kernel"))
    stage.drive(cell("start", "x = 1"))

    message = stage.error("start")["message"]
    assert "may not create pods" in message and "verbs: [create]" in message, message


def test_a_version_that_the_server_has_forgotten_is_read_anew(stage: Stage, namespace: Namespace) -> None:
    """The real server's 410: a watch that begins at the first version there ever was."""

    class Stale(PodWatch):
        begun = 0

        def _list(self) -> str:
            version = super()._list()
            self.begun += 1
            return "1" if self.begun == 1 else version

    api = Api.connect(environ=stage.environ)
    heard: list[tuple[dict[str, Any], bool]] = []
    failed: list[Exception] = []
    watch = Stale(api, namespace.name, "app=x", lambda pods, whole: heard.append((pods, whole)), failed.append)
    deadline = time.monotonic() + 60
    while watch.begun < 2 and not failed and time.monotonic() < deadline:
        time.sleep(0.05)
    watch.close()

    assert not failed and watch.begun == 2 and watch.relists == 1


def test_a_pod_holds_to_the_restricted_standard_and_what_it_asks_for_is_what_it_gets(stage: Stage, namespace: Namespace) -> None:
    body = """
import os, pathlib
uid = os.getuid()
token = os.path.exists("/var/run/secrets/kubernetes.io")
found = [p for p in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes") if os.path.exists(p)]
limit = int(pathlib.Path(found[0]).read_text()) if found else None
"""
    stage.drive(cell("start", body, saves="uid token limit", resources=Resources(cpu=0.1, memory_mb=300, disk_mb=200)))

    assert stage.value("uid", "start") == 1000 and stage.value("token", "start") is False
    assert stage.value("limit", "start") in (None, 300 * 10**6 // 4096 * 4096)


def test_a_quota_makes_pods_wait_until_there_is_room(stage: Stage, namespace: Namespace) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    namespace.kube.create(quota)

    async def scene() -> None:
        run = stage.run(cell("start", "x = 1", saves="x"))
        driven = asyncio.create_task(stage.follow(run))
        await until(lambda: any("the quota of namespace" in m.get("why", "") for m in stage.said), "the reason")
        namespace.kube.delete("resourcequota", "few")
        await driven

    stage.complete(scene())

    assert stage.value("x", "start") == 1


def test_the_seeds_flow_runs_on_a_node_with_gpus_from_the_command_line(
    stage: Stage, cluster: Cluster, namespace: Namespace, tmp_path: Path, bucket: S3
) -> None:
    """Its steps ask for one GPU each: the real scheduler places them on the node whose label says L4."""
    seed = Path(__file__).parent.parent / "seed"
    for name in ("foreach_flow.py", "training.py"):
        (tmp_path / name).write_bytes((seed / name).read_bytes())
    env = here(namespace, tmp_path, environ_of(bucket, cluster.image, FLOWBOOK_KUBERNETES_SCALE="0.01"))
    command = [sys.executable, "foreach_flow.py", "--with", "kubernetes", "run"]
    with cluster.fitted(gpus=4, labels={podspec.GPU_NAME: "l4"}):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Best LR: 0.01" in done.stdout, done.stdout
