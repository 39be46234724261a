"""flowbook: the memory of an engine that follows many pods at once, on nodes that kwok plays; the pods start, and never end."""

import asyncio
import json
import sys
import time
from pathlib import Path

import psutil

from flowbook.engine.scheduler import Run
from flowbook.store.base import open_store
from tests.launchers.stage import Stage, sweep

LIMIT_S = 600

told = json.loads(sys.argv[1])
pods = int(told["pods"])


def rss_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


async def scene(stage: Stage, run: Run) -> dict[str, float]:
    first = rss_mb()
    driven = asyncio.create_task(run.drive())
    until = time.monotonic() + LIMIT_S
    while True:
        working = [live for live in run.live.values() if live.phase in ("starting", "running")]
        if len(working) >= pods:
            break
        if driven.done() or time.monotonic() > until:
            raise SystemExit(f"only {len(working)} of {pods} pods started; {stage.happened()[-3:]}")
        await asyncio.sleep(0.1)
    await asyncio.sleep(told["settle_s"])
    last = rss_mb()
    driven.cancel()
    await asyncio.gather(driven, return_exceptions=True)
    return {"first_mb": first, "last_mb": last}


store = open_store({**told["store"], "key_file": str(Path("project.key").resolve())})
stage = Stage(store, None, {**told["settings"], "max_pods": pods, "scale": 0.02}, {"KUBECONFIG": told["kubeconfig"]})
start, train, best = sweep(pods, kubernetes={"node_selector": told["node"]})
run = stage.run(start, train, best)
Path("report.json").write_text(json.dumps(stage.complete(scene(stage, run))))
