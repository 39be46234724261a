"""Hosts that are no JupyterLab, by what they send: clients without widgets, and VS Code's pattern of messages, simulated.

What VS Code does is read from its extension's behaviour, not run: see docs/hosts.md.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import Notebook
from tests.kernel.test_panel import VIEW, Page, pytestmark, waits_for

__all__ = ["pytestmark"]  # without the built panel there is nothing to be tested here

PROBE_SILENTLY = "__vsc_ipynb_file__ = {path!r}\nimport os as _VSCODE_os\n_VSCODE_os.getcwd()\ndel _VSCODE_os"


class DisplaysOnly:
    """A client that takes in nothing but displays: no comm is answered, no widget drawn, as in a terminal's or an editor's own notebook."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.story: list[tuple[str, str]] = []  # (display id, HTML), as they came
        self.idle: set[str] = set()

    def until(self, ready: Callable[[], Any], timeout_s: float = 60) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := ready()):
            assert time.monotonic() < deadline, self.story[-3:]
            message = self.notebook.client.get_iopub_msg(timeout=timeout_s)
            content = message["content"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                self.story.append((content["transient"]["display_id"], content["data"].get("text/html", "")))
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                self.idle.add(message["parent_header"]["msg_id"])
        return found

    def shown(self) -> str:
        """What stands below the cells now."""
        return "\n".join(dict(self.story).values())

    def text(self) -> str:
        return re.sub(r"<style>.*?</style>|<[^>]+>", " ", self.shown(), flags=re.DOTALL)


def test_without_widgets_the_status_is_there_at_once_moves_and_has_everything_at_the_end(lab: Notebook, tmp_path: Path) -> None:
    go, client = tmp_path / "go", DisplaysOnly(lab)
    for cell in (
        "%%flowstep start\nprint('said by start')\nm = 2",
        f"%%flowstep train --foreach 'i in range(m)'\n{waits_for(go)}\ncard.append(f'# Card of {{i}}')\nx = i",
    ):
        lab.ok(cell)
    started = lab.start("%flow run")
    client.until(lambda: started in client.idle)

    # It came with the cell's own messages, so no front end had to answer anything.
    assert "running" in client.text() and "start" in client.text(), client.story
    client.until(lambda: re.search(r"train\s+running\s+0 / 2", client.text()))
    blocking = lab.start(waits_for(go))
    go.touch()
    client.until(lambda: blocking in client.idle)
    client.until(lambda: re.search(r"train\s+succeeded\s+2 / 2", client.text()))
    client.until(lambda: "Card of 1" in client.shown() and "said by start" in client.shown())
    assert "<svg" in client.shown() and "model_id" not in client.shown()


# ---- VS Code, simulated -----------------------------------------------------------------------------------------------------


def executed(notebook: Notebook, code: str, cell: str, silent: bool = False) -> str:
    """An execute_request as VS Code's Jupyter extension sends it; gives its id."""
    content = {
        "code": code,
        "silent": silent,
        "store_history": not silent,
        "user_expressions": {},
        "allow_stdin": not silent,
        "stop_on_error": False,
    }
    metadata = {} if silent else {"cellId": f"vscode-notebook-cell:{notebook.folder}/other.ipynb#{cell}"}
    message = notebook.client.session.msg("execute_request", content, metadata=metadata)
    notebook.client.shell_channel.send(message)
    return str(message["header"]["msg_id"])


@pytest.fixture
def editor(tmp_path: Path) -> Iterator[Notebook]:
    """A kernel that nobody but the editor tells the notebook's name."""
    notebook = Notebook(tmp_path, allow_stdin=True, kernel_env={"FLOWBOOK_NOTEBOOK": ""})
    try:
        yield notebook
    finally:
        notebook.close()


def test_the_messages_of_vs_code_name_the_flow_and_bring_panel_and_status(editor: Notebook, tmp_path: Path) -> None:
    lab, page, go = editor, Page(editor), tmp_path / "go"
    for number, code in enumerate(
        ["%load_ext flowbook", "%%flowstep start\nx = 1", f"%%flowstep train\n{waits_for(go)}\ny = x", "%flow run", "print('another cell')"]
    ):
        page.busy |= {
            executed(lab, PROBE_SILENTLY.format(path=str(tmp_path / "other.ipynb")), "", silent=True),
            executed(lab, code, f"W{number}sZmlsZQ=="),
        }
    model = page.panel()
    page.until(lambda: [task["state"] for task in model["tasks"]][-1:] == ["running"])
    assert model["head"]["flow"] == "other"
    page.wait()  # the cell that started it has ended; what comes now, comes to that cell

    # The editor asks which widgets there are, and for their state, and takes a message without a subshell.
    reply = asked(lab, "comm_info_request", {"target_name": "jupyter.widget"})
    comm = next(key for key, each in page.models.items() if each is model)
    assert comm in reply["comms"]
    before = model["head"]
    model.clear()
    lab.client.shell_channel.send(lab.client.session.msg("comm_msg", {"comm_id": comm, "data": {"method": "request_state"}}))
    page.until(lambda: {"head", "graph", "steps", "tasks", "_esm", "_css"} <= set(model))
    assert model["head"]["token"] == before["token"]

    # A click is heard while no cell runs.
    page.ask(do="stop", step="nothing")
    page.until(lambda: "no step 'nothing'" in (model["head"]["said"] or {}).get("text", ""))
    go.touch()
    page.until(lambda: model["head"]["state"] == "succeeded")
    bundles = list(page.shown.values())
    assert VIEW in bundles[0] and "text/plain" in bundles[0]
    page.until(lambda: "<svg" in list(page.shown.values())[1]["text/html"])


def asked(notebook: Notebook, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request on the shell channel."""
    message = notebook.client.session.msg(kind, content)
    notebook.client.shell_channel.send(message)
    while True:
        reply = notebook.client.get_shell_msg(timeout=60)
        if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            found: dict[str, Any] = reply["content"]
            return found


def test_all_widgets_can_be_asked_for_at_once_as_a_page_does_that_is_loaded_anew(lab: Notebook) -> None:
    page = Page(lab)
    page.run("%%flowstep start\nx = 1")
    page.run("%flow run")
    model = page.ended()
    page.wait()
    client = lab.client
    client.shell_channel.send(
        client.session.msg(
            "comm_open",
            {
                "comm_id": "control",
                "target_name": "jupyter.widget.control",
                "data": {},
            },
            metadata={"version": "1.0.0"},
        )
    )
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": "control", "data": {"method": "request_states"}}))
    states: dict[str, Any] = {}
    while not states:
        message = client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "comm_msg" and message["content"]["data"].get("method") == "update_states":
            states = message["content"]["data"]["states"]
    (found,) = [each["state"] for each in states.values() if "head" in each["state"]]
    assert [found["head"][key] for key in ("token", "state")] == [model["head"]["token"], "succeeded"]
    assert [(task["id"], task["state"]) for task in found["tasks"]] == [("start", "succeeded")] and found["_esm"]
