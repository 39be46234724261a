"""Pods as JSON and what is read of them, by tables: nothing here needs a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine.launch import podspec, podstatus
from flowbook.engine.launch.placing import placed, shown_pod
from flowbook.engine.launch.podspec import (
    Ask,
    Cluster,
    asked,
    findings,
    manifest,
    merged,
    pod_name,
    pod_of,
    read_tiers,
    requests,
    run_label,
    tier_of,
)
from flowbook.errors import DefinitionError, SettingError
from flowbook.spec.flow import Options, Resources, Spec, Step
from flowbook.spec.secrets import parse_source

STORE = {"kind": "s3", "bucket": "team", "endpoint": "https://s3.example.org"}


def ask(**fields: Any) -> Ask:
    return Ask(**{"flow": "Train_Flow", "run": "12", "step": "train", "index": (2,), "store": STORE, "python": "3.11.7", **fields})


def spec_of(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"]
    return found


def terms(pod: dict[str, Any]) -> list[dict[str, Any]]:
    node = pod["spec"].get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    return node["nodeSelectorTerms"][0]["matchExpressions"] if node else []


# ---- resources and tiers: the seed's text is the contract ----------------------------------------------------------------------

L4 = {"key": podspec.GPU_NAME, "operator": "In", "values": ["l4", "l40s"]}
A100 = {"key": podspec.GPU_NAME, "operator": "In", "values": ["a100", "h100"]}
CPU = {"key": podspec.GPU_COUNT, "operator": "DoesNotExist"}
SEED = [
    (Resources(gpu=1, memory_mb=64000, cpu=16), {"cpu": "16", "memory": "64000M", "nvidia.com/gpu": "1"}, [L4]),
    (Resources(gpu=4, memory_mb=256000, cpu=64), {"cpu": "64", "memory": "256000M", "nvidia.com/gpu": "4"}, [A100]),
    (Resources(memory_mb=32000, cpu=16, disk_mb=500000), {"cpu": "16", "memory": "32000M", "ephemeral-storage": "500000M"}, [CPU]),
    (
        Resources(gpu=1, memory_mb=64000, cpu=16, disk_mb=1000000),
        {"cpu": "16", "memory": "64000M", "ephemeral-storage": "1000000M", "nvidia.com/gpu": "1"},
        [L4],
    ),
]


@pytest.mark.parametrize(("resources", "amounts", "nodes"), SEED)
def test_the_seeds_examples_ask_for_what_they_say(resources: Resources, amounts: dict[str, str], nodes: list[Any]) -> None:
    pod = manifest(ask(resources=resources), Cluster())

    container = pod["spec"]["containers"][0]
    assert container["resources"] == {"limits": amounts, "requests": amounts}
    assert terms(pod) == nodes
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert (gpu in pod["spec"]["tolerations"]) == bool(resources.gpu)


@pytest.mark.parametrize(("gpus", "name"), [(0, "cpu"), (1, "L4/L40S"), (3, "L4/L40S"), (4, "A100/H100"), (8, "A100/H100")])
def test_the_tier_follows_from_the_number_of_gpus(gpus: int, name: str) -> None:
    assert tier_of(gpus)["name"] == name


@pytest.mark.parametrize(
    ("resources", "scale", "amounts"),
    [
        (Resources(), 1.0, {"cpu": "1", "memory": "4096M"}),
        (Resources(cpu=0.5, memory_mb=300), 1.0, {"cpu": "500m", "memory": "300M"}),
        (Resources(cpu=16, memory_mb=64000, gpu=1), 0.01, {"cpu": "160m", "memory": "640M", "nvidia.com/gpu": "1"}),
    ],
)
def test_amounts(resources: Resources, scale: float, amounts: dict[str, str]) -> None:
    assert requests(resources, scale) == amounts


def test_less_than_a_core_is_no_brake_where_the_node_is_idle() -> None:
    found = manifest(ask(resources=Resources(cpu=0.01, memory_mb=64)), Cluster())["spec"]["containers"][0]["resources"]

    assert found == {"requests": {"cpu": "10m", "memory": "64M"}, "limits": {"cpu": "1", "memory": "64M"}}


def test_of_resources_and_kubernetes_the_larger_counts() -> None:
    options = Options(resources=Resources(cpu=2, memory_mb=8000), extra=(("kubernetes", '{"cpu": 1, "memory": 16000, "gpu": 1}'),))

    assert asked(options) == Resources(cpu=2, memory_mb=16000, gpu=1)


def test_a_table_of_tiers_of_ones_own() -> None:
    tiers = read_tiers([{"gpus": 2, "labels": {"pool": "big"}, "tolerations": []}, {"gpus": 0, "labels": {"pool": "small"}}])
    small, big = (manifest(ask(resources=Resources(gpu=gpus)), Cluster(tiers=tiers)) for gpus in (1, 2))

    assert terms(small) == [{"key": "pool", "operator": "In", "values": ["small"]}]
    assert terms(big) == [{"key": "pool", "operator": "In", "values": ["big"]}]
    assert not any(each["key"] == "nvidia.com/gpu" for each in big["spec"]["tolerations"])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "must be a list"),
        ([{"labels": {}}], "it needs gpus"),
        ([{"gpus": 1, "label": {}}], "it needs gpus"),
        ([{"gpus": -1}], "it needs gpus"),
        ([{"gpus": 1, "labels": ["a"]}], "labels is a table"),
        ([{"gpus": 1}, {"gpus": 1}], "same number of GPUs"),
    ],
)
def test_a_table_of_tiers_that_says_nothing_clear_is_refused(rows: Any, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        read_tiers(rows)


# ---- the pod ------------------------------------------------------------------------------------------------------------------


def test_a_pod_keeps_the_restricted_standard_and_holds_no_secret() -> None:
    pod = manifest(ask(env={"MODE": "fast"}, kubernetes={"secrets": ["db"]}), Cluster(secret="store"))
    spec, container = spec_of(pod), pod["spec"]["containers"][0]

    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["automountServiceAccountToken"] is False
    assert spec["restartPolicy"] == "Never"
    assert not any(kind in volume for volume in spec["volumes"] for kind in ("hostPath",))
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}, {"secretRef": {"name": "db"}}]
    assert {"name": "MODE", "value": "fast"} in container["env"]
    assert "secret" not in json.dumps(list(container["env"])).lower()


def test_a_secret_of_the_cluster_is_named_in_the_pod_and_its_keys_wait_for_the_worker() -> None:
    sources = ("kubernetes:db", "TOKEN", "kubernetes:keys", "kubernetes:db")
    told = pod_of(Options(secrets=tuple(parse_source(each).to_text() for each in sources)), "3.11")
    container = spec_of(manifest(ask(**told), Cluster(secret="store")))["containers"][0]

    assert container["envFrom"] == [
        {"secretRef": {"name": "store"}},
        {"prefix": "FLOWBOOK_SECRET_1_", "secretRef": {"name": "db"}},
        {"prefix": "FLOWBOOK_SECRET_2_", "secretRef": {"name": "keys"}},
    ]
    assert {"name": "FLOWBOOK_POD_SECRETS", "value": "db keys"} in container["env"]
    assert not any(each["name"] == "FLOWBOOK_POD_SECRETS" for each in spec_of(manifest(ask(), Cluster()))["containers"][0]["env"])


def test_the_pod_that_is_shown_names_the_secret_of_the_cluster() -> None:
    shown = json.loads(shown_pod("demo", "train", step(secrets=(parse_source("kubernetes:db").to_text(),)).options, {}, {}))

    assert shown["spec"]["containers"][0]["envFrom"] == [{"prefix": "FLOWBOOK_SECRET_1_", "secretRef": {"name": "db"}}]


def test_a_running_pod_is_not_disrupted_and_a_lost_node_is_given_up_soon() -> None:
    pod = manifest(ask(), Cluster())

    assert pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    seconds = {each["key"]: each.get("tolerationSeconds") for each in pod["spec"]["tolerations"]}
    assert seconds["node.kubernetes.io/unreachable"] == 30


def test_spot_asks_for_such_a_node_and_nothing_else_does() -> None:
    spot = {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]}

    assert spot in terms(manifest(ask(spot=True), Cluster()))
    assert spot not in terms(manifest(ask(), Cluster()))


@pytest.mark.parametrize(
    ("fields", "cluster", "image"),
    [
        ({}, Cluster(), "python:3.11"),
        ({}, Cluster(image="team/base:1"), "team/base:1"),
        ({"kubernetes": {"image": "own:2"}}, Cluster(image="team/base:1"), "own:2"),
        ({"image": "cell:3", "kubernetes": {"image": "own:2"}}, Cluster(), "cell:3"),
    ],
)
def test_whose_word_on_the_image_counts(fields: dict[str, Any], cluster: Cluster, image: str) -> None:
    assert manifest(ask(**fields), cluster)["spec"]["containers"][0]["image"] == image


def test_what_kubernetes_says_is_in_the_pod() -> None:
    own = {
        "namespace": "team-a",
        "service_account": "runner",
        "node_selector": "pool=big,zone=a",
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "labels": {"team": "vision"},
        "annotations": {"note": "long text here"},
        "image_pull_secrets": "registry",
        "image_pull_policy": "Always",
        "persistent_volume_claims": {"data": "/data"},
        "volumes": {"/models": {"configMap": {"name": "models"}}},
        "executable": "/opt/python",
        "gpu_vendor": "amd",
    }
    pod = manifest(ask(kubernetes=own, resources=Resources(gpu=1, shared_memory_mb=512)), Cluster())
    spec, container = spec_of(pod), pod["spec"]["containers"][0]

    assert pod["metadata"]["namespace"] == "team-a" and pod["metadata"]["labels"]["team"] == "vision"
    assert pod["metadata"]["annotations"]["note"] == "long text here"
    assert spec["serviceAccountName"] == "runner" and spec["nodeSelector"] == {"pool": "big", "zone": "a"}
    assert {"key": "x", "operator": "Exists"} in spec["tolerations"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}] and container["imagePullPolicy"] == "Always"
    assert container["command"][0] == "/opt/python" and container["resources"]["limits"]["amd.com/gpu"] == "1"
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert paths == ["/flowbook", "/dev/shm", "/data", "/models"]


def test_a_time_limit_is_the_engines_and_the_pods_own_deadline_only_ends_orphans() -> None:
    assert manifest(ask(timeout_s=60), Cluster(pending_s=100))["spec"]["activeDeadlineSeconds"] == 60 + 100 + podspec.SLACK_S
    assert manifest(ask(), Cluster(pending_s=100))["spec"]["activeDeadlineSeconds"] == 5 * 86400 + 100


def test_an_owner_is_named_where_there_is_one() -> None:
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "run", "uid": "7"}

    assert manifest(ask(), Cluster(), owner)["metadata"]["ownerReferences"] == [owner]
    assert "ownerReferences" not in manifest(ask(), Cluster())["metadata"]


def test_a_template_is_taken_only_where_it_is_allowed_and_ours_stands_above_it() -> None:
    template = {
        "metadata": {"labels": {"queue": "gold", "flowbook/run": "forged"}},
        "spec": {"priorityClassName": "high", "containers": [{"ports": [{"containerPort": 80}], "command": ["evil"]}, {"name": "side"}]},
    }
    kept = manifest(ask(kubernetes={"template": template}), Cluster(template=True))
    dropped = manifest(ask(kubernetes={"template": template}), Cluster())

    assert "priorityClassName" not in dropped["spec"]
    assert kept["spec"]["priorityClassName"] == "high" and kept["metadata"]["labels"]["queue"] == "gold"
    assert kept["metadata"]["labels"]["flowbook/run"] == run_label(STORE, "Train_Flow", "12")
    first, side = kept["spec"]["containers"]
    assert first["ports"] == [{"containerPort": 80}] and first["command"][0] == "python3" and side == {"name": "side"}
    assert merged({"a": [1]}, {"a": [2]}) == {"a": [1, 2]}


# ---- names ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"flow": "_" * 100, "step": "_", "run": "signal-" + "x" * 60},
        {"flow": "Ünïcode.v2", "step": "UPPER_case", "index": tuple(range(99990, 99999))},
    ],
)
def test_names_are_what_kubernetes_takes(fields: dict[str, Any]) -> None:
    pod = manifest(ask(**fields), Cluster())

    assert podspec.DNS.match(pod["metadata"]["name"]) and len(pod["metadata"]["name"]) <= 63
    assert all(podspec._LABEL_VALUE.match(value) for value in pod["metadata"]["labels"].values())


def test_a_name_is_of_one_attempt_and_of_no_other() -> None:
    others = [
        {"attempt": 1},
        {"index": (3,)},
        {"part": "plan"},
        {"run": "13"},
        {"flow": "train-flow"},
        {"step": "Train"},
        {"store": {**STORE, "bucket": "other"}},
    ]

    assert pod_name(ask()) == pod_name(ask(resources=Resources(cpu=9), image="x"))
    assert len({pod_name(ask()), *(pod_name(ask(**other)) for other in others)}) == len(others) + 1


# ---- what is wrong ------------------------------------------------------------------------------------------------------------


def step(kubernetes: Any = None, **options: Any) -> Step:
    return Step("train", "x = 1", "<train>", "Cell In[1]", Options(extra=(("kubernetes", json.dumps(kubernetes or {})),), **options))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (step(resources=Resources(gpu=17)), "asks for 17 GPUs, and a run may have 16"),
        (step({"template": {}}), "raw pod template is not allowed"),
        (step({"namespace": "Team A"}), "'Team A' is no name in Kubernetes"),
        (step({"service_account": "a_b"}), "'a_b' is no name in Kubernetes"),
        (step({"secrets": ["A B"]}), "no name of a Secret"),
        (step({"secrets": 5}), "@kubernetes(secrets=5) cannot be used"),
        (step({"image_pull_policy": "Often"}), "@kubernetes(image_pull_policy='Often') cannot be used"),
        (step({"tolerations": {"key": "a"}}), "@kubernetes(tolerations={'key': 'a'}) cannot be used"),
        (step({"persistent_volume_claims": ["data"]}), "@kubernetes(persistent_volume_claims=['data']) cannot be used"),
        (step({"volumes": {"models": {"emptyDir": {}}}}), "cannot be used"),
        (step({"volumes": {"/models": "models"}}), "cannot be used"),
        (step({"tmpfs_size": "big"}), "@kubernetes(tmpfs_size='big') cannot be used"),
        (step({"tmpfs_path": "fast"}), "@kubernetes(tmpfs_path='fast') cannot be used"),
        (step({"service_account_token": "no"}), "@kubernetes(service_account_token='no') cannot be used"),
        (step({"security_context": "root"}), "@kubernetes(security_context='root') cannot be used"),
        (step({"template": "pod.yaml"}), "@kubernetes(template='pod.yaml') cannot be used"),
        (step({"labels": {"team": "a b"}}), "Kubernetes takes no 'team' = 'a b' in labels"),
        (step({"node_selector": "pool"}), "in node_selector"),
        (step(image="python 3"), "'python 3' is no name of an image"),
        (step(env=(("API_TOKEN", None),)), "would write a secret into the pod"),
    ],
)
def test_what_cannot_be_is_said_before_a_pod_is_made(wrong: Step, told: str) -> None:
    found = findings([wrong], Cluster(), {"API_TOKEN": "hf_" + "x" * 30})

    assert len(found) == 1 and told in str(found[0]) and found[0].remedy


@pytest.mark.parametrize("name", podspec._SHAPES)
def test_an_argument_of_a_wrong_form_is_told_with_an_example_and_no_pod_of_it_is_shown(name: str) -> None:
    wrong = step({name: {"1": 2}} if name not in ("security_context", "template") else {name: [1]})

    assert f"Write {name}=" in str(findings([wrong], Cluster(), {})[0])
    with pytest.raises(DefinitionError, match="cannot be used"):
        shown_pod("demo", "train", wrong.options, {}, {})


def test_a_step_on_this_machine_is_none_of_the_clusters_business() -> None:
    local = Step("train", "x = 1", "<train>", "Cell In[1]", Options(resources=Resources(gpu=99)))

    assert findings([local], Cluster(), {}) == []


def test_yes_lifts_the_ceilings() -> None:
    spec = Spec("demo", "", (step(resources=Resources(gpu=17)),))

    with pytest.raises(DefinitionError, match="--yes"):
        placed(spec, {}, {})
    _, told = placed(spec, {}, {}, yes=True)
    assert told is not None and told["max_gpus"] > 17


def test_without_a_store_that_pods_reach_nothing_is_placed_in_a_cluster() -> None:
    spec = Spec("demo", "", (step(),))

    assert placed(spec, None, {}) == (spec, None)
    with pytest.raises(DefinitionError, match="no cluster is set up here"):
        placed(spec, None, {}, every={})


def test_the_image_of_the_hub_is_the_default() -> None:
    assert placed(Spec("demo", "", (step(),)), {}, {"JUPYTER_IMAGE_SPEC": "hub/image:7"})[1] == {"image": "hub/image:7"}
    assert placed(Spec("demo", "", (step(),)), {"image": "own:1"}, {"JUPYTER_IMAGE_SPEC": "hub/image:7"})[1] == {"image": "own:1"}


# ---- what a pod's status says ---------------------------------------------------------------------------------------------------


def seen(phase: str = "Pending", conditions: Any = (), state: Any = None, **fields: Any) -> dict[str, Any]:
    """A pod as the API server tells it."""
    pod = manifest(ask(image="team/base:1", resources=Resources(cpu=64, memory_mb=900000, gpu=4)), Cluster())
    status: dict[str, Any] = {"phase": phase, "conditions": list(conditions), **fields.pop("status", {})}
    if state is not None:
        status["containerStatuses"] = [{"name": "step", "state": state}]
    pod["metadata"].update(fields)
    return {**pod, "status": status}


SCHEDULED = {"type": "PodScheduled", "status": "True"}
SANDBOX = {"type": "PodReadyToStartContainers", "status": "True"}
CREATING = {"waiting": {"reason": "ContainerCreating"}}


@pytest.mark.parametrize(
    ("pod", "phase"),
    [
        (seen(), "queued"),
        (seen(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]), "queued"),
        (seen(conditions=[SCHEDULED]), "scheduled"),
        (seen(conditions=[SCHEDULED, SANDBOX], state=CREATING), "pulling"),
        (seen(conditions=[SCHEDULED], state={"waiting": {"reason": "ImagePullBackOff"}}), "pulling"),
        (seen("Running", [SCHEDULED, SANDBOX], {"running": {}}), "starting"),
        (seen("Succeeded", [SCHEDULED]), "ended"),
        (seen("Failed", [SCHEDULED]), "ended"),
    ],
)
def test_the_phase_of_a_pod(pod: dict[str, Any], phase: str) -> None:
    assert podstatus.phase_of(pod) == phase


@pytest.mark.parametrize(
    "tail",
    ["", ".", ". preemption: 0/1 nodes are available", ". no new claims to deallocate,", ". no new claims to deallocate, preemption: 0/1"],
)
def test_what_the_scheduler_says_is_cut_cleanly(tail: str) -> None:
    message = f"0/1 nodes are available: 1 Insufficient cpu{tail}"
    pod = seen(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}])
    waits = podstatus.waits_for(pod)

    assert waits and "yet: 0/1 nodes are available: 1 Insufficient cpu. If none is being made" in waits.why


UNFIT = "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes"
PULL = 'failed to pull and unpack image "docker.io/team/base:1": failed to resolve reference "docker.io/team/base:1": '


@pytest.mark.parametrize(
    ("pod", "kind", "hopeless", "told"),
    [
        (
            seen(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNFIT}]),
            "unschedulable",
            False,
            "no node for cpu 64, memory 900000M, gpu 4; instance-gpu-name a100 or h100 yet: 0/3 nodes are available: 1 Insufficient",
        ),
        (seen(conditions=[SCHEDULED], state={"waiting": {"reason": "InvalidImageName"}}), "image", True, "no name of an image"),
        (
            seen(
                conditions=[SCHEDULED], state={"waiting": {"reason": "ErrImagePull", "message": PULL + "docker.io/team/base:1: not found"}}
            ),
            "image",
            True,
            "there is no image team/base:1",
        ),
        (
            seen(conditions=[SCHEDULED], state={"waiting": {"reason": "ErrImagePull", "message": PULL + "401 Unauthorized"}}),
            "image",
            True,
            "may not be pulled",
        ),
        (
            seen(conditions=[SCHEDULED], state={"waiting": {"reason": "ErrImagePull", "message": PULL + "dial tcp: i/o timeout"}}),
            "image",
            False,
            "Is the registry reachable",
        ),
        (
            seen(
                conditions=[SCHEDULED], state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "store" not found'}}
            ),
            "config",
            True,
            "the pod needs the secret 'store', which its namespace has not",
        ),
        (
            seen(
                conditions=[SCHEDULED],
                state={"waiting": {"reason": "CreateContainerError", "message": "grpc: string field contains invalid UTF-8"}},
            ),
            "config",
            True,
            "a value of a Secret that the pod takes as variables is no text",
        ),
        (
            seen(
                conditions=[SCHEDULED],
                state={"waiting": {"reason": "RunContainerError", "message": 'exec: "python3": executable file not found in $PATH'}},
            ),
            "config",
            True,
            "has no python3",
        ),
    ],
)
def test_why_a_pod_does_not_run(pod: dict[str, Any], kind: str, hopeless: bool, told: str) -> None:
    waits = podstatus.waits_for(pod)

    assert waits is not None
    assert (waits.kind, waits.hopeless) == (kind, hopeless)
    assert told in waits.why


@pytest.mark.parametrize("pod", [seen(), seen(conditions=[SCHEDULED], state=CREATING), seen("Running", [SCHEDULED], {"running": {}})])
def test_a_pod_on_its_way_waits_for_nothing(pod: dict[str, Any]) -> None:
    assert podstatus.waits_for(pod) is None


def event(reason: str, message: str, at: str = "2026-01-01T00:00:01Z") -> dict[str, str]:
    return {"reason": reason, "message": message, "lastTimestamp": at}


@pytest.mark.parametrize(
    ("events", "hopeless", "told"),
    [
        ([event("FailedMount", 'MountVolume.SetUp failed for volume "v" : configmap "models" not found')], True, "the configmap 'models'"),
        ([event("FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "db" not found')], True, "--secret kubernetes:NAME"),
        (
            [event("FailedMount", "timed out", "2026-01-01T00:00:05Z"), event("FailedCreatePodSandBox", "no address left")],
            False,
            "its node cannot get the pod ready: timed out",
        ),
    ],
)
def test_why_a_node_cannot_get_a_pod_ready(events: list[dict[str, str]], hopeless: bool, told: str) -> None:
    waits = podstatus.held_up(events)

    assert waits is not None and waits.hopeless == hopeless and told in waits.why


def test_other_events_hold_nothing_up() -> None:
    assert podstatus.held_up([event("Unhealthy", "probe failed"), event("BackOff", "pulling")]) is None


def ended(code: int, reason: str = "Error", **fields: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, **fields}}


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting"}


@pytest.mark.parametrize(
    ("pod", "deleted", "reason", "again"),
    [
        (seen("Succeeded", state=ended(0, "Completed")), False, "ended", False),
        (seen("Failed", state=ended(1)), False, "ended", False),
        (seen("Failed", state=ended(137)), False, "killed", False),
        (seen("Failed", state=ended(137, "OOMKilled")), False, "oom", False),
        (seen("Failed", state=ended(143)), False, "killed", False),
        (seen("Failed", [DISRUPTED], ended(143)), False, "evicted", True),
        (seen("Failed", state=ended(143)), True, "evicted", True),
        (seen("Succeeded", state=ended(0, "Completed")), True, "ended", False),
        (seen("Failed", state=ended(143), deletionTimestamp="2026-01-01T00:00:00Z"), False, "evicted", True),
        (seen("Running", state={"running": {}}), True, "evicted", True),
        (seen("Failed", status={"reason": "Evicted", "message": "The node was low on resource: memory."}), False, "evicted", True),
        (seen("Failed", status={"reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds"}), False, "lost", False),
        (seen("Failed", status={"reason": "DeadlineExceeded"}), False, "timeout", False),
        (seen("Failed", status={"reason": "OutOfcpu", "message": "Pod was rejected"}), False, "lost", True),
        (seen("Failed", status={"reason": "NodeLost"}), False, "evicted", True),
    ],
)
def test_how_a_pod_ended(pod: dict[str, Any], deleted: bool, reason: str, again: bool) -> None:
    found = podstatus.exit_of(pod, deleted=deleted)

    assert (found.reason, found.again) == (reason, again)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('runc create failed: environment variable value can\'t contain null(\\x00): "FLOWBOOK_SECRET_1_KEY=hunter2"', "is no text"),
        ('runc create failed: exec: "python3": executable file not found in $PATH', "has no python3 in its path"),
        ("runc create failed: something else", "the container cannot be made (StartError): runc create failed: something else"),
    ],
)
def test_a_container_that_never_began_is_told_without_the_value_of_a_variable(message: str, told: str) -> None:
    found = podstatus.exit_of(seen("Failed", state=ended(128, "StartError", message=message)))

    assert (found.reason, found.again) == ("lost", False)
    assert told in found.message and "hunter2" not in found.message


@pytest.mark.parametrize(
    ("code", "said", "told", "waits"),
    [
        (
            403,
            'pods "x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=9, limited: pods=9',
            "the quota of namespace team is",
            True,
        ),
        (
            403,
            'pods is forbidden: User "ann" cannot create resource "pods"',
            'resources: ["pods"], verbs: ["create"]'.replace('"', ""),
            False,
        ),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes', "does not allow such a pod", False),
        (403, 'error looking up service account team/runner: serviceaccount "runner" not found', "no such service account", False),
        (401, "Unauthorized", "does not know this account", False),
        (404, 'namespaces "team" not found', "has no namespace 'team'", False),
        (422, "Pod is invalid: metadata.name", "Kubernetes refuses the pod", False),
    ],
)
def test_a_refusal_in_words(code: int, said: str, told: str, waits: bool) -> None:
    found = podstatus.refused(code, json.dumps({"message": said}), "create pods", "team")

    assert told in found.message.replace('"', "") if "verbs" in told else told in found.message
    assert found.waits == waits


# ---- the first code in a pod ------------------------------------------------------------------------------------------------------


def boot(told: dict[str, Any], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    file = Path(podspec.__file__).with_name("boot.py")
    given = {"FLOWBOOK_POD": json.dumps(told), **(env or {})}
    return subprocess.run([sys.executable, "-I", "-c", file.read_text()], env=given, capture_output=True, text=True, check=False)


def test_a_pod_without_credentials_says_what_it_lacks() -> None:
    done = boot({"store": {**STORE, "endpoint": "http://127.0.0.1:9"}, "runtime": "00" * 32})

    assert done.returncode == 78
    assert "no credentials for the store" in done.stderr and "kubernetes_secret" in done.stderr and "Traceback" not in done.stderr


def test_a_role_without_a_token_is_told_as_such(tmp_path: Path) -> None:
    role = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"), "AWS_ROLE_ARN": "arn:aws:iam::1:role/steps"}
    done = boot({"store": {**STORE, "endpoint": "http://127.0.0.1:9"}, "runtime": "00" * 32}, role)

    assert done.returncode == 78 and f"the token of its role, {tmp_path / 'token'}, cannot be read" in done.stderr
    assert "kubernetes_service_account" in done.stderr and "Traceback" not in done.stderr


def test_a_runtime_that_is_not_what_its_address_says_is_not_run(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"something else")
    done = boot({"store": {"kind": "files", "root": str(tmp_path)}, "runtime": "ab" * 32})

    assert done.returncode == 78 and "damaged" in done.stderr
