"""A bare page with the run panel as it is built, moved by a model that a test changes as a kernel would, and no kernel.

For what would take a real run too long (ten minutes of updates) or what no honest kernel would send. Raises if the panel is not built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page

from flowbook.kernel.panel import STATIC
from flowbook.kernel.panel_data import Graph, Shown
from tests.browser.card_page import Trap, serve

Json = Any

PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"><title>panel</title><link rel="stylesheet" href="panel.css">
<style>body { margin: 16px; background: #fff; color: #111 } #panel { max-width: 1000px }</style></head>
<body><div id="outside">outside</div><div id="panel"></div><script type="module">
import panel from "./panel.js";
window.canary = "alive";
class Model {
    state = {}; sent = []; heard = new Map();
    get(key) { return this.state[key]; }
    on(event, f) { if (!this.heard.has(event)) this.heard.set(event, new Set()); this.heard.get(event).add(f); }
    off(event, f) { this.heard.get(event)?.delete(f); }
    send(message) { this.sent.push(message); }
    change(state) {
        Object.assign(this.state, state);
        for (const key of Object.keys(state)) this.heard.get(`change:${key}`)?.forEach((f) => f());
        this.heard.get("change")?.forEach((f) => f());
    }
    listeners() { return [...this.heard.values()].reduce((sum, each) => sum + each.size, 0); }
}
const views = new Map();
window.panels = {
    model: new Model(),
    open(name = "main") {
        const el = document.createElement("div");
        el.dataset.view = name;
        document.getElementById("panel").append(el);
        views.set(name, [el, panel.render({ model: this.model, el })]);
    },
    close(name = "main") {
        const [el, end] = views.get(name);
        end();
        el.remove();
        views.delete(name);
    },
    /** The states one after the other, each in a frame of its own; gives how long the longest task of the page was, milliseconds. */
    async play(states) {
        let longest = 0;
        const watch = new PerformanceObserver((list) => { for (const one of list.getEntries()) longest = Math.max(longest, one.duration); });
        watch.observe({ entryTypes: ["longtask"] });
        for (const state of states) {
            const begun = performance.now();
            this.model.change(state);
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            window.slowest = Math.max(window.slowest ?? 0, performance.now() - begun);
        }
        watch.disconnect();
        return longest;
    },
};
</script></body></html>"""


class PanelPage:
    """The page, open in a browser; `trap` is a server that must never be asked for anything."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("panel.js", "panel.css"):
            (folder / name).write_bytes((STATIC / name).read_bytes())
        (folder / "index.html").write_text(PAGE)
        self._http = serve(folder)
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.trap = Trap()
        self.context: BrowserContext = browser.new_context(viewport={"width": 1000, "height": 900})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.goto(f"{self.address}/index.html")
        self.page.wait_for_function("window.panels")
        self.asked.clear()

    def change(self, state: Mapping[str, Json] | str) -> None:
        """New values of some keys of the model, as one message of the kernel brings them; also as JSON, for what Python cannot write."""
        self.page.evaluate("text => window.panels.model.change(JSON.parse(text))", state if isinstance(state, str) else json.dumps(state))

    def open(self, name: str = "main") -> None:
        self.page.evaluate("name => window.panels.open(name)", name)

    def close_view(self, name: str = "main") -> None:
        self.page.evaluate("name => window.panels.close(name)", name)

    def sent(self) -> list[Json]:
        found: list[Json] = self.page.evaluate("window.panels.model.sent")
        return found

    def close(self) -> None:
        self.context.close()
        self._http.shutdown()
        self._http.server_close()
        self.trap.close()


def state(shown: Shown, graph: Graph) -> dict[str, Json]:
    """By the keys of the model, as the kernel sends them."""
    details = {f"detail {name}": detail for name, detail in shown.details.items()}
    return {
        "head": shown.head,
        "graph": graph,
        "steps": shown.steps,
        "tasks": shown.tasks,
        "tables": shown.tables,
        **details,
        **shown.cards,
    }
