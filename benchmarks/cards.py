"""How soon a card is on the screen: `card.refresh()` in a step to the changed page, by the browser's clock, in JupyterLab and Chromium.

Beside it metaflow's card server with the same card, in the same browser. One task refreshes by the pattern of the documentation (clear,
append, refresh); a stamp in the card tells when `refresh` was called (browser.py). Then 50 tasks refresh 20 times a second each, while
the kernel's main loop, the messages to the page and the page itself are watched.
"""

from __future__ import annotations

import inspect
import itertools
import json
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.book import _python, clean_environment, end_tree, scratch
from benchmarks.browser import STAMP, WATCH, Notebook, Seen, chromium, forget, stamps
from benchmarks.environments import PEERS, version_of
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, Unavailable, amount, quantile
from benchmarks.stall import tick
from flowbook.kernel import panel
from tests.browser.lab import _free_port

REFRESHES = 100  # of a round, at times without a beat
LOW_S, HIGH_S = 0.15, 0.35
THEIR_REFRESHES, THEIR_PAUSE_S = 6, 2.5  # the pause is longer than what the server and the page wait between two looks
TASKS, RATE, BUSY_S = 50, 20, 20.0
SETTLE_S = 3.0

LOAD = "%load_ext flowbook"
PARAMETERS = "%%flowparams\ncount = 10\nlow = 0.3\nhigh = 0.4"
TRAIN = f"""%%flowstep train
import random, time
from flowbook.cards import Markdown, Table
began, blocked, draw = time.time(), [], random.Random(7)
for n in range(count):
    stamp = f"{STAMP}"
    before = time.perf_counter()
    card.clear()
    card.append(Markdown(f"## Epoch {{n}} {{stamp}}"))
    card.append(Table([["Loss", f"{{1 / (n + 1):.4f}}"]]))
    card.refresh()
    blocked.append(time.perf_counter() - before)
    time.sleep(draw.uniform(low, high))"""
MANY = f"""%%flowstep each --foreach "i in range({TASKS})" --cpu 0.02
import time
from flowbook.cards import Markdown, Table
blocked, end, n = [], time.monotonic() + seconds, 0
while time.monotonic() < end:
    stamp = f"{STAMP}"
    before = time.perf_counter()
    card.clear()
    card.append(Markdown(f"## Task {{i}} {{stamp}}"))
    card.append(Table([["Loss", f"{{1 / (n + 1):.4f}}"]]))
    card.refresh()
    blocked.append(time.perf_counter() - before)
    n += 1
    time.sleep(1 / {RATE})"""
HOPS = """
import re as _re, time as _time
from flowbook.kernel import panel as _panel, panel_data as _panel_data
hops, sendings = {}, []
def _mark(card, at):
    found = _re.search(r"stamp:(\\d+):", str(card.get("components", "")))
    if found:
        hops.setdefault(found[1], [1000 * card["at"], None, None])[at] = 1000 * _time.time()
def _heard(self, message, _old=_panel_data.PanelData.heard):
    if message.get("f") == "card":
        _mark(message["card"], 1)
    return _old(self, message)
_panel_data.PanelData.heard = _heard
_widget = _panel.widget_class()
def _change(self, state, _old=_widget.change):
    for key, value in state.items():
        if key.startswith("card ") and value:
            _mark(value, 2)
    return _old(self, state)
_widget.change = _change
"""


@dataclass
class Figures:
    """Of all rounds but the first, milliseconds."""

    shown: list[float] = field(default_factory=list)
    painted: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    each: list[tuple[float, float, float]] = field(default_factory=list)  # of a round: shown p50, blocked p50, first card
    hops: dict[str, list[float]] = field(default_factory=dict)

    def take(self, seen: list[Seen], began: float, blocked: list[float]) -> Sample:
        """Raises Unavailable if nothing was seen."""
        later = [one for one in seen if one.n]
        if not later or not blocked:
            raise Unavailable("no refresh came to the page")
        shown = [one.shown - one.sent for one in later]
        self.shown += shown
        self.painted += [one.painted - one.sent for one in later]
        self.blocked += [1000 * each for each in blocked]
        self.first.append(seen[0].shown - 1000 * began)
        self.each.append((quantile(shown, 0.5), 1000 * quantile(blocked, 0.5), self.first[-1]))
        return Sample(self.each[-1][0])


