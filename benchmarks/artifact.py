"""A large array as an artifact: how fast a step saves it, how fast it is there again, and what memory and disk that takes.

Of a step, the time is that of the saving alone: of flowbook what its COMMIT says (`seconds.saving`), of metaflow the time in its
own `save_artifacts`, which a wrapper in the flow takes (peers/metaflow_artifact.py). Both save noise, which no compression makes
smaller, and each round another one, so that nothing is there already.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.book import Kernel, clean_environment, run_peer, scratch, touch_memory
from benchmarks.environments import PEERS, version_of
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, amount, quantile

MEGABYTES = 256
TOUCHED = 4  # times its size: the array, its file, what is in between


def run(settings: Settings) -> Section:
    megabytes = settings.scaled(MEGABYTES, 4)
    walls: list[float] = []
    extra: list[float] = []  # memory of metaflow's saves
    with scratch() as folder, Kernel(folder / "kernel") as kernel:
        define(kernel, megabytes)
        turn = 0

        def save() -> Sample:
            nonlocal turn
            turn += 1
            _empty(folder / "kernel")
            touch_memory(TOUCHED * megabytes)
            before = kernel.cpu_s()
            walls.append(kernel.seconds(f"%flow run --wait --turn {turn}"))
            return Sample(megabytes / _saving_s(folder / "kernel", turn), kernel.cpu_s() - before)

        def save_alone() -> Sample:
            with scratch() as place:
                return Sample(megabytes / store_level(place, megabytes)["save_s"])

        def reopen() -> Sample:
            kernel.seconds(f"%flow run --wait --turn {turn}")  # out of the cache: the name is to be loaded anew
            return Sample(1000 * kernel.seconds("assert a[-1] >= 0"))

        def metaflow_save() -> Sample:
            _empty(folder / "metaflow")
            touch_memory(TOUCHED * megabytes)
            said = metaflow(folder / "metaflow", "metaflow_artifact.py", "--no-pylint", "run", "--megabytes", str(megabytes))
            extra.append(said["extra_mb"])
            return Sample(megabytes / said["save_s"], said["cpu_s"])

        def metaflow_reopen() -> Sample:
            return Sample(1000 * metaflow(folder / "metaflow", "metaflow_reopen.py")["load_s"])

        saving = [
            Contestant("flowbook: a step's saving, by its COMMIT", "the array", save),
            Contestant("flowbook: its store alone", "the array", save_alone),
        ]
        opening = [Contestant("flowbook: a cell that reads its last element", "", reopen)]
        if settings.peers:
            name = f"metaflow {version_of('metaflow', 'metaflow')}"
            saving.append(Contestant(f"{name}: save_artifacts at the step's end", "the array, gzip", metaflow_save))
            opening.append(Contestant(f"{name}: the artifact's .data", "", metaflow_reopen))
        saved = Contest(f"{megabytes} MB of float64 noise saved: MB of it a second", "MB/s", True, saving).hold(settings.rounds)
        opened = Contest(f"{megabytes} MB opened in another process: milliseconds", "ms", False, opening).hold(settings.rounds)
        kernel.seconds(f"assert numpy.array_equal(a, {noise(str(turn), megabytes)})")
    with scratch() as place:
        alone = store_level(place, megabytes)
    facts = [
        Fact("the whole run of that one step, wall, median", f"{amount(quantile(walls[1:], 0.5))} s"),
        Fact("peak memory of a save above the array itself, store alone", f"{amount(alone['extra_mb'])} MB"),
        *([Fact("the same of metaflow, median", f"{amount(quantile(extra[1:], 0.5))} MB")] if len(extra) > 1 else []),
        Fact("opened by the store alone, mapped", f"{amount(1000 * alone['open_s'])} ms"),
        Fact("opened and read to its end by the store alone", f"{amount(megabytes / alone['read_s'])} MB/s"),
        unchanged(megabytes),
    ]
    notes = ["No side calls fsync. CPU is that of the whole run, making the noise included."]
    return Section("artifact", [saved, opened], facts, notes)


def noise(seed: str, megabytes: int) -> str:
    """The expression that makes the array."""
    return f"numpy.random.default_rng({seed}).random({megabytes * 125_000})"


def define(kernel: Kernel, megabytes: int) -> None:
    kernel.seconds("%load_ext flowbook", "%%flowparams\nturn: int = 0", "import numpy")
    kernel.seconds(f"%%flowstep make\nimport numpy\na = {noise('turn', megabytes)}")


def unchanged(megabytes: int) -> Fact:
    """What a second run adds to the store when it makes the very same array, and the cache does not answer."""
    with scratch() as folder, Kernel(folder / "kernel") as kernel:
        define(kernel, megabytes)
        kernel.seconds(f"%%flowstep make --no-cache\nimport numpy\na = {noise('7', megabytes)}")
        touch_memory(TOUCHED * megabytes)
        kernel.seconds("%flow run --wait")
        before = _bytes_below(folder)
        kernel.seconds("%flow run --wait")
        grown = _bytes_below(folder) - before
        saving_s = _saving_s(folder / "kernel", 2)
    return Fact("saved unchanged by the next run: the store grows by, its saving takes", f"{grown:,} B, {saving_s:.3f} s")


def _saving_s(folder: Path, run: int) -> float:
    commit = json.loads(next(folder.glob(f"store/*/flows/bench/{run}/make/0.COMMIT")).read_bytes())
    return float(commit["seconds"]["saving"])


def store_level(place: Path, megabytes: int) -> dict[str, float]:
    """Saving and opening by the store's own functions, in a process of its own: seconds, and memory at its peak."""
    touch_memory(TOUCHED * megabytes)
    command = [sys.executable, "-c", STORE_LEVEL, str(place / "store"), str(megabytes)]
    done = subprocess.run(command, env=clean_environment(place), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


STORE_LEVEL = """
import json, os, resource, sys, time
import numpy
from flowbook.store import codec
from flowbook.store.files import FilesStore

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

store = FilesStore(sys.argv[1])
codec.entry(store, "small", numpy.zeros(10_000))  # what it imports is imported
value = numpy.random.default_rng(int.from_bytes(os.urandom(4))).random(int(sys.argv[2]) * 125_000)
before = peak_mb()
t0 = time.perf_counter()
entry = codec.entry(store, "value", value)
t1 = time.perf_counter()
after = peak_mb()
t2 = time.perf_counter()
loaded = codec.load(store, entry)
t3 = time.perf_counter()
assert loaded.sum() > 0
t4 = time.perf_counter()
print(json.dumps({"save_s": t1 - t0, "extra_mb": after - before, "open_s": t3 - t2, "read_s": t4 - t2}))
"""


def metaflow(folder: Path, script: str, *options: str) -> dict[str, Any]:
    """Run a script of metaflow's; it leaves what it found in `report.json`."""
    _, cpu_s = run_peer("metaflow", [str(PEERS / script), *options], folder)
    found: dict[str, Any] = json.loads((folder / "report.json").read_bytes())
    return found | {"cpu_s": cpu_s}


def _empty(folder: Path) -> None:
    """Take the large objects away, so that a round costs no more disk than the last."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1_000_000:
            path.unlink()


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
