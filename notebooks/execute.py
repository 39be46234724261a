"""Executes a notebook in its own folder and shows in the terminal what it does, as it does it.

    python notebooks/execute.py notebooks/quickstart.ipynb [--out DIR] [--timeout SECONDS]

The executed notebook and its images are always written, also when a cell fails, to DIR (default: out/ in the present
folder) and never over the source. Exit status: 0 done, 1 a cell failed, 2 wrong use, 3 a cell took too long, 4 the
kernel died.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CELL_LINE = re.compile(r"(?:Cell In\s?\[\d+\]|<ipython-input[^>]*>), line (\d+)|^-+> ?(\d+) ", re.MULTILINE)
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


class Shown(NotebookClient):
    """A notebook client that prints what arrives. What updates itself is printed once, as it is when its cell ends."""

    def __init__(self, nb: nbformat.NotebookNode, images: Path, **options: Any) -> None:
        super().__init__(nb, on_cell_start=self.started, on_cell_executed=self.ended, **options)
        self.images = images
        self.count = 0
        self.updating: list[tuple[nbformat.NotebookNode, int]] = []  # outputs with a display id, and their cells

    def started(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        if cell.cell_type != "code" or not cell.source.strip():
            return
        self.count += 1
        first, *rest = [line for line in cell.source.splitlines() if line.strip()]
        say(f"\nIn [{self.count}]: {first}" + (f"   (+{len(rest)} lines)" if rest else ""))

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        shown = super().output(outs, msg, display_id, cell_index)
        if shown is None:
            return None
        if shown.output_type == "stream":
            show_text(msg["content"]["text"])  # `shown` may hold what came before, too
        elif shown.output_type == "error":
            show_text("\n".join(shown.traceback))
        elif display_id:
            self.updating.append((shown, cell_index))
        else:
            self.show_data(shown.data, cell_index)
        return shown

    def ended(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        for output, index in self.updating:
            self.show_data(output.data, index)
        self.updating.clear()

    def show_data(self, data: dict[str, Any], cell_index: int) -> None:
        for mime, ending in IMAGES.items():
            if mime in data:
                path = self._save_image(data[mime], ending, cell_index)
                say(f"    [image] {path}")
                return
        if "text/plain" in data:
            show_text(data["text/plain"])

    def _save_image(self, content: str, ending: str, cell_index: int) -> Path:
        stem = f"{self.images.name}-cell{cell_index + 1}"
        taken = len(list(self.images.parent.glob(f"{stem}-*")))
        path = self.images.parent / f"{stem}-{taken + 1}.{ending}"
        path.write_bytes(content.encode() if ending == "svg" else base64.b64decode(content))
        return path


def say(text: str) -> None:
    print(text, flush=True)


def show_text(text: str) -> None:
    """Indented, without colours unless a terminal shows them; of a bar that redraws its line, the last state."""
    if not sys.stdout.isatty():
        text = ANSI.sub("", text)
    for line in text.splitlines():
        say("    " + line.rsplit("\r", 1)[-1])


def failing_line(output: nbformat.NotebookNode) -> str:
    """``, line 3`` as the traceback says it, else nothing."""
    found = [next(filter(None, match)) for match in CELL_LINE.findall(ANSI.sub("", "\n".join(output.traceback)))]
    return f", line {found[0]}" if found else ""


def what_failed(nb: nbformat.NotebookNode) -> str:
    """Number, line, error and source of the cell that failed."""
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                where = f"cell {number} (In [{cell.execution_count or number}]){failing_line(output)}"
                return f"{where}: {output.ename}: {output.evalue}"
    return "a cell failed"


def execute(source: Path, out: Path, timeout_s: float) -> int:
    """Runs `source`, writes `out`/STEM.executed.ipynb and images beside it; the exit status of the program."""
    nb = nbformat.read(source, as_version=4)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{source.stem}-cell*"):
        old.unlink()
    os.environ["FLOWBOOK_NOTEBOOK"] = str(source.resolve())  # the client tells the kernel no name; the flow is called after it
    client = Shown(
        nb,
        images=(out / source.stem).resolve(),
        timeout=timeout_s,
        startup_timeout=120,
        extra_arguments=["--log-level=40"],  # the kernel's own warnings are none of the reader's
        resources={"metadata": {"path": str(source.resolve().parent)}},
    )
    executed = out / f"{source.stem}.executed.ipynb"
    started = time.monotonic()
    status, verdict = 0, "done"
    say(f"Executing {source}")
    try:
        client.execute()
    except CellExecutionError:
        status, verdict = 1, f"FAILED: {what_failed(nb)}"
    except CellTimeoutError:
        status, verdict = 3, f"TOO LONG: cell {client.count} did not end within {timeout_s:g} s"
    except DeadKernelError:
        status, verdict = 4, f"KERNEL DIED in cell {client.count}"
    finally:
        nbformat.write(nb, executed)
        say(f"\nExecuted notebook: {executed}")
    say(f"{source.name}: {verdict} ({time.monotonic() - started:.1f} s)")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the executed notebook (default: out)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="longest time of one cell (default: 600)")
    args = parser.parse_args()
    if not args.notebook.is_file():
        parser.error(f"there is no notebook {args.notebook}")
    return execute(args.notebook, args.out, args.timeout)


if __name__ == "__main__":
    sys.exit(main())
