"""What the cluster is made of: the command line, the environment and the configuration files of each part.

Pure but for `write`: paths and addresses in, argument lists and file contents out. How the parts are started, waited for and ended is
in cluster.py. All of them live in a network of their own, so ports are fixed; one address, HOST, is seen from this machine and
from the pods alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.build import program

NODE = "node-1"
PODS = "10.244.0"  # .0/24; the bridge is .1
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
API_PORT = 6443
S3_PORT = 7070
S3_KEY, S3_SECRET, S3_REGION = "flowbook", "flowbook-secret", "us-east-1"
PAUSE = "localhost/pause:1"
CNI_PROGRAMS = "/usr/lib/cni"


@dataclass(frozen=True)
class Part:
    """One process of the cluster."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Where a cluster keeps its files, and what it is called by: `home` its folder, `host` its address, `cgroup` of its pods."""

    home: Path
    host: str
    cgroup: str

    def at(self, *parts: str) -> str:
        return str(self.home.joinpath(*parts))

    @property
    def socket(self) -> str:
        return self.at("containerd.sock")

    @property
    def api(self) -> str:
        return f"https://{self.host}:{API_PORT}"

    @property
    def s3(self) -> str:
        return f"http://{self.host}:{S3_PORT}"


def write(layout: Layout) -> None:
    """Writes the configuration files that the parts read."""
    for folder in ("conf/cni", "logs", "pods", "s3", "kubelet", "kubelet-plugins", "containerd"):
        layout.home.joinpath(folder).mkdir(parents=True, exist_ok=True)
    layout.home.joinpath("conf/containerd.toml").write_text(containerd_toml(layout))
    for name, content in (("cni/10-flowbook.conflist", network(layout)), ("kubelet.json", kubelet(layout)), ("proxy.json", proxy(layout))):
        layout.home.joinpath("conf", name).write_text(json.dumps(content, indent=1))


def containerd_toml(layout: Layout) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox dies with "can't get final child's PID from pipe: EOF".
    return f"""version = 2
root = {json.dumps(layout.at("containerd", "root"))}
state = {json.dumps(layout.at("containerd", "state"))}
[grpc]
address = {json.dumps(layout.socket)}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = {json.dumps(layout.at("conf", "cni"))}
"""


def network(layout: Layout) -> dict[str, Any]:
    ranges = [[{"subnet": f"{PODS}.0/24", "gateway": f"{PODS}.1"}]]
    ipam = {"type": "host-local", "dataDir": layout.at("conf", "ipam"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "0.4.0", "name": "flowbook", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}


def kubelet(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": layout.at("pki", "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": layout.cgroup,  # so that two clusters on one machine leave each other's pods alone
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{layout.socket}",
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,  # there is no registry to fetch an image from again
        "podLogsDir": layout.at("pods"),
        "resolvConf": "",
        "tlsCertFile": layout.at("pki", "kubelet.crt"),
        "tlsPrivateKeyFile": layout.at("pki", "kubelet.key"),
        "volumeStatsAggPeriod": "5s",  # else it takes a minute until a pod with a full disk is seen
        "volumePluginDir": layout.at("kubelet-plugins"),
    }


def proxy(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": layout.at("kube", "admin")},
        "clusterCIDR": f"{PODS}.0/24",
        "conntrack": {"maxPerCore": 0, "min": 0},  # these are the machine's, not the cluster's
        "hostnameOverride": NODE,
        "mode": "iptables",
    }


def containerd(layout: Layout) -> Part:
    return Part("containerd", ["containerd", "--config", layout.at("conf", "containerd.toml")])


def etcd(layout: Layout) -> Part:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    argv = ["etcd", "--name=main", f"--data-dir={layout.at('etcd')}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    argv += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=main={peer}"]
    return Part("etcd", [*argv, "--unsafe-no-fsync"], {"ETCD_UNSUPPORTED_ARCH": "arm64"})


def versitygw(layout: Layout) -> Part:
    argv = [program("versitygw"), "--region", S3_REGION, "--port", f"0.0.0.0:{S3_PORT}", "posix", layout.at("s3")]
    return Part("versitygw", argv, {"ROOT_ACCESS_KEY": S3_KEY, "ROOT_SECRET_KEY": S3_SECRET})


def apiserver(layout: Layout) -> Part:
    pki = {name: layout.at("pki", name) for name in ("ca.crt", "api.crt", "api.key", "admin.crt", "admin.key", "sa.pub", "sa.key")}
    argv = [
        program("kube-apiserver"),
        f"--advertise-address={layout.host}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        f"--cert-dir={layout.at('pki')}",
        f"--client-ca-file={pki['ca.crt']}",
        "--enable-admission-plugins=NodeRestriction",
        "--etcd-servers=http://127.0.0.1:2379",
        # With this etcd (3.4) each watch from version 0, which is how kwok watches, is else taken for a list as a stream, and refused.
        "--feature-gates=WatchList=false",
        f"--kubelet-certificate-authority={pki['ca.crt']}",
        f"--kubelet-client-certificate={pki['admin.crt']}",
        f"--kubelet-client-key={pki['admin.key']}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--secure-port={API_PORT}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki['sa.pub']}",
        f"--service-account-signing-key-file={pki['sa.key']}",
        f"--service-cluster-ip-range={SERVICES}",
        f"--tls-cert-file={pki['api.crt']}",
        f"--tls-private-key-file={pki['api.key']}",
    ]
    return Part("kube-apiserver", argv)


def controllers(layout: Layout) -> list[Part]:
    """What needs the API server: controller manager, scheduler, kubelet, proxy."""
    admin = f"--kubeconfig={layout.at('kube', 'admin')}"
    manager = [program("kube-controller-manager"), admin, "--leader-elect=false", "--bind-address=127.0.0.1"]
    manager += [f"--root-ca-file={layout.at('pki', 'ca.crt')}", f"--service-account-private-key-file={layout.at('pki', 'sa.key')}"]
    manager += ["--concurrent-gc-syncs=5", f"--cert-dir={layout.at('pki')}"]
    scheduler = [program("kube-scheduler"), admin, "--leader-elect=false", "--bind-address=127.0.0.1"]
    node = [program("kubelet"), f"--kubeconfig={layout.at('kube', 'kubelet')}", f"--config={layout.at('conf', 'kubelet.json')}"]
    node += [
        f"--root-dir={layout.at('kubelet')}",
        f"--cert-dir={layout.at('pki')}",
        f"--hostname-override={NODE}",
        f"--node-ip={layout.host}",
    ]
    return [
        Part("kube-controller-manager", manager),
        Part("kube-scheduler", scheduler),
        Part("kubelet", node),
        Part("kube-proxy", [program("kube-proxy"), f"--config={layout.at('conf', 'proxy.json')}"]),
    ]
