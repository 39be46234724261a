"""A flow file as a command: ``python flow.py run`` of one step, and of a fan-out with its join, beside Metaflow's with the same text.

Each round starts the command anew; nothing is warm but the files in the system's cache. CPU is that of the whole command with all that
it started and waited for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.book import clean_environment, run_peer, run_process, scratch
from benchmarks.environments import PEERS, version_of
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, amount, quantile

ROOT = Path(__file__).parent.parent
ITEMS = 20
ONE, WIDE = "metaflow_one.py", "metaflow_foreach.py"

Figure = Callable[[float, float], float]  # wall and CPU seconds → what is compared, in milliseconds


def run(settings: Settings) -> Section:
    items = settings.scaled(ITEMS, 2)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        walls: list[float] = []

        def cpu(wall_s: float, cpu_s: float) -> float:
            walls.append(1000 * wall_s)
            return 1000 * cpu_s

        one = _contest("`python flow.py run` of one step: CPU milliseconds of the whole command", folder / "one", ONE, [], settings, cpu)
        mine = walls[:: 2 if not one.absent and settings.peers else 1][1:]
        title = f"a {items}-way foreach, its join, start and end ({items + 3} tasks), from the command to its end: milliseconds"
        wide = _contest(title, folder / "wide", WIDE, ["--count", str(items)], settings, lambda wall_s, cpu_s: 1000 * wall_s)
    facts = [Fact("wall time of the one step, flowbook, median", f"{amount(quantile(mine, 0.5))} ms")]
    return Section("flow files", [one, wide], facts, ["The text of the file is the same for both, but for the name of the library."])


def _contest(title: str, folder: Path, file: str, words: list[str], settings: Settings, figure: Figure) -> Contest:
    """Flowbook and, if peers are asked for, Metaflow with one file."""
    folder.mkdir()
    flow = folder / "flow.py"
    flow.write_text((PEERS / file).read_text().replace("metaflow", "flowbook"))
    environment = clean_environment(folder) | {"PYTHONPATH": str(ROOT)}

    def ours() -> Sample:
        wall_s, cpu_s = run_process([sys.executable, str(flow), "run", *words], environment, folder)
        return Sample(figure(wall_s, cpu_s), cpu_s)

    def theirs() -> Sample:
        wall_s, cpu_s = run_peer("metaflow", [str(PEERS / file), "--no-pylint", "run", *words], folder)
        return Sample(figure(wall_s, cpu_s), cpu_s)

    contestants = [Contestant("flowbook: python flow.py run", "each result, the log", ours)]
    if settings.peers:
        name = f"metaflow {version_of('metaflow', 'metaflow')}: python flow.py run"
        contestants.append(Contestant(name, "each result, task logs", theirs))
    return Contest(title, "ms", False, contestants).hold(settings.rounds)
