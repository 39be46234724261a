"""What a step may ask of its pod, in pods of a real cluster: packages, image, disk, Secrets, volumes, a role, a template; and that it survives its node.

All tests share a namespace, which enforces the restricted standard; each has a store of its own. `server` is a pod of that namespace that
plays what a cluster without a network lacks: an index of packages, and AWS's security token service.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine.launch import kubernetes, podspec
from flowbook.spec.flow import Card, Retry
from tests.cluster.cluster import S3, Cluster, Namespace
from tests.cluster.conftest import not_here
from tests.cluster.stages import LIMIT_S, credentials, environ_of, eventually, here, make_secret, new_bucket, stage_on
from tests.cluster.test_cluster import pod
from tests.launchers.left import Left
from tests.launchers.stage import SMALL, Stage, cell, named, until

pytestmark = pytest.mark.slow

Json = Any
PASSWORD = "hunter2-of-the-database"
ROLE = "arn:aws:iam::1:role/steps"


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> S3:
    if cluster.home is None:
        not_here("these tests make buckets and nodes, which only a cluster of our own allows")
    return new_bucket(cluster)


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, bucket: S3) -> Iterator[Namespace]:
    made = cluster.namespace(f"test-{uuid.uuid4().hex[:10]}")
    make_secret(made, "store", credentials(bucket))
    yield made
    cluster.kube.delete("namespace", made.name)


@pytest.fixture(scope="module")
def own_image(cluster: Cluster) -> str:
    """That of docker/Dockerfile, with flowbook in it."""
    return cluster.flowbook_image()


@pytest.fixture
def stage(cluster: Cluster, namespace: Namespace, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return stage_on(cluster, namespace, bucket, tmp_path, monkeypatch)


def config_map(namespace: Namespace, name: str, **files: str) -> None:
    namespace.kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": files})


def driven_and_seen(stage: Stage, namespace: Namespace, *steps: Any, **fields: Any) -> dict[str, Json]:
    """Drives a run, and returns its first pod as the API server had it."""
    seen: list[Json] = []

    async def scene() -> None:
        run = stage.run(*steps, **fields)
        driven = asyncio.create_task(stage.follow(run))
        label = f"flowbook/run={podspec.run_label(kubernetes.place_of(stage.store), 'demo', '1')}"

        def pods() -> bool:
            seen[:] = namespace.kube.get("pods", "-l", label)["items"]
            return bool(seen) or driven.done()

        await until(pods, "a pod")
        await driven

    stage.complete(scene())
    assert seen, stage.log()
    found: dict[str, Json] = seen[0]
    return found


# ---- Secrets of the cluster -------------------------------------------------------------------------------------------------


def test_the_keys_of_a_secret_are_variables_of_the_body_and_no_value_is_written_anywhere(stage: Stage, namespace: Namespace) -> None:
    make_secret(namespace, "db", {"DB_USER": "ann", "DB_PASSWORD": PASSWORD})
    body = """
