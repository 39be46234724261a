"""Cards in a browser: every component, drawn and redrawn in its place; hostile cards, in the notebook's way and as static pages."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowbook import cards
from flowbook.cards import (
    HTML,
    Artifact,
    Component,
    Error,
    EventsTimeline,
    Image,
    JSONViewer,
    LineChart,
    Markdown,
    ProgressBar,
    PythonCode,
    Table,
    ValueBox,
    VegaChart,
    YAMLViewer,
    html,
    wire,
)
from tests.browser import hostile
from tests.browser.card_page import CardPage, Trap, node

Json = Any


@pytest.fixture(scope="module")
def drawing(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CardPage]:
    if node() is None:
        message = "no node, or no node_modules (npm ci --ignore-scripts): the browser tests of cards did not run"
        if os.environ.get("FLOWBOOK_BROWSER_TESTS") == "required":
            pytest.fail(message)
        pytest.skip(message)
    page = CardPage(browser, tmp_path_factory.mktemp("cards"))
    yield page
    page.close()


HOSTILE = hostile.cards("http://127.0.0.1:1")


@pytest.fixture
def watched(drawing: CardPage) -> Iterator[CardPage]:
    """The page without what an earlier test left on it."""
    for noted in (drawing.seen, drawing.dialogs, drawing.errors, drawing.popups, drawing.trap.heard):
        noted.clear()
    if drawing.page.evaluate("document.querySelectorAll('.fbl-card').length"):
        drawing.open()
    yield drawing


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_reaches_nothing_and_the_rest_is_drawn(watched: CardPage, name: str) -> None:
    """Drawn as Python read it, as in the notebook, and as it came, since the front end must not need that."""
    text = hostile.cards(watched.trap.address)[name]
    ways = {"read": cards.read(text.encode()), **({"raw": text} if "NaN" not in text else {})}
    for way, card in ways.items():
        watched.draw(card, way)
        watched.page.mouse.click(150, 100)
    watched.settled()
    watched.page.wait_for_timeout(50)
    assert_unharmed(watched)
    assert watched.page.locator('[data-component="last"]').all_inner_texts() == ["still here"] * len(ways)
    for way in ways:
        watched.page.evaluate("name => window.cards.end(name)", way)


def assert_unharmed(drawing: CardPage) -> None:
    state = drawing.page.evaluate(
        """() => ({canary: window.canary, polluted: ({}).polluted, title: document.title, outside: document.getElementById('outside').outerHTML,
            children: [...document.body.children].map(el => el.localName).join(), scripts: document.querySelectorAll('#cards script').length,
            cursor: document.body.style.cursor, at: location.pathname})"""
    )
    assert state == {
        "canary": "alive",
        "polluted": None,
        "title": "cards",
        "outside": '<div id="outside">outside</div>',
        "children": "div,div,script",
        "scripts": 0,
        "cursor": "",
        "at": "/index.html",
    }
    assert drawing.seen == [] and drawing.trap.heard == []
    assert drawing.dialogs == [] and drawing.popups == [] and drawing.errors == []


# ---- what is drawn -------------------------------------------------------------------------------------------------------


def every_component() -> list[Component]:
    losses = LineChart("loss", x_label="epoch")
    for i in range(60):
        losses.add("train", 1 / (i + 1) + 0.02 * (i % 5), i)
        losses.add("validation", 1.3 / (i + 1) + 0.05 if i != 30 else None, i)
    events = EventsTimeline("calls of the agent")
    events.update(
        {"tool": "search", "query": "learning rates", "took": 0.4},
        "tool_call",
        payloads={"found": ["a", {"b": 1}], "code": PythonCode(code_string="x = 1")},
    )
    events.update({"event": "out of memory", "worker": 3}, "error", "critical", finished=True)
    bars = {"mark": "bar", "data": {"values": [{"model": m, "score": s} for m, s in (("linear", 0.71), ("forest", 0.83), ("net", 0.88))]}}
    bars |= {"encoding": {"x": {"field": "score", "type": "quantitative"}, "y": {"field": "model", "type": "nominal", "sort": "-x"}}}
    table = Table(
        [["linear", 0.71, ProgressBar(10, value=4)], ["forest", 0.8312345, ProgressBar(10, value=10)], ["net", None, "waits"]],
        ["model", "score", "state"],
    )
    text = "## Epoch 30 of 60\n\nThe *learning rate* was **halved** twice, see `schedule`.\n\n- first at 10\n- then at 20\n\n| a | b |\n|---|--:|\n| x | 1 |\n\n> kept"
    code = "@step\ndef train(self):\n    # one epoch\n    loss = fit(lr=0.01, name='net')\n    return loss"
    return [
        Markdown(text),
        ValueBox("Accuracy", 0.8812, "of 10,000", "success", "+2.1 %"),
        ValueBox("Loss", 0.0312, "validation", "warning"),
        ValueBox("Failed", 3, theme="danger"),
        ValueBox("Throughput", "1,204 / s", theme="bg-gradient-indigo-purple"),
        ProgressBar(60, "epochs", 30, "epoch", "12.3 a second"),
        ProgressBar(0, "downloaded", 1234567, "bytes"),
        losses,
        VegaChart(bars),
        table,
        Artifact({"lr": 0.01, "layers": [64, 64]}, "config"),
        Image(f"data:image/svg+xml;base64,{base64.b64encode(DOT).decode()}", "a picture"),
        JSONViewer({"model": {"layers": [64, 64, 10], "dropout": 0.1, "name": "net"}, "seeds": list(range(5)), "ok": True, "none": None}, title="Settings"),
        YAMLViewer({"model": {"layers": [64, 64], "name": "net"}}, title="Settings as YAML"),
        events,
        PythonCode(code_string=code),
        HTML("<style>b{color:#7a3fa0}</style><p>HTML of <b>the step</b>, in a frame of its own", height=60),
        Error("Traceback (most recent call last):\n  File \"cell\", line 3\nValueError: \x1b[31mno rows\x1b[0m", "ValueError: no rows"),
    ]  # fmt: skip


DOT = b'<svg xmlns="http://www.w3.org/2000/svg" width="160" height="60"><rect width="160" height="60" fill="#e8eef6"/><circle cx="80" cy="30" r="20" fill="#3b7dc4"/></svg>'


def card_of(*components: Component, **head: Any) -> Any:
    entries = [(part.id or f"#{i}", part.freeze()) for i, part in enumerate(components)]
    return cards.read(wire.write({"id": "main", "type": "blank", "state": "running", "n": 1, **head}, entries))


def test_every_component_is_drawn_light_dark_and_narrow(watched: CardPage, pictures: Path) -> None:
    card = card_of(*every_component())
    kinds = {part["type"] for part in card["components"]}
    for theme, width in (("light", 1000), ("dark", 1000), ("light", 360)):
        watched.page.set_viewport_size({"width": width, "height": 900})
        el = watched.draw(card, "every", theme)
        watched.settled()
        watched.page.wait_for_timeout(300)
        watched.page.set_viewport_size({"width": width, "height": watched.page.evaluate("document.documentElement.scrollHeight")})
        watched.page.wait_for_timeout(200)  # frames out of view are not painted
        watched.page.screenshot(path=pictures / f"card-{theme}-{width}.png")
        assert el.locator(":scope .fbl-parts > *").count() == len(card["components"])
        assert "cannot be" not in el.inner_text() and "Epoch 30 of 60" in el.inner_text()
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width}"
    watched.page.set_viewport_size({"width": 1000, "height": 900})

    assert kinds == set(wire.FIELDS)
    assert any("HTML of the step" in frame.locator("body").inner_text() for frame in watched.page.frames[1:])
    assert el.locator("canvas").count() == 1 and watched.page.evaluate("window.cards.asked()") == 1
    assert watched.errors == [] and watched.seen == []


def test_a_card_is_updated_in_its_place(watched: CardPage) -> None:
    def state(epoch: int, *more: Component) -> Any:
        losses = LineChart("loss")
        for i in range(epoch):
            losses.add("train", 1 / (i + 1))
        rows = [[i, i * epoch, ProgressBar(10, value=epoch)] for i in range(80)]
        text = Markdown(f"# Epoch {epoch}\n\n```\n" + "line\n" * 100 + "```")
        return card_of(text, ProgressBar(10, "epochs", epoch), losses, Table(rows, ["a", "b", "c"]), *more)

    el = watched.draw(state(2, ValueBox("x", 1)))
    page = watched.page
    page.evaluate(
        """() => { for (const part of document.querySelectorAll('#cards *')) part.kept = true;
            document.querySelector('#cards pre').scrollTop = 300; document.querySelector('#cards .fbl-table .fbl-scroll').scrollTop = 200; }"""
    )
    watched.draw(state(7, Markdown("now text"), ValueBox("new", 2)))

    kept = "el => [el.kept === true, el.scrollTop]"
    assert el.locator("h1").inner_text() == "Epoch 7" and el.locator("h1").evaluate(kept) == [True, 0]
    assert el.locator("pre").first.evaluate(kept) == [True, 300]
    assert el.locator(".fbl-table .fbl-scroll").evaluate(kept) == [True, 200]
    assert el.locator(".fbl-parts > .fbl-progress").get_attribute("class") == "fbl-progress"
    assert el.locator(".fbl-parts > .fbl-progress .fbl-bar").get_attribute("aria-valuenow") == "70"
    assert el.locator("tbody tr").nth(3).locator("td").nth(1).inner_text() == "21"
    assert el.locator("tbody td .fbl-bar").first.evaluate("el => [el.kept === true, el.getAttribute('aria-valuenow')]") == [True, "70"]
    assert el.locator(".fbl-curves path").evaluate("el => [el.kept === true, el.getAttribute('d').split('L').length]") == [True, 7]
    assert el.locator('[data-component="#4"]').inner_text() == "now text" and el.locator(".fbl-big").inner_text() == "2"

    watched.draw(card_of())
    assert el.inner_text() == "nothing is shown yet" and el.locator(".fbl-parts > *").count() == 0


def test_of_many_rows_the_first_are_drawn_until_all_are_asked_for(watched: CardPage) -> None:
    el = watched.draw(card_of(Table([[i] for i in range(1_500)], ["n"])))
    assert el.locator("tbody tr").count() == 100 and "not kept: 500 more rows" in el.inner_text()
    el.get_by_text("show 900 more rows").click()
    assert el.locator("tbody tr").count() == 1_000


def test_what_is_folded_is_drawn_when_it_is_opened(watched: CardPage) -> None:
    events = EventsTimeline("calls")
    events.update({"tool": "search"}, payloads={"found": Markdown("**seven**")})
    data = {f"k{i}": {"deep": {"x": [{"y": i}]}} for i in range(300)}
    el = watched.draw(card_of(events, JSONViewer(data)))
    assert el.locator("strong", has_text="seven").count() == 0 and '"y"' not in el.inner_text()
    el.get_by_text("found").click()
    assert el.locator("strong", has_text="seven").is_visible()
    el.get_by_text("100 more").click()
    el.locator(".fbl-entry", has_text="k299").locator("summary").first.click()
    assert "deep" in el.locator(".fbl-entry", has_text="k299").last.inner_text()


def bars(scale: int, title: str = "scores") -> VegaChart:
    rows = [{"model": name, "score": len(name) * scale} for name in ("a", "bb", "ccc")]
    encoding = {"x": {"field": "score", "type": "quantitative"}, "y": {"field": "model", "type": "nominal"}}
    return VegaChart({"mark": "bar", "title": title, "data": {"values": rows}, "encoding": encoding})


def test_a_chart_of_vega_takes_new_data_without_being_made_anew(watched: CardPage) -> None:
    def canvas() -> Any:
        return watched.page.evaluate(
            """() => { const found = document.querySelectorAll('#cards canvas'); const kept = found[0].kept === true; found[0].kept = true;
                return [found.length, kept, found[0].toDataURL()]; }"""
        )

    def drawn(chart: VegaChart, theme: str = "light") -> Any:
        watched.draw(card_of(chart), theme=theme)
        watched.page.wait_for_timeout(300)
        watched.settled()
        return canvas()

    first, data, spec, dark = drawn(bars(1)), drawn(bars(5)), drawn(bars(5, "points")), drawn(bars(5, "points"), "dark")
    assert [each[:2] for each in (first, data, spec, dark)] == [[1, False], [1, True], [1, False], [1, False]]
    assert len({each[2] for each in (first, data, spec, dark)}) == 4
    assert watched.errors == []


def altair_bars(scale: int) -> VegaChart:
    """As altair writes it: the data under a name made of what it holds."""
    spec = bars(scale).to_json()["spec"]
    name = f"data-{scale}"
    return VegaChart(
        {
            **spec,
            "data": {"name": name},
            "datasets": {name: spec["data"]["values"]},
            "$schema": "https://vega.github.io/schema/vega-lite/v5.20.1.json",
        }
    )


def test_a_chart_of_altair_takes_new_data_without_being_made_anew(watched: CardPage) -> None:
    for scale in (1, 5):
        el = watched.draw(card_of(altair_bars(scale)))
        watched.page.wait_for_timeout(300)
        watched.settled()
        kept = el.locator("canvas").evaluate("el => { const kept = el.kept === true; el.kept = true; return kept; }")
        assert kept is (scale == 5)
    assert watched.errors == []


def test_many_charts_share_one_vega_and_a_wrong_one_shows_its_data(watched: CardPage) -> None:
    wrong = VegaChart(
        {
            "mark": "bar",
            "data": {"values": [{"a": 1, "b": "x"}]},
            "encoding": {"x": {"field": "a", "type": "nonsense", "bin": 5}},
            "params": 3,
        }
    )
    el = watched.draw(card_of(*[bars(i, f"chart {i}") for i in range(20)], wrong))
    watched.settled()
    assert el.locator("canvas").count() == 20 and watched.page.evaluate("window.cards.asked()") <= 1
    assert "this chart cannot be drawn" in el.inner_text() and el.locator("td", has_text="x").count() == 1


# ---- static pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False], ids=["JavaScript", "no JavaScript"])
def test_hostile_cards_as_static_pages_reach_nothing(browser: Any, tmp_path: Path, scripts: bool) -> None:
    trap = Trap()
    context = browser.new_context(java_script_enabled=scripts)
    page = context.new_page()
    asked: list[str] = []
    noted: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("requestfailed", lambda request: asked.remove(request.url) if request.failure == "csp" else None)
    context.on("page", lambda page: noted.append(page.url))
    page.on("dialog", lambda dialog: (noted.append(dialog.message), dialog.dismiss()))
    file = tmp_path / "card.html"
    for some in batches(hostile.cards(trap.address)):
        file.write_text(html.page([cards.read(text.encode()) for text in some.values()], "cards"))
        page.goto(file.as_uri())
        page.mouse.click(150, 120)
        page.wait_for_timeout(50)
        assert page.locator("body").inner_text().count("still here") == len(some) and page.title() == "cards", some.keys()
        assert [url for url in asked if not url.startswith(("data:", "about:"))] == [file.as_uri()], some.keys()
        assert (trap.heard, noted) == ([], []), some.keys()
        asked.clear()
    context.close()
    trap.close()


def batches(found: dict[str, str]) -> Iterator[dict[str, str]]:
    """Those with something to be clicked each for itself, the others by tens."""
    alone = [name for name, text in found.items() if "id=go" in text]
    yield from ({name: found[name]} for name in alone)
    rest = [name for name in found if name not in alone]
    yield from ({name: found[name] for name in rest[i : i + 10]} for i in range(0, len(rest), 10))
