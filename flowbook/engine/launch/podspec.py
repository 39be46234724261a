"""The pod of one attempt as the JSON that Kubernetes takes. Pure: no clock, no client, no store.

    Cluster     what the settings say of all pods (docs/kubernetes.md)
    Ask         what one attempt asks for: its place in the run, resources, image, …
    manifest    both together as a Pod

A pod keeps the restricted Pod Security Standard, holds no secret (credentials come by reference to a Secret, or by the identity of
its service account), and carries no code but a small script (boot.py), which fetches the rest from the store. Its name follows from
store, run, task and attempt, so "already exists" means: it is ours, watch it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowbook.errors import Finding, SettingError
from flowbook.spec.flow import Options, Resources, Step
from flowbook.spec.options import looks_secret
from flowbook.spec.secrets import DNS, IN_POD, carried, of_cluster
from flowbook.store import layout

Json = Any

LABEL = "flowbook"  # prefix of our labels and annotations
MANAGED = {"app.kubernetes.io/managed-by": "flowbook"}
CONTAINER = "step"
MEMORY_MB, LONGEST_S = 4096, 5 * 86400  # where a step asks for nothing else; as in Metaflow
SLACK_S = 3600  # the time limit is kept by the engine; the pod's own deadline, which counts the pulling of images too, only ends orphans
GRACE_S = 60  # between SIGTERM and SIGKILL: a checkpoint is finished meanwhile
PORT = 7399  # on the pod's loopback only; live frames
SCRATCH = "/flowbook"
KEY_FILE = f"{SCRATCH}/project.key"  # is never there: in a pod the project's key is a variable
NODE_LOST_S = 30  # a pod on a node that does not answer is given up after this
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

GPU_NAME, GPU_COUNT = "karpenter.k8s.aws/instance-gpu-name", "karpenter.k8s.aws/instance-gpu-count"
TIERS: tuple[Mapping[str, Json], ...] = (
    {"gpus": 0, "name": "cpu", "without": [GPU_COUNT]},
    {"gpus": 1, "name": "L4/L40S", "labels": {GPU_NAME: ["l4", "l40s"]}},
    {"gpus": 4, "name": "A100/H100", "labels": {GPU_NAME: ["a100", "h100"]}},
)
"""A step goes by the last row whose `gpus` it asks for at least. `labels`: a node must have one of the values (or the one value) of
each; `without`: it must not have these labels; `tolerations`: of the pod, by default that of GPU nodes where gpus > 0."""


@dataclass(frozen=True)
class Cluster:
    """The settings of all pods of a run; see SETTINGS in flowbook/settings.py for each."""

    namespace: str | None = None  # None: that of the kubeconfig's context, or of the pod that this engine runs in
    context: str | None = None
    image: str | None = None
    service_account: str | None = None
    secret: str | None = None  # a Secret whose keys become variables of each pod: the store's credentials
    tiers: tuple[Mapping[str, Json], ...] = TIERS
    max_pods: int = 100
    max_gpus: int = 16
    pending_s: float = 3600.0
    user: int = 1000
    template: bool = False
    scale: float = 1.0  # of all asks: for tests on small nodes

    @classmethod
    def read(cls, data: Mapping[str, Json]) -> Cluster:
        """From what travels over the engine's socket. Raises SettingError for a table of tiers that says nothing clear."""
        known = {each.name for each in dataclasses.fields(cls)}
        found = {name: value for name, value in data.items() if name in known and value is not None}
        if "tiers" in found:
            found["tiers"] = read_tiers(found["tiers"])
        return cls(**found)


def read_tiers(rows: Any) -> tuple[Mapping[str, Json], ...]:
    """The table of tiers, in the order of its `gpus`. Raises SettingError, naming the row."""
    if not isinstance(rows, list | tuple) or not rows:
        raise SettingError('the tiers must be a list of tables, such as [{gpus = 0}, {gpus = 1, labels = {kind = "l4"}}].')
    for row in rows:
        unknown = set(row) - {"gpus", "name", "labels", "without", "tolerations"} if isinstance(row, Mapping) else {"?"}
        if unknown or type(row.get("gpus")) is not int or row["gpus"] < 0:
            raise SettingError(
                f"the tier {json.dumps(row, default=str)} cannot be used: it needs gpus (a number), and may have name, labels, without, tolerations."
            )
        if not isinstance(row.get("labels", {}), Mapping) or not isinstance(row.get("without", []), list | tuple):
            raise SettingError(f"the tier of {row['gpus']} GPUs: labels is a table of label = value or values, without a list of labels.")
    found = sorted(rows, key=lambda row: int(row["gpus"]))
    if len({row["gpus"] for row in found}) < len(found):
        raise SettingError("two tiers begin at the same number of GPUs.")
    return tuple(found)


