"""Forty cold pods on a real cluster: beside a bare loop of creates and one watch for pods that do nothing.

The cluster is that of tests/cluster (docs/cluster.md), on this machine, with its S3 server. All pods ask for 10m CPU and 64 MB, and run one at
a time per item: what is measured of flowbook is from the first pod of the fan-out that is launched to the last whose result is committed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cards
from benchmarks.book import ROOT, clean_environment, run_process, scratch
from benchmarks.browser import Notebook, chromium, forget, stamps
from benchmarks.environments import PEERS
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, Unavailable
from flowbook.engine import events
from flowbook.engine.launch.apiserver import Api, PodWatch
from flowbook.store import layout
from flowbook.store.base import open_store
from tests.cluster.cluster import Cluster, ClusterError, default_home, let_go, running, up, why_not
from tests.cluster.kube import Kube
from tests.cluster.optional import ARGO, fake_node

PODS = 40
PLAYED = 1000  # pods of kwok's
SETTLE_S = 5.0
LATENCY_ROUNDS = 3
ARGO_LIMIT_S = 300.0
ASKS = {"cpu": "10m", "memory": "64M"}
FLOW = """
from flowbook import FlowSpec, resources, step


class ColdFlow(FlowSpec):
    @resources(cpu=0.01, memory="64MB")
    @step
    def start(self):
        self.items = list(range({pods}))
        self.next(self.work, foreach="items")

    @resources(cpu=0.01, memory="64MB")
    @step
    def work(self):
        self.next(self.end)

    @resources(cpu=0.01, memory="64MB")
    @step
    def end(self, inputs):
        pass


if __name__ == "__main__":
    ColdFlow()
