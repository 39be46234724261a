"""The setting `previews`: what of a value is stored beside it, and shown. WORD stands for what must not be seen."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from flowbook.cards import Artifact, Markdown, html, wire
from flowbook.cards.report import report
from flowbook.errors import SettingError
from flowbook.settings import load_settings
from flowbook.spec.flow import Card as CardOptions
from flowbook.store import codec, layout, preview
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore
from tests.kernel.conftest import Notebook
from tests.kernel.test_panel import Page
from tests.test_cards import Odd
from tests.worker_project import FLOW, RUN, Project, cell

Json = Any
WORD = "Rosebud"
FRAME = {"who": [WORD, "b", "c"], "much": [1, 2, 3]}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    preview.use(preview.FULL)


# ---- the setting ---------------------------------------------------------------------------------------------------------


def test_the_setting_is_read_from_any_place_and_a_wrong_value_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.flowbook]\npreviews = "schema"\n')
    user, system = tmp_path / "user.toml", tmp_path / "system.toml"

    def load(environ: dict[str, str]) -> str:
        return load_settings(tmp_path, environ, user=user, system=system).previews

    assert load({}) == "schema" and load({"FLOWBOOK_PREVIEWS": "Off"}) == "off"
    system.write_text('previews = "off"\nlocked = ["previews"]\n')
    assert load({"FLOWBOOK_PREVIEWS": "full"}) == "off"
    system.unlink()
    for wrong in ("none", "0", "schema,off"):
        with pytest.raises(SettingError, match=f"FLOWBOOK_PREVIEWS = '{wrong}' cannot be used; it must be one of full, schema, off"):
            load({"FLOWBOOK_PREVIEWS": wrong})
    (tmp_path / "pyproject.toml").write_text("[tool.flowbook]\npreviews = false\n")
    with pytest.raises(SettingError, match="tool.flowbook.previews = False cannot be used"):
        load({})


# ---- entries ----------------------------------------------------------------------------------------------------------------


VALUES = {
    "text": WORD,
    "list": [WORD] * 3,
    "dict": {WORD: 1},
    "array": numpy.array([WORD, "b"]),
    "objects": numpy.array([WORD, None], dtype=object),
    "frame": pandas.DataFrame(FRAME),
    "series": pandas.Series([WORD, "b"]),
    "odd": Odd(),
    "class": Odd,
    "large": [WORD] * 100_000,
}


def told(entry: Json) -> str:
    """An entry without the value itself, which is there to be read."""
    return json.dumps({key: value for key, value in entry.items() if key not in ("json", "inline", "key")})


@pytest.mark.parametrize("name", VALUES)
def test_what_is_written_beside_a_value_is_no_more_than_the_setting_allows(name: str) -> None:
    value = VALUES[name]
    entries = {}
    for mode in preview.MODES:
        preview.use(mode)
        entries[mode] = codec.entry(MemoryStore(), name, value)
        assert (WORD in told(entries[mode])) == (mode == "full" and name not in ("objects", "odd", "class")), mode
    full, schema, off = entries.values()

    assert {full["type"], schema["type"], off["type"]} == {preview.type_name(value)} and "previews" not in full
    assert (schema["previews"], off["previews"]) == ("schema", "off")
    assert schema.get("shape") == full.get("shape") and schema.get("dtype") == full.get("dtype")
    assert set(off) & {"repr", "shape", "dtype", "html"} == set()
    assert ("3 rows × 2 columns: who, much" in schema.get("repr", "")) == (name == "frame")
    assert "html" not in schema and (name != "frame") == ("repr" not in schema)
    for written, entry in entries.items():
        for mode in preview.MODES:
            preview.use(mode)
            shown = preview.shown(entry)
            strict = max(written, mode, key=preview.MODES.index)
            assert (
                shown is entry
                if strict == "full"
                else WORD not in json.dumps({k: v for k, v in shown.items() if k not in ("inline", "key")})
            )
            assert "json" not in shown or strict == "full"
            assert not (strict == "off" and set(shown) & {"repr", "shape", "dtype"})
            assert preview.shown(shown) == shown


class Frame:
    """As one of polars, which is not installed here."""

    shape, columns = (3, 2), ["who", "much"]

    def __repr__(self) -> str:
        return WORD


def test_the_columns_of_a_frame_of_polars_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", types.SimpleNamespace(DataFrame=Frame))
    preview.use("schema")

    assert preview.brief(Frame()) == {"previews": "schema", "repr": "DataFrame, 3 rows × 2 columns: who, much", "shape": [3, 2]}


def test_a_frame_of_an_older_run_shows_its_columns_and_a_word_of_a_later_version_nothing() -> None:
    entry = codec.entry(MemoryStore(), "frame", pandas.DataFrame(FRAME))
    preview.use("schema")
    assert preview.shown(entry)["repr"] == "DataFrame, 3 rows × 2 columns: who, much" and "html" not in preview.shown(entry)
    preview.use("full")
    assert set(preview.shown({"kind": "json", "json": WORD, "repr": WORD, "previews": "names"})) == {"kind", "previews"}
    preview.use("names")
    assert preview.mode() == "off" and preview.item(1) is None


# ---- a worker ---------------------------------------------------------------------------------------------------------------


def files(project: Project) -> Iterator[tuple[str, str]]:
    """All that a run left, but for the values themselves and the code."""
    for path in (project.folder / "store").rglob("*"):
        if path.is_file() and "/blobs/" not in str(path) and path.name != "run.json":
            text = path.read_text(errors="replace")
            if path.name.endswith("COMMIT"):
                commit = json.loads(text)
                commit["artifacts"] = {name: json.loads(told(entry)) for name, entry in commit["artifacts"].items()}
                text = json.dumps(commit)
            yield path.name, text


SOURCE = """
import pandas
word = "".join(["Rose", "bud"])
many = [word] * 100_000
frame = pandas.DataFrame({"who": [word], "much": [1]})
card.append(Artifact(word))
card.append(object())
card.append("shown by the step itself")
"""


@pytest.mark.parametrize("mode", preview.MODES)
def test_a_worker_stores_and_sends_no_preview_that_its_run_forbids(tmp_path: Path, mode: str) -> None:
    project = Project(tmp_path)
    source = f"from flowbook.cards import Artifact{SOURCE}"
    params = {"rate": {"kind": "json", "json": WORD, "type": "str", "repr": repr(WORD)}}
    project.define(cell("only", source, saves=("word", "many", "frame"), cards=(CardOptions(),)), params=params, previews=mode)
    ran = project.run("only")
    commit = ran.artifacts
    assert ran.code == 0 and project.value(commit["word"]) == WORD and len(project.value(commit["many"])) == 100_000
    kept = dict(files(project))
    sent = json.dumps(ran.frames)

    seen = {name for name, text in kept.items() if WORD in text}
    assert seen == ({"0.COMMIT", "card-default.json"} if mode == "full" else set()) and (WORD in sent) == (mode == "full")
    assert ("1 rows × 2 columns: who, much" in kept["card-default.json"]) == (mode != "off")
    assert "shown by the step itself" in kept["card-default.json"] and ".DataFrame" in kept["card-default.json"]


@pytest.mark.parametrize("mode", preview.MODES)
def test_items_of_a_fan_out_are_named_only_where_values_may_be(mode: str) -> None:
    from flowbook.store import results

    preview.use(mode)
    plan = results.write_items(MemoryStore(), [WORD, "b"])

    assert plan["count"] == 2 and plan["reprs"] == ([repr(WORD), "'b'"] if mode == "full" else [])


def test_the_default_card_of_an_older_run_is_shown_without_values(tmp_path: Path) -> None:
    project = Project(tmp_path)
    source = f"import numpy\nfrom flowbook.cards import Artifact{SOURCE}ones = numpy.ones((2, 3))"
    project.define(cell("only", source, saves=("word", "frame", "ones"), cards=(CardOptions(),)))
    assert project.run("only").code == 0
    data = project.store.get(layout.card(FLOW, RUN, "only", (), 0, "default"))
    assert WORD in html.page([wire.read(data)])
    heard = wire.read(data)

    preview.use("schema")
    page = html.page([wire.read(data)])
    assert WORD not in page and "shown by the step itself" in page and "numpy.ndarray 2 × 3" in page
    assert WORD not in html.page([heard]), "also a card that was read before"
    preview.use("off")
    page = html.page([wire.read(data)])
    assert WORD not in page and "numpy.ndarray" in page and "2 × 3" not in page and wire.checked(wire.read(data)) == wire.read(data)


def test_what_a_step_shows_itself_is_shown_whatever_the_setting_is() -> None:
    preview.use("off")
    assert Markdown(WORD).to_json()["text"] == WORD
    assert Artifact([WORD], name="x").to_json() == {"type": "artifact", "name": "x", "of": "list", "text": ""}


# ---- a notebook -----------------------------------------------------------------------------------------------------------------


STEPS = (
    '%%flowstep start\nimport pandas\nword = "".join(["Rose", "bud"])\nwords = [word, word + "2"]\nframe = pandas.DataFrame({"who": words, "much": [1, 2]})',
    '%%flowstep train --foreach "x in words" --card\nscore = x + "!"\nnumber = len(x)\nif number == 8:\n    raise ValueError("no")',
)
LOOKS = (
    "print(repr(get_ipython().user_ns['word']))",
    "print(repr(get_ipython().user_ns['frame']))",
    "train",
    "train[0]",
    "print(train._repr_html_())",
    "%flow artifacts 1",
    "%flow show train",
    "%flow card 1/train",
    "%flow status 1",
    "__import__('flowbook.client').client.Run('book/1')",
    "__import__('flowbook.client').client.Task('book/1/train/0')",
    "__import__('flowbook.client').client.Task('book/1/start/0')['word']",
)


def looked_at(notebook: Notebook) -> dict[str, str]:
    """What each way of looking at a run shows, in all its forms. Of a name the placeholder, without loading it."""
    found = {}
    for line in LOOKS:
        shown = notebook.run(line)
        found[line] = shown.text + json.dumps(list(shown.displays.values()))
    notebook.run("%flow report 1 -o page.html")
    return found | {"report": (notebook.folder / "page.html").read_text()}


@pytest.mark.parametrize("mode", ["schema", "off"])
def test_no_look_at_a_run_shows_a_value_that_the_setting_hides_old_runs_too(tmp_path: Path, mode: str) -> None:
    first = Notebook(tmp_path, allow_stdin=True)
    try:
        first.ok("%load_ext flowbook")
        page = Page(first)
        for step in STEPS:
            page.run(step)
        page.run("%flow run")
        model = page.ended()
        page.wait()
        page.until(lambda: "score" in json.dumps(model["tables"]))
        page.until(lambda: WORD in json.dumps(page.shown))
        assert WORD in json.dumps(model)
    finally:
        first.close()

    hidden = Notebook(tmp_path, allow_stdin=True, kernel_env={"FLOWBOOK_PREVIEWS": mode})
    try:
        hidden.ok("%load_ext flowbook")
        page = Page(hidden)
        page.run("%flow attach 1")
        model = page.ended()
        page.wait()
        page.until(lambda: model.get("detail start", {}).get("artifacts") and "card of train" in json.dumps(page.shown))
        assert WORD not in json.dumps(model) and WORD not in json.dumps(page.shown)
        assert ("who, much" in json.dumps(model, ensure_ascii=False)) == (mode == "schema")
        assert {line: text[max(text.find(WORD) - 80, 0) :][:200] for line, text in looked_at(hidden).items() if WORD in text} == {}
        assert "number" in looked_at(hidden)["%flow artifacts 1"]

        for step in STEPS:
            page.run(step)
        page.run("%flow run --fresh")
        second = page.panel(1)
        page.until(lambda: second["head"]["ended"] and json.dumps(page.shown).count("card of train[0]") == 2)
        page.wait()
        assert WORD not in json.dumps(second) and WORD not in json.dumps(page.shown)
        assert hidden.value("word") == repr(WORD), "a value is read as ever"
    finally:
        hidden.close()
    store = FilesStore(tmp_path / "store" / "default")
    preview.use("full")
    again = report(store, "book", "2")
    assert WORD not in again and WORD in report(store, "book", "1")
    texts = [store.get(key) for key in store.list("flows/book/2/") if not key.endswith(("COMMIT", "run.json"))]
    assert not any(WORD.encode() in text for text in texts)