@dataclass(frozen=True)
class Ask:
    """One attempt's pod. `store` is what the store says of itself; `runtime` the blob of flowbook's own code; `order` the key of its order.

    `kubernetes` are the arguments of @kubernetes. `secrets`: the Secrets of the cluster that @secrets and --secret name.
    `python`: the version that the run was started with.
    """

    flow: str
    run: str
    step: str
    index: tuple[int, ...] = ()
    part: str = "body"
    attempt: int = 0
    store: Mapping[str, Json] = field(default_factory=dict)
    runtime: str = ""
    order: str = ""
    resources: Resources = field(default_factory=Resources)
    timeout_s: float | None = None
    image: str | None = None
    pip: tuple[str, ...] = ()
    spot: bool = False
    secrets: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    kubernetes: Mapping[str, Json] = field(default_factory=dict)
    python: str = ""
    key_secret: str | None = None  # the Secret that holds the project's key


def pod_of(options: Options, python: str) -> dict[str, Json]:
    """What a step says of its pod beside resources: fields of Ask."""
    extra = dict(options.extra)
    packages = json.loads(extra.get("pypi", "{}")).get("packages", {})
    pinned = tuple(f"{name}=={version}" if version[:1].isdigit() else f"{name}{version}" for name, version in packages.items())
    return {
        "kubernetes": json.loads(extra.get("kubernetes", "{}")),
        "image": options.image,
        "pip": (*options.pip, *pinned),
        "spot": options.spot,
        "secrets": of_cluster(options.secrets),
        "python": python,
    }


def in_cluster(options: Options) -> bool:
    """Whether a step asks for a pod of a cluster: by @kubernetes, or by --with kubernetes, which puts that above every step."""
    return any(name == "kubernetes" for name, _ in options.extra)


# ---- what is wrong with it -----------------------------------------------------------------------------------------------

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?\Z")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")


def findings(steps: Iterable[Step], cluster: Cluster, environ: Mapping[str, str], *, yes: bool = False) -> list[Finding]:
    """What is known to be wrong with the steps' pods before one is made. `yes`: the ceilings do not count."""
    return [finding for step in steps if in_cluster(step.options) for finding in _findings(step, cluster, environ, yes)]


def _is_path(given: Json) -> bool:
    return isinstance(given, str) and given.startswith("/")


def _are_names(given: Json) -> bool:
    return isinstance(given, str) or (isinstance(given, list) and all(isinstance(each, str) for each in given))


_SHAPES: dict[str, tuple[Callable[[Json], bool], str]] = {
    "secrets": (_are_names, '["db"]'),
    "image_pull_secrets": (_are_names, '["registry"]'),
    "image_pull_policy": (lambda given: given in ("Always", "IfNotPresent", "Never"), '"Always", "IfNotPresent" or "Never"'),
    "tolerations": (
        lambda given: isinstance(given, list) and all(isinstance(each, dict) for each in given),
        '[{"key": "dedicated", "operator": "Exists"}]',
    ),
    "persistent_volume_claims": (lambda given: isinstance(given, dict) and all(map(_is_path, given.values())), '{"claim": "/data"}'),
    "volumes": (
        lambda given: isinstance(given, dict) and all(_is_path(path) and isinstance(each, dict) for path, each in given.items()),
        '{"/models": {"configMap": {"name": "models"}}}',
    ),
    "use_tmpfs": (lambda given: isinstance(given, bool), "True"),
    "tmpfs_size": (lambda given: type(given) is int and given > 0, "512 (MiB)"),
    "tmpfs_path": (_is_path, '"/fast"'),
    "spot": (lambda given: isinstance(given, bool), "True"),
    "service_account_token": (lambda given: isinstance(given, bool), "True"),
    "executable": (lambda given: isinstance(given, str), '"/opt/conda/bin/python"'),
    "gpu_vendor": (lambda given: isinstance(given, str), '"nvidia"'),
    "security_context": (lambda given: isinstance(given, dict), '{"readOnlyRootFilesystem": True}'),
    "template": (lambda given: isinstance(given, dict), '{"spec": {"priorityClassName": "low"}}'),
}
"""Argument of @kubernetes → whether a value has the form of one, and an example. What is missing here is looked at below."""


