"""A wide foreach of no-ops and its join: items a second, how time grows with the width, and the memory of the engine.

flowbook starts a fresh process for each item and commits each result. dask.distributed has two processes that are warm and
keeps nothing. metaflow starts an interpreter for each item and commits; it is given fewer items, because a thousand take it ten
minutes: its start-up counts for more then (a second or two), but not the growth of its joins.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

from benchmarks.book import EngineProcess, Kernel, Peer, run_peer, scratch
from benchmarks.environments import PEERS, version_of
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, amount, exponent, quantile

WIDTHS = (1000, 2000, 5000, 10_000)
METAFLOW_ITEMS = 60
COMMITS = "each result, the log"


def run(settings: Settings) -> Section:
    items, few = settings.scaled(1000, 10), settings.scaled(METAFLOW_ITEMS, 3)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        engine = stack.enter_context(EngineProcess(folder / "engine"))
        kernel = stack.enter_context(Kernel(folder / "kernel"))
        define(kernel, items)
        turns = itertools.count(1)

        def in_kernel() -> Sample:
            before = kernel.cpu_s()
            seconds = kernel.seconds(f"%flow run --wait --max-parallel 2 --turn {next(turns)}", f"assert count == {items}")
            return Sample(items / seconds, kernel.cpu_s() - before)

        own: list[float] = []  # CPU milliseconds of the engine process itself, for an item

        def in_engine() -> Sample:
            before, before_own = engine.cpu_s(), engine.own_cpu_s()
            seconds = engine.foreach(items)
            own.append(1000 * (engine.own_cpu_s() - before_own) / items)
            return Sample(items / seconds, engine.cpu_s() - before)

        contestants = [
            Contestant("flowbook: %flow run --wait", COMMITS, in_kernel),
            Contestant("flowbook: its engine alone", COMMITS, in_engine),
        ]
        if settings.peers:
            dask = stack.enter_context(Peer("dask", "dask_foreach.py", folder / "dask"))
            contestants.append(
                Contestant(f"dask.distributed {version_of('dask', 'distributed')}, 2 processes", "nothing", lambda: _dask(dask, items))
            )
            name = f"metaflow {version_of('metaflow', 'metaflow')}, --max-workers 2, {few} items"
            contestants.append(Contestant(name, "each result, task logs", lambda: _metaflow(folder / "metaflow", few)))
        title = f"foreach of {items:,} no-ops and a join, 2 at a time: items a second"
        contest = Contest(title, "items/s", True, contestants).hold(settings.rounds)
    spent = [1000 * (sample.cpu_s or 0.0) / items for sample in contest.samples[contestants[1].name]]
    cpu = Fact(
        "CPU of an item, engine alone: all of it, and what the engine process itself spends",
        f"{amount(quantile(spent, 0.5))} ms, {amount(quantile(own[1:], 0.5))} ms",
    )
    return Section("foreach", [contest], [cpu, *growth(settings)], ["The rate of metaflow includes the start of its command."])


def define(kernel: Kernel, items: int) -> None:
    """The flow of this benchmark in a kernel. Each turn has other items, so that nothing is taken from the cache."""
    kernel.seconds("%load_ext flowbook", "%%flowparams\nturn: int = 0")
    start = "turn * 1_000_000"
    kernel.seconds(f'%%flowstep each --foreach "i in range({start}, {start} + {items})"\ndone = i')
    kernel.seconds("%%flowstep gather --join each\ncount = sum(task.done >= 0 for task in each)")


def growth(settings: Settings) -> list[Fact]:
    """How time, CPU and memory of the engine grow with the width. The best of some rounds: another program only adds to them."""
    widths = [settings.scaled(width, 10) for width in WIDTHS]
    widest = widths[-1]
    times: dict[int, list[float]] = {width: [] for width in widths}
    spent: dict[int, list[float]] = {width: [] for width in widths}
    with scratch() as folder, EngineProcess(folder / "engine") as engine:
        engine.foreach(10)  # warm: its fork server runs, its modules are loaded
        before = most = engine.rss_mb()

        def watch() -> None:
            nonlocal most
            most = max(most, engine.rss_mb())

        engine.foreach(widest, watch)
        after = engine.rss_mb()
        for _ in range(1 + settings.rounds // 3):
            for width in widths:
                cpu_s = engine.cpu_s()
                times[width].append(engine.foreach(width))
                spent[width].append(engine.cpu_s() - cpu_s)
    best = [min(times[width]) for width in widths]
    least = [min(spent[width]) for width in widths]
    each = ", ".join(f"{width:,}: {seconds:.1f} s" for width, seconds in zip(widths, best, strict=True))
    return [
        Fact(f"time by width, engine alone, best of {len(times[widest])} rounds", each),
        Fact(f"exponent of time over width, {widths[0]:,} to {widest:,}", f"{exponent(widths, best):.3f}"),
        Fact("exponent of CPU over width", f"{exponent(widths, least):.3f}"),
        Fact(f"engine's memory while a run of {widest:,} is open, above that of a warm engine", f"{most - before:+.1f} MB"),
        Fact("the same after that run", f"{after - before:+.1f} MB"),
    ]


def _dask(peer: Peer, items: int) -> Sample:
    before = peer.cpu_s()
    seconds = peer.ask(items=items)["seconds"]
    return Sample(items / seconds, peer.cpu_s() - before)


def _metaflow(folder: Path, items: int) -> Sample:
    script = str(PEERS / "metaflow_foreach.py")
    options = ["--no-pylint", "run", "--max-workers", "2", "--max-num-splits", "2000", "--count", str(items)]
    seconds, cpu_s = run_peer("metaflow", [script, *options], folder)
    return Sample(items / seconds, cpu_s)
