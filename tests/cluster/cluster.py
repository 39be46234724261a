"""Brings a cluster up, tells what runs, and takes it down.

All of it lives in namespaces of its own (PID, mount, network) below one process, `init.py`: ending that one ends everything, and nothing
of this machine's is touched. What is outside, and is removed again: the cluster's folder, one cgroup, one end of a virtual cable.
So several clusters may run at once, none can reach another network, and none survives a start that failed or a killed test run.

`start` is the story; what the parts are is in parts.py. `cluster.json` in the cluster's folder is what others read.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.cluster import images, optional, parts
from tests.cluster.build import NEEDED, CannotBuild, build, cache, missing, only_one, why_not_go
from tests.cluster.kube import Kube, Refused
from tests.cluster.parts import NODE, Layout, Part

RIGHTS = images.ROOT / "flowbook" / "engine" / "launch" / "rights.yaml"
NAMESPACE = "flowbook"
BUCKET = "flowbook"
SECRET = "flowbook-store"  # in that namespace, with the keys of the S3 server: what a person's runs use
ACCOUNTS = ("engine", "kernel", "step")
TOOLS = {  # program → Debian package
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "etcd": "etcd-server",
    "busybox": "busybox-static",
    "mmdebstrap": "mmdebstrap",
    "openssl": "openssl",
    "mount": "mount",
    "unshare": "util-linux",
    parts.CNI_PROGRAMS + "/bridge": "containernetworking-plugins",
}
LONGEST_HOME = 70  # of a socket's path, 107 bytes may be used
TUNED = {"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
TUNED |= {"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000"}
READY_S = 180
TOKEN_H = 24 * 90


class ClusterError(Exception):
    """The cluster cannot be brought up or down."""


class NotHere(ClusterError):
    """This machine cannot run a cluster."""


@dataclass(frozen=True)
class S3:
    """An S3 server and what opens it."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    bucket: str


@dataclass
class Cluster:
    """A running cluster. `home` is None for one that is not ours (FLOWBOOK_TEST_KUBECONFIG)."""

    kubeconfig: Path
    s3: S3 | None
    image: str  # a stock Python 3.11
    home: Path | None = None
    node: str = NODE
    held: socket.socket | None = field(default=None, repr=False)

    @property
    def kube(self) -> Kube:
        """As administrator."""
        return Kube(self.kubeconfig)

    def namespace(self, name: str, *, enforce: str = "restricted") -> Namespace:
        """A new namespace with the accounts of rights.yaml. Raises Refused if there is one of that name."""
        labels = {"pod-security.kubernetes.io/enforce": enforce}
        self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        inside = Kube(self.kubeconfig, name)
        inside.apply(RIGHTS)
        inside.run("wait", "serviceaccount/default", "--for=create", f"--timeout={READY_S}s", limit_s=READY_S + 10)
        return Namespace(self, name)

    @contextlib.contextmanager
    def fitted(self, gpus: int = 0, labels: Mapping[str, str] | None = None) -> Iterator[None]:
        """The node has so many NVIDIA GPUs, and these labels (a tier is labels), until the block ends; the scheduler places by it.

        One at a time for all tests that share the cluster: the others wait.
        """
        self._own("the node can be changed")
        with only_one("node"):
            try:
                self.set_gpus(gpus)
                self.set_labels(dict(labels or {}))
                yield
            finally:
                self.set_gpus(0)
                self.set_labels(dict.fromkeys(labels or {}))

    def set_gpus(self, count: int) -> None:
        amount = {"nvidia.com/gpu": str(count) if count else None}
        self.kube.patch_status("node", self.node, {"capacity": amount, "allocatable": amount})

    def set_labels(self, labels: Mapping[str, str | None]) -> None:
        """None removes a label."""
        self.kube.patch("node", self.node, {"metadata": {"labels": labels}})

    def load(self, archive: Path) -> None:
        """Puts an image, an archive of `podman save`, onto the node."""
        _import(_Init(_layout(self._own("images are loaded"))), self._own(""), archive)

    def flowbook_image(self) -> str:
        """Builds docker/Dockerfile, puts the image onto the node, and returns its name."""
        home = self._own("an image can be built")
        self.load(images.flowbook(home))
        return images.FLOWBOOK

    def science_image(self) -> str:
        """Puts a Python with scikit-learn onto the node, and returns the image's name."""
        home = self._own("an image can be made")
        self.load(images.science(home))
        return images.SCIENCE

    def parts(self) -> dict[str, Any]:
        """Name → pid within the cluster, exit code or None, path of the log."""
        return dict(_Init(_layout(self._own("parts are known"))).ask("status"))

    def stop(self, name: str) -> None:
        """Ends one part, as if it had failed: for tests of what happens then."""
        _Init(_layout(self._own("a part can be stopped"))).ask("stop", name=name)

    def restart(self, name: str) -> None:
        """Starts a part again that was stopped."""
        layout = _layout(self._own("a part can be started"))
        known = {each.name: each for each in (*_first(layout), *parts.controllers(layout))}
        _start(_Init(layout), layout, known[name])

    def _own(self, what: str) -> Path:
        if self.home is None:
            raise ClusterError(f"only where the cluster is our own {what}; this one was given by FLOWBOOK_TEST_KUBECONFIG")
        return self.home


