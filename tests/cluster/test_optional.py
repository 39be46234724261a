"""The optional parts: kwok plays nodes, and Karpenter, the real one, brings and removes them as pods ask."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine.launch import podspec
from flowbook.store import layout
from tests.cluster import cluster as made
from tests.cluster import optional
from tests.cluster.cluster import S3, Cluster, Namespace
from tests.cluster.stages import credentials, environ_of, eventually, here, make_secret, new_bucket, stage_on
from tests.cluster.test_cluster import pod
from tests.launchers.stage import cell, until

# What a node of each of the seed's tiers is known by (seed.txt, "The @resources Decorator").
KIND, COUNT = podspec.GPU_NAME, podspec.GPU_COUNT


@pytest.fixture
def place(scaled: Cluster) -> Iterator[Namespace]:
    namespace = scaled.namespace(f"test-{uuid.uuid4().hex[:10]}")
    yield namespace
    scaled.kube.delete("namespace", namespace.name)


@pytest.fixture
def bucket(scaled: Cluster, place: Namespace) -> S3:
    found = new_bucket(scaled)
    make_secret(place, "store", credentials(found))
    return found


def nodes(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Name → node, of the nodes that Karpenter brought."""
    found = cluster.kube.get("nodes", "-l", "karpenter.sh/nodepool")["items"]
    return {each["metadata"]["name"]: each for each in found}


def running(place: Namespace, *steps: str) -> dict[str, dict[str, Any]] | None:
    """Step → pod, once all of them run."""
    found = place.kube.get("pods", "-l", "app.kubernetes.io/managed-by=flowbook")["items"]
    pods = {pod["metadata"]["labels"]["flowbook/step"]: pod for pod in found if pod["status"]["phase"] == "Running"}
    return pods if pods.keys() >= set(steps) else None


def gone(cluster: Cluster, names: Iterable[str]) -> None:
    """Waits until Karpenter has taken these nodes away."""
    cluster.kube.run("wait", *(f"node/{name}" for name in names), "--for=delete", "--timeout=200s", limit_s=210)


def label(node: dict[str, Any], name: str) -> str | None:
    found: str | None = node["metadata"]["labels"].get(name)
    return found


def test_the_seeds_four_asks_bring_a_node_of_their_kind_each_and_the_nodes_go_with_the_run(
    scaled: Cluster, place: Namespace, bucket: S3, tmp_path: Path
) -> None:
    """Its flow as it stands, unscaled, by the real launcher. `start` runs on the machine's own node; the four pods on nodes that kwok
    plays are told of as running, and nothing runs in them: so the run is stopped in the end."""
    seed = Path(__file__).parent.parent / "seed" / "resources_flow.py"
    kinds: dict[str, set[str | None]] = {
        "standard": {"l4", "l40s"},
        "top": {"a100", "h100"},
        "cpu-only": {None},
        "scratch": {"l4", "l40s"},
    }
    before = nodes(scaled)
    printed = tmp_path / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(seed), "--with", "kubernetes", "run"],
            cwd=tmp_path,
            env=here(place, tmp_path, environ_of(bucket, scaled.image)),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        pods = eventually(lambda: running(place, *kinds) if process.poll() is None else {"": {}}, "the four pods")
        assert pods.keys() == kinds.keys(), printed.read_text()
        brought = {step: nodes(scaled)[pod["spec"]["nodeName"]] for step, pod in pods.items()}
        names = {node["metadata"]["name"] for node in brought.values()}
        assert not names & before.keys()
        for step, node in brought.items():
            assert label(node, KIND) in kinds[step], (step, node["metadata"]["labels"])
        assert label(brought["cpu-only"], COUNT) is None
        assert int(brought["top"]["status"]["capacity"]["nvidia.com/gpu"]) >= 4
        assert pods["scratch"]["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"] == "1T"  # 1000000 MB
        assert all(pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true" for pod in pods.values())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)

    assert "stopped" in printed.read_text(), printed.read_text()
    gone(scaled, names)


def test_spot_brings_a_spot_node(scaled: Cluster, place: Namespace, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_on(scaled, place, bucket, tmp_path, monkeypatch)
    found: list[dict[str, Any]] = []

    async def scene() -> None:
        run = stage.run(cell("start", "x = 1", spot=True))
        driven = asyncio.create_task(run.drive())
        await until(lambda: running(place, "start") or driven.done(), "the pod")
        found.extend((running(place, "start") or {}).values())
        stage.store.create(layout.request("demo", "1", "stop"), json.dumps({"ask": "stop"}).encode())
        run.poke()
        await driven

    stage.complete(scene())

    assert found, stage.log()
    name = found[0]["spec"]["nodeName"]
    node = next((each for known, each in nodes(scaled).items() if known == name), None)
    assert node is not None and label(node, "karpenter.sh/capacity-type") == "spot" and label(node, COUNT) is None
    gone(scaled, [name])


def test_a_fake_node_takes_pods_that_nobody_runs(scaled: Cluster, place: Namespace) -> None:
    name = f"fake-{uuid.uuid4().hex[:6]}"
    scaled.kube.create(optional.fake_node(name, labels={"test": name}))
    try:
        scaled.kube.wait(f"node/{name}", "condition=Ready")
        place.kube.create(pod("played", "localhost/no-such-image:1", "pass", nodeSelector={"test": name}))

        assert place.kube.phase("played", "Running") == "Running"
    finally:
        scaled.kube.delete("node", name)


def test_what_karpenter_may_bring_is_what_is_written_down() -> None:
    types = {each["name"]: each for each in optional.instance_types()}

    assert set(types) == set(optional.INSTANCES)
    assert types["p5.48xlarge"]["resources"]["nvidia.com/gpu"] == "8"
    assert "nvidia.com/gpu" not in types["m6i.xlarge"]["resources"]
    offered = {each["values"][0] for offer in types["g6.4xlarge"]["offerings"] for each in offer["Requirements"]}
    assert {"on-demand", "spot", "l4", "1"} <= offered


def test_a_part_is_added_once(scaled: Cluster) -> None:
    assert scaled.home is not None
    before = {name: state["pid"] for name, state in scaled.parts().items()}

    made.let_go(made.up(scaled.home, ("karpenter",), keep=False))

    assert {name: state["pid"] for name, state in scaled.parts().items()} == before
    assert {"kwok", "karpenter"} <= set(before)
