"""The run panel in JupyterLab: what a person sees, clicks and hears read out, while a run goes on and after."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import TimeoutError

from flowbook.kernel import panel
from tests.browser.lab import DARK, LIGHT, Lab
from tests.browser.test_lab import write

BUILT = panel._built() or os.environ.get("FLOWBOOK_BROWSER_TESTS") == "required"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason="the panel is not built here (.ci/frontend): NO NODE? Its tests did not run"),
]

LOAD = "%load_ext flowbook"
PARAMS = "%%flowparams\nepochs = 40      # how long to train\nseed: int = 7"
START = "%%flowstep start\nrates = [0.0001, 0.001, 0.01, 0.1, 0, 0.03]\nprint('six rates')"
TRAIN = """%%flowstep train --foreach "rate in rates"
import math, time
from flowbook.cards import Markdown, Table
print("\\x1b[32mready\\x1b[0m to train with", rate)
for epoch in range(epochs):
    loss = 1 / (epoch + 1) + abs(math.log10(rate) + 2) / 10
    card.clear()
    card.append(Markdown(f"## Epoch {epoch + 1}/{epochs}"))
    card.append(Table([["rate", rate], ["loss", f"{loss:.4f}"]]))
    card.metric("loss", loss)
    card.refresh()
    print("epoch", epoch, "loss", loss)
    time.sleep(0.05)
