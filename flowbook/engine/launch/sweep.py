"""`python -P -m flowbook.engine.launch.sweep`: removes what ended runs have left in a cluster, for `%flow gc`.

A program of its own, so that a kernel need not load what speaks to a cluster. Reads ``{"store", "cluster", "dry_run", "driven": [[flow, run], …]}`` as JSON from
stdin and prints ``{"removed": [names], "left": [[flow, run, pods that are not over], …]}`` or ``{"trouble": why}``; ``{}`` where no cluster is set up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from flowbook.errors import ClusterError, FlowbookError
from flowbook.spec.amounts import counted
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
        driven = {(str(flow), str(run)) for flow, run in asked.get("driven", ())}
        done = sweep(api, open_store(asked["store"]), namespace, dry_run=bool(asked.get("dry_run")), driven=driven)
        return {"removed": done.removed, "left": [[*run, count] for run, count in done.left.items()]}
    except FlowbookError as error:
        return {"trouble": f"what ended runs left in the cluster is not removed: {error}"}


def swept(
    store: Store,
    cluster: Mapping[str, Json] | None,
    driven: Iterable[tuple[str, str]],
    go_on: str,
    *,
    dry_run: bool = False,
) -> list[str]:
    """The lines to print after sweeping the cluster of the settings; none where there is none, or nothing of ours in it.

    `driven`: the runs that processes of this machine drive. `go_on`: how one goes on with a RUN that nobody drives.
    """
    if cluster is None:
        return []
    asked = json.dumps({"store": store.describe(), "cluster": dict(cluster), "dry_run": dry_run, "driven": sorted(driven)})
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
    lines = [f"{verb} {counted(count, 'pod')} in the cluster that nobody needs any more"] if count else []
    for flow, run, running in told.get("left", ()):
        pods = f", and {counted(running, 'pod')} of it {'are' if running > 1 else 'is'} there" if running else ""
        what = f"run {run} of {flow} is open, but no process of this machine drives it{pods}"
        lines.append(f"! {what}: `{go_on.replace('RUN', run)}` goes on with it, `flowbook stop {flow}/{run}` closes it")
    return lines


if __name__ == "__main__":
    main()
