"""The parts that a cluster has only when asked: kwok (nodes and pods that are only told of), Karpenter, Argo Workflows.

Karpenter is the real one; its nodes are kwok's. What instances may be had is below, INSTANCES: the kinds of the seed's tiers with GPUs and
disks, labelled as on AWS, so that what selects a node there selects one here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster import images
from tests.cluster.build import module_folder, program
from tests.cluster.kube import Kube, Refused
from tests.cluster.parts import Layout, Part

MODULES = {"kwok": ("kwok",), "karpenter": ("karpenter", "kwok"), "argo": ("argo",)}  # name → Go modules that it is built from
WATCHED = {"kwok": "kwok", "karpenter": "karpenter", "argo": "workflow-controller"}  # name → the part whose log tells why it is not ready

KWOK_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat/node-heartbeat.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
)
ARGO = "argo"  # the namespace of workflows
FAKE = {"kwok.x-k8s.io/node": "fake"}  # the annotation of nodes that kwok plays

# Name → cores, memory and disk in GiB, GPUs, their kind, dollars an hour. The order of prices is what counts: Karpenter takes the cheapest.
INSTANCES = {
    "m6i.xlarge": (4, 16, 100, 0, "", 0.192),
    "m6i.4xlarge": (16, 64, 200, 0, "", 0.768),
    "m6i.16xlarge": (64, 256, 500, 0, "", 3.072),
    "g6.4xlarge": (16, 64, 600, 1, "l4", 1.323),
    "g6.12xlarge": (48, 192, 1000, 4, "l4", 4.602),
    "g6e.4xlarge": (16, 128, 600, 1, "l40s", 3.004),
    "g6e.12xlarge": (48, 384, 1000, 4, "l40s", 10.493),
    "p4d.24xlarge": (96, 1152, 8000, 8, "a100", 21.958),
    "p5.4xlarge": (16, 256, 3000, 1, "h100", 4.326),
    "p5.48xlarge": (192, 2048, 28000, 8, "h100", 55.04),
}
NODE_CLASS = {"apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass", "metadata": {"name": "default"}}
NODE_POOL = {
    "apiVersion": "karpenter.sh/v1",
    "kind": "NodePool",
    "metadata": {"name": "default"},
    "spec": {
        "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "5s", "budgets": [{"nodes": "100%"}]},
        "template": {
            "spec": {
                "expireAfter": "Never",
                "requirements": [{"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand", "spot"]}],
                "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
            }
        },
    },
}


def instance_types() -> list[dict[str, Any]]:
    """INSTANCES as Karpenter's kwok provider reads them, each on demand and, at a third of the price, spot."""

    def requirement(key: str, value: str) -> dict[str, Any]:
        return {"key": key, "operator": "In", "values": [value]}

    made = []
    for name, (cores, memory, disk, gpus, kind, price) in INSTANCES.items():
        labels = [
            requirement("topology.kubernetes.io/zone", "test-a"),
            requirement("karpenter.k8s.aws/instance-family", name.split(".")[0]),
        ]
        if gpus:
            labels += [
                requirement("karpenter.k8s.aws/instance-gpu-name", kind),
                requirement("karpenter.k8s.aws/instance-gpu-count", str(gpus)),
            ]
            labels += [requirement("karpenter.k8s.aws/instance-gpu-manufacturer", "nvidia")]
        offerings = [
            {"Price": cost, "Available": True, "Requirements": [requirement("karpenter.sh/capacity-type", way), *labels]}
            for way, cost in (("on-demand", price), ("spot", price / 3))
        ]
        resources = {"cpu": str(cores), "memory": f"{memory}Gi", "ephemeral-storage": f"{disk}Gi", "pods": "110"}
        resources |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
        made.append({"name": name, "architecture": "amd64", "operatingSystems": ["linux"], "resources": resources, "offerings": offerings})
    return made


def fake_node(name: str, labels: dict[str, str] | None = None, resources: dict[str, str] | None = None) -> dict[str, Any]:
    """A node that only kwok plays, as an object to create: pods that are bound to it are Running at once, and nothing runs."""
    amount = {"cpu": "32", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "1100"} | (resources or {})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": FAKE,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"} | (labels or {}),
        },
        "status": {"capacity": amount, "allocatable": amount},
    }


