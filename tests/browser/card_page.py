"""A bare page that draws cards as the run panel does, and a server that must never be asked for anything.

`CardPage` bundles labextension/src/card with the build's own esbuild, serves it, and draws what a test gives. `Trap` counts every connection, so
that also what a browser does without a request (preconnect) is seen.
"""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).parents[2]
ENTRY = """
export { renderCard } from "./card/index";
export { loadVega } from "./card/vega-loader";
"""
BUILD = """
import { build } from "esbuild";
import { BUNDLE } from "./labextension/bundle.mjs";
const [out] = process.argv.slice(-1);
const common = { ...BUNDLE, target: "es2022", charset: "utf8" };
await build({ ...common, stdin: { contents: %s, resolveDir: "labextension/src", loader: "ts" }, outfile: out + "/card.js" });
await build({ ...common, entryPoints: ["labextension/src/vega.ts"], outfile: out + "/vega.js", minify: true });
await build({ ...common, entryPoints: ["labextension/src/card/card.css"], outfile: out + "/card.css" });
"""
PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"><title>cards</title><link rel="stylesheet" href="card.css">
<style>body { margin: 16px; background: #fff; color: #111 } body.dark { background: #111418; color: #eee } #cards { max-width: 900px }</style></head>
<body><div id="outside">outside</div><div id="cards"></div><script type="module">
import { renderCard, loadVega } from "./card.js";
window.canary = "alive";
let asked = 0;
const vega = () => loadVega("test", async () => { asked += 1; return await (await fetch("vega.js")).arrayBuffer(); });
const ends = new Map();
window.cards = {
    draw(name, card, theme = "light") {
        let el = document.getElementById("cards").querySelector(`:scope > [data-name="${CSS.escape(name)}"]`);
        if (!el) {
            el = document.createElement("div");
            el.dataset.name = name;
            document.getElementById("cards").append(el);
        }
        document.body.classList.toggle("dark", theme === "dark");
        document.body.toggleAttribute("data-flowbook-dark", theme === "dark");
        ends.set(name, renderCard(el, card, { vega, theme }));
    },
    end(name) { ends.get(name)(); },
    asked: () => asked,
};
</script></body></html>"""


def node() -> str | None:
    """node, if the front end can be built here."""
    found = shutil.which("node")
    return found if found and (ROOT / "node_modules" / "esbuild").exists() else None


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    """A server of the files of a folder, on a free port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args, **more: _Handler(*args, directory=str(folder), **more))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class CardPage:
    """The page, open in a browser. Raises if the front end cannot be built."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        script = BUILD % json.dumps(ENTRY)
        subprocess.run([node() or "node", "--input-type=module", "-e", script, "--", str(folder)], cwd=ROOT, check=True)
        (folder / "index.html").write_text(PAGE)
        self._http = serve(folder)
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.trap = Trap()
        self.context: BrowserContext = browser.new_context(viewport={"width": 1000, "height": 900})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.seen: list[str] = []  # requests, but for those of the page itself
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self.popups: list[str] = []
        self.context.on("request", lambda request: self._request(request.url))
        self.context.on("requestfailed", self._failed)
        self.page.on("dialog", self._dialog)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()
        self.context.on("page", lambda page: self.popups.append(page.url))

    def open(self) -> None:
        self.page.goto(f"{self.address}/index.html")
        self.page.wait_for_function("window.cards")

    def draw(self, card: Any, name: str = "main", theme: str = "light") -> Any:
        """Draws a card, or draws it anew; gives its element."""
        self.page.evaluate("([name, card, theme]) => window.cards.draw(name, JSON.parse(card), theme)", [name, _json(card), theme])
        return self.page.locator(f'#cards > [data-name="{name}"]')

    def settled(self, timeout_s: float = 30) -> None:
        """Until every chart is drawn, or says why not, and every image is decoded."""
        self.page.wait_for_function(
            """() => ![...document.querySelectorAll('.fbl-next')].length
                && ![...document.querySelectorAll('figure .fbl-dim')].some(el => !el.hidden && el.textContent.endsWith('being drawn …'))""",
            timeout=timeout_s * 1000,
        )

    def close(self) -> None:
        self.context.close()
        self._http.shutdown()
        self._http.server_close()
        self.trap.close()

    def _request(self, url: str) -> None:
        own = url.startswith((f"{self.address}/index.html", f"{self.address}/card.", f"{self.address}/vega.js", f"{self.address}/favicon"))
        if not own and not url.startswith(("data:", "blob:", "about:")):
            self.seen.append(url)

    def _failed(self, request: Any) -> None:
        """A request that a policy kept in the browser is announced, too."""
        if request.failure == "csp" and request.url in self.seen:
            self.seen.remove(request.url)

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


def _json(card: Any) -> str:
    return card if isinstance(card, str) else json.dumps(card)


class Trap:
    """A server that notes what comes. Raw, since a connection alone would tell something."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.heard: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                found, _ = self._socket.accept()
            except OSError:
                return
            with found:
                found.settimeout(1)
                try:
                    said = found.recv(200).decode("latin-1").partition("\r\n")[0]
                except OSError:
                    said = ""
                self.heard.append(said or "a connection")
                try:
                    found.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    pass

    def close(self) -> None:
        self._socket.close()
