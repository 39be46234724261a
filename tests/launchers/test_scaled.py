"""Pods that get less than their step asks for say so: who reads one must not take its amounts for the step's."""

from __future__ import annotations

from flowbook.engine.launch.podspec import Ask, Cluster, manifest
from flowbook.spec.flow import Resources

ASK = Ask("demo", "7", "train", resources=Resources(cpu=8, memory_mb=32000), store={"kind": "s3"}, runtime="r", order="o", python="3.11.2")


def test_a_scaled_pod_says_so_in_an_annotation() -> None:
    whole, scaled = manifest(ASK, Cluster()), manifest(ASK, Cluster(scale=0.01))

    assert scaled["metadata"]["annotations"]["flowbook/scale"] == "0.01"
    assert scaled["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "80m", "memory": "320M"}
    assert "flowbook/scale" not in whole["metadata"]["annotations"]
