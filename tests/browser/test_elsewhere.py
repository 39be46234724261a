"""The panel in JupyterLab beside the common case: two views, a restarted kernel, other ways to see, Vega, the seed's training card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError

from tests.browser.lab import LIGHT, Lab
from tests.browser.test_elsewhere_hosts import counting
from tests.browser.test_panel import BUILT, LOAD, ended, opened, save, waits_for

SEED = Path(__file__).parents[1] / "seed"
CONTRAST = "JupyterLab Dark High Contrast"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason="the panel is not built here (.ci/frontend): NO NODE? Its tests did not run"),
]


def block(lab: Lab, number: int) -> None:
    """Until the cell that says so blocks the kernel."""
    lab.cell(number).locator(".jp-OutputArea-output", has_text="blocks").wait_for()


def all_move(lab: Lab, count: int) -> None:
    """Until the cards of that many panels each show something else."""
    page = lab.page
    page.wait_for_function("count => document.querySelectorAll('.fbp-card h1').length >= count", arg=count)
    before = page.locator(".fbp-card h1").all_inner_texts()
    page.wait_for_function(
        "before => [...document.querySelectorAll('.fbp-card h1')].every((el, i) => el.innerText !== before[i])", arg=before
    )


def test_the_training_card_of_the_seed_moves_while_another_cell_blocks_the_kernel(lab: Lab, tmp_path: Path) -> None:
    free = tmp_path / "free"
    (lab.server.notebooks / "training.py").write_text(
        f"""import pathlib, time
trained = 0
def train_one_epoch():
    global trained
    trained += 1
    while not pathlib.Path({str(tmp_path)!r}, f"epoch-{{trained}}").exists():
        time.sleep(0.02)
    return 1 / trained
