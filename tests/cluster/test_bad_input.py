"""What can be wrong with a cluster, an image, a bucket or a name: `flowbook doctor` says it, and so does a run, with place, cause and next move.

All cases meet the real API server, kubelet, containerd and S3 server. What a server does wrong on purpose is done by a proxy before it; a
registry that refuses is a pod of the node's own network.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine.doctor.core import Found
from flowbook.settings import load_settings
from tests.cluster.cluster import S3, Cluster, Namespace
from tests.cluster.stages import credentials, environ_of, here, make_secret
from tests.stores.fault_proxy import Fault, between

pytestmark = pytest.mark.slow

OWN = "the right one"

FLOW = """
from flowbook import FlowSpec, step

class Small(FlowSpec):
    @step
    def start(self):
        self.x = 1
        self.next(self.end)

    @step
    def end(self):
        print("x is", self.x)

if __name__ == "__main__":
    Small()
"""


@dataclass
class World:
    """What a test may spoil; `environ` is what a person has set for whom all would work."""

    cluster: Cluster
    namespace: Namespace
    bucket: S3
    folder: Path
    environ: dict[str, str]

    def kubeconfig(self, change: Callable[[dict[str, Any]], None]) -> str:
        config = json.loads(Path(self.environ["KUBECONFIG"]).read_text())
        change(config)
        path = self.folder / "changed-kubeconfig"
        path.write_text(json.dumps(config))
        return str(path)

    def secret(self, **keys: str) -> str:
        name = f"spoilt-{uuid.uuid4().hex[:8]}"
        make_secret(self.namespace, name, keys)
        return name

    def said(self, *command: str) -> tuple[int, str]:
        """The exit code and all that was printed, without the ends of lines."""
        done = subprocess.run([sys.executable, *command], cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False)
        text = done.stdout + done.stderr
        assert "Traceback" not in text and self.bucket.secret_key not in text, text
        return done.returncode, re.sub(r"\s+", " ", text)

    def doctor(self) -> tuple[int, str]:
        return self.said("-m", "flowbook", "doctor")

    def look(self, *withs: str) -> tuple[int, str]:
        """The part of doctor that looks at the cluster, with a pod: as a kernel asks it, without trying the store each time."""
        settings = load_settings(self.folder, self.environ)
        place = settings.place | {"key_file": str(self.folder / "project.key")}
        asked = json.dumps({"store": place, "cluster": settings.cluster, "pod": True, "withs": withs})
        command = [sys.executable, "-P", "-m", "flowbook.engine.doctor.elsewhere"]
        done = subprocess.run(command, input=asked, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr and self.bucket.secret_key not in done.stdout, done
        found = [Found.from_json(json.loads(line)) for line in done.stdout.splitlines()]
        return int(any(each.state == "bad" for each in found)), re.sub(r"\s+", " ", " ".join(map(str, found)))

    def run(self, *words: str) -> tuple[int, str]:
        return self.said("flow.py", *(words or ("--with", "kubernetes")), "run")


@pytest.fixture
def world(cluster: Cluster, namespace: Namespace, bucket: S3, tmp_path: Path) -> World:
    (tmp_path / "flow.py").write_text(FLOW)
    make_secret(namespace, "store", credentials(bucket))
    more = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "FLOWBOOK_KUBERNETES_SCALE": "0.05",
        "FLOWBOOK_KUBERNETES_PENDING": "5s",
    }
    return World(cluster, namespace, bucket, tmp_path, here(namespace, tmp_path, environ_of(bucket, cluster.image, **more)))


def told(found: tuple[int, str], code: int, *parts: str) -> None:
    assert found[0] == code, found
    for part in parts:
        assert part in found[1], found


# ---- the cluster ------------------------------------------------------------------------------------------------------------------


def test_no_kubeconfig(world: World) -> None:
    world.environ["KUBECONFIG"] = str(world.folder / "nothing")
    parts = "no cluster is set up here", "/nothing: put a kubeconfig there, or name one with KUBECONFIG"

    told(world.look(), 1, *parts)
    told(world.run(), 3, *parts, "Nothing was run")


def test_a_context_that_is_not_there(world: World) -> None:
    world.environ["FLOWBOOK_KUBERNETES_CONTEXT"] = "elsewhere"

    told(world.look(), 1, "has no context 'elsewhere': correct kubernetes_context. Contexts there: ")
    told(world.run(), 3, "has no context 'elsewhere': correct kubernetes_context. Contexts there: ", "Nothing was run")


def test_a_server_that_does_not_answer(world: World) -> None:
    def elsewhere(config: dict[str, Any]) -> None:
        config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"

    world.environ["KUBECONFIG"] = world.kubeconfig(elsewhere)

    parts = "the cluster https://127.0.0.1:1 does not answer", "Connection refused", "look at its address in the kubeconfig"

    told(world.look(), 1, *parts)
    told(world.run(), 3, *parts, "Nothing was run. `flowbook doctor` looks closer")


def test_a_server_of_another_certificate(world: World) -> None:
    def untrusting(config: dict[str, Any]) -> None:
        config["clusters"][0]["cluster"].pop("certificate-authority-data")

    world.environ["KUBECONFIG"] = world.kubeconfig(untrusting)

    told(world.look(), 1, "is not one that the kubeconfig trusts")
    told(world.run(), 3, "is not one that the kubeconfig trusts", "Nothing was run")


def test_an_account_that_has_expired(world: World) -> None:
    def expired(config: dict[str, Any]) -> None:
        config["users"][0]["user"] = {"token": "expired"}

    world.environ["KUBECONFIG"] = world.kubeconfig(expired)

    told(world.look(), 1, "the cluster does not know this account (401)", "Log in again")
    told(world.run(), 3, "the cluster does not know this account (401)", "Log in again")


# ---- rights and names -----------------------------------------------------------------------------------------------------------


def test_no_right_to_start_pods(world: World) -> None:
    world.environ["KUBECONFIG"] = str(world.namespace.kubeconfig("kernel"))

    told(world.look(), 1, "may not create, delete pods", "kind: Role ", "verbs: [create, delete]")
    told(world.run(), 1, "may not create pods", 'A Role there needs the rule apiGroups: [""], resources: [pods], verbs: [create]')


def test_no_right_at_all(world: World) -> None:
    world.environ["KUBECONFIG"] = str(world.namespace.kubeconfig("step"))

    told(world.look(), 1, f"flowbook-step has no right in, or the cluster has no, namespace {world.namespace.name}", "kind: Role ")
    told(world.run(), 1, "may not create pods", "verbs: [create]")


def test_a_namespace_that_is_not_there(world: World) -> None:
    world.environ["FLOWBOOK_KUBERNETES_NAMESPACE"] = "nowhere"
    told(world.look(), 1, "has no right in, or the cluster has no, namespace nowhere", "kubernetes_namespace")
    told(world.run(), 1, "may not create pods in namespace nowhere")

    world.environ["KUBECONFIG"] = str(world.cluster.kubeconfig)  # who may look knows
    told(world.look(), 1, "the cluster has no namespace 'nowhere'. Set kubernetes_namespace")
    told(world.run(), 1, "the cluster has no namespace 'nowhere'. Set kubernetes_namespace")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("namespace=Team_A", "namespace 'Team_A' is no name in Kubernetes"),
        ("service_account=Me!", "service_account 'Me!' is no name in Kubernetes"),
        ('secrets=["My_Secret"]', "'My_Secret' in secrets is no name of a Secret"),
        ('labels={"a b": "c"}', "Kubernetes takes no 'a b' = 'c' in labels"),
        ("image=a b", "'a b' is no name of an image"),
    ],
)
def test_names_that_kubernetes_refuses_are_told_before_it_is_asked(world: World, given: str, said: str) -> None:
    told(world.look(f"kubernetes:{given}"), 1, said)
    told(world.run("--with", f"kubernetes:{given}"), 2, said)


def test_a_name_in_the_settings_that_kubernetes_refuses(world: World) -> None:
    world.environ["FLOWBOOK_KUBERNETES_SECRET"] = "My_Secret"
    parts = "Kubernetes refuses the pod", "secretRef.name", "My_Secret", "Correct what @kubernetes says, or the settings"

    told(world.look(), 1, *parts)
    told(world.run(), 1, *parts)


def test_a_service_account_that_is_not_there(world: World) -> None:
    world.environ["FLOWBOOK_KUBERNETES_SERVICE_ACCOUNT"] = "nobody"
    parts = "has no such service account", "nobody", "Set kubernetes_service_account to one that is there"

    told(world.look(), 1, *parts)
    told(world.run(), 1, *parts)


def test_resources_that_no_node_has(world: World) -> None:
    parts = "no node for cpu ", "Insufficient cpu", "ask for less"

    told(world.look("kubernetes:cpu=900"), 1, *parts)
    told(world.run("--with", "kubernetes:cpu=900"), 1, *parts, "given up")


# ---- the image ------------------------------------------------------------------------------------------------------------------

REGISTRY = """
import http.server

