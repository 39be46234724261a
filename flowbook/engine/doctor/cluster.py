"""The cluster: is it reached, what may this account do, would it take a pod of ours, and is there what pods need.

Asks and changes nothing: whether the cluster takes a pod is asked by a dry run, which goes through all of its admission and makes none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook.engine.doctor import nodes, rights
from flowbook.engine.doctor.core import Check, Found
from flowbook.engine.doctor.machine import numbers
from flowbook.engine.launch import podspec, podstatus
from flowbook.engine.launch.apiserver import OWN_NAMESPACE, Api, Refused
from flowbook.engine.launch.placing import NO_STORE, placed
from flowbook.errors import ClusterError, DefinitionError, Finding
from flowbook.spec.amounts import counted
from flowbook.spec.flow import Options, Resources, Spec, Step
from flowbook.store.base import Store

if TYPE_CHECKING:
    from flowbook.settings import Settings

Json = Any

ANSWER_S = 6.0  # for one request
TRIED, OLDEST = "1.34", (1, 28)  # the version that flowbook's tests run on, and the first that tells an account its own name
SMALL = Resources(cpu=0.1, memory_mb=256)  # of the pod that is tried
FLOW, RUN, STEP = "doctor", "1", "probe"
BODY = "import os, platform\npython = platform.python_version()\nprobe = os.urandom(100_000)\n"


def left_out(settings: Settings, environ: Mapping[str, str], *, asked: bool) -> Found | None:
    """Why the cluster is not looked at; None: it is. `asked`: somebody wants it looked at."""
    named = sorted(name for name, origin in settings.origins.items() if name.startswith("kubernetes_") and origin != "default")
    if settings.cluster is None:
        if asked:
            return Found("bad", NO_STORE.replace(" Nothing was run.", ""))
        if named:
            return Found("warn", f"{', '.join(named)} set, but {NO_STORE.partition(': ')[2].replace(' Nothing was run.', '')}")
        return Found("ok", "no cluster: the store is a folder of this machine, and steps run here")
    file = environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    there = any(Path(each).expanduser().exists() for each in file.split(os.pathsep))
    in_pod = environ.get("KUBERNETES_SERVICE_HOST") and OWN_NAMESPACE.exists()  # without a token a pod is as any machine
    if asked or named or there or environ.get("KUBECONFIG") or in_pod:
        return None
    return Found("ok", "no cluster is set up here (no kubeconfig, no kubernetes_… setting): steps run on this machine")


class Look:
    """One look at a cluster: what is found out first is needed by what comes next.

    `cluster`: Settings.cluster. `options`: those of the step whose pod is asked about. `say` is told how a pod gets on that is tried.
    """

    def __init__(
        self,
        store: Store,
        cluster: Mapping[str, Json],
        environ: Mapping[str, str],
        options: Options,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store, self.environ, self.settings, self.say = store, environ, cluster, say
        given = options.resources if options.resources != Resources() else SMALL
        if not podspec.in_cluster(options):
            options = dataclasses.replace(options, extra=(*options.extra, ("kubernetes", "{}")))
        self.step = Step(STEP, BODY, f"<{STEP}>", STEP, dataclasses.replace(options, resources=given), saves=("probe", "python"))
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:16]}"
        self.cluster = podspec.Cluster()
        self.namespace, self.user, self._may = "", "", set[tuple[str, str]]()
        self._api: Api | None = None
        self._pod = False

    def checks(self, *, pod: bool) -> list[Check]:
        """`pod`: one is tried, too."""
        self._pod = pod
        found = [
            Check("cluster", "what the settings say of pods", self.told, None, gate=True),
            Check("cluster", "the kubeconfig", self.connected, gate=True),
            Check("cluster", "the API server", self.reached, gate=True),
            Check("cluster", "rights", self.rights, 60.0, gate=True),
            Check("cluster", "a pod, in a dry run", self.admitted, gate=True),
            Check("cluster", "what pods need", self.needs),
        ]
        if pod:
            from flowbook.engine.doctor.trial import trial

            found.append(Check("cluster", "a pod", lambda: trial(self), None))
        return found

    @property
    def api(self) -> Api:
        assert self._api is not None, "the gate before this check"
        return self._api

    @property
    def spec(self) -> Spec:
        return Spec(FLOW, RUN, (self.step,), sources={self.step.filename: {"label": STEP, "source": BODY}}, python=_python())

    @property
    def ask(self) -> podspec.Ask:
        """What the pod of the step asks for."""
        from flowbook.engine.launch.kubernetes import place_of

        options = self.step.options
        pod = podspec.pod_of(options, _python())
        return podspec.Ask(FLOW, self.name, STEP, store=place_of(self.store), resources=podspec.asked(options), **pod)

    # ---- the checks, in their order ------------------------------------------------------------------------------------------

    def told(self) -> Iterator[Found]:
        """What is known to be wrong before anything is asked."""
        try:
            told = placed(self.spec, self.settings, self.environ)[1]
            self.cluster = podspec.Cluster.read(told or {})
        except DefinitionError as error:
            for finding in error.findings:
                where = "" if finding.where == f"step {STEP}" else f"{finding.where}: "
                yield Found("bad", f"{where}{finding.what}", finding.remedy)

    def connected(self) -> Iterator[Found]:
        try:
            self._api = Api.connect(self.cluster.context, self.environ, patience_s=ANSWER_S, answer_s=ANSWER_S)
        except ClusterError as error:
            yield Found("bad", str(error))
            return
        own = json.loads(dict(self.step.options.extra)["kubernetes"]).get("namespace")
        self.namespace = own or self.cluster.namespace or self._api.namespace
        yield Found("ok", f"cluster {self._api.host}, namespace {self.namespace}, by {self._by}")

    @property
    def _by(self) -> str:
        """Where it stands how to reach the cluster."""
        if self.environ.get("KUBERNETES_SERVICE_HOST") and not self.environ.get("KUBECONFIG") and self.cluster.context is None:
            return "the service account of this pod"
        context = f"context {self.cluster.context}" if self.cluster.context else "its current context"
        return f"{self.environ.get('KUBECONFIG') or '~/.kube/config'} ({context})"

    def reached(self) -> Iterator[Found]:
        try:
            version = str(self.api.get("/version").get("gitVersion"))
            self.user = self._who()
        except Refused as refused:
            yield Found("bad", podstatus.refused(refused.code, refused.body, "ask the cluster", self.namespace).message)
            return
        except ClusterError as error:
            yield Found("bad", str(error))
            return
        if numbers(version)[:2] < OLDEST:
            yield Found("warn", f"Kubernetes {version} is older than flowbook is tried with ({TRIED})", "Some findings below may be wrong.")
        else:
            yield Found("ok", f"Kubernetes {version} (flowbook is tried with {TRIED}) answers {self.user}")

    def _who(self) -> str:
        """The name of this account."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            told = self.api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
        except Refused as refused:
            if refused.code == 401:
                raise
            return "YOUR-ACCOUNT"  # a server before 1.28 does not tell
        return str(told["status"]["userInfo"]["username"])

    def rights(self) -> Iterator[Found]:
        asked = rights.asked()
        with ThreadPoolExecutor(8, "flowbook-rights") as pool:
            self._may = {each for each, may in zip(asked, pool.map(self._allowed, asked), strict=True) if may}
        lacks = rights.lacking(self._may)
        for right in lacks if self._may else ():
            what = f"{self.user} may not {', '.join(right.verbs)} {right.resource} in namespace {self.namespace}"
            yield Found("bad" if right.needed else "warn", f"{what} ({right.purpose}): {right.without}")
        for right in rights.lacking(self._may, rights.EXTRA) if self._may else ():
            yield Found("ok", f"without rights on {right.resource} ({', '.join(right.verbs)}), which are optional: {right.without}")
        if lacks:
            needed = any(right.needed for right in lacks)
            if not self._may:
                yield self._nowhere()
            text = "what lacks is this Role, for who runs the cluster"
            remedy = "`kubectl apply -f -` takes it as it stands. All that flowbook uses: `flowbook doctor --rights`."
            yield Found("bad" if needed else "warn", text, remedy, rights.role(lacks, self.namespace, self.user))
        else:
            yield Found("ok", f"all {len(rights.RIGHTS)} rights that flowbook uses in namespace {self.namespace}")

    def _allowed(self, asked: tuple[str, str]) -> bool:
        told = self.api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", rights.review(*asked, self.namespace))
        return bool(told["status"].get("allowed"))

    def _nowhere(self) -> Found:
        """An account without any right: perhaps there is no such namespace, which few accounts may know."""
        there = f"{self.user} has no right in"
        try:
            self.api.get(f"/api/v1/namespaces/{self.namespace}")
        except Refused as refused:
            there = "the cluster has no" if refused.code == 404 else f"{self.user} has no right in, or the cluster has no,"
        text = f"{there} namespace {self.namespace}: no step runs"
        return Found("bad", text, "If another one is meant: kubernetes_namespace, @kubernetes(namespace=…) or the kubeconfig names it.")

    def admitted(self) -> Iterator[Found]:
        """Would the cluster take a pod of ours? Its admission looks at the namespace, names, standard, quota and service account."""
        body = podspec.manifest(self.ask, self.cluster)
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        try:
            self.api.request("POST", path, query={"dryRun": "All"}, body=body)
        except Refused as refused:
            told = podstatus.refused(refused.code, refused.body, "create pods", self.namespace)
            yield Found("warn" if told.waits else "bad", told.message)
            return
        yield Found("ok", f"a pod would be taken in namespace {self.namespace} (by a dry run)")

    def needs(self) -> Iterator[Found]:
        own = json.loads(dict(self.step.options.extra)["kubernetes"])
        account = own.get("service_account") or self.cluster.service_account
        found = self._get("serviceaccounts", account or "default")
        role = ((found or {}).get("metadata", {}).get("annotations") or {}).get("eks.amazonaws.com/role-arn")
        if found is not None and (account or role):
            yield Found("ok", f"service account {account or 'default'}" + (f", with the role {role}" if role else ""))
        if self.cluster.secret:
            yield from self._secret(self.cluster.secret)
        elif not account and not role and not own.get("secrets") and self.store.describe()["kind"] == "s3":
            yield Found(
                "warn" if self._pod else "bad",  # the pod itself tells: a node may give it a role
                "pods get no credentials for the store: neither kubernetes_secret nor kubernetes_service_account is set",
                "Make a Secret that holds them and name it: FLOWBOOK_KUBERNETES_SECRET=flowbook-store. Or name an account with a role in "
                "kubernetes_service_account. If nodes give pods a role, `--pod` shows it.",
                self._make_secret("flowbook-store"),
            )
        image = podspec.image_of(self.ask, self.cluster)
        if not self._pod:
            text = f"image {image}; whether nodes can pull it, and pods reach the store, only a pod shows: `--pod` tries one"
            yield Found("ok", f"{text} (with another image: `--with kubernetes:image=…`)")
            yield from self._nodes()

    def _nodes(self) -> Iterator[Found]:
        """Whether a node is there for what the pod asks. Most accounts may not see nodes."""
        pod = podspec.manifest(self.ask, self.cluster)
        own = json.loads(dict(self.step.options.extra)["kubernetes"])
        particular = podspec.asked(self.step.options) != SMALL or own.get("node_selector")
        wanted = podstatus.wants(pod)
        try:
            there = self.api.get("/api/v1/nodes")["items"]
        except Refused:
            if particular:
                text = f"whether a node is there for {wanted} cannot be seen: this account may not list nodes"
                yield Found("warn", text, "Only a pod shows it: `--pod` tries one.")
            return
        if found := nodes.suited(pod, there):
            yield Found("ok", f"{len(found)} of {counted(len(there), 'node')} could take a pod of {wanted}, if idle")
        else:
            text = f"none of the cluster's nodes ({len(there)}) has the labels and the size for a pod of {wanted}"
            remedy = "Fine where nodes are made when they are asked for (Karpenter): `--pod` shows it. Else ask for less, or set kubernetes_tiers."
            yield Found("warn", text, remedy)

    def _make_secret(self, name: str) -> str:
        return (
            f"kubectl create secret generic {name} -n {self.namespace} \\\n"
            "    --from-literal=AWS_ACCESS_KEY_ID=… --from-literal=AWS_SECRET_ACCESS_KEY=…"
        )

    def _secret(self, name: str) -> Iterator[Found]:
        make = self._make_secret(name)
        try:
            found = self.api.get(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        except Refused as refused:
            if refused.code == 404:
                text = f"there is no Secret {name} in namespace {self.namespace} (kubernetes_secret)"
                yield Found("bad", text, "Make it, or name another.", make)
            else:
                text = f"whether the Secret {name} is in namespace {self.namespace} cannot be seen: this account may not read Secrets"
                yield Found("ok", f"{text}, and need not")
            return
        have = sorted(found.get("data") or {})
        if "AWS_ACCESS_KEY_ID" in have and "AWS_SECRET_ACCESS_KEY" not in have:
            yield Found("bad", f"the Secret {name} has AWS_ACCESS_KEY_ID without AWS_SECRET_ACCESS_KEY", "Make it anew.", make)
        elif "AWS_ACCESS_KEY_ID" not in have:
            yield Found("warn", f"the Secret {name} has no AWS_ACCESS_KEY_ID", "Fine where pods get their credentials by a role.")
        else:
            yield Found("ok", f"Secret {name} in namespace {self.namespace}, with {', '.join(have)}")

    def _get(self, kind: str, name: str) -> Json:
        """The object; None where it may not be seen (the dry run has told if there is no such account)."""
        try:
            return self.api.get(f"/api/v1/namespaces/{self.namespace}/{kind}/{name}")
        except Refused:
            return None


def _python() -> str:
    """As a run tells it."""
    return sys.version.split()[0]


def options_of(withs: list[str]) -> Options:
    """The options of a step with these --with. Raises DefinitionError."""
    from flowbook.spec import arguments

    marks = [arguments.parse_with(text) for text in withs]
    for mark in marks:
        if mark.name not in ("kubernetes", "resources"):
            what = f"--with {mark.name} says nothing of a pod"
            raise DefinitionError(Finding("doctor", what, "--with kubernetes:… and --with resources:… are looked at."))
    return arguments.options_of([], "doctor", marks)