def kwok(layout: Layout, kube: Kube, load: Callable[[Path], None]) -> list[Part]:
    stages = module_folder("kwok", "sigs.k8s.io/kwok") / "kustomize" / "stage"
    argv = [program("kwok"), f"--kubeconfig={layout.at('kube', 'admin')}", "--manage-all-nodes=false"]
    argv += [f"--manage-nodes-with-annotation-selector={key}={value}" for key, value in FAKE.items()]
    argv += ["--cidr=10.245.0.0/16", "--server-address=127.0.0.1:18446", f"--node-ip={layout.host}"]
    for stage in KWOK_STAGES:
        argv += ["--config", str(stages / stage)]
    return [Part("kwok", argv)]


def karpenter(layout: Layout, kube: Kube, load: Callable[[Path], None]) -> list[Part]:
    source = module_folder("karpenter", "sigs.k8s.io/karpenter")
    for folder in ("pkg/apis/crds", "kwok/apis/crds"):
        kube.run("apply", "--server-side", "-f", str(source / folder))
    for crd in ("nodepools.karpenter.sh", "nodeclaims.karpenter.sh", "kwoknodeclasses.karpenter.kwok.sh"):
        kube.wait(f"crd/{crd}", "condition=Established")
    types = layout.home / "conf" / "instances.json"
    types.write_text(json.dumps(instance_types(), indent=1))
    for content in (NODE_CLASS, NODE_POOL):
        kube.run("apply", "-f", "-", given=json.dumps(content))
    env = {"INSTANCE_TYPES_FILE_PATH": str(types), "KUBECONFIG": layout.at("kube", "admin"), "SYSTEM_NAMESPACE": "kube-system"}
    env |= {"DISABLE_LEADER_ELECTION": "true", "METRICS_PORT": "18443", "HEALTH_PROBE_PORT": "18444", "KUBERNETES_MIN_VERSION": "1.19.0"}
    env |= {"BATCH_IDLE_DURATION": "300ms", "BATCH_MAX_DURATION": "2s"}
    return [*kwok(layout, kube, load), Part("karpenter", [program("karpenter")], env)]


def argo(layout: Layout, kube: Kube, load: Callable[[Path], None]) -> list[Part]:
    """Argo Workflows for the namespace `argo`, whose account `default` may run workflows. The peer that we are measured against."""
    source = module_folder("argo", "github.com/argoproj/argo-workflows/v3")
    for crd in sorted((source / "manifests/base/crds/minimal").glob("argoproj.io_*.yaml")):
        kube.run("apply", "--server-side", "-f", str(crd))
    kube.wait("crd/workflows.argoproj.io", "condition=Established")
    rule = {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "executor"}
    inside = {"namespace": ARGO}
    for content in (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ARGO}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "workflow-controller-configmap"} | inside},
        {"apiVersion": f"{role['apiGroup']}/v1", "kind": "Role", "metadata": {"name": "executor"} | inside, "rules": [rule]},
        {
            "apiVersion": f"{role['apiGroup']}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "executor"} | inside,
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": "default"} | inside],
        },
    ):
        kube.run("apply", "-f", "-", given=json.dumps(content))
    load(images.of_program(Path(program("argoexec")), "localhost/argoexec:1", layout.home))
    argv = [program("workflow-controller"), "--kubeconfig", layout.at("kube", "admin"), "--namespaced", "--managed-namespace", ARGO]
    argv += ["--namespace", ARGO, "--executor-image", "localhost/argoexec:1", "--executor-image-pull-policy", "IfNotPresent"]
    return [Part("workflow-controller", argv, {"LEADER_ELECTION_DISABLE": "true"})]


PARTS: dict[str, Callable[[Layout, Kube, Callable[[Path], None]], list[Part]]] = {"kwok": kwok, "karpenter": karpenter, "argo": argo}


def ready(name: str, kube: Kube) -> bool:
    """Whether the optional part does its work. Karpenter marks its pool as ready when it has read it."""
    if name != "karpenter":
        return True  # started, and did not end
    try:
        conditions = kube.get("nodepool", "default").get("status", {}).get("conditions", [])
    except Refused:
        return False
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