"""


@dataclass(frozen=True)
class Place:
    """A namespace of the cluster and a bucket of its S3 server, for one benchmark."""

    cluster: Cluster
    kubeconfig: Path
    namespace: str
    environment: dict[str, str]  # of whoever starts runs there
    store: dict[str, Any]


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """On the cluster of FLOWBOOK_TEST_CLUSTER, else the one that runs (`make cluster`), else on one for this time. Raises Unavailable."""
    given = os.environ.get("FLOWBOOK_TEST_CLUSTER")
    found = running(Path(given).resolve() if given else default_home())
    if found is None:
        if reason := why_not():
            raise Unavailable(reason)
        try:
            found = up(folder / "cluster", (), keep=False)
        except ClusterError as error:
            raise Unavailable(str(error)) from None
    assert found.s3 is not None and found.home is not None
    name = f"bench-{uuid.uuid4().hex[:8]}"
    namespace = found.namespace(name)
    (found.home / "s3" / name).mkdir()
    keys = {"AWS_ACCESS_KEY_ID": found.s3.access_key, "AWS_SECRET_ACCESS_KEY": found.s3.secret_key, "AWS_REGION": found.s3.region}
    data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
    namespace.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "data": data})
    kubeconfig = namespace.kubeconfig("engine")
    environment = keys | {
        "KUBECONFIG": str(kubeconfig),
        "FLOWBOOK_STORE": f"s3://{name}",
        "FLOWBOOK_PROJECT": "bench",
        "FLOWBOOK_S3_ENDPOINT": found.s3.endpoint,
        "FLOWBOOK_KUBERNETES_SECRET": "store",
        "FLOWBOOK_KUBERNETES_SERVICE_ACCOUNT": "flowbook-step",
        "FLOWBOOK_KUBERNETES_IMAGE": found.image,
    }
    try:
        store = {"kind": "s3", "bucket": name, "prefix": "bench", "endpoint": found.s3.endpoint, **keys}
        yield Place(found, kubeconfig, name, environment, store)
    finally:
        found.kube.delete("namespace", name)
        shutil.rmtree(found.home / "s3" / name, ignore_errors=True)
        let_go(found)


def run(settings: Settings) -> Section:
    pods = settings.scaled(PODS, 4)
    with scratch() as folder, place(folder) as where:
        contestants = [Contestant("flowbook: a foreach of no-ops", "results, logs, ends in S3", partial(flowbook, folder, where, pods))]
        if settings.peers:
            contestants.append(Contestant("a bare loop: create, one watch, python3 -c pass", "nothing", partial(bare, where, pods)))
        contest = Contest(f"{pods} cold pods: seconds", "s", False, contestants).hold(settings.rounds)
    return Section(
        "Cold pods", [contest], [], ["The machine runs the whole cluster, so a pod's start costs the same processors as its work."]
    )


def flowbook(folder: Path, where: Place, pods: int, whole: bool = False) -> Sample:
    """The fan-out alone, or the whole run: from its start to its end, as its log has them."""
    own = folder / uuid.uuid4().hex
    own.mkdir()
    (own / "cold.py").write_text(textwrap.dedent(FLOW.format(pods=pods)))
    environment = clean_environment(own) | where.environment | {"PYTHONPATH": str(ROOT), "HOME": str(own)}
    command = [sys.executable, "cold.py", "--with", "kubernetes", "run", "--run-id-file", "id"]
    started = time.time()
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    log = read_log(where, environment, "ColdFlow", (own / "id").read_text().strip())
    if whole:
        return Sample(max(event["at"] for event in log) - started)
    begun = min(event["at"] for event in log if event["e"] == "launched" and event["step"] == "work")
    ended = max(event["at"] for event in log if event["e"] == "succeeded" and event["step"] == "work")
    return Sample(ended - begun)


def dag(folder: Path, where: Place, settings: Settings) -> Contest:
    def peer() -> Sample:
        if "workflow-controller" not in where.cluster.parts():
            raise Unavailable("no Argo Workflows here (make cluster WITH=argo)")
        return argo(where)

    contestants = [Contestant("flowbook: python flow.py run", "results, logs, ends in S3", partial(flowbook, folder, where, 3, True))]
    contestants.append(Contestant("Argo Workflows 3.7.0, from the create on", "exit codes", peer))
    return Contest("start → 3-way foreach → join and end, cold: seconds", "s", False, contestants).hold(settings.rounds)


def argo(where: Place) -> Sample:
    """start → 3-way fan-out → end by Argo Workflows: the same image, pods that do nothing."""
    kube = Kube(where.cluster.kubeconfig, ARGO)
    name = f"bench-{uuid.uuid4().hex[:6]}"
    step = {"name": "step", "inputs": {"parameters": [{"name": "i", "value": "0"}]}}
    step["container"] = {"image": where.cluster.image, "command": ["python3", "-c", "pass"], "resources": {"requests": ASKS}}
    fan = {"name": "work", "template": "step", "dependencies": ["start"], "withItems": ["0", "1", "2"]}
    fan["arguments"] = {"parameters": [{"name": "i", "value": "{{item}}"}]}
    tasks = [{"name": "start", "template": "step"}, fan, {"name": "end", "template": "step", "dependencies": ["work"]}]
    spec = {"entrypoint": "main", "serviceAccountName": "default", "templates": [{"name": "main", "dag": {"tasks": tasks}}, step]}
    started = time.time()
    kube.create({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}, "spec": spec})
    while True:
        status = kube.get("workflow", name).get("status", {})
        if status.get("phase") == "Succeeded":
            kube.delete("workflow", name)
            return Sample(time.time() - started)
        if status.get("phase") in ("Failed", "Error") or time.time() > started + ARGO_LIMIT_S:
            raise Unavailable(f"the workflow is {status.get('phase')}: {status.get('message', '')}")
        time.sleep(0.2)


def read_log(where: Place, environment: dict[str, str], flow: str, run_id: str) -> list[dict[str, Any]]:
    os.environ.update({name: environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")})
    store = open_store({name: where.store[name] for name in ("kind", "bucket", "prefix", "endpoint")})
    return [event for key in store.list(layout.log_prefix(flow, run_id)) for event in events.unbatch(store.get(key), key)]


def bare(where: Place, pods: int) -> Sample:
    api = Api.connect(environ={"KUBECONFIG": str(where.kubeconfig)})
    name, over, failed = f"bare-{uuid.uuid4().hex[:6]}", set[str](), list[str]()

    def heard(found: dict[str, Any], whole: bool) -> None:
        over.update(each for each, pod in found.items() if pod and pod.get("status", {}).get("phase") in ("Succeeded", "Failed"))

    path = f"/api/v1/namespaces/{where.namespace}/pods"
    watch = PodWatch(api, where.namespace, f"bench={name}", heard, lambda error: failed.append(str(error)))
    try:
        started = time.monotonic()
        for number in range(pods):
            api.create(path, bare_pod(f"{name}-{number}", name, where.cluster.image))
        while len(over) < pods and not failed:
            time.sleep(0.005)
        if failed:
            raise Unavailable(failed[0])
        return Sample(time.monotonic() - started)
    finally:
        watch.close()
        for number in range(pods):
            api.delete(f"{path}/{name}-{number}", {"gracePeriodSeconds": 0})


def bare_pod(name: str, label: str, image: str) -> dict[str, Any]:
    container = {
        "name": "step",
        "image": image,
        "command": ["python3", "-c", "pass"],
        "resources": {"requests": ASKS, "limits": {"memory": ASKS["memory"]}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"bench": label}}, "spec": spec}


def engine_memory(folder: Path, where: Place, pods: int) -> Fact:
    """Of an engine whose pods all run at once, on a node that kwok plays."""
    what = f"engine memory for {pods:,} pods that run at once (kwok)"
    if "kwok" not in where.cluster.parts():
        return Fact(what, "not measured: no kwok here (make cluster WITH=kwok)")
    node = f"bench-{uuid.uuid4().hex[:6]}"
    where.cluster.kube.create(fake_node(node, labels={"bench": node}))
    own = folder / "memory"
    own.mkdir()
    settings = {"namespace": where.namespace, "image": where.cluster.image, "secret": "store", "service_account": "flowbook-step"}
    told = {"pods": pods, "kubeconfig": str(where.kubeconfig), "settings": settings, "node": {"bench": node}, "settle_s": SETTLE_S}
    told["store"] = {name: where.store[name] for name in ("kind", "bucket", "prefix", "endpoint")}
    environment = clean_environment(own) | where.environment | {"PYTHONPATH": str(ROOT)}
    try:
        run_process([sys.executable, str(PEERS / "flowbook_pods.py"), json.dumps(told)], environment, own)
    finally:
        where.cluster.kube.delete("node", node)
    found = json.loads((own / "report.json").read_text())
    return Fact(what, f"{found['first_mb']:.0f} MB when the run begins, {found['last_mb'] - found['first_mb']:+.0f} MB when all run")


def card_latency(folder: Path, where: Place, settings: Settings) -> list[Fact]:
    """From `card.refresh()` in a pod to the changed page, as benchmarks/cards.py measures it of a task of this machine."""
    what = "card.refresh() in a pod → changed page in JupyterLab"
    own, figures = folder / "latency", cards.Figures()
    own.mkdir()
    environment = where.environment | {"XDG_CONFIG_HOME": str(own / "config"), "FLOWBOOK_NOTEBOOK": "bench.ipynb"}
    count = settings.scaled(cards.REFRESHES, 10)
    train = cards.TRAIN.replace("%%flowstep train", "%%flowstep train --cpu 0.1 --memory 200MB")
    try:
        with chromium() as browser:
            here = f"import os\nos.environ.update({environment!r})\n{cards.LOAD}"
            notebook = Notebook(browser, own / "lab", [here, cards.PARAMETERS, train])
            try:
                notebook.lab.run_all()
                notebook.lab.wait_for_cells()
                for _ in range(LATENCY_ROUNDS):
                    forget(notebook.page)
                    command = f"%flow run --with kubernetes --fresh --count {count} --low {cards.LOW_S} --high {cards.HIGH_S}"
                    notebook.run(command, above=True)
                    notebook.lab.until("document.querySelector('.fbp-word.fbp-is-running')")
                    notebook.ended(120 + 2 * count * cards.HIGH_S)
                    began, blocked = notebook.value("[began, blocked]")
                    figures.take(stamps(notebook.page), began, blocked)
            finally:
                notebook.close()
    except Unavailable as error:
        return [Fact(what, f"not measured: {error}")]
    return [
        Fact(f"{what}, p50, p99, {len(figures.shown)} refreshes", cards._text(figures.shown)),
        Fact("refresh in a pod → painted, p50, p99", cards._text(figures.painted)),
    ]