import hashlib, os
user, digest = os.environ["DB_USER"], hashlib.sha256(os.environ["DB_PASSWORD"].encode()).hexdigest()
carriers = [name for name in os.environ if name.startswith(("FLOWBOOK_SECRET", "FLOWBOOK_POD"))]
print("connected")
card.metric("rows", 7)
"""
    seen = driven_and_seen(
        stage, namespace, cell("start", body, saves="user digest carriers", cards=(Card("blank"),), secrets=named("kubernetes:db"))
    )

    assert stage.log()[-1]["state"] == "succeeded", stage.log()
    assert stage.value("user", "start") == "ann" and stage.value("carriers", "start") == []
    assert stage.value("digest", "start") == hashlib.sha256(PASSWORD.encode()).hexdigest()
    assert {"prefix": "FLOWBOOK_SECRET_1_", "secretRef": {"name": "db"}} in seen["spec"]["containers"][0]["envFrom"]
    keys = list(stage.store.list(""))
    assert len(keys) > 5 and not [key for key in keys if PASSWORD.encode() in stage.store.get(key)]
    assert PASSWORD not in json.dumps(seen) and PASSWORD not in json.dumps(stage.said)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"tls.key": PASSWORD}, "kubernetes:odd-0 has the key 'tls.key', which is no name of a variable"),
        ({"PATH": PASSWORD}, "kubernetes:odd-1 gives PATH, which the environment has with another value"),
        ({"KEY": b"\xff\xfe" + PASSWORD.encode()}, "a value of a Secret that the pod takes as variables is no text"),
        ({"KEY": b"\x00" + PASSWORD.encode()}, "a value of a Secret that the pod takes as variables is no text"),
    ],
    ids=["no variable", "taken", "no text", "nul"],
)
def test_a_secret_that_cannot_be_variables_is_told_without_its_value(
    stage: Stage, namespace: Namespace, request: pytest.FixtureRequest, keys: dict[str, str | bytes], told: str
) -> None:
    name = f"odd-{['no variable', 'taken', 'no text', 'nul'].index(request.node.callspec.id)}"
    make_secret(namespace, name, keys)
    stage.drive(cell("start", "print('ran')", secrets=named(f"kubernetes:{name}")))

    message = stage.error("start")["message"]
    assert told in message and PASSWORD not in message, message


# ---- packages and images ----------------------------------------------------------------------------------------------------

SERVER = '''
import base64, http.server, json, os, urllib.parse

class Handler(http.server.SimpleHTTPRequestHandler):
    """GET: the folder /wheels as an index of packages. POST: the token service, for tokens of this cluster and for one role."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        middle = asked["WebIdentityToken"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        right = claims["sub"].endswith(":flowbook-step") and claims["aud"] == ["sts.amazonaws.com"] and asked["RoleArn"] == ROLE
        if not right:
            return self.answer(403, "<E><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></E>")
        keys = f"<AccessKeyId>{os.environ['AWS_ACCESS_KEY_ID']}</AccessKeyId><SecretAccessKey>{os.environ['AWS_SECRET_ACCESS_KEY']}</SecretAccessKey>"
        self.answer(200, f"<R>{keys}<SessionToken></SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></R>")

    def do_GET(self):
        parts = [part for part in self.path.split("/") if part]
        names = os.listdir("/wheels")
        if parts[:1] == ["simple"] and len(parts) == 2:
            own = [name for name in names if name.startswith(parts[1] + "-")]
            self.answer(200 if own else 404, "".join(f'<a href="/wheels/{name}">{name}</a>' for name in own))
        elif parts[:1] == ["wheels"]:
            self.answer(200, open("/wheels/" + parts[1], "rb").read())
        else:
            self.answer(404, "")

    def answer(self, status, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(text, bytes) else "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
'''


def wheel(name: str, version: str, code: str) -> tuple[str, bytes]:
    """A wheel of one module: its file's name, its bytes."""
    held = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(held, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD")))
    return f"{name}-{version}-py3-none-any.whl", held.getvalue()


@pytest.fixture(scope="module")
def server(cluster: Cluster, namespace: Namespace) -> str:
    """Its address, as pods see it."""
    import base64

    name, data = wheel("answer", "1.5", "VALUE = 42\n")
    wheels = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "wheels"},
        "binaryData": {name: base64.b64encode(data).decode()},
    }
    namespace.kube.create(wheels)
    container = {
        "envFrom": [{"secretRef": {"name": "store"}}],
        "volumeMounts": [{"name": "wheels", "mountPath": "/wheels"}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    made = pod("server", cluster.image, f"ROLE = {ROLE!r}\n{SERVER}", container=container)
    made["spec"]["volumes"] = [{"name": "wheels", "configMap": {"name": "wheels"}}]
    namespace.kube.create(made)
    namespace.kube.wait("pod/server", "condition=Ready")
    return f"http://{namespace.kube.get('pod', 'server')['status']['podIP']}:8000"


def index(server: str) -> tuple[tuple[str, str | None], ...]:
    """As @environment or --env give it to pip."""
    return ("PIP_INDEX_URL", f"{server}/simple"), ("PIP_TRUSTED_HOST", server.split("//")[1].split(":")[0])


def test_pip_installs_in_the_pod_from_an_index_that_the_environment_names(stage: Stage, server: str) -> None:
    body = "import answer\nvalue, file = answer.VALUE, answer.__file__"
    stage.drive(cell("start", body, saves="value file", pip=("answer>=1.0",), env=index(server)))

    assert stage.value("value", "start") == 42, stage.log()
    assert stage.value("file", "start").startswith("/flowbook/pip/")


def test_what_pip_cannot_install_is_told_before_the_body(stage: Stage, server: str) -> None:
    stage.drive(cell("start", "print('ran')", pip=("answer==9",), env=index(server)))

    error = stage.error("start")
    assert error["type"] == "ImageError" and "--pip answer==9 could not be installed in the pod" in error["message"], error
    assert "from versions: 1.5" in error["message"] and "ran" not in stage.printed("start")


@pytest.mark.timeout(1800)  # the first time, a large image is built
def test_a_step_runs_in_the_image_that_it_names(stage: Stage, own_image: str) -> None:
    """The cell after it runs in the stock image, where flowbook is not installed."""
    body = "import importlib.metadata\ntry:\n    {0} = importlib.metadata.version('flowbook')\nexcept importlib.metadata.PackageNotFoundError:\n    {0} = None"
    stage.drive(cell("start", body.format("a"), saves="a", image=own_image), cell("end", body.format("b"), saves="b"))

    import flowbook

    assert stage.value("a", "start") == flowbook.__version__, stage.log()
    assert stage.value("b", "end") is None


def test_a_step_that_fills_more_than_its_disk_is_told_so(stage: Stage) -> None:
    body = "import time\nwith open(scratch / 'big', 'wb') as file:\n    for _ in range(120):\n        file.write(b'x' * 10**6)\nprint('full', flush=True)\ntime.sleep(600)"
    stage.drive(cell("start", body, resources=dataclasses.replace(SMALL, disk_mb=40)))

    message = stage.error("start")["message"]
    assert "the pod used more disk than it may" in message and "--disk" in message, message


# ---- @kubernetes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def claim(cluster: Cluster, namespace: Namespace) -> Iterator[tuple[str, Path]]:
    """A claim of the namespace, and the folder of the node that it stands for."""
    assert cluster.home is not None
    name = f"data-{uuid.uuid4().hex[:8]}"
    folder = cluster.home / "volumes" / name
    folder.mkdir(parents=True)
    os.chmod(folder, 0o777)
    about = {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": name, "hostPath": {"path": str(folder)}}
    cluster.kube.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": about})
    wanted = {"accessModes": ["ReadWriteOnce"], "storageClassName": name, "resources": {"requests": {"storage": "1Mi"}}}
    namespace.kube.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": wanted})
    yield name, folder
    cluster.kube.delete("persistentvolume", name)


def test_what_kubernetes_says_is_what_the_pod_gets(stage: Stage, cluster: Cluster, namespace: Namespace, claim: tuple[str, Path]) -> None:
    config_map(namespace, "models", size="large")
    make_secret(namespace, "plain", {"PLAIN_KEY": "as it is"})
    namespace.kube.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}, "automountServiceAccountToken": False}
    )
    own = {
        "service_account": "runner",
        "service_account_token": True,
        "secrets": ["plain"],
        "labels": {"team": "vision"},
        "annotations": {"note": "any text, of any length"},
        "node_selector": {"kubernetes.io/hostname": cluster.node},
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "us", "effect": "NoSchedule"}],
        "persistent_volume_claims": {claim[0]: "/data"},
        "volumes": {"/models": {"configMap": {"name": "models"}}},
        "use_tmpfs": True,
        "tmpfs_size": 16,
        "tmpfs_path": "/ram",
        "image_pull_policy": "IfNotPresent",
    }
    body = """
import os, pathlib
plain, size = os.environ["PLAIN_KEY"], pathlib.Path("/models/size").read_text()
pathlib.Path("/data/made").write_text("in the pod")
kinds = {line.split()[1]: line.split()[2] for line in open("/proc/mounts")}
ram, shm = kinds["/ram"], os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
pathlib.Path("/ram/file").write_text("x")
token = os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""
    resources = dataclasses.replace(SMALL, shared_memory_mb=20)
    seen = driven_and_seen(stage, namespace, cell("start", body, saves="plain size ram shm token", kubernetes=own, resources=resources))

    spec, metadata = seen["spec"], seen["metadata"]
    assert [stage.value(name, "start") for name in ("plain", "size", "ram", "token")] == ["as it is", "large", "tmpfs", True], stage.log()
    assert stage.value("shm", "start") == -(-20 * 10**6 // 4096) * 4096
    assert (claim[1] / "made").read_text() == "in the pod"
    assert metadata["labels"]["team"] == "vision" and metadata["annotations"]["note"] == "any text, of any length"
    assert spec["serviceAccountName"] == "runner" and spec["nodeSelector"] == own["node_selector"]
    assert own["tolerations"][0] in spec["tolerations"] and spec["containers"][0]["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"service_account": "nobody"}, "has no such service account"),
        ({"persistent_volume_claims": {"no-claim": "/data"}}, 'persistentvolumeclaim "no-claim" not found'),
        ({"volumes": {"/models": {"configMap": {"name": "no-map"}}}}, "the pod needs the configmap 'no-map', which its namespace has not"),
        ({"node_selector": {"pool": "nowhere"}}, "no node for cpu 50m, memory 128M; pool nowhere"),
        ({"tolerations": [{"key": "a", "operator": "Perhaps"}]}, "Kubernetes refuses the pod"),
        ({"volumes": {"/host": {"hostPath": {"path": "/"}}}}, "does not allow such a pod"),
        ({"security_context": {"allowPrivilegeEscalation": True}}, "does not allow such a pod"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_the_cluster_has_not_or_does_not_allow_is_told(stage: Stage, own: dict[str, Json], told: str) -> None:
    stage.drive(cell("start", "print('ran')", kubernetes=own), settings={"pending_s": 4})

    message = stage.error("start")["message"]
    assert told in message and message.rstrip().count("\n") < 3, message


def test_a_template_of_a_pod_is_heeded_where_it_is_allowed(stage: Stage, namespace: Namespace) -> None:
    template = {
        "metadata": {"labels": {"queue": "gold"}},
        "spec": {
            "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["files.example"]}],
            "containers": [{"env": [{"name": "SIDE", "value": "yes"}]}],
        },
    }
    body = "import os, socket\nside, address = os.environ['SIDE'], socket.gethostbyname('files.example')"
    step = cell("start", body, saves="side address", kubernetes={"template": template})
    seen = driven_and_seen(stage, namespace, step, settings={"template": True})

    assert (stage.value("side", "start"), stage.value("address", "start")) == ("yes", "10.1.2.3"), stage.log()
    assert seen["metadata"]["labels"]["queue"] == "gold"


FLOW = """
from flowbook import FlowSpec, step, kubernetes

class InsideFlow(FlowSpec):
    @kubernetes(ARGUMENTS)
    @step
    def start(self):
        self.parts = [1, 2]
        self.next(self.double, foreach="parts")

    @step
    def double(self):
        self.twice = 2 * self.input
        self.next(self.total)

    @step
    def total(self, inputs):
        self.sum = sum(each.twice for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("the sum is", self.sum)

if __name__ == "__main__":
    InsideFlow()
"""


def test_a_template_is_refused_before_a_pod_is_made_where_it_is_not_allowed(
    cluster: Cluster, namespace: Namespace, bucket: S3, tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW.replace("ARGUMENTS", "template={'spec': {'hostNetwork': True}}"))
    command = [sys.executable, "flow.py", "--with", "kubernetes", "run"]
    env = here(namespace, tmp_path, environ_of(bucket, cluster.image))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert done.returncode != 0 and "a raw pod template is not allowed here" in done.stderr, done.stdout + done.stderr
    assert "kubernetes_template = true" in done.stderr and "Traceback" not in done.stderr
    assert not namespace.kube.get("pods", "-l", "flowbook/flow=insideflow")["items"]


# ---- a node that is lost ----------------------------------------------------------------------------------------------------


def test_a_pod_whose_node_does_not_answer_is_launched_again_and_no_retry_is_used_up(
    stage: Stage, cluster: Cluster, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is an object without a kubelet, as that of a machine that has gone. What the node controller finds out in 50 s is written
    here at once; from then on all is the cluster's own doing: the taint, the eviction, a pod that is to go and never does."""
    monkeypatch.setattr(podspec, "NODE_LOST_S", 1)
    monkeypatch.setattr(podspec, "GRACE_S", 1)
    monkeypatch.setattr(kubernetes, "LEAVING_S", 2.0)
    name = f"gone-{uuid.uuid4().hex[:6]}"
    amount = {"cpu": "4", "memory": "8Gi", "pods": "10", "ephemeral-storage": "10Gi"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    status = {"capacity": amount, "allocatable": amount, "conditions": [ready]}
    labels = {"kubernetes.io/hostname": name, name: "here"}
    cluster.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": status})

    async def scene() -> None:
        own = {"node_selector": {name: "here"}}
        driven = asyncio.create_task(stage.run(cell("start", "x = 1", saves="x", kubernetes=own, retry=Retry(0, 0))).drive())
        field = f"spec.nodeName={name}"
        await until(lambda: namespace.kube.get("pods", "--field-selector", field)["items"] or driven.done(), "a pod on the node")
        assert not driven.done(), stage.log()
        cluster.set_labels({name: "here"})  # the real node takes it from now on
        cluster.kube.patch_status("node", name, {"conditions": [ready | {"status": "Unknown", "reason": "NodeStatusUnknown"}]})
        await driven

    try:
        stage.complete(scene())
    finally:
        cluster.kube.delete("node", name)
        cluster.set_labels({name: None})

    assert stage.happened() == ["run_started", "launched start", "lost start", "launched start", "succeeded start", "run_ended"]
    lost = next(event for event in stage.log() if event["e"] == "lost")
    assert "its node does not answer" in lost["message"], lost
    assert stage.value("x", "start") == 1


# ---- a role instead of keys, and an engine in the cluster -------------------------------------------------------------------


def identity(audience: str = "sts.amazonaws.com") -> dict[str, Json]:
    """What EKS puts into the pods of an account with a role."""
    token = {"serviceAccountToken": {"audience": audience, "path": "token", "expirationSeconds": 600}}
    return {"volumes": {"/var/run/secrets/aws": {"projected": {"sources": [token]}}}}


def role(server: str, name: str = ROLE) -> tuple[tuple[str, str], ...]:
    token = ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/aws/token")
    return token, ("AWS_ROLE_ARN", name), ("AWS_ENDPOINT_URL_STS", server), ("AWS_REGION", "us-east-1")


def test_a_pod_reaches_the_store_by_the_role_of_its_account(stage: Stage, server: str) -> None:
    """Its first code (boot.py) and its worker (s3_credentials.py) both ask for keys: no Secret of the store is in the pod."""
    body = "import os\nkeys = [name for name in os.environ if name.startswith('AWS_ACCESS')]"
    step = cell("start", body, saves="keys", kubernetes=identity(), env=role(server))
    stage.drive(step, settings={"secret": None})

    assert stage.value("keys", "start") == [], stage.log()


@pytest.mark.parametrize(
    ("own", "name", "told"),
    [
        (identity("somebody.else"), ROLE, "Not authorized to perform sts:AssumeRoleWithWebIdentity"),
        (identity(), "arn:aws:iam::1:role/another", "role/another"),
        ({}, ROLE, "/var/run/secrets/aws/token"),
    ],
    ids=["another audience", "another role", "no token"],
)
def test_a_role_that_is_refused_is_told_as_such(stage: Stage, server: str, own: dict[str, Json], name: str, told: str) -> None:
    stage.drive(cell("start", "print('ran')", kubernetes=own, env=role(server, name)), settings={"secret": None})

    message = stage.error("start")["message"]
    assert told in message and "service account" in message and "Traceback" not in message, message


@pytest.mark.timeout(1800)
def test_a_flow_file_in_a_pod_runs_its_steps_in_pods(cluster: Cluster, namespace: Namespace, bucket: S3, own_image: str) -> None:
    """By the service account of its pod, without a kubeconfig, in the image of docker/Dockerfile."""
    config_map(namespace, "program", **{"flow.py": FLOW.replace("ARGUMENTS", "labels={'first': 'yes'}")})
    told = environ_of(bucket, cluster.image, FLOWBOOK_KUBERNETES_SCALE="0.01")
    container = {
        "command": ["python", "/program/flow.py", "--with", "kubernetes", "run"],
        "env": [{"name": key, "value": value} for key, value in told.items() if key not in credentials(bucket)],
        "envFrom": [{"secretRef": {"name": "store"}}],
        "volumeMounts": [{"name": "program", "mountPath": "/program"}],
    }
    made = pod("inside", own_image, "", container=container, serviceAccountName="flowbook-engine")
    made["spec"]["volumes"] = [{"name": "program", "configMap": {"name": "program"}}]
    namespace.kube.create(made)

    ended = namespace.kube.phase("inside", limit_s=300)
    printed = namespace.kube.run("logs", "inside")
    assert ended == "Succeeded" and "the sum is 6" in printed, printed
    assert not namespace.kube.get("pods", "-l", "flowbook/flow=insideflow")["items"]


def test_a_run_whose_process_was_killed_is_taken_over_with_its_pods(
    cluster: Cluster, namespace: Namespace, bucket: S3, tmp_path: Path, claim: tuple[str, Path]
) -> None:
    """By the command line; the items count on a volume how often they begin."""
    name, folder = claim
    env = here(namespace, tmp_path, environ_of(bucket, cluster.image, FLOWBOOK_KUBERNETES_SCALE="0.01"))
    left = Left(folder, env, "/data", f"@kubernetes(persistent_volume_claims={{{name!r}: '/data'}})")

    def train() -> set[str]:
        pods = namespace.kube.get("pods", "-l", "flowbook/flow=leftflow")["items"]
        return {each["metadata"]["uid"] for each in pods if each["metadata"]["annotations"]["flowbook/step"] == "train"}

    left.kill()
    before = train()
    resumed = subprocess.Popen([sys.executable, "left.py", "resume"], cwd=folder, env=left.env, stdout=-1, stderr=-1, text=True)
    eventually(lambda: left.runs() == {"1": "running"} or resumed.poll() is not None, "the new engine")
    seen = train()
    left.go()
    printed, trouble = resumed.communicate(timeout=LIMIT_S)

    assert resumed.returncode == 0 and "the sum is 60" in printed, printed + trouble
    assert "the engine of run 1 was gone" in printed and len(before) == 3 and seen == before
    assert left.begun() == {"begun-1": 1, "begun-2": 1, "begun-3": 1}
    assert left.runs() == {"1": "succeeded"}
    assert not namespace.kube.get("pods", "-l", "flowbook/flow=leftflow")["items"]
