"""How long a training loop stands still for a checkpoint of 500 MB: a fork, a copy, and a save that the loop waits for.

Each contestant runs the same loop in a process of its own: an item changes the whole state, works for a while, and asks for a save.
Stall is the time inside the call, the worst of the saves after the first (which is where memory is made). Between two saves the loop
waits until the one before is written, outside of the measured time, so that each save is a whole one. The whole loop is measured,
too: what a fork saves at the call, the kernel takes back in part when the loop writes into shared pages.
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
root, mode, megabytes, saves, arrays, same = sys.argv[2], sys.argv[3], *map(int, sys.argv[4:8])
store = FilesStore(root)
writer = Writer(store, Shelf(store, "bench", "1", "train", ()), 0, mode=mode)
model = {f"layer{i}": numpy.random.rand(megabytes * 1_000_000 // 8 // arrays) for i in range(arrays)}
save = Save(lambda: {"state": codec.encode(model, previews=False)}, lambda bodies: {"kind": "state", "state": bodies["state"]})
stalls, changes, written = [], [], []
for n in range(saves + 1):
    started = time.perf_counter()
    for i, layer in enumerate(model.values()):
        if not same or i == 0:
            layer += 1.0
    changes.append(time.perf_counter() - started)
    started = time.perf_counter()
    writer.save(save)
    called = time.perf_counter()
    stalls.append(called - started)
    if n == saves:  # the item after a save, while it is written
        for layer in model.values():
            layer += 1.0
        beside = time.perf_counter() - called
    writer.finish()
    written.append(time.perf_counter() - started)
print(json.dumps({"stall_s": stalls[1:], "change_s": min(changes[1:]), "beside_s": beside, "written_s": written[1:]}))
"""


def run(settings: Settings) -> Section:
    megabytes = settings.scaled(MEGABYTES, 50)
    extra: dict[str, list[dict[str, float]]] = {}

    def measure(mode: str, same: bool = False) -> Sample:
        touch_memory(3 * megabytes)
        with scratch() as folder:
            said = loop(folder, mode, megabytes, same)
        extra.setdefault(mode + (" same" if same else ""), []).append(
            {"beside": said["beside_s"] / said["change_s"], "written_s": statistics.median(said["written_s"])}
        )
        return Sample(1000 * max(said["stall_s"]))

    contest = Contest(
        f"A loop stands still for a checkpoint of {megabytes} MB in {ARRAYS} arrays: milliseconds, the worst of {SAVES}",
        "ms",
        False,
        [
            Contestant("a fork, where that is safe", "the state", lambda: measure("fork")),
            Contestant("a copy, written by a thread", "the state", lambda: measure("copy")),
            Contestant("a save that the loop waits for", "the state", lambda: measure("now")),
        ],
    ).hold(settings.rounds)
    measure("now", same=True)
    values = {each.name: statistics.median(sample.value for sample in contest.samples[each.name][1:]) for each in contest.contestants}
    fork, copied, now = values.values()
    return Section(
        "checkpoint",
        [contest],
        [
            Fact("stall of a fork, of the save that the loop waits for", f"{100 * fork / now:.1f} %"),
            Fact("stall of a copy, of the same", f"{100 * copied / now:.1f} %"),
            *(
                Fact(
                    f"an item that writes the whole state while it is saved, by {word}",
                    f"{amount(_median(extra[mode], 'beside'))} times as long",
                )
                for mode, word in (("fork", "a fork"), ("copy", "a copy"))
            ),
            Fact("a save where one array of twenty changed, waited for", f"{amount(1000 * _median(extra['now same'], 'written_s'))} ms"),
        ],
    )


def _median(found: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in found)


def loop(folder: Path, mode: str, megabytes: int, same: bool) -> dict[str, list[float]]:
    """One loop in a process of its own. One thread for numpy's algebra: a fork is safe then."""
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", LOOP, root, str(folder), mode, *map(str, (megabytes, SAVES, ARRAYS, int(same)))]
    done = subprocess.run(command, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]