def misshapen(step: str, options: Options) -> list[Finding]:
    """Arguments of @kubernetes from which no pod can be made."""
    own = json.loads(dict(options.extra).get("kubernetes", "{}"))
    return [
        Finding(f"step {step}", f"@kubernetes({name}={own[name]!r}) cannot be used", f"Write {name}={example}.")
        for name, (fits, example) in _SHAPES.items()
        if own.get(name) is not None and not fits(own[name])
    ]


def _findings(step: Step, cluster: Cluster, environ: Mapping[str, str], yes: bool) -> Iterator[Finding]:
    if wrong := misshapen(step.name, step.options):
        yield from wrong
        return
    own, where = json.loads(dict(step.options.extra)["kubernetes"]), f"step {step.name}"
    gpus = asked(step.options).gpu
    if gpus > cluster.max_gpus and not yes:
        what = f"one task asks for {gpus} GPUs, and a run may have {cluster.max_gpus} (kubernetes_max_gpus)"
        yield Finding(where, what, "Run it with --yes if that is meant, or ask for less.")
    if "template" in own and not cluster.template:
        yield Finding(where, "a raw pod template is not allowed here", "Whoever runs the cluster can set kubernetes_template = true.")
    for name in ("namespace", "service_account"):
        if own.get(name) is not None and not (isinstance(own[name], str) and DNS.match(own[name])):
            yield Finding(where, f"{name} {own[name]!r} is no name in Kubernetes", "Use lower-case letters, digits and dashes.")
    for name in ("secrets", "image_pull_secrets"):
        for each in _names(own.get(name)):
            if not isinstance(each, str) or not DNS.match(each):
                yield Finding(where, f"{each!r} in {name} is no name of a Secret", "Use lower-case letters, digits and dashes.")
    for name, key, value in _pairs(own):
        if not _LABEL_KEY.match(key) or (name != "annotations" and not _LABEL_VALUE.match(value)):
            rule = "At most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends; a prefix ends in '/'."
            yield Finding(where, f"Kubernetes takes no {key!r} = {value!r} in {name}", rule)
    image = step.options.image or own.get("image")
    if image is not None and (not isinstance(image, str) or not re.fullmatch(r"[\w.:/@-]+", image)):
        yield Finding(where, f"{image!r} is no name of an image", "Write REGISTRY/NAME:TAG, such as python:3.11.")
    for name, given in step.options.env:
        if given is None and looks_secret(name, environ.get(name, "")):
            what = f"--env {name} would write a secret into the pod, where others can read it"
            yield Finding(
                where, what, f"Put {name} into a Secret of the cluster, and name that: --secret kubernetes:NAME (@secrets(sources=[…]))."
            )


def _pairs(own: Mapping[str, Json]) -> Iterator[tuple[str, str, str]]:
    for name in ("labels", "annotations", "node_selector"):
        given = own.get(name)
        try:
            found = _selector(given) if name == "node_selector" and given else _texts(given)
        except (ValueError, TypeError):
            found = {"": str(given)}
        yield from ((name, key, value) for key, value in found.items())


# ---- names --------------------------------------------------------------------------------------------------------------


