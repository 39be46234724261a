"""Fixtures of the cluster tests: a real cluster, a namespace and a bucket of the test's own.

Which cluster: the one of FLOWBOOK_TEST_KUBECONFIG (any, as administrator; its S3 by FLOWBOOK_TEST_S3); else the one that runs in the folder
FLOWBOOK_TEST_CLUSTER; else the one that `make cluster` has brought up; else one for these tests, which ends with them. Where none can
run the tests skip; with FLOWBOOK_CLUSTER_TESTS=required they fail then.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.build import missing
from tests.cluster.cluster import S3, Cluster, ClusterError, Namespace, default_home, let_go, running, up, why_not
from tests.cluster.optional import MODULES
from tests.cluster.stages import new_bucket

REQUIRED = os.environ.get("FLOWBOOK_CLUSTER_TESTS") == "required"  # read now: a test begins without variables of ours
ASKED = bool(os.environ.get("FLOWBOOK_KARPENTER_TESTS"))
GIVEN = {name: os.environ.get(f"FLOWBOOK_TEST_{name}", "") for name in ("KUBECONFIG", "CLUSTER", "S3", "IMAGE")}


def not_here(reason: str) -> None:
    """Skips the test, or fails it where the cluster tests must run."""
    message = f"no cluster here: {reason}; the cluster tests did not run (docs/cluster.md)"
    if REQUIRED:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if GIVEN["KUBECONFIG"]:
        yield Cluster(Path(GIVEN["KUBECONFIG"]), given_s3(), GIVEN["IMAGE"] or "python:3.11", node="")
        return
    if GIVEN["CLUSTER"]:
        found = running(Path(GIVEN["CLUSTER"]).resolve())
        if found is None:
            pytest.fail(f"FLOWBOOK_TEST_CLUSTER={GIVEN['CLUSTER']}: no cluster runs there", pytrace=False)
        yield found
        return
    if found := running(default_home()):
        yield found
        return
    if reason := why_not():
        not_here(reason)
    found = brought_up(tmp_path_factory, "cluster")
    yield found
    let_go(found)


@pytest.fixture(scope="session")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Another cluster, with Karpenter and kwok: in the first one Karpenter would bring a node to what other tests leave pending."""
    if not ASKED:
        pytest.skip("NOT TRIED: Karpenter's tests take some minutes; FLOWBOOK_KARPENTER_TESTS=1 asks for them (docs/cluster.md)")
    if reason := why_not():
        not_here(reason)
    if absent := missing(MODULES["karpenter"]):
        pytest.skip(f"optional parts are not built: python -m tests.cluster build {' '.join(absent)}")
    found = brought_up(tmp_path_factory, "scaled", ("karpenter",))
    yield found
    let_go(found)


def brought_up(tmp_path_factory: pytest.TempPathFactory, name: str, extra: tuple[str, ...] = ()) -> Cluster:
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # which the workers of one run share
    try:
        return up(base / name, extra, keep=False)
    except ClusterError as error:
        pytest.fail(f"the cluster did not come up: {error}", pytrace=False)


def given_s3() -> S3 | None:
    """The S3 server beside a given cluster: ``FLOWBOOK_TEST_S3=https://host/bucket``, its keys as AWS tools read them."""
    if not GIVEN["S3"]:
        return None
    endpoint, _, bucket = GIVEN["S3"].rstrip("/").rpartition("/")
    key, secret = (os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return S3(endpoint, key, secret, os.environ.get("AWS_REGION", "us-east-1"), bucket)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace with `pod-security.kubernetes.io/enforce=restricted` and the three accounts. It goes with what is in it."""
    made = cluster.namespace(f"test-{uuid.uuid4().hex[:10]}")
    yield made
    cluster.kube.delete("namespace", made.name)


@pytest.fixture
def bucket(cluster: Cluster) -> S3:
    """An S3 server with an empty bucket. (On a given server: the given bucket, which tests share.)"""
    if cluster.s3 is None:
        not_here("no S3 server beside the given cluster; name one by FLOWBOOK_TEST_S3")
    assert cluster.s3 is not None
    if cluster.home is None:
        return cluster.s3
    return new_bucket(cluster)
