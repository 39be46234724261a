"""The launcher of pods against a fake cluster, whose pods are processes: on any machine, and where the cluster has to misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowbook.store.files import FilesStore
from tests.launchers.fake_cluster import FakeCluster
from tests.launchers.stage import Stage

pytest.register_assert_rewrite("tests.launchers.pods")

from tests.launchers.pods import *  # noqa: E402, F403 (the stories are tests of this file, too)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeCluster]:
    folder = tmp_path / "node"
    folder.mkdir()
    cluster = FakeCluster(folder)
    yield cluster
    cluster.close()


@pytest.fixture
def stage(fake: FakeCluster, tmp_path: Path) -> Stage:
    return Stage(FilesStore(tmp_path / "project"), fake, {}, {"KUBECONFIG": str(fake.kubeconfig)})
