"""The quickstart in JupyterLab, as a newcomer runs it: open, Run All Cells, look."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from tests.browser.lab import DARK, LIGHT, Lab
from tests.browser.test_lab import write

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def number(lab: Lab, beginning: str) -> int:
    """The place of the first cell whose source begins so, or has a line that does."""
    sources = ["".join(cell["source"]) for cell in lab.cells()]
    return next(i for i, source in enumerate(sources) if any(line.startswith(beginning) for line in source.splitlines()))


@pytest.mark.slow
def test_run_all_needs_no_wait_and_ends_in_accuracy_and_plot(lab: Lab) -> None:
    lab.open(QUICKSTART)
    lab.run_all()
    lab.page.wait_for_timeout(3_000)
    lab.picture("quickstart-running", whole=True)
    lab.wait_for_cells(240)

    errors = [output for cell in lab.cells() for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert errors == [], lab.story()
    assert "test accuracy 9" in lab.output(number(lab, 'print(f"best setting')), lab.story()
    assert lab.cell(number(lab, "import matplotlib")).locator("img").count() == 1
    assert lab.cells()[number(lab, "assert test_accuracy")]["execution_count"] is not None
    status = lab.output(number(lab, "%flow run"))
    assert "train" in status and "succeeded" in status and re.search(r"9\s*/\s*9", status), status
    assert lab.errors == []

    for name, theme in (("light", LIGHT), ("dark", DARK)):
        lab.theme(theme)
        lab.picture(f"quickstart-{name}", whole=True)
    assert lab.squeezed(number(lab, "%flow run")) == []
    lab.theme(LIGHT)
    lab.picture("quickstart-narrow", width=480, whole=True)


@pytest.mark.slow
def test_the_status_fits_where_there_is_little_room(lab: Lab, tmp_path: Path) -> None:
    cells = ["%load_ext flowbook", "%%flowstep start\nrates = [1, 2, 3]", '%%flowstep invert --foreach "rate in rates"\ninverse = 1 / rate']
    lab.open(write(tmp_path / "fits.ipynb", *cells, "%flow run --wait"))
    lab.run_all()
    lab.wait_for_cells(60)
    for width in (1280, 480):
        lab.page.set_viewport_size({"width": width, "height": 900})
        lab.picture(f"status-{width}", width=width)
        area = lab.cell(3).locator(".jp-OutputArea").first

        assert lab.squeezed(3) == []
        assert area.evaluate("area => area.scrollWidth - area.clientWidth") <= 1
        assert lab.cell(3).get_by_text("invert").first.is_visible()


@pytest.mark.slow
def test_interrupting_a_cell_that_waits_leaves_the_run_alone(lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    lab.open(
        write(
            tmp_path / "waits.ipynb",
            "%load_ext flowbook",
            f"%%flowstep slow\nimport pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.05)\nanswer = 42",
            "%flow run",
            "print('the answer is', answer)",
            "print('again', answer)",
        )
    )
    for place in range(3):
        lab.run_cell(place)
        lab.wait_for_cells(60)
    lab.run_cell(3)
    lab.page.wait_for_function("document.querySelectorAll('.jp-CodeCell')[3].innerText.includes('[*]')")
    lab.page.wait_for_timeout(1_500)  # long enough for the cell to be waiting and to show its progress
    lab.picture("waiting")
    lab.interrupt()
    lab.wait_for_cells(20)
    assert "goes on" in lab.output(3), lab.story()

    go.touch()
    lab.run_cell(4)
    lab.wait_for_cells(60)
    assert "again 42" in lab.output(4), lab.story()


@pytest.mark.slow
def test_a_failure_shows_the_users_own_line_and_how_to_go_on(lab: Lab, tmp_path: Path) -> None:
    lab.open(
        write(
            tmp_path / "fails.ipynb",
            "%load_ext flowbook",
            "%%flowstep start\nrates = [2, 1, 0]",
            '%%flowstep invert --foreach "rate in rates"\nprint("rate", rate)\ninverse = 1 / rate',
            "%flow run --wait",
        )
    )
    lab.run_all()
    lab.wait_for_cells(60)
    shown = lab.output(3)
    lab.picture("failure-light", whole=True)
    lab.theme(DARK)
    lab.picture("failure-dark", whole=True)

    assert "ZeroDivisionError" in shown and "inverse = 1 / rate" in shown and "invert[2]" in shown, shown
    assert "%flow resume" in shown
    assert "/flowbook/" not in shown


def test_the_quickstart_is_kept_without_outputs() -> None:
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert [cell.source for cell in code if cell.outputs or cell.execution_count] == []
    assert not [cell.source for cell in code if "wait" in cell.source]
