"""A real JupyterLab in a real browser, as the browser tests drive it.

`Server` is a JupyterLab, or a Notebook 7, with settings, runtime files and home of its own; `Lab` is one browser page on it. What
a user would click is clicked; what a user would read is read from the page; only where the notebook shows cells in windows or
animates is its own API asked (`jupyterapp`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # else only the cells in view are in the page
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
ROOT = Path(__file__).parents[2]
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"


class Server:
    """A JupyterLab server on a free port; `folder` holds its notebooks and all it writes.

    `python` is the interpreter of another environment, which has all that flowbook needs, but not flowbook: that is found in this
    checkout. `app` is the module that is started: jupyterlab or notebook. `environ`: variables of its kernels.
    """

    def __init__(self, folder: Path, python: Path | None = None, app: str = "jupyterlab", environ: Mapping[str, str] | None = None) -> None:
        self.folder, self.python, self.app, self.environ = folder, python, app, dict(environ or {})
        self.notebooks = folder / "notebooks"
        self.store = folder / "store"
        self.notebooks.mkdir(parents=True)
        self._write_settings()
        self.token = secrets.token_hex(16)
        self.port = _free_port()
        self.log = (folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            [
                *(str(python or sys.executable), "-m", app, "--no-browser", "--allow-root", f"--ServerApp.port={self.port}"),
                *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.notebooks}", f"--IdentityProvider.token={self.token}"),
                *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
                "--JupyterNotebookApp.expose_app_in_browser=True",
            ],
            env=self._environment(),
            cwd=self.notebooks,
            stdout=self.log,
            stderr=self.log,
        )
        self._wait()

    def url(self, path: str = "lab") -> str:
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}"

    def close(self) -> None:
        """Ends the server, and with it the kernels that it started."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def _environment(self) -> dict[str, str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("FLOWBOOK_", "JUPYTER", "JPY_", "XDG_"))}
        places = {
            "HOME": "home",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
            "FLOWBOOK_STORE": "store",
        }
        (self.folder / "home").mkdir()
        found = environ | {key: str(self.folder / name) for key, name in places.items()} | self.environ
        return found if self.python is None else found | {"PYTHONPATH": str(ROOT)}

    def _write_settings(self) -> None:
        for name, settings in SETTINGS.items():
            path = self.folder / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))

    def _wait(self, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                urllib.request.urlopen(self.url("api/status"), timeout=5).close()
                return
            except OSError as error:
                text = (self.folder / "server.log").read_text(errors="replace")
                assert self.process.poll() is None, f"JupyterLab did not start:\n{text}"
                assert time.monotonic() < deadline, f"JupyterLab does not answer ({error}):\n{text}"
                time.sleep(0.1)


class Lab:
    """One page of JupyterLab with one notebook open in it."""

    def __init__(self, server: Server, browser: Browser, pictures: Path) -> None:
        self.server = server
        self.pictures = pictures
        self.page: Page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, notebook: Path) -> None:
        """Copies a notebook to the server's folder, opens it, and waits for its kernel."""
        self.visit(shutil.copy(notebook, self.server.notebooks / notebook.name).name)
        self.until("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
        if self.server.app == "jupyterlab":
            self.command("application:toggle-left-area")  # the file browser, which a fresh workspace shows

    def visit(self, name: str) -> None:
        """Goes to a notebook of the server's folder, and waits for its cells."""
        if self.server.app == "notebook":
            self.page.goto(self.server.url(f"notebooks/{name}"))
        else:
            workspace = f"w{secrets.token_hex(4)}"  # a fresh one, else the notebooks of the page before come back
            self.page.goto(self.server.url(f"lab/workspaces/{workspace}/tree/{name}"))
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")

    def menu(self, *names: str) -> None:
        """Clicks through a menu: ``lab.menu("Run", "Run All Cells")``."""
        bar, *items = names
        self.page.locator(".lm-MenuBar-itemLabel", has_text=bar).filter(has_text=bar).first.click()
        for item in items:
            self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def run_all(self) -> None:
        self.until("window.jupyterapp.commands.isEnabled('runmenu:run-all')")  # else a click on the entry does nothing
        self.menu("Run", "Run All Cells")

    def interrupt(self) -> None:
        self.menu("Kernel", "Interrupt Kernel")

    def command(self, name: str, **args: Any) -> None:
        self.page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args) }", [name, args])

    def run_cell(self, number: int) -> None:
        """Shift-Enter in a cell (of all cells, from 0), without waiting for its end."""
        self.cell(number).locator(".cm-content").first.click()
        self.page.keyboard.press("Shift+Enter")

    def cell(self, number: int) -> Any:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def cells(self) -> list[dict[str, Any]]:
        """All cells as they are now in the notebook's model, with outputs."""
        return self.page.evaluate("window.jupyterapp.shell.currentWidget.content.model.toJSON().cells")

    def output(self, number: int) -> str:
        """The text that is seen below a cell."""
        return "\n".join(self.cell(number).locator(".jp-OutputArea-output").all_inner_texts()).strip()

    def squeezed(self, number: int) -> list[str]:
        """The fields of the status and of tables below a cell whose text is wider than its place, so that it runs into the next."""
        fields = self.cell(number).locator(".jp-OutputArea :is(td, .fb-rows > div > *)")
        assert fields.count() > 0, "there is no status"
        return fields.evaluate_all(
            "fields => fields.filter(f => f.innerText.trim() && f.scrollWidth > f.clientWidth + 1).map(f => f.innerText)"
        )

    def busy(self) -> int:
        """How many cells run or wait for their turn."""
        return self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt", has_text="[*]").count()

    def wait_for_cells(self, timeout_s: float = 180) -> None:
        """Until no cell runs or waits. Raises TimeoutError with the outputs so far."""
        deadline = time.monotonic() + timeout_s
        self.page.wait_for_timeout(300)  # the prompts change a moment after the click
        while self.busy():
            if time.monotonic() > deadline:
                self.picture("timeout")
                raise TimeoutError(f"cells still run after {timeout_s} s\n{self.story()}")
            self.page.wait_for_timeout(100)

    def story(self) -> str:
        """All cells' first lines and outputs, for messages of failed tests."""
        lines = []
        for number, cell in enumerate(self.cells()):
            if cell["cell_type"] == "code":
                lines.append(f"[{number}] {str(cell['source']).splitlines()[:1]}\n{self.output(number)}")
        return "\n".join(lines)

    def last_words(self, name: str) -> str:
        """What a failed test leaves: cells, kernel, errors of the page, the end of the server's log; a picture beside the others."""
        try:
            picture = self.picture(f"failed-{re.sub(r'[^A-Za-z0-9]+', '-', name)}")
            kernel = self.page.evaluate(
                "(() => { const s = window.jupyterapp?.shell.currentWidget?.sessionContext;"
                " return [s?.session?.kernel?.status, s?.session?.kernel?.connectionStatus, document.querySelector('.jp-Dialog')?.innerText] })()"
            )
            seen = f"picture {picture.name}; kernel and dialog {kernel}; errors {self.errors}\n{self.story()}"
        except Exception as error:
            seen = f"the page does not answer: {error!r}"
        log = (self.server.folder / "server.log").read_text(errors="replace")
        return f"{seen}\n--- server.log\n{log[-4000:]}"

    def until(self, condition: str, timeout_s: float = 60) -> None:
        """Until a JavaScript expression is true in the page."""
        self.page.wait_for_function(condition, timeout=timeout_s * 1000)

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=name)
        self.until(f"document.body.dataset.jpThemeName === {name!r}")

    def picture(self, name: str, width: int = 1280, whole: bool = False) -> Path:
        """A screenshot; `whole`: as high as the notebook is, at most 9,000 pixels."""
        before = self.page.viewport_size
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.wait_for_timeout(400)  # fonts and panels settle
        if whole:
            bottom = self.page.evaluate(
                """() => {
                    document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0;
                    return Math.max(...[...document.querySelectorAll('.jp-Notebook .jp-Cell')].map(c => c.getBoundingClientRect().bottom));
                }"""
            )
            self.page.set_viewport_size({"width": width, "height": min(9_000, int(bottom) + 60)})
            self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
            self.page.wait_for_timeout(400)
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        if before:
            self.page.set_viewport_size(before)
        return path

    def close(self) -> None:
        """Shuts the kernels down, as nobody looks at them any more, and closes the page."""
        self.page.evaluate("window.jupyterapp?.serviceManager.sessions.shutdownAll()")
        self.page.context.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
