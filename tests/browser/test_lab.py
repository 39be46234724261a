"""The tools of the browser tests themselves: a plain notebook in JupyterLab, without flowbook."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from tests.browser.lab import DARK, LIGHT, Lab


def write(path: Path, *cells: str) -> Path:
    """A notebook of code cells."""
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, path)
    return path


def test_a_plain_notebook_runs_and_its_outputs_are_read_from_the_page(lab: Lab, tmp_path: Path) -> None:
    lab.open(write(tmp_path / "plain.ipynb", "print('seen')", "6 * 7"))
    lab.run_all()
    lab.wait_for_cells()

    assert lab.output(0) == "seen"
    assert lab.output(1) == "42"
    assert lab.cells()[1]["execution_count"] == 2
    assert lab.errors == []


def test_interrupt_reaches_a_cell_that_sleeps(lab: Lab, tmp_path: Path) -> None:
    lab.open(write(tmp_path / "sleeps.ipynb", "print('go')\nimport time; time.sleep(60)"))
    lab.run_cell(0)
    lab.page.wait_for_selector("text=go >> visible=true")
    lab.interrupt()
    lab.wait_for_cells(20)

    assert "KeyboardInterrupt" in lab.output(0)


def test_pictures_are_taken_light_dark_and_narrow(lab: Lab, tmp_path: Path) -> None:
    lab.open(write(tmp_path / "pictures.ipynb", "print('picture')"))
    lab.run_all()
    lab.wait_for_cells()
    taken = []
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        lab.theme(theme)
        taken.append(lab.picture(f"plain-{name}"))
    lab.theme(LIGHT)
    taken.append(lab.picture("plain-narrow", width=480))

    assert [path.read_bytes()[:4] for path in taken] == [b"\x89PNG"] * 3
