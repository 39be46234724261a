"""How much longer a training loop takes for a checkpoint of 500 MB: written beside it, and by a save that it waits for.

Each contestant runs the same loop in a process of its own: it asks for a save, and goes on with an item. The cost of a save is the
time inside the call, plus the time by which the item after it is longer than one without a save: what a fork does not take in the
call, it may take later, when the loop writes into pages that the child still needs. Between two items the loop waits, unmeasured,
until the save is written, so that each is a whole one. Two loops: one rewrites the whole state in each item, as a training does;
one only reads it, as while it is evaluated. The first save is not counted: there memory is made.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.book import scratch, touch_memory
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, amount

MEGABYTES = 500
SAVES = 4
ARRAYS = 20

LOOP = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy
from flowbook.store import codec
from flowbook.store.chunks import Shelf
from flowbook.store.files import FilesStore
from flowbook.worker.writer import Save, Writer
root, mode, megabytes, saves, arrays, does = sys.argv[2], sys.argv[3] or None, *map(int, sys.argv[4:7]), sys.argv[7]
store = FilesStore(root)
writer = Writer(store, Shelf(store, "bench", "1", "train", ()), 0, mode=mode)
model = {f"layer{i}": numpy.random.rand(megabytes * 1_000_000 // 8 // arrays) for i in range(arrays)}
save = Save(lambda: {"state": codec.encode(model, previews=False)}, lambda bodies: {"kind": "state", "state": bodies["state"]})

def item():
    started = time.perf_counter()
    for layer in list(model.values())[: 1 if does == "change one" else None]:
        if does == "read":
            layer.sum()
        else:
            layer += 1.0
    return time.perf_counter() - started

def change():
    model["layer0"] += 1.0

calls, costs = [], []
for n in range(saves):
    plain = min(item() for _ in range(3))
    change() if does == "read" else None
    started = time.perf_counter()
    writer.save(save)
    calls.append(time.perf_counter() - started)
    costs.append(calls[-1] + max(0.0, item() - plain))
    writer.finish()
print(json.dumps({"call_s": calls[SKIP:], "cost_s": costs[SKIP:]}))
"""
SKIP = 3  # saves in which memory is made, and found out how the loop uses its state


def run(settings: Settings) -> Section:
    megabytes = settings.scaled(MEGABYTES, 50)
    calls: dict[tuple[str, str], list[float]] = {}

    def measure(mode: str, does: str) -> Sample:
        touch_memory(3 * megabytes)
        with scratch() as folder:
            said = loop(folder, mode, megabytes, does)
        calls.setdefault((mode, does), []).append(statistics.median(said["call_s"]))
        return Sample(1000 * statistics.median(said["cost_s"]))

    def contest(does: str, title: str, forced: str) -> Contest:
        contestants = [
            Contestant("flowbook, as it chooses", "the state", lambda: measure("", does)),
            Contestant(f"flowbook, by a {forced} in any case", "the state", lambda: measure(forced, does)),
            Contestant("a save that the loop waits for", "the state", lambda: measure("now", does)),
        ]
        return Contest(f"A checkpoint of {megabytes} MB, {title}: milliseconds for it", "ms", False, contestants).hold(settings.rounds)

    written = contest("write", "each item rewrites all of it", "fork")
    left = contest("read", "the items read it", "copy")
    measure("now", "change one")
    facts = []
    for found, what in ((written, "rewritten"), (left, "left alone")):
        own, waited = found.contestants[0].name, found.contestants[-1].name
        share = [100 * mine.value / other.value for mine, other in zip(found.samples[own], found.samples[waited], strict=True)]
        facts.append(Fact(f"cost of a save of a state that is {what}, of the save that is waited for", f"{statistics.median(share):.1f} %"))
    for (mode, does), seconds in calls.items():
        word = mode or "as it chooses"
        facts.append(Fact(f"time in the call, {word}, the loop does: {does}", f"{amount(1000 * statistics.median(seconds))} ms"))
    return Section("checkpoint", [written, left], facts)


def loop(folder: Path, mode: str, megabytes: int, does: str) -> dict[str, list[float]]:
    """One loop in a process of its own. One thread for numpy's algebra: a fork is safe then."""
    root = str(Path(__file__).parent.parent)
    text = LOOP.replace("SKIP", str(SKIP))
    command = [sys.executable, "-c", text, root, str(folder), mode, *map(str, (megabytes, SKIP + SAVES, ARRAYS)), does]
    done = subprocess.run(command, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]
