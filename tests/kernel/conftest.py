"""A real ipykernel as a notebook: cells in, outputs out. No mocks; each test starts from an empty namespace and an own store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Cell:
    """What one executed cell left: streams, displays (the last state of each display id), result, error."""

    def __init__(self) -> None:
        self.stdout = self.stderr = ""
        self.displays: dict[str, dict[str, Any]] = {}
        self.result: str | None = None
        self.error: str | None = None  # the whole traceback as shown
        self.ename: str | None = None

    @property
    def text(self) -> str:
        """All that a person reads under the cell."""
        shown = [d.get("text/plain", "") for d in self.displays.values()]
        return "\n".join(filter(None, [self.stdout, self.stderr, *shown, self.result, self.error]))


class Notebook:
    """A kernel and the ways to use it."""

    def __init__(self, folder: Path, allow_stdin: bool = False, kernel_env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.allow_stdin = allow_stdin
        self.manager = KernelManager(kernel_name="python3")
        env = {**os.environ, "FLOWBOOK_STORE": str(folder / "store"), "FLOWBOOK_NOTEBOOK": str(folder / "book.ipynb"), **(kernel_env or {})}
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def start(self, code: str, cell_id: str | None = None) -> str:
        """Send a cell without waiting for it."""
        message = self.client.session.msg(
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": self.allow_stdin,
                "stop_on_error": True,
            },
            metadata={"cellId": cell_id} if cell_id else {},
        )
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def finish(self, msg_id: str, timeout: float = 120) -> Cell:
        """Collect what the cell shows until it is idle."""
        cell, deadline = Cell(), time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            kind, content = message["msg_type"], message["content"]
            if kind in ("display_data", "update_display_data"):
                key = content.get("transient", {}).get("display_id") or f"n{len(cell.displays)}"
                if kind == "display_data" or key in cell.displays:
                    cell.displays[key] = content["data"]
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            if kind == "stream":
                if content["name"] == "stdout":
                    cell.stdout += content["text"]
                else:
                    cell.stderr += content["text"]
            elif kind == "execute_result":
                cell.result = content["data"].get("text/plain", "")
            elif kind == "error":
                cell.ename, cell.error = content["ename"], ANSI.sub("", "\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return cell

    def run(self, code: str, cell_id: str | None = None, timeout: float = 120) -> Cell:
        """Run a cell to its end, whatever comes of it."""
        return self.finish(self.start(code, cell_id), timeout)

    def ok(self, code: str, cell_id: str | None = None) -> Cell:
        """Run a cell that must not fail."""
        cell = self.run(code, cell_id)
        assert cell.error is None, cell.text
        return cell

    def fails(self, code: str, cell_id: str | None = None) -> str:
        """Run a cell that must fail; what it says, without a traceback of our own code."""
        cell = self.run(code, cell_id)
        assert cell.error is not None, f"the cell did not fail; it showed: {cell.text}"
        assert "/flowbook/" not in cell.error, cell.error
        return cell.error

    def value(self, expression: str) -> str:
        """The repr of an expression in the kernel."""
        cell = self.ok(f"print(repr(({expression})))")
        return cell.stdout.strip().splitlines()[-1]

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Notebook]:
    """A notebook with flowbook loaded, whose client takes no input: `%flow run` waits."""
    notebook = Notebook(tmp_path)
    try:
        notebook.ok("%load_ext flowbook")
        yield notebook
    finally:
        notebook.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Notebook]:
    """A notebook as JupyterLab drives it: input is possible, so `%flow run` returns at once."""
    notebook = Notebook(tmp_path, allow_stdin=True)
    try:
        notebook.ok("%load_ext flowbook")
        yield notebook
    finally:
        notebook.close()


def waits_for(path: Path) -> str:
    """Lines of a body that go on when there is a file."""
    return f"import pathlib, time\nwhile not pathlib.Path({str(path)!r}).exists():\n    time.sleep(0.01)"


def until_it_waits(book: Notebook, name: str) -> None:
    """Until the cell that was started says that it waits for a name."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        message = book.client.get_iopub_msg(timeout=60)
        if f"waiting for `{name}`" in str(message["content"].get("data", {})):
            return
    raise AssertionError(f"no cell said that it waits for {name}")
