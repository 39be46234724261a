"""A kernel is killed in mid-run and a new one takes up what it left: display, names, values; nothing runs twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.conftest import Notebook


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def kill(notebook: Notebook) -> None:
    """The kernel process dies of SIGKILL, as of the machine's memory killer."""
    pid = notebook.manager.provisioner.pid  # type: ignore[union-attr]
    os.kill(pid, signal.SIGKILL)
    notebook.close()


@contextmanager
def restarted(folder: Path, allow_stdin: bool = True) -> Iterator[Notebook]:
    """A new kernel of the same notebook."""
    notebook = Notebook(folder, allow_stdin=allow_stdin)
    try:
        yield notebook
    finally:
        notebook.close()


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


FLOW = [
    "%%flowstep start\nxs = [1, 2, 3]\nfactor = 10",
    '%%flowstep train --foreach "x in xs"\n'
    "import pathlib, time\n"
    "with open('ran.txt', 'a') as log:\n"
    "    log.write(f'{x}\\n')\n"
    "while x > 1 and not pathlib.Path('go').exists():\n"
    "    time.sleep(0.02)\n"
    "score = x * factor",
    "%%flowstep best --join train\ntop = max(t.score for t in train)",
]


def start_and_kill(lab: Notebook) -> None:
    """Run FLOW until its first task is committed and the others are under way, then kill the kernel."""
    for cell in FLOW:
        lab.ok(cell)
    lab.ok("%flow run")
    commit = lab.folder / "store/default/flows/book/1/train/0.COMMIT"
    until(lambda: commit.exists() and len(lines(lab.folder / "ran.txt")) >= 2)
    kill(lab)


def test_a_new_kernel_takes_up_the_run_of_a_killed_one(lab: Notebook, tmp_path: Path) -> None:
    start_and_kill(lab)
    with restarted(tmp_path) as book:
        said = book.ok("%load_ext flowbook").stdout
        assert "run 1 of book is running (2 of 4 tasks)" in said or "run 1 of book is running" in said
        assert "`%flow attach`" in said

        shown = book.ok("%flow attach")
        assert "train" in shown.text and "running" in shown.text
        assert book.value("train[0].score, factor, start.xs") == "(10, 10, [1, 2, 3])"
        (tmp_path / "go").touch()
        assert book.value("top") == "30"

        for cell in FLOW:  # the cells run again, unchanged: nothing is stale
            book.ok(cell)
        cell = book.ok("print(top, factor, train[1].score)")
        assert cell.stdout.split() == ["30", "10", "20"] and cell.stderr == ""
        assert sorted(lines(tmp_path / "ran.txt")) == ["1", "2", "3"]