@dataclass(frozen=True)
class Namespace:
    """One namespace and its accounts."""

    cluster: Cluster
    name: str

    @property
    def kube(self) -> Kube:
        """As administrator, in this namespace."""
        return Kube(self.cluster.kubeconfig, self.name)

    def account(self, account: str) -> Kube:
        """As `engine`, `kernel` or `step`."""
        return Kube(self.kubeconfig(account), self.name)

    def kubeconfig(self, account: str) -> Path:
        """A kubeconfig with a token of the account `engine`, `kernel` or `step`, whose current namespace is this one."""
        folder = self.cluster.kubeconfig.parent
        path = folder / f"{self.name}-{account}"
        if not path.exists():
            token = self.kube.run("create", "token", f"flowbook-{account}", f"--duration={TOKEN_H}h").strip()
            given = json.loads(Kube(self.cluster.kubeconfig).run("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
            _write_secretly(path, json.dumps(_kubeconfig(given["clusters"][0]["cluster"], {"token": token}, self.name), indent=1))
        return path


# ---- up and down -----------------------------------------------------------------------------------------------------------


def why_not(*, may_build: bool = False) -> str:
    """Why no cluster can run here, "" if one can. `may_build`: what Go has still to build is no reason then."""
    if sys.platform != "linux":
        return "a cluster needs Linux"
    if os.geteuid() != 0:
        return "a cluster needs root"
    if absent := sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None}):
        return f"packages are missing: apt-get install {' '.join(absent)}"
    if lacking := missing():
        if not may_build:
            return f"the programs of {' and '.join(lacking)} are not built; .ci/cluster builds them (needs Go)"
        return why_not_go()
    return ""


def default_home() -> Path:
    return cache() / "run"