def run(settings: Settings) -> Section:
    if not panel._built():
        raise Unavailable("the panel is not built here (.ci/frontend)")
    ours, theirs, first_runs = Figures(), Figures(), list[float]()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        browser = stack.enter_context(chromium())
        for n in range(min(settings.rounds, 3)):
            first_runs.append(_first_run(browser, folder / f"first{n}"))
        notebook = Notebook(browser, folder / "ours", [LOAD, PARAMETERS, TRAIN])
        stack.callback(notebook.close)
        notebook.lab.run_all()
        notebook.lab.wait_for_cells()
        notebook.run("%flow run --count 3", above=True)
        notebook.ended(120)
        notebook.run(HOPS)
        notebook.lab.wait_for_cells()
        contestants = [Contestant("flowbook: the panel in JupyterLab", "each card", lambda: _ours(notebook, ours, settings))]
        if settings.peers:
            server = _CardServer(browser, folder / "metaflow")
            stack.callback(server.close)
            name = f"metaflow {version_of('metaflow', 'metaflow')}: card server, a look each second"
            contestants.append(Contestant(name, "each card that is not left out", lambda: server.measure(theirs)))
        contest = Contest("`card.refresh()` in one task to the changed page: milliseconds, p50", "ms", False, contestants)
        contest.hold(settings.rounds)
        contests = [contest, *_others(contest, ours, theirs)]
        facts = [*_facts(ours, theirs, first_runs), *_many(browser, folder / "many", settings)]
    notes = [
        f"The task refreshes every {1000 * LOW_S:.0f} to {1000 * HIGH_S:.0f} ms, metaflow's {THEIR_PAUSE_S:g} s after the last; each card server's "
        "look and the card's interval are 1 s, the least there is. The first round is thrown away.",
        "Painted: the task of the page after the next frame.",
    ]
    return Section("cards", contests, facts, notes)


def _first_run(browser: Any, folder: Path) -> float:
    """Milliseconds from the first line of a step to its card, all cells of a new notebook run at once."""
    notebook = Notebook(browser, folder, [LOAD, PARAMETERS, TRAIN, "%flow run"])
    try:
        notebook.lab.run_all()
        notebook.ended(120)
        return float(stamps(notebook.page)[0].shown - 1000 * notebook.value("began"))
    finally:
        notebook.close()


def _ours(notebook: Notebook, figures: Figures, settings: Settings) -> Sample:
    count = settings.scaled(REFRESHES, 10)
    notebook.run("hops.clear()")
    notebook.lab.wait_for_cells()
    forget(notebook.page)
    notebook.run(f"%flow run --fresh --count {count} --low {LOW_S} --high {HIGH_S}", above=True)
    notebook.lab.until("document.querySelector('.fbp-word.fbp-is-running')")
    notebook.ended(60 + 2 * count * HIGH_S)
    seen = stamps(notebook.page)
    began, blocked, hops = notebook.value("[began, blocked, hops]")
    for one in seen:
        sent, heard, left = hops.get(str(one.n), (None, None, None))
        places = [one.sent, sent, heard, left, one.came, one.shown, one.painted]
        names = ("worker", "engine and socket", "kernel, until sent", "iopub, server, websocket", "page, until changed", "until painted")
        for name, (before, after) in zip(names, itertools.pairwise(places), strict=True):
            if one.n and before is not None and after is not None:
                figures.hops.setdefault(name, []).append(after - before)
    return figures.take(seen, began, blocked)


def _others(contest: Contest, ours: Figures, theirs: Figures) -> list[Contest]:
    """What else the same rounds tell: the time that the step stands still, and the first card."""
    found = []
    for title, place in (
        ("clear, append twice, refresh: milliseconds that the step stands still, p50", 1),
        ("the first line of a step to its first card in the page: milliseconds, warm", 2),
    ):
        other = Contest(title, "ms", False, contest.contestants, absent=dict(contest.absent))
        for each, figures in zip(contest.contestants, (ours, theirs), strict=False):
            other.samples[each.name] = [Sample(values[place]) for values in figures.each[1:]]
        found.append(other)
    return found


def _facts(ours: Figures, theirs: Figures, first_runs: list[float]) -> list[Fact]:
    facts = [
        Fact(f"refresh to the changed page, p50, p99, {len(ours.shown)} refreshes", _text(ours.shown)),
        Fact("refresh to painted, p50, p99", _text(ours.painted)),
        *(Fact(f"of that: {name}, p50, p99", _text(values)) for name, values in ours.hops.items()),
        Fact("blocked in clear, append, append, refresh, p50, p99", _text(ours.blocked)),
        Fact("first card after the first line of the step, warm, median and longest", _text(ours.first, 1.0)),
        Fact("the same, first run of a new notebook, all cells at once", ", ".join(f"{amount(each)} ms" for each in first_runs)),
    ]
    if theirs.shown:
        facts += [
            Fact(f"metaflow: refresh to the changed page, p50, p99, of {len(theirs.shown)} that came", _text(theirs.shown)),
            Fact("metaflow: blocked in clear, append, append, refresh, p50, p99", _text(theirs.blocked)),
        ]
    return facts


def _text(values: list[float], high: float = 0.99) -> str:
    return f"{amount(quantile(values, 0.5))} ms, {amount(quantile(values, high))} ms" if values else "none"


# ---- metaflow ---------------------------------------------------------------------------------------------------------


