"""What a person at the notebook waits for: a one-step flow from the command to its value, warm, first, and out of the cache."""

from __future__ import annotations

import itertools
import statistics
from contextlib import ExitStack

from benchmarks.book import Kernel, Peer, scratch
from benchmarks.environments import version_of
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, amount, quantile

LEAST = 20  # warm runs in all
CHAIN = 20  # steps of the flow that is cached as a whole


def run(settings: Settings) -> Section:
    each = -(-LEAST // settings.rounds)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        kernel = stack.enter_context(Kernel(folder / "kernel"))
        kernel.seconds("%load_ext flowbook", "%%flowparams\nturn: int = 0", "%%flowstep one\nvalue = turn + 1")
        turns = itertools.count(1)
        all_warm: list[float] = []

        def warm() -> Sample:
            before, times = kernel.cpu_s(), []
            for _ in range(each):
                turn = next(turns)
                times.append(1000 * kernel.seconds(f"%flow run --turn {turn}", f"assert value == {turn + 1}"))
            all_warm.extend(times)
            return Sample(statistics.median(times), (kernel.cpu_s() - before) / each)

        contestants = [Contestant("flowbook: %flow run, and a cell that reads the value", "result, log", warm)]
        if settings.peers:
            metaflow = stack.enter_context(Peer("metaflow", "metaflow_latency.py", folder / "metaflow"))
            name = f"metaflow {version_of('metaflow', 'metaflow')}: Runner(…).run(), and the artifact"
            contestants.append(Contestant(name, "result, task logs", lambda: _metaflow(metaflow)))
        title = "one trivial step, from the command to its value: milliseconds, warm"
        contest = Contest(title, "ms", False, contestants).hold(settings.rounds)
        empty = [1000 * kernel.seconds("pass") for _ in range(LEAST)]
    kept = all_warm[each:]
    facts = [
        Fact(f"warm, p50 and p95 of {len(kept)} runs", f"{amount(quantile(kept, 0.5))} ms, {amount(quantile(kept, 0.95))} ms"),
        Fact("an empty cell, for comparison, median", f"{amount(quantile(empty, 0.5))} ms"),
        first_run(settings),
        cached_chain(settings),
    ]
    return Section("latency", [contest], facts, ["Each turn has another parameter, so that the cache does not answer. Wall time."])


def first_run(settings: Settings) -> Fact:
    """The first run in a new kernel, straight after `%load_ext`: its engine and fork server have to start."""
    times = []
    for _ in range(min(3, settings.rounds)):
        with scratch() as folder, Kernel(folder / "kernel") as kernel:
            kernel.seconds("%load_ext flowbook", "%%flowstep one\nvalue = 1")
            times.append(1000 * kernel.seconds("%flow run", "assert value == 1"))
    return Fact(f"the first run after %load_ext, to its value, median of {len(times)}", f"{amount(statistics.median(times))} ms")


def cached_chain(settings: Settings) -> Fact:
    """A flow whose results are all taken from the run before."""
    with scratch() as folder, Kernel(folder / "kernel") as kernel:
        kernel.seconds("%load_ext flowbook", "%%flowstep s0\nx0 = 1")
        for i in range(1, CHAIN):
            kernel.seconds(f"%%flowstep s{i}\nx{i} = x{i - 1} + 1")
        kernel.seconds("%flow run --wait")
        times = [1000 * kernel.seconds("%flow run --wait", f"assert x{CHAIN - 1} == {CHAIN}") for _ in range(max(3, settings.rounds))]
    return Fact(f"{CHAIN} steps in a chain, all out of the cache, median of {len(times)}", f"{amount(statistics.median(times))} ms")


def _metaflow(peer: Peer) -> Sample:
    before = peer.cpu_s()
    seconds = peer.ask()["seconds"]
    return Sample(1000 * seconds, peer.cpu_s() - before)
