"""The image that users build from docker/Dockerfile, on the cluster's node."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster, Namespace
from tests.cluster.test_cluster import pod


@pytest.mark.timeout(1800)  # the first time, wheels are gathered and a large image is built
def test_the_image_of_the_dockerfile_runs_flowbook_without_rights(cluster: Cluster, namespace: Namespace) -> None:
    if cluster.home is None:
        pytest.skip("an image is only put onto a node of our own")
    image = cluster.flowbook_image()
    code = "import flowbook, os, pathlib; pathlib.Path.home().joinpath('mine').write_text('x'); print(flowbook.__version__, os.getuid())"
    made = pod("packed", image, code)
    del made["spec"]["securityContext"]["runAsUser"]  # the image says itself that it is not for root
    namespace.account("engine").create(made)

    assert namespace.kube.phase("packed", limit_s=300) == "Succeeded", namespace.kube.run("logs", "packed")
    import flowbook

    assert namespace.account("engine").run("logs", "packed") == f"{flowbook.__version__} 1000\n"
