"""The cluster itself: that its parts are real, that its rules hold, and that nothing of it stays behind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster import cluster as made
from tests.cluster import images, parts
from tests.cluster.build import cache
from tests.cluster.cluster import S3, Cluster, ClusterError, Namespace, down, running, up
from tests.cluster.kube import Refused

GPU_LABEL = "karpenter.k8s.aws/instance-gpu-name"


def pod(name: str, image: str, code: str, **more: Any) -> dict[str, Any]:
    """A pod as restricted namespaces want it, that runs some Python."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", code],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    } | more.pop("container", {})
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"restartPolicy": "Never", "serviceAccountName": "flowbook-step", "containers": [container], "securityContext": security}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec | more}


# ---- pods ------------------------------------------------------------------------------------------------------------------


def test_python_runs_in_a_pod_and_its_output_is_in_the_log(cluster: Cluster, namespace: Namespace) -> None:
    code = "import sys, os; print(sys.version_info[:2], os.getuid()); import importlib.util; print(importlib.util.find_spec('flowbook'))"
    namespace.account("engine").create(pod("first", cluster.image, code))

    assert namespace.kube.phase("first") == "Succeeded"
    assert namespace.account("engine").run("logs", "first") == "(3, 11) 1000\nNone\n"


def test_a_failing_pod_is_seen_to_fail(cluster: Cluster, namespace: Namespace) -> None:
    namespace.account("engine").create(pod("failing", cluster.image, "raise SystemExit(7)"))

    assert namespace.kube.phase("failing") == "Failed"
    status = namespace.kube.get("pod", "failing")["status"]["containerStatuses"][0]
    assert status["state"]["terminated"]["exitCode"] == 7


def test_a_pod_of_a_step_has_no_token(cluster: Cluster, namespace: Namespace) -> None:
    namespace.account("engine").create(pod("bare", cluster.image, "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'))"))

    assert namespace.kube.phase("bare") == "Succeeded"
    assert namespace.kube.run("logs", "bare") == "False\n"


def test_a_pod_with_an_account_reaches_the_api_server(cluster: Cluster, namespace: Namespace) -> None:
    """As an engine in the cluster would: by the service's address and its own token, without a name server."""
    code = """
import os, ssl, urllib.request
at = "/var/run/secrets/kubernetes.io/serviceaccount/"
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
url = f"https://{host}:{port}/api/v1/namespaces/{open(at + 'namespace').read()}/pods"
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(at + "token").read()})
print(b"in-cluster" in urllib.request.urlopen(request, context=ssl.create_default_context(cafile=at + "ca.crt")).read())
"""
    namespace.kube.create(pod("in-cluster", cluster.image, code, serviceAccountName="flowbook-engine"))

    assert namespace.kube.phase("in-cluster") == "Succeeded", namespace.kube.run("logs", "in-cluster")
    assert namespace.kube.run("logs", "in-cluster") == "True\n"


def test_a_pod_reaches_the_s3_server_and_nothing_else(cluster: Cluster, namespace: Namespace, bucket: S3) -> None:
    if cluster.home is None:
        pytest.skip("a given cluster may well lead somewhere")
    host, port = bucket.endpoint.removeprefix("http://").split(":")
    code = f"""
import socket
socket.create_connection(({host!r}, {port}), timeout=60).close()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=60)
except OSError as error:
    print(type(error).__name__)
"""
    namespace.kube.create(pod("reaching", cluster.image, code))

    assert namespace.kube.phase("reaching") == "Succeeded", namespace.kube.run("logs", "reaching")
    assert namespace.kube.run("logs", "reaching").strip() == "OSError"  # no route, and not a time-out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}}, "runAsNonRoot"),
        ({"container": {"securityContext": {"privileged": True}}}, "privileged"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "hostPath"),
        ({"hostNetwork": True}, "host namespaces"),
    ],
)
def test_a_restricted_namespace_refuses_what_could_harm(cluster: Cluster, namespace: Namespace, change: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=r"violates PodSecurity .restricted") as caught:
        namespace.kube.create(pod("harmful", cluster.image, "pass", **change))

    assert said in str(caught.value)
    assert namespace.kube.get("pods")["items"] == []


def test_an_image_that_is_not_there_is_told(cluster: Cluster, namespace: Namespace) -> None:
    namespace.kube.create(pod("lost", "localhost/no-such-image:1", "pass", container={"imagePullPolicy": "Never"}))

    reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull"
    namespace.kube.run("wait", "pod/lost", f"--for={reason}", "--timeout=110s")


# ---- GPUs and tiers --------------------------------------------------------------------------------------------------------


