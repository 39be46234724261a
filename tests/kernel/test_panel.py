"""The run panel in a real kernel: what goes over its comm, what its buttons do while a cell blocks, what an executed notebook holds."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from flowbook.kernel import panel
from tests.kernel.conftest import Notebook, waits_for

VIEW = "application/vnd.jupyter.widget-view+json"
pytestmark = pytest.mark.skipif(not panel._built(), reason="the panel is not built here (.ci/frontend): NO NODE? Its tests did not run")
FAN = "%%flowstep work --foreach 'rate in [2, 1, 0]'\nimport pathlib, time\nfor i in range(4):\n    card.metric('loss', 1 / (i + 1))\ninverse = 1 / rate"


class Page:
    """A browser without a screen: it keeps the models of widgets as a front end does, from what comes over iopub."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.models: dict[str, dict[str, Any]] = {}
        self.shown: dict[str, dict[str, Any]] = {}  # display id → bundle
        self.busy: set[str] = set()  # cells that were sent and have not ended
        self.sizes: list[int] = []
        self.updates: list[set[str]] = []  # the keys of each message to a model
        self.painted: list[str] = []  # in their order: "panel" or "status" for what was displayed or painted anew

    def run(self, code: str) -> str:
        cell = self.notebook.start(code)
        self.busy.add(cell)
        return cell

    def until(self, ready: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Take in messages until something is there."""
        deadline = time.monotonic() + timeout_s
        while not (found := ready()):
            assert time.monotonic() < deadline, {key: list(model) for key, model in self.models.items()}
            self._take(self.notebook.client.get_iopub_msg(timeout=timeout_s))
        return found

    def _take(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "comm_open":
            self.models[content["comm_id"]] = dict(content["data"]["state"])
        elif kind == "comm_msg" and content["data"].get("method") == "update":
            self.models[content["comm_id"]].update(content["data"]["state"])
            self.sizes.append(len(json.dumps(content["data"]["state"])))
            self.updates.append(set(content["data"]["state"]))
        elif kind in ("display_data", "update_display_data"):
            self.shown[content["transient"]["display_id"]] = content["data"]
            self.painted.append(
                "panel" if VIEW in content["data"] else "status" if "fb-head" in content["data"].get("text/html", "") else ""
            )
        elif kind == "status" and content["execution_state"] == "idle":
            self.busy.discard(message["parent_header"].get("msg_id", ""))

    def wait(self) -> None:
        self.until(lambda: not self.busy)

    def panel(self, number: int = 0) -> dict[str, Any]:
        """The model of the n-th panel, once there is one."""
        return self.until(lambda: [m for m in self.models.values() if "head" in m][number : number + 1])[0]

    def ended(self) -> dict[str, Any]:
        model = self.panel()
        self.until(lambda: model["head"]["ended"])
        return model

    def ask(self, **command: Any) -> None:
        comm = next(key for key, model in self.models.items() if "head" in model)
        client = self.notebook.client
        data = {"comm_id": comm, "data": {"method": "custom", "content": command}}
        client.shell_channel.send(client.session.msg("comm_msg", data))


@pytest.fixture
def page(lab: Notebook) -> Iterator[Page]:
    yield Page(lab)


# ---- what is shown ------------------------------------------------------------------------------------------------------------


def test_a_run_has_a_panel_above_its_status(page: Page) -> None:
    page.run("%%flowstep start\nx = 1")
    page.run(FAN)
    page.run("%flow run")
    model = page.ended()
    page.until(lambda: any(VIEW in bundle for bundle in page.shown.values()))
    bundles = list(page.shown.values())

    assert VIEW in bundles[0] and "text/html" not in bundles[0]
    assert f'data-flowbook-run="{model["head"]["token"]}"' in bundles[1]["text/html"]
    assert model["head"]["state"] == "failed" and "ZeroDivisionError" in model["head"]["error"]
    assert [node["step"] for node in model["graph"]["nodes"]] == ["start", "work"]
    assert [row[:2] for row in model["tables"]["work"]["rows"]] == [["work[0]", 2], ["work[1]", 1], ["work[2]", 0]]
    page.until(lambda: model["tables"]["work"]["rows"][0][-1] == 0.5)
    assert model["detail work[2]"]["error"]["line"] == 5
    card = model[model["detail work[0]"]["cards"][0]]
    assert card["components"][0]["series"][0]["y"][-1] == 0.25


def test_the_second_run_has_a_panel_of_its_own_and_no_import_is_waited_for(page: Page) -> None:
    page.run("%%flowstep start\nx = 1")
    page.run("%flow run")
    page.ended()
    page.run("%flow run --fresh")
    second = page.panel(1)
    page.until(lambda: second["head"]["ended"])

    assert second["head"]["run"] == "2" and page.panel(0)["head"]["run"] == "1"


def test_loading_the_extension_does_not_import_anywidget(lab: Notebook) -> None:
    assert lab.value("__import__('sys').modules.get('anywidget')") == "None"


def test_a_kernel_without_the_built_panel_shows_the_status_as_ever(page: Page) -> None:
    page.run("from pathlib import Path\nfrom flowbook.kernel import panel\npanel.STATIC = Path('/nowhere')")
    page.run("%%flowstep start\nx = 1")
    page.run("%flow run --wait")
    page.wait()

    assert page.models == {} and len(page.shown) == 2
    assert "succeeded" in next(iter(page.shown.values()))["text/plain"] and "data-flowbook-run" not in str(page.shown)


def test_a_broken_panel_leaves_the_status_and_no_traceback_in_a_cell(page: Page) -> None:
    page.run("from flowbook.kernel import panel\npanel.widget_class = lambda: 1 / 0")
    page.run("%%flowstep start\nx = 1")
    page.run("%flow run --wait")
    page.wait()
    page.until(lambda: any("succeeded" in bundle.get("text/plain", "") for bundle in page.shown.values()))

    assert page.notebook.value("x") == "1"


def test_an_attached_run_has_a_panel_with_what_the_store_has(page: Page) -> None:
    page.run("%%flowstep start\ncard.append('kept')\ncard.run.append('of the run')\nprint('printed')\nx = 41")
    page.run("%flow run")
    first = page.ended()
    page.until(lambda: first.get("card run"))
    page.wait()
    last = page.until(lambda: [bundle["text/html"] for bundle in page.shown.values() if "of the run" in bundle.get("text/html", "")])[-1]
    assert last.index("of the run") < last.index("kept"), "in what stays it is the first"
    later = Notebook(page.notebook.folder, allow_stdin=True)
    try:
        later.ok("%load_ext flowbook")
        again = Page(later)
        again.run("%flow attach 1")
        model = again.panel()
        detail = again.until(lambda: model.get("detail start", {}).get("artifacts") and model["detail start"])

        assert detail["artifacts"][0]["repr"] == "41" and detail["output"] == [{"mime": "stream", "data": "printed\n"}]
        assert model[detail["cards"][0]]["components"][0]["text"] == "kept"
        assert again.until(lambda: model.get("card run"))["components"][0]["text"] == "of the run"
        assert model["tasks"][0]["ended"] and model["head"]["state"] == "succeeded"
    finally:
        later.close()


# ---- its pace -----------------------------------------------------------------------------------------------------------------


def test_a_changed_card_leaves_alone_and_waits_for_nothing_else(page: Page, tmp_path: Path) -> None:
    page.run("from flowbook.kernel import panel\npanel.CLOCK_S = panel.CARDS_ONLY_S = 3600.0")
    page.run(
        f"%%flowstep start\ncard.append('first', id='a')\ncard.refresh()\n{waits_for(tmp_path / 'go')}\n{SECOND}\n{waits_for(tmp_path / 'on')}"
    )
    page.run("%flow run")
    model = page.panel()
    page.until(lambda: text(model) == "first")
    page.until(lambda: model["tasks"][0]["state"] == "running")
    seen = len(page.updates)
    (tmp_path / "go").touch()
    page.until(lambda: text(model) == "second")

    assert page.updates[seen:] == [{"card start blank"}]
    (tmp_path / "on").touch()
    page.until(lambda: model["head"]["ended"])


SECOND = "card.components['a'].update('second')\ncard.refresh()"


def text(model: dict[str, Any]) -> str | None:
    """What the first component of the card of `start` says."""
    shown = (model.get("card start blank") or {}).get("components")
    return str(shown[0]["text"]) if shown else None


def test_while_the_panel_is_there_the_status_that_it_hides_is_painted_rarely_and_at_the_end_at_once(page: Page) -> None:
    page.run("from flowbook.kernel import display\ndisplay.HIDDEN_S = display.MAX_INTERVAL_S = 3600.0")
    page.run("%%flowstep start\nimport time\nfor i in range(16):\n    print(i, flush=True)\n    time.sleep(0.25)")
    page.run("%flow run")
    page.ended()
    page.until(lambda: "succeeded" in str(page.shown))

    after = page.painted[page.painted.index("panel") :]
    assert after.count("status") <= 3, "one that was on its way, one as the panel came, one at the end"


# ---- buttons ------------------------------------------------------------------------------------------------------------------


def test_stop_works_on_a_run_and_says_so(page: Page, tmp_path: Path) -> None:
    page.run(f"%%flowstep slow\n{waits_for(tmp_path / 'never')}")
    page.run("%flow run")
    model = page.panel()
    page.ask(do="stop")
    page.until(lambda: model["head"]["state"] == "stopped")

    assert model["head"]["said"]["text"] == "run 1: asked to stop it" and model["head"]["retry"]


def test_stop_of_one_task_leaves_the_others(page: Page, tmp_path: Path) -> None:
    go = tmp_path / "go"
    page.run(f"%%flowstep slow --foreach 'i in range(2)'\n{waits_for(go)}\nx = i")
    page.run("%flow run")
    model = page.panel()
    page.until(lambda: [task["state"] for task in model["tasks"]] == ["running", "running"])
    page.ask(do="stop", step="slow", index=[1])
    page.until(lambda: model["tasks"][1]["state"] == "stopped")
    assert model["tasks"][0]["state"] == "running"
    go.touch()
    page.until(lambda: model["tasks"][0]["state"] == "succeeded")


def test_retry_of_what_failed_goes_on_in_the_same_panel(page: Page, tmp_path: Path) -> None:
    page.run("%%flowstep start\nx = 1")
    page.run(f"%%flowstep shaky\nimport pathlib\nassert pathlib.Path({str(tmp_path / 'ok')!r}).exists()\ny = x + 1")
    page.run("%flow run")
    model = page.ended()
    (tmp_path / "ok").touch()
    page.ask(do="retry")
    page.until(lambda: model["head"]["run"] == "2" and model["head"]["state"] == "succeeded")

    assert model["head"]["origin"] == "1" and "run 2" in model["head"]["said"]["text"]
    assert next(task for task in model["tasks"] if task["id"] == "start")["cached"] == "1"
    page.until(lambda: any("run 2 · succeeded" in bundle.get("text/plain", "") for bundle in page.shown.values()))
    page.wait()
    assert page.notebook.value("y") == "2"


def test_what_cannot_be_done_is_said_in_the_panel(page: Page) -> None:
    page.run("%%flowstep start\nx = 1")
    page.run("%flow run")
    model = page.ended()
    page.ask(do="retry")
    page.until(lambda: (model["head"]["said"] or {}).get("text", "").endswith("`%flow run` starts a new one."))
    page.ask(do="stop", step="nothing")
    page.until(lambda: "no step 'nothing'" in model["head"]["said"]["text"])
    page.ask(do="stop")
    page.until(lambda: "already ended" in model["head"]["said"]["text"])


@pytest.mark.parametrize(
    "command", [{}, {"do": 3}, {"do": "show", "step": "start", "index": "x"}, {"do": "show", "step": None}, {"do": "stop", "index": [1]}]
)
def test_a_message_of_any_form_does_no_harm(page: Page, command: dict[str, Any]) -> None:
    page.run("%%flowstep start\nx = 1")
    page.run("%flow run")
    model = page.ended()
    page.ask(**command)
    page.ask(do="stop", step="nothing")
    page.until(lambda: "no step 'nothing'" in (model["head"]["said"] or {}).get("text", ""))

    assert page.notebook.value("x") == "1"


def test_what_is_asked_between_the_last_sending_and_the_end_of_its_thread_is_answered(page: Page) -> None:
    page.run(
        """from flowbook.kernel.panel import RunPanel
send, asked = RunPanel.send, []
def then_ask(self, whole=False):
    more = send(self, whole)
    if whole and not asked:
        asked.append(True)
        self._hear({"do": "stop", "step": "nothing"})
    return more
RunPanel.send = then_ask"""
    )
    page.run("%%flowstep start\nx = 1")
    page.run("%flow run")
    model = page.ended()

    page.until(lambda: "no step 'nothing'" in (model["head"]["said"] or {}).get("text", ""), timeout_s=20)


def test_a_task_that_is_asked_for_comes_with_all_of_it_after_the_end_too(page: Page) -> None:
    page.run("%%flowstep work --foreach 'i in range(40)'\nprint('said', i)\nx = i")
    page.run("%flow run")
    model = page.ended()
    wanted = next(f"work[{i}]" for i in range(40) if not model.get(f"detail work[{i}]"))
    page.ask(do="show", step="work", index=[int(wanted[5:-1])])
    detail = page.until(lambda: model.get(f"detail {wanted}") and model[f"detail {wanted}"]["artifacts"] and model[f"detail {wanted}"])

    assert detail["output"][0]["data"] == f"said {wanted[5:-1]}\n"


# ---- pace ---------------------------------------------------------------------------------------------------------------------


def test_a_task_that_refreshes_all_the_time_sends_little_and_the_last_state_arrives(page: Page) -> None:
    page.run(
        "%%flowstep busy\nimport time\nbegun = time.time()\nn = 0\nwhile time.time() - begun < 2:\n    n += 1\n    card.metric('n', n)\n    card.refresh()\nlast = n"
    )
    page.run("%flow run")
    model = page.ended()
    detail = page.until(lambda: (model.get("detail busy") or {}).get("artifacts") and model["detail busy"])
    last = next(int(a["repr"]) for a in detail["artifacts"] if a["name"] == "last")

    assert model[detail["cards"][0]]["components"][0]["series"][0]["y"][-1] == last
    assert len(page.sizes) < 60 and max(page.sizes) < 200_000


def test_vega_comes_once_for_all_panels_of_a_kernel(page: Page) -> None:
    page.run(
        "%%flowstep start\nfrom flowbook.cards import VegaChart\ncard.append(VegaChart({'data': {'values': [{'x': 1}]}, 'mark': 'bar'}))"
    )
    page.run("%flow run")
    first = page.ended()
    page.until(lambda: first.get("vega"))
    page.run("%flow run --fresh")
    second = page.panel(1)
    page.until(lambda: second.get("vega"))

    assert first["vega"] == second["vega"] and first["vega"]["model"] in page.models
    assert len([model for model in page.models.values() if "head" not in model and "_esm" in model]) == 1


# ---- executed notebooks -------------------------------------------------------------------------------------------------------


def test_an_executed_notebook_holds_the_panel_and_the_copy_that_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWBOOK_STORE", str(tmp_path / "store"))
    cells = [
        "%load_ext flowbook",
        "%%flowstep start\nx = 1",
        "%%flowstep train\nimport time\ntime.sleep(1.2)\ncard.append('# a card')\ny = x",
        "%flow run",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.validate(notebook)
    outputs = notebook.cells[-1].outputs
    models = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    state = models[outputs[0].data[VIEW]["model_id"]]["state"]
    page = outputs[1].data["text/html"]

    assert state["head"]["state"] == "succeeded" and [step["state"] for step in state["steps"]] == ["succeeded", "succeeded"]
    assert state[state["detail train"]["cards"][0]]["components"][0]["text"] == "# a card"
    assert "<svg" in page and "a card</h1>" in page and "run 1 · succeeded" in page
    assert len(page) < 60_000


def test_a_short_run_of_an_executed_notebook_has_at_least_the_copy_that_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWBOOK_STORE", str(tmp_path / "store"))
    notebook = new_notebook(
        cells=[new_code_cell(cell) for cell in ("%load_ext flowbook", "%%flowstep a\nx = 1", "%%flowstep b\ny = x", "%flow run")]
    )
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    page = "".join(output.data.get("text/html", "") for output in notebook.cells[-1].outputs)

    assert "succeeded" in page and "<svg" in page
    shutil.rmtree(tmp_path / "store")
