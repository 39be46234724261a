"""The documentation is executed: the ``python`` blocks of a page, each as a cell, in order, in a real kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.conftest import Notebook

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- raises (?P<raises>\w+) -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A cell of a page; `raises`: the name of the error that the page promises, in a comment above the block."""

    line: int
    code: str
    raises: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        yield Block(text[: found.start("code")].count("\n") + 1, found["code"].rstrip("\n"), found["raises"])


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if any(blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.slow
def test_the_examples_of_a_page_run_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    try:
        for block in blocks(page):
            cell = notebook.run(block.code)
            where = f"{page.name}:{block.line}\n{block.code}\n\n{cell.text}"
            if block.raises:
                assert cell.error and block.raises in cell.error, where
            else:
                assert cell.error is None, where
    finally:
        notebook.close()
