"""An executed notebook where nothing runs: as a page without JavaScript, and on a site that takes scripts, classes and styles away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbconvert
import nh3
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Page

from tests.browser.test_panel import BUILT

VIEW = "application/vnd.jupyter.widget-view+json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason="the panel is not built here (.ci/frontend): NO NODE? Its tests did not run"),
]
CELLS = [
    "%load_ext flowbook",
    "%%flowstep start\nrates = [1, 2, 0]\nprint('said by start')",
    """%%flowstep train --foreach 'rate in rates'
from flowbook.cards import Markdown, Table, VegaChart
card.append(Markdown(f"## Rate {rate}"))
for epoch in range(9):
    card.metric("loss", 1 / (epoch + 1) + rate)
card.append(Table([["alpha", 0.25]], ["name", "value"]))
values = [{"model": "linear", "score": 1}, {"model": "forest", "score": 3}]
encoding = {"x": {"field": "score", "type": "quantitative"}, "y": {"field": "model", "type": "nominal"}}
card.append(VegaChart({"mark": "bar", "data": {"values": values}, "encoding": encoding}))
score = 1 / rate""",
    "%%flowstep best --join train\ntop = max(t.score for t in train)",
    "%flow run",
]
# What is left of HTML on sites that show notebooks beside code: no script, no style element, no style and no class.
SVG = ["svg", "g", "path", "rect", "circle", "line", "text", "title"]
TAGS = {"a", "b", "br", "code", "details", "div", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "i", "img", "li", "ol", "p", "pre"}
TAGS |= {"progress", "section", "span", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"}
DRAWN = "cx cy d fill fill-opacity font-size height points r rx stroke stroke-dasharray stroke-width text-anchor transform viewBox width x x1 x2 y y1 y2"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    folder = tmp_path_factory.mktemp("executed")
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in CELLS])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWBOOK_STORE", str(folder / "store"))
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=240, allow_errors=True, resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    return notebook


def without_scripts(browser: Any, file: Path) -> Page:
    page: Page = browser.new_context(java_script_enabled=False, viewport={"width": 1000, "height": 900}).new_page()
    page.goto(file.as_uri())
    return page


def taken(page: Page, path: Path) -> None:
    page.screenshot(path=path, full_page=True)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_executed_notebook_holds_the_panel_and_the_copy(executed: NotebookNode) -> None:
    outputs = executed.cells[-1].outputs
    models = executed.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    state = models[outputs[0].data[VIEW]["model_id"]]["state"]

    assert state["head"]["state"] == "failed"
    assert "1 failed" in outputs[1].data["text/html"] and "1 failed" not in outputs[2].data["text/html"]


def test_a_page_without_javascript_shows_graph_cards_and_charts(
    executed: NotebookNode, browser: Any, tmp_path: Path, pictures: Path
) -> None:
    file = tmp_path / "executed.html"
    file.write_text(nbconvert.HTMLExporter().from_notebook_node(executed)[0])
    page = without_scripts(browser, file)

    graph = page.locator("svg[aria-label='graph of 3 steps']")
    assert graph.is_visible() and graph.locator("text").all_text_contents()[:2] == ["start", "train"]
    assert page.get_by_role("heading", name="Rate 0").is_visible() and page.get_by_role("heading", name="Rate 1").is_visible()
    assert page.get_by_role("cell", name="alpha").first.is_visible()
    charts = page.locator("details[open] figure svg")
    assert charts.count() >= 2 and charts.first.locator("path").count() >= 1
    assert page.get_by_text("ZeroDivisionError").first.is_visible() and page.get_by_text("said by start").last.is_visible()
    assert page.locator(".flowbook").get_by_text("2 / 3").or_(page.locator(".flowbook").get_by_text("3 / 3")).first.is_visible()
    closed = page.locator("details:not([open]) summary", has_text="card of train[1]")
    closed.click()
    assert page.get_by_role("heading", name="Rate 2").is_visible()
    taken(page, pictures / "static-no-javascript.png")
    page.context.close()


@pytest.mark.parametrize("svg", [True, False], ids=["SVG stays", "no SVG either"])
def test_a_site_that_takes_styles_away_still_shows_what_was_done(
    executed: NotebookNode, browser: Any, tmp_path: Path, pictures: Path, svg: bool
) -> None:
    kept = {tag: set(DRAWN.split()) for tag in SVG} if svg else {}
    attributes = {"*": {"title", "align"}, "img": {"src", "alt"}, "td": {"colspan"}, "details": {"open"}, "progress": {"value", "max"}}
    shown = [output.data["text/html"] for output in executed.cells[-1].outputs if "text/html" in output.get("data", ())]
    bare = nh3.clean(
        "".join(shown),
        tags=TAGS | set(kept),
        attributes=attributes | kept,
        clean_content_tags={"script", "style"} | (set() if svg else {"svg"}),
    )
    assert 'style="' not in bare and 'class="' not in bare and "--fg" not in bare
    file = tmp_path / "bare.html"
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8><body style='font:14px sans-serif;max-width:900px'>{bare}")
    page = without_scripts(browser, file)
    lines = page.locator("body").inner_text().splitlines()
    taken(page, pictures / f"static-bare{'' if svg else '-no-svg'}.png")

    words = [line.split() for line in lines]
    assert ["✓", "start", "succeeded"] in [line[:3] for line in words], lines[:12]
    assert ["✗", "train", "failed,", "1", "failed", "3", "/", "3"] in [line[:8] for line in words], lines[:12]
    assert page.get_by_role("heading", name="Rate 0").is_visible() and page.get_by_role("cell", name="alpha").first.is_visible()
    if svg:
        graph = page.locator("svg").first
        assert graph.locator("text").first.get_attribute("fill") == "#222"
        assert {rect.get_attribute("fill") for rect in graph.locator("rect").all()} == {"#fff"}
    page.context.close()