class Registry(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        private = "private" in self.path
        code = 200 if self.path == "/v2/" else 401 if private else 404
        word = "UNAUTHORIZED" if private else "MANIFEST_UNKNOWN"
        body = ('{"errors": [{"code": "%s", "message": "%s"}]}' % (word, "authentication required" if private else "manifest unknown")).encode()
        self.send_response(code)
        if private:
            self.send_header("WWW-Authenticate", 'Basic realm="registry"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    do_HEAD = do_GET

http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Registry).serve_forever()
"""


@pytest.fixture
def registry(cluster: Cluster) -> Iterator[str]:
    """The address of a registry that has no image, and says of some that they are private: on the node's loopback, where no TLS is asked for."""
    if cluster.home is None:
        pytest.skip("a pod in the node's network is only for a node of our own")
    name, port = f"registry-{uuid.uuid4().hex[:8]}", 20_000 + os.getpid() % 10_000
    own = cluster.namespace(name, enforce="privileged")
    container = {
        "name": "registry",
        "image": cluster.image,
        "command": ["python3", "-c", REGISTRY.replace("PORT", str(port))],
        "readinessProbe": {"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1},
    }
    spec = {"hostNetwork": True, "terminationGracePeriodSeconds": 1, "containers": [container]}
    own.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "registry"}, "spec": spec})
    own.kube.wait("pod/registry", "condition=Ready")
    yield f"127.0.0.1:{port}"
    cluster.kube.delete("namespace", name)