score = 1 - loss"""
JOIN = "%%flowstep best --join train\ntop = max(t.score for t in train)"
CELLS = [LOAD, PARAMS, START, TRAIN, JOIN]


def opened(lab: Lab, path: Path, *cells: str) -> Path:
    """A notebook with these cells, all of them sent to the kernel."""
    lab.open(write(path, *cells))
    lab.run_all()
    return lab.server.notebooks / path.name


def ended(lab: Lab, state: str = "") -> None:
    """Until the run that the panel shows has ended."""
    states = [state] if state else ["succeeded", "failed", "stopped"]
    try:
        lab.page.wait_for_selector(", ".join(f".fbp-word.fbp-is-{each}" for each in states))
    except TimeoutError as error:
        raise AssertionError(lab.story()) from error


def waits_for(path: Path) -> str:
    return f"import pathlib, time\nwhile not pathlib.Path({str(path)!r}).exists():\n    time.sleep(0.02)"


def column(lab: Lab, name: str) -> list[str]:
    """The cells of a column of the sweep table, from the top."""
    titles = [title.strip("▾▴") for title in lab.page.locator(".fbp-sweep thead th").all_inner_texts()]
    cells = lab.page.locator(f".fbp-sweep tbody td:nth-child({titles.index(name) + 1})").all_inner_texts()
    return [cell.strip() for cell in cells]  # numbers are filled up to stand with their points below each other


# Text that is too faint for its ground (WCAG 2.2, AA: 4.5, or 3 where it is large), with its contrast. What lies behind is put together from outside in.
FAINT = """panel => {
    const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const over = (colours) => { pen.clearRect(0, 0, 1, 1); for (const one of colours) { pen.fillStyle = one; pen.fillRect(0, 0, 1, 1); } return [...pen.getImageData(0, 0, 1, 1).data]; };
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
    const grounds = (el) => el ? [...grounds(el.parentElement), getComputedStyle(el).backgroundColor] : ['#fff'];
    const found = [];
    for (const el of panel.querySelectorAll('*')) {
        const text = [...el.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('').trim();
        if (!text || !el.checkVisibility() || el.closest('title, option, :disabled, [aria-hidden=true] canvas')) continue;
        const style = getComputedStyle(el), ink = el instanceof SVGElement ? style.fill : style.color;
        const behind = grounds(el), [a, b] = [light(over(behind)), light(over([...behind, ink]))];
        const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
        if (contrast < (large ? 3 : 4.5)) found.push(`${text.slice(0, 30)} (${el.className.baseVal ?? el.className}): ${contrast.toFixed(2)}`);
    }
    return found;
}"""


def assert_readable(lab: Lab) -> None:
    assert lab.page.locator(".fbp").first.evaluate(FAINT) == []


def save(lab: Lab) -> dict[str, Any]:
    """Saves the notebook, and reads it back from the disk."""
    lab.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")
    name = lab.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")
    found: dict[str, Any] = json.loads((lab.server.notebooks / name).read_text())
    return found


def test_a_sweep_is_seen_as_it_goes_and_after_it_failed(lab: Lab, tmp_path: Path) -> None:
    opened(lab, tmp_path / "sweep.ipynb", *CELLS, "%flow run")
    page = lab.page
    page.wait_for_selector(".fbp-card .fbl-card, .fbp-card h2")
    page.wait_for_function("document.querySelectorAll('.fbp-row .fbp-running').length > 2")
    lab.picture("panel-running", whole=True)
    ended(lab, "failed")
    assert "sweep" in page.locator(".fbp-head h3").inner_text() and "1 failed" in page.locator(".fbp-tasks").inner_text()
    assert "math domain error" in page.locator(".fbp-first").inner_text()
    assert page.locator(".fbp-node[aria-label^='train, failed']").count() == 1

    # The failed item is what one sees first; its error names the cell and the line.
    assert page.locator(".fbp-detail h4").inner_text() == "train[4]"
    page.get_by_role("tab", name="Error").click()
    assert "Cell In[4], line 6" in page.locator(".fbp-where").inner_text()
    lab.picture("panel-error-light", whole=True)
    assert_readable(lab)

    # The table is ordered by a click on a title, and by one more the other way.
    page.get_by_role("tab", name="train").first.click()
    assert column(lab, "task") == [f"[{i}]" for i in range(6)]
    score = page.locator(".fbp-sweep th", has_text="score")
    score.get_by_role("button").click()
    assert score.get_attribute("aria-sort") == "ascending"
    assert column(lab, "rate") == ["0.0001", "0.001", "0.1", "0.03", "0.01", "0"]
    score.get_by_role("button").click()
    assert score.get_attribute("aria-sort") == "descending" and column(lab, "rate") == ["0.01", "0.03", "0.001", "0.1", "0.0001", "0"]

    # A task that is chosen shows its card, output and artifacts.
    page.locator(".fbp-sweep tbody button", has_text="[3]").click()
    assert page.locator(".fbp-detail h4").inner_text() == "train[3]"
    page.get_by_role("tab", name="Card").click()
    page.wait_for_function("document.querySelector('.fbp-card').innerText.includes('Epoch 40/40')")
    assert page.locator(".fbp-point").count() == 5 and page.locator(".fbp-point.fbp-chosen").count() == 1
    lab.picture("panel-table-light", whole=True)
    assert_readable(lab)
    page.get_by_role("tab", name="Output").click()
    assert page.locator(".fbp-printed .ansi-green").inner_text() == "ready"
    page.locator(".fbp-search input").fill("EPOCH 3")
    assert "1 of 11" in page.locator(".fbp-search").inner_text()
    assert_readable(lab)
    page.get_by_role("tab", name="Artifacts").click()
    assert "0.875" in page.locator(".fbp-artifacts tr", has_text="score").inner_text()

    lab.theme(DARK)
    page.get_by_role("tab", name="Output").click()
    assert_readable(lab)
    page.get_by_role("tab", name="Artifacts").click()
    lab.picture("panel-table-dark", whole=True)
    assert_readable(lab)
    page.get_by_role("tab", name="Timeline").click()
    page.get_by_role("tab", name="Card").click()
    lab.picture("panel-timeline-dark", whole=True)
    assert_readable(lab)
    lab.theme(LIGHT)
    page.emulate_media(forced_colors="active")
    lab.picture("panel-forced-colors", whole=True)
    page.emulate_media(forced_colors="none")
    lab.picture("panel-narrow", width=420, whole=True)
    page.set_viewport_size({"width": 420, "height": 900})
    area = page.locator(".fbp").first
    assert area.evaluate("el => el.scrollWidth - el.clientWidth") <= 1
    page.set_viewport_size({"width": 1280, "height": 900})
    assert lab.errors == []


def test_people_see_one_thing_the_panel_or_the_status(lab: Lab, tmp_path: Path) -> None:
    path = opened(
        lab,
        tmp_path / "one.ipynb",
        LOAD,
        "%%flowstep start\nprint('said by start')\nx = 1",
        "%%flowstep then\ncard.append('# kept')\ny = x",
        "%flow run",
    )
    page = lab.page
    ended(lab, "succeeded")
    status = lab.cell(3).locator("[data-flowbook-run]").first
    page.wait_for_function("document.querySelector('[data-flowbook-run] .fb-head')?.textContent.includes('succeeded')")
    assert status.is_hidden() and page.get_by_text("said by start", exact=True).filter(visible=True).count() == 0

    # Reopened: JupyterLab keeps no state of widgets, so there is no panel, but all of the run is there, and no word of a missing model.
    saved = save(lab)
    assert "<svg" in "".join(saved["cells"][3]["outputs"][1]["data"]["text/html"])
    page.evaluate("window.jupyterapp?.serviceManager.sessions.shutdownAll()")
    again = path.with_name("again.ipynb")
    again.write_text(json.dumps(saved))
    lab.open(again) if again.parent != lab.server.notebooks else page.goto(lab.server.url(f"lab/workspaces/again/tree/{again.name}"))
    page.wait_for_selector(".jp-NotebookPanel [data-flowbook-run] svg")
    page.wait_for_selector("text=said by start")
    page.wait_for_selector("text=model not found", state="attached")
    assert page.locator("text=/model not found|Loading widget/").filter(visible=True).count() == 0
    assert page.locator(".fbp").count() == 0
    lab.picture("panel-reopened", whole=True)


def test_stop_works_while_another_cell_blocks_the_kernel(lab: Lab, tmp_path: Path) -> None:
    never, go = tmp_path / "never", tmp_path / "go"
    cells = [
        LOAD,
        f"%%flowstep slow --foreach 'i in range(2)'\n{waits_for(never)}",
        "%flow run",
        f"print('blocks')\n{waits_for(go)}\nprint('over')",
    ]
    opened(lab, tmp_path / "blocked.ipynb", *cells)
    page = lab.page
    page.wait_for_function("document.querySelectorAll('.fbp-row[data-task]').length == 2")
    lab.cell(3).locator(".jp-OutputArea-output", has_text="blocks").wait_for()
    page.locator(".fbp-row[data-task]", has_text="[1]").click()
    page.get_by_role("button", name="Stop task").click()
    page.wait_for_selector(".fbp-row[data-task][aria-label*='[1]'][aria-label*='stopped']")
    assert lab.busy() == 1
    page.get_by_role("button", name="Stop run").click()
    ended(lab, "stopped")
    assert lab.busy() == 1 and "over" not in lab.output(3)
    go.touch()
    lab.wait_for_cells(30)
    assert "over" in lab.output(3) and page.get_by_role("button", name="Go on").is_visible()


def test_a_card_moves_while_another_cell_blocks_the_kernel(lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    moving = f"import pathlib, time\nn = 0\nwhile not pathlib.Path({str(go)!r}).exists():\n    n += 1\n    card.metric('n', n)\n    card.refresh()\n    time.sleep(0.05)"
    opened(lab, tmp_path / "moves.ipynb", LOAD, f"%%flowstep train\n{moving}", "%flow run", f"print('blocks')\n{waits_for(go)}")
    page = lab.page
    lab.cell(3).locator(".jp-OutputArea-output", has_text="blocks").wait_for()
    page.wait_for_selector(".fbp-card .fbl-card")
    seen = page.evaluate(
        """() => new Promise(done => {
            const texts = new Set(), card = document.querySelector('.fbp-card');
            const watch = new MutationObserver(() => { texts.add(card.innerText); if (texts.size > 10) { watch.disconnect(); done(texts.size) } });
            watch.observe(card, {subtree: true, childList: true, characterData: true});
        })"""
    )
    assert seen > 10 and lab.busy() == 1
    go.touch()
    lab.wait_for_cells(30)


def test_a_page_that_is_loaded_anew_in_mid_run_shows_the_panel_again(lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    opened(lab, tmp_path / "anew.ipynb", LOAD, f"%%flowstep slow\n{waits_for(go)}\nx = 1", "%flow run")
    page = lab.page
    page.wait_for_selector(".fbp-row[aria-label^='slow, running']")
    lab.wait_for_cells(30)
    save(lab)
    page.reload()
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.wait_for_selector(".fbp-row[aria-label^='slow, running']")
    assert page.locator("[data-flowbook-run]").filter(visible=True).count() == 0
    go.touch()
    ended(lab, "succeeded")
    assert lab.errors == []


def test_two_views_of_a_notebook_show_the_same_run_and_choose_for_themselves(lab: Lab, tmp_path: Path) -> None:
    opened(lab, tmp_path / "two.ipynb", LOAD, "%%flowstep work --foreach 'i in range(3)'\nx = i", "%flow run")
    page = lab.page
    ended(lab, "succeeded")
    lab.command("notebook:create-output-view")
    lab.cell(2).click()
    lab.command("notebook:create-output-view")
    page.wait_for_function("document.querySelectorAll('.fbp').length >= 2")
    page.locator(".fbp").nth(0).get_by_role("tab", name="work").first.click()

    assert page.locator(".fbp").nth(0).locator(".fbp-sweep").count() == 1 and page.locator(".fbp").nth(1).locator(".fbp-sweep").count() == 0


def test_retry_goes_on_in_the_same_place(lab: Lab, tmp_path: Path) -> None:
    ok = tmp_path / "ok"
    opened(
        lab,
        tmp_path / "retry.ipynb",
        LOAD,
        "%%flowstep start\nx = 1",
        f"%%flowstep shaky\nimport pathlib\nassert pathlib.Path({str(ok)!r}).exists()\ny = x",
        "%flow run",
    )
    page = lab.page
    ended(lab, "failed")
    ok.touch()
    page.get_by_role("button", name="Retry failed").click()
    page.wait_for_selector(".fbp[data-run='2'] .fbp-word.fbp-is-succeeded")
    assert page.locator(".fbp").count() == 1
    assert "run 2 goes on where run 1 ended" in page.locator(".fbp-spoken").inner_text()


def test_the_panel_is_used_without_a_mouse_and_read_out(lab: Lab, tmp_path: Path) -> None:
    opened(lab, tmp_path / "keys.ipynb", LOAD, "%%flowstep work --foreach 'i in range(4)'\nprint(i)\nx = 1 / (i - 2)", "%flow run")
    page = lab.page
    ended(lab, "failed")
    page.wait_for_function("document.querySelector('.fbp-spoken').textContent.includes('1 failed')")
    assert page.locator(".fbp-spoken").get_attribute("role") == "status"
    page.locator(".fbp-lines").focus()
    page.keyboard.press("Home")
    head = page.locator(".fbp-row[data-here]")
    assert head.get_attribute("aria-label").startswith("work, 4 tasks, 4 done, 1 failed")  # type: ignore[union-attr]
    page.keyboard.press("ArrowDown")
    assert page.locator(".fbp-row[aria-selected=true]").get_attribute("aria-label").startswith("work[0]")  # type: ignore[union-attr]
    page.keyboard.press("ArrowDown")
    assert page.locator(".fbp-detail h4").inner_text() == "work[1]"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert head.get_attribute("aria-expanded") == "false"
    assert page.locator(".fbp-row[data-task]").count() == 2, "folded, what is chosen and what failed stay in sight"
    page.keyboard.press("ArrowRight")
    assert page.locator(".fbp-row[data-task]").count() == 4
    page.locator(".fbp-tabs [role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".fbp-tabs [role=tab][aria-selected=true]").first.inner_text().startswith("work")
    page.locator(".fbp-node").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".fbp-node[aria-pressed=true]").count() == 1
    assert page.evaluate("document.activeElement.closest('.fbp') !== null"), "the notebook took the key"
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('.fbp button, .fbp select, .fbp input, .fbp [role=img], .fbp [data-task]')]
                 .filter(el => el.getAttribute('aria-hidden') !== 'true' && !(el.innerText || el.getAttribute('aria-label') || '').trim()).map(el => el.outerHTML)"""
    )
    assert nameless == []
    page.get_by_role("tab", name="Timeline").click()
    heard = page.locator(".fbp").aria_snapshot()
    for said in (
        '- heading "keys" [level=3]',
        "- status: run 1 failed. 1 failed",
        '- button "work, failed, 4/4 · 1 failed" [pressed]',
        '- tree "tasks"',
        '- treeitem "work[2], item 2, failed',
        '- tab "Timeline"',
        '- region "task work[1]"',
        "- term: took",
    ):
        assert said in heard, (said, heard)
    assert_keys_lead_through(lab)


