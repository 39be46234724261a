"""`python -P -m flowbook.engine.launch.sweep`: removes what ended runs have left in a cluster, for `%flow gc`.

A program of its own, so that a kernel need not load what speaks to a cluster. Reads ``{"store", "cluster", "dry_run"}`` as JSON from stdin and
prints ``{"removed": [names]}`` or ``{"trouble": why}``; ``{}`` where no cluster is set up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from flowbook.errors import ClusterError, FlowbookError
from flowbook.store.base import Store, open_store

Json = Any


def main() -> None:
    asked = json.load(sys.stdin)
    print(json.dumps(_swept(asked)))  # noqa: T201


def _swept(asked: Mapping[str, Json]) -> dict[str, Json]:
    from flowbook.engine.launch.apiserver import Api
    from flowbook.engine.launch.kubernetes import sweep

    cluster = asked["cluster"]
    try:
        api = Api.connect(cluster.get("context"), patience_s=10.0)
    except ClusterError:
        return {}
    try:
        namespace = cluster.get("namespace") or api.namespace
        return {"removed": sweep(api, open_store(asked["store"]), namespace, dry_run=bool(asked.get("dry_run")))}
    except FlowbookError as error:
        return {"trouble": f"what ended runs left in the cluster is not removed: {error}"}


def swept(store: Store, cluster: Mapping[str, Json] | None, *, dry_run: bool = False) -> list[str]:
    """The lines to print after sweeping the cluster of the settings; none where there is none, or nothing of ours in it."""
    if cluster is None:
        return []
    asked = json.dumps({"store": store.describe(), "cluster": dict(cluster), "dry_run": dry_run})
    command = [sys.executable, "-P", "-m", "flowbook.engine.launch.sweep"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = {"trouble": f"the cluster could not be looked at: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}"}
    if "trouble" in told:
        return [f"! {told['trouble']}"]
    count = len(told.get("removed", ()))
    verb = "would remove" if dry_run else "removed"
    return [f"{verb} {count} pod{'s' if count > 1 else ''} that ended runs left in the cluster"] if count else []


if __name__ == "__main__":
    main()