def test_a_pod_that_asks_for_a_gpu_waits_until_a_node_has_one(cluster: Cluster, namespace: Namespace) -> None:
    if cluster.home is None:
        pytest.skip("the node of a given cluster is left as it is")
    asks = {"limits": {"nvidia.com/gpu": "1"}}
    selector = {GPU_LABEL: "l4"}
    namespace.kube.create(pod("hungry", cluster.image, "print('fed')", nodeSelector=selector, container={"resources": asks}))
    namespace.kube.wait("pod/hungry", "condition=PodScheduled=False")

    with cluster.fitted(gpus=4, labels=selector):
        assert namespace.kube.phase("hungry") == "Succeeded"
        assert cluster.kube.get("node", cluster.node)["status"]["allocatable"]["nvidia.com/gpu"] == "4"

    node = cluster.kube.get("node", cluster.node)
    assert "nvidia.com/gpu" not in node["status"]["allocatable"]
    assert GPU_LABEL not in node["metadata"]["labels"]


def test_more_gpus_than_the_node_has_are_never_given(cluster: Cluster, namespace: Namespace) -> None:
    if cluster.home is None:
        pytest.skip("the node of a given cluster is left as it is")
    with cluster.fitted(gpus=4):
        namespace.kube.create(pod("greedy", cluster.image, "pass", container={"resources": {"limits": {"nvidia.com/gpu": "5"}}}))
        namespace.kube.wait("pod/greedy", "condition=PodScheduled=False")
        conditions = namespace.kube.get("pod", "greedy")["status"]["conditions"]

        assert any("Insufficient nvidia.com/gpu" in each.get("message", "") for each in conditions)


# ---- rights ----------------------------------------------------------------------------------------------------------------

LOOK: list[tuple[str, str]] = [("get", "pods"), ("list", "pods"), ("watch", "pods"), ("get", "pods/log")]
LOOK += [("get", "pods/portforward"), ("create", "pods/portforward"), ("get", "events"), ("list", "events"), ("watch", "events")]
MAY: dict[str, list[tuple[str, str]]] = {
    "engine": [("create", "pods"), ("delete", "pods"), ("create", "secrets"), *LOOK],
    "kernel": LOOK,
    "step": [],
}
EVERYTHING = [
    (verb, resource)
    for resource in (
        *("pods", "pods/log", "pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "pods/status", "pods/eviction"),
        *("secrets", "configmaps", "events", "services", "serviceaccounts", "serviceaccounts/token", "persistentvolumeclaims"),
        *("resourcequotas", "limitranges", "namespaces", "nodes", "persistentvolumes", "jobs.batch", "deployments.apps"),
        *("roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io", "networkpolicies.networking.k8s.io"),
    )
    for verb in ("create", "get", "list", "watch", "update", "patch", "delete", "deletecollection")
]


@pytest.mark.parametrize("account", MAY)
def test_an_account_may_do_what_it_needs_and_nothing_else(namespace: Namespace, account: str) -> None:
    assert namespace.account(account).allowed(EVERYTHING) == set(MAY[account])


def test_an_account_has_no_rights_in_another_namespace(namespace: Namespace) -> None:
    kube = namespace.account("engine")
    elsewhere = dataclasses.replace(kube, namespace=made.NAMESPACE)

    assert kube.can("create", "pods")
    assert not elsewhere.can("create", "pods")
    with pytest.raises(Refused, match=r'cannot list resource "pods" in API group "" in the namespace'):
        elsewhere.get("pods")


def test_the_engine_cannot_read_back_the_secret_that_it_made(namespace: Namespace) -> None:
    content = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"key": "hidden"}}
    namespace.account("engine").run("create", "--validate=false", "-f", "-", "-o", "name", given=json.dumps(content))

    with pytest.raises(Refused, match='cannot get resource "secrets"'):
        namespace.account("engine").get("secret", "key")


# ---- S3 --------------------------------------------------------------------------------------------------------------------


def test_of_32_writers_who_create_one_object_at_once_one_wins(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowbook.store.s3 import S3Store

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.secret_key)
    store = S3Store(bucket.bucket, "race", endpoint=bucket.endpoint, region=bucket.region)
    begin = threading.Barrier(32)

    def write(writer: int) -> list[bool]:
        won = []
        for key in range(20):
            begin.wait(60)
            won.append(store.create(f"key-{key}", str(writer).encode()))
        return won

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(write, range(32)))

    for key in range(20):
        winners = [writer for writer in range(32) if results[writer][key]]
        assert len(winners) == 1
        assert store.get(f"key-{key}") == str(winners[0]).encode()


# ---- up and down -----------------------------------------------------------------------------------------------------------


def own(cluster: Cluster) -> Path:
    """The folder of the cluster under test. Skips where it is not ours."""
    if cluster.home is None:
        pytest.skip("the cluster was given by FLOWBOOK_TEST_KUBECONFIG")
    return cluster.home