def assert_keys_lead_through(lab: Lab) -> None:
    """Tab alone comes from the first control of the panel to its last, to each once, and out of it again."""
    page = lab.page
    page.locator(".fbp-head button").first.focus()
    passed: list[str] = []
    for _ in range(60):
        passed.append(
            page.evaluate("(el => el.closest('.fbp') ? el.getAttribute('aria-label') || el.innerText : '')(document.activeElement)")
        )
        if not passed[-1]:
            break
        page.keyboard.press("Tab")
    assert passed[-1] == "" and len(passed) == len(set(passed)), passed
    assert {"Retry failed", "tasks"} <= set(passed) and any(name.startswith("output of work") or name == "traceback" for name in passed), (
        passed
    )


def test_many_tasks_stay_readable(lab: Lab, tmp_path: Path) -> None:
    opened(
        lab,
        tmp_path / "many.ipynb",
        LOAD,
        "%%flowstep start\nn = 400",
        "%%flowstep work --foreach 'i in range(n)'\nscore = (i * 37) % 101 / 100\nassert i % 97",
        "%%flowstep last --join work\nt = 1",
        "%flow run",
    )
    page = lab.page
    ended(lab, "failed")
    page.wait_for_selector(".fbp-headrow[aria-expanded=false]")
    lab.picture("panel-many", whole=True)
    assert page.locator(".fbp-row[data-task]").count() < 20
    page.get_by_role("tab", name="work").first.click()
    assert "200 of 400 tasks" in page.locator(".fbp-sweep").inner_text()
    lab.picture("panel-many-table", whole=True)