class _CardServer:
    """`python flow.py card server` with its page open. It is started with the first measurement."""

    def __init__(self, browser: Any, folder: Path) -> None:
        folder.mkdir()
        self._browser, self._folder = browser, folder
        self._environment = clean_environment(folder)
        self._server: subprocess.Popen[bytes] | None = None
        self._page: Any = None

    def measure(self, figures: Figures) -> Sample:
        """One run of the flow, beside the server that was there before. Raises Unavailable."""
        self._begin()
        forget(self._page)
        said = self._folder / "said.json"
        self._flow("run", "--count", str(THEIR_REFRESHES), "--pause", str(THEIR_PAUSE_S), "--said", str(said))
        found = json.loads(said.read_text())
        self._page.wait_for_timeout(1000 * SETTLE_S)
        return figures.take(stamps(self._page), found["began"], found["blocked"])

    def _begin(self) -> None:
        if self._server is not None:
            return
        self._flow("run")  # the server begins with the last run, and then follows the next ones
        port = _free_port()
        with (self._folder / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                [*self._command(), "card", "server", "--poll-interval", "1", "--port", str(port)],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        context = self._browser.new_context(viewport={"width": 1280, "height": 900})
        context.add_init_script(WATCH)
        context.route(
            "**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort()
        )  # fonts from elsewhere
        self._page = context.new_page()
        deadline = time.monotonic() + 60
        while True:
            try:
                self._page.goto(f"http://127.0.0.1:{port}/")
                return
            except Exception as error:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise Unavailable(f"the card server does not answer: {error}") from None
                time.sleep(0.2)

    def _command(self) -> list[str]:
        return [str(_python("metaflow")), str(PEERS / "metaflow_card.py"), "--no-pylint"]

    def _flow(self, *words: str) -> None:
        done = subprocess.run(
            [*self._command(), *words], env=self._environment, cwd=self._folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"metaflow_card.py failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")

    def close(self) -> None:
        if self._server is not None:
            end_tree(self._server.pid)
            self._server.wait()


# ---- many tasks -------------------------------------------------------------------------------------------------------


def _many(browser: Any, folder: Path, settings: Settings) -> list[Fact]:
    """50 tasks that refresh 20 times a second each, watched from all sides."""
    seconds = max(4.0, BUSY_S * settings.scale)
    notebook = Notebook(browser, folder, [LOAD, f"%%flowparams\nseconds = {seconds + 8}", MANY, inspect.getsource(tick)])
    try:
        page = notebook.page
        notebook.lab.run_all()
        notebook.lab.wait_for_cells()
        notebook.run(f"import asyncio\nidle = await tick(lambda: False, {seconds / 2})")
        notebook.lab.wait_for_cells()
        kernel = psutil.Process(notebook.value("__import__('os').getpid()"))
        notebook.run(f"%flow run --max-parallel {TASKS}", above=True)
        notebook.lab.until("Object.keys(window.stamps.known).length > 3", 120)
        page.wait_for_timeout(1000 * SETTLE_S)
        engine = psutil.Process(_engine(notebook.server.store))
        before = [_cpu(kernel), _cpu(engine), time.monotonic()]
        forget(page)
        notebook.run(f"late = await tick(lambda: False, {seconds})")
        notebook.lab.wait_for_cells()
        took = time.monotonic() - before[2]
        kernel_cpu, engine_cpu = (_cpu(kernel) - before[0]) / took, (_cpu(engine) - before[1]) / took
        counted = page.evaluate(
            "({ messages: stamps.messages, bytes: stamps.bytes, largest: stamps.largest, long: stamps.long, frames: stamps.frames })"
        )
        seen = stamps(page)
        notebook.ended(180)
        late, idle, blocked = notebook.value("[late, idle, [call for task in each for call in task.blocked]]")
    finally:
        notebook.close()
    what = f"{TASKS} tasks, {RATE} refreshes a second each"
    return [
        Fact(
            f"{what}: kernel's main loop late, p99, p99.9 (idle: p99.9)",
            f"{amount(quantile(late, 0.99))} ms, {amount(quantile(late, 0.999))} ms ({amount(quantile(idle, 0.999))} ms)",
        ),
        Fact(
            f"{what}: messages and bytes to the page",
            f"{amount(counted['messages'] / took)} /s, {amount(counted['bytes'] / took / 1000)} kB/s",
        ),
        Fact(f"{what}: largest message", f"{amount(counted['largest'] / 1000)} kB"),
        Fact(
            f"{what}: page: frames a second, longest task",
            f"{amount(counted['frames'] / took)}, {amount(max(counted['long'], default=0.0))} ms",
        ),
        Fact(f"{what}: the shown card, changes a second", amount(len(seen) / took)),
        Fact(f"{what}: the shown card, refresh to the changed page, p50, p99", _text([one.shown - one.sent for one in seen])),
        Fact(f"{what}: CPU of the kernel, of the engine, of a core", f"{100 * kernel_cpu:.0f} %, {100 * engine_cpu:.0f} %"),
        Fact(f"{what}: blocked in clear, append, append, refresh, p50, p99", _text([1000 * each for each in blocked])),
    ]


def _engine(store: Path) -> int:
    """The process of the engine of this store."""
    entry = next(iter(store.glob("**/engines/*.json")))
    return int(json.loads(entry.read_bytes())["pid"])


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