@pytest.fixture
def home(cluster: Cluster) -> Iterator[Path]:
    """A folder for a second cluster, which stands beside the first and is gone after the test."""
    own(cluster)
    with tempfile.TemporaryDirectory(prefix="fb-") as short:  # for tmp_path may be too long for sockets
        path = Path(short) / "second"
        yield path
        down(path)


def traces(home: Path, process: dict[str, Any]) -> list[str]:
    """What is left of a cluster on this machine."""
    left = [f"process {pid}" for pid in made._inhabitants(process["namespace"])]
    left += [f"interface {process['cable']}"] if Path("/sys/class/net", process["cable"]).exists() else []
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(home) in line]
    left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{process['cgroup']}")]
    left += [line for line in processes() if str(home) in line]
    return left + ([str(home)] if home.exists() else [])


def processes() -> list[str]:
    found = []
    for each in psutil.process_iter():
        try:
            found.append(f"{each.pid} {' '.join(each.cmdline())}")
        except psutil.Error:
            continue
    return found


def firewall() -> list[str]:
    """The rules that kube-proxy would have made on this machine."""
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return [line for line in rules.splitlines() if "KUBE" in line]


def test_a_second_up_finds_the_running_cluster(cluster: Cluster) -> None:
    home = own(cluster)
    before = {name: state["pid"] for name, state in cluster.parts().items()}

    again = up(home)

    assert (again.kubeconfig, again.s3) == (cluster.kubeconfig, cluster.s3)
    assert {name: state["pid"] for name, state in again.parts().items()} == before


def test_what_others_read_of_the_cluster_is_all_there_and_secret(cluster: Cluster) -> None:
    home = own(cluster)
    about = json.loads((home / "cluster.json").read_text())

    assert set(about["kubeconfig"]) == {"admin", "engine", "kernel", "step"}
    for path in (home / "cluster.json", *map(Path, about["kubeconfig"].values())):
        assert path.stat().st_mode & 0o077 == 0
    assert set(about["parts"]) >= {
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "containerd",
    }
    assert set(about["s3"]) == {"endpoint", "access_key", "secret_key", "region", "bucket"}


def test_down_leaves_nothing_and_harms_no_other_cluster(cluster: Cluster, home: Path) -> None:
    second = up(home)
    place = second.namespace("leftover")
    place.kube.create(pod("sleeper", second.image, "import time; time.sleep(3600)"))
    assert place.kube.phase("sleeper", "Running") == "Running"
    process = json.loads((home / "process.json").read_text())
    assert {"process", "interface"} <= {line.split()[0] for line in traces(home, process)}  # the test can see what it looks for

    assert down(home)

    assert traces(home, process) == []
    assert firewall() == []
    assert not down(home)
    assert {name: state["code"] for name, state in cluster.parts().items()} == dict.fromkeys(cluster.parts())
    assert cluster.kube.get("node", cluster.node)["metadata"]["name"] == cluster.node


def test_a_cluster_ends_with_the_one_who_started_it_however_that_ends(home: Path) -> None:
    code = "import sys, pathlib; from tests.cluster.cluster import up; up(pathlib.Path(sys.argv[1]), keep=False); print('up', flush=True); sys.stdin.read()"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache().parent.parent)}
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=images.ROOT,
        env=environment,
        text=True,
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == "up\n"
    process = json.loads((home / "process.json").read_text())
    assert running(home) is not None

    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    made._wait(lambda: running(home) is None and not made._inhabitants(process["namespace"]), "all processes have ended", 120)

    assert down(home)  # its folder
    assert traces(home, process) == []


def test_one_who_lets_go_leaves_the_cluster_to_those_who_hold_it(home: Path) -> None:
    one, other = up(home, keep=False), up(home, keep=False)

    made.let_go(one)
    assert running(home) is not None
    assert other.kube.get("node", other.node)["kind"] == "Node"
    made.let_go(other)

    assert running(home) is None
    assert not home.exists()


def test_a_part_that_fails_is_named_with_the_end_of_its_log_and_all_is_undone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parts.apiserver

    def wrong(layout: parts.Layout) -> parts.Part:
        part = right(layout)
        return dataclasses.replace(part, argv=[*part.argv, "--no-such-flag"])

    monkeypatch.setattr(parts, "apiserver", wrong)
    before = set(os.listdir("/sys/class/net"))

    with pytest.raises(ClusterError) as caught:
        up(home)

    assert str(caught.value).startswith("kube-apiserver ended with code 1. The end of its log:\n")
    assert "unknown flag: --no-such-flag" in str(caught.value)
    assert "Nothing of it was left behind" in str(caught.value)
    assert not home.exists()
    assert set(os.listdir("/sys/class/net")) == before
    assert [line for line in processes() if str(home) in line] == []