def test_an_image_that_the_registry_has_not(world: World, registry: str) -> None:
    world.environ["FLOWBOOK_KUBERNETES_IMAGE"] = f"{registry}/team/absent:7"
    parts = f"there is no image {registry}/team/absent:7", "not found", "Correct --image"

    told(world.look(), 1, *parts)
    told(world.run(), 1, *parts)


def test_an_image_that_may_not_be_pulled(world: World, registry: str) -> None:
    world.environ["FLOWBOOK_KUBERNETES_IMAGE"] = f"{registry}/private/image:7"
    parts = f"the image {registry}/private/image:7 may not be pulled", "Name a pull secret with @kubernetes(image_pull_secrets=[…])"

    told(world.look(), 1, *parts)
    told(world.run(), 1, *parts)


def test_an_image_whose_name_is_none(world: World) -> None:
    world.environ["FLOWBOOK_KUBERNETES_IMAGE"] = "Team/IMAGE:7"
    parts = "'Team/IMAGE:7' is no name of an image. Correct --image"

    told(world.look(), 1, parts)
    told(world.run(), 1, parts)


def test_an_image_without_the_python_that_is_asked_for(world: World) -> None:
    given = "kubernetes:executable=python9"
    parts = "has no python", "Use an image with Python, or @kubernetes(executable=…)"

    told(world.look(given), 1, *parts)
    told(world.run("--with", given), 1, *parts)


