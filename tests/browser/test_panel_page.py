"""The panel alone on a page, as it is built: what ten minutes of updates leave behind, and values that no honest kernel sends."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine import events
from flowbook.kernel import panel
from flowbook.kernel.panel_data import Made, PanelData
from tests import test_panel_data as told
from tests.browser.panel_page import PanelPage, state
from tests.test_panel_data import NOW, frame, lines, work

Json = Any
BUILT = panel._built() or os.environ.get("FLOWBOOK_BROWSER_TESTS") == "required"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason="the panel is not built here (.ci/frontend): NO NODE? Its tests did not run"),
]


@pytest.fixture
def alone(browser: Any, tmp_path: Path) -> Iterator[PanelPage]:
    page = PanelPage(browser, tmp_path / "page")
    yield page
    page.close()


def sweep(count: int) -> tuple[dict[str, Json], list[dict[str, Json]]]:
    """A fan-out as a kernel tells it: all of its first state, and then what changes, task after task, each with a live card."""
    data = told.panel(count=count)
    graph = data.layout()
    first = before = state(data.shown(NOW + 1), graph)
    changes = []
    for i in range(count):
        data._view.apply(events.launched(work(i), NOW + 2 + i))
        tell(data, i, loss=1 / (i + 1))
        changes.append(state(data.shown(NOW + 2.5 + i), graph))
        if i % 13 == 5:
            data._view.apply(told.failed(i, NOW + 3 + i)[1])
        else:
            data._view.apply(events.succeeded(work(i), NOW + 3 + i))
            data.commits[work(i)] = Made((), 0, {"score": i / count}, {})
        changes.append(state(data.shown(NOW + 3 + i), graph))
    found = []
    for now in changes:
        found.append(
            {key: value for key, value in now.items() if before.get(key) != value} | {key: None for key in before if key not in now}
        )
        before = now
    return first, found


def tell(data: PanelData, i: int, **metrics: float) -> None:
    for watch in data._view.watchers:
        watch(frame(i, 1, {"type": "markdown", "id": "text", "text": f"# task {i}"}, lines(**metrics)))


def kept(alone: PanelPage) -> dict[str, int]:
    """How many nodes and listeners the page holds when all that can be freed is."""
    session = alone.context.new_cdp_session(alone.page)
    for _ in range(2):
        session.send("HeapProfiler.collectGarbage")
    found = session.send("Memory.getDOMCounters")
    session.detach()
    return {"nodes": found["nodes"], "listeners": found["jsEventListeners"]}


def play(alone: PanelPage, changes: list[dict[str, Json]]) -> None:
    alone.page.evaluate("text => window.panels.play(JSON.parse(text))", json.dumps(changes))


def test_updates_leave_nothing_behind(alone: PanelPage) -> None:
    first, changes = sweep(60)
    alone.change(first)
    alone.open()
    alone.page.get_by_role("tab", name="work").first.click()
    play(alone, changes)
    after_one = kept(alone)
    for _ in range(4):
        alone.change({key: None for key in alone.page.evaluate("Object.keys(window.panels.model.state)") if key not in first} | first)
        play(alone, changes)
    after_five = kept(alone)

    assert after_five["nodes"] <= after_one["nodes"] * 1.05 + 50
    assert after_five["listeners"] <= after_one["listeners"] * 1.05 + 10
    assert alone.errors == []


def test_a_cell_that_is_run_again_leaves_nothing_of_the_panel_before(alone: PanelPage) -> None:
    first, changes = sweep(20)
    alone.change(first)
    alone.open()
    play(alone, changes)
    alone.close_view()
    before = kept(alone)
    for i in range(15):
        alone.open()
        alone.page.get_by_role("tab", name="work").first.click()
        alone.page.wait_for_function("document.querySelector('.fbp-scatter circle') !== null")  # a handle of it would keep it
        play(alone, changes[i : i + 2])
        alone.close_view()
    after = kept(alone)

    assert alone.page.evaluate("window.panels.model.listeners()") == 0
    assert alone.page.locator("style").count() == 1, "what hides the static status went with the panel"
    assert after["nodes"] <= before["nodes"] + 40 and after["listeners"] <= before["listeners"] + 15


def test_the_panel_does_not_jump_while_short_tasks_come_and_go(alone: PanelPage) -> None:
    """Nothing below the panel moves up while the run goes on, and the task that is shown is not another one ten times a second."""
    first, changes = sweep(60)
    alone.change(first)
    alone.open()
    alone.page.evaluate(
        """() => {
            window.heights = []; window.shown = new Set(); window.clock = Date.now();
            Date.now = () => window.clock;
            const watch = () => {
                heights.push(document.querySelector('.fbp-columns').offsetHeight);
                shown.add(document.querySelector('.fbp-detail h4')?.textContent);
                requestAnimationFrame(watch);
            };
            watch();
        }"""
    )
    play(alone, changes[:8])  # four tasks come and go, and the clock stands
    assert alone.page.evaluate("[...shown]") == ["start"]
    alone.page.evaluate("clock += 3000")
    play(alone, changes[8:9])
    assert alone.page.locator(".fbp-detail h4").inner_text() == "work[4]"
    heights = alone.page.evaluate("heights")
    assert all(later >= earlier for earlier, later in itertools.pairwise(heights)), heights
    play(alone, changes[9:])
    assert alone.page.locator(".fbp-detail h4").inner_text() == "work[5]", "the first failure is shown at once"


# ---- values that mean harm -------------------------------------------------------------------------------------------------

BIDI = "\u202egnp.\u2066exe\u200f"
ATTACK = "window.canary='dead';alert(1)"
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" onload="{ATTACK}"><script>{ATTACK}</script><image href="%EVIL%/i"/><use href="%EVIL%/u#a"/></svg>'
PIECES: list[dict[str, str]] = [
    {"mime": "stream", "data": f"\x1b]8;;javascript:{ATTACK}\x07click\x1b]8;;\x07 \x1b]8;;%EVIL%/l\x1b\\open\x1b]8;;\x1b\\ \x1b[38;2;1;2;3;url(%EVIL%/c)mred\n"},
    {"mime": "stream", "data": f"<script>{ATTACK}</script><img src=x onerror={ATTACK}>\n" + "\r".join(["x" * 500] * 2_000) + "\n\ud800 lone \udfff\n"},
    {"mime": "stream", "data": "\x1b[" * 50_000 + "\x1b]" * 50_000 + "\x9b31m\x90\x1b[1;" + "9" * 10_000 + "m" + "\b" * 10_000},
    {"mime": "text/html", "data": f"<style>*{{background:url(%EVIL%/s)}}</style><b style='position:fixed;inset:0;background:url(%EVIL%/b)'>log in</b><img src=%EVIL%/i onerror={ATTACK}>"},
    {"mime": "text/html", "data": f"<form action=%EVIL%/f><button formaction=javascript:{ATTACK}>go</button><input autofocus onfocus={ATTACK}></form><base href=%EVIL%/><meta http-equiv=refresh content='0;%EVIL%/m'>"},
    {"mime": "text/html", "data": f"<svg><use href='data:image/svg+xml;base64,PHN2Zy8+#x'/><a xlink:href='javascript:{ATTACK}'><text y=9>go</text></a><animate attributeName=href values=javascript:{ATTACK} /></svg>"},
    {"mime": "text/html", "data": f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror={ATTACK}&gt;'></table></mtext><maction actiontype=statusline xlink:href=javascript:{ATTACK}>x</maction></math>"},
    {"mime": "text/html", "data": f"<iframe srcdoc='<script>parent.{ATTACK}</script>'></iframe><object data=%EVIL%/o></object><embed src=%EVIL%/e><a href=javascript:{ATTACK} target=_top>go</a>"},
    {"mime": "text/html", "data": "<div>" * 30_000 + "deep"},
    {"mime": "text/html", "data": "<table>" + "<tr>" + "<td>x" * 100 + "</tr>" * 1 + "<tr><td>y" * 5_000 + "</table>"},
    {"mime": "image/svg+xml", "data": SVG},
    {"mime": 'image/png"><img src=x onerror=alert(1)>', "data": "AAAA"},
    {"mime": "image/png", "data": 'AAAA" onload="alert(1)'},
    {"mime": "__proto__", "data": "constructor"},
]  # fmt: skip


DEEP = "[" * 100_000 + "1" + "]" * 100_000


def hostile(evil: str) -> dict[str, Json]:
    """The state of a run of which nothing can be trusted; `%DEEP%` stands for DEEP, which Python does not write."""
    data = told.panel(*told.failed(1), *told.ran(2), count=4)
    found = state(data.shown(NOW + 20), data.layout())
    markup = f'"><img src={evil}/m onerror={ATTACK}><script>{ATTACK}</script>'
    found["head"] = {
        **found["head"],
        "flow": markup + BIDI,
        "error": markup,
        "advice": f"`{markup}` [x](javascript:alert(1))",
        "notes": [markup, BIDI],
    }
    found["head"] |= {
        "params": [{"name": markup, "value": BIDI * 50}, {"name": "__proto__", "value": "x"}],
        "trouble": markup,
        "token": markup,
    }
    for node in found["graph"]["nodes"]:
        node.update(label=markup, note=markup)
    found["graph"]["edges"].append({"from": "start", "to": "work", "path": f"M0 0url({evil}/p)", "reads": [markup]})
    for row in found["tasks"]:
        row.update(item=markup + BIDI, why=markup, cached=None)
    columns = [{"name": name, "kind": "artifact", "numeric": True} for name in ("__proto__", "constructor", markup, BIDI)]
    for table in found["tables"].values():
        table["columns"] += columns
        table["rows"] = [[*row, 1, 2.5, 1e308, i] for i, row in enumerate(table["rows"])]
    error = {
        "type": markup,
        "message": markup + BIDI,
        "cell": markup,
        "line": 3,
        "source_line": markup,
        "traceback": f"\x1b]8;;javascript:{ATTACK}\x07{markup}\n" * 50,
    }
    artifacts = [{"name": name, "type": markup, "size": 1e308, "repr": markup + BIDI} for name in ("__proto__", "toString", markup, BIDI)]
    pieces = [{**piece, "data": piece["data"].replace("%EVIL%", evil)} for piece in PIECES]
    card = {
        "v": 1,
        "id": markup,
        "type": "blank",
        "state": "running",
        "n": 1,
        "components": [{"type": "json", "data": "%DEEP%"}, {"type": "yaml", "data": "%DEEP%"}, {"type": "markdown", "text": markup}],
    }
    found["detail work[1]"] = {
        "output": pieces,
        "size": 1,
        "error": error,
        "artifacts": artifacts,
        "left_out": 3,
        "cards": ["card work[1] a"],
    }
    return {**found, "card work[1] a": card}


def test_nothing_that_a_run_says_gets_out_of_its_place(alone: PanelPage) -> None:
    alone.change(json.dumps(hostile(alone.trap.address)).replace('"%DEEP%"', DEEP))
    alone.open()
    page = alone.page
    for name in ("Error", "Artifacts", "Card", "Output"):
        page.locator(".fbp-detail").get_by_role("tab", name=name).click()
    for link in page.locator(".fbp-printed a, .fbp-printed button").all():
        link.dispatch_event("click")
    page.locator(".fbp-search input").fill("log")
    page.locator(".fbp-tabs").first.get_by_role("tab").nth(1).click()
    page.wait_for_selector(".fbp-scatter .fbp-point")
    page.locator(".fbp-sweep tbody tr").nth(2).click()
    assert page.locator(".fbp-detail h4").inner_text() == "work[2]"

    state = page.evaluate(
        """() => ({canary: window.canary, polluted: ({}).polluted, at: location.pathname, title: document.title, outside: document.getElementById('outside').outerHTML,
            scripts: document.querySelectorAll('#panel script, #panel iframe, #panel form, #panel base, #panel meta, #panel object').length})"""
    )
    assert state == {
        "canary": "alive",
        "polluted": None,
        "at": "/index.html",
        "title": "panel",
        "outside": '<div id="outside">outside</div>',
        "scripts": 0,
    }
    assert (alone.trap.heard, alone.dialogs, alone.errors) == ([], [], [])
    assert [url for url in alone.asked if not url.startswith(("data:", "blob:"))] == []
    assert "\u202e" not in page.locator(".fbp-sweep").inner_text() and "\\u202e" in page.locator(".fbp-sweep").inner_text()


def test_a_picture_of_a_run_runs_no_script(alone: PanelPage) -> None:
    """As a picture an SVG has no scripts; here it is drawn nonetheless, so that the test before does not pass for want of a drawing."""
    svg = SVG.replace("%EVIL%", alone.trap.address)
    found = hostile(alone.trap.address)
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    found["detail work[1]"]["output"] = [{"mime": "image/svg+xml", "data": svg}, {"mime": "image/png", "data": png}]
    alone.change(found)
    alone.open()
    alone.page.locator(".fbp-detail").get_by_role("tab", name="Output").click()
    alone.page.wait_for_function(
        "[...document.querySelectorAll('.fbp-printed img')].filter(img => img.complete && img.naturalWidth > 0).length === 2"
    )

    assert alone.page.evaluate("window.canary") == "alive" and alone.trap.heard == []


def pods() -> dict[str, Json]:
    """Eight pods, each as far as it has come: one in each phase, one that has ended."""
    data = told.panel(count=8)
    names = ["queued", "scheduled", "pulling", "starting", "importing", "running", "saving"]
    began = dict(zip(names, (0.0, 6.0, 8.0, 14.0, 17.0, 22.0, 31.0), strict=True))
    view = data._view
    for i in range(8):
        view.apply(events.launched(work(i), NOW + 3))
    for i, name in enumerate(names):
        shift = began["saving"] - began[name]  # so that all are where they are at the same time
        past = {phase: max(at + shift, 0.0) for phase, at in began.items() if at <= began[name]} | {"queued": 0.0}
        view.hint(told.phase(i, name, LACKS if name == "queued" else "", **past))
    view.apply(events.succeeded(work(7), NOW + 36, began=began, seconds={"running": 9.0, "saving": 1.5}))
    return state(data.shown(NOW + 38), data.layout())


LACKS = "no node for cpu 900, memory 64000M yet: 0/3 nodes are available: 3 Insufficient cpu. If none is being made, ask for less"
PHASES = ["queued", "scheduled", "pulling", "starting", "importing", "running", "saving"]


def test_each_phase_of_a_pod_is_told_by_a_bar_of_its_own_and_by_a_word(alone: PanelPage, pictures: Path) -> None:
    page = alone.page
    alone.change(pods())
    alone.open()

    def bars(i: int) -> list[str]:
        found: list[str] = page.locator(f'[data-task="work[{i}]"] .fbp-track i').evaluate_all(
            "all => all.map(i => i.className.split(' ')[0])"
        )
        return [name.removeprefix("fbp-") for name in found]

    for i, phase in enumerate(PHASES):
        assert bars(i) == PHASES[: i + 1], phase
        assert phase in (page.get_attribute(f'[data-task="work[{i}]"]', "aria-label") or "")
    assert bars(7) == PHASES
    assert page.locator(".fbp-legend").inner_text().split() == PHASES
    told_by = [page.locator(f'[data-task="work[{i}]"] .fbp-took').inner_text() for i in range(5)]
    assert told_by == PHASES[:5]
    assert f"work waits: {LACKS}" in page.locator(".fbp-notes").inner_text()

    page.click('[data-task="work[0]"]')
    assert page.locator(".fbp-detail .fbp-now").inner_text() == "queued"
    assert page.locator(".fbp-detail .fbp-why").inner_text().replace("\n", " ") == f"waits {LACKS}"
    page.click('[data-task="work[7]"]')
    facts = page.locator(".fbp-facts").inner_text().split()
    assert [word for word in facts if word in PHASES] == PHASES

    page.get_by_role("tab", name="work").first.click()
    assert page.locator(".fbp-sweep tbody .fbp-state").all_inner_texts() == [*PHASES, "succeeded"]
    drawn_as = page.locator(".fbp-sweep tbody .fbp-state svg").evaluate_all("all => all.map(one => one.classList[1])")
    assert drawn_as == ["fbp-is-launched"] * 5 + ["fbp-is-running"] * 2 + ["fbp-is-succeeded"]
    page.get_by_role("tab", name="Timeline").click()

    looks = page.locator(".fbp-legend i")
    for name, media, dark in (("light", "none", False), ("dark", "none", True), ("forced", "active", False)):
        page.emulate_media(forced_colors=media)  # type: ignore[arg-type]
        page.evaluate(
            "dark => { document.body.style.background = dark ? '#111' : '#fff'; document.body.dataset.jpThemeLight = String(!dark); }", dark
        )
        page.wait_for_function("dark => !!document.querySelector('[data-flowbook-dark]') === dark", arg=dark)
        for width in (1000, 420):
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=pictures / f"pods-{name}-{width}.png")
            wide = page.locator(".fbp-took").evaluate_all(
                "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)"
            )
            assert wide == [], (name, width)
        drawn = looks.evaluate_all(
            "all => all.map(i => { const s = getComputedStyle(i); return [s.backgroundImage, s.backgroundColor, s.height].join(' '); })"
        )
        assert len(set(drawn)) == len(PHASES), (name, drawn)
        shapes = looks.evaluate_all(
            "all => all.map(i => { const s = getComputedStyle(i); return [s.backgroundImage.replace(/rgba?\\([^)]*\\)|color\\([^)]*\\)/g, ''), s.height].join(' '); })"
        )
        assert len(set(shapes[:5])) == 5, f"{name}: without colour, too: {shapes}"
    assert alone.errors == []


def test_without_pods_the_legend_tells_of_none(alone: PanelPage) -> None:
    first, changes = sweep(2)
    alone.change(first)
    alone.open()
    play(alone, changes)

    assert alone.page.locator(".fbp-legend").inner_text().split() == ["queued", "starting", "running", "saving"]
