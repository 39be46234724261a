"""Where runs are driven on a real cluster: a stage for an engine in this process, an environment for the command line.

Both act with the rights of flowbook/engine/launch/rights.yaml; the store's credentials reach pods as the Secret `store`.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flowbook.store.base import open_store
from tests.cluster.cluster import S3, Cluster, Namespace
from tests.launchers.stage import Stage

T = TypeVar("T")
LIMIT_S = 180.0  # only a hang takes that long


class Real:
    """What a test may do to the cluster, in its own namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def names(self) -> list[str]:
        found: list[dict[str, Any]] = self.namespace.kube.get("pods")["items"]
        return [pod["metadata"]["name"] for pod in found]

    def evict(self, name: str) -> None:
        self.namespace.kube.run("delete", "pod", name, "--grace-period=1", "--wait=false")

    def secret(self, name: str, keys: dict[str, str]) -> None:
        make_secret(self.namespace, name, keys)


def new_bucket(cluster: Cluster) -> S3:
    """An empty bucket of a cluster of our own."""
    assert cluster.s3 is not None and cluster.home is not None
    name = f"test-{uuid.uuid4().hex[:10]}"
    (cluster.home / "s3" / name).mkdir()  # to versitygw, a bucket is a folder
    return replace(cluster.s3, bucket=name)


def make_secret(namespace: Namespace, name: str, keys: Mapping[str, str | bytes]) -> None:
    data = {key: base64.b64encode(value.encode() if isinstance(value, str) else value).decode() for key, value in keys.items()}
    namespace.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})


def credentials(bucket: S3) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": bucket.access_key, "AWS_SECRET_ACCESS_KEY": bucket.secret_key, "AWS_REGION": bucket.region}


def stage_on(cluster: Cluster, namespace: Namespace, bucket: S3, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage with a store of its own in the bucket. The namespace has the Secret `store`."""
    for name, value in credentials(bucket).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    place = {"bucket": bucket.bucket, "prefix": uuid.uuid4().hex, "endpoint": bucket.endpoint, "key_file": str(folder / "project.key")}
    settings = {"namespace": namespace.name, "image": cluster.image, "secret": "store", "service_account": "flowbook-step"}
    return Stage(open_store({"kind": "s3", **place}), Real(namespace), settings, {"KUBECONFIG": str(namespace.kubeconfig("engine"))})


def environ_of(bucket: S3, image: str, **more: str) -> dict[str, str]:
    """What the command line needs beside KUBECONFIG, here or in a pod, to run steps in pods."""
    return {
        **credentials(bucket),
        "FLOWBOOK_STORE": f"s3://{bucket.bucket}/{uuid.uuid4().hex}",
        "FLOWBOOK_S3_ENDPOINT": bucket.endpoint,
        "FLOWBOOK_KUBERNETES_SECRET": "store",
        "FLOWBOOK_KUBERNETES_SERVICE_ACCOUNT": "flowbook-step",
        "FLOWBOOK_KUBERNETES_IMAGE": image,
        **more,
    }


def here(namespace: Namespace, folder: Path, told: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command line of this machine."""
    own = {
        "KUBECONFIG": str(namespace.kubeconfig("engine")),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    return {**os.environ, **own, **told}


def eventually(look: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """What `look` gives, once that is anything."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.2)
    return found
