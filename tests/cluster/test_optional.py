"""The optional parts: kwok plays nodes, and Karpenter, the real one, brings and removes them as pods ask."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.cluster import cluster as made
from tests.cluster import optional
from tests.cluster.cluster import Cluster, Namespace
from tests.cluster.test_cluster import pod

# What a node of each of the seed's tiers is known by (seed.txt, "The @resources Decorator").
KIND = "karpenter.k8s.aws/instance-gpu-name"


@pytest.fixture
def place(scaled: Cluster) -> Iterator[Namespace]:
    namespace = scaled.namespace(f"test-{uuid.uuid4().hex[:10]}")
    yield namespace
    scaled.kube.delete("namespace", namespace.name)


def nodes(cluster: Cluster) -> dict[str, dict[str, str]]:
    """Name → labels, of the nodes that Karpenter brought."""
    found = cluster.kube.get("nodes", "-l", "karpenter.sh/nodepool")["items"]
    return {each["metadata"]["name"]: each["metadata"]["labels"] for each in found}


@pytest.mark.parametrize(
    ("asks", "selector", "kinds"),
    [
        ({"cpu": "8", "memory": "32000M", "ephemeral-storage": "50000M"}, {}, {None}),
        ({"cpu": "8", "memory": "32000M", "nvidia.com/gpu": "1"}, {}, {"l4", "l40s"}),
        ({"cpu": "32", "memory": "256000M", "nvidia.com/gpu": "4"}, {KIND: "a100"}, {"a100"}),
    ],
    ids=["cpu", "one gpu", "four gpus"],
)
def test_karpenter_brings_the_node_that_a_pod_asks_for_and_removes_it_afterwards(
    scaled: Cluster, place: Namespace, asks: dict[str, str], selector: dict[str, str], kinds: set[str | None]
) -> None:
    before = set(nodes(scaled))
    selector = selector | {"karpenter.sh/nodepool": "default"}  # not the machine's own node, which may be large enough
    place.kube.create(pod("asking", scaled.image, "pass", nodeSelector=selector, container={"resources": {"limits": asks}}))

    place.kube.wait("pod/asking", "jsonpath={.spec.nodeName}")
    name = place.kube.get("pod", "asking")["spec"]["nodeName"]
    assert name not in before
    assert nodes(scaled)[name].get(KIND) in kinds

    place.kube.delete("pod", "asking", wait=True)
    scaled.kube.run("wait", f"node/{name}", "--for=delete", "--timeout=200s", limit_s=210)


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