def test_another_python_in_the_image(world: World) -> None:
    """The image has 3.11. That this machine's is another is played: which Pythons are here is chance."""
    (world.folder / "sitecustomize.py").write_text("import sys\nsys.version = '3.12.9 ' + sys.version.partition(' ')[2]\n")
    world.environ["PYTHONPATH"] = str(world.folder)
    found = world.look()

    told(found, 0, "! the image has Python 3.11, the run was started with 3.12.9", "Use --image python:3.12")
    told(world.run(), 0, "the image has Python 3.11, the run was started with 3.12.9", "Use --image python:3.12")


# ---- bucket and credentials --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"FLOWBOOK_STORE": "s3://nowhere-at-all/x"}, ["there is no bucket 'nowhere-at-all'", "Make it, or correct `store`"]),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, ["no credentials for S3: neither in the environment nor"]),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, ["does not know the credentials of the environment", "Correct them"]),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, ["does not know the credentials of the environment", "Correct them"]),
    ],
    ids=["no bucket", "no credentials", "wrong secret", "wrong key"],
)
def test_a_bucket_that_cannot_be_used(world: World, change: dict[str, str], said: list[str]) -> None:
    for name, value in change.items():
        world.environ[name] = value
        if not value:
            del world.environ[name]

    told(world.doctor(), 1, *said)
    told(world.run(), 1, *said)


FAULTS: dict[str, tuple[Fault, str]] = {
    "expired": (lambda method, path, headers: (400, "ExpiredToken"), "have ended (ExpiredToken). Get new ones"),
    "no conditional writes": (
        lambda method, path, headers: (501, "NotImplemented") if "if-none-match" in headers else None,
        "does not keep `If-None-Match: *` (it answers NotImplemented), so results could be overwritten. Use a bucket whose server has",
    ),
    "conditions passed over": (
        lambda method, path, headers: "unconditional" if "if-none-match" in headers else None,
        "takes such a request and overwrites what is there), so results could be overwritten. Use a bucket whose server has",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_ends_credentials_or_does_not_keep_the_promise(
    world: World, bucket: S3, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for name, value in credentials(bucket).items():
        monkeypatch.setenv(name, value)  # of the proxy, which writes without the condition
    with between(bucket.endpoint) as proxy:
        proxy.fault, said = FAULTS[fault]
        world.environ["FLOWBOOK_S3_ENDPOINT"] = proxy.endpoint

        told(world.doctor(), 1, said)
        told(world.run(), 1, said)


def test_a_racy_server_is_found_out_by_doctor(world: World, bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run does not see it: each of its writers alone is told the truth."""
    for name, value in credentials(bucket).items():
        monkeypatch.setenv(name, value)
    with between(bucket.endpoint) as proxy:
        proxy.fault = lambda method, path, headers: "racy" if "if-none-match" in headers and "/probes/" in path else None
        world.environ["FLOWBOOK_S3_ENDPOINT"] = proxy.endpoint

        told(world.doctor(), 1, "create-if-absent is not kept:", "(50 of 50 keys)", "Results could be lost")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (None, ["the pod needs the secret 'absent', which its namespace has not", "name another"]),
        ({}, ["this pod has no credentials for the store", "Name a Secret that holds them in the setting kubernetes_secret"]),
        (
            {"AWS_ACCESS_KEY_ID": OWN, "AWS_SECRET_ACCESS_KEY": "wrong"},
            ["to this pod (403)", "Look at the credentials that pods get: correct the Secret "],
        ),
        (
            {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong"},
            ["to this pod (40", "Look at the credentials that pods get: correct the Secret "],
        ),
    ],
    ids=["no Secret", "no credentials", "wrong secret", "wrong key"],
)
def test_credentials_that_pods_have_not(world: World, keys: dict[str, str] | None, said: list[str]) -> None:
    world.environ["FLOWBOOK_KUBERNETES_SECRET"] = "absent"
    if keys is not None:
        own = {name: world.bucket.access_key if value is OWN else value for name, value in keys.items()}
        world.environ["FLOWBOOK_KUBERNETES_SECRET"] = world.secret(OTHER="x", **own)

    told(world.look(), 1, *said)
    told(world.run(), 1, *said)