def running(home: Path) -> Cluster | None:
    """The cluster that runs in this folder, if one does and is whole."""
    try:
        about = json.loads((home / "cluster.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if not _alive(about["process"]):
        return None
    return Cluster(Path(about["kubeconfig"]["admin"]), S3(**about["s3"]), about["images"]["python"], home)


def up(home: Path, extra: tuple[str, ...] = (), *, keep: bool = True) -> Cluster:
    """Brings up a cluster in the folder `home`, or finds the one that runs there, and adds the optional parts named.

    keep=False: it ends when the last process ends that called this so; `let_go` ends it in good order. Raises ClusterError, and
    then leaves nothing.
    """
    home = home.resolve()
    if reason := why_not(may_build=True):
        raise NotHere(f"no cluster can run here: {reason}")
    if len(str(home)) > LONGEST_HOME:
        raise ClusterError(f"{home} is too long a path for sockets in it; choose one of at most {LONGEST_HOME} characters with --dir")
    if any(home.is_relative_to(hidden) for hidden in ("/run", "/var/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet")):
        raise ClusterError(f"{home} is where the cluster has folders of its own; choose another with --dir")
    try:
        build((*NEEDED, *(module for name in extra for module in optional.MODULES[name])))
        archive = images.python()
    except (CannotBuild, images.CannotMakeImage) as error:
        raise ClusterError(str(error)) from error
    with only_one("up"):
        found = running(home)
        if found is None:
            down(home)
            if home.exists() and any(home.iterdir()):
                raise ClusterError(f"{home} is not empty and no cluster; choose another folder with --dir")
            found = _bring_up(home, archive, keep)
        if not keep and found.held is None:
            found.held = _Init(_layout(home)).hold()
        for name in extra:
            _add(found, name)
        return found


def let_go(cluster: Cluster) -> None:
    """Says that this process has no more need of it. The last one to say so takes the cluster down, unless it is kept."""
    if cluster.held is None or cluster.home is None:
        return
    with only_one("up"):
        left = _Init(_layout(cluster.home)).ask("holders")
        cluster.held.close()
        cluster.held = None
        if left["holders"] == 1 and not left["kept"]:
            down(cluster.home)


def down(home: Path) -> bool:
    """Ends the cluster of this folder, or what is left of one, and removes the folder. Returns whether there was one."""
    home = home.resolve()
    try:
        process = json.loads((home / "process.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if _alive(process):
        psutil.Process(process["pid"]).kill()  # --kill-child: init.py goes with it, and with that all else
    layout = Layout(home, process["host"], process["cgroup"])
    _wait(lambda: not _inhabitants(process["namespace"]), "the cluster's processes end", 60)
    for folder in _cgroups(layout):
        _remove_cgroup(folder)
    _wait(lambda: not Path("/sys/class/net", process["cable"]).exists(), f"the kernel removes {process['cable']}", 60)
    shutil.rmtree(home)
    return True


def _bring_up(home: Path, archive: Path, keep: bool) -> Cluster:
    home.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()  # init.py ends when `writing` closes, however this process ends
    try:
        layout = Layout(home, _free_address(), f"/flowbook-{_identity(home)}")
        _enclose(layout, reading)
        cluster = start(layout, archive)
        if keep:
            _Init(layout).ask("keep")
        else:
            cluster.held = _Init(layout).hold()
    except BaseException:
        down(home)
        raise
    finally:
        os.close(reading)
        os.close(writing)
    return cluster


def _enclose(layout: Layout, lifeline: int) -> None:
    """Starts init.py in new namespaces, and connects its network to this machine by a virtual cable of two addresses."""
    cable = f"fb{_identity(layout.home)}"
    control = layout.at("control.sock")
    process = subprocess.Popen(
        ["unshare", "--fork", "--pid", "--mount", "--net", "--kill-child", "--mount-proc", sys.executable, "-I", _INIT, control],
        stdin=lifeline,
        stdout=subprocess.DEVNULL,
        stderr=open(layout.home / "init.log", "wb"),  # noqa: SIM115 - the child's
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"},
        start_new_session=True,
    )
    about = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "host": layout.host}
    about |= {"cgroup": layout.cgroup, "cable": cable, "namespace": ""}
    (layout.home / "process.json").write_text(json.dumps(about))

    def served() -> bool:
        if process.poll() is not None:
            raise ClusterError(
                f"no namespaces can be made here.\n{_tail(layout.home / 'init.log')}\n  It needs root that may mount (CAP_SYS_ADMIN)."
            )
        return Path(control).exists()

    _wait(served, "the cluster's first process answers", 60)
    inner = psutil.Process(process.pid).children()[0].pid
    about["namespace"] = os.readlink(f"/proc/{inner}/ns/pid")
    (layout.home / "process.json").write_text(json.dumps(about))
    _host("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(inner))
    _host("ip", "address", "add", f"{_neighbour(layout.host)}/30", "dev", cable)
    _host("ip", "link", "set", cable, "up")


def start(layout: Layout, archive: Path) -> Cluster:
    """Starts all parts, in the order in which they need each other, and waits for the node and the accounts."""
    init = _Init(layout)
    _furnish(init, layout)
    parts.write(layout)
    _certificates(layout)
    for cgroup in _cgroups(layout):
        _make_cgroup(cgroup)
    for part in _first(layout):
        _start(init, layout, part)

    pool = ThreadPoolExecutor(1)
    try:
        loading = pool.submit(_load_images, init, layout, archive)
        admin = Kube(Path(layout.at("kube", "admin")))
        _wait_for(init, lambda: _ready(admin), "kube-apiserver", "is ready")
        for part in parts.controllers(layout):
            _start(init, layout, part)
        _wait_for(init, lambda: _node_ready(admin), "kubelet", "reports its node as Ready")
        loading.result()
    finally:
        pool.shutdown(wait=False)  # if something failed: it ends with the cluster
    s3 = S3(layout.s3, parts.S3_KEY, parts.S3_SECRET, parts.S3_REGION, BUCKET)
    _wait_for(init, lambda: _answers(layout.host, parts.S3_PORT), "versitygw", "answers")
    layout.home.joinpath("s3", BUCKET).mkdir()  # a bucket of the gateway is a folder

    cluster = Cluster(admin.kubeconfig, s3, images.PYTHON, layout.home)
    namespace = cluster.namespace(NAMESPACE)
    process = json.loads((layout.home / "process.json").read_text())
    about = {
        "process": process,
        "kubeconfig": {"admin": str(cluster.kubeconfig)} | {each: str(namespace.kubeconfig(each)) for each in ACCOUNTS},
        "namespace": NAMESPACE,
        "node": NODE,
        "s3": vars(s3),
        "images": {"python": images.PYTHON},
        "parts": cluster.parts(),
    }
    _write_secretly(layout.home / "cluster.json", json.dumps(about, indent=1))
    return cluster


def give_secret(cluster: Cluster) -> None:
    """Makes the Secret that `to_run` names, unless it is there. Raises ClusterError."""
    assert cluster.s3 is not None
    keys = {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key}
    inside = Kube(cluster.kubeconfig, NAMESPACE)
    try:
        if not inside.run("get", "secret", SECRET, "--ignore-not-found", "-o", "name"):
            inside.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": keys})
    except Refused as error:
        raise ClusterError(f"the Secret {SECRET} cannot be made: {error}") from error


def to_run(cluster: Cluster) -> dict[str, str]:
    """The variables with which flows of a person run on a cluster of our own: `python flow.py --with kubernetes run`."""
    assert cluster.s3 is not None and cluster.home is not None
    return {
        "KUBECONFIG": str(cluster.home / "kube" / f"{NAMESPACE}-engine"),
        "FLOWBOOK_STORE": f"s3://{cluster.s3.bucket}/try",
        "AWS_ENDPOINT_URL": cluster.s3.endpoint,
        "AWS_ACCESS_KEY_ID": cluster.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key,
        "AWS_REGION": cluster.s3.region,
        "FLOWBOOK_KUBERNETES_SECRET": SECRET,
        "FLOWBOOK_KUBERNETES_IMAGE": cluster.image,
    }


def _first(layout: Layout) -> list[Part]:
    """What needs nothing else."""
    return [parts.containerd(layout), parts.etcd(layout), parts.versitygw(layout), parts.apiserver(layout)]


def _add(cluster: Cluster, name: str) -> None:
    """Adds an optional part to a running cluster, if it is not there."""
    assert cluster.home is not None
    layout = _layout(cluster.home)
    init = _Init(layout)
    there = init.ask("status")
    try:
        for part in optional.PARTS[name](layout, cluster.kube, cluster.load):
            if there.get(part.name, {"code": 0})["code"] is not None:
                _start(init, layout, part)
        _wait_for(init, lambda: optional.ready(name, cluster.kube), optional.WATCHED[name], "is ready")
    except (Refused, CannotBuild, images.CannotMakeImage) as error:
        raise ClusterError(f"{name} cannot be added: {error}") from error


# ---- inside ----------------------------------------------------------------------------------------------------------------

_INIT = str(Path(__file__).parent / "init.py")


class _Init:
    """The way to the cluster's first process."""

    def __init__(self, layout: Layout) -> None:
        self.path = layout.at("control.sock")

    def ask(self, do: str, **about: Any) -> Any:
        """Raises ClusterError if it could not be done."""
        with socket.socket(socket.AF_UNIX) as line:
            try:
                line.connect(self.path)
            except OSError as error:
                raise ClusterError(
                    f"the cluster of {Path(self.path).parent} does not answer ({error.strerror}); end it: {_down(self.path)}"
                ) from error
            line.sendall(json.dumps({"do": do, **about}).encode() + b"\n")
            answer = json.loads(line.makefile("rb").readline() or b'{"error": "it ended meanwhile"}')
        if "error" in answer:
            raise ClusterError(f"{about.get('name') or do}: {answer['error']}")
        return answer

    def hold(self) -> socket.socket:
        """The cluster stays while this connection is open."""
        line = socket.socket(socket.AF_UNIX)
        line.connect(self.path)
        line.sendall(b'{"do": "hold"}\n')
        if not line.recv(4096):
            raise ClusterError(f"the cluster of {Path(self.path).parent} ended just now; try again")
        return line

    def run(self, *argv: str, limit_s: float = 120) -> str:
        """Runs a command inside. Raises ClusterError with the end of what it said."""
        answer = self.ask("run", argv=list(argv), limit_s=limit_s)
        if answer["code"]:
            raise ClusterError(f"{' '.join(argv)} failed: {answer['output'].strip()[-1500:]}")
        return str(answer["output"])


def _furnish(init: _Init, layout: Layout) -> None:
    """Gives the cluster folders that it shares with nobody, a network that leads nowhere but here, and its own idea of the kernel."""
    for path in ("/var/lib/cni", "/var/lib/kubelet", layout.at("etcd")):
        Path(path).mkdir(parents=True, exist_ok=True)
    for path in ("/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet", layout.at("etcd")):
        init.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path)
    Path(layout.at("etcd")).chmod(0o700)
    init.run("chmod", "700", layout.at("etcd"))
    # The kubelet sets these for the whole machine unless they are so already. It shall believe so, and change nothing.
    fake = layout.home / "sysctl"
    for name, value in TUNED.items():
        if Path("/proc/sys", name).exists():
            fake.mkdir(exist_ok=True)
            believed = fake / name.replace("/", ".")
            believed.write_text(value)
            init.run("mount", "--bind", str(believed), f"/proc/sys/{name}")
    init.run("ip", "link", "set", "lo", "up")
    init.run("ip", "address", "add", f"{layout.host}/30", "dev", "eth0")
    init.run("ip", "link", "set", "eth0", "up")
    init.run("ip", "route", "add", "unreachable", "default")
    init.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def _start(init: _Init, layout: Layout, part: Part) -> None:
    init.ask("start", name=part.name, argv=part.argv, env=part.env, log=layout.at("logs", f"{part.name}.log"))


def _wait_for(init: _Init, condition: Callable[[], bool], part: str, what: str) -> None:
    """Waits, and says which part is to blame if that takes too long or one ends meanwhile."""

    def look() -> bool:
        for name, state in init.ask("status").items():
            if state["code"] is not None:
                log = Path(state["log"])
                raise ClusterError(f"{name} ended with code {state['code']}. The end of its log:\n{_tail(log)}\n{_advice(log)}")
        return condition()

    try:
        _wait(look, f"{part} {what}", READY_S)
    except TimeoutError as error:
        log = Path(init.ask("status")[part]["log"])
        raise ClusterError(f"{error}. The end of the log of {part}:\n{_tail(log)}\n{_advice(log)}") from None


def _advice(log: Path) -> str:
    text = log.read_text(errors="replace")[-20_000:] if log.exists() else ""
    for sign, advice in (
        ("no space left on device", "The disk is full: free some space and try again."),
        ("address already in use", "Something else listens on that port inside the cluster; take it down and up again."),
        ("operation not permitted", "This root may not do what a container needs (CAP_SYS_ADMIN, CAP_NET_ADMIN)."),
        ("too many open files", "Raise the limit of open files (ulimit -n) and try again."),
        ("exec format error", "The program is for another machine: remove ~/.cache/flowbook-ci/cluster and build again."),
    ):
        if sign in text.lower():
            return f"  {advice}"
    return (
        "  Nothing of it was left behind. Try again; if it fails the same way, start that part's command by hand (tests/cluster/parts.py)."
    )


def _ready(admin: Kube) -> bool:
    try:
        return admin.run("get", "--raw", "/readyz").strip() == "ok"
    except (Refused, subprocess.TimeoutExpired):
        return False


def _node_ready(admin: Kube) -> bool:
    try:
        conditions = admin.get("node", NODE)["status"].get("conditions", [])
    except Refused:
        return False
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _load_images(init: _Init, layout: Layout, archive: Path) -> None:
    _wait(lambda: Path(layout.socket).exists(), "containerd has its socket", READY_S)
    _import(init, layout.home, images.pause(layout.home))
    _import(init, layout.home, archive)


def _import(init: _Init, home: Path, archive: Path) -> None:
    init.run("ctr", "--address", str(home / "containerd.sock"), "-n", "k8s.io", "images", "import", str(archive), limit_s=600)


# ---- certificates and kubeconfigs ------------------------------------------------------------------------------------------


def _certificates(layout: Layout) -> None:
    pki = layout.home / "pki"
    pki.mkdir(mode=0o700)
    addresses = f"IP:127.0.0.1,IP:{layout.host},IP:{parts.API_SERVICE},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _host("openssl", "req", "-x509", *new_key, "-days", "365", "-subj", "/CN=flowbook", "-keyout", f"{pki}/ca.key", "-out", f"{pki}/ca.crt")
    for name, subject, also in (
        ("api", "/CN=kube-apiserver", addresses),
        ("admin", "/O=system:masters/CN=admin", ""),
        ("kubelet", f"/O=system:nodes/CN=system:node:{NODE}", f"IP:{layout.host},DNS:{NODE}"),
    ):
        command = ["openssl", "req", "-x509", "-CA", f"{pki}/ca.crt", "-CAkey", f"{pki}/ca.key", *new_key, "-days", "365", "-subj", subject]
        command += ["-keyout", f"{pki}/{name}.key", "-out", f"{pki}/{name}.crt", "-addext", "basicConstraints=critical,CA:FALSE"]
        _host(*command, *(["-addext", f"subjectAltName={also}"] if also else []))
    _host("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{pki}/sa.key")
    _host("openssl", "ec", "-in", f"{pki}/sa.key", "-pubout", "-out", f"{pki}/sa.pub")
    layout.home.joinpath("kube").mkdir(mode=0o700)
    server = {"server": layout.api, "certificate-authority-data": _base64(pki / "ca.crt")}
    for name in ("admin", "kubelet"):
        user = {"client-certificate-data": _base64(pki / f"{name}.crt"), "client-key-data": _base64(pki / f"{name}.key")}
        _write_secretly(Path(layout.at("kube", name)), json.dumps(_kubeconfig(server, user), indent=1))


def _kubeconfig(server: dict[str, Any], user: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
    """A kubeconfig as JSON, which is YAML."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "flowbook", "cluster": server}],
        "users": [{"name": "flowbook", "user": user}],
        "contexts": [{"name": "flowbook", "context": {"cluster": "flowbook", "user": "flowbook", "namespace": namespace}}],
        "current-context": "flowbook",
    }


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _write_secretly(path: Path, text: str) -> None:
    """Whole or not at all, and for the owner's eyes only."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.rename(fresh, path)


# ---- this machine ----------------------------------------------------------------------------------------------------------


def _identity(home: Path) -> str:
    return hashlib.sha256(str(home).encode()).hexdigest()[:8]


def _layout(home: Path) -> Layout:
    process = json.loads((home / "process.json").read_text())
    return Layout(home, process["host"], process["cgroup"])


def _down(path: str) -> str:
    return f"python -m tests.cluster down --dir {Path(path).parent}"


def _alive(process: dict[str, Any]) -> bool:
    """Whether that very process runs: the number alone may have been given to another one since."""
    try:
        found = psutil.Process(process["pid"])
        return bool(found.create_time() == process["started"] and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _inhabitants(namespace: str) -> list[int]:
    """The processes that live in this PID namespace, by the ids that they have here."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if namespace and os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                found.append(pid)
    return found


def _free_address() -> str:
    """The cluster's address, of a pair that no interface of this machine has. 198.18.0.0/15 is for tests, and routed nowhere."""
    taken = set(re.findall(r"inet (198\.18\.\d+\.\d+)/", _host("ip", "-4", "address")))
    for third in range(256):
        address = f"198.18.{third}.2"
        if _neighbour(address) not in taken:
            return address
    raise ClusterError("256 clusters run on this machine; take some down")


def _neighbour(address: str) -> str:
    """This machine's end of the cable."""
    return address.rpartition(".")[0] + ".1"


def _cgroups(layout: Layout) -> list[Path]:
    """The cluster's folder in each hierarchy of this machine. (Beside those of version 1 there may be an idle one of version 2.)"""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [fields[4] for fields in mounts if fields[fields.index("-") + 1] in ("cgroup", "cgroup2")]
    return [Path(point + layout.cgroup) for point in found]


def _make_cgroup(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # of version 1: a new one has none, and takes no process then
        if (folder / name).exists() and not (folder / name).read_text().strip() and not (folder / "cgroup.controllers").exists():
            (folder / name).write_text((folder.parent / name).read_text())


def _remove_cgroup(folder: Path) -> None:
    def gone() -> bool:
        try:
            for path, _, _ in os.walk(folder, topdown=False):
                os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError:
            return False  # a process of it is still on its way out
        return not folder.exists()

    _wait(gone, f"{folder} can be removed", 30)


def _wait(condition: Callable[[], bool], what: str, limit_s: float) -> None:
    """Looks ten times a second. Raises TimeoutError."""
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {limit_s:.0f} s in vain until {what}")
        time.sleep(0.1)


def _host(*argv: str) -> str:
    """Runs a command of this machine. Raises ClusterError."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise ClusterError(f"{' '.join(argv)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _tail(log: Path, lines: int = 12) -> str:
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "  (none)"
    return "\n".join(f"  | {line[:300]}" for line in text.splitlines()[-lines:]) or "  (empty)"
