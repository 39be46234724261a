"""A flow file, run as a user runs it: `python flow.py run` in a process and a store of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from flowbook.store import layout, results
from flowbook.store.base import open_store

HEAD = "from flowbook import FlowSpec, Parameter, card, catch, checkpoint, current, environment, resources, retry, step, timeout\n"


class FlowFile:
    """One file `flow.py` in a folder. Each method that runs something gives the finished process."""

    def __init__(self, folder: Path, text: str = "", name: str = "flow.py") -> None:
        self.folder, self.path = folder, folder / name
        self.environ = {**os.environ, "FLOWBOOK_STORE": str(folder / "store"), "PYTHONPATH": ""}
        if text:
            self.write(text)

    def write(self, text: str) -> None:
        text = textwrap.dedent(text)
        name = re.findall(r"^class (\w+)\(FlowSpec\)", text, re.MULTILINE)[-1]
        self.flow = name
        self.path.write_text(f"{HEAD}{text}\n\nif __name__ == '__main__':\n    {name}()\n")

    def call(self, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.path), *words]
        return subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=timeout)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command that must succeed: `run` by default."""
        done = self.call(*(words or ("run",)))
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def fails(self, *words: str) -> str:
        """A command that must fail; what it says, without a traceback of our own code."""
        done = self.call(*(words or ("run",)))
        said = done.stdout + done.stderr
        assert done.returncode != 0, said
        assert "site-packages" not in said and "flowbook/worker" not in said and "flowbook/cli" not in said, said
        return said

    # ---- what is in the store ----

    @property
    def reader(self) -> results.Reader:
        store = open_store({"kind": "files", "root": str(self.folder / "store" / "default")})
        return results.Reader(store, self.flow, {})

    def commit(self, step: str, *index: int, run: str = "1") -> dict[str, Any] | None:
        return results.read_commit(self.reader.store, self.flow, run, step, index)

    def value(self, name: str, step: str = "end", *index: int, run: str = "1") -> Any:
        """An artifact as a task leaves it, inherited or its own."""
        reader = self.reader
        before = results.set_reader(reader)
        try:
            entry = reader.visible(self.flow, run, step, index, name)
            assert entry is not None, f"{layout.commit(self.flow, run, step, index)} shows no {name}"
            return reader.load(entry, name)
        finally:
            results.set_reader(before)

    def ran(self, run: str) -> set[str]:
        """The tasks that ran in a run, not taken from an earlier one."""
        from flowbook.engine import cache

        log = cache.log_of(self.reader.store, self.flow, run)
        return {f"{e['step']}{e['index'] or ''}" for e in log if e["e"] == "launched"}
