"""notebooks/execute.py: what the terminal shows, and that nothing is lost when a cell fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

EXECUTE = Path(__file__).parent.parent / "notebooks" / "execute.py"


def execute(folder: Path, *cells: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs the program on a notebook of these cells, in `folder`; both of its streams as text."""
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    (folder / "work").mkdir()
    nbformat.write(notebook, folder / "work" / "book.ipynb")
    command = [sys.executable, str(EXECUTE), "work/book.ipynb", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_outputs_are_shown_and_the_executed_notebook_is_written_beside(tmp_path: Path) -> None:
    source = "from IPython.display import display\nhandle = display('0 %', display_id=True)\nhandle.update('100 %')\nprint('\\x1b[31mred\\x1b[0m')"
    done = execute(tmp_path, "import os\nprint(os.path.basename(os.getcwd()))", source, "import os\nos.environ['FLOWBOOK_NOTEBOOK'][-10:]")

    assert done.returncode == 0, done.stderr
    assert "In [1]: import os   (+1 lines)\n    work\n" in done.stdout
    assert "    red\n    '100 %'\n" in done.stdout and "0 %'\n    '" not in done.stdout
    assert "'book.ipynb'" in done.stdout
    executed = nbformat.read(tmp_path / "out" / "book.executed.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].text == "work\n"
    assert nbformat.read(tmp_path / "work" / "book.ipynb", as_version=4).cells[0].outputs == []


def test_images_are_saved_and_their_paths_printed(tmp_path: Path) -> None:
    done = execute(
        tmp_path,
        "from IPython.display import SVG, Image, display\n"
        "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))\ndisplay(Image(data=b'\\x89PNG', format='png'))",
    )

    assert done.returncode == 0, done.stderr
    for name in ("book-cell1-1.svg", "book-cell1-2.png"):
        assert f"[image] {tmp_path / 'out' / name}" in done.stdout
    assert (tmp_path / "out" / "book-cell1-2.png").read_bytes() == b"\x89PNG"


def test_a_failing_cell_is_named_with_its_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    done = execute(tmp_path, "print('before')", "x = 0\n1 / x", "print('never')")

    assert done.returncode == 1
    assert "book.ipynb: FAILED: cell 2 (In [2]), line 2: ZeroDivisionError: division by zero" in done.stdout
    assert "never\n" not in done.stdout
    executed = nbformat.read(tmp_path / "out" / "book.executed.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].text == "before\n"
    assert executed.cells[1].outputs[0].ename == "ZeroDivisionError"


def test_a_cell_that_takes_too_long_and_a_kernel_that_dies_have_their_own_status(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    slow = execute(tmp_path / "a", "import time; time.sleep(60)", options=("--timeout", "1"))
    dead = execute(tmp_path / "b", "import os; os._exit(1)")

    assert slow.returncode == 3 and "TOO LONG: cell 1 did not end within 1 s" in slow.stdout
    assert dead.returncode == 4 and "KERNEL DIED in cell 1" in dead.stdout
    assert (tmp_path / "a" / "out" / "book.executed.ipynb").exists() and (tmp_path / "b" / "out" / "book.executed.ipynb").exists()


@pytest.mark.parametrize("argument", ["missing.ipynb", "."])
def test_a_notebook_that_is_not_there_is_wrong_use(tmp_path: Path, argument: str) -> None:
    done = subprocess.run([sys.executable, str(EXECUTE), argument], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert f"there is no notebook {argument}" in done.stderr