def test_the_table_is_the_one_of_python_also_while_the_step_runs(lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"import pathlib, time\nwhile rate > 0.05 and not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.02)"
    rows = "print(train.table()[['rate', 'score', 'state']].to_json(orient='values'))"
    opened(
        lab,
        tmp_path / "same.ipynb",
        LOAD,
        "%%flowstep start\nrates = [0.001, 0.1, 0.01, 0.2]",
        f'%%flowstep train --foreach "rate in rates"\n{wait}\nscore = rate * 2',
        "%flow run",
    )
    page = lab.page
    page.get_by_role("tab", name="train").first.click()
    page.wait_for_function("document.querySelectorAll('.fbp-sweep tbody .fbp-is-succeeded').length === 2")
    page.wait_for_function("[...document.querySelectorAll('.fbp-sweep tbody td')].some(td => td.textContent.trim() === '0.02')")

    def both() -> tuple[list[Any], list[Any]]:
        lab.page.evaluate(
            """code => { const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
                cells.insertCell(cells.cells.length, { cell_type: 'code', source: code, metadata: {}, outputs: [] }); }""",
            rows,
        )
        number = page.locator(".jp-Notebook .jp-Cell").count() - 1
        lab.run_cell(number)
        lab.cell(number).locator(".jp-OutputArea-output", has_text="[[").wait_for()
        python = json.loads(lab.output(number))
        shown = zip(column(lab, "rate"), column(lab, "score"), column(lab, "state"), strict=True)
        return [list(row) for row in shown], [
            ["" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in row] for row in python
        ]

    panel_rows, python_rows = both()
    done = [row for row in python_rows if row[1]]
    assert len(done) == 2 and [row for row in panel_rows if row[1]] == done, "half of it is there, the same in both"
    go.touch()
    ended(lab, "succeeded")
    page.wait_for_function("[...document.querySelectorAll('.fbp-sweep tbody td')].some(td => td.textContent.trim() === '0.4')")
    panel_rows, python_rows = both()
    assert panel_rows == python_rows == [[f"{rate:g}", f"{rate * 2:g}", "succeeded"] for rate in (0.001, 0.1, 0.01, 0.2)]
