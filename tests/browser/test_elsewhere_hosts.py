"""The panel in other hosts: the oldest JupyterLab, ipykernel and anywidget that pyproject.toml allows; Notebook 7 with ipykernel 7.3.

Each is a real server of an environment of its own (hosts/*.txt, made once, outside the checkout), and a kernel of that environment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environments import PeerMissing, python_for
from tests.browser.lab import ROOT, Lab, Server
from tests.browser.test_panel import BUILT, LOAD, ended, opened, save, waits_for
from tests.conftest import end_processes_of

REQUIRED = os.environ.get("FLOWBOOK_BROWSER_TESTS") == "required"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first time, an environment is made
    pytest.mark.skipif(not BUILT, reason="the panel is not built here (.ci/frontend): NO NODE? Its tests did not run"),
]


@dataclass(frozen=True)
class Host:
    """`app` is the package that is started; `asks_while_busy` whether a click reaches a kernel whose main thread a cell blocks."""

    name: str
    app: str
    asks_while_busy: bool
    own_errors: tuple[str, ...] = ()  # of the page with a notebook in it that does nothing

    @property
    def pins(self) -> Path:
        return Path(__file__).parent / "hosts" / f"{self.name}.txt"

    def pinned(self, package: str) -> str:
        return re.findall(rf"^{package}==([0-9.]+)", self.pins.read_text(), re.MULTILINE)[0]


OLDEST = Host("oldest", "jupyterlab", asks_while_busy=False)
NOTEBOOK_7 = Host("notebook7", "notebook", asks_while_busy=True, own_errors=("Cannot read properties of undefined (reading 'schema')",))


def interpreter(host: Host) -> Path:
    why = ""
    for _ in range(3):  # a download may fail
        try:
            return python_for(host.pins)
        except PeerMissing as error:
            why = str(error)
    (pytest.fail if REQUIRED else pytest.skip)(why)


@pytest.fixture(scope="module", params=[OLDEST, NOTEBOOK_7], ids=lambda host: host.name)
def host(request: Any) -> Host:
    found: Host = request.param
    return found


@pytest.fixture(scope="module")
def server(host: Host, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp(host.name), interpreter(host), host.app)
    yield started
    started.close()
    end_processes_of(started.store)


def counting(go: Path) -> str:
    """A step body whose card counts until a file is there."""
    return f"""import pathlib, time
n = 0
while not pathlib.Path({str(go)!r}).exists():
    n += 1
    card.clear()
    card.append(f"# Epoch {{n}}")
    card.refresh()
    time.sleep(0.05)
x = n"""


def test_a_run_is_seen_moves_is_stopped_and_stays(lab: Lab, host: Host, tmp_path: Path) -> None:
    go, free = tmp_path / "go", tmp_path / "free"
    path = opened(
        lab,
        tmp_path / "host.ipynb",
        f"{LOAD}\nimport ipykernel\nprint(ipykernel.__version__)",
        "%%flowstep start\nprint('said by start')\nm = 2",
        f"%%flowstep train --foreach 'i in range(m)'\n{counting(go)}",
        "%flow run",
        f"print('blocks')\n{waits_for(free)}\nprint('over')",
    )
    page = lab.page
    lab.cell(4).locator(".jp-OutputArea-output", has_text="blocks").wait_for()
    assert page.evaluate("window.jupyterapp.version") == host.pinned(host.app)
    assert lab.output(0) == host.pinned("ipykernel")

    # The card moves while another cell blocks the kernel.
    card = page.locator(".fbp-card h1")
    seen = [card.inner_text()]
    for _ in range(3):
        page.wait_for_function("text => document.querySelector('.fbp-card h1').innerText !== text", arg=seen[-1])
        seen.append(card.inner_text())
    assert len(set(seen)) == 4 and lab.busy() == 1
    assert page.locator("[data-flowbook-run]").filter(visible=True).count() == 0

    # Stop works in the meantime, or else it is said why not, and it works afterwards.
    page.locator(".fbp-row[aria-label^='train[1]']").click()
    page.get_by_role("button", name="Stop task").click()
    if host.asks_while_busy:
        page.wait_for_selector(".fbp-row[aria-label^='train[1]'][aria-label*='stopped']")
        assert lab.busy() == 1
        free.touch()
    else:
        page.wait_for_selector(".fbp-trouble >> text=The kernel has not heard this click yet")
        assert lab.busy() == 1
        lab.picture(f"host-{host.name}-not-heard")
        free.touch()
        page.wait_for_selector(".fbp-row[aria-label^='train[1]'][aria-label*='stopped']")
        page.wait_for_selector(".fbp-trouble", state="detached")
    lab.wait_for_cells(60)
    lab.picture(f"host-{host.name}-running", whole=True)
    go.touch()
    ended(lab)

    # Reopened, the copy that lasts is there.
    page.wait_for_function("document.querySelector('[data-flowbook-run] .fb-graph svg') !== null")
    saved = save(lab)
    page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll()")
    path.with_name("again.ipynb").write_text(json.dumps(saved))
    lab.visit("again.ipynb")
    page.wait_for_selector(".jp-NotebookPanel [data-flowbook-run] svg")
    page.wait_for_selector("text=said by start")
    page.wait_for_selector("[data-flowbook-run] h1:has-text('Epoch')")
    page.wait_for_selector("text=/model not found|Loading widget/", state="attached")
    assert page.locator("text=/model not found|Loading widget/").filter(visible=True).count() == 0
    assert page.locator(".fbp").count() == 0
    lab.picture(f"host-{host.name}-reopened", whole=True)
    assert [error for error in lab.errors if error not in host.own_errors] == []


def test_the_oldest_host_is_what_pyproject_allows() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package in ("jupyterlab", "ipykernel", "anywidget", "ipython", "nbclient"):
        lowest = re.findall(rf'"{package}>=([0-9.]+)', text)[0]

        assert OLDEST.pinned(package).removesuffix(".0") == lowest.removesuffix(".0"), package