def _slug(text: str, most: int) -> str:
    """Lower-case letters, digits and single dashes; "x" if nothing of the text is left.

    >>> _slug("Train_Flow.v2", 8)
    'train-fl'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].strip("-") or "x"


def _digest(*parts: Json) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def run_label(store: Mapping[str, Json], flow: str, run: str) -> str:
    """Names a run among all stores that use a cluster, as the value of a label (at most 63 characters)."""
    return f"{_slug(flow, 30)}-{_slug(run, 20)}-{_digest(dict(store), flow, run)}"


def pod_name(ask: Ask) -> str:
    """At most 63 characters, of DNS; the same for the same store, run, task and attempt, and for no other."""
    task = layout.task_key(ask.index, ask.part)
    digest = _digest(dict(ask.store), ask.flow, ask.run, ask.step, task, ask.attempt)
    place = f"-{_slug(task, 12)}" if task != "0" else ""
    return f"{_slug(ask.flow, 16)}-{_slug(ask.run, 8)}-{_slug(ask.step, 12)}{place}-{digest}"


def labels_of(ask: Ask) -> dict[str, str]:
    return {
        **MANAGED,
        f"{LABEL}/run": run_label(ask.store, ask.flow, ask.run),
        f"{LABEL}/flow": _slug(ask.flow, 63),
        f"{LABEL}/step": _slug(ask.step, 63),
        f"{LABEL}/task": _slug(layout.task_key(ask.index, ask.part), 63),
        f"{LABEL}/attempt": str(ask.attempt),
    }


def annotations_of(ask: Ask) -> dict[str, str]:
    """The exact words, where a label can only hold some characters."""
    return {
        f"{LABEL}/flow": ask.flow,
        f"{LABEL}/run": ask.run,
        f"{LABEL}/step": ask.step,
        f"{LABEL}/task": layout.task_key(ask.index, ask.part),
        f"{LABEL}/store": json.dumps(dict(ask.store), sort_keys=True),
        "karpenter.sh/do-not-disrupt": "true",  # heeded while the pod runs; a finished one holds no node
    }


# ---- resources ----------------------------------------------------------------------------------------------------------


def asked(options: Options) -> Resources:
    """@resources and the amounts of @kubernetes together: of each the larger, as in Metaflow."""
    given, own = options.resources, dict(json.loads(dict(options.extra).get("kubernetes", "{}")))
    return Resources(
        cpu=max(given.cpu, float(own.get("cpu") or 0)),
        memory_mb=_larger(given.memory_mb, own.get("memory")) or MEMORY_MB,
        gpu=max(given.gpu, int(own.get("gpu") or 0)),
        disk_mb=_larger(given.disk_mb, own.get("disk")),
        shared_memory_mb=_larger(given.shared_memory_mb, own.get("shared_memory")),
    )


def _larger(one: int | None, other: Any) -> int | None:
    return max((int(each) for each in (one, other) if each), default=None)


def requests(ask: Resources, scale: float = 1.0, vendor: str = "nvidia") -> dict[str, str]:
    """Kubernetes requests for one attempt; limits are the same, but for less than a core (see `limits`).

    Memory and disk are megabytes of 10**6 bytes (the seed, "The @resources Decorator": 64000 is 64 GB), hence "64000M", never "Mi".
    `cpu` is cores, `gpu` whole devices, absent when 0. `scale` shrinks cpu, memory and disk for small test nodes.

    >>> requests(Resources(cpu=8, memory_mb=32000, gpu=1))
    {'cpu': '8', 'memory': '32000M', 'nvidia.com/gpu': '1'}
    """
    found = {"cpu": _cpu(ask.cpu * scale), "memory": f"{_scaled(ask.memory_mb or MEMORY_MB, scale, 64)}M"}
    if ask.disk_mb:
        found["ephemeral-storage"] = f"{_scaled(ask.disk_mb, scale, 16)}M"
    if ask.gpu:
        found[f"{vendor}.com/gpu"] = str(ask.gpu)
    return found


def limits(amounts: Mapping[str, str], cores: float) -> dict[str, str]:
    """The limits beside requests. A pod that asks for less than a core may use up to one where the node has it idle.

    For with a limit of 10m a Python takes half a minute to import what a worker is made of.
    """
    return {**amounts, "cpu": "1"} if cores < 1 else dict(amounts)


def _scaled(megabytes: int, scale: float, least: int) -> int:
    return megabytes if scale == 1 else max(least, math.ceil(megabytes * scale))


def _cpu(cores: float) -> str:
    """``8`` or ``500m``, at least a thousandth."""
    thousandths = max(1, round(cores * 1000))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def tier_of(gpus: int, tiers: tuple[Mapping[str, Json], ...] = TIERS) -> Mapping[str, Json]:
    """The row for so many GPUs. A table that begins above it has none for it, and then any node will do."""
    return next((row for row in reversed(tiers) if row["gpus"] <= gpus), {"gpus": 0})


# ---- the pod ------------------------------------------------------------------------------------------------------------


@functools.cache
def _boot() -> str:
    import importlib.resources  # not needed before there is a pod

    return importlib.resources.files("flowbook.engine.launch").joinpath("boot.py").read_text()


HUB_IMAGES = ("JUPYTER_IMAGE_SPEC", "JUPYTER_IMAGE")  # as hubs tell the image of the kernel's own pod


def hub_image(environ: Mapping[str, str]) -> str | None:
    return next((environ[name] for name in HUB_IMAGES if environ.get(name)), None)


def image_of(ask: Ask, cluster: Cluster) -> str:
    """--image or @kubernetes(image=…), else the setting, else the stock image of the Python that started the run."""
    minor = ".".join(ask.python.split(".")[:2]) or "3"
    own: str | None = ask.kubernetes.get("image")
    return ask.image or own or cluster.image or f"python:{minor}"


def namespace_of(ask: Ask, cluster: Cluster) -> str | None:
    own: str | None = ask.kubernetes.get("namespace")
    return own or cluster.namespace


def manifest(ask: Ask, cluster: Cluster, owner: Mapping[str, str] | None = None) -> dict[str, Json]:
    """The Pod of an attempt. `owner`: an object of the same namespace, with whose end the pod goes: {apiVersion, kind, name, uid}."""
    own = ask.kubernetes
    metadata: dict[str, Json] = {
        "name": pod_name(ask),
        "labels": {**_texts(own.get("labels")), **labels_of(ask)},
        "annotations": {**_texts(own.get("annotations")), **annotations_of(ask)},
    }
    if cluster.scale != 1:
        metadata["annotations"][f"{LABEL}/scale"] = f"{cluster.scale:g}"  # who reads the pod must not take its amounts for the step's
    if namespace := namespace_of(ask, cluster):
        metadata["namespace"] = namespace
    if owner:
        metadata["ownerReferences"] = [dict(owner)]
    pod: dict[str, Json] = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": _spec(ask, cluster)}
    if cluster.template and isinstance(own.get("template"), Mapping):
        pod = merged(own["template"], pod)
    return pod


def _spec(ask: Ask, cluster: Cluster) -> dict[str, Json]:
    own = ask.kubernetes
    tier = tier_of(ask.resources.gpu, cluster.tiers)
    volumes, mounts = _volumes(ask)
    limit = ask.timeout_s + SLACK_S if ask.timeout_s is not None else LONGEST_S
    spec: dict[str, Json] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": math.ceil(limit + cluster.pending_s),
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": bool(own.get("service_account_token", False)),
        "enableServiceLinks": False,  # variables for each Service of the namespace: hundreds in a busy one
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(ask, cluster, mounts)],
        "volumes": volumes,
        "tolerations": _tolerations(ask, tier),
    }
    if account := own.get("service_account") or cluster.service_account:
        spec["serviceAccountName"] = account
    if own.get("image_pull_secrets"):
        spec["imagePullSecrets"] = [{"name": name} for name in _names(own["image_pull_secrets"])]
    if own.get("node_selector"):
        spec["nodeSelector"] = _selector(own["node_selector"])
    if terms := _terms(ask, tier):
        node = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": terms}]}}
        spec["affinity"] = {"nodeAffinity": node}
    return spec


def _container(ask: Ask, cluster: Cluster, mounts: list[Json]) -> dict[str, Json]:
    own = ask.kubernetes
    amounts = requests(ask.resources, cluster.scale, own.get("gpu_vendor") or "nvidia")
    secrets = [*filter(None, [cluster.secret, ask.key_secret]), *_names(own.get("secrets"))]
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container: dict[str, Json] = {
        "name": CONTAINER,
        "image": image_of(ask, cluster),
        "command": [own.get("executable") or "python3", "-c", _boot()],
        "env": [{"name": name, "value": value} for name, value in _environment(ask, cluster).items()],
        "resources": {"limits": limits(amounts, ask.resources.cpu * cluster.scale), "requests": amounts},
        "securityContext": {**security, **(own.get("security_context") or {})},
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # a worker that never came to speak has left its last lines there
    }
    sources: list[Json] = [{"secretRef": {"name": name}} for name in dict.fromkeys(secrets)]
    sources += [{"prefix": carried(number), "secretRef": {"name": name}} for number, name in enumerate(ask.secrets)]
    if sources:
        container["envFrom"] = sources
    if own.get("image_pull_policy"):
        container["imagePullPolicy"] = own["image_pull_policy"]
    return container


def _environment(ask: Ask, cluster: Cluster) -> dict[str, str]:
    threads = str(max(1, math.ceil(ask.resources.cpu)))
    told = {
        "store": dict(ask.store),
        "runtime": ask.runtime,
        "order": ask.order,
        "pip": list(ask.pip),
        "python": ask.python,
        "port": PORT,
        "grace_s": GRACE_S - 10,
    } | ({"credentials": cluster.secret} if cluster.secret else {})
    return {
        **dict.fromkeys(THREADS, threads),
        "HOME": SCRATCH,
        "TMPDIR": f"{SCRATCH}/tmp",
        **ask.env,
        **({IN_POD: " ".join(ask.secrets)} if ask.secrets else {}),
        "FLOWBOOK_POD": json.dumps(told, sort_keys=True, separators=(",", ":")),
    }


def _volumes(ask: Ask) -> tuple[list[Json], list[Json]]:
    own = ask.kubernetes
    volumes: list[Json] = [{"name": "scratch", "emptyDir": {}}]
    mounts: list[Json] = [{"name": "scratch", "mountPath": SCRATCH}]
    shared = ask.resources.shared_memory_mb
    if shared:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared}M"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if own.get("use_tmpfs") or own.get("tmpfs_size"):
        size = {"sizeLimit": f"{own['tmpfs_size']}Mi"} if own.get("tmpfs_size") else {}
        volumes.append({"name": "tmpfs", "emptyDir": {"medium": "Memory", **size}})
        mounts.append({"name": "tmpfs", "mountPath": own.get("tmpfs_path") or "/metaflow_temp"})
    for number, (claim, path) in enumerate(dict(own.get("persistent_volume_claims") or {}).items()):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"claim-{number}", "mountPath": path})
    for number, (path, source) in enumerate(dict(own.get("volumes") or {}).items()):
        volumes.append({"name": f"volume-{number}", **source})
        mounts.append({"name": f"volume-{number}", "mountPath": path})
    return volumes, mounts


def _terms(ask: Ask, tier: Mapping[str, Json]) -> list[Json]:
    """What a node must be: of the step's tier, and of the capacity type that --spot asks for."""
    terms: list[Json] = []
    for label, values in dict(tier.get("labels") or {}).items():
        listed = [values] if isinstance(values, str) else list(values)
        terms.append({"key": label, "operator": "In", "values": [str(value) for value in listed]})
    terms += [{"key": label, "operator": "DoesNotExist"} for label in tier.get("without") or ()]
    if ask.spot or ask.kubernetes.get("spot"):
        terms.append({"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]})
    return terms


def _tolerations(ask: Ask, tier: Mapping[str, Json]) -> list[Json]:
    vendor = ask.kubernetes.get("gpu_vendor") or "nvidia"
    usual = [{"key": f"{vendor}.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if ask.resources.gpu else []
    lost = [
        {"key": f"node.kubernetes.io/{trouble}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_S}
        for trouble in ("not-ready", "unreachable")
    ]
    return [*tier.get("tolerations", usual), *(ask.kubernetes.get("tolerations") or ()), *lost]


def _selector(given: Json) -> dict[str, str]:
    """A dict, or Metaflow's ``a=b,c=d``."""
    if isinstance(given, Mapping):
        return _texts(given)
    parts = given.split(",") if isinstance(given, str) else list(given)
    return dict(part.split("=", 1) for part in parts)


def _texts(given: Json) -> dict[str, str]:
    return {str(name): str(value) for name, value in dict(given or {}).items()}


def _names(given: Json) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def merged(template: Mapping[str, Json], ours: Mapping[str, Json]) -> dict[str, Json]:
    """A template with our pod laid over it: tables are merged, lists joined (ours last), and of a single value ours counts.

    The template's first container is merged with ours, since there is one that does the work.
    """
    found = copy.deepcopy(dict(template))
    for name, value in ours.items():
        before = found.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            found[name] = merged(before, value)
        elif name == "containers" and isinstance(before, list) and before:
            found[name] = [merged(before[0], value[0]), *before[1:]]
        elif name != "command" and isinstance(before, list) and isinstance(value, list):
            found[name] = [*before, *value]
        else:
            found[name] = copy.deepcopy(value)
    return found