"""
    )
    seed = (SEED / "card_flow.py").read_text().partition("\nif __name__")[0]
    opened(lab, tmp_path / "seed.ipynb", LOAD, seed, "%flow run CardFlow", f"print('blocks')\n{waits_for(free)}")
    page = lab.page
    block(lab, 3)
    seen = []
    for epoch in range(5):
        (tmp_path / f"epoch-{epoch + 1}").touch()
        page.wait_for_function("epoch => document.querySelector('.fbp-card')?.innerText.includes(`Epoch ${epoch}/5`)", arg=epoch)
        page.wait_for_function("loss => document.querySelector('.fbp-card').innerText.includes(loss)", arg=f"{1 / (epoch + 1):.4f}")
        seen.append(page.locator(".fbp-card").first.inner_text())
        assert lab.busy() == 1
        if epoch == 3:
            lab.picture("seed-card", whole=True)
    assert len(set(seen)) == 5
    ended(lab, "succeeded")
    assert lab.busy() == 1
    free.touch()
    lab.wait_for_cells(60)
    assert lab.errors == []


def test_both_views_of_one_notebook_are_live(lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    opened(lab, tmp_path / "views.ipynb", LOAD, f"%%flowstep train\n{counting(go)}", "%flow run")
    page = lab.page
    page.wait_for_selector(".fbp-card h1")
    lab.wait_for_cells(60)
    lab.menu("File", "New View for Notebook")
    page.wait_for_function("document.querySelectorAll('.jp-NotebookPanel .fbp').length === 2")
    all_move(lab, 2)
    lab.picture("two-views")
    assert page.locator("[data-flowbook-run]").filter(visible=True).count() == 0

    # One closed, the other goes on, and the static status stays hidden.
    lab.command("application:close")
    page.wait_for_function("document.querySelectorAll('.jp-NotebookPanel .fbp').length === 1")
    all_move(lab, 1)
    assert page.locator("[data-flowbook-run]").filter(visible=True).count() == 0
    go.touch()
    ended(lab, "succeeded")
    assert lab.errors == []


def test_a_restarted_kernel_is_told_of_and_attach_brings_a_live_panel(lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    path = opened(lab, tmp_path / "restart.ipynb", LOAD, f"%%flowstep train\n{counting(go)}", "%flow run", "pass")
    page = lab.page
    page.wait_for_selector(".fbp-card h1")
    lab.wait_for_cells(60)
    lab.menu("Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog .jp-mod-accept").click()

    # The old panel keeps what it had, and says that its kernel is gone.
    page.wait_for_selector(".fbp-trouble >> text=The kernel that showed this has ended")
    lab.until("window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
    assert "%flow attach 1" in page.locator(".fbp-trouble").inner_text() and page.locator(".fbp-card h1").inner_text().startswith("Epoch")
    assert lab.cell(2).locator(".fbp-button").filter(visible=True).count() == 0
    lab.picture("restart", whole=True)

    # A live one is brought by attach; nothing is there twice.
    page.evaluate(
        "source => { window.jupyterapp.shell.currentWidget.content.widgets[3].model.sharedModel.setSource(source) }",
        f"{LOAD}\n%flow attach 1",
    )
    lab.run_cell(3)
    lab.cell(3).locator(".fbp-card h1").wait_for()
    before = lab.cell(3).locator(".fbp-card h1").inner_text()
    page.wait_for_function("before => [...document.querySelectorAll('.fbp-card h1')].at(-1).innerText !== before", arg=before)
    assert [lab.cell(n).locator(".fbp").count() for n in (2, 3)] == [1, 1]
    go.touch()
    lab.cell(3).locator(".fbp-word.fbp-is-succeeded").wait_for()
    page.wait_for_function("document.querySelectorAll('[data-flowbook-run] .fb-head').length === 2")

    # Saved and reopened, each of the cells has one copy: of the first what its kernel last showed, of the second the end.
    page.wait_for_function("[...document.querySelectorAll('[data-flowbook-run] .fb-head')].at(-1).textContent.includes('succeeded')")
    saved = save(lab)
    page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll()")
    path.with_name("restarted.ipynb").write_text(json.dumps(saved))
    lab.visit("restarted.ipynb")
    page.wait_for_selector("[data-flowbook-run] .fb-head >> text=succeeded")
    heads = page.locator("[data-flowbook-run] .fb-head").filter(visible=True).all_inner_texts()
    assert ["running" in heads[0], "succeeded" in heads[1]] == [True, True] and len(heads) == 2
    assert lab.errors == []


# What is written in a panel and how it stands out against what is behind it (WCAG 2.2, relative luminance).
FAINTEST = """() => {
    const light = (rgb) => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
    const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const paint = (colours) => { pen.clearRect(0, 0, 1, 1); for (const one of colours) { pen.fillStyle = one; pen.fillRect(0, 0, 1, 1); } return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3); };
    const behind = (el) => el ? [...behind(el.parentElement), getComputedStyle(el).backgroundColor] : ['#fff'];
    const found = [];
    for (const el of document.querySelectorAll('.fbp *')) {
        const text = [...el.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('').trim();
        if (!text || !el.checkVisibility() || el.localName === 'title' || el.localName === 'option') continue;
        const ground = behind(el), style = getComputedStyle(el), ink = el.namespaceURI.endsWith('svg') ? style.fill : style.color;
        const [a, b] = [light(paint(ground)), light(paint([...ground, ink]))].sort((x, y) => y - x);
        found.push([(a + .05) / (b + .05), text.slice(0, 40)]);
    }
    return found.sort((x, y) => x[0] - y[0]);
}"""


def test_the_panel_is_readable_in_high_contrast_and_with_forced_colours(lab: Lab, tmp_path: Path) -> None:
    opened(
        lab,
        tmp_path / "contrast.ipynb",
        LOAD,
        "%%flowstep start\nn = 3",
        "%%flowstep train --foreach 'i in range(n)'\ncard.metric('loss', i)\ns = 1 / (i - 1)",
        "%flow run",
    )
    page = lab.page
    ended(lab, "failed")
    least = {}
    for name, theme, media in (
        ("theme", CONTRAST, {}),
        ("forced", LIGHT, {"forced_colors": "active"}),
        ("forced-dark", LIGHT, {"forced_colors": "active", "color_scheme": "dark"}),
    ):
        lab.theme(theme)
        page.emulate_media(**media)  # type: ignore[arg-type]
        lab.picture(f"contrast-{name}", whole=True)
        found = page.evaluate(FAINTEST)
        assert len(found) > 20
        least[name] = found[0]
    page.emulate_media(forced_colors="none", color_scheme="light")
    lab.theme(LIGHT)
    assert all(contrast >= 4.5 for contrast, _ in least.values()), least


def test_nothing_moves_where_less_motion_is_asked_for(lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    opened(lab, tmp_path / "motion.ipynb", LOAD, "%%flowstep start\nx = 1", f"%%flowstep train\ny = x\n{waits_for(go)}", "%flow run")
    page = lab.page
    page.wait_for_selector(".fbp-row[aria-label^='train, running']")
    page.wait_for_function(MOVING)  # as long as nobody asks for less
    page.emulate_media(reduced_motion="reduce")
    page.wait_for_function(f"!({MOVING})")
    assert page.locator(".fbp-word").inner_text() == "running"
    go.touch()
    ended(lab, "succeeded")
    assert not page.evaluate(MOVING)


MOVING = "document.getAnimations().some(one => one.effect.target.closest('.fbp'))"

CHART = """from flowbook.cards import VegaChart
values = [{"model": "linear", "score": 1}, {"model": "forest", "score": 3}]
encoding = {"x": {"field": "score", "type": "quantitative"}, "y": {"field": "model", "type": "nominal"}}
transform = [{"calculate": "datum.score * 2", "as": "double"}]
card.append(VegaChart({"mark": "bar", "data": {"values": values}, "transform": transform, "encoding": encoding}))
x = 1"""
# Notes what code of a Blob, as the panel and Vega are, makes code of text from then on; gives how much that is in a trial.
WATCH_CODE = """async () => {
    window.madeCode = [];
    const [plain, plainEval] = [Function, eval];
    const note = (text) => { if (new Error().stack.includes('blob:')) window.madeCode.push(String(text)); };
    const noted = new Proxy(plain, {
        construct(target, args) { note(args.at(-1)); return Reflect.construct(target, args); },
        apply(target, self, args) { note(args.at(-1)); return Reflect.apply(target, self, args); },
    });
    window.Function = noted;
    plain.prototype.constructor = noted;
    window.eval = (text) => { note(text); return plainEval(text); };
    const trial = 'new Function("return 1"); (() => {}).constructor("return 2"); eval("3")';
    await import(URL.createObjectURL(new Blob([trial], { type: 'text/javascript' })));
    return window.madeCode.splice(0).length;
}"""


def test_vega_draws_in_the_panel_comes_once_per_kernel_and_asks_for_nothing(lab: Lab, tmp_path: Path) -> None:
    page = lab.page
    asked: list[str] = []
    sizes: list[int] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: sizes.append(len(frame))))
    opened(lab, tmp_path / "vega.ipynb", LOAD)
    lab.wait_for_cells(60)
    page.reload()  # the sockets of the kernel are opened anew, now that they are listened to
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    lab.until("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    assert page.evaluate(WATCH_CODE) == 3
    for code in (f"%%flowstep one\n{CHART}", "%flow run", "%flow run --fresh"):
        page.evaluate(
            """code => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource(code)""",
            code,
        )
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell-and-insert-below') }")
        page.wait_for_function(
            "code => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.getSource() === ''", arg=code
        )
        lab.wait_for_cells(60)
    try:
        page.wait_for_function("document.querySelectorAll('.fbp-card canvas').length === 2", timeout=120_000)
    except TimeoutError as error:
        lab.picture("vega-missing", whole=True)
        raise AssertionError(lab.story()) from error
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('.fbp-card canvas')].map(canvas => {
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(data.buffer)).size;
        })"""
    )
    lab.picture("vega", whole=True)

    assert all(colours > 5 for colours in drawn), drawn
    assert page.evaluate("window.madeCode") == []
    assert sum(size > 500_000 for size in sizes) == 1, sorted(sizes)[-4:]
    own = (f"http://127.0.0.1:{lab.server.port}/", "blob:", "data:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert lab.errors == []
