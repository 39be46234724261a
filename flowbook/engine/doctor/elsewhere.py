"""`python -P -m flowbook.engine.doctor.elsewhere`: the checks of the cluster as a program, so that a kernel need not load what speaks to one.

Reads ``{"store", "cluster", "pod", "withs"}`` as JSON from stdin and prints each finding as a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flowbook.engine.doctor.core import Found, examine
from flowbook.store.base import Store, open_store


def main() -> None:
    from flowbook.engine.doctor.cluster import Look, options_of

    asked = json.load(sys.stdin)
    look = Look(open_store(asked["store"]), asked["cluster"], os.environ, options_of(asked.get("withs", [])))
    for found in examine(look.checks(pod=bool(asked.get("pod")))):
        print(json.dumps(found.to_json()), flush=True)  # noqa: T201
    os._exit(0)  # a check that is late may hang in a thread


def elsewhere(store: Store, cluster: Mapping[str, Any], *, pod: bool = False) -> Iterator[Found]:
    """What the checks of the cluster say, from a process of their own."""
    asked = json.dumps({"store": store.describe(), "cluster": dict(cluster), "pod": pod})
    command = [sys.executable, "-P", "-m", "flowbook.engine.doctor.elsewhere"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            process.stdin.write(asked)
            process.stdin.close()
            for line in process.stdout:
                yield Found.from_json(json.loads(line))
            said = process.stderr.read().strip().splitlines()
        except BaseException:
            process.send_signal(signal.SIGINT)  # it removes its pod
            raise
    if process.returncode:
        yield Found("bad", f"the cluster could not be looked at: {said[-1] if said else 'no answer'}")


if __name__ == "__main__":
    main()