def test_a_part_that_does_not_get_ready_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "READY_S", 2)
    monkeypatch.setattr(parts, "apiserver", lambda layout: parts.Part("kube-apiserver", ["sleep", "1000"]))

    with pytest.raises(
        ClusterError, match="waited 2 s in vain until kube-apiserver is ready. The end of the log of kube-apiserver:\n  \\(empty\\)"
    ):
        up(home)

    assert not home.exists()


def test_a_stopped_part_can_be_started_again(home: Path) -> None:
    second = up(home, keep=False)
    try:
        second.stop("kube-apiserver")
        with pytest.raises(Refused):
            second.kube.get("nodes")
        with pytest.raises(ClusterError, match="no part is called nothing; there are containerd, etcd"):
            second.stop("nothing")
        second.restart("kube-apiserver")
        made._wait(lambda: made._ready(second.kube), "it is ready again", 180)

        assert second.kube.get("nodes")["items"][0]["metadata"]["name"] == second.node
    finally:
        made.let_go(second)


def test_a_folder_with_something_else_in_it_is_left_alone(home: Path) -> None:
    home.mkdir()
    (home / "thesis.tex").write_text("all my work")

    with pytest.raises(ClusterError, match="is not empty and no cluster; choose another folder with --dir"):
        up(home)
    assert not down(home)

    assert (home / "thesis.tex").read_text() == "all my work"
    shutil.rmtree(home)


@pytest.mark.parametrize(
    ("path", "said"), [("/tmp/" + "x" * 90, "too long a path for sockets"), ("/run/cluster", "choose another with --dir")]
)
def test_a_folder_that_cannot_be_used_is_refused(cluster: Cluster, path: str, said: str) -> None:
    own(cluster)

    with pytest.raises(ClusterError, match=said):
        up(Path(path))
    assert not Path(path).exists()


def test_the_number_of_a_process_that_was_given_to_another_is_not_ended(tmp_path: Path) -> None:
    innocent = subprocess.Popen(["sleep", "1000"])
    try:
        about = {"pid": innocent.pid, "started": 1.0, "host": "198.18.9.2", "cgroup": "/flowbook-none", "cable": "fbnone", "namespace": ""}
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "process.json").write_text(json.dumps(about))

        assert down(tmp_path / "old")

        assert innocent.poll() is None
        assert not (tmp_path / "old").exists()
    finally:
        innocent.kill()
        innocent.wait()


def test_the_command_tells_where_no_cluster_can_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.cluster.__main__ import main

    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert main(["up", "--dir", str(tmp_path / "none")]) == 3
    assert capsys.readouterr().err == "flowbook: no cluster can run here: a cluster needs root\n"
    assert main(["up", "--with", "argo,spinnaker", "--dir", str(tmp_path / "none")]) == 1
    assert "--with spinnaker: no such part; there are kwok, karpenter, argo" in capsys.readouterr().err
    assert main(["status", "--dir", str(tmp_path / "none")]) == 1
    assert main(["down", "--dir", str(tmp_path / "none")]) == 0
    assert "no cluster here" in capsys.readouterr().out


FLOW = """
from flowbook import FlowSpec, step

class Small(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        print("it ran")

Small()
"""


@pytest.mark.slow
def test_the_lines_that_are_printed_run_a_flow_in_pods_and_stand_in_the_docs(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.cluster.__main__ import main

    home = own(cluster)
    assert main(["up", "--dir", str(home)]) == 0
    up_said = capsys.readouterr().out
    assert main(["status", "--dir", str(home)]) == 0
    status_said = capsys.readouterr().out
    lines = up_said[up_said.index("export FLOWBOOK") - 1 - len(f"export KUBECONFIG={home}/kube/flowbook-engine") :].strip()
    assert lines.startswith("export KUBECONFIG=") and lines in status_said
    assert all(re.search(rf"^image +{cluster.image}", said, re.M) for said in (up_said, status_said))
    written = re.search(r"(?s)## Try a flow on it.*?```text\n(.*?)\n```", (images.ROOT / "docs" / "cluster.md").read_text())
    address = re.compile(r"http://198\.18\.\d+\.2:\d+")
    assert written and address.sub("http", written[1]) == address.sub("http", lines.replace(str(home), "~/.cache/flowbook-ci/cluster/run"))

    (tmp_path / "flow.py").write_text(FLOW)
    inside = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FLOWBOOK_", "KUBE"))}
    inside |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{inside['PATH']}"}
    done = subprocess.run(["sh", "-ec", lines], cwd=tmp_path, env=inside, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and "it ran" in done.stdout, done.stdout + done.stderr


def test_two_clusters_have_two_addresses(cluster: Cluster) -> None:
    own(cluster)
    assert cluster.s3 is not None
    host, port = cluster.s3.endpoint.removeprefix("http://").split(":")

    assert made._free_address() != host
    socket.create_connection((host, int(port)), timeout=60).close()
