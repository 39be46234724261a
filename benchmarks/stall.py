"""How long the kernel's main loop stands still while a wide run goes on and its display paints.

A coroutine in the kernel sleeps for a millisecond, over and over, and notes how much later than that it is woken. A second such
ticker, in a process that has nothing to do with flowbook, tells how much of it is the machine's: the tasks use all of it.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

from benchmarks import foreach
from benchmarks.book import Kernel, clean_environment, scratch
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, amount, quantile

IDLE_S = 5.0


async def tick(over, limit_s):  # type: ignore[no-untyped-def]  # its source goes into the kernel and into the other process
    """Milliseconds by which each wake-up was late, until `over()` or `limit_s` seconds have passed."""
    import asyncio
    import time

    late, started = [], time.perf_counter()
    while not over() and time.perf_counter() - started < limit_s:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(1000 * (time.perf_counter() - before) - 1)
    return late


def run(settings: Settings) -> Section:
    items = settings.scaled(1000, 10)
    with scratch() as folder, Kernel(folder / "kernel") as kernel:
        foreach.define(kernel, items)
        kernel.seconds(inspect.getsource(tick))
        turn, beside_all, wakes = 0, [], []

        def busy() -> Sample:
            nonlocal turn
            turn += 1
            with Beside() as beside:
                kernel.seconds(
                    f"run = %flow run --max-parallel 2 --turn {turn}\nlate = await tick(lambda: run.state != 'running', 600)",
                    f"assert count == {items}",
                )
                beside_all.append(quantile(beside.late(), 0.999))
            late = kernel.value("late")
            wakes.append(len(late))
            return Sample(quantile(late, 0.999))

        def idle() -> Sample:
            kernel.seconds(f"late = await tick(lambda: False, {IDLE_S * settings.scale})")
            return Sample(quantile(kernel.value("late"), 0.999))

        contestants = [
            Contestant(f"while {items:,} tasks run and the display paints", "", busy),
            Contestant("the same kernel when idle", "", idle),
        ]
        title = "1 ms ticker on the kernel's main loop: p99.9 of how late it is, milliseconds"
        contest = Contest(title, "ms", False, contestants).hold(settings.rounds)
    facts = [
        Fact("p99.9 of a ticker in another process meanwhile, median", f"{amount(quantile(beside_all[1:], 0.5))} ms"),
        Fact("ticks in a round, median", f"{quantile(wakes[1:], 0.5):,.0f}"),
    ]
    return Section("stall", [contest], facts, ["The tasks use two cores; the other process shows what is due to that alone."])


class Beside:
    """The ticker in a process of its own, from the beginning of the block until `late` is asked for."""

    def __enter__(self) -> Beside:
        code = f"{inspect.getsource(tick)}\nimport asyncio, json, select, sys\n"
        code += "over = lambda: bool(select.select([sys.stdin], [], [], 0)[0])\nprint(json.dumps(asyncio.run(tick(over, 600))))\n"
        with scratch() as folder:
            environment = clean_environment(folder)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def late(self) -> list[float]:
        found: list[float] = json.loads(self._process.communicate(timeout=60)[0])
        return found

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
