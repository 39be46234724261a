"""What the benchmarks see in a real page: Chromium, and in it a watch on stamps, one form for our panel and for a peer's page.

A stamp is a text that a step puts into its card: its number, and the time when the step called `refresh`, by the clock of this machine,
which is the page's clock too. The watch notes when a stamp came into the page (the document was changed) and when it was painted (the
task after the next frame). What came over websockets is counted beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from benchmarks.measure import Unavailable
from tests.browser.lab import ARGUMENTS, CHROMIUM, Lab, Server
from tests.conftest import end_processes_of

STAMP = "stamp:{n}:{1000 * time.time():.3f}:"  # as an f-string of a step
WATCH = r"""(() => {
    const now = () => performance.timeOrigin + performance.now();
    const stamp = /stamp:(\d+):(\d+\.\d+):/g;
    let seen;
    try { seen = window.top.stamps ??= { known: {}, order: [], came: {}, messages: 0, bytes: 0, largest: 0, long: [], frames: 0 }; } catch { return; }
    const look = (text) => {
        for (const [id, n, sent] of text.matchAll(stamp)) {
            if (seen.known[id]) continue;
            const one = seen.known[id] = { n: +n, sent: +sent, shown: now(), painted: 0 };
            seen.order.push(one);
            requestAnimationFrame(() => {
                const after = new MessageChannel();
                after.port1.onmessage = () => { one.painted = now(); };
                after.port2.postMessage(0);
            });
        }
    };
    new MutationObserver((records) => {
        for (const record of records) {
            if (record.type === "characterData") look(record.target.data);
            for (const node of record.addedNodes) if (node.textContent.length < 100000) look(node.textContent);
        }
    }).observe(document, { subtree: true, childList: true, characterData: true });
    if (window !== window.top) return;
    new PerformanceObserver((list) => { for (const one of list.getEntries()) seen.long.push(one.duration); }).observe({ entryTypes: ["longtask"] });
    const count = () => { seen.frames += 1; requestAnimationFrame(count); };
    requestAnimationFrame(count);
    const decoder = new TextDecoder();
    window.WebSocket = class extends window.WebSocket {
        constructor(...given) {
            super(...given);
            this.addEventListener("message", ({ data }) => {
                const at = now(), text = typeof data === "string" ? data : decoder.decode(data);
                seen.messages += 1;
                seen.bytes += text.length;
                seen.largest = Math.max(seen.largest, text.length);
                for (const [id] of text.matchAll(stamp)) seen.came[id] ??= at;
            });
        }
    };
})()"""


@dataclass(frozen=True)
class Seen:
    """One stamp in the page; all times are milliseconds since the epoch. `came`: with which message of a websocket, if with one."""

    n: int
    sent: float
    shown: float
    painted: float
    came: float | None


@contextmanager
def chromium() -> Iterator[Any]:
    """Raises Unavailable where there is none."""
    if CHROMIUM is None:
        raise Unavailable("no Chromium here (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def stamps(page: Any) -> list[Seen]:
    """Those that were seen since `forget`, in their order."""
    found = page.evaluate(
        "Object.entries(window.stamps.known).map(([id, one]) => [one.n, one.sent, one.shown, one.painted, window.stamps.came[id] ?? null])"
    )
    return sorted((Seen(*each) for each in found if each[3]), key=lambda one: one.shown)


def forget(page: Any) -> None:
    page.evaluate(
        "Object.assign(window.stamps, { known: {}, order: [], came: {}, messages: 0, bytes: 0, largest: 0, long: [], frames: 0 })"
    )


class Notebook:
    """A notebook in JupyterLab in Chromium; it begins with some cells, then cells are run in its last one but one, or its last."""

    def __init__(self, browser: Any, folder: Path, cells: list[str]) -> None:
        self.server = Server(folder)
        self.lab = Lab(self.server, browser, folder)
        self.page = self.lab.page
        self.page.context.add_init_script(WATCH)
        self._last = len(cells) + 1
        written = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (*cells, "", "")])
        written.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(written, folder / "bench.ipynb")
        self.lab.open(folder / "bench.ipynb")

    def run(self, code: str, *, above: bool = False) -> None:
        """Run a cell without waiting; `above`: in the place where runs are shown."""
        self.page.evaluate(
            """([n, code]) => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = n;
                notebook.activeCell.model.sharedModel.setSource(code);
                notebook.activeCell.node.scrollIntoView();
                return window.jupyterapp.commands.execute('notebook:run-cell') && null;
            }""",
            [self._last - above, code],
        )

    def value(self, expression: str) -> Any:
        """The value of an expression that JSON can say."""
        self.run(f"import json; print('VALUE' + json.dumps({expression}))")
        self.lab.wait_for_cells()
        return json.loads(self.lab.output(self._last).split("VALUE", 1)[1])

    def ended(self, timeout_s: float) -> None:
        """Until the run that is shown has ended. Raises Unavailable if it failed."""
        from playwright.sync_api import TimeoutError

        try:
            self.lab.until("document.querySelector('.fbp-word:is(.fbp-is-succeeded, .fbp-is-failed)')", timeout_s)
        except TimeoutError as error:
            raise Unavailable(f"no end of the run was seen: {self.lab.story()}") from error
        self.lab.wait_for_cells()
        if self.page.locator(".fbp-word.fbp-is-failed").count():
            raise Unavailable(f"the run failed: {self.lab.story()}")

    def close(self) -> None:
        self.lab.close()
        self.server.close()
        end_processes_of(self.server.store)
