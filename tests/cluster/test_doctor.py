"""`flowbook doctor` on a real cluster, as the accounts of rights.yaml, in a namespace that enforces the restricted standard."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import S3, Cluster, Namespace
from tests.cluster.kube import Refused
from tests.cluster.stages import credentials, environ_of, here, make_secret
from tests.cluster.test_cluster import pod

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def environ(cluster: Cluster, namespace: Namespace, bucket: S3, tmp_path: Path) -> dict[str, str]:
    """What a person has set who may start runs."""
    make_secret(namespace, "store", credentials(bucket))
    more = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "80"}
    return here(namespace, tmp_path, environ_of(bucket, cluster.image, **more))


def doctor(environ: dict[str, str], folder: Path, *words: str) -> tuple[int, str]:
    """The exit code, and what was printed, in one line for each finding."""
    command = [sys.executable, "-m", "flowbook", "doctor", *words]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.returncode, re.sub(r"\n +(?=\S)(?!--from)", " ", done.stdout.partition("apiVersion:")[0]) + "".join(
        done.stdout.partition("apiVersion:")[1:]
    )


def test_all_is_well_for_the_engines_account_and_a_pod_and_its_result_are_gone(
    environ: dict[str, str], tmp_path: Path, namespace: Namespace, cluster: Cluster, bucket: S3
) -> None:
    code, text = doctor(environ, tmp_path, "--pod")

    assert code == 0 and text.endswith("all is well\n"), text
    for part in (
        f"namespace {namespace.name}",
        "Kubernetes v1.",
        f"answers system:serviceaccount:{namespace.name}:flowbook-engine",
        "all 5 rights",
        "a pod would be taken",
        f"whether the Secret store is in namespace {namespace.name} cannot be seen",
        f"a pod started from the image {cluster.image} after",
        "the pod, with Python 3.11.",
        "read from the store and wrote to it, and is removed",
        "32 writers at once, 50 keys, one winner each",
    ):
        assert part in text, text
    assert namespace.kube.get("pods")["items"] == []
    if cluster.home is not None:
        folder = cluster.home / "s3" / environ["FLOWBOOK_STORE"].removeprefix("s3://")
        assert [path.name for path in folder.rglob("*") if path.is_file()] == ["store.json"]


def test_the_role_that_lacks_can_be_applied_as_it_is_printed(environ: dict[str, str], tmp_path: Path, namespace: Namespace) -> None:
    """The kernel's account may look at pods and not start any; with what doctor prints it may."""
    environ["KUBECONFIG"] = str(namespace.kubeconfig("kernel"))
    code, text = doctor(environ, tmp_path)
    assert code == 1 and f"flowbook-kernel may not create, delete pods in namespace {namespace.name}" in text, text
    assert "may not create secrets" in text and "may not get" not in text

    role = text[text.index("apiVersion:") :].partition("\n\n")[0]
    namespace.kube.run("apply", "-f", "-", given=role)
    code, text = doctor(environ, tmp_path, "--pod")
    assert code == 0 and "all 5 rights" in text and "read from the store and wrote to it" in text, text


def test_the_lines_of_the_docs_give_a_person_the_rights(environ: dict[str, str], tmp_path: Path, namespace: Namespace) -> None:
    """Jane, of whom the cluster knows nothing else."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    line = re.search(r"^kubectl (create rolebinding .*)$", page, re.M)
    assert line and "flowbook doctor --rights | kubectl apply -n NAMESPACE -f -\n" in page
    printed = subprocess.run([sys.executable, "-m", "flowbook", "doctor", "--rights"], capture_output=True, text=True, check=True).stdout
    namespace.kube.run("apply", "-f", "-", given=printed)
    jane = ["--as=jane@example.org", "auth", "can-i", "create", "pods"]
    with pytest.raises(Refused):
        namespace.kube.run(*jane)
    namespace.kube.run(*line[1].replace("NAMESPACE", namespace.name).split())

    assert namespace.kube.run(*jane) == "yes\n"


def test_a_right_that_one_can_do_without_is_no_error(environ: dict[str, str], tmp_path: Path, namespace: Namespace) -> None:
    role = namespace.kube.get("role", "flowbook-engine")
    rules = [rule for rule in role["rules"] if "pods/portforward" not in rule["resources"]]
    namespace.kube.patch("role", "flowbook-engine", {"rules": rules})
    code, text = doctor(environ, tmp_path, "--pod")

    assert code == 0 and "! " in text and "may not create, get pods/portforward" in text and "  resources: [pods/portforward]" in text, text
    assert "read from the store and wrote to it" in text


def test_what_an_administrator_sees_of_secret_and_account(
    environ: dict[str, str], tmp_path: Path, namespace: Namespace, cluster: Cluster
) -> None:
    environ |= {"KUBECONFIG": str(cluster.kubeconfig), "FLOWBOOK_KUBERNETES_NAMESPACE": namespace.name}
    code, text = doctor(environ, tmp_path)
    assert code == 0 and "Secret store in namespace" in text and "service account flowbook-step" in text, text

    assert "could take a pod of cpu 100m" in text, text
    code, text = doctor(environ, tmp_path, "--with", "resources:gpu=1")
    assert code == 0 and "! none of the cluster's nodes" in text and "instance-gpu-name l4 or l40s" in text, text

    namespace.kube.delete("secret", "store")
    code, text = doctor(environ, tmp_path)
    assert code == 1 and f"there is no Secret store in namespace {namespace.name}" in text, text
    assert f"kubectl create secret generic store -n {namespace.name}" in text


@pytest.fixture
def full(namespace: Namespace) -> Iterator[None]:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    namespace.kube.create(quota)
    namespace.kube.wait("resourcequota/few", "jsonpath={.status.hard.pods}=0")
    yield


def test_a_quota_that_is_used_up_and_a_pod_that_the_standard_forbids_are_told_without_a_pod(
    environ: dict[str, str], tmp_path: Path, namespace: Namespace, full: Any
) -> None:
    code, text = doctor(environ, tmp_path)
    assert code == 0 and f"! the quota of namespace {namespace.name} is used up" in text, text

    namespace.kube.delete("resourcequota", "few", wait=True)
    code, text = doctor(environ, tmp_path, "--with", 'kubernetes:volumes={"/host": {"hostPath": {"path": "/"}}}')
    assert code == 1 and f"✗ namespace {namespace.name} does not allow such a pod: PodSecurity" in text and "hostPath" in text, text


def test_in_a_pod_the_account_of_the_pod_is_looked_at(cluster: Cluster, namespace: Namespace, bucket: S3) -> None:
    """Without a kubeconfig, in the image of docker/Dockerfile."""
    if cluster.home is None:
        pytest.skip("an image is only put onto a node of our own")
    image = cluster.flowbook_image()
    make_secret(namespace, "store", credentials(bucket))
    told = environ_of(bucket, cluster.image)
    container = {
        "command": ["python", "-m", "flowbook", "doctor", "--pod"],
        "env": [{"name": key, "value": value} for key, value in told.items() if key not in credentials(bucket)],
        "envFrom": [{"secretRef": {"name": "store"}}],
    }
    namespace.kube.create(pod("inside", image, "", container=container, serviceAccountName="flowbook-engine"))
    ended = namespace.kube.phase("inside", limit_s=300)
    text = re.sub(r"\n +", " ", namespace.kube.run("logs", "inside"))

    assert ended == "Succeeded" and f"namespace {namespace.name}, by the service account of this pod" in text, text
    assert "all 5 rights" in text and "read from the store and wrote to it" in text and "\n✗" not in text, text
